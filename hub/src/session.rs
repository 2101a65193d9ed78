//! Sessions: whose they are, who is in them, which nodes are attached, and what was said.

use cortex_wire::id::{NodeId, SessionId};

use crate::{
    account::Actor,
    failure::Refused,
    hub::Hub,
    record::{Event, MemberRole, Session, SessionStatus},
};

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
        let _ = (actor, new);
        todo!()
    }

    /// The sessions that the actor owns or is in, newest first.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn sessions(&self, actor: &Actor) -> Result<Vec<Session>, Refused> {
        let _ = actor;
        todo!()
    }

    /// One of them.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn session(&self, actor: &Actor, id: SessionId) -> Result<Session, Refused> {
        let _ = (actor, id);
        todo!()
    }

    /// Renames or archives a session of the actor.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn update_session(&self, actor: &Actor, id: SessionId, update: SessionUpdate) -> Result<Session, Refused> {
        let _ = (actor, id, update);
        todo!()
    }

    /// Removes a session of the actor, with its log. Its open tasks are cancelled first.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn delete_session(&self, actor: &Actor, id: SessionId) -> Result<(), Refused> {
        let _ = (actor, id);
        todo!()
    }

    /// Shares a session of the actor with a user, or changes what they may do there.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn add_member(&self, actor: &Actor, id: SessionId, user_name: &str, role: MemberRole) -> Result<Session, Refused> {
        let _ = (actor, id, user_name, role);
        todo!()
    }

    /// Takes that back. Members may remove themselves.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn remove_member(&self, actor: &Actor, id: SessionId, user_name: &str) -> Result<Session, Refused> {
        let _ = (actor, id, user_name);
        todo!()
    }

    /// Attaches a node that the actor owns or that was shared with them; twice is fine.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn attach_node(&self, actor: &Actor, id: SessionId, node: NodeId) -> Result<Session, Refused> {
        let _ = (actor, id, node);
        todo!()
    }

    /// Detaches a node; the session's epoch grows. Allowed to members of the session and to the node's owner.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn detach_node(&self, actor: &Actor, id: SessionId, node: NodeId) -> Result<Session, Refused> {
        let _ = (actor, id, node);
        todo!()
    }

    /// Writes a message into the session's log.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn post_message(&self, actor: &Actor, id: SessionId, text: &str) -> Result<Event, Refused> {
        let _ = (actor, id, text);
        todo!()
    }

    /// Messages of a session behind `after`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn messages(&self, actor: &Actor, id: SessionId, after: u64, limit: usize) -> Result<Vec<Event>, Refused> {
        let _ = (actor, id, after, limit);
        todo!()
    }
}
