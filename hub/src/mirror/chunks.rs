//! Sealed chunks on disk: what nodes store, and what everybody reads.
//!
//! Each session has a folder `{root}/{user id}/{session id}` of pack files ([`pack`]), and while it is used an index in memory of what is where ([`packs`]): about 100 bytes for each chunk. A chunk
//! counts as stored once it is durable, and only then does anybody hear of it. The hub does not need to open chunks to keep them; their names are checked whenever they are read.
//!
//! Chunks that no kept revision names are removed by [`SessionChunks::collect`], which spares what was written or asked for lately, and everything that is touched while a transfer
//! ([`SessionChunks::hold`]) runs: an upload comes before the commit that names it.

mod pack;
mod packs;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cortex_runtime::chunk::ChunkError;
use cortex_wire::{
    id::{SessionId, UserId},
    mirror::seal::{Sealed, Sid},
};
use tokio::sync::{OnceCell, mpsc};

use self::packs::Packs;
use crate::{
    hub::lock,
    mirror::counters::Counters,
    record::tables::SESSIONS,
    store::{Db, StoreError},
};

/// A pack is full above this size. Each start reads one such file per session that is used.
const PACK_BYTES: u64 = 64 << 20;
/// Chunks that are written with one call.
const GROUP: usize = 32;
/// Sessions whose index is kept in memory although nobody has used it for [`IDLE`].
const OPEN_SESSIONS: usize = 64;
const IDLE: Duration = Duration::from_secs(600);

/// Why chunks cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ChunkStoreError {
    /// The disk is full, or the quota of the hub's account is.
    #[error("no space is left on the hub's disk for chunks: {0}; make room, or set another folder for workspaces")]
    NoSpace(io::Error),
    /// The disk.
    #[error("the hub's disk does not read or write chunks: {0}")]
    Io(io::Error),
    /// The session was removed, or its folder has to be opened again after an error.
    #[error("the chunks of this session were closed; try again")]
    Closed,
}

impl From<io::Error> for ChunkStoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(error),
            _ => Self::Io(error),
        }
    }
}

impl From<&ChunkStoreError> for ChunkError {
    fn from(error: &ChunkStoreError) -> Self {
        match error {
            ChunkStoreError::NoSpace(_) => Self::NoSpace,
            ChunkStoreError::Io(_) | ChunkStoreError::Closed => Self::Failed,
        }
    }
}

/// What [`SessionChunks::collect`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Chunks that are gone.
    pub chunks: u64,
    /// Bytes that the disk got back.
    pub bytes: u64,
}

/// The chunks of all sessions.
#[derive(Debug)]
pub struct ChunkStore {
    root: PathBuf,
    pack_bytes: u64,
    /// Knows which sessions there are.
    sessions: Option<Db>,
    open: Mutex<HashMap<SessionId, Arc<Slot>>>,
}

/// A session that is open, or is being opened by the first of those who want it.
#[derive(Debug)]
struct Slot {
    chunks: OnceCell<SessionChunks>,
    used: Mutex<Instant>,
}

impl ChunkStore {
    /// Chunks below this folder, which is made when the first one comes.
    pub fn new(root: PathBuf) -> Self {
        Self { root, pack_bytes: PACK_BYTES, sessions: None, open: Mutex::default() }
    }

    /// Only for sessions that are in this store.
    pub fn of_sessions_in(self, db: Db) -> Self {
        Self { sessions: Some(db), ..self }
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The chunks of one session, which may be none. `user` is its owner. Ask again for each piece of work rather than keeping it.
    ///
    /// # Errors
    /// When its folder cannot be made or read, or the session is gone.
    pub async fn session(&self, user: UserId, session: SessionId) -> Result<SessionChunks, ChunkStoreError> {
        let slot = self.slot(session);
        let (dir, pack_bytes) = (self.dir(user, session), self.pack_bytes);
        let open = || async move {
            self.check(session).await?;
            let packs = blocking(move || Packs::open(dir, pack_bytes)).await?;
            Ok::<_, ChunkStoreError>(SessionChunks { packs: Arc::new(packs) })
        };
        Ok(slot.chunks.get_or_try_init(open).await?.clone())
    }

    /// Whoever removes a session waits for those who open it, so what is there now is removed with it.
    async fn check(&self, session: SessionId) -> Result<(), ChunkStoreError> {
        let Some(db) = &self.sessions else { return Ok(()) };
        match db.read::<_, StoreError>(move |tx| Ok(SESSIONS.get(tx, &session)?.is_some())).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(ChunkStoreError::Closed),
            Err(error) => Err(ChunkStoreError::Io(io::Error::other(error))),
        }
    }

    fn slot(&self, session: SessionId) -> Arc<Slot> {
        let mut open = lock(&self.open);
        if open.len() >= OPEN_SESSIONS {
            open.retain(|_, slot| !slot.is_idle());
        }
        if open.get(&session).is_some_and(|slot| slot.chunks.get().is_some_and(|chunks| chunks.packs.is_broken())) {
            open.remove(&session);
        }
        let new = || Arc::new(Slot { chunks: OnceCell::new(), used: Mutex::new(Instant::now()) });
        let slot = open.entry(session).or_insert_with(new).clone();
        *lock(&slot.used) = Instant::now();
        slot
    }

    /// Removes everything that a session holds. Transfers that run there fail. A session that is no longer in the store is never opened again.
    ///
    /// # Errors
    /// When the folder cannot be removed; what is left is removed by another call.
    pub async fn remove(&self, user: UserId, session: SessionId) -> Result<(), ChunkStoreError> {
        let slot = lock(&self.open).remove(&session);
        // Somebody may be opening it: what he makes is to be removed, too.
        let opened = match &slot {
            Some(slot) => slot.chunks.get_or_try_init(|| async { Err(ChunkStoreError::Closed) }).await.ok().cloned(),
            None => None,
        };
        let dir = self.dir(user, session);
        blocking(move || {
            if let Some(chunks) = opened {
                chunks.packs.abandon();
                chunks.packs.wait_for_writers();
            }
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            }
        })
        .await
    }

    fn dir(&self, user: UserId, session: SessionId) -> PathBuf {
        self.root.join(user.to_string()).join(session.to_string())
    }
}

impl Slot {
    fn is_idle(&self) -> bool {
        let shared = self.chunks.get().is_none_or(|chunks| Arc::strong_count(&chunks.packs) > 1);
        !shared && lock(&self.used).elapsed() > IDLE
    }
}

/// The chunks of one session. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SessionChunks {
    packs: Arc<Packs>,
}

impl SessionChunks {
    /// Stores what comes until the channel closes, and returns how many chunks came once all of them are durable.
    ///
    /// # Errors
    /// [`ChunkStoreError`]: then nothing of it counts as stored, whatever may be there already.
    pub async fn store(&self, mut chunks: mpsc::Receiver<Sealed>, counters: &Counters) -> Result<u64, ChunkStoreError> {
        let _hold = self.hold();
        let (mut count, mut mark, mut group) = (0, 0, Vec::with_capacity(GROUP));
        while chunks.recv_many(&mut group, GROUP).await > 0 {
            count += group.len() as u64;
            counters.stored(group.len() as u64, group.iter().map(|chunk| chunk.bytes().len() as u64).sum());
            let (packs, batch) = (self.packs.clone(), std::mem::replace(&mut group, Vec::with_capacity(GROUP)));
            mark = mark.max(blocking(move || packs.append(&batch)).await?);
            if self.packs.wants_sync() {
                // Beside the upload: at its end, little is left to be written.
                let packs = self.packs.clone();
                tokio::task::spawn_blocking(move || packs.sync_full());
            }
        }
        let packs = self.packs.clone();
        blocking(move || packs.sync(mark)).await?;
        Ok(count)
    }

    /// Stores these chunks durably.
    ///
    /// # Errors
    /// As [`SessionChunks::store`].
    pub async fn put(&self, chunks: Vec<Sealed>) -> Result<(), ChunkStoreError> {
        let packs = self.packs.clone();
        blocking(move || packs.append(&chunks).and_then(|mark| packs.sync(mark))).await
    }

    /// The chunks in the order of `sids`, checked; `None` for those that are not there. All of them are in memory at once: ask for few at a time.
    ///
    /// # Errors
    /// [`ChunkStoreError`].
    pub async fn read(&self, sids: Vec<Sid>) -> Result<Vec<Option<Sealed>>, ChunkStoreError> {
        let packs = self.packs.clone();
        blocking(move || packs.read(&sids)).await
    }

    /// Those that are not durable here, in their order. The others are spared by [`SessionChunks::collect`] for its grace from now on.
    ///
    /// # Errors
    /// [`ChunkStoreError`].
    pub async fn missing(&self, sids: Vec<Sid>) -> Result<Vec<Sid>, ChunkStoreError> {
        let packs = self.packs.clone();
        blocking(move || packs.missing(&sids)).await
    }

    /// While it lives, nothing that is stored or asked for from now on is collected.
    pub fn hold(&self) -> Hold {
        Hold { number: self.packs.hold(), packs: self.packs.clone() }
    }

    /// Removes chunks that are not `live`, and that nobody has stored or asked for within `grace`. What is live is decided before the call: what is committed meanwhile was touched
    /// within the grace.
    ///
    /// # Errors
    /// [`ChunkStoreError`]; what was removed until then stays removed.
    pub async fn collect(&self, live: HashSet<Sid>, grace: Duration) -> Result<Collected, ChunkStoreError> {
        let packs = self.packs.clone();
        blocking(move || packs.collect(&live, grace)).await
    }

    /// How many chunks there are, and how many bytes their packs take.
    pub fn size(&self) -> (u64, u64) {
        self.packs.size()
    }
}

/// A running transfer. See [`SessionChunks::hold`].
#[derive(Debug)]
pub struct Hold {
    number: u64,
    packs: Arc<Packs>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.packs.release(self.number);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ChunkStoreError> + Send + 'static) -> Result<T, ChunkStoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(ChunkStoreError::Io(io::Error::other(error))))
}
