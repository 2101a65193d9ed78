//! From the hub to the disk: jobs, parents first, removals last.

use std::collections::BTreeSet;

use super::{Applying, Job, Replica, below};
use crate::mirror::{
    entry::{Entry, Hash},
    path::RelPath,
};

/// Jobs in one list. Many at once share one flush of the file system.
const JOBS: usize = 1_024;
/// Jobs under way. Enough that transfers never wait for the disk, few enough to turn back from.
const JOBS_UNDER_WAY: usize = 4_096;

impl Replica {
    /// The hub's version is to come here.
    pub(super) fn want_applied(&mut self, path: &RelPath, hub: Option<Hash>) {
        if hub.is_none() {
            self.queues.removes.insert(path.clone());
            return;
        }
        if let Some(obstacle) = path.ancestors().find(|above| self.is_no_directory(above)) {
            self.queues.blocked.insert(path.clone());
            self.plan = true;
            self.restore(&obstacle);
            return;
        }
        self.queues.creates.insert(path.clone());
        self.unblock(path);
    }

    /// There is no directory here, and none is about to be made.
    fn is_no_directory(&self, path: &RelPath) -> bool {
        let waiting = self.queues.creates.contains(path) || self.applying.contains_key(path);
        !waiting && self.paths.get(path).is_some_and(|state| state.local != Some(Hash::directory()))
    }

    /// A directory that was deleted here gets something new at the hub: it stays.
    fn restore(&mut self, path: &RelPath) {
        let directory = Some(Hash::directory());
        let hub = self.hub_hash(path);
        if let Some(state) = self.paths.get_mut(path)
            && state.local.is_none()
            && state.base == directory
            && hub == directory
        {
            state.base = None;
            self.rows.insert(path.clone());
            self.todo.insert(path.clone());
        }
    }

    /// The next list of jobs.
    pub(super) fn next_jobs(&mut self) -> Option<Vec<Job>> {
        // Full lists, or all there is: not one job for each that ended.
        let waiting = self.queues.creates.len() + self.queues.removes.len();
        if JOBS_UNDER_WAY.saturating_sub(self.applying.len()) < JOBS.min(waiting) {
            return None;
        }
        let mut jobs = Vec::new();
        while self.has_room(&jobs)
            && let Some(path) = self.queues.creates.pop_first()
        {
            self.create(&path, &mut jobs);
        }
        self.start_moves(&mut jobs);
        let may_remove = self.queues.creates.is_empty() && self.moving.values().all(|moving| moving.issued) && self.link.partial.is_none();
        while may_remove
            && self.link.caught_up
            && self.has_room(&jobs)
            && let Some(path) = self.queues.removes.pop_last()
        {
            self.set(&path, &mut jobs);
        }
        (!jobs.is_empty()).then_some(jobs)
    }

    fn has_room(&self, jobs: &[Job]) -> bool {
        jobs.len() < JOBS && self.applying.len() < JOBS_UNDER_WAY
    }

    fn create(&mut self, path: &RelPath, jobs: &mut Vec<Job>) {
        let was_directory = self.paths.get(path).is_some_and(|state| state.local == Some(Hash::directory()));
        if was_directory {
            // It can give way only when it is empty.
            for gone in below(&self.queues.removes, path).into_iter().rev() {
                self.queues.removes.remove(&gone);
                self.set(&gone, jobs);
            }
        }
        self.set(path, jobs);
    }

    fn set(&mut self, path: &RelPath, jobs: &mut Vec<Job>) {
        let Some(state) = self.paths.get(path).filter(|state| state.local == state.base) else { return };
        let to = self.hub.get(path).cloned();
        self.applying.insert(path.clone(), Applying { to: to.as_ref().map(Entry::hash), looked: false, reached: false });
        jobs.push(Job::Set { path: path.clone(), expect: state.local, to, keep_copy: state.keep });
    }

    fn start_moves(&mut self, jobs: &mut Vec<Job>) {
        let waits =
            |to: &RelPath| to.parent().is_some_and(|parent| self.queues.creates.contains(&parent) || self.queues.blocked.contains(&parent));
        let start: BTreeSet<RelPath> =
            self.moving.iter().filter(|(_, moving)| !moving.issued && !waits(&moving.to)).map(|(from, _)| from.clone()).collect();
        for from in start {
            if let Some(moving) = self.moving.get_mut(&from) {
                moving.issued = true;
                jobs.push(Job::Move { to: moving.to.clone(), expect: moving.what.entry().hash(), from });
            }
        }
    }
}
