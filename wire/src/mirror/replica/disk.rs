//! What was seen on the disk, and how jobs on it ended.

use std::{collections::HashMap, ops::Bound, sync::Arc};

use super::{Found, Replica, Trouble};
use crate::mirror::{
    entry::{Content, Entry, Hash},
    path::RelPath,
};

/// Failures after which new contents are no reason to try again at once.
pub(super) const HOT_AFTER: u8 = 3;

impl Replica {
    pub(super) fn scanned(&mut self, seen: Vec<(RelPath, Option<Found>)>) {
        let mut files = Vec::new();
        let mut changed = Vec::new();
        self.guard.looked();
        self.plan |= self.guard.is_restored();
        for (path, found) in seen {
            self.saw(&path, found.as_ref(), &mut changed);
            if !matches!(found, Some(Found::Directory)) {
                self.saw_nothing_below(&path, &mut changed);
            }
            if let Some(Found::File { size, hash, executable }) = found {
                files.push((path, size, hash, executable));
            }
        }
        self.reuse(&changed, &files);
    }

    fn saw(&mut self, path: &RelPath, found: Option<&Found>, changed: &mut Vec<RelPath>) {
        if let Some(from) = self.moving_at(path) {
            if let Some(moving) = self.moving.get_mut(&from) {
                moving.looked.push(path.clone());
            }
            return;
        }
        let hash = found.map(Found::hash);
        if let Some(applying) = self.applying.get_mut(path) {
            let there = applying.to == hash;
            (applying.looked, applying.reached) = (applying.looked || !there, applying.reached || there);
            return;
        }
        if hash.is_none()
            && let Some(parent) = path.parent()
            && self.paths.get(&parent).is_some_and(|state| state.left)
        {
            self.look.insert(parent);
        }
        if !self.paths.contains_key(path) && self.hub_hash(path) == hash {
            return;
        }
        let state = self.state(path);
        let was_left = std::mem::take(&mut state.left);
        if was_left && hash == Some(Hash::directory()) {
            // It may be empty by now.
            (state.base, state.local) = (hash, hash);
            self.rows.insert(path.clone());
            self.todo.insert(path.clone());
            return;
        }
        let was_ready = state.ready.is_some();
        let is_same = state.local == hash && !was_left;
        let is_gone = hash.is_none() && !is_same;
        state.set_local(hash, found);
        if is_same && state.ready.is_some() == was_ready {
            return;
        }
        if state.fails < HOT_AFTER {
            state.retry_at_ms = 0;
        }
        if was_left {
            self.rows.insert(path.clone());
        }
        self.todo.insert(path.clone());
        changed.push(path.clone());
        if is_gone {
            self.freed(path);
        }
    }

    /// Where there is no directory, nothing is below.
    fn saw_nothing_below(&mut self, path: &RelPath, changed: &mut Vec<RelPath>) {
        let known = self.paths.range((Bound::Excluded(path), Bound::Unbounded)).map(|(at, _)| at);
        let mut gone: Vec<RelPath> = known.take_while(|at| at.starts_with(path)).cloned().collect();
        gone.extend(self.hub.below(path).skip(1).map(|(at, _)| at));
        for at in gone {
            self.saw(&at, None, changed);
        }
    }

    /// What was renamed, copied or made executable has contents that the hub holds already.
    fn reuse(&mut self, changed: &[RelPath], files: &[(RelPath, u64, [u8; 32], bool)]) {
        let lacks = |path: &RelPath| self.paths.get(path).is_some_and(|state| state.ready.is_none());
        if !files.iter().any(|(path, ..)| lacks(path)) {
            return;
        }
        let gone = self.queues.ready.iter().filter(|path| self.paths.get(path).is_some_and(|state| state.local.is_none()));
        let mut known: HashMap<[u8; 32], Content> = HashMap::new();
        for path in changed.iter().chain(gone) {
            if let Some(Entry::File { content, .. }) = self.hub.get(path) {
                known.insert(content.hash, content.clone());
            }
        }
        for (path, size, hash, executable) in files {
            let Some(content) = known.get(hash).filter(|content| content.size == *size) else { continue };
            if let Some(state) = self.paths.get_mut(path).filter(|state| state.ready.is_none()) {
                let entry = Entry::File { content: content.clone(), executable: *executable };
                state.ready = (state.local == Some(entry.hash())).then(|| Arc::new(entry));
            }
        }
    }

    pub(super) fn applied(&mut self, path: &RelPath, hash: Option<Hash>) {
        let Some(applying) = self.applying.remove(path) else { return };
        if let Some(in_flight) = &mut self.in_flight {
            // What was proposed of this path was made from something else than this.
            in_flight.paths.remove(path);
        }
        let state = self.state(path);
        state.set_local(hash, None);
        state.base = applying.to;
        state.keep = false;
        state.worked();
        self.ended(path, applying.looked);
        if hash.is_none() {
            self.freed(path);
        }
    }

    pub(super) fn apply_found(&mut self, path: &RelPath, found: Option<&Found>) {
        let Some(applying) = self.applying.remove(path) else { return };
        let state = self.state(path);
        state.set_local(found.map(Found::hash), found);
        self.ended(path, applying.looked || applying.reached);
    }

    pub(super) fn apply_failed(&mut self, path: &RelPath, trouble: Trouble) {
        let Some(applying) = self.applying.remove(path) else { return };
        let empties = self.paths.range((Bound::Excluded(path), Bound::Unbounded)).take_while(|(at, _)| at.starts_with(path));
        let waits = empties.filter(|(_, state)| state.local.is_some()).count() > 0;
        if applying.to.is_none() && trouble.code == "not_empty" && waits {
            self.fail(path, None);
        } else if applying.to.is_none() && trouble.code == "not_empty" {
            let state = self.state(path);
            state.set_local(None, None);
            (state.base, state.keep, state.left) = (None, false, true);
            state.worked();
        } else {
            self.fail(path, Some(trouble));
            // Perhaps the directory above is no longer what it is taken for.
            self.look.extend([Some(path.clone()), path.parent().filter(|above| !above.is_root())].into_iter().flatten());
        }
        self.ended(path, applying.looked || applying.reached);
    }

    fn ended(&mut self, path: &RelPath, looked: bool) {
        if looked {
            self.look.insert(path.clone());
        }
        self.rows.insert(path.clone());
        self.todo.insert(path.clone());
        self.unblock(path);
    }

    pub(super) fn moved(&mut self, from: &RelPath, done: bool) {
        let Some(moving) = self.moving.remove(from) else { return };
        self.moving_to.remove(&moving.to);
        self.look.extend(moving.looked);
        let here: Vec<_> = moving.what.entries(from).map(|(path, entry)| (path, entry.hash())).collect();
        let there: Vec<_> = moving.what.entries(&moving.to).map(|(path, _)| path).collect();
        if done {
            self.freed(from);
        } else {
            // All is where it was: one by one.
            for (path, hash) in &here {
                let state = self.state(path);
                state.set_local(Some(*hash), None);
                state.base = Some(*hash);
            }
            for path in &there {
                let state = self.state(path);
                state.set_local(None, None);
                state.base = None;
            }
            self.look.extend(here.iter().map(|(path, _)| path.clone()).chain(there.iter().cloned()));
        }
        for path in here.into_iter().map(|(path, _)| path).chain(there) {
            if let Some(state) = self.paths.get_mut(&path) {
                state.stored = true;
            }
            self.rows.insert(path);
        }
        for top in [from, &moving.to] {
            let known = self.paths.range((Bound::Included(top), Bound::Unbounded)).map(|(at, _)| at);
            let known: Vec<RelPath> = known.take_while(|at| at.starts_with(top)).cloned().collect();
            self.todo.extend(known);
            self.unblock(top);
        }
    }
}

impl super::Path {
    /// What is there now; `ready` is kept when it is still that.
    fn set_local(&mut self, hash: Option<Hash>, found: Option<&Found>) {
        if self.ready.as_ref().map(|entry| entry.hash()) != hash {
            self.ready = match found {
                Some(Found::Directory) => Some(Arc::new(Entry::Directory)),
                Some(Found::Symlink(target)) => Some(Arc::new(Entry::Symlink(target.clone()))),
                _ => None,
            };
        }
        self.local = hash;
    }

    pub(super) fn worked(&mut self) {
        self.fails = 0;
        self.trouble = None;
    }
}
