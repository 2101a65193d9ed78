//! Bytes of files as sealed chunks, and back, in bounded memory.
//!
//! A [`Writer`] takes bytes as they come, cuts, seals and stores them, and has a [`Content`] at the end; nothing of it is in the workspace until a commit names it,
//! and what no commit ever names goes with the sweep. Small files of one upload share chunks ([`Writer::add_small`]). A [`Reader`] brings any range of a file.

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use cortex_wire::{
    id::SessionId,
    limits,
    mirror::{
        cut::{self, Cuts, Cutter, Unfolding},
        entry::{Content, Sid, Span},
        op::Op,
        seal::{Keys, Opener, Sealed, Sealer},
    },
};

use super::{MirrorError, chunks::SessionChunks, propose, workspace::Workspace};
use crate::hub::Hub;

/// Sealed bytes that wait to be stored together: a synchronisation of the disk costs as much as writing this.
const STORE_BYTES: usize = 8 * 1024 * 1024;
/// A file up to here is one span; a larger one is cut.
const SMALL_BYTES: usize = limits::CHUNK_BYTES;

pub(super) fn failed(error: impl std::fmt::Display) -> MirrorError {
    MirrorError::Chunks(error.to_string())
}

pub(super) async fn chunks_of(hub: &Hub, workspace: &Workspace) -> Result<SessionChunks, MirrorError> {
    Ok(hub.mirrors.chunks.session(workspace.owner(), workspace.session).await?)
}

pub(super) async fn keys(hub: &Hub, session: SessionId) -> Result<Arc<Keys>, MirrorError> {
    let mut keys = Keys::new(session);
    for key in hub.workspace_keys(session).await? {
        keys.insert(key.epoch, &key.key[..].try_into().map_err(|_| MirrorError::Damaged)?);
    }
    Ok(Arc::new(keys))
}

/// A file that shares a chunk with others; its content is known when the chunk is full.
#[derive(Debug)]
struct Small<T> {
    what: T,
    hash: [u8; 32],
    range: Range<usize>,
}

/// Writes contents of one upload. `T`: what the caller calls its small files.
pub struct Writer<T> {
    chunks: SessionChunks,
    sealer: Sealer,
    cuts: Cuts,
    sealed: Vec<Sealed>,
    sealed_bytes: usize,
    bundle: Vec<u8>,
    small: Vec<Small<T>>,
    done: Vec<(T, Content)>,
}

impl<T> Writer<T> {
    /// For an upload into a workspace.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn new(hub: &Hub, workspace: &Workspace) -> Result<Self, MirrorError> {
        let cutter = Cutter::new(workspace.seed().to_le_bytes());
        Ok(Self {
            chunks: chunks_of(hub, workspace).await?,
            sealer: Sealer::new(keys(hub, workspace.session).await?),
            cuts: Cuts::new(cutter),
            sealed: Vec::new(),
            sealed_bytes: 0,
            bundle: Vec::new(),
            small: Vec::new(),
            done: Vec::new(),
        })
    }

    fn seal(&mut self, plain: &[u8]) -> Result<Sid, MirrorError> {
        let sealed = self.sealer.seal(plain).map_err(failed)?;
        let sid = sealed.sid();
        self.sealed_bytes += sealed.bytes().len();
        self.sealed.push(sealed);
        Ok(sid)
    }

    async fn store_when_full(&mut self) -> Result<(), MirrorError> {
        if self.sealed_bytes >= STORE_BYTES { self.store().await } else { Ok(()) }
    }

    async fn store(&mut self) -> Result<(), MirrorError> {
        let sealed = std::mem::take(&mut self.sealed);
        self.sealed_bytes = 0;
        if sealed.is_empty() { Ok(()) } else { Ok(self.chunks.put(sealed).await?) }
    }

    /// One file, in pieces.
    pub fn file(&mut self) -> FileWriter<'_, T> {
        self.cuts.reset();
        FileWriter { writer: self, hasher: blake3::Hasher::new(), size: 0, spans: Vec::new(), head: Some(Vec::new()) }
    }

    /// A file of at most a chunk, which may share one with its neighbours: see [`Self::take_done`].
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn add_small(&mut self, what: T, bytes: &[u8]) -> Result<(), MirrorError> {
        if bytes.is_empty() {
            self.done.push((what, Content::empty()));
            return Ok(());
        }
        if self.bundle.len() + bytes.len() > limits::CHUNK_BYTES {
            self.end_bundle().await?;
        }
        let start = self.bundle.len();
        self.bundle.extend_from_slice(bytes);
        self.small.push(Small { what, hash: *blake3::hash(bytes).as_bytes(), range: start..self.bundle.len() });
        Ok(())
    }

    async fn end_bundle(&mut self) -> Result<(), MirrorError> {
        if self.small.is_empty() {
            return Ok(());
        }
        let bundle = std::mem::take(&mut self.bundle);
        let sid = self.seal(&bundle)?;
        for Small { what, hash, range } in std::mem::take(&mut self.small) {
            let span = Span { sid, offset: short(range.start), length: short(range.len()) };
            self.done.push((what, Content { size: range.len() as u64, hash, depth: 0, spans: Arc::from([span]) }));
        }
        self.store_when_full().await
    }

    /// Small files whose contents are known, and stored: all of them with `end`.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn take_done(&mut self, end: bool) -> Result<Vec<(T, Content)>, MirrorError> {
        if end {
            self.end_bundle().await?;
        }
        self.store().await?;
        Ok(std::mem::take(&mut self.done))
    }

    /// How many of them there are.
    pub fn done(&self) -> usize {
        self.done.len()
    }
}

fn short(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Writes one file.
pub struct FileWriter<'a, T> {
    writer: &'a mut Writer<T>,
    hasher: blake3::Hasher,
    size: u64,
    spans: Vec<Span>,
    /// The whole file, while it is small.
    head: Option<Vec<u8>>,
}

impl<T> FileWriter<'_, T> {
    /// The next bytes.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), MirrorError> {
        self.size += bytes.len() as u64;
        if self.size > limits::FILE_BYTES {
            return Err(MirrorError::TooLarge);
        }
        self.hasher.update(bytes);
        if let Some(head) = &mut self.head {
            head.extend_from_slice(bytes);
            if head.len() <= SMALL_BYTES {
                return Ok(());
            }
            let head = self.head.take().unwrap_or_default();
            return self.cut(&head).await;
        }
        self.cut(bytes).await
    }

    async fn cut(&mut self, mut bytes: &[u8]) -> Result<(), MirrorError> {
        while !bytes.is_empty() {
            let space = self.writer.cuts.space();
            let taken = space.len().min(bytes.len());
            space[..taken].copy_from_slice(&bytes[..taken]);
            self.writer.cuts.filled(taken);
            bytes = &bytes[taken..];
            self.seal_chunks().await?;
        }
        Ok(())
    }

    async fn seal_chunks(&mut self) -> Result<(), MirrorError> {
        let writer = &mut *self.writer;
        while let Some(chunk) = writer.cuts.next_chunk() {
            let length = short(chunk.len());
            let sealed = writer.sealer.seal(chunk).map_err(failed)?;
            self.spans.push(Span { sid: sealed.sid(), offset: 0, length });
            writer.sealed_bytes += sealed.bytes().len();
            writer.sealed.push(sealed);
            writer.store_when_full().await?;
        }
        Ok(())
    }

    /// There are no more bytes: what the file holds, stored.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn end(mut self) -> Result<Content, MirrorError> {
        let hash = *self.hasher.finalize().as_bytes();
        match self.head.take() {
            Some(head) if head.is_empty() => {}
            Some(head) => {
                let sid = self.writer.seal(&head)?;
                self.spans.push(Span { sid, offset: 0, length: short(head.len()) });
            }
            None => {
                self.writer.cuts.end();
                self.seal_chunks().await?;
            }
        }
        let content = cut::content(self.size, hash, std::mem::take(&mut self.spans), |page| self.writer.seal(page))?;
        self.writer.store().await?;
        Ok(content)
    }
}

/// Opens chunks of one session; keeps the one that was opened last.
struct Chunks {
    chunks: SessionChunks,
    opener: Opener,
    last: Option<(Sid, Bytes)>,
}

impl Chunks {
    async fn new(hub: &Hub, workspace: &Workspace) -> Result<Self, MirrorError> {
        let opener = Opener::new(keys(hub, workspace.session).await?);
        Ok(Self { chunks: chunks_of(hub, workspace).await?, opener, last: None })
    }

    async fn span(&mut self, span: Span) -> Result<Bytes, MirrorError> {
        let plain = match &self.last {
            Some((sid, plain)) if *sid == span.sid => plain.clone(),
            _ => {
                let mut read = self.chunks.read(vec![span.sid]).await?;
                let sealed = read.pop().flatten().ok_or_else(|| failed(format!("chunk {} is missing", span.sid)))?;
                let plain = self.opener.open(sealed).map_err(failed)?;
                self.last = Some((span.sid, plain.clone()));
                plain
            }
        };
        let (start, end) = (span.offset as usize, span.offset as usize + span.length as usize);
        if end <= plain.len() { Ok(plain.slice(start..end)) } else { Err(failed("a span leaves its chunk")) }
    }

    /// The spans of a file's bytes, and the chunks of the pages that lead there.
    async fn unfold(&mut self, content: &Content) -> Result<(Vec<Span>, BTreeSet<Sid>), MirrorError> {
        let mut pages = BTreeSet::new();
        let mut unfolding = Unfolding::new(content).map_err(failed)?;
        while let Some(&page) = unfolding.wanted().first() {
            pages.insert(page.sid);
            let bytes = self.span(page).await?;
            unfolding.page(&bytes).map_err(failed)?;
        }
        Ok((unfolding.finish().map_err(failed)?, pages))
    }
}

/// Reads a range of a file.
pub struct Reader {
    chunks: Chunks,
    spans: std::vec::IntoIter<Span>,
    /// Bytes to be left out of what comes next.
    skip: u64,
    /// Bytes still to be given.
    left: u64,
}

impl Reader {
    /// For these bytes of a file.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn open(hub: &Hub, workspace: &Workspace, content: &Content, range: Range<u64>) -> Result<Self, MirrorError> {
        let mut chunks = Chunks::new(hub, workspace).await?;
        let (spans, _) = chunks.unfold(content).await?;
        let mut skip = range.start;
        let first = spans.iter().position(|span| {
            let here = u64::from(span.length) > skip;
            if !here {
                skip -= u64::from(span.length);
            }
            here
        });
        let spans = spans.into_iter().skip(first.unwrap_or(usize::MAX)).collect::<Vec<_>>().into_iter();
        Ok(Self { chunks, spans, skip, left: range.end.saturating_sub(range.start) })
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, MirrorError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(span) = self.spans.next() else { return Ok(None) };
        let mut bytes = self.chunks.span(span).await?;
        let skip = usize::try_from(std::mem::take(&mut self.skip)).unwrap_or(usize::MAX).min(bytes.len());
        let mut bytes = bytes.split_off(skip);
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// All of it, when it is at most `most` bytes.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn whole(mut self, most: usize) -> Result<Vec<u8>, MirrorError> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            if all.len() + bytes.len() > most {
                return Err(MirrorError::TooLarge);
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

/// The numbers of those changes that name a chunk which the hub does not hold, also deep in a long list of chunks.
///
/// # Errors
/// [`MirrorError`].
pub(super) async fn unheld(hub: &Hub, workspace: &Workspace, ops: &[Op]) -> Result<HashSet<usize>, MirrorError> {
    let named = propose::by_chunk(ops);
    let sids: Vec<Sid> = named.keys().copied().collect();
    if sids.is_empty() {
        return Ok(HashSet::new());
    }
    let held = chunks_of(hub, workspace).await?;
    let missing = held.missing(sids).await?;
    let mut unheld: HashSet<usize> = missing.iter().flat_map(|sid| named.get(sid).into_iter().flatten()).copied().collect();
    let deep = |(number, content): &(usize, &Content)| content.depth > 0 && !unheld.contains(number);
    let deep: Vec<(usize, &Content)> = propose::files(ops).filter(deep).collect();
    if deep.is_empty() {
        return Ok(unheld);
    }
    let mut chunks = Chunks::new(hub, workspace).await?;
    for (number, content) in deep {
        // A list that cannot be read is as good as one that is not there.
        let held = match chunks.unfold(content).await {
            Ok((spans, pages)) => {
                let sids: Vec<Sid> = spans.iter().map(|span| span.sid).chain(pages).collect::<BTreeSet<_>>().into_iter().collect();
                chunks.chunks.missing(sids).await?.is_empty()
            }
            Err(_) => false,
        };
        if !held {
            unheld.insert(number);
        }
    }
    Ok(unheld)
}

/// Adds every chunk that contents need to `named`.
///
/// # Errors
/// [`MirrorError`].
pub(super) async fn name_all(
    hub: &Hub,
    workspace: &Workspace,
    contents: impl Iterator<Item = Content>,
    named: &mut HashSet<Sid>,
) -> Result<(), MirrorError> {
    let mut chunks = Chunks::new(hub, workspace).await?;
    let mut pages = HashSet::new();
    for content in contents {
        named.extend(content.spans.iter().map(|span| span.sid));
        if content.depth == 0 {
            continue;
        }
        // Equal pages lead to equal chunks: most of a large file is as it was a revision ago.
        let known = pages.len();
        pages.extend(content.spans.iter().map(|span| span.sid));
        if pages.len() > known {
            let (spans, pages) = chunks.unfold(&content).await?;
            named.extend(spans.iter().map(|span| span.sid).chain(pages));
        }
    }
    Ok(())
}
