//! Names in a workspace that a sandboxed task may not change, because programs outside act on what they hold: a hook is run, a setting is believed.
//!
//! What is there is mounted over itself, read-only. What is not there is made, empty, for as long as a task runs, so that there is something to mount:
//! an empty file with the sticky bit, which means nothing on a file and tells ours from others'. The mirror does not see it ([`super::is_placeholder`]).

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, fchmod, fstat, openat, openat2, statat, unlinkat},
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

/// Which names are kept right now, by how many tasks of which folder (its device and inode).
#[derive(Debug, Default)]
pub(super) struct Keeper(Mutex<HashMap<(u64, u64), usize>>);

/// The names of one task's workspace, kept as long as this value lives.
#[derive(Debug)]
pub(super) struct Kept {
    keeper: Arc<Keeper>,
    folder: OwnedFd,
    key: (u64, u64),
}

impl Keeper {
    /// Makes what is missing.
    pub(super) fn keep(this: &Arc<Self>, workspace: BorrowedFd<'_>) -> io::Result<Kept> {
        let stat = fstat(workspace)?;
        let kept = Kept { keeper: this.clone(), folder: workspace.try_clone_to_owned()?, key: (stat.st_dev, stat.st_ino) };
        let mut users = this.0.lock().unwrap_or_else(PoisonError::into_inner);
        *users.entry(kept.key).or_default() += 1;
        for name in missing_names() {
            make(kept.folder.as_fd(), name)?;
        }
        drop(users);
        Ok(kept)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut users = self.keeper.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = users.get_mut(&self.key).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            users.remove(&self.key);
            missing_names().for_each(|name| remove(self.folder.as_fd(), name));
        }
    }
}

/// All names that are to be mounted over.
pub(super) fn names() -> Vec<String> {
    NAMES.iter().map(|name| (*name).to_owned()).collect()
}

fn missing_names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().filter(|name| *name != REPOSITORY)
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
    fn nothing_is_made_through_a_link() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(other.path(), dir.path().join(".git")).unwrap();
        let folder: OwnedFd = fs::File::open(dir.path()).unwrap().into();
        let _kept = Keeper::keep(&Arc::new(Keeper::default()), folder.as_fd()).unwrap();
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    }
}
