//! A hub's link, from its welcome to its end.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use cortex_runtime::{
    lifecycle::Lifecycle,
    quic,
    stream::{FrameReader, FrameWriter, StreamError},
};
use cortex_wire::{
    close::CloseCode,
    id::SessionId,
    key::PublicKey,
    limits,
    route::Route,
    schema::{Drain, FromRelay, ToRelay, from_relay, to_relay},
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;

use super::{Arrival, Entered, close};
use crate::{
    Relay,
    route::Budget,
    tenant::{Authority, LinkedHub, Tenant},
};

/// Frames that wait to be sent to a hub.
const QUEUE: usize = 256;

/// A hub that is linked here.
pub(super) struct HubLink {
    entered: Entered,
    connection: Connection,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
    tenant: Arc<Tenant>,
    hub: Arc<LinkedHub>,
    outgoing: mpsc::Receiver<FromRelay>,
}

impl HubLink {
    /// Enters an arrival as the hub, and welcomes it.
    pub(super) async fn enter(mut arrival: Arrival, tenant: Arc<Tenant>, ticket_key: PublicKey, instance: u64) -> Option<Box<Self>> {
        let entered = arrival.put(Route::of(tenant.hub().key()), &tenant, None, Budget::Unlimited);
        arrival.welcome(instance, None).await.ok()?;
        quic::widen(&arrival.connection, 0, limits::RELAY_CHUNK_STREAMS);
        let (frames, outgoing) = mpsc::channel(QUEUE);
        let hub = LinkedHub::new(frames, arrival.connection.clone());
        tenant.connect(entered.number, ticket_key, instance, hub.clone() as Arc<dyn Authority>);
        hub.tell_held(&arrival.relay.chunks.sessions_of(tenant.index()));
        tracing::info!(hub = %tenant.hub(), address = %arrival.origin(), "the hub is linked");
        let Arrival { connection, reader, writer, .. } = arrival;
        Some(Box::new(Self { entered, connection, reader, writer, tenant, hub, outgoing }))
    }

    /// Until it ends.
    pub(super) async fn live(mut self: Box<Self>, lifecycle: Lifecycle) {
        let reason = self.serve(&lifecycle).await;
        close(&self.connection, reason);
        self.tenant.disconnect(self.entered.number);
        self.entered.leave();
        tracing::info!(hub = %self.tenant.hub(), reason = reason.text(), "the hub's link has ended");
    }

    async fn serve(&mut self, lifecycle: &Lifecycle) -> CloseCode {
        let mut told_to_drain = false;
        loop {
            let frame = tokio::select! {
                frame = self.reader.next::<ToRelay>() => match frame {
                    Ok(Some(frame)) => frame,
                    Ok(None) | Err(StreamError::Io(_)) => return CloseCode::Done,
                    Err(_) => return CloseCode::Protocol,
                },
                Some(frame) = self.outgoing.recv() => {
                    if self.writer.send::<FromRelay>(&frame).await.is_err() { return CloseCode::Done }
                    continue;
                }
                () = lifecycle.draining(), if !told_to_drain => {
                    told_to_drain = true;
                    // It sends nobody here any more, and stays as long as its nodes need it.
                    let within_ms = self.relay().drain_ms.load(Relaxed);
                    let _ = self.send(from_relay::Frame::Drain(Drain { within_ms })).await;
                    continue;
                }
                () = lifecycle.stopping() => return CloseCode::ShuttingDown,
            };
            match frame.frame {
                Some(to_relay::Frame::Ping(nonce)) => {
                    let load = from_relay::Frame::Load(self.relay().load());
                    if self.send(load).await.is_err() || self.send(from_relay::Frame::Pong(nonce)).await.is_err() {
                        return CloseCode::Done;
                    }
                }
                Some(to_relay::Frame::Admission(answer)) => self.hub.answer(answer),
                Some(to_relay::Frame::Echoed(nonce)) => self.hub.echoed(nonce),
                Some(to_relay::Frame::Revoke(key)) => {
                    if let Ok(key) = PublicKey::from_slice(&key) {
                        self.relay().cut(&self.tenant.hub(), Route::of(&key), CloseCode::Revoked);
                    }
                }
                Some(to_relay::Frame::Unused(unused)) => {
                    let sessions: Vec<_> = unused.session_ids.iter().filter_map(|id| SessionId::from_slice(id).ok()).collect();
                    self.relay().forget(&self.tenant.hub(), &sessions, unused.deleted);
                }
                Some(to_relay::Frame::Silent(relay)) if PublicKey::from_slice(&relay).is_ok() => self.tenant.tell_silent(relay),
                Some(to_relay::Frame::Renew(_) | to_relay::Frame::Silent(_)) => return CloseCode::Protocol,
                None => {}
            }
        }
    }

    fn relay(&self) -> &Relay {
        &self.entered.relay
    }

    async fn send(&mut self, frame: from_relay::Frame) -> Result<(), StreamError> {
        self.writer.send(&FromRelay { frame: Some(frame) }).await
    }
}
