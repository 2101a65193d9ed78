//! The hub's shared state, and what the domain asks of the mesh.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use bytes::Bytes;
use cortex_wire::{
    id::{HubId, NodeId, TaskId},
    invite::RelayEndpoint,
};
use futures_util::future::BoxFuture;

use crate::{
    account::Logins,
    events::Feeds,
    failure::{Failure, Kind},
    keys::{HubKeys, KeysError},
    output::Outputs,
    presence::PresenceTable,
    store::{Db, StoreError},
};

/// Whether a node takes a task now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reservation {
    /// A slot is taken for the caller, who must [`Mesh::deliver`] or [`Mesh::release`].
    Slot,
    /// It is there, and all its slots are taken.
    Full,
    /// It is not there.
    Offline,
}

/// Why standard input did not reach a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StdinError {
    /// It has not started, or has ended.
    #[error("the task is not running")]
    NotRunning,
    /// It was dispatched without `stdin`.
    #[error("the task was dispatched without stdin")]
    NoStdin,
    /// Its node is away.
    #[error("the task's node is offline; try again when it is back")]
    NodeOffline,
    /// The offset leaves a gap.
    #[error("stdin continues at offset {expected}")]
    WrongOffset {
        /// Where the next byte belongs.
        expected: u64,
    },
    /// The task does not read.
    #[error("the task does not read its stdin; try again later")]
    Full,
}

impl Failure for StdinError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotRunning => "not_running",
            Self::NoStdin => "no_stdin",
            Self::NodeOffline => "node_offline",
            Self::WrongOffset { .. } => "wrong_offset",
            Self::Full => "stdin_full",
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NotRunning | Self::NoStdin | Self::WrongOffset { .. } => Kind::Conflict,
            Self::NodeOffline => Kind::Unavailable,
            Self::Full => Kind::TooMany,
        }
    }
}

/// A relay of this hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayStatus {
    /// Where it is.
    pub endpoint: RelayEndpoint,
    /// It lives in this process.
    pub embedded: bool,
    /// The hub has a link to it.
    pub online: bool,
    /// Nodes of this hub behind it.
    pub nodes: u64,
    /// Round trip of the link.
    pub rtt_us: Option<u64>,
    /// Program and version.
    pub version: String,
}

/// What the domain asks of the network side. Nothing here blocks.
pub trait Mesh: Send + Sync + 'static {
    /// Takes a task slot of an online node, or says why not.
    fn reserve(&self, node: NodeId) -> Reservation;
    /// Gives a reserved slot back: the dispatch came to nothing.
    fn release(&self, node: NodeId);
    /// Sends a leased task to its node (its slot is reserved), or queues it until a slot is free or the node is back. Called on the
    /// store's thread after the commit, inside the runtime's context: it must be quick.
    fn deliver(&self, task: TaskId, node: NodeId, leased: bool);
    /// Asks the node to end a task.
    fn cancel(&self, task: TaskId, node: NodeId, reason: String);
    /// Sends standard input from `offset`; answers where the next byte belongs.
    fn stdin(&self, task: TaskId, node: NodeId, offset: u64, data: Bytes, end: bool) -> BoxFuture<'static, Result<u64, StdinError>>;
    /// The node was revoked, deleted or approved, or its policy or name changed.
    fn node_changed(&self, node: NodeId);
    /// The relays of this hub, most wanted first.
    fn relays(&self) -> Vec<RelayStatus>;
}

/// Why a hub cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder.
    #[error("cannot use the data directory {path}")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another hub has it.
    #[error("another cortex-hub uses the data directory {path}; stop it, or start this one with another --data")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The keys.
    #[error("cannot use the hub's keys")]
    Keys(#[from] KeysError),
    /// The store.
    #[error("cannot open the hub's store")]
    Store(#[from] StoreError),
}

/// What a hub is told at its start.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Shown to people and nodes.
    pub name: String,
    /// Where browsers reach it; no slash at the end.
    pub public_url: String,
    /// The time.
    pub clock: Clock,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self { name: "Cortex hub".into(), public_url: String::new(), clock: Clock::default() }
    }
}

/// Where the time comes from: the machine, or a test.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    /// A clock that is told.
    pub fn new(now_ms: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(cortex_runtime::clock::now_ms)
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// The shared state. Its operations are in the modules of their concepts.
pub struct Hub {
    /// What is stored.
    pub db: Db,
    /// The hub's keys.
    pub keys: HubKeys,
    /// Live subscribers.
    pub feeds: Feeds,
    /// Which nodes are there.
    pub presence: PresenceTable,
    /// What tasks print.
    pub outputs: Outputs,
    pub(crate) logins: Logins,
    options: HubOptions,
    data_dir: PathBuf,
    mesh: OnceLock<Arc<dyn Mesh>>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("id", &self.id()).field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl Hub {
    /// Opens the hub of a data directory, or founds it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(data_dir: &Path, options: HubOptions) -> Result<Arc<Self>, OpenError> {
        let _ = (data_dir, options);
        todo!()
    }

    /// The hub's id: its root public key.
    pub fn id(&self) -> HubId {
        self.keys.id()
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Where browsers reach it.
    pub fn public_url(&self) -> &str {
        &self.options.public_url
    }

    /// Where it keeps its files.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        self.options.clock.now_ms()
    }

    /// Connects the network side, once.
    pub fn set_mesh(&self, mesh: Arc<dyn Mesh>) {
        let _ = self.mesh.set(mesh);
    }

    /// The network side; `None` while the hub starts.
    pub fn mesh(&self) -> Option<&Arc<dyn Mesh>> {
        self.mesh.get()
    }

    /// A real round trip through the store, for readiness.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn check_store(&self) -> Result<(), StoreError> {
        todo!()
    }
}

/// A lock that survives a panic of its holder: what we guard is replaced whole, never left half done.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
