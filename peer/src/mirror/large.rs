//! Large files are read beside the looks: to hash one takes many seconds, and other edits must not wait for it.
//!
//! A look that finds a large file that it would have to read only names it. It is read by itself, what was read is kept here, and the next look takes that when
//! the file is still the same.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cortex_wire::mirror::path::RelPath;

use super::{
    cache::KnownFile,
    gather::Gather,
    read::{BUFFER_BYTES, Contents, ReadError, Reading, TICK_NS},
    root::{Root, Stat},
    walk::now_ns,
};

/// Above this a file is read beside the looks.
pub const LARGE_BYTES: u64 = 64 * 1024 * 1024;

/// What was read of large files, until a look takes it.
#[derive(Debug, Default)]
pub struct ReadFiles(Mutex<BTreeMap<RelPath, KnownFile>>);

impl ReadFiles {
    fn files(&self) -> MutexGuard<'_, BTreeMap<RelPath, KnownFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was read.
    pub fn put(&self, path: RelPath, file: KnownFile) {
        self.files().insert(path, file);
    }

    /// Takes what was read of a file that looks like this now.
    pub fn take(&self, path: &RelPath, stat: &Stat) -> Option<KnownFile> {
        self.files().remove(path).filter(|file| file.stat == *stat && !is_racy(file))
    }

    /// The same of a file that was renamed since, from one of these paths.
    pub fn take_renamed(&self, stat: &Stat, from: impl Fn(&RelPath) -> bool) -> Option<KnownFile> {
        let mut files = self.files();
        let is_it = |path: &RelPath, file: &KnownFile| file.stat.is_same_but_for_ctime(stat) && !is_racy(file) && from(path);
        let path = files.iter().find(|(path, file)| is_it(path, file))?.0.clone();
        files.remove(&path)
    }

    /// Forgets what no look will ask for.
    pub fn retain(&self, keep: impl Fn(&RelPath) -> bool) {
        self.files().retain(|path, _| keep(path));
    }

    /// Whether looks have taken everything.
    pub fn is_empty(&self) -> bool {
        self.files().is_empty()
    }
}

/// A later write may have left the same times. Times in the future are no reason to read it again and again.
fn is_racy(file: &KnownFile) -> bool {
    let touched_ns = file.stat.ctime_ns.max(file.stat.mtime_ns);
    (touched_ns..=touched_ns.saturating_add(TICK_NS)).contains(&file.looked_at_ns)
}

/// Reads and hashes a file, until `stop`; with `gather`, it goes up meanwhile. Returns where it lies then: it may be renamed while it is read. Blocks.
///
/// # Errors
/// [`ReadError`].
pub fn read(root: &Root, path: &RelPath, stop: &AtomicBool, gather: Option<&mut Gather>) -> Result<(RelPath, KnownFile), ReadError> {
    let looked_at_ns = now_ns();
    let (folder, name) = root.place(path).map_err(|_| ReadError::Gone)?;
    let mut reading = Reading::open(&folder, name)?;
    let (contents, now) = match gather {
        Some(gather) => gather.read(path, reading)?,
        None => {
            let mut hasher = blake3::Hasher::new();
            let piece = |piece: &[u8]| {
                hasher.update(piece);
                if stop.load(Ordering::Relaxed) { Err(ReadError::Changed) } else { Ok(()) }
            };
            reading.each(&mut vec![0; BUFFER_BYTES], piece)?;
            let (stat, now) = reading.finish_at(root, path)?;
            (Contents { stat, size: stat.size, hash: *hasher.finalize().as_bytes() }, now)
        }
    };
    Ok((now, KnownFile::new(&contents, looked_at_ns)))
}
