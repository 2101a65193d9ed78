//! The network side of the hub: relays, connections of nodes, and the tasks that travel on them.
//!
//! One QUIC endpoint serves all nodes; its packets cross the relay in this process in memory, and other relays by links of the hub's own. [`Network`] implements what the domain asks
//! of the mesh ([`crate::hub::Mesh`]).
//!
//! | module | answers for |
//! | --- | --- |
//! | [`admission`] | who may use a relay |
//! | [`relays`] | the relay in this process, and links to others |
//! | [`connection`] | one node's connection: proof, registration, heartbeat |
//! | [`direct`] | introductions for a direct way to a node |
//! | [`pool`] | offers, claims and grants |
//! | [`delivery`] | tasks on a node: slots, streams, output, results |
//! | [`workspace`] | one stream for each workspace on a node |

pub mod admission;
pub mod connection;
pub mod delivery;
pub mod direct;
mod pool;
mod queue;
pub mod relays;
pub mod workspace;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, Weak, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use cortex_relay::{Relay, health::Probe};
use cortex_runtime::{
    chunk::ChunkSource,
    clock, failpoint,
    lifecycle::{Lifecycle, Parts},
    quic::{self, Prefix, Purpose},
    reach,
    socket::{NodeSocket, Role},
};
use cortex_wire::{
    close::CloseCode,
    id::{NodeId, RelayId, SessionId, TaskId},
    invite::RelayEndpoint,
    key::{SecretKey, StatedKey},
    limits,
    pool::Tally,
    route::Route,
    schema::{self, RelaySight},
    task::State,
};
use futures_util::future::{BoxFuture, join_all};
use quinn::{Endpoint, VarInt};

use crate::{
    hub::{Hub, Mesh, RelayCheck, RelayStatus, Reservation, StdinError, lock},
    mesh::{
        admission::Gatekeeper,
        connection::NodeHandle,
        pool::Board,
        relays::{NewsSender, RelayLink},
    },
    record::Task,
};

/// What this program calls itself towards others.
pub const AGENT: &str = concat!("cortex-hub ", env!("CARGO_PKG_VERSION"));

/// What the relay in this process keeps of sealed chunks. Little: the hub's own disk cache is beside it.
const CACHE_BYTES: u64 = 64 << 20;

/// What nodes have time for when the relay in this process goes with the hub.
const DRAIN_MS: u64 = 2_000;

/// How the network side runs.
#[derive(Debug)]
pub struct NetworkOptions {
    /// The relay in this process; `None`: only other relays are used.
    pub embedded: Option<EmbeddedRelay>,
    /// Further relays.
    pub relays: Vec<RelayEndpoint>,
    /// How they are reached.
    pub reach: Arc<reach::Network>,
    /// Where packets of nodes that come directly are taken; port 0: any.
    pub direct_listen: SocketAddr,
    /// What nodes are told of it, beside what the hub finds out by itself.
    pub direct_address: Option<SocketAddr>,
}

/// The relay in the hub's process.
#[derive(Debug)]
pub struct EmbeddedRelay {
    /// UDP address.
    pub listen: SocketAddr,
    /// `host:port` that peers dial; the port is taken from `listen` when it is 0 here.
    pub address: String,
    /// Its identity.
    pub key: SecretKey,
    /// A label.
    pub region: String,
}

/// The network side.
#[derive(Debug)]
pub struct Network {
    me: Weak<Self>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) endpoint: Endpoint,
    pub(crate) socket: Arc<NodeSocket>,
    pub(crate) reach: Arc<reach::Network>,
    direct_address: Option<SocketAddr>,
    /// Another number at every start: nodes learn that their old connections are gone.
    pub(crate) instance: u64,
    pub(crate) lifecycle: Lifecycle,
    embedded: Option<(Arc<Relay>, RelayEndpoint)>,
    /// Tries the relay in this process out.
    probe: Option<Arc<Probe>>,
    links: Mutex<Vec<Arc<RelayLink>>>,
    gatekeeper: Arc<Gatekeeper>,
    pub(crate) news: NewsSender,
    nodes: Mutex<HashMap<NodeId, Arc<NodeHandle>>>,
    pub(crate) board: Arc<Board>,
    next_connection: AtomicU64,
}

impl Network {
    /// Binds the ports, and starts the parts that serve nodes and relays.
    ///
    /// # Errors
    /// When a port cannot be had.
    pub async fn start(hub: Arc<Hub>, options: NetworkOptions, lifecycle: Lifecycle, parts: &mut Parts) -> anyhow::Result<Arc<Self>> {
        let instance = u64::from_le_bytes(clock::random()).max(1);
        let socket = NodeSocket::bind_at(Role::Hub, options.direct_listen)
            .with_context(|| format!("cannot open the UDP socket at {}; choose another `direct.listen`", options.direct_listen))?;
        let gatekeeper = Gatekeeper::new(hub.clone());
        let embedded = options.embedded.map(|embedded| embed(&hub, embedded, instance, &gatekeeper, &socket)).transpose()?;
        let route = Prefix::Route(Route::of(hub.id().key()));
        let mut server = quic::server_config(&hub.keys.transport, Purpose::Mesh)?;
        // Who may send packets at all was decided at the relay; the address is a virtual one.
        server.migration(true);
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::endpoint_config(route, &clock::random()),
            Some(server),
            socket.clone(),
            Arc::new(quinn::TokioRuntime),
        )
        .context("cannot start QUIC")?;
        let network = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            hub: hub.clone(),
            endpoint,
            socket,
            reach: options.reach,
            direct_address: options.direct_address,
            instance,
            lifecycle: lifecycle.clone(),
            probe: embedded.as_ref().map(|(relay, _)| Arc::new(Probe::new(relay.clone()))),
            embedded,
            links: Mutex::default(),
            gatekeeper,
            news: NewsSender::default(),
            nodes: Mutex::default(),
            board: Board::new(hub.clone()),
            next_connection: AtomicU64::new(1),
        });
        hub.set_mesh(network.clone() as Arc<dyn Mesh>);
        network.clone().watch_open_tasks().await?;
        tokio::spawn(network.board.clone().run(lifecycle.clone()));
        if let Some((relay, endpoint)) = &network.embedded {
            tracing::info!(relay = %endpoint, listen = %relay.local_addr()?, "the embedded relay is ready");
            let (relay, lifecycle) = (relay.clone(), lifecycle.clone());
            parts.spawn("embedded relay", async move {
                relay.run(lifecycle).await;
                Ok(())
            });
        }
        network.tell_relays();
        for relay in options.relays {
            network.clone().link_to(relay, true);
        }
        for relay in hub.added_relays().await? {
            network.clone().link_to(relay, false);
        }
        tokio::spawn(relays::show(network.clone()));
        let acceptor = network.clone();
        parts.spawn("node connections", async move {
            acceptor.accept().await;
            Ok(())
        });
        Ok(network)
    }

    /// The relay in this process, for metrics.
    pub fn embedded(&self) -> Option<&Arc<Relay>> {
        self.embedded.as_ref().map(|(relay, _)| relay)
    }

    async fn accept(self: Arc<Self>) {
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                () = self.lifecycle.stopping() => None,
            };
            let Some(incoming) = incoming else { break };
            tokio::spawn(connection::serve(self.clone(), incoming));
        }
        self.endpoint.close(VarInt::from_u32(CloseCode::ShuttingDown.number()), CloseCode::ShuttingDown.text().as_bytes());
        let _ = tokio::time::timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
    }

    /// The chunks of sessions, as their nodes see them.
    pub(crate) fn chunks(&self) -> Arc<dyn ChunkSource> {
        self.gatekeeper.chunks()
    }

    pub(crate) fn node(&self, node: NodeId) -> Option<Arc<NodeHandle>> {
        lock(&self.nodes).get(&node).cloned()
    }

    /// Where relays elsewhere see this hub's packets come from.
    fn observed(&self) -> Vec<SocketAddr> {
        let mut observed: Vec<SocketAddr> = lock(&self.links).iter().filter_map(|link| link.observed(&self.socket)).collect();
        observed.sort_unstable();
        observed.dedup();
        observed
    }

    /// Whether a relay is in this process.
    pub(crate) fn is_own(&self, relay: Option<RelayId>) -> bool {
        relay.is_some() && self.embedded.as_ref().map(|(own, _)| own.id()) == relay
    }

    /// Relays that nodes are told to use, most wanted first.
    pub(crate) fn relay_endpoints(&self) -> Vec<RelayEndpoint> {
        let embedded = self.embedded.iter().map(|(_, endpoint)| endpoint.clone());
        embedded.chain(lock(&self.links).iter().map(|link| link.relay.clone())).take(limits::HUB_RELAYS).collect()
    }

    /// Tells nodes which relays there are.
    fn tell_relays(&self) {
        self.news.list(&self.relay_endpoints());
        if let Some((relay, _)) = &self.embedded {
            let sight = RelaySight { key: relay.id().key().to_bytes(), online: true, rtt_us: 0, draining: false, load: 0 };
            self.news.see(sight, Instant::now());
        }
    }

    /// Keeps a link to a relay until it is removed or the hub stops. Nothing happens when there is one.
    fn link_to(self: Arc<Self>, relay: RelayEndpoint, configured: bool) {
        let link = Arc::new(RelayLink::new(relay, configured, self.news.clone()));
        {
            let mut links = lock(&self.links);
            if links.iter().any(|known| known.relay.id == link.relay.id) {
                return;
            }
            links.push(link.clone());
        }
        self.tell_relays();
        let gatekeeper = self.gatekeeper.clone();
        tokio::spawn(relays::keep(self, link, gatekeeper));
    }

    /// A relay does not answer: the nodes that send by it hear so from the relays of their standby links, and look for themselves.
    fn tell_silent(&self, relay: &RelayId) {
        if let Some((embedded, _)) = &self.embedded {
            embedded.tell_silent(&self.hub.id(), relay);
        }
        for link in lock(&self.links).iter().filter(|link| link.relay.id != *relay) {
            link.tell_silent(relay);
        }
    }

    /// Cuts a node's links at every relay.
    fn cut_links(&self, node: NodeId) {
        if let Some((relay, _)) = &self.embedded {
            relay.cut(&self.hub.id(), Route::of(node.key()), CloseCode::Revoked);
        }
        for link in lock(&self.links).iter() {
            link.revoke(node);
        }
    }
}

fn embed(
    hub: &Arc<Hub>,
    embedded: EmbeddedRelay,
    instance: u64,
    gatekeeper: &Arc<Gatekeeper>,
    socket: &NodeSocket,
) -> anyhow::Result<(Arc<Relay>, RelayEndpoint)> {
    let relay = Relay::bind(cortex_relay::Options {
        listen: embedded.listen,
        key: embedded.key,
        region: embedded.region.clone(),
        hubs: vec![hub.id()],
        max_links: 50_000,
        bytes_per_second: 0,
        cache_bytes: CACHE_BYTES,
        cache_disk: None,
        drain_ms: DRAIN_MS,
        tcp: cortex_relay::TcpOptions::default(),
    })?;
    let ticket_key = StatedKey { key: hub.keys.ticket.public(), sequence: 0 };
    let authority = gatekeeper.for_relay(relay.id());
    let port = relay.attach_hub(&hub.id(), ticket_key, instance, authority).context("the embedded relay does not serve this hub")?;
    socket.memory_path(port);
    let bound = relay.local_addr()?.port();
    let address = match embedded.address.strip_suffix(":0") {
        Some(host) => format!("{host}:{bound}"),
        None => embedded.address,
    };
    let endpoint = RelayEndpoint { address, id: relay.id(), region: embedded.region };
    Ok((relay, endpoint))
}

impl Mesh for Network {
    fn reserve(&self, node: NodeId) -> Reservation {
        self.node(node).map_or(Reservation::Offline, |handle| handle.reserve())
    }

    fn room(&self, node: NodeId) -> Option<u32> {
        self.node(node)?.room()
    }

    fn offer(&self, task: Task) {
        self.board.wait(&task);
    }

    fn drain(&self, node: NodeId, drained: bool) {
        if let Some(handle) = self.node(node) {
            handle.drain(drained);
        }
    }

    fn offered(&self) -> usize {
        self.board.waiting()
    }

    fn pool_tally(&self) -> Tally {
        self.board.tally()
    }

    fn release(&self, node: NodeId) {
        if let Some(handle) = self.node(node) {
            handle.release();
        }
    }

    fn deliver(&self, task: Task, leased: bool) {
        if task.state == State::AwaitingApproval {
            return delivery::ask_until(self.hub.clone(), &task);
        }
        match self.node(task.node) {
            Some(handle) => handle.deliver(task, leased),
            // The node has left since it claimed it, and was sent nothing: others may have it at once.
            None if leased && task.is_pooled() => {
                let (hub, board) = (self.hub.clone(), self.board.clone());
                tokio::spawn(async move {
                    if let Ok(task) = hub.give_back(task.id, task.fence).await {
                        board.wait(&task);
                    }
                });
            }
            // It waits in the store; its node collects it, or it expires.
            None => delivery::expire_later(self.hub.clone(), &task),
        }
    }

    fn cancel(&self, task: TaskId, node: NodeId, reason: String) {
        failpoint::at("hub.cancel_asked");
        self.board.forget(task);
        // An offline node learns of it from the record when it is back.
        if let Some(handle) = self.node(node) {
            handle.cancel(task, reason);
        }
    }

    fn stdin(&self, task: TaskId, node: NodeId, offset: u64, data: Bytes, end: bool) -> BoxFuture<'static, Result<u64, StdinError>> {
        match self.node(node) {
            Some(handle) => Box::pin(async move { handle.stdin(task, offset, data, end).await }),
            None => Box::pin(async { Err(StdinError::NodeOffline) }),
        }
    }

    fn stdin_position(&self, task: TaskId, node: NodeId) -> BoxFuture<'static, Result<u64, StdinError>> {
        match self.node(node) {
            Some(handle) => Box::pin(async move { handle.stdin_position(task).await }),
            None => Box::pin(async { Err(StdinError::NodeOffline) }),
        }
    }

    fn resize(&self, task: TaskId, node: NodeId, size: schema::Terminal) {
        if let Some(handle) = self.node(node) {
            handle.resize(task, size);
        }
    }

    fn node_changed(&self, node: NodeId) {
        if let Some(handle) = self.node(node) {
            handle.changed();
        } else {
            self.cut_links(node);
        }
    }

    fn sessions_changed(&self, node: NodeId) {
        if let Some(handle) = self.node(node) {
            handle.regroup();
        }
    }

    fn session_unused(&self, session: SessionId, deleted: bool) {
        if let Some((relay, _)) = &self.embedded {
            relay.forget(&self.hub.id(), &[session], deleted);
        }
        lock(&self.links).iter().for_each(|link| link.forget(&[session], deleted));
    }

    fn relays(&self) -> Vec<RelayStatus> {
        let count = |relay| lock(&self.nodes).values().filter(|node| node.relay() == Some(relay)).count() as u64;
        let embedded = self.embedded.iter().map(|(relay, endpoint)| RelayStatus {
            endpoint: endpoint.clone(),
            embedded: true,
            configured: true,
            online: true,
            nodes: count(relay.id()),
            rtt_us: None,
            draining: self.lifecycle.is_draining(),
            version: cortex_relay::AGENT.into(),
            load: Some(relay.load()),
            carrier: Some("memory"),
        });
        embedded.chain(lock(&self.links).iter().map(|link| link.status(count(link.relay.id)))).collect()
    }

    fn check_relays(&self) -> BoxFuture<'static, Vec<RelayCheck>> {
        let embedded = self.embedded.as_ref().map(|(relay, _)| (relay.id(), self.probe.clone()));
        let links: Vec<_> = lock(&self.links).clone();
        Box::pin(async move {
            let embedded = async {
                let (relay, probe) = (embedded.as_ref()?.0, embedded.as_ref()?.1.as_ref()?);
                let found = probe.look().await;
                Some(RelayCheck { relay, problem: (!found.ready).then(|| found.problems.join("; ")) })
            };
            let links = join_all(links.iter().map(|link| link.check()));
            let (embedded, mut checks) = tokio::join!(embedded, links);
            checks.extend(embedded);
            checks
        })
    }

    fn add_relay(&self, relay: RelayEndpoint) {
        if let Some(network) = self.me.upgrade() {
            network.link_to(relay, false);
        }
    }

    fn remove_relay(&self, relay: RelayId) {
        let removed = {
            let mut links = lock(&self.links);
            let at = links.iter().position(|link| link.relay.id == relay);
            at.map(|at| links.remove(at))
        };
        if let Some(link) = removed {
            self.tell_relays();
            link.removed.cancel();
        }
    }
}
