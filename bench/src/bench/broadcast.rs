//! One workspace to many nodes on one relay: what leaves the hub, and how long the last node takes.

use std::{fs, process::Command, thread, time::Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Bench, Setting};
use crate::{
    corpus::Sources,
    interrupt,
    report::{Metric, Report, Target},
    stack::{Hub, Peer, Relay, hub_id},
};

pub const BENCH: Bench =
    Bench { name: "broadcast", what: "one workspace to many nodes on one relay", against: &[], journalled: false, run };

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let folder = setting.folder();
    let data = folder.join("hub");
    let relay = Relay::start(folder, &[hub_id(&data)?])?;
    let hub = Hub::start(folder, &data, &["--no-relay", "--relay", &relay.endpoint.to_string()])?;
    let corpus = folder.join("corpus");
    Sources::find()?.mixed(&corpus, setting.pick(0.1, 0.03))?;
    let tar = folder.join("corpus.tar");
    let packed = Command::new("tar").arg("-C").arg(&corpus).arg("-cf").arg(&tar).arg(".").status()?;
    ensure!(packed.success(), "tar ended with {packed}");
    let tar = fs::read(tar)?;
    let mut counter = Counter::new(&hub)?;
    let mut peers: Vec<Peer> = Vec::new();
    for count in [1, 4, 16, setting.pick(64, 32)] {
        while peers.len() < count {
            interrupt::check()?;
            peers.push(Peer::join(&hub, &folder.join(format!("peer-{}", peers.len())))?);
        }
        let found = spread(&hub, &peers[..count], &tar, &mut counter)?;
        let what = "Bytes that left the hub's socket (headers, announcements and acknowledgements with them) through the sealed bytes of a mixed tree that the hub had and so many nodes got at once, through a relay process.";
        let name = match count {
            1 => "egress_1",
            4 => "egress_4",
            16 => "egress_16",
            32 => "egress_32",
            _ => "egress_64",
        };
        report.add(name, Metric::single("times", what, found.egress).wanted(Target::at_most(1.05)));
        if count == 16 {
            let what =
                "From the first of 16 requests that attach a node until the last of the nodes has everything (30 MB; 10 when quick).";
            report.add("last_peer_16", Metric::single("s", what, found.seconds));
        }
    }
    Ok(())
}

struct Found {
    egress: f64,
    seconds: f64,
}

fn spread(hub: &Hub, peers: &[Peer], tar: &[u8], counter: &mut Counter) -> anyhow::Result<Found> {
    let mut client = hub.connect()?;
    let session = client.call("POST", "/api/sessions", Some(&json!({"title": "broadcast"})))?;
    let session = session["id"].as_str().context("a session without an id")?.to_owned();
    client.put(&format!("/api/sessions/{session}/workspace/archive"), tar)?;
    // Before anybody comes: the lists of changes that are sealed for them are part of what it costs.
    let stored = client.call("GET", &format!("/api/sessions/{session}/workspace"), None)?;
    let sealed = stored["stored_bytes"].as_f64().context("no stored_bytes")?;
    let (since, before) = (Instant::now(), counter.bytes()?);
    for peer in peers {
        client.call("POST", &format!("/api/sessions/{session}/nodes/{}", peer.node), None)?;
    }
    loop {
        interrupt::check()?;
        let workspace = client.call("GET", &format!("/api/sessions/{session}/workspace"), None)?;
        let done = |node: &Value| node["sync"]["state"] == "in_sync" && node["sync"]["revision"] == workspace["revision"];
        if workspace["nodes"].as_array().is_some_and(|nodes| nodes.len() == peers.len() && nodes.iter().all(done)) {
            break;
        }
        ensure!(since.elapsed().as_secs() < 180, "waited in vain for {} nodes: {workspace}", peers.len());
        thread::sleep(std::time::Duration::from_millis(5));
    }
    let seconds = since.elapsed().as_secs_f64();
    let egress = (counter.bytes()? - before) as f64 / sealed;
    client.call("DELETE", &format!("/api/sessions/{session}"), None)?;
    Ok(Found { egress, seconds })
}

/// Counts what a process sends by UDP, in the kernel.
struct Counter;

impl Counter {
    const TABLE: &str = "cortex_bench";

    fn new(hub: &Hub) -> anyhow::Result<Self> {
        let sockets = Command::new("ss").arg("-Huanp").output().context("cannot run ss: apt-get install -y iproute2")?;
        let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
        let owner = format!("pid={},", hub.process.id());
        let port = sockets.lines().find(|line| line.contains(&owner)).and_then(|line| line.split_whitespace().nth(3)?.rsplit(':').next());
        let port = port.context("the hub has no UDP socket")?;
        nft(&["add", "table", "inet", Self::TABLE])?;
        nft(&["add", "chain", "inet", Self::TABLE, "out", "{ type filter hook output priority 0; }"])?;
        nft(&["add", "rule", "inet", Self::TABLE, "out", "udp", "sport", port, "counter"])?;
        Ok(Self)
    }

    fn bytes(&mut self) -> anyhow::Result<u64> {
        let listed = nft(&["list", "chain", "inet", Self::TABLE, "out"])?;
        let bytes = listed.split_once(" bytes ").and_then(|(_, rest)| rest.split_whitespace().next()).and_then(|bytes| bytes.parse().ok());
        bytes.context("nft shows no counter")
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = nft(&["delete", "table", "inet", Self::TABLE]);
    }
}

fn nft(arguments: &[&str]) -> anyhow::Result<String> {
    let done = Command::new("nft").args(arguments).output().context("cannot run nft: apt-get install -y nftables")?;
    ensure!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
