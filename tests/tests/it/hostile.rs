//! Commands that misbehave: each has one clear outcome, and afterwards the next command runs as if nothing had been.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Problem, Shell},
    wait,
};
use reqwest::Method;

use crate::{SOON, Stage};

/// What hub and peer may need at most, whatever a command does. Debug programs need more than others.
const MEMORY: u64 = 128 << 20;

#[tokio::test]
async fn a_command_that_does_not_exist_is_rejected_with_the_reason() -> Result<()> {
    let stage = Stage::set().await?;
    for (shell, said) in [
        (Shell::argv(["no-such-program"]), "no-such-program"),
        (Shell::argv(["/no/such/program"]), "/no/such/program"),
        (Shell::argv(["/etc/passwd"]), "/etc/passwd"),
        (Shell { shell: Some("/bin/no-such/sh".into()), ..Shell::script("true") }, "/bin/no-such/sh"),
    ] {
        let ran = stage.hub.run(&stage.session, &shell).await?;
        assert_eq!((ran.task.state.as_str(), ran.task.code.as_deref()), ("rejected", Some("cannot_start")), "{ran:?}");
        assert!(ran.task.reason.context("a reason")?.contains(said));
    }
    // Inside a script it is the script's business.
    let ran = stage.hub.run(&stage.session, &Shell::script("no-such-program")).await?;
    assert_eq!((ran.task.state.as_str(), ran.task.exit_code), ("failed", Some(127)));
    stage.still_works().await
}

#[tokio::test]
async fn a_gigabyte_of_output_ends_in_bounded_memory() -> Result<()> {
    const GIB: u64 = 1 << 30;
    let stage = Stage::set().await?;
    let task = stage.hub.dispatch(&stage.session, &Shell::argv(["head", "-c", "1G", "/dev/zero"])).await?;
    let ended = stage.hub.ended(&task.id, Duration::from_secs(120)).await?;
    assert_eq!((ended.state.as_str(), ended.exit_code, ended.stdout_bytes), ("succeeded", Some(0), GIB));
    for (name, process) in [("the hub", &stage.hub.process), ("the peer", &stage.peer.process)] {
        let peak = process.peak_memory()?;
        eprintln!("{name}: {} MiB at most", peak >> 20);
        assert!(peak < MEMORY, "{name} needed {} MiB", peak >> 20);
    }
    // The beginning and the end are kept, and it says where the gap is.
    let piece = async |offset: u64| {
        let path = format!("/api/tasks/{}/output?offset={offset}", task.id);
        stage.hub.request(Method::GET, &path).send().await.map_err(anyhow::Error::from)
    };
    let mut first = piece(0).await?;
    assert!(first.status().is_success());
    assert_eq!(first.chunk().await?.context("output")?.first(), Some(&0));
    assert!(ended.truncated);
    let gap: Problem = piece(GIB / 2).await?.json().await?;
    assert_eq!(gap.code, "output_truncated");
    let next = gap.next_offset.context("where it goes on")?;
    assert_eq!(piece(next).await?.bytes().await?.len() as u64, GIB - next);
    stage.still_works().await
}

#[tokio::test]
async fn a_daemon_that_is_left_behind_ends_with_its_task() -> Result<()> {
    let stage = Stage::set().await?;
    // One holds the output open, one has let go of it and of its parents.
    let script = "sleep 300 & setsid sh -c 'exec sleep 300 >/dev/null 2>&1 </dev/null' & echo started";
    let ran = stage.hub.run(&stage.session, &Shell::script(script)).await?;
    assert_eq!((ran.task.state.as_str(), ran.task.exit_code, ran.stdout.as_str()), ("succeeded", Some(0), "started\n"));
    assert!(ran.task.descendants_held_pipe);
    assert_eq!(stage.peer.task_processes(), []);
    stage.still_works().await
}

#[tokio::test]
async fn a_command_that_ignores_signals_is_killed() -> Result<()> {
    let stage = Stage::set().await?;
    let script = "trap '' INT TERM HUP; echo deaf; while :; do sleep 0.1; done";
    let task = stage.hub.dispatch(&stage.session, &Shell::script(script)).await?;
    wait::until("it runs", SOON, async || stage.hub.output(&task.id, "stdout").await.ok().filter(|output| !output.is_empty())).await?;
    stage.hub.cancel(&task.id).await?;
    // INT, five seconds, TERM, five seconds, KILL.
    let ended = stage.hub.task_is(&task.id, "cancelled", Duration::from_secs(20)).await?;
    assert_eq!((ended.exit_code, ended.signal), (None, Some(9)));
    assert_eq!(stage.peer.task_processes(), []);
    stage.still_works().await
}

#[tokio::test]
async fn a_command_that_closes_its_output_still_has_its_end() -> Result<()> {
    let stage = Stage::set().await?;
    let ran = stage.hub.run(&stage.session, &Shell::script("echo last words; exec >&- 2>&-; sleep 0.5; exit 4")).await?;
    assert_eq!((ran.task.state.as_str(), ran.task.exit_code, ran.stdout.as_str()), ("failed", Some(4), "last words\n"));
    assert!(!ran.task.descendants_held_pipe);
    stage.still_works().await
}

#[tokio::test]
async fn a_command_that_reads_for_ever_can_be_cancelled() -> Result<()> {
    let stage = Stage::set().await?;
    let task = stage.hub.dispatch(&stage.session, &Shell { stdin: true, ..Shell::argv(["cat"]) }).await?;
    stage.hub.task_is(&task.id, "running", SOON).await?;
    stage.hub.cancel(&task.id).await?;
    assert_eq!(stage.hub.task_is(&task.id, "cancelled", SOON).await?.signal, Some(2));
    let task = stage.hub.dispatch(&stage.session, &Shell { stdin: true, idle_timeout_ms: Some(500), ..Shell::argv(["cat"]) }).await?;
    assert_eq!(stage.hub.ended(&task.id, SOON).await?.state, "timed_out");
    stage.still_works().await
}

#[tokio::test]
async fn output_that_is_no_text_arrives_byte_for_byte() -> Result<()> {
    let stage = Stage::set().await?;
    let script = "i=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %03o $i)\"; i=$((i+1)); done";
    let task = stage.hub.dispatch(&stage.session, &Shell::script(script)).await?;
    let mut stream = stage.hub.follow(&format!("/api/tasks/{}/stream", task.id));
    let mut arrived = Vec::new();
    while let Some(event) = stream.next(SOON).await? {
        if event.name == "output" {
            arrived.extend(event.output()?.2);
        }
    }
    assert_eq!(arrived, (0..=255).collect::<Vec<u8>>());
    assert_eq!(stage.hub.output(&task.id, "stdout").await?, arrived);
    stage.still_works().await
}

#[tokio::test]
async fn a_fork_bomb_of_moderate_size_is_cancelled_whole() -> Result<()> {
    let stage = Stage::set().await?;
    // It forks as fast as it can, a hundred at a time, away from its parents.
    let script = "bomb() { for i in $(seq 1 10); do (setsid sh -c 'sleep 300' &) ; done; }; \
                  for i in $(seq 1 10); do bomb & done; wait; echo up; while :; do (setsid sleep 300 &); sleep 0.02; done";
    let task = stage.hub.dispatch(&stage.session, &Shell::script(script)).await?;
    wait::until("it has forked", SOON, async || (stage.peer.task_processes().len() > 100).then_some(())).await?;
    stage.hub.cancel(&task.id).await?;
    stage.hub.task_is(&task.id, "cancelled", Duration::from_secs(20)).await?;
    assert_eq!(stage.peer.task_processes(), []);
    stage.still_works().await
}

#[tokio::test]
async fn more_commands_than_a_node_has_slots_all_end_right() -> Result<()> {
    let stage = Stage::set().await?;
    let mut tasks = Vec::new();
    for i in 0..100 {
        tasks.push((i, stage.hub.dispatch(&stage.session, &Shell::script(format!("sleep 0.2; echo {i}; exit {}", i % 7))).await?));
    }
    for (i, task) in tasks {
        let ran = stage.hub.finish(&task.id, Duration::from_secs(30)).await?;
        assert_eq!((ran.task.exit_code, ran.stdout), (Some(i % 7), format!("{i}\n")), "{:?}", ran.task);
    }
    Ok(())
}
