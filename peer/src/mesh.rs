//! The network side of the peer: links to relays, and through one of them the end-to-end connection to the hub, for as long as the program runs.
//!
//! The two live and die apart. When a link ends, the connection to the hub goes on by the other one, or by the next that is dialled; a hub that restarts is connected to again over the
//! same links. Running tasks notice neither. Waits between tries have full jitter; a refusal is retried slowly, because only a person can
//! change it.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`session`] | the connection to the hub |
//! | `links` | the links: what happens on them, and noticing that one has died |
//! | `paths` | the rules: which relays are linked, and which one carries (pure) |
//! | `uplink` | one link, from the dial to its end |
//! | `direct` | the rules of a direct way to the hub (pure) |
//! | `wake` | the machine has slept |

mod direct;
mod links;
mod paths;
pub mod session;
pub mod shown;
mod uplink;
mod wake;

use std::{sync::Arc, time::Duration};

use cortex_runtime::{
    clock::{self, Backoff},
    lifecycle::Lifecycle,
    link::{self, LinkError},
    quic::{self, Prefix},
    reach::{self, Network},
    socket::{NodeSocket, Role},
};
use cortex_wire::{
    close::CloseCode,
    id::{HubId, NodeId},
    invite::{RelayEndpoint, Terms},
    key::SecretKey,
    route::Route,
    schema::{Capabilities, HealthReport, Invite, LinkRefused, SandboxPolicy},
};
use quinn::{Endpoint, VarInt};
use tokio::sync::watch;

use crate::{
    mesh::{
        links::{Home, Links, LinksOptions},
        session::{Ended, RegisterError},
        uplink::Dialler,
    },
    mirror::Mirror,
    state::Way,
    task::Tasks,
};

/// What this program calls itself towards others.
pub const AGENT: &str = concat!("cortex-peer ", env!("CARGO_PKG_VERSION"));

/// A refusal that only a person can change is tried again this seldom at first.
const SLOWLY: Duration = Duration::from_secs(30);
/// A connection that healthy may start its next outage with the shortest wait.
const HEALTHY: Duration = Duration::from_secs(30);
/// A relay that says that the hub is away is believed for so long.
const HUB_AWAY: Duration = Duration::from_secs(5);

/// Keeps what a registration taught.
pub type Remember = Box<dyn FnMut(&Registered) -> anyhow::Result<()> + Send>;

/// Shows by which way packets go.
pub type Show = Box<dyn FnMut(Option<&Way>) + Send>;

/// What the network side needs.
pub struct MeshOptions {
    /// The node's identity.
    pub key: SecretKey,
    /// The pinned hub.
    pub hub: HubId,
    /// Where it can be reached, most wanted first.
    pub relays: Vec<RelayEndpoint>,
    /// These relays are this machine's choice: those that the hub names do not count.
    pub fixed_relays: bool,
    /// Shows people which links there are.
    pub show_links: ShowLinks,
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
    /// Called with the way that packets go whenever that is another, and with nothing when there is no connection.
    pub show: Show,
    /// How relays are reached.
    pub network: Arc<Network>,
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

/// Takes what there is to show of the links.
pub type ShowLinks = std::sync::Arc<dyn Fn(&shown::Shown) + Send + Sync>;

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
pub async fn probe(relay: &RelayEndpoint, hub: &HubId, key: &SecretKey, network: &Arc<Network>) -> Result<Probed, LinkError> {
    let failed = |source| LinkError::Resolve { address: relay.address.clone(), source };
    let socket = NodeSocket::bind(Role::Peer).map_err(failed)?;
    let endpoint = endpoint(&socket, key).map_err(failed)?;
    match reach::reach(&endpoint, &socket, network, relay, key, link::hello(AGENT, hub, None)).await {
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
    pub(crate) dialler: Dialler,
    pub(crate) links: Links,
    /// What the hub signs tasks for; another one for each connection.
    pub(crate) boot_nonce: [u8; 32],
    backoff: Backoff,
    tries: u32,
}

impl Mesh {
    fn new(options: MeshOptions) -> Result<Self, MeshError> {
        let setup = |error: std::io::Error| MeshError::Setup(error.to_string());
        let socket = NodeSocket::bind(Role::Peer).map_err(setup)?;
        let endpoint = endpoint(&socket, &options.key).map_err(setup)?;
        let dialler =
            Dialler { endpoint: endpoint.clone(), socket, key: options.key.clone(), hub: options.hub, network: options.network.clone() };
        let links = Links::start(LinksOptions {
            dialler: dialler.clone(),
            relays: options.relays.clone(),
            fixed: options.fixed_relays,
            show: options.show_links.clone(),
            invite: options.invite.as_ref().map(|(invite, _)| invite.clone()),
            mirror: options.mirror.clone(),
            max_retries: options.max_retries,
        });
        Ok(Self { options, endpoint, dialler, links, boot_nonce: clock::random(), backoff: Backoff::default(), tries: 0 })
    }

    async fn keep_connected(&mut self) -> Result<(), MeshError> {
        loop {
            let home = self.home().await?;
            let mut live = match self.register(&home).await {
                Ok(live) => live,
                Err(RegisterError::Moved) => continue,
                Err(RegisterError::Refused { code, reason }) => {
                    self.refused(&code, &reason).await?;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot connect to the hub");
                    if error.is_silence() {
                        self.links.unheard();
                    }
                    self.missed(error.to_string()).await?;
                    continue;
                }
            };
            let ended = live.live(self).await;
            (self.options.show)(None);
            match ended {
                Ended::Stop => {
                    live.say_goodbye().await;
                    return Ok(());
                }
                Ended::Hub(reason) => {
                    tracing::warn!(reason, "the connection to the hub has ended");
                    self.options.tasks.connected(false);
                    self.links.parted().await;
                    live.end().await;
                    self.pause().await;
                }
                Ended::Restarted => {
                    tracing::info!("the hub was restarted; connecting to it again");
                    self.options.tasks.connected(false);
                    self.links.parted().await;
                    live.end().await;
                    // All of its nodes hear of it at the same time.
                    let spread = self.links.view().borrow().spread;
                    tokio::time::sleep(spread.mul_f64(clock::jitter())).await;
                }
            }
        }
    }

    /// Waits for a link. One whose relay says that the hub is away is tried all the same after a while: it may be mistaken.
    async fn home(&mut self) -> Result<Home, MeshError> {
        let mut view = self.links.view();
        let patience = tokio::time::sleep(HUB_AWAY);
        tokio::pin!(patience);
        loop {
            let now = view.borrow_and_update().clone();
            if let Some(why) = now.gave_up {
                return Err(why.into());
            }
            if let Some(home) = now.home.filter(|home| home.hub_online || patience.is_elapsed()) {
                return Ok(home);
            }
            tokio::select! {
                changed = view.changed() => changed.map_err(|_| MeshError::Setup("the links have ended".into()))?,
                () = &mut patience, if !patience.is_elapsed() => {}
            }
        }
    }

    pub(crate) fn healthy(&mut self) {
        self.backoff.reset();
        self.tries = 0;
        self.links.healthy();
    }

    /// Waits, but not longer than until the hub has come back or packets go another way.
    async fn pause(&mut self) {
        let wait = self.backoff.next_wait();
        self.wait_for_news(wait).await;
    }

    async fn wait_for_news(&mut self, wait: Duration) {
        let mut view = self.links.view();
        let known = |view: &links::View| (view.epoch, view.instance, view.home.as_ref().is_some_and(|home| home.hub_online));
        let before = known(&view.borrow_and_update());
        let _ = tokio::time::timeout(wait, view.wait_for(|view| known(view) != before)).await;
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

    /// Counts a refusal by the hub, says it, and waits long, spread by half of it.
    async fn refused(&mut self, code: &str, reason: &str) -> Result<(), MeshError> {
        self.tries += 1;
        if self.options.max_retries.is_some_and(|most| self.tries > most) {
            return Err(MeshError::Refused { code: code.into(), reason: reason.into() });
        }
        let wait = SLOWLY.mul_f64(1.0 + clock::jitter() / 2.0) + self.backoff.next_wait();
        tracing::warn!(code, reason, retry_in_s = wait.as_secs(), "refused; trying again later");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What the other side said when it closed, or what broke.
pub(crate) fn closed(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            CloseCode::from_number(close.error_code.into_inner()).map_or_else(|| error.to_string(), |code| code.text().to_owned())
        }
        quinn::ConnectionError::Reset => "the other side was restarted".into(),
        other => other.to_string(),
    }
}
