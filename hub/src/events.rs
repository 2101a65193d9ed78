//! Numbered feeds, and following them live: one per session (kept whole), and one hub-wide (a bounded ring, each row for certain users).
//!
//! Rows are numbered in the transaction that they describe. After the commit they are broadcast; a follower takes a broadcast row
//! when it is the next one, and reads from the store whenever it is not. So nothing is missed and nothing is seen twice, however slow
//! a follower is and wherever it begins.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use cortex_wire::id::{SessionId, UserId};
use serde_json::Value;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    account::Actor,
    failure::Refused,
    hub::{Hub, lock},
    record::{
        Event, Notice, Scope,
        tables::{EVENTS, NOTICES},
    },
    session,
    store::{Db, Order, ReadTx, Span, StoreError, WriteTx},
};

/// Rows of the hub-wide feed that are kept at least, for followers that were away.
const RING: u64 = 10_000;
/// Live rows that a follower may be behind before it reads from the store instead.
const BACKLOG: usize = 256;
/// Rows read from the store at a time.
const PAGE: usize = 256;

/// Live subscribers of all feeds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feeds {
    sessions: Arc<Mutex<HashMap<SessionId, broadcast::Sender<Arc<Event>>>>>,
    hub: broadcast::Sender<Arc<Notice>>,
}

impl Default for Feeds {
    fn default() -> Self {
        Self { sessions: Arc::default(), hub: broadcast::Sender::new(BACKLOG) }
    }
}

impl Feeds {
    pub(crate) fn tell_session(&self, event: Event) {
        let mut sessions = lock(&self.sessions);
        let session = event.session;
        let heard = sessions.get(&session).is_some_and(|sender| sender.send(Arc::new(event)).is_ok());
        if !heard {
            sessions.remove(&session);
        }
    }

    pub(crate) fn tell(&self, notice: Notice) {
        let _ = self.hub.send(Arc::new(notice));
    }

    /// Tells those who are connected now; nothing is stored.
    pub(crate) fn tell_live(&self, audience: Vec<UserId>, at_ms: i64, kind: &str, data: Value) {
        self.tell(Notice { seq: 0, audience, at_ms, kind: kind.to_owned(), data });
    }

    /// Whether anybody follows the hub-wide feed.
    pub(crate) fn has_followers(&self) -> bool {
        self.hub.receiver_count() > 0
    }

    /// Ends the followers of a session that is gone.
    pub(crate) fn end_session(&self, session: SessionId) {
        lock(&self.sessions).remove(&session);
    }

    fn subscribe(&self, session: SessionId) -> broadcast::Receiver<Arc<Event>> {
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, sender| sender.receiver_count() > 0);
        sessions.entry(session).or_insert_with(|| broadcast::Sender::new(BACKLOG)).subscribe()
    }
}

/// Adds a row to a session's log.
pub(crate) fn append(tx: &mut dyn WriteTx, session: SessionId, at_ms: i64, kind: &str, data: Value) -> Result<Event, StoreError> {
    let seq = last_of_session(tx, session)? + 1;
    let event = Event { session, seq, at_ms, kind: kind.to_owned(), data };
    EVENTS.put(tx, &(session, seq), &event)?;
    Ok(event)
}

/// Adds a row to the hub-wide feed. What falls out of the ring is dropped a page at a time: one page of the store less in most commits.
pub(crate) fn notify(tx: &mut dyn WriteTx, audience: Vec<UserId>, at_ms: i64, kind: &str, data: Value) -> Result<Notice, StoreError> {
    let seq = last(tx)? + 1;
    let notice = Notice { seq, audience, at_ms, kind: kind.to_owned(), data };
    NOTICES.put(tx, &seq, &notice)?;
    if let Some(oldest) = seq.checked_sub(RING).filter(|oldest| oldest.is_multiple_of(PAGE as u64)) {
        NOTICES.clear(tx, &Span::all().before(oldest + 1))?;
    }
    Ok(notice)
}

fn last_of_session(tx: &dyn ReadTx, session: SessionId) -> Result<u64, StoreError> {
    Ok(EVENTS.last(tx, &Span::under(session))?.map_or(0, |event| event.seq))
}

fn last(tx: &dyn ReadTx) -> Result<u64, StoreError> {
    Ok(NOTICES.last(tx, &Span::all())?.map_or(0, |notice| notice.seq))
}

/// A numbered row of a feed.
trait Row: Send + Sync + Clone + 'static {
    fn seq(&self) -> u64;
}

impl Row for Event {
    fn seq(&self) -> u64 {
        self.seq
    }
}

impl Row for Notice {
    fn seq(&self) -> u64 {
        self.seq
    }
}

/// Where a follower stands: rows that were read ahead, then the store while it is behind, then the broadcast.
#[derive(Debug)]
struct Cursor<R> {
    seen: u64,
    behind: bool,
    ahead: VecDeque<R>,
    live: broadcast::Receiver<Arc<R>>,
}

/// What a cursor needs next.
enum Step<R> {
    Row(R),
    /// Rows behind this number from the store.
    Read(u64),
    Ended,
}

impl<R: Row> Cursor<R> {
    fn new(seen: u64, live: broadcast::Receiver<Arc<R>>) -> Self {
        Self { seen, behind: true, ahead: VecDeque::new(), live }
    }

    async fn step(&mut self) -> Step<R> {
        loop {
            if let Some(row) = self.ahead.pop_front() {
                self.seen = row.seq();
                return Step::Row(row);
            }
            if self.behind {
                return Step::Read(self.seen);
            }
            match self.live.recv().await {
                Ok(row) if row.seq() == 0 => return Step::Row(R::clone(&row)),
                Ok(row) if row.seq() == self.seen + 1 => {
                    self.seen += 1;
                    return Step::Row(R::clone(&row));
                }
                Ok(row) if row.seq() <= self.seen => {}
                Ok(_) | Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return Step::Ended,
            }
        }
    }

    fn refill(&mut self, rows: Vec<R>) {
        self.behind = rows.len() == PAGE;
        self.ahead = rows.into();
    }
}

/// Follows a session's log: every row once, in order.
#[derive(Debug)]
pub struct SessionFollower {
    db: Db,
    session: SessionId,
    user: UserId,
    cursor: Cursor<Event>,
    ended: bool,
}

impl SessionFollower {
    /// The next row; waits for it. Safe to cancel. `None` when the session is gone or no longer the actor's to see.
    ///
    /// # Errors
    /// [`Refused::Store`].
    pub async fn next(&mut self) -> Result<Option<Event>, Refused> {
        loop {
            if self.ended {
                return Ok(None);
            }
            match self.cursor.step().await {
                Step::Row(event) => {
                    self.ended = event.kind == session::MEMBER_REMOVED && event.data["user_id"] == self.user.to_string();
                    return Ok(Some(event));
                }
                Step::Ended => self.ended = true,
                Step::Read(seen) => {
                    let session = self.session;
                    let rows = self.db.read(move |tx| session_rows(tx, session, seen, PAGE)).await?;
                    self.cursor.refill(rows);
                }
            }
        }
    }
}

/// Follows the hub-wide feed as one user: every row for them once, in order, and live-only rows (`seq` 0) as they happen.
#[derive(Debug)]
pub struct Follower {
    db: Db,
    user: UserId,
    cursor: Cursor<Notice>,
}

impl Follower {
    /// The next row; waits for it. Safe to cancel.
    ///
    /// # Errors
    /// [`Refused::Store`].
    pub async fn next(&mut self) -> Result<Notice, Refused> {
        loop {
            match self.cursor.step().await {
                Step::Row(notice) if notice.audience.contains(&self.user) => return Ok(notice),
                Step::Row(_) => {}
                Step::Ended => return Err(StoreError::Closed.into()),
                Step::Read(seen) => {
                    let rows = self.db.read(move |tx| NOTICES.list(tx, &Span::all().after(seen), Order::Ascending, PAGE)).await?;
                    self.cursor.refill(rows);
                }
            }
        }
    }
}

fn session_rows(tx: &dyn ReadTx, session: SessionId, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
    EVENTS.list(tx, &Span::under(session).after((session, after)), Order::Ascending, limit)
}

impl Hub {
    /// Rows of a session's log behind `after`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn session_events(&self, actor: &Actor, session: SessionId, after: u64, limit: usize) -> Result<Vec<Event>, Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                session::seen_by(tx, &actor, session)?;
                Ok(session_rows(tx, session, after, limit)?)
            })
            .await
    }

    /// The number of the last row of a session's log; 0 when there is none.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn last_event(&self, actor: &Actor, session: SessionId) -> Result<u64, Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                session::seen_by(tx, &actor, session)?;
                Ok(last_of_session(tx, session)?)
            })
            .await
    }

    /// Follows a session's log from behind `after` (`None`: from now on).
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn follow_session(&self, actor: &Actor, session: SessionId, after: Option<u64>) -> Result<SessionFollower, Refused> {
        let (actor, user) = (actor.clone(), actor.user);
        let last = self
            .db
            .read(move |tx| {
                session::seen_by(tx, &actor, session)?;
                Ok::<_, Refused>(last_of_session(tx, session)?)
            })
            .await?;
        // A cursor reads the store first, so what was committed meanwhile is not missed.
        let cursor = Cursor::new(after.unwrap_or(last).min(last), self.feeds.subscribe(session));
        Ok(SessionFollower { db: self.db.clone(), session, user, cursor, ended: false })
    }

    /// Follows the hub-wide feed from behind `after` (`None`: from now on). When `after` is older than what is kept, it starts at the
    /// oldest row that is.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn follow(&self, actor: &Actor, after: Option<u64>) -> Result<Follower, Refused> {
        actor.must(Scope::Read)?;
        let last = self.db.read(last).await?;
        let cursor = Cursor::new(after.unwrap_or(last).min(last), self.feeds.hub.subscribe());
        Ok(Follower { db: self.db.clone(), user: actor.user, cursor })
    }
}

#[cfg(test)]
mod tests;
