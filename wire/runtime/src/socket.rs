//! The one socket under all of a node's connections.
//!
//! quinn sees a stable virtual address for each path; packets really leave to, and arrive from, the path's relay. A node has
//! one UDP socket; a hub may also reach the relay inside its own process through a [`Port`] in memory.
//!
//! - Outgoing packets for a relay's own endpoint (their connection id says so) go to that relay.
//! - Outgoing end-to-end packets go by the *active* path of a peer, or by the path that the virtual address names on a hub.
//! - Incoming packets from anywhere but a known path are dropped here.
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
    AsyncUdpSocket, Runtime as _, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use crate::{quic, silence::Silence};

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

/// Where a path leads.
#[derive(Debug, Clone)]
enum Path {
    Relay { tag: RelayTag, address: SocketAddr },
    Memory(Arc<dyn Port>),
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
    paths: RwLock<Vec<Path>>,
    active: AtomicUsize,
    /// Of the active path.
    silence: Silence,
}

impl NodeSocket {
    /// A socket on a port of the operating system's choice, without paths yet.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn bind(role: Role) -> io::Result<Arc<Self>> {
        let udp = quinn::TokioRuntime.wrap_udp_socket(quic::bind_udp((Ipv4Addr::UNSPECIFIED, 0).into())?)?;
        Ok(Arc::new(Self { role, udp, paths: RwLock::default(), active: AtomicUsize::new(0), silence: Silence::default() }))
    }

    /// The address to dial for the relay with this tag at `address`. The same tag keeps its virtual address when it moves.
    pub fn relay_path(&self, tag: RelayTag, address: SocketAddr) -> SocketAddr {
        let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        let known = paths.iter().position(|path| matches!(path, Path::Relay { tag: t, .. } if *t == tag));
        let index = known.unwrap_or(paths.len());
        let path = Path::Relay { tag, address };
        if index == paths.len() {
            paths.push(path)
        } else {
            paths[index] = path
        }
        self.virtual_address(index)
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
        if let Some(index) = paths.iter().position(|path| matches!(path, Path::Relay { tag: t, .. } if *t == tag)) {
            self.active.store(index, Ordering::Relaxed);
            self.silence.heard();
        }
    }

    /// Whether what a peer sends end to end by its active path is answered.
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

    fn outgoing(&self, paths: &[Path], transmit: &Transmit<'_>) -> Option<usize> {
        if let Some(Destination::Relay(tag)) = destination(transmit.contents) {
            return paths.iter().position(|path| matches!(path, Path::Relay { tag: t, .. } if *t == tag));
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

impl fmt::Debug for NodeSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSocket").field("role", &self.role).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for NodeSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let mut pollers = vec![self.udp.clone().create_io_poller()];
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        pollers.extend(paths.iter().filter_map(|path| match path {
            Path::Memory(port) => Some(port.poller()),
            Path::Relay { .. } => None,
        }));
        Box::pin(AllWritable(pollers))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        let sent = match self.outgoing(&paths, transmit).and_then(|index| paths.get(index)) {
            Some(Path::Relay { address, .. }) => self.udp.try_send(&Transmit {
                destination: *address,
                ecn: transmit.ecn,
                contents: transmit.contents,
                segment_size: transmit.segment_size,
                src_ip: None,
            }),
            Some(Path::Memory(port)) => port.try_send(transmit),
            None => Ok(()),
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
        let received = match self.udp.poll_recv(cx, bufs, meta) {
            Poll::Ready(Ok(received)) => received,
            Poll::Ready(Err(error)) => {
                // Anything but Pending would end the endpoint, or spin in it.
                tracing::debug!(%error, "the socket could not receive");
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Pending => return Poll::Pending,
        };
        let active = self.active.load(Ordering::Relaxed);
        for m in &mut meta[..received] {
            let index = paths.iter().position(|path| matches!(path, Path::Relay { address, .. } if *address == m.addr));
            match index {
                Some(index) => {
                    if index == active {
                        self.silence.heard();
                    }
                    relabel(m, self.virtual_address(index));
                }
                None => m.len = 0, // quinn skips empty ones
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
        let ports = paths.iter().filter_map(|path| match path {
            Path::Memory(port) => Some(port.max_segments().1),
            Path::Relay { .. } => None,
        });
        ports.chain([self.udp.max_receive_segments()]).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}

impl NodeSocket {
    fn least(&self, own: usize, of_port: impl Fn(&Arc<dyn Port>) -> usize) -> usize {
        let paths = self.paths.read().unwrap_or_else(PoisonError::into_inner);
        let ports = paths.iter().filter_map(|path| match path {
            Path::Memory(port) => Some(of_port(port)),
            Path::Relay { .. } => None,
        });
        ports.chain([own]).min().unwrap_or(1)
    }
}

fn relabel(meta: &mut RecvMeta, address: SocketAddr) {
    meta.addr = address;
    meta.dst_ip = None;
}

/// Ready when every socket below is.
#[derive(Debug)]
struct AllWritable(Vec<Pin<Box<dyn UdpPoller>>>);

impl UdpPoller for AllWritable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for poller in &mut self.0 {
            match poller.as_mut().poll_writable(cx) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }
}
