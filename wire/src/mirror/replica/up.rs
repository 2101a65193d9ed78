//! From the disk to the hub: uploads, proposals, and the guard against deleting by accident.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Asked, InFlight, Output, Proposal, Question, Replica, Trouble, below, disk::HOT_AFTER};
use crate::{
    limits,
    mirror::{
        entry::{Entry, Hash},
        op::{self, Op},
        path::RelPath,
        tree::Tree,
    },
};

/// Uploads under way. Enough for the shell to fill chunks with small files.
const UPLOADS_UNDER_WAY: usize = 4_096;
/// Paths looked at for one proposal when nothing was deleted: what fits, and some more because directories come along.
const PLAN_PATHS: usize = 2 * limits::BATCH_OPS;
/// Deletions within `GUARD_MS` above which a person is asked, whatever the size of the workspace.
const GUARD_PATHS: usize = 1_000;
/// Entries from which on a person is asked when more than half go within `GUARD_MS`.
const GUARD_ENTRIES: usize = 20;
/// Entries from which on a person is asked when nothing is left of them.
const GUARD_ROOT: usize = 3;
/// Deletions this close together are taken for one.
const GUARD_MS: i64 = 60_000;

/// Guards against deletions that nobody meant: an emptied folder, a lost mount.
#[derive(Debug, Default)]
pub(super) struct Guard {
    question: Option<Question>,
    questions: u64,
    /// What was asked before a restart, until it is known what the disk looks like now.
    before: Option<Before>,
    approved: BTreeSet<RelPath>,
    /// Since when deletions are counted, how many there were, and of how many entries at most.
    since_ms: Option<i64>,
    deleted: usize,
    entries: usize,
}

/// A question from before a restart.
#[derive(Debug)]
struct Before {
    asked: Asked,
    /// It came before the deletions were found again.
    answer: Option<bool>,
    /// The disk was looked at.
    looked: bool,
}

impl Guard {
    pub(super) fn new(questions: u64, asked: Option<Asked>) -> Self {
        let before = asked.map(|asked| Before { asked, answer: None, looked: false });
        Self { questions, before, ..Self::default() }
    }

    /// The last question's number, and what is asked.
    pub(super) fn asked(&self) -> (u64, Option<Asked>) {
        let before = || self.before.as_ref().filter(|before| before.answer.is_none()).map(|before| before.asked.clone());
        (self.questions, self.question.as_ref().map(|question| question.asked.clone()).or_else(before))
    }

    /// Something was asked before a restart.
    pub(super) fn is_restored(&self) -> bool {
        self.before.is_some()
    }

    pub(super) fn looked(&mut self) {
        if let Some(before) = &mut self.before {
            before.looked = true;
        }
    }

    pub(super) fn forget(&mut self, path: &RelPath) {
        self.approved.remove(path);
        if let Some(question) = &mut self.question {
            question.paths.remove(path);
            if question.paths.is_empty() {
                self.question = None;
            }
        }
    }

    fn is_asked(&self, path: &RelPath) -> bool {
        self.question.as_ref().is_some_and(|question| question.paths.contains(path))
    }

    /// Whether so many more deletions are too many to believe. Those that a person is asked about count: what belongs to them may come a moment later.
    fn trips(&mut self, draft: &Draft, entries: usize, now_ms: i64) -> bool {
        if self.since_ms.is_none_or(|since_ms| (now_ms - since_ms).abs() > GUARD_MS) {
            (self.since_ms, self.deleted, self.entries) = (Some(now_ms), 0, 0);
        }
        self.entries = self.entries.max(entries);
        let asked = self.question.as_ref().map_or(0, |question| question.paths.len());
        let deleted = self.deleted + asked + draft.deleted.len();
        let empties = draft.empties && self.entries >= GUARD_ROOT;
        self.before.is_some() || empties || deleted > GUARD_PATHS || (self.entries >= GUARD_ENTRIES && deleted * 2 > self.entries)
    }
}

/// What a proposal is made of.
struct Draft {
    ops: Vec<Op>,
    paths: BTreeSet<RelPath>,
    /// Deletions in it that no move explains and nobody approved.
    deleted: Vec<RelPath>,
    /// It leaves nothing.
    empties: bool,
}

impl Replica {
    pub(super) fn uploaded(&mut self, path: &RelPath, hash: Hash, entry: Entry) {
        let asked = self.uploading.remove(path);
        self.todo.insert(path.clone());
        let Some(state) = self.paths.get_mut(path) else { return };
        if state.local == Some(hash) && entry.hash() == hash {
            state.ready = Some(Arc::new(entry));
            state.worked();
        } else if asked != Some(hash) {
            // What was read is not what was seen: the next look tells.
            self.look.insert(path.clone());
            self.fail(path, None);
        }
    }

    pub(super) fn upload_failed(&mut self, path: &RelPath, trouble: Trouble) {
        self.uploading.remove(path);
        self.todo.insert(path.clone());
        let Some(state) = self.paths.get(path) else { return };
        match trouble.code.as_str() {
            "offline" => {}
            "changed" if state.fails + 1 < HOT_AFTER => {
                self.look.insert(path.clone());
                self.fail(path, None);
            }
            "changed" => {
                self.look.insert(path.clone());
                self.fail(path, Some(Trouble { code: "hot".into(), message: "it changes faster than it can be read".into() }));
            }
            _ => self.fail(path, Some(trouble)),
        }
    }

    pub(super) fn next_upload(&mut self) -> Option<Output> {
        if self.uploading.len() >= UPLOADS_UNDER_WAY || !self.link.caught_up {
            return None;
        }
        let path = self.queues.uploads.pop_first()?;
        let hash = self.paths.get(&path)?.local?;
        self.uploading.insert(path.clone(), hash);
        Some(Output::Upload { path, hash })
    }

    /// Whether a change waits for another's lock or a person's answer.
    pub(super) fn is_held(&self, path: &RelPath) -> bool {
        self.guard.is_asked(path) || self.locks.iter().any(|lock| !lock.is_held_by(&self.me) && lock.covers(path, false, self.now_ms))
    }

    pub(super) fn next_proposal(&mut self) -> Option<Output> {
        if !self.link.caught_up {
            return None;
        }
        if let Some(in_flight) = &self.in_flight {
            return std::mem::take(&mut self.link.repeat).then(|| Output::Propose(in_flight.proposal.clone()));
        }
        if !std::mem::take(&mut self.plan) {
            return None;
        }
        let mut draft = self.draft();
        if self.guard.trips(&draft, self.hub.len(), self.now_ms) && !draft.deleted.is_empty() {
            self.ask(draft.deleted);
            draft = self.draft();
        } else if draft.deleted.is_empty() {
            // All that was deleted before the restart is there again.
            self.guard.before.take_if(|before| before.looked);
        }
        draft.ops.truncate(op::fitting(&draft.ops));
        self.guard.deleted += draft.deleted.len();
        let paths = self.covered(&draft);
        if !draft.ops.is_empty() {
            self.sequence += 1;
            let proposal = Proposal { sequence: self.sequence, ops: draft.ops };
            self.in_flight = Some(InFlight { proposal: proposal.clone(), paths });
            return Some(Output::Propose(proposal));
        }
        // A question, or what an answer that came early brings back.
        self.out.pop_front().or_else(|| self.next_jobs().map(Output::Apply))
    }

    fn draft(&self) -> Draft {
        let state = |path: &RelPath| self.paths.get(path);
        let goes = |path: &RelPath| state(path).is_some_and(|state| state.local.is_none());
        let ready = &self.queues.ready;
        let limit = if ready.iter().any(goes) { ready.len() } else { PLAN_PATHS };
        let paths: BTreeSet<RelPath> = ready.iter().filter(|path| !self.is_held(path)).take(limit).cloned().collect();
        let mut after = self.hub.clone();
        let mut conflicts = Vec::new();
        for path in paths.iter().rev().filter(|path| goes(path)) {
            if is_bare(&after, path) {
                after.remove(path);
            }
        }
        for path in &paths {
            let Some((state, entry)) = state(path).and_then(|state| Some((state, state.ready.as_ref()?))) else { continue };
            let hub = self.hub_hash(path);
            let crossed = hub.is_some() && hub != state.base;
            let put = !crossed && (entry.is_directory() || is_bare(&after, path)) && after.put(path, (**entry).clone()).is_ok();
            if crossed || (!put && self.is_kept_out(path, &after, &conflicts)) {
                conflicts.push(Op::Put { path: path.clone(), parent: state.base, entry: (**entry).clone() });
            }
        }
        let mut ops = op::compact(&self.hub, &after);
        let deleted = self.deleted(&ops, paths.iter().filter(|path| goes(path)));
        ops.extend(conflicts);
        Draft { ops, paths, deleted, empties: after.is_empty() }
    }

    /// Whether an entry cannot be put because of what another did: a file is where its directory was, or something new is in the
    /// directory whose place it took. Otherwise it waits for other changes made here.
    fn is_kept_out(&self, path: &RelPath, after: &Tree, conflicts: &[Op]) -> bool {
        match after.obstacle(path) {
            Some(obstacle) => {
                let given_up = self.paths.get(&obstacle).is_some_and(|state| state.local == state.base);
                given_up || conflicts.iter().any(|op| *op.path() == obstacle)
            }
            None => !below(&self.queues.blocked, path).is_empty(),
        }
    }

    fn deleted<'a>(&self, ops: &[Op], gone: impl Iterator<Item = &'a RelPath>) -> Vec<RelPath> {
        let moved: BTreeSet<&RelPath> = ops.iter().filter(|op| op.target().is_some()).map(Op::path).collect();
        let is_moved = |path: &RelPath| moved.contains(path) || path.ancestors().any(|above| moved.contains(&above));
        gone.filter(|path| !self.guard.approved.contains(path) && !is_moved(path)).cloned().collect()
    }

    fn ask(&mut self, deleted: Vec<RelPath>) {
        let mut paths: BTreeSet<RelPath> = deleted.into_iter().collect();
        if let Some(before) = self.guard.question.take() {
            paths.extend(before.paths);
        }
        let digest = digest(&paths);
        let known = self.guard.before.take().filter(|before| before.asked.paths == digest);
        let answer = known.as_ref().and_then(|known| known.answer);
        let asked = known.map(|known| known.asked).unwrap_or_else(|| {
            self.guard.questions += 1;
            let text = format!("{} of {} entries were deleted here. Delete them everywhere?", paths.len(), self.hub.len());
            Asked { id: self.guard.questions, text, paths: digest }
        });
        let id = asked.id;
        if answer.is_none() {
            self.out.push_back(Output::Question { id, text: asked.text.clone() });
        }
        self.guard.question = Some(Question { asked, paths });
        if let Some(yes) = answer {
            self.decided(id, yes);
            self.settle();
        }
    }

    pub(super) fn untracked(&mut self, paths: Vec<RelPath>) {
        self.scanned(paths.iter().map(|path| (path.clone(), None)).collect());
        self.settle();
        let goes = paths.into_iter().filter(|path| self.paths.get(path).is_some_and(|state| state.local.is_none()));
        self.guard.approved.extend(goes);
    }

    pub(super) fn decided(&mut self, question: u64, yes: bool) {
        if let Some(before) = self.guard.before.as_mut().filter(|before| before.asked.id == question) {
            before.answer = Some(yes);
        }
        let Some(question) = self.guard.question.take_if(|open| open.asked.id == question) else { return };
        self.guard.since_ms = None;
        for path in question.paths {
            if yes {
                self.guard.approved.insert(path);
            } else if let Some(state) = self.paths.get_mut(&path) {
                // What the hub holds comes back.
                state.base = None;
                self.rows.insert(path.clone());
                self.todo.insert(path);
            }
        }
        self.plan = true;
    }

    /// The paths whose change is in the draft's ops.
    fn covered(&self, draft: &Draft) -> BTreeMap<RelPath, (Option<Hash>, Option<Hash>)> {
        let mut covered = BTreeSet::new();
        for op in &draft.ops {
            for top in [Some(op.path()), op.target()].into_iter().flatten() {
                covered.extend(draft.paths.range(top..).take_while(|path| path.starts_with(top)).take(match op {
                    Op::Put { entry: Entry::Directory, .. } => 1,
                    _ => usize::MAX,
                }));
            }
        }
        let row = |path: &&RelPath| self.paths.get(path).map(|state| ((*path).clone(), (state.base, state.local)));
        covered.iter().filter_map(row).collect()
    }
}

fn digest(paths: &BTreeSet<RelPath>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        // No path holds a zero.
        hasher.update(path.as_str().as_bytes()).update(&[0]);
    }
    hasher.finalize().into()
}

/// Nothing is below it.
fn is_bare(tree: &Tree, path: &RelPath) -> bool {
    tree.count(path) <= 1
}
