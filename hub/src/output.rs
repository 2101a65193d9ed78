//! What tasks print: two numbered streams per task, stored as they arrive.
//!
//! Most tasks print little. Up to [`INLINE_BYTES`] a stream stays in memory and is stored as a row, in the transaction of the task's end; a
//! longer one goes to a file of bounded size ([`Spool`]) whose length is a row. A row is written before anything is acknowledged, so after a
//! crash a stream goes on where its row says, and the peer sends what is missing again.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use cortex_runtime::{
    keyfile::make_private_dir,
    spool::{Extent, Spool},
};
use cortex_wire::{
    id::TaskId,
    limits::{OUTPUT_HEAD_BYTES, OUTPUT_TAIL_BYTES},
    schema::OutputStream,
};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::{
    account::Actor,
    failure::{Failure, Kind, Refused},
    hub::{Hub, lock},
    record::{
        OutputRecord, StreamRecord, Task,
        tables::{FORGETTABLE, OUTPUTS, TASKS},
    },
    store::{Db, Order, ReadTx, Span, StoreError, WriteTx},
    task,
};

/// A stream up to here is a row, not a file: most commands print less, and a file costs two synchronisations.
pub const INLINE_BYTES: usize = 4 * 1024;
/// Read at a time, whatever the caller asks for.
const READ_BYTES: usize = 1024 * 1024;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// From a message.
    pub fn from_wire(stream: OutputStream) -> Option<Self> {
        match stream {
            OutputStream::Stdout => Some(Self::Stdout),
            OutputStream::Stderr => Some(Self::Stderr),
            OutputStream::Unspecified => None,
        }
    }
}

/// What is stored at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes from there on, at least one.
    Data(Bytes),
    /// Nothing was kept from there to `next`.
    Gap {
        /// Where it goes on.
        next: u64,
    },
    /// Nothing yet, or nothing more: see [`Mark::finished`].
    End,
}

/// How far a task's output has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// The next byte of standard output belongs here.
    pub stdout: u64,
    /// The next byte of standard error belongs here.
    pub stderr: u64,
    /// Nothing more will come.
    pub finished: bool,
}

/// Why output could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The files.
    #[error("the hub cannot store or read a task's output: {0}")]
    Io(#[from] io::Error),
    /// The task is final: nothing is added.
    #[error("the task has ended; its output is complete")]
    Sealed,
    /// Anything else.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<StoreError> for OutputError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure for OutputError {
    fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "output_failed",
            Self::Sealed => "task_ended",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Io(_) => Kind::Internal,
            Self::Sealed => Kind::Conflict,
            Self::Refused(refused) => refused.kind(),
        }
    }
}

/// One stream of a task that is not final.
#[derive(Debug)]
enum Content {
    Memory(BytesMut),
    File(Spool),
}

impl Content {
    fn total(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(spool) => spool.total(),
        }
    }

    fn read(&self, offset: u64, max: usize) -> io::Result<Piece> {
        match self {
            Self::Memory(bytes) => Ok(inline_piece(bytes, offset, max)),
            Self::File(spool) => file_piece(spool, offset, max),
        }
    }

    /// The first gap that ends behind `offset`, and begins there at the earliest.
    fn next_gap(&self, mut offset: u64) -> Option<Range<u64>> {
        let Self::File(spool) = self else { return None };
        loop {
            match spool.extent(offset, usize::MAX) {
                Extent::Data(len) => offset += len as u64,
                Extent::Gap { next } => return Some(offset..next),
                Extent::End => return None,
            }
        }
    }

    fn record(&self) -> StreamRecord {
        match self {
            Self::Memory(bytes) => StreamRecord::Inline(BASE64.encode(bytes)),
            Self::File(spool) => StreamRecord::File { total: spool.total(), holes: spool.holes().to_vec() },
        }
    }

    /// Adds what is new of these bytes.
    fn append(&mut self, path: &Path, offset: u64, data: &[u8]) -> io::Result<()> {
        let known = self.total().saturating_sub(offset);
        let Some(data) = usize::try_from(known).ok().and_then(|known| data.get(known..)).filter(|data| !data.is_empty()) else {
            return Ok(());
        };
        let gap = offset > self.total();
        if let Self::Memory(bytes) = self {
            if !gap && bytes.len() + data.len() <= INLINE_BYTES {
                bytes.extend_from_slice(data);
                return Ok(());
            }
            let mut spool = create_spool(path)?;
            spool.append(bytes)?;
            *self = Self::File(spool);
        }
        if let Self::File(spool) = self {
            spool.skip_to(offset);
            spool.append(data)?;
        }
        Ok(())
    }
}

fn create_spool(path: &Path) -> io::Result<Spool> {
    if let Some(dir) = path.parent() {
        make_private_dir(dir)?;
    }
    Spool::create(path, OUTPUT_HEAD_BYTES, OUTPUT_TAIL_BYTES)
}

fn open_spool(path: &Path, total: u64, holes: &[Range<u64>]) -> io::Result<Spool> {
    Ok(Spool::open(path, OUTPUT_HEAD_BYTES, OUTPUT_TAIL_BYTES, total)?.with_holes(holes.iter().cloned()))
}

fn inline_piece(bytes: &[u8], offset: u64, max: usize) -> Piece {
    match usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)) {
        Some(rest) if !rest.is_empty() => Piece::Data(Bytes::copy_from_slice(&rest[..rest.len().min(max)])),
        _ => Piece::End,
    }
}

fn file_piece(spool: &Spool, offset: u64, max: usize) -> io::Result<Piece> {
    Ok(match spool.read_at(offset, max)? {
        cortex_runtime::spool::Piece::Data(data) => Piece::Data(data),
        cortex_runtime::spool::Piece::Gap { next } => Piece::Gap { next },
        cortex_runtime::spool::Piece::End => Piece::End,
    })
}

fn inline_bytes(text: &str) -> io::Result<Vec<u8>> {
    BASE64.decode(text.as_bytes()).map_err(io::Error::other)
}

impl StreamRecord {
    fn total(&self) -> u64 {
        match self {
            Self::Inline(text) => inline_bytes(text).map_or(0, |bytes| bytes.len() as u64),
            Self::File { total, .. } => *total,
        }
    }

    fn content(&self, path: &Path) -> io::Result<Content> {
        Ok(match self {
            Self::Inline(text) => Content::Memory(BytesMut::from(inline_bytes(text)?.as_slice())),
            Self::File { total, holes } => Content::File(open_spool(path, *total, holes)?),
        })
    }
}

impl OutputRecord {
    pub(crate) fn mark(&self) -> Mark {
        Mark { stdout: self.stdout.total(), stderr: self.stderr.total(), finished: self.sealed }
    }

    fn stream(&self, stream: Stream) -> &StreamRecord {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }
}

/// The output of a task that is not final.
#[derive(Debug)]
struct Live {
    dir: PathBuf,
    streams: Mutex<[Content; 2]>,
    mark: watch::Sender<Mark>,
}

impl Live {
    fn open(dir: PathBuf, record: &OutputRecord) -> io::Result<Self> {
        let content = |stream: Stream| record.stream(stream).content(&dir.join(stream.name()));
        let streams = Mutex::new([content(Stream::Stdout)?, content(Stream::Stderr)?]);
        Ok(Self { dir, streams, mark: watch::Sender::new(record.mark()) })
    }

    fn append(&self, stream: Stream, offset: u64, data: &[u8]) -> io::Result<Mark> {
        let mut streams = lock(&self.streams);
        streams[stream as usize].append(&self.dir.join(stream.name()), offset, data)?;
        let mark = Mark { stdout: streams[0].total(), stderr: streams[1].total(), finished: false };
        // Under the lock, so that marks never go back.
        self.mark.send_if_modified(|shown| std::mem::replace(shown, mark) != mark);
        Ok(mark)
    }

    fn look<T>(&self, stream: Stream, look: impl FnOnce(&Content) -> T) -> T {
        look(&lock(&self.streams)[stream as usize])
    }

    /// What has to be stored for all of it to be durable, once its files are. Blocks when there are files.
    fn settle(&self) -> io::Result<OutputRecord> {
        let record = {
            let streams = lock(&self.streams);
            OutputRecord { stdout: streams[0].record(), stderr: streams[1].record(), sealed: false }
        };
        let mut files = 0;
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let StreamRecord::File { .. } = record.stream(stream) {
                // Through a handle of its own: whoever appends is not kept waiting.
                File::options().write(true).open(self.dir.join(stream.name()))?.sync_data()?;
                files += 1;
            }
        }
        if files > 0 {
            // The names of new files, too.
            for dir in [Some(self.dir.as_path()), self.dir.parent()].into_iter().flatten() {
                File::open(dir)?.sync_all()?;
            }
        }
        Ok(record)
    }
}

/// The output of tasks that are not final, and where that of the others lies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outputs {
    dir: PathBuf,
    db: Db,
    live: Arc<Mutex<HashMap<TaskId, Arc<Live>>>>,
}

impl Outputs {
    pub(crate) fn new(dir: PathBuf, db: Db) -> Self {
        Self { dir, db, live: Arc::default() }
    }

    /// Stores bytes of a stream; those that are there already are dropped, a gap before them is kept as one. Returns the new mark.
    /// For the mesh.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn append(&self, task: TaskId, stream: Stream, offset: u64, data: Bytes) -> Result<Mark, OutputError> {
        Ok(self.live(task).await?.append(stream, offset, &data)?)
    }

    /// Makes everything appended so far durable, and says how far that is: below it the peer may forget. For the mesh; not needed
    /// before [`Hub::finish`], which does it in its own way.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn sync(&self, task: TaskId) -> Result<Mark, OutputError> {
        let record = self.settle(self.live(task).await?).await?;
        let mark = record.mark();
        let write = move |tx: &mut dyn WriteTx| match OUTPUTS.get(tx, &task)? {
            Some(stored) if stored.sealed => Err(OutputError::Sealed),
            _ => Ok(OUTPUTS.put(tx, &task, &record)?),
        };
        self.db.write(write).await?;
        Ok(mark)
    }

    /// How far a task that is not final has come: where a resumed stream goes on. For the mesh.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn lengths(&self, task: TaskId) -> Result<Mark, OutputError> {
        Ok(*self.live(task).await?.mark.borrow())
    }

    fn known(&self, task: TaskId) -> Option<Arc<Live>> {
        lock(&self.live).get(&task).cloned()
    }

    fn task_dir(&self, task: TaskId) -> PathBuf {
        self.dir.join(task.to_string())
    }

    async fn live(&self, task: TaskId) -> Result<Arc<Live>, OutputError> {
        if let Some(live) = self.known(task) {
            return Ok(live);
        }
        let record = self.db.read(move |tx| open_record(tx, task)).await?;
        let live = self.adopt(task, &record)?;
        // It may have ended while it was being opened.
        match self.db.read(move |tx| open_record(tx, task)).await {
            Ok(_) => Ok(live),
            Err(error) => {
                self.close(task);
                Err(error)
            }
        }
    }

    /// Puts a task's output into memory, unless somebody else did meanwhile.
    fn adopt(&self, task: TaskId, record: &OutputRecord) -> io::Result<Arc<Live>> {
        let mut live = lock(&self.live);
        if let Some(live) = live.get(&task) {
            return Ok(live.clone());
        }
        let opened = Arc::new(Live::open(self.task_dir(task), record)?);
        live.insert(task, opened.clone());
        Ok(opened)
    }

    /// The output of a task that was made just now.
    pub(crate) fn begin(&self, task: TaskId) {
        // Nothing is opened: this cannot fail.
        let _ = self.adopt(task, &OutputRecord::default());
    }

    async fn settle(&self, live: Arc<Live>) -> Result<OutputRecord, OutputError> {
        if lock(&live.streams).iter().all(|content| matches!(content, Content::Memory(_))) {
            return Ok(live.settle()?);
        }
        let settled = tokio::task::spawn_blocking(move || live.settle()).await;
        Ok(settled.map_err(io::Error::other)??)
    }

    /// The record with which a task's output is complete; its files are durable. `None`: what is stored is.
    pub(crate) async fn ending(&self, task: TaskId) -> Result<Option<OutputRecord>, OutputError> {
        match self.known(task) {
            Some(live) => self.settle(live).await.map(Some),
            None => Ok(None),
        }
    }

    /// The task is final, and its record is stored: readers go there.
    pub(crate) fn close(&self, task: TaskId) {
        if let Some(live) = lock(&self.live).remove(&task) {
            live.mark.send_modify(|mark| mark.finished = true);
        }
    }

    /// These tasks are gone: their files go in a while, nobody waits for it.
    pub(crate) fn remove(&self, tasks: Vec<TaskId>) {
        tasks.iter().for_each(|task| self.close(*task));
        let dirs: Vec<_> = tasks.into_iter().map(|task| self.task_dir(task)).collect();
        tokio::task::spawn_blocking(move || dirs.iter().for_each(|dir| remove_dir(dir)));
    }

    /// Removes the files of tasks that are gone, when a crash kept [`Self::remove`] from it.
    pub(crate) async fn sweep(&self) -> Result<(), OutputError> {
        let dir = self.dir.clone();
        self.db
            .read(move |tx| {
                let Ok(entries) = fs::read_dir(&dir) else { return Ok(()) };
                for entry in entries {
                    let entry = entry?;
                    let task = entry.file_name().to_str().and_then(|name| name.parse().ok());
                    if let Some(task) = task
                        && TASKS.get(tx, &task)?.is_none()
                    {
                        remove_dir(&entry.path());
                    }
                }
                Ok(())
            })
            .await
    }

    /// Looks at a stream where it is now: in memory, or where its record says.
    async fn look<T: Send + 'static>(
        &self,
        task: TaskId,
        stream: Stream,
        look: impl FnOnce(&Content) -> io::Result<T> + Send + 'static,
    ) -> Result<T, OutputError> {
        if let Some(live) = self.known(task) {
            return Ok(live.look(stream, look)?);
        }
        let path = self.task_dir(task).join(stream.name());
        self.db
            .read(move |tx| {
                let record = OUTPUTS.get(tx, &task)?.unwrap_or_default();
                Ok(look(&record.stream(stream).content(&path)?)?)
            })
            .await
    }
}

fn remove_dir(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "could not remove a task's output");
    }
}

fn open_record(tx: &dyn ReadTx, task: TaskId) -> Result<OutputRecord, OutputError> {
    let open = TASKS.get(tx, &task)?.is_some_and(|task| !task.state.is_final());
    let record = OUTPUTS.get(tx, &task)?.unwrap_or_default();
    if open && !record.sealed { Ok(record) } else { Err(OutputError::Sealed) }
}

/// For how long output that is not kept stays after the end of its task, for those who look at it just then.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Forgets output that is not kept, of tasks that ended before `until_ms`; of this one at once.
async fn forget(db: &Db, outputs: &Outputs, task: Option<TaskId>, until_ms: i64) -> Result<(), StoreError> {
    let gone = db
        .write::<_, StoreError>(move |tx| {
            let mut gone = Vec::from_iter(task);
            FORGETTABLE.visit(tx, &Span::all(), Order::Ascending, |key, ended_at_ms| {
                gone.extend(TaskId::from_slice(key).ok().filter(|_| ended_at_ms < until_ms));
                Ok(std::ops::ControlFlow::Continue(()))
            })?;
            for task in &gone {
                FORGETTABLE.delete(tx, task)?;
                if TASKS.get(tx, task)?.is_some() {
                    OUTPUTS.put(tx, task, &OutputRecord { sealed: true, ..OutputRecord::default() })?;
                }
            }
            Ok(gone)
        })
        .await?;
    if !gone.is_empty() {
        outputs.remove(gone);
    }
    Ok(())
}

impl Hub {
    /// Forgets what has waited for it, and this task's output.
    pub(crate) async fn forget_outputs(&self, task: Option<TaskId>) -> Result<(), StoreError> {
        let until_ms = self.now_ms() - i64::try_from(FORGET_AFTER.as_millis()).unwrap_or(0);
        forget(&self.db, &self.outputs, task, until_ms).await
    }

    /// Forgets a task's output in a while, if it is not kept. When the hub is stopped meanwhile, its next sweep does it.
    pub(crate) fn forget_output_later(&self, task: &Task) {
        if !(task.spec.forget_output && task.state.is_final()) {
            return;
        }
        let (id, db, outputs) = (task.id, self.db.clone(), self.outputs.clone());
        let mut later = crate::hub::lock(&self.later);
        while later.try_join_next().is_some() {}
        later.spawn(async move {
            tokio::time::sleep(FORGET_AFTER).await;
            if let Err(error) = forget(&db, &outputs, Some(id), 0).await {
                tracing::warn!(task = %id, %error, "output that is not to be kept stays until the next sweep");
            }
        });
    }
}

/// Stores that a task's output is complete. `record`: what [`Outputs::ending`] answered.
pub(crate) fn seal(tx: &mut dyn WriteTx, task: TaskId, record: Option<OutputRecord>) -> Result<OutputRecord, StoreError> {
    let record = match record {
        Some(record) => record,
        None => OUTPUTS.get(tx, &task)?.unwrap_or_default(),
    };
    let record = OutputRecord { sealed: true, ..record };
    OUTPUTS.put(tx, &task, &record)?;
    Ok(record)
}

/// Reads the output of one task that the actor may see. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OutputReader {
    task: TaskId,
    outputs: Outputs,
    marks: watch::Receiver<Mark>,
}

impl OutputReader {
    /// What is stored from `offset` on, at most `max` bytes.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn read(&self, stream: Stream, offset: u64, max: usize) -> Result<Piece, OutputError> {
        let max = max.min(READ_BYTES);
        self.outputs.look(self.task, stream, move |content| content.read(offset, max)).await
    }

    /// The next stretch at or behind `offset` of which nothing was kept, as far as is known now.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn next_gap(&self, stream: Stream, offset: u64) -> Result<Option<Range<u64>>, OutputError> {
        self.outputs.look(self.task, stream, move |content| Ok(content.next_gap(offset))).await
    }

    /// How far the output has come. Ends (the sender is dropped) after `finished`.
    pub fn marks(&self) -> watch::Receiver<Mark> {
        self.marks.clone()
    }
}

impl Hub {
    /// Opens a task's output for reading: asks once whether the actor may.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn open_output(&self, actor: &Actor, task: TaskId) -> Result<OutputReader, OutputError> {
        let (actor, outputs) = (actor.clone(), self.outputs.clone());
        let open = self.db.read(move |tx| Ok::<_, Refused>(!task::seen_by(tx, &actor, task)?.state.is_final())).await?;
        let live = if open { outputs.live(task).await } else { Err(OutputError::Sealed) };
        let marks = match live {
            Ok(live) => live.mark.subscribe(),
            Err(OutputError::Sealed) => {
                let record = self.db.read(move |tx| OUTPUTS.get(tx, &task)).await?.unwrap_or_default();
                watch::Sender::new(Mark { finished: true, ..record.mark() }).subscribe()
            }
            Err(error) => return Err(error),
        };
        Ok(OutputReader { task, outputs, marks })
    }

    /// What is stored of a task's output from `offset` on, at most `max` bytes. For many reads, [`Self::open_output`].
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn read_output(&self, actor: &Actor, task: TaskId, stream: Stream, offset: u64, max: usize) -> Result<Piece, OutputError> {
        self.open_output(actor, task).await?.read(stream, offset, max).await
    }

    /// Follows how far a task's output comes. Ends (the sender is dropped) after `finished`.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn follow_output(&self, actor: &Actor, task: TaskId) -> Result<watch::Receiver<Mark>, OutputError> {
        Ok(self.open_output(actor, task).await?.marks())
    }
}

#[cfg(test)]
mod tests;
