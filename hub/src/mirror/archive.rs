//! Folders as tar streams, both ways, in bounded memory.
//!
//! What comes up goes in as one commit, or not at all. Members that a workspace cannot hold (devices, hard links, paths that lead outside) are named in the answer and left out.

use std::{
    io::{self, Read},
    sync::Arc,
};

use bytes::{Buf as _, Bytes};
use cortex_wire::{
    limits,
    mirror::{
        entry::{Content, Entry},
        path::RelPath,
    },
    text::clean,
};
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;

use super::{
    MirrorError,
    content::{Reader, Writer},
    edit::{Edit, Expect},
    workspace::{Head, Workspace},
};
use crate::{account::Actor, hub::Hub};

/// Members of one archive.
const MEMBERS: usize = 200_000;
/// Members that are named as left out.
const SKIPPED: usize = 100;
/// A member up to here shares a chunk with its neighbours.
const SHARED_BYTES: u64 = 64 * 1024;
/// Read from a member at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces on their way from the reader of the archive to the writer of chunks.
const PIECES: usize = 8;

/// A member that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Skipped {
    /// As the archive calls it.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// What became of an archive.
#[derive(Debug, Clone, Default)]
pub struct Unpacked {
    /// Files, folders and symlinks that are in the workspace now.
    pub entries: usize,
    /// Bytes of the files.
    pub bytes: u64,
    /// What was left out; the first of them.
    pub skipped: Vec<Skipped>,
    /// And how many more.
    pub more_skipped: usize,
}

/// A body as something that blocks: for the thread that reads the archive.
struct Body {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    now: Bytes,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece?,
                None => return Ok(0),
            }
        }
        let taken = self.now.len().min(buffer.len());
        self.now.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}

/// What the archive's reader finds.
enum Piece {
    Begin(RelPath, Member),
    Data(Vec<u8>),
    Skipped(Skipped),
}

enum Member {
    File { size: u64, executable: bool },
    Directory,
    Symlink(Arc<str>),
}

/// Reads an archive, on a thread of its own.
fn read_archive(body: Body, base: &RelPath, out: &mpsc::Sender<Piece>) -> io::Result<()> {
    let mut archive = tar::Archive::new(body);
    for member in archive.entries()? {
        let mut member = member?;
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        let found = match place(&member.path_bytes(), base) {
            Ok(None) => continue,
            Ok(Some(path)) => kind_of(&member).map(|kind| (path, kind)),
            Err(reason) => Err(reason),
        };
        match found {
            Err(reason) => {
                let skipped = Skipped { path: clean(&name, limits::TEXT_BYTES), reason };
                out.blocking_send(Piece::Skipped(skipped)).map_err(|_| gone())?;
            }
            Ok((path, kind)) => {
                let is_file = matches!(kind, Member::File { .. });
                out.blocking_send(Piece::Begin(path, kind)).map_err(|_| gone())?;
                if is_file {
                    send_data(&mut member, out)?;
                }
            }
        }
    }
    Ok(())
}

fn send_data(member: &mut impl Read, out: &mpsc::Sender<Piece>) -> io::Result<()> {
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        if member.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece)? == 0 {
            return Ok(());
        }
        out.blocking_send(Piece::Data(piece)).map_err(|_| gone())?;
    }
}

fn gone() -> io::Error {
    io::Error::other("the upload ended")
}

/// Where a member belongs; `None`: the archive's own root.
fn place(name: &[u8], base: &RelPath) -> Result<Option<RelPath>, String> {
    let name = std::str::from_utf8(name).map_err(|_| "its name is not UTF-8".to_owned())?;
    let parts: Vec<&str> = name.trim_end_matches('/').split('/').filter(|part| *part != ".").collect();
    let name = parts.join("/");
    if name.is_empty() {
        return Ok(None);
    }
    base.join(&name).map(Some).map_err(|error| error.to_string())
}

fn kind_of<R: Read>(member: &tar::Entry<'_, R>) -> Result<Member, String> {
    let header = member.header();
    match header.entry_type() {
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            let executable = header.mode().unwrap_or(0) & 0o100 != 0;
            if member.size() > limits::FILE_BYTES {
                Err("it is too large".into())
            } else {
                Ok(Member::File { size: member.size(), executable })
            }
        }
        tar::EntryType::Directory => Ok(Member::Directory),
        tar::EntryType::Symlink => {
            let target = member.link_name_bytes().ok_or("a symlink without a target")?;
            let target = std::str::from_utf8(&target).map_err(|_| "its target is not UTF-8".to_owned())?;
            Ok(Member::Symlink(target.into()))
        }
        other => Err(format!("a workspace holds files, folders and symlinks, not {other:?}")),
    }
}

/// Collects what is to be committed.
struct Unpacking<'a> {
    writer: &'a mut Writer<(RelPath, bool)>,
    edits: Vec<Edit>,
    done: Unpacked,
}

impl Unpacking<'_> {
    fn put(&mut self, path: RelPath, entry: Entry) {
        self.done.bytes += entry.size();
        self.edits.push(Edit::Put { path, expect: Expect::Any, entry });
    }

    fn file(&mut self, (path, executable): (RelPath, bool), content: Content) {
        self.put(path, Entry::File { content, executable });
    }

    /// Takes one member with its data; answers the piece behind it.
    async fn take(&mut self, piece: Piece, pieces: &mut mpsc::Receiver<Piece>) -> Result<Option<Piece>, MirrorError> {
        if self.edits.len() + self.writer.done() >= MEMBERS {
            return Err(MirrorError::Invalid(format!("an archive has at most {MEMBERS} members; send it in parts")));
        }
        match piece {
            Piece::Data(_) => {}
            Piece::Skipped(skipped) if self.done.skipped.len() < SKIPPED => self.done.skipped.push(skipped),
            Piece::Skipped(_) => self.done.more_skipped += 1,
            Piece::Begin(path, Member::Directory) => self.put(path, Entry::Directory),
            Piece::Begin(path, Member::Symlink(target)) => self.put(path, Entry::Symlink(target)),
            Piece::Begin(path, Member::File { size, executable }) => return self.take_file(path, executable, size, pieces).await,
        }
        Ok(pieces.recv().await)
    }

    async fn take_file(
        &mut self,
        path: RelPath,
        executable: bool,
        size: u64,
        pieces: &mut mpsc::Receiver<Piece>,
    ) -> Result<Option<Piece>, MirrorError> {
        if size <= SHARED_BYTES {
            let mut bytes = Vec::new();
            let next = loop {
                match pieces.recv().await {
                    Some(Piece::Data(piece)) => bytes.extend_from_slice(&piece),
                    next => break next,
                }
            };
            self.writer.add_small((path, executable), &bytes).await?;
            if self.writer.done() >= limits::BATCH_OPS {
                self.collect(false).await?;
            }
            return Ok(next);
        }
        let mut file = self.writer.file();
        let next = loop {
            match pieces.recv().await {
                Some(Piece::Data(piece)) => file.write(&piece).await?,
                next => break next,
            }
        };
        let content = file.end().await?;
        self.file((path, executable), content);
        Ok(next)
    }

    async fn collect(&mut self, end: bool) -> Result<(), MirrorError> {
        for (what, content) in self.writer.take_done(end).await? {
            self.file(what, content);
        }
        Ok(())
    }
}

impl Workspace {
    /// Puts what an archive holds below `base`, as one commit.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn unpack(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        actor: &Actor,
        fence: Option<u64>,
        base: RelPath,
        body: mpsc::Receiver<io::Result<Bytes>>,
    ) -> Result<(Arc<Head>, Unpacked), MirrorError> {
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let below = base.clone();
        let reader = tokio::task::spawn_blocking(move || read_archive(Body { pieces: body, now: Bytes::new() }, &below, &sender));
        let mut writer = Writer::new(hub, self).await?;
        let mut unpacking = Unpacking { writer: &mut writer, edits: Vec::new(), done: Unpacked::default() };
        let mut next = pieces.recv().await;
        while let Some(piece) = next {
            next = unpacking.take(piece, &mut pieces).await?;
        }
        match reader.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(MirrorError::BrokenUpload(error.to_string())),
            Err(_) => return Err(MirrorError::Failed),
        }
        unpacking.collect(true).await?;
        let Unpacking { edits, mut done, .. } = unpacking;
        done.entries = edits.len();
        let what = if base.is_root() { "upload".to_owned() } else { format!("upload {base}") };
        let head = self.edit(hub, actor, fence, &what, edits).await?;
        Ok((head, done))
    }
}

/// A folder on its way down: the bytes of an archive, member after member.
pub struct Packer {
    hub: Arc<Hub>,
    workspace: Arc<Workspace>,
    members: std::vec::IntoIter<(String, Entry)>,
    reader: Option<(Reader, u64)>,
    now_ms: i64,
    ended: bool,
}

/// Members of an archive are padded to blocks.
const BLOCK_BYTES: u64 = 512;

impl Packer {
    /// Of a path of a tree and everything below it, named relative to it.
    pub fn new(hub: &Arc<Hub>, workspace: &Arc<Workspace>, tree: &cortex_wire::mirror::tree::Tree, path: &RelPath) -> Self {
        let name = |at: &RelPath| match at.below(path) {
            Some(below) => below.to_owned(),
            None => at.name().to_owned(),
        };
        // The folder itself is where the archive is unpacked.
        let inside = |at: &RelPath, entry: &Entry| !(at == path && entry.is_directory());
        let members: Vec<_> =
            tree.below(path).filter(|(at, entry)| inside(at, entry)).map(|(at, entry)| (name(&at), entry.clone())).collect();
        Self {
            hub: hub.clone(),
            workspace: workspace.clone(),
            members: members.into_iter(),
            reader: None,
            now_ms: hub.now_ms(),
            ended: false,
        }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, MirrorError> {
        if let Some((reader, padding)) = &mut self.reader {
            if let Some(bytes) = reader.next().await? {
                return Ok(Some(bytes));
            }
            let padding = vec![0; usize::try_from(*padding).unwrap_or(0)];
            self.reader = None;
            if !padding.is_empty() {
                return Ok(Some(padding.into()));
            }
        }
        let Some((name, entry)) = self.members.next() else {
            let last = (!self.ended).then(|| Bytes::from_static(&[0; 2 * BLOCK_BYTES as usize]));
            self.ended = true;
            return Ok(last);
        };
        let header = self.header(&name, &entry).map_err(|error| MirrorError::Impossible(error.to_string()))?;
        if let Entry::File { content, .. } = &entry {
            let reader = Reader::open(&self.hub, &self.workspace, content, 0..content.size).await?;
            self.reader = Some((reader, content.size.next_multiple_of(BLOCK_BYTES) - content.size));
        }
        Ok(Some(header))
    }

    fn header(&self, name: &str, entry: &Entry) -> io::Result<Bytes> {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(u64::try_from(self.now_ms / 1000).unwrap_or(0));
        header.set_size(entry.size());
        // Long names take records of their own before the header, which the builder knows to write; the data follows from elsewhere.
        let mut builder = tar::Builder::new(Vec::new());
        match entry {
            Entry::File { executable, .. } => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(if *executable { 0o755 } else { 0o644 });
                builder.append_data(&mut header, name, io::empty())?;
            }
            Entry::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o755);
                builder.append_data(&mut header, format!("{name}/"), io::empty())?;
            }
            Entry::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, name, &**target)?;
            }
        }
        Ok(std::mem::take(builder.get_mut()).into())
    }
}
