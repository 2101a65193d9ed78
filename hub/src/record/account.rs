//! Accounts, what they sign in with, and the invites they make.

use std::collections::BTreeMap;

use cortex_wire::id::{InviteId, NodeId, SessionId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Digest;

/// What an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees what is shared with it, and changes nothing.
    Viewer,
    /// Has nodes and sessions of its own.
    Member,
    /// Also manages users, and reads the audit log.
    Admin,
}

/// What an API token may do, within its user's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// See.
    Read,
    /// Run and cancel tasks, write messages.
    Dispatch,
    /// Nodes, invites, sessions, members, tokens.
    Manage,
    /// Users and the audit log.
    Admin,
}

/// A person with an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The id.
    pub id: UserId,
    /// The login name, lower case.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Argon2id, in PHC form.
    pub password_hash: String,
    /// When it was made.
    pub created_at_ms: i64,
    /// No login, no token of it is good.
    #[serde(default)]
    pub disabled: bool,
}

/// A key for programs that act for a user. Its text is shown once and not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// The public part of its text.
    pub id: String,
    /// For whom it acts.
    pub user: UserId,
    /// A label.
    pub name: String,
    /// How far it reaches.
    pub scopes: Vec<Scope>,
    /// BLAKE3 of the secret part.
    pub hash: Digest,
    /// When it was made.
    pub created_at_ms: i64,
    /// Not good after this.
    pub expires_at_ms: Option<i64>,
    /// Written lazily: up to a minute behind.
    pub last_used_at_ms: Option<i64>,
}

/// A browser that is logged in. Stored under the hash of its cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginSession {
    /// Who.
    pub user: UserId,
    /// When the password was given.
    pub created_at_ms: i64,
    /// Written lazily: up to a minute behind.
    pub last_used_at_ms: i64,
    /// What the browser calls itself.
    pub agent: String,
}

/// A permission to enrol one node for one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// The id.
    pub id: InviteId,
    /// Who gets the node.
    pub owner: UserId,
    /// What the node will be called; empty: what it calls itself.
    pub name: String,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// The session the node is attached to.
    pub session: Option<SessionId>,
    /// BLAKE3 of the secret.
    pub secret_hash: Digest,
    /// When it was made.
    pub created_at_ms: i64,
    /// Not good after this.
    pub expires_at_ms: i64,
    /// The owner has to confirm the node's fingerprint.
    pub approval: bool,
    /// The node is removed when it disconnects.
    pub ephemeral: bool,
    /// The node that redeemed it.
    pub used_by: Option<NodeId>,
    /// When it was redeemed.
    pub used_at_ms: Option<i64>,
    /// When its owner took it back.
    pub revoked_at_ms: Option<i64>,
    /// How many tries were refused.
    pub refusals: u64,
    /// The last one of them.
    pub last_refusal: Option<InviteRefusal>,
}

/// A refused try to redeem an invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InviteRefusal {
    /// Stable code.
    pub code: String,
    /// For a person.
    pub reason: String,
    /// Of the key that tried.
    pub fingerprint: String,
    /// When.
    pub at_ms: i64,
}

/// The hash of the setup token that was printed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupToken {
    /// BLAKE3 of its text.
    pub hash: Digest,
}
