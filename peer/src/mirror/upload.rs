//! Contents on their way to the hub: read, cut, sealed.
//!
//! [`make`] runs on a thread of its own, others cut large files ([`cutting`]) and seal ([`Sealers`]); [`super::flight::store`] sends what comes out. Between them are short queues, so
//! whatever the files' size, few chunks are in memory.
//!
//! Small files of one upload share chunks (bundles). Of a large file only those chunks are sealed that its last version had not, and only those are sent that the
//! hub has not.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cortex_wire::{
    limits,
    mirror::{
        cut::{self, Cutter},
        entry::{Content, Entry, Hash, Sid, Span, file_hash},
        path::RelPath,
        replica::Trouble,
        seal::{Draft, Keys, SealError, Sealed},
        tree::Tree,
    },
};
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, error::TrySendError},
    time::timeout,
};

use super::{
    cache::Cache,
    chunks::{self, ChunkMap, Cut, KnownCuts},
    cutting,
    read::{Contents, ReadError, Reading},
    root::Root,
    sealers::{Sealers, Sealing},
    store::Store,
};

/// Chunks between maker and sender.
pub const QUEUE: usize = 16;
/// Chunks that are sealed side by side, or wait for it.
const SIDE_BY_SIDE: usize = 16;
/// A copy of something that the hub has is looked for when so many files go up together.
const WORTH_LOOKING: usize = 2;

/// What is read, and with what it is sealed.
#[derive(Debug)]
pub struct Source {
    /// The folder.
    pub root: Arc<Root>,
    /// What was seen of the files.
    pub cache: Arc<Mutex<Cache>>,
    /// How large files were cut.
    pub store: Arc<Store>,
    /// Of the session.
    pub keys: Arc<Keys>,
    /// Of the session.
    pub seed: [u8; 8],
    /// What the hub has.
    pub hub: Tree,
    /// Nobody needs it any more.
    pub stop: Arc<AtomicBool>,
    /// Files of which the hub lacks chunks that it was believed to hold: a relay has lied, or the hub was restored from a backup. All of them are sent again.
    pub anew: BTreeSet<RelPath>,
}

/// What comes out.
#[derive(Debug)]
pub enum Made {
    /// A chunk.
    Chunk {
        /// Sealed.
        sealed: Sealed,
        /// The hub may have it already: worth asking for.
        perhaps_known: bool,
    },
    /// Files, all of whose chunks came before.
    Files(Vec<MadeFile>),
    /// A file that was not read.
    Failed {
        /// Which.
        path: RelPath,
        /// Why.
        trouble: Trouble,
    },
}

/// A file that was sealed.
#[derive(Debug)]
pub struct MadeFile {
    /// Which.
    pub path: RelPath,
    /// As it was asked for, and read.
    pub hash: Hash,
    /// Where its bytes are.
    pub entry: Entry,
    /// How it is cut, when it is large.
    pub map: Option<ChunkMap>,
}

enum Problem {
    Read(ReadError),
    Seal(SealError),
    /// Nobody wants it any more.
    Closed,
    /// Whoever takes it is too slow to wait for.
    Slow,
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<SealError> for Problem {
    fn from(error: SealError) -> Self {
        Self::Seal(error)
    }
}

impl Problem {
    /// What to say of a file. `None`: nobody listens.
    fn trouble(self) -> Option<Trouble> {
        match self {
            Self::Closed | Self::Slow => None,
            Self::Read(ReadError::Io(error)) => Some(trouble("unreadable", format!("it cannot be read: {error}"))),
            Self::Read(error) => Some(trouble("changed", error.to_string())),
            Self::Seal(error) => Some(trouble("no_key", error.to_string())),
        }
    }
}

/// Reads and seals files. Blocks. Ends early when nobody listens.
pub fn make(source: Source, wanted: &[(RelPath, Hash)], tell: mpsc::Sender<Made>) {
    let copies = if wanted.len() >= WORTH_LOOKING { copies(&source, wanted) } else { HashMap::new() };
    let mut maker = Maker::new(source, tell, None);
    for (path, hash) in wanted {
        let made = match copies.get(hash) {
            Some(entry) => maker.tell(Made::Files(vec![MadeFile { path: path.clone(), hash: *hash, entry: entry.clone(), map: None }])),
            None => maker.file(path, *hash),
        };
        let Err(problem) = made else { continue };
        let Some(trouble) = problem.trouble() else { return };
        if maker.tell(Made::Failed { path: path.clone(), trouble }).is_err() {
            return;
        }
    }
    maker.finish();
}

fn trouble(code: &str, message: String) -> Trouble {
    Trouble { code: code.into(), message }
}

/// Wanted files that the hub has under another path.
fn copies(source: &Source, wanted: &[(RelPath, Hash)]) -> HashMap<Hash, Entry> {
    let sizes: HashSet<u64> = {
        let cache = source.cache.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.iter().filter_map(|(path, _)| cache.file(path)).map(|file| file.stat.size).collect()
    };
    let wanted: HashSet<Hash> = wanted.iter().map(|(_, hash)| *hash).collect();
    let candidates =
        source.hub.iter().map(|(_, entry)| entry).filter(|entry| matches!(entry, Entry::File { .. }) && sizes.contains(&entry.size()));
    candidates
        .map(|entry| (entry.hash(), entry))
        .filter(|(hash, _)| wanted.contains(hash))
        .map(|(hash, entry)| (hash, entry.clone()))
        .collect()
}

/// A small file in a bundle.
struct Bundled {
    path: RelPath,
    hash: Hash,
    content: [u8; 32],
    executable: bool,
    offset: usize,
    length: usize,
}

impl Bundled {
    fn made(self, sid: Sid) -> MadeFile {
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let span = Span { sid, offset: length(self.offset), length: length(self.length) };
        let content = Content { size: self.length as u64, hash: self.content, depth: 0, spans: Arc::from([span]) };
        MadeFile { path: self.path, hash: self.hash, entry: Entry::File { content, executable: self.executable }, map: None }
    }
}

/// What is being sealed, in the order in which it is told.
enum Pending {
    Bundle {
        sealing: Sealing,
        files: Vec<Bundled>,
    },
    /// Of the large file that is being read: its place in the map.
    Chunk {
        sealing: Sealing,
        at: usize,
    },
}

/// Makes chunks of files.
pub struct Maker {
    source: Source,
    tell: mpsc::Sender<Made>,
    sealers: Sealers,
    cutter: Option<Arc<Cutter>>,
    /// Small files that will share a chunk.
    bundle: Vec<u8>,
    bundled: Vec<Bundled>,
    pending: VecDeque<Pending>,
    /// Of the large file that is being read.
    map: ChunkMap,
    /// Large files are still told of. Once somebody was too slow for one, the others are only read: each would be waited for again.
    sends: bool,
    /// How long it waits for whoever takes what comes out.
    patience: Option<Duration>,
}

impl Maker {
    /// `tell` gets what comes out. With `patience`, what it does not take within that time is dropped.
    pub fn new(source: Source, tell: mpsc::Sender<Made>, patience: Option<Duration>) -> Self {
        let sealers = Sealers::new(source.keys.clone());
        Self {
            source,
            tell,
            patience,
            sends: true,
            sealers,
            cutter: None,
            bundle: Vec::new(),
            bundled: Vec::new(),
            pending: VecDeque::new(),
            map: ChunkMap::default(),
        }
    }

    fn tell(&self, made: Made) -> Result<(), Problem> {
        let Some(patience) = self.patience else { return self.tell.blocking_send(made).map_err(|_| Problem::Closed) };
        match self.tell.try_send(made) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(Problem::Closed),
            Err(TrySendError::Full(made)) => Handle::current().block_on(async {
                let sent = timeout(patience, self.tell.send(made)).await;
                sent.map_err(|_| Problem::Slow)?.map_err(|_| Problem::Closed)
            }),
        }
    }

    fn file(&mut self, path: &RelPath, hash: Hash) -> Result<(), Problem> {
        let (folder, name) = self.source.root.place(path).map_err(|_| ReadError::Gone)?;
        let reading = Reading::open(&folder, name)?;
        if reading.before().size > limits::CHUNK_BYTES as u64 { self.large(path, hash, reading) } else { self.small(path, hash, reading) }
    }

    fn small(&mut self, path: &RelPath, hash: Hash, mut reading: Reading) -> Result<(), Problem> {
        let size = usize::try_from(reading.before().size).unwrap_or(usize::MAX);
        let offset = self.room_for(size)?;
        self.bundle.resize(offset + size, 0);
        let stat = reading.fill(&mut self.bundle[offset..]).and_then(|()| reading.finish());
        let content = *blake3::hash(&self.bundle[offset..]).as_bytes();
        let stat = stat
            .and_then(|stat| if file_hash(stat.size, &content, stat.is_executable()) == hash { Ok(stat) } else { Err(ReadError::Changed) });
        match stat {
            Ok(stat) => self.bundled(path, hash, content, stat.is_executable(), offset),
            Err(error) => {
                self.bundle.truncate(offset);
                Err(error.into())
            }
        }
    }

    /// Takes a small file whose bytes somebody has read. `None`: nobody listens any more.
    pub fn take(&mut self, path: &RelPath, contents: &Contents, bytes: &[u8]) -> Option<Hash> {
        let (hash, executable) = (contents.file_hash(), contents.stat.is_executable());
        let offset = self.room_for(bytes.len()).ok()?;
        self.bundle.extend_from_slice(bytes);
        self.bundled(path, hash, contents.hash, executable, offset).ok()?;
        Some(hash)
    }

    /// Messages that can be told without waiting.
    pub fn room(&self) -> usize {
        self.tell.capacity()
    }

    /// Where a file's bytes begin in the bundle.
    fn room_for(&mut self, size: usize) -> Result<usize, Problem> {
        if self.bundle.len() + size > limits::CHUNK_BYTES {
            self.seal_bundle();
            self.settle(SIDE_BY_SIDE)?;
        }
        if self.bundle.capacity() == 0 {
            self.bundle.reserve_exact(if self.pending.is_empty() { size } else { limits::CHUNK_BYTES });
        }
        Ok(self.bundle.len())
    }

    /// Notes the file whose bytes are the bundle's last.
    fn bundled(&mut self, path: &RelPath, hash: Hash, content: [u8; 32], executable: bool, offset: usize) -> Result<(), Problem> {
        let length = self.bundle.len() - offset;
        if length == 0 {
            let entry = Entry::File { content: Content::empty(), executable };
            return self.tell(Made::Files(vec![MadeFile { path: path.clone(), hash, entry, map: None }]));
        }
        self.bundled.push(Bundled { path: path.clone(), hash, content, executable, offset, length });
        Ok(())
    }

    fn seal_bundle(&mut self) {
        if !self.bundled.is_empty() {
            let (bundle, files) = (std::mem::take(&mut self.bundle), std::mem::take(&mut self.bundled));
            self.pending.push_back(Pending::Bundle { sealing: self.sealers.seal(Draft::new(&bundle)), files });
        }
    }

    /// Seals what is left, and tells of all.
    pub fn finish(mut self) {
        if self.pending.is_empty() && !self.bundled.is_empty() {
            // The only one: no thread is needed for it.
            let sealing = Sealing::Done(self.sealers.seal_here(&self.bundle));
            self.pending.push_back(Pending::Bundle { sealing, files: std::mem::take(&mut self.bundled) });
        }
        self.seal_bundle();
        let _ = self.settle(0);
    }

    /// Tells of what is sealed, until no more than `leave` wait for it.
    fn settle(&mut self, leave: usize) -> Result<(), Problem> {
        while self.pending.len() > leave
            && let Some(pending) = self.pending.pop_front()
        {
            match pending {
                Pending::Bundle { sealing, files } => match sealing.wait() {
                    Ok(sealed) => {
                        let sid = sealed.sid();
                        self.tell(Made::Chunk { sealed, perhaps_known: false })?;
                        self.tell(Made::Files(files.into_iter().map(|file| file.made(sid)).collect()))?;
                    }
                    Err(error) => {
                        for file in files {
                            self.tell(Made::Failed { path: file.path, trouble: trouble("no_key", error.to_string()) })?;
                        }
                    }
                },
                Pending::Chunk { sealing, at } => {
                    let sealed = sealing.wait()?;
                    if let Some(cut) = self.map.0.get_mut(at) {
                        cut.sid = sealed.sid();
                    }
                    self.tell(Made::Chunk { sealed, perhaps_known: true })?;
                }
            }
        }
        Ok(())
    }

    fn large(&mut self, path: &RelPath, hash: Hash, reading: Reading) -> Result<(), Problem> {
        let read = self.chunks(path, reading).and_then(|(contents, now)| {
            if contents.file_hash() == hash && now == *path { Ok(contents) } else { Err(ReadError::Changed.into()) }
        });
        let made = read.and_then(|contents| self.made(path, &contents));
        self.end_of_large();
        self.tell(Made::Files(vec![made?]))
    }

    /// Reads a large file that nobody has asked for yet, and tells of it as it goes, under the path where it lies in the end. When nobody takes that in time, the rest is only read: then there
    /// is no hash.
    pub fn read(&mut self, path: &RelPath, reading: Reading) -> Result<(Contents, RelPath, Option<Hash>), ReadError> {
        let read = self.chunks(path, reading);
        let told = match &read {
            Ok((contents, now)) if self.sends => self.made(now, contents).and_then(|made| self.tell(Made::Files(vec![made]))).is_ok(),
            _ => false,
        };
        self.end_of_large();
        self.sends &= told || read.is_err();
        match read {
            Ok((contents, now)) => Ok((contents, now, told.then(|| contents.file_hash()))),
            Err(Problem::Read(error)) => Err(error),
            // Chunks that are not told of are no reason not to read.
            Err(Problem::Seal(_) | Problem::Closed | Problem::Slow) => Err(ReadError::Changed),
        }
    }

    /// What was sealed of a large file and not told is of no use to anybody.
    fn end_of_large(&mut self) {
        self.map = ChunkMap::default();
        self.pending.retain(|pending| matches!(pending, Pending::Bundle { .. }));
    }

    /// Cuts a file and tells of its chunks. Returns where it lies then, too.
    fn chunks(&mut self, path: &RelPath, reading: Reading) -> Result<(Contents, RelPath), Problem> {
        let known = self.known(path, reading.before().size);
        let cutter = self.cutter.get_or_insert_with(|| Arc::new(Cutter::new(self.source.seed))).clone();
        let mut hasher = blake3::Hasher::new();
        let read = cutting::each(reading, &cutter, &known, |block| {
            hasher.update(block.bytes());
            for (chunk, hash) in block.chunks() {
                if !self.sends {
                    break;
                }
                match self.chunk(chunk, hash, &known) {
                    Err(_) if self.patience.is_some() => self.sends = false,
                    told => told?,
                }
            }
            if self.source.stop.load(Ordering::Relaxed) { Err(Problem::Closed) } else { Ok(()) }
        })?;
        let (stat, now) = read.finish_at(&self.source.root, path)?;
        Ok((Contents { stat, size: stat.size, hash: *hasher.finalize().as_bytes() }, now))
    }

    /// `hash`: the chunk's, if somebody knows it.
    fn chunk(&mut self, chunk: &[u8], hash: Option<[u8; 32]>, known: &KnownCuts) -> Result<(), Problem> {
        let plain = hash.unwrap_or_else(|| *blake3::hash(chunk).as_bytes());
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let cut = known.get(&plain).copied().filter(|cut| cut.length == length);
        if cut.is_none() {
            self.pending.push_back(Pending::Chunk { sealing: self.sealers.seal(Draft::hashed(chunk, plain)), at: self.map.0.len() });
        }
        self.map.0.push(cut.unwrap_or(Cut { length, plain, sid: Sid([0; 32]), offset: 0 }));
        self.settle(SIDE_BY_SIDE)
    }

    /// The large file that was just read, when all of its chunks have been told.
    fn made(&mut self, path: &RelPath, contents: &Contents) -> Result<MadeFile, Problem> {
        self.settle(0)?;
        let spans = self.map.0.iter().map(|cut| Span { sid: cut.sid, offset: cut.offset, length: cut.length }).collect();
        let mut pages = Vec::new();
        let sealers = &mut self.sealers;
        let content = cut::content(contents.size, contents.hash, spans, |page| {
            let sealed = sealers.seal_here(page)?;
            let sid = sealed.sid();
            pages.push(sealed);
            Ok::<_, SealError>(sid)
        })?;
        for sealed in pages {
            self.tell(Made::Chunk { sealed, perhaps_known: true })?;
        }
        let entry = Entry::File { content, executable: contents.stat.is_executable() };
        Ok(MadeFile { path: path.clone(), hash: contents.file_hash(), entry, map: Some(std::mem::take(&mut self.map)) })
    }

    /// Chunks of the path's last version, and of another file with the same contents; of a large file that is all new, those of others that may be like it.
    fn known(&self, path: &RelPath, size: u64) -> KnownCuts {
        if self.source.anew.contains(path) {
            return KnownCuts::default();
        }
        let before = match self.source.hub.get(path) {
            Some(Entry::File { content, .. }) => self.source.store.map(&content.hash),
            _ => None,
        };
        let now = {
            let cache = self.source.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.file(path).map(|file| file.content)
        };
        let same = now.and_then(|content| self.source.store.map(&content));
        let mut maps: Vec<ChunkMap> = [before, same].into_iter().flatten().collect();
        if maps.is_empty() {
            let files = self.source.hub.iter();
            let files =
                files.filter_map(
                    |(path, entry)| if let Entry::File { content, .. } = entry { Some((path, content.size, content.hash)) } else { None },
                );
            maps = chunks::maps(&self.source.store, &chunks::alike(path, size, files));
        }
        KnownCuts::new(maps)
    }
}
