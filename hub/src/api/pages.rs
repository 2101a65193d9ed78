//! The pages for people: a start page, the download page, and what they load. Nothing in them comes from a stranger; what does (names of
//! machines) is put in by the script, as text.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    Api,
    dist::{Program, file_name},
    problem::Problem,
};

const DOWNLOAD: &str = include_str!("../../assets/download.html");
/// Where the table of programs goes.
const PROGRAMS: &str = "<!-- programs -->";

/// The routes.
pub fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/", get(|| async { asset("text/html; charset=utf-8", include_str!("../../assets/index.html")) }))
        .route("/download", get(download))
        .route("/assets/app.js", get(|| async { asset("text/javascript; charset=utf-8", include_str!("../../assets/app.js")) }))
        .route("/assets/style.css", get(|| async { asset("text/css; charset=utf-8", include_str!("../../assets/style.css")) }))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
}

/// A hub that was upgraded serves other pages: browsers ask each time.
fn asset(media_type: &'static str, text: impl IntoResponse) -> Response {
    let mut response = ([(header::CACHE_CONTROL, "no-cache")], text).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    response
}

async fn download(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let rows: String = api.programs().await?.iter().map(row).collect();
    Ok(asset("text/html; charset=utf-8", DOWNLOAD.replace(PROGRAMS, &rows)))
}

fn row(program: &Program) -> String {
    let mut row = format!("<tr><th scope=\"row\">{}</th>", escape(program.title));
    let _ = match (&program.path, program.bytes, &program.sha256) {
        (Some(path), Some(bytes), Some(sha256)) => {
            let (name, mebibytes) = (file_name(program.platform), bytes.div_ceil(1024 * 1024));
            let (path, name, sha256) = (escape(path), escape(&name), escape(sha256));
            write!(row, "<td><a href=\"{path}\" download>{name}</a> ({mebibytes} MiB)</td><td><code>{sha256}</code></td></tr>")
        }
        _ => write!(row, "<td colspan=\"2\">not available on this hub</td></tr>"),
    };
    row
}

/// Text as markup shows it.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_in_markup() {
        assert_eq!(escape("<a href=\"x\" title='&'>"), "&lt;a href=&quot;x&quot; title=&#39;&amp;&#39;&gt;");
    }

    #[test]
    fn the_page_has_a_place_for_the_programs() {
        assert_eq!(DOWNLOAD.matches(PROGRAMS).count(), 1);
    }
}
