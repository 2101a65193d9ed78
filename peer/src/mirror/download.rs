//! Contents on their way from the hub: looked for on this disk, fetched, opened, and put together in the stage.
//!
//! Nothing is fetched that lies here already: a file with the same contents is copied, and a large file is put together from what its last version has and from
//! the chunks that it has not. Chunks come in the order in which they are needed, so a file of any size passes through a few of them. Whatever it was made
//! of, a staged file has the hash that was announced, or is no staged file.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use cortex_runtime::chunk::{Asker, ChunkError, ChunkSource, Found};
use cortex_wire::{
    limits,
    mirror::{
        cut::Unfolding,
        entry::{Content, Sid, Span},
        path::RelPath,
        replica::Trouble,
        seal::{Keys, Opener},
    },
};
use tokio::sync::mpsc;

use super::{
    apply::Failed,
    cache::{Cache, Known},
    chunks::{ChunkMap, Cut},
    flight::offline,
    read::BUFFER_BYTES,
    root::Root,
    stage::Stage,
    store::Store,
};

/// Chunks between the network and the disk.
const QUEUE: usize = 8;
/// Pieces of a large file between what opens them and what writes them.
const AHEAD: usize = 8;
/// So much of a large file is brought to the disk while the rest comes.
const SYNC_BYTES: u64 = 64 * 1024 * 1024;
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
        let spans = if wanted.content.depth == 0 {
            Ok(wanted.content.spans.to_vec())
        } else {
            unfold(kitchen, &*chunks, asker, &wanted.content).await
        };
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

/// Reads a long list of spans.
async fn unfold(kitchen: &Kitchen, chunks: &dyn ChunkSource, asker: Asker, content: &Content) -> Result<Vec<Span>, Trouble> {
    if let Some(map) = kitchen.store.map(&content.hash) {
        return Ok(map.0.iter().map(|cut| Span { sid: cut.sid, offset: cut.offset, length: cut.length }).collect());
    }
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
                let found = told.recv().await.ok_or_else(|| offline(ChunkError::Lost))?;
                let plain = open(&mut opener, found, page.sid)?;
                unfolding.page(part(&plain, page)?).map_err(|error| bad(&error))?;
            }
            Ok::<_, Trouble>(())
        };
        let (fetched, taken) = tokio::join!(chunks.fetch(asker, pages.iter().map(|page| page.sid).collect(), tell), take);
        fetched.map_err(offline)?;
        taken?;
    }
    unfolding.finish().map_err(|error| bad(&error))
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

/// Where a piece of a file comes from.
#[derive(Debug, Clone)]
enum Piece {
    /// From the file's last version on this disk.
    Local { offset: u64, cut: Cut },
    /// From a chunk that comes now.
    Next(Span),
    /// From the chunk that came last.
    Last(Span),
}

/// A step of putting files together. Steps take chunks in their order.
#[derive(Debug)]
enum Step {
    /// One chunk, and all small files that lie in it.
    Bundle(Sid, Vec<(usize, Span)>),
    /// A file of several pieces.
    File { at: usize, pieces: Vec<Piece>, old: Option<RelPath> },
    /// A file that lies here under another path.
    Copy { at: usize, from: RelPath, spans: Vec<Span> },
}

struct Plan {
    wanted: Vec<Wanted>,
    steps: Vec<Step>,
    outcomes: Vec<Option<Result<Staged, Trouble>>>,
}

impl Plan {
    fn new(kitchen: &Kitchen, files: Vec<(Wanted, Result<Vec<Span>, Trouble>)>) -> Self {
        let here = contents_here(kitchen, &files);
        let mut bundles: BTreeMap<Sid, Vec<(usize, Span)>> = BTreeMap::new();
        let mut plan = Self { wanted: Vec::new(), steps: Vec::new(), outcomes: Vec::new() };
        for (at, (wanted, spans)) in files.into_iter().enumerate() {
            let left = kitchen.stage.take_left(&wanted.content.hash);
            let mut outcome = None;
            match (left, spans) {
                (_, Err(trouble)) => outcome = Some(Err(trouble)),
                (Some(name), _) => outcome = Some(Ok(Staged { name, map: None })),
                (None, Ok(spans)) => match (here.get(&wanted.content.hash), spans.as_slice()) {
                    (Some(from), _) => plan.steps.push(Step::Copy { at, from: from.clone(), spans }),
                    (None, [span]) => bundles.entry(span.sid).or_default().push((at, *span)),
                    (None, spans) => plan.steps.push(plan_file(kitchen, at, &wanted, spans)),
                },
            }
            plan.wanted.push(wanted);
            plan.outcomes.push(outcome);
        }
        plan.steps.extend(bundles.into_iter().map(|(sid, files)| Step::Bundle(sid, files)));
        plan
    }

    /// The chunks, in the order in which they are needed.
    fn sids(&self) -> Vec<Sid> {
        let mut sids = Vec::new();
        for step in &self.steps {
            match step {
                Step::Bundle(sid, _) => sids.push(*sid),
                Step::File { pieces, .. } => {
                    sids.extend(pieces.iter().filter_map(|piece| if let Piece::Next(span) = piece { Some(span.sid) } else { None }));
                }
                Step::Copy { .. } => {}
            }
        }
        sids
    }

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
                Step::File { at, pieces, old } => outcomes[at] = Some(cook.file(&wanted[at], &pieces, old.as_ref())),
                Step::Copy { at, from, spans } => outcomes[at] = Some(cook.copy(&wanted[at], &from, &spans)),
            }
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(offline(ChunkError::Lost)))).collect()
    }
}

/// Wanted contents that some file on this disk has.
fn contents_here(kitchen: &Kitchen, files: &[(Wanted, Result<Vec<Span>, Trouble>)]) -> HashMap<[u8; 32], RelPath> {
    let cache = kitchen.cache.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted: HashSet<[u8; 32]> = files.iter().map(|(wanted, _)| wanted.content.hash).filter(|content| cache.may_hold(content)).collect();
    if wanted.is_empty() {
        return HashMap::new();
    }
    let files = cache.iter().filter_map(|(path, known)| if let Known::File(file) = known { Some((path, file)) } else { None });
    files
        .filter(|(_, file)| file.stat.size > 0 && wanted.contains(&file.content))
        .map(|(path, file)| (file.content, path.clone()))
        .collect()
}

fn plan_file(kitchen: &Kitchen, at: usize, wanted: &Wanted, spans: &[Span]) -> Step {
    let old = {
        let cache = kitchen.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.file(&wanted.path).map(|file| file.content)
    };
    let map = old.and_then(|content| kitchen.store.map(&content)).unwrap_or_default();
    let mut offset = 0;
    let mut have: HashMap<(Sid, u32, u32), (u64, Cut)> = HashMap::new();
    for cut in &map.0 {
        have.insert((cut.sid, cut.offset, cut.length), (offset, *cut));
        offset += u64::from(cut.length);
    }
    let mut last = None;
    let piece = |span: &Span| match have.get(&(span.sid, span.offset, span.length)) {
        Some((offset, cut)) => Piece::Local { offset: *offset, cut: *cut },
        None if last == Some(span.sid) => Piece::Last(*span),
        None => {
            last = Some(span.sid);
            Piece::Next(*span)
        }
    };
    let pieces = spans.iter().map(piece).collect();
    Step::File { at, pieces, old: (!have.is_empty()).then(|| wanted.path.clone()) }
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
        let mut target = Target::begin(&self.kitchen.stage, wanted)?;
        target.write(bytes).map_err(|error| io_trouble(&error))?;
        target.complete(wanted, None)
    }

    fn copy(&mut self, wanted: &Wanted, from: &RelPath, spans: &[Span]) -> Result<Staged, Trouble> {
        let mut target = Target::begin(&self.kitchen.stage, wanted)?;
        self.buffer.resize(BUFFER_BYTES, 0);
        let copied = (|| {
            let (folder, name) = self.kitchen.root.place(from)?;
            let mut file = folder.read(name)?;
            loop {
                match file.read(&mut self.buffer)? {
                    0 => return Ok::<_, io::Error>(()),
                    read => target.write(&self.buffer[..read])?,
                }
            }
        })();
        copied.map_err(|error| io_trouble(&error))?;
        let map = if spans.len() > 1 { self.kitchen.store.map(&wanted.content.hash) } else { None };
        target.complete(wanted, map)
    }

    fn file(&mut self, wanted: &Wanted, pieces: &[Piece], old: Option<&RelPath>) -> Result<Staged, Trouble> {
        let target = Target::begin(&self.kitchen.stage, wanted)?;
        let old = old.and_then(|path| {
            let (folder, name) = self.kitchen.root.place(path).ok()?;
            folder.read(name).ok()
        });
        let (put, bytes) = sync_channel(AHEAD);
        // What was opened is hashed and written beside what is opened.
        let (taken, target) = thread::scope(|scope| {
            let writer = thread::Builder::new().name("write".into()).spawn_scoped(scope, move || target.write_all(bytes));
            let taken = self.pieces(pieces, old.as_ref(), put);
            let ended = || io::Error::other("its writer has ended");
            (taken, writer.and_then(|writer| writer.join().unwrap_or_else(|_| Err(ended()))))
        });
        let map = taken?;
        let target = target.map_err(|error| io_trouble(&error))?;
        target.complete(wanted, (pieces.len() > 1).then_some(map))
    }

    /// Hands the bytes of the pieces on, in their order. When nobody takes them any more, whoever did says why.
    fn pieces(&mut self, pieces: &[Piece], old: Option<&File>, put: SyncSender<Bytes>) -> Result<ChunkMap, Trouble> {
        let mut map = ChunkMap::default();
        let mut last = Bytes::new();
        let mut trouble = None;
        for piece in pieces {
            // Whatever happened, chunks that are on their way are taken, or the next file would get them.
            let taken = match piece {
                Piece::Next(span) => self.next(span.sid).and_then(|plain| {
                    last = plain;
                    piece_of(&last, span)
                }),
                _ if trouble.is_some() => continue,
                Piece::Last(span) => piece_of(&last, span),
                Piece::Local { offset, cut } => local(old, *offset, cut.length).map(|bytes| (bytes, *cut)),
            };
            match taken {
                Ok((bytes, cut)) if trouble.is_none() => {
                    map.0.push(cut);
                    let _ = put.send(bytes);
                }
                Ok(_) => {}
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        trouble.map_or(Ok(map), Err)
    }
}

/// A piece of an opened chunk.
fn piece_of(plain: &Bytes, span: &Span) -> Result<(Bytes, Cut), Trouble> {
    let bytes = plain.slice_ref(part(plain, span)?);
    let cut = Cut { length: span.length, plain: *blake3::hash(&bytes).as_bytes(), sid: span.sid, offset: span.offset };
    Ok((bytes, cut))
}

fn local(old: Option<&File>, offset: u64, length: u32) -> Result<Bytes, Trouble> {
    let mut bytes = vec![0; length as usize];
    let gone = || io::Error::other("the last version is gone from the disk");
    old.ok_or_else(gone).and_then(|old| old.read_exact_at(&mut bytes, offset)).map_err(|error| changed(&error))?;
    Ok(bytes.into())
}

fn changed(error: &io::Error) -> Trouble {
    Trouble { code: "changed".into(), message: format!("what it was to be made of has changed: {error}") }
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
    name: String,
    file: File,
    hasher: blake3::Hasher,
    size: u64,
    /// The file ends with zeroes that were not written.
    hole: bool,
    done: bool,
}

impl<'a> Target<'a> {
    fn begin(stage: &'a Stage, wanted: &Wanted) -> Result<Self, Trouble> {
        let (name, file) = stage.begin(&wanted.content.hash, wanted.executable).map_err(|error| io_trouble(&error))?;
        Ok(Self { stage, name, file, hasher: blake3::Hasher::new(), size: 0, hole: false, done: false })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        // Whole chunks of zeroes stay holes.
        self.hole = bytes.len() >= limits::CHUNK_BYTES / 16 && bytes.iter().all(|byte| *byte == 0);
        if !self.hole {
            self.file.write_all_at(bytes, self.size)?;
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Writes what comes. Once it is much, it is brought to the disk meanwhile: otherwise all of it would wait for the disk in the end.
    fn write_all(mut self, bytes: Receiver<Bytes>) -> io::Result<Self> {
        let mut syncer: Option<Syncer> = None;
        let mut synced = 0;
        for bytes in bytes {
            self.write(&bytes)?;
            if self.size - synced >= SYNC_BYTES {
                synced = self.size;
                match &syncer {
                    Some(syncer) => syncer.sync(),
                    None => syncer = Some(Syncer::start(self.file.try_clone()?)?),
                }
            }
        }
        syncer.map_or(Ok(()), Syncer::end)?;
        Ok(self)
    }

    fn complete(mut self, wanted: &Wanted, map: Option<ChunkMap>) -> Result<Staged, Trouble> {
        let hash = *self.hasher.finalize().as_bytes();
        if (self.size, hash) != (wanted.content.size, wanted.content.hash) {
            let message = "its pieces do not come to the contents that were announced".into();
            return Err(Trouble { code: "changed".into(), message });
        }
        let completed = if self.hole { self.file.set_len(self.size) } else { Ok(()) };
        completed.map_err(|error| io_trouble(&error))?;
        self.done = true;
        Ok(Staged { name: std::mem::take(&mut self.name), map })
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.stage.discard(&self.name);
        }
    }
}
