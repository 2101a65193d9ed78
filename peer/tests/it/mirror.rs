//! Workspaces on real folders, with a hub that is played by the test: the real judge, chunks in memory.

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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
        judge::{Author, Lock, judge},
        op::{self, Op},
        path::RelPath,
        seal::Sealed,
        tree::Tree,
    },
    schema::{
        Commit, Decision, DriftReport, FromWorkspace, Rescan, ToWorkspace, Verdict, WorkspaceHello, WorkspaceKey, WorkspaceOpen,
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
    revision: u64,
    proposals: usize,
    conflicts: usize,
    locks: Vec<Lock>,
    /// Tasks that the last proposals named.
    tasks: Vec<Bytes>,
    sequences: HashMap<NodeId, (u64, Verdict)>,
    nodes: HashMap<NodeId, mpsc::UnboundedSender<ToWorkspace>>,
    status: HashMap<NodeId, WorkspaceStatus>,
    barriers: Vec<u64>,
    drift: Vec<DriftReport>,
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
            ..WorkspaceOpen::default()
        }
    }

    fn to(&self, node: &Node, what: to_workspace::Frame) {
        self.state.lock().unwrap().nodes[&node.id].send(frame(what)).unwrap();
    }

    fn hello(&self, node: NodeId, hello: &WorkspaceHello, to: &mpsc::UnboundedSender<ToWorkspace>) {
        let mut state = self.state.lock().unwrap();
        if hello.revision != state.revision || hello.root != state.tree.root().to_bytes() {
            for commit in commits(0, state.revision, &state.tree, &op::compact(&Tree::default(), &state.tree)) {
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
        for op in ops {
            if let Op::Put { entry, .. } = op {
                let held = self.chunks.held.lock().unwrap();
                assert!(entry.spans().iter().all(|span| held.contains_key(&span.sid)), "proposed before it was stored");
            }
        }
        let judged = judge(&state.tree, ops, &state.locks, &Author::Node(node), clock::now_ms());
        state.conflicts += judged.conflicts.len();
        let base = state.revision;
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
                tokio::select! {
                    _ = serve => {}
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

#[tokio::test]
async fn what_one_node_does_the_other_has() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    let b = Node::attached(&hub);
    hub.converge(&[&a, &b]).await;
    a.write("src/main.rs", "fn main() {}");
    a.write("empty", "");
    a.write("a b/new\nline ü", "odd");
    std::fs::create_dir_all(a.path("hollow/deep")).unwrap();
    symlink("src/main.rs", a.path("link")).unwrap();
    a.write("run.sh", "#!/bin/sh");
    std::fs::set_permissions(a.path("run.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
    hub.until("all of it at the hub", |state| (state.tree.len() == 9).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    b.write("src/main.rs", "fn main() { println!() }");
    std::fs::rename(b.path("hollow"), b.path("filled")).unwrap();
    b.write("filled/deep/f", "x");
    std::fs::remove_file(b.path("empty")).unwrap();
    std::fs::remove_file(b.path("link")).unwrap();
    hub.until("the second round", |state| {
        (state.tree.len() == 8 && state.tree.get(&"filled/deep/f".parse().unwrap()).is_some()).then_some(())
    })
    .await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(a.text("src/main.rs").unwrap(), "fn main() { println!() }");
    assert!(a.copies().is_empty() && b.copies().is_empty());
}

#[tokio::test]
async fn after_quiet_nothing_is_sent() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..50 {
        a.write(&format!("d{}/f{i}", i % 5), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 55).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let (proposals, bytes) = (hub.proposals(), hub.moved_bytes());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((hub.proposals(), hub.moved_bytes()), (proposals, bytes));
    // Touched, and the same.
    a.write("d0/f0", "0");
    let _ = std::fs::File::open(b.path("d0/f0")).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((hub.proposals(), hub.moved_bytes()), (proposals, bytes));
}

#[tokio::test]
async fn of_two_edits_the_first_keeps_the_path_and_the_other_is_kept_aside() {
    let hub = Hub::new();
    let (mut a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("f", "base");
    a.write("deleted here", "base");
    hub.until("the base", |state| (state.tree.len() == 2).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    a.disconnect(&hub);
    b.disconnect(&hub);
    a.write("f", "from a");
    std::fs::remove_file(a.path("deleted here")).unwrap();
    b.write("f", "from b");
    b.write("deleted here", "changed there");
    a.connect(&hub);
    hub.converge(&[&a]).await;
    b.connect(&hub);
    hub.converge(&[&a, &b]).await;
    assert_eq!((a.text("f").as_deref(), b.text("f").as_deref()), (Some("from a"), Some("from a")));
    assert_eq!(b.copies(), ["from b"]);
    assert_eq!(a.text("deleted here").as_deref(), Some("changed there"), "modify beats delete");
    assert_eq!(hub.state.lock().unwrap().conflicts, 1);
}

#[tokio::test]
async fn a_folder_with_files_is_united_with_what_the_hub_has() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    a.write("both", "same");
    a.write("differs", "the hub's");
    a.write("theirs", "t");
    hub.until("the hub's", |state| (state.tree.len() == 3).then_some(())).await;
    let mut b = Node::new(&hub);
    b.write("both", "same");
    b.write("differs", "mine");
    b.write("mine", "m");
    b.connect(&hub);
    hub.until("the union", |state| (state.tree.len() == 4).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.text("differs").as_deref(), Some("the hub's"));
    assert_eq!(b.copies(), ["mine"]);
}

#[tokio::test]
async fn a_node_that_was_off_brings_what_was_done_meanwhile_and_nothing_else() {
    let hub = Hub::new();
    let (mut a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..30 {
        a.write(&format!("d/f{i}"), noise(i, 3_000));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 31).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let (proposals, bytes) = (hub.proposals(), hub.moved_bytes());
    a.stop(&hub).await;
    a.connect(&hub);
    hub.converge(&[&a, &b]).await;
    assert_eq!((hub.proposals(), hub.moved_bytes()), (proposals, bytes), "nothing had changed");
    a.stop(&hub).await;
    a.write("d/f1", "edited while it was off");
    std::fs::remove_file(a.path("d/f2")).unwrap();
    a.write("d/new", "n");
    b.write("d/f3", "edited there");
    hub.until("the edit of b", |state| (state.proposals > proposals).then_some(())).await;
    a.connect(&hub);
    hub.until("the edits of a", |state| state.tree.get(&"d/new".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.text("d/f1").as_deref(), Some("edited while it was off"));
    assert!(!b.path("d/f2").exists());
    assert_eq!(a.text("d/f3").as_deref(), Some("edited there"));
    assert!(a.copies().is_empty() && b.copies().is_empty());
}

#[tokio::test]
async fn a_large_file_costs_what_changes_in_it_and_a_rename_costs_nothing() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    let mut large = noise(1, 24 << 20);
    a.write("large", &large);
    hub.until("it is there", |state| state.tree.get(&"large".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    assert!(matches!(hub.get("large"), Some(Entry::File { content: Content { depth: 1.., .. }, .. })), "its list of chunks is long");
    let (stored, fetched) = (hub.chunks.stored_bytes.load(Ordering::Relaxed), hub.chunks.fetched_bytes.load(Ordering::Relaxed));
    large.insert(0, 7);
    large.splice(12_000_000..12_000_000, *b"in the middle");
    a.write("large", &large);
    let hash = *blake3::hash(&large).as_bytes();
    let edited = move |state: &HubState| {
        matches!(state.tree.get(&"large".parse().unwrap()), Some(Entry::File { content, .. }) if content.hash == hash).then_some(())
    };
    hub.until("the edit", edited).await;
    hub.converge(&[&a, &b]).await;
    let up = hub.chunks.stored_bytes.load(Ordering::Relaxed) - stored;
    let down = hub.chunks.fetched_bytes.load(Ordering::Relaxed) - fetched;
    assert!(up < 1 << 20, "{up} bytes up");
    assert!(down < 1 << 20, "{down} bytes down");
    let bytes = hub.moved_bytes();
    std::fs::rename(a.path("large"), a.path("moved")).unwrap();
    hub.until("the rename", |state| state.tree.get(&"moved".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::copy(b.path("moved"), b.path("copy")).unwrap();
    hub.until("the copy", |state| state.tree.get(&"copy".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    assert!(hub.moved_bytes() - bytes < 64 << 10, "{} bytes for a rename and a copy", hub.moved_bytes() - bytes);
}

#[tokio::test]
async fn the_ways_in_which_editors_save_all_arrive() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("f", "0");
    hub.until("the file", |state| state.tree.get(&"f".parse().unwrap()).map(|_| ())).await;
    let arrives = async |text: &'static str| {
        let hash = *blake3::hash(text.as_bytes()).as_bytes();
        let there = move |state: &HubState| {
            let f = state.tree.get(&"f".parse().unwrap());
            (state.tree.len() == 1 && matches!(f, Some(Entry::File { content, .. }) if content.hash == hash)).then_some(())
        };
        hub.until(text, there).await;
        hub.converge(&[&a, &b]).await;
    };
    // Truncate and write.
    a.write("f", "truncated");
    arrives("truncated").await;
    // A new file in its place.
    a.write("f.tmp", "renamed");
    std::fs::rename(a.path("f.tmp"), a.path("f")).unwrap();
    arrives("renamed").await;
    // The old one aside, a new one, the old one gone.
    std::fs::rename(a.path("f"), a.path("f~")).unwrap();
    a.write("f", "with a backup");
    std::fs::remove_file(a.path("f~")).unwrap();
    arrives("with a backup").await;
    // Gone for a moment.
    std::fs::remove_file(a.path("f")).unwrap();
    a.write("f", "gone and back");
    arrives("gone and back").await;
    // In place, of the same length, several times within one tick of the clock.
    for text in ["gone and 1234", "gone and 5678", "gone and 9012"] {
        a.write("f", text);
    }
    arrives("gone and 9012").await;
}

#[tokio::test]
async fn many_files_at_once_are_all_found_although_the_events_run_over() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    for i in 0..8_000 {
        a.write(&format!("d{}/e{}/f{i}", i % 40, i % 7), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 8_000 + 40 + 280).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::rename(a.path("d1"), a.path("renamed")).unwrap();
    hub.until("the rename", |state| state.tree.get(&"renamed".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
}

#[tokio::test]
async fn a_folder_that_vanishes_is_asked_about_and_deletes_nothing() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..5 {
        a.write(&format!("f{i}"), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 5).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::remove_dir_all(b.path("")).unwrap();
    let question = hub.until("the question", |state| {
        let status = state.status.get(&b.id)?;
        (status.state == "held" && status.question_text.contains("folder")).then_some(status.question)
    });
    let question = question.await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(hub.state.lock().unwrap().tree.len(), 5);
    assert_eq!(a.listing().len(), 5);
    hub.to(&b, to_workspace::Frame::Decision(Decision { question, yes: true }));
    hub.until("it is back", |state| (state.status.get(&b.id)?.state == "in_sync").then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.listing().len(), 5);
}

#[tokio::test]
async fn a_mass_deletion_is_asked_about_and_taken_back() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..30 {
        a.write(&format!("f{i}"), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 30).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    for i in 0..25 {
        std::fs::remove_file(b.path(&format!("f{i}"))).unwrap();
    }
    let question = hub.until("the question", |state| state.status.get(&b.id).map(|status| status.question).filter(|id| *id != 0)).await;
    assert_eq!(a.listing().len(), 30);
    hub.to(&b, to_workspace::Frame::Decision(Decision { question, yes: false }));
    hub.until("no question any more", |state| (state.status.get(&b.id)?.question == 0).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.listing().len(), 30);
}

#[tokio::test]
async fn a_barrier_is_answered_when_what_was_written_before_it_is_committed() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    for round in 1..=10u64 {
        let name = format!("d{round}/f");
        a.write(&name, format!("{round}"));
        hub.to(&a, to_workspace::Frame::Barrier(round));
        hub.until("the barrier", |state| state.barriers.contains(&round).then_some(())).await;
        assert!(hub.get(&name).is_some(), "round {round}");
    }
    hub.converge(&[&a, &b]).await;
}

#[tokio::test]
async fn a_file_that_never_rests_holds_nobody_up() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    // Large enough that reading it takes longer than the next write.
    std::fs::File::create(a.path("log")).unwrap().set_len(256 << 20).unwrap();
    let path = a.path("log");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        use std::io::Write as _;
        let mut log = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            log.write_all(b"one more line\n").unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    a.write("calm", "c");
    hub.until("the calm one", |state| state.tree.get(&"calm".parse().unwrap()).map(|_| ())).await;
    hub.until("it is called hot", |state| {
        let hot = state.status.get(&a.id)?.problems.iter().any(|problem| (problem.path.as_str(), problem.code.as_str()) == ("log", "hot"));
        hot.then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    hub.until("it has come to rest", |state| state.tree.get(&"log".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    use std::os::unix::fs::MetadataExt as _;
    assert!(std::fs::metadata(b.path("log")).unwrap().blocks() * 512 < 32 << 20, "holes stay holes");
}

#[tokio::test]
async fn what_cannot_be_synced_is_said() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    std::fs::write(a.path("").join(OsStr::from_bytes(b"bad\xff")), "x").unwrap();
    assert!(std::process::Command::new("mkfifo").arg(a.path("pipe")).status().unwrap().success());
    std::fs::hard_link(a.path("").join(OsStr::from_bytes(b"bad\xff")), a.path("linked")).unwrap();
    let codes = |state: &HubState| {
        state.status.get(&a.id).map(|status| status.problems.iter().map(|problem| problem.code.clone()).collect::<Vec<_>>())
    };
    hub.until("both problems", |state| {
        let mut codes = codes(state)?;
        codes.sort();
        (codes == ["not_utf8", "special_file"]).then_some(())
    })
    .await;
    hub.until("the hard link", |state| state.tree.get(&"linked".parse().unwrap()).map(|_| ())).await;
    assert_eq!(hub.state.lock().unwrap().tree.len(), 1);
    std::fs::remove_file(a.path("").join(OsStr::from_bytes(b"bad\xff"))).unwrap();
    std::fs::remove_file(a.path("pipe")).unwrap();
    hub.until("no problem any more", |state| codes(state).filter(Vec::is_empty)).await;
}

#[tokio::test]
async fn a_check_finds_and_repairs_what_was_missed() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    a.write("f", "one");
    hub.until("the file", |state| state.tree.get(&"f".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a]).await;
    hub.to(&a, to_workspace::Frame::Rescan(Rescan { request: 7, rehash: true, repair: true }));
    let report = hub.until("the report", |state| state.drift.first().cloned()).await;
    assert_eq!((report.request, report.repaired), (7, true));
    assert!(report.missing.is_empty() && report.extra.is_empty() && report.changed.is_empty());
}

#[tokio::test]
async fn after_detach_nothing_follows_and_the_files_stay() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("f", "one");
    hub.until("the file", |state| state.tree.get(&"f".parse().unwrap()).map(|_| ())).await;
    hub.converge(&[&a, &b]).await;
    hub.to(&b, to_workspace::Frame::Detach(true));
    // The stream ends first; this hub would open it again, as for an attached session.
    hub.until("the stream has ended", |state| (state.ended > 0).then_some(())).await;
    let mut b = b;
    b.disconnect(&hub);
    let state = b.dir.join("state/mirror");
    a.write("f", "two");
    hub.converge(&[&a]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(b.text("f").as_deref(), Some("one"));
    assert_eq!(std::fs::read_dir(state).unwrap().count(), 0, "what was remembered is gone");
}

#[tokio::test]
async fn a_rename_by_the_api_of_many_files_is_one_rename_here() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..200 {
        a.write(&format!("d/e/f{i}"), format!("{i}"));
    }
    hub.until("all at the hub", |state| (state.tree.len() == 202).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    use std::os::unix::fs::MetadataExt as _;
    let inode = std::fs::metadata(b.path("d/e/f7")).unwrap().ino();
    let bytes = hub.moved_bytes();
    let path = |text: &str| text.parse::<RelPath>().unwrap();
    let parent = hub.state.lock().unwrap().tree.hash(&path("d"));
    hub.write(&[Op::Move { from: path("d"), to: path("moved"), parent: parent.unwrap() }]);
    hub.converge(&[&a, &b]).await;
    assert_eq!(std::fs::metadata(b.path("moved/e/f7")).unwrap().ino(), inode);
    assert_eq!(hub.moved_bytes(), bytes);
}

#[tokio::test]
async fn a_state_that_is_older_than_the_disk_as_after_a_crash_heals_by_itself() {
    let hub = Hub::new();
    let (mut a, b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..10 {
        a.write(&format!("f{i}"), format!("first {i}"));
    }
    hub.until("the first", |state| (state.tree.len() == 10).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    a.stop(&hub).await;
    let file = a.dir.join(format!("state/mirror/{}.redb", hub.session));
    let old = std::fs::read(&file).unwrap();
    a.connect(&hub);
    hub.converge(&[&a, &b]).await;
    // Applied at a, made at a, removed at either side: and of all that a's state knows nothing.
    b.write("f1", "second, from b");
    a.write("f2", "second, from a");
    std::fs::remove_file(b.path("f3")).unwrap();
    std::fs::remove_file(a.path("f4")).unwrap();
    b.write("new", "from b");
    hub.until("the second", |state| {
        let has = |path: &str| state.tree.get(&path.parse().unwrap()).is_some();
        (!has("f3") && !has("f4") && has("new")).then_some(())
    })
    .await;
    hub.converge(&[&a, &b]).await;
    let tree = hub.state.lock().unwrap().tree.root();
    a.stop(&hub).await;
    std::fs::write(&file, old).unwrap();
    a.connect(&hub);
    hub.converge(&[&a, &b]).await;
    assert_eq!(hub.state.lock().unwrap().tree.root(), tree, "nothing is taken back");
    assert!(a.copies().is_empty() && b.copies().is_empty());
}

/// Set in the copy of a test that runs inside a small file system of its own.
const INSIDE: &str = "CORTEX_TEST_SMALL_WORKSPACE";

#[test]
fn a_full_or_read_only_disk_is_said_and_tried_again() {
    if let Some(disk) = std::env::var_os(INSIDE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(on_small_disk(Path::new(&disk)));
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("work")).unwrap();
    let inside = r#"mount -t tmpfs -o size=8m none "$0/work" && exec "$@""#;
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", inside])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "mirror::a_full_or_read_only_disk_is_said_and_tried_again", "--nocapture"])
        .env(INSIDE, dir.path())
        .output()
        .expect("unshare is needed: apt-get install util-linux");
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

async fn on_small_disk(dir: &Path) {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    let mut b = Node::at(&hub, dir.to_owned());
    b.connect(&hub);
    a.write("small", "old");
    hub.until("the small one", |state| (state.tree.len() == 1).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let has = |code: &'static str| {
        let id = b.id;
        move |state: &HubState| state.status.get(&id)?.problems.iter().any(|problem| problem.code == code).then_some(())
    };
    std::fs::write(dir.join("work/ballast"), vec![1; 6 << 20]).unwrap();
    a.write("large", noise(9, 5 << 20));
    hub.until("no space", has("no_space")).await;
    a.write("small", "new");
    hub.until("another file goes on", |_| (b.text("small").as_deref() == Some("new")).then_some(())).await;
    assert!(!b.path("large").exists());
    std::fs::remove_file(dir.join("work/ballast")).unwrap();
    hub.converge(&[&a, &b]).await;
    let remount = |how: &str| {
        assert!(
            std::process::Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(dir.join("work")).status().unwrap().success()
        );
    };
    remount("ro");
    a.write("small", "newer");
    hub.until("read only", has("read_only")).await;
    assert_eq!(b.text("small").as_deref(), Some("new"));
    remount("rw");
    hub.converge(&[&a, &b]).await;
    assert_eq!(b.text("small").as_deref(), Some("newer"));
}

#[tokio::test]
async fn a_read_only_file_is_replaced_and_stays_read_only() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("f", "one");
    hub.until("the file", |state| (state.tree.len() == 1).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::set_permissions(b.path("f"), std::fs::Permissions::from_mode(0o444)).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.write("f", "two");
    hub.until("the edit", |_| (b.text("f").as_deref() == Some("two")).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(std::fs::metadata(b.path("f")).unwrap().permissions().mode() & 0o777, 0o444);
}

#[tokio::test]
async fn ignored_files_stay_where_they_are() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    a.write(".gitignore", "*.log\nbuild/\n");
    a.write("d/x.log", "log");
    a.write("d/f", "f");
    a.write("build/out", "o");
    a.write(".git/HEAD", "ref");
    hub.until("what counts", |state| (state.tree.len() == 3).then_some(())).await;
    hub.converge_tree(&[&b]).await;
    assert_eq!(b.listing().keys().collect::<Vec<_>>(), [".gitignore", "d", "d/f"]);
    // The folder goes elsewhere, and stays here for what is ignored in it.
    std::fs::remove_dir_all(b.path("d")).unwrap();
    hub.until("the removal", |state| (state.tree.len() == 1).then_some(())).await;
    hub.until("it is made here", |_| (!a.path("d/f").exists()).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(a.text("d/x.log").as_deref(), Some("log"));
    assert_eq!(hub.state.lock().unwrap().tree.len(), 1, "the folder that stays does not come back");
    a.write("d/new", "n");
    hub.until("something new in it", |state| state.tree.get(&"d/new".parse().unwrap()).map(|_| ())).await;
    hub.converge_tree(&[&b]).await;
}

#[tokio::test]
async fn what_becomes_ignored_is_taken_out_everywhere_and_deleted_nowhere() {
    let hub = Hub::new();
    let (a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    for i in 0..40 {
        a.write(&format!("target/deep/{i}"), format!("{i}"));
    }
    a.write("x.log", "log");
    a.write("f", "f");
    hub.until("all of it", |state| (state.tree.len() == 44).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    let before = b.listing();
    a.write(".gitignore", "target/\n*.log\n");
    hub.until("only what counts", |state| (state.tree.len() == 2).then_some(())).await;
    hub.until("the rules are there", |_| b.text(".gitignore").map(drop)).await;
    hub.until("both rest, and nobody is asked", |state| {
        [&a, &b].iter().all(|node| state.status.get(&node.id).is_some_and(|status| status.state == "in_sync")).then_some(())
    })
    .await;
    let mut after = before.clone();
    after.insert(".gitignore".into(), a.listing()[".gitignore"].clone());
    assert_eq!((a.listing(), b.listing()), (after.clone(), after), "they stay on every disk");
    b.write("target/deep/new", "only here");
    b.write("target/deep/7", "seven");
    b.stop(&hub).await;
    b.connect(&hub);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(hub.state.lock().unwrap().tree.len(), 2, "nothing comes back by itself");
    b.write("target/deep/7", "7");
    b.write(".gitignore", "*.log\n");
    hub.until("all but the log", |state| (state.tree.len() == 45).then_some(())).await;
    hub.until("on both", |_| (a.text("target/deep/new").as_deref() == Some("only here")).then_some(())).await;
    assert_eq!(a.listing(), b.listing());
    assert_eq!(hub.state.lock().unwrap().conflicts, 0);
}

#[tokio::test]
async fn a_node_that_was_off_when_rules_came_deletes_nothing_of_what_they_cover() {
    let hub = Hub::new();
    let (a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    a.write("build/out", "o");
    a.write("f", "f");
    hub.until("all of it", |state| (state.tree.len() == 3).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    b.stop(&hub).await;
    a.write("build/.gitignore", "*\n");
    hub.until("the file is out", |state| state.tree.get(&"build/out".parse().unwrap()).is_none().then_some(())).await;
    std::fs::remove_file(a.path("f")).unwrap();
    hub.until("the other, too", |state| state.tree.get(&"f".parse().unwrap()).is_none().then_some(())).await;
    b.connect(&hub);
    hub.until("the removal", |_| (!b.path("f").exists()).then_some(())).await;
    hub.until("the rules", |_| b.text("build/.gitignore").map(drop)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(b.text("build/out").as_deref(), Some("o"));
}

fn task(number: u64) -> TaskId {
    TaskId::new(number.cast_signed(), [7; 10])
}

#[tokio::test]
async fn a_tasks_files_are_at_the_hub_when_it_has_ended_and_here_when_the_next_one_begins() {
    let hub = Hub::new();
    let (a, b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    for round in 1..=10u64 {
        let (name, task) = (format!("d{round}/f"), task(round));
        a.mirror.before_task(&hub.session, &task).await;
        a.write(&name, format!("{round}"));
        a.mirror.after_task(&hub.session, &task).await;
        assert!(hub.get(&name).is_some(), "round {round}");
        b.mirror.before_task(&hub.session, &task).await;
        // Frames to this node are under way in the same program, and not before us in any queue.
        if b.text(&name).is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            b.mirror.before_task(&hub.session, &task).await;
        }
        assert_eq!(b.text(&name), Some(format!("{round}")));
        b.mirror.after_task(&hub.session, &task).await;
    }
    let named: std::collections::BTreeSet<Bytes> = hub.state.lock().unwrap().tasks.drain(..).collect();
    assert_eq!(named, (1..=10).map(|round| Bytes::copy_from_slice(task(round).as_bytes())).collect());
    a.write("by hand", "x");
    hub.until("the edit", |state| state.tree.get(&"by hand".parse().unwrap()).map(drop)).await;
    assert_eq!(hub.state.lock().unwrap().tasks, [Bytes::new()], "no task wrote it");
}

#[tokio::test]
async fn a_stuck_sync_does_not_hold_a_task_up_for_long() {
    let hub = Hub::new();
    let mut a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    a.mirror.set_chunks(None);
    a.write("f", "x");
    let begun = Instant::now();
    a.mirror.before_task(&hub.session, &task(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "what is to go up does not matter to who begins");
    a.mirror.after_task(&hub.session, &task(1)).await;
    assert!((2..10).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    a.mirror.set_chunks(Some(hub.chunks.clone()));
    hub.until("it goes on", |state| (state.tree.len() == 1).then_some(())).await;
    assert_eq!(hub.state.lock().unwrap().tasks, [Bytes::copy_from_slice(task(1).as_bytes())], "and still is that task's");
    a.disconnect(&hub);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    a.write("g", "x");
    a.mirror.after_task(&hub.session, &task(2)).await;
    a.mirror.after_task(&SessionId::new(2, [2; 10]), &task(2)).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "without a hub there is nothing to wait for");
}

#[tokio::test]
async fn who_wrote_nothing_waits_for_next_to_nothing() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    let mut waits = Vec::new();
    for round in 0..100u64 {
        let begun = Instant::now();
        a.mirror.before_task(&hub.session, &task(round)).await;
        a.mirror.after_task(&hub.session, &task(round)).await;
        waits.push(begun.elapsed());
    }
    waits.sort();
    println!("idle: median {:?}, slowest tenth {:?}", waits[50], waits[90]);
    assert!(waits[50] < Duration::from_millis(10), "the settle time is not waited for: {:?}", waits[50]);
}

#[tokio::test]
async fn a_large_file_goes_its_way_beside_the_others() {
    let hub = Hub::new();
    let (a, mut b) = (Node::attached(&hub), Node::attached(&hub));
    hub.converge(&[&a, &b]).await;
    let file = std::fs::File::create(a.path("large")).unwrap();
    file.set_len((65 << 20) + 7).unwrap();
    a.write("small", "s");
    a.mirror.after_task(&hub.session, &task(1)).await;
    hub.until("both", |state| (state.tree.len() == 2).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    b.stop(&hub).await;
    std::fs::File::options().write(true).open(b.path("large")).unwrap().set_len(66 << 20).unwrap();
    b.connect(&hub);
    hub.until("the edit", |_| std::fs::metadata(a.path("large")).is_ok_and(|data| data.len() == 66 << 20).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    std::fs::remove_file(b.path("large")).unwrap();
    hub.until("its end", |_| (!a.path("large").exists()).then_some(())).await;
    hub.converge(&[&a, &b]).await;
    assert_eq!(hub.state.lock().unwrap().conflicts, 0);
}

#[tokio::test]
async fn edits_under_anothers_lock_are_held_and_said_to_be() {
    let hub = Hub::new();
    let a = Node::attached(&hub);
    hub.converge(&[&a]).await;
    let lock = Lock { prefix: "d".parse().unwrap(), owner: "ann".into(), node: None, fence: 1, expires_at_ms: clock::now_ms() + 60_000 };
    hub.state.lock().unwrap().locks = vec![lock.clone()];
    let say = |locks| to_workspace::Frame::State(WorkspaceState { locks, ..WorkspaceState::default() });
    hub.to(&a, say(vec![lock.to_schema()]));
    tokio::time::sleep(Duration::from_millis(100)).await;
    a.write("d/one", "1");
    a.write("d/two", "2");
    a.write("free", "3");
    hub.until("all of it held but one", |state| {
        let status = state.status.get(&a.id)?;
        (status.state == "held" && status.held >= 2 && status.up_files == status.held && status.question == 0).then_some(())
    })
    .await;
    assert!(hub.get("free").is_some() && hub.get("d/one").is_none());
    hub.state.lock().unwrap().locks.clear();
    hub.to(&a, say(Vec::new()));
    hub.converge(&[&a]).await;
    assert!(hub.get("d/two").is_some());
}
