//! Programs that are killed while they work: nothing that was acknowledged is lost, nothing is done twice.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Shell, problem},
    events::{Event, Events},
    wait,
};
use serde_json::{Value, json};

use crate::{SOON, Stage};

/// Lines that a task prints while things break, twenty a second.
const LINES: usize = 100;

fn numbered() -> (Shell, String) {
    let script = format!("for i in $(seq 1 {LINES}); do echo \"line $i\"; sleep 0.05; done");
    (Shell::script(script), (1..=LINES).map(|i| format!("line {i}\n")).collect())
}

/// Follows a task until `length` bytes of its output have arrived, or it is final.
async fn follow_to(stream: &mut Events, output: &mut String, length: usize) -> Result<()> {
    while output.len() < length {
        let event = stream.next(Duration::from_secs(30)).await?.context("the stream ended early")?;
        if event.name == "output" {
            let (_, offset, data) = event.output()?;
            assert_eq!(offset, output.len() as u64, "no gap, and nothing twice");
            output.push_str(&String::from_utf8(data)?);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_hub_that_is_killed_under_a_running_task_loses_none_of_its_output() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    let (shell, expected) = numbered();
    let mut events = hub.follow("/api/events");
    events.connect().await?;
    let task = hub.dispatch(&session, &shell).await?;
    let mut stream = hub.follow(&format!("/api/tasks/{}/stream", task.id));
    let mut output = String::new();
    follow_to(&mut stream, &mut output, 100).await?;
    hub.process.kill9().await?;
    hub.restart().await?;
    // Whoever followed the hub's events follows them again, and sees the node come back by itself.
    let back = |event: &Event| (event.name == "node" && event.data["data"]["state"] == "online").then_some(());
    events.find("the node's return", SOON, back).await?;
    hub.node_is(&peer.node, "online", SOON).await?;
    follow_to(&mut stream, &mut output, expected.len()).await?;
    assert_eq!(output, expected);
    let ran = hub.finish(&task.id, SOON).await?;
    assert_eq!((ran.task.state.as_str(), ran.task.exit_code, ran.task.attempt), ("succeeded", Some(0), 1));
    assert_eq!(ran.stdout, expected);
    hub.verify_audit().await.map(drop)
}

#[tokio::test]
async fn a_node_takes_new_tasks_whenever_it_has_come_back() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    for i in 0..3 {
        let number = i.to_string();
        for _ in 0..3 {
            let ran = hub.run(&session, &Shell::argv(["echo", &number])).await?;
            assert_eq!((ran.task.state.as_str(), ran.stdout), ("succeeded", format!("{i}\n")), "{:?}", ran.task);
        }
        hub.process.kill9().await?;
        hub.restart().await?;
        hub.node_is(&peer.node, "online", SOON).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_task_that_ends_while_the_hub_is_away_is_collected_afterwards() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    let script = "echo before; while [ ! -e go ]; do sleep 0.01; done; echo after; exit 7";
    let task = hub.dispatch(&session, &Shell::script(script)).await?;
    wait::until("its first output", SOON, async || hub.output(&task.id, "stdout").await.ok().filter(|output| !output.is_empty())).await?;
    hub.process.kill9().await?;
    fs::write(peer.workspace(&session).join("go"), "")?;
    wait::until("the task has ended", SOON, async || peer.task_processes().is_empty().then_some(())).await?;
    hub.restart().await?;
    let ran = hub.finish(&task.id, SOON).await?;
    assert_eq!((ran.task.state.as_str(), ran.task.exit_code, ran.stdout.as_str()), ("failed", Some(7), "before\nafter\n"));
    Ok(())
}

#[tokio::test]
async fn every_acknowledged_record_outlives_a_killed_hub() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    let ran = hub.run(&session, &Shell::script("echo kept; echo too >&2")).await?;
    let message: Value = hub.post(&format!("/api/sessions/{session}/messages"), json!({"text": "remember me"})).await?;
    let token: Value = hub.post("/api/tokens", json!({"name": "second", "scopes": ["read"]})).await?;
    let rows = hub.verify_audit().await?;

    // Killed at no particular moment, under a stream of changes.
    let (mut sessions, mut invites, mut tasks) = (vec![session.clone()], Vec::new(), vec![ran.task.id.clone()]);
    let changes = async {
        loop {
            let Ok(made) = hub.session(&[&peer.node]).await else { return };
            sessions.push(made.id.clone());
            let Ok(invite) = hub.invite_for("somebody").await else { return };
            invites.push(invite.id);
            let Ok(task) = hub.dispatch(&made.id, &Shell::script("echo ran >> runs")).await else { return };
            tasks.push(task.id);
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(1_500), changes).await;
    hub.process.kill9().await?;
    hub.restart().await?;

    assert!(sessions.len() > 3, "there were changes: {}", sessions.len());
    for session in &sessions {
        hub.get::<Value>(&format!("/api/sessions/{session}")).await.with_context(|| format!("session {session}"))?;
    }
    for invite in &invites {
        assert_eq!(hub.invite_status(invite).await?.state, "open");
    }
    for task in &tasks {
        let ended = hub.ended(task, SOON).await?;
        assert_eq!((ended.state.as_str(), ended.exit_code), ("succeeded", Some(0)), "{ended:?}");
    }
    for session in &sessions {
        // Killed between the request and its answer, a task may be there that nobody was told of; none ran twice.
        let runs = fs::read_to_string(peer.workspace(session).join("runs")).unwrap_or_default();
        assert!(runs == "ran\n" || runs.is_empty(), "{runs:?}");
    }
    assert_eq!(hub.output(&ran.task.id, "stdout").await?, b"kept\n");
    assert_eq!(hub.output(&ran.task.id, "stderr").await?, b"too\n");
    let messages: Value = hub.get(&format!("/api/sessions/{session}/messages")).await?;
    assert_eq!(messages["items"][0]["seq"], message["seq"]);
    let reader = hub.with_token(token["text"].as_str().context("a token")?);
    assert_eq!(reader.nodes().await?.len(), 1);
    assert!(hub.verify_audit().await? >= rows);
    Ok(())
}

#[tokio::test]
async fn an_acknowledged_task_runs_once_however_soon_the_hub_dies() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    let mut tasks = Vec::new();
    // Killed at once, a little later, still later: before the task is sent, while it starts, when it has ended.
    for i in 0..8 {
        let shell = Shell { queue_timeout_ms: 60_000, ..Shell::script(format!("echo ran >> runs{i}; echo {i}")) };
        tasks.push(hub.dispatch(&session, &shell).await?.id);
        tokio::time::sleep(Duration::from_millis(5 * i)).await;
        hub.process.kill9().await?;
        hub.restart().await?;
    }
    for (i, task) in tasks.iter().enumerate() {
        let ran = hub.finish(task, Duration::from_secs(30)).await?;
        let runs = fs::read_to_string(peer.workspace(&session).join(format!("runs{i}"))).unwrap_or_default();
        assert_eq!((ran.task.state.as_str(), ran.stdout, runs.as_str()), ("succeeded", format!("{i}\n"), "ran\n"), "{:?}", ran.task);
    }
    Ok(())
}

#[tokio::test]
async fn a_task_is_lost_with_its_peer_and_is_not_run_again() -> Result<()> {
    let Stage { hub, session, mut peer } = Stage::set().await?;
    let task = hub.dispatch(&session, &Shell::script("echo ran >> runs; echo begun; sleep 300; echo never")).await?;
    wait::until("it has begun", SOON, async || hub.output(&task.id, "stdout").await.ok().filter(|output| !output.is_empty())).await?;
    peer.process.kill9().await?;
    peer.restart()?;
    let lost = hub.task_is(&task.id, "lost", Duration::from_secs(20)).await?;
    assert!(lost.reason.is_some() && lost.exit_code.is_none(), "{lost:?}");
    assert_eq!(hub.output(&task.id, "stdout").await?, b"begun\n");
    // Whatever might run it again had its chance when this has run.
    assert_eq!(hub.run(&session, &Shell::argv(["cat", "runs"])).await?.stdout, "ran\n");
    assert_eq!(hub.task(&task.id).await?.state, "lost");
    assert_eq!(peer.task_processes(), [], "what the killed peer left running is ended");
    Ok(())
}

#[tokio::test]
async fn no_task_runs_twice_however_often_its_peer_dies() -> Result<()> {
    let Stage { hub, session, mut peer } = Stage::set().await?;
    let mut tasks = Vec::new();
    for i in 0..40 {
        // Some end at once, some are under way when the peer dies.
        let script = format!("echo ran >> runs{i}; sleep 0.{}; echo done", i % 4);
        tasks.push(hub.dispatch(&session, &Shell { queue_timeout_ms: 60_000, ..Shell::script(script) }).await?.id);
        if i % 10 == 9 {
            peer.process.kill9().await?;
            peer.restart()?;
        }
    }
    let mut succeeded = 0;
    for (i, task) in tasks.iter().enumerate() {
        let ran = hub.finish(task, Duration::from_secs(30)).await?;
        let runs = fs::read_to_string(peer.workspace(&session).join(format!("runs{i}"))).unwrap_or_default();
        match ran.task.state.as_str() {
            "succeeded" => assert_eq!((runs.as_str(), ran.stdout.as_str()), ("ran\n", "done\n"), "{:?}", ran.task),
            "lost" => assert!(runs == "ran\n" || runs.is_empty(), "{runs:?} {:?}", ran.task),
            other => panic!("{other}: {:?}", ran.task),
        }
        succeeded += usize::from(ran.task.state == "succeeded");
    }
    assert!(succeeded >= 10, "those of the last peer at least: {succeeded}");
    assert_eq!(peer.task_processes(), []);
    Ok(())
}

#[tokio::test]
async fn a_hub_that_is_stopped_ends_in_good_order_and_running_tasks_go_on() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    let (shell, expected) = numbered();
    let task = hub.dispatch(&session, &shell).await?;
    hub.task_is(&task.id, "running", SOON).await?;
    hub.process.terminate(Duration::from_secs(8)).await?;
    hub.restart().await?;
    hub.node_is(&peer.node, "online", SOON).await?;
    assert_eq!(hub.finish(&task.id, Duration::from_secs(20)).await?.stdout, expected);
    Ok(())
}

#[tokio::test]
async fn a_peer_that_is_stopped_ends_its_tasks_and_says_how_they_ended() -> Result<()> {
    let Stage { hub, session, mut peer } = Stage::set().await?;
    let short = hub.dispatch(&session, &Shell::script("sleep 1; echo done")).await?;
    let long = hub.dispatch(&session, &Shell::argv(["sleep", "300"])).await?;
    for task in [&short, &long] {
        hub.task_is(&task.id, "running", SOON).await?;
    }
    peer.process.terminate(Duration::from_secs(20)).await?;
    // What ended in time has its result, the rest was cancelled; both were told before the peer left.
    assert_eq!(hub.finish(&short.id, SOON).await?.stdout, "done\n");
    assert_eq!(hub.ended(&long.id, SOON).await?.state, "cancelled");
    assert_eq!(peer.task_processes(), []);
    let refused = problem(hub.dispatch(&session, &Shell::argv(["true"])).await)?;
    assert_eq!((refused.status, refused.code.as_str()), (503, "node_offline"));
    Ok(())
}
