//! Who may use a relay: the hub's answer about nodes that hold no ticket, and about those that ask for chunks.

use std::sync::Arc;

use cortex_relay::tenant::{Authority, BoxFuture};
use cortex_runtime::{
    chunk::{Asker, ChunkError, ChunkSource, Found},
    clock,
};
use cortex_wire::{
    id::{NodeId, RelayId, SessionId},
    invite, limits,
    mirror::seal::{Sealed, Sid},
    schema::{Admission, HeldSessions, LinkRefused, NodeGone, Signed, admission_answer::Answer},
    ticket::{self, Grant},
};

use tokio::sync::mpsc;

use crate::{
    failure::Failure as _,
    hub::Hub,
    mirror::chunks::{ChunkStoreError, SessionChunks},
    record::{
        Standing,
        tables::{NODES, SESSIONS, SESSIONS_OF_NODE},
    },
    store::StoreError,
};

/// A newcomer has this long to redeem its invite.
const ENROLLING_MS: i64 = 60_000;
/// A node that is turned away for good asks again this seldom.
const SLOWLY_MS: u64 = 60_000;

/// Answers relays.
#[derive(Debug)]
pub struct Gatekeeper {
    hub: Arc<Hub>,
}

impl Gatekeeper {
    pub(crate) fn new(hub: Arc<Hub>) -> Arc<Self> {
        Arc::new(Self { hub })
    }

    /// The gatekeeper as one relay asks it.
    pub(crate) fn for_relay(self: &Arc<Self>, relay: RelayId) -> Arc<dyn Authority> {
        Arc::new(AtRelay { gatekeeper: self.clone(), relay })
    }

    /// The chunks as one relay's nodes see them.
    pub(crate) fn chunks(&self) -> Arc<dyn ChunkSource> {
        Arc::new(Desk { hub: self.hub.clone() })
    }

    /// Of these sessions, those that no node may ask a relay for chunks of: the deleted ones (`true`), and those that are not used now.
    pub(crate) async fn unused(&self, held: &HeldSessions) -> Vec<(bool, Vec<SessionId>)> {
        let ids: Vec<_> = held.session_ids.iter().take(limits::LINK_SESSIONS).filter_map(|id| SessionId::from_slice(id).ok()).collect();
        let found = self.hub.db.read::<_, StoreError>(move |tx| {
            let (mut deleted, mut unused) = (Vec::new(), Vec::new());
            for id in ids {
                match SESSIONS.get(tx, &id)? {
                    None => deleted.push(id),
                    Some(session) if session.has_no_reader() => unused.push(id),
                    Some(_) => {}
                }
            }
            Ok(vec![(true, deleted), (false, unused)])
        });
        let found = found.await.inspect_err(|error| tracing::error!(%error, "cannot look up what a relay holds")).unwrap_or_default();
        found.into_iter().filter(|(_, sessions)| !sessions.is_empty()).collect()
    }

    /// A ticket for a node at a relay, with the sessions that the node is attached to.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn ticket(hub: &Hub, relay: &RelayId, node: &NodeId) -> Result<Signed, StoreError> {
        let id = *node;
        let sessions = hub.db.read::<_, StoreError>(move |tx| SESSIONS_OF_NODE.all_of(tx, &id)).await?;
        let grant = Grant::new(id, clock::now_ms() + limits::TICKET_LIFE_MS).with_sessions(sessions);
        Ok(ticket::issue(&hub.keys.ticket, &hub.id(), relay, &grant))
    }

    /// Enough to redeem an invite.
    fn enrolling_ticket(hub: &Hub, relay: &RelayId, node: &NodeId) -> Signed {
        let grant = Grant { enrolling: true, ..Grant::new(*node, clock::now_ms() + ENROLLING_MS) };
        ticket::issue(&hub.keys.ticket, &hub.id(), relay, &grant)
    }

    /// Whether a node may use a relay.
    pub(crate) async fn admit(&self, relay: &RelayId, admission: &Admission) -> Answer {
        let refuse = |code: &str, reason: &str, retry_after_ms| {
            Answer::Refused(LinkRefused { code: code.into(), reason: reason.into(), retry_after_ms })
        };
        let Ok(node) = NodeId::from_slice(&admission.node_key) else {
            return refuse("bad_key", "the node's key is malformed", SLOWLY_MS);
        };
        let failed = |error: StoreError| {
            tracing::error!(%error, "cannot look a node up");
            refuse("hub_failed", "the hub cannot read its store; its operator has to act", 5_000)
        };
        let known = match self.hub.find_node(node).await {
            Ok(known) => known,
            Err(error) => return failed(error),
        };
        if let Some(record) = known {
            if record.standing != Standing::Revoked {
                return Self::ticket(&self.hub, relay, &node).await.map_or_else(failed, Answer::Ticket);
            }
            let reason = "this node was revoked; enrol again with a new key and a new invite";
            let _ = self.hub.note_refusal(node, "node_revoked", reason).await;
            return refuse("node_revoked", reason, SLOWLY_MS);
        }
        let Some(proof) = &admission.invite else {
            return refuse("node_unknown", "the hub does not know this node; enrol it with an invite", SLOWLY_MS);
        };
        let terms = match invite::open(proof, clock::now_ms()) {
            Ok(terms) => terms,
            Err(error) => return refuse("invite_forged", &error.to_string(), SLOWLY_MS),
        };
        if terms.hub != self.hub.id() {
            return refuse("invite_forged", "this invite is for another hub", SLOWLY_MS);
        }
        match self.hub.check_invite(terms.id, node).await {
            Ok(()) => Answer::Ticket(Self::enrolling_ticket(&self.hub, relay, &node)),
            Err(error) => refuse(error.code(), &error.to_string(), SLOWLY_MS),
        }
    }
}

/// The gatekeeper at one relay.
struct AtRelay {
    gatekeeper: Arc<Gatekeeper>,
    relay: RelayId,
}

impl Authority for AtRelay {
    fn admit(&self, admission: Admission) -> BoxFuture<'_, Answer> {
        Box::pin(async move { self.gatekeeper.admit(&self.relay, &admission).await })
    }

    fn gone(&self, gone: NodeGone) {
        // The end-to-end connection says more about a node than its link does: it may only have moved to another relay.
        tracing::debug!(reason = gone.reason, "a node's link has ended");
    }

    fn chunks(&self) -> Arc<dyn ChunkSource> {
        self.gatekeeper.chunks()
    }

    fn echo(&self) -> BoxFuture<'_, bool> {
        // The same process: who asks is there.
        Box::pin(async { true })
    }
}

/// Gives out and takes in chunks of the sessions that a node is attached to at that moment.
struct Desk {
    hub: Arc<Hub>,
}

impl Desk {
    /// Chunks that are read with one call to the disk, and in memory at a time.
    const GROUP: usize = 16;

    /// The session's chunks, when the asker is one of its nodes.
    async fn open(&self, asker: Asker) -> Result<SessionChunks, ChunkError> {
        let node = asker.node.ok_or(ChunkError::Protocol)?;
        let found = self.hub.db.read::<_, StoreError>(move |tx| Ok((SESSIONS.get(tx, &asker.session)?, NODES.get(tx, &node)?))).await;
        let (session, record) = found.map_err(|error| failed(&error))?;
        let active = record.is_some_and(|record| record.standing == Standing::Active);
        let session = session.filter(|session| active && session.nodes.contains(&node)).ok_or(ChunkError::NotAttached)?;
        self.hub.mirrors.chunks.session(session.user_id, session.id).await.map_err(|error| refused(&error))
    }
}

fn failed(error: &dyn std::fmt::Display) -> ChunkError {
    tracing::error!(%error, "cannot answer a request for chunks");
    ChunkError::Failed
}

fn refused(error: &ChunkStoreError) -> ChunkError {
    tracing::error!(%error, "cannot answer a request for chunks");
    error.into()
}

impl ChunkSource for Desk {
    fn fetch(&self, asker: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>> {
        Box::pin(async move {
            for group in sids.chunks(Self::GROUP) {
                let chunks = self.open(asker).await?.read(group.to_vec()).await.map_err(|error| refused(&error))?;
                self.hub.mirrors.counters.left(chunks.iter().flatten().map(|chunk| chunk.bytes().len() as u64).sum());
                for (sid, chunk) in group.iter().zip(chunks) {
                    if found.send(Found { sid: *sid, chunk }).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    fn store(&self, asker: Asker, chunks: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>> {
        Box::pin(async move {
            let stored = self.open(asker).await?.store(chunks, &self.hub.mirrors.counters).await;
            // It may have been detached, or the session deleted, while they came.
            self.open(asker).await?;
            stored.map_err(|error| refused(&error))
        })
    }

    fn missing(&self, asker: Asker, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>> {
        Box::pin(async move { self.open(asker).await?.missing(sids).await.map_err(|error| refused(&error)) })
    }
}

#[cfg(test)]
mod tests {
    use cortex_runtime::{
        chunk::ChunkClient,
        lifecycle::{Lifecycle, Parts},
        link,
        quic::{self, Prefix},
        socket::{NodeSocket, Role},
    };
    use cortex_wire::{
        invite::RelayEndpoint,
        mirror::seal::{Keys, Sealer},
        route::{RelayTag, Route},
    };

    use super::*;
    use crate::{
        mesh::{EmbeddedRelay, Network, NetworkOptions},
        testing::{Site, key},
    };

    async fn store(desk: &Arc<dyn ChunkSource>, asker: Asker, chunk: &Sealed) -> Result<u64, ChunkError> {
        let (send, receive) = mpsc::channel(1);
        let _ = send.send(chunk.clone()).await;
        drop(send);
        desk.store(asker, receive).await
    }

    async fn fetch(desk: &Arc<dyn ChunkSource>, asker: Asker, sid: Sid) -> Result<Option<Sealed>, ChunkError> {
        let (send, mut receive) = mpsc::channel(1);
        desk.fetch(asker, vec![sid], send).await?;
        Ok(receive.recv().await.and_then(|found| found.chunk))
    }

    #[tokio::test]
    async fn a_node_has_the_chunks_of_the_sessions_it_is_attached_to_and_a_ticket_that_says_so() {
        let site = Site::new().await;
        let ada = site.member("ada").await;
        let (node, other) = (site.node(&ada, 1).await, site.node(&ada, 2).await);
        let session = site.session(&ada, &[node]).await;
        let desk = Gatekeeper::new(site.hub.clone()).chunks();
        let mut keys = Keys::new(session);
        keys.insert(0, &[7; 32]);
        let chunk = Sealer::new(Arc::new(keys)).seal(b"what a file holds").unwrap();
        let (mine, theirs) = (Asker { session, node: Some(node) }, Asker { session, node: Some(other) });

        assert_eq!(store(&desk, theirs, &chunk).await, Err(ChunkError::NotAttached));
        assert_eq!(desk.missing(mine, vec![chunk.sid()]).await, Ok(vec![chunk.sid()]));
        assert_eq!(store(&desk, mine, &chunk).await, Ok(1));
        assert_eq!(desk.missing(mine, vec![chunk.sid()]).await, Ok(vec![]));
        assert_eq!(fetch(&desk, mine, chunk.sid()).await, Ok(Some(chunk.clone())));
        assert_eq!(fetch(&desk, theirs, chunk.sid()).await, Err(ChunkError::NotAttached));

        let relay = key(99).public().into();
        let sessions = async |node: NodeId| {
            let signed = Gatekeeper::ticket(&site.hub, &relay, &node).await.unwrap();
            let key = site.hub.keys.ticket.public();
            ticket::check(&signed, &key, &site.hub.id(), &relay, &node, clock::now_ms()).unwrap().sessions
        };
        assert_eq!(sessions(node).await, vec![session]);
        assert_eq!(sessions(other).await, vec![]);

        site.hub.attach_node(&ada, session, other).await.unwrap();
        assert_eq!(fetch(&desk, theirs, chunk.sid()).await, Ok(Some(chunk.clone())));
        site.hub.detach_node(&ada, session, node).await.unwrap();
        assert_eq!(fetch(&desk, mine, chunk.sid()).await, Err(ChunkError::NotAttached));
        assert_eq!(sessions(node).await, vec![]);
        site.hub.revoke_node(&ada, other).await.unwrap();
        assert_eq!(fetch(&desk, theirs, chunk.sid()).await, Err(ChunkError::NotAttached));
    }

    /// A node's link to the relay in the hub's process, as a peer dials it.
    async fn link(site: &Site, relay: &cortex_relay::Relay, number: u16) -> (quinn::Endpoint, link::Link) {
        let (socket, address) = (NodeSocket::bind(Role::Peer).unwrap(), relay.local_addr().unwrap());
        let config = quic::endpoint_config(Prefix::Route(Route::of(&key(number).public())), &clock::random());
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, None, socket.clone(), Arc::new(quinn::TokioRuntime)).unwrap();
        let tag = RelayTag::of(relay.id().key());
        let virtual_address = socket.relay_path(tag, address);
        socket.activate(tag);
        let there = RelayEndpoint { address: address.to_string(), id: relay.id(), region: String::new() };
        let hello = link::hello("test 0", &site.hub.id(), None);
        let link = link::dial(&endpoint, virtual_address, &there, &key(number), hello).await.unwrap();
        (endpoint, link)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn chunks_cross_the_embedded_relay_and_outlive_its_cache() {
        let site = Site::new().await;
        let ada = site.member("ada").await;
        let (writer, reader) = (site.node(&ada, 1).await, site.node(&ada, 2).await);
        let session = site.session(&ada, &[writer, reader]).await;
        let listen = ([127, 0, 0, 1], 0).into();
        let embedded = EmbeddedRelay { listen, address: "127.0.0.1:0".into(), key: key(99), region: String::new() };
        let (lifecycle, mut parts) = (Lifecycle::new(), Parts::new());
        let options = NetworkOptions {
            embedded: Some(embedded),
            relays: vec![],
            reach: Arc::default(),
            direct_listen: ([0; 4], 0).into(),
            direct_address: None,
        };
        let network = Network::start(site.hub.clone(), options, lifecycle.clone(), &mut parts).await.unwrap();
        let relay = network.embedded().unwrap();
        let mut keys = Keys::new(session);
        keys.insert(0, &[7; 32]);
        let mut sealer = Sealer::new(Arc::new(keys));
        let mut plain = vec![0; 200_000];
        let chunks: Vec<_> = (0u64..360)
            .map(|n| {
                blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut plain);
                sealer.seal(&plain).unwrap()
            })
            .collect();
        let sids: Vec<_> = chunks.iter().map(Sealed::sid).collect();

        let (_endpoint, up) = link(&site, relay, 1).await;
        assert_eq!(ChunkClient::new(up.connection.clone()).store_all(session, chunks.clone()).await, Ok(360));
        // 72 MB have passed: the first ones have left the cache of 64 MiB.
        let (_other, down) = link(&site, relay, 2).await;
        let client = ChunkClient::new(down.connection.clone());
        assert_eq!(client.missing(session, &sids).await, Ok(vec![]));
        let mut coming = client.fetch_all(session, sids);
        for chunk in &chunks {
            assert_eq!(coming.recv().await.unwrap().unwrap().chunk.as_ref(), Some(chunk));
        }
        assert!(relay.chunks().counters.from_hub.load(std::sync::atomic::Ordering::Relaxed) > 0);
        lifecycle.stop();
        parts.join(&lifecycle, std::time::Duration::from_secs(5)).await.unwrap();
    }
}
