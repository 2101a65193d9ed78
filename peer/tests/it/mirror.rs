//! Workspaces on real folders, with a hub that is played by the test: the real judge, chunks in memory.
//!
//! | module | what it shows |
//! | --- | --- |
//! | [`edit`] | edits on both sides: what arrives, and what it costs |
//! | [`attach`] | nodes that come with files, go, and come back |
//! | [`gather`] | a first look that sends what it reads, and what may come between |
//! | [`hold`] | what is held back and asked about, and checks |
//! | [`disk`] | disks and files that do not do what they should |
//! | [`fold`] | file systems that take two names for one, cannot exchange two files, or hang: [`fuse`] plays them |
//! | [`ignore`] | what is not synced |
//! | [`task`] | tasks and barriers: who waits for what |

mod attach;
mod disk;
mod edit;
mod fold;
mod fuse;
mod gather;
mod hold;
mod ignore;
mod task;

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cortex_peer::mirror::Mirror;
use cortex_runtime::{
    chunk::{Asker, BoxFuture, ChunkError, ChunkSource, Found},
    clock,
    stream::{FrameReader, FrameWriter},
};
use cortex_wire::{
    id::{NodeId, SessionId, TaskId},
    key::SecretKey,
    limits,
    mirror::{
        entry::{Content, Entry, Sid},
        judge::{Author, Code, Lock, Objection, judge},
        op::{self, Op},
        path::RelPath,
        seal::Sealed,
        tree::Tree,
    },
    schema::{
        Answered, Commit, Decision, DriftReport, FromWorkspace, Rescan, ToWorkspace, Verdict, WorkspaceHello, WorkspaceKey, WorkspaceOpen,
        WorkspaceState, WorkspaceStatus, from_workspace, to_workspace,
    },
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{Instant, timeout},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Chunks, and what passed.
#[derive(Default)]
struct Chunks {
    held: Mutex<HashMap<Sid, Sealed>>,
    stored_bytes: AtomicUsize,
    fetched_bytes: AtomicUsize,
    /// Chunks that nothing named were taken away.
    swept: AtomicBool,
    /// The link is lost when this many chunks more were stored.
    break_after: AtomicUsize,
}

impl ChunkSource for Chunks {
    fn fetch(&self, _: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>> {
        Box::pin(async move {
            for sid in sids {
                let chunk = self.held.lock().unwrap().get(&sid).cloned();
                self.fetched_bytes.fetch_add(chunk.as_ref().map_or(0, |chunk| chunk.bytes().len()), Ordering::Relaxed);
                if found.send(Found { sid, chunk }).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn store(&self, _: Asker, mut chunks: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>> {
        Box::pin(async move {
            let mut count = 0;
            while let Some(chunk) = chunks.recv().await {
                if self.break_after.load(Ordering::Relaxed) > 0 && self.break_after.fetch_sub(1, Ordering::Relaxed) == 1 {
                    return Err(ChunkError::Lost);
                }
                self.stored_bytes.fetch_add(chunk.bytes().len(), Ordering::Relaxed);
                self.held.lock().unwrap().insert(chunk.sid(), chunk);
                count += 1;
            }
            Ok(count)
        })
    }

    fn missing(&self, _: Asker, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>> {
        let held = self.held.lock().unwrap();
        let missing = sids.into_iter().filter(|sid| !held.contains_key(sid)).collect();
        Box::pin(async move { Ok(missing) })
    }
}

#[derive(Default)]
struct HubState {
    tree: Tree,
    /// The trees of earlier revisions.
    past: HashMap<u64, Tree>,
    revision: u64,
    proposals: usize,
    conflicts: usize,
    locks: Vec<Lock>,
    paused: bool,
    /// Tasks that the last proposals named.
    tasks: Vec<Bytes>,
    sequences: HashMap<NodeId, (u64, Verdict)>,
    nodes: HashMap<NodeId, mpsc::UnboundedSender<ToWorkspace>>,
    status: HashMap<NodeId, WorkspaceStatus>,
    barriers: Vec<u64>,
    drift: Vec<DriftReport>,
    answered: Vec<Answered>,
    /// Streams that have ended.
    ended: usize,
}

/// A hub with one session.
struct Hub {
    session: SessionId,
    state: Mutex<HubState>,
    chunks: Arc<Chunks>,
    news: Notify,
}

fn frame(frame: to_workspace::Frame) -> ToWorkspace {
    ToWorkspace { frame: Some(frame) }
}

impl Hub {
    fn new() -> Arc<Self> {
        let session = SessionId::new(1, clock::random());
        Arc::new(Self { session, state: Mutex::default(), chunks: Arc::default(), news: Notify::new() })
    }

    fn open(&self) -> WorkspaceOpen {
        let state = self.state.lock().unwrap();
        WorkspaceOpen {
            session_id: Bytes::copy_from_slice(self.session.as_bytes()),
            keys: vec![WorkspaceKey { epoch: 1, key: Bytes::from_static(&[7; 32]) }],
            chunk_seed: Bytes::from_static(b"12345678"),
            revision: state.revision,
            root: state.tree.root().to_bytes(),
            paused: state.paused,
            ..WorkspaceOpen::default()
        }
    }

    fn to(&self, node: &Node, what: to_workspace::Frame) {
        self.state.lock().unwrap().nodes[&node.id].send(frame(what)).unwrap();
    }

    fn hello(&self, node: NodeId, hello: &WorkspaceHello, to: &mpsc::UnboundedSender<ToWorkspace>) {
        let mut state = self.state.lock().unwrap();
        if hello.revision != state.revision || hello.root != state.tree.root().to_bytes() {
            let known = state.past.get(&hello.revision).filter(|tree| tree.root().to_bytes() == hello.root);
            let (base, before) = known.map_or((0, Tree::default()), |tree| (hello.revision, tree.clone()));
            for commit in commits(base, state.revision, &state.tree, &op::compact(&before, &state.tree)) {
                to.send(frame(to_workspace::Frame::Commit(commit))).unwrap();
            }
        }
        state.nodes.insert(node, to.clone());
    }

    fn propose(&self, node: NodeId, sequence: u64, ops: &[Op]) {
        let state = &mut *self.state.lock().unwrap();
        if let Some((last, verdict)) = state.sequences.get(&node)
            && *last == sequence
        {
            let _ = state.nodes[&node].send(frame(to_workspace::Frame::Verdict(verdict.clone())));
            return;
        }
        state.proposals += 1;
        let unheld = |op: &Op| {
            let held = self.chunks.held.lock().unwrap();
            matches!(op, Op::Put { entry, .. } if !entry.spans().iter().all(|span| held.contains_key(&span.sid)))
        };
        assert!(self.chunks.swept.load(Ordering::Relaxed) || !ops.iter().any(unheld), "proposed before it was stored");
        let (numbers, held): (Vec<usize>, Vec<Op>) = ops.iter().cloned().enumerate().filter(|(_, op)| !unheld(op)).unzip();
        let mut judged = judge(&state.tree, &held, &state.locks, &Author::Node(node), clock::now_ms());
        judged.objections.iter_mut().for_each(|objection| objection.op = numbers[objection.op]);
        let missing = |op| Objection { op, code: Code::MissingChunks, message: "swept".into() };
        judged.objections.extend((0..ops.len()).filter(|op| !numbers.contains(op)).map(missing));
        state.conflicts += judged.conflicts.len();
        let base = state.revision;
        state.past.insert(base, state.tree.clone());
        state.revision += u64::from(!judged.accepted.is_empty());
        state.tree = judged.tree;
        let verdict = Verdict {
            sequence,
            base,
            revision: state.revision,
            root: state.tree.root().to_bytes(),
            objections: judged.objections.iter().map(|objection| objection.to_schema()).collect(),
        };
        state.sequences.insert(node, (sequence, verdict.clone()));
        let _ = state.nodes[&node].send(frame(to_workspace::Frame::Verdict(verdict)));
        if state.revision > base {
            for (other, to) in &state.nodes {
                for commit in commits(base, state.revision, &state.tree, &judged.accepted) {
                    if *other != node {
                        let _ = to.send(frame(to_workspace::Frame::Commit(commit)));
                    }
                }
            }
        }
    }

    /// A change by the API.
    fn write(&self, ops: &[Op]) {
        let state = &mut *self.state.lock().unwrap();
        let base = state.revision;
        state.past.insert(base, state.tree.clone());
        ops.iter().for_each(|op| state.tree.apply(op).unwrap());
        state.revision += 1;
        for to in state.nodes.values() {
            for commit in commits(base, state.revision, &state.tree, ops) {
                let _ = to.send(frame(to_workspace::Frame::Commit(commit)));
            }
        }
    }

    fn hear(&self, node: NodeId, heard: FromWorkspace, to: &mpsc::UnboundedSender<ToWorkspace>) {
        use from_workspace::Frame;
        match heard.frame.unwrap() {
            Frame::Hello(hello) => self.hello(node, &hello, to),
            Frame::Proposal(proposal) => {
                self.state.lock().unwrap().tasks.push(proposal.task_id.clone());
                let ops = op::unpack(&proposal.batch.unwrap(), limits::BATCH_OPS).unwrap();
                self.propose(node, proposal.sequence, &ops);
            }
            Frame::Status(status) => drop(self.state.lock().unwrap().status.insert(node, status)),
            Frame::Barrier(number) => self.state.lock().unwrap().barriers.push(number),
            Frame::Drift(report) => self.state.lock().unwrap().drift.push(report),
            Frame::Answered(answered) => self.state.lock().unwrap().answered.push(answered),
            Frame::Tree(_) => panic!("nobody asks for trees"),
        }
        self.news.notify_waiters();
    }

    /// Waits until something holds of the state.
    async fn until<T>(&self, what: &str, mut holds: impl FnMut(&HubState) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if let Some(value) = holds(&self.state.lock().unwrap()) {
                return value;
            }
            assert!(Instant::now() < end, "not within a minute: {what}; {:?}", self.state.lock().unwrap().status);
            let _ = timeout(Duration::from_millis(500), news).await;
        }
    }

    fn get(&self, path: &str) -> Option<Entry> {
        self.state.lock().unwrap().tree.get(&path.parse().unwrap()).cloned()
    }

    /// All that was changed since a revision, as one.
    fn folded_since(&self, revision: u64) -> Vec<Op> {
        let state = self.state.lock().unwrap();
        op::compact(&state.past[&revision], &state.tree)
    }

    fn proposals(&self) -> usize {
        self.state.lock().unwrap().proposals
    }

    fn moved_bytes(&self) -> usize {
        self.chunks.stored_bytes.load(Ordering::Relaxed) + self.chunks.fetched_bytes.load(Ordering::Relaxed)
    }

    /// Waits until all nodes say that they are in sync, and every disk holds the hub's tree.
    async fn converge(&self, nodes: &[&Node]) {
        self.until("all in sync", |state| {
            let in_sync = |node: &&Node| {
                state.status.get(&node.id).is_some_and(|status| status.state == "in_sync" && status.revision == state.revision)
            };
            let same = nodes.iter().all(in_sync) && nodes.iter().all(|node| node.listing() == listing_of(&state.tree));
            same.then_some(())
        })
        .await;
    }
}

impl Hub {
    /// As `converge`, for nodes on whose disks nothing is ignored.
    async fn converge_tree(&self, nodes: &[&Node]) {
        self.until("their disks hold the tree", |state| nodes.iter().all(|node| node.listing() == listing_of(&state.tree)).then_some(()))
            .await;
    }
}

fn commits(base: u64, revision: u64, tree: &Tree, ops: &[Op]) -> Vec<Commit> {
    let mut parts: Vec<Commit> =
        op::split(ops).into_iter().map(|ops| Commit { base, revision, batch: Some(op::pack(ops)), ..Commit::default() }).collect();
    if parts.is_empty() {
        parts.push(Commit { base, revision, ..Commit::default() });
    }
    let last = parts.last_mut().unwrap();
    (last.root, last.last) = (tree.root().to_bytes(), true);
    parts
}

/// What lies at a path, in short.
type Listing = BTreeMap<String, String>;

fn listing_of(tree: &Tree) -> Listing {
    let short = |entry: &Entry| match entry {
        Entry::Directory => "directory".to_owned(),
        Entry::Symlink(target) => format!("-> {target}"),
        Entry::File { content, executable } => format!("{executable} {}", hash_short(&content.hash)),
    };
    tree.iter().map(|(path, entry)| (path.to_string(), short(entry))).collect()
}

fn hash_short(hash: &[u8; 32]) -> usize {
    usize::try_from(u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]])).unwrap()
}

fn list(folder: &Path, prefix: &str, listing: &mut Listing) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let Ok(metadata) = std::fs::symlink_metadata(entry.path()) else { continue };
        if path == ".cortex" {
            continue;
        }
        let short = if metadata.is_dir() {
            list(&entry.path(), &path, listing);
            "directory".to_owned()
        } else if metadata.is_symlink() {
            format!("-> {}", std::fs::read_link(entry.path()).unwrap().to_str().unwrap())
        } else if metadata.is_file() {
            let Ok(bytes) = std::fs::read(entry.path()) else { continue };
            format!("{} {}", metadata.permissions().mode() & 0o100 != 0, hash_short(blake3::hash(&bytes).as_bytes()))
        } else {
            continue;
        };
        listing.insert(path, short);
    }
}

/// A node with a folder of its own.
struct Node {
    id: NodeId,
    dir: PathBuf,
    _temp: Option<tempfile::TempDir>,
    session: SessionId,
    mirror: Mirror,
    stream: Option<JoinHandle<()>>,
}

static NODES: AtomicU64 = AtomicU64::new(1);

impl Node {
    fn new(hub: &Arc<Hub>) -> Self {
        let temp = tempfile::tempdir().unwrap();
        Self { _temp: Some(temp), ..Self::at(hub, PathBuf::new()) }.moved()
    }

    fn moved(mut self) -> Self {
        self.dir = self._temp.as_ref().unwrap().path().to_owned();
        self.mirror = Mirror::new(self.dir.join("work"), &self.dir.join("state"), self.id);
        self
    }

    fn at(hub: &Arc<Hub>, dir: PathBuf) -> Self {
        let seed = NODES.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let id = NodeId::from(SecretKey::from_seed([seed, seed, seed, seed].concat().try_into().unwrap()).public());
        let mirror = Mirror::new(dir.join("work"), &dir.join("state"), id);
        Self { id, dir, _temp: None, session: hub.session, mirror, stream: None }
    }

    fn attached(hub: &Arc<Hub>) -> Self {
        let mut node = Self::new(hub);
        node.connect(hub);
        node
    }

    fn connect(&mut self, hub: &Arc<Hub>) {
        self.mirror.set_chunks(Some(hub.chunks.clone()));
        let (mirror, hub, id) = (self.mirror.clone(), hub.clone(), self.id);
        self.stream = Some(tokio::spawn(async move {
            // A stream that the node ends is opened again, as the hub does.
            loop {
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                let (read, write) = tokio::io::split(theirs);
                let serve = mirror.serve(hub.open(), FrameReader::new(read, 1024), FrameWriter::new(write));
                let (read, write) = tokio::io::split(ours);
                let (to, mut frames) = mpsc::unbounded_channel();
                let hear = async {
                    let mut reader = FrameReader::new(read, limits::WORKSPACE_FRAME_BYTES);
                    while let Ok(Some(heard)) = reader.next::<FromWorkspace>().await {
                        hub.hear(id, heard, &to);
                    }
                };
                let say = async {
                    let mut writer = FrameWriter::new(write);
                    while let Some(frame) = frames.recv().await {
                        if writer.send(&frame).await.is_err() {
                            break;
                        }
                    }
                };
                // What it said before its end is heard.
                let serve = async {
                    let _ = serve.await;
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = serve => {}
                    () = hear => {}
                    () = say => {}
                }
                {
                    let mut state = hub.state.lock().unwrap();
                    state.nodes.remove(&id);
                    state.ended += 1;
                }
                hub.news.notify_waiters();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }));
    }

    fn disconnect(&mut self, hub: &Hub) {
        if let Some(stream) = self.stream.take() {
            stream.abort();
        }
        let mut state = hub.state.lock().unwrap();
        state.nodes.remove(&self.id);
        state.status.remove(&self.id);
    }

    /// Stops as a program does.
    async fn stop(&mut self, hub: &Hub) {
        self.disconnect(hub);
        self.mirror.close().await;
        self.mirror = Mirror::new(self.dir.join("work"), &self.dir.join("state"), self.id);
    }

    fn path(&self, name: &str) -> PathBuf {
        let root = self.dir.join("work").join(self.session.to_string());
        if name.is_empty() { root } else { root.join(name) }
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    fn listing(&self) -> Listing {
        let mut listing = Listing::new();
        list(&self.path(""), "", &mut listing);
        listing
    }

    /// All conflict copies, with their texts.
    fn copies(&self) -> Vec<String> {
        let mut listing = Listing::new();
        list(&self.path(".cortex/conflicts"), "c", &mut listing);
        listing
            .into_keys()
            .filter_map(|path| std::fs::read_to_string(self.path(".cortex/conflicts").join(path.strip_prefix("c/")?)).ok())
            .collect()
    }
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn task(number: u64) -> TaskId {
    TaskId::new(number.cast_signed(), [7; 10])
}
