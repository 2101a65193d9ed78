//! Everything that was ever run on this machine, for its owner to read: `cortex-peer log`.
//!
//! Append-only text files, a record in each line, chained: whoever changes, removes or moves a record has to change all behind it. Each result that the hub gets
//! holds the hash of the record of its task's start, so that a chain written anew as a whole does not fit what others hold.
//!
//! ```text
//! log/0000000001.log      hash SPACE json NEWLINE …        hash = BLAKE3-derive("cortex-mesh v1 machine log", hash before ‖ json)
//! first line of a file    {"n":…,"at_ms":…,"event":"file","number":1,"before":"<hash of the last record of the file before>"}
//! ```
//! A task starts when its `start` record is on the disk, and not without it. Environment values and input are never written, long commands are clipped (their
//! `subject` is a hash of all of it). A new file begins above 8 MiB, and the newest 32 are kept. A last line that a crash has cut is taken off at the next start. One
//! thread writes, so that many who wait share one fdatasync.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use cortex_runtime::keyfile::make_private_dir;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

mod entry;
pub mod read;
pub mod show;

pub use entry::{ApprovalNote, Ending, Starting};

/// A new file begins above this.
const FILE_BYTES: u64 = 8 << 20;
/// Files that are kept; the oldest goes when there is one more.
const KEPT_FILES: usize = 32;
/// The end of a task is on the disk after this time at the latest; a start is at once.
const SETTLE: Duration = Duration::from_millis(200);
const GONE: &str = "the log's thread has ended";

/// What ties a record to the one before it.
pub type Hash = [u8; 32];

/// Why the log cannot be used at start.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the log of this machine {path}: {source}")]
pub struct LogError {
    /// The file or folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// From 1, over all files.
    pub n: u64,
    /// By the hub's clock once it has spoken.
    pub at_ms: i64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A file begins.
    File {
        /// Of the file, from 1.
        number: u64,
        /// The hash of the record before, in the file before.
        before: String,
    },
    /// A task is about to start.
    Start(Box<Starting>),
    /// A task has ended, or did not start after all.
    End(Box<Ending>),
}

/// The writing end. Dropping it waits until everything is written.
#[derive(Debug)]
pub struct Log {
    /// Unbounded, and still bounded: a task gives two orders, and waits for the first. `None` when it is dropped.
    orders: Option<mpsc::Sender<Order>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Drop for Log {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[derive(Debug)]
struct Order {
    at_ms: i64,
    what: What,
    /// Somebody waits until it is on the disk.
    written: Option<oneshot::Sender<Result<Hash, String>>>,
}

impl Log {
    /// Goes on with the log in a folder, or begins one.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(folder: &Path) -> Result<Self, LogError> {
        Self::open_with(folder, FILE_BYTES, KEPT_FILES)
    }

    fn open_with(folder: &Path, file_bytes: u64, kept_files: usize) -> Result<Self, LogError> {
        let error = |source| LogError { path: folder.to_owned(), source };
        make_private_dir(folder).map_err(error)?;
        let mut writer = Writer::open(folder, file_bytes, kept_files).map_err(error)?;
        let (orders, queue) = mpsc::channel();
        let writer = thread::Builder::new().name("log".into()).spawn(move || writer.run(&queue)).map_err(error)?;
        Ok(Self { orders: Some(orders), writer: Some(writer) })
    }

    /// Returns when the disk holds that the task is about to start: the hash of that record.
    ///
    /// # Errors
    /// Why it does not: the task must not start then.
    pub async fn start(&self, at_ms: i64, starting: Starting) -> Result<Hash, String> {
        let (written, done) = oneshot::channel();
        self.order(Order { at_ms, what: What::Start(Box::new(starting)), written: Some(written) });
        done.await.unwrap_or_else(|_| Err(GONE.to_owned()))
    }

    /// The task has ended, or did not start after all.
    pub fn end(&self, at_ms: i64, ending: Ending) {
        self.order(Order { at_ms, what: What::End(Box::new(ending)), written: None });
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

/// The hash of a record.
fn link(before: &Hash, json: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("cortex-mesh v1 machine log");
    hasher.update(before).update(json);
    hasher.finalize().into()
}

fn hex(hash: &Hash) -> String {
    data_encoding::HEXLOWER.encode(hash)
}

fn file_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:010}.log"))
}

/// The numbers of the files in a folder, in order.
fn file_numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Where the chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct End {
    n: u64,
    hash: Hash,
    /// Of the file.
    len: u64,
}

struct Writer {
    folder: PathBuf,
    file: File,
    number: u64,
    end: End,
    file_bytes: u64,
    kept_files: usize,
    /// Could not be written yet, and nobody waits for it.
    owed: Vec<(i64, What)>,
    /// Something was written and is perhaps not on the disk yet.
    unsynced: bool,
    /// Bytes of a failed try may stand behind the end.
    torn: bool,
}

impl Writer {
    fn open(folder: &Path, file_bytes: u64, kept_files: usize) -> io::Result<Self> {
        let mut numbers = file_numbers(folder)?;
        // A crash may have left a new file without a whole line in it.
        while let Some(number) = numbers.pop() {
            let path = file_path(folder, number);
            let content = fs::read(&path)?;
            let (end, sound) = read::end_of(&content);
            if end.n == 0 && !numbers.is_empty() {
                fs::remove_file(&path)?;
                continue;
            }
            if !sound {
                tracing::error!(path = %path.display(), "the log of this machine was altered; `cortex-peer log --verify` says where");
            }
            let file = open_file(&path, false)?;
            if end.len < content.len() as u64 {
                tracing::warn!(path = %path.display(), "the last line of the log was cut by a crash and is taken off");
                file.set_len(end.len)?;
                file.sync_all()?;
            }
            let this =
                Self { folder: folder.to_owned(), file, number, end, file_bytes, kept_files, owed: vec![], unsynced: false, torn: false };
            return if end.n == 0 { this.begun(number, 0) } else { Ok(this) };
        }
        let file = open_file(&file_path(folder, 1), true)?;
        let this = Self {
            folder: folder.to_owned(),
            file,
            number: 1,
            end: End::default(),
            file_bytes,
            kept_files,
            owed: vec![],
            unsynced: false,
            torn: false,
        };
        this.begun(1, cortex_runtime::clock::now_ms())
    }

    /// With the first line of its first file.
    fn begun(mut self, number: u64, at_ms: i64) -> io::Result<Self> {
        let (line, end) = self.line(End::default(), at_ms, What::File { number, before: hex(&Hash::default()) })?;
        self.file.write_all_at(&line, 0)?;
        self.file.sync_all()?;
        File::open(&self.folder)?.sync_all()?;
        self.end = end;
        Ok(self)
    }

    fn run(&mut self, queue: &mpsc::Receiver<Order>) {
        loop {
            let first = if self.unsynced { queue.recv_timeout(SETTLE) } else { queue.recv().map_err(RecvTimeoutError::from) };
            match first {
                Ok(first) => self.commit(std::iter::once(first).chain(queue.try_iter()).collect()),
                Err(RecvTimeoutError::Timeout) => self.settle(),
                Err(RecvTimeoutError::Disconnected) => return self.settle(),
            }
        }
    }

    fn settle(&mut self) {
        if let Err(error) = self.file.sync_data() {
            tracing::error!(%error, "the log of this machine cannot be written");
        }
        self.unsynced = false;
    }

    fn commit(&mut self, batch: Vec<Order>) {
        let before = self.end;
        let starts = batch.iter().any(|order| order.written.is_some());
        let hashes = self.append(&batch).and_then(|hashes| {
            if starts {
                self.file.sync_data()?;
            }
            Ok(hashes)
        });
        match hashes {
            Ok(hashes) => {
                self.owed.clear();
                self.unsynced = !starts;
                for (order, hash) in batch.into_iter().zip(hashes) {
                    if let Some(written) = order.written {
                        let _ = written.send(Ok(hash));
                    }
                }
                if self.end.len > self.file_bytes
                    && let Err(error) = self.rotate()
                {
                    tracing::warn!(%error, "the log of this machine could not begin a new file; this one grows on");
                }
            }
            Err(error) => {
                tracing::error!(%error, "the log of this machine cannot be written; no task starts until it can");
                self.end = before;
                // What was written of it must not be taken for records.
                self.torn = self.file.set_len(before.len).is_err();
                for Order { at_ms, what, written } in batch {
                    match written {
                        Some(written) => _ = written.send(Err(error.to_string())),
                        None => self.owed.push((at_ms, what)),
                    }
                }
            }
        }
    }

    /// Writes what is owed and what is new; the hashes of what is new.
    fn append(&mut self, batch: &[Order]) -> io::Result<Vec<Hash>> {
        if std::mem::take(&mut self.torn) {
            self.file.set_len(self.end.len).inspect_err(|_| self.torn = true)?;
        }
        let (mut end, mut bytes, mut hashes) = (self.end, Vec::new(), Vec::new());
        let owed = self.owed.iter().map(|(at_ms, what)| (*at_ms, what.clone(), false));
        for (at_ms, what, is_new) in owed.chain(batch.iter().map(|order| (order.at_ms, order.what.clone(), true))) {
            let (line, next) = self.line(end, at_ms, what)?;
            bytes.extend_from_slice(&line);
            end = next;
            if is_new {
                hashes.push(end.hash);
            }
        }
        self.file.write_all_at(&bytes, self.end.len)?;
        self.end = end;
        Ok(hashes)
    }

    /// A line behind `end`, and where the chain ends with it.
    fn line(&self, end: End, at_ms: i64, what: What) -> io::Result<(Vec<u8>, End)> {
        let n = end.n + 1;
        let json = serde_json::to_string(&Record { n, at_ms, what })?;
        let hash = link(&end.hash, json.as_bytes());
        let line = format!("{} {json}\n", hex(&hash)).into_bytes();
        let len = end.len + line.len() as u64;
        Ok((line, End { n, hash, len }))
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let number = self.number + 1;
        let path = file_path(&self.folder, number);
        let file = open_file(&path, true)?;
        let what = What::File { number, before: hex(&self.end.hash) };
        let (line, end) = self.line(End { len: 0, ..self.end }, cortex_runtime::clock::now_ms(), what)?;
        let written = file.write_all_at(&line, 0).and_then(|()| file.sync_all()).and_then(|()| File::open(&self.folder)?.sync_all());
        written.inspect_err(|_| _ = fs::remove_file(&path))?;
        (self.file, self.number, self.end) = (file, number, end);
        let numbers = file_numbers(&self.folder)?;
        for old in numbers.iter().take(numbers.len().saturating_sub(self.kept_files)) {
            fs::remove_file(file_path(&self.folder, *old))?;
        }
        Ok(())
    }
}

fn open_file(path: &Path, fresh: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(fresh).mode(0o600).open(path)
}

#[cfg(test)]
mod tests;
