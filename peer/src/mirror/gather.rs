//! What is read for the first time goes up at once, so that it is read only once.
//!
//! A folder that comes to an empty workspace is all new, and so is a large file that the hub has not. What a look reads of them to hash it is cut, bundled, sealed and stored while it goes on; when
//! the engine asks for the upload, it is there already. Nobody waits for a slow network: small files that come faster than they can be sent, and a large one whose chunks are not taken
//! within [`PATIENCE`] (with all large ones after it), are left to the ordinary way.

use std::time::Duration;

use cortex_wire::{
    limits,
    mirror::{entry::Hash, path::RelPath},
};
use tokio::sync::mpsc;

use super::{
    read::{Contents, ReadError, Reading},
    upload::{Made, Maker, Source},
};

/// A network that brings less than some 16 MB/s is slow.
const PATIENCE: Duration = Duration::from_millis(250);
/// Messages that one more file can cause.
const ROOM: usize = 4;

/// Takes what a look reads.
pub struct Gather {
    maker: Maker,
    taken: Vec<(RelPath, Hash)>,
}

impl Gather {
    /// `tell` gets what is made of it.
    pub fn new(source: Source, tell: mpsc::Sender<Made>) -> Self {
        Self { maker: Maker::new(source, tell, Some(PATIENCE)), taken: Vec::new() }
    }

    /// A file was read, and these are its bytes.
    pub fn take(&mut self, path: &RelPath, contents: &Contents, bytes: &[u8]) {
        if bytes.len() <= limits::CHUNK_BYTES
            && self.maker.room() >= ROOM
            && let Some(hash) = self.maker.take(path, contents, bytes)
        {
            self.taken.push((path.clone(), hash));
        }
    }

    /// Reads a file that is larger than a chunk. Returns where it lies then, too: it may have been renamed meanwhile.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&mut self, path: &RelPath, reading: Reading) -> Result<(Contents, RelPath), ReadError> {
        let (contents, now, hash) = self.maker.read(path, reading)?;
        self.taken.extend(hash.map(|hash| (now.clone(), hash)));
        Ok((contents, now))
    }

    /// What was taken since this was asked last: each of them will be told of, as stored or failed.
    pub fn taken(&mut self) -> Vec<(RelPath, Hash)> {
        std::mem::take(&mut self.taken)
    }

    /// Sends the rest. Waits for the network.
    pub fn finish(self) {
        self.maker.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use cortex_wire::{
        id::SessionId,
        mirror::{entry::Entry, seal::Keys},
    };

    use super::*;
    use crate::mirror::{
        root::Root,
        store::{Rows, Store},
        upload::MadeFile,
    };

    fn source(folder: &std::path::Path) -> Source {
        let session = SessionId::new(1, [1; 10]);
        let mut keys = Keys::new(session);
        keys.insert(1, &[1; 32]);
        Source {
            root: Arc::new(Root::open(folder, &session).unwrap()),
            cache: Arc::default(),
            store: Arc::new(Store::open(&folder.join("state")).unwrap().0),
            keys: Arc::new(keys),
            seed: [1; 8],
            hub: cortex_wire::mirror::tree::Tree::default(),
            anew: std::collections::BTreeSet::new(),
            stop: Arc::default(),
        }
    }

    fn noise(seed: usize, bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
        noise
    }

    /// Reads a file of that name. Returns how many chunks were made, and the file.
    fn gathered(source: Source, name: &str) -> (usize, MadeFile) {
        let root = source.root.clone();
        let (tell, mut told) = mpsc::channel(4_096);
        let mut gather = Gather::new(source, tell);
        let (contents, now) = gather.read(&name.parse().unwrap(), Reading::open(root.top(), name).unwrap()).unwrap();
        assert_eq!(gather.taken(), [(now, contents.file_hash())]);
        drop(gather);
        let (mut chunks, mut file) = (0, None);
        while let Ok(made) = told.try_recv() {
            match made {
                Made::Chunk { .. } => chunks += 1,
                Made::Files(mut files) => file = files.pop(),
                Made::Failed { .. } => panic!("{made:?}"),
            }
        }
        (chunks, file.unwrap())
    }

    #[tokio::test]
    async fn of_a_large_file_that_is_new_only_that_is_sealed_which_a_similar_one_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = source(folder.path());
        let (path, store) = (source.root.path().to_owned(), source.store.clone());
        let bytes = noise(1, 12 << 20);
        std::fs::write(path.join("old.img"), &bytes).unwrap();
        let (chunks, old) =
            gathered(Source { root: source.root.clone(), ..self::source(folder.path().join("other").as_path()) }, "old.img");
        assert!(chunks > 50, "{chunks}");
        let Entry::File { content, .. } = &old.entry else { panic!("{old:?}") };
        let mut rows = Rows::default();
        rows.map(&content.hash, old.map.as_ref());
        store.write(rows).await.unwrap().unwrap();
        source.hub.put(&"old.img".parse().unwrap(), old.entry.clone()).unwrap();
        std::fs::write(path.join("new.part"), [b"a head", &bytes[..]].concat()).unwrap();
        let (chunks, new) = gathered(source, "new.part");
        assert!(chunks < 10, "{chunks}");
        let map = new.map.unwrap().0;
        assert_eq!(map.iter().map(|cut| u64::from(cut.length)).sum::<u64>(), 6 + (12 << 20));
        assert!(map.iter().filter(|cut| old.map.as_ref().unwrap().0.contains(cut)).count() > map.len() - 5);
    }

    #[tokio::test]
    async fn a_network_that_takes_nothing_is_waited_for_once() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let root = source.root.clone();
        let names: Vec<String> = (0..20).map(|number| format!("large-{number}")).collect();
        for (number, name) in names.iter().enumerate() {
            std::fs::write(root.path().join(name), noise(number, 4 << 20)).unwrap();
        }
        let (tell, _nobody_reads) = mpsc::channel(1);
        let gathering = tokio::task::spawn_blocking(move || {
            let mut gather = Gather::new(source, tell);
            let since = Instant::now();
            for name in &names {
                let path: RelPath = name.parse().unwrap();
                let expected = *blake3::hash(&std::fs::read(root.path().join(name)).unwrap()).as_bytes();
                let (contents, _) = gather.read(&path, Reading::open(root.top(), name).unwrap()).unwrap();
                assert_eq!(contents.hash, expected, "it is read all the same");
            }
            (gather.taken(), since.elapsed())
        });
        let (taken, elapsed) = gathering.await.unwrap();
        assert_eq!(taken, [], "nothing is said to be on its way");
        assert!(elapsed < PATIENCE * 12, "each file was waited for: {elapsed:?}");
    }
}
