//! What a figure belongs to: the commit and the machine.

use std::{fs, os::unix::process::CommandExt as _, path::Path, process::Command};

/// The commit that the figures belong to; `-dirty` when files differ from it.
pub fn commit() -> String {
    let described = Command::new("git").args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12"]).output();
    match described {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}

/// Cores, processor, memory and kernel.
pub fn describe() -> String {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or_else(|| "?".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory_kib: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores {}, {} GiB, Linux {}", field("/proc/cpuinfo", "model name"), memory_kib.div_ceil(1024 * 1024), kernel.trim())
}

/// The kind of file system that a folder is on.
pub fn file_system(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let found = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        folder.starts_with(at).then_some((at.len(), kind))
    });
    found.max_by_key(|(length, _)| *length).map_or_else(|| "?".into(), |(_, kind)| kind.to_owned())
}

/// Has memory used once, so that it is at hand. A virtual machine gives back what lies idle, and some then need seconds for a gigabyte: whoever came first would pay for all.
pub fn wake_memory(bytes: u64) {
    let available = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = available.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok());
    let bytes = bytes.min(available.map_or(0, |kib: u64| kib * 1024 / 2));
    std::hint::black_box(vec![1_u8; usize::try_from(bytes).unwrap_or(0)]);
}

/// Bytes that crossed the loopback interface, headers included; only where nobody else uses it.
pub fn loopback_bytes() -> Option<u64> {
    std::env::var_os(OWN_NETWORK)?;
    let table = fs::read_to_string("/proc/net/dev").ok()?;
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Set for the program once it runs in a network namespace of its own.
const OWN_NETWORK: &str = "CORTEX_BENCH_OWN_NETWORK";

/// Goes on in a network namespace of its own, where its loopback interface carries nothing else. Needs root; without it bytes are not counted.
pub fn own_network() {
    if std::env::var_os(OWN_NETWORK).is_some() || !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).arg(program).args(std::env::args_os().skip(1));
    let failed = command.env(OWN_NETWORK, "1").exec();
    eprintln!("cortex-bench: cannot have a network of its own ({failed}); bytes are not counted. apt-get install -y util-linux iproute2");
}

/// How many programs wanted a core in the last minute, on average.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// This program and all that it starts give way to others' programs for as long as this lives: to a browser that has a session of its own, as every browser has that is started by Playwright.
/// Linux shares processors between sessions first (`sched(7)`, autogroup); where it does not, nothing is changed.
#[derive(Debug)]
pub struct GivingWay(());

impl GivingWay {
    const NICE: &str = "10";

    pub fn begin() -> Self {
        Self::set(Self::NICE);
        Self(())
    }

    fn set(nice: &str) {
        let _ = fs::write("/proc/self/autogroup", nice);
    }
}

impl Drop for GivingWay {
    fn drop(&mut self) {
        Self::set("0");
    }
}
