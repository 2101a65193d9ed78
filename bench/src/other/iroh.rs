//! iroh: two of its endpoints that reach each other through iroh-relay only, and raw clients of that relay. A program of its own (`bench/iroh`), so that nobody
//! has to build iroh to work on this.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::{contest::Samples, interrupt, process::Process, report::Missing};

/// The tool's name, as `--against` knows it.
pub const NAME: &str = "iroh";
/// How figures name it.
pub const LABEL: &str = "iroh 1.4 endpoints through iroh-relay";
/// How figures name its relay without endpoints.
pub const LABEL_RAW: &str = "raw clients of iroh-relay";
/// The longest that one measurement may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a measurement that fails is made.
const TRIES: u32 = 3;

/// iroh's relay, running.
#[derive(Debug)]
pub struct Iroh {
    program: PathBuf,
    url: String,
    /// Its process.
    pub relay: Process,
}

impl Iroh {
    /// Starts the relay in `folder`.
    ///
    /// # Errors
    /// The inner one says how to build it.
    pub fn start(folder: &Path) -> anyhow::Result<Result<Self, Missing>> {
        // target/release/cortex-bench and target/iroh/release/cortex-bench-iroh.
        let target = std::env::current_exe()?.parent().and_then(Path::parent).context("the build folder")?.to_owned();
        let program = target.join("iroh/release/cortex-bench-iroh");
        if !program.is_file() {
            let install = "cargo build --release --manifest-path bench/iroh/Cargo.toml --target-dir target/iroh";
            return Ok(Err(Missing { tool: NAME, install: install.into() }));
        }
        let mut relay = Process::start("iroh-relay", Command::new(&program).arg("relay"), folder)?;
        let url = |relay: &Process| relay.printed().strip_suffix('\n').map(str::to_owned);
        let url = relay.wait_for("its address", Duration::from_secs(20), url)?;
        Ok(Ok(Self { program, url, relay }))
    }

    /// Bytes from each of so many endpoints to one: how long from the first to the last.
    pub fn transfer(&self, nodes: usize, bytes: u64) -> anyhow::Result<Duration> {
        let figures = self.measure(&["transfer", &self.url, &nodes.to_string(), &bytes.to_string()])?;
        Ok(Duration::from_secs_f64(*figures.first().context("iroh measured nothing")?))
    }

    /// 100 bytes to the other endpoint and back, on a stream, in microseconds.
    pub fn echo(&self, count: usize) -> anyhow::Result<Samples> {
        Ok(self.measure(&["echo", &self.url, &count.to_string()])?.into_iter().collect())
    }

    /// 100 bytes to the other client and back, in packets, in microseconds.
    pub fn raw_echo(&self, count: usize) -> anyhow::Result<Samples> {
        Ok(self.measure(&["raw-echo", &self.url, &count.to_string()])?.into_iter().collect())
    }

    /// Looks at the relay while so many clients do nothing.
    pub fn idle<T>(&self, links: usize, look: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut command = Command::new(&self.program);
        command.args(["idle", &self.url, &links.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut ready = [0; 6];
        let said = child.stdout.as_mut().context("its output")?.read_exact(&mut ready);
        let seen = said.context("iroh's idle clients did not come up").and_then(|()| look());
        drop(child.stdin.take());
        child.wait()?;
        seen
    }

    /// Runs it, again if it fails: at full speed its connections sometimes end with "too many gaps in stream buffer" (iroh 1.4), which is no measure of anything.
    fn measure(&self, words: &[&str]) -> anyhow::Result<Vec<f64>> {
        let mut tries = 1;
        loop {
            match self.measure_once(words) {
                Err(failure) if tries < TRIES && interrupt::check().is_ok() => eprintln!("{failure}; once more …"),
                done => return done,
            }
            tries += 1;
        }
    }

    /// Runs it; what it prints is a figure on each line.
    fn measure_once(&self, words: &[&str]) -> anyhow::Result<Vec<f64>> {
        let mut child = Command::new(&self.program).args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut out = child.stdout.take().context("its output")?;
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).map(|_| text)
        });
        let since = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if since.elapsed() > PATIENCE || interrupt::check().is_err() {
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        interrupt::check()?;
        ensure!(status.success(), "cortex-bench-iroh {} ended with {status}", words.join(" "));
        let text = reader.join().map_err(|_| anyhow::anyhow!("its output was not read"))??;
        text.lines().map(|line| line.parse().with_context(|| format!("iroh printed {line:?}"))).collect()
    }
}
