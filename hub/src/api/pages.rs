//! The web page: one page with its scripts and styles, made by `npm run build` in `hub/ui` and put into the program when that was compiled.
//! A program that was compiled without it says so. Names of assets hold a hash of their content, so browsers keep them for ever; the page itself
//! is asked for each time.

use std::sync::Arc;

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use data_encoding::HEXLOWER;
use rust_embed::{EmbeddedFile, RustEmbed};

use super::{Api, problem::Problem};

/// In debug builds these are the files on the disk.
#[derive(RustEmbed)]
#[folder = "ui/dist"]
#[allow_missing = true]
struct Built;

const UNBUILT: &str = include_str!("../../assets/unbuilt.html");
const ICON: &str = include_str!("../../assets/icon.svg");
/// What is not the page's: programs ask there, and want to be told that there is nothing.
const NOT_PAGES: [&str; 4] = ["/api/", "/assets/", "/dist/", "/mcp"];
/// How the build packs files, most wanted first: name of the coding, and what the file's name ends with.
const CODINGS: [(&str, &str); 2] = [("br", ".br"), ("gzip", ".gz")];

/// The routes.
pub fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/", get(|headers: HeaderMap| async move { page(&headers) }))
        .route("/download", get(|headers: HeaderMap| async move { page(&headers) }))
        .route("/assets/{name}", get(asset))
        .route("/icon.svg", get(|| async { ([(header::CONTENT_TYPE, "image/svg+xml"), (header::CACHE_CONTROL, "max-age=86400")], ICON) }))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
}

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    // Packed files are what codings of others look like, and have no media type of their own.
    let known = media_type(&name).filter(|_| !name.contains(['/', '\\']));
    let media_type = known.ok_or_else(|| Problem::not_found("asset"))?;
    file(&format!("assets/{name}"), media_type, "public, max-age=31536000, immutable", &headers).ok_or_else(|| Problem::not_found("asset"))
}

/// The page. Which of its views is shown is up to its script.
fn page(headers: &HeaderMap) -> Response {
    const HTML: &str = "text/html; charset=utf-8";
    let unbuilt = || ([(header::CONTENT_TYPE, HTML), (header::CACHE_CONTROL, "no-store")], UNBUILT).into_response();
    file("index.html", HTML, "no-cache", headers).unwrap_or_else(unbuilt)
}

fn media_type(name: &str) -> Option<&'static str> {
    match name.rsplit_once('.')?.1 {
        "js" => Some("text/javascript; charset=utf-8"),
        "css" => Some("text/css; charset=utf-8"),
        "svg" => Some("image/svg+xml"),
        "woff2" => Some("font/woff2"),
        _ => None,
    }
}

/// One file, packed as its reader can unpack it; nothing of it when its reader has it already.
fn file(path: &str, media_type: &'static str, keep: &'static str, headers: &HeaderMap) -> Option<Response> {
    let (content, coding) = packed(path, headers).or_else(|| Built::get(path).map(|content| (content, None)))?;
    let etag = format!("\"{}\"", HEXLOWER.encode(&content.metadata.sha256_hash()[..16]));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(&etag));
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { content.data.into_owned().into_response() };
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static(keep));
    answer.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    answer.extend(HeaderValue::from_str(&etag).ok().map(|etag| (header::ETAG, etag)));
    answer.extend(coding.map(|coding| (header::CONTENT_ENCODING, HeaderValue::from_static(coding))));
    Some(response)
}

fn packed(path: &str, headers: &HeaderMap) -> Option<(EmbeddedFile, Option<&'static str>)> {
    let accepted = headers.get(header::ACCEPT_ENCODING)?.to_str().ok()?;
    let accepts = |coding: &str| accepted.split(',').any(|item| item.trim().eq_ignore_ascii_case(coding));
    CODINGS.into_iter().find_map(|(coding, end)| Some((Built::get(&format!("{path}{end}")).filter(|_| accepts(coding))?, Some(coding))))
}

/// What no route knows: a view of the page for those who want to look at something, a problem for everybody else.
pub async fn nothing_here(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let wants_page = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains("text/html"));
    if wants_page && matches!(method, Method::GET | Method::HEAD) && !NOT_PAGES.iter().any(|prefix| uri.path().starts_with(prefix)) {
        return page(&headers);
    }
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {}", uri.path()), "see /api/docs for what there is")
        .into_response()
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
