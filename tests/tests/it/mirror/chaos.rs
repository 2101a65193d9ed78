//! Everything is killed again and again under people who write, rename and delete on both nodes. Afterwards all agree, and nothing that somebody wrote last is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use cortex_tests::{hub::Hub, relay::Relay, wait};
use serde_json::{Value, json};

use super::{Pair, tree};

/// People write and programs die for this long.
const CHAOS: Duration = Duration::from_secs(7);
/// Then all is well again within this time. A node that connects while its relay dies hears nothing for ten seconds before it tries again.
const HEALED: Duration = Duration::from_secs(15);
/// Between two edits on one node.
const EDIT: Duration = Duration::from_millis(15);
/// Between two deaths, or a death and a start.
const DEATH: Duration = Duration::from_millis(600);

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// Somebody who works in one folder.
struct Writer {
    name: &'static str,
    folder: PathBuf,
    dice: Dice,
    count: u64,
    /// What they wrote last, and did not write over or delete.
    mine: BTreeMap<PathBuf, String>,
}

impl Writer {
    fn new(name: &'static str, folder: PathBuf, seed: u64) -> Self {
        Self { name, folder, dice: Dice(seed), count: 0, mine: BTreeMap::new() }
    }

    fn path(&mut self) -> PathBuf {
        PathBuf::from(format!("d{}/f{}", self.dice.roll(5), self.dice.roll(9)))
    }

    /// One of theirs.
    fn known(&mut self) -> Option<PathBuf> {
        let at = self.dice.roll(self.mine.len().max(1) as u64);
        self.mine.keys().nth(usize::try_from(at).ok()?).cloned()
    }

    fn write(&mut self) -> io::Result<()> {
        let path = self.path();
        let at = self.folder.join(&path);
        self.count += 1;
        let mut content = format!("{} {}\n", self.name, self.count);
        if self.dice.roll(12) == 0 {
            content.push_str(&"more of it\n".repeat(30_000));
        }
        fs::create_dir_all(at.parent().unwrap_or(&self.folder))?;
        if self.dice.roll(2) == 0 {
            fs::write(&at, &content)?;
        } else {
            let new = self.folder.join(format!("new {} {}", self.name, self.count));
            fs::write(&new, &content)?;
            if let Err(error) = fs::rename(&new, &at) {
                // Its folder has gone; then this is where it is.
                self.mine.insert(new.strip_prefix(&self.folder).unwrap_or(&new).to_owned(), content);
                return Err(error);
            }
        }
        self.mine.insert(path, content);
        Ok(())
    }

    fn rename(&mut self) -> io::Result<()> {
        let (Some(from), to) = (self.known(), self.path()) else { return Ok(()) };
        fs::create_dir_all(self.folder.join(to.parent().unwrap_or(&to)))?;
        fs::rename(self.folder.join(&from), self.folder.join(&to))?;
        let content = self.mine.remove(&from);
        self.mine.remove(&to);
        self.mine.extend(content.map(|content| (to, content)));
        Ok(())
    }

    fn rename_folder(&mut self) -> io::Result<()> {
        let (from, to) = (format!("d{}", self.dice.roll(5)), format!("moved by {} {}", self.name, self.count));
        fs::rename(self.folder.join(&from), self.folder.join(&to))?;
        let moved: Vec<PathBuf> = self.mine.keys().filter(|path| path.starts_with(&from)).cloned().collect();
        for path in moved {
            let content = self.mine.remove(&path);
            let path = Path::new(&to).join(path.strip_prefix(&from).unwrap_or(&path));
            self.mine.extend(content.map(|content| (path, content)));
        }
        Ok(())
    }

    fn delete(&mut self) -> io::Result<()> {
        let Some(path) = self.known() else { return Ok(()) };
        fs::remove_file(self.folder.join(&path))?;
        self.mine.remove(&path);
        Ok(())
    }

    /// What another did a moment ago may be in the way: then nothing was done.
    fn work(mut self, stop: &AtomicBool) -> Self {
        while !stop.load(Ordering::Relaxed) {
            let _ = match self.dice.roll(100) {
                0..70 => self.write(),
                70..90 => self.rename(),
                90..93 => self.rename_folder(),
                _ => self.delete(),
            };
            std::thread::sleep(EDIT);
        }
        self
    }
}

/// Kills and starts whatever there is, for a while; at the end everything runs.
async fn kill(pair: &mut Pair, mut relay: Option<&mut Relay>, dice: &mut Dice) -> Result<usize> {
    let begun = Instant::now();
    let mut deaths = 0;
    while begun.elapsed() < CHAOS {
        tokio::time::sleep(DEATH).await;
        deaths += 1;
        match dice.roll(4) {
            0 => {
                pair.hub.process.kill9().await?;
                tokio::time::sleep(DEATH / 3).await;
                pair.hub.restart().await?;
            }
            1 if relay.is_some() => {
                if let Some(relay) = &mut relay {
                    relay.process.kill9().await?;
                    tokio::time::sleep(DEATH / 3).await;
                    relay.restart().await?;
                }
            }
            one_or_two => {
                let peer = if one_or_two == 2 { &mut pair.one } else { &mut pair.two };
                peer.process.kill9().await?;
                tokio::time::sleep(DEATH / 3).await;
                peer.restart()?;
            }
        }
    }
    Ok(deaths)
}

/// Waits until everybody holds the same, and says yes to whoever asks.
async fn heal(pair: &Pair) -> Result<BTreeMap<PathBuf, String>> {
    let [one, two] = pair.folders();
    let healed = wait::until("all hold the same", HEALED, async || {
        let nodes = pair.hub.workspace(&pair.session).await.ok()?.nodes;
        for node in &nodes {
            if let Some(question) = node.sync.as_ref().and_then(|sync| sync.question.clone()) {
                let path = pair.api(&format!("workspace/nodes/{}/answer", node.node_id));
                let _ = pair.hub.post::<Value>(&path, json!({ "question": question["id"], "yes": true })).await;
            }
        }
        let still = nodes.iter().all(|node| node.sync.as_ref().is_some_and(|sync| sync.state == "in_sync"));
        let (here, there) = (tree(&one).ok()?, tree(&two).ok()?);
        let same = still && here == there && pair.at_hub().await.ok()? == here;
        same.then_some(here)
    })
    .await;
    if let Err(error) = healed {
        let (one, two, hub) = (tree(&one)?, tree(&two)?, pair.at_hub().await?);
        for path in one.keys().chain(two.keys()).chain(hub.keys()).collect::<BTreeSet<_>>() {
            let [one, two, hub] = [&one, &two, &hub].map(|tree| tree.get(path).and_then(|what| what.lines().next()));
            if one != two || one != hub {
                eprintln!("{} is on one {one:?}, on two {two:?}, at the hub {hub:?}", path.display());
            }
        }
        return Err(error.context(format!("{:?}", pair.hub.workspace(&pair.session).await?)));
    }
    healed
}

/// Where later changes of the same commit move it.
fn at_the_end(path: &str, changes: &[Value]) -> String {
    changes.iter().filter(|change| change["kind"] == "move").fold(path.to_owned(), |path, change| {
        let (from, to) = (change["path"].as_str().unwrap_or_default(), change["to"].as_str().unwrap_or_default());
        match path.strip_prefix(from) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{to}{rest}"),
            _ => path,
        }
    })
}

/// Everything that is to be found anywhere: in the workspace, in conflicts, in copies on nodes, in history.
async fn found(pair: &Pair, agreed: &BTreeMap<PathBuf, String>) -> Result<BTreeSet<String>> {
    let content = |what: String| what.split_once(" executable=").and_then(|(_, rest)| Some(rest.split_once(' ')?.1.to_owned()));
    let mut found: BTreeSet<String> = agreed.values().cloned().chain(pair.kept_copies()).filter_map(content).collect();
    for conflict in pair.hub.all(&pair.api("workspace/conflicts?all=true")).await? {
        if conflict["kept"]["kind"] == "file" {
            let path = pair.api(&format!("workspace/conflicts/{}/content", conflict["number"]));
            found.insert(pair.hub.request(reqwest::Method::GET, &path).send().await?.error_for_status()?.text().await?);
        }
    }
    for commit in pair.hub.all(&pair.api("workspace/history")).await? {
        let revision = &commit["revision"];
        let shown: Value = pair.hub.get(&pair.api(&format!("workspace/history/{revision}?limit=1000"))).await?;
        let changes = shown["changes"].as_array().context("changes")?;
        for (number, change) in changes.iter().enumerate().filter(|(_, change)| change["file"]["kind"] == "file") {
            let path = at_the_end(change["path"].as_str().unwrap_or_default(), &changes[number + 1..]);
            if let Ok(bytes) = pair.hub.file(&pair.session, &format!("{path}?revision={revision}")).await {
                found.insert(String::from_utf8(bytes)?);
            }
        }
    }
    Ok(found)
}

/// Every change that was ever made, for whoever looks for what was lost.
async fn history(pair: &Pair) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for commit in pair.hub.all(&pair.api("workspace/history")).await? {
        let shown: Value = pair.hub.get(&pair.api(&format!("workspace/history/{}?limit=1000", commit["revision"]))).await?;
        for change in shown["changes"].as_array().into_iter().flatten() {
            let (by, hash) = (&commit["author"]["name"], &change["file"]["hash"]);
            lines.push(format!(
                "{} {by} {} {} to {} {hash} was {}",
                commit["revision"], change["kind"], change["path"], change["to"], change["parent_hash"]
            ));
        }
    }
    Ok(lines)
}

async fn nothing_is_lost(mut pair: Pair, mut relay: Option<Relay>, seed: u64) -> Result<()> {
    let seed = std::env::var("CORTEX_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
    eprintln!("CORTEX_SEED={seed}");
    let [one, two] = pair.folders();
    let stop = Arc::new(AtomicBool::new(false));
    let writers = [Writer::new("one", one, seed), Writer::new("two", two, !seed)].map(|writer| {
        let stop = stop.clone();
        std::thread::spawn(move || writer.work(&stop))
    });
    let killed = kill(&mut pair, relay.as_mut(), &mut Dice(seed.rotate_left(17))).await;
    stop.store(true, Ordering::Relaxed);
    let writers = writers.map(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked")));
    let deaths = killed?;
    let begun = Instant::now();
    let agreed = heal(&pair).await?;
    eprintln!("{deaths} deaths, {} entries, healed in {:?}", agreed.len(), begun.elapsed());
    let found = found(&pair, &agreed).await?;
    for writer in writers {
        let writer = writer?;
        ensure!(writer.count > 50, "{} wrote {} files", writer.name, writer.count);
        let lost: Vec<_> = writer.mine.iter().filter(|(_, content)| !found.contains(*content)).collect();
        let lost: Vec<_> = lost.into_iter().map(|(path, content)| (path, content.lines().next())).collect();
        if !lost.is_empty() {
            for change in history(&pair).await? {
                eprintln!("{change}");
            }
        }
        ensure!(lost.is_empty(), "{} of {} contents of {} are lost: {lost:?}", lost.len(), writer.mine.len(), writer.name);
    }
    // Quiet is quiet: reading everything again finds nothing to say.
    let before = pair.hub.workspace(&pair.session).await?.revision;
    let checked = pair.push().await?;
    for node in checked["nodes"].as_array().context("nodes")? {
        let drift = &node["drift"];
        ensure!(["missing", "extra", "changed"].iter().all(|list| drift[list] == json!([])), "{node}");
    }
    assert_eq!(pair.hub.workspace(&pair.session).await?.revision, before, "something was committed although nobody wrote");
    assert_eq!(heal(&pair).await?, agreed);
    Ok(())
}

#[tokio::test]
async fn what_was_written_last_survives_the_death_of_everything() -> Result<()> {
    nothing_is_lost(Pair::set().await?, None, 7).await
}

#[tokio::test]
async fn what_was_written_last_survives_the_death_of_a_relay_too() -> Result<()> {
    let (hub, relay) = Hub::start_with_relay().await?;
    nothing_is_lost(Pair::at(hub).await?, Some(relay), 11).await
}
