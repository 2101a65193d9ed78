//! What a running task's output suffers when the relay that carries it is killed.

use std::{
    collections::HashSet,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::{Bench, Setting};
use crate::{
    contest::Samples,
    fleet::Fleet,
    http::Client,
    interrupt,
    report::{Metric, Report, Target},
    stack::{Hub, Peer, Relay, free_port, hub_id},
};

pub const BENCH: Bench = Bench { name: "failover", what: "output while its relay is killed", against: &[], journalled: false, run };

const PATIENCE: Duration = Duration::from_secs(40);

/// Two relays and a hub behind both.
struct Two {
    relays: [(Relay, PathBuf, u16); 2],
    hub: Hub,
    hubs: Vec<cortex_wire::id::HubId>,
}

impl Two {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let data = folder.join("hub");
        let hubs = vec![hub_id(&data)?];
        let relay = |name: &str| {
            let (place, port) = (folder.join(name), free_port()?);
            fs::create_dir_all(&place)?;
            Ok::<_, anyhow::Error>((Relay::start_on(port, &place, &hubs)?, place, port))
        };
        let relays = [relay("first")?, relay("second")?];
        let [first, second] = [relays[0].0.endpoint.to_string(), relays[1].0.endpoint.to_string()];
        let hub = Hub::start(folder, &data, &["--no-relay", "--relay", &first, "--relay", &second])?;
        Ok(Self { relays, hub, hubs })
    }

    /// Waits until this holds of a node's presence; answers which relay is home.
    fn wait_for(&self, client: &mut Client, node: &str, holds: impl Fn(usize, Option<usize>) -> bool) -> anyhow::Result<usize> {
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            interrupt::check()?;
            let presence = client.call("GET", &format!("/api/nodes/{node}"), None)?["presence"].clone();
            let place = |id: &Value| self.relays.iter().position(|(relay, ..)| id == relay.endpoint.id.to_string().as_str());
            if let Some(home) = place(&presence["relay"])
                && holds(home, place(&presence["standby"]))
            {
                return Ok(home);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the node is not behind the relays as it should be")
    }

    fn restart(&mut self, relay: usize) -> anyhow::Result<()> {
        let (_, place, port) = &self.relays[relay];
        let again = Relay::start_on(*port, place, &self.hubs)?;
        self.relays[relay].0 = again;
        Ok(())
    }
}

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let mut two = Two::start(setting.folder())?;
    let peer = Peer::join(&two.hub, &setting.folder().join("peer"))?;
    let mut client = two.hub.connect()?;
    let nodes = setting.pick(200, 50);
    let invites = (0..nodes).map(|number| two.hub.invite(&mut client, &format!("simulated-{number}"))).collect::<anyhow::Result<_>>()?;
    let mut fleet = Fleet::join(setting.folder(), invites);
    fleet.wait_for(nodes, Duration::from_secs(120))?;
    let talk = Talk::start(&two.hub, &peer.node)?;
    let mut kills = Vec::new();
    for round in 0..setting.pick(20u64, 8) {
        let home = two.wait_for(&mut client, &peer.node, |home, standby| standby == Some(1 - home))?;
        std::thread::sleep(Duration::from_millis(round * 37 % 250));
        let at = Instant::now();
        two.relays[home].0.process.kill()?;
        two.wait_for(&mut client, &peer.node, |now, _| now != home)?;
        kills.push((at, Instant::now() + Duration::from_millis(500)));
        std::thread::sleep(Duration::from_millis(500));
        two.restart(home)?;
    }
    two.wait_for(&mut client, &peer.node, |home, standby| standby == Some(1 - home))?;
    let stop = setting.folder().join("peer/work").join(&talk.session).join("stop");
    fs::write(stop, "")?;
    let (lost, times) = talk.end(&mut client)?;
    let gaps: Samples = kills
        .iter()
        .map(|(from, to)| {
            let touched = times.windows(2).filter(|pair| pair[1] > *from && pair[0] < *to);
            touched.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).fold(0.0, f64::max)
        })
        .collect();
    let what = "A task prints a line every 10 ms; its home relay is killed (SIGKILL), with a second relay as standby, at another moment between two heartbeats in each round. The longest time without output at a client that follows the task. 200 further nodes (50 when quick) have their links at the same relays.";
    report.add("gap_p50_ms", Metric::of("ms", what, &gaps).wanted(Target::at_most(500.0).goal(350.0)));
    let mut worst = Metric::single("ms", "The same: what 99 of 100 stay under.", gaps.percentile(99.0)).wanted(Target::at_most(2000.0));
    worst.runs = gaps.count();
    report.add("gap_p99_ms", worst);
    let mut metric = Metric::single("B", "Bytes of its output that were missing or came twice, in all rounds.", lost as f64);
    metric.runs = gaps.count();
    report.add("lost_bytes", metric.wanted(Target::at_most(0.0)));
    let (moved, took) = move_all(&mut two, &mut client)?;
    ensure!(moved * 2 > nodes, "only {moved} of {nodes} nodes were behind one relay");
    let what = "From killing the relay that most of those nodes have as home to the hub's event that the last of them is behind the other one. They run nothing: the hub notices, and tells them by the relays of their standby links.";
    let mut metric = Metric::single("s", what, took.as_secs_f64()).wanted(Target::at_most(2.0));
    metric.runs = moved;
    report.add("idle_nodes_moved_s", metric);
    Ok(())
}

/// Kills the relay with the most nodes, and waits until all of them are behind the other: how many, and how long it took.
fn move_all(two: &mut Two, client: &mut Client) -> anyhow::Result<(usize, Duration)> {
    // All have come to rest, and have a standby.
    for _ in 0..12 {
        interrupt::check()?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let relays = client.call("GET", "/api/relays", None)?;
    let nodes = |relay: &Relay| {
        let listed = relays["items"].as_array()?.iter().find(|listed| listed["id"] == relay.endpoint.id.to_string().as_str())?;
        usize::try_from(listed["nodes"].as_u64()?).ok()
    };
    let counts = [0, 1].map(|relay| nodes(&two.relays[relay].0).unwrap_or_default());
    let busiest = usize::from(counts[1] > counts[0]);
    let mut events = two.hub.events()?;
    let since = Instant::now();
    two.relays[busiest].0.process.kill()?;
    let mut moved = HashSet::new();
    let last = events.find(|event| {
        let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
        if event.name == "node" && data["data"]["change"] == "path" {
            moved.insert(data["data"]["node_id"].to_string());
        }
        moved.len() >= counts[busiest]
    });
    let last = last.context("not all nodes have moved")?;
    Ok((moved.len(), last.at - since))
}

/// A task that prints until it is stopped, and who listens.
struct Talk {
    session: String,
    task: String,
    listener: JoinHandle<anyhow::Result<()>>,
    heard: Arc<Mutex<(String, Vec<Instant>)>>,
}

impl Talk {
    fn start(hub: &Hub, node: &str) -> anyhow::Result<Self> {
        let session = hub.session(node)?;
        let script = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo \"line $i\"; sleep 0.01; done; rm stop";
        let body = json!({"script": script});
        let task = hub.connect()?.call("POST", &format!("/api/sessions/{session}/dispatch"), Some(&body))?;
        let task = task["id"].as_str().context("a task has an id")?.to_owned();
        let mut output = hub.connect()?.stream(&format!("/api/tasks/{task}/output?follow=true"))?;
        let heard = Arc::new(Mutex::new((String::new(), Vec::new())));
        let told = heard.clone();
        let listener = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let read = output.read(&mut buffer)?;
                if read == 0 {
                    return Ok(());
                }
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told.0.push_str(&String::from_utf8_lossy(&buffer[..read]));
                told.1.push(Instant::now());
            }
        });
        Ok(Self { session, task, listener, heard })
    }

    /// Bytes that are not as they should be, and when something came.
    fn end(self, client: &mut Client) -> anyhow::Result<(usize, Vec<Instant>)> {
        self.listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
        let task = client.call("GET", &format!("/api/tasks/{}", self.task), None)?;
        ensure!(task["state"] == "succeeded", "the task did not succeed: {task}");
        let (output, times) = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        let lines = output.lines().last().and_then(|line| line.strip_prefix("line ")?.parse::<usize>().ok()).context("a last line")?;
        let expected: String = (1..=lines).map(|line| format!("line {line}\n")).collect();
        let same = output.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
        Ok((output.len().max(expected.len()) - same, times))
    }
}
