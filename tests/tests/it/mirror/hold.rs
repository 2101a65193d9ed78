//! What a node keeps to itself for a while: edits under another's lock, and deletions that nobody has confirmed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use cortex_tests::{api::problem, files::Sync, wait};
use serde_json::{Value, json};

use super::{Pair, tree};
use crate::SOON;

impl Pair {
    async fn two_says(&self, what: &str, right: impl Fn(&Sync) -> bool) -> Result<Sync> {
        wait::until(what, SOON, async || self.hub.sync_of(&self.session, &self.two.node).await.ok()?.filter(|sync| right(sync))).await
    }

    async fn answer(&self, question: &Value, yes: bool) -> Result<()> {
        let path = self.api(&format!("workspace/nodes/{}/answer", self.two.node));
        self.hub.post::<Value>(&path, json!({ "question": question["id"], "yes": yes })).await.map(drop)
    }
}

const FILES: usize = 30;

/// A pair with the same files on both sides, of which the second has lost all and asks. With the tree as it was, and the question.
async fn asking() -> Result<(Pair, BTreeMap<PathBuf, String>, Value)> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    fs::create_dir(one.join("many"))?;
    for number in 0..FILES {
        fs::write(one.join(format!("many/{number}")), format!("file {number}"))?;
    }
    let whole = pair.same("all files", |tree| tree.len() == FILES + 1).await?;
    fs::rename(two.join("many"), pair.two.home().join("elsewhere"))?;
    let asked = pair.two_says("it asks", |sync| sync.question.is_some()).await?.question.unwrap_or_default();
    Ok((pair, whole, asked))
}

#[tokio::test]
async fn an_edit_under_anothers_lock_waits_for_its_end() -> Result<()> {
    let mut pair = Pair::set().await?;
    let [one, two] = pair.folders();
    fs::create_dir(one.join("locked"))?;
    fs::write(one.join("locked/old"), "old")?;
    pair.same("the folder", |tree| tree.len() == 2).await?;
    let lock: Value = pair.hub.post(&pair.api("workspace/lock"), json!({ "prefix": "locked", "lease_ms": 600_000 })).await?;
    fs::write(two.join("locked/new"), "new")?;
    fs::remove_file(two.join("locked/old"))?;
    pair.two_says("two edits are held", |sync| sync.held == 2).await?;
    fs::write(two.join("free"), "free")?;
    let free = || one.join("free").exists().then_some(());
    wait::until("what is not locked goes on", SOON, async || free()).await?;
    // It is still held when the node has forgotten what it knew, and when the hub has.
    pair.two.process.kill9().await?;
    pair.two.restart()?;
    pair.two_says("two edits are held by another process", |sync| sync.held == 2).await?;
    pair.hub.process.kill9().await?;
    pair.hub.restart().await?;
    pair.two_says("two edits are held after another start of the hub", |sync| sync.held == 2).await?;
    ensure!(one.join("locked/old").exists() && !one.join("locked/new").exists(), "{:?}", tree(&one)?);
    // The holder may write.
    pair.hub.put_file(&pair.session, "locked/mine", &[("cortex-fence", &lock["fence"].to_string())], "mine").await?;
    wait::until("the holder's write", SOON, async || two.join("locked/mine").exists().then_some(())).await?;
    pair.hub.post::<Value>(&pair.api("workspace/unlock"), json!({ "fence": lock["fence"] })).await?;
    let names = ["free", "locked", "locked/mine", "locked/new"];
    pair.same("what was held", |tree| tree.keys().eq(names.map(Path::new))).await?;
    Ok(())
}

#[tokio::test]
async fn much_is_deleted_only_when_somebody_says_yes() -> Result<()> {
    let (mut pair, whole, asked) = asking().await?;
    let [one, two] = pair.folders();
    assert_eq!(tree(&one)?, whole);
    pair.answer(&asked, false).await?;
    assert_eq!(pair.same("everything is back", |tree| tree.len() == FILES + 1).await?, whole);
    fs::rename(two.join("many"), pair.two.home().join("elsewhere again"))?;
    // The hub may show for a moment what was answered.
    pair.two_says("it asks again", |sync| sync.question.as_ref().is_some_and(|question| *question != asked)).await?;
    // Nobody says yes by killing it.
    pair.two.process.kill9().await?;
    pair.two.restart()?;
    assert_eq!(tree(&one)?, whole);
    let answered = async || {
        // The first that asks may be the one that died, as the hub remembers it.
        if let Some(asked) = pair.hub.sync_of(&pair.session, &pair.two.node).await.ok().flatten().and_then(|sync| sync.question) {
            let _ = pair.answer(&asked, true).await;
        }
        tree(&one).is_ok_and(|tree| tree.is_empty()).then_some(())
    };
    wait::until("it asks after its death, and all is deleted", SOON, answered).await?;
    pair.same("on both", |tree| tree.is_empty()).await?;
    Ok(())
}

#[tokio::test]
async fn a_question_keeps_its_number_and_an_answer_to_a_node_that_has_just_gone_is_refused() -> Result<()> {
    let (mut pair, whole, asked) = asking().await?;
    let one = pair.one.workspace(&pair.session);
    let same = |sync: &Sync| sync.question.as_ref() == Some(&asked);
    pair.hub.process.kill9().await?;
    pair.hub.restart().await?;
    pair.two_says("it asks the same after another start of the hub", same).await?;
    pair.two.process.kill9().await?;
    // The hub may believe for a while that it is there.
    let refused = problem(pair.answer(&asked, true).await)?;
    ensure!(refused.status == 409 || (refused.status, refused.code.as_str()) == (503, "node_offline"), "{refused:?}");
    ensure!(tree(&one)? == whole, "nobody has said yes");
    pair.two.restart()?;
    pair.two_says("it asks the same after its own death", same).await?;
    // What the hub shows may still be what was asked before; an answer is acknowledged by whom it is for.
    let taken = async || pair.answer(&asked, true).await.is_ok().then_some(());
    wait::until("the answer is taken", SOON, taken).await?;
    pair.same("all is deleted", |tree| tree.is_empty()).await?;
    Ok(())
}
