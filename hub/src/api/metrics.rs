//! What the API counts for operators.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::Response,
};
pub use cortex_runtime::metrics::{Exposition, Histogram};

use super::Api;

/// What is counted while the hub runs.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By hundreds of the status.
    requests: [AtomicU64; 6],
    dispatches: Histogram,
}

impl Metrics {
    /// A dispatch was answered after this time.
    pub fn dispatch_took(&self, took: Duration) {
        self.dispatches.note(took);
    }

    fn answered(&self, status: StatusCode) {
        if let Some(count) = self.requests.get(usize::from(status.as_u16() / 100)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// What was counted here.
    pub fn write(&self, out: &mut Exposition) {
        out.head("cortex_http_requests_total", "counter", "HTTP requests answered, by class of status.");
        for (hundreds, count) in self.requests.iter().enumerate().skip(1) {
            out.line(&format!("cortex_http_requests_total{{status=\"{hundreds}xx\"}}"), count.load(Relaxed));
        }
        self.dispatches.write(out, "cortex_dispatch_seconds", "Time to accept a dispatch: from the request to its durable commit.");
    }
}

/// Counts a request, and notes it for whoever debugs. Nothing of what people typed is in it.
pub async fn count(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let began = std::time::Instant::now();
    let what = tracing::enabled!(tracing::Level::DEBUG).then(|| (request.method().clone(), request.uri().path().to_owned()));
    let response = next.run(request).await;
    api.metrics.answered(response.status());
    if let Some((method, path)) = what {
        tracing::debug!(%method, path, status = response.status().as_u16(), took_us = began.elapsed().as_micros(), "answered");
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_in_its_bucket_and_all_above() {
        let metrics = Metrics::default();
        metrics.dispatch_took(Duration::from_micros(1_500));
        metrics.answered(StatusCode::NOT_FOUND);
        let mut out = Exposition::default();
        metrics.write(&mut out);
        let text = out.into_text();
        for line in [
            "cortex_http_requests_total{status=\"4xx\"} 1",
            "cortex_dispatch_seconds_bucket{le=\"0.001\"} 0",
            "cortex_dispatch_seconds_bucket{le=\"0.002\"} 1",
            "cortex_dispatch_seconds_bucket{le=\"+Inf\"} 1",
            "cortex_dispatch_seconds_sum 0.0015",
            "cortex_dispatch_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
