//! What is read for the first time goes up at once, so that it is read only once.
//!
//! A folder that comes to an empty workspace is all new, and so is a large file that the hub has not. What a look reads of them to hash it is cut, bundled, sealed and stored while it goes on; when
//! the engine asks for the upload, it is there already. Nobody waits for a slow network: small files that come faster than they can be sent, and a large one whose chunks are not taken
//! within [`PATIENCE`], are left to the ordinary way.

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

    /// Reads a file that is larger than a chunk.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&mut self, path: &RelPath, reading: Reading) -> Result<Contents, ReadError> {
        let (contents, hash) = self.maker.read(path, reading)?;
        self.taken.extend(hash.map(|hash| (path.clone(), hash)));
        Ok(contents)
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
