//! The links of this node: which there are, which one carries the packets to the hub, and when another one has to.
//!
//! [`Paths`] decides, [`Uplink`]s do, and this task stands between: it hears what happens on the links, watches whether what is sent is answered, and shows the rest of the mesh a [`View`].
//!
//! A direct way to the hub ([`DirectPath`]) takes over from home, which stays linked to take over again.
//!
//! How a dead home is noticed: what is sent to the hub stays unanswered for 100 ms (longer where the round trip is longer), so all links are pinged. When home's relay has said nothing after 200 ms
//! more and another one has answered, home is given up and that one takes over at once. When none answers, the fault is nearer than the relays, and moving would not help. A direct way is
//! watched in the same manner; any relay's answer speaks against it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use cortex_runtime::{
    chunk::ChunkClient,
    clock,
    direct::{News, Paired, own_addresses},
    link::LinkError,
    quic,
    socket::Carrier,
};
use cortex_wire::{
    close::CloseCode,
    id::RelayId,
    invite::{self, RelayEndpoint},
    limits,
    route::RelayTag,
    schema::{DirectAddress, DirectKind, DirectOffer, Drain, HubState, Invite, RelayNews, Signed, Ticket, link_hello::Credential},
    text,
};
use prost::Message as _;
use quinn::Connection;
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    MeshError, ShowLinks,
    direct::{self, DirectPath},
    paths::{Paths, Sight, Step},
    shown::{Shown, ShownLink},
    uplink::{Dialler, Ended, Order, Told, Uplink, Welcomed},
    wake::ClockWatch,
};
use crate::mirror::Mirror;

/// What is sent to the hub should be answered by then (or within two round trips), else the links are pinged; and they should answer within the second time (or three round trips).
const ANSWER: Duration = Duration::from_millis(100);
const PING: Duration = Duration::from_millis(200);
/// The most that either of them may become on a long way.
const LONGEST: Duration = Duration::from_secs(1);
/// Events and orders that may wait.
const QUEUE: usize = 64;
/// Home is doubted once within this time, whatever relays say of it.
const DOUBTS: Duration = Duration::from_secs(1);
/// What a relay may ask of a node that it refuses.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// The longest time over which nodes are spread.
const LONGEST_SPREAD_MS: u64 = 60_000;

/// What the links need.
pub(crate) struct LinksOptions {
    pub(crate) dialler: Dialler,
    pub(crate) relays: Vec<RelayEndpoint>,
    /// The relays are this machine's choice, and the hub's list does not count.
    pub(crate) fixed: bool,
    pub(crate) show: ShowLinks,
    /// To be redeemed.
    pub(crate) invite: Option<Invite>,
    pub(crate) mirror: Mirror,
    pub(crate) max_retries: Option<u32>,
}

/// What the rest of the mesh sees of the links.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The link by which packets go; `None`: there is none.
    pub(crate) home: Option<Home>,
    /// The link that is held ready.
    pub(crate) standby: Option<(RelayId, Duration)>,
    /// Another number whenever packets go another way, or the same way again after there was none.
    pub(crate) epoch: u64,
    /// How often the machine has woken up: what was last heard is old then.
    pub(crate) woken: u64,
    /// How often somebody said that home's relay is silent: a heartbeat shows whether it is.
    pub(crate) doubted: u64,
    /// Which start of the hub the relays know; 0: none has told yet.
    pub(crate) instance: u64,
    /// A hub that has come back is connected to within this time.
    pub(crate) spread: Duration,
    /// When home's relay last answered.
    pub(crate) answered: Option<Instant>,
    /// Packets go directly, and not by home.
    pub(crate) is_direct: bool,
    /// Why they do, or why not.
    pub(crate) why: String,
    /// How often a direct way was looked for, and where this node may be then.
    pub(crate) search: (u64, Vec<DirectAddress>),
    /// The links are given up.
    pub(crate) gave_up: Option<GaveUp>,
}

/// The link by which packets go.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) relay: RelayEndpoint,
    pub(crate) virtual_address: std::net::SocketAddr,
    /// Its relay says that the hub is linked to it.
    pub(crate) hub_online: bool,
}

/// Why no link is tried any more.
#[derive(Debug, Clone)]
pub(crate) enum GaveUp {
    Refused { code: String, reason: String },
    Unreachable(String),
    NoRelay,
}

impl From<GaveUp> for MeshError {
    fn from(gave_up: GaveUp) -> Self {
        match gave_up {
            GaveUp::Refused { code, reason } => Self::Refused { code, reason },
            GaveUp::Unreachable(error) => Self::Unreachable(error),
            GaveUp::NoRelay => Self::Setup("no relay is known; enrol with a new invite".into()),
        }
    }
}

/// What the links are told.
#[derive(Debug)]
enum Command {
    News(RelayNews),
    Ticket(Signed),
    Enrolled,
    Ping,
    Unheard,
    Healthy,
    Paired(Pairing),
    Parted,
    Offered(DirectOffer),
}

/// What a direct way needs of a connection to the hub.
#[derive(Debug)]
pub(crate) struct Pairing {
    pub(crate) connection: Connection,
    pub(crate) paired: Arc<Paired>,
    pub(crate) news: mpsc::Receiver<News>,
}

/// The way to the task that keeps the links. It ends with this value.
#[derive(Debug)]
pub(crate) struct Links {
    view: watch::Receiver<View>,
    commands: mpsc::Sender<Command>,
    _task: AbortOnDropHandle<()>,
}

impl Links {
    /// Starts dialling.
    pub(crate) fn start(options: LinksOptions) -> Self {
        let (tell, view) = watch::channel(View::default());
        let (commands, ordered) = mpsc::channel(QUEUE);
        let keeper = Keeper::new(options, tell);
        let task = AbortOnDropHandle::new(tokio::spawn(keeper.run(ordered)));
        Self { view, commands, _task: task }
    }

    /// What there is now; a change wakes the clone.
    pub(crate) fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// The hub's relays, and how it sees them.
    pub(crate) async fn news(&self, news: RelayNews) {
        let _ = self.commands.send(Command::News(news)).await;
    }

    /// A fresh ticket for one of the relays.
    pub(crate) async fn ticket(&self, ticket: Signed) {
        let _ = self.commands.send(Command::Ticket(ticket)).await;
    }

    /// The invite is redeemed.
    pub(crate) async fn enrolled(&self) {
        let _ = self.commands.send(Command::Enrolled).await;
    }

    /// There is a connection to the hub, for which a direct way may be looked for.
    pub(crate) async fn paired(&self, pairing: Pairing) {
        let _ = self.commands.send(Command::Paired(pairing)).await;
    }

    /// There is none any more.
    pub(crate) async fn parted(&self) {
        let _ = self.commands.send(Command::Parted).await;
    }

    /// Where the hub might be.
    pub(crate) async fn offered(&self, offer: DirectOffer) {
        let _ = self.commands.send(Command::Offered(offer)).await;
    }

    /// The node has been connected for a while: tries are counted anew.
    pub(crate) fn healthy(&self) {
        let _ = self.commands.try_send(Command::Healthy);
    }

    /// Measures all links.
    pub(crate) fn ping(&self) {
        let _ = self.commands.try_send(Command::Ping);
    }

    /// The hub has not answered in time. If home's relay answers, another way is tried.
    pub(crate) fn unheard(&self) {
        let _ = self.commands.try_send(Command::Unheard);
    }
}

/// What is known of the answers that are waited for.
#[derive(Debug, Clone, Copy)]
enum Watch {
    /// Everything that was sent is answered.
    Quiet,
    /// Something was sent; it should be answered at this time.
    Waiting(Instant),
    /// Everything was pinged, what carries among it; it should answer until `until`.
    Pinged { carries: Way, at: Instant, until: Instant, another_answers: bool },
}

/// By which way packets go to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Relay(RelayId),
    Direct,
}

/// A link.
struct Held {
    relay: RelayEndpoint,
    uplink: Uplink,
    welcomed: Option<Welcomed>,
}

struct Keeper {
    options: LinksOptions,
    paths: Paths,
    held: HashMap<RelayId, Held>,
    /// The last ticket for each relay.
    tickets: HashMap<RelayId, Signed>,
    events: mpsc::Receiver<(u64, Told)>,
    tell: mpsc::Sender<(u64, Told)>,
    view: watch::Sender<View>,
    direct: DirectPath,
    pairing: Option<Pairing>,
    /// The last round trip of the direct way.
    direct_rtt: Duration,
    watch: Watch,
    /// The hub did not answer, and home was pinged for it then.
    unheard: Option<Instant>,
    /// When a relay last said that home is silent.
    doubted: Option<Instant>,
    number: u64,
    tries: u32,
    /// What people see.
    shown: Shown,
}

impl Keeper {
    fn new(options: LinksOptions, view: watch::Sender<View>) -> Self {
        let (tell, events) = mpsc::channel(QUEUE);
        let paths = Paths::new(&options.relays, options.invite.is_some(), Instant::now());
        let direct = DirectPath::new(options.dialler.network.allows_direct());
        Self {
            options,
            paths,
            direct,
            pairing: None,
            direct_rtt: Duration::ZERO,
            held: HashMap::new(),
            tickets: HashMap::new(),
            events,
            tell,
            view,
            watch: Watch::Quiet,
            unheard: None,
            doubted: None,
            number: 0,
            tries: 0,
            shown: Shown::default(),
        }
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        if self.options.relays.is_empty() {
            self.give_up(GaveUp::NoRelay);
        }
        let socket = self.options.dialler.socket.clone();
        let mut clock = ClockWatch::new();
        loop {
            self.act();
            let now = Instant::now();
            let plan_at = self.paths.wake_at(now).into_iter().chain(self.direct.wake_at()).min();
            let look_at = self.look_at(now);
            tokio::select! {
                Some((number, told)) = self.events.recv() => self.hear(number, told),
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = socket.silence().begun(), if matches!(self.watch, Watch::Quiet) => self.look(),
                () = until(look_at) => self.look(),
                () = until(plan_at) => {}
                () = clock.jumped() => self.wake(),
                news = probed(&mut self.pairing) => self.probed(news),
            }
        }
    }

    /// Does what the rules ask for, and shows how it is.
    fn act(&mut self) {
        let now = Instant::now();
        for step in self.paths.plan(now) {
            match step {
                Step::Dial(relay) => self.dial(relay),
                Step::Close(relay, code) => self.close(relay, code),
                Step::Activate(relay) => self.activate(relay),
            }
        }
        for step in self.direct.plan(clock::jitter(), now) {
            self.step_directly(step);
        }
        self.show(now);
    }

    fn dial(&mut self, relay: RelayEndpoint) {
        self.number += 1;
        let credential = match &self.options.invite {
            Some(invite) => Some(Credential::Invite(invite::proof(invite))),
            None => self.tickets.get(&relay.id).cloned().map(Credential::Ticket),
        };
        let uplink = Uplink::dial(self.options.dialler.clone(), relay.clone(), credential, self.number, self.tell.clone());
        self.held.insert(relay.id, Held { relay, uplink, welcomed: None });
    }

    fn close(&mut self, relay: RelayId, code: CloseCode) {
        if let Some(held) = self.held.remove(&relay) {
            tracing::info!(relay = held.relay.address, "this relay's link is not needed any more");
            held.uplink.order(Order::Close(code));
        }
    }

    fn activate(&mut self, relay: RelayId) {
        let Some(Held { relay, welcomed: Some(_), .. }) = self.held.get(&relay) else { return };
        self.options.dialler.socket.activate(RelayTag::of(relay.id.key()));
        let is_direct = self.direct.way().is_some();
        tracing::info!(relay = relay.address, is_direct, "packets to the hub go by this relay now, unless they go directly");
        self.moved();
    }

    fn step_directly(&mut self, step: direct::Step) {
        let Some(Pairing { paired, .. }) = &self.pairing else { return };
        match step {
            direct::Step::Announce => {
                tracing::debug!(candidates = ?self.direct.named(), "looking for a direct way to the hub");
                let addresses = self.own_addresses();
                self.view.send_modify(|view| view.search = (view.search.0 + 1, addresses));
            }
            direct::Step::Ping { to, long } => paired.probe(to, long),
            direct::Step::Use(way) => {
                paired.activate(Some(way));
                if let Some(pairing) = &self.pairing {
                    quic::carry_chunks(&pairing.connection, 0);
                }
                tracing::info!(hub = %way, why = %self.direct.why(), "packets to the hub go directly now");
                self.moved();
            }
            direct::Step::Leave => {
                paired.activate(None);
                tracing::info!(why = %self.direct.why(), "packets to the hub go by the relay again");
                self.moved();
            }
        }
    }

    /// Packets go another way: the hub has to hear from this node by it.
    fn moved(&mut self) {
        self.watch = Watch::Quiet;
        self.unheard = None;
        self.set_chunks();
        let is_direct = self.direct.way().is_some();
        self.view.send_modify(|view| {
            view.epoch += 1;
            view.answered = None;
            view.is_direct = is_direct;
        });
    }

    /// Chunks go the way that packets go, or by home.
    fn set_chunks(&self) {
        let directly = self.pairing.as_ref().filter(|_| self.direct.takes_chunks()).map(|pairing| &pairing.connection);
        let home = self.paths.home().and_then(|home| self.held.get(&home.id)?.welcomed.as_ref());
        let connection = directly.or(home.map(|welcomed| &welcomed.connection));
        self.options.mirror.set_chunks(connection.map(|connection| Arc::new(ChunkClient::new(connection.clone())) as _));
    }

    /// Where the hub might find this node.
    fn own_addresses(&self) -> Vec<DirectAddress> {
        let named = |address: SocketAddr, kind: DirectKind| DirectAddress { address: address.to_string(), kind: kind.into() };
        let seen = self.seen_addresses();
        let own = self.machine_addresses().into_iter().filter(|own| !seen.contains(own)).map(|own| named(own, DirectKind::Own));
        own.chain(seen.iter().map(|seen| named(*seen, DirectKind::Observed))).take(limits::DIRECT_ADDRESSES).collect()
    }

    fn machine_addresses(&self) -> Vec<SocketAddr> {
        let Ok(port) = self.options.dialler.endpoint.local_addr().map(|address| address.port()) else { return Vec::new() };
        let towards: Vec<SocketAddr> = self.options.dialler.socket.relay_addresses().into_iter().chain(self.direct.named()).collect();
        own_addresses(&towards).into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
    }

    /// What relays see. Behind a tunnel, they see something else than UDP.
    fn seen_addresses(&self) -> Vec<SocketAddr> {
        let socket = &self.options.dialler.socket;
        let by_udp = |relay: &RelayId| matches!(socket.carrier(RelayTag::of(relay.key())), Some(Carrier::Udp(_)));
        let linked = self.held.iter().filter(|(relay, _)| by_udp(relay)).filter_map(|(_, held)| held.welcomed.as_ref());
        let mut seen: Vec<SocketAddr> = linked.filter_map(|welcomed| welcomed.observed.parse().ok()).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    /// This machine may be in another network than before.
    fn look_around(&mut self, now: Instant) {
        if self.pairing.is_some() && self.direct.is_wanted() {
            let mut own = self.machine_addresses();
            own.extend(self.seen_addresses());
            self.direct.own_addresses(own, now);
        }
    }

    /// A probe has come.
    fn probed(&mut self, news: News) {
        match news {
            News::Opened(from) => self.direct.opened(from),
            News::Answered { from, rtt, long } => {
                if self.direct.way().is_none_or(|way| way == from) {
                    self.direct_rtt = rtt;
                }
                self.direct.answered(from, long, Instant::now());
            }
        }
    }

    /// Wakes whoever looks only when something is different.
    fn show(&mut self, now: Instant) {
        let home = self.paths.home().and_then(|home| self.held.get(&home.id));
        let home = home.and_then(|held| Some((held.relay.clone(), held.welcomed.as_ref()?.virtual_address)));
        let hub_online = self.paths.hub_online();
        let standby = self.paths.standby(now).map(|relay| relay.id);
        let standby = standby.map(|relay| (relay, self.paths.round_trip(relay, now).unwrap_or_default()));
        let mut lost_all = false;
        let why = self.direct.why();
        self.view.send_if_modified(|view| {
            view.why = why.to_string();
            let was = view.home.as_ref().map(|home| (home.relay.id, home.hub_online));
            let changed = was != home.as_ref().map(|(relay, _)| (relay.id, hub_online));
            lost_all = was.is_some() && home.is_none();
            view.home = home.map(|(relay, virtual_address)| Home { relay, virtual_address, hub_online });
            let other_standby = view.standby.map(|(relay, _)| relay) != standby.map(|(relay, _)| relay);
            view.standby = standby;
            changed || other_standby
        });
        if lost_all {
            self.set_chunks();
        }
        self.show_people(now);
    }

    fn show_people(&mut self, now: Instant) {
        let link = |relay: &RelayEndpoint| ShownLink {
            relay: relay.address.clone(),
            region: relay.region.clone(),
            carrier: self.options.dialler.carrier(relay).to_owned(),
            rtt_us: self.paths.round_trip(relay.id, now).and_then(|rtt| u64::try_from(rtt.as_micros()).ok()),
        };
        let shown = Shown { home: self.paths.home().map(link), standby: self.paths.standby(now).map(link) };
        if shown.differs(&self.shown) {
            (self.options.show)(&shown);
            self.shown = shown;
        }
    }

    fn relay_of(&self, number: u64) -> Option<RelayId> {
        self.held.iter().find(|(_, held)| held.uplink.number == number).map(|(relay, _)| *relay)
    }

    /// What happened on a link. Those of links that were given up do not count.
    fn hear(&mut self, number: u64, told: Told) {
        let Some(relay) = self.relay_of(number) else { return };
        let now = Instant::now();
        match told {
            Told::Linked(welcomed) => self.linked(relay, welcomed, now),
            Told::Pong(sent) => self.pong(relay, sent, now),
            Told::Hub(state) => self.hub(relay, &state),
            Told::Drain(Drain { within_ms }) => {
                let wait = Duration::from_millis(within_ms.min(LONGEST_SPREAD_MS)).mul_f64(clock::jitter());
                tracing::info!(relay = self.address(relay), in_ms = wait.as_millis(), "the relay is being stopped; moving to another");
                self.paths.drain(relay, now + wait);
            }
            // Whoever says so may be wrong, or lie: it costs one heartbeat.
            Told::Silent(silent) if self.carries() == Some(Way::Relay(silent)) && self.doubted.is_none_or(|at| now > at + DOUBTS) => {
                self.doubted = Some(now);
                self.view.send_modify(|view| view.doubted += 1);
            }
            Told::Silent(_) => {}
            Told::Ended(ended) => self.ended(relay, ended, now),
        }
    }

    fn address(&self, relay: RelayId) -> &str {
        self.held.get(&relay).map_or("", |held| &held.relay.address)
    }

    fn linked(&mut self, relay: RelayId, mut welcomed: Welcomed, now: Instant) {
        let Some(held) = self.held.get_mut(&relay) else { return };
        tracing::info!(relay = held.relay.address, observed = text::clean(&welcomed.observed, 64), "linked to a relay");
        if let Some(ticket) = welcomed.ticket.take().filter(|_| self.options.invite.is_none()) {
            self.tickets.insert(relay, ticket);
        }
        let instance = welcomed.hub_instance;
        held.uplink.order(Order::Ping);
        held.welcomed = Some(welcomed);
        self.paths.linked(relay, instance != 0, now);
        self.hub_is(instance, 0);
        self.look_around(now);
    }

    fn hub(&mut self, relay: RelayId, state: &HubState) {
        self.paths.hub_state(relay, state.online);
        if state.online {
            self.hub_is(state.instance, state.within_ms);
        }
    }

    fn hub_is(&self, instance: u64, within_ms: u64) {
        self.view.send_if_modified(|view| {
            let other = instance != 0 && view.instance != instance;
            if other {
                (view.instance, view.spread) = (instance, Duration::from_millis(within_ms.min(LONGEST_SPREAD_MS)));
            }
            other
        });
    }

    fn pong(&mut self, relay: RelayId, sent: Instant, now: Instant) {
        self.paths.sample(relay, now.saturating_duration_since(sent), now);
        let is_home = self.paths.home().is_some_and(|home| home.id == relay);
        if is_home {
            if self.direct.way().is_none() {
                self.watch = Watch::Quiet;
            }
            // Without waking anybody: it is looked at when the hub has not answered.
            self.view.send_if_modified(|view| {
                view.answered = Some(now);
                false
            });
            if self.unheard.take_if(|asked| *asked <= sent).is_some() {
                tracing::warn!(relay = self.address(relay), "the relay answers and the hub does not; trying another way");
                self.paths.doubt_home(now);
            }
        }
        if let Watch::Pinged { carries, at, another_answers, .. } = &mut self.watch
            && Way::Relay(relay) != *carries
            && sent >= *at
        {
            *another_answers = true;
        }
    }

    fn ended(&mut self, relay: RelayId, ended: Ended, now: Instant) {
        if self.carries() == Some(Way::Relay(relay)) {
            self.watch = Watch::Quiet;
        }
        let Some(held) = self.held.remove(&relay) else { return };
        let address = &held.relay.address;
        let (at_least, gave_up) = match ended {
            Ended::NotLinked(LinkError::Refused(refused)) => {
                self.tickets.remove(&relay);
                let (code, reason) = (text::clean(&refused.code, 64), text::clean(&refused.reason, 512));
                let wait = Duration::from_millis(refused.retry_after_ms).min(LONGEST_WAIT);
                tracing::warn!(relay = address, code, reason, retry_in_s = wait.as_secs(), "refused; trying again later");
                (wait, GaveUp::Refused { code, reason })
            }
            Ended::NotLinked(error) => {
                tracing::warn!(relay = address, %error, "cannot link to the relay");
                (Duration::ZERO, GaveUp::Unreachable(error.to_string()))
            }
            Ended::Lost { code: Some(CloseCode::Superseded), .. } => {
                let reason =
                    "another program with this node's key has connected; stop one of them, or give each machine its own state directory";
                tracing::warn!(relay = address, code = "superseded", reason, "refused; trying again later");
                (Duration::from_secs(5), GaveUp::Refused { code: "superseded".into(), reason: reason.into() })
            }
            Ended::Lost { code: Some(CloseCode::Revoked), .. } => {
                let reason = "this node was revoked or removed by its owner";
                tracing::warn!(relay = address, code = "node_revoked", reason, "refused; trying again later");
                (Duration::from_secs(1), GaveUp::Refused { code: "node_revoked".into(), reason: reason.into() })
            }
            Ended::Lost { reason, .. } => {
                tracing::warn!(relay = address, reason, "the link to the relay has ended");
                self.paths.lost(relay, Duration::ZERO, clock::jitter(), now);
                return;
            }
        };
        self.paths.lost(relay, at_least, clock::jitter(), now);
        if self.paths.home().is_none() {
            self.tries += 1;
            if self.options.max_retries.is_some_and(|most| self.tries > most) {
                self.give_up(gave_up);
            }
        }
    }

    fn give_up(&self, why: GaveUp) {
        self.view.send_modify(|view| view.gave_up = Some(why));
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::News(news) => self.learn(&news, now),
            Command::Ticket(ticket) => self.renew(ticket),
            Command::Enrolled => {
                self.options.invite = None;
                self.paths.enrolled();
            }
            Command::Ping => {
                self.ping();
                self.look_around(now);
            }
            Command::Healthy => self.tries = 0,
            Command::Unheard if self.direct.way().is_some() => self.direct.silent(clock::jitter(), now),
            Command::Unheard => {
                self.unheard = Some(now);
                self.ping();
            }
            Command::Paired(pairing) => self.pairing = Some(pairing),
            Command::Parted => {
                let was_direct = self.direct.way().is_some();
                self.direct.parted();
                self.pairing = None;
                if was_direct {
                    self.moved();
                }
            }
            Command::Offered(offer) => {
                let chunks = self.direct.takes_chunks();
                self.direct.offered(offer, now);
                self.look_around(now);
                if self.direct.takes_chunks() != chunks {
                    self.set_chunks();
                }
            }
        }
    }

    fn learn(&mut self, news: &RelayNews, now: Instant) {
        let relays: Vec<_> = news.relays.iter().filter_map(RelayEndpoint::from_message).take(limits::HUB_RELAYS).collect();
        if !self.options.fixed && !relays.is_empty() {
            self.paths.list(&relays, now);
            self.tickets.retain(|relay, _| relays.iter().any(|known| known.id == *relay));
        }
        for seen in news.seen.iter().take(limits::HUB_RELAYS) {
            let Ok(relay) = RelayId::from_slice(&seen.key) else { continue };
            let rtt = Duration::from_micros(seen.rtt_us).min(Duration::from_secs(10));
            self.paths.seen(relay, Sight { offline: !seen.online, rtt, draining: seen.draining, load: seen.load }, clock::jitter(), now);
        }
    }

    /// A ticket says itself for which relay it is; the relay verifies it.
    fn renew(&mut self, ticket: Signed) {
        let Ok(relay) = Ticket::decode(&ticket.body[..]).map_err(drop).and_then(|body| RelayId::from_slice(&body.relay_key).map_err(drop))
        else {
            tracing::warn!("the hub sent a ticket that cannot be read");
            return;
        };
        if let Some(held) = self.held.get(&relay) {
            held.uplink.order(Order::Renew(ticket.clone()));
        } else if self.tickets.len() >= limits::HUB_RELAYS {
            return;
        }
        self.tickets.insert(relay, ticket);
    }

    fn ping(&self) {
        for held in self.held.values().filter(|held| held.welcomed.is_some()) {
            held.uplink.order(Order::Ping);
        }
        if let (Some(pairing), Some(way)) = (&self.pairing, self.direct.way()) {
            pairing.paired.probe(way, false);
        }
    }

    fn carries(&self) -> Option<Way> {
        let direct = self.direct.way().map(|_| Way::Direct);
        direct.or_else(|| self.paths.home().map(|home| Way::Relay(home.id)))
    }

    /// The machine has slept: everybody is asked at once, and nothing that failed before is waited for.
    fn wake(&mut self) {
        tracing::info!("the clock has jumped; looking whether everybody is still there");
        self.paths.fresh_start(Instant::now());
        self.direct.start_over(Instant::now());
        self.ping();
        self.view.send_modify(|view| view.woken += 1);
    }

    /// Looks whether what was sent is answered by now; see the head of this module.
    fn look(&mut self) {
        let now = Instant::now();
        let Some(carries) = self.carries() else {
            self.watch = Watch::Quiet;
            return;
        };
        let rtt = match carries {
            Way::Relay(home) => self.paths.round_trip(home, now).unwrap_or_default(),
            Way::Direct => self.direct_rtt,
        };
        let Some(since) = self.options.dialler.socket.silence().since() else {
            self.watch = Watch::Quiet;
            return;
        };
        self.watch = match self.watch {
            Watch::Pinged { carries: pinged, at, until, another_answers } if pinged == carries && since <= at => {
                if now >= until && another_answers {
                    self.fail_over(carries, now);
                    return;
                }
                self.watch
            }
            _ if now >= since + (rtt * 2).clamp(ANSWER, LONGEST) => {
                self.ping();
                Watch::Pinged { carries, at: now, until: now + (rtt * 3).clamp(PING, LONGEST), another_answers: false }
            }
            _ => Watch::Waiting(since + (rtt * 2).clamp(ANSWER, LONGEST)),
        };
    }

    /// When to look again. Past its time, a ping is looked at when something is heard.
    fn look_at(&self, now: Instant) -> Option<Instant> {
        match self.watch {
            Watch::Quiet => None,
            Watch::Waiting(at) => Some(at),
            Watch::Pinged { until, another_answers, .. } => Some(until).filter(|until| now < *until || another_answers),
        }
    }

    fn fail_over(&mut self, carries: Way, now: Instant) {
        self.watch = Watch::Quiet;
        let Way::Relay(home) = carries else {
            tracing::warn!("the direct way does not answer and a relay does; going back to it");
            self.direct.silent(clock::jitter(), now);
            return;
        };
        tracing::warn!(relay = self.address(home), "the relay does not answer and another one does; moving to it");
        if let Some(held) = self.held.remove(&home) {
            held.uplink.order(Order::Close(CloseCode::Silent));
        }
        self.paths.lost(home, Duration::ZERO, clock::jitter(), now);
    }
}

/// What a probe has taught, when there is somebody to send any.
async fn probed(pairing: &mut Option<Pairing>) -> News {
    match pairing {
        Some(pairing) => match pairing.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
