//! Plain QUIC through the relay: one stream of bytes from a node to a hub, and nothing else. The speed that everything above it is measured by.
//!
//! Node and hub are endpoints in this process, each with a thread and a runtime of its own; the relay is the real program.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use cortex_runtime::{
    clock,
    link::{self, Link},
    quic::{self, Prefix, Purpose},
    socket::{NodeSocket, Role},
};
use cortex_wire::{
    id::HubId,
    invite::RelayEndpoint,
    key::{SecretKey, state_key},
    route::{RelayTag, Route},
    schema::{HubCredential, KeyPurpose, Signed, link_hello::Credential},
    ticket,
};
use quinn::{Connection, Endpoint};

/// The tool's name, as `--against` knows it.
pub const NAME: &str = "relay";
/// How figures name it.
pub const LABEL: &str = "plain QUIC stream through the same relay";
/// Written at once.
const PIECE: usize = 128 * 1024;
/// Sent before the clock starts: windows and congestion control find their size.
const WARM_BYTES: u64 = 64 << 20;

/// A hub that exists for the relay only.
#[derive(Debug)]
pub struct PlainHub {
    root: SecretKey,
    transport: SecretKey,
    ticket: SecretKey,
}

/// One end of the pair, linked to the relay.
struct End {
    endpoint: Endpoint,
    address: std::net::SocketAddr,
    _link: Link,
}

impl PlainHub {
    /// With fresh keys.
    pub fn new() -> Self {
        let key = || SecretKey::from_seed(clock::random());
        Self { root: key(), transport: key(), ticket: key() }
    }

    /// What the relay has to be told to serve.
    pub fn id(&self) -> HubId {
        self.root.public().into()
    }

    fn statements(&self) -> Vec<Signed> {
        let state = |purpose, key: &SecretKey| state_key(&self.root, purpose, &key.public(), 1, 0, 0);
        vec![state(KeyPurpose::Transport, &self.transport), state(KeyPurpose::Ticket, &self.ticket)]
    }

    /// Sends `bytes` from a node to this hub; how long they took.
    pub fn transfer(&self, relay: &RelayEndpoint, bytes: u64) -> anyhow::Result<Duration> {
        let (linked, ready) = mpsc::channel();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| alone(self.receive(relay, bytes, linked)));
            ready.recv().context("the hub's end was not linked").and_then(|()| alone(self.send(relay, bytes)))?;
            receiver.join().unwrap_or_else(|_| anyhow::bail!("the hub's end panicked"))
        })
    }

    async fn receive(&self, relay: &RelayEndpoint, bytes: u64, linked: mpsc::Sender<()>) -> anyhow::Result<Duration> {
        let credential = Credential::Hub(HubCredential { statements: self.statements(), instance: 1 });
        let end = End::link(Role::Hub, &self.transport, &self.root, &self.id(), relay, credential).await?;
        linked.send(())?;
        let connection = end.endpoint.accept().await.context("nobody came")?.await?;
        let (mut order, mut stream) = connection.open_bi().await?;
        order.write_all(b"!").await?;
        let (mut received, mut since) = (0, None);
        while let Some(piece) = stream.read_chunk(PIECE, true).await? {
            if since.is_none() && received >= WARM_BYTES {
                since = Some((Instant::now(), received));
            }
            received += piece.bytes.len() as u64;
        }
        let (since, before) = since.context("the transfer was too short")?;
        let took = since.elapsed();
        end.endpoint.close(0u32.into(), b"");
        end.endpoint.wait_idle().await;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        Ok(took.mul_f64(bytes as f64 / (received - before) as f64))
    }

    async fn send(&self, relay: &RelayEndpoint, bytes: u64) -> anyhow::Result<()> {
        let key = SecretKey::from_seed(clock::random());
        let until = clock::now_ms() + 60_000;
        let ticket = ticket::issue(&self.ticket, &self.id(), &relay.id, &ticket::Grant::new(key.public().into(), until));
        let end = End::link(Role::Peer, &key, &key, &self.id(), relay, Credential::Ticket(ticket)).await?;
        let connection = end.dial(&key, &self.root).await?;
        let (mut stream, _order) = connection.accept_bi().await?;
        let piece = vec![0; PIECE];
        for _ in 0..(bytes + WARM_BYTES) / PIECE as u64 {
            stream.write_all(&piece).await?;
        }
        stream.finish()?;
        stream.stopped().await?; // all of it has arrived
        Ok(())
    }
}

impl End {
    async fn link(
        role: Role,
        key: &SecretKey,
        root: &SecretKey,
        hub: &HubId,
        relay: &RelayEndpoint,
        credential: Credential,
    ) -> anyhow::Result<Self> {
        let socket = NodeSocket::bind(role)?;
        let server = (role == Role::Hub).then(|| quic::server_config(key, Purpose::Mesh)).transpose()?;
        let config = quic::endpoint_config(Prefix::Route(Route::of(&root.public())), &clock::random());
        let endpoint = Endpoint::new_with_abstract_socket(config, server, socket.clone(), Arc::new(quinn::TokioRuntime))?;
        let tag = RelayTag::of(relay.id.key());
        let address = socket.relay_path(tag, *link::resolve(relay).await?.first().context("an address")?);
        socket.activate(tag);
        let link = link::dial(&endpoint, address, relay, key, link::hello("cortex-bench", hub, Some(credential))).await?;
        Ok(Self { endpoint, address, _link: link })
    }

    async fn dial(&self, key: &SecretKey, hub: &SecretKey) -> anyhow::Result<Connection> {
        let config = quic::client_config(key, None, Prefix::Route(Route::of(&hub.public())), Purpose::Mesh)?;
        Ok(self.endpoint.connect_with(config, self.address, "hub.cortex.invalid")?.await?)
    }
}

/// Runs on a runtime of its own on this thread: on few cores that was the fastest.
fn alone<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_relay::{Options, Relay};
    use cortex_runtime::lifecycle::Lifecycle;

    /// On a thread of its own, as the program is a process of its own.
    #[test]
    fn bytes_cross_a_relay() {
        let hub = PlainHub::new();
        let served = hub.id();
        let (told, endpoint) = mpsc::channel();
        let lifecycle = Lifecycle::new();
        let life = lifecycle.clone();
        let relay = std::thread::spawn(move || {
            alone(async {
                let key = SecretKey::from_seed(clock::random());
                let (listen, region) = (([127, 0, 0, 1], 0).into(), String::new());
                let relay = Relay::bind(Options {
                    listen,
                    key,
                    region,
                    hubs: vec![served],
                    max_links: 9,
                    bytes_per_second: 0,
                    cache_bytes: 1 << 20,
                    drain_ms: 2_000,
                    tcp: cortex_relay::TcpOptions::default(),
                })?;
                told.send(RelayEndpoint { address: relay.local_addr()?.to_string(), id: relay.id(), region: String::new() })?;
                relay.run(life).await;
                Ok(())
            })
        });
        let took = hub.transfer(&endpoint.recv().unwrap(), 16 << 20).unwrap();
        assert!(took > Duration::ZERO);
        lifecycle.stop();
        relay.join().unwrap().unwrap();
    }
}
