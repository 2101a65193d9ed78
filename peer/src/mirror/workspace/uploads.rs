//! From the disk to the hub's chunks: uploads that the engine asks for, and what a first look brought there before.

use super::*;
use crate::mirror::gather::Gather;

impl Workspace {
    pub(super) fn upload(&mut self, path: RelPath, hash: Hash) {
        if let Some(file) = self.made.remove(&path).filter(|file| file.hash == hash) {
            return self.uploaded(file);
        }
        let size = self.cache().file(&path).map_or(0, |file| file.stat.size);
        self.up_bytes.insert(path.clone(), size);
        if self.gathering.get(&path) != Some(&hash) {
            self.uploads[usize::from(size > LARGE_BYTES)].push((path, hash));
        }
    }

    pub(super) fn start_uploads(&mut self) {
        let Some(chunks) = self.options.chunks.borrow().clone() else { return };
        for large in [false, true] {
            let lane = usize::from(large);
            if self.uploading[lane] || self.uploads[lane].is_empty() {
                continue;
            }
            let wanted = std::mem::take(&mut self.uploads[lane]);
            self.uploading[lane] = true;
            let (source, made) = (self.source(), self.start_storing(chunks.clone(), Event::Uploaded { large }));
            tokio::task::spawn_blocking(move || upload::make(source, &wanted, made));
        }
    }

    /// Everything that is found is new: what is read of it goes up at once.
    pub(super) fn start_gathering(&mut self, how: How) -> Option<Gather> {
        let all_is_new = how.all && !self.is_gathering && self.replica.is_caught_up() && self.replica.hub().is_empty();
        let chunks = self.options.chunks.borrow().clone().filter(|_| all_is_new)?;
        self.is_gathering = true;
        Some(Gather::new(self.source(), self.start_storing(chunks, Event::Gathered)))
    }

    fn source(&self) -> Source {
        Source {
            root: self.root.clone(),
            cache: self.cache.clone(),
            store: self.store.clone(),
            keys: self.sealing.clone(),
            seed: self.seed,
            hub: self.replica.hub().clone(),
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
            tokio::join!(upload::store(chunks, asker, receive, stored), pass);
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
                self.gathering.remove(&path);
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
        self.gathering.remove(&file.path);
        self.up_bytes.remove(&file.path);
        if let (Some(map), Entry::File { content, .. }) = (&file.map, &file.entry) {
            self.rows.map(&content.hash, Some(map));
            self.forget_map(&file.path, &content.hash);
        }
        self.handle(Input::Uploaded { path: file.path, hash: file.hash, entry: file.entry });
    }

    /// All that a look has gathered was told of: what the engine still waits for is uploaded the ordinary way.
    pub(super) fn gathered(&mut self) {
        self.is_gathering = false;
        for (path, hash) in std::mem::take(&mut self.gathering) {
            if let Some(size) = self.up_bytes.get(&path) {
                self.uploads[usize::from(*size > LARGE_BYTES)].push((path, hash));
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
