//! Sessions: the conversation, who is in it, and which nodes are attached.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use cortex_wire::id::{NodeId, SessionId};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    problem::Problem,
    view::{EventView, Names, SessionView},
};
use crate::{
    record::{MemberRole, Session, SessionStatus},
    session::{NewSession, SessionUpdate},
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_sessions, create_session))
        .routes(routes!(show_session, update_session, delete_session))
        .routes(routes!(add_member, remove_member))
        .routes(routes!(attach_node, detach_node))
        .routes(routes!(list_messages, post_message))
}

async fn view(api: &Api, session: Session) -> Answer<SessionView> {
    Ok(Json(SessionView::new(session, &mut Names::new(&api.hub)).await?))
}

/// The sessions that the caller owns or is in, newest first.
#[utoipa::path(get, path = "/api/sessions", tag = "sessions", params(PageQuery), responses((status = 200, body = Page<SessionView>)))]
async fn list_sessions(State(api): State<Arc<Api>>, caller: Caller, Query(page): Query<PageQuery>) -> Answer<Page<SessionView>> {
    let sessions = page.cut(api.hub.sessions(&caller.actor).await?, |session| session.id.to_string())?;
    let mut names = Names::new(&api.hub);
    let mut items = Vec::with_capacity(sessions.items.len());
    for session in sessions.items {
        items.push(SessionView::new(session, &mut names).await?);
    }
    Ok(Json(Page { items, next_cursor: sessions.next_cursor }))
}

/// A session to be made. Everything may be left out.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct SessionBody {
    /// For people.
    title: String,
    /// Nodes to attach at once.
    #[schema(value_type = Vec<String>)]
    node_ids: Vec<NodeId>,
}

/// Makes a session.
#[utoipa::path(post, path = "/api/sessions", tag = "sessions", request_body = SessionBody, responses((status = 201, body = SessionView)))]
async fn create_session(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Body(body): Body<SessionBody>,
) -> Result<(StatusCode, Json<SessionView>), Problem> {
    let new = NewSession { title: body.title, nodes: body.node_ids };
    Ok((StatusCode::CREATED, view(&api, api.hub.create_session(&caller.actor, new).await?).await?))
}

/// One session.
#[utoipa::path(get, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path)), responses((status = 200, body = SessionView)))]
async fn show_session(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<SessionId>) -> Answer<SessionView> {
    view(&api, api.hub.session(&caller.actor, id).await?).await
}

/// Changes to a session; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SessionChanges {
    /// A new title.
    title: Option<String>,
    /// Archive it, or take it up again.
    status: Option<SessionStatus>,
}

/// Renames or archives a session.
#[utoipa::path(patch, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path)), request_body = SessionChanges, responses((status = 200, body = SessionView)))]
async fn update_session(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Body(body): Body<SessionChanges>,
) -> Answer<SessionView> {
    let update = SessionUpdate { title: body.title, status: body.status };
    view(&api, api.hub.update_session(&caller.actor, id, update).await?).await
}

/// Removes a session with its log. Its open tasks are cancelled.
#[utoipa::path(delete, path = "/api/sessions/{id}", tag = "sessions", params(("id" = String, Path)), responses((status = 204)))]
async fn delete_session(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<SessionId>) -> Result<StatusCode, Problem> {
    api.hub.delete_session(&caller.actor, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What somebody may do in a session.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MemberBody {
    /// "viewer" reads; "member" writes messages, runs tasks and attaches nodes.
    role: MemberRole,
}

/// Shares a session with a user, or changes what they may do there.
#[utoipa::path(put, path = "/api/sessions/{id}/members/{user}", tag = "sessions", params(("id" = String, Path), ("user" = String, Path, description = "login name")), request_body = MemberBody, responses((status = 200, body = SessionView)))]
async fn add_member(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, user)): Path<(SessionId, String)>,
    Body(body): Body<MemberBody>,
) -> Answer<SessionView> {
    view(&api, api.hub.add_member(&caller.actor, id, &user, body.role).await?).await
}

/// Takes somebody out of a session. Members may take themselves out.
#[utoipa::path(delete, path = "/api/sessions/{id}/members/{user}", tag = "sessions", params(("id" = String, Path), ("user" = String, Path, description = "login name")), responses((status = 204)))]
async fn remove_member(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, user)): Path<(SessionId, String)>,
) -> Result<StatusCode, Problem> {
    api.hub.remove_member(&caller.actor, id, &user).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Attaches a node; twice is fine.
#[utoipa::path(post, path = "/api/sessions/{id}/nodes/{node}", tag = "sessions", params(("id" = String, Path), ("node" = String, Path)), responses((status = 200, body = SessionView)))]
async fn attach_node(State(api): State<Arc<Api>>, caller: Caller, Path((id, node)): Path<(SessionId, NodeId)>) -> Answer<SessionView> {
    view(&api, api.hub.attach_node(&caller.actor, id, node).await?).await
}

/// Detaches a node.
#[utoipa::path(delete, path = "/api/sessions/{id}/nodes/{node}", tag = "sessions", params(("id" = String, Path), ("node" = String, Path)), responses((status = 200, body = SessionView)))]
async fn detach_node(State(api): State<Arc<Api>>, caller: Caller, Path((id, node)): Path<(SessionId, NodeId)>) -> Answer<SessionView> {
    view(&api, api.hub.detach_node(&caller.actor, id, node).await?).await
}

/// The messages of a session, oldest first. A cursor is the `seq` of the message before.
#[utoipa::path(get, path = "/api/sessions/{id}/messages", tag = "sessions", params(("id" = String, Path), PageQuery), responses((status = 200, body = Page<EventView>)))]
async fn list_messages(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Query(page): Query<PageQuery>,
) -> Answer<Page<EventView>> {
    let after = page.cursor()?.unwrap_or(0);
    let messages = api.hub.messages(&caller.actor, id, after, page.limit() + 1).await?;
    Ok(Json(page.of(messages, |message| message.seq.to_string()).map(EventView::from)))
}

/// A message to be written.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MessageBody {
    /// What to say.
    text: String,
}

/// Writes a message.
#[utoipa::path(post, path = "/api/sessions/{id}/messages", tag = "sessions", params(("id" = String, Path)), request_body = MessageBody, responses((status = 201, body = EventView)))]
async fn post_message(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Body(body): Body<MessageBody>,
) -> Result<(StatusCode, Json<EventView>), Problem> {
    let event = api.hub.post_message(&caller.actor, id, &body.text).await?;
    Ok((StatusCode::CREATED, Json(event.into())))
}
