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
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cortex_wire::mirror::path::RelPath;
use tokio::sync::Notify;

use self::system::Backend;
use super::root::{COOKIES, OWN};

#[cfg(target_os = "linux")]
#[path = "watch/inotify.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "watch/other.rs"]
mod system;

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
    /// Its contents were written (of a folder: those of whatever is below): times that look unchanged are not to be trusted.
    pub written: bool,
    /// Whoever asks wants to hear of it even when it is as it was.
    pub tell: bool,
    /// Whether somebody who has written to it has not closed it since; `None`: nobody knows.
    pub unclosed: Option<bool>,
}

/// Of a file's contents.
const WRITTEN: Mark = Mark { deep: false, written: true, tell: false, unclosed: None };
/// Of a folder that is new.
const DEEP: Mark = Mark { deep: true, written: false, tell: false, unclosed: None };
/// Of a folder that came from elsewhere, or whose watch was away for a while: whatever is in it may have been written, and no event said so.
const ARRIVED: Mark = Mark { deep: true, written: true, tell: false, unclosed: None };

/// What the system tells.
#[derive(Debug)]
enum Heard<'a> {
    /// Something happened to a name in a folder (`""`: the top).
    Name { folder: &'a str, name: &'a [u8], mark: Mark },
    /// The workspace's folder itself was moved or removed.
    Top,
    /// There was more than is told.
    Lost,
}

/// Why a folder is not watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// It is gone, and its parent's event says so.
    Gone,
    /// The system has no more watches, or does not let us.
    Unwatched,
}

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
        known.unclosed = mark.unclosed.or(known.unclosed);
        if self.paths.len() > DIRTY_PATHS {
            *self = Self::everything();
        }
    }

    /// What is being written is read as it is.
    pub fn read_unclosed(&mut self) {
        self.paths.values_mut().for_each(|mark| mark.unclosed = None);
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

impl State {
    /// A folder has no watch. When too many have none, the top stands for all of them.
    fn leave_out(&mut self, path: &str) {
        if self.unwatched.contains("") {
            return;
        }
        if self.unwatched.len() < UNWATCHED {
            self.unwatched.insert(path.to_owned());
        } else {
            self.unwatched = [String::new()].into();
        }
    }
}

/// The events of one workspace.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    backend: Option<Backend>,
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

    fn hear(&self, heard: Heard<'_>) {
        match heard {
            Heard::Name { folder, name, mark } => self.note(folder, name, mark),
            Heard::Top => self.touch(|state| state.root_touched = true),
            Heard::Lost => {
                tracing::debug!("file events were lost; looking at everything");
                self.touch(|state| state.dirty.everything = true);
            }
        }
    }

    fn note(&self, folder: &str, name: &[u8], mark: Mark) {
        let (top, below) = folder.split_once('/').unwrap_or((folder, ""));
        if top == OWN || (folder.is_empty() && name == OWN.as_bytes()) {
            if below == COOKIES {
                self.touch_quietly(|state| {
                    if let Some(came) = std::str::from_utf8(name).ok().and_then(|name| state.cookies.get_mut(name)) {
                        *came = true;
                    }
                });
            }
            return;
        }
        let parent = if folder.is_empty() { Ok(RelPath::root()) } else { folder.parse::<RelPath>() };
        self.touch(|state| match (parent, std::str::from_utf8(name)) {
            (Ok(parent), Ok(name)) if let Ok(path) = parent.join(name) => state.dirty.mark(path, mark),
            // A name that cannot be synced: a look at its folder reports it.
            (Ok(parent), _) if !parent.is_root() => state.dirty.mark(parent, DEEP),
            _ => state.dirty.everything = true,
        });
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

impl Watch {
    /// Begins to listen; nothing is watched yet. Where the system has no more events for us, every folder counts as unwatched.
    pub fn new(root: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let hears = shared.clone();
        let backend = Backend::new(root, move |heard| hears.hear(heard));
        if let Err(error) = &backend {
            tracing::warn!(%error, "file events cannot be had; looking at everything at a slow pace instead");
        }
        Self { shared, backend: backend.ok() }
    }

    /// Watches one folder (`""`: the top), without those below.
    pub fn folder(&self, path: &str) {
        let result = self.backend.as_ref().map_or(Err(Refused::Unwatched), |backend| backend.folder(path));
        let mut state = self.shared.state();
        match result {
            Ok(()) => {
                state.unwatched.remove(path);
            }
            Err(Refused::Gone) => {}
            Err(Refused::Unwatched) => state.leave_out(path),
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
                Ok(path) => state.dirty.mark(path, ARRIVED),
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
mod storm;

#[cfg(test)]
mod tests;
