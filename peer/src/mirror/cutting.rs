//! A large file is read and cut on a thread of its own, while whoever wants its chunks hashes and seals them.
//!
//! They pass in blocks: a few of them go to and fro between the two, so whatever the file's size, little of it is in memory, and no chunk is copied on its way.

use std::{
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    thread,
};

use cortex_wire::mirror::cut::{Cutter, MOST_BYTES};

use super::read::{ReadError, Reading};

/// Bytes of a block. What is left of one for the next is less than a chunk.
const BLOCK_BYTES: usize = 4 * MOST_BYTES;
/// Blocks on their way.
const BLOCKS: usize = 3;

/// Neighbouring chunks.
#[derive(Debug)]
pub struct Block {
    bytes: Vec<u8>,
    /// Where they end.
    ends: Vec<usize>,
    /// The file ends with them.
    last: bool,
}

impl Block {
    fn new() -> Self {
        Self { bytes: vec![0; BLOCK_BYTES], ends: Vec::new(), last: false }
    }

    /// The bytes of all of them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.ends.last().copied().unwrap_or_default()]
    }

    /// One after the other.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}

/// Reads a file to its end and cuts it. `take` gets all blocks in their order; when it fails, nothing more is read. What was read is worth something when the reading that is given back finishes well. Blocks.
///
/// # Errors
/// [`ReadError`], or what `take` says.
pub fn each<E: From<ReadError>>(reading: Reading, cutter: &Cutter, mut take: impl FnMut(&Block) -> Result<(), E>) -> Result<Reading, E> {
    let mut cutting = Cutting { reading, cutter, rest: Vec::new() };
    let first = cutting.next(Block::new())?;
    if first.last {
        // So short that no thread is worth it.
        take(&first)?;
        return Ok(cutting.reading);
    }
    let (send, blocks) = sync_channel(BLOCKS);
    let (give_back, spare) = channel();
    thread::scope(|scope| {
        let read = move || cutting.all(&send, &spare);
        let reader = thread::Builder::new().name("read".into()).spawn_scoped(scope, read).map_err(ReadError::Io)?;
        // It ends when nobody takes its blocks any more: they go with this call.
        take(&first).and_then(|()| take_all(first, blocks, give_back, take))?;
        Ok(reader.join().map_err(|_| ReadError::Changed)??)
    })
}

fn take_all<E>(
    first: Block,
    blocks: Receiver<Block>,
    give_back: Sender<Block>,
    mut take: impl FnMut(&Block) -> Result<(), E>,
) -> Result<(), E> {
    // Whoever has read everything needs none.
    let _ = give_back.send(first);
    for block in blocks {
        take(&block)?;
        let _ = give_back.send(block);
    }
    Ok(())
}

/// A file that is being cut.
struct Cutting<'a> {
    reading: Reading,
    cutter: &'a Cutter,
    /// What was read and is no whole chunk yet.
    rest: Vec<u8>,
}

impl Cutting<'_> {
    fn next(&mut self, mut block: Block) -> Result<Block, ReadError> {
        let mut filled = self.rest.len();
        block.bytes[..filled].copy_from_slice(&self.rest);
        block.last = false;
        while filled < BLOCK_BYTES && !block.last {
            match self.reading.read(&mut block.bytes[filled..])? {
                0 => block.last = true,
                read => filled += read,
            }
        }
        block.ends.clear();
        let mut start = 0;
        while let Some(length) = self.cutter.cut(&block.bytes[start..filled], block.last) {
            start += length;
            block.ends.push(start);
        }
        self.rest.clear();
        self.rest.extend_from_slice(&block.bytes[start..filled]);
        Ok(block)
    }

    /// Everything behind the first block, until nobody takes it.
    fn all(mut self, send: &SyncSender<Block>, spare: &Receiver<Block>) -> Result<Reading, ReadError> {
        for number in 1.. {
            let block = if number < BLOCKS { Ok(Block::new()) } else { spare.recv() };
            let Ok(block) = block else { break };
            let block = self.next(block)?;
            let last = block.last;
            if send.send(block).is_err() || last {
                break;
            }
        }
        Ok(self.reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::root::Root;
    use cortex_wire::{id::SessionId, mirror::cut::Cuts};

    fn file(bytes: &[u8]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path(), &SessionId::new(1, [1; 10])).unwrap();
        std::fs::write(root.path().join("f"), bytes).unwrap();
        (folder, root)
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        noise
    }

    #[test]
    fn chunks_are_those_of_the_format_whatever_the_files_size() {
        let cutter = Cutter::new([7; 8]);
        for size in [0, 1, MOST_BYTES, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES, 9 * BLOCK_BYTES + 12_345] {
            let mut bytes = noise(size);
            let middle = size / 2;
            // Zeroes have no place to cut at: chunks of the largest size.
            bytes[middle / 2..middle].fill(0);
            let mut cuts = Cuts::new(cutter.clone());
            let mut expected = Vec::new();
            for piece in bytes.chunks(100_000).map(Some).chain([None]) {
                match piece {
                    Some(piece) => {
                        cuts.space()[..piece.len()].copy_from_slice(piece);
                        cuts.filled(piece.len());
                    }
                    None => cuts.end(),
                }
                while let Some(chunk) = cuts.next_chunk() {
                    expected.push(chunk.to_vec());
                }
            }
            let (_folder, root) = file(&bytes);
            let (mut chunks, mut all) = (Vec::new(), Vec::new());
            let reading = each(Reading::open(root.top(), "f").unwrap(), &cutter, |block| {
                chunks.extend(block.chunks().map(<[u8]>::to_vec));
                all.extend_from_slice(block.bytes());
                Ok::<_, ReadError>(())
            });
            assert_eq!(reading.unwrap().finish().unwrap().size, size as u64);
            assert!(all == bytes, "{size}: other bytes");
            assert!(chunks == expected, "{size}: other chunks");
        }
    }

    #[test]
    fn whoever_takes_no_more_is_given_no_more() {
        let (_folder, root) = file(&noise(20 * BLOCK_BYTES));
        for stop_at in [1, 2, 7] {
            let mut taken = 0;
            let stopped = each(Reading::open(root.top(), "f").unwrap(), &Cutter::new([7; 8]), |_| {
                taken += 1;
                if taken == stop_at { Err(ReadError::Gone) } else { Ok(()) }
            });
            assert!(matches!(stopped, Err(ReadError::Gone)), "{stopped:?}");
            assert_eq!(taken, stop_at);
        }
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_not_taken() {
        let (_folder, root) = file(&noise(6 * BLOCK_BYTES));
        let path = root.path().join("f");
        for change in ["grows", "shrinks"] {
            let mut once = true;
            let read = each(Reading::open(root.top(), "f").unwrap(), &Cutter::new([7; 8]), |_| {
                if std::mem::take(&mut once) {
                    let size = if change == "grows" { 7 } else { 2 } * BLOCK_BYTES as u64;
                    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(size).unwrap();
                }
                Ok::<_, ReadError>(())
            });
            let changed = read.and_then(Reading::finish);
            assert!(matches!(changed, Err(ReadError::Changed)), "{change}: {changed:?}");
        }
    }
}
