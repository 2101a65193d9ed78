//! From a request to a stored task: its bounds, its node, its idempotency key, its slot.

use std::sync::Arc;

use cortex_runtime::clock::random;
use cortex_wire::{
    id::{NodeId, SessionId, TaskId},
    limits, schema,
    schema::task_request,
    task::State,
    text::clean,
};
use serde_json::json;

use super::{TaskError, object, put};
use crate::{
    account::Actor,
    hub::{Hub, Mesh, Reservation},
    record::{
        Digest, IdempotencyEntry, Mode, Node, Origin, Scope, Session, SessionStatus, Standing, Task, TaskSpec,
        tables::{IDEMPOTENCY, NODES, OPEN_TASKS_OF_NODE, OPEN_TASKS_OF_SESSION, TASKS, TASKS_OF_SESSION},
    },
    session,
    store::{Order, ReadTx, Span, StoreError, WriteTx},
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// How long a request may be asked for again under its key.
pub(super) const IDEMPOTENT_MS: i64 = DAY_MS;
/// The longest wait for a node.
pub(super) const LONGEST_WAIT_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Of a command, in events: enough to recognise it.
const COMMAND_SHOWN: usize = 200;

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

/// A reserved slot, given back unless it is used.
struct Slot {
    mesh: Arc<dyn Mesh>,
    node: NodeId,
    used: bool,
}

impl Slot {
    fn deliver(mut self, task: Task) {
        self.used = true;
        self.mesh.deliver(task, true);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.used {
            self.mesh.release(self.node);
        }
    }
}

impl TaskSpec {
    /// As it is sent.
    pub fn to_shell(&self) -> schema::ShellTask {
        let variable = |(name, value): (&String, &String)| schema::EnvironmentVariable { name: name.clone(), value: value.clone() };
        schema::ShellTask {
            argv: self.argv.clone(),
            script: self.script.clone().unwrap_or_default(),
            shell: self.shell.clone().unwrap_or_default(),
            cwd: self.cwd.clone(),
            environment: self.env.iter().map(variable).collect(),
            stdin: self.stdin,
        }
    }

    /// What it says of the command, in a line.
    pub fn summary(&self) -> String {
        let text = self.script.clone().unwrap_or_else(|| self.argv.join(" "));
        clean(&text.lines().collect::<Vec<_>>().join("; "), COMMAND_SHOWN)
    }

    /// What the node would refuse as malformed is refused before it is stored.
    fn check(&self) -> Result<(), TaskError> {
        if self.script.is_some() && !self.argv.is_empty() {
            return Err(TaskError::Malformed("both argv and script".into()));
        }
        let placeholder = TaskId::new(0, [0; 10]);
        let request = schema::TaskRequest {
            task_id: bytes::Bytes::copy_from_slice(placeholder.as_bytes()),
            session_id: SessionId::new(0, [0; 10]).to_string(),
            mode: schema::SandboxMode::from(self.mode.unwrap_or(Mode::Permissive)).into(),
            kind: Some(task_request::Kind::Shell(self.to_shell())),
            ..schema::TaskRequest::default()
        };
        cortex_wire::task::check_shape(&request).map_err(|rejection| {
            TaskError::Malformed(match rejection {
                cortex_wire::task::Rejection::Malformed(what) => what.to_owned(),
                other => other.to_string(),
            })
        })
    }
}

/// The node that a dispatch is for.
fn choose(tx: &dyn ReadTx, session: &Session, wanted: Option<NodeId>) -> Result<Node, TaskError> {
    let id = match (wanted, session.nodes.as_slice()) {
        (Some(id), nodes) if nodes.contains(&id) => id,
        (Some(_), _) => return Err(TaskError::NotAttached),
        (None, [id]) => *id,
        (None, []) => return Err(TaskError::NoNode),
        (None, several) => {
            let name = |id: &NodeId| Ok((*id, NODES.get(tx, id)?.map_or_else(String::new, |node| node.name)));
            let candidates: Result<Vec<_>, StoreError> = several.iter().map(name).collect();
            return Err(TaskError::AmbiguousNode { candidates: candidates? });
        }
    };
    let node = NODES.get(tx, &id)?.ok_or(TaskError::NotAttached)?;
    let why = match node.standing {
        Standing::Active => return Ok(node),
        Standing::Pending => "its owner has not approved it yet",
        Standing::Revoked => "it was revoked",
    };
    Err(TaskError::NodeNotActive { name: node.name, why })
}

/// A dispatch that was asked for before under the same key.
struct Repeat {
    entry: Digest,
    request: Digest,
}

impl Repeat {
    fn new(actor: &Actor, session: SessionId, key: &str, request: &DispatchRequest) -> Result<Self, TaskError> {
        if key.is_empty() || key.len() > 255 {
            return Err(TaskError::Malformed("an idempotency key has 1 to 255 bytes".into()));
        }
        let mut entry = blake3::Hasher::new_derive_key("cortex-mesh v1 idempotency key");
        entry.update(actor.user.as_bytes()).update(session.as_bytes()).update(key.as_bytes());
        let body = json!({ "node": request.node, "spec": request.spec, "queue_timeout_ms": request.queue_timeout_ms });
        let request = blake3::hash(body.to_string().as_bytes());
        Ok(Self { entry: Digest(entry.finalize().into()), request: Digest(request.into()) })
    }

    fn find(&self, tx: &dyn ReadTx, now_ms: i64) -> Result<Option<Task>, TaskError> {
        let entry = IDEMPOTENCY.get(tx, &self.entry)?.filter(|entry| now_ms - entry.created_at_ms < IDEMPOTENT_MS);
        match entry {
            Some(entry) if entry.request != self.request => Err(TaskError::IdempotencyConflict),
            Some(entry) => Ok(TASKS.get(tx, &entry.task)?),
            None => Ok(None),
        }
    }

    fn keep(&self, tx: &mut dyn WriteTx, task: TaskId, now_ms: i64) -> Result<(), StoreError> {
        IDEMPOTENCY.put(tx, &self.entry, &IdempotencyEntry { request: self.request, task, created_at_ms: now_ms })
    }
}

fn new_task(actor: &Actor, session: SessionId, node: NodeId, request: DispatchRequest, leased: bool, now_ms: i64) -> Task {
    let wait_ms = match request.queue_timeout_ms {
        0 => limits::START_DEADLINE_MS,
        wait => i64::try_from(wait).unwrap_or(limits::START_DEADLINE_MS),
    };
    Task {
        id: TaskId::new(now_ms, random()),
        session,
        node,
        origin: Origin { user: actor.user, via: actor.via.clone(), token: actor.token.clone() },
        state: if leased { State::Leased } else { State::Queued },
        spec: request.spec,
        fence: u64::from(leased),
        attempt: 1,
        queue_timeout_ms: request.queue_timeout_ms,
        created_at_ms: now_ms,
        start_by_ms: now_ms + wait_ms,
        leased_at_ms: leased.then_some(now_ms),
        started_at_ms: None,
        finished_at_ms: None,
        cancel_asked_at_ms: None,
        exit_code: None,
        signal: None,
        code: None,
        reason: None,
        usage: None,
        stdout_bytes: 0,
        stderr_bytes: 0,
        truncated: false,
        descendants_held_pipe: false,
        workspace_behind: false,
        sandbox_level: None,
        policy_hash: None,
        evidence: None,
    }
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
        request.spec.check()?;
        if request.queue_timeout_ms > LONGEST_WAIT_MS {
            return Err(TaskError::Malformed("queue_timeout_ms is at most seven days".into()));
        }
        let repeat = idempotency_key.map(|key| Repeat::new(actor, session, key, &request)).transpose()?;
        let (actor, mesh, outputs, presence) = (actor.clone(), self.mesh().cloned(), self.outputs.clone(), self.presence.clone());
        self.change(actor.subject(), move |change| {
            let session = session::used_by(change.tx, &actor, Scope::Dispatch, session)?;
            if let Some(task) = repeat.as_ref().map(|repeat| repeat.find(change.tx, change.now_ms)).transpose()?.flatten() {
                return Ok(Dispatched { task, repeated: true });
            }
            if session.status == SessionStatus::Archived {
                return Err(TaskError::Archived);
            }
            let node = choose(change.tx, &session, request.node)?;
            let reservation = mesh.as_ref().map_or(Reservation::Offline, |mesh| mesh.reserve(node.id));
            let slot = mesh.clone().filter(|_| reservation == Reservation::Slot).map(|mesh| Slot { mesh, node: node.id, used: false });
            if reservation == Reservation::Offline && request.queue_timeout_ms == 0 {
                return Err(TaskError::NodeOffline { name: node.name });
            }
            if reservation == Reservation::Indirect && request.queue_timeout_ms == 0 {
                let why = presence.of(&node).path_reason.unwrap_or_default();
                return Err(TaskError::NoDirectWay { name: node.name, why });
            }
            let task = new_task(&actor, session.id, node.id, request, slot.is_some(), change.now_ms);
            let id = task.id;
            TASKS_OF_SESSION.insert(change.tx, &session.id, &id)?;
            OPEN_TASKS_OF_NODE.insert(change.tx, &node.id, &id)?;
            OPEN_TASKS_OF_SESSION.insert(change.tx, &session.id, &id)?;
            if let Some(repeat) = repeat {
                repeat.keep(change.tx, id, change.now_ms)?;
            }
            change.audit("task.dispatch", &object(id), json!({ "node": node.id, "spec": task.spec }).to_string().as_bytes())?;
            put(change, &task)?;
            let delivered = task.clone();
            change.then(move || {
                outputs.begin(id);
                match (slot, mesh) {
                    (Some(slot), _) => slot.deliver(delivered),
                    (None, Some(mesh)) => mesh.deliver(delivered, false),
                    (None, None) => {}
                }
            });
            Ok(Dispatched { task, repeated: false })
        })
        .await
    }
}

/// Forgets idempotency keys whose time is over.
pub(crate) fn sweep(tx: &mut dyn WriteTx, now_ms: i64) -> Result<(), StoreError> {
    let mut old = Vec::new();
    IDEMPOTENCY.visit(tx, &Span::all(), Order::Ascending, |key, entry| {
        if now_ms - entry.created_at_ms >= IDEMPOTENT_MS {
            old.extend(<[u8; 32]>::try_from(key).map(Digest));
        }
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    old.iter().try_for_each(|key| IDEMPOTENCY.delete(tx, key))
}
