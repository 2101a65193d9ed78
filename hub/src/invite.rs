//! Invites: made, shown, taken back, and redeemed exactly once.

use std::collections::BTreeMap;

use cortex_runtime::clock::random;
use cortex_wire::{
    id::{InviteId, NodeId, SessionId},
    invite, limits,
    text::clean,
};
use serde_json::json;
use subtle::ConstantTimeEq as _;

use crate::{
    account::Actor,
    change::Change,
    failure::{Failure, Kind, Refused},
    hub::Hub,
    node,
    presence::PresenceTable,
    record::{
        Capabilities, Digest, Invite, InviteRefusal, Node, SandboxPolicy, Scope, SessionStatus, Standing,
        tables::{INVITES, INVITES_OF_USER, NODES, SESSIONS},
    },
    session,
    store::{Order, ReadTx, Span, StoreError, WriteTx},
};

const MINUTE_MS: i64 = 60_000;
/// Enough to walk to the machine.
const LIFE_MS: i64 = 60 * MINUTE_MS;
const SHORTEST_LIFE_MS: i64 = 15 * MINUTE_MS;
const LONGEST_LIFE_MS: i64 = 7 * 24 * 60 * MINUTE_MS;
/// How long an invite is shown after its end.
const KEPT_MS: i64 = 30 * 24 * 60 * MINUTE_MS;
/// Invites of one user, those that are over included.
const INVITES_OF_ONE_USER: usize = 10_000;
const REFUSAL_REPEAT_MS: i64 = MINUTE_MS;

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

fn object(id: InviteId) -> String {
    format!("invite:{id}")
}

fn owned_by(tx: &dyn ReadTx, actor: &Actor, id: InviteId) -> Result<Invite, Refused> {
    INVITES.get(tx, &id)?.filter(|invite| invite.owner == actor.user).ok_or(Refused::NotFound("invite"))
}

fn tell(change: &mut Change<'_>, invite: &Invite, what: &str) -> Result<(), StoreError> {
    let data = json!({
        "invite_id": invite.id,
        "name": invite.name,
        "change": what,
        "node_id": invite.used_by,
        "last_refusal": invite.last_refusal,
    });
    change.notice(vec![invite.owner], "invite", data)
}

/// Why this invite cannot be redeemed any more. A retry by the node that has it is not asked.
fn check(invite: &Invite, now_ms: i64) -> Result<(), RedeemError> {
    if invite.used_by.is_some() {
        Err(RedeemError::Used)
    } else if invite.revoked_at_ms.is_some() {
        Err(RedeemError::Revoked)
    } else if now_ms > invite.expires_at_ms {
        Err(RedeemError::Expired)
    } else {
        Ok(())
    }
}

/// Keeps a refused try for the invite's owner.
fn note_refusal(change: &mut Change<'_>, mut invite: Invite, node: NodeId, why: &RedeemError) -> Result<(), StoreError> {
    let refusal =
        InviteRefusal { code: why.code().into(), reason: why.to_string(), fingerprint: node.key().fingerprint(), at_ms: change.now_ms };
    // A machine that tries in a loop is worth one row a minute.
    let repeats = |old: &InviteRefusal| {
        (&old.code, &old.fingerprint) == (&refusal.code, &refusal.fingerprint) && refusal.at_ms - old.at_ms < REFUSAL_REPEAT_MS
    };
    if invite.last_refusal.as_ref().is_some_and(repeats) {
        return Ok(());
    }
    invite.refusals += 1;
    invite.last_refusal = Some(refusal);
    INVITES.put(change.tx, &invite.id, &invite)?;
    change.audit("invite.refuse", &object(invite.id), node.key().as_bytes())?;
    tell(change, &invite, "refused")
}

/// Makes the node that an invite promised, and uses the invite up.
fn bind(change: &mut Change<'_>, presence: &PresenceTable, mut invite: Invite, redeem: Redeem) -> Result<Node, StoreError> {
    let now_ms = change.now_ms;
    let wish = [&invite.name, &redeem.name, &redeem.capabilities.hostname].into_iter().find(|name| !name.trim().is_empty());
    let name = node::free_name(change.tx, invite.owner, wish.map_or("", String::as_str))?;
    let node = Node {
        id: redeem.node,
        owner: invite.owner,
        name,
        labels: invite.labels.clone(),
        standing: if invite.approval { Standing::Pending } else { Standing::Active },
        created_at_ms: now_ms,
        approved_at_ms: (!invite.approval).then_some(now_ms),
        invite: invite.id,
        ephemeral: invite.ephemeral,
        shared_with: vec![],
        agent: clean(&redeem.agent, limits::NAME_BYTES),
        capabilities: redeem.capabilities,
        policy: SandboxPolicy::default(),
        path_policy: crate::record::PathPolicy::default(),
        drained_at_ms: None,
        ceiling: None,
        in_force: None,
        last_seen_at_ms: Some(now_ms),
        last_disconnect: None,
        refusal: None,
        relay: None,
        observed_address: redeem.observed_address,
    };
    node::insert(change, &node)?;
    invite.used_by = Some(node.id);
    invite.used_at_ms = Some(now_ms);
    INVITES.put(change.tx, &invite.id, &invite)?;
    change.audit("invite.redeem", &object(invite.id), node.id.key().as_bytes())?;
    if let Some(mut session) = invite.session.map(|id| SESSIONS.get(change.tx, &id)).transpose()?.flatten() {
        let welcome = session.status == SessionStatus::Active && session::is_in(&session, invite.owner);
        // A session that is full or gone is no reason to turn the machine away.
        if welcome && let Err(Refused::Store(error)) = session::attach(change, &mut session, &node, invite.owner) {
            return Err(error);
        }
    }
    tell(change, &invite, "redeemed")?;
    node::tell(change, presence, &node, "enrolled")?;
    Ok(node)
}

impl Hub {
    /// Makes an invite.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn create_invite(&self, actor: &Actor, new: NewInvite) -> Result<IssuedInvite, InviteError> {
        actor.must(Scope::Manage)?;
        let (online, away): (Vec<_>, Vec<_>) = self.relays().into_iter().partition(|relay| relay.online);
        let relays: Vec<_> = online.into_iter().chain(away).map(|relay| relay.endpoint).take(limits::RELAYS).collect();
        if relays.is_empty() {
            return Err(InviteError::NoRelay);
        }
        let labels = node::clean_labels(new.labels)?;
        let life_ms = new.expires_in_ms.unwrap_or(LIFE_MS).clamp(SHORTEST_LIFE_MS, LONGEST_LIFE_MS);
        let secret: [u8; 32] = random();
        let (actor, keys) = (actor.clone(), self.keys.clone());
        self.change(actor.subject(), move |change| {
            let now_ms = change.now_ms;
            if let Some(session) = new.session {
                session::used_by(change.tx, &actor, Scope::Manage, session)?;
            }
            let mine = INVITES_OF_USER.all_of(change.tx, &actor.user)?;
            if mine.len() >= INVITES_OF_ONE_USER {
                return Err(Refused::Invalid(format!("there are {} invites already; revoke some first", mine.len())).into());
            }
            let invite = Invite {
                id: InviteId::new(now_ms, random()),
                owner: actor.user,
                name: clean(&new.name, limits::NAME_BYTES),
                labels,
                session: new.session,
                secret_hash: Digest(invite::hash_secret(&secret)),
                created_at_ms: now_ms,
                expires_at_ms: now_ms + life_ms,
                approval: new.approval,
                ephemeral: new.ephemeral,
                used_by: None,
                used_at_ms: None,
                revoked_at_ms: None,
                refusals: 0,
                last_refusal: None,
            };
            INVITES.put(change.tx, &invite.id, &invite)?;
            INVITES_OF_USER.insert(change.tx, &actor.user, &invite.id)?;
            change.audit("invite.create", &object(invite.id), invite.name.as_bytes())?;
            tell(change, &invite, "created")?;
            let terms = invite::Terms {
                id: invite.id,
                hub: keys.id(),
                secret_hash: invite.secret_hash.0,
                relays,
                expires_at_ms: invite.expires_at_ms,
                approval: invite.approval,
                ephemeral: invite.ephemeral,
            };
            let text = invite::issue(&terms, secret, &keys.invite, keys.invite_statement());
            Ok(IssuedInvite { invite, text })
        })
        .await
    }

    /// The actor's invites, newest first.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn invites(&self, actor: &Actor) -> Result<Vec<Invite>, InviteError> {
        actor.must(Scope::Read)?;
        let user = actor.user;
        self.db
            .read(move |tx| {
                let ids = INVITES_OF_USER.of(tx, &user, &Span::under(user), Order::Descending, usize::MAX)?;
                let invites: Result<Vec<_>, StoreError> = ids.iter().filter_map(|id| INVITES.get(tx, id).transpose()).collect();
                Ok(invites?)
            })
            .await
    }

    /// One of the actor's invites.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn invite(&self, actor: &Actor, id: InviteId) -> Result<Invite, InviteError> {
        actor.must(Scope::Read)?;
        let actor = actor.clone();
        self.db.read(move |tx| Ok(owned_by(tx, &actor, id)?)).await
    }

    /// Takes an invite back; twice is fine.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn revoke_invite(&self, actor: &Actor, id: InviteId) -> Result<Invite, InviteError> {
        actor.must(Scope::Manage)?;
        let actor = actor.clone();
        self.change(actor.subject(), move |change| {
            let mut invite = owned_by(change.tx, &actor, id)?;
            if invite.used_by.is_some() {
                return Err(InviteError::AlreadyUsed);
            }
            if invite.revoked_at_ms.is_none() {
                invite.revoked_at_ms = Some(change.now_ms);
                INVITES.put(change.tx, &id, &invite)?;
                change.audit("invite.revoke", &object(id), b"")?;
                tell(change, &invite, "revoked")?;
            }
            Ok(invite)
        })
        .await
    }

    /// Whether a node that shows this invite to a relay may be let through to redeem it: the same checks as [`Hub::redeem`] without the
    /// secret, which no relay sees, and nothing is consumed. For the mesh.
    ///
    /// # Errors
    /// [`RedeemError`]; noted on the invite for its owner.
    pub async fn check_invite(&self, id: InviteId, node: NodeId) -> Result<(), RedeemError> {
        let checked = self.change(format!("node:{node}"), move |change| {
            let Some(invite) = INVITES.get(change.tx, &id)? else { return Ok(Err(RedeemError::Unknown)) };
            if invite.used_by == Some(node) {
                return Ok(Ok(()));
            }
            let Err(refusal) = check(&invite, change.now_ms) else { return Ok(Ok(())) };
            note_refusal(change, invite, node, &refusal)?;
            Ok(Err(refusal))
        });
        checked.await.map_err(|error: StoreError| error)?
    }

    /// Checks, consumes and binds in one transaction. A retry by the same key gets the same node.
    ///
    /// # Errors
    /// [`RedeemError`]; noted on the invite for its owner.
    pub async fn redeem(&self, redeem: Redeem) -> Result<Node, RedeemError> {
        let presence = self.presence.clone();
        let redeemed = self.change(format!("node:{}", redeem.node), move |change| {
            let Some(invite) = INVITES.get(change.tx, &redeem.invite_id)? else { return Ok(Err(RedeemError::Unknown)) };
            let known = NODES.get(change.tx, &redeem.node)?;
            let knows_secret = bool::from(invite.secret_hash.0.ct_eq(&redeem.secret_hash));
            if let Some(node) = known.as_ref().filter(|node| knows_secret && invite.used_by == Some(node.id) && node.invite == invite.id) {
                return Ok(Ok(node.clone()));
            }
            let refusal = match check(&invite, change.now_ms) {
                _ if !knows_secret => RedeemError::Unknown,
                Ok(()) if known.is_none() => return bind(change, &presence, invite, redeem).map(Ok),
                Ok(()) => RedeemError::NodeOwned,
                Err(refusal) => refusal,
            };
            // The refusal itself is to be kept: the transaction succeeds.
            note_refusal(change, invite, redeem.node, &refusal)?;
            Ok(Err(refusal))
        });
        redeemed.await.map_err(|error: StoreError| error)?
    }
}

/// Drops invites that nobody can use any more and that are old enough for nobody to ask what became of them.
pub(crate) fn sweep(tx: &mut dyn WriteTx, now_ms: i64) -> Result<(), StoreError> {
    let old = |invite: &Invite| now_ms - invite.expires_at_ms > KEPT_MS;
    let invites = INVITES.list(tx, &Span::all(), Order::Ascending, usize::MAX)?;
    for invite in invites.iter().filter(|invite| old(invite)) {
        INVITES.delete(tx, &invite.id)?;
        INVITES_OF_USER.remove(tx, &invite.owner, &invite.id)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
