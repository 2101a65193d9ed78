//! What workspaces did since the hub started, for operators.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Mirrors;

/// Counts over all workspaces.
#[derive(Debug, Default)]
pub struct Counters {
    /// Revisions made durable.
    pub revisions: AtomicU64,
    /// Conflicts recorded.
    pub conflicts: AtomicU64,
    /// Sealed bytes that nodes stored.
    pub bytes_in: AtomicU64,
    /// Sealed bytes that left for nodes.
    pub bytes_out: AtomicU64,
    /// Chunks that nodes stored.
    pub stored: AtomicU64,
}

impl Counters {
    pub(crate) fn committed(&self, revisions: u64, conflicts: u64) {
        self.revisions.fetch_add(revisions, Relaxed);
        self.conflicts.fetch_add(conflicts, Relaxed);
    }

    pub(crate) fn stored(&self, chunks: u64, bytes: u64) {
        self.stored.fetch_add(chunks, Relaxed);
        self.bytes_in.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn left(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Relaxed);
    }
}

impl Mirrors {
    /// Workspaces that are in memory, and how many connected nodes hold less than the newest revision of theirs.
    pub fn behind(&self) -> (u64, u64) {
        let used = self.used();
        let behind = used.iter().map(|workspace| workspace.nodes.behind(workspace.head().revision())).sum();
        (used.len() as u64, behind)
    }
}
