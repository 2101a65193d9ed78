//! The self-test: a sandbox built as for a task, in which escapes are tried. What comes of it is the node's level, a fact and not a claim.
//!
//! [`attempt_all`] runs inside and prints a line for each attempt; [`examine`] runs in the peer, makes what there is to be reached, sees to it that it can
//! be reached from outside, and judges. What keeps a sandbox from being built is told together with what to do about it ([`advice`]).

use std::{
    fs,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use super::spec::Probe;

/// How many lines there are to be.
pub(super) const ATTEMPTS: usize = 27;

/// Inside: tries everything, and says of each attempt whether it was `shut` or `open`.
pub(super) fn attempt_all(wanted: &Probe) -> i32 {
    let mut said = String::new();
    for (name, is_shut) in attempts(wanted) {
        said += if is_shut { "shut " } else { "open " };
        said += name;
        said.push('\n');
    }
    i32::from(io::stdout().write_all(said.as_bytes()).is_err())
}

fn attempts(wanted: &Probe) -> Vec<(&'static str, bool)> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], u16::try_from(wanted.port).unwrap_or(0)));
    let wait = Duration::from_millis(500);
    let by_name = UnixAddress::from_abstract_name(&wanted.abstract_name);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let says = |line: &str| status.lines().any(|found| found.split_whitespace().eq(line.split(' ')));
    let refused = |number: i64, arguments: [i64; 5]| super::sys::attempt(number, arguments).is_err();
    let no_socket = |family: i32| refused(libc::SYS_socket, [family.into(), libc::SOCK_DGRAM.into(), 0, 0, 0]);
    vec![
        ("a file outside", fs::read(&wanted.secret_file).is_err()),
        ("the folder of a file outside", !lists(Path::new(&wanted.secret_file))),
        ("a listener on loopback", TcpStream::connect_timeout(&loopback, wait).is_err()),
        ("an address elsewhere", UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", "192.0.2.1:9")).is_err()),
        ("a listener with an abstract name", by_name.and_then(|name| UnixStream::connect_addr(&name)).is_err()),
        ("writing to /usr", fs::write("/usr/cortex-probe", "x").is_err()),
        ("writing to /etc", fs::write("/etc/cortex-probe", "x").is_err()),
        ("writing to /", fs::write("/cortex-probe", "x").is_err()),
        ("a kernel setting", fs::OpenOptions::new().write(true).open("/proc/sys/kernel/core_pattern").is_err()),
        ("the memory of process 1", fs::read("/proc/1/environ").is_err() && fs::read_dir("/proc/1/fd").is_err()),
        ("inherited descriptors", open_descriptors().is_some_and(|count| count == 0)),
        ("capabilities", says("CapEff: 0000000000000000") && says("CapPrm: 0000000000000000") && says("CapBnd: 0000000000000000")),
        ("new privileges", says("NoNewPrivs: 1")),
        ("system calls without a filter", says("Seccomp: 2")),
        ("ptrace", refused(libc::SYS_ptrace, [0; 5])),
        ("io_uring", refused(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]) && refusal(libc::SYS_io_uring_setup) == Some(libc::EPERM)),
        ("bpf", refusal(libc::SYS_bpf) == Some(libc::EPERM)),
        ("perf events", refusal(libc::SYS_perf_event_open) == Some(libc::EPERM)),
        ("userfaultfd", refusal(libc::SYS_userfaultfd) == Some(libc::EPERM)),
        ("kernel keys", refusal(libc::SYS_keyctl) == Some(libc::EPERM)),
        ("a user namespace", refused(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0])),
        ("another namespace", refusal(libc::SYS_setns) == Some(libc::EPERM)),
        ("mounting", refusal(libc::SYS_mount) == Some(libc::EPERM) && refusal(libc::SYS_fsopen) == Some(libc::EPERM)),
        (
            "a device",
            rustix::fs::mknodat(rustix::fs::CWD, "/tmp/device", rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::RWXU, 0x105)
                .is_err(),
        ),
        ("netlink", no_socket(libc::AF_NETLINK)),
        ("packets", no_socket(libc::AF_PACKET)),
        ("virtual machine sockets", no_socket(libc::AF_VSOCK)),
    ]
}

fn refusal(number: i64) -> Option<i32> {
    super::sys::attempt(number, [0; 5]).err()?.raw_os_error()
}

/// Whether a file is to be seen in its folder.
fn lists(file: &Path) -> bool {
    let listed = file.parent().and_then(|folder| fs::read_dir(folder).ok());
    listed.into_iter().flatten().flatten().any(|entry| Some(entry.file_name().as_os_str()) == file.file_name())
}

/// Besides the standard ones, those that a program would get.
fn open_descriptors() -> Option<usize> {
    let names = fs::read_dir("/proc/self/fd").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Some(names.filter(|fd| *fd > 2 && super::sys::is_inherited(*fd)).count())
}

/// What there is outside for the self-test to reach for. Everything goes with the value.
pub(super) struct Bait {
    pub probe: Probe,
    _listeners: (TcpListener, UnixListener),
}

impl Bait {
    /// In a folder of its own.
    pub(super) fn lay(folder: &Path) -> io::Result<Self> {
        let secret = folder.join("secret");
        fs::write(&secret, "secret")?;
        let tcp = TcpListener::bind(("127.0.0.1", 0))?;
        let abstract_name = format!("cortex-probe-{}", folder.display());
        let name = UnixAddress::from_abstract_name(&abstract_name)?;
        let by_name = UnixListener::bind_addr(&name)?;
        // The control: from here all of it is within reach.
        fs::read(&secret)?;
        TcpStream::connect(tcp.local_addr()?)?;
        UnixStream::connect_addr(&name)?;
        let port = tcp.local_addr()?.port().into();
        Ok(Self { probe: Probe { secret_file: secret.to_string_lossy().into_owned(), port, abstract_name }, _listeners: (tcp, by_name) })
    }
}

/// What was found open, or not tried at all.
pub(super) fn judge(said: &str) -> Vec<String> {
    let mut missing: Vec<String> =
        said.lines().filter_map(|line| line.strip_prefix("open ")).map(|name| format!("the self-test got through to: {name}")).collect();
    let tried = said.lines().filter(|line| line.starts_with("shut ") || line.starts_with("open ")).count();
    if tried != ATTEMPTS {
        missing.push(format!("the self-test made {tried} of its {ATTEMPTS} attempts"));
    }
    missing
}

/// What keeps a sandbox from being built, with what to do about it.
pub(super) fn advice(fault: &str) -> String {
    let setting = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned());
    let is = |name: &str, value: &str| setting(name).as_deref() == Some(value);
    let fix = if is("user/max_user_namespaces", "0") {
        "user namespaces are switched off; as root: sysctl -w user.max_user_namespaces=15000"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "user namespaces are for root only; as root: sysctl -w kernel.unprivileged_userns_clone=1"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor keeps user namespaces from this program; as root: write `profile cortex-peer /usr/local/bin/cortex-peer flags=(unconfined) { userns, }` \
         (with where the program is) to /etc/apparmor.d/cortex-peer and run: apparmor_parser -r /etc/apparmor.d/cortex-peer"
    } else if fault.contains("Landlock") {
        "needs Linux 6.2 or later with Landlock switched on (`landlock` in the boot option lsm=…)"
    } else if fault.contains("Function not implemented") {
        "needs Linux 6.2 or later"
    } else if fault.contains("/proc") && fault.contains("not permitted") {
        "the container hides parts of /proc; start it with: --security-opt systempaths=unconfined"
    } else if fault.contains("namespaces") && fault.contains("not permitted") {
        "the container's filter keeps namespaces from it; start it with: --security-opt seccomp=unconfined (or a filter that allows unshare, clone and mount)"
    } else if fault.contains("chroot") {
        "start the peer outside of the chroot"
    } else {
        "see `cortex-peer doctor`, and please report this"
    };
    format!("{fault}. Fix: {fix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_open_attempt_or_one_that_was_not_made_is_one_too_many() {
        let all_shut: String = (0..ATTEMPTS).map(|number| format!("shut {number}\n")).collect();
        assert!(judge(&all_shut).is_empty());
        assert_eq!(judge(&all_shut.replacen("shut 3", "open 3", 1)).len(), 1);
        assert_eq!(judge("").len(), 1);
    }

    #[test]
    fn every_fault_comes_with_something_to_do() {
        for fault in ["cannot make namespaces: Operation not permitted", "cannot enforce Landlock rules: …", "cannot do something"] {
            let text = advice(fault);
            assert!(text.starts_with(fault) && text.contains("Fix: "), "{text}");
        }
    }
}
