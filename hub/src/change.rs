//! One transaction of the domain: rows, their events, their audit row, and what follows after the commit.
//!
//! [`Hub::change`] is how every operation writes. What a [`Change`] collects for live subscribers and for the mesh is released once its
//! transaction is durable, in commit order, also when whoever asked has gone away meanwhile.

use std::sync::Arc;

use cortex_wire::id::{NodeId, SessionId, UserId};

use crate::{
    audit,
    events::{self, Feeds},
    hub::{Hub, Mesh},
    keys::HubKeys,
    record::{Event, Notice},
    store::{StoreError, WriteTx},
};

/// What follows a commit. Must be quick: others wait behind it.
type Then = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Outbox {
    events: Vec<Event>,
    notices: Vec<Notice>,
    then: Vec<Then>,
    regrouped: Vec<NodeId>,
    unused: Vec<(SessionId, bool)>,
}

impl Outbox {
    /// Whoever hears of a change finds its consequences done: what follows comes before what is told.
    fn release(self, feeds: &Feeds, mesh: Option<&Arc<dyn Mesh>>) {
        for then in self.then {
            then();
        }
        if let Some(mesh) = mesh {
            self.regrouped.into_iter().for_each(|node| mesh.sessions_changed(node));
            self.unused.into_iter().for_each(|(session, deleted)| mesh.session_unused(session, deleted));
        }
        for event in self.events {
            feeds.tell_session(event);
        }
        for notice in self.notices {
            feeds.tell(notice);
        }
    }
}

/// A transaction under way.
pub(crate) struct Change<'a> {
    /// Where rows are read and written.
    pub(crate) tx: &'a mut dyn WriteTx,
    /// The time of everything in it.
    pub(crate) now_ms: i64,
    by: &'a str,
    keys: &'a HubKeys,
    outbox: Outbox,
}

impl Change<'_> {
    /// Adds a row to a session's log.
    pub(crate) fn event(&mut self, session: SessionId, kind: &str, data: serde_json::Value) -> Result<Event, StoreError> {
        let event = events::append(self.tx, session, self.now_ms, kind, data)?;
        self.outbox.events.push(event.clone());
        Ok(event)
    }

    /// Adds a row to the hub-wide feed, for these users.
    pub(crate) fn notice(&mut self, audience: Vec<UserId>, kind: &str, data: serde_json::Value) -> Result<(), StoreError> {
        let notice = events::notify(self.tx, audience, self.now_ms, kind, data)?;
        self.outbox.notices.push(notice);
        Ok(())
    }

    /// Adds a link to the audit chain. `detail` is hashed, not stored.
    pub(crate) fn audit(&mut self, verb: &str, object: &str, detail: &[u8]) -> Result<(), StoreError> {
        audit::append(self.tx, self.keys, self.now_ms, audit::Act { actor: self.by, verb, object, detail })
    }

    /// The node came into a session or left one, or a session of it is no longer what it was: the mesh is told.
    pub(crate) fn regrouped(&mut self, node: NodeId) {
        if !self.outbox.regrouped.contains(&node) {
            self.outbox.regrouped.push(node);
        }
    }

    /// No node may ask for contents of this session any more: the mesh is told.
    pub(crate) fn unused(&mut self, session: SessionId, deleted: bool) {
        self.outbox.unused.push((session, deleted));
    }

    /// Runs `then` after the commit.
    pub(crate) fn then(&mut self, then: impl FnOnce() + Send + 'static) {
        self.outbox.then.push(Box::new(then));
    }
}

impl Hub {
    /// Runs `work` in one durable transaction on behalf of `by` ("user:…", "node:…", "hub").
    pub(crate) async fn change<T, E>(&self, by: String, work: impl FnOnce(&mut Change<'_>) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.change_later(by, work).await
    }

    /// The same, as a future that does not borrow the hub.
    pub(crate) fn change_later<T, E, W>(&self, by: String, work: W) -> impl Future<Output = Result<T, E>> + Send + use<T, E, W>
    where
        W: FnOnce(&mut Change<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let now_ms = self.now_ms();
        let (db, keys, feeds, mesh) = (self.db.clone(), Arc::clone(&self.keys), self.feeds.clone(), self.mesh().cloned());
        let work = move |tx: &mut dyn WriteTx| {
            let mut change = Change { tx, now_ms, by: &by, keys: &keys, outbox: Outbox::default() };
            let value = work(&mut change)?;
            Ok((value, change.outbox))
        };
        let release = move |(value, outbox): (T, Outbox)| {
            outbox.release(&feeds, mesh.as_ref());
            value
        };
        async move { db.write_then(work, release).await }
    }
}
