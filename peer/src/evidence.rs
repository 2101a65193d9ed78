//! `cortex-peer verify`: a node's signed word about a task, checked without a hub.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cortex_wire::{
    evidence::{Evidence, EvidenceError, is_output},
    schema::{TaskResponse, task_response::Exit},
    text,
};

use crate::log::read::holds_start;

/// A file of evidence is a few KiB around the command; nothing longer is read.
const FILE_BYTES: u64 = 8 << 20;

/// Why evidence is not believed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no evidence.
    #[error("{path} is not a file of evidence ({reason}); `GET /api/tasks/{{id}}/evidence` of a hub answers one")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It does not hold.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// Output is not what was printed.
    #[error("{0} is not what the task printed: its digest is another one")]
    Output(PathBuf),
    /// The machine's log does not know of it.
    #[error("the log of this machine in {0} has no record of this task's start; it was made elsewhere, or the log was altered or rotated")]
    NotInLog(PathBuf),
}

/// What is looked at beside the evidence itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// What it printed.
    pub stdout: Option<&'a Path>,
    /// What it complained.
    pub stderr: Option<&'a Path>,
    /// The log of the machine that ran it.
    pub log: Option<&'a Path>,
}

/// Checks a file of evidence, and returns it with what the node has signed.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(path: &Path, beside: Beside<'_>) -> Result<(Evidence, TaskResponse), VerifyError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| VerifyError::Io { path, source }
    };
    let malformed = |reason: String| VerifyError::Malformed { path: path.to_owned(), reason };
    if fs::metadata(path).map_err(io_error(path))?.len() > FILE_BYTES {
        return Err(malformed("it is too large".into()));
    }
    let content = fs::read(path).map_err(io_error(path))?;
    let evidence: Evidence = serde_json::from_slice(&content).map_err(|error| malformed(error.to_string()))?;
    let response = evidence.check()?;
    for (output, digest) in [(beside.stdout, &response.stdout_digest), (beside.stderr, &response.stderr_digest)] {
        if let Some(output) = output
            && !is_output(digest, &fs::read(output).map_err(io_error(output))?)
        {
            return Err(VerifyError::Output(output.to_owned()));
        }
    }
    if let Some(log) = beside.log
        && !holds_start(log, &response.log_hash).map_err(io_error(log))?
    {
        return Err(VerifyError::NotInLog(log.to_owned()));
    }
    Ok((evidence, response))
}

/// What was signed, for a person.
pub fn describe(evidence: &Evidence, response: &TaskResponse) -> String {
    let time = |ms: i64| jiff::Timestamp::from_millisecond(ms).unwrap_or_default().to_string();
    let hex = |bytes: &[u8]| if bytes.is_empty() { "unknown".to_owned() } else { data_encoding::HEXLOWER.encode(bytes) };
    let command = &evidence.command;
    let shown = if command.script.is_empty() { command.argv.join(" ") } else { command.script.lines().collect::<Vec<_>>().join("; ") };
    let how = match response.exit {
        Some(Exit::ExitCode(code)) => format!(", exit {code}"),
        Some(Exit::Signal(signal)) => format!(", signal {signal}"),
        None => String::new(),
    };
    let usage = response.usage.unwrap_or_default();
    let approval = match &response.approval {
        Some(approval) => format!("by {} ({}), {}", approval.user_id, approval.scope, time(approval.at_ms)),
        None => "none was needed".into(),
    };
    let lines = [
        ("node", evidence.node_id.clone()),
        ("task", evidence.task_id.clone()),
        ("session", evidence.session_id.clone()),
        ("command", shown),
        ("ended", format!("{}{how}", response.state)),
        ("started", time(response.started_at_ms)),
        ("finished", time(response.finished_at_ms)),
        ("used", format!("{} ms, CPU {} ms, {} bytes", usage.wall_ms, usage.cpu_user_ms + usage.cpu_system_ms, usage.peak_memory_bytes)),
        ("sandbox", response.sandbox_level.clone()),
        ("policy", hex(&response.policy_hash)),
        ("approval", approval),
        ("stdout", format!("{} bytes, BLAKE3 {}", response.stdout_bytes, hex(&response.stdout_digest))),
        ("stderr", format!("{} bytes, BLAKE3 {}", response.stderr_bytes, hex(&response.stderr_digest))),
        ("log", hex(&response.log_hash)),
    ];
    lines.iter().map(|(name, value)| format!("{name:<9} {}\n", text::clean(value, 1000))).collect()
}
