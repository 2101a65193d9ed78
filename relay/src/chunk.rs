//! Sealed chunks on their way through: what many nodes want, the hub gives once.
//!
//! A node asks over its link, within the sessions of its ticket. What the [`Cache`] holds in memory or on disk is served from it; for the rest the hub is asked, in small groups, and whoever wants the
//! same chunk meanwhile waits for the same answer (a *flight*). Flights land in the cache, whether or not the node that caused them still reads: a slow one holds nobody up, and holds no memory. Uploads
//! pass on to the hub, and only its word makes them stored; what passes is cached, because the other nodes of the session are about to ask for it.
//!
//! Keys are tenant, session and sid: knowing a sid is no permission, and hubs do not meet. A sid is checked wherever bytes come in ([`Sealed`]), from a network or from a disk, so nobody can put a wrong
//! chunk here. Errors are not cached. What no node may ask for any more is purged on the hub's word. In memory there are the cache, the chunks that streams are about to send (two for each), and at most
//! [`PULLS`] groups for each link, which land at once.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`shelf`] | who yields when a tier is full |
//! | [`disk`] | the tier that outlives the process |

pub mod disk;
pub mod shelf;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use cortex_runtime::chunk::{Asker, BoxFuture, ChunkError, ChunkSource, Found};
use cortex_wire::{
    id::SessionId,
    mirror::seal::{Sealed, Sid},
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::timeout,
};

use self::{
    disk::Disk,
    shelf::{Namespace, Shelf},
};
use crate::tenant::Tenant;

/// Chunks that are asked for with one request to the hub.
const GROUP: usize = 16;
/// Chunks that a stream has asked for ahead of its reader. They wait in the cache.
const WINDOW: usize = 32;
/// Requests to the hub that one link may have under way.
const PULLS: usize = 8;
/// Chunks between a node's upload and the hub.
const QUEUE: usize = 8;
/// Requests that may come to nothing before a chunk is given up: they were others', or it was evicted before it could be sent.
const TRIES: usize = 5;
/// A ticket and a request race each other when a node has just been attached; so long the request waits.
const GRANT_PATIENCE: Duration = Duration::from_secs(1);
/// What an entry takes beside its bytes.
const ENTRY_BYTES: u64 = 160;

/// Groups that are read from the disk at the same time.
const DISK_READERS: usize = 4;
/// The least that is kept in memory: what streams have asked for ahead waits there.
const LEAST_BYTES: u64 = 8 << 20;

type Key = (Namespace, Sid);

/// What passed so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes that nodes were given from the cache, or from a flight that another one had begun.
    pub from_cache: AtomicU64,
    /// Bytes that were read from the disk tier.
    pub from_disk: AtomicU64,
    /// Bytes that a hub gave.
    pub from_hub: AtomicU64,
    /// Chunks that nodes were given so.
    pub hits: AtomicU64,
    /// Chunks that a hub gave.
    pub misses: AtomicU64,
    /// Bytes that nodes stored.
    pub stored: AtomicU64,
}

/// What is to become of a flight.
#[derive(Debug, Clone)]
enum Flight {
    Under,
    /// In the cache. Whoever still waits for other chunks does not keep this one in memory.
    Landed(Weak<Sealed>),
    /// The hub does not hold it.
    Absent,
    Failed(ChunkError),
}

/// The chunks that a relay holds, and those that are on their way to it.
pub struct Cache {
    memory: Mutex<Shelf<Sid, Arc<Sealed>>>,
    disk: Option<Disk>,
    disk_readers: Semaphore,
    flights: Mutex<HashMap<Key, watch::Receiver<Flight>>>,
    /// What passed.
    pub counters: Counters,
}

impl Cache {
    /// A cache of so many bytes in memory, and perhaps with a tier on disk.
    pub fn new(bytes: u64, disk: Option<Disk>) -> Arc<Self> {
        Arc::new(Self {
            memory: Mutex::new(Shelf::new(bytes.max(LEAST_BYTES))),
            disk,
            disk_readers: Semaphore::new(DISK_READERS),
            flights: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// Bytes held in memory right now.
    pub fn bytes(&self) -> u64 {
        self.memory().bytes()
    }

    /// The tier on disk, if there is one.
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Forgets a session: in both tiers, and what is on its way.
    pub fn purge(&self, tenant: usize, session: SessionId) {
        let namespace = (tenant, session);
        // What is under way finds that nobody keeps it.
        self.flights().retain(|(of, _), _| *of != namespace);
        self.memory().purge(namespace);
        if let Some(disk) = &self.disk {
            disk.purge(namespace);
        }
    }

    /// Sessions of a hub of which something is held.
    pub fn sessions_of(&self, tenant: usize) -> Vec<SessionId> {
        let mut sessions: Vec<SessionId> = self.memory().sessions_of(tenant).collect();
        sessions.extend(self.disk.iter().flat_map(|disk| disk.sessions_of(tenant)));
        sessions.sort_unstable();
        sessions.dedup();
        sessions
    }

    fn held(&self, (namespace, sid): &Key) -> Option<Arc<Sealed>> {
        self.memory().get(*namespace, sid).cloned()
    }

    fn hold(&self, namespace: Namespace, chunk: &Arc<Sealed>) {
        let weight = chunk.bytes().len() as u64 + ENTRY_BYTES;
        // What yields is dropped.
        drop(self.memory().insert(namespace, chunk.sid(), chunk.clone(), weight));
    }

    /// Keeps what a node has stored.
    fn keep(&self, namespace: Namespace, chunk: Sealed) {
        if let Some(disk) = &self.disk {
            disk.put(namespace, &chunk);
        }
        self.hold(namespace, &Arc::new(chunk));
    }

    fn memory(&self) -> MutexGuard<'_, Shelf<Sid, Arc<Sealed>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Flights that one request is to land. However it ends, none is left under way.
struct Landing {
    cache: Arc<Cache>,
    namespace: Namespace,
    flights: HashMap<Sid, watch::Sender<Flight>>,
    outcome: ChunkError,
}

impl Landing {
    fn land(&mut self, sid: Sid, chunk: Option<Sealed>) -> Option<Arc<Sealed>> {
        let flight = self.flights.remove(&sid)?;
        let chunk = chunk.map(Arc::new);
        let mut flights = self.cache.flights();
        // First in the cache: whoever finds no flight any more finds the chunk. And not there when the session was purged meanwhile.
        if flights.contains_key(&(self.namespace, sid))
            && let Some(chunk) = &chunk
        {
            self.cache.hold(self.namespace, chunk);
        }
        flights.remove(&(self.namespace, sid));
        flight.send_replace(chunk.as_ref().map_or(Flight::Absent, |chunk| Flight::Landed(Arc::downgrade(chunk))));
        chunk
    }

    fn land_from_hub(&mut self, found: Found) {
        let kept = self.cache.flights().contains_key(&(self.namespace, found.sid));
        let Some(chunk) = self.land(found.sid, found.chunk) else { return };
        self.cache.counters.from_hub.fetch_add(chunk.bytes().len() as u64, Relaxed);
        self.cache.counters.misses.fetch_add(1, Relaxed);
        if kept && let Some(disk) = &self.cache.disk {
            disk.put(self.namespace, &chunk);
        }
    }

    /// Lands what is on disk.
    async fn land_from_disk(&mut self) {
        let Some(disk) = self.cache.disk.clone() else { return };
        let (namespace, cache) = (self.namespace, self.cache.clone());
        let here: Vec<Sid> = self.flights.keys().filter(|sid| disk.holds(namespace, sid)).copied().collect();
        if here.is_empty() {
            return;
        }
        let Ok(_permit) = cache.disk_readers.acquire().await else { return };
        let read = tokio::task::spawn_blocking(move || disk.read(namespace, &here)).await;
        for chunk in read.unwrap_or_default() {
            self.cache.counters.from_disk.fetch_add(chunk.bytes().len() as u64, Relaxed);
            self.land(chunk.sid(), Some(chunk));
        }
    }

    /// Asks the hub for the rest, and lands it as it arrives.
    async fn land_from(mut self, tenant: &Tenant, asker: Asker, mut sids: Vec<Sid>) {
        sids.retain(|sid| self.flights.contains_key(sid));
        if sids.is_empty() {
            return;
        }
        let Some(hub) = tenant.authority().map(|hub| hub.chunks()) else {
            self.outcome = ChunkError::HubOffline;
            return;
        };
        let (tell, mut told) = mpsc::channel::<Found>(1);
        let land = async {
            while let Some(found) = told.recv().await {
                self.land_from_hub(found);
            }
        };
        let (outcome, ()) = tokio::join!(hub.fetch(asker, sids, tell), land);
        if let Err(error) = outcome {
            self.outcome = error;
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        for (sid, flight) in std::mem::take(&mut self.flights) {
            self.cache.flights().remove(&(self.namespace, sid));
            flight.send_replace(Flight::Failed(self.outcome));
        }
    }
}

/// A chunk that a stream will send.
enum Wanted {
    Held,
    Coming { flight: watch::Receiver<Flight>, own: bool },
}

/// The sessions whose chunks a node may ask for, by its latest ticket.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    sessions: Mutex<Vec<SessionId>>,
    more: Notify,
}

impl Granted {
    pub(crate) fn new(sessions: Vec<SessionId>) -> Self {
        Self { sessions: Mutex::new(sessions), more: Notify::new() }
    }

    /// There is a new ticket.
    pub(crate) fn set(&self, sessions: Vec<SessionId>) {
        *self.lock() = sessions;
        self.more.notify_waiters();
    }

    /// These sessions are no more, whatever the ticket says.
    pub(crate) fn take_back(&self, gone: &[SessionId]) {
        self.lock().retain(|session| !gone.contains(session));
    }

    fn has(&self, session: SessionId) -> bool {
        self.lock().contains(&session)
    }

    async fn wait_for(&self, session: SessionId) {
        loop {
            // Before it is looked at: what comes meanwhile counts.
            let more = self.more.notified();
            if self.has(session) {
                return;
            }
            more.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SessionId>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The chunks as one node's link sees them.
pub(crate) struct LinkChunks {
    cache: Arc<Cache>,
    tenant: Arc<Tenant>,
    sessions: Arc<Granted>,
    pulls: Arc<Semaphore>,
}

impl LinkChunks {
    pub(crate) fn new(cache: Arc<Cache>, tenant: Arc<Tenant>, sessions: Arc<Granted>) -> Arc<Self> {
        Arc::new(Self { cache, tenant, sessions, pulls: Arc::new(Semaphore::new(PULLS)) })
    }

    async fn admit(&self, session: SessionId) -> Result<(), ChunkError> {
        timeout(GRANT_PATIENCE, self.sessions.wait_for(session)).await.map_err(|_| ChunkError::NotAttached)
    }

    /// Whether the node is still attached.
    fn check(&self, session: SessionId) -> Result<(), ChunkError> {
        if self.sessions.has(session) { Ok(()) } else { Err(ChunkError::NotAttached) }
    }

    fn hub(&self) -> Result<Arc<dyn ChunkSource>, ChunkError> {
        self.tenant.authority().map(|hub| hub.chunks()).ok_or(ChunkError::HubOffline)
    }

    /// Where each chunk will come from. Those that nobody has asked for yet are asked for.
    async fn want(&self, asker: Asker, sids: &[Sid]) -> Result<Vec<Wanted>, ChunkError> {
        self.check(asker.session)?;
        let namespace = (self.tenant.index(), asker.session);
        let mut landing = Landing { cache: self.cache.clone(), namespace, flights: HashMap::new(), outcome: ChunkError::Failed };
        let wanted = sids.iter().map(|sid| self.find((namespace, *sid), &mut landing)).collect();
        if !landing.flights.is_empty() {
            let asked: Vec<_> = sids.iter().copied().filter(|sid| landing.flights.contains_key(sid)).collect();
            let permit = self.pulls.clone().acquire_owned().await.map_err(|_| ChunkError::Failed)?;
            let tenant = self.tenant.clone();
            tokio::spawn(async move {
                landing.land_from_disk().await;
                landing.land_from(&tenant, asker, asked).await;
                drop(permit);
            });
        }
        Ok(wanted)
    }

    fn find(&self, key: Key, landing: &mut Landing) -> Wanted {
        let mut flights = self.cache.flights();
        if let Some(flight) = flights.get(&key) {
            return Wanted::Coming { flight: flight.clone(), own: landing.flights.contains_key(&key.1) };
        }
        if self.cache.held(&key).is_some() {
            return Wanted::Held;
        }
        let (tell, flight) = watch::channel(Flight::Under);
        flights.insert(key, flight.clone());
        landing.flights.insert(key.1, tell);
        Wanted::Coming { flight, own: true }
    }

    /// The chunk itself. When somebody else's request fails, it is tried again as one's own: it may have failed for reasons of theirs. So is one that was evicted before its turn came.
    async fn get(&self, asker: Asker, sid: Sid, mut wanted: Wanted) -> Result<Option<Arc<Sealed>>, ChunkError> {
        let counters = &self.cache.counters;
        let shared = |chunk: &Sealed| {
            counters.from_cache.fetch_add(chunk.bytes().len() as u64, Relaxed);
            counters.hits.fetch_add(1, Relaxed);
        };
        let key = ((self.tenant.index(), asker.session), sid);
        let mut outcome = ChunkError::Failed;
        for _ in 0..TRIES {
            match wanted {
                Wanted::Held => {
                    if let Some(chunk) = self.cache.held(&key) {
                        shared(&chunk);
                        return Ok(Some(chunk));
                    }
                }
                Wanted::Coming { mut flight, own } => {
                    let landed = flight.wait_for(|flight| !matches!(flight, Flight::Under)).await.map(|landed| landed.clone());
                    match landed {
                        Ok(Flight::Landed(chunk)) => {
                            if let Some(chunk) = chunk.upgrade() {
                                if !own {
                                    shared(&chunk);
                                }
                                return Ok(Some(chunk));
                            }
                        }
                        Ok(Flight::Absent) => return Ok(None),
                        Ok(Flight::Failed(error)) if own => return Err(error),
                        Ok(Flight::Failed(error)) => outcome = error,
                        Ok(Flight::Under) | Err(_) => {}
                    }
                }
            }
            wanted = self.want(asker, &[sid]).await?.pop().ok_or(ChunkError::Failed)?;
        }
        Err(outcome)
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
                // Not before there is room for it: what waits, waits in the cache.
                let Ok(room) = found.reserve().await else { return Ok(()) };
                let chunk = self.get(asker, *sid, wanted).await?;
                room.send(Found { sid: *sid, chunk: chunk.map(Arc::unwrap_or_clone) });
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
                    self.cache.keep((self.tenant.index(), asker.session), chunk.clone());
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
