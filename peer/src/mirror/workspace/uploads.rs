//! From the disk to the hub's chunks: uploads that the engine asks for, and what a first look brought there before.

use super::*;

fn lane(size: u64) -> usize {
    if size > LARGE_BYTES { LARGE } else { SMALL }
}

impl Workspace {
    pub(super) fn upload(&mut self, path: RelPath, hash: Hash) {
        if let Some(file) = self.made.remove(&path).filter(|file| file.hash == hash) {
            return self.uploaded(file);
        }
        let size = self.cache().file(&path).map_or(0, |file| file.stat.size);
        self.up_bytes.insert(path.clone(), size);
        if self.gathering.iter().all(|gathering| gathering.get(&path) != Some(&hash)) {
            self.uploads[lane(size)].push((path, hash));
        }
    }

    pub(super) fn start_uploads(&mut self) {
        let Some(chunks) = self.options.chunks.borrow().clone() else { return };
        for lane in [SMALL, LARGE] {
            if self.uploading[lane] || self.uploads[lane].is_empty() {
                continue;
            }
            let wanted = std::mem::take(&mut self.uploads[lane]);
            self.uploading[lane] = true;
            let anew = wanted.iter().filter(|(path, _)| self.replica.is_missing_chunks(path)).map(|(path, _)| path.clone()).collect();
            let (source, made) = (Source { anew, ..self.source() }, self.start_storing(chunks.clone(), Event::Uploaded { lane }));
            tokio::task::spawn_blocking(move || upload::make(source, &wanted, made));
        }
    }

    /// Whether everything that a look finds is new.
    pub(super) fn all_is_new(&self, how: How) -> bool {
        how.all && self.replica.is_caught_up() && self.replica.hub().is_empty()
    }

    /// What is read from now on goes up at once, when that can be. One at a time in each lane.
    pub(super) fn start_gathering(&mut self, lane: usize) -> Option<Gather> {
        let can = !self.is_gathering[lane] && self.stream.is_some() && !self.replica.is_paused();
        let chunks = self.options.chunks.borrow().clone().filter(|_| can)?;
        self.is_gathering[lane] = true;
        Some(Gather::new(self.source(), self.start_storing(chunks, Event::Gathered { lane })))
    }

    fn source(&self) -> Source {
        Source {
            root: self.root.clone(),
            cache: self.cache.clone(),
            store: self.store.clone(),
            keys: self.sealing.clone(),
            seed: self.seed,
            hub: self.replica.hub().clone(),
            stop: self.stop.clone(),
            anew: BTreeSet::new(),
        }
    }

    /// Stores what comes; `end` is told after everything else.
    fn start_storing(&self, chunks: Arc<dyn ChunkSource>, end: Event) -> mpsc::Sender<upload::Made> {
        let (made, receive) = mpsc::channel(upload::QUEUE);
        let asker = Asker { session: self.options.session, node: None };
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let (stored, mut told) = mpsc::channel(EVENTS);
            let pass = async {
                while let Some(stored) = told.recv().await {
                    let _ = tell.send(Event::Stored(stored)).await;
                }
            };
            tokio::join!(flight::store(chunks, asker, receive, stored), pass);
            let _ = tell.send(end).await;
        });
        made
    }

    pub(super) fn stored(&mut self, stored: Stored) {
        match stored {
            Stored::Files(files) => {
                for file in files {
                    if self.up_bytes.contains_key(&file.path) {
                        self.uploaded(file);
                    } else {
                        self.made.insert(file.path.clone(), file);
                    }
                }
            }
            Stored::Failed { path, trouble } => {
                self.no_longer_gathering(&path);
                if self.up_bytes.remove(&path).is_none() {
                    return;
                }
                if trouble.code == "changed" {
                    self.dirty.mark(path.clone(), LOOK);
                }
                self.handle(Input::UploadFailed { path, trouble });
            }
        }
    }

    fn uploaded(&mut self, file: MadeFile) {
        self.no_longer_gathering(&file.path);
        self.up_bytes.remove(&file.path);
        if let (Some(map), Entry::File { content, .. }) = (&file.map, &file.entry) {
            self.rows.map(&content.hash, Some(map));
            self.forget_map(&file.path, &content.hash);
        }
        self.handle(Input::Uploaded { path: file.path, hash: file.hash, entry: file.entry });
    }

    /// All that was gathered in a lane was told of: what the engine still waits for is uploaded the ordinary way.
    pub(super) fn gathered(&mut self, of: usize) {
        self.is_gathering[of] = false;
        for (path, hash) in std::mem::take(&mut self.gathering[of]) {
            if let Some(size) = self.up_bytes.get(&path) {
                self.uploads[lane(*size)].push((path, hash));
            }
        }
    }

    fn no_longer_gathering(&mut self, path: &RelPath) {
        self.gathering.iter_mut().for_each(|gathering| {
            gathering.remove(path);
        });
    }

    /// What is at the hub and was not asked for is spared there for a while only, and new keys are for all that is proposed from now on.
    pub(super) fn forget_made(&mut self) {
        self.made.clear();
    }

    /// Something else lies there now than what was gathered.
    pub(super) fn forget_stale(&mut self, found: &[(RelPath, Option<Found>)]) {
        if !self.made.is_empty() {
            for (path, found) in found {
                if self.made.get(path).is_some_and(|made| found.as_ref().is_none_or(|found| found.hash() != made.hash)) {
                    self.made.remove(path);
                }
            }
        }
    }

    /// A large file has a new version: how the last one was cut is of no more use.
    pub(super) fn forget_map(&mut self, path: &RelPath, new: &[u8; 32]) {
        if let Some(Entry::File { content, .. }) = self.replica.hub().get(path)
            && content.hash != *new
            && content.size > limits::CHUNK_BYTES as u64
        {
            let old = content.hash;
            self.rows.map(&old, None);
        }
    }
}
