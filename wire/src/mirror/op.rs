//! Changes of a tree, batches of them as they travel, and the shortest changes that lead from one tree to another.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, Bytes};
use prost::{
    Message,
    encoding::{DecodeContext, decode_key, decode_varint, skip_field},
};

use super::{
    entry::{ChunkTable, Entry, EntryError, Hash, sids},
    path::{PathError, RelPath},
    tree::{Change, Subtree, Tree},
};
use crate::{limits, schema};

/// One change. `parent` stands for what was there before; for a directory that goes or moves, with everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// An entry comes, or takes another's place. Directories above it come into being.
    Put {
        /// Where.
        path: RelPath,
        /// What was there.
        parent: Option<Hash>,
        /// What is there now.
        entry: Entry,
    },
    /// An entry goes, with everything below it.
    Remove {
        /// Where.
        path: RelPath,
        /// What was there.
        parent: Hash,
    },
    /// An entry moves, with everything below it, to where nothing is.
    Move {
        /// From where.
        from: RelPath,
        /// To where.
        to: RelPath,
        /// What was at `from`.
        parent: Hash,
    },
}

/// Why a batch from the wire is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Its size, or the number of its changes, is above the limit.
    #[error("a batch above the limit")]
    TooLarge,
    /// It does not decompress to what it says.
    #[error("a batch that does not decompress to its size")]
    Compression,
    /// It is not the message it should be, or a change of no known kind.
    #[error("a batch that does not decode")]
    Malformed,
    /// A path that cannot be.
    #[error("a change of an impossible path: {0}")]
    Path(#[from] PathError),
    /// An entry that cannot be.
    #[error("a change to an impossible entry: {0}")]
    Entry(#[from] EntryError),
}

/// zstd's own default: batches are small and rare, chunks are where speed counts.
const LEVEL: i32 = 3;

impl Op {
    /// Where it makes its change; a move's origin.
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Put { path, .. } | Self::Remove { path, .. } => path,
            Self::Move { from, .. } => from,
        }
    }

    /// Where a move goes.
    pub fn target(&self) -> Option<&RelPath> {
        if let Self::Move { to, .. } = self { Some(to) } else { None }
    }

    /// At most how many bytes it takes in a batch.
    pub fn weight(&self) -> usize {
        match self {
            Self::Put { path, entry, .. } => {
                let target = if let Entry::Symlink(target) = entry { target.len() } else { 0 };
                path.as_str().len() + target + 112 + 56 * entry.spans().len()
            }
            Self::Remove { path, .. } => path.as_str().len() + 48,
            Self::Move { from, to, .. } => from.as_str().len() + to.as_str().len() + 56,
        }
    }

    fn to_schema(&self, chunks: &mut ChunkTable) -> schema::Op {
        use schema::op::Op as Kind;
        let op = match self {
            Self::Put { path, parent, entry } => Kind::Put(schema::Put {
                path: path.to_string(),
                parent: parent.map(Hash::to_bytes).unwrap_or_default(),
                entry: Some(entry.to_schema(chunks)),
            }),
            Self::Remove { path, parent } => Kind::Remove(schema::Remove { path: path.to_string(), parent: parent.to_bytes() }),
            Self::Move { from, to, parent } => {
                Kind::Move(schema::Move { from: from.to_string(), to: to.to_string(), parent: parent.to_bytes() })
            }
        };
        schema::Op { op: Some(op) }
    }

    fn from_schema(op: &schema::Op, chunks: &[super::entry::Sid]) -> Result<Self, BatchError> {
        use schema::op::Op as Kind;
        Ok(match &op.op {
            Some(Kind::Put(put)) => Self::Put {
                path: put.path.parse()?,
                parent: if put.parent.is_empty() { None } else { Some(Hash::from_slice(&put.parent)?) },
                entry: Entry::from_schema(put.entry.as_ref().ok_or(BatchError::Malformed)?, chunks)?,
            },
            Some(Kind::Remove(remove)) => Self::Remove { path: remove.path.parse()?, parent: Hash::from_slice(&remove.parent)? },
            Some(Kind::Move(rename)) => {
                Self::Move { from: rename.from.parse()?, to: rename.to.parse()?, parent: Hash::from_slice(&rename.parent)? }
            }
            None => return Err(BatchError::Malformed),
        })
    }
}

/// A batch as a message.
pub fn encode(ops: &[Op]) -> schema::Batch {
    let mut chunks = ChunkTable::default();
    let ops = ops.iter().map(|op| op.to_schema(&mut chunks)).collect();
    schema::Batch { chunks: chunks.into_schema(), ops }
}

/// The changes of a message.
///
/// # Errors
/// [`BatchError`].
pub fn decode(batch: &schema::Batch) -> Result<Vec<Op>, BatchError> {
    let chunks = sids(&batch.chunks)?;
    batch.ops.iter().map(|op| Op::from_schema(op, &chunks)).collect()
}

/// A batch as it travels and rests: compressed when that is shorter.
pub fn pack(ops: &[Op]) -> schema::PackedBatch {
    let plain = encode(ops).encode_to_vec();
    match zstd::bulk::compress(&plain, LEVEL) {
        Ok(packed) if packed.len() < plain.len() => {
            schema::PackedBatch { size: u32::try_from(plain.len()).unwrap_or(u32::MAX), bytes: packed.into() }
        }
        _ => schema::PackedBatch { bytes: plain.into(), size: 0 },
    }
}

/// The changes of a packed batch, of which there may be `max_ops`.
///
/// # Errors
/// [`BatchError`]. What is refused takes no more memory than a batch within the limits.
pub fn unpack(packed: &schema::PackedBatch, max_ops: usize) -> Result<Vec<Op>, BatchError> {
    let size = packed.size as usize;
    if packed.bytes.len().max(size) > limits::BATCH_BYTES {
        return Err(BatchError::TooLarge);
    }
    let plain = if size == 0 {
        packed.bytes.clone()
    } else {
        let plain = zstd::bulk::decompress(&packed.bytes, size).map_err(|_| BatchError::Compression)?;
        if plain.len() != size {
            return Err(BatchError::Compression);
        }
        plain.into()
    };
    count(plain.clone(), max_ops)?;
    decode(&schema::Batch::decode(plain).map_err(|_| BatchError::Malformed)?)
}

/// Counts before anything is built: two bytes on the wire are over a hundred in memory.
fn count(mut bytes: Bytes, max_ops: usize) -> Result<(), BatchError> {
    let (mut ops, mut chunks) = (0usize, 0usize);
    while bytes.has_remaining() {
        let (tag, kind) = decode_key(&mut bytes).map_err(|_| BatchError::Malformed)?;
        match tag {
            1 | 2 => {
                let length = decode_varint(&mut bytes).map_err(|_| BatchError::Malformed)? as usize;
                if length > bytes.remaining() || (tag == 1 && length != 32) {
                    return Err(BatchError::Malformed);
                }
                bytes.advance(length);
                if tag == 1 { chunks += 1 } else { ops += 1 }
            }
            _ => skip_field(kind, tag, &mut bytes, DecodeContext::default()).map_err(|_| BatchError::Malformed)?,
        }
    }
    if ops > max_ops || chunks > limits::BATCH_BYTES / 32 { Err(BatchError::TooLarge) } else { Ok(()) }
}

/// Cuts a list into batches within the limits.
pub fn split(ops: &[Op]) -> Vec<&[Op]> {
    let mut out = Vec::new();
    let mut rest = ops;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(fitting(rest));
        out.push(batch);
        rest = later;
    }
    out
}

/// How many of the first changes make one batch; at least 1 of a list that is not empty.
pub fn fitting(ops: &[Op]) -> usize {
    let mut bytes = 0;
    let within = |op: &&Op| {
        bytes += op.weight();
        bytes <= limits::BATCH_BYTES
    };
    ops.iter().take(limits::BATCH_OPS).take_while(within).count().max(usize::from(!ops.is_empty()))
}

/// Changes that lead from one tree to the other, few of them: what only changed its place moves, a directory goes as a whole. They are
/// to be made in this order, and each names as parent what it finds then. Costs what differs.
pub fn compact(before: &Tree, after: &Tree) -> Vec<Op> {
    if before.is_empty() {
        return after.iter().map(|(path, entry)| Op::Put { path, parent: None, entry: entry.clone() }).collect();
    }
    let changes = before.changes(after);
    let mut plan = Plan { origins: Origins::of(&changes), work: before.clone(), ops: Vec::new() };
    for change in &changes {
        match (&change.before, &change.after) {
            (None, Some(after)) => plan.bring(&change.path, after),
            // A file that became a directory gives way at once, a directory that became a file only when all that moves has left it.
            (Some(before), Some(after)) if !before.entry().is_directory() => plan.bring(&change.path, after),
            _ => {}
        }
    }
    for change in &changes {
        match (&change.before, &change.after) {
            (Some(before), Some(after)) if before.entry().is_directory() => plan.put(&change.path, after.entry()),
            (Some(_), None) => plan.remove(&change.path),
            _ => {}
        }
    }
    plan.ops
}

struct Plan {
    origins: Origins,
    work: Tree,
    ops: Vec<Op>,
}

impl Plan {
    fn push(&mut self, op: Op) {
        if self.work.apply(&op).is_ok() {
            self.ops.push(op);
        }
    }

    fn put(&mut self, path: &RelPath, entry: &Entry) {
        self.push(Op::Put { path: path.clone(), parent: self.work.hash(path), entry: entry.clone() });
    }

    fn remove(&mut self, path: &RelPath) {
        if let Some(parent) = self.work.hash(path) {
            self.push(Op::Remove { path: path.clone(), parent });
        }
    }

    /// Makes `after` lie at `path`: moved there as a whole, or in parts, or put.
    fn bring(&mut self, path: &RelPath, after: &Subtree) {
        if self.work.get(path).is_none()
            && let Some(from) = self.origins.take(after.hash(), &self.work)
        {
            return self.push(Op::Move { from, to: path.clone(), parent: after.hash() });
        }
        self.put(path, after.entry());
        for (name, child) in after.children() {
            self.bring(&path.child(name), &child);
        }
    }
}

/// What went, by hash: where something equal that came may have come from.
struct Origins(HashMap<Hash, VecDeque<RelPath>>);

impl Origins {
    fn of(changes: &[Change]) -> Self {
        let mut origins: HashMap<Hash, VecDeque<RelPath>> = HashMap::new();
        let comes = changes.iter().any(|change| change.after.is_some());
        let goes = |change: &&Change| change.after.is_none() || change.before.as_ref().is_some_and(|before| before.entry().is_directory());
        for change in changes.iter().filter(|_| comes).filter(goes) {
            if let Some(before) = &change.before {
                let skip = usize::from(change.after.is_some());
                before.hashes(&change.path, &mut |path, hash| origins.entry(hash).or_default().push_back(path), skip == 1);
            }
        }
        Self(origins)
    }

    /// A place that still holds it.
    fn take(&mut self, hash: Hash, work: &Tree) -> Option<RelPath> {
        let places = self.0.get_mut(&hash)?;
        while let Some(path) = places.pop_front() {
            if work.hash(&path) == Some(hash) {
                return Some(path);
            }
        }
        None
    }
}
