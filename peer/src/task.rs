//! The tasks of this node: which may start, which run, which wait for the hub to collect them.
//!
//! [`Tasks`] is the owner. A task comes in on a stream ([`Tasks::serve`]), passes the [`Gate`], the policy, a free slot and the journal, runs on by itself
//! whatever becomes of the stream, and is kept until the hub has its result. The order of things is what makes it at most once:
//! nothing runs that is not in the journal, and what the journal holds never runs again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cortex_runtime::{clock, keyfile::make_private_dir};
use cortex_wire::{
    id::{HubId, NodeId, SessionId, TaskId},
    key::{Domain, KeyError, PublicKey, SecretKey},
    limits,
    policy::Policy,
    schema::{
        InventoryAnswer, InventoryVerdict, PolicyReport, SandboxPolicy, SecretValue, Signed, TaskInventory, TaskRequest, WorkspacesLeft,
    },
    task::{Gate, Rejection, SequenceWindow},
    text,
};
use prost::Message as _;
use tokio::sync::{oneshot, watch};

use crate::{
    browser::{BrowserOptions, Browsers},
    journal::{Journal, JournalError, Remembered, Started},
    log::{Ending, Log, LogError},
    mirror::Mirror,
    process::{self, Mark, Processes},
    sandbox::Sandbox,
    shell::{
        Stop,
        command::{Place, inherited_environment},
        kept::Shells,
    },
};

mod policy;
mod record;
mod run;
mod stream;

use policy::KeptPolicy;
use record::Task;
pub use stream::first_frame;

/// How many (task, fence) pairs are remembered after the hub has collected them.
const COLLECTED: usize = 4096;

/// Where neither the hub nor the node says how many tasks may run at once.
const DEFAULT_SLOTS: u32 = 64;

/// What [`Tasks::open`] needs.
#[derive(Debug, Clone)]
pub struct TasksOptions {
    /// Journal and output are kept here.
    pub state_dir: PathBuf,
    /// One folder per session in it.
    pub workspace_dir: PathBuf,
    /// Signs results.
    pub node: SecretKey,
    /// The node's own limits, above which the hub cannot go.
    pub ceiling: SandboxPolicy,
    /// For scripts that name no shell.
    pub shell: String,
    /// Names of variables of the peer's environment that tasks see, besides the harmless ones.
    pub environment: Vec<String>,
    /// How much output is kept.
    pub bounds: Bounds,
    /// None: browser actions are refused.
    pub browser: Option<BrowserOptions>,
    /// Where tasks run that are to be confined.
    pub sandbox: Sandbox,
    /// The highest sequence of a policy seen so far, from an earlier start.
    pub policy_sequence: u64,
}

/// How much of each stream of a task is kept, and how far it may run ahead of the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// From the beginning.
    pub head_bytes: u64,
    /// From the end.
    pub tail_bytes: u64,
    /// Printed, and not safe at the hub yet: above it the program is held back while somebody reads.
    pub window_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { head_bytes: limits::OUTPUT_HEAD_BYTES, tail_bytes: limits::OUTPUT_TAIL_BYTES, window_bytes: limits::OUTPUT_WINDOW_BYTES }
    }
}

/// Why the tasks of this node cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    /// A folder cannot be made or read.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// See [`JournalError`].
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// See [`LogError`].
    #[error(transparent)]
    Log(#[from] LogError),
    /// Children cannot be waited for.
    #[error("cannot listen for ended processes: {0}")]
    Signals(io::Error),
}

/// Why a policy is not put in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// [`Tasks::bind`] comes first.
    #[error("no hub is known yet to take a policy from")]
    Unbound,
    /// Not signed by the hub's task key.
    #[error("the policy is not the hub's: {0}")]
    Forged(#[from] KeyError),
    /// An older one than the node has seen.
    #[error("policy {got} is older than {held}, which this node has seen")]
    RolledBack {
        /// Its sequence.
        got: u64,
        /// The highest sequence seen.
        held: u64,
    },
}

/// The tasks of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: SecretKey,
    ceiling: SandboxPolicy,
    place: Place,
    shells: Shells,
    /// The same as it is seen in a sandbox.
    strict_place: Place,
    sandbox: Sandbox,
    bounds: Bounds,
    journal: Journal,
    log: Log,
    kept_policy: KeptPolicy,
    processes: Processes,
    browsers: Option<Browsers>,
    state: Mutex<State>,
    /// How many tasks run; changes with every task that begins or ends.
    running: watch::Sender<u32>,
    /// Keeps the folders in which tasks run.
    mirror: OnceLock<Mirror>,
}

#[derive(Debug)]
struct State {
    gate: Option<Gate>,
    task_key: Option<PublicKey>,
    policy: Option<Policy>,
    policy_sequence: u64,
    /// Why the last policy that came was not put in force.
    policy_problem: Option<String>,
    /// Admitted, and not in the journal yet.
    starting: BTreeMap<TaskId, Starting>,
    tasks: BTreeMap<TaskId, Arc<Task>>,
    collected: Collected,
    draining: bool,
    hub_time: Option<(Instant, i64)>,
}

/// A task on its way into the journal.
#[derive(Debug, Clone, Copy)]
struct Starting {
    fence: u64,
    /// What the hub said of it meanwhile.
    verdict: InventoryVerdict,
}

/// The last fences of tasks that are over and gone.
#[derive(Debug, Default)]
struct Collected {
    fences: HashMap<TaskId, u64>,
    order: VecDeque<TaskId>,
}

impl Collected {
    fn note(&mut self, task: TaskId, fence: u64) {
        if self.fences.insert(task, fence).is_none() {
            self.order.push_back(task);
        }
        if self.order.len() > COLLECTED
            && let Some(oldest) = self.order.pop_front()
        {
            self.fences.remove(&oldest);
        }
    }
}

/// What comes beside a signed task.
struct Beside {
    /// Of the workspace, that its folder is to hold first.
    revision: u64,
    /// What its secret references stand for.
    secrets: Vec<SecretValue>,
}

/// A task that passed every check and holds a slot.
struct Admitted {
    id: TaskId,
    request: TaskRequest,
    policy_hash: Bytes,
    run_timeout: Option<Duration>,
    /// What it may reach when it is confined.
    hosts: Vec<String>,
}

impl Tasks {
    /// Takes up what an earlier start left: finished tasks wait for the hub, those that were running are lost, and what is left of them is ended.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`TasksError`].
    pub fn open(options: TasksOptions) -> Result<Self, TasksError> {
        let scratch_dir = options.state_dir.join("tasks");
        for path in [&scratch_dir, &options.workspace_dir] {
            make_private_dir(path).map_err(|source| TasksError::Folder { path: path.clone(), source })?;
        }
        let workspace_dir = fs::canonicalize(&options.workspace_dir)
            .map_err(|source| TasksError::Folder { path: options.workspace_dir.clone(), source })?;
        let shells_dir = options.state_dir.join("shells");
        let shells = Shells::open(shells_dir.clone()).map_err(|source| TasksError::Folder { path: shells_dir, source })?;
        let (journal, remembered) = Journal::open(&options.state_dir.join("journal"))?;
        let log = Log::open(&options.state_dir.join("log"))?;
        let place = Place {
            workspace_dir,
            scratch_dir,
            shell: options.shell,
            environment: inherited_environment(&options.environment, std::env::vars_os()),
        };
        let strict_place = Place { environment: options.sandbox.environment(&place.environment), ..place.clone() };
        let state = State {
            gate: None,
            task_key: None,
            policy: None,
            policy_sequence: options.policy_sequence,
            policy_problem: None,
            starting: BTreeMap::new(),
            tasks: BTreeMap::new(),
            collected: Collected::default(),
            draining: false,
            hub_time: None,
        };
        let processes = Processes::new().map_err(TasksError::Signals)?;
        let browsers = options.browser.and_then(|browser| Browsers::new(browser, processes.clone()));
        let this = Self(Arc::new(Inner {
            node: options.node,
            ceiling: options.ceiling,
            place,
            shells,
            strict_place,
            sandbox: options.sandbox,
            bounds: options.bounds,
            journal,
            log,
            kept_policy: KeptPolicy::new(&options.state_dir),
            processes,
            browsers,
            state: Mutex::new(state),
            running: watch::Sender::new(0),
            mirror: OnceLock::new(),
        }));
        this.0.take_up(remembered)?;
        Ok(this)
    }

    /// From now on tasks find in their folder what the hub announced, and end when what they wrote is there.
    pub fn set_mirror(&self, mirror: Mirror) {
        let _ = self.0.mirror.set(mirror);
    }

    /// Whose tasks to take. The same hub and nonce again (after a reconnect) keep what was seen. The last good policy of an earlier start is in force until the hub
    /// sends one.
    pub fn bind(&self, hub: HubId, boot_nonce: [u8; 32], task_key: PublicKey) {
        let mut state = self.0.state();
        state.task_key = Some(task_key);
        let same = state.gate.as_ref().is_some_and(|gate| gate.hub == hub && gate.boot_nonce == boot_nonce);
        if !same {
            let node = NodeId::from(self.0.node.public());
            state.gate = Some(Gate { hub, node, boot_nonce, window: SequenceWindow::default() });
        }
        if state.policy.is_none()
            && let Some(policy) = self.0.kept_policy.read(&task_key)
            && policy.sequence >= state.policy_sequence
        {
            state.policy_sequence = policy.sequence;
            state.policy = Some(Policy::new(policy).within(&self.0.ceiling));
        }
    }

    /// The hub's clock, as it just said: deadlines and times in results go by it, and on from there by this machine's monotonic clock.
    pub fn set_hub_time(&self, now_ms: i64) {
        self.0.state().hub_time = Some((Instant::now(), now_ms));
    }

    /// Puts a policy of the hub in force, under this node's ceiling, keeps it for the next start, and returns its sequence.
    ///
    /// # Errors
    /// [`PolicyError`]; the policy before stays in force.
    pub fn set_policy(&self, signed: &Signed) -> Result<u64, PolicyError> {
        let taken = self.take_policy(signed);
        self.0.state().policy_problem = taken.as_ref().err().map(ToString::to_string);
        if taken.is_ok() {
            self.0.kept_policy.keep(signed);
        }
        taken
    }

    fn take_policy(&self, signed: &Signed) -> Result<u64, PolicyError> {
        let mut state = self.0.state();
        let key = state.task_key.ok_or(PolicyError::Unbound)?;
        let policy: SandboxPolicy = key.open(Domain::Policy, signed)?;
        let (got, held) = (policy.sequence, state.policy_sequence);
        if got < held {
            return Err(PolicyError::RolledBack { got, held });
        }
        state.policy_sequence = got;
        state.policy = Some(Policy::new(policy).within(&self.0.ceiling));
        Ok(got)
    }

    /// Which policy is in force, for the hub; none: none yet.
    pub fn policy_report(&self) -> Option<PolicyReport> {
        let state = self.0.state();
        let policy = state.policy.as_ref()?;
        // Both lists together may be longer than a frame; then the hash has to do.
        let effective = Some(policy.rules().clone()).filter(|rules| rules.encoded_len() <= limits::CONTROL_FRAME_BYTES - 4096);
        let problem = text::clean(state.policy_problem.as_deref().unwrap_or_default(), limits::TEXT_BYTES);
        Some(PolicyReport { hash: Bytes::copy_from_slice(&policy.hash()), effective, problem })
    }

    /// Every task the hub may ask about.
    pub fn inventory(&self) -> Vec<TaskInventory> {
        let state = self.0.state();
        let starting = state.starting.iter().map(|(id, starting)| (id, starting.fence, false, false));
        let known = state.tasks.values().map(|task| (&task.id, task.fence, task.result().is_some(), task.lost));
        starting
            .chain(known)
            .map(|(id, fence, finished, lost)| TaskInventory { task_id: Bytes::copy_from_slice(id.as_bytes()), fence, finished, lost })
            .collect()
    }

    /// Does what the hub answered to the inventory.
    pub fn apply(&self, answers: &[InventoryAnswer]) {
        for answer in answers {
            let Ok(id) = TaskId::from_slice(&answer.task_id) else { continue };
            if let Some(starting) = self.0.state().starting.get_mut(&id) {
                starting.verdict = answer.verdict();
            }
            let Some(task) = self.0.known(&id) else { continue };
            match answer.verdict() {
                InventoryVerdict::Cancel => task.stop(cancelled_while_away()),
                InventoryVerdict::Forget => self.0.forget(&task),
                InventoryVerdict::Continue | InventoryVerdict::Unspecified => {}
            }
        }
    }

    /// How many tasks run.
    pub fn running(&self) -> u32 {
        *self.0.running.borrow()
    }

    /// Changes with every task that begins or ends.
    pub fn watch_running(&self) -> watch::Receiver<u32> {
        self.0.running.subscribe()
    }

    /// How many tasks may run at once.
    pub fn slots(&self) -> u32 {
        let state = self.0.state();
        slots(state.policy.as_ref().map_or(&self.0.ceiling, Policy::rules))
    }

    /// How many more tasks may start now.
    pub fn free_slots(&self) -> u32 {
        let state = self.0.state();
        let slots = slots(state.policy.as_ref().map_or(&self.0.ceiling, Policy::rules));
        if state.draining { 0 } else { slots.saturating_sub(state.running()) }
    }

    /// The sequence of the newest policy seen, to be kept for the next start.
    pub fn policy_sequence(&self) -> u64 {
        self.0.state().policy_sequence
    }

    /// The link to the hub came or went. While it is away nobody is held back for it.
    pub fn connected(&self, connected: bool) {
        if !connected {
            self.0.state().tasks.values().for_each(|task| task.detach());
        }
    }

    /// Takes nothing new, gives what runs `grace` to end, then ends it. Returns when nothing runs.
    pub async fn drain(&self, grace: Duration) {
        self.0.state().draining = true;
        let mut running = self.0.running.subscribe();
        if tokio::time::timeout(grace, running.wait_for(|count| *count == 0)).await.is_ok() {
            return;
        }
        for task in self.0.state().tasks.values() {
            task.stop(Stop::Asked("the peer was stopped".into()));
        }
        let _ = running.wait_for(|count| *count == 0).await;
    }

    /// The browsers of this node, if it runs any.
    pub fn browsers(&self) -> Option<&Browsers> {
        self.0.browsers.as_ref()
    }

    /// The node has left these sessions: their browsers end.
    pub fn leave(&self, left: &WorkspacesLeft) {
        let sessions = left.session_ids.iter().filter_map(|id| SessionId::from_slice(id).ok());
        sessions.for_each(|session| self.0.shells.forget(&session));
        if let Some(browsers) = &self.0.browsers {
            browsers.leave(left.session_ids.iter().filter_map(|id| SessionId::from_slice(id).ok()));
        }
    }

    /// Kills every process of every task at once, for a program that ends now. What it ends so is lost at the next start.
    pub fn end_now(&self) {
        for task in self.0.state().tasks.values() {
            if let (Some(pid), None) = (task.pid(), task.result()) {
                for member in self.0.processes.members(pid, Mark::of(&task.id)) {
                    let _ = member.send(rustix::process::Signal::KILL);
                }
            }
        }
        if let Some(browsers) = &self.0.browsers {
            browsers.end_now();
        }
    }

    /// Checks a task and begins it. A caller that is gone before the journal is asked stops it; after that it goes on whether or not anybody waits.
    async fn begin(&self, signed: &Signed, beside: Beside) -> Result<Arc<Task>, Rejection> {
        let admitted = self.0.admit(signed)?;
        let (tell, told) = oneshot::channel();
        let inner = self.0.clone();
        tokio::spawn(async move {
            let id = admitted.id;
            let started = if tell.is_closed() { Err(Rejection::Draining) } else { inner.start(admitted, beside).await };
            match started {
                Ok((task, session, patience, work)) => {
                    let _ = tell.send(Ok(task.clone()));
                    inner.follow(&task, &session, patience, work).await;
                }
                Err(rejection) => {
                    inner.change(|state| {
                        state.starting.remove(&id);
                    });
                    let _ = tell.send(Err(rejection));
                }
            }
        });
        told.await.unwrap_or(Err(Rejection::Draining))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and counts again what runs.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        let running = state.running();
        drop(state);
        self.running.send_replace(running);
        result
    }

    fn known(&self, id: &TaskId) -> Option<Arc<Task>> {
        self.state().tasks.get(id).cloned()
    }

    /// Milliseconds since the epoch by the hub's clock, by this machine's until the hub has spoken.
    fn now_ms(&self) -> i64 {
        self.state().now_ms()
    }

    /// The checks, in their documented order, up to the slot.
    fn admit(&self, signed: &Signed) -> Result<Admitted, Rejection> {
        self.change(|state| {
            let now_ms = state.now_ms();
            let State { gate, task_key, policy, .. } = state;
            let (Some(gate), Some(task_key), Some(policy)) = (gate, task_key, policy) else { return Err(Rejection::StalePolicy) };
            let request = gate.check(signed, task_key, policy, now_ms)?;
            let id = TaskId::from_slice(&request.task_id).map_err(|_| Rejection::Malformed("task id"))?;
            let slots = slots(policy.rules());
            let policy_hash = Bytes::copy_from_slice(&policy.hash());
            let hosts = policy.rules().network.clone();
            let run_timeout = [policy.rules().run_timeout_ms, request.limits.unwrap_or_default().run_timeout_ms];
            let again = state.starting.contains_key(&id) || state.tasks.contains_key(&id);
            if again || state.collected.fences.get(&id).is_some_and(|fence| request.fence <= *fence) {
                return Err(Rejection::Replayed);
            }
            if state.draining {
                return Err(Rejection::Draining);
            }
            // Results that nobody collects count, too: an inventory holds no more.
            if state.running() >= slots || state.tasks.len() + state.starting.len() >= limits::INVENTORY_ENTRIES {
                return Err(Rejection::Busy(slots));
            }
            state.starting.insert(id, Starting { fence: request.fence, verdict: InventoryVerdict::Continue });
            let run_timeout = run_timeout.into_iter().filter(|ms| *ms > 0).min().map(Duration::from_millis);
            Ok(Admitted { id, request, policy_hash, run_timeout, hosts })
        })
    }

    /// The hub has what it wants of the task.
    fn forget(&self, task: &Arc<Task>) {
        self.change(|state| {
            state.tasks.remove(&task.id);
            state.collected.note(task.id, task.fence);
        });
        if task.result().is_some() {
            self.journal.forgotten(&task.id);
            self.remove_output(&task.id);
        } else {
            // Its end finds it gone, and cleans up.
            task.stop(unknown_to_the_hub());
        }
    }

    fn output_paths(&self, id: &TaskId) -> [PathBuf; 2] {
        ["out", "err"].map(|stream| self.place.scratch_dir.join(format!("{id}.{stream}")))
    }

    fn remove_output(&self, id: &TaskId) {
        for path in self.output_paths(id) {
            let _ = fs::remove_file(path);
        }
    }

    /// Restores what the journal remembers.
    fn take_up(&self, remembered: Vec<Remembered>) -> Result<(), TasksError> {
        let mut kept: BTreeSet<OsString> = BTreeSet::new();
        for Remembered { started, result } in remembered {
            let Ok(id) = TaskId::from_slice(&started.task_id) else { continue };
            let paths = self.output_paths(&id);
            kept.extend(paths.iter().filter_map(|path| path.file_name().map(OsString::from)));
            let task = match result {
                Some(result) => Task::finished(id, started.fence, result, &paths, self.bounds),
                None => self.lost(id, &started, &paths),
            };
            let task = task.map_err(|source| TasksError::Folder { path: self.place.scratch_dir.clone(), source })?;
            self.state().tasks.insert(id, Arc::new(task));
        }
        let files = fs::read_dir(&self.place.scratch_dir).into_iter().flatten().flatten();
        files.filter(|file| !kept.contains(&file.file_name())).for_each(|file| {
            let _ = fs::remove_file(file.path());
        });
        Ok(())
    }

    /// A task that ran when the peer died: whether it did its work is unknown.
    fn lost(&self, id: TaskId, started: &Started, paths: &[PathBuf; 2]) -> io::Result<Task> {
        let ended = process::end_leftovers(Mark::of(&id));
        tracing::warn!(task = %id, processes_ended = ended, "the peer died while this task ran; it is reported as lost");
        let totals = paths.each_ref().map(|path| kept_bytes(path, self.bounds));
        let response = record::lost_response(id, started, &self.node.public(), self.now_ms(), totals);
        let result = self.node.seal(Domain::Result, &response);
        self.journal.finished(&id, result.clone());
        self.log.end(response.finished_at_ms, Ending::new(&id, &response));
        Task::finished(id, started.fence, result, paths, self.bounds)
    }
}

impl State {
    fn now_ms(&self) -> i64 {
        let since = |(at, ms): (Instant, i64)| ms + i64::try_from(at.elapsed().as_millis()).unwrap_or(0);
        self.hub_time.map_or_else(clock::now_ms, since)
    }

    fn running(&self) -> u32 {
        let running = self.tasks.values().filter(|task| task.result().is_none()).count() + self.starting.len();
        u32::try_from(running).unwrap_or(u32::MAX)
    }
}

fn cancelled_while_away() -> Stop {
    Stop::Asked("cancelled while this node was away".into())
}

fn unknown_to_the_hub() -> Stop {
    Stop::Asked("the hub does not know this task any more".into())
}

/// How many tasks a policy lets run at once.
fn slots(rules: &SandboxPolicy) -> u32 {
    if rules.task_slots == 0 { DEFAULT_SLOTS } else { rules.task_slots }
}

/// How much of a stream an interrupted spool is known to hold: all of it until the ring came round, its head from then on.
fn kept_bytes(path: &Path, bounds: Bounds) -> u64 {
    let len = fs::metadata(path).map_or(0, |file| file.len());
    if len < bounds.head_bytes + bounds.tail_bytes { len } else { bounds.head_bytes }
}
