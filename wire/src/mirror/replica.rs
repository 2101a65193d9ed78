//! What a node does next: the engine of one workspace on one node.
//!
//! A path has three versions: what the hub announced (`hub`, a whole [`Tree`]), what was agreed on last (`base`), and what lies on the
//! disk (`local`). Where all three are equal, nothing is remembered but the tree; [`Path`]s exist only where they are not.
//!
//! | local | hub | then |
//! | --- | --- | --- |
//! | = hub | | agreed: forgotten |
//! | = base | ≠ base | the hub's version is applied |
//! | ≠ base | = base | proposed |
//! | ≠ base | ≠ base | proposed all the same: the hub keeps it as a conflict, then its own version is applied and ours kept aside. What was deleted here and changed there comes back |
//!
//! Echoes are told by content: what was applied equals the hub's version when it is scanned. One proposal is under way at a time; it is
//! sent again after a reconnect, so that its verdict cannot get lost. Nothing is applied over what was not expected, nothing is proposed
//! that was not read again while it was uploaded.
//!
//! The shell brings inputs in the order in which things happened ([`Input`]), makes [`Replica::take_changes`] durable, and then does what
//! [`Replica::poll_output`] asks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map},
    ops::Bound,
    sync::Arc,
};

use super::{
    entry::{Entry, Hash},
    judge::{Author, Lock},
    path::RelPath,
    tree::{Subtree, Tree},
};
use crate::id::NodeId;

mod disk;
mod down;
mod event;
mod hub;
mod up;

pub use event::{Asked, Changes, CommitIn, Found, Input, Job, Output, Proposal, Row, Saved, Status, Trouble, VerdictIn};

/// First wait before something that failed is tried again; it doubles up to 64 times this.
const RETRY_MS: i64 = 1_000;
/// The code of a [`Trouble`]: this node's file system takes the name for another that is there.
pub const CASE_COLLISION: &str = "case_collision";
/// Problems that a status names.
const PROBLEMS: usize = 100;

/// A path that is not agreed on.
#[derive(Debug, Default)]
struct Path {
    base: Option<Hash>,
    local: Option<Hash>,
    /// `local` as it can be proposed: its contents are at the hub.
    ready: Option<Arc<Entry>>,
    keep: bool,
    left: bool,
    /// Its row is durable.
    stored: bool,
    fails: u8,
    /// 0, or when it may be tried again.
    retry_at_ms: i64,
    trouble: Option<Box<Trouble>>,
}

/// A job under way.
#[derive(Debug)]
struct Applying {
    to: Option<Hash>,
    /// Something else was seen there meanwhile, before or after: look again.
    looked: bool,
    /// What it is to become was seen there: look again, unless the job is done.
    reached: bool,
}

/// A move of the hub that is to be made on the disk, or under way.
#[derive(Debug)]
struct Moving {
    to: RelPath,
    what: Subtree,
    issued: bool,
    looked: Vec<RelPath>,
}

/// The proposal under way.
#[derive(Debug)]
struct InFlight {
    proposal: Proposal,
    /// What it covers: base then, and what was proposed.
    paths: BTreeMap<RelPath, (Option<Hash>, Option<Hash>)>,
}

/// The stream to the hub.
#[derive(Debug, Default)]
struct Link {
    connected: bool,
    caught_up: bool,
    /// Base and revision of a commit of which parts have come.
    partial: Option<(u64, u64)>,
    /// The proposal under way is to be sent again.
    repeat: bool,
}

/// What waits for something to be done with it. A path is in at most one of these.
#[derive(Debug, Default)]
struct Queues {
    creates: BTreeSet<RelPath>,
    removes: BTreeSet<RelPath>,
    /// To be created once a directory is there.
    blocked: BTreeSet<RelPath>,
    uploads: BTreeSet<RelPath>,
    ready: BTreeSet<RelPath>,
}

/// A question to a person, and the deletions that wait for the answer.
#[derive(Debug)]
struct Question {
    asked: Asked,
    paths: BTreeSet<RelPath>,
}

/// The engine of one workspace on one node.
pub struct Replica {
    me: Author,
    now_ms: i64,
    hub: Tree,
    revision: u64,
    sequence: u64,
    /// What `take_changes` gave last.
    durable: (Tree, u64, u64, (u64, Option<Asked>)),
    /// Paths whose row may have changed since.
    rows: BTreeSet<RelPath>,
    paths: BTreeMap<RelPath, Path>,
    todo: BTreeSet<RelPath>,
    queues: Queues,
    retries: BTreeSet<(i64, RelPath)>,
    /// What a name that is one there keeps out, by how it is folded.
    collisions: BTreeMap<String, BTreeSet<RelPath>>,
    applying: BTreeMap<RelPath, Applying>,
    moving: BTreeMap<RelPath, Moving>,
    moving_to: BTreeMap<RelPath, RelPath>,
    uploading: BTreeMap<RelPath, Hash>,
    in_flight: Option<InFlight>,
    link: Link,
    /// The hub's tree was given up and comes anew: nothing is decided until it is whole.
    resetting: bool,
    locks: Vec<Lock>,
    paused: bool,
    /// There may be something to propose.
    plan: bool,
    guard: up::Guard,
    look: BTreeSet<RelPath>,
    out: VecDeque<Output>,
}

impl Replica {
    /// A replica as it was made durable; `Saved::default()` for a new one. Until a path is scanned, it is taken to be as agreed on last.
    pub fn load(me: NodeId, saved: Saved) -> Self {
        let path = |row: Row| Path { base: row.base, local: row.base, keep: row.keep, left: row.left, stored: true, ..Path::default() };
        let paths: BTreeMap<_, _> = saved.rows.into_iter().map(|(at, row)| (at, path(row))).collect();
        let mut replica = Self {
            me: Author::Node(me),
            now_ms: 0,
            durable: (saved.hub.clone(), saved.revision, saved.sequence, (saved.questions, saved.asked.clone())),
            hub: saved.hub,
            revision: saved.revision,
            sequence: saved.sequence,
            rows: BTreeSet::new(),
            todo: paths.keys().cloned().collect(),
            paths,
            queues: Queues::default(),
            retries: BTreeSet::new(),
            collisions: BTreeMap::new(),
            applying: BTreeMap::new(),
            moving: BTreeMap::new(),
            moving_to: BTreeMap::new(),
            uploading: BTreeMap::new(),
            in_flight: None,
            link: Link::default(),
            resetting: false,
            locks: Vec::new(),
            paused: false,
            plan: false,
            guard: up::Guard::new(saved.questions, saved.asked),
            look: BTreeSet::new(),
            out: VecDeque::new(),
        };
        replica.settle();
        replica
    }

    /// Where it stands, for WorkspaceHello.
    pub fn hello(&self) -> (u64, Hash) {
        (self.revision, self.hub.root())
    }

    /// The hub's tree, as far as it has come.
    pub fn hub(&self) -> &Tree {
        &self.hub
    }

    /// What is taken to lie on the disk at and below a path, or to come there by a job under way: what a look there that finds less has to
    /// report as gone.
    pub fn known(&self, at: &RelPath) -> BTreeMap<RelPath, Hash> {
        let mut known: BTreeMap<RelPath, Hash> = self.hub.below(at).map(|(path, entry)| (path, entry.hash())).collect();
        for (path, state) in self.paths.range((Bound::Included(at), Bound::Unbounded)).take_while(|(path, _)| path.starts_with(at)) {
            match state.local {
                Some(hash) => known.insert(path.clone(), hash),
                None => known.remove(path),
            };
        }
        for (from, moving) in &self.moving {
            known.extend(moving.what.entries(from).filter(|(path, _)| path.starts_with(at)).map(|(path, entry)| (path, entry.hash())));
        }
        let coming = self.applying.range((Bound::Included(at), Bound::Unbounded)).take_while(|(path, _)| path.starts_with(at));
        known.extend(coming.filter_map(|(path, applying)| Some((path.clone(), applying.to?))));
        known
    }

    /// Takes in what happened. Times may jump; they only decide when something is tried again.
    pub fn handle(&mut self, input: Input, now_ms: i64) {
        self.now_ms = now_ms;
        match input {
            Input::Scanned(seen) => self.scanned(seen),
            Input::Untracked(paths) => self.untracked(paths),
            Input::Uploaded { path, hash, entry } => self.uploaded(&path, hash, entry),
            Input::UploadFailed { path, trouble } => self.upload_failed(&path, trouble),
            Input::Applied { path, hash } => self.applied(&path, hash),
            Input::ApplyFound { path, found } => self.apply_found(&path, found.as_ref()),
            Input::ApplyFailed { path, trouble } => self.apply_failed(&path, trouble),
            Input::Moved { from, done } => self.moved(&from, done),
            Input::Connected { revision, root } => self.connected(revision, root),
            Input::Disconnected => self.link = Link::default(),
            Input::Commit(commit) => self.commit(commit),
            Input::Verdict(verdict) => self.verdict(&verdict),
            Input::State { locks, paused } => {
                (self.locks, self.paused) = (locks, paused);
                self.plan = true;
            }
            Input::Decision { question, yes } => self.decided(question, yes),
            Input::Tick => self.tick(),
        }
        self.settle();
    }

    /// What is to be done next; `None` until something happens.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.out.pop_front() {
            return Some(output);
        }
        if !self.look.is_empty() {
            return Some(Output::Look(std::mem::take(&mut self.look).into_iter().collect()));
        }
        if !self.link.connected || self.paused {
            return None;
        }
        self.next_jobs().map(Output::Apply).or_else(|| self.next_upload()).or_else(|| self.next_proposal())
    }

    /// When [`Input::Tick`] is wanted.
    pub fn poll_timeout(&self) -> Option<i64> {
        let retry = self.retries.first().map(|(at, _)| *at);
        let unlock = self.locks.iter().map(|lock| lock.expires_at_ms).filter(|at| *at > self.now_ms && !self.queues.ready.is_empty()).min();
        [retry, unlock].into_iter().flatten().min()
    }

    /// What has changed since it was last asked for. Costs what changed.
    pub fn take_changes(&mut self) -> Changes {
        let now = (self.hub.clone(), self.revision, self.sequence, self.guard.asked());
        let (tree, revision, sequence, asked) = std::mem::replace(&mut self.durable, now);
        let entries = tree.diff(&self.hub).into_iter().map(|change| (change.path, change.after)).collect();
        let mut rows = Vec::new();
        for path in std::mem::take(&mut self.rows) {
            let row = self.row(&path);
            let stored = self.paths.get_mut(&path).is_none_or(|state| std::mem::replace(&mut state.stored, row.is_some()));
            if row.is_some() || stored {
                rows.push((path, row));
            }
        }
        Changes {
            entries,
            rows,
            revision: (revision != self.revision).then_some(self.revision),
            sequence: (sequence != self.sequence).then_some(self.sequence),
            asked: (asked != self.durable.3).then(|| self.durable.3.clone()),
        }
    }

    /// What is to be remembered of a path, if the hub's tree does not say it.
    fn row(&self, path: &RelPath) -> Option<Row> {
        if let Some(from) = self.moving_at(path) {
            // Until the move is made on the disk, what moves is where it was.
            let what = &self.moving.get(&from)?.what;
            let here = path.starts_with(&from).then(|| what.hash_below(path.below(&from))).flatten();
            return Some(Row { base: here, keep: false, left: false });
        }
        let state = self.paths.get(path)?;
        let agreed = state.base == self.hub_hash(path) && !state.keep && !state.left;
        (!agreed).then_some(Row { base: state.base, keep: state.keep, left: state.left })
    }

    /// Where it stands. Costs what is not agreed on.
    pub fn status(&self) -> Status {
        let mut status = Status {
            revision: self.revision,
            caught_up: self.link.caught_up,
            paused: self.paused,
            question: self.guard.asked().1.map(|asked| (asked.id, asked.text)),
            ..Status::default()
        };
        for (path, state) in &self.paths {
            if state.left {
                continue;
            }
            if state.local == state.base {
                status.down_files += 1;
                status.down_bytes += self.hub.get(path).map_or(0, Entry::size);
                status.down_failed += u64::from(state.trouble.is_some());
            } else {
                status.up_files += 1;
                let held = self.is_held(path);
                status.held += u64::from(held);
                status.up_failed += u64::from(held || state.trouble.is_some());
            }
            match &state.trouble {
                Some(trouble) if status.problems.len() < PROBLEMS => status.problems.push((path.clone(), (**trouble).clone())),
                Some(_) => status.more_problems += 1,
                None => {}
            }
        }
        status.down_files += self.moving.len() as u64;
        status
    }

    /// Somebody has paused the workspace at the hub.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The hub's tree has come whole, as far as this connection knows.
    pub fn is_caught_up(&self) -> bool {
        self.link.caught_up
    }

    /// Whether this is what it wants decided.
    pub fn asks(&self, question: u64) -> bool {
        self.guard.asked().1.is_some_and(|asked| asked.id == question)
    }

    /// At and below a path nothing is waiting, under way, or held.
    pub fn is_settled_at(&self, at: &RelPath) -> bool {
        let mut here = self.paths.range((Bound::Included(at), Bound::Unbounded)).take_while(|(path, _)| path.starts_with(at));
        let moves = || self.moving.iter().any(|(from, moving)| from.starts_with(at) || moving.to.starts_with(at));
        self.link.caught_up && here.all(|(_, state)| state.left) && self.moving_at(at).is_none() && !moves()
    }

    /// Nothing is waiting, under way, or held.
    pub fn is_settled(&self) -> bool {
        self.link.caught_up
            && self.paths.values().all(|state| state.left)
            && self.moving.is_empty()
            && self.uploading.is_empty()
            && self.in_flight.is_none()
    }

    fn hub_hash(&self, path: &RelPath) -> Option<Hash> {
        self.hub.get(path).map(Entry::hash)
    }

    /// The origin of the move that a path is part of, or goes to.
    fn moving_at(&self, path: &RelPath) -> Option<RelPath> {
        if self.moving.is_empty() {
            return None;
        }
        std::iter::once(path.clone())
            .chain(path.ancestors())
            .find_map(|above| if self.moving.contains_key(&above) { Some(above) } else { self.moving_to.get(&above).cloned() })
    }

    /// The state of a path, which begins as agreed on.
    fn state(&mut self, path: &RelPath) -> &mut Path {
        let stored = self.rows.contains(path) || self.moving_at(path).is_some();
        let hub = &self.hub;
        self.paths.entry(path.clone()).or_insert_with(|| {
            let ready = hub.shared(path);
            let agreed = ready.as_ref().map(|entry| entry.hash());
            Path { base: agreed, local: agreed, ready, stored, ..Path::default() }
        })
    }

    /// Decides anew on every path of which something changed, parents first.
    fn settle(&mut self) {
        if self.resetting {
            return;
        }
        while let Some(path) = self.todo.pop_first() {
            self.decide(&path);
        }
    }

    fn decide(&mut self, path: &RelPath) {
        self.unqueue(path);
        if self.applying.contains_key(path) || self.moving_at(path).is_some() {
            return;
        }
        let hub = self.hub_hash(path);
        let now_ms = self.now_ms;
        let Some(state) = self.paths.get_mut(path) else { return };
        if state.left {
            if hub.is_none() {
                return;
            }
            // It has been here all the time, as far as anybody knows.
            self.look.insert(path.clone());
            state.left = false;
            (state.base, state.local) = (Some(Hash::directory()), Some(Hash::directory()));
            self.rows.insert(path.clone());
        }
        if state.local == hub {
            return self.forget(path);
        }
        if state.local.is_none() && hub.is_some() && hub != state.base {
            // Deleted here, changed there: the change stays.
            state.base = None;
            self.rows.insert(path.clone());
        }
        if state.retry_at_ms > now_ms {
            return;
        }
        if state.local == state.base {
            return self.want_applied(path, hub);
        }
        if state.local.is_none() || state.ready.is_some() {
            self.queues.ready.insert(path.clone());
            self.plan = true;
        } else if !self.uploading.contains_key(path) {
            self.queues.uploads.insert(path.clone());
        }
        self.unblock(path);
    }

    /// Whether the hub has said last that it does not hold what it was thought to hold of a file.
    pub fn is_missing_chunks(&self, path: &RelPath) -> bool {
        let trouble = self.paths.get(path).and_then(|state| state.trouble.as_deref());
        trouble.is_some_and(|trouble| trouble.code == super::judge::Code::MissingChunks.as_str())
    }

    fn forget(&mut self, path: &RelPath) {
        if let Some(state) = self.paths.remove(path) {
            self.retries.remove(&(state.retry_at_ms, path.clone()));
            if state.trouble.is_some_and(|trouble| trouble.code == CASE_COLLISION)
                && let btree_map::Entry::Occupied(mut paths) = self.collisions.entry(path.fold_key())
            {
                paths.get_mut().remove(path);
                if paths.get().is_empty() {
                    paths.remove();
                }
            }
            if state.stored {
                self.rows.insert(path.clone());
            } else {
                self.rows.remove(path);
            }
        }
        self.unblock(path);
    }

    /// What waited for a directory here is decided on anew.
    fn unblock(&mut self, path: &RelPath) {
        let waiting = below(&self.queues.blocked, path);
        self.todo.extend(waiting);
    }

    fn unqueue(&mut self, path: &RelPath) {
        let queues = &mut self.queues;
        for queue in [&mut queues.creates, &mut queues.removes, &mut queues.blocked, &mut queues.uploads, &mut queues.ready] {
            queue.remove(path);
        }
        self.guard.forget(path);
    }

    /// It is tried again later, and later each time.
    fn fail(&mut self, path: &RelPath, trouble: Option<Trouble>) {
        let Some(state) = self.paths.get_mut(path) else { return };
        self.retries.remove(&(state.retry_at_ms, path.clone()));
        state.retry_at_ms = self.now_ms + (RETRY_MS << state.fails.min(6));
        state.fails = state.fails.saturating_add(1);
        if trouble.as_ref().is_some_and(|trouble| trouble.code == CASE_COLLISION) {
            self.collisions.entry(path.fold_key()).or_default().insert(path.clone());
        }
        state.trouble = trouble.map(Box::new);
        self.retries.insert((state.retry_at_ms, path.clone()));
        self.todo.insert(path.clone());
    }

    /// What a file system took for this name may come, now that it is gone.
    fn freed(&mut self, path: &RelPath) {
        if self.collisions.is_empty() {
            return;
        }
        let key = path.fold_key();
        let is_it = |other: &str| other.strip_prefix(&key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let from_here = self.collisions.range(key.clone()..).map(|(other, _)| other);
        let freed: Vec<_> = from_here.take_while(|other| other.starts_with(&key)).filter(|other| is_it(other)).cloned().collect();
        for path in freed.iter().filter_map(|key| self.collisions.remove(key)).flatten() {
            if let Some(state) = self.paths.get_mut(&path) {
                self.retries.remove(&(state.retry_at_ms, path.clone()));
                state.retry_at_ms = 0;
                self.todo.insert(path);
            }
        }
    }

    fn tick(&mut self) {
        while let Some((at, path)) = self.retries.pop_first() {
            if at > self.now_ms {
                self.retries.insert((at, path));
                break;
            }
            if let Some(state) = self.paths.get_mut(&path) {
                state.retry_at_ms = 0;
            }
            self.todo.insert(path);
        }
        self.plan = true;
    }
}

/// The members of a set that lie below a directory, itself not among them.
fn below(set: &BTreeSet<RelPath>, path: &RelPath) -> Vec<RelPath> {
    set.range((Bound::Excluded(path), Bound::Unbounded)).take_while(|at| at.starts_with(path)).cloned().collect()
}
