//! Nodes: whose they are, who may see them, whether they may work, and what they are allowed.
//!
//! A node that is not the actor's looks as if it did not exist. Names are labels for people: unique for one owner, so that a person who
//! reads one knows which machine is meant.

use std::collections::BTreeMap;

use cortex_wire::{
    id::{NodeId, UserId},
    limits,
    text::clean,
};
use serde_json::json;

use crate::{
    account::{self, Actor},
    change::Change,
    failure::Refused,
    hub::Hub,
    presence::PresenceTable,
    record::{
        Capabilities, Node, NodeRefusal, PathPolicy, SandboxPolicy, Scope, Standing,
        tables::{GRANTS, NODE_NAMES, NODES, NODES_OF_USER, POLICY_CHANGES, SESSIONS, SESSIONS_OF_NODE, SESSIONS_OF_USER},
    },
    session,
    store::{ReadTx, Span, StoreError},
    task::{self, Endings},
};

/// Labels of one node.
const LABELS: usize = 32;
/// A node that is turned away tries again slowly; its row is not written each time.
const REFUSAL_REPEAT_MS: i64 = 60_000;

/// How far somebody reaches to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NodeAccess {
    /// It is attached to a session they are in.
    Session,
    /// Its owner shared it with them.
    Shared,
    /// It is theirs.
    Owner,
}

/// Changes to a node by its owner.
#[derive(Debug, Clone, Default)]
pub struct NodeUpdate {
    /// A new name.
    pub name: Option<String>,
    /// All its labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Which ways its packets may go.
    pub path_policy: Option<PathPolicy>,
}

/// What an enrolled node says when it connects.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Program and version.
    pub agent: String,
    /// What it is and has.
    pub capabilities: Capabilities,
    /// Its own limits.
    pub ceiling: Option<SandboxPolicy>,
    /// Where its packets came from.
    pub observed_address: Option<String>,
}

/// A node, if the actor may see it.
pub(crate) fn find(tx: &dyn ReadTx, actor: &Actor, id: NodeId) -> Result<(Node, NodeAccess), Refused> {
    let node = NODES.get(tx, &id)?.ok_or(Refused::NotFound("node"))?;
    let access = if node.owner == actor.user {
        Some(NodeAccess::Owner)
    } else if node.shared_with.contains(&actor.user) {
        Some(NodeAccess::Shared)
    } else {
        sessions_of(tx, id)?.iter().any(|session| session::is_in(session, actor.user)).then_some(NodeAccess::Session)
    };
    actor.must(Scope::Read)?;
    access.map(|access| (node, access)).ok_or(Refused::NotFound("node"))
}

fn owned_by(tx: &dyn ReadTx, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
    let (node, access) = find(tx, actor, id)?;
    actor.must(Scope::Manage)?;
    if access < NodeAccess::Owner { Err(Refused::Forbidden("only the node's owner may do that")) } else { Ok(node) }
}

fn sessions_of(tx: &dyn ReadTx, id: NodeId) -> Result<Vec<crate::record::Session>, StoreError> {
    SESSIONS_OF_NODE.all_of(tx, &id)?.iter().filter_map(|session| SESSIONS.get(tx, session).transpose()).collect()
}

/// Everybody who may see a node.
pub(crate) fn audience(tx: &dyn ReadTx, node: &Node) -> Result<Vec<UserId>, StoreError> {
    let mut users = vec![node.owner];
    users.extend(&node.shared_with);
    for session in sessions_of(tx, node.id)? {
        users.extend(session::audience(&session));
    }
    users.sort_unstable();
    users.dedup();
    Ok(users)
}

/// Tells everybody who may see a node what has changed: all that may have, but what it says of itself when it connects.
pub(crate) fn tell(change: &mut Change<'_>, presence: &PresenceTable, node: &Node, what: &str) -> Result<(), StoreError> {
    let users = audience(change.tx, node)?;
    let now = presence.of(node);
    let data = json!({
        "node_id": node.id,
        "name": node.name,
        "change": what,
        "labels": node.labels,
        "standing": node.standing,
        "approved_at_ms": node.approved_at_ms,
        "shared_with": node.shared_with,
        "state": now.state,
        "since_ms": now.since_ms,
        "last_seen_at_ms": now.last_seen_at_ms,
        "relay": now.relay,
        "path": now.path,
        "path_reason": now.path_reason,
        "path_policy": node.path_policy,
        "drained_at_ms": node.drained_at_ms,
        "standby": now.standby,
        "refusal": node.refusal,
        "last_disconnect": now.last_disconnect,
    });
    change.notice(users, "node", data)
}

/// A name for a node of this owner that no other node of theirs has.
pub(crate) fn free_name(tx: &dyn ReadTx, owner: UserId, wanted: &str) -> Result<String, StoreError> {
    let wanted = match clean(wanted, limits::NAME_BYTES - 8) {
        name if name.is_empty() => "node".to_owned(),
        name => name,
    };
    let mut name = wanted.clone();
    let mut number = 1;
    while NODE_NAMES.get(tx, &(owner, name.clone()))?.is_some() {
        number += 1;
        name = format!("{wanted}-{number}");
    }
    Ok(name)
}

/// Adds a node that has just been enrolled.
pub(crate) fn insert(change: &mut Change<'_>, node: &Node) -> Result<(), StoreError> {
    NODES.put(change.tx, &node.id, node)?;
    NODES_OF_USER.insert(change.tx, &node.owner, &node.id)?;
    NODE_NAMES.put(change.tx, &(node.owner, node.name.clone()), &node.id)
}

/// Ends what a node had to do, and takes it out of every session.
fn withdraw(change: &mut Change<'_>, id: NodeId, endings: Endings, reason: &str) -> Result<(), StoreError> {
    task::abandon(change, id, endings, reason)?;
    for mut session in sessions_of(change.tx, id)? {
        session::detach(change, &mut session, id, reason)?;
    }
    Ok(())
}

/// Removes a node and what it had to do.
pub(crate) fn remove(
    change: &mut Change<'_>,
    presence: &PresenceTable,
    node: &Node,
    endings: Endings,
    reason: &str,
) -> Result<(), StoreError> {
    // Whoever may see it now is told that it is gone.
    tell(change, presence, node, "deleted")?;
    withdraw(change, node.id, endings, reason)?;
    NODES_OF_USER.remove(change.tx, &node.owner, &node.id)?;
    for user in &node.shared_with {
        NODES_OF_USER.remove(change.tx, user, &node.id)?;
    }
    NODE_NAMES.delete(change.tx, &(node.owner, node.name.clone()))?;
    NODES.delete(change.tx, &node.id)?;
    POLICY_CHANGES.clear(change.tx, &Span::under(node.id))?;
    GRANTS.clear(change.tx, &Span::under(node.id))?;
    let (presence, id) = (presence.clone(), node.id);
    change.then(move || presence.forget(id));
    change.audit("node.delete", &object(node.id), reason.as_bytes())
}

fn object(id: NodeId) -> String {
    format!("node:{id}")
}

/// Labels as they are stored.
pub(crate) fn clean_labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Refused> {
    if labels.len() > LABELS {
        return Err(Refused::Invalid(format!("a node has at most {LABELS} labels")));
    }
    let clean_pair = |(key, value): (String, String)| (clean(&key, 64), clean(&value, limits::NAME_BYTES));
    Ok(labels.into_iter().map(clean_pair).filter(|(key, _)| !key.is_empty()).collect())
}

impl Hub {
    /// A node by its key, whoever owns it. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find_node(&self, id: NodeId) -> Result<Option<Node>, StoreError> {
        self.db.read(move |tx| NODES.get(tx, &id)).await
    }

    /// Whether another node is in a session of this one, so that both want the same contents. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn shares_workspaces(&self, id: NodeId) -> Result<bool, StoreError> {
        self.db.read(move |tx| Ok(sessions_of(tx, id)?.iter().any(|session| session.nodes.len() > 1))).await
    }

    /// The nodes that the actor owns, that were shared with them, or that are attached to sessions they are in; by name.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn nodes(&self, actor: &Actor) -> Result<Vec<Node>, Refused> {
        actor.must(Scope::Read)?;
        let user = actor.user;
        self.db
            .read(move |tx| {
                let mut ids = NODES_OF_USER.all_of(tx, &user)?;
                for session in SESSIONS_OF_USER.all_of(tx, &user)? {
                    ids.extend(SESSIONS.get(tx, &session)?.map(|session| session.nodes).unwrap_or_default());
                }
                ids.sort_unstable();
                ids.dedup();
                let nodes: Result<Vec<_>, StoreError> = ids.iter().filter_map(|id| NODES.get(tx, id).transpose()).collect();
                let mut nodes = nodes?;
                nodes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
                Ok(nodes)
            })
            .await
    }

    /// One of them.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn node(&self, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
        let actor = actor.clone();
        self.db.read(move |tx| Ok(find(tx, &actor, id)?.0)).await
    }

    /// Changes a node of the actor in one transaction, tells everybody who may see it, and the mesh.
    async fn edit_node(
        &self,
        actor: &Actor,
        id: NodeId,
        verb: &'static str,
        edit: impl FnOnce(&mut Change<'_>, &mut Node) -> Result<(), Refused> + Send + 'static,
    ) -> Result<Node, Refused> {
        let (actor, presence, mesh) = (actor.clone(), self.presence.clone(), self.mesh().cloned());
        self.change(actor.subject(), move |change| {
            let mut node = owned_by(change.tx, &actor, id)?;
            let before = node.clone();
            edit(change, &mut node)?;
            if node == before {
                return Ok(node);
            }
            NODES.put(change.tx, &id, &node)?;
            change.audit(verb, &object(id), b"")?;
            tell(change, &presence, &node, verb.trim_start_matches("node."))?;
            change.then(move || {
                if let Some(mesh) = mesh {
                    mesh.node_changed(id);
                }
            });
            Ok(node)
        })
        .await
    }

    /// Renames or relabels a node of the actor, or says which ways its packets may go.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn update_node(&self, actor: &Actor, id: NodeId, update: NodeUpdate) -> Result<Node, Refused> {
        let labels = update.labels.map(clean_labels).transpose()?;
        let name = update.name.map(|name| clean(&name, limits::NAME_BYTES));
        if name.as_deref() == Some("") {
            return Err(Refused::Invalid("a node needs a name".into()));
        }
        self.edit_node(actor, id, "node.update", move |change, node| {
            node.labels = labels.unwrap_or_else(|| node.labels.clone());
            node.path_policy = update.path_policy.unwrap_or(node.path_policy);
            let Some(name) = name.filter(|name| *name != node.name) else { return Ok(()) };
            if NODE_NAMES.get(change.tx, &(node.owner, name.clone()))?.is_some() {
                return Err(Refused::Invalid(format!("you already have a node called {name:?}")));
            }
            NODE_NAMES.delete(change.tx, &(node.owner, node.name.clone()))?;
            NODE_NAMES.put(change.tx, &(node.owner, name.clone()), &id)?;
            node.name = name;
            Ok(())
        })
        .await
    }

    /// Lets a pending node work. `id` is its key, so what is approved is what was compared.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn approve_node(&self, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
        self.edit_node(actor, id, "node.approve", |change, node| match node.standing {
            Standing::Active => Ok(()),
            Standing::Pending => {
                node.standing = Standing::Active;
                node.approved_at_ms = Some(change.now_ms);
                Ok(())
            }
            Standing::Revoked => Err(Refused::Invalid("this node is revoked; delete it, and enrol the machine again".into())),
        })
        .await
    }

    /// Lets a node finish what it has, and gives it nothing new; or takes that back. Twice is fine.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn drain_node(&self, actor: &Actor, id: NodeId, drained: bool) -> Result<Node, Refused> {
        let verb = if drained { "node.drain" } else { "node.undrain" };
        let mesh = self.mesh().cloned();
        self.edit_node(actor, id, verb, move |change, node| {
            node.drained_at_ms = drained.then(|| node.drained_at_ms.unwrap_or(change.now_ms));
            if let Some(mesh) = mesh {
                change.then(move || mesh.drain(id, drained));
            }
            Ok(())
        })
        .await
    }

    /// Shuts a node out for good: it leaves every session, and what it had to do ends.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn revoke_node(&self, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
        let endings = self.endings_of(id).await?;
        self.edit_node(actor, id, "node.revoke", move |change, node| {
            node.standing = Standing::Revoked;
            Ok(withdraw(change, id, endings, "the node was revoked")?)
        })
        .await
    }

    /// Removes a node; it leaves every session, and what it had to do ends. Its finished tasks and their output stay.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn delete_node(&self, actor: &Actor, id: NodeId) -> Result<(), Refused> {
        let endings = self.endings_of(id).await?;
        let (actor, presence, mesh) = (actor.clone(), self.presence.clone(), self.mesh().cloned());
        self.change(actor.subject(), move |change| {
            let node = owned_by(change.tx, &actor, id)?;
            remove(change, &presence, &node, endings, "the node was deleted")?;
            change.then(move || {
                if let Some(mesh) = mesh {
                    mesh.node_changed(id);
                }
            });
            Ok(())
        })
        .await
    }

    /// Lets another user see a node and attach it to sessions of theirs.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn share_node(&self, actor: &Actor, id: NodeId, user_name: &str) -> Result<Node, Refused> {
        let user_name = user_name.to_owned();
        self.edit_node(actor, id, "node.share", move |change, node| {
            let user = account::find_user(change.tx, &user_name)?;
            if user.id != node.owner && !node.shared_with.contains(&user.id) {
                node.shared_with.push(user.id);
                NODES_OF_USER.insert(change.tx, &user.id, &id)?;
            }
            Ok(())
        })
        .await
    }

    /// Takes that back. Sessions to which the node is attached keep it until it is detached there.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn unshare_node(&self, actor: &Actor, id: NodeId, user_name: &str) -> Result<Node, Refused> {
        let user_name = user_name.to_owned();
        self.edit_node(actor, id, "node.unshare", move |change, node| {
            let user = account::find_user(change.tx, &user_name)?;
            node.shared_with.retain(|shared| *shared != user.id);
            if user.id != node.owner {
                NODES_OF_USER.remove(change.tx, &user.id, &id)?;
            }
            Ok(())
        })
        .await
    }

    /// Keeps what a node says of itself when it connects; written only when something changed. `None`: no such node.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn register_node(&self, id: NodeId, registration: Registration) -> Result<Option<Node>, StoreError> {
        let news = move |node: Node| Node {
            agent: clean(&registration.agent, limits::NAME_BYTES),
            capabilities: registration.capabilities,
            ceiling: registration.ceiling,
            observed_address: registration.observed_address.or(node.observed_address.clone()),
            ..node
        };
        let Some(before) = self.find_node(id).await? else { return Ok(None) };
        if news.clone()(before.clone()) == before {
            return Ok(Some(before));
        }
        let presence = self.presence.clone();
        self.change(object(id), move |change| {
            let Some(node) = NODES.get(change.tx, &id)? else { return Ok(None) };
            let node = news(node);
            NODES.put(change.tx, &id, &node)?;
            tell(change, &presence, &node, "registered")?;
            Ok(Some(node))
        })
        .await
    }

    /// Keeps why a node was turned away, for its owner. Repeats of the same reason are written at most once a minute. A key that is no node
    /// leaves nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_refusal(&self, id: NodeId, code: &str, reason: &str) -> Result<(), StoreError> {
        let Some(node) = self.find_node(id).await? else { return Ok(()) };
        let refusal = NodeRefusal { code: clean(code, 64), reason: clean(reason, limits::TEXT_BYTES), at_ms: self.now_ms() };
        let repeats = |old: &NodeRefusal| old.code == refusal.code && refusal.at_ms - old.at_ms < REFUSAL_REPEAT_MS;
        if node.refusal.as_ref().is_some_and(repeats) {
            return Ok(());
        }
        let presence = self.presence.clone();
        self.change(object(id), move |change| {
            let Some(mut node) = NODES.get(change.tx, &id)? else { return Ok(()) };
            node.refusal = Some(refusal);
            NODES.put(change.tx, &id, &node)?;
            tell(change, &presence, &node, "refused")
        })
        .await
    }
}

#[cfg(test)]
mod tests;
