//! The hubs this relay serves.
//!
//! A [`Tenant`] exists for every hub in the configuration, connected or not. While its hub is connected, the relay asks it about nodes that hold no ticket; while it is
//! not, tickets that were issued before still admit, and nobody new is.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use cortex_runtime::chunk::BoxFuture;
use cortex_runtime::chunk::{ChunkClient, ChunkSource};
use cortex_wire::{
    id::HubId,
    key::PublicKey,
    schema::{Admission, AdmissionAnswer, FromRelay, HubState, LinkRefused, NodeGone, admission_answer::Answer, from_relay::Frame},
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
}

/// One hub.
pub struct Tenant {
    hub: HubId,
    index: usize,
    connected: Mutex<Connected>,
    state: watch::Sender<HubState>,
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
        Self { hub, index, connected: Mutex::default(), state: watch::Sender::default() }
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
}

/// The answer while a hub cannot be asked.
pub(crate) fn hub_offline() -> LinkRefused {
    LinkRefused {
        code: "hub_offline".into(),
        reason: "the hub is not connected to this relay right now; the peer tries again by itself".into(),
        retry_after_ms: 500,
    }
}
