//! One workspace on this node: the owner of everything about it.
//!
//! A single task, on a thread of its own, takes in what happens (file events, frames of the hub, ends of work on the disk and the network), hands it to the engine
//! ([`Replica`]) and starts what the engine asks for. It never waits for a disk or a network itself. Four things go on beside it:
//!
//! - the **disk lane**: a look or an apply, one at a time. So what a look tells is what is on the disk after every apply that was told before, as the engine
//!   wants it;
//! - **staging**: the contents of the next apply are brought to the stage while the disk lane works, and what has come together there is brought to the disk together;
//! - **large files** are read, one at a time, so that no look takes long;
//! - **uploads**: two at a time, so that a small edit does not wait for a large file.
//!
//! What the engine and the cache have learned is made durable before a proposal goes out. Everything else can be learned again after a crash.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cortex_runtime::{
    chunk::{Asker, ChunkSource},
    clock,
};
use cortex_wire::{
    id::{NodeId, SessionId},
    limits,
    mirror::{
        entry::{Entry, Hash},
        judge::{Lock, Objection},
        op,
        path::RelPath,
        replica::{CommitIn, Found, Input, Job, Output, Proposal, Replica, Trouble, VerdictIn},
        seal::Keys,
    },
    schema::{self, FromWorkspace, ToWorkspace, WorkspaceOpen, from_workspace, to_workspace},
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    apply::{self, Done, Failed, Hands, Put, Step, Task},
    cache::{Cache, Known, KnownFile},
    chunks::ChunkMap,
    download::{self, Kitchen, Staged, Wanted},
    drift,
    flight::{self, Stored},
    gather::Gather,
    ignore::Ignored,
    large::ReadFiles,
    read::ReadError,
    root::{COOKIES, Root},
    stage::Stage,
    store::{Rows, Store, StoreError},
    upload::{self, MadeFile, Source},
    walk::{self, Ended, Eyes, Findings, How},
    watch::{Dirty, Mark, Watch},
    writers::Writers,
};

mod check;
mod hub;
mod lanes;
mod large;
mod status;
mod time;
mod track;
mod uploads;

/// Ends of work that wait to be taken in.
const EVENTS: usize = 64;
/// What was learned is made durable this much later, with all that is learned meanwhile.
const PERSIST: Duration = Duration::from_millis(200);
/// Statuses are at most this frequent, but for one that says that things have come to rest.
const STATUS: Duration = Duration::from_millis(200);
/// Folders that are not watched are looked at this often.
const UNWATCHED: Duration = Duration::from_secs(10);
/// While more is to be applied, looks are this far apart.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Jobs that are staged while others are applied.
const STAGED: usize = 4_096;
/// Lists that are on their way to the stage, and how many of them at once: the others are at hand whatever the owner is busy with.
const STAGING: usize = 4;
const STAGING_AT_ONCE: usize = 2;
/// A folder that is gone is looked for this often.
const GONE: Duration = Duration::from_secs(1);
/// A cookie's event comes within this time, or everything is looked at.
const COOKIE: Duration = Duration::from_millis(250);
/// First wait before a file that changes all the time is looked at again; doubled up to…
const HOT: Duration = Duration::from_millis(100);
/// …this.
const HOT_AT_MOST: Duration = Duration::from_secs(60);
/// From this try on it is reported.
const HOT_TRIES: u32 = 3;
/// A file that is being written is read when nobody has written for so long…
const UNCLOSED: Duration = Duration::from_secs(2);
/// …or it was found to be so long ago: then what it holds goes up as it is.
const UNCLOSED_AT_MOST: Duration = Duration::from_secs(10);
/// Uploads go in two lanes, so that a small edit does not wait for a large file.
const SMALL: usize = 0;
const LARGE: usize = 1;
/// Above this a file goes in the lane of large ones.
const LARGE_BYTES: u64 = 4 * 1024 * 1024;
/// Problems in a status.
const PROBLEMS: usize = 100;
/// Problems that are remembered.
const TROUBLES: usize = 10_000;
/// Changes in one frame; a fold may be longer than a batch.
const FRAME_OPS: usize = limits::BATCH_OPS * 8;
/// How to look at what the engine or an upload asks about: it wants an answer.
const LOOK: Mark = Mark { deep: false, written: true, tell: true, unclosed: None };
/// The question that is ours, and not the engine's.
const ROOT_QUESTION: u64 = 1 << 63;

/// What a workspace is opened with.
#[derive(Clone)]
pub struct Options {
    /// One folder per session is in it.
    pub workspace_dir: PathBuf,
    /// One file per session is in it.
    pub state_dir: PathBuf,
    /// Which session.
    pub session: SessionId,
    /// This node.
    pub node: NodeId,
    /// The way to the chunks, when there is one.
    pub chunks: watch::Receiver<Option<Arc<dyn ChunkSource>>>,
    /// Which tasks may be writing.
    pub writers: Arc<Writers>,
}

/// What others on this node want of a workspace. Whoever cannot be answered is dropped.
#[derive(Debug)]
pub enum Ask {
    /// Tell when all that was written until now is at the hub, or is held or reported.
    Flush(oneshot::Sender<()>),
    /// Tell when the folder holds this revision, but for what is reported; 0: what the hub last announced.
    Follow(u64, oneshot::Sender<()>),
    /// The session is gone, or this node is in it no longer.
    Forget,
}

/// What comes to a workspace from outside.
#[derive(Debug)]
pub struct Inbox {
    /// Streams of the hub.
    pub attached: mpsc::Receiver<Attachment>,
    /// What this node's tasks wait for, and what the hub says of the session while there is no stream.
    pub asked: mpsc::Receiver<Ask>,
}

/// Why a workspace cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// See [`super::root::RootError`].
    #[error(transparent)]
    Root(#[from] super::root::RootError),
    /// See [`StoreError`].
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stage cannot be used.
    #[error("cannot use `.cortex` in the workspace: {0}")]
    Stage(std::io::Error),
    /// Its state could not be kept a moment ago.
    #[error("{0}; it is tried again by itself")]
    Broken(String),
}

/// A stream of the hub.
#[derive(Debug)]
pub struct Attachment {
    /// Its first frame.
    pub open: WorkspaceOpen,
    /// Those that follow.
    pub frames: mpsc::Receiver<ToWorkspace>,
    /// Those to send.
    pub send: mpsc::Sender<FromWorkspace>,
}

/// Why a workspace's owner has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The program stops, or nobody holds the workspace any more.
    Stopped,
    /// The session is no longer attached here. Its files stay, what was remembered of it is removed.
    Detached,
    /// It is to be begun anew, as if it had just been attached.
    Anew,
    /// Its state cannot be kept, and why.
    Broken(String),
}

/// The end of some work.
#[derive(Debug)]
enum Event {
    /// By a look that is still going on.
    Found {
        found: Vec<(RelPath, Option<Found>)>,
        gathered: Vec<(RelPath, Hash)>,
    },
    Looked {
        findings: Findings,
        ended: Result<(), Ended>,
    },
    /// The contents of a list of jobs are in the stage, and not on the disk yet.
    Written {
        number: u64,
        list: List,
    },
    Staged {
        jobs: Vec<Job>,
        tasks: Staging,
        failed: Vec<(RelPath, Trouble)>,
    },
    Applied {
        jobs: Vec<Job>,
        done: Vec<Done>,
        maps: Vec<([u8; 32], ChunkMap)>,
    },
    Read {
        path: RelPath,
        /// With where it lies now.
        file: Result<(RelPath, KnownFile), ReadError>,
        gathered: Vec<(RelPath, Hash)>,
    },
    Stored(Stored),
    Uploaded {
        lane: usize,
    },
    Gathered {
        lane: usize,
    },
}

/// Tasks whose contents are in the stage, and how large files among them are cut.
type Staging = Vec<(Task, Option<ChunkMap>)>;

/// A list of jobs whose contents were brought to the stage.
#[derive(Debug)]
struct List {
    jobs: Vec<Job>,
    tasks: Staging,
    failed: Vec<(RelPath, Trouble)>,
}

/// Jobs whose contents are in the stage.
#[derive(Debug, Default)]
struct Ready {
    jobs: Vec<Job>,
    tasks: Staging,
}

impl Ready {
    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Jobs without a task have failed, and are known to have.
    fn add(&mut self, jobs: Vec<Job>, tasks: Staging) {
        if !tasks.is_empty() {
            self.jobs.extend(jobs);
            self.tasks.extend(tasks);
        }
    }
}

/// What goes on on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Free,
    Looking(How),
    Applying,
}

#[derive(Debug)]
struct Hot {
    tries: u32,
    again_at: Instant,
    /// That time has come, and it was not read since.
    due: bool,
}

/// A file that is being written.
#[derive(Debug)]
struct Unclosed {
    since: Instant,
    read_at: Instant,
}

/// A barrier on its way.
#[derive(Debug)]
struct Barrier {
    answer: Answer,
    state: BarrierState,
}

/// Who waits for a barrier.
#[derive(Debug)]
enum Answer {
    Hub(u64),
    Task(oneshot::Sender<()>),
}

#[derive(Debug, PartialEq, Eq)]
enum BarrierState {
    /// The events before the cookie's are still to come.
    Cookie { name: String, until: Instant },
    /// What was dirty is to be looked at; done when this many looks have ended.
    Look { looks: u64 },
    /// What was found is to be accepted by the hub.
    Accepted,
}

#[derive(Debug)]
struct Check {
    request: u64,
    rehash: bool,
    repair: bool,
    /// Only these and what is below them; none: everything.
    paths: Vec<RelPath>,
    /// Its look has ended.
    looked: bool,
}

impl Check {
    fn covers(&self, path: &RelPath) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|top| path.starts_with(top))
    }
}

struct Stream {
    frames: mpsc::Receiver<ToWorkspace>,
    send: mpsc::Sender<FromWorkspace>,
}

/// The owner of a workspace.
pub struct Workspace {
    options: Options,
    root: Arc<Root>,
    cache: Arc<Mutex<Cache>>,
    ignored: Arc<Mutex<Ignored>>,
    watch: Arc<Watch>,
    stage: Arc<Stage>,
    store: Arc<Store>,
    stop: Arc<AtomicBool>,
    replica: Replica,
    opened_at: (i64, Instant),
    keys: BTreeMap<u32, [u8; 32]>,
    sealing: Arc<Keys>,
    seed: [u8; 8],
    stream: Option<Stream>,
    tell: mpsc::Sender<Event>,
    told: mpsc::Receiver<Event>,

    lane: Lane,
    /// The first look tells everything, because what was remembered may be old.
    looked_once: bool,
    looks: u64,
    looked_at: Instant,
    /// Ignored now, and still in the hub's tree: taken out of it when the hub has the rules.
    untracked: BTreeSet<RelPath>,
    /// Large files, to be read one at a time, and whether events say that they were written; which one is; and what was read, until a look takes it.
    to_read: BTreeMap<RelPath, bool>,
    reading: Option<RelPath>,
    read_files: Arc<ReadFiles>,
    /// Looks again although nothing says that it was touched.
    dirty: Dirty,
    lists: VecDeque<Vec<Job>>,
    /// Lists on their way to the stage by number, in the order in which they are applied: some of them may be there before an earlier one.
    staging: VecDeque<(u64, Option<List>)>,
    lists_begun: u64,
    cooks: Arc<Semaphore>,
    afresh: Arc<Mutex<HashSet<[u8; 32]>>>,
    /// What has come together while something else was brought to the disk goes there together.
    written: Ready,
    syncing: bool,
    staged: Ready,
    /// Of small files, and of large ones.
    uploads: [Vec<(RelPath, Hash)>; 2],
    uploading: [bool; 2],
    up_bytes: BTreeMap<RelPath, u64>,
    /// What is new is sent as it is read, by a first look and in the lane of large files: what is on its way, and what is at the hub before the engine asked for it.
    is_gathering: [bool; 2],
    gathering: [BTreeMap<RelPath, Hash>; 2],
    made: BTreeMap<RelPath, MadeFile>,

    rows: Rows,
    writing: Option<oneshot::Receiver<Result<(), StoreError>>>,
    /// Something was learned that is to be made durable then.
    persist_at: Option<Instant>,
    /// Proposals that wait until what is being written is durable.
    proposals: Vec<FromWorkspace>,
    in_write: Vec<FromWorkspace>,

    troubles: BTreeMap<String, walk::Trouble>,
    hot: BTreeMap<RelPath, Hot>,
    unclosed: BTreeMap<RelPath, Unclosed>,
    barriers: Vec<Barrier>,
    followers: Vec<(u64, oneshot::Sender<()>)>,
    checks: Vec<Check>,
    root_gone: bool,
    unwatched_at: Instant,
    /// Something has happened since the last status, and the next one may be sent then.
    stale: bool,
    status_at: Instant,
    last_status: Option<schema::WorkspaceStatus>,
    exit: Option<Exit>,
}

impl Workspace {
    /// Opens the folder and what is remembered of it. Blocks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let root = Arc::new(Root::open(&options.workspace_dir, &options.session)?);
        let file = options.state_dir.join(format!("{}{}", options.session, super::STATE));
        let (mut store, mut kept) = Store::open(&file)?;
        let identity = root.identity().map_err(OpenError::Stage)?;
        if kept.folder.is_some_and(|folder| folder != identity) {
            // Another folder than the one that is remembered says nothing about what was deleted.
            tracing::info!(session = %options.session, "the workspace's folder is a new one; it is compared with the hub's from the beginning");
            drop(store);
            let _ = std::fs::remove_file(&file);
            (store, kept) = Store::open(&file)?;
        }
        let cache = Cache::load(kept.seen);
        // What was only seen here may be an edit that was about to lose a conflict.
        let agreed = LazyCell::new(|| -> HashSet<Hash> {
            let bases = kept.saved.rows.iter().filter_map(|(_, row)| row.base);
            kept.saved.hub.iter().map(|(_, entry)| entry.hash()).chain(bases).collect()
        });
        let (stage, copies) = Stage::open(&root, clock::now_ms(), |hash| agreed.contains(hash)).map_err(OpenError::Stage)?;
        for copy in copies {
            tracing::warn!(session = %options.session, copy, "an edit that was displaced when the peer was killed is kept here");
        }
        root.own(COOKIES).map_err(|error| OpenError::Stage(error.into()))?;
        let watch = Arc::new(Watch::new(root.path()));
        let (tell, told) = mpsc::channel(EVENTS);
        let mut rows = Rows::default();
        rows.folder(&identity);
        Ok(Self {
            replica: Replica::load(options.node, kept.saved),
            sealing: Arc::new(Keys::new(options.session)),
            keys: BTreeMap::new(),
            seed: [0; 8],
            stream: None,
            root,
            cache: Arc::new(Mutex::new(cache)),
            ignored: Arc::default(),
            opened_at: (clock::now_ms(), Instant::now()),
            watch,
            stage: Arc::new(stage),
            store: Arc::new(store),
            stop: Arc::new(AtomicBool::new(false)),
            tell,
            told,
            lane: Lane::Free,
            looked_once: false,
            looks: 0,
            looked_at: Instant::now(),
            untracked: BTreeSet::new(),
            to_read: BTreeMap::new(),
            reading: None,
            read_files: Arc::default(),
            dirty: Dirty::everything(),
            lists: VecDeque::new(),
            staging: VecDeque::new(),
            lists_begun: 0,
            cooks: Arc::new(Semaphore::new(STAGING_AT_ONCE)),
            afresh: Arc::default(),
            written: Ready::default(),
            syncing: false,
            staged: Ready::default(),
            uploads: Default::default(),
            uploading: [false; 2],
            up_bytes: BTreeMap::new(),
            is_gathering: [false; 2],
            gathering: Default::default(),
            made: BTreeMap::new(),
            rows,
            writing: None,
            persist_at: Some(Instant::now()),
            proposals: Vec::new(),
            in_write: Vec::new(),
            troubles: BTreeMap::new(),
            hot: BTreeMap::new(),
            unclosed: BTreeMap::new(),
            barriers: Vec::new(),
            followers: Vec::new(),
            checks: Vec::new(),
            root_gone: false,
            unwatched_at: Instant::now() + UNWATCHED,
            stale: true,
            status_at: Instant::now(),
            last_status: None,
            exit: None,
            options,
        })
    }

    /// Keeps the workspace until it is detached, or nobody can attach to it any more.
    pub async fn run(mut self, mut inbox: Inbox) -> (Exit, Inbox) {
        // The stream that it was opened for comes first: what the hub has decides how to look.
        if let Ok(attached) = inbox.attached.try_recv() {
            self.attach(attached);
        }
        let exit = loop {
            self.advance();
            if let Some(exit) = self.exit.take() {
                break exit;
            }
            let wake_at = self.wake_at();
            // Whatever comes may change the status, but for the time that it was to be sent at.
            let mut happened = true;
            tokio::select! {
                attached = inbox.attached.recv() => match attached {
                    Some(attached) => self.attach(attached),
                    None => break Exit::Stopped,
                },
                Some(ask) = inbox.asked.recv() => self.asked(ask),
                frame = next_frame(&mut self.stream) => match frame {
                    Some(frame) => self.hear(frame),
                    None => self.detached(),
                },
                Some(event) = self.told.recv() => self.take_in(event),
                durable = until_durable(&mut self.writing) => self.durable(durable),
                () = self.watch.news() => {}
                // The way to the chunks came or went.
                Ok(()) = self.options.chunks.changed() => {}
                () = tokio::time::sleep_until(wake_at.into()) => happened = self.wake(),
            }
            self.stale |= happened;
            if happened {
                self.persist_at.get_or_insert_with(|| Instant::now() + PERSIST);
            }
        };
        self.stop.store(true, Ordering::Relaxed);
        // Work on the disk ends before the folder is let go.
        while self.lane != Lane::Free {
            match tokio::time::timeout(Duration::from_secs(10), self.told.recv()).await {
                Ok(Some(event)) => self.take_in(event),
                _ => break,
            }
        }
        let (changes, seen) = (self.replica.take_changes(), self.cache().take_changes());
        self.rows.engine(&changes);
        self.rows.seen(seen);
        let _ = self.store.write(std::mem::take(&mut self.rows)).await;
        if matches!(exit, Exit::Detached | Exit::Anew) {
            let path = self.store.path().to_owned();
            drop(self.store);
            let _ = std::fs::remove_file(path);
        }
        (exit, inbox)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&mut self, input: Input) {
        self.replica.handle(input, self.now_ms());
    }

    /// The time when it was opened, and what has passed since: a clock that is set makes nothing wait for days.
    fn now_ms(&self) -> i64 {
        let (opened_ms, since) = self.opened_at;
        opened_ms.saturating_add(i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX))
    }
}

async fn next_frame(stream: &mut Option<Stream>) -> Option<ToWorkspace> {
    match stream {
        Some(stream) => stream.frames.recv().await,
        None => std::future::pending().await,
    }
}

async fn until_durable(writing: &mut Option<oneshot::Receiver<Result<(), StoreError>>>) -> Result<(), String> {
    match writing {
        Some(answer) => match answer.await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err("its writer has ended".into()),
        },
        None => std::future::pending().await,
    }
}
