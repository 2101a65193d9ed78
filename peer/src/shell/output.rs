//! What a task prints: from its pipe into a spool, from the spool to whoever reads it.
//!
//! There is one way for live output, output after a reconnect and output of an ended task: the spool. While somebody reads ([`Output::set_read`]) the
//! program is held back when too much is not stored at the hub yet; while nobody does it prints on, and the spool keeps head and tail.

use std::{
    cell::RefCell,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cortex_runtime::spool::{Extent, Spool};
use cortex_wire::{limits, schema::OutputStream};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{redact::Redactor, terminal::Source};

/// Room in front of the data for everything a frame says about it.
const HEADER_ROOM: usize = 32;

/// Bytes a pipe holds once its program has filled it: fewer and larger reads under load.
const BUSY_PIPE_BYTES: usize = 256 * 1024;

thread_local! {
    /// One buffer for all pipes of a thread: nothing is kept in it across a wait.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One stream of one task.
#[derive(Debug)]
pub struct Output {
    state: Mutex<State>,
    /// There may be room again.
    room: Notify,
    /// Tells the task's streams that there is something to send.
    news: watch::Sender<()>,
    window_bytes: u64,
}

#[derive(Debug)]
struct State {
    spool: Spool,
    /// Takes out what must not leave this machine, or lie on its disk.
    redactor: Option<Redactor>,
    acked: u64,
    read: bool,
    closed: bool,
    dropped: bool,
    active: Instant,
    /// Over everything that was printed, kept or not.
    digest: blake3::Hasher,
}

impl State {
    fn store(&mut self, data: &[u8]) {
        self.digest.update(data);
        if let Err(error) = self.spool.append(data) {
            // Better a program that goes on with a hole in its output than one that is stopped by a full disk.
            if !std::mem::replace(&mut self.dropped, true) {
                tracing::warn!(%error, "output of a task is lost: it cannot be kept");
            }
            let end = self.spool.total() + data.len() as u64;
            self.spool.skip_to(end);
        }
    }
}

/// What a reader gets next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A frame was put into the buffer.
    Frame,
    /// Nothing now; news will come.
    Later,
    /// Nothing ever again.
    Done,
}

impl Output {
    /// Output that a program will write.
    pub fn new(spool: Spool, window_bytes: u64, news: watch::Sender<()>) -> Self {
        let digest = blake3::Hasher::new();
        let state = State { spool, redactor: None, acked: 0, read: false, closed: false, dropped: false, active: Instant::now(), digest };
        Self { state: Mutex::new(state), room: Notify::new(), news, window_bytes }
    }

    /// The same, without these secrets.
    #[must_use]
    pub fn without(self, secrets: &[(String, bytes::Bytes)]) -> Self {
        if !secrets.is_empty() {
            self.state().redactor = Some(Redactor::new(secrets.iter().map(|(_, value)| &value[..])));
        }
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves everything the program prints into the spool, until it and all its children have closed the pipe.
    pub async fn pump(&self, source: &Source) {
        let mut busy = false;
        loop {
            while self.is_held_back() {
                self.room.notified().await;
            }
            if source.readable().await.is_err() {
                break;
            }
            match self.take(source) {
                Ok(0) => break,
                Ok(n) if n >= limits::OUTPUT_CHUNK_BYTES / 2 => {
                    if !std::mem::replace(&mut busy, true) {
                        source.widen(BUSY_PIPE_BYTES);
                    }
                    // A program that prints without end must not hold the others up.
                    tokio::task::yield_now().await;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "the output of a task cannot be read on");
                    break;
                }
            }
        }
        self.close();
    }

    fn take(&self, source: &Source) -> io::Result<usize> {
        SCRATCH.with_borrow_mut(|buffer| {
            buffer.resize(limits::OUTPUT_CHUNK_BYTES, 0);
            let n = source.try_read(buffer)?;
            self.append(&buffer[..n]);
            Ok(n)
        })
    }

    pub(crate) fn append(&self, data: &[u8]) {
        let mut state = self.state();
        state.active = Instant::now();
        if let Some(redactor) = &mut state.redactor {
            let mut shown = Vec::new();
            redactor.push(data, &mut shown);
            state.store(&shown);
        } else {
            state.store(data);
        }
        drop(state);
        self.news.send_replace(());
    }

    /// Adds a line of the peer's own, for whoever reads the output.
    pub fn note(&self, line: &str) {
        self.append(format!("cortex: {line}\n").as_bytes());
    }

    fn is_held_back(&self) -> bool {
        let mut state = self.state();
        let held = state.read && state.spool.total() - state.acked >= self.window_bytes;
        if held {
            state.active = Instant::now();
        }
        held
    }

    /// Nothing will come any more.
    pub fn close(&self) {
        let mut state = self.state();
        if let Some(mut redactor) = state.redactor.take() {
            let mut shown = Vec::new();
            redactor.finish(&mut shown);
            state.store(&shown);
        }
        state.closed = true;
        drop(state);
        self.news.send_replace(());
    }

    /// Whether somebody reads; only then is the program held back.
    pub fn set_read(&self, read: bool) {
        self.state().read = read;
        self.room.notify_one();
    }

    /// Everything below `offset` is safe at the hub.
    pub fn acknowledge(&self, offset: u64) {
        let mut state = self.state();
        state.acked = state.acked.max(offset.min(state.spool.total()));
        drop(state);
        self.room.notify_one();
        self.news.send_replace(());
    }

    /// For how long the program has printed nothing, though it could.
    pub fn idle(&self) -> Duration {
        if self.is_held_back() { Duration::ZERO } else { self.state().active.elapsed() }
    }

    /// How much was printed.
    pub fn total(&self) -> u64 {
        self.state().spool.total()
    }

    /// BLAKE3 of everything that was printed, also of what was not kept.
    pub fn digest(&self) -> [u8; 32] {
        self.state().digest.finalize().into()
    }

    /// Whether something that is not safe at the hub yet can no longer be read.
    pub fn is_truncated(&self) -> bool {
        let state = self.state();
        let mut at = state.acked;
        loop {
            match state.spool.extent(at, usize::MAX) {
                Extent::Data(len) => at += len as u64,
                Extent::Gap { .. } => return true,
                Extent::End => return state.dropped,
            }
        }
    }

    /// Puts the next frame from `cursor` into `frame` and moves the cursor behind it. Never more than a window beyond what is safe at the hub.
    pub fn next_frame(&self, stream: OutputStream, cursor: &mut u64, frame: &mut Frame) -> Next {
        let mut state = self.state();
        loop {
            let allowed = (state.acked + self.window_bytes).saturating_sub(*cursor);
            let max = usize::try_from(allowed).unwrap_or(usize::MAX).min(limits::OUTPUT_CHUNK_BYTES);
            match state.spool.extent(*cursor, max) {
                Extent::End if state.closed => return Next::Done,
                Extent::Gap { next } => {
                    *cursor = next;
                    // Nobody will ever acknowledge what is not there; the window goes on behind it.
                    state.acked = state.acked.max(next);
                    state.dropped = true;
                }
                Extent::End | Extent::Data(0) => return Next::Later,
                Extent::Data(len) => {
                    let read = state.spool.read_exact_at(*cursor, frame.data(len));
                    let offset = *cursor;
                    *cursor += len as u64;
                    if let Err(error) = read {
                        tracing::warn!(%error, "output of a task is lost: it cannot be read back");
                        state.dropped = true;
                        continue;
                    }
                    frame.describe(stream, offset);
                    return Next::Frame;
                }
            }
        }
    }
}

/// A `FromTask` frame with output, built around the data where it was read: 128 KiB are not copied to put 20 bytes before them.
#[derive(Debug, Default)]
pub struct Frame {
    buffer: Vec<u8>,
    start: usize,
}

impl Frame {
    fn data(&mut self, len: usize) -> &mut [u8] {
        self.buffer.resize(HEADER_ROOM + len, 0);
        &mut self.buffer[HEADER_ROOM..]
    }

    /// Writes what stands before the data: the length of the frame, `FromTask.output`, and in it stream, offset and the data's length.
    fn describe(&mut self, stream: OutputStream, offset: u64) {
        const OUTPUT: u8 = 2 << 3 | 2;
        const STREAM: u8 = 1 << 3;
        const OFFSET: u8 = 2 << 3;
        const DATA: u8 = 3 << 3 | 2;
        let data_len = self.buffer.len() - HEADER_ROOM;
        let mut inner = Header::default();
        inner.push(STREAM, stream as u64);
        if offset > 0 {
            inner.push(OFFSET, offset);
        }
        inner.push(DATA, data_len as u64);
        let mut outer = Header::default();
        outer.push(OUTPUT, (inner.len + data_len) as u64);
        let body_len = u32::try_from(outer.len + inner.len + data_len).unwrap_or(u32::MAX);
        self.start = HEADER_ROOM;
        for part in [inner.bytes(), outer.bytes(), &body_len.to_be_bytes()] {
            self.start -= part.len();
            self.buffer[self.start..self.start + part.len()].copy_from_slice(part);
        }
    }

    /// The frame as it goes over the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Gives back what a burst of output took.
    pub fn shrink(&mut self) {
        self.buffer = Vec::new();
        self.start = 0;
    }
}

/// A few protobuf fields.
#[derive(Default)]
struct Header {
    bytes: [u8; HEADER_ROOM],
    len: usize,
}

impl Header {
    fn push(&mut self, key: u8, value: u64) {
        let mut rest = &mut self.bytes[self.len..];
        let before = rest.len();
        bytes::BufMut::put_u8(&mut rest, key);
        prost::encoding::encode_varint(value, &mut rest);
        self.len += before - rest.len();
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use cortex_wire::{
        frame,
        schema::{FromTask, TaskOutput, from_task},
    };
    use proptest::prelude::*;

    fn output(window_bytes: u64) -> (tempfile::TempDir, Output) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(&dir.path().join("out"), 1 << 20, 1 << 20).unwrap();
        (dir, Output::new(spool, window_bytes, watch::Sender::default()))
    }

    #[test]
    fn a_reader_gets_no_more_than_a_window_ahead_of_what_is_acknowledged() {
        let (_dir, output) = output(10);
        output.append(&[7; 25]);
        output.set_read(true);
        let (mut cursor, mut frame) = (0, Frame::default());
        let mut next = |cursor: &mut u64| output.next_frame(OutputStream::Stdout, cursor, &mut frame);
        assert_eq!((next(&mut cursor), cursor), (Next::Frame, 10));
        assert_eq!(next(&mut cursor), Next::Later);
        output.acknowledge(10);
        assert_eq!((next(&mut cursor), cursor), (Next::Frame, 20));
        assert!(output.is_held_back());
        output.acknowledge(20);
        assert!(!output.is_held_back());
        assert_eq!((next(&mut cursor), cursor), (Next::Frame, 25));
        output.close();
        assert_eq!(next(&mut cursor), Next::Done);
        output.set_read(false);
        assert!(!output.is_held_back());
    }

    proptest! {
        #[test]
        fn a_frame_is_what_the_schema_says(data in proptest::collection::vec(any::<u8>(), 1..300), offset: u64, err: bool) {
            let stream = if err { OutputStream::Stderr } else { OutputStream::Stdout };
            let mut built = Frame::default();
            built.data(data.len()).copy_from_slice(&data);
            built.describe(stream, offset);
            let output = TaskOutput { stream: stream.into(), offset, data: Bytes::from(data) };
            let expected = frame::encode(&FromTask { frame: Some(from_task::Frame::Output(output)) });
            prop_assert_eq!(built.bytes(), &expected[..]);
        }
    }
}
