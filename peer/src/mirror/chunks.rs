//! How large files are cut, as this node has learned by cutting or by putting them together.
//!
//! With it an edit in a large file costs the chunks around it: going up, a chunk whose bytes were sealed before needs no sealing; coming down, a chunk that the old
//! file holds needs no fetching.

use cortex_wire::mirror::entry::Sid;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let map = ChunkMap(vec![Cut { length: 1, plain: [2; 32], sid: Sid([3; 32]), offset: 4 }; 3]);
        assert_eq!(ChunkMap::decode(&map.encode()), Some(map));
        assert_eq!(ChunkMap::decode(&[0; 71]), None);
    }
}
