use cortex_wire::invite as wire;

use super::*;
use crate::{
    record::tables::NODES_OF_USER,
    testing::{NotingMesh, Site, key, node_id, redeem},
};

fn code<T, E: Failure>(outcome: Result<T, E>) -> Option<&'static str> {
    outcome.err().map(|error| error.code())
}

#[tokio::test]
async fn an_invite_reads_as_the_hub_meant_it() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let new = NewInvite { name: " box\u{7} ".into(), approval: true, ephemeral: true, ..NewInvite::default() };
    let issued = site.invite(&ann, new).await;
    assert_eq!(issued.invite.name, "box");
    let (_, terms) = wire::read(&issued.text, site.hub.now_ms()).unwrap();
    assert_eq!((terms.id, terms.hub), (issued.invite.id, site.hub.id()));
    assert_eq!(terms.secret_hash, issued.invite.secret_hash.0);
    assert_eq!(terms.expires_at_ms, site.hub.now_ms() + LIFE_MS);
    assert!(terms.approval && terms.ephemeral);
    for (asked, given) in [(0, SHORTEST_LIFE_MS), (i64::MAX, LONGEST_LIFE_MS), (2 * LIFE_MS, 2 * LIFE_MS)] {
        let issued = site.invite(&ann, NewInvite { expires_in_ms: Some(asked), ..NewInvite::default() }).await;
        assert_eq!(issued.invite.expires_at_ms - site.hub.now_ms(), given);
    }
}

#[tokio::test]
async fn without_a_relay_there_is_no_invite() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::open(dir.path(), crate::hub::HubOptions::default()).await.unwrap();
    let site = Site::new().await;
    let ann = site.member("ann").await;
    assert_eq!(code(hub.create_invite(&ann, NewInvite::default()).await), Some("no_relay"));
    hub.set_mesh(std::sync::Arc::new(NotingMesh::default()));
    assert!(hub.create_invite(&ann, NewInvite::default()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_nodes_that_race_for_an_invite_one_gets_it() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let issued = site.invite(&ann, NewInvite::default()).await;
    let tries = (1..=50).map(|number| {
        let (hub, redeem) = (site.hub.clone(), redeem(&issued, number));
        tokio::spawn(async move { hub.redeem(redeem).await })
    });
    let outcomes: Vec<_> = futures_util::future::join_all(tries).await.into_iter().map(Result::unwrap).collect();
    let bound: Vec<_> = outcomes.iter().flatten().map(|node| node.id).collect();
    assert_eq!(bound.len(), 1);
    assert!(outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(|error| error.code() == "invite_used"));
    let user = ann.user;
    assert_eq!(site.hub.db.read(move |tx| NODES_OF_USER.all_of(tx, &user)).await.unwrap(), bound);
    let invite = site.hub.invite(&ann, issued.invite.id).await.unwrap();
    assert_eq!(invite.used_by, Some(bound[0]));
    assert_eq!(invite.refusals, 49);
    assert_eq!(site.hub.verify_audit(&site.admin().await).await.unwrap().broken, None);
}

#[tokio::test]
async fn a_retry_by_the_same_key_gets_the_same_node() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let issued = site.invite(&ann, NewInvite::default()).await;
    let node = site.redeem(&issued, 1).await.unwrap();
    site.pass(2 * LIFE_MS);
    assert_eq!(site.redeem(&issued, 1).await.unwrap(), node);
    site.hub.check_invite(issued.invite.id, node_id(1)).await.unwrap();
    let site = site.restart().await;
    assert_eq!(site.redeem(&issued, 1).await.unwrap(), node);
    // With another secret it is a stranger, however well it knows the id.
    let guess = Redeem { secret_hash: [9; 32], ..redeem(&issued, 1) };
    assert_eq!(code(site.hub.redeem(guess).await), Some("invite_unknown"));
    // Deleted means gone: the invite does not bring it back.
    site.hub.delete_node(&ann, node.id).await.unwrap();
    assert_eq!(code(site.redeem(&issued, 1).await), Some("invite_used"));
}

#[tokio::test]
async fn every_refusal_has_its_code_and_is_shown_to_the_owner() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let expired = site.invite(&ann, NewInvite { expires_in_ms: Some(SHORTEST_LIFE_MS), ..NewInvite::default() }).await;
    let revoked = site.invite(&ann, NewInvite::default()).await;
    site.hub.revoke_invite(&ann, revoked.invite.id).await.unwrap();
    site.hub.revoke_invite(&ann, revoked.invite.id).await.unwrap();
    let used = site.invite(&ann, NewInvite::default()).await;
    site.redeem(&used, 1).await.unwrap();
    assert_eq!(code(site.hub.revoke_invite(&ann, used.invite.id).await), Some("invite_used"));
    let fresh = site.invite(&ann, NewInvite::default()).await;
    site.pass(SHORTEST_LIFE_MS + 1);

    let guess = Redeem { secret_hash: [0; 32], ..redeem(&fresh, 2) };
    assert_eq!(code(site.hub.redeem(guess).await), Some("invite_unknown"));
    for (issued, number, expected) in
        [(&expired, 2, "invite_expired"), (&revoked, 2, "invite_revoked"), (&used, 2, "invite_used"), (&fresh, 1, "node_owned")]
    {
        assert_eq!(code(site.redeem(issued, number).await), Some(expected));
        let shown = site.hub.invite(&ann, issued.invite.id).await.unwrap().last_refusal.unwrap();
        assert_eq!((shown.code.as_str(), shown.fingerprint), (expected, key(number).public().fingerprint()));
    }
    // Nothing was used up by all that.
    assert!(site.redeem(&fresh, 3).await.is_ok());
    let nowhere = Redeem { invite_id: InviteId::new(1, [0; 10]), ..redeem(&fresh, 4) };
    assert_eq!(code(site.hub.redeem(nowhere).await), Some("invite_unknown"));
}

#[tokio::test]
async fn the_relays_question_is_answered_without_the_secret() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let issued = site.invite(&ann, NewInvite::default()).await;
    let id = issued.invite.id;
    site.hub.check_invite(id, node_id(1)).await.unwrap();
    site.redeem(&issued, 1).await.unwrap();
    site.hub.check_invite(id, node_id(1)).await.unwrap();
    assert_eq!(code(site.hub.check_invite(id, node_id(2)).await), Some("invite_used"));
    assert_eq!(code(site.hub.check_invite(InviteId::new(1, [0; 10]), node_id(2)).await), Some("invite_unknown"));
    assert_eq!(site.hub.invite(&ann, id).await.unwrap().refusals, 1);
    // A loop is one row a minute.
    let _ = site.hub.check_invite(id, node_id(2)).await;
    assert_eq!(site.hub.invite(&ann, id).await.unwrap().refusals, 1);
}

#[tokio::test]
async fn a_node_with_approval_waits_for_its_owner() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let session = site.session(&ann, &[]).await;
    let issued = site.invite(&ann, NewInvite { approval: true, session: Some(session), ..NewInvite::default() }).await;
    let node = site.redeem(&issued, 1).await.unwrap();
    assert_eq!((node.standing, node.approved_at_ms), (Standing::Pending, None));
    assert_eq!(site.hub.session(&ann, session).await.unwrap().nodes, [node.id]);
    assert_eq!(code(site.run(&ann, session).await), Some("node_not_active"));
    let node = site.hub.approve_node(&ann, node.id).await.unwrap();
    assert_eq!(node.standing, Standing::Active);
    // The retry after the approval is told so.
    assert_eq!(site.redeem(&issued, 1).await.unwrap().standing, Standing::Active);
}

#[tokio::test]
async fn names_tell_the_nodes_of_one_owner_apart() {
    let site = Site::new().await;
    let (ann, bob) = (site.member("ann").await, site.member("bob").await);
    let mut names = Vec::new();
    for (owner, wish, number) in [(&ann, "box", 1), (&ann, "box", 2), (&bob, "box", 3), (&ann, "", 4)] {
        let issued = site.invite(owner, NewInvite { name: wish.into(), ..NewInvite::default() }).await;
        names.push(site.redeem(&issued, number).await.unwrap().name);
    }
    assert_eq!(names, ["box", "box-2", "box", "host 4"]);
}

#[tokio::test]
async fn an_invite_is_its_owners_alone() {
    let site = Site::new().await;
    let (ann, bob) = (site.member("ann").await, site.member("bob").await);
    let issued = site.invite(&ann, NewInvite::default()).await;
    assert_eq!(code(site.hub.invite(&bob, issued.invite.id).await), Some("not_found"));
    assert_eq!(code(site.hub.revoke_invite(&bob, issued.invite.id).await), Some("not_found"));
    assert_eq!(site.hub.invites(&bob).await.unwrap(), []);
    assert_eq!(site.hub.invites(&ann).await.unwrap(), [issued.invite]);
    // Nobody invites a node into a session of somebody else.
    let session = site.session(&ann, &[]).await;
    let into = NewInvite { session: Some(session), ..NewInvite::default() };
    assert_eq!(code(site.hub.create_invite(&bob, into).await), Some("not_found"));
}

#[tokio::test]
async fn old_invites_are_swept_away() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    site.invite(&ann, NewInvite::default()).await;
    site.pass(KEPT_MS);
    let fresh = site.invite(&ann, NewInvite::default()).await;
    site.pass(LIFE_MS + 1);
    site.hub.sweep().await.unwrap();
    assert_eq!(site.hub.invites(&ann).await.unwrap(), [fresh.invite]);
}
