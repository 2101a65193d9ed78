//! Secrets by name: given, listed, removed, and never shown.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use cortex_wire::id::{SessionId, UserId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use zeroize::Zeroizing;

use super::{
    Api,
    body::{Answer, Body, Path},
    caller::Caller,
    paging::Page,
    problem::Problem,
};
use crate::secret::{Owner, SecretRecord};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list_secrets))
        .routes(routes!(put_secret, delete_secret))
        .routes(routes!(list_session_secrets))
        .routes(routes!(put_session_secret, delete_session_secret))
}

/// A secret, without its value.
#[derive(Serialize, ToSchema)]
struct SecretView {
    /// What tasks call it.
    name: String,
    /// Who gave it.
    #[schema(value_type = String)]
    created_by: UserId,
    /// When it was given, for the last time.
    created_at_ms: i64,
}

impl From<SecretRecord> for SecretView {
    fn from(record: SecretRecord) -> Self {
        Self { name: record.name, created_by: record.created_by, created_at_ms: record.created_at_ms }
    }
}

/// A value to be kept.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SecretBody {
    /// 8 bytes to 16 KiB.
    value: String,
}

fn page(secrets: Vec<SecretRecord>) -> Json<Page<SecretView>> {
    Json(Page { items: secrets.into_iter().map(SecretView::from).collect(), next_cursor: None })
}

/// Your secrets, which everything that you dispatch may use.
#[utoipa::path(get, path = "/api/secrets", tag = "secrets", responses((status = 200, body = Page<SecretView>)))]
async fn list_secrets(State(api): State<Arc<Api>>, caller: Caller) -> Answer<Page<SecretView>> {
    Ok(page(api.hub.secrets(&caller.actor, Owner::User(caller.actor.user)).await?))
}

/// Keeps a secret of yours, in the place of one of the same name. It can be used by tasks (`secrets` of a dispatch), and not be read again.
#[utoipa::path(put, path = "/api/secrets/{name}", tag = "secrets", params(("name" = String, Path)), request_body = SecretBody, responses((status = 200, body = SecretView)))]
async fn put_secret(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    Body(body): Body<SecretBody>,
) -> Answer<SecretView> {
    let owner = Owner::User(caller.actor.user);
    Ok(Json(api.hub.put_secret(&caller.actor, owner, &name, Zeroizing::new(body.value)).await?.into()))
}

/// Removes a secret of yours.
#[utoipa::path(delete, path = "/api/secrets/{name}", tag = "secrets", params(("name" = String, Path)), responses((status = 204)))]
async fn delete_secret(State(api): State<Arc<Api>>, caller: Caller, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    api.hub.delete_secret(&caller.actor, Owner::User(caller.actor.user), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A session's secrets, which everything that is dispatched in it may use. They hide yours of the same names.
#[utoipa::path(get, path = "/api/sessions/{id}/secrets", tag = "secrets", params(("id" = String, Path)), responses((status = 200, body = Page<SecretView>)))]
async fn list_session_secrets(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<SessionId>) -> Answer<Page<SecretView>> {
    Ok(page(api.hub.secrets(&caller.actor, Owner::Session(id)).await?))
}

/// Keeps a secret of a session, in the place of one of the same name.
#[utoipa::path(put, path = "/api/sessions/{id}/secrets/{name}", tag = "secrets", params(("id" = String, Path), ("name" = String, Path)), request_body = SecretBody, responses((status = 200, body = SecretView)))]
async fn put_session_secret(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, name)): Path<(SessionId, String)>,
    Body(body): Body<SecretBody>,
) -> Answer<SecretView> {
    Ok(Json(api.hub.put_secret(&caller.actor, Owner::Session(id), &name, Zeroizing::new(body.value)).await?.into()))
}

/// Removes a secret of a session.
#[utoipa::path(delete, path = "/api/sessions/{id}/secrets/{name}", tag = "secrets", params(("id" = String, Path), ("name" = String, Path)), responses((status = 204)))]
async fn delete_session_secret(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((id, name)): Path<(SessionId, String)>,
) -> Result<StatusCode, Problem> {
    api.hub.delete_secret(&caller.actor, Owner::Session(id), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
