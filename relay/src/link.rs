//! One link: a node's or a hub's QUIC connection to this relay.
//!
//! Before a link is admitted it may take [`limits::BEFORE_AUTHENTICATION_MS`] and one frame. Admission is by a ticket, verified here; or by the hub's word, when
//! there is none (an enrolling node shows its invite, whose signature is verified here first). After it, the link carries pings, renewed tickets and the
//! hub's comings and goings, and the node's packets pass by [`crate::route`].

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use cortex_runtime::{
    chunk, clock,
    lifecycle::Lifecycle,
    quic,
    stream::{FrameReader, FrameWriter, StreamError},
    tls,
    tunnel::is_virtual,
};
use cortex_wire::{
    PROTOCOL_VERSION,
    close::CloseCode,
    id::{HubId, NodeId, SessionId},
    invite,
    key::{PublicKey, find_statement},
    limits,
    route::Route,
    schema::{
        Admission, Drain, FromRelay, HubCredential, HubState, KeyPurpose, LinkAnswer, LinkHello, LinkRefused, LinkWelcome, NodeGone,
        Signed, ToRelay, admission_answer::Answer, from_relay, link_answer, link_hello::Credential, to_relay,
    },
    text, ticket,
};
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{mpsc, watch};

use crate::{
    AGENT, Relay,
    chunk::LinkChunks,
    route::{Admitted, Budget, Rate},
    tenant::{Authority, LinkedHub, Tenant, hub_offline},
};

/// Bytes that a node may send before it is enrolled: a handshake and a registration, several times over.
const ENROLLING_BYTES: i64 = 512 * 1024;
/// The longest time over which the nodes of a hub that has come back are spread.
const RETURN_LASTS_MS: u64 = 10_000;
/// Connections whose handshake is under way, above which callers must prove their address first (QUIC Retry).
const HALF_OPEN: usize = 64;

/// A live link, for whoever has to end it or to follow it to a new address.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    pub(crate) number: u64,
    pub(crate) tenant: usize,
    pub(crate) is_hub: bool,
    connection: Connection,
    address: SocketAddr,
    /// Whose chunks the node may ask for; none: a hub.
    sessions: Option<watch::Sender<Vec<SessionId>>>,
}

impl LinkHandle {
    /// A session is no more: what a ticket says of it counts for nothing.
    pub(crate) fn forget(&self, gone: &[SessionId]) {
        if let Some(sessions) = &self.sessions {
            sessions.send_if_modified(|granted| {
                let before = granted.len();
                granted.retain(|session| !gone.contains(session));
                granted.len() != before
            });
        }
    }

    pub(crate) fn close(&self, code: CloseCode) {
        close(&self.connection, code);
    }

    pub(crate) fn is_tunnelled(&self) -> bool {
        is_virtual(&self.address)
    }
}

fn close(connection: &Connection, code: CloseCode) {
    connection.close(VarInt::from_u32(code.number()), code.text().as_bytes());
}

/// Takes a caller in, or asks it to prove its address first.
pub(crate) fn accept(relay: &Arc<Relay>, incoming: Incoming, lifecycle: &Lifecycle) {
    let half_open = relay.endpoint.open_connections().saturating_sub(relay.links());
    if half_open > HALF_OPEN && !incoming.remote_address_validated() {
        let _ = incoming.retry();
        return;
    }
    if relay.links() >= relay.max_links.load(Relaxed) {
        relay.refusals.count("too_many_links");
        incoming.refuse();
        return;
    }
    let (relay, lifecycle) = (relay.clone(), lifecycle.clone());
    tokio::spawn(async move {
        let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
        let Ok(connecting) = relay.take(incoming) else { return };
        let connection = match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(connection)) => connection,
            _ => return,
        };
        let arrived = tokio::time::timeout(patience, Arrival::receive(&relay, &connection)).await;
        match arrived {
            Ok(Ok(arrival)) => arrival.live(lifecycle).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, from = %connection.remote_address(), "a caller did not speak the protocol");
                relay.refusals.count("protocol_error");
                close(&connection, CloseCode::Protocol);
            }
            Err(_) => {
                relay.refusals.count("too_slow");
                close(&connection, CloseCode::TooSlow);
            }
        }
    });
}

/// Follows links that speak from a new address, all of them in one sweep, at most every few milliseconds: QUIC has moved them by then.
pub(crate) async fn follow_moves(relay: Arc<Relay>) {
    loop {
        relay.socket.moved.notified().await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        let mut links = relay.links.lock().unwrap_or_else(PoisonError::into_inner);
        for (route, link) in links.iter_mut() {
            let address = link.connection.remote_address();
            if address != link.address {
                tracing::debug!(from = %link.address, to = %address, "a link has moved");
                link.address = address;
                relay.socket.table_mut().moved(*route, link.number, address);
            }
        }
    }
}

/// Why a link was not admitted or has ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error("no key")]
    NoKey,
}

/// A caller that has proved its key and said hello.
struct Arrival {
    relay: Arc<Relay>,
    connection: Connection,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
    key: PublicKey,
    hello: LinkHello,
}

/// What an arrival was admitted as.
enum Standing {
    Hub { tenant: Arc<Tenant>, ticket_key: PublicKey, instance: u64 },
    Node { tenant: Arc<Tenant>, grant: ticket::Grant, fresh: Option<Signed> },
}

fn refusal(code: &str, reason: &str, retry_after_ms: u64) -> LinkRefused {
    LinkRefused { code: code.into(), reason: reason.into(), retry_after_ms }
}

impl Arrival {
    async fn receive(relay: &Arc<Relay>, connection: &Connection) -> Result<Self, LinkError> {
        let key = tls::peer_key(connection).ok_or(LinkError::NoKey)?;
        let (send, recv) = connection.accept_bi().await?;
        let mut reader = FrameReader::new(recv, limits::CONTROL_FRAME_BYTES);
        let hello: LinkHello = reader.expect().await?;
        Ok(Self { relay: relay.clone(), connection: connection.clone(), reader, writer: FrameWriter::new(send), key, hello })
    }

    /// Where on the network the caller is.
    fn origin(&self) -> SocketAddr {
        self.relay.socket.origin(self.connection.remote_address())
    }

    async fn live(mut self, lifecycle: Lifecycle) {
        let route = Route::of(&self.key);
        let admitted = if lifecycle.is_draining() {
            Err(refusal("draining", "this relay is being stopped; the peer tries again by itself", 1_000))
        } else {
            self.admit().await
        };
        match admitted {
            Err(refused) => {
                self.relay.refusals.count(&refused.code);
                tracing::info!(code = refused.code, from = %self.origin(), key = self.key.short(), "a link was refused");
                let answer = LinkAnswer { answer: Some(link_answer::Answer::Refused(refused)) };
                if self.writer.send(&answer).await.is_ok() {
                    let _ = self.writer.inner_mut().finish();
                    // The caller closes when it has read the answer.
                    let _ = tokio::time::timeout(Duration::from_secs(2), self.connection.closed()).await;
                }
                close(&self.connection, CloseCode::Refused);
            }
            Ok(Standing::Node { tenant, grant, fresh }) => self.live_as_node(lifecycle, route, tenant, grant, fresh).await,
            Ok(Standing::Hub { tenant, ticket_key, instance }) => self.live_as_hub(lifecycle, route, tenant, ticket_key, instance).await,
        }
    }

    async fn admit(&self) -> Result<Standing, LinkRefused> {
        if self.hello.version != PROTOCOL_VERSION {
            return Err(refusal(
                "version",
                &format!("this relay speaks version {PROTOCOL_VERSION} of the protocol; update the older side"),
                60_000,
            ));
        }
        let stranger = || refusal("unknown_hub", "this relay does not serve that hub; its operator adds it with --hub", 60_000);
        let hub = HubId::from_slice(&self.hello.hub_root).map_err(|_| stranger())?;
        let tenant = self.relay.tenants.get(&hub).ok_or_else(stranger)?;
        match &self.hello.credential {
            Some(Credential::Hub(credential)) => self.admit_hub(tenant, credential),
            Some(Credential::Ticket(signed)) => match self.check_ticket(&tenant, signed) {
                Ok(grant) => Ok(Standing::Node { tenant, grant, fresh: None }),
                // The hub may know better; when it does not, what is wrong with the ticket is the reason.
                Err(wrong) => self.ask_hub(tenant, None).await.map_err(|refused| match refused.code.as_str() {
                    "node_unknown" => wrong,
                    "hub_offline" if wrong.code != refused.code => LinkRefused { retry_after_ms: refused.retry_after_ms, ..wrong },
                    _ => refused,
                }),
            },
            Some(Credential::Invite(proof)) => {
                let terms = invite::open(proof, clock::now_ms()).map_err(|error| refusal("invite_forged", &error.to_string(), 60_000))?;
                if terms.hub != hub {
                    return Err(refusal("invite_forged", "this invite is for another hub", 60_000));
                }
                self.ask_hub(tenant, Some(proof.clone())).await
            }
            None => self.ask_hub(tenant, None).await,
        }
    }

    fn admit_hub(&self, tenant: Arc<Tenant>, credential: &HubCredential) -> Result<Standing, LinkRefused> {
        let hub = tenant.hub();
        let now = clock::now_ms();
        let forged = |_| refusal("not_the_hub", "the key of this connection does not speak for that hub", 60_000);
        let transport = find_statement(&credential.statements, &hub, KeyPurpose::Transport, now).map_err(forged)?;
        let ticket_key = find_statement(&credential.statements, &hub, KeyPurpose::Ticket, now).map_err(forged)?;
        if transport.key != self.key {
            return Err(refusal("not_the_hub", "the key of this connection does not speak for that hub", 60_000));
        }
        Ok(Standing::Hub { tenant, ticket_key: ticket_key.key, instance: credential.instance })
    }

    async fn ask_hub(&self, tenant: Arc<Tenant>, invite: Option<cortex_wire::schema::InviteProof>) -> Result<Standing, LinkRefused> {
        let authority = tenant.authority().ok_or_else(hub_offline)?;
        let admission = Admission {
            request: 0,
            node_key: self.key.to_bytes(),
            observed_address: self.origin().to_string(),
            agent: text::clean(&self.hello.agent, limits::NAME_BYTES),
            invite,
        };
        match authority.admit(admission).await {
            Answer::Refused(refused) => Err(refused),
            Answer::Ticket(signed) => {
                let grant = self
                    .check_ticket(&tenant, &signed)
                    .map_err(|_| refusal("bad_ticket", "the hub issued a ticket that does not hold here; compare both clocks", 10_000))?;
                Ok(Standing::Node { tenant, grant, fresh: Some(signed) })
            }
        }
    }

    fn check_ticket(&self, tenant: &Tenant, signed: &Signed) -> Result<ticket::Grant, LinkRefused> {
        let key = tenant.ticket_key().ok_or_else(hub_offline)?;
        let node = NodeId::from(self.key);
        ticket::check(signed, &key, &tenant.hub(), &self.relay.id, &node, clock::now_ms())
            .map_err(|error| refusal(error.code(), &error.to_string(), 60_000))
    }

    /// Enters the link under its route; whoever held the route before is told that it was superseded.
    fn enter(&self, route: Route, of: &Arc<Tenant>, sessions: Option<watch::Sender<Vec<SessionId>>>, budget: Budget) -> Entered {
        let (number, tenant, is_hub) = (self.relay.next_link(), of.index(), sessions.is_none());
        let address = self.connection.remote_address();
        let handle = LinkHandle { number, tenant, is_hub, connection: self.connection.clone(), address, sessions };
        let admitted = Admitted { address, tenant, is_hub, link: number, budget: Arc::new(budget) };
        self.relay.socket.table_mut().admit(route, admitted);
        let older = self.relay.links.lock().unwrap_or_else(PoisonError::into_inner).insert(route, handle);
        if let Some(older) = older {
            older.close(CloseCode::Superseded);
        }
        if !self.relay.tenants.serves(of) {
            close(&self.connection, CloseCode::Refused); // its hub was removed meanwhile
        }
        Entered { relay: self.relay.clone(), route, number }
    }

    fn budget(&self, grant: &ticket::Grant) -> Budget {
        if grant.enrolling {
            return Budget::total(ENROLLING_BYTES);
        }
        let rate = match grant.bytes_per_second {
            0 => Rate::Default(self.relay.bytes_per_second.clone()),
            own => Rate::Own(own),
        };
        Budget::rate(rate, Instant::now())
    }

    async fn welcome(&mut self, instance: u64, ticket: Option<Signed>) -> Result<(), StreamError> {
        let welcome = LinkWelcome {
            version: PROTOCOL_VERSION,
            agent: AGENT.into(),
            region: self.relay.region.clone(),
            observed_address: self.origin().to_string(),
            server_time_ms: clock::now_ms(),
            ticket,
            relay_id: self.relay.id.to_string(),
            hub_instance: instance,
        };
        self.writer.send(&LinkAnswer { answer: Some(link_answer::Answer::Welcome(welcome)) }).await
    }

    async fn live_as_node(
        mut self,
        lifecycle: Lifecycle,
        route: Route,
        tenant: Arc<Tenant>,
        mut grant: ticket::Grant,
        fresh: Option<Signed>,
    ) {
        let (mut hub_state, mut silent) = (tenant.state(), tenant.silent());
        let instance = hub_state.borrow_and_update().instance;
        let sessions = watch::Sender::new(grant.sessions.clone());
        let entered = self.enter(route, &tenant, Some(sessions.clone()), self.budget(&grant));
        if self.welcome(instance, fresh).await.is_err() {
            return;
        }
        tracing::debug!(node = self.key.short(), address = %self.origin(), "a node is linked");
        self.serve_chunks(&tenant, sessions.subscribe());
        let mut told_to_move = false;
        let reason = loop {
            let frame = tokio::select! {
                frame = self.reader.next::<ToRelay>() => match frame {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break CloseCode::Done,
                    Err(StreamError::Frame(_) | StreamError::Truncated) => break CloseCode::Protocol,
                    Err(StreamError::Io(_)) => break CloseCode::Done,
                },
                _ = hub_state.changed() => {
                    // All nodes hear of it at once; they come back spread out.
                    let state = HubState { within_ms: self.relay.spread_ms(RETURN_LASTS_MS), ..*hub_state.borrow_and_update() };
                    if self.send(from_relay::Frame::HubState(state)).await.is_err() { break CloseCode::Done }
                    continue;
                }
                _ = silent.changed() => {
                    let relay = silent.borrow_and_update().clone();
                    if self.send(from_relay::Frame::Silent(relay)).await.is_err() { break CloseCode::Done }
                    continue;
                }
                () = until(grant.expires_at_ms) => break CloseCode::TicketExpired,
                () = lifecycle.draining(), if !told_to_move => {
                    told_to_move = true;
                    // What is under way when a node has moved has the other half of the time.
                    let within_ms = self.relay.spread_ms(self.relay.drain_ms.load(Relaxed) / 2);
                    let _ = self.send(from_relay::Frame::Drain(Drain { within_ms })).await;
                    continue;
                }
                () = lifecycle.stopping() => break CloseCode::ShuttingDown,
            };
            match frame.frame {
                Some(to_relay::Frame::Ping(nonce)) => {
                    if self.send(from_relay::Frame::Pong(nonce)).await.is_err() {
                        break CloseCode::Done;
                    }
                }
                Some(to_relay::Frame::Renew(signed)) => match self.check_ticket(&tenant, &signed) {
                    Ok(renewed) => {
                        if (grant.enrolling && !renewed.enrolling) || grant.bytes_per_second != renewed.bytes_per_second {
                            let budget = Arc::new(self.budget(&renewed));
                            let address = self.connection.remote_address();
                            let admitted = Admitted { address, tenant: tenant.index(), is_hub: false, link: entered.number, budget };
                            self.relay.socket.table_mut().admit(route, admitted);
                        }
                        sessions.send_replace(renewed.sessions.clone());
                        grant = renewed;
                    }
                    Err(refused) => tracing::debug!(code = refused.code, "a ticket was not renewed"),
                },
                // What only a hub may say, from a node: not the protocol.
                Some(
                    to_relay::Frame::Admission(_)
                    | to_relay::Frame::Revoke(_)
                    | to_relay::Frame::Echoed(_)
                    | to_relay::Frame::Unused(_)
                    | to_relay::Frame::Silent(_),
                ) => break CloseCode::Protocol,
                None => {}
            }
        };
        close(&self.connection, reason);
        if entered.leave()
            && let Some(authority) = tenant.authority()
        {
            authority.gone(NodeGone { node_key: self.key.to_bytes(), reason: reason.text().into() });
        }
    }

    /// Answers the streams that the node opens beside the link's own, until the link ends.
    fn serve_chunks(&self, tenant: &Arc<Tenant>, sessions: watch::Receiver<Vec<SessionId>>) {
        quic::widen(&self.connection, limits::CHUNK_STREAMS, 0);
        let chunks = LinkChunks::new(self.relay.chunks.clone(), tenant.clone(), sessions);
        tokio::spawn(chunk::serve_all(self.connection.clone(), chunks, Some(NodeId::from(self.key))));
    }

    async fn live_as_hub(mut self, lifecycle: Lifecycle, _own: Route, tenant: Arc<Tenant>, ticket_key: PublicKey, instance: u64) {
        let route = Route::of(tenant.hub().key());
        let entered = self.enter(route, &tenant, None, Budget::Unlimited);
        if self.welcome(instance, None).await.is_err() {
            return;
        }
        let (frames, mut outgoing) = mpsc::channel(256);
        quic::widen(&self.connection, 0, limits::RELAY_CHUNK_STREAMS);
        let hub = LinkedHub::new(frames, self.connection.clone());
        tenant.connect(entered.number, ticket_key, instance, hub.clone() as Arc<dyn Authority>);
        hub.tell_held(&self.relay.chunks.sessions_of(tenant.index()));
        tracing::info!(hub = %tenant.hub(), address = %self.origin(), "the hub is linked");
        let mut told_to_drain = false;
        let reason = loop {
            let frame = tokio::select! {
                frame = self.reader.next::<ToRelay>() => match frame {
                    Ok(Some(frame)) => frame,
                    Ok(None) | Err(StreamError::Io(_)) => break CloseCode::Done,
                    Err(_) => break CloseCode::Protocol,
                },
                Some(frame) = outgoing.recv() => {
                    if self.writer.send::<FromRelay>(&frame).await.is_err() { break CloseCode::Done }
                    continue;
                }
                () = lifecycle.draining(), if !told_to_drain => {
                    told_to_drain = true;
                    // It sends nobody here any more, and stays as long as its nodes need it.
                    let _ = self.send(from_relay::Frame::Drain(Drain { within_ms: self.relay.drain_ms.load(Relaxed) })).await;
                    continue;
                }
                () = lifecycle.stopping() => break CloseCode::ShuttingDown,
            };
            match frame.frame {
                Some(to_relay::Frame::Ping(nonce)) => {
                    let load = from_relay::Frame::Load(self.relay.load());
                    if self.send(load).await.is_err() || self.send(from_relay::Frame::Pong(nonce)).await.is_err() {
                        break CloseCode::Done;
                    }
                }
                Some(to_relay::Frame::Admission(answer)) => hub.answer(answer),
                Some(to_relay::Frame::Echoed(nonce)) => hub.echoed(nonce),
                Some(to_relay::Frame::Revoke(key)) => {
                    if let Ok(key) = PublicKey::from_slice(&key) {
                        self.relay.cut(&tenant.hub(), Route::of(&key), CloseCode::Revoked);
                    }
                }
                Some(to_relay::Frame::Unused(unused)) => {
                    let sessions: Vec<_> = unused.session_ids.iter().filter_map(|id| SessionId::from_slice(id).ok()).collect();
                    self.relay.forget(&tenant.hub(), &sessions, unused.deleted);
                }
                Some(to_relay::Frame::Silent(relay)) if PublicKey::from_slice(&relay).is_ok() => tenant.tell_silent(relay),
                Some(to_relay::Frame::Renew(_) | to_relay::Frame::Silent(_)) => break CloseCode::Protocol,
                None => {}
            }
        };
        close(&self.connection, reason);
        tenant.disconnect(entered.number);
        entered.leave();
        tracing::info!(hub = %tenant.hub(), reason = reason.text(), "the hub's link has ended");
    }

    async fn send(&mut self, frame: from_relay::Frame) -> Result<(), StreamError> {
        self.writer.send(&FromRelay { frame: Some(frame) }).await
    }
}

async fn until(at_ms: i64) {
    let left = u64::try_from(at_ms.saturating_sub(clock::now_ms())).unwrap_or(0);
    tokio::time::sleep(Duration::from_millis(left)).await;
}

/// A link's place in the tables. Leaving is certain: also when the task is dropped.
struct Entered {
    relay: Arc<Relay>,
    route: Route,
    number: u64,
}

impl Entered {
    /// Whether the link still held its route: a superseded one has nothing to report.
    fn leave(&self) -> bool {
        self.relay.socket.table_mut().remove(self.route, self.number);
        let mut links = self.relay.links.lock().unwrap_or_else(PoisonError::into_inner);
        let held = links.get(&self.route).is_some_and(|link| link.number == self.number);
        if held {
            links.remove(&self.route);
        }
        held
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.leave();
    }
}
