//! Programs that the peer starts: each in a session of its own, waited for, and ended with everything it started.
//!
//! A program may fork, call setsid, double-fork and change its environment; its children are still found. The peer is their
//! *subreaper*: whoever loses its parent becomes the peer's child, so every living process of a task hangs somewhere below
//! the peer. Which task it belongs to is told by its [`Mark`], which the kernel hands from parent to child (see there). This is bookkeeping for
//! programs that do not mind being found, not a wall: the wall is the sandbox.
//!
//! One listener for SIGCHLD takes the status of every child that was started here and of the orphans of tasks. Children that others in the same
//! program start (probes, a test harness) are left to them: they bear no mark.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    io,
    os::fd::BorrowedFd,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cortex_wire::id::TaskId;
use rustix::process::{Pid, Signal};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};

mod sys;
mod tree;

pub(crate) use sys::{close_on_exec, wait_for};
pub use tree::Member;

/// How a program ended, and what it used together with those of its children that it waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code or signal.
    pub status: Status,
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// Peak resident memory. The kernel counts what the peer itself used at the moment of starting as the least.
    pub peak_memory_bytes: u64,
}

/// Exit code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It ended by itself.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Somebody else in this process asked first.
    Unknown,
}

impl Exit {
    /// Nothing is known of how it ended.
    pub const UNKNOWN: Self = Self { status: Status::Unknown, user: Duration::ZERO, system: Duration::ZERO, peak_memory_bytes: 0 };
}

/// Names the processes of one task.
///
/// It is the soft limit on file locks (`RLIMIT_LOCKS`), which Linux has inherited, shown in `/proc/<pid>/limits` and otherwise ignored
/// since 2.4.25: a number that every descendant carries, whatever it does to its environment, session and file descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

impl Mark {
    const PREFIX: u64 = 0x0c0e << 48;

    /// The mark of a task: the same after a restart of the peer.
    pub fn of(task: &TaskId) -> Self {
        let low = task.as_bytes()[10..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Self(Self::PREFIX | low)
    }

    /// The mark of a browser, by the number in its folder's name: the same after a restart of the peer.
    #[cfg(feature = "browser")]
    pub fn of_browser(number: u64) -> Self {
        Self(Self::PREFIX | number & 0xffff_ffff_ffff)
    }

    fn from_limit(limit: u64) -> Option<Self> {
        (limit >> 48 == Self::PREFIX >> 48).then_some(Self(limit))
    }
}

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// The file.
    pub path: &'a CStr,
    /// Its arguments, the first of them its name.
    pub argv: &'a [CString],
    /// `NAME=value`, nothing else is inherited.
    pub environment: &'a [CString],
    /// Where it begins.
    pub folder: BorrowedFd<'a>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// All three are this terminal instead, which becomes the one that controls the program.
    pub terminal: Option<&'a CStr>,
    /// What it finds as descriptors 3, 4, and so on; no others are inherited.
    pub more: &'a [BorrowedFd<'a>],
}

/// A running program.
#[derive(Debug)]
pub struct Child {
    /// Its id, which is also its session's and its process group's.
    pub pid: Pid,
    /// Resolves when it has ended.
    pub exit: oneshot::Receiver<Exit>,
}

/// The peer's children. Cheap to clone; when the last clone is gone, nobody listens for their end any more.
#[derive(Debug, Clone)]
pub struct Processes(Arc<()>);

/// Children and signals belong to the whole program, and so does this: several peers in one program (in tests) share it.
static CHILDREN: LazyLock<Children> = LazyLock::new(Children::default);

#[derive(Debug, Default)]
struct Children {
    /// Started here and not ended yet. Also keeps two starts from mixing up their marks.
    running: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
    ended: watch::Sender<()>,
}

impl Processes {
    /// Begins to wait for children. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub fn new() -> io::Result<Self> {
        tree::adopt_orphans();
        let this = Self(Arc::new(()));
        let wanted = Arc::downgrade(&this.0);
        let mut signals = signal(SignalKind::child())?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() && wanted.strong_count() > 0 {
                CHILDREN.reap();
            }
        });
        Ok(this)
    }

    /// Starts a program.
    ///
    /// # Errors
    /// What the operating system says; nothing was started then.
    pub fn start(&self, program: &Program<'_>, mark: Mark) -> io::Result<Child> {
        let Program { path, argv, environment, folder, stdio, terminal, more } = *program;
        // Held until the child is known, so that it cannot be taken for an orphan meanwhile.
        let mut running = CHILDREN.running();
        let pid = {
            let _marked = tree::Marked::with(mark);
            sys::spawn(&sys::Program { path, argv, environment, folder, stdio, terminal, more })?
        };
        let (tell, exit) = oneshot::channel();
        running.insert(pid, tell);
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Child { pid, exit })
    }

    /// Changes whenever a child or an orphan has ended.
    pub fn ended(&self) -> watch::Receiver<()> {
        CHILDREN.ended.subscribe()
    }

    /// The living processes of a task whose first process is or was `root`.
    pub fn members(&self, root: Pid, mark: Mark) -> Vec<Member> {
        // Held while the kernel's list of children is read: it skips some when others are reaped meanwhile.
        let running = CHILDREN.running();
        let known: Vec<i32> = running.keys().copied().collect();
        tree::find(root, mark, &known)
    }
}

/// Ends whatever an earlier peer that died left running of a task.
pub fn end_leftovers(mark: Mark) -> usize {
    tree::search(mark).iter().filter(|left| left.send(Signal::KILL).is_ok()).count()
}

/// Sees to it that no program we start inherits what we inherited. To be called once, before anything else is opened.
pub fn keep_inherited_descriptors() {
    let listing = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    let open = std::fs::read_dir(listing).into_iter().flatten().flatten();
    for fd in open.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(|fd| *fd > 2) {
        let _ = sys::close_on_exec(fd);
    }
}

impl Children {
    fn running(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes every child that has ended: ours by their ids, orphans of tasks by their mark.
    fn reap(&self) {
        let mut running = self.running();
        let ended: Vec<(i32, Exit)> =
            running.keys().filter_map(|pid| Some((*pid, sys::wait(*pid).unwrap_or(Some(Exit::UNKNOWN))?))).collect();
        for (pid, exit) in ended {
            if let Some(tell) = running.remove(&pid) {
                let _ = tell.send(exit);
            }
        }
        for orphan in tree::ended_orphans(|pid| running.contains_key(&pid)) {
            let _ = sys::wait(orphan);
        }
        drop(running);
        self.ended.send_replace(());
    }
}
