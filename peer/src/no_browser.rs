//! What stands in for the browser skill in a build without it: nothing is found, nothing runs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use cortex_wire::{
    browser::Order,
    id::{SessionId, TaskId},
    schema::{BrowserEvents, BrowserEventsAck},
};
use tokio::sync::watch;

use crate::{
    process::{Exit, Processes},
    shell::{Ended, Patience, Stop, Streams},
};

/// See the module of the same name with the feature.
#[derive(Debug, Clone)]
pub struct BrowserOptions {
    /// Not looked for.
    pub program: Option<PathBuf>,
    /// Not made.
    pub scratch_dir: PathBuf,
    /// Not used.
    pub workspace_dir: PathBuf,
    /// Not asked.
    pub allowed: Arc<Allowed>,
    /// Not asked.
    pub headless: bool,
    /// Not asked.
    pub idle: Duration,
}

/// Reads nothing.
#[derive(Debug, Clone, Default)]
pub struct Allowed(pub Vec<Network>);

/// Takes everything.
#[derive(Debug, Clone, Copy)]
pub struct Network;

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(_: &str) -> Result<Self, String> {
        Ok(Self)
    }
}

/// Never holds anything.
#[derive(Debug, Default)]
pub struct Outbox(watch::Sender<()>);

impl Outbox {
    /// Never changes.
    pub fn news(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }

    /// Nothing.
    pub fn next(&self) -> Option<BrowserEvents> {
        None
    }

    /// Nothing was sent.
    pub fn stored(&self, _: &BrowserEventsAck) {}
}

/// No browsers.
#[derive(Debug, Clone, Default)]
pub struct Browsers(Arc<Outbox>);

impl Browsers {
    /// None.
    pub fn new(_: BrowserOptions, _: Processes) -> Self {
        Self::default()
    }

    /// Empty.
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.0
    }

    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn find(&self) -> Result<PathBuf, String> {
        Err("this peer was built without the feature `browser`".into())
    }

    /// None.
    pub fn level(&self) -> &'static str {
        ""
    }

    /// Never called: nothing is found.
    pub async fn run(
        &self,
        _: SessionId,
        _: TaskId,
        _: Order,
        streams: Streams<'_>,
        _: Patience,
        _: watch::Receiver<Option<Stop>>,
    ) -> Ended {
        streams.stdout.close();
        streams.stderr.close();
        std::future::ready(Ended { exit: Exit::UNKNOWN, wall: Duration::ZERO, stop: None, descendants_held_pipe: false, left_behind: 0 })
            .await
    }

    /// Nothing to leave.
    pub fn leave(&self, _: impl IntoIterator<Item = SessionId>) {}

    /// Nothing to close.
    pub async fn close_all(&self) {
        std::future::ready(()).await;
    }

    /// Nothing to end.
    pub fn end_now(&self) {}
}
