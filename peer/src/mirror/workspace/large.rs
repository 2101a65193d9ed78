//! Large files that a look found, read one at a time.

use super::*;
use crate::mirror::large;

impl Workspace {
    /// Whether some that were found are still to be read, or to be looked at after that.
    pub(super) fn reads_large_files(&self) -> bool {
        self.reading.is_some() || !self.to_read.is_empty() || !self.read_files.is_empty()
    }

    pub(super) fn is_to_be_read(&self, path: &RelPath) -> bool {
        self.reading.as_ref() == Some(path) || self.to_read.contains_key(path)
    }

    /// A look has found it. One that changes all the time is read at its own pace.
    pub(super) fn is_large(&mut self, path: &RelPath, written: bool) {
        if self.hot.get_mut(path).is_none_or(|hot| std::mem::take(&mut hot.due)) {
            *self.to_read.entry(path.clone()).or_default() |= written;
        }
        self.say_hot(path);
    }

    pub(super) fn start_reading(&mut self) {
        if self.reading.is_some() || self.root_gone {
            return;
        }
        let Some((path, _)) = self.to_read.pop_first() else { return };
        self.reading = Some(path.clone());
        let mut gather = if self.is_news(&path) { self.start_gathering(LARGE) } else { None };
        let (root, stop, tell) = (self.root.clone(), self.stop.clone(), self.tell.clone());
        tokio::task::spawn_blocking(move || {
            let file = large::read(&root, &path, &stop, gather.as_mut());
            let gathered = gather.as_mut().map(Gather::taken).unwrap_or_default();
            let _ = tell.blocking_send(Event::Read { path, file, gathered });
            if let Some(gather) = gather {
                gather.finish();
            }
        });
    }

    /// Whether what would be sent of a file is news to the hub: it has none there, or one of which it is known here how it is cut.
    fn is_news(&self, path: &RelPath) -> bool {
        match self.replica.hub().get(path) {
            Some(Entry::File { content, .. }) => self.store.map(&content.hash).is_some(),
            _ => true,
        }
    }

    pub(super) fn was_read(&mut self, path: RelPath, file: Result<(RelPath, KnownFile), ReadError>, gathered: Vec<(RelPath, Hash)>) {
        self.reading = None;
        self.gathering[LARGE].extend(gathered);
        match file {
            Ok((now, file)) => {
                // Found there since, and not written: it is this one.
                if now != path && self.to_read.get(&now) == Some(&false) {
                    self.to_read.remove(&now);
                }
                self.read_files.put(now.clone(), file);
                self.dirty.mark(now, LOOK);
            }
            Err(ReadError::Changed) => self.is_hot(path),
            Err(ReadError::Gone) => self.dirty.mark(path, LOOK),
            Err(ReadError::Io(error)) => {
                let trouble = walk::Trouble { path: path.to_string(), code: "unreadable", message: format!("cannot be read: {error}") };
                self.troubles.insert(path.to_string(), trouble);
            }
        }
    }
}
