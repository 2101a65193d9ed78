//! Workspaces on a node: one stream for each session that the node is attached to, over the node's end-to-end connection.
//!
//! A stream has a cursor: the revision that its node was brought to. Commits behind it are read from the workspace's log and sent, proposals of the
//! node are judged and answered at their place in the order of revisions. Each stream waits for nobody else's: a slow node is far behind, and catches up
//! over folded revisions. Contents do not travel here but as sealed chunks over links.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use cortex_runtime::{
    clock::Backoff,
    stream::{FrameReader, FrameWriter, StreamError},
};
use cortex_wire::{
    id::{NodeId, SessionId},
    limits,
    schema::{
        FromWorkspace, Proposal, StreamOpen, ToWorkspace, Verdict, WorkspaceHello, WorkspaceOpen, WorkspaceState, from_workspace,
        stream_open, to_workspace,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    hub::{Hub, lock},
    mesh::connection::NodeHandle,
    mirror::{
        MirrorError,
        nodes::Attachment,
        workspace::{Head, Workspace},
    },
};

/// A node that has been told to detach has this long to take note.
const FAREWELL: Duration = Duration::from_secs(5);
/// A node that has nothing else to do compares its files with the workspace this often.
const CHECK_EVERY: Duration = Duration::from_secs(600);
/// Longest wait before a broken stream is opened again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The workspace streams of one connection.
#[derive(Debug, Default)]
pub(crate) struct Workspaces {
    open: Mutex<HashMap<SessionId, Control>>,
}

#[derive(Debug)]
struct Control {
    detach: CancellationToken,
    /// Its keys may have changed.
    nudge: Arc<Notify>,
    task: AbortOnDropHandle<()>,
}

impl Workspaces {
    /// The connection is gone.
    pub(crate) fn close(&self) {
        lock(&self.open).clear();
    }
}

impl NodeHandle {
    /// Opens a stream for each session that the node is in now, and ends those of sessions that it has left. Returns these.
    pub(crate) async fn regroup_workspaces(self: &Arc<Self>) -> Result<Vec<SessionId>, crate::store::StoreError> {
        let wanted: HashSet<SessionId> = self.hub.synced_sessions(self.node).await?.into_iter().collect();
        let mut open = lock(&self.workspaces.open);
        let mut left = Vec::new();
        for (session, control) in open.extract_if(|session, control| !wanted.contains(session) || control.task.is_finished()) {
            control.detach.cancel();
            // It says farewell, and ends by itself.
            drop(control.task.detach());
            left.push(session);
        }
        for session in wanted {
            open.entry(session).and_modify(|control| control.nudge.notify_one()).or_insert_with(|| {
                let (detach, nudge) = (CancellationToken::new(), Arc::new(Notify::new()));
                let task = tokio::spawn(keep(self.clone(), session, detach.clone(), nudge.clone()));
                Control { detach, nudge, task: AbortOnDropHandle::new(task) }
            });
        }
        Ok(left)
    }
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Quic(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error("the session is gone")]
    Gone,
}

/// Syncs until the node is detached or the connection is gone, over more than one stream if a stream breaks.
async fn keep(handle: Arc<NodeHandle>, session: SessionId, detach: CancellationToken, nudge: Arc<Notify>) {
    let mut backoff = Backoff::new(PATIENCE);
    loop {
        let opened = async {
            let (send, recv) = handle.connection.open_bi().await?;
            Line::open(&handle.hub, (handle.node, handle.number), session, &nudge, (recv, send)).await
        };
        let opened = tokio::select! {
            opened = opened => opened,
            () = detach.cancelled() => return,
        };
        let error = match opened {
            Ok(mut line) => {
                let begun = Instant::now();
                let ended = line.run(&detach).await;
                if begun.elapsed() > PATIENCE {
                    backoff.reset();
                }
                match ended {
                    Ok(()) => return,
                    Err(error) => {
                        // The session may have been deleted, or the node taken out of it, before anybody told this stream.
                        let synced = handle.hub.synced_sessions(handle.node).await;
                        if synced.is_ok_and(|synced| !synced.contains(&session)) {
                            let _ = line.farewell().await;
                            return;
                        }
                        error
                    }
                }
            }
            Err(error) => error,
        };
        if handle.connection.close_reason().is_some() || matches!(error, LineError::Gone | LineError::Mirror(MirrorError::Gone)) {
            return;
        }
        tracing::warn!(%session, node = ?handle.node, %error, "a workspace stream broke; opening it again");
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = detach.cancelled() => return,
        }
    }
}

/// One stream of one workspace.
struct Line<R, W> {
    hub: Arc<Hub>,
    workspace: Arc<Workspace>,
    attachment: Attachment,
    head: watch::Receiver<Arc<Head>>,
    nudge: Arc<Notify>,
    reader: FrameReader<R>,
    writer: FrameWriter<W>,
    /// The node was brought here.
    cursor: u64,
    /// The newest key that it has.
    epoch: u32,
    /// Locks and pause as it knows them.
    state: WorkspaceState,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Line<R, W> {
    /// Begins a fresh stream to a node (on its connection of this number) and brings the node up to date.
    async fn open(
        hub: &Arc<Hub>,
        (node, number): (NodeId, u64),
        session: SessionId,
        nudge: &Arc<Notify>,
        (recv, send): (R, W),
    ) -> Result<Self, LineError> {
        let workspace = hub.workspace(session).await?;
        let attachment = workspace.join(node, number);
        let head = workspace.subscribe();
        let keys = hub.workspace_keys(session).await?;
        let mut line = Self {
            attachment,
            head,
            nudge: nudge.clone(),
            reader: FrameReader::new(recv, limits::WORKSPACE_FRAME_BYTES),
            writer: FrameWriter::new(send),
            cursor: 0,
            epoch: keys.last().map_or(0, |key| key.epoch),
            state: WorkspaceState::default(),
            hub: hub.clone(),
            workspace,
        };
        let head = line.head.borrow_and_update().clone();
        line.state = head.state();
        let open = WorkspaceOpen {
            session_id: Bytes::copy_from_slice(session.as_bytes()),
            keys,
            chunk_seed: Bytes::copy_from_slice(&line.workspace.seed().to_le_bytes()),
            revision: head.revision(),
            root: head.root(),
            locks: line.state.locks.clone(),
            paused: line.state.paused,
        };
        line.writer.send(&StreamOpen { open: Some(stream_open::Open::Workspace(open)), ..StreamOpen::default() }).await?;
        let hello = line.hello().await?;
        line.welcome(&hello).await?;
        Ok(line)
    }

    /// Where the node stands; or why it cannot, and then the stream ends.
    async fn hello(&mut self) -> Result<WorkspaceHello, LineError> {
        loop {
            match self.reader.expect::<FromWorkspace>().await?.frame {
                Some(from_workspace::Frame::Hello(hello)) => return Ok(hello),
                Some(from_workspace::Frame::Status(status)) => self.attachment.set_status(&self.hub, &status),
                _ => {}
            }
        }
    }

    /// Brings the node from where it stands to where the workspace stands; from the beginning when the log does not know where it stands.
    async fn welcome(&mut self, hello: &WorkspaceHello) -> Result<(), LineError> {
        if hello.revision == 0 {
            self.workspace.forget_verdicts(&self.hub, self.attachment.node).await?;
        }
        self.cursor = if self.workspace.knows(&self.hub, hello.revision, &hello.root).await? { hello.revision } else { 0 };
        if self.cursor == 0 && hello.revision > 0 && self.head.borrow().revision() == 0 {
            // The workspace is empty, and the node believes otherwise.
            return self.send_commits(0, 0).await;
        }
        self.catch_up().await
    }

    async fn run(&mut self, detach: &CancellationToken) -> Result<(), LineError> {
        let mut checks = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = self.reader.next::<FromWorkspace>() => {
                    if let Some(frame) = frame?.ok_or(StreamError::Truncated)?.frame {
                        self.receive(frame).await?;
                    }
                }
                changed = self.head.changed() => {
                    changed.map_err(|_| LineError::Gone)?;
                    self.tell_state().await?;
                    self.catch_up().await?;
                }
                order = self.attachment.next_order() => match order {
                    Some(order) => self.send(order).await?,
                    // A newer connection of the node has taken over.
                    None => return Ok(()),
                },
                _ = checks.tick() => if let Some(check) = self.attachment.routine_check() { self.send(check).await? },
                () = self.nudge.notified() => self.tell_key().await?,
                () = detach.cancelled() => return self.farewell().await,
            }
        }
    }

    async fn send(&mut self, frame: to_workspace::Frame) -> Result<(), StreamError> {
        self.writer.send(&ToWorkspace { frame: Some(frame) }).await
    }

    async fn catch_up(&mut self) -> Result<(), LineError> {
        loop {
            let to = self.head.borrow().revision();
            if self.cursor >= to {
                return Ok(());
            }
            self.lead_to(to).await?;
        }
    }

    /// Brings the node to a revision.
    async fn lead_to(&mut self, to: u64) -> Result<(), LineError> {
        while self.cursor < to {
            self.send_commits(self.cursor, to).await?;
        }
        Ok(())
    }

    /// Sends what leads from one revision towards another, and moves the cursor.
    async fn send_commits(&mut self, from: u64, to: u64) -> Result<(), LineError> {
        for commit in self.workspace.between(&self.hub, from, to).await? {
            self.cursor = commit.revision;
            self.send(to_workspace::Frame::Commit(commit)).await?;
        }
        Ok(())
    }

    async fn receive(&mut self, frame: from_workspace::Frame) -> Result<(), LineError> {
        match frame {
            from_workspace::Frame::Proposal(proposal) => self.propose(proposal).await,
            from_workspace::Frame::Status(status) => {
                self.attachment.set_status(&self.hub, &status);
                Ok(())
            }
            from_workspace::Frame::Tree(request) => {
                let head = self.head.borrow().clone();
                match head.children(&request) {
                    Some(answer) => Ok(self.send(to_workspace::Frame::Tree(answer)).await?),
                    // A folder too large for one answer: everything again.
                    None => self.send_commits(0, head.revision()).await,
                }
            }
            from_workspace::Frame::Drift(report) => {
                self.attachment.take_report(&self.hub, report);
                Ok(())
            }
            from_workspace::Frame::Answered(answered) => {
                self.attachment.take_answered(answered.question, answered.taken);
                Ok(())
            }
            from_workspace::Frame::Barrier(number) => {
                self.attachment.take_barrier(number);
                Ok(())
            }
            from_workspace::Frame::Hello(_) => Ok(()),
        }
    }

    /// The verdict is durable when it is sent, and stands where the node's own commit stands.
    async fn propose(&mut self, proposal: Proposal) -> Result<(), LineError> {
        let verdict: Verdict = self.workspace.propose(&self.hub, self.attachment.node, proposal).await?;
        self.lead_to(verdict.base).await?;
        self.cursor = self.cursor.max(verdict.revision);
        Ok(self.send(to_workspace::Frame::Verdict(verdict)).await?)
    }

    async fn tell_state(&mut self) -> Result<(), LineError> {
        let state = self.head.borrow_and_update().state();
        if state != self.state {
            self.state = state.clone();
            self.send(to_workspace::Frame::State(state)).await?;
        }
        Ok(())
    }

    async fn tell_key(&mut self) -> Result<(), LineError> {
        let keys = self.hub.workspace_keys(self.attachment.session()).await?;
        let known = self.epoch;
        for key in keys.into_iter().filter(|key| key.epoch > known) {
            self.epoch = key.epoch;
            self.send(to_workspace::Frame::Key(key)).await?;
        }
        Ok(())
    }

    async fn farewell(&mut self) -> Result<(), LineError> {
        let said = async {
            self.send(to_workspace::Frame::Detach(true)).await?;
            let _ = self.writer.inner_mut().shutdown().await;
            // What it says now comes too late; its end says that it has understood.
            while let Ok(Some(_)) = self.reader.next::<FromWorkspace>().await {}
            Ok(())
        };
        tokio::time::timeout(FAREWELL, said).await.unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests;
