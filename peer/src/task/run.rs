//! From an admitted task to its signed result.

use std::{sync::Arc, time::Duration};

use cortex_runtime::spool::Spool;
use cortex_wire::{
    id::{SessionId, TaskId},
    key::Domain,
    limits,
    schema::{InventoryVerdict, ShellTask, task_request::Kind},
    task::Rejection,
    text,
};

use super::{Admitted, Inner, cancelled_while_away, record::Task, unknown_to_the_hub};
use crate::{
    journal::Started,
    shell::{Patience, Running, command},
};

impl Inner {
    /// Prepares, journals, starts: in this order, so that what can be refused is refused before the journal, and nothing runs without it.
    pub(super) async fn start(&self, admitted: Admitted, revision: u64) -> Result<(Arc<Task>, SessionId, Patience, Running), Rejection> {
        let session: SessionId = admitted.request.session_id.parse().map_err(|_| Rejection::Malformed("session id"))?;
        let id = admitted.id;
        let behind = match self.mirror.get() {
            Some(mirror) => !mirror.before_task(&session, &id, revision).await,
            None => false,
        };
        let started = self.start_in(session, admitted, behind).await;
        if let (Err(_), Some(mirror)) = (&started, self.mirror.get()) {
            mirror.no_task(&session, &id);
        }
        started.map(|(task, patience, running)| (task, session, patience, running))
    }

    async fn start_in(&self, session: SessionId, admitted: Admitted, behind: bool) -> Result<(Arc<Task>, Patience, Running), Rejection> {
        let Admitted { id, request, policy_hash, run_timeout } = admitted;
        let Some(Kind::Shell(shell)) = &request.kind else { return Err(Rejection::Malformed("kind")) };
        let mut command = command::prepare(shell, &session, &id, &self.place).map_err(cannot_start)?;
        let started = Started { task_id: request.task_id.clone(), fence: request.fence, at_ms: self.now_ms(), policy_hash };
        let mut task = self.new_task(&started, &id, shell)?;
        task.is_behind = behind;
        let task = Arc::new(task);
        let journaled = self.journal.started(started).await.map_err(Rejection::Journal);
        let running = journaled.and_then(|()| {
            Running::start(&self.processes, &mut command, &id, shell.stdin).map_err(|error| {
                self.journal.forgotten(&id);
                cannot_start(command::explain(&command, &error))
            })
        });
        let running = running.inspect_err(|_| self.remove_output(&id))?;
        task.runs_as(running.pid());
        self.change(|state| {
            let verdict = state.starting.remove(&id).map(|starting| starting.verdict);
            match verdict {
                // Its end finds it gone, and cleans up.
                Some(InventoryVerdict::Forget) => return task.stop(unknown_to_the_hub()),
                Some(InventoryVerdict::Cancel) => task.stop(cancelled_while_away()),
                _ => {}
            }
            state.tasks.insert(id, task.clone());
        });
        tracing::info!(task = %id, %session, pid = running.pid().as_raw_nonzero().get(), "task started");
        let idle = Some(request.limits.unwrap_or_default().idle_timeout_ms).filter(|ms| *ms > 0).map(Duration::from_millis);
        Ok((task, Patience { run: run_timeout, idle }, running))
    }

    fn new_task(&self, started: &Started, id: &TaskId, shell: &ShellTask) -> Result<Task, Rejection> {
        let [stdout, stderr] = self.output_paths(id).map(|path| Spool::create(&path, self.bounds.head_bytes, self.bounds.tail_bytes));
        let spools = stdout.and_then(|stdout| Ok([stdout, stderr?])).map_err(|error| {
            self.remove_output(id);
            cannot_start(format!("the peer cannot keep its output: {error}"))
        })?;
        Ok(Task::new(*id, started, spools, self.bounds.window_bytes, shell.stdin))
    }

    /// Follows a task to its end, keeps the result, and gives it to the hub when the workspace has what the task wrote.
    pub(super) async fn follow(&self, task: &Arc<Task>, session: &SessionId, patience: Patience, running: Running) {
        let ended = running.follow(&self.processes, task.streams(), patience, task.stop_requests()).await;
        let response = task.response(&ended, &self.node.public(), self.now_ms());
        tracing::info!(task = %task.id, state = response.state, "task ended");
        let result = self.node.seal(Domain::Result, &response);
        self.change(|state| {
            if state.tasks.contains_key(&task.id) {
                self.journal.finished(&task.id, result.clone());
            }
        });
        if let Some(mirror) = self.mirror.get() {
            mirror.after_task(session, &task.id).await;
        }
        let collected = self.change(|state| {
            let collected = !state.tasks.contains_key(&task.id);
            if !collected {
                task.finish(result);
            }
            collected
        });
        if collected {
            self.journal.forgotten(&task.id);
            self.remove_output(&task.id);
        }
    }
}

fn cannot_start(reason: String) -> Rejection {
    Rejection::CannotStart(text::clean(&reason, limits::TEXT_BYTES))
}
