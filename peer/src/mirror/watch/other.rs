//! Systems without inotify: whatever `notify` finds there.

use std::{
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};

use super::{ARRIVED, DEEP, Heard, Mark, Refused, WRITTEN};

/// Watches folders, and tells of events from a thread of its own until it is dropped.
#[derive(Debug)]
pub struct Backend {
    root: PathBuf,
    watcher: Mutex<RecommendedWatcher>,
}

impl Backend {
    /// Begins to listen; nothing is watched yet.
    ///
    /// # Errors
    /// The system's.
    pub fn new(root: &Path, tell: impl Fn(Heard<'_>) + Send + 'static) -> io::Result<Self> {
        let top = root.to_owned();
        let watcher = notify::recommended_watcher(move |event| hear(&top, event, &tell)).map_err(io::Error::other)?;
        Ok(Self { root: root.to_owned(), watcher: Mutex::new(watcher) })
    }

    /// Watches a folder (`""`: the top), without those below.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn folder(&self, path: &str) -> Result<(), Refused> {
        let full = if path.is_empty() { self.root.clone() } else { self.root.join(path) };
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        watcher.watch(&full, RecursiveMode::NonRecursive).map_err(|error| match error.kind {
            notify::ErrorKind::PathNotFound => Refused::Gone,
            _ => Refused::Unwatched,
        })
    }
}

fn hear(root: &Path, event: notify::Result<Event>, tell: &impl Fn(Heard<'_>)) {
    let Some(event) = event.ok().filter(|event| !event.need_rescan()) else { return tell(Heard::Lost) };
    let Some(mark) = mark_of(&event.kind) else { return };
    for path in &event.paths {
        let Ok(inside) = path.strip_prefix(root) else { continue };
        let Some(name) = inside.file_name() else {
            if matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))) {
                tell(Heard::Top);
            }
            continue;
        };
        match inside.parent().and_then(Path::to_str) {
            Some(folder) => tell(Heard::Name { folder, name: name.as_bytes(), mark }),
            // Somewhere in a folder that cannot be synced.
            None => tell(Heard::Lost),
        }
    }
}

/// Which events say something. Opening and reading does not.
fn mark_of(kind: &EventKind) -> Option<Mark> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Data(_)) => Some(WRITTEN),
        EventKind::Access(_) => None,
        EventKind::Create(CreateKind::File) => Some(WRITTEN),
        EventKind::Create(_) => Some(DEEP),
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Any | EventKind::Other => Some(ARRIVED),
        EventKind::Modify(_) | EventKind::Remove(_) => Some(Mark::default()),
    }
}
