//! What was touched in the workspace, as the system tells it.
//!
//! Events are hints: each only marks a path as *dirty*, and a look at the disk decides what is there. So nothing is lost by an event too many, and what may
//! have been missed (the queue ran over, a folder that could not be watched) ends as a larger dirty part. The mirror's own writes are not muted either: they
//! look as expected.
//!
//! Every folder is watched by itself, before it is listed; whatever happens after the listing then has an event. Paths of the file system are given to the
//! watcher only, and the worst that a swapped link can do there is an event about nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cortex_wire::mirror::path::RelPath;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use tokio::sync::Notify;

use super::root::{COOKIES, OWN};

/// After the last event, things are given this long to come to rest…
const SETTLE: Duration = Duration::from_millis(20);
/// …but no longer than this after the first.
const SETTLE_AT_MOST: Duration = Duration::from_millis(100);
/// Beyond this a look at everything is cheaper than the list.
const DIRTY_PATHS: usize = 65_536;
/// Folders that could not be watched are remembered one by one up to this number.
const UNWATCHED: usize = 10_000;

/// How to look at a dirty path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// It is a folder that may be new: watch it, and look at all that is below.
    pub deep: bool,
    /// Its contents were written: times that look unchanged are not to be trusted.
    pub written: bool,
    /// Whoever asks wants to hear of it even when it is as it was.
    pub tell: bool,
}

/// Of a file's contents.
const WRITTEN: Mark = Mark { deep: false, written: true, tell: false };
/// Of what may be a folder with anything in it.
const DEEP: Mark = Mark { deep: true, written: false, tell: false };

/// What was touched.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Look at everything.
    pub everything: bool,
    /// Look at these.
    pub paths: BTreeMap<RelPath, Mark>,
}

impl Dirty {
    /// The whole workspace.
    pub fn everything() -> Self {
        Self { everything: true, paths: BTreeMap::new() }
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.paths.is_empty()
    }

    /// Adds a path.
    pub fn mark(&mut self, path: RelPath, mark: Mark) {
        if self.everything && !mark.written && !mark.tell {
            return;
        }
        let known = self.paths.entry(path).or_default();
        known.deep |= mark.deep;
        known.written |= mark.written;
        known.tell |= mark.tell;
        if self.paths.len() > DIRTY_PATHS {
            *self = Self::everything();
        }
    }

    /// Adds what another one holds.
    pub fn add(&mut self, other: Self) {
        self.everything |= other.everything;
        for (path, mark) in other.paths {
            self.mark(path, mark);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    dirty: Dirty,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Names of expected cookies, and whether their events have come.
    cookies: BTreeMap<String, bool>,
    /// Folders without a watch, because the system has no more.
    unwatched: BTreeSet<String>,
    root_touched: bool,
}

/// The events of one workspace.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    shared: Arc<Shared>,
    watcher: Mutex<Option<RecommendedWatcher>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, root: &Path, event: notify::Result<Event>) {
        let Ok(event) = event else {
            return self.touch(|state| state.dirty = Dirty::everything());
        };
        if event.need_rescan() {
            tracing::debug!("the queue of file events ran over; looking at everything");
            return self.touch(|state| state.dirty = Dirty::everything());
        }
        let Some(mark) = mark_of(&event.kind) else { return };
        for path in &event.paths {
            self.note(root, path, mark, &event.kind);
        }
    }

    fn note(&self, root: &Path, path: &Path, mark: Mark, kind: &EventKind) {
        let Ok(inside) = path.strip_prefix(root) else { return };
        let mut components = inside.components();
        match components.next() {
            None => {
                if matches!(kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))) {
                    self.touch(|state| state.root_touched = true);
                }
            }
            Some(Component::Normal(first)) if first == OsStr::new(OWN) => {
                let cookie = match (components.next(), components.next()) {
                    (Some(folder), Some(Component::Normal(name))) if folder.as_os_str() == OsStr::new(COOKIES) => name.to_str(),
                    _ => None,
                };
                if let Some(name) = cookie {
                    self.touch_quietly(|state| {
                        if let Some(came) = state.cookies.get_mut(name) {
                            *came = true;
                        }
                    });
                }
            }
            Some(_) => match std::str::from_utf8(inside.as_os_str().as_bytes()).ok().and_then(|text| text.parse::<RelPath>().ok()) {
                Some(path) => self.touch(|state| state.dirty.mark(path, mark)),
                // A name that cannot be synced: a look at its folder reports it.
                None => {
                    let parent = inside.ancestors().skip(1).find_map(|path| path.to_str().and_then(|text| text.parse::<RelPath>().ok()));
                    self.touch(|state| match parent {
                        Some(parent) => state.dirty.mark(parent, DEEP),
                        None => state.dirty.everything = true,
                    });
                }
            },
        }
    }

    fn touch(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let now = Instant::now();
        state.last = Some(now);
        let first = state.first.is_none();
        state.first.get_or_insert(now);
        drop(state);
        if first {
            self.news.notify_one();
        }
    }

    fn touch_quietly(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.news.notify_one();
    }
}

/// Which events say something. Opening and reading does not.
fn mark_of(kind: &EventKind) -> Option<Mark> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Data(_)) => Some(WRITTEN),
        EventKind::Access(_) => None,
        EventKind::Create(CreateKind::File) => Some(WRITTEN),
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) | EventKind::Any | EventKind::Other => Some(DEEP),
        EventKind::Modify(_) | EventKind::Remove(_) => Some(Mark::default()),
    }
}

impl Watch {
    /// Begins to listen; nothing is watched yet. Without a watcher (the system has no more of them) every folder counts as unwatched.
    pub fn new(root: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let watcher = {
            let (shared, root) = (shared.clone(), root.to_owned());
            notify::recommended_watcher(move |event| shared.hear(&root, event))
        };
        if let Err(error) = &watcher {
            tracing::warn!(%error, "file events cannot be had; looking at everything at a slow pace instead");
        }
        Self { root: root.to_owned(), shared, watcher: Mutex::new(watcher.ok()) }
    }

    /// Watches one folder (`""`: the top), without those below.
    pub fn folder(&self, path: &str) {
        let full = if path.is_empty() { self.root.clone() } else { self.root.join(path) };
        let result = match self.watcher.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(watcher) => watcher.watch(&full, RecursiveMode::NonRecursive),
            None => Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch)),
        };
        let mut state = self.shared.state();
        match result {
            Ok(()) => {
                state.unwatched.remove(path);
            }
            // It is gone again, and its parent's event says so.
            Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
            Err(_) if state.unwatched.len() < UNWATCHED => {
                state.unwatched.insert(path.to_owned());
            }
            Err(_) => {}
        }
    }

    /// Folders that are not watched.
    pub fn unwatched(&self) -> usize {
        self.shared.state().unwatched.len()
    }

    /// Marks what is not watched, for a look at a slow pace.
    pub fn mark_unwatched(&self) {
        let mut state = self.shared.state();
        if state.unwatched.is_empty() {
            return;
        }
        for path in std::mem::take(&mut state.unwatched) {
            match path.parse::<RelPath>() {
                Ok(path) => state.dirty.mark(path, DEEP),
                Err(_) => state.dirty.everything = true,
            }
        }
        drop(state);
        self.shared.touch(|_| {});
    }

    /// Marks something from within.
    pub fn mark(&self, dirty: Dirty) {
        if !dirty.is_empty() {
            self.shared.touch(|state| state.dirty.add(dirty));
        }
    }

    /// Returns when something was touched, or a cookie came.
    pub async fn news(&self) {
        self.shared.news.notified().await;
    }

    /// When what was touched has come to rest; `None`: nothing was touched.
    pub fn settles_at(&self) -> Option<Instant> {
        let state = self.shared.state();
        Some((state.last? + SETTLE).min(state.first? + SETTLE_AT_MOST))
    }

    /// Takes what was touched.
    pub fn take(&self) -> Dirty {
        let mut state = self.shared.state();
        (state.first, state.last) = (None, None);
        std::mem::take(&mut state.dirty)
    }

    /// Whether the workspace's folder itself was moved or removed since the last call.
    pub fn take_root_touched(&self) -> bool {
        std::mem::take(&mut self.shared.state().root_touched)
    }

    /// A cookie is going to be made.
    pub fn expect_cookie(&self, name: &str) {
        self.shared.state().cookies.insert(name.to_owned(), false);
    }

    /// Whether the event of a cookie has come.
    pub fn cookie_came(&self, name: &str) -> bool {
        self.shared.state().cookies.get(name).is_some_and(|came| *came)
    }

    /// Nobody waits for a cookie any more.
    pub fn forget_cookie(&self, name: &str) {
        self.shared.state().cookies.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{DataChange, RemoveKind, RenameMode};

    fn path(text: &str) -> RelPath {
        text.parse::<RelPath>().unwrap()
    }

    fn heard(kind: EventKind, paths: &[&str]) -> State {
        let shared = Shared::default();
        let event = paths.iter().fold(Event::new(kind), |event, path| event.add_path(Path::new("/w").join(path)));
        shared.hear(Path::new("/w"), Ok(event));
        shared.state.into_inner().unwrap()
    }

    #[test]
    fn writing_marks_and_reading_does_not() {
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert_eq!(heard(written, &["a/b"]).dirty.paths, [(path("a/b"), WRITTEN)].into());
        assert!(heard(EventKind::Access(AccessKind::Open(AccessMode::Any)), &["a"]).dirty.is_empty());
        assert!(heard(EventKind::Access(AccessKind::Close(AccessMode::Read)), &["a"]).dirty.is_empty());
        assert_eq!(heard(EventKind::Remove(RemoveKind::File), &["a"]).dirty.paths, [(path("a"), Mark::default())].into());
        let moved = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        assert!(heard(moved, &["a"]).dirty.paths[&path("a")].deep, "it may be a folder with anything in it");
    }

    #[test]
    fn our_own_folder_is_not_dirty_and_its_cookies_are_counted() {
        let created = EventKind::Create(CreateKind::File);
        assert!(heard(created, &[".cortex/stage/x", ".cortex", ".cortex/cookies"]).dirty.is_empty());
        let shared = Shared::default();
        shared.state().cookies.insert("7".into(), false);
        for name in ["7", "8"] {
            shared.hear(Path::new("/w"), Ok(Event::new(created).add_path(Path::new("/w/.cortex/cookies").join(name))));
        }
        assert_eq!(shared.state().cookies, [("7".to_owned(), true)].into(), "what nobody waits for is not kept");
        assert!(heard(created, &["a/.cortex/x"]).dirty.paths.contains_key(&path("a/.cortex/x")), "only the one at the top is ours");
    }

    #[test]
    fn a_name_that_is_no_text_makes_its_folder_dirty() {
        let shared = Shared::default();
        let odd = Path::new("/w/d").join(OsStr::from_bytes(b"\xff"));
        shared.hear(Path::new("/w"), Ok(Event::new(EventKind::Create(CreateKind::File)).add_path(odd)));
        assert!(shared.state().dirty.paths[&path("d")].deep);
    }

    #[test]
    fn a_queue_that_ran_over_makes_everything_dirty() {
        let shared = Shared::default();
        shared.hear(Path::new("/w"), Ok(Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan)));
        assert!(shared.state().dirty.everything);
        shared.hear(Path::new("/w"), Err(notify::Error::generic("broken")));
        assert!(shared.state().dirty.everything);
    }

    #[test]
    fn more_paths_than_are_worth_a_list_make_everything_dirty() {
        let mut dirty = Dirty::default();
        for i in 0..=DIRTY_PATHS {
            dirty.mark(path(&format!("f{i}")), Mark::default());
        }
        assert!(dirty.everything && dirty.paths.len() <= 1);
    }

    #[tokio::test]
    async fn a_write_in_a_watched_folder_is_heard_and_settles_soon() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::new(dir.path());
        watch.folder("");
        std::fs::write(dir.path().join("f"), "x").unwrap();
        tokio::time::timeout(Duration::from_secs(10), watch.news()).await.unwrap();
        let at = watch.settles_at().unwrap();
        assert!(at <= Instant::now() + SETTLE_AT_MOST);
        tokio::time::sleep_until(at.into()).await;
        assert!(watch.take().paths[&path("f")].written);
        assert!(watch.take().is_empty());
        assert_eq!(watch.settles_at(), None);
    }
}
