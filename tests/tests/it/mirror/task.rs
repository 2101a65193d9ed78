//! Commands and the files that they are meant to find.

use std::fs;

use anyhow::{Result, ensure};
use cortex_tests::api::Shell;
use serde_json::Value;

use super::Pair;

#[tokio::test]
async fn a_command_that_is_dispatched_right_after_a_write_finds_what_was_written() -> Result<()> {
    const ROUNDS: usize = 50;
    let pair = Pair::set().await?;
    for round in 0..ROUNDS {
        let text = format!("round {round}");
        pair.hub.put_file(&pair.session, "input", &[], text.clone()).await?;
        let node = if round % 2 == 0 { &pair.one.node } else { &pair.two.node };
        let ran = pair.hub.run(&pair.session, &Shell::script("cat input").on(node)).await?;
        ensure!(ran.stdout == text && !ran.task.workspace_behind, "{text}: {ran:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_command_whose_folder_stays_behind_starts_all_the_same_and_says_so() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, _] = pair.folders();
    pair.hub.put_file(&pair.session, "input", &[], "old").await?;
    pair.same("the file", |tree| tree.len() == 1).await?;
    pair.hub.call::<Value>(reqwest::Method::POST, &pair.api("workspace/pause"), None).await?;
    pair.hub.put_file(&pair.session, "input", &[], "new").await?;
    let ran = pair.hub.run(&pair.session, &Shell::script("cat input").on(&pair.one.node)).await?;
    ensure!(ran.stdout == "old" && ran.task.workspace_behind, "{ran:?}");
    pair.hub.call::<Value>(reqwest::Method::POST, &pair.api("workspace/resume"), None).await?;
    let ran = pair.hub.run(&pair.session, &Shell::script("cat input").on(&pair.one.node)).await?;
    ensure!(ran.stdout == "new" && !ran.task.workspace_behind, "{ran:?}");
    ensure!(fs::read(one.join("input"))? == b"new");
    Ok(())
}
