//! A task's states, and the checks before it may start on a node.
//!
//! [`State`] and [`State::may_become`] are the one transition table that hub and node use. [`Gate`] is the node's door:
//! signature, ids, boot nonce, sequence, deadline, policy, in that order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{
    browser,
    id::{HubId, NodeId, SessionId, TaskId},
    key::{Domain, KeyError, PublicKey},
    limits,
    policy::{self, Outcome, Policy, approval},
    schema::{InventoryVerdict, SandboxMode, ShellTask, Signed, TaskRequest, Terminal, task_request::Kind},
};

/// Where a task is in its life. The final states never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted by the hub, not yet with a node.
    Queued,
    /// Waits for a person.
    AwaitingApproval,
    /// Offered to nodes of the pool.
    Offered,
    /// Signed and sent to one node.
    Leased,
    /// Started on the node.
    Running,
    /// Ended with exit code 0.
    Succeeded,
    /// Ended with another exit code or by a signal.
    Failed,
    /// Ended because somebody asked.
    Cancelled,
    /// Ended by its run or idle timeout.
    TimedOut,
    /// Refused by the node.
    Rejected,
    /// Not started in time.
    Expired,
    /// The node was lost with it: whether it ended is unknown.
    Lost,
}

impl State {
    /// Every state, in the order of a task's life.
    pub const ALL: [Self; 12] = [
        Self::Queued,
        Self::AwaitingApproval,
        Self::Offered,
        Self::Leased,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
        Self::Rejected,
        Self::Expired,
        Self::Lost,
    ];

    /// Whether the state is final.
    pub fn is_final(self) -> bool {
        self >= Self::Succeeded
    }

    /// The transition table.
    pub fn may_become(self, next: Self) -> bool {
        use State::{AwaitingApproval, Cancelled, Expired, Failed, Leased, Lost, Offered, Queued, Rejected, Running, Succeeded, TimedOut};
        match self {
            Queued => matches!(next, AwaitingApproval | Offered | Leased | Cancelled | Expired | Rejected),
            AwaitingApproval => matches!(next, Queued | Cancelled | Expired | Rejected),
            // It is asked about for the node that claimed it.
            Offered => matches!(next, AwaitingApproval | Leased | Queued | Cancelled | Expired),
            // A result may overtake the news that the task started.
            Leased => matches!(next, Running | Queued | Succeeded | Failed | Cancelled | TimedOut | Rejected | Expired | Lost),
            Running => matches!(next, Succeeded | Failed | Cancelled | TimedOut | Lost),
            Succeeded | Failed | Cancelled | TimedOut | Rejected | Expired | Lost => false,
        }
    }

    /// The name used in messages, in the API and in the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Offered => "offered",
            Self::Leased => "leased",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Lost => "lost",
        }
    }

    /// The state of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a node refuses a task. [`Rejection::code`] is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The signature does not hold, or the bytes hold an unknown field.
    #[error("the task is not signed by this node's hub, or was altered: {0}")]
    Signature(#[from] KeyError),
    /// Meant for another hub or node.
    #[error("the task is for another node")]
    WrongNode,
    /// Made for an earlier start of this peer.
    #[error("the task was signed for an earlier start of this peer")]
    WrongBoot,
    /// Seen before, or too old to tell.
    #[error("the task was already delivered")]
    Replayed,
    /// After its start deadline.
    #[error("the task arrived after its start deadline")]
    Late,
    /// A field is missing, malformed or too large.
    #[error("the task is malformed: {0}")]
    Malformed(&'static str),
    /// Signed under another policy than this node holds.
    #[error("the node's policy changed since the task was signed; dispatch it again")]
    StalePolicy,
    /// Against the node's policy.
    #[error("{0}")]
    Policy(#[from] policy::Refusal),
    /// The node's policy asks, and no person's yes fits.
    #[error("{0}")]
    Unapproved(#[from] approval::Unapproved),
    /// The wanted sandbox is not there.
    #[error("this node cannot enforce STRICT: {0}")]
    SandboxUnavailable(String),
    /// All slots are taken.
    #[error("all {0} task slots of this node are taken")]
    Busy(u32),
    /// The node stops.
    #[error("the peer is shutting down")]
    Draining,
    /// The command could not be started.
    #[error("{0}")]
    CannotStart(String),
    /// The journal could not be written: nothing may start.
    #[error("the peer could not write its journal, so it did not start the task: {0}")]
    Journal(String),
}

impl Rejection {
    /// Stable code for APIs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Signature(_) => "bad_signature",
            Self::WrongNode => "wrong_node",
            Self::WrongBoot => "wrong_boot",
            Self::Replayed => "replayed",
            Self::Late => "late",
            Self::Malformed(_) => "malformed",
            Self::StalePolicy => "stale_policy",
            Self::Policy(refusal) => refusal.code(),
            Self::Unapproved(approval::Unapproved::Missing(_)) => "approval_required",
            Self::Unapproved(approval::Unapproved::Unfit(_)) => "approval_mismatch",
            Self::SandboxUnavailable(_) => "sandbox_unavailable",
            Self::Busy(_) => "node_busy",
            Self::Draining => "draining",
            Self::CannotStart(_) => "cannot_start",
            Self::Journal(_) => "journal_unavailable",
        }
    }
}

/// What a node says of a task when it registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Under which lease it has it; 0: it is just taking it in.
    pub fence: u64,
    /// Its result waits to be collected.
    pub finished: bool,
    /// It was started, and the peer died with it.
    pub lost: bool,
}

/// What becomes of an open task of a node that has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reunion {
    /// Its output and result are taken up again; or, when its cancellation was asked for, it is ended.
    Resume(InventoryVerdict),
    /// It was started, and nobody knows what became of it.
    Lost(&'static str),
    /// It was never started, and never will be under this lease: the node has begun a new connection, with a new boot nonce.
    Again,
    /// It was not given to the node.
    Waits,
}

/// Compares the store with a node's word. What the node says of tasks that are not open here is [`stale`].
pub fn reunite(state: State, fence: u64, cancel_asked: bool, held: Option<Held>) -> Reunion {
    match held {
        Some(held)
            if (held.fence == fence || held.fence == 0) && !matches!(state, State::Queued | State::Offered | State::AwaitingApproval) =>
        {
            match (held.lost, cancel_asked && !held.finished) {
                (true, _) => Reunion::Lost("the peer was killed while it ran the task"),
                (false, true) => Reunion::Resume(InventoryVerdict::Cancel),
                (false, false) => Reunion::Resume(InventoryVerdict::Continue),
            }
        }
        _ => match state {
            State::Leased => Reunion::Again,
            State::Running => Reunion::Lost("the peer no longer knows the task"),
            _ => Reunion::Waits,
        },
    }
}

/// What such a comparison took charge of, and under which fences. A delivery of it that was under way then is out of date; a later lease is not.
#[derive(Debug, Clone, Default)]
pub struct Settled(BTreeMap<TaskId, u64>);

impl Settled {
    /// Whether a delivery under this fence has been dealt with.
    pub fn covers(&self, task: &TaskId, fence: u64) -> bool {
        self.0.get(task).is_some_and(|settled| fence <= *settled)
    }
}

impl FromIterator<(TaskId, u64)> for Settled {
    fn from_iter<I: IntoIterator<Item = (TaskId, u64)>>(tasks: I) -> Self {
        Self(tasks.into_iter().collect())
    }
}

/// What a node is to do about a task that the store does not want any more.
pub fn stale(held: Held) -> InventoryVerdict {
    if held.finished || held.lost { InventoryVerdict::Forget } else { InventoryVerdict::Cancel }
}

/// Whether a refusal is about the node at that moment, and not about the task: it never started there, and another node may have it.
pub fn may_move(code: &str) -> bool {
    matches!(code, "node_busy" | "draining")
}

/// A set of recent sequence numbers: each passes once, those below the window never.
#[derive(Debug, Default)]
pub struct SequenceWindow {
    highest: u64,
    seen: BTreeSet<u64>,
}

impl SequenceWindow {
    /// Whether `sequence` is new; it is remembered if so.
    pub fn accept(&mut self, sequence: u64) -> bool {
        let floor = self.highest.saturating_sub(limits::SEQUENCE_WINDOW);
        if sequence == 0 || sequence <= floor || !self.seen.insert(sequence) {
            return false;
        }
        self.highest = self.highest.max(sequence);
        let floor = self.highest.saturating_sub(limits::SEQUENCE_WINDOW);
        self.seen = self.seen.split_off(&(floor + 1));
        true
    }
}

/// The node's door: what must hold before a task may start.
#[derive(Debug)]
pub struct Gate {
    /// The pinned hub.
    pub hub: HubId,
    /// This node.
    pub node: NodeId,
    /// This start of the peer.
    pub boot_nonce: [u8; 32],
    /// Which deliveries were seen.
    pub window: SequenceWindow,
}

impl Gate {
    /// Checks a task in the documented order and returns its request.
    ///
    /// # Errors
    /// The first [`Rejection`] that applies.
    pub fn check(&mut self, signed: &Signed, task_key: &PublicKey, policy: &Policy, now_ms: i64) -> Result<TaskRequest, Rejection> {
        let request: TaskRequest = task_key.open(Domain::Task, signed)?;
        if request.hub_root != self.hub.key().as_bytes()[..] || request.node_key != self.node.key().as_bytes()[..] {
            return Err(Rejection::WrongNode);
        }
        if request.boot_nonce != self.boot_nonce[..] {
            return Err(Rejection::WrongBoot);
        }
        if !self.window.accept(request.sequence) {
            return Err(Rejection::Replayed);
        }
        if now_ms > request.start_deadline_ms {
            return Err(Rejection::Late);
        }
        check_shape(&request)?;
        if request.policy_hash != policy.hash()[..] {
            return Err(Rejection::StalePolicy);
        }
        match policy.judge(&request) {
            Outcome::Allow => {}
            Outcome::Ask(question) => approval::check(policy, &request, question, now_ms)?,
            Outcome::Deny(refusal) => return Err(refusal.into()),
        }
        Ok(request)
    }
}

/// Bounds and forms, also checked by the hub before it signs.
///
/// # Errors
/// [`Rejection::Malformed`].
pub fn check_shape(request: &TaskRequest) -> Result<(), Rejection> {
    TaskId::from_slice(&request.task_id).map_err(|_| Rejection::Malformed("task id"))?;
    request.session_id.parse::<SessionId>().map_err(|_| Rejection::Malformed("session id"))?;
    if request.mode() == SandboxMode::Unspecified {
        return Err(Rejection::Malformed("sandbox mode"));
    }
    let shell = match &request.kind {
        Some(Kind::Shell(shell)) => shell,
        Some(Kind::Browser(task)) => {
            return browser::Order::parse(&task.order).map(|_| ()).map_err(|_| Rejection::Malformed("browser action"));
        }
        None => return Err(Rejection::Malformed("kind")),
    };
    let has_nul = |text: &str| text.contains('\0');
    match (shell.argv.as_slice(), shell.script.as_str()) {
        ([], "") if shell.terminal.is_none() => return Err(Rejection::Malformed("no command")),
        ([], "") => {}
        ([], script) if script.len() > limits::COMMAND_BYTES || has_nul(script) => return Err(Rejection::Malformed("script")),
        ([], _) => {}
        ([program, ..], "") => {
            let bytes: usize = shell.argv.iter().map(String::len).sum();
            if program.is_empty()
                || shell.argv.len() > limits::ARGUMENTS
                || bytes > limits::COMMAND_BYTES
                || shell.argv.iter().any(|a| has_nul(a))
            {
                return Err(Rejection::Malformed("argv"));
            }
        }
        _ => return Err(Rejection::Malformed("both argv and script")),
    }
    let environment: usize = shell.environment.iter().map(|v| v.name.len() + v.value.len()).sum();
    let bad_name = |name: &str| name.is_empty() || name.contains(['=', '\0']);
    if environment > limits::ENVIRONMENT_BYTES || shell.environment.iter().any(|v| bad_name(&v.name) || has_nul(&v.value)) {
        return Err(Rejection::Malformed("environment"));
    }
    if has_nul(&shell.shell) || shell.shell.len() > limits::TEXT_BYTES {
        return Err(Rejection::Malformed("shell"));
    }
    if !is_inside(&shell.cwd) {
        return Err(Rejection::Malformed("cwd must be a relative path inside the workspace"));
    }
    check_terminal(shell)?;
    check_secrets(shell)
}

/// Whether a terminal can have this size.
pub fn is_terminal_size(size: &Terminal) -> bool {
    let fits = |cells: u32| (1..=limits::TERMINAL_CELLS).contains(&cells);
    fits(size.columns) && fits(size.rows)
}

/// Whether a shell session can have this name.
pub fn is_shell_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=limits::SHELL_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

fn check_terminal(shell: &ShellTask) -> Result<(), Rejection> {
    if shell.terminal.as_ref().is_some_and(|size| !is_terminal_size(size)) {
        return Err(Rejection::Malformed("a terminal has 1 to 1000 columns and rows"));
    }
    match &shell.shell_session {
        Some(_) if shell.terminal.is_some() => {
            Err(Rejection::Malformed("a terminal keeps its own folder and environment: no shell_session"))
        }
        Some(kept) if !is_shell_name(&kept.name) => Err(Rejection::Malformed("a shell session's name: 1 to 64 letters, digits, - _ .")),
        _ => Ok(()),
    }
}

fn check_secrets(shell: &ShellTask) -> Result<(), Rejection> {
    let names: BTreeSet<&str> = shell.secrets.iter().map(|secret| secret.environment_name.as_str()).collect();
    let bad_name =
        |name: &&str| name.is_empty() || name.len() > limits::NAME_BYTES || name.contains(['=', '\0']) || name.starts_with("CORTEX_");
    if shell.secrets.len() > limits::TASK_SECRETS || names.len() < shell.secrets.len() || names.iter().any(bad_name) {
        return Err(Rejection::Malformed("secrets"));
    }
    Ok(())
}

/// Whether a relative path stays inside the folder it is relative to, by its text alone.
pub fn is_inside(path: &str) -> bool {
    path.len() <= 4096 && !path.starts_with('/') && !path.contains(['\0', '\\']) && path.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        key::SecretKey,
        schema::{CommandRule, SandboxPolicy, SecretReference, ShellSession},
    };
    use bytes::Bytes;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed([seed; 32])
    }

    fn policy() -> Policy {
        Policy::new(SandboxPolicy {
            mode: SandboxMode::Permissive.into(),
            deny: vec![CommandRule { prefix: vec!["reboot".into()], reason: String::new() }],
            ..SandboxPolicy::default()
        })
    }

    fn gate() -> Gate {
        Gate { hub: key(1).public().into(), node: key(2).public().into(), boot_nonce: [7; 32], window: SequenceWindow::default() }
    }

    fn request(sequence: u64) -> TaskRequest {
        TaskRequest {
            hub_root: key(1).public().to_bytes(),
            node_key: key(2).public().to_bytes(),
            session_id: SessionId::new(1, [0; 10]).to_string(),
            boot_nonce: Bytes::copy_from_slice(&[7; 32]),
            sequence,
            task_id: Bytes::copy_from_slice(TaskId::new(1, [0; 10]).as_bytes()),
            start_deadline_ms: 100,
            policy_hash: Bytes::copy_from_slice(&policy().hash()),
            mode: SandboxMode::Permissive.into(),
            kind: Some(Kind::Shell(ShellTask { argv: vec!["true".into()], ..ShellTask::default() })),
            ..TaskRequest::default()
        }
    }

    fn check(gate: &mut Gate, request: &TaskRequest, now_ms: i64) -> Result<TaskRequest, Rejection> {
        gate.check(&key(3).seal(Domain::Task, request), &key(3).public(), &policy(), now_ms)
    }

    #[test]
    fn a_good_task_passes_once() {
        let mut gate = gate();
        assert!(check(&mut gate, &request(1), 50).is_ok());
        assert_eq!(check(&mut gate, &request(1), 50), Err(Rejection::Replayed));
        assert!(check(&mut gate, &request(3), 50).is_ok());
        assert!(check(&mut gate, &request(2), 50).is_ok());
    }

    #[test]
    fn each_fault_has_its_own_refusal() {
        let refuse = |change: fn(&mut TaskRequest)| {
            let mut request = request(1);
            change(&mut request);
            check(&mut gate(), &request, 50).expect_err("a fault").code()
        };
        assert_eq!(refuse(|r| r.node_key = key(9).public().to_bytes()), "wrong_node");
        assert_eq!(refuse(|r| r.hub_root = key(9).public().to_bytes()), "wrong_node");
        assert_eq!(refuse(|r| r.boot_nonce = Bytes::new()), "wrong_boot");
        assert_eq!(refuse(|r| r.sequence = 0), "replayed");
        assert_eq!(refuse(|r| r.start_deadline_ms = 49), "late");
        assert_eq!(refuse(|r| r.task_id = Bytes::new()), "malformed");
        assert_eq!(refuse(|r| r.kind = None), "malformed");
        assert_eq!(refuse(|r| r.policy_hash = Bytes::new()), "stale_policy");
        assert_eq!(
            refuse(|r| r.kind = Some(Kind::Shell(ShellTask { argv: vec!["/sbin/reboot".into()], ..ShellTask::default() }))),
            "policy_denied"
        );
    }

    #[test]
    fn a_task_that_the_policy_asks_about_needs_an_approval_that_fits_it() {
        let policy = Policy::new(SandboxPolicy {
            mode: SandboxMode::Permissive.into(),
            ask: vec![CommandRule { prefix: vec!["true".into()], reason: String::new() }],
            ..SandboxPolicy::default()
        });
        let asked = |approval: Option<crate::schema::Approval>| {
            let request = TaskRequest { policy_hash: Bytes::copy_from_slice(&policy.hash()), approval, ..request(1) };
            gate()
                .check(&key(3).seal(Domain::Task, &request), &key(3).public(), &policy, 50)
                .map_err(|rejection| rejection.code())
                .map(drop)
        };
        assert_eq!(asked(None), Err("approval_required"));
        let approval = crate::schema::Approval {
            scope: "once".into(),
            subject: Bytes::copy_from_slice(&approval::subject(&request(1))),
            policy_hash: Bytes::copy_from_slice(&policy.hash()),
            ..crate::schema::Approval::default()
        };
        assert_eq!(asked(Some(approval.clone())), Ok(()));
        assert_eq!(asked(Some(crate::schema::Approval { subject: Bytes::new(), ..approval })), Err("approval_mismatch"));
    }

    #[test]
    fn a_task_of_another_key_is_refused_before_anything_is_read() {
        let signed = key(4).seal(Domain::Task, &request(1));
        let refused = gate().check(&signed, &key(3).public(), &policy(), 50);
        assert_eq!(refused.expect_err("a foreign key").code(), "bad_signature");
    }

    #[test]
    fn a_command_stays_inside_the_workspace_and_its_bounds() {
        let shape = |shell: ShellTask| check_shape(&TaskRequest { kind: Some(Kind::Shell(shell)), ..request(1) }).is_ok();
        let argv = || vec!["true".to_owned()];
        assert!(shape(ShellTask { argv: argv(), cwd: "a/b".into(), ..ShellTask::default() }));
        assert!(!shape(ShellTask { argv: argv(), cwd: "../b".into(), ..ShellTask::default() }));
        assert!(!shape(ShellTask { argv: argv(), cwd: "/b".into(), ..ShellTask::default() }));
        assert!(!shape(ShellTask { argv: argv(), script: "true".into(), ..ShellTask::default() }));
        assert!(!shape(ShellTask::default()));
        let size = |columns, rows| Some(Terminal { columns, rows });
        assert!(shape(ShellTask { terminal: size(80, 24), ..ShellTask::default() }));
        assert!(!shape(ShellTask { terminal: size(0, 24), ..ShellTask::default() }));
        assert!(!shape(ShellTask { terminal: size(80, 1_001), argv: argv(), ..ShellTask::default() }));
        let kept = |name: &str| Some(ShellSession { name: name.into(), reset: false });
        assert!(shape(ShellTask { argv: argv(), shell_session: kept("main"), ..ShellTask::default() }));
        assert!(!shape(ShellTask { argv: argv(), shell_session: kept("a/b"), ..ShellTask::default() }));
        assert!(!shape(ShellTask { argv: argv(), shell_session: kept("main"), terminal: size(80, 24), ..ShellTask::default() }));
        let secret = |name: &str| SecretReference { environment_name: name.into(), ..SecretReference::default() };
        assert!(shape(ShellTask { argv: argv(), secrets: vec![secret("A"), secret("B")], ..ShellTask::default() }));
        assert!(!shape(ShellTask { argv: argv(), secrets: vec![secret("A"), secret("A")], ..ShellTask::default() }));
        assert!(!shape(ShellTask { argv: argv(), secrets: vec![secret("CORTEX_TASK")], ..ShellTask::default() }));
        assert!(!shape(ShellTask { argv: vec!["a\0b".into()], ..ShellTask::default() }));
        assert!(!shape(ShellTask { script: "x".repeat(limits::COMMAND_BYTES + 1), ..ShellTask::default() }));
    }

    #[test]
    fn final_states_never_change() {
        for from in State::ALL.into_iter().filter(|s| s.is_final()) {
            assert!(State::ALL.into_iter().all(|to| !from.may_become(to)), "{from} is final");
        }
        assert!(State::ALL.into_iter().all(|s| State::from_name(s.name()) == Some(s)));
    }

    #[test]
    fn the_sequence_window_forgets_nothing_it_may_meet_again() {
        let mut window = SequenceWindow::default();
        assert!(window.accept(5_000));
        assert!(window.accept(5_000 - limits::SEQUENCE_WINDOW + 1));
        assert!(!window.accept(5_000 - limits::SEQUENCE_WINDOW));
        assert!(!window.accept(5_000));
    }
}
