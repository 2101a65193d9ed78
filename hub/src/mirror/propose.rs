//! What of a node's edits goes in: judged by the rules that both ends share, with the hub's knowledge of chunks, pauses and limits.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use cortex_wire::{
    id::NodeId,
    limits,
    mirror::{
        entry::{Entry, Sid},
        judge::{self, Author, Code, Conflict, Judgement, Lock, Objection},
        op::{self, Op},
    },
    schema::{Proposal, Verdict},
};

use prost::Message as _;

use super::{
    MirrorError,
    commit::{By, Plan},
    content,
    workspace::{Head, Workspace},
};
use crate::{
    hub::Hub,
    record::{Digest, mirror::ConflictRecord, tables::VERDICTS},
    store::Span,
};

/// A proposal, read.
struct Proposed {
    node: NodeId,
    sequence: u64,
    task: Bytes,
    digest: Digest,
    ops: Vec<Op>,
    /// Those of them whose chunks the hub does not hold.
    unheld: HashSet<usize>,
}

impl Workspace {
    /// Judges a node's proposal. A repeated one gets the first one's verdict. The verdict is durable.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(crate) async fn propose(self: &Arc<Self>, hub: &Arc<Hub>, node: NodeId, proposal: Proposal) -> Result<Verdict, MirrorError> {
        let (session, sequence) = (self.session, proposal.sequence);
        let digest = Digest(blake3::hash(&proposal.batch.clone().unwrap_or_default().encode_to_vec()).into());
        let given = hub.db.read(move |tx| VERDICTS.get(tx, &(session, (node, sequence)))).await?;
        if let Some(given) = given.filter(|given| given.digest == digest.0[..]).and_then(|given| given.verdict) {
            return Ok(given);
        }
        let malformed = |error: op::BatchError| MirrorError::Protocol(error.to_string());
        let ops = op::unpack(&proposal.batch.unwrap_or_default(), limits::BATCH_OPS).map_err(malformed)?;
        let unheld = content::unheld(hub, self, &ops).await?;
        let task = if proposal.task_id.len() == 16 { proposal.task_id } else { Bytes::new() };
        let proposed = Proposed { node, sequence, task, digest, ops, unheld };
        let now_ms = hub.now_ms();
        let outcome = self.commit(hub, By::Node(node), move |head| Ok(decide(head, &proposed, now_ms))).await?;
        outcome.verdict.ok_or(MirrorError::Failed)
    }

    /// A node begins from nothing: what it was told before answers nothing that it proposes from now on.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(crate) async fn forget_verdicts(&self, hub: &Arc<Hub>, node: NodeId) -> Result<(), MirrorError> {
        let session = self.session;
        let told = hub.db.read(move |tx| VERDICTS.last(tx, &Span::under((session, node)))).await?;
        if told.is_some() {
            hub.change(By::Node(node).subject(), move |change| VERDICTS.clear(change.tx, &Span::under((session, node)))).await?;
        }
        Ok(())
    }
}

fn decide(head: &Head, proposed: &Proposed, now_ms: i64) -> Plan {
    let mut plan = Plan::of(head);
    let judgement = judge(head, proposed, now_ms);
    plan.tree = judgement.tree;
    plan.ops = judgement.accepted;
    plan.conflicts = judgement.conflicts.iter().map(|conflict| record_of(conflict, head, proposed.node)).collect();
    plan.what = "edit".into();
    plan.task = proposed.task.clone();
    plan.proposal = proposed.digest;
    let objections = judgement.objections.iter().map(Objection::to_schema).collect();
    plan.verdict = Some(Verdict { sequence: proposed.sequence, objections, ..Verdict::default() });
    plan
}

fn judge(head: &Head, proposed: &Proposed, now_ms: i64) -> Judgement {
    let refused = |code: Code, message: &str| {
        let objection = |op| Objection { op, code, message: message.into() };
        let objections = (0..proposed.ops.len()).map(objection).collect();
        Judgement { tree: head.tree.clone(), accepted: Vec::new(), objections, conflicts: Vec::new() }
    };
    if head.record.paused {
        return refused(Code::Paused, "the workspace is paused");
    }
    // Those that are left out keep their numbers.
    let (numbers, ops): (Vec<usize>, Vec<Op>) =
        proposed.ops.iter().cloned().enumerate().filter(|(number, _)| !proposed.unheld.contains(number)).unzip();
    let locks: Vec<Lock> = head.record.locks.iter().filter_map(|lock| Lock::from_schema(&super::lock::to_message(lock)).ok()).collect();
    let mut judgement = judge::judge(&head.tree, &ops, &locks, &Author::Node(proposed.node), now_ms);
    if judgement.tree.len() > limits::WORKSPACE_ENTRIES && judgement.tree.len() > head.tree.len() {
        return refused(Code::TooLarge, "the workspace has too many entries");
    }
    for objection in &mut judgement.objections {
        objection.op = numbers.get(objection.op).copied().unwrap_or(objection.op);
    }
    let unheld = |op: &usize| Objection { op: *op, code: Code::MissingChunks, message: "the hub does not hold its contents".into() };
    judgement.objections.extend(proposed.unheld.iter().map(unheld));
    judgement.objections.sort_by_key(|objection| objection.op);
    judgement
}

/// The version that lost, whole: its chunks are here already.
fn record_of(conflict: &Conflict, head: &Head, node: NodeId) -> ConflictRecord {
    let kept = Op::Put { path: conflict.path.clone(), parent: conflict.base, entry: conflict.proposed.clone() };
    ConflictRecord {
        path: conflict.path.to_string(),
        node: node.key().to_bytes(),
        parent: conflict.base.map(|hash| hash.to_bytes()).unwrap_or_default(),
        current: head.tree.hash(&conflict.path).map(|hash| hash.to_bytes()).unwrap_or_default(),
        kept: Some(op::pack(&[kept])),
        ..ConflictRecord::default()
    }
}

/// Files that changes write, with their numbers.
pub(super) fn files(ops: &[Op]) -> impl Iterator<Item = (usize, &cortex_wire::mirror::entry::Content)> {
    ops.iter().enumerate().filter_map(|(number, op)| match op {
        Op::Put { entry: Entry::File { content, .. }, .. } => Some((number, content)),
        _ => None,
    })
}

/// Which changes name each chunk.
pub(super) fn by_chunk(ops: &[Op]) -> BTreeMap<Sid, Vec<usize>> {
    let mut chunks: BTreeMap<Sid, Vec<usize>> = BTreeMap::new();
    for (number, content) in files(ops) {
        for span in &*content.spans {
            let numbers = chunks.entry(span.sid).or_default();
            if numbers.last() != Some(&number) {
                numbers.push(number);
            }
        }
    }
    chunks
}
