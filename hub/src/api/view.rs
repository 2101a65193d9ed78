//! What the API shows of the records: ids as text, names beside ids, and no secret.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use cortex_wire::{
    id::{InviteId, NodeId, SessionId, TaskId, UserId},
    task::State,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{approval::ApprovalView, paging::Page};
use crate::{
    hub::Hub,
    presence::Presence,
    record::{
        ApiToken, AuditRow, Capabilities, Event, Evidence, Invite, InviteRefusal, MemberRole, Node, NodeRefusal, Notice, Origin,
        PathPolicy, PoolRecord, Role, Scope, Session, SessionStatus, Standing, Task, TaskSpec, Usage, User,
    },
    store::StoreError,
};

/// Names of users, looked up once per request.
pub struct Names {
    hub: Arc<Hub>,
    known: HashMap<UserId, String>,
}

impl Names {
    /// Nothing looked up yet.
    pub fn new(hub: &Arc<Hub>) -> Self {
        Self { hub: hub.clone(), known: HashMap::new() }
    }

    /// The user's name; their id when the account is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn of(&mut self, id: UserId) -> Result<String, StoreError> {
        if let Some(name) = self.known.get(&id) {
            return Ok(name.clone());
        }
        let name = self.hub.user(id).await?.map_or_else(|| id.to_string(), |user| user.name);
        self.known.insert(id, name.clone());
        Ok(name)
    }

    /// A task with the names of who asked and who answered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn task(&mut self, task: Task) -> Result<TaskView, StoreError> {
        let mut view = TaskView::from(task);
        view.origin.name = Some(self.of(view.origin.user_id).await?);
        if let Some(grant) = view.approval.as_mut().and_then(|approval| approval.grant.as_mut()) {
            grant.user = Some(self.of(grant.user_id).await?);
        }
        Ok(view)
    }

    /// The same for a page of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tasks(&mut self, page: Page<Task>) -> Result<Page<TaskView>, StoreError> {
        let mut items = Vec::with_capacity(page.items.len());
        for task in page.items {
            items.push(self.task(task).await?);
        }
        Ok(Page { items, next_cursor: page.next_cursor })
    }
}

/// An account.
#[derive(Debug, Serialize, ToSchema)]
pub struct UserView {
    /// The id.
    #[schema(value_type = String)]
    pub id: UserId,
    /// The login name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at_ms: i64,
    /// Shut out.
    pub disabled: bool,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        Self { id: user.id, name: user.name, role: user.role, created_at_ms: user.created_at_ms, disabled: user.disabled }
    }
}

/// An API token, without its text.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenView {
    /// The public part of its text.
    pub id: String,
    /// A label.
    pub name: String,
    /// How far it reaches.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at_ms: i64,
    /// Not good after this.
    pub expires_at_ms: Option<i64>,
    /// Up to a minute behind.
    pub last_used_at_ms: Option<i64>,
}

impl From<ApiToken> for TokenView {
    fn from(token: ApiToken) -> Self {
        let ApiToken { id, name, scopes, created_at_ms, expires_at_ms, last_used_at_ms, user: _, hash: _ } = token;
        Self { id, name, scopes, created_at_ms, expires_at_ms, last_used_at_ms }
    }
}

/// What became of an invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InviteState {
    /// It can be redeemed.
    Open,
    /// A node redeemed it.
    Used,
    /// Its owner took it back.
    Revoked,
    /// Its time is over.
    Expired,
}

/// An invite, without its text.
#[derive(Debug, Serialize, ToSchema)]
pub struct InviteView {
    /// The id.
    #[schema(value_type = String)]
    pub id: InviteId,
    /// What became of it.
    pub state: InviteState,
    /// What the node will be called; empty: what it calls itself.
    pub name: String,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// The session the node is attached to.
    #[schema(value_type = Option<String>)]
    pub session_id: Option<SessionId>,
    /// When it was made.
    pub created_at_ms: i64,
    /// Not good after this.
    pub expires_at_ms: i64,
    /// The owner has to confirm the node's fingerprint.
    pub approval: bool,
    /// The node is removed when it disconnects.
    pub ephemeral: bool,
    /// The node that redeemed it.
    #[schema(value_type = Option<String>)]
    pub node_id: Option<NodeId>,
    /// When it was redeemed.
    pub used_at_ms: Option<i64>,
    /// When its owner took it back.
    pub revoked_at_ms: Option<i64>,
    /// How many tries were refused.
    pub refusals: u64,
    /// The last one of them.
    pub last_refusal: Option<InviteRefusal>,
}

impl InviteView {
    /// The invite as it stands now.
    pub fn new(invite: Invite, now_ms: i64) -> Self {
        let state = if invite.used_by.is_some() {
            InviteState::Used
        } else if invite.revoked_at_ms.is_some() {
            InviteState::Revoked
        } else if now_ms > invite.expires_at_ms {
            InviteState::Expired
        } else {
            InviteState::Open
        };
        Self {
            id: invite.id,
            state,
            name: invite.name,
            labels: invite.labels,
            session_id: invite.session,
            created_at_ms: invite.created_at_ms,
            expires_at_ms: invite.expires_at_ms,
            approval: invite.approval,
            ephemeral: invite.ephemeral,
            node_id: invite.used_by,
            used_at_ms: invite.used_at_ms,
            revoked_at_ms: invite.revoked_at_ms,
            refusals: invite.refusals,
            last_refusal: invite.last_refusal,
        }
    }
}

/// A node.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeView {
    /// Its public key.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Of its key, to be compared with what the peer prints.
    pub fingerprint: String,
    /// What its owner calls it.
    pub name: String,
    /// Its owner.
    #[schema(value_type = String)]
    pub owner_id: UserId,
    /// Its owner's name.
    pub owner: String,
    /// For people and selectors.
    pub labels: BTreeMap<String, String>,
    /// Whether it may work.
    pub standing: Standing,
    /// How it is there now.
    pub presence: Presence,
    /// Which ways its packets may go.
    pub path_policy: PathPolicy,
    /// Since when it takes no new tasks.
    pub drained_at_ms: Option<i64>,
    /// When it was enrolled.
    pub created_at_ms: i64,
    /// When its owner confirmed it.
    pub approved_at_ms: Option<i64>,
    /// The invite it came with.
    #[schema(value_type = String)]
    pub invite_id: InviteId,
    /// Removed when it disconnects.
    pub ephemeral: bool,
    /// Who else may see and attach it.
    #[schema(value_type = Vec<String>)]
    pub shared_with: Vec<UserId>,
    /// Program and version.
    pub agent: String,
    /// What it is and has.
    pub capabilities: Capabilities,
    /// Why it was last turned away.
    pub refusal: Option<NodeRefusal>,
    /// Where its packets came from.
    pub observed_address: Option<String>,
}

impl NodeView {
    /// The node as it stands now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn new(node: Node, names: &mut Names) -> Result<Self, StoreError> {
        let presence = names.hub.presence.of(&node);
        Ok(Self {
            id: node.id,
            fingerprint: node.id.key().fingerprint(),
            name: node.name,
            owner_id: node.owner,
            owner: names.of(node.owner).await?,
            labels: node.labels,
            standing: node.standing,
            presence,
            path_policy: node.path_policy,
            drained_at_ms: node.drained_at_ms,
            created_at_ms: node.created_at_ms,
            approved_at_ms: node.approved_at_ms,
            invite_id: node.invite,
            ephemeral: node.ephemeral,
            shared_with: node.shared_with,
            agent: node.agent,
            capabilities: node.capabilities,
            refusal: node.refusal,
            observed_address: node.observed_address,
        })
    }
}

/// How a node does now.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeStatus {
    /// The node.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// State, since when, relay, path, round trip, health, last disconnect.
    #[serde(flatten)]
    pub presence: Presence,
    /// Program and version.
    pub agent: String,
    /// "permissive" or "strict".
    pub sandbox_level: String,
    /// Why it is not strict, each with its fix.
    pub sandbox_missing: Vec<String>,
    /// Why it was last turned away.
    pub refusal: Option<NodeRefusal>,
    /// Its tasks that are not final, oldest first.
    pub open_tasks: Vec<TaskBrief>,
}

/// A task in a list of a node.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskBrief {
    /// The id.
    #[schema(value_type = String)]
    pub id: TaskId,
    /// Where it belongs.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// Where it is in its life.
    #[schema(value_type = String, example = "running")]
    pub state: State,
    /// When the hub accepted it.
    pub created_at_ms: i64,
}

/// Somebody in a session.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemberView {
    /// The id.
    #[schema(value_type = String)]
    pub user_id: UserId,
    /// The login name.
    pub name: String,
    /// What they may do.
    pub role: MemberRole,
}

/// A conversation.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionView {
    /// The id.
    #[schema(value_type = String)]
    pub id: SessionId,
    /// The owner.
    #[schema(value_type = String)]
    pub user_id: UserId,
    /// The owner's name.
    pub owner: String,
    /// For people.
    pub title: String,
    /// The attached nodes, in the order in which they came.
    #[schema(value_type = Vec<String>)]
    pub node_ids: Vec<NodeId>,
    /// Who else is in it.
    pub members: Vec<MemberView>,
    /// When it was made.
    pub created_at_ms: i64,
    /// When it was last changed.
    pub updated_at_ms: i64,
    /// Whether it is in use.
    pub status: SessionStatus,
    /// Grows when a node leaves.
    pub epoch: u64,
}

impl SessionView {
    /// The session with the names of its people.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn new(session: Session, names: &mut Names) -> Result<Self, StoreError> {
        let mut members = Vec::with_capacity(session.members.len());
        for member in session.members {
            members.push(MemberView { user_id: member.user, name: names.of(member.user).await?, role: member.role });
        }
        Ok(Self {
            id: session.id,
            user_id: session.user_id,
            owner: names.of(session.user_id).await?,
            title: session.title,
            node_ids: session.nodes,
            members,
            created_at_ms: session.created_at_ms,
            updated_at_ms: session.updated_at_ms,
            status: session.status,
            epoch: session.epoch,
        })
    }
}

/// One row of a session's log.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventView {
    /// From 1, without gaps.
    pub seq: u64,
    /// When.
    pub at_ms: i64,
    /// "message", "task", "node_attached", …
    pub kind: String,
    /// Fits the kind.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self { seq: event.seq, at_ms: event.at_ms, kind: event.kind, data: event.data }
    }
}

impl From<Notice> for EventView {
    fn from(notice: Notice) -> Self {
        Self { seq: notice.seq, at_ms: notice.at_ms, kind: notice.kind, data: notice.data }
    }
}

/// Who asked for a task, and how.
#[derive(Debug, Serialize, ToSchema)]
pub struct OriginView {
    /// Who.
    #[schema(value_type = String)]
    pub user_id: UserId,
    /// Their login name, where tasks are read; the id when the account is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// "ui", "api", "mcp", "demo".
    pub via: String,
    /// The API token.
    pub token_id: Option<String>,
}

impl From<Origin> for OriginView {
    fn from(origin: Origin) -> Self {
        Self { user_id: origin.user, name: None, via: origin.via, token_id: origin.token }
    }
}

/// How a task of the pool came to its node.
#[derive(Debug, Serialize, ToSchema)]
pub struct PoolView {
    /// Which machines may run it; empty: every node of the session.
    pub selector: String,
    /// Why nobody could take it when it was dispatched.
    pub waits: Option<String>,
    /// How often it was offered under its present fence.
    pub round: u32,
    /// Whom it was offered to, in the order of their ranks: by BLAKE3 of node and task.
    #[schema(value_type = Vec<String>)]
    pub ranking: Vec<NodeId>,
    /// The claims, in the order in which they came. The first that was not refused got the task.
    pub claims: Vec<ClaimView>,
}

/// A node's claim on a task of the pool.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClaimView {
    /// Who.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// It came first, and no slot was free after all, or the node no longer fitted.
    pub refused: bool,
}

impl From<PoolRecord> for PoolView {
    fn from(pool: PoolRecord) -> Self {
        let (round, ranking, claims) = pool.placement.map(|p| (p.round, p.ranking, p.claims)).unwrap_or_default();
        let claims = claims.into_iter().map(|claim| ClaimView { node_id: claim.node, refused: claim.refused }).collect();
        Self { selector: pool.selector, waits: pool.waits, round, ranking, claims }
    }
}

/// One unit of work.
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskView {
    /// The id.
    #[schema(value_type = String)]
    pub id: TaskId,
    /// Where it belongs.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// Which node runs it; while it waits in the pool, the one that would be asked first.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// For tasks of the pool: how it came there.
    pub pool: Option<PoolView>,
    /// From 0; grows each time it is given to a node.
    pub fence: u64,
    /// Who asked.
    pub origin: OriginView,
    /// Where it is in its life.
    #[schema(value_type = String, example = "succeeded")]
    pub state: State,
    /// What it is to do.
    pub spec: TaskSpec,
    /// From 1; grows with each retry.
    pub attempt: u32,
    /// The lost task that it does again.
    #[schema(value_type = Option<String>)]
    pub retry_of: Option<TaskId>,
    /// The task that does it again.
    #[schema(value_type = Option<String>)]
    pub retried_as: Option<TaskId>,
    /// When the hub accepted it.
    pub created_at_ms: i64,
    /// Expired when not started by then.
    pub start_by_ms: i64,
    /// When it was given to the node.
    pub leased_at_ms: Option<i64>,
    /// When it started, by the node's clock.
    pub started_at_ms: Option<i64>,
    /// When it ended.
    pub finished_at_ms: Option<i64>,
    /// When somebody asked to cancel it, while it runs on.
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
    pub descendants_held_pipe: bool,
    /// It began before its folder held what was committed when it was given to the node.
    pub workspace_behind: bool,
    /// As the node found it.
    pub sandbox_level: Option<String>,
    /// Under which policy it was signed, hexadecimal.
    pub policy_hash: Option<String>,
    /// The node's signed word.
    pub evidence: Option<Evidence>,
    /// What a person was asked, and what they said.
    pub approval: Option<ApprovalView>,
}

impl From<Task> for TaskView {
    fn from(task: Task) -> Self {
        Self {
            id: task.id,
            session_id: task.session,
            node_id: task.node,
            pool: task.pool.map(PoolView::from),
            fence: task.fence,
            origin: task.origin.into(),
            state: task.state,
            spec: task.spec,
            attempt: task.attempt,
            retry_of: task.retry_of,
            retried_as: task.retried_as,
            created_at_ms: task.created_at_ms,
            start_by_ms: task.start_by_ms,
            leased_at_ms: task.leased_at_ms,
            started_at_ms: task.started_at_ms,
            finished_at_ms: task.finished_at_ms,
            cancel_asked_at_ms: task.cancel_asked_at_ms,
            exit_code: task.exit_code,
            signal: task.signal,
            code: task.code,
            reason: task.reason,
            usage: task.usage,
            stdout_bytes: task.stdout_bytes,
            stderr_bytes: task.stderr_bytes,
            truncated: task.truncated,
            descendants_held_pipe: task.descendants_held_pipe,
            workspace_behind: task.workspace_behind,
            sandbox_level: task.sandbox_level,
            policy_hash: task.policy_hash.map(|hash| hash.to_string()),
            evidence: task.evidence,
            approval: task.approval.map(Into::into),
        }
    }
}

/// One link of the audit chain.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditView {
    /// From 1, without gaps.
    pub seq: u64,
    /// When.
    pub at_ms: i64,
    /// "user:…", "node:…" or "hub".
    pub actor: String,
    /// What was done.
    pub verb: String,
    /// To what.
    pub object: String,
    /// BLAKE3 of what the row does not show, hexadecimal.
    pub digest: String,
    /// The link, hexadecimal.
    pub hash: String,
    /// In a checkpoint: the audit key's signature over the link, base64.
    pub signature: Option<String>,
}

impl From<AuditRow> for AuditView {
    fn from(row: AuditRow) -> Self {
        Self {
            seq: row.seq,
            at_ms: row.at_ms,
            actor: row.actor,
            verb: row.verb,
            object: row.object,
            digest: row.digest.to_string(),
            hash: row.hash.to_string(),
            signature: row.signature,
        }
    }
}
