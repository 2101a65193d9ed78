//! What every request passes before its handler, and every response on its way out: the Host allow-list, the check that a page of ours
//! asks, and the headers that keep browsers careful.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    Api,
    body::is_json,
    credential,
    problem::Problem,
    site::{Site, requested_host},
};

/// No script, style or connection that is not our own; nobody may frame us. `blob:` is for pictures that our page has fetched itself.
const CSP: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' blob:; style-src 'self'; \
                   frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
/// The bundled API browser puts styles into its elements and draws icons from `data:`.
const DOCS_CSP: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
                        style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// Probes come by address and carry no secrets: load balancers do not know our names.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// The middleware.
pub async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let probe = PROBES.contains(&path);
    let docs = path == "/api/docs" || path.starts_with("/api/docs/");
    let private = path.starts_with("/api/") && !docs;
    let host = requested_host(request.uri(), request.headers()).map(str::to_owned);
    let secure = host.as_deref().is_some_and(|host| api.site.is_secure(host));
    let verdict = if probe { Ok(()) } else { check(&api.site, host.as_deref(), request.method(), request.headers()) };
    let mut response = match verdict {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    harden(response.headers_mut(), if docs { DOCS_CSP } else { CSP }, private, secure);
    response
}

fn harden(headers: &mut HeaderMap, csp: &'static str, private: bool, secure: bool) {
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, csp),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if private && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if secure {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}

fn check(site: &Site, host: Option<&str>, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(host) = host.filter(|host| site.admits(host)) else {
        return Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "unknown_host",
            "this hub does not go by that name",
            "use the address from its configuration, or add the name to `public_url` or `allowed_hosts` there",
        ));
    };
    // A foreign page cannot set this header without asking first, and nobody here says yes to that.
    if headers.contains_key(header::AUTHORIZATION) {
        return Ok(());
    }
    let cookie = credential::session_cookie(headers, site.is_secure(host)).is_some();
    let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    match asked_by(site, host, headers) {
        Asker::Own => {}
        Asker::Foreign if changes || (cookie && !is_navigation(headers)) => return Err(foreign_page()),
        Asker::Unknown if changes && cookie => return Err(foreign_page()),
        Asker::Foreign | Asker::Unknown => {}
    }
    // A form can only POST, and nobody else's script may PUT here: files are uploaded as what they are.
    let has_body_method = matches!(*method, Method::POST | Method::PATCH);
    if cookie && has_body_method && !is_json(headers) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "json_expected",
            "changes made with a session cookie must be JSON",
            "send the header `Content-Type: application/json`, also with an empty body",
        ));
    }
    Ok(())
}

enum Asker {
    /// One of our pages, or the address bar.
    Own,
    /// A page of somebody else.
    Foreign,
    /// No browser, or an old one.
    Unknown,
}

/// By what the browser says about the page (Fetch Metadata, RFC 6454).
fn asked_by(site: &Site, host: &str, headers: &HeaderMap) -> Asker {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text("sec-fetch-site"), text("origin")) {
        (_, Some(origin)) if !site.is_own_origin(origin, host) => Asker::Foreign,
        (Some("same-origin" | "none"), _) | (None, Some(_)) => Asker::Own,
        (Some(_), _) => Asker::Foreign,
        (None, None) => Asker::Unknown,
    }
}

/// Following a link to us is fine; its page cannot read what we answer.
fn is_navigation(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-mode").is_some_and(|mode| mode == "navigate")
}

fn foreign_page() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "cross_site",
        "this request did not come from a page of this hub",
        "use the hub's own pages, or an API token in the Authorization header",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn verdict(method: &Method, pairs: &[(&'static str, &str)]) -> Result<(), &'static str> {
        check(&Site::new(None, []), Some("127.0.0.1:8080"), method, &headers(pairs)).map_err(|problem| problem.code())
    }

    const COOKIE: (&str, &str) = ("cookie", "cortex=abc");
    const JSON: (&str, &str) = ("content-type", "application/json");
    const OWN: (&str, &str) = ("origin", "http://127.0.0.1:8080");

    #[test]
    fn a_cookie_changes_things_only_from_our_own_pages_and_as_json() {
        let post = Method::POST;
        assert_eq!(verdict(&post, &[COOKIE, JSON, OWN]), Ok(()));
        assert_eq!(verdict(&post, &[COOKIE, JSON, ("sec-fetch-site", "same-origin")]), Ok(()));
        assert_eq!(verdict(&post, &[COOKIE, JSON]), Err("cross_site"));
        assert_eq!(verdict(&post, &[COOKIE, JSON, ("origin", "http://evil.example")]), Err("cross_site"));
        assert_eq!(verdict(&post, &[COOKIE, JSON, ("origin", "null")]), Err("cross_site"));
        assert_eq!(verdict(&post, &[COOKIE, JSON, OWN, ("sec-fetch-site", "same-site")]), Err("cross_site"));
        assert_eq!(verdict(&post, &[COOKIE, OWN, ("content-type", "text/plain")]), Err("json_expected"));
        assert_eq!(verdict(&post, &[COOKIE, OWN]), Err("json_expected"));
        assert_eq!(verdict(&Method::DELETE, &[COOKIE, OWN]), Ok(()));
        assert_eq!(verdict(&Method::DELETE, &[COOKIE]), Err("cross_site"));
    }

    #[test]
    fn a_login_from_a_foreign_page_is_refused_even_without_a_cookie() {
        assert_eq!(verdict(&Method::POST, &[JSON, ("origin", "http://evil.example")]), Err("cross_site"));
        assert_eq!(verdict(&Method::POST, &[JSON]), Ok(()), "curl");
    }

    #[test]
    fn a_foreign_page_reads_nothing_with_a_cookie_but_may_link_to_us() {
        let cross = ("sec-fetch-site", "cross-site");
        assert_eq!(verdict(&Method::GET, &[COOKIE, cross]), Err("cross_site"));
        assert_eq!(verdict(&Method::GET, &[COOKIE, ("origin", "http://evil.example")]), Err("cross_site"));
        assert_eq!(verdict(&Method::GET, &[COOKIE, cross, ("sec-fetch-mode", "navigate")]), Ok(()));
        assert_eq!(verdict(&Method::GET, &[COOKIE]), Ok(()));
    }

    #[test]
    fn a_bearer_token_needs_no_origin() {
        assert_eq!(verdict(&Method::POST, &[("authorization", "Bearer x"), ("origin", "http://evil.example")]), Ok(()));
    }

    #[test]
    fn a_foreign_host_is_misdirected() {
        for host in [None, Some("evil.example"), Some("")] {
            let refused = check(&Site::new(None, []), host, &Method::GET, &HeaderMap::new()).unwrap_err();
            assert_eq!((refused.code(), refused.status()), ("unknown_host", StatusCode::MISDIRECTED_REQUEST));
        }
    }
}
