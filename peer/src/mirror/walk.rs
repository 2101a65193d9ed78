//! A look at the disk: what lies at the dirty paths, compared with what was seen there before.
//!
//! Folders are watched before they are listed. A file whose `stat` is as it was is not read again, unless two writes may have left the same times behind.
//! What cannot be synced (devices, names that are no text) is reported and otherwise left alone; what cannot be read keeps the state it had, so that a
//! permission that is missing never looks like a deletion.
//!
//! Where the file system folds names, an event may speak of a file in another spelling than the one it has: what is spelt alike is looked at, too.
//!
//! What a new rule ignores is in the workspace no longer, and stays on the disk: it is told apart from what is gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cortex_wire::{
    limits,
    mirror::{entry::Hash, path::RelPath, replica::Found},
};
use rustix::{fs::readlinkat, io::Errno};

use crate::sandbox;

use super::{
    cache::{Cache, Known, KnownFile},
    gather::Gather,
    ignore::{self, IGNORE_FILES, Ignored},
    large::{LARGE_BYTES, ReadFiles},
    read::{self, BUFFER_BYTES, Contents, ReadError, Reading, TICK_NS},
    root::{Folder, OWN, Root, Stat, split},
    watch::{Dirty, Mark, Watch},
};

/// Findings are handed on in portions of this size.
const PORTION: usize = 1_024;
/// A file that changes while it is read is tried again at once so often.
const TRIES: usize = 2;

/// Up to this a file that is being written is read as it is: logs are seen to grow.
const UNCLOSED_BYTES: u64 = 1024 * 1024;

/// Something that a person should know of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The path, as far as it can be shown.
    pub path: String,
    /// Stable: `unreadable`, `not_utf8`, `special_file`, …
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// A portion of what a look found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What changed since the last look; all that was seen, when everything was asked for. `None`: nothing (that counts) is there.
    pub found: Vec<(RelPath, Option<Found>)>,
    /// Still there, and ignored now.
    pub untracked: Vec<RelPath>,
    /// Folders (`""`: the top) and paths whose troubles of earlier looks are over, unless `troubles` says so again.
    pub looked_at: Vec<String>,
    /// What is wrong.
    pub troubles: Vec<Trouble>,
    /// Too large to be read by a look, and whether events say that they were written.
    pub large: Vec<(RelPath, bool)>,
    /// Being written; to be looked at again when they are closed, or later.
    pub unclosed: Vec<RelPath>,
    /// Changed while they were read; to be looked at again later.
    pub busy: Vec<RelPath>,
    /// On their way to the hub already.
    pub gathered: Vec<(RelPath, Hash)>,
}

impl Findings {
    /// Adds a later portion.
    pub fn add(&mut self, mut later: Self) {
        self.found.append(&mut later.found);
        self.untracked.append(&mut later.untracked);
        self.looked_at.append(&mut later.looked_at);
        self.troubles.append(&mut later.troubles);
        self.large.append(&mut later.large);
        self.unclosed.append(&mut later.unclosed);
        self.busy.append(&mut later.busy);
        self.gathered.append(&mut later.gathered);
    }

    fn len(&self) -> usize {
        let paths = [&self.untracked, &self.unclosed, &self.busy].map(Vec::len);
        self.found.len() + self.looked_at.len() + self.troubles.len() + self.large.len() + paths.iter().sum::<usize>()
    }
}

/// What a look needs. All of it is shared with the workspace's owner.
#[derive(Debug, Clone)]
pub struct Eyes {
    /// The folder.
    pub root: Arc<Root>,
    /// What was seen before.
    pub cache: Arc<Mutex<Cache>>,
    /// What does not count.
    pub ignored: Arc<Mutex<Ignored>>,
    /// To watch folders.
    pub watch: Arc<Watch>,
    /// What was read of large files.
    pub read_files: Arc<ReadFiles>,
    /// Ends a look early.
    pub stop: Arc<AtomicBool>,
}

/// How to look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct How {
    /// Report what is as it was, too.
    pub all: bool,
    /// Read every file, whatever its times say.
    pub rehash: bool,
}

/// Why a look ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// Nobody takes the findings any more.
    #[error("the workspace is being closed")]
    Stopped,
    /// The folder that is held is not the workspace's any more.
    #[error("the workspace's folder is gone")]
    RootGone,
}

/// Looks at what is dirty. Blocks; `tell` gets the findings portion by portion and returns whether to go on.
///
/// # Errors
/// [`Ended`].
pub fn look(
    eyes: &Eyes,
    dirty: &Dirty,
    how: How,
    gather: Option<&mut Gather>,
    tell: &mut dyn FnMut(Findings) -> bool,
) -> Result<(), Ended> {
    let mut look = Look {
        eyes,
        dirty,
        how,
        gather,
        tell,
        findings: Findings::default(),
        buffer: vec![0; BUFFER_BYTES],
        opened: None,
        linked: HashMap::new(),
        left: HashMap::new(),
        spellings: BTreeMap::new(),
    };
    if !eyes.root.is_in_place() {
        return Err(Ended::RootGone);
    }
    let mut everything = dirty.everything;
    if !everything {
        everything = look.look_at_ignore_files(dirty)?;
    }
    if everything {
        // Without events nobody knows what was written.
        look.look_below(&RelPath::root(), dirty, true)?;
    } else {
        let mut covered: Option<&RelPath> = None;
        for (path, mark) in &dirty.paths {
            if covered.is_some_and(|folder| path.starts_with(folder)) {
                continue;
            }
            if look.look_at(path, *mark)? {
                look.look_below(path, dirty, mark.written)?;
                covered = Some(path);
            }
        }
    }
    look.look_at_other_spellings()?;
    look.look_at_other_names()?;
    // Whatever was not found may be because the whole folder went away meanwhile.
    if !eyes.root.is_in_place() {
        return Err(Ended::RootGone);
    }
    look.hand_on()
}

struct Look<'a> {
    eyes: &'a Eyes,
    dirty: &'a Dirty,
    how: How,
    gather: Option<&'a mut Gather>,
    tell: &'a mut dyn FnMut(Findings) -> bool,
    findings: Findings,
    buffer: Vec<u8>,
    /// The folder of the path that was looked at last: dirty paths come sorted.
    opened: Option<(String, Arc<Folder>)>,
    /// Files of more than one name that have changed: events speak of the one by which they were written.
    linked: HashMap<(u64, u64), Stat>,
    /// Large files that are where they were no longer, with what was seen of them there.
    left: HashMap<(u64, u64), (RelPath, KnownFile)>,
    /// By folder, how names that are not there, or were not, are folded by some file systems.
    spellings: BTreeMap<RelPath, HashMap<String, Mark>>,
}

impl Look<'_> {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.eyes.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ignored(&self) -> MutexGuard<'_, Ignored> {
        self.eyes.ignored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_on(&mut self) -> Result<(), Ended> {
        let mut findings = std::mem::take(&mut self.findings);
        findings.gathered = self.gather.as_mut().map(|gather| gather.taken()).unwrap_or_default();
        if findings.len() == 0 || (self.tell)(findings) { Ok(()) } else { Err(Ended::Stopped) }
    }

    fn breathe(&mut self) -> Result<(), Ended> {
        if self.eyes.stop.load(Ordering::Relaxed) {
            return Err(Ended::Stopped);
        }
        if self.findings.len() >= PORTION {
            // A deletion is said last: it may be half of a rename, and must not be told before a folder that is gone as a whole is noticed.
            if !self.eyes.root.is_in_place() {
                return Err(Ended::RootGone);
            }
            self.hand_on()?;
        }
        Ok(())
    }

    /// Whether rules changed so that everything has to be looked at.
    fn look_at_ignore_files(&mut self, dirty: &Dirty) -> Result<bool, Ended> {
        let mut changed = self.ignored().take_put();
        for path in dirty.paths.keys() {
            let (folder, name) = split(path.as_str());
            if IGNORE_FILES.contains(&name) {
                let counts = !self.ignored().matches(path, false);
                let opened = self.eyes.root.folder(folder).ok().filter(|_| counts);
                let text = opened.and_then(|opened| ignore::text(&opened, name, &mut self.buffer));
                changed |= self.ignored().set(path, text.as_deref());
            }
        }
        Ok(changed)
    }

    /// Looks at one path. Returns whether what is below it must be looked at, too.
    fn look_at(&mut self, path: &RelPath, mark: Mark) -> Result<bool, Ended> {
        self.breathe()?;
        let was_known = self.cache().get(path).is_some();
        let seen = match self.place(path) {
            Ok((folder, name)) => self.see(&folder, name, path, mark, false),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Seen::Nothing,
            Err(error) => {
                self.trouble(path.as_str(), "unreadable", format!("cannot be looked at: {}", io::Error::from(error)));
                Seen::Unknown
            }
        };
        self.findings.looked_at.push(path.as_str().to_owned());
        if self.eyes.root.folds()
            && (!was_known || seen == Seen::Nothing)
            && let Some(folder) = path.parent()
        {
            self.spellings.entry(folder).or_default().insert(path.fold_key(), Mark { tell: false, ..mark });
        }
        match seen {
            Seen::Folder { new } => Ok(mark.deep || new),
            Seen::Unknown => Ok(false),
            Seen::Ignored => {
                self.untrack(path, mark.tell);
                Ok(false)
            }
            Seen::Nothing | Seen::Other => {
                let below: Vec<_> = self.cache().below(path).map(|(path, _)| path.clone()).collect();
                below.iter().rev().for_each(|path| self.gone(path, false));
                self.ignored().forget_below(path);
                if matches!(seen, Seen::Nothing) {
                    self.gone(path, mark.tell);
                }
                Ok(false)
            }
        }
    }

    fn look_at_other_spellings(&mut self) -> Result<(), Ended> {
        for (folder, keys) in std::mem::take(&mut self.spellings) {
            let names = self.eyes.root.folder(folder.as_str()).and_then(|opened| opened.names()).unwrap_or_default();
            let mut spelt: BTreeSet<RelPath> = names.iter().filter_map(|name| folder.join(std::str::from_utf8(name).ok()?).ok()).collect();
            spelt.extend(self.cache().below(&folder).map(|(path, _)| path).filter(|path| path.parent().as_ref() == Some(&folder)).cloned());
            for path in spelt.into_iter().filter(|path| !self.dirty.paths.contains_key(path)) {
                if let Some(mark) = keys.get(&path.fold_key())
                    && self.look_at(&path, *mark)?
                {
                    self.look_below(&path, self.dirty, mark.written)?;
                }
            }
        }
        self.spellings.clear();
        Ok(())
    }

    fn look_at_other_names(&mut self) -> Result<(), Ended> {
        let linked = std::mem::take(&mut self.linked);
        if !linked.is_empty() {
            let names = self.cache().stale_names(&linked);
            for name in names {
                self.look_at(&name, Mark { written: true, ..Mark::default() })?;
            }
        }
        Ok(())
    }

    fn place<'p>(&mut self, path: &'p RelPath) -> Result<(Arc<Folder>, &'p str), Errno> {
        let (parent, name) = split(path.as_str());
        let opened = self.opened.take().filter(|(at, _)| at == parent);
        let (at, folder) = match opened {
            Some(opened) => opened,
            None => (parent.to_owned(), Arc::new(self.eyes.root.folder(parent)?)),
        };
        self.opened = Some((at, folder.clone()));
        Ok((folder, name))
    }

    /// Lists a folder and everything below it. `written`: events may have been missed there.
    fn look_below(&mut self, top: &RelPath, dirty: &Dirty, written: bool) -> Result<(), Ended> {
        let mut seen: HashSet<RelPath> = HashSet::new();
        // Below these nothing is known, which is not the same as nothing being there.
        let mut unknown: Vec<RelPath> = Vec::new();
        let mut folders = vec![(top.clone(), written)];
        while let Some((path, written)) = folders.pop() {
            let text = path.as_str();
            self.eyes.watch.folder(text);
            let listed = self.eyes.root.folder(text).and_then(|folder| folder.names().map(|names| (folder.listed(), names)));
            let (folder, mut names) = match listed {
                Ok(listed) => listed,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !path.is_root() => continue,
                Err(error) => {
                    let message = match error {
                        Errno::XDEV => "another file system is mounted here; it is not synced".to_owned(),
                        error => format!("cannot be listed: {}", io::Error::from(error)),
                    };
                    self.trouble(text, "unreadable", message);
                    unknown.push(path.clone());
                    continue;
                }
            };
            self.findings.looked_at.push(text.to_owned());
            self.load_ignore_files(&folder, &path, &names);
            // In the order of paths: what is gathered together is wanted together.
            names.sort_unstable();
            let first = folders.len();
            for name in names {
                self.breathe()?;
                let Some(child) = self.child(&path, &name) else { continue };
                let (_, name) = split(child.as_str());
                let mark = dirty.paths.get(&child).copied().unwrap_or_default();
                let mark = Mark { deep: true, written: mark.written || written, ..mark };
                match self.see(&folder, name, &child, mark, true) {
                    Seen::Folder { .. } => {
                        seen.insert(child.clone());
                        folders.push((child, mark.written));
                    }
                    Seen::Other => {
                        seen.insert(child);
                    }
                    Seen::Unknown => {
                        unknown.push(child.clone());
                        seen.insert(child);
                    }
                    Seen::Ignored => self.untrack(&child, mark.tell),
                    Seen::Nothing => {}
                }
            }
            folders[first..].reverse();
        }
        let hidden = |path: &RelPath| unknown.iter().any(|folder| path.starts_with(folder));
        let gone: Vec<RelPath> =
            self.cache().below(top).map(|(path, _)| path).filter(|path| !seen.contains(*path) && !hidden(path)).cloned().collect();
        for path in gone.iter().rev() {
            // It may have been put there after its folder was listed.
            if matches!(self.eyes.root.stat(path), Ok(None)) {
                self.gone(path, false);
            }
        }
        Ok(())
    }

    fn load_ignore_files(&mut self, folder: &Folder, path: &RelPath, names: &[Vec<u8>]) {
        for name in IGNORE_FILES {
            let text = if names.iter().any(|there| there == name.as_bytes()) { ignore::text(folder, name, &mut self.buffer) } else { None };
            if let Ok(file) = path.join(name) {
                self.ignored().set(&file, text.as_deref());
            }
        }
    }

    /// The path of a name in a folder, unless it cannot be synced or is our own.
    fn child(&mut self, folder: &RelPath, name: &[u8]) -> Option<RelPath> {
        if folder.is_root() && name == OWN.as_bytes() {
            return None;
        }
        let shown = |name: &str| if folder.is_root() { name.to_owned() } else { format!("{folder}/{name}") };
        let Ok(text) = std::str::from_utf8(name) else {
            let message = "the name is not UTF-8, so it is not synced; rename it".into();
            self.trouble(&shown(&String::from_utf8_lossy(name)), "not_utf8", message);
            return None;
        };
        match folder.join(text) {
            Ok(path) => Some(path),
            Err(error) => {
                self.trouble(&shown(text), "bad_name", format!("it is not synced: {error}"));
                None
            }
        }
    }

    fn trouble(&mut self, path: &str, code: &'static str, message: String) {
        self.findings.troubles.push(Trouble { path: path.to_owned(), code, message });
    }

    /// Looks at one name in an open folder, and notes what is there. `from_above`: no folder above it is ignored.
    fn see(&mut self, folder: &Folder, name: &str, path: &RelPath, mark: Mark, from_above: bool) -> Seen {
        let stat = match folder.stat(name) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Seen::Nothing,
            Err(error) => {
                self.trouble(path.as_str(), "unreadable", format!("cannot be looked at: {}", io::Error::from(error)));
                return Seen::Unknown;
            }
        };
        if sandbox::is_placeholder(stat.mode, stat.size) {
            return Seen::Nothing;
        }
        let known = self.cache().get(path).cloned();
        let file_type = stat.file_type();
        let is_folder = file_type.is_dir();
        if if from_above { self.ignored().matches_itself(path, is_folder) } else { self.ignored().matches(path, is_folder) } {
            return Seen::Ignored;
        }
        if file_type.is_dir() {
            let new = known != Some(Known::Directory);
            self.found(path, Known::Directory, new || mark.tell);
            Seen::Folder { new }
        } else if file_type.is_symlink() {
            self.see_link(folder, name, path, known.as_ref(), mark)
        } else if file_type.is_file() {
            self.see_file(folder, name, path, &stat, known.as_ref(), mark)
        } else {
            self.trouble(path.as_str(), "special_file", "a device, socket or fifo is not synced".into());
            Seen::Nothing
        }
    }

    fn see_link(&mut self, folder: &Folder, name: &str, path: &RelPath, known: Option<&Known>, mark: Mark) -> Seen {
        let Ok(target) = readlinkat(folder, name, Vec::new()) else { return Seen::Nothing };
        let Ok(target) = target.into_string() else {
            self.trouble(path.as_str(), "not_utf8", "the link's target is not UTF-8, so it is not synced".into());
            return Seen::Unknown;
        };
        let target = Known::Symlink(target.into());
        let new = known != Some(&target) || mark.tell;
        self.found(path, target, new);
        Seen::Other
    }

    fn see_file(&mut self, folder: &Folder, name: &str, path: &RelPath, stat: &Stat, known: Option<&Known>, mark: Mark) -> Seen {
        if stat.size > limits::FILE_BYTES {
            self.trouble(path.as_str(), "too_large", "files above 16 GiB are not synced".into());
            return Seen::Unknown;
        }
        if let Some(Known::File(file)) = known
            && !self.how.rehash
            && file.stat == *stat
            && (file.vouches_for(stat) || !mark.written)
        {
            // No event spoke of a write, so what was seen then is still there, and from now on the times vouch for it.
            let file = Known::File(KnownFile { looked_at_ns: now_ns(), ..*file });
            self.found(path, file, mark.tell);
            return Seen::Other;
        }
        if mark.written && stat.size > LARGE_BYTES {
            self.cache().distrust(path);
        }
        // To read it again and again while it grows, and to send each of its states, would cost more than it is worth.
        if mark.unclosed == Some(true) && !mark.tell && !self.how.rehash && stat.size > UNCLOSED_BYTES {
            self.findings.unclosed.push(path.clone());
            return Seen::Unknown;
        }
        if stat.size > LARGE_BYTES {
            let read = self.eyes.read_files.take(path, stat).or_else(|| self.renamed(stat, mark));
            let Some(file) = read.map(Known::File) else {
                self.findings.large.push((path.clone(), mark.written));
                return Seen::Unknown;
            };
            let new = known.map(Known::hash) != Some(file.hash()) || mark.tell;
            self.found(path, file, new);
            return Seen::Other;
        }
        for _ in 0..TRIES {
            let looked_at_ns = now_ns();
            match self.read_file(folder, name, path) {
                Ok(contents) => {
                    let file = Known::File(KnownFile::new(&contents, looked_at_ns));
                    let new = known.map(Known::hash) != Some(file.hash()) || mark.tell;
                    self.found(path, file, new);
                    return Seen::Other;
                }
                Err(ReadError::Changed) => {}
                Err(ReadError::Gone) => return Seen::Nothing,
                Err(ReadError::Io(error)) => {
                    self.trouble(path.as_str(), "unreadable", format!("cannot be read: {error}"));
                    return Seen::Unknown;
                }
            }
        }
        self.findings.busy.push(path.clone());
        Seen::Unknown
    }

    /// What was seen of a large file under another name, when events speak of a rename and of no write.
    fn renamed(&self, stat: &Stat, mark: Mark) -> Option<KnownFile> {
        if mark.written || self.how.rehash || stat.links != 1 {
            return None;
        }
        let is_unwritten = |path: &RelPath| self.dirty.paths.get(path).is_none_or(|mark| !mark.written);
        // A later write would have left a later time.
        let is_settled = |file: &KnownFile| stat.mtime_ns.saturating_add(TICK_NS) < file.looked_at_ns;
        let is_it = |path: &RelPath, file: &KnownFile| file.stat.is_same_but_for_ctime(stat) && is_settled(file) && is_unwritten(path);
        let left = self.left.get(&(stat.dev, stat.ino)).filter(|(path, file)| is_it(path, file)).map(|(_, file)| *file);
        let seen = left.or_else(|| {
            let cache = self.cache();
            let mut files = cache.iter().filter_map(|(path, known)| if let Known::File(file) = known { Some((path, file)) } else { None });
            files.find(|(path, file)| is_it(path, file)).map(|(_, file)| *file)
        });
        let file = match seen {
            Some(file) => KnownFile { looked_at_ns: now_ns(), ..file },
            None => self.eyes.read_files.take_renamed(stat, is_unwritten)?,
        };
        Some(KnownFile { stat: *stat, ..file })
    }

    fn read_file(&mut self, folder: &Folder, name: &str, path: &RelPath) -> Result<Contents, ReadError> {
        let Some(gather) = &mut self.gather else { return read::hash(folder, name, &mut self.buffer) };
        let reading = Reading::open(folder, name)?;
        if reading.before().size > limits::CHUNK_BYTES as u64 {
            let (contents, now) = gather.read(path, reading)?;
            return if now == *path { Ok(contents) } else { Err(ReadError::Changed) };
        }
        let (contents, bytes) = reading.whole(&mut self.buffer)?;
        gather.take(path, &contents, bytes);
        Ok(contents)
    }

    fn found(&mut self, path: &RelPath, known: Known, new: bool) {
        if new || self.how.all {
            self.findings.found.push((path.clone(), Some(known.found())));
        }
        if let Known::File(KnownFile { stat, .. }) = &known
            && stat.links > 1
            && self.cache().file(path).is_none_or(|before| before.stat != *stat)
        {
            self.linked.insert((stat.dev, stat.ino), *stat);
        }
        self.cache().set(path, Some(known));
    }

    /// It, and all below it, is no part of the workspace any more.
    fn untrack(&mut self, path: &RelPath, tell: bool) {
        let below: Vec<_> = self.cache().below(path).map(|(path, _)| path.clone()).collect();
        for path in below {
            self.cache().set(&path, None);
            self.findings.untracked.push(path);
        }
        if self.cache().get(path).is_some() || tell {
            self.cache().set(path, None);
            self.findings.untracked.push(path.clone());
        }
        self.ignored().forget_below(path);
    }

    fn gone(&mut self, path: &RelPath, tell: bool) {
        let was = self.cache().get(path).cloned();
        self.cache().set(path, None);
        if let Some(Known::File(file)) = &was
            && file.stat.size > LARGE_BYTES
        {
            self.left.insert((file.stat.dev, file.stat.ino), (path.clone(), *file));
        }
        if was.is_some() || tell {
            self.findings.found.push((path.clone(), None));
        }
    }
}

/// What a look at one name came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Folder {
        new: bool,
    },
    Other,
    Nothing,
    /// Something is there that is no part of the workspace.
    Ignored,
    /// Something is there that cannot be read now: the state before holds.
    Unknown,
}

/// By this machine's clock, the one that file times are made of.
pub fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

#[cfg(test)]
mod tests;
