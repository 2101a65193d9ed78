//! A large file is read and cut on a thread of its own, while whoever wants its chunks hashes and seals them.
//!
//! To find where a chunk ends takes longer than to hash it. So where a chunk is found that was seen before, the one that came behind it then is tried first: when its bytes are there, it ends where
//! it ended, as where to cut depends on a chunk's own bytes alone.
//!
//! They pass in blocks: a few of them go to and fro between the two, so whatever the file's size, little of it is in memory, and no chunk is copied on its way.

use std::{
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    thread,
};

use cortex_wire::mirror::cut::{Cutter, MOST_BYTES};

use super::{
    chunks::KnownCuts,
    read::{ReadError, Reading},
};

/// Bytes of a block. What is left of one for the next is less than a chunk.
const BLOCK_BYTES: usize = 4 * MOST_BYTES;
/// Blocks on their way.
const BLOCKS: usize = 3;

/// Neighbouring chunks.
#[derive(Debug)]
pub struct Block {
    bytes: Vec<u8>,
    /// Where they end, and the hashes of those that were hashed.
    ends: Vec<(usize, Option<[u8; 32]>)>,
    /// The file ends with them.
    last: bool,
}

impl Block {
    fn new() -> Self {
        Self { bytes: vec![0; BLOCK_BYTES], ends: Vec::new(), last: false }
    }

    /// The bytes of all of them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.ends.last().map_or(0, |(end, _)| *end)]
    }

    /// One after the other, with their BLAKE3 when there were chunks to compare them with.
    pub fn chunks(&self) -> impl Iterator<Item = (&[u8], Option<[u8; 32]>)> {
        let starts = [0].into_iter().chain(self.ends.iter().map(|(end, _)| *end));
        starts.zip(&self.ends).map(|(start, (end, hash))| (&self.bytes[start..*end], *hash))
    }
}

/// Reads a file to its end and cuts it; what is `known` is looked for in it. `take` gets all blocks in their order; when it fails, nothing more is read. What was read is worth something when the reading that is given back finishes well. Blocks.
///
/// # Errors
/// [`ReadError`], or what `take` says.
pub fn each<E: From<ReadError>>(
    reading: Reading,
    cutter: &Cutter,
    known: &KnownCuts,
    mut take: impl FnMut(&Block) -> Result<(), E>,
) -> Result<Reading, E> {
    let guess = known.first().map(|cut| (cut.length as usize, cut.plain));
    let mut cutting = Cutting { reading, cutter, known, guess, rest: Vec::new() };
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
    known: &'a KnownCuts,
    /// Length and hash of what may come next.
    guess: Option<(usize, [u8; 32])>,
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
        while let Some((length, hash)) = self.cut(&block.bytes[start..filled], block.last) {
            start += length;
            block.ends.push((start, hash));
        }
        self.rest.clear();
        self.rest.extend_from_slice(&block.bytes[start..filled]);
        Ok(block)
    }

    /// The length of the first chunk of `window`, and its hash when it is of use.
    fn cut(&mut self, window: &[u8], last: bool) -> Option<(usize, Option<[u8; 32]>)> {
        if self.known.is_empty() {
            return Some((self.cutter.cut(window, last)?, None));
        }
        if window.len() < MOST_BYTES && !last {
            return None;
        }
        let hash = |length: usize| Some(*blake3::hash(window.get(..length)?).as_bytes());
        let guessed = self.guess.take().filter(|(length, plain)| hash(*length) == Some(*plain));
        let (length, plain) = match guessed {
            Some(chunk) => chunk,
            None => {
                let length = self.cutter.cut(window, last)?;
                (length, hash(length)?)
            }
        };
        self.guess = self.known.after(&plain).map(|cut| (cut.length as usize, cut.plain));
        Some((length, Some(plain)))
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
    use crate::mirror::{
        chunks::{ChunkMap, Cut},
        root::Root,
    };
    use cortex_wire::{
        id::SessionId,
        mirror::{cut::Cuts, entry::Sid},
    };

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

    /// The chunks of the format.
    fn chunks(cutter: &Cutter, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut cuts = Cuts::new(cutter.clone());
        let mut chunks = Vec::new();
        for piece in bytes.chunks(100_000).map(Some).chain([None]) {
            match piece {
                Some(piece) => {
                    cuts.space()[..piece.len()].copy_from_slice(piece);
                    cuts.filled(piece.len());
                }
                None => cuts.end(),
            }
            while let Some(chunk) = cuts.next_chunk() {
                chunks.push(chunk.to_vec());
            }
        }
        chunks
    }

    fn known(cutter: &Cutter, bytes: &[u8]) -> KnownCuts {
        let cut =
            |chunk: Vec<u8>| Cut { length: chunk.len() as u32, plain: *blake3::hash(&chunk).as_bytes(), sid: Sid([0; 32]), offset: 0 };
        KnownCuts::new(vec![ChunkMap(chunks(cutter, bytes).into_iter().map(cut).collect())])
    }

    fn is_cut_by_the_format(cutter: &Cutter, bytes: &[u8], known: &KnownCuts, what: &str) {
        let (_folder, root) = file(bytes);
        let (mut found, mut all) = (Vec::new(), Vec::new());
        let reading = each(Reading::open(root.top(), "f").unwrap(), cutter, known, |block| {
            for (chunk, hash) in block.chunks() {
                assert_eq!(hash, (!known.is_empty()).then(|| *blake3::hash(chunk).as_bytes()), "{what}");
                found.push(chunk.to_vec());
            }
            all.extend_from_slice(block.bytes());
            Ok::<_, ReadError>(())
        });
        assert_eq!(reading.unwrap().finish().unwrap().size, bytes.len() as u64);
        assert!(all == bytes, "{what}: other bytes");
        assert!(found == chunks(cutter, bytes), "{what}: other chunks");
    }

    #[test]
    fn chunks_are_those_of_the_format_whatever_the_files_size() {
        let cutter = Cutter::new([7; 8]);
        for size in [0, 1, MOST_BYTES, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES, 9 * BLOCK_BYTES + 12_345] {
            let mut bytes = noise(size);
            let middle = size / 2;
            // Zeroes have no place to cut at: chunks of the largest size.
            bytes[middle / 2..middle].fill(0);
            is_cut_by_the_format(&cutter, &bytes, &KnownCuts::default(), &size.to_string());
        }
    }

    #[test]
    fn chunks_are_those_of_the_format_whatever_is_known() {
        let cutter = Cutter::new([7; 8]);
        let mut old = noise(2 * BLOCK_BYTES + 5_000);
        old[300_000..1_700_000].fill(0);
        old.copy_within(0..200_000, 1_800_000);
        let known = known(&cutter, &old);
        let inserted = |at: usize, bytes: usize| [&old[..at], &noise(bytes + 7)[7..], &old[at..]].concat();
        let news: [(&str, Vec<u8>); 11] = [
            ("the same", old.clone()),
            ("in front", inserted(0, 1)),
            ("inside", inserted(250_000, 3)),
            ("among zeroes", inserted(1_000_000, 70_000)),
            ("appended", inserted(old.len(), 40_000)),
            ("twice", [&old[..], &old[..]].concat()),
            ("cut off", old[..1_900_001].to_vec()),
            ("without its head", old[100_001..].to_vec()),
            ("the end alone", old[old.len() - 4_000..].to_vec()),
            ("from the middle of its first chunk on", old[1..900_001].to_vec()),
            ("zeroes, and nothing else of it", old.iter().rev().copied().collect()),
        ];
        for (what, new) in news {
            is_cut_by_the_format(&cutter, &new, &known, what);
        }
    }

    #[test]
    fn whoever_takes_no_more_is_given_no_more() {
        let (_folder, root) = file(&noise(20 * BLOCK_BYTES));
        for stop_at in [1, 2, 7] {
            let mut taken = 0;
            let stopped = each(Reading::open(root.top(), "f").unwrap(), &Cutter::new([7; 8]), &KnownCuts::default(), |_| {
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
            let read = each(Reading::open(root.top(), "f").unwrap(), &Cutter::new([7; 8]), &KnownCuts::default(), |_| {
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
