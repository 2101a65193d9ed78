//! What may run on a node.

use cortex_wire::{limits, schema};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Digest, all, long, short};

/// How a task is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// As the user, with limits.
    Permissive,
    /// In a sandbox, or not at all.
    Strict,
}

impl From<Mode> for schema::SandboxMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Permissive => Self::Permissive,
            Mode::Strict => Self::Strict,
        }
    }
}

/// What the hub wants a node to allow; the node's own file is the ceiling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxPolicy {
    /// The weakest mode the node may run.
    pub mode: Mode,
    /// Empty: everything that is not denied.
    pub allow: Vec<CommandRule>,
    /// A person must say yes first; wins over `allow`.
    #[serde(default)]
    pub ask: Vec<CommandRule>,
    /// Wins over both.
    pub deny: Vec<CommandRule>,
    /// The same as `ask` for a short list of dangerous commands, where a program asks for a task: with an API token, or through MCP.
    #[serde(default = "yes")]
    pub ask_dangerous: bool,
    /// Tasks at a time.
    pub task_slots: u32,
    /// Upper bound of a task's run time; 0: none.
    pub run_timeout_ms: u64,
    /// Hosts that sandboxed tasks may reach, where the node's own file allows them, too: `name`, `name:port`, `*.name` or `*`. Empty: none.
    #[serde(default)]
    pub network: Vec<String>,
    /// Grows with each change.
    #[serde(default)]
    pub sequence: u64,
}

fn yes() -> bool {
    true
}

/// The first words of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommandRule {
    /// The words; the first one matches by file name too.
    pub prefix: Vec<String>,
    /// For whoever is refused or asked.
    #[serde(default)]
    pub reason: String,
    /// Scripts of which the rule must match a command. Checked when the policy is stored.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matching: Vec<String>,
    /// Scripts of which it must match none.
    #[serde(default, rename = "not_match", skip_serializing_if = "Vec::is_empty")]
    pub not_matching: Vec<String>,
}

impl Default for SandboxPolicy {
    /// PERMISSIVE with 64 slots, no rules, and a person asked before programs do something dangerous.
    fn default() -> Self {
        Self {
            mode: Mode::Permissive,
            allow: vec![],
            ask: vec![],
            deny: vec![],
            ask_dangerous: true,
            task_slots: 64,
            run_timeout_ms: 0,
            network: vec![],
            sequence: 1,
        }
    }
}

impl From<&SandboxPolicy> for schema::SandboxPolicy {
    fn from(policy: &SandboxPolicy) -> Self {
        let rules = |list: &[CommandRule]| {
            list.iter().map(|rule| schema::CommandRule { prefix: rule.prefix.clone(), reason: rule.reason.clone() }).collect()
        };
        Self {
            mode: schema::SandboxMode::from(policy.mode).into(),
            allow: rules(&policy.allow),
            ask: rules(&policy.ask),
            deny: rules(&policy.deny),
            ask_dangerous: policy.ask_dangerous,
            task_slots: policy.task_slots,
            run_timeout_ms: policy.run_timeout_ms,
            sequence: policy.sequence,
            network: policy.network.clone(),
        }
    }
}

impl From<&schema::SandboxPolicy> for SandboxPolicy {
    fn from(wire: &schema::SandboxPolicy) -> Self {
        let rules = |list: &[schema::CommandRule]| {
            list.iter()
                .take(2 * limits::POLICY_RULES)
                .map(|rule| CommandRule { prefix: all(&rule.prefix), reason: long(&rule.reason), ..CommandRule::default() })
                .collect()
        };
        Self {
            mode: if wire.mode() == schema::SandboxMode::Strict { Mode::Strict } else { Mode::Permissive },
            allow: rules(&wire.allow),
            ask: rules(&wire.ask),
            deny: rules(&wire.deny),
            ask_dangerous: wire.ask_dangerous,
            task_slots: wire.task_slots,
            run_timeout_ms: wire.run_timeout_ms,
            network: wire.network.iter().take(limits::POLICY_RULES).map(|host| short(host)).collect(),
            sequence: wire.sequence,
        }
    }
}

/// The policy that is in force on a node, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyInForce {
    /// Of the hub's policy it is made of, hexadecimal.
    #[schema(value_type = String)]
    pub hash: Digest,
    /// That policy under the node's own limits.
    pub policy: SandboxPolicy,
    /// Why the last policy that was sent is not in force.
    pub problem: Option<String>,
}
