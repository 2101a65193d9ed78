//! The workspace's folder, held open: the only way to its files.
//!
//! The folder is opened once. Everything below it is reached from that descriptor by `openat2` with
//! `BENEATH | NO_SYMLINKS | NO_MAGICLINKS | NO_XDEV` up to the parent folder, and then by a single name that is never followed. So whatever somebody swaps in
//! between two steps, nothing outside of the folder is read, written or removed. A path of the file system is used at start and to ask whether the folder
//! is still where it was, and never to reach a file.
//!
//! `.cortex` at the top is the mirror's own: staged files, conflict copies, cookies.
//!
//! Some file systems take two names for one when they differ by case or Unicode form only. On these a name counts as there when the listing of its folder has
//! exactly it, and nothing is put beside its [`twin`].

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use cortex_runtime::{clock, keyfile::make_private_dir};
use cortex_wire::{id::SessionId, mirror::path::RelPath};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, fstat, mkdirat, openat, renameat_with, statat, unlinkat},
    io::Errno,
};

/// The mirror's own folder, at the top of a workspace.
pub const OWN: &str = ".cortex";
/// Below [`OWN`]: files that are not in their place yet.
pub const STAGE: &str = "stage";
/// Below [`OWN`]: what lost a conflict.
pub const CONFLICTS: &str = "conflicts";
/// Below [`OWN`]: files whose events say that all earlier ones were seen.
pub const COOKIES: &str = "cookies";

/// Below [`OWN`]: which folder this is.
const IDENTITY: &str = "id";
const IDENTITY_BYTES: usize = 16;

/// Below [`OWN`]: what is looked for under other names, to learn which of them the file system takes for one.
const PROBE: &str = "probe-\u{e9}";
/// Beside it, to learn whether the two can be exchanged.
const PROBE_OTHER: &str = "probe-other";
/// The same in capitals, and in the other Unicode form.
const PROBE_TWINS: [&str; 2] = ["PROBE-\u{c9}", "probe-e\u{301}"];

/// What to do about a file system on which a file cannot be replaced without a moment in which it is missing or an edit is lost.
const CANNOT_EXCHANGE: &str = "its file system cannot exchange two files (many network shares, NFS and exFAT cannot); set `workspace_dir` to a folder on a local disk";

/// `openat2` gives up when something was renamed meanwhile; that often it is asked again.
const TRIES: usize = 256;

/// What `stat` says that tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Nanoseconds since the epoch. No program can set it.
    pub ctime_ns: i64,
    /// Type and permissions.
    pub mode: u32,
    /// How many names it has.
    pub links: u32,
}

impl Stat {
    fn of(stat: &rustix::fs::Stat) -> Self {
        let ns = |seconds: i64, nanoseconds: u64| seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(nanoseconds);
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
            mode: stat.st_mode,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        }
    }

    /// Of an open file.
    ///
    /// # Errors
    /// The system's.
    pub fn of_open(fd: impl AsFd) -> Result<Self, Errno> {
        fstat(fd).map(|stat| Self::of(&stat))
    }

    /// File, folder, link or something else.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether its owner may run it.
    pub fn is_executable(&self) -> bool {
        self.mode & 0o100 != 0
    }

    /// Whether this is the same file in the same state, though it may have been renamed (which changes `ctime`).
    pub fn is_same_but_for_ctime(&self, other: &Self) -> bool {
        Self { ctime_ns: 0, ..*self } == Self { ctime_ns: 0, ..*other }
    }
}

/// Why a workspace's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the workspace's folder {path}: {source}")]
pub struct RootError {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// The folder of one workspace, held open.
#[derive(Debug)]
pub struct Root {
    folder: Folder,
    parent: OwnedFd,
    name: String,
    path: PathBuf,
    stat: Stat,
    /// `openat2` is not to be had (before Linux 5.6, or forbidden).
    step_by_step: AtomicBool,
}

/// A folder inside the workspace, open. Names in it are single components, never followed.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    /// A name that the file system finds may be another one.
    folds: bool,
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Of a name that is not there: one that some file systems take for the same.
pub fn twin<'a>(names: impl IntoIterator<Item = &'a [u8]>, name: &str) -> Option<String> {
    let key = |name: &str| name.parse::<RelPath>().ok().map(|name| name.fold_key());
    let wanted = key(name)?;
    let mut twin = None;
    for there in names.into_iter().filter_map(|name| std::str::from_utf8(name).ok()) {
        if there == name {
            return None;
        }
        if twin.is_none() && key(there).as_ref() == Some(&wanted) {
            twin = Some(there.to_owned());
        }
    }
    twin
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Root {
    /// Opens the session's folder, which is made when it is not there.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn open(workspace_dir: &Path, session: &SessionId) -> Result<Self, RootError> {
        let name = session.to_string();
        let path = workspace_dir.join(&name);
        let failed = |source: io::Error| RootError { path: path.clone(), source };
        make_private_dir(workspace_dir).map_err(failed)?;
        let workspace_dir = std::fs::canonicalize(workspace_dir).map_err(failed)?;
        let opened = || -> Result<(OwnedFd, OwnedFd, Stat), Errno> {
            let parent = rustix::fs::open(&workspace_dir, FOLDER, Mode::empty())?;
            match mkdirat(&parent, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let folder = openat(&parent, &name, FOLDER, Mode::empty())?;
            let stat = Stat::of_open(&folder)?;
            Ok((parent, folder, stat))
        };
        let (parent, folder, stat) = opened().map_err(|errno| failed(errno.into()))?;
        let folder = Folder { fd: folder, folds: false };
        let path = workspace_dir.join(&name);
        let root = Self { folder, parent, path, name, stat, step_by_step: AtomicBool::new(false) };
        let folds = root.probe_names().map_err(|errno| failed(errno.into()))?;
        if root.cannot_exchange().map_err(|errno| failed(errno.into()))? {
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, CANNOT_EXCHANGE)));
        }
        Ok(root.folding(folds))
    }

    /// Whether the file system takes names for one that differ by case or Unicode form.
    fn probe_names(&self) -> Result<bool, Errno> {
        let own = self.folder.make_folder(OWN)?;
        match own.create(PROBE, 0o600) {
            Ok(_) | Err(Errno::EXIST) => {}
            // Nothing can be put there at all, or no such names.
            Err(_) => return Ok(false),
        }
        let found = PROBE_TWINS.iter().any(|twin| matches!(own.stat(twin), Ok(Some(_))));
        unlinkat(&own, PROBE, AtFlags::empty())?;
        Ok(found)
    }

    /// Whether the file system lacks what every replacement needs. `false` also when nothing can be put there to find out.
    fn cannot_exchange(&self) -> Result<bool, Errno> {
        let own = self.folder.make_folder(OWN)?;
        let make = |name| matches!(own.create(name, 0o600), Ok(_) | Err(Errno::EXIST));
        if !make(PROBE) {
            return Ok(false);
        }
        let rename = |flags| renameat_with(&own, PROBE, &own, PROBE_OTHER, flags);
        let (new, exchanged) = (rename(RenameFlags::NOREPLACE), make(PROBE).then(|| rename(RenameFlags::EXCHANGE)));
        for name in [PROBE, PROBE_OTHER] {
            match unlinkat(&own, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        let lacks = |result| matches!(result, Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP));
        Ok(lacks(new) || exchanged.is_some_and(lacks))
    }

    /// The same folder on a file system of which this is known.
    pub fn folding(mut self, folds: bool) -> Self {
        self.folder.folds = folds;
        self
    }

    /// Whether the file system takes names for one that differ by case or Unicode form.
    pub fn folds(&self) -> bool {
        self.folder.folds
    }

    /// Where it was when it was opened, for the watcher.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name still leads to the folder that is held: not after somebody moved it, removed it or mounted over it.
    pub fn is_in_place(&self) -> bool {
        statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (self.stat.dev, self.stat.ino))
    }

    /// Tells this folder from any other that was or will be under the same name: random bytes in a file of ours, made when it is not there.
    ///
    /// # Errors
    /// The system's.
    pub fn identity(&self) -> io::Result<[u8; IDENTITY_BYTES]> {
        let own = self.folder.make_folder(OWN)?;
        let mut identity = [0; IDENTITY_BYTES];
        match own.read(IDENTITY) {
            Ok(mut file) => match file.read_exact(&mut identity) {
                Ok(()) => return Ok(identity),
                Err(_) => unlinkat(&own, IDENTITY, AtFlags::empty())?,
            },
            Err(Errno::LOOP | Errno::NXIO) => unlinkat(&own, IDENTITY, AtFlags::empty())?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        identity = clock::random();
        own.create(IDENTITY, 0o600)?.write_all(&identity)?;
        Ok(identity)
    }

    /// The top folder.
    pub fn top(&self) -> &Folder {
        &self.folder
    }

    /// Opens a folder of the workspace; `""` is the top.
    ///
    /// # Errors
    /// `LOOP` or `NOTDIR` when a link is on the way, `XDEV` when another file system is, and the system's.
    pub fn folder(&self, path: &str) -> Result<Folder, Errno> {
        if path.is_empty() {
            return openat(&self.folder, ".", FOLDER, Mode::empty()).map(|fd| Folder { fd, folds: self.folds() });
        }
        let fd = if self.folds() { self.step_beneath(path)? } else { self.open_beneath(path)? };
        Ok(Folder { fd, folds: self.folds() })
    }

    /// The folder that holds `path`, and the name in it.
    ///
    /// # Errors
    /// As [`Root::folder`].
    pub fn place<'a>(&self, path: &'a RelPath) -> Result<(Folder, &'a str), Errno> {
        let (parent, name) = split(path.as_str());
        Ok((self.folder(parent)?, name))
    }

    /// What lies at `path`; `None`: nothing, or something on the way is no folder.
    ///
    /// # Errors
    /// The system's: then nobody knows what lies there.
    pub fn stat(&self, path: &RelPath) -> Result<Option<Stat>, Errno> {
        match self.place(path) {
            Ok((folder, name)) => folder.stat(name),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where an open file seems to lie now, though it may have been renamed since. `None`: not in this folder, or the system does not tell.
    pub fn path_of(&self, file: &File) -> Option<RelPath> {
        let path = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        let (top, now) = (path(self.folder.as_fd())?, path(file.as_fd())?);
        now.strip_prefix(top).ok()?.to_str()?.parse().ok()
    }

    /// A folder below [`OWN`], made when it is not there. Something else under that name is removed: the names are ours.
    ///
    /// # Errors
    /// The system's.
    pub fn own(&self, name: &str) -> Result<Folder, Errno> {
        self.folder.make_folder(OWN)?.make_folder(name)
    }

    #[cfg(target_os = "linux")]
    fn open_beneath(&self, path: &str) -> Result<OwnedFd, Errno> {
        use rustix::fs::{ResolveFlags, openat2};
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        if !self.step_by_step.load(Ordering::Relaxed) {
            for _ in 0..TRIES {
                match openat2(&self.folder, path, FOLDER, Mode::empty(), resolve) {
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(Errno::NOSYS | Errno::PERM) => {
                        self.step_by_step.store(true, Ordering::Relaxed);
                        return self.step_beneath(path);
                    }
                    result => return result,
                }
            }
        }
        self.step_beneath(path)
    }

    #[cfg(not(target_os = "linux"))]
    fn open_beneath(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.step_beneath(path)
    }

    /// The same one component at a time: none of them is followed, and none is `..`.
    fn step_beneath(&self, path: &str) -> Result<OwnedFd, Errno> {
        let mut folder = self.folder("")?;
        for name in path.split('/') {
            if matches!(name, "" | "." | "..") {
                return Err(Errno::XDEV);
            }
            if self.folds() && folder.stat(name)?.is_none() {
                return Err(Errno::NOENT);
            }
            folder.fd = openat(&folder, name, FOLDER, Mode::empty())?;
            if Stat::of_open(&folder)?.dev != self.stat.dev {
                return Err(Errno::XDEV);
            }
        }
        Ok(folder.fd)
    }
}

/// Parent (`""` for the top) and name.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Folder {
    /// The same, for asking about names that it has listed.
    pub fn listed(self) -> Self {
        Self { folds: false, ..self }
    }

    /// What the file system would take a name for that is not there.
    ///
    /// # Errors
    /// The system's.
    pub fn twin(&self, name: &str) -> Result<Option<String>, Errno> {
        if !self.folds {
            return Ok(None);
        }
        Ok(twin(self.names()?.iter().map(Vec::as_slice), name))
    }

    /// What lies under a name, without following it; `None`: nothing.
    ///
    /// # Errors
    /// The system's.
    pub fn stat(&self, name: &str) -> Result<Option<Stat>, Errno> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) if self.folds && !self.names()?.iter().any(|there| there == name.as_bytes()) => Ok(None),
            Ok(stat) => Ok(Some(Stat::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a file for reading. Neither follows a link nor waits for a fifo's other end.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        openat(&self.fd, name, flags, Mode::empty()).map(File::from)
    }

    /// Makes a file that must not be there yet. `mode` goes through the umask.
    ///
    /// # Errors
    /// The system's.
    pub fn create(&self, name: &str, mode: u32) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.fd, name, flags, Mode::from_raw_mode(mode)).map(File::from)
    }

    /// Makes a file without a name, on the file system of this folder. `mode` goes through the umask.
    ///
    /// # Errors
    /// The system's; many, where there are no such files.
    pub fn create_unnamed(&self, mode: u32) -> Result<File, Errno> {
        #[cfg(target_os = "linux")]
        return openat(&self.fd, ".", OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, Mode::from_raw_mode(mode)).map(File::from);
        #[cfg(not(target_os = "linux"))]
        return Err(Errno::OPNOTSUPP);
    }

    /// Opens a folder in this one, which is made when it is not there. Something else under that name is removed.
    ///
    /// # Errors
    /// The system's.
    pub fn make_folder(&self, name: &str) -> Result<Self, Errno> {
        for _ in 0..2 {
            match openat(&self.fd, name, FOLDER, Mode::empty()) {
                Ok(fd) => return Ok(Self { fd, folds: false }),
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(&self.fd, name, AtFlags::empty())?,
                Err(error) => return Err(error),
            }
            match mkdirat(&self.fd, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        openat(&self.fd, name, FOLDER, Mode::empty()).map(|fd| Self { fd, folds: false })
    }

    /// Names in it, in no order, as bytes: not all are text.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let fd = openat(&self.fd, ".", FOLDER, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("work"), &SessionId::new(1, [1; 10])).unwrap();
        (dir, root)
    }

    #[test]
    fn nothing_outside_is_reached_by_any_path() {
        let (dir, root) = root();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        symlink("../../outside", root.path().join("up")).unwrap();
        symlink(dir.path(), root.path().join("absolute")).unwrap();
        symlink("in", root.path().join("inside")).unwrap();
        symlink("/proc/self/root", root.path().join("magic")).unwrap();
        assert!(root.folder("in").is_ok());
        for path in ["up", "absolute", "inside", "magic", "magic/etc", "absolute/outside"] {
            for opened in [root.folder(path).map(|_| ()), root.step_beneath(path).map(|_| ())] {
                assert!(matches!(opened, Err(Errno::LOOP | Errno::NOTDIR)), "{path}: {opened:?}");
            }
        }
        for path in ["..", "in/../..", "/etc", "in/../../.."] {
            assert_eq!(root.folder(path).unwrap_err(), Errno::XDEV, "{path}");
            assert_eq!(root.step_beneath(path).unwrap_err(), Errno::XDEV, "{path}, step by step");
        }
    }

    #[test]
    fn a_folder_that_was_moved_or_replaced_is_noticed() {
        let (_dir, root) = root();
        assert!(root.is_in_place());
        std::fs::rename(root.path(), root.path().with_extension("moved")).unwrap();
        assert!(!root.is_in_place());
        std::fs::create_dir(root.path()).unwrap();
        assert!(!root.is_in_place(), "another folder under the same name is not the one that is held");
    }

    #[test]
    fn a_folder_is_told_from_a_later_one_of_the_same_name() {
        let (dir, root) = root();
        let identity = root.identity().unwrap();
        assert_eq!(root.identity().unwrap(), identity);
        std::fs::remove_dir_all(root.path()).unwrap();
        let again = Root::open(&dir.path().join("work"), &SessionId::new(1, [1; 10])).unwrap();
        assert_ne!(again.identity().unwrap(), identity);
    }

    #[test]
    fn what_stands_in_the_way_of_our_own_folder_is_removed_and_not_followed() {
        let (dir, root) = root();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::remove_dir(root.path().join(OWN)).unwrap();
        symlink(dir.path().join("outside"), root.path().join(OWN)).unwrap();
        root.own(STAGE).unwrap().create("x", 0o600).unwrap();
        assert!(std::fs::symlink_metadata(root.path().join(OWN)).unwrap().is_dir());
        assert!(root.path().join(".cortex/stage/x").exists());
        assert_eq!(std::fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn a_twin_is_another_name_that_a_file_system_may_take_for_the_same() {
        let twin_of = |names: &[&str], name: &str| twin(names.iter().map(|name| name.as_bytes()), name);
        assert_eq!(twin_of(&["a", "readme"], "README").as_deref(), Some("readme"));
        assert_eq!(twin_of(&["e\u{301}t\u{e9}"], "\u{e9}te\u{301}").as_deref(), Some("e\u{301}t\u{e9}"));
        assert_eq!(twin_of(&["readme", "README"], "README"), None, "it is there itself");
        assert_eq!(twin_of(&["readme.md"], "README"), None);
        assert_eq!(twin([&b"\xff"[..]], "\u{fffd}"), None);
    }

    #[test]
    fn what_the_file_system_says_of_names_is_found_out() {
        let (dir, root) = root();
        std::fs::write(dir.path().join("name"), "").unwrap();
        assert_eq!(root.folds(), dir.path().join("NAME").exists());
        assert_eq!(std::fs::read_dir(root.path().join(OWN)).unwrap().count(), 0, "nothing of it stays");
    }

    #[test]
    fn a_fifo_does_not_hold_a_reader_up() {
        let (_dir, root) = root();
        rustix::fs::mknodat(root.top(), "pipe", FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert!(root.top().read("pipe").is_ok());
    }
}
