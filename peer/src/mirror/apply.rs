//! Puts what the hub has into its place, without ever writing over something that this node did not expect.
//!
//! A batch goes in steps: everything is staged and on the disk before it begins ([`Stage::sync`]), then every path is renamed, then the renames are on the disk, and only then is anybody told.
//! A replacement is one exchange, so a reader sees the old file or the new one and never none. What was displaced is looked at afterwards: when it is not what
//! it was taken for, somebody was faster, and it goes back.
//!
//! | from the disk | to be put | how |
//! | --- | --- | --- |
//! | nothing | anything | rename that must not replace |
//! | a file or link | anything | exchange, then a look at what was displaced |
//! | a file or link | nothing | taken away into the stage, then a look at it |
//! | what is ignored | nothing, also because it moves | left alone |
//! | a folder | nothing | removed when it is empty; what is ignored in it keeps it |
//! | a name that the file system takes for this one | anything | refused, unless it is this one that gets another case |

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::AsFd as _,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cortex_wire::{
    limits,
    mirror::{
        entry::Hash,
        ignore::Rules,
        path::RelPath,
        replica::{CASE_COLLISION, Found},
    },
    text,
};
use rustix::{
    fs::{AtFlags, Mode, RenameFlags, fsync, mkdirat, readlinkat, renameat_with, syncfs, unlinkat},
    io::Errno,
};

use super::{
    cache::{Cache, Known, KnownFile},
    ignore::{self, Ignored},
    read::{self, BUFFER_BYTES},
    root::{Folder, Root, Stat},
    stage::{FEW, Stage},
    walk::now_ns,
};

/// A folder is opened anew after so many files: whoever moves it out of the workspace meanwhile takes few of them along.
const HELD: usize = 32;

/// What is to be done at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The path.
    pub path: RelPath,
    /// The entry that is there as far as this node knows.
    pub expect: Option<Hash>,
    /// What is to be there.
    pub put: Put,
    /// What is displaced is somebody's, and to be kept as a conflict copy.
    pub keep_copy: bool,
}

/// What is to be at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// A staged file.
    File {
        /// Its name in the stage.
        staged: String,
        /// BLAKE3 of its bytes.
        content: [u8; 32],
        /// Whether its owner may run it.
        executable: bool,
    },
    /// The file that is there, with another permission to run it.
    Mode {
        /// Whether its owner may run it.
        executable: bool,
    },
    /// A link.
    Symlink(Arc<str>),
    /// A folder.
    Directory,
    /// Nothing.
    Nothing,
    /// Nothing, because it goes somewhere else as a whole.
    Move(RelPath),
}

/// Why something was not put into its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// Something else is there than was expected.
    Found(Option<Found>),
    /// The system said no; for people.
    Code {
        /// Stable.
        code: &'static str,
        /// What to do about it.
        message: String,
    },
}

impl Failed {
    /// The system's error, for people.
    pub fn io(error: &io::Error) -> Self {
        let (code, advice) = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => ("no_space", "make room on this node; it is tried again by itself"),
            Some(Errno::ROFS) => ("read_only", "the file system is read-only; it is tried again by itself"),
            Some(Errno::ACCESS | Errno::PERM) => {
                ("not_permitted", "give the peer's user the permission to write there; it is tried again by itself")
            }
            Some(Errno::NAMETOOLONG | Errno::ILSEQ | Errno::INVAL) => ("bad_name", "this node's file system cannot hold the name"),
            Some(Errno::XDEV) => ("other_file_system", "another file system is mounted there; it is not synced"),
            Some(Errno::LOOP | Errno::NOTDIR) => ("in_the_way", "something that is no folder is in the way"),
            _ => ("io_error", "it is tried again by itself"),
        };
        Self::Code { code, message: format!("{error}; {advice}") }
    }
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::io(&errno.into())
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::io(&error)
    }
}

/// What became of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The task's path.
    pub path: RelPath,
    /// Where the conflict copy is, if one was made.
    pub copy: Option<String>,
    /// Why it was not done, if it was not.
    pub result: Result<(), Failed>,
}

/// The moments of an apply at which a crash is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Nothing is done yet.
    Staged,
    /// One path was exchanged or taken away, and what was displaced has not been looked at.
    Displaced,
    /// One path is in its place.
    Placed,
    /// All are, and on the disk; nothing of it was noted.
    Synced,
}

/// What an apply works on.
#[derive(Debug, Clone)]
pub struct Hands {
    /// The folder.
    pub root: Arc<Root>,
    /// What was seen, and is put.
    pub cache: Arc<Mutex<Cache>>,
    /// What does not count.
    pub ignored: Arc<Mutex<Ignored>>,
    /// Where files wait.
    pub stage: Arc<Stage>,
    /// The hub's ignore files above what is to be removed or moved. Until they are in their place, nobody knows what may be.
    pub rules: Vec<(RelPath, Hash)>,
}

/// A simulated crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash;

enum Error {
    Failed(Failed),
    Crash,
}

impl<E: Into<Failed>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Does a batch. Blocks. `go_on` is asked at each step; a refusal ends the batch as a crash would.
///
/// # Errors
/// [`Crash`], when `go_on` refused.
pub fn apply(hands: &Hands, tasks: &[Task], now_ms: i64, go_on: &dyn Fn(Step) -> bool) -> Result<Vec<Done>, Crash> {
    let mut batch = Batch { hands, now_ms, go_on, touched: BTreeSet::new(), kept: BTreeSet::new(), held: None };
    batch.run(tasks)
}

struct Batch<'a> {
    hands: &'a Hands,
    now_ms: i64,
    go_on: &'a dyn Fn(Step) -> bool,
    /// Folders in which names changed.
    touched: BTreeSet<String>,
    /// Names in the stage that hold somebody's edit and could not be moved to the conflicts: the next start does it.
    kept: BTreeSet<String>,
    held: Option<Held>,
}

/// The folder of the task before, which mostly is the next one's.
struct Held {
    path: String,
    folder: Arc<Folder>,
    uses: usize,
}

impl Batch<'_> {
    fn run(&mut self, tasks: &[Task]) -> Result<Vec<Done>, Crash> {
        self.step(Step::Staged).map_err(|_| Crash)?;
        let mut done = Vec::with_capacity(tasks.len());
        for task in tasks {
            let mut copy = None;
            let result = match self.place(task, &mut copy) {
                Ok(()) => {
                    self.learn_rules(task);
                    Ok(())
                }
                Err(Error::Failed(failed)) => Err(failed),
                Err(Error::Crash) => return Err(Crash),
            };
            if result.is_err() {
                self.held = None;
            }
            if let (Err(_), Put::File { staged, .. }) = (&result, &task.put)
                && !self.kept.contains(staged)
            {
                self.hands.stage.discard(staged);
            }
            done.push(Done { path: task.path.clone(), copy, result });
        }
        if let Err(error) = self.sync_folders() {
            // They are in their place, and may not be after a crash: looked at again, they are found to be.
            tracing::warn!(%error, "what was applied could not be synced to the disk");
        }
        self.step(Step::Synced).map_err(|_| Crash)?;
        Ok(done)
    }

    fn step(&self, step: Step) -> Result<(), Error> {
        if (self.go_on)(step) { Ok(()) } else { Err(Error::Crash) }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.hands.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync_folders(&self) -> io::Result<()> {
        if self.touched.len() > FEW {
            return Ok(syncfs(self.hands.root.top())?);
        }
        for folder in &self.touched {
            match self.hands.root.folder(folder) {
                Ok(folder) => fsync(folder.as_fd())?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn touch(&mut self, path: &RelPath) {
        let (folder, _) = super::root::split(path.as_str());
        if !self.touched.contains(folder) {
            self.touched.insert(folder.to_owned());
        }
    }

    fn note(&self, path: &RelPath, known: Option<Known>) {
        self.cache().set(path, known);
    }

    /// What was put may say what is ignored.
    fn learn_rules(&self, Task { path, .. }: &Task) {
        if Rules::is_rule_file(path) {
            let place = self.hands.root.place(path).ok();
            let text = place.and_then(|(folder, name)| ignore::text(&folder, name, &mut vec![0; BUFFER_BYTES]));
            self.ignored().put(path, text.as_deref());
        }
    }

    fn ignored(&self) -> MutexGuard<'_, Ignored> {
        self.hands.ignored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a path is to be forgotten and not removed: then it is no part of the workspace any more.
    fn is_untracked(&self, path: &RelPath, expect: Option<Hash>) -> Result<bool, Error> {
        self.must_have_rules(path)?;
        Ok(self.ignored().matches(path, expect == Some(Hash::directory())))
    }

    /// The same for what lies at and below a path, as far as it was part of the workspace: what was moved at the hub may be what became ignored somewhere, and something new with the same bytes.
    fn holds_untracked(&self, path: &RelPath) -> Result<bool, Error> {
        self.must_have_rules(path)?;
        let (cache, ignored) = (self.cache(), self.ignored());
        let is_ignored = |(path, known): (&RelPath, &Known)| ignored.matches(path, matches!(known, Known::Directory));
        Ok(cache.get(path).map(|known| (path, known)).into_iter().chain(cache.below(path)).any(is_ignored))
    }

    fn must_have_rules(&self, path: &RelPath) -> Result<(), Error> {
        let cache = self.cache();
        let in_place = |(file, hash): &(RelPath, Hash)| cache.get(file).map(Known::hash) == Some(*hash);
        if !self.hands.rules.iter().filter(|(file, _)| file.parent().is_some_and(|folder| path.starts_with(&folder))).all(in_place) {
            let message = "new ignore rules come first; it is tried again by itself".into();
            return Err(Error::Failed(Failed::Code { code: "rules_first", message }));
        }
        Ok(())
    }

    /// The folder that holds a path, and the name in it.
    fn open<'p>(&mut self, path: &'p RelPath) -> Result<(Arc<Folder>, &'p str), Errno> {
        let (parent, name) = super::root::split(path.as_str());
        let mut held = match self.held.take().filter(|held| held.path == parent && held.uses < HELD) {
            Some(held) => held,
            None => Held { path: parent.to_owned(), folder: Arc::new(self.hands.root.folder(parent)?), uses: 0 },
        };
        held.uses += 1;
        let folder = held.folder.clone();
        self.held = Some(held);
        Ok((folder, name))
    }

    fn place(&mut self, task: &Task, copy: &mut Option<String>) -> Result<(), Error> {
        let Task { path, put, .. } = task;
        if let Put::Move(to) = put {
            self.held = None;
            return self.relocate(path, to, copy);
        }
        if *put == Put::Nothing && self.is_untracked(path, task.expect)? {
            self.note(path, None);
            return Ok(());
        }
        let (folder, name) = match self.open(path) {
            Ok(place) => place,
            // Where nothing can be there is nothing.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if *put == Put::Nothing => {
                self.note(path, None);
                return Ok(());
            }
            // The folder above it is not there, but its twin may be.
            Err(Errno::NOENT) if self.hands.root.folds() => return Err(collision("a folder above it")),
            Err(error) => return Err(error.into()),
        };
        // Where nothing is expected, the rename is the look; but a name is not all that a file system which folds names goes by.
        if let (Put::File { staged, .. }, None, false) = (put, task.expect, self.hands.root.folds())
            && self.put_new(&folder, name, task, staged)?
        {
            return Ok(());
        }
        let there = self.check(&folder, name, path, task.expect)?;
        if there == There::Folder {
            self.held = None;
        }
        if let (There::Nothing, true) = (there, *put != Put::Nothing)
            && let Some(twin) = folder.twin(name)?
        {
            return Err(collision(&format!("`{}`", text::clean(&twin, limits::TEXT_BYTES))));
        }
        self.touch(path);
        match (put, there) {
            (Put::Nothing, There::Nothing) => self.note(path, None),
            (Put::Nothing, There::Folder) => self.remove_folder(&folder, name, path)?,
            (Put::Nothing, There::Other { stat, content }) => self.take_away(&folder, name, task, &stat, content, copy)?,
            (Put::Directory, There::Folder) => self.note(path, Some(Known::Directory)),
            (Put::Directory, There::Nothing) => {
                match mkdirat(&folder, name, Mode::from_raw_mode(0o777)) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => return Err(self.found(&folder, name, path)),
                    Err(error) => return Err(error.into()),
                }
                self.step(Step::Placed)?;
                self.note(path, Some(Known::Directory));
            }
            (Put::Mode { executable }, There::Other { stat, .. }) if stat.file_type().is_file() => {
                self.set_mode(&folder, name, path, &stat, *executable)?;
            }
            (Put::Mode { .. }, _) => return Err(self.found(&folder, name, path)),
            (put, there) => {
                let staged = match put {
                    Put::File { staged, content, .. } if matches!(there, There::Other { .. }) => self.hands.stage.ready(staged, content)?,
                    Put::File { staged, .. } => staged.clone(),
                    Put::Symlink(target) => self.hands.stage.symlink(target)?,
                    _ => self.hands.stage.directory()?,
                };
                let placed = self.exchange(&folder, name, task, &staged, there, copy);
                if matches!(placed, Err(Error::Failed(_))) && !self.kept.contains(&staged) {
                    self.hands.stage.discard(&staged);
                }
                placed?;
            }
        }
        Ok(())
    }

    /// Makes sure that what is on the disk is what the task was made for.
    fn check(&self, folder: &Folder, name: &str, path: &RelPath, expect: Option<Hash>) -> Result<There, Error> {
        let known = self.cache().get(path).cloned();
        let there = folder.stat(name)?;
        let as_expected = known.as_ref().map(Known::hash) == expect;
        match (&known, there) {
            (_, None) if expect.is_none() => Ok(There::Nothing),
            // Folders are made and found alike.
            (_, Some(stat)) if stat.file_type().is_dir() && (as_expected || expect.is_none()) => Ok(There::Folder),
            (Some(Known::File(file)), Some(stat)) if as_expected && file.stat == stat => {
                let content = (!file.vouches_for(&stat)).then_some(file.content);
                Ok(There::Other { stat, content })
            }
            (Some(Known::Symlink(target)), Some(stat)) if as_expected && stat.file_type().is_symlink() => {
                match readlinkat(folder, name, Vec::new())? {
                    now if now.as_bytes() == target.as_bytes() => Ok(There::Other { stat, content: None }),
                    _ => Err(self.found(folder, name, path)),
                }
            }
            // Touched, but perhaps not changed.
            (_, Some(stat)) if stat.file_type().is_file() => {
                let looked_at_ns = now_ns();
                let contents = read::hash(folder, name, &mut vec![0; BUFFER_BYTES]).map_err(|_| busy())?;
                let file = KnownFile::new(&contents, looked_at_ns);
                let known = Known::File(file);
                if expect == Some(known.hash()) {
                    self.cache().set(path, Some(known));
                    Ok(There::Other { stat: file.stat, content: Some(file.content) })
                } else {
                    Err(Error::Failed(Failed::Found(Some(known.found()))))
                }
            }
            _ => Err(self.found(folder, name, path)),
        }
    }

    /// What is there instead of what was expected. The path's own event, or the next look, says the same.
    fn found(&self, folder: &Folder, name: &str, path: &RelPath) -> Error {
        let found = match folder.stat(name) {
            Err(error) => return error.into(),
            Ok(None) => None,
            Ok(Some(stat)) if stat.file_type().is_dir() => Some(Known::Directory),
            Ok(Some(stat)) if stat.file_type().is_symlink() => {
                match readlinkat(folder, name, Vec::new()).map(|target| target.into_string()) {
                    Ok(Ok(target)) => Some(Known::Symlink(target.into())),
                    _ => return in_the_way(),
                }
            }
            Ok(Some(stat)) if stat.file_type().is_file() => {
                let looked_at_ns = now_ns();
                match read::hash(folder, name, &mut vec![0; BUFFER_BYTES]) {
                    Ok(contents) => Some(Known::File(KnownFile::new(&contents, looked_at_ns))),
                    Err(_) => return busy(),
                }
            }
            Ok(Some(_)) => return in_the_way(),
        };
        self.cache().set(path, found.clone());
        Error::Failed(Failed::Found(found.map(|known| known.found())))
    }

    fn exchange(
        &mut self,
        folder: &Folder,
        name: &str,
        task: &Task,
        staged: &str,
        there: There,
        copy: &mut Option<String>,
    ) -> Result<(), Error> {
        let stage = self.hands.stage.clone();
        match there {
            There::Nothing => {}
            There::Folder => match unlinkat(folder, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    let message = "a folder with other things in it is in the way; it is tried again by itself".into();
                    return Err(Error::Failed(Failed::Code { code: "in_the_way", message }));
                }
                Err(error) => return Err(error.into()),
            },
            There::Other { stat, content } => {
                if let Put::File { executable, .. } = task.put
                    && stat.file_type().is_file()
                {
                    // Who could read the old one can read the new one.
                    set_permissions(&stage.folder_of(staged).read(staged)?, &stat, executable)?;
                }
                let ours = stage.folder_of(staged).stat(staged)?;
                renameat_with(stage.folder_of(staged), staged, folder, name, RenameFlags::EXCHANGE).map_err(|error| match error {
                    Errno::NOENT => self.found(folder, name, &task.path),
                    error => error.into(),
                })?;
                self.step(Step::Displaced)?;
                if !self.is_as_it_was(staged, &stat, content) {
                    // It goes back. What comes out instead is ours, or yet another edit.
                    let back = renameat_with(stage.folder_of(staged), staged, folder, name, RenameFlags::EXCHANGE);
                    if back.is_err() || stage.folder_of(staged).stat(staged)?.map(|stat| stat.ino) != ours.map(|stat| stat.ino) {
                        self.keep(staged, &task.path, copy);
                    }
                    return Err(self.found(folder, name, &task.path));
                }
                self.let_go(task, staged, copy)?;
                return self.placed(folder, name, task, ours);
            }
        }
        if self.put_new(folder, name, task, staged)? { Ok(()) } else { Err(self.found(folder, name, &task.path)) }
    }

    /// Puts it where nothing is; returns `false` when something is.
    fn put_new(&mut self, folder: &Folder, name: &str, task: &Task, staged: &str) -> Result<bool, Error> {
        let ours = self.hands.stage.stat(staged)?;
        match self.hands.stage.put(staged, folder, name) {
            Ok(()) => {
                self.touch(&task.path);
                self.placed(folder, name, task, ours).map(|()| true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes what was put there. `ours`: how it looked in the stage.
    fn placed(&mut self, folder: &Folder, name: &str, task: &Task, ours: Option<Stat>) -> Result<(), Error> {
        self.step(Step::Placed)?;
        let known = match &task.put {
            Put::File { content, .. } => match folder.stat(name)? {
                Some(stat) if ours.is_some_and(|ours| stat.is_same_but_for_ctime(&ours)) => {
                    Known::File(KnownFile { stat, looked_at_ns: now_ns(), content: *content })
                }
                // Somebody was at it already: what is known is of the file before it, so the next look reads it.
                _ => return Ok(()),
            },
            Put::Symlink(target) => Known::Symlink(target.clone()),
            _ => Known::Directory,
        };
        self.note(&task.path, Some(known));
        Ok(())
    }

    /// Whether something in the stage is what it was before it came there. `content`: its times do not say so.
    fn is_as_it_was(&self, staged: &str, before: &Stat, content: Option<[u8; 32]>) -> bool {
        let folder = self.hands.stage.folder_of(staged);
        let same = matches!(folder.stat(staged), Ok(Some(stat)) if stat.is_same_but_for_ctime(before));
        same && content
            .is_none_or(|content| read::hash(folder, staged, &mut vec![0; BUFFER_BYTES]).is_ok_and(|contents| contents.hash == content))
    }

    /// Keeps somebody's edit that has lost its place.
    fn keep(&mut self, staged: &str, path: &RelPath, copy: &mut Option<String>) {
        match self.hands.stage.keep_copy(&self.hands.root, staged, path.as_str(), self.now_ms) {
            Ok(kept) => *copy = Some(kept),
            Err(error) => {
                tracing::warn!(%error, "an edit stays in the stage until the next start");
                self.kept.insert(staged.to_owned());
            }
        }
    }

    fn let_go(&self, task: &Task, staged: &str, copy: &mut Option<String>) -> Result<(), Error> {
        if task.keep_copy {
            *copy = Some(self.hands.stage.keep_copy(&self.hands.root, staged, task.path.as_str(), self.now_ms)?);
        } else {
            self.hands.stage.discard(staged);
        }
        Ok(())
    }

    fn take_away(
        &mut self,
        folder: &Folder,
        name: &str,
        task: &Task,
        stat: &Stat,
        content: Option<[u8; 32]>,
        copy: &mut Option<String>,
    ) -> Result<(), Error> {
        let stage = self.hands.stage.clone();
        let away = match stage.take_away(folder, name) {
            Ok(away) => away,
            Err(Errno::NOENT) => {
                self.note(&task.path, None);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.step(Step::Displaced)?;
        if !self.is_as_it_was(&away, stat, content) {
            if renameat_with(stage.folder_of(&away), &away, folder, name, RenameFlags::NOREPLACE).is_err() {
                self.keep(&away, &task.path, copy);
            }
            return Err(self.found(folder, name, &task.path));
        }
        self.let_go(task, &away, copy)?;
        self.step(Step::Placed)?;
        self.note(&task.path, None);
        Ok(())
    }

    fn remove_folder(&mut self, folder: &Folder, name: &str, path: &RelPath) -> Result<(), Error> {
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                self.step(Step::Placed)?;
                self.note(path, None);
                Ok(())
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let message = "the folder stays for what is in it and is not part of the workspace".into();
                Err(Error::Failed(Failed::Code { code: "not_empty", message }))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_mode(&mut self, folder: &Folder, name: &str, path: &RelPath, stat: &Stat, executable: bool) -> Result<(), Error> {
        let file = folder.read(name)?;
        if Stat::of_open(&file)? != *stat {
            return Err(self.found(folder, name, path));
        }
        set_permissions(&file, stat, executable)?;
        file.sync_all()?;
        let content = self.cache().file(path).map(|file| file.content);
        let Some(content) = content else { return Err(self.found(folder, name, path)) };
        self.note(path, Some(Known::File(KnownFile { stat: Stat::of_open(&file)?, looked_at_ns: now_ns(), content })));
        Ok(())
    }

    /// Moves a path, and all below it, when it is as it was seen.
    fn relocate(&mut self, from: &RelPath, to: &RelPath, copy: &mut Option<String>) -> Result<(), Error> {
        if self.holds_untracked(from)? {
            let message = "ignored files do not go along; the others are moved piece by piece".into();
            return Err(Error::Failed(Failed::Code { code: "ignored", message }));
        }
        let (folder, name) = self.hands.root.place(from)?;
        if !self.is_unchanged(&folder, name, from)? {
            let message = "something in it has changed; it is moved piece by piece".into();
            return Err(Error::Failed(Failed::Code { code: "changed", message }));
        }
        let (target, target_name) = self.hands.root.place(to)?;
        let is_respelt = from.parent() == to.parent() && target.twin(target_name)?.as_deref() == Some(name);
        let renamed = if is_respelt {
            self.respell(&folder, from, target_name, copy)?
        } else {
            renameat_with(&folder, name, &target, target_name, RenameFlags::NOREPLACE)
        };
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST | Errno::NOTEMPTY) => return Err(self.found(&target, target_name, to)),
            Err(error) => return Err(error.into()),
        }
        self.touch(from);
        self.touch(to);
        self.step(Step::Placed)?;
        let moved: Vec<_> = {
            let cache = self.cache();
            let top = cache.get(from).map(|known| (from.clone(), known.clone()));
            top.into_iter().chain(cache.below(from).map(|(path, known)| (path.clone(), known.clone()))).collect()
        };
        for (path, known) in moved {
            let known = match known {
                // The one file that was renamed has a new ctime.
                Known::File(file) if path == *from => match target.stat(target_name)? {
                    Some(stat) if stat.is_same_but_for_ctime(&file.stat) => Known::File(KnownFile { stat, looked_at_ns: now_ns(), ..file }),
                    _ => Known::File(file),
                },
                known => known,
            };
            let new = match path.below(from) {
                None => Ok(to.clone()),
                Some(below) => to.join(below),
            };
            if let Ok(new) = new {
                self.note(&new, Some(known));
            }
            self.note(&path, None);
        }
        Ok(())
    }

    /// Renames something to what the file system takes for its name already: some do nothing then, and none knows that nothing else is replaced. So it goes by way of the stage.
    fn respell(&mut self, folder: &Folder, from: &RelPath, to: &str, copy: &mut Option<String>) -> Result<Result<(), Errno>, Error> {
        let stage = self.hands.stage.clone();
        let away = match stage.take_away(folder, from.name()) {
            Ok(away) => away,
            Err(error) => return Ok(Err(error)),
        };
        self.step(Step::Displaced)?;
        let put = |name: &str| renameat_with(stage.folder_of(&away), &away, folder, name, RenameFlags::NOREPLACE);
        let renamed = put(to);
        if renamed.is_err() && put(from.name()).is_err() {
            self.keep(&away, from, copy);
        }
        Ok(renamed)
    }

    fn is_unchanged(&self, folder: &Folder, name: &str, path: &RelPath) -> Result<bool, Errno> {
        let known = self.cache().get(path).cloned();
        let Some(stat) = folder.stat(name)? else { return Ok(known.is_none()) };
        match known {
            Some(Known::File(file)) => Ok(file.stat == stat),
            Some(Known::Symlink(target)) => {
                Ok(stat.file_type().is_symlink() && readlinkat(folder, name, Vec::new())?.as_bytes() == target.as_bytes())
            }
            Some(Known::Directory) if stat.file_type().is_dir() => {
                let inside = self.hands.root.folder(path.as_str())?;
                let mut here = BTreeSet::new();
                for name in inside.names()? {
                    let child = std::str::from_utf8(&name).ok().and_then(|name| path.join(name).ok());
                    let Some(child) = child else { return Ok(false) };
                    let (_, name) = super::root::split(child.as_str());
                    if !self.is_unchanged(&inside, name, &child)? {
                        return Ok(false);
                    }
                    here.insert(child);
                }
                let cache = self.cache();
                Ok(cache.below(path).filter(|(below, _)| below.parent().as_ref() == Some(path)).all(|(below, _)| here.contains(below)))
            }
            Some(Known::Directory) => Ok(false),
            None => Ok(self.ignored().matches(path, stat.file_type().is_dir())),
        }
    }
}

/// What is on the disk, as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Folder,
    Other {
        stat: Stat,
        /// The times do not vouch for the contents; these are expected.
        content: Option<[u8; 32]>,
    },
}

fn busy() -> Error {
    Error::Failed(Failed::Code { code: "hot", message: "it is being written all the time; it is tried again by itself".into() })
}

fn collision(twin: &str) -> Error {
    let message = format!("this node's file system takes its name for that of {twin}, which is there already; rename one of them");
    Error::Failed(Failed::Code { code: CASE_COLLISION, message })
}

fn in_the_way() -> Error {
    let message = "a device, socket, fifo or odd link is in the way; remove it".into();
    Error::Failed(Failed::Code { code: "in_the_way", message })
}

/// The old permissions, with those to run it as is wanted: whoever may read it may run it.
fn set_permissions(file: &File, old: &Stat, executable: bool) -> io::Result<()> {
    let mode = old.mode & 0o777;
    let mode = if executable { mode | (mode & 0o444) >> 2 | 0o100 } else { mode & !0o111 };
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests;
