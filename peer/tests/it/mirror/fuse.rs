//! File systems of other machines, played over a folder of this one: names that differ by case or Unicode form are one name, and a rename may know no flags.
//!
//! Names keep the case in which they were made. A name that is there, in whatever case, is there for everything: it is found, opened, replaced and in the way.
//! As Linux has it for every such file system, renaming a file to another case of its own name does nothing, and fails when it must not replace.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cortex_wire::mirror::path::RelPath;
use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{self as system, AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};

/// Nothing is remembered by the kernel: every name is asked for each time.
const TTL: Duration = Duration::ZERO;

/// A file system over a folder. It is mounted until this is dropped.
pub struct Mounted {
    at: PathBuf,
    hung: Arc<Hung>,
    _session: BackgroundSession,
}

impl Mounted {
    /// Mounts the folder `backing` at `at`. `flags`: whether a rename can exchange, and can be told not to replace.
    pub fn new(backing: &Path, at: &Path, flags: bool) -> Self {
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("folding".into()), MountOption::DefaultPermissions];
        let file_system = Folding::new(backing, flags).unwrap();
        let hung = file_system.hung.clone();
        let session = fuser::spawn_mount(file_system, at, &config).expect("/dev/fuse and the right to mount are needed");
        Self { at: at.to_owned(), hung, _session: session }
    }

    /// From now on nobody who writes hears of it.
    pub fn hang(&self) {
        *self.hung.lock().unwrap() = Some(Vec::new());
    }

    /// How many do not hear of it.
    pub fn hanging(&self) -> usize {
        self.hung.lock().unwrap().as_ref().map_or(0, Vec::len)
    }

    /// All of them hear that it failed.
    pub fn unhang(&self) {
        *self.hung.lock().unwrap() = None;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unhang();
        // Whoever holds a file there does not keep it.
        if let Err(error) = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.at.display());
        }
    }
}

/// A file or folder that the kernel knows.
struct Known {
    /// Opened for its path alone.
    fd: Arc<OwnedFd>,
    lookups: u64,
}

enum Open {
    File(Arc<File>),
    Listing(Arc<Vec<(INodeNo, FileType, OsString)>>),
}

/// Those who write and are not answered, when the disk hangs.
type Hung = Mutex<Option<Vec<ReplyWrite>>>;

struct Folding {
    flags: bool,
    hung: Arc<Hung>,
    root: Arc<OwnedFd>,
    known: Mutex<HashMap<u64, Known>>,
    open: Mutex<HashMap<u64, Open>>,
    handles: AtomicU64,
}

/// By way of `/proc`, what is open for its path alone is reached for everything.
fn proc(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn key(name: &OsStr) -> Option<String> {
    Some(name.to_str()?.parse::<RelPath>().ok()?.fold_key())
}

fn names(folder: impl AsFd) -> io::Result<Vec<OsString>> {
    std::fs::read_dir(proc(folder))?.map(|entry| Ok(entry?.file_name())).collect()
}

/// How a name is spelt in a folder, when something of that name is there.
fn spelling(folder: impl AsFd, name: &OsStr) -> io::Result<Option<OsString>> {
    if system::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return Ok(Some(name.to_owned()));
    }
    let Some(wanted) = key(name) else { return Ok(None) };
    Ok(names(folder)?.into_iter().find(|there| key(there).as_ref() == Some(&wanted)))
}

fn spelt(folder: impl AsFd, name: &OsStr) -> io::Result<OsString> {
    spelling(folder, name)?.ok_or_else(|| rustix::io::Errno::NOENT.into())
}

/// Fails when the name, or a twin of it, is there.
fn free(folder: impl AsFd, name: &OsStr) -> io::Result<()> {
    spelling(folder, name)?.map_or(Ok(()), |_| Err(rustix::io::Errno::EXIST.into()))
}

fn kind(mode: u32) -> FileType {
    match system::FileType::from_raw_mode(mode) {
        system::FileType::Directory => FileType::Directory,
        system::FileType::Symlink => FileType::Symlink,
        system::FileType::Fifo => FileType::NamedPipe,
        system::FileType::Socket => FileType::Socket,
        system::FileType::CharacterDevice => FileType::CharDevice,
        system::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    whole + Duration::from_nanos(nanoseconds)
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let fixed = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    match time {
        None => fixed(0, system::UTIME_OMIT),
        Some(TimeOrNow::Now) => fixed(0, system::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(since) => fixed(since.as_secs().cast_signed(), since.subsec_nanos().into()),
            Err(before) => fixed(-before.duration().as_secs().cast_signed(), 0),
        },
    }
}

impl Folding {
    fn new(backing: &Path, flags: bool) -> io::Result<Self> {
        let root = system::open(backing, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let (known, open, hung) = (Mutex::default(), Mutex::default(), Arc::default());
        Ok(Self { flags, hung, root: Arc::new(root), known, open, handles: AtomicU64::new(1) })
    }

    fn fd(&self, ino: INodeNo) -> io::Result<Arc<OwnedFd>> {
        if ino == INodeNo::ROOT {
            return Ok(self.root.clone());
        }
        let known = self.known.lock().unwrap();
        known.get(&ino.0).map(|known| known.fd.clone()).ok_or_else(|| rustix::io::Errno::STALE.into())
    }

    fn attributes(&self, fd: BorrowedFd<'_>) -> io::Result<FileAttr> {
        let (stat, root) = (system::fstat(fd)?, system::fstat(&self.root)?);
        let ino = if stat.st_ino == root.st_ino { INodeNo::ROOT } else { INodeNo(stat.st_ino) };
        let ctime = time(stat.st_ctime, stat.st_ctime_nsec);
        Ok(FileAttr {
            ino,
            size: stat.st_size.cast_unsigned(),
            blocks: stat.st_blocks.cast_unsigned(),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime,
            crtime: ctime,
            kind: kind(stat.st_mode),
            perm: u16::try_from(stat.st_mode & 0o7777).unwrap(),
            nlink: u32::try_from(stat.st_nlink).unwrap(),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// Finds a name as it is spelt on the disk, and remembers what it is for the kernel.
    fn entry(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<FileAttr> {
        let fd = system::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let attributes = self.attributes(fd.as_fd())?;
        let mut known = self.known.lock().unwrap();
        known.entry(attributes.ino.0).or_insert(Known { fd: Arc::new(fd), lookups: 0 }).lookups += 1;
        Ok(attributes)
    }

    fn handle(&self, open: Open) -> FileHandle {
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap().insert(handle, open);
        FileHandle(handle)
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        match self.open.lock().unwrap().get(&handle.0) {
            Some(Open::File(file)) => Ok(file.clone()),
            _ => Err(rustix::io::Errno::BADF.into()),
        }
    }

    fn list(&self, ino: INodeNo) -> io::Result<FileHandle> {
        let folder = self.fd(ino)?;
        let mut listing = vec![(ino, FileType::Directory, ".".into()), (INodeNo::ROOT, FileType::Directory, "..".into())];
        for name in names(&folder)? {
            if let Ok(stat) = system::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                listing.push((INodeNo(stat.st_ino), kind(stat.st_mode), name));
            }
        }
        Ok(self.handle(Open::Listing(Arc::new(listing))))
    }

    fn open(&self, ino: INodeNo, flags: i32) -> io::Result<FileHandle> {
        let flags = OFlags::from_bits_retain(flags.cast_unsigned()) & (OFlags::ACCMODE | OFlags::TRUNC);
        let file = system::open(proc(self.fd(ino)?), flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(self.handle(Open::File(Arc::new(file.into()))))
    }

    fn move_name(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr), flags: RenameFlags) -> io::Result<()> {
        if !self.flags && !flags.is_empty() {
            return Err(rustix::io::Errno::INVAL.into());
        }
        let (folder, target) = (self.fd(from.0)?, self.fd(to.0)?);
        let name = spelt(&folder, from.1)?;
        let there = spelling(&target, to.1)?;
        let how = if flags == RenameFlags::RENAME_EXCHANGE {
            system::RenameFlags::EXCHANGE
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            free(&target, to.1)?;
            system::RenameFlags::NOREPLACE
        } else {
            system::RenameFlags::empty()
        };
        let to = there.as_deref().unwrap_or(to.1);
        Ok(system::renameat_with(&folder, &name, &target, to, how)?)
    }
}

/// So that what is tried can end early.
fn attempt<T>(what: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    what()
}

/// Answers with what came out, or with the error.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $answer:expr) => {
        match attempt(|| $result) {
            Ok($value) => $answer,
            Err(error) => $reply.error(Errno::from(error)),
        }
    };
}

impl Filesystem for Folding {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = || {
            let parent = self.fd(parent)?;
            self.entry(&parent, &spelt(&parent, name)?)
        };
        answer!(reply, found(), found => reply.entry(&TTL, &found, Generation(0)));
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        let mut known = self.known.lock().unwrap();
        if let Some(file) = known.get_mut(&ino.0) {
            file.lookups = file.lookups.saturating_sub(lookups);
            if file.lookups == 0 {
                known.remove(&ino.0);
            }
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.attributes(self.fd(ino)?.as_fd()), found => reply.attr(&TTL, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            let fd = self.fd(ino)?;
            if let Some(mode) = mode {
                system::chmod(proc(&fd), Mode::from_raw_mode(mode))?;
            }
            if let Some(size) = size {
                File::options().write(true).open(proc(&fd))?.set_len(size)?;
            }
            if atime.is_some() || mtime.is_some() {
                let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
                system::utimensat(CWD, proc(&fd), &times, AtFlags::empty())?;
            }
            self.attributes(fd.as_fd())
        };
        answer!(reply, set(), now => reply.attr(&TTL, &now));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(reply, Ok(system::readlinkat(self.fd(ino)?, "", Vec::new())?), target => reply.data(target.as_bytes()));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = || {
            let parent = self.fd(parent)?;
            free(&parent, name)?;
            system::mkdirat(&parent, name, Mode::from_raw_mode(mode))?;
            self.entry(&parent, name)
        };
        answer!(reply, made(), made => reply.entry(&TTL, &made, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || {
            let parent = self.fd(parent)?;
            Ok(system::unlinkat(&parent, spelt(&parent, name)?, AtFlags::empty())?)
        };
        answer!(reply, remove(), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || {
            let parent = self.fd(parent)?;
            Ok(system::unlinkat(&parent, spelt(&parent, name)?, AtFlags::REMOVEDIR)?)
        };
        answer!(reply, remove(), () => reply.ok());
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = || {
            let parent = self.fd(parent)?;
            free(&parent, name)?;
            system::symlinkat(target, &parent, name)?;
            self.entry(&parent, name)
        };
        answer!(reply, made(), made => reply.entry(&TTL, &made, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.move_name((parent, name), (newparent, newname), flags), () => reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.open(ino, flags.0), handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, flags: i32, reply: ReplyCreate) {
        let made = || {
            let parent = self.fd(parent)?;
            if spelling(&parent, name)?.is_none() {
                system::openat(&parent, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, Mode::from_raw_mode(mode))?;
            } else if flags & libc::O_EXCL != 0 {
                return Err(rustix::io::Errno::EXIST.into());
            }
            let made = self.entry(&parent, &spelt(&parent, name)?)?;
            Ok((made, self.open(made.ino, flags)?))
        };
        answer!(reply, made(), (made, handle) => reply.created(&TTL, &made, Generation(0), handle, FopenFlags::empty()));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = || {
            let file = self.file(handle)?;
            let (mut buffer, mut filled) = (vec![0; size as usize], 0);
            while filled < buffer.len() {
                match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
                    0 => break,
                    read => filled += read,
                }
            }
            buffer.truncate(filled);
            Ok(buffer)
        };
        answer!(reply, read(), bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Some(hung) = &mut *self.hung.lock().unwrap() {
            return hung.push(reply);
        }
        answer!(reply, self.file(handle)?.write_all_at(bytes, offset), () => reply.written(u32::try_from(bytes.len()).unwrap()));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, _: Option<LockOwner>, _: bool, reply: ReplyEmpty) {
        self.open.lock().unwrap().remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.file(handle)?.sync_all(), () => reply.ok());
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.list(ino), handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing = match self.open.lock().unwrap().get(&handle.0) {
            Some(Open::Listing(listing)) => listing.clone(),
            _ => return reply.error(Errno::EBADF),
        };
        for (at, (ino, kind, name)) in listing.iter().enumerate().skip(usize::try_from(offset).unwrap()) {
            if reply.add(*ino, at as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.open.lock().unwrap().remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, File::open(proc(self.fd(ino)?))?.sync_all(), () => reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let found = || Ok(system::fstatvfs(File::open(proc(&self.root))?)?);
        answer!(reply, found(), found => reply.statfs(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
            u32::try_from(found.f_bsize).unwrap(), u32::try_from(found.f_namemax).unwrap(), u32::try_from(found.f_frsize).unwrap()));
    }
}
