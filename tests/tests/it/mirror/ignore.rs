//! What is not synced: `.gitignore`, `.cortexignore` over it, nested ones, and rules that change.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use cortex_tests::wait;

use super::{Pair, tree};
use crate::SOON;

#[tokio::test]
async fn what_is_ignored_stays_where_it_is_and_rules_may_change() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    let write = |name: &str, text: &str| -> Result<()> {
        let path = one.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&one))?;
        Ok(fs::write(path, text)?)
    };
    write(".gitignore", "*.log\nbuild/\n")?;
    write(".cortexignore", "!important.log\n")?;
    write("a/.gitignore", "!keep.log\n")?;
    write("sub/.cortexignore", "secret\n")?;
    // A rule that is half written when it is read holds as it is then.
    pair.push().await?;
    let stays = ["x.log", "build/out", "a/other.log", "sub/secret", ".git/HEAD", "a/build/deep/out"];
    let goes = ["important.log", "a/keep.log", "sub/open", "data.tmp", "folder.tmp/inside"];
    stays.into_iter().chain(goes).try_for_each(|name| write(name, name))?;
    wait::until("what is not ignored", SOON, async || goes.iter().all(|name| two.join(name).exists()).then_some(())).await?;
    pair.push().await?;
    let there = tree(&two)?;
    ensure!(stays.iter().all(|name| !there.contains_key(Path::new(name))), "{there:?}");
    ensure!(pair.at_hub().await? == there, "the hub holds what two holds: {:?}", pair.at_hub().await?);
    // A rule that comes: nobody deletes anything, and edits stay where they are.
    write(".gitignore", "*.log\nbuild/\n*.tmp\n")?;
    let hub_has = async |name: &str| pair.hub.file(&pair.session, name).await.is_ok();
    wait::until("the hub lets a file go", SOON, async || (!hub_has("data.tmp").await).then_some(())).await?;
    wait::until("the hub lets a folder go", SOON, async || (!hub_has("folder.tmp/inside").await).then_some(())).await?;
    write("data.tmp", "edited on one")?;
    fs::write(two.join("data.tmp"), "edited on two")?;
    pair.push().await?;
    let both = || Ok::<_, anyhow::Error>((fs::read_to_string(one.join("data.tmp"))?, fs::read_to_string(two.join("data.tmp"))?));
    assert_eq!(both()?, ("edited on one".into(), "edited on two".into()));
    ensure!(one.join("folder.tmp/inside").exists() && two.join("folder.tmp/inside").exists(), "nothing is deleted");
    // And goes: one version wins, the other is kept.
    write(".gitignore", "*.log\nbuild/\n")?;
    let same = || both().ok().filter(|(here, there)| here == there).map(|(here, _)| here);
    let won = wait::until("they are the same again", SOON, async || if hub_has("data.tmp").await { same() } else { None }).await?;
    let lost = if won == "edited on one" { "edited on two" } else { "edited on one" };
    wait::until("the other one is kept", SOON, async || pair.kept_copies().iter().any(|what| what.ends_with(lost)).then_some(())).await?;
    wait::until("the folder too", SOON, async || hub_has("folder.tmp/inside").await.then_some(())).await?;
    // A rule of a nested file that comes later.
    write("sub/.gitignore", "open\n")?;
    wait::until("the hub lets go of a nested one", SOON, async || (!hub_has("sub/open").await).then_some(())).await?;
    ensure!(two.join("sub/open").exists(), "and nobody deletes it");
    Ok(())
}
