//! The hub's shared state, and what the domain asks of the mesh.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use cortex_runtime::keyfile;
use cortex_wire::{
    id::{HubId, NodeId, RelayId, SessionId, TaskId},
    invite::RelayEndpoint,
    pool::Tally,
    schema,
};
use futures_util::future::BoxFuture;

use crate::{
    account::{self, Logins},
    approval,
    browser::BrowserNews,
    events::Feeds,
    failure::{Failure, Kind},
    invite,
    keys::{HubKeys, KeysError},
    mirror::Mirrors,
    output::{OutputError, Outputs},
    presence::PresenceTable,
    record::{Task, tables::PROBE},
    store::{Db, StoreError, migrate, redb::RedbStore},
    task,
    terminal::Terminals,
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
    /// It takes tasks only over a direct way, and there is none.
    Indirect,
    /// It is there, and takes nothing new because its owner said so.
    Drained,
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
    /// The configuration names it; others were added while the hub runs.
    pub configured: bool,
    /// The hub has a link to it.
    pub online: bool,
    /// Nodes of this hub behind it.
    pub nodes: u64,
    /// Round trip of the link.
    pub rtt_us: Option<u64>,
    /// It is being stopped.
    pub draining: bool,
    /// Program and version.
    pub version: String,
    /// Percent of what it can carry, while it is linked.
    pub load: Option<u32>,
    /// What carries the link: `udp`, `tcp`, or `memory`.
    pub carrier: Option<&'static str>,
}

impl RelayStatus {
    /// Nothing is known of it yet.
    pub fn away(endpoint: RelayEndpoint) -> Self {
        Self {
            endpoint,
            embedded: false,
            configured: false,
            online: false,
            nodes: 0,
            rtt_us: None,
            draining: false,
            version: String::new(),
            load: None,
            carrier: None,
        }
    }
}

/// Whether a relay answered just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayCheck {
    /// Which.
    pub relay: RelayId,
    /// What is wrong, and what to do about it; `None`: it answered.
    pub problem: Option<String>,
}

/// What the domain asks of the network side. Nothing here blocks.
pub trait Mesh: Send + Sync + 'static {
    /// Takes a task slot of an online node, or says why not.
    fn reserve(&self, node: NodeId) -> Reservation;
    /// How many slots of a node are free; `None`: it is not there, or takes no tasks now.
    fn room(&self, node: NodeId) -> Option<u32>;
    /// Offers a task to the pool, under the fence that it has. Called on the store's thread after the commit, as [`Mesh::deliver`] is.
    fn offer(&self, task: Task);
    /// A node is to be given nothing new, or may be again. From then on, when this returns.
    fn drain(&self, _node: NodeId, _drained: bool) {}
    /// How many tasks wait in the pool.
    fn offered(&self) -> usize {
        0
    }
    /// What happened in the pool since the start.
    fn pool_tally(&self) -> Tally {
        Tally::default()
    }
    /// Gives a reserved slot back: the dispatch came to nothing.
    fn release(&self, node: NodeId);
    /// Sends a leased task to its node (its slot is reserved), or queues it until a slot is free or the node is back. Called on the
    /// store's thread after the commit, inside the runtime's context: it must be quick.
    /// The whole record comes along, so that the mesh need not read it again.
    fn deliver(&self, task: Task, leased: bool);
    /// Asks the node to end a task.
    fn cancel(&self, task: TaskId, node: NodeId, reason: String);
    /// Sends standard input from `offset`; answers where the next byte belongs.
    fn stdin(&self, task: TaskId, node: NodeId, offset: u64, data: Bytes, end: bool) -> BoxFuture<'static, Result<u64, StdinError>>;
    /// How much of its input a task has taken.
    fn stdin_position(&self, _task: TaskId, _node: NodeId) -> BoxFuture<'static, Result<u64, StdinError>> {
        Box::pin(async { Err(StdinError::NotRunning) })
    }
    /// A task's terminal takes another size. Nothing is said of it when the node is away: it hears the last one when it is back.
    fn resize(&self, _task: TaskId, _node: NodeId, _size: schema::Terminal) {}
    /// The node was revoked, deleted or approved, or its policy or name changed.
    fn node_changed(&self, node: NodeId);
    /// The node was attached to a session or detached from one, or a session of it began or ceased to be in use.
    fn sessions_changed(&self, node: NodeId);
    /// No node may ask for contents of this session any more; `deleted`: for ever.
    fn session_unused(&self, session: SessionId, deleted: bool);
    /// The relays of this hub, most wanted first.
    fn relays(&self) -> Vec<RelayStatus>;
    /// Asks every relay whether it is there, for readiness. Bounded in time.
    fn check_relays(&self) -> BoxFuture<'static, Vec<RelayCheck>> {
        let problem = |online: bool| (!online).then(|| "not linked".to_owned());
        let checks = self.relays().into_iter().map(|relay| RelayCheck { relay: relay.endpoint.id, problem: problem(relay.online) });
        let checks = checks.collect();
        Box::pin(async move { checks })
    }
    /// A further relay is there from now on.
    fn add_relay(&self, relay: RelayEndpoint);
    /// This relay is no more to be used.
    fn remove_relay(&self, relay: RelayId);
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
    /// Where the contents of workspaces are kept; none: `mirrors` in the data directory.
    pub mirror_dir: Option<PathBuf>,
    /// The time.
    pub clock: Clock,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self { name: "Cortex hub".into(), public_url: String::new(), mirror_dir: None, clock: Clock::default() }
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
    pub keys: Arc<HubKeys>,
    /// Live subscribers.
    pub feeds: Feeds,
    /// Which nodes are there.
    pub presence: PresenceTable,
    /// What tasks print.
    pub outputs: Outputs,
    /// Terminals at which somebody sits.
    pub terminals: Terminals,
    /// Workspaces, and what they hold.
    pub mirrors: Mirrors,
    pub(crate) browser_news: BrowserNews,
    pub(crate) logins: Logins,
    /// What is to be done in a while. Ends with the hub.
    pub(crate) later: std::sync::Mutex<tokio::task::JoinSet<()>>,
    options: HubOptions,
    data_dir: PathBuf,
    mesh: OnceLock<Arc<dyn Mesh>>,
    /// Held as long as the hub lives.
    _lock: File,
}

/// What lies in the data directory.
struct Foundation {
    keys: HubKeys,
    store: RedbStore,
    lock: File,
}

impl Foundation {
    fn open(dir: &Path, now_ms: i64) -> Result<Self, OpenError> {
        let failed = |source| OpenError::DataDir { path: dir.to_owned(), source };
        keyfile::make_private_dir(dir).map_err(failed)?;
        let lock = File::create(dir.join("lock")).map_err(failed)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse { path: dir.to_owned() },
            TryLockError::Error(source) => failed(source),
        })?;
        let keys = HubKeys::open(&dir.join("keys"), now_ms)?;
        let store = RedbStore::open(&dir.join("hub.redb"), migrate::CURRENT)?;
        // A new store's name must be as durable as what will be in it.
        #[cfg(unix)]
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(Self { keys, store, lock })
    }
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
        let dir = data_dir.to_owned();
        let now_ms = options.clock.now_ms();
        let opened = tokio::task::spawn_blocking(move || Foundation::open(&dir, now_ms)).await;
        let Foundation { keys, store, lock } = opened.map_err(|_| StoreError::Panicked)??;
        let db = Db::new(Arc::new(store));
        let mirror_dir = options.mirror_dir.clone().unwrap_or_else(|| data_dir.join("mirrors"));
        let hub = Arc::new(Self {
            mirrors: Mirrors::new(mirror_dir, db.clone()),
            terminals: Terminals::default(),
            later: std::sync::Mutex::default(),
            outputs: Outputs::new(data_dir.join("output"), db.clone()),
            db,
            keys: Arc::new(keys),
            feeds: Feeds::default(),
            browser_news: BrowserNews::default(),
            presence: PresenceTable::default(),
            logins: Logins::default(),
            options,
            data_dir: data_dir.to_owned(),
            mesh: OnceLock::new(),
            _lock: lock,
        });
        tokio::spawn(sweep_hourly(Arc::downgrade(&hub)));
        Ok(hub)
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

    /// Where the time comes from.
    pub(crate) fn clock(&self) -> Clock {
        self.options.clock.clone()
    }

    /// Connects the network side, once.
    pub fn set_mesh(&self, mesh: Arc<dyn Mesh>) {
        let _ = self.mesh.set(mesh);
    }

    /// The network side; `None` while the hub starts.
    pub fn mesh(&self) -> Option<&Arc<dyn Mesh>> {
        self.mesh.get()
    }

    /// Removes what only took time to become worthless: login sessions, old invites, idempotency keys, files of tasks that are gone. Called
    /// at the start and every hour by the hub itself.
    ///
    /// # Errors
    /// [`OutputError`], which is also the store's.
    pub async fn sweep(&self) -> Result<(), OutputError> {
        self.outputs.sweep().await?;
        self.forget_outputs(None).await?;
        let now_ms = self.now_ms();
        self.db
            .write(move |tx| {
                account::credential::sweep(tx, now_ms)?;
                invite::sweep(tx, now_ms)?;
                approval::sweep(tx, now_ms)?;
                Ok(task::sweep(tx, now_ms)?)
            })
            .await
    }

    /// A real round trip through the store, for readiness.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn check_store(&self) -> Result<(), StoreError> {
        let now = self.now_ms();
        self.db.write(move |tx| PROBE.put(tx, "readyz", &now)).await?;
        self.db.read(|tx| PROBE.get(tx, "readyz")).await.map(drop)
    }
}

async fn sweep_hourly(hub: Weak<Hub>) {
    let mut hours = tokio::time::interval(Duration::from_secs(60 * 60));
    loop {
        hours.tick().await;
        let Some(hub) = hub.upgrade() else { return };
        if let Err(error) = hub.sweep().await {
            tracing::warn!(%error, "could not remove what has expired");
        }
        if let Err(error) = hub.sweep_mirrors().await {
            tracing::warn!(%error, "could not remove chunks that nothing names");
        }
    }
}

/// A lock that survives a panic of its holder: what we guard is replaced whole, never left half done.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
