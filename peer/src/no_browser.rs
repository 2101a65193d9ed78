//! What stands in for the browser skill in a build without it: settings are read, and there are no browsers.

#![expect(clippy::unused_async, reason = "these are the functions of a peer with browsers")]

use std::{path::PathBuf, sync::Arc};

use cortex_wire::{
    browser::Order,
    id::{SessionId, TaskId},
};
use tokio::sync::watch;

use crate::{
    process::Processes,
    shell::{Ended, Patience, Stop, Streams},
};

#[path = "browser/address.rs"]
mod address;
#[path = "browser/options.rs"]
mod options;
#[path = "browser/outbox.rs"]
mod outbox;

pub use address::{Allowed, Network};
pub use options::{BrowserOptions, LEVEL, LEVEL_BARE, Screen, why_bare};
pub use outbox::Outbox;

/// Why there are no browsers here.
pub const OFF: &str = "this peer was built without the browser skill (cargo feature `browser`)";

/// No browsers: there is no value of this type, so nothing below is ever called.
#[derive(Debug, Clone, Copy)]
pub enum Browsers {}

impl Browsers {
    /// None.
    pub fn new(_: BrowserOptions, _: Processes) -> Option<Self> {
        None
    }

    /// Never called.
    pub fn outbox(&self) -> &Arc<Outbox> {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub fn find(&self) -> Result<PathBuf, String> {
        match *self {}
    }

    /// Never called.
    pub fn level(&self) -> watch::Receiver<Option<&'static str>> {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn settled_level(&self, _: SessionId) -> Result<&'static str, String> {
        match *self {}
    }

    /// Never called.
    pub async fn run(&self, _: SessionId, _: TaskId, _: Order, _: Streams<'_>, _: Patience, _: watch::Receiver<Option<Stop>>) -> Ended {
        match *self {}
    }

    /// Never called.
    pub fn leave(&self, _: impl IntoIterator<Item = SessionId>) {
        match *self {}
    }

    /// Never called.
    pub async fn close_all(&self) {
        match *self {}
    }

    /// Never called.
    pub fn end_now(&self) {
        match *self {}
    }
}
