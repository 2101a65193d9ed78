//! What a replica is told and what it asks for.

use std::sync::Arc;

use crate::mirror::{
    entry::{Entry, Hash, file_hash, symlink_hash},
    judge::{Lock, Objection},
    op::Op,
    path::RelPath,
    tree::Tree,
};

/// What lies on the disk at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A file that was read.
    File {
        /// In bytes.
        size: u64,
        /// BLAKE3 of its bytes.
        hash: [u8; 32],
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A directory.
    Directory,
    /// A symlink and its target.
    Symlink(Arc<str>),
}

impl Found {
    /// Equal to [`Entry::hash`] of an entry that is the same.
    pub fn hash(&self) -> Hash {
        match self {
            Self::File { size, hash, executable } => file_hash(*size, hash, *executable),
            Self::Directory => Hash::directory(),
            Self::Symlink(target) => symlink_hash(target),
        }
    }
}

/// Why something on this machine did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Stable: "changed" (while it was read), "not_empty" (a directory that was to go), "offline" (no way to the chunks), "no_space",
    /// "unreadable", "case_collision", …
    pub code: String,
    /// For people.
    pub message: String,
}

/// Changes that the hub announced: a whole commit, several folded into one, or a part of one.
#[derive(Debug, Clone)]
pub struct CommitIn {
    /// The revision they start from; 0: from the empty tree, whatever was held before.
    pub base: u64,
    /// The revision they lead to.
    pub revision: u64,
    /// The tree's hash then. `None`: more parts of the same commit follow.
    pub root: Option<Hash>,
    /// In order.
    pub ops: Vec<Op>,
    /// This brings the node to where the hub is.
    pub last: bool,
}

/// The hub's answer to a proposal.
#[derive(Debug, Clone)]
pub struct VerdictIn {
    /// Which proposal.
    pub sequence: u64,
    /// The revision before it.
    pub base: u64,
    /// The revision that it became; `base` when nothing was new.
    pub revision: u64,
    /// The tree's hash then.
    pub root: Hash,
    /// Changes that did not go in.
    pub objections: Vec<Objection>,
}

/// What happened.
///
/// Order matters: a `Scanned` tells what is on the disk *after* every `Applied` and `Moved` that was handed in before it. A look that
/// began before such an end is thrown away and repeated.
#[derive(Debug, Clone)]
pub enum Input {
    /// These paths were looked at; `None`: nothing is there, or what is there is not part of the workspace. One settled set of events is
    /// one `Scanned`, so that what moved is seen as moved.
    Scanned(Vec<(RelPath, Option<Found>)>),
    /// These are on the disk, and no part of the workspace any more: the hub's rules ignore them. Nobody is asked whether that is meant.
    Untracked(Vec<RelPath>),
    /// The contents are stored, durably, at the hub. `hash` is that of what was read; it should be what was asked for.
    Uploaded {
        /// Which.
        path: RelPath,
        /// Of what was read.
        hash: Hash,
        /// Where its bytes are.
        entry: Entry,
    },
    /// It could not be uploaded. When other contents were found, they are also scanned.
    UploadFailed {
        /// Which.
        path: RelPath,
        /// Why.
        trouble: Trouble,
    },
    /// A [`Job::Set`] is done; this is there now.
    Applied {
        /// Which.
        path: RelPath,
        /// As an entry's hash; `None` for nothing.
        hash: Option<Hash>,
    },
    /// A [`Job::Set`] found something else than it expected, and has changed nothing.
    ApplyFound {
        /// Which.
        path: RelPath,
        /// What is there.
        found: Option<Found>,
    },
    /// A [`Job::Set`] did not work, and has changed nothing.
    ApplyFailed {
        /// Which.
        path: RelPath,
        /// Why. "not_empty": the directory stays, because something is in it that is not part of the workspace.
        trouble: Trouble,
    },
    /// A [`Job::Move`] is done (`true`), or has changed nothing (`false`).
    Moved {
        /// From where.
        from: RelPath,
        /// Whether it is done.
        done: bool,
    },
    /// The hub opened the workspace, at this revision and root, and was told [`super::Replica::hello`].
    Connected {
        /// The hub's revision.
        revision: u64,
        /// Its tree's hash.
        root: Hash,
    },
    /// The stream to the hub is gone.
    Disconnected,
    /// Changes.
    Commit(CommitIn),
    /// An answer.
    Verdict(VerdictIn),
    /// Who holds what, and whether all stands still.
    State {
        /// All locks.
        locks: Vec<Lock>,
        /// Nothing is sent or applied.
        paused: bool,
    },
    /// A person's answer.
    Decision {
        /// To which question.
        question: u64,
        /// The answer.
        yes: bool,
    },
    /// The time of [`super::Replica::poll_timeout`] has come.
    Tick,
}

/// Something to do on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Make `path` hold `to`, if it holds `expect` now. A directory is removed only when it is empty. Answered by
    /// [`Input::Applied`], [`Input::ApplyFound`] or [`Input::ApplyFailed`], once.
    Set {
        /// Where.
        path: RelPath,
        /// What should be there, as an entry's hash.
        expect: Option<Hash>,
        /// What shall be there.
        to: Option<Entry>,
        /// What is there lost a conflict: it goes to `.cortex/conflicts`, not away.
        keep_copy: bool,
    },
    /// Move what is at `from`, with everything below it, to where nothing is. Answered by [`Input::Moved`], once.
    Move {
        /// From where.
        from: RelPath,
        /// To where. Its directory exists.
        to: RelPath,
        /// What should be at `from`, as an entry's hash.
        expect: Hash,
    },
}

/// What is to be done, in this order. What [`super::Replica::take_changes`] holds is made durable first.
#[derive(Debug, Clone)]
pub enum Output {
    /// Look at these paths again; answered by a `Scanned`.
    Look(Vec<RelPath>),
    /// Cut, seal and store this file if its hash is this; answered by [`Input::Uploaded`] or [`Input::UploadFailed`], once. Small files
    /// that come together share chunks.
    Upload {
        /// Which.
        path: RelPath,
        /// Of what should be there.
        hash: Hash,
    },
    /// Send to the hub.
    Propose(Proposal),
    /// Do on the disk, in this order, and after the jobs of earlier lists.
    Apply(Vec<Job>),
    /// Ask a person; answered by [`Input::Decision`].
    Question {
        /// Grows with each.
        id: u64,
        /// For people.
        text: String,
    },
    /// The hub's tree is not what it should be: close the stream and open it again, [`super::Replica::hello`] asks for all of it.
    Resync,
}

/// Changes that this node proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Grows for ever. A repeated proposal has the same, and the same ops.
    pub sequence: u64,
    /// In order, within the limits of a batch.
    pub ops: Vec<Op>,
}

/// What is remembered of a path beside the hub's tree, where it has not been agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// What was agreed on last, as an entry's hash.
    pub base: Option<Hash>,
    /// It lost a conflict, and is to be kept when the hub's version comes.
    pub keep: bool,
    /// A directory that went, and stays here for what is in it that is not part of the workspace.
    pub left: bool,
}

/// A question that waits for an answer. It keeps its number over a restart when what it is about is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Grows with each.
    pub id: u64,
    /// For people.
    pub text: String,
    /// BLAKE3 of the paths that it is about.
    pub paths: [u8; 32],
}

/// Everything a replica was when it was last made durable.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// The hub's tree, as far as it has come.
    pub hub: Tree,
    /// Its revision.
    pub revision: u64,
    /// The last proposal's.
    pub sequence: u64,
    /// The last question's number.
    pub questions: u64,
    /// The question that was open.
    pub asked: Option<Asked>,
    /// Paths not agreed on.
    pub rows: Vec<(RelPath, Row)>,
}

/// What has changed since it was last asked for, to be made durable in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The hub's tree: entries that came or changed, and `None` for those that went.
    pub entries: Vec<(RelPath, Option<Entry>)>,
    /// Paths not agreed on, and `None` for those that are now.
    pub rows: Vec<(RelPath, Option<Row>)>,
    /// Set when it changed.
    pub revision: Option<u64>,
    /// Set when it changed.
    pub sequence: Option<u64>,
    /// The last question's number and the open question, set when they changed.
    pub asked: Option<(u64, Option<Asked>)>,
}

impl Changes {
    /// Whether there is nothing to make durable.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.rows.is_empty() && self.revision.is_none() && self.sequence.is_none() && self.asked.is_none()
    }
}

/// Where a replica stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Of the hub's tree here.
    pub revision: u64,
    /// The stream is there and the node has caught up.
    pub caught_up: bool,
    /// All stands still.
    pub paused: bool,
    /// Still to be applied.
    pub down_files: u64,
    /// Their bytes.
    pub down_bytes: u64,
    /// Still to be accepted by the hub.
    pub up_files: u64,
    /// Of these, kept back under a lock or a question.
    pub held: u64,
    /// Files to be applied, or accepted by the hub, of which the last try failed: they are among the problems, or held.
    pub down_failed: u64,
    /// See `down_failed`.
    pub up_failed: u64,
    /// At most 100, in the order of paths.
    pub problems: Vec<(RelPath, Trouble)>,
    /// How many more there are.
    pub more_problems: u64,
    /// Open, with its text.
    pub question: Option<(u64, String)>,
}
