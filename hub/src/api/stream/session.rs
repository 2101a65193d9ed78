//! A session's stream: its log, interleaved with what its tasks print.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    sync::Arc,
};

use axum::body::Bytes;
use cortex_wire::{
    id::{SessionId, TaskId},
    task::State,
};
use futures_util::future::select_all;

use super::{Log, note};
use crate::{
    account::Actor,
    api::{
        position::SessionPosition,
        problem::Problem,
        sse::{Source, write_event},
        tail::{Fragment, Offsets, Tail},
        view::EventView,
    },
    hub::Hub,
    output::OutputError,
    record::Event,
};

/// Rows that are read at once while a stream catches up.
const ROWS: usize = 256;

/// Where the stream is.
enum Phase {
    /// Reads the rows that are there.
    CatchingUp(VecDeque<Event>),
    /// Waits for new ones.
    Live(Log),
}

/// See the module's documentation.
pub(super) struct SessionSource {
    hub: Arc<Hub>,
    actor: Actor,
    session: SessionId,
    position: SessionPosition,
    phase: Phase,
    /// A row that was taken and waits for its task's output.
    held: Option<Event>,
    tails: Option<Tails>,
}

impl SessionSource {
    /// From the first row on.
    pub(super) fn new(hub: &Arc<Hub>, actor: &Actor, session: SessionId, output: bool) -> Self {
        Self {
            hub: hub.clone(),
            actor: actor.clone(),
            session,
            position: SessionPosition::default(),
            phase: Phase::CatchingUp(VecDeque::new()),
            held: None,
            tails: output.then(Tails::default),
        }
    }

    /// From behind this position on.
    pub(super) fn begin_behind(&mut self, position: SessionPosition) {
        self.position = position;
        if self.tails.is_none() {
            self.position.tasks.clear();
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, OutputError> {
        loop {
            if let Some(event) = &self.held {
                if let (Some(tails), Some((task, state))) = (&mut self.tails, task_news(event)) {
                    tails.follow(&self.hub, &self.actor, task, &self.position).await?;
                    if state.is_final() {
                        if let Some(fragment) = tails.next_of(task).await? {
                            return Ok(Some(self.tell_output(task, &fragment)));
                        }
                        tails.open.remove(&task);
                        self.position.tasks.remove(&task);
                    }
                }
                return Ok(self.held.take().map(|event| self.tell_row(event)));
            }
            match &mut self.phase {
                Phase::CatchingUp(rows) => match rows.pop_front() {
                    Some(event) => self.held = Some(event),
                    None => self.catch_up().await?,
                },
                Phase::Live(log) => {
                    if let Ok(event) = log.rows.try_recv() {
                        self.held = Some(event);
                    } else if let Some((task, fragment)) = next_of_any(&mut self.tails).await? {
                        return Ok(Some(self.tell_output(task, &fragment)));
                    } else {
                        tokio::select! {
                            event = log.rows.recv() => match event {
                                Some(event) => self.held = Some(event),
                                None => return Ok(None),
                            },
                            () = any_changed(&mut self.tails) => {}
                        }
                    }
                }
            }
        }
    }

    /// The next rows; behind the last one, the tasks that run, and then whatever comes.
    async fn catch_up(&mut self) -> Result<(), OutputError> {
        let rows = self.hub.session_events(&self.actor, self.session, self.position.seq, ROWS).await?;
        if !rows.is_empty() {
            self.phase = Phase::CatchingUp(rows.into());
            return Ok(());
        }
        // Subscribed first: what becomes of those tasks is among the rows that follow.
        let follower = self.hub.follow_session(&self.actor, self.session, Some(self.position.seq)).await?;
        if let Some(tails) = &mut self.tails {
            for task in self.hub.open_tasks_in(&self.actor, self.session).await? {
                tails.follow(&self.hub, &self.actor, task.id, &self.position).await?;
            }
        }
        self.phase = Phase::Live(Log::of(follower));
        Ok(())
    }

    fn tell_output(&mut self, task: TaskId, fragment: &Fragment) -> Bytes {
        if let Some(tail) = self.tails.as_ref().and_then(|tails| tails.open.get(&task)) {
            self.position.tasks.insert(task, tail.offsets());
        }
        let mut out = Vec::new();
        fragment.write(&mut out, task, &self.position.to_string());
        out.into()
    }

    fn tell_row(&mut self, event: Event) -> Bytes {
        // What is live only has no place in the log to go on behind.
        let live_only = event.seq == 0;
        if !live_only {
            self.position.seq = event.seq;
        }
        let mut out = Vec::new();
        let event = EventView::from(event);
        let id = (!live_only).then(|| self.position.to_string());
        write_event(&mut out, &event.kind, id.as_deref(), &event);
        out.into()
    }
}

impl Source for SessionSource {
    async fn next(&mut self) -> Option<Bytes> {
        note(self.step().await)?
    }
}

/// The tasks whose output is followed.
#[derive(Default)]
struct Tails {
    open: BTreeMap<TaskId, Tail>,
    /// The task that was served last: the next one has its turn.
    last: Option<TaskId>,
}

impl Tails {
    async fn follow(&mut self, hub: &Arc<Hub>, actor: &Actor, task: TaskId, position: &SessionPosition) -> Result<(), OutputError> {
        if let Entry::Vacant(place) = self.open.entry(task) {
            let at = position.tasks.get(&task).copied().unwrap_or_default();
            place.insert(Tail::open(hub, actor, task, at).await?);
        }
        Ok(())
    }

    async fn next_of(&mut self, task: TaskId) -> Result<Option<Fragment>, OutputError> {
        match self.open.get_mut(&task) {
            Some(tail) => tail.next().await,
            None => Ok(None),
        }
    }
}

async fn next_of_any(tails: &mut Option<Tails>) -> Result<Option<(TaskId, Fragment)>, OutputError> {
    let Some(tails) = tails else { return Ok(None) };
    let turn: Vec<TaskId> = {
        let behind = |task: &&TaskId| tails.last.is_none_or(|last| **task > last);
        tails.open.keys().filter(behind).chain(tails.open.keys().filter(|task| !behind(task))).copied().collect()
    };
    for task in turn {
        if let Some(fragment) = tails.next_of(task).await? {
            tails.last = Some(task);
            return Ok(Some((task, fragment)));
        }
    }
    Ok(None)
}

async fn any_changed(tails: &mut Option<Tails>) {
    let changes: Vec<_> = tails.iter_mut().flat_map(|tails| tails.open.values_mut()).map(|tail| Box::pin(tail.changed())).collect();
    if changes.is_empty() {
        return std::future::pending().await;
    }
    select_all(changes).await;
}

/// Which task a row is about, and what has become of it.
pub(super) fn task_news(event: &Event) -> Option<(TaskId, State)> {
    if event.kind != "task" {
        return None;
    }
    let text = |key: &str| event.data.get(key).and_then(serde_json::Value::as_str);
    Some((text("id")?.parse().ok()?, State::from_name(text("state")?)?))
}

/// Behind everything that is there now, also in the output of tasks that run.
///
/// # Errors
/// [`Problem`].
pub(super) async fn position_now(hub: &Arc<Hub>, actor: &Actor, session: SessionId) -> Result<SessionPosition, Problem> {
    let open = hub.open_tasks_in(actor, session).await?;
    let mut position = SessionPosition { seq: hub.last_event(actor, session).await?, ..SessionPosition::default() };
    for task in open {
        let mark = *hub.open_output(actor, task.id).await?.marks().borrow();
        position.tasks.insert(task.id, Offsets { stdout: mark.stdout, stderr: mark.stderr });
    }
    Ok(position)
}
