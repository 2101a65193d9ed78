//! The API's description, its browsable form, the pages, and what errors look like.

use super::*;

#[test]
fn the_committed_document_is_the_generated_one() {
    let committed = include_str!("../../../openapi.json");
    let generated = crate::api::openapi::to_text(&crate::api::document()).unwrap();
    assert!(committed == generated, "hub/openapi.json is out of date; run: cargo run -p cortex-hub -- openapi > hub/openapi.json");
}

#[test]
fn every_operation_is_described_and_answers_problems() {
    let document = serde_json::to_value(crate::api::document()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = HashSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path} has a summary");
            assert_eq!(
                operation["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"],
                "#/components/schemas/Problem"
            );
            assert!(ids.insert(operation["operationId"].to_string()), "{method} {path}: its operation id is used twice");
        }
    }
    for reference in references(&document) {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
    }
}

fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| if key == "$ref" { vec![value.as_str().unwrap().to_owned()] } else { references(value) })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn the_description_and_its_browser_are_served_without_outside_assets() {
    let lab = Lab::new().await;
    assert_eq!(lab.send("GET", "/api/openapi.json", &[], None).await.expect(StatusCode::OK)["openapi"], "3.1.0");
    let page = lab.send("GET", "/api/docs/", &[], None).await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(!page.text().contains("http://") && !page.text().contains("https://"), "{}", page.text());
    for asset in ["swagger-ui-bundle.js", "swagger-ui.css", "swagger-initializer.js"] {
        assert_eq!(lab.send("GET", &format!("/api/docs/{asset}"), &[], None).await.status, StatusCode::OK, "{asset}");
    }
}

#[tokio::test]
async fn the_pages_hold_no_inline_script_and_nothing_from_elsewhere() {
    let lab = Lab::new().await;
    for path in ["/", "/download"] {
        let page = lab.send("GET", path, &[], None).await;
        assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
        let html = page.text();
        assert!(html.contains("<html lang=\"en\">") && html.contains("<title>"));
        for script in html.split("<script").skip(1) {
            assert!(script.contains(" src=\"/assets/"), "{path}: an inline script");
        }
        for forbidden in ["style=\"", "onclick", "<style", "javascript:", "src=\"http", "href=\"http"] {
            assert!(!html.contains(forbidden), "{path}: {forbidden}");
        }
    }
}

#[tokio::test]
async fn whoever_wants_a_page_gets_it_under_every_address_that_is_not_the_apis() {
    let lab = Lab::new().await;
    let start = lab.send("GET", "/", &[], None).await;
    for path in ["/sessions/0192", "/machines", "/a/b/c"] {
        assert_eq!(lab.send("GET", path, &[("accept", "text/html,*/*")], None).await.text(), start.text(), "{path}");
        lab.send("GET", path, &[("accept", "application/json")], None).await.problem(StatusCode::NOT_FOUND);
    }
    for path in ["/api/nowhere", "/assets/nothing.js", "/dist/nothing", "/assets/..%2findex.html", "/assets/..%2f..%2fpackage.json"] {
        lab.send("GET", path, &[("accept", "text/html")], None).await.problem(StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn assets_are_packed_and_kept_for_ever_and_a_hub_without_its_page_says_so() {
    let lab = Lab::new().await;
    let page = lab.send("GET", "/", &[], None).await;
    assert_ne!(page.headers["cache-control"], "public, max-age=31536000, immutable", "an upgraded hub has another page");
    let Some(script) = page.text().split("src=\"").nth(1).and_then(|rest| rest.split('"').next()) else {
        return assert!(page.text().contains("make build"), "{}", page.text());
    };
    let plain = lab.send("GET", script, &[], None).await;
    assert_eq!((plain.status, plain.headers.get("content-encoding")), (StatusCode::OK, None));
    assert_eq!(plain.headers["content-type"], "text/javascript; charset=utf-8");
    for coding in ["br", "gzip"] {
        let packed = lab.send("GET", script, &[("accept-encoding", coding)], None).await;
        assert_eq!((&packed.headers["content-encoding"], packed.body.len() < plain.body.len()), (&coding.parse().unwrap(), true));
        assert_eq!(packed.headers["cache-control"], "public, max-age=31536000, immutable");
        let etag = packed.headers["etag"].to_str().unwrap().to_owned();
        let known = lab.send("GET", script, &[("accept-encoding", coding), ("if-none-match", &etag)], None).await;
        assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));
        lab.send("GET", &format!("{script}.br"), &[], None).await.problem(StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn errors_are_problem_documents_everywhere() {
    let lab = Lab::new().await;
    lab.send("GET", "/nowhere", &[], None).await.problem(StatusCode::NOT_FOUND);
    lab.send("GET", "/api/nowhere", &[], None).await.problem(StatusCode::NOT_FOUND);
    assert_eq!(lab.send("PATCH", "/healthz", &[], None).await.problem(StatusCode::METHOD_NOT_ALLOWED), "method_not_allowed");
    lab.get(&lab.ada, "/api/tasks/not-an-id").await.problem(StatusCode::NOT_FOUND);
    assert_eq!(lab.get(&lab.ada, "/api/nodes?limt=3").await.problem(StatusCode::BAD_REQUEST), "malformed_request");
    let unknown = lab.post(&lab.ada, "/api/sessions", json!({"titel": "x"})).await;
    assert_eq!(unknown.problem(StatusCode::BAD_REQUEST), "malformed_request");
    assert!(unknown.json()["detail"].as_str().unwrap().contains("did you mean `title`?"));
    let bearer = format!("Bearer {}", lab.ada);
    let text = lab.send("POST", "/api/sessions", &[("authorization", &bearer), ("content-type", "text/plain")], Some(json!({}))).await;
    assert_eq!(text.problem(StatusCode::UNSUPPORTED_MEDIA_TYPE), "json_expected");
    let large = lab.post(&lab.ada, "/api/sessions", json!({"title": "x".repeat(3 * 1024 * 1024)})).await;
    assert_eq!(large.problem(StatusCode::PAYLOAD_TOO_LARGE), "body_too_large");
}

#[tokio::test]
async fn metrics_count_and_probes_answer() {
    let lab = Lab::new().await;
    let node = lab.node(&lab.ada, 1).await;
    let session = lab.session(&lab.ada, &node).await;
    lab.task(&lab.ada, &session, &node).await;
    let reply = lab.get(&lab.ada, "/metrics").await;
    assert_eq!(reply.headers["content-type"], "text/plain; version=0.0.4");
    for line in ["cortex_dispatch_seconds_count 1", "cortex_nodes{state=\"online\"} 1", "cortex_open_tasks{state=\"running\"} 1"] {
        assert!(reply.text().lines().any(|found| found == line), "{line} is missing in\n{}", reply.text());
    }
    let ready = lab.send("GET", "/readyz", &[], None).await.expect(StatusCode::OK);
    assert_eq!(ready, json!({"ready": true, "store": true, "mesh": true, "draining": false, "problems": []}));
    lab.api.lifecycle.drain();
    assert_eq!(lab.send("GET", "/readyz", &[], None).await.expect(StatusCode::SERVICE_UNAVAILABLE)["draining"], true);
    let open = Lab::with(ApiOptions { open_metrics: true, ..ApiOptions::default() }).await;
    assert_eq!(open.send("GET", "/metrics", &[], None).await.status, StatusCode::OK);
}
