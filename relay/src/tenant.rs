//! The hubs this relay serves.
//!
//! A [`Tenant`] exists for every hub in the configuration, connected or not; the operator may change the list while the relay runs ([`Tenants::keep`]). While its hub is connected, the relay asks it about nodes that hold no ticket; while it is
//! not, tickets that were issued before still admit, and nobody new is.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
pub use cortex_runtime::chunk::BoxFuture;
use cortex_runtime::chunk::{ChunkClient, ChunkSource};
use cortex_wire::{
    id::{HubId, SessionId},
    key::PublicKey,
    limits,
    schema::{
        Admission, AdmissionAnswer, FromRelay, HeldSessions, HubState, LinkRefused, NodeGone, admission_answer::Answer, from_relay::Frame,
    },
};
use tokio::sync::{mpsc, oneshot, watch};

/// A hub, as a relay sees it: it decides who is admitted, hears who has left, and holds the chunks of its sessions.
pub trait Authority: Send + Sync + 'static {
    /// Whether the node may use this relay.
    fn admit(&self, admission: Admission) -> BoxFuture<'_, Answer>;
    /// A node's link has ended.
    fn gone(&self, gone: NodeGone);
    /// The chunks that it holds.
    fn chunks(&self) -> Arc<dyn ChunkSource>;
    /// Whether it answers when it is asked. It may take as long as it wants.
    fn echo(&self) -> BoxFuture<'_, bool>;
}

/// The hubs of the configuration.
#[derive(Debug, Default)]
pub struct Tenants {
    by_hub: RwLock<HashMap<HubId, Arc<Tenant>>>,
    /// Numbers are not given twice: what a hub left behind is nobody else's.
    next: AtomicUsize,
}

impl Tenants {
    /// These hubs.
    pub fn new(hubs: &[HubId]) -> Self {
        let tenants = Self::default();
        tenants.keep(hubs);
        tenants
    }

    /// The tenant for a hub that is served.
    pub fn get(&self, hub: &HubId) -> Option<Arc<Tenant>> {
        self.by_hub.read().unwrap_or_else(PoisonError::into_inner).get(hub).cloned()
    }

    /// All of them, those that came first first.
    pub fn all(&self) -> Vec<Arc<Tenant>> {
        let mut all: Vec<_> = self.by_hub.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by_key(|tenant| tenant.index);
        all
    }

    /// The hubs, by the numbers of their tenants.
    pub(crate) fn numbers(&self) -> HashMap<usize, HubId> {
        self.all().iter().map(|tenant| (tenant.index, tenant.hub)).collect()
    }

    /// Whether a tenant is still served: it may have been removed while a link was on its way in.
    pub(crate) fn serves(&self, tenant: &Arc<Tenant>) -> bool {
        self.get(&tenant.hub).is_some_and(|known| Arc::ptr_eq(&known, tenant))
    }

    /// Serves these hubs and no others from now on. Returns how many are new, and those that were removed.
    pub(crate) fn keep(&self, hubs: &[HubId]) -> (usize, Vec<Arc<Tenant>>) {
        let mut by_hub = self.by_hub.write().unwrap_or_else(PoisonError::into_inner);
        let before = by_hub.len();
        let removed: Vec<_> = by_hub.extract_if(|hub, _| !hubs.contains(hub)).map(|(_, tenant)| tenant).collect();
        let left = before - removed.len();
        for hub in hubs {
            by_hub.entry(*hub).or_insert_with(|| Arc::new(Tenant::new(*hub, self.next.fetch_add(1, Relaxed))));
        }
        (by_hub.len() - left, removed)
    }
}

/// One hub.
pub struct Tenant {
    hub: HubId,
    index: usize,
    connected: Mutex<Connected>,
    state: watch::Sender<HubState>,
    /// The last relay that did not answer the hub, by its key.
    silent: watch::Sender<Bytes>,
}

#[derive(Default)]
struct Connected {
    link: u64,
    /// Kept when the hub goes: tickets hold on without it.
    ticket_key: Option<PublicKey>,
    authority: Option<Arc<dyn Authority>>,
}

impl Tenant {
    pub(crate) fn new(hub: HubId, index: usize) -> Self {
        Self { hub, index, connected: Mutex::default(), state: watch::Sender::default(), silent: watch::Sender::default() }
    }

    /// Which hub.
    pub fn hub(&self) -> HubId {
        self.hub
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The key that its tickets are signed with, once it has been connected.
    pub fn ticket_key(&self) -> Option<PublicKey> {
        self.lock().ticket_key
    }

    /// The hub itself, while it is connected.
    pub fn authority(&self) -> Option<Arc<dyn Authority>> {
        self.lock().authority.clone()
    }

    /// Whether the hub is connected, and which start of it; changes are seen by every link.
    pub fn state(&self) -> watch::Receiver<HubState> {
        self.state.subscribe()
    }

    /// Relays that do not answer the hub, as it notices them.
    pub(crate) fn silent(&self) -> watch::Receiver<Bytes> {
        self.silent.subscribe()
    }

    /// Tells every node that is linked here.
    pub(crate) fn tell_silent(&self, relay: Bytes) {
        self.silent.send_replace(relay);
    }

    pub(crate) fn connect(&self, link: u64, ticket_key: PublicKey, instance: u64, authority: Arc<dyn Authority>) {
        *self.lock() = Connected { link, ticket_key: Some(ticket_key), authority: Some(authority) };
        self.state.send_replace(HubState { online: true, instance, within_ms: 0 });
    }

    pub(crate) fn disconnect(&self, link: u64) {
        let mut connected = self.lock();
        if connected.link == link && connected.authority.take().is_some() {
            drop(connected);
            self.state.send_replace(HubState::default());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tenant({:?})", self.hub)
    }
}

/// A hub at the other end of a link.
pub struct LinkedHub {
    frames: mpsc::Sender<FromRelay>,
    chunks: ChunkClient,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    /// The last one; who asked before hears nothing.
    echo: Option<(u64, oneshot::Sender<()>)>,
}

impl LinkedHub {
    /// How long a hub may think about a newcomer.
    const PATIENCE: Duration = Duration::from_secs(5);
    /// Newcomers that one hub is asked about at once.
    const PENDING: usize = 512;

    pub(crate) fn new(frames: mpsc::Sender<FromRelay>, connection: quinn::Connection) -> Arc<Self> {
        Arc::new(Self { frames, chunks: ChunkClient::new(connection), pending: Mutex::default() })
    }

    /// The hub has answered.
    pub(crate) fn answer(&self, answer: AdmissionAnswer) {
        let waiting = self.pending.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&answer.request);
        if let (Some(waiting), Some(answer)) = (waiting, answer.answer) {
            let _ = waiting.send(answer);
        }
    }

    /// The hub is there.
    pub(crate) fn echoed(&self, nonce: u64) {
        let waiting = self.pending.lock().unwrap_or_else(PoisonError::into_inner).echo.take_if(|(asked, _)| *asked == nonce);
        if let Some((_, waiting)) = waiting {
            let _ = waiting.send(());
        }
    }

    /// It is told of which sessions the relay holds chunks, and answers which of them are not used any more.
    pub(crate) fn tell_held(&self, sessions: &[SessionId]) {
        for some in sessions.chunks(limits::LINK_SESSIONS) {
            let held = HeldSessions { session_ids: some.iter().map(|session| Bytes::copy_from_slice(session.as_bytes())).collect() };
            // When the queue is full, they are told at the next link.
            let _ = self.frames.try_send(FromRelay { frame: Some(Frame::Held(held)) });
        }
    }

    async fn ask(&self, mut admission: Admission) -> Option<Answer> {
        let (tell, told) = oneshot::channel();
        {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            if pending.answers.len() >= Self::PENDING {
                return None;
            }
            pending.next += 1;
            admission.request = pending.next;
            pending.answers.insert(admission.request, tell);
        }
        let request = admission.request;
        let frame = FromRelay { frame: Some(Frame::Admission(admission)) };
        let asked = self.frames.try_send(frame).is_ok();
        let answer = if asked { tokio::time::timeout(Self::PATIENCE, told).await.ok().and_then(Result::ok) } else { None };
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&request);
        answer
    }
}

impl Authority for LinkedHub {
    fn admit(&self, admission: Admission) -> BoxFuture<'_, Answer> {
        Box::pin(async move { self.ask(admission).await.unwrap_or_else(|| Answer::Refused(hub_offline())) })
    }

    fn gone(&self, gone: NodeGone) {
        // When the hub's queue is full, its own silence timer finds out.
        let _ = self.frames.try_send(FromRelay { frame: Some(Frame::NodeGone(gone)) });
    }

    fn chunks(&self) -> Arc<dyn ChunkSource> {
        Arc::new(self.chunks.clone())
    }

    fn echo(&self) -> BoxFuture<'_, bool> {
        let (tell, told) = oneshot::channel();
        let nonce = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.next += 1;
            pending.echo = Some((pending.next, tell));
            pending.next
        };
        Box::pin(async move { self.frames.try_send(FromRelay { frame: Some(Frame::Echo(nonce)) }).is_ok() && told.await.is_ok() })
    }
}

/// The answer while a hub cannot be asked.
pub(crate) fn hub_offline() -> LinkRefused {
    LinkRefused {
        code: "hub_offline".into(),
        reason: "the hub is not connected to this relay right now; the peer tries again by itself".into(),
        retry_after_ms: 500,
    }
}
