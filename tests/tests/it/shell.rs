//! What a command is given, and how it ends.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Ran, Shell, problem},
    wait,
};
use serde_json::{Value, json};

use crate::{SOON, Stage};

fn summary(ran: &Ran) -> (&str, Option<i32>, Option<i32>) {
    (&ran.task.state, ran.task.exit_code, ran.task.signal)
}

#[tokio::test]
async fn a_command_ends_with_an_exit_code_or_a_signal() -> Result<()> {
    let Stage { hub, session, peer: _peer } = Stage::set().await?;
    assert_eq!(summary(&hub.run(&session, &Shell::argv(["true"])).await?), ("succeeded", Some(0), None));
    assert_eq!(summary(&hub.run(&session, &Shell::script("exit 3")).await?), ("failed", Some(3), None));
    assert_eq!(summary(&hub.run(&session, &Shell::script("kill -9 $$")).await?), ("failed", None, Some(9)));
    let ran = hub.run(&session, &Shell::script("echo out; echo err >&2; echo out again")).await?;
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\nout again\n", "err\n"));
    assert_eq!((ran.task.stdout_bytes, ran.task.stderr_bytes, ran.task.truncated), (14, 4, false));
    assert!(ran.task.usage.is_some_and(|usage| usage["peak_memory_bytes"].as_u64() > Some(0)));
    Ok(())
}

#[tokio::test]
async fn a_command_sees_a_clean_environment_with_the_changes_it_asked_for() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let ran = hub.run(&session, &Shell::argv(["env"]).env("GREETING", "hello, \"world\" \u{1f30d}").env("LANG", "de_DE.UTF-8")).await?;
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines.contains(&"GREETING=hello, \"world\" \u{1f30d}") && lines.contains(&"LANG=de_DE.UTF-8"), "{lines:?}");
    // What the peer was started with is its own business.
    assert!(lines.iter().all(|line| !line.starts_with("RUST_BACKTRACE=") && !line.starts_with("CORTEX_PEER_")), "{lines:?}");
    assert!(lines.contains(&format!("HOME={}", peer.home().display()).as_str()), "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn a_command_works_inside_its_session_s_workspace() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let workspace = peer.workspace(&session);
    let ran = hub.run(&session, &Shell::script("pwd; mkdir -p a/b; echo content > a/b/file")).await?;
    assert_eq!(ran.stdout.trim_end(), workspace.display().to_string());
    let inside = |cwd: &str| Shell { cwd: cwd.into(), ..Shell::argv(["cat", "file"]) };
    assert_eq!(hub.run(&session, &inside("a/b")).await?.stdout, "content\n");
    for outside in ["/etc", "..", "a/../../other"] {
        assert_eq!(problem(hub.dispatch(&session, &inside(outside)).await)?.code, "malformed_task", "{outside}");
    }
    std::os::unix::fs::symlink("/etc", workspace.join("away"))?;
    for wrong in ["missing", "a/b/file", "away"] {
        let ran = hub.run(&session, &inside(wrong)).await?;
        assert_eq!((ran.task.state.as_str(), ran.task.code.as_deref()), ("rejected", Some("cannot_start")), "{wrong}");
    }
    let other = hub.session(&[&peer.node]).await?.id;
    assert_eq!(hub.run(&other, &Shell::argv(["ls"])).await?.stdout, "", "each session has a workspace of its own");
    Ok(())
}

#[tokio::test]
async fn a_command_reads_what_is_sent_to_it() -> Result<()> {
    let Stage { hub, session, peer: _peer } = Stage::set().await?;
    // Without stdin there is nothing to read, at once.
    assert_eq!(hub.run(&session, &Shell::argv(["cat"])).await?.stdout, "");
    let task = hub.dispatch(&session, &Shell { stdin: true, ..Shell::script("read -r first; echo \"got $first\"; cat | wc -c") }).await?;
    hub.task_is(&task.id, "running", SOON).await?;
    let path = format!("/api/tasks/{}/stdin", task.id);
    let sent = async |offset: u64, data: &str, end: bool| {
        let answer: Value = hub.post(&path, json!({"offset": offset, "data": data, "end": end})).await?;
        answer["next_offset"].as_u64().context("where it goes on")
    };
    assert_eq!(sent(0, "one line\n", false).await?, 9);
    let answered = async || hub.output(&task.id, "stdout").await.ok().filter(|output| !output.is_empty());
    assert_eq!(wait::until("an answer to the first line", SOON, answered).await?, b"got one line\n");
    assert_eq!(sent(9, &"x".repeat(100_000), false).await?, 100_009);
    // What was sent before may be sent again; what leaves a gap may not.
    assert_eq!(sent(100_000, "xxxxxxxxxy", false).await?, 100_010);
    assert_eq!(problem(sent(200_000, "z", false).await)?.code, "wrong_offset");
    assert_eq!(sent(100_010, "", true).await?, 100_010);
    assert_eq!(hub.finish(&task.id, SOON).await?.stdout, "got one line\n100001\n");
    assert_eq!(problem(sent(100_010, "late", false).await)?.code, "not_running");
    Ok(())
}

#[tokio::test]
async fn a_cancelled_task_takes_its_whole_process_tree_with_it() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let script = "sh -c 'sleep 300 & sleep 300 & wait' & setsid sleep 300 & (setsid sh -c 'sleep 300; true' &) ; echo up; wait";
    let task = hub.dispatch(&session, &Shell::script(script)).await?;
    wait::until("all of them run", SOON, async || (peer.task_processes().len() >= 6).then_some(())).await?;
    hub.cancel(&task.id).await?;
    hub.cancel(&task.id).await?;
    let ended = hub.task_is(&task.id, "cancelled", Duration::from_secs(20)).await?;
    assert!(ended.exit_code.is_some() != ended.signal.is_some(), "either a code or a signal: {ended:?}");
    assert_eq!(peer.task_processes(), [], "nothing is left when the task is final");
    assert_eq!(hub.cancel(&task.id).await?.state, "cancelled", "what is final stays as it is");
    Ok(())
}

#[tokio::test]
async fn each_timeout_ends_what_it_is_for() -> Result<()> {
    let Stage { hub, session, mut peer } = Stage::set().await?;
    let long = || Shell::argv(["sleep", "300"]);
    let run = hub.dispatch(&session, &Shell { run_timeout_ms: Some(300), ..long() }).await?;
    let idle = hub.dispatch(&session, &Shell { idle_timeout_ms: Some(300), ..long() }).await?;
    // One that talks is not idle, however long it runs.
    let talks = Shell { idle_timeout_ms: Some(2_000), ..Shell::script("for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done") };
    let talks = hub.dispatch(&session, &talks).await?;
    for task in [&run, &idle] {
        let ended = hub.task_is(&task.id, "timed_out", SOON).await?;
        assert!(ended.reason.is_some(), "which of them it was: {ended:?}");
    }
    assert_eq!(hub.ended(&talks.id, SOON).await?.state, "succeeded");
    assert_eq!(peer.task_processes(), []);

    peer.process.terminate(SOON).await?;
    hub.node_is(&peer.node, "offline", SOON).await?;
    let queued = hub.dispatch(&session, &Shell { queue_timeout_ms: 500, ..long() }).await?;
    assert_eq!(queued.state, "queued");
    let expired = hub.task_is(&queued.id, "expired", SOON).await?;
    assert!(expired.code.is_some() && expired.reason.is_some(), "{expired:?}");
    let waits = hub.dispatch(&session, &Shell { queue_timeout_ms: 60_000, ..Shell::argv(["echo", "at last"]) }).await?;
    peer.restart()?;
    assert_eq!(hub.finish(&waits.id, SOON).await?.stdout, "at last\n");
    Ok(())
}

#[tokio::test]
async fn the_node_s_own_file_and_the_hub_s_policy_both_refuse() -> Result<()> {
    let hub = cortex_tests::hub::Hub::start().await?;
    let settings = "policy:\n  deny: ['shutdown', 'git push']\n".to_owned();
    let peer = hub.enrol_with(cortex_tests::peer::PeerOptions { name: "careful".into(), settings, ..Default::default() }).await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let refused = async |argv| {
        let ran = hub.run(&session, &argv).await?;
        Ok::<_, anyhow::Error>((ran.task.state, ran.task.code))
    };
    let denied = ("rejected".to_owned(), Some("policy_denied".to_owned()));
    assert_eq!(refused(Shell::argv(["/sbin/shutdown", "now"])).await?, denied);
    assert_eq!(refused(Shell::script("true && git push --force")).await?, denied);
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "fine"])).await?.stdout, "fine\n");
    let policy = json!({"mode": "permissive", "deny": [{"prefix": ["date"], "reason": "no clocks"}]});
    hub.person().call::<Value>(reqwest::Method::PUT, &format!("/api/nodes/{}/policy", peer.node), Some(&policy)).await?;
    let look = async || refused(Shell::argv(["date"])).await.ok().filter(|now| *now == denied);
    wait::until("the hub's policy holds", SOON, look).await?;
    assert_eq!(refused(Shell::argv(["shutdown"])).await?, denied, "the node's own file still holds");
    Ok(())
}
