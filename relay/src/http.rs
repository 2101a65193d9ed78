//! Health and metrics for the operator.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering::Relaxed};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use cortex_runtime::lifecycle::Lifecycle;

use crate::{Relay, route::Drop};

/// Serves `/healthz`, `/readyz` and `/metrics` until the lifecycle stops.
///
/// # Errors
/// When the address cannot be had.
pub async fn serve(listen: SocketAddr, relay: Arc<Relay>, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| anyhow::anyhow!("cannot listen on TCP {listen}: {error}; choose another address with `http:`"))?;
    axum::serve(listener, router(relay)).with_graceful_shutdown(async move { lifecycle.stopping().await }).await?;
    Ok(())
}

fn router(relay: Arc<Relay>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .with_state(relay)
}

async fn readiness(State(relay): State<Arc<Relay>>) -> (StatusCode, String) {
    let hubs = relay.hubs();
    let lines: String =
        hubs.iter().map(|(hub, online)| format!("hub {hub} {}\n", if *online { "connected" } else { "not connected" })).collect();
    match hubs.iter().any(|(_, online)| *online) {
        true => (StatusCode::OK, lines),
        false if hubs.is_empty() => (StatusCode::SERVICE_UNAVAILABLE, "no hub is configured; start with --hub KEY\n".into()),
        false => (StatusCode::SERVICE_UNAVAILABLE, lines),
    }
}

async fn metrics(State(relay): State<Arc<Relay>>) -> String {
    let counters = relay.counters();
    let mut out = String::new();
    let mut line = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
        out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (labels, value) in values {
            out.push_str(&format!("{name}{labels} {value}\n"));
        }
    };
    let one = |value| [(String::new(), value)];
    line("cortex_relay_links", "gauge", "Links of nodes and hubs.", &one(relay.links() as u64));
    line("cortex_relay_tunnels", "gauge", "Connections over TCP that carry links.", &one(relay.tunnels() as u64));
    line(
        "cortex_relay_hubs_connected",
        "gauge",
        "Hubs that are connected.",
        &one(relay.hubs().iter().filter(|(_, online)| *online).count() as u64),
    );
    line("cortex_relay_forwarded_packets_total", "counter", "Packets forwarded.", &one(counters.packets.load(Relaxed)));
    line("cortex_relay_forwarded_bytes_total", "counter", "Bytes forwarded.", &one(counters.bytes.load(Relaxed)));
    let chunks = relay.chunks();
    let passed = &chunks.counters;
    let sources = [("cache", &passed.from_cache), ("hub", &passed.from_hub)];
    let given = sources.map(|(source, bytes)| (format!("{{source=\"{source}\"}}"), bytes.load(Relaxed)));
    line("cortex_relay_chunk_bytes_total", "counter", "Bytes of sealed chunks for nodes, by where they came from.", &given);
    line(
        "cortex_relay_stored_chunk_bytes_total",
        "counter",
        "Bytes of sealed chunks that nodes stored.",
        &one(passed.stored.load(Relaxed)),
    );
    line("cortex_relay_cache_bytes", "gauge", "Bytes of sealed chunks held in memory.", &one(chunks.bytes()));
    let dropped: Vec<_> =
        Drop::ALL.iter().map(|reason| (format!("{{reason=\"{}\"}}", reason.label()), counters.dropped(*reason))).collect();
    line("cortex_relay_dropped_packets_total", "counter", "Packets dropped, by reason.", &dropped);
    out
}
