//! A ticket: a hub's permission for one node to use one relay for a few minutes, verified by the relay offline.

use bytes::Bytes;

use crate::{
    id::{HubId, NodeId, RelayId, SessionId},
    key::{Domain, KeyError, PublicKey, SecretKey},
    limits,
    route::Route,
    schema::{Signed, Ticket},
};

/// Why a ticket does not admit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not signed by the hub's ticket key, or malformed.
    #[error("the ticket is not the hub's")]
    Forged(#[from] KeyError),
    /// For another hub or relay.
    #[error("the ticket is for another hub or relay")]
    WrongAudience,
    /// For another node: it was stolen, or copied.
    #[error("the ticket is another node's")]
    Stolen,
    /// Its time is over.
    #[error("the ticket has expired")]
    Expired,
}

impl TicketError {
    /// Stable text for logs and refusals.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Forged(_) => "ticket_forged",
            Self::WrongAudience => "ticket_for_another",
            Self::Stolen => "ticket_stolen",
            Self::Expired => "ticket_expired",
        }
    }
}

/// What a verified ticket grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who may use the relay.
    pub node: NodeId,
    /// Where its packets go.
    pub route: Route,
    /// Milliseconds since the epoch.
    pub expires_at_ms: i64,
    /// 0: the relay's own default.
    pub bytes_per_second: u64,
    /// Only enough to redeem an invite.
    pub enrolling: bool,
    /// Whose chunks the node may fetch and store, at most [`limits::TICKET_SESSIONS`].
    pub sessions: Vec<SessionId>,
}

impl Grant {
    /// For a node, until then, at the relay's own rate, without sessions.
    pub fn new(node: NodeId, expires_at_ms: i64) -> Self {
        Self { node, route: Route::of(node.key()), expires_at_ms, bytes_per_second: 0, enrolling: false, sessions: Vec::new() }
    }

    /// Also to fetch and store chunks of these sessions. Of too many, the last ones are taken: ids sort by time.
    pub fn with_sessions(self, mut sessions: Vec<SessionId>) -> Self {
        sessions.sort_unstable();
        let sessions = sessions.split_off(sessions.len().saturating_sub(limits::TICKET_SESSIONS));
        Self { sessions, ..self }
    }
}

/// Signs a ticket for `relay` that grants `grant`.
pub fn issue(ticket_key: &SecretKey, hub: &HubId, relay: &RelayId, grant: &Grant) -> Signed {
    let ticket = Ticket {
        hub_root: hub.key().to_bytes(),
        relay_key: relay.key().to_bytes(),
        node_key: grant.node.key().to_bytes(),
        route: Bytes::copy_from_slice(grant.route.as_bytes()),
        expires_at_ms: grant.expires_at_ms,
        bytes_per_second: grant.bytes_per_second,
        enrolling: grant.enrolling,
        sessions: grant.sessions.iter().map(|session| Bytes::copy_from_slice(session.as_bytes())).collect(),
    };
    ticket_key.seal(Domain::Ticket, &ticket)
}

/// Verifies that `signed` admits `node` at `relay` now.
///
/// # Errors
/// [`TicketError`].
pub fn check(
    signed: &Signed,
    ticket_key: &PublicKey,
    hub: &HubId,
    relay: &RelayId,
    node: &NodeId,
    now_ms: i64,
) -> Result<Grant, TicketError> {
    let ticket: Ticket = ticket_key.open(Domain::Ticket, signed)?;
    let route = Route::of(node.key());
    if ticket.hub_root != hub.key().as_bytes()[..] || ticket.relay_key != relay.key().as_bytes()[..] {
        return Err(TicketError::WrongAudience);
    }
    if ticket.node_key != node.key().as_bytes()[..] || ticket.route != route.as_bytes()[..] {
        return Err(TicketError::Stolen);
    }
    if now_ms > ticket.expires_at_ms {
        return Err(TicketError::Expired);
    }
    let session = |bytes: &Bytes| SessionId::from_slice(bytes).map_err(|_| TicketError::Forged(KeyError::BadBody));
    if ticket.sessions.len() > limits::TICKET_SESSIONS {
        return Err(TicketError::Forged(KeyError::BadBody));
    }
    Ok(Grant {
        node: *node,
        route,
        expires_at_ms: ticket.expires_at_ms,
        bytes_per_second: ticket.bytes_per_second,
        enrolling: ticket.enrolling,
        sessions: ticket.sessions.iter().map(session).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed([seed; 32])
    }

    #[test]
    fn a_ticket_admits_its_node_at_its_relay_until_it_expires() {
        let (hub, relay, node) = (key(1).public().into(), key(2).public().into(), key(3).public().into());
        let ticket_key = key(4);
        let session = |n| SessionId(uuid::Uuid::from_u128(n));
        let grant = Grant::new(node, 100).with_sessions(vec![session(2), session(1)]);
        let signed = issue(&ticket_key, &hub, &relay, &grant);
        let public = ticket_key.public();
        assert_eq!(check(&signed, &public, &hub, &relay, &node, 100), Ok(grant));
        assert_eq!(check(&signed, &public, &hub, &relay, &node, 101), Err(TicketError::Expired));
        let other = key(9).public();
        assert_eq!(check(&signed, &public, &hub, &other.into(), &node, 1), Err(TicketError::WrongAudience));
        assert_eq!(check(&signed, &public, &hub, &relay, &other.into(), 1), Err(TicketError::Stolen));
        assert_eq!(check(&signed, &public, &other.into(), &relay, &node, 1), Err(TicketError::WrongAudience));
        assert_eq!(check(&signed, &other, &hub, &relay, &node, 1), Err(TicketError::Forged(KeyError::BadSignature)));
    }

    #[test]
    fn of_too_many_sessions_the_latest_are_granted() {
        let most = limits::TICKET_SESSIONS as u128;
        let sessions = (0..most + 5).rev().map(|n| SessionId(uuid::Uuid::from_u128(n))).collect();
        let grant = Grant::new(key(3).public().into(), 100).with_sessions(sessions);
        assert_eq!(grant.sessions.len(), limits::TICKET_SESSIONS);
        assert_eq!(grant.sessions.first(), Some(&SessionId(uuid::Uuid::from_u128(5))));
    }
}
