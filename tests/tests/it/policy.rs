//! What nodes allow, what people are asked, and what of it is signed and written down: with the real programs.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::{Client, Shell, problem},
    hub::Hub,
    peer::{Peer, PeerOptions},
    program, wait,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{SOON, Stage};

async fn set_policy(person: &Client, node: &str, policy: Value) -> Result<Value> {
    person.call(Method::PUT, &format!("/api/nodes/{node}/policy"), Some(&policy)).await
}

/// Waits until the node says that the hub's newest policy is in force there.
async fn in_force(hub: &Client, node: &str) -> Result<Value> {
    let path = format!("/api/nodes/{node}/policy");
    let look = async || hub.get::<Value>(&path).await.ok().filter(|policy| policy["is_in_force"] == true);
    wait::until("the policy is in force", SOON, look).await
}

fn asking(words: &[&str]) -> Value {
    json!({"mode": "permissive", "ask": [{"prefix": words, "reason": "look first", "match": [words.join(" ")]}]})
}

async fn answer(client: &Client, task: &str, what: &str, body: Value) -> Result<Value> {
    client.post(&format!("/api/approvals/{task}/{what}"), body).await
}

async fn waiting(client: &Client) -> Result<Vec<String>> {
    let page: Value = client.get("/api/approvals").await?;
    let items = page["items"].as_array().context("a list")?;
    Ok(items.iter().filter_map(|item| item["task_id"].as_str().map(str::to_owned)).collect())
}

async fn peer_says(peer: &Peer, words: &[&str]) -> Result<program::Finished> {
    let mut command = peer.command()?;
    command.args(words);
    program::run(command, SOON).await
}

#[tokio::test]
async fn a_command_waits_for_a_person_also_over_a_restart_of_the_hub() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    let person = hub.person();
    set_policy(&person, &peer.node, asking(&["touch"])).await?;
    in_force(&hub, &peer.node).await?;
    let mut events = hub.follow("/api/events");
    events.connect().await?;
    let task = hub.dispatch(&session, &Shell::argv(["touch", "made"])).await?;
    assert_eq!(task.state, "awaiting_approval");
    let told = |event: &cortex_tests::events::Event| {
        (event.name == "approval").then(|| event.data["data"]["question"].as_str().map(str::to_owned))
    };
    let question = events.find("the question", SOON, told).await?.context("a question")?;
    assert!(question.contains("touch") && question.contains("look first"), "{question}");
    assert_eq!(problem(answer(&hub, &task.id, "approve", json!({})).await)?.code, "forbidden", "a token never answers");

    hub.process.kill9().await?;
    hub.restart().await?;
    hub.node_is(&peer.node, "online", SOON).await?;
    assert_eq!(waiting(&hub).await?, [task.id.as_str()]);
    assert!(!peer.workspace(&session).join("made").exists());
    answer(&person, &task.id, "approve", json!({"reach": "session"})).await?;
    assert_eq!(hub.ended(&task.id, SOON).await?.state, "succeeded");
    assert!(peer.workspace(&session).join("made").exists());
    assert_eq!(waiting(&hub).await?, Vec::<String>::new());

    // It is remembered, until somebody takes it back.
    assert_eq!(hub.run(&session, &Shell::argv(["touch", "made"])).await?.task.state, "succeeded");
    let remembered: Value = hub.get("/api/approvals/remembered").await?;
    let id = remembered["items"][0]["id"].as_str().context("an approval")?;
    hub.call::<Value>(Method::DELETE, &format!("/api/approvals/remembered/{id}"), None).await?;
    let again = hub.dispatch(&session, &Shell::argv(["touch", "made"])).await?;
    answer(&person, &again.id, "deny", json!({"reason": "enough"})).await?;
    let ended = hub.task(&again.id).await?;
    assert_eq!((ended.state.as_str(), ended.code.as_deref()), ("rejected", Some("approval_denied")));
    let silent = Shell { approval_timeout_ms: Some(300), ..Shell::argv(["touch", "made"]) };
    let silent = hub.dispatch(&session, &silent).await?;
    let ended = hub.ended(&silent.id, SOON).await?;
    assert_eq!((ended.state.as_str(), ended.code.as_deref()), ("expired", Some("approval_timeout")));
    hub.verify_audit().await.map(drop)
}

#[tokio::test]
async fn a_question_that_nobody_answers_while_the_hub_is_away_is_a_no() -> Result<()> {
    let Stage { mut hub, session, peer } = Stage::set().await?;
    set_policy(&hub.person(), &peer.node, asking(&["touch"])).await?;
    let task = hub.dispatch(&session, &Shell { approval_timeout_ms: Some(1_000), ..Shell::argv(["touch", "made"]) }).await?;
    assert_eq!(task.state, "awaiting_approval");
    hub.process.kill9().await?;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    hub.restart().await?;
    let ended = hub.ended(&task.id, SOON).await?;
    assert_eq!((ended.state.as_str(), ended.code.as_deref()), ("expired", Some("approval_timeout")));
    assert!(!peer.workspace(&session).join("made").exists());
    Ok(())
}

#[tokio::test]
async fn a_policy_that_changes_under_queued_tasks_counts_for_them() -> Result<()> {
    let hub = Hub::start().await?;
    let settings = "policy:\n  task_slots: 1\n".to_owned();
    let peer = hub.enrol_with(PeerOptions { name: "narrow".into(), settings, ..PeerOptions::default() }).await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let person = hub.person();
    let blocks = hub.dispatch(&session, &Shell::argv(["sleep", "300"])).await?;
    hub.task_is(&blocks.id, "running", SOON).await?;
    let asked = hub.dispatch(&session, &Shell::argv(["touch", "asked"])).await?;
    let denied = hub.dispatch(&session, &Shell::argv(["touch", "denied"])).await?;
    let free = hub.dispatch(&session, &Shell::argv(["echo", "free"])).await?;
    assert_eq!((asked.state.as_str(), denied.state.as_str()), ("queued", "queued"));
    let policy = json!({
        "mode": "permissive",
        "ask": [{"prefix": ["touch", "asked"]}],
        "deny": [{"prefix": ["touch", "denied"]}],
    });
    set_policy(&person, &peer.node, policy).await?;
    in_force(&hub, &peer.node).await?;
    hub.cancel(&blocks.id).await?;
    hub.task_is(&asked.id, "awaiting_approval", SOON).await?;
    assert_eq!(hub.ended(&denied.id, SOON).await?.code.as_deref(), Some("policy_denied"));
    assert_eq!(hub.finish(&free.id, SOON).await?.stdout, "free\n");
    answer(&person, &asked.id, "approve", json!({"prefix": ["touch"]})).await?;
    assert_eq!(hub.ended(&asked.id, SOON).await?.state, "succeeded");
    Ok(())
}

#[tokio::test]
async fn a_task_that_meets_a_newer_policy_on_its_way_is_given_again() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let person = hub.person();
    for round in 0..20_u32 {
        let policy = json!({"mode": "permissive", "task_slots": 10 + round});
        let shell = Shell::argv(["true"]);
        let (changed, task) = tokio::join!(set_policy(&person, &peer.node, policy), hub.run(&session, &shell));
        changed?;
        let task = task?.task;
        assert_eq!((task.state.as_str(), task.code.as_deref()), ("succeeded", None), "round {round}");
        let after = hub.run(&session, &shell).await?.task;
        assert_eq!((after.state.as_str(), after.code.as_deref()), ("succeeded", None), "round {round}");
    }
    Ok(())
}

#[tokio::test]
async fn the_node_s_own_file_is_the_ceiling_and_what_came_of_both_is_shown() -> Result<()> {
    let hub = Hub::start().await?;
    let settings = "policy:\n  ask: [{prefix: whoami, reason: mine to say, match: [whoami]}]\n  deny: [date]\n  task_slots: 2\n".to_owned();
    let peer = hub.enrol_with(PeerOptions { name: "careful".into(), settings, ..PeerOptions::default() }).await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let person = hub.person();
    let wide = json!({"mode": "permissive", "task_slots": 64, "deny": [{"prefix": ["uptime"]}]});
    assert_eq!(problem(set_policy(&hub, &peer.node, wide.clone()).await)?.code, "forbidden", "a token never changes a policy");
    set_policy(&person, &peer.node, wide).await?;
    let policy = in_force(&hub, &peer.node).await?;
    let effective = &policy["in_force"]["policy"];
    let words = |list: &str| effective[list].as_array().map(|rules| rules.iter().map(|rule| rule["prefix"][0].clone()).collect::<Vec<_>>());
    assert_eq!((words("ask"), words("deny")), (Some(vec![json!("whoami")]), Some(vec![json!("uptime"), json!("date")])), "{policy}");
    assert_eq!(effective["task_slots"], 2);
    let code = async |argv| Ok::<_, anyhow::Error>(hub.run(&session, &Shell::argv([argv])).await?.task.code);
    assert_eq!((code("date").await?.as_deref(), code("uptime").await?.as_deref()), (Some("policy_denied"), Some("policy_denied")));
    let asked = hub.dispatch(&session, &Shell::script("true && whoami")).await?;
    assert_eq!(asked.state, "awaiting_approval");
    answer(&person, &asked.id, "approve", json!({})).await?;
    assert_eq!(hub.ended(&asked.id, SOON).await?.state, "succeeded");

    let bad = json!({"mode": "permissive", "deny": [{"prefix": ["git", "push"], "match": ["git -C x push"]}]});
    let refused = problem(set_policy(&person, &peer.node, bad).await)?;
    assert!(refused.detail.contains("`git push`") && refused.detail.contains("git -C x push"), "{refused:?}");
    let stale = person.request(Method::PUT, &format!("/api/nodes/{}/policy", peer.node)).header("if-match", "\"1\"");
    let stale = stale.json(&json!({"mode": "strict"})).send().await?;
    assert_eq!((stale.status().as_u16(), stale.json::<Value>().await?["code"].clone()), (409, json!("policy_changed")));
    let changes: Value = hub.get(&format!("/api/nodes/{}/policy/changes", peer.node)).await?;
    assert_eq!(changes["items"][0]["difference"]["deny"]["added"][0]["prefix"], json!(["uptime"]));
    Ok(())
}

#[tokio::test]
async fn dangerous_commands_of_programs_wait_for_a_person() -> Result<()> {
    let stage = Stage::set().await?;
    let task = stage.hub.dispatch(&stage.session, &Shell::script("cd / && rm -rf $NOTHING/nowhere-at-all")).await?;
    assert_eq!(task.state, "awaiting_approval");
    answer(&stage.hub.person(), &task.id, "deny", json!({})).await?;
    // The same by a person is not asked about.
    let ran = stage.hub.person().run(&stage.session, &Shell::script("sudo -n true || echo no sudo")).await?;
    assert_eq!(ran.task.state, "succeeded");
    stage.still_works().await
}

#[tokio::test]
async fn a_result_is_evidence_that_needs_no_hub() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let ran = hub.run(&session, &Shell::script("echo one; echo two >&2").env("SECRET", "hunter2")).await?;
    let evidence: Value = hub.get(&format!("/api/tasks/{}/evidence", ran.task.id)).await?;
    let file = |name: &str| peer.home().join(name).display().to_string();
    fs::write(file("e.json"), evidence.to_string())?;
    fs::write(file("out"), &ran.stdout)?;
    fs::write(file("err"), &ran.stderr)?;
    let (path, out, err, state) = (file("e.json"), file("out"), file("err"), file("state"));
    let said = peer_says(&peer, &["verify", &path, "--stdout", &out, "--stderr", &err, "--log", &state]).await?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("the node's signature holds") && said.stdout.contains("echo one; echo two"), "{said:?}");
    assert_eq!(peer_says(&peer, &["verify", &path, "--stdout", &err]).await?.code, Some(1));
    let mut altered = evidence.clone();
    altered["command"]["script"] = json!("echo three");
    fs::write(&path, altered.to_string())?;
    let said = peer_says(&peer, &["verify", &path]).await?;
    assert!(said.code == Some(1) && said.stderr.contains("not about this command"), "{said:?}");
    altered["result"]["signature"] = evidence["result"]["body"].clone();
    fs::write(&path, altered.to_string())?;
    assert_eq!(peer_says(&peer, &["verify", &path]).await?.code, Some(1));

    let log = peer_says(&peer, &["log", "--state-dir", &state]).await?.stdout;
    assert!(log.contains("$ echo one; echo two >&2") && log.contains("succeeded, exit 0") && !log.contains("hunter2"), "{log}");
    assert!(!fs::read_to_string(peer.home().join("state/log/0000000001.log"))?.contains("hunter2"));
    let rejected = hub.run(&session, &Shell::argv(["/no/such/program"])).await?.task;
    assert_eq!(problem(hub.get::<Value>(&format!("/api/tasks/{}/evidence", rejected.id)).await)?.code, "no_evidence");
    Ok(())
}

#[tokio::test]
async fn the_machine_s_log_is_followed_and_verified_while_the_peer_runs_and_tells_what_was_altered() -> Result<()> {
    let Stage { hub, session, mut peer } = Stage::set().await?;
    let state = peer.home().join("state").display().to_string();
    hub.run(&session, &Shell::argv(["echo", "before"])).await?;
    let mut command = peer.command()?;
    command.args(["log", "--follow", "--state-dir", &state]);
    let mut follows = program::Process::start("log", command, peer.home())?;
    let sees = |what: &'static str| move |line: &str| line.contains(what).then_some(());
    follows.line("what was", SOON, sees("$ echo before")).await?;
    hub.run(&session, &Shell::argv(["echo", "after"])).await?;
    follows.line("what comes", SOON, sees("$ echo after")).await?;
    follows.kill9().await?;

    let said = peer_says(&peer, &["log", "--verify", "--state-dir", &state]).await?;
    assert!(said.code == Some(0) && said.stdout.contains("of 2 tasks hold"), "{said:?}");
    let json = peer_says(&peer, &["log", "--json", "--state-dir", &state]).await?.stdout;
    let records: Vec<Value> = json.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(records.iter().map(|record| record["n"].as_u64()).collect::<Vec<_>>(), (1..=5).map(Some).collect::<Vec<_>>());
    assert_eq!((records[1]["via"].as_str(), records[2]["state"].as_str()), (Some("api"), Some("succeeded")));

    // Killed while it writes: the torn line is taken off, and the chain goes on.
    peer.process.kill9().await?;
    let file = peer.home().join("state/log/0000000001.log");
    let whole = fs::read_to_string(&file)?;
    fs::write(&file, format!("{whole}0123abc {{\"n\":6"))?;
    peer.restart()?;
    hub.node_is(&peer.node, "online", SOON).await?;
    let back = async || hub.run(&session, &Shell::argv(["echo", "again"])).await.ok().filter(|ran| ran.task.state == "succeeded");
    wait::until("the peer runs tasks again", SOON, back).await?;
    assert_eq!(peer_says(&peer, &["log", "--verify", "--state-dir", &state]).await?.code, Some(0));
    let altered = fs::read_to_string(&file)?.replacen("\"before\"]", "\"befire\"]", 1);
    fs::write(&file, altered)?;
    let said = peer_says(&peer, &["log", "--verify", "--state-dir", &state]).await?;
    assert!(said.code == Some(1) && said.stdout.contains("line 2: record 2 was altered"), "{said:?}");
    Ok(())
}
