//! TCP connections to relays: directly, or through the proxy that a network demands (HTTP CONNECT, SOCKS5).
//!
//! A proxy is named in the configuration, or by `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` in the environment, in capitals or not. `NO_PROXY` is read as
//! curl reads it: names with everything below them, addresses, networks (`10.0.0.0/8`), `*`.

use std::{error::Error, time::Duration};

use cortex_wire::limits;
use http::Uri;
use hyper_util::client::{
    legacy::connect::{
        HttpConnector,
        proxy::{SocksV5, Tunnel},
    },
    proxy::matcher::{Intercept, Matcher},
};
use tokio::net::TcpStream;
use tower::ServiceExt as _;

/// What `proxy` says when the environment does not count.
const NONE: &str = "none";
/// The port of a SOCKS proxy that names none.
const SOCKS_PORT: u16 = 1080;
/// The kernel gives a connection up when nobody has taken what it sends for so long.
const UNANSWERED: Duration = Duration::from_secs(20);

/// Which proxy leads where.
#[derive(Debug)]
pub struct Proxies(Matcher);

/// A proxy that is written in a way nobody can use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the proxy; write http://host:port or socks5://host:port, with user:password@ before the host when it asks for them")]
pub struct ProxyError;

/// Why there is no connection. Proxies are shown without password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not an address.
    #[error("{0} is no address; it should be host:port")]
    Address(String),
    /// Nobody takes the connection.
    #[error("no TCP connection to {address}: {reason}")]
    Direct {
        /// `host:port`.
        address: String,
        /// Why.
        reason: String,
    },
    /// The proxy does not.
    #[error("no way to {address} through the proxy {proxy}: {reason}")]
    Proxy {
        /// `host:port`.
        address: String,
        /// The proxy's URL.
        proxy: String,
        /// Why.
        reason: String,
    },
}

impl Proxies {
    /// Reads settings, and the environment where they say nothing.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub fn new(proxy: Option<&str>, no_proxy: Option<&str>, environment: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let variable = |name: &str| {
            let set = environment(name).or_else(|| environment(&name.to_lowercase()));
            set.filter(|value| !value.trim().is_empty()).unwrap_or_default()
        };
        let no = no_proxy.map_or_else(|| variable("NO_PROXY"), str::to_owned);
        let (https, all) = match proxy {
            Some(NONE) => (String::new(), String::new()),
            Some(proxy) => (proxy.to_owned(), String::new()),
            None => (variable("HTTPS_PROXY"), variable("ALL_PROXY")),
        };
        let wanted = !(https.is_empty() && all.is_empty());
        let build = |no: String| Matcher::builder().https(https.clone()).all(all.clone()).no(no).build();
        // Asked about somewhere that no list excludes.
        let usable = build(String::new()).intercept(&Uri::from_static("https://relay.invalid/")).is_some_and(|proxy| is_known(&proxy));
        if wanted && !usable { Err(ProxyError) } else { Ok(Self(build(no))) }
    }

    /// No proxy at all.
    pub fn none() -> Self {
        Self(Matcher::builder().build())
    }

    /// The proxy that leads to `host:port`, without password, when there is one.
    pub fn towards(&self, address: &str) -> Option<String> {
        self.intercept(address).map(|(_, proxy)| shown(&proxy))
    }

    fn intercept(&self, address: &str) -> Option<(Uri, Intercept)> {
        let target: Uri = format!("https://{address}/").parse().ok()?;
        self.0.intercept(&target).map(|proxy| (target, proxy))
    }

    /// Connects to `host:port`; names are resolved by the proxy when there is one.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self, address: &str) -> Result<TcpStream, ConnectError> {
        let target: Uri = format!("https://{address}/").parse().map_err(|_| ConnectError::Address(address.to_owned()))?;
        let Some(proxy) = self.0.intercept(&target) else {
            let direct = |error: &dyn Error| ConnectError::Direct { address: address.to_owned(), reason: root(error) };
            return Ok(connector().oneshot(target).await.map_err(|error| direct(&error))?.into_inner());
        };
        let failed = |error: &dyn Error| ConnectError::Proxy { address: address.to_owned(), proxy: shown(&proxy), reason: root(error) };
        let stream = if is_socks(&proxy) {
            let mut socks = SocksV5::new(with_port(proxy.uri()), connector());
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            socks.oneshot(target).await.map_err(|error| failed(&error))?
        } else {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), connector());
            if let Some(credentials) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(credentials.clone());
            }
            tunnel.oneshot(target).await.map_err(|error| failed(&error))?
        };
        Ok(stream.into_inner())
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_send_buffer_size(Some(limits::STREAM_SOCKET_BYTES));
    #[cfg(target_os = "linux")]
    connector.set_tcp_user_timeout(Some(UNANSWERED));
    connector
}

fn is_socks(proxy: &Intercept) -> bool {
    matches!(proxy.uri().scheme_str(), Some("socks5" | "socks5h"))
}

fn is_known(proxy: &Intercept) -> bool {
    is_socks(proxy) || proxy.uri().scheme_str() == Some("http")
}

fn shown(proxy: &Intercept) -> String {
    proxy.uri().to_string().trim_end_matches('/').to_owned()
}

fn with_port(proxy: &Uri) -> Uri {
    let host = proxy.host().unwrap_or_default();
    let port = proxy.port_u16().unwrap_or(SOCKS_PORT);
    Uri::builder().scheme("socks5").authority(format!("{host}:{port}")).path_and_query("/").build().unwrap_or_else(|_| proxy.clone())
}

/// What lies at the bottom of an error says most.
fn root(error: &dyn Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(proxy: Option<&str>, no_proxy: Option<&str>, environment: &[(&str, &str)]) -> Result<Proxies, ProxyError> {
        let value = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Proxies::new(proxy, no_proxy, value)
    }

    #[test]
    fn the_environment_names_the_proxy_in_capitals_or_not() {
        for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            let proxies = with(None, None, &[(name, "http://u:secret@proxy.example:3128")]).unwrap();
            assert_eq!(proxies.towards("relay.example:443").as_deref(), Some("http://proxy.example:3128"), "{name}");
        }
        assert_eq!(with(None, None, &[("HTTPS_PROXY", "")]).unwrap().towards("relay.example:443"), None);
        assert_eq!(with(None, None, &[("HTTP_PROXY", "http://p:1")]).unwrap().towards("relay.example:443"), None);
    }

    #[test]
    fn settings_win_over_the_environment() {
        let environment = [("HTTPS_PROXY", "http://theirs:1"), ("NO_PROXY", "relay.example")];
        assert_eq!(
            with(Some("socks5://mine:2"), Some(""), &environment).unwrap().towards("relay.example:443").as_deref(),
            Some("socks5://mine:2")
        );
        assert_eq!(with(Some("none"), None, &environment).unwrap().towards("other.example:443"), None);
        assert_eq!(with(None, Some("other"), &environment).unwrap().towards("relay.example:443").as_deref(), Some("http://theirs:1"));
    }

    #[test]
    fn some_places_need_no_proxy() {
        let proxies = with(Some("http://proxy:1"), Some("corp.example, .inner.example,10.0.0.0/8,192.0.2.7,fd00::/8"), &[]).unwrap();
        for near in ["corp.example:443", "a.corp.example:1", "b.inner.example:443", "10.9.8.7:443", "192.0.2.7:443", "[fd00::1]:443"] {
            assert_eq!(proxies.towards(near), None, "{near}");
        }
        for far in ["notcorp.example:443", "11.0.0.1:443", "192.0.2.8:443", "[fe80::1]:443"] {
            assert!(proxies.towards(far).is_some(), "{far}");
        }
        assert_eq!(with(Some("http://proxy:1"), Some("*"), &[]).unwrap().towards("relay.example:443"), None);
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_said_at_once() {
        for proxy in ["https://proxy:1", "socks4://proxy:1", "ftp://proxy", "http://", "not a proxy"] {
            assert_eq!(with(Some(proxy), None, &[]).unwrap_err(), ProxyError, "{proxy}");
            assert_eq!(with(None, None, &[("ALL_PROXY", proxy)]).unwrap_err(), ProxyError, "{proxy}");
        }
        assert!(with(Some("proxy.example:3128"), None, &[]).is_ok(), "http is meant");
    }
}
