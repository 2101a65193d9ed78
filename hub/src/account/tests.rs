use super::*;
use crate::{
    hub::Hub,
    invite::NewInvite,
    node::NodeUpdate,
    record::tables::{LOGINS, TOKENS},
    session::{NewSession, SessionUpdate},
    testing::{Site, node_id, request},
};

const HOUR_MS: i64 = 60 * 60 * 1000;

fn code<T, E: Failure>(outcome: Result<T, E>) -> Option<&'static str> {
    outcome.err().map(|error| error.code())
}

async fn founded() -> (Site, Login) {
    let site = Site::new().await;
    let token = site.hub.setup_token().await.unwrap().expect("a hub without users");
    let login = site.hub.setup(&token, "Root", "correct horse", "a browser").await.unwrap();
    (site, login)
}

fn new_token(scopes: &[Scope]) -> NewToken {
    NewToken { name: "ci".into(), scopes: scopes.to_vec(), expires_in_ms: None }
}

#[tokio::test]
async fn the_setup_token_makes_one_administrator() {
    let site = Site::new().await;
    assert!(!site.hub.is_set_up().await.unwrap());
    let first = site.hub.setup_token().await.unwrap().unwrap();
    // Printed again at the next start: the one before is void.
    let second = site.hub.setup_token().await.unwrap().unwrap();
    assert_eq!(code(site.hub.setup(&first, "root", "correct horse", "").await), Some("bad_setup_token"));
    assert_eq!(code(site.hub.setup(&second, "root", "short", "").await), Some("invalid"));
    assert_eq!(code(site.hub.setup(&second, "not a name", "correct horse", "").await), Some("invalid"));
    let (a, b) = tokio::join!(site.hub.setup(&second, "root", "correct horse", ""), site.hub.setup(&second, "other", "correct horse", ""));
    assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
    assert_eq!(a.or(b).unwrap().user.role, Role::Admin);
    assert_eq!(code(site.hub.setup(&second, "root", "correct horse", "").await), Some("already_set_up"));
    assert_eq!(site.hub.setup_token().await.unwrap(), None);
}

#[tokio::test]
async fn a_login_needs_name_and_password() {
    let (site, login) = founded().await;
    let actor = site.hub.authenticate_session(&login.secret).await.unwrap();
    assert_eq!((actor.name.as_str(), actor.role, actor.via.as_str()), ("root", Role::Admin, "ui"));
    let again = site.hub.login(" ROOT ", "correct horse", "").await.unwrap();
    assert_ne!(again.secret, login.secret);
    for (name, password) in [("root", "correct horsf"), ("nobody", "correct horse"), ("", ""), ("root", "")] {
        assert_eq!(code(site.hub.login(name, password, "").await), Some("bad_login"), "{name} {password}");
    }
    site.hub.logout(&again.secret).await.unwrap();
    assert_eq!(code(site.hub.authenticate_session(&again.secret).await), Some("bad_credential"));
    assert_eq!(code(site.hub.authenticate_session("").await), Some("bad_credential"));
    assert!(site.hub.authenticate_session(&login.secret).await.is_ok());
}

#[tokio::test]
async fn a_login_ends_when_nobody_uses_it_and_in_any_case_after_two_weeks() {
    let (site, login) = founded().await;
    let idle = site.hub.login("root", "correct horse", "").await.unwrap();
    for _ in 0..2 {
        site.pass(11 * HOUR_MS);
        assert!(site.hub.authenticate_session(&login.secret).await.is_ok());
    }
    assert_eq!(code(site.hub.authenticate_session(&idle.secret).await), Some("bad_credential"));
    let site = site.restart().await;
    assert!(site.hub.authenticate_session(&login.secret).await.is_ok());
    for _ in 0..31 {
        site.pass(11 * HOUR_MS);
        let _ = site.hub.authenticate_session(&login.secret).await;
    }
    assert_eq!(code(site.hub.authenticate_session(&login.secret).await), Some("bad_credential"));
    site.hub.sweep().await.unwrap();
    assert_eq!(site.hub.db.read(|tx| LOGINS.list(tx, &Span::all(), Order::Ascending, 9)).await.unwrap(), []);
}

#[tokio::test]
async fn a_user_who_is_shut_out_is_out_at_once() {
    let (site, login) = founded().await;
    let root = site.hub.authenticate_session(&login.secret).await.unwrap();
    let new = NewUser { name: "ann".into(), password: "battery staple".into(), role: Role::Member };
    let ann = site.hub.create_user(&root, new.clone()).await.unwrap();
    assert_eq!(code(site.hub.create_user(&root, new).await), Some("name_taken"));
    let hers = site.hub.login("ann", "battery staple", "").await.unwrap();
    let actor = site.hub.authenticate_session(&hers.secret).await.unwrap();
    let (_, token) = site.hub.create_token(&actor, new_token(&[Scope::Read])).await.unwrap();
    assert!(site.hub.authenticate_token(&token).await.is_ok());
    let out = UserUpdate { disabled: Some(true), ..UserUpdate::default() };
    site.hub.update_user(&root, ann.id, out).await.unwrap();
    assert_eq!(code(site.hub.authenticate_session(&hers.secret).await), Some("bad_credential"));
    assert_eq!(code(site.hub.authenticate_token(&token).await), Some("bad_credential"));
    assert_eq!(code(site.hub.login("ann", "battery staple", "").await), Some("bad_login"));
    let in_again = UserUpdate { disabled: Some(false), role: Some(Role::Viewer), ..UserUpdate::default() };
    site.hub.update_user(&root, ann.id, in_again).await.unwrap();
    assert_eq!(site.hub.authenticate_token(&token).await.unwrap().role, Role::Viewer);
}

#[tokio::test]
async fn there_is_always_an_administrator() {
    let (site, login) = founded().await;
    let root = site.hub.authenticate_session(&login.secret).await.unwrap();
    let demote = UserUpdate { role: Some(Role::Member), ..UserUpdate::default() };
    assert_eq!(code(site.hub.update_user(&root, root.user, demote.clone()).await), Some("last_admin"));
    let new = NewUser { name: "ann".into(), password: "battery staple".into(), role: Role::Admin };
    site.hub.create_user(&root, new).await.unwrap();
    assert!(site.hub.update_user(&root, root.user, demote).await.is_ok());
}

#[tokio::test]
async fn a_new_password_ends_the_other_logins() {
    let (site, login) = founded().await;
    let other = site.hub.login("root", "correct horse", "").await.unwrap();
    let root = site.hub.authenticate_session(&login.secret).await.unwrap();
    assert_eq!(code(site.hub.change_password(&root, "wrong", "battery staple").await), Some("bad_login"));
    site.hub.change_password(&root, "correct horse", "battery staple").await.unwrap();
    assert!(site.hub.authenticate_session(&login.secret).await.is_ok());
    assert_eq!(code(site.hub.authenticate_session(&other.secret).await), Some("bad_credential"));
    assert_eq!(code(site.hub.login("root", "correct horse", "").await), Some("bad_login"));
    assert!(site.hub.login("root", "battery staple", "").await.is_ok());
}

#[tokio::test]
async fn a_token_acts_within_its_scopes_until_it_expires_or_is_revoked() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let life = NewToken { expires_in_ms: Some(HOUR_MS), ..new_token(&[Scope::Read, Scope::Read]) };
    let (token, text) = site.hub.create_token(&ann, life).await.unwrap();
    assert_eq!(token.scopes, [Scope::Read]);
    let program = site.hub.authenticate_token(&text).await.unwrap();
    assert_eq!((program.user, program.token.as_ref(), program.via.as_str()), (ann.user, Some(&token.id), "api"));
    assert!(site.hub.sessions(&program).await.is_ok());
    assert_eq!(code(site.hub.create_session(&program, NewSession::default()).await), Some("forbidden"));
    assert_eq!(code(site.hub.create_token(&program, new_token(&[Scope::Read])).await), Some("forbidden"));
    site.pass(HOUR_MS + 1);
    assert_eq!(code(site.hub.authenticate_token(&text).await), Some("bad_credential"));

    let (token, text) = site.hub.create_token(&ann, new_token(&[Scope::Manage])).await.unwrap();
    let program = site.hub.authenticate_token(&text).await.unwrap();
    // It cannot make one that reaches further than itself.
    assert_eq!(code(site.hub.create_token(&program, new_token(&[Scope::Dispatch])).await), Some("forbidden"));
    assert_eq!(code(site.hub.create_token(&ann, new_token(&[Scope::Admin])).await), Some("forbidden"));
    assert_eq!(code(site.hub.create_token(&ann, new_token(&[])).await), Some("invalid"));
    let bob = site.member("bob").await;
    assert_eq!(code(site.hub.revoke_token(&bob, &token.id).await), Some("not_found"));
    site.hub.revoke_token(&ann, &token.id).await.unwrap();
    assert_eq!(code(site.hub.authenticate_token(&text).await), Some("bad_credential"));
    assert_eq!(site.hub.tokens(&bob).await.unwrap(), []);
}

#[tokio::test]
async fn a_token_with_another_secret_is_refused() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (token, _) = site.hub.create_token(&ann, new_token(&[Scope::Read])).await.unwrap();
    let (other, text) = secret::fresh_token();
    let forged = text.replacen(&other, &token.id, 1);
    let forged = format!("{}{}", &forged[..forged.len() - 6], secret::check(&forged[..forged.len() - 6]));
    assert_eq!(secret::token_id(&forged), Some(token.id.as_str()));
    assert_eq!(code(site.hub.authenticate_token(&forged).await), Some("bad_credential"));
}

#[tokio::test]
async fn when_a_token_was_used_is_written_once_a_minute() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let (token, text) = site.hub.create_token(&ann, new_token(&[Scope::Read])).await.unwrap();
    let last_used = async |hub: &Hub| {
        let id = token.id.clone();
        hub.db.write(|_| Ok::<_, StoreError>(())).await.unwrap();
        hub.db.read(move |tx| TOKENS.get(tx, &id)).await.unwrap().unwrap().last_used_at_ms
    };
    let first = site.hub.now_ms();
    site.hub.authenticate_token(&text).await.unwrap();
    while last_used(&site.hub).await.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(last_used(&site.hub).await, Some(first));
    site.pass(59_000);
    site.hub.authenticate_token(&text).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(last_used(&site.hub).await, Some(first));
    site.pass(1_000);
    site.hub.authenticate_token(&text).await.unwrap();
    while last_used(&site.hub).await == Some(first) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn no_secret_lies_in_the_store() {
    let (site, login) = founded().await;
    let root = site.hub.authenticate_session(&login.secret).await.unwrap();
    let (_, token) = site.hub.create_token(&root, new_token(&[Scope::Read])).await.unwrap();
    let issued = site.hub.create_invite(&root, NewInvite::default()).await.unwrap();
    let (invite, _) = cortex_wire::invite::read(&issued.text, site.hub.now_ms()).unwrap();
    let hex = data_encoding::HEXLOWER.encode(&invite.secret);
    let path = site.path().join("hub.redb");
    let bytes = std::fs::read(path).unwrap();
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(holds(b"$argon2id$"), "the store is where it is looked for");
    for secret in [login.secret.as_bytes(), token.as_bytes(), b"correct horse", &invite.secret, hex.as_bytes()] {
        assert!(!holds(secret));
    }
}

#[tokio::test]
async fn a_viewer_changes_nothing() {
    let site = Site::new().await;
    let (ann, vic) = (site.member("ann").await, site.user("vic", Role::Viewer).await);
    let (session, node) = site.workplace(&ann, 1).await;
    site.hub.add_member(&ann, session, "vic", crate::record::MemberRole::Member).await.unwrap();
    let hub = &site.hub;
    assert!(hub.session(&vic, session).await.is_ok());
    assert!(hub.node(&vic, node).await.is_ok());
    let refused = [
        code(hub.create_session(&vic, NewSession::default()).await),
        code(hub.update_session(&vic, session, SessionUpdate::default()).await),
        code(hub.delete_session(&vic, session).await),
        code(hub.add_member(&vic, session, "ann", crate::record::MemberRole::Member).await),
        code(hub.attach_node(&vic, session, node).await),
        code(hub.detach_node(&vic, session, node).await),
        code(hub.post_message(&vic, session, "hello").await),
        code(hub.create_invite(&vic, NewInvite::default()).await),
        code(hub.update_node(&vic, node, NodeUpdate::default()).await),
        code(hub.approve_node(&vic, node).await),
        code(hub.revoke_node(&vic, node).await),
        code(hub.delete_node(&vic, node).await),
        code(hub.share_node(&vic, node, "vic").await),
        code(hub.set_policy(&vic, node, crate::record::SandboxPolicy::default(), None).await),
        code(hub.dispatch(&vic, session, request("true"), None).await),
        code(hub.users(&vic).await),
        code(hub.audit_rows(&vic, None, Order::Ascending, 1).await),
        code(hub.create_user(&vic, NewUser { name: "x".into(), password: "12345678".into(), role: Role::Admin }).await),
        code(hub.update_user(&vic, vic.user, UserUpdate { role: Some(Role::Admin), ..UserUpdate::default() }).await),
    ];
    assert_eq!(refused, [Some("forbidden"); 19]);
    // A member is not an administrator either.
    for refused in [code(hub.users(&ann).await), code(hub.verify_audit(&ann).await)] {
        assert_eq!(refused, Some("forbidden"));
    }
    assert!(hub.find_node(node_id(1)).await.unwrap().is_some());
}
