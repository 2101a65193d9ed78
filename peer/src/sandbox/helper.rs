//! The helper: the peer's own program, started anew for each task, which builds the sandbox around itself and becomes the task's program.
//!
//! ```text
//! peer ──spawn──▶ helper          new namespaces; waits, and ends as the sandbox ends
//!                   └─▶ init      process 1 inside: root file system, then reaps whoever loses its parent, and tells how the program ended
//!                         └─▶ program   limits, Landlock, no capabilities, system call filter, exec
//! ```
//! Each has one thread, so forking is safe. When the helper dies, so does init, and with it, by the kernel's word, every process inside.

use std::{
    ffi::CString,
    fmt::Display,
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    process::ExitCode,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, Stat, statat},
    net::{AddressFamily, SocketType},
    process::{Pid, Signal, getegid, geteuid, getppid, set_parent_process_death_signal, setsid},
    thread::UnshareFlags,
};

use super::{
    filter, landlock, limits, probe,
    report::{self, Report},
    root,
    spec::{Spec, descriptor},
    sys,
};
use crate::process::{Exit, Status};

/// The argument by which a peer starts its own program as a helper.
pub const WORD: &str = "sandbox-helper";

/// Why a sandbox could not be built, in words for whoever runs the machine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Fault(String);

impl Fault {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }
}

/// Says what was being done when something failed.
pub(super) trait Step<T> {
    fn step(self, what: &str) -> Result<T, Fault>;
    fn step_at(self, what: &str, at: &Path) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: &str) -> Result<T, Fault> {
        self.map_err(|error| fault(what, &error.into()))
    }

    fn step_at(self, what: &str, at: &Path) -> Result<T, Fault> {
        self.map_err(|error| fault(format!("{what} {}", at.display()), &error.into()))
    }
}

fn fault(what: impl Display, error: &io::Error) -> Fault {
    Fault(format!("cannot {what}: {error}"))
}

/// What the program does when it is started as a helper.
pub fn run() -> ExitCode {
    let Ok(report) = sys::take(descriptor::REPORT) else {
        eprintln!("cortex-peer: `{WORD}` is how the peer starts its own program for a sandboxed task; it is of no use by hand");
        return ExitCode::from(2);
    };
    let error = match outside(&report) {
        Ok(Status::Code(code)) => return u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        // As it ended, so do we.
        Ok(_) => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
            return ExitCode::FAILURE;
        }
        Err(error) => error,
    };
    report::send(&report, &Report::Failed(error.to_string()), None);
    ExitCode::FAILURE
}

/// The helper itself: returns how process 1 has ended.
fn outside(report: &OwnedFd) -> Result<Status, Fault> {
    let spec = sys::take(descriptor::SPEC).and_then(Spec::from_file).step("read what to do")?;
    let workspace = sys::take(descriptor::WORKSPACE).step("use the workspace")?;
    let kept = spec.keeps.then(|| sys::take(descriptor::KEPT)).transpose().step("use the descriptor of the shell session")?;
    sys::close_from(if spec.keeps { 7 } else { 6 }).step("close what is not needed")?;
    // The peer's signals are for the program; who stands around it hears KILL only.
    sys::block_signals().step("block signals")?;
    die_with_parent()?;
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(spec.parent) {
        return Err(Fault::new("the peer is gone".into()));
    }
    let group = (!spec.group.is_empty()).then(|| Entrance::open(&spec.group)).transpose().step("find the task's cgroup")?;
    let folder = statat(CWD, ".", AtFlags::empty()).step("look at the folder")?;
    // Descriptors belong to the mounts outside. The folder in which a process is goes along into new ones.
    rustix::process::fchdir(&workspace).step("enter the workspace")?;
    drop(workspace);
    let identity = separate()?;
    match Entrance::fork(group.as_ref()).step("start process 1 in the task's cgroup")? {
        None => {
            drop(group);
            sys::exit(inside(&spec, &folder, report, identity, kept))
        }
        Some(init) => {
            drop(kept);
            sys::hide_memory().step("hide memory")?;
            Ok(sys::wait(Some(init)).step("wait for process 1")?.1.status)
        }
    }
}

/// The way into the task's cgroup, found while the peer's own rights still count.
struct Entrance {
    folder: OwnedFd,
    door: fs::File,
}

impl Entrance {
    /// `door`: the path of its `cgroup.procs`.
    fn open(door: &[u8]) -> io::Result<Self> {
        let door = Path::new(std::ffi::OsStr::from_bytes(door));
        let folder = rustix::fs::open(door.parent().unwrap_or(door), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { folder, door: fs::OpenOptions::new().write(true).open(door)? })
    }

    /// Starts a process in the group, if there is one. `None` in the child.
    fn fork(group: Option<&Self>) -> io::Result<Option<Pid>> {
        let Some(Self { folder, door }) = group else { return sys::fork() };
        match sys::fork_into(folder.as_fd()) {
            // Before Linux 5.7, or the rights of now do not suffice: this process goes first.
            Err(_) => {
                let mut door = door;
                door.write_all(b"0")?;
                sys::fork()
            }
            forked => forked,
        }
    }
}

fn die_with_parent() -> Result<(), Fault> {
    set_parent_process_death_signal(Some(Signal::KILL)).step("end together with the peer")
}

/// New namespaces, and in them one user, who is nobody special. Returns who.
fn separate() -> Result<u32, Fault> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    if user == 0 {
        match rustix::thread::set_thread_groups(&[]) {
            // Root of a user namespace in which nobody may: it has none to give up.
            Err(rustix::io::Errno::PERM) => {}
            given_up => given_up.step("give up further groups")?,
        }
    }
    let all = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS;
    // Nobody else holds on to what this process shares with its threads: there are none.
    super::sys::unshare(all).step("make namespaces")?;
    let inside = |outside: u32| if outside == 0 { root::MAPPED_ROOT } else { outside };
    // Without this, whoever may not change groups may not name one either.
    let refuse = fs::write("/proc/self/setgroups", "deny");
    refuse.and_then(|()| fs::write("/proc/self/uid_map", format!("{} {user} 1", inside(user)))).step("map the user")?;
    fs::write("/proc/self/gid_map", format!("{} {group} 1", inside(group))).step("map the group")?;
    Ok(inside(user))
}

/// Process 1. Returns its exit code.
fn inside(spec: &Spec, folder: &Stat, report: &OwnedFd, identity: u32, kept: Option<OwnedFd>) -> i32 {
    let listener = match prepare(spec, folder, identity) {
        Ok(listener) => listener,
        Err(fault) => {
            report::send(report, &Report::Failed(fault.to_string()), None);
            return 1;
        }
    };
    match start(spec, report, kept) {
        Ok(program) => {
            report::send(report, &Report::Started, listener.as_ref().map(OwnedFd::as_fd));
            drop(listener);
            reap(program, report)
        }
        Err(said) => {
            report::send(report, &said, None);
            1
        }
    }
}

/// The sandbox as process 1 builds it. Returns the listener for the peer's proxy, when there is to be one.
fn prepare(spec: &Spec, folder: &Stat, identity: u32) -> Result<Option<OwnedFd>, Fault> {
    // Only now: the group that this process was born in is the top of what can be seen.
    sys::unshare(UnshareFlags::NEWCGROUP).step("make a namespace of cgroups")?;
    die_with_parent()?;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).step("make a network")?;
    sys::loopback_up(socket.as_fd()).step("make a loopback interface")?;
    drop(socket);
    rustix::system::sethostname(b"sandbox").step("set the name of this machine")?;
    root::build(spec, identity)?;
    let at = Path::new(std::ffi::OsStr::from_bytes(&spec.folder));
    rustix::process::chdir(at).step_at("enter", at)?;
    let found = statat(CWD, ".", AtFlags::empty()).step("look at the folder")?;
    if (found.st_dev, found.st_ino) != (folder.st_dev, folder.st_ino) {
        return Err(Fault::new(format!("the folder {} was replaced while the task started; try again", at.display())));
    }
    spec.network.then(super::network::listen).transpose().step("listen for the proxy")
}

/// Starts the program, and returns when it runs.
fn start(spec: &Spec, report: &OwnedFd, kept: Option<OwnedFd>) -> Result<Pid, Report> {
    let failed = |fault: Fault| Report::Failed(fault.to_string());
    let (read, low) = io::pipe().step("make a pipe").map_err(failed)?;
    // Out of the way of what the program gets.
    let write = rustix::io::fcntl_dupfd_cloexec(&low, 10).step("make a pipe").map(fs::File::from).map_err(failed)?;
    drop(low);
    let program = match sys::fork().step("start the program").map_err(failed)? {
        None => {
            drop(read);
            let error = match become_program(spec, kept.as_ref()) {
                Ok(code) => sys::exit(code),
                Err(error) => error,
            };
            let _ = io::Write::write_all(&mut &write, &error.encode());
            sys::exit(127)
        }
        Some(program) => program,
    };
    drop((write, kept));
    let _ = report;
    sys::hide_memory().step("hide memory").map_err(failed)?;
    limits::drop_capabilities().map_err(failed)?;
    let said = io::read_to_string(read).step("hear of the program").map_err(failed)?;
    if said.is_empty() { Ok(program) } else { Err(Report::decode(said.as_bytes())) }
}

/// The last steps, in the process of the program: from here on there is no way back. Returns only when something failed, or the self-test is done.
fn become_program(spec: &Spec, kept: Option<&OwnedFd>) -> Result<i32, Report> {
    let failed = |fault: Fault| Report::Failed(fault.to_string());
    // A terminal's session is left as it is. Without one, the program leads its own, as it does outside.
    if !has_terminal() {
        setsid().step("begin a session").map_err(failed)?;
    }
    let words = |list: &[Vec<u8>]| list.iter().map(|word| CString::new(word.as_slice())).collect::<Result<Vec<_>, _>>();
    let (path, argv, environment) = CString::new(spec.path.as_slice())
        .and_then(|path| Ok((path, words(&spec.argv)?, words(&spec.environment)?)))
        .map_err(|_| failed(Fault::new("a zero byte in the command".into())))?;
    limits::apply().map_err(failed)?;
    rustix::thread::set_no_new_privs(true).step("give up privileges").map_err(failed)?;
    landlock::restrict(spec).map_err(failed)?;
    limits::drop_capabilities().map_err(failed)?;
    sys::filter_calls(&filter::program()).step("filter system calls").map_err(failed)?;
    if let Some(wanted) = &spec.probe {
        return Ok(probe::attempt_all(wanted));
    }
    if let Some(kept) = kept {
        sys::give(kept.as_fd(), descriptor::KEPT_INSIDE).step("give the descriptor of the shell session").map_err(failed)?;
    }
    sys::unblock_signals().step("unblock signals").map_err(failed)?;
    let error = sys::execute(&path, &argv, &environment);
    Err(Report::NotExecuted(error.raw_os_error().unwrap_or(libc::EIO)))
}

fn has_terminal() -> bool {
    sys::controls(rustix::stdio::stdin())
}

/// Takes the exit of whoever ends, tells the peer of the program's, and returns when nobody is left.
fn reap(program: Pid, report: &OwnedFd) -> i32 {
    while let Ok((pid, exit)) = sys::wait(None) {
        if pid == program {
            report::send(report, &Report::Ended(exit), None);
        }
    }
    0
}

impl From<Exit> for Report {
    fn from(exit: Exit) -> Self {
        Self::Ended(exit)
    }
}
