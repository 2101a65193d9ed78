//! A node's link, from its welcome to its end.
//!
//! Thousands of these rest at one relay, so they are written for what a resting one weighs: nothing of its arrival is kept, and what serves chunks comes with
//! the first stream that asks for some.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use cortex_runtime::{
    chunk::{self, ChunkSource},
    clock,
    lifecycle::Lifecycle,
    quic,
    stream::{FrameReader, FrameWriter, StreamError},
};
use cortex_wire::{
    close::CloseCode,
    id::NodeId,
    key::PublicKey,
    limits,
    route::Route,
    schema::{Drain, FromRelay, HubState, NodeGone, Signed, ToRelay, from_relay, to_relay},
    ticket,
};
use quinn::{Connection, RecvStream, SendStream};

use super::{Arrival, Entered, check_ticket, close};
use crate::{
    Relay,
    chunk::{Granted, LinkChunks},
    route::{Admitted, Budget, Rate},
    tenant::Tenant,
};

/// Bytes that a node may send before it is enrolled: a handshake and a registration, several times over.
const ENROLLING_BYTES: i64 = 512 * 1024;
/// The longest time over which the nodes of a hub that has come back are spread.
const RETURN_LASTS_MS: u64 = 10_000;

/// A node that is linked here.
pub(super) struct NodeLink {
    entered: Entered,
    connection: Connection,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
    key: PublicKey,
    tenant: Arc<Tenant>,
    terms: Terms,
    sessions: Arc<Granted>,
    /// Since the first stream that asked for some.
    chunks: Option<Arc<dyn ChunkSource>>,
}

/// What its latest ticket says beside the sessions.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Terms {
    expires_at_ms: i64,
    bytes_per_second: u64,
    enrolling: bool,
}

impl Terms {
    fn of(grant: &ticket::Grant) -> Self {
        Self { expires_at_ms: grant.expires_at_ms, bytes_per_second: grant.bytes_per_second, enrolling: grant.enrolling }
    }

    fn budget(&self, relay: &Relay) -> Budget {
        if self.enrolling {
            return Budget::total(ENROLLING_BYTES);
        }
        let rate = match self.bytes_per_second {
            0 => Rate::Default(relay.bytes_per_second.clone()),
            own => Rate::Own(own),
        };
        Budget::rate(rate, Instant::now())
    }
}

/// What a link has to deal with.
enum Event {
    Frame(ToRelay),
    Stream(SendStream, RecvStream),
    Hub,
    Silent,
    Draining,
    End(CloseCode),
}

impl NodeLink {
    /// Enters an arrival as a node, and welcomes it.
    pub(super) async fn enter(mut arrival: Arrival, tenant: Arc<Tenant>, grant: ticket::Grant, fresh: Option<Signed>) -> Option<Box<Self>> {
        let terms = Terms::of(&grant);
        let sessions = Arc::new(Granted::new(grant.sessions));
        let entered = arrival.put(Route::of(&arrival.key), &tenant, Some(sessions.clone()), terms.budget(&arrival.relay));
        let instance = tenant.state().borrow().instance;
        arrival.welcome(instance, fresh).await.ok()?;
        tracing::debug!(node = arrival.key.short(), address = %arrival.origin(), "a node is linked");
        // The link's own stream, and a first one for chunks.
        quic::allow_streams(&arrival.connection, 2);
        let Arrival { connection, reader, writer, key, .. } = arrival;
        Some(Box::new(Self { entered, connection, reader, writer, key, tenant, terms, sessions, chunks: None }))
    }

    /// Until it ends.
    pub(super) async fn live(mut self: Box<Self>, lifecycle: Lifecycle) {
        let reason = self.serve(&lifecycle).await;
        close(&self.connection, reason);
        if self.entered.leave()
            && let Some(authority) = self.tenant.authority()
        {
            authority.gone(NodeGone { node_key: self.key.to_bytes(), reason: reason.text().into() });
        }
    }

    async fn serve(&mut self, lifecycle: &Lifecycle) -> CloseCode {
        let (mut hub, mut silent) = (self.tenant.state(), self.tenant.silent());
        let mut told_to_move = false;
        loop {
            // Nothing is pending in it between two frames.
            self.reader.release();
            let event = tokio::select! {
                frame = self.reader.next() => match frame {
                    Ok(Some(frame)) => Event::Frame(frame),
                    Ok(None) | Err(StreamError::Io(_)) => Event::End(CloseCode::Done),
                    Err(StreamError::Frame(_) | StreamError::Truncated) => Event::End(CloseCode::Protocol),
                },
                stream = self.connection.accept_bi() => match stream {
                    Ok((send, recv)) => Event::Stream(send, recv),
                    Err(_) => Event::End(CloseCode::Done),
                },
                _ = hub.changed() => Event::Hub,
                _ = silent.changed() => Event::Silent,
                () = until(self.terms.expires_at_ms) => Event::End(CloseCode::TicketExpired),
                () = told_to_stop(lifecycle, told_to_move) => Event::Draining,
            };
            let answer = match event {
                Event::Frame(frame) => match self.hear(frame) {
                    Ok(answer) => answer,
                    Err(reason) => return reason,
                },
                Event::Stream(send, recv) => {
                    self.serve_chunks(send, recv);
                    None
                }
                // All nodes hear of it at once; they come back spread out.
                Event::Hub => {
                    let within_ms = self.entered.relay.spread_ms(RETURN_LASTS_MS);
                    Some(from_relay::Frame::HubState(HubState { within_ms, ..*hub.borrow_and_update() }))
                }
                Event::Silent => Some(from_relay::Frame::Silent(silent.borrow_and_update().clone())),
                Event::Draining if lifecycle.is_stopping() => return CloseCode::ShuttingDown,
                Event::Draining => {
                    told_to_move = true;
                    // What is under way when a node has moved has the other half of the time.
                    let within_ms = self.entered.relay.spread_ms(self.entered.relay.drain_ms.load(Relaxed) / 2);
                    Some(from_relay::Frame::Drain(Drain { within_ms }))
                }
                Event::End(reason) => return reason,
            };
            if let Some(frame) = answer
                && self.writer.send(&FromRelay { frame: Some(frame) }).await.is_err()
            {
                return CloseCode::Done;
            }
        }
    }

    /// What to answer, or why the link ends.
    fn hear(&mut self, frame: ToRelay) -> Result<Option<from_relay::Frame>, CloseCode> {
        match frame.frame {
            Some(to_relay::Frame::Ping(nonce)) => return Ok(Some(from_relay::Frame::Pong(nonce))),
            Some(to_relay::Frame::Renew(signed)) => self.renew(&signed),
            // What only a hub may say, from a node: not the protocol.
            Some(
                to_relay::Frame::Admission(_)
                | to_relay::Frame::Revoke(_)
                | to_relay::Frame::Echoed(_)
                | to_relay::Frame::Unused(_)
                | to_relay::Frame::Silent(_),
            ) => return Err(CloseCode::Protocol),
            None => {}
        }
        Ok(None)
    }

    fn renew(&mut self, signed: &Signed) {
        let relay = &self.entered.relay;
        match check_ticket(relay, &self.tenant, &self.key, signed) {
            Ok(grant) => {
                let renewed = Terms::of(&grant);
                if (self.terms.enrolling && !renewed.enrolling) || self.terms.bytes_per_second != renewed.bytes_per_second {
                    let (address, budget) = (self.connection.remote_address(), Arc::new(renewed.budget(relay)));
                    let admitted = Admitted { address, tenant: self.tenant.index(), is_hub: false, link: self.entered.number, budget };
                    relay.socket.table_mut().admit(self.entered.route, admitted);
                }
                self.sessions.set(grant.sessions);
                self.terms = renewed;
            }
            Err(refused) => tracing::debug!(code = refused.code, "a ticket was not renewed"),
        }
    }

    /// Answers a stream that the node opened beside the link's own.
    fn serve_chunks(&mut self, send: SendStream, recv: RecvStream) {
        let source = self.chunks.get_or_insert_with(|| {
            quic::widen(&self.connection, limits::CHUNK_STREAMS, 0);
            LinkChunks::new(self.entered.relay.chunks.clone(), self.tenant.clone(), self.sessions.clone())
        });
        chunk::serve_stream(&self.connection, source, Some(NodeId::from(self.key)), send, recv);
    }
}

/// First that the relay drains; and when that was heard, that it stops.
async fn told_to_stop(lifecycle: &Lifecycle, drains: bool) {
    if drains {
        lifecycle.stopping().await;
    } else {
        lifecycle.draining().await;
    }
}

async fn until(at_ms: i64) {
    let left = u64::try_from(at_ms.saturating_sub(clock::now_ms())).unwrap_or(0);
    tokio::time::sleep(Duration::from_millis(left)).await;
}
