//! What the hub says: commits, verdicts, and coming back to it.

use std::ops::Bound;

use super::{CommitIn, InFlight, Moving, Output, Replica, Trouble, VerdictIn};
use crate::mirror::{
    entry::{Entry, Hash},
    judge::{Code, Objection},
    op::Op,
    path::RelPath,
    tree::{Tree, TreeError},
};

impl Replica {
    pub(super) fn connected(&mut self, revision: u64, root: Hash) {
        self.link.connected = true;
        self.link.partial = None;
        self.link.repeat = self.in_flight.is_some();
        self.link.caught_up = self.hello() == (revision, root);
        self.plan = true;
    }

    pub(super) fn commit(&mut self, commit: CommitIn) {
        let part = Some((commit.base, commit.revision));
        if self.link.partial != part {
            if commit.base == 0 && (self.revision != 0 || !self.hub.is_empty()) {
                self.reset();
            } else if commit.base != self.revision {
                if commit.revision > self.revision {
                    self.resync();
                }
                return;
            }
        }
        self.link.partial = part;
        for op in &commit.ops {
            if self.announced(op).is_err() {
                return self.resync();
            }
        }
        let Some(root) = commit.root else { return };
        self.link.partial = None;
        self.arrive(commit.revision, root);
        self.link.caught_up |= commit.last;
        self.plan = true;
    }

    fn arrive(&mut self, revision: u64, root: Hash) {
        if self.hub.root() != root {
            return self.resync();
        }
        self.revision = revision;
        self.resetting = false;
    }

    /// The hub's tree is not what it should be: all of it is asked for again.
    fn resync(&mut self) {
        self.reset();
        self.link = super::Link::default();
        self.out.push_back(Output::Resync);
    }

    /// Gives up the hub's tree. What it said is what was agreed on.
    fn reset(&mut self) {
        let known: Vec<RelPath> = self.hub.iter().map(|(path, _)| path).collect();
        self.resetting |= !known.is_empty() || !self.paths.is_empty();
        for path in known {
            self.state(&path);
            self.rows.insert(path.clone());
            self.todo.insert(path);
        }
        // Nothing is done any more that was decided by the old tree.
        let queues = std::mem::take(&mut self.queues);
        self.todo.extend([queues.creates, queues.removes, queues.blocked, queues.uploads, queues.ready].into_iter().flatten());
        self.hub = Tree::default();
        self.revision = 0;
    }

    /// A change by another, or by this node before it was cut off.
    fn announced(&mut self, op: &Op) -> Result<(), TreeError> {
        if let Op::Move { from, to, .. } = op
            && self.may_move(from, to)
            && let Some(what) = self.hub.subtree(from)
        {
            self.touch_ancestors(to);
            self.hub.apply(op)?;
            for path in what.entries(from).chain(what.entries(to)).map(|(path, _)| path) {
                self.rows.insert(path);
            }
            self.moving_to.insert(to.clone(), from.clone());
            self.moving.insert(from.clone(), Moving { to: to.clone(), what, issued: false, looked: Vec::new() });
            return Ok(());
        }
        self.change(op)
    }

    /// Whether a move can be made as one on the disk: all that moves is agreed on, and nothing is in its way.
    fn may_move(&self, from: &RelPath, to: &RelPath) -> bool {
        let clear = |path: &RelPath| {
            let inside = |at: &RelPath| at.starts_with(path);
            let range = (Bound::Included(path), Bound::Unbounded);
            self.moving_at(path).is_none()
                && !self.paths.range(range).next().is_some_and(|(at, _)| inside(at))
                && !self.moving.range(range).next().is_some_and(|(at, _)| inside(at))
                && !self.moving_to.range(range).next().is_some_and(|(at, _)| inside(at))
        };
        !self.resetting && clear(from) && clear(to)
    }

    /// Changes the hub's tree; what it held at the paths concerned is remembered as agreed on.
    fn change(&mut self, op: &Op) -> Result<(), TreeError> {
        let mut touched: Vec<RelPath> = Vec::new();
        match op {
            Op::Put { path, entry, .. } => {
                self.touch_ancestors(path);
                touched.push(path.clone());
                if !entry.is_directory() {
                    touched.extend(self.hub.below(path).skip(1).map(|(at, _)| at));
                }
            }
            Op::Remove { path, .. } => touched.extend(self.hub.below(path).map(|(at, _)| at)),
            Op::Move { from, to, .. } => {
                self.touch_ancestors(to);
                if let Some(what) = self.hub.subtree(from) {
                    touched.extend(what.entries(from).chain(what.entries(to)).map(|(at, _)| at));
                }
            }
        }
        for path in touched {
            self.touch(path);
        }
        self.hub.apply(op)
    }

    fn touch(&mut self, path: RelPath) {
        self.state(&path);
        self.rows.insert(path.clone());
        self.todo.insert(path);
    }

    fn touch_ancestors(&mut self, path: &RelPath) {
        let missing: Vec<RelPath> = path.ancestors().take_while(|above| self.hub.get(above).is_none()).collect();
        for above in missing {
            self.touch(above);
        }
    }

    pub(super) fn verdict(&mut self, verdict: &VerdictIn) {
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.proposal.sequence == verdict.sequence) else { return };
        let objection = |index| verdict.objections.iter().find(|objection: &&Objection| objection.op == index);
        if verdict.base == self.revision {
            for (index, op) in in_flight.proposal.ops.iter().enumerate() {
                if objection(index).is_none() && self.change(op).is_err() {
                    return self.resync();
                }
            }
            self.arrive(verdict.revision, verdict.root);
        } else if verdict.revision > self.revision {
            return self.resync();
        }
        self.learn(&in_flight, verdict);
        self.plan = true;
    }

    /// What went in is agreed on. What lost is so too, in that the hub holds it: its own version may come.
    fn learn(&mut self, in_flight: &InFlight, verdict: &VerdictIn) {
        let refused: Vec<(&Op, &Objection)> =
            verdict.objections.iter().filter_map(|objection| Some((in_flight.proposal.ops.get(objection.op)?, objection))).collect();
        for (path, (base, proposed)) in &in_flight.paths {
            self.todo.insert(path.clone());
            let refusal =
                refused.iter().find(|(op, _)| concerns(op, path)).map(|(op, objection)| (matches!(op, Op::Put { .. }), *objection));
            let Some(state) = self.paths.get_mut(path) else { continue };
            match refusal {
                None if state.base == *base => state.base = *proposed,
                None => {}
                Some((put, Objection { code: Code::Conflict, .. })) => {
                    if put && proposed.is_some() && state.local == *proposed {
                        (state.base, state.keep) = (*proposed, true);
                    }
                }
                Some((_, objection)) => self.refused(path, objection),
            }
            self.rows.insert(path.clone());
        }
    }

    fn refused(&mut self, path: &RelPath, objection: &Objection) {
        if objection.code == Code::MissingChunks
            && let Some(state) = self.paths.get_mut(path)
            && state.ready.as_ref().is_some_and(|entry| matches!(**entry, Entry::File { .. }))
        {
            state.ready = None;
        }
        let trouble = Trouble { code: objection.code.as_str().into(), message: objection.message.clone() };
        self.fail(path, (!matches!(objection.code, Code::Locked | Code::Paused)).then_some(trouble));
    }
}

fn concerns(op: &Op, path: &RelPath) -> bool {
    match op {
        Op::Put { path: at, entry, .. } => path == at || (!entry.is_directory() && path.starts_with(at)),
        Op::Remove { path: at, .. } => path.starts_with(at),
        Op::Move { from, to, .. } => path.starts_with(from) || path.starts_with(to),
    }
}
