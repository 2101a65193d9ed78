//! A running `cortex-peer`.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    net::Place,
    program::{self, Process},
    wait,
};

/// In a peer's home: by how many seconds its clock is wrong.
const CLOCK: &str = "clock";
/// A user who owns nothing.
const NOBODY: u32 = 65_534;

/// How a peer runs.
#[derive(Debug, Clone, Default)]
pub struct PeerOptions {
    /// Where.
    pub place: Place,
    /// What its machine is called.
    pub name: String,
    /// Further lines of its configuration.
    pub settings: String,
    /// As a user who may nothing, where the test itself is root.
    pub lowly: bool,
    /// With a wall clock of its own, which [`Peer::set_clock`] sets while it runs.
    pub own_clock: bool,
}

/// A peer, with a home of its own.
#[derive(Debug)]
pub struct Peer {
    /// Its process.
    pub process: Process,
    /// Its node, once that is known.
    pub node: String,
    home: TempDir,
    place: Place,
}

impl Peer {
    /// Starts a peer with an invite.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(invite: &str) -> Result<Self> {
        Self::start_with(invite, PeerOptions::default())
    }

    /// Starts a peer with an invite.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_with(invite: &str, options: PeerOptions) -> Result<Self> {
        let PeerOptions { place, name, settings, lowly, own_clock } = options;
        let name = if name.is_empty() { String::new() } else { format!("name: {name}\n") };
        let yaml = format!("{name}invite: {invite}\n{settings}");
        if lowly {
            return Self::start_lowly(&yaml);
        }
        let (home, _) = home_with(&yaml)?;
        if own_clock {
            fs::write(home.path().join(CLOCK), "+0")?;
        }
        let process = spawn(&place, home.path())?;
        Ok(Self { process, node: String::new(), home, place })
    }

    /// As [`NOBODY`], with a copy of the program, because the folder of the original may be closed to others.
    fn start_lowly(yaml: &str) -> Result<Self> {
        let (home, program) = home_with(yaml)?;
        if !geteuid().is_root() {
            let process = spawn(&Place::Here, home.path())?;
            return Ok(Self { process, node: String::new(), home, place: Place::Here });
        }
        let copy = home.path().join("cortex-peer");
        fs::copy(program, &copy)?;
        for path in [home.path(), &home.path().join("peer.yaml"), &copy] {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY))?;
        }
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]);
        command.arg(&copy).args(["run", "--config"]).arg(home.path().join("peer.yaml"));
        program::clean(&mut command, home.path());
        let process = Process::start("peer", command, home.path())?;
        Ok(Self { process, node: String::new(), home, place: Place::Here })
    }

    /// Starts a peer with a configuration file of this text, to which its folders are added.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_from(yaml: &str, place: Place) -> Result<Self> {
        let (home, _) = home_with(yaml)?;
        let process = spawn(&place, home.path())?;
        Ok(Self { process, node: String::new(), home, place })
    }

    /// Another peer with a copy of this one's key, as on a machine that was cloned.
    ///
    /// # Errors
    /// When this one does not enrol within 10 s, and when the other does not start.
    pub async fn twin(&self) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let (state, of) = (home.path().join("state"), self.home().join("state"));
        fs::create_dir(&state)?;
        // The hub knows of a node a moment before the node keeps that it belongs to the hub.
        let enrolled = async || of.join("hub.json").exists().then_some(());
        wait::until("the peer keeps its hub", Duration::from_secs(10), enrolled).await?;
        for file in ["node.key", "hub.json"] {
            fs::copy(of.join(file), state.join(file))?;
        }
        fs::write(home.path().join("peer.yaml"), format!("state_dir: {}\n", state.display()))?;
        let process = spawn(&self.place, home.path())?;
        Ok(Self { process, node: self.node.clone(), home, place: self.place.clone() })
    }

    /// Sets its clock, which it has with [`PeerOptions::own_clock`], so many seconds beside this machine's. File times stay the kernel's.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        // At once: the program reads this whenever it asks for the time.
        let next = self.home().join("clock.next");
        fs::write(&next, format!("{seconds:+}"))?;
        Ok(fs::rename(next, self.home().join(CLOCK))?)
    }

    /// Its home folder.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The folder in which the tasks of a session work.
    pub fn workspace(&self, session: &str) -> PathBuf {
        self.home.path().join("work").join(session)
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("peer.yaml")
    }

    /// A command that runs `cortex-peer` as this peer would, for its other subcommands.
    ///
    /// # Errors
    /// When the program was not built.
    pub fn command(&self) -> Result<Command> {
        program::command("cortex-peer", &self.place, self.home.path())
    }

    /// What it says of itself: `cortex-peer status --json`.
    ///
    /// # Errors
    /// When it says nothing.
    pub async fn status(&self) -> Result<Value> {
        let mut command = self.command()?;
        command.args(["status", "--json", "--config"]).arg(self.config());
        let said = program::run(command, Duration::from_secs(10)).await?;
        serde_json::from_str(&said.stdout).with_context(|| format!("no status: {said:?}"))
    }

    /// Starts it again after its end, with the same state.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.place, self.home.path())?;
        Ok(())
    }

    /// Processes of its tasks: their environment names its workspaces.
    pub fn task_processes(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
        let work = self.home.path().join("work");
        let work = work.as_os_str().as_bytes();
        let environment = |pid: &Pid| fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        pids.filter(|pid| environment(pid).windows(work.len()).any(|part| part == work)).collect()
    }
}

/// A home with a configuration file of this text, to which its folders are added; and where the program is.
fn home_with(yaml: &str) -> Result<(TempDir, PathBuf)> {
    let home = tempfile::tempdir()?;
    let (state, work) = (home.path().join("state"), home.path().join("work"));
    let folders = format!("state_dir: {}\nworkspace_dir: {}\n", state.display(), work.display());
    fs::write(home.path().join("peer.yaml"), format!("{yaml}{folders}"))?;
    Ok((home, program::find("cortex-peer")?))
}

impl Drop for Peer {
    /// What a killed peer leaves running would outlive the test.
    fn drop(&mut self) {
        let _ = self.process.signal(Signal::KILL);
        for pid in self.task_processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The library that tells programs a time of its own: as the program that comes with it names it.
fn faketime() -> Result<String> {
    let output = Command::new("faketime").args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"]).output();
    let output = output.context("faketime is needed: apt-get install faketime")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn spawn(place: &Place, home: &Path) -> Result<Process> {
    let mut command = program::command("cortex-peer", place, home)?;
    command.args(["run", "--allow-root", "--config"]).arg(home.join("peer.yaml"));
    if home.join(CLOCK).exists() {
        command.env("LD_PRELOAD", faketime()?).env("FAKETIME_TIMESTAMP_FILE", home.join(CLOCK));
        command.envs([("FAKETIME_NO_CACHE", "1"), ("DONT_FAKE_MONOTONIC", "1"), ("NO_FAKE_STAT", "1")]);
    }
    Process::start("peer", command, home)
}
