//! QUIC set-up: sockets, transport settings, and connection ids that carry a destination.
//!
//! Connection ids are addresses (see [`cortex_wire::route`]): every endpoint issues ids that begin with its own [`Prefix`], and a client
//! puts the server's prefix into its very first packet.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use cortex_wire::{
    ALPN_LINK, ALPN_MESH,
    key::{PublicKey, SecretKey},
    route::{CID_LEN, INITIAL_CID_LEN, RelayTag, Route},
};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt, congestion::CubicConfig};

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
    config
}

/// Settings for accepting connections as `key`.
///
/// # Errors
/// When TLS refuses them.
pub fn server_config(key: &SecretKey, purpose: Purpose) -> Result<quinn::ServerConfig, rustls::Error> {
    let tls = tls::server(key, purpose.alpn())?;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = transport(purpose);
    if purpose == Purpose::Mesh {
        // The hub opens every stream of the end-to-end connection.
        transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    }
    config.transport_config(Arc::new(transport));
    config.max_incoming(1024);
    Ok(config)
}

/// Settings for dialling the server with this `prefix` and, when given, this key.
///
/// # Errors
/// When TLS refuses them.
pub fn client_config(
    key: &SecretKey,
    expected: Option<PublicKey>,
    prefix: Prefix,
    purpose: Purpose,
) -> Result<quinn::ClientConfig, rustls::Error> {
    let tls = tls::client(key, expected, purpose.alpn())?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.initial_dst_cid_provider(Arc::new(move || prefix.connection_id::<INITIAL_CID_LEN>()));
    let mut transport = transport(purpose);
    // The client keeps the path and the NAT mapping alive; one side is enough.
    transport.keep_alive_interval(Some(Duration::from_secs(10)));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Windows as measured in the design's transport report: they matter from 50 ms of round trip on, and are limits, not allocations. What is
/// allocated is state per allowed incoming stream, so those are few on links.
fn transport(purpose: Purpose) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))));
    config.initial_rtt(Duration::from_millis(100));
    config.datagram_receive_buffer_size(None);
    let mut cubic = CubicConfig::default();
    // A larger start keeps the gap short when a path changes under a running transfer.
    cubic.initial_window(64 << 10);
    config.congestion_controller_factory(Arc::new(cubic));
    match purpose {
        Purpose::Mesh => {
            config.stream_receive_window(VarInt::from_u32(4 << 20));
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

/// What one stream of a link may bring before it is read.
const LINK_STREAM_WINDOW: u32 = 2 << 20;

/// Opens an admitted link for chunks. `theirs` and `ours`: streams that each side opens at a time.
///
/// All of them may stand still, because nobody reads on, and there is still room for the link's own frames: else a slow disk would end links.
pub fn widen(connection: &quinn::Connection, theirs: u32, ours: u32) {
    const SEND_WINDOW: u64 = 8 << 20;
    connection.set_receive_window(VarInt::from_u32(link_window(theirs + ours)));
    connection.set_send_window(SEND_WINDOW);
    // And the link's own, which is open from the beginning.
    allow_streams(connection, theirs + 1);
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
