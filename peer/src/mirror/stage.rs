//! Where files wait before they are in their place, and where what they displaced waits before it is let go: `.cortex/stage`.
//!
//! The names are the journal of an apply. A crash can leave behind
//!
//! | name | holds | at the next start |
//! | --- | --- | --- |
//! | `part-<hash>-…` with that hash | complete contents, not in their place yet | used again, or removed |
//! | `part-<hash>-…` with another | contents that are not complete | removed |
//! | `ready-<hash>-…` with that hash | complete contents that are about to replace something | used again, or removed |
//! | `ready-<hash>-…` with another | what was displaced by those contents, and not looked at yet | see below |
//! | `swap-…` | a link or folder, not in its place yet, or a file that was displaced by it | see below, for a file |
//! | `gone-…` | what was to be removed, and not looked at yet, or what gets another case in its name | see below |
//!
//! Small files have no name while they wait, but are held open, where the file system can do that: a name that is given and taken away again costs as much as writing the file. A crash leaves nothing of them.
//!
//! What was displaced or removed is let go when it is a file that the hub has or had, and kept as a conflict copy when it is not: then it was somebody's edit. A
//! folder with anything in it is kept. So a crash at any point leaves the old or the new contents at a path, and no edit is lost.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::fd::AsRawFd as _,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use cortex_wire::{
    limits,
    mirror::{entry::Hash, path::RelPath},
};
use data_encoding::HEXLOWER;
use rustix::{
    fs::{AtFlags, CWD, Mode, RenameFlags, fsync, linkat, mkdirat, renameat_with, symlinkat, syncfs, unlinkat},
    io::Errno,
    process::{Resource, getrlimit},
};

use super::{
    read::{self, BUFFER_BYTES},
    root::{CONFLICTS, Folder, Root, STAGE, Stat},
};

/// A conflict copy's name is the path's last component, this many bytes of it at most, and the time.
const COPY_NAME_BYTES: usize = limits::PATH_COMPONENT_BYTES - 40;

/// Up to so many files are synced one by one; for more, one `syncfs` is faster.
pub const FEW: usize = 16;

/// Folders in the stage.
const LOTS: usize = 4;

/// Files without a name that this program holds open, in all stages, and how many they may be: half of what the system allows it, within reason.
static OPEN: AtomicUsize = AtomicUsize::new(0);
static OPEN_AT_MOST: LazyLock<usize> = LazyLock::new(|| {
    let allowed = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    (allowed / 2).min(8_192)
});

/// A file that comes to the stage.
#[derive(Debug)]
pub struct Part {
    /// By this name the stage knows it.
    pub name: String,
    /// To be written.
    pub file: File,
    /// It has no name in the file system.
    place: Option<OpenPlace>,
}

/// One of the files that may be open.
#[derive(Debug)]
struct OpenPlace;

impl OpenPlace {
    fn take() -> Option<Self> {
        let more = |open| (open < *OPEN_AT_MOST).then_some(open + 1);
        OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for OpenPlace {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A complete file without a name.
#[derive(Debug)]
struct Unnamed {
    file: File,
    _place: OpenPlace,
}

/// The stage of one workspace.
#[derive(Debug)]
pub struct Stage {
    folder: Folder,
    /// Where contents that come are written: the kernel lets one at a time change a folder, and others are taken out meanwhile.
    lots: [Folder; LOTS],
    number: AtomicU64,
    unnamed: Mutex<HashMap<String, Arc<Unnamed>>>,
    /// The file system knows no files without a name.
    needs_names: AtomicBool,
    /// The kernel lets this user give an open file a name by way of `/proc` only.
    needs_proc: AtomicBool,
    /// Complete contents of an earlier start, by hash.
    left: Mutex<BTreeMap<[u8; 32], String>>,
}

impl Stage {
    /// Opens the stage and clears up what an earlier start left. `is_known`: files that are safe elsewhere. Returns the conflict copies that
    /// were made of the rest.
    ///
    /// # Errors
    /// The system's.
    pub fn open(root: &Root, now_ms: i64, is_known: impl Fn(&Hash) -> bool) -> io::Result<(Self, Vec<String>)> {
        let folder = root.own(STAGE)?;
        let lot = |lot: usize| folder.make_folder(&lot.to_string());
        let lots = [lot(0)?, lot(1)?, lot(2)?, lot(3)?];
        let stage = Self {
            folder,
            lots,
            number: AtomicU64::new(0),
            unnamed: Mutex::default(),
            needs_names: AtomicBool::new(false),
            needs_proc: AtomicBool::new(false),
            left: Mutex::default(),
        };
        let mut copies = Vec::new();
        let mut left = BTreeMap::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        for name in stage.names()? {
            match read::hash(stage.folder_of(&name), &name, &mut buffer).ok() {
                Some(contents) if staged_hash(&name) == Some(contents.hash) => {
                    left.insert(contents.hash, name);
                }
                Some(contents) if !name.starts_with("part-") && !is_known(&contents.file_hash()) => {
                    copies.push(stage.keep_copy(root, &name, "recovered", now_ms)?);
                }
                _ => {
                    stage.discard(&name);
                    if matches!(stage.folder_of(&name).stat(&name), Ok(Some(stat)) if stat.file_type().is_dir()) {
                        copies.push(stage.keep_copy(root, &name, "recovered", now_ms)?);
                    }
                }
            }
        }
        *stage.left.lock().unwrap_or_else(PoisonError::into_inner) = left;
        Ok((stage, copies))
    }

    /// The folder in which this name is.
    pub fn folder_of(&self, name: &str) -> &Folder {
        let number = name.strip_prefix("part-").and_then(|rest| rest.rsplit('-').next()?.parse::<usize>().ok());
        number.map_or(&self.folder, |number| &self.lots[number % LOTS])
    }

    /// What is in the stage. Anything that could not be there is removed.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for folder in self.lots.iter().chain([&self.folder]) {
            for name in folder.names()? {
                let Ok(name) = String::from_utf8(name) else { continue };
                if std::ptr::eq(self.folder_of(&name), folder) {
                    names.push(name);
                } else {
                    // Of an earlier version; a lot of this one holds something, and stays.
                    discard(folder, &name);
                }
            }
        }
        names.retain(|name| !(0..LOTS).any(|lot| *name == lot.to_string()));
        Ok(names)
    }

    fn number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    fn unnamed(&self) -> MutexGuard<'_, HashMap<String, Arc<Unnamed>>> {
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unnamed_file(&self, name: &str) -> Option<Arc<Unnamed>> {
        if name.starts_with("open-") { self.unnamed().get(name).cloned() } else { None }
    }

    /// Makes a file for contents that are to come, and will have this hash.
    ///
    /// # Errors
    /// The system's.
    pub fn begin(&self, hash: &[u8; 32], executable: bool) -> io::Result<Part> {
        loop {
            let name = format!("part-{}-{}", HEXLOWER.encode(hash), self.number());
            match self.folder_of(&name).create(&name, mode(executable)) {
                Ok(file) => return Ok(Part { name, file, place: None }),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The same for a small file, of which nothing is kept over a crash.
    ///
    /// # Errors
    /// The system's.
    pub fn begin_small(&self, hash: &[u8; 32], executable: bool) -> io::Result<Part> {
        if !self.needs_names.load(Ordering::Relaxed)
            && let Some(place) = OpenPlace::take()
        {
            let number = self.number();
            let lot = &self.lots[usize::try_from(number).unwrap_or(0) % LOTS];
            match lot.create_unnamed(mode(executable)) {
                Ok(file) => return Ok(Part { name: format!("open-{number}"), file, place: Some(place) }),
                Err(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE) => {}
                Err(_) => self.needs_names.store(true, Ordering::Relaxed),
            }
        }
        self.begin(hash, executable)
    }

    /// Takes a file that is complete. Returns its name here.
    pub fn complete(&self, Part { name, file, place }: Part) -> String {
        if let Some(place) = place {
            self.unnamed().insert(name.clone(), Arc::new(Unnamed { file, _place: place }));
        }
        name
    }

    /// How something in the stage looks.
    ///
    /// # Errors
    /// The system's.
    pub fn stat(&self, name: &str) -> Result<Option<Stat>, Errno> {
        match self.unnamed_file(name) {
            // As it will when it has a name.
            Some(unnamed) => Stat::of_open(&unnamed.file).map(|stat| Some(Stat { links: 1, ..stat })),
            None => self.folder_of(name).stat(name),
        }
    }

    /// Puts a file where nothing is.
    ///
    /// # Errors
    /// The system's; `EXIST`: something is there.
    pub fn put(&self, name: &str, folder: &Folder, to: &str) -> Result<(), Errno> {
        let Some(unnamed) = self.unnamed_file(name) else {
            return renameat_with(self.folder_of(name), name, folder, to, RenameFlags::NOREPLACE);
        };
        let mut linked = Err(Errno::NOENT);
        if !self.needs_proc.load(Ordering::Relaxed) {
            linked = linkat(&unnamed.file, "", folder, to, AtFlags::EMPTY_PATH);
        }
        if matches!(linked, Err(Errno::NOENT | Errno::PERM)) {
            let open = format!("/proc/self/fd/{}", unnamed.file.as_raw_fd());
            linked = linkat(CWD, open, folder, to, AtFlags::SYMLINK_FOLLOW);
            if linked.is_ok() {
                self.needs_proc.store(true, Ordering::Relaxed);
            }
        }
        match linked {
            Ok(()) => drop(self.unnamed().remove(name)),
            Err(Errno::EXIST) => {}
            // Whatever it was, it may be that such files cannot have a name here: what comes again has one from the beginning.
            Err(_) => self.needs_names.store(true, Ordering::Relaxed),
        }
        linked
    }

    /// Brings files that are complete to the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self, names: &[String]) -> io::Result<()> {
        if names.len() > FEW {
            return Ok(syncfs(&self.folder)?);
        }
        for name in names {
            match self.unnamed_file(name) {
                Some(unnamed) => fsync(&unnamed.file)?,
                None => fsync(self.folder_of(name).read(name)?)?,
            }
        }
        Ok(())
    }

    /// Says that a file with these contents is about to replace another, which will come to lie here. Returns its new name.
    ///
    /// # Errors
    /// The system's.
    pub fn ready(&self, part: &str, hash: &[u8; 32]) -> io::Result<String> {
        loop {
            let name = format!("ready-{}-{}", HEXLOWER.encode(hash), self.number());
            match self.put(part, &self.folder, &name) {
                Ok(()) => return Ok(name),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Contents that an earlier start had completed.
    pub fn take_left(&self, hash: &[u8; 32]) -> Option<String> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).remove(hash)
    }

    /// Removes what an earlier start had completed and nobody asked for.
    pub fn discard_left(&self) {
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        left.values().for_each(|name| self.discard(name));
    }

    /// A link, to be put in its place.
    ///
    /// # Errors
    /// The system's.
    pub fn symlink(&self, target: &str) -> io::Result<String> {
        self.make(|name| symlinkat(target, &self.folder, name))
    }

    /// An empty folder, to be put where something else is.
    ///
    /// # Errors
    /// The system's.
    pub fn directory(&self) -> io::Result<String> {
        self.make(|name| mkdirat(&self.folder, name, Mode::from_raw_mode(0o777)))
    }

    fn make(&self, make: impl Fn(&str) -> Result<(), Errno>) -> io::Result<String> {
        loop {
            let name = format!("swap-{}", self.number());
            match make(&name) {
                Ok(()) => return Ok(name),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes something out of the workspace, to look at it before it is let go.
    ///
    /// # Errors
    /// The system's.
    pub fn take_away(&self, folder: &Folder, name: &str) -> Result<String, Errno> {
        loop {
            let away = format!("gone-{}", self.number());
            match renameat_with(folder, name, &self.folder, &away, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(away),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets something go.
    pub fn discard(&self, name: &str) {
        if name.starts_with("open-") {
            self.unnamed().remove(name);
            return;
        }
        discard(self.folder_of(name), name);
    }

    /// Makes a conflict copy of what was displaced from `path`. Returns where it is, as a path in the workspace.
    ///
    /// # Errors
    /// The system's.
    pub fn keep_copy(&self, root: &Root, name: &str, path: &str, now_ms: i64) -> io::Result<String> {
        let mut folder = root.own(CONFLICTS)?;
        let mut shown = format!("{}/{CONFLICTS}", super::root::OWN);
        let (parent, last) = super::root::split(path);
        for component in parent.split('/').filter(|component| !component.is_empty()) {
            folder = folder.make_folder(component)?;
            shown = format!("{shown}/{component}");
        }
        let last = &last[..last.floor_char_boundary(COPY_NAME_BYTES)];
        let time = jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default().strftime("%Y%m%dT%H%M%SZ").to_string();
        for again in 0.. {
            let copy = if again == 0 { format!("{last}.{time}") } else { format!("{last}.{time}-{again}") };
            match renameat_with(self.folder_of(name), name, &folder, &copy, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(format!("{shown}/{copy}")),
                Err(Errno::EXIST) if again < 10_000 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }
}

fn mode(executable: bool) -> u32 {
    if executable { 0o777 } else { 0o666 }
}

fn discard(folder: &Folder, name: &str) {
    if unlinkat(folder, name, AtFlags::empty()).is_err() {
        let _ = unlinkat(folder, name, AtFlags::REMOVEDIR);
    }
}

fn staged_hash(name: &str) -> Option<[u8; 32]> {
    let hex = name.strip_prefix("part-").or_else(|| name.strip_prefix("ready-"))?.split('-').next()?;
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

/// Where conflict copies of a path go, for messages.
pub fn shown_copy(path: &RelPath) -> String {
    format!("{}/{CONFLICTS}/{}", super::root::OWN, path.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_wire::id::SessionId;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &SessionId::new(1, [1; 10])).unwrap();
        (dir, root)
    }

    #[test]
    fn what_a_crash_left_is_removed_used_again_or_kept_as_a_copy() {
        let (_dir, root) = root();
        let write = |name: &str, bytes: &str| std::fs::write(root.path().join(".cortex/stage").join(name), bytes).unwrap();
        let name_of = |bytes: &str| format!("ready-{}-9", HEXLOWER.encode(blake3::hash(bytes.as_bytes()).as_bytes()));
        drop(Stage::open(&root, 0, |_| false).unwrap());
        write("part-3", "half");
        write(&name_of("complete"), "complete");
        write(&name_of("new"), "an edit that was displaced by new");
        write("gone-4", "known");
        write("gone-5", "an edit that was to be removed");
        let known = cortex_wire::mirror::entry::file_hash(5, blake3::hash(b"known").as_bytes(), false);
        let (stage, mut copies) = Stage::open(&root, 1_700_000_000_000, |hash| *hash == known).unwrap();
        copies.sort();
        assert_eq!(copies, [".cortex/conflicts/recovered.20231114T221320Z", ".cortex/conflicts/recovered.20231114T221320Z-1"]);
        let mut kept: Vec<_> = copies.iter().map(|copy| std::fs::read_to_string(root.path().join(copy)).unwrap()).collect();
        kept.sort();
        assert_eq!(kept, ["an edit that was displaced by new", "an edit that was to be removed"]);
        let left = stage.take_left(blake3::hash(b"complete").as_bytes()).unwrap();
        assert_eq!(stage.names().unwrap(), [left]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn where_a_file_without_a_name_cannot_have_one_the_next_has_one_from_the_beginning() {
        let (_dir, root) = root();
        let (stage, _) = Stage::open(&root, 0, |_| false).unwrap();
        let part = stage.begin_small(&[0; 32], false).unwrap();
        let name = stage.complete(part);
        let folder = root.top().make_folder("folder").unwrap();
        std::fs::remove_dir(root.path().join("folder")).unwrap();
        assert_eq!(stage.put(&name, &folder, "file"), Err(Errno::NOENT));
        stage.discard(&name);
        assert!(stage.stat(&name).unwrap().is_none());
        let part = stage.begin_small(&[0; 32], false).unwrap();
        assert!(part.name.starts_with("part-"), "{}", part.name);
        stage.put(&stage.complete(part), root.top(), "file").unwrap();
        assert!(root.path().join("file").exists());
    }

    #[test]
    fn a_copy_of_a_long_name_fits() {
        let (_dir, root) = root();
        let (stage, _) = Stage::open(&root, 0, |_| false).unwrap();
        let name = stage.begin(&[0; 32], false).unwrap().name;
        let copy = stage.keep_copy(&root, &name, &format!("a/{}", "ä".repeat(127)), 0).unwrap();
        assert!(root.path().join(copy).exists());
    }
}
