//! A relay of the enemy: it admits everybody, keeps everything that it sees, and alters, drops, replays, reorders, doubles and swaps packets and chunks, by a seed.
//!
//! It speaks the protocol of links as a real relay does (links, chunk streams, packets by connection id), so it sees in plain what a real one sees: the frames of links and sealed chunks. It checks nothing.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cortex_runtime::{
    clock,
    quic::{self, Prefix, Purpose},
    stream::{FrameReader, FrameWriter},
    tls,
};
use cortex_wire::{
    PROTOCOL_VERSION, frame,
    id::{HubId, NodeId},
    key::{PublicKey, SecretKey},
    limits,
    route::{Destination, RelayTag, Route, destination},
    schema::{
        ChunkOpen, ChunksStored, FromRelay, LinkAnswer, LinkHello, LinkWelcome, ToRelay, chunk_open::What, from_relay, link_answer,
        link_hello::Credential, to_relay,
    },
};
use prost::Message;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::{net::UdpSocket, task::JoinSet};

/// What it keeps of what it saw. A test sees a few megabytes.
const SEEN_BYTES: usize = 256 << 20;
/// Packets and chunks that it keeps to do mischief with.
const KEPT: usize = 20_000;
const CHUNKS_KEPT: usize = 64;
/// The head of a chunk on a stream: its length, its sid.
const CHUNK_HEAD: usize = 4 + 32;

/// The relay. It ends with this value.
#[derive(Debug)]
pub struct EvilRelay {
    /// `host:port#key`, as hubs are told of it.
    pub endpoint: String,
    inner: Arc<Inner>,
    _tasks: JoinSet<()>,
}

/// What it has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deeds {
    /// Packets that were not passed on.
    pub dropped: u64,
    /// Packets with other bytes.
    pub altered: u64,
    /// Packets that came again, at once or later.
    pub replayed: u64,
    /// Packets that came behind later ones.
    pub reordered: u64,
    /// Packets under the head of others.
    pub swapped: u64,
    /// Chunks with other bytes.
    pub chunks_altered: u64,
    /// Chunks with the bytes of others.
    pub chunks_swapped: u64,
    /// Uploads that it said were stored and that it did not pass on.
    pub uploads_withheld: u64,
}

#[derive(Debug)]
struct Inner {
    key: SecretKey,
    front: UdpSocket,
    /// Its own QUIC endpoint's port, behind the front.
    back: SocketAddr,
    malicious: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    dice: u64,
    deeds: Deeds,
    seen: Vec<Bytes>,
    seen_bytes: usize,
    packets: VecDeque<(Bytes, SocketAddr)>,
    chunks: VecDeque<(Bytes, Bytes)>,
    /// Where nodes and the hub are.
    routes: HashMap<Route, SocketAddr>,
    /// The socket towards the endpoint behind for each address in front, and the other way round.
    behind: HashMap<SocketAddr, Arc<UdpSocket>>,
    before: HashMap<SocketAddr, SocketAddr>,
    hub: Option<(Connection, u64)>,
}

impl State {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.roll(length.max(1) as u64)).unwrap_or(0)
    }

    fn see(&mut self, bytes: &[u8]) {
        if self.seen_bytes < SEEN_BYTES {
            self.seen_bytes += bytes.len();
            self.seen.push(Bytes::copy_from_slice(bytes));
        }
    }

    /// What becomes of a packet: when which bytes are passed on.
    fn treat(&mut self, packet: &[u8]) -> Vec<(Duration, Bytes)> {
        let now = |bytes: Bytes| (Duration::ZERO, bytes);
        let whole = Bytes::copy_from_slice(packet);
        match self.roll(100) {
            0..3 => {
                self.deeds.dropped += 1;
                vec![]
            }
            3..7 => {
                self.deeds.altered += 1;
                let mut bytes = packet.to_vec();
                for _ in 0..=self.roll(3) {
                    let at = self.index(bytes.len());
                    bytes[at] ^= 1 << self.roll(8);
                }
                if self.roll(4) == 0 {
                    bytes.truncate(self.index(packet.len()));
                }
                vec![now(bytes.into())]
            }
            7..12 => {
                self.deeds.replayed += 1;
                let later = Duration::from_millis(self.roll(200));
                vec![now(whole.clone()), (later, whole)]
            }
            12..18 => {
                self.deeds.reordered += 1;
                vec![(Duration::from_millis(1 + self.roll(20)), whole)]
            }
            18..20 if !self.packets.is_empty() => {
                // The head decides where it goes; the rest is another packet's.
                self.deeds.swapped += 1;
                let at = self.index(self.packets.len());
                let head = packet.len().min(21);
                let rest = self.packets[at].0.get(head..).unwrap_or_default();
                vec![now([&packet[..head], rest].concat().into())]
            }
            _ => vec![now(whole)],
        }
    }

    /// What becomes of a chunk on its way.
    fn treat_chunk(&mut self, sid: Bytes, bytes: Bytes) -> (Bytes, Bytes) {
        let other = (!self.chunks.is_empty()).then(|| self.index(self.chunks.len())).map(|at| self.chunks[at].clone());
        let (sid, bytes) = match (self.roll(8), other) {
            (0, _) if !bytes.is_empty() => {
                self.deeds.chunks_altered += 1;
                let mut altered = bytes.to_vec();
                let at = self.index(altered.len());
                altered[at] ^= 1;
                // With a name that fits, or without.
                let fitting = Bytes::copy_from_slice(blake3::hash(&altered).as_bytes());
                (if self.roll(2) == 0 { fitting } else { sid }, altered.into())
            }
            (1, Some((_, others))) => {
                self.deeds.chunks_swapped += 1;
                (sid, others)
            }
            (2, Some(other)) => {
                self.deeds.chunks_swapped += 1;
                other
            }
            _ => (sid, bytes),
        };
        if self.chunks.len() >= CHUNKS_KEPT {
            self.chunks.pop_front();
        }
        self.chunks.push_back((sid.clone(), bytes.clone()));
        (sid, bytes)
    }
}

impl EvilRelay {
    /// One on loopback that behaves for now.
    ///
    /// # Errors
    /// When there is no socket.
    pub fn start(seed: u64) -> Result<Self> {
        let key = SecretKey::from_seed(clock::random());
        let tag = RelayTag::of(&key.public());
        let socket = quic::bind_udp(([127, 0, 0, 1], 0).into())?;
        let back = socket.local_addr()?;
        let server = quic::server_config(&key, Purpose::Link)?;
        let config = quic::endpoint_config(Prefix::Relay(tag), &clock::random());
        let endpoint = Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))?;
        let front = UdpSocket::from_std(quic::bind_udp(([127, 0, 0, 1], 0).into())?)?;
        let address = format!("{}#{}", front.local_addr()?, cortex_wire::id::RelayId::from(key.public()));
        let state = State { dice: seed, ..State::default() };
        let inner = Arc::new(Inner { key, front, back, malicious: AtomicBool::new(false), state: Mutex::new(state) });
        let mut tasks = JoinSet::new();
        tasks.spawn(inner.clone().listen());
        let links = inner.clone();
        tasks.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let inner = links.clone();
                tokio::spawn(async move {
                    if let Err(error) = inner.link(incoming).await {
                        eprintln!("evil relay: a link has ended: {error:#}");
                    }
                });
            }
        });
        Ok(Self { endpoint: address, inner, _tasks: tasks })
    }

    /// Lets it be what it is, or behave.
    pub fn misbehave(&self, malicious: bool) {
        self.inner.malicious.store(malicious, Relaxed);
    }

    /// What it has done so far.
    pub fn deeds(&self) -> Deeds {
        self.inner.state().deeds
    }

    /// Passes every packet on once more that it has ever passed on between nodes and hub, in the order in which they came.
    ///
    /// # Errors
    /// When it has none.
    pub async fn replay_everything(&self) -> Result<usize> {
        let packets: Vec<(Bytes, SocketAddr)> = self.inner.state().packets.iter().cloned().collect();
        ensure!(!packets.is_empty(), "nothing has passed");
        for (number, (packet, from)) in packets.iter().enumerate() {
            self.inner.pass(packet, *from).await;
            if number % 64 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        self.inner.state().deeds.replayed += packets.len() as u64;
        Ok(packets.len())
    }

    /// Whether these bytes were anywhere in what it saw.
    pub fn saw(&self, needle: &[u8]) -> bool {
        self.inner.state().seen.iter().any(|bytes| contains(bytes, needle))
    }

    /// How many bytes it saw.
    pub fn seen_bytes(&self) -> usize {
        self.inner.state().seen_bytes
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else { return true };
    let mut from = bytes;
    while let Some(at) = from.iter().position(|byte| byte == first) {
        from = &from[at + 1..];
        if from.starts_with(rest) {
            return true;
        }
    }
    false
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(self: Arc<Self>) {
        let mut buffer = vec![0; 65_536];
        loop {
            let Ok((length, from)) = self.front.recv_from(&mut buffer).await else { continue };
            self.arrived(&buffer[..length], from);
        }
    }

    /// A packet has come in front.
    fn arrived(self: &Arc<Self>, packet: &[u8], from: SocketAddr) {
        let treated = {
            let mut state = self.state();
            state.see(packet);
            let treated =
                if self.malicious.load(Relaxed) { state.treat(packet) } else { vec![(Duration::ZERO, Bytes::copy_from_slice(packet))] };
            if matches!(destination(packet), Some(Destination::Route(_))) {
                if state.packets.len() >= KEPT {
                    state.packets.pop_front();
                }
                state.packets.push_back((Bytes::copy_from_slice(packet), from));
            }
            treated
        };
        for (delay, packet) in treated {
            let inner = self.clone();
            tokio::spawn(async move {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                inner.pass(&packet, from).await;
            });
        }
    }

    async fn pass(self: &Arc<Self>, packet: &[u8], from: SocketAddr) {
        match destination(packet) {
            Some(Destination::Route(route)) => {
                let to = self.state().routes.get(&route).copied();
                if let Some(to) = to {
                    let _ = self.front.send_to(packet, to).await;
                }
            }
            Some(Destination::Relay(_)) => {
                if let Ok(socket) = self.behind(from).await {
                    let _ = socket.send(packet).await;
                }
            }
            None => {}
        }
    }

    /// The socket that speaks for somebody in front to the endpoint behind.
    async fn behind(self: &Arc<Self>, from: SocketAddr) -> Result<Arc<UdpSocket>> {
        let known = self.state().behind.get(&from).cloned();
        if let Some(socket) = known {
            return Ok(socket);
        }
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        socket.connect(self.back).await?;
        {
            let mut state = self.state();
            state.behind.insert(from, socket.clone());
            state.before.insert(socket.local_addr()?, from);
        }
        let (inner, back) = (self.clone(), socket.clone());
        tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            while let Ok(length) = back.recv(&mut buffer).await {
                let _ = inner.front.send_to(&buffer[..length], from).await;
            }
        });
        Ok(socket)
    }

    async fn link(self: Arc<Self>, incoming: quinn::Incoming) -> Result<()> {
        let connection = incoming.await?;
        let key = tls::peer_key(&connection).context("no key")?;
        let (send, recv) = connection.accept_bi().await?;
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(recv, limits::CONTROL_FRAME_BYTES));
        let hello: LinkHello = reader.expect().await?;
        let at = connection.remote_address();
        let (instance, is_hub) = {
            let mut state = self.state();
            state.see(&hello.encode_to_vec());
            let from = *state.before.get(&at).context("from nowhere")?;
            let (route, instance, is_hub) = match &hello.credential {
                Some(Credential::Hub(hub)) => {
                    state.hub = Some((connection.clone(), hub.instance));
                    (Route::of(HubId::from_slice(&hello.hub_root)?.key()), hub.instance, true)
                }
                _ => (Route::of(&key), state.hub.as_ref().map_or(0, |(_, instance)| *instance), false),
            };
            state.routes.insert(route, from);
            (instance, is_hub)
        };
        let welcome = LinkWelcome {
            version: PROTOCOL_VERSION,
            agent: "evil 0".into(),
            region: "hell".into(),
            observed_address: at.to_string(),
            server_time_ms: clock::now_ms(),
            ticket: None,
            relay_id: cortex_wire::id::RelayId::from(self.key.public()).to_string(),
            hub_instance: instance,
        };
        writer.send(&LinkAnswer { answer: Some(link_answer::Answer::Welcome(welcome)) }).await?;
        if is_hub {
            quic::widen(&connection, 0, limits::RELAY_CHUNK_STREAMS);
        } else {
            quic::widen(&connection, limits::CHUNK_STREAMS, 0);
            tokio::spawn(self.clone().serve_chunks(connection.clone(), key));
        }
        while let Some(frame) = reader.next::<ToRelay>().await? {
            self.state().see(&frame.encode_to_vec());
            if let Some(to_relay::Frame::Ping(nonce)) = frame.frame {
                writer.send(&FromRelay { frame: Some(from_relay::Frame::Pong(nonce)) }).await?;
            }
        }
        Ok(())
    }

    async fn serve_chunks(self: Arc<Self>, connection: Connection, node: PublicKey) {
        while let Ok((send, recv)) = connection.accept_bi().await {
            let inner = self.clone();
            tokio::spawn(async move {
                // Whatever goes wrong resets the stream, and that is mischief, too.
                let _ = inner.carry(NodeId::from(node), send, recv).await;
            });
        }
    }

    /// Carries a node's stream of chunks to the hub and back.
    async fn carry(&self, node: NodeId, mut down: SendStream, mut up: RecvStream) -> Result<()> {
        let mut length = [0; frame::HEADER_BYTES];
        up.read_exact(&mut length).await?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        up.read_exact(&mut body).await?;
        self.state().see(&body);
        let mut open = ChunkOpen::decode(&body[..])?;
        open.node_key = node.key().to_bytes();
        let what = open.what.clone().context("what")?;
        let hub = self.state().hub.as_ref().context("no hub")?.0.clone();
        let withhold = {
            let mut state = self.state();
            let withhold = self.malicious.load(Relaxed) && matches!(what, What::Store(_)) && state.roll(8) == 0;
            state.deeds.uploads_withheld += u64::from(withhold);
            withhold
        };
        if withhold {
            let chunks = self.swallow(&mut up).await?;
            down.write_all(&frame::encode(&ChunksStored { chunks, ..ChunksStored::default() })).await?;
            down.finish()?;
            return Ok(());
        }
        let (mut to_hub, mut from_hub) = hub.open_bi().await?;
        to_hub.write_all(&frame::encode(&open)).await?;
        match what {
            What::Fetch(_) => {
                to_hub.finish()?;
                self.pass_chunks(&mut from_hub, &mut down).await?;
            }
            What::Store(_) => {
                self.pass_chunks(&mut up, &mut to_hub).await?;
                to_hub.finish()?;
                down.write_all(&from_hub.read_to_end(limits::CHUNK_OPEN_BYTES).await?).await?;
            }
            What::Missing(_) => {
                to_hub.finish()?;
                down.write_all(&from_hub.read_to_end(limits::CHUNK_OPEN_BYTES).await?).await?;
            }
        }
        down.finish()?;
        Ok(())
    }

    async fn next_chunk(&self, from: &mut RecvStream) -> Result<Option<(Bytes, Bytes)>> {
        let mut head = [0; CHUNK_HEAD];
        match from.read_exact(&mut head).await {
            Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
            outcome => outcome?,
        }
        let length = u32::from_be_bytes(*head.first_chunk().context("a length")?) as usize;
        ensure!(length <= limits::SEALED_CHUNK_BYTES, "a chunk of {length} bytes");
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).await?;
        self.state().see(&bytes);
        Ok(Some((Bytes::copy_from_slice(&head[4..]), bytes.into())))
    }

    async fn pass_chunks(&self, from: &mut RecvStream, to: &mut SendStream) -> Result<()> {
        while let Some((sid, bytes)) = self.next_chunk(from).await? {
            let (sid, bytes) = if self.malicious.load(Relaxed) { self.state().treat_chunk(sid, bytes) } else { (sid, bytes) };
            let length = u32::try_from(bytes.len())?.to_be_bytes();
            to.write_all(&[&length[..], &sid, &bytes].concat()).await?;
        }
        Ok(())
    }

    async fn swallow(&self, from: &mut RecvStream) -> Result<u64> {
        let mut count = 0;
        while self.next_chunk(from).await?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}
