//! Sessions: whose they are, who is in them, which nodes are attached, and what was said.
//!
//! A session that is not the actor's looks as if it did not exist. Every change is an event in the session's own log, and a notice to
//! everybody who is in it.

use cortex_runtime::clock::random;
use cortex_wire::{
    id::{NodeId, SessionId, UserId},
    limits,
    text::clean,
};
use serde_json::json;

use crate::{
    account::{self, Actor},
    browser,
    change::Change,
    failure::Refused,
    hub::Hub,
    mirror,
    node::{self, NodeAccess},
    record::{
        Event, Member, MemberRole, Node, Scope, Session, SessionStatus, Standing,
        tables::{EVENTS, NODES, OUTPUTS, SECRETS_OF_SESSION, SESSIONS, SESSIONS_OF_NODE, SESSIONS_OF_USER, TASKS, TASKS_OF_SESSION},
    },
    store::{Order, ReadTx, Span, StoreError},
    task,
};

/// Nodes in one session.
const NODES_OF_SESSION: usize = 256;
/// Members of one session.
const MEMBERS_OF_SESSION: usize = 256;
/// A message. Files go through the workspace.
const MESSAGE_BYTES: usize = 64 * 1024;

pub(crate) const MESSAGE: &str = "message";
pub(crate) const MEMBER_REMOVED: &str = "member_removed";

/// How far somebody reaches into a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    Viewer,
    Member,
    Owner,
}

fn access_of(session: &Session, user: UserId) -> Option<Access> {
    if session.user_id == user {
        return Some(Access::Owner);
    }
    session.members.iter().find(|member| member.user == user).map(|member| match member.role {
        MemberRole::Viewer => Access::Viewer,
        MemberRole::Member => Access::Member,
    })
}

fn find(tx: &dyn ReadTx, actor: &Actor, id: SessionId) -> Result<(Session, Access), Refused> {
    let found = SESSIONS.get(tx, &id)?.and_then(|session| access_of(&session, actor.user).map(|access| (session, access)));
    found.ok_or(Refused::NotFound("session"))
}

/// The session, if the actor may read it.
pub(crate) fn seen_by(tx: &dyn ReadTx, actor: &Actor, id: SessionId) -> Result<Session, Refused> {
    let (session, _) = find(tx, actor, id)?;
    actor.must(Scope::Read)?;
    Ok(session)
}

/// The session, if the actor may work in it.
pub(crate) fn used_by(tx: &dyn ReadTx, actor: &Actor, scope: Scope, id: SessionId) -> Result<Session, Refused> {
    let (session, access) = find(tx, actor, id)?;
    actor.must(scope)?;
    if access < Access::Member { Err(Refused::Forbidden("this session is shared with you to read only")) } else { Ok(session) }
}

fn owned_by(tx: &dyn ReadTx, actor: &Actor, id: SessionId) -> Result<Session, Refused> {
    let (session, access) = find(tx, actor, id)?;
    actor.must(Scope::Manage)?;
    if access < Access::Owner { Err(Refused::Forbidden("only the session's owner may do that")) } else { Ok(session) }
}

/// Whether a user is in a session.
pub(crate) fn is_in(session: &Session, user: UserId) -> bool {
    access_of(session, user).is_some()
}

/// Everybody who is in a session.
pub(crate) fn audience(session: &Session) -> Vec<UserId> {
    std::iter::once(session.user_id).chain(session.members.iter().map(|member| member.user)).collect()
}

fn title(text: &str) -> String {
    let title = clean(text, limits::TEXT_BYTES);
    if title.is_empty() { "Untitled session".into() } else { title }
}

fn save(change: &mut Change<'_>, session: &mut Session, what: &str) -> Result<(), StoreError> {
    session.updated_at_ms = change.now_ms;
    SESSIONS.put(change.tx, &session.id, session)?;
    change.notice(audience(session), "session", json!({ "session_id": session.id, "title": session.title, "change": what }))
}

fn object(id: SessionId) -> String {
    format!("session:{id}")
}

/// Attaches a node whose right to be there was checked.
pub(crate) fn attach(change: &mut Change<'_>, session: &mut Session, node: &Node, by: UserId) -> Result<(), Refused> {
    if session.nodes.contains(&node.id) {
        return Ok(());
    }
    if session.nodes.len() >= NODES_OF_SESSION {
        return Err(Refused::Invalid(format!("a session has at most {NODES_OF_SESSION} nodes")));
    }
    session.nodes.push(node.id);
    SESSIONS_OF_NODE.insert(change.tx, &node.id, &session.id)?;
    change.regrouped(node.id);
    if session.nodes.len() == 2 {
        // The first one is not alone any more: who carries its chunks may be another.
        change.regrouped(session.nodes[0]);
    }
    change.event(session.id, "node_attached", json!({ "node_id": node.id, "name": node.name, "user_id": by }))?;
    change.audit("session.attach", &object(session.id), node.id.key().as_bytes())?;
    Ok(save(change, session, "node_attached")?)
}

/// Detaches a node; what is written afterwards is not for it.
pub(crate) fn detach(change: &mut Change<'_>, session: &mut Session, node: NodeId, reason: &str) -> Result<(), StoreError> {
    let before = session.nodes.len();
    session.nodes.retain(|attached| *attached != node);
    if session.nodes.len() == before {
        return Ok(());
    }
    session.epoch += 1;
    SESSIONS_OF_NODE.remove(change.tx, &node, &session.id)?;
    mirror::keys::renew(change.tx, session)?;
    // The others are given the new key.
    change.regrouped(node);
    session.nodes.iter().for_each(|other| change.regrouped(*other));
    if session.has_no_reader() {
        change.unused(session.id, false);
    }
    change.event(session.id, "node_detached", json!({ "node_id": node, "reason": reason }))?;
    change.audit("session.detach", &object(session.id), node.key().as_bytes())?;
    save(change, session, "node_detached")
}

fn attachable(tx: &dyn ReadTx, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
    let (node, access) = node::find(tx, actor, id)?;
    if access < NodeAccess::Shared {
        return Err(Refused::Forbidden("this node is not yours, and was not shared with you"));
    }
    if node.standing == Standing::Revoked {
        return Err(Refused::Invalid("this node is revoked".into()));
    }
    Ok(node)
}

/// A session to be made.
#[derive(Debug, Clone, Default)]
pub struct NewSession {
    /// For people.
    pub title: String,
    /// Nodes to attach at once.
    pub nodes: Vec<NodeId>,
}

/// Changes to a session.
#[derive(Debug, Clone, Default)]
pub struct SessionUpdate {
    /// A new title.
    pub title: Option<String>,
    /// Archive it, or take it up again.
    pub status: Option<SessionStatus>,
}

impl Hub {
    /// Makes a session.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn create_session(&self, actor: &Actor, new: NewSession) -> Result<Session, Refused> {
        actor.must(Scope::Manage)?;
        let actor = actor.clone();
        self.change(actor.subject(), move |change| {
            let now_ms = change.now_ms;
            let mut session = Session {
                id: SessionId::new(now_ms, random()),
                user_id: actor.user,
                title: title(&new.title),
                nodes: vec![],
                members: vec![],
                created_at_ms: now_ms,
                updated_at_ms: now_ms,
                status: SessionStatus::Active,
                epoch: 1,
            };
            SESSIONS_OF_USER.insert(change.tx, &actor.user, &session.id)?;
            change.audit("session.create", &object(session.id), session.title.as_bytes())?;
            save(change, &mut session, "created")?;
            for id in new.nodes {
                let node = attachable(change.tx, &actor, id)?;
                attach(change, &mut session, &node, actor.user)?;
            }
            Ok(session)
        })
        .await
    }

    /// The sessions that the actor owns or is in, newest first.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn sessions(&self, actor: &Actor) -> Result<Vec<Session>, Refused> {
        actor.must(Scope::Read)?;
        let user = actor.user;
        self.db
            .read(move |tx| {
                let ids = SESSIONS_OF_USER.of(tx, &user, &Span::under(user), Order::Descending, usize::MAX)?;
                let sessions: Result<Vec<_>, StoreError> = ids.iter().filter_map(|id| SESSIONS.get(tx, id).transpose()).collect();
                Ok(sessions?)
            })
            .await
    }

    /// One of them.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn session(&self, actor: &Actor, id: SessionId) -> Result<Session, Refused> {
        let actor = actor.clone();
        self.db.read(move |tx| seen_by(tx, &actor, id)).await
    }

    /// Renames or archives a session of the actor.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn update_session(&self, actor: &Actor, id: SessionId, update: SessionUpdate) -> Result<Session, Refused> {
        let actor = actor.clone();
        self.change(actor.subject(), move |change| {
            let mut session = owned_by(change.tx, &actor, id)?;
            session.title = update.title.as_deref().map_or(session.title, title);
            session.status = update.status.unwrap_or(session.status);
            session.nodes.iter().for_each(|node| change.regrouped(*node));
            if session.has_no_reader() {
                change.unused(id, false);
            }
            let data = json!({ "title": session.title, "status": session.status, "user_id": actor.user });
            change.event(id, "session_updated", data)?;
            change.audit("session.update", &object(id), format!("{:?} {}", session.status, session.title).as_bytes())?;
            save(change, &mut session, "updated")?;
            Ok(session)
        })
        .await
    }

    /// Removes a session of the actor, with its log and its tasks. Those that are open are cancelled.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn delete_session(&self, actor: &Actor, id: SessionId) -> Result<(), Refused> {
        let actor = actor.clone();
        let (mesh, feeds, outputs, mirrors) = (self.mesh().cloned(), self.feeds.clone(), self.outputs.clone(), self.mirrors.clone());
        self.change(actor.subject(), move |change| {
            let session = owned_by(change.tx, &actor, id)?;
            let mut gone = Vec::new();
            for task in TASKS_OF_SESSION.all_of(change.tx, &id)? {
                let Some(task) = TASKS.get(change.tx, &task)? else { continue };
                // A task that is with its node goes when the node says that it has ended.
                if !task.state.is_final() && !task::cancel(change, task.clone(), &mesh)?.state.is_final() {
                    continue;
                }
                TASKS.delete(change.tx, &task.id)?;
                OUTPUTS.delete(change.tx, &task.id)?;
                gone.push(task.id);
            }
            TASKS_OF_SESSION.clear(change.tx, &id)?;
            SECRETS_OF_SESSION.clear(change.tx, &Span::under(id))?;
            EVENTS.clear(change.tx, &Span::under(id))?;
            browser::forget(change.tx, id)?;
            for user in audience(&session) {
                SESSIONS_OF_USER.remove(change.tx, &user, &id)?;
            }
            for node in &session.nodes {
                SESSIONS_OF_NODE.remove(change.tx, node, &id)?;
                change.regrouped(*node);
            }
            mirror::forget(change.tx, id)?;
            SESSIONS.delete(change.tx, &id)?;
            change.unused(id, true);
            change.audit("session.delete", &object(id), b"")?;
            let data = json!({ "session_id": id, "title": session.title, "change": "deleted" });
            change.notice(audience(&session), "session", data)?;
            change.then(move || {
                outputs.remove(gone);
                feeds.end_session(id);
                mirrors.remove(session.user_id, id);
            });
            Ok(())
        })
        .await
    }

    /// Shares a session of the actor with a user, or changes what they may do there.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn add_member(&self, actor: &Actor, id: SessionId, user_name: &str, role: MemberRole) -> Result<Session, Refused> {
        let (actor, user_name) = (actor.clone(), user_name.to_owned());
        self.change(actor.subject(), move |change| {
            let mut session = owned_by(change.tx, &actor, id)?;
            let user = account::find_user(change.tx, &user_name)?;
            if user.id == session.user_id {
                return Err(Refused::Invalid("the session is theirs already".into()));
            }
            session.members.retain(|member| member.user != user.id);
            if session.members.len() >= MEMBERS_OF_SESSION {
                return Err(Refused::Invalid(format!("a session has at most {MEMBERS_OF_SESSION} members")));
            }
            session.members.push(Member { user: user.id, role });
            SESSIONS_OF_USER.insert(change.tx, &user.id, &id)?;
            change.event(id, "member_added", json!({ "user_id": user.id, "name": user.name, "role": role }))?;
            change.audit("session.share", &object(id), format!("{} {role:?}", user.id).as_bytes())?;
            save(change, &mut session, "member_added")?;
            Ok(session)
        })
        .await
    }

    /// Takes that back. Members may remove themselves.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn remove_member(&self, actor: &Actor, id: SessionId, user_name: &str) -> Result<Session, Refused> {
        let (actor, user_name) = (actor.clone(), user_name.to_owned());
        self.change(actor.subject(), move |change| {
            let (mut session, _) = find(change.tx, &actor, id)?;
            let user = account::find_user(change.tx, &user_name)?;
            if user.id == actor.user {
                actor.must(Scope::Manage)?;
            } else {
                owned_by(change.tx, &actor, id)?;
            }
            if !session.members.iter().any(|member| member.user == user.id) {
                return Err(Refused::NotFound("member"));
            }
            // Those who leave are told, too.
            save(change, &mut session, "member_removed")?;
            session.members.retain(|member| member.user != user.id);
            SESSIONS_OF_USER.remove(change.tx, &user.id, &id)?;
            SESSIONS.put(change.tx, &id, &session)?;
            change.event(id, MEMBER_REMOVED, json!({ "user_id": user.id, "name": user.name }))?;
            change.audit("session.unshare", &object(id), user.id.as_bytes())?;
            Ok(session)
        })
        .await
    }

    /// Attaches a node that the actor owns or that was shared with them; twice is fine.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn attach_node(&self, actor: &Actor, id: SessionId, node: NodeId) -> Result<Session, Refused> {
        let actor = actor.clone();
        self.change(actor.subject(), move |change| {
            let mut session = used_by(change.tx, &actor, Scope::Manage, id)?;
            if session.nodes.contains(&node) {
                return Ok(session);
            }
            let node = attachable(change.tx, &actor, node)?;
            attach(change, &mut session, &node, actor.user)?;
            Ok(session)
        })
        .await
    }

    /// Detaches a node; the session's epoch grows. Allowed to members of the session and to the node's owner.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn detach_node(&self, actor: &Actor, id: SessionId, node: NodeId) -> Result<Session, Refused> {
        let actor = actor.clone();
        self.change(actor.subject(), move |change| {
            let owns_node = NODES.get(change.tx, &node)?.is_some_and(|node| node.owner == actor.user);
            let mut session = if owns_node {
                actor.must(Scope::Manage)?;
                SESSIONS.get(change.tx, &id)?.filter(|session| session.nodes.contains(&node)).ok_or(Refused::NotFound("session"))?
            } else {
                used_by(change.tx, &actor, Scope::Manage, id)?
            };
            if !session.nodes.contains(&node) {
                return Err(Refused::NotFound("node in this session"));
            }
            detach(change, &mut session, node, "detached")?;
            Ok(session)
        })
        .await
    }

    /// Writes a message into the session's log.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn post_message(&self, actor: &Actor, id: SessionId, text: &str) -> Result<Event, Refused> {
        if text.trim().is_empty() || text.len() > MESSAGE_BYTES {
            return Err(Refused::Invalid(format!("a message has 1 to {MESSAGE_BYTES} bytes")));
        }
        let (actor, text) = (actor.clone(), text.to_owned());
        self.change(actor.subject(), move |change| {
            let mut session = used_by(change.tx, &actor, Scope::Dispatch, id)?;
            change.audit("session.message", &object(id), text.as_bytes())?;
            let data = json!({ "user_id": actor.user, "name": actor.name, "via": actor.via, "text": text });
            let event = change.event(id, MESSAGE, data)?;
            save(change, &mut session, "message")?;
            Ok(event)
        })
        .await
    }

    /// Messages of a session behind `after`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn messages(&self, actor: &Actor, id: SessionId, after: u64, limit: usize) -> Result<Vec<Event>, Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                seen_by(tx, &actor, id)?;
                let mut messages = Vec::new();
                EVENTS.visit(tx, &Span::under(id).after((id, after)), Order::Ascending, |_, event| {
                    if messages.len() >= limit {
                        return Ok(std::ops::ControlFlow::Break(()));
                    }
                    messages.extend(Some(event).filter(|event| event.kind == MESSAGE));
                    Ok(std::ops::ControlFlow::Continue(()))
                })?;
                Ok(messages)
            })
            .await
    }
}

#[cfg(test)]
mod tests;
