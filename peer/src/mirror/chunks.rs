//! How large files are cut, as this node has learned by cutting or by putting them together.
//!
//! With it an edit in a large file costs the chunks around it: going up, a chunk whose bytes were sealed before needs no sealing; coming down, a chunk that the old
//! file holds needs no fetching.

use std::{borrow::Borrow, collections::HashMap};

use cortex_wire::mirror::{
    entry::{Sid, Span},
    path::RelPath,
};

use super::{root::split, store::Store};

/// From so many bytes on, a file that has no last version is compared with others…
const WORTH_SEARCHING: u64 = 8 * 1024 * 1024;
/// …with so many at most…
const ALIKE: usize = 16;
/// …and so many of their chunks: some 16 GB of files, and 16 MB of memory.
const ALIKE_CHUNKS: usize = 131_072;

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Plain bytes.
    pub length: u32,
    /// BLAKE3 of the plain bytes.
    pub plain: [u8; 32],
    /// The sealed chunk.
    pub sid: Sid,
    /// Where the bytes begin in the opened chunk.
    pub offset: u32,
}

/// The chunks of one file, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChunkMap(pub Vec<Cut>);

const CUT_BYTES: usize = 72;

impl ChunkMap {
    /// Where the bytes are, in order.
    pub fn spans(&self) -> Vec<Span> {
        self.0.iter().map(|cut| Span { sid: cut.sid, offset: cut.offset, length: cut.length }).collect()
    }

    /// As a row.
    pub fn encode(&self) -> Vec<u8> {
        let mut row = Vec::with_capacity(self.0.len() * CUT_BYTES);
        for cut in &self.0 {
            row.extend_from_slice(&cut.length.to_le_bytes());
            row.extend_from_slice(&cut.offset.to_le_bytes());
            row.extend_from_slice(&cut.plain);
            row.extend_from_slice(&cut.sid.0);
        }
        row
    }

    /// From a row.
    pub fn decode(row: &[u8]) -> Option<Self> {
        let (cuts, rest) = row.as_chunks::<CUT_BYTES>();
        let cut = |row: &[u8; CUT_BYTES]| {
            Some(Cut {
                length: u32::from_le_bytes(row[..4].try_into().ok()?),
                offset: u32::from_le_bytes(row[4..8].try_into().ok()?),
                plain: row[8..40].try_into().ok()?,
                sid: Sid(row[40..].try_into().ok()?),
            })
        };
        if rest.is_empty() { cuts.iter().map(cut).collect::<Option<_>>().map(Self) } else { None }
    }
}

/// The contents of those files that are nearest to a new one's path and size, out of `files` (paths, sizes, contents): a new version often comes under a name of its own.
pub fn alike<P: Borrow<RelPath>>(path: &RelPath, size: u64, files: impl Iterator<Item = (P, u64, [u8; 32])>) -> Vec<[u8; 32]> {
    if size < WORTH_SEARCHING {
        return Vec::new();
    }
    let (folder, _) = split(path.as_str());
    let near = |other: &RelPath, other_size: u64| (split(other.as_str()).0 != folder, other_size.abs_diff(size));
    let large = files.filter(|(_, size, _)| *size >= WORTH_SEARCHING);
    let mut nearest: Vec<_> = large.map(|(other, size, content)| (near(other.borrow(), size), content)).collect();
    nearest.sort_unstable();
    nearest.dedup();
    nearest.into_iter().take(ALIKE).map(|(_, content)| content).collect()
}

/// How they are cut, as far as it is known and within reason. Blocks.
pub fn maps(store: &Store, contents: &[[u8; 32]]) -> Vec<ChunkMap> {
    let mut room = ALIKE_CHUNKS;
    let in_room = |map: &ChunkMap| {
        room = room.saturating_sub(map.0.len());
        room > 0
    };
    contents.iter().filter_map(|content| store.map(content)).take_while(in_room).collect()
}

/// The chunks of some files, to be found again in another one.
#[derive(Debug, Default)]
pub struct KnownCuts {
    cuts: Vec<Cut>,
    /// Where in `cuts`, by the hash of the plain bytes.
    at: HashMap<[u8; 32], usize>,
    /// Those that ended their files: it was not their bytes that had them cut there.
    last: Vec<usize>,
}

impl KnownCuts {
    /// Of files that are cut like this.
    pub fn new(maps: Vec<ChunkMap>) -> Self {
        let mut known = Self::default();
        for map in maps {
            known.cuts.extend(map.0);
            known.last.extend(known.cuts.len().checked_sub(1));
        }
        known.at = known.cuts.iter().enumerate().map(|(at, cut)| (cut.plain, at)).collect();
        known
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.cuts.is_empty()
    }

    /// The chunk with these bytes.
    pub fn get(&self, plain: &[u8; 32]) -> Option<&Cut> {
        self.cuts.get(*self.at.get(plain)?)
    }

    /// What a file may begin with.
    pub fn first(&self) -> Option<&Cut> {
        self.guess(0)
    }

    /// What may come behind the chunk with these bytes.
    pub fn after(&self, plain: &[u8; 32]) -> Option<&Cut> {
        let at = *self.at.get(plain)?;
        if self.last.contains(&at) { None } else { self.guess(at + 1) }
    }

    fn guess(&self, at: usize) -> Option<&Cut> {
        self.cuts.get(at).filter(|cut| cut.length > 0 && !self.last.contains(&at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(number: u8, length: u32) -> Cut {
        Cut { length, plain: [number; 32], sid: Sid([number; 32]), offset: 0 }
    }

    #[test]
    fn a_guess_is_what_came_next_and_was_not_cut_for_being_last() {
        let maps = vec![ChunkMap(vec![cut(1, 10), cut(2, 20), cut(3, 5)]), ChunkMap::default(), ChunkMap(vec![cut(4, 9)])];
        let known = KnownCuts::new(maps);
        assert_eq!((known.first(), known.get(&[3; 32])), (Some(&cut(1, 10)), Some(&cut(3, 5))));
        assert_eq!(known.after(&[1; 32]), Some(&cut(2, 20)));
        for last in [2, 3, 4, 9] {
            assert_eq!(known.after(&[last; 32]), None, "{last}");
        }
        assert_eq!(KnownCuts::new(vec![ChunkMap(vec![cut(4, 9)])]).first(), None);
        assert_eq!(KnownCuts::new(vec![ChunkMap(vec![cut(1, 0), cut(2, 1)])]).first(), None, "it would never end");
        assert!(KnownCuts::new(vec![ChunkMap::default()]).is_empty());
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let map = ChunkMap(vec![Cut { length: 1, plain: [2; 32], sid: Sid([3; 32]), offset: 4 }; 3]);
        assert_eq!(ChunkMap::decode(&map.encode()), Some(map));
        assert_eq!(ChunkMap::decode(&[0; 71]), None);
    }
}
