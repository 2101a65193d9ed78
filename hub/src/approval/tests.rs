use super::*;
use crate::{
    record::{CommandRule, MemberRole, SandboxPolicy, TaskSpec, tables::EVENTS},
    task::DispatchRequest,
    testing::{Call, START_MS, Site},
};

const MINUTE_MS: i64 = 60_000;

fn code<T, E: Failure>(outcome: Result<T, E>) -> Option<&'static str> {
    outcome.err().map(|error| error.code())
}

fn rule(words: &str) -> CommandRule {
    CommandRule { prefix: words.split(' ').map(str::to_owned).collect(), ..CommandRule::default() }
}

fn run(script: &str) -> DispatchRequest {
    DispatchRequest {
        node: None,
        spec: TaskSpec { script: Some(script.into()), ..TaskSpec::default() },
        queue_timeout_ms: 0,
        pool: false,
        selector: None,
    }
}

/// A session with a node whose policy asks before `git push` and `deploy`.
async fn asking(site: &Site, owner: &Actor) -> (cortex_wire::id::SessionId, cortex_wire::id::NodeId) {
    let (session, node) = site.workplace(owner, 1).await;
    let policy = SandboxPolicy { ask: vec![rule("git push"), rule("deploy")], ..SandboxPolicy::default() };
    site.hub.set_policy(owner, node, policy, None).await.unwrap();
    site.mesh.calls();
    (session, node)
}

async fn dispatch(site: &Site, actor: &Actor, session: cortex_wire::id::SessionId, script: &str) -> Task {
    site.dispatch(actor, session, run(script), None).await.unwrap().task
}

#[tokio::test]
async fn a_task_waits_for_a_yes_and_then_goes_to_its_node() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = asking(&site, &ann).await;
    let free = site.mesh.free(node);
    let task = dispatch(&site, &ann, session, "git push").await;
    let asked = task.approval.clone().unwrap();
    assert_eq!((task.state, asked.code.as_str(), asked.expires_at_ms), (State::AwaitingApproval, "policy_ask", START_MS + 10 * MINUTE_MS));
    assert_eq!(site.mesh.free(node), free, "it takes no slot");
    assert_eq!(site.hub.approvals(&ann).await.unwrap().len(), 1);
    let events = site.hub.db.read(move |tx| EVENTS.list(tx, &Span::under(session), Order::Ascending, 99)).await.unwrap();
    let kinds: Vec<_> = events.into_iter().map(|event| (event.kind, event.data["state"].clone())).collect();
    let states: Vec<_> = kinds.iter().filter(|(kind, _)| kind == "task").map(|(_, state)| state.as_str().unwrap()).collect();
    assert_eq!(states, ["queued", "awaiting_approval"]);
    assert!(kinds.iter().any(|(kind, _)| kind == "approval"));
    site.mesh.calls();
    let task = site.hub.approve(&ann, task.id, Reach::Once, vec![]).await.unwrap();
    assert_eq!(task.state, State::Queued);
    assert_eq!(site.mesh.calls(), [Call::Deliver { task: task.id, leased: false }]);
    assert_eq!(site.hub.approvals(&ann).await.unwrap(), []);
    let leased = site.hub.lease(task.id).await.unwrap();
    let grant = leased.approval.unwrap().grant.unwrap();
    assert_eq!((leased.state, grant.by, grant.reach), (State::Leased, ann.user, Reach::Once));
    assert_eq!(code(site.hub.approve(&ann, task.id, Reach::Once, vec![]).await), Some("not_waiting"));
    // It was for that task.
    assert_eq!(dispatch(&site, &ann, session, "git push").await.state, State::AwaitingApproval);
    assert_eq!(dispatch(&site, &ann, session, "git pull").await.state, State::Leased);
}

#[tokio::test]
async fn a_no_and_silence_both_mean_no() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, _) = asking(&site, &ann).await;
    let task = dispatch(&site, &ann, session, "git push").await;
    let task = site.hub.deny(&ann, task.id, "not on a Friday\u{7}").await.unwrap();
    assert_eq!(
        (task.state, task.code.as_deref(), task.reason.as_deref()),
        (State::Rejected, Some("approval_denied"), Some("ann said no: not on a Friday"))
    );
    assert_eq!(task.approval.unwrap().denied_by, Some(ann.user));

    let spec = TaskSpec { approval_timeout_ms: Some(5_000), ..run("git push").spec };
    let task = site.dispatch(&ann, session, DispatchRequest { spec: spec.clone(), ..run("") }, None).await.unwrap().task;
    site.pass(4_999);
    assert!(site.hub.expire_approval(task.id).await.is_err());
    assert!(site.hub.expire(task.id).await.is_err(), "it does not wait for its node");
    site.pass(1);
    let task = site.hub.expire_approval(task.id).await.unwrap();
    assert_eq!((task.state, task.code.as_deref()), (State::Expired, Some("approval_timeout")));
    assert_eq!(code(site.hub.approve(&ann, task.id, Reach::Once, vec![]).await), Some("not_waiting"));
    for ms in [0, LONGEST_MS + 1] {
        let spec = TaskSpec { approval_timeout_ms: Some(ms), ..spec.clone() };
        assert_eq!(code(site.dispatch(&ann, session, DispatchRequest { spec, ..run("") }, None).await), Some("malformed_task"));
    }
    let task = dispatch(&site, &ann, session, "git push").await;
    assert_eq!(site.hub.cancel(&ann, task.id).await.unwrap().state, State::Cancelled);
    assert_eq!(site.hub.approvals(&ann).await.unwrap(), []);
}

#[tokio::test]
async fn only_people_who_own_the_node_or_run_the_hub_answer() {
    let site = Site::new().await;
    let (ann, bob, root, eve) = (site.member("ann").await, site.member("bob").await, site.admin().await, site.member("eve").await);
    let (session, _) = asking(&site, &ann).await;
    site.hub.add_member(&ann, session, "bob", MemberRole::Member).await.unwrap();
    let task = dispatch(&site, &bob, session, "git push").await.id;
    let all = [Scope::Read, Scope::Dispatch, Scope::Manage, Scope::Admin];
    for person in [&ann, &root] {
        for picked in 0..1_u8 << all.len() {
            let scopes = all.into_iter().enumerate().filter(|(at, _)| picked & (1 << at) != 0).map(|(_, scope)| scope).collect::<Vec<_>>();
            let token = Actor { token: Some("t".into()), login: None, via: "api".into(), scopes, ..person.clone() };
            assert!(site.hub.approve(&token, task, Reach::Once, vec![]).await.is_err());
            assert!(site.hub.deny(&token, task, "").await.is_err());
        }
        let mcp = Actor { via: "mcp".into(), ..person.clone() };
        assert_eq!(code(site.hub.approve(&mcp, task, Reach::Once, vec![]).await), Some("forbidden"));
    }
    assert_eq!(code(site.hub.approve(&bob, task, Reach::Once, vec![]).await), Some("forbidden"));
    assert_eq!(code(site.hub.approve(&eve, task, Reach::Once, vec![]).await), Some("not_found"));
    let seen = async |actor: &Actor| site.hub.approvals(actor).await.unwrap().iter().map(|waiting| waiting.may_answer).collect::<Vec<_>>();
    assert_eq!((seen(&ann).await, seen(&bob).await, seen(&root).await, seen(&eve).await), (vec![true], vec![false], vec![true], vec![]));
    assert_eq!(site.hub.approve(&root, task, Reach::Once, vec![]).await.unwrap().state, State::Queued);
}

#[tokio::test]
async fn a_remembered_yes_counts_for_what_it_was_given_for_until_it_ends() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = asking(&site, &ann).await;
    let other = site.session(&ann, &[node]).await;
    let state = async |session, script: &str| dispatch(&site, &ann, session, script).await.state;
    let yes = async |script: &str, reach, prefix: &[&str]| {
        let task = dispatch(&site, &ann, session, script).await;
        site.hub.approve(&ann, task.id, reach, prefix.iter().map(|word| (*word).to_owned()).collect()).await
    };
    yes("git push", Reach::HalfHour, &[]).await.unwrap();
    assert_eq!(state(session, "git push").await, State::Leased);
    assert_eq!(state(session, "git push origin").await, State::AwaitingApproval);
    assert_eq!(state(other, "git push").await, State::AwaitingApproval);
    site.pass(30 * MINUTE_MS + 1);
    assert_eq!(state(session, "git push").await, State::AwaitingApproval);

    let kept = yes("deploy now", Reach::Session, &[]).await.unwrap();
    site.pass(600 * MINUTE_MS);
    assert_eq!(state(session, "deploy now").await, State::Leased);
    assert_eq!(site.hub.grants(&ann).await.unwrap().iter().map(|grant| grant.id).collect::<Vec<_>>(), [kept.id]);

    assert_eq!(code(yes("git push a", Reach::Prefix, &["deploy"]).await), Some("approval_unfit"));
    assert_eq!(code(yes("git push a", Reach::Prefix, &[]).await), Some("invalid"));
    yes("git push a", Reach::Prefix, &["git", "push"]).await.unwrap();
    assert_eq!(state(session, "cd x && git push b").await, State::Leased);
    assert_eq!(state(session, "git push; deploy").await, State::AwaitingApproval);

    // Queued by a yes that is taken back: it is asked about again.
    crate::hub::lock(&site.mesh.slots).insert(node, 0);
    let queued = dispatch(&site, &ann, session, "deploy now").await;
    assert_eq!(queued.state, State::Queued);
    let eve = site.member("eve").await;
    assert_eq!(code(site.hub.revoke_grant(&eve, kept.id).await), Some("not_found"));
    site.hub.revoke_grant(&ann, kept.id).await.unwrap();
    assert_eq!(code(site.hub.revoke_grant(&ann, kept.id).await), Some("not_found"));
    assert_eq!(site.hub.lease(queued.id).await.unwrap().state, State::AwaitingApproval);
    crate::hub::lock(&site.mesh.slots).insert(node, 8);

    // Under another policy no yes counts any more, and is forgotten.
    assert_eq!(site.hub.grants(&ann).await.unwrap().len(), 1);
    let policy = SandboxPolicy { ask: vec![rule("git push"), rule("deploy"), rule("x")], ..SandboxPolicy::default() };
    site.hub.set_policy(&ann, node, policy, None).await.unwrap();
    assert_eq!(state(session, "git push b").await, State::AwaitingApproval);
    assert_eq!(site.hub.grants(&ann).await.unwrap(), []);
    site.hub.sweep().await.unwrap();
    assert_eq!(site.hub.db.read(|tx| GRANTS.list(tx, &Span::all(), Order::Ascending, 9)).await.unwrap(), []);
}

#[tokio::test]
async fn a_policy_that_changes_while_a_task_is_queued_counts() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    crate::hub::lock(&site.mesh.slots).insert(node, 0);
    let task = dispatch(&site, &ann, session, "git push").await;
    assert_eq!(task.state, State::Queued);
    let policy = SandboxPolicy { ask: vec![rule("git")], ..SandboxPolicy::default() };
    site.hub.set_policy(&ann, node, policy.clone(), None).await.unwrap();
    assert_eq!(site.hub.lease(task.id).await.unwrap().state, State::AwaitingApproval);
    site.hub.approve(&ann, task.id, Reach::Once, vec![]).await.unwrap();
    // The yes was given under that policy; this is another one.
    site.hub.set_policy(&ann, node, SandboxPolicy { task_slots: 5, ..policy }, None).await.unwrap();
    assert_eq!(site.hub.lease(task.id).await.unwrap().state, State::AwaitingApproval);
    site.hub.set_policy(&ann, node, SandboxPolicy::default(), None).await.unwrap();
    site.hub.approve(&ann, task.id, Reach::Once, vec![]).await.unwrap();
    assert_eq!(site.hub.lease(task.id).await.unwrap().state, State::Leased);
}

#[tokio::test]
async fn a_lease_that_is_refused_because_of_the_policy_is_given_again_once() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, _) = site.workplace(&ann, 1).await;
    let task = dispatch(&site, &ann, session, "true").await;
    assert_eq!(site.hub.retry_policy(task.id, task.fence + 1).await.unwrap(), None);
    let again = site.hub.retry_policy(task.id, task.fence).await.unwrap().unwrap();
    assert_eq!(again.state, State::Queued);
    let leased = site.hub.lease(task.id).await.unwrap();
    assert_eq!((leased.state, leased.fence), (State::Leased, task.fence + 1));
    assert_eq!(site.hub.retry_policy(task.id, leased.fence).await.unwrap(), None);
}

#[tokio::test]
async fn what_programs_ask_for_is_looked_at_more_closely() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let agent = Actor { token: Some("t".into()), login: None, via: "api".into(), ..ann.clone() };
    assert_eq!(dispatch(&site, &ann, session, "sudo reboot").await.state, State::Leased);
    let task = dispatch(&site, &agent, session, "sudo reboot").await;
    assert_eq!((task.state, task.approval.unwrap().code.as_str()), (State::AwaitingApproval, "dangerous_command"));
    assert_eq!(dispatch(&site, &agent, session, "make test").await.state, State::Leased);
    let trusting = SandboxPolicy { ask_dangerous: false, ..SandboxPolicy::default() };
    site.hub.set_policy(&ann, node, trusting, None).await.unwrap();
    assert_eq!(dispatch(&site, &agent, session, "sudo reboot").await.state, State::Leased);
}

#[tokio::test]
async fn questions_and_answers_outlive_the_hub() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = asking(&site, &ann).await;
    let kept = dispatch(&site, &ann, session, "deploy").await;
    site.hub.approve(&ann, kept.id, Reach::Session, vec![]).await.unwrap();
    let waiting = dispatch(&site, &ann, session, "git push").await;
    let site = site.restart().await;
    crate::hub::lock(&site.mesh.slots).insert(node, 8);
    assert_eq!(site.hub.approvals(&ann).await.unwrap().iter().map(|waiting| waiting.task.id).collect::<Vec<_>>(), [waiting.id]);
    assert_eq!(dispatch(&site, &ann, session, "deploy").await.state, State::Leased);
    assert_eq!(site.hub.approve(&ann, waiting.id, Reach::Once, vec![]).await.unwrap().state, State::Queued);
    // What waits when its session goes is cancelled with it.
    let waiting = dispatch(&site, &ann, session, "git push").await;
    site.hub.delete_session(&ann, session).await.unwrap();
    assert_eq!(site.hub.find_task(waiting.id).await.unwrap(), None);
    assert_eq!(site.hub.approvals(&ann).await.unwrap(), []);
    assert_eq!(site.hub.grants(&ann).await.unwrap(), []);
}
