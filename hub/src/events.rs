//! Numbered feeds, and following them live: one per session (kept whole), and one hub-wide (a bounded ring, each row for certain users).

use std::sync::Arc;

use cortex_wire::id::SessionId;

use crate::{
    account::Actor,
    failure::Refused,
    hub::Hub,
    record::{Event, Notice},
};

/// Live subscribers of all feeds.
#[derive(Debug, Default)]
pub struct Feeds {}

/// Follows a session's log: every row once, in order.
#[derive(Debug)]
pub struct SessionFollower {
    hub: Arc<Hub>,
}

impl SessionFollower {
    /// The next row; waits for it. Safe to cancel. `None` when the session is gone or no longer the actor's to see.
    ///
    /// # Errors
    /// [`Refused::Store`].
    pub async fn next(&mut self) -> Result<Option<Event>, Refused> {
        let _ = &self.hub;
        todo!()
    }
}

/// Follows the hub-wide feed as one user: every row for them once, in order, and live-only rows (`seq` 0) as they happen.
#[derive(Debug)]
pub struct Follower {
    hub: Arc<Hub>,
}

impl Follower {
    /// The next row; waits for it. Safe to cancel.
    ///
    /// # Errors
    /// [`Refused::Store`].
    pub async fn next(&mut self) -> Result<Notice, Refused> {
        let _ = &self.hub;
        todo!()
    }
}

impl Hub {
    /// Rows of a session's log behind `after`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn session_events(&self, actor: &Actor, session: SessionId, after: u64, limit: usize) -> Result<Vec<Event>, Refused> {
        let _ = (actor, session, after, limit);
        todo!()
    }

    /// Follows a session's log from behind `after` (`None`: from now on).
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn follow_session(self: &Arc<Self>, actor: &Actor, session: SessionId, after: Option<u64>) -> Result<SessionFollower, Refused> {
        let _ = (actor, session, after);
        todo!()
    }

    /// Follows the hub-wide feed from behind `after` (`None`: from now on). When `after` is older than what is kept, it starts at the
    /// oldest row that is.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn follow(self: &Arc<Self>, actor: &Actor, after: Option<u64>) -> Result<Follower, Refused> {
        let _ = (actor, after);
        todo!()
    }
}
