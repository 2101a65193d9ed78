//! Who may send where: the pure table behind the forwarder.
//!
//! A packet passes when its source address belongs to an admitted link and its destination is the other half of an allowed pair: a node reaches
//! its own hub, a hub its own nodes, nobody reaches anybody else. The newest link of a route wins; a late goodbye of an older one removes nothing.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use cortex_wire::route::Route;

/// Where packets for a route go.
pub enum Place<L> {
    /// Out of the UDP port, or into the tunnel that has this address.
    Udp(SocketAddr),
    /// To a hub in this process.
    Local(Arc<L>),
}

impl<L> Clone for Place<L> {
    fn clone(&self) -> Self {
        match self {
            Self::Udp(address) => Self::Udp(*address),
            Self::Local(port) => Self::Local(port.clone()),
        }
    }
}

impl<L> fmt::Debug for Place<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "Udp({address})"),
            Self::Local(_) => f.write_str("Local"),
        }
    }
}

/// Why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Drop {
    /// Its source is no admitted link.
    Stranger,
    /// Nobody is connected under its destination.
    NoRoute,
    /// Source and destination are not a pair.
    NotAllowed,
    /// The source has used up what it may send.
    Budget,
    /// No room in the socket or in the hub's queue.
    Full,
    /// Not a packet of ours.
    Malformed,
}

impl Drop {
    /// Every reason, in a fixed order.
    pub const ALL: [Self; 6] = [Self::Stranger, Self::NoRoute, Self::NotAllowed, Self::Budget, Self::Full, Self::Malformed];

    /// Label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::NoRoute => "no_route",
            Self::NotAllowed => "not_allowed",
            Self::Budget => "budget",
            Self::Full => "full",
            Self::Malformed => "malformed",
        }
    }
}

/// A link that was admitted.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Where its packets come from and go to.
    pub address: SocketAddr,
    /// Which hub it belongs to.
    pub tenant: usize,
    /// Whether it is the hub itself.
    pub is_hub: bool,
    /// The link's number.
    pub link: u64,
    /// What it may send.
    pub budget: Arc<Budget>,
}

struct Target<L> {
    place: Place<L>,
    tenant: usize,
    is_hub: bool,
    link: u64,
}

struct Source {
    tenant: usize,
    is_hub: bool,
    link: u64,
    budget: Arc<Budget>,
}

/// The table. `L` is the port of a hub in this process.
pub struct RouteTable<L> {
    targets: HashMap<Route, Target<L>>,
    sources: HashMap<SocketAddr, Source>,
}

impl<L> Default for RouteTable<L> {
    fn default() -> Self {
        Self { targets: HashMap::new(), sources: HashMap::new() }
    }
}

impl<L> fmt::Debug for RouteTable<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouteTable({} routes, {} sources)", self.targets.len(), self.sources.len())
    }
}

impl<L> RouteTable<L> {
    /// Admits a link under a route. An older link of the route loses it; its address is no longer a source.
    pub fn admit(&mut self, route: Route, admitted: Admitted) {
        self.forget_source(route);
        let Admitted { address, tenant, is_hub, link, budget } = admitted;
        self.targets.insert(route, Target { place: Place::Udp(address), tenant, is_hub, link });
        self.sources.insert(address, Source { tenant, is_hub, link, budget });
    }

    /// Admits the hub of `tenant` in this process.
    pub fn admit_local(&mut self, route: Route, tenant: usize, port: Arc<L>) {
        self.targets.insert(route, Target { place: Place::Local(port), tenant, is_hub: true, link: 0 });
    }

    /// A link's address has changed.
    pub fn moved(&mut self, route: Route, link: u64, address: SocketAddr) {
        let Some(target) = self.targets.get_mut(&route).filter(|target| target.link == link) else { return };
        let Place::Udp(old) = target.place else { return };
        target.place = Place::Udp(address);
        if let Some(source) = self.sources.remove(&old).filter(|source| source.link == link) {
            self.sources.insert(address, source);
        }
    }

    /// A link has ended. Nothing happens when a newer one has its route.
    pub fn remove(&mut self, route: Route, link: u64) {
        if self.targets.get(&route).is_some_and(|target| target.link == link) {
            self.forget_source(route);
            self.targets.remove(&route);
        }
    }

    fn forget_source(&mut self, route: Route) {
        let Some(Target { place: Place::Udp(address), link, .. }) = self.targets.get(&route) else { return };
        if self.sources.get(address).is_some_and(|source| source.link == *link) {
            self.sources.remove(address);
        }
    }

    /// Whether packets from this address come from an admitted link.
    pub fn knows(&self, address: &SocketAddr) -> bool {
        self.sources.contains_key(address)
    }

    /// Where `bytes` from `source` to `route` go.
    ///
    /// # Errors
    /// Why they go nowhere.
    pub fn forward(&self, source: &SocketAddr, route: Route, bytes: usize, now: Instant) -> Result<&Place<L>, Drop> {
        let source = self.sources.get(source).ok_or(Drop::Stranger)?;
        let place = self.pair(source.tenant, source.is_hub, route)?;
        if source.budget.spend(bytes, now) { Ok(place) } else { Err(Drop::Budget) }
    }

    /// Where packets from the hub of `tenant` in this process go.
    ///
    /// # Errors
    /// Why they go nowhere.
    pub fn forward_local(&self, tenant: usize, route: Route) -> Result<&Place<L>, Drop> {
        self.pair(tenant, true, route)
    }

    fn pair(&self, tenant: usize, from_hub: bool, route: Route) -> Result<&Place<L>, Drop> {
        let target = self.targets.get(&route).ok_or(Drop::NoRoute)?;
        if target.tenant == tenant && target.is_hub != from_hub { Ok(&target.place) } else { Err(Drop::NotAllowed) }
    }
}

/// What a link may send.
#[derive(Debug)]
pub enum Budget {
    /// As much as it wants.
    Unlimited,
    /// A total, for a node that enrols.
    Total(AtomicI64),
    /// A rate, with one second's worth in reserve.
    Rate(Rate, Mutex<Bucket>),
}

/// Bytes per second; 0: no limit.
#[derive(Debug, Clone)]
pub enum Rate {
    /// Of this link.
    Own(u64),
    /// What the operator gives to all; it may change under living links.
    Default(Arc<AtomicU64>),
}

impl Rate {
    fn now(&self) -> u64 {
        match self {
            Self::Own(rate) => *rate,
            Self::Default(rate) => rate.load(Relaxed),
        }
    }
}

impl Budget {
    /// This many bytes in all.
    pub fn total(bytes: i64) -> Self {
        Self::Total(bytes.into())
    }

    /// This many bytes per second.
    pub fn rate(rate: Rate, now: Instant) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate above 2^53 bytes per second is no limit")]
        let held = rate.now() as f64;
        Self::Rate(rate, Mutex::new(Bucket { held, at: now }))
    }

    fn spend(&self, bytes: usize, now: Instant) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Total(left) => {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                left.fetch_sub(bytes, Relaxed) >= bytes
            }
            Self::Rate(rate, bucket) => match rate.now() {
                0 => true,
                rate => bucket.lock().unwrap_or_else(PoisonError::into_inner).spend(rate, bytes, now),
            },
        }
    }
}

/// A token bucket.
#[derive(Debug)]
pub struct Bucket {
    held: f64,
    at: Instant,
}

impl Bucket {
    #[expect(clippy::cast_precision_loss, reason = "a rate above 2^53 bytes per second is no limit, and a batch is at most 64 KiB")]
    fn spend(&mut self, rate: u64, bytes: usize, now: Instant) -> bool {
        let (rate, bytes) = (rate as f64, bytes as f64);
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.held = (self.held + earned).min(rate);
        self.at = now;
        let enough = self.held >= bytes;
        if enough {
            self.held -= bytes;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_wire::key::SecretKey;
    use std::time::Duration;

    fn route(seed: u8) -> Route {
        Route::of(&SecretKey::from_seed([seed; 32]).public())
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn link(port: u16, tenant: usize, is_hub: bool, link: u64) -> Admitted {
        Admitted { address: address(port), tenant, is_hub, link, budget: Arc::new(Budget::Unlimited) }
    }

    /// Hub 1 with nodes 11 and 12, hub 2 with node 21; ports as route numbers.
    fn table() -> RouteTable<()> {
        let mut table = RouteTable::default();
        table.admit(route(1), link(1, 0, true, 1));
        table.admit(route(2), link(2, 1, true, 2));
        table.admit(route(11), link(11, 0, false, 11));
        table.admit(route(12), link(12, 0, false, 12));
        table.admit(route(21), link(21, 1, false, 21));
        table
    }

    fn verdict(table: &RouteTable<()>, from: u16, to: u8) -> Result<SocketAddr, Drop> {
        table.forward(&address(from), route(to), 100, Instant::now()).map(|place| match place {
            Place::Udp(address) => *address,
            Place::Local(_) => address(0),
        })
    }

    #[test]
    fn a_node_reaches_its_hub_and_a_hub_its_nodes() {
        let table = table();
        assert_eq!(verdict(&table, 11, 1), Ok(address(1)));
        assert_eq!(verdict(&table, 1, 12), Ok(address(12)));
        assert_eq!(verdict(&table, 2, 21), Ok(address(21)));
    }

    #[test]
    fn nobody_reaches_anybody_else() {
        let table = table();
        for (from, to) in [(11, 12), (11, 2), (11, 21), (1, 21), (1, 2), (1, 1), (11, 11)] {
            assert_eq!(verdict(&table, from, to), Err(Drop::NotAllowed), "{from} to {to}");
        }
        assert_eq!(verdict(&table, 99, 1), Err(Drop::Stranger));
        assert_eq!(verdict(&table, 11, 99), Err(Drop::NoRoute));
    }

    #[test]
    fn the_newest_link_of_a_route_wins() {
        let mut table = table();
        table.admit(route(11), link(111, 0, false, 31));
        assert_eq!(verdict(&table, 11, 1), Err(Drop::Stranger));
        table.remove(route(11), 11);
        assert_eq!(verdict(&table, 1, 11), Ok(address(111)));
        table.remove(route(11), 31);
        assert_eq!(verdict(&table, 1, 11), Err(Drop::NoRoute));
        assert_eq!(verdict(&table, 111, 1), Err(Drop::Stranger));
    }

    #[test]
    fn a_link_that_moves_takes_its_route_along() {
        let mut table = table();
        table.moved(route(11), 11, address(77));
        assert_eq!(verdict(&table, 1, 11), Ok(address(77)));
        assert_eq!(verdict(&table, 77, 1), Ok(address(1)));
        assert_eq!(verdict(&table, 11, 1), Err(Drop::Stranger));
        table.moved(route(11), 99, address(78));
        assert_eq!(verdict(&table, 1, 11), Ok(address(77)));
    }

    #[test]
    fn an_address_taken_over_by_another_link_stays_with_it() {
        let mut table = table();
        table.admit(route(12), link(11, 0, false, 40));
        table.remove(route(11), 11);
        assert_eq!(verdict(&table, 11, 1), Ok(address(1)));
    }

    #[test]
    fn a_budget_runs_out_and_a_rate_recovers() {
        let start = Instant::now();
        let total = Budget::total(250);
        assert!(total.spend(100, start) && total.spend(100, start) && !total.spend(100, start));
        let rate = Budget::rate(Rate::Own(1000), start);
        assert!(rate.spend(1000, start) && !rate.spend(1, start));
        assert!(rate.spend(400, start + Duration::from_millis(500)));
        assert!(!rate.spend(400, start + Duration::from_millis(500)));
    }

    #[test]
    fn a_rate_for_all_changes_under_those_who_have_it() {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let rate = Arc::new(AtomicU64::new(0));
        let budget = Budget::rate(Rate::Default(rate.clone()), start);
        assert!(budget.spend(1_000_000, start), "no limit");
        rate.store(1000, Relaxed);
        assert!(budget.spend(1000, second(5)) && !budget.spend(1, second(5)), "a second's worth is in reserve, and no more");
        rate.store(100, Relaxed);
        assert!(budget.spend(100, second(6)) && !budget.spend(100, second(6)));
        rate.store(0, Relaxed);
        assert!(budget.spend(1_000_000, second(6)));
    }
}
