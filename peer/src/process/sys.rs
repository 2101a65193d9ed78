//! The system calls that no safe wrapper offers.
//!
//! `posix_spawn` with a new session and a folder that is already open: the standard library would have to copy the whole
//! peer for a new session (0.3 ms here, against 0.08), and to look a folder's name up a second time. And `wait4`, which
//! alone says what a process used.
#![expect(unsafe_code, reason = "libc calls without a safe wrapper; each has its SAFETY comment")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_short},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    ptr,
    time::Duration,
};

use rustix::process::Pid;

use super::{Exit, Status};

#[cfg(not(target_vendor = "apple"))]
const NEW_SESSION: c_short = libc::POSIX_SPAWN_SETSID;
/// In Apple's spawn.h, missing in libc.
#[cfg(target_vendor = "apple")]
const NEW_SESSION: c_short = 0x0400;

/// A program to start.
pub(super) struct Program<'a> {
    pub path: &'a CStr,
    pub argv: &'a [CString],
    pub environment: &'a [CString],
    pub folder: BorrowedFd<'a>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Opened as all three instead, by the leader of the new session: it becomes its controlling terminal.
    pub terminal: Option<&'a CStr>,
    /// Descriptors 3, 4, and so on.
    pub more: &'a [BorrowedFd<'a>],
}

/// Starts a program as the leader of a new session, with default signal dispositions and nothing blocked. Returns once it runs.
pub(super) fn spawn(program: &Program<'_>) -> io::Result<i32> {
    let mut actions = Actions::new()?;
    actions.enter(program.folder)?;
    // Above everything that is a target, so that none is overwritten before it is copied.
    let above = 3 + i32::try_from(program.more.len()).unwrap_or(0);
    let raised = program.more.iter().map(|fd| Ok(rustix::io::fcntl_dupfd_cloexec(fd, above)?)).collect::<io::Result<Vec<OwnedFd>>>()?;
    match program.terminal {
        Some(terminal) => actions.open_terminal(terminal)?,
        None => (0..).zip(program.stdio).try_for_each(|(target, source)| actions.put(source.as_raw_fd(), target))?,
    }
    for (target, source) in (3..).zip(&raised) {
        actions.put(source.as_raw_fd(), target)?;
    }
    let attributes = Attributes::new()?;
    let argv = pointers(program.argv);
    let environment = pointers(program.environment);
    let mut pid = 0;
    // SAFETY: every pointer is to live, NUL-terminated data that outlives the call, which copies or execs before it returns.
    let result = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            environment.as_ptr(),
        )
    };
    checked(result).map(|()| pid)
}

/// The status of an ended child, which is no longer there afterwards; `None` while it runs.
pub(super) fn wait(pid: i32) -> io::Result<Option<Exit>> {
    let mut status: c_int = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to memory of the right type; all zeroes is a valid rusage.
    let (result, usage) = unsafe {
        let result = libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr());
        (result, usage.assume_init())
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some(exit_of(status, &usage))),
    }
}

/// Waits until a child has ended: this one, or any.
pub(crate) fn wait_for(pid: Option<Pid>) -> io::Result<(Pid, Exit)> {
    let mut status: c_int = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to memory of the right type; all zeroes is a valid rusage.
        let (result, usage) = unsafe {
            let result = libc::wait4(pid.map_or(-1, |pid| pid.as_raw_nonzero().get()), &raw mut status, 0, usage.as_mut_ptr());
            (result, usage.assume_init())
        };
        match (result, io::Error::last_os_error()) {
            (-1, error) if error.kind() == io::ErrorKind::Interrupted => {}
            (-1, error) => return Err(error),
            (ended, _) => return Ok((Pid::from_raw(ended).ok_or(io::ErrorKind::NotFound)?, exit_of(status, &usage))),
        }
    }
}

fn exit_of(status: c_int, usage: &libc::rusage) -> Exit {
    Exit {
        status: if libc::WIFSIGNALED(status) { Status::Signal(libc::WTERMSIG(status)) } else { Status::Code(libc::WEXITSTATUS(status)) },
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        peak_memory_bytes: peak_memory(usage.ru_maxrss),
    }
}

/// Marks an inherited file descriptor so that no program we start inherits it in turn.
pub(crate) fn close_on_exec(fd: i32) -> io::Result<()> {
    // SAFETY: F_SETFD changes a flag of the descriptor number, if there is one; nothing is closed and no memory is touched.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}

fn peak_memory(maxrss: libc::c_long) -> u64 {
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    u64::try_from(maxrss).unwrap_or(0) * unit
}

fn checked(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    strings.iter().map(|text| text.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: init fills the memory it is given, and it is only taken as initialised when init says so.
        unsafe {
            checked(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Ok(Self(actions.assume_init()))
        }
    }

    fn enter(&mut self, folder: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the actions are initialised.
        checked(unsafe { libc::posix_spawn_file_actions_addfchdir_np(&raw mut self.0, folder.as_raw_fd()) })
    }

    fn put(&mut self, source: i32, target: i32) -> io::Result<()> {
        // SAFETY: the actions are initialised.
        checked(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, source, target) })
    }

    /// Attributes come before actions, so the session is new when the terminal is opened.
    fn open_terminal(&mut self, path: &CStr) -> io::Result<()> {
        // SAFETY: the actions are initialised, and they copy the path.
        checked(unsafe { libc::posix_spawn_file_actions_addopen(&raw mut self.0, 0, path.as_ptr(), libc::O_RDWR, 0) })?;
        (1..3).try_for_each(|target| self.put(0, target))
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe {
            libc::posix_spawn_file_actions_destroy(&raw mut self.0);
        }
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: init fills the memory it is given, and it is only taken as initialised when init says so; the signal sets
        // are filled by the calls that make them.
        unsafe {
            checked(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            let mut this = Self(attributes.assume_init());
            let mut signals = MaybeUninit::uninit();
            libc::sigfillset(signals.as_mut_ptr());
            checked(libc::posix_spawnattr_setsigdefault(&raw mut this.0, signals.as_ptr()))?;
            libc::sigemptyset(signals.as_mut_ptr());
            checked(libc::posix_spawnattr_setsigmask(&raw mut this.0, signals.as_ptr()))?;
            let flags = NEW_SESSION | libc::POSIX_SPAWN_SETSIGDEF as c_short | libc::POSIX_SPAWN_SETSIGMASK as c_short;
            checked(libc::posix_spawnattr_setflags(&raw mut this.0, flags))?;
            Ok(this)
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe {
            libc::posix_spawnattr_destroy(&raw mut self.0);
        }
    }
}
