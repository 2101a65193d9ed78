//! Probes and metrics: alive, ready, and counts.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::{sync::Mutex, time::timeout};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Api, caller::Caller, metrics::Exposition, problem::Problem};
use crate::{hub::RelayStatus, mirror::Mirrors, record::Scope};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz)).routes(routes!(metrics))
}

/// Alive: the process answers.
#[utoipa::path(get, path = "/healthz", tag = "operation", security(()), responses((status = 200, body = String, content_type = "text/plain")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// How long an answer counts: who probes more often gets the same one.
const FRESH: Duration = Duration::from_secs(1);
/// How long the disk may take.
const STORE: Duration = Duration::from_secs(2);

/// Whether the hub can do its work.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Readiness {
    /// All that it needs is well.
    ready: bool,
    /// A write went to the disk and came back.
    store: bool,
    /// At least one relay answered an echo.
    mesh: bool,
    /// It finishes what it does and takes nothing new.
    draining: bool,
    /// What is wrong, also with single relays while others are well.
    problems: Vec<String>,
}

/// What was found last. Held while one looks: others wait for what it finds.
#[derive(Debug, Default)]
pub struct LastLook(Mutex<Option<(Instant, Readiness)>>);

/// Ready: a write goes to the disk and back, and a relay answers. 503 when not.
#[utoipa::path(get, path = "/readyz", tag = "operation", security(()), responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
async fn readyz(State(api): State<Arc<Api>>) -> Response {
    let mut last = api.readiness.0.lock().await;
    let found = match last.take().filter(|(at, _)| at.elapsed() < FRESH) {
        Some(fresh) => fresh,
        None => (Instant::now(), look(&api).await),
    };
    let mut found = last.insert(found).1.clone();
    drop(last);
    if api.lifecycle.is_draining() {
        (found.ready, found.draining) = (false, true);
        found.problems.push("the hub is being stopped".to_owned());
    }
    let status = if found.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(found)).into_response()
}

async fn look(api: &Api) -> Readiness {
    let store = async {
        match timeout(STORE, api.hub.check_store()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                tracing::error!(%error, "the store does not answer");
                Some("store: it cannot be written to; the log says why".to_owned())
            }
            Err(_) => Some(format!("store: no answer within {} s; look at the disk of the data directory", STORE.as_secs())),
        }
    };
    let relays = async {
        match api.hub.mesh() {
            Some(mesh) => mesh.check_relays().await,
            None => Vec::new(),
        }
    };
    let (store, relays) = tokio::join!(store, relays);
    let mesh = relays.iter().any(|relay| relay.problem.is_none());
    let none = relays.is_empty().then(|| "no relay: start without --no-relay, or add one with POST /api/relays".to_owned());
    let ready = store.is_none() && mesh;
    let of_relays = relays.iter().filter_map(|relay| Some(format!("relay {}: {}", relay.relay, relay.problem.as_ref()?)));
    let problems = store.clone().into_iter().chain(of_relays).chain(none).collect();
    Readiness { ready, store: store.is_none(), mesh, draining: false, problems }
}

/// Counts, for Prometheus. For administrators, unless the configuration opens it (`open_metrics`).
#[expect(clippy::cast_precision_loss, reason = "figures for a graph")]
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
    if let Some(mesh) = api.hub.mesh() {
        let tally = mesh.pool_tally();
        let counts = [("offer", tally.offers), ("claim", tally.claims), ("grant", tally.grants), ("again", tally.again)];
        out.labelled(
            "cortex_pool_total",
            "counter",
            "What happened in the pool: offers to single nodes, claims, grants, tasks offered again.",
            "what",
            counts,
        );
        out.gauge("cortex_pool_waiting", "Tasks that wait in the pool.", mesh.offered() as u64);
    }
    workspaces(&api.hub.mirrors, &mut out);
    let relays = api.hub.relays();
    let of = |value: fn(&RelayStatus) -> Option<f64>| relays.iter().filter_map(move |relay| Some((relay.endpoint.id, value(relay)?)));
    out.labelled(
        "cortex_relay_up",
        "gauge",
        "Whether the hub has a link to a relay.",
        "relay",
        of(|relay| Some(f64::from(u8::from(relay.online)))),
    );
    out.labelled(
        "cortex_relay_load_percent",
        "gauge",
        "What a relay carries of what it can.",
        "relay",
        of(|relay| relay.load.map(f64::from)),
    );
    out.labelled(
        "cortex_relay_rtt_seconds",
        "gauge",
        "Round trip of the link to a relay.",
        "relay",
        of(|relay| Some(relay.rtt_us? as f64 / 1e6)),
    );
    out.labelled("cortex_relay_nodes", "gauge", "Nodes of this hub behind a relay.", "relay", of(|relay| Some(relay.nodes as f64)));
    Ok(([(header::CONTENT_TYPE, Exposition::CONTENT_TYPE)], out.into_text()).into_response())
}

fn workspaces(mirrors: &Mirrors, out: &mut Exposition) {
    let (counters, (used, behind)) = (&mirrors.counters, mirrors.behind());
    out.gauge("cortex_workspaces_used", "Workspaces in memory.", used);
    out.gauge("cortex_workspace_nodes_behind", "Connected nodes that do not hold the newest revision of a workspace.", behind);
    out.counter("cortex_workspace_revisions_total", "Revisions of workspaces made durable.", counters.revisions.load(Relaxed));
    out.counter("cortex_workspace_conflicts_total", "Conflicts recorded.", counters.conflicts.load(Relaxed));
    let bytes = [("in", counters.bytes_in.load(Relaxed)), ("out", counters.bytes_out.load(Relaxed))];
    out.labelled("cortex_chunk_bytes_total", "counter", "Bytes of sealed chunks from nodes, and for them.", "direction", bytes);
    out.counter("cortex_chunks_stored_total", "Sealed chunks that nodes stored.", counters.stored.load(Relaxed));
}
