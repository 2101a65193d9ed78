//! Probes of a direct way between a node and its hub: what they look like, and who believes them.
//!
//! Both ends derive a [`Secret`] from the end-to-end connection that they have by a relay, so a probe proves that its sender is the other end of that connection. No relay learns of it.
//!
//! | kind | sent by | for | answered |
//! | --- | --- | --- | --- |
//! | open | hub | a hole in the hub's own firewall; the node learns where it really comes from | no |
//! | ping | node | is this address the hub? | by a pong of the same length, once |
//! | pong | hub | yes, and packets from where the ping came from are taken | no |
//!
//! An address is believed when it answers, and never because it was said: a node uses the address that it pinged and that answered. Short probes find a way, one of [`LONG`] bytes
//! shows that it takes a full packet. A probe is never larger than what it answers, is taken once, and tells itself from QUIC by a cleared fixed bit.
//!
//! Bytes: kind (1) ‖ tag of the pair (8) ‖ sequence (8, big endian) ‖ BLAKE3 keyed with the sender's key, over all of the others (32) ‖ zeros up to the length.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{limits, task::SequenceWindow};

/// Length of a probe that looks for a way.
pub const SHORT: usize = 49;
/// Length of one that shows that the way takes a full packet: QUIC's least.
pub const LONG: usize = 1200;

const MAC_AT: usize = 17;

/// Names a pair of a node and a hub, for one connection.
pub type Tag = [u8; 8];

/// What a probe is for; see the head of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open = 0x11,
    Ping = 0x12,
    Pong = 0x13,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Open, Self::Ping, Self::Pong].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Whether a packet can be a probe. Every packet of QUIC has the fixed bit set.
pub fn is_probe(packet: &[u8]) -> bool {
    tag_of(packet).is_some()
}

/// The pair that a probe says it is of.
pub fn tag_of(packet: &[u8]) -> Option<Tag> {
    if packet.len() != SHORT && packet.len() != LONG {
        return None;
    }
    Kind::from_byte(packet[0])?;
    packet[1..9].try_into().ok()
}

/// Whether a packet may come by a direct way: only those of a connection that exists. Connections are made through relays, which know who may.
pub fn is_short_header(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0xc0 == 0x40)
}

/// What both ends of a connection know, and nobody else.
#[derive(Clone)]
pub struct Secret {
    tag: Tag,
    node: [u8; 32],
    hub: [u8; 32],
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({:02x?})", self.tag)
    }
}

impl Secret {
    /// From what the end-to-end connection's TLS exports for this.
    pub fn new(exported: &[u8; 32]) -> Self {
        let mut tag = [0; 8];
        tag.copy_from_slice(&blake3::derive_key("cortex-mesh v1 direct tag", exported)[..8]);
        Self {
            tag,
            node: blake3::derive_key("cortex-mesh v1 direct node", exported),
            hub: blake3::derive_key("cortex-mesh v1 direct hub", exported),
        }
    }

    /// Names the pair.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    fn key(&self, kind: Kind) -> &[u8; 32] {
        if kind == Kind::Ping { &self.node } else { &self.hub }
    }

    fn mac(&self, kind: Kind, packet: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(self.key(kind)).update(&packet[..MAC_AT]).update(&packet[SHORT..]).finalize()
    }

    fn seal(&self, kind: Kind, sequence: u64, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = kind as u8;
        packet[1..9].copy_from_slice(&self.tag);
        packet[9..MAC_AT].copy_from_slice(&sequence.to_be_bytes());
        let mac = self.mac(kind, &packet);
        packet[MAC_AT..SHORT].copy_from_slice(mac.as_bytes());
        packet
    }

    /// A probe's kind and sequence, when the other end made it.
    fn open(&self, packet: &[u8]) -> Option<(Kind, u64)> {
        if tag_of(packet)? != self.tag {
            return None;
        }
        let kind = Kind::from_byte(packet[0])?;
        let said: [u8; 32] = packet[MAC_AT..SHORT].try_into().ok()?;
        // In constant time.
        (self.mac(kind, packet) == said).then_some(())?;
        Some((kind, u64::from_be_bytes(packet[9..MAC_AT].try_into().ok()?)))
    }
}

/// What a probe that has come means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It is not of the other end, or was taken before, or comes too often.
    Nothing,
    /// At the hub: the node is there, and this goes back to it.
    Answer(Vec<u8>),
    /// At the node: the hub sends from there.
    Opened,
    /// At the node: what was sent there is answered. `long`: a full packet passes.
    Answered {
        /// Since it was sent.
        rtt: Duration,
        /// It was a long one.
        long: bool,
    },
}

/// The hub's end of a pair.
#[derive(Debug)]
pub struct HubEnd {
    secret: Secret,
    sequence: u64,
    taken: SequenceWindow,
    /// When the current second began, and how many were answered in it.
    second: Option<(Instant, u32)>,
}

impl HubEnd {
    /// With nothing sent or taken.
    pub fn new(secret: Secret) -> Self {
        Self { secret, sequence: 0, taken: SequenceWindow::default(), second: None }
    }

    /// Something to make a hole with.
    pub fn open(&mut self) -> Vec<u8> {
        self.sequence += 1;
        self.secret.seal(Kind::Open, self.sequence, SHORT)
    }

    /// What `packet` means.
    pub fn hear(&mut self, packet: &[u8], now: Instant) -> Heard {
        let Some((Kind::Ping, sequence)) = self.secret.open(packet) else { return Heard::Nothing };
        if !self.may_answer(now) || !self.taken.accept(sequence) {
            return Heard::Nothing;
        }
        Heard::Answer(self.secret.seal(Kind::Pong, sequence, packet.len()))
    }

    fn may_answer(&mut self, now: Instant) -> bool {
        let (began, answered) = self.second.filter(|(began, _)| now.saturating_duration_since(*began).as_secs() == 0).unwrap_or((now, 0));
        self.second = Some((began, answered.saturating_add(1)));
        answered < limits::DIRECT_PINGS_PER_SECOND
    }
}

/// The node's end of a pair.
#[derive(Debug)]
pub struct NodeEnd {
    secret: Secret,
    sequence: u64,
    taken: SequenceWindow,
    /// Pings that were not answered yet.
    sent: VecDeque<(u64, SocketAddr, Instant, usize)>,
}

impl NodeEnd {
    /// Pings that are remembered: those of a whole search.
    const MOST: usize = 256;

    /// With nothing sent or taken.
    pub fn new(secret: Secret) -> Self {
        Self { secret, sequence: 0, taken: SequenceWindow::default(), sent: VecDeque::new() }
    }

    /// Something that the hub answers, if it is at `to`.
    pub fn ping(&mut self, to: SocketAddr, long: bool, now: Instant) -> Vec<u8> {
        self.sequence += 1;
        if self.sent.len() == Self::MOST {
            self.sent.pop_front();
        }
        let len = if long { LONG } else { SHORT };
        self.sent.push_back((self.sequence, to, now, len));
        self.secret.seal(Kind::Ping, self.sequence, len)
    }

    /// What `packet` from there means.
    pub fn hear(&mut self, from: SocketAddr, packet: &[u8], now: Instant) -> Heard {
        match self.secret.open(packet) {
            Some((Kind::Open, sequence)) if self.taken.accept(sequence) => Heard::Opened,
            Some((Kind::Pong, sequence)) => {
                let asked = |sent: &(u64, SocketAddr, Instant, usize)| (sent.0, sent.1, sent.3) == (sequence, from, packet.len());
                let Some((_, _, at, _)) = self.sent.iter().position(asked).and_then(|at| self.sent.remove(at)) else {
                    return Heard::Nothing;
                };
                Heard::Answered { rtt: now.saturating_duration_since(at), long: packet.len() == LONG }
            }
            _ => Heard::Nothing,
        }
    }
}

/// Whether an address that the other end names may be sent probes: one machine, and no port that services listen on when a node names it.
pub fn may_probe(address: &SocketAddr, named_by_node: bool) -> bool {
    let least_port = if named_by_node { 1024 } else { 1 };
    let sound = match address.ip() {
        IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_link_local() && ip.octets()[0] != 0 && ip.octets()[0] < 240,
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_none() && (ip.segments()[0] & 0xffc0) != 0xfe80,
    };
    sound && address.port() >= least_port && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// Those of the addresses that the other end named that are worth a probe: loopback only when this machine is seen there itself.
pub fn worth_probing(named: impl IntoIterator<Item = SocketAddr>, own: &[SocketAddr], named_by_node: bool) -> Vec<SocketAddr> {
    let on_loopback = own.iter().any(|address| address.ip().is_loopback());
    let mut worth: Vec<SocketAddr> = Vec::new();
    for address in named {
        if worth.len() < limits::DIRECT_ADDRESSES
            && may_probe(&address, named_by_node)
            && (on_loopback || !address.ip().is_loopback())
            && !own.contains(&address)
            && !worth.contains(&address)
        {
            worth.push(address);
        }
    }
    worth
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HUB: &str = "203.0.113.2:4000";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ends(seed: u8) -> (NodeEnd, HubEnd) {
        let secret = Secret::new(&[seed; 32]);
        (NodeEnd::new(secret.clone()), HubEnd::new(secret))
    }

    fn answer(hub: &mut HubEnd, ping: &[u8], now: Instant) -> Vec<u8> {
        match hub.hear(ping, now) {
            Heard::Answer(pong) => pong,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_ping_is_answered_once_by_as_many_bytes_and_proves_the_address_it_was_sent_to() {
        let (now, (mut node, mut hub)) = (Instant::now(), ends(1));
        for long in [false, true] {
            let ping = node.ping(at(HUB), long, now);
            assert!(is_probe(&ping) && !is_short_header(&ping));
            let pong = answer(&mut hub, &ping, now);
            assert_eq!(pong.len(), ping.len());
            assert_eq!(hub.hear(&ping, now), Heard::Nothing, "a replay");
            assert_eq!(node.hear(at("198.51.100.7:4000"), &pong, now), Heard::Nothing, "passed on by somebody else");
            let later = now + Duration::from_millis(30);
            assert_eq!(node.hear(at(HUB), &pong, later), Heard::Answered { rtt: Duration::from_millis(30), long });
            assert_eq!(node.hear(at(HUB), &pong, later), Heard::Nothing, "a replay");
        }
    }

    #[test]
    fn an_open_says_where_the_hub_is_and_nothing_answers_it() {
        let (now, (mut node, mut hub)) = (Instant::now(), ends(1));
        let open = hub.open();
        assert_eq!(node.hear(at(HUB), &open, now), Heard::Opened);
        assert_eq!(node.hear(at(HUB), &open, now), Heard::Nothing);
        assert_eq!(hub.hear(&open, now), Heard::Nothing, "sent back");
        let ping = node.ping(at(HUB), false, now);
        assert_eq!(node.hear(at(HUB), &ping, now), Heard::Nothing, "sent back");
    }

    #[test]
    fn a_hub_answers_only_so_often() {
        let (now, (mut node, mut hub)) = (Instant::now(), ends(1));
        let mut answered = |now| (0..200).filter(|_| hub.hear(&node.ping(at(HUB), false, now), now) != Heard::Nothing).count();
        assert_eq!(answered(now), limits::DIRECT_PINGS_PER_SECOND as usize);
        assert_eq!(answered(now + Duration::from_secs(1)), limits::DIRECT_PINGS_PER_SECOND as usize);
    }

    #[test]
    fn an_old_ping_is_forgotten() {
        let (now, (mut node, mut hub)) = (Instant::now(), ends(1));
        let pong = answer(&mut hub, &node.ping(at(HUB), false, now), now);
        (0..NodeEnd::MOST).for_each(|_| _ = node.ping(at(HUB), false, now));
        assert_eq!(node.hear(at(HUB), &pong, now), Heard::Nothing);
        assert_eq!(node.sent.len(), NodeEnd::MOST);
    }

    #[test]
    fn what_the_other_end_names_is_not_probed_blindly() {
        let named = [
            "0.0.0.0:5000",
            "0.1.2.3:5000",
            "127.0.0.1:5000",
            "224.0.0.1:5000",
            "240.0.0.1:5000",
            "255.255.255.255:5000",
            "169.254.1.1:5000",
            "[fe80::1]:5000",
            "[ff02::1]:5000",
            "[::ffff:10.0.0.1]:5000",
            "10.0.0.1:53",
            "10.0.0.1:0",
            "10.0.0.1:5000",
            "10.0.0.1:5000",
            "10.0.0.9:6000",
            "[2001:db8::1]:5000",
        ];
        let named = || named.iter().map(|text| at(text));
        let own = [at("10.0.0.9:6000")];
        assert_eq!(worth_probing(named(), &own, true), [at("10.0.0.1:5000"), at("[2001:db8::1]:5000")]);
        assert_eq!(worth_probing(named(), &[], false)[0], at("10.0.0.1:53"));
        assert_eq!(worth_probing(named(), &[at("127.0.0.1:7000")], true)[0], at("127.0.0.1:5000"));
        let many = (1..=255).map(|port| at(&format!("10.0.0.1:{}", port + 2000)));
        assert_eq!(worth_probing(many, &own, true).len(), limits::DIRECT_ADDRESSES);
    }

    proptest! {
        #[test]
        fn whatever_was_changed_is_not_taken(byte in 0usize..SHORT, bit in 0u8..8) {
            let (now, (mut node, mut hub)) = (Instant::now(), ends(1));
            let mut ping = node.ping(at(HUB), false, now);
            ping[byte] ^= 1 << bit;
            prop_assert_eq!(hub.hear(&ping, now), Heard::Nothing);
            let mut open = hub.open();
            open[byte] ^= 1 << bit;
            prop_assert_eq!(node.hear(at(HUB), &open, now), Heard::Nothing);
        }

        #[test]
        fn another_pair_is_not_understood(seed in 2u8..) {
            let (now, (mut node, mut hub), (mut stranger, mut false_hub)) = (Instant::now(), ends(1), ends(seed));
            prop_assert_eq!(hub.hear(&stranger.ping(at(HUB), true, now), now), Heard::Nothing);
            prop_assert_eq!(node.hear(at(HUB), &false_hub.open(), now), Heard::Nothing);
        }

        #[test]
        fn no_probe_is_a_packet_of_quic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(!(is_probe(&bytes) && is_short_header(&bytes)));
        }
    }
}
