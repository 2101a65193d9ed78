//! Which system calls a sandboxed program may make: a seccomp program, made of the tables below.
//!
//! What is denied fails with EPERM, so that programs can say what they lack, with two exceptions. Calls whose arguments a filter cannot see (`clone3`,
//! `openat2`) do not exist (ENOSYS), and libraries take the older ones. Calls of a foreign architecture (i386 or x32 code on x86-64) kill the
//! process: nothing here knows their numbers. Everything else is allowed: namespaces, mounts and Landlock decide what it reaches.

use libc::sock_filter;

/// Refused whatever the arguments are: what changes the machine, what looks into other processes, and large parts of the kernel that programs of this
/// kind do not need.
const DENIED: &[i64] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // The kernel's large and young interfaces.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_lookup_dcookie,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Calls that do not exist inside.
const MISSING: &[i64] = &[libc::SYS_clone3, libc::SYS_openat2];

/// New namespaces, asked of `clone`.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Families of sockets that exist inside; each reaches what is in the sandbox's own network namespace.
const FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Typing into a terminal, and changing what it is.
const TERMINAL_REQUESTS: [u32; 3] = [0x5412 /* TIOCSTI */, 0x541c /* TIOCLINUX */, 0x5423 /* TIOCSETD */];

const SETUID_BITS: u32 = libc::S_ISUID | libc::S_ISGID;

/// Calls that set a file's mode, with the argument that is the mode.
const MODES: &[(i64, u32)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, 1),
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (libc::SYS_fchmodat2, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1),
    (libc::SYS_mknodat, 2),
];

/// Calls that set a file's mode when they make one: the arguments of flags and mode.
const OPENS: &[(i64, u32, u32)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1, 2),
    (libc::SYS_openat, 2, 3),
];

/// `AUDIT_ARCH_*` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: u32 = 0;

/// On x86-64, numbers from here on are x32's.
const X32: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Where the parts of a call are (struct seccomp_data).
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

/// Whether there is a filter for this architecture.
pub(super) const IS_KNOWN: bool = ARCHITECTURE != 0;

/// The program.
pub(super) fn program() -> Vec<sock_filter> {
    let mut code = vec![load(ARCHITECTURE_AT), unless(EQUAL, ARCHITECTURE, 1, 0), give(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER_AT)];
    if cfg!(target_arch = "x86_64") {
        code.extend([unless(AT_LEAST, X32, 0, 1), give(libc::SECCOMP_RET_KILL_PROCESS)]);
    }
    DENIED.iter().for_each(|call| refuse(&mut code, *call, &[give_error(libc::EPERM)]));
    MISSING.iter().for_each(|call| refuse(&mut code, *call, &[give_error(libc::ENOSYS)]));
    refuse(&mut code, libc::SYS_clone, &only_without(0, NAMESPACES as u32));
    refuse(&mut code, libc::SYS_socket, &only_of(0, &FAMILIES, libc::EAFNOSUPPORT));
    refuse(&mut code, libc::SYS_socketpair, &only_of(0, &[libc::AF_UNIX], libc::EAFNOSUPPORT));
    refuse(&mut code, libc::SYS_ioctl, &not_of(1, &TERMINAL_REQUESTS));
    MODES.iter().for_each(|(call, mode)| refuse(&mut code, *call, &only_without(*mode, SETUID_BITS)));
    for (call, flags, mode) in OPENS {
        let makes = (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) as u32;
        let mut body = vec![load(argument_at(*flags)), unless(ANY_BIT, makes, 1, 0), give(libc::SECCOMP_RET_ALLOW)];
        body.extend(only_without(*mode, SETUID_BITS));
        refuse(&mut code, *call, &body);
    }
    code.push(give(libc::SECCOMP_RET_ALLOW));
    code
}

/// When the call is this one, `body` decides; it has to return.
fn refuse(code: &mut Vec<sock_filter>, call: i64, body: &[sock_filter]) {
    let length = u8::try_from(body.len()).unwrap_or(u8::MAX);
    code.push(unless(EQUAL, u32::try_from(call).unwrap_or(u32::MAX), 0, length));
    code.extend_from_slice(body);
}

fn only_without(argument: u32, bits: u32) -> Vec<sock_filter> {
    vec![load(argument_at(argument)), unless(ANY_BIT, bits, 0, 1), give_error(libc::EPERM), give(libc::SECCOMP_RET_ALLOW)]
}

fn only_of(argument: u32, values: &[i32], error: i32) -> Vec<sock_filter> {
    let mut code = vec![load(argument_at(argument))];
    for value in values {
        code.extend([unless(EQUAL, *value as u32, 0, 1), give(libc::SECCOMP_RET_ALLOW)]);
    }
    code.push(give_error(error));
    code
}

fn not_of(argument: u32, values: &[u32]) -> Vec<sock_filter> {
    let mut code = vec![load(argument_at(argument))];
    for value in values {
        code.extend([unless(EQUAL, *value, 0, 1), give_error(libc::EPERM)]);
    }
    code.push(give(libc::SECCOMP_RET_ALLOW));
    code
}

/// The lower half of an argument: what the kernel takes of those that are looked at here.
const fn argument_at(index: u32) -> u32 {
    16 + 8 * index
}

const fn load(at: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: at }
}

/// Skips `then` instructions when the condition holds, and `otherwise` when not.
const fn unless(condition: u16, value: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: condition, jt: then, jf: otherwise, k: value }
}

const fn give(action: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: action }
}

const fn give_error(error: i32) -> sock_filter {
    give(libc::SECCOMP_RET_ERRNO | error as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel does.
    fn verdict(architecture: u32, number: i64, arguments: [u32; 4]) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    accumulator = match k {
                        NUMBER_AT => u32::try_from(number).unwrap(),
                        ARCHITECTURE_AT => architecture,
                        other => arguments[usize::try_from((other - 16) / 8).unwrap()],
                    };
                    continue;
                }
                RETURN => return k,
                EQUAL => accumulator == k,
                AT_LEAST => accumulator >= k,
                ANY_BIT => accumulator & k != 0,
                other => panic!("an instruction {other:#x}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }

    fn call(number: i64, arguments: [u32; 4]) -> u32 {
        verdict(ARCHITECTURE, number, arguments)
    }

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

    fn refused(error: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | error as u32
    }

    #[test]
    fn every_listed_call_is_refused_and_ordinary_ones_are_not() {
        for number in DENIED {
            assert_eq!(call(*number, [0; 4]), refused(libc::EPERM), "{number}");
        }
        for number in MISSING {
            assert_eq!(call(*number, [0; 4]), refused(libc::ENOSYS), "{number}");
        }
        for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_kill, libc::SYS_futex, libc::SYS_wait4] {
            assert_eq!(call(number, [u32::MAX; 4]), ALLOWED, "{number}");
        }
    }

    #[test]
    fn arguments_decide_where_a_call_has_two_faces() {
        assert_eq!(call(libc::SYS_clone, [libc::SIGCHLD as u32, 0, 0, 0]), ALLOWED);
        assert_eq!(call(libc::SYS_clone, [libc::CLONE_NEWUSER as u32, 0, 0, 0]), refused(libc::EPERM));
        for (family, verdict) in [
            (libc::AF_UNIX, ALLOWED),
            (libc::AF_INET6, ALLOWED),
            (libc::AF_NETLINK, refused(libc::EAFNOSUPPORT)),
            (40, refused(libc::EAFNOSUPPORT)),
        ] {
            assert_eq!(call(libc::SYS_socket, [family as u32, 1, 0, 0]), verdict, "{family}");
        }
        assert_eq!(call(libc::SYS_ioctl, [0, 0x5412, 0, 0]), refused(libc::EPERM));
        assert_eq!(call(libc::SYS_ioctl, [0, 0x5401, 0, 0]), ALLOWED);
        assert_eq!(call(libc::SYS_fchmod, [3, 0o755, 0, 0]), ALLOWED);
        assert_eq!(call(libc::SYS_fchmod, [3, 0o4755, 0, 0]), refused(libc::EPERM));
        let create = (libc::O_CREAT | libc::O_WRONLY) as u32;
        assert_eq!(call(libc::SYS_openat, [0, 0, create, 0o2755]), refused(libc::EPERM));
        assert_eq!(call(libc::SYS_openat, [0, 0, libc::O_TMPFILE as u32, 0o6755]), refused(libc::EPERM));
        assert_eq!(call(libc::SYS_openat, [0, 0, create, 0o644]), ALLOWED);
        // Without a new file there is no mode, whatever the register holds. A folder is not a file to be made.
        assert_eq!(call(libc::SYS_openat, [0, 0, libc::O_DIRECTORY as u32, u32::MAX]), ALLOWED);
    }

    #[test]
    fn foreign_code_is_killed() {
        assert_eq!(verdict(0x4000_0003, libc::SYS_read, [0; 4]), libc::SECCOMP_RET_KILL_PROCESS);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(call(i64::from(X32) + libc::SYS_read, [0; 4]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
