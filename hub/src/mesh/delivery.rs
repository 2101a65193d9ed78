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
    clock, failpoint,
    stream::{FrameReader, FrameWriter, StreamError},
};
use cortex_wire::{
    id::{NodeId, TaskId},
    key::Domain,
    limits,
    schema::{
        self, FromTask, InventoryAnswer, InventoryVerdict, OutputAck, ShellTask, Signed, StreamOpen, TaskCancel, TaskInput, TaskInventory,
        TaskLimits, TaskRequest, TaskResponse, TaskResume, ToTask, from_task, stream_open, task_request, to_task,
    },
    task::{Held, Reunion, Settled, State, may_move, reunite, stale},
};
use futures_util::future::{BoxFuture, FutureExt as _};
use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};

use crate::{
    approval,
    hub::{Hub, StdinError, lock},
    mesh::{
        Network,
        connection::{NodeHandle, TaskCommands},
        queue::Queue,
    },
    output::{Mark, OutputError, Stream},
    record::{Task, approval::Grant},
    secret::SecretError,
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
/// A task that a node refused because of its policy is given again when the node has the newest one, or after this time.
const POLICY_PATIENCE: Duration = Duration::from_secs(5);

/// The task slots of a node, who waits for one, and how to talk to those that have one.
#[derive(Debug)]
pub(crate) struct Slots {
    total: u32,
    used: u32,
    waiting: Queue,
    live: HashMap<TaskId, TaskCommands>,
    sequence: u64,
    /// While the node registers: deliveries that wait until its inventory has been compared with the store.
    late: Option<Vec<(Task, bool)>>,
    /// What that comparison took charge of.
    settled: Settled,
}

impl Slots {
    pub(crate) fn new(total: u32) -> Self {
        Self {
            total,
            used: 0,
            waiting: Queue::default(),
            live: HashMap::new(),
            sequence: 0,
            late: Some(Vec::new()),
            settled: Settled::default(),
        }
    }

    /// The node's inventory has not been compared yet.
    pub(crate) fn is_registering(&self) -> bool {
        self.late.is_some()
    }

    fn is_settled(&self, task: &Task) -> bool {
        self.settled.covers(&task.id, task.fence)
    }

    /// Who may start now, in the order of the queue.
    fn take_waiting(&mut self) -> Vec<Task> {
        let mut next = Vec::new();
        while self.used < self.total
            && let Some(task) = self.waiting.pop()
        {
            self.used += 1;
            next.push(task);
        }
        next
    }

    pub(crate) fn take(&mut self) -> bool {
        let free = self.used < self.total;
        self.used += u32::from(free);
        free
    }

    pub(crate) fn resize(&mut self, total: u32) {
        self.total = total;
    }

    /// Gives a slot back; whose turn it is gets it.
    fn give_back(&mut self) -> Option<Task> {
        self.used = self.used.saturating_sub(1);
        if self.used < self.total
            && let Some(next) = self.waiting.pop()
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
    Resize(schema::Terminal),
    StdinPosition(oneshot::Sender<u64>),
    Stdin { offset: u64, data: Bytes, end: bool, reply: oneshot::Sender<Result<u64, StdinError>> },
}

/// What to do about a node's inventory.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) answers: Vec<InventoryAnswer>,
    resume: Vec<Task>,
    again: Vec<Task>,
    waiting: Vec<Task>,
    lost: Vec<(Task, &'static str)>,
}

impl Plan {
    /// What it takes charge of, with the fences.
    fn fences(&self) -> Settled {
        let lost = self.lost.iter().map(|(task, _)| task);
        self.resume.iter().chain(&self.again).chain(&self.waiting).chain(lost).map(|task| (task.id, task.fence)).collect()
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

/// A task that waits for a person expires when nobody has answered in time.
pub(crate) fn ask_until(hub: Arc<Hub>, task: &Task) {
    let (id, until) = (task.id, task.approval.as_ref().map_or(0, |approval| approval.expires_at_ms));
    tokio::spawn(async move {
        // The hub's clock may have gone slower than this one.
        loop {
            let left = until.saturating_sub(hub.now_ms());
            tokio::time::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0))).await;
            if hub.now_ms() >= until {
                break;
            }
        }
        // Refused when somebody has answered.
        let _ = hub.expire_approval(id).await;
    });
}

impl Network {
    /// After a start of the hub: tasks that wait expire in time, and tasks whose nodes do not come back are lost in time.
    pub(crate) async fn watch_open_tasks(self: Arc<Self>) -> Result<(), StoreError> {
        let mut nodes = HashSet::new();
        for task in self.hub.all_open_tasks().await? {
            match task.state {
                State::Queued => expire_later(self.hub.clone(), &task),
                State::AwaitingApproval => ask_until(self.hub.clone(), &task),
                _ => _ = nodes.insert(task.node),
            }
        }
        nodes.into_iter().for_each(|node| self.clone().lose_later(node));
        self.hub.pool_tasks().await?.iter().for_each(|task| self.board.wait(task));
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
            for task in open.into_iter().filter(|task| !matches!(task.state, State::Queued | State::AwaitingApproval)) {
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
        } else {
            self.board.freed(self.node);
        }
    }

    /// See [`crate::hub::Mesh::room`].
    pub(crate) fn room(&self) -> Option<u32> {
        let ready = lock(&self.state).takes_tasks();
        let slots = lock(&self.slots);
        match (ready, slots.is_registering()) {
            (_, true) => Some(0),
            (true, false) => Some(slots.total.saturating_sub(slots.used)),
            (false, false) => None,
        }
    }

    /// See [`crate::hub::Mesh::deliver`].
    pub fn deliver(self: &Arc<Self>, task: Task, leased: bool) {
        if task.is_pooled() && !leased {
            return self.board.wait(&task);
        }
        let ready = lock(&self.state).takes_tasks();
        let mut slots = lock(&self.slots);
        if let Some(late) = &mut slots.late {
            late.push((task, leased));
            return;
        }
        if leased {
            let stale = slots.is_settled(&task);
            drop(slots);
            if !stale {
                self.spawn(task, Opening::Start);
            }
            return;
        }
        failpoint::at("hub.queued");
        expire_later(self.hub.clone(), &task);
        if ready && slots.take() {
            drop(slots);
            self.lease_and_run(task);
        } else {
            slots.waiting.push(task);
        }
    }

    /// Whether tasks may go to the node from now on. Those that waited for that go at once.
    pub(crate) fn set_ready(self: &Arc<Self>, ready: bool) -> bool {
        let before = std::mem::replace(&mut lock(&self.state).ready, ready);
        self.wake_waiting();
        self.board.seat_soon(self.node);
        before
    }

    /// Whether the node is there and is given no tasks all the same, because it takes them only over a direct way.
    pub(crate) fn hold(self: &Arc<Self>, held: bool) {
        let before = std::mem::replace(&mut lock(&self.state).held, held);
        if before && !held {
            self.wake_waiting();
        }
        if before != held {
            self.board.seat_soon(self.node);
        }
    }

    /// Whether it is to finish what it has, and take nothing new.
    pub(crate) fn drain(self: &Arc<Self>, drained: bool) {
        if std::mem::replace(&mut lock(&self.state).drained, drained) && !drained {
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
        slots.waiting.remove(task);
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

    /// See [`crate::hub::Mesh::stdin_position`].
    ///
    /// # Errors
    /// [`StdinError`].
    pub async fn stdin_position(&self, task: TaskId) -> Result<u64, StdinError> {
        let commands = lock(&self.slots).live.get(&task).cloned().ok_or(StdinError::NotRunning)?;
        let (reply, answer) = oneshot::channel();
        commands.send(Command::StdinPosition(reply)).await.map_err(|_| StdinError::NotRunning)?;
        answer.await.map_err(|_| StdinError::NotRunning)
    }

    /// See [`crate::hub::Mesh::resize`].
    pub fn resize(&self, task: TaskId, size: schema::Terminal) {
        if let Some(commands) = lock(&self.slots).live.get(&task) {
            let _ = commands.try_send(Command::Resize(size));
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
        let told = |item: &TaskInventory| Held { fence: item.fence, finished: item.finished, lost: item.lost };
        let held: HashMap<TaskId, Held> =
            inventory.iter().filter_map(|item| Some((TaskId::from_slice(&item.task_id).ok()?, told(item)))).collect();
        let mut wanted: HashMap<TaskId, InventoryVerdict> = HashMap::new();
        for task in open {
            let (id, item) = (task.id, held.get(&task.id).copied());
            match reunite(task.state, task.fence, task.cancel_asked_at_ms.is_some(), item) {
                Reunion::Resume(verdict) => {
                    wanted.insert(id, verdict);
                    plan.resume.push(task);
                }
                Reunion::Lost(why) => {
                    wanted.insert(id, InventoryVerdict::Forget);
                    plan.lost.push((task, why));
                }
                Reunion::Again => plan.again.push(task),
                // It is given when somebody has said yes.
                Reunion::Waits if task.state == State::AwaitingApproval => {}
                Reunion::Waits => plan.waiting.push(task),
            }
        }
        for (id, item) in held {
            // What the store does not want any more: let it end, or forget that it did.
            let verdict = wanted.get(&id).copied().unwrap_or_else(|| stale(item));
            plan.answers.push(InventoryAnswer { task_id: Bytes::copy_from_slice(id.as_bytes()), verdict: verdict.into() });
        }
        Ok(plan)
    }

    /// Does what [`Self::reconcile`] found, and then what came meanwhile.
    pub(crate) fn carry_out(self: &Arc<Self>, plan: Plan) {
        let late = {
            let mut slots = lock(&self.slots);
            slots.settled = plan.fences();
            slots.late.take().unwrap_or_default()
        };
        self.board.freed(self.node);
        for (task, leased) in late {
            if !lock(&self.slots).is_settled(&task) {
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
                let _ = handle.hub.lose(task.id, reason).await;
            }
            for task in plan.again {
                // Under a higher fence: should the first delivery arrive after all, the node refuses it.
                if let Ok(task) = handle.hub.requeue(task.id, task.fence).await {
                    failpoint::at("hub.requeued");
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
                Ok(task) if task.state == State::Leased => handle.spawn(task, Opening::Start),
                Ok(task) => {
                    ask_until(handle.hub.clone(), &task);
                    handle.release();
                }
                Err(error) => {
                    tracing::debug!(task = %task.id, %error, "a waiting task was not leased");
                    handle.release();
                }
            }
        });
    }

    fn spawn(self: &Arc<Self>, task: Task, opening: Opening) {
        if opening == Opening::Start {
            failpoint::at("hub.leased");
        }
        let (commands, receiver) = mpsc::channel(64);
        lock(&self.slots).live.insert(task.id, commands);
        self.hub.terminals.attached(task.id);
        let handle = self.clone();
        tokio::spawn(async move {
            let again = handle.run(&task, opening, receiver).await;
            lock(&handle.slots).live.remove(&task.id);
            handle.release();
            if let Some(task) = again {
                handle.has_newest_policy().await;
                handle.deliver(task, false);
            }
        });
    }

    /// Waits until the node says that the hub's policy is in force there, but not for ever.
    async fn has_newest_policy(&self) {
        let mut in_force = self.in_force.subscribe();
        let is_newest = |hash: &Option<[u8; 32]>| *hash == Some(lock(&self.state).policy.hash());
        let _ = tokio::time::timeout(POLICY_PATIENCE, in_force.wait_for(is_newest)).await;
    }

    /// Drives a task until it is final, over more than one stream if a stream breaks, or until the connection is gone. Returns a task that is to be given
    /// again.
    async fn run(&self, task: &Task, mut opening: Opening, mut commands: mpsc::Receiver<Command>) -> Option<Task> {
        let mut sent = opening == Opening::Resume;
        loop {
            let error = match self.drive(task, opening, &mut commands, &mut sent).await {
                Ok(again) => return again,
                Err(error) => error,
            };
            if self.connection.close_reason().is_some() {
                // Not a byte of it has left: others may have it at once.
                if let Ok(task) = if sent { Err(TransitionError::NotFound) } else { self.hub.give_back(task.id, task.fence).await } {
                    self.board.wait(&task);
                }
                return None;
            }
            tracing::warn!(task = %task.id, node = ?self.node, %error, "a task's stream broke; resuming");
            tokio::time::sleep(Duration::from_millis(250)).await;
            if self.hub.find_task(task.id).await.ok().flatten().is_none_or(|task| task.state.is_final()) {
                return None;
            }
            opening = Opening::Resume;
        }
    }

    /// `sent` is set before anything of the task may be on its way to the node.
    async fn drive(
        &self,
        task: &Task,
        opening: Opening,
        commands: &mut mpsc::Receiver<Command>,
        sent: &mut bool,
    ) -> Result<Option<Task>, DeliveryError> {
        let (send, recv) = self.connection.open_bi().await?;
        let mut writer = FrameWriter::new(send);
        let (mut workspace_revision, mut secrets) = (0, Vec::new());
        let open = match opening {
            Opening::Start => {
                workspace_revision = self.hub.workspace_revision(task.session, self.node).await?;
                let references;
                (references, secrets) = match self.hub.secrets_for(task).await {
                    Ok(found) => found,
                    Err(SecretError::Store(error)) => return Err(error.into()),
                    Err(error) => {
                        // It never went to its node.
                        self.hub.reject(task.id, "unknown_secret", &error.to_string()).await?;
                        return Ok(None);
                    }
                };
                stream_open::Open::Start(self.sign(task, references))
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
        *sent = true;
        writer.send(&StreamOpen { open: Some(open), workspace_revision, secrets }).await?;
        if opening == Opening::Start {
            failpoint::at("hub.sent");
        }
        if let Some(size) = self.hub.terminals.size(task.id) {
            writer.send(&ToTask { frame: Some(to_task::Frame::Resize(size)) }).await?;
        }
        let delivery = Delivery {
            handle: self,
            task,
            reader: FrameReader::new(recv, limits::TASK_FRAME_BYTES),
            writer,
            started: None,
            stored: Mark::default(),
            acked: Mark::default(),
            input: Input { is_known: opening == Opening::Start, ..Input::default() },
            again: None,
        };
        delivery.run(commands).await
    }

    /// The task as its node will check it.
    fn sign(&self, task: &Task, secrets: Vec<schema::SecretReference>) -> Signed {
        let sequence = {
            let mut slots = lock(&self.slots);
            slots.sequence += 1;
            slots.sequence
        };
        let (hub, spec) = (&self.hub, &task.spec);
        let (policy_hash, judged) = {
            let state = lock(&self.state);
            (state.policy.hash(), approval::request_of(task, &state.policy))
        };
        let request = TaskRequest {
            hub_root: hub.id().key().to_bytes(),
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
            approval: task.approval.as_ref().and_then(|approval| approval.grant.as_ref()).map(Grant::to_message),
            kind: Some(match spec.to_kind() {
                task_request::Kind::Shell(shell) => task_request::Kind::Shell(ShellTask { secrets, ..shell }),
                other => other,
            }),
            ..judged
        };
        hub.keys.task.seal(Domain::Task, &request)
    }
}

/// Standard input on its way.
#[derive(Debug, Default)]
struct Input {
    /// After a resumption the node says first how much the program has.
    is_known: bool,
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
    /// The node refused it because of the policy, and it is to be given again.
    again: Option<Task>,
}

impl Delivery<'_> {
    async fn run(mut self, commands: &mut mpsc::Receiver<Command>) -> Result<Option<Task>, DeliveryError> {
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
                        return Ok(self.again);
                    }
                }
                Some(command) = commands.recv(), if self.input.is_known => self.obey(command).await?,
                () = &mut brief, if self.started.is_some() => self.begun().await?,
                _ = sync_at.tick(), if syncing.is_none() && self.unacked() > 0 => syncing = Some(sync(hub.clone(), self.task.id)),
            }
        }
    }

    /// Stores that the task runs.
    async fn begun(&mut self) -> Result<(), DeliveryError> {
        let Some(started) = self.started.take() else { return Ok(()) };
        let stored = self.handle.hub.started(self.task.id, self.handle.node, &started).await;
        failpoint::at("hub.started");
        match stored {
            Ok(_) | Err(TransitionError::NotAllowed { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn unacked(&self) -> u64 {
        (self.stored.stdout - self.acked.stdout) + (self.stored.stderr - self.acked.stderr)
    }

    async fn acknowledge(&mut self, durable: Mark) -> Result<(), DeliveryError> {
        failpoint::at("hub.output_durable");
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
                failpoint::at("hub.output");
                self.acked.stdout = self.acked.stdout.min(self.stored.stdout);
                self.acked.stderr = self.acked.stderr.min(self.stored.stderr);
                Ok(false)
            }
            Some(from_task::Frame::InputAck(ack)) => {
                self.input.is_known = true;
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
                let by_policy = matches!(code.as_str(), "stale_policy" | "approval_required" | "approval_mismatch");
                if by_policy && let Ok(Some(task)) = hub.retry_policy(self.task.id, self.task.fence).await {
                    self.again = Some(task);
                    self.conclude().await;
                    return Ok(true);
                }
                // The peer was asked to go on with something it does not know: its journal is gone, and whether the task ran is unknown.
                let told = match code.as_str() {
                    code if self.task.is_pooled() && may_move(code) => {
                        let given_back = hub.give_back(self.task.id, self.task.fence).await;
                        given_back.inspect(|task| self.handle.board.wait(task))
                    }
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
                failpoint::at("hub.result");
                self.settled(hub.finish(self.task.id, self.handle.node, &response, &signed).await)?;
                failpoint::at("hub.result_stored");
                self.conclude().await;
                failpoint::at("hub.acknowledged");
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
            Command::Resize(size) => self.send(to_task::Frame::Resize(size)).await,
            Command::StdinPosition(reply) => {
                let _ = reply.send(self.input.acked);
                Ok(())
            }
            Command::Stdin { reply, .. } if !self.task.spec.takes_input() => {
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
        let until = (offset + known as u64).max(self.input.acked) + data.len() as u64;
        if data.is_empty() && !end {
            // It was sent before; whoever sends it again wants to hear that it arrived.
            self.await_ack(until, reply);
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
        self.await_ack(until, reply);
        Ok(())
    }

    /// Answers when the program has its input up to there: at once when no byte of it is left to be acknowledged.
    fn await_ack(&mut self, until: u64, reply: oneshot::Sender<Result<u64, StdinError>>) {
        if until <= self.input.acked {
            let _ = reply.send(Ok(until));
        } else {
            self.input.waiting.push_back((until, reply));
        }
    }

    async fn send(&mut self, frame: to_task::Frame) -> Result<(), DeliveryError> {
        Ok(self.writer.send(&ToTask { frame: Some(frame) }).await?)
    }
}

fn sync(hub: Arc<Hub>, task: TaskId) -> BoxFuture<'static, Result<Mark, OutputError>> {
    async move { hub.outputs.sync(task).await }.boxed()
}
