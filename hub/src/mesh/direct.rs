//! Introductions: where the hub might be reached directly is said to a node, and holes are made for it in the hub's own firewall.
//!
//! The node searches; the hub sends small probes to the addresses that the node names, for four seconds, and answers the node's probes from its socket. All of it is said over the end-to-end
//! connection, so that relays learn nothing. Which packets of the node then come directly is QUIC's to validate: it is a migration.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use cortex_runtime::{
    direct::{Paired, own_addresses},
    tls,
};
use cortex_wire::{
    direct, limits,
    schema::{DirectAddress, DirectKind, DirectMode, DirectOffer, DirectSearch},
};
use quinn::Connection;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::{mesh::Network, record::PathPolicy};

/// Of one connection.
#[derive(Debug, Default)]
pub(crate) struct Introducer {
    /// As long as a direct way is allowed.
    paired: Option<Arc<Paired>>,
    wanted: bool,
    /// Where the node says that it might be.
    node: Vec<SocketAddr>,
    searched: Option<Instant>,
    opening: Option<AbortOnDropHandle<()>>,
    offered: Option<DirectOffer>,
}

impl Introducer {
    /// What the node has to hear that it has not heard yet.
    pub(crate) fn offer(&mut self, network: &Network, policy: PathPolicy, own_relay: bool, shared: bool) -> Option<DirectOffer> {
        let off = !network.reach.allows_direct();
        let mode = policy.mode();
        self.wanted = !off && !own_relay && mode != DirectMode::RelayOnly;
        let addresses = if self.wanted { network.direct_addresses(&self.node) } else { Vec::new() };
        let offer = DirectOffer { mode: mode.into(), off, own_relay, addresses, shared };
        if self.offered.as_ref() == Some(&offer) {
            return None;
        }
        self.offered = Some(offer.clone());
        Some(offer)
    }

    /// Takes probes of the node, or none any more, as the last offer says.
    pub(crate) fn stand_by(&mut self, network: &Network, connection: &Connection) {
        if !self.wanted {
            (self.paired, self.opening) = (None, None);
        } else if self.paired.is_none()
            && let Ok(secret) = tls::direct_secret(connection)
        {
            self.paired = Some(Paired::hub(&network.socket, secret));
        }
    }

    /// The node looks for a way now. One that asks too often is not heard.
    pub(crate) fn search(&mut self, search: &DirectSearch, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < Duration::from_millis(limits::DIRECT_SEARCH_MS);
        let Some(paired) = self.paired.clone().filter(|_| !self.searched.is_some_and(recent)) else { return };
        self.searched = Some(now);
        let named = search.addresses.iter().take(2 * limits::DIRECT_ADDRESSES).filter_map(|named| named.address.parse().ok());
        self.node = direct::worth_probing(named, &self.own(), true);
        let node = self.node.clone();
        self.opening = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut waited = 0;
            for at in limits::DIRECT_ROUNDS_MS {
                sleep(Duration::from_millis(at - waited)).await;
                waited = at;
                node.iter().for_each(|address| paired.probe(*address, false));
            }
        })));
    }

    fn own(&self) -> Vec<SocketAddr> {
        self.offered.iter().flat_map(|offer| &offer.addresses).filter_map(|own| own.address.parse().ok()).collect()
    }
}

impl Network {
    /// Where this hub might be reached directly by a node at one of these addresses.
    fn direct_addresses(&self, node: &[SocketAddr]) -> Vec<DirectAddress> {
        let configured = self.direct_address.map(|address| (address, DirectKind::Configured));
        let observed = self.observed().into_iter().map(|address| (address, DirectKind::Observed));
        let port = self.endpoint.local_addr().map_or(0, |address| address.port());
        let towards: Vec<SocketAddr> = self.socket.relay_addresses().into_iter().chain(node.iter().copied()).collect();
        let own = own_addresses(&towards).into_iter().map(|ip| (SocketAddr::new(ip, port), DirectKind::Own));
        let mut addresses: Vec<(SocketAddr, DirectKind)> = Vec::new();
        for (address, kind) in configured.into_iter().chain(own).chain(observed) {
            if addresses.len() < limits::DIRECT_ADDRESSES && addresses.iter().all(|(known, _)| *known != address) {
                addresses.push((address, kind));
            }
        }
        addresses.into_iter().map(|(address, kind)| DirectAddress { address: address.to_string(), kind: kind.into() }).collect()
    }
}
