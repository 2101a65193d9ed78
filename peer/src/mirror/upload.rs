//! Contents on their way to the hub: read, cut, sealed, stored.
//!
//! [`make`] reads and seals on a thread of its own; [`store`] sends what comes out, in flights, and says of a file that it is stored once all of its chunks are
//! durable at the hub. Between the two is a short queue, so whatever the files' size, few chunks are in memory.
//!
//! Small files of one upload share chunks (bundles). Of a large file only those chunks are sealed that its last version had not, and only those are sent that the
//! hub has not.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use cortex_runtime::chunk::{Asker, ChunkError, ChunkSource};
use cortex_wire::{
    limits,
    mirror::{
        cut::{self, Cuts, Cutter},
        entry::{Content, Entry, Hash, Sid, Span, file_hash},
        path::RelPath,
        replica::Trouble,
        seal::{Keys, SealError, Sealed, Sealer},
        tree::Tree,
    },
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    cache::Cache,
    chunks::{ChunkMap, Cut},
    read::{ReadError, Reading},
    root::Root,
    store::Store,
};

/// Chunks between maker and sender.
pub const QUEUE: usize = 16;
/// What is stored, and made durable at the hub, at once.
const FLIGHT_BYTES: usize = 4 * 1024 * 1024;
/// Flights under way.
const FLIGHTS: usize = 3;
/// Chunks of a large file that are sealed side by side.
const SIDE_BY_SIDE: usize = 16;
/// Below this, asking which chunks the hub has takes longer than sending them.
const WORTH_ASKING: usize = 4;
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
}

/// What comes out.
#[derive(Debug)]
pub enum Made {
    /// A chunk. `perhaps_known`: the hub may have it already.
    Chunk {
        /// Sealed.
        sealed: Sealed,
        /// Worth asking for.
        perhaps_known: bool,
    },
    /// A file, all of whose chunks came before.
    File(MadeFile),
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

/// Reads and seals files. Blocks. Ends early when nobody listens.
pub fn make(source: &Source, wanted: &[(RelPath, Hash)], tell: &mpsc::Sender<Made>) {
    let copies = if wanted.len() >= WORTH_LOOKING { copies(source, wanted) } else { HashMap::new() };
    let mut maker = Maker {
        source,
        tell,
        sealers: [Sealer::new(source.keys.clone()), Sealer::new(source.keys.clone())],
        cuts: None,
        bundle: Vec::new(),
        bundled: Vec::new(),
    };
    for (path, hash) in wanted {
        let made = match copies.get(hash) {
            Some(entry) => maker.tell(Made::File(MadeFile { path: path.clone(), hash: *hash, entry: entry.clone(), map: None })),
            None => maker.file(path, *hash),
        };
        let trouble = match made {
            Ok(()) => continue,
            Err(Problem::Closed) => return,
            Err(Problem::Read(ReadError::Io(error))) => trouble("unreadable", format!("it cannot be read: {error}")),
            Err(Problem::Read(error)) => trouble("changed", error.to_string()),
            Err(Problem::Seal(error)) => trouble("no_key", error.to_string()),
        };
        if maker.tell(Made::Failed { path: path.clone(), trouble }).is_err() {
            return;
        }
    }
    let _ = maker.flush();
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

struct Bundled {
    path: RelPath,
    hash: Hash,
    content: [u8; 32],
    executable: bool,
    offset: usize,
    length: usize,
}

struct Maker<'a> {
    source: &'a Source,
    tell: &'a mpsc::Sender<Made>,
    sealers: [Sealer; 2],
    cuts: Option<Cuts>,
    bundle: Vec<u8>,
    bundled: Vec<Bundled>,
}

impl Maker<'_> {
    fn tell(&self, made: Made) -> Result<(), Problem> {
        self.tell.blocking_send(made).map_err(|_| Problem::Closed)
    }

    fn file(&mut self, path: &RelPath, hash: Hash) -> Result<(), Problem> {
        let (folder, name) = self.source.root.place(path).map_err(|_| ReadError::Gone)?;
        let reading = Reading::open(&folder, name)?;
        if reading.before().size > limits::CHUNK_BYTES as u64 { self.large(path, hash, reading) } else { self.small(path, hash, reading) }
    }

    fn small(&mut self, path: &RelPath, hash: Hash, mut reading: Reading) -> Result<(), Problem> {
        let size = usize::try_from(reading.before().size).unwrap_or(usize::MAX);
        if self.bundle.len() + size > limits::CHUNK_BYTES {
            self.flush()?;
        }
        let offset = self.bundle.len();
        // One byte more than there should be, to see its end.
        self.bundle.resize(offset + size + 1, 0);
        let stat = loop {
            let read = match reading.read(&mut self.bundle[offset..]) {
                Ok(0) => break reading.finish(),
                Ok(read) => read,
                Err(error) => break Err(error),
            };
            if read < size {
                break Err(ReadError::Changed);
            }
        };
        self.bundle.truncate(offset + size);
        let content = *blake3::hash(&self.bundle[offset..]).as_bytes();
        let stat = stat
            .and_then(|stat| if file_hash(stat.size, &content, stat.is_executable()) == hash { Ok(stat) } else { Err(ReadError::Changed) });
        let executable = match stat {
            Ok(stat) => stat.is_executable(),
            Err(error) => {
                self.bundle.truncate(offset);
                return Err(error.into());
            }
        };
        if size == 0 {
            let entry = Entry::File { content: Content::empty(), executable };
            return self.tell(Made::File(MadeFile { path: path.clone(), hash, entry, map: None }));
        }
        self.bundled.push(Bundled { path: path.clone(), hash, content, executable, offset, length: size });
        Ok(())
    }

    /// Seals the bundle, and tells of the files in it.
    fn flush(&mut self) -> Result<(), Problem> {
        if self.bundled.is_empty() {
            self.bundle.clear();
            return Ok(());
        }
        let sealed = self.sealers[0].seal(&self.bundle)?;
        self.bundle.clear();
        let sid = sealed.sid();
        self.tell(Made::Chunk { sealed, perhaps_known: false })?;
        for file in std::mem::take(&mut self.bundled) {
            let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
            let span = Span { sid, offset: length(file.offset), length: length(file.length) };
            let content = Content { size: file.length as u64, hash: file.content, depth: 0, spans: Arc::from([span]) };
            let entry = Entry::File { content, executable: file.executable };
            self.tell(Made::File(MadeFile { path: file.path, hash: file.hash, entry, map: None }))?;
        }
        Ok(())
    }

    fn large(&mut self, path: &RelPath, hash: Hash, mut reading: Reading) -> Result<(), Problem> {
        let known = self.known(path);
        let mut cuts = self.cuts.take().unwrap_or_else(|| Cuts::new(Cutter::new(self.source.seed)));
        cuts.reset();
        let mut hasher = blake3::Hasher::new();
        let mut map = ChunkMap::default();
        // Chunks to be sealed, with their place in the map.
        let mut waiting: Vec<(usize, Vec<u8>)> = Vec::new();
        loop {
            let read = reading.read(cuts.space())?;
            cuts.filled(read);
            if read == 0 {
                cuts.end();
            }
            while let Some(chunk) = cuts.next_chunk() {
                hasher.update(chunk);
                let plain = *blake3::hash(chunk).as_bytes();
                let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                let cut = known.get(&plain).copied().filter(|cut| cut.length == length);
                if cut.is_none() {
                    waiting.push((map.0.len(), chunk.to_vec()));
                }
                map.0.push(cut.unwrap_or(Cut { length, plain, sid: Sid([0; 32]), offset: 0 }));
                if waiting.len() >= SIDE_BY_SIDE {
                    self.seal(&mut waiting, &mut map)?;
                }
            }
            if read == 0 {
                break;
            }
        }
        self.cuts = Some(cuts);
        self.seal(&mut waiting, &mut map)?;
        let stat = reading.finish()?;
        let content = *hasher.finalize().as_bytes();
        if file_hash(stat.size, &content, stat.is_executable()) != hash {
            return Err(ReadError::Changed.into());
        }
        let spans = map.0.iter().map(|cut| Span { sid: cut.sid, offset: cut.offset, length: cut.length }).collect();
        let mut pages = Vec::new();
        let sealer = &mut self.sealers[0];
        let content = cut::content(stat.size, content, spans, |page| {
            let sealed = sealer.seal(page)?;
            let sid = sealed.sid();
            pages.push(sealed);
            Ok::<_, SealError>(sid)
        })?;
        for sealed in pages {
            self.tell(Made::Chunk { sealed, perhaps_known: true })?;
        }
        let entry = Entry::File { content, executable: stat.is_executable() };
        self.tell(Made::File(MadeFile { path: path.clone(), hash, entry, map: Some(map) }))
    }

    /// Chunks of the path's last version, and of another file with the same contents.
    fn known(&self, path: &RelPath) -> HashMap<[u8; 32], Cut> {
        let before = match self.source.hub.get(path) {
            Some(Entry::File { content, .. }) => self.source.store.map(&content.hash),
            _ => None,
        };
        let now = {
            let cache = self.source.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.file(path).map(|file| file.content)
        };
        let same = now.and_then(|content| self.source.store.map(&content));
        [before, same].into_iter().flatten().flat_map(|map| map.0).map(|cut| (cut.plain, cut)).collect()
    }

    /// Seals what waits, on two threads, and tells of it.
    fn seal(&mut self, waiting: &mut Vec<(usize, Vec<u8>)>, map: &mut ChunkMap) -> Result<(), Problem> {
        let chunks = std::mem::take(waiting);
        let (left, right) = chunks.split_at(chunks.len().div_ceil(2));
        let [one, two] = &mut self.sealers;
        let all = |sealer: &mut Sealer, chunks: &[(usize, Vec<u8>)]| -> Result<Vec<Sealed>, SealError> {
            chunks.iter().map(|(_, chunk)| sealer.seal(chunk)).collect()
        };
        let sealed = if right.is_empty() {
            all(one, left)?
        } else {
            thread::scope(|scope| {
                let right = scope.spawn(move || all(two, right));
                let mut sealed = all(one, left)?;
                sealed.extend(right.join().unwrap_or(Err(SealError::NoKey))?);
                Ok::<_, SealError>(sealed)
            })?
        };
        for ((at, _), sealed) in chunks.iter().zip(sealed) {
            map.0[*at].sid = sealed.sid();
            self.tell(Made::Chunk { sealed, perhaps_known: true })?;
        }
        Ok(())
    }
}

/// What became of a file.
#[derive(Debug)]
pub enum Stored {
    /// All of its chunks are durable at the hub.
    File(MadeFile),
    /// Not, and why.
    Failed {
        /// Which.
        path: RelPath,
        /// Why.
        trouble: Trouble,
    },
}

type Landed = (Result<(), ChunkError>, Vec<MadeFile>);

#[derive(Default)]
struct Flight {
    chunks: Vec<Sealed>,
    perhaps_known: usize,
    bytes: usize,
    files: Vec<MadeFile>,
}

/// Sends what comes, and tells of each file once.
pub async fn store(chunks: Arc<dyn ChunkSource>, asker: Asker, mut made: mpsc::Receiver<Made>, tell: mpsc::Sender<Stored>) {
    let mut flight = Flight::default();
    let mut under_way: VecDeque<JoinHandle<Landed>> = VecDeque::new();
    let mut failed: Option<ChunkError> = None;
    loop {
        let next = made.recv().await;
        let end = next.is_none();
        match next {
            Some(Made::Chunk { sealed, perhaps_known }) => {
                flight.bytes += sealed.bytes().len();
                flight.perhaps_known += usize::from(perhaps_known);
                flight.chunks.push(sealed);
            }
            Some(Made::File(file)) => flight.files.push(file),
            Some(Made::Failed { path, trouble }) => hand_on(&tell, Stored::Failed { path, trouble }).await,
            None => {}
        }
        if flight.bytes >= FLIGHT_BYTES || end {
            let departing = std::mem::take(&mut flight);
            // After an error the rest would name chunks that are not there.
            let chunks = if failed.is_none() { Some(chunks.clone()) } else { None };
            under_way.push_back(tokio::spawn(async move {
                (fly(chunks, asker, departing.chunks, departing.perhaps_known).await, departing.files)
            }));
        }
        while under_way.len() > if end { 0 } else { FLIGHTS } {
            let Some(landing) = under_way.pop_front() else { break };
            let Ok((outcome, files)) = landing.await else { continue };
            match (outcome, failed) {
                (Ok(()), None) => {
                    for file in files {
                        hand_on(&tell, Stored::File(file)).await;
                    }
                }
                (outcome, earlier) => {
                    let error = earlier.or(outcome.err()).unwrap_or(ChunkError::Lost);
                    failed = Some(error);
                    for file in files {
                        hand_on(&tell, Stored::Failed { path: file.path, trouble: offline(error) }).await;
                    }
                }
            }
        }
        if end {
            return;
        }
    }
}

async fn hand_on(tell: &mpsc::Sender<Stored>, stored: Stored) {
    // A workspace that is gone needs no answer.
    let _ = tell.send(stored).await;
}

/// Why chunks do not travel.
pub fn offline(error: ChunkError) -> Trouble {
    trouble(if error == ChunkError::NoSpace { "no_space_at_hub" } else { "offline" }, error.to_string())
}

async fn fly(source: Option<Arc<dyn ChunkSource>>, asker: Asker, mut chunks: Vec<Sealed>, perhaps_known: usize) -> Result<(), ChunkError> {
    let source = source.ok_or(ChunkError::Lost)?;
    if perhaps_known >= WORTH_ASKING {
        let sids: Vec<Sid> = chunks.iter().map(Sealed::sid).collect();
        let missing: HashSet<Sid> = source.missing(asker, sids).await?.into_iter().collect();
        chunks.retain(|chunk| missing.contains(&chunk.sid()));
    }
    if chunks.is_empty() {
        return Ok(());
    }
    let (send, receive) = mpsc::channel(QUEUE);
    let feed = async move {
        for chunk in chunks {
            if send.send(chunk).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(source.store(asker, receive), feed).0.map(|_| ())
}
