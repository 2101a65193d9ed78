//! The pool's shell: tells nodes what they are offered, takes their claims, has the store grant them.
//!
//! What is decided is decided by [`cortex_wire::pool::Pool`], under one lock, in which nodes are told as well, so that the last word about a task is the last
//! that they hear. Offers and claims travel in batches on the control streams.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use cortex_runtime::{failpoint, lifecycle::Lifecycle};
use cortex_wire::{
    id::{NodeId, TaskId},
    limits,
    pool::{Command, Declined, Grant, Offer, Pool, SLOT_MS, Tally},
    schema::{PoolClaims, PoolOffer, PoolUpdate},
};
use tokio::sync::Notify;

use crate::{
    hub::{Hub, lock},
    mesh::connection::NodeHandle,
    record::Task,
    task::pool::waiting,
};

/// The pool of a hub.
#[derive(Debug)]
pub(crate) struct Board {
    me: Weak<Self>,
    hub: Arc<Hub>,
    since: Instant,
    core: Mutex<Core>,
    /// When the next alarm is due may have changed.
    rung: Notify,
    /// Nodes are looked up one after the other: what was read last is what counts.
    seating: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Core {
    pool: Pool,
    handles: HashMap<NodeId, Weak<NodeHandle>>,
}

/// What needs the store.
#[derive(Debug, Default)]
struct Work {
    grants: Vec<Grant>,
    offered: Vec<TaskId>,
    expired: Vec<TaskId>,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.offered.is_empty() && self.expired.is_empty()
    }
}

impl Core {
    fn handle(&self, node: NodeId) -> Option<Arc<NodeHandle>> {
        self.handles.get(&node)?.upgrade()
    }

    /// Tells nodes what there is to tell, and returns the rest.
    fn tell(&mut self) -> Work {
        let mut work = Work::default();
        for command in self.pool.commands() {
            match command {
                Command::Tell(node, task, offer) => {
                    if let Some(handle) = self.handle(node) {
                        handle.pooled.tell(task, offer);
                    }
                }
                Command::Grant(grant) => work.grants.push(grant),
                Command::Offered(task) => work.offered.push(task),
                Command::Expire(task) => work.expired.push(task),
            }
        }
        work
    }

    fn refresh(&mut self, node: NodeId, now_ms: i64) {
        if let Some(handle) = self.handle(node) {
            self.pool.room(node, handle.room().unwrap_or(0), now_ms);
        }
    }
}

impl Board {
    pub(crate) fn new(hub: Arc<Hub>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            hub,
            since: Instant::now(),
            core: Mutex::default(),
            rung: Notify::new(),
            seating: tokio::sync::Mutex::default(),
        })
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.since.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Changes the pool, and does what follows.
    fn with(&self, change: impl FnOnce(&mut Core, i64)) {
        let work = {
            let mut core = lock(&self.core);
            let due = core.pool.due_ms();
            change(&mut core, self.now_ms());
            if core.pool.due_ms().is_some_and(|at| due.is_none_or(|before| at < before)) {
                self.rung.notify_one();
            }
            core.tell()
        };
        if let Some(board) = self.me.upgrade().filter(|_| !work.is_empty()) {
            tokio::spawn(async move { board.carry_out(work).await });
        }
    }

    async fn carry_out(&self, work: Work) {
        let Work { grants, offered, expired } = work;
        if !grants.is_empty() {
            self.grant(grants).await;
        }
        if !offered.is_empty()
            && let Err(error) = self.hub.offered(offered).await
        {
            tracing::warn!(%error, "could not store that tasks are offered");
        }
        for task in expired {
            // Refused when the task has moved on, as it should have.
            let _ = self.hub.expire(task).await;
        }
    }

    async fn grant(&self, grants: Vec<Grant>) {
        failpoint::at("hub.claimed");
        let decided = self.hub.grant(grants.clone()).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "could not give tasks of the pool away");
            grants.into_iter().map(|grant| (grant, Err(Declined::Full))).collect()
        });
        failpoint::at("hub.granted");
        let unfit: Vec<NodeId> =
            decided.iter().filter(|(_, outcome)| *outcome == Err(Declined::Unfit)).map(|(grant, _)| grant.node).collect();
        self.with(|core, now_ms| {
            for (grant, outcome) in decided {
                core.refresh(grant.node, now_ms);
                match outcome {
                    Ok(()) => core.pool.granted(grant.task, now_ms),
                    Err(why) => core.pool.declined(&grant, why, now_ms),
                }
            }
        });
        for node in unfit {
            self.seat(node).await;
        }
    }

    /// Rings when something is due, until the hub stops.
    pub(crate) async fn run(self: Arc<Self>, lifecycle: Lifecycle) {
        loop {
            let due = lock(&self.core).pool.due_ms();
            let wait = async {
                match due {
                    Some(at_ms) => {
                        let left = u64::try_from(at_ms.saturating_sub(self.now_ms())).unwrap_or(0);
                        tokio::time::sleep(Duration::from_millis(left)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => self.with(|core, now_ms| core.pool.tick(now_ms)),
                () = self.rung.notified() => {}
                () = lifecycle.stopping() => return,
            }
        }
    }

    /// A task waits for somebody to take it.
    pub(crate) fn wait(&self, task: &Task) {
        let wall_ms = self.hub.now_ms();
        self.with(|core, now_ms| core.pool.wait(waiting(task, wall_ms, now_ms), now_ms));
        failpoint::at("hub.offered");
    }

    /// A task is not to be had any more.
    pub(crate) fn forget(&self, task: TaskId) {
        self.with(|core, now_ms| core.pool.forget(task, now_ms));
    }

    /// How many tasks wait.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.core).pool.len()
    }

    /// What happened so far.
    pub(crate) fn tally(&self) -> Tally {
        lock(&self.core).pool.tally()
    }

    /// A node's connection takes part from now on, as far as the node may.
    pub(crate) async fn join(&self, handle: &Arc<NodeHandle>) {
        lock(&self.core).handles.insert(handle.node, Arc::downgrade(handle));
        self.seat(handle.node).await;
    }

    /// It takes part no longer. Nothing happens when the node has another connection by now.
    pub(crate) fn leave(&self, node: NodeId, connection: u64) {
        self.with(|core, now_ms| {
            // A handle that is about to be dropped cannot be upgraded any more: it is the one that leaves.
            if core.handle(node).is_none_or(|handle| handle.number == connection) {
                core.handles.remove(&node);
                core.pool.leave(node, now_ms);
            }
        });
    }

    /// Something about a node has changed: what it is, its sessions, whether it may take tasks.
    pub(crate) async fn seat(&self, node: NodeId) {
        let _turn = self.seating.lock().await;
        let machine = self.hub.machine(node).await.unwrap_or_else(|error| {
            tracing::warn!(%node, %error, "could not look a node up for the pool");
            None
        });
        self.with(|core, now_ms| match (machine, core.handle(node).and_then(|handle| handle.room())) {
            (Some(machine), Some(room)) => core.pool.seat(node, machine, room, now_ms),
            _ => core.pool.leave(node, now_ms),
        });
    }

    /// The same, for whoever cannot wait for it.
    pub(crate) fn seat_soon(&self, node: NodeId) {
        if let Some(board) = self.me.upgrade() {
            tokio::spawn(async move { board.seat(node).await });
        }
    }

    /// A slot of a node has become free.
    pub(crate) fn freed(&self, node: NodeId) {
        self.with(|core, now_ms| core.refresh(node, now_ms));
    }

    /// A node claims what it was offered.
    pub(crate) fn claims(&self, node: NodeId, connection: u64, claims: &PoolClaims) {
        self.with(|core, _| {
            for claim in claims.claims.iter().take(limits::POOL_BATCH) {
                if let Ok(task) = TaskId::from_slice(&claim.task_id) {
                    core.pool.claim(node, task, claim.fence);
                }
            }
        });
        if claims.closed {
            self.leave(node, connection);
        }
    }
}

/// What a node is still to be told, the last word about each task.
#[derive(Debug, Default)]
pub(crate) struct Pooled {
    news: Mutex<HashMap<TaskId, Option<Offer>>>,
    told: Notify,
}

impl Pooled {
    fn tell(&self, task: TaskId, offer: Option<Offer>) {
        lock(&self.news).insert(task, offer);
        self.told.notify_one();
    }

    /// Waits until there is something to be told.
    pub(crate) async fn told(&self) {
        self.told.notified().await;
    }

    /// All of it, in frames.
    pub(crate) fn updates(&self) -> Vec<PoolUpdate> {
        let (mut offers, mut settled) = (Vec::new(), Vec::new());
        for (task, offer) in std::mem::take(&mut *lock(&self.news)) {
            let task_id = bytes::Bytes::copy_from_slice(task.as_bytes());
            match offer {
                Some(Offer { fence, rank }) => offers.push(PoolOffer { task_id, fence, rank }),
                None => settled.push(task_id),
            }
        }
        let mut updates = Vec::new();
        while !(offers.is_empty() && settled.is_empty()) {
            updates.push(PoolUpdate {
                offers: offers.split_off(offers.len().saturating_sub(limits::POOL_BATCH)),
                settled: settled.split_off(settled.len().saturating_sub(limits::POOL_BATCH)),
                slot_ms: u32::try_from(SLOT_MS).unwrap_or(0),
            });
        }
        updates
    }
}
