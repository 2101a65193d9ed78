//! The packs of one session, and which chunk is where. Everything here blocks on the disk.
//!
//! Appending and making durable are two steps. [`Packs::append`] writes and returns a *mark*; [`Packs::sync`] returns when everything up to a mark is on disk. Whoever comes to it while
//! another waits for the disk is served by the next turn, together with all that was written meanwhile. A chunk counts as held when its mark is durable: nobody builds on what may be lost.
//!
//! Locks are taken in this order: `syncing`, `writer`, `index`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use cortex_wire::mirror::seal::{Sealed, Sid};

use super::{
    ChunkStoreError, Collected,
    pack::{self, Record},
};
use crate::hub::lock;

/// Where a chunk is.
#[derive(Debug, Clone, Copy)]
struct Place {
    pack: u32,
    offset: u32,
    length: u32,
    /// Seconds from the opening (before it: negative) to when it was last written, or asked for by somebody who may be about to name it.
    touched: i32,
    /// Durable when not above [`Index::synced`].
    mark: u64,
}

impl Place {
    fn record(&self, sid: Sid) -> Record {
        Record { sid, offset: self.offset, length: self.length }
    }

    /// What it takes in its pack.
    fn bytes(&self) -> u64 {
        pack::HEADER_BYTES as u64 + u64::from(self.length)
    }
}

#[derive(Debug, Default)]
struct Index {
    places: HashMap<Sid, Place>,
    synced: u64,
}

/// A pack that is written to.
#[derive(Debug)]
struct Active {
    number: u32,
    file: Arc<File>,
    end: u64,
    records: Vec<Record>,
}

#[derive(Debug, Default)]
struct Writer {
    active: Option<Active>,
    next: u32,
    /// Full, and not durable yet.
    full: Vec<Active>,
    /// Full and durable packs, by their length.
    resting: BTreeMap<u32, u64>,
    /// The mark of what was written last.
    mark: u64,
    /// Transfers that run: when each began.
    holds: BTreeMap<u64, i32>,
    next_hold: u64,
}

/// The packs of a session.
#[derive(Debug)]
pub(super) struct Packs {
    dir: PathBuf,
    pack_bytes: u64,
    opened: Instant,
    /// After a failed sync, nobody knows what the disk holds: everything is refused until it is read anew.
    broken: AtomicBool,
    syncing: Mutex<()>,
    writer: Mutex<Writer>,
    index: RwLock<Index>,
}

impl Packs {
    /// Opens a session's folder, making it when there is none. What a killed hub left half written is cut off, and what it left in memory only is made durable.
    pub(super) fn open(dir: PathBuf, pack_bytes: u64) -> Result<Self, ChunkStoreError> {
        make_dir(&dir)?;
        let (mut index, mut writer) = (Index::default(), Writer::default());
        for number in pack::list(&dir)? {
            let file = OpenOptions::new().read(true).write(true).open(pack::path(&dir, number))?;
            let metadata = file.metadata()?;
            let touched = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            let touched = -seconds(touched.unwrap_or_default());
            let (records, full) = match pack::read_index(&dir, number, metadata.len()) {
                Some(records) => (records, true),
                None => (recover(&file, number, metadata.len())?, false),
            };
            for record in &records {
                let place = Place { pack: number, offset: record.offset, length: record.length, touched, mark: 0 };
                index.places.insert(record.sid, place);
            }
            let end = file.metadata()?.len();
            writer.next = number + 1;
            let pack = Active { number, file: Arc::new(file), end, records };
            let at_rest = if full || end >= pack_bytes { Some(pack) } else { writer.active.replace(pack) };
            if let Some(pack) = at_rest {
                writer.resting.insert(pack.number, pack.end);
                if !full {
                    let _ = pack::write_index(&dir, pack.number, &pack.records, pack.end);
                }
            }
        }
        Ok(Self {
            dir,
            pack_bytes,
            opened: Instant::now(),
            broken: AtomicBool::new(false),
            syncing: Mutex::default(),
            writer: Mutex::new(writer),
            index: RwLock::new(index),
        })
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Nothing is read or written any more: the session is removed.
    pub(super) fn abandon(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Returns when whoever was writing has ended. After [`Packs::abandon`], nobody begins.
    pub(super) fn wait_for_writers(&self) {
        let _both = (lock(&self.syncing), lock(&self.writer));
    }

    /// Chunks, and the bytes of their packs.
    pub(super) fn size(&self) -> (u64, u64) {
        let writer = lock(&self.writer);
        let open = writer.active.iter().chain(&writer.full).map(|pack| pack.end);
        let bytes = writer.resting.values().copied().chain(open).sum();
        (self.read_index().places.len() as u64, bytes)
    }

    /// Writes those chunks that are not there yet. They are durable once [`Packs::sync`] has returned for the mark.
    pub(super) fn append(&self, chunks: &[Sealed]) -> Result<u64, ChunkStoreError> {
        let mut writer = self.writer()?;
        let (new, known) = self.sift(chunks);
        if new.is_empty() {
            return Ok(known);
        }
        let mark = writer.mark + 1;
        if writer.active.as_ref().is_some_and(|active| active.end >= self.pack_bytes) {
            let full = writer.active.take();
            writer.full.extend(full);
        }
        let number = writer.next;
        let mut active = match writer.active.take() {
            Some(active) => active,
            None => {
                let active = Active { number, file: Arc::new(self.create(number)?), end: 0, records: Vec::new() };
                writer.next += 1;
                active
            }
        };
        let written = pack::append(&active.file, active.end, &new);
        if let Ok(records) = &written {
            let touched = self.now();
            let mut index = self.write_index();
            for record in records {
                let place = Place { pack: active.number, offset: record.offset, length: record.length, touched, mark };
                index.places.insert(record.sid, place);
                active.end = record.end();
            }
            active.records.extend_from_slice(records);
            writer.mark = mark;
        }
        writer.active = Some(active);
        written?;
        Ok(mark)
    }

    /// What of `chunks` has to be written, each once; and the latest mark of what need not be.
    fn sift(&self, chunks: &[Sealed]) -> (Vec<Sealed>, u64) {
        let (now, mut index) = (self.now(), self.write_index());
        let (mut new, mut seen, mut known) = (Vec::with_capacity(chunks.len()), HashSet::new(), 0);
        for chunk in chunks {
            match index.places.get_mut(&chunk.sid()) {
                Some(place) => {
                    place.touched = now;
                    known = known.max(place.mark);
                }
                None if seen.insert(chunk.sid()) => new.push(chunk.clone()),
                None => {}
            }
        }
        // What is new comes after all that is known.
        (new, known)
    }

    fn create(&self, number: u32) -> Result<File, ChunkStoreError> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(pack::path(&self.dir, number))?;
        sync_dir(&self.dir)?;
        Ok(file)
    }

    /// Whether full packs wait to be made durable.
    pub(super) fn wants_sync(&self) -> bool {
        !lock(&self.writer).full.is_empty()
    }

    /// Makes full packs durable, unless somebody is at it.
    pub(super) fn sync_full(&self) {
        if let Ok(_one) = self.syncing.try_lock()
            && let Err(error) = self.sync_turn(false)
        {
            tracing::error!(dir = %self.dir.display(), %error, "chunks cannot be made durable");
        }
    }

    /// Returns when everything up to `mark` is durable.
    pub(super) fn sync(&self, mark: u64) -> Result<(), ChunkStoreError> {
        let _one = lock(&self.syncing);
        if self.read_index().synced >= mark { self.check() } else { self.sync_turn(true) }
    }

    /// One turn at the disk, for everybody who wrote before it.
    fn sync_turn(&self, all: bool) -> Result<(), ChunkStoreError> {
        let (full, active, mark) = {
            let mut writer = self.writer()?;
            let active = if all { writer.active.as_ref().map(|active| active.file.clone()) } else { None };
            (std::mem::take(&mut writer.full), active, writer.mark)
        };
        let synced = full.iter().map(|pack| &pack.file).chain(&active).try_for_each(|file| file.sync_data());
        if let Err(error) = synced {
            self.fail();
            return Err(error.into());
        }
        for pack in &full {
            // Without an index the pack is read through at the next start.
            let _ = pack::write_index(&self.dir, pack.number, &pack.records, pack.end);
        }
        lock(&self.writer).resting.extend(full.iter().map(|pack| (pack.number, pack.end)));
        if all {
            self.write_index().synced = mark;
        }
        Ok(())
    }

    /// A disk that failed to write may show what it has not kept. Whatever nobody was promised is cut off, and the session is read anew by whoever comes next.
    fn fail(&self) {
        // Nobody writes, and nobody opens the folder again, before it is done.
        let (_writer, index) = (lock(&self.writer), self.read_index());
        let suspects: HashSet<_> = index.places.values().filter(|place| place.mark > index.synced).map(|place| place.pack).collect();
        for number in suspects {
            let kept = index.places.iter().filter(|(_, place)| place.pack == number && place.mark <= index.synced);
            let end = kept.map(|(sid, place)| place.record(*sid).end()).max().unwrap_or(0);
            if let Ok(file) = OpenOptions::new().write(true).open(pack::path(&self.dir, number)) {
                let _ = file.set_len(end);
            }
        }
        self.abandon();
    }

    /// The chunks, in the order of `sids`; `None` for those that are not there.
    pub(super) fn read(&self, sids: &[Sid]) -> Result<Vec<Option<Sealed>>, ChunkStoreError> {
        self.check()?;
        let mut files = HashMap::new();
        sids.iter().map(|sid| self.read_one(sid, &mut files)).collect()
    }

    fn read_one(&self, sid: &Sid, files: &mut HashMap<u32, File>) -> Result<Option<Sealed>, ChunkStoreError> {
        // A second look, when the pack was rewritten between the two steps.
        for _ in 0..2 {
            let Some(place) = self.read_index().places.get(sid).copied() else { return Ok(None) };
            let file = match files.entry(place.pack) {
                std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
                std::collections::hash_map::Entry::Vacant(free) => match File::open(pack::path(&self.dir, place.pack)) {
                    Ok(file) => free.insert(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            if let Some(sealed) = pack::read(file, &place.record(*sid))? {
                return Ok(Some(sealed));
            }
            tracing::error!(dir = %self.dir.display(), pack = place.pack, "a chunk was damaged on disk; a node that has it may store it again");
            self.write_index().places.remove(sid);
            return Ok(None);
        }
        Ok(None)
    }

    /// Those that are not durable here. The others are spared by [`Packs::collect`] for a while.
    pub(super) fn missing(&self, sids: &[Sid]) -> Result<Vec<Sid>, ChunkStoreError> {
        self.check()?;
        let now = self.now();
        let mut index = self.write_index();
        let synced = index.synced;
        let mut held =
            |sid: &Sid| index.places.get_mut(sid).filter(|place| place.mark <= synced).map(|place| place.touched = now).is_some();
        Ok(sids.iter().filter(|sid| !held(sid)).copied().collect())
    }

    /// From now on, nothing that is touched is collected, until [`Packs::release`].
    pub(super) fn hold(&self) -> u64 {
        let now = self.now();
        let mut writer = lock(&self.writer);
        writer.next_hold += 1;
        let hold = writer.next_hold;
        writer.holds.insert(hold, now);
        hold
    }

    pub(super) fn release(&self, hold: u64) {
        lock(&self.writer).holds.remove(&hold);
    }

    /// Removes chunks that are not `live`, and were not touched for `grace` or since the oldest running transfer began. Packs that are mostly dead are rewritten without them; in others they stay,
    /// and can still be used.
    pub(super) fn collect(&self, live: &HashSet<Sid>, grace: Duration) -> Result<Collected, ChunkStoreError> {
        let mut collected = Collected::default();
        let resting = self.rest(grace)?;
        let mut by_pack: HashMap<u32, Vec<(Sid, Place)>> = HashMap::new();
        for (sid, place) in &self.read_index().places {
            if resting.contains_key(&place.pack) {
                by_pack.entry(place.pack).or_default().push((*sid, *place));
            }
        }
        for (number, length) in resting {
            let before = self.before(grace);
            let chunks = by_pack.remove(&number).unwrap_or_default();
            let (kept, dead): (Vec<_>, Vec<_>) = chunks.into_iter().partition(|(sid, place)| live.contains(sid) || place.touched > before);
            let kept_bytes: u64 = kept.iter().map(|(_, place)| place.bytes()).sum();
            if kept_bytes * 2 > length {
                continue;
            }
            let dead: Vec<_> = dead.into_iter().map(|(sid, _)| sid).collect();
            if let Some(new_length) = self.rewrite(number, &kept, &dead, grace)? {
                collected.chunks += dead.len() as u64;
                collected.bytes += length.saturating_sub(new_length);
            }
        }
        Ok(collected)
    }

    /// Packs that may be collected from. The one that is written to is among them when nobody has written to it for `grace`.
    fn rest(&self, grace: Duration) -> Result<BTreeMap<u32, u64>, ChunkStoreError> {
        let before = self.before(grace);
        {
            let mut writer = self.writer()?;
            let idle = writer.holds.is_empty() && {
                let index = self.read_index();
                let young = |record: &Record| index.places.get(&record.sid).is_some_and(|place| place.touched > before);
                writer.active.as_ref().is_some_and(|active| !active.records.iter().any(young))
            };
            if idle {
                let full = writer.active.take();
                writer.full.extend(full);
            }
        }
        let one = lock(&self.syncing);
        self.sync_turn(true)?;
        drop(one);
        Ok(lock(&self.writer).resting.clone())
    }

    /// What was touched later is spared.
    fn before(&self, grace: Duration) -> i32 {
        let oldest = lock(&self.writer).holds.values().copied().min().unwrap_or(i32::MAX);
        // A whole second of doubt, because times are whole seconds.
        (self.now() - seconds(grace)).min(oldest.saturating_sub(1)) - i32::from(!grace.is_zero())
    }

    /// Replaces a pack by one with the kept chunks only. `None`: somebody has asked for a dead one meanwhile.
    fn rewrite(&self, number: u32, kept: &[(Sid, Place)], dead: &[Sid], grace: Duration) -> Result<Option<u64>, ChunkStoreError> {
        let replacement = if kept.is_empty() { None } else { Some(self.copy(number, kept)?) };
        let new_length = replacement.as_ref().map_or(0, |(_, length, _)| *length);
        let before = self.before(grace);
        let mut writer = self.writer()?;
        let mut index = self.write_index();
        let here = |place: &&Place| place.pack == number;
        if dead.iter().any(|sid| index.places.get(sid).filter(here).is_some_and(|place| place.touched > before)) {
            if let Some((new, ..)) = replacement {
                remove_pack(&self.dir, new);
            }
            return Ok(None);
        }
        for sid in dead {
            if index.places.get(sid).filter(here).is_some() {
                index.places.remove(sid);
            }
        }
        if let Some((new, length, records)) = replacement {
            for record in &records {
                if let Some(place) = index.places.get_mut(&record.sid).filter(|place| place.pack == number) {
                    (place.pack, place.offset) = (new, record.offset);
                }
            }
            writer.resting.insert(new, length);
        }
        writer.resting.remove(&number);
        drop((index, writer));
        remove_pack(&self.dir, number);
        Ok(Some(new_length))
    }

    /// Copies chunks to a new pack, durably.
    fn copy(&self, number: u32, kept: &[(Sid, Place)]) -> Result<(u32, u64, Vec<Record>), ChunkStoreError> {
        const GROUP: usize = 32;
        let new = {
            let mut writer = self.writer()?;
            writer.next += 1;
            writer.next - 1
        };
        let (from, draft) = (File::open(pack::path(&self.dir, number))?, pack::draft_path(&self.dir, new));
        let to = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&draft)?;
        let (mut records, mut end) = (Vec::with_capacity(kept.len()), 0);
        let copied = kept.chunks(GROUP).try_for_each(|group| {
            // A damaged chunk is not worth keeping; whoever asks for it hears that it is missing.
            let read = group.iter().filter_map(|(sid, place)| pack::read(&from, &place.record(*sid)).transpose());
            let written = pack::append(&to, end, &read.collect::<io::Result<Vec<_>>>()?)?;
            end = written.last().map_or(end, Record::end);
            records.extend(written);
            Ok::<_, io::Error>(())
        });
        let finished = copied.and_then(|()| {
            to.sync_data()?;
            pack::write_index(&self.dir, new, &records, end)?;
            fs::rename(&draft, pack::path(&self.dir, new))?;
            sync_dir(&self.dir)
        });
        if let Err(error) = finished {
            let _ = fs::remove_file(&draft);
            let _ = fs::remove_file(pack::index_path(&self.dir, new));
            return Err(error.into());
        }
        Ok((new, end, records))
    }

    fn now(&self) -> i32 {
        seconds(self.opened.elapsed())
    }

    fn check(&self) -> Result<(), ChunkStoreError> {
        if self.is_broken() { Err(ChunkStoreError::Closed) } else { Ok(()) }
    }

    fn writer(&self) -> Result<std::sync::MutexGuard<'_, Writer>, ChunkStoreError> {
        let writer = lock(&self.writer);
        self.check()?;
        Ok(writer)
    }

    fn read_index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_index(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a pack without an index through, and cuts its torn end off.
fn recover(file: &File, number: u32, length: u64) -> io::Result<Vec<Record>> {
    let (records, end) = pack::scan(file)?;
    if end < length {
        tracing::warn!(pack = number, bytes = length - end, "cutting off what was half written");
        file.set_len(end)?;
    }
    file.sync_data()?;
    Ok(records)
}

fn remove_pack(dir: &Path, number: u32) {
    for path in [pack::path(dir, number), pack::index_path(dir, number)] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // It is found again at the next start, and collected then.
            tracing::warn!(path = %path.display(), %error, "cannot remove a pack");
        }
    }
}

/// Makes a folder and those above it, durably.
fn make_dir(dir: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        fs::create_dir_all(dir)?;
        dir.ancestors().skip(1).take(2).filter(|above| above.is_dir()).try_for_each(sync_dir)?;
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX / 2)
}
