//! Output of one stream of a task, in a file of bounded size.
//!
//! A task may print more than anybody wants to keep. The first `head` bytes stay where they are, everything after them goes round
//! in a ring, of which the last `tail` bytes can be read. Offsets are those of the whole stream, whatever of it is still there;
//! what is not is a [`Piece::Gap`].
//!
//! The ring is a quarter larger than `tail`: a file that is opened again at a total which was recorded a little while
//! before its last write (a crash lies between) must not show newer bytes in the place of older ones.
//!
//! Nothing here waits: writes go to the page cache, [`Spool::sync`] is the caller's choice.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    path::Path,
};

use bytes::Bytes;

/// Holes that are kept apart. Above it the newest ones become one, so that a stranger who leaves holes cannot make the list grow.
const HOLES: usize = 32;

/// Output in a file. See the module's documentation.
#[derive(Debug)]
pub struct Spool {
    file: File,
    head: u64,
    tail: u64,
    total: u64,
    /// Offsets from `head` up to here were overwritten.
    floor: u64,
    /// Never written, in ascending order and apart from each other.
    holes: Vec<Range<u64>>,
}

/// What is at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes that begin there; never empty.
    Data(Bytes),
    /// Nothing is left there; the stream goes on at `next`.
    Gap {
        /// The first offset behind the gap.
        next: u64,
    },
    /// Nothing was written there yet.
    End,
}

/// What is at an offset, before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// This many bytes can be read in one go.
    Data(usize),
    /// See [`Piece::Gap`].
    Gap {
        /// The first offset behind the gap.
        next: u64,
    },
    /// See [`Piece::End`].
    End,
}

impl Spool {
    /// An empty spool in a new file (an old one is emptied) that only its owner reads.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: &Path, head: u64, tail: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        Ok(Self::over(options.open(path)?, head, tail, 0))
    }

    /// A spool that was made with the same bounds and held `total` bytes, without holes (see [`Self::with_holes`]).
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path, head: u64, tail: u64, total: u64) -> io::Result<Self> {
        Ok(Self::over(OpenOptions::new().read(true).write(true).open(path)?, head, tail, total))
    }

    fn over(file: File, head: u64, tail: u64, total: u64) -> Self {
        Self { file, head, tail, total, floor: total.saturating_sub(tail).max(head), holes: Vec::new() }
    }

    /// Puts back what [`Self::holes`] returned before the spool was closed.
    #[must_use]
    pub fn with_holes(mut self, holes: impl IntoIterator<Item = Range<u64>>) -> Self {
        for hole in holes {
            self.note_hole(hole.start, hole.end.min(self.total));
        }
        self
    }

    /// Adds bytes at the end. When that fails the total stays as it was.
    ///
    /// # Errors
    /// What the file system says.
    pub fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let end = self.total + data.len() as u64;
        // Before anything is overwritten: a failed write may have destroyed what it was to replace.
        self.floor = self.floor.max(end.saturating_sub(self.tail).min(self.total));
        let in_head = to_usize(self.head.saturating_sub(self.total)).min(data.len());
        let (head, ring) = data.split_at(in_head);
        if !head.is_empty() {
            at::write_all(&self.file, head, self.total)?;
        }
        // Of more than the tail only the end would survive.
        let ring = &ring[ring.len().saturating_sub(to_usize(self.tail))..];
        if !ring.is_empty() {
            let place = (end - ring.len() as u64 - self.head) % self.ring();
            let (first, second) = ring.split_at(to_usize(self.ring() - place).min(ring.len()));
            at::write_all(&self.file, first, self.head + place)?;
            if !second.is_empty() {
                at::write_all(&self.file, second, self.head)?;
            }
        }
        self.total = end;
        self.floor = self.floor.max(end.saturating_sub(self.tail));
        self.forget_old_holes();
        Ok(())
    }

    /// Leaves a hole up to `offset`: what belongs there is lost. Nothing happens when the spool is that long already.
    pub fn skip_to(&mut self, offset: u64) {
        if offset > self.total {
            self.note_hole(self.total, offset);
            self.total = offset;
            self.floor = self.floor.max(offset.saturating_sub(self.tail));
            self.forget_old_holes();
        }
    }

    fn note_hole(&mut self, start: u64, end: u64) {
        let full = self.holes.len() >= HOLES;
        match self.holes.last_mut() {
            _ if start >= end => {}
            Some(last) if full || last.end >= start => last.end = last.end.max(end),
            _ => self.holes.push(start..end),
        }
    }

    fn forget_old_holes(&mut self) {
        let (head, floor) = (self.head, self.floor);
        if self.holes.iter().any(|hole| hole.start >= head && hole.end <= floor) {
            self.holes.retain(|hole| hole.start < head || hole.end > floor);
        }
    }

    /// Length of the whole stream so far, lost parts included.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What was skipped and is not forgotten yet, to be recorded beside the total.
    pub fn holes(&self) -> &[Range<u64>] {
        &self.holes
    }

    /// Whether something before [`Self::total`] can no longer be read.
    pub fn truncated(&self) -> bool {
        self.floor > self.head || !self.holes.is_empty()
    }

    /// What is at `offset`, at most `max` bytes of it.
    pub fn extent(&self, offset: u64, max: usize) -> Extent {
        if offset >= self.total {
            return Extent::End;
        }
        let next = self.readable_from(offset);
        if next > offset {
            return Extent::Gap { next };
        }
        let region_end = if offset < self.head { self.head } else { offset + self.ring() - (offset - self.head) % self.ring() };
        let hole = self.holes.iter().map(|hole| hole.start).find(|start| *start > offset).unwrap_or(u64::MAX);
        let end = region_end.min(hole).min(self.total);
        Extent::Data(to_usize(end - offset).min(max))
    }

    fn readable_from(&self, mut offset: u64) -> u64 {
        loop {
            let before = offset;
            if (self.head..self.floor).contains(&offset) {
                offset = self.floor;
            }
            if let Some(hole) = self.holes.iter().find(|hole| hole.contains(&offset)) {
                offset = hole.end;
            }
            if offset == before {
                return offset.min(self.total);
            }
        }
    }

    /// Fills `into` from `offset`. The caller has asked [`Self::extent`] how much can be read.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read_exact_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let place = if offset < self.head { offset } else { self.head + (offset - self.head) % self.ring() };
        at::read_exact(&self.file, into, place)
    }

    /// At most `max` bytes from `offset`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read_at(&self, offset: u64, max: usize) -> io::Result<Piece> {
        match self.extent(offset, max) {
            Extent::Gap { next } => Ok(Piece::Gap { next }),
            Extent::End => Ok(Piece::End),
            Extent::Data(len) => {
                let mut data = vec![0; len];
                self.read_exact_at(offset, &mut data)?;
                Ok(Piece::Data(data.into()))
            }
        }
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn ring(&self) -> u64 {
        (self.tail + self.tail / 4).max(1)
    }
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(unix)]
mod at {
    use std::{fs::File, io, os::unix::fs::FileExt as _};

    pub(super) fn write_all(file: &File, data: &[u8], place: u64) -> io::Result<()> {
        file.write_all_at(data, place)
    }

    pub(super) fn read_exact(file: &File, into: &mut [u8], place: u64) -> io::Result<()> {
        file.read_exact_at(into, place)
    }
}

#[cfg(windows)]
mod at {
    use std::{fs::File, io, os::windows::fs::FileExt as _};

    pub(super) fn write_all(file: &File, mut data: &[u8], mut place: u64) -> io::Result<()> {
        while !data.is_empty() {
            let n = file.seek_write(data, place)?;
            data = &data[n..];
            place += n as u64;
        }
        Ok(())
    }

    pub(super) fn read_exact(file: &File, mut into: &mut [u8], mut place: u64) -> io::Result<()> {
        while !into.is_empty() {
            let n = file.seek_read(into, place)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            into = &mut into[n..];
            place += n as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: u64 = 16;
    const TAIL: u64 = 24;

    /// What a spool must show, kept the plain way: `None` is a byte that never came.
    #[derive(Default)]
    struct Model(Vec<Option<u8>>);

    impl Model {
        fn readable(&self, offset: usize) -> Option<u8> {
            let kept = offset < HEAD as usize || offset + TAIL as usize >= self.0.len();
            self.0[offset].filter(|_| kept)
        }
    }

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(&dir.path().join("out"), HEAD, TAIL).unwrap();
        (dir, spool)
    }

    /// Reads everything; `None` is a byte behind a gap.
    fn read_all(spool: &Spool, max: usize) -> Vec<Option<u8>> {
        let mut out = Vec::new();
        loop {
            match spool.read_at(out.len() as u64, max).unwrap() {
                Piece::Data(data) => {
                    assert!(!data.is_empty() && data.len() <= max);
                    out.extend(data.iter().map(|byte| Some(*byte)));
                }
                Piece::Gap { next } => {
                    assert!(next > out.len() as u64 && next <= spool.total());
                    out.resize(next as usize, None);
                }
                Piece::End => return out,
            }
        }
    }

    #[test]
    fn what_fits_is_read_back_whole() {
        let (_dir, mut spool) = spool();
        assert_eq!(spool.read_at(0, 8).unwrap(), Piece::End);
        spool.append(&[1; 20]).unwrap();
        spool.append(&[2; 20]).unwrap();
        assert!(!spool.truncated());
        assert_eq!(read_all(&spool, 1000), [vec![Some(1); 20], vec![Some(2); 20]].concat());
    }

    #[test]
    fn of_more_than_fits_the_head_and_the_tail_stay() {
        let (dir, mut spool) = spool();
        spool.append(&(0..=255).collect::<Vec<u8>>()).unwrap();
        assert!(spool.truncated());
        assert_eq!(spool.read_at(HEAD, 8).unwrap(), Piece::Gap { next: 256 - TAIL });
        assert_eq!(spool.read_at(255, 8).unwrap(), Piece::Data(Bytes::from_static(&[255])));
        assert!(std::fs::metadata(dir.path().join("out")).unwrap().len() <= HEAD + TAIL + TAIL / 4);
    }

    #[test]
    fn a_file_opened_at_an_earlier_total_shows_nothing_newer_in_the_place_of_older() {
        let (dir, mut spool) = spool();
        let data: Vec<u8> = (0..=200).collect();
        spool.append(&data[..150]).unwrap();
        spool.append(&data[150..150 + TAIL as usize / 4]).unwrap();
        let old = Spool::open(&dir.path().join("out"), HEAD, TAIL, 150).unwrap();
        let expected: Vec<_> = data[150 - TAIL as usize..150].iter().map(|b| Some(*b)).collect();
        assert_eq!(read_all(&old, 7)[150 - TAIL as usize..], expected);
    }

    #[test]
    fn a_write_that_fails_leaves_the_total() {
        let (dir, mut spool) = spool();
        spool.append(&[1; 100]).unwrap();
        spool.file = File::open(dir.path().join("out")).unwrap();
        assert!(spool.append(&[2; 10]).is_err());
        assert_eq!(spool.total(), 100);
        assert_eq!(read_all(&spool, 50).len(), 100);
    }

    #[test]
    fn many_holes_become_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(&dir.path().join("out"), 10_000, 10).unwrap();
        for i in 0..1_000 {
            spool.append(b"x").unwrap();
            spool.skip_to(i * 2 + 2);
        }
        assert_eq!(spool.holes().len(), HOLES);
        assert_eq!(read_all(&spool, 100).len(), 2_000);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(Vec<u8>),
        Skip(u64),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => proptest::collection::vec(any::<u8>(), 0..70).prop_map(Step::Append),
            1 => (0u64..60).prop_map(Step::Skip),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #[test]
        fn a_spool_shows_what_a_plain_list_shows(steps in proptest::collection::vec(step(), 0..24), max in 1usize..80) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out");
            let mut spool = Spool::create(&path, HEAD, TAIL).unwrap();
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Append(data) => {
                        spool.append(&data).unwrap();
                        model.0.extend(data.into_iter().map(Some));
                    }
                    Step::Skip(more) => {
                        spool.skip_to(spool.total() + more);
                        model.0.resize(model.0.len() + more as usize, None);
                    }
                    Step::Reopen => {
                        let holes = spool.holes().to_vec();
                        spool = Spool::open(&path, HEAD, TAIL, spool.total()).unwrap().with_holes(holes);
                    }
                }
                prop_assert_eq!(spool.total(), model.0.len() as u64);
                let expected: Vec<_> = (0..model.0.len()).map(|at| model.readable(at)).collect();
                prop_assert_eq!(spool.truncated(), expected.iter().any(Option::is_none));
                prop_assert_eq!(read_all(&spool, max), expected);
            }
        }
    }
}
