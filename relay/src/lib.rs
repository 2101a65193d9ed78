//! The relay: the edge process that peers behind firewalls and their hubs meet at.
//!
//! It forwards sealed packets unopened, by connection id, between addresses of admitted links and along allowed pairs only (a node and its hub).
//! It holds no key to anything it carries. It runs alone for a region, or inside the hub's process.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`route`] | who may send where: the pure table |
//! | [`socket`] | the UDP port: own packets to QUIC, the rest forwarded in batches |
//! | [`tunnel`] | the same packets over TLS and WebSocket, on the TCP port of the same number |
//! | [`certificate`] | the certificate of that TLS |
//! | [`link`] | one node's or hub's link: handshake, admission, life |
//! | [`chunk`] | sealed chunks: cache, and one request to the hub for many nodes |
//! | [`tenant`] | the hubs this relay serves |
//! | [`config`], [`reload`] | the operator's settings, and their change while the relay runs |
//! | [`named`] | hubs that are named by their address |
//! | [`health`], [`metrics`], [`http`] | what the operator sees |
//! | [`load`] | how much of what it can carry it carries |

pub mod certificate;
pub mod chunk;
pub mod config;
pub mod health;
pub mod http;
pub mod link;
pub mod load;
pub mod metrics;
pub mod named;
pub mod reload;
pub mod route;
pub mod socket;
pub mod tenant;
pub mod tunnel;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use cortex_runtime::{
    lifecycle::Lifecycle,
    quic::{self, Prefix, Purpose},
    udp::{self, Udp},
};
use cortex_wire::{
    close::CloseCode,
    id::{HubId, RelayId, SessionId},
    key::{SecretKey, StatedKey},
    limits,
    route::{RelayTag, Route},
};
use quinn::{AsyncUdpSocket as _, Connecting, ConnectionError, Endpoint, Incoming, ServerConfig, VarInt};

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use crate::{
    certificate::{CertificateError, CertificateFiles},
    link::LinkHandle,
    load::Load,
    metrics::Refusals,
    reload::Reloads,
    socket::{LocalPort, RelaySocket},
    tenant::{Authority, Tenants},
    tunnel::{Door, Tls},
};

/// What this program calls itself towards others.
pub const AGENT: &str = concat!("cortex-relay ", env!("CARGO_PKG_VERSION"));

/// How a relay runs.
#[derive(Debug)]
pub struct Options {
    /// UDP address.
    pub listen: SocketAddr,
    /// The relay's identity.
    pub key: SecretKey,
    /// A label that nodes and operators see.
    pub region: String,
    /// The hubs that may connect; everybody else's nodes are strangers.
    pub hubs: Vec<HubId>,
    /// Links at once.
    pub max_links: usize,
    /// Bytes per second of one node, each way; 0: no limit.
    pub bytes_per_second: u64,
    /// Memory for sealed chunks that were asked for or stored lately.
    pub cache_bytes: u64,
    /// A disk for more of them; none: memory only.
    pub cache_disk: Option<CacheDisk>,
    /// How long links have to move when the relay drains.
    pub drain_ms: u64,
    /// Links over TCP.
    pub tcp: TcpOptions,
}

/// What an operator may change while the relay runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Links at once. Those that are there stay when there are more.
    pub max_links: usize,
    /// Bytes per second of one node, each way, when its hub does not say; 0: no limit.
    pub bytes_per_second: u64,
    /// How long links have to move when the relay drains.
    pub drain_ms: u64,
}

/// Where sealed chunks outlive the process.
#[derive(Debug, Clone)]
pub struct CacheDisk {
    /// The folder, which is made when there is none.
    pub folder: PathBuf,
    /// What it may take, at least [`chunk::disk::LEAST_BYTES`].
    pub bytes: u64,
}

/// How links over TCP come in.
#[derive(Debug, Clone, Default)]
pub struct TcpOptions {
    /// Where a web server that ends TLS passes WebSocket on to; none: TLS on the port that UDP has.
    pub behind_proxy: Option<SocketAddr>,
    /// A certificate for TLS; none: one is made.
    pub certificate: Option<CertificateFiles>,
    /// What the relay is called, for a certificate that is made.
    pub names: Vec<String>,
}

/// Why a relay cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The UDP port cannot be had.
    #[error("cannot listen on UDP {address}; is another program using the port?")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The TCP port cannot be had.
    #[error("cannot listen on TCP {address}; if a web server has the port, let it pass WebSocket on and say where with --behind-proxy")]
    BindTcp {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// There is no certificate for links over TCP.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// TLS refuses the configuration.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The cache's disk.
    #[error(transparent)]
    Cache(#[from] chunk::disk::DiskError),
}

/// A running relay. Cheap to share.
#[derive(Debug)]
pub struct Relay {
    id: RelayId,
    region: String,
    endpoint: Endpoint,
    /// For callers to whom the way takes larger packets.
    server_near: Arc<ServerConfig>,
    socket: Arc<RelaySocket>,
    tenants: Tenants,
    links: Mutex<HashMap<Route, LinkHandle>>,
    next_link: AtomicU64,
    max_links: AtomicUsize,
    /// Of nodes whose ticket says nothing.
    bytes_per_second: Arc<AtomicU64>,
    drain_ms: AtomicU64,
    chunks: Arc<chunk::Cache>,
    door: Mutex<Option<Door>>,
    /// Where it listens for tunnels, and whether they are TLS here.
    tcp: (SocketAddr, bool),
    refusals: Refusals,
    pub(crate) reloads: Reloads,
    load: Load,
    lifecycle: OnceLock<Lifecycle>,
    pub(crate) stopped: CancellationToken,
}

impl Relay {
    /// Binds the port, UDP and TCP. Nothing is accepted before [`Relay::run`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind(options: Options) -> Result<Arc<Self>, StartError> {
        let bind_error = |source| StartError::Bind { address: options.listen, source };
        let id = RelayId::from(options.key.public());
        let tag = RelayTag::of(id.key());
        let (udp, listeners) = bind(options.listen, options.tcp.behind_proxy)?;
        let tls = match options.tcp.behind_proxy {
            Some(_) => None,
            None => Some(Tls(certificate::acceptor(options.tcp.certificate, options.tcp.names)?)),
        };
        let socket = Arc::new(RelaySocket::new(udp, tag));
        // From the identity: a restarted relay can tell its old links at once that they are gone.
        let reset_key = blake3::derive_key("cortex-mesh v1 relay reset key", &options.key.to_seed());
        let server = quic::server_config(&options.key, Purpose::Link)?;
        let mut server_near = server.clone();
        server_near.transport_config(quic::accepted_link(limits::LARGEST_PACKET_BYTES));
        let endpoint = Endpoint::new_with_abstract_socket(
            quic::endpoint_config(Prefix::Relay(tag), &reset_key),
            Some(server),
            socket.clone(),
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(bind_error)?;
        let tcp =
            listeners.first().ok_or_else(|| bind_error(std::io::ErrorKind::AddrNotAvailable.into()))?.local_addr().map_err(bind_error)?;
        let tenants = Tenants::new(&options.hubs);
        let disk = options.cache_disk.map(|disk| chunk::disk::Disk::open(&disk.folder, disk.bytes, tenants.numbers())).transpose()?;
        Ok(Arc::new(Self {
            id,
            region: options.region,
            endpoint,
            server_near: Arc::new(server_near),
            socket,
            tenants,
            links: Mutex::default(),
            next_link: AtomicU64::new(1),
            max_links: options.max_links.into(),
            bytes_per_second: Arc::new(options.bytes_per_second.into()),
            drain_ms: options.drain_ms.into(),
            chunks: chunk::Cache::new(options.cache_bytes, disk),
            tcp: (tcp, tls.is_some()),
            refusals: Refusals::default(),
            reloads: Reloads::default(),
            load: Load::default(),
            lifecycle: OnceLock::new(),
            door: Mutex::new(Some(Door { listeners, tls })),
            stopped: CancellationToken::new(),
        }))
    }

    /// The relay's identity.
    pub fn id(&self) -> RelayId {
        self.id
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// What passed and what was dropped so far.
    pub fn counters(&self) -> &socket::Counters {
        &self.socket.counters
    }

    /// The sealed chunks that it holds, and what passed of them.
    pub fn chunks(&self) -> &chunk::Cache {
        &self.chunks
    }

    /// Links of nodes and hubs right now.
    pub fn links(&self) -> usize {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Links of nodes right now.
    pub fn nodes(&self) -> usize {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|link| !link.is_hub).count()
    }

    /// Links right now, by who is there and what carries them.
    fn links_by_carrier(&self) -> [((&'static str, &'static str), usize); 4] {
        let mut counts = [(("node", "udp"), 0), (("node", "tcp"), 0), (("hub", "udp"), 0), (("hub", "tcp"), 0)];
        for link in self.links.lock().unwrap_or_else(PoisonError::into_inner).values() {
            counts[2 * usize::from(link.is_hub) + usize::from(link.is_tunnelled())].1 += 1;
        }
        counts
    }

    /// The time over which all nodes should spread what they all have to do now: 2 ms each, and at most this.
    fn spread_ms(&self, most: u64) -> u64 {
        (self.links() as u64 * 2).min(most)
    }

    /// Links and strangers over TCP right now.
    pub fn tunnels(&self) -> usize {
        self.socket.tunnels()
    }

    /// The hubs this relay serves, and whether each is connected.
    pub fn hubs(&self) -> Vec<(HubId, bool)> {
        self.tenants.all().iter().map(|tenant| (tenant.hub(), tenant.authority().is_some())).collect()
    }

    /// Changes what may be changed while it runs: new links, and those that live, go by it from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.max_links.store(limits.max_links, Relaxed);
        self.bytes_per_second.store(limits.bytes_per_second, Relaxed);
        self.drain_ms.store(limits.drain_ms, Relaxed);
    }

    /// Serves these hubs and no others from now on: links of the others, and of their nodes, are ended. Returns how many came and went.
    pub fn set_hubs(&self, hubs: &[HubId]) -> (usize, usize) {
        let (added, removed) = self.tenants.keep(hubs);
        if let Some(disk) = self.chunks.disk() {
            disk.serve(self.tenants.numbers());
        }
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let strangers = links.values().filter(|link| removed.iter().any(|tenant| tenant.index() == link.tenant));
        strangers.for_each(|link| link.close(CloseCode::Refused));
        (added, removed.len())
    }

    /// How much of what it can carry it carries, in percent.
    pub fn load(&self) -> u32 {
        self.load.percent(self.links(), self.max_links.load(Relaxed))
    }

    /// Whether links are being told to go elsewhere.
    pub fn is_draining(&self) -> bool {
        self.lifecycle.get().is_some_and(Lifecycle::is_draining)
    }

    /// Serves a hub in this process: its packets cross in memory, and it is asked about strangers directly. `None` when the hub is not among those this relay serves.
    pub fn attach_hub(
        self: &Arc<Self>,
        hub: &HubId,
        ticket_key: StatedKey,
        instance: u64,
        authority: Arc<dyn Authority>,
    ) -> Option<Arc<LocalPort>> {
        let tenant = self.tenants.get(hub)?;
        let route = Route::of(hub.key());
        let port = LocalPort::new(self.socket.clone(), tenant.index());
        self.socket.table_mut().admit_local(route, tenant.index(), port.clone());
        tenant.connect(0, ticket_key.key, instance, authority);
        Some(port)
    }

    /// Accepts links until the lifecycle stops. While draining, links are told to go elsewhere.
    pub async fn run(self: Arc<Self>, lifecycle: Lifecycle) {
        let _ = self.lifecycle.set(lifecycle.clone());
        let sweeper = tokio::spawn(link::follow_moves(self.clone()));
        if let Some(door) = self.door.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tunnel::serve(&self, door, &lifecycle);
        }
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                () = lifecycle.stopping() => None,
            };
            let Some(incoming) = incoming else { break };
            link::accept(&self, incoming, &lifecycle);
        }
        sweeper.abort();
        self.endpoint.close(VarInt::from_u32(CloseCode::ShuttingDown.number()), CloseCode::ShuttingDown.text().as_bytes());
        // Long enough for the close frames to leave.
        let _ = tokio::time::timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
        self.stopped.cancel();
    }

    /// Ends the link of a node, as its hub demands. The close code tells the node why.
    pub fn cut(&self, hub: &HubId, route: Route, code: CloseCode) {
        let Some(tenant) = self.tenants.get(hub) else { return };
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&route).filter(|link| link.tenant == tenant.index()) {
            link.close(code);
        }
    }

    /// Another relay does not answer a hub that is served here: its nodes hear of it.
    pub fn tell_silent(&self, hub: &HubId, other: &RelayId) {
        if let Some(tenant) = self.tenants.get(hub) {
            tenant.tell_silent(other.key().to_bytes());
        }
    }

    /// Takes a caller, with packets as large as the way to it allows.
    fn take(&self, incoming: Incoming) -> Result<Connecting, ConnectionError> {
        match quic::packet_bytes(incoming.remote_address()) {
            quic::PACKET_BYTES => incoming.accept(),
            _ => incoming.accept_with(self.server_near.clone()),
        }
    }

    /// No node may ask for chunks of these sessions any more, as their hub says: what is kept of them goes. `deleted`: they never come back, and tickets that name them count for nothing.
    pub fn forget(&self, hub: &HubId, sessions: &[SessionId], deleted: bool) {
        let Some(tenant) = self.tenants.get(hub) else { return };
        if deleted {
            let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.values().filter(|link| link.tenant == tenant.index()).for_each(|link| link.forget(sessions));
        }
        sessions.iter().for_each(|session| self.chunks.purge(tenant.index(), *session));
    }

    fn next_link(&self) -> u64 {
        self.next_link.fetch_add(1, Relaxed)
    }
}

/// Binds UDP and TCP to the same port number; the system chooses one that is free in both when it is 0.
fn bind(listen: SocketAddr, behind_proxy: Option<SocketAddr>) -> Result<(Arc<Udp>, Vec<TcpListener>), StartError> {
    const TRIES: u32 = 16;
    let udp_error = |source| StartError::Bind { address: listen, source };
    let mut tries = 0;
    loop {
        let udp = Udp::bind(listen).map_err(udp_error)?;
        let mut own = listen;
        own.set_port(udp.local_addr().map_err(udp_error)?.port());
        let address = behind_proxy.unwrap_or(own);
        match bind_tcp(address) {
            Err(_) if listen.port() == 0 && behind_proxy.is_none() && tries < TRIES => tries += 1,
            bound => {
                let twin = udp::twin(address, address.port()).and_then(|twin| bind_tcp(twin).ok());
                return Ok((udp, [bound?].into_iter().chain(twin).collect()));
            }
        }
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener, StartError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            socket2::SockRef::from(&socket).set_only_v6(true)?;
        }
        socket.bind(address)?;
        socket.listen(1024)
    };
    listen().map_err(|source| StartError::BindTcp { address, source })
}
