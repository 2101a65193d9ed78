//! Health and metrics for the operator, over HTTP.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use cortex_runtime::{lifecycle::Lifecycle, metrics::Exposition};
use cortex_wire::id::HubId;

use crate::{
    Relay,
    health::{Probe, Readiness},
    metrics,
};

/// Serves `/healthz`, `/readyz` and `/metrics` until the lifecycle stops.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(listen: SocketAddr, relay: Arc<Relay>, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on TCP {listen}: {error}; choose another address with `http:`"))?;
    tracing::info!(listen = %listener.local_addr()?, "health and metrics are served");
    axum::serve(listener, router(relay)).with_graceful_shutdown(async move { lifecycle.stopping().await }).await?;
    Ok(())
}

fn router(relay: Arc<Relay>) -> Router {
    let probe = Arc::new(Probe::new(relay.clone()));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness).with_state(probe))
        .route("/metrics", get(text).with_state(relay))
}

/// What a probe may ask for.
#[derive(Debug, serde::Deserialize)]
struct Asked {
    /// Of the hubs only this one counts.
    hub: Option<HubId>,
}

async fn readiness(State(probe): State<Arc<Probe>>, Query(asked): Query<Asked>) -> (StatusCode, Json<Readiness>) {
    let found = probe.look().await.narrowed(asked.hub);
    let status = if found.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(found))
}

async fn text(State(relay): State<Arc<Relay>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, Exposition::CONTENT_TYPE)], metrics::text(&relay))
}
