use super::*;
use crate::{
    record::Mode,
    testing::{Call, Site, node_id},
};

fn code<T, E: Failure>(outcome: Result<T, E>) -> Option<&'static str> {
    outcome.err().map(|error| error.code())
}

fn rule(words: &str) -> CommandRule {
    CommandRule { prefix: words.split(' ').map(str::to_owned).collect(), ..CommandRule::default() }
}

#[tokio::test]
async fn a_policy_grows_its_version_only_when_it_changes() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    let first = site.hub.policy_of(node).await.unwrap().unwrap();
    assert_eq!((first.task_slots, first.sequence, first.mode(), first.ask_dangerous), (64, 1, schema::SandboxMode::Permissive, true));
    site.mesh.calls();
    let policy = SandboxPolicy { mode: Mode::Strict, deny: vec![rule("rm")], sequence: 0, ..SandboxPolicy::default() };
    for _ in 0..2 {
        let node = site.hub.set_policy(&ann, node, policy.clone(), None).await.unwrap();
        assert_eq!((node.policy.sequence, node.policy.mode), (2, Mode::Strict));
    }
    assert_eq!(site.mesh.calls(), [Call::NodeChanged(node)]);
    let long = CommandRule { prefix: vec!["x".repeat(2000)], ..CommandRule::default() };
    for bad in [
        SandboxPolicy { task_slots: 0, ..policy.clone() },
        SandboxPolicy { allow: vec![CommandRule::default()], ..policy.clone() },
        SandboxPolicy { deny: vec![policy.deny[0].clone(); limits::POLICY_RULES + 1], ..policy.clone() },
        SandboxPolicy { ask: vec![long; 20], ..policy.clone() },
        SandboxPolicy { ask: vec![CommandRule { matching: vec!["ls".into()], ..rule("git push") }], ..policy.clone() },
        SandboxPolicy { ask: vec![CommandRule { not_matching: vec!["git push -f".into()], ..rule("git push") }], ..policy.clone() },
        SandboxPolicy { ask: vec![CommandRule { matching: vec!["git push".into(); EXAMPLES + 1], ..rule("git push") }], ..policy.clone() },
    ] {
        let refused = site.hub.set_policy(&ann, node, bad, None).await.unwrap_err();
        assert_eq!(refused.code(), "invalid", "{refused}");
    }
    let explained = CommandRule { matching: vec!["git push -f".into()], not_matching: vec!["git pull".into()], ..rule("git push") };
    let policy = SandboxPolicy { ask: vec![explained], ..policy };
    assert_eq!(site.hub.set_policy(&ann, node, policy.clone(), None).await.unwrap().policy.ask, policy.ask);
    assert_eq!(site.hub.policy_of(node_id(9)).await.unwrap(), None);
}

#[tokio::test]
async fn no_token_changes_a_policy_whatever_its_scopes() {
    let site = Site::new().await;
    let (ann, root, viewer) = (site.member("ann").await, site.admin().await, site.user("vic", Role::Viewer).await);
    let node = site.node(&ann, 1).await;
    let all = [Scope::Read, Scope::Dispatch, Scope::Manage, Scope::Admin];
    let open = SandboxPolicy { ask_dangerous: false, ..SandboxPolicy::default() };
    for person in [&ann, &root] {
        for picked in 0..1_u8 << all.len() {
            let scopes = all.into_iter().enumerate().filter(|(at, _)| picked & (1 << at) != 0).map(|(_, scope)| scope).collect::<Vec<_>>();
            let token = Actor { token: Some("t".into()), login: None, via: "api".into(), scopes, ..person.clone() };
            assert!(site.hub.set_policy(&token, node, open.clone(), None).await.is_err(), "{:?}", token.scopes);
        }
        let mcp = Actor { via: "mcp".into(), ..person.clone() };
        assert_eq!(code(site.hub.set_policy(&mcp, node, open.clone(), None).await), Some("forbidden"));
    }
    assert_eq!(code(site.hub.set_policy(&viewer, node, open.clone(), None).await), Some("not_found"));
    assert_eq!(site.hub.node_policy(&ann, node).await.unwrap().policy, SandboxPolicy::default());
    assert_eq!(site.hub.set_policy(&ann, node, open.clone(), None).await.unwrap().policy.sequence, 2);
    assert_eq!(site.hub.set_policy(&root, node, SandboxPolicy::default(), None).await.unwrap().policy.sequence, 3);
}

#[tokio::test]
async fn of_two_who_change_a_policy_at_once_one_is_told() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    let with = |words: &str| SandboxPolicy { deny: vec![rule(words)], ..SandboxPolicy::default() };
    site.hub.set_policy(&ann, node, with("a"), Some(1)).await.unwrap();
    let late = site.hub.set_policy(&ann, node, with("b"), Some(1)).await.unwrap_err();
    assert!(matches!(late, PolicyError::Changed { now: 2, expected: 1 }), "{late}");
    assert_eq!(site.hub.node_policy(&ann, node).await.unwrap().policy.deny, [rule("a")]);
}

#[tokio::test]
async fn a_change_is_kept_with_its_difference_which_the_audit_row_vouches_for() {
    let site = Site::new().await;
    let (ann, root) = (site.member("ann").await, site.admin().await);
    let node = site.node(&ann, 1).await;
    let first = SandboxPolicy { deny: vec![rule("a"), rule("b")], ..SandboxPolicy::default() };
    site.hub.set_policy(&ann, node, first, None).await.unwrap();
    let second = SandboxPolicy { deny: vec![rule("b"), rule("c")], task_slots: 2, ..SandboxPolicy::default() };
    site.hub.set_policy(&root, node, second, None).await.unwrap();
    let changes = site.hub.policy_changes(&ann, node).await.unwrap();
    assert_eq!(changes.iter().map(|change| (change.version, change.by)).collect::<Vec<_>>(), [(3, root.user), (2, ann.user)]);
    let removed_a = json!({ "added": [{ "prefix": ["c"], "reason": "" }], "removed": [{ "prefix": ["a"], "reason": "" }] });
    assert_eq!(changes[0].difference, json!({ "deny": removed_a, "task_slots": { "before": 64, "after": 2 } }));
    let rows = site.hub.audit_rows(&root, None, Order::Ascending, 100).await.unwrap();
    let row = rows.iter().rev().find(|row| row.verb == "node.policy").unwrap();
    assert_eq!(row.digest.0, *blake3::hash(changes[0].difference.to_string().as_bytes()).as_bytes());
    for number in 0..=KEPT_CHANGES as u32 {
        let policy = SandboxPolicy { task_slots: 10 + number, ..SandboxPolicy::default() };
        site.hub.set_policy(&ann, node, policy, None).await.unwrap();
    }
    assert_eq!(site.hub.policy_changes(&ann, node).await.unwrap().len(), KEPT_CHANGES);
    site.hub.delete_node(&ann, node).await.unwrap();
    assert_eq!(site.hub.db.read(|tx| POLICY_CHANGES.list(tx, &Span::all(), Order::Ascending, 9)).await.unwrap(), []);
}

#[tokio::test]
async fn hosts_that_the_node_would_refuse_are_refused_here_with_their_place() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    let with =
        |hosts: &[&str]| SandboxPolicy { network: hosts.iter().map(|host| (*host).to_owned()).collect(), ..SandboxPolicy::default() };
    site.hub.set_policy(&ann, node, with(&["github.com:443", "*.crates.io", "192.0.2.1", "[2001:db8::1]:22", "*"]), None).await.unwrap();
    for bad in ["https://github.com", "a b", "", "a/b", "x:0", "*x"] {
        let error = site.hub.set_policy(&ann, node, with(&["ok.example", bad]), None).await.unwrap_err();
        assert_eq!(error.pointer(), Some("/network/1"), "{bad}: {error}");
    }
    let many = vec!["a.example"; cortex_wire::limits::POLICY_RULES + 1];
    assert_eq!(site.hub.set_policy(&ann, node, with(&many), None).await.unwrap_err().pointer(), Some("/network"));
}

#[tokio::test]
async fn what_is_in_force_is_what_the_node_says() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    let row = site.hub.node_policy(&ann, node).await.unwrap();
    assert_eq!(row.in_force, None);
    let mut effective = schema::SandboxPolicy::from(&row.policy);
    effective.task_slots = 3;
    let hash = bytes::Bytes::copy_from_slice(&hash_of(&row).0);
    let report = schema::PolicyReport { hash, effective: Some(effective), problem: "a\u{7}b".into() };
    site.hub.note_policy(node, &report).await.unwrap();
    let in_force = site.hub.node_policy(&ann, node).await.unwrap().in_force.unwrap();
    assert_eq!((in_force.hash, in_force.policy.task_slots, in_force.problem.as_deref()), (hash_of(&row), 3, Some("ab")));
    site.hub.note_policy(node, &schema::PolicyReport::default()).await.unwrap();
    site.hub.note_policy(node_id(9), &report).await.unwrap();
    assert_eq!(site.hub.node_policy(&ann, node).await.unwrap().in_force, Some(in_force));
}
