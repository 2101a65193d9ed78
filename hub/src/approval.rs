//! A person's yes or no to what a program wants to run.
//!
//! ```text
//! dispatch ─▶ the node's policy asks, and no yes that is remembered fits ─▶ awaiting_approval ─ yes ─▶ queued ─▶ leased (the yes is in the signed task) …
//!                                                                                             ├ no ──▶ rejected  approval_denied
//!                                                                                             └ time ▶ expired   approval_timeout
//! ```
//! The question is asked again when the task is about to be leased: a policy that changed meanwhile counts, and a yes given under another one does not. Who may
//! answer: the node's owner and administrators, logged in. A token is a program, and never answers, whatever its scopes.

use cortex_wire::{
    id::TaskId,
    limits,
    policy::{
        Outcome, Policy,
        approval::{self, fits},
    },
    schema::{SandboxMode, TaskRequest},
    task::State,
    text::clean,
};
use serde_json::json;

use crate::{
    account::Actor,
    change::Change,
    failure::{Failure, Kind, Refused},
    hub::Hub,
    node, output, policy,
    record::{
        Digest, Node, Role, Scope, Task,
        approval::{Approval, Grant, Reach},
        tables::{APPROVALS_OF_NODE, GRANTS, NODES, SESSIONS, TASKS, USERS},
    },
    session,
    store::{Order, ReadTx, Span, StoreError, WriteTx},
    task::{self, TransitionError},
};

/// How long a person is waited for when the task says nothing else.
pub const PATIENCE_MS: u64 = 10 * 60 * 1000;
/// The longest that a task may say.
pub const LONGEST_MS: u64 = 24 * 60 * 60 * 1000;
const HALF_HOUR_MS: i64 = 30 * 60 * 1000;
/// Remembered approvals of one node. Above it some have to be revoked first.
const GRANTS_OF_NODE: usize = 1000;
/// Words of a prefix.
const PREFIX_WORDS: usize = 16;

/// Why an approval was not given, denied or revoked.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    /// It was answered, its time is over, or it was cancelled.
    #[error("nobody is asked about this task any more: it is {0}")]
    NotWaiting(State),
    /// The task would be asked about again.
    #[error("this would not let the task start: {0}")]
    Unfit(String),
    /// Anything else.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<StoreError> for ApprovalError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure for ApprovalError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotWaiting(_) => "not_waiting",
            Self::Unfit(_) => "approval_unfit",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NotWaiting(_) => Kind::Conflict,
            Self::Unfit(_) => Kind::Invalid,
            Self::Refused(refused) => refused.kind(),
        }
    }
}

/// A task that waits for somebody's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The task.
    pub task: Task,
    /// Its node's name.
    pub node_name: String,
    /// Whether the one who asks may answer, logged in.
    pub may_answer: bool,
}

/// Whether a task may go to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nobody needs to be asked, or somebody said yes.
    Go,
    /// A person has to be asked.
    Wait,
}

/// What an AI asks for is confined unless somebody says otherwise.
fn mode_of(task: &Task, policy: &Policy) -> SandboxMode {
    match task.spec.mode {
        Some(mode) => mode.into(),
        None if task.origin.via == "mcp" => SandboxMode::Strict,
        None => policy.rules().mode(),
    }
}

/// What is judged and signed of a task, without what only a delivery knows.
pub(crate) fn request_of(task: &Task, policy: &Policy) -> TaskRequest {
    TaskRequest {
        node_key: task.node.key().to_bytes(),
        session_id: task.session.to_string(),
        mode: mode_of(task, policy).into(),
        origin: Some(task.origin.to_message()),
        kind: Some(task.spec.to_kind()),
        ..TaskRequest::default()
    }
}

/// Asks the policy about a task, and notes in it what a person has to be asked, or which yes fits.
pub(crate) fn decide(tx: &dyn ReadTx, node: &Node, task: &mut Task, now_ms: i64) -> Result<Decision, StoreError> {
    let policy = policy::effective(node);
    let request = request_of(task, &policy);
    let question = match policy.judge(&request) {
        Outcome::Ask(question) => question,
        // What is denied is the node's to refuse.
        Outcome::Allow | Outcome::Deny(_) => return Ok(Decision::Go),
    };
    let is_good = |grant: &Grant| grant.session == task.session && fits(&grant.to_message(), &policy, &request, now_ms).is_ok();
    let given = task.approval.take().and_then(|approval| approval.grant).filter(is_good);
    let grant = match given {
        Some(given) => Some(given),
        None => GRANTS.list(tx, &Span::under(task.node), Order::Ascending, GRANTS_OF_NODE)?.into_iter().find(is_good),
    };
    let decision = if grant.is_some() { Decision::Go } else { Decision::Wait };
    let patience = i64::try_from(task.spec.approval_timeout_ms.unwrap_or(PATIENCE_MS).min(LONGEST_MS)).unwrap_or(i64::MAX);
    task.approval = Some(Approval {
        code: question.code().into(),
        question: clean(&question.to_string(), limits::TEXT_BYTES),
        asked_at_ms: now_ms,
        expires_at_ms: now_ms.saturating_add(patience),
        grant,
        denied_by: None,
    });
    Ok(decision)
}

/// Lets a task that waits for its node wait for a person.
pub(crate) fn ask(change: &mut Change<'_>, task: &mut Task) -> Result<(), StoreError> {
    task.state = State::AwaitingApproval;
    task.leased_at_ms = None;
    change.audit("task.ask", &format!("task:{}", task.id), task.approval.as_ref().map_or("", |asked| &asked.question).as_bytes())?;
    task::put(change, task)?;
    tell(change, task, "asked")
}

/// Keeps the list of tasks that wait for a person.
pub(crate) fn index(tx: &mut dyn WriteTx, task: &Task) -> Result<(), StoreError> {
    match (task.state == State::AwaitingApproval, task.approval.is_some()) {
        (true, _) => APPROVALS_OF_NODE.insert(tx, &task.node, &task.id),
        (false, true) => APPROVALS_OF_NODE.remove(tx, &task.node, &task.id),
        (false, false) => Ok(()),
    }
}

/// Tells the session and everybody who may answer.
fn tell(change: &mut Change<'_>, task: &Task, what: &str) -> Result<(), StoreError> {
    let Some(approval) = &task.approval else { return Ok(()) };
    let mut users = SESSIONS.get(change.tx, &task.session)?.map(|session| session::audience(&session)).unwrap_or_default();
    users.extend(NODES.get(change.tx, &task.node)?.map(|node| node.owner));
    USERS.visit(change.tx, &Span::all(), Order::Ascending, |_, user| {
        users.extend((user.role == Role::Admin && !user.disabled).then_some(user.id));
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    users.sort_unstable();
    users.dedup();
    let data = json!({
        "task_id": task.id,
        "session_id": task.session,
        "node_id": task.node,
        "user_id": task.origin.user,
        "via": task.origin.via,
        "command": task.spec.summary(),
        "cwd": task.spec.cwd,
        "change": what,
        "code": approval.code,
        "question": approval.question,
        "expires_at_ms": approval.expires_at_ms,
    });
    if SESSIONS.get(change.tx, &task.session)?.is_some() {
        change.event(task.session, "approval", data.clone())?;
    }
    change.notice(users, "approval", data)
}

/// Whether the actor may say yes or no for this node, once they are logged in.
fn may_answer(actor: &Actor, node: &Node) -> bool {
    actor.role == Role::Admin || (node.owner == actor.user && actor.may(Scope::Dispatch))
}

/// The task and its node, for somebody who may answer, as a person.
fn answered_by(tx: &dyn ReadTx, actor: &Actor, id: TaskId) -> Result<(Task, Node), ApprovalError> {
    let task = TASKS.get(tx, &id)?.ok_or(Refused::NotFound("task"))?;
    let node = NODES.get(tx, &task.node)?.ok_or(Refused::NotFound("task"))?;
    let sees = may_answer(actor, &node) || session::seen_by(tx, actor, task.session).is_ok();
    if !sees {
        return Err(Refused::NotFound("task").into());
    }
    actor.must(Scope::Dispatch)?;
    actor.must_be_a_person()?;
    if !may_answer(actor, &node) {
        return Err(Refused::Forbidden("only the node's owner or an administrator may answer").into());
    }
    if task.state != State::AwaitingApproval {
        return Err(ApprovalError::NotWaiting(task.state));
    }
    Ok((task, node))
}

/// Keeps an approval that is for more than one task.
fn remember(change: &mut Change<'_>, grant: &Grant) -> Result<(), ApprovalError> {
    if grant.reach == Reach::Once {
        return Ok(());
    }
    if GRANTS.list(change.tx, &Span::under(grant.node), Order::Ascending, GRANTS_OF_NODE)?.len() >= GRANTS_OF_NODE {
        return Err(Refused::Invalid(format!("this node has {GRANTS_OF_NODE} remembered approvals; revoke some first")).into());
    }
    Ok(GRANTS.put(change.tx, &(grant.node, grant.id), grant)?)
}

impl Hub {
    /// Tasks that wait for a person: those the actor may answer, and those of sessions they are in; oldest first.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn approvals(&self, actor: &Actor) -> Result<Vec<Waiting>, Refused> {
        actor.must(Scope::Read)?;
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                let mut found = Vec::new();
                for id in APPROVALS_OF_NODE.all(tx)? {
                    let Some(task) = TASKS.get(tx, &id)?.filter(|task| task.state == State::AwaitingApproval) else { continue };
                    let Some(node) = NODES.get(tx, &task.node)? else { continue };
                    let may_answer = may_answer(&actor, &node);
                    if may_answer || session::seen_by(tx, &actor, task.session).is_ok() {
                        found.push(Waiting { task, node_name: node.name, may_answer });
                    }
                }
                found.sort_by_key(|waiting| waiting.task.id);
                Ok(found)
            })
            .await
    }

    /// Says yes: the task goes to its node. `prefix` is for [`Reach::Prefix`].
    ///
    /// # Errors
    /// [`ApprovalError`].
    pub async fn approve(&self, actor: &Actor, id: TaskId, reach: Reach, prefix: Vec<String>) -> Result<Task, ApprovalError> {
        let (actor, mesh) = (actor.clone(), self.mesh().cloned());
        self.change(actor.subject(), move |change| {
            let (mut task, node) = answered_by(change.tx, &actor, id)?;
            let policy = policy::effective(&node);
            let request = request_of(&task, &policy);
            let words: usize = prefix.iter().map(String::len).sum();
            if (reach == Reach::Prefix) == prefix.is_empty() || prefix.len() > PREFIX_WORDS || words > limits::TEXT_BYTES {
                return Err(Refused::Invalid(format!("`prefix` goes with the reach \"prefix\", and has 1 to {PREFIX_WORDS} words")).into());
            }
            let grant = Grant {
                id,
                node: task.node,
                session: task.session,
                by: actor.user,
                reach,
                subject: Digest(approval::subject(&request)),
                prefix,
                policy: policy::hash_of(&node),
                command: task.spec.summary(),
                at_ms: change.now_ms,
                expires_at_ms: (reach == Reach::HalfHour).then_some(change.now_ms + HALF_HOUR_MS),
            };
            if matches!(policy.judge(&request), Outcome::Ask(_)) {
                fits(&grant.to_message(), &policy, &request, change.now_ms).map_err(|error| ApprovalError::Unfit(error.to_string()))?;
            }
            remember(change, &grant)?;
            let detail = json!({ "reach": grant.reach, "prefix": grant.prefix, "subject": grant.subject, "policy": grant.policy });
            change.audit("task.approve", &format!("task:{id}"), detail.to_string().as_bytes())?;
            if let Some(approval) = &mut task.approval {
                approval.grant = Some(grant);
            }
            task.state = State::Queued;
            task.start_by_ms = change.now_ms + task::patience_ms(task.queue_timeout_ms);
            task::put(change, &task)?;
            tell(change, &task, "approved")?;
            let approved = task.clone();
            change.then(move || {
                if let Some(mesh) = mesh {
                    mesh.deliver(approved, false);
                }
            });
            Ok(task)
        })
        .await
    }

    /// Says no, with a reason for whoever asked.
    ///
    /// # Errors
    /// [`ApprovalError`].
    pub async fn deny(&self, actor: &Actor, id: TaskId, reason: &str) -> Result<Task, ApprovalError> {
        let (actor, reason, outputs) = (actor.clone(), clean(reason, limits::TEXT_BYTES), self.outputs.clone());
        self.change(actor.subject(), move |change| {
            let (mut task, _) = answered_by(change.tx, &actor, id)?;
            if let Some(approval) = &mut task.approval {
                approval.denied_by = Some(actor.user);
            }
            let said = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            output::seal(change.tx, id, None)?;
            task::end(change, &mut task, State::Rejected, "approval_denied", &format!("{} said no{said}", actor.name))?;
            tell(change, &task, "denied")?;
            change.then(move || outputs.close(id));
            Ok(task)
        })
        .await
    }

    /// Nobody answered in time, which means no. A task that is not asked about any more, or whose time is not over, stays. For the mesh.
    ///
    /// # Errors
    /// [`TransitionError`].
    pub async fn expire_approval(&self, id: TaskId) -> Result<Task, TransitionError> {
        let outputs = self.outputs.clone();
        self.change("hub".into(), move |change| {
            let mut task = TASKS.get(change.tx, &id)?.ok_or(TransitionError::NotFound)?;
            let is_over = task.approval.as_ref().is_some_and(|approval| change.now_ms >= approval.expires_at_ms);
            if task.state != State::AwaitingApproval || !is_over {
                return Err(TransitionError::NotAllowed { now: task.state, wanted: State::Expired });
            }
            output::seal(change.tx, id, None)?;
            task::end(change, &mut task, State::Expired, "approval_timeout", "nobody approved it in time, which means no")?;
            tell(change, &task, "expired")?;
            change.then(move || outputs.close(id));
            Ok(task)
        })
        .await
    }

    /// Remembered approvals that still count, of nodes for which the actor may answer; newest first.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn grants(&self, actor: &Actor) -> Result<Vec<Grant>, Refused> {
        actor.must(Scope::Read)?;
        let (actor, now_ms) = (actor.clone(), self.now_ms());
        self.db
            .read(move |tx| {
                let mut found = Vec::new();
                for grant in GRANTS.list(tx, &Span::all(), Order::Ascending, usize::MAX)? {
                    let Some(node) = NODES.get(tx, &grant.node)? else { continue };
                    if may_answer(&actor, &node) && counts(tx, &grant, Some(&node), now_ms)? {
                        found.push(grant);
                    }
                }
                found.sort_by_key(|grant| std::cmp::Reverse(grant.at_ms));
                Ok(found)
            })
            .await
    }

    /// Takes a remembered approval back. Tasks that have it and have not started are asked about again.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn revoke_grant(&self, actor: &Actor, id: TaskId) -> Result<(), Refused> {
        let actor = actor.clone();
        self.change(actor.subject(), move |change| {
            let grants = GRANTS.list(change.tx, &Span::all(), Order::Ascending, usize::MAX)?;
            let grant = grants.into_iter().find(|grant| grant.id == id).ok_or(Refused::NotFound("approval"))?;
            let node = NODES.get(change.tx, &grant.node)?.filter(|node| may_answer(&actor, node)).ok_or(Refused::NotFound("approval"))?;
            // Less is allowed afterwards, so a program may do it, too.
            actor.must(Scope::Dispatch)?;
            GRANTS.delete(change.tx, &(node.id, id))?;
            take_back(change, &grant)?;
            change.audit("approval.revoke", &format!("node:{}", node.id), id.as_bytes())?;
            change
                .notice(node::audience(change.tx, &node)?, "approval", json!({ "task_id": id, "node_id": node.id, "change": "revoked" }))
                .map_err(Refused::from)
        })
        .await
    }
}

/// Tasks that wait for their node by this approval have none any more.
fn take_back(change: &mut Change<'_>, grant: &Grant) -> Result<(), StoreError> {
    for id in crate::record::tables::OPEN_TASKS_OF_NODE.all_of(change.tx, &grant.node)? {
        let Some(mut task) = TASKS.get(change.tx, &id)?.filter(|task| task.state == State::Queued) else { continue };
        if let Some(approval) = task.approval.as_mut().filter(|approval| approval.grant.as_ref().is_some_and(|held| held.id == grant.id)) {
            approval.grant = None;
            TASKS.put(change.tx, &id, &task)?;
        }
    }
    Ok(())
}

/// Whether an approval can still let anything start.
fn counts(tx: &dyn ReadTx, grant: &Grant, node: Option<&Node>, now_ms: i64) -> Result<bool, StoreError> {
    let in_time = grant.expires_at_ms.is_none_or(|at| now_ms <= at);
    Ok(in_time && node.is_some_and(|node| policy::hash_of(node) == grant.policy) && SESSIONS.get(tx, &grant.session)?.is_some())
}

/// Forgets approvals that can let nothing start any more.
pub(crate) fn sweep(tx: &mut dyn WriteTx, now_ms: i64) -> Result<(), StoreError> {
    for grant in GRANTS.list(tx, &Span::all(), Order::Ascending, usize::MAX)? {
        let node = NODES.get(tx, &grant.node)?;
        if !counts(tx, &grant, node.as_ref(), now_ms)? {
            GRANTS.delete(tx, &(grant.node, grant.id))?;
        }
    }
    Ok(())
}

impl crate::record::Origin {
    /// As nodes are told.
    pub(crate) fn to_message(&self) -> cortex_wire::schema::Origin {
        cortex_wire::schema::Origin {
            user_id: self.user.to_string(),
            via: self.via.clone(),
            token_id: self.token.clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
