//! A person's yes to a command: what it is about, and whether it fits a task.
//!
//! The hub keeps approvals and puts the one that fits into the signed body of a task; the node, which holds the same rules, checks it again. An approval says
//! nothing under another policy, on another node, or for another command: its subject is a hash over all of that.

use bytes::Bytes;

use super::{Outcome, Policy, Question};
use crate::schema::{Approval, TaskRequest, task_request::Kind};

/// How far a yes reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// This task.
    Once,
    /// This command, in this session, for half an hour.
    HalfHour,
    /// This command, in this session.
    Session,
    /// Every command that begins with these words, in this session.
    Prefix,
}

impl Reach {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Once, Self::HalfHour, Self::Session, Self::Prefix];

    /// The name used in messages and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::HalfHour => "half_hour",
            Self::Session => "session",
            Self::Prefix => "prefix",
        }
    }

    /// The reach of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reach| reach.name() == name)
    }
}

/// Why a task that the policy asks about may not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unapproved {
    /// Nobody said yes.
    #[error("{0}; a person has to approve it first")]
    Missing(Question),
    /// Somebody did, to something else.
    #[error("the approval of this task does not fit it: {0}")]
    Unfit(&'static str),
}

/// What an approval is about: node, session, command, shell, folder and environment of a task.
pub fn subject(request: &TaskRequest) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("cortex-mesh v1 approval subject");
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    };
    part(&request.node_key);
    part(request.session_id.as_bytes());
    part(&request.mode.to_be_bytes());
    if let Some(Kind::Browser(task)) = &request.kind {
        part(b"browser");
        part(&task.order);
    }
    if let Some(Kind::Shell(shell)) = &request.kind {
        part(&(shell.argv.len() as u64).to_be_bytes());
        shell.argv.iter().for_each(|word| part(word.as_bytes()));
        [&shell.script, &shell.shell, &shell.cwd].into_iter().for_each(|text| part(text.as_bytes()));
        part(&(shell.environment.len() as u64).to_be_bytes());
        for variable in &shell.environment {
            part(variable.name.as_bytes());
            part(variable.value.as_bytes());
        }
        part(&(shell.secrets.len() as u64).to_be_bytes());
        shell.secrets.iter().for_each(|secret| part(secret.environment_name.as_bytes()));
        part(&[u8::from(shell.terminal.is_some())]);
        part(shell.shell_session.as_ref().map_or("", |session| session.name.as_str()).as_bytes());
    }
    hasher.finalize().into()
}

/// Whether an approval lets a task start that the policy asks about.
///
/// # Errors
/// [`Unapproved`].
pub fn check(policy: &Policy, request: &TaskRequest, question: Question, now_ms: i64) -> Result<(), Unapproved> {
    let Some(approval) = &request.approval else { return Err(Unapproved::Missing(question)) };
    fits(approval, policy, request, now_ms)
}

/// The same for an approval that is not in the task yet.
///
/// # Errors
/// [`Unapproved::Unfit`].
pub fn fits(approval: &Approval, policy: &Policy, request: &TaskRequest, now_ms: i64) -> Result<(), Unapproved> {
    let reach = Reach::from_name(&approval.scope).ok_or(Unapproved::Unfit("its scope is unknown"))?;
    if approval.policy_hash != policy.hash()[..] {
        return Err(Unapproved::Unfit("it was given under another policy"));
    }
    if approval.expires_at_ms != 0 && now_ms > approval.expires_at_ms {
        return Err(Unapproved::Unfit("its time is over"));
    }
    match reach {
        Reach::Prefix => match policy.judge_beyond(request, &approval.prefix) {
            Outcome::Allow => Ok(()),
            Outcome::Ask(_) | Outcome::Deny(_) => Err(Unapproved::Unfit("it is for other commands")),
        },
        Reach::Once | Reach::HalfHour | Reach::Session if approval.subject == Bytes::copy_from_slice(&subject(request)) => Ok(()),
        Reach::Once | Reach::HalfHour | Reach::Session => Err(Unapproved::Unfit("it is for another command, folder or node")),
    }
}
