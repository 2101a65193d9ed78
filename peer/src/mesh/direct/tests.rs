use cortex_wire::schema::DirectAddress;

use super::*;

const LAN: &str = "192.168.1.2:4000";
const OUTSIDE: &str = "203.0.113.2:4000";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn named(text: &str, kind: DirectKind) -> DirectAddress {
    DirectAddress { address: text.into(), kind: kind.into() }
}

fn offer(mode: DirectMode) -> DirectOffer {
    let addresses = vec![named(LAN, DirectKind::Own), named(OUTSIDE, DirectKind::Observed), named("nonsense", DirectKind::Own)];
    DirectOffer { mode: mode.into(), addresses, ..DirectOffer::default() }
}

fn ping(to: &str, long: bool) -> Step {
    Step::Ping { to: at(to), long }
}

/// A search that has just begun.
fn searching(now: Instant) -> DirectPath {
    let mut path = DirectPath::new(true);
    path.own_addresses(vec![at("192.168.7.7:5000")], now);
    assert_eq!(path.plan(0.0, now), []);
    path.offered(offer(DirectMode::Auto), now);
    assert_eq!(path.plan(0.0, now), [Step::Announce, ping(LAN, false), ping(OUTSIDE, false)]);
    path
}

/// Steps of so much time, and how long it took.
fn run(path: &mut DirectPath, mut now: Instant, span: Duration) -> Vec<(Duration, Step)> {
    let begun = now;
    let mut steps = Vec::new();
    while now <= begun + span {
        steps.extend(path.plan(1.0, now).into_iter().map(|step| (now - begun, step)));
        let Some(at) = path.wake_at() else { break };
        assert!(at > now, "it would spin");
        now = at;
    }
    steps
}

#[test]
fn the_first_address_that_answers_twice_is_used() {
    let now = Instant::now();
    let mut path = searching(now);
    assert_eq!(path.why(), Why::Searching);
    path.answered(at(OUTSIDE), false, now);
    assert_eq!(path.plan(0.0, now), [ping(OUTSIDE, true)]);
    path.answered(at(OUTSIDE), true, now);
    path.answered(at(LAN), true, now);
    assert_eq!(path.plan(0.0, now), [Step::Use(at(OUTSIDE))]);
    assert_eq!((path.way(), path.why(), path.wake_at()), (Some(at(OUTSIDE)), Why::Punched, None));
}

#[test]
fn what_nobody_named_does_not_count_unless_the_hub_sends_from_there() {
    let now = Instant::now();
    let mut path = searching(now);
    let revealed = "198.51.100.9:777";
    path.answered(at(revealed), true, now);
    assert_eq!(path.plan(0.0, now), []);
    path.opened(at(revealed));
    assert_eq!(path.plan(0.0, now), [ping(revealed, false)]);
    path.answered(at(revealed), false, now);
    path.answered(at(revealed), true, now);
    assert_eq!(path.plan(0.0, now), [ping(revealed, true), Step::Use(at(revealed))]);
    let mut path = searching(now);
    (0..100).for_each(|port| path.opened(at(&format!("198.51.100.9:{}", 1000 + port))));
    path.plan(0.0, now);
    let State::Searching { candidates, .. } = &path.state else { panic!("{path:?}") };
    assert!(candidates.len() <= limits::DIRECT_ADDRESSES + REVEALED);
}

#[test]
fn a_search_is_bounded_and_the_next_ones_come_ever_more_seldom() {
    let now = Instant::now();
    let mut path = searching(now);
    let steps = run(&mut path, now, Duration::from_secs(4 * 3600));
    let begun: Vec<u64> = steps.iter().filter(|(_, step)| *step == Step::Announce).map(|(at, _)| at.as_secs()).collect();
    let apart: Vec<u64> = begun.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(apart[..6], [64, 124, 244, 484, 604, 604], "{apart:?}");
    let pings = steps.iter().filter(|(at, step)| *at < Duration::from_secs(30) && matches!(step, Step::Ping { .. })).count();
    assert!(pings <= limits::DIRECT_ROUNDS_MS.len() * 2, "{pings}");
    assert_eq!(path.why(), Why::NoAnswer);
}

#[test]
fn another_network_is_another_try_and_not_sooner_than_the_hub_hears_it() {
    let now = Instant::now();
    let mut path = searching(now);
    run(&mut path, now, Duration::from_secs(10));
    let later = now + Duration::from_secs(10);
    path.own_addresses(vec![at("10.9.9.9:5000")], later);
    assert_eq!(path.plan(0.0, later)[0], Step::Announce);
    // Again at once, and the same hub address anew.
    path.own_addresses(vec![at("10.9.9.8:5000")], later);
    path.offered(DirectOffer { addresses: vec![named(LAN, DirectKind::Own)], ..offer(DirectMode::Auto) }, later);
    assert!(run(&mut path, later, Duration::from_secs(4)).iter().all(|(_, step)| *step != Step::Announce));
}

#[test]
fn addresses_that_come_with_the_answer_are_tried_in_the_same_search() {
    let now = Instant::now();
    let mut path = searching(now);
    let mut more = offer(DirectMode::Auto);
    more.addresses.push(named("10.3.0.1:4000", DirectKind::Own));
    path.offered(more, now);
    assert_eq!(path.plan(0.0, now), [ping("10.3.0.1:4000", false)]);
}

#[test]
fn a_way_that_falls_silent_is_left_and_looked_for_again() {
    let now = Instant::now();
    let mut path = searching(now);
    path.answered(at(LAN), true, now);
    assert_eq!((path.plan(0.0, now), path.why()), (vec![Step::Use(at(LAN))], Why::SameNetwork));
    // Soon lost: not at once again.
    path.silent(1.0, now + Duration::from_secs(2));
    assert_eq!((path.plan(0.0, now), path.way(), path.why()), (vec![Step::Leave], None, Why::Silent));
    assert_eq!(path.wake_at(), Some(now + Duration::from_secs(32)));
    let again = now + Duration::from_secs(32);
    assert_eq!(path.plan(0.0, again)[0], Step::Announce);
    path.answered(at(LAN), true, again);
    path.plan(0.0, again);
    // It had served for long.
    let lost = again + Duration::from_secs(300);
    path.silent(1.0, lost);
    path.silent(1.0, lost);
    assert_eq!(path.plan(0.0, lost), [Step::Leave]);
    assert_eq!(path.wake_at(), Some(lost + Duration::from_secs(2)));
}

#[test]
fn chunks_that_others_want_too_go_directly_only_when_the_hub_is_near() {
    let now = Instant::now();
    for (way, shared, mode, expected) in [
        (LAN, true, DirectMode::Auto, true),
        (OUTSIDE, false, DirectMode::Auto, true),
        (OUTSIDE, true, DirectMode::Auto, false),
        (OUTSIDE, true, DirectMode::DirectOnly, true),
    ] {
        let mut path = searching(now);
        path.offered(DirectOffer { shared, ..offer(mode) }, now);
        assert!(!path.takes_chunks());
        path.answered(at(way), true, now);
        assert_eq!(path.takes_chunks(), expected, "{way} {shared} {mode:?}");
    }
}

#[test]
fn whoever_forbids_it_is_obeyed_at_once() {
    let now = Instant::now();
    let mut never = DirectPath::new(false);
    never.own_addresses(vec![at(LAN)], now);
    never.offered(offer(DirectMode::Auto), now);
    assert_eq!((never.plan(0.0, now), never.wake_at(), never.why()), (vec![], None, Why::OffHere));
    let forbidding = [
        (offer(DirectMode::RelayOnly), Why::Policy),
        (DirectOffer { off: true, ..offer(DirectMode::Auto) }, Why::OffAtHub),
        (DirectOffer { own_relay: true, ..offer(DirectMode::DirectOnly) }, Why::OwnRelay),
    ];
    for (refusal, why) in forbidding {
        let mut path = searching(now);
        path.answered(at(LAN), true, now);
        path.plan(0.0, now);
        path.offered(refusal, now);
        assert_eq!((path.plan(0.0, now), path.way(), path.wake_at(), path.why()), (vec![Step::Leave], None, None, why));
        path.own_addresses(vec![at("10.9.9.9:5000")], now);
        assert_eq!(path.wake_at(), None);
        let later = now + Duration::from_secs(60);
        path.offered(offer(DirectMode::Auto), later);
        assert_eq!(path.plan(0.0, later)[0], Step::Announce);
    }
}

#[test]
fn it_says_why() {
    let now = Instant::now();
    let mut path = DirectPath::new(true);
    assert_eq!(path.why(), Why::NotOffered);
    path.own_addresses(vec![at("203.0.113.7:5000")], now);
    let expected = [
        ("203.0.113.7:4000", DirectKind::Own, Why::SameMachine),
        ("203.0.113.8:4000", DirectKind::Own, Why::HubIsPublic),
        ("100.64.0.8:4000", DirectKind::Own, Why::SameNetwork),
        ("[fd00::8]:4000", DirectKind::Own, Why::SameNetwork),
        ("203.0.113.8:4000", DirectKind::Configured, Why::Configured),
        ("203.0.113.8:4000", DirectKind::Observed, Why::Punched),
    ];
    for (address, kind, why) in expected {
        assert_eq!(path.reason_of(&Candidate { address: at(address), kind, answered: true }), why, "{address}");
    }
    path.parted();
    assert_eq!((path.way(), path.why()), (None, Why::NotOffered));
}
