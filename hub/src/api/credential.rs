//! Credentials on requests: a bearer token, or the session cookie; never anything in a URL.
//!
//! The cookie is `__Host-cortex` (Secure, bound to this host) where browsers come through TLS, that is, where `public_url` is https and they use
//! it. Over plain http, as on `http://127.0.0.1:8080`, browsers may refuse Secure cookies, so there it is `cortex`: HttpOnly and
//! SameSite=Lax all the same. Which of the two counts is decided by the host alone, so the weak one is never read over TLS.

use axum::http::{HeaderMap, HeaderValue, header};

/// Browsers forget the cookie after this; the hub does at the same time.
const COOKIE_LIFE_S: u32 = 14 * 24 * 3600;

fn cookie_name(secure: bool) -> &'static str {
    if secure { "__Host-cortex" } else { "cortex" }
}

/// The secret in the session cookie.
pub fn session_cookie(headers: &HeaderMap, secure: bool) -> Option<&str> {
    let name = cookie_name(secure);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(key, value)| (key == name && !value.is_empty()).then_some(value))
}

/// The cookie for a fresh login. The secret is made of characters that need no quoting.
pub fn set_cookie(secret: &str, secure: bool) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("{}={secret}; {}; Max-Age={COOKIE_LIFE_S}", cookie_name(secure), attributes(secure))).ok()
}

/// Takes the cookie back.
pub fn clear_cookie(secure: bool) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("{}=; {}; Max-Age=0", cookie_name(secure), attributes(secure))).ok()
}

fn attributes(secure: bool) -> &'static str {
    if secure { "Path=/; Secure; HttpOnly; SameSite=Lax" } else { "Path=/; HttpOnly; SameSite=Lax" }
}

/// What stands behind `Bearer` in the Authorization header; an empty text when the header holds something else.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().unwrap_or_default();
    let token = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    Some(token.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        [(name, HeaderValue::from_str(value).unwrap())].into_iter().collect()
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let headers = headers(header::COOKIE, "a=b; cortex=xyz; __Host-cortex=strong");
        assert_eq!(session_cookie(&headers, false), Some("xyz"));
        assert_eq!(session_cookie(&headers, true), Some("strong"));
        assert_eq!(session_cookie(&HeaderMap::new(), true), None);
    }

    #[test]
    fn the_strong_cookie_has_what_its_prefix_demands() {
        let cookie = set_cookie("s", true).unwrap();
        let text = cookie.to_str().unwrap();
        assert!(text.starts_with("__Host-cortex=s; Path=/; Secure; HttpOnly; SameSite=Lax"), "{text}");
        assert!(!text.contains("Domain"));
    }

    #[test]
    fn another_scheme_is_a_wrong_token_and_not_a_missing_one() {
        assert_eq!(bearer(&headers(header::AUTHORIZATION, "bearer  cxt_1")), Some("cxt_1"));
        assert_eq!(bearer(&headers(header::AUTHORIZATION, "Basic abc")), Some(""));
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
