//! A program that is started, watched through /proc, and ended.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Signal, kill_process},
};

use crate::interrupt;

/// How long a program may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(6);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A running program. It ends with this value.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

/// What a process holds, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident.
    pub resident: u64,
    /// Resident, and nobody else's.
    pub private: u64,
    /// The most that was resident since [`Process::forget_peak`].
    pub peak: u64,
}

/// What a process used since its start.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Of all its threads, also of those that have ended.
    pub cpu: Duration,
    /// How often each of its threads went to sleep, and so was woken.
    sleeps: HashMap<OsString, u64>,
}

impl Usage {
    /// How often its threads were woken since an earlier reading.
    pub fn wakeups_since(&self, before: &Self) -> u64 {
        self.sleeps.iter().map(|(thread, sleeps)| sleeps - before.sleeps.get(thread).copied().unwrap_or(0).min(*sleeps)).sum()
    }
}

impl Process {
    /// Starts `command`; what it prints goes to files in `folder`.
    pub fn start(name: &'static str, command: &mut Command, folder: &Path) -> anyhow::Result<Self> {
        let (out, log) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.log")));
        let command = command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&log)?);
        let child = command.spawn().with_context(|| format!("cannot start {name} ({})", Path::new(command.get_program()).display()))?;
        Ok(Self { name, child, out, log })
    }

    /// What it has logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` answers something.
    pub fn wait_for<T>(&mut self, what: &str, patience: Duration, mut ready: impl FnMut(&Self) -> Option<T>) -> anyhow::Result<T> {
        let since = Instant::now();
        loop {
            interrupt::check()?;
            if let Some(found) = ready(self) {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before {what}:\n{}", self.name, self.last_words());
            }
            if since.elapsed() > patience {
                bail!("{} did not come to {what} within {patience:?}:\n{}", self.name, self.last_words());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// What it has printed on standard output.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// What it holds.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let status = self.proc("status")?;
        let rollup = self.proc("smaps_rollup")?;
        let private = kib(&rollup, "Private_Clean:")? + kib(&rollup, "Private_Dirty:")?;
        Ok(Memory { resident: kib(&status, "VmRSS:")?, peak: kib(&status, "VmHWM:")?, private })
    }

    /// Lets [`Memory::peak`] begin anew.
    pub fn forget_peak(&self) -> anyhow::Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").with_context(|| format!("cannot reset the peak of {}", self.name))
    }

    /// What it has used so far.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut sleeps = HashMap::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let thread = thread?;
            // A thread may end between the two.
            let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
            sleeps.insert(thread.file_name(), number(&status, "voluntary_ctxt_switches:")?);
        }
        // Behind the name in brackets, which may hold anything: fields 3 and on; 14 and 15 are ticks in user and in kernel mode.
        let stat = self.proc("stat")?;
        let fields = stat.rsplit_once(')').context("stat is malformed")?.1.split_whitespace();
        let ticks = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Usage { cpu: Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64), sleeps })
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("{} is gone:\n{}", self.name, self.last_words()))
    }

    /// Kills it, without a chance to say anything.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and sees to it.
    pub fn stop(&mut self) {
        let asked = Instant::now();
        if let Ok(None) = self.child.try_wait() {
            let _ = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::TERM));
        }
        while let Ok(None) = self.child.try_wait() {
            if asked.elapsed() > GRACE {
                eprintln!("{} did not end within {GRACE:?} and is killed", self.name);
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

fn number(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("the kernel does not tell {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn kib(text: &str, name: &str) -> anyhow::Result<u64> {
    Ok(number(text, name)? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_watched_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut sleeper = Process::start("sleeper", Command::new("sh").args(["-c", "echo up; sleep 60"]), folder.path()).unwrap();
        sleeper.wait_for("its line", Duration::from_secs(5), |process| (process.printed() == "up\n").then_some(())).unwrap();
        let memory = sleeper.memory().unwrap();
        assert!(memory.private > 0 && memory.resident >= memory.private && memory.peak >= memory.resident);
        sleeper.forget_peak().unwrap();
        let usage = sleeper.usage().unwrap();
        assert_eq!(usage.wakeups_since(&usage), 0);
        sleeper.stop();
        assert!(sleeper.memory().is_err());
    }

    #[test]
    fn a_process_that_fails_tells_why() {
        let folder = tempfile::tempdir().unwrap();
        let mut failing = Process::start("failing", Command::new("sh").args(["-c", "echo because >&2; exit 3"]), folder.path()).unwrap();
        let error = failing.wait_for("anything", Duration::from_secs(5), |_| None::<()>).unwrap_err().to_string();
        assert!(error.contains("because"), "{error}");
    }
}
