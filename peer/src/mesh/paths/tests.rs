use super::*;
use cortex_wire::key::SecretKey;
use proptest::prelude::*;

fn relay(number: u8) -> RelayEndpoint {
    RelayEndpoint { address: format!("relay{number}:443"), id: SecretKey::from_seed([number; 32]).public().into(), region: String::new() }
}

fn id(number: u8) -> RelayId {
    relay(number).id
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A machine, a clock, and what it asked for.
struct Table {
    paths: Paths,
    now: Instant,
    dialled: Vec<RelayId>,
    closed: Vec<RelayId>,
    active: Option<RelayId>,
}

impl Table {
    fn set(relays: &[u8], enrolling: bool) -> Self {
        let now = Instant::now();
        let relays: Vec<_> = relays.iter().map(|number| relay(*number)).collect();
        let mut table = Self { paths: Paths::new(&relays, enrolling, now), now, dialled: vec![], closed: vec![], active: None };
        table.plan();
        table
    }

    fn plan(&mut self) {
        for step in self.paths.plan(self.now) {
            match step {
                Step::Dial(relay) => {
                    assert!(!self.dialled.contains(&relay.id), "dialled twice");
                    assert!(!self.paths.is_up(relay.id), "dialled although it is up");
                    self.dialled.push(relay.id);
                }
                Step::Close(relay, _) => {
                    assert_ne!(self.paths.home().map(|home| home.id), Some(relay), "home is never closed");
                    self.closed.push(relay);
                }
                Step::Activate(relay) => {
                    assert!(self.paths.is_up(relay), "only a link that is up can carry");
                    self.active = Some(relay);
                }
            }
        }
        assert_eq!(self.paths.plan(self.now), [], "what was asked for is not asked for again");
    }

    fn pass(&mut self, time: Duration) {
        // As the keeper does it: it is woken when the machine says so.
        let end = self.now + time;
        while let Some(at) = self.paths.wake_at(self.now).filter(|at| *at <= end) {
            self.now = at;
            self.plan();
        }
        self.now = end;
        self.plan();
    }

    fn link(&mut self, number: u8) {
        self.dialled.retain(|dialled| *dialled != id(number));
        self.paths.linked(id(number), true, self.now);
        self.plan();
    }

    fn lose(&mut self, number: u8) {
        self.dialled.retain(|dialled| *dialled != id(number));
        self.paths.lost(id(number), Duration::ZERO, 0.5, self.now);
        self.plan();
    }

    fn measure(&mut self, number: u8, rtt: u64) {
        self.paths.sample(id(number), ms(rtt), self.now);
        self.plan();
    }

    fn home(&self) -> Option<RelayId> {
        assert_eq!(self.active.filter(|active| self.paths.is_up(*active)), self.paths.home().map(|home| home.id));
        self.active
    }
}

/// Home 1 and standby 2.
fn two() -> Table {
    let mut table = Table::set(&[1, 2], false);
    table.link(1);
    assert_eq!((table.home(), &table.dialled[..]), (Some(id(1)), &[id(2)][..]));
    table.link(2);
    assert_eq!((table.home(), table.paths.standby(table.now).map(|relay| relay.id)), (Some(id(1)), Some(id(2))));
    table
}

#[test]
fn the_standby_takes_over_at_once_and_the_lost_one_becomes_the_standby() {
    let mut table = two();
    table.lose(1);
    assert_eq!((table.home(), &table.dialled[..]), (Some(id(2)), &[][..]), "nobody hurries while one carries");
    table.pass(NO_HURRY);
    assert_eq!(table.dialled, [id(1)]);
    table.link(1);
    table.pass(REPORT * 4);
    assert_eq!(table.home(), Some(id(2)), "it does not move back without a reason");
    assert_eq!(table.paths.standby(table.now).map(|relay| relay.id), Some(id(1)));
}

#[test]
fn when_the_first_does_not_answer_the_second_is_tried_beside_it() {
    let mut table = Table::set(&[1, 2], false);
    assert_eq!(table.dialled, [id(1)]);
    table.pass(STAGGER);
    assert_eq!(table.dialled, [id(1), id(2)]);
    table.link(2);
    assert_eq!(table.home(), Some(id(2)));
}

#[test]
fn a_node_that_enrols_keeps_one_link() {
    let mut table = Table::set(&[1, 2], true);
    table.link(1);
    table.pass(SURVEY_EVERY * 2);
    assert_eq!((table.home(), &table.dialled[..]), (Some(id(1)), &[][..]));
    table.paths.enrolled();
    table.plan();
    assert_eq!(table.dialled, [id(2)]);
}

#[test]
fn it_moves_to_a_much_nearer_relay_after_two_reports() {
    let mut table = two();
    table.measure(1, 60);
    table.measure(2, 30);
    table.pass(REPORT);
    assert_eq!(table.home(), Some(id(1)), "one report is not enough");
    table.pass(REPORT);
    assert_eq!(table.home(), Some(id(2)));
    table.pass(REPORT * 8);
    assert_eq!(table.home(), Some(id(2)));
}

#[test]
fn a_little_nearer_is_no_reason() {
    // Not under two thirds; not 10 ms; nearer itself, but farther from the hub.
    for (home, other, hub) in [(60, 41, 0), (12, 3, 0), (60, 20, 50)] {
        let mut table = two();
        table.paths.seen(id(2), Sight { rtt: ms(hub), ..Sight::default() }, 0.5, table.now);
        table.measure(1, home);
        table.measure(2, other);
        table.pass(REPORT * 6);
        assert_eq!(table.home(), Some(id(1)), "{home} {other} {hub}");
    }
}

fn busy(percent: u32) -> Sight {
    Sight { load: percent, ..Sight::default() }
}

#[test]
fn a_relay_that_is_full_is_left_and_one_that_is_only_busy_is_not() {
    for (load, leaves) in [(0, false), (BUSY_PERCENT, false), (85, false), (100, true)] {
        let mut table = two();
        table.measure(1, 20);
        table.measure(2, 25);
        table.paths.seen(id(1), busy(load), 0.5, table.now);
        table.pass(REPORT);
        assert_eq!(table.home(), Some(id(1)), "one report is not enough");
        table.pass(REPORT * 2);
        assert_eq!(table.home(), Some(id(if leaves { 2 } else { 1 })), "{load} percent");
    }
}

#[test]
fn two_relays_that_are_both_full_are_as_far_as_before() {
    let mut table = two();
    for number in [1, 2] {
        table.measure(number, 20);
        table.paths.seen(id(number), busy(100), 0.5, table.now);
    }
    table.pass(REPORT * 6);
    assert_eq!(table.home(), Some(id(1)));
}

#[test]
fn whoever_has_come_because_of_a_load_stays_when_it_has_passed() {
    let mut table = two();
    table.measure(1, 20);
    table.measure(2, 25);
    table.paths.seen(id(1), busy(100), 0.5, table.now);
    table.pass(REPORT * 3);
    assert_eq!(table.home(), Some(id(2)));
    table.paths.seen(id(1), busy(0), 0.5, table.now);
    table.paths.seen(id(2), busy(70), 0.5, table.now);
    table.pass(REPORT * 6);
    assert_eq!(table.home(), Some(id(2)), "it does not go back and forth");
}

#[test]
fn the_lowest_of_five_minutes_counts() {
    let mut table = two();
    table.measure(1, 20);
    for _ in 0..4 {
        table.pass(REPORT);
        table.measure(1, 200);
        table.measure(2, 25);
    }
    assert_eq!(table.home(), Some(id(1)), "a load that passes moves nobody");
    for _ in 0..14 {
        table.pass(REPORT);
        table.measure(1, 200);
        table.measure(2, 25);
    }
    assert_eq!(table.home(), Some(id(2)));
}

#[test]
fn a_relay_that_drains_is_left_at_its_turn_and_its_link_a_little_later() {
    let mut table = two();
    table.paths.drain(id(1), table.now + ms(500));
    table.plan();
    assert_eq!(table.home(), Some(id(1)));
    table.pass(ms(499));
    assert_eq!(table.home(), Some(id(1)));
    table.pass(ms(1));
    assert_eq!((table.home(), &table.closed[..]), (Some(id(2)), &[][..]));
    table.pass(LINGER);
    assert_eq!((&table.closed[..], &table.dialled[..]), (&[id(1)][..], &[][..]));
}

#[test]
fn a_draining_relay_is_kept_when_there_is_no_other() {
    let mut table = two();
    table.lose(2);
    table.paths.drain(id(1), table.now);
    table.pass(ms(100));
    assert_eq!((table.home(), table.closed.len()), (Some(id(1)), 0));
}

#[test]
fn a_relay_without_the_hub_is_left_and_without_another_kept() {
    let mut table = two();
    table.paths.hub_state(id(1), false);
    table.plan();
    assert_eq!(table.home(), Some(id(2)));
    table.paths.hub_state(id(2), false);
    table.plan();
    assert_eq!(table.home(), Some(id(2)), "neither is better");
    table.paths.hub_state(id(1), true);
    table.plan();
    assert_eq!(table.home(), Some(id(1)));
}

#[test]
fn a_way_that_is_in_doubt_is_not_taken_again_soon() {
    let mut table = two();
    table.paths.doubt_home(table.now);
    table.plan();
    assert_eq!(table.home(), Some(id(2)));
    table.paths.doubt_home(table.now);
    table.plan();
    assert_eq!(table.home(), Some(id(2)), "both are in doubt");
}

#[test]
fn a_list_that_changes_is_followed() {
    let mut table = two();
    table.paths.list(&[relay(2), relay(3)], table.now);
    table.plan();
    assert_eq!((table.home(), &table.dialled[..]), (Some(id(2)), &[id(3)][..]));
    table.pass(LINGER);
    assert_eq!(table.closed, [id(1)]);
    table.link(3);
    assert_eq!(table.paths.standby(table.now).map(|relay| relay.id), Some(id(3)));
}

#[test]
fn others_are_measured_one_at_a_time_and_let_go() {
    let mut table = Table::set(&[1, 2, 3], false);
    table.link(1);
    table.link(2);
    assert_eq!(table.dialled, [id(3)]);
    table.link(3);
    for (number, rtt) in [(1, 20), (2, 21), (3, 22)] {
        table.measure(number, rtt);
    }
    table.pass(LINGER);
    assert_eq!(table.closed, [id(3)]);
    table.pass(SURVEY_EVERY - ms(1));
    assert_eq!(table.dialled, []);
    table.pass(ms(1));
    assert_eq!(table.dialled, [id(3)]);
    table.link(3);
    for (number, rtt) in [(1, 20), (2, 21), (3, 5)] {
        table.measure(number, rtt);
    }
    table.pass(LINGER);
    assert_eq!(table.closed, [id(3), id(2)], "a much nearer one takes the standby's place");
    table.measure(3, 5);
    table.pass(REPORT * 2);
    assert_eq!(table.home(), Some(id(3)), "and then home's");
}

#[test]
fn waits_have_full_jitter_and_grow_to_their_bound() {
    let mut table = Table::set(&[1], false);
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        table.dialled.clear();
        table.paths.lost(id(1), Duration::ZERO, 1.0, table.now);
        let at = table.paths.wake_at(table.now).expect("it is dialled again");
        longest = longest.max(at - table.now);
        table.now = at;
        table.plan();
    }
    assert_eq!(longest, MOST);
    table.paths.linked(id(1), true, table.now);
    table.pass(HEALTHY);
    table.paths.lost(id(1), Duration::ZERO, 1.0, table.now);
    assert_eq!(table.paths.wake_at(table.now), Some(table.now + LEAST));
    table.dialled.clear();
    table.now += LEAST;
    table.plan();
    table.dialled.clear();
    table.paths.lost(id(1), Duration::ZERO, 0.0, table.now);
    table.plan();
    assert_eq!(table.dialled, [id(1)], "at once, for those whom the jitter favours");
}

#[test]
fn a_relay_that_is_started_several_times_in_a_row_is_dialled_as_soon_each_time() {
    let mut table = Table::set(&[1], false);
    for _ in 0..20 {
        table.link(1);
        table.pass(Duration::from_secs(1));
        table.paths.lost(id(1), Duration::ZERO, 1.0, table.now);
        assert_eq!(table.paths.wake_at(table.now), Some(table.now + LEAST));
        table.now += LEAST;
        table.plan();
    }
}

#[test]
fn a_relay_that_the_hub_does_not_reach_is_no_standby_until_it_is_back() {
    let offline = |offline| Sight { offline, ..Sight::default() };
    let mut table = Table::set(&[1, 2], false);
    table.link(1);
    table.lose(2);
    table.paths.seen(id(2), offline(true), 0.5, table.now);
    table.pass(MOST * 20);
    assert_eq!(table.dialled, [], "nobody waits for it");
    table.paths.seen(id(2), offline(false), 0.5, table.now);
    table.pass(RETURN / 2 - ms(1));
    assert_eq!(table.dialled, [], "not all nodes at once");
    table.pass(ms(1));
    assert_eq!(table.dialled, [id(2)]);
    table.lose(2);
    table.paths.seen(id(2), offline(true), 0.5, table.now);
    table.lose(1);
    table.pass(LAST_RESORT / 2);
    assert_eq!(table.dialled, [id(1)]);
    table.pass(MOST);
    assert_eq!(table.dialled, [id(1), id(2)], "where no other answers, it is tried all the same");
}

#[test]
fn after_a_sleep_nothing_is_waited_for() {
    let mut table = Table::set(&[1], false);
    for _ in 0..12 {
        table.dialled.clear();
        table.paths.lost(id(1), Duration::ZERO, 1.0, table.now);
        table.now = table.paths.wake_at(table.now).expect("it is dialled again");
        table.plan();
    }
    table.dialled.clear();
    table.paths.lost(id(1), Duration::ZERO, 1.0, table.now);
    table.plan();
    assert_eq!(table.dialled, []);
    table.paths.fresh_start(table.now);
    table.plan();
    assert_eq!(table.dialled, [id(1)]);
}

/// Whatever happens on the network.
#[derive(Debug, Clone)]
enum Happens {
    DialEnds(u8, bool),
    Breaks(u8),
    Measured(u8, u64),
    Hub(u8, bool),
    Drains(u8, u64),
    Doubt,
    Listed(Vec<u8>),
    Seen(u8, bool, bool),
    Passes(u64),
    Enrolled,
}

fn happens() -> impl Strategy<Value = Happens> {
    let number = 1u8..6;
    prop_oneof![
        4 => (number.clone(), any::<bool>()).prop_map(|(n, up)| Happens::DialEnds(n, up)),
        2 => number.clone().prop_map(Happens::Breaks),
        2 => (number.clone(), 0u64..200).prop_map(|(n, rtt)| Happens::Measured(n, rtt)),
        1 => (number.clone(), any::<bool>()).prop_map(|(n, online)| Happens::Hub(n, online)),
        1 => (number.clone(), 0u64..3_000).prop_map(|(n, at)| Happens::Drains(n, at)),
        1 => Just(Happens::Doubt),
        1 => prop::collection::vec(number.clone(), 1..5).prop_map(Happens::Listed),
        1 => (number, any::<bool>(), any::<bool>()).prop_map(|(n, offline, draining)| Happens::Seen(n, offline, draining)),
        4 => (0u64..60_000).prop_map(Happens::Passes),
        1 => Just(Happens::Enrolled),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn whatever_happens_a_link_carries_when_there_is_one_and_the_machine_never_stands_still(events in prop::collection::vec(happens(), 1..80), enrolling: bool) {
        let mut table = Table::set(&[1, 2, 3], enrolling);
        for event in events {
            match event {
                Happens::DialEnds(n, up) if table.dialled.contains(&id(n)) => if up { table.link(n) } else { table.lose(n) },
                Happens::Breaks(n) if table.paths.is_up(id(n)) => table.lose(n),
                Happens::DialEnds(..) | Happens::Breaks(_) => {}
                Happens::Measured(n, rtt) => table.measure(n, rtt),
                Happens::Hub(n, online) => table.paths.hub_state(id(n), online),
                Happens::Drains(n, at) => table.paths.drain(id(n), table.now + ms(at)),
                Happens::Doubt => table.paths.doubt_home(table.now),
                Happens::Listed(list) => {
                    let mut relays: Vec<_> = list.into_iter().map(relay).collect();
                    relays.dedup();
                    table.paths.list(&relays, table.now);
                }
                Happens::Seen(n, offline, draining) => {
                    table.paths.seen(id(n), Sight { offline, draining, rtt: ms(u64::from(n)), load: u32::from(n) * 25 }, 0.5, table.now);
                }
                Happens::Passes(time) => table.pass(ms(time)),
                Happens::Enrolled => table.paths.enrolled(),
            }
            table.plan();
            let up = (1..6).filter(|n| table.paths.is_up(id(*n))).count();
            prop_assert_eq!(table.paths.home().is_some(), up > 0, "a link that is up carries");
            let _ = table.home();
            prop_assert!(up + table.dialled.len() <= 5 && table.dialled.len() <= RACING, "{} up, {} dialling", up, table.dialled.len());
            if up == 0 && table.dialled.is_empty() {
                prop_assert!(table.paths.wake_at(table.now).is_some_and(|at| at <= table.now + MOST + MOST), "something is tried again");
            }
        }
        // Left alone, all is as it should be: links beyond the two are let go.
        for _ in 0..40 {
            table.pass(Duration::from_secs(10));
            for n in 1..6 {
                if table.dialled.contains(&id(n)) { table.lose(n) }
            }
        }
        let up = (1..6).filter(|n| table.paths.is_up(id(*n))).count();
        prop_assert!(up <= WARM + 1, "{} links", up);
    }

    #[test]
    fn load_makes_no_relay_nearer_and_never_farther_than_twice_and_a_bit(rtt in 0u64..2_000, load: u32, less in 0u32..200) {
        let distance = |load| {
            let mut table = two();
            table.measure(1, rtt);
            table.paths.seen(id(1), busy(load), 0.5, table.now);
            table.paths.entry(id(1)).and_then(|entry| entry.distance(table.now)).unwrap()
        };
        prop_assert!(distance(load) >= distance(load.saturating_sub(less)));
        prop_assert!(distance(load) <= ms(rtt) * 2 + FULL);
        prop_assert!(distance(load.min(BUSY_PERCENT)) == ms(rtt));
    }
}
