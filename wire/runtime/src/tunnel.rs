//! The way to a relay where UDP does not get through: the same packets as messages of a WebSocket (RFC 6455) over TLS over TCP.
//!
//! The outer TLS gets through firewalls, proxies and load balancers and proves nothing: any certificate is taken. Who is there is proven by the QUIC handshake
//! inside, between the pinned keys. On both sides a tunnel is an address that no real packet comes from, and a queue of messages bounded in bytes.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cortex_wire::limits;
use futures_util::{SinkExt as _, StreamExt as _};
use quinn::udp::Transmit;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Message, client::IntoClientRequest as _, protocol::WebSocketConfig},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    packet::{Inbox, Outbox, batches},
    proxy::{ConnectError, Proxies},
};

/// What a relay serves tunnels under.
pub const PATH: &str = "/cortex-link/1";
/// A message that TCP does not take within this time finds nobody at the other end.
const STUCK: Duration = Duration::from_secs(20);
/// A tunnel that brings nothing for so long is closed: a link on it speaks every ten seconds.
const IDLE: Duration = Duration::from_secs(45);

/// The address of the `number`th tunnel: in 240.0.0.0/4, which is reserved, and above 241, because [`crate::socket`] uses 240.
pub fn address_of(number: u32) -> SocketAddr {
    const FIRST: u32 = 241 << 24;
    const COUNT: u32 = 14 << 24;
    (Ipv4Addr::from(FIRST + number % COUNT), 1).into()
}

/// Whether an address stands for something else than a place on the network.
pub fn is_virtual(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V4(v4) if v4.ip().octets()[0] >= 240)
}

/// How both sides speak WebSocket: whole batches at once, nothing larger, small buffers.
pub fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * limits::STREAM_MESSAGE_BYTES)
        .max_message_size(Some(limits::STREAM_MESSAGE_BYTES))
        .max_frame_size(Some(limits::STREAM_MESSAGE_BYTES))
}

/// Why a tunnel has ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// One side closed it.
    #[error("closed")]
    Closed,
    /// It brought nothing for too long, or took nothing.
    #[error("silent")]
    Silent,
    /// What came was not ours.
    #[error("what came was no batch of packets")]
    Malformed,
    /// TCP, TLS or WebSocket.
    #[error(transparent)]
    Broken(#[from] tungstenite::Error),
}

/// Carries messages both ways until one of them ends: out of `outbox`, and into `receive`, whose error ends it.
pub async fn pump<S>(socket: WebSocketStream<S>, outbox: &Outbox, mut receive: impl FnMut(Bytes) -> Result<(), Ended>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, mut source) = socket.split();
    let outgoing = async {
        while let Some(message) = outbox.next().await {
            match timeout(STUCK, sink.send(Message::Binary(message.into()))).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return Ended::Silent,
            }
        }
        let _ = timeout(STUCK, sink.close()).await;
        Ended::Closed
    };
    let incoming = async {
        loop {
            match timeout(IDLE, source.next()).await {
                Ok(Some(Ok(Message::Binary(message)))) => {
                    if let Err(ended) = receive(message) {
                        return ended;
                    }
                }
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
                Ok(Some(Ok(Message::Close(_))) | None) => return Ended::Closed,
                Ok(Some(Ok(Message::Text(_) | Message::Frame(_)))) => return Ended::Malformed,
                Ok(Some(Err(error))) => return error.into(),
                Err(_) => return Ended::Silent,
            }
        }
    };
    tokio::select! {
        ended = outgoing => ended,
        ended = incoming => ended,
    }
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// TCP.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The address is none.
    #[error("{0} is no address of a relay; it should be host:port")]
    Address(String),
    /// TLS.
    #[error("{address} takes connections and does not speak TLS as it should: {source}")]
    Tls {
        /// `host:port`.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// HTTP.
    #[error("{address} is there and does not answer as a relay: {source}; does a web server in front of it pass WebSocket on?")]
    NotARelay {
        /// `host:port`.
        address: String,
        /// Why.
        source: Box<tungstenite::Error>,
    },
    /// It took too long.
    #[error("no answer from {0} over TCP")]
    Slow(String),
}

/// A way to a relay. It ends when it is dropped.
pub struct Tunnel {
    address: SocketAddr,
    outbox: Arc<Outbox>,
    ended: CancellationToken,
    _stop: DropGuard,
}

impl Tunnel {
    /// Connects to `host:port`, through a proxy where one is set. What arrives goes into `inbox`, under the tunnel's address.
    ///
    /// # Errors
    /// [`TunnelError`].
    pub async fn open(address: &str, proxies: &Proxies, inbox: Arc<Inbox>) -> Result<Arc<Self>, TunnelError> {
        let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
        let socket = timeout(patience, connect(address, proxies)).await.unwrap_or_else(|_| Err(TunnelError::Slow(address.to_owned())))?;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = address_of(NEXT.fetch_add(1, Ordering::Relaxed));
        let outbox = Arc::new(Outbox::new(limits::STREAM_QUEUE_BYTES));
        let (ended, stop) = (CancellationToken::new(), CancellationToken::new());
        let (queue, over, stopped) = (outbox.clone(), ended.clone().drop_guard(), stop.clone());
        let relay = address.to_owned();
        tokio::spawn(async move {
            let receive = |message: Bytes| {
                // What finds no room is dropped, as a socket would.
                batches(&message, own).map_err(|_| Ended::Malformed)?.into_iter().for_each(|batch| _ = inbox.push(batch));
                Ok(())
            };
            let reason = tokio::select! {
                reason = pump(socket, &queue, receive) => reason,
                () = async { stopped.cancelled().await; queue.close(); tokio::time::sleep(Duration::from_secs(1)).await } => Ended::Closed,
            };
            tracing::debug!(relay, %reason, "a tunnel has ended");
            drop(over);
        });
        Ok(Arc::new(Self { address: own, outbox, ended, _stop: stop.drop_guard() }))
    }

    /// What its packets come from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends like a socket that is never full: what finds no room is dropped.
    pub fn send(&self, transmit: &Transmit<'_>) {
        let stride = transmit.segment_size.unwrap_or(transmit.contents.len());
        if self.outbox.push(transmit.contents, stride).is_err() {
            tracing::trace!("a tunnel is full; a packet was dropped");
        }
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tunnel({})", self.address.ip())
    }
}

async fn connect(
    address: &str,
    proxies: &Proxies,
) -> Result<WebSocketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>, TunnelError> {
    let no_address = || TunnelError::Address(address.to_owned());
    let (host, _) = address.rsplit_once(':').ok_or_else(no_address)?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| no_address())?;
    let request = format!("wss://{address}{PATH}").into_client_request().map_err(|_| no_address())?;
    let tcp = proxies.connect(address).await?;
    let tls = |source| TunnelError::Tls { address: address.to_owned(), source };
    let connector = TlsConnector::from(Arc::new(client_tls().map_err(|error| tls(std::io::Error::other(error)))?));
    let stream = connector.connect(name, tcp).await.map_err(tls)?;
    let no_relay = |source| TunnelError::NotARelay { address: address.to_owned(), source: Box::new(source) };
    let (socket, _) = client_async_with_config(request, stream, Some(websocket_config())).await.map_err(no_relay)?;
    Ok(socket)
}

/// TLS as browsers speak it, which takes any certificate.
///
/// # Errors
/// When rustls refuses the configuration.
pub fn client_tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// A relay makes its certificate itself, and a company's firewall puts its own in place of it: neither says anything about who carries our packets, and
/// whoever carries them can read none of them.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_tunnels_are_virtual_and_no_others() {
        for number in [0, 1, 14 << 24, u32::MAX] {
            assert!(is_virtual(&address_of(number)), "{number}");
        }
        assert_ne!(address_of(0), address_of(1));
        for real in ["127.0.0.1:1", "203.0.113.7:443", "239.255.255.255:1", "[::1]:1"] {
            assert!(!is_virtual(&real.parse().unwrap()), "{real}");
        }
    }
}
