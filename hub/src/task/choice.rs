//! Which node a dispatch is for: the named one, the session's only one, the only one that fits a selector, or the pool.

use cortex_wire::{
    id::{NodeId, SessionId},
    limits,
    pool::{self, Machine, Needs},
    schema::SandboxMode,
    selector::{Facts, Selector},
    task::State,
    text::clean,
};

use super::{DispatchRequest, TaskError};
use crate::{
    record::{
        Mode, Node, PoolRecord, Session, Standing, Task,
        tables::{NODES, SESSIONS_OF_NODE},
    },
    store::{ReadTx, StoreError},
};

/// Nodes that an answer explains. More than that nobody reads.
const EXPLAINED: usize = 8;

/// Where a task goes.
pub(super) enum Choice {
    /// To this node.
    Node(Box<Node>),
    /// To whoever takes it.
    Pool(Pooled),
}

impl Choice {
    fn node(node: Node) -> Self {
        Self::Node(Box::new(node))
    }
}

/// A task of the pool.
pub(super) struct Pooled {
    /// A node that it is shown with until it has one.
    pub(super) first: NodeId,
    nodes: Vec<NodeId>,
    record: PoolRecord,
}

impl Pooled {
    /// The task as one of the pool.
    pub(super) fn task(self, task: Task) -> Task {
        let state = if self.record.waits.is_none() { State::Offered } else { State::Queued };
        let node = pool::ranking(&task.id, self.nodes).first().copied().unwrap_or(self.first);
        Task { node, state, pool: Some(self.record), ..task }
    }
}

/// What is known of a node that selectors ask for.
fn facts(node: &Node) -> Facts {
    let has = &node.capabilities;
    let mut facts = Facts::default();
    for (name, value) in [
        ("os", &has.os),
        ("arch", &has.architecture),
        ("host", &has.hostname),
        ("name", &node.name),
        ("sandbox", &has.sandbox_level),
        ("browser", has.browser.as_ref().unwrap_or(&String::new())),
    ] {
        facts.add(name, value);
    }
    for (name, number) in [("cpus", u64::from(has.cpu_count)), ("memory", has.memory_bytes)] {
        facts.add(name, if number > 0 { number.to_string() } else { String::new() });
    }
    for (name, is_one) in [("vm", has.virtual_machine), ("container", has.container)] {
        facts.add(name, if is_one { "yes" } else { "" });
    }
    has.gpus.iter().for_each(|gpu| facts.add("gpu", gpu));
    has.skills.iter().for_each(|skill| facts.add("skill", skill));
    for path in &has.shells {
        let name = path.rsplit('/').next().unwrap_or(path);
        facts.add(format!("shell.{name}"), path);
    }
    // A tool or label without a value is there all the same.
    let named = |value: &String| if value.is_empty() { "yes".to_owned() } else { value.clone() };
    has.tools.iter().for_each(|(name, version)| facts.add(format!("tool.{name}"), named(version)));
    node.labels.iter().for_each(|(name, value)| facts.add(format!("label.{name}"), named(value)));
    facts
}

fn machine(node: &Node, sessions: impl IntoIterator<Item = SessionId>) -> Machine {
    let strict_only = node.policy.mode == Mode::Strict || node.ceiling.as_ref().is_some_and(|ceiling| ceiling.mode == Mode::Strict);
    Machine {
        facts: facts(node),
        sessions: sessions.into_iter().collect(),
        strict: node.capabilities.sandbox_level == "strict",
        strict_only,
    }
}

/// A node as the pool sees it; `None`: it takes no tasks, whether it is there or not.
pub(super) fn seat(tx: &dyn ReadTx, id: NodeId) -> Result<Option<Machine>, StoreError> {
    let Some(node) = NODES.get(tx, &id)?.filter(may_work) else { return Ok(None) };
    Ok(Some(machine(&node, SESSIONS_OF_NODE.all_of(tx, &id)?)))
}

/// Whether a node may be given something new.
fn may_work(node: &Node) -> bool {
    node.standing == Standing::Active && node.drained_at_ms.is_none()
}

/// What a task needs.
pub(super) fn needs(session: SessionId, selector: Selector, mode: Option<Mode>) -> Needs {
    Needs { session, selector, mode: mode.map_or(SandboxMode::Unspecified, SandboxMode::from) }
}

fn only(node: Node) -> Result<Node, TaskError> {
    let why = match node.standing {
        Standing::Active => return Ok(node),
        Standing::Pending => "its owner has not approved it yet",
        Standing::Revoked => "it was revoked",
    };
    Err(TaskError::NodeNotActive { name: node.name, why })
}

fn ambiguous<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> TaskError {
    TaskError::AmbiguousNode { candidates: nodes.into_iter().map(|node| (node.id, node.name.clone())).collect() }
}

/// The node, or the pool, that a dispatch is for. `room` says how many slots of a node are free, if it is there.
pub(super) fn choose(
    tx: &dyn ReadTx,
    session: &Session,
    request: &DispatchRequest,
    room: &dyn Fn(NodeId) -> Option<u32>,
) -> Result<Choice, TaskError> {
    let selector = match &request.selector {
        Some(text) => text.parse::<Selector>().map_err(|error| TaskError::Malformed(format!("selector: {error}")))?,
        None => Selector::default(),
    };
    let chosen = request.selector.is_some() || request.pool;
    if let Some(id) = request.node {
        if chosen {
            return Err(TaskError::Malformed("`node` names one node; leave it out with `selector` or `pool`".into()));
        }
        let node = if session.nodes.contains(&id) { NODES.get(tx, &id)? } else { None };
        return only(node.ok_or(TaskError::NotAttached)?).map(Choice::node);
    }
    let mut nodes = Vec::with_capacity(session.nodes.len());
    for id in &session.nodes {
        nodes.extend(NODES.get(tx, id)?);
    }
    if !chosen {
        return match nodes.as_slice() {
            [] => Err(TaskError::NoNode),
            [_] => nodes.pop().ok_or(TaskError::NoNode).and_then(only).map(Choice::node),
            several => Err(ambiguous(several)),
        };
    }
    let candidates = Candidates::new(nodes, &needs(session.id, selector, request.spec.mode), room);
    if request.pool { candidates.pool(request).map(Choice::Pool) } else { candidates.one().map(Choice::node) }
}

/// The nodes of a session, as a selector finds them.
struct Candidates {
    /// Those that fit, and how many slots are free there; `None`: not there, or drained.
    fit: Vec<(Node, Option<u32>)>,
    others: Vec<(NodeId, String)>,
}

impl Candidates {
    fn new(nodes: Vec<Node>, needs: &Needs, room: &dyn Fn(NodeId) -> Option<u32>) -> Self {
        let (mut fit, mut others) = (Vec::new(), Vec::new());
        for node in nodes {
            let unfit = match node.standing {
                Standing::Active => machine(&node, [needs.session]).unfit(needs),
                Standing::Pending => Some("its owner has not approved it yet".into()),
                Standing::Revoked => Some("it was revoked".into()),
            };
            if let Some(why) = unfit {
                others.push((node.id, format!("{}: {why}", node.name)));
            } else {
                let room = if node.drained_at_ms.is_some() { None } else { room(node.id) };
                fit.push((node, room));
            }
        }
        Self { fit, others }
    }

    /// Why nobody takes a task now.
    fn why(&self) -> String {
        let away = self.fit.iter().map(|(node, _)| {
            let why = if node.drained_at_ms.is_some() { "it is drained" } else { "it is offline" };
            format!("{}: {why}", node.name)
        });
        let all: Vec<String> = away.chain(self.others.iter().map(|(_, why)| why.clone())).collect();
        let mut text = all.iter().take(EXPLAINED).cloned().collect::<Vec<_>>().join("; ");
        if all.len() > EXPLAINED {
            text += &format!("; and {} more", all.len() - EXPLAINED);
        }
        clean(&text, limits::TEXT_BYTES)
    }

    fn pool(self, request: &DispatchRequest) -> Result<Pooled, TaskError> {
        let nodes: Vec<NodeId> = self.fit.iter().map(|(node, _)| node.id).collect();
        let first = nodes.first().or(self.others.first().map(|(node, _)| node)).copied().ok_or(TaskError::NoNode)?;
        let is_here = self.fit.iter().any(|(_, room)| room.is_some());
        if !is_here && request.queue_timeout_ms == 0 {
            return Err(TaskError::NoCandidate { fits: !nodes.is_empty(), why: self.why() });
        }
        let record = PoolRecord {
            selector: request.selector.clone().unwrap_or_default(),
            waits: (!is_here).then(|| self.why()),
            placement: None,
            settled: false,
        };
        Ok(Pooled { first, nodes, record })
    }

    /// The only one with a free slot; else the only one that is there; else the only one that fits.
    fn one(mut self) -> Result<Node, TaskError> {
        if self.fit.is_empty() {
            return Err(if self.others.is_empty() { TaskError::NoNode } else { TaskError::NoCandidate { fits: false, why: self.why() } });
        }
        let steps: [fn(Option<u32>) -> bool; 3] = [|room| room.is_some_and(|free| free > 0), |room| room.is_some(), |_| true];
        for step in steps {
            let good: Vec<usize> = (0..self.fit.len()).filter(|at| self.fit.get(*at).is_some_and(|(_, room)| step(*room))).collect();
            match good.as_slice() {
                [] => {}
                [at] => return Ok(self.fit.swap_remove(*at).0),
                several => return Err(ambiguous(several.iter().filter_map(|at| self.fit.get(*at)).map(|(node, _)| node))),
            }
        }
        Err(TaskError::NoNode)
    }
}
