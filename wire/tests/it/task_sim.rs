//! The whole task protocol in one process: a hub with a durable store, nodes with durable journals, connections that break, virtual time; by seed.
//!
//! Each seed has its own [`Mood`]: how many nodes there are, how often they refuse, how often grants come to nothing, how often connections break.
//! Hub and nodes are killed before and after every durable write. Streams overtake each other, what was sent is delivered again, and old orders are replayed on newer
//! connections. Nodes' clocks are a day off. The rules are the real ones: [`State`], [`Gate`] with signatures, [`reunite`], [`Pool`], [`Claimant`].
//! Whatever happens:
//! - no task is run twice, and no node starts one that the hub has taken back;
//! - no final state changes, and every move is in the transition table;
//! - nothing that was acknowledged is lost: every accepted task is there, and a node forgets a result only when the hub holds a final state;
//! - once it heals, every task comes to a final state, and what waits for the pool without an end is run: no node stops claiming, and no lease is forgotten;
//! - the hub's journal alone tells for each task of the pool to whom it went.
//!
//! `CORTEX_SEEDS=n` runs n seeds from `CORTEX_FIRST` on, `CORTEX_SEED=n` that one with a trace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use cortex_wire::{
    id::{NodeId, SessionId, TaskId},
    key::{Domain, SecretKey},
    limits,
    policy::Policy,
    pool::{Claimant, Command, Declined, Grant, Machine, Needs, Offer, Placement, Pool, SLOT_MS, Waiting},
    schema::{InventoryVerdict, PoolOffer, PoolUpdate, SandboxMode, SandboxPolicy, ShellTask, Signed, TaskRequest, task_request::Kind},
    selector::Selector,
    task::{Gate, Held, Rejection, Reunion, SequenceWindow, Settled, State, may_move, reunite, stale},
};
use prost::Message as _;

use crate::random::Random;

const SEEDS: u64 = 1_000;
/// At most.
const NODES: usize = 3;
const SLOTS: u32 = 2;
const LOST_AFTER_MS: i64 = 600_000;
const DAY_MS: i64 = 86_400_000;
/// Longer than any seed goes on.
const FOREVER_MS: i64 = 1_000 * DAY_MS;
const NEVER: usize = usize::MAX;

/// Keys are dear to make, and the same for every seed.
struct Keys {
    root: SecretKey,
    task: SecretKey,
    nodes: Vec<NodeId>,
    policy: Policy,
}

impl Keys {
    fn new() -> Self {
        let key = |seed: u8| SecretKey::from_seed([seed; 32]);
        let policy = Policy::new(SandboxPolicy { mode: SandboxMode::Permissive.into(), task_slots: SLOTS, ..SandboxPolicy::default() });
        Self { root: key(100), task: key(101), nodes: (0..NODES as u8).map(|n| key(n).public().into()).collect(), policy }
    }
}

/// How often things go wrong, by seed: each once in so many times.
#[derive(Clone, Copy, Debug)]
struct Mood {
    nodes: usize,
    /// A node has no room after all.
    refuses: usize,
    /// A grant cannot be made.
    declines: usize,
    /// A connection ends, at each step.
    breaks: usize,
}

impl Mood {
    fn of(random: &mut Random) -> Self {
        Self {
            nodes: 1 + random.below(NODES),
            refuses: [NEVER, 8, 2][random.below(3)],
            declines: [NEVER, 8, 2][random.below(3)],
            breaks: [NEVER, 80, 20][random.below(3)],
        }
    }
}

/// A task as the hub's store has it.
#[derive(Clone, Debug)]
struct Row {
    state: State,
    fence: u64,
    node: usize,
    pooled: bool,
    cancel_asked: bool,
    start_by_ms: i64,
}

/// What a peer's journal holds of a task.
#[derive(Clone, Copy, Debug)]
struct Entry {
    fence: u64,
    result: Option<State>,
}

#[derive(Clone, Debug)]
enum ToNode {
    Answers(Vec<(TaskId, InventoryVerdict)>),
    Pool(PoolUpdate),
    Start(Signed),
    Resume(TaskId),
    Cancel(TaskId),
    Stored(TaskId),
}

#[derive(Clone, Debug)]
enum ToHub {
    Register { boot: [u8; 32], inventory: Vec<(TaskId, Held)> },
    Claims(Vec<(TaskId, u64)>),
    Started(TaskId),
    Rejected(TaskId, u64, &'static str),
    Result(TaskId, u64, State),
}

/// One connection: lanes are streams, in each of which order holds. `None` is the control stream.
struct Wire<M> {
    lanes: BTreeMap<Option<TaskId>, VecDeque<M>>,
}

impl<M: Clone> Wire<M> {
    fn new() -> Self {
        Self { lanes: BTreeMap::new() }
    }

    fn send(&mut self, lane: Option<TaskId>, message: M) {
        self.lanes.entry(lane).or_default().push_back(message);
    }

    fn receive(&mut self, random: &mut Random) -> Option<M> {
        let ready: Vec<_> = self.lanes.iter().filter(|(_, queue)| !queue.is_empty()).map(|(lane, _)| *lane).collect();
        let lane = *ready.get(random.below(ready.len()))?;
        let queue = self.lanes.get_mut(&lane)?;
        // Sometimes it comes once more.
        if random.one_in(20) { queue.front().cloned() } else { queue.pop_front() }
    }

    fn is_empty(&self) -> bool {
        self.lanes.values().all(VecDeque::is_empty)
    }
}

struct Connection {
    to_node: Wire<ToNode>,
    to_hub: Wire<ToHub>,
}

/// What the hub keeps of a connection.
struct Handle {
    boot: [u8; 32],
    sequence: u64,
    /// Tasks that have a slot of this node.
    live: BTreeSet<TaskId>,
    waiting: VecDeque<TaskId>,
    /// What it says it holds, until that is compared with the store.
    inventory: Option<Vec<(TaskId, Held)>>,
    /// Deliveries that came before that.
    late: Vec<Delivery>,
    settled: Settled,
    news: BTreeMap<TaskId, Option<Offer>>,
}

/// A lease on its way from the store to a connection: that of the moment when it arrives, or, for a task that waited for this node, the one that it was made for.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    task: TaskId,
    fence: u64,
    node: usize,
    only: Option<[u8; 32]>,
    /// The node has begun another connection meanwhile. None is so slow that this happens twice.
    late: bool,
}

#[derive(Default)]
struct Hub {
    /// Durable.
    rows: BTreeMap<TaskId, Row>,
    journal: Vec<(TaskId, u64, usize, Placement)>,
    /// Nodes that are to take nothing new.
    drained: BTreeSet<usize>,
    /// In memory.
    up: bool,
    pool: Pool,
    handles: BTreeMap<usize, Handle>,
    grants: Vec<Grant>,
    deliveries: Vec<Delivery>,
    /// Since when a node with tasks is away.
    away: BTreeMap<usize, i64>,
}

struct Node {
    /// Durable.
    journal: BTreeMap<TaskId, Entry>,
    /// In memory.
    up: bool,
    gate: Option<Gate>,
    wall_offset_ms: i64,
    /// Admitted, and not in the journal yet.
    starting: BTreeMap<TaskId, u64>,
    running: BTreeSet<TaskId>,
    collected: BTreeMap<TaskId, u64>,
    cancelled: BTreeSet<TaskId>,
    claimant: Claimant,
    /// The hub's time, when this start of the peer has heard of it.
    hub_offset_ms: Option<i64>,
    gone_for_good: bool,
}

struct World<'a> {
    seed: u64,
    keys: &'a Keys,
    random: Random,
    mood: Mood,
    now_ms: i64,
    hub: Hub,
    nodes: Vec<Node>,
    wires: Vec<Option<Connection>>,
    boots: u64,
    runs: BTreeMap<TaskId, u32>,
    accepted: Vec<TaskId>,
    /// Everything that was ever signed, for whoever wants to replay it.
    signed: Vec<(usize, Signed)>,
    calm: bool,
    trace: bool,
    kills: u64,
    refusals: u64,
}

/// The hub or a node was killed in the middle of something.
struct Killed;

type Step = Result<(), Killed>;

impl<'a> World<'a> {
    fn new(seed: u64, keys: &'a Keys, trace: bool) -> Self {
        let mut random = Random(seed);
        let mood = Mood::of(&mut random);
        let node = |random: &mut Random| Node {
            journal: BTreeMap::new(),
            up: true,
            gate: None,
            wall_offset_ms: [-DAY_MS, 0, DAY_MS][random.below(3)],
            starting: BTreeMap::new(),
            running: BTreeSet::new(),
            collected: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            claimant: Claimant::default(),
            hub_offset_ms: None,
            gone_for_good: false,
        };
        let nodes = (0..mood.nodes).map(|_| node(&mut random)).collect();
        let mut world = Self {
            seed,
            keys,
            random,
            mood,
            now_ms: 1_000_000,
            hub: Hub { up: true, ..Hub::default() },
            nodes,
            wires: (0..mood.nodes).map(|_| None).collect(),
            boots: 0,
            runs: BTreeMap::new(),
            accepted: Vec::new(),
            signed: Vec::new(),
            calm: false,
            trace,
            kills: 0,
            refusals: 0,
        };
        world.start_hub();
        world
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9} {}", self.now_ms, what());
        }
    }

    // ------------------------------------------------------------------ hub

    /// A durable write of the hub: it may be killed before it, and after.
    fn commit(&mut self, write: impl FnOnce(&mut Hub)) -> Step {
        self.perhaps_kill_hub()?;
        write(&mut self.hub);
        self.perhaps_kill_hub()
    }

    fn perhaps_kill_hub(&mut self) -> Step {
        if !self.calm && self.random.one_in(120) {
            self.kill_hub();
            return Err(Killed);
        }
        Ok(())
    }

    fn kill_hub(&mut self) {
        self.say(|| "the hub is killed".into());
        self.kills += 1;
        self.hub.up = false;
        self.wires.iter_mut().for_each(|wire| *wire = None);
        self.nodes.iter_mut().for_each(|node| node.claimant = Claimant::default());
        self.hub.pool = Pool::default();
        self.hub.handles.clear();
        self.hub.grants.clear();
        self.hub.deliveries.clear();
        self.hub.away.clear();
    }

    fn start_hub(&mut self) {
        self.say(|| "the hub starts".into());
        self.hub.up = true;
        let rows: Vec<(TaskId, Row)> = self.hub.rows.iter().map(|(id, row)| (*id, row.clone())).collect();
        for (id, row) in rows {
            match row.state {
                State::Queued | State::Offered if row.pooled => self.wait_in_pool(id),
                State::Leased | State::Running => _ = self.hub.away.entry(row.node).or_insert(self.now_ms),
                _ => {}
            }
        }
    }

    fn wait_in_pool(&mut self, task: TaskId) {
        let row = &self.hub.rows[&task];
        let needs = Needs { session: session(), selector: Selector::default(), mode: SandboxMode::Unspecified };
        let waiting = Waiting { task, needs, fence: row.fence, expires_at_ms: row.start_by_ms, queued: row.state == State::Queued };
        self.hub.pool.wait(waiting, self.now_ms);
    }

    /// Moves a task by the transition table, in one durable write.
    fn put(&mut self, task: TaskId, to: State, change: impl FnOnce(&mut Row)) -> Step {
        let seed = self.seed;
        self.say(|| format!("{task} becomes {to}"));
        self.commit(|hub| {
            let row = hub.rows.get_mut(&task).unwrap();
            assert!(row.state.may_become(to), "seed {seed}: {task} was {} and became {to}", row.state);
            row.state = to;
            change(row);
        })
    }

    fn dispatch(&mut self) -> Step {
        let mut bits = [0; 10];
        bits[..8].copy_from_slice(&(self.accepted.len() as u64 + 1).to_be_bytes());
        let (task, node, pooled) = (TaskId::new(1, bits), self.random.below(self.mood.nodes), !self.random.one_in(4));
        let longest = if pooled { FOREVER_MS } else { limits::START_DEADLINE_MS };
        let patience = [3_000, 60_000, limits::START_DEADLINE_MS, longest][self.random.below(4)];
        let row = Row {
            state: if pooled { State::Offered } else { State::Queued },
            fence: 0,
            node,
            pooled,
            cancel_asked: false,
            start_by_ms: self.now_ms + patience,
        };
        self.perhaps_kill_hub()?;
        self.hub.rows.insert(task, row);
        // From here on it is acknowledged, whether or not anybody hears of it.
        self.accepted.push(task);
        self.perhaps_kill_hub()?;
        self.say(|| format!("{task} is accepted, {}", if pooled { "for the pool".into() } else { format!("for {node}") }));
        if pooled {
            self.wait_in_pool(task);
            Ok(())
        } else {
            self.deliver(task)
        }
    }

    /// A task that waits goes to its node when a slot is free there.
    fn deliver(&mut self, task: TaskId) -> Step {
        let (node, pooled) = (self.hub.rows[&task].node, self.hub.rows[&task].pooled);
        if pooled {
            self.wait_in_pool(task);
        } else if let Some(handle) = self.hub.handles.get_mut(&node) {
            handle.waiting.push_back(task);
            return self.wake(node);
        }
        Ok(())
    }

    fn wake(&mut self, n: usize) -> Step {
        while self.room(n) > 0 {
            let Some(handle) = self.hub.handles.get_mut(&n) else { break };
            let Some(task) = handle.waiting.pop_front() else { break };
            if !self.hub.rows[&task].state.may_become(State::Leased) || self.hub.rows[&task].state == State::Offered {
                continue;
            }
            self.put(task, State::Leased, |row| row.fence += 1)?;
            self.start_on(task);
        }
        let (room, now_ms) = (self.room(n), self.now_ms);
        self.hub.pool.room(self.keys.nodes[n], room, now_ms);
        Ok(())
    }

    fn room(&self, n: usize) -> u32 {
        let ready = self.hub.handles.get(&n).filter(|handle| handle.inventory.is_none() && !self.hub.drained.contains(&n));
        ready.map_or(0, |handle| SLOTS.saturating_sub(handle.live.len() as u32))
    }

    fn takes_tasks(&self, n: usize) -> bool {
        self.hub.handles.contains_key(&n) && !self.hub.drained.contains(&n)
    }

    /// A node is to finish what it has and take nothing new; or it takes tasks again.
    fn drain(&mut self, n: usize, drained: bool) -> Step {
        self.say(|| format!("node {n} is drained: {drained}"));
        if drained {
            self.hub.drained.insert(n);
            self.hub.pool.leave(self.keys.nodes[n], self.now_ms);
            return self.serve_pool();
        }
        self.hub.drained.remove(&n);
        self.seat(n);
        self.wake(n)?;
        self.serve_pool()
    }

    /// A node that is there, and known, takes part in the pool.
    fn seat(&mut self, n: usize) {
        if self.takes_tasks(n) && self.hub.handles[&n].inventory.is_none() {
            let machine = Machine { sessions: BTreeSet::from([session()]), ..Machine::default() };
            let (room, now_ms) = (self.room(n), self.now_ms);
            self.hub.pool.seat(self.keys.nodes[n], machine, room, now_ms);
        }
    }

    /// A leased task takes its slot, and is on its way to the connection that its node has then.
    fn start_on(&mut self, task: TaskId) {
        let Row { fence, node, .. } = self.hub.rows[&task];
        let handle = self.hub.handles.get_mut(&node);
        let boot = handle.map(|handle| {
            handle.live.insert(task);
            handle.boot
        });
        let only = boot.filter(|_| !self.hub.rows[&task].pooled);
        self.hub.deliveries.push(Delivery { task, fence, node, only, late: false });
    }

    /// One of the deliveries under way arrives.
    fn arrive(&mut self) -> Step {
        if self.hub.deliveries.is_empty() {
            return Ok(());
        }
        let next = self.random.below(self.hub.deliveries.len());
        let delivery = self.hub.deliveries.swap_remove(next);
        self.deliver_leased(delivery)
    }

    /// Those arrive that must.
    fn arrive_if(&mut self, must: impl Fn(&Delivery) -> bool) -> Step {
        let (now, later) = std::mem::take(&mut self.hub.deliveries).into_iter().partition(must);
        self.hub.deliveries = later;
        Vec::into_iter(now).try_for_each(|delivery| self.deliver_leased(delivery))
    }

    fn deliver_leased(&mut self, delivery: Delivery) -> Step {
        let Delivery { task, fence, node, only, .. } = delivery;
        if only.is_some_and(|boot| self.hub.handles.get(&node).is_none_or(|handle| handle.boot != boot)) {
            return Ok(());
        }
        match self.hub.handles.get_mut(&node) {
            Some(handle) if handle.inventory.is_some() => handle.late.push(delivery),
            Some(handle) if handle.settled.covers(&task, fence) => {}
            Some(_) => self.send(delivery),
            // The node has left and was sent nothing: others may have it at once.
            None => {
                let row = &self.hub.rows[&task];
                if row.pooled && row.state == State::Leased && row.fence == fence {
                    self.put(task, State::Queued, |_| {})?;
                    self.wait_in_pool(task);
                }
            }
        }
        Ok(())
    }

    /// Signs a leased task and sends it.
    fn send(&mut self, delivery: Delivery) {
        let Delivery { task, fence, node, .. } = delivery;
        let Some(handle) = self.hub.handles.get_mut(&node) else { return };
        handle.live.insert(task);
        handle.sequence += 1;
        let request = TaskRequest {
            hub_root: self.keys.root.public().to_bytes(),
            node_key: self.keys.nodes[node].key().to_bytes(),
            session_id: session().to_string(),
            boot_nonce: Bytes::copy_from_slice(&handle.boot),
            sequence: handle.sequence,
            task_id: Bytes::copy_from_slice(task.as_bytes()),
            attempt: 1,
            fence,
            start_deadline_ms: self.now_ms + limits::START_DEADLINE_MS,
            policy_hash: Bytes::copy_from_slice(&self.keys.policy.hash()),
            mode: SandboxMode::Permissive.into(),
            kind: Some(Kind::Shell(ShellTask { argv: vec!["true".into()], ..ShellTask::default() })),
            ..TaskRequest::default()
        };
        let signed = self.keys.task.seal(Domain::Task, &request);
        self.signed.push((node, signed.clone()));
        self.tell_node(node, Some(task), ToNode::Start(signed));
    }

    fn tell_node(&mut self, n: usize, lane: Option<TaskId>, message: ToNode) {
        if let Some(wire) = &mut self.wires[n] {
            wire.to_node.send(lane, message);
        }
    }

    /// Does what the pool wants.
    fn serve_pool(&mut self) -> Step {
        loop {
            let commands = self.hub.pool.commands();
            if commands.is_empty() {
                return Ok(());
            }
            for command in commands {
                match command {
                    Command::Tell(node, task, offer) => {
                        let n = self.number(node);
                        if let Some(handle) = self.hub.handles.get_mut(&n) {
                            handle.news.insert(task, offer);
                        }
                    }
                    Command::Grant(grant) => self.hub.grants.push(grant),
                    Command::Offered(task) if self.hub.rows[&task].state == State::Queued => self.put(task, State::Offered, |_| {})?,
                    Command::Expire(task) if waits(self.hub.rows[&task].state) => self.put(task, State::Expired, |_| {})?,
                    Command::Offered(_) | Command::Expire(_) => {}
                }
            }
        }
    }

    fn number(&self, node: NodeId) -> usize {
        self.keys.nodes.iter().position(|id| *id == node).unwrap()
    }

    /// One transaction of grants, some time after the claims.
    fn grant(&mut self) -> Step {
        for grant in std::mem::take(&mut self.hub.grants) {
            let n = self.number(grant.node);
            let row = &self.hub.rows[&grant.task];
            let declined = if !waits(row.state) || row.fence != grant.fence {
                Some(Declined::Gone)
            } else if self.room(n) == 0 || !self.calm && self.random.one_in(self.mood.declines) {
                Some(if self.takes_tasks(n) { Declined::Full } else { Declined::Unfit })
            } else {
                None
            };
            let now_ms = self.now_ms;
            self.refusals += u64::from(declined.is_some());
            if let Some(why) = declined {
                self.hub.pool.declined(&grant, why, now_ms);
                if why == Declined::Unfit {
                    self.hub.pool.leave(grant.node, now_ms);
                }
                continue;
            }
            self.say(|| format!("{} is granted to {n}", grant.task));
            let Grant { task, fence, placement, .. } = grant.clone();
            self.commit(|hub| {
                let row = hub.rows.get_mut(&task).unwrap();
                assert!(row.state.may_become(State::Leased));
                (row.state, row.fence, row.node) = (State::Leased, fence + 1, n);
                hub.journal.push((task, fence + 1, n, placement));
            })?;
            self.start_on(grant.task);
            let room = self.room(n);
            self.hub.pool.room(grant.node, room, now_ms);
            self.hub.pool.granted(grant.task, now_ms);
        }
        Ok(())
    }

    fn hear(&mut self, n: usize, message: ToHub) -> Step {
        match message {
            ToHub::Register { boot, inventory } => return self.register(n, boot, inventory),
            _ if !self.hub.handles.contains_key(&n) => {}
            ToHub::Claims(claims) => {
                for (task, fence) in claims {
                    self.hub.pool.claim(self.keys.nodes[n], task, fence);
                }
            }
            ToHub::Started(task) => {
                let row = &self.hub.rows[&task];
                if row.node == n && row.state == State::Leased {
                    self.put(task, State::Running, |_| {})?;
                }
            }
            ToHub::Rejected(task, fence, code) => {
                let row = self.hub.rows[&task].clone();
                // Of an earlier lease: it was heard, or its end was.
                if row.fence != fence {
                    return Ok(());
                }
                self.refusals += 1;
                if row.node == n && row.state == State::Leased && may_move(code) && row.pooled {
                    self.put(task, State::Queued, |_| {})?;
                    assert_eq!(self.hub.rows[&task].fence, fence);
                    self.wait_in_pool(task);
                } else if row.node == n && row.state.may_become(State::Rejected) && row.state == State::Leased {
                    self.put(task, State::Rejected, |_| {})?;
                }
                self.release(n, task)?;
            }
            ToHub::Result(task, fence, state) => {
                let row = &self.hub.rows[&task];
                if row.node == n && row.fence == fence && row.state.may_become(state) {
                    self.put(task, state, |_| {})?;
                }
                self.tell_node(n, Some(task), ToNode::Stored(task));
                self.release(n, task)?;
            }
        }
        Ok(())
    }

    fn release(&mut self, n: usize, task: TaskId) -> Step {
        if let Some(handle) = self.hub.handles.get_mut(&n) {
            handle.live.remove(&task);
        }
        self.wake(n)
    }

    fn register(&mut self, n: usize, boot: [u8; 32], inventory: Vec<(TaskId, Held)>) -> Step {
        if self.hub.handles.contains_key(&n) {
            // The same frame once more: a connection registers once.
            return Ok(());
        }
        self.arrive_if(|delivery| delivery.node == n && delivery.late)?;
        self.hub.deliveries.iter_mut().filter(|delivery| delivery.node == n).for_each(|delivery| delivery.late = true);
        let handle = Handle {
            boot,
            sequence: 0,
            live: BTreeSet::new(),
            waiting: VecDeque::new(),
            inventory: Some(inventory),
            late: Vec::new(),
            settled: Settled::default(),
            news: BTreeMap::new(),
        };
        self.hub.handles.insert(n, handle);
        self.hub.away.remove(&n);
        Ok(())
    }

    /// Compares what a node has said with the store.
    fn reconcile(&mut self, n: usize) -> Step {
        let Some(inventory) = self.hub.handles.get_mut(&n).and_then(|handle| handle.inventory.take()) else { return Ok(()) };
        let held: BTreeMap<TaskId, Held> = inventory.into_iter().collect();
        let open: Vec<(TaskId, Row)> = self
            .hub
            .rows
            .iter()
            .filter(|(_, row)| row.node == n && !row.state.is_final() && !(row.pooled && waits(row.state)))
            .map(|(id, row)| (*id, row.clone()))
            .collect();
        let late = self.hub.handles.get_mut(&n).map_or_else(Vec::new, |handle| {
            handle.settled = open.iter().map(|(task, row)| (*task, row.fence)).collect();
            std::mem::take(&mut handle.late)
        });
        for delivery in late {
            self.deliver_leased(delivery)?;
        }
        let mut wanted = BTreeMap::new();
        let mut again = Vec::new();
        for (task, row) in open {
            match reunite(row.state, row.fence, row.cancel_asked, held.get(&task).copied()) {
                Reunion::Resume(verdict) => {
                    wanted.insert(task, verdict);
                    self.hub.handles.get_mut(&n).unwrap().live.insert(task);
                    self.tell_node(n, Some(task), ToNode::Resume(task));
                }
                Reunion::Lost(_) => {
                    wanted.insert(task, InventoryVerdict::Forget);
                    self.put(task, State::Lost, |_| {})?;
                }
                Reunion::Again => again.push(task),
                Reunion::Waits => self.deliver(task)?,
            }
        }
        let answers = held.iter().map(|(task, item)| (*task, wanted.get(task).copied().unwrap_or_else(|| stale(*item)))).collect();
        self.tell_node(n, None, ToNode::Answers(answers));
        for task in again {
            self.put(task, State::Queued, |_| {})?;
            self.deliver(task)?;
        }
        self.seat(n);
        Ok(())
    }

    fn cancel(&mut self) -> Step {
        if self.accepted.is_empty() {
            return Ok(());
        }
        let task = self.accepted[self.random.below(self.accepted.len())];
        let row = self.hub.rows[&task].clone();
        if row.state.is_final() {
            return Ok(());
        }
        if waits(row.state) {
            self.put(task, State::Cancelled, |_| {})?;
            let now_ms = self.now_ms;
            self.hub.pool.forget(task, now_ms);
            return Ok(());
        }
        self.commit(|hub| hub.rows.get_mut(&task).unwrap().cancel_asked = true)?;
        self.tell_node(row.node, Some(task), ToNode::Cancel(task));
        Ok(())
    }

    /// Time passes for the hub: what waits expires, what ran on nodes that stay away is lost.
    fn hub_tick(&mut self) -> Step {
        let now_ms = self.now_ms;
        self.hub.pool.tick(now_ms);
        let expired: Vec<TaskId> = self
            .hub
            .rows
            .iter()
            .filter(|(_, row)| !row.pooled && row.state == State::Queued && row.start_by_ms <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        for task in expired {
            self.put(task, State::Expired, |_| {})?;
        }
        let gone: Vec<usize> = self.hub.away.iter().filter(|(_, since)| now_ms - **since > LOST_AFTER_MS).map(|(n, _)| *n).collect();
        for n in gone {
            let held = |row: &Row| row.node == n && matches!(row.state, State::Leased | State::Running);
            let lost: Vec<TaskId> = self.hub.rows.iter().filter(|(_, row)| held(row)).map(|(id, _)| *id).collect();
            for task in lost {
                self.put(task, State::Lost, |_| {})?;
            }
            self.hub.away.remove(&n);
        }
        self.serve_pool()
    }

    // ----------------------------------------------------------------- nodes

    fn perhaps_kill_node(&mut self, n: usize) -> Step {
        if !self.calm && self.random.one_in(60) {
            self.kill_node(n);
            return Err(Killed);
        }
        Ok(())
    }

    fn kill_node(&mut self, n: usize) {
        self.say(|| format!("node {n} is killed"));
        self.kills += 1;
        self.disconnect(n);
        let node = &mut self.nodes[n];
        node.up = false;
        node.gate = None;
        node.hub_offset_ms = None;
        node.starting.clear();
        node.running.clear();
        node.collected.clear();
        node.cancelled.clear();
    }

    /// Whoever was started and did not finish is lost.
    fn start_node(&mut self, n: usize) {
        self.say(|| format!("node {n} starts"));
        let node = &mut self.nodes[n];
        node.up = true;
        for entry in node.journal.values_mut() {
            entry.result.get_or_insert(State::Lost);
        }
    }

    fn connect(&mut self, n: usize) {
        if !self.hub.up || !self.nodes[n].up || self.nodes[n].gone_for_good || self.wires[n].is_some() {
            return;
        }
        self.boots += 1;
        let mut boot = [0; 32];
        boot[..8].copy_from_slice(&self.boots.to_be_bytes());
        let node = &mut self.nodes[n];
        let hub = self.keys.root.public().into();
        node.gate = Some(Gate { hub, node: self.keys.nodes[n], boot_nonce: boot, window: SequenceWindow::default() });
        // What is being taken in has passed the gate, and goes on.
        let starting = node.starting.iter().map(|(task, fence)| (*task, Held { fence: *fence, finished: false, lost: false }));
        let known = node.journal.iter().map(|(task, entry)| {
            (*task, Held { fence: entry.fence, finished: entry.result.is_some(), lost: entry.result == Some(State::Lost) })
        });
        let inventory = starting.chain(known).collect();
        node.claimant = Claimant::default();
        node.hub_offset_ms = Some(0);
        let mut wire = Connection { to_node: Wire::new(), to_hub: Wire::new() };
        wire.to_hub.send(None, ToHub::Register { boot, inventory });
        self.wires[n] = Some(wire);
    }

    fn disconnect(&mut self, n: usize) {
        if self.wires[n].take().is_none() {
            return;
        }
        self.say(|| format!("the connection of node {n} breaks"));
        self.nodes[n].claimant = Claimant::default();
        if self.hub.handles.remove(&n).is_some() {
            self.hub.away.insert(n, self.now_ms);
        }
        self.hub.pool.leave(self.keys.nodes[n], self.now_ms);
    }

    fn tell_hub(&mut self, n: usize, lane: Option<TaskId>, message: ToHub) {
        if let Some(wire) = &mut self.wires[n] {
            wire.to_hub.send(lane, message);
        }
    }

    fn node_hears(&mut self, n: usize, message: ToNode) -> Step {
        match message {
            ToNode::Answers(answers) => {
                for (task, verdict) in answers {
                    match verdict {
                        InventoryVerdict::Forget => self.forget(n, task)?,
                        InventoryVerdict::Cancel => _ = self.nodes[n].cancelled.insert(task),
                        _ => {}
                    }
                }
            }
            ToNode::Pool(update) => self.nodes[n].claimant.hear(&update, self.now_ms),
            ToNode::Start(signed) => self.admit(n, &signed),
            ToNode::Resume(task) => match self.nodes[n].journal.get(&task).copied() {
                Some(Entry { fence, result: Some(state) }) => self.tell_hub(n, Some(task), ToHub::Result(task, fence, state)),
                Some(_) => self.tell_hub(n, Some(task), ToHub::Started(task)),
                None => {}
            },
            ToNode::Cancel(task) => _ = self.nodes[n].cancelled.insert(task),
            ToNode::Stored(task) => self.forget(n, task)?,
        }
        Ok(())
    }

    /// The node's door.
    fn admit(&mut self, n: usize, signed: &Signed) {
        let now_ms = self.now_ms;
        let node = &mut self.nodes[n];
        let clock_ms = node.hub_offset_ms.map_or(now_ms + node.wall_offset_ms, |offset| now_ms + offset);
        let Some(gate) = &mut node.gate else { return };
        let request = match gate.check(signed, &self.keys.task.public(), &self.keys.policy, clock_ms) {
            Ok(request) => request,
            Err(rejection @ Rejection::Late) => {
                let request = TaskRequest::decode(signed.body.clone()).unwrap();
                let task = TaskId::from_slice(&request.task_id).unwrap();
                return self.tell_hub(n, Some(task), ToHub::Rejected(task, request.fence, rejection.code()));
            }
            // A duplicate of what is under way, or an old order on a new connection: nobody waits for the answer.
            Err(_) => return,
        };
        let task = TaskId::from_slice(&request.task_id).unwrap();
        let known = node.starting.contains_key(&task) || node.journal.contains_key(&task);
        if known || node.collected.get(&task).is_some_and(|fence| request.fence <= *fence) {
            return self.tell_hub(n, Some(task), ToHub::Rejected(task, request.fence, "replayed"));
        }
        let is_full = node.starting.len() + node.running.len() >= SLOTS as usize;
        if is_full || !self.calm && self.random.one_in(self.mood.refuses) {
            return self.tell_hub(n, Some(task), ToHub::Rejected(task, request.fence, "node_busy"));
        }
        node.starting.insert(task, request.fence);
    }

    /// Journal, then process: in this order.
    fn begin(&mut self, n: usize, task: TaskId) -> Step {
        self.perhaps_kill_node(n)?;
        let Some(fence) = self.nodes[n].starting.remove(&task) else { return Ok(()) };
        self.nodes[n].journal.insert(task, Entry { fence, result: None });
        self.perhaps_kill_node(n)?;
        self.nodes[n].running.insert(task);
        let runs = self.runs.entry(task).or_default();
        *runs += 1;
        assert_eq!(*runs, 1, "seed {}: {task} was run twice", self.seed);
        let row = &self.hub.rows[&task];
        assert!(!waits(row.state) && row.fence == fence, "seed {}: {task} was started under fence {fence}, and is {row:?}", self.seed);
        self.say(|| format!("{task} runs on {n}"));
        self.perhaps_kill_node(n)?;
        self.tell_hub(n, Some(task), ToHub::Started(task));
        Ok(())
    }

    fn finish(&mut self, n: usize, task: TaskId) -> Step {
        self.perhaps_kill_node(n)?;
        let state = match (self.nodes[n].cancelled.remove(&task), self.random.one_in(3)) {
            (true, _) => State::Cancelled,
            (false, true) => State::Failed,
            (false, false) => State::Succeeded,
        };
        let node = &mut self.nodes[n];
        node.running.remove(&task);
        let Some(entry) = node.journal.get_mut(&task) else { return Ok(()) };
        entry.result = Some(state);
        let fence = entry.fence;
        self.perhaps_kill_node(n)?;
        self.tell_hub(n, Some(task), ToHub::Result(task, fence, state));
        Ok(())
    }

    fn forget(&mut self, n: usize, task: TaskId) -> Step {
        self.perhaps_kill_node(n)?;
        let node = &mut self.nodes[n];
        let Some(entry) = node.journal.get(&task).copied() else { return Ok(()) };
        if entry.result.is_none() {
            node.cancelled.insert(task);
            return Ok(());
        }
        let row = &self.hub.rows[&task];
        assert!(row.state.is_final() || row.fence > entry.fence, "seed {}: {task} was collected and is {row:?}", self.seed);
        node.journal.remove(&task);
        node.collected.insert(task, entry.fence);
        self.perhaps_kill_node(n)
    }

    fn claim(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let free = SLOTS.saturating_sub((node.starting.len() + node.running.len()) as u32);
        let claims = node.claimant.claims(free, self.now_ms);
        if !claims.is_empty() {
            let claims = claims.iter().map(|claim| (TaskId::from_slice(&claim.task_id).unwrap(), claim.fence)).collect();
            self.tell_hub(n, None, ToHub::Claims(claims));
        }
    }

    // ------------------------------------------------------------- the world

    /// The hub's news for the pool go out in batches.
    fn flush(&mut self, n: usize) {
        let Some(handle) = self.hub.handles.get_mut(&n) else { return };
        let news = std::mem::take(&mut handle.news);
        if news.is_empty() {
            return;
        }
        let mut update = PoolUpdate { slot_ms: SLOT_MS as u32, ..PoolUpdate::default() };
        for (task, offer) in news {
            let task_id = Bytes::copy_from_slice(task.as_bytes());
            match offer {
                Some(Offer { fence, rank }) => update.offers.push(PoolOffer { task_id, fence, rank }),
                None => update.settled.push(task_id),
            }
        }
        self.tell_node(n, None, ToNode::Pool(update));
    }

    fn step(&mut self) {
        let n = self.random.below(self.mood.nodes);
        self.now_ms += self.random.below(120) as i64;
        if !self.calm && self.random.one_in(self.mood.breaks) {
            self.disconnect(n);
        }
        let _: Step = match self.random.below(100) {
            0..6 if self.hub.up && !self.calm && self.accepted.len() < 24 => self.dispatch(),
            6 if self.hub.up && !self.calm => self.cancel(),
            7 if self.hub.up && !self.calm && self.random.one_in(3) => {
                let drained = !self.hub.drained.contains(&n);
                self.drain(n, drained)
            }
            8 if !self.calm => {
                self.disconnect(n);
                Ok(())
            }
            9 if !self.calm => {
                let arrived = self.arrive_if(|_| true);
                self.now_ms += [5_000, 70_000, 700_000][self.random.below(3)];
                arrived
            }
            // Somebody who has listened sends old orders again.
            10..12 if !self.calm && !self.signed.is_empty() => {
                let (to, signed) = self.signed[self.random.below(self.signed.len())].clone();
                let to = if self.random.one_in(4) { n } else { to };
                if self.nodes[to].up {
                    self.admit(to, &signed);
                }
                Ok(())
            }
            12..18 => {
                if !self.hub.up {
                    self.start_hub();
                } else if !self.nodes[n].up && !self.nodes[n].gone_for_good {
                    self.start_node(n);
                }
                self.connect(n);
                Ok(())
            }
            18..42 => {
                let received = self.wires[n].as_mut().and_then(|wire| wire.to_node.receive(&mut self.random));
                received.map_or(Ok(()), |message| self.node_hears(n, message))
            }
            42..64 => {
                let received = self.wires[n].as_mut().and_then(|wire| wire.to_hub.receive(&mut self.random));
                received.map_or(Ok(()), |message| self.hear(n, message)).and_then(|()| self.serve_pool())
            }
            64..71 => {
                let next = self.nodes[n].starting.keys().next().copied();
                next.filter(|_| self.nodes[n].up).map_or(Ok(()), |task| self.begin(n, task))
            }
            71..76 => {
                let running: Vec<TaskId> = self.nodes[n].running.iter().copied().collect();
                let next = running.get(self.random.below(running.len())).copied();
                next.map_or(Ok(()), |task| self.finish(n, task))
            }
            76..81 if self.hub.up => self.grant().and_then(|()| self.serve_pool()),
            81..87 if self.hub.up => self.arrive().and_then(|()| self.serve_pool()),
            87..91 if self.hub.up => self.reconcile(n).and_then(|()| self.serve_pool()),
            91..94 if self.hub.up => self.hub_tick(),
            94..97 => {
                self.flush(n);
                Ok(())
            }
            _ => {
                self.claim(n);
                Ok(())
            }
        };
    }

    /// Everything works again, but for a node that may never come back. It must come to rest.
    fn heal(&mut self) {
        self.calm = true;
        for n in std::mem::take(&mut self.hub.drained) {
            let _: Step = self.drain(n, false);
        }
        if self.mood.nodes > 1 && self.random.one_in(4) {
            let n = self.random.below(self.mood.nodes);
            self.disconnect(n);
            self.nodes[n].gone_for_good = true;
        }
        for round in 0..40_000 {
            self.step();
            let settled = self.hub.up
                && self.hub.rows.values().all(|row| row.state.is_final())
                && self.nodes.iter().zip(&self.wires).all(|(node, wire)| {
                    node.gone_for_good
                        || wire.as_ref().is_some_and(|wire| wire.to_hub.is_empty() && wire.to_node.is_empty())
                            && node.running.is_empty()
                            && node.starting.is_empty()
                });
            if settled {
                return;
            }
            if round % 1_000 == 999 {
                self.now_ms += 120_000;
            }
        }
        let open: Vec<_> = self.hub.rows.iter().filter(|(_, row)| !row.state.is_final()).collect();
        panic!("seed {}: it does not come to rest: {open:#?}\npool {:?}", self.seed, self.hub.pool);
    }

    fn check(&self) {
        for task in &self.accepted {
            let row = self.hub.rows.get(task).unwrap_or_else(|| panic!("seed {}: {task} was accepted, and is gone", self.seed));
            let ran = self.runs.get(task).copied().unwrap_or(0);
            match row.state {
                State::Succeeded | State::Failed => assert_eq!(ran, 1, "seed {}: {task} {row:?}", self.seed),
                State::Expired | State::Rejected => assert_eq!(ran, 0, "seed {}: {task} {row:?}", self.seed),
                _ => {}
            }
            if row.state == State::Expired {
                assert!(row.start_by_ms < FOREVER_MS, "seed {}: {task} was given up", self.seed);
            }
        }
        let mut fences: BTreeMap<TaskId, u64> = BTreeMap::new();
        for (task, fence, node, placement) in &self.hub.journal {
            assert_eq!(placement.winner(task), Ok(self.keys.nodes[*node]), "seed {}: {task} does not replay", self.seed);
            assert!(fences.insert(*task, *fence).is_none_or(|before| before < *fence), "seed {}: {task} twice under {fence}", self.seed);
        }
        for (task, row) in self.hub.rows.iter().filter(|(_, row)| row.pooled && row.fence > 0) {
            let (_, fence, node, _) = self.hub.journal.iter().rfind(|(id, ..)| id == task).unwrap();
            assert_eq!((*fence, *node), (row.fence, row.node), "seed {}: {task}", self.seed);
        }
    }
}

fn waits(state: State) -> bool {
    matches!(state, State::Queued | State::Offered)
}

fn session() -> SessionId {
    SessionId::new(1, [5; 10])
}

/// What happened, over all seeds.
#[derive(Default, Debug)]
struct Sum {
    ends: BTreeMap<State, usize>,
    moved: usize,
    kills: u64,
    refusals: u64,
}

fn run(seed: u64, keys: &Keys, trace: bool) -> Sum {
    let mut world = World::new(seed, keys, trace);
    let steps = 300 + world.random.below(900);
    (0..world.mood.nodes).for_each(|n| world.connect(n));
    (0..steps).for_each(|_| world.step());
    world.heal();
    world.check();
    let mut sum = Sum { kills: world.kills, refusals: world.refusals, ..Sum::default() };
    for row in world.hub.rows.values() {
        *sum.ends.entry(row.state).or_default() += 1;
        sum.moved += usize::from(row.fence > 1);
    }
    sum
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_breaks_no_task_runs_twice_and_every_task_ends_once() {
    let keys = Keys::new();
    if let Some(seed) = number("CORTEX_SEED") {
        run(seed, &keys, true);
        return;
    }
    let mut sum = Sum::default();
    let first = number("CORTEX_FIRST").unwrap_or(0);
    for seed in first..first + number("CORTEX_SEEDS").unwrap_or(SEEDS) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, &keys, false)));
        let Ok(more) = result else { panic!("CORTEX_SEED={seed} shows it") };
        more.ends.into_iter().for_each(|(state, count)| *sum.ends.entry(state).or_default() += count);
        sum.moved += more.moved;
        sum.kills += more.kills;
        sum.refusals += more.refusals;
    }
    // A simulation in which nothing happens proves nothing.
    let seen = |state: State| sum.ends.get(&state).copied().unwrap_or(0);
    for state in [State::Succeeded, State::Failed, State::Cancelled, State::Expired, State::Lost] {
        assert!(seen(state) > 0, "nothing was {state}: {sum:?}");
    }
    assert!(sum.moved > 100 && sum.kills > 0 && sum.refusals > 1_000 && seen(State::Succeeded) > 10, "{sum:?}");
}
