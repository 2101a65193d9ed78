//! Folders and files that the peer's user may not touch, and a disk that takes nothing.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};
use cortex_tests::{
    hub::Hub,
    peer::{Peer, PeerOptions},
    wait,
};
use serde_json::Value;

use super::{Pair, large::Disk};
use crate::SOON;

/// For what is tried again later and later.
const HEALS: Duration = Duration::from_secs(60);

impl Pair {
    /// What the node says is wrong at this path.
    async fn problem_at(&self, peer: &Peer, path: &str) -> Result<Value> {
        let said = async || {
            let sync = self.hub.sync_of(&self.session, &peer.node).await.ok()??;
            sync.problems.into_iter().find(|problem| problem["path"] == path)
        };
        wait::until("the status says what is wrong", Duration::from_secs(20), said).await
    }

    async fn nothing_is_wrong(&self, peer: &Peer) -> Result<()> {
        let quiet = async || self.hub.sync_of(&self.session, &peer.node).await.ok()??.problems.is_empty().then_some(());
        wait::until("nothing is wrong any more", HEALS, quiet).await
    }
}

async fn holds(path: &Path, text: &str) -> Result<()> {
    let there = async || fs::read_to_string(path).is_ok_and(|found| found == text).then_some(());
    wait::until(&format!("{} arrives", path.display()), HEALS, there).await
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

#[tokio::test]
async fn what_may_not_be_written_or_read_is_said_holds_nothing_else_up_and_heals() -> Result<()> {
    let hub = Hub::start().await?;
    let lowly = |name: &str| PeerOptions { name: name.into(), lowly: true, ..PeerOptions::default() };
    let (one, two) = (hub.enrol_with(lowly("one")).await?, hub.enrol_with(lowly("two")).await?);
    let session = hub.session(&[&one.node, &two.node]).await?.id;
    let pair = Pair { hub, session, one, two };
    let [one, two] = pair.folders();
    pair.hub.put_file(&pair.session, "closed/first", &[], "first").await?;
    for folder in [&one, &two] {
        holds(&folder.join("closed/first"), "first").await?;
    }

    set_mode(&two.join("closed"), 0o555)?;
    pair.hub.put_file(&pair.session, "closed/second", &[], "second").await?;
    pair.hub.put_file(&pair.session, "open", &[], "open").await?;
    let problem = pair.problem_at(&pair.two, "closed/second").await?;
    ensure!(problem["code"] == "not_permitted", "{problem}");
    holds(&two.join("open"), "open").await?;
    holds(&one.join("closed/second"), "second").await?;
    set_mode(&two.join("closed"), 0o755)?;
    holds(&two.join("closed/second"), "second").await?;
    pair.nothing_is_wrong(&pair.two).await?;

    // An edit of something that the peer cannot read any more.
    fs::write(one.join("open"), "edited")?;
    holds(&two.join("open"), "edited").await?;
    fs::write(one.join("secret"), "secret")?;
    set_mode(&one.join("secret"), 0)?;
    fs::write(one.join("other"), "other")?;
    holds(&two.join("other"), "other").await?;
    if !two.join("secret").exists() {
        // It was closed before the peer had read it.
        pair.problem_at(&pair.one, "secret").await?;
    }
    set_mode(&one.join("secret"), 0o644)?;
    holds(&two.join("secret"), "secret").await?;
    pair.nothing_is_wrong(&pair.one).await
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_is_said_and_heals_by_itself() -> Result<()> {
    let hub = Hub::start().await?;
    let (one, two) = (hub.enrol("one").await?, hub.enrol("two").await?);
    let disk = Disk::over(&two.home().join("work"), "64m")?;
    let session = hub.session(&[&one.node, &two.node]).await?.id;
    let pair = Pair { hub, session, one, two };
    let [one, two] = pair.folders();
    pair.hub.put_file(&pair.session, "before", &[], "before").await?;
    holds(&two.join("before"), "before").await?;
    disk.remount("ro")?;
    pair.hub.put_file(&pair.session, "before", &[], "after").await?;
    let problem = pair.problem_at(&pair.two, "before").await?;
    ensure!(problem["code"] == "read_only", "{problem}");
    holds(&one.join("before"), "after").await?;
    ensure!(fs::read_to_string(two.join("before"))? == "before");
    disk.remount("rw")?;
    holds(&two.join("before"), "after").await?;
    pair.nothing_is_wrong(&pair.two).await?;
    fs::write(two.join("mine"), "and back")?;
    let arrived = async || pair.hub.file(&pair.session, "mine").await.is_ok_and(|found| found == b"and back").then_some(());
    wait::until("an edit arrives", SOON, arrived).await
}
