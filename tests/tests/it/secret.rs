//! Secrets that tasks use: nobody reads them again, and no output, file or log holds them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Ran, problem},
    terminal::Terminal,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{SOON, Stage};

const SECRET: &str = "s3cr3t/Value+with spaces&more";

async fn run(stage: &Stage, script: &str) -> Result<Ran> {
    let body = json!({"script": script, "shell": "/bin/sh", "secrets": {"TOKEN": "github"}});
    let task: Value = stage.hub.post(&format!("/api/sessions/{}/dispatch", stage.session), body).await?;
    stage.hub.finish(task["id"].as_str().context("its id")?, SOON).await
}

async fn give(stage: &Stage, value: &str) -> Result<Value> {
    stage.hub.call(Method::PUT, "/api/secrets/github", Some(&json!({"value": value}))).await
}

/// The files below a folder that hold these bytes.
fn holders(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(holders(&path, bytes)),
            Ok(kind) if kind.is_file() => {
                if fs::read(&path).is_ok_and(|text| text.windows(bytes.len()).any(|part| part == bytes)) {
                    found.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
    found
}

#[tokio::test]
async fn a_secret_is_given_used_and_never_shown_again() -> Result<()> {
    let stage = Stage::set().await?;
    let given = give(&stage, SECRET).await?;
    assert_eq!(given["name"], "github");
    let listed: Value = stage.hub.get("/api/secrets").await?;
    assert_eq!(listed["items"][0]["name"], "github");
    assert!(!listed.to_string().contains("s3cr3t") && !given.to_string().contains("s3cr3t"));

    // The program has it, and everything it prints is without it.
    let ran = run(&stage, "printf %s \"$TOKEN\" | wc -c; echo \"<$TOKEN>\"; echo \"$TOKEN\" >&2; echo \"x$TOKEN\" | base64").await?;
    assert_eq!(ran.stderr, "***\n");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((lines[0].trim(), lines[1]), (SECRET.len().to_string().as_str(), "<***>"));
    assert!(lines[2].contains("***") && lines[2].len() < 12, "{lines:?}");
    let bytewise = "i=1; while [ $i -le ${#TOKEN} ]; do printf %s \"$(printf %s \"$TOKEN\" | cut -c$i)\"; i=$((i + 1)); done; echo; printf '%s' \"$TOKEN\" | head -c 9; sleep 0.2; printf '%s\\n' \"$TOKEN\" | tail -c +10";
    assert_eq!(run(&stage, bytewise).await?.stdout, "***\n***\n");
    let url = "printf 's3cr3t%%2FValue%%2Bwith%%20spaces%%26more s3cr3t%%2fValue%%2bwith+spaces%%26more\\n'";
    assert_eq!(run(&stage, url).await?.stdout, "*** ***\n");
    // The end of the output may be the beginning of a secret.
    assert_eq!(run(&stage, "printf 's3cr3t/Val'").await?.stdout, "s3cr3t/Val");

    let query = json!({"terminal": {"columns": 80, "rows": 24}, "shell": "/bin/sh", "secrets": {"TOKEN": "github"}});
    let task: Value = stage.hub.person().post(&format!("/api/sessions/{}/dispatch", stage.session), query).await?;
    let mut terminal = Terminal::open(&stage.hub, &stage.session, &format!("task={}&offset=0", task["id"].as_str().context("id")?)).await?;
    terminal.ask("echo \"=$TOKEN=\"", "=***=").await?;
    terminal.type_in("exit\n").await?;
    terminal.heard("exit").await?;

    // A shell session keeps what was exported, but not that.
    let kept =
        json!({"script": "export COPY=\"$TOKEN\" OTHER=1", "shell": "/bin/sh", "secrets": {"TOKEN": "github"}, "shell_session": "main"});
    let task: Value = stage.hub.post(&format!("/api/sessions/{}/dispatch", stage.session), kept).await?;
    stage.hub.finish(task["id"].as_str().context("id")?, SOON).await?;
    let look = json!({"script": "echo ${COPY-unset} ${TOKEN-unset} $OTHER", "shell": "/bin/sh", "shell_session": "main"});
    let task: Value = stage.hub.post(&format!("/api/sessions/{}/dispatch", stage.session), look).await?;
    assert_eq!(stage.hub.finish(task["id"].as_str().context("id")?, SOON).await?.stdout, "unset unset 1\n");

    for folder in [stage.peer.home(), stage.hub.data_dir().parent().context("the hub's home")?] {
        for form in [SECRET, "s3cr3t%2F", &data_encoding::BASE64.encode(SECRET.as_bytes())[..32]] {
            assert_eq!(holders(folder, form.as_bytes()), [] as [String; 0], "{form}");
        }
    }
    assert!(!stage.hub.process.log().contains("s3cr3t/") && !stage.peer.process.log().contains("s3cr3t/"));
    stage.hub.verify_audit().await.map(drop)
}

#[tokio::test]
async fn a_secret_that_is_not_there_or_cannot_be_kept_out_is_refused() -> Result<()> {
    let stage = Stage::set().await?;
    let short = problem(give(&stage, "1234567").await)?;
    assert!(short.status == 400 && short.detail.contains("at least 8 bytes"), "{short}");
    assert_eq!(problem(run(&stage, "true").await)?.code, "unknown_secret");
    give(&stage, SECRET).await?;
    assert_eq!(run(&stage, "echo $TOKEN").await?.stdout, "***\n");
    stage.hub.call::<Value>(Method::DELETE, "/api/secrets/github", None).await?;
    assert_eq!(problem(stage.hub.call::<Value>(Method::DELETE, "/api/secrets/github", None).await)?.status, 404);
    assert_eq!(problem(run(&stage, "true").await)?.code, "unknown_secret");

    // Another user's is nobody's; a session's is everybody's who may work there, and comes before one's own.
    give(&stage, SECRET).await?;
    let bob = stage.hub.member("bob").await?;
    assert_eq!(bob.get::<Value>("/api/secrets").await?["items"], json!([]));
    let path = format!("/api/sessions/{}/secrets/github", stage.session);
    assert_eq!(problem(bob.call::<Value>(Method::PUT, &path, Some(&json!({"value": "bob's own value"}))).await)?.status, 404);
    let member = json!({"role": "member"});
    stage.hub.call::<Value>(Method::PUT, &format!("/api/sessions/{}/members/bob", stage.session), Some(&member)).await?;
    let dispatch = format!("/api/sessions/{}/dispatch", stage.session);
    let body = json!({"script": "printf %s \"$TOKEN\" | wc -c", "secrets": {"TOKEN": "github"}});
    assert_eq!(problem(bob.post::<Value>(&dispatch, body.clone()).await)?.code, "unknown_secret");
    stage.hub.call::<Value>(Method::PUT, &path, Some(&json!({"value": "of the session"}))).await?;
    for client in [&bob, &*stage.hub] {
        let task: Value = client.post(&dispatch, body.clone()).await?;
        assert_eq!(client.finish(task["id"].as_str().context("id")?, SOON).await?.stdout.trim(), "14");
    }
    for bad in [json!({"A=B": "github"}), json!({"CORTEX_TASK": "github"})] {
        let body = json!({"argv": ["true"], "secrets": bad});
        assert_eq!(problem(stage.hub.post::<Value>(&dispatch, body).await)?.code, "malformed_task");
    }
    Ok(())
}
