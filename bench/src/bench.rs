//! The benchmarks.

mod broadcast;
mod browser;
mod dispatch;
mod failover;
mod idle;
mod mirror;
mod output;
mod pool;
mod reconnect;
mod relay;
mod sandbox;
mod start;
mod ui;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::process::geteuid;
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
    /// Whether files are what it measures: then they lie on a journalled ext4 in memory instead of tmpfs, where a rename or a synchronisation costs nothing. Needs root.
    pub journalled: bool,
    /// Measures.
    pub run: fn(&Setting, &mut Report) -> anyhow::Result<()>,
}

/// All of them, in the order in which `all` runs them.
pub const BENCHES: &[Bench] = &[
    dispatch::BENCH,
    output::BENCH,
    pool::BENCH,
    idle::BENCH,
    start::BENCH,
    mirror::BENCH,
    broadcast::BENCH,
    failover::BENCH,
    relay::BENCH,
    reconnect::BENCH,
    sandbox::BENCH,
    ui::BENCH,
    browser::BENCH,
];

/// How a benchmark is run.
pub struct Setting {
    /// Fewer runs.
    pub quick: bool,
    against: Vec<String>,
    /// Before its folder, on which it is mounted.
    _disk: Option<Disk>,
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
        let disk =
            if bench.journalled && geteuid().is_root() { Some(Disk::mount(folder.path(), if quick { 5 } else { 12 })?) } else { None };
        Ok(Self { quick, against: against.to_owned(), _disk: disk, folder })
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

/// A file system in a file in memory, mounted as long as this value exists. The memory is there before anything is measured: a virtual machine needs seconds for a gigabyte that was never used, and
/// whoever waits for the disk, as we do and rsync does not, would be measured by that.
struct Disk {
    at: PathBuf,
    image: PathBuf,
}

impl Disk {
    fn mount(at: &Path, gib: u32) -> anyhow::Result<Self> {
        let disk = Self { at: at.to_owned(), image: at.with_extension("img") };
        let mut image = std::fs::File::create(&disk.image)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..gib << 10 {
            image.write_all(&zeros).with_context(|| format!("a disk of {gib} GiB in {} needs that much memory", at.display()))?;
        }
        drop(image);
        let run = |command: &mut Command| {
            let status = command.stdout(Stdio::null()).status().with_context(|| format!("cannot run {command:?}"))?;
            ensure!(status.success(), "{command:?} ended with {status}");
            Ok(())
        };
        let options = ["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", "-N", "2000000"];
        run(Command::new("mkfs.ext4").args(options).arg(&disk.image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&disk.image, &disk.at]))?;
        // sshd looks at the folders above its user's, too.
        std::fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a program that was killed may not be gone yet.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        let _ = std::fs::remove_file(&self.image);
    }
}
