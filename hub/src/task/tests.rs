use cortex_wire::pool::{Claim, Declined, Grant, Placement, ranking};
use proptest::prelude::*;

use super::{
    dispatch::{IDEMPOTENT_MS, LONGEST_WAIT_MS},
    *,
};
use crate::{
    hub::lock,
    output::{Piece, Stream},
    record::{SessionStatus, TaskSpec},
    testing::{Call, START_MS, Site, node_id, request, response, signed, started},
};

fn code<T, E: Failure>(outcome: Result<T, E>) -> Option<&'static str> {
    outcome.err().map(|error| error.code())
}

async fn states(site: &Site, actor: &Actor, session: SessionId, task: TaskId) -> Vec<String> {
    let events = site.hub.session_events(actor, session, 0, 999).await.unwrap();
    let of_task = events.iter().filter(|event| event.data["id"] == task.to_string());
    of_task.map(|event| event.data["state"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_task_runs_from_dispatch_to_result() {
    let site = Site::new().await;
    let ann = site.admin().await;
    let (session, node) = site.workplace(&ann, 1).await;
    let commits = site.hub.db.commits();
    let task = site.run(&ann, session).await.unwrap();
    assert_eq!(site.hub.db.commits(), commits + 1);
    assert_eq!((task.state, task.fence, task.attempt, task.node), (State::Leased, 1, 1, node));
    assert_eq!(site.mesh.calls(), [Call::NodeChanged(node), Call::Deliver { task: task.id, leased: true }][1..]);
    assert_eq!(site.mesh.free(node), Some(7));
    let running = site.hub.started(task.id, node, &started(START_MS)).await.unwrap();
    assert_eq!(running.state, State::Running);
    site.hub.outputs.append(task.id, Stream::Stdout, 0, "out".into()).await.unwrap();
    site.hub.outputs.append(task.id, Stream::Stderr, 0, "err".into()).await.unwrap();
    let word = TaskResponse { stdout_bytes: 3, stderr_bytes: 3, ..response(&task, 3) };
    let done = site.hub.finish(task.id, node, &word, &signed(1, &word)).await.unwrap();
    assert_eq!((done.state, done.exit_code, done.signal, done.truncated), (State::Failed, Some(3), None, false));
    assert_eq!(done.evidence.as_ref().unwrap().body, BASE64.encode(&signed(1, &word).body));
    let site = site.restart().await;
    assert_eq!(site.hub.task(&ann, task.id).await.unwrap(), done);
    assert_eq!(states(&site, &ann, session, task.id).await, ["leased", "running", "failed"]);
    let output = site.hub.read_output(&ann, task.id, Stream::Stderr, 1, 9).await.unwrap();
    assert_eq!(output, Piece::Data("rr".into()));
    assert_eq!(site.hub.all_open_tasks().await.unwrap(), []);
    let verbs: Vec<_> = site.hub.audit_rows(&ann, None, Order::Ascending, 99).await.unwrap().into_iter().map(|row| row.verb).collect();
    assert!(verbs.ends_with(&["task.dispatch".into(), "task.finish".into()]), "{verbs:?}");
}

#[tokio::test]
async fn a_result_counts_once() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let task = site.running(&ann, session).await;
    let finish = async |word: &TaskResponse| site.hub.finish(task.id, node, word, &signed(1, word)).await;
    let old = TaskResponse { fence: 0, ..response(&task, 0) };
    assert!(matches!(finish(&old).await, Err(TransitionError::OldFence)));
    for bad in [
        TaskResponse { state: "running".into(), ..response(&task, 0) },
        TaskResponse { state: "rejected".into(), ..response(&task, 0) },
        TaskResponse { state: "failed".into(), ..response(&task, 0) },
        TaskResponse { state: "succeeded".into(), ..response(&task, 1) },
        TaskResponse { state: "succeeded".into(), exit: None, ..response(&task, 0) },
        TaskResponse { task_id: bytes::Bytes::new(), ..response(&task, 0) },
        TaskResponse { node_key: node_id(2).key().to_bytes(), ..response(&task, 0) },
    ] {
        assert!(matches!(finish(&bad).await, Err(TransitionError::Malformed(_))), "{bad:?}");
    }
    assert!(matches!(site.hub.started(task.id, node_id(2), &started(1)).await, Err(TransitionError::NotFound)));
    let word = response(&task, 0);
    let done = finish(&word).await.unwrap();
    assert_eq!(finish(&word).await.unwrap(), done);
    // Late news change nothing.
    assert_eq!(site.hub.started(task.id, node, &started(1)).await.unwrap(), done);
    let other = response(&task, 1);
    assert!(matches!(finish(&other).await, Err(TransitionError::NotAllowed { now: State::Succeeded, .. })));
    assert!(site.hub.lose(task.id, "x").await.is_err());
    assert_eq!(site.hub.cancel(&ann, task.id).await.unwrap(), done);
    assert_eq!(states(&site, &ann, session, task.id).await, ["leased", "running", "succeeded"]);
}

#[tokio::test]
async fn output_that_is_missing_shows_as_truncated() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let task = site.running(&ann, session).await;
    let word = TaskResponse { stdout_bytes: 5, ..response(&task, 0) };
    assert!(site.hub.finish(task.id, node, &word, &signed(1, &word)).await.unwrap().truncated);
}

#[tokio::test]
async fn the_same_request_under_one_key_is_one_task() {
    let site = Site::new().await;
    let (ann, bob) = (site.member("ann").await, site.member("bob").await);
    let (session, node) = site.workplace(&ann, 1).await;
    site.hub.add_member(&ann, session, "bob", crate::record::MemberRole::Member).await.unwrap();
    let first = site.dispatch(&ann, session, request("true"), Some("k")).await.unwrap();
    assert!(!first.repeated);
    let again = site.dispatch(&ann, session, request("true"), Some("k")).await.unwrap();
    assert_eq!((again.repeated, again.task.id), (true, first.task.id));
    assert_eq!(code(site.dispatch(&ann, session, request("false"), Some("k")).await), Some("idempotency_conflict"));
    let tail = DispatchRequest { queue_timeout_ms: 1, ..request("true") };
    assert_eq!(code(site.dispatch(&ann, session, tail, Some("k")).await), Some("idempotency_conflict"));
    // Another person's key is another key, and so is the same one in another session.
    assert!(!site.dispatch(&bob, session, request("false"), Some("k")).await.unwrap().repeated);
    let other = site.session(&ann, &[node]).await;
    assert!(!site.dispatch(&ann, other, request("false"), Some("k")).await.unwrap().repeated);
    assert_eq!(site.mesh.free(node), Some(5));
    // It holds while the node is away, and after a restart, for a day.
    let site = site.restart().await;
    assert!(site.dispatch(&ann, session, request("true"), Some("k")).await.unwrap().repeated);
    site.pass(IDEMPOTENT_MS);
    site.hub.sweep().await.unwrap();
    lock(&site.mesh.slots).insert(node, 1);
    assert!(!site.dispatch(&ann, session, request("false"), Some("k")).await.unwrap().repeated);
    for bad in ["", &"x".repeat(256)] {
        assert_eq!(code(site.dispatch(&ann, session, request("true"), Some(bad)).await), Some("malformed_task"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twenty_equal_requests_at_once_one_becomes_a_task() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let tries = (0..20).map(|_| site.dispatch(&ann, session, request("true"), Some("k")));
    let outcomes: Vec<_> = futures_util::future::try_join_all(tries).await.unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| !outcome.repeated).count(), 1);
    assert!(outcomes.iter().all(|outcome| outcome.task.id == outcomes[0].task.id));
    assert_eq!(site.mesh.free(node), Some(7));
    assert_eq!(site.mesh.calls().len(), 1);
}

#[tokio::test]
async fn a_session_says_which_node_is_meant() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let session = site.session(&ann, &[]).await;
    assert_eq!(code(site.run(&ann, session).await), Some("no_node"));
    let (a, b, c) = (site.node(&ann, 1).await, site.node(&ann, 2).await, site.node(&ann, 3).await);
    lock(&site.mesh.slots).extend([(a, 1), (b, 1), (c, 1)]);
    site.hub.attach_node(&ann, session, a).await.unwrap();
    site.hub.attach_node(&ann, session, b).await.unwrap();
    let Err(TaskError::AmbiguousNode { candidates }) = site.run(&ann, session).await else { panic!("which one?") };
    assert_eq!(candidates, [(a, "node 1".to_owned()), (b, "node 2".to_owned())]);
    let on = |node| DispatchRequest { node: Some(node), ..request("true") };
    assert_eq!(site.dispatch(&ann, session, on(b), None).await.unwrap().task.node, b);
    assert_eq!(code(site.dispatch(&ann, session, on(c), None).await), Some("node_not_attached"));
    assert_eq!(code(site.dispatch(&ann, session, on(node_id(99)), None).await), Some("node_not_attached"));
    let archive = crate::session::SessionUpdate { status: Some(SessionStatus::Archived), ..Default::default() };
    site.hub.update_session(&ann, session, archive).await.unwrap();
    assert_eq!(code(site.dispatch(&ann, session, on(a), None).await), Some("session_archived"));
    assert_eq!((site.mesh.free(a), site.mesh.free(c)), (Some(1), Some(1)));
}

#[tokio::test]
async fn a_node_that_is_away_is_waited_for_only_when_asked() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    let session = site.session(&ann, &[node]).await;
    assert_eq!(code(site.run(&ann, session).await), Some("node_offline"));
    let patient = DispatchRequest { queue_timeout_ms: 5_000, ..request("true") };
    let task = site.dispatch(&ann, session, patient, None).await.unwrap().task;
    assert_eq!((task.state, task.fence, task.start_by_ms), (State::Queued, 0, task.created_at_ms + 5_000));
    assert_eq!(site.mesh.calls().last(), Some(&Call::Deliver { task: task.id, leased: false }));
    let leased = site.hub.lease(task.id).await.unwrap();
    assert_eq!((leased.state, leased.fence), (State::Leased, 1));
    assert!(site.hub.lease(task.id).await.is_err());
    // What is with a node does not expire; what waits again does.
    assert!(matches!(site.hub.expire(task.id).await, Err(TransitionError::NotAllowed { now: State::Leased, .. })));
    site.hub.requeue(task.id, 1).await.unwrap();
    assert_eq!(site.hub.requeue(task.id, 1).await.unwrap().state, State::Queued);
    assert_eq!(site.hub.lease(task.id).await.unwrap().fence, 2);
    // Whoever still speaks of the first lease does not take the second one away.
    assert!(matches!(site.hub.requeue(task.id, 1).await, Err(TransitionError::OldFence)));
    site.hub.requeue(task.id, 2).await.unwrap();
    let expired = site.hub.expire(task.id).await.unwrap();
    assert_eq!((expired.state, expired.code.as_deref()), (State::Expired, Some("not_started_in_time")));
    assert_eq!(site.hub.expire(task.id).await.unwrap(), expired);
    // A full node is waited for in any case.
    lock(&site.mesh.slots).insert(node, 0);
    assert_eq!(site.run(&ann, session).await.unwrap().state, State::Queued);
    let endless = DispatchRequest { queue_timeout_ms: LONGEST_WAIT_MS + 1, ..request("true") };
    assert_eq!(code(site.dispatch(&ann, session, endless, None).await), Some("malformed_task"));
}

#[tokio::test]
async fn what_a_node_would_call_malformed_is_not_stored() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let edit = |edit: fn(&mut TaskSpec)| {
        let mut request = request("true");
        edit(&mut request.spec);
        request
    };
    for bad in [
        edit(|spec| spec.argv.clear()),
        edit(|spec| spec.argv[0] = "a\0b".into()),
        edit(|spec| spec.script = Some("true".into())),
        edit(|spec| spec.script = Some(String::new())),
        edit(|spec| spec.cwd = "../x".into()),
        edit(|spec| spec.cwd = "/etc".into()),
        edit(|spec| spec.env = [("A=B".to_owned(), String::new())].into()),
        edit(|spec| {
            spec.argv.clear();
            spec.script = Some("x".repeat(limits::COMMAND_BYTES + 1));
        }),
    ] {
        assert_eq!(code(site.dispatch(&ann, session, bad, None).await), Some("malformed_task"));
    }
    assert_eq!(site.mesh.free(node), Some(8));
    assert!(site.hub.tasks(&ann, session, None, 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_task_that_waits_is_cancelled_at_once_and_one_that_runs_by_its_node() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let running = site.running(&ann, session).await;
    let leased = site.run(&ann, session).await.unwrap();
    lock(&site.mesh.slots).insert(node, 0);
    let waiting = site.run(&ann, session).await.unwrap();
    site.mesh.calls();
    assert_eq!(site.hub.cancel(&ann, waiting.id).await.unwrap().state, State::Cancelled);
    assert!(site.hub.follow_output(&ann, waiting.id).await.unwrap().borrow().finished);
    for _ in 0..2 {
        let asked = site.hub.cancel(&ann, running.id).await.unwrap();
        assert_eq!((asked.state, asked.cancel_asked_at_ms.is_some()), (State::Running, true));
    }
    site.hub.cancel(&ann, leased.id).await.unwrap();
    assert_eq!(site.mesh.calls(), [waiting.id, running.id, running.id, leased.id].map(Call::Cancel));
    let word = TaskResponse { state: "cancelled".into(), exit: Some(task_response::Exit::Signal(2)), ..response(&running, 0) };
    let done = site.hub.finish(running.id, node, &word, &signed(1, &word)).await.unwrap();
    assert_eq!((done.state, done.signal, done.exit_code), (State::Cancelled, Some(2), None));
    assert_eq!(site.hub.cancel_unsent(leased.id).await.unwrap().state, State::Cancelled);
    assert_eq!(site.hub.open_tasks_of(node).await.unwrap(), []);
}

#[tokio::test]
async fn a_session_lists_its_tasks_newest_first() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(site.run(&ann, session).await.unwrap().id);
        site.pass(1);
    }
    ids.reverse();
    let list = async |before, limit| {
        let tasks = site.hub.tasks(&ann, session, before, limit).await.unwrap();
        tasks.iter().map(|task| task.id).collect::<Vec<_>>()
    };
    assert_eq!(list(None, 2).await, ids[..2]);
    assert_eq!(list(Some(ids[1]), 9).await, ids[2..]);
    let rejected = site.hub.reject(ids[0], "node_busy", "all slots\u{7} taken").await.unwrap();
    assert_eq!((rejected.state, rejected.reason.as_deref()), (State::Rejected, Some("all slots taken")));
    let open = site.hub.open_tasks_in(&ann, session).await.unwrap();
    assert_eq!(open, site.hub.open_tasks_of(node).await.unwrap());
    assert_eq!(open.len(), 4);
}

/// News about a task, as a node and the mesh might bring them, in any order.
#[derive(Debug, Clone, Copy)]
enum News {
    Lease,
    Started,
    Finish(i32),
    Reject,
    Expire,
    Lose,
    Requeue,
    Cancel,
}

async fn bring(site: &Site, ann: &Actor, task: &Task, news: News) {
    let (hub, id, node) = (&site.hub, task.id, task.node);
    match news {
        News::Lease => drop(hub.lease(id).await),
        News::Started => drop(hub.started(id, node, &started(START_MS)).await),
        News::Finish(code) => {
            let now = hub.find_task(id).await.unwrap().unwrap();
            let word = response(&now, code);
            drop(hub.finish(id, node, &word, &signed(1, &word)).await);
        }
        News::Reject => drop(hub.reject(id, "x", "x").await),
        News::Expire => drop(hub.expire(id).await),
        News::Lose => drop(hub.lose(id, "x").await),
        News::Requeue => {
            let now = hub.find_task(id).await.unwrap().unwrap();
            drop(hub.requeue(id, now.fence).await);
        }
        News::Cancel => drop(hub.cancel(ann, id).await),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_news_come_a_task_follows_the_table(
        leased: bool,
        news in proptest::collection::vec(
            prop_oneof![
                Just(News::Lease), Just(News::Started), (0..2).prop_map(News::Finish), Just(News::Reject),
                Just(News::Expire), Just(News::Lose), Just(News::Requeue), Just(News::Cancel),
            ],
            1..8,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let site = Site::new().await;
            let ann = site.admin().await;
            let (session, node) = site.workplace(&ann, 1).await;
            lock(&site.mesh.slots).insert(node, usize::from(leased));
            let task = site.run(&ann, session).await.unwrap();
            for news in news {
                let before = site.hub.find_task(task.id).await.unwrap().unwrap();
                bring(&site, &ann, &task, news).await;
                let after = site.hub.find_task(task.id).await.unwrap().unwrap();
                if before.state.is_final() {
                    assert_eq!(after, before, "{news:?}");
                } else if after.state != before.state {
                    assert!(before.state.may_become(after.state), "{news:?}: {} to {}", before.state, after.state);
                }
                let open = site.hub.open_tasks_of(node).await.unwrap().len();
                assert_eq!(open, usize::from(!after.state.is_final()));
            }
            // Consecutive events are legal steps, too.
            let told = states(&site, &ann, session, task.id).await;
            let told: Vec<_> = told.iter().map(|name| State::from_name(name).unwrap()).collect();
            assert!(told.windows(2).all(|pair| pair[0] == pair[1] || pair[0].may_become(pair[1])), "{told:?}");
            assert_eq!(site.hub.verify_audit(&ann).await.unwrap().broken, None);
        });
    }
}

fn pooled() -> DispatchRequest {
    DispatchRequest { pool: true, ..request("true") }
}

/// A claim on a task, as the pool hands it over.
fn claim(task: &Task, nodes: &[NodeId], claims: &[NodeId]) -> Grant {
    let claims: Vec<_> = claims.iter().map(|node| Claim { node: *node, refused: false }).collect();
    let placement = Placement { round: 1, ranking: ranking(&task.id, nodes.iter().copied()), claims: claims.clone() };
    Grant { task: task.id, fence: task.fence, node: claims[0].node, placement }
}

async fn granted(site: &Site, grant: Grant) -> Result<(), Declined> {
    site.hub.grant(vec![grant]).await.unwrap().remove(0).1
}

#[tokio::test]
async fn a_task_of_the_pool_is_granted_once_by_its_fence_and_the_log_replays() {
    let site = Site::new().await;
    let ann = site.admin().await;
    let nodes = [site.node(&ann, 1).await, site.node(&ann, 2).await];
    let session = site.session(&ann, &nodes).await;
    assert_eq!(code(site.dispatch(&ann, session, request("true"), None).await), Some("ambiguous_node"));
    assert_eq!(code(site.dispatch(&ann, session, pooled(), None).await), Some("no_candidate"));
    let waits = site.dispatch(&ann, session, DispatchRequest { queue_timeout_ms: 9_000, ..pooled() }, None).await.unwrap().task;
    assert_eq!(waits.state, State::Queued);
    assert!(waits.pool.unwrap().waits.unwrap().contains("offline"));
    nodes.iter().for_each(|node| _ = lock(&site.mesh.slots).insert(*node, 1));
    site.mesh.calls();
    let task = site.dispatch(&ann, session, pooled(), None).await.unwrap().task;
    assert_eq!((task.state, task.fence), (State::Offered, 0));
    assert_eq!(site.mesh.calls(), [Call::Offer(task.id)]);
    assert_eq!(site.hub.pool_tasks().await.unwrap().len(), 2);
    assert_eq!(site.hub.all_open_tasks().await.unwrap(), [], "no node has it");
    let grant = claim(&task, &nodes, &[nodes[1], nodes[0]]);
    assert_eq!(granted(&site, Grant { fence: 7, ..grant.clone() }).await, Err(Declined::Gone));
    assert_eq!(granted(&site, Grant { node: node_id(9), ..grant.clone() }).await, Err(Declined::Unfit));
    assert_eq!(granted(&site, grant.clone()).await, Ok(()));
    assert_eq!(site.mesh.calls(), [Call::Deliver { task: task.id, leased: true }]);
    assert_eq!(granted(&site, claim(&task, &nodes, &[nodes[0]])).await, Err(Declined::Gone), "once");
    let leased = site.hub.task(&ann, task.id).await.unwrap();
    assert_eq!((leased.state, leased.fence, leased.node), (State::Leased, 1, nodes[1]));
    // Its node has not got it: it waits again, and another one gets it under a higher fence.
    let again = site.hub.give_back(task.id, 1).await.unwrap();
    assert_eq!((again.state, again.fence), (State::Queued, 1));
    assert_eq!(site.hub.open_tasks_of(nodes[1]).await.unwrap(), []);
    site.hub.offered(vec![task.id]).await.unwrap();
    assert_eq!(granted(&site, grant).await, Err(Declined::Gone), "the old fence");
    assert_eq!(granted(&site, claim(&again, &nodes, &[nodes[0]])).await, Ok(()));
    assert_eq!(granted(&site, claim(&waits_now(&site).await, &nodes, &[nodes[0]])).await, Err(Declined::Full));
    let events = site.hub.session_events(&ann, session, 0, 999).await.unwrap();
    assert_eq!(pool::replay(&events), Ok([(task.id, (2, nodes[0]))].into()));
    assert_eq!(states(&site, &ann, session, task.id).await, ["offered", "leased", "queued", "offered", "leased"]);
    let mut forged = events.clone();
    let row = forged.iter_mut().rfind(|event| !event.data["placement"].is_null()).unwrap();
    row.data["node_id"] = json!(nodes[1]);
    assert!(matches!(pool::replay(&forged), Err(pool::ReplayFault::Differs { .. })));
    // It outlives a restart.
    let site = site.restart().await;
    assert_eq!(site.hub.pool_tasks().await.unwrap().len(), 1);
    assert_eq!(site.hub.open_tasks_of(nodes[0]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_task_of_the_pool_is_asked_about_for_the_node_that_claimed_it_and_is_that_node_s_from_then_on() {
    let site = Site::new().await;
    let ann = site.admin().await;
    let nodes = [site.node(&ann, 1).await, site.node(&ann, 2).await];
    let session = site.session(&ann, &nodes).await;
    nodes.iter().for_each(|node| _ = lock(&site.mesh.slots).insert(*node, 1));
    let rule = crate::record::CommandRule { prefix: vec!["true".into()], ..crate::record::CommandRule::default() };
    let policy = crate::record::SandboxPolicy { ask: vec![rule], ..crate::record::SandboxPolicy::default() };
    site.hub.set_policy(&ann, nodes[1], policy, None).await.unwrap();
    let mut asked = Vec::new();
    for _ in 0..3 {
        let task = site.dispatch(&ann, session, pooled(), None).await.unwrap().task;
        site.mesh.calls();
        assert_eq!(granted(&site, claim(&task, &nodes, &[nodes[1], nodes[0]])).await, Err(Declined::Gone), "before the lease");
        assert_eq!(site.mesh.calls(), [Call::Deliver { task: task.id, leased: false }]);
        let task = site.hub.task(&ann, task.id).await.unwrap();
        assert_eq!((task.state, task.fence, task.node), (State::AwaitingApproval, 0, nodes[1]));
        assert_eq!(site.mesh.free(nodes[1]), Some(1), "it takes no slot");
        asked.push(task.id);
    }
    assert_eq!(site.hub.pool_tasks().await.unwrap(), []);
    let site = site.restart().await;
    nodes.iter().for_each(|node| _ = lock(&site.mesh.slots).insert(*node, 1));
    assert_eq!(site.hub.approvals(&ann).await.unwrap().len(), 3);
    // A yes is for that node, and so the task waits for that node.
    site.hub.approve(&ann, asked[0], crate::record::approval::Reach::Once, vec![]).await.unwrap();
    assert_eq!(site.hub.open_tasks_of(nodes[1]).await.unwrap().len(), 3);
    let leased = site.hub.lease(asked[0]).await.unwrap();
    assert_eq!((leased.state, leased.fence, leased.node), (State::Leased, 1, nodes[1]));
    assert!(site.hub.give_back(asked[0], 1).await.is_err(), "it does not go back to the pool");
    assert_eq!(site.hub.requeue(asked[0], 1).await.unwrap().state, State::Queued);
    assert_eq!(site.hub.pool_tasks().await.unwrap(), []);
    assert_eq!(site.hub.deny(&ann, asked[1], "").await.unwrap().state, State::Rejected);
    assert_eq!(site.hub.cancel(&ann, asked[2]).await.unwrap().state, State::Cancelled);
    let states_of = |task| states(&site, &ann, session, task);
    assert_eq!(states_of(asked[0]).await, ["offered", "awaiting_approval", "queued", "leased", "queued"]);
    let events = site.hub.session_events(&ann, session, 0, 999).await.unwrap();
    assert_eq!(pool::replay(&events), Ok([(asked[0], (1, nodes[1]))].into()));
    // The other node asks nothing.
    let task = site.dispatch(&ann, session, pooled(), None).await.unwrap().task;
    assert_eq!(granted(&site, claim(&task, &nodes, &[nodes[0], nodes[1]])).await, Ok(()));
}

async fn waits_now(site: &Site) -> Task {
    site.hub.pool_tasks().await.unwrap().remove(0)
}

#[tokio::test]
async fn a_session_has_so_many_open_tasks_and_no_more() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, _) = site.workplace(&ann, 1).await;
    let other = site.run(&ann, session).await.unwrap();
    let ids = (1..10_000_u64).map(|number| TaskId::new(START_MS, [number.to_be_bytes().as_slice(), &[0; 2]].concat().try_into().unwrap()));
    let ids: Vec<TaskId> = ids.collect();
    let last = ids[0];
    site.hub
        .change("test".into(), move |change| ids.iter().try_for_each(|id| OPEN_TASKS_OF_SESSION.insert(change.tx, &session, id)))
        .await
        .unwrap();
    assert_eq!(code(site.run(&ann, session).await), Some("too_many_tasks"));
    let elsewhere = site.session(&ann, &[other.node]).await;
    assert!(site.run(&ann, elsewhere).await.is_ok(), "it is the session's quota");
    site.hub.change("test".into(), move |change| OPEN_TASKS_OF_SESSION.remove(change.tx, &session, &last)).await.unwrap();
    assert!(site.run(&ann, session).await.is_ok());
}

#[tokio::test]
async fn a_drained_node_is_not_chosen() {
    let site = Site::new().await;
    let ann = site.admin().await;
    let (session, node) = site.workplace(&ann, 1).await;
    let other = site.node(&ann, 2).await;
    lock(&site.mesh.slots).insert(other, 1);
    site.hub.attach_node(&ann, session, other).await.unwrap();
    let selecting = |selector: &str| DispatchRequest { selector: Some(selector.into()), ..request("true") };
    assert_eq!(code(site.dispatch(&ann, session, selecting("os=linux"), None).await), Some("ambiguous_node"));
    let drained = site.hub.drain_node(&ann, node, true).await.unwrap();
    assert_eq!(site.hub.drain_node(&ann, node, true).await.unwrap().drained_at_ms, drained.drained_at_ms);
    assert_eq!(site.dispatch(&ann, session, selecting("os=linux"), None).await.unwrap().task.node, other);
    let named = DispatchRequest { node: Some(node), ..request("true") };
    assert_eq!(code(site.dispatch(&ann, session, named, None).await), Some("node_drained"));
    let task = site.dispatch(&ann, session, pooled(), None).await.unwrap().task;
    assert_eq!(granted(&site, claim(&task, &[node], &[node])).await, Err(Declined::Unfit));
    assert_eq!(code(site.dispatch(&ann, session, selecting("os=plan9"), None).await), Some("no_candidate"));
    assert_eq!(code(site.dispatch(&ann, session, selecting("os="), None).await), Some("malformed_task"));
    let strict = TaskSpec { mode: Some(crate::record::Mode::Strict), ..pooled().spec };
    assert_eq!(code(site.dispatch(&ann, session, DispatchRequest { spec: strict, ..pooled() }, None).await), Some("no_candidate"));
    site.mesh.waiting.store(limits::POOL_WAITING, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(code(site.dispatch(&ann, session, pooled(), None).await), Some("pool_full"));
    site.hub.drain_node(&ann, node, false).await.unwrap();
    assert_eq!(granted(&site, claim(&task, &[node], &[node])).await, Ok(()));
    assert_eq!(site.hub.cancel(&ann, task.id).await.unwrap().state, State::Leased);
    let bob = site.member("bob").await;
    assert_eq!(code(site.hub.drain_node(&bob, node, true).await), Some("not_found"));
}

#[tokio::test]
async fn lost_work_that_may_be_done_twice_is_done_again_and_no_other() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let asked = |retries| {
        let plain = request("true");
        DispatchRequest { spec: TaskSpec { idempotent: retries > 0, retries, ..plain.spec }, ..plain }
    };
    let plain = site.dispatch(&ann, session, asked(0), None).await.unwrap().task;
    assert_eq!(site.hub.lose(plain.id, "x").await.unwrap().retried_as, None);
    let first = site.dispatch(&ann, session, asked(2), None).await.unwrap().task;
    site.mesh.calls();
    let mut lost = first.clone();
    for attempt in 2..=3 {
        let now = site.hub.lose(lost.id, "x").await.unwrap();
        let next = site.hub.find_task(now.retried_as.expect("another attempt")).await.unwrap().unwrap();
        assert_eq!((now.state, next.state, next.attempt, next.retry_of), (State::Lost, State::Queued, attempt, Some(lost.id)));
        assert_eq!(site.mesh.calls(), [Call::Deliver { task: next.id, leased: false }]);
        assert_eq!(site.hub.lose(lost.id, "x").await.unwrap(), now, "once");
        lost = site.hub.lease(next.id).await.unwrap();
    }
    assert_eq!(site.hub.lose(lost.id, "x").await.unwrap().retried_as, None, "twice was asked for");

    // Neither what was to end anyway, nor where the node is gone.
    let cancelled = site.dispatch(&ann, session, asked(1), None).await.unwrap().task;
    site.hub.cancel(&ann, cancelled.id).await.unwrap();
    assert_eq!(site.hub.lose(cancelled.id, "x").await.unwrap().retried_as, None);
    let detached = site.dispatch(&ann, session, asked(1), None).await.unwrap().task;
    site.hub.detach_node(&ann, session, node).await.unwrap();
    assert!(site.hub.find_task(detached.id).await.unwrap().unwrap().retried_as.is_none());
    let spec = TaskSpec { retries: 1, ..request("true").spec };
    assert_eq!(code(site.dispatch(&ann, session, DispatchRequest { spec, ..request("true") }, None).await), Some("malformed_task"));
}

#[tokio::test]
async fn output_that_is_not_to_be_kept_is_forgotten_after_the_end() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let plain = request("true");
    let asked = DispatchRequest { spec: TaskSpec { forget_output: true, ..plain.spec.clone() }, ..plain };
    let task = site.dispatch(&ann, session, asked, None).await.unwrap().task;
    let kept = site.run(&ann, session).await.unwrap();
    for id in [task.id, kept.id] {
        site.hub.outputs.append(id, Stream::Stdout, 0, vec![7; 100_000].into()).await.unwrap();
    }
    for task in [&task, &kept] {
        let word = TaskResponse { stdout_bytes: 100_000, ..response(task, 0) };
        site.hub.finish(task.id, node, &word, &signed(1, &word)).await.unwrap();
    }
    let read = async |site: &Site, id| site.hub.read_output(&ann, id, Stream::Stdout, 0, 9).await.unwrap();
    site.hub.forget_outputs(None).await.unwrap();
    assert_eq!(read(&site, task.id).await, Piece::Data(vec![7; 9].into()), "there is a minute to look at it");
    // The hub is stopped meanwhile; its next sweep does it.
    let site = site.restart().await;
    site.pass(120_000);
    site.hub.sweep().await.unwrap();
    assert_eq!(read(&site, task.id).await, Piece::End);
    assert_eq!(read(&site, kept.id).await, Piece::Data(vec![7; 9].into()));
    let gone = site.path().join("output").join(task.id.to_string());
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while gone.exists() {
        assert!(std::time::Instant::now() < patience, "its file stays");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
