//! Hubs and nodes small enough to see through, around a real relay.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use cortex_relay::{CacheDisk, Options, Relay, TcpOptions};
use cortex_runtime::{
    chunk::ChunkClient,
    clock,
    lifecycle::Lifecycle,
    link::{self, Link, LinkError},
    quic::{self, Prefix, Purpose},
    reach::{Network, NetworkConfig, Transport, reach},
    socket::{NodeSocket, Role},
};
use cortex_wire::{
    close::CloseCode,
    id::{HubId, NodeId, RelayId, SessionId},
    invite::RelayEndpoint,
    key::{SecretKey, state_key},
    route::{RelayTag, Route},
    schema::{
        AdmissionAnswer, FromRelay, HubCredential, KeyPurpose, LinkRefused, Signed, ToRelay, UnusedSessions, admission_answer::Answer,
        from_relay, link_hello::Credential, to_relay,
    },
    ticket::{self, Grant},
};
use quinn::{Connection, Endpoint};
use tokio::{
    net::UdpSocket,
    sync::{Mutex as AsyncMutex, mpsc},
};

pub fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

/// The hub's purpose keys are made from its number.
fn purpose_key(hub: u8, purpose: KeyPurpose) -> SecretKey {
    SecretKey::from_seed([hub.wrapping_mul(7).wrapping_add(100 + purpose as u8); 32])
}

fn statements(hub: u8) -> Vec<Signed> {
    let state = |purpose| state_key(&key(hub), purpose, &purpose_key(hub, purpose).public(), 1, 0, 0);
    vec![state(KeyPurpose::Transport), state(KeyPurpose::Ticket)]
}

pub struct Lab {
    pub relay: Arc<Relay>,
    pub address: SocketAddr,
    lifecycle: Lifecycle,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

/// A node or a hub with its link.
#[derive(Debug)]
pub struct Member {
    pub link: Arc<LinkEnd>,
    endpoint: Endpoint,
    virtual_address: SocketAddr,
    key: SecretKey,
    root: SecretKey,
    orders: Option<mpsc::Sender<ToRelay>>,
}

#[derive(Debug)]
pub struct LinkEnd {
    connection: Connection,
    pings: AsyncMutex<Option<Link>>,
}

impl Member {
    pub fn connection(&self) -> &Connection {
        &self.link.connection
    }

    /// Speaks on the link, without waiting for an answer.
    pub async fn ping(&self) {
        if let Some(link) = &mut *self.link.pings.lock().await {
            let _ = link.writer.send(&ToRelay { frame: Some(to_relay::Frame::Ping(1)) }).await;
        }
    }

    pub async fn renew(&self, ticket: Signed) {
        if let Some(link) = &mut *self.link.pings.lock().await {
            link.writer.send(&ToRelay { frame: Some(to_relay::Frame::Renew(ticket)) }).await.unwrap();
        }
    }

    /// What only a hub may say.
    pub async fn say_unused(&self, session: SessionId) {
        if let Some(link) = &mut *self.link.pings.lock().await {
            let unused = UnusedSessions { session_ids: vec![Bytes::copy_from_slice(session.as_bytes())], deleted: true };
            link.writer.send(&ToRelay { frame: Some(to_relay::Frame::Unused(unused)) }).await.unwrap();
        }
    }

    /// The chunks at the other end of its link.
    pub fn chunks(&self) -> ChunkClient {
        ChunkClient::new(self.connection().clone())
    }

    /// Tells the relay that nobody may ask for a session's chunks any more.
    pub async fn forget(&mut self, session: SessionId, deleted: bool) {
        let unused = UnusedSessions { session_ids: vec![Bytes::copy_from_slice(session.as_bytes())], deleted };
        let order = ToRelay { frame: Some(to_relay::Frame::Unused(unused)) };
        self.orders.as_ref().expect("a hub").send(order).await.unwrap();
    }

    pub async fn revoke(&mut self, node: &SecretKey) {
        let order = ToRelay { frame: Some(to_relay::Frame::Revoke(node.public().to_bytes())) };
        self.orders.as_ref().expect("a hub").send(order).await.unwrap();
    }
}

impl Lab {
    /// A relay that serves these hubs.
    pub fn start(hubs: &[u8]) -> Self {
        Self::start_with(hubs, TcpOptions::default())
    }

    /// And that takes links over TCP as it is told.
    pub fn start_with(hubs: &[u8], tcp: TcpOptions) -> Self {
        Self::start_at(hubs, ([127, 0, 0, 1], 0).into(), tcp)
    }

    /// With a disk for its cache.
    pub fn start_on_disk(hubs: &[u8], folder: &std::path::Path) -> Self {
        let disk = CacheDisk { folder: folder.to_owned(), bytes: 64 << 20 };
        Self::start_as(hubs, ([127, 0, 0, 1], 0).into(), TcpOptions::default(), Some(disk))
    }

    /// At an address.
    pub fn start_at(hubs: &[u8], listen: SocketAddr, tcp: TcpOptions) -> Self {
        Self::start_as(hubs, listen, tcp, None)
    }

    fn start_as(hubs: &[u8], listen: SocketAddr, tcp: TcpOptions, cache_disk: Option<CacheDisk>) -> Self {
        let relay = Relay::bind(Options {
            listen,
            key: key(200),
            region: "lab".into(),
            hubs: hubs.iter().map(|hub| HubId::from(key(*hub).public())).collect(),
            max_links: 100,
            bytes_per_second: 0,
            cache_bytes: 16 << 20,
            cache_disk,
            drain_ms: 2_000,
            tcp,
        })
        .unwrap();
        let lifecycle = Lifecycle::new();
        tokio::spawn(relay.clone().run(lifecycle.clone()));
        let mut address = relay.local_addr().unwrap();
        if address.ip().is_unspecified() {
            address.set_ip([127, 0, 0, 1].into());
        }
        Self { relay, address, lifecycle }
    }

    /// A node that links as its network lets it.
    pub async fn node_by(&self, hub: u8, seed: u8, at: SocketAddr, network: NetworkConfig) -> Result<(Member, Arc<NodeSocket>), LinkError> {
        let own = key(seed);
        let credential = Some(Credential::Ticket(self.ticket(hub, &own, 60_000)));
        let socket = NodeSocket::bind(Role::Peer).unwrap();
        let config = quic::endpoint_config(Prefix::Route(Route::of(&own.public())), &clock::random());
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket.clone(), Arc::new(quinn::TokioRuntime)).unwrap();
        let hello = link::hello("lab 0", &key(hub).public().into(), credential);
        let link = reach(&endpoint, &socket, &Network::new(&network).unwrap(), &self.endpoint_of(at), &own, hello).await?;
        socket.activate(RelayTag::of(self.relay.id().key()));
        let virtual_address = link.connection.remote_address();
        let end = Arc::new(LinkEnd { connection: link.connection.clone(), pings: AsyncMutex::new(Some(link)) });
        Ok((Member { link: end, endpoint, virtual_address, key: own.clone(), root: own, orders: None }, socket))
    }

    /// A node that links over TCP.
    pub async fn node_over_tcp(&self, hub: u8, seed: u8) -> Member {
        let network = NetworkConfig { transport: Transport::Tcp, proxy: Some("none".into()), ..NetworkConfig::default() };
        self.node_by(hub, seed, self.address, network).await.unwrap().0
    }

    fn endpoint_of(&self, address: SocketAddr) -> RelayEndpoint {
        RelayEndpoint { address: address.to_string(), id: self.relay.id(), region: String::new() }
    }

    pub fn ticket(&self, hub: u8, node: &SecretKey, life_ms: i64) -> Signed {
        self.ticket_for(hub, node, life_ms, &[])
    }

    /// A ticket for another relay.
    pub fn ticket_at(&self, hub: u8, node: &SecretKey, relay: &RelayId) -> Signed {
        let grant = Grant::new(node.public().into(), clock::now_ms() + 60_000);
        ticket::issue(&purpose_key(hub, KeyPurpose::Ticket), &key(hub).public().into(), relay, &grant)
    }

    pub fn ticket_for(&self, hub: u8, node: &SecretKey, life_ms: i64, sessions: &[SessionId]) -> Signed {
        let grant = Grant::new(node.public().into(), clock::now_ms() + life_ms).with_sessions(sessions.to_vec());
        ticket::issue(&purpose_key(hub, KeyPurpose::Ticket), &key(hub).public().into(), &self.relay.id(), &grant)
    }

    /// A node whose ticket lists these sessions.
    pub async fn node_in(&self, hub: u8, seed: u8, sessions: &[SessionId]) -> Member {
        let ticket = self.ticket_for(hub, &key(seed), 60_000, sessions);
        self.link(&key(seed), hub, Some(Credential::Ticket(ticket))).await.unwrap()
    }

    async fn dial(
        &self,
        own: &SecretKey,
        hub: u8,
        credential: Option<Credential>,
        role: Role,
        root: &SecretKey,
        at: SocketAddr,
    ) -> Result<(Member, Link), LinkError> {
        let socket = NodeSocket::bind(role).unwrap();
        let prefix = Prefix::Route(Route::of(&root.public()));
        let server = (role == Role::Hub).then(|| quic::server_config(own, Purpose::Mesh).unwrap());
        let config = quic::endpoint_config(prefix, &clock::random());
        let endpoint = Endpoint::new_with_abstract_socket(config, server, socket.clone(), Arc::new(quinn::TokioRuntime)).unwrap();
        let relay = self.endpoint_of(at);
        let tag = RelayTag::of(relay.id.key());
        let virtual_address = socket.relay_path(tag, at);
        socket.activate(tag);
        let hello = link::hello("lab 0", &key(hub).public().into(), credential);
        let link = link::dial(&endpoint, virtual_address, &relay, own, hello).await?;
        let end = Arc::new(LinkEnd { connection: link.connection.clone(), pings: AsyncMutex::default() });
        Ok((Member { link: end, endpoint, virtual_address, key: own.clone(), root: root.clone(), orders: None }, link))
    }

    pub async fn link(&self, node: &SecretKey, hub: u8, credential: Option<Credential>) -> Result<Member, LinkError> {
        let (member, link) = self.dial(node, hub, credential, Role::Peer, node, self.address).await?;
        *member.link.pings.lock().await = Some(link);
        Ok(member)
    }

    pub async fn link_as_hub(&self, own: &SecretKey, hub: u8, root: &SecretKey) -> Result<Member, LinkError> {
        let credential = Credential::Hub(HubCredential { statements: statements(hub), instance: 1 });
        self.dial(own, hub, Some(credential), Role::Hub, root, self.address).await.map(|(member, _)| member)
    }

    /// A hub that is linked and says nothing.
    pub async fn mute_hub(&self, hub: u8) -> (Member, Link) {
        let credential = Credential::Hub(HubCredential { statements: statements(hub), instance: 1 });
        let own = purpose_key(hub, KeyPurpose::Transport);
        self.dial(&own, hub, Some(credential), Role::Hub, &key(hub), self.address).await.unwrap()
    }

    /// A hub that admits node 11 and echoes on every stream.
    pub async fn hub(&self, hub: u8) -> Member {
        let own = purpose_key(hub, KeyPurpose::Transport);
        let credential = Credential::Hub(HubCredential { statements: statements(hub), instance: 1 });
        let (mut member, link) = self.dial(&own, hub, Some(credential), Role::Hub, &key(hub), self.address).await.unwrap();
        let (orders, mut outgoing) = mpsc::channel::<ToRelay>(8);
        member.orders = Some(orders);
        let ticket = self.ticket(hub, &key(11), 60_000);
        tokio::spawn(async move {
            let Link { mut reader, mut writer, connection: _kept, .. } = link;
            loop {
                tokio::select! {
                    Some(order) = outgoing.recv() => writer.send(&order).await.unwrap(),
                    frame = reader.next::<FromRelay>() => {
                        let Ok(Some(frame)) = frame else { return };
                        if let Some(from_relay::Frame::Echo(nonce)) = frame.frame {
                            writer.send(&ToRelay { frame: Some(to_relay::Frame::Echoed(nonce)) }).await.unwrap();
                        }
                        let Some(from_relay::Frame::Admission(admission)) = frame.frame else { continue };
                        let known = NodeId::from_slice(&admission.node_key).unwrap() == NodeId::from(key(11).public());
                        let refused = LinkRefused { code: "node_unknown".into(), ..LinkRefused::default() };
                        let answer = if known { Answer::Ticket(ticket.clone()) } else { Answer::Refused(refused) };
                        let answer = AdmissionAnswer { request: admission.request, answer: Some(answer) };
                        writer.send(&ToRelay { frame: Some(to_relay::Frame::Admission(answer)) }).await.unwrap();
                    }
                }
            }
        });
        let endpoint = member.endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move {
                    let connection = incoming.await.ok()?;
                    // Nodes may open no stream, so the hub opens one and echoes what comes back.
                    let (mut send, mut recv) = connection.open_bi().await.ok()?;
                    send.write_all(b"!").await.ok()?;
                    let mut buffer = [0; 1024];
                    while let Ok(Some(read)) = recv.read(&mut buffer).await {
                        send.write_all(&buffer[..read]).await.ok()?;
                    }
                    Some(())
                });
            }
        });
        member
    }

    /// A node that the hub admits (11), or one with a ticket.
    pub async fn node(&self, hub: u8, seed: u8) -> Result<Member, LinkError> {
        self.node_at(hub, seed, self.address).await
    }

    pub async fn node_at(&self, hub: u8, seed: u8, at: SocketAddr) -> Result<Member, LinkError> {
        let node = key(seed);
        let credential = (seed != 11).then(|| Credential::Ticket(self.ticket(hub, &node, 60_000)));
        let (member, link) = self.dial(&node, hub, credential, Role::Peer, &node, at).await?;
        *member.link.pings.lock().await = Some(link);
        Ok(member)
    }

    /// A QUIC connection to the relay that never says hello.
    pub async fn connect_only(&self, node: &SecretKey) -> Member {
        let socket = NodeSocket::bind(Role::Peer).unwrap();
        let config = quic::endpoint_config(Prefix::Route(Route::of(&node.public())), &clock::random());
        let endpoint = Endpoint::new_with_abstract_socket(config, None, socket.clone(), Arc::new(quinn::TokioRuntime)).unwrap();
        let tag = RelayTag::of(self.relay.id().key());
        let virtual_address = socket.relay_path(tag, self.address);
        let config =
            quic::client_config(node, Some(*self.relay.id().key()), Prefix::Relay(tag), Purpose::Link, quic::PACKET_BYTES).unwrap();
        let connection = endpoint.connect_with(config, virtual_address, "lab.invalid").unwrap().await.unwrap();
        let link = Arc::new(LinkEnd { connection, pings: AsyncMutex::default() });
        Member { link, endpoint, virtual_address, key: node.clone(), root: node.clone(), orders: None }
    }

    async fn mesh(&self, from: &Member, to: &Member) -> Result<Connection, quinn::ConnectionError> {
        let prefix = Prefix::Route(Route::of(&to.root.public()));
        let config = quic::client_config(&from.key, None, prefix, Purpose::Mesh, quic::PACKET_BYTES).unwrap();
        from.endpoint.connect_with(config, from.virtual_address, "lab.invalid").unwrap().await
    }

    pub async fn reaches(&self, from: &Member, to: &Member) -> bool {
        matches!(tokio::time::timeout(Duration::from_secs(1), self.mesh(from, to)).await, Ok(Ok(_)))
    }

    pub async fn echo(&self, node: &Member, hub: &Member, message: &[u8]) -> Vec<u8> {
        let connection = self.mesh(node, hub).await.unwrap();
        let (mut send, mut recv) = connection.accept_bi().await.unwrap();
        send.write_all(message).await.unwrap();
        let mut answer = vec![0; 1 + message.len()];
        recv.read_exact(&mut answer).await.unwrap();
        answer.split_off(1)
    }

    pub async fn close_code(&self, link: &LinkEnd) -> Option<CloseCode> {
        match tokio::time::timeout(Duration::from_secs(5), link.connection.closed()).await.expect("the relay closes the link") {
            quinn::ConnectionError::ApplicationClosed(close) => CloseCode::from_number(close.error_code.into_inner()),
            _ => None,
        }
    }

    pub fn carrier(&self, socket: &NodeSocket) -> &'static str {
        socket.carrier(RelayTag::of(self.relay.id().key())).expect("a carrier").label()
    }

    /// An address where TCP leads to the relay and UDP leads nowhere.
    pub async fn tcp_only(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, relay) = (listener.local_addr().unwrap(), self.address);
        let deaf = UdpSocket::bind(address).await.unwrap();
        tokio::spawn(async move {
            let _deaf = deaf;
            while let Ok((mut outside, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut inside = tokio::net::TcpStream::connect(relay).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        address
    }

    /// A NAT in user space in front of the relay, whose outer port can change.
    pub async fn behind_nat(&self) -> (Nat, SocketAddr) {
        let inner = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = inner.local_addr().unwrap();
        let nat = Nat { inner, relay: self.address, outer: Arc::default(), client: Arc::default() };
        nat.rebind().await;
        let (inner, outer, client, relay) = (nat.inner.clone(), nat.outer.clone(), nat.client.clone(), nat.relay);
        tokio::spawn(async move {
            let mut buffer = [0; 65_536];
            while let Ok((len, from)) = inner.recv_from(&mut buffer).await {
                *client.lock().unwrap() = Some(from);
                let outer = outer.lock().unwrap().clone();
                if let Some(outer) = outer {
                    let _ = outer.send_to(&buffer[..len], relay).await;
                }
            }
        });
        (nat, address)
    }
}

pub struct Nat {
    inner: Arc<UdpSocket>,
    relay: SocketAddr,
    outer: Arc<Mutex<Option<Arc<UdpSocket>>>>,
    client: Arc<Mutex<Option<SocketAddr>>>,
}

impl Nat {
    pub async fn rebind(&self) {
        let outer = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        *self.outer.lock().unwrap() = Some(outer.clone());
        let (inner, client) = (self.inner.clone(), self.client.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 65_536];
            while let Ok((len, _)) = outer.recv_from(&mut buffer).await {
                let to = *client.lock().unwrap();
                if let Some(to) = to {
                    let _ = inner.send_to(&buffer[..len], to).await;
                }
            }
        });
    }
}
