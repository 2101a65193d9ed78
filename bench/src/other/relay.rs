//! Plain QUIC through the relay: streams of bytes from nodes to a hub, a few bytes to and fro, and nothing else. The speed that everything above it is measured by.
//!
//! Also nodes that are linked and do nothing, and packets that nobody waits for.
//!
//! Node and hub are endpoints in this process, each with a thread and a runtime of its own; the relay is the real program.

use std::{
    io::{self, IoSliceMut},
    pin::Pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cortex_runtime::{
    clock,
    link::{self, Link},
    quic::{self, Prefix, Purpose},
    socket::{NodeSocket, Role},
};
use cortex_wire::{
    id::HubId,
    invite::RelayEndpoint,
    key::{SecretKey, state_key},
    route::{CID_LEN, RelayTag, Route},
    schema::{HubCredential, KeyPurpose, Signed, link_hello::Credential},
    ticket,
};
use quinn::{
    AsyncUdpSocket, Connection, Endpoint, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{sync::Notify, task::JoinSet};

use crate::interrupt;

/// The tool's name, as `--against` knows it.
pub const NAME: &str = "relay";
/// How figures name it.
pub const LABEL: &str = "plain QUIC stream through the same relay";
/// Written at once.
const PIECE: usize = 128 * 1024;
/// Sent before the clock starts: windows and congestion control find their size.
const WARM_BYTES: u64 = 64 << 20;
/// The same for small messages.
const WARM_ECHOES: usize = 200;

/// A hub that exists for the relay only.
#[derive(Debug)]
pub struct PlainHub {
    root: SecretKey,
    transport: SecretKey,
    ticket: SecretKey,
    packet_bytes: u16,
}

/// One end of the pair, linked to the relay.
struct End {
    endpoint: Endpoint,
    socket: Arc<NodeSocket>,
    address: std::net::SocketAddr,
    _link: Link,
}

impl PlainHub {
    /// With fresh keys.
    pub fn new() -> Self {
        let key = || SecretKey::from_seed(clock::random());
        Self { root: key(), transport: key(), ticket: key(), packet_bytes: quic::PACKET_BYTES }
    }

    /// The same with the large packets that loopback takes, as peers have.
    #[must_use]
    pub fn with_large_packets(self) -> Self {
        Self { packet_bytes: quic::packet_bytes(([127, 0, 0, 1], 9).into()), ..self }
    }

    /// What the relay has to be told to serve.
    pub fn id(&self) -> HubId {
        self.root.public().into()
    }

    fn statements(&self) -> Vec<Signed> {
        let state = |purpose, key: &SecretKey| state_key(&self.root, purpose, &key.public(), 1, 0, 0);
        vec![state(KeyPurpose::Transport, &self.transport), state(KeyPurpose::Ticket, &self.ticket)]
    }

    /// Sends `bytes` from a node to this hub; how long they took.
    pub fn transfer(&self, relay: &RelayEndpoint, bytes: u64) -> anyhow::Result<Duration> {
        both(|linked| self.receive(relay, bytes, linked), || self.send(relay, bytes))
    }

    /// Sends `bytes` from each of so many nodes at the same time; how long all of them took, from the first byte on.
    pub fn transfer_all(&self, relay: &RelayEndpoint, nodes: usize, bytes: u64) -> anyhow::Result<Duration> {
        let send = || async {
            let mut sending = JoinSet::new();
            for _ in 0..nodes {
                let (end, root, key) = self.node(relay).await?;
                let packet_bytes = self.packet_bytes;
                sending.spawn(async move {
                    let connection = end.dial(&key, &root, packet_bytes).await?;
                    pour(&connection, bytes).await
                });
            }
            while let Some(sent) = sending.join_next().await {
                sent??;
            }
            Ok(())
        };
        both(|linked| self.receive_all(relay, nodes, linked), send)
    }

    async fn receive_all(&self, relay: &RelayEndpoint, nodes: usize, linked: mpsc::Sender<()>) -> anyhow::Result<Duration> {
        let end = self.hub_end(relay, linked).await?;
        let mut streams = JoinSet::new();
        for _ in 0..nodes {
            let connection = end.endpoint.accept().await.context("nobody came")?.await?;
            streams.spawn(async move {
                let (mut order, mut stream) = connection.open_bi().await?;
                order.write_all(b"!").await?;
                let mut since = None;
                while stream.read_chunk(PIECE, true).await?.is_some() {
                    since.get_or_insert_with(Instant::now);
                }
                since.context("nothing came")
            });
        }
        let mut first: Option<Instant> = None;
        while let Some(since) = streams.join_next().await {
            let since = since??;
            first = Some(first.map_or(since, |first| first.min(since)));
        }
        let took = first.context("nobody sent")?.elapsed();
        end.leave().await;
        Ok(took)
    }

    /// How long 100 bytes take to this hub and back, in microseconds, so many times.
    pub fn echo(&self, relay: &RelayEndpoint, count: usize) -> anyhow::Result<Vec<f64>> {
        const BYTES: usize = 100;
        let times = std::sync::Mutex::new(Vec::with_capacity(count));
        let answer = |linked| async {
            let end = self.hub_end(relay, linked).await?;
            let connection = end.endpoint.accept().await.context("nobody came")?.await?;
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(b"!").await?;
            let mut bytes = [0; BYTES];
            while recv.read_exact(&mut bytes).await.is_ok() {
                send.write_all(&bytes).await?;
            }
            end.leave().await;
            Ok(())
        };
        let ask = || async {
            let (end, root, key) = self.node(relay).await?;
            let connection = end.dial(&key, &root, self.packet_bytes).await?;
            let (mut send, mut recv) = connection.accept_bi().await?;
            recv.read_exact(&mut [0; 1]).await?;
            let mut bytes = [7; BYTES];
            for number in 0..count + WARM_ECHOES {
                let since = Instant::now();
                send.write_all(&bytes).await?;
                recv.read_exact(&mut bytes).await?;
                if number >= WARM_ECHOES {
                    times.lock().unwrap_or_else(PoisonError::into_inner).push(since.elapsed().as_secs_f64() * 1e6);
                }
            }
            send.finish()?;
            end.leave().await;
            Ok(())
        };
        both(answer, ask)?;
        Ok(times.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Offers packets that nobody waits for from a node at each of these rates, in bytes per second; at which rates they arrived at this hub.
    pub fn flood(&self, relay: &RelayEndpoint, rates: &[f64], lasts: Duration) -> anyhow::Result<Vec<f64>> {
        let arrived = Arc::new(AtomicU64::new(0));
        let (count, done) = (arrived.clone(), Arc::new(Notify::new()));
        let until = done.clone();
        let take = |linked| async {
            let end = self.hub_end_counting(relay, linked, count).await?;
            until.notified().await;
            end.leave().await;
            Ok(())
        };
        let measured = std::sync::Mutex::new(Vec::new());
        let give = || async {
            let (end, root, _) = self.node(relay).await?;
            for rate in rates {
                let before = arrived.load(Relaxed);
                let since = Instant::now();
                offer(&end, Route::of(&root.public()), *rate, lasts).await;
                let figure = (arrived.load(Relaxed) - before) as f64 / since.elapsed().as_secs_f64();
                measured.lock().unwrap_or_else(PoisonError::into_inner).push(figure);
                // What still lies in queues is not the next one's.
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            done.notify_one();
            Ok(())
        };
        both(take, give)?;
        Ok(measured.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Links so many nodes that do nothing, and keeps them until `work` is done.
    pub fn idle<T>(&self, relay: &RelayEndpoint, nodes: usize, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (linked, ready) = mpsc::channel();
        let done = Notify::new();
        std::thread::scope(|scope| {
            // It has the sender: when it fails, nobody waits for what it would have sent.
            let until = &done;
            let keeper = scope.spawn(move || {
                alone(async {
                    // The relay knows by the hub's link which tickets are good.
                    let (told, _heard) = mpsc::channel();
                    let _hub = self.hub_end(relay, told).await?;
                    let mut kept = Vec::with_capacity(nodes);
                    for _ in 0..nodes {
                        interrupt::check()?;
                        kept.push(self.node(relay).await?);
                    }
                    linked.send(())?;
                    until.notified().await;
                    Ok(())
                })
            });
            let worked = ready.recv().context("not all nodes were linked").and_then(|()| work());
            done.notify_one();
            keeper.join().unwrap_or_else(|_| anyhow::bail!("the nodes panicked"))?;
            worked
        })
    }

    /// A linked node, the key of this hub, and its own.
    async fn node(&self, relay: &RelayEndpoint) -> anyhow::Result<(End, SecretKey, SecretKey)> {
        let key = SecretKey::from_seed(clock::random());
        let grant = ticket::Grant::new(key.public().into(), clock::now_ms() + 300_000);
        let ticket = ticket::issue(&self.ticket, &self.id(), &relay.id, &grant);
        let end = End::link(Role::Peer, &key, &key, &self.id(), relay, Credential::Ticket(ticket)).await?;
        Ok((end, self.root.clone(), key))
    }

    async fn hub_end(&self, relay: &RelayEndpoint, linked: mpsc::Sender<()>) -> anyhow::Result<End> {
        self.hub_end_counting(relay, linked, Arc::default()).await
    }

    /// And counts the bytes of packets that come by the relay.
    async fn hub_end_counting(&self, relay: &RelayEndpoint, linked: mpsc::Sender<()>, count: Arc<AtomicU64>) -> anyhow::Result<End> {
        let credential = Credential::Hub(HubCredential { statements: self.statements(), instance: 1 });
        let end = End::link_counting(Role::Hub, &self.transport, &self.root, &self.id(), relay, credential, count).await?;
        linked.send(())?;
        Ok(end)
    }

    async fn receive(&self, relay: &RelayEndpoint, bytes: u64, linked: mpsc::Sender<()>) -> anyhow::Result<Duration> {
        let end = self.hub_end(relay, linked).await?;
        let connection = end.endpoint.accept().await.context("nobody came")?.await?;
        let (mut order, mut stream) = connection.open_bi().await?;
        order.write_all(b"!").await?;
        let (mut received, mut since) = (0, None);
        while let Some(piece) = stream.read_chunk(PIECE, true).await? {
            if since.is_none() && received >= WARM_BYTES {
                since = Some((Instant::now(), received));
            }
            received += piece.bytes.len() as u64;
        }
        let (since, before) = since.context("the transfer was too short")?;
        let took = since.elapsed();
        end.leave().await;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        Ok(took.mul_f64(bytes as f64 / (received - before) as f64))
    }

    async fn send(&self, relay: &RelayEndpoint, bytes: u64) -> anyhow::Result<()> {
        let (end, root, key) = self.node(relay).await?;
        let connection = end.dial(&key, &root, self.packet_bytes).await?;
        pour(&connection, bytes + WARM_BYTES).await
    }
}

/// Sends so many bytes, in whole pieces.
async fn pour(connection: &Connection, bytes: u64) -> anyhow::Result<()> {
    let (mut stream, _order) = connection.accept_bi().await?;
    let piece = vec![0; PIECE];
    for _ in 0..bytes / PIECE as u64 {
        stream.write_all(&piece).await?;
    }
    stream.finish()?;
    stream.stopped().await?; // all of it has arrived
    Ok(())
}

/// Packets at a rate, whatever becomes of them.
async fn offer(end: &End, to: Route, rate: f64, lasts: Duration) {
    const PACKET: usize = 1_200;
    const PACKETS: usize = 32;
    let mut packet = vec![0x40];
    packet.extend(to.connection_id(clock::random::<CID_LEN>()));
    packet.resize(PACKET, 7);
    let batch = packet.repeat(PACKETS);
    let (since, mut offered) = (Instant::now(), 0.0);
    while since.elapsed() < lasts {
        if offered > since.elapsed().as_secs_f64() * rate {
            tokio::time::sleep(Duration::from_micros(200)).await;
            continue;
        }
        let transmit = Transmit { destination: end.address, ecn: None, contents: &batch, segment_size: Some(PACKET), src_ip: None };
        // What the own socket does not take is offered, too.
        let _ = end.socket.try_send(&transmit);
        offered += batch.len() as f64;
        tokio::task::yield_now().await;
    }
}

/// A hub's end and the nodes' end, each on a thread and a runtime of its own. The hub's end says when it is linked, and answers.
fn both<T: Send, H, N>(hub: impl FnOnce(mpsc::Sender<()>) -> H + Send, nodes: impl FnOnce() -> N) -> anyhow::Result<T>
where
    H: Future<Output = anyhow::Result<T>>,
    N: Future<Output = anyhow::Result<()>>,
{
    let (linked, ready) = mpsc::channel();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || alone(hub(linked)));
        ready.recv().context("the hub's end was not linked").and_then(|()| alone(nodes()))?;
        receiver.join().unwrap_or_else(|_| anyhow::bail!("the hub's end panicked"))
    })
}

impl End {
    async fn link(
        role: Role,
        key: &SecretKey,
        root: &SecretKey,
        hub: &HubId,
        relay: &RelayEndpoint,
        credential: Credential,
    ) -> anyhow::Result<Self> {
        Self::link_counting(role, key, root, hub, relay, credential, Arc::default()).await
    }

    async fn link_counting(
        role: Role,
        key: &SecretKey,
        root: &SecretKey,
        hub: &HubId,
        relay: &RelayEndpoint,
        credential: Credential,
        count: Arc<AtomicU64>,
    ) -> anyhow::Result<Self> {
        let socket = NodeSocket::bind(role)?;
        let server = (role == Role::Hub).then(|| quic::server_config(key, Purpose::Mesh)).transpose()?;
        let config = quic::endpoint_config(Prefix::Route(Route::of(&root.public())), &clock::random());
        let counting: Arc<dyn AsyncUdpSocket> = match role {
            Role::Hub => Arc::new(Counting { inner: socket.clone(), count }),
            Role::Peer => socket.clone(),
        };
        let endpoint = Endpoint::new_with_abstract_socket(config, server, counting, Arc::new(quinn::TokioRuntime))?;
        let tag = RelayTag::of(relay.id.key());
        let address = socket.relay_path(tag, *link::resolve(relay).await?.first().context("an address")?);
        socket.activate(tag);
        let link = link::dial(&endpoint, address, relay, key, link::hello("cortex-bench", hub, Some(credential))).await?;
        Ok(Self { endpoint, socket, address, _link: link })
    }

    /// Says goodbye, and sees it off.
    async fn leave(&self) {
        self.endpoint.close(0u32.into(), b"");
        self.endpoint.wait_idle().await;
    }

    async fn dial(&self, key: &SecretKey, hub: &SecretKey, packet_bytes: u16) -> anyhow::Result<Connection> {
        let config = quic::client_config(key, None, Prefix::Route(Route::of(&hub.public())), Purpose::Mesh, packet_bytes)?;
        Ok(self.endpoint.connect_with(config, self.address, "hub.cortex.invalid")?.await?)
    }
}

/// A socket that counts what comes in.
#[derive(Debug)]
struct Counting {
    inner: Arc<NodeSocket>,
    count: Arc<AtomicU64>,
}

impl AsyncUdpSocket for Counting {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(packets)) = &received {
            self.count.fetch_add(meta.iter().take(*packets).map(|meta| meta.len as u64).sum(), Relaxed);
        }
        received
    }

    fn local_addr(&self) -> io::Result<std::net::SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Runs on a runtime of its own on this thread: on few cores that was the fastest.
fn alone<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_relay::{Options, Relay};
    use cortex_runtime::lifecycle::Lifecycle;

    /// On a thread of its own, as the program is a process of its own.
    #[test]
    fn bytes_cross_a_relay() {
        let hub = PlainHub::new();
        let served = hub.id();
        let (told, endpoint) = mpsc::channel();
        let lifecycle = Lifecycle::new();
        let life = lifecycle.clone();
        let relay = std::thread::spawn(move || {
            alone(async {
                let key = SecretKey::from_seed(clock::random());
                let (listen, region) = (([127, 0, 0, 1], 0).into(), String::new());
                let relay = Relay::bind(Options {
                    listen,
                    key,
                    region,
                    hubs: vec![served],
                    max_links: 9,
                    bytes_per_second: 0,
                    cache_bytes: 1 << 20,
                    cache_disk: None,
                    drain_ms: 2_000,
                    tcp: cortex_relay::TcpOptions::default(),
                })?;
                told.send(RelayEndpoint { address: relay.local_addr()?.to_string(), id: relay.id(), region: String::new() })?;
                relay.run(life).await;
                Ok(())
            })
        });
        let at = endpoint.recv().unwrap();
        let took = hub.transfer(&at, 16 << 20).unwrap();
        assert!(took > Duration::ZERO);
        assert!(hub.transfer_all(&at, 3, 4 << 20).unwrap() > Duration::ZERO);
        assert_eq!(hub.echo(&at, 10).unwrap().len(), 10);
        assert!(hub.flood(&at, &[1e6], Duration::from_millis(200)).unwrap()[0] > 0.0);
        assert_eq!(hub.idle(&at, 4, || Ok(7)).unwrap(), 7);
        lifecycle.stop();
        relay.join().unwrap().unwrap();
    }
}
