//! Tasks that any of several nodes may run: who gets them, what the log says of it, and what becomes of them when nodes go.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Client, Shell, Task, problem},
    hub::Hub,
    peer::Peer,
    wait,
};
use cortex_wire::{
    id::{NodeId, TaskId},
    pool::Placement,
};
use serde_json::{Value, json};

use crate::SOON;

/// A hub, nodes with so many slots each, and a session with all of them.
struct Fleet {
    hub: Hub,
    peers: Vec<Peer>,
    session: String,
}

impl Fleet {
    async fn set(nodes: usize, slots: u32) -> Result<Self> {
        let hub = Hub::start().await?;
        let mut peers = Vec::new();
        for number in 0..nodes {
            let peer = hub.enrol(&format!("machine-{number}")).await?;
            set_slots(&hub, &peer.node, slots).await?;
            peers.push(peer);
        }
        let ids: Vec<&str> = peers.iter().map(|peer| peer.node.as_str()).collect();
        let session = hub.session(&ids).await?.id;
        Ok(Self { hub, peers, session })
    }

    /// Tasks of the pool, as they were accepted.
    async fn dispatch(&self, tasks: usize, shell: &Shell) -> Result<Vec<Task>> {
        let mut dispatched = Vec::new();
        for _ in 0..tasks {
            dispatched.push(self.hub.dispatch(&self.session, shell).await?);
        }
        Ok(dispatched)
    }

    async fn ends(&self, tasks: &[Task]) -> Result<Vec<Task>> {
        let mut ended = Vec::new();
        for task in tasks {
            ended.push(self.hub.ended(&task.id, Duration::from_secs(40)).await?);
        }
        Ok(ended)
    }

    /// How often each line was written to `runs` in the workspaces of all nodes: each line is one start of one task.
    fn runs(&self) -> BTreeMap<String, usize> {
        let mut runs = BTreeMap::new();
        for peer in &self.peers {
            let text = std::fs::read_to_string(peer.workspace(&self.session).join(format!("runs-{}", peer.node))).unwrap_or_default();
            text.lines().for_each(|line| *runs.entry(line.to_owned()).or_default() += 1);
        }
        runs
    }
}

async fn set_slots(hub: &Client, node: &str, slots: u32) -> Result<()> {
    let body = json!({"mode": "permissive", "task_slots": slots});
    let path = format!("/api/nodes/{node}/policy");
    hub.person().call::<Value>(reqwest::Method::PUT, &path, Some(&body)).await?;
    let in_force = async || hub.get::<Value>(&path).await.ok().filter(|policy| policy["is_in_force"] == true).map(drop);
    wait::until("the policy is in force", SOON, in_force).await
}

/// Finds again from the session's log alone which node got which task, until all these have ended.
async fn replayed(hub: &Client, session: &str, tasks: &[Task]) -> Result<BTreeMap<String, String>> {
    let mut events = hub.follow(&format!("/api/sessions/{session}/events"));
    let (mut found, mut open) = (BTreeMap::new(), tasks.iter().map(|task| task.id.clone()).collect::<BTreeSet<_>>());
    while !open.is_empty() {
        let event = events.next(SOON).await?.context("the log ends early")?;
        let data = &event.data["data"];
        if event.name != "task" {
            continue;
        }
        let task: TaskId = serde_json::from_value(data["id"].clone())?;
        if !["queued", "awaiting_approval", "offered", "leased", "running"].contains(&data["state"].as_str().unwrap_or_default()) {
            open.remove(&task.to_string());
        }
        if !data["placement"].is_null() {
            let placement: Placement = serde_json::from_value(data["placement"].clone())?;
            let (winner, node): (NodeId, NodeId) = (placement.winner(&task)?, serde_json::from_value(data["node_id"].clone())?);
            assert_eq!(winner, node, "the log replays to the node that it names");
            found.insert(task.to_string(), winner.to_string());
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_pool_runs_each_task_once_on_some_node_and_the_log_says_why() -> Result<()> {
    let fleet = Fleet::set(3, 2).await?;
    let tasks = fleet.dispatch(30, &Shell::argv(["true"]).pooled()).await?;
    assert!(tasks.iter().all(|task| task.state == "offered" && task.fence == 0), "{tasks:?}");
    let ended = fleet.ends(&tasks).await?;
    let replayed = replayed(&fleet.hub, &fleet.session, &ended).await?;
    for task in &ended {
        assert_eq!((task.state.as_str(), task.fence), ("succeeded", 1), "{task:?}");
        let pool = task.pool.as_ref().context("it is one of the pool")?;
        let winner = pool.claims.iter().find(|claim| !claim.refused).context("a claim")?;
        assert_eq!(winner.node_id, task.node_id);
        assert!(pool.ranking.contains(&task.node_id) && pool.waits.is_none());
        assert_eq!(replayed.get(&task.id), Some(&task.node_id));
    }
    let used: BTreeSet<&str> = ended.iter().map(|task| task.node_id.as_str()).collect();
    assert_eq!(used.len(), 3, "everybody got some");
    let metrics = fleet.hub.request(reqwest::Method::GET, "/metrics").send().await?.text().await?;
    assert!(metrics.contains("cortex_pool_total{what=\"grant\"} 30"), "{metrics}");
    fleet.hub.verify_audit().await.map(drop)
}

#[tokio::test]
async fn a_selector_finds_the_machine_and_says_why_when_it_does_not() -> Result<()> {
    let fleet = Fleet::set(2, 4).await?;
    let label = |number: usize| json!({"labels": {"role": if number == 0 { "build" } else { "test" }, "place": "here"}});
    for (number, peer) in fleet.peers.iter().enumerate() {
        fleet.hub.call::<Value>(reqwest::Method::PATCH, &format!("/api/nodes/{}", peer.node), Some(&label(number))).await?;
    }
    let run = Shell::argv(["true"]);
    let on = async |selector: &str| fleet.hub.dispatch(&fleet.session, &run.clone().selecting(selector)).await;
    let refused = async |selector: &str| problem(on(selector).await);
    assert_eq!(on("label.role=test,os=linux").await?.node_id, fleet.peers[1].node);
    assert_eq!(on("name=machine-0").await?.node_id, fleet.peers[0].node);
    let several = refused("label.place").await?;
    assert_eq!((several.status, several.code.as_str()), (409, "ambiguous_node"));
    let nobody = refused("gpu~h100,label.place").await?;
    assert_eq!((nobody.status, nobody.code.as_str()), (409, "no_candidate"));
    assert!(nobody.detail.contains("machine-0: gpu~h100 does not hold"), "{nobody:?}");
    let wrong = refused("colour=red").await?;
    assert_eq!((wrong.status, wrong.code.as_str()), (400, "malformed_task"));
    assert!(wrong.detail.contains("label.NAME"), "{wrong:?}");
    // The pool waits for a machine that fits, if it may, and takes it when there is one.
    let patient = Shell { queue_timeout_ms: 60_000, ..run.clone().pooled().selecting("label.role=paint") };
    assert_eq!(problem(fleet.hub.dispatch(&fleet.session, &Shell { queue_timeout_ms: 0, ..patient.clone() }).await)?.code, "no_candidate");
    let waiting = fleet.hub.dispatch(&fleet.session, &patient).await?;
    assert_eq!(waiting.state, "queued");
    assert!(waiting.pool.and_then(|pool| pool.waits).context("it says why")?.contains("label.role=paint does not hold"));
    let body = json!({"labels": {"role": "paint"}});
    fleet.hub.call::<Value>(reqwest::Method::PATCH, &format!("/api/nodes/{}", fleet.peers[0].node), Some(&body)).await?;
    let ran = fleet.hub.ended(&waiting.id, SOON).await?;
    assert_eq!((ran.state.as_str(), ran.node_id.as_str()), ("succeeded", fleet.peers[0].node.as_str()));
    Ok(())
}

#[tokio::test]
async fn a_drained_node_finishes_what_it_has_and_gets_nothing_new() -> Result<()> {
    let fleet = Fleet::set(2, 4).await?;
    let [first, second] = [&fleet.peers[0].node, &fleet.peers[1].node];
    let held = fleet.hub.dispatch(&fleet.session, &Shell::script("while [ ! -e go ]; do sleep 0.02; done").on(first)).await?;
    fleet.hub.task_is(&held.id, "running", SOON).await?;
    let node: Value = fleet.hub.call(reqwest::Method::POST, &format!("/api/nodes/{first}/drain"), None).await?;
    assert!(node["drained_at_ms"].is_i64(), "{node}");
    let refused = problem(fleet.hub.dispatch(&fleet.session, &Shell::argv(["true"]).on(first)).await)?;
    assert_eq!((refused.status, refused.code.as_str()), (503, "node_drained"));
    let named = fleet.hub.dispatch(&fleet.session, &Shell { queue_timeout_ms: 60_000, ..Shell::argv(["true"]).on(first) }).await?;
    let ended = fleet.ends(&fleet.dispatch(12, &Shell::argv(["true"]).pooled()).await?).await?;
    assert!(ended.iter().all(|task| task.state == "succeeded" && task.node_id == *second), "{ended:?}");
    assert_eq!(fleet.hub.task(&named.id).await?.state, "queued");
    std::fs::write(fleet.peers[0].workspace(&fleet.session).join("go"), "")?;
    assert_eq!(fleet.hub.ended(&held.id, SOON).await?.state, "succeeded");
    fleet.hub.call::<Value>(reqwest::Method::POST, &format!("/api/nodes/{first}/undrain"), None).await?;
    assert_eq!(fleet.hub.ended(&named.id, SOON).await?.state, "succeeded");
    let ended = fleet.ends(&fleet.dispatch(12, &Shell::argv(["true"]).pooled()).await?).await?;
    assert!(ended.iter().any(|task| task.node_id == *first), "it takes its share again");
    Ok(())
}

#[tokio::test]
async fn what_a_dead_node_had_not_started_moves_and_what_it_ran_is_lost() -> Result<()> {
    let mut fleet = Fleet::set(2, 2).await?;
    let first = fleet.peers[0].node.clone();
    // Both nodes are full; what comes then waits in the pool.
    let script = "echo $TASK >> runs-$NODE; while [ ! -e go-$NODE ]; do sleep 0.05; done";
    let on =
        |peer: &Peer, number: usize| Shell::script(script).on(&peer.node).env("NODE", &peer.node).env("TASK", &format!("held-{number}"));
    let mut held = Vec::new();
    for number in 0..4 {
        held.push(fleet.hub.dispatch(&fleet.session, &on(&fleet.peers[number / 2], number)).await?);
    }
    for task in &held {
        fleet.hub.task_is(&task.id, "running", SOON).await?;
    }
    let waiting = fleet.dispatch(6, &Shell::argv(["true"]).pooled()).await?;
    fleet.peers[0].process.kill9().await?;
    std::fs::write(fleet.peers[1].workspace(&fleet.session).join(format!("go-{}", fleet.peers[1].node)), "")?;
    let ended = fleet.ends(&waiting).await?;
    assert!(ended.iter().all(|task| task.state == "succeeded" && task.node_id == fleet.peers[1].node), "{ended:?}");
    fleet.peers[0].restart()?;
    let lost = fleet.ends(&held[..2]).await?;
    assert!(lost.iter().all(|task| task.state == "lost" && task.node_id == first), "{lost:?}");
    assert!(fleet.runs().values().all(|runs| *runs == 1), "{:?}", fleet.runs());
    Ok(())
}

#[tokio::test]
async fn no_pool_task_runs_twice_however_hub_and_nodes_die() -> Result<()> {
    let mut fleet = Fleet::set(3, 2).await?;
    let mut tasks = Vec::new();
    for number in 0..40_usize {
        // Each start leaves a line in a file of its own, named by the process, on whichever node.
        let script = format!("echo ran >> once-{number}; sleep 0.0{}", number % 10);
        let shell = Shell { queue_timeout_ms: 60_000, ..Shell::script(script).pooled() };
        tasks.push(fleet.hub.dispatch(&fleet.session, &shell).await?);
        match number {
            9 | 29 => {
                fleet.hub.process.kill9().await?;
                fleet.hub.restart().await?;
            }
            14 | 24 | 34 => {
                let peer = &mut fleet.peers[number % 3];
                peer.process.kill9().await?;
                peer.restart()?;
            }
            _ => {}
        }
    }
    let ended = fleet.ends(&tasks).await?;
    for (number, task) in ended.iter().enumerate() {
        let runs: usize = fleet
            .peers
            .iter()
            .filter(|peer| peer.node == task.node_id)
            .map(|peer| {
                std::fs::read_to_string(peer.workspace(&fleet.session).join(format!("once-{number}"))).unwrap_or_default().lines().count()
            })
            .sum();
        match task.state.as_str() {
            "succeeded" => assert_eq!(runs, 1, "{task:?}"),
            "lost" => assert!(runs <= 1, "{task:?}"),
            other => panic!("{other}: {task:?}"),
        }
    }
    let succeeded = ended.iter().filter(|task| task.state == "succeeded").count();
    assert!(succeeded >= 20, "{succeeded} of 40: {ended:?}");
    let replayed = replayed(&fleet.hub, &fleet.session, &ended).await?;
    assert!(ended.iter().all(|task| replayed.get(&task.id) == Some(&task.node_id)));
    fleet.hub.verify_audit().await.map(drop)
}

#[tokio::test]
async fn a_pool_task_that_waits_can_be_cancelled_and_expires() -> Result<()> {
    let fleet = Fleet::set(1, 1).await?;
    let peer = &fleet.peers[0];
    let held = fleet.hub.dispatch(&fleet.session, &Shell::argv(["sleep", "300"])).await?;
    fleet.hub.task_is(&held.id, "running", SOON).await?;
    let short = fleet.hub.dispatch(&fleet.session, &Shell { queue_timeout_ms: 800, ..Shell::argv(["true"]).pooled() }).await?;
    let long = fleet.hub.dispatch(&fleet.session, &Shell::argv(["true"]).pooled()).await?;
    assert_eq!(fleet.hub.cancel(&long.id).await?.state, "cancelled");
    assert_eq!(fleet.hub.ended(&short.id, SOON).await?.state, "expired");
    fleet.hub.cancel(&held.id).await?;
    fleet.hub.ended(&held.id, SOON).await?;
    let after = fleet.hub.dispatch(&fleet.session, &Shell::argv(["true"]).pooled()).await?;
    assert_eq!(fleet.hub.ended(&after.id, SOON).await?.state, "succeeded");
    wait::until("nothing is left", SOON, async || peer.task_processes().is_empty().then_some(())).await
}

#[tokio::test]
async fn a_pool_task_that_a_node_asks_about_waits_for_a_person_and_then_runs_there() -> Result<()> {
    let fleet = Fleet::set(2, 4).await?;
    for peer in &fleet.peers {
        let policy = json!({"mode": "permissive", "task_slots": 4, "ask": [{"prefix": ["touch"]}]});
        let path = format!("/api/nodes/{}/policy", peer.node);
        fleet.hub.person().call::<Value>(reqwest::Method::PUT, &path, Some(&policy)).await?;
    }
    let asked = fleet.dispatch(3, &Shell::argv(["touch", "made"]).pooled()).await?;
    let mut nodes = Vec::new();
    for task in &asked {
        let waits = fleet.hub.task_is(&task.id, "awaiting_approval", SOON).await?;
        assert_eq!(waits.fence, 0, "it was asked about before it was given: {waits:?}");
        nodes.push(waits.node_id);
    }
    // Meanwhile the pool goes on.
    let ended = fleet.ends(&fleet.dispatch(4, &Shell::argv(["true"]).pooled()).await?).await?;
    assert!(ended.iter().all(|task| task.state == "succeeded"), "{ended:?}");
    for task in &asked {
        fleet.hub.person().post::<Value>(&format!("/api/approvals/{}/approve", task.id), json!({})).await?;
    }
    let ended = fleet.ends(&asked).await?;
    for (task, node) in ended.iter().zip(&nodes) {
        assert_eq!((task.state.as_str(), task.fence, &task.node_id), ("succeeded", 1, node), "{task:?}");
    }
    let replayed = replayed(&fleet.hub, &fleet.session, &ended).await?;
    assert!(ended.iter().all(|task| replayed.get(&task.id) == Some(&task.node_id)));
    Ok(())
}
