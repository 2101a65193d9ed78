//! Which nodes are there, in memory: what the mesh saw last.

use cortex_wire::{id::NodeId, schema::HealthReport};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    hub::Hub,
    record::{Disconnect, Health, Node},
    store::StoreError,
};

/// How a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Connected and well.
    Online,
    /// Connected, and something is not well.
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
    /// Since when; `None`: since before the hub started.
    pub since_ms: Option<i64>,
    /// The last sign of life.
    pub last_seen_at_ms: Option<i64>,
    /// The relay it is behind.
    pub relay: Option<String>,
    /// "relay", "direct", "tcp".
    pub path: Option<String>,
    /// End to end.
    pub rtt_us: Option<u64>,
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

/// All nodes that were seen since the hub started.
#[derive(Debug, Default)]
pub struct PresenceTable {}

impl PresenceTable {
    /// What is known of a node now.
    pub fn of(&self, node: &Node) -> Presence {
        let _ = node;
        todo!()
    }

    /// Whether the node has a connection.
    pub fn is_connected(&self, node: NodeId) -> bool {
        let _ = node;
        todo!()
    }
}

impl Hub {
    /// A node has connected and registered. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn node_online(&self, node: NodeId, connection: Connection) -> Result<(), StoreError> {
        let _ = (node, connection);
        todo!()
    }

    /// A heartbeat. Nothing is stored unless the node's state changed. For the mesh.
    pub fn node_health(&self, node: NodeId, connection: u64, report: &HealthReport) {
        let _ = (node, connection, report);
        todo!()
    }

    /// A connection has ended; nothing happens when the node has a newer one. An ephemeral node is removed. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn node_offline(&self, node: NodeId, connection: u64, reason: &str) -> Result<(), StoreError> {
        let _ = (node, connection, reason);
        todo!()
    }
}
