//! A node made by hand, in the process of the test: it says what a real peer would not, to relays and hubs.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use cortex_runtime::{
    clock,
    link::{self, Link, LinkError},
    quic::{self, Prefix, Purpose},
    socket::{NodeSocket, Role},
    stream::{FrameReader, FrameWriter},
    tls,
};
use cortex_wire::{
    PROTOCOL_VERSION,
    id::{HubId, RelayId},
    invite::RelayEndpoint,
    key::SecretKey,
    limits,
    route::{RelayTag, Route},
    schema::{Enrolment, HubHello, RegistrationRequest, SyncConfiguration, link_hello::Credential},
};
use quinn::{Connection, Endpoint, RecvStream, SendStream};

/// For everything that it waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The node.
#[derive(Debug)]
pub struct Rogue {
    /// Its key.
    pub key: SecretKey,
    endpoint: Endpoint,
    socket: Arc<NodeSocket>,
}

/// Its connection to a hub, on which the hub has said hello.
#[derive(Debug)]
pub struct Talk {
    /// The connection.
    pub connection: Connection,
    /// The relay that it goes through.
    pub relay: RelayId,
    /// What the hub said.
    pub hello: HubHello,
    /// Frames from the hub.
    pub reader: FrameReader<RecvStream>,
    /// Frames to the hub.
    pub writer: FrameWriter<SendStream>,
}

impl Rogue {
    /// A node with a fresh key.
    ///
    /// # Errors
    /// When there is no socket.
    pub fn new() -> Result<Self> {
        Self::with_key(SecretKey::from_seed(clock::random()))
    }

    /// A node with this key.
    ///
    /// # Errors
    /// When there is no socket.
    pub fn with_key(key: SecretKey) -> Result<Self> {
        let socket = NodeSocket::bind(Role::Peer)?;
        let config = quic::endpoint_config(Prefix::Route(Route::of(&key.public())), &clock::random());
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket.clone(), Arc::new(quinn::TokioRuntime))?;
        Ok(Self { key, endpoint, socket })
    }

    fn path_to(&self, relay: &RelayEndpoint) -> Result<SocketAddr> {
        let tag = RelayTag::of(relay.id.key());
        let address = self.socket.relay_path(tag, relay.address.parse()?);
        self.socket.activate(tag);
        Ok(address)
    }

    /// Links to a relay with a credential, or without.
    ///
    /// # Errors
    /// A [`LinkError`] inside; [`refusal`] finds the code of a refusal in it.
    pub async fn link(&self, relay: &RelayEndpoint, hub: &HubId, credential: Option<Credential>) -> Result<Link> {
        let address = self.path_to(relay)?;
        let hello = link::hello("rogue 0", hub, credential);
        Ok(link::dial(&self.endpoint, address, relay, &self.key, hello).await?)
    }

    /// Connects to a relay, and says nothing yet.
    ///
    /// # Errors
    /// When the relay does not answer.
    pub async fn connect(&self, relay: &RelayEndpoint) -> Result<Connection> {
        let prefix = Prefix::Relay(RelayTag::of(relay.id.key()));
        let config = quic::client_config(&self.key, Some(*relay.id.key()), prefix, Purpose::Link, quic::PACKET_BYTES)?;
        let connecting = self.endpoint.connect_with(config, self.path_to(relay)?, "relay.invalid")?;
        Ok(tokio::time::timeout(PATIENCE, connecting).await.context("the relay does not answer")??)
    }

    /// Connects to a hub through a relay it is linked to, and hears its hello.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn talk(&self, relay: &RelayEndpoint, hub: &HubId) -> Result<Talk> {
        let prefix = Prefix::Route(Route::of(hub.key()));
        let config = quic::client_config(&self.key, None, prefix, Purpose::Mesh, quic::PACKET_BYTES)?;
        let connecting = self.endpoint.connect_with(config, self.path_to(relay)?, "hub.invalid")?;
        let talk = async {
            let connection = connecting.await?;
            let (send, recv) = connection.accept_bi().await?;
            let mut reader = FrameReader::new(recv, limits::CONTROL_FRAME_BYTES);
            let hello: HubHello = reader.expect().await?;
            ensure!(hello.version == PROTOCOL_VERSION, "the hub speaks version {}", hello.version);
            Ok(Talk { connection, relay: relay.id, hello, reader, writer: FrameWriter::new(send) })
        };
        tokio::time::timeout(PATIENCE, talk).await.context("the hub does not answer")?
    }
}

impl Talk {
    /// What ties an enrolment to this connection.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn exporter(&self) -> Result<[u8; 32]> {
        Ok(tls::exporter(&self.connection)?)
    }

    /// Registers, with or without an enrolment, and returns what the hub decided.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn register(&mut self, enrolment: Option<Enrolment>) -> Result<SyncConfiguration> {
        let request = RegistrationRequest {
            version: PROTOCOL_VERSION,
            agent: "rogue 0".into(),
            name: "rogue".into(),
            relay_id: self.relay.to_string(),
            boot_nonce: clock::random::<32>().to_vec().into(),
            enrolment,
            ..RegistrationRequest::default()
        };
        self.writer.send(&request).await?;
        Ok(tokio::time::timeout(PATIENCE, self.reader.expect()).await.context("the hub does not answer")??)
    }
}

/// The code with which a relay refused a link.
///
/// # Errors
/// When it did not.
pub fn refusal(linked: Result<Link>) -> Result<String> {
    match linked.err().context("the relay should have refused")?.downcast::<LinkError>()? {
        LinkError::Refused(refused) => Ok(refused.code),
        other => Err(other.into()),
    }
}
