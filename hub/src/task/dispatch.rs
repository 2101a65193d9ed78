//! From a request to a stored task: its bounds, its node, its idempotency key, its slot.

use std::sync::Arc;

use cortex_runtime::clock::random;
use cortex_wire::{
    browser,
    id::{NodeId, SessionId, TaskId},
    limits, schema,
    schema::task_request,
    task::State,
    text::clean,
};
use serde_json::json;

use super::{
    TaskError,
    choice::{self, Choice},
    object, put,
    retry::RETRIES,
};
use crate::{
    account::Actor,
    approval::{self, Decision},
    change::Change,
    hub::{Hub, Mesh, Reservation},
    record::{
        Digest, IdempotencyEntry, Mode, Origin, Scope, SessionStatus, Task, TaskSpec,
        tables::{IDEMPOTENCY, OPEN_TASKS_OF_NODE, OPEN_TASKS_OF_SESSION, TASKS, TASKS_OF_SESSION},
    },
    secret, session,
    store::{Order, ReadTx, Span, StoreError, WriteTx},
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// How long a request may be asked for again under its key.
pub(super) const IDEMPOTENT_MS: i64 = DAY_MS;
/// The longest wait for a node.
pub(super) const LONGEST_WAIT_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Tasks of one session that have not ended: more are queued than a person or an agent can mean.
const OPEN_TASKS: usize = 10_000;
/// Open terminals of one session.
pub(super) const TERMINALS: usize = 16;
/// Of a command, in events: enough to recognise it.
const COMMAND_SHOWN: usize = 200;

/// What somebody wants done.
#[derive(Debug, Clone, Default)]
pub struct DispatchRequest {
    /// Where; `None`: the session's only node, or the only one that fits the selector, or with `pool` any of them.
    pub node: Option<NodeId>,
    /// Which machines may run it.
    pub selector: Option<String>,
    /// Whoever fits and has room may take it.
    pub pool: bool,
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
pub(super) struct Slot {
    mesh: Arc<dyn Mesh>,
    node: NodeId,
    used: bool,
}

impl Slot {
    pub(super) fn new(mesh: Arc<dyn Mesh>, node: NodeId) -> Self {
        Self { mesh, node, used: false }
    }

    pub(super) fn deliver(mut self, task: Task) {
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
            terminal: self.terminal.map(Into::into),
            shell_session: self.shell_session.clone().map(|name| schema::ShellSession { name, reset: self.shell_reset }),
            secrets: self.secrets.keys().map(|name| unresolved(name)).collect(),
        }
    }

    /// Whether input can be sent to it.
    pub fn takes_input(&self) -> bool {
        self.stdin || self.terminal.is_some()
    }

    /// What it says of the command, in a line.
    pub fn summary(&self) -> String {
        if let Some(order) = &self.browser {
            let order = browser::Order::parse(order.to_string().as_bytes());
            return clean(&order.map_or_else(|_| "browser".to_owned(), |order| order.action.summary()), COMMAND_SHOWN);
        }
        let text = self.script.clone().unwrap_or_else(|| self.argv.join(" "));
        let text = if text.is_empty() { "(terminal)".to_owned() } else { text };
        clean(&text.lines().collect::<Vec<_>>().join("; "), COMMAND_SHOWN)
    }

    /// As it is sent, whatever it is.
    pub fn to_kind(&self) -> task_request::Kind {
        match &self.browser {
            Some(order) => task_request::Kind::Browser(schema::BrowserTask { order: order.to_string().into() }),
            None => task_request::Kind::Shell(self.to_shell()),
        }
    }

    /// What the node would refuse as malformed is refused before it is stored.
    fn check(&self) -> Result<(), TaskError> {
        if let Some(order) = &self.browser {
            if self.script.is_some() || !self.argv.is_empty() || self.stdin {
                return Err(TaskError::Malformed("both a browser action and a command".into()));
            }
            browser::Order::parse(order.to_string().as_bytes()).map_err(|error| TaskError::Malformed(error.to_string()))?;
        }
        if self.script.is_some() && !self.argv.is_empty() {
            return Err(TaskError::Malformed("both argv and script".into()));
        }
        if self.approval_timeout_ms.is_some_and(|ms| ms == 0 || ms > approval::LONGEST_MS) {
            return Err(TaskError::Malformed("approval_timeout_ms is from 1 to a day".into()));
        }
        if self.shell_reset && self.shell_session.is_none() {
            return Err(TaskError::Malformed("shell_reset without a shell_session".into()));
        }
        if self.retries > RETRIES || (self.retries > 0 && !self.idempotent) {
            return Err(TaskError::Malformed(format!("retries are at most {RETRIES}, and only of a task that is idempotent: true")));
        }
        let placeholder = TaskId::new(0, [0; 10]);
        let request = schema::TaskRequest {
            task_id: bytes::Bytes::copy_from_slice(placeholder.as_bytes()),
            session_id: SessionId::new(0, [0; 10]).to_string(),
            mode: schema::SandboxMode::from(self.mode.unwrap_or(Mode::Permissive)).into(),
            kind: Some(self.to_kind()),
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

/// A reference whose value is found when the task goes to its node.
fn unresolved(environment_name: &str) -> schema::SecretReference {
    schema::SecretReference { environment_name: environment_name.to_owned(), ..schema::SecretReference::default() }
}

/// Whether the session may have another task, and a terminal if it is one.
fn check_quota(tx: &dyn ReadTx, session: SessionId, spec: &TaskSpec) -> Result<(), TaskError> {
    let open = OPEN_TASKS_OF_SESSION.of(tx, &session, &Span::under(session), Order::Ascending, OPEN_TASKS)?;
    if open.len() >= OPEN_TASKS {
        return Err(TaskError::TooManyTasks(OPEN_TASKS));
    }
    if spec.terminal.is_some() {
        let tasks: Result<Vec<_>, StoreError> = open.iter().filter_map(|id| TASKS.get(tx, id).transpose()).collect();
        if tasks?.iter().filter(|task| task.spec.terminal.is_some()).count() >= TERMINALS {
            return Err(TaskError::TooManyTerminals(TERMINALS));
        }
    }
    Ok(())
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
        let mut body = json!({ "node": request.node, "spec": request.spec, "queue_timeout_ms": request.queue_timeout_ms });
        if request.pool || request.selector.is_some() {
            body["choice"] = json!([request.pool, request.selector]);
        }
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

/// How long a task may wait for its node.
pub(crate) fn patience_ms(queue_timeout_ms: u64) -> i64 {
    match queue_timeout_ms {
        0 => limits::START_DEADLINE_MS,
        wait => i64::try_from(wait).unwrap_or(limits::START_DEADLINE_MS),
    }
}

fn new_task(actor: &Actor, session: SessionId, node: NodeId, request: DispatchRequest, leased: bool, now_ms: i64) -> Task {
    let wait_ms = patience_ms(request.queue_timeout_ms);
    let origin = Origin { user: actor.user, via: actor.via.clone(), token: actor.token.clone() };
    Task {
        state: if leased { State::Leased } else { State::Queued },
        fence: u64::from(leased),
        start_by_ms: now_ms + wait_ms,
        leased_at_ms: leased.then_some(now_ms),
        ..Task::queued(session, node, origin, request.spec, request.queue_timeout_ms, now_ms)
    }
}

impl Task {
    /// The first attempt of a task that waits for its node.
    pub(super) fn queued(session: SessionId, node: NodeId, origin: Origin, spec: TaskSpec, queue_timeout_ms: u64, now_ms: i64) -> Self {
        Self {
            id: TaskId::new(now_ms, random()),
            session,
            node,
            pool: None,
            origin,
            state: State::Queued,
            spec,
            fence: 0,
            attempt: 1,
            retry_of: None,
            retried_as: None,
            queue_timeout_ms,
            created_at_ms: now_ms,
            start_by_ms: now_ms,
            leased_at_ms: None,
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
            approval: None,
            policy_retried: false,
        }
    }
}

/// Stores a new task.
fn insert(change: &mut Change<'_>, task: &Task, repeat: Option<Repeat>) -> Result<(), StoreError> {
    TASKS_OF_SESSION.insert(change.tx, &task.session, &task.id)?;
    OPEN_TASKS_OF_SESSION.insert(change.tx, &task.session, &task.id)?;
    if let Some(repeat) = repeat {
        repeat.keep(change.tx, task.id, change.now_ms)?;
    }
    let mut detail = json!({ "node": task.node, "spec": task.spec });
    if let Some(pool) = &task.pool {
        detail["pool"] = json!(pool);
    }
    change.audit("task.dispatch", &object(task.id), detail.to_string().as_bytes())?;
    put(change, task)
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
            check_quota(change.tx, session.id, &request.spec)?;
            if let Some(name) = secret::missing(change.tx, session.id, actor.user, request.spec.secrets.values())? {
                return Err(TaskError::UnknownSecret(name));
            }
            let room = |node| mesh.as_ref().and_then(|mesh| mesh.room(node));
            let node = match choice::choose(change.tx, &session, &request, &room)? {
                Choice::Node(node) => node,
                Choice::Pool(pooled) => {
                    let waiting = mesh.as_ref().map_or(0, |mesh| mesh.offered());
                    if waiting >= limits::POOL_WAITING {
                        return Err(TaskError::PoolFull { waiting });
                    }
                    let first = pooled.first;
                    let task = pooled.task(new_task(&actor, session.id, first, request, false, change.now_ms));
                    insert(change, &task, repeat)?;
                    let offered = task.clone();
                    change.then(move || {
                        outputs.begin(offered.id);
                        if let Some(mesh) = mesh {
                            mesh.offer(offered);
                        }
                    });
                    return Ok(Dispatched { task, repeated: false });
                }
            };
            if request.spec.browser.is_some() && !node.capabilities.skills.iter().any(|skill| skill == "browser") {
                return Err(TaskError::NoBrowser { name: node.name });
            }
            if node.drained_at_ms.is_some() && request.queue_timeout_ms == 0 {
                return Err(TaskError::NodeDrained { name: node.name });
            }
            let reservation = mesh.as_ref().map_or(Reservation::Offline, |mesh| mesh.reserve(node.id));
            let slot = mesh.clone().filter(|_| reservation == Reservation::Slot).map(|mesh| Slot::new(mesh, node.id));
            if reservation == Reservation::Offline && request.queue_timeout_ms == 0 {
                return Err(TaskError::NodeOffline { name: node.name });
            }
            if reservation == Reservation::Drained && request.queue_timeout_ms == 0 {
                return Err(TaskError::NodeDrained { name: node.name });
            }
            if reservation == Reservation::Indirect && request.queue_timeout_ms == 0 {
                let why = presence.of(&node).path_reason.unwrap_or_default();
                return Err(TaskError::NoDirectWay { name: node.name, why });
            }
            let mut task = new_task(&actor, session.id, node.id, request, slot.is_some(), change.now_ms);
            let decision = approval::decide(change.tx, &node, &mut task, change.now_ms)?;
            let slot = slot.filter(|_| decision == Decision::Go);
            let id = task.id;
            OPEN_TASKS_OF_NODE.insert(change.tx, &node.id, &id)?;
            if decision == Decision::Wait {
                (task.state, task.fence, task.leased_at_ms) = (State::Queued, 0, None);
            }
            insert(change, &task, repeat)?;
            if decision == Decision::Wait {
                approval::ask(change, &mut task)?;
            }
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
