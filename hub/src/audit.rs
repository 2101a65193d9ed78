//! The hash chain of what was done by whom.
//!
//! Row *i* holds `h_i = BLAKE3(h_{i-1}, seq, time, actor, verb, object, digest)`, written in the transaction of the act it describes. Every
//! thousandth row is a checkpoint that the audit key signs. Whoever changes, removes or inserts a row has to change all behind it, and
//! cannot sign the next checkpoint. No secret stands in a row: of commands and messages there is a hash.

use std::ops::ControlFlow;

use cortex_wire::{
    id::NodeId,
    key::{Domain, PublicKey},
};
use data_encoding::BASE64;

use crate::{
    account::Actor,
    failure::Refused,
    hub::Hub,
    keys::HubKeys,
    node::{self, NodeAccess},
    record::{
        AuditRow, Digest, Scope,
        tables::{AUDIT, NODES},
    },
    store::{Order, ReadTx, Span, StoreError, WriteTx},
};

/// Rows from one signed checkpoint to the next: a signature costs more than a row.
const CHECKPOINT: u64 = 1000;

/// Rows that are looked at for one page of what was done to a node. Beyond them the page ends, and the next one goes on there.
const LOOKED_AT: usize = 20_000;

/// What was done by whom.
pub(crate) struct Act<'a> {
    pub(crate) actor: &'a str,
    pub(crate) verb: &'a str,
    pub(crate) object: &'a str,
    pub(crate) detail: &'a [u8],
}

/// How a walk along the chain went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditVerdict {
    /// Rows that were checked and hold.
    pub rows: u64,
    /// Signed checkpoints among them.
    pub checkpoints: u64,
    /// The first row that does not hold, and why.
    pub broken: Option<(u64, String)>,
}

/// Adds a row to the chain.
pub(crate) fn append(tx: &mut dyn WriteTx, keys: &HubKeys, now_ms: i64, act: Act<'_>) -> Result<(), StoreError> {
    let last = AUDIT.last(tx, &Span::all())?;
    let (seq, before) = last.map_or((1, Digest([0; 32])), |row| (row.seq + 1, row.hash));
    let mut row = AuditRow {
        seq,
        at_ms: now_ms,
        actor: act.actor.to_owned(),
        verb: act.verb.to_owned(),
        object: act.object.to_owned(),
        digest: Digest(blake3::hash(act.detail).into()),
        hash: Digest([0; 32]),
        signature: None,
    };
    row.hash = link(before, &row);
    if seq.is_multiple_of(CHECKPOINT) {
        row.signature = Some(BASE64.encode(&keys.audit.sign(Domain::Audit, &[&seq.to_be_bytes(), &row.hash.0])));
    }
    AUDIT.put(tx, &seq, &row)
}

/// The hash that ties a row to the one before it.
fn link(before: Digest, row: &AuditRow) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("cortex-mesh v1 audit row");
    let (seq, at) = (row.seq.to_be_bytes(), row.at_ms.to_be_bytes());
    let parts: [&[u8]; 7] = [&before.0, &seq, &at, row.actor.as_bytes(), row.verb.as_bytes(), row.object.as_bytes(), &row.digest.0];
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    Digest(hasher.finalize().into())
}

/// Walks the chain from its first row.
pub(crate) fn verify(tx: &dyn ReadTx, key: &PublicKey) -> Result<AuditVerdict, StoreError> {
    let mut verdict = AuditVerdict { rows: 0, checkpoints: 0, broken: None };
    let mut before = Digest([0; 32]);
    AUDIT.visit(tx, &Span::all(), Order::Ascending, |_, row| {
        let expected = verdict.rows + 1;
        if let Err(why) = check(&row, expected, before, key) {
            verdict.broken = Some((expected, why.to_owned()));
            return Ok(ControlFlow::Break(()));
        }
        verdict.rows += 1;
        verdict.checkpoints += u64::from(row.signature.is_some());
        before = row.hash;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(verdict)
}

fn check(row: &AuditRow, expected: u64, before: Digest, key: &PublicKey) -> Result<(), &'static str> {
    if row.seq != expected {
        return Err("the row is missing");
    }
    if link(before, row) != row.hash {
        return Err("the row was changed, or the one before it");
    }
    match &row.signature {
        Some(text) => {
            let signature = BASE64.decode(text.as_bytes()).map_err(|_| "the checkpoint's signature is malformed")?;
            key.verify(Domain::Audit, &[&row.seq.to_be_bytes(), &row.hash.0], &signature)
                .map_err(|_| "the checkpoint is not signed by the hub's audit key")
        }
        None if row.seq.is_multiple_of(CHECKPOINT) => Err("the checkpoint's signature is missing"),
        None => Ok(()),
    }
}

fn may_read(tx: &dyn ReadTx, actor: &Actor, id: NodeId) -> Result<(), Refused> {
    match node::find(tx, actor, id) {
        Ok((_, NodeAccess::Owner)) => Ok(()),
        Ok(_) if actor.may(Scope::Admin) => Ok(()),
        Ok(_) => Err(Refused::Forbidden("only the node's owner or an administrator may read what was done to it")),
        Err(Refused::NotFound(_)) if actor.may(Scope::Admin) => NODES.get(tx, &id)?.map(drop).ok_or(Refused::NotFound("node")),
        Err(error) => Err(error),
    }
}

impl Hub {
    /// Rows in this order that follow the one with this number, at most `limit`. For administrators.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn audit_rows(&self, actor: &Actor, behind: Option<u64>, order: Order, limit: usize) -> Result<Vec<AuditRow>, Refused> {
        actor.must(Scope::Admin)?;
        let span = match (behind, order) {
            (None, _) => Span::all(),
            (Some(seq), Order::Ascending) => Span::all().after(seq),
            (Some(seq), Order::Descending) => Span::all().before(seq),
        };
        self.db.read(move |tx| Ok(AUDIT.list(tx, &span, order, limit)?)).await
    }

    /// What was done to a node and by it, newest first: at most `limit` rows before `before`, and where the next ones begin. For its owner and administrators.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn audit_of_node(
        &self,
        actor: &Actor,
        id: NodeId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<AuditRow>, Option<u64>), Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                may_read(tx, &actor, id)?;
                let name = format!("node:{id}");
                let (mut rows, mut next, mut looked_at) = (Vec::new(), None, 0);
                let span = before.map_or_else(Span::all, |before| Span::all().before(before));
                AUDIT.visit(tx, &span, Order::Descending, |_, row| {
                    looked_at += 1;
                    let seq = row.seq;
                    if row.object == name || row.actor == name {
                        rows.push(row);
                    }
                    if rows.len() < limit && looked_at < LOOKED_AT {
                        return Ok(ControlFlow::Continue(()));
                    }
                    next = (seq > 1).then_some(seq);
                    Ok(ControlFlow::Break(()))
                })?;
                Ok((rows, next))
            })
            .await
    }

    /// Walks the whole chain. For administrators.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn verify_audit(&self, actor: &Actor) -> Result<AuditVerdict, Refused> {
        actor.must(Scope::Admin)?;
        let key = self.keys.audit.public();
        self.db.read(move |tx| Ok(verify(tx, &key)?)).await
    }
}

#[cfg(test)]
mod tests;
