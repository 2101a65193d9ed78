//! What the hub accepts of a proposal.
//!
//! Each change is judged by itself, in order, against the tree that those before it left: it goes in when what it was made from is what
//! is there. What is there already is no change. A change beats a deletion. Anything else is a conflict of that path alone; what was
//! proposed is kept beside the tree, never dropped.

use super::{
    entry::{Entry, Hash},
    op::Op,
    path::RelPath,
    tree::Tree,
};
use crate::{
    id::{IdError, NodeId},
    limits,
    schema::{self, WorkspaceLock},
};

/// Who changes something.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Author {
    /// A node.
    Node(NodeId),
    /// A person or an AI, through the hub's API.
    Hub(String),
}

/// A lease on a part of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// What lies here and below; the root for everything.
    pub prefix: RelPath,
    /// For people; at the hub also who it is.
    pub owner: String,
    /// The node that holds it; `None` when it is held at the hub.
    pub node: Option<NodeId>,
    /// Grows with each lease.
    pub fence: u64,
    /// When it ends by itself.
    pub expires_at_ms: i64,
}

impl Lock {
    /// From the wire.
    ///
    /// # Errors
    /// When the prefix or the node is none.
    pub fn from_schema(lock: &WorkspaceLock) -> Result<Self, IdError> {
        Ok(Self {
            prefix: RelPath::prefix(&lock.prefix).map_err(|_| IdError("path"))?,
            owner: crate::text::clean(&lock.owner, limits::NAME_BYTES),
            node: if lock.owner_node.is_empty() { None } else { Some(NodeId::from_slice(&lock.owner_node)?) },
            fence: lock.fence,
            expires_at_ms: lock.expires_at_ms,
        })
    }

    /// For the wire.
    pub fn to_schema(&self) -> WorkspaceLock {
        WorkspaceLock {
            prefix: self.prefix.to_string(),
            owner: self.owner.clone(),
            owner_node: self.node.map(|node| node.key().to_bytes()).unwrap_or_default(),
            fence: self.fence,
            expires_at_ms: self.expires_at_ms,
        }
    }

    /// Whether it is its owner's.
    pub fn is_held_by(&self, author: &Author) -> bool {
        match (author, &self.node) {
            (Author::Node(author), Some(node)) => author == node,
            (Author::Hub(author), None) => *author == self.owner,
            _ => false,
        }
    }

    /// Whether it keeps others from changing a path, or (for what goes as a whole) something below it.
    pub fn covers(&self, path: &RelPath, whole: bool, now_ms: i64) -> bool {
        now_ms < self.expires_at_ms && (path.starts_with(&self.prefix) || (whole && self.prefix.starts_with(path)))
    }
}

/// Why a change did not go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// Something else is there than what it was made from.
    Conflict,
    /// Another holds a lock there.
    Locked,
    /// The hub does not hold the chunks it names.
    MissingChunks,
    /// It cannot be made.
    Invalid,
    /// The workspace or a path would be too large.
    TooLarge,
    /// The workspace is paused.
    Paused,
}

impl Code {
    const ALL: [(Self, &str); 6] = [
        (Self::Conflict, "conflict"),
        (Self::Locked, "locked"),
        (Self::MissingChunks, "missing_chunks"),
        (Self::Invalid, "invalid"),
        (Self::TooLarge, "too_large"),
        (Self::Paused, "paused"),
    ];

    /// As on the wire and in APIs.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(code, _)| *code == self).map_or("invalid", |(_, text)| text)
    }

    /// From the wire; a code this build does not know is [`Code::Invalid`].
    pub fn from_wire(text: &str) -> Self {
        Self::ALL.iter().find(|(_, known)| *known == text).map_or(Self::Invalid, |(code, _)| *code)
    }
}

/// A change that did not go in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// Index into the proposal.
    pub op: usize,
    /// Why.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl Objection {
    /// From the wire.
    pub fn from_schema(objection: &schema::Objection) -> Self {
        Self {
            op: objection.op as usize,
            code: Code::from_wire(&objection.code),
            message: crate::text::clean(&objection.message, limits::TEXT_BYTES),
        }
    }

    /// For the wire.
    pub fn to_schema(&self) -> schema::Objection {
        schema::Objection { op: u32::try_from(self.op).unwrap_or(u32::MAX), code: self.code.as_str().into(), message: self.message.clone() }
    }
}

/// Two versions of one path. The hub keeps the one that lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Where.
    pub path: RelPath,
    /// What the one that lost was made from.
    pub base: Option<Hash>,
    /// What keeps the path; `None` when nothing can be there, because a file is where its directory was.
    pub current: Option<Entry>,
    /// What lost.
    pub proposed: Entry,
}

/// What becomes of a proposal.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The tree with what went in.
    pub tree: Tree,
    /// What went in and changed something, with the parents it found. To be logged and announced.
    pub accepted: Vec<Op>,
    /// What did not go in.
    pub objections: Vec<Objection>,
    /// What lost, for the conflict records: a repeated proposal has the same again.
    pub conflicts: Vec<Conflict>,
}

/// Judges the changes in order. The author's own locks, and those that have ended, do not count. Chunks are for the caller to look for
/// beforehand: a change whose chunks are missing is left out of `ops`, or objected to.
pub fn judge(tree: &Tree, ops: &[Op], locks: &[Lock], author: &Author, now_ms: i64) -> Judgement {
    let locks = locks.iter().filter(|lock| !lock.is_held_by(author)).collect();
    let out = Judgement { tree: tree.clone(), accepted: Vec::new(), objections: Vec::new(), conflicts: Vec::new() };
    let mut judge = Judge { locks, now_ms, at_most: tree.len(), out };
    for (index, op) in ops.iter().enumerate() {
        match judge.one(op) {
            Ok(Some(op)) => judge.out.accepted.push(op),
            Ok(None) => {}
            Err((code, message)) => judge.out.objections.push(Objection { op: index, code, message }),
        }
    }
    judge.out
}

type Ruling = Result<Option<Op>, (Code, String)>;

struct Judge<'a> {
    locks: Vec<&'a Lock>,
    now_ms: i64,
    /// Entries in the tree: no more than these. To count them after each change would be to hash every folder that was changed.
    at_most: usize,
    out: Judgement,
}

impl Judge<'_> {
    fn one(&mut self, op: &Op) -> Ruling {
        self.unlocked(op)?;
        match op {
            Op::Put { path, parent, entry } => self.put(path, *parent, entry),
            Op::Remove { path, parent } => self.remove(path, *parent),
            Op::Move { from, to, parent } => self.rename(from, to, *parent),
        }
    }

    fn unlocked(&self, op: &Op) -> Result<(), (Code, String)> {
        let whole = !matches!(op, Op::Put { entry: Entry::Directory, .. });
        let covers = |path: &RelPath| self.locks.iter().find(|lock| lock.covers(path, whole, self.now_ms));
        match covers(op.path()).or_else(|| op.target().and_then(covers)) {
            Some(lock) => Err((Code::Locked, format!("`{}` is locked by {}", lock.prefix, lock.owner))),
            None => Ok(()),
        }
    }

    fn put(&mut self, path: &RelPath, parent: Option<Hash>, entry: &Entry) -> Ruling {
        let current = self.out.tree.hash(path);
        let there = self.out.tree.get(path);
        if there.is_some_and(|there| there.hash() == entry.hash()) {
            return Ok(None);
        }
        if self.out.tree.obstacle(path).is_some() || (current.is_some() && current != parent) {
            let conflict = Conflict { path: path.clone(), base: parent, current: there.cloned(), proposed: entry.clone() };
            self.out.conflicts.push(conflict);
            return Err((Code::Conflict, format!("`{path}` has been changed by another")));
        }
        if self.at_most + path.depth() > limits::WORKSPACE_ENTRIES {
            self.at_most = self.out.tree.len();
        }
        if self.at_most + path.depth() > limits::WORKSPACE_ENTRIES {
            return Err((Code::TooLarge, format!("a workspace holds at most {} entries", limits::WORKSPACE_ENTRIES)));
        }
        self.at_most += path.depth();
        self.make(Op::Put { path: path.clone(), parent: current, entry: entry.clone() })
    }

    fn remove(&mut self, path: &RelPath, parent: Hash) -> Ruling {
        match self.out.tree.hash(path) {
            None => Ok(None),
            Some(current) if current == parent => self.make(Op::Remove { path: path.clone(), parent }),
            Some(_) => Err((Code::Conflict, format!("`{path}` has been changed by another, so it stays"))),
        }
    }

    fn rename(&mut self, from: &RelPath, to: &RelPath, parent: Hash) -> Ruling {
        match (self.out.tree.hash(from), self.out.tree.hash(to)) {
            (None, Some(there)) if there == parent => Ok(None),
            (Some(current), None) if current == parent => {
                if self.out.tree.obstacle(to).is_some() {
                    return Err((Code::Conflict, format!("`{to}` is below a file")));
                }
                self.make(Op::Move { from: from.clone(), to: to.clone(), parent })
            }
            _ => Err((Code::Conflict, format!("`{from}` or `{to}` has been changed by another"))),
        }
    }

    fn make(&mut self, op: Op) -> Ruling {
        match self.out.tree.apply(&op) {
            Ok(()) => Ok(Some(op)),
            Err(error) => Err((Code::Invalid, error.to_string())),
        }
    }
}
