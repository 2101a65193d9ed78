//! What a hub says of itself to whoever asks: the key that relays and nodes know it by.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Api;

/// The route.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(introduce))
}

/// Who this hub is.
#[derive(Debug, Serialize, ToSchema)]
struct Introduction {
    /// Its root key, as `--hub` of a relay takes it.
    key: String,
    /// The same, short enough for people to compare.
    fingerprint: String,
}

/// The key of this hub, for relays that were given its address. It is no secret: every invite has it.
#[utoipa::path(get, path = "/api/hub", tag = "operation", security(()), responses((status = 200, body = Introduction)))]
async fn introduce(State(api): State<Arc<Api>>) -> Json<Introduction> {
    let hub = api.hub.id();
    Json(Introduction { key: hub.to_string(), fingerprint: hub.key().fingerprint() })
}
