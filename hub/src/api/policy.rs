//! What nodes allow: read by those who see the node, changed by its owner or an administrator, as a person.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
};
use cortex_wire::id::NodeId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path},
    caller::Caller,
    problem::Problem,
};
use crate::{
    policy::{self, PolicyChange},
    record::{CommandRule, Mode, Node, PolicyInForce, SandboxPolicy},
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(show_policy, set_policy)).routes(routes!(policy_changes))
}

/// A node's policy: what the hub wants, what the node's own file says, and what came of both.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyView {
    /// What the hub wants the node to allow.
    pub policy: SandboxPolicy,
    /// Grows with each change; the same number is the ETag.
    pub version: u64,
    /// Names the policy in tasks and results, hexadecimal.
    pub hash: String,
    /// The node's own limits: where they are tighter, they win.
    pub ceiling: Option<SandboxPolicy>,
    /// What the node says is in force there.
    pub in_force: Option<PolicyInForce>,
    /// Whether that is this policy. A node that is away takes it over when it is back.
    pub is_in_force: bool,
}

impl From<Node> for PolicyView {
    fn from(node: Node) -> Self {
        let hash = policy::hash_of(&node);
        Self {
            version: node.policy.sequence,
            hash: hash.to_string(),
            policy: node.policy,
            ceiling: node.ceiling,
            is_in_force: node.in_force.as_ref().is_some_and(|in_force| in_force.hash == hash),
            in_force: node.in_force,
        }
    }
}

type Tagged = (HeaderMap, Json<PolicyView>);

fn tagged(node: Node) -> Tagged {
    let view = PolicyView::from(node);
    let tag = HeaderValue::from_str(&format!("\"{}\"", view.version));
    (tag.into_iter().map(|tag| (header::ETAG, tag)).collect(), Json(view))
}

/// What a node is allowed. The ETag is for `If-Match`.
#[utoipa::path(get, path = "/api/nodes/{id}/policy", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = PolicyView)))]
async fn show_policy(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Result<Tagged, Problem> {
    Ok(tagged(api.hub.node_policy(&caller.actor, id).await?))
}

/// A policy to be set.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PolicyBody {
    /// The weakest mode the node may run.
    mode: Mode,
    /// Empty: everything that is not denied.
    #[serde(default)]
    allow: Vec<CommandRule>,
    /// A person must say yes first; wins over `allow`.
    #[serde(default)]
    ask: Vec<CommandRule>,
    /// Wins over both.
    #[serde(default)]
    deny: Vec<CommandRule>,
    /// Ask about a short list of dangerous commands when a program asks for a task; true when left out.
    ask_dangerous: Option<bool>,
    /// Tasks at a time.
    task_slots: Option<u32>,
    /// Upper bound of a task's run time; 0: none.
    #[serde(default)]
    run_timeout_ms: u64,
    /// Hosts that sandboxed tasks may reach, where the node's own file allows them, too: `name`, `name:port`, `*.name` or `*`. Empty: none.
    #[serde(default)]
    network: Vec<String>,
}

/// Replaces what the hub wants a node to allow. The node's own file wins where it is tighter. Only people may do this: a token never can, whatever its scopes.
#[utoipa::path(put, path = "/api/nodes/{id}/policy", tag = "nodes",
    params(("id" = String, Path), ("If-Match" = Option<String>, Header, description = "the ETag of the policy that this one is to replace")),
    request_body = PolicyBody, responses((status = 200, body = PolicyView)))]
async fn set_policy(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<NodeId>,
    headers: HeaderMap,
    Body(body): Body<PolicyBody>,
) -> Result<Tagged, Problem> {
    let default = SandboxPolicy::default();
    let policy = SandboxPolicy {
        mode: body.mode,
        allow: body.allow,
        ask: body.ask,
        deny: body.deny,
        ask_dangerous: body.ask_dangerous.unwrap_or(default.ask_dangerous),
        task_slots: body.task_slots.unwrap_or(default.task_slots),
        run_timeout_ms: body.run_timeout_ms,
        network: body.network,
        sequence: default.sequence,
    };
    Ok(tagged(api.hub.set_policy(&caller.actor, id, policy, expected(&headers)?).await?))
}

fn expected(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH).map(|value| value.to_str().unwrap_or_default().trim()) else { return Ok(None) };
    if tag == "*" {
        return Ok(None);
    }
    tag.trim_matches('"').parse().map(Some).map_err(|_| Problem::malformed("`If-Match` takes the ETag of a policy, or *"))
}

/// What changed in a node's policy, when, and by whom.
#[derive(Serialize, ToSchema)]
struct PolicyChanges {
    /// Newest first, at most 100.
    items: Vec<PolicyChange>,
}

/// The changes of a node's policy.
#[utoipa::path(get, path = "/api/nodes/{id}/policy/changes", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = PolicyChanges)))]
async fn policy_changes(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Answer<PolicyChanges> {
    Ok(Json(PolicyChanges { items: api.hub.policy_changes(&caller.actor, id).await? }))
}
