//! One link to a relay, from the dial to its end. Whoever started it is told what happens ([`Told`]) and gives orders ([`Order`]).

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use cortex_runtime::{
    link::{self, Link, LinkError},
    reach::{self, Network},
    socket::{Carrier, NodeSocket},
    stream::StreamError,
};
use cortex_wire::{
    close::CloseCode,
    id::{HubId, RelayId},
    invite::RelayEndpoint,
    key::SecretKey,
    route::RelayTag,
    schema::{Drain, FromRelay, HubState, LinkHello, Signed, ToRelay, from_relay, link_hello::Credential, to_relay},
};
use quinn::{Connection, Endpoint, VarInt};
use tokio::{sync::mpsc, time::sleep_until};

use super::{AGENT, closed};

/// A link whose ping is not answered by then has ended.
const PATIENCE: Duration = Duration::from_secs(3);
/// Whoever looks so much later than it meant to was kept from looking by this machine, and so perhaps from reading the answer.
const LATE: Duration = Duration::from_millis(200);
/// Orders that may wait.
const ORDERS: usize = 16;

/// What every link of this node needs.
#[derive(Debug, Clone)]
pub(crate) struct Dialler {
    pub(crate) endpoint: Endpoint,
    pub(crate) socket: Arc<NodeSocket>,
    pub(crate) key: SecretKey,
    pub(crate) hub: HubId,
    pub(crate) network: Arc<Network>,
}

/// What happens on a link.
#[derive(Debug)]
pub(crate) enum Told {
    /// It is up.
    Linked(Welcomed),
    /// The ping that was sent then is answered.
    Pong(Instant),
    /// The hub came or went.
    Hub(HubState),
    /// The relay is being stopped.
    Drain(Drain),
    /// Another relay does not answer the hub.
    Silent(RelayId),
    /// It is over. Nothing follows.
    Ended(Ended),
}

/// A link that is up.
#[derive(Debug)]
pub(crate) struct Welcomed {
    pub(crate) connection: Connection,
    pub(crate) virtual_address: SocketAddr,
    pub(crate) observed: String,
    /// 0: the hub is not linked to this relay.
    pub(crate) hub_instance: u64,
    /// Fresh, when the hub was asked.
    pub(crate) ticket: Option<Signed>,
}

/// Why a link is over.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It did not come about.
    NotLinked(LinkError),
    /// It was closed or lost.
    Lost { code: Option<CloseCode>, reason: String },
}

/// What a link is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// See whether the relay answers.
    Ping,
    /// Show this ticket.
    Renew(Signed),
    /// End.
    Close(CloseCode),
}

/// The way to a link that is being dialled or is up. It ends with this value.
#[derive(Debug)]
pub(crate) struct Uplink {
    orders: mpsc::Sender<Order>,
    pub(crate) number: u64,
}

impl Uplink {
    /// Dials `relay`, and tells `tell` what happens, under `number`.
    pub(crate) fn dial(
        dialler: Dialler,
        relay: RelayEndpoint,
        credential: Option<Credential>,
        number: u64,
        tell: mpsc::Sender<(u64, Told)>,
    ) -> Self {
        let (orders, ordered) = mpsc::channel(ORDERS);
        tokio::spawn(async move {
            let ended = live(&dialler, &relay, credential, number, &tell, ordered).await;
            let _ = tell.send((number, Told::Ended(ended))).await;
        });
        Self { orders, number }
    }

    /// Gives an order. One that finds no room is of no use any more: the link stands still.
    pub(crate) fn order(&self, order: Order) {
        let _ = self.orders.try_send(order);
    }
}

impl Dialler {
    /// Reaches the relay, and shakes hands with it.
    async fn reach(&self, relay: &RelayEndpoint, hello: LinkHello) -> Result<(Link, SocketAddr), LinkError> {
        let link = reach::reach(&self.endpoint, &self.socket, &self.network, relay, &self.key, hello).await?;
        let virtual_address = link.connection.remote_address();
        Ok((link, virtual_address))
    }

    /// What carries packets to a relay, as people are told.
    pub(crate) fn carrier(&self, relay: &RelayEndpoint) -> &'static str {
        self.socket.carrier(RelayTag::of(relay.id.key())).map_or("udp", |carrier| carrier.label())
    }

    /// What carries packets to a relay, as the hub is told.
    pub(crate) fn path(&self, relay: &RelayEndpoint) -> &'static str {
        match self.socket.carrier(RelayTag::of(relay.id.key())) {
            Some(Carrier::Tunnel(_)) => "tcp",
            Some(Carrier::Udp(_)) | None => "relay",
        }
    }
}

async fn live(
    dialler: &Dialler,
    relay: &RelayEndpoint,
    credential: Option<Credential>,
    number: u64,
    tell: &mpsc::Sender<(u64, Told)>,
    mut orders: mpsc::Receiver<Order>,
) -> Ended {
    let hello = link::hello(AGENT, &dialler.hub, credential);
    let (mut link, virtual_address) = tokio::select! {
        dialled = dialler.reach(relay, hello) => match dialled {
            Ok(dialled) => dialled,
            Err(error) => return Ended::NotLinked(error),
        },
        () = dropped(&mut orders) => return lost(None, "not needed any more"),
    };
    let welcomed = Welcomed {
        connection: link.connection.clone(),
        virtual_address,
        observed: std::mem::take(&mut link.welcome.observed_address),
        hub_instance: link.welcome.hub_instance,
        ticket: link.welcome.ticket.take(),
    };
    if tell.send((number, Told::Linked(welcomed))).await.is_err() {
        return lost(None, "nobody is left");
    }
    serve(&mut link, number, tell, &mut orders).await
}

/// Orders to a link that is not up yet come to nothing, but for the last one.
async fn dropped(orders: &mut mpsc::Receiver<Order>) {
    while !matches!(orders.recv().await, None | Some(Order::Close(_))) {}
}

async fn serve(link: &mut Link, number: u64, tell: &mpsc::Sender<(u64, Told)>, orders: &mut mpsc::Receiver<Order>) -> Ended {
    let Link { connection, reader, writer, .. } = link;
    let close = |code: CloseCode| connection.close(VarInt::from_u32(code.number()), code.text().as_bytes());
    let (frames, mut outgoing) = mpsc::channel(ORDERS);
    // Beside the rest: while an upload of chunks fills the link, a frame waits for its turn.
    let write = async {
        while let Some(frame) = outgoing.recv().await {
            writer.send(&ToRelay { frame: Some(frame) }).await?;
        }
        Ok::<_, StreamError>(())
    };
    tokio::pin!(write);
    let received = || connection.stats().udp_rx.datagrams;
    let mut pings = Pings::default();
    loop {
        let told = tokio::select! {
            frame = reader.next::<FromRelay>() => match frame {
                Ok(Some(FromRelay { frame })) => match frame {
                    Some(from_relay::Frame::Pong(nonce)) => match pings.answered(nonce) {
                        Some(sent) => Told::Pong(sent),
                        None => continue,
                    },
                    Some(from_relay::Frame::HubState(state)) => Told::Hub(state),
                    Some(from_relay::Frame::Drain(drain)) => Told::Drain(drain),
                    Some(from_relay::Frame::Silent(relay)) => match RelayId::from_slice(&relay) {
                        Ok(relay) => Told::Silent(relay),
                        Err(_) => continue,
                    },
                    // What only hubs are told, and what is not known here.
                    Some(
                        from_relay::Frame::Admission(_)
                        | from_relay::Frame::NodeGone(_)
                        | from_relay::Frame::Echo(_)
                        | from_relay::Frame::Load(_)
                        | from_relay::Frame::Held(_),
                    )
                    | None => continue,
                },
                Ok(None) => return lost(Some(CloseCode::Done), "the relay closed it"),
                Err(error) => return broken(connection, &error),
            },
            order = orders.recv() => {
                let frame = match order {
                    Some(Order::Ping) => to_relay::Frame::Ping(pings.next(received())),
                    Some(Order::Renew(ticket)) => to_relay::Frame::Renew(ticket),
                    Some(Order::Close(code)) => {
                        close(code);
                        return lost(Some(code), code.text());
                    }
                    None => {
                        close(CloseCode::Done);
                        return lost(Some(CloseCode::Done), "not needed any more");
                    }
                };
                // Full: the link stands still, and the ping that waits will say so.
                let _ = frames.try_send(frame);
                continue;
            }
            Err(error) = &mut write => return broken(connection, &error),
            () = until(pings.deadline()) => {
                if pings.forgive(received(), Instant::now()) {
                    continue;
                }
                close(CloseCode::Silent);
                return lost(Some(CloseCode::Silent), "no answer");
            }
        };
        if tell.send((number, told)).await.is_err() {
            close(CloseCode::Done);
            return lost(None, "nobody is left");
        }
    }
}

fn lost(code: Option<CloseCode>, reason: &str) -> Ended {
    Ended::Lost { code, reason: reason.to_owned() }
}

fn broken(connection: &Connection, error: &StreamError) -> Ended {
    let reason = connection.close_reason();
    let code = match &reason {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => CloseCode::from_number(close.error_code.into_inner()),
        _ => None,
    };
    Ended::Lost { code, reason: reason.map_or_else(|| error.to_string(), |reason| closed(&reason)) }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Pings under way, the oldest first.
#[derive(Debug, Default)]
struct Pings {
    nonce: u64,
    sent: VecDeque<(u64, Instant)>,
    /// Packets that had come when the oldest was sent, or forgiven last; and when.
    received: u64,
    since: Option<Instant>,
}

impl Pings {
    /// Pings that are remembered at a time: a link that answers has one or two.
    const MOST: usize = 64;

    fn next(&mut self, received: u64) -> u64 {
        self.nonce += 1;
        let now = Instant::now();
        if self.sent.is_empty() {
            (self.received, self.since) = (received, Some(now));
        }
        if self.sent.len() < Self::MOST {
            self.sent.push_back((self.nonce, now));
        }
        self.nonce
    }

    /// When this one was sent. Those before it are answered, too.
    fn answered(&mut self, nonce: u64) -> Option<Instant> {
        let at = self.sent.iter().position(|(sent, _)| *sent == nonce)?;
        let answered = self.sent.drain(..=at).next_back().map(|(_, sent)| sent);
        self.since = self.sent.front().map(|(_, sent)| *sent);
        answered
    }

    fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + PATIENCE)
    }

    /// Whether packets have come although no answer has: then it is on its way, behind others, and may take as long again. So it may when this is asked late: what has come is not read yet.
    fn forgive(&mut self, received: u64, now: Instant) -> bool {
        let forgiven = received > self.received || self.deadline().is_some_and(|deadline| now > deadline + LATE);
        if forgiven {
            (self.received, self.since) = (received, Some(now));
        }
        forgiven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_answers_what_was_asked_before() {
        let mut pings = Pings::default();
        assert_eq!(pings.deadline(), None);
        let (first, second, third) = (pings.next(0), pings.next(0), pings.next(0));
        assert!(pings.deadline().is_some());
        assert!(pings.answered(second).is_some());
        assert_eq!(pings.answered(first), None);
        assert_eq!(pings.sent.len(), 1);
        assert!(pings.answered(third).is_some());
        assert_eq!((pings.answered(third), pings.deadline()), (None, None));
        for _ in 0..1000 {
            pings.next(0);
        }
        assert_eq!(pings.sent.len(), Pings::MOST);
    }

    #[test]
    fn whoever_sends_other_packets_may_answer_later() {
        let mut pings = Pings::default();
        pings.next(7);
        let deadline = pings.deadline().unwrap();
        assert!(pings.forgive(8, deadline) && pings.deadline() > Some(deadline));
        let deadline = pings.deadline().unwrap();
        assert!(!pings.forgive(8, deadline + LATE));
        assert!(pings.forgive(8, deadline + LATE * 2), "nobody could look");
    }
}
