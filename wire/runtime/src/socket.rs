//! The one socket under all of a node's connections.
//!
//! quinn sees a stable virtual address for each path; packets really leave to, and arrive from, the path's relay. A node has
//! one UDP socket, and where UDP does not get through, [`Tunnel`]s; a hub may also reach the relay inside its own process through a [`Port`] in memory.
//!
//! The way to a relay is its [`Carrier`]. Another one can be put on *trial* beside it, under an address of its own, and takes over when it has proved
//! itself; connections on the path notice nothing.
//!
//! - Outgoing packets for a relay's own endpoint (their connection id says so) go to that relay.
//! - Outgoing end-to-end packets go by the *active* path of a peer, or by the path that the virtual address names on a hub.
//! - Once a direct way has been proved ([`crate::direct`]), a peer's end-to-end packets go by it instead; a hub knows a node that comes directly by its real address.
//! - Incoming packets from anywhere but a known carrier or a proved direct address are dropped here.
//!
//! Path errors end here: for QUIC they are loss. Only this module knows quinn's socket trait, which changes in 0.12.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use cortex_wire::route::{Destination, RelayTag, destination};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use crate::{
    direct::{self, Direct},
    packet::Inbox,
    quic,
    silence::Silence,
    tunnel::{self, Tunnel},
    udp::{AllWritable, Udp},
};

/// Packets from tunnels that wait for the endpoint: a socket buffer's worth.
const INBOX_BYTES: usize = 4 << 20;

/// Packets to and from a relay in the same process.
pub trait Port: Send + Sync + fmt::Debug {
    /// Sends like a socket. `WouldBlock` asks to wait for [`Port::poller`].
    ///
    /// # Errors
    /// `WouldBlock` only.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()>;

    /// Receives like a socket; source addresses do not matter.
    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<usize>;

    /// Says when sending is possible again.
    fn poller(&self) -> Pin<Box<dyn UdpPoller>>;

    /// Segments that one send and one receive may hold.
    fn max_segments(&self) -> (usize, usize);
}

/// What carries packets to a relay.
#[derive(Debug, Clone)]
pub enum Carrier {
    /// UDP, to this address.
    Udp(SocketAddr),
    /// TCP.
    Tunnel(Arc<Tunnel>),
}

impl Carrier {
    /// What it is called towards people.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Tunnel(_) => "tcp",
        }
    }

    /// The largest packets that are worth trying by it; see [`quic::packet_bytes`].
    pub fn packet_bytes(&self) -> u16 {
        match self {
            Self::Udp(address) => quic::packet_bytes(*address),
            Self::Tunnel(_) => quic::PACKET_BYTES,
        }
    }

    /// Where its packets come from.
    fn address(&self) -> SocketAddr {
        match self {
            Self::Udp(address) => *address,
            Self::Tunnel(tunnel) => tunnel.address(),
        }
    }
}

/// Where a path leads.
#[derive(Debug)]
enum Path {
    Relay(RelayPath),
    Memory(Arc<dyn Port>),
}

#[derive(Debug)]
struct RelayPath {
    tag: RelayTag,
    /// What packets go by.
    carrier: Option<Carrier>,
    /// What may take over.
    trial: Option<Carrier>,
    /// What was used before: what it still brings counts.
    former: Option<Carrier>,
    /// Whether packets of the link are answered; none: nobody watches.
    unanswered: Option<Arc<Silence>>,
}

impl RelayPath {
    fn new(tag: RelayTag) -> Self {
        Self { tag, carrier: None, trial: None, former: None, unanswered: None }
    }

    fn is(carrier: Option<&Carrier>, address: &SocketAddr) -> bool {
        carrier.is_some_and(|carrier| carrier.address() == *address)
    }
}

impl Path {
    fn relay(&self) -> Option<&RelayPath> {
        match self {
            Self::Relay(relay) => Some(relay),
            Self::Memory(_) => None,
        }
    }

    fn port(&self) -> Option<&Arc<dyn Port>> {
        match self {
            Self::Relay(_) => None,
            Self::Memory(port) => Some(port),
        }
    }

    fn has_tag(&self, tag: RelayTag) -> bool {
        self.relay().is_some_and(|relay| relay.tag == tag)
    }
}

/// Whether the socket belongs to a peer, which has one active path, or to a hub, which answers on every path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One active path.
    Peer,
    /// All paths at once.
    Hub,
}

/// The socket. Shared with quinn as `Arc<dyn AsyncUdpSocket>`.
pub struct NodeSocket {
    role: Role,
    udp: Arc<dyn AsyncUdpSocket>,
    inbox: Arc<Inbox>,
    paths: RwLock<Vec<Path>>,
    active: AtomicUsize,
    direct: Direct,
    /// Of the way that end-to-end packets go.
    silence: Silence,
}

impl NodeSocket {
    /// A socket on a port of the operating system's choice, without paths yet.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn bind(role: Role) -> io::Result<Arc<Self>> {
        Self::bind_at(role, (Ipv4Addr::UNSPECIFIED, 0).into())
    }

    /// A socket at this address, without paths yet.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind_at(role: Role, address: SocketAddr) -> io::Result<Arc<Self>> {
        let udp = Udp::bind(address)?;
        let inbox = Arc::new(Inbox::new(INBOX_BYTES));
        let (paths, active, direct, silence) = (RwLock::default(), AtomicUsize::new(0), Direct::default(), Silence::default());
        Ok(Arc::new(Self { role, udp, inbox, paths, active, direct, silence }))
    }

    pub(crate) fn direct(&self) -> &Direct {
        &self.direct
    }

    pub(crate) fn send_probe(&self, transmit: &Transmit<'_>) {
        direct::send(&self.udp, transmit);
    }

    /// Whether an address that quinn shows is a node's own: it comes directly.
    pub fn is_direct(&self, address: SocketAddr) -> bool {
        self.direct.knows(&address)
    }

    /// Where tunnels leave what they bring.
    pub fn inbox(&self) -> Arc<Inbox> {
        self.inbox.clone()
    }

    /// The address to dial for the relay with this tag at `address`. The same tag keeps its virtual address when it moves.
    pub fn relay_path(&self, tag: RelayTag, address: SocketAddr) -> SocketAddr {
        self.carry(tag, Carrier::Udp(address))
    }

    /// The address to dial for the relay with this tag, which `carrier` leads to from now on.
    pub fn carry(&self, tag: RelayTag, carrier: Carrier) -> SocketAddr {
        let index = self.change(tag, |relay| {
            let former = relay.carrier.replace(carrier.clone());
            relay.former = former.filter(|former| former.address() != carrier.address()).or(relay.former.take());
        });
        self.virtual_address(index)
    }

    /// Puts another way to the relay with this tag on trial, as long as the guard lives.
    pub fn on_trial(self: &Arc<Self>, tag: RelayTag, carrier: Carrier) -> Trial {
        let address = carrier.address();
        let index = self.change(tag, |relay| {
            // One label for what comes from there.
            relay.former = relay.former.take().filter(|former| former.address() != address);
            relay.trial = Some(carrier);
        });
        Trial { socket: self.clone(), tag, carrier: address, virtual_address: self.trial_address(index) }
    }

    /// What the carrier before the present one still brings counts no more.
    pub fn forget_former(&self, tag: RelayTag) {
        self.change(tag, |relay| relay.former = None);
    }

    /// Where packets to relays go over UDP.
    pub fn relay_addresses(&self) -> Vec<SocketAddr> {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        let carriers = paths.iter().filter_map(|path| path.relay()?.carrier.as_ref());
        carriers.filter_map(|carrier| if let Carrier::Udp(address) = carrier { Some(*address) } else { None }).collect()
    }

    /// Notes from now on whether what the link to this relay sends is answered. For one watcher: a later one takes over.
    pub fn watch(&self, tag: RelayTag) -> Arc<Silence> {
        let unanswered = Arc::new(Silence::default());
        self.change(tag, |relay| relay.unanswered = Some(unanswered.clone()));
        unanswered
    }

    /// What carries packets to the relay with this tag.
    pub fn carrier(&self, tag: RelayTag) -> Option<Carrier> {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        paths.iter().find(|path| path.has_tag(tag))?.relay()?.carrier.clone()
    }

    /// The largest packets that are worth trying on every way there is now: an end-to-end connection may come to go by any of them.
    pub fn packet_bytes(&self) -> u16 {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        let carriers = paths.iter().filter_map(|path| path.relay()?.carrier.as_ref());
        carriers.map(Carrier::packet_bytes).min().unwrap_or(quic::PACKET_BYTES)
    }

    /// Changes a path, which is made when there is none, and returns its index.
    fn change(&self, tag: RelayTag, change: impl FnOnce(&mut RelayPath)) -> usize {
        let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        let known = paths.iter().position(|path| path.has_tag(tag));
        let index = known.unwrap_or(paths.len());
        if known.is_none() {
            paths.push(Path::Relay(RelayPath::new(tag)));
        }
        if let Some(Path::Relay(relay)) = paths.get_mut(index) {
            change(relay);
        }
        index
    }

    /// The address to dial through a relay in this process.
    pub fn memory_path(&self, port: Arc<dyn Port>) -> SocketAddr {
        let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        paths.push(Path::Memory(port));
        self.virtual_address(paths.len() - 1)
    }

    /// Sends end-to-end packets through the relay with this tag from now on.
    pub fn activate(&self, tag: RelayTag) {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = paths.iter().position(|path| path.has_tag(tag)) {
            self.active.store(index, Ordering::Relaxed);
            if self.direct.active().is_none() {
                self.silence.heard();
            }
        }
    }

    /// Whether what a peer sends end to end, by its active path or directly, is answered.
    pub fn silence(&self) -> &Silence {
        &self.silence
    }

    /// Which path an address that quinn shows stands for, as an index in the order the paths were added.
    pub fn path_index(&self, address: SocketAddr) -> Option<usize> {
        match address {
            SocketAddr::V4(v4) if v4.ip().octets()[..3] == [240, 0, 0] => Some(usize::from(v4.ip().octets()[3])),
            _ => None,
        }
    }

    /// 240.0.0.0/4 is reserved: no real packet comes from there. Another last byte makes quinn reset what it learned about the
    /// path when a peer moves to another relay, which is right. A peer shows one address for all of its paths: a quinn client drops packets from
    /// any address that it did not dial.
    fn virtual_address(&self, index: usize) -> SocketAddr {
        let last = if self.role == Role::Hub { u8::try_from(index).unwrap_or(u8::MAX) } else { 0 };
        SocketAddr::from(([240, 0, 0, last], 1))
    }

    /// Connections that try a carrier out dial this instead.
    fn trial_address(&self, index: usize) -> SocketAddr {
        SocketAddr::from(([240, 0, 1, u8::try_from(index).unwrap_or(u8::MAX)], 1))
    }

    fn outgoing(&self, paths: &[Path], transmit: &Transmit<'_>) -> Option<usize> {
        if let Some(Destination::Relay(tag)) = destination(transmit.contents) {
            return paths.iter().position(|path| path.has_tag(tag));
        }
        match self.role {
            Role::Peer => {
                // Links have their own pings; only what goes to the hub counts.
                self.silence.sent();
                Some(self.active.load(Ordering::Relaxed))
            }
            Role::Hub => self.path_index(transmit.destination),
        }
    }
}

/// A carrier on trial; see [`NodeSocket::on_trial`].
#[derive(Debug)]
pub struct Trial {
    socket: Arc<NodeSocket>,
    tag: RelayTag,
    carrier: SocketAddr,
    /// The address to dial to try it out.
    pub virtual_address: SocketAddr,
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.socket.change(self.tag, |relay| {
            if RelayPath::is(relay.trial.as_ref(), &self.carrier) {
                relay.trial = None;
            }
        });
    }
}

impl fmt::Debug for NodeSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSocket").field("role", &self.role).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for NodeSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let mut pollers = vec![self.udp.clone().create_io_poller()];
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        pollers.extend(paths.iter().filter_map(Path::port).map(|port| port.poller()));
        Box::pin(AllWritable(pollers))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Some(way) = self.direct_way(transmit) {
            return match self.udp.try_send(&Transmit { destination: way, src_ip: transmit.src_ip, ..borrowed(transmit) }) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
                _ => Ok(()),
            };
        }
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        let Some((index, path)) = self.outgoing(&paths, transmit).and_then(|index| Some((index, paths.get(index)?))) else { return Ok(()) };
        let sent = match path {
            Path::Memory(port) => port.try_send(transmit),
            Path::Relay(relay) => {
                let on_trial = transmit.destination == self.trial_address(index);
                if let Some(unanswered) = relay.unanswered.as_ref().filter(|_| !on_trial && is_of_link(transmit.contents)) {
                    unanswered.sent_in_turn();
                }
                match if on_trial { &relay.trial } else { &relay.carrier } {
                    Some(Carrier::Udp(address)) => self.udp.try_send(&Transmit { destination: *address, ..borrowed(transmit) }),
                    Some(Carrier::Tunnel(tunnel)) => {
                        tunnel.send(transmit);
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
        };
        match sent {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                tracing::trace!(%error, "a path refused a packet");
                Ok(())
            }
            result => result,
        }
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        for (index, path) in paths.iter().enumerate() {
            let Path::Memory(port) = path else { continue };
            if let Poll::Ready(received) = port.poll_recv(cx, bufs, meta) {
                let address = self.virtual_address(index);
                meta[..received].iter_mut().for_each(|m| relabel(m, address));
                return Poll::Ready(Ok(received));
            }
        }
        // Half of the buffers at most, so that tunnels do not starve the socket.
        let half = bufs.len().div_ceil(2);
        let tunnelled = self.inbox.poll(cx, &mut bufs[..half], meta);
        let received = match self.udp.poll_recv(cx, &mut bufs[tunnelled..], &mut meta[tunnelled..]) {
            Poll::Ready(Ok(received)) => tunnelled + received,
            _ if tunnelled > 0 => tunnelled,
            Poll::Ready(Err(error)) => {
                // Anything but Pending would end the endpoint, or spin in it.
                tracing::debug!(%error, "the socket could not receive");
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Pending => return Poll::Pending,
        };
        let active = self.active.load(Ordering::Relaxed);
        let directly = self.direct.active();
        for (nth, (buffer, m)) in bufs.iter_mut().zip(&mut meta[..received]).enumerate() {
            let is_virtual = tunnel::is_virtual(&m.addr);
            match self.incoming(&paths, &m.addr).filter(|_| nth < tunnelled || !is_virtual) {
                Some((index, address)) => {
                    if index == active && directly.is_none() {
                        self.silence.heard();
                    }
                    let by_carrier = address == self.virtual_address(index);
                    if let Some(unanswered) = paths[index].relay().and_then(|relay| relay.unanswered.as_ref()).filter(|_| by_carrier) {
                        unanswered.heard_in_turn();
                    }
                    relabel(m, address);
                }
                None if is_virtual || nth < tunnelled => m.len = 0, // quinn skips empty ones
                None => self.take_direct(buffer, m, directly),
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.least(self.udp.max_transmit_segments(), |port| port.max_segments().0)
    }

    fn max_receive_segments(&self) -> usize {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        let ports = paths.iter().filter_map(Path::port).map(|port| port.max_segments().1);
        ports.chain([self.udp.max_receive_segments()]).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}

impl NodeSocket {
    /// The path that these packets came by, and what quinn calls it.
    fn incoming(&self, paths: &[Path], from: &SocketAddr) -> Option<(usize, SocketAddr)> {
        paths.iter().enumerate().find_map(|(index, path)| {
            let relay = path.relay()?;
            if RelayPath::is(relay.carrier.as_ref(), from) || RelayPath::is(relay.former.as_ref(), from) {
                return Some((index, self.virtual_address(index)));
            }
            RelayPath::is(relay.trial.as_ref(), from).then(|| (index, self.trial_address(index)))
        })
    }

    /// Where an end-to-end packet goes directly, if it does.
    fn direct_way(&self, transmit: &Transmit<'_>) -> Option<SocketAddr> {
        match self.role {
            Role::Hub => Some(transmit.destination).filter(|to| self.direct.knows(to)),
            Role::Peer => {
                let way = self.direct.active()?;
                // Links stay where they are, and a connection begins through a relay.
                let end_to_end = matches!(destination(transmit.contents), Some(Destination::Route(_)));
                let way = (end_to_end && cortex_wire::direct::is_short_header(transmit.contents)).then_some(way)?;
                self.silence.sent();
                Some(way)
            }
        }
    }

    /// What came from an address that is no relay's.
    fn take_direct(&self, buffer: &mut [u8], meta: &mut RecvMeta, way: Option<SocketAddr>) {
        if way == Some(meta.addr) {
            self.silence.heard();
        }
        self.direct.receive(buffer, meta, |answer| self.send_probe(answer));
        if self.role == Role::Peer {
            relabel(meta, self.virtual_address(0));
        }
    }

    fn least(&self, own: usize, of_port: impl Fn(&Arc<dyn Port>) -> usize) -> usize {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        let ports = paths.iter().filter_map(Path::port).map(of_port);
        ports.chain([own]).min().unwrap_or(1)
    }
}

/// The same packets, from whatever address of this machine.
fn borrowed<'a>(transmit: &Transmit<'a>) -> Transmit<'a> {
    Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn,
        contents: transmit.contents,
        segment_size: transmit.segment_size,
        src_ip: None,
    }
}

/// Whether a packet is for a relay itself.
fn is_of_link(packet: &[u8]) -> bool {
    matches!(destination(packet), Some(Destination::Relay(_)))
}

fn relabel(meta: &mut RecvMeta, address: SocketAddr) {
    meta.addr = address;
    meta.dst_ip = None;
}
