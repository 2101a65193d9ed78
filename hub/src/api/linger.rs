//! What a client still sends when its answer is ready. A server that closes a connection with unread bytes resets it, and the client sees a broken
//! pipe instead of the answer: so the rest is read and dropped for a while.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    middleware::Next,
    response::Response,
};
use futures_util::StreamExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

/// What is dropped of one body. Clients that read while they send stop long before; a larger body is cut off.
const DROPPED_BYTES: usize = 64 * 1024 * 1024;
/// How long is dropped.
const LINGER: Duration = Duration::from_secs(10);

/// Answers as the routes do, and drops the rest of the request's body meanwhile.
pub async fn linger(request: Request, next: Next) -> Response {
    let (back, mut rest) = oneshot::channel();
    let lend = |body| Body::new(Lent { body, back: Some(back) });
    let response = next.run(request.map(lend)).await;
    if let Ok(rest) = rest.try_recv() {
        tokio::spawn(tokio::time::timeout(LINGER, drop_bytes(rest)));
    }
    response
}

async fn drop_bytes(rest: Body) {
    let (mut pieces, mut dropped) = (rest.into_data_stream(), 0);
    while let Some(Ok(piece)) = pieces.next().await {
        dropped += piece.len();
        if dropped > DROPPED_BYTES {
            break;
        }
    }
}

/// A request's body, which goes back when whoever reads it has lost interest.
struct Lent {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(back) = self.back.take().filter(|_| !self.body.is_end_stream()) {
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}
