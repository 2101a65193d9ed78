//! The way to a relay, whatever the network lets through: UDP first, a [`Tunnel`] over TCP beside it when UDP does not answer at once, and back to UDP when it does.
//!
//! Both ways are tried with a QUIC handshake that proves the relay's pinned key, so what wins can carry a link. A relay that answers over UDP, only slowly, is not asked over TCP beside it, and is
//! waited for: when many come at once, each further try would make all of them slower. A link that stands is looked after: when
//! nothing comes back over UDP a tunnel takes over, and from a tunnel UDP is tried from time to time, ever more seldom where it never works. The link and the
//! end-to-end connection go on; the relay sees a link that has moved.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cortex_wire::{
    close::CloseCode,
    invite::RelayEndpoint,
    key::SecretKey,
    limits,
    route::RelayTag,
    schema::{LinkHello, link_hello::Credential},
};
use quinn::{Connection, Endpoint, VarInt};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    time::{sleep, sleep_until, timeout},
};

use crate::{
    addresses,
    clock::Backoff,
    link::{self, AbortOnDrop, Link, LinkError},
    proxy::{Proxies, ProxyError},
    quic,
    silence::Silence,
    socket::{Carrier, NodeSocket},
    tunnel::Tunnel,
};

/// How far UDP is ahead in the race, and by how much more when something has come back.
const HEAD_START: Duration = Duration::from_millis(250);
const ANSWERED: Duration = Duration::from_secs(3);
/// A relay from which nothing at all has come over UDP by then is given up there.
const SILENT: Duration = Duration::from_secs(5);
/// How far the address that the system prefers, of IPv4 and IPv6, is ahead of the other.
const FAMILY: Duration = Duration::from_millis(300);
/// A try of a carrier takes no longer.
const TRIAL: Duration = Duration::from_secs(3);
/// What the carrier before still brings counts for so long.
const GRACE: Duration = Duration::from_secs(2);
/// A link over UDP that has asked and heard nothing for so long is asked once more; after as long again, it is silent.
const LOOK: Duration = Duration::from_millis(500);
/// UDP is tried this seldom at last.
const SELDOM: Duration = Duration::from_secs(600);
/// UDP that worked for so long may be tried as soon as at first when it is lost again.
const HEALTHY: Duration = Duration::from_secs(60);

/// How programs reach relays, in their settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// What may be used.
    pub transport: Transport,
    /// For TCP; none: the environment's.
    pub proxy: Option<String>,
    /// Where no proxy is used; none: the environment's.
    pub no_proxy: Option<String>,
    /// How soon UDP is tried again while TCP is used; later tries double it.
    pub udp_retry_s: u32,
    /// Whether hub and node may send each other packets directly, where that works.
    pub direct: bool,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { transport: Transport::Auto, proxy: None, no_proxy: None, udp_retry_s: 30, direct: true }
    }
}

/// What may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// UDP, and TCP where it does not work.
    #[default]
    Auto,
    /// UDP only.
    Udp,
    /// TCP only.
    Tcp,
}

/// The settings as they are used.
#[derive(Debug)]
pub struct Network {
    transport: Transport,
    proxies: Proxies,
    udp_retry: Duration,
    direct: bool,
}

impl Network {
    /// Takes the settings over, and the environment where they say nothing.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub fn new(config: &NetworkConfig) -> Result<Arc<Self>, ProxyError> {
        let proxies = Proxies::new(config.proxy.as_deref(), config.no_proxy.as_deref(), |name| std::env::var(name).ok())?;
        let udp_retry = Duration::from_secs(config.udp_retry_s.max(1).into());
        let direct = config.direct && config.transport != Transport::Tcp;
        Ok(Arc::new(Self { transport: config.transport, proxies, udp_retry, direct }))
    }

    /// Whether packets may go directly between hub and node.
    pub fn allows_direct(&self) -> bool {
        self.direct
    }

    /// The proxies.
    pub fn proxies(&self) -> &Proxies {
        &self.proxies
    }
}

impl Default for Network {
    fn default() -> Self {
        Self { transport: Transport::Auto, proxies: Proxies::none(), udp_retry: Duration::from_secs(30), direct: true }
    }
}

/// Links to a relay, and looks after what carries the link as long as that lives.
///
/// # Errors
/// [`LinkError`].
pub async fn reach(
    endpoint: &Endpoint,
    socket: &Arc<NodeSocket>,
    network: &Arc<Network>,
    relay: &RelayEndpoint,
    key: &SecretKey,
    hello: LinkHello,
) -> Result<Link, LinkError> {
    let streams = if matches!(hello.credential, Some(Credential::Hub(_))) { limits::RELAY_CHUNK_STREAMS } else { limits::CHUNK_STREAMS };
    let way = Way {
        endpoint: endpoint.clone(),
        socket: socket.clone(),
        network: network.clone(),
        relay: relay.clone(),
        tag: RelayTag::of(relay.id.key()),
        key: key.clone(),
    };
    let answers = socket.watch(way.tag);
    let connection = way.race(&answers).await?;
    let mut link = link::greet(connection, relay, hello).await?;
    if network.transport == Transport::Auto {
        let keeper = Keeper { way, connection: link.connection.clone(), streams, moves: 0 };
        link.keeper = Some(AbortOnDrop(tokio::spawn(keeper.keep())));
    }
    Ok(link)
}

/// What leads to one relay.
struct Way {
    endpoint: Endpoint,
    socket: Arc<NodeSocket>,
    network: Arc<Network>,
    relay: RelayEndpoint,
    tag: RelayTag,
    key: SecretKey,
}

impl Way {
    /// The first handshake that completes decides what carries the path.
    async fn race(&self, answers: &Silence) -> Result<Connection, LinkError> {
        let hurry = Notify::new();
        let by_udp = async {
            let addresses = link::resolve(&self.relay).await?;
            let (last, sooner) = addresses.split_last().ok_or_else(|| self.silent())?;
            for address in sooner {
                if let Ok(Ok(connection)) = timeout(FAMILY, self.connect_by(Carrier::Udp(*address))).await {
                    return Ok(connection);
                }
            }
            self.connect_by(Carrier::Udp(*last)).await
        };
        let udp = async {
            let mut by_udp = std::pin::pin!(by_udp);
            match timeout(SILENT, &mut by_udp).await {
                Ok(connected) => connected,
                Err(_) if answers.has_heard() => by_udp.await,
                Err(_) => Err(self.silent()),
            }
        };
        let tcp = async {
            if self.network.transport == Transport::Auto {
                let is_hurried = timeout(HEAD_START, hurry.notified()).await.is_ok();
                if !is_hurried && answers.has_heard() {
                    let _ = timeout(ANSWERED, hurry.notified()).await;
                }
            }
            self.tried_tunnel().await
        };
        match self.network.transport {
            Transport::Udp => udp.await,
            Transport::Tcp => self.connect_by(tcp.await?).await,
            Transport::Auto => {
                let (mut udp, mut tcp) = (std::pin::pin!(udp), std::pin::pin!(tcp));
                let (mut no_udp, mut no_tcp) = (None, None);
                loop {
                    tokio::select! {
                        connected = &mut udp, if no_udp.is_none() => match connected {
                            Ok(connection) => return Ok(connection),
                            Err(error) => { hurry.notify_one(); no_udp = Some(error) }
                        },
                        tunnel = &mut tcp, if no_tcp.is_none() => match tunnel {
                            Ok(tunnel) => break self.connect_by(tunnel).await,
                            Err(error) => no_tcp = Some(error),
                        },
                        else => {
                            let (udp, tcp) = (no_udp.unwrap_or_else(|| self.silent()), no_tcp.unwrap_or_else(|| self.silent()));
                            break Err(LinkError::Nowhere { udp: Box::new(udp), tcp: Box::new(tcp) });
                        }
                    }
                }
            }
        }
    }

    fn silent(&self) -> LinkError {
        LinkError::Silent { address: self.relay.address.clone() }
    }

    /// Makes `carrier` the path's, and connects by it.
    async fn connect_by(&self, carrier: Carrier) -> Result<Connection, LinkError> {
        let packet_bytes = carrier.packet_bytes();
        let virtual_address = self.socket.carry(self.tag, carrier);
        link::connect(&self.endpoint, virtual_address, &self.relay, &self.key, packet_bytes).await
    }

    /// A tunnel that has shown that it leads to the relay.
    async fn tried_tunnel(&self) -> Result<Carrier, LinkError> {
        let tunnel = Tunnel::open(&self.relay.address, &self.network.proxies, self.socket.inbox()).await?;
        self.tried(Carrier::Tunnel(tunnel)).await
    }

    async fn tried_udp(&self) -> Result<Carrier, LinkError> {
        let mut tried = Err(self.silent());
        for address in link::resolve(&self.relay).await? {
            tried = self.tried(Carrier::Udp(address)).await;
            if tried.is_ok() {
                break;
            }
        }
        tried
    }

    async fn tried(&self, carrier: Carrier) -> Result<Carrier, LinkError> {
        let trial = self.socket.on_trial(self.tag, carrier.clone());
        let connect = link::connect(&self.endpoint, trial.virtual_address, &self.relay, &self.key, quic::PACKET_BYTES);
        let connection = timeout(TRIAL, connect).await.unwrap_or_else(|_| Err(self.silent()))?;
        connection.close(VarInt::from_u32(CloseCode::Done.number()), b"a trial");
        // Long enough for the close to leave by the way that it concerns.
        sleep(Duration::from_millis(5)).await;
        Ok(carrier)
    }
}

/// Looks after what carries a link.
struct Keeper {
    way: Way,
    connection: Connection,
    /// Of the link, as it was widened.
    streams: u32,
    moves: u32,
}

impl Keeper {
    async fn keep(mut self) {
        let closed = self.connection.clone();
        tokio::select! {
            _ = closed.closed() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        let mut pace = Pace::new(self.way.network.udp_retry);
        loop {
            sleep(GRACE).await;
            self.way.socket.forget_former(self.way.tag);
            match self.way.socket.carrier(self.way.tag) {
                Some(Carrier::Tunnel(tunnel)) => self.leave_tunnel(&tunnel, &mut pace).await,
                Some(Carrier::Udp(_)) => {
                    let since = Instant::now();
                    self.leave_udp().await;
                    if since.elapsed() > HEALTHY {
                        pace = Pace::new(self.way.network.udp_retry);
                    }
                }
                None => return,
            }
        }
    }

    /// Until a tunnel has taken over from UDP that brings nothing.
    async fn leave_udp(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let heard = self.silence().await;
            match self.way.tried_tunnel().await {
                Ok(tunnel) if self.received() == heard => return self.take(tunnel),
                // UDP is back already.
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(relay = self.way.relay.address, %error, "UDP brings nothing, and there is no tunnel either");
                    sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Until UDP has taken over from a tunnel, or another tunnel from one that broke.
    async fn leave_tunnel(&mut self, tunnel: &Tunnel, pace: &mut Pace) {
        let mut backoff = Backoff::default();
        let mut broken = false;
        loop {
            tokio::select! {
                () = tunnel.ended(), if !broken => broken = true,
                () = sleep(backoff.next_wait()), if broken => {}
                () = pace.due() => {}
                () = addresses::changed() => pace.reset(),
            }
            if pace.is_due() {
                let tried = self.way.tried_udp().await;
                // Also when it works: it may not for long.
                pace.slow_down();
                match tried {
                    Ok(udp) => return self.take(udp),
                    Err(error) => tracing::debug!(relay = self.way.relay.address, %error, "UDP still does not work"),
                }
            }
            if broken && let Ok(tunnel) = self.way.tried_tunnel().await {
                return self.take(tunnel);
            }
        }
    }

    fn take(&mut self, carrier: Carrier) {
        tracing::info!(relay = self.way.relay.address, carrier = carrier.label(), "the link goes on by another way");
        self.way.socket.carry(self.way.tag, carrier);
        self.moves += 1;
        quic::nudge(&self.connection, self.streams, self.moves);
    }

    fn received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Waits until packets of the link go out and nothing comes back, and says how many had come in before. Nobody wakes up while answers come.
    async fn silence(&mut self) -> u64 {
        let unanswered = self.way.socket.watch(self.way.tag);
        loop {
            let Some(since) = unanswered.since() else {
                unanswered.begun().await;
                continue;
            };
            sleep_until((since + LOOK).into()).await;
            if unanswered.since() != Some(since) {
                continue;
            }
            // What went out may be something that nobody answers. This is answered.
            let heard = self.received();
            self.moves += 1;
            quic::nudge(&self.connection, self.streams, self.moves);
            sleep(LOOK).await;
            if unanswered.since() == Some(since) {
                return heard;
            }
        }
    }
}

/// When UDP is tried again: ever more seldom, with some jitter.
#[derive(Debug)]
struct Pace {
    least: Duration,
    wait: Duration,
    at: Instant,
}

impl Pace {
    fn new(least: Duration) -> Self {
        Self { least, wait: least, at: Instant::now() + least }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.at
    }

    async fn due(&self) {
        tokio::time::sleep_until(self.at.into()).await;
    }

    fn slow_down(&mut self) {
        self.wait = (self.wait * 2).min(SELDOM.max(self.least));
        self.at = Instant::now() + self.wait.mul_f64(0.75 + rand::random::<f64>() / 4.0);
    }

    /// At once, and then as at first.
    fn reset(&mut self) {
        self.wait = self.least / 2;
        self.at = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_is_tried_ever_more_seldom_and_at_once_after_a_change() {
        let mut pace = Pace::new(Duration::from_secs(30));
        let mut waits = Vec::new();
        for _ in 0..8 {
            pace.slow_down();
            waits.push(pace.wait.as_secs());
        }
        assert_eq!(waits, [60, 120, 240, 480, 600, 600, 600, 600]);
        assert!(!pace.is_due());
        pace.reset();
        assert!(pace.is_due());
        pace.slow_down();
        assert_eq!(pace.wait, Duration::from_secs(30));
    }
}
