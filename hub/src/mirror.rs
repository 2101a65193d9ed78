//! The ghost mirror at the hub: one workspace for each session, in the order that the hub gives to changes.
//!
//! A workspace is opened when somebody needs it, kept in memory while it is used, and made of its log when it is opened. What is acknowledged is durable: a commit's
//! chunks ([`chunks`]) and its row ([`commit`]).
//!
//! | module | answers for |
//! | --- | --- |
//! | [`workspace`] | a workspace in memory: its head, and who follows it |
//! | [`commit`] | one commit, from the decision to the new head |
//! | [`propose`] | what of a node's edits goes in |
//! | [`edit`] | changes by people and programs at the hub |
//! | [`history`] | the log, the tree at any revision |
//! | `told` | what nodes are told to catch up |
//! | [`conflict`] | what did not go in, and how it is resolved |
//! | [`lock`] | leases and the pause |
//! | [`nodes`] | nodes that follow: progress, problems, questions, drift |
//! | [`content`] | bytes of files as sealed chunks, and back |
//! | [`archive`] | folders as tar streams |
//! | [`search`] | by name and by content |
//! | [`keys`] | what contents are sealed with |
//! | [`chunks`] | sealed chunks on disk |
//! | [`sweep`] | what nothing names any more |
//! | [`counters`] | what operators see of it |

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use cortex_runtime::clock::random;
use cortex_wire::{
    id::{NodeId, SessionId, UserId},
    mirror::{entry::Hash, tree::Tree},
    schema::{WorkspaceKey, WorkspacesLeft},
};
use tokio::sync::OnceCell;

use crate::{
    account::Actor,
    change::Change,
    failure::{Failure, Kind, Refused},
    hub::{Hub, lock as guard},
    record::{
        Digest, SessionStatus,
        mirror::WorkspaceRecord,
        tables::{COMMITS, CONFLICTS, SESSIONS, SESSIONS_OF_NODE, SNAPSHOTS, VERDICTS, WORKSPACE_KEYS, WORKSPACES},
    },
    session,
    store::{Db, Span, StoreError},
};

pub mod archive;
pub mod chunks;
pub mod commit;
pub mod conflict;
pub mod content;
pub mod counters;
pub mod edit;
pub mod history;
pub mod keys;
pub mod lock;
pub mod nodes;
pub mod propose;
pub mod search;
pub mod sweep;
mod told;
pub mod workspace;

use chunks::{ChunkStore, ChunkStoreError};
use counters::Counters;
use workspace::Workspace;

/// Why something about a workspace was not done.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The session, or the right to it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The store failed.
    #[error("the hub's store failed")]
    Store(#[from] StoreError),
    /// The session is gone, or the node has left it.
    #[error("the session is gone")]
    Gone,
    /// The session is kept to be read.
    #[error("the session is archived")]
    Archived,
    /// Somebody else has changed it meanwhile.
    #[error("`{path}` is not what the request says it is: it was changed meanwhile")]
    Stale {
        /// Where.
        path: String,
        /// What the request expected.
        parent: Hash,
        /// What is there.
        current: Option<Hash>,
    },
    /// It is there already.
    #[error("`{path}` exists already")]
    Exists {
        /// Where.
        path: String,
        /// What is there.
        current: Hash,
    },
    /// Nothing is there.
    #[error("there is no `{0}` in this workspace")]
    NoFile(String),
    /// Something else is there.
    #[error("`{path}` is a {kind}")]
    NotAFile {
        /// Where.
        path: String,
        /// "directory" or "symlink".
        kind: &'static str,
    },
    /// There was no such revision.
    #[error("there is no revision {0}")]
    NoRevision(u64),
    /// There is no such conflict, or it was resolved.
    #[error("there is no open conflict {0}")]
    NoConflict(u64),
    /// The tree does not allow it.
    #[error("{0}")]
    Impossible(String),
    /// Another's lock.
    #[error("`{prefix}` is locked by {owner}")]
    Locked {
        /// What the lock covers; "": everything.
        prefix: String,
        /// For people.
        owner: String,
    },
    /// The caller's own lock has ended.
    #[error("the lock with this fence has ended, or is not yours")]
    LockLost,
    /// A value is malformed or out of bounds.
    #[error("{0}")]
    Invalid(String),
    /// The body broke off.
    #[error("the upload broke off: {0}")]
    BrokenUpload(String),
    /// More bytes than a file may have.
    #[error("a file has at most {limit} bytes", limit = cortex_wire::limits::FILE_BYTES)]
    TooLarge,
    /// A node sent what is not the protocol.
    #[error("the node sent something that is not the protocol: {0}")]
    Protocol(String),
    /// The node is not connected, or not attached.
    #[error("the node does not follow this workspace now")]
    NodeAway,
    /// The node does not answer.
    #[error("the node did not answer in time")]
    NodeBusy,
    /// The node asks nothing, or something else.
    #[error("the node does not ask this any more")]
    NotAsked,
    /// The node went before it took an answer.
    #[error("the node did not take the answer; it asks again when it is back")]
    NotTaken,
    /// Chunks on disk.
    #[error("the workspace's contents cannot be read or written: {0}")]
    Chunks(String),
    /// The hub's disk is full.
    #[error("the hub's disk is full")]
    NoSpace,
    /// The log does not lead to the hash that was stored with it.
    #[error("the workspace's log is damaged")]
    Damaged,
    /// A commit panicked.
    #[error("the commit failed")]
    Failed,
}

impl From<ChunkStoreError> for MirrorError {
    fn from(error: ChunkStoreError) -> Self {
        match error {
            ChunkStoreError::NoSpace(_) => Self::NoSpace,
            other => Self::Chunks(other.to_string()),
        }
    }
}

impl Failure for MirrorError {
    fn code(&self) -> &'static str {
        match self {
            Self::Refused(refused) => refused.code(),
            Self::Store(_) => "store_failed",
            Self::Gone => "not_found",
            Self::Archived => "session_archived",
            Self::Stale { .. } => "stale_parent",
            Self::Exists { .. } => "already_exists",
            Self::NoFile(_) => "no_file",
            Self::NotAFile { .. } => "not_a_file",
            Self::NoRevision(_) => "no_revision",
            Self::NoConflict(_) => "no_conflict",
            Self::Impossible(_) => "impossible_change",
            Self::Locked { .. } => "locked",
            Self::LockLost => "lock_lost",
            Self::Invalid(_) => "invalid",
            Self::BrokenUpload(_) => "broken_upload",
            Self::TooLarge => "too_large",
            Self::Protocol(_) => "protocol",
            Self::NodeAway => "node_offline",
            Self::NodeBusy => "node_busy",
            Self::NotAsked => "not_asked",
            Self::NotTaken => "not_taken",
            Self::Chunks(_) => "chunks_failed",
            Self::NoSpace => "no_space",
            Self::Damaged => "workspace_damaged",
            Self::Failed => "commit_failed",
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Refused(refused) => refused.kind(),
            Self::Gone | Self::NoFile(_) | Self::NoRevision(_) | Self::NoConflict(_) => Kind::NotFound,
            Self::Archived
            | Self::Stale { .. }
            | Self::Exists { .. }
            | Self::NotAFile { .. }
            | Self::Impossible(_)
            | Self::Locked { .. }
            | Self::LockLost
            | Self::NotAsked
            | Self::NotTaken => Kind::Conflict,
            Self::Invalid(_) | Self::BrokenUpload(_) | Self::TooLarge | Self::Protocol(_) => Kind::Invalid,
            Self::NodeAway | Self::NodeBusy | Self::NoSpace => Kind::Unavailable,
            Self::Store(_) | Self::Chunks(_) | Self::Damaged | Self::Failed => Kind::Internal,
        }
    }
}

type Slot = Arc<OnceCell<Arc<Workspace>>>;

/// The workspaces that are in use, and the chunks of all. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mirrors {
    open: Arc<Mutex<HashMap<SessionId, Slot>>>,
    /// What workspaces hold, as sealed chunks.
    pub chunks: Arc<ChunkStore>,
    /// What they did.
    pub counters: Arc<Counters>,
}

impl Mirrors {
    /// With contents below this folder, of the sessions in this store.
    pub(crate) fn new(folder: PathBuf, db: Db) -> Self {
        Self { open: Arc::default(), chunks: Arc::new(ChunkStore::new(folder).of_sessions_in(db)), counters: Arc::default() }
    }

    /// Drops those that nobody uses.
    pub(crate) fn close_idle(&self) {
        let unused = |slot: &Slot| Arc::strong_count(slot) == 1 && slot.get().is_none_or(|workspace| Arc::strong_count(workspace) == 1);
        guard(&self.open).retain(|_, slot| !unused(slot));
    }

    /// Those that are in memory.
    pub(crate) fn used(&self) -> Vec<Arc<Workspace>> {
        guard(&self.open).values().filter_map(|slot| slot.get().cloned()).collect()
    }

    /// The session is gone. What cannot be removed now goes with the sweep.
    pub(crate) fn remove(&self, owner: UserId, session: SessionId) {
        guard(&self.open).remove(&session);
        let chunks = self.chunks.clone();
        tokio::spawn(async move {
            if let Err(error) = chunks.remove(owner, session).await {
                tracing::warn!(%session, %error, "cannot remove the contents of a workspace now");
            }
        });
    }
}

impl Hub {
    /// The workspace of a session, whoever asks. Made when it is asked for first.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn workspace(self: &Arc<Self>, session: SessionId) -> Result<Arc<Workspace>, MirrorError> {
        let slot = guard(&self.mirrors.open).entry(session).or_default().clone();
        let opened = slot.get_or_try_init(|| self.open_workspace(session)).await;
        if opened.is_err() {
            self.mirrors.close_idle();
        }
        opened.cloned()
    }

    async fn open_workspace(self: &Arc<Self>, session: SessionId) -> Result<Arc<Workspace>, MirrorError> {
        let known = self.db.read(move |tx| {
            let Some(record) = WORKSPACES.get(tx, &session)? else { return Ok::<_, MirrorError>(None) };
            Ok(Some((history::load(tx, &record)?, record)))
        });
        let (tree, record) = match known.await? {
            Some(known) => known,
            None => (Tree::default(), self.change("hub".into(), move |change| create(change, session)).await?),
        };
        let workspace = Workspace::new(record, tree);
        workspace.watch_locks(self.clock());
        Ok(workspace)
    }

    /// The workspace of a session that the actor may read.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn workspace_seen(self: &Arc<Self>, actor: &Actor, session: SessionId) -> Result<Arc<Workspace>, MirrorError> {
        let actor = actor.clone();
        self.db.read(move |tx| session::seen_by(tx, &actor, session)).await?;
        self.workspace(session).await
    }

    /// The workspace of a session that the actor may work in. Each commit checks that again.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn workspace_used(self: &Arc<Self>, actor: &Actor, session: SessionId) -> Result<Arc<Workspace>, MirrorError> {
        let actor = actor.clone();
        let found = self.db.read(move |tx| session::used_by(tx, &actor, crate::record::Scope::Dispatch, session)).await?;
        if found.status == SessionStatus::Archived {
            return Err(MirrorError::Archived);
        }
        self.workspace(session).await
    }

    /// How many chunks are kept for a workspace, and how many bytes they take.
    ///
    /// # Errors
    /// [`MirrorError::Chunks`].
    pub async fn stored(&self, workspace: &Workspace) -> Result<(u64, u64), MirrorError> {
        Ok(self.mirrors.chunks.session(workspace.owner(), workspace.session).await?.size())
    }

    /// The keys of a session's contents, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn workspace_keys(&self, session: SessionId) -> Result<Vec<WorkspaceKey>, MirrorError> {
        Ok(self.db.read(move |tx| keys::all(tx, session)).await?)
    }

    /// Of these sessions, those that are gone or that a node is not attached to.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn left_by(&self, node: NodeId, sessions: Vec<SessionId>) -> Result<WorkspacesLeft, StoreError> {
        let attached = self.db.read::<_, StoreError>(move |tx| SESSIONS_OF_NODE.all_of(tx, &node)).await?;
        let left = sessions.iter().filter(|session| !attached.contains(session));
        Ok(WorkspacesLeft { session_ids: left.map(|session| Bytes::copy_from_slice(session.as_bytes())).collect() })
    }

    /// The revision that a node's folder is to hold before a task of the session starts there; 0: the node keeps no folder for it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn workspace_revision(&self, session: SessionId, node: NodeId) -> Result<u64, StoreError> {
        let open = guard(&self.mirrors.open).get(&session).and_then(|slot| slot.get().cloned());
        if let Some(workspace) = open
            && let Some(sync) = workspace.nodes.sync_of(node)
        {
            return Ok(if sync.is_failed() { 0 } else { workspace.head().revision() });
        }
        // Its stream is not there yet, or again.
        let attached = self.synced_sessions(node).await?.contains(&session);
        let record = self.db.read::<_, StoreError>(move |tx| WORKSPACES.get(tx, &session)).await?;
        Ok(record.filter(|_| attached).map_or(0, |record| record.revision))
    }

    /// The sessions whose workspaces a node holds: those in use that it is attached to.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn synced_sessions(&self, node: NodeId) -> Result<Vec<SessionId>, StoreError> {
        self.db
            .read(move |tx| {
                let mut synced = Vec::new();
                for id in SESSIONS_OF_NODE.all_of(tx, &node)? {
                    synced.extend(SESSIONS.get(tx, &id)?.filter(|session| session.status == SessionStatus::Active).map(|_| id));
                }
                // As many as a ticket names, the latest: ids sort by time.
                let most = synced.len().saturating_sub(cortex_wire::limits::TICKET_SESSIONS);
                Ok(synced.split_off(most))
            })
            .await
    }
}

/// A workspace that holds nothing.
fn create(change: &mut Change<'_>, id: SessionId) -> Result<WorkspaceRecord, MirrorError> {
    if let Some(record) = WORKSPACES.get(change.tx, &id)? {
        return Ok(record);
    }
    let session = SESSIONS.get(change.tx, &id)?.ok_or(MirrorError::Gone)?;
    let record = WorkspaceRecord {
        session: id,
        owner: session.user_id,
        seed: u64::from_le_bytes(random()),
        revision: 0,
        root: Digest(Tree::default().root().0),
        snapshot: 0,
        ops_since: 0,
        paused: false,
        locks: Vec::new(),
        last_fence: 0,
        last_conflict: 0,
    };
    WORKSPACES.put(change.tx, &id, &record)?;
    keys::found(change.tx, &session)?;
    Ok(record)
}

/// Everything that the store knows of a session's workspace; its chunks are removed after the commit.
pub(crate) fn forget(tx: &mut dyn crate::store::WriteTx, session: SessionId) -> Result<(), StoreError> {
    WORKSPACES.delete(tx, &session)?;
    WORKSPACE_KEYS.clear(tx, &Span::under(session))?;
    COMMITS.clear(tx, &Span::under(session))?;
    SNAPSHOTS.clear(tx, &Span::under(session))?;
    CONFLICTS.clear(tx, &Span::under(session))?;
    VERDICTS.clear(tx, &Span::under(session))?;
    Ok(())
}

#[cfg(test)]
mod tests;
