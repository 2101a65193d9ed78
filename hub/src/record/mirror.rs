//! What is stored of workspaces: where each one stands, its commits, snapshots of its tree, conflicts, and verdicts that a node may ask for again.

use cortex_wire::{
    id::{NodeId, SessionId, TaskId, UserId},
    schema,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Digest;

/// Where a session's workspace stands. Small, because every commit writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceRecord {
    /// Which session.
    pub session: SessionId,
    /// The owner when it was made: names its folder.
    pub owner: UserId,
    /// Seed of the chunks' boundaries.
    pub seed: u64,
    /// Of the last commit; 0: nothing was ever written.
    pub revision: u64,
    /// The tree's hash at that revision.
    pub root: Digest,
    /// Revision of the newest snapshot; 0: the empty tree.
    pub snapshot: u64,
    /// Changes since that snapshot.
    pub ops_since: u64,
    /// Nodes' edits wait.
    #[serde(default)]
    pub paused: bool,
    /// Leases, also such as have ended.
    #[serde(default)]
    pub locks: Vec<LockRecord>,
    /// The highest fence that was given out.
    #[serde(default)]
    pub last_fence: u64,
    /// The highest number of a conflict.
    #[serde(default)]
    pub last_conflict: u64,
}

/// Who changes a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// Somebody at the hub.
    #[schema(value_type = String)]
    User(UserId),
    /// A node.
    #[schema(value_type = String)]
    Node(NodeId),
}

/// A lease on part of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    /// A path; "": everything.
    pub prefix: String,
    /// Who may write there.
    pub owner: Author,
    /// For people.
    pub name: String,
    /// Grows with each lease of the workspace.
    pub fence: u64,
    /// It ends then.
    pub expires_at_ms: i64,
}

/// One commit. Its number is its key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommitRecord {
    /// The number, from 1 without gaps.
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// When.
    #[prost(int64, tag = "2")]
    pub at_ms: i64,
    /// The tree's hash afterwards, 32 bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub root: bytes::Bytes,
    /// The user, 16 bytes; or
    #[prost(bytes = "bytes", tag = "4")]
    pub user: bytes::Bytes,
    /// the node, 32 bytes.
    #[prost(bytes = "bytes", tag = "5")]
    pub node: bytes::Bytes,
    /// The task that wrote it, 16 bytes, or empty.
    #[prost(bytes = "bytes", tag = "6")]
    pub task: bytes::Bytes,
    /// What was done, in a few words: "edit", "restore 12", …
    #[prost(string, tag = "7")]
    pub what: String,
    /// Entries written.
    #[prost(uint64, tag = "8")]
    pub puts: u64,
    /// Entries removed; a directory counts as one.
    #[prost(uint64, tag = "9")]
    pub removes: u64,
    /// Entries moved; a directory counts as one.
    #[prost(uint64, tag = "10")]
    pub moves: u64,
    /// The first paths it touches.
    #[prost(string, repeated, tag = "11")]
    pub paths: Vec<String>,
    /// What was accepted, in order; more than one where it does not fit a frame.
    #[prost(message, repeated, tag = "12")]
    pub batches: Vec<schema::PackedBatch>,
}

impl CommitRecord {
    /// Who made it.
    pub fn author(&self) -> Option<Author> {
        let user = || UserId::from_slice(&self.user).ok().map(Author::User);
        NodeId::from_slice(&self.node).ok().map(Author::Node).or_else(user)
    }

    /// The task that wrote it.
    pub fn task(&self) -> Option<TaskId> {
        TaskId::from_slice(&self.task).ok()
    }
}

/// A change that did not go in, kept whole.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConflictRecord {
    /// From 1 in each workspace.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// When.
    #[prost(int64, tag = "2")]
    pub at_ms: i64,
    /// Where.
    #[prost(string, tag = "3")]
    pub path: String,
    /// Whose change it was, 32 bytes.
    #[prost(bytes = "bytes", tag = "4")]
    pub node: bytes::Bytes,
    /// What the node had changed, 32 bytes; empty: it thought there was nothing.
    #[prost(bytes = "bytes", tag = "5")]
    pub parent: bytes::Bytes,
    /// What the workspace held, 32 bytes; empty: nothing.
    #[prost(bytes = "bytes", tag = "6")]
    pub current: bytes::Bytes,
    /// A Put of what was kept; none: the node had removed it.
    #[prost(message, optional, tag = "7")]
    pub kept: Option<schema::PackedBatch>,
    /// At which revision it arose.
    #[prost(uint64, tag = "8")]
    pub revision: u64,
    /// How it was resolved: "", "mine", "theirs", "both".
    #[prost(string, tag = "9")]
    pub resolution: String,
    /// By whom, 16 bytes.
    #[prost(bytes = "bytes", tag = "10")]
    pub resolved_by: bytes::Bytes,
    /// When.
    #[prost(int64, tag = "11")]
    pub resolved_at_ms: i64,
}

/// A verdict that a node may ask for again.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VerdictRecord {
    /// Of the proposal, 32 bytes: a node that has lost its state counts from the beginning, and what it proposes under an old number is something else.
    #[prost(bytes = "bytes", tag = "1")]
    pub digest: bytes::Bytes,
    /// What the node was told.
    #[prost(message, optional, tag = "2")]
    pub verdict: Option<schema::Verdict>,
}
