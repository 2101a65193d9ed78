//! The system calls of the helper that no safe wrapper offers. It has one thread, so a fork copies everything there is.
#![expect(unsafe_code, reason = "system calls without a safe wrapper; each has its SAFETY comment")]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use rustix::process::Pid;

use crate::process::Exit;

/// A descriptor that this program was started with, from now on owned.
pub(super) fn take(fd: i32) -> io::Result<OwnedFd> {
    crate::process::close_on_exec(fd)?;
    // SAFETY: the descriptor is open, as the line above has shown, and the helper takes each of its three only once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether it is the terminal that controls this process. The leader of the session may be outside, and so without a number here.
pub(super) fn controls(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: the descriptor is open; nothing else is touched.
    unsafe { libc::tcgetsid(fd.as_raw_fd()) != -1 }
}

/// Gives the program that is executed next a descriptor under a number.
pub(super) fn give(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: whatever this process has under that number, it does not use again: it executes the program next.
    checked(i64::from(unsafe { libc::dup2(fd.as_raw_fd(), number) })).map(drop)
}

/// Closes every descriptor from this one on.
pub(super) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the helper owns no descriptor from `first` on: it calls this before it opens anything.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// `None` in the child.
pub(super) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: there is one thread, so the child finds no lock held by another.
    let pid = checked(i64::from(unsafe { libc::fork() }))?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// As [`fork`], and the child is born in the cgroup whose folder this is. Whoever moves there later waits until the kernel has heard of every processor: 10 to 20 ms on a machine
/// at rest.
pub(super) fn fork_into(group: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // SAFETY: all zeroes is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or_default();
    arguments.cgroup = u64::try_from(group.as_raw_fd()).unwrap_or_default();
    // SAFETY: no memory is shared with the child, so this is a fork; there is one thread, so the child finds no lock held by another.
    let pid = checked(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) })?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// Leaves these namespaces for new ones.
pub(super) fn unshare(namespaces: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: no flag that splits the descriptors or the memory of threads is used, and there are no other threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

/// Ends this process at once.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: has no conditions.
    unsafe { libc::_exit(code) }
}

/// Waits for a child.
pub(super) fn wait(pid: Option<Pid>) -> io::Result<(Pid, Exit)> {
    crate::process::wait_for(pid)
}

/// No signal but KILL and STOP is delivered any more.
pub(super) fn block_signals() -> io::Result<()> {
    set_signals(|set| {
        // SAFETY: fills the set that it is given.
        unsafe { libc::sigfillset(set) }
    })
}

/// All signals are delivered again.
pub(super) fn unblock_signals() -> io::Result<()> {
    set_signals(|set| {
        // SAFETY: fills the set that it is given.
        unsafe { libc::sigemptyset(set) }
    })
}

fn set_signals(fill: impl FnOnce(*mut libc::sigset_t) -> c_int) -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    fill(set.as_mut_ptr());
    // SAFETY: the set is filled, and the old one is not asked for.
    checked(i64::from(unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) })).map(drop)
}

/// What `mount_setattr` takes (linux/mount.h).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// `MOUNT_ATTR_*` of linux/mount.h.
pub(super) const READ_ONLY: u64 = 0x1;
pub(super) const NO_SETUID: u64 = 0x2;
pub(super) const NO_DEVICES: u64 = 0x4;
pub(super) const NO_EXECUTION: u64 = 0x8;

/// Sets attributes of a mount, and of those below it when `all`.
pub(super) fn restrict_mount(mount: impl AsFd, set: u64, all: bool) -> io::Result<()> {
    let attributes = MountAttributes { set, clear: 0, propagation: 0, user_namespace: 0 };
    let flags = libc::AT_EMPTY_PATH | if all { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a string with its end, the attributes are of the size that is said.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// Puts a filter over all system calls of this process and its children.
pub(super) fn filter_calls(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, which copies it and does not write to it.
    checked(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}

/// Neither readable nor traceable by processes of the same user.
pub(super) fn hide_memory() -> io::Result<()> {
    // SAFETY: changes a flag of this process.
    checked(i64::from(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })).map(drop)
}

/// Brings up the loopback interface of this network namespace.
pub(super) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as c_char, b'o' as c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16 | libc::IFF_RUNNING as i16;
    // SAFETY: the request is of the kind that this call reads.
    checked(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })).map(drop)
}

/// Becomes the program. Returns only when that failed.
pub(super) fn execute(path: &CStr, argv: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> { strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect() };
    let (argv, environment) = (pointers(argv), pointers(environment));
    // SAFETY: every pointer is to a live string with its end, and both lists end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// A system call of the self-test, by its number: whether it was refused, and with what.
pub(super) fn attempt(number: i64, arguments: [i64; 5]) -> io::Result<i64> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the self-test passes numbers and null pointers only, which the kernel checks itself.
    checked(unsafe { libc::syscall(number, a, b, c, d, e) })
}

/// Whether a descriptor outlives an exec.
pub(super) fn is_inherited(fd: i32) -> bool {
    // SAFETY: reads a flag of the descriptor number, if there is one.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
