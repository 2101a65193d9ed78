//! Which relays are linked, and by which of them packets go to the hub: the rules, without a network and without a clock.
//!
//! Two links are kept warm: **home**, by which packets go, and a **standby** at another relay. The machine is told what happened, and [`Paths::plan`] answers what to do now.
//!
//! - A home that cannot be used (its link is gone, it drains, it has lost the hub, the hub does not answer through it, it left the list) is left at once for the best that can.
//! - A home that works is left only for a relay that is much nearer, and twice in a row: under two thirds of its round trip and 10 ms less, in two reports 30 s apart. Round trips are the
//!   lowest of 5 minutes, of the link's own ping and the hub's round trip to that relay.
//! - A relay that has much to do counts as farther: from 75 percent of what it can carry on ever more, at last by as much again and 20 ms. It is left by the same two reports, which every node
//!   makes at its own time; so some leave, the load falls, and the others stay.
//! - Relays beyond the two are linked one at a time, every 5 minutes, to be measured.
//! - A link that is lost is dialled again with full jitter, 50 ms to 30 s; not before 2 s while another one carries, because then nobody waits and many may have lost the same relay. A relay that
//!   has no link to the hub is not dialled while another one carries: the hub says when it is back.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use cortex_wire::{close::CloseCode, id::RelayId, invite::RelayEndpoint};

/// Links of a registered node.
const WARM: usize = 2;
/// Dials at the same time while there is no link at all, and how far they are apart.
const RACING: usize = 3;
const STAGGER: Duration = Duration::from_millis(250);
/// One that the hub did not reach when it was last heard of is tried so much later.
const LAST_RESORT: Duration = Duration::from_secs(5);
/// Round trips count so long.
const WINDOW: Duration = Duration::from_secs(300);
/// Round trips that are kept of one relay: more than come in that time.
const SAMPLES: usize = 96;
/// How often the round trips are compared.
const REPORT: Duration = Duration::from_secs(30);
/// What is nearer by less is not worth a move.
const NEARER: Duration = Duration::from_millis(10);
/// A relay that carries more than this share of what it can counts as farther, and one that is full by as much again and this time.
const BUSY_PERCENT: u32 = 75;
const FULL: Duration = Duration::from_millis(20);
/// A relay that has no link is measured so often, within so long.
const SURVEY_EVERY: Duration = Duration::from_secs(300);
const SURVEY: Duration = Duration::from_secs(8);
/// What is under way by a relay that was left arrives within this time.
const LINGER: Duration = Duration::from_secs(1);
/// A relay through which the hub did not answer is not wanted for so long.
const DOUBT: Duration = Duration::from_secs(10);
/// Waits before a link is dialled again: the first bound and the last, and the first while another link carries.
const LEAST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(30);
const NO_HURRY: Duration = Duration::from_secs(2);
/// A link that lived so long may start its next outage with the shortest wait.
const HEALTHY: Duration = Duration::from_secs(30);
/// All nodes hear at the same time that a relay is back, and those that have another link dial it within this time.
const RETURN: Duration = Duration::from_secs(10);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Link to this relay; [`Paths::linked`] or [`Paths::lost`] follows.
    Dial(RelayEndpoint),
    /// Send packets to the hub by this relay.
    Activate(RelayId),
    /// End this link; [`Paths::lost`] does not follow.
    Close(RelayId, CloseCode),
}

/// How the hub sees a relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) offline: bool,
    pub(crate) rtt: Duration,
    pub(crate) draining: bool,
    /// Percent of what it can carry.
    pub(crate) load: u32,
}

#[derive(Debug)]
struct Entry {
    relay: RelayEndpoint,
    listed: bool,
    sight: Sight,
    state: State,
    /// Of the next wait.
    bound: Duration,
    samples: VecDeque<(Instant, Duration)>,
    surveyed: Option<Instant>,
}

#[derive(Debug)]
enum State {
    Away { until: Instant },
    Dialling { since: Instant },
    Up(Up),
}

#[derive(Debug)]
struct Up {
    since: Instant,
    hub_online: bool,
    /// When to leave a relay that is being stopped.
    leave_at: Option<Instant>,
    doubted_until: Option<Instant>,
    /// Since when it is not home any more.
    left_at: Option<Instant>,
}

impl Entry {
    fn new(relay: RelayEndpoint, now: Instant) -> Self {
        Self {
            relay,
            listed: true,
            sight: Sight::default(),
            state: State::Away { until: now },
            bound: LEAST,
            samples: VecDeque::new(),
            surveyed: None,
        }
    }

    fn up(&self) -> Option<&Up> {
        if let State::Up(up) = &self.state { Some(up) } else { None }
    }

    fn up_mut(&mut self) -> Option<&mut Up> {
        if let State::Up(up) = &mut self.state { Some(up) } else { None }
    }

    /// The lowest of the window, to the hub.
    fn round_trip(&self, now: Instant) -> Option<Duration> {
        let fresh = self.samples.iter().filter(|(at, _)| now.saturating_duration_since(*at) <= WINDOW);
        fresh.map(|(_, rtt)| *rtt).min().map(|rtt| rtt + self.sight.rtt)
    }

    /// How far it counts: its round trip, and its load.
    fn distance(&self, now: Instant) -> Option<Duration> {
        self.round_trip(now).map(|rtt| rtt + (rtt + FULL) * self.sight.load.min(100).saturating_sub(BUSY_PERCENT) / (100 - BUSY_PERCENT))
    }

    /// What speaks against a link that is up, the weightiest first. None of it: it can be used.
    fn faults(&self, now: Instant) -> [bool; 5] {
        let Some(up) = self.up() else { return [true; 5] };
        [
            !up.hub_online,
            up.doubted_until.is_some_and(|until| now < until),
            up.leave_at.is_some_and(|at| now >= at),
            !self.listed,
            // Those that drain, and whose turn has not come, are left when there is another reason to move.
            up.leave_at.is_some() || self.sight.draining,
        ]
    }

    /// Whether it is worth a link for long.
    fn is_wanted(&self) -> bool {
        self.listed && !self.sight.draining && self.up().is_none_or(|up| up.leave_at.is_none())
    }
}

/// Under two thirds, and 10 ms less.
fn much_nearer(this: Option<Duration>, than: Option<Duration>) -> bool {
    matches!((this, than), (Some(this), Some(than)) if this * 3 < than * 2 && this + NEARER <= than)
}

/// How long after another one a relay is dialled while there is no link.
fn stagger(entry: &Entry) -> Duration {
    if entry.sight.offline { LAST_RESORT } else { STAGGER }
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Paths {
    entries: Vec<Entry>,
    home: Option<RelayId>,
    warm: usize,
    reported: Option<Instant>,
    /// Who was much nearer in the last report.
    nearer: Option<RelayId>,
}

impl Paths {
    /// Relays in the order in which they are wanted. A node that enrols keeps one link, because it has nothing yet with which another relay would admit it for long.
    pub(crate) fn new(relays: &[RelayEndpoint], enrolling: bool, now: Instant) -> Self {
        let entries = relays.iter().map(|relay| Entry::new(relay.clone(), now)).collect();
        Self { entries, home: None, warm: if enrolling { 1 } else { WARM }, reported: None, nearer: None }
    }

    /// The node is registered.
    pub(crate) fn enrolled(&mut self) {
        self.warm = WARM;
    }

    /// The relay by which packets go, while its link is up.
    pub(crate) fn home(&self) -> Option<&RelayEndpoint> {
        self.home_entry().map(|entry| &entry.relay)
    }

    /// The best link beside home's.
    pub(crate) fn standby(&self, now: Instant) -> Option<&RelayEndpoint> {
        let best = self.ranked(now).find(|entry| Some(entry.relay.id) != self.home);
        best.filter(|entry| entry.is_wanted()).map(|entry| &entry.relay)
    }

    /// Whether a link to this relay is up.
    #[cfg(test)]
    fn is_up(&self, relay: RelayId) -> bool {
        self.entry(relay).is_some_and(|entry| entry.up().is_some())
    }

    /// The hub's round trip through this relay.
    pub(crate) fn round_trip(&self, relay: RelayId, now: Instant) -> Option<Duration> {
        self.entry(relay)?.round_trip(now)
    }

    /// Whether home's relay says that the hub is linked to it.
    pub(crate) fn hub_online(&self) -> bool {
        self.home_entry().and_then(Entry::up).is_some_and(|up| up.hub_online)
    }

    fn home_entry(&self) -> Option<&Entry> {
        self.entry(self.home?).filter(|entry| entry.up().is_some())
    }

    fn entry(&self, relay: RelayId) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.relay.id == relay)
    }

    fn entry_mut(&mut self, relay: RelayId) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.relay.id == relay)
    }

    /// Links that are up, the best first.
    fn ranked(&self, now: Instant) -> impl Iterator<Item = &Entry> {
        let mut up: Vec<_> = self.entries.iter().filter(|entry| entry.up().is_some()).collect();
        up.sort_by_key(|entry| (entry.faults(now), entry.distance(now).unwrap_or(Duration::MAX)));
        up.into_iter()
    }

    /// The hub's list. What is not in it any more is left when there is something better, and forgotten.
    pub(crate) fn list(&mut self, relays: &[RelayEndpoint], now: Instant) {
        for entry in &mut self.entries {
            entry.listed = false;
        }
        for relay in relays {
            match self.entry_mut(relay.id) {
                Some(entry) => {
                    entry.listed = true;
                    entry.relay = relay.clone();
                }
                None => self.entries.push(Entry::new(relay.clone(), now)),
            }
        }
        let place = |entry: &Entry| relays.iter().position(|relay| relay.id == entry.relay.id).unwrap_or(usize::MAX);
        self.entries.sort_by_key(place);
        self.forget();
    }

    fn forget(&mut self) {
        self.entries.retain(|entry| entry.listed || !matches!(entry.state, State::Away { .. }));
    }

    /// How the hub sees a relay. `jitter`: from 0 to 1.
    pub(crate) fn seen(&mut self, relay: RelayId, sight: Sight, jitter: f64, now: Instant) {
        let carries = self.good_links() > 0;
        let Some(entry) = self.entry_mut(relay) else { return };
        let is_back = entry.sight.offline && !sight.offline;
        entry.sight = sight;
        if let State::Away { until } = &mut entry.state
            && is_back
            && carries
        {
            (*until, entry.bound) = (now + RETURN.mul_f64(jitter), LEAST);
        }
    }

    /// A dial has led to a link.
    pub(crate) fn linked(&mut self, relay: RelayId, hub_online: bool, now: Instant) {
        if let Some(entry) = self.entry_mut(relay) {
            entry.state = State::Up(Up { since: now, hub_online, leave_at: None, doubted_until: None, left_at: None });
        }
    }

    /// A dial has failed, or a link is gone. It is dialled again after at least this long; `jitter`: from 0 to 1.
    pub(crate) fn lost(&mut self, relay: RelayId, at_least: Duration, jitter: f64, now: Instant) {
        let another = self.entries.iter().any(|entry| entry.relay.id != relay && entry.up().is_some());
        let Some(entry) = self.entry_mut(relay) else { return };
        let lived = entry.up().map(|up| now.saturating_duration_since(up.since));
        if lived.is_some_and(|lived| lived >= HEALTHY) {
            entry.bound = LEAST;
        }
        let bound = if another { entry.bound.max(NO_HURRY) } else { entry.bound };
        // A relay that could be reached is waited for as long as the last time, one that could not for longer: a hub or relay that is started several times in a row does not wait for its nodes.
        if lived.is_none() {
            entry.bound = (entry.bound * 2).min(MOST);
        }
        entry.state = State::Away { until: now + at_least.mul_f64(1.0 + jitter / 2.0) + bound.mul_f64(jitter) };
        self.forget();
    }

    /// The machine has slept, or its network has changed: what failed before says nothing now.
    pub(crate) fn fresh_start(&mut self, now: Instant) {
        for entry in &mut self.entries {
            entry.bound = LEAST;
            if let State::Away { until } = &mut entry.state {
                *until = (*until).min(now);
            }
        }
    }

    /// A link's ping was answered after this long.
    pub(crate) fn sample(&mut self, relay: RelayId, rtt: Duration, now: Instant) {
        if let Some(entry) = self.entry_mut(relay) {
            if entry.samples.len() == SAMPLES {
                entry.samples.pop_front();
            }
            entry.samples.push_back((now, rtt));
        }
    }

    /// A relay says whether the hub is linked to it.
    pub(crate) fn hub_state(&mut self, relay: RelayId, online: bool) {
        if let Some(up) = self.entry_mut(relay).and_then(Entry::up_mut) {
            up.hub_online = online;
            up.doubted_until = None;
        }
    }

    /// A relay is being stopped; its turn to be left is `at`.
    pub(crate) fn drain(&mut self, relay: RelayId, at: Instant) {
        if let Some(up) = self.entry_mut(relay).and_then(Entry::up_mut) {
            up.leave_at.get_or_insert(at);
        }
    }

    /// Home's relay answers, and the hub does not through it.
    pub(crate) fn doubt_home(&mut self, now: Instant) {
        let home = self.home;
        if let Some(up) = home.and_then(|home| self.entry_mut(home)).and_then(Entry::up_mut) {
            up.doubted_until = Some(now + DOUBT);
        }
    }

    /// What to do now. Doing it and asking again at the same time asks for nothing more.
    pub(crate) fn plan(&mut self, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        self.choose_home(now, &mut steps);
        self.close_links(now, &mut steps);
        self.dial(now, &mut steps);
        steps
    }

    fn choose_home(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let Some(best) = self.ranked(now).next() else {
            self.home = None;
            return;
        };
        let chosen = match self.home_entry() {
            // Draining alone is no reason before its time: else all would leave at once.
            Some(home) if home.faults(now)[..4] <= best.faults(now)[..4] => self.nearer_than_home(now),
            _ => Some(best.relay.id),
        };
        let Some(chosen) = chosen.filter(|chosen| Some(*chosen) != self.home) else { return };
        if let Some(up) = self.home.replace(chosen).and_then(|old| self.entry_mut(old)).and_then(Entry::up_mut) {
            up.left_at = Some(now);
        }
        self.nearer = None;
        self.reported = Some(now);
        steps.push(Step::Activate(chosen));
    }

    /// Makes a report when it is time. Who was much nearer in this one and the one before, and has no fault.
    fn nearer_than_home(&mut self, now: Instant) -> Option<RelayId> {
        if self.reported.is_some_and(|at| now < at + REPORT) {
            return None;
        }
        self.reported = Some(now);
        let home = self.home_entry()?.distance(now);
        let sound = self.ranked(now).find(|entry| entry.faults(now) == [false; 5]);
        let nearer = sound.filter(|entry| much_nearer(entry.distance(now), home)).map(|entry| entry.relay.id);
        let again = nearer.filter(|_| nearer == self.nearer);
        self.nearer = nearer;
        again
    }

    fn close_links(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let standby = self.standby_to_keep(now);
        let home = self.home;
        for entry in &mut self.entries {
            let (id, wanted, is_measured) = (entry.relay.id, entry.is_wanted(), entry.samples.back().is_some());
            let State::Up(up) = &entry.state else { continue };
            if Some(id) == home || Some(id) == standby {
                continue;
            }
            let surplus_since = if wanted { up.since + if is_measured { LINGER } else { SURVEY } } else { up.leave_at.unwrap_or(now) };
            if now < surplus_since.max(up.left_at.map_or(surplus_since, |at| at + LINGER)) {
                continue;
            }
            // One that is being stopped would only refuse.
            let until = if up.leave_at.is_some() { now + NO_HURRY } else { now };
            entry.surveyed = Some(now);
            entry.state = State::Away { until };
            steps.push(Step::Close(id, CloseCode::Done));
        }
        self.forget();
    }

    /// The standby that there is stays, unless another link is much nearer.
    fn standby_to_keep(&self, now: Instant) -> Option<RelayId> {
        if self.warm < WARM {
            return None;
        }
        let mut others = self.ranked(now).filter(|entry| Some(entry.relay.id) != self.home && entry.is_wanted());
        let best = others.next()?;
        let oldest = others.min_by_key(|entry| entry.up().map(|up| up.since));
        let keep = oldest.filter(|other| {
            other.up().map(|up| up.since) < best.up().map(|up| up.since)
                && other.faults(now) <= best.faults(now)
                && !much_nearer(best.distance(now), other.distance(now))
        });
        Some(keep.unwrap_or(best).relay.id)
    }

    fn dial(&mut self, now: Instant, steps: &mut Vec<Step>) {
        while let Some(relay) = self.next_dial(now) {
            if let Some(entry) = self.entry_mut(relay) {
                entry.state = State::Dialling { since: now };
                steps.push(Step::Dial(entry.relay.clone()));
            }
        }
    }

    fn next_dial(&self, now: Instant) -> Option<RelayId> {
        let (links, dialling) = (self.good_links(), self.dialling());
        if links == 0 {
            let last = dialling.iter().max().copied();
            if dialling.len() >= RACING {
                return None;
            }
            return self.candidate(now, |entry| entry.listed && last.is_none_or(|last| now >= last + stagger(entry)));
        }
        if !dialling.is_empty() {
            return None;
        }
        let is_useful = |entry: &Entry| entry.is_wanted() && !entry.sight.offline;
        if links < self.warm {
            return self.candidate(now, is_useful);
        }
        let unmeasured = |entry: &Entry| is_useful(entry) && entry.surveyed.is_none_or(|at| now >= at + SURVEY_EVERY);
        if self.warm < WARM || links > self.warm { None } else { self.candidate(now, unmeasured) }
    }

    fn good_links(&self) -> usize {
        self.entries.iter().filter(|entry| entry.up().is_some() && entry.is_wanted()).count()
    }

    fn dialling(&self) -> Vec<Instant> {
        self.entries.iter().filter_map(|entry| if let State::Dialling { since } = entry.state { Some(since) } else { None }).collect()
    }

    /// Of those that may be dialled now: the nearest that is known, else the first of the list.
    fn candidate(&self, now: Instant, may: impl Fn(&Entry) -> bool) -> Option<RelayId> {
        let ready = |entry: &&Entry| matches!(entry.state, State::Away { until } if until <= now) && may(entry);
        let best = self
            .entries
            .iter()
            .filter(ready)
            .min_by_key(|entry| (entry.sight.offline || entry.sight.draining, entry.distance(now).unwrap_or(Duration::MAX)));
        best.map(|entry| entry.relay.id)
    }

    /// When [`Paths::plan`] may have something to do although nothing happens.
    pub(crate) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let (links, dialling) = (self.good_links(), self.dialling());
        let mut times = Vec::new();
        for entry in &self.entries {
            match &entry.state {
                State::Away { until } if links == 0 || (dialling.is_empty() && links < self.warm) => times.push(*until),
                State::Away { until } if dialling.is_empty() => times.extend(entry.surveyed.map(|at| (at + SURVEY_EVERY).max(*until))),
                State::Up(up) => {
                    times.extend([up.leave_at, up.doubted_until].into_iter().flatten());
                    if Some(entry.relay.id) != self.home {
                        times.extend(
                            [Some(up.since + LINGER), Some(up.since + SURVEY), up.left_at.map(|at| at + LINGER)].into_iter().flatten(),
                        );
                    }
                }
                State::Away { .. } | State::Dialling { .. } => {}
            }
        }
        if links == 0 {
            times.extend(dialling.iter().max().into_iter().flat_map(|since| [*since + STAGGER, *since + LAST_RESORT]));
        }
        if links >= WARM {
            times.extend(self.reported.map(|at| at + REPORT));
        }
        times.into_iter().filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests;
