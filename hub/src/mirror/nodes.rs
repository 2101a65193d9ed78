//! The nodes that follow a workspace: what they say about themselves, and what they are asked.
//!
//! A stream joins with [`Workspace::join`] and leaves by dropping its [`Attachment`]. What a node says is kept for whoever asks, and told live to those who watch
//! the session, at a bounded rate.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cortex_wire::{
    id::{NodeId, SessionId},
    limits,
    schema::{Decision, DriftReport, Rescan, WorkspaceStatus, to_workspace::Frame},
    text::clean,
};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

use super::{
    MirrorError,
    commit::{By, Plan},
    workspace::{Head, Workspace},
};
use crate::{account::Actor, hub, hub::Hub, record::Event};

/// Questions to one node that wait to be sent.
const ORDERS: usize = 64;
/// Progress is told this often at most; a change of state at once.
const TELL_EVERY_MS: i64 = 500;
/// The state of a node whose workspace cannot be opened there.
const FAILED: &str = "failed";
/// A node has this long to take an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Problems of one node that are kept.
const PROBLEMS: usize = 100;
/// Paths in one list of a drift report.
const DRIFT_PATHS: usize = 1_000;

/// How a node's copy of a workspace does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct NodeSync {
    /// The revision that it holds; 0: none yet.
    pub revision: u64,
    /// "connecting", "scanning", "syncing", "in_sync", "paused", "held", "failed".
    pub state: String,
    /// Still to fetch and apply.
    pub down_files: u64,
    /// Still to fetch and apply.
    pub down_bytes: u64,
    /// Still to propose.
    pub up_files: u64,
    /// Still to propose.
    pub up_bytes: u64,
    /// Bytes in a second that went both ways, over the last report.
    pub bytes_per_second: u64,
    /// Until nothing is left, at that rate; none: not known.
    pub remaining_ms: Option<u64>,
    /// Changes that are kept back under a lock, a pause or a question.
    pub held: u64,
    /// What a person should see.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub more_problems: u64,
    /// What the node wants decided.
    pub question: Option<Question>,
    /// When the node last said so.
    pub at_ms: i64,
}

/// A path that cannot be synced, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = SyncProblem)]
pub struct Problem {
    /// Where; "": the whole workspace.
    pub path: String,
    /// Stable: "unreadable", "not_utf8", "special_file", "case_collision", "no_space", "hot", …
    pub code: String,
    /// For a person.
    pub message: String,
}

/// Something that a node does not do without a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Question {
    /// For the answer.
    pub id: u64,
    /// For a person.
    pub text: String,
}

impl NodeSync {
    /// The workspace cannot be opened there.
    pub(crate) fn is_failed(&self) -> bool {
        self.state == FAILED
    }

    fn next(&self, status: &WorkspaceStatus, now_ms: i64) -> Self {
        let left = |sync: &Self| sync.down_bytes.saturating_add(sync.up_bytes);
        let problem = |problem: &cortex_wire::schema::WorkspaceProblem| Problem {
            path: clean(&problem.path, limits::PATH_BYTES),
            code: clean(&problem.code, limits::NAME_BYTES),
            message: clean(&problem.message, limits::TEXT_BYTES),
        };
        let mut next = Self {
            revision: status.revision,
            state: clean(&status.state, limits::NAME_BYTES),
            down_files: status.down_files,
            down_bytes: status.down_bytes,
            up_files: status.up_files,
            up_bytes: status.up_bytes,
            bytes_per_second: 0,
            remaining_ms: None,
            held: status.held,
            problems: status.problems.iter().take(PROBLEMS).map(problem).collect(),
            more_problems: status.more_problems.saturating_add(status.problems.len().saturating_sub(PROBLEMS) as u64),
            question: (status.question != 0)
                .then(|| Question { id: status.question, text: clean(&status.question_text, limits::TEXT_BYTES) }),
            at_ms: now_ms,
        };
        let elapsed = u64::try_from(now_ms - self.at_ms).unwrap_or(0);
        let (before, now) = (left(self), left(&next));
        if elapsed > 0 && now < before {
            next.bytes_per_second = (before - now).saturating_mul(1000) / elapsed;
        } else if now == before && now > 0 {
            next.bytes_per_second = self.bytes_per_second;
        }
        next.remaining_ms = (next.bytes_per_second > 0).then(|| now.saturating_mul(1000) / next.bytes_per_second);
        next
    }
}

/// A difference between a node's files and the workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Drift {
    /// The revision that the node compared with.
    pub revision: u64,
    /// In the workspace, not there.
    pub missing: Vec<String>,
    /// There, not in the workspace.
    pub extra: Vec<String>,
    /// Different.
    pub changed: Vec<String>,
    /// Paths beyond those lists.
    pub more: u64,
    /// The node has set it right, or proposed what was edited there.
    pub repaired: bool,
}

impl From<DriftReport> for Drift {
    fn from(report: DriftReport) -> Self {
        let paths = |list: Vec<String>| list.into_iter().take(DRIFT_PATHS).map(|path| clean(&path, limits::PATH_BYTES)).collect();
        Self {
            revision: report.revision,
            missing: paths(report.missing),
            extra: paths(report.extra),
            changed: paths(report.changed),
            more: report.more,
            repaired: report.repaired,
        }
    }
}

#[derive(Debug)]
struct Attached {
    number: u64,
    orders: mpsc::Sender<Frame>,
    sync: NodeSync,
    told_at_ms: i64,
    reports: HashMap<u64, oneshot::Sender<Drift>>,
    barriers: HashMap<u64, oneshot::Sender<()>>,
    /// Answers on their way to it.
    answers: HashMap<u64, oneshot::Sender<bool>>,
    last_drift: Option<(i64, Drift)>,
}

/// Who follows a workspace now.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    attached: Mutex<BTreeMap<NodeId, Attached>>,
    next_request: AtomicU64,
}

impl Nodes {
    /// How one of them does; `None`: it is not connected.
    pub(crate) fn sync_of(&self, node: NodeId) -> Option<NodeSync> {
        hub::lock(&self.attached).get(&node).map(|attached| attached.sync.clone())
    }

    /// How many are connected.
    pub(super) fn count(&self) -> usize {
        hub::lock(&self.attached).len()
    }

    /// How many hold less than this revision.
    pub(crate) fn behind(&self, revision: u64) -> u64 {
        hub::lock(&self.attached).values().filter(|attached| attached.sync.revision < revision).count() as u64
    }

    /// What one of them last said about drift, and when.
    pub(crate) fn drift_of(&self, node: NodeId) -> Option<(i64, Drift)> {
        hub::lock(&self.attached).get(&node).and_then(|attached| attached.last_drift.clone())
    }

    fn order(&self, node: NodeId, frame: Frame) -> Result<(), MirrorError> {
        let attached = hub::lock(&self.attached);
        let attached = attached.get(&node).ok_or(MirrorError::NodeAway)?;
        attached.orders.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => MirrorError::NodeBusy,
            mpsc::error::TrySendError::Closed(_) => MirrorError::NodeAway,
        })
    }

    /// The question that a node asks, if it is this one.
    fn question_of(&self, node: NodeId, question: u64) -> Result<Question, MirrorError> {
        let asked = self.sync_of(node).ok_or(MirrorError::NodeAway)?.question;
        asked.filter(|asked| asked.id == question).ok_or(MirrorError::NotAsked)
    }

    /// Has a node compare its files with the workspace, and waits for its report. The request's number is chosen here.
    pub(crate) async fn rescan(&self, node: NodeId, how: Rescan, patience: Duration) -> Result<Drift, MirrorError> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed) + 1;
        let (tell, told) = oneshot::channel();
        if let Some(attached) = hub::lock(&self.attached).get_mut(&node) {
            attached.reports.retain(|_, waiting| !waiting.is_closed());
            attached.reports.insert(request, tell);
        }
        self.order(node, Frame::Rescan(Rescan { request, ..how }))?;
        match tokio::time::timeout(patience, told).await {
            Ok(Ok(drift)) => Ok(drift),
            Ok(Err(_)) => Err(MirrorError::NodeAway),
            Err(_) => Err(MirrorError::NodeBusy),
        }
    }

    /// Brings a person's answer to a node, and waits until the node says that it has come.
    async fn decide(&self, node: NodeId, question: u64, yes: bool) -> Result<(), MirrorError> {
        let (tell, told) = oneshot::channel();
        if let Some(attached) = hub::lock(&self.attached).get_mut(&node) {
            attached.answers.retain(|_, waiting| !waiting.is_closed());
            attached.answers.insert(question, tell);
        }
        self.order(node, Frame::Decision(Decision { question, yes })).map_err(|_| MirrorError::NotTaken)?;
        match tokio::time::timeout(ANSWER, told).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(MirrorError::NotAsked),
            _ => Err(MirrorError::NotTaken),
        }
    }

    /// Waits until a node has committed what was written there before.
    pub(crate) async fn barrier(&self, node: NodeId, patience: Duration) -> Result<(), MirrorError> {
        let number = self.next_request.fetch_add(1, Ordering::Relaxed) + 1;
        let (tell, told) = oneshot::channel();
        if let Some(attached) = hub::lock(&self.attached).get_mut(&node) {
            attached.barriers.retain(|_, waiting| !waiting.is_closed());
            attached.barriers.insert(number, tell);
        }
        self.order(node, Frame::Barrier(number))?;
        match tokio::time::timeout(patience, told).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(MirrorError::NodeAway),
            Err(_) => Err(MirrorError::NodeBusy),
        }
    }
}

/// A node's place at a workspace. Dropping it is leaving.
#[derive(Debug)]
pub(crate) struct Attachment {
    workspace: Arc<Workspace>,
    /// Which node.
    pub(crate) node: NodeId,
    number: u64,
    orders: mpsc::Receiver<Frame>,
}

impl Workspace {
    /// Answers a node's question on behalf of somebody. The node has the answer when this returns.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn answer(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        actor: &Actor,
        node: NodeId,
        question: u64,
        yes: bool,
    ) -> Result<(), MirrorError> {
        let asked = self.nodes.question_of(node, question)?;
        let event = json!({ "node_id": node, "question": asked.text, "yes": yes, "by": actor.name });
        let decide = move |head: &Head| {
            Ok(Plan { event: Some(("workspace_answer", event)), what: format!("answer {yes}: {}", asked.text), ..Plan::of(head) })
        };
        self.commit(hub, By::Actor(actor.clone()), decide).await?;
        self.nodes.decide(node, question, yes).await
    }

    /// Takes a node's place. An older connection of the node loses it.
    pub(crate) fn join(self: &Arc<Self>, node: NodeId, number: u64) -> Attachment {
        let (sender, orders) = mpsc::channel(ORDERS);
        let mut nodes = hub::lock(&self.nodes.attached);
        let failed = nodes.get(&node).map(|before| before.sync.clone()).filter(NodeSync::is_failed);
        let attached = Attached {
            number,
            orders: sender,
            sync: failed.unwrap_or_else(|| NodeSync { state: "connecting".into(), ..NodeSync::default() }),
            told_at_ms: 0,
            reports: HashMap::new(),
            barriers: HashMap::new(),
            answers: HashMap::new(),
            last_drift: None,
        };
        nodes.insert(node, attached);
        drop(nodes);
        Attachment { workspace: self.clone(), node, number, orders }
    }
}

impl Attachment {
    /// Which session.
    pub(crate) fn session(&self) -> SessionId {
        self.workspace.session
    }

    /// What is to be sent to the node; `None` when a newer connection has its place. Safe to cancel.
    pub(crate) async fn next_order(&mut self) -> Option<Frame> {
        self.orders.recv().await
    }

    /// Asks the node to compare its files with the workspace and to set right what is different, unless it is busy anyway.
    pub(crate) fn routine_check(&self) -> Option<Frame> {
        let idle = self.with(|attached| attached.sync.state == "in_sync").unwrap_or(false);
        let request = self.workspace.nodes.next_request.fetch_add(1, Ordering::Relaxed) + 1;
        idle.then_some(Frame::Rescan(Rescan { request, repair: true, ..Rescan::default() }))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Attached) -> T) -> Option<T> {
        let mut attached = hub::lock(&self.workspace.nodes.attached);
        attached.get_mut(&self.node).filter(|attached| attached.number == self.number).map(change)
    }

    /// What the node says about itself.
    pub(crate) fn set_status(&self, hub: &Hub, status: &WorkspaceStatus) {
        let now_ms = hub.now_ms();
        let tell = self.with(|attached| {
            let next = attached.sync.next(status, now_ms);
            let news = next.state != attached.sync.state || next.question != attached.sync.question;
            attached.sync = next;
            let tell = news || now_ms - attached.told_at_ms >= TELL_EVERY_MS;
            if tell {
                attached.told_at_ms = now_ms;
            }
            tell.then(|| attached.sync.clone())
        });
        if let Some(sync) = tell.flatten() {
            self.tell(hub, now_ms, &sync);
        }
    }

    /// Live only: whoever comes later asks for the state.
    fn tell(&self, hub: &Hub, at_ms: i64, sync: &NodeSync) {
        let data = json!({ "node_id": self.node, "sync": sync });
        hub.feeds.tell_session(Event { session: self.session(), seq: 0, at_ms, kind: "workspace".into(), data });
    }

    pub(crate) fn take_report(&self, hub: &Hub, report: DriftReport) {
        let (request, now_ms) = (report.request, hub.now_ms());
        self.with(|attached| {
            let drift = Drift::from(report);
            attached.last_drift = Some((now_ms, drift.clone()));
            if let Some(waiting) = attached.reports.remove(&request) {
                let _ = waiting.send(drift);
            }
        });
    }

    pub(crate) fn take_answered(&self, question: u64, taken: bool) {
        self.with(|attached| attached.answers.remove(&question).map(|waiting| waiting.send(taken)));
    }

    pub(crate) fn take_barrier(&self, number: u64) {
        self.with(|attached| attached.barriers.remove(&number).map(|waiting| waiting.send(())));
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut attached = hub::lock(&self.workspace.nodes.attached);
        // Why a node cannot take part is known until its next stream says otherwise.
        let over = |attached: &Attached| attached.number == self.number && attached.sync.state != FAILED;
        if attached.get(&self.node).is_some_and(over) {
            attached.remove(&self.node);
        }
    }
}
