//! What a record says of a task. Values of variables and input are not here, on purpose.

use cortex_wire::{
    id::TaskId,
    limits,
    policy::approval,
    schema::{ShellTask, TaskRequest, TaskResponse, task_request::Kind, task_response},
    text,
};
use serde::{Deserialize, Serialize};

/// Of a command. More is clipped: its `subject` stands for all of it.
const COMMAND_BYTES: usize = 4096;

/// A task that is about to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Starting {
    /// The hub's key.
    pub hub: String,
    /// The conversation.
    pub session: String,
    /// The task.
    pub task: String,
    /// Of the grant that started it.
    pub fence: u64,
    /// Who asked, as the hub knows them.
    pub user: String,
    /// "ui", "api", "mcp", …
    pub via: String,
    /// The API token they came with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// Program and arguments, or
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// a script.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub script: String,
    /// For the script; empty: this node's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub shell: String,
    /// The command is longer than what stands here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clipped: bool,
    /// Inside the workspace.
    pub cwd: String,
    /// Names of variables that were set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// Hash of node, session, command, folder and environment.
    pub subject: String,
    /// Hash of the hub's policy.
    pub policy: String,
    /// How it is confined.
    pub sandbox: String,
    /// The person's yes that let it start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalNote>,
}

/// A person's yes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalNote {
    /// Its id.
    pub id: String,
    /// Who.
    pub user: String,
    /// How far it reaches.
    pub scope: String,
}

/// A task that is over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ending {
    /// The task.
    pub task: String,
    /// Of the grant that started it.
    pub fence: u64,
    /// As in its result; "not_started" when it did not start after all.
    pub state: String,
    /// How it ended; or
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// the signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why, when it did not end by itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// From start to end.
    pub wall_ms: u64,
    /// In user mode and in the kernel.
    pub cpu_ms: u64,
    /// Of one process.
    pub peak_memory_bytes: u64,
    /// All it printed.
    pub stdout_bytes: u64,
    /// All it complained.
    pub stderr_bytes: u64,
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// As much of a command as is kept.
fn clip<'a>(texts: impl Iterator<Item = &'a String>) -> (Vec<String>, bool) {
    let (mut left, mut kept, mut clipped) = (COMMAND_BYTES, Vec::new(), false);
    for text in texts {
        let fits = text.floor_char_boundary(left);
        clipped |= fits < text.len();
        if clipped && fits == 0 {
            break;
        }
        kept.push(text[..fits].to_owned());
        left = left.saturating_sub(fits + 1);
    }
    (kept, clipped)
}

/// What is no command, as one: what a browser is to do, without what is typed there.
fn spoken(kind: Option<&Kind>) -> Vec<String> {
    match kind {
        Some(Kind::Browser(task)) => {
            cortex_wire::browser::Order::parse(&task.order).map(|order| vec![order.action.summary()]).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

impl Starting {
    /// Of a task that may start.
    pub fn new(task: &TaskId, request: &TaskRequest, sandbox: &str) -> Self {
        let other;
        let shell = match &request.kind {
            Some(Kind::Shell(shell)) => shell,
            kind => {
                other = ShellTask { argv: spoken(kind.as_ref()), ..ShellTask::default() };
                &other
            }
        };
        let origin = request.origin.clone().unwrap_or_default();
        let (argv, long_argv) = clip(shell.argv.iter());
        let (script, long_script) = clip(std::iter::once(&shell.script));
        let names = shell.environment.iter().map(|variable| &variable.name);
        let short = |text: &str| text::clean(text, limits::NAME_BYTES);
        Self {
            hub: hex(&request.hub_root),
            session: short(&request.session_id),
            task: task.to_string(),
            fence: request.fence,
            user: short(&origin.user_id),
            via: short(&origin.via),
            token: short(&origin.token_id),
            argv,
            script: script.concat(),
            shell: shell.shell.clone(),
            clipped: long_argv || long_script,
            cwd: shell.cwd.clone(),
            environment: clip(names).0,
            subject: hex(&approval::subject(request)),
            policy: hex(&request.policy_hash),
            sandbox: sandbox.to_owned(),
            approval: request.approval.as_ref().map(|approval| ApprovalNote {
                id: short(&approval.approval_id),
                user: short(&approval.user_id),
                scope: short(&approval.scope),
            }),
        }
    }
}

impl Ending {
    /// Of a task with a result.
    pub fn new(task: &TaskId, response: &TaskResponse) -> Self {
        let usage = response.usage.unwrap_or_default();
        Self {
            task: task.to_string(),
            fence: response.fence,
            state: response.state.clone(),
            exit_code: match response.exit {
                Some(task_response::Exit::ExitCode(code)) => Some(code),
                _ => None,
            },
            signal: match response.exit {
                Some(task_response::Exit::Signal(signal)) => Some(signal),
                _ => None,
            },
            reason: response.reason.clone(),
            wall_ms: usage.wall_ms,
            cpu_ms: usage.cpu_user_ms + usage.cpu_system_ms,
            peak_memory_bytes: usage.peak_memory_bytes,
            stdout_bytes: response.stdout_bytes,
            stderr_bytes: response.stderr_bytes,
        }
    }

    /// Of a task that was recorded, and did not start after all.
    pub fn not_started(task: &TaskId, fence: u64, reason: &str) -> Self {
        Self {
            task: task.to_string(),
            fence,
            state: "not_started".into(),
            reason: text::clean(reason, limits::TEXT_BYTES),
            ..Self::default()
        }
    }
}
