//! A workspace in memory: its tree at the last committed revision, and who follows it.
//!
//! There is one [`Workspace`] per session while somebody uses it. Its [`Head`] is replaced whole, after each commit is durable and in the order of
//! commits; the tree in it is persistent, so taking a copy costs nothing. Who wants to commit waits for its turn ([`super::commit`]); readers never wait.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use cortex_wire::{
    id::{SessionId, UserId},
    limits,
    mirror::{
        entry::{Entry, Hash},
        op::{self, Op},
        path::RelPath,
        tree::Tree,
    },
    schema::{TreeAnswer, TreeRequest, WorkspaceState},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{lock, nodes::Nodes, told::Told};
use crate::{
    hub,
    record::mirror::{CommitRecord, WorkspaceRecord},
};

/// Commits kept in memory for streams that are only a little behind.
const RECENT: usize = 64;
/// Entries in one answer about directories.
const ANSWER_ENTRIES: usize = limits::BATCH_OPS * 8;

/// Where a workspace stands.
#[derive(Debug, Clone)]
pub struct Head {
    pub(crate) record: WorkspaceRecord,
    /// What it holds.
    pub tree: Tree,
}

impl Head {
    /// The number of the last commit.
    pub fn revision(&self) -> u64 {
        self.record.revision
    }

    /// The tree's hash.
    pub fn root(&self) -> Bytes {
        Bytes::copy_from_slice(&self.record.root.0)
    }

    /// Locks and pause, as nodes are told.
    pub fn state(&self) -> WorkspaceState {
        WorkspaceState { locks: self.record.locks.iter().map(lock::to_message).collect(), paused: self.record.paused }
    }

    /// Children of directories, in the order asked. Directories that do not fit are left out; `None`: not even the first of them fits.
    pub fn children(&self, request: &TreeRequest) -> Option<TreeAnswer> {
        let (mut ops, mut bytes): (Vec<Op>, usize) = (Vec::new(), 0);
        for directory in &request.directories {
            let Ok(path) = RelPath::prefix(directory) else { continue };
            let children: Vec<Op> = self.tree.children(&path).into_iter().flatten().filter_map(|child| put(&path, child)).collect();
            let weight: usize = children.iter().map(Op::weight).sum();
            if ops.len() + children.len() > ANSWER_ENTRIES || bytes + weight > limits::BATCH_BYTES {
                if ops.is_empty() {
                    return None;
                }
                break;
            }
            bytes += weight;
            ops.extend(children);
        }
        Some(TreeAnswer { request: request.request, revision: self.revision(), children: Some(op::pack(&ops)) })
    }
}

/// A child as a change: parents are the children's hashes, which for a directory cover everything below it.
fn put(directory: &RelPath, (name, entry, hash): (&str, &Entry, Hash)) -> Option<Op> {
    Some(Op::Put { path: directory.join(name).ok()?, parent: Some(hash), entry: entry.clone() })
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Workspace {
    pub(crate) session: SessionId,
    head: watch::Sender<Arc<Head>>,
    /// One commit at a time.
    pub(super) turn: Semaphore,
    recent: Mutex<VecDeque<Arc<CommitRecord>>>,
    /// Waits for the next lock to end.
    pub(super) lock_watch: Mutex<Option<AbortOnDropHandle<()>>>,
    /// The nodes that follow it.
    pub(crate) nodes: Nodes,
    pub(super) told: tokio::sync::Mutex<Option<Told>>,
}

impl Workspace {
    pub(super) fn new(record: WorkspaceRecord, tree: Tree) -> Arc<Self> {
        Arc::new(Self {
            session: record.session,
            head: watch::Sender::new(Arc::new(Head { record, tree })),
            turn: Semaphore::new(1),
            recent: Mutex::default(),
            lock_watch: Mutex::default(),
            nodes: Nodes::default(),
            told: tokio::sync::Mutex::default(),
        })
    }

    /// Where it stands now.
    pub fn head(&self) -> Arc<Head> {
        self.head.borrow().clone()
    }

    /// Told whenever that changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Head>> {
        self.head.subscribe()
    }

    /// Whose it was when it was made: where its chunks are.
    pub fn owner(&self) -> UserId {
        self.head.borrow().record.owner
    }

    /// The seed of its chunks' boundaries.
    pub fn seed(&self) -> u64 {
        self.head.borrow().record.seed
    }

    /// What was committed is what there is. Called in the order of commits, after each is durable.
    pub(super) fn advance(&self, head: Head, commit: Option<CommitRecord>) {
        if let Some(commit) = commit {
            let mut recent = hub::lock(&self.recent);
            recent.push_back(Arc::new(commit));
            if recent.len() > RECENT {
                recent.pop_front();
            }
        }
        self.head.send_replace(Arc::new(head));
    }

    /// Locks that have ended are forgotten, and nodes are told.
    pub(super) async fn drop_ended_locks(&self, now_ms: i64) {
        let Ok(_turn) = self.turn.acquire().await else { return };
        let head = self.head();
        if head.record.locks.iter().any(|lock| lock.expires_at_ms <= now_ms) {
            // The row follows with the next commit: whoever reads it compares times.
            let mut next = Head::clone(&head);
            next.record.locks.retain(|lock| lock.expires_at_ms > now_ms);
            self.advance(next, None);
        }
    }

    /// The commits `from + 1 ..= to`, when all of them are still in memory.
    pub(super) fn recent(&self, from: u64, to: u64) -> Option<Vec<Arc<CommitRecord>>> {
        let recent = hub::lock(&self.recent);
        let first = recent.front()?.revision;
        let found: Vec<_> = recent.iter().filter(|commit| commit.revision > from && commit.revision <= to).cloned().collect();
        (first <= from + 1 && found.len() as u64 == to - from).then_some(found)
    }
}
