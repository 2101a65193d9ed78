//! The second tier of the cache: sealed chunks in files, which outlive the relay's process.
//!
//! Below the folder there is one for each hub and in it one for each session, of *segments*: files that are only ever appended to, of records `length u32 be ‖ sid ‖ sealed bytes`. The index is
//! in memory, about 120 bytes for each chunk, and is made of the records' heads at the start. Whole segments are given up, the least lately used first ([`Shelf`]). Nothing is synchronised: a chunk that
//! is read is checked against its sid, and one that is damaged, cut off or gone is as if it had never been there.
//!
//! One thread writes. What it does not keep up with is not kept ([`QUEUE_BYTES`]). When the disk is full or fails, the tier is off until the next start, and says so once: nodes notice nothing, chunks
//! come from the hub.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::SystemTime,
};

use bytes::Bytes;
use cortex_runtime::keyfile;
use cortex_wire::{
    id::{HubId, SessionId},
    limits,
    mirror::seal::{Sealed, Sid},
};

use super::shelf::{Evicted, Namespace, Shelf};

/// The least that a disk tier may be given.
pub const LEAST_BYTES: u64 = 16 << 20;
/// What may wait to be written.
const QUEUE_BYTES: u64 = 8 << 20;
/// A segment is full above this, and above a 32nd part of the tier.
const SEGMENT_BYTES: u64 = 8 << 20;
/// What a chunk counts at least, so that the index is bounded with the tier: 65,536 entries for each GiB.
const CHUNK_COUNTS: u64 = 16 * 1024;
const SID_BYTES: usize = 32;
const HEAD_BYTES: usize = 4 + SID_BYTES;

/// Why there is no disk tier.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The folder.
    #[error("cannot use the cache folder {path}: {source}; make it writable, or set another with `cache_dir`")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another relay has it.
    #[error("another relay uses the cache folder {0}; give each a `cache_dir` of its own")]
    InUse(PathBuf),
    /// Too little to be of use.
    #[error("`cache_disk_bytes` is {0}; a disk tier needs at least {LEAST_BYTES}, or remove `cache_dir` to have none")]
    TooSmall(u64),
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    segment: u64,
    /// Of its record.
    offset: u64,
    length: u32,
}

/// What is known of a segment besides its weight.
#[derive(Debug, Default)]
struct Segment {
    sids: Vec<Sid>,
    counts: u64,
}

struct Index {
    segments: Shelf<u64, Segment>,
    places: HashMap<Namespace, HashMap<Sid, Place>>,
    /// Sessions that have a folder.
    folders: HashSet<Namespace>,
    writing: HashMap<Namespace, u64>,
    next: u64,
}

enum Order {
    Recover,
    Write(Namespace, Sealed),
    Remove(Namespace),
}

struct Inner {
    folder: PathBuf,
    hubs: RwLock<HashMap<usize, HubId>>,
    segment_bytes: u64,
    index: Mutex<Index>,
    off: AtomicBool,
    queued: AtomicU64,
    damaged: AtomicU64,
    /// Held as long as the tier is used.
    _lock: File,
}

/// The tier. Cheap to clone.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
    orders: mpsc::Sender<Order>,
}

impl Disk {
    /// Opens the tier in a folder, which is made when there is none. `hubs`: those that the relay serves, by the numbers of their tenants; what is kept of others goes. What lies there is found again in the background.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(folder: &Path, bytes: u64, hubs: HashMap<usize, HubId>) -> Result<Self, DiskError> {
        if bytes < LEAST_BYTES {
            return Err(DiskError::TooSmall(bytes));
        }
        let failed = |source| DiskError::Folder { path: folder.to_owned(), source };
        let folder = folder.join("chunks");
        keyfile::make_private_dir(&folder).map_err(failed)?;
        let lock = File::create(folder.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(DiskError::InUse(folder)),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let folders = folders(&folder, &hubs).map_err(failed)?;
        let index = Index { segments: Shelf::new(bytes), places: HashMap::new(), folders, writing: HashMap::new(), next: 1 };
        let inner = Arc::new(Inner {
            folder,
            hubs: RwLock::new(hubs),
            segment_bytes: SEGMENT_BYTES.min(bytes / 32),
            index: Mutex::new(index),
            off: AtomicBool::new(false),
            queued: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            _lock: lock,
        });
        let (orders, incoming) = mpsc::channel();
        let _ = orders.send(Order::Recover);
        let writer = inner.clone();
        std::thread::Builder::new()
            .name("cache".into())
            .spawn(move || incoming.iter().for_each(|order| writer.obey(order)))
            .map_err(failed)?;
        Ok(Self { inner, orders })
    }

    /// These are the hubs that the relay serves now. What is kept of others is of no use to anybody, and goes when the tier is opened again.
    pub fn serve(&self, hubs: HashMap<usize, HubId>) {
        *self.inner.hubs.write().unwrap_or_else(PoisonError::into_inner) = hubs;
    }

    /// Keeps a chunk, soon. It is not kept when the disk is too slow.
    pub fn put(&self, namespace: Namespace, chunk: &Sealed) {
        let weight = chunk.bytes().len() as u64;
        if self.is_off() || self.inner.queued.load(Relaxed) + weight > QUEUE_BYTES || self.holds(namespace, &chunk.sid()) {
            return;
        }
        self.inner.queued.fetch_add(weight, Relaxed);
        let _ = self.orders.send(Order::Write(namespace, chunk.clone()));
    }

    /// Whether a chunk is likely to be here.
    pub fn holds(&self, namespace: Namespace, sid: &Sid) -> bool {
        !self.is_off() && self.inner.index().places.get(&namespace).is_some_and(|places| places.contains_key(sid))
    }

    /// Reads chunks and checks them; those that are not there or damaged are left out. Blocks.
    pub fn read(&self, namespace: Namespace, sids: &[Sid]) -> Vec<Sealed> {
        sids.iter().filter_map(|sid| self.inner.read(namespace, *sid)).collect()
    }

    /// Forgets everything of a session: at once, and its files soon.
    pub fn purge(&self, namespace: Namespace) {
        let mut index = self.inner.index();
        index.forget(namespace);
        if index.folders.contains(&namespace) {
            let _ = self.orders.send(Order::Remove(namespace));
        }
    }

    /// Sessions of a hub of which something may be kept.
    pub fn sessions_of(&self, hub: usize) -> Vec<SessionId> {
        self.inner.index().folders.iter().filter(|(of, _)| *of == hub).map(|(_, session)| *session).collect()
    }

    /// Bytes that count towards the tier's limit.
    pub fn bytes(&self) -> u64 {
        self.inner.index().segments.bytes()
    }

    /// Chunks that were not what they should be when they were read.
    pub fn damaged(&self) -> u64 {
        self.inner.damaged.load(Relaxed)
    }

    /// Whether the disk has failed.
    pub fn is_off(&self) -> bool {
        self.inner.off.load(Relaxed)
    }
}

impl Index {
    /// Everything of a session but its folder.
    fn forget(&mut self, namespace: Namespace) {
        self.segments.purge(namespace);
        self.places.remove(&namespace);
        self.writing.remove(&namespace);
    }

    /// The segment that is appended to, and whether it is a new one.
    fn segment_to_write(&mut self, namespace: Namespace, full: u64) -> (u64, bool) {
        let open = self.writing.get(&namespace).copied();
        let room = open.filter(|number| self.segments.get(namespace, number).is_some_and(|segment| segment.counts < full));
        if let Some(number) = room {
            return (number, false);
        }
        let number = self.next;
        self.next += 1;
        self.writing.insert(namespace, number);
        (number, true)
    }

    fn add(&mut self, namespace: Namespace, number: u64, sid: Sid, place: Place) -> Vec<Evicted<u64, Segment>> {
        let counts = (HEAD_BYTES as u64 + u64::from(place.length)).max(CHUNK_COUNTS);
        let evicted = match self.segments.get(namespace, &number) {
            Some(segment) => {
                segment.sids.push(sid);
                segment.counts += counts;
                self.segments.grow(namespace, &number, counts)
            }
            None => self.segments.insert(namespace, number, Segment { sids: vec![sid], counts }, counts),
        };
        self.places.entry(namespace).or_default().insert(sid, place);
        evicted.iter().for_each(|(namespace, number, segment)| self.unplace(*namespace, *number, segment));
        evicted
    }

    /// Of the chunks of a segment that is given up, those that lie there and not elsewhere.
    fn unplace(&mut self, namespace: Namespace, number: u64, segment: &Segment) {
        if let Some(places) = self.places.get_mut(&namespace) {
            for sid in &segment.sids {
                if places.get(sid).is_some_and(|place| place.segment == number) {
                    places.remove(sid);
                }
            }
        }
        if self.writing.get(&namespace) == Some(&number) {
            self.writing.remove(&namespace);
        }
    }
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, (hub, session): Namespace) -> Option<PathBuf> {
        let hubs = self.hubs.read().unwrap_or_else(PoisonError::into_inner);
        Some(self.folder.join(hubs.get(&hub)?.to_string()).join(session.to_string()))
    }

    fn segment(&self, namespace: Namespace, number: u64) -> Option<PathBuf> {
        Some(self.folder(namespace)?.join(name(number)))
    }

    fn obey(&self, order: Order) {
        let done = match order {
            Order::Recover => self.recover(),
            Order::Write(namespace, chunk) => {
                self.queued.fetch_sub(chunk.bytes().len() as u64, Relaxed);
                if self.off.load(Relaxed) { Ok(()) } else { self.write(namespace, &chunk) }
            }
            Order::Remove(namespace) => self.remove(namespace),
        };
        if let Err(error) = done {
            self.fail(&error);
        }
    }

    /// The tier is off from now on.
    fn fail(&self, error: &io::Error) {
        if !self.off.swap(true, Relaxed) {
            let folder = self.folder.display();
            tracing::error!(%error, %folder, "the disk tier of the chunk cache is off: its disk is full or fails; chunks come from memory and from the hub. Make room or set another `cache_dir`, and restart the relay");
        }
    }

    fn write(&self, namespace: Namespace, chunk: &Sealed) -> io::Result<()> {
        let Some(folder) = self.folder(namespace) else { return Ok(()) };
        let (number, fresh) = {
            let mut index = self.index();
            if index.places.get(&namespace).is_some_and(|places| places.contains_key(&chunk.sid())) {
                return Ok(());
            }
            index.folders.insert(namespace);
            index.segment_to_write(namespace, self.segment_bytes)
        };
        if fresh {
            keyfile::make_private_dir(&folder)?;
        }
        let length = u32::try_from(chunk.bytes().len()).map_err(io::Error::other)?;
        let record = [&length.to_be_bytes()[..], &chunk.sid().0, chunk.bytes()].concat();
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(folder.join(name(number)))?;
        let offset = file.metadata()?.len();
        file.write_all(&record)?;
        let evicted = self.index().add(namespace, number, chunk.sid(), Place { segment: number, offset, length });
        self.unlink(&evicted)
    }

    /// The files of segments that were given up.
    fn unlink(&self, evicted: &[Evicted<u64, Segment>]) -> io::Result<()> {
        for (namespace, number, _) in evicted {
            if let Some(path) = self.segment(*namespace, *number) {
                absent_is_fine(fs::remove_file(path))?;
            }
        }
        Ok(())
    }

    fn remove(&self, namespace: Namespace) -> io::Result<()> {
        {
            let mut index = self.index();
            index.forget(namespace);
            index.folders.remove(&namespace);
        }
        self.folder(namespace).map_or(Ok(()), |folder| absent_is_fine(fs::remove_dir_all(folder)))
    }

    fn read(&self, namespace: Namespace, sid: Sid) -> Option<Sealed> {
        let place = {
            let mut index = self.index();
            let place = *index.places.get(&namespace)?.get(&sid)?;
            index.segments.get(namespace, &place.segment)?;
            place
        };
        let (path, mut bytes) = (self.segment(namespace, place.segment)?, vec![0; HEAD_BYTES + place.length as usize]);
        let outcome = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, place.offset));
        let sealed = match outcome {
            Ok(()) if bytes[4..HEAD_BYTES] == sid.0 => Sealed::check(sid, Bytes::from(bytes).slice(HEAD_BYTES..)),
            Ok(()) => None,
            // Given up meanwhile, or cut off.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => None,
            Err(error) => {
                self.fail(&error);
                return None;
            }
        };
        if sealed.is_none() {
            self.damaged.fetch_add(1, Relaxed);
            let mut index = self.index();
            if let Some(places) = index.places.get_mut(&namespace) {
                places.remove(&sid);
            }
        }
        sealed
    }

    /// Finds what an earlier process left, oldest first.
    fn recover(&self) -> io::Result<()> {
        let mut found: Vec<(SystemTime, Namespace, u64, PathBuf)> = Vec::new();
        let folders: Vec<Namespace> = self.index().folders.iter().copied().collect();
        for namespace in folders {
            let Some(folder) = self.folder(namespace) else { continue };
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if let Some(number) = entry.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok()) {
                    found.push((entry.metadata()?.modified()?, namespace, number, entry.path()));
                }
            }
        }
        found.sort();
        for (_, namespace, number, path) in found {
            let (records, sound) = heads(&path)?;
            let mut index = self.index();
            index.next = index.next.max(number + 1);
            let mut evicted = Vec::new();
            for (sid, offset, length) in records {
                evicted.extend(index.add(namespace, number, sid, Place { segment: number, offset, length }));
            }
            match index.segments.get(namespace, &number) {
                // What comes after a cut would not be found again.
                Some(_) if sound => _ = index.writing.insert(namespace, number),
                Some(_) => {}
                None => absent_is_fine(fs::remove_file(&path))?,
            }
            drop(index);
            self.unlink(&evicted)?;
        }
        Ok(())
    }
}

/// A segment's file.
fn name(number: u64) -> String {
    format!("{number:016x}")
}

fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The sessions that have folders. Those of hubs that are not served any more go.
fn folders(root: &Path, hubs: &HashMap<usize, HubId>) -> io::Result<HashSet<Namespace>> {
    let mut found = HashSet::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let name = entry.file_name();
        let Some(hub) = hubs.iter().find(|(_, hub)| name.to_str() == Some(&hub.to_string())).map(|(number, _)| *number) else {
            fs::remove_dir_all(entry.path())?;
            continue;
        };
        for session in fs::read_dir(entry.path())? {
            let session = session?;
            match session.file_name().to_str().and_then(|name| name.parse::<SessionId>().ok()) {
                Some(id) => _ = found.insert((hub, id)),
                None => absent_is_fine(fs::remove_dir_all(session.path()))?,
            }
        }
    }
    Ok(found)
}

/// Sid, offset and length of sealed bytes.
type Record = (Sid, u64, u32);

/// The head of each whole record of a segment, and whether nothing else is in it.
fn heads(path: &Path) -> io::Result<(Vec<Record>, bool)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let (mut found, mut offset) = (Vec::new(), 0);
    let mut head = [0; HEAD_BYTES];
    while offset + HEAD_BYTES as u64 <= size {
        file.read_exact_at(&mut head, offset)?;
        let Some((length, sid)) = head.split_first_chunk() else { break };
        let (length, Ok(sid)) = (u32::from_be_bytes(*length), sid.try_into()) else { break };
        let end = offset + HEAD_BYTES as u64 + u64::from(length);
        if length as usize > limits::SEALED_CHUNK_BYTES || end > size {
            return Ok((found, false));
        }
        found.push((Sid(sid), offset, length));
        offset = end;
    }
    Ok((found, offset == size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_wire::key::SecretKey;
    use std::time::{Duration, Instant};

    fn hub(seed: u8) -> HubId {
        SecretKey::from_seed([seed; 32]).public().into()
    }

    fn namespace(n: u128) -> Namespace {
        (0, SessionId(uuid::Uuid::from_u128(n)))
    }

    fn chunk(n: u64, length: usize) -> Sealed {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
        Sealed::check(Sid(*blake3::hash(&bytes).as_bytes()), bytes.into()).unwrap()
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let since = Instant::now();
        while !holds() {
            assert!(since.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn open(folder: &Path) -> Disk {
        let since = Instant::now();
        loop {
            // The thread of the tier that was here before may still be ending.
            match Disk::open(folder, LEAST_BYTES, [(0, hub(1))].into()) {
                Err(DiskError::InUse(_)) if since.elapsed() < Duration::from_secs(10) => std::thread::sleep(Duration::from_millis(2)),
                opened => return opened.unwrap(),
            }
        }
    }

    fn put(disk: &Disk, namespace: Namespace, chunk: &Sealed) {
        disk.put(namespace, chunk);
        until("the chunk is kept", || disk.holds(namespace, &chunk.sid()));
    }

    fn segments(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![folder.join("chunks")];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != "lock") {
                if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found
    }

    #[test]
    fn chunks_outlive_the_process_and_are_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (chunk(1, 50_000), chunk(2, 300));
        put(&open(folder.path()), namespace(1), &one);
        let disk = open(folder.path());
        until("it is found again", || disk.holds(namespace(1), &one.sid()));
        put(&disk, namespace(1), &two);
        assert_eq!(segments(folder.path()).len(), 1);
        assert_eq!(disk.read(namespace(1), &[two.sid(), one.sid(), chunk(3, 70).sid()]), [two.clone(), one.clone()]);
        assert_eq!(disk.read(namespace(2), &[one.sid()]), [], "another session's");
        drop(disk);
        let disk = open(folder.path());
        until("both are found again", || disk.holds(namespace(1), &two.sid()));
        assert_eq!(disk.read(namespace(1), &[one.sid(), two.sid()]), [one, two]);
    }

    #[test]
    fn what_was_damaged_or_cut_off_is_a_miss_and_nothing_else_suffers() {
        let folder = tempfile::tempdir().unwrap();
        let chunks: Vec<_> = (0..4).map(|n| chunk(n, 1_000)).collect();
        let disk = open(folder.path());
        chunks.iter().for_each(|chunk| put(&disk, namespace(1), chunk));
        let file = segments(folder.path()).remove(0);
        let mut bytes = fs::read(&file).unwrap();
        bytes[1_036 + 500] ^= 1;
        fs::write(&file, &bytes[..bytes.len() - 10]).unwrap();
        let sids: Vec<_> = chunks.iter().map(Sealed::sid).collect();
        assert_eq!(disk.read(namespace(1), &sids), [chunks[0].clone(), chunks[2].clone()]);
        assert_eq!((disk.damaged(), disk.is_off(), disk.holds(namespace(1), &sids[1])), (2, false, false));
        put(&disk, namespace(1), &chunks[1]);
        assert_eq!(disk.read(namespace(1), &sids[1..2]), chunks[1..2]);
        // And after another start, with a last record that is not whole.
        drop(disk);
        let disk = open(folder.path());
        until("it is found again", || disk.holds(namespace(1), &sids[2]));
        put(&disk, namespace(1), &chunk(9, 900));
        assert_eq!(disk.read(namespace(1), &[sids[0], chunk(9, 900).sid()]).len(), 2);
    }

    #[test]
    fn random_bytes_for_a_segment_are_survived() {
        let folder = tempfile::tempdir().unwrap();
        put(&open(folder.path()), namespace(1), &chunk(1, 500));
        let place = segments(folder.path()).remove(0);
        for seed in 0..50 {
            let noise = chunk(seed, 2_000).into_bytes();
            let mut written = fs::read(&place).unwrap_or_default();
            written.truncate(usize::try_from(seed * 11).unwrap());
            written.extend_from_slice(&noise);
            fs::write(place.with_file_name(format!("{:016x}", seed + 16)), written).unwrap();
        }
        let disk = open(folder.path());
        until("something is found", || disk.holds(namespace(1), &chunk(1, 500).sid()));
        // A copy that is damaged may have been found last: then nothing is there, and it can be kept again.
        until("what is kept is whole", || {
            let read = disk.read(namespace(1), &[chunk(1, 500).sid()]);
            assert!(read.is_empty() || read == [chunk(1, 500)], "{read:?}");
            disk.put(namespace(1), &chunk(1, 500));
            !read.is_empty()
        });
    }

    #[test]
    fn the_folder_never_takes_more_than_it_was_given_and_the_latest_stay() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path());
        for n in 0..200 {
            put(&disk, namespace(u128::from(n % 3)), &chunk(n, 250_000));
        }
        let taken: u64 = segments(folder.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(taken <= LEAST_BYTES && disk.bytes() <= LEAST_BYTES, "{taken} {}", disk.bytes());
        assert!(taken > LEAST_BYTES / 2, "{taken}");
        assert!(disk.holds(namespace(199 % 3), &chunk(199, 250_000).sid()) && !disk.holds(namespace(0), &chunk(0, 250_000).sid()));
        // After another start, too; and tiny chunks count for what their index takes.
        drop(disk);
        let disk = open(folder.path());
        until("it is found again", || disk.holds(namespace(199 % 3), &chunk(199, 250_000).sid()));
        for n in 0..1_500 {
            put(&disk, namespace(7), &chunk(n, 60));
        }
        assert!(disk.bytes() <= LEAST_BYTES);
        assert!(!disk.holds(namespace(7), &chunk(0, 60).sid()) && disk.holds(namespace(7), &chunk(1_499, 60).sid()));
    }

    #[test]
    fn a_purged_session_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path());
        for n in 0..10 {
            put(&disk, namespace(1), &chunk(n, 5_000));
            put(&disk, namespace(2), &chunk(n, 5_000));
        }
        disk.put(namespace(1), &chunk(50, 5_000)); // perhaps not written yet
        disk.purge(namespace(1));
        assert!(!disk.holds(namespace(1), &chunk(3, 5_000).sid()));
        until("its folder goes", || disk.sessions_of(0) == [namespace(2).1]);
        assert!(segments(folder.path()).iter().all(|path| path.to_string_lossy().contains(&namespace(2).1.to_string())));
        assert_eq!(disk.read(namespace(2), &[chunk(3, 5_000).sid()]).len(), 1);
    }

    #[test]
    fn a_disk_that_fails_turns_the_tier_off_and_hurts_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path());
        put(&disk, namespace(1), &chunk(1, 500));
        // Where the next session's folder would be, there is a file: the same as any error of a disk.
        fs::write(folder.path().join("chunks").join(hub(1).to_string()).join(namespace(2).1.to_string()), "").unwrap();
        disk.put(namespace(2), &chunk(2, 500));
        until("it is off", || disk.is_off());
        assert!(!disk.holds(namespace(1), &chunk(1, 500).sid()));
        disk.put(namespace(1), &chunk(3, 500));
        disk.purge(namespace(1));
        until("what is purged goes all the same", || segments(folder.path()).len() == 1);
    }

    #[test]
    fn one_folder_is_for_one_relay_and_only_for_hubs_that_it_serves() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path());
        put(&disk, namespace(1), &chunk(1, 500));
        assert!(matches!(Disk::open(folder.path(), LEAST_BYTES, [(0, hub(1))].into()), Err(DiskError::InUse(_))));
        assert!(matches!(Disk::open(folder.path(), 1_000, [(0, hub(1))].into()), Err(DiskError::TooSmall(1_000))));
        drop(disk);
        until("the tier has ended", || Disk::open(folder.path(), LEAST_BYTES, [(0, hub(2))].into()).is_ok());
        assert_eq!(segments(folder.path()), Vec::<PathBuf>::new());
    }
}
