//! Invites: made, shown, taken back, and redeemed exactly once.

use std::collections::BTreeMap;

use cortex_wire::id::{InviteId, NodeId, SessionId};

use crate::{
    account::Actor,
    failure::{Failure, Kind, Refused},
    hub::Hub,
    record::{Capabilities, Invite, Node},
    store::StoreError,
};

/// An invite to be made.
#[derive(Debug, Clone, Default)]
pub struct NewInvite {
    /// What the node will be called; empty: what it calls itself.
    pub name: String,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// The session to attach the node to.
    pub session: Option<SessionId>,
    /// How long it is good: an hour when `None`; brought between 15 minutes and 7 days.
    pub expires_in_ms: Option<i64>,
    /// The owner has to confirm the node's fingerprint.
    pub approval: bool,
    /// The node is removed when it disconnects.
    pub ephemeral: bool,
}

/// A fresh invite.
#[derive(Debug, Clone)]
pub struct IssuedInvite {
    /// The record.
    pub invite: Invite,
    /// Its text with the secret. Shown once.
    pub text: String,
}

/// Why an invite was not made, shown or taken back.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// The hub knows no relay to put into it.
    #[error("this hub has no relay that a node could reach; start the embedded one, or configure one")]
    NoRelay,
    /// It was redeemed.
    #[error("this invite was redeemed; revoke the node instead")]
    AlreadyUsed,
    /// Anything else.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<StoreError> for InviteError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure for InviteError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoRelay => "no_relay",
            Self::AlreadyUsed => "invite_used",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NoRelay => Kind::Unavailable,
            Self::AlreadyUsed => Kind::Conflict,
            Self::Refused(refused) => refused.kind(),
        }
    }
}

/// A node asks to redeem an invite; its signature over this very connection was verified.
#[derive(Debug, Clone)]
pub struct Redeem {
    /// Which invite.
    pub invite_id: InviteId,
    /// BLAKE3 of the secret it showed.
    pub secret_hash: [u8; 32],
    /// Its key.
    pub node: NodeId,
    /// What it calls itself.
    pub name: String,
    /// Program and version.
    pub agent: String,
    /// What it is and has.
    pub capabilities: Capabilities,
    /// Where its packets came from.
    pub observed_address: Option<String>,
}

/// Why an invite was not redeemed. [`RedeemError::code`](Failure::code) goes to the node.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// No such invite, or not its secret.
    #[error("the hub does not know this invite; ask for a new one")]
    Unknown,
    /// Another node has it.
    #[error("this invite was already used by another node; ask for a new one")]
    Used,
    /// Too late.
    #[error("this invite has expired; ask for a new one")]
    Expired,
    /// Its owner took it back.
    #[error("this invite was taken back; ask for a new one")]
    Revoked,
    /// The key belongs to a node already.
    #[error("this key belongs to a node that is already enrolled; use a new key, or ask the node's owner to delete it")]
    NodeOwned,
    /// The store failed.
    #[error("the hub's store failed")]
    Store(#[from] StoreError),
}

impl Failure for RedeemError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "invite_unknown",
            Self::Used => "invite_used",
            Self::Expired => "invite_expired",
            Self::Revoked => "invite_revoked",
            Self::NodeOwned => "node_owned",
            Self::Store(_) => "store_failed",
        }
    }

    fn kind(&self) -> Kind {
        if matches!(self, Self::Store(_)) { Kind::Internal } else { Kind::Forbidden }
    }
}

impl Hub {
    /// Makes an invite.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn create_invite(&self, actor: &Actor, new: NewInvite) -> Result<IssuedInvite, InviteError> {
        let _ = (actor, new);
        todo!()
    }

    /// The actor's invites, newest first.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn invites(&self, actor: &Actor) -> Result<Vec<Invite>, InviteError> {
        let _ = actor;
        todo!()
    }

    /// One of the actor's invites.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn invite(&self, actor: &Actor, id: InviteId) -> Result<Invite, InviteError> {
        let _ = (actor, id);
        todo!()
    }

    /// Takes an invite back; twice is fine.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn revoke_invite(&self, actor: &Actor, id: InviteId) -> Result<Invite, InviteError> {
        let _ = (actor, id);
        todo!()
    }

    /// Checks, consumes and binds in one transaction. A retry by the same key gets the same node.
    ///
    /// # Errors
    /// [`RedeemError`]; noted on the invite for its owner.
    pub async fn redeem(&self, redeem: Redeem) -> Result<Node, RedeemError> {
        let _ = redeem;
        todo!()
    }
}
