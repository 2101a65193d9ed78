//! Who may use a relay: the hub's answer about nodes that hold no ticket.

use std::sync::Arc;

use cortex_relay::tenant::{Authority, BoxFuture};
use cortex_runtime::clock;
use cortex_wire::{
    id::{NodeId, RelayId},
    invite, limits,
    schema::{Admission, LinkRefused, NodeGone, Signed, admission_answer::Answer},
    ticket,
};

use crate::{failure::Failure as _, hub::Hub, record::Standing};

/// A newcomer has this long to redeem its invite.
const ENROLLING_MS: i64 = 60_000;
/// A node that is turned away for good asks again this seldom.
const SLOWLY_MS: u64 = 60_000;

/// Answers relays.
#[derive(Debug)]
pub struct Gatekeeper {
    hub: Arc<Hub>,
}

impl Gatekeeper {
    pub(crate) fn new(hub: Arc<Hub>) -> Arc<Self> {
        Arc::new(Self { hub })
    }

    /// The gatekeeper as one relay asks it.
    pub(crate) fn for_relay(self: &Arc<Self>, relay: RelayId) -> Arc<dyn Authority> {
        Arc::new(AtRelay { gatekeeper: self.clone(), relay })
    }

    /// A ticket for a node at a relay.
    pub(crate) fn ticket(hub: &Hub, relay: &RelayId, node: &NodeId, enrolling: bool) -> Signed {
        let life = if enrolling { ENROLLING_MS } else { limits::TICKET_LIFE_MS };
        ticket::issue(&hub.keys.ticket, &hub.id(), relay, node, clock::now_ms() + life, enrolling)
    }

    /// Whether a node may use a relay.
    pub(crate) async fn admit(&self, relay: &RelayId, admission: &Admission) -> Answer {
        let refuse = |code: &str, reason: &str, retry_after_ms| {
            Answer::Refused(LinkRefused { code: code.into(), reason: reason.into(), retry_after_ms })
        };
        let Ok(node) = NodeId::from_slice(&admission.node_key) else {
            return refuse("bad_key", "the node's key is malformed", SLOWLY_MS);
        };
        let known = match self.hub.find_node(node).await {
            Ok(known) => known,
            Err(error) => {
                tracing::error!(%error, "cannot look a node up");
                return refuse("hub_failed", "the hub cannot read its store; its operator has to act", 5_000);
            }
        };
        if let Some(record) = known {
            if record.standing != Standing::Revoked {
                return Answer::Ticket(Self::ticket(&self.hub, relay, &node, false));
            }
            let reason = "this node was revoked; enrol again with a new key and a new invite";
            let _ = self.hub.note_refusal(node, "node_revoked", reason).await;
            return refuse("node_revoked", reason, SLOWLY_MS);
        }
        let Some(proof) = &admission.invite else {
            return refuse("node_unknown", "the hub does not know this node; enrol it with an invite", SLOWLY_MS);
        };
        let terms = match invite::open(proof, clock::now_ms()) {
            Ok(terms) => terms,
            Err(error) => return refuse("invite_forged", &error.to_string(), SLOWLY_MS),
        };
        if terms.hub != self.hub.id() {
            return refuse("invite_forged", "this invite is for another hub", SLOWLY_MS);
        }
        match self.hub.check_invite(terms.id, node).await {
            Ok(()) => Answer::Ticket(Self::ticket(&self.hub, relay, &node, true)),
            Err(error) => refuse(error.code(), &error.to_string(), SLOWLY_MS),
        }
    }
}

/// The gatekeeper at one relay.
struct AtRelay {
    gatekeeper: Arc<Gatekeeper>,
    relay: RelayId,
}

impl Authority for AtRelay {
    fn admit(&self, admission: Admission) -> BoxFuture<'_, Answer> {
        Box::pin(async move { self.gatekeeper.admit(&self.relay, &admission).await })
    }

    fn gone(&self, gone: NodeGone) {
        // The end-to-end connection says more about a node than its link does: it may only have moved to another relay.
        tracing::debug!(reason = gone.reason, "a node's link has ended");
    }
}
