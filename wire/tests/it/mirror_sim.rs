//! A hub and several nodes in one process: fake disks, virtual time, a network that delays and breaks, crashes, clock jumps; by seed.
//!
//! People write, delete and rename while everything goes wrong. Then it heals, and must end so: every disk holds the hub's tree, nothing
//! is sent any more, and whatever a job took from a disk is in the hub's history, in a conflict record or among a node's conflict copies.
//! What became ignored meanwhile is no part of all this, and still lies where it was.
//!
//! `CORTEX_SEEDS=n` runs n seeds from `CORTEX_FIRST` on, `CORTEX_SEED=n` that one with a trace.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use cortex_wire::{
    id::NodeId,
    key::SecretKey,
    mirror::{
        entry::{Content, Entry, Hash, Sid, Span},
        judge::{Author, Lock, judge},
        op::{self, Op},
        path::RelPath,
        replica::*,
        tree::Tree,
    },
};

use crate::random::Random;

const SEEDS: u64 = 1_000;
const NODES: usize = 3;

impl Random {
    fn path(&mut self) -> RelPath {
        let depth = 1 + self.below(3);
        let parts: Vec<&str> = (0..depth).map(|_| ["a", "b", "c", "d"][self.below(4)]).collect();
        parts.join("/").parse().unwrap()
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Item {
    File(u64, bool),
    Directory,
    Symlink(&'static str),
}

fn content_hash(content: u64) -> [u8; 32] {
    *blake3::hash(&content.to_le_bytes()).as_bytes()
}

impl Item {
    fn found(&self) -> Found {
        match self {
            Self::File(content, executable) => Found::File { size: 8, hash: content_hash(*content), executable: *executable },
            Self::Directory => Found::Directory,
            Self::Symlink(target) => Found::Symlink((*target).into()),
        }
    }

    fn hash(&self) -> Hash {
        self.found().hash()
    }

    fn content(&self) -> Option<u64> {
        if let Self::File(content, _) = self { Some(*content) } else { None }
    }
}

/// The sealing differs by node, as it may: it must not matter.
fn sealed(content: u64, executable: bool, node: usize) -> Entry {
    let span = Span { sid: Sid(content_hash(content)), offset: node as u32, length: 8 };
    Entry::File { content: Content { size: 8, hash: content_hash(content), depth: 0, spans: vec![span].into() }, executable }
}

#[derive(Default)]
struct Disk {
    items: BTreeMap<RelPath, Item>,
    /// Directories that hold something that is not part of the workspace.
    ignored: BTreeSet<RelPath>,
    /// `.cortex/conflicts`.
    copies: Vec<u64>,
}

impl Disk {
    fn below(&self, path: &RelPath) -> Vec<RelPath> {
        self.items.range(path.clone()..).map(|(at, _)| at).take_while(|at| at.starts_with(path)).cloned().collect()
    }

    fn is_directory(&self, path: &RelPath) -> bool {
        path.is_root() || self.items.get(path) == Some(&Item::Directory)
    }

    fn is_bare(&self, path: &RelPath) -> bool {
        self.below(path).len() <= 1 && !self.ignored.contains(path)
    }

    fn take(&mut self, path: &RelPath) {
        for at in self.below(path) {
            self.items.remove(&at);
            self.ignored.remove(&at);
        }
    }

    fn rename(&mut self, from: &RelPath, to: &RelPath) {
        let to_path = |at: &RelPath| at.below(from).map_or(to.clone(), |rest| to.join(rest).unwrap());
        let moved: Vec<_> =
            self.below(from).into_iter().map(|at| (to_path(&at), self.items[&at].clone(), self.ignored.contains(&at))).collect();
        self.take(from);
        for (at, item, ignored) in moved {
            if ignored {
                self.ignored.insert(at.clone());
            }
            self.items.insert(at, item);
        }
    }
}

enum ToNode {
    Commit(CommitIn),
    Verdict(VerdictIn),
    State(Vec<Lock>, bool),
}

#[derive(Default)]
struct Connection {
    to_node: VecDeque<ToNode>,
    to_hub: VecDeque<Proposal>,
}

struct Node {
    index: usize,
    id: NodeId,
    replica: Replica,
    disk: Disk,
    saved: Saved,
    older: Saved,
    dirty: BTreeSet<RelPath>,
    /// A look under way: it is thrown away for paths where a job ends meanwhile.
    looking: Option<Vec<(RelPath, Option<Found>)>>,
    /// Seen by that look, and ignored.
    hidden: Vec<RelPath>,
    jobs: VecDeque<Job>,
    /// Done on the disk, not yet told.
    ends: VecDeque<Input>,
    uploads: VecDeque<(RelPath, Hash)>,
    questions: VecDeque<u64>,
    connection: Option<Connection>,
    skew_ms: i64,
    sent: usize,
}

struct Verdicts {
    sequence: u64,
    ops: Vec<Op>,
    verdict: VerdictIn,
}

#[derive(Default)]
struct Hub {
    trees: Vec<Tree>,
    log: Vec<Vec<Op>>,
    verdicts: BTreeMap<usize, Verdicts>,
    conflicts: Vec<Entry>,
    chunks: HashSet<[u8; 32]>,
    contents: BTreeMap<[u8; 32], u64>,
    locks: Vec<Lock>,
    paused: bool,
    fence: u64,
}

impl Hub {
    fn tree(&self) -> &Tree {
        self.trees.last().unwrap()
    }

    fn revision(&self) -> u64 {
        self.trees.len() as u64 - 1
    }
}

struct World {
    seed: u64,
    random: Random,
    now_ms: i64,
    hub: Hub,
    nodes: Vec<Node>,
    contents: u64,
    /// What jobs took from disks.
    displaced: Vec<u64>,
    /// No part of the workspace any more.
    rules: Vec<RelPath>,
    /// What lay there, on which node, when that began.
    untracked: Vec<(usize, RelPath, u64)>,
    healing: bool,
    trace: bool,
}

macro_rules! trace {
    ($world:expr, $($text:tt)*) => { if $world.trace { eprintln!($($text)*); } };
}

fn node_id(index: usize) -> NodeId {
    SecretKey::from_seed([index as u8 + 1; 32]).public().into()
}

impl World {
    fn new(seed: u64, ids: &[NodeId], trace: bool) -> Self {
        let node = |index: usize| Node {
            index,
            id: ids[index],
            replica: Replica::load(ids[index], Saved::default()),
            disk: Disk::default(),
            saved: Saved::default(),
            older: Saved::default(),
            dirty: BTreeSet::new(),
            looking: None,
            hidden: Vec::new(),
            jobs: VecDeque::new(),
            ends: VecDeque::new(),
            uploads: VecDeque::new(),
            questions: VecDeque::new(),
            connection: None,
            skew_ms: 0,
            sent: 0,
        };
        Self {
            seed,
            random: Random(seed),
            now_ms: 1_000_000,
            hub: Hub { trees: vec![Tree::default()], ..Hub::default() },
            nodes: (0..NODES).map(node).collect(),
            contents: 0,
            displaced: Vec::new(),
            rules: Vec::new(),
            untracked: Vec::new(),
            healing: false,
            trace,
        }
    }

    fn tell(&mut self, n: usize, input: Input) {
        trace!(self, "  node {n} <- {input:?}");
        let now_ms = self.now_ms + self.nodes[n].skew_ms;
        let path = match &input {
            Input::Applied { path, .. } | Input::ApplyFound { path, .. } | Input::ApplyFailed { path, .. } => Some(path.clone()),
            _ => None,
        };
        let node = &mut self.nodes[n];
        if let Some(seen) = &mut node.looking {
            let moved = matches!(input, Input::Moved { .. });
            let stale: Vec<RelPath> = seen
                .iter()
                .map(|(at, _)| at)
                .filter(|at| moved || path.as_ref().is_some_and(|path| at.starts_with(path)))
                .cloned()
                .collect();
            seen.retain(|(at, _)| !stale.contains(at));
            node.dirty.extend(stale);
        }
        node.replica.handle(input, now_ms);
        self.act(n);
    }

    /// Makes changes durable and does, or queues, what is asked.
    fn act(&mut self, n: usize) {
        loop {
            let output = self.nodes[n].replica.poll_output();
            let node = &mut self.nodes[n];
            let changes = node.replica.take_changes();
            persist(&mut node.saved, changes);
            let Some(output) = output else { return };
            trace!(self, "  node {n} -> {output:?}");
            let node = &mut self.nodes[n];
            match output {
                Output::Look(paths) => node.dirty.extend(paths),
                Output::Upload { path, hash } => node.uploads.push_back((path, hash)),
                Output::Propose(proposal) => {
                    node.sent += 1;
                    if let Some(connection) = &mut node.connection {
                        connection.to_hub.push_back(proposal);
                    }
                }
                Output::Apply(jobs) => node.jobs.extend(jobs),
                Output::Question { id, .. } => node.questions.push_back(id),
                Output::Resync => panic!("seed {}: node {n} lost track of the hub's tree", self.seed),
            }
        }
    }

    // ------------------------------------------------------------- people

    fn write(&mut self) -> u64 {
        // Sometimes what was written before, so that equal contents meet.
        if self.contents > 0 && self.random.one_in(6) {
            return 1 + self.random.below(self.contents as usize) as u64;
        }
        self.contents += 1;
        self.hub.contents.insert(content_hash(self.contents), self.contents);
        self.contents
    }

    fn person(&mut self, n: usize) {
        let path = self.random.path();
        let parent = path.parent().unwrap();
        let what = self.random.below(20);
        let content = self.write();
        let other = self.random.path();
        if self.is_ignored(&path) || self.is_ignored(&other) {
            return;
        }
        let node = &mut self.nodes[n];
        trace!(self, "person {n}: {what} {path} {other} {content}");
        match what {
            0..=8 if node.disk.is_directory(&parent) && !node.disk.is_directory(&path) => {
                node.disk.items.insert(path.clone(), Item::File(content, what == 8));
                node.dirty.insert(path);
            }
            9..=10 if node.disk.is_directory(&parent) && !node.disk.items.contains_key(&path) => {
                node.disk.items.insert(path.clone(), Item::Directory);
                node.dirty.insert(path);
            }
            11..=13 => {
                node.disk.take(&path);
                node.dirty.insert(path);
            }
            14..=17 if node.disk.items.contains_key(&path) && node.disk.is_directory(&other.parent().unwrap()) => {
                let over = !node.disk.is_directory(&other) && !node.disk.is_directory(&path);
                if (over || !node.disk.items.contains_key(&other)) && !other.starts_with(&path) && path != other {
                    node.disk.rename(&path, &other);
                    node.dirty.extend([path, other]);
                }
            }
            18 if node.disk.is_directory(&parent) && !node.disk.is_directory(&path) => {
                node.disk.items.insert(path.clone(), Item::Symlink(["x", "../y"][content as usize % 2]));
                node.dirty.insert(path);
            }
            19 if node.disk.is_directory(&path) => {
                node.disk.ignored.insert(path);
            }
            _ => {}
        }
    }

    fn is_ignored(&self, path: &RelPath) -> bool {
        self.rules.iter().any(|rule| path.starts_with(rule))
    }

    /// Somebody adds an ignore rule, and everybody has it at once.
    fn ignore(&mut self) {
        let rule: RelPath = ["a", "b", "c", "d"][self.random.below(4)].parse().unwrap();
        trace!(self, "ignored: {rule}");
        for node in &mut self.nodes {
            for at in node.disk.below(&rule) {
                self.untracked.extend(node.disk.items[&at].content().map(|content| (node.index, at.clone(), content)));
            }
            node.dirty.insert(rule.clone());
        }
        self.rules.push(rule);
    }

    // --------------------------------------------------------- the shell

    fn look(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.looking.is_some() {
            let (seen, hidden) = (node.looking.take().unwrap_or_default(), std::mem::take(&mut node.hidden));
            self.tell(n, Input::Scanned(seen));
            if !hidden.is_empty() {
                self.tell(n, Input::Untracked(hidden));
            }
            return;
        }
        if node.dirty.is_empty() {
            return;
        }
        let mut seen = BTreeMap::new();
        let all = self.healing || !self.random.one_in(3);
        let rules = self.rules.clone();
        let is_ignored = |at: &RelPath| rules.iter().any(|rule| at.starts_with(rule));
        let known = node.replica.known(&RelPath::root());
        for path in std::mem::take(&mut node.dirty) {
            if !all && self.random.one_in(2) {
                node.dirty.insert(path);
                continue;
            }
            seen.insert(path.clone(), None);
            seen.extend(node.replica.known(&path).into_keys().map(|at| (at, None)));
            for at in node.disk.below(&path) {
                let found = node.disk.items.get(&at).map(Item::found);
                seen.insert(at, found);
            }
        }
        let (hidden, seen): (Vec<_>, Vec<_>) = seen.into_iter().partition(|(at, _)| is_ignored(at));
        node.hidden = hidden.into_iter().map(|(at, _)| at).filter(|at| known.contains_key(at)).collect();
        node.looking = Some(seen);
        if !self.random.one_in(3) {
            self.look(n);
        }
    }

    fn look_at_everything(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let known = node.replica.known(&RelPath::root());
        node.dirty.extend(known.into_keys());
        node.dirty.extend(node.disk.items.keys().cloned());
    }

    fn job(&mut self, n: usize) {
        let Some(job) = self.nodes[n].jobs.pop_front() else { return };
        let fails = !self.healing && self.random.one_in(20);
        let node = &mut self.nodes[n];
        let end = match job {
            Job::Move { from, to, expect } => {
                // What is ignored does not go along.
                let hidden = self.rules.iter().any(|rule| from.starts_with(rule) || rule.starts_with(&from));
                let fits = !hidden
                    && node.disk.items.get(&from).is_some_and(|item| item.hash() == expect)
                    && !node.disk.items.contains_key(&to)
                    && node.disk.is_directory(&to.parent().unwrap());
                if fits && !fails {
                    node.disk.rename(&from, &to);
                    node.dirty.extend([from.clone(), to]);
                }
                Input::Moved { from, done: fits && !fails }
            }
            Job::Set { path, .. } if fails => Input::ApplyFailed { path, trouble: trouble("no_space") },
            Job::Set { path, expect, to, keep_copy } => self.set(n, path, expect, to, keep_copy),
        };
        self.nodes[n].ends.push_back(end);
        if !self.random.one_in(3) {
            self.end(n);
        }
    }

    fn set(&mut self, n: usize, path: RelPath, expect: Option<Hash>, to: Option<Entry>, keep_copy: bool) -> Input {
        if to.is_none() && self.is_ignored(&path) {
            return Input::Applied { path, hash: None };
        }
        let node = &mut self.nodes[n];
        if self.healing && to.as_ref().is_some_and(|entry| !entry.is_directory()) {
            // A person tidies up what is in the way of a file and no part of the workspace.
            node.disk.ignored.retain(|at| !at.starts_with(&path));
            let known = node.replica.known(&path);
            let empty =
                |at: &RelPath| node.disk.below(at).iter().all(|at| node.disk.items[at] == Item::Directory && !known.contains_key(at));
            let left: Vec<RelPath> = node.disk.below(&path).into_iter().filter(|at| *at != path && empty(at)).collect();
            left.iter().for_each(|at| node.disk.take(at));
        }
        let current = node.disk.items.get(&path).cloned();
        if current.as_ref().map(Item::hash) != expect {
            return Input::ApplyFound { path, found: current.map(|item| item.found()) };
        }
        if current == Some(Item::Directory) && !to.as_ref().is_some_and(Entry::is_directory) && !node.disk.is_bare(&path) {
            return Input::ApplyFailed { path, trouble: trouble("not_empty") };
        }
        if to.is_some() && !node.disk.is_directory(&path.parent().unwrap()) {
            return Input::ApplyFailed { path, trouble: trouble("no_directory") };
        }
        let item = to.as_ref().map(|entry| match entry {
            Entry::File { content, executable } => {
                assert!(self.hub.chunks.contains(&content.hash), "the hub accepted what it does not hold");
                Item::File(self.hub.contents[&content.hash], *executable)
            }
            Entry::Directory => Item::Directory,
            Entry::Symlink(target) => Item::Symlink(if &**target == "x" { "x" } else { "../y" }),
        });
        if let Some(content) = current.as_ref().and_then(Item::content)
            && item.as_ref().and_then(Item::content) != Some(content)
        {
            self.displaced.push(content);
            if keep_copy {
                node.disk.copies.push(content);
            }
        }
        match item {
            Some(item) => node.disk.items.insert(path.clone(), item),
            None => node.disk.items.remove(&path),
        };
        node.dirty.insert(path.clone());
        Input::Applied { path, hash: to.map(|entry| entry.hash()) }
    }

    fn end(&mut self, n: usize) {
        if let Some(end) = self.nodes[n].ends.pop_front() {
            self.tell(n, end);
        }
    }

    fn upload(&mut self, n: usize) {
        let Some((path, hash)) = self.nodes[n].uploads.pop_front() else { return };
        let offline = self.nodes[n].connection.is_none();
        let item = self.nodes[n].disk.items.get(&path).cloned();
        let input = match item {
            _ if offline => Input::UploadFailed { path, trouble: trouble("offline") },
            Some(item @ Item::File(content, executable)) if item.hash() == hash => {
                self.hub.chunks.insert(content_hash(content));
                Input::Uploaded { path, hash, entry: sealed(content, executable, n) }
            }
            _ => {
                self.nodes[n].dirty.insert(path.clone());
                Input::UploadFailed { path, trouble: trouble("changed") }
            }
        };
        self.tell(n, input);
    }

    // ----------------------------------------------------- network, hub

    fn connect(&mut self, n: usize) {
        if self.nodes[n].connection.is_some() {
            return;
        }
        self.nodes[n].connection = Some(Connection::default());
        let (revision, root) = self.nodes[n].replica.hello();
        let (at, head) = (self.hub.revision(), self.hub.tree().root());
        self.tell(n, Input::Connected { revision: at, root: head });
        self.send(n, ToNode::State(self.hub.locks.clone(), self.hub.paused));
        if (revision, root) == (at, head) {
            return;
        }
        // Sometimes the hub no longer knows: then all of its tree comes.
        let known = self.hub.trees.get(revision as usize).filter(|tree| tree.root() == root && !self.random.one_in(8));
        let (base, before) = known.map_or((0, Tree::default()), |tree| (revision, tree.clone()));
        if base > 0 && self.random.one_in(2) {
            for revision in base..at {
                let ops = self.hub.log[revision as usize].clone();
                self.send_commit(n, revision, revision + 1, &ops, revision + 1 == at);
            }
        } else {
            let ops = op::compact(&before, self.hub.tree());
            self.send_commit(n, base, at, &ops, true);
        }
    }

    fn send(&mut self, n: usize, frame: ToNode) {
        if let Some(connection) = &mut self.nodes[n].connection {
            connection.to_node.push_back(frame);
        }
    }

    fn send_commit(&mut self, n: usize, base: u64, revision: u64, ops: &[Op], last: bool) {
        let ops = op::unpack(&op::pack(ops), 100_000).unwrap();
        let root = self.hub.trees[revision as usize].root();
        let size = 1 + self.random.below(5);
        let mut parts: Vec<&[Op]> = ops.chunks(size).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let whole = parts.len();
        for (index, part) in parts.into_iter().enumerate() {
            let end = index + 1 == whole;
            self.send(n, ToNode::Commit(CommitIn { base, revision, root: end.then_some(root), ops: part.to_vec(), last: last && end }));
        }
    }

    fn disconnect(&mut self, n: usize) {
        if self.nodes[n].connection.take().is_some() {
            self.tell(n, Input::Disconnected);
        }
    }

    fn receive(&mut self, n: usize) {
        let Some(frame) = self.nodes[n].connection.as_mut().and_then(|connection| connection.to_node.pop_front()) else { return };
        let input = match frame {
            ToNode::Commit(commit) => Input::Commit(commit),
            ToNode::Verdict(verdict) => Input::Verdict(verdict),
            ToNode::State(locks, paused) => Input::State { locks, paused },
        };
        self.tell(n, input);
    }

    fn serve(&mut self, n: usize) {
        let Some(proposal) = self.nodes[n].connection.as_mut().and_then(|connection| connection.to_hub.pop_front()) else { return };
        if let Some(last) = self.hub.verdicts.get(&n)
            && last.sequence == proposal.sequence
            && last.ops == proposal.ops
        {
            let verdict = last.verdict.clone();
            return self.send(n, ToNode::Verdict(verdict));
        }
        for op in &proposal.ops {
            if let Op::Put { entry: Entry::File { content, .. }, .. } = op {
                assert!(self.hub.chunks.contains(&content.hash), "seed {}: proposed before it was stored", self.seed);
            }
        }
        let author = Author::Node(self.nodes[n].id);
        let ruled = judge(self.hub.tree(), &proposal.ops, &self.hub.locks, &author, self.now_ms);
        self.hub.conflicts.extend(ruled.conflicts.into_iter().map(|conflict| conflict.proposed));
        let base = self.hub.revision();
        let mut replayed = self.hub.tree().clone();
        for op in &ruled.accepted {
            replayed.apply(op).unwrap();
        }
        assert_eq!(replayed, ruled.tree, "what is logged makes the tree");
        if !ruled.accepted.is_empty() {
            self.hub.trees.push(ruled.tree);
            self.hub.log.push(ruled.accepted.clone());
        }
        let (revision, root) = (self.hub.revision(), self.hub.tree().root());
        trace!(self, "hub: {n} {:?} -> {revision}, {:?}", proposal.ops, ruled.objections);
        let verdict = VerdictIn { sequence: proposal.sequence, base, revision, root, objections: ruled.objections };
        self.hub.verdicts.insert(n, Verdicts { sequence: proposal.sequence, ops: proposal.ops, verdict: verdict.clone() });
        self.send(n, ToNode::Verdict(verdict));
        if revision > base {
            for other in (0..NODES).filter(|other| *other != n) {
                self.send_commit(other, base, revision, &ruled.accepted, true);
            }
        }
    }

    /// Somebody writes, deletes or moves through the hub's API.
    fn hub_person(&mut self) {
        let (path, other, content) = (self.random.path(), self.random.path(), self.write());
        if self.is_ignored(&path) || self.is_ignored(&other) {
            return;
        }
        let parent = self.hub.tree().hash(&path);
        self.hub.chunks.insert(content_hash(content));
        let op = match (self.random.below(4), parent) {
            (0, Some(parent)) => Op::Remove { path, parent },
            (1, Some(parent)) => Op::Move { from: path, to: other, parent },
            _ => Op::Put { path, parent, entry: sealed(content, false, NODES) },
        };
        let base = self.hub.revision();
        let ruled = judge(self.hub.tree(), &[op], &self.hub.locks, &Author::Hub("somebody".into()), self.now_ms);
        trace!(self, "hub person: {:?} {:?}", ruled.accepted, ruled.objections);
        self.hub_commits(base, ruled.accepted, ruled.tree);
    }

    fn hub_commits(&mut self, base: u64, accepted: Vec<Op>, tree: Tree) {
        if accepted.is_empty() {
            return;
        }
        self.hub.trees.push(tree);
        self.hub.log.push(accepted.clone());
        for n in 0..NODES {
            self.send_commit(n, base, base + 1, &accepted, true);
        }
    }

    /// What came to the hub just before it was ignored, and finds ignored things in its way on every node, goes by hand: each of them says so.
    fn hub_person_tidies(&mut self) {
        for rule in self.rules.clone() {
            let Some(parent) = self.hub.tree().hash(&rule) else { continue };
            let ruled = judge(self.hub.tree(), &[Op::Remove { path: rule, parent }], &[], &Author::Hub("somebody".into()), self.now_ms);
            self.hub_commits(self.hub.revision(), ruled.accepted, ruled.tree);
        }
    }

    fn announce_state(&mut self) {
        for n in 0..NODES {
            self.send(n, ToNode::State(self.hub.locks.clone(), self.hub.paused));
        }
    }

    fn lock(&mut self) {
        self.hub.fence += 1;
        let prefix = if self.random.one_in(5) { RelPath::root() } else { self.random.path() };
        let owner = self.random.below(NODES + 1);
        let node = self.nodes.get(owner).map(|node| node.id);
        let expires_at_ms = self.now_ms + self.random.below(5_000) as i64;
        self.hub.locks = vec![Lock { prefix, owner: "somebody".into(), node, fence: self.hub.fence, expires_at_ms }];
        self.announce_state();
    }

    // ------------------------------------------------------------- chance

    fn crash(&mut self, n: usize) {
        self.nodes[n].connection = None;
        let stale = self.random.one_in(4);
        let node = &mut self.nodes[n];
        trace!(self, "node {n} crashes, stale {stale}");
        if stale {
            node.saved = node.older.clone();
        }
        node.replica = Replica::load(node.id, node.saved.clone());
        node.looking = None;
        node.jobs.clear();
        node.ends.clear();
        node.uploads.clear();
        node.hidden.clear();
        // An answer to what was asked before may come afterwards.
        if stale || self.random.one_in(2) {
            self.nodes[n].questions.clear();
        }
        self.nodes[n].dirty.clear();
        self.look_at_everything(n);
        self.act(n);
    }

    fn tick(&mut self, n: usize) {
        let node = &self.nodes[n];
        if node.replica.poll_timeout().is_some_and(|at| at <= self.now_ms + node.skew_ms) {
            self.tell(n, Input::Tick);
        }
    }

    fn answer(&mut self, n: usize) {
        if let Some(question) = self.nodes[n].questions.pop_front() {
            let yes = self.random.one_in(2);
            self.tell(n, Input::Decision { question, yes });
        }
    }

    fn step(&mut self) {
        let n = self.random.below(NODES);
        self.now_ms += self.random.below(40) as i64;
        match self.random.below(100) {
            0..=17 => self.person(n),
            18..=19 => self.hub_person(),
            20..=37 => self.look(n),
            38..=54 => self.job(n),
            55..=60 => self.end(n),
            61..=68 => self.upload(n),
            69..=80 => self.receive(n),
            81..=88 => self.serve(n),
            89..=92 => self.connect(n),
            93 if self.random.one_in(2) => self.disconnect(n),
            94 => self.tick(n),
            95 => self.answer(n),
            96 if self.random.one_in(3) => self.crash(n),
            97 if self.random.one_in(3) => self.lock(),
            98 if self.random.one_in(4) => {
                // The hub dies: what it has acknowledged is durable, all streams are gone.
                (0..NODES).for_each(|n| self.disconnect(n));
            }
            99 => match self.random.below(6) {
                0 => self.nodes[n].skew_ms = self.random.below(200_000) as i64 - 100_000,
                1 => {
                    self.hub.paused = !self.hub.paused;
                    self.announce_state();
                }
                2 => self.nodes[n].older = self.nodes[n].saved.clone(),
                3 if self.rules.is_empty() => self.ignore(),
                _ => {}
            },
            _ => {}
        }
    }

    fn heal(&mut self) {
        self.healing = true;
        self.hub.paused = false;
        self.hub.locks.clear();
        self.announce_state();
        for round in 0..2_000 {
            if round == 1_000 {
                self.hub_person_tidies();
            }
            for n in 0..NODES {
                self.connect(n);
                for _ in 0..4 {
                    self.receive(n);
                    self.serve(n);
                    self.look(n);
                    self.upload(n);
                    self.job(n);
                    self.end(n);
                }
                self.tick(n);
                self.answer(n);
            }
            let busy = |node: &Node| {
                let link = node.connection.as_ref().is_some_and(|link| !link.to_hub.is_empty() || !link.to_node.is_empty());
                link || !node.dirty.is_empty()
                    || node.looking.is_some()
                    || !node.jobs.is_empty()
                    || !node.ends.is_empty()
                    || !node.uploads.is_empty()
                    || !node.questions.is_empty()
            };
            if !self.nodes.iter().any(busy) {
                let is_hidden = self.hub.tree().iter().any(|(path, _)| self.is_ignored(&path));
                if !is_hidden && self.nodes.iter().all(|node| node.replica.is_settled()) {
                    return;
                }
                self.now_ms += 500;
                if is_hidden {
                    // As nodes that have nothing to do are asked to.
                    (0..NODES).for_each(|n| self.look_at_everything(n));
                }
            }
        }
        let stuck: Vec<_> = self.nodes.iter().map(|node| (node.replica.status(), node.connection.is_some())).collect();
        panic!("seed {}: it does not come to rest: {stuck:#?}", self.seed);
    }

    fn check(&mut self) {
        let hub: BTreeMap<RelPath, Hash> = self.hub.tree().iter().map(|(path, entry)| (path, entry.hash())).collect();
        for node in &self.nodes {
            let left = |path: &RelPath| !hub.contains_key(path) && node.disk.below(path).iter().any(|at| node.disk.ignored.contains(at));
            let disk: BTreeMap<RelPath, Hash> = node
                .disk
                .items
                .iter()
                .filter(|(path, _)| !left(path) && !self.is_ignored(path))
                .map(|(path, item)| (path.clone(), item.hash()))
                .collect();
            assert_eq!(disk, hub, "seed {}: node {} differs from the hub", self.seed, node.index);
            assert_eq!(node.saved.hub, *self.hub.tree(), "seed {}: node {} made another tree durable", self.seed, node.index);
            assert_eq!(node.saved.revision, self.hub.revision());
            assert!(node.saved.rows.iter().all(|(_, row)| row.left), "seed {}: rows remain: {:?}", self.seed, node.saved.rows);
        }
        let mut kept: HashSet<[u8; 32]> = HashSet::new();
        for entry in self.hub.trees.iter().flat_map(Tree::iter).map(|(_, entry)| entry).chain(&self.hub.conflicts) {
            if let Entry::File { content, .. } = entry {
                kept.insert(content.hash);
            }
        }
        kept.extend(self.nodes.iter().flat_map(|node| node.disk.copies.iter().map(|content| content_hash(*content))));
        for (n, path, content) in &self.untracked {
            let disk = &self.nodes[*n].disk;
            let there = disk.items.get(path).and_then(Item::content) == Some(*content);
            let displaced = self.displaced.contains(content) || disk.copies.contains(content);
            assert!(there || displaced, "seed {}: {path} of node {n} was ignored, and is gone", self.seed);
        }
        for content in &self.displaced {
            assert!(kept.contains(&content_hash(*content)), "seed {}: {content} was lost", self.seed);
        }
    }

    /// Whoever looks at everything, or comes back, finds nothing to do.
    fn check_silence(&mut self) {
        let (revision, sent) = (self.hub.revision(), self.nodes.iter().map(|node| node.sent).sum::<usize>());
        for n in 0..NODES {
            self.disconnect(n);
            self.look_at_everything(n);
        }
        self.heal();
        assert_eq!(self.hub.revision(), revision, "seed {}: something was made of nothing", self.seed);
        assert_eq!(self.nodes.iter().map(|node| node.sent).sum::<usize>(), sent, "seed {}: something was sent for nothing", self.seed);
    }
}

fn trouble(code: &str) -> Trouble {
    Trouble { code: code.into(), message: String::new() }
}

fn persist(saved: &mut Saved, changes: Changes) {
    // Removals first: a file may take the place of a directory.
    let (come, gone): (Vec<_>, Vec<_>) = changes.entries.into_iter().partition(|(_, entry)| entry.is_some());
    for (path, _) in gone.into_iter().rev() {
        saved.hub.remove(&path);
    }
    for (path, entry) in come {
        if let Some(entry) = entry {
            saved.hub.put(&path, entry).unwrap();
        }
    }
    if !changes.rows.is_empty() {
        let mut rows: BTreeMap<RelPath, Row> = saved.rows.drain(..).collect();
        for (path, row) in changes.rows {
            match row {
                Some(row) => rows.insert(path, row),
                None => rows.remove(&path),
            };
        }
        saved.rows = rows.into_iter().collect();
    }
    if let Some((questions, asked)) = changes.asked {
        (saved.questions, saved.asked) = (questions, asked);
    }
    saved.revision = changes.revision.unwrap_or(saved.revision);
    saved.sequence = changes.sequence.unwrap_or(saved.sequence);
}

fn run(seed: u64, ids: &[NodeId], trace: bool) -> (u64, usize) {
    let mut world = World::new(seed, ids, trace);
    let steps = 200 + world.random.below(400);
    for n in 0..NODES {
        if world.random.one_in(2) {
            world.connect(n);
        }
    }
    for _ in 0..steps {
        world.step();
    }
    world.heal();
    world.check();
    world.check_silence();
    world.check();
    (world.hub.revision(), world.hub.conflicts.len())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn after_healing_all_trees_are_equal_and_nothing_is_lost() {
    let ids: Vec<NodeId> = (0..NODES).map(node_id).collect();
    if let Some(seed) = number("CORTEX_SEED") {
        run(seed, &ids, true);
        return;
    }
    let (mut revisions, mut conflicts) = (0, 0);
    let first = number("CORTEX_FIRST").unwrap_or(0);
    for seed in first..first + number("CORTEX_SEEDS").unwrap_or(SEEDS) {
        let result = std::panic::catch_unwind(|| run(seed, &ids, false));
        let Ok((more, kept)) = result else { panic!("CORTEX_SEED={seed} shows it") };
        revisions += more;
        conflicts += kept;
    }
    // A simulation in which nothing happens proves nothing.
    assert!(revisions > 10 && conflicts > 1, "{revisions} revisions, {conflicts} conflicts");
}
