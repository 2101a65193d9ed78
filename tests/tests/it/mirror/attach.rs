//! Nodes that leave and come back, sessions beside each other, sessions that end.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use cortex_tests::{hub::Hub, wait};
use reqwest::Method;
use serde_json::Value;

use super::{Pair, tree};
use crate::SOON;

impl Pair {
    async fn detach_two(&self) -> Result<()> {
        self.hub.call::<Value>(Method::DELETE, &self.api(&format!("nodes/{}", self.two.node)), None).await?;
        let state = self.two.home().join(format!("state/mirror/{}.redb", self.session));
        wait::until("the node has forgotten the session", SOON, async || (!state.exists()).then_some(())).await
    }
}

#[tokio::test]
async fn a_node_that_is_detached_keeps_its_files_and_is_united_when_it_comes_back() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    for name in ["shared", "gone on one", "gone on two", "quiet"] {
        fs::write(two.join(name), format!("{name} at first"))?;
    }
    let before = pair.same("all files", |tree| tree.len() == 4).await?;
    pair.detach_two().await?;
    assert_eq!(tree(&two)?, before, "the files stay");
    fs::write(two.join("shared"), "written on two")?;
    fs::write(two.join("new on two"), "new on two")?;
    fs::remove_file(two.join("gone on two"))?;
    fs::write(one.join("shared"), "written on one")?;
    fs::write(one.join("new on one"), "new on one")?;
    fs::remove_file(one.join("gone on one"))?;
    wait::until("the hub has it", SOON, async || {
        let files = pair.hub.files(&pair.session).await.ok()?;
        let has = |name| files.iter().any(|file| file.path == name);
        (has("new on one") && !has("gone on one")).then_some(())
    })
    .await?;
    ensure!(!two.join("new on one").exists(), "what came after the detach is not here");
    pair.hub.attach(&pair.session, &pair.two.node).await?;
    let found = pair.same("both in one", |tree| tree.len() == 6).await?;
    for name in ["new on one", "new on two", "gone on one", "gone on two", "quiet"] {
        ensure!(found.contains_key(Path::new(name)), "{name} is missing: {found:?}");
    }
    assert_eq!(found[Path::new("shared")], "file executable=false written on one");
    let kept = pair.kept_copies();
    ensure!(kept.iter().any(|what| what.ends_with("written on two")), "the version that lost is kept: {kept:?}");
    let conflicts = pair.hub.all(&pair.api("workspace/conflicts")).await?;
    ensure!(conflicts.iter().any(|conflict| conflict["path"] == "shared"), "{conflicts:?}");
    assert_eq!(pair.at_hub().await?, found);
    Ok(())
}

#[tokio::test]
async fn a_node_that_comes_back_again_and_again_loses_none_of_its_edits() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    for round in 0..3 {
        fs::write(two.join("mine"), format!("round {round}"))?;
        fs::write(two.join(format!("new {round}")), "new")?;
        pair.same("this round's files", |tree| {
            tree.get(Path::new("mine")).is_some_and(|what| what.ends_with(&format!("round {round}"))) && tree.len() == round + 2
        })
        .await?;
        pair.detach_two().await?;
        // Taken away while two is not there: it is two's to bring it back.
        fs::remove_file(one.join("mine"))?;
        wait::until("the hub has let it go", SOON, async || pair.hub.file(&pair.session, "mine").await.err().map(drop)).await?;
        pair.hub.attach(&pair.session, &pair.two.node).await?;
        pair.same("it is back", |tree| tree.contains_key(Path::new("mine"))).await?;
    }
    Ok(())
}

#[tokio::test]
async fn two_sessions_on_one_node_stay_apart() -> Result<()> {
    let hub = Hub::start().await?;
    let node = hub.enrol("machine").await?;
    let sessions = [hub.session(&[&node.node]).await?.id, hub.session(&[&node.node]).await?.id];
    for session in &sessions {
        let folder = node.workspace(session);
        wait::until("the workspace's folder", SOON, async || folder.join(".cortex").is_dir().then_some(())).await?;
        fs::write(folder.join("same name"), format!("of {session}"))?;
        fs::write(folder.join(session), "only here")?;
    }
    for session in &sessions {
        let mine = async || {
            let files = hub.files(session).await.ok()?;
            (files.len() == 2).then_some(files)
        };
        let files = wait::until("both files of a session", SOON, mine).await?;
        ensure!(files.iter().any(|file| file.path == *session), "{files:?}");
        assert_eq!(hub.file(session, "same name").await?, format!("of {session}").into_bytes());
    }
    hub.call::<Value>(Method::DELETE, &format!("/api/sessions/{}/files/same%20name", sessions[0]), None).await?;
    let gone = node.workspace(&sessions[0]).join("same name");
    wait::until("it is gone", SOON, async || (!gone.exists()).then_some(())).await?;
    assert_eq!(fs::read_to_string(node.workspace(&sessions[1]).join("same name"))?, format!("of {}", sessions[1]));
    Ok(())
}
