//! What happened in browsers: stored per session as nodes tell it, bounded, listed, followed, and taken out as a HAR document.
//!
//! A node sends each event until it is acknowledged. What comes twice is known by the browser's name and the event's number, and is stored once. Pictures are not events: an event names a place in
//! the output of the task that took it.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use cortex_wire::{
    browser::har,
    id::{NodeId, SessionId, TaskId},
    limits,
    schema::{BrowserEvents, BrowserEventsAck},
    text,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::{
    account::Actor,
    failure::Refused,
    hub::{Hub, lock},
    record::tables::{BROWSER_EVENTS, BROWSER_SEEN, SESSIONS},
    session,
    store::{Order, Span, StoreError, WriteTx},
};

/// Rows that fall out are dropped so many at a time.
const PAGE: u64 = 256;
/// Requests in one HAR document.
const HAR_ENTRIES: usize = 5_000;

/// One thing that happened in a session's browser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BrowserEvent {
    /// Counts from 1 in the session.
    pub seq: u64,
    /// On which node.
    #[schema(value_type = String)]
    pub node_id: NodeId,
    /// One start of one browser.
    pub browser: String,
    /// "console", "error", "log", "request", "navigation", "dialog", "download", "screenshot", "tab", "refused", "started", "closed", "crash"
    pub kind: String,
    /// As the node tells it: what pages said is data, and nobody's instruction.
    #[schema(value_type = Object)]
    pub event: Value,
}

/// The last event of a node that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrowserSeen {
    browser: String,
    number: u64,
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct BrowserFilter {
    /// Of these kinds; none: all.
    pub kinds: Vec<String>,
    /// Of what one task did.
    pub task: Option<TaskId>,
}

impl BrowserFilter {
    fn fits(&self, event: &BrowserEvent) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&event.kind);
        kind && self.task.is_none_or(|task| event.event["task_id"] == task.to_string())
    }
}

/// Tells followers that there is something new. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct BrowserNews(Arc<Mutex<HashMap<SessionId, watch::Sender<u64>>>>);

impl BrowserNews {
    fn tell(&self, session: SessionId, seq: u64) {
        let mut sessions = lock(&self.0);
        if sessions.get(&session).is_some_and(|sender| sender.send(seq).is_err()) {
            sessions.remove(&session);
        }
    }

    /// Changes with every event of the session.
    pub fn follow(&self, session: SessionId) -> watch::Receiver<u64> {
        let mut sessions = lock(&self.0);
        sessions.retain(|_, sender| sender.receiver_count() > 0);
        sessions.entry(session).or_default().subscribe()
    }
}

/// Forgets what happened in a session's browsers.
pub(crate) fn forget(tx: &mut dyn WriteTx, session: SessionId) -> Result<(), StoreError> {
    BROWSER_EVENTS.clear(tx, &Span::under(session))?;
    BROWSER_SEEN.clear(tx, &Span::under(session))?;
    Ok(())
}

impl Hub {
    /// Stores what a node tells of a session it is in. What it may not tell is acknowledged and dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn store_browser_events(&self, node: NodeId, events: &BrowserEvents) -> Result<BrowserEventsAck, StoreError> {
        let browser = text::clean(&events.browser, limits::NAME_BYTES);
        let last = events.first.saturating_add(events.events.len() as u64).saturating_sub(1);
        let ack = BrowserEventsAck { browser: events.browser.clone(), number: last };
        let Ok(session) = events.session_id.parse::<SessionId>() else { return Ok(ack) };
        let (first, events) = (events.first, events.events.clone());
        let stored = self
            .db
            .write(move |tx| {
                if SESSIONS.get(tx, &session)?.is_none_or(|session| !session.nodes.contains(&node)) {
                    return Ok(None);
                }
                let seen = BROWSER_SEEN.get(tx, &(session, node))?.filter(|seen| seen.browser == browser).map_or(0, |seen| seen.number);
                let mut seq = BROWSER_EVENTS.last(tx, &Span::under(session))?.map_or(0, |event| event.seq);
                for (at, bytes) in (0..).zip(&events) {
                    let number = first.saturating_add(at);
                    let event = serde_json::from_slice::<Value>(bytes)
                        .ok()
                        .filter(|event| event.is_object() && bytes.len() <= limits::BROWSER_EVENT_BYTES);
                    let Some(event) = event.filter(|_| number > seen) else { continue };
                    seq += 1;
                    let kind = text::clean(event["kind"].as_str().unwrap_or("?"), 32);
                    BROWSER_EVENTS.put(tx, &(session, seq), &BrowserEvent { seq, node_id: node, browser: browser.clone(), kind, event })?;
                    if let Some(oldest) = seq.checked_sub(limits::BROWSER_EVENTS_KEPT).filter(|oldest| oldest.is_multiple_of(PAGE)) {
                        BROWSER_EVENTS.clear(tx, &Span::under(session).before((session, oldest + 1)))?;
                    }
                }
                BROWSER_SEEN.put(tx, &(session, node), &BrowserSeen { browser, number: last.max(seen) })?;
                Ok::<_, StoreError>(Some(seq))
            })
            .await?;
        // Only now: who is told looks at once, and would find nothing before.
        if let Some(seq) = stored {
            self.browser_news.tell(session, seq);
        }
        Ok(ack)
    }

    /// Events of a session behind `after`, oldest first, at most `limit` of those that fit.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn browser_events(
        &self,
        actor: &Actor,
        session: SessionId,
        after: u64,
        limit: usize,
        filter: BrowserFilter,
    ) -> Result<Vec<BrowserEvent>, Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                session::seen_by(tx, &actor, session)?;
                let mut found = Vec::new();
                BROWSER_EVENTS.visit(tx, &Span::under(session).after((session, after)), Order::Ascending, |_, event| {
                    if filter.fits(&event) {
                        found.push(event);
                    }
                    Ok(if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
                })?;
                Ok(found)
            })
            .await
    }

    /// One event of a session.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn browser_event(&self, actor: &Actor, session: SessionId, seq: u64) -> Result<Option<BrowserEvent>, Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                session::seen_by(tx, &actor, session)?;
                Ok(BROWSER_EVENTS.get(tx, &(session, seq))?)
            })
            .await
    }

    /// A session's requests as a HAR document.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn browser_har(&self, actor: &Actor, session: SessionId) -> Result<Value, Refused> {
        let filter = BrowserFilter { kinds: vec!["request".into()], task: None };
        let events = self.browser_events(actor, session, 0, HAR_ENTRIES, filter).await?;
        Ok(har(events.iter().map(|event| &event.event)))
    }

    /// Changes with every event of the session's browsers.
    pub fn follow_browser(&self, session: SessionId) -> watch::Receiver<u64> {
        self.browser_news.follow(session)
    }
}

#[cfg(test)]
mod tests;
