//! What new ignore rules take out of the workspace. The files stay, on every node.
//!
//! The rules go first: the hub has them before anything is taken out, so a node that is to remove a path knows by then that it is ignored.

use cortex_wire::mirror::{
    ignore::{GIT_RULES, OWN_RULES},
    replica::Found,
};

use super::*;

impl Workspace {
    pub(super) fn is_ignored(&self, path: &RelPath) -> bool {
        let is_folder = matches!(self.replica.hub().get(path), Some(Entry::Directory));
        self.ignored.lock().unwrap_or_else(PoisonError::into_inner).matches(path, is_folder)
    }

    /// Of what was not found: what is only ignored is kept for later.
    pub(super) fn keep_ignored(&mut self, gone: Vec<(RelPath, Option<Found>)>) -> Vec<(RelPath, Option<Found>)> {
        let (ignored, gone): (Vec<_>, _) = gone.into_iter().partition(|(path, _)| self.is_ignored(path));
        self.untracked.extend(ignored.into_iter().map(|(path, _)| path));
        gone
    }

    /// Tells the engine what is ignored, once the hub has the rules that this node goes by.
    pub(super) fn untrack(&mut self) {
        if self.untracked.is_empty() || !self.hub_has_the_rules() {
            return;
        }
        let mut paths: Vec<RelPath> = std::mem::take(&mut self.untracked).into_iter().collect();
        paths.retain(|path| self.cache().get(path).is_none() && self.is_ignored(path));
        if !paths.is_empty() {
            self.handle(Input::Untracked(paths));
        }
    }

    fn hub_has_the_rules(&self) -> bool {
        let (cache, ignored) = (self.cache(), self.ignored.lock().unwrap_or_else(PoisonError::into_inner));
        let hub = self.replica.hub();
        self.looked_once && ignored.files().all(|file| cache.get(file).map(Known::hash) == hub.get(file).map(Entry::hash))
    }

    /// The hub's ignore files above what jobs remove or move.
    pub(super) fn rules_above(&self, jobs: &[Job]) -> Vec<(RelPath, Hash)> {
        let removed = jobs.iter().filter_map(|job| match job {
            Job::Set { path, to: None, .. } => Some(path),
            Job::Move { from, .. } => Some(from),
            Job::Set { .. } => None,
        });
        let folders: BTreeSet<RelPath> = removed.flat_map(|path| path.ancestors().chain([RelPath::root()])).collect();
        let hub = self.replica.hub();
        let files = folders.iter().flat_map(|folder| [GIT_RULES, OWN_RULES].map(|name| folder.join(name)));
        files.flatten().filter_map(|file| Some((file.clone(), hub.get(&file)?.hash()))).collect()
    }
}
