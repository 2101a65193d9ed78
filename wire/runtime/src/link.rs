//! The client's side of a link to a relay, for peers and hubs: dial, say hello, be welcomed or refused.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use cortex_wire::{
    PROTOCOL_VERSION,
    close::CloseCode,
    invite::RelayEndpoint,
    key::SecretKey,
    limits,
    route::RelayTag,
    schema::{LinkAnswer, LinkHello, LinkRefused, LinkWelcome, link_answer::Answer, link_hello::Credential},
};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::task::JoinHandle;

use crate::{
    quic::{self, Prefix, Purpose},
    stream::{FrameReader, FrameWriter, StreamError},
    tunnel::TunnelError,
};

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The relay's name could not be resolved.
    #[error("cannot resolve {address}; check the name and this machine's DNS")]
    Resolve {
        /// `host:port`.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answered.
    #[error("no answer from relay {address}; is UDP to it blocked by a firewall?")]
    Silent {
        /// `host:port`.
        address: String,
    },
    /// Somebody answered, and not as the relay with the pinned key should.
    #[error("no link to relay {address}: {source}")]
    Connect {
        /// `host:port`.
        address: String,
        /// Why.
        source: quinn::ConnectionError,
    },
    /// QUIC refuses to dial.
    #[error("cannot dial: {0}")]
    Dial(#[from] quinn::ConnectError),
    /// TLS refuses the configuration.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The handshake broke off.
    #[error("the relay broke off the handshake: {0}")]
    Stream(#[from] StreamError),
    /// The connection was closed during the handshake.
    #[error("the relay closed the connection: {0}")]
    Closed(#[from] quinn::ConnectionError),
    /// Not over TCP.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// Neither over UDP nor over TCP.
    #[error("no way to the relay; over UDP: {udp}; over TCP: {tcp}")]
    Nowhere {
        /// What went wrong over UDP.
        udp: Box<LinkError>,
        /// What went wrong over TCP.
        tcp: Box<LinkError>,
    },
    /// The relay said no.
    #[error("refused ({}): {}", .0.code, .0.reason)]
    Refused(LinkRefused),
}

/// A link, welcomed.
#[derive(Debug)]
pub struct Link {
    /// The connection to the relay.
    pub connection: Connection,
    /// What the relay said.
    pub welcome: LinkWelcome,
    /// Frames from the relay.
    pub reader: FrameReader<RecvStream>,
    /// Frames to the relay.
    pub writer: FrameWriter<SendStream>,
    /// Looks after what carries it, when somebody does.
    pub(crate) keeper: Option<AbortOnDrop>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Finds the addresses of a relay that this machine has a way to: at most one of IPv4 and one of IPv6, in the system's order.
///
/// # Errors
/// [`LinkError::Resolve`].
pub async fn resolve(relay: &RelayEndpoint) -> Result<Vec<SocketAddr>, LinkError> {
    let failed = |source| LinkError::Resolve { address: relay.address.clone(), source };
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in tokio::net::lookup_host(&relay.address).await.map_err(failed)? {
        if found.iter().all(|known| known.is_ipv4() != address.is_ipv4()) && own_address(&address).is_some() {
            found.push(address);
        }
    }
    let nowhere = || std::io::Error::new(std::io::ErrorKind::NotFound, "this machine has no way to any of its addresses");
    if found.is_empty() { Err(failed(nowhere())) } else { Ok(found) }
}

/// What the kernel would send from; no packet leaves for that. `None`: there is no way.
pub(crate) fn own_address(towards: &SocketAddr) -> Option<IpAddr> {
    Some(quic::connected(towards).ok()?.local_addr().ok()?.ip())
}

/// Dials a relay at the address that [`crate::socket::NodeSocket::relay_path`] gave for it, and shakes hands.
///
/// # Errors
/// [`LinkError`].
pub async fn dial(
    endpoint: &Endpoint,
    virtual_address: SocketAddr,
    relay: &RelayEndpoint,
    key: &SecretKey,
    hello: LinkHello,
) -> Result<Link, LinkError> {
    greet(connect(endpoint, virtual_address, relay, key, quic::PACKET_BYTES).await?, relay, hello).await
}

/// The first half of [`dial`]: a connection, with packets of at most `packet_bytes`, that proves that the relay is there. Nobody is told that it is.
///
/// # Errors
/// [`LinkError`].
pub async fn connect(
    endpoint: &Endpoint,
    virtual_address: SocketAddr,
    relay: &RelayEndpoint,
    key: &SecretKey,
    packet_bytes: u16,
) -> Result<Connection, LinkError> {
    let prefix = Prefix::Relay(RelayTag::of(relay.id.key()));
    let config = quic::client_config(key, Some(*relay.id.key()), prefix, Purpose::Link, packet_bytes)?;
    let connecting = endpoint.connect_with(config, virtual_address, "relay.cortex.invalid")?;
    in_time(relay, async {
        connecting.await.map_err(|source| match source {
            quinn::ConnectionError::TimedOut => LinkError::Silent { address: relay.address.clone() },
            source => LinkError::Connect { address: relay.address.clone(), source },
        })
    })
    .await
}

/// The second half of [`dial`]: says hello.
///
/// # Errors
/// [`LinkError`].
pub async fn greet(connection: Connection, relay: &RelayEndpoint, hello: LinkHello) -> Result<Link, LinkError> {
    in_time(relay, shake_hands(connection, hello)).await
}

async fn in_time<T>(relay: &RelayEndpoint, work: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
    let silent = Err(LinkError::Silent { address: relay.address.clone() });
    tokio::time::timeout(patience, work).await.unwrap_or(silent)
}

async fn shake_hands(connection: Connection, hello: LinkHello) -> Result<Link, LinkError> {
    // A relay asks its hub for chunks, and nodes for nothing; a node asks the relay.
    let is_hub = matches!(hello.credential, Some(Credential::Hub(_)));
    let (theirs, ours) = if is_hub { (limits::RELAY_CHUNK_STREAMS, 0) } else { (0, limits::CHUNK_STREAMS) };
    let (send, recv) = connection.open_bi().await?;
    let mut writer = FrameWriter::new(send);
    let mut reader = FrameReader::new(recv, limits::CONTROL_FRAME_BYTES);
    writer.send(&hello).await?;
    let answer: LinkAnswer = reader.expect().await?;
    match answer.answer {
        Some(Answer::Welcome(welcome)) => {
            quic::widen(&connection, theirs, ours);
            Ok(Link { connection, welcome, reader, writer, keeper: None })
        }
        Some(Answer::Refused(refused)) => {
            connection.close(VarInt::from_u32(CloseCode::Done.number()), b"");
            Err(LinkError::Refused(refused))
        }
        None => Err(LinkError::Stream(cortex_wire::frame::FrameError::Malformed.into())),
    }
}

/// A hello for `hub`, with or without a credential.
pub fn hello(agent: &str, hub: &cortex_wire::id::HubId, credential: Option<Credential>) -> LinkHello {
    LinkHello { version: PROTOCOL_VERSION, agent: agent.to_owned(), hub_root: hub.key().to_bytes(), credential }
}
