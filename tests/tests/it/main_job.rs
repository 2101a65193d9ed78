//! The main job: a machine joins with an invite, is attached to a session, and runs commands whose output arrives while they run.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Shell, problem},
    events::Events,
    hub::Hub,
    peer::Peer,
    wait,
};
use serde_json::Value;

use crate::{SOON, Stage};

/// From the start of a peer to online, on a busy machine.
const ONLINE: Duration = Duration::from_secs(5);

fn local(argv: &[&str]) -> Result<String> {
    Ok(String::from_utf8(Command::new(argv[0]).args(&argv[1..]).output()?.stdout)?)
}

#[tokio::test]
async fn a_machine_joins_with_an_invite_and_runs_uname_in_a_session() -> Result<()> {
    let hub = Hub::start().await?;
    let invite = hub.invite_for("laptop").await?;
    assert_eq!(hub.invite_status(&invite.id).await?.state, "open");
    let peer = Peer::start_from(&invite.yaml, Default::default())?;
    let node = hub.redeemed(&invite.id, ONLINE).await?;
    let online = hub.node_is(&node, "online", ONLINE).await?;
    assert_eq!((online.name.as_str(), online.standing.as_str()), ("laptop", "active"));
    assert_eq!(hub.invite_status(&invite.id).await?.state, "used");

    let session = hub.session(&[]).await?;
    assert_eq!(problem(hub.dispatch(&session.id, &Shell::argv(["true"])).await)?.code, "no_node");
    assert_eq!(hub.attach(&session.id, &node).await?.node_ids, [node.as_str()]);
    let ran = hub.run(&session.id, &Shell::argv(["uname", "-a"])).await?;
    assert_eq!((ran.task.state.as_str(), ran.task.exit_code, ran.task.node_id.as_str()), ("succeeded", Some(0), node.as_str()));
    assert_eq!((ran.stdout, ran.stderr), (local(&["uname", "-a"])?, String::new()));

    let yaml = fs::read_to_string(peer.config())?;
    assert!(!yaml.contains("cxi1_"), "the invite should be erased: {yaml}");
    let key = fs::metadata(peer.home().join("state/node.key"))?;
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    hub.verify_audit().await.map(drop)
}

#[tokio::test]
async fn lines_arrive_as_they_are_printed() -> Result<()> {
    let stage = Stage::set().await?;
    // After each line the command waits for a file that is made only when that line has arrived.
    let script = "for i in 1 2 3 4 5; do echo \"line $i\"; while [ ! -e seen$i ]; do sleep 0.01; done; done";
    let task = stage.hub.dispatch(&stage.session, &Shell::script(script)).await?;
    let mut stream = stage.hub.follow(&format!("/api/tasks/{}/stream", task.id));
    for i in 1..=5 {
        let line = stream.find("a line", SOON, |event| event.output().ok().map(|(_, _, data)| data)).await?;
        assert_eq!(String::from_utf8(line)?, format!("line {i}\n"));
        fs::write(stage.peer.workspace(&stage.session).join(format!("seen{i}")), "")?;
    }
    let last =
        stream.find("the end", SOON, |event| (event.name == "task" && event.data["state"] == "succeeded").then(|| event.clone())).await?;
    assert_eq!(last.data["stdout_bytes"], 35);
    assert!(stream.next(SOON).await?.is_none(), "nothing comes behind the end");
    Ok(())
}

/// What a stream brings of a task's standard output, until the task is final; the connection is let go every few events.
async fn output_in_pieces(mut stream: Events, events_per_connection: u32) -> Result<(Vec<u8>, u32)> {
    let (mut output, mut events) = (Vec::new(), 0);
    loop {
        let event = stream.next(SOON).await?.context("the stream ended early")?;
        if event.name == "output" {
            let (_, offset, data) = event.output()?;
            assert_eq!(offset, output.len() as u64, "no gap, and nothing twice");
            output.extend(data);
        }
        if event.name == "task" && matches!(state_of(&event.data), "succeeded" | "failed") {
            return Ok((output, stream.connections()));
        }
        events += 1;
        if events % events_per_connection == 0 {
            stream.disconnect();
        }
    }
}

/// In a task's stream the data is the task, in a session's stream it is a row about it.
fn state_of(data: &Value) -> &str {
    data["state"].as_str().or(data["data"]["state"].as_str()).unwrap_or_default()
}

#[tokio::test]
async fn a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice() -> Result<()> {
    let stage = Stage::set().await?;
    let script = "for i in $(seq 1 40); do echo \"line $i\"; sleep 0.02; done";
    let expected: String = (1..=40).map(|i| format!("line {i}\n")).collect();
    let task = stage.hub.dispatch(&stage.session, &Shell::script(script)).await?;
    let of_task = stage.hub.follow(&format!("/api/tasks/{}/stream", task.id));
    let of_session = stage.hub.follow(&format!("/api/sessions/{}/events?output=true", stage.session));
    let (task, session) = tokio::try_join!(output_in_pieces(of_task, 3), output_in_pieces(of_session, 3))?;
    for (output, connections) in [task, session] {
        assert_eq!(String::from_utf8(output)?, expected);
        assert!(connections > 3, "it came back only {connections} times");
    }
    Ok(())
}

#[tokio::test]
async fn a_node_says_what_it_is_and_how_it_does() -> Result<()> {
    let stage = Stage::set().await?;
    let node = stage.hub.node(&stage.peer.node).await?;
    let has = |key: &str| node.capabilities[key].clone();
    assert_eq!((has("os"), has("architecture")), ("linux".into(), std::env::consts::ARCH.into()));
    assert_eq!(has("kernel"), local(&["uname", "-r"])?.trim());
    assert_eq!(has("cpu_count"), local(&["nproc"])?.trim().parse::<u64>()?);
    assert!(has("shells").as_array().is_some_and(|shells| shells.contains(&"/bin/sh".into())), "{:?}", has("shells"));
    let health = wait::until("a heartbeat", SOON, async || stage.hub.node(&stage.peer.node).await.ok()?.presence.health).await?;
    let kib = fs::read_to_string("/proc/meminfo")?
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().trim_end_matches(" kB").parse::<u64>().ok());
    assert_eq!(health["memory_total_bytes"].as_u64(), kib.map(|kib| kib * 1024));
    assert_eq!(has("memory_bytes").as_u64(), kib.map(|kib| kib * 1024));
    let (used, cpu) = (health["memory_used_bytes"].as_u64().context("memory")?, health["cpu_percent"].as_f64().context("CPU")?);
    assert!(used > 0 && used < health["memory_total_bytes"].as_u64().context("memory")?);
    assert!((0.0..=100.0).contains(&cpu));
    Ok(())
}

#[tokio::test]
async fn an_idempotency_key_runs_a_command_once() -> Result<()> {
    let stage = Stage::set().await?;
    let shell = Shell::script("echo ran >> runs; cat runs");
    let (task, new) = stage.hub.dispatch_once(&stage.session, &shell, "first").await?;
    assert!(new);
    assert_eq!(stage.hub.finish(&task.id, SOON).await?.stdout, "ran\n");
    let (again, new) = stage.hub.dispatch_once(&stage.session, &shell, "first").await?;
    assert_eq!((again.id, again.state.as_str(), new), (task.id.clone(), "succeeded", false));
    let other = Shell::script("echo something else");
    assert_eq!(problem(stage.hub.dispatch_once(&stage.session, &other, "first").await)?.code, "idempotency_conflict");
    let (second, new) = stage.hub.dispatch_once(&stage.session, &shell, "second").await?;
    assert!(new && second.id != task.id);
    assert_eq!(stage.hub.finish(&second.id, SOON).await?.stdout, "ran\nran\n");
    Ok(())
}
