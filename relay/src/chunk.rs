//! Sealed chunks on their way through: what many nodes want, the hub gives once.
//!
//! A node asks over its link, within the sessions of its ticket. What the [`Cache`] holds is served from it; for the rest the hub is asked, in small groups, and whoever wants the same chunk
//! meanwhile waits for the same answer (a *flight*). Flights land in the cache, whether or not the node that caused them still reads: a slow one holds nobody up. Uploads pass on to the
//! hub, and only its word makes them stored; what passes is cached, because the other nodes of the session are about to ask for it.
//!
//! Keys are tenant, session and sid: knowing a sid is no permission, and hubs do not meet. A sid is checked wherever bytes come in ([`Sealed`]), so nobody can put a wrong chunk here. Errors
//! are not cached. In memory there are the cache, at most [`WINDOW`] chunks for each stream of a node, and at most [`PULLS`] groups for each link.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use cortex_runtime::chunk::{Asker, BoxFuture, ChunkError, ChunkSource, Found};
use cortex_wire::{
    id::SessionId,
    mirror::seal::{Sealed, Sid},
};
use quick_cache::{Weighter, sync::Cache as Map};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};

use crate::tenant::Tenant;

/// Chunks that are asked for with one request to the hub.
const GROUP: usize = 16;
/// Chunks that a stream may be ahead of its reader. 64 KiB each on average, 257 KiB at most.
const WINDOW: usize = 32;
/// Requests to the hub that one link may have under way.
const PULLS: usize = 8;
/// Chunks between a node's upload and the hub.
const QUEUE: usize = 8;
/// Others' requests that may fail before a chunk is given up.
const TRIES: usize = 3;
/// A ticket and a request race each other when a node has just been attached; so long the request waits.
const GRANT_PATIENCE: Duration = Duration::from_secs(1);
/// What an entry takes beside its bytes.
const ENTRY_BYTES: u64 = 160;

type Key = (usize, SessionId, Sid);

/// What passed so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that nodes were given from the cache, or from a flight that another one had begun.
    pub from_cache: AtomicU64,
    /// Bytes that a hub gave.
    pub from_hub: AtomicU64,
    /// Bytes that nodes stored.
    pub stored: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct ByBytes;

impl Weighter<Key, Sealed> for ByBytes {
    fn weight(&self, _: &Key, chunk: &Sealed) -> u64 {
        chunk.bytes().len() as u64 + ENTRY_BYTES
    }
}

/// What is to become of a flight.
#[derive(Debug, Clone)]
enum Flight {
    Under,
    /// `None`: the hub does not hold it.
    Landed(Option<Sealed>),
    Failed(ChunkError),
}

/// The chunks that a relay holds, and those that are on their way to it.
pub struct Cache {
    held: Map<Key, Sealed, ByBytes>,
    flights: Mutex<HashMap<Key, watch::Receiver<Flight>>>,
    /// What passed.
    pub counters: Counters,
}

impl Cache {
    /// A cache of about so many bytes.
    pub fn new(bytes: u64) -> Arc<Self> {
        const AVERAGE_BYTES: u64 = 48 * 1024;
        let entries = usize::try_from(bytes / AVERAGE_BYTES).unwrap_or(usize::MAX).max(64);
        Arc::new(Self { held: Map::with_weighter(entries, bytes, ByBytes), flights: Mutex::default(), counters: Counters::default() })
    }

    /// Bytes held right now.
    pub fn bytes(&self) -> u64 {
        self.held.weight()
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({} bytes)", self.bytes())
    }
}

/// Flights that one request to the hub is to land. However it ends, none is left under way.
struct Landing {
    cache: Arc<Cache>,
    flights: HashMap<Key, watch::Sender<Flight>>,
    outcome: ChunkError,
}

impl Landing {
    fn land(&mut self, key: Key, chunk: Option<Sealed>) {
        let Some(flight) = self.flights.remove(&key) else { return };
        if let Some(chunk) = &chunk {
            self.cache.counters.from_hub.fetch_add(chunk.bytes().len() as u64, Relaxed);
            self.cache.held.insert(key, chunk.clone());
        }
        // First in the cache: whoever finds no flight any more finds the chunk.
        self.cache.flights().remove(&key);
        flight.send_replace(Flight::Landed(chunk));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        for (key, flight) in std::mem::take(&mut self.flights) {
            self.cache.flights().remove(&key);
            flight.send_replace(Flight::Failed(self.outcome));
        }
    }
}

/// A chunk that a stream will send.
enum Wanted {
    Held(Sealed),
    Coming { sid: Sid, flight: watch::Receiver<Flight>, own: bool },
}

/// The chunks as one node's link sees them.
pub(crate) struct LinkChunks {
    cache: Arc<Cache>,
    tenant: Arc<Tenant>,
    /// Of the node's latest ticket.
    sessions: watch::Receiver<Vec<SessionId>>,
    pulls: Arc<Semaphore>,
}

impl LinkChunks {
    pub(crate) fn new(cache: Arc<Cache>, tenant: Arc<Tenant>, sessions: watch::Receiver<Vec<SessionId>>) -> Arc<Self> {
        Arc::new(Self { cache, tenant, sessions, pulls: Arc::new(Semaphore::new(PULLS)) })
    }

    async fn admit(&self, session: SessionId) -> Result<(), ChunkError> {
        let mut sessions = self.sessions.clone();
        let granted = timeout(GRANT_PATIENCE, sessions.wait_for(|granted| granted.contains(&session))).await;
        if matches!(granted, Ok(Ok(_))) { Ok(()) } else { Err(ChunkError::NotAttached) }
    }

    /// Whether the node is still attached.
    fn check(&self, session: SessionId) -> Result<(), ChunkError> {
        if self.sessions.borrow().contains(&session) { Ok(()) } else { Err(ChunkError::NotAttached) }
    }

    fn hub(&self) -> Result<Arc<dyn ChunkSource>, ChunkError> {
        self.tenant.authority().map(|hub| hub.chunks()).ok_or(ChunkError::HubOffline)
    }

    fn key(&self, session: SessionId, sid: Sid) -> Key {
        (self.tenant.index(), session, sid)
    }

    /// Where each chunk will come from. Those that nobody has asked the hub for yet are asked for.
    async fn want(&self, asker: Asker, sids: &[Sid]) -> Result<Vec<Wanted>, ChunkError> {
        self.check(asker.session)?;
        let mut landing = Landing { cache: self.cache.clone(), flights: HashMap::new(), outcome: ChunkError::Failed };
        let wanted = sids.iter().map(|sid| self.find(asker.session, *sid, &mut landing)).collect();
        if !landing.flights.is_empty() {
            let hub = self.hub().inspect_err(|error| landing.outcome = *error)?;
            let asked: Vec<_> = sids.iter().copied().filter(|sid| landing.flights.contains_key(&self.key(asker.session, *sid))).collect();
            let permit = self.pulls.clone().acquire_owned().await.map_err(|_| ChunkError::Failed)?;
            let tenant = self.tenant.index();
            tokio::spawn(async move {
                pull(hub.as_ref(), tenant, asker, asked, landing).await;
                drop(permit);
            });
        }
        Ok(wanted)
    }

    fn find(&self, session: SessionId, sid: Sid, landing: &mut Landing) -> Wanted {
        let key = self.key(session, sid);
        let mut flights = self.cache.flights();
        if let Some(flight) = flights.get(&key) {
            return Wanted::Coming { sid, flight: flight.clone(), own: landing.flights.contains_key(&key) };
        }
        if let Some(chunk) = self.cache.held.get(&key) {
            return Wanted::Held(chunk);
        }
        let (tell, flight) = watch::channel(Flight::Under);
        flights.insert(key, flight.clone());
        landing.flights.insert(key, tell);
        Wanted::Coming { sid, flight, own: true }
    }

    /// The chunk itself. When somebody else's request fails, it is tried again as one's own: it may have failed for reasons of theirs.
    async fn get(&self, asker: Asker, mut wanted: Wanted) -> Result<Option<Sealed>, ChunkError> {
        let shared = |chunk: &Sealed| self.cache.counters.from_cache.fetch_add(chunk.bytes().len() as u64, Relaxed);
        let mut outcome = ChunkError::Failed;
        for _ in 0..TRIES {
            let (sid, mut flight, own) = match wanted {
                Wanted::Held(chunk) => {
                    shared(&chunk);
                    return Ok(Some(chunk));
                }
                Wanted::Coming { sid, flight, own } => (sid, flight, own),
            };
            let landed = flight.wait_for(|flight| !matches!(flight, Flight::Under)).await.map(|landed| landed.clone());
            match landed {
                Ok(Flight::Landed(chunk)) => {
                    if !own {
                        chunk.as_ref().map(shared);
                    }
                    return Ok(chunk);
                }
                Ok(Flight::Failed(error)) if own => return Err(error),
                Ok(Flight::Failed(error)) => outcome = error,
                Ok(Flight::Under) | Err(_) => {}
            }
            wanted = self.want(asker, &[sid]).await?.pop().ok_or(ChunkError::Failed)?;
        }
        Err(outcome)
    }
}

/// Asks the hub for chunks, and lands them as they arrive.
async fn pull(hub: &dyn ChunkSource, tenant: usize, asker: Asker, sids: Vec<Sid>, mut landing: Landing) {
    let (tell, mut told) = mpsc::channel::<Found>(GROUP);
    let land = async {
        while let Some(found) = told.recv().await {
            landing.land((tenant, asker.session, found.sid), found.chunk);
        }
    };
    let (outcome, ()) = tokio::join!(hub.fetch(asker, sids, tell), land);
    if let Err(error) = outcome {
        landing.outcome = error;
    }
}

impl ChunkSource for LinkChunks {
    fn fetch(&self, asker: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>> {
        Box::pin(async move {
            self.admit(asker.session).await?;
            let (mut groups, mut ahead) = (sids.chunks(GROUP), VecDeque::with_capacity(WINDOW));
            let mut order = sids.iter();
            loop {
                while ahead.len() + GROUP <= WINDOW
                    && let Some(group) = groups.next()
                {
                    ahead.extend(self.want(asker, group).await?);
                }
                let (Some(wanted), Some(sid)) = (ahead.pop_front(), order.next()) else { return Ok(()) };
                let chunk = self.get(asker, wanted).await?;
                if found.send(Found { sid: *sid, chunk }).await.is_err() {
                    return Ok(());
                }
            }
        })
    }

    fn store(&self, asker: Asker, mut chunks: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>> {
        Box::pin(async move {
            self.admit(asker.session).await?;
            let hub = self.hub()?;
            let (tell, told) = mpsc::channel(QUEUE);
            let pass_on = async {
                while let Some(chunk) = chunks.recv().await {
                    self.check(asker.session)?;
                    self.cache.counters.stored.fetch_add(chunk.bytes().len() as u64, Relaxed);
                    self.cache.held.insert(self.key(asker.session, chunk.sid()), chunk.clone());
                    if tell.send(chunk).await.is_err() {
                        // The hub has given up, and says why.
                        break;
                    }
                }
                drop(tell);
                Ok(())
            };
            tokio::try_join!(hub.store(asker, told), pass_on).map(|(stored, ())| stored)
        })
    }

    fn missing(&self, asker: Asker, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>> {
        Box::pin(async move {
            self.admit(asker.session).await?;
            // Always the hub's word: what is cached may not be durable there.
            self.hub()?.missing(asker, sids).await
        })
    }
}
