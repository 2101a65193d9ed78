//! What a workspace was: the log of commits, and the tree at any revision.
//!
//! Every commit is kept with the changes that were accepted, and now and then the whole tree ([`super::commit`]). The tree at a revision is the nearest snapshot before
//! it and the changes since.

use std::ops::ControlFlow;

use bytes::Bytes;
use cortex_wire::{
    id::SessionId,
    limits,
    mirror::{
        op::{self, Op},
        path::RelPath,
        tree::Tree,
    },
};

use super::{MirrorError, workspace::Workspace};
use crate::{
    hub::Hub,
    record::{
        mirror::{CommitRecord, WorkspaceRecord},
        tables::{COMMITS, SNAPSHOTS},
    },
    store::{Order, ReadTx, Span, StoreError},
};

/// Commits that are looked at for one page of the log.
const LOOKED_AT: usize = 5_000;

/// The tree at a revision.
pub(super) fn tree_at(tx: &dyn ReadTx, session: SessionId, revision: u64) -> Result<Tree, MirrorError> {
    let (from, mut tree) = snapshot_before(tx, session, revision)?;
    let span = Span::under(session).after((session, from)).before((session, revision + 1));
    let mut failed = None;
    COMMITS.visit(tx, &span, Order::Ascending, |_, commit| {
        if let Err(error) = replay(&mut tree, &commit.batches) {
            failed = Some(error);
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    failed.map_or(Ok(tree), Err)
}

/// The newest snapshot up to a revision; the empty tree of revision 0 when there is none.
fn snapshot_before(tx: &dyn ReadTx, session: SessionId, revision: u64) -> Result<(u64, Tree), MirrorError> {
    let mut found = None;
    let span = Span::under(session).before((session, (revision + 1, 0)));
    SNAPSHOTS.visit(tx, &span, Order::Descending, |key, _| {
        found = key.get(16..24).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        Ok(ControlFlow::Break(()))
    })?;
    let mut tree = Tree::default();
    let Some(at) = found else { return Ok((0, tree)) };
    let pages = SNAPSHOTS.list(tx, &Span::under((session, at)), Order::Ascending, usize::MAX)?;
    replay(&mut tree, &pages)?;
    Ok((at, tree))
}

fn replay(tree: &mut Tree, batches: &[cortex_wire::schema::PackedBatch]) -> Result<(), MirrorError> {
    for batch in batches {
        for op in op::unpack(batch, limits::BATCH_OPS).map_err(|_| MirrorError::Damaged)? {
            tree.apply(&op).map_err(|_| MirrorError::Damaged)?;
        }
    }
    Ok(())
}

/// The workspace as its rows say; checked against the hash that the last commit left.
pub(super) fn load(tx: &dyn ReadTx, record: &WorkspaceRecord) -> Result<Tree, MirrorError> {
    let tree = tree_at(tx, record.session, record.revision)?;
    if record.revision == 0 || tree.root().0 == record.root.0 { Ok(tree) } else { Err(MirrorError::Damaged) }
}

/// One row of the log.
fn commit_at(tx: &dyn ReadTx, session: SessionId, revision: u64) -> Result<Option<CommitRecord>, StoreError> {
    COMMITS.get(tx, &(session, revision))
}

/// Whether a commit touches a path or something below it. Answers for a page of the log, so it may read the changes.
fn touches(commit: &CommitRecord, path: &RelPath) -> bool {
    let inside = |op: &Op| match op {
        Op::Move { from, to, .. } => from.starts_with(path) || to.starts_with(path) || path.starts_with(from) || path.starts_with(to),
        Op::Remove { path: removed, .. } => removed.starts_with(path) || path.starts_with(removed),
        Op::Put { path: written, .. } => written.starts_with(path),
    };
    commit.batches.iter().filter_map(|batch| op::unpack(batch, limits::BATCH_OPS).ok()).flatten().any(|op| inside(&op))
}

/// A page of the log.
#[derive(Debug, Default)]
pub struct HistoryPage {
    /// Commits without their changes, newest first.
    pub commits: Vec<CommitRecord>,
    /// The log goes on before this revision.
    pub next: Option<u64>,
}

/// Rows of the log before a revision, newest first, at most `limit`; with a path only those that touch it.
fn page(tx: &dyn ReadTx, session: SessionId, before: Option<u64>, path: &RelPath, limit: usize) -> Result<HistoryPage, StoreError> {
    let span = Span::under(session);
    let span = if let Some(before) = before { span.before((session, before)) } else { span };
    let (mut page, mut looked_at, mut last) = (HistoryPage::default(), 0, None);
    COMMITS.visit(tx, &span, Order::Descending, |_, mut commit| {
        if page.commits.len() >= limit || looked_at >= LOOKED_AT {
            page.next = last;
            return Ok(ControlFlow::Break(()));
        }
        (looked_at, last) = (looked_at + 1, Some(commit.revision));
        if path.is_root() || touches(&commit, path) {
            commit.batches.clear();
            page.commits.push(commit);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(page)
}

/// The changes that a commit holds.
fn ops_of(commit: &CommitRecord) -> Result<Vec<Op>, MirrorError> {
    let mut ops = Vec::new();
    for batch in &commit.batches {
        ops.extend(op::unpack(batch, limits::BATCH_OPS).map_err(|_| MirrorError::Damaged)?);
    }
    Ok(ops)
}

impl Workspace {
    /// The tree at a revision.
    ///
    /// # Errors
    /// [`MirrorError`], also when there is no such revision.
    pub async fn tree_at(&self, hub: &Hub, revision: u64) -> Result<Tree, MirrorError> {
        let head = self.head();
        if revision == head.revision() {
            return Ok(head.tree.clone());
        }
        if revision > head.revision() {
            return Err(MirrorError::NoRevision(revision));
        }
        let session = self.session;
        hub.db.read(move |tx| tree_at(tx, session, revision)).await
    }

    /// Commits before a revision, newest first, at most `limit`; below a path only those that touch it.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn history(&self, hub: &Hub, before: Option<u64>, below: RelPath, limit: usize) -> Result<HistoryPage, MirrorError> {
        let session = self.session;
        Ok(hub.db.read(move |tx| page(tx, session, before, &below, limit)).await?)
    }

    /// One commit with its changes.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn revision(&self, hub: &Hub, revision: u64) -> Result<(CommitRecord, Vec<Op>), MirrorError> {
        let session = self.session;
        let commit = hub.db.read(move |tx| commit_at(tx, session, revision)).await?.ok_or(MirrorError::NoRevision(revision))?;
        let ops = ops_of(&commit)?;
        Ok((commit, ops))
    }

    /// Whether the log knows this state.
    pub(crate) async fn knows(&self, hub: &Hub, revision: u64, root: &[u8]) -> Result<bool, MirrorError> {
        let (session, root) = (self.session, Bytes::copy_from_slice(root));
        if revision == 0 || revision > self.head().revision() {
            return Ok(false);
        }
        hub.db.read(move |tx| Ok(commit_at(tx, session, revision)?.is_some_and(|commit| commit.root == root))).await
    }
}
