//! Tasks on a node: slots, one stream for each task, its output into the store, its result.
//!
//! A task stays on its node when the connection breaks. The node's next connection brings an inventory, and [`NodeHandle::reconcile`] compares it with the store: what runs there goes
//! on with its output at the right offset, what never started is given again under a higher fence, what started and is not there any more is lost.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use cortex_runtime::{
    clock,
    stream::{FrameReader, FrameWriter, StreamError},
};
use cortex_wire::{
    id::{NodeId, TaskId},
    key::Domain,
    limits,
    schema::{
        self, EnvironmentVariable, FromTask, InventoryAnswer, InventoryVerdict, OutputAck, SandboxMode, ShellTask, Signed, StreamOpen,
        TaskCancel, TaskInput, TaskInventory, TaskLimits, TaskRequest, TaskResponse, TaskResume, ToTask, from_task, stream_open,
        task_request, to_task,
    },
    task::State,
};
use futures_util::future::{BoxFuture, FutureExt as _};
use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};

use crate::{
    hub::{Hub, StdinError, lock},
    mesh::{
        Network,
        connection::{NodeHandle, TaskCommands},
    },
    output::{Mark, OutputError, Stream},
    record::{Mode, Task},
    store::StoreError,
    task::TransitionError,
};

/// A node that stays away this long has lost the tasks it ran.
const LOST_AFTER: Duration = Duration::from_secs(600);
/// A task that ends sooner than this is stored once, with its result, instead of twice.
const BRIEF: Duration = Duration::from_millis(25);
/// Output is made durable, and acknowledged, when this much is new…
const ACK_BYTES: u64 = 1 << 20;
/// …or after this time.
const ACK_AFTER: Duration = Duration::from_millis(200);
/// Input in one frame.
const INPUT_BYTES: usize = 128 << 10;

/// The task slots of a node, who waits for one, and how to talk to those that have one.
#[derive(Debug)]
pub(crate) struct Slots {
    total: u32,
    used: u32,
    waiting: VecDeque<Task>,
    live: HashMap<TaskId, TaskCommands>,
    sequence: u64,
    /// While the node registers: deliveries that wait until its inventory has been compared with the store.
    late: Option<Vec<(Task, bool)>>,
    /// What that comparison took charge of: deliveries of it that were under way then are out of date.
    settled: HashSet<TaskId>,
}

impl Slots {
    pub(crate) fn new(total: u32) -> Self {
        Self {
            total,
            used: 0,
            waiting: VecDeque::new(),
            live: HashMap::new(),
            sequence: 0,
            late: Some(Vec::new()),
            settled: HashSet::new(),
        }
    }

    /// The node's inventory has not been compared yet.
    pub(crate) fn is_registering(&self) -> bool {
        self.late.is_some()
    }

    /// Who may start now, in the order of arrival.
    fn take_waiting(&mut self) -> Vec<Task> {
        let free = usize::try_from(self.total.saturating_sub(self.used)).unwrap_or(0).min(self.waiting.len());
        self.used += u32::try_from(free).unwrap_or(0);
        self.waiting.drain(..free).collect()
    }

    pub(crate) fn take(&mut self) -> bool {
        let free = self.used < self.total;
        self.used += u32::from(free);
        free
    }

    pub(crate) fn resize(&mut self, total: u32) {
        self.total = total;
    }

    /// Gives a slot back; who waited longest gets it.
    fn give_back(&mut self) -> Option<Task> {
        self.used = self.used.saturating_sub(1);
        if self.used < self.total
            && let Some(next) = self.waiting.pop_front()
        {
            self.used += 1;
            return Some(next);
        }
        None
    }
}

/// What is asked of a task on a node.
#[derive(Debug)]
pub(crate) enum Command {
    Cancel(String),
    Stdin { offset: u64, data: Bytes, end: bool, reply: oneshot::Sender<Result<u64, StdinError>> },
}

/// What to do about a node's inventory.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) answers: Vec<InventoryAnswer>,
    resume: Vec<Task>,
    again: Vec<Task>,
    waiting: Vec<Task>,
    lost: Vec<(TaskId, &'static str)>,
}

impl Plan {
    fn tasks(&self) -> impl Iterator<Item = TaskId> {
        let whole = self.resume.iter().chain(&self.again).chain(&self.waiting).map(|task| task.id);
        whole.chain(self.lost.iter().map(|(id, _)| *id))
    }
}

/// How a task's stream is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    Start,
    Resume,
}

/// Why a task's stream ended before the task did.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Quic(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Transition(#[from] TransitionError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the node sent something that is not the protocol: {0}")]
    Protocol(&'static str),
}

/// A queued task expires when nobody took it in time.
pub(crate) fn expire_later(hub: Arc<Hub>, task: &Task) {
    let (id, left) = (task.id, task.start_by_ms.saturating_sub(hub.now_ms()));
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0))).await;
        // Refused when the task has moved on, as it should have.
        let _ = hub.expire(id).await;
    });
}

impl Network {
    /// After a start of the hub: tasks that wait expire in time, and tasks whose nodes do not come back are lost in time.
    pub(crate) async fn watch_open_tasks(self: Arc<Self>) -> Result<(), StoreError> {
        let mut nodes = HashSet::new();
        for task in self.hub.all_open_tasks().await? {
            if task.state == State::Queued {
                expire_later(self.hub.clone(), &task);
            } else {
                nodes.insert(task.node);
            }
        }
        nodes.into_iter().for_each(|node| self.clone().lose_later(node));
        Ok(())
    }

    /// What a node ran is lost when it stays away.
    fn lose_later(self: Arc<Self>, node: NodeId) {
        tokio::spawn(async move {
            let left_at = clock::now_ms();
            tokio::time::sleep(LOST_AFTER).await;
            let Ok(open) = self.hub.open_tasks_of(node).await else { return };
            let back_since = self.hub.presence.last_seen_ms(node).unwrap_or(0);
            if self.node(node).is_some() || back_since > left_at {
                return;
            }
            for task in open.into_iter().filter(|task| task.state != State::Queued) {
                let _ = self.hub.lose(task.id, "its node did not come back within 10 minutes").await;
            }
        });
    }
}

impl NodeHandle {
    /// See [`crate::hub::Mesh::release`].
    pub fn release(self: &Arc<Self>) {
        let next = lock(&self.slots).give_back();
        if let Some(task) = next {
            self.lease_and_run(task);
        }
    }

    /// See [`crate::hub::Mesh::deliver`].
    pub fn deliver(self: &Arc<Self>, task: Task, leased: bool) {
        let ready = lock(&self.state).takes_tasks();
        let mut slots = lock(&self.slots);
        if let Some(late) = &mut slots.late {
            late.push((task, leased));
            return;
        }
        if leased {
            let stale = slots.settled.contains(&task.id);
            drop(slots);
            if !stale {
                self.spawn(task, Opening::Start);
            }
            return;
        }
        expire_later(self.hub.clone(), &task);
        if ready && slots.take() {
            drop(slots);
            self.lease_and_run(task);
        } else {
            slots.waiting.push_back(task);
        }
    }

    /// Whether tasks may go to the node from now on. Those that waited for that go at once.
    pub(crate) fn set_ready(self: &Arc<Self>, ready: bool) -> bool {
        let before = std::mem::replace(&mut lock(&self.state).ready, ready);
        self.wake_waiting();
        before
    }

    /// Whether the node is there and is given no tasks all the same, because it takes them only over a direct way.
    pub(crate) fn hold(self: &Arc<Self>, held: bool) {
        if std::mem::replace(&mut lock(&self.state).held, held) && !held {
            self.wake_waiting();
        }
    }

    fn wake_waiting(self: &Arc<Self>) {
        if lock(&self.state).takes_tasks() {
            let next = lock(&self.slots).take_waiting();
            next.into_iter().for_each(|task| self.lease_and_run(task));
        }
    }

    /// See [`crate::hub::Mesh::cancel`].
    pub fn cancel(&self, task: TaskId, reason: String) {
        let mut slots = lock(&self.slots);
        slots.waiting.retain(|waiting| waiting.id != task);
        if let Some(commands) = slots.live.get(&task) {
            let _ = commands.try_send(Command::Cancel(reason));
        }
    }

    /// See [`crate::hub::Mesh::stdin`].
    ///
    /// # Errors
    /// [`StdinError`].
    pub async fn stdin(&self, task: TaskId, offset: u64, data: Bytes, end: bool) -> Result<u64, StdinError> {
        let commands = lock(&self.slots).live.get(&task).cloned().ok_or(StdinError::NotRunning)?;
        let (reply, answer) = oneshot::channel();
        commands.try_send(Command::Stdin { offset, data, end, reply }).map_err(|_| StdinError::Full)?;
        match tokio::time::timeout(Duration::from_secs(10), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(StdinError::NotRunning),
            Err(_) => Err(StdinError::Full),
        }
    }

    /// The connection is gone: whoever waits in memory waits in the store as well, and what runs may yet come back.
    pub(crate) fn abandon(&self, network: &Arc<Network>) {
        let busy = {
            let mut slots = lock(&self.slots);
            slots.waiting.clear();
            slots.used > 0
        };
        if busy {
            network.clone().lose_later(self.node);
        }
    }

    /// Compares what the node says it holds with what the store says it should.
    pub(crate) async fn reconcile(&self, inventory: &[TaskInventory]) -> Result<Plan, StoreError> {
        let open = self.hub.settled_tasks_of(self.node).await?;
        let mut plan = Plan::default();
        let held: HashMap<TaskId, &TaskInventory> =
            inventory.iter().filter_map(|item| Some((TaskId::from_slice(&item.task_id).ok()?, item))).collect();
        let mut wanted: HashMap<TaskId, InventoryVerdict> = HashMap::new();
        for task in open {
            match held.get(&task.id) {
                // Fence 0: the peer is just taking it in.
                Some(item) if (item.fence == task.fence || item.fence == 0) && task.state != State::Queued => {
                    let verdict = match (item.lost, task.cancel_asked_at_ms.is_some() && !item.finished) {
                        (true, _) => InventoryVerdict::Forget,
                        (false, true) => InventoryVerdict::Cancel,
                        (false, false) => InventoryVerdict::Continue,
                    };
                    wanted.insert(task.id, verdict);
                    if item.lost { plan.lost.push((task.id, "the peer was killed while it ran the task")) } else { plan.resume.push(task) }
                }
                _ => match task.state {
                    State::Leased => plan.again.push(task),
                    State::Running => plan.lost.push((task.id, "the peer no longer knows the task")),
                    _ => plan.waiting.push(task),
                },
            }
        }
        for (id, item) in held {
            // What the store does not want any more: let it end, or forget that it did.
            let stale = if item.finished || item.lost { InventoryVerdict::Forget } else { InventoryVerdict::Cancel };
            let verdict = wanted.get(&id).copied().unwrap_or(stale);
            plan.answers.push(InventoryAnswer { task_id: item.task_id.clone(), verdict: verdict.into() });
        }
        Ok(plan)
    }

    /// Does what [`Self::reconcile`] found, and then what came meanwhile.
    pub(crate) fn carry_out(self: &Arc<Self>, plan: Plan) {
        let late = {
            let mut slots = lock(&self.slots);
            slots.settled = plan.tasks().collect();
            slots.late.take().unwrap_or_default()
        };
        for (task, leased) in late {
            if !plan.tasks().any(|id| id == task.id) {
                self.deliver(task, leased);
            }
        }
        for task in plan.resume {
            lock(&self.slots).used += 1;
            self.spawn(task, Opening::Resume);
        }
        let handle = self.clone();
        tokio::spawn(async move {
            for (task, reason) in plan.lost {
                let _ = handle.hub.lose(task, reason).await;
            }
            for task in plan.again {
                // Under a higher fence: should the first delivery arrive after all, the node refuses it.
                if let Ok(task) = handle.hub.requeue(task.id, task.fence).await {
                    handle.deliver(task, false);
                }
            }
            for task in plan.waiting {
                handle.deliver(task, false);
            }
        });
    }

    fn lease_and_run(self: &Arc<Self>, task: Task) {
        let handle = self.clone();
        tokio::spawn(async move {
            // A connection that has been replaced takes no more: its successor has looked at the task already.
            let retired = handle.retired.clone();
            match handle.hub.lease_if(task.id, move || !retired.load(Ordering::SeqCst)).await {
                Ok(task) => handle.spawn(task, Opening::Start),
                Err(error) => {
                    tracing::debug!(task = %task.id, %error, "a waiting task was not leased");
                    handle.release();
                }
            }
        });
    }

    fn spawn(self: &Arc<Self>, task: Task, opening: Opening) {
        let (commands, receiver) = mpsc::channel(64);
        lock(&self.slots).live.insert(task.id, commands);
        let handle = self.clone();
        tokio::spawn(async move {
            handle.run(&task, opening, receiver).await;
            lock(&handle.slots).live.remove(&task.id);
            handle.release();
        });
    }

    /// Drives a task until it is final, over more than one stream if a stream breaks, or until the connection is gone.
    async fn run(&self, task: &Task, mut opening: Opening, mut commands: mpsc::Receiver<Command>) {
        loop {
            let error = match self.drive(task, opening, &mut commands).await {
                Ok(()) => return,
                Err(error) => error,
            };
            if self.connection.close_reason().is_some() {
                return;
            }
            tracing::warn!(task = %task.id, node = ?self.node, %error, "a task's stream broke; resuming");
            tokio::time::sleep(Duration::from_millis(250)).await;
            if self.hub.find_task(task.id).await.ok().flatten().is_none_or(|task| task.state.is_final()) {
                return;
            }
            opening = Opening::Resume;
        }
    }

    async fn drive(&self, task: &Task, opening: Opening, commands: &mut mpsc::Receiver<Command>) -> Result<(), DeliveryError> {
        let (send, recv) = self.connection.open_bi().await?;
        let mut writer = FrameWriter::new(send);
        let mut workspace_revision = 0;
        let open = match opening {
            Opening::Start => {
                workspace_revision = self.hub.workspace_revision(task.session, self.node).await?;
                stream_open::Open::Start(self.sign(task))
            }
            Opening::Resume => {
                let mark = self.hub.outputs.lengths(task.id).await?;
                stream_open::Open::Resume(TaskResume {
                    task_id: Bytes::copy_from_slice(task.id.as_bytes()),
                    stdout_offset: mark.stdout,
                    stderr_offset: mark.stderr,
                    stdin_offset: 0,
                })
            }
        };
        writer.send(&StreamOpen { open: Some(open), workspace_revision }).await?;
        let delivery = Delivery {
            handle: self,
            task,
            reader: FrameReader::new(recv, limits::TASK_FRAME_BYTES),
            writer,
            started: None,
            stored: Mark::default(),
            acked: Mark::default(),
            input: Input::default(),
        };
        delivery.run(commands).await
    }

    /// The task as its node will check it.
    fn sign(&self, task: &Task) -> Signed {
        let sequence = {
            let mut slots = lock(&self.slots);
            slots.sequence += 1;
            slots.sequence
        };
        let policy_hash = lock(&self.state).policy.hash();
        let hub = &self.hub;
        let spec = &task.spec;
        let shell = ShellTask {
            argv: spec.argv.clone(),
            script: spec.script.clone().unwrap_or_default(),
            shell: spec.shell.clone().unwrap_or_default(),
            cwd: spec.cwd.clone(),
            environment: spec.env.iter().map(|(name, value)| EnvironmentVariable { name: name.clone(), value: value.clone() }).collect(),
            stdin: spec.stdin,
        };
        let mode = match spec.mode {
            Some(Mode::Strict) => SandboxMode::Strict,
            Some(Mode::Permissive) => SandboxMode::Permissive,
            None => lock(&self.state).policy.rules().mode(),
        };
        let request = TaskRequest {
            hub_root: hub.id().key().to_bytes(),
            node_key: self.node.key().to_bytes(),
            session_id: task.session.to_string(),
            session_epoch: 0,
            boot_nonce: self.boot_nonce.clone(),
            sequence,
            task_id: Bytes::copy_from_slice(task.id.as_bytes()),
            attempt: task.attempt,
            fence: task.fence,
            issued_at_ms: clock::now_ms(),
            start_deadline_ms: clock::now_ms() + limits::START_DEADLINE_MS,
            limits: Some(TaskLimits {
                run_timeout_ms: spec.run_timeout_ms.unwrap_or(0),
                idle_timeout_ms: spec.idle_timeout_ms.unwrap_or(0),
            }),
            policy_hash: Bytes::copy_from_slice(&policy_hash),
            mode: mode.into(),
            origin: Some(schema::Origin {
                user_id: task.origin.user.to_string(),
                via: task.origin.via.clone(),
                token_id: task.origin.token.clone().unwrap_or_default(),
            }),
            idempotency_key: String::new(),
            traceparent: String::new(),
            kind: Some(task_request::Kind::Shell(shell)),
        };
        hub.keys.task.seal(Domain::Task, &request)
    }
}

/// Standard input on its way.
#[derive(Debug, Default)]
struct Input {
    sent: u64,
    acked: u64,
    waiting: VecDeque<(u64, oneshot::Sender<Result<u64, StdinError>>)>,
}

/// One stream of one task.
struct Delivery<'a> {
    handle: &'a NodeHandle,
    task: &'a Task,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
    started: Option<schema::TaskStarted>,
    stored: Mark,
    acked: Mark,
    input: Input,
}

impl Delivery<'_> {
    async fn run(mut self, commands: &mut mpsc::Receiver<Command>) -> Result<(), DeliveryError> {
        let hub = self.handle.hub.clone();
        let brief = tokio::time::sleep(BRIEF);
        tokio::pin!(brief);
        let mut sync_at = tokio::time::interval(ACK_AFTER);
        sync_at.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut syncing: Option<BoxFuture<'static, Result<Mark, OutputError>>> = None;
        loop {
            if syncing.is_none() && self.unacked() >= ACK_BYTES {
                syncing = Some(sync(hub.clone(), self.task.id));
            }
            tokio::select! {
                biased;
                synced = async { match &mut syncing { Some(future) => future.await, None => std::future::pending().await } } => {
                    syncing = None;
                    self.acknowledge(synced?).await?;
                }
                frame = self.reader.next::<FromTask>() => {
                    let frame = frame?.ok_or(StreamError::Truncated)?;
                    if let Some(from_task::Frame::Started(started)) = frame.frame {
                        let behind = started.workspace_behind;
                        self.started = Some(started);
                        brief.as_mut().reset(tokio::time::Instant::now() + BRIEF);
                        if behind {
                            // Its result does not say it.
                            self.begun().await?;
                        }
                    } else if self.receive(frame.frame).await? {
                        return Ok(());
                    }
                }
                Some(command) = commands.recv() => self.obey(command).await?,
                () = &mut brief, if self.started.is_some() => self.begun().await?,
                _ = sync_at.tick(), if syncing.is_none() && self.unacked() > 0 => syncing = Some(sync(hub.clone(), self.task.id)),
            }
        }
    }

    /// Stores that the task runs.
    async fn begun(&mut self) -> Result<(), DeliveryError> {
        let Some(started) = self.started.take() else { return Ok(()) };
        match self.handle.hub.started(self.task.id, self.handle.node, &started).await {
            Ok(_) | Err(TransitionError::NotAllowed { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn unacked(&self) -> u64 {
        (self.stored.stdout - self.acked.stdout) + (self.stored.stderr - self.acked.stderr)
    }

    async fn acknowledge(&mut self, durable: Mark) -> Result<(), DeliveryError> {
        self.acked = durable;
        self.stored.stdout = self.stored.stdout.max(durable.stdout);
        self.stored.stderr = self.stored.stderr.max(durable.stderr);
        let ack = OutputAck { stdout_offset: durable.stdout, stderr_offset: durable.stderr };
        self.send(to_task::Frame::Ack(ack)).await
    }

    /// Whether the task is final.
    async fn receive(&mut self, frame: Option<from_task::Frame>) -> Result<bool, DeliveryError> {
        let hub = &self.handle.hub;
        match frame {
            Some(from_task::Frame::Output(output)) => {
                let stream = Stream::from_wire(output.stream()).ok_or(DeliveryError::Protocol("an output stream that does not exist"))?;
                self.stored = hub.outputs.append(self.task.id, stream, output.offset, output.data).await?;
                self.acked.stdout = self.acked.stdout.min(self.stored.stdout);
                self.acked.stderr = self.acked.stderr.min(self.stored.stderr);
                Ok(false)
            }
            Some(from_task::Frame::InputAck(ack)) => {
                self.input.sent = self.input.sent.max(ack.offset);
                self.input.acked = self.input.acked.max(ack.offset);
                while let Some((_, reply)) = self.input.waiting.pop_front_if(|(until, _)| *until <= ack.offset) {
                    let _ = reply.send(Ok(ack.offset));
                }
                Ok(false)
            }
            Some(from_task::Frame::Rejected(rejected)) => {
                let code = cortex_wire::text::clean(&rejected.code, limits::NAME_BYTES);
                let message = cortex_wire::text::clean(&rejected.message, limits::TEXT_BYTES);
                // The peer was asked to go on with something it does not know: its journal is gone, and whether the task ran is unknown.
                let told = match code.as_str() {
                    "unknown_task" => hub.lose(self.task.id, "the peer no longer knows the task").await,
                    _ => hub.reject(self.task.id, &code, &message).await,
                };
                self.settled(told)?;
                self.conclude().await;
                Ok(true)
            }
            Some(from_task::Frame::Result(signed)) => {
                let response: TaskResponse = self
                    .handle
                    .node
                    .key()
                    .open(Domain::Result, &signed)
                    .map_err(|_| DeliveryError::Protocol("a result whose signature does not hold"))?;
                if response.task_id != self.task.id.as_bytes()[..] || response.node_key != self.handle.node.key().as_bytes()[..] {
                    return Err(DeliveryError::Protocol("a result of another task or node"));
                }
                self.settled(hub.finish(self.task.id, self.handle.node, &response, &signed).await)?;
                self.conclude().await;
                Ok(true)
            }
            Some(from_task::Frame::Started(_)) | None => Ok(false),
        }
    }

    /// News that come too late, or about an older lease, end the stream as news that were taken do.
    fn settled(&self, result: Result<Task, TransitionError>) -> Result<(), DeliveryError> {
        match result {
            Ok(_) | Err(TransitionError::NotAllowed { .. } | TransitionError::OldFence | TransitionError::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The peer may forget the task. Best effort: otherwise its next inventory asks.
    async fn conclude(&mut self) {
        for (_, reply) in self.input.waiting.drain(..) {
            let _ = reply.send(Err(StdinError::NotRunning));
        }
        if self.send(to_task::Frame::ResultStored(true)).await.is_ok() {
            let _ = self.writer.inner_mut().finish();
        }
    }

    async fn obey(&mut self, command: Command) -> Result<(), DeliveryError> {
        match command {
            Command::Cancel(reason) => self.send(to_task::Frame::Cancel(TaskCancel { reason })).await,
            Command::Stdin { reply, .. } if !self.task.spec.stdin => {
                let _ = reply.send(Err(StdinError::NoStdin));
                Ok(())
            }
            Command::Stdin { offset, reply, .. } if offset > self.input.sent => {
                let _ = reply.send(Err(StdinError::WrongOffset { expected: self.input.sent }));
                Ok(())
            }
            Command::Stdin { offset, data, end, reply } => self.feed(offset, data, end, reply).await,
        }
    }

    async fn feed(
        &mut self,
        offset: u64,
        mut data: Bytes,
        end: bool,
        reply: oneshot::Sender<Result<u64, StdinError>>,
    ) -> Result<(), DeliveryError> {
        let known = usize::try_from(self.input.sent - offset).unwrap_or(usize::MAX).min(data.len());
        let _ = data.split_to(known);
        let until = self.input.sent + data.len() as u64;
        if data.is_empty() && !end {
            let _ = reply.send(Ok(self.input.sent));
            return Ok(());
        }
        if until.saturating_sub(self.input.acked) > limits::INPUT_WINDOW_BYTES as u64 {
            // The program does not read; the peer would drop what goes beyond its window.
            let _ = reply.send(Err(StdinError::Full));
            return Ok(());
        }
        loop {
            let piece = data.split_to(data.len().min(INPUT_BYTES));
            let frame = TaskInput { offset: self.input.sent, end: end && data.is_empty(), data: piece };
            self.input.sent += frame.data.len() as u64;
            self.send(to_task::Frame::Input(frame)).await?;
            if data.is_empty() {
                break;
            }
        }
        if until <= self.input.acked {
            // Only the end was new: no byte is left to be acknowledged.
            let _ = reply.send(Ok(until));
        } else {
            self.input.waiting.push_back((until, reply));
        }
        Ok(())
    }

    async fn send(&mut self, frame: to_task::Frame) -> Result<(), DeliveryError> {
        Ok(self.writer.send(&ToTask { frame: Some(frame) }).await?)
    }
}

fn sync(hub: Arc<Hub>, task: TaskId) -> BoxFuture<'static, Result<Mark, OutputError>> {
    async move { hub.outputs.sync(task).await }.boxed()
}
