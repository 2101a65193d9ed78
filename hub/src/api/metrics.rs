//! Counts for operators, in the text format that Prometheus reads.

use std::{
    fmt::Write as _,
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

use super::Api;

/// Upper bounds of the latency buckets, in microseconds.
const BUCKETS_US: [u64; 10] = [500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000];

/// What is counted while the hub runs.
#[derive(Debug, Default)]
pub struct Metrics {
    /// By hundreds of the status.
    requests: [AtomicU64; 6],
    dispatches: Latency,
}

#[derive(Debug, Default)]
struct Latency {
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Latency {
    fn note(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        for (bound, bucket) in BUCKETS_US.iter().zip(&self.buckets) {
            if took_us <= *bound {
                bucket.fetch_add(1, Relaxed);
            }
        }
        self.sum_us.fetch_add(took_us, Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "microseconds shown as seconds")]
    fn write(&self, out: &mut Exposition, name: &str, help: &str) {
        out.head(name, "histogram", help);
        let count = self.count.load(Relaxed);
        for (bound, bucket) in BUCKETS_US.iter().zip(&self.buckets) {
            out.line(&format!("{name}_bucket{{le=\"{}\"}}", *bound as f64 / 1e6), bucket.load(Relaxed));
        }
        out.line(&format!("{name}_bucket{{le=\"+Inf\"}}"), count);
        out.line(&format!("{name}_sum"), self.sum_us.load(Relaxed) as f64 / 1e6);
        out.line(&format!("{name}_count"), count);
    }
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

/// Text in Prometheus' exposition format.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a metric.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of it, under a name with labels.
    pub fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.0
    }
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
