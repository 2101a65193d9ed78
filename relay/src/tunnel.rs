//! Tunnels: links whose packets come over TCP, because a network lets no UDP through.
//!
//! On the same port number as UDP the relay speaks TLS, and inside it WebSocket, whose messages are batches of the same packets ([`cortex_runtime::tunnel`]).
//! Behind a web server that ends TLS it speaks plain WebSocket instead. Nothing here decides who may do what: a tunnel is an address in [`crate::socket`], and
//! the links inside prove themselves as all links do. Until one of them is admitted, a tunnel has ten seconds, 64 KiB, and a place among few of its network.

use std::{
    collections::{HashMap, hash_map::Entry},
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::Body;
use cortex_runtime::{
    lifecycle::Lifecycle,
    packet::Outbox,
    tunnel::{Ended, PATH, pump, websocket_config},
};
use cortex_wire::limits;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::server::create_response_with_body, protocol::Role},
};

use crate::Relay;

/// TCP connections without an admitted link, from one IPv4 /24 or IPv6 /48: an office behind one address may come back at once.
const HALF_OPEN_PER_PREFIX: u32 = 64;
/// And from everywhere.
const HALF_OPEN: u32 = 2048;
/// The head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// What the system gets when it has no more sockets to give.
const BREATH: Duration = Duration::from_millis(100);
/// All that a stranger gets before a link is admitted, and how often a tunnel is asked whether it still has one.
const PATIENCE: Duration = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);

/// What people see who come with a browser.
const PAGE: &str = "\
This is a relay of Cortex Mesh. It carries sealed traffic between machines and the hub that they belong to, and can read none of it.
There is nothing to see here: peers and hubs connect by themselves. Health for operators is at the address that `http` in the relay's settings names.
";

/// The TCP side of the port.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) listeners: Vec<TcpListener>,
    /// None: a web server in front of the relay ends TLS.
    pub(crate) tls: Option<Tls>,
}

/// How TLS is ended here.
#[derive(Clone)]
pub(crate) struct Tls(pub(crate) TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// Takes tunnels in until the lifecycle stops.
pub(crate) fn serve(relay: &Arc<Relay>, door: Door, lifecycle: &Lifecycle) {
    let crowd = Arc::new(Crowd::default());
    for listener in door.listeners {
        tokio::spawn(accept(relay.clone(), listener, door.tls.clone(), crowd.clone(), lifecycle.clone()));
    }
}

async fn accept(relay: Arc<Relay>, listener: TcpListener, tls: Option<Tls>, crowd: Arc<Crowd>, lifecycle: Lifecycle) {
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a TCP connection");
                    sleep(BREATH).await;
                    continue;
                }
            },
            () = lifecycle.stopping() => return,
        };
        // Who is behind a web server is known when it has said so.
        let place = match tls {
            Some(_) => match crowd.enter(from.ip()) {
                Some(place) => Some(place),
                None => continue,
            },
            None => None,
        };
        let guest = Guest { relay: relay.clone(), crowd: crowd.clone(), from, place: Mutex::new(place) };
        tokio::spawn(receive(guest, stream, tls.clone()));
    }
}

/// Somebody who has connected.
struct Guest {
    relay: Arc<Relay>,
    crowd: Arc<Crowd>,
    from: SocketAddr,
    place: Mutex<Option<Place>>,
}

async fn receive(guest: Guest, stream: TcpStream, tls: Option<Tls>) {
    let from = guest.from;
    let served = async {
        prepare(&stream)?;
        match tls {
            Some(Tls(acceptor)) => converse(guest, acceptor.accept(stream).await?).await,
            None => converse(guest, stream).await,
        }
    };
    match timeout(PATIENCE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, %from, "a TCP caller did not speak the protocol"),
        Err(_) => tracing::debug!(%from, "a TCP caller was too slow"),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_send_buffer_size(limits::STREAM_SOCKET_BYTES)
}

/// One request; a tunnel that it opens lives on in a task of its own.
async fn converse(guest: Guest, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> io::Result<()> {
    let guest = Arc::new(guest);
    let service = service_fn(move |request| {
        let answer = answer(&guest, request);
        async move { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

fn answer(guest: &Arc<Guest>, mut request: Request<Incoming>) -> Response<Body> {
    let page = |status| {
        let mut response = Response::new(Body::from(PAGE));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, PATH) => {}
        (&Method::GET | &Method::HEAD, "/") => return page(StatusCode::OK),
        _ => return page(StatusCode::NOT_FOUND),
    }
    let Ok(switch) = create_response_with_body(&request, Body::empty) else { return page(StatusCode::UPGRADE_REQUIRED) };
    let mut place = guest.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut origin = guest.from;
    if place.is_none() {
        if let Some(address) = forwarded_for(&request) {
            origin.set_ip(address);
        }
        place = guest.crowd.enter(origin.ip());
    }
    let Some(place) = place else { return page(StatusCode::SERVICE_UNAVAILABLE) };
    let (relay, upgraded) = (guest.relay.clone(), hyper::upgrade::on(&mut request));
    tokio::spawn(async move {
        let Ok(Ok(stream)) = timeout(PATIENCE, upgraded).await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, Some(websocket_config())).await;
        let reason = carry(&relay, socket, origin, place).await;
        tracing::debug!(%reason, from = %origin, "a tunnel has ended");
    });
    switch
}

/// Whom the web server in front of the relay speaks for: it adds what it knows behind what it was told.
fn forwarded_for<T>(request: &Request<T>) -> Option<IpAddr> {
    let last = request.headers().get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next()?.trim().parse().ok()
}

/// Carries packets until the tunnel ends, or no link on it is admitted any more.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(
    relay: &Arc<Relay>,
    socket: WebSocketStream<S>,
    origin: SocketAddr,
    place: Place,
) -> Ended {
    let outbox = Arc::new(Outbox::timed(limits::STREAM_QUEUE_BYTES, relay.counters().queued.clone()));
    let open = Open { relay: relay.clone(), address: relay.socket.open_tunnel(outbox.clone(), origin) };
    let mut place = Some(place);
    let mut before_admission = 0;
    let receive = |message: bytes::Bytes| {
        let own = relay.socket.arrived(&message, open.address).map_err(|_| Ended::Malformed)?;
        if place.is_some() {
            before_admission += own;
            if relay.socket.knows(&open.address) {
                place = None;
            } else if before_admission > limits::STREAM_BEFORE_ADMISSION_BYTES {
                return Err(Ended::Malformed);
            }
        }
        Ok(())
    };
    let unused = async {
        loop {
            sleep(PATIENCE).await;
            if !relay.socket.knows(&open.address) {
                return Ended::Silent;
            }
        }
    };
    let stopped = async {
        relay.stopped.cancelled().await;
        outbox.close();
        std::future::pending().await
    };
    tokio::select! {
        ended = pump(socket, &outbox, receive) => ended,
        ended = unused => ended,
        ended = stopped => ended,
    }
}

/// A tunnel in the socket's table. Leaving is certain: also when the task is dropped.
struct Open {
    relay: Arc<Relay>,
    address: SocketAddr,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.relay.socket.close_tunnel(&self.address);
    }
}

/// Who is there without an admitted link.
#[derive(Debug, Default)]
struct Crowd(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    all: u32,
    by_prefix: HashMap<IpAddr, u32>,
}

/// A place in it.
struct Place {
    crowd: Arc<Crowd>,
    prefix: IpAddr,
}

impl Crowd {
    /// `None`: too many are there already.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let prefix = prefix(address);
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there = places.by_prefix.get(&prefix).copied().unwrap_or_default();
        if there >= HALF_OPEN_PER_PREFIX || places.all >= HALF_OPEN {
            return None;
        }
        places.by_prefix.insert(prefix, there + 1);
        places.all += 1;
        Some(Place { crowd: self.clone(), prefix })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.all -= 1;
        if let Entry::Occupied(mut there) = places.by_prefix.entry(self.prefix) {
            *there.get_mut() -= 1;
            if *there.get() == 0 {
                there.remove();
            }
        }
    }
}

/// What one customer of a provider usually has.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & (!0 << 8)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & (!0 << 80)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_a_bounded_number_of_places_and_gets_them_back() {
        let crowd = Arc::new(Crowd::default());
        let enter = |last: u8| crowd.enter(Ipv4Addr::new(198, 51, 100, last).into());
        let places: Vec<_> = (0..64).map(|last| enter(last).unwrap()).collect();
        assert!(enter(200).is_none());
        assert!(crowd.enter(Ipv4Addr::new(198, 51, 101, 1).into()).is_some(), "another network is not concerned");
        drop(places);
        assert!(enter(200).is_some());
        let all: Vec<_> = (0..=255).flat_map(|third| (0..64).map(move |last| Ipv4Addr::new(10, 1, third, last))).collect();
        let places: Vec<_> = all.iter().filter_map(|address| crowd.enter((*address).into())).collect();
        assert_eq!(places.len(), 2_048, "all networks together have a bound, too");
        drop(places);
        let places = crowd.0.lock().unwrap();
        assert!(places.all == 0 && places.by_prefix.is_empty());
    }

    #[test]
    fn neighbours_share_a_prefix() {
        let parse = |text: &str| prefix(text.parse().unwrap());
        assert_eq!(parse("198.51.100.7"), parse("198.51.100.250"));
        assert_eq!(parse("::ffff:198.51.100.7"), parse("198.51.100.250"));
        assert_eq!(parse("2001:db8:1:2::1"), parse("2001:db8:1:ff::2"));
        assert_ne!(parse("2001:db8:1::1"), parse("2001:db8:2::1"));
    }

    #[test]
    fn the_last_one_that_a_web_server_names_counts() {
        let named = |values: &[&str]| {
            let request = values.iter().fold(Request::builder(), |request, value| request.header("x-forwarded-for", *value));
            forwarded_for(&request.body(()).unwrap())
        };
        assert_eq!(named(&["1.2.3.4, 203.0.113.9"]), Some(Ipv4Addr::new(203, 0, 113, 9).into()));
        assert_eq!(named(&["1.2.3.4", "2001:db8::1"]), Some("2001:db8::1".parse().unwrap()));
        assert_eq!((named(&[]), named(&["nonsense"])), (None, None));
    }
}
