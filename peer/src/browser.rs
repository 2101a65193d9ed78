//! The browser skill: one Chromium for each session that asks for it, driven over a pipe.
//!
//! ```text
//! order ─▶ Browsers ─▶ running::Browser ─▶ action ─▶ page ─▶ transport ─▶ Chromium ─▶ proxy ─▶ network
//!             │ one per session   ▲                                 │        └─▶ downloads ─▶ workspace
//!             ▼                   └────── state ◀── events ◀────────┘
//!       answer (stdout), bytes (stderr)      └─▶ outbox ─▶ hub
//! ```
//! | module | answers for |
//! | --- | --- |
//! | [`transport`] | commands, answers and events over two pipes |
//! | [`running`] | a browser's life: process, folder, end |
//! | [`state`] | what is known of tabs, frames, dialogs, downloads, requests |
//! | [`page`], [`snapshot`] | elements, and pages as text |
//! | [`action`] | from an order to its answer |
//! | [`options`], [`address`], [`proxy`] | how browsers are run, and what may be connected to |
//! | [`download`] | files into the workspace |
//! | [`outbox`] | events on their way to the hub |
//!
//! A browser belongs to a session. It starts with the first action, keeps its tabs and logins between actions, and ends with its profile when it was not used for a while, when the node leaves the
//! session, and with the peer. What a killed peer leaves of it, the next start removes.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cortex_runtime::keyfile::make_private_dir;
use cortex_wire::{
    browser::{Action, Order},
    id::{SessionId, TaskId},
    text,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    capabilities,
    process::{Exit, Processes, Status},
    shell::{Ended, Patience, Stop, Streams},
};

mod action;
mod address;
mod download;
mod options;
mod outbox;
mod page;
mod proxy;
mod running;
mod snapshot;
mod state;
mod transport;

pub use address::{Allowed, Network};
pub use options::{BrowserOptions, LEVEL, LEVEL_BARE, Screen, why_bare};
pub use outbox::Outbox;

use running::Browser;

/// The name of our world in pages.
const WORLD: &str = "cortex";
/// What runs in it.
const SCRIPT: &str = include_str!("browser/page.js");
/// Why there are no browsers here, when there are none.
pub const OFF: &str = "browser actions are switched off on this node (browser.enabled in peer.yaml)";
/// Why a window cannot be shown.
const NO_SCREEN: &str = "the browser is to have a window, and the peer knows no screen: start the peer in a desktop session (with DISPLAY or WAYLAND_DISPLAY in its environment), \
     or set browser.headless: true in peer.yaml";
/// Browsers of one node at a time.
const BROWSERS: usize = 16;

/// Why an action did not work.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Stable.
    pub code: String,
    /// For people.
    pub message: String,
    /// Candidates, or what was done before.
    pub more: Option<Value>,
    /// A few lines of the page.
    pub snapshot: Option<String>,
}

impl Fault {
    fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), more: None, snapshot: None }
    }

    fn navigated() -> Self {
        Self::new("navigated", "the page was exchanged for another one meanwhile")
    }

    /// A world that is gone is a page that is gone.
    fn of_context(self) -> Self {
        let gone = [
            "uniqueContextId not found",
            "Cannot find context",
            "context was destroyed",
            "Promise was collected",
            "Inspected target navigated",
            "Session with given id not found",
        ];
        if self.code == "refused" && gone.iter().any(|gone| self.message.contains(gone)) { Self::navigated() } else { self }
    }

    fn put_into(self, answer: &mut Value) {
        answer["code"] = text::clean(&self.code, 64).into();
        answer["message"] = text::clean(&self.message, 2_000).into();
        if let Some(more) = self.more {
            answer["value"] = if more.is_array() { json!({ "candidates": more }) } else { more };
        }
        if let Some(snapshot) = self.snapshot {
            answer["snapshot"] = snapshot.into();
        }
    }
}

impl From<transport::CdpError> for Fault {
    fn from(error: transport::CdpError) -> Self {
        match error {
            transport::CdpError::Gone => {
                Self::new("browser_crashed", "the browser has ended; the next action starts a new one, with an empty profile")
            }
            transport::CdpError::Refused(reason) => Self::new("refused", text::clean(&reason, 400)),
        }
    }
}

/// The browsers of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Browsers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: BrowserOptions,
    processes: Processes,
    outbox: Arc<Outbox>,
    sessions: Mutex<HashMap<SessionId, Arc<Place>>>,
    level: watch::Sender<Option<&'static str>>,
}

/// Where a session's browser is, or will be.
#[derive(Debug, Default)]
struct Place {
    starting: tokio::sync::Mutex<()>,
    browser: Mutex<Option<Arc<Browser>>>,
}

impl Place {
    fn browser(&self) -> MutexGuard<'_, Option<Arc<Browser>>> {
        self.browser.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Browsers {
    /// Removes what an earlier start left.
    pub fn new(options: BrowserOptions, processes: Processes) -> Option<Self> {
        if let Err(error) = make_private_dir(&options.scratch_dir) {
            tracing::warn!(%error, "the folder for browsers cannot be made");
        }
        running::end_leftovers(&options.scratch_dir);
        let level = watch::Sender::new(rustix::process::geteuid().is_root().then_some(LEVEL_BARE));
        Some(Self(Arc::new(Inner { options, processes, outbox: Arc::default(), sessions: Mutex::default(), level })))
    }

    /// What happened, for the hub.
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.0.outbox
    }

    /// The program.
    ///
    /// # Errors
    /// What to do when there is none, or no screen for its window.
    pub fn find(&self) -> Result<PathBuf, String> {
        let none = "no browser was found on this node; install Chromium (Debian: apt install chromium) or name it in peer.yaml under browser.program";
        if self.0.options.screen.as_ref().is_some_and(|screen| !screen.is_named()) {
            return Err(NO_SCREEN.into());
        }
        match &self.0.options.program {
            Some(program) if program.is_file() => Ok(program.clone()),
            Some(program) => Err(format!("there is no browser at {}; correct browser.program in peer.yaml", program.display())),
            None => capabilities::find_browser().ok_or_else(|| none.to_owned()),
        }
    }

    /// How pages are confined here. Chromium itself finds out whether it can, so it is not known before it was started once, except for root.
    pub fn level(&self) -> watch::Receiver<Option<&'static str>> {
        self.0.level.subscribe()
    }

    /// The same, found out if it is not known yet, by starting the session's browser.
    ///
    /// # Errors
    /// Why there is no browser.
    pub async fn settled_level(&self, session: SessionId) -> Result<&'static str, String> {
        self.find()?;
        let known = *self.0.level.borrow();
        match known {
            Some(level) => Ok(level),
            None => self.browser(session).await.map(|browser| browser.level()).map_err(|fault| fault.message),
        }
    }

    fn place(&self, session: SessionId) -> Arc<Place> {
        self.sessions().entry(session).or_default().clone()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Place>>> {
        self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's browser, started if there is none that lives. Whoever waits for it may go away; it starts all the same.
    async fn browser(&self, session: SessionId) -> Result<Arc<Browser>, Fault> {
        let known = self.place(session).browser().clone();
        if let Some(browser) = known.filter(|browser| browser.is_alive()) {
            return Ok(browser);
        }
        let this = self.clone();
        let starting = tokio::spawn(async move { this.start(session).await });
        starting.await.unwrap_or_else(|_| Err(Fault::new("no_browser", "the browser could not be started")))
    }

    async fn start(&self, session: SessionId) -> Result<Arc<Browser>, Fault> {
        let place = self.place(session);
        let _starting = place.starting.lock().await;
        let known = place.browser().clone();
        if let Some(browser) = known {
            if browser.is_alive() {
                return Ok(browser);
            }
            browser.close().await;
            *place.browser() = None;
        }
        let live = self.sessions().values().filter(|place| place.browser().is_some()).count();
        if live >= BROWSERS {
            return Err(Fault::new("too_many_browsers", "16 browsers run on this node; close one with the action `close`"));
        }
        let browser = self.start_confined(session).await?;
        *place.browser() = Some(browser.clone());
        self.used(session, &browser);
        tracing::info!(%session, browser = browser.id, level = browser.level(), "browser started");
        Ok(browser)
    }

    /// With Chromium's own sandbox, if it was not found before that it has none here. What was found holds for all that follow, so that what is said of a task before it begins is true when it runs.
    async fn start_confined(&self, session: SessionId) -> Result<Arc<Browser>, Fault> {
        let program = self.find().map_err(|reason| Fault::new("no_browser", reason))?;
        let start = |is_bare| Browser::start(&self.0.options, &program, &self.0.processes, &self.0.outbox, session, is_bare);
        let known = *self.0.level.borrow();
        let started = match start(known == Some(LEVEL_BARE)).await {
            Err(fault) if known.is_none() && fault.message.contains("sandbox") => {
                tracing::warn!("Chromium cannot sandbox itself on this machine; it is started without");
                start(true).await
            }
            started => started,
        };
        // One that could and cannot any more is tried anew the next time.
        let level = started.as_ref().ok().map(|browser| browser.level());
        if known != Some(LEVEL_BARE) && known != level {
            self.0.level.send_replace(level);
        }
        started
    }

    /// Runs an order to its answer, which goes to standard output; pictures and the like go to standard error.
    pub async fn run(
        &self,
        session: SessionId,
        task: TaskId,
        order: Order,
        streams: Streams<'_>,
        patience: Patience,
        mut stop: watch::Receiver<Option<Stop>>,
    ) -> Ended {
        let began = tokio::time::Instant::now();
        let run = self.answer(session, task, &order, streams);
        tokio::pin!(run);
        let limit = async {
            match patience.run {
                Some(limit) => {
                    tokio::time::sleep(limit).await;
                    Stop::RunTimeout(limit)
                }
                None => std::future::pending().await,
            }
        };
        let asked = async {
            let why = stop.wait_for(Option::is_some).await.map(|why| why.clone());
            match why {
                Ok(why) => why.unwrap_or(Stop::Asked(String::new())),
                Err(_) => std::future::pending().await,
            }
        };
        let (code, stop) = tokio::select! {
            answer = &mut run => {
                let worked = answer["ok"] == Value::Bool(true);
                streams.stdout.append(&action::encode(&answer));
                (i32::from(!worked), None)
            }
            stop = asked => (1, Some(stop)),
            stop = limit => (1, Some(stop)),
        };
        if stop.is_some() {
            self.interrupt(session, task).await;
        }
        streams.stdout.close();
        streams.stderr.close();
        Ended {
            report: None,
            exit: Exit { status: Status::Code(code), ..Exit::UNKNOWN },
            wall: began.elapsed(),
            stop,
            descendants_held_pipe: false,
            left_behind: 0,
        }
    }

    async fn answer(&self, session: SessionId, task: TaskId, order: &Order, streams: Streams<'_>) -> Value {
        let deadline = Instant::now() + Duration::from_millis(order.timeout_ms());
        if order.action == Action::Close {
            self.close(session).await;
            return json!({ "ok": true, "action": "close" });
        }
        let failed = |fault: Fault| {
            let mut answer = json!({ "ok": false, "action": order.action.name() });
            fault.put_into(&mut answer);
            answer
        };
        let browser = match self.browser(session).await {
            Ok(browser) => browser,
            Err(fault) => return failed(fault),
        };
        let Ok(turn) = tokio::time::timeout_at(deadline.into(), browser.turn.lock()).await else {
            return failed(Fault::new("timed_out", "another action of this session took all the time"));
        };
        let answer = action::Turn { browser: &browser, order, task, artifacts: streams.stderr, deadline, tab: 0 }.run().await;
        drop(turn);
        self.used(session, &browser);
        answer
    }

    /// Somebody gave up on a task: what it does in the browser ends now.
    async fn interrupt(&self, session: SessionId, task: TaskId) {
        let Some(browser) = self.place(session).browser().clone() else { return };
        let (is_running, tab) = {
            let state = browser.state();
            (state.task == Some(task), state.current)
        };
        if is_running {
            action::interrupt(&browser, tab).await;
            browser.state().task = None;
        }
        self.used(session, &browser);
    }

    /// Closes the browser when it is not used again for a while.
    fn used(&self, session: SessionId, browser: &Arc<Browser>) {
        let now = Instant::now();
        *browser.used.lock().unwrap_or_else(PoisonError::into_inner) = now;
        let (this, browser, idle) = (self.clone(), Arc::downgrade(browser), self.0.options.idle);
        tokio::spawn(async move {
            tokio::time::sleep(idle).await;
            let Some(browser) = browser.upgrade() else { return };
            let is_idle = *browser.used.lock().unwrap_or_else(PoisonError::into_inner) == now && browser.turn.try_lock().is_ok();
            if is_idle {
                tracing::info!(%session, "a browser that nobody uses is closed");
                drop(browser);
                this.close(session).await;
            }
        });
    }

    /// Ends a session's browser and forgets its profile.
    pub async fn close(&self, session: SessionId) {
        let Some(place) = self.sessions().get(&session).cloned() else { return };
        let _starting = place.starting.lock().await;
        let browser = place.browser().take();
        if let Some(browser) = browser {
            browser.close().await;
        }
    }

    /// The node has left these sessions.
    pub fn leave(&self, sessions: impl IntoIterator<Item = SessionId>) {
        for session in sessions {
            let this = self.clone();
            tokio::spawn(async move {
                this.close(session).await;
                this.sessions().remove(&session);
            });
        }
    }

    /// Ends all of them.
    pub async fn close_all(&self) {
        let sessions: Vec<SessionId> = self.sessions().keys().copied().collect();
        let closing: Vec<_> = sessions.into_iter().map(|session| self.close(session)).collect();
        for close in closing {
            close.await;
        }
    }

    /// Kills all of them at once, for a program that ends now.
    pub fn end_now(&self) {
        for place in self.sessions().values() {
            if let Some(browser) = place.browser().as_ref() {
                browser.kill();
            }
        }
    }
}
