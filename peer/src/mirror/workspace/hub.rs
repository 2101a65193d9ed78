//! The hub's stream: what it says, and what is said to it.

use bytes::Bytes;
use cortex_wire::id::TaskId;

use super::*;

impl Workspace {
    pub(super) fn attach(&mut self, attached: Attachment) {
        self.detached();
        let Attachment { open, frames, send } = attached;
        for key in &open.keys {
            self.add_key(key);
        }
        self.forget_made();
        self.seed = open.chunk_seed[..].try_into().unwrap_or_default();
        self.stream = Some(Stream { frames, send });
        let (revision, root) = self.replica.hello();
        self.send(from_workspace::Frame::Hello(schema::WorkspaceHello { revision, root: root.to_bytes() }));
        self.last_status = None;
        let Ok(root) = Hash::from_slice(&open.root) else { return self.give_stream_up("a root that is no hash") };
        self.handle(Input::State { locks: locks(&open.locks), paused: open.paused });
        self.handle(Input::Connected { revision: open.revision, root });
    }

    pub(super) fn add_key(&mut self, key: &schema::WorkspaceKey) {
        let Ok(bytes) = key.key[..].try_into() else { return };
        self.keys.insert(key.epoch, bytes);
        let mut keys = Keys::new(self.options.session);
        self.keys.iter().for_each(|(epoch, key)| keys.insert(*epoch, key));
        self.sealing = Arc::new(keys);
        self.forget_made();
    }

    pub(super) fn detached(&mut self) {
        if self.stream.take().is_some() {
            self.barriers.clear();
            self.followers.retain(|(revision, _)| *revision > 0);
            self.checks.clear();
            self.proposals.clear();
            self.in_write.clear();
            self.handle(Input::Disconnected);
        }
    }

    pub(super) fn give_stream_up(&mut self, why: &str) {
        tracing::warn!(session = %self.options.session, why, "the workspace's stream is closed and opened again");
        self.detached();
    }

    pub(super) fn hear(&mut self, frame: ToWorkspace) {
        use to_workspace::Frame;
        match frame.frame {
            Some(Frame::Commit(commit)) => match commit_in(&commit) {
                Ok(commit) => self.handle(Input::Commit(commit)),
                Err(error) => self.give_stream_up(&error),
            },
            Some(Frame::Verdict(verdict)) => match verdict_in(&verdict) {
                Ok(verdict) => self.handle(Input::Verdict(verdict)),
                Err(error) => self.give_stream_up(&error),
            },
            Some(Frame::State(state)) => {
                if state.paused {
                    self.forget_made();
                }
                self.handle(Input::State { locks: locks(&state.locks), paused: state.paused });
            }
            Some(Frame::Key(key)) => self.add_key(&key),
            Some(Frame::Rescan(rescan)) => self.begin_check(&rescan),
            Some(Frame::Decision(decision)) => self.decided(&decision),
            Some(Frame::Barrier(number)) => self.begin_barrier(Answer::Hub(number)),
            Some(Frame::Detach(true)) => self.exit = Some(Exit::Detached),
            Some(Frame::Detach(false) | Frame::Tree(_)) | None => {}
        }
    }

    fn decided(&mut self, decision: &schema::Decision) {
        let schema::Decision { question, yes } = *decision;
        let taken = if question == ROOT_QUESTION { self.root_gone } else { self.replica.asks(question) };
        self.send(from_workspace::Frame::Answered(schema::Answered { question, taken }));
        if question != ROOT_QUESTION {
            self.handle(Input::Decision { question, yes });
        } else if taken && yes {
            self.exit = Some(Exit::Anew);
        }
    }

    pub(super) fn send(&mut self, frame: from_workspace::Frame) {
        if let Some(stream) = &self.stream
            && stream.send.try_send(FromWorkspace { frame: Some(frame) }).is_err()
        {
            self.give_stream_up("the hub does not read");
        }
    }
}

fn locks(locks: &[schema::WorkspaceLock]) -> Vec<Lock> {
    locks.iter().filter_map(|lock| Lock::from_schema(lock).ok()).collect()
}

fn commit_in(commit: &schema::Commit) -> Result<CommitIn, String> {
    let ops = match &commit.batch {
        Some(batch) => op::unpack(batch, FRAME_OPS).map_err(|error| error.to_string())?,
        None => Vec::new(),
    };
    let root = if commit.root.is_empty() { None } else { Some(Hash::from_slice(&commit.root).map_err(|error| error.to_string())?) };
    Ok(CommitIn { base: commit.base, revision: commit.revision, root, ops, last: commit.last })
}

fn verdict_in(verdict: &schema::Verdict) -> Result<VerdictIn, String> {
    Ok(VerdictIn {
        sequence: verdict.sequence,
        base: verdict.base,
        revision: verdict.revision,
        root: Hash::from_slice(&verdict.root).map_err(|error| error.to_string())?,
        objections: verdict.objections.iter().map(Objection::from_schema).collect(),
    })
}

pub(super) fn propose(proposal: &Proposal, task: Option<TaskId>) -> FromWorkspace {
    let task_id = task.map(|task| Bytes::copy_from_slice(task.as_bytes())).unwrap_or_default();
    let proposal = schema::Proposal { sequence: proposal.sequence, batch: Some(op::pack(&proposal.ops)), task_id };
    FromWorkspace { frame: Some(from_workspace::Frame::Proposal(proposal)) }
}
