//! The relays of this hub: the one in its process, links to those elsewhere, and what nodes are told of them.
//!
//! Relays come from the configuration and from the store; those of the store come and go while the hub runs. A relay that is removed leaves the nodes' list at once, and keeps its link for
//! [`LEAVING`], so that its nodes can move.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cortex_runtime::{
    chunk,
    clock::{self, Backoff},
    link::{self, Link, LinkError},
    reach,
    socket::{Carrier, NodeSocket},
};
use cortex_wire::{
    close::CloseCode,
    id::{NodeId, RelayId, SessionId},
    invite::RelayEndpoint,
    limits,
    route::RelayTag,
    schema::{
        AdmissionAnswer, FromRelay, HubCredential, RelayNews, RelaySight, ToRelay, UnusedSessions, from_relay, link_hello::Credential,
        to_relay,
    },
    text,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    hub::{RelayCheck, RelayStatus, lock},
    mesh::{AGENT, Network, admission::Gatekeeper},
};

/// How often a link is probed: this also keeps a NAT in front of the hub open. When a relay has not answered until the next probe, its nodes are told by the others.
const PING: Duration = Duration::from_millis(500);
/// A link with so many probes unanswered has ended.
const UNANSWERED: u64 = 8;
/// How long readiness waits for a relay.
const ECHO: Duration = Duration::from_secs(2);
/// A relay that was removed keeps its link so long, for its nodes to move.
const LEAVING: Duration = Duration::from_secs(10);
/// People are told of changes no more often than this.
const SHOWN: Duration = Duration::from_millis(200);
/// A link that lived this long may start its next outage with the shortest wait. Shorter than a peer's: there is one hub, and all its nodes behind the relay wait for it.
const HEALTHY: Duration = Duration::from_secs(3);

/// A relay elsewhere, and what is known of it.
#[derive(Debug)]
pub struct RelayLink {
    pub(crate) relay: RelayEndpoint,
    configured: bool,
    live: Mutex<Live>,
    /// The last ping that was answered.
    answered: watch::Sender<u64>,
    /// Ends the link.
    pub(crate) removed: CancellationToken,
    /// Tells nodes when something is different.
    news: NewsSender,
}

#[derive(Debug, Default)]
struct Live {
    online: bool,
    draining: bool,
    version: String,
    rtt: Option<Duration>,
    load: u32,
    region: String,
    carrier: Option<&'static str>,
    frames: Option<mpsc::Sender<ToRelay>>,
    connection: Option<quinn::Connection>,
    /// Where it sees the hub's packets come from.
    observed: Option<SocketAddr>,
}

impl RelayLink {
    pub(crate) fn new(relay: RelayEndpoint, configured: bool, news: NewsSender) -> Self {
        Self { relay, configured, live: Mutex::default(), answered: watch::Sender::default(), removed: CancellationToken::new(), news }
    }

    fn sight(&self) -> RelaySight {
        let live = lock(&self.live);
        RelaySight {
            key: self.relay.id.key().to_bytes(),
            online: live.online,
            rtt_us: live.rtt.map(micros).unwrap_or_default(),
            draining: live.draining || self.removed.is_cancelled(),
            load: live.load,
        }
    }

    /// What is known of the link is different; nodes hear of it when it matters to them.
    fn update(&self, change: impl FnOnce(&mut Live)) {
        change(&mut lock(&self.live));
        self.news.see(self.sight(), Instant::now());
    }

    /// Where the relay sees the hub's packets come from. Behind a tunnel, it sees something else than UDP.
    pub(crate) fn observed(&self, socket: &NodeSocket) -> Option<SocketAddr> {
        let by_udp = matches!(socket.carrier(RelayTag::of(self.relay.id.key())), Some(Carrier::Udp(_)));
        lock(&self.live).observed.filter(|_| by_udp)
    }

    pub(crate) fn status(&self, nodes: u64) -> RelayStatus {
        let live = lock(&self.live);
        let mut endpoint = self.relay.clone();
        if endpoint.region.is_empty() {
            endpoint.region.clone_from(&live.region);
        }
        RelayStatus {
            endpoint,
            embedded: false,
            configured: self.configured,
            online: live.online,
            nodes,
            rtt_us: live.rtt.map(micros),
            draining: live.draining,
            version: live.version.clone(),
            load: live.online.then_some(live.load),
            carrier: live.carrier,
        }
    }

    /// Asks the relay whether it is there.
    pub(crate) async fn check(&self) -> RelayCheck {
        let nonce = u64::from_le_bytes(clock::random());
        let mut answered = self.answered.subscribe();
        let frames = lock(&self.live).frames.clone();
        let problem = match frames {
            None => Some("not linked; the log says why".to_owned()),
            Some(frames) => {
                let asked = frames.try_send(ToRelay { frame: Some(to_relay::Frame::Ping(nonce)) });
                let answer = async { asked.is_ok() && answered.wait_for(|answered| *answered == nonce).await.is_ok() };
                let in_time = tokio::time::timeout(ECHO, answer).await.unwrap_or(false);
                (!in_time).then(|| format!("no answer over its link within {} s", ECHO.as_secs()))
            }
        };
        RelayCheck { relay: self.relay.id, problem }
    }

    /// What carries the link now.
    fn carrier(&self, network: &Network) -> Option<&'static str> {
        network.socket.carrier(RelayTag::of(self.relay.id.key())).map(|carrier| carrier.label())
    }

    /// Ends the link of a relay that was removed.
    fn close(&self) {
        if let Some(connection) = lock(&self.live).connection.take() {
            connection.close(quinn::VarInt::from_u32(CloseCode::Done.number()), CloseCode::Done.text().as_bytes());
        }
    }

    /// No node may ask for chunks of these sessions any more.
    pub(crate) fn forget(&self, sessions: &[SessionId], deleted: bool) {
        if let Some(frames) = &lock(&self.live).frames {
            // When the queue is full, the relay hears it at its next link: it says what it holds.
            let _ = frames.try_send(unused(sessions, deleted));
        }
    }

    /// Another relay does not answer.
    pub(crate) fn tell_silent(&self, other: &RelayId) {
        if let Some(frames) = &lock(&self.live).frames {
            // Lost, it is found out by each node's next heartbeat.
            let _ = frames.try_send(ToRelay { frame: Some(to_relay::Frame::Silent(other.key().to_bytes())) });
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
    let (stopping, removed) = (network.lifecycle.clone(), link.removed.clone());
    tokio::select! {
        () = stopping.stopping() => {}
        () = async { removed.cancelled().await; tokio::time::sleep(LEAVING).await } => {
            link.close();
            tracing::info!(relay = link.relay.address, "a relay was removed");
        }
        () = keep_on(network, link.clone(), gatekeeper) => {}
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
                let reason = live(&network, &link, dialled, &gatekeeper).await;
                link.update(|live| *live = Live::default());
                tracing::warn!(relay = link.relay.address, reason, "the link to a relay has ended");
                if since.elapsed() > HEALTHY {
                    backoff.reset();
                }
            }
            Err(error) => {
                tracing::warn!(relay = link.relay.address, %error, "cannot link to a relay; trying again");
                // Nodes hear that it leads nowhere.
                link.update(|_| {});
            }
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn dial(network: &Network, relay: &RelayEndpoint) -> Result<Link, LinkError> {
    let credential = HubCredential { statements: network.hub.keys.statements().to_vec(), instance: network.instance };
    let hello = link::hello(AGENT, &network.hub.id(), Some(Credential::Hub(credential)));
    reach::reach(&network.endpoint, &network.socket, &network.reach, relay, &network.hub.keys.transport, hello).await
}

/// Serves a link until it ends, and says why it did.
async fn live(network: &Network, link: &RelayLink, dialled: Link, gatekeeper: &Arc<Gatekeeper>) -> String {
    let Link { ref connection, welcome, mut reader, mut writer, .. } = dialled;
    let (frames, mut outgoing) = mpsc::channel(1024);
    let version = text::clean(&welcome.agent, 64);
    let up = Live {
        online: true,
        draining: false,
        version,
        rtt: Some(connection.rtt()),
        load: 0,
        region: text::clean(&welcome.region, limits::NAME_BYTES),
        carrier: link.carrier(network),
        frames: Some(frames.clone()),
        connection: Some(connection.clone()),
        observed: welcome.observed_address.parse().ok(),
    };
    link.update(|live| *live = up);
    // Ends with the connection.
    tokio::spawn(chunk::serve_all(connection.clone(), gatekeeper.chunks(), None));
    let mut ping = tokio::time::interval(PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unanswered = 0u64;
    loop {
        tokio::select! {
            frame = reader.next::<FromRelay>() => match frame {
                Ok(Some(FromRelay { frame: Some(frame) })) => match frame {
                    from_relay::Frame::Pong(nonce) => {
                        unanswered = 0;
                        link.answered.send_replace(nonce);
                        let carrier = link.carrier(network);
                        link.update(|live| (live.rtt, live.carrier) = (Some(connection.rtt()), carrier));
                    }
                    // With the pong behind it, the nodes hear of it.
                    from_relay::Frame::Load(percent) => lock(&link.live).load = percent.min(100),
                    from_relay::Frame::Echo(nonce) => {
                        if let Err(error) = writer.send(&ToRelay { frame: Some(to_relay::Frame::Echoed(nonce)) }).await { return error.to_string() }
                    }
                    from_relay::Frame::Admission(admission) => {
                        let (gatekeeper, frames, relay) = (gatekeeper.clone(), frames.clone(), link.relay.id);
                        tokio::spawn(async move {
                            let answer = gatekeeper.admit(&relay, &admission).await;
                            let answer = AdmissionAnswer { request: admission.request, answer: Some(answer) };
                            let _ = frames.send(ToRelay { frame: Some(to_relay::Frame::Admission(answer)) }).await;
                        });
                    }
                    from_relay::Frame::Drain(_) => {
                        tracing::info!(relay = link.relay.address, "a relay is being stopped; its nodes move");
                        link.update(|live| live.draining = true);
                    }
                    from_relay::Frame::Held(held) => {
                        let (gatekeeper, frames) = (gatekeeper.clone(), frames.clone());
                        tokio::spawn(async move {
                            for (deleted, sessions) in gatekeeper.unused(&held).await {
                                let _ = frames.send(unused(&sessions, deleted)).await;
                            }
                        });
                    }
                    from_relay::Frame::NodeGone(_) | from_relay::Frame::HubState(_) | from_relay::Frame::Silent(_) => {}
                },
                Ok(Some(FromRelay { frame: None })) => {}
                Ok(None) => return "the relay ended it".into(),
                Err(error) => return connection.close_reason().map_or_else(|| error.to_string(), |reason| reason.to_string()),
            },
            Some(frame) = outgoing.recv() => {
                if let Err(error) = writer.send(&frame).await { return error.to_string() }
            }
            _ = ping.tick() => {
                if unanswered == 1 {
                    network.tell_silent(&link.relay.id);
                }
                if unanswered >= UNANSWERED {
                    connection.close(quinn::VarInt::from_u32(CloseCode::Silent.number()), b"silent");
                    return "the relay stopped answering".into();
                }
                unanswered += 1;
                if let Err(error) = writer.send(&ToRelay { frame: Some(to_relay::Frame::Ping(unanswered)) }).await { return error.to_string() }
            }
        }
    }
}

/// Shows people who look at it now when something about the relays is different: what nodes hear of, at most once in [`SHOWN`].
pub(crate) async fn show(network: Arc<Network>) {
    let mut news = network.news.follow();
    loop {
        let changed = tokio::select! {
            changed = news.changed() => changed.is_ok(),
            () = network.lifecycle.stopping() => false,
        };
        if !changed {
            return;
        }
        network.hub.show_relays().await;
        tokio::time::sleep(SHOWN).await;
    }
}

fn unused(sessions: &[SessionId], deleted: bool) -> ToRelay {
    let session_ids = sessions.iter().map(|session| Bytes::copy_from_slice(session.as_bytes())).collect();
    ToRelay { frame: Some(to_relay::Frame::Unused(UnusedSessions { session_ids, deleted })) }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// All nodes hear of how far and how busy a relay is at most so often: else a site that has much to do would tell thousands of nodes all the time how much it has to do.
const MEASURED: Duration = Duration::from_secs(10);

/// What nodes are told of the relays. Whoever follows it is woken when something is different that matters to a node.
#[derive(Debug, Clone)]
pub(crate) struct NewsSender {
    news: watch::Sender<RelayNews>,
    /// When they were told of each relay last, by its key.
    told: Arc<Mutex<HashMap<Bytes, Instant>>>,
}

impl Default for NewsSender {
    fn default() -> Self {
        Self { news: watch::Sender::new(RelayNews::default()), told: Arc::default() }
    }
}

impl NewsSender {
    pub(crate) fn follow(&self) -> watch::Receiver<RelayNews> {
        self.news.subscribe()
    }

    /// The list, most wanted first. What is known of those that stay is kept.
    pub(crate) fn list(&self, relays: &[RelayEndpoint]) {
        lock(&self.told).retain(|key, _| relays.iter().any(|relay| relay.id.key().as_bytes()[..] == key[..]));
        self.news.send_if_modified(|news| {
            let listed: Vec<_> = relays.iter().map(RelayEndpoint::to_message).collect();
            news.seen.retain(|seen| relays.iter().any(|relay| relay.id.key().as_bytes()[..] == seen.key[..]));
            let changed = news.relays != listed;
            news.relays = listed;
            changed
        });
    }

    /// A relay that is in the list, as the hub sees it now.
    pub(crate) fn see(&self, sight: RelaySight, now: Instant) {
        let mut told = lock(&self.told);
        let is_recent = told.get(&sight.key).is_some_and(|at| now < *at + MEASURED);
        self.news.send_if_modified(|news| {
            if !news.relays.iter().any(|relay| relay.key == sight.key) {
                return false;
            }
            let key = sight.key.clone();
            match news.seen.iter_mut().find(|seen| seen.key == sight.key) {
                Some(seen) if !is_other(seen, &sight) && (is_recent || !measures_other(seen, &sight)) => return false,
                Some(seen) => *seen = sight,
                None => news.seen.push(sight),
            }
            told.insert(key, now);
            true
        });
    }
}

/// Whether nodes have to hear of it at once.
fn is_other(told: &RelaySight, now: &RelaySight) -> bool {
    (told.online, told.draining) != (now.online, now.draining)
}

/// Whether they have to hear of it some time: round trips and loads are always a little different.
fn measures_other(told: &RelaySight, now: &RelaySight) -> bool {
    const LITTLE_US: u64 = 3_000;
    const LITTLE_LOAD: u32 = 10;
    let apart = told.rtt_us.abs_diff(now.rtt_us);
    (apart > LITTLE_US && apart * 4 > told.rtt_us) || told.load.abs_diff(now.load) >= LITTLE_LOAD
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    fn endpoint(number: u16) -> RelayEndpoint {
        RelayEndpoint { address: format!("relay{number}:443"), id: key(number).public().into(), region: String::new() }
    }

    fn sight(number: u16, online: bool, rtt_us: u64) -> RelaySight {
        RelaySight { key: key(number).public().to_bytes(), online, rtt_us, draining: false, load: 0 }
    }

    #[test]
    fn nodes_hear_of_what_matters_to_them() {
        let news = NewsSender::default();
        let mut told = news.follow();
        let mut heard = || {
            let heard = told.has_changed().unwrap();
            told.mark_unchanged();
            heard
        };
        news.list(&[endpoint(1), endpoint(2)]);
        assert!(heard());
        news.list(&[endpoint(1), endpoint(2)]);
        assert!(!heard(), "the same list");
        let begin = Instant::now();
        let at = |times| begin + MEASURED * times;
        news.see(sight(1, true, 20_000), at(0));
        assert!(heard());
        news.see(sight(1, true, 22_000), at(1));
        assert!(!heard(), "a little farther");
        news.see(sight(1, true, 80_000), at(1));
        assert!(heard(), "much farther");
        news.see(RelaySight { load: 9, ..sight(1, true, 80_000) }, at(2));
        assert!(!heard(), "a little busier");
        news.see(RelaySight { load: 60, ..sight(1, true, 80_000) }, at(2) - Duration::from_millis(1));
        assert!(!heard(), "much busier, and they were told a moment ago");
        news.see(RelaySight { load: 60, ..sight(1, true, 80_000) }, at(2));
        assert!(heard(), "much busier");
        news.see(sight(1, false, 80_000), at(2));
        assert!(heard(), "what cannot wait");
        news.see(sight(3, true, 1), at(3));
        assert!(!heard(), "not in the list");
        news.list(&[endpoint(2)]);
        assert!(heard() && told.borrow().seen.is_empty());
    }
}
