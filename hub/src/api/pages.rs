//! The pages for people: a start page, the download page, and what they load. Nothing in them comes from a stranger; what does (names of
//! machines) is put in by the script, as text.

use axum::{
    Router,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::problem::Problem;

/// The routes.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(|| async { html(include_str!("../../assets/index.html")) }))
        .route("/download", get(|| async { html(include_str!("../../assets/download.html")) }))
        .route("/assets/app.js", get(|| async { asset("text/javascript; charset=utf-8", include_str!("../../assets/app.js")) }))
        .route("/assets/style.css", get(|| async { asset("text/css; charset=utf-8", include_str!("../../assets/style.css")) }))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
}

fn html(page: &'static str) -> Response {
    asset("text/html; charset=utf-8", page)
}

/// A hub that was upgraded serves other pages: browsers ask each time.
fn asset(media_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// What no route knows.
pub async fn nothing_here(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {}", uri.path()), "see /api/docs for what there is")
}

/// A path that is known, with another method.
pub async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take that method",
        "see /api/docs for the methods of each path",
    )
}
