//! Connections of clients: how many there may be, how slow they may be, and how they end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
};
use cortex_runtime::lifecycle::Lifecycle;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::ServiceExt as _;

/// Connections at a time. Beyond it, newcomers wait in the kernel's queue.
const MOST_CONNECTIONS: u32 = 4096;
/// How long a client may take for the head of a request, and how long it may keep a connection for its next one.
const HEAD: Duration = Duration::from_secs(60);
/// What the system gets when it has no more sockets to give.
const BREATH: Duration = Duration::from_millis(100);
/// What answers that are under way get after the stop.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Serves until the lifecycle drains: then requests under way are answered, and what is left is cut when it stops.
pub async fn serve(listener: TcpListener, router: Router, lifecycle: Lifecycle) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS as usize));
    loop {
        tokio::select! {
            biased;
            () = lifecycle.draining() => break,
            (stream, address, place) = accept(&listener, &places) => {
                tokio::spawn(converse(stream, address, router.clone(), lifecycle.clone(), place));
            }
        }
    }
    drop(listener);
    tokio::select! {
        // All places are free again: everybody has left.
        _ = places.acquire_many(MOST_CONNECTIONS) => {}
        () = async {
            lifecycle.stopping().await;
            tokio::time::sleep(LAST_ANSWERS).await;
        } => {}
    }
}

async fn converse(stream: TcpStream, address: SocketAddr, router: Router, lifecycle: Lifecycle, place: Option<OwnedSemaphorePermit>) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = lifecycle.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    drop(place);
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    let place = places.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // The first byte of an event is worth a packet of its own.
                let _ = stream.set_nodelay(true);
                return (stream, address, place);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn start(router: Router) -> (SocketAddr, Lifecycle, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, lifecycle) = (listener.local_addr().unwrap(), Lifecycle::new());
        let serving = tokio::spawn(serve(listener, router, lifecycle.clone()));
        (address, lifecycle, serving)
    }

    #[tokio::test]
    async fn requests_under_way_are_answered_and_idle_connections_are_closed() {
        let slow = get(|| async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            "done"
        });
        let (address, lifecycle, serving) = start(Router::new().route("/", slow)).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        busy.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        lifecycle.drain();
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("done"), "{answer}");
        assert_eq!(idle.read(&mut [0; 16]).await.unwrap_or(0), 0);
        tokio::time::timeout(Duration::from_secs(2), serving).await.expect("it ends").unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nobody is let in any more");
    }

    #[tokio::test]
    async fn nonsense_ends_its_own_connection_and_no_other() {
        let (address, _lifecycle, _serving) = start(Router::new().route("/", get(|| async { "here" }))).await;
        for nonsense in [&[0u8; 1][..], &[0xff; 70_000], b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n\x16\x03\x01", b"GET /"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(nonsense).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await.expect("it ends");
            assert!(!answer.windows(4).any(|four| four == b"here"));
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"));
    }
}
