//! STRICT through the hub, with the real programs.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use cortex_tests::{api::Shell, hub::Hub, peer::PeerOptions, program::run, terminal::Terminal, wait};
use serde_json::{Value, json};

use crate::{SOON, Stage};

fn strict(shell: Shell) -> Shell {
    Shell { mode: Some("strict".into()), ..shell }
}

#[tokio::test]
async fn a_node_shows_its_level_and_every_result_carries_the_one_it_ran_at() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let level = async || (hub.node(&peer.node).await.ok()?.capabilities["sandbox_level"] == "strict").then_some(());
    wait::until("the node's own test", SOON, level).await?;
    let ran = hub.run(&session, &strict(Shell::script("echo from inside; cat /proc/self/status | grep Seccomp:"))).await?;
    assert_eq!((ran.stdout.as_str(), ran.task.sandbox_level.as_deref()), ("from inside\nSeccomp:\t2\n", Some("strict")));
    let ran = hub.run(&session, &Shell::script("grep Seccomp: /proc/self/status")).await?;
    assert_eq!((ran.stdout.as_str(), ran.task.sandbox_level.as_deref()), ("Seccomp:\t0\n", Some("permissive")));
    // The peer's key is nowhere to be seen, its workspace is what everybody has.
    let home = peer.home().display().to_string();
    let ran = hub.run(&session, &strict(Shell::script(format!("ls {home}/state; echo made > file; ls {home}")))).await?;
    assert_eq!(ran.stdout, "work\n");
    assert_eq!(fs::read_to_string(peer.workspace(&session).join("file"))?, "made\n");
    Ok(())
}

#[tokio::test]
async fn a_shell_session_goes_on_behind_the_walls() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let says = async |script: &str| -> Result<String> {
        let body = json!({"script": script, "shell": "/bin/sh", "mode": "strict", "shell_session": "main"});
        let task: Value = hub.post(&format!("/api/sessions/{session}/dispatch"), body).await?;
        let ran = hub.finish(task["id"].as_str().context("its id")?, SOON).await?;
        assert_eq!((ran.task.sandbox_level.as_deref(), ran.stderr.as_str()), (Some("strict"), ""), "{ran:?}");
        Ok(ran.stdout)
    };
    says("mkdir -p a/b; cd a/b; export GREETING=hello").await?;
    let there = peer.workspace(&session).join("a/b");
    assert_eq!(says("pwd; echo $GREETING").await?, format!("{}\nhello\n", there.display()));
    Ok(())
}

#[tokio::test]
async fn a_node_that_allows_strict_only_runs_nothing_else() -> Result<()> {
    let hub = Hub::start().await?;
    let settings = "policy:\n  mode: strict\n".to_owned();
    let peer = hub.enrol_with(PeerOptions { name: "careful".into(), settings, ..Default::default() }).await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let weak = hub.run(&session, &Shell { mode: Some("permissive".into()), ..Shell::argv(["true"]) }).await?;
    assert_eq!((weak.task.state.as_str(), weak.task.code.as_deref()), ("rejected", Some("policy_sandbox")));
    assert_eq!(hub.run(&session, &strict(Shell::argv(["echo", "fine"]))).await?.stdout, "fine\n");
    // A terminal there is behind walls, too, when the hub's policy says so.
    let path = format!("/api/nodes/{}/policy", peer.node);
    hub.person().call::<Value>(reqwest::Method::PUT, &path, Some(&json!({"mode": "strict"}))).await?;
    let in_force = async || hub.get::<Value>(&path).await.ok().filter(|policy| policy["is_in_force"] == true).map(drop);
    wait::until("the policy is in force", SOON, in_force).await?;
    let mut terminal = Terminal::open(&hub.person(), &session, "shell=/bin/sh&cols=90&rows=25").await?;
    terminal.ask("stty size; grep -c 'Seccomp:.2' /proc/self/status", "25 90\r\n1\r\n").await?;
    terminal.type_in("exit\n").await?;
    terminal.heard("exit").await?;
    Ok(())
}

#[tokio::test]
async fn a_cancelled_strict_task_takes_its_whole_process_tree_with_it() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let script = "sh -c 'sleep 300 & sleep 300 & wait' & setsid sleep 300 & (setsid sh -c 'sleep 300; true' &) ; echo up; wait";
    let task = hub.dispatch(&session, &strict(Shell::script(script))).await?;
    wait::until("all of them run", SOON, async || (peer.task_processes().len() >= 6).then_some(())).await?;
    hub.cancel(&task.id).await?;
    hub.task_is(&task.id, "cancelled", Duration::from_secs(20)).await?;
    assert_eq!(peer.task_processes(), [], "nothing is left when the task is final");
    Ok(())
}

#[tokio::test]
async fn names_that_programs_believe_stay_as_they_are_in_folders_below_too() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let at = |path: &str| peer.workspace(&session).join(path);
    hub.run(&session, &Shell::script("mkdir -p sub/.git/objects sub/deep")).await?;
    fs::write(at("sub/.git/config"), "[core]\n")?;
    fs::write(at("sub/deep/.envrc"), "export A=1\n")?;
    let tricks = [
        "echo evil >> sub/.git/config",
        "mkdir sub/.git/hooks",
        "echo evil > sub/.git/hooks",
        "mv sub/.git sub/gone",
        "rm -rf sub/.git/config",
        "echo evil >> sub/deep/.envrc",
        "rm -f sub/deep/.envrc",
        "mv sub/deep/.envrc sub/deep/x",
        "ln -sf /dev/null sub/deep/.envrc",
    ];
    for trick in tricks {
        let ran = hub.run(&session, &strict(Shell::script(trick))).await?;
        assert_eq!(ran.task.state, "failed", "{trick}: {ran:?}");
    }
    let works =
        hub.run(&session, &strict(Shell::script("echo o > sub/.git/objects/o && echo f > sub/deep/f && mv sub/deep/f sub/f"))).await?;
    assert_eq!(works.task.state, "succeeded", "{works:?}");
    assert_eq!(fs::read_to_string(at("sub/.git/config"))?, "[core]\n");
    assert_eq!(fs::read_to_string(at("sub/deep/.envrc"))?, "export A=1\n");
    assert!(!at("sub/.git/hooks").exists() && at("sub/.git/objects/o").exists() && at("sub/f").exists());
    Ok(())
}

#[tokio::test]
async fn a_machine_tells_its_owner_its_level_and_its_limits_with_the_reasons() -> Result<()> {
    let Stage { hub: _hub, session: _, peer } = Stage::set().await?;
    let tested = async || peer.status().await.ok().map(|status| status["sandbox"].clone()).filter(|sandbox| sandbox["level"].is_string());
    let sandbox = wait::until("the level", SOON, tested).await?;
    assert_eq!((&sandbox["level"], &sandbox["missing"]), (&json!("strict"), &json!([])));
    let limits = &sandbox["limits"];
    let all = limits["controllers"].as_array().context("a list")?.len() == 3;
    assert_eq!(all, limits["missing"].is_null(), "what is not limited has a reason: {limits}");
    let mut command = peer.command()?;
    command.args(["status", "--config"]).arg(peer.config());
    let said = run(command, SOON).await?;
    assert!(said.stdout.contains("sandbox      strict\nlimits       "), "{said:?}");
    Ok(())
}

#[tokio::test]
async fn a_task_has_a_group_of_its_own_that_nobody_leaves_alive() -> Result<()> {
    let Stage { hub, session, peer } = Stage::set().await?;
    let sandbox = peer.status().await?["sandbox"].clone();
    if sandbox["limits"]["missing"].as_str().is_some_and(|why| why.contains("no cgroup")) {
        eprintln!("there is no group to be tried here: {sandbox}");
        return Ok(());
    }
    let ran = hub.run(&session, &Shell::script("sleep 0.1; grep ^0:: /proc/self/cgroup")).await?;
    assert!(ran.stdout.contains("/cortex-tasks."), "{ran:?}");
    // In a namespace of its own it is the top.
    let ran = hub.run(&session, &strict(Shell::script("grep ^0:: /proc/self/cgroup"))).await?;
    assert_eq!(ran.stdout, "0::/\n");
    // Without its mark, its parent and its session, a process is still in the group.
    let escapes = "sleep 0.1; (prlimit --locks=77:77 setsid sh -c 'echo $$ > escaped; exec sleep 300' &); sleep 300";
    let task = hub.dispatch(&session, &Shell::script(escapes)).await?;
    let file = peer.workspace(&session).join("escaped");
    let pid = wait::until("it is away", SOON, async || fs::read_to_string(&file).ok()?.trim().parse::<i32>().ok()).await?;
    let proc = format!("/proc/{pid}/comm");
    wait::until("it sleeps", SOON, async || fs::read_to_string(&proc).ok().filter(|name| name == "sleep\n").map(drop)).await?;
    hub.cancel(&task.id).await?;
    assert_eq!(hub.ended(&task.id, Duration::from_secs(25)).await?.state, "cancelled");
    let gone = fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    assert!(gone, "process {pid} has outlived its task");
    Ok(())
}

#[tokio::test]
async fn without_user_namespaces_doctor_names_the_setting_that_is_in_the_way() -> Result<()> {
    let Stage { hub: _hub, session: _, peer } = Stage::set().await?;
    let doctor = peer.command()?;
    let mut command = std::process::Command::new("unshare");
    let off = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" doctor --json --allow-root --config \"$1\"";
    command.args(["-Ur", "sh", "-c", off]).arg(doctor.get_program()).arg(peer.config());
    let said = run(command, Duration::from_secs(60)).await?;
    let findings: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
    let findings = findings["findings"].as_array().context("findings")?;
    let found = findings.iter().find(|finding| finding["check"] == "sandbox").context("about the sandbox")?;
    let text = found["found"].as_str().context("text")?;
    assert!(text.starts_with("permissive") && text.contains("sysctl -w user.max_user_namespaces"), "{text}");
    Ok(())
}
