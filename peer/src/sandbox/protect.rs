//! Names in a workspace that a sandboxed task may not change, because programs outside act on what they hold: a hook is run, a setting is believed.
//!
//! What is there is mounted over itself, read-only. What is not there is made, empty, for as long as a task runs, so that there is something to mount:
//! an empty file with the sticky bit, which means nothing on a file and tells ours from others'. The mirror does not see it ([`super::is_placeholder`]).
//!
//! In folders below the workspace's own the names are protected as far as they are there when the task starts, in the nearest folders first. A folder above them can still be moved away,
//! and another made in its place: to hold it would make each folder a mount of its own, and renaming across mounts fails, on which builds depend.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, openat, openat2, statat, unlinkat},
    io::Errno,
};

use super::{PLACEHOLDER, is_placeholder};

/// Where a repository keeps what git acts on. It stays where it is; what is in it may change, but for [`NAMES`].
pub(super) const REPOSITORY: &str = ".git";

/// The names, in the order in which they are protected. Those inside a repository are protected where there is one: whoever has none may make one.
const NAMES: [&str; 13] = [
    REPOSITORY,
    ".git/hooks",
    ".git/config",
    ".git/info",
    ".cortexignore",
    ".envrc",
    ".mcp.json",
    ".vscode",
    ".idea",
    ".claude",
    ".codex",
    ".cursor",
    ".gemini",
];

/// Folders of a workspace that are looked into for names below its own, the nearest first: so many take a millisecond or two.
const FOLDERS: usize = 256;
/// Names that are protected there.
const NESTED: usize = 64;

/// Which names are kept right now, for how many tasks of which folder (its device and inode).
#[derive(Debug, Default)]
pub(super) struct Keeper(Mutex<HashMap<(u64, u64), Users>>);

#[derive(Debug, Default)]
struct Users {
    count: usize,
    names: BTreeSet<String>,
}

/// The names of one task's workspace, kept as long as this value lives.
#[derive(Debug)]
pub(super) struct Kept {
    keeper: Arc<Keeper>,
    folder: OwnedFd,
    key: (u64, u64),
    names: Vec<String>,
}

impl Keeper {
    /// Makes what is missing.
    pub(super) fn keep(this: &Arc<Self>, workspace: BorrowedFd<'_>) -> io::Result<Kept> {
        let stat = fstat(workspace)?;
        let names = NAMES.into_iter().map(str::to_owned).chain(nested(workspace)).collect::<Vec<_>>();
        let kept = Kept { keeper: this.clone(), folder: workspace.try_clone_to_owned()?, key: (stat.st_dev, stat.st_ino), names };
        let mut all = this.0.lock().unwrap_or_else(PoisonError::into_inner);
        let users = all.entry(kept.key).or_default();
        users.count += 1;
        users.names.extend(kept.names.iter().cloned());
        for name in kept.names.iter().filter(|name| !is_repository(name)) {
            make(kept.folder.as_fd(), name)?;
        }
        drop(all);
        Ok(kept)
    }
}

impl Kept {
    /// All names that are to be mounted over, what holds others before them.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut all = self.keeper.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(users) = all.get_mut(&self.key) else { return };
        users.count -= 1;
        if users.count == 0 {
            let names = all.remove(&self.key).unwrap_or_default().names;
            names.iter().filter(|name| !is_repository(name)).for_each(|name| remove(self.folder.as_fd(), name));
        }
    }
}

/// The names of the workspace's own folder.
pub(super) fn names() -> Vec<String> {
    NAMES.iter().map(|name| (*name).to_owned()).collect()
}

/// Whether it is where a repository is.
pub(super) fn is_repository(name: &str) -> bool {
    name.rsplit('/').next() == Some(REPOSITORY)
}

/// The names in folders below the workspace's own, as far as they are there. Links are not followed, and not protected.
fn nested(workspace: BorrowedFd<'_>) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = VecDeque::from([String::new()]);
    for _ in 0..FOLDERS {
        let Some(at) = folders.pop_front().filter(|_| names.len() < NESTED) else { break };
        look_into(workspace, &at, &mut folders, &mut names);
    }
    names.truncate(NESTED);
    names
}

fn look_into(workspace: BorrowedFd<'_>, at: &str, folders: &mut VecDeque<String>, names: &mut Vec<String>) {
    let (path, flags) = (if at.is_empty() { "." } else { at }, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC);
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let Ok(folder) = openat2(workspace, path, flags, Mode::empty(), beneath).and_then(Dir::new) else { return };
    for entry in folder.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        let path = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
        let kind = match entry.file_type() {
            FileType::Unknown => {
                statat(workspace, &path, AtFlags::SYMLINK_NOFOLLOW).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
            }
            kind => kind,
        };
        let is_folder = kind == FileType::Directory;
        if !NAMES.contains(&name) {
            if is_folder && !matches!(name, "." | "..") && folders.len() < FOLDERS {
                folders.push_back(path);
            }
        } else if !at.is_empty() && (is_folder || kind == FileType::RegularFile) {
            let inside = NAMES.iter().filter(|_| is_folder && name == REPOSITORY).filter_map(|name| name.strip_prefix(".git/"));
            let inside: Vec<String> = inside.map(|inside| format!("{path}/{inside}")).collect();
            names.push(path);
            names.extend(inside);
        }
    }
}

/// The folder of a name, when it is there and no link leads to it, and the last part of the name.
fn parent<'a>(workspace: BorrowedFd<'_>, name: &'a str) -> Result<(OwnedFd, &'a str), Errno> {
    let (folder, last) = name.rsplit_once('/').unwrap_or((".", name));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((openat2(workspace, folder, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?, last))
}

fn make(workspace: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let (folder, last) = match parent(workspace, name) {
        // No repository, or a link in the place of one.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        found => found?,
    };
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(&folder, last, flags, Mode::empty()) {
        Ok(file) => Ok(fchmod(file, Mode::from_raw_mode(PLACEHOLDER))?),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove(workspace: BorrowedFd<'_>, name: &str) {
    let Ok((folder, last)) = parent(workspace, name) else { return };
    if statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| is_placeholder(stat.st_mode, u64::try_from(stat.st_size).unwrap_or(u64::MAX)))
    {
        let _ = unlinkat(&folder, last, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_are_kept_while_somebody_needs_them_and_what_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".git")).unwrap();
        fs::write(dir.path().join(".git/config"), "mine").unwrap();
        let folder: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        let keeper = Arc::new(Keeper::default());
        let exists = |name: &str| dir.path().join(name).exists();
        let first = Keeper::keep(&keeper, folder.as_fd()).unwrap();
        let second = Keeper::keep(&keeper, folder.as_fd()).unwrap();
        assert!(exists(".git/hooks") && exists(".envrc") && exists(".vscode"));
        drop(first);
        assert!(exists(".git/hooks"));
        fs::remove_file(dir.path().join(".envrc")).unwrap();
        fs::write(dir.path().join(".envrc"), "a person's").unwrap();
        drop(second);
        assert!(!exists(".git/hooks") && !exists(".vscode") && exists(".envrc") && exists(".git"));
        assert_eq!(fs::read_to_string(dir.path().join(".git/config")).unwrap(), "mine");
        assert!(keeper.0.lock().unwrap().is_empty());
    }

    #[test]
    fn names_in_folders_below_are_found_as_far_as_they_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["sub/.git/hooks", "a/b/.vscode", ".git/sub/.git", ".claude/.idea", "plain"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["a/.envrc", "a/b/.git", ".envrc", "plain/envrc"] {
            fs::write(at(file), "").unwrap();
        }
        std::os::unix::fs::symlink("../a/.envrc", at("plain/.envrc")).unwrap();
        std::os::unix::fs::symlink("a", at("link")).unwrap();
        let folder: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        let mut found = nested(folder.as_fd());
        found.sort();
        let inside = ["sub/.git", "sub/.git/config", "sub/.git/hooks", "sub/.git/info"];
        assert_eq!(found, [["a/.envrc", "a/b/.git", "a/b/.vscode"].as_slice(), &inside].concat());
        let keeper = Arc::new(Keeper::default());
        let kept = Keeper::keep(&keeper, folder.as_fd()).unwrap();
        assert!(at("sub/.git/config").exists() && !at("a/b/.envrc").exists());
        let place = |name: &str| kept.names().iter().position(|kept| kept == name).unwrap();
        assert!(place("sub/.git") < place("sub/.git/config"));
        drop(kept);
        assert!(!at("sub/.git/config").exists() && at("sub/.git/hooks").exists() && at("a/b/.git").exists());
        for number in 0..FOLDERS {
            fs::create_dir_all(at(&format!("many/{number}/.vscode"))).unwrap();
        }
        assert_eq!(nested(folder.as_fd()).len(), NESTED);
    }

    #[test]
    fn nothing_is_made_through_a_link() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(other.path(), dir.path().join(".git")).unwrap();
        let folder: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        let _kept = Keeper::keep(&Arc::new(Keeper::default()), folder.as_fd()).unwrap();
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    }
}
