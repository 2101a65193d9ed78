//! The ghost mirror on this node: a session's workspace is a folder here, and follows the hub's by itself.
//!
//! What to do is decided by the engine in `cortex_wire::mirror::replica`. This module gives it eyes and hands.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`workspace`] | one workspace: what happens in it, in one order |
//! | [`root`] | its folder, held open; the only way to its files |
//! | [`watch`] | what was touched |
//! | [`walk`], [`read`], [`ignore`] | what lies there now |
//! | [`large`] | large files, read beside everything else |
//! | [`cache`] | what lay there when it was last looked at |
//! | [`stage`], [`apply`] | putting the hub's version into its place |
//! | [`upload`], [`download`], [`chunks`] | contents on their way |
//! | `lists` | long lists of changes on their way |
//! | [`store`] | what is kept over a restart |
//! | [`writers`] | which task wrote |
//! | [`drift`] | the difference to the hub, as a report |

pub mod apply;
pub mod cache;
pub mod chunks;
mod cutting;
pub mod download;
pub mod drift;
pub mod flight;
pub mod gather;
pub mod ignore;
pub mod large;
mod lists;
mod plan;
pub mod read;
pub mod root;
pub mod sealers;
pub mod stage;
pub mod store;
pub mod upload;
pub mod walk;
pub mod watch;
pub mod workspace;
pub mod writers;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cortex_runtime::{
    chunk::ChunkSource,
    keyfile::make_private_dir,
    stream::{FrameReader, FrameWriter, StreamError},
};
use cortex_wire::{
    frame::FrameError,
    id::{NodeId, SessionId, TaskId},
    limits,
    schema::{FromWorkspace, ToWorkspace, WorkspaceOpen, WorkspaceProblem, WorkspaceStatus, WorkspacesLeft, from_workspace},
};
use futures_util::{StreamExt as _, stream::FuturesOrdered};
use lists::Lists;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot, watch as channel},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use workspace::{Ask, Attachment, Exit, Inbox, OpenError, Options, Workspace};
use writers::Writers;

/// Frames between a stream and its workspace.
const FRAMES: usize = 64;
/// A workspace whose state could not be kept is not opened again before.
const BROKEN: Duration = Duration::from_secs(30);
/// A workspace that is closed finishes what it does on the disk.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// How files end that keep what is remembered of a workspace.
const STATE: &str = ".redb";
/// A task waits so long for its workspace, before it starts and before its result is sent.
const TASK_WAITS: Duration = Duration::from_secs(2);

/// The workspaces of this node. Cheap to clone.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

struct Inner {
    workspace_dir: PathBuf,
    state_dir: PathBuf,
    node: NodeId,
    chunks: channel::Sender<Option<Arc<dyn ChunkSource>>>,
    open: Mutex<HashMap<SessionId, Handle>>,
    /// A workspace was opened.
    opened: channel::Sender<()>,
    writers: Arc<Writers>,
    owners: TaskTracker,
    /// They end, whatever they are about.
    given_up: CancellationToken,
    /// Workspaces whose state could not be kept: when, and why.
    broken: Mutex<HashMap<SessionId, (Instant, String)>>,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror").field("workspace_dir", &self.0.workspace_dir).finish_non_exhaustive()
    }
}

/// The way to an open workspace.
#[derive(Clone)]
struct Handle {
    attach: mpsc::Sender<Attachment>,
    ask: mpsc::Sender<Ask>,
}

/// What became of a task's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Done,
    /// The session has no folder here that is kept like the hub's.
    Nobody,
    /// The hub is not there, or all stands still.
    NotNow,
    TooLate,
}

impl Mirror {
    /// Nothing is opened before the hub asks for it.
    pub fn new(workspace_dir: PathBuf, state_dir: &Path, node: NodeId) -> Self {
        let chunks = channel::Sender::new(None);
        Self(Arc::new(Inner {
            workspace_dir,
            state_dir: state_dir.join("mirror"),
            node,
            chunks,
            open: Mutex::default(),
            opened: channel::Sender::new(()),
            writers: Arc::default(),
            owners: TaskTracker::new(),
            given_up: CancellationToken::new(),
            broken: Mutex::default(),
        }))
    }

    /// The way to the chunks came or went.
    pub fn set_chunks(&self, chunks: Option<Arc<dyn ChunkSource>>) {
        self.0.chunks.send_replace(chunks);
    }

    /// Lets all workspaces go; their files stay as they are. Returns when what was learned of them is kept, or that takes too long.
    pub async fn close(&self) {
        self.open().clear();
        self.0.owners.close();
        if tokio::time::timeout(CLOSE_WITHIN, self.0.owners.wait()).await.is_err() {
            // Their threads must not be there when the runtime is not any more.
            self.0.given_up.cancel();
            let _ = tokio::time::timeout(CLOSE_WITHIN, self.0.owners.wait()).await;
        }
    }

    /// Sessions of whose workspaces something is remembered: the oldest, as many as are named at a time.
    pub fn held(&self) -> Vec<SessionId> {
        let files = std::fs::read_dir(&self.0.state_dir).into_iter().flatten().flatten();
        let mut held: Vec<SessionId> = files.filter_map(|file| file.file_name().to_str()?.strip_suffix(STATE)?.parse().ok()).collect();
        held.sort_unstable();
        held.truncate(limits::HELD_WORKSPACES);
        held
    }

    /// These sessions are gone, or this node is in them no longer. Their files stay.
    pub fn forget(&self, left: &WorkspacesLeft) {
        for session in left.session_ids.iter().filter_map(|id| SessionId::from_slice(id).ok()) {
            let handle = self.open().get(&session).filter(|handle| !handle.ask.is_closed()).cloned();
            match handle {
                // One that is too busy to hear it is told at the next registration.
                Some(handle) => drop(handle.ask.try_send(Ask::Forget)),
                None => match std::fs::remove_file(self.0.state_dir.join(format!("{session}{STATE}"))) {
                    Ok(()) => tracing::info!(%session, "the session was left while nobody could say so; its files stay"),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => tracing::warn!(%session, %error, "cannot forget a workspace"),
                },
            }
        }
    }

    /// A task of the session is about to start: waits, for a while, until its folder holds this revision (0: what the hub last announced). Returns whether it does.
    pub async fn before_task(&self, session: &SessionId, task: &TaskId, revision: u64) -> bool {
        self.0.writers.began(*session, *task);
        let until = tokio::time::Instant::now() + TASK_WAITS;
        if revision > 0 {
            // The hub may have opened the task's stream before the workspace's.
            let mut opened = self.0.opened.subscribe();
            let is_open = opened.wait_for(|()| self.open().get(session).is_some_and(|handle| !handle.ask.is_closed()));
            let _ = tokio::time::timeout_at(until, is_open).await;
        }
        let followed = self.ask(session, until, |tell| Ask::Follow(revision, tell)).await;
        let holds = followed == Asked::Done || (revision == 0 && followed != Asked::TooLate);
        if !holds {
            tracing::warn!(%session, %task, revision, "the task starts although its folder is behind the hub");
        }
        holds
    }

    /// A task of the session has ended: waits, for a while, until what it wrote is at the hub.
    pub async fn after_task(&self, session: &SessionId, task: &TaskId) {
        let flushed = self.ask(session, tokio::time::Instant::now() + TASK_WAITS, Ask::Flush).await;
        if flushed == Asked::TooLate {
            tracing::warn!(%session, %task, "the task's result is sent although not all that it wrote is at the hub");
        }
        self.0.writers.ended(session, task, matches!(flushed, Asked::Done | Asked::Nobody));
    }

    /// A task that was announced did not start.
    pub fn no_task(&self, session: &SessionId, task: &TaskId) {
        self.0.writers.ended(session, task, true);
    }

    /// Asks a workspace, and waits for a while.
    async fn ask(&self, session: &SessionId, until: tokio::time::Instant, ask: impl FnOnce(oneshot::Sender<()>) -> Ask) -> Asked {
        let handle = self.open().get(session).filter(|handle| !handle.ask.is_closed()).cloned();
        let Some(handle) = handle else { return Asked::Nobody };
        let (tell, told) = oneshot::channel();
        let answer = async { handle.ask.send(ask(tell)).await.is_ok() && told.await.is_ok() };
        match tokio::time::timeout_at(until, answer).await {
            Ok(true) => Asked::Done,
            Ok(false) => Asked::NotNow,
            Err(_) => Asked::TooLate,
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<SessionId, Handle>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a workspace's stream, whose first frame was `open`, until one side ends it.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn serve<R, W>(&self, open: WorkspaceOpen, reader: FrameReader<R>, mut writer: FrameWriter<W>) -> Result<(), StreamError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let session = SessionId::from_slice(&open.session_id).map_err(|_| FrameError::Malformed)?;
        let mut reader = reader.with_limit(limits::WORKSPACE_FRAME_BYTES);
        let (to, frames) = mpsc::channel(FRAMES);
        let (send, mut from) = mpsc::channel(FRAMES);
        let lists = Lists::new(session, &open, self.0.chunks.subscribe());
        if let Err(error) = self.attach(session, Attachment { open, frames, send }).await {
            tracing::error!(%session, %error, "the workspace cannot be opened");
            writer.send(&failed(&error.to_string())).await?;
            return Ok(writer.inner_mut().shutdown().await?);
        }
        let hear = async {
            let (mut ahead, mut has_ended) = (FuturesOrdered::new(), false);
            while !has_ended || !ahead.is_empty() {
                tokio::select! {
                    frame = reader.next::<ToWorkspace>(), if !has_ended && ahead.len() < lists::AHEAD => match frame? {
                        Some(frame) => {
                            lists.hear(&frame);
                            ahead.push_back(lists.complete(frame));
                        }
                        None => has_ended = true,
                    },
                    Some(frame) = ahead.next() => match frame {
                        Ok(frame) => if to.send(frame).await.is_err() { break },
                        Err(error) => {
                            tracing::warn!(%session, %error, "the workspace's stream is closed and opened again");
                            break;
                        }
                    },
                }
            }
            Ok::<_, StreamError>(())
        };
        let say = async {
            while let Some(frame) = from.recv().await {
                writer.send::<FromWorkspace>(&frame).await?;
            }
            // The workspace has given this stream up.
            Ok(writer.inner_mut().shutdown().await?)
        };
        tokio::select! {
            heard = hear => heard,
            said = say => said,
        }
    }

    async fn attach(&self, session: SessionId, attachment: Attachment) -> Result<(), OpenError> {
        let known = self.open().get(&session).filter(|known| !known.attach.is_closed()).cloned();
        let attachment = match known {
            Some(known) => match known.attach.send(attachment).await {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            },
            None => attachment,
        };
        let workspace = self.open_workspace(session).await?;
        let (attach, attached) = mpsc::channel(4);
        let (ask, asked) = mpsc::channel(FRAMES);
        let _ = attach.send(attachment).await;
        let owner = self.clone().keep(session, workspace, Inbox { attached, asked });
        let (runtime, token, given_up) = (tokio::runtime::Handle::current(), self.0.owners.token(), self.0.given_up.clone());
        // On a thread of its own: what it makes of many changes takes long, and the network does not wait for it.
        let run = move || {
            runtime.block_on(given_up.run_until_cancelled(owner));
            drop(token);
        };
        std::thread::Builder::new().name("mirror".into()).spawn(run).map_err(OpenError::Stage)?;
        self.open().insert(session, Handle { attach, ask });
        self.0.opened.send_replace(());
        Ok(())
    }

    fn broken(&self) -> MutexGuard<'_, HashMap<SessionId, (Instant, String)>> {
        self.0.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open_workspace(&self, session: SessionId) -> Result<Workspace, OpenError> {
        let options = Options {
            workspace_dir: self.0.workspace_dir.clone(),
            state_dir: self.0.state_dir.clone(),
            session,
            node: self.0.node,
            chunks: self.0.chunks.subscribe(),
            writers: self.0.writers.clone(),
        };
        // To open it costs a look at everything: not again and again while a disk is full.
        if let Some((at, why)) = self.broken().get(&session)
            && at.elapsed() < BROKEN
        {
            return Err(OpenError::Broken(why.clone()));
        }
        let open = move || {
            make_private_dir(&options.state_dir).map_err(OpenError::Stage)?;
            Workspace::open(options)
        };
        tokio::task::spawn_blocking(open).await.unwrap_or_else(|error| Err(OpenError::Stage(std::io::Error::other(error))))
    }

    /// Keeps a workspace open until it is detached.
    async fn keep(self, session: SessionId, mut workspace: Workspace, mut inbox: Inbox) {
        loop {
            let exit;
            (exit, inbox) = workspace.run(inbox).await;
            tracing::info!(%session, ?exit, "the workspace was closed");
            match exit {
                Exit::Anew => {}
                Exit::Broken(why) => return drop(self.broken().insert(session, (Instant::now(), why))),
                Exit::Stopped | Exit::Detached => return,
            }
            workspace = match self.open_workspace(session).await {
                Ok(workspace) => workspace,
                Err(error) => return tracing::error!(%session, %error, "the workspace cannot be opened again"),
            };
        }
    }
}

fn failed(message: &str) -> FromWorkspace {
    let problem = WorkspaceProblem { path: String::new(), code: "failed".into(), message: message.into() };
    let status = WorkspaceStatus { state: "failed".into(), problems: vec![problem], ..WorkspaceStatus::default() };
    FromWorkspace { frame: Some(from_workspace::Frame::Status(status)) }
}
