//! What one command leaves to the next, and what it does not.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Ran, problem},
    wait,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{SOON, Stage};

async fn dispatch(stage: &Stage, mut body: Value) -> Result<String> {
    body["shell_session"] = json!("main");
    let task: Value = stage.hub.post(&format!("/api/sessions/{}/dispatch", stage.session), body).await?;
    Ok(task["id"].as_str().context("its id")?.to_owned())
}

async fn run(stage: &Stage, script: &str) -> Result<Ran> {
    let task = dispatch(stage, json!({"script": script, "shell": "/bin/sh"})).await?;
    stage.hub.finish(&task, SOON).await
}

async fn says(stage: &Stage, script: &str) -> Result<String> {
    let ran = run(stage, script).await?;
    assert_eq!((ran.task.state.as_str(), ran.stderr.as_str()), ("succeeded", ""), "{script}: {ran:?}");
    Ok(ran.stdout)
}

#[tokio::test]
async fn folder_and_variables_go_on_from_command_to_command() -> Result<()> {
    let mut stage = Stage::set().await?;
    let root = stage.peer.workspace(&stage.session);
    says(&stage, "mkdir -p a/b; cd a/b; export GREETING='hello \"you\"\nthere' EMPTY=; plain=1").await?;
    assert_eq!(
        says(&stage, "pwd; echo \"$GREETING\"; echo \"${EMPTY-unset}${plain-unset}\"").await?,
        format!("{}/a/b\nhello \"you\"\nthere\nunset\n", root.display())
    );
    says(&stage, "cd ..; unset EMPTY; export PATH=\"/opt/tools:$PATH\"; unset LANG").await?;
    let seen =
        says(&stage, "basename \"$PWD\"; echo \"${EMPTY-unset} ${LANG-unset}\"; case $PATH in /opt/tools:*) echo path;; esac").await?;
    assert_eq!(seen, "a\nunset unset\npath\n");

    // A program is started in it, and changes nothing.
    let task = dispatch(&stage, json!({"argv": ["sh", "-c", "pwd; cd /"]})).await?;
    assert_eq!(stage.hub.finish(&task, SOON).await?.stdout, format!("{}/a\n", root.display()));
    // Others do not see it: a command without it, and another name.
    let plain: Value =
        stage.hub.post(&format!("/api/sessions/{}/dispatch", stage.session), json!({"script": "pwd; echo ${GREETING-unset}"})).await?;
    assert_eq!(stage.hub.finish(plain["id"].as_str().context("id")?, SOON).await?.stdout, format!("{}\nunset\n", root.display()));

    stage.peer.process.terminate(SOON).await?;
    stage.peer.restart()?;
    stage.hub.node_is(&stage.peer.node, "online", SOON).await?;
    assert_eq!(
        says(&stage, "basename \"$PWD\"; echo \"$GREETING\"").await?,
        "a\nhello \"you\"\nthere\n",
        "also after a restart of the peer"
    );

    let fresh = dispatch(&stage, json!({"script": "pwd; echo ${GREETING-unset}", "shell": "/bin/sh", "shell_reset": true})).await?;
    assert_eq!(stage.hub.finish(&fresh, SOON).await?.stdout, format!("{}\nunset\n", root.display()));
    assert_eq!(says(&stage, "pwd").await?, format!("{}\n", root.display()));
    Ok(())
}

#[tokio::test]
async fn a_command_that_fails_is_kept_and_one_that_is_killed_is_not() -> Result<()> {
    let stage = Stage::set().await?;
    says(&stage, "mkdir one two three; cd one; export STEP=1").await?;
    let ran = run(&stage, "cd ../two; export STEP=2; exit 9").await?;
    assert_eq!((ran.task.state.as_str(), ran.task.exit_code), ("failed", Some(9)));
    assert_eq!(says(&stage, "basename \"$PWD\"; echo $STEP").await?, "two\n2\n");
    let ran = run(&stage, "set -eu; cd ../one; export STEP=3; false; cd ..").await?;
    assert_eq!(ran.task.exit_code, Some(1));
    assert_eq!(says(&stage, "basename \"$PWD\"; echo $STEP").await?, "one\n3\n");
    assert!(run(&stage, "cd ../two; if then").await?.task.exit_code.is_some_and(|code| code != 0), "what cannot be parsed does nothing");
    assert_eq!(says(&stage, "basename \"$PWD\"").await?, "one\n");

    let ran = run(&stage, "cd ../three; export STEP=4; kill -9 $$").await?;
    assert_eq!(ran.task.signal, Some(9));
    let task = dispatch(&stage, json!({"script": "cd ../three; export STEP=5; echo up; sleep 60", "shell": "/bin/sh"})).await?;
    wait::until("it runs", SOON, async || stage.hub.output(&task, "stdout").await.ok().filter(|output| output == b"up\n")).await?;
    stage.hub.cancel(&task).await?;
    assert_eq!(stage.hub.ended(&task, Duration::from_secs(20)).await?.state, "cancelled");
    assert_eq!(says(&stage, "basename \"$PWD\"; echo $STEP").await?, "one\n3\n", "the state before stays");

    // A folder that is gone, and one outside.
    says(&stage, "cd ..; rmdir three; mkdir gone; cd gone").await?;
    says(&stage, "cd ..; rmdir gone; mkdir gone; cd gone").await?;
    std::fs::remove_dir(stage.peer.workspace(&stage.session).join("gone"))?;
    assert_eq!(says(&stage, "basename \"$PWD\"").await?, format!("{}\n", stage.session));
    let ran = run(&stage, "cd /etc; export STEP=6").await?;
    assert!(ran.task.state == "succeeded" && ran.stderr.contains("outside of the workspace"), "{ran:?}");
    assert_eq!(says(&stage, "basename \"$PWD\"; echo $STEP").await?, format!("{}\n6\n", stage.session));
    Ok(())
}

#[tokio::test]
async fn a_script_may_set_traps_and_two_may_run_at_once() -> Result<()> {
    let stage = Stage::set().await?;
    assert_eq!(says(&stage, "mkdir a b; cd a; export TRAP=1; trap 'echo mine' EXIT; trap 'echo int' INT").await?, "mine\n");
    assert_eq!(says(&stage, "basename \"$PWD\"; echo $TRAP").await?, "a\n1\n");
    // Stated: who takes the EXIT trap and leaves by `exit` leaves everything as it was.
    assert_eq!(says(&stage, "export TRAP=2; trap 'echo mine' EXIT; exit 0").await?, "mine\n");
    assert_eq!(says(&stage, "echo $TRAP").await?, "1\n");
    assert_eq!(says(&stage, "export TRAP=3; (trap 'echo inner' EXIT; exit 0); sleep 60 & exit 0").await?, "inner\n");
    assert_eq!(says(&stage, "echo $TRAP").await?, "3\n", "and nobody waits for what is left in the background");

    let script = |name: &str, folder: &str| {
        format!(
            "export {name}=1 BOTH={name}; {folder}; while [ ! -e {}/go ]; do sleep 0.02; done",
            stage.peer.workspace(&stage.session).display()
        )
    };
    let first = dispatch(&stage, json!({"script": script("FIRST", "cd ../b"), "shell": "/bin/sh"})).await?;
    let second = dispatch(&stage, json!({"script": format!("{}; sleep 0.3", script("SECOND", ":")), "shell": "/bin/sh"})).await?;
    for task in [&first, &second] {
        stage.hub.task_is(task, "running", SOON).await?;
    }
    std::fs::write(stage.peer.workspace(&stage.session).join("go"), "")?;
    for task in [&first, &second] {
        assert_eq!(stage.hub.ended(task, SOON).await?.state, "succeeded");
    }
    assert_eq!(says(&stage, "echo $FIRST$SECOND $BOTH; basename \"$PWD\"").await?, "11 SECOND\nb\n");
    Ok(())
}

#[tokio::test]
async fn what_cannot_keep_a_shell_session_says_so() -> Result<()> {
    let stage = Stage::set().await?;
    // By a person: what a program asks for in another language waits for somebody's yes.
    let path = format!("/api/sessions/{}/dispatch", stage.session);
    let body = json!({"script": "print(1)", "shell": "python3", "shell_session": "main"});
    let task: Value = stage.hub.person().call(Method::POST, &path, Some(&body)).await?;
    let ended = stage.hub.ended(task["id"].as_str().context("its id")?, SOON).await?;
    assert_eq!((ended.state.as_str(), ended.code.as_deref()), ("rejected", Some("cannot_start")));
    assert!(ended.reason.context("a reason")?.contains("shell_session"));
    assert_eq!(problem(dispatch(&stage, json!({"terminal": {"columns": 80, "rows": 24}})).await)?.code, "malformed_task");
    assert_eq!(problem(stage.hub.post::<Value>(&path, json!({"argv": ["true"], "shell_session": "../x"})).await)?.code, "malformed_task");
    assert_eq!(problem(stage.hub.post::<Value>(&path, json!({"argv": ["true"], "shell_reset": true})).await)?.code, "malformed_task");
    let large = run(&stage, "export LARGE=$(head -c 70000 /dev/zero | tr '\\0' x); export SMALL=1").await?;
    assert!(large.stderr.contains("stays as it was"), "{}", large.stderr);
    assert_eq!(says(&stage, "echo ${SMALL-unset}").await?, "unset\n");
    Ok(())
}
