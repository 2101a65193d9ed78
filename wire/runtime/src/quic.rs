//! QUIC set-up: sockets, transport settings, and connection ids that carry a destination.
//!
//! Connection ids are addresses (see [`cortex_wire::route`]): every endpoint issues ids that begin with its own [`Prefix`], and a client
//! puts the server's prefix into its very first packet.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use cortex_wire::{
    ALPN_LINK, ALPN_MESH,
    key::{PublicKey, SecretKey},
    limits::{self, LARGEST_PACKET_BYTES},
    route::{CID_LEN, INITIAL_CID_LEN, RelayTag, Route},
};
use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt, congestion::CubicConfig,
};

use crate::{clock, tls};

/// What an endpoint's connection ids begin with.
#[derive(Debug, Clone, Copy)]
pub enum Prefix {
    /// A relay's own endpoint.
    Relay(RelayTag),
    /// A node or a hub.
    Route(Route),
}

impl Prefix {
    fn connection_id<const N: usize>(self) -> ConnectionId {
        let random = clock::random::<N>();
        ConnectionId::new(&match self {
            Self::Relay(tag) => tag.connection_id(random),
            Self::Route(route) => route.connection_id(random),
        })
    }
}

impl ConnectionIdGenerator for Prefix {
    fn generate_cid(&mut self) -> ConnectionId {
        self.connection_id::<CID_LEN>()
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What a connection is for; decides windows and stream limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Node to hub: tasks and their output.
    Mesh,
    /// Node or hub to relay: a handshake and few small frames, and once it is admitted ([`widen`]), chunks.
    Link,
}

impl Purpose {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Mesh => ALPN_MESH,
            Self::Link => ALPN_LINK,
        }
    }
}

/// Settings of an endpoint that issues ids under `prefix`. `reset_key` makes stateless resets; a relay derives it from its identity, so that
/// a restarted relay can tell its old links at once that they are gone.
pub fn endpoint_config(prefix: Prefix, reset_key: &[u8; 32]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_key)));
    config.cid_generator(move || Box::new(prefix));
    // The fixed bit stays set, so that a first byte always tells QUIC from anything else on the port.
    config.grease_quic_bit(false);
    config.min_reset_interval(Duration::from_millis(1));
    // It is within QUIC's limits, so it is not refused.
    let _ = config.max_udp_payload_size(LARGEST_PACKET_BYTES);
    config
}

/// Packets of a connection over Ethernet, in bytes: what remains of 1,500 under IPv6 or a tunnel.
pub const PACKET_BYTES: u16 = 1_452;

const ETHERNET_MTU: u32 = 1_500;

/// The largest packets that are worth trying towards a real address: larger ones where the whole way inside this machine or its network takes them (loopback, jumbo frames), which costs
/// less for each byte. QUIC still finds out by itself what arrives.
pub fn packet_bytes(towards: SocketAddr) -> u16 {
    match route_mtu(towards) {
        Some(mtu) if mtu > ETHERNET_MTU => u16::try_from(mtu - 48).unwrap_or(u16::MAX).min(LARGEST_PACKET_BYTES),
        _ => PACKET_BYTES,
    }
}

/// What the kernel knows of the way there; no packet leaves for that.
#[cfg(target_os = "linux")]
fn route_mtu(towards: SocketAddr) -> Option<u32> {
    let socket = connected(&towards).ok()?;
    let mtu = if towards.is_ipv4() { rustix::net::sockopt::ip_mtu(&socket) } else { rustix::net::sockopt::ipv6_mtu(&socket) };
    mtu.ok()
}

#[cfg(not(target_os = "linux"))]
fn route_mtu(_: SocketAddr) -> Option<u32> {
    None
}

/// A socket of the kernel's choice for packets to there.
pub(crate) fn connected(towards: &SocketAddr) -> io::Result<std::net::UdpSocket> {
    let any: IpAddr = if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(towards)?;
    Ok(socket)
}

/// Settings for accepting connections as `key`.
///
/// # Errors
/// When TLS refuses them.
pub fn server_config(key: &SecretKey, purpose: Purpose) -> Result<quinn::ServerConfig, rustls::Error> {
    let tls = tls::server(key, purpose.alpn())?;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = transport(purpose, PACKET_BYTES);
    if purpose == Purpose::Mesh {
        // The hub opens every stream of the end-to-end connection.
        transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    }
    config.transport_config(Arc::new(transport));
    config.max_incoming(1024);
    Ok(config)
}

/// Settings for dialling the server with this `prefix` and, when given, this key, with packets of at most `packet_bytes`.
///
/// # Errors
/// When TLS refuses them.
pub fn client_config(
    key: &SecretKey,
    expected: Option<PublicKey>,
    prefix: Prefix,
    purpose: Purpose,
    packet_bytes: u16,
) -> Result<quinn::ClientConfig, rustls::Error> {
    let tls = tls::client(key, expected, purpose.alpn())?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.initial_dst_cid_provider(Arc::new(move || prefix.connection_id::<INITIAL_CID_LEN>()));
    let mut transport = transport(purpose, packet_bytes);
    // The client keeps the path and the NAT mapping alive; one side is enough.
    transport.keep_alive_interval(Some(Duration::from_secs(10)));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Settings of a link for whoever accepts it, with packets of at most `packet_bytes`.
pub fn accepted_link(packet_bytes: u16) -> Arc<TransportConfig> {
    Arc::new(transport(Purpose::Link, packet_bytes))
}

/// Windows as measured in the design's transport report: they matter from 50 ms of round trip on, and are limits, not allocations. What is
/// allocated is state per allowed incoming stream, so those are few on links.
fn transport(purpose: Purpose, packet_bytes: u16) -> TransportConfig {
    let mut config = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(packet_bytes);
    config.mtu_discovery_config(Some(discovery));
    config.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))));
    config.initial_rtt(Duration::from_millis(100));
    config.datagram_receive_buffer_size(None);
    let mut cubic = CubicConfig::default();
    // A larger start keeps the gap short when a path changes under a running transfer.
    cubic.initial_window(64 << 10);
    config.congestion_controller_factory(Arc::new(cubic));
    match purpose {
        Purpose::Mesh => {
            config.stream_receive_window(VarInt::from_u32(MESH_STREAM_WINDOW));
            config.receive_window(VarInt::from_u32(16 << 20));
            config.send_window(16 << 20);
            // The control stream, and one stream for each task; a peer raises the number to its slots.
            config.max_concurrent_bidi_streams(VarInt::from_u32(16));
            config.max_concurrent_uni_streams(VarInt::from_u32(0));
        }
        Purpose::Link => {
            // The connection's window bounds it until the link is admitted.
            config.stream_receive_window(VarInt::from_u32(LINK_STREAM_WINDOW));
            config.receive_window(VarInt::from_u32(256 << 10));
            config.send_window(256 << 10);
            config.max_concurrent_bidi_streams(VarInt::from_u32(1));
            config.max_concurrent_uni_streams(VarInt::from_u32(0));
        }
    }
    config
}

/// Raises how many task streams the other side may open on a connection.
pub fn allow_streams(connection: &quinn::Connection, streams: u32) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
}

/// What one stream of an end-to-end connection may bring before it is read.
const MESH_STREAM_WINDOW: u32 = 4 << 20;

/// What one stream of a link may bring before it is read.
const LINK_STREAM_WINDOW: u32 = 2 << 20;

/// Opens an admitted link for chunks. `theirs` and `ours`: streams that each side opens at a time.
///
/// All of them may stand still, because nobody reads on, and there is still room for the link's own frames: else a slow disk would end links.
pub fn widen(connection: &quinn::Connection, theirs: u32, ours: u32) {
    connection.set_receive_window(VarInt::from_u32(link_window(theirs + ours)));
    connection.set_send_window(MOST_SENT);
    // And the link's own, which is open from the beginning.
    allow_streams(connection, theirs + 1);
}

/// Opens an end-to-end connection for chunks, over a direct way. `theirs`: streams that the other side opens for them at a time; a hub's other streams are its own.
pub fn carry_chunks(connection: &quinn::Connection, theirs: u32) {
    // Each of them may stand still at its window, and there is still room for tasks.
    connection.set_receive_window(VarInt::from_u32((limits::CHUNK_STREAMS + 4).saturating_mul(MESH_STREAM_WINDOW)));
    if theirs > 0 {
        allow_streams(connection, theirs);
    }
}

/// What a link may hold of what was sent and not acknowledged.
const MOST_SENT: u64 = 8 << 20;
const LEAST_SENT: u64 = 512 << 10;

/// Lets a link hold as much of what is sent on it as its line has shown to carry, twice: so one whose other end falls silent costs little, and a fast one is not held back.
pub fn follow_line(connection: &quinn::Connection) {
    let carries = connection.stats().path.cwnd;
    connection.set_send_window(carries.saturating_mul(2).clamp(LEAST_SENT, MOST_SENT));
}

/// Makes a widened link speak at once, so that the other end learns of a new way to it: quinn has no ping of its own, but a larger window is told. `times`
/// grows from call to call.
pub(crate) fn nudge(connection: &quinn::Connection, streams: u32, times: u32) {
    connection.set_receive_window(VarInt::from_u32(link_window(streams).saturating_add(times)));
}

fn link_window(streams: u32) -> u32 {
    (streams + 1).saturating_mul(LINK_STREAM_WINDOW)
}

/// A UDP socket with buffers that hold a burst: without them loopback alone loses thousands of packets.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    const BUFFER_BYTES: usize = 4 << 20;
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    // Best effort: the kernel caps them at its own limit.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    if address.is_ipv6() {
        // A v4-mapped address would reset the congestion window at every rebinding.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_large_as_the_way_takes() {
        let large = if cfg!(target_os = "linux") { LARGEST_PACKET_BYTES } else { PACKET_BYTES };
        for address in ["127.0.0.1:9", "[::1]:9"] {
            assert_eq!(packet_bytes(address.parse().unwrap()), large, "{address}");
        }
        // Nobody knows a way there, or one of Ethernet.
        assert!((PACKET_BYTES..LARGEST_PACKET_BYTES).contains(&packet_bytes("192.0.2.1:9".parse().unwrap())));
        let config = endpoint_config(Prefix::Relay(RelayTag::of(&SecretKey::from_seed([1; 32]).public())), &[0; 32]);
        assert_eq!(config.get_max_udp_payload_size(), u64::from(LARGEST_PACKET_BYTES));
    }
}
