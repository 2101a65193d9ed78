//! Under which names people reach this hub: the Host allow-list, the origin of its pages, and the links it hands out.

use std::str::FromStr;

use axum::http::{HeaderMap, Uri, header};

/// The address that people type, such as `https://hub.example.org`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    https: bool,
    authority: String,
}

/// A text is not an address for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a public URL: write https://host or http://host:port, with nothing behind it")]
pub struct PublicUrlError(String);

impl FromStr for PublicUrl {
    type Err = PublicUrlError;

    fn from_str(text: &str) -> Result<Self, PublicUrlError> {
        let fail = || PublicUrlError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| fail())?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(fail()),
        };
        let authority = uri.authority().ok_or_else(fail)?.as_str().to_ascii_lowercase();
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || !is_plain(&authority) {
            return Err(fail());
        }
        Ok(Self { https, authority })
    }
}

impl<'de> serde::Deserialize<'de> for PublicUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for PublicUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }
}

impl PublicUrl {
    /// The host without its port: a good guess for where peers find the hub's own relay.
    pub fn host(&self) -> &str {
        host_of(&self.authority)
    }

    /// Whether browsers reach it through TLS.
    pub fn is_https(&self) -> bool {
        self.https
    }
}

/// The names of this hub.
#[derive(Debug, Clone, Default)]
pub struct Site {
    public: Option<PublicUrl>,
    hosts: Vec<String>,
}

impl Site {
    /// The loopback names, the public URL's host, and `more` hosts.
    pub fn new(public: Option<PublicUrl>, more: impl IntoIterator<Item = String>) -> Self {
        let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "[::1]"].map(String::from).into();
        hosts.extend(public.iter().map(|url| url.host().to_owned()));
        hosts.extend(more.into_iter().map(|host| host.to_ascii_lowercase()));
        Self { public, hosts }
    }

    /// Whether requests for this `Host` are answered. Anything else may be a page of a stranger whose name was made to point here
    /// (DNS rebinding).
    pub fn admits(&self, host: &str) -> bool {
        is_plain(host) && self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host_of(host)))
    }

    /// Whether browsers that send this `Host` came through TLS.
    pub fn is_secure(&self, host: &str) -> bool {
        self.public.as_ref().is_some_and(|url| url.https && same_host(url.host(), host_of(host)))
    }

    /// The address to hand out to whoever came by this `Host`.
    pub fn base_url(&self, host: &str) -> String {
        match &self.public {
            Some(url) => url.to_string(),
            None => format!("http://{}", host.to_ascii_lowercase()),
        }
    }

    /// Whether a page of this `Origin` is one of ours, seen from a request for `host`.
    pub fn is_own_origin(&self, origin: &str, host: &str) -> bool {
        if self.public.as_ref().is_some_and(|url| origin.eq_ignore_ascii_case(&url.to_string())) {
            return true;
        }
        let scheme = if self.is_secure(host) { "https://" } else { "http://" };
        origin.strip_prefix(scheme).is_some_and(|authority| same_host(authority, host))
    }
}

fn same_host(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

/// Only what host names, addresses and ports are made of: such a text can stand in a script or a page as it is.
fn is_plain(authority: &str) -> bool {
    !authority.is_empty()
        && authority.len() <= 255
        && authority.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
}

/// The authority a request is for: of its target if absolute, of `Host` otherwise.
pub fn requested_host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|value| value.to_str().ok());
    if hosts.next().is_some() {
        return None;
    }
    uri.authority().map(axum::http::uri::Authority::as_str).or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> Site {
        Site::new(Some("https://Hub.example.org".parse().unwrap()), ["10.0.0.7".to_owned()])
    }

    #[test]
    fn only_known_hosts_are_admitted() {
        for host in ["localhost", "127.0.0.1:8080", "[::1]:8080", "hub.example.org", "HUB.example.org:443", "10.0.0.7:80"] {
            assert!(site().admits(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "a b", "::1", "localhost'$(id)"] {
            assert!(!site().admits(host), "{host}");
        }
    }

    #[test]
    fn an_origin_is_ours_by_scheme_host_and_port() {
        let site = site();
        assert!(site.is_own_origin("https://hub.example.org", "hub.example.org"));
        assert!(site.is_own_origin("http://127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(site.is_own_origin("https://hub.example.org", "127.0.0.1:8080"), "a proxy that rewrites Host");
        for origin in ["http://127.0.0.1:9", "http://hub.example.org", "https://evil.example", "null", ""] {
            assert!(!site.is_own_origin(origin, "hub.example.org"), "{origin}");
        }
    }

    #[test]
    fn a_public_url_is_scheme_and_host() {
        assert_eq!("https://a.example:8443/".parse::<PublicUrl>().unwrap().to_string(), "https://a.example:8443");
        for text in ["a.example", "ftp://a", "https://a/b", "https://u@a", "https://a?x", ""] {
            assert!(text.parse::<PublicUrl>().is_err(), "{text}");
        }
        assert_eq!("http://[::1]:80".parse::<PublicUrl>().unwrap().host(), "[::1]");
    }

    #[test]
    fn links_lead_to_where_people_can_reach_the_hub() {
        assert_eq!(site().base_url("127.0.0.1:8080"), "https://hub.example.org");
        assert_eq!(Site::new(None, []).base_url("127.0.0.1:8080"), "http://127.0.0.1:8080");
    }
}
