//! Commands that wait for a person: listed, approved, denied; and approvals that are remembered, listed and revoked.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use cortex_wire::id::{NodeId, SessionId, TaskId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    problem::Problem,
    view::{Names, OriginView, TaskView},
};
use crate::{
    approval::Waiting,
    record::{
        TaskSpec,
        approval::{Approval, Grant, Reach},
    },
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_approvals))
        .routes(routes!(approve_task))
        .routes(routes!(deny_task))
        .routes(routes!(list_grants))
        .routes(routes!(revoke_grant))
}

/// What a person was asked about a task, and what they said.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApprovalView {
    /// Why it is asked: "policy_ask", "dangerous_command", "policy_unparsable".
    pub code: String,
    /// The same for a person.
    pub question: String,
    /// When.
    pub asked_at_ms: i64,
    /// No answer by then means no.
    pub expires_at_ms: i64,
    /// The yes that fits.
    pub grant: Option<GrantView>,
    /// Who said no.
    #[schema(value_type = Option<String>)]
    pub denied_by: Option<UserId>,
}

impl From<Approval> for ApprovalView {
    fn from(approval: Approval) -> Self {
        Self {
            code: approval.code,
            question: approval.question,
            asked_at_ms: approval.asked_at_ms,
            expires_at_ms: approval.expires_at_ms,
            grant: approval.grant.map(Into::into),
            denied_by: approval.denied_by,
        }
    }
}

/// Somebody's yes.
#[derive(Debug, Serialize, ToSchema)]
pub struct GrantView {
    /// Of the task that it was given for.
    #[schema(value_type = String)]
    pub id: TaskId,
    /// Where it counts.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// Where it counts.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// Who said it.
    #[schema(value_type = String)]
    pub user_id: UserId,
    /// Their login name, where approvals and tasks are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How far it reaches.
    pub reach: Reach,
    /// With the reach "prefix": the words.
    pub prefix: Vec<String>,
    /// The command that it was given for.
    pub command: String,
    /// Under another policy it says nothing; hexadecimal.
    pub policy_hash: String,
    /// When.
    pub at_ms: i64,
    /// Not good after this; none: as long as the session lasts.
    pub expires_at_ms: Option<i64>,
}

impl From<Grant> for GrantView {
    fn from(grant: Grant) -> Self {
        Self {
            id: grant.id,
            node_id: grant.node,
            session_id: grant.session,
            user_id: grant.by,
            user: None,
            reach: grant.reach,
            prefix: grant.prefix,
            command: grant.command,
            policy_hash: grant.policy.to_string(),
            at_ms: grant.at_ms,
            expires_at_ms: grant.expires_at_ms,
        }
    }
}

/// A task that waits for somebody's word.
#[derive(Debug, Serialize, ToSchema)]
pub struct WaitingView {
    /// The task.
    #[schema(value_type = String)]
    pub task_id: TaskId,
    /// Where it belongs.
    #[schema(value_type = String)]
    pub session_id: SessionId,
    /// Where it would run.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// That node's name.
    pub node: String,
    /// Who asked for it.
    pub origin: OriginView,
    /// What it would do.
    pub spec: TaskSpec,
    /// Why it is asked: "policy_ask", "dangerous_command", "policy_unparsable".
    pub code: String,
    /// The same for a person.
    pub question: String,
    /// When.
    pub asked_at_ms: i64,
    /// No answer by then means no.
    pub expires_at_ms: i64,
    /// Whether the account that asks may answer. It must be logged in for that: a token never answers.
    pub may_answer: bool,
}

impl From<Waiting> for WaitingView {
    fn from(Waiting { task, node_name, may_answer }: Waiting) -> Self {
        let asked = task.approval.as_ref();
        Self {
            task_id: task.id,
            session_id: task.session,
            node_id: task.node,
            node: node_name,
            code: asked.map_or_else(String::new, |asked| asked.code.clone()),
            question: asked.map_or_else(String::new, |asked| asked.question.clone()),
            asked_at_ms: asked.map_or(0, |asked| asked.asked_at_ms),
            expires_at_ms: asked.map_or(0, |asked| asked.expires_at_ms),
            origin: task.origin.into(),
            spec: task.spec,
            may_answer,
        }
    }
}

/// Tasks that wait for a person: of nodes for which the caller may answer, and of sessions they are in; oldest first.
#[utoipa::path(get, path = "/api/approvals", tag = "approvals", params(PageQuery), responses((status = 200, body = Page<WaitingView>)))]
async fn list_approvals(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<WaitingView>> {
    let waiting = page.cut(api.hub.approvals(&caller.actor).await?, |waiting| waiting.task.id.to_string())?;
    let mut views = waiting.map(WaitingView::from);
    let mut names = Names::new(&api.hub);
    for view in &mut views.items {
        view.origin.name = Some(names.of(view.origin.user_id).await?);
    }
    Ok(Json(views))
}

/// A yes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ApproveBody {
    /// "once" (when left out), "half_hour", "session", "prefix".
    reach: Option<Reach>,
    /// With the reach "prefix": the first words of the commands, such as ["git", "push"].
    #[serde(default)]
    prefix: Vec<String>,
}

/// Says yes to a task that waits: it goes to its node. For the node's owner and administrators, logged in.
#[utoipa::path(post, path = "/api/approvals/{id}/approve", tag = "approvals", params(("id" = String, Path, description = "the task")), request_body = ApproveBody, responses((status = 200, body = TaskView)))]
async fn approve_task(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<TaskId>,
    Body(body): Body<ApproveBody>,
) -> Answer<TaskView> {
    let reach = body.reach.unwrap_or(if body.prefix.is_empty() { Reach::Once } else { Reach::Prefix });
    Ok(Json(api.hub.approve(&caller.actor, id, reach, body.prefix).await?.into()))
}

/// A no.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DenyBody {
    /// For whoever asked.
    #[serde(default)]
    reason: String,
}

/// Says no to a task that waits: it is rejected. For the node's owner and administrators, logged in.
#[utoipa::path(post, path = "/api/approvals/{id}/deny", tag = "approvals", params(("id" = String, Path, description = "the task")), request_body = DenyBody, responses((status = 200, body = TaskView)))]
async fn deny_task(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<TaskId>, Body(body): Body<DenyBody>) -> Answer<TaskView> {
    Ok(Json(api.hub.deny(&caller.actor, id, &body.reason).await?.into()))
}

/// Remembered approvals that still count, of nodes for which the caller may answer; newest first.
#[utoipa::path(get, path = "/api/approvals/remembered", tag = "approvals", params(PageQuery), responses((status = 200, body = Page<GrantView>)))]
async fn list_grants(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<GrantView>> {
    let grants = page.cut(api.hub.grants(&caller.actor).await?, |grant| grant.id.to_string())?;
    let mut views = grants.map(GrantView::from);
    let mut names = Names::new(&api.hub);
    for view in &mut views.items {
        view.user = Some(names.of(view.user_id).await?);
    }
    Ok(Json(views))
}

/// Takes a remembered approval back.
#[utoipa::path(delete, path = "/api/approvals/remembered/{id}", tag = "approvals", params(("id" = String, Path)), responses((status = 204)))]
async fn revoke_grant(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<TaskId>) -> Result<StatusCode, Problem> {
    api.hub.revoke_grant(&caller.actor, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
