//! Tasks of the pool in the store: who gets which, in one transaction with the event that says why.
//!
//! Which node is asked, and who claims first, is [`cortex_wire::pool`]'s to say. Here a claim becomes a lease: by comparing the fence, and looking again whether
//! the node fits. The row of the session's log that tells of the lease holds what decided it, so that [`replay`] finds the same nodes again.

use std::{collections::BTreeMap, sync::Arc};

use cortex_wire::{
    id::{NodeId, TaskId},
    pool::{Declined, Grant, Machine, Needs, Placement, ReplayError, Waiting},
    selector::Selector,
    task::State,
};
use serde_json::{Value, json};

use super::{Task, choice, dispatch::Slot, must_allow, put, rows, waits};
use crate::{
    approval::{self, Decision},
    change::Change,
    hub::{Hub, Mesh, Reservation},
    record::{
        Event, PoolRecord,
        tables::{NODES, OPEN_TASKS_OF_NODE, POOL_TASKS, TASKS},
    },
    store::{StoreError, WriteTx},
    task::TransitionError,
};

/// Keeps a task of the pool with its node while it has one, and with the pool while it waits.
pub(super) fn index(tx: &mut dyn WriteTx, task: &Task) -> Result<(), StoreError> {
    if waits(task.state) {
        OPEN_TASKS_OF_NODE.remove(tx, &task.node, &task.id)?;
        return POOL_TASKS.insert(tx, &task.session, &task.id);
    }
    if !task.state.is_final() {
        return settle(tx, task);
    }
    POOL_TASKS.remove(tx, &task.session, &task.id)
}

/// Keeps a task with its node, and not with the pool any more.
fn settle(tx: &mut dyn WriteTx, task: &Task) -> Result<(), StoreError> {
    OPEN_TASKS_OF_NODE.insert(tx, &task.node, &task.id)?;
    POOL_TASKS.remove(tx, &task.session, &task.id)
}

/// Adds to an event what decided where a task goes.
pub(super) fn journal(task: &Task, data: &mut Value) {
    if task.state == State::Leased
        && let Some(placement) = task.pool.as_ref().and_then(|pool| pool.placement.as_ref())
    {
        data["placement"] = json!(placement);
        data["fence"] = task.fence.into();
    }
}

/// What a task of the pool needs. What the store holds was parsed before; should it not parse any more, every node of the session will do.
fn needs_of(task: &Task) -> Needs {
    let selector = task.pool.as_ref().and_then(|pool| pool.selector.parse::<Selector>().ok()).unwrap_or_default();
    choice::needs(task.session, selector, task.spec.mode)
}

/// A task as the pool knows it, by a clock on which `now_ms` is now.
pub(crate) fn waiting(task: &Task, wall_ms: i64, now_ms: i64) -> Waiting {
    Waiting {
        task: task.id,
        needs: needs_of(task),
        fence: task.fence,
        expires_at_ms: now_ms + (task.start_by_ms - wall_ms).max(0),
        queued: task.state == State::Queued,
    }
}

/// Why a journal is not one of the pool's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayFault {
    /// The rules give another node, or none.
    #[error("task {task}: {source}")]
    Rules {
        /// Which.
        task: TaskId,
        /// What does not fit.
        source: ReplayError,
    },
    /// The rules give another node than the log names.
    #[error("task {task} went to {logged:?}, and by the rules it goes to {replayed:?}")]
    Differs {
        /// Which.
        task: TaskId,
        /// As it was.
        logged: NodeId,
        /// As it should have been.
        replayed: NodeId,
    },
    /// A fence that does not grow.
    #[error("task {0} was given away twice under one fence")]
    Twice(TaskId),
    /// Not what this hub writes.
    #[error("row {0} cannot be read")]
    Unreadable(u64),
}

/// Finds again which node got each task of the pool, from a session's log alone: the last node of each, under its fence.
///
/// # Errors
/// [`ReplayFault`]: the log says something else.
pub fn replay(events: &[Event]) -> Result<BTreeMap<TaskId, (u64, NodeId)>, ReplayFault> {
    let mut found: BTreeMap<TaskId, (u64, NodeId)> = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind == "task" && !event.data["placement"].is_null()) {
        fn read<T: serde::de::DeserializeOwned>(event: &Event, key: &str) -> Result<T, ReplayFault> {
            serde_json::from_value(event.data[key].clone()).map_err(|_| ReplayFault::Unreadable(event.seq))
        }
        let (task, logged, fence): (TaskId, NodeId, u64) = (read(event, "id")?, read(event, "node_id")?, read(event, "fence")?);
        let placement: Placement = read(event, "placement")?;
        let replayed = placement.winner(&task).map_err(|source| ReplayFault::Rules { task, source })?;
        if replayed != logged {
            return Err(ReplayFault::Differs { task, logged, replayed });
        }
        if found.insert(task, (fence, replayed)).is_some_and(|(before, _)| before >= fence) {
            return Err(ReplayFault::Twice(task));
        }
    }
    Ok(found)
}

/// Leases a task to the node that claimed it, or says why not. The slot is taken inside the transaction, and given back if that fails. Where the node's policy asks, a person
/// is asked about it for this node, and it leaves the pool: another node might have let it start, but a yes is for one node, and so is the question.
fn lease(change: &mut Change<'_>, mesh: &Arc<dyn Mesh>, grant: &Grant) -> Result<Result<(), Declined>, StoreError> {
    let task = TASKS.get(change.tx, &grant.task)?.filter(|task| waits(task.state) && task.fence == grant.fence);
    let Some(mut task) = task else { return Ok(Err(Declined::Gone)) };
    let Some(pool) = task.pool.clone() else { return Ok(Err(Declined::Gone)) };
    let fits = choice::seat(change.tx, grant.node)?.is_some_and(|machine| machine.unfit(&needs_of(&task)).is_none());
    let Some(node) = NODES.get(change.tx, &grant.node)?.filter(|_| fits) else { return Ok(Err(Declined::Unfit)) };
    if mesh.reserve(grant.node) != Reservation::Slot {
        return Ok(Err(Declined::Full));
    }
    let slot = Slot::new(mesh.clone(), grant.node);
    task.node = grant.node;
    let placement = Some(grant.placement.clone());
    if approval::decide(change.tx, &node, &mut task, change.now_ms)? == Decision::Wait {
        task.pool = Some(PoolRecord { placement, settled: true, ..pool });
        settle(change.tx, &task)?;
        approval::ask(change, &mut task)?;
        let mesh = mesh.clone();
        change.then(move || mesh.deliver(task, false));
        return Ok(Err(Declined::Gone));
    }
    task.state = State::Leased;
    task.fence += 1;
    task.leased_at_ms = Some(change.now_ms);
    task.pool = Some(PoolRecord { placement, ..pool });
    put(change, &task)?;
    change.then(move || slot.deliver(task));
    Ok(Ok(()))
}

impl Hub {
    /// Gives tasks of the pool to those who claimed them, all in one commit. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`]: nobody has got anything.
    pub(crate) async fn grant(&self, grants: Vec<Grant>) -> Result<Vec<(Grant, Result<(), Declined>)>, StoreError> {
        let Some(mesh) = self.mesh().cloned() else { return Ok(Vec::new()) };
        self.change("hub".into(), move |change| {
            let decide = |grant: Grant| lease(change, &mesh, &grant).map(|outcome| (grant, outcome));
            grants.into_iter().map(decide).collect()
        })
        .await
    }

    /// Tasks that were queued are offered now. Those that have moved on stay as they are. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn offered(&self, ids: Vec<TaskId>) -> Result<(), StoreError> {
        self.change("hub".into(), move |change| {
            for id in ids {
                let Some(mut task) = TASKS.get(change.tx, &id)?.filter(|task| task.state == State::Queued) else { continue };
                task.state = State::Offered;
                put(change, &task)?;
            }
            Ok(())
        })
        .await
    }

    /// A task of the pool whose lease of this fence its node certainly has not got waits in the pool again. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub(crate) async fn give_back(&self, id: TaskId, fence: u64) -> Result<Task, TransitionError> {
        let task = self.find_task(id).await?.filter(Task::is_pooled).ok_or(TransitionError::NotFound)?;
        must_allow(&task, State::Queued)?;
        self.requeue(id, fence).await
    }

    /// Every task that waits in the pool. For the mesh, at its start.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn pool_tasks(&self) -> Result<Vec<Task>, StoreError> {
        self.db.read(|tx| rows(tx, &POOL_TASKS.all(tx)?)).await
    }

    /// A node as the pool sees it; `None`: it may not be given anything. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn machine(&self, node: NodeId) -> Result<Option<Machine>, StoreError> {
        self.db.read(move |tx| choice::seat(tx, node)).await
    }
}
