//! Times that are not what one expects, a folder that vanishes, and one file that is pushed.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use cortex_tests::wait;
use serde_json::{Value, json};

use super::{Pair, tree};
use crate::SOON;

#[tokio::test]
async fn times_that_lie_hide_no_edit() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    let day = Duration::from_secs(86_400);
    let times = [SystemTime::UNIX_EPOCH, SystemTime::now() - 365 * day, SystemTime::now() + 3_650 * day];
    for (round, time) in times.into_iter().cycle().take(9).enumerate() {
        // The same size and the same time as before, whatever the clock says.
        let text = format!("round {round}");
        fs::write(one.join("file"), &text)?;
        fs::File::options().write(true).open(one.join("file"))?.set_modified(time)?;
        wait::until("the edit", SOON, async || fs::read_to_string(two.join("file")).is_ok_and(|found| found == text).then_some(())).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_folder_that_vanishes_deletes_nothing_and_is_filled_again_when_somebody_says_so() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    fs::create_dir(one.join("d"))?;
    fs::write(one.join("d/f"), "kept")?;
    let whole = pair.same("the files", |tree| tree.len() == 2).await?;
    fs::rename(&two, pair.two.home().join("away"))?;
    let asks = async || pair.hub.sync_of(&pair.session, &pair.two.node).await.ok()??.question;
    let asked = wait::until("it asks", SOON, asks).await?;
    ensure!(tree(&one)? == whole, "nothing is deleted");
    let path = pair.api(&format!("workspace/nodes/{}/answer", pair.two.node));
    pair.hub.post::<Value>(&path, json!({ "question": asked["id"], "yes": true })).await?;
    ensure!(pair.same("the folder is filled again", |tree| tree.len() == 2).await? == whole);
    Ok(())
}

#[tokio::test]
async fn one_file_is_pushed_to_one_node() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, _] = pair.folders();
    fs::write(one.join("file"), "1")?;
    fs::write(one.join("other"), "2")?;
    pair.same("the files", |tree| tree.len() == 2).await?;
    let push = async |body: Value| pair.hub.post::<Value>(&pair.api("workspace/push"), body).await;
    let done = push(json!({ "node_id": pair.two.node, "paths": ["file"], "wait_ms": 15_000 })).await?;
    ensure!(done["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1) && done["nodes"][0]["drift"]["repaired"] == true, "{done}");
    for paths in [json!(["../file"]), json!(["/file"]), json!(vec!["file"; 101])] {
        let refused = cortex_tests::api::problem(push(json!({ "paths": paths })).await)?;
        ensure!(refused.status == 400, "{refused:?}");
    }
    Ok(())
}
