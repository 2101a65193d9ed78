//! What nothing names any more.
//!
//! Every revision is kept, so a chunk is needed as long as a commit or a conflict names it, itself or through a long list of chunks. What is left are uploads that came to nothing. They
//! stay for a while, because they may be resumed.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

use cortex_wire::{
    id::{SessionId, UserId},
    limits,
    mirror::{
        entry::{Content, Entry, Sid},
        op::{self, Op},
    },
    schema::PackedBatch,
};

use super::{MirrorError, content, workspace::Workspace};
use crate::{
    hub::Hub,
    record::tables::{COMMITS, CONFLICTS, SESSIONS},
    store::{Order, ReadTx, Span, StoreError},
};

/// An upload that came to nothing may be resumed for this long.
const GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// Commits read at a time.
const COMMITS_AT_ONCE: usize = 64;

fn contents(batches: &[PackedBatch]) -> Result<Vec<Content>, MirrorError> {
    let mut found = Vec::new();
    for batch in batches {
        for op in op::unpack(batch, limits::BATCH_OPS).map_err(|_| MirrorError::Damaged)? {
            if let Op::Put { entry: Entry::File { content, .. }, .. } = op {
                found.push(content);
            }
        }
    }
    Ok(found)
}

/// The folders of sessions below the root; other things there are left alone.
fn folders(root: &Path) -> Vec<(UserId, SessionId)> {
    let names = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let users = names(root).into_iter().filter_map(|name| Some((name.parse::<UserId>().ok()?, root.join(name))));
    let sessions =
        |(user, path): (UserId, PathBuf)| names(&path).into_iter().filter_map(move |name| Some((user, name.parse::<SessionId>().ok()?)));
    users.flat_map(sessions).collect()
}

impl Hub {
    /// Every chunk that a kept revision or a conflict of a session needs.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub(super) async fn named_chunks(&self, workspace: &Workspace) -> Result<HashSet<Sid>, MirrorError> {
        let session = workspace.session;
        let (mut named, mut seen) = (HashSet::new(), 0);
        loop {
            let span = Span::under(session).after((session, seen));
            let commits = self.db.read::<_, StoreError>(move |tx| COMMITS.list(tx, &span, Order::Ascending, COMMITS_AT_ONCE)).await?;
            let Some(last) = commits.last() else { break };
            seen = last.revision;
            for commit in &commits {
                content::name_all(self, workspace, contents(&commit.batches)?.into_iter(), &mut named).await?;
            }
        }
        let conflicts = move |tx: &dyn ReadTx| CONFLICTS.list(tx, &Span::under(session), Order::Ascending, usize::MAX);
        for conflict in self.db.read::<_, StoreError>(conflicts).await? {
            let kept: Vec<PackedBatch> = conflict.kept.into_iter().collect();
            content::name_all(self, workspace, contents(&kept)?.into_iter(), &mut named).await?;
        }
        Ok(named)
    }

    /// Removes chunks that nothing names, in sessions that were used since the last time; and closes what nobody uses.
    ///
    /// # Errors
    /// [`MirrorError`] of the first session that failed; the others are swept.
    pub(crate) async fn sweep_mirrors(&self) -> Result<(), MirrorError> {
        let mut outcome = Ok(());
        for workspace in self.mirrors.used() {
            outcome = outcome.and(self.sweep_workspace(&workspace).await);
        }
        self.mirrors.close_idle();
        outcome.and(self.sweep_folders().await)
    }

    /// Folders of sessions that are gone: their removal did not come to its end.
    async fn sweep_folders(&self) -> Result<(), MirrorError> {
        let root = self.mirrors.chunks.root().to_owned();
        let there = tokio::task::spawn_blocking(move || folders(&root)).await.map_err(|error| MirrorError::Chunks(error.to_string()))?;
        for (owner, session) in there {
            let known = self.db.read::<_, StoreError>(move |tx| Ok(SESSIONS.get(tx, &session)?.is_some())).await?;
            if !known {
                self.mirrors.chunks.remove(owner, session).await?;
            }
        }
        Ok(())
    }

    async fn sweep_workspace(&self, workspace: &Workspace) -> Result<(), MirrorError> {
        let chunks = self.mirrors.chunks.session(workspace.owner(), workspace.session).await?;
        let named = self.named_chunks(workspace).await?;
        let collected = chunks.collect(named, GRACE).await?;
        if collected.chunks > 0 {
            tracing::info!(session = %workspace.session, chunks = collected.chunks, bytes = collected.bytes, "removed chunks that nothing names");
        }
        Ok(())
    }
}
