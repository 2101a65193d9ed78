//! Who sent a request: the extractor that every handler with an actor takes.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, FromRequestParts, OptionalFromRequestParts},
    http::{HeaderMap, request::Parts},
};

use super::{Api, credential, problem::Problem, site::requested_host};
use crate::{
    account::{AccountError, Actor},
    hub::Hub,
};

/// What a request brought to say who sends it.
#[derive(Clone)]
pub enum Credential {
    /// An API token.
    Token(String),
    /// A login session.
    Cookie(String),
}

impl Credential {
    /// Who it belongs to now.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn actor(&self, hub: &Hub) -> Result<Actor, AccountError> {
        match self {
            Self::Token(text) => hub.authenticate_token(text).await,
            Self::Cookie(secret) => hub.authenticate_session(secret).await,
        }
    }

    /// The credential in these headers. A bearer token stands alone: a wrong one never falls back to a cookie.
    pub fn of(headers: &HeaderMap, secure: bool) -> Option<Self> {
        match credential::bearer(headers) {
            Some(token) => Some(Self::Token(token.to_owned())),
            None => credential::session_cookie(headers, secure).map(|secret| Self::Cookie(secret.to_owned())),
        }
    }
}

/// Somebody who was let in.
pub struct Caller {
    /// On whose behalf the request is done.
    pub actor: Actor,
    /// What they came with, to be checked again on long streams.
    pub credential: Credential,
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let credential = Credential::of(&parts.headers, is_secure(parts, api)).ok_or_else(Problem::unauthenticated)?;
        let actor = credential.actor(&api.hub).await?;
        Ok(Self { actor, credential })
    }
}

impl OptionalFromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Option<Self>, Problem> {
        if Credential::of(&parts.headers, is_secure(parts, api)).is_none() {
            return Ok(None);
        }
        <Self as FromRequestParts<Arc<Api>>>::from_request_parts(parts, api).await.map(Some)
    }
}

/// Where a request comes from, and how.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// The client; behind a listed proxy, what that proxy says.
    pub address: IpAddr,
    /// The name by which it reached the hub.
    pub host: String,
    /// Its browser came through TLS.
    pub secure: bool,
    /// What it calls itself.
    pub agent: String,
}

impl FromRequestParts<Arc<Api>> for Visitor {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Self::Rejection> {
        let socket = parts.extensions.get::<ConnectInfo<std::net::SocketAddr>>().map(|info| info.0.ip());
        let agent = parts.headers.get(axum::http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(Self {
            address: client_address(socket.unwrap_or(IpAddr::from([0, 0, 0, 0])), &parts.headers, &api.options.trusted_proxies),
            host: requested_host(&parts.uri, &parts.headers).unwrap_or_default().to_owned(),
            secure: is_secure(parts, api),
            agent: cortex_wire::text::clean(agent, cortex_wire::limits::NAME_BYTES),
        })
    }
}

fn is_secure(parts: &Parts, api: &Api) -> bool {
    requested_host(&parts.uri, &parts.headers).is_some_and(|host| api.site.is_secure(host))
}

/// The last address in `X-Forwarded-For` that no listed proxy wrote for itself. Anybody else can write what they like there.
fn client_address(socket: IpAddr, headers: &HeaderMap, trusted: &[IpAddr]) -> IpAddr {
    let socket = socket.to_canonical();
    if !trusted.contains(&socket) {
        return socket;
    }
    let lines = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    for hop in hops.into_iter().rev() {
        match hop.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if trusted.contains(&address) => {}
            Ok(address) => return address,
            Err(_) => break,
        }
    }
    socket
}

/// What a stranger can change at no cost does not make another stranger: IPv6 addresses count by their /64.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_a_listed_proxy_is_believed() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("1.1.1.1, 2.2.2.2, 10.0.0.1"));
        assert_eq!(client_address(ip("9.9.9.9"), &headers, &[]), ip("9.9.9.9"));
        assert_eq!(client_address(ip("10.0.0.2"), &headers, &[ip("10.0.0.2"), ip("10.0.0.1")]), ip("2.2.2.2"));
        assert_eq!(client_address(ip("::ffff:10.0.0.1"), &HeaderMap::new(), &[ip("10.0.0.1")]), ip("10.0.0.1"));
        headers.insert("x-forwarded-for", HeaderValue::from_static("1.1.1.1, nonsense"));
        assert_eq!(client_address(ip("10.0.0.1"), &headers, &[ip("10.0.0.1")]), ip("10.0.0.1"));
    }

    #[test]
    fn neighbours_in_ipv6_count_as_one() {
        assert_eq!(network_of("2001:db8::1".parse().unwrap()), network_of("2001:db8::2".parse().unwrap()));
        assert_ne!(network_of("2001:db8:0:1::1".parse().unwrap()), network_of("2001:db8::1".parse().unwrap()));
    }
}
