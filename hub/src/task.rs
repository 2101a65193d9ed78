//! Tasks: from a dispatch to exactly one final state.
//!
//! Every transition is one transaction: the row, an event in the session's log, a notice, and an audit row where somebody acted. What may
//! become what is [`State::may_become`]'s to say. A dispatch costs one commit: when its node has a free slot the task is stored as leased
//! at once, and goes to the mesh from the commit itself.

use std::{collections::HashMap, sync::Arc};

use cortex_wire::{
    id::{NodeId, SessionId, TaskId},
    limits,
    schema::{Signed, TaskResponse, TaskStarted, task_response},
    task::State,
    text::clean,
};
use data_encoding::BASE64;
use serde_json::json;

use crate::{
    account::Actor,
    approval::{self, Decision},
    change::Change,
    failure::{Failure, Kind, Refused},
    hub::{Hub, Mesh},
    node,
    output::{self, OutputError, Outputs},
    record::{
        Digest, Evidence, OutputRecord, Scope, Task, Usage,
        tables::{FORGETTABLE, NODES, OPEN_TASKS_OF_NODE, OPEN_TASKS_OF_SESSION, OUTPUTS, SESSIONS, TASKS, TASKS_OF_SESSION},
    },
    session,
    store::{Order, ReadTx, Span, StoreError},
};

mod choice;
mod dispatch;
mod evidence;
mod overview;
pub mod pool;
mod retry;

pub use dispatch::{DispatchRequest, Dispatched};
pub(crate) use dispatch::{patience_ms, sweep};

/// Why a dispatch or another request about a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The session has no node.
    #[error("no node is attached to this session; attach one first")]
    NoNode,
    /// The session has several nodes.
    #[error("several nodes of this session could run it; say which one, or dispatch with `pool: true` if any of them will do")]
    AmbiguousNode {
        /// Which, with their names.
        candidates: Vec<(NodeId, String)>,
    },
    /// The node is not the session's.
    #[error("this node is not attached to the session; attach it first")]
    NotAttached,
    /// The node is not there.
    #[error("node {name:?} is offline; start its peer, or dispatch with queue_timeout_ms to wait for it")]
    NodeOffline {
        /// What it is called.
        name: String,
    },
    /// The node takes tasks only over a direct way.
    #[error("node {name:?} takes tasks only while its packets go directly (path_policy direct_only), and now they do not: {why}")]
    NoDirectWay {
        /// What it is called.
        name: String,
        /// Why they do not.
        why: String,
    },
    /// Its owner has drained the node.
    #[error("node {name:?} is drained: it takes no new tasks until its owner undrains it")]
    NodeDrained {
        /// What it is called.
        name: String,
    },
    /// Nobody can take it now.
    #[error("no node of this session can run it{}: {why}", if *.fits { " now" } else { "" })]
    NoCandidate {
        /// Some could, if they were there.
        fits: bool,
        /// Each node, and why not.
        why: String,
    },
    /// Too much waits already.
    #[error("{waiting} tasks wait in the pool already")]
    PoolFull {
        /// How many.
        waiting: usize,
    },
    /// The node waits for approval, or was revoked.
    #[error("node {name:?} may not run tasks: {why}")]
    NodeNotActive {
        /// What it is called.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The node shows no pages.
    #[error("node {name:?} has no browser; install Chromium there (Debian: apt install chromium) and start its peer again")]
    NoBrowser {
        /// What it is called.
        name: String,
    },
    /// The session is archived.
    #[error("this session is archived; take it up again first")]
    Archived,
    /// The command is malformed or too large.
    #[error("the task cannot be dispatched: {0}")]
    Malformed(String),
    /// Its node has signed nothing.
    #[error("the task is {0}, and its node has signed nothing about it; what ran to its end has evidence")]
    NoEvidence(State),
    /// The idempotency key belongs to another request.
    #[error("this idempotency key was used for another request")]
    IdempotencyConflict,
    /// A secret that it names is not there.
    #[error("there is no secret `{0}` in this session or of yours")]
    UnknownSecret(String),
    /// The session has as many terminals as it may have.
    #[error("{0} terminals are open in this session, as many as there may be")]
    TooManyTerminals(usize),
    /// The session has as many open tasks as it may have.
    #[error("{0} tasks of this session have not ended, as many as there may be")]
    TooManyTasks(usize),
    /// Anything else.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<StoreError> for TaskError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure for TaskError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoNode => "no_node",
            Self::AmbiguousNode { .. } => "ambiguous_node",
            Self::NotAttached => "node_not_attached",
            Self::NodeOffline { .. } => "node_offline",
            Self::NoDirectWay { .. } => "no_direct_way",
            Self::NodeDrained { .. } => "node_drained",
            Self::NoCandidate { .. } => "no_candidate",
            Self::PoolFull { .. } => "pool_full",
            Self::NodeNotActive { .. } => "node_not_active",
            Self::NoBrowser { .. } => "no_browser",
            Self::Archived => "session_archived",
            Self::Malformed(_) => "malformed_task",
            Self::NoEvidence(_) => "no_evidence",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::UnknownSecret(_) => "unknown_secret",
            Self::TooManyTerminals(_) => "too_many_terminals",
            Self::TooManyTasks(_) => "too_many_tasks",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NoNode | Self::AmbiguousNode { .. } | Self::NotAttached => Kind::Conflict,
            Self::NodeNotActive { .. } | Self::NoBrowser { .. } | Self::Archived | Self::IdempotencyConflict => Kind::Conflict,
            Self::NoEvidence(_) | Self::UnknownSecret(_) | Self::TooManyTerminals(_) => Kind::Conflict,
            Self::NoCandidate { fits: false, .. } => Kind::Conflict,
            Self::NodeOffline { .. } | Self::NoDirectWay { .. } | Self::NodeDrained { .. } | Self::NoCandidate { .. } => Kind::Unavailable,
            Self::PoolFull { .. } | Self::TooManyTasks(_) => Kind::TooMany,
            Self::Malformed(_) => Kind::Invalid,
            Self::Refused(refused) => refused.kind(),
        }
    }
}

/// Why news about a task were not taken.
#[derive(Debug, thiserror::Error)]
pub enum TransitionError {
    /// No such task, or it is another node's.
    #[error("there is no such task on this node")]
    NotFound,
    /// The task has moved on.
    #[error("the task is {now} and cannot become {wanted}")]
    NotAllowed {
        /// Its state.
        now: cortex_wire::task::State,
        /// What was reported.
        wanted: cortex_wire::task::State,
    },
    /// The news are of an older lease.
    #[error("the report belongs to an older lease of the task")]
    OldFence,
    /// The report does not make sense.
    #[error("the report is malformed: {0}")]
    Malformed(&'static str),
    /// The output.
    #[error("the task's output could not be stored")]
    Output(#[from] OutputError),
    /// The store failed.
    #[error("the hub's store failed")]
    Store(#[from] StoreError),
}

/// How the output of a node's open tasks ends, if they are ended from here: settled before the transaction, stored in it.
#[derive(Debug)]
pub(crate) struct Endings {
    outputs: Outputs,
    records: HashMap<TaskId, OutputRecord>,
}

fn waits(state: State) -> bool {
    matches!(state, State::Queued | State::AwaitingApproval | State::Offered)
}

fn object(id: TaskId) -> String {
    format!("task:{id}")
}

/// Stores a task's new state and tells it.
pub(crate) fn put(change: &mut Change<'_>, task: &Task) -> Result<(), StoreError> {
    approval::index(change.tx, task)?;
    if task.state.is_final() {
        OPEN_TASKS_OF_NODE.remove(change.tx, &task.node, &task.id)?;
        OPEN_TASKS_OF_SESSION.remove(change.tx, &task.session, &task.id)?;
        if task.spec.forget_output {
            FORGETTABLE.put(change.tx, &task.id, &change.now_ms)?;
        }
    }
    if task.is_pooled() {
        pool::index(change.tx, task)?;
    }
    let Some(session) = SESSIONS.get(change.tx, &task.session)? else { return put_orphan(change, task) };
    TASKS.put(change.tx, &task.id, task)?;
    let mut data = json!({
        "id": task.id,
        "session_id": task.session,
        "node_id": task.node,
        "user_id": task.origin.user,
        "via": task.origin.via,
        "state": task.state,
        "command": task.spec.summary(),
    });
    if task.cancel_asked_at_ms.is_some() && !task.state.is_final() {
        data["cancel_asked"] = true.into();
    }
    if let (State::AwaitingApproval, Some(asked)) = (task.state, &task.approval) {
        data["approval"] = json!({ "code": asked.code, "question": asked.question, "expires_at_ms": asked.expires_at_ms });
    }
    if task.state.is_final() {
        for (key, value) in [
            ("exit_code", json!(task.exit_code)),
            ("signal", json!(task.signal)),
            ("code", json!(task.code)),
            ("reason", json!(task.reason)),
            ("stdout_bytes", json!(task.stdout_bytes)),
            ("stderr_bytes", json!(task.stderr_bytes)),
            ("truncated", json!(task.truncated)),
            ("retried_as", json!(task.retried_as)),
        ] {
            if !value.is_null() {
                data[key] = value;
            }
        }
    }
    let mut logged = data.clone();
    pool::journal(task, &mut logged);
    change.event(task.session, "task", logged)?;
    change.notice(session::audience(&session), "task", data)
}

/// A task whose session was deleted goes with its end.
fn put_orphan(change: &mut Change<'_>, task: &Task) -> Result<(), StoreError> {
    if !task.state.is_final() {
        return TASKS.put(change.tx, &task.id, task);
    }
    // Its files go with the next sweep.
    OUTPUTS.delete(change.tx, &task.id)?;
    TASKS.delete(change.tx, &task.id)
}

/// A task, if the actor may see it.
pub(crate) fn seen_by(tx: &dyn ReadTx, actor: &Actor, id: TaskId) -> Result<Task, Refused> {
    let task = TASKS.get(tx, &id)?.ok_or(Refused::NotFound("task"))?;
    match session::seen_by(tx, actor, task.session) {
        Ok(_) => Ok(task),
        Err(Refused::NotFound(_)) => Err(Refused::NotFound("task")),
        Err(error) => Err(error),
    }
}

/// Ends a task from here: its node has no say, or had none yet.
pub(crate) fn end(change: &mut Change<'_>, task: &mut Task, state: State, code: &str, reason: &str) -> Result<(), StoreError> {
    task.state = state;
    task.code = Some(clean(code, 64));
    task.reason = Some(clean(reason, limits::TEXT_BYTES));
    task.finished_at_ms = Some(change.now_ms);
    change.audit(&format!("task.{}", state.name()), &object(task.id), reason.as_bytes())?;
    put(change, task)
}

/// Cancels a task that is not final: at once if it waits, else by asking its node.
pub(crate) fn cancel(change: &mut Change<'_>, mut task: Task, mesh: &Option<Arc<dyn Mesh>>) -> Result<Task, StoreError> {
    if waits(task.state) {
        end(change, &mut task, State::Cancelled, "cancelled", "cancelled before it started")?;
        output::seal(change.tx, task.id, None)?;
    } else {
        task.cancel_asked_at_ms = task.cancel_asked_at_ms.or(Some(change.now_ms));
        change.audit("task.cancel", &object(task.id), b"")?;
        put(change, &task)?;
    }
    if let Some(mesh) = mesh.clone() {
        let (id, node) = (task.id, task.node);
        change.then(move || mesh.cancel(id, node, "cancelled".into()));
    }
    Ok(task)
}

/// Ends every open task of a node that is gone for good.
pub(crate) fn abandon(change: &mut Change<'_>, node: NodeId, endings: Endings, reason: &str) -> Result<(), StoreError> {
    let Endings { outputs, mut records } = endings;
    for id in OPEN_TASKS_OF_NODE.all_of(change.tx, &node)? {
        let Some(mut task) = TASKS.get(change.tx, &id)? else { continue };
        let state = if waits(task.state) { State::Cancelled } else { State::Lost };
        let record = output::seal(change.tx, id, records.remove(&id))?;
        note_output(&mut task, &record);
        end(change, &mut task, state, "node_gone", reason)?;
        let outputs = outputs.clone();
        change.then(move || outputs.close(id));
    }
    Ok(())
}

/// What was stored, for a task whose node did not say how much there was.
fn note_output(task: &mut Task, record: &OutputRecord) {
    let mark = record.mark();
    (task.stdout_bytes, task.stderr_bytes) = (mark.stdout, mark.stderr);
}

/// A result as its task shows it.
fn apply_result(task: &mut Task, response: &TaskResponse, signed: &Signed) -> Result<State, TransitionError> {
    let state = State::from_name(&response.state)
        .filter(|state| matches!(state, State::Succeeded | State::Failed | State::Cancelled | State::TimedOut | State::Lost))
        .ok_or(TransitionError::Malformed("state"))?;
    (task.exit_code, task.signal) = match response.exit {
        Some(task_response::Exit::ExitCode(code)) => (Some(code), None),
        Some(task_response::Exit::Signal(signal)) => (None, Some(signal)),
        None => (None, None),
    };
    if (state == State::Succeeded) != (task.exit_code == Some(0) && !matches!(state, State::Cancelled | State::TimedOut | State::Lost)) {
        return Err(TransitionError::Malformed("exit code"));
    }
    let set = |at_ms: i64| Some(at_ms).filter(|at_ms| *at_ms > 0);
    let text = |text: &str| Some(clean(text, limits::TEXT_BYTES)).filter(|text| !text.is_empty());
    task.started_at_ms = set(response.started_at_ms).or(task.started_at_ms);
    task.finished_at_ms = set(response.finished_at_ms);
    task.reason = text(&response.reason);
    task.usage = response.usage.map(|usage| Usage {
        wall_ms: usage.wall_ms,
        cpu_user_ms: usage.cpu_user_ms,
        cpu_system_ms: usage.cpu_system_ms,
        peak_memory_bytes: usage.peak_memory_bytes,
    });
    task.stdout_bytes = response.stdout_bytes;
    task.stderr_bytes = response.stderr_bytes;
    task.truncated = response.truncated;
    task.descendants_held_pipe = response.descendants_held_pipe;
    task.sandbox_level = text(&response.sandbox_level).or(task.sandbox_level.take());
    task.policy_hash = <[u8; 32]>::try_from(&response.policy_hash[..]).ok().map(Digest);
    task.evidence = Some(Evidence { body: BASE64.encode(&signed.body), signature: BASE64.encode(&signed.signature) });
    Ok(state)
}

fn find(tx: &dyn ReadTx, id: TaskId) -> Result<Task, TransitionError> {
    TASKS.get(tx, &id)?.ok_or(TransitionError::NotFound)
}

fn must_allow(task: &Task, wanted: State) -> Result<(), TransitionError> {
    if task.state.may_become(wanted) { Ok(()) } else { Err(TransitionError::NotAllowed { now: task.state, wanted }) }
}

impl Hub {
    /// A task, for the actor.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn task(&self, actor: &Actor, id: TaskId) -> Result<Task, TaskError> {
        let actor = actor.clone();
        self.db.read(move |tx| Ok(seen_by(tx, &actor, id)?)).await
    }

    /// A session's tasks, newest first, at most `limit`, those before `before`.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn tasks(&self, actor: &Actor, session: SessionId, before: Option<TaskId>, limit: usize) -> Result<Vec<Task>, TaskError> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                session::seen_by(tx, &actor, session)?;
                let span = Span::under(session);
                let span = match before {
                    Some(before) => span.before((session, before)),
                    None => span,
                };
                let ids = TASKS_OF_SESSION.of(tx, &session, &span, Order::Descending, limit)?;
                Ok(rows(tx, &ids)?)
            })
            .await
    }

    /// Tasks of a node that are not final, for the actor: all of them for the node's owner, for others those of sessions they are in.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn open_tasks(&self, actor: &Actor, node: NodeId) -> Result<Vec<Task>, TaskError> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                let (row, _) = node::find(tx, &actor, node)?;
                let mut tasks = rows(tx, &OPEN_TASKS_OF_NODE.all_of(tx, &node)?)?;
                if row.owner != actor.user {
                    tasks.retain(|task| session::seen_by(tx, &actor, task.session).is_ok());
                }
                Ok(tasks)
            })
            .await
    }

    /// Asks to cancel a task. One that has not started is cancelled at once; one that is with its node is final when the node says so; one
    /// that is final stays as it is.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn cancel(&self, actor: &Actor, id: TaskId) -> Result<Task, TaskError> {
        let (actor, mesh, outputs) = (actor.clone(), self.mesh().cloned(), self.outputs.clone());
        self.change(actor.subject(), move |change| {
            let task = seen_by(change.tx, &actor, id)?;
            session::used_by(change.tx, &actor, Scope::Dispatch, task.session)?;
            if task.state.is_final() {
                return Ok(task);
            }
            let task = cancel(change, task, &mesh)?;
            if task.state.is_final() {
                change.then(move || outputs.close(id));
            }
            Ok(task)
        })
        .await
    }

    /// A task, whoever's it is. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find_task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        self.db.read(move |tx| TASKS.get(tx, &id)).await
    }

    /// A queued task is given to its node; the fence grows. If a person has to be asked first, it waits for that instead. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn lease(&self, id: TaskId) -> Result<Task, TransitionError> {
        self.lease_if(id, || true).await
    }

    /// The same, if `wanted` holds inside the transaction: whoever writes after it has ceased to hold sees every lease that was taken.
    pub(crate) async fn lease_if(&self, id: TaskId, wanted: impl FnOnce() -> bool + Send + 'static) -> Result<Task, TransitionError> {
        self.change("hub".into(), move |change| {
            let mut task = find(change.tx, id)?;
            if !wanted() {
                return Err(TransitionError::NotAllowed { now: task.state, wanted: State::Leased });
            }
            must_allow(&task, State::Leased)?;
            // The policy may have changed since it was asked.
            if let Some(node) = NODES.get(change.tx, &task.node)?
                && approval::decide(change.tx, &node, &mut task, change.now_ms)? == Decision::Wait
            {
                approval::ask(change, &mut task)?;
                return Ok(task);
            }
            task.state = State::Leased;
            task.fence += 1;
            task.leased_at_ms = Some(change.now_ms);
            put(change, &task)?;
            Ok(task)
        })
        .await
    }

    /// The node started the task. News that come late change nothing. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn started(&self, id: TaskId, node: NodeId, started: &TaskStarted) -> Result<Task, TransitionError> {
        let (at_ms, behind) = (started.at_ms, started.workspace_behind);
        let level = clean(&started.sandbox_level, limits::NAME_BYTES);
        self.change(format!("node:{node}"), move |change| {
            let mut task = find(change.tx, id)?;
            if task.node != node {
                return Err(TransitionError::NotFound);
            }
            if task.state == State::Running || task.state.is_final() {
                return Ok(task);
            }
            must_allow(&task, State::Running)?;
            task.state = State::Running;
            task.started_at_ms = Some(at_ms);
            task.sandbox_level = Some(level);
            task.workspace_behind = behind;
            put(change, &task)?;
            Ok(task)
        })
        .await
    }

    /// The node's signed result (`signed` was verified, `response` is its body), after all its output. The same result twice is fine. For
    /// the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn finish(&self, id: TaskId, node: NodeId, response: &TaskResponse, signed: &Signed) -> Result<Task, TransitionError> {
        if response.task_id != id.as_bytes()[..] || response.node_key != node.key().as_bytes()[..] {
            return Err(TransitionError::Malformed("task or node id"));
        }
        let record = self.outputs.ending(id).await?;
        let (response, signed, outputs, mesh) = (response.clone(), signed.clone(), self.outputs.clone(), self.mesh().cloned());
        self.change(format!("node:{node}"), move |change| {
            let mut task = find(change.tx, id)?;
            if task.node != node {
                return Err(TransitionError::NotFound);
            }
            if response.fence != task.fence {
                return Err(TransitionError::OldFence);
            }
            let before = task.state;
            let state = apply_result(&mut task, &response, &signed)?;
            if before == state {
                return find(change.tx, id);
            }
            must_allow(&task, state)?;
            task.state = state;
            if state == State::Lost {
                task.code = Some("lost".into());
                retry::again(change, &mut task, mesh.as_ref(), &outputs)?;
            }
            let kept = output::seal(change.tx, id, record)?;
            let mark = kept.mark();
            task.truncated |= !kept.is_whole() || mark.stdout < task.stdout_bytes || mark.stderr < task.stderr_bytes;
            change.audit("task.finish", &object(id), &signed.body)?;
            put(change, &task)?;
            change.then(move || outputs.close(id));
            Ok(task)
        })
        .await
        .inspect(|task| self.forget_output_later(task))
    }

    /// Ends a task from here, with its output as it is.
    async fn end_task(&self, id: TaskId, state: State, code: &str, reason: &str) -> Result<Task, TransitionError> {
        let record = self.outputs.ending(id).await?;
        let (code, reason, outputs, mesh) = (code.to_owned(), reason.to_owned(), self.outputs.clone(), self.mesh().cloned());
        self.change("hub".into(), move |change| {
            let mut task = find(change.tx, id)?;
            if task.state == state {
                return Ok(task);
            }
            must_allow(&task, state)?;
            // Somebody's yes gave it new time; the old one ends unheard.
            let has_time = task.approval.is_some() && (task.state == State::AwaitingApproval || change.now_ms + 1000 < task.start_by_ms);
            if state == State::Expired && (!waits(task.state) || has_time) {
                return Err(TransitionError::NotAllowed { now: task.state, wanted: state });
            }
            let record = output::seal(change.tx, id, record)?;
            note_output(&mut task, &record);
            if state == State::Lost {
                retry::again(change, &mut task, mesh.as_ref(), &outputs)?;
            }
            end(change, &mut task, state, &code, &reason)?;
            change.then(move || outputs.close(id));
            Ok(task)
        })
        .await
        .inspect(|task| self.forget_output_later(task))
    }

    /// The node refused the task. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn reject(&self, id: TaskId, code: &str, message: &str) -> Result<Task, TransitionError> {
        self.end_task(id, State::Rejected, code, message).await
    }

    /// The task waited too long. One that is with its node already is the node's to refuse. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn expire(&self, id: TaskId) -> Result<Task, TransitionError> {
        self.end_task(id, State::Expired, "not_started_in_time", "its node did not take it in time").await
    }

    /// The task was lost with its node. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn lose(&self, id: TaskId, reason: &str) -> Result<Task, TransitionError> {
        self.end_task(id, State::Lost, "lost", reason).await
    }

    /// A leased task whose cancellation was asked for, and which its node certainly never got. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn cancel_unsent(&self, id: TaskId) -> Result<Task, TransitionError> {
        self.end_task(id, State::Cancelled, "cancelled", "cancelled before it started").await
    }

    /// A task whose lease of this fence its node certainly did not start waits again; one that waits already is fine. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn requeue(&self, id: TaskId, fence: u64) -> Result<Task, TransitionError> {
        self.change("hub".into(), move |change| {
            let mut task = find(change.tx, id)?;
            if task.fence != fence {
                return Err(TransitionError::OldFence);
            }
            if task.state == State::Queued {
                return Ok(task);
            }
            must_allow(&task, State::Queued)?;
            task.state = State::Queued;
            task.leased_at_ms = None;
            put(change, &task)?;
            Ok(task)
        })
        .await
    }

    /// A lease that its node refused because of the policy: the first time it waits again, to be judged and signed under the newest one. `None`: it stays
    /// refused. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn retry_policy(&self, id: TaskId, fence: u64) -> Result<Option<Task>, TransitionError> {
        self.change("hub".into(), move |change| {
            let mut task = find(change.tx, id)?;
            let may = task.state == State::Leased && task.fence == fence && !task.policy_retried && task.cancel_asked_at_ms.is_none();
            if !may {
                return Ok(None);
            }
            task.policy_retried = true;
            task.state = State::Queued;
            task.leased_at_ms = None;
            task.start_by_ms = task.start_by_ms.max(change.now_ms + patience_ms(task.queue_timeout_ms));
            put(change, &task)?;
            Ok(Some(task))
        })
        .await
    }

    /// A session's tasks that are not final, oldest first.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn open_tasks_in(&self, actor: &Actor, session: SessionId) -> Result<Vec<Task>, Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                session::seen_by(tx, &actor, session)?;
                Ok(rows(tx, &OPEN_TASKS_OF_SESSION.all_of(tx, &session)?)?)
            })
            .await
    }

    /// Every task that is not final. For the mesh, at its start.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn all_open_tasks(&self) -> Result<Vec<Task>, StoreError> {
        self.db.read(|tx| rows(tx, &OPEN_TASKS_OF_NODE.all(tx)?)).await
    }

    /// Tasks of a node that are not final, oldest first. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_tasks_of(&self, node: NodeId) -> Result<Vec<Task>, StoreError> {
        self.db.read(move |tx| rows(tx, &OPEN_TASKS_OF_NODE.all_of(tx, &node)?)).await
    }

    /// The same, behind every transaction that was queued before: what an earlier connection of the node did to its tasks is seen.
    pub(crate) async fn settled_tasks_of(&self, node: NodeId) -> Result<Vec<Task>, StoreError> {
        self.db.write(move |tx| rows(tx, &OPEN_TASKS_OF_NODE.all_of(tx, &node)?)).await
    }

    /// How the open tasks of a node end if it goes now.
    pub(crate) async fn endings_of(&self, node: NodeId) -> Result<Endings, StoreError> {
        let mut records = HashMap::new();
        for id in self.db.read(move |tx| OPEN_TASKS_OF_NODE.all_of(tx, &node)).await? {
            // What cannot be settled is lost with the node; what was acknowledged is stored already.
            if let Ok(Some(record)) = self.outputs.ending(id).await {
                records.insert(id, record);
            }
        }
        Ok(Endings { outputs: self.outputs.clone(), records })
    }
}

fn rows(tx: &dyn ReadTx, ids: &[TaskId]) -> Result<Vec<Task>, StoreError> {
    ids.iter().filter_map(|id| TASKS.get(tx, id).transpose()).collect()
}

#[cfg(test)]
mod tests;
