//! The benchmarks.

mod dispatch;
mod idle;
mod mirror;
mod output;
mod start;

use std::path::{Path, PathBuf};

use anyhow::ensure;
use tempfile::TempDir;

use crate::{machine, report::Report};

/// One benchmark.
pub struct Bench {
    /// As it is called.
    pub name: &'static str,
    /// What it measures.
    pub what: &'static str,
    /// The tools that it compares with.
    pub against: &'static [&'static str],
    /// Measures.
    pub run: fn(&Setting, &mut Report) -> anyhow::Result<()>,
}

/// All of them, in the order in which `all` runs them.
pub const BENCHES: &[Bench] = &[dispatch::BENCH, output::BENCH, idle::BENCH, start::BENCH, mirror::BENCH];

/// How a benchmark is run.
pub struct Setting {
    /// Fewer runs.
    pub quick: bool,
    against: Vec<String>,
    folder: TempDir,
}

impl Setting {
    /// With a fresh folder; `against`: these tools only, all when empty.
    pub fn new(bench: &Bench, against: &[String], quick: bool, dir: Option<PathBuf>) -> anyhow::Result<Self> {
        for tool in against {
            ensure!(bench.against.contains(&tool.as_str()), "{} compares with {}, not with {tool}", bench.name, bench.against.join(", "));
        }
        let memory = Path::new("/dev/shm");
        let parent = dir.unwrap_or_else(|| if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() });
        let folder = tempfile::Builder::new().prefix("cortex-bench-").tempdir_in(parent)?;
        Ok(Self { quick, against: against.to_owned(), folder })
    }

    /// Where everything is written.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The kind of file system it is on.
    pub fn folder_description(&self) -> String {
        machine::file_system(self.folder())
    }

    /// Whether this tool shall be compared with.
    pub fn against(&self, tool: &str) -> bool {
        self.against.is_empty() || self.against.iter().any(|wanted| wanted == tool)
    }

    /// One number for a whole run, another for a quick one.
    pub fn pick<T>(&self, whole: T, quick: T) -> T {
        if self.quick { quick } else { whole }
    }
}
