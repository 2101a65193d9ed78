//! Linux: one inotify watch for each folder, known by its number.
//!
//! A watch belongs to a folder and not to its name: it goes along when the folder is moved, lives as long as anybody holds the folder open, and its number is never given again.
//! So two tables say which number stands for which path, and three rules keep them right however late an event is read:
//!
//! - A folder that is watched again under another path is known by the new one from then on. Its events that are still to be read are told of the new path, which is where what they speak of lies now.
//! - A path has one number. When another folder is watched there, the watch of the one before ends. If that one was moved, it is found and watched again where it went, because
//!   its arrival there is an event (or the loss of one) too.
//! - A watch that ends while its path is still in the table, for whatever reason, makes that path dirty: then it is looked at, and what lies there now is watched again.
//!
//! Reading an event, finding its path and noting it is one step under the tables' lock, and so is watching a folder. A folder is listed after it is watched, so what an event of the time before may have
//! said of another path is seen in the listing.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fs::inotify::{CreateFlags, Event, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch},
    io::Errno,
};

use super::{ARRIVED, DEEP, Heard, Mark, Refused, WRITTEN};
use crate::mirror::root::split;

/// Read at once: some 2,000 events.
const BUFFER_BYTES: usize = 64 * 1024;
/// After an error that should not be.
const PAUSE: Duration = Duration::from_secs(10);
/// What is heard of in a folder. Opening, reading and listing are not.
const IN_FOLDER: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW);
/// What is heard of the top itself. Of all others their parents tell.
const OF_TOP: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

/// Watches folders, and tells of events from a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Backend {
    root: PathBuf,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    inotify: OwnedFd,
    stop: OwnedFd,
    table: Mutex<Table>,
}

/// Which number stands for which folder. Paths are relative to the top, which is `""`.
#[derive(Debug, Default)]
struct Table {
    paths: HashMap<i32, String>,
    numbers: BTreeMap<String, i32>,
}

impl Table {
    /// A folder is at this path now. Returns the watch of another one that was there before.
    fn place(&mut self, path: &str, number: i32) -> Option<i32> {
        if let Some(before) = self.paths.insert(number, path.to_owned())
            && before != path
        {
            self.numbers.remove(&before);
        }
        let other = self.numbers.insert(path.to_owned(), number).filter(|other| *other != number)?;
        self.paths.remove(&other);
        Some(other)
    }

    /// This watch is no more. Returns where it was.
    fn remove(&mut self, number: i32) -> Option<String> {
        let path = self.paths.remove(&number)?;
        self.numbers.remove(&path);
        Some(path)
    }

    /// The watches of a folder and of all below it, which are no longer known.
    fn take(&mut self, path: &str) -> Vec<i32> {
        // '0' follows '/'.
        let below = self.numbers.range(format!("{path}/")..format!("{path}0")).map(|(_, number)| *number);
        let numbers: Vec<i32> = self.numbers.get(path).copied().into_iter().chain(below).collect();
        for number in &numbers {
            self.remove(*number);
        }
        numbers
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It may have ended by itself.
    fn end(&self, number: i32) {
        let _ = remove_watch(&self.inotify, number);
    }

    fn listen(&self, tell: &impl Fn(Heard<'_>)) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let mut waiting = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut waiting, None) {
                Ok(_) if !waiting[1].revents().is_empty() => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    say(error, tell);
                    continue;
                }
            }
            let mut table = self.table();
            loop {
                match reader.next() {
                    Ok(event) => self.hear(&mut table, &event, tell),
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(error) => {
                        say(error, tell);
                        break;
                    }
                }
                if reader.is_buffer_empty() {
                    break;
                }
            }
        }
    }

    fn hear(&self, table: &mut Table, event: &Event<'_>, tell: &impl Fn(Heard<'_>)) {
        let what = event.events();
        if what.intersects(ReadFlags::QUEUE_OVERFLOW | ReadFlags::UNMOUNT) {
            return tell(Heard::Lost);
        }
        if what.contains(ReadFlags::IGNORED) {
            if let Some(path) = table.remove(event.wd()) {
                tell(ended(&path));
            }
            return;
        }
        let Some(folder) = table.paths.get(&event.wd()).cloned() else { return };
        let Some(name) = event.file_name().map(|name| name.to_bytes()) else {
            if folder.is_empty() && what.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
                tell(Heard::Top);
            }
            return;
        };
        let is_folder = what.contains(ReadFlags::ISDIR);
        if is_folder
            && what.contains(ReadFlags::MOVED_FROM)
            && let Ok(name) = std::str::from_utf8(name)
        {
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            table.take(&path).into_iter().for_each(|number| self.end(number));
        }
        if let Some(mark) = mark_of(what, is_folder) {
            tell(Heard::Name { folder: &folder, name, mark });
        }
    }
}

/// Where a watch has ended, nobody knows what has happened since.
fn ended(path: &str) -> Heard<'_> {
    if path.is_empty() {
        return Heard::Top;
    }
    let (folder, name) = split(path);
    Heard::Name { folder, name: name.as_bytes(), mark: ARRIVED }
}

/// Then only a look at everything tells. What is wrong may be over in a moment, or stay.
fn say(error: Errno, tell: &impl Fn(Heard<'_>)) {
    tracing::error!(%error, "file events cannot be read");
    tell(Heard::Lost);
    std::thread::sleep(PAUSE);
}

fn mark_of(what: ReadFlags, is_folder: bool) -> Option<Mark> {
    if what.intersects(ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO) {
        return Some(if is_folder { ARRIVED } else { Mark { unclosed: Some(false), ..Mark::default() } });
    }
    if what.contains(ReadFlags::CREATE) {
        // Of a file's first write there is another event; a link has none.
        return Some(if is_folder { DEEP } else { Mark::default() });
    }
    if what.contains(ReadFlags::CLOSE_WRITE) {
        return Some(Mark { unclosed: Some(false), ..WRITTEN });
    }
    if what.contains(ReadFlags::MODIFY) {
        return Some(Mark { unclosed: Some(true), ..WRITTEN });
    }
    what.intersects(ReadFlags::ATTRIB | ReadFlags::DELETE).then(Mark::default)
}

impl Backend {
    /// Begins to listen; nothing is watched yet.
    ///
    /// # Errors
    /// The system's: it may have no more of them for this user.
    pub fn new(root: &Path, tell: impl Fn(Heard<'_>) + Send + 'static) -> io::Result<Self> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let inner = Arc::new(Inner { inotify, stop, table: Mutex::default() });
        let listening = inner.clone();
        std::thread::Builder::new().name("file events".into()).spawn(move || listening.listen(&tell))?;
        Ok(Self { root: root.to_owned(), inner })
    }

    /// Watches a folder (`""`: the top), without those below.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn folder(&self, path: &str) -> Result<(), Refused> {
        let (full, what) = if path.is_empty() { (self.root.clone(), IN_FOLDER | OF_TOP) } else { (self.root.join(path), IN_FOLDER) };
        let mut table = self.inner.table();
        match add_watch(&self.inner.inotify, &full, what) {
            Ok(number) => {
                if let Some(other) = table.place(path, number) {
                    self.inner.end(other);
                }
                Ok(())
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(Refused::Gone),
            Err(_) => Err(Refused::Unwatched),
        }
    }

    /// Nothing is read while `work` goes on.
    #[cfg(test)]
    pub fn while_nobody_listens(&self, work: impl FnOnce()) {
        let _table = self.inner.table();
        work();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.inner.stop, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Place(usize, i32),
        Remove(i32),
        Take(usize),
    }

    const PATHS: [&str; 6] = ["", "a", "a-b", "a/b", "a/b/c", "b"];

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..PATHS.len(), 1..8).prop_map(|(path, number)| Step::Place(path, number)),
            1 => (1..8).prop_map(Step::Remove),
            1 => (1..PATHS.len()).prop_map(Step::Take),
        ]
    }

    proptest! {
        #[test]
        fn a_number_has_one_path_and_a_path_one_number(steps in prop::collection::vec(step(), 0..60)) {
            let mut table = Table::default();
            for step in steps {
                match step {
                    Step::Place(path, number) => {
                        let other = table.place(PATHS[path], number);
                        prop_assert!(other != Some(number) && table.numbers[PATHS[path]] == number);
                    }
                    Step::Remove(number) => {
                        table.remove(number);
                        prop_assert!(!table.paths.contains_key(&number));
                    }
                    Step::Take(path) => {
                        table.take(PATHS[path]);
                        let below = format!("{}/", PATHS[path]);
                        prop_assert!(!table.numbers.keys().any(|there| there == PATHS[path] || there.starts_with(&below)));
                    }
                }
                let turned: BTreeMap<String, i32> = table.paths.iter().map(|(number, path)| (path.clone(), *number)).collect();
                prop_assert_eq!(&turned, &table.numbers);
                prop_assert_eq!(turned.len(), table.paths.len());
            }
        }
    }
}
