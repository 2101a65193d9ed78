//! Short tasks for whoever takes them: how fast a pool of nodes does them, what that costs, and how evenly it is spread.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Bench, Setting};
use crate::{
    fleet::Fleet,
    http::Client,
    interrupt,
    report::{Metric, Report, Target},
    stack::Hub,
};

pub const BENCH: Bench = Bench { name: "pool", what: "short tasks that any of 16 nodes may run", against: &[], journalled: false, run };

const NODES: usize = 16;
/// Tasks of one node at a time.
const SLOTS: u32 = 8;
/// Tasks that are accepted and have not ended, at most.
const AT_ONCE: usize = 256;
/// Connections that dispatch.
const CONNECTIONS: usize = 16;

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let folder = setting.folder();
    let hub = Hub::start(folder, &folder.join("hub"), &[])?;
    let mut client = hub.connect()?;
    let invites = (0..NODES).map(|number| hub.invite(&mut client, &format!("pool-{number}"))).collect::<anyhow::Result<_>>()?;
    let mut fleet = Fleet::working(folder, invites, SLOTS);
    fleet.wait_for(NODES, Duration::from_secs(120))?;
    let nodes = online(&mut client)?;
    let session = client.call("POST", "/api/sessions", Some(&json!({"title": "pool", "node_ids": nodes})))?;
    let path = format!("/api/sessions/{}/dispatch", session["id"].as_str().context("the session's id")?);
    dispatch(&hub, &path, 200)?; // warm
    let tasks = setting.pick(10_000, 1_000);
    let (before, counted) = (hub.process.usage()?.cpu, counts(&mut hub.connect()?)?);
    let since = Instant::now();
    let shares = dispatch(&hub, &path, tasks)?;
    let took = since.elapsed();
    let (after, counts) = (hub.process.usage()?.cpu, counts(&mut hub.connect()?)?);
    let add = |report: &mut Report, name, unit, what, value, target: Option<Target>| {
        let mut metric = Metric::single(unit, what, value);
        metric.runs = tasks;
        report.add(name, if let Some(target) = target { metric.wanted(target) } else { metric });
    };
    let what = "10,000 times /bin/true (1,000 when quick) over 16 nodes in one process with 8 slots each, at most 256 at a time: from the first dispatch to the last end.";
    add(report, "tasks_per_s", "tasks/s", what, tasks as f64 / took.as_secs_f64(), None);
    let what = "Claims of nodes through tasks that were given to one.";
    let ratio = (counts.claims - counted.claims) as f64 / (counts.grants - counted.grants).max(1) as f64;
    add(report, "claims_per_task", "claims", what, ratio, Some(Target::at_most(1.5)));
    let what = "Tasks of the node that ran most, through those of an even share.";
    let busiest = shares.values().max().copied().unwrap_or(0) as f64 * NODES as f64 / tasks as f64;
    add(report, "busiest_share", "times", what, busiest, Some(Target::at_most(2.5)));
    let what = "Processor time of the hub with its relay for a task, from the request to the stored result.";
    add(report, "hub_cpu_us_per_task", "µs", what, (after - before).as_secs_f64() * 1e6 / tasks as f64, None);
    Ok(())
}

/// The nodes, once all are online.
fn online(client: &mut Client) -> anyhow::Result<Vec<String>> {
    let since = Instant::now();
    loop {
        let page = client.call("GET", "/api/nodes?limit=100", None)?;
        let items = page["items"].as_array().context("nodes")?;
        let online = items.iter().filter(|node| node["presence"]["state"] == "online" || node["presence"]["state"] == "degraded");
        let ids: Vec<String> = online.filter_map(|node| node["id"].as_str()).map(str::to_owned).collect();
        if ids.len() == NODES {
            return Ok(ids);
        }
        interrupt::check()?;
        ensure!(since.elapsed() < Duration::from_secs(60), "{} of {NODES} nodes are online", ids.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs this many tasks to their end, and tells how many ran on each node.
fn dispatch(hub: &Hub, path: &str, tasks: usize) -> anyhow::Result<BTreeMap<String, usize>> {
    let body = json!({"argv": ["/bin/true"], "pool": true}).to_string();
    let mut events = hub.events()?;
    let mut connections = (0..CONNECTIONS).map(|_| hub.connect()).collect::<anyhow::Result<Vec<_>>>()?;
    // Which connections owe an answer.
    let mut owed: VecDeque<usize> = VecDeque::new();
    let (mut dispatched, mut shares) = (0, BTreeMap::new());
    for ended in 0..tasks {
        while dispatched < tasks.min(ended + AT_ONCE) {
            let at = dispatched % CONNECTIONS;
            if owed.len() == CONNECTIONS {
                owed.pop_front();
                connections[at].good()?;
            }
            connections[at].send("POST", path, Some(&body))?;
            owed.push_back(at);
            dispatched += 1;
        }
        let last = events.find(super::dispatch::is_final)?;
        let data: Value = serde_json::from_str(&last.data)?;
        ensure!(data["data"]["state"] == "succeeded", "a task did not succeed: {}", last.data);
        let node = data["data"]["node_id"].as_str().context("the task's node")?.to_owned();
        *shares.entry(node).or_insert(0) += 1;
    }
    owed.into_iter().try_for_each(|at| connections[at].good().map(drop))?;
    Ok(shares)
}

struct Counts {
    claims: u64,
    grants: u64,
}

fn counts(client: &mut Client) -> anyhow::Result<Counts> {
    client.send("GET", "/metrics", None)?;
    let text = String::from_utf8(client.receive()?.1)?;
    let of = |what: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cortex_pool_total{{what=\"{what}\"}} ")));
        line.and_then(|count| count.parse().ok()).with_context(|| format!("the hub counts no {what}s"))
    };
    Ok(Counts { claims: of("claim")?, grants: of("grant")? })
}
