//! Which table holds what. Numbers are never used again for something else; 0 is the schema's.

use cortex_wire::{
    id::{InviteId, NodeId, SessionId, TaskId, UserId},
    schema,
};

use super::{
    ApiToken, AuditRow, Digest, Event, IdempotencyEntry, Invite, LoginSession, Node, Notice, OutputRecord, Session, SetupToken, Task, User,
    approval::Grant,
    mirror::{CommitRecord, ConflictRecord, VerdictRecord, WorkspaceRecord},
};
use crate::{
    browser::{BrowserEvent, BrowserSeen},
    policy::PolicyChange,
    relay::RelayRecord,
    secret::SecretRecord,
    store::{Index, Proto, Table},
};

/// Users.
pub const USERS: Table<UserId, User> = Table::new(1, "users");
/// Users by login name.
pub const USER_NAMES: Table<str, UserId> = Table::new(2, "user_names");
/// API tokens by the public part of their text.
pub const TOKENS: Table<str, ApiToken> = Table::new(3, "api_tokens");
/// Logins by the hash of their cookie.
pub const LOGINS: Table<Digest, LoginSession> = Table::new(4, "login_sessions");
/// The one-time setup token, under "setup".
pub const SETUP: Table<str, SetupToken> = Table::new(5, "setup");
/// Nodes.
pub const NODES: Table<NodeId, Node> = Table::new(10, "nodes");
/// Nodes that a user owns, or that were shared with them.
pub const NODES_OF_USER: Index<UserId, NodeId> = Index::new(11, "nodes_of_user");
/// Nodes by owner and name.
pub const NODE_NAMES: Table<(UserId, String), NodeId> = Table::new(15, "node_names");
/// Sessions that a node is attached to.
pub const SESSIONS_OF_NODE: Index<NodeId, SessionId> = Index::new(12, "sessions_of_node");
/// Invites.
pub const INVITES: Table<InviteId, Invite> = Table::new(13, "invites");
/// Invites that a user made.
pub const INVITES_OF_USER: Index<UserId, InviteId> = Index::new(14, "invites_of_user");
/// Sessions.
pub const SESSIONS: Table<SessionId, Session> = Table::new(20, "sessions");
/// Sessions that a user owns or is in.
pub const SESSIONS_OF_USER: Index<UserId, SessionId> = Index::new(21, "sessions_of_user");
/// Session logs.
pub const EVENTS: Table<(SessionId, u64), Event> = Table::new(22, "events");
/// Tasks.
pub const TASKS: Table<TaskId, Task> = Table::new(30, "tasks");
/// Tasks of a session, all of them.
pub const TASKS_OF_SESSION: Index<SessionId, TaskId> = Index::new(31, "tasks_of_session");
/// Tasks of a node that are not final.
pub const OPEN_TASKS_OF_NODE: Index<NodeId, TaskId> = Index::new(32, "open_tasks_of_node");
/// Tasks of a session that are not final.
pub const OPEN_TASKS_OF_SESSION: Index<SessionId, TaskId> = Index::new(33, "open_tasks_of_session");
/// Tasks of a session that wait in the pool.
pub const POOL_TASKS: Index<SessionId, TaskId> = Index::new(36, "pool_tasks");
/// What tasks printed: short output itself, of long output where it is.
pub const OUTPUTS: Table<TaskId, OutputRecord> = Table::new(34, "task_output");
/// Dispatches that may be asked for again, by the hash of user, session and key.
pub const IDEMPOTENCY: Table<Digest, IdempotencyEntry> = Table::new(35, "idempotency_keys");
/// Tasks of a node that wait for a person.
pub const APPROVALS_OF_NODE: Index<NodeId, TaskId> = Index::new(83, "approvals_of_node");
/// Remembered approvals, by node and the task that they were given for.
pub const GRANTS: Table<(NodeId, TaskId), Grant> = Table::new(84, "approvals");
/// What changed in nodes' policies, by version.
pub const POLICY_CHANGES: Table<(NodeId, u64), PolicyChange> = Table::new(85, "policy_changes");
/// When tasks ended whose output is not kept.
pub const FORGETTABLE: Table<TaskId, i64> = Table::new(70, "forgettable_output");
/// Secrets of users, by name.
pub const SECRETS_OF_USER: Table<(UserId, String), SecretRecord> = Table::new(71, "secrets_of_user");
/// Secrets of sessions, by name.
pub const SECRETS_OF_SESSION: Table<(SessionId, String), SecretRecord> = Table::new(72, "secrets_of_session");
/// The hub-wide feed.
pub const NOTICES: Table<u64, Notice> = Table::new(40, "notices");
/// The audit chain.
pub const AUDIT: Table<u64, AuditRow> = Table::new(41, "audit");
/// Where workspaces stand.
pub const WORKSPACES: Table<SessionId, WorkspaceRecord> = Table::new(50, "workspaces");
/// The keys that a workspace's contents are sealed with, by epoch.
pub const WORKSPACE_KEYS: Table<(SessionId, u64), schema::WorkspaceKey, Proto> = Table::new(51, "workspace_keys");
/// Commits, by revision.
pub const COMMITS: Table<(SessionId, u64), CommitRecord, Proto> = Table::new(52, "commits");
/// Whole trees, by revision and page: Puts in the order in which they apply.
pub const SNAPSHOTS: Table<(SessionId, (u64, u64)), schema::PackedBatch, Proto> = Table::new(53, "snapshots");
/// Changes that did not go in.
pub const CONFLICTS: Table<(SessionId, u64), ConflictRecord, Proto> = Table::new(54, "conflicts");
/// Answers to proposals that a node may send again, by its sequence.
pub const VERDICTS: Table<(SessionId, (NodeId, u64)), VerdictRecord, Proto> = Table::new(55, "verdicts");
/// What happened in the browsers of a session.
pub const BROWSER_EVENTS: Table<(SessionId, u64), BrowserEvent> = Table::new(64, "browser_events");
/// Up to which event each node has told.
pub const BROWSER_SEEN: Table<(SessionId, NodeId), BrowserSeen> = Table::new(65, "browser_seen");
/// Relays that were added while the hub runs, by the text of their key.
pub const RELAYS: Table<str, RelayRecord> = Table::new(60, "relays");
/// Written and read by the readiness check.
pub const PROBE: Table<str, i64> = Table::new(250, "probe");
