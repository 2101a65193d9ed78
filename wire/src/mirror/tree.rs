//! The tree of a workspace: persistent, with a hash per directory.
//!
//! Directories are shared between copies and copied on write, so a clone costs nothing and a change costs the directories on the way
//! to it. Hashes are computed when asked for and kept until something below changes. Comparing two trees descends only where hashes
//! differ.

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    sync::{Arc, OnceLock},
};

use super::{
    entry::{DIRECTORY, Entry, Hash, directory_hash},
    op::Op,
    path::RelPath,
};
use crate::limits;

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A file or symlink is where a directory is needed.
    #[error("`{0}` is not a directory")]
    NotADirectory(RelPath),
    /// Nothing is there to be moved.
    #[error("`{0}` does not exist")]
    Missing(RelPath),
    /// The place is taken.
    #[error("`{0}` exists already")]
    Occupied(RelPath),
    /// A directory cannot go below itself.
    #[error("`{0}` cannot be moved below itself")]
    IntoItself(RelPath),
    /// A path below would become too long or too deep.
    #[error("paths below `{0}` would become too long or too deep")]
    TooLong(RelPath),
}

/// One path on which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub path: RelPath,
    /// There in the first tree.
    pub before: Option<Entry>,
    /// There in the second.
    pub after: Option<Entry>,
}

/// A workspace's entries.
#[derive(Clone, Default)]
pub struct Tree {
    root: Arc<Directory>,
}

/// An entry with everything below it, taken out of a tree. A clone costs nothing.
#[derive(Clone)]
pub struct Subtree(Node);

#[derive(Clone)]
enum Node {
    Leaf(Arc<Entry>),
    Directory(Arc<Directory>),
}

#[derive(Clone, Default)]
struct Directory {
    children: BTreeMap<Arc<str>, Node>,
    summary: OnceLock<Summary>,
}

/// What is true of a directory with everything below it.
#[derive(Clone, Copy)]
struct Summary {
    hash: Hash,
    entries: usize,
    bytes: u64,
    /// Components of the deepest path below, and bytes of the longest.
    height: usize,
    longest: usize,
}

impl Directory {
    fn summary(&self) -> &Summary {
        self.summary.get_or_init(|| {
            let hash = directory_hash(self.children.iter().map(|(name, node)| (&**name, node.hash())));
            let mut all = Summary { hash, entries: 0, bytes: 0, height: 0, longest: 0 };
            for (name, node) in &self.children {
                let (entries, bytes, height, longest) = node.extent();
                all.entries += 1 + entries;
                all.bytes = all.bytes.saturating_add(bytes);
                all.height = all.height.max(1 + height);
                all.longest = all.longest.max(name.len() + if longest > 0 { 1 + longest } else { 0 });
            }
            all
        })
    }
}

impl Node {
    fn new(entry: Entry) -> Self {
        if entry.is_directory() { Self::Directory(Arc::default()) } else { Self::Leaf(Arc::new(entry)) }
    }

    fn entry(&self) -> &Entry {
        match self {
            Self::Leaf(entry) => entry,
            Self::Directory(_) => &DIRECTORY,
        }
    }

    fn hash(&self) -> Hash {
        match self {
            Self::Leaf(entry) => entry.hash(),
            Self::Directory(directory) => directory.summary().hash,
        }
    }

    /// Entries and bytes below or in it, height, longest path below.
    fn extent(&self) -> (usize, u64, usize, usize) {
        match self {
            Self::Leaf(entry) => (0, entry.size(), 0, 0),
            Self::Directory(directory) => {
                let all = directory.summary();
                (all.entries, all.bytes, all.height, all.longest)
            }
        }
    }

    fn children(&self) -> Option<&BTreeMap<Arc<str>, Node>> {
        if let Self::Directory(directory) = self { Some(&directory.children) } else { None }
    }

    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Leaf(a), Self::Leaf(b)) => Arc::ptr_eq(a, b) || a.hash() == b.hash(),
            (Self::Directory(a), Self::Directory(b)) => Arc::ptr_eq(a, b) || a.summary().hash == b.summary().hash,
            _ => false,
        }
    }
}

impl Subtree {
    /// As [`Tree::hash`].
    pub fn hash(&self) -> Hash {
        self.0.hash()
    }

    /// The entry at its top.
    pub fn entry(&self) -> &Entry {
        self.0.entry()
    }

    /// The hash of the entry that lies so far below its top; at its top for `None`.
    pub(super) fn hash_below(&self, below: Option<&str>) -> Option<Hash> {
        let mut node = &self.0;
        for component in below.into_iter().flat_map(|below| below.split('/')) {
            node = node.children()?.get(component)?;
        }
        Some(node.entry().hash())
    }

    /// What lies directly below its top.
    pub(super) fn children(&self) -> impl Iterator<Item = (&str, Subtree)> {
        self.0.children().into_iter().flatten().map(|(name, node)| (&**name, Subtree(node.clone())))
    }

    /// Shows the path and hash of each subtree as if its top were at `path`, parents first.
    pub(super) fn hashes(&self, path: &RelPath, show: &mut impl FnMut(RelPath, Hash), below_only: bool) {
        if !below_only {
            show(path.clone(), self.hash());
        }
        for (name, child) in self.children() {
            child.hashes(&path.child(name), show, false);
        }
    }

    /// Every entry as if its top were at `path`, parents first.
    pub fn entries(&self, path: &RelPath) -> Entries<'_> {
        Entries { first: Some((path.clone(), self.0.entry())), stack: stack(path.clone(), &self.0) }
    }
}

impl Tree {
    /// The hash of everything.
    pub fn root(&self) -> Hash {
        self.root.summary().hash
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.root.summary().entries
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.root.children.is_empty()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.root.summary().bytes
    }

    fn node(&self, path: &RelPath) -> Option<&Node> {
        let mut components = path.components();
        let mut node = self.root.children.get(components.next()?)?;
        for component in components {
            node = node.children()?.get(component)?;
        }
        Some(node)
    }

    /// What lies at a path; `None` for nothing, and for the root.
    pub fn get(&self, path: &RelPath) -> Option<&Entry> {
        self.node(path).map(Node::entry)
    }

    /// As [`Tree::get`], shared.
    pub(super) fn shared(&self, path: &RelPath) -> Option<Arc<Entry>> {
        self.node(path).map(|node| match node {
            Node::Leaf(entry) => entry.clone(),
            Node::Directory(_) => Arc::new(Entry::Directory),
        })
    }

    /// The hash of what lies at a path; of a directory with everything below it.
    pub fn hash(&self, path: &RelPath) -> Option<Hash> {
        if path.is_root() { Some(self.root()) } else { self.node(path).map(Node::hash) }
    }

    /// Entries at and below a path; the root does not count itself.
    pub fn count(&self, path: &RelPath) -> usize {
        if path.is_root() { self.len() } else { self.node(path).map_or(0, |node| 1 + node.extent().0) }
    }

    /// What lies directly in a directory, by name, with hashes as of [`Tree::hash`]. `None` when it is not a directory.
    pub fn children(&self, path: &RelPath) -> Option<impl Iterator<Item = (&str, &Entry, Hash)>> {
        let children = if path.is_root() { &self.root.children } else { self.node(path)?.children()? };
        Some(children.iter().map(|(name, node)| (&**name, node.entry(), node.hash())))
    }

    /// Every entry, parents first, in the order of paths.
    pub fn iter(&self) -> Entries<'_> {
        Entries { first: None, stack: vec![(RelPath::root(), self.root.children.iter())] }
    }

    /// What lies at a path and below, parents first. Nothing when nothing is there.
    pub fn below(&self, path: &RelPath) -> Entries<'_> {
        match self.node(path) {
            Some(node) => Entries { first: Some((path.clone(), node.entry())), stack: stack(path.clone(), node) },
            None if path.is_root() => self.iter(),
            None => Entries { first: None, stack: Vec::new() },
        }
    }

    /// An entry with everything below it.
    pub fn subtree(&self, path: &RelPath) -> Option<Subtree> {
        self.node(path).cloned().map(Subtree)
    }

    /// The directory, whose hash is forgotten, and those above it. With `create` they come into being.
    fn edit(&mut self, path: &RelPath, create: bool) -> Result<Option<&mut Directory>, TreeError> {
        let mut directory = Arc::make_mut(&mut self.root);
        directory.summary.take();
        for (depth, component) in path.components().enumerate() {
            if create && !directory.children.contains_key(component) {
                directory.children.insert(component.into(), Node::Directory(Arc::default()));
            }
            match directory.children.get_mut(component) {
                Some(Node::Directory(next)) => directory = Arc::make_mut(next),
                Some(Node::Leaf(_)) => return Err(TreeError::NotADirectory(ancestor(path, depth + 1))),
                None => return Ok(None),
            }
            directory.summary.take();
        }
        Ok(Some(directory))
    }

    /// The nearest file or symlink above a path: nothing can be there.
    pub fn obstacle(&self, path: &RelPath) -> Option<RelPath> {
        let mut directory = &self.root;
        for (depth, component) in path.parent()?.components().enumerate() {
            match directory.children.get(component)? {
                Node::Directory(next) => directory = next,
                Node::Leaf(_) => return Some(ancestor(path, depth + 1)),
            }
        }
        None
    }

    /// Puts an entry, with the directories above it. Something equal stays as it is; a directory stays one with what is below it,
    /// anything else gives way.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`]. Nothing has changed then.
    pub fn put(&mut self, path: &RelPath, entry: Entry) -> Result<(), TreeError> {
        match self.node(path) {
            Some(Node::Directory(_)) if entry.is_directory() => Ok(()),
            Some(Node::Leaf(there)) if there.hash() == entry.hash() => Ok(()),
            _ => self.graft(path, Node::new(entry)),
        }
    }

    fn graft(&mut self, path: &RelPath, node: Node) -> Result<(), TreeError> {
        if let Some(obstacle) = self.obstacle(path) {
            return Err(TreeError::NotADirectory(obstacle));
        }
        let Some(parent) = path.parent() else { return Err(TreeError::Occupied(path.clone())) };
        if let Some(directory) = self.edit(&parent, true)? {
            directory.children.insert(path.name().into(), node);
        }
        Ok(())
    }

    /// Takes out an entry with everything below it.
    pub fn remove(&mut self, path: &RelPath) -> Option<Subtree> {
        self.node(path)?;
        let directory = self.edit(&path.parent()?, false).ok()??;
        directory.children.remove(path.name()).map(Subtree)
    }

    /// Moves an entry with everything below it to where nothing is.
    ///
    /// # Errors
    /// [`TreeError`]. Nothing has changed then.
    pub fn rename(&mut self, from: &RelPath, to: &RelPath) -> Result<(), TreeError> {
        let node = self.node(from).cloned().ok_or_else(|| TreeError::Missing(from.clone()))?;
        if to.starts_with(from) {
            return Err(TreeError::IntoItself(from.clone()));
        }
        if self.node(to).is_some() || to.is_root() {
            return Err(TreeError::Occupied(to.clone()));
        }
        let (_, _, height, longest) = node.extent();
        if to.depth() + height > limits::PATH_DEPTH || to.as_str().len() + 1 + longest > limits::PATH_BYTES {
            return Err(TreeError::TooLong(from.clone()));
        }
        if let Some(obstacle) = self.obstacle(to).filter(|obstacle| obstacle != from) {
            return Err(TreeError::NotADirectory(obstacle));
        }
        self.remove(from);
        self.graft(to, node)
    }

    /// Makes a change that was accepted. What is done already changes nothing.
    ///
    /// # Errors
    /// [`TreeError`]. Nothing has changed then.
    pub fn apply(&mut self, op: &Op) -> Result<(), TreeError> {
        match op {
            Op::Put { path, entry, .. } => self.put(path, entry.clone()),
            Op::Remove { path, .. } => {
                self.remove(path);
                Ok(())
            }
            Op::Move { from, to, parent } if self.node(from).is_none() && self.hash(to) == Some(*parent) => Ok(()),
            Op::Move { from, to, .. } => self.rename(from, to),
        }
    }

    /// Every path on which the trees differ, in the order of paths. Costs what differs.
    pub fn diff(&self, after: &Self) -> Vec<Difference> {
        let mut out = Vec::new();
        let one = |path, before: Option<&Entry>, after: Option<&Entry>| Difference { path, before: before.cloned(), after: after.cloned() };
        for change in self.changes(after) {
            let (before, after) = (change.before, change.after);
            if before.is_some() && after.is_some() {
                out.push(one(change.path.clone(), before.as_ref().map(Subtree::entry), after.as_ref().map(Subtree::entry)));
            }
            let skip = usize::from(before.is_some() && after.is_some());
            let gone = before.iter().flat_map(|before| before.entries(&change.path)).skip(skip);
            let mut rows: Vec<_> = gone.map(|(path, entry)| one(path, Some(entry), None)).collect();
            let come = after.iter().flat_map(|after| after.entries(&change.path)).skip(skip);
            rows.extend(come.map(|(path, entry)| one(path, None, Some(entry))));
            out.append(&mut rows);
        }
        out
    }

    /// The topmost places that differ.
    pub(super) fn changes(&self, after: &Self) -> Vec<Change> {
        let mut out = Vec::new();
        if !Arc::ptr_eq(&self.root, &after.root) {
            compare(&RelPath::root(), &self.root.children, &after.root.children, &mut out);
        }
        out
    }
}

/// A place that differs: a subtree came, went, or became something else there.
pub(super) struct Change {
    pub(super) path: RelPath,
    pub(super) before: Option<Subtree>,
    pub(super) after: Option<Subtree>,
}

fn compare(path: &RelPath, before: &BTreeMap<Arc<str>, Node>, after: &BTreeMap<Arc<str>, Node>, out: &mut Vec<Change>) {
    let (mut a, mut b) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let before = if order.is_le() { a.next() } else { None };
        let after = if order.is_ge() { b.next() } else { None };
        let Some(name) = before.or(after).map(|(name, _)| name) else { return };
        let (before, after) = (before.map(|(_, node)| node), after.map(|(_, node)| node));
        match (before, after) {
            (Some(before), Some(after)) if before.same(after) => {}
            (Some(Node::Directory(before)), Some(Node::Directory(after))) => {
                compare(&path.child(name), &before.children, &after.children, out);
            }
            _ => out.push(Change { path: path.child(name), before: before.cloned().map(Subtree), after: after.cloned().map(Subtree) }),
        }
    }
}

fn ancestor(path: &RelPath, components: usize) -> RelPath {
    let text = path.as_str();
    let end = text.match_indices('/').nth(components - 1).map_or(text.len(), |(at, _)| at);
    RelPath::root().child(&text[..end])
}

type Level<'a> = (RelPath, btree_map::Iter<'a, Arc<str>, Node>);

fn stack(path: RelPath, node: &Node) -> Vec<Level<'_>> {
    node.children().map(|children| (path, children.iter())).into_iter().collect()
}

/// Entries of a tree, parents first.
pub struct Entries<'a> {
    first: Option<(RelPath, &'a Entry)>,
    stack: Vec<Level<'a>>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (RelPath, &'a Entry);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let (path, level) = self.stack.last_mut()?;
            if let Some((name, node)) = level.next() {
                let path = path.child(name);
                self.stack.extend(stack(path.clone(), node));
                return Some((path, node.entry()));
            }
            self.stack.pop();
        }
    }
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root) || self.root() == other.root()
    }
}

impl Eq for Tree {}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(path, entry)| (path, entry.hash()))).finish()
    }
}

impl fmt::Debug for Subtree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subtree({:?})", self.hash())
    }
}
