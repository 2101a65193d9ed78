//! The network side of the peer: a link to a relay, and through it the end-to-end connection to the hub, for as long as the program runs.
//!
//! The two live and die apart. A link that ends is dialled again, here or at the next relay, while the connection to the hub goes on; a hub that restarts is connected to again over the
//! same link. Running tasks notice neither. Waits between tries have full jitter; a refusal is retried slowly, because only a person can
//! change it.
//!
//! [`session`] answers for the connection to the hub.

pub mod session;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cortex_runtime::{
    chunk::ChunkClient,
    clock::{self, Backoff},
    lifecycle::Lifecycle,
    link::{self, Link, LinkError},
    quic::{self, Prefix},
    socket::{NodeSocket, Role},
};
use cortex_wire::{
    close::CloseCode,
    id::{HubId, NodeId, RelayId},
    invite::{self, RelayEndpoint, Terms},
    key::SecretKey,
    route::{RelayTag, Route},
    schema::{Capabilities, HealthReport, Invite, LinkRefused, SandboxPolicy, Signed, link_hello::Credential},
    text,
};
use quinn::{Endpoint, VarInt};
use tokio::sync::watch;

use crate::{
    mesh::session::{Ended, RegisterError, Session},
    mirror::Mirror,
    task::Tasks,
};

/// What this program calls itself towards others.
pub const AGENT: &str = concat!("cortex-peer ", env!("CARGO_PKG_VERSION"));

/// A refusal that only a person can change is tried again this seldom at first.
const SLOWLY: Duration = Duration::from_secs(30);
/// A connection that healthy may start its next outage with the shortest wait.
const HEALTHY: Duration = Duration::from_secs(30);

/// Keeps what a registration taught.
pub type Remember = Box<dyn FnMut(&Registered) -> anyhow::Result<()> + Send>;

/// What the network side needs.
pub struct MeshOptions {
    /// The node's identity.
    pub key: SecretKey,
    /// The pinned hub.
    pub hub: HubId,
    /// Where it can be reached, most wanted first.
    pub relays: Vec<RelayEndpoint>,
    /// To be redeemed, when the node is not enrolled yet.
    pub invite: Option<(Invite, Terms)>,
    /// A wish for the node's name.
    pub name: String,
    /// Sequences of the hub's keys seen so far: nothing rolls back.
    pub sequences: KeySequences,
    /// The node's own limits, shown to its owner.
    pub ceiling: SandboxPolicy,
    /// What the node is and has; sent again when it changes.
    pub capabilities: watch::Receiver<Capabilities>,
    /// Fills in what the machine does right now.
    pub health: Box<dyn FnMut() -> HealthReport + Send>,
    /// Runs tasks.
    pub tasks: Tasks,
    /// Keeps workspaces in sync.
    pub mirror: Mirror,
    /// Called after each registration with what should be kept for the next start.
    pub remember: Remember,
    /// Tries in a row before giving up; `None`: never.
    pub max_retries: Option<u32>,
    /// Start and stop.
    pub lifecycle: Lifecycle,
}

/// The highest sequence of each of the hub's keys that this node has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeySequences {
    /// Of the transport key.
    pub transport: u64,
    /// Of the task key.
    pub task: u64,
}

/// What a registration taught.
#[derive(Debug, Clone)]
pub struct Registered {
    /// The hub.
    pub hub: HubId,
    /// What people call it.
    pub hub_name: String,
    /// This node's id.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Where the hub can be reached.
    pub relays: Vec<RelayEndpoint>,
    /// Of the hub's keys.
    pub sequences: KeySequences,
    /// The owner still has to approve the node.
    pub pending: bool,
}

/// Why the network side ended.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The socket or TLS.
    #[error("cannot set up the network: {0}")]
    Setup(String),
    /// Refused more often than `max_retries` allows.
    #[error("the hub refuses this node ({code}): {reason}")]
    Refused {
        /// Stable code.
        code: String,
        /// For people.
        reason: String,
    },
    /// Not reached, more often than `max_retries` allows.
    #[error("cannot reach the hub: {0}; `cortex-peer doctor` checks why")]
    Unreachable(String),
}

/// Keeps the node connected until the lifecycle ends.
///
/// # Errors
/// [`MeshError`]; without `max_retries` only [`MeshError::Setup`].
pub async fn run(options: MeshOptions) -> Result<(), MeshError> {
    let lifecycle = options.lifecycle.clone();
    let mut mesh = Mesh::new(options)?;
    let outcome = tokio::select! {
        outcome = mesh.keep_connected() => outcome,
        () = lifecycle.stopping() => Ok(()),
    };
    mesh.endpoint.close(VarInt::from_u32(CloseCode::Done.number()), b"stopped");
    let _ = tokio::time::timeout(Duration::from_millis(300), mesh.endpoint.wait_idle()).await;
    outcome
}

/// What a relay answered to [`probe`].
#[derive(Debug, Clone)]
pub struct Probed {
    /// The relay's clock; 0 when it did not say.
    pub server_time_ms: i64,
    /// Why it does not admit this key, when it does not.
    pub refused: Option<LinkRefused>,
}

/// Asks a relay for admission, for `cortex-peer doctor`: a real handshake with its pinned key. A refusal is an answer too.
///
/// # Errors
/// Why there was no answer.
pub async fn probe(relay: &RelayEndpoint, hub: &HubId, key: &SecretKey) -> Result<Probed, LinkError> {
    let failed = |source| LinkError::Resolve { address: relay.address.clone(), source };
    let socket = NodeSocket::bind(Role::Peer).map_err(failed)?;
    let endpoint = endpoint(&socket, key).map_err(failed)?;
    let address = link::resolve(relay).await?;
    let virtual_address = socket.relay_path(RelayTag::of(relay.id.key()), address);
    match link::dial(&endpoint, virtual_address, relay, key, link::hello(AGENT, hub, None)).await {
        Ok(link) => Ok(Probed { server_time_ms: link.welcome.server_time_ms, refused: None }),
        Err(LinkError::Refused(refused)) => Ok(Probed { server_time_ms: 0, refused: Some(refused) }),
        Err(error) => Err(error),
    }
}

fn endpoint(socket: &Arc<NodeSocket>, key: &SecretKey) -> std::io::Result<Endpoint> {
    let prefix = Prefix::Route(Route::of(&key.public()));
    let config = quic::endpoint_config(prefix, &clock::random());
    Endpoint::new_with_abstract_socket(config, None, socket.clone(), Arc::new(quinn::TokioRuntime))
}

/// The state of the network side.
pub(crate) struct Mesh {
    pub(crate) options: MeshOptions,
    pub(crate) endpoint: Endpoint,
    socket: Arc<NodeSocket>,
    /// What the hub signs tasks for; another one for each connection.
    pub(crate) boot_nonce: [u8; 32],
    /// The relay that is tried next, as an index.
    next_relay: usize,
    /// The last ticket, and the relay it holds for.
    pub(crate) ticket: Option<(RelayId, Signed)>,
    backoff: Backoff,
    tries: u32,
}

/// A link with the relay it leads to.
pub(crate) struct Uplink {
    pub(crate) relay: RelayEndpoint,
    pub(crate) link: Link,
    pub(crate) virtual_address: std::net::SocketAddr,
}

impl Mesh {
    fn new(options: MeshOptions) -> Result<Self, MeshError> {
        let setup = |error: std::io::Error| MeshError::Setup(error.to_string());
        let socket = NodeSocket::bind(Role::Peer).map_err(setup)?;
        let endpoint = endpoint(&socket, &options.key).map_err(setup)?;
        Ok(Self {
            options,
            endpoint,
            socket,
            boot_nonce: clock::random(),
            next_relay: 0,
            ticket: None,
            backoff: Backoff::default(),
            tries: 0,
        })
    }

    async fn keep_connected(&mut self) -> Result<(), MeshError> {
        let mut session: Option<Session> = None;
        loop {
            let mut uplink = self.dial_until_linked().await?;
            let instance = uplink.link.welcome.hub_instance;
            if session.as_ref().is_some_and(|session| instance != 0 && session.instance != instance) {
                tracing::info!("the hub was restarted; connecting to it again");
                self.options.tasks.connected(false);
                if let Some(old) = session.take() {
                    old.end().await;
                }
            }
            if self.live_on(&mut uplink, &mut session).await? == Next::Stop {
                return Ok(());
            }
        }
    }

    /// Lives on one link, through as many connections to the hub as it takes.
    async fn live_on(&mut self, uplink: &mut Uplink, session: &mut Option<Session>) -> Result<Next, MeshError> {
        let since = Instant::now();
        loop {
            let mut live = match session.take() {
                Some(live) => live,
                None => match self.register(uplink).await {
                    Ok(live) => live,
                    Err(RegisterError::Refused { code, reason }) => {
                        self.refused(&code, &reason, SLOWLY).await?;
                        if uplink.link.connection.close_reason().is_some() {
                            return Ok(Next::Dial);
                        }
                        continue;
                    }
                    Err(error) => {
                        let gone = uplink.link.connection.close_reason().is_some();
                        tracing::warn!(%error, "cannot connect to the hub");
                        self.missed(error.to_string()).await?;
                        if gone || error.is_silence() {
                            uplink.close(CloseCode::Done);
                            return Ok(Next::Dial);
                        }
                        continue;
                    }
                },
            };
            let ended = live.live(self, uplink).await;
            if since.elapsed() > HEALTHY {
                self.healthy();
            }
            match ended {
                Ended::Stop => {
                    live.say_goodbye().await;
                    return Ok(Next::Stop);
                }
                Ended::Link(reason) => {
                    tracing::warn!(relay = uplink.relay.address, reason, "the link to the relay has ended");
                    *session = Some(live);
                    return self.after_link(uplink).await;
                }
                Ended::Hub(reason) => {
                    tracing::warn!(reason, "the connection to the hub has ended");
                    self.options.tasks.connected(false);
                    live.end().await;
                    self.pause().await;
                }
                Ended::Both(reason) => {
                    tracing::warn!(reason, "relay and hub do not answer");
                    self.options.tasks.connected(false);
                    live.end().await;
                    uplink.close(CloseCode::Silent);
                    self.next_relay += 1;
                    self.pause().await;
                    return Ok(Next::Dial);
                }
            }
        }
    }

    /// What a relay's close code asks of us.
    async fn after_link(&mut self, uplink: &Uplink) -> Result<Next, MeshError> {
        let code = match uplink.link.connection.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => CloseCode::from_number(close.error_code.into_inner()),
            _ => None,
        };
        match code {
            Some(CloseCode::Superseded) => {
                let reason =
                    "another program with this node's key has connected; stop one of them, or give each machine its own state directory";
                self.refused("superseded", reason, Duration::from_secs(5)).await?;
            }
            Some(CloseCode::Revoked) => {
                self.refused("node_revoked", "this node was revoked or removed by its owner", Duration::from_secs(1)).await?;
            }
            _ => self.pause().await,
        }
        Ok(Next::Dial)
    }

    async fn dial_until_linked(&mut self) -> Result<Uplink, MeshError> {
        self.options.mirror.set_chunks(None);
        loop {
            let relays = &self.options.relays;
            let Some(relay) = relays.get(self.next_relay % relays.len().max(1)).cloned() else {
                return Err(MeshError::Setup("no relay is known; enrol with a new invite".into()));
            };
            match self.dial(&relay).await {
                Ok(uplink) => {
                    self.options.mirror.set_chunks(Some(Arc::new(ChunkClient::new(uplink.link.connection.clone()))));
                    tracing::info!(relay = relay.address, observed = uplink.link.welcome.observed_address, "linked to a relay");
                    return Ok(uplink);
                }
                Err(LinkError::Refused(refused)) => {
                    self.ticket = None;
                    let wait = Duration::from_millis(refused.retry_after_ms.min(600_000));
                    self.next_relay += 1;
                    self.refused(&text::clean(&refused.code, 64), &text::clean(&refused.reason, 512), wait).await?;
                }
                Err(error) => {
                    tracing::warn!(relay = relay.address, %error, "cannot link to the relay");
                    self.next_relay += 1;
                    self.missed(error.to_string()).await?;
                }
            }
        }
    }

    async fn dial(&mut self, relay: &RelayEndpoint) -> Result<Uplink, LinkError> {
        let address = link::resolve(relay).await?;
        let tag = RelayTag::of(relay.id.key());
        let virtual_address = self.socket.relay_path(tag, address);
        let ticket = self.ticket.as_ref().filter(|(id, _)| *id == relay.id).map(|(_, ticket)| Credential::Ticket(ticket.clone()));
        let credential = match &self.options.invite {
            Some((invite, _)) => Some(Credential::Invite(invite::proof(invite))),
            None => ticket,
        };
        let hello = link::hello(AGENT, &self.options.hub, credential);
        let link = link::dial(&self.endpoint, virtual_address, relay, &self.options.key, hello).await?;
        self.socket.activate(tag);
        Ok(Uplink { relay: relay.clone(), link, virtual_address })
    }

    pub(crate) fn healthy(&mut self) {
        self.backoff.reset();
        self.tries = 0;
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.backoff.next_wait()).await;
    }

    /// Counts a try that reached nobody, and waits.
    async fn missed(&mut self, error: String) -> Result<(), MeshError> {
        self.tries += 1;
        if self.options.max_retries.is_some_and(|most| self.tries > most) {
            return Err(MeshError::Unreachable(error));
        }
        self.pause().await;
        Ok(())
    }

    /// Counts a refusal, says it, and waits at least `wait`, spread by half of it.
    async fn refused(&mut self, code: &str, reason: &str, wait: Duration) -> Result<(), MeshError> {
        self.tries += 1;
        if self.options.max_retries.is_some_and(|most| self.tries > most) {
            return Err(MeshError::Refused { code: code.into(), reason: reason.into() });
        }
        let spread = f64::from(u16::from_le_bytes(clock::random())) / f64::from(u16::MAX);
        let wait = wait.mul_f64(1.0 + spread / 2.0) + self.backoff.next_wait();
        tracing::warn!(code, reason, retry_in_s = wait.as_secs(), "refused; trying again later");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

impl Uplink {
    pub(crate) fn close(&self, code: CloseCode) {
        self.link.connection.close(VarInt::from_u32(code.number()), code.text().as_bytes());
    }
}

/// What to do after a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Dial,
    Stop,
}
