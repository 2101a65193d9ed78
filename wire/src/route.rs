//! Connection ids as addresses.
//!
//! A relay forwards QUIC packets unopened, by the first bytes of their destination connection id:
//!
//! | first bytes | meaning |
//! | --- | --- |
//! | `00`, then 3 bytes of relay tag, then random | for that relay's own endpoint (a link) |
//! | 8 bytes of [`Route`], the first not 0, then random | for a node or a hub |
//!
//! A tag comes from the relay's key and a route from the node's key, so both survive restarts and both ends know them
//! without asking. Two endpoints never share a connection id length: all ours are [`CID_LEN`] long.

use crate::key::PublicKey;

/// Length of every connection id that our endpoints issue.
pub const CID_LEN: usize = 14;
/// Length of the random first connection id that a client invents for a server.
pub const INITIAL_CID_LEN: usize = 16;

/// Where packets of a node or hub go. The first byte is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route([u8; 8]);

/// Marks packets for a relay's own endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayTag([u8; 3]);

/// Whom a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A relay's own endpoint.
    Relay(RelayTag),
    /// A node or a hub.
    Route(Route),
}

impl Route {
    /// The route of the node or hub with this key.
    pub fn of(key: &PublicKey) -> Self {
        let hash = blake3::derive_key("cortex-mesh v1 route", key.as_bytes());
        let mut raw = [0; 8];
        raw.copy_from_slice(&hash[..8]);
        raw[0] = raw[0].max(1);
        Self(raw)
    }

    /// Eight bytes, the first not 0.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let raw: [u8; 8] = bytes.try_into().ok()?;
        (raw[0] != 0).then_some(Self(raw))
    }

    /// The eight bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// A connection id of this route; `random` fills what follows the route.
    pub fn connection_id<const N: usize>(&self, random: [u8; N]) -> [u8; N] {
        let mut id = random;
        id[..8].copy_from_slice(&self.0);
        id
    }
}

impl RelayTag {
    /// The tag of the relay with this key.
    pub fn of(key: &PublicKey) -> Self {
        let hash = blake3::derive_key("cortex-mesh v1 relay tag", key.as_bytes());
        Self([hash[0], hash[1], hash[2]])
    }

    /// A connection id for this relay; `random` fills what follows the tag.
    pub fn connection_id<const N: usize>(&self, random: [u8; N]) -> [u8; N] {
        let mut id = random;
        id[0] = 0;
        id[1..4].copy_from_slice(&self.0);
        id
    }
}

/// Reads whom a packet is for from its unprotected header (RFC 9000, section 17). `None`: not ours, too short or malformed.
pub fn destination(packet: &[u8]) -> Option<Destination> {
    const LONG_HEADER: u8 = 0x80;
    let first = *packet.first()?;
    let cid = if first & LONG_HEADER == 0 {
        packet.get(1..1 + CID_LEN)?
    } else {
        let len = usize::from(*packet.get(5)?);
        if !(8..=20).contains(&len) {
            return None;
        }
        packet.get(6..6 + len)?
    };
    match cid {
        [0, a, b, c, ..] => Some(Destination::Relay(RelayTag([*a, *b, *c]))),
        _ => Route::from_slice(&cid[..8]).map(Destination::Route),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SecretKey;
    use proptest::prelude::*;

    fn key(seed: u8) -> PublicKey {
        SecretKey::from_seed([seed; 32]).public()
    }

    #[test]
    fn long_and_short_headers_lead_to_the_same_place() {
        let route = Route::of(&key(1));
        let mut short = vec![0x40];
        short.extend_from_slice(&route.connection_id([7; CID_LEN]));
        short.extend_from_slice(&[0; 20]);
        assert_eq!(destination(&short), Some(Destination::Route(route)));
        let mut long = vec![0xc0, 0, 0, 0, 1, 16];
        long.extend_from_slice(&route.connection_id([9; INITIAL_CID_LEN]));
        assert_eq!(destination(&long), Some(Destination::Route(route)));
    }

    #[test]
    fn a_relay_tag_is_never_a_route() {
        let tag = RelayTag::of(&key(2));
        let mut packet = vec![0x40];
        packet.extend_from_slice(&tag.connection_id([7; CID_LEN]));
        assert_eq!(destination(&packet), Some(Destination::Relay(tag)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(packet in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = destination(&packet);
        }

        #[test]
        fn no_route_begins_with_zero(seed: [u8; 32]) {
            prop_assert_ne!(Route::of(&SecretKey::from_seed(seed).public()).as_bytes()[0], 0);
        }
    }
}
