use super::*;
use crate::{
    failure::Failure,
    presence::{Connection, Reach},
    record::MemberRole,
    testing::{Call, Site, node_id},
};
use cortex_wire::task::State;

fn code<T, E: Failure>(outcome: Result<T, E>) -> Option<&'static str> {
    outcome.err().map(|error| error.code())
}

#[tokio::test]
async fn who_may_do_what_with_a_node() {
    let site = Site::new().await;
    let hub = &site.hub;
    let (ann, member, reader, shared, stranger) = (
        site.member("ann").await,
        site.member("member").await,
        site.member("reader").await,
        site.member("shared").await,
        site.user("stranger", crate::record::Role::Admin).await,
    );
    let (session, node) = site.workplace(&ann, 1).await;
    hub.add_member(&ann, session, "member", MemberRole::Member).await.unwrap();
    hub.add_member(&ann, session, "reader", MemberRole::Viewer).await.unwrap();
    hub.share_node(&ann, node, "shared").await.unwrap();
    let forbidden = Some("forbidden");
    let not_found = Some("not_found");
    for (actor, sees, attaches, runs, manages) in [
        (&member, None, forbidden, None, forbidden),
        (&reader, None, forbidden, forbidden, forbidden),
        (&shared, None, None, not_found, forbidden),
        (&stranger, not_found, not_found, not_found, not_found),
        (&ann, None, None, None, None),
    ] {
        let name = &actor.name;
        assert_eq!(code(hub.node(actor, node).await), sees, "{name} sees");
        assert_eq!(hub.nodes(actor).await.unwrap().len(), usize::from(sees.is_none()), "{name} lists");
        assert_eq!(code(hub.open_tasks(actor, node).await), sees, "{name} sees tasks");
        let own = site.session(actor, &[]).await;
        assert_eq!(code(hub.attach_node(actor, own, node).await), attaches, "{name} attaches");
        assert_eq!(code(site.run(actor, session).await), runs, "{name} runs");
        let update = NodeUpdate { name: Some(format!("of {name}")), ..NodeUpdate::default() };
        assert_eq!(code(hub.update_node(actor, node, update).await), manages, "{name} renames");
        assert_eq!(code(hub.approve_node(actor, node).await), manages, "{name} approves");
        // An administrator may, whoever's the node is.
        let decides = manages.filter(|_| actor.role != crate::record::Role::Admin);
        assert_eq!(code(hub.set_policy(actor, node, SandboxPolicy::default(), None).await), decides, "{name} sets a policy");
        assert_eq!(code(hub.share_node(actor, node, "ann").await), manages, "{name} shares");
        assert_eq!(code(hub.unshare_node(actor, node, "ann").await), manages, "{name} unshares");
        if manages.is_some() {
            assert_eq!(code(hub.revoke_node(actor, node).await), manages, "{name} revokes");
            assert_eq!(code(hub.delete_node(actor, node).await), manages, "{name} deletes");
        }
    }
    hub.unshare_node(&ann, node, "shared").await.unwrap();
    // What they attached before stays until it is detached there: they see it through their session.
    assert!(hub.node(&shared, node).await.is_ok());
    assert_eq!(code(hub.node(&ann, node_id(77)).await), not_found);
}

#[tokio::test]
async fn the_owner_can_take_a_node_out_of_any_session() {
    let site = Site::new().await;
    let (ann, bob) = (site.member("ann").await, site.member("bob").await);
    let node = site.node(&ann, 1).await;
    site.hub.share_node(&ann, node, "bob").await.unwrap();
    let session = site.session(&bob, &[node]).await;
    site.hub.unshare_node(&ann, node, "bob").await.unwrap();
    site.hub.detach_node(&ann, session, node).await.unwrap();
    let session = site.hub.session(&bob, session).await.unwrap();
    assert_eq!((session.nodes.len(), session.epoch), (0, 2));
    assert_eq!(code(site.hub.node(&bob, node).await), Some("not_found"));
}

#[tokio::test]
async fn a_revoked_node_loses_what_it_ran_and_leaves_its_sessions() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let running = site.running(&ann, session).await;
    site.hub.outputs.append(running.id, crate::output::Stream::Stdout, 0, "partial".into()).await.unwrap();
    crate::hub::lock(&site.mesh.slots).insert(node, 0);
    let waiting = site.run(&ann, session).await.unwrap();
    site.mesh.calls();
    let revoked = site.hub.revoke_node(&ann, node).await.unwrap();
    assert_eq!(revoked.standing, Standing::Revoked);
    assert_eq!(site.mesh.calls(), [Call::NodeChanged(node), Call::SessionUnused { session, deleted: false }]);
    assert!(site.hub.session(&ann, session).await.unwrap().nodes.is_empty());
    let running = site.hub.task(&ann, running.id).await.unwrap();
    assert_eq!((running.state, running.stdout_bytes), (State::Lost, 7));
    let output = site.hub.read_output(&ann, running.id, crate::output::Stream::Stdout, 0, 99).await.unwrap();
    assert_eq!(output, crate::output::Piece::Data("partial".into()));
    assert_eq!(site.hub.task(&ann, waiting.id).await.unwrap().state, State::Cancelled);
    assert_eq!(site.hub.open_tasks_of(node).await.unwrap(), []);
    assert_eq!(code(site.hub.attach_node(&ann, session, node).await), Some("invalid"));
    assert_eq!(code(site.hub.approve_node(&ann, node).await), Some("invalid"));
}

#[tokio::test]
async fn a_deleted_node_is_gone_and_its_name_is_free() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (session, node) = site.workplace(&ann, 1).await;
    let task = site.run(&ann, session).await.unwrap();
    site.hub.delete_node(&ann, node).await.unwrap();
    assert_eq!(site.hub.find_node(node).await.unwrap(), None);
    assert!(site.hub.nodes(&ann).await.unwrap().is_empty());
    // What it did is still told.
    assert_eq!(site.hub.task(&ann, task.id).await.unwrap().state, State::Lost);
    // The same machine may come again with a new invite.
    assert_eq!(site.node(&ann, 1).await, node);
    assert_eq!(site.hub.node(&ann, node).await.unwrap().name, "node 1");
}

#[tokio::test]
async fn a_name_is_unique_for_its_owner() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (a, b) = (site.node(&ann, 1).await, site.node(&ann, 2).await);
    let name = |name: &str| NodeUpdate { name: Some(name.into()), ..NodeUpdate::default() };
    assert_eq!(code(site.hub.update_node(&ann, b, name("node 1")).await), Some("invalid"));
    assert_eq!(code(site.hub.update_node(&ann, b, name(" \u{202e} ")).await), Some("invalid"));
    site.hub.update_node(&ann, a, name("other")).await.unwrap();
    assert_eq!(site.hub.update_node(&ann, b, name("node 1")).await.unwrap().name, "node 1");
    let labels = BTreeMap::from([("os\u{1b}".to_owned(), "linux".to_owned())]);
    let labelled = site.hub.update_node(&ann, b, NodeUpdate { labels: Some(labels), ..NodeUpdate::default() }).await.unwrap();
    assert_eq!(labelled.labels, BTreeMap::from([("os".to_owned(), "linux".to_owned())]));
    assert_eq!(labelled.name, "node 1");
}

#[tokio::test]
async fn a_refusal_is_shown_until_the_node_is_back() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    site.pass(1);
    site.hub.note_refusal(node, "bad_version", "too old\u{7}").await.unwrap();
    let row = site.hub.node(&ann, node).await.unwrap();
    assert_eq!(row.refusal.as_ref().unwrap().reason, "too old");
    assert_eq!(site.hub.presence.of(&row).state, Reach::Refused);
    site.pass(59_999);
    site.hub.note_refusal(node, "bad_version", "too old").await.unwrap();
    assert_eq!(site.hub.node(&ann, node).await.unwrap(), row);
    site.hub.node_online(node, Connection { id: 1, relay: None, path: None }).await.unwrap();
    assert_eq!(site.hub.node(&ann, node).await.unwrap().refusal, None);
    site.hub.note_refusal(node_id(9), "x", "y").await.unwrap();
    assert_eq!(site.hub.find_node(node_id(9)).await.unwrap(), None);
}

#[tokio::test]
async fn a_registration_is_written_when_it_says_something_new() {
    let site = Site::new().await;
    let ann = site.admin().await;
    let node = site.node(&ann, 1).await;
    let registration = Registration {
        agent: "cortex-peer 0.2.0".into(),
        capabilities: Capabilities { cpu_count: 4, ..Capabilities::default() },
        ceiling: None,
        observed_address: Some("192.0.2.1:5000".into()),
    };
    let first = site.hub.register_node(node, registration.clone()).await.unwrap().unwrap();
    assert_eq!((first.agent.as_str(), first.capabilities.cpu_count), ("cortex-peer 0.2.0", 4));
    assert_eq!(site.hub.register_node(node, registration.clone()).await.unwrap(), Some(first));
    assert_eq!(site.hub.register_node(node_id(9), registration).await.unwrap(), None);
}
