//! Nodes: listed, described, renamed, approved, shared, removed, and what they are allowed.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State, http::StatusCode};
use cortex_wire::id::NodeId;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    problem::Problem,
    view::{Names, NodeStatus, NodeView, TaskBrief},
};
use crate::{
    node::NodeUpdate,
    record::{Node, PathPolicy},
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_nodes))
        .routes(routes!(show_node, update_node, delete_node))
        .routes(routes!(node_status))
        .routes(routes!(approve_node))
        .routes(routes!(revoke_node))
        .routes(routes!(drain_node))
        .routes(routes!(undrain_node))
        .routes(routes!(share_node, unshare_node))
}

async fn view(api: &Api, node: Node) -> Answer<NodeView> {
    Ok(Json(NodeView::new(node, &mut Names::new(&api.hub)).await?))
}

/// The nodes that the caller owns, that were shared with them, or that are attached to sessions they are in; by name.
#[utoipa::path(get, path = "/api/nodes", tag = "nodes", params(PageQuery), responses((status = 200, body = Page<NodeView>)))]
async fn list_nodes(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<NodeView>> {
    let nodes = page.cut(api.hub.nodes(&caller.actor).await?, |node| node.id.to_string())?;
    let mut names = Names::new(&api.hub);
    let mut items = Vec::with_capacity(nodes.items.len());
    for node in nodes.items {
        items.push(NodeView::new(node, &mut names).await?);
    }
    Ok(Json(Page { items, next_cursor: nodes.next_cursor }))
}

/// One node.
#[utoipa::path(get, path = "/api/nodes/{id}", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = NodeView)))]
async fn show_node(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Answer<NodeView> {
    view(&api, api.hub.node(&caller.actor, id).await?).await
}

/// How a node does now: state, since when, relay, path, round trip, health, tasks, and why it is away.
#[utoipa::path(get, path = "/api/nodes/{id}/status", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = NodeStatus)))]
async fn node_status(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Answer<NodeStatus> {
    let node = api.hub.node(&caller.actor, id).await?;
    let open = api.hub.open_tasks(&caller.actor, id).await?;
    Ok(Json(NodeStatus {
        id,
        presence: api.hub.presence.of(&node),
        agent: node.agent,
        sandbox_level: node.capabilities.sandbox_level,
        sandbox_missing: node.capabilities.sandbox_missing,
        refusal: node.refusal,
        open_tasks: open
            .into_iter()
            .map(|task| TaskBrief { id: task.id, session_id: task.session, state: task.state, created_at_ms: task.created_at_ms })
            .collect(),
    }))
}

/// Changes to a node; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NodeChanges {
    /// A new name.
    name: Option<String>,
    /// All its labels.
    labels: Option<BTreeMap<String, String>>,
    /// Which ways its packets may go: "auto" (directly where that works), "direct_only", "relay_only".
    path_policy: Option<PathPolicy>,
}

/// Renames or relabels a node, or says which ways its packets may go.
#[utoipa::path(patch, path = "/api/nodes/{id}", tag = "nodes", params(("id" = String, Path)), request_body = NodeChanges, responses((status = 200, body = NodeView)))]
async fn update_node(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<NodeId>,
    Body(body): Body<NodeChanges>,
) -> Answer<NodeView> {
    let update = NodeUpdate { name: body.name, labels: body.labels, path_policy: body.path_policy };
    view(&api, api.hub.update_node(&caller.actor, id, update).await?).await
}

/// Removes a node: it is disconnected and leaves every session. Its tasks and their output stay.
#[utoipa::path(delete, path = "/api/nodes/{id}", tag = "nodes", params(("id" = String, Path)), responses((status = 204)))]
async fn delete_node(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Result<StatusCode, Problem> {
    api.hub.delete_node(&caller.actor, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets a pending node work. Compare its fingerprint with what the peer prints first.
#[utoipa::path(post, path = "/api/nodes/{id}/approve", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = NodeView)))]
async fn approve_node(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Answer<NodeView> {
    view(&api, api.hub.approve_node(&caller.actor, id).await?).await
}

/// Shuts a node out for good; its open tasks are lost.
#[utoipa::path(post, path = "/api/nodes/{id}/revoke", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = NodeView)))]
async fn revoke_node(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Answer<NodeView> {
    view(&api, api.hub.revoke_node(&caller.actor, id).await?).await
}

/// Gives a node no new tasks: it finishes what it has, and the pool asks others. Tasks that were dispatched to it by name wait as long as they may.
#[utoipa::path(post, path = "/api/nodes/{id}/drain", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = NodeView)))]
async fn drain_node(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Answer<NodeView> {
    view(&api, api.hub.drain_node(&caller.actor, id, true).await?).await
}

/// Takes that back.
#[utoipa::path(post, path = "/api/nodes/{id}/undrain", tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = NodeView)))]
async fn undrain_node(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<NodeId>) -> Answer<NodeView> {
    view(&api, api.hub.drain_node(&caller.actor, id, false).await?).await
}

/// Lets another user see a node and attach it to sessions of theirs.
#[utoipa::path(put, path = "/api/nodes/{id}/shares/{user}", tag = "nodes", params(("id" = String, Path), ("user" = String, Path, description = "login name")), responses((status = 200, body = NodeView)))]
async fn share_node(State(api): State<Arc<Api>>, caller: Caller, Path((id, user)): Path<(NodeId, String)>) -> Answer<NodeView> {
    view(&api, api.hub.share_node(&caller.actor, id, &user).await?).await
}

/// Takes that back.
#[utoipa::path(delete, path = "/api/nodes/{id}/shares/{user}", tag = "nodes", params(("id" = String, Path), ("user" = String, Path, description = "login name")), responses((status = 200, body = NodeView)))]
async fn unshare_node(State(api): State<Arc<Api>>, caller: Caller, Path((id, user)): Path<(NodeId, String)>) -> Answer<NodeView> {
    view(&api, api.hub.unshare_node(&caller.actor, id, &user).await?).await
}
