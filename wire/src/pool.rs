//! The pool: tasks that any of several nodes may run, and how one of them gets each.
//!
//! [`Pool`] is the hub's side, [`Claimant`] a node's. Neither knows a clock, a network or chance. A task is *offered* to the nodes that fit and have room, ranked by
//! [`weight`], a hash of node and task; a node of rank n *claims* it after n × [`SLOT_MS`] unless it hears before that it is *settled*; the hub *grants* it to
//! the first who claims, by comparing the fence in one transaction, and that transaction is the journal ([`Placement`]), from which
//! [`Placement::winner`] finds the same node again.
//!
//! - The hub offers no more at a time than there are free slots, and counts each offer against the node of rank 0. So that node nearly always
//!   claims at once, and nobody else does.
//! - What nobody claimed for [`STEAL_AFTER_MS`] goes to nodes that are idle by then and were not asked before.
//! - Tasks of one session with the same needs form a class; classes take turns, so that one session's thousand tasks do not make another's one wait.
//! - Nothing here is durable. After a restart the hub puts every task that waits in its store back in, under its fence.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{NodeId, SessionId, TaskId},
    limits,
    schema::{PoolClaim, PoolOffer, PoolUpdate, SandboxMode},
    selector::{Facts, Selector},
};

/// How much later each rank claims. Above the round trips of most networks, so that the first claim has been settled when the second would be due.
pub const SLOT_MS: i64 = 80;
/// What nobody has claimed for so long is offered to others.
pub const STEAL_AFTER_MS: i64 = 2_000;

/// Where a node stands for a task: lower is earlier. The first eight bytes of BLAKE3(node ‖ task).
pub fn weight(node: &NodeId, task: &TaskId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(node.key().as_bytes()).update(task.as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Nodes in the order of their ranks for a task.
pub fn ranking(task: &TaskId, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let mut ranked: Vec<_> = nodes.into_iter().map(|node| (weight(&node, task), node)).collect();
    ranked.sort_unstable();
    ranked.dedup();
    ranked.into_iter().map(|(_, node)| node).collect()
}

/// What a task needs of a machine. Tasks with the same needs are one class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Needs {
    /// The node has to be attached to it.
    pub session: SessionId,
    /// The machine has to fit.
    pub selector: Selector,
    /// It has to be able and allowed to confine the task so; `Unspecified`: as its policy says.
    pub mode: SandboxMode,
}

/// What counts of a node for the choice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// What it is and has.
    pub facts: Facts,
    /// The sessions it is attached to.
    pub sessions: BTreeSet<SessionId>,
    /// It enforces STRICT.
    pub strict: bool,
    /// Its policy allows nothing weaker.
    pub strict_only: bool,
}

impl Machine {
    /// Why a task cannot run there; `None`: it can.
    pub fn unfit(&self, needs: &Needs) -> Option<String> {
        if !self.sessions.contains(&needs.session) {
            return Some("it is not attached to the session".into());
        }
        if let Some(term) = needs.selector.misses(&self.facts) {
            return Some(format!("{term} does not hold"));
        }
        match needs.mode {
            SandboxMode::Strict if !self.strict => Some("it cannot enforce STRICT".into()),
            SandboxMode::Permissive if self.strict_only => Some("its policy allows STRICT only".into()),
            _ => None,
        }
    }
}

/// A claim, as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Who.
    pub node: NodeId,
    /// It came first, and could not be granted: no slot was free after all, or the node no longer fitted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

/// Why a task went where it went: everything that decided it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// From 1; grows each time that the task is offered to others.
    pub round: u32,
    /// Whom it was offered to, in the order of their ranks.
    pub ranking: Vec<NodeId>,
    /// The claims, in the order in which they came, until one was granted.
    pub claims: Vec<Claim>,
}

/// A journal that does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Not the order that the hash gives.
    #[error("the ranking is not the one that the hash of node and task gives")]
    Ranking,
    /// Claimed by somebody who was not asked.
    #[error("{0:?} claimed, and had no offer")]
    Uninvited(NodeId),
    /// Nobody's claim was good.
    #[error("no claim was granted")]
    Nobody,
}

impl Placement {
    /// Who gets the task: the first whose claim was not refused. A pure function of the journal.
    ///
    /// # Errors
    /// [`ReplayError`] when the journal contradicts the rules.
    pub fn winner(&self, task: &TaskId) -> Result<NodeId, ReplayError> {
        if ranking(task, self.ranking.iter().copied()) != self.ranking {
            return Err(ReplayError::Ranking);
        }
        if let Some(claim) = self.claims.iter().find(|claim| !self.ranking.contains(&claim.node)) {
            return Err(ReplayError::Uninvited(claim.node));
        }
        self.claims.iter().find(|claim| !claim.refused).map(|claim| claim.node).ok_or(ReplayError::Nobody)
    }
}

/// A task that waits for a node.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Which.
    pub task: TaskId,
    /// What it needs.
    pub needs: Needs,
    /// The fence that a claim has to name.
    pub fence: u64,
    /// It is given up at this time.
    pub expires_at_ms: i64,
    /// The store has it as queued: it wants to hear when the task is offered.
    pub queued: bool,
}

/// A task to be given to a node, if the store still has it at this fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Which.
    pub task: TaskId,
    /// The one that was offered.
    pub fence: u64,
    /// To whom.
    pub node: NodeId,
    /// Why.
    pub placement: Placement,
}

/// Why a grant came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declined {
    /// The node has no free slot after all.
    Full,
    /// The node does not fit any more.
    Unfit,
    /// The task is not to be had any more.
    Gone,
}

/// What the pool wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Tell a node: an offer, or that the task is settled. The last word about a task counts.
    Tell(NodeId, TaskId, Option<Offer>),
    /// Store that a queued task is offered.
    Offered(TaskId),
    /// Give a task to a node, then call [`Pool::granted`] or [`Pool::declined`].
    Grant(Grant),
    /// Its time is over.
    Expire(TaskId),
}

/// What a node is told of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// To be named in the claim.
    pub fence: u64,
    /// Of this node.
    pub rank: u32,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Offers to single nodes.
    pub offers: u64,
    /// Claims, also those that came too late.
    pub claims: u64,
    /// Tasks that were given to a node.
    pub grants: u64,
    /// Tasks that were offered again: nobody had claimed them in time, or those who could have left.
    pub again: u64,
}

/// A node that takes tasks.
#[derive(Debug)]
struct Seat {
    machine: Machine,
    /// Free slots.
    room: u32,
    /// Offers in which it has rank 0: it will probably claim them.
    intended: u32,
    offered: BTreeSet<TaskId>,
}

/// Tasks with the same needs.
#[derive(Debug, Default)]
struct Class {
    queue: BTreeMap<i64, TaskId>,
    /// The nodes that fit.
    seats: BTreeSet<NodeId>,
    tasks: usize,
    /// When it was its turn.
    served: u64,
}

#[derive(Debug)]
struct Open {
    needs: Arc<Needs>,
    fence: u64,
    expires_at_ms: i64,
    queued: bool,
    /// Where it is in the queue, when it is.
    place: Option<i64>,
    /// When it is looked at again.
    alarm_ms: i64,
    round: u32,
    ranking: Vec<NodeId>,
    /// Who has the offer: those of the ranking that have not left, and were not refused.
    offered: BTreeSet<NodeId>,
    /// Against whom it is counted.
    first: Option<NodeId>,
    claims: Vec<Claim>,
    granting: Option<NodeId>,
}

/// The hub's side: which tasks wait, which nodes have room, who was offered what. Time is any clock that only goes forward, in milliseconds.
#[derive(Debug, Default)]
pub struct Pool {
    seats: BTreeMap<NodeId, Seat>,
    /// Seats with room that no offer counts on.
    spare: BTreeSet<NodeId>,
    classes: BTreeMap<Arc<Needs>, Class>,
    tasks: BTreeMap<TaskId, Open>,
    alarms: BTreeSet<(i64, TaskId)>,
    turn: u64,
    back: i64,
    front: i64,
    commands: Vec<Command>,
    tally: Tally,
}

impl Pool {
    /// What is to be done since the last time, in order.
    pub fn commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// How many tasks wait.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// When [`Self::tick`] is to be called.
    pub fn due_ms(&self) -> Option<i64> {
        self.alarms.first().map(|(at_ms, _)| *at_ms)
    }

    /// A task waits from now on. One that does already is begun anew if its fence has grown.
    pub fn wait(&mut self, waiting: Waiting, now_ms: i64) {
        let Waiting { task, needs, fence, expires_at_ms, queued } = waiting;
        match self.tasks.get(&task) {
            Some(open) if open.fence >= fence => return,
            Some(_) => self.remove(task),
            None => {}
        }
        let needs = match self.classes.get_key_value(&needs) {
            Some((known, _)) => known.clone(),
            None => Arc::new(needs),
        };
        let seats = &self.seats;
        let class = self.classes.entry(needs.clone()).or_insert_with(|| Class {
            seats: seats.iter().filter(|(_, seat)| seat.machine.unfit(&needs).is_none()).map(|(node, _)| *node).collect(),
            ..Class::default()
        });
        class.tasks += 1;
        let open = Open {
            needs,
            fence,
            expires_at_ms,
            queued,
            place: None,
            alarm_ms: expires_at_ms,
            round: 0,
            ranking: Vec::new(),
            offered: BTreeSet::new(),
            first: None,
            claims: Vec::new(),
            granting: None,
        };
        self.tasks.insert(task, open);
        self.alarms.insert((expires_at_ms, task));
        self.enqueue(task, false);
        self.serve(now_ms);
    }

    /// A node takes tasks, or is another than it was.
    pub fn seat(&mut self, node: NodeId, machine: Machine, room: u32, now_ms: i64) {
        for (needs, class) in &mut self.classes {
            if machine.unfit(needs).is_none() {
                class.seats.insert(node);
            } else {
                class.seats.remove(&node);
            }
        }
        match self.seats.get_mut(&node) {
            Some(seat) => seat.machine = machine,
            None => _ = self.seats.insert(node, Seat { machine, room, intended: 0, offered: BTreeSet::new() }),
        }
        self.room(node, room, now_ms);
    }

    /// So many slots of a node are free now.
    pub fn room(&mut self, node: NodeId, room: u32, now_ms: i64) {
        let Some(seat) = self.seats.get_mut(&node) else { return };
        seat.room = room;
        self.count(node);
        self.serve(now_ms);
    }

    /// A node takes no tasks any more.
    pub fn leave(&mut self, node: NodeId, now_ms: i64) {
        let Some(seat) = self.seats.remove(&node) else { return };
        self.spare.remove(&node);
        self.classes.values_mut().for_each(|class| _ = class.seats.remove(&node));
        for task in seat.offered {
            self.commands.push(Command::Tell(node, task, None));
            self.withdraw(task, node);
        }
        self.serve(now_ms);
    }

    /// A node wants a task that it was offered.
    pub fn claim(&mut self, node: NodeId, task: TaskId, fence: u64) {
        self.tally.claims += 1;
        match self.tasks.get_mut(&task) {
            Some(open) if open.fence == fence && open.offered.contains(&node) => {
                if !open.claims.iter().any(|claim| claim.node == node) {
                    open.claims.push(Claim { node, refused: false });
                }
            }
            _ => return self.commands.push(Command::Tell(node, task, None)),
        }
        self.grant_next(task);
    }

    /// The store has given the task away.
    pub fn granted(&mut self, task: TaskId, now_ms: i64) {
        self.tally.grants += u64::from(self.tasks.contains_key(&task));
        self.remove(task);
        self.serve(now_ms);
    }

    /// A grant came to nothing.
    pub fn declined(&mut self, grant: &Grant, why: Declined, now_ms: i64) {
        let Grant { task, node, fence, .. } = grant;
        if self.tasks.get(task).is_none_or(|open| open.fence != *fence) {
            return;
        }
        if why == Declined::Gone {
            self.remove(*task);
            return self.serve(now_ms);
        }
        let Some(open) = self.tasks.get_mut(task) else { return };
        open.granting = None;
        open.claims.iter_mut().filter(|claim| claim.node == *node).for_each(|claim| claim.refused = true);
        if why == Declined::Unfit
            && let Some(class) = self.classes.get_mut(&open.needs)
        {
            class.seats.remove(node);
        }
        if let Some(seat) = self.seats.get_mut(node) {
            seat.offered.remove(task);
        }
        self.commands.push(Command::Tell(*node, *task, None));
        self.withdraw(*task, *node);
        self.grant_next(*task);
        if let Some(open) = self.tasks.get(task).filter(|open| open.granting.is_none() && open.place.is_none()) {
            self.set_alarm(*task, open.expires_at_ms.min(now_ms + STEAL_AFTER_MS));
        }
        self.serve(now_ms);
    }

    /// The task is not to be had any more: cancelled, or expired.
    pub fn forget(&mut self, task: TaskId, now_ms: i64) {
        self.remove(task);
        self.serve(now_ms);
    }

    /// Time has passed.
    pub fn tick(&mut self, now_ms: i64) {
        while let Some((at_ms, task)) = self.alarms.first().copied().filter(|(at_ms, _)| *at_ms <= now_ms) {
            self.alarms.remove(&(at_ms, task));
            let Some(open) = self.tasks.get_mut(&task) else { continue };
            if open.granting.is_some() {
                // The store decides.
                self.set_alarm(task, now_ms + STEAL_AFTER_MS);
            } else if open.expires_at_ms <= now_ms {
                self.commands.push(Command::Expire(task));
                self.remove(task);
            } else {
                let expires_at_ms = open.expires_at_ms;
                self.set_alarm(task, expires_at_ms);
                self.uncount(task);
                self.enqueue(task, true);
            }
        }
        self.serve(now_ms);
    }

    /// Offers what waits to nodes with room, one task of each class in turn.
    fn serve(&mut self, now_ms: i64) {
        while !self.spare.is_empty() {
            let ready = self.classes.iter().filter(|(_, class)| !class.queue.is_empty() && !class.seats.is_disjoint(&self.spare));
            let Some(needs) = ready.min_by_key(|(_, class)| class.served).map(|(needs, _)| needs.clone()) else { return };
            self.turn += 1;
            let Some(class) = self.classes.get_mut(&needs) else { return };
            class.served = self.turn;
            let Some((_, task)) = class.queue.pop_first() else { return };
            let spare: Vec<NodeId> = class.seats.intersection(&self.spare).copied().collect();
            self.offer(task, spare, now_ms);
        }
    }

    fn offer(&mut self, task: TaskId, spare: Vec<NodeId>, now_ms: i64) {
        let Some(open) = self.tasks.get_mut(&task) else { return };
        open.place = None;
        let fresh: Vec<NodeId> = spare.iter().copied().filter(|node| !open.ranking.contains(node)).collect();
        let mut ranking = ranking(&task, if fresh.is_empty() { spare } else { fresh });
        ranking.truncate(limits::POOL_OFFERED);
        if open.round > 0 {
            self.tally.again += 1;
        }
        open.round = open.round.saturating_add(1);
        let before = std::mem::replace(&mut open.offered, ranking.iter().copied().collect());
        for node in before.difference(&open.offered) {
            self.commands.push(Command::Tell(*node, task, None));
            self.seats.get_mut(node).map(|seat| seat.offered.remove(&task));
        }
        for (rank, node) in (0..).zip(&ranking) {
            self.commands.push(Command::Tell(*node, task, Some(Offer { fence: open.fence, rank })));
            self.seats.get_mut(node).map(|seat| seat.offered.insert(task));
        }
        self.tally.offers += ranking.len() as u64;
        open.claims.clear();
        open.first = ranking.first().copied();
        let (first, alarm_ms) = (open.first, open.expires_at_ms.min(now_ms + STEAL_AFTER_MS));
        open.ranking = ranking;
        if std::mem::take(&mut open.queued) {
            self.commands.push(Command::Offered(task));
        }
        self.set_alarm(task, alarm_ms);
        if let Some(first) = first {
            if let Some(seat) = self.seats.get_mut(&first) {
                seat.intended += 1;
            }
            self.count(first);
        }
    }

    fn grant_next(&mut self, task: TaskId) {
        let Some(open) = self.tasks.get_mut(&task).filter(|open| open.granting.is_none()) else { return };
        let Some(node) = open.claims.iter().find(|claim| !claim.refused && open.offered.contains(&claim.node)).map(|claim| claim.node)
        else {
            return;
        };
        open.granting = Some(node);
        if let (Some(place), Some(class)) = (open.place.take(), self.classes.get_mut(&open.needs)) {
            class.queue.remove(&place);
        }
        let placement = Placement { round: open.round, ranking: open.ranking.clone(), claims: open.claims.clone() };
        self.commands.push(Command::Grant(Grant { task, fence: open.fence, node, placement }));
    }

    /// A node has the offer no longer. When nobody has it any more, it waits again, in front.
    fn withdraw(&mut self, task: TaskId, node: NodeId) {
        let Some(open) = self.tasks.get_mut(&task) else { return };
        open.offered.remove(&node);
        if open.granting != Some(node) {
            // Whoever has left does not get what it claimed.
            open.claims.iter_mut().filter(|claim| claim.node == node).for_each(|claim| claim.refused = true);
        }
        let (is_first, idle) = (open.first == Some(node), open.offered.is_empty() && open.granting.is_none());
        if is_first {
            self.uncount(task);
        }
        if idle {
            self.enqueue(task, true);
        }
    }

    fn enqueue(&mut self, task: TaskId, in_front: bool) {
        let Some(open) = self.tasks.get_mut(&task).filter(|open| open.place.is_none()) else { return };
        let place = if in_front {
            self.front -= 1;
            self.front
        } else {
            self.back += 1;
            self.back
        };
        open.place = Some(place);
        if let Some(class) = self.classes.get_mut(&open.needs) {
            class.queue.insert(place, task);
        }
    }

    fn set_alarm(&mut self, task: TaskId, at_ms: i64) {
        let Some(open) = self.tasks.get_mut(&task) else { return };
        self.alarms.remove(&(open.alarm_ms, task));
        open.alarm_ms = at_ms;
        self.alarms.insert((at_ms, task));
    }

    /// The task no longer counts against the node of rank 0.
    fn uncount(&mut self, task: TaskId) {
        let Some(first) = self.tasks.get_mut(&task).and_then(|open| open.first.take()) else { return };
        if let Some(seat) = self.seats.get_mut(&first) {
            seat.intended = seat.intended.saturating_sub(1);
        }
        self.count(first);
    }

    fn count(&mut self, node: NodeId) {
        if self.seats.get(&node).is_some_and(|seat| seat.room > seat.intended) {
            self.spare.insert(node);
        } else {
            self.spare.remove(&node);
        }
    }

    fn remove(&mut self, task: TaskId) {
        self.uncount(task);
        let Some(open) = self.tasks.remove(&task) else { return };
        self.alarms.remove(&(open.alarm_ms, task));
        for node in open.offered {
            self.commands.push(Command::Tell(node, task, None));
            self.seats.get_mut(&node).map(|seat| seat.offered.remove(&task));
        }
        if let Some(class) = self.classes.get_mut(&open.needs) {
            open.place.and_then(|place| class.queue.remove(&place));
            class.tasks -= 1;
            if class.tasks == 0 {
                self.classes.remove(&open.needs);
            }
        }
    }
}

/// A node's side: what it was offered on this connection, and when it claims.
#[derive(Debug, Default)]
pub struct Claimant {
    offers: BTreeMap<TaskId, Held>,
}

#[derive(Debug)]
struct Held {
    fence: u64,
    due_ms: i64,
    claimed: bool,
}

impl Claimant {
    /// Whether there is nothing to claim.
    pub fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    /// What the hub says. What makes no sense is not looked at.
    pub fn hear(&mut self, update: &PoolUpdate, now_ms: i64) {
        let slot_ms = i64::from(update.slot_ms).min(STEAL_AFTER_MS);
        for PoolOffer { task_id, fence, rank } in update.offers.iter().take(limits::POOL_BATCH) {
            let Ok(task) = TaskId::from_slice(task_id) else { continue };
            let known = self.offers.get(&task);
            if known.is_none() && self.offers.len() >= limits::POOL_HELD || known.is_some_and(|held| held.fence > *fence) {
                continue;
            }
            // A rank so late that others are asked before waits no longer than they do.
            let due_ms = now_ms + (i64::from(*rank) * slot_ms).min(STEAL_AFTER_MS);
            // Each offer wants a claim of its own: an earlier one was refused, even if that was not heard in between.
            self.offers.insert(task, Held { fence: *fence, due_ms, claimed: false });
        }
        for task in update.settled.iter().take(limits::POOL_BATCH).filter_map(|id| TaskId::from_slice(id).ok()) {
            self.offers.remove(&task);
        }
    }

    /// What to claim now, with so many free slots: what has been due for longest.
    pub fn claims(&mut self, free: u32, now_ms: i64) -> Vec<PoolClaim> {
        let most = self.budget(free).min(limits::POOL_BATCH);
        if most == 0 {
            return Vec::new();
        }
        let mut due: Vec<(i64, TaskId)> = self
            .offers
            .iter()
            .filter(|(_, held)| !held.claimed && held.due_ms <= now_ms)
            .map(|(task, held)| (held.due_ms, *task))
            .collect();
        due.sort_unstable();
        due.truncate(most);
        let claim = |task: &TaskId| {
            let held = self.offers.get_mut(task)?;
            held.claimed = true;
            Some(PoolClaim { task_id: bytes::Bytes::copy_from_slice(task.as_bytes()), fence: held.fence })
        };
        due.iter().map(|(_, task)| task).filter_map(claim).collect()
    }

    /// When the next claim is due, with so many free slots.
    pub fn due_ms(&self, free: u32) -> Option<i64> {
        let waiting = self.offers.values().filter(|held| !held.claimed).map(|held| held.due_ms);
        waiting.min().filter(|_| self.budget(free) > 0)
    }

    /// Free slots that no claim under way may take.
    fn budget(&self, free: u32) -> usize {
        let claimed = self.offers.values().filter(|held| held.claimed).count();
        usize::try_from(free).unwrap_or(usize::MAX).saturating_sub(claimed)
    }
}

#[cfg(test)]
mod tests;
