//! STRICT: a task behind walls that the kernel keeps up.
//!
//! A program runs in namespaces of its own (users, mounts, processes, network, names), on a root file system that holds the system read-only and the session's
//! folder, under Landlock rules and a filter of system calls, without capabilities, and with nothing inherited but its three streams. All of it is
//! built by the peer's own program, started anew as a helper; nothing has to be installed. What a wall is worth on this machine is found out by
//! trying ([`Sandbox::level`]), and where one is missing no task runs as if it were there.
//!
//! | module | answers for |
//! | --- | --- |
//! | `spec`, `launch`, `report` | what the helper is told, is given, and tells |
//! | `helper` | the processes of a sandbox: helper, process 1, program |
//! | `root`, `protect` | what of the file system is there, and which names in the workspace stay as they are |
//! | `landlock`, `filter`, `limits` | rules over files, over system calls, over resources and capabilities |
//! | `network` | granted hosts, through the peer's proxy |
//! | `shown` | what of it the machine's owner is shown |
//! | `probe` | the self-test, and what to do about a missing wall |

use std::{
    ffi::OsString,
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use cortex_wire::schema::SandboxLevel;
use tokio::sync::OnceCell;

use crate::cgroup::{Group, Groups};

pub mod shown;

#[cfg(target_os = "linux")]
mod filter;
#[cfg(target_os = "linux")]
pub mod helper;
#[cfg(target_os = "linux")]
mod landlock;
#[cfg(target_os = "linux")]
mod launch;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod network;
#[cfg(target_os = "linux")]
mod probe;
#[cfg(target_os = "linux")]
mod protect;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod root;
#[cfg(target_os = "linux")]
mod spec;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(target_os = "linux")]
mod test;

#[cfg(target_os = "linux")]
pub use self::launch::{Failure, Launch, Sandboxed, Stdio};

/// The level of a node, and of a task, that is behind all walls.
pub const STRICT: &str = "strict";
/// The level of one that is not.
pub const PERMISSIVE: &str = "permissive";

/// The mode of an empty file that only keeps a name in a workspace: regular, readable, and sticky.
const PLACEHOLDER: u32 = 0o1444;

/// Whether a file only keeps a name while a task runs, by its mode and size.
pub fn is_placeholder(mode: u32, size: u64) -> bool {
    size == 0 && mode == 0o100_000 | PLACEHOLDER
}

/// The sandboxes of a peer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    helper: PathBuf,
    readable: Vec<PathBuf>,
    level: OnceCell<SandboxLevel>,
    groups: OnceLock<Groups>,
    #[cfg(target_os = "linux")]
    keeper: Arc<protect::Keeper>,
}

/// A program to be confined.
#[derive(Debug)]
pub struct Confined<'a> {
    /// The file.
    pub path: &'a [u8],
    /// Its arguments.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`.
    pub environment: Vec<Vec<u8>>,
    /// The session's folder, and where it is.
    pub workspace: (BorrowedFd<'a>, &'a Path),
    /// Where the program begins: the session's folder, or below it.
    pub folder: &'a Path,
    /// Files that it reads besides the system.
    pub readable: Vec<&'a Path>,
    /// Hosts that it may reach.
    pub hosts: &'a [String],
    /// It has a descriptor 3, to say what a shell session keeps.
    pub keeps: bool,
}

impl Sandbox {
    /// `helper`: the peer's program. `readable`: what tasks may read besides the system.
    pub fn new(helper: PathBuf, readable: Vec<PathBuf>) -> Self {
        Self(Arc::new(Inner {
            helper,
            readable,
            level: OnceCell::new(),
            groups: OnceLock::new(),
            #[cfg(target_os = "linux")]
            keeper: Arc::default(),
        }))
    }

    /// With this program as the helper, even when its file is replaced meanwhile.
    pub fn of_this_program(readable: Vec<PathBuf>) -> Self {
        Self::new("/proc/self/exe".into(), readable)
    }

    /// What the self-test finds. It is made once, by whoever asks first. Must be called inside a tokio runtime.
    pub async fn level(&self) -> &SandboxLevel {
        self.0.level.get_or_init(|| self.examine()).await
    }

    /// From now on each task has a group of its own, with limits.
    pub fn limit(&self, groups: Groups) {
        let _ = self.0.groups.set(groups);
    }

    /// A group for a task, where there are any.
    ///
    /// # Errors
    /// When there should be one, and cannot.
    pub fn group(&self) -> io::Result<Option<Group>> {
        self.0.groups.get().map(Groups::make).transpose()
    }

    /// The level if it is known already.
    pub fn known_level(&self) -> Option<&SandboxLevel> {
        self.0.level.get()
    }
}

/// What a node without STRICT says of itself.
fn weak(missing: Vec<String>) -> SandboxLevel {
    SandboxLevel { level: PERMISSIVE.into(), missing }
}

#[cfg(target_os = "linux")]
impl Sandbox {
    /// A variable list for inside, made of one for outside.
    pub fn environment(&self, outside: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
        launch::environment(outside, &self.0.readable)
    }

    /// Everything a helper needs to confine a program.
    ///
    /// # Errors
    /// When the operating system refuses memory, descriptors, or to keep the protected names.
    pub fn confine(&self, program: &Confined<'_>) -> io::Result<Launch> {
        use std::os::unix::ffi::OsStrExt as _;
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        let mut environment = program.environment.clone();
        if !program.hosts.is_empty() {
            environment.extend(network::variables().map(String::into_bytes));
        }
        let group = self.group()?;
        let spec = spec::Spec {
            path: program.path.to_vec(),
            argv: program.argv.clone(),
            environment,
            workspace: bytes(program.workspace.1),
            folder: bytes(program.folder),
            readable: self.0.readable.iter().map(PathBuf::as_path).chain(program.readable.iter().copied()).map(bytes).collect(),
            protected: Vec::new(),
            parent: 0,
            probe: None,
            network: !program.hosts.is_empty(),
            keeps: program.keeps,
            group: group.as_ref().map(|group| bytes(&group.door())).unwrap_or_default(),
        };
        let mut launch = Launch::new(&self.0.helper, spec, program.workspace.0, Some(&self.0.keeper))?;
        launch.grant(program.hosts);
        launch.enters(group);
        Ok(launch)
    }

    async fn examine(&self) -> SandboxLevel {
        if !filter::IS_KNOWN {
            return weak(vec![format!("there is no filter of system calls for {} yet", std::env::consts::ARCH)]);
        }
        match test::run(&self.0.helper).await {
            Ok(said) => {
                let missing = probe::judge(&said);
                if missing.is_empty() { SandboxLevel { level: STRICT.into(), missing } } else { weak(missing) }
            }
            Err(fault) => weak(vec![probe::advice(&fault)]),
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Sandbox {
    async fn examine(&self) -> SandboxLevel {
        weak(vec![format!("STRICT is for Linux; {} has nothing like it that this program could use", std::env::consts::OS)])
    }

    /// As it is: nothing is confined here.
    pub fn environment(&self, outside: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
        outside.to_vec()
    }
}
