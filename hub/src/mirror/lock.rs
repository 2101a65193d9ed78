//! Locks: leases on part of a workspace, and the pause of all nodes.
//!
//! A lock has an owner, ends by itself, and carries a fence: a number that grows with each lease, so that a holder who slept through the end of its lease is
//! found out when it writes with the old number. Under a lock others' writes through the API are refused, and nodes hold their edits back until it ends.

use std::{sync::Arc, time::Duration};

use cortex_wire::{limits, mirror::path::RelPath, schema::WorkspaceLock, text::clean};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::{
    MirrorError,
    commit::{By, Plan},
    workspace::{Head, Workspace},
};
use crate::{
    account::Actor,
    hub::{Clock, Hub, lock as guard},
    record::mirror::{Author, LockRecord},
};

/// The shortest lease.
const LEAST_MS: i64 = 1_000;
/// The longest lease: whoever wants more renews it.
const MOST_MS: i64 = 24 * 60 * 60 * 1_000;
/// Leases on one workspace.
const LOCKS: usize = 256;

/// A lock as nodes are told.
pub(super) fn to_message(lock: &LockRecord) -> WorkspaceLock {
    WorkspaceLock {
        prefix: lock.prefix.clone(),
        owner: lock.name.clone(),
        owner_node: match lock.owner {
            Author::Node(node) => node.key().to_bytes(),
            Author::User(_) => bytes::Bytes::new(),
        },
        fence: lock.fence,
        expires_at_ms: lock.expires_at_ms,
    }
}

impl LockRecord {
    fn path(&self) -> RelPath {
        RelPath::prefix(&self.prefix).unwrap_or_else(|_| RelPath::root())
    }

    /// Whether it has something to say about a path: it covers it, or lies below it.
    fn meets(&self, path: &RelPath) -> bool {
        let own = self.path();
        path.starts_with(&own) || own.starts_with(path)
    }
}

/// Refuses a write of somebody at the hub that another's lock forbids, or whose own lease has ended.
pub(super) fn check(head: &Head, actor: &Actor, fence: Option<u64>, path: &RelPath, now_ms: i64) -> Result<(), MirrorError> {
    let mut held = head.record.locks.iter().filter(|lock| lock.expires_at_ms > now_ms && lock.meets(path));
    match fence {
        Some(fence) if !held.clone().any(|lock| lock.fence == fence && lock.owner == Author::User(actor.user)) => {
            Err(MirrorError::LockLost)
        }
        Some(_) => Ok(()),
        None => match held.find(|lock| lock.owner != Author::User(actor.user)) {
            Some(lock) => Err(MirrorError::Locked { prefix: lock.prefix.clone(), owner: lock.name.clone() }),
            None => Ok(()),
        },
    }
}

/// A lease to be had.
#[derive(Debug, Clone)]
pub struct NewLock {
    /// What it covers; the root: everything.
    pub prefix: RelPath,
    /// How long, if it is not renewed.
    pub lease_ms: i64,
    /// For people; empty: the user's name.
    pub name: String,
    /// The fence of the lease to renew.
    pub fence: Option<u64>,
}

fn take(head: &Head, actor: &Actor, new: &NewLock, now_ms: i64) -> Result<Plan, MirrorError> {
    let mut plan = Plan::of(head);
    let record = &mut plan.record;
    record.locks.retain(|lock| lock.expires_at_ms > now_ms);
    let owner = Author::User(actor.user);
    let expires_at_ms = now_ms.saturating_add(new.lease_ms.clamp(LEAST_MS, MOST_MS));
    if let Some(fence) = new.fence {
        let lock = record.locks.iter_mut().find(|lock| lock.fence == fence && lock.owner == owner).ok_or(MirrorError::LockLost)?;
        lock.expires_at_ms = expires_at_ms;
        return Ok(plan);
    }
    if let Some(lock) = record.locks.iter().find(|lock| lock.meets(&new.prefix)) {
        return Err(MirrorError::Locked { prefix: lock.prefix.clone(), owner: lock.name.clone() });
    }
    if record.locks.len() >= LOCKS {
        return Err(MirrorError::Invalid(format!("a workspace has at most {LOCKS} locks")));
    }
    record.last_fence += 1;
    let name = clean(&new.name, limits::NAME_BYTES);
    let name = if name.is_empty() { actor.name.clone() } else { name };
    record.locks.push(LockRecord { prefix: new.prefix.to_string(), owner, name: name.clone(), fence: record.last_fence, expires_at_ms });
    plan.event = Some(("workspace_locked", json!({ "prefix": new.prefix.as_str(), "owner": name, "expires_at_ms": expires_at_ms })));
    plan.what = "lock".into();
    Ok(plan)
}

/// `force`: also somebody else's.
fn give_back(head: &Head, actor: &Actor, fence: u64, force: bool, now_ms: i64) -> Result<Plan, MirrorError> {
    let mut plan = Plan::of(head);
    let locks = &mut plan.record.locks;
    locks.retain(|lock| lock.expires_at_ms > now_ms);
    let at = locks.iter().position(|lock| lock.fence == fence).ok_or(MirrorError::LockLost)?;
    let lock = locks.remove(at);
    if lock.owner != Author::User(actor.user) && !force {
        return Err(MirrorError::Locked { prefix: lock.prefix, owner: lock.name });
    }
    plan.event = Some(("workspace_unlocked", json!({ "prefix": lock.prefix, "owner": lock.name, "by": actor.name })));
    plan.what = "unlock".into();
    Ok(plan)
}

impl Workspace {
    /// Takes or renews a lease.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn lock(self: &Arc<Self>, hub: &Arc<Hub>, actor: &Actor, new: NewLock) -> Result<LockRecord, MirrorError> {
        let (who, now_ms, renewed) = (actor.clone(), hub.now_ms(), new.fence);
        let outcome = self.commit(hub, By::Actor(actor.clone()), move |head| take(head, &who, &new, now_ms)).await?;
        let record = &outcome.head.record;
        let fence = renewed.unwrap_or(record.last_fence);
        let lock = record.locks.iter().find(|lock| lock.fence == fence).cloned().ok_or(MirrorError::LockLost)?;
        self.watch_locks(hub.clock());
        Ok(lock)
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn unlock(self: &Arc<Self>, hub: &Arc<Hub>, actor: &Actor, fence: u64, force: bool) -> Result<(), MirrorError> {
        let (who, now_ms) = (actor.clone(), hub.now_ms());
        self.commit(hub, By::Actor(actor.clone()), move |head| give_back(head, &who, fence, force, now_ms)).await.map(drop)
    }

    /// Holds all nodes' edits back, or lets them go.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn pause(self: &Arc<Self>, hub: &Arc<Hub>, actor: &Actor, paused: bool) -> Result<(), MirrorError> {
        let name = actor.name.clone();
        let decide = move |head: &Head| {
            let mut plan = Plan::of(head);
            plan.record.paused = paused;
            plan.event = Some((if paused { "workspace_paused" } else { "workspace_resumed" }, json!({ "by": name })));
            plan.what = if paused { "pause" } else { "resume" }.into();
            Ok(plan)
        };
        self.commit(hub, By::Actor(actor.clone()), decide).await.map(drop)
    }

    /// Nodes learn that a lock is over from the hub's clock: their own may be wrong.
    pub(super) fn watch_locks(self: &Arc<Self>, clock: Clock) {
        let watched = Arc::downgrade(self);
        let watch = async move {
            while let Some(workspace) = watched.upgrade() {
                let Some(next) = workspace.head().record.locks.iter().map(|lock| lock.expires_at_ms).min() else { return };
                drop(workspace);
                let left = u64::try_from(next.saturating_sub(clock.now_ms())).unwrap_or(0);
                tokio::time::sleep(Duration::from_millis(left + 1)).await;
                if let Some(workspace) = watched.upgrade() {
                    workspace.drop_ended_locks(clock.now_ms()).await;
                }
            }
        };
        *guard(&self.lock_watch) = Some(AbortOnDropHandle::new(tokio::spawn(watch)));
    }
}
