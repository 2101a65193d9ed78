//! Contents on their way from the hub: looked for on this disk, fetched, opened, and put together in the stage.
//!
//! Nothing is fetched that lies here already: a file with the same contents is copied, and a large file is put together from what its last version has, or another large file when much would
//! be fetched, and from the chunks that they have not. When that fails, because what lies here is not what it is taken for, everything is fetched. Chunks come in the order in which they are needed, so a file of any size passes through a few of them. Whatever it was made
//! of, a staged file has the hash that was announced, or is no staged file.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::{self, JoinHandle},
};

use bytes::{Bytes, BytesMut};
use cortex_runtime::chunk::{Asker, ChunkError, ChunkSource, Found};
use cortex_wire::{
    limits,
    mirror::{
        cut::{self, Unfolding},
        entry::{Content, Sid, Span},
        path::RelPath,
        replica::Trouble,
        seal::{Keys, Opener, SealError, Sealer},
    },
};
use tokio::sync::mpsc;

use super::{
    apply::Failed,
    cache::{Cache, Known},
    chunks::{self, ChunkMap, Cut},
    flight::offline,
    plan::{Piece, Plan, RUN_BYTES, Step},
    read::{BUFFER_BYTES, PieceHasher},
    root::Root,
    stage::{Part, Stage},
    store::Store,
};

/// Chunks between the network and the disk.
const QUEUE: usize = 8;
/// Pieces of a large file between what opens them and what writes them.
const AHEAD: usize = 8;
/// So much of a large file is brought to the disk while the rest comes.
const SYNC_BYTES: u64 = 64 * 1024 * 1024;
/// Room on the disk is set aside for so much of a file at once, when it is that much: the file system has less work then than page by page.
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;
/// The trouble of contents that are not what they were to be.
const CHANGED: &str = "changed";
/// Chunks named in one request.
const REQUEST: usize = 1_024;

/// With what files are put together.
#[derive(Debug, Clone)]
pub struct Kitchen {
    /// The folder.
    pub root: Arc<Root>,
    /// What was seen of the files.
    pub cache: Arc<Mutex<Cache>>,
    /// How large files were cut.
    pub store: Arc<Store>,
    /// Where files are put together.
    pub stage: Arc<Stage>,
    /// Of the session.
    pub keys: Arc<Keys>,
    /// Contents that could not be put together from what lies here.
    pub afresh: Arc<Mutex<HashSet<[u8; 32]>>>,
}

impl Kitchen {
    pub(super) fn afresh(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        self.afresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was put together, or was not because what lies here is something else. What strangers only say wrongly is not remembered: there is no end to it.
    fn learn(&self, wanted: &Wanted, staged: &Result<Staged, Trouble>, from_here: bool) {
        match staged {
            Ok(_) => self.afresh().remove(&wanted.content.hash),
            Err(trouble) => from_here && trouble.code == CHANGED && self.afresh().insert(wanted.content.hash),
        };
    }
}

/// A file that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where it will be; what lies there now may have some of its chunks.
    pub path: RelPath,
    /// Its bytes.
    pub content: Content,
    /// Whether its owner may run it.
    pub executable: bool,
}

/// A file that is staged.
#[derive(Debug)]
pub struct Staged {
    /// Its name in the stage.
    pub name: String,
    /// How it is cut, when it is large.
    pub map: Option<ChunkMap>,
}

/// Stages files. The answers are in the order of `wanted`.
pub async fn fetch(kitchen: &Kitchen, chunks: Arc<dyn ChunkSource>, asker: Asker, wanted: Vec<Wanted>) -> Vec<Result<Staged, Trouble>> {
    let mut files = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        let spans =
            if wanted.content.depth == 0 { Ok(wanted.content.spans.to_vec()) } else { unfold(kitchen, &*chunks, asker, &wanted).await };
        files.push((wanted, spans));
    }
    let owned = kitchen.clone();
    let Ok(plan) = tokio::task::spawn_blocking(move || Plan::new(&owned, files)).await else { return Vec::new() };
    let (send, receive) = mpsc::channel(QUEUE);
    let sids = plan.sids();
    let feed = async move {
        for request in sids.chunks(REQUEST) {
            let (tell, mut told) = mpsc::channel::<Found>(QUEUE);
            let pass = async {
                while let Some(found) = told.recv().await {
                    if send.send(Ok(found)).await.is_err() {
                        return false;
                    }
                }
                true
            };
            match tokio::join!(chunks.fetch(asker, request.to_vec(), tell), pass) {
                (Ok(()), true) => {}
                (Ok(()), false) => return,
                (Err(error), _) => {
                    let _ = send.send(Err(error)).await;
                    return;
                }
            }
        }
    };
    let owned = kitchen.clone();
    let cook = tokio::task::spawn_blocking(move || plan.carry_out(&owned, receive));
    let (outcomes, ()) = tokio::join!(cook, feed);
    outcomes.unwrap_or_default()
}

/// Reads a long list of spans. Pages that are the same in the file's last version are not fetched.
async fn unfold(kitchen: &Kitchen, chunks: &dyn ChunkSource, asker: Asker, wanted: &Wanted) -> Result<Vec<Span>, Trouble> {
    let content = &wanted.content;
    if let Some(map) = kitchen.store.map(&content.hash) {
        return Ok(map.spans());
    }
    let (owned, file) = (kitchen.clone(), wanted.clone());
    let here = tokio::task::spawn_blocking(move || pages_here(&owned, &file)).await.unwrap_or_default();
    let bad = |error: &dyn std::fmt::Display| Trouble { code: "bad_content".into(), message: error.to_string() };
    let mut unfolding = Unfolding::new(content).map_err(|error| bad(&error))?;
    let mut opener = Opener::new(kitchen.keys.clone());
    while !unfolding.wanted().is_empty() {
        let pages: Vec<Span> = unfolding.wanted().iter().take(REQUEST).copied().collect();
        let (tell, told) = mpsc::channel::<Found>(QUEUE);
        let take = async {
            // Gone with this block: whoever sends does not wait for a reader that has given up.
            let mut told = told;
            for page in &pages {
                if let Some(plain) = here.get(&page.sid) {
                    unfolding.page(part(plain, page)?).map_err(|error| bad(&error))?;
                    continue;
                }
                let found = told.recv().await.ok_or_else(|| offline(ChunkError::Lost))?;
                let plain = open(&mut opener, found, page.sid)?;
                unfolding.page(part(&plain, page)?).map_err(|error| bad(&error))?;
            }
            Ok::<_, Trouble>(())
        };
        let elsewhere: Vec<Sid> = pages.iter().map(|page| page.sid).filter(|sid| !here.contains_key(sid)).collect();
        let fetch = async { if elsewhere.is_empty() { Ok(()) } else { chunks.fetch(asker, elsewhere, tell).await } };
        let (fetched, taken) = tokio::join!(fetch, take);
        fetched.map_err(offline)?;
        taken?;
    }
    unfolding.finish().map_err(|error| bad(&error))
}

/// Pages of the last version's list, or of those of files like it, made again of how they are cut.
fn pages_here(kitchen: &Kitchen, wanted: &Wanted) -> HashMap<Sid, Vec<u8>> {
    let mut pages = HashMap::new();
    if kitchen.afresh().contains(&wanted.content.hash) {
        return pages;
    }
    let contents = {
        let cache = kitchen.cache();
        let files = cache.iter().filter_map(|(path, known)| if let Known::File(file) = known { Some((path, file)) } else { None });
        let alike = || chunks::alike(&wanted.path, wanted.content.size, files.map(|(path, file)| (path, file.stat.size, file.content)));
        cache.file(&wanted.path).map_or_else(alike, |last| vec![last.content])
    };
    let maps = chunks::maps(&kitchen.store, &contents);
    let mut sealer = Sealer::new(kitchen.keys.clone());
    for map in maps {
        let seal = |page: &[u8]| {
            let sid = sealer.seal(page)?.sid();
            pages.insert(sid, page.to_vec());
            Ok::<_, SealError>(sid)
        };
        // Without a key they are fetched.
        let _ = cut::content(0, [0; 32], map.spans(), seal);
    }
    pages
}

fn open(opener: &mut Opener, found: Found, sid: Sid) -> Result<Bytes, Trouble> {
    let missing = || Trouble { code: "missing_chunks".into(), message: "the hub does not have all of its contents any more".into() };
    let sealed = found.chunk.filter(|sealed| sealed.sid() == sid).ok_or_else(missing)?;
    opener.open(sealed).map_err(|error| Trouble { code: "bad_chunk".into(), message: error.to_string() })
}

fn part<'a>(plain: &'a [u8], span: &Span) -> Result<&'a [u8], Trouble> {
    let from = span.offset as usize;
    plain
        .get(from..from + span.length as usize)
        .ok_or_else(|| Trouble { code: "bad_chunk".into(), message: "a chunk is shorter than the file says".into() })
}

impl Plan {
    fn carry_out(self, kitchen: &Kitchen, receive: mpsc::Receiver<Result<Found, ChunkError>>) -> Vec<Result<Staged, Trouble>> {
        let Self { wanted, steps, mut outcomes } = self;
        let mut cook = Cook { kitchen, opener: Opener::new(kitchen.keys.clone()), receive, failed: None, buffer: Vec::new() };
        for step in steps {
            match step {
                Step::Bundle(sid, files) => {
                    let plain = cook.next(sid);
                    for (at, span) in files {
                        let plain = plain.clone();
                        outcomes[at] = Some(plain.and_then(|plain| cook.small(&wanted[at], part(&plain, &span)?)));
                    }
                }
                Step::File { at, pieces, donors } => {
                    let staged = cook.file(&wanted[at], &pieces, &donors);
                    kitchen.learn(&wanted[at], &staged, !donors.is_empty());
                    outcomes[at] = Some(staged);
                }
                Step::Copy { at, from, spans } => {
                    let staged = cook.copy(&wanted[at], &from, &spans);
                    kitchen.learn(&wanted[at], &staged, true);
                    outcomes[at] = Some(staged);
                }
            }
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(offline(ChunkError::Lost)))).collect()
    }
}

struct Cook<'a> {
    kitchen: &'a Kitchen,
    opener: Opener,
    receive: mpsc::Receiver<Result<Found, ChunkError>>,
    failed: Option<Trouble>,
    buffer: Vec<u8>,
}

impl Cook<'_> {
    /// The next chunk, opened. After the network has failed, it stays failed.
    fn next(&mut self, sid: Sid) -> Result<Bytes, Trouble> {
        if let Some(trouble) = &self.failed {
            return Err(trouble.clone());
        }
        match self.receive.blocking_recv().unwrap_or(Err(ChunkError::Lost)) {
            Ok(found) => open(&mut self.opener, found, sid),
            Err(error) => {
                self.failed = Some(offline(error));
                Err(offline(error))
            }
        }
    }

    fn small(&self, wanted: &Wanted, bytes: &[u8]) -> Result<Staged, Trouble> {
        let mut target = Target::begin_small(&self.kitchen.stage, wanted)?;
        target.write(bytes).map_err(|error| io_trouble(&error))?;
        target.complete(wanted, blake3::hash(bytes), None)
    }

    fn copy(&mut self, wanted: &Wanted, from: &RelPath, spans: &[Span]) -> Result<Staged, Trouble> {
        let mut target = Target::begin(&self.kitchen.stage, wanted)?;
        let mut hasher = blake3::Hasher::new();
        self.buffer.resize(BUFFER_BYTES, 0);
        let copied = (|| {
            let (folder, name) = self.kitchen.root.place(from)?;
            let mut file = folder.read(name)?;
            loop {
                match file.read(&mut self.buffer)? {
                    0 => return Ok::<_, io::Error>(()),
                    read => {
                        hasher.update(&self.buffer[..read]);
                        target.write(&self.buffer[..read])?;
                    }
                }
            }
        })();
        copied.map_err(|error| io_trouble(&error))?;
        let map = if spans.len() > 1 { self.kitchen.store.map(&wanted.content.hash) } else { None };
        target.complete(wanted, hasher.finalize(), map)
    }

    fn file(&mut self, wanted: &Wanted, pieces: &[Piece], donors: &[RelPath]) -> Result<Staged, Trouble> {
        let target = Target::begin(&self.kitchen.stage, wanted)?;
        let open = |path: &RelPath| {
            let (folder, name) = self.kitchen.root.place(path).ok()?;
            folder.read(name).ok()
        };
        let donors: Vec<Option<File>> = donors.iter().map(open).collect();
        let (put, bytes) = sync_channel(AHEAD);
        let (give_back, spare) = channel();
        // What was opened and hashed is written beside what is opened.
        let (taken, target) = thread::scope(|scope| {
            let writer = thread::Builder::new().name("write".into()).spawn_scoped(scope, move || target.write_all(bytes, &give_back));
            let taken = self.pieces(pieces, &donors, put, &spare);
            let ended = || io::Error::other("its writer has ended");
            (taken, writer.and_then(|writer| writer.join().unwrap_or_else(|_| Err(ended()))))
        });
        let (map, hash) = taken?;
        let target = target.map_err(|error| io_trouble(&error))?;
        target.complete(wanted, hash, (map.0.len() > 1).then_some(map))
    }

    /// Hands the bytes of the pieces on, in their order, and hashes them. When nobody takes them any more, whoever did says why. `spare`: buffers to be used again.
    fn pieces(
        &mut self,
        pieces: &[Piece],
        donors: &[Option<File>],
        put: SyncSender<Bytes>,
        spare: &Receiver<BytesMut>,
    ) -> Result<(ChunkMap, blake3::Hash), Trouble> {
        let mut map = ChunkMap::default();
        let mut hasher = PieceHasher::default();
        let mut last = Bytes::new();
        let mut trouble = None;
        for piece in pieces {
            // Whatever happened, chunks that are on their way are taken, or the next file would get them.
            let taken = match piece {
                Piece::Next(span) => self.next(span.sid).and_then(|plain| {
                    last = plain;
                    piece_of(&last, span, &mut map)
                }),
                _ if trouble.is_some() => continue,
                Piece::Last(span) => piece_of(&last, span, &mut map),
                Piece::Local { donor, offset, length, cuts } => {
                    map.0.extend_from_slice(cuts);
                    let buffer = spare.try_recv().unwrap_or_default();
                    local(donors.get(*donor).and_then(Option::as_ref), *offset, *length, buffer)
                }
            };
            match taken {
                Ok(bytes) if trouble.is_none() => {
                    hasher.update(&bytes);
                    let _ = put.send(bytes);
                }
                Ok(_) => {}
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        trouble.map_or_else(|| Ok((map, hasher.finalize())), Err)
    }
}

/// A piece of an opened chunk.
fn piece_of(plain: &Bytes, span: &Span, map: &mut ChunkMap) -> Result<Bytes, Trouble> {
    let bytes = plain.slice_ref(part(plain, span)?);
    map.0.push(Cut { length: span.length, plain: *blake3::hash(&bytes).as_bytes(), sid: span.sid, offset: span.offset });
    Ok(bytes)
}

fn local(old: Option<&File>, offset: u64, length: usize, mut buffer: BytesMut) -> Result<Bytes, Trouble> {
    buffer.resize(length, 0);
    let gone = || io::Error::other("what it was to be made of is gone from the disk");
    old.ok_or_else(gone).and_then(|old| old.read_exact_at(&mut buffer, offset)).map_err(|error| changed(&error))?;
    Ok(buffer.freeze())
}

fn changed(error: &io::Error) -> Trouble {
    Trouble { code: CHANGED.into(), message: format!("what it was to be made of has changed: {error}") }
}

/// The disk's error, for people.
pub fn io_trouble(error: &io::Error) -> Trouble {
    match Failed::io(error) {
        Failed::Code { code, message } => Trouble { code: code.into(), message },
        Failed::Found(_) => changed(error),
    }
}

/// Brings what was written of a file to the disk, beside whoever writes on.
struct Syncer {
    ask: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Syncer {
    /// Begins with what is written by now.
    fn start(file: File) -> io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let run = move || {
            file.sync_data()?;
            asked.into_iter().try_for_each(|()| file.sync_data())
        };
        Ok(Self { ask, thread: thread::Builder::new().name("sync".into()).spawn(run)? })
    }

    /// Once more after the one that goes on; nobody waits for it.
    fn sync(&self) {
        let _ = self.ask.try_send(());
    }

    /// The kernel tells of a write that failed once only: whoever has asked must not forget it.
    fn end(self) -> io::Result<()> {
        drop(self.ask);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("what brought it to the disk has ended")))
    }
}

/// A file in the stage that is being written. Dropped before it is complete, it is removed.
struct Target<'a> {
    stage: &'a Stage,
    part: Option<Part>,
    size: u64,
    /// What it is to come to.
    wanted: u64,
    /// So far there is room set aside for it.
    reserved: u64,
    /// The file ends with zeroes that were not written.
    hole: bool,
}

impl<'a> Target<'a> {
    fn begin(stage: &'a Stage, wanted: &Wanted) -> Result<Self, Trouble> {
        Self::of(stage, wanted, stage.begin(&wanted.content.hash, wanted.executable))
    }

    /// For a file of one piece.
    fn begin_small(stage: &'a Stage, wanted: &Wanted) -> Result<Self, Trouble> {
        Self::of(stage, wanted, stage.begin_small(&wanted.content.hash, wanted.executable))
    }

    fn of(stage: &'a Stage, wanted: &Wanted, part: io::Result<Part>) -> Result<Self, Trouble> {
        let part = part.map_err(|error| io_trouble(&error))?;
        Ok(Self { stage, part: Some(part), size: 0, wanted: wanted.content.size, reserved: 0, hole: false })
    }

    fn file(&self) -> io::Result<&File> {
        self.part.as_ref().map(|part| &part.file).ok_or_else(|| io::Error::other("it is complete"))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Whole chunks of zeroes stay holes.
        self.hole = bytes.len() >= limits::CHUNK_BYTES / 16 && bytes.iter().all(|byte| *byte == 0);
        let end = self.size + bytes.len() as u64;
        if self.hole {
            room::release(self.file()?, self.size, end.min(self.reserved));
        } else {
            if end > self.reserved && self.wanted.saturating_sub(self.size) >= RESERVE_BYTES {
                self.reserved = self.size + RESERVE_BYTES;
                room::reserve(self.file()?, self.size, self.reserved);
            }
            self.file()?.write_all_at(bytes, self.size)?;
        }
        self.size = end;
        Ok(())
    }

    /// Writes what comes, and gives large buffers back. Once it is much, it is brought to the disk meanwhile: otherwise all of it would wait for the disk in the end.
    fn write_all(mut self, bytes: Receiver<Bytes>, give_back: &Sender<BytesMut>) -> io::Result<Self> {
        let mut syncer: Option<Syncer> = None;
        let mut synced = 0;
        for bytes in bytes {
            self.write(&bytes)?;
            if bytes.len() > RUN_BYTES / 2
                && let Ok(buffer) = bytes.try_into_mut()
            {
                // Whoever has everything needs none.
                let _ = give_back.send(buffer);
            }
            if self.size - synced >= SYNC_BYTES {
                synced = self.size;
                match &syncer {
                    Some(syncer) => syncer.sync(),
                    None => syncer = Some(Syncer::start(self.file()?.try_clone()?)?),
                }
            }
        }
        syncer.map_or(Ok(()), Syncer::end)?;
        Ok(self)
    }

    /// `hash`: BLAKE3 of all that was written.
    fn complete(mut self, wanted: &Wanted, hash: blake3::Hash, map: Option<ChunkMap>) -> Result<Staged, Trouble> {
        if (self.size, hash.as_bytes()) != (wanted.content.size, &wanted.content.hash) {
            let message = "its pieces do not come to the contents that were announced".into();
            return Err(Trouble { code: CHANGED.into(), message });
        }
        let completed = if self.hole { self.file().and_then(|file| file.set_len(self.size)) } else { Ok(()) };
        completed.map_err(|error| io_trouble(&error))?;
        let name = self.part.take().map(|part| self.stage.complete(part)).unwrap_or_default();
        Ok(Staged { name, map })
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            self.stage.discard(&part.name);
        }
    }
}

/// Room on the disk. Where it cannot be had, whoever writes hears of it.
#[cfg(target_os = "linux")]
mod room {
    use std::fs::File;

    use rustix::fs::{FallocateFlags, fallocate};

    /// Sets it aside. The file becomes so long: behind its end nothing could be given back.
    pub(super) fn reserve(file: &File, from: u64, to: u64) {
        let _ = fallocate(file, FallocateFlags::empty(), from, to.saturating_sub(from));
    }

    /// Gives it back.
    pub(super) fn release(file: &File, from: u64, to: u64) {
        if from < to {
            let _ = fallocate(file, FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE, from, to - from);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod room {
    use std::fs::File;

    pub(super) fn reserve(_: &File, _: u64, _: u64) {}

    pub(super) fn release(_: &File, _: u64, _: u64) {}
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        os::unix::fs::MetadataExt as _,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use cortex_runtime::chunk::BoxFuture;
    use cortex_wire::{
        id::SessionId,
        mirror::seal::{Sealed, Sealer},
    };

    use super::*;
    use crate::mirror::{
        cache::{Known, KnownFile},
        read,
        store::Rows,
        walk::now_ns,
    };

    /// Has these, and counts what is fetched of them.
    #[derive(Default)]
    struct Chunks {
        held: HashMap<Sid, Sealed>,
        fetched: AtomicUsize,
    }

    impl ChunkSource for Chunks {
        fn fetch(&self, _: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>> {
            Box::pin(async move {
                for sid in sids {
                    self.fetched.fetch_add(1, Ordering::Relaxed);
                    let _ = found.send(Found { sid, chunk: self.held.get(&sid).cloned() }).await;
                }
                Ok(())
            })
        }

        fn store(&self, _: Asker, _: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>> {
            Box::pin(async { Err(ChunkError::Failed) })
        }

        fn missing(&self, _: Asker, _: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>> {
            Box::pin(async { Err(ChunkError::Failed) })
        }
    }

    struct Bench {
        _dir: tempfile::TempDir,
        kitchen: Kitchen,
        chunks: Chunks,
    }

    const SESSION: [u8; 10] = [3; 10];

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let session = SessionId::new(1, SESSION);
            let root = Root::open(dir.path(), &session).unwrap();
            let (stage, _) = Stage::open(&root, 0, |_| false).unwrap();
            let mut keys = Keys::new(session);
            keys.insert(1, &[1; 32]);
            let store = Store::open(&dir.path().join("state")).unwrap().0;
            let kitchen = Kitchen {
                root: root.into(),
                cache: Arc::default(),
                store: store.into(),
                stage: stage.into(),
                keys: keys.into(),
                afresh: Arc::default(),
            };
            Self { _dir: dir, kitchen, chunks: Chunks::default() }
        }

        /// A content of these pieces, whose chunks the network has.
        fn content(&mut self, pieces: &[&[u8]]) -> (Content, ChunkMap) {
            let mut sealer = Sealer::new(self.kitchen.keys.clone());
            let mut map = ChunkMap::default();
            for piece in pieces {
                let sealed = sealer.seal(piece).unwrap();
                map.0.push(Cut { length: piece.len() as u32, plain: *blake3::hash(piece).as_bytes(), sid: sealed.sid(), offset: 0 });
                self.chunks.held.insert(sealed.sid(), sealed);
            }
            let bytes = pieces.concat();
            let page = |page: &[u8]| {
                let sealed = sealer.seal(page)?;
                let sid = sealed.sid();
                self.chunks.held.insert(sid, sealed);
                Ok::<_, SealError>(sid)
            };
            (cut::content(bytes.len() as u64, *blake3::hash(&bytes).as_bytes(), map.spans(), page).unwrap(), map)
        }

        /// A file that lies here, and is known to be cut like that.
        async fn lies_here(&mut self, path: &str, pieces: &[&[u8]]) {
            let (content, map) = self.content(pieces);
            let full = self.kitchen.root.path().join(path);
            std::fs::create_dir_all(full.parent().unwrap()).unwrap();
            std::fs::write(full, pieces.concat()).unwrap();
            let path: RelPath = path.parse().unwrap();
            let (folder, name) = self.kitchen.root.place(&path).unwrap();
            let contents = read::hash(&folder, name, &mut vec![0; BUFFER_BYTES]).unwrap();
            self.kitchen.cache.lock().unwrap().set(&path, Some(Known::File(KnownFile::new(&contents, now_ns()))));
            let mut rows = Rows::default();
            rows.map(&content.hash, Some(&map));
            self.kitchen.store.write(rows).await.unwrap().unwrap();
        }

        /// How many chunks were fetched for a file, which is what it is to be, or why it is not there.
        async fn fetch(&mut self, path: &str, content: &Content) -> Result<usize, String> {
            let wanted = Wanted { path: path.parse().unwrap(), content: content.clone(), executable: false };
            let asker = Asker { session: SessionId::new(1, SESSION), node: None };
            let chunks = Arc::new(std::mem::take(&mut self.chunks));
            let staged = fetch(&self.kitchen, chunks.clone(), asker, vec![wanted]).await.pop().unwrap();
            self.chunks = Arc::into_inner(chunks).unwrap();
            let fetched = std::mem::take(self.chunks.fetched.get_mut());
            let staged = staged.map_err(|trouble| trouble.code)?;
            let there = read::hash(self.kitchen.stage.folder_of(&staged.name), &staged.name, &mut vec![0; BUFFER_BYTES]).unwrap();
            assert_eq!((there.size, there.hash), (content.size, content.hash));
            self.kitchen.stage.discard(&staged.name);
            Ok(fetched)
        }
    }

    fn noise(seed: u8, bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
        noise
    }

    #[tokio::test]
    async fn what_other_large_files_have_is_not_fetched() {
        let mut bench = Bench::new();
        let (one, two) = (noise(1, 12 << 20), noise(2, 6 << 20));
        let (one, two): (Vec<&[u8]>, Vec<&[u8]>) = (one.chunks(200_000).collect(), two.chunks(200_000).collect());
        bench.lies_here("one", &one).await;
        bench.lies_here("two", &two).await;
        let head: &[u8] = b"new in front of what both have";
        let (content, _) = bench.content(&[&[head], &two[..], &one[..]].concat());
        assert_eq!(bench.fetch("three", &content).await, Ok(1));
        let (short, _) = bench.content(&[&[head], &one[..20]].concat());
        assert_eq!(bench.fetch("four", &short).await, Ok(21), "it is not searched for what is fetched as soon");
        assert_eq!(bench.fetch("one", &short).await, Ok(1), "the last version is looked at whatever the size");
    }

    #[tokio::test]
    async fn of_a_long_list_only_what_has_changed_is_fetched() {
        let mut bench = Bench::new();
        let one = noise(1, 40 << 20);
        let one: Vec<&[u8]> = one.chunks(20_000).collect();
        bench.lies_here("folder/one", &one).await;
        let head: &[u8] = b"new";
        let (content, _) = bench.content(&[&[head], &one[..]].concat());
        assert!(content.depth > 0 && content.spans.len() > 8, "{content:?}");
        for path in ["folder/one", "folder/one.part"] {
            let fetched = bench.fetch(path, &content).await;
            assert!(matches!(fetched, Ok(2..=3)), "{path}: {fetched:?}");
        }
        // It is not what it was taken for: nothing that was made of it is believed.
        std::fs::write(bench.kitchen.root.path().join("folder/one"), b"other").unwrap();
        assert_eq!(bench.fetch("folder/one", &content).await, Err("changed".into()));
        assert_eq!(bench.fetch("folder/one", &content).await, Ok(one.len() + 1 + content.spans.len()));
    }

    #[test]
    fn room_that_was_set_aside_for_zeroes_is_given_back() {
        let bench = Bench::new();
        let (data, zeroes) = (noise(1, 100_000), vec![0; limits::CHUNK_BYTES]);
        let pieces: Vec<&[u8]> = [&data[..], &zeroes, &zeroes].repeat(40);
        let bytes = pieces.concat();
        assert!(bytes.len() as u64 > RESERVE_BYTES);
        let content = Content { size: bytes.len() as u64, hash: *blake3::hash(&bytes).as_bytes(), depth: 0, spans: Arc::from([]) };
        let wanted = Wanted { path: "sparse".parse().unwrap(), content, executable: false };
        let mut target = Target::begin(&bench.kitchen.stage, &wanted).unwrap();
        pieces.iter().for_each(|piece| target.write(piece).unwrap());
        let name = target.complete(&wanted, blake3::hash(&bytes), None).unwrap().name;
        let mut file = bench.kitchen.stage.folder_of(&name).read(&name).unwrap();
        let mut there = Vec::new();
        file.read_to_end(&mut there).unwrap();
        assert!(there == bytes);
        file.sync_all().unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 2 * 40 * data.len() as u64, "holes stay holes");
    }

    #[tokio::test]
    async fn what_lies_here_and_is_something_else_is_fetched_the_next_time() {
        let mut bench = Bench::new();
        let one = noise(1, 12 << 20);
        let one: Vec<&[u8]> = one.chunks(200_000).collect();
        bench.lies_here("one", &one).await;
        let head: &[u8] = b"new";
        let (content, _) = bench.content(&[&[head], &one[..]].concat());
        // Nobody heard of it.
        std::fs::write(bench.kitchen.root.path().join("one"), noise(9, 12 << 20)).unwrap();
        let (same, _) = bench.content(&one);
        for (path, content) in [("two", &content), ("one", &content), ("copy", &same)] {
            assert_eq!(bench.fetch(path, content).await, Err("changed".into()), "{path}");
            assert_eq!(bench.fetch(path, content).await, Ok(content.spans.len()), "{path}");
        }
        std::fs::remove_file(bench.kitchen.root.path().join("one")).unwrap();
        assert_eq!(bench.fetch("two", &content).await, Err("changed".into()), "it is tried again after it went well");
        assert_eq!(bench.fetch("two", &content).await, Ok(content.spans.len()));
        assert!(bench.kitchen.afresh().is_empty());
        let lie = Content { hash: [9; 32], ..content };
        bench.kitchen.cache.lock().unwrap().set(&"one".parse().unwrap(), None);
        assert_eq!(bench.fetch("lie", &lie).await, Err("changed".into()));
        assert!(bench.kitchen.afresh().is_empty(), "nothing of it lies here");
    }
}
