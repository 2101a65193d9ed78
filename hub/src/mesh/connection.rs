//! One node's connection: the hub proves itself, the node registers, and both keep in touch until one of them is gone.
//!
//! The hub opens the first stream and speaks first. After registration that stream carries heartbeats one way and changes of configuration the other; each task has a stream of its own
//! ([`super::delivery`]).

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cortex_runtime::{
    chunk, clock, quic,
    stream::{FrameReader, FrameWriter, StreamError},
    tls,
};
use cortex_wire::{
    PROTOCOL_VERSION,
    close::CloseCode,
    id::{NodeId, RelayId, SessionId},
    invite::{self, RelayEndpoint},
    key::Domain,
    limits,
    policy::Policy,
    schema::{
        self, HubFrame, HubHello, InventoryAnswer, NodeFrame, NodeStanding, RegistrationRequest, Signed, SyncConfiguration, hub_frame,
        node_frame,
    },
    text,
};
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    failure::Failure as _,
    hub::{Hub, Reservation, lock},
    invite::Redeem,
    mesh::{
        AGENT, Network,
        admission::Gatekeeper,
        delivery::Slots,
        direct::Introducer,
        pool::{Board, Pooled},
        workspace::Workspaces,
    },
    node::Registration,
    presence,
    record::{Capabilities, Node, PathPolicy, SandboxPolicy, Standing},
};

/// A node that is connected. Everybody else talks to it through this.
pub struct NodeHandle {
    /// Which node.
    pub node: NodeId,
    /// Tells connections of one node apart.
    pub number: u64,
    pub(crate) hub: Arc<Hub>,
    pub(crate) connection: Connection,
    /// This start of the peer: tasks are signed for it.
    pub(crate) boot_nonce: Bytes,
    pub(crate) slots: Mutex<Slots>,
    /// Another connection has taken its place, or it has ended: it leases no more tasks.
    pub(crate) retired: Arc<AtomicBool>,
    pub(crate) state: Mutex<State>,
    pub(crate) workspaces: Workspaces,
    pub(crate) board: Arc<Board>,
    /// What the pool has to tell it.
    pub(crate) pooled: Pooled,
    /// The hash of the hub's policy that is in force on the node, once it has said so.
    pub(crate) in_force: watch::Sender<Option<[u8; 32]>>,
    changed: Notify,
    regrouped: Notify,
}

/// What changes while a node is connected.
#[derive(Debug)]
pub(crate) struct State {
    /// Whether tasks may go there: the node is active, and was heard of lately.
    pub(crate) ready: bool,
    pub(crate) policy: Policy,
    /// It takes tasks only over a direct way, and there is none.
    pub(crate) held: bool,
    /// Its owner wants it to take nothing new.
    pub(crate) drained: bool,
    relay: Option<RelayId>,
    standby: Option<RelayId>,
}

impl State {
    /// Whether a task may go to the node now.
    pub(crate) fn takes_tasks(&self) -> bool {
        self.ready && !self.held && !self.drained
    }
}

impl std::fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeHandle({:?}, connection {})", self.node, self.number)
    }
}

impl NodeHandle {
    /// The relay that the node says it comes through.
    pub fn relay(&self) -> Option<RelayId> {
        lock(&self.state).relay
    }

    /// The relays that the node has links to.
    fn linked_relays(&self) -> Vec<RelayId> {
        let state = lock(&self.state);
        state.relay.into_iter().chain(state.standby).collect()
    }

    /// The node's record has changed: it is told, or shut out.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// See [`crate::hub::Mesh::sessions_changed`].
    pub fn regroup(&self) {
        self.regrouped.notify_one();
    }

    /// See [`crate::hub::Mesh::reserve`].
    pub fn reserve(&self) -> Reservation {
        let (ready, held, drained) = {
            let state = lock(&self.state);
            (state.takes_tasks(), state.held, state.ready && state.drained)
        };
        let mut slots = lock(&self.slots);
        if ready && slots.take() {
            Reservation::Slot
        } else if drained {
            Reservation::Drained
        } else if ready || slots.is_registering() {
            Reservation::Full
        } else if held {
            Reservation::Indirect
        } else {
            Reservation::Offline
        }
    }

    fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    pub(crate) fn close(&self, code: CloseCode) {
        close(&self.connection, code);
    }
}

fn close(connection: &Connection, code: CloseCode) {
    connection.close(VarInt::from_u32(code.number()), code.text().as_bytes());
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Quic(#[from] quinn::ConnectionError),
    #[error("the store failed: {0}")]
    Store(#[from] crate::store::StoreError),
    #[error("the node speaks another version of the protocol")]
    Version,
    #[error("the node did not show a key")]
    NoKey,
}

/// Serves one incoming connection to its end.
pub(crate) async fn serve(network: Arc<Network>, incoming: Incoming) {
    let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
    let Ok(Ok(connection)) = tokio::time::timeout(patience, incoming).await else { return };
    let caller = match tokio::time::timeout(patience, Caller::greet(&network, &connection)).await {
        Ok(Ok(caller)) => caller,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a node did not register");
            return close(&connection, CloseCode::Protocol);
        }
        Err(_) => return close(&connection, CloseCode::TooSlow),
    };
    let node = caller.node;
    if let Err(error) = caller.live().await {
        tracing::debug!(?node, %error, "a node's connection broke");
    }
}

/// A connection whose node has proved its key and sent its registration.
struct Caller {
    network: Arc<Network>,
    connection: Connection,
    node: NodeId,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
    request: RegistrationRequest,
    introducer: Introducer,
}

/// Why a node may not stay.
struct Turned {
    code: String,
    reason: String,
}

impl Caller {
    async fn greet(network: &Arc<Network>, connection: &Connection) -> Result<Self, ConnectionError> {
        let node = tls::peer_key(connection).map(NodeId::from).ok_or(ConnectionError::NoKey)?;
        let (send, recv) = connection.open_bi().await?;
        let mut writer = FrameWriter::new(send);
        let hello = HubHello {
            version: PROTOCOL_VERSION,
            agent: AGENT.into(),
            hub_name: network.hub.name().into(),
            statements: network.hub.keys.statements().to_vec(),
            time_ms: clock::now_ms(),
            instance: network.instance,
        };
        writer.send(&hello).await?;
        let mut reader = FrameReader::new(recv, limits::CONTROL_FRAME_BYTES);
        let request: RegistrationRequest = reader.expect().await?;
        if request.version != PROTOCOL_VERSION || request.boot_nonce.len() != 32 || request.inventory.len() > limits::INVENTORY_ENTRIES {
            return Err(ConnectionError::Version);
        }
        Ok(Self {
            network: network.clone(),
            connection: connection.clone(),
            node,
            reader,
            writer,
            request,
            introducer: Introducer::default(),
        })
    }

    async fn live(mut self) -> Result<(), ConnectionError> {
        match self.register().await? {
            Ok(record) => self.live_as(record).await,
            Err(turned) => {
                tracing::info!(node = ?self.node, code = turned.code, "a node was turned away");
                let configuration = SyncConfiguration {
                    standing: NodeStanding::Refused.into(),
                    refusal_code: turned.code,
                    refusal_reason: turned.reason,
                    ..SyncConfiguration::default()
                };
                self.writer.send(&configuration).await?;
                let _ = self.writer.inner_mut().finish();
                let _ = tokio::time::timeout(Duration::from_secs(2), self.connection.closed()).await;
                close(&self.connection, CloseCode::Refused);
                Ok(())
            }
        }
    }

    /// Redeems the invite if there is one, and finds the node's record.
    async fn register(&mut self) -> Result<Result<Node, Turned>, ConnectionError> {
        let hub = &self.network.hub;
        let turned = |code: &str, reason: &str| Ok(Err(Turned { code: code.into(), reason: reason.into() }));
        let capabilities = Capabilities::from(&self.request.capabilities.clone().unwrap_or_default());
        let agent = text::clean(&self.request.agent, limits::NAME_BYTES);
        if let Some(enrolment) = &self.request.enrolment {
            let exporter = tls::exporter(&self.connection)?;
            let Ok((invite_id, secret_hash)) = invite::check_enrolment(enrolment, self.node.key(), &hub.id(), &exporter) else {
                return turned("bad_enrolment", "the proof of this enrolment does not hold for this connection");
            };
            let redeem = Redeem {
                invite_id,
                secret_hash,
                node: self.node,
                name: text::clean(&self.request.name, limits::NAME_BYTES),
                agent: agent.clone(),
                capabilities: capabilities.clone(),
                observed_address: None,
            };
            if let Err(error) = hub.redeem(redeem).await {
                return turned(error.code(), &error.to_string());
            }
        }
        let registration =
            Registration { agent, capabilities, ceiling: self.request.ceiling.as_ref().map(SandboxPolicy::from), observed_address: None };
        match hub.register_node(self.node, registration).await? {
            None => turned("node_unknown", "the hub does not know this node; enrol it with an invite"),
            Some(record) if record.standing == Standing::Revoked => {
                let reason = "this node was revoked; enrol again with a new key and a new invite";
                hub.note_refusal(self.node, "node_revoked", reason).await?;
                turned("node_revoked", reason)
            }
            Some(record) => Ok(Ok(record)),
        }
    }

    async fn live_as(mut self, record: Node) -> Result<(), ConnectionError> {
        let network = self.network.clone();
        let hub = network.hub.clone();
        let relay = self.request.relay_id.parse::<RelayId>().ok();
        let policy = hub.policy_of(self.node).await?.unwrap_or_default();
        let slots = slots_of(&policy, self.request.capabilities.as_ref());
        let handle = Arc::new(NodeHandle {
            node: self.node,
            number: network.next_connection.fetch_add(1, Ordering::Relaxed),
            hub: hub.clone(),
            connection: self.connection.clone(),
            boot_nonce: self.request.boot_nonce.clone(),
            slots: Mutex::new(Slots::new(slots)),
            retired: Arc::default(),
            state: Mutex::new(State {
                ready: false,
                policy: Policy::new(policy),
                held: false,
                drained: record.drained_at_ms.is_some(),
                relay,
                standby: None,
            }),
            workspaces: Workspaces::default(),
            board: network.board.clone(),
            pooled: Pooled::default(),
            in_force: watch::Sender::new(None),
            changed: Notify::new(),
            regrouped: Notify::new(),
        });
        let older = lock(&network.nodes).insert(self.node, handle.clone());
        if let Some(older) = older {
            // The same peer after a change of network, or its key on two machines: the newer connection stays.
            older.retire();
            older.close(CloseCode::Superseded);
        }
        let guard = Leave { network: network.clone(), handle: handle.clone() };
        let active = record.standing == Standing::Active;
        let plan = if active { Some(handle.reconcile(&self.request.inventory).await?) } else { None };
        let inventory = plan.as_ref().map(|plan| plan.answers.clone()).unwrap_or_default();
        let mut configuration = configure(&network, &handle, &record, inventory).await?;
        let held = self.request.workspaces.iter().take(limits::HELD_WORKSPACES).filter_map(|id| SessionId::from_slice(id).ok()).collect();
        configuration.left = Some(hub.left_by(self.node, held).await?);
        self.writer.send(&configuration).await?;
        let connection =
            presence::Connection { id: handle.number, relay: relay.map(|relay| relay.to_string()), path: Some("relay".into()) };
        // Before anybody is told: whoever hears that the node is online may send it a task at once.
        self.hold(&handle, &record);
        handle.set_ready(active);
        hub.node_online(self.node, connection.clone()).await?;
        tracing::info!(node = ?self.node, name = record.name, standing = ?record.standing, "a node is connected");
        handle.carry_out(plan.unwrap_or_default());
        network.board.join(&handle).await;
        if active {
            // What was attached meanwhile is in the store already.
            handle.regroup_workspaces().await?;
        }
        // Over a direct way the node fetches and stores chunks on this connection.
        tokio::spawn(chunk::serve_all(self.connection.clone(), network.chunks(), Some(self.node)));
        let reason = self.keep_in_touch(&handle, record, &connection).await;
        drop(guard);
        hub.node_offline(self.node, handle.number, &reason).await?;
        tracing::info!(node = ?self.node, reason, "a node has left");
        Ok(())
    }

    /// Heartbeats and changes, until the connection ends. Returns why it did.
    async fn keep_in_touch(&mut self, handle: &Arc<NodeHandle>, mut record: Node, online: &presence::Connection) -> String {
        let silence = Duration::from_millis(limits::SILENCE_MS);
        let renewal = Duration::from_millis(u64::try_from(limits::TICKET_LIFE_MS / 2).unwrap_or(60_000));
        let mut tickets = tokio::time::interval_at(tokio::time::Instant::now() + renewal, renewal);
        let quiet = tokio::time::sleep(silence);
        tokio::pin!(quiet);
        let mut silent = false;
        let hub = self.network.hub.clone();
        let mut news = self.network.news.follow();
        news.mark_changed();
        if let Err(reason) = self.introduce(handle, &record).await {
            return reason;
        }
        loop {
            tokio::select! {
                frame = self.reader.next::<NodeFrame>() => {
                    let frame = match frame {
                        Ok(Some(frame)) => frame.frame,
                        Ok(None) => return "the peer closed the connection".into(),
                        Err(error @ StreamError::Frame(_)) => {
                            handle.close(CloseCode::Protocol);
                            return error.to_string();
                        }
                        Err(error) => return self.reason(&error),
                    };
                    quiet.as_mut().reset(tokio::time::Instant::now() + silence);
                    if std::mem::take(&mut silent) {
                        handle.set_ready(record.standing == Standing::Active);
                        if let Err(error) = hub.node_online(self.node, online.clone()).await { return error.to_string() }
                    }
                    match frame {
                        Some(node_frame::Frame::Health(health)) => {
                            let ack = HubFrame { frame: Some(hub_frame::Frame::HealthAck(health.sequence)) };
                            if let Err(error) = self.writer.send(&ack).await { return self.reason(&error) }
                            let standby = health.standby_id.parse().ok();
                            let relay = handle.relay();
                            let other = {
                                let mut state = lock(&handle.state);
                                state.relay = health.relay_id.parse().ok().or(state.relay);
                                standby.is_some() && std::mem::replace(&mut state.standby, standby) != standby
                            };
                            // Its link came about by the relay's asking, or by a ticket of who knows when.
                            if other && let Err(reason) = self.renew_tickets(handle).await { return reason }
                            hub.node_health(self.node, handle.number, &health);
                            self.hold(handle, &record);
                            if handle.relay() != relay && let Err(reason) = self.introduce(handle, &record).await { return reason }
                        }
                        Some(node_frame::Frame::Capabilities(capabilities)) => {
                            let registration = Registration {
                                agent: record.agent.clone(),
                                capabilities: Capabilities::from(&capabilities),
                                ceiling: record.ceiling.clone(),
                                observed_address: record.observed_address.clone(),
                            };
                            if let Err(error) = hub.register_node(self.node, registration).await { return error.to_string() }
                            handle.board.seat(self.node).await;
                        }
                        Some(node_frame::Frame::Claims(claims)) => handle.board.claims(self.node, handle.number, &claims),
                        Some(node_frame::Frame::Policy(report)) => {
                            handle.in_force.send_replace(report.hash[..].try_into().ok());
                            if let Err(error) = hub.note_policy(self.node, &report).await { return error.to_string() }
                        }
                        Some(node_frame::Frame::Browser(events)) if record.standing == Standing::Active => {
                            match hub.store_browser_events(self.node, &events).await {
                                Ok(stored) => if let Err(reason) = self.send(hub_frame::Frame::Browser(stored)).await { return reason },
                                Err(error) => return error.to_string(),
                            }
                        }
                        Some(node_frame::Frame::Browser(_)) => {}
                        Some(node_frame::Frame::Direct(search)) => {
                            self.introducer.search(&search, Instant::now());
                            if let Err(reason) = self.introduce(handle, &record).await { return reason }
                        }
                        Some(node_frame::Frame::Goodbye(goodbye)) => {
                            handle.close(CloseCode::Done);
                            return format!("the peer said goodbye: {}", text::clean(&goodbye.reason, limits::NAME_BYTES));
                        }
                        None => {}
                    }
                }
                () = handle.changed.notified() => match self.on_change(handle).await {
                    Ok(changed) => {
                        record = changed;
                        self.hold(handle, &record);
                        if let Err(reason) = self.introduce(handle, &record).await { return reason }
                    }
                    Err(reason) => return reason,
                },
                () = handle.pooled.told() => for update in handle.pooled.updates() {
                    if let Err(reason) = self.send(hub_frame::Frame::Pool(update)).await { return reason }
                },
                () = handle.regrouped.notified() => {
                    handle.board.seat(self.node).await;
                    // The ticket first: what the streams announce is fetched with it.
                    if let Err(reason) = self.renew_tickets(handle).await { return reason }
                    if record.standing == Standing::Active
                        && let Err(reason) = self.regroup(handle).await
                    {
                        return reason;
                    }
                    if let Err(reason) = self.introduce(handle, &record).await { return reason }
                }
                Ok(()) = news.changed() => {
                    let told = news.borrow_and_update().clone();
                    if let Err(reason) = self.send(hub_frame::Frame::Relays(told)).await { return reason }
                    if let Err(reason) = self.introduce(handle, &record).await { return reason }
                }
                _ = tickets.tick() => if let Err(reason) = self.renew_tickets(handle).await { return reason },
                () = &mut quiet, if !silent => {
                    // The connection stays: the node may come back to it within QUIC's own patience.
                    silent = true;
                    handle.set_ready(false);
                    if let Err(error) = hub.node_offline(self.node, handle.number, "silent: no heartbeat").await { return error.to_string() }
                }
                () = self.network.lifecycle.stopping() => {
                    handle.close(CloseCode::ShuttingDown);
                    return "the hub stopped".into();
                }
            }
        }
    }

    /// Tells an active node where the hub might be reached directly, when that is something new.
    async fn introduce(&mut self, handle: &NodeHandle, record: &Node) -> Result<(), String> {
        if record.standing != Standing::Active {
            return Ok(());
        }
        let own_relay = self.network.is_own(handle.relay());
        let shared = self.network.hub.shares_workspaces(self.node).await.map_err(|error| error.to_string())?;
        if let Some(offer) = self.introducer.offer(&self.network, record.path_policy, own_relay, shared) {
            self.send(hub_frame::Frame::Direct(offer)).await?;
        }
        self.introducer.stand_by(&self.network, &self.connection);
        Ok(())
    }

    /// A node that takes tasks only over a direct way is given none while it has none.
    fn hold(&self, handle: &Arc<NodeHandle>, record: &Node) {
        let is_direct = self.network.socket.is_direct(self.connection.remote_address());
        if is_direct {
            quic::carry_chunks(&self.connection, limits::CHUNK_STREAMS);
        }
        handle.hold(record.path_policy == PathPolicy::DirectOnly && !is_direct && !self.network.is_own(handle.relay()));
    }

    /// Sends the node fresh tickets for the relays that it has links to.
    async fn renew_tickets(&mut self, handle: &NodeHandle) -> Result<(), String> {
        for relay in handle.linked_relays() {
            let ticket = Gatekeeper::ticket(&self.network.hub, &relay, &self.node).await.map_err(|error| error.to_string())?;
            self.send(hub_frame::Frame::Ticket(ticket)).await?;
        }
        Ok(())
    }

    async fn send(&mut self, frame: hub_frame::Frame) -> Result<(), String> {
        self.writer.send(&HubFrame { frame: Some(frame) }).await.map_err(|error| self.reason(&error))
    }

    /// Tells the node what changed, or shuts it out.
    async fn on_change(&mut self, handle: &Arc<NodeHandle>) -> Result<Node, String> {
        let hub = self.network.hub.clone();
        let record = hub.find_node(self.node).await.map_err(|error| error.to_string())?;
        let Some(record) = record.filter(|record| record.standing != Standing::Revoked) else {
            handle.close(CloseCode::Revoked);
            self.network.cut_links(self.node);
            return Err("revoked or removed by its owner".into());
        };
        let policy = hub.policy_of(self.node).await.map_err(|error| error.to_string())?.unwrap_or_default();
        lock(&handle.slots).resize(slots_of(&policy, self.request.capabilities.as_ref()));
        lock(&handle.state).policy = Policy::new(policy);
        handle.drain(record.drained_at_ms.is_some());
        let active = record.standing == Standing::Active;
        let newly_active = active && !handle.set_ready(active);
        let configuration = configure(&self.network, handle, &record, Vec::new()).await.map_err(|error| error.to_string())?;
        let frame = HubFrame { frame: Some(hub_frame::Frame::Configuration(configuration)) };
        self.writer.send(&frame).await.map_err(|error| self.reason(&error))?;
        if newly_active {
            let connection = presence::Connection {
                id: handle.number,
                relay: handle.relay().map(|relay| relay.to_string()),
                path: Some("relay".into()),
            };
            hub.node_online(self.node, connection).await.map_err(|error| error.to_string())?;
            handle.regroup_workspaces().await.map_err(|error| error.to_string())?;
        }
        Ok(record)
    }

    /// Streams of workspaces come and go. What the node has left it is told here, too: its stream may have broken before it could say so.
    async fn regroup(&mut self, handle: &Arc<NodeHandle>) -> Result<(), String> {
        let ended = handle.regroup_workspaces().await.map_err(|error| error.to_string())?;
        let left = handle.hub.left_by(self.node, ended).await.map_err(|error| error.to_string())?;
        if left.session_ids.is_empty() {
            return Ok(());
        }
        let frame = HubFrame { frame: Some(hub_frame::Frame::Left(left)) };
        self.writer.send(&frame).await.map_err(|error| error.to_string())
    }

    /// What the other side said when it closed, or what broke.
    fn reason(&self, error: &StreamError) -> String {
        match self.connection.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => CloseCode::from_number(close.error_code.into_inner()).map_or_else(
                || "the peer closed the connection".to_owned(),
                |code| format!("the peer closed the connection: {}", code.text()),
            ),
            Some(quinn::ConnectionError::TimedOut) => "no answer: the machine is off, asleep or cut off".into(),
            Some(other) => other.to_string(),
            None => error.to_string(),
        }
    }
}

fn slots_of(policy: &schema::SandboxPolicy, capabilities: Option<&schema::Capabilities>) -> u32 {
    const DEFAULT: u32 = 64;
    let wanted = if policy.task_slots == 0 { DEFAULT } else { policy.task_slots };
    let offered = capabilities.map_or(0, |capabilities| capabilities.task_slots);
    if offered == 0 { wanted } else { wanted.min(offered) }
}

/// The node's configuration as it is sent: standing, signed policy, relays, a ticket.
async fn configure(
    network: &Network,
    handle: &NodeHandle,
    record: &Node,
    inventory: Vec<InventoryAnswer>,
) -> Result<SyncConfiguration, crate::store::StoreError> {
    let hub = &network.hub;
    let policy: Signed = hub.keys.task.seal(Domain::Policy, &hub.policy_of(handle.node).await?.unwrap_or_default());
    let ticket = match handle.relay() {
        Some(relay) => Some(Gatekeeper::ticket(hub, &relay, &handle.node).await?),
        None => None,
    };
    let standing = if record.standing == Standing::Active { NodeStanding::Active } else { NodeStanding::Pending };
    Ok(SyncConfiguration {
        standing: standing.into(),
        node_id: handle.node.to_string(),
        name: record.name.clone(),
        policy: Some(policy),
        heartbeat_ms: limits::HEARTBEAT_MS,
        relays: network.relay_endpoints().iter().map(RelayEndpoint::to_message).collect(),
        ticket,
        inventory,
        ephemeral: record.ephemeral,
        ..SyncConfiguration::default()
    })
}

/// Takes a node out of the table when its connection ends, however it does.
struct Leave {
    network: Arc<Network>,
    handle: Arc<NodeHandle>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.handle.retire();
        let mut nodes = lock(&self.network.nodes);
        if nodes.get(&self.handle.node).is_some_and(|held| held.number == self.handle.number) {
            nodes.remove(&self.handle.node);
        }
        drop(nodes);
        let handle = self.handle.clone();
        handle.set_ready(false);
        handle.board.leave(handle.node, handle.number);
        handle.workspaces.close();
        handle.abandon(&self.network);
    }
}

/// Commands for a task that is on a node.
pub(crate) type TaskCommands = mpsc::Sender<super::delivery::Command>;
