//! What lies at a path of a workspace, and the hash that stands for it.
//!
//! A file's hash covers its bytes, its size and whether it may be executed, not how its bytes are cut and sealed: the same file
//! sealed otherwise is the same entry. A file's bytes are spans of opened chunks. Small files share chunks; the list of a large file
//! is itself kept in chunks ([`Content::depth`]).

use std::{collections::HashMap, fmt, sync::Arc, sync::LazyLock};

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use bytes::Bytes;
use prost::Message;

use crate::{limits, schema};

/// Levels of pages above a span list. Two levels hold 16 GiB in the smallest chunks; one is to spare.
pub const PAGE_DEPTH: u32 = 3;

/// Why an entry from the wire is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// No kind that this build knows.
    #[error("an entry of no known kind")]
    Kind,
    /// A hash or a sealed id is not 32 bytes long.
    #[error("a hash that is not 32 bytes long")]
    Hash,
    /// A span names a chunk that is not in the list.
    #[error("a span of a chunk that is not listed")]
    Index,
    /// A span is empty or leaves its chunk, or there are too many.
    #[error("a span outside its chunk, or too many spans")]
    Span,
    /// Spans do not sum up to the file's size, or the size is above the limit.
    #[error("a size that its spans do not have, or above the limit")]
    Size,
    /// A symlink without a target, or with an impossible one.
    #[error("a symlink's target that cannot be one")]
    Target,
    /// The bytes are not an entry.
    #[error("bytes that are not an entry")]
    Malformed,
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// From the wire.
            ///
            /// # Errors
            /// [`EntryError::Hash`] when there are not 32 bytes.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, EntryError> {
                bytes.try_into().map(Self).map_err(|_| EntryError::Hash)
            }

            /// For the wire.
            pub fn to_bytes(self) -> Bytes {
                Bytes::copy_from_slice(&self.0)
            }
        }

        impl fmt::Display for $name {
            /// 64 characters of hexadecimal.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}…", data_encoding::HEXLOWER.encode(&self.0[..4]))
            }
        }

        impl std::str::FromStr for $name {
            type Err = EntryError;
            fn from_str(text: &str) -> Result<Self, EntryError> {
                let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| EntryError::Hash)?;
                Self::from_slice(&bytes)
            }
        }
    };
}

digest!(
    /// Stands for an entry: [`Entry::hash`], or a directory with all below it ([`super::tree::Tree::hash`]).
    Hash
);
digest!(
    /// A sealed chunk's name: BLAKE3 of its sealed bytes.
    Sid
);

/// Bytes inside one opened chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// The chunk.
    pub sid: Sid,
    /// From here, in bytes of the opened chunk.
    pub offset: u32,
    /// So many bytes; never 0.
    pub length: u32,
}

/// A file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// In bytes.
    pub size: u64,
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
    /// 0: the spans are the file. n: the spans are an encoded `SpanPage` whose spans have depth n - 1.
    pub depth: u32,
    /// In order.
    pub spans: Arc<[Span]>,
}

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File {
        /// Its bytes.
        content: Content,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A directory. What is below it has entries of its own.
    Directory,
    /// A symlink: its target, as data.
    Symlink(Arc<str>),
}

/// A directory, to lend.
pub(super) static DIRECTORY: Entry = Entry::Directory;

static FILE_KEY: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context("cortex-mesh/v1/entry file"));
static SYMLINK_KEY: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context("cortex-mesh/v1/entry symlink"));
static DIRECTORY_KEY: LazyLock<ContextKey> = LazyLock::new(|| hash_derive_key_context("cortex-mesh/v1/entry directory"));
static DIRECTORY_HASH: LazyLock<Hash> = LazyLock::new(|| directory_hash(std::iter::empty()));

fn finish(hasher: &blake3::Hasher) -> Hash {
    Hash(*hasher.finalize().as_bytes())
}

/// The hash of a file with these bytes.
pub fn file_hash(size: u64, content: &[u8; 32], executable: bool) -> Hash {
    let mut bytes = [0; 41];
    bytes[0] = executable.into();
    bytes[1..9].copy_from_slice(&size.to_le_bytes());
    bytes[9..].copy_from_slice(content);
    finish(blake3::Hasher::new_from_context_key(&FILE_KEY).update(&bytes))
}

/// The hash of a symlink.
pub fn symlink_hash(target: &str) -> Hash {
    finish(blake3::Hasher::new_from_context_key(&SYMLINK_KEY).update(target.as_bytes()))
}

/// The hash of a directory with these children, sorted by name. Without children: of a directory as an entry.
pub fn directory_hash<'a>(children: impl Iterator<Item = (&'a str, Hash)>) -> Hash {
    let mut hasher = blake3::Hasher::new_from_context_key(&DIRECTORY_KEY);
    for (name, hash) in children {
        hasher.update(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&hash.0);
    }
    finish(&hasher)
}

impl Hash {
    /// Every directory's hash as an entry, whatever is below it.
    pub fn directory() -> Self {
        *DIRECTORY_HASH
    }
}

impl Content {
    /// The empty file.
    pub fn empty() -> Self {
        Self { size: 0, hash: *blake3::hash(&[]).as_bytes(), depth: 0, spans: Arc::from([]) }
    }

    /// Whether sizes and bounds are possible.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn check(&self) -> Result<(), EntryError> {
        if self.size > limits::FILE_BYTES || self.depth > PAGE_DEPTH {
            return Err(EntryError::Size);
        }
        if self.spans.len() > limits::SPANS {
            return Err(EntryError::Span);
        }
        // Each term is below 2^32 and there are at most 512: no overflow.
        let mut sum = 0u64;
        for span in &*self.spans {
            let end = u64::from(span.offset) + u64::from(span.length);
            if span.length == 0 || end > limits::CHUNK_BYTES as u64 {
                return Err(EntryError::Span);
            }
            sum += u64::from(span.length);
        }
        let fits = if self.depth == 0 { sum == self.size } else { sum > 0 && self.size > 0 };
        if fits { Ok(()) } else { Err(EntryError::Size) }
    }
}

impl Entry {
    /// What stands for it. A directory's is the same whatever is below it.
    pub fn hash(&self) -> Hash {
        match self {
            Self::File { content, executable } => file_hash(content.size, &content.hash, *executable),
            Self::Directory => Hash::directory(),
            Self::Symlink(target) => symlink_hash(target),
        }
    }

    /// Bytes of a file, 0 for everything else.
    pub fn size(&self) -> u64 {
        if let Self::File { content, .. } = self { content.size } else { 0 }
    }

    /// The spans of a file, none for everything else.
    pub fn spans(&self) -> &[Span] {
        if let Self::File { content, .. } = self { &content.spans } else { &[] }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self, Self::Directory)
    }

    /// For the wire. `chunks` collects the sealed ids that the spans name.
    pub fn to_schema(&self, chunks: &mut ChunkTable) -> schema::Entry {
        use schema::entry::Kind;
        let (kind, executable) = match self {
            Self::File { content, executable } => (Kind::File(content_to_schema(content, chunks)), *executable),
            Self::Directory => (Kind::Directory(true), false),
            Self::Symlink(target) => (Kind::Symlink(target.to_string()), false),
        };
        schema::Entry { executable, kind: Some(kind) }
    }

    /// From the wire, where spans name `chunks` by index.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn from_schema(entry: &schema::Entry, chunks: &[Sid]) -> Result<Self, EntryError> {
        use schema::entry::Kind;
        match &entry.kind {
            Some(Kind::File(content)) => Ok(Self::File { content: content_from_schema(content, chunks)?, executable: entry.executable }),
            Some(Kind::Directory(true)) if !entry.executable => Ok(Self::Directory),
            Some(Kind::Symlink(target)) if !entry.executable => {
                if target.is_empty() || target.len() > limits::PATH_BYTES || target.contains('\0') {
                    return Err(EntryError::Target);
                }
                Ok(Self::Symlink(target.as_str().into()))
            }
            _ => Err(EntryError::Kind),
        }
    }

    /// One entry by itself, as it rests in a store.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut chunks = ChunkTable::default();
        let entry = Some(self.to_schema(&mut chunks));
        let put = schema::Put { entry, ..schema::Put::default() };
        schema::Batch { chunks: chunks.into_schema(), ops: vec![schema::Op { op: Some(schema::op::Op::Put(put)) }] }.encode_to_vec()
    }

    /// What [`Entry::to_bytes`] made.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EntryError> {
        let batch = schema::Batch::decode(bytes).map_err(|_| EntryError::Malformed)?;
        let chunks = sids(&batch.chunks)?;
        match batch.ops.first().and_then(|op| op.op.as_ref()) {
            Some(schema::op::Op::Put(schema::Put { entry: Some(entry), .. })) => Self::from_schema(entry, &chunks),
            _ => Err(EntryError::Malformed),
        }
    }
}

fn content_to_schema(content: &Content, chunks: &mut ChunkTable) -> schema::Content {
    schema::Content {
        size: content.size,
        hash: Bytes::copy_from_slice(&content.hash),
        depth: content.depth,
        spans: spans_to_schema(&content.spans, chunks),
    }
}

fn content_from_schema(content: &schema::Content, chunks: &[Sid]) -> Result<Content, EntryError> {
    let content = Content {
        size: content.size,
        hash: content.hash.as_ref().try_into().map_err(|_| EntryError::Hash)?,
        depth: content.depth,
        spans: spans_from_schema(&content.spans, chunks)?.into(),
    };
    content.check()?;
    Ok(content)
}

/// Spans for the wire.
pub fn spans_to_schema(spans: &[Span], chunks: &mut ChunkTable) -> Vec<schema::ChunkSpan> {
    spans.iter().map(|span| schema::ChunkSpan { chunk: chunks.index(span.sid), offset: span.offset, length: span.length }).collect()
}

/// Spans from the wire. Their bounds are for [`Content::check`], or the page's reader.
///
/// # Errors
/// [`EntryError::Index`], [`EntryError::Span`].
pub fn spans_from_schema(spans: &[schema::ChunkSpan], chunks: &[Sid]) -> Result<Vec<Span>, EntryError> {
    if spans.len() > limits::SPANS {
        return Err(EntryError::Span);
    }
    let span = |span: &schema::ChunkSpan| {
        let sid = *chunks.get(span.chunk as usize).ok_or(EntryError::Index)?;
        Ok(Span { sid, offset: span.offset, length: span.length })
    };
    spans.iter().map(span).collect()
}

/// Sealed ids from the wire.
///
/// # Errors
/// [`EntryError::Hash`].
pub fn sids(chunks: &[Bytes]) -> Result<Vec<Sid>, EntryError> {
    chunks.iter().map(|sid| Sid::from_slice(sid)).collect()
}

/// The sealed ids of one message, each once, named by index.
#[derive(Debug, Default)]
pub struct ChunkTable {
    sids: Vec<Sid>,
    index: HashMap<Sid, u32>,
}

impl ChunkTable {
    /// The index of a sealed id, which is added when it is new.
    pub fn index(&mut self, sid: Sid) -> u32 {
        *self.index.entry(sid).or_insert_with(|| {
            self.sids.push(sid);
            u32::try_from(self.sids.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// The list for the message.
    pub fn into_schema(self) -> Vec<Bytes> {
        self.sids.into_iter().map(Sid::to_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(sid: u8, offset: u32, length: u32) -> Span {
        Span { sid: Sid([sid; 32]), offset, length }
    }

    fn file(size: u64, spans: &[Span]) -> Entry {
        Entry::File { content: Content { size, hash: [7; 32], depth: 0, spans: spans.into() }, executable: false }
    }

    #[test]
    fn an_entry_comes_back_from_its_bytes() {
        let shared = file(30, &[span(1, 5, 10), span(2, 0, 10), span(1, 0, 10)]);
        for entry in [shared, Entry::Directory, Entry::Symlink("../x".into()), Entry::File { content: Content::empty(), executable: true }]
        {
            assert_eq!(Entry::from_bytes(&entry.to_bytes()), Ok(entry));
        }
    }

    #[test]
    fn the_hash_covers_what_the_file_is_and_not_how_it_is_sealed() {
        let a = file(10, &[span(1, 0, 10)]);
        assert_eq!(a.hash(), file(10, &[span(9, 4, 6), span(8, 0, 4)]).hash());
        assert_ne!(a.hash(), file(11, &[span(1, 0, 11)]).hash());
        let Entry::File { content, .. } = a.clone() else { panic!() };
        assert_ne!(a.hash(), Entry::File { content, executable: true }.hash());
        assert_eq!(Entry::Directory.hash(), directory_hash(std::iter::empty()));
        assert_ne!(Entry::Symlink("a".into()).hash(), Entry::Symlink("b".into()).hash());
    }

    #[test]
    fn spans_that_cannot_be_are_refused() {
        let refused = |entry: Entry| Entry::from_bytes(&entry.to_bytes()).unwrap_err();
        assert_eq!(refused(file(9, &[span(1, 0, 10)])), EntryError::Size);
        assert_eq!(refused(file(0, &[span(1, 0, 0)])), EntryError::Span);
        assert_eq!(refused(file(10, &[span(1, u32::MAX, 10)])), EntryError::Span);
        assert_eq!(refused(file(u64::MAX, &[])), EntryError::Size);
        assert_eq!(refused(file(513, &vec![span(1, 0, 1); 513])), EntryError::Span);
        let entry = schema::Entry {
            kind: Some(schema::entry::Kind::File(schema::Content {
                size: 1,
                hash: Bytes::from_static(&[0; 32]),
                depth: 0,
                spans: vec![schema::ChunkSpan { chunk: 1, offset: 0, length: 1 }],
            })),
            executable: false,
        };
        assert_eq!(Entry::from_schema(&entry, &[Sid([0; 32])]), Err(EntryError::Index));
        assert_eq!(Entry::from_schema(&schema::Entry::default(), &[]), Err(EntryError::Kind));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(entry) = Entry::from_bytes(&bytes) {
                prop_assert_eq!(Entry::from_bytes(&entry.to_bytes()), Ok(entry));
            }
        }
    }
}
