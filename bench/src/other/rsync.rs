//! rsync: its own daemon on loopback, unencrypted, and over an ssh connection that is open already.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::ssh::Ssh;
use crate::{process::Process, report::Missing};

/// The tool's name, as `--against` and the figures know it.
pub const NAME: &str = "rsync";
/// How figures name it.
pub const LABEL: &str = "rsync -a daemon, unencrypted";
/// How figures name it over ssh.
pub const LABEL_SSH: &str = "rsync -a over ssh";

/// A daemon that writes to `target`.
#[derive(Debug)]
pub struct Rsync {
    port: u16,
    /// Where it writes.
    pub target: PathBuf,
    _daemon: Process,
}

impl Rsync {
    /// Starts the daemon in `folder`.
    ///
    /// # Errors
    /// The inner one says what has to be installed.
    pub fn start(folder: &Path) -> anyhow::Result<Result<Self, Missing>> {
        if Command::new("rsync").arg("--version").stdout(Stdio::null()).status().is_err() {
            return Ok(Err(Missing { tool: NAME, install: "apt-get install -y --no-install-recommends rsync".into() }));
        }
        let folder = folder.join("rsync");
        let target = folder.join("target");
        fs::create_dir_all(&target)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let config = folder.join("rsyncd.conf");
        let path = target.display();
        fs::write(&config, format!("port={port}\naddress=127.0.0.1\nuse chroot=no\nuid=root\ngid=root\n[m]\npath={path}\nread only=no\n"))?;
        let mut command = Command::new("rsync");
        command.args(["--daemon", "--no-detach"]).arg(format!("--config={}", config.display()));
        let mut daemon = Process::start("rsyncd", &mut command, &folder)?;
        daemon.wait_for("listening", Duration::from_secs(10), |_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())?;
        Ok(Ok(Self { port, target, _daemon: daemon }))
    }

    /// Brings the target to what `source` is.
    pub fn push(&self, source: &Path) -> anyhow::Result<Duration> {
        let mut command = Command::new("rsync");
        command.args(["-a", "--delete"]).arg(format!("{}/", source.display())).arg(format!("rsync://127.0.0.1:{}/m/", self.port));
        timed(&mut command)
    }

    /// The target is empty again.
    pub fn clear(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.target)?;
        Ok(fs::create_dir_all(&self.target)?)
    }
}

/// The same to a fresh folder, over ssh.
pub fn push_over_ssh(ssh: &Ssh, source: &Path, target: &str) -> anyhow::Result<Duration> {
    let mut command = Command::new("rsync");
    command.arg("-a").arg("-e").arg(ssh.remote_shell()).arg(format!("{}/", source.display())).arg(format!("bench:{target}/"));
    timed(&mut command)
}

fn timed(command: &mut Command) -> anyhow::Result<Duration> {
    let since = Instant::now();
    let status = command.stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(since.elapsed())
}
