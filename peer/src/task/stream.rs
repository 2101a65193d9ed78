//! A task's stream: what the hub asks, what the task says.
//!
//! One side of the stream is read and the other written at the same time, so that a cancellation gets through however much output waits. A stream that
//! dies takes nothing with it: the task runs on, and the next stream goes on from the offsets the hub names.

use std::sync::Arc;

use cortex_runtime::{
    failpoint,
    stream::{FrameReader, FrameWriter, StreamError},
};
use cortex_wire::{
    id::TaskId,
    limits,
    schema::{
        FromTask, InputAck, OutputStream, Signed, StreamOpen, TaskRejected, TaskResume, TaskStarted, ToTask, from_task, stream_open::Open,
        to_task,
    },
    task::Rejection,
    text,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::{Duration, timeout},
};

use super::{Beside, Tasks, record::Task};
use crate::shell::{
    Stop,
    input::Input,
    output::{Frame, Next},
};

/// A buffer above this is given back when there is nothing to send.
const KEPT_BYTES: usize = 4096;

/// Where the hub is.
#[derive(Debug, Default)]
struct Cursors {
    stdout: u64,
    stderr: u64,
    stdin: u64,
    /// The hub may not know how far its input came.
    resumed: bool,
}

/// Lets the task run free again when its stream is gone, however that happens.
struct Reader<'a> {
    task: &'a Task,
    number: u64,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.task.leave(self.number);
    }
}

/// What the hub opens a stream for.
///
/// # Errors
/// [`StreamError`], also when it does not say so in time.
pub async fn first_frame<R: AsyncRead + Unpin>(reader: &mut FrameReader<R>) -> Result<StreamOpen, StreamError> {
    let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
    timeout(patience, reader.expect()).await.map_err(|_| StreamError::Truncated)?
}

impl Tasks {
    /// Serves one stream of the hub: a new task, or one that goes on. Returns when the hub has the result, when it refused the task, or when
    /// a newer stream of the same task has come.
    ///
    /// # Errors
    /// [`StreamError`] when the stream is of no more use. The task goes on.
    pub async fn serve<R, W>(&self, read: R, write: W) -> Result<(), StreamError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let mut reader = FrameReader::new(read, limits::TASK_FRAME_BYTES);
        let open = first_frame(&mut reader).await?;
        self.serve_opened(open, reader, FrameWriter::new(write)).await
    }

    /// The same for a stream whose first frame was read.
    ///
    /// # Errors
    /// As [`Tasks::serve`].
    pub async fn serve_opened<R, W>(&self, open: StreamOpen, reader: FrameReader<R>, mut writer: FrameWriter<W>) -> Result<(), StreamError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let found = match open.open {
            Some(Open::Start(signed)) => {
                failpoint::at("peer.received");
                let beside = Beside { revision: open.workspace_revision, secrets: open.secrets };
                self.begin_for(&signed, beside).await
            }
            Some(Open::Resume(resume)) => self.resume(&resume).await,
            Some(Open::Workspace(_)) | None => {
                Err(TaskRejected { code: "malformed".into(), message: "neither a task nor one to go on with".into() })
            }
        };
        failpoint::at("peer.begun");
        match found {
            Ok((task, cursors)) => self.converse(&task, cursors, reader, &mut writer).await,
            Err(rejected) => {
                tracing::info!(code = rejected.code, "task refused");
                writer.send(&from(from_task::Frame::Rejected(rejected))).await?;
                Ok(writer.inner_mut().shutdown().await?)
            }
        }
    }

    async fn begin_for(&self, signed: &Signed, beside: Beside) -> Result<(Arc<Task>, Cursors), TaskRejected> {
        self.begin(signed, beside).await.map(|task| (task, Cursors::default())).map_err(|rejection| rejected(&rejection))
    }

    async fn resume(&self, resume: &TaskResume) -> Result<(Arc<Task>, Cursors), TaskRejected> {
        let unknown = || TaskRejected { code: "unknown_task".into(), message: "this node does not know the task (any more)".into() };
        let id = TaskId::from_slice(&resume.task_id).map_err(|_| unknown())?;
        // It may be on its way to the disk this very moment.
        let mut running = self.watch_running();
        while self.0.state().starting.contains_key(&id) {
            running.changed().await.map_err(|_| unknown())?;
        }
        let task = self.0.known(&id).ok_or_else(unknown)?;
        task.stdout.acknowledge(resume.stdout_offset);
        task.stderr.acknowledge(resume.stderr_offset);
        Ok((task, Cursors { stdout: resume.stdout_offset, stderr: resume.stderr_offset, stdin: 0, resumed: true }))
    }

    async fn converse<R, W>(
        &self,
        task: &Arc<Task>,
        cursors: Cursors,
        reader: FrameReader<R>,
        writer: &mut FrameWriter<W>,
    ) -> Result<(), StreamError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let reading = Reader { task, number: task.attach() };
        tokio::select! {
            heard = self.hear(task, reader) => heard?,
            said = say(task, reading.number, cursors, writer) => said?,
        }
        Ok(writer.inner_mut().shutdown().await?)
    }

    /// Does what the hub says, until it has the result or says no more.
    async fn hear<R: AsyncRead + Unpin>(&self, task: &Arc<Task>, mut reader: FrameReader<R>) -> Result<(), StreamError> {
        while let Some(ToTask { frame }) = reader.next().await? {
            match frame {
                Some(to_task::Frame::Input(piece)) => {
                    if let Some(stdin) = &task.stdin {
                        stdin.offer(piece);
                    }
                }
                Some(to_task::Frame::Cancel(cancel)) => {
                    failpoint::at("peer.cancel_heard");
                    task.stop(Stop::Asked(text::clean(&cancel.reason, limits::TEXT_BYTES)));
                    failpoint::at("peer.cancelling");
                }
                Some(to_task::Frame::Ack(ack)) => {
                    task.stdout.acknowledge(ack.stdout_offset);
                    task.stderr.acknowledge(ack.stderr_offset);
                }
                Some(to_task::Frame::Resize(size)) => task.resize(&size),
                Some(to_task::Frame::ResultStored(true)) if task.result().is_some() => {
                    failpoint::at("peer.result_stored");
                    self.0.forget(task);
                    failpoint::at("peer.forgotten");
                    return Ok(());
                }
                Some(to_task::Frame::ResultStored(_)) | None => {}
            }
        }
        Ok(())
    }
}

/// Sends what the task says, the result last. Returns when a newer stream has taken over; otherwise it waits until it is dropped.
async fn say<W: AsyncWrite + Unpin>(
    task: &Task,
    number: u64,
    mut cursors: Cursors,
    writer: &mut FrameWriter<W>,
) -> Result<(), StreamError> {
    if cursors.resumed {
        cursors.stdin = task.stdin.as_ref().map_or(0, Input::written);
        writer.send(&from(from_task::Frame::InputAck(InputAck { offset: cursors.stdin }))).await?;
    }
    let level = task.started.sandbox_level.clone();
    let started = TaskStarted { at_ms: task.started_at_ms, sandbox_level: level, workspace_behind: task.is_behind };
    writer.send(&from(from_task::Frame::Started(started))).await?;
    failpoint::at("peer.started_told");
    let mut news = task.news.subscribe();
    let mut frame = Frame::default();
    let mut result_sent = false;
    loop {
        news.borrow_and_update();
        if !task.is_read_by(number) {
            return Ok(());
        }
        // Before the output is looked at: whatever was printed before the result is sent before it.
        let result = task.result().filter(|_| !result_sent);
        let all_sent = send_output(task, &mut cursors, &mut frame, writer).await?;
        if let (Some(result), true) = (result, all_sent) {
            writer.send(&from(from_task::Frame::Result(result.clone()))).await?;
            writer.inner_mut().flush().await?;
            result_sent = true;
            failpoint::at("peer.result_sent");
        }
        if frame.bytes().len() > KEPT_BYTES {
            frame.shrink();
        }
        if news.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Sends everything there is now. Returns whether there will be no more.
async fn send_output<W: AsyncWrite + Unpin>(
    task: &Task,
    cursors: &mut Cursors,
    frame: &mut Frame,
    writer: &mut FrameWriter<W>,
) -> Result<bool, StreamError> {
    loop {
        if let Some(written) = task.stdin.as_ref().map(|stdin| stdin.written()).filter(|written| *written > cursors.stdin) {
            cursors.stdin = written;
            writer.send(&from(from_task::Frame::InputAck(InputAck { offset: written }))).await?;
        }
        let mut ends = [Next::Later; 2];
        let streams =
            [(OutputStream::Stdout, &task.stdout, &mut cursors.stdout), (OutputStream::Stderr, &task.stderr, &mut cursors.stderr)];
        for (end, (stream, output, cursor)) in ends.iter_mut().zip(streams) {
            *end = output.next_frame(stream, cursor, frame);
            if *end == Next::Frame {
                writer.inner_mut().write_all(frame.bytes()).await?;
                failpoint::at("peer.output_sent");
            }
        }
        if !ends.contains(&Next::Frame) {
            return Ok(ends == [Next::Done; 2]);
        }
        // Much to send must not hold the other tasks up.
        tokio::task::yield_now().await;
    }
}

fn from(frame: from_task::Frame) -> FromTask {
    FromTask { frame: Some(frame) }
}

fn rejected(rejection: &Rejection) -> TaskRejected {
    TaskRejected { code: rejection.code().into(), message: text::clean(&rejection.to_string(), limits::TEXT_BYTES) }
}
