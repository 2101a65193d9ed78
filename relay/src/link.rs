//! Links: the QUIC connections of nodes and hubs to this relay.
//!
//! Before a link is admitted it may take [`limits::BEFORE_AUTHENTICATION_MS`] and one frame. Admission is by a ticket, verified here; or by the hub's word, when
//! there is none (an enrolling node shows its invite, whose signature is verified here first). After it, the link carries pings, renewed tickets and the
//! hub's comings and goings, and the node's packets pass by [`crate::route`].
//!
//! | module | answers for |
//! | --- | --- |
//! | [`node`] | a node's link as long as it lives |
//! | [`hub`] | a hub's |

mod hub;
mod node;

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use cortex_runtime::{
    clock,
    lifecycle::Lifecycle,
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
        Admission, HubCredential, KeyPurpose, LinkAnswer, LinkHello, LinkRefused, LinkWelcome, Signed, admission_answer::Answer,
        link_answer, link_hello::Credential,
    },
    text, ticket,
};
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};

use self::{hub::HubLink, node::NodeLink};
use crate::{
    AGENT, Relay,
    chunk::Granted,
    route::{Admitted, Budget},
    tenant::{Tenant, hub_offline},
};

/// Connections whose handshake is under way, above which callers must prove their address first (QUIC Retry).
const HALF_OPEN: usize = 64;
/// A node's link waits so long for a hub that has not been here yet.
const HUB_COMES: Duration = Duration::from_secs(2);

/// A live link, for whoever has to end it or to follow it to a new address.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    pub(crate) number: u64,
    pub(crate) tenant: usize,
    pub(crate) is_hub: bool,
    connection: Connection,
    address: SocketAddr,
    /// Whose chunks the node may ask for; none: a hub.
    sessions: Option<Arc<Granted>>,
}

impl LinkHandle {
    /// A session is no more: what a ticket says of it counts for nothing.
    pub(crate) fn forget(&self, gone: &[SessionId]) {
        if let Some(sessions) = &self.sessions {
            sessions.take_back(gone);
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
    let lifecycle = lifecycle.clone();
    // Much is needed to take a link in, and little to keep it: what only its arrival needs is gone when it lives.
    let arrival = Box::pin(arrive(relay.clone(), incoming, lifecycle.clone()));
    tokio::spawn(async move {
        match arrival.await {
            Some(Live::Node(link)) => link.live(lifecycle).await,
            Some(Live::Hub(link)) => Box::pin(link.live(lifecycle)).await,
            None => {}
        }
    });
}

/// A link that was admitted, and has been told so.
enum Live {
    Node(Box<NodeLink>),
    Hub(Box<HubLink>),
}

async fn arrive(relay: Arc<Relay>, incoming: Incoming, lifecycle: Lifecycle) -> Option<Live> {
    let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
    let connecting = relay.take(incoming).ok()?;
    let connection = tokio::time::timeout(patience, connecting).await.ok()?.ok()?;
    match tokio::time::timeout(patience, Arrival::receive(&relay, &connection)).await {
        Ok(Ok(arrival)) => arrival.enter(&lifecycle).await,
        Ok(Err(error)) => {
            tracing::debug!(%error, from = %connection.remote_address(), "a caller did not speak the protocol");
            relay.refusals.count("protocol_error");
            close(&connection, CloseCode::Protocol);
            None
        }
        Err(_) => {
            relay.refusals.count("too_slow");
            close(&connection, CloseCode::TooSlow);
            None
        }
    }
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

    /// Admits the caller and says so, or refuses it.
    async fn enter(mut self, lifecycle: &Lifecycle) -> Option<Live> {
        let admitted = if lifecycle.is_draining() {
            Err(refusal("draining", "this relay is being stopped; the peer tries again by itself", 1_000))
        } else {
            self.admit().await
        };
        match admitted {
            Ok(Standing::Node { tenant, grant, fresh }) => NodeLink::enter(self, tenant, grant, fresh).await.map(Live::Node),
            Ok(Standing::Hub { tenant, ticket_key, instance }) => HubLink::enter(self, tenant, ticket_key, instance).await.map(Live::Hub),
            Err(refused) => {
                self.refuse(refused).await;
                None
            }
        }
    }

    async fn refuse(&mut self, refused: LinkRefused) {
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

    /// A relay that has just been started knows no hub yet, and its nodes come before or after it: they are let wait for a moment, which costs less than to send them away to come again.
    async fn wait_for_hub(&self, tenant: &Tenant) {
        if tenant.ticket_key().is_none() {
            let _ = tokio::time::timeout(HUB_COMES, tenant.state().wait_for(|state| state.online)).await;
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
        if !matches!(self.hello.credential, Some(Credential::Hub(_))) {
            self.wait_for_hub(&tenant).await;
        }
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
        check_ticket(&self.relay, tenant, &self.key, signed)
    }

    /// Puts the link under its route; whoever held the route before is told that it was superseded.
    fn put(&self, route: Route, of: &Arc<Tenant>, sessions: Option<Arc<Granted>>, budget: Budget) -> Entered {
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
}

fn check_ticket(relay: &Relay, tenant: &Tenant, node: &PublicKey, signed: &Signed) -> Result<ticket::Grant, LinkRefused> {
    let key = tenant.ticket_key().ok_or_else(hub_offline)?;
    ticket::check(signed, &key, &tenant.hub(), &relay.id, &NodeId::from(*node), clock::now_ms())
        .map_err(|error| refusal(error.code(), &error.to_string(), 60_000))
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
