use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::key::SecretKey;

fn node(number: u16) -> NodeId {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_seed(seed).public().into()
}

fn task(number: u64) -> TaskId {
    let mut random = [0; 10];
    random[..8].copy_from_slice(&number.to_be_bytes());
    TaskId::new(1, random)
}

fn session(number: u8) -> SessionId {
    SessionId::new(1, [number; 10])
}

fn needs(number: u8) -> Needs {
    Needs { session: session(number), selector: Selector::default(), mode: SandboxMode::Unspecified }
}

fn machine() -> Machine {
    Machine { sessions: BTreeSet::from([session(1), session(2)]), ..Machine::default() }
}

fn waiting(number: u64, of: u8) -> Waiting {
    Waiting { task: task(number), needs: needs(of), fence: 0, expires_at_ms: 600_000, queued: false }
}

/// A pool with nodes 0 to `nodes` that have so many free slots each.
fn pool(nodes: u16, room: u32) -> Pool {
    let mut pool = Pool::default();
    (0..nodes).for_each(|number| pool.seat(node(number), machine(), room, 0));
    pool
}

/// Who was offered which task at which rank.
fn offers(pool: &mut Pool) -> Vec<(TaskId, NodeId, u32)> {
    let tell = |command| match command {
        Command::Tell(node, task, Some(offer)) => Some((task, node, offer.rank)),
        _ => None,
    };
    pool.commands().into_iter().filter_map(tell).collect()
}

fn grants(pool: &mut Pool) -> Vec<Grant> {
    let grant = |command| if let Command::Grant(grant) = command { Some(grant) } else { None };
    pool.commands().into_iter().filter_map(grant).collect()
}

#[test]
fn a_task_is_offered_by_rank_and_granted_once() {
    let mut pool = pool(20, 1);
    pool.wait(waiting(1, 1), 0);
    let offered = offers(&mut pool);
    let ranked = ranking(&task(1), (0..20).map(node));
    assert_eq!(offered.iter().map(|(_, node, _)| *node).collect::<Vec<_>>(), ranked[..limits::POOL_OFFERED]);
    assert!(offered.iter().zip(0..).all(|((_, _, rank), number)| *rank == number));
    pool.claim(ranked[2], task(1), 1);
    pool.claim(ranked[12], task(1), 0);
    assert_eq!(grants(&mut pool), [], "another fence, and somebody who was not asked");
    pool.claim(ranked[1], task(1), 0);
    pool.claim(ranked[0], task(1), 0);
    pool.claim(ranked[1], task(1), 0);
    let [grant] = &grants(&mut pool)[..] else { panic!("one grant") };
    assert_eq!((grant.node, grant.fence, grant.placement.winner(&task(1))), (ranked[1], 0, Ok(ranked[1])));
    pool.granted(task(1), 5);
    let settled: Vec<_> = pool.commands();
    assert_eq!(settled.len(), limits::POOL_OFFERED, "all who had the offer are told: {settled:?}");
    pool.claim(ranked[0], task(1), 0);
    assert_eq!(pool.commands(), [Command::Tell(ranked[0], task(1), None)]);
    assert_eq!((pool.len(), pool.due_ms(), pool.tally().grants), (0, None, 1));
}

#[test]
fn a_claim_that_cannot_be_granted_makes_room_for_the_next() {
    let mut pool = pool(3, 1);
    pool.wait(waiting(1, 1), 0);
    let ranked = ranking(&task(1), (0..3).map(node));
    pool.claim(ranked[0], task(1), 0);
    let first = grants(&mut pool).remove(0);
    pool.claim(ranked[2], task(1), 0);
    pool.declined(&first, Declined::Full, 1);
    let second = grants(&mut pool).remove(0);
    assert_eq!(second.node, ranked[2]);
    assert_eq!(second.placement.claims, [Claim { node: ranked[0], refused: true }, Claim { node: ranked[2], refused: false }]);
    assert_eq!(second.placement.winner(&task(1)), Ok(ranked[2]));
    pool.declined(&second, Declined::Gone, 1);
    assert!(pool.is_empty());
}

#[test]
fn no_more_is_offered_than_there_is_room_for_and_classes_take_turns() {
    let mut pool = pool(2, 2);
    (0..10).for_each(|number| pool.wait(waiting(number, 1), 0));
    (10..12).for_each(|number| pool.wait(waiting(number, 2), 0));
    let offered: BTreeSet<_> = offers(&mut pool).into_iter().map(|(task, _, _)| task).collect();
    assert_eq!(offered, (0..4).map(task).collect());
    // As slots become free, both sessions get some.
    let mut order = Vec::new();
    for number in 0..4 {
        pool.granted(task(number), 1);
        order.extend(offers(&mut pool).into_iter().filter(|(_, _, rank)| *rank == 0).map(|(task, _, _)| task));
    }
    assert_eq!(order, [10, 4, 11, 5].map(task));
}

#[test]
fn what_nobody_claims_goes_to_others_that_are_idle() {
    let mut pool = pool(2, 1);
    pool.wait(waiting(1, 1), 0);
    let asked: Vec<_> = offers(&mut pool).into_iter().map(|(_, node, _)| node).collect();
    assert_eq!(asked.len(), 2);
    pool.seat(node(7), machine(), 1, 10);
    assert_eq!(offers(&mut pool), [], "nobody else is asked while they may claim");
    assert_eq!(pool.due_ms(), Some(STEAL_AFTER_MS));
    pool.tick(STEAL_AFTER_MS - 1);
    assert_eq!(offers(&mut pool), []);
    pool.tick(STEAL_AFTER_MS);
    let commands = pool.commands();
    assert!(commands.contains(&Command::Tell(node(7), task(1), Some(Offer { fence: 0, rank: 0 }))), "{commands:?}");
    assert_eq!(commands.len(), 3, "and the others are told that they have it no longer: {commands:?}");
    pool.claim(node(7), task(1), 0);
    assert_eq!(grants(&mut pool)[0].placement.round, 2);
}

#[test]
fn a_task_outlives_every_node_it_was_offered_to_and_expires() {
    let mut pool = pool(1, 1);
    pool.wait(Waiting { expires_at_ms: 5_000, queued: true, ..waiting(1, 1) }, 0);
    assert!(pool.commands().contains(&Command::Offered(task(1))));
    pool.leave(node(0), 100);
    assert_eq!(pool.commands(), [Command::Tell(node(0), task(1), None)]);
    pool.seat(node(3), Machine::default(), 1, 200);
    assert_eq!(offers(&mut pool), [], "it is in another session");
    pool.seat(node(3), machine(), 1, 300);
    assert_eq!(offers(&mut pool), [(task(1), node(3), 0)]);
    pool.leave(node(3), 400);
    pool.tick(5_000);
    assert!(pool.commands().contains(&Command::Expire(task(1))));
    assert_eq!((pool.is_empty(), pool.classes.len()), (true, 0));
}

#[test]
fn a_journal_that_was_altered_is_noticed() {
    let ranked = ranking(&task(1), (0..3).map(node));
    let good = Placement { round: 1, ranking: ranked.clone(), claims: vec![Claim { node: ranked[1], refused: false }] };
    assert_eq!(good.winner(&task(1)), Ok(ranked[1]));
    let swapped = Placement { ranking: vec![ranked[1], ranked[0], ranked[2]], ..good.clone() };
    assert_eq!(swapped.winner(&task(1)), Err(ReplayError::Ranking));
    assert!(good.winner(&task(2)) != Ok(ranked[1]) || ranking(&task(2), ranked.clone()) == ranked);
    let stranger = Placement { claims: vec![Claim { node: node(9), refused: false }], ..good.clone() };
    assert_eq!(stranger.winner(&task(1)), Err(ReplayError::Uninvited(node(9))));
    let nobody = Placement { claims: vec![Claim { node: ranked[0], refused: true }], ..good };
    assert_eq!(nobody.winner(&task(1)), Err(ReplayError::Nobody));
}

fn update(offers: &[(u64, u64, u32)], settled: &[u64]) -> PoolUpdate {
    let id = |number: u64| bytes::Bytes::copy_from_slice(task(number).as_bytes());
    PoolUpdate {
        offers: offers.iter().map(|(number, fence, rank)| PoolOffer { task_id: id(*number), fence: *fence, rank: *rank }).collect(),
        settled: settled.iter().map(|number| id(*number)).collect(),
        slot_ms: SLOT_MS as u32,
    }
}

#[test]
fn a_node_claims_at_its_turn_what_was_not_settled_before() {
    let mut claimant = Claimant::default();
    claimant.hear(&update(&[(1, 0, 0), (2, 0, 1), (3, 0, 2), (4, 5, u32::MAX)], &[]), 1_000);
    assert_eq!(claimant.claims(0, 1_000), []);
    assert_eq!(claimant.due_ms(0), None);
    let claimed = claimant.claims(4, 1_000);
    assert_eq!((claimed.len(), &claimed[0].task_id[..]), (1, &task(1).as_bytes()[..]));
    assert_eq!(claimant.claims(4, 1_000), [], "once");
    assert_eq!(claimant.due_ms(4), Some(1_080));
    claimant.hear(&update(&[], &[2]), 1_050);
    assert_eq!(claimant.claims(4, 1_100), []);
    assert_eq!(claimant.claims(1, 9_000), [], "the only free slot may be taken by what is claimed already");
    assert_eq!(claimant.claims(2, 9_000).len(), 1);
    // However late a rank is, nobody waits longer than others are asked.
    assert_eq!(claimant.due_ms(9), Some(1_000 + STEAL_AFTER_MS));
    // Duplicates change nothing, older fences neither, newer ones do.
    claimant.hear(&update(&[(4, 4, 0)], &[]), 2_000);
    assert_eq!(claimant.claims(9, 2_500), [], "an older offer says nothing");
    claimant.hear(&update(&[(1, 0, 0)], &[]), 2_500);
    assert_eq!(claimant.claims(9, 2_500).len(), 1, "offered again, so its first claim was refused");
    claimant.hear(&update(&[(1, 1, 0)], &[]), 2_500);
    assert_eq!(claimant.claims(9, 2_500).iter().map(|claim| claim.fence).collect::<Vec<_>>(), [1]);
    claimant.hear(&update(&[], &[1, 2, 3, 4]), 3_000);
    assert!(claimant.is_empty());
}

#[test]
fn a_hub_that_offers_without_end_fills_no_memory() {
    let mut claimant = Claimant::default();
    for batch in 0..20 {
        let offers: Vec<_> = (batch * 1_000..batch * 1_000 + 1_000).map(|number| (number, 0, 0)).collect();
        claimant.hear(&update(&offers, &[]), 0);
    }
    assert_eq!(claimant.offers.len(), limits::POOL_HELD);
    assert_eq!(claimant.claims(u32::MAX, 0).len(), limits::POOL_BATCH);
}

/// Nodes with some slots and some way to the hub, tasks of some length: everything by the real rules, in virtual time.
struct Fair {
    claims_per_task: f64,
    busiest_share: f64,
    longest_ms: i64,
}

fn simulate(nodes: u16, slots: u32, tasks: u64, lasts_ms: i64, every_ms: i64, rtt_ms: impl Fn(u16) -> i64) -> Fair {
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Event {
        Dispatch(u64),
        ToNode(u16, TaskId, Option<(u64, u32)>),
        Look(u16),
        Claim(u16, TaskId, u64),
        Done(u16),
    }
    let number: BTreeMap<NodeId, u16> = (0..nodes).map(|n| (node(n), n)).collect();
    let mut pool = pool(nodes, slots);
    let (mut claimants, mut free): (Vec<_>, Vec<_>) = (0..nodes).map(|_| (Claimant::default(), slots)).unzip();
    let (mut agenda, mut count): (BTreeSet<(i64, u64, Event)>, u64) = (BTreeSet::new(), 0);
    let (mut shares, mut born, mut longest_ms): (BTreeMap<u16, u64>, BTreeMap<TaskId, i64>, i64) = Default::default();
    for n in 0..tasks {
        agenda.insert((n as i64 * every_ms, n, Event::Dispatch(n)));
    }
    while let Some((now, _, event)) = agenda.pop_first() {
        let mut later = |at: i64, event: Event| {
            count += 1;
            agenda.insert((at, tasks + count, event));
        };
        let mut look = None;
        match event {
            Event::Dispatch(n) => {
                born.insert(task(n), now);
                pool.wait(waiting(n, 1), now);
            }
            Event::ToNode(n, task, offer) => {
                let id = bytes::Bytes::copy_from_slice(task.as_bytes());
                let offers = offer.map(|(fence, rank)| PoolOffer { task_id: id.clone(), fence, rank });
                let settled = if offer.is_none() { vec![id] } else { Vec::new() };
                let update = PoolUpdate { offers: offers.into_iter().collect(), settled, slot_ms: SLOT_MS as u32 };
                claimants[usize::from(n)].hear(&update, now);
                look = Some(n);
            }
            Event::Look(n) => look = Some(n),
            Event::Claim(n, task, fence) => pool.claim(node(n), task, fence),
            Event::Done(n) => {
                free[usize::from(n)] += 1;
                pool.room(node(n), free[usize::from(n)], now);
                look = Some(n);
            }
        }
        if let Some(n) = look {
            let claimant = &mut claimants[usize::from(n)];
            for claim in claimant.claims(free[usize::from(n)], now) {
                later(now + rtt_ms(n) / 2, Event::Claim(n, TaskId::from_slice(&claim.task_id).unwrap(), claim.fence));
            }
            if let Some(due) = claimant.due_ms(free[usize::from(n)]).filter(|due| *due > now) {
                later(due, Event::Look(n));
            }
        }
        pool.tick(now);
        for _ in 0..2 {
            for command in pool.commands() {
                match command {
                    Command::Tell(to, task, offer) => {
                        let n = number[&to];
                        later(now + rtt_ms(n) / 2, Event::ToNode(n, task, offer.map(|offer| (offer.fence, offer.rank))));
                    }
                    Command::Grant(grant) => {
                        let n = number[&grant.node];
                        assert_eq!(grant.placement.winner(&grant.task), Ok(grant.node));
                        if free[usize::from(n)] == 0 {
                            pool.declined(&grant, Declined::Full, now);
                            continue;
                        }
                        free[usize::from(n)] -= 1;
                        *shares.entry(n).or_default() += 1;
                        longest_ms = longest_ms.max(now - born[&grant.task]);
                        later(now + rtt_ms(n) + lasts_ms, Event::Done(n));
                        pool.granted(grant.task, now);
                        pool.room(grant.node, free[usize::from(n)], now);
                    }
                    Command::Offered(_) | Command::Expire(_) => {}
                }
            }
        }
        if let Some(due) = pool.due_ms().filter(|due| *due > now) {
            agenda.insert((due, u64::MAX, Event::Look(0)));
        }
    }
    let granted: u64 = shares.values().sum();
    assert_eq!(granted, tasks, "every task went somewhere");
    let busiest = shares.values().max().copied().unwrap_or(0) as f64;
    Fair {
        claims_per_task: pool.tally().claims as f64 / tasks as f64,
        busiest_share: busiest * f64::from(nodes) / tasks as f64,
        longest_ms,
    }
}

#[test]
fn few_claims_are_made_and_work_is_spread() {
    let far = |n: u16| 10 + i64::from(n) * 37 % 110;
    // Idle nodes, one task now and then; more than there is room for; as much as there is room for.
    for (nodes, slots, tasks, lasts_ms, every_ms) in
        [(20, 4, 400, 50, 40), (16, 1, 1_000, 10, 0), (16, 8, 1_000, 100, 0), (100, 2, 600, 200, 5)]
    {
        let fair = simulate(nodes, slots, tasks, lasts_ms, every_ms, far);
        assert!(fair.claims_per_task <= 1.5, "{nodes} nodes: {} claims for a task", fair.claims_per_task);
        assert!(fair.busiest_share <= 2.5, "{nodes} nodes: {} times its share", fair.busiest_share);
        assert!(every_ms == 0 || fair.longest_ms < 2_000, "{nodes} nodes: a task waited {} ms", fair.longest_ms);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ranks_do_not_depend_on_who_else_is_there(numbers in proptest::collection::btree_set(0_u16..200, 2..30), number in any::<u64>()) {
        let nodes: Vec<NodeId> = numbers.iter().copied().map(node).collect();
        let all = ranking(&task(number), nodes.iter().copied());
        let without: Vec<NodeId> = all.iter().copied().filter(|at| *at != nodes[0]).collect();
        prop_assert_eq!(ranking(&task(number), nodes[1..].iter().rev().copied()), without);
        prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), nodes.len());
    }

    #[test]
    fn hostile_claims_neither_panic_nor_win(words in proptest::collection::vec((0_u16..6, 0_u64..6, 0_u64..3, 0_u8..8), 0..80)) {
        let mut pool = pool(3, 1);
        let (mut now, mut won) = (0, BTreeMap::new());
        for (n, number, fence, what) in words {
            now += i64::from(what) * 300;
            match what {
                // Of its own accord the hub lets a task that was granted wait at another fence only.
                0 | 1 if won.contains_key(&(task(number), fence)) => {}
                0 | 1 => pool.wait(Waiting { fence, ..waiting(number, 1 + (n % 2) as u8) }, now),
                2 | 3 => pool.claim(node(n), task(number), fence),
                4 => pool.leave(node(n), now),
                5 => pool.seat(node(n), machine(), (number % 3) as u32, now),
                6 => pool.forget(task(number), now),
                _ => pool.tick(now),
            }
            for command in pool.commands() {
                let Command::Grant(grant) = command else { continue };
                prop_assert_eq!(grant.placement.winner(&grant.task), Ok(grant.node));
                prop_assert!(grant.placement.ranking.len() <= limits::POOL_OFFERED);
                if number % 2 == 0 {
                    prop_assert!(won.insert((grant.task, grant.fence), grant.node).is_none(), "granted twice at one fence");
                    pool.granted(grant.task, now);
                } else {
                    pool.declined(&grant, [Declined::Full, Declined::Unfit, Declined::Gone][usize::from(n) % 3], now);
                }
            }
            let intended: u32 = pool.seats.values().map(|seat| seat.intended).sum();
            prop_assert_eq!(intended as usize, pool.tasks.values().filter(|open| open.first.is_some_and(|first| pool.seats.contains_key(&first))).count());
            prop_assert_eq!(pool.classes.values().map(|class| class.tasks).sum::<usize>(), pool.tasks.len());
        }
    }
}
