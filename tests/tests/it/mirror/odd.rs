//! Names, links, modes, sizes and times that are not what one expects, and a folder that vanishes.

use std::{
    fs,
    io::{Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use cortex_tests::{hub::Hub, wait};
use serde_json::{Value, json};

use super::{Pair, tree};
use crate::SOON;

#[tokio::test]
async fn odd_names_links_and_modes_are_the_same_everywhere() -> Result<()> {
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    let long = "n".repeat(255);
    let names = ["a b", "line\nbreak", "caf\u{e9}", "cafe\u{301}", "Case", "case", "-rf", "'\"`$(x)", "\u{1f980}", "...", long.as_str()];
    for name in names {
        fs::write(one.join(name), name)?;
    }
    fs::write(one.join("empty"), "")?;
    fs::hard_link(one.join("a b"), one.join("second name"))?;
    for (name, target) in [("dangling", "nowhere/at all"), ("outside", "/etc/passwd"), ("loop", "loop"), ("up", "../../..")] {
        symlink(target, one.join(name))?;
    }
    fs::set_permissions(one.join("case"), fs::Permissions::from_mode(0o444))?;
    let found = pair.same("all of it", |tree| tree.len() == names.len() + 6).await?;
    ensure!(found[Path::new("outside")] == "link to /etc/passwd", "a link is data: {found:?}");
    assert_eq!(pair.at_hub().await?, found);
    // An edit through one name of a file is one of the other name, too; and an executable bit is an edit.
    fs::OpenOptions::new().append(true).open(one.join("second name"))?.write_all(b" and more")?;
    fs::set_permissions(two.join("Case"), fs::Permissions::from_mode(0o755))?;
    fs::remove_file(two.join("loop"))?;
    let both = |tree: &std::collections::BTreeMap<_, String>| {
        ["a b", "second name"].iter().all(|name| tree[Path::new(name)].ends_with("a b and more"))
            && tree[Path::new("Case")].contains("executable=true")
            && !tree.contains_key(Path::new("loop"))
    };
    pair.same("edits of them", both).await?;
    // A file that nobody may write is replaced all the same, and stays so.
    pair.hub.put_file(&pair.session, "case", &[], "replaced").await?;
    pair.same("the read-only file", |tree| tree[Path::new("case")].ends_with("replaced")).await?;
    ensure!(fs::metadata(one.join("case"))?.mode() & 0o777 == 0o444, "{:o}", fs::metadata(one.join("case"))?.mode());
    ensure!(tree(&two)?.len() == names.len() + 5, "nothing beside it");
    Ok(())
}

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
async fn a_folder_that_cannot_be_used_is_said_with_the_reason_until_it_can() -> Result<()> {
    let hub = Hub::start().await?;
    let peer = hub.enrol("one").await?;
    let session = hub.session(&[]).await?.id;
    let folder = peer.workspace(&session);
    fs::create_dir_all(folder.parent().unwrap_or(&folder))?;
    fs::write(&folder, "in its place")?;
    hub.attach(&session, &peer.node).await?;
    let sync = async || hub.sync_of(&session, &peer.node).await.ok()?;
    let failed = async || sync().await.filter(|sync| sync.state == "failed");
    let why = wait::until("that it cannot be used", SOON, failed).await?.problems;
    ensure!(why[0]["message"].as_str().is_some_and(|why| why.contains("cannot use the workspace's folder")), "{why:?}");
    for _ in 0..20 {
        let now = sync().await;
        ensure!(now.as_ref().is_some_and(|now| now.problems == why), "said all the time: {:?}", now.map(|now| now.state));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fs::remove_file(&folder)?;
    wait::until("it is used", Duration::from_secs(40), async || sync().await.filter(|sync| sync.state == "in_sync")).await?;
    Ok(())
}

#[tokio::test]
async fn a_large_sparse_file_needs_little_memory_on_both_sides() -> Result<()> {
    const SIZE: u64 = 256 << 20;
    const MOST: u64 = 120 << 20;
    let pair = Pair::set().await?;
    let [one, two] = pair.folders();
    let mut file = fs::File::create(one.join("sparse"))?;
    file.set_len(SIZE)?;
    for at in [0, SIZE / 3, SIZE - 5] {
        file.seek(std::io::SeekFrom::Start(at))?;
        file.write_all(b"here.")?;
    }
    drop(file);
    let arrived = async || fs::metadata(two.join("sparse")).is_ok_and(|data| data.len() == SIZE).then_some(());
    wait::until("the file", Duration::from_secs(180), arrived).await?;
    ensure!(Command::new("cmp").arg(one.join("sparse")).arg(two.join("sparse")).status()?.success());
    for (who, peak) in
        [("one", pair.one.process.peak_memory()?), ("two", pair.two.process.peak_memory()?), ("hub", pair.hub.process.peak_memory()?)]
    {
        ensure!(peak < MOST, "{who}: {} MiB", peak >> 20);
    }
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
