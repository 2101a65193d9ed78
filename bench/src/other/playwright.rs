//! Playwright: the same Chromium, driven by a program of Node.js beside it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::geteuid;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::report::Missing;

/// The tool's name, as `--against` and the figures know it.
pub const NAME: &str = "playwright";
/// How figures name it.
pub const LABEL: &str = "Playwright, local";

/// For its end.
const GRACE: Duration = Duration::from_secs(5);

/// A page in a browser of its own.
#[derive(Debug)]
pub struct Playwright {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What became of a command.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Did {
    /// How long it took, by Playwright's own clock.
    pub ms: f64,
    /// Of a snapshot.
    pub bytes: usize,
}

impl Playwright {
    /// Starts it with this Chromium.
    ///
    /// # Errors
    /// The inner one says what has to be installed.
    pub fn start(chromium: &Path, folder: &Path) -> anyhow::Result<Result<Self, Missing>> {
        let bench = Path::new(env!("CARGO_MANIFEST_DIR"));
        let modules: PathBuf = bench.with_file_name("hub").join("ui/package.json");
        if !modules.with_file_name("node_modules").join("playwright-core").is_dir() {
            return Ok(Err(Missing { tool: NAME, install: "make ui".into() }));
        }
        let mut command = Command::new("node");
        command.arg(bench.join("src/other/playwright.mjs")).arg(&modules).arg(chromium);
        command.arg(if geteuid().is_root() { "root" } else { "user" });
        command.env("HOME", folder).env("TMPDIR", folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start node")?;
        let (commands, answers) = (child.stdin.take(), child.stdout.take().context("its standard output")?);
        Ok(Ok(Self { child, commands, answers: BufReader::new(answers) }))
    }

    /// Opens a page.
    pub fn open(&mut self, url: &str) -> anyhow::Result<Did> {
        self.ask(&json!({ "do": "open", "url": url }))
    }

    /// One of `click`, `fill`, `evaluate`, `snapshot`.
    pub fn act(&mut self, action: &str) -> anyhow::Result<Did> {
        self.ask(&json!({ "do": action }))
    }

    /// A click and a fill, so often.
    pub fn run_loop(&mut self, pairs: usize) -> anyhow::Result<Did> {
        self.ask(&json!({ "do": "loop", "pairs": pairs }))
    }

    fn ask(&mut self, command: &Value) -> anyhow::Result<Did> {
        let commands = self.commands.as_mut().context("it was told to end")?;
        writeln!(commands, "{command}")?;
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "playwright ended at {command}");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Playwright {
    /// It closes its browser when nothing more will come.
    fn drop(&mut self) {
        self.commands = None;
        let since = Instant::now();
        while since.elapsed() < GRACE && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
