//! Direct packets through a node's socket: probes are answered or told of where they come in, and end-to-end packets are taken from addresses that a probe has proved.
//!
//! What probes mean is [`cortex_wire::direct`]'s; when a node searches and by which way it sends is the peer's. A [`Paired`] holds what belongs to one connection, and takes it along.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use cortex_wire::{
    direct::{self, Heard, HubEnd, NodeEnd, Secret, Tag},
    limits,
};
use quinn::{
    AsyncUdpSocket,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::mpsc;

use crate::{link, socket::NodeSocket};

/// What a node learns from probes; what comes while so many wait is dropped, like any packet.
const NEWS: usize = 64;

/// What a probe taught a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The hub sends from there.
    Opened(SocketAddr),
    /// The hub is there.
    Answered {
        /// Where.
        from: SocketAddr,
        /// How far.
        rtt: Duration,
        /// Full packets pass.
        long: bool,
    },
}

#[derive(Debug)]
enum End {
    Hub(HubEnd),
    Node(NodeEnd, mpsc::Sender<News>),
}

/// One end of a pair, and where packets of the other end come from, the last to prove itself at the end.
#[derive(Debug)]
struct Pair {
    end: End,
    sources: Vec<SocketAddr>,
}

/// What a socket knows of direct ways.
#[derive(Debug, Default)]
pub(crate) struct Direct {
    /// Whether there is any pair: else nothing here is looked at.
    any: AtomicBool,
    pairs: RwLock<HashMap<Tag, Arc<Mutex<Pair>>>>,
    /// From where packets are taken.
    sources: RwLock<HashMap<SocketAddr, Tag>>,
    /// By which way a node sends to its hub, instead of a relay.
    active: RwLock<Option<SocketAddr>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Direct {
    fn pair(&self, tag: &Tag) -> Option<Arc<Mutex<Pair>>> {
        self.pairs.read().unwrap_or_else(PoisonError::into_inner).get(tag).cloned()
    }

    fn add(&self, tag: Tag, end: End) {
        self.pairs.write().unwrap_or_else(PoisonError::into_inner).insert(tag, Arc::new(Mutex::new(Pair { end, sources: Vec::new() })));
        self.any.store(true, Relaxed);
    }

    fn remove(&self, tag: &Tag) {
        let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        pairs.remove(tag);
        self.any.store(!pairs.is_empty(), Relaxed);
        self.sources.write().unwrap_or_else(PoisonError::into_inner).retain(|_, of| of != tag);
    }

    /// Takes packets from there from now on. The oldest address of a pair that has too many is given up.
    fn admit(&self, tag: Tag, pair: &mut Pair, source: SocketAddr) {
        if pair.sources.last() == Some(&source) {
            return;
        }
        pair.sources.retain(|known| *known != source);
        pair.sources.push(source);
        let mut sources = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        if pair.sources.len() > limits::DIRECT_SOURCES {
            let oldest = pair.sources.remove(0);
            if sources.get(&oldest) == Some(&tag) {
                sources.remove(&oldest);
            }
        }
        sources.insert(source, tag);
    }

    /// Whether end-to-end packets come from there, and may be sent there.
    pub(crate) fn knows(&self, address: &SocketAddr) -> bool {
        self.any.load(Relaxed) && self.sources.read().unwrap_or_else(PoisonError::into_inner).contains_key(address)
    }

    /// The direct way that a node uses.
    pub(crate) fn active(&self) -> Option<SocketAddr> {
        if !self.any.load(Relaxed) {
            return None;
        }
        *self.active.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn activate(&self, way: Option<SocketAddr>) {
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = way;
    }

    /// Takes what came from an address that is no relay's: probes are heard and taken out, and what is left in front are packets that quinn may have.
    /// `send`: how an answer leaves.
    pub(crate) fn receive(&self, buffer: &mut [u8], meta: &mut RecvMeta, send: impl Fn(&Transmit<'_>)) {
        if !self.any.load(Relaxed) {
            meta.len = 0;
            return;
        }
        let known = self.knows(&meta.addr);
        let (len, stride) = (meta.len, meta.stride.max(1));
        let (mut at, mut kept) = (0, 0);
        while at < len {
            let end = (at + stride).min(len);
            let packet = &buffer[at..end];
            if known && direct::is_short_header(packet) {
                buffer.copy_within(at..end, kept);
                kept += end - at;
            } else if let Some(answer) = self.hear(packet, meta.addr) {
                send(&Transmit { destination: meta.addr, ecn: None, contents: &answer, segment_size: None, src_ip: meta.dst_ip });
            }
            at = end;
        }
        meta.len = kept;
    }

    /// What goes back to the sender of a probe.
    fn hear(&self, packet: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
        let tag = direct::tag_of(packet)?;
        // Held to the end: a pair that is removed meanwhile would leave an address behind.
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        let (mut pair, now) = (lock(pairs.get(&tag)?), Instant::now());
        let heard = match &mut pair.end {
            End::Hub(hub) => hub.hear(packet, now),
            End::Node(node, _) => node.hear(from, packet, now),
        };
        let news = match heard {
            Heard::Nothing => return None,
            Heard::Answer(answer) => {
                self.admit(tag, &mut pair, from);
                return Some(answer);
            }
            Heard::Opened => News::Opened(from),
            Heard::Answered { rtt, long } => {
                self.admit(tag, &mut pair, from);
                News::Answered { from, rtt, long }
            }
        };
        if let End::Node(_, tell) = &pair.end {
            let _ = tell.try_send(news);
        }
        None
    }
}

/// One end of an end-to-end connection, for as long as that lives: what probes it takes, and the direct way that it uses.
#[derive(Debug)]
pub struct Paired {
    socket: Arc<NodeSocket>,
    tag: Tag,
}

impl Paired {
    /// A hub's end.
    pub fn hub(socket: &Arc<NodeSocket>, secret: Secret) -> Arc<Self> {
        let tag = secret.tag();
        socket.direct().add(tag, End::Hub(HubEnd::new(secret)));
        Arc::new(Self { socket: socket.clone(), tag })
    }

    /// A node's end, and what it learns.
    pub fn node(socket: &Arc<NodeSocket>, secret: Secret) -> (Arc<Self>, mpsc::Receiver<News>) {
        let (tag, (tell, told)) = (secret.tag(), mpsc::channel(NEWS));
        socket.direct().add(tag, End::Node(NodeEnd::new(secret), tell));
        (Arc::new(Self { socket: socket.clone(), tag }), told)
    }

    /// Sends a probe: a node's ping, or something with which a hub opens its firewall.
    pub fn probe(&self, to: SocketAddr, long: bool) {
        // Addresses of the other end's own network may lead nowhere here.
        if link::own_address(&to).is_none() {
            return;
        }
        let Some(pair) = self.socket.direct().pair(&self.tag) else { return };
        let packet = match &mut lock(&pair).end {
            End::Hub(hub) => hub.open(),
            End::Node(node, _) => node.ping(to, long, Instant::now()),
        };
        self.socket.send_probe(&Transmit { destination: to, ecn: None, contents: &packet, segment_size: None, src_ip: None });
    }

    /// Sends a node's end-to-end packets there from now on, if it was proved; `None`: through the active relay again.
    pub fn activate(&self, way: Option<SocketAddr>) {
        let direct = self.socket.direct();
        if direct.pair(&self.tag).is_some() && way.is_none_or(|way| direct.knows(&way)) {
            direct.activate(way);
            self.socket.silence().heard();
        }
    }
}

impl Drop for Paired {
    fn drop(&mut self) {
        let direct = self.socket.direct();
        let last = direct
            .active()
            .is_some_and(|way| direct.sources.read().unwrap_or_else(PoisonError::into_inner).get(&way).is_none_or(|of| *of == self.tag));
        if last {
            direct.activate(None);
        }
        direct.remove(&self.tag);
    }
}

/// What this machine would send from, to anywhere on the internet and to these addresses; no packet leaves for that.
pub fn own_addresses(towards: &[SocketAddr]) -> Vec<IpAddr> {
    // Addresses for documentation: nobody has them, and routes lead there as to anybody.
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    let mut own = Vec::new();
    for address in [(v4, 9).into(), (v6, 9).into()].iter().chain(towards).filter_map(link::own_address) {
        if !own.contains(&address) {
            own.push(address);
        }
    }
    own
}

/// Asks the socket to send what is no packet of QUIC. What cannot be sent is lost, as probes may be.
pub(crate) fn send(udp: &Arc<dyn AsyncUdpSocket>, transmit: &Transmit<'_>) {
    if let Err(error) = udp.try_send(transmit) {
        tracing::trace!(%error, to = %transmit.destination, "a probe could not be sent");
    }
}

#[cfg(test)]
mod tests {
    use cortex_wire::{key::SecretKey, route::Route};
    use tokio::{net::UdpSocket, time::timeout};

    use super::*;
    use crate::{
        quic::{self, Prefix},
        socket::Role,
    };

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A socket that an endpoint reads, and where it is.
    fn place(role: Role, seed: u8) -> (Arc<NodeSocket>, quinn::Endpoint, SocketAddr) {
        let socket = NodeSocket::bind_at(role, ([127, 0, 0, 1], 0).into()).unwrap();
        let config = quic::endpoint_config(Prefix::Route(Route::of(&SecretKey::from_seed([seed; 32]).public())), &[7; 32]);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, None, socket.clone(), Arc::new(quinn::TokioRuntime)).unwrap();
        let address = endpoint.local_addr().unwrap();
        (socket, endpoint, address)
    }

    /// Sends probes until one has taught something: a socket that was just made may not be writable yet.
    async fn news(told: &mut mpsc::Receiver<News>, probe: impl Fn()) -> News {
        let taught = async {
            loop {
                probe();
                if let Ok(Some(news)) = timeout(Duration::from_millis(200), told.recv()).await {
                    return news;
                }
            }
        };
        timeout(PATIENCE, taught).await.unwrap()
    }

    /// What comes to a socket within a moment.
    async fn heard(socket: &UdpSocket) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        let (len, _) = timeout(Duration::from_millis(200), socket.recv_from(&mut buffer)).await.ok()?.unwrap();
        Some(buffer[..len].to_vec())
    }

    #[tokio::test]
    async fn a_way_is_proved_by_its_answer_and_ends_with_the_connection() {
        let secret = Secret::new(&[1; 32]);
        let ((hub_socket, _hub, hub_at), (node_socket, _node, node_at)) = (place(Role::Hub, 1), place(Role::Peer, 2));
        let hub = Paired::hub(&hub_socket, secret.clone());
        let (node, mut told) = Paired::node(&node_socket, secret);
        assert_eq!(news(&mut told, || hub.probe(node_at, false)).await, News::Opened(hub_at));
        node.activate(Some(hub_at));
        assert_eq!(node_socket.direct().active(), None, "the hub speaks from there, and has not answered there");
        for long in [false, true] {
            let News::Answered { from, long: was_long, .. } = news(&mut told, || node.probe(hub_at, long)).await else { panic!() };
            assert_eq!((from, was_long), (hub_at, long));
        }
        assert!(hub_socket.is_direct(node_at) && node_socket.is_direct(hub_at));
        node.activate(Some(hub_at));
        assert_eq!(node_socket.direct().active(), Some(hub_at));
        drop((hub, node));
        assert!(!hub_socket.is_direct(node_at) && !node_socket.is_direct(hub_at));
        assert_eq!(node_socket.direct().active(), None);
    }

    #[tokio::test]
    async fn what_is_forged_or_sent_again_is_not_answered_and_proves_nothing() {
        let secret = Secret::new(&[1; 32]);
        let (hub_socket, _hub, hub_at) = place(Role::Hub, 1);
        let _paired = Paired::hub(&hub_socket, secret.clone());
        let (mut node, stranger) = (NodeEnd::new(secret), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let good = node.ping(hub_at, false, Instant::now());
        for byte in 0..good.len() {
            let mut forged = good.clone();
            forged[byte] ^= 0x20;
            stranger.send_to(&forged, hub_at).await.unwrap();
        }
        for first in [0x11, 0x12, 0x13, 0x40, 0xc0] {
            for len in [0, 1, 8, 16, 48, 49, 50, 1199, 1200, 1201, 1500] {
                let mut noise = vec![0x5a; len];
                noise.iter_mut().take(1).for_each(|byte| *byte = first);
                stranger.send_to(&noise, hub_at).await.unwrap();
            }
        }
        assert_eq!(heard(&stranger).await, None);
        assert!(!hub_socket.is_direct(stranger.local_addr().unwrap()));
        // Somebody on the way takes the real one along: the first who shows it is answered, and nobody after that.
        let thief = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        stranger.send_to(&good, hub_at).await.unwrap();
        assert_eq!(heard(&stranger).await.map(|pong| pong.len()), Some(good.len()));
        thief.send_to(&good, hub_at).await.unwrap();
        assert_eq!(heard(&thief).await, None);
        assert!(!hub_socket.is_direct(thief.local_addr().unwrap()));
    }

    #[tokio::test]
    async fn a_node_has_few_addresses_and_few_answers() {
        let secret = Secret::new(&[1; 32]);
        let (hub_socket, _hub, hub_at) = place(Role::Hub, 1);
        let _paired = Paired::hub(&hub_socket, secret.clone());
        let mut node = NodeEnd::new(secret);
        let mut places = Vec::new();
        for _ in 0..limits::DIRECT_SOURCES + 3 {
            let place = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            place.send_to(&node.ping(hub_at, false, Instant::now()), hub_at).await.unwrap();
            heard(&place).await.unwrap();
            places.push(place);
        }
        let known: Vec<bool> = places.iter().map(|place| hub_socket.is_direct(place.local_addr().unwrap())).collect();
        assert_eq!(known, [false, false, false, true, true, true, true]);
        let place = &places[0];
        for _ in 0..10 * limits::DIRECT_PINGS_PER_SECOND {
            place.send_to(&node.ping(hub_at, false, Instant::now()), hub_at).await.unwrap();
        }
        let mut answers = 0;
        while heard(place).await.is_some() {
            answers += 1;
        }
        assert!(answers <= 2 * limits::DIRECT_PINGS_PER_SECOND, "{answers}");
    }
}
