//! Clients that cost a relay much, and nodes that may no longer use it: how much the others notice, and how soon it ends.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cortex_runtime::{
    chunk::{Asker, BoxFuture, ChunkClient, ChunkError, ChunkSource, Found, serve_all},
    clock,
};
use cortex_tests::{hub::Hub, relay::Relay, rogue::Rogue, wait};
use cortex_wire::{
    id::{HubId, SessionId},
    invite::RelayEndpoint,
    key::{SecretKey, state_key},
    mirror::seal::{Sealed, Sid},
    schema::{HubCredential, KeyPurpose, link_hello::Credential},
    ticket::{self, Grant},
};
use tokio::sync::mpsc;

use crate::SOON;

fn chunk(number: u64) -> Sealed {
    let mut bytes = vec![0; 64 * 1024];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Sealed::check(Sid(*blake3::hash(&bytes).as_bytes()), bytes.into()).expect("a chunk")
}

/// Chunks that a hub holds.
struct Shelf(std::collections::HashMap<Sid, Sealed>);

impl ChunkSource for Shelf {
    fn fetch(&self, _: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>> {
        Box::pin(async move {
            for sid in sids {
                if found.send(Found { sid, chunk: self.0.get(&sid).cloned() }).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn store(&self, _: Asker, _: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>> {
        Box::pin(async { Err(ChunkError::Failed) })
    }

    fn missing(&self, _: Asker, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>> {
        Box::pin(async move { Ok(sids) })
    }
}

/// A hub of the test's own, with keys from which it makes tickets.
struct Issuer {
    root: SecretKey,
    ticket: SecretKey,
    session: SessionId,
}

impl Issuer {
    fn ticket(&self, relay: &RelayEndpoint, node: &SecretKey) -> Credential {
        let grant = Grant::new(node.public().into(), clock::now_ms() + 120_000).with_sessions(vec![self.session]);
        Credential::Ticket(ticket::issue(&self.ticket, &self.hub(), &relay.id, &grant))
    }

    fn hub(&self) -> HubId {
        self.root.public().into()
    }
}

/// Asks for everything on this many streams, and then neither reads nor answers a packet while its thread sleeps.
fn falls_silent(
    issuer: Arc<Issuer>,
    relay: RelayEndpoint,
    sids: Vec<Sid>,
    streams: usize,
    sleep: Duration,
) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let rogue = Rogue::new()?;
            let link = rogue.link(&relay, &issuer.hub(), Some(issuer.ticket(&relay, &rogue.key))).await?;
            let client = ChunkClient::new(link.connection.clone());
            let mut coming: Vec<_> = (0..streams).map(|_| client.fetch_all(issuer.session, sids.clone())).collect();
            for stream in &mut coming {
                stream.recv().await.context("a first chunk")??;
            }
            std::thread::sleep(sleep);
            Ok(())
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_ask_for_much_and_do_not_take_it_cost_little_and_hold_nobody_up() -> Result<()> {
    const CLIENTS: usize = 12;
    const CACHE: u64 = 8 << 20;
    let key = || SecretKey::from_seed(clock::random());
    let issuer = Arc::new(Issuer { root: key(), ticket: key(), session: SessionId::new(clock::now_ms(), clock::random()) });
    let folder = tempfile::tempdir()?;
    let settings = folder.path().join("relay.yaml");
    fs::write(&settings, format!("cache_bytes: {CACHE}\n"))?;
    let words = ["--config", settings.to_str().context("a path")?];
    let relay = Relay::start_saying(&[&issuer.hub().to_string()], &words).await?;
    let at: RelayEndpoint = relay.endpoint.parse().map_err(anyhow::Error::msg)?;
    let transport = Rogue::new()?;
    let state = |purpose, key: &SecretKey| state_key(&issuer.root, purpose, &key.public(), 1, 0, 0);
    let statements = vec![state(KeyPurpose::Transport, &transport.key), state(KeyPurpose::Ticket, &issuer.ticket)];
    let hub = transport.link(&at, &issuer.hub(), Some(Credential::Hub(HubCredential { statements, instance: 1 }))).await?;
    let chunks: Vec<_> = (0..400).map(chunk).collect();
    let sids: Vec<_> = chunks.iter().map(Sealed::sid).collect();
    let shelf = Shelf(chunks.into_iter().map(|chunk| (chunk.sid(), chunk)).collect());
    tokio::spawn(serve_all(hub.connection.clone(), Arc::new(shelf), None));

    let quick = Rogue::new()?;
    let link = quick.link(&at, &issuer.hub(), Some(issuer.ticket(&at, &quick.key))).await?;
    let client = ChunkClient::new(link.connection.clone());
    let fetch = async || {
        let since = Instant::now();
        let mut coming = client.fetch_all(issuer.session, sids[..100].to_vec());
        while let Some(found) = coming.recv().await {
            found?;
        }
        Ok::<_, anyhow::Error>(since.elapsed())
    };
    let mut alone = Duration::MAX;
    for _ in 0..4 {
        alone = alone.min(fetch().await?.max(Duration::from_millis(1)));
    }
    let before = relay.process.resident_memory()?;
    let silent: Vec<_> = (0..CLIENTS).map(|_| falls_silent(issuer.clone(), at.clone(), sids.clone(), 8, Duration::from_secs(8))).collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut beside = Duration::MAX;
    for _ in 0..4 {
        beside = beside.min(fetch().await?);
    }
    let grown = relay.process.resident_memory()?.saturating_sub(before);
    eprintln!("alone {alone:?}, beside {CLIENTS} silent clients {beside:?}; {} KiB for each of them", grown / 1024 / CLIENTS as u64);
    for client in silent {
        client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    assert!(beside < alone * 2 + Duration::from_millis(50), "{beside:?} instead of {alone:?}");
    assert!(grown < CLIENTS as u64 * (1 << 20), "{grown} bytes more for {CLIENTS} clients");
    Ok(())
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_within_a_second() -> Result<()> {
    let (hub, _relay) = Hub::start_with_relay().await?;
    let mut peer = hub.enrol("lost laptop").await?;
    let since = Instant::now();
    hub.post::<serde_json::Value>(&format!("/api/nodes/{}/revoke", peer.node), serde_json::json!({})).await?;
    peer.process.line("that it was revoked", SOON, |line| line.contains("revoked").then_some(())).await?;
    let told = since.elapsed();
    assert!(told < Duration::from_secs(1), "{told:?}");
    // Its link is gone, too: nobody is left behind the relay.
    let left = async || {
        let relays: serde_json::Value = hub.get("/api/relays").await.ok()?;
        (relays["items"][0]["nodes"] == 0).then_some(())
    };
    wait::until("nobody is behind the relay", SOON, left).await?;
    Ok(())
}
