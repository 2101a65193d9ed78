//! Nodes: whose they are, who may see them, whether they may work, and what they are allowed.

use std::collections::BTreeMap;

use cortex_wire::{id::NodeId, schema};

use crate::{
    account::Actor,
    failure::Refused,
    hub::Hub,
    record::{Capabilities, Node, SandboxPolicy},
    store::StoreError,
};

/// Changes to a node by its owner.
#[derive(Debug, Clone, Default)]
pub struct NodeUpdate {
    /// A new name.
    pub name: Option<String>,
    /// All its labels.
    pub labels: Option<BTreeMap<String, String>>,
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

impl Hub {
    /// A node by its key, whoever owns it. For the mesh.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find_node(&self, id: NodeId) -> Result<Option<Node>, StoreError> {
        let _ = id;
        todo!()
    }

    /// The nodes that the actor owns, that were shared with them, or that are attached to sessions they are in; by name.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn nodes(&self, actor: &Actor) -> Result<Vec<Node>, Refused> {
        let _ = actor;
        todo!()
    }

    /// One of them.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn node(&self, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
        let _ = (actor, id);
        todo!()
    }

    /// Renames or relabels a node of the actor.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn update_node(&self, actor: &Actor, id: NodeId, update: NodeUpdate) -> Result<Node, Refused> {
        let _ = (actor, id, update);
        todo!()
    }

    /// Lets a pending node work. `id` is its key, so what is approved is what was compared.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn approve_node(&self, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
        let _ = (actor, id);
        todo!()
    }

    /// Shuts a node out for good; its open tasks are lost.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn revoke_node(&self, actor: &Actor, id: NodeId) -> Result<Node, Refused> {
        let _ = (actor, id);
        todo!()
    }

    /// Removes a node; it leaves every session. Its tasks and their output stay.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn delete_node(&self, actor: &Actor, id: NodeId) -> Result<(), Refused> {
        let _ = (actor, id);
        todo!()
    }

    /// Lets another user see a node and attach it to sessions of theirs.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn share_node(&self, actor: &Actor, id: NodeId, user_name: &str) -> Result<Node, Refused> {
        let _ = (actor, id, user_name);
        todo!()
    }

    /// Takes that back.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn unshare_node(&self, actor: &Actor, id: NodeId, user_name: &str) -> Result<Node, Refused> {
        let _ = (actor, id, user_name);
        todo!()
    }

    /// Replaces a node's policy; its sequence grows.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn set_policy(&self, actor: &Actor, id: NodeId, policy: SandboxPolicy) -> Result<Node, Refused> {
        let _ = (actor, id, policy);
        todo!()
    }

    /// Keeps what a node says of itself when it connects; written only when something changed. `None`: no such node.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn register_node(&self, id: NodeId, registration: Registration) -> Result<Option<Node>, StoreError> {
        let _ = (id, registration);
        todo!()
    }

    /// Keeps why a node was turned away, for its owner. Repeats of the same reason are written at most once a minute. A key that is no node
    /// leaves nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn note_refusal(&self, id: NodeId, code: &str, reason: &str) -> Result<(), StoreError> {
        let _ = (id, code, reason);
        todo!()
    }

    /// What the hub wants a node to allow, as it is sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn policy_of(&self, id: NodeId) -> Result<Option<schema::SandboxPolicy>, StoreError> {
        let _ = id;
        todo!()
    }
}
