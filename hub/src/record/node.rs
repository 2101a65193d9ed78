//! Nodes, what they say of themselves and how they do.

use std::collections::BTreeMap;

use cortex_wire::{
    id::{InviteId, NodeId, UserId},
    limits, schema,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{PolicyInForce, SandboxPolicy, all, long, short};

/// Whether a node may work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It may.
    Active,
    /// Its owner has to confirm its fingerprint first.
    Pending,
    /// Its owner has shut it out.
    Revoked,
}

/// Which ways a node's packets may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathPolicy {
    /// Directly where that works, else through a relay.
    #[default]
    Auto,
    /// Tasks only while there is a direct way. The connection itself is still made through a relay, which sees sealed packets.
    DirectOnly,
    /// Through a relay; neither end sends the other a packet directly.
    RelayOnly,
}

impl PathPolicy {
    /// As nodes are told.
    pub fn mode(self) -> schema::DirectMode {
        match self {
            Self::Auto => schema::DirectMode::Auto,
            Self::DirectOnly => schema::DirectMode::DirectOnly,
            Self::RelayOnly => schema::DirectMode::RelayOnly,
        }
    }
}

/// A peer as the hub sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its public key.
    pub id: NodeId,
    /// Whose it is.
    pub owner: UserId,
    /// What its owner calls it.
    pub name: String,
    /// For people and selectors.
    pub labels: BTreeMap<String, String>,
    /// Whether it may work.
    pub standing: Standing,
    /// When it was enrolled.
    pub created_at_ms: i64,
    /// When its owner confirmed it; at once where no approval was asked for.
    pub approved_at_ms: Option<i64>,
    /// The invite it came with.
    pub invite: InviteId,
    /// Removed when it disconnects.
    pub ephemeral: bool,
    /// Other users who may see it and attach it to their sessions.
    #[serde(default)]
    pub shared_with: Vec<UserId>,
    /// Program and version.
    pub agent: String,
    /// What it is and has.
    pub capabilities: Capabilities,
    /// What the hub wants it to allow.
    pub policy: SandboxPolicy,
    /// Which ways its packets may go.
    #[serde(default)]
    pub path_policy: PathPolicy,
    /// Since when it takes no new tasks, because its owner said so.
    #[serde(default)]
    pub drained_at_ms: Option<i64>,
    /// What it reported of its own limits.
    #[serde(default)]
    pub ceiling: Option<SandboxPolicy>,
    /// What it reported to be in force.
    #[serde(default)]
    pub in_force: Option<PolicyInForce>,
    /// The last time it was known to be there; while it is online, presence knows better.
    pub last_seen_at_ms: Option<i64>,
    /// How its last connection ended.
    pub last_disconnect: Option<Disconnect>,
    /// Why it was last turned away.
    pub refusal: Option<NodeRefusal>,
    /// The relay it was last seen behind.
    pub relay: Option<String>,
    /// Where its packets came from.
    pub observed_address: Option<String>,
}

/// The end of a node's connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disconnect {
    /// For a person.
    pub reason: String,
    /// When.
    pub at_ms: i64,
}

/// Why a node was turned away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRefusal {
    /// Stable code.
    pub code: String,
    /// For a person.
    pub reason: String,
    /// When.
    pub at_ms: i64,
}

/// What a node is and has, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Capabilities {
    /// "linux", "macos", "windows".
    pub os: String,
    /// "Debian GNU/Linux 12".
    pub os_version: String,
    /// Kernel release.
    pub kernel: String,
    /// "x86_64".
    pub architecture: String,
    /// Host name.
    pub hostname: String,
    /// CPU model.
    pub cpu_model: String,
    /// Logical CPUs.
    pub cpu_count: u32,
    /// Main memory.
    pub memory_bytes: u64,
    /// The disk where workspaces live.
    pub disk_bytes: u64,
    /// GPU names.
    pub gpus: Vec<String>,
    /// Absolute paths.
    pub shells: Vec<String>,
    /// Common tools and their versions.
    pub tools: BTreeMap<String, String>,
    /// Path of the browser.
    pub browser: Option<String>,
    /// How pages are confined in it: "chromium" (by its own sandbox) or "chromium_no_sandbox"; null: it was not started yet.
    #[serde(default)]
    pub browser_sandbox: Option<String>,
    /// "permissive" or "strict".
    pub sandbox_level: String,
    /// Why it is not strict, each with its fix.
    pub sandbox_missing: Vec<String>,
    /// Tasks at a time.
    pub task_slots: u32,
    /// "shell".
    pub skills: Vec<String>,
    /// It is one.
    pub virtual_machine: bool,
    /// It is in one.
    pub container: bool,
}

impl From<&schema::Capabilities> for Capabilities {
    fn from(wire: &schema::Capabilities) -> Self {
        let sandbox = wire.sandbox.clone().unwrap_or_default();
        Self {
            os: short(&wire.os),
            os_version: short(&wire.os_version),
            kernel: short(&wire.kernel),
            architecture: short(&wire.architecture),
            hostname: short(&wire.hostname),
            cpu_model: long(&wire.cpu_model),
            cpu_count: wire.cpu_count,
            memory_bytes: wire.memory_bytes,
            disk_bytes: wire.disk_bytes,
            gpus: all(&wire.gpus),
            shells: all(&wire.shells),
            tools: wire.tools.iter().take(limits::CAPABILITY_ENTRIES).map(|tool| (short(&tool.name), short(&tool.version))).collect(),
            browser: Some(long(&wire.browser)).filter(|path| !path.is_empty()),
            browser_sandbox: Some(short(&wire.browser_sandbox)).filter(|level| !level.is_empty()),
            sandbox_level: short(&sandbox.level),
            sandbox_missing: all(&sandbox.missing),
            task_slots: wire.task_slots,
            skills: all(&wire.skills),
            virtual_machine: wire.virtual_machine,
            container: wire.container,
        }
    }
}

/// How a node does, from its heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Of all cores, 0 to 100.
    pub cpu_percent: f64,
    /// Main memory in use.
    pub memory_used_bytes: u64,
    /// Main memory.
    pub memory_total_bytes: u64,
    /// Free where workspaces live.
    pub disk_free_bytes: u64,
    /// The disk where workspaces live.
    pub disk_total_bytes: u64,
    /// Load average over a minute.
    pub load_1m: f64,
    /// Since the machine started.
    pub uptime_s: u64,
    /// Tasks that run there.
    pub running_tasks: u32,
    /// Resident memory of the peer.
    pub peer_rss_bytes: u64,
}

impl From<&schema::HealthReport> for Health {
    fn from(wire: &schema::HealthReport) -> Self {
        // JSON has no NaN and no infinity; a node may send both.
        let finite = |value: f64, most: f64| if value.is_finite() { value.clamp(0.0, most) } else { 0.0 };
        Self {
            cpu_percent: finite(wire.cpu_percent, 100.0),
            memory_used_bytes: wire.memory_used_bytes,
            memory_total_bytes: wire.memory_total_bytes,
            disk_free_bytes: wire.disk_free_bytes,
            disk_total_bytes: wire.disk_total_bytes,
            load_1m: finite(wire.load_1m, 1e6),
            uptime_s: wire.uptime_s,
            running_tasks: wire.running_tasks,
            peer_rss_bytes: wire.peer_rss_bytes,
        }
    }
}
