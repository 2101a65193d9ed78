//! What nodes are told of commits: frames, in which a long list of changes is a sealed chunk like any other.
//!
//! Relays hand chunks on, so such a list leaves the hub once, however many nodes get it; what is sealed and stored for one of them serves those who ask for the same.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cortex_wire::{
    limits,
    mirror::{
        op::{self, Op},
        seal::Sealer,
        tree::Tree,
    },
    schema::{Commit, PackedBatch},
};
use prost::Message as _;
use tokio::time::Instant;

use super::{MirrorError, commit::packs, content, workspace::Workspace};
use crate::{
    hub::Hub,
    record::{mirror::CommitRecord, tables::COMMITS},
    store::{Order, ReadTx, Span, StoreError},
};

/// A stream that is further behind gets the difference of two trees instead of the commits between them.
const FOLD_FROM: u64 = if cfg!(test) { 6 } else { 256 };
/// Commits read at a time.
const COMMITS_AT_ONCE: usize = 32;
/// A list of so many bytes, packed, is a chunk of its own.
const LONG_BYTES: usize = 4 * 1024;
/// Of so many nodes, one may be the author of a commit, and the other gets its list soonest in the frame itself.
const FEW_NODES: usize = 2;
/// Nobody is pointed to a chunk that was stored longer ago: nothing names it, and it is swept some day.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// The last frames that were made for more than one node.
#[derive(Debug)]
pub(super) struct Told {
    key: (u64, u64, bool),
    at: Instant,
    frames: Vec<Commit>,
}

impl Workspace {
    /// The frames that lead from one revision towards another: all of them, or as many as are sent at a time.
    pub(crate) async fn between(&self, hub: &Hub, from: u64, to: u64) -> Result<Vec<Commit>, MirrorError> {
        let folds = from == 0 || to - from > FOLD_FROM;
        let mut frames = Vec::new();
        if !folds {
            frames = self.commits(hub, from, to).await?;
            if self.nodes.count() <= FEW_NODES || !frames.iter().any(is_long) {
                return Ok(frames);
            }
        }
        // One at a time: who comes meanwhile mostly wants the same.
        let mut told = self.told.lock().await;
        let key = (from, to, to == self.head().revision());
        if let Some(told) = told.as_ref().filter(|told| told.key == key && told.at.elapsed() < FRESH) {
            return Ok(told.frames.clone());
        }
        if folds {
            let before = if from == 0 { Tree::default() } else { self.tree_at(hub, from).await? };
            let after = self.tree_at(hub, to).await?;
            let differ = move || difference(key, &after, &op::compact(&before, &after));
            frames = tokio::task::spawn_blocking(differ).await.map_err(content::failed)?;
        }
        self.seal_lists(hub, &mut frames).await?;
        *told = Some(Told { key, at: Instant::now(), frames: frames.clone() });
        Ok(frames)
    }

    async fn commits(&self, hub: &Hub, from: u64, to: u64) -> Result<Vec<Commit>, MirrorError> {
        let commits = match self.recent(from, to) {
            Some(commits) => commits,
            None => {
                let session = self.session;
                let span = Span::under(session).after((session, from)).before((session, to + 1));
                let read = move |tx: &dyn ReadTx| COMMITS.list(tx, &span, Order::Ascending, COMMITS_AT_ONCE);
                hub.db.read::<_, StoreError>(read).await?.into_iter().map(Arc::new).collect()
            }
        };
        let head = self.head().revision();
        Ok(commits.iter().flat_map(|commit| frames_of(commit, head)).collect())
    }

    /// Long lists become chunks; without room for them they stay where they are.
    async fn seal_lists(&self, hub: &Hub, frames: &mut [Commit]) -> Result<(), MirrorError> {
        let long: Vec<&mut Commit> = frames.iter_mut().filter(|frame| is_long(frame)).collect();
        if long.is_empty() {
            return Ok(());
        }
        let batches: Vec<PackedBatch> = long.iter().filter_map(|frame| frame.batch.clone()).collect();
        let keys = content::keys(hub, self.session).await?;
        let seal = move || {
            let mut sealer = Sealer::new(keys);
            batches.iter().map(|batch| sealer.seal(&batch.encode_to_vec())).collect::<Result<Vec<_>, _>>()
        };
        let lists = tokio::task::spawn_blocking(seal).await.map_err(content::failed)?.map_err(content::failed)?;
        let sids: Vec<_> = lists.iter().map(cortex_wire::mirror::seal::Sealed::sid).collect();
        match content::chunks_of(hub, self).await?.put(lists).await {
            Ok(()) => long.into_iter().zip(sids).for_each(|(frame, sid)| (frame.batch, frame.list) = (None, sid.to_bytes())),
            Err(error) => tracing::warn!(session = %self.session, %error, "lists of changes are sent to each node by itself"),
        }
        Ok(())
    }
}

fn is_long(frame: &Commit) -> bool {
    let bytes = frame.batch.as_ref().map_or(0, PackedBatch::encoded_len);
    (LONG_BYTES..=limits::CHUNK_BYTES).contains(&bytes)
}

/// The frames of one commit: as many as it has batches.
fn frames_of(commit: &CommitRecord, head: u64) -> Vec<Commit> {
    let end = commit.batches.len().saturating_sub(1);
    let frame = |(at, batch): (usize, &PackedBatch)| Commit {
        base: commit.revision - 1,
        revision: commit.revision,
        root: if at == end { commit.root.clone() } else { Bytes::new() },
        batch: Some(batch.clone()),
        author: commit.node.clone(),
        last: at == end && commit.revision == head,
        list: Bytes::new(),
    };
    commit.batches.iter().enumerate().map(frame).collect()
}

/// The frames of a difference: at least one, the last of them with the root.
fn difference((base, revision, last): (u64, u64, bool), after: &Tree, ops: &[Op]) -> Vec<Commit> {
    let mut batches = packs(ops);
    if batches.is_empty() {
        batches.push(op::pack(&[]));
    }
    let end = batches.len() - 1;
    let frame = |(at, batch)| Commit {
        base,
        revision,
        root: if at == end { Bytes::copy_from_slice(&after.root().0) } else { Bytes::new() },
        batch: Some(batch),
        author: Bytes::new(),
        last: last && at == end,
        list: Bytes::new(),
    };
    batches.into_iter().enumerate().map(frame).collect()
}
