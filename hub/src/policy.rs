//! What the hub wants a node to allow: kept, changed, audited with the difference, sent, and what became of it on the node.
//!
//! A policy is changed by the node's owner or an administrator, and by a person: whoever comes with a token, whatever its scopes, is a program, and programs do
//! not widen what programs may do. Each change has a number, which `If-Match` can name; the audit row's digest is the hash of the difference, which is kept beside it.

use std::collections::BTreeSet;

use cortex_wire::{
    id::{NodeId, UserId},
    limits,
    policy::{self, Policy},
    schema,
    text::clean,
};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    account::Actor,
    change::Change,
    failure::{Failure, Kind, Refused},
    hub::Hub,
    node::{self, NodeAccess},
    record::{
        CommandRule, Digest, Node, PolicyInForce, Role, SandboxPolicy, Scope,
        tables::{NODES, POLICY_CHANGES},
    },
    store::{Order, ReadTx, Span, StoreError},
};

/// Tasks at a time, at most.
const SLOTS: u32 = 1024;
/// Changes of one node's policy that are kept.
const KEPT_CHANGES: usize = 100;
/// Examples of one rule.
const EXAMPLES: usize = 16;

/// Why a policy is not changed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Somebody was faster.
    #[error("the policy is at version {now}, not {expected}")]
    Changed {
        /// What is there.
        now: u64,
        /// What the request expected.
        expected: u64,
    },
    /// A part of it cannot be right.
    #[error("{reason}")]
    Malformed {
        /// Which, as a JSON pointer.
        pointer: String,
        /// Why.
        reason: String,
    },
    /// Anything else.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<StoreError> for PolicyError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure for PolicyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Changed { .. } => "policy_changed",
            Self::Malformed { .. } => "invalid",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Changed { .. } => Kind::Conflict,
            Self::Malformed { .. } => Kind::Invalid,
            Self::Refused(refused) => refused.kind(),
        }
    }

    fn pointer(&self) -> Option<&str> {
        match self {
            Self::Malformed { pointer, .. } => Some(pointer),
            Self::Changed { .. } | Self::Refused(_) => None,
        }
    }
}

/// One change of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyChange {
    /// The version that it made.
    pub version: u64,
    /// When.
    pub at_ms: i64,
    /// Who.
    #[schema(value_type = String)]
    pub by: UserId,
    /// What: for each key that changed `{"before", "after"}`, for each list `{"added", "removed"}`. The digest of the audit row is BLAKE3 of this, as compact JSON.
    #[schema(value_type = Object)]
    pub difference: Value,
}

/// The node's policy as its tasks are judged by the hub: under the limits that the node reported.
pub(crate) fn effective(node: &Node) -> Policy {
    let hub = Policy::new((&node.policy).into());
    match &node.ceiling {
        Some(ceiling) => hub.within(&ceiling.into()),
        None => hub,
    }
}

/// The hash that tasks of the node are bound to.
pub(crate) fn hash_of(node: &Node) -> Digest {
    Digest(policy::hash(&policy::encode(&(&node.policy).into())))
}

/// The node, for those who may decide what it allows.
pub(crate) fn governed_by(tx: &dyn ReadTx, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
    let (node, is_owner) = match node::find(tx, actor, id) {
        Ok((node, access)) => (node, access == NodeAccess::Owner),
        Err(Refused::NotFound(_)) if actor.role == Role::Admin => (NODES.get(tx, &id)?.ok_or(Refused::NotFound("node"))?, false),
        Err(error) => return Err(error),
    };
    actor.must(Scope::Manage)?;
    if !is_owner && actor.role != Role::Admin {
        return Err(Refused::Forbidden("only the node's owner or an administrator may decide what it allows"));
    }
    actor.must_be_a_person()?;
    Ok(node)
}

fn check(wanted: &SandboxPolicy) -> Result<(), PolicyError> {
    let malformed = |pointer: String, reason: String| Err(PolicyError::Malformed { pointer, reason });
    for (list, rules) in [("allow", &wanted.allow), ("ask", &wanted.ask), ("deny", &wanted.deny)] {
        if rules.len() > limits::POLICY_RULES {
            return malformed(format!("/{list}"), format!("a policy has at most {} rules in each list", limits::POLICY_RULES));
        }
        for (at, rule) in rules.iter().enumerate() {
            check_rule(rule).or_else(|reason| malformed(format!("/{list}/{at}"), reason))?;
        }
    }
    // As the node itself checks its own file (`cortex-peer`'s `policy.network`).
    if wanted.network.len() > limits::POLICY_RULES {
        return malformed("/network".into(), format!("a policy has at most {} hosts", limits::POLICY_RULES));
    }
    if let Some(at) = wanted.network.iter().position(|host| !policy::is_grant(host)) {
        let shown = clean(&wanted.network[at], limits::NAME_BYTES);
        return malformed(
            format!("/network/{at}"),
            format!(
                "`{shown}` is no host that can be allowed; write `name`, `name:port`, `*.name` or `*`, without https:// and without a path"
            ),
        );
    }
    if !(1..=SLOTS).contains(&wanted.task_slots) {
        return malformed("/task_slots".into(), format!("a node has 1 to {SLOTS} task slots"));
    }
    if schema::SandboxPolicy::from(wanted).encoded_len() > limits::POLICY_BYTES {
        return malformed(String::new(), format!("a policy has at most {} bytes; use fewer or shorter rules", limits::POLICY_BYTES));
    }
    Ok(())
}

fn check_rule(rule: &CommandRule) -> Result<(), String> {
    let words: usize = rule.prefix.iter().map(String::len).sum();
    if rule.prefix.is_empty() || rule.prefix.iter().any(String::is_empty) || words + rule.reason.len() > 4 * limits::TEXT_BYTES {
        return Err("a rule needs at least one word, none of them empty, and at most 2 KiB".into());
    }
    let examples = || rule.matching.iter().chain(&rule.not_matching);
    if examples().count() > EXAMPLES || examples().any(|example| example.len() > limits::TEXT_BYTES) {
        return Err(format!(
            "the rule `{}` has more than {EXAMPLES} examples, or one of more than {} bytes",
            clean(&rule.prefix.join(" "), limits::NAME_BYTES),
            limits::TEXT_BYTES
        ));
    }
    policy::check_examples(&rule.prefix, &rule.matching, &rule.not_matching).map_err(|error| error.to_string())
}

/// What changed between two policies.
fn difference(before: &SandboxPolicy, after: &SandboxPolicy) -> Value {
    let (before, after) = (json!(before), json!(after));
    let mut out = serde_json::Map::new();
    let keys: BTreeSet<&String> = [&before, &after].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys()).collect();
    for key in keys.into_iter().filter(|key| *key != "sequence") {
        match (&before[key], &after[key]) {
            (a, b) if a == b => {}
            (Value::Array(a), Value::Array(b)) => {
                let without =
                    |list: &[Value], other: &[Value]| list.iter().filter(|item| !other.contains(item)).cloned().collect::<Vec<_>>();
                out.insert(key.clone(), json!({ "added": without(b, a), "removed": without(a, b) }));
            }
            (a, b) => _ = out.insert(key.clone(), json!({ "before": a, "after": b })),
        }
    }
    out.into()
}

fn keep_change(change: &mut Change<'_>, node: NodeId, row: &PolicyChange) -> Result<(), StoreError> {
    POLICY_CHANGES.put(change.tx, &(node, row.version), row)?;
    let kept = POLICY_CHANGES.list(change.tx, &Span::under(node), Order::Descending, KEPT_CHANGES + 1)?;
    match kept.get(KEPT_CHANGES) {
        Some(oldest) => POLICY_CHANGES.delete(change.tx, &(node, oldest.version)),
        None => Ok(()),
    }
}

impl Hub {
    /// A node with its policy, for everybody who may see the node, and for administrators.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn node_policy(&self, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| match node::find(tx, &actor, id) {
                Err(Refused::NotFound(_)) if actor.may(Scope::Admin) => NODES.get(tx, &id)?.ok_or(Refused::NotFound("node")),
                found => found.map(|(node, _)| node),
            })
            .await
    }

    /// Replaces a node's policy; its version grows when that changes anything. `expected`: only if it is this version now.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub async fn set_policy(&self, actor: &Actor, id: NodeId, policy: SandboxPolicy, expected: Option<u64>) -> Result<Node, PolicyError> {
        let (actor, presence, mesh) = (actor.clone(), self.presence.clone(), self.mesh().cloned());
        self.change(actor.subject(), move |change| {
            let mut node = governed_by(change.tx, &actor, id)?;
            check(&policy)?;
            let now = node.policy.sequence;
            if let Some(expected) = expected.filter(|expected| *expected != now) {
                return Err(PolicyError::Changed { now, expected });
            }
            let same = SandboxPolicy { sequence: now, ..policy };
            if same == node.policy {
                return Ok(node);
            }
            let row = PolicyChange { version: now + 1, at_ms: change.now_ms, by: actor.user, difference: difference(&node.policy, &same) };
            node.policy = SandboxPolicy { sequence: row.version, ..same };
            NODES.put(change.tx, &id, &node)?;
            keep_change(change, id, &row)?;
            change.audit("node.policy", &format!("node:{id}"), row.difference.to_string().as_bytes())?;
            node::tell(change, &presence, &node, "policy")?;
            change.then(move || {
                if let Some(mesh) = mesh {
                    mesh.node_changed(id);
                }
            });
            Ok(node)
        })
        .await
    }

    /// The changes of a node's policy, newest first.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn policy_changes(&self, actor: &Actor, id: NodeId) -> Result<Vec<PolicyChange>, Refused> {
        self.node_policy(actor, id).await?;
        Ok(self.db.read(move |tx| POLICY_CHANGES.list(tx, &Span::under(id), Order::Descending, KEPT_CHANGES)).await?)
    }

    /// Keeps which policy a node says is in force there; written only when it changed. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_policy(&self, id: NodeId, report: &schema::PolicyReport) -> Result<(), StoreError> {
        let Ok(hash) = <[u8; 32]>::try_from(&report.hash[..]) else { return Ok(()) };
        let in_force = PolicyInForce {
            hash: Digest(hash),
            policy: report.effective.as_ref().map(SandboxPolicy::from).unwrap_or_default(),
            problem: Some(clean(&report.problem, limits::TEXT_BYTES)).filter(|problem| !problem.is_empty()),
        };
        if self.find_node(id).await?.is_none_or(|node| node.in_force.as_ref() == Some(&in_force)) {
            return Ok(());
        }
        let presence = self.presence.clone();
        self.change(format!("node:{id}"), move |change| {
            let Some(mut node) = NODES.get(change.tx, &id)? else { return Ok(()) };
            node.in_force = Some(in_force);
            NODES.put(change.tx, &id, &node)?;
            node::tell(change, &presence, &node, "policy_in_force")
        })
        .await
    }

    /// What the hub wants a node to allow, as it is sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn policy_of(&self, id: NodeId) -> Result<Option<schema::SandboxPolicy>, StoreError> {
        Ok(self.find_node(id).await?.map(|node| (&node.policy).into()))
    }
}

#[cfg(test)]
mod tests;
