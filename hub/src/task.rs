//! Tasks: from a dispatch to exactly one final state.

use cortex_wire::{
    id::{NodeId, SessionId, TaskId},
    schema::{Signed, TaskResponse},
};

use crate::{
    account::Actor,
    failure::{Failure, Kind, Refused},
    hub::Hub,
    record::{Task, TaskSpec},
    store::StoreError,
};

/// What somebody wants done.
#[derive(Debug, Clone)]
pub struct DispatchRequest {
    /// Where; `None`: the session's only node.
    pub node: Option<NodeId>,
    /// What.
    pub spec: TaskSpec,
    /// How long it may wait for a node that is away; 0: not at all. A node that is merely full is waited for anyway.
    pub queue_timeout_ms: u64,
}

/// What became of a dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatched {
    /// The task.
    pub task: Task,
    /// It was there already: the same request under the same idempotency key.
    pub repeated: bool,
}

/// Why a dispatch or another request about a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The session has no node.
    #[error("no node is attached to this session; attach one first")]
    NoNode,
    /// The session has several nodes.
    #[error("this session has several nodes; say which one")]
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
    /// The node waits for approval, or was revoked.
    #[error("node {name:?} may not run tasks: {why}")]
    NodeNotActive {
        /// What it is called.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The session is archived.
    #[error("this session is archived; take it up again first")]
    Archived,
    /// The command is malformed or too large.
    #[error("the task cannot be dispatched: {0}")]
    Malformed(String),
    /// The idempotency key belongs to another request.
    #[error("this idempotency key was used for another request")]
    IdempotencyConflict,
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
            Self::NodeNotActive { .. } => "node_not_active",
            Self::Archived => "session_archived",
            Self::Malformed(_) => "malformed_task",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NoNode | Self::AmbiguousNode { .. } | Self::NotAttached => Kind::Conflict,
            Self::NodeNotActive { .. } | Self::Archived | Self::IdempotencyConflict => Kind::Conflict,
            Self::NodeOffline { .. } => Kind::Unavailable,
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
    /// The store failed.
    #[error("the hub's store failed")]
    Store(#[from] StoreError),
}

impl Hub {
    /// Accepts a task: validates, chooses the node, stores, and hands it to the mesh; one commit.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn dispatch(
        &self,
        actor: &Actor,
        session: SessionId,
        request: DispatchRequest,
        idempotency_key: Option<&str>,
    ) -> Result<Dispatched, TaskError> {
        let _ = (actor, session, request, idempotency_key);
        todo!()
    }

    /// A task, for the actor.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn task(&self, actor: &Actor, id: TaskId) -> Result<Task, TaskError> {
        let _ = (actor, id);
        todo!()
    }

    /// A session's tasks, newest first, at most `limit`, those before `before`.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn tasks(&self, actor: &Actor, session: SessionId, before: Option<TaskId>, limit: usize) -> Result<Vec<Task>, TaskError> {
        let _ = (actor, session, before, limit);
        todo!()
    }

    /// Tasks of a node that are not final, for the actor.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn open_tasks(&self, actor: &Actor, node: NodeId) -> Result<Vec<Task>, TaskError> {
        let _ = (actor, node);
        todo!()
    }

    /// Asks to cancel a task. One that has not started is cancelled at once; one that runs is final when its node says so; one that is
    /// final stays as it is.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn cancel(&self, actor: &Actor, id: TaskId) -> Result<Task, TaskError> {
        let _ = (actor, id);
        todo!()
    }

    /// A task, whoever's it is. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find_task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        let _ = id;
        todo!()
    }

    /// A queued task is given to its node; the fence grows. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn lease(&self, id: TaskId) -> Result<Task, TransitionError> {
        let _ = id;
        todo!()
    }

    /// The node started the task. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn started(&self, id: TaskId, node: NodeId, at_ms: i64, sandbox_level: &str) -> Result<Task, TransitionError> {
        let _ = (id, node, at_ms, sandbox_level);
        todo!()
    }

    /// The node's signed result (`signed` was verified, `response` is its body). The same result twice is fine. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn finish(&self, id: TaskId, node: NodeId, response: &TaskResponse, signed: &Signed) -> Result<Task, TransitionError> {
        let _ = (id, node, response, signed);
        todo!()
    }

    /// The node refused the task. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn reject(&self, id: TaskId, code: &str, message: &str) -> Result<Task, TransitionError> {
        let _ = (id, code, message);
        todo!()
    }

    /// The task was not started in time. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn expire(&self, id: TaskId) -> Result<Task, TransitionError> {
        let _ = id;
        todo!()
    }

    /// The task was lost with its node. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn lose(&self, id: TaskId, reason: &str) -> Result<Task, TransitionError> {
        let _ = (id, reason);
        todo!()
    }

    /// A leased task that its node certainly did not start waits again. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn requeue(&self, id: TaskId) -> Result<Task, TransitionError> {
        let _ = id;
        todo!()
    }

    /// Tasks of a node that are not final, oldest first. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_tasks_of(&self, node: NodeId) -> Result<Vec<Task>, StoreError> {
        let _ = node;
        todo!()
    }
}
