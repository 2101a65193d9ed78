//! Sessions, who and what belongs to them, and what happened in them.

use cortex_wire::id::{NodeId, SessionId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether a session is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// It is.
    Active,
    /// Kept to be read.
    Archived,
}

/// What a member of a session may do there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Read.
    Viewer,
    /// Write messages, run tasks on its nodes, attach nodes of their own.
    Member,
}

/// Somebody a session is shared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// What they may do.
    pub role: MemberRole,
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The id.
    pub id: SessionId,
    /// The owner.
    pub user_id: UserId,
    /// For people.
    pub title: String,
    /// The attached nodes, in the order in which they came.
    pub nodes: Vec<NodeId>,
    /// Who else is in it.
    pub members: Vec<Member>,
    /// When it was made.
    pub created_at_ms: i64,
    /// When it was last changed.
    pub updated_at_ms: i64,
    /// Whether it is in use.
    pub status: SessionStatus,
    /// Grows when a node leaves: what is written afterwards is not for it.
    pub epoch: u64,
}

impl Session {
    /// Whether no node may ask for its contents now.
    pub fn has_no_reader(&self) -> bool {
        self.nodes.is_empty() || self.status == SessionStatus::Archived
    }
}

/// One row of a session's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which session.
    pub session: SessionId,
    /// From 1, without gaps; 0: live only, not stored.
    pub seq: u64,
    /// When.
    pub at_ms: i64,
    /// "message", "task", "node_attached", …
    pub kind: String,
    /// Fits the kind.
    pub data: serde_json::Value,
}
