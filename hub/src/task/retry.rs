//! Lost work that may be done again, because whoever asked for it said that doing it twice does no harm.
//!
//! What is lost stays lost: final states never change. A retry is a task of its own, with the next attempt's number, made in the transaction that
//! loses the one before; both name each other.

use std::sync::Arc;

use cortex_runtime::clock::random;
use cortex_wire::{id::TaskId, limits};
use serde_json::json;

use super::{object, put};
use crate::{
    change::Change,
    hub::Mesh,
    output::Outputs,
    record::{
        SessionStatus, Task,
        tables::{OPEN_TASKS_OF_NODE, OPEN_TASKS_OF_SESSION, SESSIONS, TASKS_OF_SESSION},
    },
    store::StoreError,
};

/// How often a task can be done again.
pub(super) const RETRIES: u32 = 10;

/// Makes the next attempt of a task that is being lost, if there is to be one.
pub(super) fn again(change: &mut Change<'_>, lost: &mut Task, mesh: Option<&Arc<dyn Mesh>>, outputs: &Outputs) -> Result<(), StoreError> {
    let asked = lost.spec.idempotent && lost.attempt <= lost.spec.retries.min(RETRIES) && lost.cancel_asked_at_ms.is_none();
    let session = if asked { SESSIONS.get(change.tx, &lost.session)? } else { None };
    if !session.is_some_and(|session| session.status == SessionStatus::Active && session.nodes.contains(&lost.node)) {
        return Ok(());
    }
    let now_ms = change.now_ms;
    let patience_ms = i64::try_from(lost.queue_timeout_ms).unwrap_or(i64::MAX).max(limits::START_DEADLINE_MS);
    let next = Task {
        id: TaskId::new(now_ms, random()),
        start_by_ms: now_ms.saturating_add(patience_ms),
        attempt: lost.attempt + 1,
        retry_of: Some(lost.id),
        ..Task::queued(lost.session, lost.node, lost.origin.clone(), lost.spec.clone(), lost.queue_timeout_ms, now_ms)
    };
    lost.retried_as = Some(next.id);
    let id = next.id;
    TASKS_OF_SESSION.insert(change.tx, &next.session, &id)?;
    OPEN_TASKS_OF_NODE.insert(change.tx, &next.node, &id)?;
    OPEN_TASKS_OF_SESSION.insert(change.tx, &next.session, &id)?;
    change.audit("task.retry", &object(id), json!({ "retry_of": lost.id }).to_string().as_bytes())?;
    put(change, &next)?;
    let (mesh, outputs) = (mesh.cloned(), outputs.clone());
    change.then(move || {
        outputs.begin(id);
        if let Some(mesh) = mesh {
            mesh.deliver(next, false);
        }
    });
    Ok(())
}
