//! What a node asks for before it starts something, whatever its hub says; and what it signs and writes down.

use bytes::Bytes;
use cortex_peer::log::{What, read::Walk};
use cortex_wire::{
    key::{Domain, SecretKey},
    policy::{self, approval::subject},
    schema::{Approval, CommandRule, TaskRequest},
    task::State,
};

use crate::hub::{Hub, argv};

fn rule(words: &str) -> CommandRule {
    CommandRule { prefix: words.split(' ').map(str::to_owned).collect(), reason: String::new() }
}

/// A hub whose policy asks before `touch`.
fn asking() -> Hub {
    let mut hub = Hub::new();
    hub.policy.ask = vec![rule("touch")];
    hub
}

fn approved(hub: &Hub, request: TaskRequest) -> TaskRequest {
    let approval = Approval {
        approval_id: "a".into(),
        user_id: "ann".into(),
        scope: "session".into(),
        subject: Bytes::copy_from_slice(&subject(&request)),
        policy_hash: Bytes::copy_from_slice(&policy::hash(&policy::encode(&hub.policy))),
        ..Approval::default()
    };
    TaskRequest { approval: Some(approval), ..request }
}

#[tokio::test]
async fn a_node_starts_nothing_it_asks_about_without_an_approval_that_fits() {
    let hub = asking();
    let tasks = hub.tasks();
    let request = || hub.request(argv(&["touch", "made"]));
    assert_eq!(hub.start(&tasks, &request()).await.rejected().await.code, "approval_required");
    let other = approved(&hub, hub.request(argv(&["touch", "other"]))).approval;
    assert_eq!(hub.start(&tasks, &TaskRequest { approval: other, ..request() }).await.rejected().await.code, "approval_mismatch");
    let mut late = approved(&hub, request());
    late.approval.as_mut().unwrap().expires_at_ms = 1;
    assert_eq!(hub.start(&tasks, &late).await.rejected().await.code, "approval_mismatch");
    assert!(!hub.workspace().join("made").exists());

    let request = approved(&hub, request());
    let over = hub.start(&tasks, &request).await.finish().await;
    assert_eq!(over.response.state, "succeeded");
    assert_eq!(over.response.approval, request.approval);
    assert_eq!(over.response.subject, subject(&request)[..]);
    assert!(hub.workspace().join("made").exists());
}

#[tokio::test]
async fn a_node_asks_by_its_own_file_too() {
    let mut hub = Hub::new();
    hub.ceiling.ask = vec![rule("touch")];
    let tasks = hub.tasks();
    assert_eq!(hub.script(&tasks, "cd . && touch x").await.rejected().await.code, "approval_required");
    assert_eq!(hub.script(&tasks, "$x").await.rejected().await.code, "approval_required");
    assert_eq!(hub.script(&tasks, "echo fine").await.finish().await.text(), "fine\n");
    let report = tasks.policy_report().unwrap();
    assert_eq!(report.hash, policy::hash(&policy::encode(&hub.policy))[..]);
    assert_eq!(report.effective.unwrap().ask, [rule("touch")]);
}

#[tokio::test]
async fn the_last_good_policy_outlives_the_peer() {
    let mut hub = Hub::new();
    hub.policy.deny = vec![rule("touch")];
    hub.policy.sequence = 5;
    drop(hub.tasks());
    // After the restart the hub's policy is an older one, then somebody else's: what was good stays in force.
    let good = hub.policy.clone();
    hub.policy.sequence = 4;
    hub.policy.deny.clear();
    let tasks = hub.tasks_without_policy();
    assert!(tasks.set_policy(&hub.signed_policy()).is_err());
    let forged = SecretKey::from_seed([9; 32]).seal(Domain::Policy, &hub.policy);
    assert!(tasks.set_policy(&forged).is_err());
    let report = tasks.policy_report().unwrap();
    assert!(report.problem.contains("not the hub's"), "{}", report.problem);
    assert_eq!(hub.start(&tasks, &hub.request(argv(&["touch", "x"]))).await.rejected().await.code, "stale_policy");
    hub.policy = good;
    assert_eq!(hub.start(&tasks, &hub.request(argv(&["touch", "x"]))).await.rejected().await.code, "policy_denied");
    assert_eq!(hub.start(&tasks, &hub.request(argv(&["true"]))).await.finish().await.response.state, "succeeded");
}

#[tokio::test]
async fn a_result_has_digests_of_everything_that_was_printed() {
    let mut hub = Hub::new();
    // Little of it is kept.
    hub.bounds = cortex_peer::task::Bounds { head_bytes: 100, tail_bytes: 100, window_bytes: 1 << 20 };
    let tasks = hub.tasks();
    let over = hub.script(&tasks, "seq 1 10000; echo no >&2").await.finish().await;
    let printed: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(over.response.stdout_digest, blake3::hash(printed.as_bytes()).as_bytes()[..]);
    assert_eq!(over.response.stderr_digest, blake3::hash(b"no\n").as_bytes()[..]);
}

#[tokio::test]
async fn everything_that_ran_is_in_the_log_with_its_end() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let ran = hub.script(&tasks, "exit 3").await.finish().await;
    assert_eq!(hub.start(&tasks, &hub.request(argv(&["/no/such/program"]))).await.rejected().await.code, "cannot_start");
    let runs = hub.script(&tasks, "sleep 100").await;
    while tasks.running() == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // The peer dies with a task, and comes back.
    tasks.end_now();
    drop((runs, tasks));
    let folder = hub.path().join("state/log");
    let read = || {
        let (mut walk, mut records) = (Walk::default(), Vec::new());
        walk.go_on(&folder, |record, _, hash| {
            records.push((record.clone(), *hash));
            Ok(())
        })
        .unwrap();
        assert_eq!(walk.verdict().fault, None);
        records
    };
    let records = read();
    let starts: Vec<_> = records.iter().filter(|(record, _)| matches!(record.what, What::Start(_))).collect();
    assert_eq!(starts[0].1, ran.response.log_hash[..]);
    let ends: Vec<_> = records
        .iter()
        .filter_map(|(record, _)| match &record.what {
            What::End(end) => Some((end.state.clone(), end.exit_code)),
            _ => None,
        })
        .collect();
    assert_eq!(ends[0], (State::Failed.name().into(), Some(3)));
    let What::Start(start) = &starts[0].0.what else { panic!("a start") };
    assert_eq!((start.script.as_str(), start.sandbox.as_str()), ("exit 3", "permissive"));
}
