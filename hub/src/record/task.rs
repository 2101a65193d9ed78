//! Tasks, who asked for them, what became of them and what they printed.

use std::collections::BTreeMap;

use cortex_wire::{
    id::{NodeId, SessionId, TaskId, UserId},
    limits,
    pool::Placement,
    schema,
    task::State,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Digest, Mode, approval};

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
