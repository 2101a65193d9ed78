//! The client's side of a link to a relay, for peers and hubs: dial, say hello, be welcomed or refused.

use std::{net::SocketAddr, time::Duration};

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

use crate::{
    quic::{self, Prefix, Purpose},
    stream::{FrameReader, FrameWriter, StreamError},
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
}

/// Finds the address of a relay; IPv4 is wanted because the socket is.
///
/// # Errors
/// [`LinkError::Resolve`].
pub async fn resolve(relay: &RelayEndpoint) -> Result<SocketAddr, LinkError> {
    let failed = |source| LinkError::Resolve { address: relay.address.clone(), source };
    let mut found = tokio::net::lookup_host(&relay.address).await.map_err(failed)?;
    found.find(SocketAddr::is_ipv4).ok_or_else(|| failed(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no IPv4 address")))
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
    let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
    let silent = Err(LinkError::Silent { address: relay.address.clone() });
    tokio::time::timeout(patience, shake_hands(endpoint, virtual_address, relay, key, hello)).await.unwrap_or(silent)
}

async fn shake_hands(
    endpoint: &Endpoint,
    virtual_address: SocketAddr,
    relay: &RelayEndpoint,
    key: &SecretKey,
    hello: LinkHello,
) -> Result<Link, LinkError> {
    // A relay asks its hub for chunks, and nodes for nothing; a node asks the relay.
    let is_hub = matches!(hello.credential, Some(Credential::Hub(_)));
    let (theirs, ours) = if is_hub { (limits::RELAY_CHUNK_STREAMS, 0) } else { (0, limits::CHUNK_STREAMS) };
    let prefix = Prefix::Relay(RelayTag::of(relay.id.key()));
    let config = quic::client_config(key, Some(*relay.id.key()), prefix, Purpose::Link)?;
    let connection = endpoint.connect_with(config, virtual_address, "relay.cortex.invalid")?.await.map_err(|source| match source {
        quinn::ConnectionError::TimedOut => LinkError::Silent { address: relay.address.clone() },
        source => LinkError::Connect { address: relay.address.clone(), source },
    })?;
    let (send, recv) = connection.open_bi().await?;
    let mut writer = FrameWriter::new(send);
    let mut reader = FrameReader::new(recv, limits::CONTROL_FRAME_BYTES);
    writer.send(&hello).await?;
    let answer: LinkAnswer = reader.expect().await?;
    match answer.answer {
        Some(Answer::Welcome(welcome)) => {
            quic::widen(&connection, theirs, ours);
            Ok(Link { connection, welcome, reader, writer })
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
