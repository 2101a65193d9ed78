//! What a first look reads goes up at once, so that it is read only once.
//!
//! A folder that comes to an empty workspace is all new. Every small file that a look reads to hash it is bundled, sealed and stored while the look goes on; when the engine asks
//! for its upload, it is there already. A look never waits for the network: what comes faster than it can be sent is left to the ordinary way.

use cortex_wire::{
    limits,
    mirror::{entry::Hash, path::RelPath},
};
use tokio::sync::mpsc;

use super::{
    read::Contents,
    upload::{Made, Maker, Source},
};

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
        Self { maker: Maker::new(source, tell), taken: Vec::new() }
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

    /// What was taken since this was asked last: each of them will be told of, as stored or failed.
    pub fn taken(&mut self) -> Vec<(RelPath, Hash)> {
        std::mem::take(&mut self.taken)
    }

    /// Sends the rest. Waits for the network.
    pub fn finish(self) {
        self.maker.finish();
    }
}
