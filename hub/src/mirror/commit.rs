//! One commit: what was decided over the head becomes durable, then becomes the head.
//!
//! Commits of a workspace take turns. Whoever has the turn decides on a copy of the tree (which costs nothing), writes one transaction with the commit, its
//! conflicts, the verdict that a node may ask for again, the session's event and the audit row, and replaces the head when all of it is durable. A commit runs
//! to its end even when whoever asked for it has gone away meanwhile.

use std::sync::Arc;

use bytes::Bytes;
use cortex_wire::{
    id::{NodeId, SessionId},
    mirror::{
        op::{self, Op},
        tree::Tree,
    },
    schema::{PackedBatch, Verdict},
};
use serde_json::{Value, json};

use super::{
    MirrorError,
    workspace::{Head, Workspace},
};
use crate::{
    account::Actor,
    change::Change,
    hub::Hub,
    record::{
        Digest, Scope, SessionStatus, Standing,
        mirror::{CommitRecord, ConflictRecord, VerdictRecord, WorkspaceRecord},
        tables::{COMMITS, CONFLICTS, NODES, SESSIONS, SNAPSHOTS, VERDICTS, WORKSPACES},
    },
    session,
};

/// A snapshot is written after as many changes as the tree has entries, and not before this many.
const SNAPSHOT_OPS: u64 = if cfg!(test) { 12 } else { 4096 };
/// Verdicts of one node that are remembered.
const VERDICTS_KEPT: u64 = 64;
/// Paths named in a commit's event.
const PATHS: usize = 16;

/// On whose behalf.
#[derive(Debug, Clone)]
pub(crate) enum By {
    /// Somebody at the hub.
    Actor(Actor),
    /// An attached node.
    Node(NodeId),
}

impl By {
    pub(super) fn subject(&self) -> String {
        match self {
            Self::Actor(actor) => actor.subject(),
            Self::Node(node) => format!("node:{node}"),
        }
    }

    /// Checked in the transaction: a right that ended a moment ago does not count.
    fn check(&self, change: &Change<'_>, id: SessionId) -> Result<(), MirrorError> {
        match self {
            Self::Actor(actor) => {
                let session = session::used_by(change.tx, actor, Scope::Dispatch, id)?;
                if session.status == SessionStatus::Active { Ok(()) } else { Err(MirrorError::Archived) }
            }
            Self::Node(node) => {
                let attached = SESSIONS.get(change.tx, &id)?.is_some_and(|session| session.nodes.contains(node));
                let active = NODES.get(change.tx, node)?.is_some_and(|node| node.standing == Standing::Active);
                if attached && active { Ok(()) } else { Err(MirrorError::Gone) }
            }
        }
    }
}

/// What was decided.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Where the workspace will stand; revision, root and snapshot are filled in.
    pub(crate) record: WorkspaceRecord,
    /// The tree with `ops` applied.
    pub(crate) tree: Tree,
    /// What goes into the log.
    pub(crate) ops: Vec<Op>,
    /// What did not go in. Numbers are filled in.
    pub(crate) conflicts: Vec<ConflictRecord>,
    /// Conflicts that are settled with it.
    pub(crate) settled: Vec<ConflictRecord>,
    /// The answer to a node's proposal, under its sequence. Base, revision and root are filled in.
    pub(crate) verdict: Option<Verdict>,
    /// Of the proposal that it answers.
    pub(crate) proposal: Digest,
    /// In a few words.
    pub(crate) what: String,
    /// The task that wrote it, or empty.
    pub(crate) task: Bytes,
    /// A row for the session's log beside that of the commit.
    pub(crate) event: Option<(&'static str, Value)>,
}

impl Plan {
    /// Nothing changes.
    pub(crate) fn of(head: &Head) -> Self {
        Self {
            record: head.record.clone(),
            tree: head.tree.clone(),
            ops: Vec::new(),
            conflicts: Vec::new(),
            settled: Vec::new(),
            verdict: None,
            proposal: Digest::default(),
            what: String::new(),
            task: Bytes::new(),
            event: None,
        }
    }

    fn changes_nothing(&self, head: &Head) -> bool {
        self.ops.is_empty() && self.conflicts.is_empty() && self.settled.is_empty() && self.record == head.record
    }
}

/// A verdict at its place in the order of revisions.
fn stands_at(verdict: Verdict, base: &Head, after: &WorkspaceRecord) -> Verdict {
    Verdict { base: base.revision(), revision: after.revision, root: Bytes::copy_from_slice(&after.root.0), ..verdict }
}

/// What became of a plan.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Where the workspace stands now.
    pub(crate) head: Arc<Head>,
    /// Filled in.
    pub(crate) verdict: Option<Verdict>,
}

/// Everything that one transaction writes.
struct Rows {
    record: WorkspaceRecord,
    commit: Option<CommitRecord>,
    snapshot: Vec<PackedBatch>,
    conflicts: Vec<ConflictRecord>,
    verdict: Option<Verdict>,
    proposal: Digest,
    event: Option<(&'static str, Value)>,
}

impl Workspace {
    /// Waits for its turn, lets `decide` look at the head, and makes durable what it decided.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        by: By,
        decide: impl FnOnce(&Head) -> Result<Plan, MirrorError> + Send + 'static,
    ) -> Result<Outcome, MirrorError> {
        let (workspace, hub) = (self.clone(), hub.clone());
        let run = tokio::spawn(async move {
            let _turn = workspace.turn.acquire().await.map_err(|_| MirrorError::Gone)?;
            let (head, now_ms) = (workspace.head(), hub.now_ms());
            // Large changes take a while, and whoever else runs on this thread would wait.
            let decided = tokio::task::spawn_blocking(move || {
                let plan = decide(&head)?;
                let rows = rows(&by, &head, &plan, now_ms);
                Ok::<_, MirrorError>((by, head, plan, rows))
            });
            let (by, head, plan, rows) = decided.await.unwrap_or(Err(MirrorError::Failed))?;
            if plan.changes_nothing(&head) && matches!(by, By::Node(_)) {
                return Ok(Outcome { verdict: rows.verdict, head });
            }
            workspace.write(&hub, by, plan.tree, rows).await
        });
        run.await.unwrap_or(Err(MirrorError::Failed))
    }

    async fn write(self: &Arc<Self>, hub: &Arc<Hub>, by: By, tree: Tree, rows: Rows) -> Result<Outcome, MirrorError> {
        let verdict = rows.verdict.clone();
        let next = Head { record: rows.record.clone(), tree };
        let (id, workspace, counters) = (self.session, self.clone(), hub.mirrors.counters.clone());
        let conflicts = rows.record.last_conflict.saturating_sub(self.head().record.last_conflict);
        hub.change_later(by.subject(), move |change| {
            by.check(change, id)?;
            let commit = rows.commit.clone();
            put(change, &by, id, rows)?;
            change.then(move || {
                counters.committed(u64::from(commit.is_some()), conflicts);
                workspace.advance(next, commit);
            });
            Ok::<(), MirrorError>(())
        })
        .await?;
        Ok(Outcome { head: self.head(), verdict })
    }
}

fn rows(by: &By, head: &Head, plan: &Plan, now_ms: i64) -> Rows {
    let mut record = plan.record.clone();
    let (mut commit, mut snapshot) = (None, Vec::new());
    if !plan.ops.is_empty() {
        record.revision += 1;
        record.root = Digest(plan.tree.root().0);
        record.ops_since += plan.ops.len() as u64;
        if record.ops_since >= SNAPSHOT_OPS.max(plan.tree.len() as u64) {
            snapshot = packs(&op::compact(&Tree::default(), &plan.tree));
            (record.snapshot, record.ops_since) = (record.revision, 0);
        }
        commit = Some(commit_of(by, &record, plan, now_ms));
    }
    let mut conflicts = plan.conflicts.clone();
    for conflict in &mut conflicts {
        record.last_conflict += 1;
        (conflict.number, conflict.at_ms, conflict.revision) = (record.last_conflict, now_ms, record.revision);
    }
    let verdict = plan.verdict.clone().map(|verdict| stands_at(verdict, head, &record));
    conflicts.extend(plan.settled.iter().cloned());
    Rows { record, commit, snapshot, conflicts, verdict, proposal: plan.proposal, event: plan.event.clone() }
}

fn commit_of(by: &By, record: &WorkspaceRecord, plan: &Plan, now_ms: i64) -> CommitRecord {
    let count = |wanted: fn(&Op) -> bool| plan.ops.iter().filter(|op| wanted(op)).count() as u64;
    let (user, node) = match by {
        By::Actor(actor) => (Bytes::copy_from_slice(actor.user.as_bytes()), Bytes::new()),
        By::Node(node) => (Bytes::new(), node.key().to_bytes()),
    };
    CommitRecord {
        revision: record.revision,
        at_ms: now_ms,
        root: Bytes::copy_from_slice(&record.root.0),
        user,
        node,
        task: plan.task.clone(),
        what: plan.what.clone(),
        puts: count(|op| matches!(op, Op::Put { .. })),
        removes: count(|op| matches!(op, Op::Remove { .. })),
        moves: count(|op| matches!(op, Op::Move { .. })),
        paths: plan.ops.iter().take(PATHS).map(|op| op.path().to_string()).collect(),
        batches: packs(&plan.ops),
    }
}

fn put(change: &mut Change<'_>, by: &By, id: SessionId, rows: Rows) -> Result<(), MirrorError> {
    WORKSPACES.put(change.tx, &id, &rows.record)?;
    for (page, batch) in rows.snapshot.iter().enumerate() {
        SNAPSHOTS.put(change.tx, &(id, (rows.record.snapshot, page as u64)), batch)?;
    }
    for conflict in &rows.conflicts {
        let before = CONFLICTS.get(change.tx, &(id, conflict.number))?;
        if before.is_some_and(|before| !before.is_open()) {
            return Err(MirrorError::NoConflict(conflict.number));
        }
        CONFLICTS.put(change.tx, &(id, conflict.number), conflict)?;
        let data = json!({
            "number": conflict.number, "path": conflict.path, "revision": conflict.revision, "resolution": conflict.resolution,
            "node_id": NodeId::from_slice(&conflict.node).ok(),
        });
        change.event(id, "file_conflict", data)?;
    }
    if let (By::Node(node), Some(verdict)) = (by, &rows.verdict) {
        let kept = VerdictRecord { digest: Bytes::copy_from_slice(&rows.proposal.0), verdict: Some(verdict.clone()) };
        VERDICTS.put(change.tx, &(id, (*node, verdict.sequence)), &kept)?;
        if let Some(old) = verdict.sequence.checked_sub(VERDICTS_KEPT) {
            VERDICTS.delete(change.tx, &(id, (*node, old)))?;
        }
    }
    if let Some(commit) = &rows.commit {
        COMMITS.put(change.tx, &(id, commit.revision), commit)?;
        change.event(id, "files", event_of(commit))?;
    }
    if let Some((kind, data)) = rows.event {
        change.event(id, kind, data)?;
    }
    if let By::Actor(_) = by {
        let what = rows.commit.as_ref().map_or("state", |commit| &commit.what);
        let detail = format!("{} {} {}", rows.record.revision, rows.record.root, what);
        change.audit("workspace.write", &format!("session:{id}"), detail.as_bytes())?;
    }
    Ok(())
}

/// Changes as they rest and travel.
pub(super) fn packs(ops: &[Op]) -> Vec<PackedBatch> {
    op::split(ops).into_iter().map(op::pack).collect()
}

/// What the session's log says of a commit.
fn event_of(commit: &CommitRecord) -> Value {
    json!({
        "revision": commit.revision, "author": commit.author(), "task_id": commit.task(), "what": commit.what,
        "puts": commit.puts, "removes": commit.removes, "moves": commit.moves, "paths": commit.paths,
    })
}
