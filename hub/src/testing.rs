//! A hub in a temporary directory, with a mesh that only takes notes, and a clock that is told.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cortex_wire::{
    id::{NodeId, RelayId, SessionId, TaskId, UserId},
    invite::RelayEndpoint,
    key::{Domain, SecretKey},
    schema::{Signed, TaskResponse, TaskStarted, TaskUsage, task_response::Exit},
};
use futures_util::future::BoxFuture;

use crate::{
    account::Actor,
    hub::{Clock, Hub, HubOptions, Mesh, RelayStatus, Reservation, StdinError, lock},
    invite::{IssuedInvite, NewInvite, Redeem, RedeemError},
    record::{
        Capabilities, Digest, Node, Role, Scope, Task, TaskSpec, User,
        tables::{USER_NAMES, USERS},
    },
    session::NewSession,
    store::{StoreError, WriteTx},
    task::{DispatchRequest, Dispatched, TaskError},
};

pub(crate) const START_MS: i64 = 1_800_000_000_000;

/// The key of a number.
pub(crate) fn key(number: u16) -> SecretKey {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_seed(seed)
}

/// The node of a number.
pub(crate) fn node_id(number: u16) -> NodeId {
    key(number).public().into()
}

/// What the hub asked of its mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Deliver { task: TaskId, leased: bool },
    Offer(TaskId),
    Cancel(TaskId),
    NodeChanged(NodeId),
    SessionUnused { session: SessionId, deleted: bool },
}

/// A mesh that has the slots it is told to have.
#[derive(Debug, Default)]
pub(crate) struct NotingMesh {
    calls: Mutex<Vec<Call>>,
    /// Tasks that wait in the pool.
    pub(crate) waiting: AtomicUsize,
    /// Free slots of the nodes that are online.
    pub(crate) slots: Mutex<HashMap<NodeId, usize>>,
}

impl NotingMesh {
    /// What was asked since the last time.
    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.calls))
    }

    pub(crate) fn free(&self, node: NodeId) -> Option<usize> {
        lock(&self.slots).get(&node).copied()
    }
}

impl Mesh for NotingMesh {
    fn offered(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn reserve(&self, node: NodeId) -> Reservation {
        match lock(&self.slots).get_mut(&node) {
            None => Reservation::Offline,
            Some(0) => Reservation::Full,
            Some(free) => {
                *free -= 1;
                Reservation::Slot
            }
        }
    }

    fn room(&self, node: NodeId) -> Option<u32> {
        self.free(node).map(|free| u32::try_from(free).unwrap())
    }

    fn offer(&self, task: Task) {
        lock(&self.calls).push(Call::Offer(task.id));
    }

    fn release(&self, node: NodeId) {
        lock(&self.slots).entry(node).and_modify(|free| *free += 1);
    }

    fn deliver(&self, task: Task, leased: bool) {
        lock(&self.calls).push(Call::Deliver { task: task.id, leased });
    }

    fn cancel(&self, task: TaskId, _node: NodeId, _reason: String) {
        lock(&self.calls).push(Call::Cancel(task));
    }

    fn stdin(&self, _: TaskId, _: NodeId, _: u64, _: Bytes, _: bool) -> BoxFuture<'static, Result<u64, StdinError>> {
        Box::pin(async { Err(StdinError::NotRunning) })
    }

    fn node_changed(&self, node: NodeId) {
        lock(&self.calls).push(Call::NodeChanged(node));
    }

    fn sessions_changed(&self, _node: NodeId) {}

    fn session_unused(&self, session: SessionId, deleted: bool) {
        lock(&self.calls).push(Call::SessionUnused { session, deleted });
    }

    fn add_relay(&self, _: RelayEndpoint) {}

    fn remove_relay(&self, _: RelayId) {}

    fn relays(&self) -> Vec<RelayStatus> {
        let endpoint = RelayEndpoint { address: "hub.example:443".into(), id: key(60_000).public().into(), region: "eu".into() };
        vec![RelayStatus {
            endpoint,
            embedded: true,
            configured: true,
            online: true,
            nodes: 0,
            rtt_us: None,
            draining: false,
            version: String::new(),
            load: Some(0),
            carrier: Some("memory"),
        }]
    }
}

/// A hub and what is around it.
pub(crate) struct Site {
    pub(crate) hub: Arc<Hub>,
    pub(crate) mesh: Arc<NotingMesh>,
    clock: Arc<AtomicI64>,
    dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap(), Arc::new(AtomicI64::new(START_MS))).await
    }

    async fn open(dir: tempfile::TempDir, clock: Arc<AtomicI64>) -> Self {
        let told = clock.clone();
        let options = HubOptions { clock: Clock::new(move || told.load(Ordering::SeqCst)), ..HubOptions::default() };
        let patience = Instant::now() + Duration::from_secs(10);
        // After a restart within one process, what the old hub had begun may still hold its store for a moment.
        let hub = loop {
            match Hub::open(dir.path(), options.clone()).await {
                Ok(hub) => break hub,
                Err(error) if Instant::now() > patience => panic!("{error:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        let mesh = Arc::new(NotingMesh::default());
        hub.set_mesh(mesh.clone());
        Self { hub, mesh, clock, dir }
    }

    /// Stops the hub and starts it again.
    pub(crate) async fn restart(self) -> Self {
        let Self { hub, mesh, clock, dir } = self;
        drop((hub, mesh));
        Self::open(dir, clock).await
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn pass(&self, ms: i64) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    /// A user without a password, and as who they act.
    pub(crate) async fn user(&self, name: &str, role: Role) -> Actor {
        let id = UserId::new(self.hub.now_ms(), cortex_runtime::clock::random());
        let user = User { id, name: name.into(), role, password_hash: String::new(), created_at_ms: 0, disabled: false };
        let insert = move |tx: &mut dyn WriteTx| {
            USERS.put(tx, &id, &user)?;
            USER_NAMES.put(tx, &user.name, &id)
        };
        self.hub.db.write::<_, StoreError>(insert).await.unwrap();
        let scopes = vec![Scope::Read, Scope::Dispatch, Scope::Manage, Scope::Admin];
        Actor { user: id, name: name.into(), role, via: "ui".into(), token: None, scopes, login: Some(Digest([7; 32])) }
    }

    pub(crate) async fn member(&self, name: &str) -> Actor {
        self.user(name, Role::Member).await
    }

    pub(crate) async fn admin(&self) -> Actor {
        self.user("root", Role::Admin).await
    }

    pub(crate) async fn invite(&self, actor: &Actor, new: NewInvite) -> IssuedInvite {
        self.hub.create_invite(actor, new).await.unwrap()
    }

    /// Redeems an invite with the key of a number.
    pub(crate) async fn redeem(&self, issued: &IssuedInvite, number: u16) -> Result<Node, RedeemError> {
        self.hub.redeem(redeem(issued, number)).await
    }

    /// An enrolled node of the actor.
    pub(crate) async fn node(&self, actor: &Actor, number: u16) -> NodeId {
        let issued = self.invite(actor, NewInvite { name: format!("node {number}"), ..NewInvite::default() }).await;
        self.redeem(&issued, number).await.unwrap().id
    }

    /// A session of the actor with these nodes.
    pub(crate) async fn session(&self, actor: &Actor, nodes: &[NodeId]) -> SessionId {
        let new = NewSession { title: "a session".into(), nodes: nodes.to_vec() };
        self.hub.create_session(actor, new).await.unwrap().id
    }

    /// A session with one node that has free slots.
    pub(crate) async fn workplace(&self, actor: &Actor, number: u16) -> (SessionId, NodeId) {
        let node = self.node(actor, number).await;
        lock(&self.mesh.slots).insert(node, 8);
        (self.session(actor, &[node]).await, node)
    }

    pub(crate) async fn run(&self, actor: &Actor, session: SessionId) -> Result<Task, TaskError> {
        self.dispatch(actor, session, request("true"), None).await.map(|dispatched| dispatched.task)
    }

    pub(crate) async fn dispatch(
        &self,
        actor: &Actor,
        session: SessionId,
        request: DispatchRequest,
        key: Option<&str>,
    ) -> Result<Dispatched, TaskError> {
        self.hub.dispatch(actor, session, request, key).await
    }

    /// A task that its node has started.
    pub(crate) async fn running(&self, actor: &Actor, session: SessionId) -> Task {
        let task = self.run(actor, session).await.unwrap();
        self.hub.started(task.id, task.node, &started(START_MS)).await.unwrap()
    }
}

/// What a node says when a task has started.
pub(crate) fn started(at_ms: i64) -> TaskStarted {
    TaskStarted { at_ms, sandbox_level: "permissive".into(), workspace_behind: false }
}

/// What the node of a number sends to redeem an invite.
pub(crate) fn redeem(issued: &IssuedInvite, number: u16) -> Redeem {
    Redeem {
        invite_id: issued.invite.id,
        secret_hash: issued.invite.secret_hash.0,
        node: node_id(number),
        name: format!("host {number}"),
        agent: "cortex-peer 0.1.0".into(),
        capabilities: Capabilities { os: "linux".into(), ..Capabilities::default() },
        observed_address: None,
    }
}

pub(crate) fn request(command: &str) -> DispatchRequest {
    let spec = TaskSpec { argv: vec![command.into()], ..TaskSpec::default() };
    DispatchRequest { spec, ..DispatchRequest::default() }
}

/// A node's word that a task ended with this exit code.
pub(crate) fn response(task: &Task, exit_code: i32) -> TaskResponse {
    TaskResponse {
        task_id: Bytes::copy_from_slice(task.id.as_bytes()),
        fence: task.fence,
        node_key: task.node.key().to_bytes(),
        state: if exit_code == 0 { "succeeded" } else { "failed" }.into(),
        exit: Some(Exit::ExitCode(exit_code)),
        started_at_ms: START_MS + 1,
        finished_at_ms: START_MS + 2,
        usage: Some(TaskUsage { wall_ms: 1, ..TaskUsage::default() }),
        sandbox_level: "permissive".into(),
        ..TaskResponse::default()
    }
}

/// The same, signed by the node of a number.
pub(crate) fn signed(number: u16, response: &TaskResponse) -> Signed {
    key(number).seal(Domain::Result, response)
}
