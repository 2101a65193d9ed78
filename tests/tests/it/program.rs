//! The three programs on the command line: what they teach, what they refuse, and with which exit code they end.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use cortex_tests::{
    hub::Hub,
    net::Place,
    peer::Peer,
    program::{self, Finished, Process, run},
    relay::Relay,
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{SOON, Stage};

/// A program that is asked to stop has ended after this time.
const STOPPED: Duration = Duration::from_secs(8);

fn command(name: &str, home: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = program::command(name, &Place::Here, home)?;
    command.args(arguments);
    Ok(command)
}

async fn ends(name: &str, arguments: &[&str]) -> Result<Finished> {
    let home = tempfile::tempdir()?;
    run(command(name, home.path(), arguments)?, SOON).await
}

#[tokio::test]
async fn help_teaches_and_version_says_the_version() -> Result<()> {
    for name in ["cortex-hub", "cortex-relay", "cortex-peer"] {
        let help = ends(name, &["--help"]).await?;
        assert_eq!(help.code, Some(0));
        for part in ["Usage:", "Examples:", "Exit codes:"] {
            assert!(help.stdout.contains(part), "{name} --help has no {part}\n{}", help.stdout);
        }
        let version = ends(name, &["--version"]).await?;
        assert_eq!((version.code, version.stdout), (Some(0), format!("{name} {}\n", env!("CARGO_PKG_VERSION"))));
        let none = ends(name, &[]).await?;
        assert!(none.code == Some(2) && none.stderr.contains("Usage:"), "{none:?}");
        let wrong = ends(name, &["--hlep"]).await?;
        assert!(wrong.code == Some(2) && wrong.stderr.contains("--help"), "{wrong:?}");
    }
    for (name, part) in [("cortex-hub", "serve"), ("cortex-relay", "serve"), ("cortex-peer", "run")] {
        let help = ends(name, &[part, "--help"]).await?;
        assert!(help.code == Some(0) && help.stdout.contains("--config"), "{help:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_the_nearest_known_one() -> Result<()> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("settings.yaml");
    let path = file.display().to_string();
    for (name, part, text, nearest) in [
        ("cortex-hub", "serve", "public_ur: http://x\n", "`public_url`"),
        ("cortex-relay", "serve", "# a relay\nhub: []\n", "`hubs`"),
        ("cortex-peer", "run", "invit: cxi1_x\n", "`invite`"),
    ] {
        fs::write(&file, text)?;
        let refused = run(command(name, home.path(), &[part, "--config", &path])?, SOON).await?;
        assert_eq!(refused.code, Some(2), "{name}: {}", refused.stderr);
        assert!(refused.stderr.contains(nearest) && refused.stderr.contains("settings.yaml line"), "{name}: {}", refused.stderr);
    }
    let missing = ends("cortex-hub", &["serve", "--config", "/no/such/file"]).await?;
    assert!(missing.code == Some(2) && missing.stderr.contains("/no/such/file"), "{missing:?}");
    Ok(())
}

#[tokio::test]
async fn the_example_files_are_accepted_by_their_programs() -> Result<()> {
    let home = tempfile::tempdir()?;
    let peer = ends("cortex-peer", &["config", "example"]).await?;
    let file = home.path().join("peer.yaml");
    fs::write(&file, &peer.stdout)?;
    let checked = run(command("cortex-peer", home.path(), &["config", "check", "--config", &file.display().to_string()])?, SOON).await?;
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);

    let hub = ends("cortex-hub", &["config"]).await?;
    let file = home.path().join("hub.yaml");
    fs::write(&file, &hub.stdout)?;
    let data = home.path().join("data").display().to_string();
    let file = file.display().to_string();
    // Ports of the system's choice, as `0` asks for; flags win over the file.
    let flags = ["serve", "--config", &file, "--data", &data, "--listen", "127.0.0.1:0", "--relay-listen", "127.0.0.1:0"];
    let mut serving = Process::start("hub", command("cortex-hub", home.path(), &flags)?, home.path())?;
    let address =
        serving.line("where it is", SOON, |line| Some(line.split_once("ready at http://127.0.0.1:")?.1.trim().to_owned())).await?;
    assert!(address.parse::<u16>()? > 0);
    serving.terminate(STOPPED).await?;

    let relay = ends("cortex-relay", &["config"]).await?;
    let file = home.path().join("relay.yaml");
    fs::write(&file, &relay.stdout)?;
    let (file, state) = (file.display().to_string(), home.path().join("relay").display().to_string());
    let flags = ["serve", "--config", &file, "--state-dir", &state, "--listen", "127.0.0.1:0"];
    let mut serving = Process::start("relay", command("cortex-relay", home.path(), &flags)?, home.path())?;
    serving.line("its endpoint", SOON, |line| (line.starts_with("127.0.0.1:") && line.contains('#')).then_some(())).await?;
    serving.terminate(STOPPED).await.map(drop)
}

#[tokio::test]
async fn the_environment_overrides_the_file_and_flags_override_both() -> Result<()> {
    let home = tempfile::tempdir()?;
    let (file, data) = (home.path().join("hub.yaml"), home.path().join("data"));
    let [a, b] = [program::free_port()?, program::free_port()?];
    fs::write(&file, format!("listen: 127.0.0.1:1\nrelay: {{listen: '127.0.0.1:0'}}\ndata_dir: {}\n", data.display()))?;
    for (variable, flag, expected) in [(a, None, a), (a, Some(b), b)] {
        let mut serve = command("cortex-hub", home.path(), &["serve", "--config", &file.display().to_string()])?;
        serve.env("CORTEX_HUB_LISTEN", format!("127.0.0.1:{variable}"));
        flag.iter().for_each(|flag| _ = serve.args(["--listen", &format!("127.0.0.1:{flag}")]));
        let mut serving = Process::start("hub", serve, home.path())?;
        let ready = format!("ready at http://127.0.0.1:{expected}");
        serving.line(&ready, SOON, |line| line.contains(&ready).then_some(())).await?;
        serving.kill9().await?;
    }
    let mut wrong = command("cortex-hub", home.path(), &["serve", "--config", &file.display().to_string()])?;
    wrong.env("CORTEX_HUB_LISTEN", "nonsense");
    let refused = run(wrong, SOON).await?;
    assert!(refused.code == Some(2) && refused.stderr.contains("CORTEX_HUB_LISTEN"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn two_programs_do_not_share_a_folder_or_a_port() -> Result<()> {
    let stage = Stage::set().await?;
    let home = tempfile::tempdir()?;
    let data = stage.hub.data_dir().display().to_string();
    let flags = ["serve", "--data", &data, "--listen", "127.0.0.1:0", "--relay-listen", "127.0.0.1:0"];
    let second = run(command("cortex-hub", home.path(), &flags)?, SOON).await?;
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(second.stderr.contains("another cortex-hub uses the data directory"), "{}", second.stderr);

    let other = home.path().join("data").display().to_string();
    let http = stage.hub.http_address().to_string();
    let second = run(command("cortex-hub", home.path(), &["serve", "--data", &other, "--listen", &http])?, SOON).await?;
    assert!(second.code == Some(1) && second.stderr.contains(&http) && second.stderr.contains("--listen"), "{second:?}");
    let relay = stage.hub.relay_address().to_string();
    let flags = ["serve", "--data", &other, "--listen", "127.0.0.1:0", "--relay-listen", &relay];
    let second = run(command("cortex-hub", home.path(), &flags)?, SOON).await?;
    assert!(second.code == Some(1) && second.stderr.contains(&relay), "{second:?}");
    let state = home.path().join("relay").display().to_string();
    let second = run(command("cortex-relay", home.path(), &["serve", "--listen", &relay, "--state-dir", &state])?, SOON).await?;
    assert!(second.code == Some(1) && second.stderr.contains(&relay), "{second:?}");

    let mut second = stage.peer.command()?;
    second.args(["run", "--allow-root", "--config"]).arg(stage.peer.config());
    let second = run(second, SOON).await?;
    assert!(second.code == Some(2) && second.stderr.contains("another cortex-peer") && second.stderr.contains("--state-dir"), "{second:?}");
    stage.still_works().await
}

#[tokio::test]
async fn each_program_ends_with_status_0_when_it_is_asked_to_stop() -> Result<()> {
    for signal in [Signal::TERM, Signal::INT] {
        let Stage { mut hub, session: _, mut peer } = Stage::set().await?;
        let mut relay = Relay::start(&[&hub.key()?]).await?;
        for process in [&mut relay.process, &mut peer.process, &mut hub.process] {
            process.signal(signal)?;
            let status = process.ended(STOPPED).await?;
            assert_eq!(status.code(), Some(0), "after {signal:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_peer_that_may_give_up_says_why_by_its_exit_code() -> Result<()> {
    let mut hub = Hub::start().await?;
    let invite = hub.invite_for("nobody").await?;
    hub.call::<Value>(reqwest::Method::DELETE, &format!("/api/nodes/invites/{}", invite.id), None).await?;
    let mut peer = Peer::start_from(&format!("invite: {}\nmax_retries: 0\n", invite.text), Place::Here)?;
    assert_eq!(peer.process.ended(SOON).await?.code(), Some(3));
    assert!(peer.process.log().contains("the hub refuses this node (invite_revoked)"), "{}", peer.process.log());

    let invite = hub.invite_for("nobody").await?;
    hub.process.kill9().await?;
    let mut peer = Peer::start_from(&format!("invite: {}\nmax_retries: 0\n", invite.text), Place::Here)?;
    assert_eq!(peer.process.ended(Duration::from_secs(20)).await?.code(), Some(4));
    assert!(peer.process.log().contains("doctor"), "it says what to do next: {}", peer.process.log());
    Ok(())
}

#[tokio::test]
async fn a_peer_does_not_run_as_root_unless_it_is_told_to() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let refused = ends("cortex-peer", &["run", "--invite", "cxi1_x"]).await?;
    assert!(refused.code == Some(2) && refused.stderr.contains("--allow-root"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn doctor_is_content_with_a_live_hub_and_explains_a_dead_one() -> Result<()> {
    let Stage { mut hub, session: _, peer } = Stage::set().await?;
    let doctor = async |json: bool| {
        let mut command = peer.command()?;
        command.args(["doctor", "--allow-root", "--config"]).arg(peer.config());
        if json {
            command.arg("--json");
        }
        run(command, Duration::from_secs(20)).await
    };
    let well = doctor(false).await?;
    assert_eq!(well.code, Some(0), "{well:?}");
    let findings: Value = serde_json::from_str(&doctor(true).await?.stdout)?;
    let findings = findings["findings"].as_array().context("findings")?.clone();
    let checked = |what: &str| findings.iter().any(|finding| finding["check"].as_str().is_some_and(|check| check.contains(what)));
    for what in ["name", "udp", "tcp", "clock", "state", "workspace", "sandbox"] {
        assert!(checked(what), "doctor checks {what}: {findings:#?}");
    }
    assert_eq!(peer.status().await?["node_id"], peer.node);
    assert!(!peer.process.log().contains("superseded"), "a check does not disturb the peer that runs");

    hub.process.kill9().await?;
    let ill = doctor(false).await?;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    assert!(ill.stdout.contains("FAIL") && ill.stdout.contains("firewall"), "{}", ill.stdout);
    let nowhere = ends("cortex-peer", &["doctor", "--state-dir", "state"]).await?;
    assert!(nowhere.code == Some(1) && nowhere.stdout.contains("invite"), "{nowhere:?}");
    Ok(())
}

#[tokio::test]
async fn the_demo_does_the_main_job_and_says_so_as_json() -> Result<()> {
    let home: TempDir = tempfile::tempdir()?;
    let finished = run(command("cortex-hub", home.path(), &["demo", "--once", "--json"])?, Duration::from_secs(60)).await?;
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report: Value = serde_json::from_str(finished.stdout.trim())?;
    assert!(report["node_id"].as_str().is_some_and(|id| !id.is_empty()), "{report}");
    for figure in ["online_ms", "first_byte_ms"] {
        assert!(report[figure].as_u64().is_some_and(|ms| ms < 10_000), "{figure}: {report}");
    }
    let tasks = report["tasks"].as_array().context("tasks")?;
    for task in tasks {
        assert!(task["state"] == "succeeded" && task["exit_code"] == 0 && task["id"].is_string(), "{task}");
    }
    let uname = String::from_utf8(Command::new("uname").arg("-a").output()?.stdout)?;
    assert!(tasks.len() >= 2 && tasks[0]["output"] == uname, "{report}");
    // It tidies up behind itself. (What a machine's own tools leave when they are asked for their version is theirs.)
    let left: Vec<_> = fs::read_dir(home.path())?.flatten().map(|entry| entry.file_name()).filter(|name| name != ".rustup").collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn a_demo_that_cannot_do_the_main_job_does_not_end_with_status_0() -> Result<()> {
    let home = tempfile::tempdir()?;
    // A hub without a cortex-peer beside it.
    let alone = home.path().join("cortex-hub");
    fs::copy(program::find("cortex-hub")?, &alone)?;
    let mut demo = Command::new(alone);
    program::clean(&mut demo, home.path());
    demo.args(["demo", "--once", "--json"]);
    let finished = run(demo, Duration::from_secs(30)).await?;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("cortex-peer"), "{}", finished.stderr);
    Ok(())
}
