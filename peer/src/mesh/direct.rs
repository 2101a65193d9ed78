//! The direct way to the hub: the rules, without a network and without a clock.
//!
//! The hub says where it might be reached ([`DirectPath::offered`]); addresses are pinged in rounds, while the hub sends to ours, so that firewalls on both sides let the other's packets in. The first
//! that answers a short ping and then a long one is used. Nothing else decides: an address that was only said is worth nothing.
//!
//! A search ends after four seconds. The next one comes after 30 s, later after up to 10 min, and at once when this machine's addresses or the hub's have changed. A way that falls silent is left for the
//! relay and looked for again soon; one that does so again and again, ever more seldom.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use cortex_wire::{
    direct, limits,
    schema::{DirectKind, DirectMode, DirectOffer},
};

/// The wait after a search without success: the first and the last.
const LEAST: Duration = Duration::from_secs(30);
const MOST: Duration = Duration::from_secs(600);
/// A way that was lost is looked for after this, if it was used for [`HEALTHY`].
const SOON: Duration = Duration::from_secs(1);
const HEALTHY: Duration = Duration::from_secs(30);
/// Searches are at least this far apart: the hub would not hear the next one sooner.
const APART: Duration = Duration::from_millis(limits::DIRECT_SEARCH_MS + 500);
/// Addresses beyond those of the offer, from which the hub turned out to send.
const REVEALED: usize = 4;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Tell the hub that a search begins, and where this node might be.
    Announce,
    /// Send a probe.
    Ping { to: SocketAddr, long: bool },
    /// Send packets to the hub there from now on.
    Use(SocketAddr),
    /// Send them through the relay again.
    Leave,
}

/// Where the hub might be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    address: SocketAddr,
    kind: DirectKind,
    /// It has answered a short ping.
    answered: bool,
}

#[derive(Debug)]
enum State {
    /// There is no connection, or nothing may be tried.
    Off,
    Waiting {
        until: Instant,
    },
    Searching {
        since: Instant,
        round: usize,
        candidates: Vec<Candidate>,
    },
    Using {
        since: Instant,
        way: Candidate,
    },
}

/// Why packets go the way they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    SameMachine,
    SameNetwork,
    HubIsPublic,
    Configured,
    Punched,
    NotOffered,
    OffHere,
    OffAtHub,
    Policy,
    OwnRelay,
    Searching,
    NoAnswer,
    Silent,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameMachine => "direct: the hub is on the same machine",
            Self::SameNetwork => "direct: the hub is in the same network",
            Self::HubIsPublic => "direct: the hub has a public address",
            Self::Configured => "direct: the hub's configured address answered",
            Self::Punched => "direct: the firewalls on both sides let each other's packets in",
            Self::NotOffered => "relay: the hub has not said whether it can be reached directly",
            Self::OffHere => "relay: the peer's own settings allow no direct way (network.direct)",
            Self::OffAtHub => "relay: the hub's settings allow no direct way (network.direct)",
            Self::Policy => "relay: the node's policy on the hub is relay only",
            Self::OwnRelay => "relay: it is the hub's own, so nothing is between hub and node",
            Self::Searching => "relay: looking for a direct way",
            Self::NoAnswer => "relay: no direct address answered",
            Self::Silent => "relay: the direct way fell silent",
        })
    }
}

/// The machine.
#[derive(Debug)]
pub(crate) struct DirectPath {
    /// This peer's settings.
    allowed: bool,
    offer: Option<DirectOffer>,
    own: Vec<SocketAddr>,
    state: State,
    /// Why there is none, after the last search or loss.
    fault: Why,
    bound: Duration,
    searched: Option<Instant>,
    steps: Vec<Step>,
}

impl DirectPath {
    pub(crate) fn new(allowed: bool) -> Self {
        Self {
            allowed,
            offer: None,
            own: Vec::new(),
            state: State::Off,
            fault: Why::Searching,
            bound: LEAST,
            searched: None,
            steps: Vec::new(),
        }
    }

    /// The connection to the hub has ended.
    pub(crate) fn parted(&mut self) {
        let allowed = self.allowed;
        *self = Self::new(allowed);
    }

    /// The way that is used.
    pub(crate) fn way(&self) -> Option<SocketAddr> {
        if let State::Using { way, .. } = &self.state { Some(way.address) } else { None }
    }

    /// Whether chunks go directly as well. From afar, those that several nodes want go through the relay: it asks the hub once for all of them.
    pub(crate) fn takes_chunks(&self) -> bool {
        let near = matches!(self.why(), Why::SameMachine | Why::SameNetwork);
        let alone = self.offer.as_ref().is_some_and(|offer| !offer.shared || offer.mode() == DirectMode::DirectOnly);
        self.way().is_some() && (near || alone)
    }

    /// Whether it makes sense to know where this machine is.
    pub(crate) fn is_wanted(&self) -> bool {
        self.obstacle().is_none()
    }

    /// Where the hub said that it might be.
    pub(crate) fn named(&self) -> Vec<SocketAddr> {
        let addresses = self.offer.iter().flat_map(|offer| &offer.addresses);
        addresses.take(limits::DIRECT_ADDRESSES).filter_map(|named| named.address.parse().ok()).collect()
    }

    /// Why packets go directly or not.
    pub(crate) fn why(&self) -> Why {
        if let Some(why) = self.obstacle() {
            return why;
        }
        match &self.state {
            State::Off | State::Searching { .. } => Why::Searching,
            State::Waiting { .. } => self.fault,
            State::Using { way, .. } => self.reason_of(way),
        }
    }

    fn obstacle(&self) -> Option<Why> {
        if !self.allowed {
            return Some(Why::OffHere);
        }
        match &self.offer {
            None => Some(Why::NotOffered),
            Some(offer) if offer.off => Some(Why::OffAtHub),
            Some(offer) if offer.mode() == DirectMode::RelayOnly => Some(Why::Policy),
            Some(offer) if offer.own_relay => Some(Why::OwnRelay),
            Some(_) => None,
        }
    }

    fn reason_of(&self, way: &Candidate) -> Why {
        let ip = way.address.ip();
        match way.kind {
            _ if ip.is_loopback() || self.own.iter().any(|own| own.ip() == ip) => Why::SameMachine,
            DirectKind::Configured => Why::Configured,
            DirectKind::Own if is_private(ip) => Why::SameNetwork,
            DirectKind::Own => Why::HubIsPublic,
            DirectKind::Observed | DirectKind::Unspecified => Why::Punched,
        }
    }

    /// What the hub says. Something new in it ends a wait; what is no longer allowed is left at once.
    pub(crate) fn offered(&mut self, offer: DirectOffer, now: Instant) {
        let news = self.offer.as_ref() != Some(&offer);
        self.offer = Some(offer);
        if self.obstacle().is_some() {
            if self.way().is_some() {
                self.steps.push(Step::Leave);
            }
            self.state = State::Off;
            return;
        }
        let candidates = self.candidates();
        if let State::Searching { candidates: tried, .. } = &mut self.state {
            // The answer to the announcement: addresses that it had left out.
            let known: HashSet<_> = tried.iter().map(|known| known.address).collect();
            for candidate in candidates.into_iter().filter(|candidate| !known.contains(&candidate.address)) {
                self.steps.push(Step::Ping { to: candidate.address, long: false });
                tried.push(candidate);
            }
            return;
        }
        if news {
            self.start_over(now);
        }
    }

    /// Where this machine is seen. Another network is another try.
    pub(crate) fn own_addresses(&mut self, own: Vec<SocketAddr>, now: Instant) {
        if self.own != own {
            self.own = own;
            self.start_over(now);
        }
    }

    /// What failed before says nothing now.
    pub(crate) fn start_over(&mut self, now: Instant) {
        self.bound = LEAST;
        let at = self.searched.map_or(now, |at| (at + APART).max(now));
        let may = self.is_wanted();
        match &mut self.state {
            State::Off if may => self.state = State::Waiting { until: at },
            State::Waiting { until } => *until = at.min(*until),
            State::Off | State::Searching { .. } | State::Using { .. } => {}
        }
    }

    fn candidates(&self) -> Vec<Candidate> {
        let Some(offer) = &self.offer else { return Vec::new() };
        let named = offer.addresses.iter().filter_map(|named| Some((named.address.parse().ok()?, named.kind())));
        let named: Vec<(SocketAddr, DirectKind)> = named.take(2 * limits::DIRECT_ADDRESSES).collect();
        let worth = direct::worth_probing(named.iter().map(|(address, _)| *address), &self.own, false);
        let kind = |address| named.iter().find(|(named, _)| *named == address).map_or(DirectKind::Unspecified, |(_, kind)| *kind);
        worth.into_iter().map(|address| Candidate { address, kind: kind(address), answered: false }).collect()
    }

    /// The hub sends from there, if that is what it says: it is asked.
    pub(crate) fn opened(&mut self, from: SocketAddr) {
        let State::Searching { candidates, .. } = &mut self.state else { return };
        let known = candidates.iter().any(|candidate| candidate.address == from);
        if !known && candidates.len() < limits::DIRECT_ADDRESSES + REVEALED {
            candidates.push(Candidate { address: from, kind: DirectKind::Observed, answered: false });
        }
        if !candidates.iter().any(|candidate| candidate.address == from && candidate.answered) {
            self.steps.push(Step::Ping { to: from, long: false });
        }
    }

    /// A ping was answered from there.
    pub(crate) fn answered(&mut self, from: SocketAddr, long: bool, now: Instant) {
        let State::Searching { candidates, .. } = &mut self.state else { return };
        let Some(candidate) = candidates.iter_mut().find(|candidate| candidate.address == from) else { return };
        if long {
            let way = *candidate;
            self.state = State::Using { since: now, way };
            self.steps.push(Step::Use(way.address));
        } else if !std::mem::replace(&mut candidate.answered, true) {
            self.steps.push(Step::Ping { to: from, long: true });
        }
    }

    /// What goes by the direct way is not answered, and a relay answers.
    pub(crate) fn silent(&mut self, jitter: f64, now: Instant) {
        let State::Using { since, .. } = self.state else { return };
        self.steps.push(Step::Leave);
        self.fault = Why::Silent;
        if now.saturating_duration_since(since) >= HEALTHY {
            self.bound = LEAST;
            self.state = State::Waiting { until: now + SOON.mul_f64(1.0 + jitter) };
        } else {
            self.wait(jitter, now);
        }
    }

    fn wait(&mut self, jitter: f64, now: Instant) {
        self.state = State::Waiting { until: now + self.bound.mul_f64(0.75 + jitter / 4.0) };
        self.bound = (self.bound * 2).min(MOST);
    }

    /// What to do now. `jitter`: from 0 to 1.
    pub(crate) fn plan(&mut self, jitter: f64, now: Instant) -> Vec<Step> {
        if let State::Waiting { until } = self.state
            && now >= until
        {
            self.searched = Some(now);
            self.steps.push(Step::Announce);
            self.state = State::Searching { since: now, round: 0, candidates: self.candidates() };
        }
        if let State::Searching { since, round, candidates } = &mut self.state {
            let age = now.saturating_duration_since(*since);
            if age >= Duration::from_millis(limits::DIRECT_SEARCH_MS) {
                self.fault = Why::NoAnswer;
                self.wait(jitter, now);
            } else {
                while limits::DIRECT_ROUNDS_MS.get(*round).is_some_and(|at| age >= Duration::from_millis(*at)) {
                    *round += 1;
                    // One that answered is asked whether it takes a full packet; the others, whether they are there.
                    self.steps.extend(candidates.iter().map(|candidate| Step::Ping { to: candidate.address, long: candidate.answered }));
                }
            }
        }
        std::mem::take(&mut self.steps)
    }

    /// When [`DirectPath::plan`] may have something to do although nothing happens.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Off | State::Using { .. } => None,
            State::Waiting { until } => Some(*until),
            State::Searching { since, round, .. } => {
                let next = limits::DIRECT_ROUNDS_MS.get(*round).copied().unwrap_or(limits::DIRECT_SEARCH_MS);
                Some(*since + Duration::from_millis(next))
            }
        }
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        // With those of carriers (RFC 6598), which are nobody's own either.
        IpAddr::V4(ip) => ip.is_private() || ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64,
        IpAddr::V6(ip) => ip.segments()[0] & 0xfe00 == 0xfc00,
    }
}

#[cfg(test)]
mod tests;
