//! Sealed chunks through a relay: from one node to many, and what goes wrong on the way.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cortex_runtime::chunk::{Asker, BoxFuture, ChunkClient, ChunkError, ChunkSource, Found, serve_all};
use cortex_wire::{
    frame,
    id::{NodeId, SessionId},
    mirror::seal::{Sealed, Sid},
    schema::{ChunkOpen, chunk_open::What},
};
use tokio::sync::mpsc;

use crate::lab::{Lab, Member, key};

fn session(n: u128) -> SessionId {
    SessionId(uuid::Uuid::from_u128(n))
}

/// Some bytes of their own; the relay does not see whether they were sealed.
fn chunk(n: u64, length: usize) -> Sealed {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Sealed::check(Sid(*blake3::hash(&bytes).as_bytes()), bytes.into()).unwrap()
}

fn chunks(count: u64, length: usize) -> Vec<Sealed> {
    (0..count).map(|n| chunk(n, length)).collect()
}

fn sids(chunks: &[Sealed]) -> Vec<Sid> {
    chunks.iter().map(Sealed::sid).collect()
}

/// A hub's store in memory, which counts.
#[derive(Default)]
struct Shelf {
    held: Mutex<HashMap<Sid, Sealed>>,
    given: Mutex<HashMap<Sid, usize>>,
    fail: AtomicBool,
    detached: Mutex<HashSet<NodeId>>,
    uploads: AtomicUsize,
}

impl Shelf {
    fn of(chunks: &[Sealed]) -> Arc<Self> {
        let held = chunks.iter().map(|chunk| (chunk.sid(), chunk.clone())).collect();
        Arc::new(Self { held: Mutex::new(held), ..Self::default() })
    }

    fn most_given(&self) -> usize {
        self.given.lock().unwrap().values().copied().max().unwrap_or(0)
    }

    fn holds(&self, sid: &Sid) -> bool {
        self.held.lock().unwrap().contains_key(sid)
    }

    fn check(&self, asker: Asker) -> Result<(), ChunkError> {
        let detached = self.detached.lock().unwrap().contains(&asker.node.unwrap());
        if detached || asker.session != session(1) {
            return Err(ChunkError::NotAttached);
        }
        if self.fail.load(Ordering::SeqCst) { Err(ChunkError::Failed) } else { Ok(()) }
    }
}

impl ChunkSource for Shelf {
    fn fetch(&self, asker: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>> {
        Box::pin(async move {
            // Long enough for others to want the same.
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.check(asker)?;
            for sid in sids {
                *self.given.lock().unwrap().entry(sid).or_default() += 1;
                let chunk = self.held.lock().unwrap().get(&sid).cloned();
                if found.send(Found { sid, chunk }).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn store(&self, asker: Asker, mut chunks: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>> {
        Box::pin(async move {
            let mut count = 0;
            self.check(asker)?;
            while let Some(chunk) = chunks.recv().await {
                self.held.lock().unwrap().insert(chunk.sid(), chunk);
                count += 1;
            }
            self.uploads.fetch_add(1, Ordering::SeqCst);
            Ok(count)
        })
    }

    fn missing(&self, asker: Asker, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>> {
        Box::pin(async move {
            self.check(asker)?;
            Ok(sids.into_iter().filter(|sid| !self.holds(sid)).collect())
        })
    }
}

async fn hub(lab: &Lab, shelf: &Arc<Shelf>) -> Member {
    let hub = lab.hub(1).await;
    tokio::spawn(serve_all(hub.connection().clone(), shelf.clone() as Arc<dyn ChunkSource>, None));
    hub
}

async fn fetch(client: &ChunkClient, sids: Vec<Sid>) -> Result<Vec<Found>, ChunkError> {
    let mut coming = client.fetch_all(session(1), sids);
    let mut found = Vec::new();
    while let Some(next) = tokio::time::timeout(Duration::from_secs(20), coming.recv()).await.expect("chunks keep coming") {
        found.push(next?);
    }
    Ok(found)
}

fn found(chunks: &[Sealed]) -> Vec<Found> {
    chunks.iter().map(|chunk| Found { sid: chunk.sid(), chunk: Some(chunk.clone()) }).collect()
}

#[tokio::test]
async fn what_one_node_stores_sixteen_others_fetch_without_asking_the_hub() {
    let lab = Lab::start(&[1]);
    let shelf = Arc::new(Shelf::default());
    let _hub = hub(&lab, &shelf).await;
    let writer = lab.node_in(1, 20, &[session(1)]).await;
    let stored = chunks(100, 20_000);
    let client = writer.chunks();
    assert_eq!(client.missing(session(1), &sids(&stored)).await, Ok(sids(&stored)));
    assert_eq!(client.store_all(session(1), stored.clone()).await, Ok(100));
    assert!(stored.iter().all(|chunk| shelf.holds(&chunk.sid())), "acknowledged before the hub had it");
    assert_eq!(client.missing(session(1), &sids(&stored)).await, Ok(vec![]));
    for seed in 30..46 {
        let reader = lab.node_in(1, seed, &[session(1)]).await;
        assert_eq!(fetch(&reader.chunks(), sids(&stored)).await, Ok(found(&stored)));
    }
    assert_eq!(shelf.most_given(), 0);
}

#[tokio::test]
async fn what_sixteen_nodes_want_at_the_same_time_leaves_the_hub_once() {
    let lab = Lab::start(&[1]);
    let held = chunks(150, 20_000);
    let shelf = Shelf::of(&held);
    let _hub = hub(&lab, &shelf).await;
    let mut readers = Vec::new();
    for seed in 30..46 {
        readers.push(lab.node_in(1, seed, &[session(1)]).await);
    }
    let fetches: Vec<_> = readers
        .iter()
        .map(|reader| {
            let (client, sids) = (reader.chunks(), sids(&held));
            tokio::spawn(async move { fetch(&client, sids).await })
        })
        .collect();
    for fetched in fetches {
        assert_eq!(fetched.await.unwrap(), Ok(found(&held)));
    }
    assert_eq!((shelf.most_given(), shelf.given.lock().unwrap().len()), (1, held.len()));
}

#[tokio::test]
async fn any_number_of_chunks_comes_in_the_order_asked_and_what_is_not_there_is_said() {
    let lab = Lab::start(&[1]);
    let held = chunks(1_500, 700);
    let shelf = Shelf::of(&held[..1_400]);
    let _hub = hub(&lab, &shelf).await;
    let reader = lab.node_in(1, 20, &[session(1)]).await;
    let mut wanted = held.clone();
    wanted.reverse();
    wanted.extend_from_slice(&held[..10]);
    let expected: Vec<_> =
        wanted.iter().map(|chunk| Found { sid: chunk.sid(), chunk: shelf.holds(&chunk.sid()).then(|| chunk.clone()) }).collect();
    assert_eq!(fetch(&reader.chunks(), sids(&wanted)).await, Ok(expected));
    assert_eq!(fetch(&reader.chunks(), vec![]).await, Ok(vec![]));
    let missing = reader.chunks().missing(session(1), &sids(&held)).await;
    assert_eq!(missing, Ok(sids(&held[1_400..])));
    // What was not there may come later.
    shelf.held.lock().unwrap().insert(held[1_450].sid(), held[1_450].clone());
    assert_eq!(fetch(&reader.chunks(), vec![held[1_450].sid()]).await, Ok(found(&held[1_450..=1_450])));
}

#[tokio::test]
async fn a_foreign_session_is_refused_with_a_code() {
    let lab = Lab::start(&[1]);
    let held = chunks(1, 1_000);
    let shelf = Shelf::of(&held);
    let _hub = hub(&lab, &shelf).await;
    let member = lab.node_in(1, 20, &[session(1)]).await;
    assert_eq!(fetch(&member.chunks(), sids(&held)).await, Ok(found(&held)));
    // It is in the relay's cache now; knowing its name is no permission.
    let foreign = lab.node_in(1, 21, &[session(2)]).await;
    let stranger = foreign.chunks();
    assert_eq!(fetch(&stranger, sids(&held)).await, Err(ChunkError::NotAttached));
    assert_eq!(stranger.store_all(session(1), chunks(2, 900)).await, Err(ChunkError::NotAttached));
    assert_eq!(stranger.missing(session(1), &sids(&held)).await, Err(ChunkError::NotAttached));
    // With a ticket, but detached at the hub.
    let former = lab.node_in(1, 22, &[session(1)]).await;
    let detached = former.chunks();
    shelf.detached.lock().unwrap().insert(key(22).public().into());
    assert_eq!(detached.store_all(session(1), chunks(2, 900)).await, Err(ChunkError::NotAttached));
    assert_eq!(detached.missing(session(1), &sids(&held)).await, Err(ChunkError::NotAttached));
    assert_eq!(shelf.held.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn one_nodes_refusal_is_not_another_nodes() {
    let lab = Lab::start(&[1]);
    let held = chunks(40, 1_000);
    let shelf = Shelf::of(&held);
    let _hub = hub(&lab, &shelf).await;
    let (good, bad) = (lab.node_in(1, 20, &[session(1)]).await, lab.node_in(1, 21, &[session(1)]).await);
    shelf.detached.lock().unwrap().insert(key(21).public().into());
    let (good, bad) = (good.chunks(), bad.chunks());
    let (refused, fetched) = tokio::join!(fetch(&bad, sids(&held)), fetch(&good, sids(&held)));
    assert_eq!(fetched, Ok(found(&held)));
    // It may have been served what the other one had fetched, never by a request of its own.
    assert!(refused.is_err() || refused == Ok(found(&held)));
}

#[tokio::test]
async fn a_request_waits_for_the_ticket_that_is_on_its_way_and_ends_with_the_grant() {
    let lab = Lab::start(&[1]);
    let held = chunks(3, 1_000);
    let shelf = Shelf::of(&held);
    let _hub = hub(&lab, &shelf).await;
    let node = lab.node_in(1, 20, &[]).await;
    let client = node.chunks();
    let early = tokio::spawn({
        let (client, sids) = (client.clone(), sids(&held));
        async move { fetch(&client, sids).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.renew(lab.ticket_for(1, &key(20), 60_000, &[session(1)])).await;
    assert_eq!(early.await.unwrap(), Ok(found(&held)));
    let (send, receive) = mpsc::channel(1);
    let upload = tokio::spawn(async move { client.store(session(1), receive).await });
    send.send(chunk(70, 500)).await.unwrap();
    node.renew(lab.ticket_for(1, &key(20), 60_000, &[])).await;
    let refused = async {
        for n in 0.. {
            if send.send(chunk(100 + n, 500)).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.expect("the upload ends");
    assert_eq!(upload.await.unwrap(), Err(ChunkError::NotAttached));
    assert_eq!(shelf.uploads.load(Ordering::SeqCst), 0);
}

/// Sends a chunk under another one's name, as a program would that does not keep to the protocol.
async fn send_poison(node: &Member, sid: Sid, bytes: &Bytes) {
    let (mut send, mut recv) = node.connection().open_bi().await.unwrap();
    let open =
        ChunkOpen { session_id: Bytes::copy_from_slice(session(1).as_bytes()), what: Some(What::Store(true)), ..ChunkOpen::default() };
    send.write_all(&frame::encode(&open)).await.unwrap();
    send.write_all(&u32::try_from(bytes.len()).unwrap().to_be_bytes()).await.unwrap();
    send.write_all(&sid.0).await.unwrap();
    send.write_all(bytes).await.unwrap();
    let _ = send.finish();
    let answer = recv.read_to_end(1_000).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("bad_chunk"), "{answer:?}");
}

#[tokio::test]
async fn a_poisoned_chunk_is_dropped() {
    let lab = Lab::start(&[1]);
    let shelf = Arc::new(Shelf::default());
    let _hub = hub(&lab, &shelf).await;
    let node = lab.node_in(1, 20, &[session(1)]).await;
    let (good, other) = (chunk(1, 1_000), chunk(2, 1_000));
    send_poison(&node, good.sid(), other.bytes()).await;
    assert_eq!(shelf.held.lock().unwrap().len(), 0);
    assert_eq!(fetch(&node.chunks(), vec![good.sid()]).await, Ok(vec![Found { sid: good.sid(), chunk: None }]));
    assert_eq!(node.chunks().store_all(session(1), vec![good.clone()]).await, Ok(1));
    assert_eq!(fetch(&node.chunks(), vec![good.sid()]).await, Ok(found(&[good])));
}

#[tokio::test]
async fn a_poisoned_chunk_of_a_hub_is_not_passed_on_and_not_kept() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let (good, other) = (chunk(1, 1_000), chunk(2, 1_000));
    let (connection, sid, wrong) = (hub.connection().clone(), good.sid(), other.into_bytes());
    let poisoner = tokio::spawn(async move {
        let (mut send, _recv) = connection.accept_bi().await.unwrap();
        send.write_all(&u32::try_from(wrong.len()).unwrap().to_be_bytes()).await.unwrap();
        send.write_all(&sid.0).await.unwrap();
        send.write_all(&wrong).await.unwrap();
        let _ = send.finish();
        let _ = send.stopped().await;
    });
    let node = lab.node_in(1, 20, &[session(1)]).await;
    assert_eq!(fetch(&node.chunks(), vec![sid]).await, Err(ChunkError::BadChunk));
    poisoner.await.unwrap();
    tokio::spawn(serve_all(hub.connection().clone(), Shelf::of(std::slice::from_ref(&good)), None));
    assert_eq!(fetch(&node.chunks(), vec![sid]).await, Ok(found(&[good])));
}

#[tokio::test]
async fn a_reader_that_stalls_holds_nobody_up() {
    let lab = Lab::start(&[1]);
    let held = chunks(100, 200_000);
    let shelf = Shelf::of(&held);
    let _hub = hub(&lab, &shelf).await;
    let (stalled, quick) = (lab.node_in(1, 20, &[session(1)]).await, lab.node_in(1, 21, &[session(1)]).await);
    // Begun and never read on: its windows fill up.
    let mut coming = stalled.chunks().fetch_all(session(1), sids(&held));
    assert!(coming.recv().await.is_some());
    assert_eq!(fetch(&quick.chunks(), sids(&held)).await, Ok(found(&held)));
    // It is behind, and gets the rest when it reads again.
    let mut read = 1;
    while let Some(next) = coming.recv().await {
        next.unwrap();
        read += 1;
    }
    assert_eq!(read, held.len());
    assert!(lab.relay.chunks().bytes() <= 16 << 20, "{}", lab.relay.chunks().bytes());
}

#[tokio::test]
async fn without_the_hub_the_cache_answers_and_everything_else_is_refused_clearly() {
    let lab = Lab::start(&[1]);
    let held = chunks(5, 1_000);
    let shelf = Shelf::of(&held);
    let hub = hub(&lab, &shelf).await;
    let node = lab.node_in(1, 20, &[session(1)]).await;
    assert_eq!(fetch(&node.chunks(), sids(&held[..4])).await, Ok(found(&held[..4])));
    hub.connection().close(0u32.into(), b"");
    let gone = async {
        while lab.relay.hubs().iter().any(|(_, online)| *online) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    let client = node.chunks();
    assert_eq!(fetch(&client, sids(&held[..4])).await, Ok(found(&held[..4])));
    assert_eq!(fetch(&client, sids(&held)).await, Err(ChunkError::HubOffline));
    assert_eq!(client.store_all(session(1), held.clone()).await, Err(ChunkError::HubOffline));
    assert_eq!(client.missing(session(1), &sids(&held)).await, Err(ChunkError::HubOffline));
}

#[tokio::test]
async fn an_error_is_not_remembered() {
    let lab = Lab::start(&[1]);
    let held = chunks(5, 1_000);
    let shelf = Shelf::of(&held);
    let _hub = hub(&lab, &shelf).await;
    let node = lab.node_in(1, 20, &[session(1)]).await;
    let client = node.chunks();
    shelf.fail.store(true, Ordering::SeqCst);
    assert_eq!(fetch(&client, sids(&held)).await, Err(ChunkError::Failed));
    assert_eq!(client.store_all(session(1), held.clone()).await, Err(ChunkError::Failed));
    shelf.fail.store(false, Ordering::SeqCst);
    assert_eq!(fetch(&client, sids(&held)).await, Ok(found(&held)));
}

#[tokio::test]
async fn whoever_asks_for_too_much_or_talks_nonsense_is_answered() {
    let lab = Lab::start(&[1]);
    let shelf = Arc::new(Shelf::default());
    let _hub = hub(&lab, &shelf).await;
    let node = lab.node_in(1, 20, &[session(1)]).await;
    for bytes in [vec![0xff; 40], vec![0, 0, 0, 2, 0xff, 0xff], vec![0, 0, 0, 0], vec![0, 0, 0, 9, 1]] {
        let (mut send, mut recv) = node.connection().open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let _ = send.finish();
        assert!(recv.read_to_end(1_000).await.is_err(), "{bytes:?} was answered");
    }
    assert!(node.connection().close_reason().is_none());
    assert_eq!(node.chunks().missing(session(1), &[]).await, Ok(vec![]));
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), look).await.expect(what);
}

fn passed(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}

#[tokio::test]
async fn what_was_fetched_once_is_served_after_a_restart_without_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let held = chunks(60, 30_000);
    {
        let lab = Lab::start_on_disk(&[1], folder.path());
        let shelf = Shelf::of(&held);
        let _hub = hub(&lab, &shelf).await;
        let node = lab.node_in(1, 20, &[session(1)]).await;
        assert_eq!(fetch(&node.chunks(), sids(&held)).await, Ok(found(&held)));
        until("all are on disk", || {
            lab.relay.chunks().disk().is_some_and(|disk| held.iter().all(|chunk| disk.holds((0, session(1)), &chunk.sid())))
        })
        .await;
    }
    // The first relay's tasks end some time after it was dropped.
    let other = tempfile::tempdir().unwrap();
    std::fs::rename(folder.path().join("chunks"), other.path().join("chunks")).unwrap();
    std::fs::remove_file(other.path().join("chunks/lock")).unwrap();
    let lab = Lab::start_on_disk(&[1], other.path());
    let disk = lab.relay.chunks().disk().unwrap();
    until("they are found again", || held.iter().all(|chunk| disk.holds((0, session(1)), &chunk.sid()))).await;
    let mut away = lab.hub(1).await;
    let nodes = (lab.node_in(1, 20, &[session(1)]).await, lab.node_in(1, 21, &[session(2)]).await);
    away.connection().close(0u32.into(), b"");
    until("the hub is away", || lab.relay.hubs().iter().all(|(_, online)| !online)).await;
    assert_eq!(fetch(&nodes.0.chunks(), sids(&held)).await, Ok(found(&held)));
    assert_eq!(passed(&lab.relay.chunks().counters.from_disk), 60 * 30_000);
    assert_eq!(fetch(&nodes.1.chunks(), sids(&held)).await, Err(ChunkError::NotAttached), "a disk gives no permission");
    // The hub comes back, and says that the session is gone.
    away = lab.hub(1).await;
    away.forget(session(1), true).await;
    until("it is forgotten", || lab.relay.chunks().sessions_of(0).is_empty() && lab.relay.chunks().bytes() == 0).await;
    assert_eq!(fetch(&nodes.0.chunks(), sids(&held)).await, Err(ChunkError::NotAttached), "its ticket counts for nothing");
}

#[tokio::test]
async fn a_session_that_nobody_uses_is_forgotten_and_may_come_back() {
    let lab = Lab::start(&[1]);
    let held = chunks(10, 5_000);
    let shelf = Shelf::of(&held);
    let mut hub = hub(&lab, &shelf).await;
    let node = lab.node_in(1, 20, &[session(1)]).await;
    assert_eq!(fetch(&node.chunks(), sids(&held)).await, Ok(found(&held)));
    hub.forget(session(1), false).await;
    until("it is forgotten", || lab.relay.chunks().bytes() == 0).await;
    assert_eq!(fetch(&node.chunks(), sids(&held)).await, Ok(found(&held)));
    assert_eq!(shelf.most_given(), 2);
}

#[tokio::test]
async fn a_node_may_not_say_what_only_a_hub_may_say() {
    let lab = Lab::start(&[1]);
    let held = chunks(3, 5_000);
    let shelf = Shelf::of(&held);
    let _hub = hub(&lab, &shelf).await;
    let (node, liar) = (lab.node_in(1, 20, &[session(1)]).await, lab.node_in(1, 21, &[session(1)]).await);
    assert_eq!(fetch(&node.chunks(), sids(&held)).await, Ok(found(&held)));
    liar.say_unused(session(1)).await;
    assert_eq!(lab.close_code(&liar.link).await, Some(cortex_wire::close::CloseCode::Protocol));
    assert!(lab.relay.chunks().bytes() > 0);
}
