//! Which nodes are there, in memory: what the mesh saw last.
//!
//! A node's row says what was; this says what is. Only changes reach the store (one transaction each, with a notice to everybody who may see
//! the node); heartbeats do not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use cortex_wire::{id::NodeId, limits, schema::HealthReport, text::clean};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::{
    hub::{Hub, lock},
    node,
    record::{Disconnect, Health, Node, Standing, tables::NODES},
    store::StoreError,
};

/// Below it a disk counts as full: a workspace needs some room to be written at all.
const DISK_LOW_BYTES: u64 = 256 * 1024 * 1024;
/// Above it memory counts as full, per cent.
const MEMORY_HIGH: u64 = 97;

/// How far the stored time of a node's last sign of life may be behind: what is shown when the hub was killed.
const LAST_SEEN_MS: i64 = 10 * 60 * 1000;

/// How a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Connected and well.
    Online,
    /// Connected, and short of memory or disk.
    Degraded,
    /// Not connected.
    Offline,
    /// Connected or not, it waits for its owner's approval.
    Pending,
    /// It was turned away.
    Refused,
    /// Its owner has shut it out.
    Revoked,
}

/// What is known of a node now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Presence {
    /// How it is there.
    pub state: Reach,
    /// Since when it is connected or not; `None`: since before the hub started.
    pub since_ms: Option<i64>,
    /// The last sign of life.
    pub last_seen_at_ms: Option<i64>,
    /// The relay it is behind.
    pub relay: Option<String>,
    /// "relay", "direct", "tcp".
    pub path: Option<String>,
    /// Why it is that one, as the node says.
    pub path_reason: Option<String>,
    /// End to end.
    pub rtt_us: Option<u64>,
    /// The relay that it holds ready, should that one fail.
    pub standby: Option<String>,
    /// How long the way to the node through it would be.
    pub standby_rtt_us: Option<u64>,
    /// Its last heartbeat.
    pub health: Option<Health>,
    /// How its last connection ended.
    pub last_disconnect: Option<Disconnect>,
}

/// A node's new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Tells connections of one node apart.
    pub id: u64,
    /// The relay it came through.
    pub relay: Option<String>,
    /// "relay", "direct", "tcp".
    pub path: Option<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    connection: Option<Connection>,
    since_ms: i64,
    last_seen_at_ms: i64,
    /// When that was last stored.
    stored_at_ms: i64,
    path_reason: Option<String>,
    rtt_us: Option<u64>,
    standby: Option<(String, u64)>,
    health: Option<Health>,
    last_disconnect: Option<Disconnect>,
}

/// What a heartbeat changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// How the node is there.
    State,
    /// By which way it is there.
    Path,
    /// Nothing, but it is time to store that it is there.
    Due,
    /// Nothing.
    Same,
}

impl Entry {
    fn new(now_ms: i64, connection: Option<Connection>, last_disconnect: Option<Disconnect>) -> Self {
        Self {
            connection,
            since_ms: now_ms,
            last_seen_at_ms: now_ms,
            stored_at_ms: now_ms,
            path_reason: None,
            rtt_us: None,
            standby: None,
            health: None,
            last_disconnect,
        }
    }

    fn reach(&self, standing: Standing) -> Reach {
        match (standing, &self.connection) {
            (Standing::Revoked, _) => Reach::Revoked,
            (Standing::Pending, _) => Reach::Pending,
            (Standing::Active, None) => Reach::Offline,
            (Standing::Active, Some(_)) if self.health.as_ref().is_some_and(is_short) => Reach::Degraded,
            (Standing::Active, Some(_)) => Reach::Online,
        }
    }
}

fn is_short(health: &Health) -> bool {
    let disk = health.disk_total_bytes > 0 && health.disk_free_bytes < DISK_LOW_BYTES;
    let memory = health.memory_total_bytes > 0 && health.memory_used_bytes / (health.memory_total_bytes / 100).max(1) >= MEMORY_HIGH;
    disk || memory
}

/// All nodes that were seen since the hub started. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PresenceTable {
    entries: Arc<Mutex<HashMap<NodeId, Entry>>>,
}

impl PresenceTable {
    /// What is known of a node now.
    pub fn of(&self, node: &Node) -> Presence {
        let entry = lock(&self.entries).get(&node.id).cloned();
        let mut state = match (&entry, node.standing) {
            (Some(entry), standing) => entry.reach(standing),
            (None, Standing::Active) => Reach::Offline,
            (None, Standing::Pending) => Reach::Pending,
            (None, Standing::Revoked) => Reach::Revoked,
        };
        let last_seen_at_ms = entry.as_ref().map(|entry| entry.last_seen_at_ms).max(node.last_seen_at_ms);
        let refused_at_ms = node.refusal.as_ref().map(|refusal| refusal.at_ms);
        if state == Reach::Offline && refused_at_ms > last_seen_at_ms {
            state = Reach::Refused;
        }
        let connection = entry.as_ref().and_then(|entry| entry.connection.clone());
        Presence {
            state,
            since_ms: entry.as_ref().map(|entry| entry.since_ms),
            last_seen_at_ms,
            relay: connection.as_ref().and_then(|connection| connection.relay.clone()),
            path: connection.and_then(|connection| connection.path),
            path_reason: entry.as_ref().and_then(|entry| entry.path_reason.clone()),
            rtt_us: entry.as_ref().and_then(|entry| entry.rtt_us),
            standby: entry.as_ref().and_then(|entry| Some(entry.standby.as_ref()?.0.clone())),
            standby_rtt_us: entry.as_ref().and_then(|entry| Some(entry.standby.as_ref()?.1)),
            health: entry.as_ref().and_then(|entry| entry.health.clone()),
            last_disconnect: entry.and_then(|entry| entry.last_disconnect).or_else(|| node.last_disconnect.clone()),
        }
    }

    /// The last sign of life of a node since the hub started.
    pub fn last_seen_ms(&self, node: NodeId) -> Option<i64> {
        lock(&self.entries).get(&node).map(|entry| entry.last_seen_at_ms)
    }

    /// Whether the node has a connection.
    pub fn is_connected(&self, node: NodeId) -> bool {
        lock(&self.entries).get(&node).is_some_and(|entry| entry.connection.is_some())
    }

    /// How many nodes have one.
    pub fn connected(&self) -> usize {
        lock(&self.entries).values().filter(|entry| entry.connection.is_some()).count()
    }

    pub(crate) fn forget(&self, node: NodeId) {
        lock(&self.entries).remove(&node);
    }

    fn connect(&self, node: NodeId, connection: Connection, now_ms: i64) {
        let mut entries = lock(&self.entries);
        let last_disconnect = entries.get(&node).and_then(|entry| entry.last_disconnect.clone());
        entries.insert(node, Entry::new(now_ms, Some(connection), last_disconnect));
    }

    /// `false` when the node has a newer connection, or none.
    fn disconnect(&self, node: NodeId, connection: u64, reason: Disconnect) -> bool {
        let mut entries = lock(&self.entries);
        let Some(entry) = entries.get_mut(&node).filter(|entry| entry.connection.as_ref().is_some_and(|now| now.id == connection)) else {
            return false;
        };
        *entry = Entry::new(reason.at_ms, None, Some(reason));
        true
    }

    /// `None`: not of this connection.
    fn hear(&self, node: NodeId, connection: u64, report: &HealthReport, now_ms: i64) -> Option<Heard> {
        let mut entries = lock(&self.entries);
        let entry = entries.get_mut(&node)?;
        let link = entry.connection.as_mut().filter(|now| now.id == connection)?;
        let text = |text: &str| Some(clean(text, limits::NAME_BYTES)).filter(|text| !text.is_empty());
        let way = (link.relay.clone(), link.path.clone());
        link.path = text(&report.path).or(link.path.take());
        link.relay = text(&report.relay_id).or(link.relay.take());
        let differs = |was: &Option<String>, now: &Option<String>| was.is_some() && was != now;
        let moved = differs(&way.0, &link.relay) || differs(&way.1, &link.path);
        let before = entry.reach(Standing::Active);
        entry.last_seen_at_ms = now_ms;
        entry.path_reason = text(&report.path_reason);
        entry.rtt_us = Some(report.rtt_us).filter(|rtt| *rtt > 0).or(entry.rtt_us);
        entry.standby = text(&report.standby_id).map(|relay| (relay, report.standby_rtt_us));
        entry.health = Some(report.into());
        let heard = match entry.reach(Standing::Active) != before {
            true => Heard::State,
            false if moved => Heard::Path,
            false if now_ms - entry.stored_at_ms >= LAST_SEEN_MS => Heard::Due,
            false => Heard::Same,
        };
        if heard != Heard::Same {
            entry.stored_at_ms = now_ms;
        }
        Some(heard)
    }
}

impl Hub {
    /// A node has connected and registered. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn node_online(&self, node: NodeId, connection: Connection) -> Result<(), StoreError> {
        let relay = connection.relay.clone();
        self.presence.connect(node, connection, self.now_ms());
        let presence = self.presence.clone();
        self.change(format!("node:{node}"), move |change| {
            let Some(row) = NODES.get(change.tx, &node)? else { return Ok(()) };
            let row = Node { last_seen_at_ms: Some(change.now_ms), relay: relay.or(row.relay), refusal: None, ..row };
            NODES.put(change.tx, &node, &row)?;
            node::tell(change, &presence, &row, "online")
        })
        .await
    }

    /// A heartbeat. Nothing is stored unless the node's state changed, or ten minutes have passed. For the mesh.
    pub fn node_health(&self, node: NodeId, connection: u64, report: &HealthReport) {
        let now_ms = self.now_ms();
        let Some(heard) = self.presence.hear(node, connection, report, now_ms) else { return };
        if heard != Heard::Same {
            self.store_presence(node, heard);
        }
        if self.feeds.has_followers() {
            self.show_health(node, now_ms);
        }
    }

    /// Stores that a node is there and how, without keeping the mesh waiting.
    fn store_presence(&self, node: NodeId, heard: Heard) {
        let presence = self.presence.clone();
        let work = self.change_later(format!("node:{node}"), move |change| {
            let Some(row) = NODES.get(change.tx, &node)? else { return Ok(()) };
            let relay = presence.of(&row).relay.or(row.relay.clone());
            let row = Node { last_seen_at_ms: Some(change.now_ms), relay, ..row };
            NODES.put(change.tx, &node, &row)?;
            match heard {
                Heard::State => node::tell(change, &presence, &row, "health"),
                Heard::Path => node::tell(change, &presence, &row, "path"),
                Heard::Due | Heard::Same => Ok(()),
            }
        });
        tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::warn!(%node, %error, "could not store a node's state");
            }
        });
    }

    /// Shows a heartbeat to those who follow now.
    fn show_health(&self, node: NodeId, now_ms: i64) {
        let (db, feeds, presence) = (self.db.clone(), self.feeds.clone(), self.presence.clone());
        tokio::spawn(async move {
            let read = db.read(move |tx| match NODES.get(tx, &node)? {
                Some(row) => Ok::<_, StoreError>(Some((node::audience(tx, &row)?, row))),
                None => Ok(None),
            });
            if let Ok(Some((users, row))) = read.await {
                let now = presence.of(&row);
                let data = json!({
                    "node_id": node, "state": now.state, "health": now.health, "rtt_us": now.rtt_us, "relay": now.relay, "path": now.path, "path_reason": now.path_reason,
                    "standby": now.standby, "standby_rtt_us": now.standby_rtt_us,
                });
                feeds.tell_live(users, now_ms, "node_health", data);
            }
        });
    }

    /// A connection has ended; nothing happens when the node has a newer one. An ephemeral node is removed. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn node_offline(&self, node: NodeId, connection: u64, reason: &str) -> Result<(), StoreError> {
        let disconnect = Disconnect { reason: clean(reason, limits::TEXT_BYTES), at_ms: self.now_ms() };
        if !self.presence.disconnect(node, connection, disconnect.clone()) {
            return Ok(());
        }
        let (presence, endings) = (self.presence.clone(), self.endings_of(node).await?);
        self.change(format!("node:{node}"), move |change| {
            let Some(row) = NODES.get(change.tx, &node)? else { return Ok(()) };
            // It may have come back while this waited; then it stays.
            if row.ephemeral && !presence.is_connected(node) {
                return node::remove(change, &presence, &row, endings, "an ephemeral node has left");
            }
            let row = Node { last_seen_at_ms: Some(disconnect.at_ms), last_disconnect: Some(disconnect), ..row };
            NODES.put(change.tx, &node, &row)?;
            node::tell(change, &presence, &row, "offline")
        })
        .await
    }
}

#[cfg(test)]
mod tests;
