//! The file system inside: a small tmpfs with the parts of the machine that a program needs, all read-only, and the session's folder.
//!
//! What is not put here is not there: the homes, the peer's state, every other session, `/sys`, `/run`, sockets of services. Each part is cloned from
//! where it is (`open_tree`) while the machine is still to be seen, restricted as long as nobody can reach it, and only then attached.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat, statat, symlinkat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
    },
    process::{fchdir, pivot_root},
};

use super::{
    helper::{Fault, Step as _},
    spec::Spec,
    sys,
};

/// Who a program is inside. Outside, it is whoever the peer is.
pub(super) const USER: &str = "task";
/// Its home, empty for each task.
pub(super) const HOME: &str = "/home/task";
/// Where a peer that is root maps its tasks to: no privilege inside is tied to it.
pub(super) const MAPPED_ROOT: u32 = 1000;

/// Programs and libraries. On many systems some are links into `/usr`.
const SYSTEM: [&str; 8] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix/store"];

/// Of `/etc`, what programs need and what says nothing of the machine's users.
const SETTINGS: [&str; 30] = [
    "alternatives",
    "bash.bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "magic",
    "mime.types",
    "os-release",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "services",
    "shells",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "xdg",
];

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Files of `/proc` that a peer that is root could read there, and that are about the whole machine.
const MASKED: [&str; 11] = [
    "kcore",
    "kmsg",
    "keys",
    "key-users",
    "timer_list",
    "sched_debug",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    "vmallocinfo",
    "sysrq-trigger",
];

const ATTACH: MoveMountFlags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const READ: u64 = sys::READ_ONLY | sys::NO_SETUID | sys::NO_DEVICES;

/// A part of the machine: a mount that is not attached yet, or a link.
enum Part {
    Folder(OwnedFd),
    File(OwnedFd),
    Link(PathBuf),
}

/// Parts and where they go.
type Parts = Vec<(PathBuf, Part)>;

/// Makes it, and makes it the root of this process, whose folder is the workspace.
pub(super) fn build(spec: &Spec, identity: u32) -> Result<(), Fault> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).step("detach this mount namespace")?;
    let parts = gather(spec)?;
    let workspace_path = path(&spec.workspace);
    let workspace = openat(CWD, ".", LOOK, Mode::empty()).step("open the workspace")?;
    let protected = protect(spec, workspace.as_fd())?;
    let workspace = clone(workspace.as_fd(), "", sys::NO_SETUID | sys::NO_DEVICES).step("clone the workspace")?;

    let root = memory("1m", "0755").step("make a root in memory")?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step("attach the new root")?;
    for (at, size, mode) in [("tmp", "25%", "1777"), (&HOME[1..], "25%", "0700"), ("dev/shm", "25%", "1777")] {
        let folder = make_folder(&root, Path::new(at)).step("make a folder")?;
        attach(memory(size, mode).step("make a folder in memory")?, &folder).step("attach a folder in memory")?;
    }
    for (at, part) in parts {
        place(&root, &at, part).step_at("attach", &at)?;
    }
    let folder = make_folder(&root, relative(&workspace_path)).step("make the way to the workspace (does it lie in a system folder?)")?;
    attach(workspace, &folder).step("attach the workspace")?;
    for (name, mount) in protected {
        let at = workspace_path.join(&name);
        let target = openat2(&root, relative(&at), LOOK, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS);
        target.and_then(|target| attach(mount, &target)).step_at("protect", &at)?;
    }
    furnish(&root, identity)?;
    proc_in(&root)?;

    fchdir(&root).step("enter the new root")?;
    pivot_root(".", ".").step("change the root (does the peer run in a chroot?)")?;
    unmount(".", UnmountFlags::DETACH).step("leave the old root")?;
    rustix::process::chdir("/").step("enter the new root")?;
    sys::restrict_mount(&root, READ, false).step("close the new root")
}

/// Everything but the workspace, cloned and restricted.
fn gather(spec: &Spec) -> Result<Parts, Fault> {
    let mut parts = Parts::new();
    let listed = SYSTEM.iter().map(PathBuf::from).chain(SETTINGS.iter().map(|name| Path::new("etc").join(name)));
    let readable = spec.readable.iter().map(|bytes| relative(&path(bytes)).to_owned());
    for at in listed.chain(readable) {
        match part(&at, READ) {
            Ok(part) => parts.push((at, part)),
            // Not on this machine, or not for this user.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
            Err(error) => return Err(error).step_at("clone", &at),
        }
    }
    for name in DEVICES {
        let at = Path::new("dev").join(name);
        let device = part(&at, sys::READ_ONLY | sys::NO_SETUID | sys::NO_EXECUTION).step_at("clone", &at)?;
        parts.push((at, device));
    }
    Ok(parts)
}

fn part(at: &Path, attributes: u64) -> Result<Part, Errno> {
    let from = Path::new("/").join(at);
    match FileType::from_raw_mode(statat(CWD, &from, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) {
        FileType::Symlink => {
            let target = readlinkat(CWD, &from, Vec::new())?;
            let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
            // One that stays in the system is a link inside, too; of others there is what they lead to.
            if SYSTEM.iter().any(|name| Path::new(name) == at) || at.starts_with("etc/alternatives") {
                return Ok(Part::Link(target));
            }
            let real = std::fs::canonicalize(&from).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            resolved(&real, attributes)
        }
        _ => resolved(&from, attributes),
    }
}

fn resolved(from: &Path, attributes: u64) -> Result<Part, Errno> {
    let fd = openat(CWD, from, LOOK, Mode::empty())?;
    let is_folder = FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Directory;
    let mount = clone(fd.as_fd(), "", attributes)?;
    Ok(if is_folder { Part::Folder(mount) } else { Part::File(mount) })
}

/// A mount of what lies there, with what is mounted below it.
fn clone(at: BorrowedFd<'_>, name: &str, attributes: u64) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(at, name, flags)?;
    restrict(&mount, attributes)?;
    Ok(mount)
}

fn restrict(mount: &OwnedFd, attributes: u64) -> Result<(), Errno> {
    sys::restrict_mount(mount, attributes, true).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// The protected names that are there, as mounts to be put over themselves. A `.git` itself is one, so that it cannot be moved away with its settings.
fn protect(spec: &Spec, workspace: BorrowedFd<'_>) -> Result<Vec<(String, OwnedFd)>, Fault> {
    let mut mounts = Vec::new();
    for name in &spec.protected {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let mount = openat2(workspace, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath).and_then(|fd| {
            // A repository elsewhere is named by a file, which stays as it is.
            let is_folder = FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Directory;
            let writable = is_folder && super::protect::is_repository(name);
            clone(fd.as_fd(), "", sys::NO_SETUID | sys::NO_DEVICES | if writable { 0 } else { sys::READ_ONLY })
        });
        match mount {
            Ok(mount) => mounts.push((name.clone(), mount)),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::LOOP) => {
                return Err(Fault::new(format!(
                    "`{name}` in the workspace is a symbolic link, which cannot be protected; replace it by what it leads to"
                )));
            }
            Err(error) => return Err(error).step_at("protect", Path::new(name)),
        }
    }
    Ok(mounts)
}

/// A file system in memory, not attached yet.
fn memory(size: &str, mode: &str) -> Result<OwnedFd, Errno> {
    make("tmpfs", &[("size", size), ("mode", mode)], MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)
}

fn make(kind: &str, settings: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in settings {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(mount: OwnedFd, at: &OwnedFd) -> Result<(), Errno> {
    move_mount(&mount, "", at, "", ATTACH)
}

fn place(root: &OwnedFd, at: &Path, part: Part) -> Result<(), Errno> {
    let parent = make_folder(root, at.parent().unwrap_or(Path::new("")))?;
    let name = at.file_name().unwrap_or_default();
    match part {
        Part::Link(target) => symlinkat(target, &parent, name),
        Part::Folder(mount) => attach(mount, &make_folder(&parent, Path::new(name))?),
        Part::File(mount) => attach(mount, &make_file(&parent, name, b"")?),
    }
}

/// Opens a folder below another one, which is made where it is not there.
fn make_folder(root: &OwnedFd, at: &Path) -> Result<OwnedFd, Errno> {
    let mut folder = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    for part in at.components() {
        match mkdirat(&folder, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // Read-only, and it may be there.
            Err(Errno::ROFS) => {}
            Err(error) => return Err(error),
        }
        folder = openat(&folder, part.as_os_str(), LOOK | OFlags::DIRECTORY, Mode::empty())?;
    }
    Ok(folder)
}

fn make_file(folder: &OwnedFd, name: &OsStr, content: &[u8]) -> Result<OwnedFd, Errno> {
    let file = openat(folder, name, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::from_raw_mode(0o644))?;
    rustix::io::write(&file, content)?;
    openat(folder, name, LOOK, Mode::empty())
}

/// What every system has and nobody else's is needed for.
fn furnish(root: &OwnedFd, identity: u32) -> Result<(), Fault> {
    let folder = |at: &str| make_folder(root, Path::new(at)).step("make a folder");
    let device = folder("dev")?;
    let terminals =
        make("devpts", &[("ptmxmode", "0666"), ("mode", "0620")], MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC);
    attach(terminals.step("make terminals")?, &folder("dev/pts")?).step("attach terminals")?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (target, name) in links {
        symlinkat(target, &device, name).step("make a link in /dev")?;
    }
    let variable = folder("var")?;
    symlinkat("/tmp", &variable, "tmp").step("make /var/tmp")?;
    folder("run")?;
    let settings = folder("etc")?;
    let files = [
        ("passwd", format!("{USER}:x:{identity}:{identity}::{HOME}:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")),
        ("group", format!("{USER}:x:{identity}:\nnogroup:x:65534:\n")),
        ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n".to_owned()),
        ("hostname", "sandbox\n".to_owned()),
        // Names that are kept free are of no interest to a repository.
        ("gitconfig", "[core]\n\texcludesFile = /etc/gitignore\n".to_owned()),
        ("gitignore", super::protect::names().iter().map(|name| format!("/{name}\n")).collect()),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n".to_owned()),
    ];
    for (name, content) in files {
        make_file(&settings, OsStr::new(name), content.as_bytes()).step("make a file in /etc")?;
    }
    Ok(())
}

/// The processes of this sandbox, read-only, without what is about the whole machine.
fn proc_in(root: &OwnedFd) -> Result<(), Fault> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let at = make_folder(root, Path::new("proc")).step("make /proc")?;
    attach(make("proc", &[("hidepid", "ptraceable")], attributes).step("mount /proc")?, &at).step("attach /proc")?;
    let proc = openat(root, "proc", LOOK | OFlags::DIRECTORY, Mode::empty()).step("open /proc")?;
    for name in MASKED {
        let Ok(target) = openat(&proc, name, LOOK, Mode::empty()) else { continue };
        let nothing = openat(root, "dev/null", LOOK, Mode::empty()).and_then(|null| clone(null.as_fd(), "", sys::READ_ONLY));
        nothing.and_then(|nothing| attach(nothing, &target)).step("mask a file of /proc")?;
    }
    Ok(())
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// Below the root.
fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}
