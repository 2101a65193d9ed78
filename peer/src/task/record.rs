//! One task as the peer keeps it: its output, its input, its result, and who reads it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cortex_runtime::spool::Spool;
use cortex_wire::{
    id::TaskId,
    key::PublicKey,
    limits,
    schema::{self, Signed, TaskResponse, TaskUsage, task_response},
    task, text,
};
use prost::Message as _;
use rustix::process::Pid;
use tokio::sync::watch;

use super::Bounds;
use crate::{
    journal::Started,
    process::Status,
    shell::{Ended, Stop, Streams, input::Input, output::Output, terminal::Terminal},
};

/// A task from its start until the hub has collected it.
#[derive(Debug)]
pub(super) struct Task {
    pub id: TaskId,
    pub fence: u64,
    pub started_at_ms: i64,
    /// As it was journalled.
    pub started: Started,
    /// Of the record of its start in this machine's log.
    pub log_hash: Bytes,
    pub lost: bool,
    /// It began before its folder held what it was to hold.
    pub is_behind: bool,
    /// Which shell session it belongs to.
    pub shell_session: Option<String>,
    pub stdin: Option<Input>,
    pub stdout: Output,
    pub stderr: Output,
    /// Changes whenever there may be something to send.
    pub news: watch::Sender<()>,
    stop: watch::Sender<Option<Stop>>,
    result: OnceLock<Signed>,
    pid: OnceLock<Pid>,
    terminal: OnceLock<Arc<Terminal>>,
    /// Counts the streams that were attached: the newest one reads.
    reader: AtomicU64,
}

impl Task {
    /// A task that is about to run.
    pub(super) fn new(id: TaskId, started: &Started, spools: [Spool; 2], window_bytes: u64, stdin: bool) -> Self {
        let news = watch::Sender::new(());
        let [stdout, stderr] = spools.map(|spool| Output::new(spool, window_bytes, news.clone()));
        Self {
            id,
            fence: started.fence,
            started_at_ms: started.at_ms,
            started: started.clone(),
            log_hash: Bytes::new(),
            lost: false,
            is_behind: false,
            shell_session: None,
            stdin: stdin.then(|| Input::new(news.clone())),
            stdout,
            stderr,
            news,
            stop: watch::Sender::new(None),
            result: OnceLock::new(),
            pid: OnceLock::new(),
            terminal: OnceLock::new(),
            reader: AtomicU64::new(0),
        }
    }

    /// The same, without these secrets in what it prints.
    #[must_use]
    pub(super) fn without(self, secrets: &[(String, Bytes)]) -> Self {
        Self { stdout: self.stdout.without(secrets), stderr: self.stderr.without(secrets), ..self }
    }

    /// A task of an earlier start of the peer, with what its files still hold.
    ///
    /// # Errors
    /// When the files cannot be opened.
    pub(super) fn finished(id: TaskId, fence: u64, result: Signed, paths: &[PathBuf; 2], bounds: Bounds) -> io::Result<Self> {
        // Our own bytes: should they not decode, the hub gets them all the same.
        let response = TaskResponse::decode(result.body.clone()).unwrap_or_default();
        let started = Started {
            fence,
            at_ms: response.started_at_ms,
            policy_hash: response.policy_hash,
            sandbox_level: response.sandbox_level,
            ..Started::default()
        };
        let spools = [reopen(&paths[0], response.stdout_bytes, bounds)?, reopen(&paths[1], response.stderr_bytes, bounds)?];
        let mut this = Self::new(id, &started, spools, bounds.window_bytes, false);
        this.lost = response.state == task::State::Lost.name();
        this.stdout.close();
        this.stderr.close();
        this.finish(result);
        Ok(this)
    }

    pub(super) fn streams(&self) -> Streams<'_> {
        Streams { stdin: self.stdin.as_ref(), stdout: &self.stdout, stderr: &self.stderr }
    }

    /// Its first process, once it was started by this peer.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.pid.get().copied()
    }

    pub(super) fn runs_as(&self, pid: Pid, terminal: Option<&Arc<Terminal>>) {
        let _ = self.pid.set(pid);
        if let Some(terminal) = terminal {
            let _ = self.terminal.set(terminal.clone());
        }
    }

    /// Its terminal, if it has one, takes another size.
    pub(super) fn resize(&self, size: &schema::Terminal) {
        if let Some(terminal) = self.terminal.get()
            && task::is_terminal_size(size)
            && let Err(error) = terminal.resize(size)
        {
            tracing::debug!(task = %self.id, %error, "a terminal keeps its size");
        }
    }

    pub(super) fn result(&self) -> Option<&Signed> {
        self.result.get()
    }

    pub(super) fn finish(&self, result: Signed) {
        let _ = self.result.set(result);
        self.news.send_replace(());
    }

    /// Asks the task to end. The first reason counts; a task that has ended does not hear it.
    pub(super) fn stop(&self, why: Stop) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            if first {
                *stop = Some(why);
            }
            first
        });
    }

    pub(super) fn stop_requests(&self) -> watch::Receiver<Option<Stop>> {
        self.stop.subscribe()
    }

    /// A new reader, which takes the place of the one before.
    pub(super) fn attach(&self) -> u64 {
        let reader = self.reader.fetch_add(1, Ordering::Relaxed) + 1;
        self.set_read(true);
        self.news.send_replace(());
        reader
    }

    /// Whether this reader is still the one.
    pub(super) fn is_read_by(&self, reader: u64) -> bool {
        self.reader.load(Ordering::Relaxed) == reader
    }

    /// No reader any more.
    pub(super) fn detach(&self) {
        self.attach();
        self.set_read(false);
    }

    /// This reader has left.
    pub(super) fn leave(&self, reader: u64) {
        if self.is_read_by(reader) {
            self.set_read(false);
        }
    }

    fn set_read(&self, read: bool) {
        self.stdout.set_read(read);
        self.stderr.set_read(read);
    }

    /// What is to be signed when the task has ended.
    pub(super) fn response(&self, ended: &Ended, node: &PublicKey, finished_at_ms: i64) -> TaskResponse {
        let (state, reason) = verdict(ended);
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        TaskResponse {
            task_id: Bytes::copy_from_slice(self.id.as_bytes()),
            fence: self.fence,
            node_key: node.to_bytes(),
            state: state.name().into(),
            exit: match ended.exit.status {
                Status::Code(code) => Some(task_response::Exit::ExitCode(code)),
                Status::Signal(signal) => Some(task_response::Exit::Signal(signal)),
                Status::Unknown => None,
            },
            reason: text::clean(&reason, limits::TEXT_BYTES),
            started_at_ms: self.started_at_ms,
            finished_at_ms,
            usage: Some(TaskUsage {
                wall_ms: millis(ended.wall),
                cpu_user_ms: millis(ended.exit.user),
                cpu_system_ms: millis(ended.exit.system),
                peak_memory_bytes: ended.exit.peak_memory_bytes,
            }),
            stdout_bytes: self.stdout.total(),
            stderr_bytes: self.stderr.total(),
            truncated: self.stdout.is_truncated() || self.stderr.is_truncated(),
            descendants_held_pipe: ended.descendants_held_pipe,
            sandbox_level: self.started.sandbox_level.clone(),
            policy_hash: self.started.policy_hash.clone(),
            approval: self.started.approval.as_deref().cloned(),
            stdout_digest: Bytes::copy_from_slice(&self.stdout.digest()),
            stderr_digest: Bytes::copy_from_slice(&self.stderr.digest()),
            subject: self.started.subject.clone(),
            log_hash: self.log_hash.clone(),
        }
    }
}

/// What is to be signed for a task that ran when the peer died.
pub(super) fn lost_response(id: TaskId, started: &Started, node: &PublicKey, now_ms: i64, totals: [u64; 2]) -> TaskResponse {
    TaskResponse {
        task_id: Bytes::copy_from_slice(id.as_bytes()),
        fence: started.fence,
        node_key: node.to_bytes(),
        state: task::State::Lost.name().into(),
        reason: "the peer died while the task ran; whether it did its work is unknown".into(),
        started_at_ms: started.at_ms,
        finished_at_ms: now_ms,
        stdout_bytes: totals[0],
        stderr_bytes: totals[1],
        truncated: true,
        sandbox_level: started.sandbox_level.clone(),
        policy_hash: started.policy_hash.clone(),
        approval: started.approval.as_deref().cloned(),
        subject: started.subject.clone(),
        ..TaskResponse::default()
    }
}

fn verdict(ended: &Ended) -> (task::State, String) {
    let (state, mut reason) = match (&ended.stop, ended.exit.status) {
        (Some(Stop::Asked(reason)), _) => (task::State::Cancelled, reason.clone()),
        (Some(Stop::RunTimeout(limit)), _) => (task::State::TimedOut, format!("ran for longer than {limit:?}")),
        (Some(Stop::IdleTimeout(limit)), _) => (task::State::TimedOut, format!("printed nothing for {limit:?}")),
        (None, Status::Code(0)) => (task::State::Succeeded, String::new()),
        (None, Status::Unknown) => (task::State::Failed, "its exit status was taken by another part of the program".into()),
        (None, _) => (task::State::Failed, String::new()),
    };
    if ended.left_behind > 0 {
        let separator = if reason.is_empty() { "" } else { "; " };
        reason += &format!("{separator}{} processes of another user could not be ended", ended.left_behind);
    }
    (state, reason)
}

/// The spool in a file of an earlier start. What a crash took of it is a hole.
fn reopen(path: &Path, total: u64, bounds: Bounds) -> io::Result<Spool> {
    let Bounds { head_bytes, tail_bytes, .. } = bounds;
    let len = fs::metadata(path).map_or(0, |file| file.len());
    let held = if len < head_bytes + tail_bytes { total.min(len) } else { total };
    let mut spool = if held == 0 { Spool::create(path, head_bytes, tail_bytes)? } else { Spool::open(path, head_bytes, tail_bytes, held)? };
    spool.skip_to(total);
    Ok(spool)
}
