//! Changes by people and programs at the hub: each says what it expects to find, and either all of a request goes in or nothing.

use std::sync::Arc;

use cortex_wire::{
    limits,
    mirror::{
        entry::{Entry, Hash},
        op::{self, Op},
        path::RelPath,
        tree::Tree,
    },
};

use super::{
    MirrorError,
    commit::{By, Outcome, Plan},
    content, lock,
    workspace::{Head, Workspace},
};
use crate::{account::Actor, hub::Hub, record::mirror::ConflictRecord};

/// What must be at a path for a change to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Whatever.
    Any,
    /// Nothing.
    Nothing,
    /// Something.
    Something,
    /// What has this hash.
    Hash(Hash),
}

impl Expect {
    /// What is there, if it is what was expected.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn check(self, tree: &Tree, path: &RelPath) -> Result<Option<Hash>, MirrorError> {
        let current = tree.hash(path);
        match (self, current) {
            (Self::Nothing, Some(current)) => Err(MirrorError::Exists { path: path.to_string(), current }),
            (Self::Something, None) => Err(MirrorError::NoFile(path.to_string())),
            (Self::Hash(parent), current) if current != Some(parent) => Err(MirrorError::Stale { path: path.to_string(), parent, current }),
            _ => Ok(current),
        }
    }
}

/// One change.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Write.
    Put {
        /// Where.
        path: RelPath,
        /// What is to be there before.
        expect: Expect,
        /// What.
        entry: Entry,
    },
    /// Remove; a directory with everything below it.
    Remove {
        /// Where.
        path: RelPath,
        /// What is to be there before.
        expect: Expect,
    },
    /// Move to where nothing is.
    Move {
        /// From where.
        from: RelPath,
        /// To where.
        to: RelPath,
        /// What is to be at `from` before.
        expect: Expect,
    },
}

impl Edit {
    /// The paths whose locks count.
    fn paths(&self) -> impl Iterator<Item = &RelPath> {
        let (one, other) = match self {
            Self::Put { path, .. } | Self::Remove { path, .. } => (path, None),
            Self::Move { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(one).chain(other)
    }

    /// What it writes, as a change.
    fn put(&self) -> Option<Op> {
        match self {
            Self::Put { path, entry, .. } => Some(Op::Put { path: path.clone(), parent: None, entry: entry.clone() }),
            _ => None,
        }
    }

    /// The change as the log holds it; `None` when there is nothing to do.
    fn op(&self, tree: &Tree) -> Result<Option<Op>, MirrorError> {
        match self {
            Self::Put { path, expect, entry } => {
                let parent = expect.check(tree, path)?;
                let kept = *entry == Entry::Directory && tree.get(path).is_some_and(|there| *there == Entry::Directory);
                let same = parent == Some(entry.hash()) || kept;
                Ok((!same).then(|| Op::Put { path: path.clone(), parent, entry: entry.clone() }))
            }
            Self::Remove { path, expect } => {
                let parent = expect.check(tree, path)?.ok_or_else(|| MirrorError::NoFile(path.to_string()))?;
                Ok(Some(Op::Remove { path: path.clone(), parent }))
            }
            Self::Move { from, to, expect } => {
                let parent = expect.check(tree, from)?.ok_or_else(|| MirrorError::NoFile(from.to_string()))?;
                Expect::Nothing.check(tree, to)?;
                Ok((from != to).then(|| Op::Move { from: from.clone(), to: to.clone(), parent }))
            }
        }
    }
}

/// The tree with all of them done, and the changes that lead there.
fn apply(tree: &Tree, edits: &[Edit]) -> Result<(Tree, Vec<Op>), MirrorError> {
    let (mut tree, mut ops) = (tree.clone(), Vec::with_capacity(edits.len()));
    for edit in edits {
        if let Some(op) = edit.op(&tree)? {
            tree.apply(&op).map_err(|error| MirrorError::Impossible(error.to_string()))?;
            ops.push(op);
        }
    }
    if tree.len() > limits::WORKSPACE_ENTRIES {
        return Err(MirrorError::Invalid(format!("a workspace has at most {} entries", limits::WORKSPACE_ENTRIES)));
    }
    Ok((tree, ops))
}

impl Workspace {
    /// Makes changes on behalf of somebody, all or none. `fence`: of their lock, when they hold one.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn edit(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        actor: &Actor,
        fence: Option<u64>,
        what: &str,
        edits: Vec<Edit>,
    ) -> Result<Arc<Head>, MirrorError> {
        self.edit_and_settle(hub, actor, fence, what, edits, Vec::new()).await
    }

    /// The same, and settles conflicts with it.
    pub(super) async fn edit_and_settle(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        actor: &Actor,
        fence: Option<u64>,
        what: &str,
        edits: Vec<Edit>,
        settled: Vec<ConflictRecord>,
    ) -> Result<Arc<Head>, MirrorError> {
        let (who, what, now_ms) = (actor.clone(), what.to_owned(), hub.now_ms());
        let named: Vec<Op> = edits.iter().filter_map(Edit::put).collect();
        if !content::unheld(hub, self, &named).await?.is_empty() {
            return Err(MirrorError::Chunks("what was uploaded is not there any more; upload it again".into()));
        }
        let decide = move |head: &Head| {
            for path in edits.iter().flat_map(Edit::paths) {
                lock::check(head, &who, fence, path, now_ms)?;
            }
            let (tree, ops) = apply(&head.tree, &edits)?;
            Ok(Plan { tree, ops, what, settled, ..Plan::of(head) })
        };
        self.commit(hub, By::Actor(actor.clone()), decide).await.map(|outcome: Outcome| outcome.head)
    }

    /// Brings the workspace, or one path of it, back to what it was at a revision: a new commit.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn restore(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        actor: &Actor,
        fence: Option<u64>,
        revision: u64,
        path: RelPath,
    ) -> Result<Arc<Head>, MirrorError> {
        let then = self.tree_at(hub, revision).await?;
        let (who, now_ms) = (actor.clone(), hub.now_ms());
        let decide = move |head: &Head| {
            lock::check(head, &who, fence, &path, now_ms)?;
            let tree = if path.is_root() { then } else { grafted(&head.tree, &then, &path)? };
            let ops = op::compact(&head.tree, &tree);
            Ok(Plan { tree, ops, what: format!("restore {revision}"), ..Plan::of(head) })
        };
        self.commit(hub, By::Actor(actor.clone()), decide).await.map(|outcome| outcome.head)
    }
}

/// `now` with what `then` holds at a path and below it.
fn grafted(now: &Tree, then: &Tree, path: &RelPath) -> Result<Tree, MirrorError> {
    let impossible = |error: cortex_wire::mirror::tree::TreeError| MirrorError::Impossible(error.to_string());
    let mut tree = now.clone();
    tree.remove(path);
    for (below, entry) in then.below(path) {
        tree.put(&below, entry.clone()).map_err(impossible)?;
    }
    Ok(tree)
}
