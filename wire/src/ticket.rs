//! A ticket: a hub's permission for one node to use one relay for a few minutes, verified by the relay offline.

use crate::{
    id::{HubId, NodeId, RelayId},
    key::{Domain, KeyError, PublicKey, SecretKey},
    route::Route,
    schema::{Signed, Ticket},
};

/// Why a ticket does not admit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not signed by the hub's ticket key, or malformed.
    #[error("the ticket is not the hub's")]
    Forged(#[from] KeyError),
    /// For another hub, relay or node, or with a route that is not the node's.
    #[error("the ticket is for another hub, relay or node")]
    WrongAudience,
    /// Its time is over.
    #[error("the ticket has expired")]
    Expired,
}

/// What a verified ticket grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

/// Signs a ticket for `node` at `relay`.
pub fn issue(ticket_key: &SecretKey, hub: &HubId, relay: &RelayId, node: &NodeId, expires_at_ms: i64, enrolling: bool) -> Signed {
    let ticket = Ticket {
        hub_root: hub.key().to_bytes(),
        relay_key: relay.key().to_bytes(),
        node_key: node.key().to_bytes(),
        route: bytes::Bytes::copy_from_slice(Route::of(node.key()).as_bytes()),
        expires_at_ms,
        bytes_per_second: 0,
        enrolling,
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
    let fits = ticket.hub_root == hub.key().as_bytes()[..]
        && ticket.relay_key == relay.key().as_bytes()[..]
        && ticket.node_key == node.key().as_bytes()[..]
        && ticket.route == route.as_bytes()[..];
    if !fits {
        return Err(TicketError::WrongAudience);
    }
    if now_ms > ticket.expires_at_ms {
        return Err(TicketError::Expired);
    }
    Ok(Grant {
        node: *node,
        route,
        expires_at_ms: ticket.expires_at_ms,
        bytes_per_second: ticket.bytes_per_second,
        enrolling: ticket.enrolling,
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
        let signed = issue(&ticket_key, &hub, &relay, &node, 100, false);
        let public = ticket_key.public();
        assert_eq!(check(&signed, &public, &hub, &relay, &node, 100).map(|g| g.node), Ok(node));
        assert_eq!(check(&signed, &public, &hub, &relay, &node, 101), Err(TicketError::Expired));
        let other = key(9).public();
        assert_eq!(check(&signed, &public, &hub, &other.into(), &node, 1), Err(TicketError::WrongAudience));
        assert_eq!(check(&signed, &public, &hub, &relay, &other.into(), 1), Err(TicketError::WrongAudience));
        assert_eq!(check(&signed, &public, &other.into(), &relay, &node, 1), Err(TicketError::WrongAudience));
        assert_eq!(check(&signed, &other, &hub, &relay, &node, 1), Err(TicketError::Forged(KeyError::BadSignature)));
    }
}
