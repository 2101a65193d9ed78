//! The programs: where they are, and one run of one of them.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use cortex_runtime::failpoint;
use rustix::process::{Pid, Signal, kill_process};

use crate::{net::Place, wait};

/// In a program's home: the place at which it is to die.
const DIES_AT: &str = "dies-at";
/// Lines of a log that a failed test shows.
const SHOWN: usize = 120;

/// The file of a program such as `cortex-hub`: in `CORTEX_BIN_DIR`, or where this test itself was built.
///
/// # Errors
/// When it was not built, with the command that builds it.
pub fn find(name: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CORTEX_BIN_DIR") {
        let file = Path::new(&folder).join(name);
        ensure!(file.is_file(), "there is no {name} in CORTEX_BIN_DIR ({})", folder.display());
        return Ok(file);
    }
    let own = std::env::current_exe()?;
    // A test is in `target/debug/deps`, a benchmark in `target/debug`.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("{name} was not built; run: cargo build --workspace --bins"))
}

/// A command that runs `program` at a place of the network, with a clean environment and `home` as its home.
///
/// # Errors
/// When the program was not built.
pub fn command(program: &str, place: &Place, home: &Path) -> Result<Command> {
    let mut command = place.command(&find(program)?);
    clean(&mut command, home);
    command.env(failpoint::VARIABLE, home.join(DIES_AT));
    Ok(command)
}

/// Gives a command the environment of a fresh machine.
pub fn clean(command: &mut Command, home: &Path) {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    command.env_clear().env("PATH", path).env("HOME", home).env("LANG", "C.UTF-8").env("RUST_BACKTRACE", "1").current_dir(home);
    let filter = std::env::var("CORTEX_TEST_LOG").unwrap_or_else(|_| "info".into());
    for prefix in ["CORTEX_HUB", "CORTEX_RELAY", "CORTEX_PEER"] {
        command.env(format!("{prefix}_LOG_FORMAT"), "text").env(format!("{prefix}_LOG_FILTER"), &filter);
    }
}

/// A TCP and UDP port of loopback that nobody has. It lies below those that the system hands out by itself, so that a program that is
/// restarted finds it free again.
///
/// # Errors
/// When none is free.
pub fn free_port() -> Result<u16> {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        // Tests are processes of their own: each begins elsewhere.
        let offset = std::process::id().wrapping_mul(16).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let Ok(port) = u16::try_from(FIRST + offset) else { continue };
        let address = (Ipv4Addr::UNSPECIFIED, port);
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// What a program that ran to its end left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None`: ended by a signal.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started, or does not end within `patience`.
pub async fn run(mut command: Command, patience: Duration) -> Result<Finished> {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null());
    let child = tokio::process::Command::from(command).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("cannot start {shown}"))?;
    let output = tokio::time::timeout(patience, child.wait_with_output()).await;
    let output = output.with_context(|| format!("did not end within {patience:?}: {shown}"))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Finished { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

/// A program that runs, with everything it prints in a log.
///
/// When it is dropped it is killed, its log goes to standard error (which test runners show when a test fails), and a panic or a secret in
/// the log fails the test.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where this run begins in the log, which an earlier run may have begun.
    log_start: u64,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command whose output goes to `NAME.log` in `folder`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        let log_start = file.metadata()?.len();
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log, log_start, status: None })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_none()
    }

    /// What this run has printed so far.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.log_start))?;
            file.read_to_end(&mut text)
        });
        if let Err(error) = read {
            return format!("(no log: {error})");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until it has printed a line in which `find` finds something.
    ///
    /// # Errors
    /// When it ends without one, or prints none within `patience`.
    pub async fn line<T>(&mut self, what: &str, patience: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let what = format!("{} says {what}", self.name);
        let found = wait::until(&what, patience, async || {
            // Asked first: what it printed before its end is in the log.
            let ended = !self.is_running();
            let found = self.log().lines().find_map(&find).map(Ok);
            found.or_else(|| ended.then(|| Err(self.status)))
        });
        match found.await? {
            Ok(found) => Ok(found),
            Err(status) => bail!("{} ended ({status:?}) before this: {what}", self.name),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        ensure!(self.is_running(), "{} has ended", self.name);
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended within `patience`.
    pub async fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        wait::until(&what, patience, async || if self.is_running() { None } else { self.status }).await
    }

    /// Kills it, without a chance to say anything.
    ///
    /// # Errors
    /// When it does not die.
    pub async fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.ended(Duration::from_secs(5)).await?;
        Ok(())
    }

    /// It dies when it comes to this place (see [`failpoint`]). The one that was asked for before is forgotten.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn dies_at(&self, place: &str) -> Result<()> {
        let file = self.log.with_file_name(DIES_AT);
        // It must not read half of a name.
        fs::write(file.with_extension("new"), place)?;
        Ok(fs::rename(file.with_extension("new"), file)?)
    }

    /// Asks it to stop (SIGTERM) and returns how long that took.
    ///
    /// # Errors
    /// When it has not ended within `patience`, or not with exit status 0.
    pub async fn terminate(&mut self, patience: Duration) -> Result<Duration> {
        let since = Instant::now();
        self.signal(Signal::TERM)?;
        let status = self.ended(patience).await?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(since.elapsed())
    }

    /// The most memory it ever had, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn peak_memory(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// The memory it has, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_memory(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("{} has ended", self.name))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let alive = self.is_running();
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let state = match self.status {
            _ if alive => "ran until the end of the test".to_owned(),
            Some(status) => format!("had ended with {status}"),
            None => "had ended".to_owned(),
        };
        let skipped = lines.len().saturating_sub(SHOWN);
        eprintln!(
            "---- {} {state}; its log{}",
            self.name,
            if skipped > 0 { format!(" without its first {skipped} lines:") } else { ":".into() }
        );
        lines.iter().skip(skipped).for_each(|line| eprintln!("{line}"));
        let fault = lines.iter().find(|line| line.contains("panicked at") || holds_secret(line));
        if let Some(line) = fault.filter(|_| !std::thread::panicking()) {
            panic!("the log of {} should not have this line: {line}", self.name);
        }
    }
}

/// Whether a line shows an invite or an API token whole.
fn holds_secret(line: &str) -> bool {
    ["cxi1_", "cxt_"].iter().any(|prefix| {
        let after = line.split_once(prefix).map_or("", |(_, after)| after);
        after.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')).count() > 40
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (tempfile::TempDir, Process) {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let process = Process::start("shell", command, folder.path()).unwrap();
        (folder, process)
    }

    #[tokio::test]
    async fn a_line_is_found_or_the_end_is_told() {
        let (_folder, mut process) = shell("echo one; echo two >&2");
        let two = |line: &str| (line == "two").then_some(2);
        assert_eq!(process.line("two", Duration::from_secs(5), two).await.unwrap(), 2);
        let error = process.line("three", Duration::from_secs(5), |line| line.strip_prefix("three").map(drop)).await.unwrap_err();
        assert!(error.to_string().contains("ended"), "{error}");
    }

    #[tokio::test]
    #[should_panic(expected = "the log of shell should not have this line")]
    async fn a_panic_in_a_log_fails_the_test() {
        let (_folder, mut process) = shell("echo \"thread 'main' panicked at src/main.rs\"");
        process.ended(Duration::from_secs(5)).await.unwrap();
    }

    #[test]
    fn a_secret_is_one_when_it_is_whole() {
        let invite = format!("invite=cxi1_{}", "A".repeat(300));
        assert!(holds_secret(&invite) && holds_secret(&invite.replace("cxi1_", "cxt_")));
        assert!(!holds_secret("it begins with cxi1_") && !holds_secret("cortex-peer run --invite cxi1_x"));
    }

    #[tokio::test]
    async fn a_program_that_is_dropped_is_killed() {
        let (_folder, process) = shell("exec sleep 300");
        let own = Path::new("/proc").join(process.id().to_string());
        assert!(own.exists());
        drop(process);
        assert!(!own.exists());
    }

    #[test]
    fn a_program_that_was_not_built_is_named_with_the_command_that_builds_it() {
        let error = find("cortex-nonsense").unwrap_err().to_string();
        assert!(error.contains("cargo build --workspace --bins"), "{error}");
    }
}
