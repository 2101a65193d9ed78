//! Workspaces: how soon a tree is the same elsewhere, and what that costs. Beside rsync on the same trees in the same run.
//!
//! Two peers and a hub with its relay, all on loopback in a network of their own, so that the interface's counters show every byte that any of them sent. `up` is node to hub, `down` hub to
//! node; steps that begin on one node are over when the other node's files are what they should be, which is two hops where rsync has one.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Bench, Setting};
use crate::{
    contest::Samples,
    corpus::{self, Numbers, Sources},
    http::Client,
    interrupt, machine,
    other::{
        rsync::{self, Rsync},
        ssh::{self, Ssh},
    },
    report::{Metric, Report, Target},
    stack::{Hub, Peer, free_port},
};

pub const BENCH: Bench = Bench {
    name: "mirror",
    what: "a workspace that is the same on hub and nodes",
    against: &[rsync::NAME, ssh::NAME],
    journalled: true,
    run,
};

/// Of the bytes that are copied, what both sides need of the machine's memory.
const MEMORY: u64 = 3;
/// For anything to arrive.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// The same where a look is a request: a harness that asks all the time takes a core from what it measures.
const ASK_AGAIN: Duration = Duration::from_millis(10);

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let folder = setting.folder();
    let rsync = if setting.against(rsync::NAME) { report.found(Rsync::start(folder)?) } else { None };
    let corpora = folder.join("corpora");
    let sources = Sources::find()?;
    let files = setting.pick(20_000, 4_000);
    sources.small(&corpora.join("small"), files)?;
    let mut rig = Rig::new(folder)?;
    memory(setting, report, &mut rig)?;
    let mut bench = Sides { rig: &mut rig, rsync: rsync.as_ref(), folder: folder.to_owned() };
    small(setting, report, &mut bench, &corpora.join("small"))?;
    latency(setting, report, bench.rig)?;
    sources.mixed(&corpora.join("mixed"), setting.pick(1.0, 0.2))?;
    mixed(setting, report, &mut bench, &corpora.join("mixed"))?;
    fs::remove_dir_all(corpora.join("mixed"))?;
    corpus::large(&corpora.join("large"), setting.pick(1 << 30, 128 << 20))?;
    large(setting, report, &mut bench, &corpora.join("large"))?;
    Ok(fs::remove_dir_all(corpora.join("large"))?)
}

/// A hub with its relay, and two peers.
struct Rig {
    hub: Hub,
    client: Client,
    peers: [(Peer, PathBuf); 2],
}

/// Seconds, and bytes that crossed the network.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    seconds: f64,
    bytes: f64,
}

/// What several runs of one step cost.
#[derive(Debug, Default)]
struct Costs(Vec<Cost>);

impl Costs {
    fn seconds(&self) -> Samples {
        self.0.iter().map(|cost| cost.seconds).collect()
    }

    fn bytes(&self) -> Samples {
        self.0.iter().map(|cost| cost.bytes).collect()
    }

    /// Of two ways, the dearer.
    fn worse(self, other: Self) -> Self {
        if self.seconds().median() >= other.seconds().median() { self } else { other }
    }
}

fn measured(run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Cost> {
    interrupt::check()?;
    let (before, since) = (machine::loopback_bytes(), Instant::now());
    run()?;
    let seconds = since.elapsed().as_secs_f64();
    let bytes = machine::loopback_bytes().zip(before).map_or(f64::NAN, |(after, before)| (after - before) as f64);
    Ok(Cost { seconds, bytes })
}

/// As [`measured`], for that many bytes of files, from a machine at rest: what was written before is no part of it. Ours brings files to the disk, rsync leaves that to the system.
fn measured_at_rest(bytes: u64, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Cost> {
    rustix::fs::sync();
    machine::wake_memory(MEMORY * bytes);
    measured(run)
}

/// Waits until `done`.
fn until(what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let since = Instant::now();
    while !done()? {
        interrupt::check()?;
        ensure!(since.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

impl Rig {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let relay = format!("127.0.0.1:{}", free_port()?);
        let hub = Hub::start(folder, &folder.join("hub"), &["--relay-listen", &relay])?;
        let client = hub.connect()?;
        let join = |name: &str| -> anyhow::Result<_> {
            let folder = folder.join(name);
            Ok((Peer::join(&hub, &folder)?, folder.join("work")))
        };
        let peers = [join("a")?, join("b")?];
        Ok(Self { hub, client, peers })
    }

    /// The hub ends idle connections while another tool has its turn.
    fn reconnect(&mut self) -> anyhow::Result<()> {
        self.client = self.hub.connect()?;
        Ok(())
    }

    fn session(&mut self) -> anyhow::Result<String> {
        let session = self.client.call("POST", "/api/sessions", Some(&json!({"title": "benchmark"})))?;
        Ok(session["id"].as_str().context("a session without an id")?.to_owned())
    }

    fn end(&mut self, session: &str) -> anyhow::Result<()> {
        // The hub closes connections that have been idle for long.
        self.reconnect()?;
        self.client.call("DELETE", &format!("/api/sessions/{session}"), None)?;
        for at in 0..2 {
            let _ = fs::remove_dir_all(self.folder(at, session));
        }
        Ok(())
    }

    fn folder(&self, peer: usize, session: &str) -> PathBuf {
        self.peers[peer].1.join(session)
    }

    fn attach(&mut self, peer: usize, session: &str) -> anyhow::Result<()> {
        let node = &self.peers[peer].0.node;
        self.client.call("POST", &format!("/api/sessions/{session}/nodes/{node}"), None).map(drop)
    }

    fn workspace(&mut self, session: &str) -> anyhow::Result<Value> {
        self.client.call("GET", &format!("/api/sessions/{session}/workspace"), None)
    }

    /// Waits until the hub holds `entries` and this peer says that it has them, too.
    fn settled(&mut self, peer: usize, session: &str, entries: u64) -> anyhow::Result<()> {
        let node = self.peers[peer].0.node.clone();
        let mut last = Value::Null;
        until("the workspace is in sync", || {
            thread::sleep(ASK_AGAIN);
            last = self.workspace(session)?;
            let sync = last["nodes"].as_array().and_then(|nodes| nodes.iter().find(|at| at["node_id"] == node.as_str()));
            let sync = sync.map(|node| node["sync"].clone()).unwrap_or_default();
            Ok(last["entries"] == entries && sync["state"] == "in_sync" && sync["revision"] == last["revision"])
        })
        .with_context(|| last.to_string())
    }
}

/// Us, and rsync.
struct Sides<'a> {
    rig: &'a mut Rig,
    rsync: Option<&'a Rsync>,
    folder: PathBuf,
}

/// Files, folders and links of a tree.
fn entries(folder: &Path) -> u64 {
    fs::read_dir(folder).map_or(0, |found| {
        found
            .flatten()
            .filter(|entry| entry.file_name() != ".cortex")
            .map(|entry| 1 + if entry.path().is_dir() { entries(&entry.path()) } else { 0 })
            .sum()
    })
}

/// Of all files of a tree.
fn bytes(folder: &Path) -> u64 {
    let of =
        |entry: fs::DirEntry| if entry.path().is_dir() { bytes(&entry.path()) } else { entry.metadata().map_or(0, |found| found.len()) };
    fs::read_dir(folder).map_or(0, |found| found.flatten().map(of).sum())
}

fn same(one: &Path, other: &Path) -> anyhow::Result<()> {
    let differences = std::process::Command::new("diff").args(["-rq", "--no-dereference", "-x", ".cortex"]).args([one, other]).output()?;
    ensure!(
        differences.status.success(),
        "trees differ: {}",
        String::from_utf8_lossy(&differences.stdout[..differences.stdout.len().min(500)])
    );
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    let status = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status()?;
    ensure!(status.success(), "cp ended with {status}");
    Ok(())
}

impl Sides<'_> {
    /// A tree that lies on one node, to the hub and to another node. The session goes on.
    fn cold(&mut self, corpus: &Path) -> anyhow::Result<(String, Cost, Cost, Option<Cost>)> {
        let rig = &mut *self.rig;
        rig.reconnect()?;
        let session = rig.session()?;
        copy(corpus, &rig.folder(0, &session))?;
        let (count, bytes) = (entries(corpus), bytes(corpus));
        let up = measured_at_rest(bytes, || {
            rig.attach(0, &session)?;
            rig.settled(0, &session, count)
        })?;
        let down = measured_at_rest(bytes, || {
            rig.attach(1, &session)?;
            rig.settled(1, &session, count)
        })?;
        same(corpus, &rig.folder(1, &session))?;
        let other = match self.rsync {
            Some(rsync) => {
                rsync.clear()?;
                Some(measured_at_rest(bytes, || rsync.push(corpus).map(drop))?)
            }
            None => None,
        };
        Ok((session, up, down, other))
    }

    /// One step on the first node: until the second node's files are right, and the same for rsync.
    fn step(
        &mut self,
        session: &str,
        edit: impl Fn(&Path) -> anyhow::Result<()>,
        arrived: impl Fn(&Path) -> bool,
    ) -> anyhow::Result<(Cost, Option<Cost>)> {
        let (here, there) = (self.rig.folder(0, session), self.rig.folder(1, session));
        let mirror = self.folder.join("rsync-source");
        let ours = {
            edit(&here)?;
            measured(|| until("the other node has it", || Ok(arrived(&there))))?
        };
        // What follows an arrival (its acknowledgement) belongs to its bytes, not to the next step's.
        thread::sleep(Duration::from_millis(300));
        let Some(rsync) = self.rsync else { return Ok((ours, None)) };
        edit(&mirror)?;
        let other = measured(|| rsync.push(&mirror).map(drop))?;
        self.rig.reconnect()?;
        Ok((ours, Some(other)))
    }

    /// The tree that rsync starts from, in both places already.
    fn prepare_rsync(&self, corpus: &Path) -> anyhow::Result<()> {
        let Some(rsync) = self.rsync else { return Ok(()) };
        let mirror = self.folder.join("rsync-source");
        let _ = fs::remove_dir_all(&mirror);
        copy(corpus, &mirror)?;
        rsync.push(&mirror).map(drop)
    }
}

fn all(others: &[Option<Cost>]) -> Option<Costs> {
    let costs: Vec<Cost> = others.iter().flatten().copied().collect();
    (!costs.is_empty()).then_some(Costs(costs))
}

fn small(setting: &Setting, report: &mut Report, sides: &mut Sides<'_>, corpus: &Path) -> anyhow::Result<()> {
    let (mut ups, mut downs, mut others) = (Costs::default(), Costs::default(), Vec::new());
    let mut last: Option<String> = None;
    for _ in 0..setting.pick(3, 1) {
        if let Some(session) = last.take() {
            sides.rig.end(&session)?;
        }
        let (session, up, down, other) = sides.cold(corpus)?;
        ups.0.push(up);
        downs.0.push(down);
        others.push(other);
        last = Some(session);
    }
    let session = last.context("no run")?;
    let other = all(&others);
    let seconds = other.as_ref().map(Costs::seconds);
    let what = "Small text files (20,000; 4,000 when quick) that lie in a folder, from the request that attaches its node until the hub holds all of them.";
    report.add("cold_small_up", Metric::of("s", what, &ups.seconds()).beside(rsync::LABEL, seconds.as_ref()));
    let what = "The same files, from the request that attaches a node with an empty folder until it has all of them.";
    report.add("cold_small_down", Metric::of("s", what, &downs.seconds()).beside(rsync::LABEL, seconds.as_ref()));
    let worse = ups.worse(downs);
    let what = "The slower of the two ways.";
    let metric = Metric::of("s", what, &worse.seconds()).beside(rsync::LABEL, seconds.as_ref());
    report.add("cold_small", metric.wanted(Target::ratio_at_most(1.0).goal(0.75)));
    let bytes = other.as_ref().map(Costs::bytes);
    let metric = Metric::of("bytes", "All that crossed the network meanwhile, on the slower way.", &worse.bytes());
    report.add("cold_small_bytes", metric.beside(rsync::LABEL, bytes.as_ref()).wanted(Target::ratio_at_most(0.3)));

    sides.prepare_rsync(corpus)?;
    noop(setting, report, sides, &session)?;
    edits(setting, report, sides, &session)?;
    folders(setting, report, sides, &session)?;
    quiet(setting, report, sides.rig, &session)?;
    sides.rig.end(&session)
}

fn noop(setting: &Setting, report: &mut Report, sides: &mut Sides<'_>, session: &str) -> anyhow::Result<()> {
    let (mut ours, mut others) = (Costs::default(), Vec::new());
    for _ in 0..setting.pick(7, 3) {
        let rig = &mut *sides.rig;
        let path = format!("/api/sessions/{session}/workspace/drift");
        rig.reconnect()?;
        ours.0.push(measured(|| {
            let drift = rig.client.call("GET", &path, None)?;
            ensure!(drift.as_array().is_some_and(|nodes| nodes.len() == 2), "not two nodes: {drift}");
            Ok(())
        })?);
        if let Some(rsync) = sides.rsync {
            let mirror = sides.folder.join("rsync-source");
            others.push(Some(measured(|| rsync.push(&mirror).map(drop))?));
        }
    }
    let other = all(&others);
    let what = "Nothing has changed: both nodes look at every file again and compare with the hub, from the request to the answer that nothing differs.";
    let metric = Metric::of("s", what, &ours.seconds()).beside(rsync::LABEL, other.as_ref().map(Costs::seconds).as_ref());
    report.add("noop", metric.wanted(Target::ratio_at_most(0.2)));
    let what = "Bytes of that, for both nodes and with the HTTP request.";
    report.add("noop_bytes", Metric::of("bytes", what, &ours.bytes()).beside(rsync::LABEL, other.as_ref().map(Costs::bytes).as_ref()));
    Ok(())
}

fn edits(setting: &Setting, report: &mut Report, sides: &mut Sides<'_>, session: &str) -> anyhow::Result<()> {
    let mut files = Vec::new();
    let root = sides.rig.folder(0, session);
    corpus::walk(&root, &mut |path, _| files.extend(path.strip_prefix(&root).map(Path::to_owned)));
    files.retain(|path| !path.starts_with(".cortex"));
    files.sort();
    let (mut ours, mut others, mut numbers) = (Costs::default(), Vec::new(), Numbers(5));
    for round in 0..setting.pick(5, 2) {
        let chosen: Vec<_> = (0..100).map(|_| files[numbers.below(files.len())].clone()).collect();
        let line = format!("\n// edited in round {round}: fifty bytes or a little more\n");
        let edit = |root: &Path| {
            for path in &chosen {
                fs::OpenOptions::new().append(true).open(root.join(path))?.write_all(line.as_bytes())?;
            }
            Ok(())
        };
        let arrived = |root: &Path| chosen.iter().all(|path| fs::read(root.join(path)).is_ok_and(|text| text.ends_with(line.as_bytes())));
        let (cost, other) = sides.step(session, edit, arrived)?;
        ours.0.push(cost);
        others.push(other);
    }
    let other = all(&others);
    let what = "A line is added to 100 of the files on one node: from then until the other node has all of them.";
    let metric = Metric::of("s", what, &ours.seconds()).beside(rsync::LABEL, other.as_ref().map(Costs::seconds).as_ref());
    report.add("edit100", metric.wanted(Target::ratio_at_most(0.9).goal(0.4)));
    let metric = Metric::of("bytes", "Bytes of that, over both hops.", &ours.bytes());
    report.add("edit100_bytes", metric.beside(rsync::LABEL, other.as_ref().map(Costs::bytes).as_ref()).wanted(Target::at_most(500_000.0)));
    Ok(())
}

fn folders(setting: &Setting, report: &mut Report, sides: &mut Sides<'_>, session: &str) -> anyhow::Result<()> {
    let inside = entries(&sides.rig.folder(0, session).join("pkg_00"));
    let rename = |root: &Path| Ok(fs::rename(root.join("pkg_00"), root.join("renamed_00"))?);
    let arrived = |root: &Path| !root.join("pkg_00").exists() && entries(&root.join("renamed_00")) == inside;
    let (ours, other) = sides.step(session, rename, arrived)?;
    let (ours, other) = (Costs(vec![ours]), all(&[other]));
    let what = "A folder of 2,000 files gets another name on one node: until it has it on the other.";
    let metric = Metric::of("s", what, &ours.seconds()).beside(rsync::LABEL, other.as_ref().map(Costs::seconds).as_ref());
    report.add("rename", metric.wanted(Target::ratio_at_most(0.5)));
    let metric = Metric::of("bytes", "Bytes of that, over both hops.", &ours.bytes());
    report.add("rename_bytes", metric.beside(rsync::LABEL, other.as_ref().map(Costs::bytes).as_ref()).wanted(Target::at_most(40_000.0)));
    let (mut ours, mut others) = (Costs::default(), Vec::new());
    for round in 1..=setting.pick(3, 1) {
        let name = format!("pkg_{round:02}");
        // Over 1,000 files at once are asked about before they go everywhere.
        fs::remove_dir_all(sides.rig.folder(0, session).join(&name))?;
        answer_question(sides.rig, session)?;
        let there = sides.rig.folder(1, session).join(&name);
        ours.0.push(measured(|| until("the folder is gone", || Ok(!there.exists())))?);
        // What follows belongs to none of them.
        thread::sleep(Duration::from_millis(300));
        if let Some(rsync) = sides.rsync {
            let mirror = sides.folder.join("rsync-source");
            fs::remove_dir_all(mirror.join(&name))?;
            others.push(Some(measured(|| rsync.push(&mirror).map(drop))?));
        }
        sides.rig.reconnect()?;
    }
    let other = all(&others);
    let what = "A folder of 2,000 files is deleted on one node, the question whether it shall be is answered: from then until it is gone on the other.";
    let metric = Metric::of("s", what, &ours.seconds()).beside(rsync::LABEL, other.as_ref().map(Costs::seconds).as_ref());
    report.add("delete", metric.wanted(Target::ratio_at_most(0.5)));
    Ok(())
}

/// Waits for a node's question, and says yes.
fn answer_question(rig: &mut Rig, session: &str) -> anyhow::Result<()> {
    let mut found = None;
    until("a node asks whether to delete", || {
        let workspace = rig.workspace(session)?;
        let nodes = workspace["nodes"].as_array().cloned().unwrap_or_default();
        found = nodes.iter().find_map(|node| {
            let question = node["sync"]["question"].as_object()?;
            Some((node["node_id"].as_str()?.to_owned(), question.get("id")?.clone()))
        });
        Ok(found.is_some())
    })?;
    let (node, question) = found.context("no question")?;
    let path = format!("/api/sessions/{session}/workspace/nodes/{node}/answer");
    rig.client.call("POST", &path, Some(&json!({"question": question, "yes": true}))).map(drop)
}

fn quiet(setting: &Setting, report: &mut Report, rig: &mut Rig, session: &str) -> anyhow::Result<()> {
    thread::sleep(Duration::from_secs(1));
    let revision = rig.workspace(session)?["revision"].clone();
    let long = Duration::from_secs(setting.pick(10, 5));
    let cost = measured(|| {
        thread::sleep(long);
        Ok(())
    })?;
    ensure!(rig.workspace(session)?["revision"] == revision, "something was committed though nothing had changed");
    let what = "Bytes in the 10 s (5 when quick) that begin a second after the last change, two nodes: heartbeats and keep-alive only, no revision.";
    report.add("echo_bytes", Metric::single("bytes", what, cost.bytes));
    Ok(())
}

fn latency(setting: &Setting, report: &mut Report, rig: &mut Rig) -> anyhow::Result<()> {
    let session = rig.session()?;
    rig.reconnect()?;
    for peer in 0..2 {
        fs::create_dir_all(rig.folder(peer, &session))?;
        rig.attach(peer, &session)?;
    }
    let (here, there) = (rig.folder(0, &session).join("edited"), rig.folder(1, &session).join("edited"));
    let mut numbers = Numbers(3);
    let mut took = Vec::new();
    for round in 0..setting.pick(220, 60) {
        let mut content = numbers.bytes(1016);
        content.extend_from_slice(&(round as u64).to_le_bytes());
        fs::write(&here, &content)?;
        let since = Instant::now();
        until("the edit is on the other node", || Ok(fs::read(&there).is_ok_and(|found| found == content)))?;
        if round >= 20 {
            took.push(since.elapsed().as_secs_f64() * 1e3);
        }
        thread::sleep(Duration::from_millis(30 + numbers.next() % 40));
    }
    let took: Samples = took.into_iter().collect();
    let what = "1 KiB is written to a file on one node: from its close to its finished replacement on the other, through hub and relay. The wait for further writes (20 ms) is in it.";
    report.add("edit_latency_p50_ms", Metric::of("ms", what, &took).wanted(Target::at_most(50.0).goal(30.0)));
    let metric = Metric::single("ms", "Of the same edits, what 99 of 100 stay under.", took.percentile(99.0));
    report.add("edit_latency_p99_ms", metric.wanted(Target::at_most(250.0)));
    missing(setting, report, &here, &there)?;
    rig.end(&session)
}

/// A reader in a loop while a file is replaced again and again.
fn missing(setting: &Setting, report: &mut Report, here: &Path, there: &Path) -> anyhow::Result<()> {
    let (stop, bad, reads) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let filled = |round: u64| vec![b'a' + u8::try_from(round % 26).unwrap_or(0); 40_000];
    fs::write(here, filled(0))?;
    until("the first version is there", || Ok(fs::read(there).is_ok_and(|found| found == filled(0))))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let whole = fs::metadata(there).is_ok()
                    && fs::read(there).is_ok_and(|found| found.len() == 40_000 && found.iter().all(|byte| *byte == found[0]));
                bad.fetch_add(u64::from(!whole), Ordering::Relaxed);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let replaced = (1..=setting.pick(1000, 100)).try_for_each(|round| {
            let next = here.with_extension("next");
            fs::write(&next, filled(round))?;
            fs::rename(&next, here)?;
            until("a version is there", || Ok(fs::read(there).is_ok_and(|found| found == filled(round))))
        });
        stop.store(true, Ordering::Relaxed);
        replaced
    })?;
    let mut metric = Metric::single(
        "reads",
        "A file of 40 kB is replaced 1,000 times (100 when quick) on one node while somebody stats and reads it in a loop on the other: how often it was missing, or neither the old nor the new.",
        bad.into_inner() as f64,
    );
    metric.runs = usize::try_from(reads.into_inner())?;
    report.add("missing_reads", metric.wanted(Target::at_most(0.0)));
    Ok(())
}

fn mixed(setting: &Setting, report: &mut Report, sides: &mut Sides<'_>, corpus: &Path) -> anyhow::Result<()> {
    let (mut ups, mut downs, mut others) = (Costs::default(), Costs::default(), Vec::new());
    for _ in 0..setting.pick(3, 1) {
        let (session, up, down, other) = sides.cold(corpus)?;
        sides.rig.end(&session)?;
        ups.0.push(up);
        downs.0.push(down);
        others.push(other);
    }
    let other = all(&others);
    let worse = ups.worse(downs);
    let what = "About 300 MB (60 when quick) of text, libraries and random bytes, on the slower of the two ways.";
    let metric = Metric::of("s", what, &worse.seconds()).beside(rsync::LABEL, other.as_ref().map(Costs::seconds).as_ref());
    report.add("cold_mixed", metric.wanted(Target::ratio_at_most(1.5).goal(1.0)));
    let metric = Metric::of("bytes", "Bytes of that.", &worse.bytes());
    report.add(
        "cold_mixed_bytes",
        metric.beside(rsync::LABEL, other.as_ref().map(Costs::bytes).as_ref()).wanted(Target::ratio_at_most(0.35)),
    );
    Ok(())
}

fn large(setting: &Setting, report: &mut Report, sides: &mut Sides<'_>, corpus: &Path) -> anyhow::Result<()> {
    let ssh = if setting.against(ssh::NAME) { report.found(Ssh::start(setting.folder())?) } else { None };
    let (mut ups, mut downs, mut others, mut over_ssh) = (Costs::default(), Costs::default(), Vec::new(), Vec::new());
    let mut last: Option<String> = None;
    for round in 0..setting.pick(3, 1) {
        if let Some(session) = last.take() {
            sides.rig.end(&session)?;
        }
        let (session, up, down, other) = sides.cold(corpus)?;
        if let Some(ssh) = &ssh {
            let target = format!("target-{round}");
            over_ssh.push(rsync::push_over_ssh(ssh, corpus, &target)?.as_secs_f64());
            fs::remove_dir_all(setting.folder().join("ssh/home").join(target))?;
        }
        ups.0.push(up);
        downs.0.push(down);
        others.push(other);
        last = Some(session);
    }
    let session = last.context("no run")?;
    let other = all(&others);
    let seconds = other.as_ref().map(Costs::seconds);
    let what = "One file of 1 GiB (128 MiB when quick) of random bytes, node to hub.";
    report.add("cold_large_up", Metric::of("s", what, &ups.seconds()).beside(rsync::LABEL, seconds.as_ref()));
    report.add("cold_large_down", Metric::of("s", "The same, hub to node.", &downs.seconds()).beside(rsync::LABEL, seconds.as_ref()));
    let worse = ups.worse(downs);
    let metric = Metric::of("s", "The slower of the two ways.", &worse.seconds()).beside(rsync::LABEL, seconds.as_ref());
    report.add("cold_large", metric.wanted(Target::ratio_at_most(2.5).goal(1.6)));
    if !over_ssh.is_empty() {
        let metric = Metric::of("s", "The same beside rsync over ssh, which encrypts as we do.", &worse.seconds());
        let over_ssh: Samples = over_ssh.into_iter().collect();
        report.add("cold_large_vs_rsync_ssh", metric.beside(rsync::LABEL_SSH, Some(&over_ssh)).wanted(Target::ratio_at_most(1.0)));
    }
    sides.prepare_rsync(corpus)?;
    let size = fs::metadata(corpus.join("big.bin"))?.len();
    let insert = |root: &Path| {
        machine::wake_memory(MEMORY * size);
        let next = root.join("next.part");
        let mut file = fs::File::create(&next)?;
        file.write_all(b"X")?;
        std::io::copy(&mut fs::File::open(root.join("big.bin"))?, &mut file)?;
        Ok(fs::rename(next, root.join("big.bin"))?)
    };
    let (mut ours, mut others) = (Costs::default(), Vec::new());
    for round in 1..=setting.pick(3, 1) {
        let arrived = |root: &Path| {
            fs::metadata(root.join("big.bin")).is_ok_and(|found| found.len() == size + round) && !root.join("next.part").exists()
        };
        let (cost, other) = sides.step(&session, insert, arrived)?;
        same(&sides.rig.folder(0, &session), &sides.rig.folder(1, &session))?;
        ours.0.push(cost);
        others.push(other);
    }
    let other = all(&others);
    let what = "One byte is inserted in front of that file on one node: until it is there on the other.";
    let metric = Metric::of("s", what, &ours.seconds()).beside(rsync::LABEL, other.as_ref().map(Costs::seconds).as_ref());
    report.add("insert_front", metric.wanted(Target::ratio_at_most(1.0).goal(0.6)));
    let metric = Metric::of("bytes", "Bytes of that, over both hops.", &ours.bytes());
    report.add(
        "insert_front_bytes",
        metric.beside(rsync::LABEL, other.as_ref().map(Costs::bytes).as_ref()).wanted(Target::at_most(800_000.0)),
    );
    sides.rig.end(&session)
}

/// Many files: what a peer and the hub need for them.
fn memory(setting: &Setting, report: &mut Report, rig: &mut Rig) -> anyhow::Result<()> {
    let count = setting.pick(100_000, 20_000);
    let session = rig.session()?;
    rig.reconnect()?;
    let root = rig.folder(0, &session);
    for at in 0..count {
        let folder = root.join(format!("folder_{:03}", at / 200));
        if at % 200 == 0 {
            fs::create_dir_all(&folder)?;
        }
        fs::write(folder.join(format!("file_{at:06}.txt")), format!("the content of file number {at}\n"))?;
    }
    let entries = entries(&root);
    rig.hub.process.forget_peak()?;
    rig.peers.iter().try_for_each(|(peer, _)| peer.process.forget_peak())?;
    for peer in 0..2 {
        rig.attach(peer, &session)?;
        rig.settled(peer, &session, entries)?;
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let peaks = [rig.peers[0].0.process.memory()?.peak, rig.peers[1].0.process.memory()?.peak];
    let what = "The most memory that was resident in a peer that has just started, while 100,000 files (20,000 when quick) went up from one and down to the other: the larger of the two.";
    let peak = peaks.into_iter().max().unwrap_or_default();
    report.add("peer_rss_100k_mib", Metric::single("MiB", what, mib(peak)).wanted(Target::at_most(150.0)));
    let what = "The same in the hub.";
    report.add("hub_rss_100k_mib", Metric::single("MiB", what, mib(rig.hub.process.memory()?.peak)));
    rig.end(&session)
}
