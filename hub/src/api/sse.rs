//! Server-Sent Events: how events are written, and how a stream lives.
//!
//! A stream's [`Source`] is asked for the next bytes whenever the connection takes more, so a slow reader holds nothing but its own place.
//! Every event goes out as soon as it is there; under load a source hands out bigger pieces instead of more of them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use cortex_runtime::lifecycle::Lifecycle;
use cortex_wire::id::UserId;
use data_encoding::BASE64;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Api,
    caller::{Caller, Credential},
    problem::Problem,
    rate::Permit,
};
use crate::{
    account::AccountError,
    failure::{Failure as _, Kind},
    hub::Hub,
};

/// Proxies cut connections that are silent for 30 to 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a browser comes back after a cut.
const RETRY: &str = "retry: 1000\n\n";

/// Where the events of one stream come from.
pub trait Source: Send + 'static {
    /// Bytes of one or more whole events; `None` ends the stream. Must be safe to cancel: nothing that it took may be lost.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// What keeps a long response alive, and ends it: when its reader is shut out, and when the hub drains.
pub struct Vigil {
    lifecycle: Lifecycle,
    ticks: Interval,
    shut_out: CancellationToken,
    _guard: AbortOnDropHandle<()>,
    _permit: Permit<UserId>,
}

impl Vigil {
    /// For one response to this caller.
    ///
    /// # Errors
    /// 429 when the caller has too many of them.
    pub fn new(api: &Api, caller: &Caller) -> Result<Self, Problem> {
        let mut ticks = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let permit = api.streams.take(caller.actor.user)?;
        let shut_out = CancellationToken::new();
        let guard = tokio::spawn(guard(api.hub.clone(), caller.credential.clone(), shut_out.clone()));
        Ok(Self { lifecycle: api.lifecycle.clone(), ticks, shut_out, _guard: AbortOnDropHandle::new(guard), _permit: permit })
    }

    /// Whether the response may go on now.
    pub fn may_go_on(&self) -> bool {
        !self.lifecycle.is_draining() && !self.shut_out.is_cancelled()
    }

    /// Whether the reader is no longer let in.
    pub fn is_shut_out(&self) -> bool {
        self.shut_out.is_cancelled()
    }

    /// Resolves when it is time for a sign of life (`true`), or to end (`false`). Safe to cancel.
    pub async fn tick(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.lifecycle.draining() => false,
            () = self.shut_out.cancelled() => false,
            _ = self.ticks.tick() => true,
        }
    }
}

/// Asks now and then whether the reader would still be let in: a token may be revoked, an account closed, a login over.
async fn guard(hub: Arc<Hub>, credential: Credential, shut_out: CancellationToken) {
    loop {
        tokio::time::sleep(KEEP_ALIVE).await;
        // A store that is overloaded says nothing about the reader.
        let refused = |error: AccountError| !matches!(error.kind(), Kind::Internal | Kind::TooMany | Kind::Unavailable);
        if credential.actor(&hub).await.is_err_and(refused) {
            return shut_out.cancel();
        }
    }
}

/// The response that streams a source until it ends, the reader leaves, or [`Vigil`] says so.
pub fn respond(source: impl Source, vigil: Vigil) -> Response {
    let opening = stream::iter([Ok::<_, Infallible>(Bytes::from_static(RETRY.as_bytes()))]);
    let events = stream::unfold((source, vigil), |(mut source, mut vigil)| async move {
        let bytes = tokio::select! {
            biased;
            go_on = vigil.tick() => go_on.then_some(Bytes::from_static(b": keep-alive\n\n"))?,
            next = source.next() => next?,
        };
        Some((Ok(bytes), (source, vigil)))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would hold events back otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(opening.chain(events))).into_response()
}

/// Writes one event. JSON has no line breaks, so its data is one line.
pub fn write_event(out: &mut Vec<u8>, event: &str, id: Option<&str>, data: &impl Serialize) {
    if let Some(id) = id {
        out.extend_from_slice(b"id: ");
        out.extend_from_slice(id.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    if serde_json::to_writer(&mut *out, data).is_err() {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b"\n\n");
}

/// Output as JSON carries it: text where it is text, base64 where it is not.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Data<'a> {
    /// Valid UTF-8 without NUL.
    Data(&'a str),
    /// Anything else.
    Base64(String),
}

impl<'a> Data<'a> {
    /// The fitting form for these bytes.
    pub fn of(bytes: &'a [u8]) -> Self {
        match std::str::from_utf8(bytes) {
            // NUL is a sign of binary data, and JSON would need six bytes for each.
            Ok(text) if !bytes.contains(&0) => Self::Data(text),
            _ => Self::Base64(BASE64.encode(bytes)),
        }
    }
}

/// How many of `bytes` can be sent now: a character that is cut at the end is held back until the rest of it is there, or until nothing more
/// comes (`ended`).
pub fn sendable(bytes: &[u8], ended: bool) -> usize {
    if ended { bytes.len() } else { bytes.len() - incomplete_tail(bytes) }
}

/// How many bytes at the end begin a character whose rest is missing.
fn incomplete_tail(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let wanted = match bytes[bytes.len() - back] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if wanted > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_character_waits_for_its_rest() {
        let euro = "a€".as_bytes();
        assert_eq!(sendable(&euro[..3], false), 1);
        assert_eq!(sendable(&euro[1..3], false), 0);
        assert_eq!(sendable(&euro[1..], false), 3);
        assert_eq!(sendable(&euro[1..3], true), 2);
        assert_eq!(sendable(b"\xff\xe2\x82", false), 1);
        assert_eq!(sendable(b"", true), 0);
    }

    #[test]
    fn what_is_not_text_goes_as_base64() {
        assert_eq!(Data::of("€".as_bytes()), Data::Data("€"));
        assert_eq!(Data::of(b"\xff"), Data::Base64("/w==".into()));
        assert_eq!(Data::of(b"a\0b"), Data::Base64("YQBi".into()));
    }

    #[test]
    fn any_cut_of_any_bytes_adds_up_to_the_same_bytes() {
        let whole: Vec<u8> = (0..=255u8).chain("é€😀 plain\n".bytes()).chain([0xf0, 0x9f]).collect();
        for step in 1..whole.len() {
            let (mut sent, mut known, mut joined) = (0, 0, Vec::new());
            while sent < whole.len() {
                known = (known + step).min(whole.len());
                let taken = sendable(&whole[sent..known], known == whole.len());
                match Data::of(&whole[sent..sent + taken]) {
                    Data::Data(text) => joined.extend_from_slice(text.as_bytes()),
                    Data::Base64(text) => joined.extend(BASE64.decode(text.as_bytes()).unwrap()),
                }
                sent += taken;
            }
            assert_eq!(joined, whole, "step {step}");
        }
    }

    #[test]
    fn an_event_is_its_fields_and_an_empty_line() {
        let mut out = Vec::new();
        write_event(&mut out, "output", Some("1:2"), &serde_json::json!({"data": "a\nb\r"}));
        assert_eq!(String::from_utf8(out).unwrap(), "id: 1:2\nevent: output\ndata: {\"data\":\"a\\nb\\r\"}\n\n");
    }
}
