use super::*;
use crate::{
    failure::Failure,
    output::Stream,
    testing::{Call, Site, response, signed},
};
use cortex_wire::task::State;

fn code<T, E: Failure>(outcome: Result<T, E>) -> Option<&'static str> {
    outcome.err().map(|error| error.code())
}

#[tokio::test]
async fn who_may_do_what_in_a_session() {
    let site = Site::new().await;
    let hub = &site.hub;
    let (ann, member, reader) = (site.member("ann").await, site.member("member").await, site.member("reader").await);
    let stranger = site.user("stranger", crate::record::Role::Admin).await;
    let (session, node) = site.workplace(&ann, 1).await;
    hub.add_member(&ann, session, "member", MemberRole::Member).await.unwrap();
    hub.add_member(&ann, session, "reader", MemberRole::Viewer).await.unwrap();
    let task = site.run(&ann, session).await.unwrap().id;
    let (no, none) = (Some("forbidden"), Some("not_found"));
    for (actor, number, reads, works, owns) in
        [(&member, 2, None, None, no), (&reader, 3, None, no, no), (&stranger, 4, none, none, none), (&ann, 5, None, None, None)]
    {
        let name = &actor.name;
        let own = site.node(actor, number).await;
        assert_eq!(code(hub.session(actor, session).await), reads, "{name} reads");
        assert_eq!(hub.sessions(actor).await.unwrap().len(), usize::from(reads.is_none()), "{name} lists");
        assert_eq!(code(hub.session_events(actor, session, 0, 9).await), reads, "{name} reads events");
        assert_eq!(code(hub.follow_session(actor, session, None).await), reads, "{name} follows");
        assert_eq!(code(hub.messages(actor, session, 0, 9).await), reads, "{name} reads messages");
        assert_eq!(code(hub.tasks(actor, session, None, 9).await), reads, "{name} lists tasks");
        assert_eq!(code(hub.task(actor, task).await), reads, "{name} reads a task");
        assert_eq!(code(hub.read_output(actor, task, Stream::Stdout, 0, 9).await), reads, "{name} reads output");
        assert_eq!(code(hub.post_message(actor, session, "hello").await), works, "{name} writes");
        assert_eq!(code(site.run(actor, session).await), works, "{name} runs");
        assert_eq!(code(hub.cancel(actor, task).await), works, "{name} cancels");
        assert_eq!(code(hub.attach_node(actor, session, own).await), works, "{name} attaches");
        if works.is_none() {
            hub.detach_node(actor, session, own).await.unwrap();
        }
        assert_eq!(code(hub.update_session(actor, session, SessionUpdate::default()).await), owns, "{name} updates");
        assert_eq!(code(hub.add_member(actor, session, "reader", MemberRole::Viewer).await), owns, "{name} adds");
        if owns.is_some() {
            assert_eq!(code(hub.delete_session(actor, session).await), owns, "{name} deletes");
            // Everybody may leave.
            let removes = if name == "reader" { None } else { owns };
            assert_eq!(code(hub.remove_member(actor, session, "reader").await), removes, "{name} removes");
        }
        hub.add_member(&ann, session, "reader", MemberRole::Viewer).await.unwrap();
    }
    // A node of somebody else cannot be attached, and there is no such thing as one that nobody sees.
    let theirs = site.node(&stranger, 6).await;
    assert_eq!(code(hub.attach_node(&ann, session, theirs).await), none);
    assert_eq!(code(hub.add_member(&ann, session, "nobody", MemberRole::Viewer).await), none);
    assert_eq!(code(hub.add_member(&ann, session, "ann", MemberRole::Viewer).await), Some("invalid"));
    assert!(hub.session(&ann, session).await.unwrap().nodes.contains(&node));
}

#[tokio::test]
async fn whoever_is_removed_hears_no_more() {
    let site = Site::new().await;
    let (ann, bob) = (site.member("ann").await, site.member("bob").await);
    let session = site.session(&ann, &[]).await;
    site.hub.add_member(&ann, session, "bob", MemberRole::Viewer).await.unwrap();
    let mut follower = site.hub.follow_session(&bob, session, None).await.unwrap();
    site.hub.remove_member(&ann, session, "bob").await.unwrap();
    site.hub.post_message(&ann, session, "about bob").await.unwrap();
    assert_eq!(follower.next().await.unwrap().unwrap().kind, MEMBER_REMOVED);
    assert_eq!(follower.next().await.unwrap(), None);
    assert_eq!(code(site.hub.session(&bob, session).await), Some("not_found"));
    assert!(site.hub.sessions(&bob).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_log_is_numbered_and_holds_what_happened() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    let session = site.session(&ann, &[node]).await;
    site.hub.attach_node(&ann, session, node).await.unwrap();
    site.hub.post_message(&ann, session, "one\ntwo").await.unwrap();
    site.hub.detach_node(&ann, session, node).await.unwrap();
    assert_eq!(code(site.hub.detach_node(&ann, session, node).await), Some("not_found"));
    let update = SessionUpdate { title: Some("new".into()), status: Some(SessionStatus::Archived) };
    site.hub.update_session(&ann, session, update).await.unwrap();
    let events = site.hub.session_events(&ann, session, 0, 99).await.unwrap();
    let shown: Vec<_> = events.iter().map(|event| (event.seq, event.kind.as_str())).collect();
    assert_eq!(shown, [(1, "node_attached"), (2, "message"), (3, "node_detached"), (4, "session_updated")]);
    assert_eq!(events[1].data["text"], "one\ntwo");
    assert_eq!(site.hub.messages(&ann, session, 0, 9).await.unwrap(), events[1..2]);
    assert_eq!(site.hub.session_events(&ann, session, 2, 1).await.unwrap(), events[2..3]);
    assert_eq!(site.hub.last_event(&ann, session).await.unwrap(), 4);
    for bad in [String::new(), " \n".into(), "x".repeat(MESSAGE_BYTES + 1)] {
        assert_eq!(code(site.hub.post_message(&ann, session, &bad).await), Some("invalid"));
    }
    let row = site.hub.session(&ann, session).await.unwrap();
    assert_eq!((row.title.as_str(), row.status, row.epoch), ("new", SessionStatus::Archived, 2));
}

#[tokio::test]
async fn a_deleted_session_takes_its_tasks_with_it() {
    let site = Site::new().await;
    let ann = site.admin().await;
    let (session, node) = site.workplace(&ann, 1).await;
    let done = site.running(&ann, session).await;
    site.hub.outputs.append(done.id, Stream::Stdout, 0, vec![b'x'; 10_000].into()).await.unwrap();
    let word = response(&done, 0);
    site.hub.finish(done.id, node, &word, &signed(1, &word)).await.unwrap();
    let running = site.running(&ann, session).await;
    let folder = site.path().join("output").join(done.id.to_string());
    assert!(folder.exists());
    let mut follower = site.hub.follow_session(&ann, session, None).await.unwrap();
    site.mesh.calls();
    site.hub.delete_session(&ann, session).await.unwrap();
    assert_eq!(site.mesh.calls(), [Call::Cancel(running.id), Call::SessionUnused { session, deleted: true }]);
    while folder.exists() {
        tokio::task::yield_now().await;
    }
    while follower.next().await.unwrap().is_some() {}
    assert_eq!(site.hub.find_task(done.id).await.unwrap(), None);
    assert_eq!(code(site.hub.task(&ann, running.id).await), Some("not_found"));
    assert_eq!(code(site.hub.session(&ann, session).await), Some("not_found"));
    assert!(site.hub.sessions(&ann).await.unwrap().is_empty());
    // The task that still runs goes with its end.
    let word = response(&running, 0);
    assert_eq!(site.hub.finish(running.id, node, &word, &signed(1, &word)).await.unwrap().state, State::Succeeded);
    assert_eq!(site.hub.find_task(running.id).await.unwrap(), None);
    let id = running.id;
    assert_eq!(site.hub.db.read(move |tx| OUTPUTS.get(tx, &id)).await.unwrap(), None);
    assert_eq!(site.hub.open_tasks_of(node).await.unwrap(), []);
    assert_eq!(site.hub.verify_audit(&ann).await.unwrap().broken, None);
}

#[tokio::test]
async fn relays_are_told_when_no_node_may_ask_for_a_sessions_contents_any_more() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (one, two) = (site.node(&ann, 1).await, site.node(&ann, 2).await);
    let session = site.session(&ann, &[one, two]).await;
    let told = || -> Vec<(SessionId, bool)> {
        let unused = |call| match call {
            Call::SessionUnused { session, deleted } => Some((session, deleted)),
            _ => None,
        };
        site.mesh.calls().into_iter().filter_map(unused).collect()
    };
    site.hub.detach_node(&ann, session, one).await.unwrap();
    assert_eq!(told(), [], "another one is left");
    site.hub.detach_node(&ann, session, two).await.unwrap();
    assert_eq!(told(), [(session, false)]);
    site.hub.attach_node(&ann, session, one).await.unwrap();
    let archived = SessionUpdate { status: Some(SessionStatus::Archived), ..SessionUpdate::default() };
    site.hub.update_session(&ann, session, archived).await.unwrap();
    assert_eq!(told(), [(session, false)]);
    site.hub.delete_session(&ann, session).await.unwrap();
    assert_eq!(told(), [(session, true)]);
}
