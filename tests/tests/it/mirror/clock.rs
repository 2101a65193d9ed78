//! Nodes whose clocks are set, by days, while people work on them.
//!
//! What such a node takes for the time is wrong then. The times of files are the kernel's here, so they jump against it; where they would jump along, `odd` sets them.

use std::time::SystemTime;

use cortex_tests::peer::PeerOptions;
use reqwest::Method;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

const DAY: i64 = 86_400;
/// Of a line in a log: the bytes of its date.
const DATE: usize = "2026-01-01".len();

async fn pair() -> Result<Pair> {
    let hub = Hub::start().await?;
    let peer = |name: &str| PeerOptions { name: name.into(), own_clock: true, ..PeerOptions::default() };
    let (one, two) = (hub.enrol_with(peer("one")).await?, hub.enrol_with(peer("two")).await?);
    let session = hub.session(&[&one.node, &two.node]).await?.id;
    let pair = Pair { hub, session, one, two };
    pair.opened().await?;
    Ok(pair)
}

#[tokio::test]
async fn while_clocks_jump_by_days_all_edits_arrive() -> Result<()> {
    let mut pair = pair().await?;
    let [one, two] = pair.folders();
    let days = [(1, 0), (1, -1), (0, 1), (-1, -1), (0, 0)];
    for (round, (here, there)) in days.into_iter().enumerate() {
        pair.one.set_clock(here * DAY)?;
        pair.two.set_clock(there * DAY)?;
        // One after the other without a pause, and all of one size.
        for edit in 0..30 {
            fs::write(one.join("ticks"), format!("{round} {edit:02}"))?;
            fs::write(two.join("tocks"), format!("{round} {edit:02}"))?;
        }
        // What belongs to the other, in turns, with a time that is wrong by a day or not at all.
        let (folder, now) = (if round % 2 == 0 { &one } else { &two }, SystemTime::now());
        let day = Duration::from_secs(DAY.unsigned_abs());
        for (name, time) in [("yesterday", now - day), ("today", now), ("tomorrow", now + day)] {
            fs::write(folder.join(name), format!("round {round}"))?;
            fs::File::options().write(true).open(folder.join(name))?.set_modified(time)?;
        }
        fs::write(folder.join(format!("new in {round}")), "")?;
        if round > 0 {
            fs::remove_file(folder.join(format!("new in {}", round - 1)))?;
        }
        let right = |tree: &BTreeMap<PathBuf, String>| {
            let is = |name: &str, text: String| tree.get(Path::new(name)).is_some_and(|what| what.ends_with(&text));
            tree.len() == 6
                && ["ticks", "tocks"].iter().all(|name| is(name, format!("{round} 29")))
                && ["yesterday", "today", "tomorrow"].iter().all(|name| is(name, format!("round {round}")))
        };
        let found = pair.same("what was edited", right).await?;
        assert_eq!(pair.at_hub().await?, found);
    }
    ensure!(pair.kept_copies().is_empty(), "nobody was in another's way: {:?}", pair.kept_copies());
    // A node whose clock is wrong leaves and comes back; what it says of it shows that it had another time.
    for days in [1, -1] {
        pair.one.set_clock(days * DAY)?;
        pair.hub.call::<serde_json::Value>(Method::DELETE, &pair.api(&format!("nodes/{}", pair.one.node)), None).await?;
        let closed = |line: &str| line.contains("the workspace was closed").then(|| line[..DATE].to_owned());
        let said = pair.one.process.line("that it was closed", SOON, closed).await?;
        let began = pair.one.process.log()[..DATE].to_owned();
        ensure!(days < 0 || said > began, "it has a clock of its own: {said}, and not {began}");
        fs::write(two.join("meanwhile"), format!("{days:+}"))?;
        pair.hub.attach(&pair.session, &pair.one.node).await?;
        pair.same("it is back", |tree| tree.get(Path::new("meanwhile")).is_some_and(|what| what.ends_with(&format!("{days:+}")))).await?;
    }
    pair.hub.node_is(&pair.one.node, "online", SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_nothing_wait_for_a_day() -> Result<()> {
    let pair = pair().await?;
    let [one, two] = pair.folders();
    mknodat(CWD, two.join("file"), FileType::Fifo, Mode::RWXU, 0)?;
    fs::write(one.join("file"), "1")?;
    let refused = async || {
        let sync = pair.hub.sync_of(&pair.session, &pair.two.node).await.ok()??;
        sync.problems.iter().any(|problem| problem["code"] == "in_the_way").then_some(())
    };
    wait::until("something is in its way", SOON, refused).await?;
    pair.two.set_clock(-DAY)?;
    fs::remove_file(two.join("file"))?;
    pair.same("the file", |tree| tree.len() == 1).await?;
    Ok(())
}

/// A lock's end is the hub's to say, whatever the clocks of nodes say.
#[tokio::test]
async fn a_lock_ends_for_nodes_whose_clocks_are_wrong() -> Result<()> {
    let pair = pair().await?;
    let [one, two] = pair.folders();
    pair.one.set_clock(DAY)?;
    pair.two.set_clock(-DAY)?;
    let lock = serde_json::json!({ "prefix": "d", "lease_ms": 3_000 });
    pair.hub.post::<serde_json::Value>(&pair.api("workspace/lock"), lock).await?;
    for (folder, name) in [(&one, "one"), (&two, "two")] {
        fs::create_dir(folder.join("d"))?;
        fs::write(folder.join("d").join(name), name)?;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    ensure!(pair.at_hub().await?.is_empty(), "it is locked");
    pair.same("both after its end", |tree| tree.len() == 3).await?;
    Ok(())
}
