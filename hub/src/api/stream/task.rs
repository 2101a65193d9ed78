//! One task's stream: its states, and what it prints, until it is final.

use std::sync::Arc;

use axum::body::Bytes;
use cortex_wire::{id::TaskId, task::State};

use super::{Log, session::task_news};
use crate::{
    account::Actor,
    api::{
        position::TaskPosition,
        problem::Problem,
        sse::{Source, write_event},
        tail::{Fragment, Tail},
        view::TaskView,
    },
    hub::Hub,
    record::{Event, Task},
};

/// See the module's documentation.
pub(super) struct TaskSource {
    hub: Arc<Hub>,
    actor: Actor,
    task: TaskId,
    log: Log,
    tail: Tail,
    told: Option<State>,
    /// The task in a state that was not told yet; a final one waits for the output.
    news: Option<Task>,
    /// The log has rows about the task that were not looked into.
    stale: bool,
    ended: bool,
}

impl TaskSource {
    /// From behind this position on.
    ///
    /// # Errors
    /// [`Problem`].
    pub(super) async fn open(hub: &Arc<Hub>, actor: &Actor, id: TaskId, position: TaskPosition) -> Result<Self, Problem> {
        let session = hub.task(actor, id).await?.session;
        // Subscribed first, read then: no change falls in between.
        let log = Log::of(hub.follow_session(actor, session, None).await?);
        let tail = Tail::open(hub, actor, id, position.offsets).await?;
        let now = hub.task(actor, id).await?;
        let told = position.state;
        let news = Some(now).filter(|task| Some(task.state) != told);
        Ok(Self { hub: hub.clone(), actor: actor.clone(), task: id, log, tail, told, news, stale: false, ended: false })
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Problem> {
        while !self.ended {
            while let Ok(event) = self.log.rows.try_recv() {
                self.hear(&event);
            }
            if self.stale {
                let now = self.hub.task(&self.actor, self.task).await?;
                self.news = Some(now).filter(|task| Some(task.state) != self.told);
                self.stale = false;
            }
            if let Some(task) = self.news.take_if(|task| !task.state.is_final()) {
                return Ok(Some(self.tell_state(task)));
            }
            if let Some(fragment) = self.tail.next().await? {
                return Ok(Some(self.tell_output(&fragment)));
            }
            if let Some(task) = self.news.take() {
                self.ended = true;
                return Ok(Some(self.tell_state(task)));
            }
            tokio::select! {
                () = self.tail.changed() => {}
                event = self.log.rows.recv() => match event {
                    Some(event) => self.hear(&event),
                    None => self.ended = true,
                },
            }
        }
        Ok(None)
    }

    fn hear(&mut self, event: &Event) {
        self.stale |= task_news(event).is_some_and(|(task, _)| task == self.task);
    }

    fn position(&self) -> String {
        TaskPosition { offsets: self.tail.offsets(), state: self.told }.to_string()
    }

    fn tell_state(&mut self, task: Task) -> Bytes {
        self.told = Some(task.state);
        let mut out = Vec::new();
        write_event(&mut out, "task", Some(&self.position()), &TaskView::from(task));
        out.into()
    }

    fn tell_output(&self, fragment: &Fragment) -> Bytes {
        let mut out = Vec::new();
        fragment.write(&mut out, self.task, &self.position());
        out.into()
    }
}

impl Source for TaskSource {
    async fn next(&mut self) -> Option<Bytes> {
        match self.step().await {
            Ok(bytes) => bytes,
            Err(problem) => {
                tracing::warn!(code = problem.code(), "a task's stream ended early");
                None
            }
        }
    }
}
