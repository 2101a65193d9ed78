//! Terminals that people look at: who sits at one, what they type, and the size they want.
//!
//! A terminal is a task like any other; its output is the task's. What is here is only in memory, and only while somebody sits there: typed bytes on their way, in
//! the order in which they came from all seats, kept until the program has them, so that none is lost or doubled when the way to the node breaks. The size
//! that was asked for last, by whomever, is the terminal's, and everybody at it hears of it.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
};

use bytes::{Buf as _, Bytes, BytesMut};
use cortex_wire::{
    id::{NodeId, TaskId},
    schema,
};
use futures_util::{StreamExt as _, stream::FuturesOrdered};
use tokio::sync::{Notify, watch};

use crate::{
    account::Actor,
    failure::{Failure, Kind, Refused},
    hub::{Hub, Mesh, StdinError, lock},
    record::{Scope, Task},
    session, task,
};

/// Seats at one terminal.
const SEATS: usize = 32;
/// Typed, and not with the program yet. Above it, who types waits.
const TYPED_BYTES: usize = 64 * 1024;
/// Typed bytes in one piece, and pieces on their way at a time.
const PIECE_BYTES: usize = 16 * 1024;
const PIECES: usize = 16;

/// Why nobody can sit down.
#[derive(Debug, thiserror::Error)]
pub enum SeatError {
    /// The task has none.
    #[error("this task does not run in a terminal")]
    NoTerminal,
    /// All seats are taken.
    #[error("{SEATS} connections look at this terminal already")]
    Full,
    /// Anything else.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<crate::store::StoreError> for SeatError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure for SeatError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoTerminal => "no_terminal",
            Self::Full => "terminal_full",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NoTerminal => Kind::Conflict,
            Self::Full => Kind::TooMany,
            Self::Refused(refused) => refused.kind(),
        }
    }
}

/// The terminals at which somebody sits.
#[derive(Debug, Clone, Default)]
pub struct Terminals(Arc<Mutex<HashMap<TaskId, Arc<Desk>>>>);

#[derive(Debug, Default)]
struct Desk {
    state: Mutex<State>,
    /// There may be room for more.
    room: Notify,
    /// There is something to write, or nobody sits here any more.
    more: Notify,
    /// The node can be reached again.
    attached: Notify,
    /// What was asked for last; all seats hear of it.
    size: watch::Sender<Option<schema::Terminal>>,
}

#[derive(Debug, Default)]
struct State {
    seats: usize,
    typed: BytesMut,
    /// Somebody carries what is typed to the node.
    carried: bool,
}

impl Terminals {
    /// The size that the terminal of a task should have, if anybody has said so.
    pub(crate) fn size(&self, task: TaskId) -> Option<schema::Terminal> {
        let desk = lock(&self.0).get(&task).cloned()?;
        *desk.size.borrow()
    }

    /// Forgets a desk at which nobody sits, and from which nothing is carried any more: until then the next one to sit down gets the same.
    fn clear_away(&self, task: TaskId, desk: &Arc<Desk>) {
        let mut desks = lock(&self.0);
        let state = lock(&desk.state);
        if state.seats == 0 && !state.carried && desks.get(&task).is_some_and(|known| Arc::ptr_eq(known, desk)) {
            desks.remove(&task);
        }
    }

    /// The way to a task's node is open. For the mesh.
    pub(crate) fn attached(&self, task: TaskId) {
        if let Some(desk) = lock(&self.0).get(&task) {
            desk.attached.notify_one();
        }
    }
}

/// A place at a terminal, for as long as it is held.
pub struct Seat {
    task: TaskId,
    node: NodeId,
    mesh: Option<Arc<dyn Mesh>>,
    terminals: Terminals,
    desk: Arc<Desk>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.desk.state).seats -= 1;
        // Whoever carries what was typed looks whether anybody waits for it.
        self.desk.attached.notify_one();
        self.terminals.clear_away(self.task, &self.desk);
    }
}

impl Seat {
    /// The size that was asked for last, if anybody has since somebody sat down here; now, and whenever it is another.
    pub fn sizes(&self) -> watch::Receiver<Option<schema::Terminal>> {
        self.desk.size.subscribe()
    }

    /// The terminal takes this size, and all seats hear of it.
    pub fn resize(&self, size: schema::Terminal) {
        self.desk.size.send_if_modified(|now| now.replace(size) != Some(size));
        if let Some(mesh) = &self.mesh {
            mesh.resize(self.task, self.node, size);
        }
    }

    /// Types, if there is room; else see [`Self::room`].
    pub fn type_in(&self, data: &[u8]) -> bool {
        let Some(mesh) = &self.mesh else { return true };
        let mut state = lock(&self.desk.state);
        if state.typed.len() >= TYPED_BYTES {
            return false;
        }
        state.typed.extend_from_slice(data);
        if !std::mem::replace(&mut state.carried, true) {
            let (mesh, terminals, desk) = (mesh.clone(), self.terminals.clone(), self.desk.clone());
            let carrier = Carrier { task: self.task, node: self.node, mesh, terminals, desk };
            tokio::spawn(carrier.carry());
        }
        drop(state);
        self.desk.more.notify_one();
        true
    }

    /// Waits until there may be room.
    pub async fn room(&self) {
        self.desk.room.notified().await;
        // The others wait for the same.
        self.desk.room.notify_one();
    }
}

/// Brings what is typed to the program, until nothing is left.
struct Carrier {
    task: TaskId,
    node: NodeId,
    mesh: Arc<dyn Mesh>,
    terminals: Terminals,
    desk: Arc<Desk>,
}

impl Carrier {
    async fn carry(self) {
        self.carry_all().await;
        self.terminals.clear_away(self.task, &self.desk);
    }

    async fn carry_all(&self) {
        // Where `typed` begins, once that is known.
        let mut base = None;
        loop {
            match self.mesh.stdin_position(self.task, self.node).await {
                Ok(position) => {
                    if let Some(base) = base {
                        self.arrived(position - position.min(base));
                    }
                    base = Some(position);
                    if self.write(&mut base).await {
                        return;
                    }
                }
                // It comes back, or the task ends; what nobody waits for is not typed any more.
                Err(_) if self.is_deserted() => return,
                Err(_) => self.desk.attached.notified().await,
            }
        }
    }

    fn is_deserted(&self) -> bool {
        let mut state = lock(&self.desk.state);
        let deserted = state.seats == 0;
        if deserted {
            state.carried = false;
            state.typed.clear();
        }
        deserted
    }

    /// So many bytes are with the program.
    fn arrived(&self, bytes: u64) {
        let mut state = lock(&self.desk.state);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(state.typed.len());
        state.typed.advance(bytes);
        drop(state);
        self.desk.room.notify_one();
    }

    /// Writes from `base` on. Returns whether all of it has arrived; otherwise the way broke.
    async fn write(&self, base: &mut Option<u64>) -> bool {
        let mut under_way = FuturesOrdered::new();
        let mut at = base.unwrap_or_default();
        let mut acked = at;
        loop {
            while under_way.len() < PIECES
                && let Some(piece) = self.piece(at - acked)
            {
                let offset = at;
                at += piece.len() as u64;
                let mut sent = self.mesh.stdin(self.task, self.node, offset, piece, false);
                // The first look sends it: pieces go in their order.
                let first = std::future::poll_fn(|context| Poll::Ready(pin!(&mut sent).poll(context))).await;
                under_way.push_back(async move {
                    match first {
                        Poll::Ready(result) => result,
                        Poll::Pending => sent.await,
                    }
                });
            }
            tokio::select! {
                Some(result) = under_way.next() => match result {
                    Ok(position) => {
                        self.arrived(position.saturating_sub(acked));
                        acked = acked.max(position);
                        *base = Some(acked);
                        if under_way.is_empty() && self.rests() {
                            return true;
                        }
                    }
                    Err(StdinError::Full) if self.is_deserted() => return true,
                    Err(_) => return false,
                },
                () = self.desk.more.notified() => if under_way.is_empty() && self.rests() {
                    return true;
                },
            }
        }
    }

    /// What is typed from there on and not under way.
    fn piece(&self, from: u64) -> Option<Bytes> {
        let state = lock(&self.desk.state);
        let typed = state.typed.get(usize::try_from(from).unwrap_or(usize::MAX)..).filter(|typed| !typed.is_empty())?;
        Some(Bytes::copy_from_slice(&typed[..typed.len().min(PIECE_BYTES)]))
    }

    /// Whether there is nothing to do; whoever types next begins again.
    fn rests(&self) -> bool {
        let mut state = lock(&self.desk.state);
        state.carried = !state.typed.is_empty();
        !state.carried
    }
}

impl Hub {
    /// Sits down at a task's terminal.
    ///
    /// # Errors
    /// [`SeatError`].
    pub async fn sit(&self, actor: &Actor, id: TaskId) -> Result<(Task, Seat), SeatError> {
        let reader = actor.clone();
        let task = self.db.read(move |tx| task::seen_by(tx, &reader, id)).await?;
        if task.spec.terminal.is_none() {
            return Err(SeatError::NoTerminal);
        }
        let desk = {
            let mut desks = lock(&self.terminals.0);
            let desk = desks.entry(id).or_default().clone();
            let mut state = lock(&desk.state);
            if state.seats >= SEATS {
                return Err(SeatError::Full);
            }
            state.seats += 1;
            drop(state);
            desk
        };
        let seat = Seat { task: id, node: task.node, mesh: self.mesh().cloned(), terminals: self.terminals.clone(), desk };
        Ok((task, seat))
    }

    /// Whether the actor may type where a task runs.
    pub async fn may_type(&self, actor: &Actor, task: &Task) -> bool {
        let (actor, session) = (actor.clone(), task.session);
        self.db.read(move |tx| session::used_by(tx, &actor, Scope::Dispatch, session).map(drop)).await.is_ok()
    }
}
