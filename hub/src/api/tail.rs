//! Following what a task prints, from any offset, without a gap and without a repetition.
//!
//! A [`Tail`] knows how far its reader has come in both streams. It is asked for the next [`Fragment`] until there is none, then waited on. An
//! offset ahead of what is stored is fine: after a crash of the hub the node sends again what was not yet durable, and the reader, who
//! had it already, goes on behind it.

use axum::body::Bytes;
use cortex_wire::id::TaskId;
use serde::Serialize;
use tokio::sync::watch;

use super::sse::{Data, sendable, write_event};
use crate::{
    account::Actor,
    hub::Hub,
    output::{Mark, OutputError, OutputReader, Piece, Stream},
};

/// Largest piece of output in one event.
const EVENT_BYTES: usize = 64 * 1024;

/// How far a reader has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets {
    /// The next byte of standard output.
    pub stdout: u64,
    /// The next byte of standard error.
    pub stderr: u64,
}

impl Offsets {
    fn of(&mut self, stream: Stream) -> &mut u64 {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// A piece of output for the reader.
#[derive(Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Which of the two.
    pub stream: Stream,
    /// Where it begins.
    pub offset: u64,
    /// What is there.
    pub content: Content,
}

/// What is at an offset.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// Whole characters, or bytes that are none.
    Bytes(Bytes),
    /// Nothing was kept up to this offset.
    Gap(u64),
}

/// A reader of one task's output.
#[derive(Debug)]
pub struct Tail {
    reader: OutputReader,
    marks: watch::Receiver<Mark>,
    at: Offsets,
    stderr_first: bool,
    closed: bool,
}

impl Tail {
    /// Follows a task from these offsets on.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn open(hub: &Hub, actor: &Actor, task: TaskId, at: Offsets) -> Result<Self, OutputError> {
        let reader = hub.open_output(actor, task).await?;
        let marks = reader.marks();
        Ok(Self { reader, marks, at, stderr_first: false, closed: false })
    }

    /// How far the reader has come.
    pub fn offsets(&self) -> Offsets {
        self.at
    }

    /// The next piece that is there; `None`: nothing now, wait for [`Self::changed`]. Safe to cancel.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn next(&mut self) -> Result<Option<Fragment>, OutputError> {
        let mark = *self.marks.borrow_and_update();
        let mut streams = [(Stream::Stdout, mark.stdout), (Stream::Stderr, mark.stderr)];
        if self.stderr_first {
            streams.reverse();
        }
        for (stream, end) in streams {
            let offset = *self.at.of(stream);
            if offset >= end {
                continue;
            }
            let content = match self.reader.read(stream, offset, EVENT_BYTES).await? {
                Piece::Data(bytes) => {
                    let ended = mark.finished && offset + bytes.len() as u64 >= end;
                    match sendable(&bytes, ended) {
                        0 => continue,
                        taken => Content::Bytes(bytes.slice(..taken)),
                    }
                }
                Piece::Gap { next } => Content::Gap(next),
                Piece::End => continue,
            };
            *self.at.of(stream) = match &content {
                Content::Bytes(bytes) => offset + bytes.len() as u64,
                Content::Gap(next) => *next,
            };
            self.stderr_first = stream == Stream::Stdout;
            return Ok(Some(Fragment { stream, offset, content }));
        }
        Ok(None)
    }

    /// Waits until there may be more. Only after [`Self::next`] had nothing. Safe to cancel.
    pub async fn changed(&mut self) {
        if self.closed {
            return std::future::pending().await;
        }
        self.closed = self.marks.changed().await.is_err();
    }
}

#[derive(Serialize)]
struct OutputEvent<'a> {
    task: TaskId,
    stream: Stream,
    offset: u64,
    #[serde(flatten)]
    data: Data<'a>,
}

#[derive(Serialize)]
struct GapEvent {
    task: TaskId,
    stream: Stream,
    offset: u64,
    next_offset: u64,
}

impl Fragment {
    /// Writes it as an event: `output`, or `output_gap` where something was not kept.
    pub fn write(&self, out: &mut Vec<u8>, task: TaskId, id: &str) {
        let Self { stream, offset, ref content } = *self;
        match content {
            Content::Gap(next) => write_event(out, "output_gap", Some(id), &GapEvent { task, stream, offset, next_offset: *next }),
            Content::Bytes(bytes) => {
                write_event(out, "output", Some(id), &OutputEvent { task, stream, offset, data: Data::of(bytes) });
            }
        }
    }
}
