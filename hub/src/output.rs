//! What tasks print: two numbered streams per task, stored as they arrive.

use bytes::Bytes;
use cortex_wire::{id::TaskId, schema::OutputStream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::{
    account::Actor,
    failure::{Failure, Kind, Refused},
    hub::Hub,
    store::StoreError,
};

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
    #[error("the hub cannot store or read a task's output")]
    Io(#[from] std::io::Error),
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
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Io(_) => Kind::Internal,
            Self::Refused(refused) => refused.kind(),
        }
    }
}

/// The output of tasks that are not final.
#[derive(Debug)]
pub struct Outputs {}

impl Outputs {
    /// Stores bytes of a stream; those that are there already are dropped, a gap before them is kept as one. Returns the new mark.
    /// For the mesh.
    ///
    /// # Errors
    /// [`OutputError::Io`].
    pub async fn append(&self, task: TaskId, stream: Stream, offset: u64, data: Bytes) -> Result<Mark, OutputError> {
        let _ = (task, stream, offset, data);
        todo!()
    }

    /// Makes everything appended so far durable, and says how far that is: below it the peer may forget. For the mesh; not needed
    /// before [`Hub::finish`], which does it in its own way.
    ///
    /// # Errors
    /// [`OutputError::Io`].
    pub async fn sync(&self, task: TaskId) -> Result<Mark, OutputError> {
        let _ = task;
        todo!()
    }

    /// How far a task that is not final has come: where a resumed stream goes on. For the mesh.
    ///
    /// # Errors
    /// [`OutputError::Io`].
    pub async fn lengths(&self, task: TaskId) -> Result<Mark, OutputError> {
        let _ = task;
        todo!()
    }
}

impl Hub {
    /// What is stored of a task's output from `offset` on, at most `max` bytes.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn read_output(&self, actor: &Actor, task: TaskId, stream: Stream, offset: u64, max: usize) -> Result<Piece, OutputError> {
        let _ = (actor, task, stream, offset, max);
        todo!()
    }

    /// Follows how far a task's output comes. Ends (the sender is dropped) after `finished`.
    ///
    /// # Errors
    /// [`OutputError`].
    pub async fn follow_output(&self, actor: &Actor, task: TaskId) -> Result<watch::Receiver<Mark>, OutputError> {
        let _ = (actor, task);
        todo!()
    }
}
