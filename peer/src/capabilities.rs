//! What the machine is and has, told to the hub at registration.
//!
//! [`quick`] answers at once from files; [`with_tools`] adds the versions of common programs, each asked with a bound on its time, and is sent
//! when it is ready: registration never waits for it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use cortex_wire::{
    limits,
    schema::{Capabilities, SandboxLevel, Tool},
    text,
};
use tokio::process::Command;

use crate::sandbox;

/// Programs whose versions help to choose a machine, with the argument that makes them say it.
const TOOLS: [(&str, &str); 20] = [
    ("bash", "--version"),
    ("cargo", "--version"),
    ("clang", "--version"),
    ("cmake", "--version"),
    ("curl", "--version"),
    ("docker", "--version"),
    ("gcc", "--version"),
    ("git", "--version"),
    ("go", "version"),
    ("java", "-version"),
    ("kubectl", "version"),
    ("make", "--version"),
    ("node", "--version"),
    ("npm", "--version"),
    ("perl", "-v"),
    ("podman", "--version"),
    ("python3", "--version"),
    ("ruby", "--version"),
    ("rustc", "--version"),
    ("tmux", "-V"),
];

/// Browsers that can be driven, most wanted first.
#[cfg(feature = "browser")]
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

/// A program that does not say its version in this time is left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// What can be told at once. `task_slots`: how many tasks run side by side. `browser`: what pages are shown with, if this node shows any.
pub fn quick(task_slots: u32, workspace_dir: &Path, browser: Option<PathBuf>) -> Capabilities {
    let system = system();
    let skills = ["shell"].into_iter().chain(browser.is_some().then_some("browser")).map(str::to_owned).collect();
    let (_, disk_bytes) = crate::health::disk(workspace_dir).unwrap_or_default();
    let mut capabilities = Capabilities {
        os: std::env::consts::OS.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        os_version: sysinfo::System::long_os_version().unwrap_or_default(),
        kernel: sysinfo::System::kernel_version().unwrap_or_default(),
        hostname: sysinfo::System::host_name().unwrap_or_default(),
        cpu_model: system.as_ref().and_then(|system| system.cpus().first()).map(|cpu| cpu.brand().to_owned()).unwrap_or_default(),
        cpu_count: std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok()).unwrap_or(1),
        memory_bytes: system.as_ref().map_or(0, sysinfo::System::total_memory),
        disk_bytes,
        gpus: gpus(),
        shells: shells(),
        tools: Vec::new(),
        browser: browser.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        browser_sandbox: String::new(),
        sandbox: Some(SandboxLevel { level: sandbox::PERMISSIVE.into(), missing: vec!["STRICT is being tested on this machine".into()] }),
        task_slots,
        skills,
        virtual_machine: is_virtual(),
        container: is_container(),
    };
    clean(&mut capabilities);
    capabilities
}

/// The same with the versions of common programs.
pub async fn with_tools(mut capabilities: Capabilities) -> Capabilities {
    let asked: Vec<_> = TOOLS.iter().map(|(name, argument)| (*name, tokio::spawn(version_of(name, argument)))).collect();
    for (name, answer) in asked {
        if let Ok(Some(version)) = answer.await {
            capabilities.tools.push(Tool { name: name.to_owned(), version });
        }
    }
    clean(&mut capabilities);
    capabilities
}

fn system() -> Option<sysinfo::System> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    Some(system)
}

async fn version_of(name: &str, argument: &str) -> Option<String> {
    let path = find_program(name)?;
    let mut command = Command::new(path);
    command.arg(argument).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    // Some say it on standard error.
    let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    version_in(&String::from_utf8_lossy(&said[..said.len().min(4096)]))
}

/// The first word that looks like a version: digits with a dot between.
fn version_in(said: &str) -> Option<String> {
    let words = said.split(|c: char| c.is_whitespace() || matches!(c, '"' | ',' | '(' | ')'));
    words
        .map(|word| word.trim_start_matches(|c: char| !c.is_ascii_digit()))
        .find(|word| {
            word.len() >= 3 && word.contains('.') && word.split('.').take(2).all(|part| part.starts_with(|c: char| c.is_ascii_digit()))
        })
        .map(|word| text::clean(word, 64))
}

/// A browser that can be driven, by the search path.
#[cfg(feature = "browser")]
pub fn find_browser() -> Option<PathBuf> {
    BROWSERS.iter().find_map(|name| find_program(name))
}

/// Where a program is, by the search path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(|file| is_program(file))
}

#[cfg(unix)]
fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(file: &Path) -> bool {
    file.with_extension("exe").is_file() || file.is_file()
}

fn shells() -> Vec<String> {
    let listed = std::fs::read_to_string("/etc/shells").unwrap_or_else(|_| "/bin/sh\n/bin/bash\n".into());
    let mut shells: Vec<String> =
        listed.lines().map(str::trim).filter(|line| line.starts_with('/') && is_program(Path::new(line))).map(str::to_owned).collect();
    shells.sort();
    shells.dedup();
    shells
}

fn gpus() -> Vec<String> {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let folders = |path: &str| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let nvidia = folders("/proc/driver/nvidia/gpus").filter_map(|gpu| {
        let information = read(gpu.join("information"))?;
        information.lines().find_map(|line| line.strip_prefix("Model:")).map(|model| model.trim().to_owned())
    });
    let mut gpus: Vec<String> = nvidia.collect();
    if gpus.is_empty() {
        // The kernel's own list: vendor and device, as PCI numbers.
        let card = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.strip_prefix("card")?;
            name.chars().all(|c| c.is_ascii_digit()).then_some(())?;
            let vendor = read(path.join("device/vendor"))?;
            let device = read(path.join("device/device"))?;
            Some(format!("pci {}:{}", vendor.trim().trim_start_matches("0x"), device.trim().trim_start_matches("0x")))
        };
        gpus.extend(folders("/sys/class/drm").filter_map(card));
    }
    gpus
}

fn is_virtual() -> bool {
    let product = std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    ["KVM", "Virtual", "VMware", "QEMU"].iter().any(|mark| product.contains(mark))
        || cpu.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"))
}

fn is_container() -> bool {
    Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists() || std::env::var_os("container").is_some()
}

/// Keeps a strange machine's answers within the protocol's bounds.
fn clean(capabilities: &mut Capabilities) {
    for field in [
        &mut capabilities.os_version,
        &mut capabilities.kernel,
        &mut capabilities.hostname,
        &mut capabilities.cpu_model,
        &mut capabilities.browser,
    ] {
        *field = text::clean(field, limits::TEXT_BYTES);
    }
    capabilities.gpus.truncate(limits::CAPABILITY_ENTRIES);
    capabilities.shells.truncate(limits::CAPABILITY_ENTRIES);
    capabilities.tools.truncate(limits::CAPABILITY_ENTRIES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_programs_say() {
        let cases = [
            ("git version 2.47.3\n", "2.47.3"),
            ("Python 3.11.7", "3.11.7"),
            ("v20.20.2", "20.20.2"),
            ("go version go1.22.1 linux/amd64", "1.22.1"),
            ("openjdk version \"17.0.15\" 2025-04-15", "17.0.15"),
            ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0", "12.2.0-14+deb12u1"),
            ("This is perl 5, version 36, subversion 0 (v5.36.0) built for", "5.36.0"),
        ];
        for (said, version) in cases {
            assert_eq!(version_in(said).as_deref(), Some(version), "{said}");
        }
        assert_eq!(version_in("no version here"), None);
    }

    #[test]
    fn the_machine_is_described_at_once() {
        let capabilities = quick(8, Path::new("/"), None);
        assert!(capabilities.cpu_count > 0 && capabilities.memory_bytes > 0 && capabilities.disk_bytes > 0);
        assert!(!capabilities.os_version.is_empty() && !capabilities.kernel.is_empty());
        #[cfg(unix)]
        assert!(capabilities.shells.iter().any(|shell| shell.ends_with("/sh")));
    }

    #[tokio::test]
    async fn tools_are_those_that_are_there() {
        let capabilities = with_tools(Capabilities::default()).await;
        let has = |name: &str| capabilities.tools.iter().any(|tool| tool.name == name);
        assert_eq!(has("git"), find_program("git").is_some());
        assert!(capabilities.tools.iter().all(|tool| tool.version.starts_with(|c: char| c.is_ascii_digit())));
    }
}
