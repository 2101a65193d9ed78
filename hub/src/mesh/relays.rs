//! Links of the hub to relays elsewhere.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cortex_runtime::{
    chunk,
    clock::Backoff,
    link::{self, Link, LinkError},
};
use cortex_wire::{
    id::NodeId,
    invite::RelayEndpoint,
    route::RelayTag,
    schema::{AdmissionAnswer, FromRelay, HubCredential, ToRelay, from_relay, link_hello::Credential, to_relay},
    text,
};
use tokio::sync::mpsc;

use crate::{
    hub::{RelayStatus, lock},
    mesh::{AGENT, Network, admission::Gatekeeper},
};

/// How often a link is probed: this also keeps a NAT in front of the hub open.
const PING: Duration = Duration::from_secs(2);
/// A link that lived this long may start its next outage with the shortest wait. Shorter than a peer's: there is one hub, and all its nodes behind the relay wait for it.
const HEALTHY: Duration = Duration::from_secs(3);

/// A relay elsewhere, and what is known of it.
#[derive(Debug)]
pub struct RelayLink {
    pub(crate) relay: RelayEndpoint,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    online: bool,
    version: String,
    rtt: Option<Duration>,
    frames: Option<mpsc::Sender<ToRelay>>,
}

impl RelayLink {
    pub(crate) fn new(relay: RelayEndpoint) -> Self {
        Self { relay, live: Mutex::default() }
    }

    pub(crate) fn status(&self, nodes: u64) -> RelayStatus {
        let live = lock(&self.live);
        RelayStatus {
            endpoint: self.relay.clone(),
            embedded: false,
            online: live.online,
            nodes,
            rtt_us: live.rtt.and_then(|rtt| u64::try_from(rtt.as_micros()).ok()),
            version: live.version.clone(),
        }
    }

    pub(crate) fn revoke(&self, node: NodeId) {
        if let Some(frames) = &lock(&self.live).frames {
            // When the queue is full, the ticket's short life does it.
            let _ = frames.try_send(ToRelay { frame: Some(to_relay::Frame::Revoke(node.key().to_bytes())) });
        }
    }
}

/// Keeps the hub linked to one relay until the program stops.
pub(crate) async fn keep(network: Arc<Network>, link: Arc<RelayLink>, gatekeeper: Arc<Gatekeeper>) -> anyhow::Result<()> {
    let stopping = network.lifecycle.clone();
    tokio::select! {
        () = stopping.stopping() => {}
        () = keep_on(network, link, gatekeeper) => {}
    }
    Ok(())
}

async fn keep_on(network: Arc<Network>, link: Arc<RelayLink>, gatekeeper: Arc<Gatekeeper>) {
    let mut backoff = Backoff::default();
    loop {
        match dial(&network, &link.relay).await {
            Ok(dialled) => {
                let since = Instant::now();
                tracing::info!(relay = link.relay.address, agent = text::clean(&dialled.welcome.agent, 64), "linked to a relay");
                let reason = live(&link, dialled, &gatekeeper).await;
                *lock(&link.live) = Live::default();
                tracing::warn!(relay = link.relay.address, reason, "the link to a relay has ended");
                if since.elapsed() > HEALTHY {
                    backoff.reset();
                }
            }
            Err(error) => tracing::warn!(relay = link.relay.address, %error, "cannot link to a relay; trying again"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn dial(network: &Network, relay: &RelayEndpoint) -> Result<Link, LinkError> {
    let address = link::resolve(relay).await?;
    let virtual_address = network.socket.relay_path(RelayTag::of(relay.id.key()), address);
    let credential = HubCredential { statements: network.hub.keys.statements().to_vec(), instance: network.instance };
    let hello = link::hello(AGENT, &network.hub.id(), Some(Credential::Hub(credential)));
    link::dial(&network.endpoint, virtual_address, relay, &network.hub.keys.transport, hello).await
}

/// Serves a link until it ends, and says why it did.
async fn live(link: &RelayLink, dialled: Link, gatekeeper: &Arc<Gatekeeper>) -> String {
    let Link { connection, welcome, mut reader, mut writer } = dialled;
    let (frames, mut outgoing) = mpsc::channel(1024);
    *lock(&link.live) =
        Live { online: true, version: text::clean(&welcome.agent, 64), rtt: Some(connection.rtt()), frames: Some(frames.clone()) };
    // Ends with the connection.
    tokio::spawn(chunk::serve_all(connection.clone(), gatekeeper.chunks(), None));
    let mut ping = tokio::time::interval(PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unanswered = 0u64;
    loop {
        tokio::select! {
            frame = reader.next::<FromRelay>() => match frame {
                Ok(Some(FromRelay { frame: Some(frame) })) => match frame {
                    from_relay::Frame::Pong(_) => {
                        unanswered = 0;
                        lock(&link.live).rtt = Some(connection.rtt());
                    }
                    from_relay::Frame::Admission(admission) => {
                        let (gatekeeper, frames, relay) = (gatekeeper.clone(), frames.clone(), link.relay.id);
                        tokio::spawn(async move {
                            let answer = gatekeeper.admit(&relay, &admission).await;
                            let answer = AdmissionAnswer { request: admission.request, answer: Some(answer) };
                            let _ = frames.send(ToRelay { frame: Some(to_relay::Frame::Admission(answer)) }).await;
                        });
                    }
                    from_relay::Frame::NodeGone(_) | from_relay::Frame::HubState(_) | from_relay::Frame::Drain(_) => {}
                },
                Ok(Some(FromRelay { frame: None })) => {}
                Ok(None) => return "the relay ended it".into(),
                Err(error) => return connection.close_reason().map_or_else(|| error.to_string(), |reason| reason.to_string()),
            },
            Some(frame) = outgoing.recv() => {
                if let Err(error) = writer.send(&frame).await { return error.to_string() }
            }
            _ = ping.tick() => {
                if unanswered >= 2 {
                    connection.close(quinn::VarInt::from_u32(cortex_wire::close::CloseCode::Silent.number()), b"silent");
                    return "the relay stopped answering".into();
                }
                unanswered += 1;
                if let Err(error) = writer.send(&ToRelay { frame: Some(to_relay::Frame::Ping(unanswered)) }).await { return error.to_string() }
            }
        }
    }
}
