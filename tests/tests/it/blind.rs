//! A hostile relay between real programs: it gets nothing out, nothing in, and work goes on when it behaves again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use cortex_tests::{
    api::Shell,
    hub::{Hub, HubOptions, fresh_root},
    malice::EvilRelay,
    peer::Peer,
    relay::Relay,
    wait,
};

/// In everything that nobody but hub and nodes may learn. A relay that sees it has seen too much.
const SECRET: &str = "opaque7Qx";
/// For one step while the relay does its worst: loss, damage and chunks that have to be fetched again.
const PATIENCE: Duration = Duration::from_secs(40);

struct Scene {
    evil: EvilRelay,
    hub: Hub,
    one: Peer,
    two: Peer,
    session: String,
    /// Outside of the workspace: each run of a task adds a line.
    runs: PathBuf,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn set(seed: u64) -> Result<Self> {
        let evil = EvilRelay::start(seed)?;
        let root = fresh_root();
        let options = HubOptions { no_relay: true, relays: vec![evil.endpoint.clone()], root: Some(root), ..HubOptions::default() };
        // All packets are to go by the relay.
        let options = HubOptions { settings: serde_json::json!({"network": {"direct": false}}), ..options };
        let hub = Hub::start_with(options).await?;
        let (one, two) = (hub.enrol("one").await?, hub.enrol("two").await?);
        let session = hub.session(&[&one.node, &two.node]).await?.id;
        let folder = tempfile::tempdir()?;
        let runs = folder.path().join("runs");
        Ok(Self { evil, hub, one, two, session, runs, _folder: folder })
    }

    /// A task that leaves a trace of each of its runs, prints a secret and writes one.
    fn task(&self, node: &Peer, name: &str) -> Shell {
        let script = format!(
            "echo {name} >> {}; echo {SECRET} printed by {name}; mkdir -p {SECRET}-dir; echo {SECRET} held by {name} > {SECRET}-dir/{SECRET}-{name}; \
             head -c 300000 /dev/urandom > {SECRET}-dir/noise-{name}",
            self.runs.display()
        );
        Shell::script(script).on(&node.node).env("HIDDEN", SECRET)
    }

    async fn run(&self, node: &Peer, name: &str) -> Result<()> {
        let task = self.hub.dispatch(&self.session, &self.task(node, name)).await?;
        let ran = self.hub.finish(&task.id, PATIENCE).await?;
        ensure!(ran.task.state == "succeeded", "{name}: {:?}", ran.task);
        ensure!(ran.stdout == format!("{SECRET} printed by {name}\n"), "{name} printed {:?}", ran.stdout);
        Ok(())
    }

    /// Waits until both folders hold the same, and all of it.
    async fn alike(&self, names: &[String]) -> Result<()> {
        let folders = [&self.one, &self.two].map(|peer| peer.workspace(&self.session).join(format!("{SECRET}-dir")));
        let look = async || {
            let [here, there] = [files(&folders[0])?, files(&folders[1])?];
            (here == there && here.len() == names.len() * 2).then_some(here)
        };
        let Ok(held) = wait::until("both folders hold the same", PATIENCE, look).await else {
            let names = folders.map(|folder| files(&folder).unwrap_or_default().into_iter().map(|(name, _)| name).collect::<Vec<_>>());
            let (one, two) =
                tokio::try_join!(self.hub.sync_of(&self.session, &self.one.node), self.hub.sync_of(&self.session, &self.two.node))?;
            anyhow::bail!("the folders differ: {names:?}; {one:?}; {two:?}")
        };
        for name in names {
            let text = held.iter().find(|(file, _)| *file == format!("{SECRET}-{name}")).with_context(|| format!("a file of {name}"))?;
            ensure!(text.1 == format!("{SECRET} held by {name}\n").as_bytes(), "{name}'s file was changed");
        }
        Ok(())
    }
}

fn files(folder: &Path) -> Option<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).ok()? {
        let entry = entry.ok()?;
        found.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).ok()?));
    }
    found.sort();
    Some(found)
}

#[tokio::test]
async fn a_hostile_relay_gets_nothing_out_and_nothing_in() -> Result<()> {
    let scene = Scene::set(7).await?;
    let mut names = vec!["first".to_owned()];
    scene.run(&scene.one, "first").await?;
    scene.alike(&names).await?;
    scene.evil.misbehave(true);
    for number in 0..6 {
        let name = format!("under-attack-{number}");
        scene.run(if number % 2 == 0 { &scene.one } else { &scene.two }, &name).await?;
        names.push(name);
    }
    let again = scene.evil.replay_everything().await?;
    scene.evil.misbehave(false);
    eprintln!("{:?}; {again} packets once more; {} bytes seen", scene.evil.deeds(), scene.evil.seen_bytes());
    // It behaves again: work goes on, and everything is where it should be.
    scene.run(&scene.two, "afterwards").await?;
    names.push("afterwards".into());
    scene.alike(&names).await?;
    scene.evil.replay_everything().await?;
    scene.run(&scene.one, "last").await?;
    names.push("last".into());
    scene.alike(&names).await?;

    let ran = fs::read_to_string(&scene.runs)?;
    let mut ran: Vec<&str> = ran.lines().collect();
    ran.sort_unstable();
    names.sort();
    assert_eq!(ran, names, "each task ran once, whatever was replayed");
    let deeds = scene.evil.deeds();
    for (done, what) in [
        (deeds.dropped, "dropped"),
        (deeds.altered, "altered"),
        (deeds.replayed, "replayed"),
        (deeds.reordered, "reordered"),
        (deeds.swapped, "swapped"),
        (deeds.chunks_altered + deeds.chunks_swapped, "wrong chunks"),
    ] {
        assert!(done > 0, "nothing was {what}: this test shows nothing");
    }
    assert!(scene.evil.saw(b"cortex-peer"), "what links say in plain is in what it saw");
    assert!(!scene.evil.saw(SECRET.as_bytes()), "the relay has seen a command, an output, a file's contents or its name");
    Ok(())
}

/// The whole memory of a process that can be read.
fn memory(process: u32) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let memory = fs::File::open(format!("/proc/{process}/mem"))?;
    let mut all = Vec::new();
    for line in fs::read_to_string(format!("/proc/{process}/maps"))?.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).context("a range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        let mut piece = vec![0; usize::try_from((to - from).min(512 << 20))?];
        if memory.read_exact_at(&mut piece, from).is_ok() {
            all.extend(piece);
        }
    }
    Ok(all)
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    let needle = needle.as_bytes();
    bytes.iter().enumerate().any(|(at, byte)| *byte == needle[0] && bytes[at..].starts_with(needle))
}

#[tokio::test]
async fn nothing_of_a_session_is_in_a_relays_memory_or_on_its_disk() -> Result<()> {
    let root = fresh_root();
    let cache = tempfile::tempdir()?;
    let words = ["--cache-dir", cache.path().to_str().context("a path")?];
    let relay = Relay::start_saying(&[&root.public().to_string()], &words).await?;
    let hub = Hub::start_with(HubOptions::behind(&relay, &root)).await?;
    let (one, two) = (hub.enrol("one").await?, hub.enrol("two").await?);
    let session = hub.session(&[&one.node, &two.node]).await?.id;
    let script = format!("echo {SECRET}; mkdir {SECRET}; for i in $(seq 1 50); do seq 1 3000 | sed s/^/{SECRET}/ > {SECRET}/$i; done");
    assert_eq!(hub.run(&session, &Shell::script(script).on(&one.node)).await?.stdout, format!("{SECRET}\n"));
    let there = two.workspace(&session).join(SECRET);
    wait::until("the other node has it", PATIENCE, async || (fs::read_dir(&there).ok()?.count() == 50).then_some(())).await?;
    let kept = cache.path().join("chunks");
    let segments = async || {
        let bytes: Vec<u8> = walk(&kept).iter().flat_map(|path| fs::read(path).unwrap_or_default()).collect();
        (bytes.len() > 1_000).then_some(bytes)
    };
    let on_disk = wait::until("chunks on the relay's disk", PATIENCE, segments).await?;
    assert!(!holds(&on_disk, SECRET));
    let in_memory = memory(relay.process.id())?;
    assert!(holds(&in_memory, &session.replace('-', "")) || holds(&in_memory, "cortex-peer"), "its memory was read");
    assert!(!holds(&in_memory, SECRET));
    assert!(holds(&memory(two.process.id())?, SECRET), "where it may be, it is found");
    // The session is deleted: so is what the relay held of it, also on disk.
    assert!(!walk(&kept).iter().all(|path| !path.to_string_lossy().contains(&session)));
    hub.call::<serde_json::Value>(reqwest::Method::DELETE, &format!("/api/sessions/{session}"), None).await.ok();
    let gone = async || walk(&kept).iter().all(|path| !path.to_string_lossy().contains(&session)).then_some(());
    wait::until("the relay has forgotten the session", Duration::from_secs(5), gone).await
}

#[tokio::test]
async fn a_relay_that_was_away_when_a_session_was_deleted_forgets_it_when_it_is_back() -> Result<()> {
    let root = fresh_root();
    let cache = tempfile::tempdir()?;
    let words = ["--cache-dir", cache.path().to_str().context("a path")?];
    let mut relay = Relay::start_saying(&[&root.public().to_string()], &words).await?;
    let hub = Hub::start_with(HubOptions::behind(&relay, &root)).await?;
    let one = hub.enrol("one").await?;
    let (gone, kept) = (hub.session(&[&one.node]).await?.id, hub.session(&[&one.node]).await?.id);
    for session in [&gone, &kept] {
        hub.run(session, &Shell::script("head -c 400000 /dev/urandom > noise")).await?;
    }
    let on_disk = |session: &str| walk(cache.path()).iter().any(|path| path.to_string_lossy().contains(session));
    wait::until("both are on its disk", PATIENCE, async || (on_disk(&gone) && on_disk(&kept)).then_some(())).await?;
    relay.process.kill9().await?;
    hub.call::<serde_json::Value>(reqwest::Method::DELETE, &format!("/api/sessions/{gone}"), None).await.ok();
    relay.restart().await?;
    wait::until("it has forgotten the one", PATIENCE, async || (!on_disk(&gone)).then_some(())).await?;
    assert!(on_disk(&kept));
    Ok(())
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => found.push(path),
            }
        }
    }
    found
}
