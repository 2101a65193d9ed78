//! Probes and metrics: alive, ready, and counts.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Api, caller::Caller, metrics::Exposition, problem::Problem};
use crate::record::Scope;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz)).routes(routes!(metrics))
}

/// Alive: the process answers.
#[utoipa::path(get, path = "/healthz", tag = "operation", security(()), responses((status = 200, body = String, content_type = "text/plain")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the hub can do its work.
#[derive(Serialize, ToSchema)]
struct Readiness {
    /// All of the below is well.
    ready: bool,
    /// A write went to the disk and came back.
    store: bool,
    /// The hub has a link to at least one relay.
    mesh: bool,
    /// It finishes what it does and takes nothing new.
    draining: bool,
}

/// Ready: a write goes to the disk and back, and a relay is linked. 503 when not.
#[utoipa::path(get, path = "/readyz", tag = "operation", security(()), responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
async fn readyz(State(api): State<Arc<Api>>) -> Response {
    let store = api.hub.check_store().await.inspect_err(|error| tracing::error!(%error, "the store does not answer")).is_ok();
    let mesh = api.hub.mesh().is_some_and(|mesh| mesh.relays().iter().any(|relay| relay.online));
    let draining = api.lifecycle.is_draining();
    let ready = store && mesh && !draining;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, store, mesh, draining })).into_response()
}

/// Counts, for Prometheus. For administrators, unless the configuration opens it (`open_metrics`).
#[utoipa::path(get, path = "/metrics", tag = "operation", responses((status = 200, body = String, content_type = "text/plain")))]
async fn metrics(State(api): State<Arc<Api>>, caller: Option<Caller>) -> Result<Response, Problem> {
    if !api.options.open_metrics {
        caller.ok_or_else(Problem::unauthenticated)?.actor.must(Scope::Admin)?;
    }
    let mut out = Exposition::default();
    out.head("cortex_build_info", "gauge", "The program's version.");
    out.line(concat!("cortex_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1);
    api.metrics.write(&mut out);
    out.head("cortex_http_streams", "gauge", "Open event and output streams.");
    out.line("cortex_http_streams", api.streams.total());
    let counts = api.hub.counts().await?;
    out.head("cortex_nodes", "gauge", "Nodes of all users, by how they are there.");
    for (state, count) in counts.nodes {
        out.line(&format!("cortex_nodes{{state=\"{state}\"}}"), count);
    }
    out.head("cortex_open_tasks", "gauge", "Tasks that are not final, by state.");
    for (state, count) in counts.open_tasks {
        out.line(&format!("cortex_open_tasks{{state=\"{state}\"}}"), count);
    }
    let relays = api.hub.relays();
    out.head("cortex_relay_up", "gauge", "Whether the hub has a link to a relay.");
    for relay in &relays {
        out.line(&format!("cortex_relay_up{{relay=\"{}\"}}", relay.endpoint.id), u8::from(relay.online));
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], out.into_text()).into_response())
}
