//! From an admitted task to its signed result.

use std::{os::fd::AsFd as _, sync::Arc, time::Duration};

use bytes::Bytes;
use cortex_runtime::{failpoint, spool::Spool};
use cortex_wire::{
    browser::Order,
    id::{SessionId, TaskId},
    key::Domain,
    limits,
    policy::approval,
    schema::{InventoryVerdict, SandboxMode, SecretValue, ShellTask, TaskRequest, task_request::Kind},
    secret,
    task::Rejection,
    text,
};

use super::{Admitted, Beside, Inner, cancelled_while_away, record::Task, unknown_to_the_hub};
use crate::{
    browser,
    journal::Started,
    log::{Ending, Starting},
    process::Status,
    sandbox::{self, Confined, Failure, Launch},
    shell::{
        Ended, Patience, Report, Running,
        command::{self, Command, ScriptFile},
        kept::Kept,
    },
};

/// What a task does, prepared.
enum Prepared {
    Shell(Box<PreparedShell>),
    /// And how pages will be confined.
    Browser(Box<Order>, &'static str),
}

struct PreparedShell {
    command: Command,
    /// Its walls, when it is to have any.
    launch: Option<Launch>,
    stdin: bool,
    takes_input: bool,
    shell_session: Option<String>,
    secrets: Vec<(String, Bytes)>,
}

/// What a task does, begun.
pub(super) enum Work {
    Shell(Box<Running>),
    Browser(Box<Order>),
}

impl Inner {
    /// Prepares, journals, starts: in this order, so that what can be refused is refused before the journal, and nothing runs without it.
    pub(super) async fn start(&self, admitted: Admitted, beside: Beside) -> Result<(Arc<Task>, SessionId, Patience, Work), Rejection> {
        let session: SessionId = admitted.request.session_id.parse().map_err(|_| Rejection::Malformed("session id"))?;
        let id = admitted.id;
        let behind = match self.mirror.get() {
            Some(mirror) => !mirror.before_task(&session, &id, beside.revision).await,
            None => false,
        };
        let started = self.start_in(session, admitted, behind, &beside.secrets).await;
        if let (Err(_), Some(mirror)) = (&started, self.mirror.get()) {
            mirror.no_task(&session, &id);
        }
        started.map(|(task, patience, work)| (task, session, patience, work))
    }

    /// What can be refused before anything is written down.
    async fn prepare(&self, session: &SessionId, admitted: &Admitted, values: &[SecretValue]) -> Result<Prepared, Rejection> {
        let strict = admitted.request.mode() == SandboxMode::Strict;
        match &admitted.request.kind {
            Some(Kind::Shell(shell)) => {
                self.has_walls(strict).await?;
                let secrets = secret::open(&shell.secrets, values).map_err(|error| cannot_start(error.to_string()))?;
                let beside = command::Beside { kept: self.kept(session, shell), secrets: &secrets };
                let place = if strict { &self.strict_place } else { &self.place };
                let command = command::prepare(shell, session, &admitted.id, place, &beside).map_err(cannot_start)?;
                let launch = strict.then(|| self.confine(&command, &admitted.hosts)).transpose()?;
                let takes_input = shell.stdin || shell.terminal.is_some();
                let shell_session = shell.shell_session.as_ref().map(|kept| kept.name.clone());
                let stdin = shell.stdin;
                Ok(Prepared::Shell(Box::new(PreparedShell { command, launch, stdin, takes_input, shell_session, secrets })))
            }
            Some(Kind::Browser(task)) => {
                let order = Order::parse(&task.order).map_err(|_| Rejection::Malformed("browser action"))?;
                let browsers = self.browsers.as_ref().ok_or_else(|| cannot_start(browser::OFF.to_owned()))?;
                let level = browsers.settled_level(*session).await.map_err(cannot_start)?;
                // Chromium brings its own walls.
                if strict && level != browser::LEVEL {
                    return Err(Rejection::SandboxUnavailable(browser::why_bare().into()));
                }
                Ok(Prepared::Browser(Box::new(order), level))
            }
            None => Err(Rejection::Malformed("kind")),
        }
    }

    async fn start_in(
        &self,
        session: SessionId,
        admitted: Admitted,
        behind: bool,
        values: &[SecretValue],
    ) -> Result<(Arc<Task>, Patience, Work), Rejection> {
        failpoint::at("peer.admitted");
        let prepared = self.prepare(&session, &admitted, values).await?;
        let Admitted { id, request, policy_hash, run_timeout, .. } = admitted;
        let sandbox_level = match &prepared {
            Prepared::Shell(shell) if shell.launch.is_some() => sandbox::STRICT,
            Prepared::Shell(_) => sandbox::PERMISSIVE,
            Prepared::Browser(_, level) => level,
        };
        let started = Started {
            task_id: request.task_id.clone(),
            fence: request.fence,
            at_ms: self.now_ms(),
            policy_hash,
            sandbox_level: sandbox_level.to_owned(),
            subject: Bytes::copy_from_slice(&approval::subject(&request)),
            approval: request.approval.clone().map(Box::new),
        };
        let mut task = self.new_task(&started, &id, &prepared)?;
        task.is_behind = behind;
        let work = match self.record(&id, &request, started).await {
            Ok(log_hash) => {
                failpoint::at("peer.journalled");
                task.log_hash = log_hash;
                self.begin(prepared, &id).await.inspect_err(|rejection| {
                    self.journal.forgotten(&id);
                    self.log.end(self.now_ms(), Ending::not_started(&id, request.fence, &rejection.to_string()));
                })
            }
            Err(rejection) => Err(rejection),
        };
        let work = work.inspect_err(|_| self.remove_output(&id))?;
        failpoint::at("peer.started");
        let task = Arc::new(task);
        if let Work::Shell(running) = &work {
            task.runs_as(running.pid(), running.terminal());
        }
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
        tracing::info!(task = %id, %session, pid = task.pid().map(|pid| pid.as_raw_nonzero().get()), "task started");
        let idle = Some(request.limits.unwrap_or_default().idle_timeout_ms).filter(|ms| *ms > 0).map(Duration::from_millis);
        Ok((task, Patience { run: run_timeout, idle }, work))
    }

    /// Starts what was prepared, and waits for its walls if it is to have any.
    async fn begin(&self, prepared: Prepared, id: &TaskId) -> Result<Work, Rejection> {
        let mut shell = match prepared {
            Prepared::Browser(order, _) => return Ok(Work::Browser(order)),
            Prepared::Shell(shell) => shell,
        };
        let failed = |command: &Command, error| cannot_start(command::explain(command, &error));
        let strict = shell.launch.is_some();
        // Walls bring a group along.
        let group = if strict { Ok(None) } else { self.sandbox.group() };
        let group = group.map_err(|error| cannot_start(format!("it cannot be limited: {error}")))?;
        let started = Running::start(&self.processes, &mut shell.command, id, shell.stdin, shell.launch.take());
        let mut running = started.map_err(|error| failed(&shell.command, error))?;
        if let Some(group) = group {
            running.enter(&self.processes, group);
        }
        match running.up(&self.processes).await {
            Ok(()) => Ok(Work::Shell(Box::new(running))),
            Err(Failure::Wall(reason)) => Err(Rejection::SandboxUnavailable(text::clean(&reason, limits::TEXT_BYTES))),
            Err(Failure::Program(error)) => Err(failed(&shell.command, error)),
        }
    }

    /// A task that is to be confined is refused where a wall is missing.
    async fn has_walls(&self, strict: bool) -> Result<(), Rejection> {
        if !strict {
            return Ok(());
        }
        let level = self.sandbox.level().await;
        if level.level == sandbox::STRICT {
            return Ok(());
        }
        Err(Rejection::SandboxUnavailable(text::clean(&level.missing.join("; "), limits::TEXT_BYTES)))
    }

    fn confine(&self, command: &Command, hosts: &[String]) -> Result<Launch, Rejection> {
        let bytes = |list: &[std::ffi::CString]| list.iter().map(|text| text.to_bytes().to_vec()).collect();
        let confined = Confined {
            path: command.path.to_bytes(),
            argv: bytes(&command.argv),
            environment: bytes(&command.environment),
            workspace: (command.root.as_fd(), &command.root_path),
            folder: &command.folder_path,
            readable: command.script.iter().map(ScriptFile::path).collect(),
            hosts,
            keeps: command.began.is_some(),
        };
        self.sandbox.confine(&confined).map_err(|error| cannot_start(format!("its sandbox cannot be prepared: {error}")))
    }

    /// Returns when both the journal and the log of this machine hold that the task starts: the hash of its record in the log. Both go to the disk at once.
    async fn record(&self, id: &TaskId, request: &TaskRequest, started: Started) -> Result<Bytes, Rejection> {
        let (at_ms, starting) = (started.at_ms, Starting::new(id, request, &started.sandbox_level));
        let (journaled, logged) = tokio::join!(self.journal.started(started), self.log.start(at_ms, starting));
        let unjournaled = journaled.as_ref().err().cloned();
        match (unjournaled, logged) {
            (None, Ok(hash)) => Ok(Bytes::copy_from_slice(&hash)),
            (Some(error), Ok(_)) => {
                self.log.end(at_ms, Ending::not_started(id, request.fence, &error));
                Err(Rejection::Journal(error))
            }
            (None, Err(error)) => {
                self.journal.forgotten(id);
                Err(Rejection::Journal(error))
            }
            (Some(error), Err(_)) => Err(Rejection::Journal(error)),
        }
    }

    fn new_task(&self, started: &Started, id: &TaskId, prepared: &Prepared) -> Result<Task, Rejection> {
        let [stdout, stderr] = self.output_paths(id).map(|path| Spool::create(&path, self.bounds.head_bytes, self.bounds.tail_bytes));
        let spools = stdout.and_then(|stdout| Ok([stdout, stderr?])).map_err(|error| {
            self.remove_output(id);
            cannot_start(format!("the peer cannot keep its output: {error}"))
        })?;
        let task = |stdin| Task::new(*id, started, spools, self.bounds.window_bytes, stdin);
        Ok(match prepared {
            Prepared::Shell(shell) => {
                let mut task = task(shell.takes_input).without(&shell.secrets);
                task.shell_session.clone_from(&shell.shell_session);
                task
            }
            Prepared::Browser(..) => task(false),
        })
    }

    /// What the shell session of a task has kept.
    fn kept(&self, session: &SessionId, shell: &ShellTask) -> Kept {
        let Some(wanted) = &shell.shell_session else { return Kept::default() };
        if wanted.reset {
            self.shells.reset(session, &wanted.name);
        }
        self.shells.load(session, &wanted.name)
    }

    /// Keeps what a command of a shell session leaves, before anybody hears that it has ended.
    fn keep(&self, task: &Task, session: &SessionId, ended: &Ended) {
        let (Some(name), Some(Report { began, said })) = (&task.shell_session, &ended.report) else { return };
        if matches!(ended.exit.status, Status::Code(_)) {
            match self.shells.keep(session, name, began, said) {
                Ok(None) => {}
                Ok(Some(notice)) => task.stderr.note(&notice),
                Err(error) => task.stderr.note(&format!("the shell session stays as it was: {error}")),
            }
        }
    }

    /// Follows a task to its end, keeps the result, and gives it to the hub when the workspace has what the task wrote.
    pub(super) async fn follow(&self, task: &Arc<Task>, session: &SessionId, patience: Patience, work: Work) {
        let ended = match (work, &self.browsers) {
            (Work::Shell(running), _) => running.follow(&self.processes, task.streams(), patience, task.stop_requests()).await,
            (Work::Browser(order), Some(browsers)) => {
                browsers.run(*session, task.id, *order, task.streams(), patience, task.stop_requests()).await
            }
            // It was not prepared then.
            (Work::Browser(_), None) => return,
        };
        failpoint::at("peer.ended");
        self.keep(task, session, &ended);
        let response = task.response(&ended, &self.node.public(), self.now_ms());
        tracing::info!(task = %task.id, state = response.state, "task ended");
        self.log.end(response.finished_at_ms, Ending::new(&task.id, &response));
        let result = self.node.seal(Domain::Result, &response);
        self.change(|state| {
            if state.tasks.contains_key(&task.id) {
                self.journal.finished(&task.id, result.clone());
            }
        });
        failpoint::at("peer.result_ordered");
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
