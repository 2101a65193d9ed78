//! From the download page to a node, as somebody who is not root does it: the one-liner, the bundle, the checksum.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use cortex_tests::{
    hub::Hub,
    program::{self, Process, run},
};
use reqwest::Method;
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::SOON;

/// The debug program has a hundred megabytes: it is summed up, sent, packed.
const LONG: Duration = Duration::from_secs(60);
/// `nobody`, for tests that run as root.
const NOBODY: u32 = 65_534;

/// The home of somebody who is not root.
struct Person {
    home: TempDir,
}

impl Person {
    fn new() -> Result<Self> {
        let home = tempfile::tempdir()?;
        if geteuid().is_root() {
            chown(home.path(), Some(NOBODY), Some(NOBODY))?;
        }
        Ok(Self { home })
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    /// A command that this person types.
    fn types(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        program::clean(&mut command, self.home());
        command.args(["-c", line]).process_group(0);
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Types a command that goes on; all of it is ended with the guard.
    fn starts(&self, line: &str) -> Result<Started> {
        // The log is the test's own.
        Ok(Started(Process::start("shell", self.types(line), self.home())?))
    }
}

/// A command with everything that it started.
struct Started(Process);

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[tokio::test]
async fn the_one_liner_makes_a_machine_a_node() -> Result<()> {
    let hub = Hub::start().await?;
    let page = hub.request(Method::GET, "/download").send().await?;
    assert!(page.status().is_success());
    let page = page.text().await?;
    assert!(page.contains("install.sh") || page.contains("/assets/"), "{page}");

    let invite = hub.invite_for("one-liner").await?;
    let person = Person::new()?;
    let started = person.starts(&invite.one_liner)?;
    let node = hub.redeemed(&invite.id, LONG).await?;
    hub.node_is(&node, "online", SOON).await?;
    let installed = person.home().join(".local/bin/cortex-peer");
    assert_eq!(fs::read(&installed)?, fs::read(program::find("cortex-peer")?)?);
    let config = person.home().join(".config/cortex-peer/peer.yaml");
    assert!(!fs::read_to_string(&config)?.contains("cxi1_"), "the invite is erased");
    assert_eq!(fs::metadata(&config)?.permissions().mode() & 0o777, 0o600);
    let session = hub.session(&[&node]).await?.id;
    let ran = hub.run(&session, &cortex_tests::api::Shell::argv(["id", "-u"])).await?;
    assert_ne!(ran.stdout, "0\n", "it does not run as root");
    drop(started);

    // Once more without an invite: the same machine, the same node.
    hub.node_is(&node, "offline", Duration::from_secs(12)).await?;
    let again = person.starts(&format!("curl -fsSL {}/install.sh | sh", hub.base()))?;
    hub.node_is(&node, "online", LONG).await?;
    drop(again);
    Ok(())
}

#[tokio::test]
async fn a_download_that_was_altered_is_not_installed() -> Result<()> {
    let hub = Hub::start().await?;
    let invite = hub.invite_for("careful").await?;
    let person = Person::new()?;
    // A network that adds a byte to programs.
    let tools = person.home().join("tools");
    fs::create_dir(&tools)?;
    let curl = "#!/bin/sh\n/usr/bin/curl \"$@\" || exit 1\nfor a; do last=$a; case $p in -o) out=$a ;; esac; p=$a; done\n\
                case $last in */dist/cortex-peer-*) printf x >>\"$out\" ;; esac\n";
    fs::write(tools.join("curl"), curl)?;
    fs::set_permissions(tools.join("curl"), fs::Permissions::from_mode(0o755))?;
    let ended = run(person.types(&format!("PATH={}:$PATH; {}", tools.display(), invite.one_liner)), LONG).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("altered") && ended.stderr.contains("nothing was installed"), "{}", ended.stderr);
    assert!(!person.home().join(".local").exists() && !person.home().join(".config").exists());
    assert_eq!(hub.invite_status(&invite.id).await?.state, "open");
    Ok(())
}

#[tokio::test]
async fn the_script_refuses_what_it_cannot_use() -> Result<()> {
    let hub = Hub::start().await?;
    let person = Person::new()?;
    let fetched = format!("curl -fsSL {}/install.sh | sh -s --", hub.base());
    for (arguments, said) in [
        ("", "an invite is needed"),
        ("--invite hello", "not an invite"),
        ("--invite 'cxi1_a b'", "not a whole invite"),
        ("--nvite x", "unknown option"),
        ("--invite cxi1_x --name \"$(printf 'a\\nb')\"", "no line breaks"),
        ("--invite cxi1_x --hub http://127.0.0.1:1", "cannot reach"),
    ] {
        let ended = run(person.types(&format!("{fetched} {arguments}")), SOON).await?;
        assert!(ended.code == Some(1) && ended.stderr.contains(said), "{arguments}: {ended:?}");
    }
    let help = run(person.types(&format!("{fetched} --help")), SOON).await?;
    assert!(help.code == Some(0) && help.stdout.contains("usage:"), "{help:?}");
    assert!(!person.home().join(".local").exists());
    Ok(())
}

#[tokio::test]
async fn the_bundle_makes_a_machine_a_node() -> Result<()> {
    let hub = Hub::start().await?;
    let invite = hub.invite_for("bundled").await?;
    let request = hub.request(Method::POST, "/api/nodes/bundle").json(&json!({"invite": invite.text, "name": "bundled"}));
    let answer = request.timeout(LONG).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);
    let person = Person::new()?;
    let archive = person.home().join("bundle.tar.gz");
    fs::write(&archive, answer.bytes().await?)?;
    let unpacked = run(person.types("tar -xzvf bundle.tar.gz"), LONG).await?;
    assert_eq!(unpacked.code, Some(0), "{unpacked:?}");
    // As its read-me says.
    let folder = unpacked.stdout.lines().find_map(|line| line.strip_suffix("cortex-peer")).unwrap_or_default().to_owned();
    let started = person.starts(&format!("cd ./{folder} && ./cortex-peer run --config peer.yaml"))?;
    let node = hub.redeemed(&invite.id, LONG).await?;
    assert_eq!(hub.node_is(&node, "online", SOON).await?.name, "bundled");
    drop(started);
    Ok(())
}

#[tokio::test]
async fn what_is_handed_out_is_what_was_built() -> Result<()> {
    let hub = Hub::start().await?;
    let programs: Vec<Value> = hub.get("/api/dist").await?;
    assert!(programs.iter().any(|program| program["available"] == true), "{programs:?}");
    let sums = hub.request(Method::GET, "/dist/SHA256SUMS").send().await?.text().await?;
    let person = Person::new()?;
    let line = format!(
        "curl -fsSLO {0}/dist/SHA256SUMS && curl -fsSLO {0}/dist/{1} && sha256sum -c SHA256SUMS",
        hub.base(),
        sums.split_whitespace().nth(1).unwrap_or_default()
    );
    let checked = run(person.types(&line), LONG).await?;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for path in ["/dist/../Cargo.toml", "/dist/%2e%2e%2fCargo.toml", "/dist/cortex-hub", "/dist/cortex-peer-linux-x86_64/../../x"] {
        let answer = hub.request(Method::GET, path).send().await?;
        assert!(answer.status().is_client_error(), "{path}: {}", answer.status());
    }
    Ok(())
}
