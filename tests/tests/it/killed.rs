//! Hub and peer, killed at each step of a task, one after the other: no task runs twice, no final state changes, and nothing that was acknowledged is lost.
//!
//! A row of [`HUB`] and [`PEER`] names a place (see `cortex_runtime::failpoint`), what is under way when a program dies there, and how it may end. That the program died there
//! is part of the test: a place that is never come to fails it.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use cortex_tests::api::{Shell, Task};
use cortex_wire::task::State;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{SOON, Stage};

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A task for the node.
    Named,
    /// One for a node that takes nothing yet.
    Waiting,
    /// One of the pool.
    Pooled,
    /// One that runs, and is cancelled.
    Cancelled,
}

use Work::{Cancelled, Named, Pooled, Waiting};

type Row = (&'static str, Work, &'static [&'static str]);

const DONE: &[&str] = &["succeeded"];
/// It had begun: whether it did its work is not known, and so it is not done again.
const LOST: &[&str] = &["lost"];

/// A hub forgets nothing of what a node does meanwhile.
const HUB: [Row; 15] = [
    ("hub.queued", Waiting, DONE),
    ("hub.offered", Pooled, DONE),
    ("hub.claimed", Pooled, DONE),
    ("hub.granted", Pooled, DONE),
    ("hub.leased", Named, DONE),
    ("hub.leased", Pooled, DONE),
    ("hub.sent", Named, DONE),
    ("hub.sent", Pooled, DONE),
    ("hub.started", Named, DONE),
    ("hub.output", Named, DONE),
    ("hub.output_durable", Named, DONE),
    ("hub.result", Named, DONE),
    ("hub.result_stored", Named, DONE),
    ("hub.acknowledged", Named, DONE),
    ("hub.cancel_asked", Cancelled, &["cancelled"]),
];

const PEER: [Row; 19] = [
    ("peer.offered", Pooled, DONE),
    ("peer.claimed", Pooled, DONE),
    ("peer.received", Named, DONE),
    ("peer.received", Pooled, DONE),
    ("peer.admitted", Named, DONE),
    ("peer.journalled", Named, LOST),
    ("peer.journalled", Pooled, LOST),
    ("peer.started", Named, LOST),
    ("peer.begun", Named, LOST),
    ("peer.started_told", Named, LOST),
    ("peer.output_sent", Named, LOST),
    ("peer.ended", Named, LOST),
    // The disk may be a moment later than the order.
    ("peer.result_ordered", Named, &["succeeded", "lost"]),
    ("peer.result_journalled", Named, DONE),
    ("peer.result_sent", Named, DONE),
    ("peer.result_stored", Named, DONE),
    ("peer.forgotten", Named, DONE),
    ("peer.cancel_heard", Cancelled, LOST),
    ("peer.cancelling", Cancelled, LOST),
];

/// Says so each time when it begins, prints at its beginning and at its end, and does not end before its beginning was stored.
fn shell(number: usize, work: Work) -> Shell {
    let end = if work == Cancelled { "sleep 300" } else { "sleep 0.5" };
    let shell = Shell::script(format!("echo ran >> runs-{number}; echo begun; {end}; echo done"));
    let shell = Shell { queue_timeout_ms: 120_000, ..shell };
    if work == Pooled { shell.pooled() } else { shell }
}

/// The events of a session about tasks: each task's states, in their order.
async fn lives(stage: &Stage) -> Result<BTreeMap<String, Vec<State>>> {
    let mut events = stage.hub.follow(&format!("/api/sessions/{}/events", stage.session));
    // The last row is this one, written behind all others.
    let note = json!({"text": "all of them"});
    stage.hub.post::<Value>(&format!("/api/sessions/{}/messages", stage.session), note).await?;
    let mut lives: BTreeMap<String, Vec<State>> = BTreeMap::new();
    loop {
        let event = events.next(SOON).await?.context("the log ends early")?;
        match event.name.as_str() {
            "message" => return Ok(lives),
            "task" => {
                let data = &event.data["data"];
                let id = data["id"].as_str().context("which task")?;
                let state = data["state"].as_str().and_then(State::from_name).context("a state")?;
                lives.entry(id.to_owned()).or_default().push(state);
            }
            _ => {}
        }
    }
}

/// Dispatches under one key until the hub has answered; also whether it died before it did.
async fn dispatched(stage: &mut Stage, number: usize, shell: &Shell) -> Result<(Task, bool)> {
    let key = format!("task-{number}");
    if let Ok((task, _)) = stage.hub.dispatch_once(&stage.session, shell, &key).await {
        return Ok((task, false));
    }
    stage.hub.process.ended(SOON).await.context("an answer, or the hub's death")?;
    stage.hub.restart().await?;
    Ok((stage.hub.dispatch_once(&stage.session, shell, &key).await?.0, true))
}

async fn drain(stage: &Stage, how: &str) -> Result<()> {
    stage.hub.call::<Value>(Method::POST, &format!("/api/nodes/{}/{how}", stage.peer.node), None).await.map(drop)
}

async fn strike(stage: &mut Stage, number: usize, row: Row) -> Result<Task> {
    let (place, work, ends) = row;
    let on_hub = place.starts_with("hub.");
    let shell = shell(number, work);
    let arm = |stage: &Stage| if on_hub { stage.hub.process.dies_at(place) } else { stage.peer.process.dies_at(place) };
    if work == Waiting {
        drain(stage, "drain").await?;
    }
    let (task, is_back) = if work == Cancelled {
        let (task, _) = dispatched(stage, number, &shell).await?;
        stage.hub.task_is(&task.id, "running", SOON).await?;
        arm(stage)?;
        // The hub may die before it answers.
        let _ = stage.hub.cancel(&task.id).await;
        (task, false)
    } else {
        arm(stage)?;
        dispatched(stage, number, &shell).await?
    };
    let mut seen = Vec::new();
    if !on_hub {
        stage.peer.process.ended(SOON).await.with_context(|| format!("the peer comes to {place}"))?;
        seen = stage.hub.output(&task.id, "stdout").await?;
        stage.peer.restart()?;
    } else if !is_back {
        stage.hub.process.ended(SOON).await.with_context(|| format!("the hub comes to {place}"))?;
        stage.hub.restart().await?;
    }
    if work == Waiting {
        drain(stage, "undrain").await?;
    }
    if work == Cancelled {
        let _ = stage.hub.cancel(&task.id).await;
    }
    let ran = stage.hub.finish(&task.id, Duration::from_secs(40)).await.with_context(|| format!("{place}: it ends"))?;
    let runs = fs::read_to_string(stage.peer.workspace(&stage.session).join(format!("runs-{number}"))).unwrap_or_default();
    let told = format!("{place} {work:?}: {runs:?} {:?} {:?}", ran.stdout, ran.task);
    ensure!(ends.contains(&ran.task.state.as_str()), "it may not end so: {told}");
    ensure!(runs.lines().count() <= 1, "it ran twice: {told}");
    ensure!(ran.task.state != "succeeded" || (runs == "ran\n" && ran.stdout == "begun\ndone\n"), "all of it, once: {told}");
    ensure!(ran.stdout.as_bytes().starts_with(&seen), "what was to be seen is still there: {told}");
    Ok(ran.task)
}

async fn strike_all(rows: &[Row]) -> Result<()> {
    let mut stage = Stage::set().await?;
    let mut ended = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        stage.hub.node_is(&stage.peer.node, "online", SOON).await?;
        ended.push(strike(&mut stage, number, *row).await?);
    }
    // Whatever might have been done again had its chance by now.
    stage.still_works().await?;
    let lives = lives(&stage).await?;
    for (task, row) in ended.iter().zip(rows) {
        let now = stage.hub.task(&task.id).await?;
        assert_eq!((&now.state, now.exit_code, &now.code), (&task.state, task.exit_code, &task.code), "{row:?}: a final state has changed");
        let life = lives.get(&task.id).with_context(|| format!("{row:?}: its life"))?;
        let finals = life.iter().filter(|state| state.is_final()).count();
        assert!(finals == 1 && life.last().is_some_and(|last| last.is_final()), "{row:?}: {life:?}");
        // Asked to be cancelled, a task is told of again as it is.
        assert!(life.windows(2).all(|pair| pair[0] == pair[1] || pair[0].may_become(pair[1])), "{row:?}: {life:?}");
    }
    assert_eq!(lives.len(), ended.len() + 1, "no task came from nowhere");
    assert_eq!(stage.peer.task_processes(), [], "nothing is left running");
    stage.hub.verify_audit().await.map(drop)
}

#[tokio::test]
async fn a_hub_that_dies_at_any_step_of_a_task_loses_and_repeats_nothing() -> Result<()> {
    strike_all(&HUB).await
}

#[tokio::test]
async fn a_peer_that_dies_at_any_step_of_a_task_runs_it_once_and_says_what_it_knows() -> Result<()> {
    strike_all(&PEER).await
}
