//! What the hub stores, as plain data.
//!
//! Times are milliseconds since the Unix epoch (`*_at_ms`). Strings that came from nodes have gone through
//! [`cortex_wire::text::clean`] before they are here. New fields get `#[serde(default)]`; a change that old rows do not fit is a
//! step in [`crate::store::migrate`].

use std::collections::BTreeMap;

use cortex_wire::{
    id::{InviteId, NodeId, SessionId, TaskId, UserId},
    limits,
    pool::Placement,
    schema,
    task::State,
    text::clean,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub mod approval;
pub mod mirror;
pub mod tables;

/// What an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees what is shared with it, and changes nothing.
    Viewer,
    /// Has nodes and sessions of its own.
    Member,
    /// Also manages users, and reads the audit log.
    Admin,
}

/// What an API token may do, within its user's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// See.
    Read,
    /// Run and cancel tasks, write messages.
    Dispatch,
    /// Nodes, invites, sessions, members, tokens.
    Manage,
    /// Users and the audit log.
    Admin,
}

/// A person with an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The id.
    pub id: UserId,
    /// The login name, lower case.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Argon2id, in PHC form.
    pub password_hash: String,
    /// When it was made.
    pub created_at_ms: i64,
    /// No login, no token of it is good.
    #[serde(default)]
    pub disabled: bool,
}

/// 32 bytes of a hash, as hexadecimal digits in JSON.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map(Self).map_err(|_| D::Error::custom("not 32 bytes"))
    }
}

/// A key for programs that act for a user. Its text is shown once and not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// The public part of its text.
    pub id: String,
    /// For whom it acts.
    pub user: UserId,
    /// A label.
    pub name: String,
    /// How far it reaches.
    pub scopes: Vec<Scope>,
    /// BLAKE3 of the secret part.
    pub hash: Digest,
    /// When it was made.
    pub created_at_ms: i64,
    /// Not good after this.
    pub expires_at_ms: Option<i64>,
    /// Written lazily: up to a minute behind.
    pub last_used_at_ms: Option<i64>,
}

/// A browser that is logged in. Stored under the hash of its cookie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginSession {
    /// Who.
    pub user: UserId,
    /// When the password was given.
    pub created_at_ms: i64,
    /// Written lazily: up to a minute behind.
    pub last_used_at_ms: i64,
    /// What the browser calls itself.
    pub agent: String,
}

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

fn short(text: &str) -> String {
    clean(text, limits::NAME_BYTES)
}

fn long(text: &str) -> String {
    clean(text, limits::TEXT_BYTES)
}

fn all(list: &[String]) -> Vec<String> {
    list.iter().take(limits::CAPABILITY_ENTRIES).map(|text| long(text)).collect()
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

/// A permission to enrol one node for one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// The id.
    pub id: InviteId,
    /// Who gets the node.
    pub owner: UserId,
    /// What the node will be called; empty: what it calls itself.
    pub name: String,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// The session the node is attached to.
    pub session: Option<SessionId>,
    /// BLAKE3 of the secret.
    pub secret_hash: Digest,
    /// When it was made.
    pub created_at_ms: i64,
    /// Not good after this.
    pub expires_at_ms: i64,
    /// The owner has to confirm the node's fingerprint.
    pub approval: bool,
    /// The node is removed when it disconnects.
    pub ephemeral: bool,
    /// The node that redeemed it.
    pub used_by: Option<NodeId>,
    /// When it was redeemed.
    pub used_at_ms: Option<i64>,
    /// When its owner took it back.
    pub revoked_at_ms: Option<i64>,
    /// How many tries were refused.
    pub refusals: u64,
    /// The last one of them.
    pub last_refusal: Option<InviteRefusal>,
}

/// A refused try to redeem an invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InviteRefusal {
    /// Stable code.
    pub code: String,
    /// For a person.
    pub reason: String,
    /// Of the key that tried.
    pub fingerprint: String,
    /// When.
    pub at_ms: i64,
}

/// Whether a session is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// It is.
    Active,
    /// Kept to be read.
    Archived,
}

/// What a member of a session may do there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Read.
    Viewer,
    /// Write messages, run tasks on its nodes, attach nodes of their own.
    Member,
}

/// Somebody a session is shared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// What they may do.
    pub role: MemberRole,
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The id.
    pub id: SessionId,
    /// The owner.
    pub user_id: UserId,
    /// For people.
    pub title: String,
    /// The attached nodes, in the order in which they came.
    pub nodes: Vec<NodeId>,
    /// Who else is in it.
    pub members: Vec<Member>,
    /// When it was made.
    pub created_at_ms: i64,
    /// When it was last changed.
    pub updated_at_ms: i64,
    /// Whether it is in use.
    pub status: SessionStatus,
    /// Grows when a node leaves: what is written afterwards is not for it.
    pub epoch: u64,
}

impl Session {
    /// Whether no node may ask for its contents now.
    pub fn has_no_reader(&self) -> bool {
        self.nodes.is_empty() || self.status == SessionStatus::Archived
    }
}

/// What a task is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskSpec {
    /// Program and arguments, or
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// an order for the session's browser, or
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub browser: Option<serde_json::Value>,
    /// a script for `shell`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// For `script`; none: the node's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Inside the workspace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cwd: String,
    /// Changes to the clean environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Standard input will be sent; otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// How it is confined; none: as the node's policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// From start to end; none: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_timeout_ms: Option<u64>,
    /// Without any output; none: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// How long a person is waited for, where one has to say yes; none: ten minutes. No answer means no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_timeout_ms: Option<u64>,
    /// It runs in a terminal, of this size at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// It goes on with the folder and the environment of the last command of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell_session: Option<String>,
    /// Both are forgotten first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shell_reset: bool,
    /// Variables, and the secrets that are their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// What it printed is forgotten a minute after its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forget_output: bool,
    /// Doing it twice does no harm.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idempotent: bool,
    /// How often it is done again when it is lost.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Characters, 1 to 1000 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Across.
    pub columns: u32,
    /// Down.
    pub rows: u32,
}

impl Default for TerminalSize {
    /// As terminals were for fifty years.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

impl From<TerminalSize> for schema::Terminal {
    fn from(size: TerminalSize) -> Self {
        Self { columns: size.columns, rows: size.rows }
    }
}

/// Who asked for a task, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Who.
    pub user: UserId,
    /// "ui", "api", "mcp", "demo".
    pub via: String,
    /// The API token.
    pub token: Option<String>,
}

/// What a task used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// From start to end.
    pub wall_ms: u64,
    /// CPU time in user mode.
    pub cpu_user_ms: u64,
    /// CPU time in the kernel.
    pub cpu_system_ms: u64,
    /// Largest resident memory of a process of it.
    pub peak_memory_bytes: u64,
}

/// The node's signed word about a task's end, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// A `TaskResponse`, base64.
    pub body: String,
    /// Over PAE of the result domain and the body, base64.
    pub signature: String,
}

/// What makes a task one of the pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// Which machines may run it; empty: every node of the session.
    #[serde(default)]
    pub selector: String,
    /// Why nobody could take it when it was dispatched.
    #[serde(default)]
    pub waits: Option<String>,
    /// How it came to the node that has it or had it last.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// A person was asked about it for the node that claimed it: from then on it is that node's, because the answer is for that node.
    #[serde(default)]
    pub settled: bool,
}

impl Task {
    /// Whether the pool may give it to somebody, or to somebody else.
    pub fn is_pooled(&self) -> bool {
        self.pool.as_ref().is_some_and(|pool| !pool.settled)
    }
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The id.
    pub id: TaskId,
    /// Where it belongs.
    pub session: SessionId,
    /// Which node runs it; while it waits in the pool, the one that would be asked first.
    pub node: NodeId,
    /// One of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolRecord>,
    /// Who asked.
    pub origin: Origin,
    /// Where it is in its life.
    pub state: State,
    /// What it is to do.
    pub spec: TaskSpec,
    /// Grows with each lease; a result of an older one does not count.
    pub fence: u64,
    /// From 1; grows with each retry.
    pub attempt: u32,
    /// The lost task that it does again.
    #[serde(default)]
    pub retry_of: Option<TaskId>,
    /// The task that does it again.
    #[serde(default)]
    pub retried_as: Option<TaskId>,
    /// How long it may wait for its node; 0: not at all.
    pub queue_timeout_ms: u64,
    /// When the hub accepted it.
    pub created_at_ms: i64,
    /// Expired when not started by then.
    pub start_by_ms: i64,
    /// When it was given to the node.
    pub leased_at_ms: Option<i64>,
    /// When it started, by the node's clock.
    pub started_at_ms: Option<i64>,
    /// When it ended: by the node's clock if it ran, else by the hub's.
    pub finished_at_ms: Option<i64>,
    /// When somebody asked to cancel it, while it runs on.
    #[serde(default)]
    pub cancel_asked_at_ms: Option<i64>,
    /// How it ended; or
    pub exit_code: Option<i32>,
    /// the signal that ended it.
    pub signal: Option<i32>,
    /// Stable code of why it was rejected, expired or lost.
    pub code: Option<String>,
    /// The same for a person.
    pub reason: Option<String>,
    /// What it used.
    pub usage: Option<Usage>,
    /// Everything it printed, also what was not kept.
    pub stdout_bytes: u64,
    /// Everything it printed, also what was not kept.
    pub stderr_bytes: u64,
    /// Some output was not kept.
    pub truncated: bool,
    /// It had left processes behind that held its output open.
    #[serde(default)]
    pub descendants_held_pipe: bool,
    /// It began before its folder held what was committed when it was given to the node.
    #[serde(default)]
    pub workspace_behind: bool,
    /// As the node found it.
    pub sandbox_level: Option<String>,
    /// Under which policy it was signed.
    pub policy_hash: Option<Digest>,
    /// The node's signed word.
    pub evidence: Option<Evidence>,
    /// What a person was asked, and what they said.
    #[serde(default)]
    pub approval: Option<approval::Approval>,
    /// Its node refused it once because of the policy, and it was given again.
    #[serde(default)]
    pub policy_retried: bool,
}

/// One row of a session's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which session.
    pub session: SessionId,
    /// From 1, without gaps; 0: live only, not stored.
    pub seq: u64,
    /// When.
    pub at_ms: i64,
    /// "message", "task", "node_attached", …
    pub kind: String,
    /// Fits the kind.
    pub data: serde_json::Value,
}

/// One row of the hub-wide feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// From 1, without gaps over all users; 0: live only, not stored.
    pub seq: u64,
    /// Who may see it.
    pub audience: Vec<UserId>,
    /// When.
    pub at_ms: i64,
    /// "node", "node_health", "invite", "task", "session", …
    pub kind: String,
    /// Fits the kind.
    pub data: serde_json::Value,
}

/// One link of the audit chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// From 1, without gaps.
    pub seq: u64,
    /// When.
    pub at_ms: i64,
    /// "user:…", "node:…" or "hub".
    pub actor: String,
    /// What was done: "node.approve".
    pub verb: String,
    /// To what: "node:…".
    pub object: String,
    /// BLAKE3 of what the row does not show, such as a command.
    pub digest: Digest,
    /// The link: a hash over the row before and this one.
    pub hash: Digest,
    /// In a checkpoint: the audit key's signature over `hash`, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// A dispatch that may be asked for again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyEntry {
    /// BLAKE3 of the request.
    pub request: Digest,
    /// What it became.
    pub task: TaskId,
    /// When.
    pub created_at_ms: i64,
}

/// The hash of the setup token that was printed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupToken {
    /// BLAKE3 of its text.
    pub hash: Digest,
}

/// What is stored of a task's output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// Standard output.
    pub stdout: StreamRecord,
    /// Standard error.
    pub stderr: StreamRecord,
    /// Nothing more will come.
    pub sealed: bool,
}

impl OutputRecord {
    /// Whether every byte that was printed can still be read.
    pub fn is_whole(&self) -> bool {
        self.stdout.is_whole() && self.stderr.is_whole()
    }
}

/// What is stored of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamRecord {
    /// All of it, base64.
    Inline(String),
    /// In a file.
    File {
        /// Length of the whole stream.
        total: u64,
        /// What is missing in it.
        holes: Vec<std::ops::Range<u64>>,
    },
}

impl StreamRecord {
    fn is_whole(&self) -> bool {
        match self {
            Self::Inline(_) => true,
            Self::File { total, holes } => *total <= limits::OUTPUT_HEAD_BYTES + limits::OUTPUT_TAIL_BYTES && holes.is_empty(),
        }
    }
}

impl Default for StreamRecord {
    fn default() -> Self {
        Self::Inline(String::new())
    }
}
