//! What a peer must remember of its tasks if it dies: which it started, and how they ended.
//!
//! An append-only file. [`Journal::started`] returns when the record is on the disk, and only then may the process start: after a crash, whoever
//! is started without being finished is *lost* and never run again. [`Journal::finished`] keeps the signed result until the hub has it, then comes
//! [`Journal::forgotten`].
//!
//! ```text
//! file    "cxj1" record… zeroes
//! record  length (u32, little-endian) · first 8 bytes of BLAKE3(body) · body (protobuf)
//! ```
//! Reading ends at the first record that is not whole; a crash can cut the last one only. The zeroes are room for what comes: to write over them takes the
//! disk one write instead of three (no size to change, so nothing for the file system's own journal), and a disk that is full can still take the results
//! of tasks that run. One thread writes, so that a slow disk holds up nobody but those who wait for it, and so that many who wait share one fdatasync.
//! When most of the file is about forgotten tasks it is written anew.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use bytes::Bytes;
use cortex_runtime::failpoint;
use cortex_wire::{
    id::TaskId,
    schema::{Approval, Signed},
};
use prost::Message;
use tokio::sync::oneshot;

const MAGIC: &[u8] = b"cxj1";
const CHECKSUM_BYTES: usize = 8;
const HEADER_BYTES: usize = 4 + CHECKSUM_BYTES;
/// A result with a long reason has a few hundred bytes.
const RECORD_BYTES: usize = 64 * 1024;
/// Zeroes are added in pieces of this size.
const ROOM_BYTES: u64 = 256 * 1024;
/// No task starts without this much room left for the results of those that run.
const RESERVE_BYTES: u64 = 64 * 1024;
/// A result that the hub has not collected after this time goes to the disk. Most are collected sooner, and cost the disk nothing.
const SETTLE: Duration = Duration::from_millis(200);
/// Below this, writing the file anew is not worth it.
const COMPACT_ABOVE_BYTES: u64 = 256 * 1024;

/// Why the journal cannot be used at start.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system said no.
    #[error("cannot use the task journal {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another program's file, or a later version's.
    #[error("{0} is not a task journal of this version; move it away to start without it (its tasks are then unknown)")]
    Foreign(PathBuf),
}

/// What is known of a task since it was started.
#[derive(Clone, PartialEq, Message)]
pub struct Started {
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub task_id: Bytes,
    /// Of the grant that started it.
    #[prost(uint64, tag = "2")]
    pub fence: u64,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub at_ms: i64,
    /// Of the policy it was signed under.
    #[prost(bytes = "bytes", tag = "4")]
    pub policy_hash: Bytes,
    /// Hash of what is run, where.
    #[prost(bytes = "bytes", tag = "30")]
    pub subject: Bytes,
    /// The person's yes that let it start.
    #[prost(message, optional, boxed, tag = "31")]
    pub approval: Option<Box<Approval>>,
    /// Behind which walls it runs.
    #[prost(string, tag = "20")]
    pub sandbox_level: String,
}

/// A task of an earlier start, as the journal knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    /// Its beginning.
    pub started: Started,
    /// Its end, if there was one.
    pub result: Option<Signed>,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(oneof = "Event", tags = "1, 2, 3")]
    event: Option<Event>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Event {
    #[prost(message, tag = "1")]
    Started(Started),
    #[prost(message, tag = "2")]
    Finished(Finished),
    #[prost(bytes = "bytes", tag = "3")]
    Forgotten(Bytes),
}

#[derive(Clone, PartialEq, Message)]
struct Finished {
    #[prost(bytes = "bytes", tag = "1")]
    task_id: Bytes,
    #[prost(message, required, tag = "2")]
    result: Signed,
}

/// The writing end. Dropping it waits until everything is written.
#[derive(Debug)]
pub struct Journal {
    /// Unbounded, and still bounded: a task gives at most three orders, and waits for the first. `None` when it is dropped.
    orders: Option<mpsc::Sender<Order>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[derive(Debug)]
struct Order {
    event: Event,
    /// Somebody waits until it is on the disk.
    written: Option<oneshot::Sender<Result<(), String>>>,
}

impl Journal {
    /// Opens the journal at `path`, or makes it, and returns what it holds in order of the tasks' ids.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path) -> Result<(Self, Vec<Remembered>), JournalError> {
        let io_error = |source| JournalError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io_error)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(io_error)?;
        let (live, end) = replay(&content).ok_or_else(|| JournalError::Foreign(path.to_owned()))?;
        let remembered = live.remembered();
        let rest = &content[end..];
        if rest.iter().any(|byte| *byte != 0) {
            tracing::warn!("the end of the task journal was cut by a crash and is dropped");
        }
        let mut writer =
            Writer { path: path.to_owned(), file, end: end as u64, room: content.len() as u64, live, owed: Vec::new(), unsynced: false };
        if end == 0 {
            writer.write(MAGIC, 0).and_then(|()| writer.file.sync_all()).map_err(io_error)?;
        }
        let (orders, queue) = mpsc::channel();
        let writer = thread::Builder::new().name("journal".into()).spawn(move || writer.run(&queue)).map_err(io_error)?;
        Ok((Self { orders: Some(orders), writer: Some(writer) }, remembered))
    }

    /// Returns when the disk holds that the task is about to start.
    ///
    /// # Errors
    /// Why it does not: the task must not start then.
    pub async fn started(&self, started: Started) -> Result<(), String> {
        let (written, done) = oneshot::channel();
        self.order(Order { event: Event::Started(started), written: Some(written) });
        done.await.unwrap_or_else(|_| Err(GONE.to_owned()))
    }

    /// The task has ended with this result.
    pub fn finished(&self, task: &TaskId, result: Signed) {
        let finished = Finished { task_id: Bytes::copy_from_slice(task.as_bytes()), result };
        self.order(Order { event: Event::Finished(finished), written: None });
    }

    /// The hub has the result, or the task never ran.
    pub fn forgotten(&self, task: &TaskId) {
        self.order(Order { event: Event::Forgotten(Bytes::copy_from_slice(task.as_bytes())), written: None });
    }

    /// An order that nobody takes drops its waiter, who then knows.
    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

const GONE: &str = "the journal's thread has ended";

/// Everything that is not forgotten yet.
#[derive(Debug, Default)]
struct Live(BTreeMap<Bytes, Remembered>);

impl Live {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Started(started) => {
                self.0.insert(started.task_id.clone(), Remembered { started, result: None });
            }
            Event::Finished(finished) => {
                if let Some(task) = self.0.get_mut(&finished.task_id) {
                    task.result = Some(finished.result);
                }
            }
            Event::Forgotten(task_id) => {
                self.0.remove(&task_id);
            }
        }
    }

    fn remembered(&self) -> Vec<Remembered> {
        self.0.values().cloned().collect()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for (task_id, task) in &self.0 {
            write_record(&mut out, Event::Started(task.started.clone()));
            if let Some(result) = task.result.clone() {
                write_record(&mut out, Event::Finished(Finished { task_id: task_id.clone(), result }));
            }
        }
        out
    }
}

/// What a file says, and up to where it is whole; `None` when it is not a journal.
fn replay(content: &[u8]) -> Option<(Live, usize)> {
    let mut live = Live::default();
    if !content.starts_with(MAGIC) {
        return MAGIC.starts_with(content).then_some((live, 0));
    }
    let mut end = MAGIC.len();
    while let Some((event, next)) = read_record(content, end) {
        live.apply(event);
        end = next;
    }
    Some((live, end))
}

struct Writer {
    path: PathBuf,
    file: File,
    end: u64,
    /// Up to here the file is there, its end zeroes.
    room: u64,
    live: Live,
    /// Could not be written yet, and nobody waits for it.
    owed: Vec<Event>,
    /// A result was written and is perhaps not on the disk yet.
    unsynced: bool,
}

impl Writer {
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

    /// Results go to the disk with the next start, or when none comes.
    fn settle(&mut self) {
        if let Err(error) = self.file.sync_data() {
            tracing::error!(path = %self.path.display(), %error, "the task journal cannot be written");
        }
        self.unsynced = false;
    }

    fn commit(&mut self, batch: Vec<Order>) {
        let mut bytes = Vec::new();
        for event in self.owed.iter().cloned().chain(batch.iter().map(|order| order.event.clone())) {
            write_record(&mut bytes, event);
        }
        let starts = batch.iter().any(|order| matches!(order.event, Event::Started(_)));
        let written = self.write(&bytes, if starts { RESERVE_BYTES } else { 0 });
        let outcome = written.and_then(|()| if starts { self.file.sync_data() } else { Ok(()) }).map_err(|error| error.to_string());
        if let Err(error) = &outcome {
            tracing::error!(path = %self.path.display(), error, "the task journal cannot be written; no task starts until it can");
        } else {
            std::mem::take(&mut self.owed).into_iter().for_each(|event| self.live.apply(event));
        }
        for Order { event, written } in batch {
            match (&outcome, written) {
                (Ok(()), None) => self.live.apply(event),
                (Ok(()), Some(written)) => {
                    self.live.apply(event);
                    let _ = written.send(Ok(()));
                }
                (Err(_), None) => self.owed.push(event),
                (Err(error), Some(written)) => {
                    // The record may be in the file all the same; the task does not run, so it must not be lost either.
                    if let Event::Started(started) = event {
                        self.owed.push(Event::Forgotten(started.task_id));
                    }
                    let _ = written.send(Err(error.clone()));
                }
            }
        }
        if self.live.0.values().any(|task| task.result.is_some()) {
            failpoint::at("peer.result_journalled");
        }
        // What the hub has already need not be on this disk.
        self.unsynced = !starts && self.live.0.values().any(|task| task.result.is_some());
        if self.end > COMPACT_ABOVE_BYTES && outcome.is_ok() {
            self.compact();
        }
    }

    /// Puts bytes at the end, and sees that `reserve` more would fit.
    fn write(&mut self, bytes: &[u8], reserve: u64) -> io::Result<()> {
        let end = self.end + bytes.len() as u64;
        self.make_room(end + reserve)?;
        self.file.write_all_at(bytes, self.end)?;
        self.end = end;
        Ok(())
    }

    fn make_room(&mut self, upto: u64) -> io::Result<()> {
        if upto > self.room {
            let room = upto.next_multiple_of(ROOM_BYTES);
            let zeroes = vec![0; usize::try_from(room - self.room).unwrap_or(0)];
            self.file.write_all_at(&zeroes, self.room)?;
            self.file.sync_all()?;
            self.room = room;
        }
        Ok(())
    }

    fn compact(&mut self) {
        let content = self.live.encode();
        if content.len() as u64 * 4 > self.end {
            return;
        }
        match replace(&self.path, &content) {
            Ok(file) => {
                self.file = file;
                self.end = content.len() as u64;
                self.room = self.end;
            }
            Err(error) => tracing::warn!(%error, "the task journal could not be written anew; it grows on"),
        }
    }
}

/// Puts a new file in the place of the old one, whole or not at all.
fn replace(path: &Path, content: &[u8]) -> io::Result<File> {
    let staged = path.with_extension("new");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all_at(content, 0)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

fn write_record(out: &mut Vec<u8>, event: Event) {
    let body = Record { event: Some(event) }.encode_to_vec();
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&checksum(&body));
    out.extend_from_slice(&body);
}

/// The record at `start` and where the next one begins.
fn read_record(content: &[u8], start: usize) -> Option<(Event, usize)> {
    let header = content.get(start..start + HEADER_BYTES)?;
    let len = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    if len > RECORD_BYTES {
        return None;
    }
    let end = start + HEADER_BYTES + len;
    let body = content.get(start + HEADER_BYTES..end)?;
    if header[4..] != checksum(body) {
        return None;
    }
    Some((Record::decode(body).ok()?.event?, end))
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut out = [0; CHECKSUM_BYTES];
    out.copy_from_slice(&blake3::hash(body).as_bytes()[..CHECKSUM_BYTES]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> TaskId {
        TaskId::new(i64::from(n), [n; 10])
    }

    fn started(n: u8) -> Started {
        Started {
            task_id: Bytes::copy_from_slice(id(n).as_bytes()),
            fence: u64::from(n),
            at_ms: 7,
            policy_hash: Bytes::from_static(b"h"),
            sandbox_level: "strict".into(),
            ..Started::default()
        }
    }

    fn result(n: u8) -> Signed {
        Signed { body: vec![n; 200].into(), signature: vec![n; 64].into() }
    }

    /// Opens the journal again, after everything is written.
    fn reopen(journal: Journal, path: &Path) -> (Journal, Vec<Remembered>) {
        drop(journal);
        Journal::open(path).unwrap()
    }

    #[tokio::test]
    async fn what_was_started_and_how_it_ended_is_remembered_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, remembered) = Journal::open(&path).unwrap();
        assert_eq!(remembered, []);
        for n in 1..=3 {
            journal.started(started(n)).await.unwrap();
        }
        journal.finished(&id(2), result(2));
        journal.finished(&id(3), result(3));
        journal.forgotten(&id(3));
        let (_, remembered) = reopen(journal, &path);
        let expected = [Remembered { started: started(1), result: None }, Remembered { started: started(2), result: Some(result(2)) }];
        assert_eq!(remembered, expected);
    }

    #[test]
    fn a_journal_cut_anywhere_keeps_every_record_before_the_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut content = MAGIC.to_vec();
        let mut ends = vec![content.len()];
        let events = [
            Event::Started(started(1)),
            Event::Started(started(2)),
            Event::Finished(Finished { task_id: started(1).task_id, result: result(1) }),
            Event::Forgotten(started(1).task_id),
        ];
        for event in events.clone() {
            write_record(&mut content, event);
            ends.push(content.len());
        }
        let expected = |cut: usize| {
            let mut live = Live::default();
            let whole = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
            events[..whole].iter().cloned().for_each(|event| live.apply(event));
            live.remembered()
        };
        for cut in 0..=content.len() {
            for garbage in [&b""[..], &[0; 40], &[0xff; 40]] {
                let replayed = replay(&[&content[..cut], garbage].concat());
                // Garbage instead of the magic is somebody else's file.
                if cut < MAGIC.len() && !garbage.is_empty() {
                    assert!(replayed.is_none());
                } else {
                    assert_eq!(replayed.unwrap().0.remembered(), expected(cut), "cut at {cut}");
                }
            }
        }
        for cut in (0..=content.len()).step_by(37) {
            fs::write(&path, &content[..cut]).unwrap();
            let (journal, remembered) = Journal::open(&path).unwrap();
            let (_, again) = reopen(journal, &path);
            assert_eq!((&remembered, &again), (&expected(cut), &expected(cut)), "written on after a cut at {cut}");
        }
    }

    #[test]
    fn one_changed_bit_is_noticed() {
        let mut content = MAGIC.to_vec();
        write_record(&mut content, Event::Started(started(1)));
        for at in MAGIC.len()..content.len() {
            let mut changed = content.clone();
            changed[at] ^= 1;
            assert_eq!(read_record(&changed, MAGIC.len()), None, "byte {at}");
        }
    }

    #[test]
    fn a_foreign_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs::write(&path, "something else").unwrap();
        assert!(matches!(Journal::open(&path), Err(JournalError::Foreign(_))));
        assert_eq!(fs::read(&path).unwrap(), b"something else");
    }

    #[tokio::test]
    async fn the_file_does_not_grow_with_tasks_that_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (journal, _) = Journal::open(&path).unwrap();
        journal.started(started(1)).await.unwrap();
        for _ in 0..3_000 {
            journal.order(Order { event: Event::Started(started(2)), written: None });
            journal.finished(&id(2), result(2));
            journal.forgotten(&id(2));
        }
        let (_, remembered) = reopen(journal, &path);
        assert_eq!(remembered, [Remembered { started: started(1), result: None }]);
        assert!(fs::metadata(&path).unwrap().len() <= 3 * COMPACT_ABOVE_BYTES);
    }
}
