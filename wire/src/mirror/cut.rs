//! Where large contents are cut, so that a change costs what it changes: bytes into chunks, and long lists of chunks into pages.
//!
//! Bytes are cut by FastCDC (v2020, 16/64/256 KiB), whose gear is seeded per session: the sizes of chunks say nothing about known files. The parameters are part of the format: other
//! ones would find none of the chunks that are there.
//!
//! A list of more than [`ENTRY_SPANS`] spans is itself cut into pages, by the names of its chunks, which are as good as random. Pages are sealed and stored like any chunk, and the list
//! of pages is cut again until it is short ([`Content`]'s `depth`). One byte in front of a gibibyte changes one page of about a hundred. [`content`] builds such a list,
//! [`Unfolding`] reads it back within bounds, whatever a stranger put into it.

use std::{borrow::Cow, fmt};

use fastcdc::v2020::{Normalization, cut_gear, get_gear_with_seed, select_masks};
use prost::Message as _;

use super::entry::{ChunkTable, Content, PAGE_DEPTH, Sid, Span, sids, spans_from_schema, spans_to_schema};
use crate::{limits, schema::SpanPage};

/// No chunk is smaller, except a content's last one.
pub const LEAST_BYTES: usize = 16 * 1024;
/// What chunks come to on average.
pub const AVERAGE_BYTES: usize = 64 * 1024;
/// No chunk is larger.
pub const MOST_BYTES: usize = limits::CHUNK_BYTES;
/// Spans that an entry may have of its own; longer lists are cut into pages.
pub const ENTRY_SPANS: usize = 256;
/// No page is shorter, except a list's last one.
const PAGE_LEAST: usize = 32;
/// A page ends after a span whose chunk's name has this many zero bits: 1 in 128.
const PAGE_BITS: u32 = 7;

/// Finds where chunks end.
#[derive(Clone)]
pub struct Cutter {
    gear: Cow<'static, [u64]>,
    gear_ls: Cow<'static, [u64]>,
    masks: (u64, u64),
}

impl Cutter {
    /// A cutter for a session: its seed, as 8 bytes.
    pub fn new(seed: [u8; 8]) -> Self {
        let (gear, gear_ls) = get_gear_with_seed(u64::from_le_bytes(seed));
        Self { gear, gear_ls, masks: select_masks(AVERAGE_BYTES, Normalization::Level1) }
    }

    /// The length of the first chunk of `window`. `None`: it takes more bytes to know. With [`MOST_BYTES`] or more in the window, or when it holds the `last` bytes there are, it is always
    /// known, unless the window is empty.
    pub fn cut(&self, window: &[u8], last: bool) -> Option<usize> {
        if window.is_empty() || (window.len() < MOST_BYTES && !last) {
            return None;
        }
        let (strict, loose) = self.masks;
        let cut =
            cut_gear(window, LEAST_BYTES, AVERAGE_BYTES, MOST_BYTES, strict, loose, strict << 1, loose << 1, &self.gear, &self.gear_ls);
        Some(cut.1)
    }
}

impl fmt::Debug for Cutter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cutter")
    }
}

/// Cuts what is read piece by piece, over one buffer: fill [`Cuts::space`], say how much with [`Cuts::filled`] or that nothing is left with [`Cuts::end`], and take chunks until
/// [`Cuts::next_chunk`] has none.
#[derive(Debug)]
pub struct Cuts {
    cutter: Cutter,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    last: bool,
}

impl Cuts {
    /// Four chunks of the largest size: reads are large, and bytes are seldom moved.
    const BUFFER_BYTES: usize = 4 * MOST_BYTES;

    /// Nothing read yet.
    pub fn new(cutter: Cutter) -> Self {
        Self { cutter, buffer: vec![0; Self::BUFFER_BYTES], start: 0, end: 0, last: false }
    }

    /// Ready for another content.
    pub fn reset(&mut self) {
        (self.start, self.end, self.last) = (0, 0, false);
    }

    /// Where to read to. Never empty once [`Cuts::next_chunk`] had nothing to give.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes were read to the beginning of the space.
    pub fn filled(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.buffer.len());
    }

    /// Everything was read.
    pub fn end(&mut self) {
        self.last = true;
    }

    /// The next chunk, or `None` when more has to be read first, or all is done.
    pub fn next_chunk(&mut self) -> Option<&[u8]> {
        let window = &self.buffer[self.start..self.end];
        let length = self.cutter.cut(window, self.last)?;
        self.start += length;
        Some(&window[..length])
    }
}

/// Makes the content of a file from the spans of its chunks: seals pages until the list is short. `seal` gets the plain bytes of each page, and keeps the sealed ones for the upload.
///
/// # Errors
/// What `seal` says.
pub fn content<E>(size: u64, hash: [u8; 32], mut spans: Vec<Span>, mut seal: impl FnMut(&[u8]) -> Result<Sid, E>) -> Result<Content, E> {
    let mut depth = 0;
    while spans.len() > ENTRY_SPANS {
        let mut pages = Vec::with_capacity(spans.len() >> PAGE_BITS);
        for page in pages_of(&spans) {
            let bytes = encode(page);
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            pages.push(Span { sid: seal(&bytes)?, offset: 0, length });
        }
        spans = pages;
        depth += 1;
    }
    Ok(Content { size, hash, depth, spans: spans.into() })
}

fn pages_of(spans: &[Span]) -> impl Iterator<Item = &[Span]> {
    let mut rest = spans;
    std::iter::from_fn(move || {
        let least = PAGE_LEAST.min(rest.len());
        let ends = |span: &Span| span.sid.0[0].trailing_zeros() >= PAGE_BITS;
        let length = rest.iter().take(limits::SPANS).skip(least.saturating_sub(1)).position(ends).map_or(limits::SPANS, |at| at + least);
        let (page, later) = rest.split_at(length.min(rest.len()));
        rest = later;
        (!page.is_empty()).then_some(page)
    })
}

fn encode(spans: &[Span]) -> Vec<u8> {
    let mut chunks = ChunkTable::default();
    let spans = spans_to_schema(spans, &mut chunks);
    SpanPage { chunks: chunks.into_schema(), spans }.encode_to_vec()
}

/// Why a content cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// A page does not decode, is empty, too long, or names what is not there.
    #[error("a page of a list of chunks is malformed")]
    BadPage,
    /// A span is empty, or reaches beyond what a chunk can hold.
    #[error("a span that no chunk can hold")]
    BadSpan,
    /// More levels of pages than any file needs.
    #[error("a list of chunks that is nested too deeply")]
    TooDeep,
    /// More spans than a file of this size is cut into, or larger than a file may be.
    #[error("a list of chunks that is too long for its file")]
    TooLong,
    /// The spans do not come to the file's size.
    #[error("chunks of {got} bytes for a file of {size}")]
    WrongSize {
        /// What they come to.
        got: u64,
        /// What the file has.
        size: u64,
    },
    /// More pages were given than asked for, or fewer.
    #[error("the pages given are not the pages asked for")]
    OutOfStep,
}

/// Reads a content's spans back, level by level: fetch what [`Unfolding::wanted`] names, give each page to [`Unfolding::page`] in that order, until nothing is wanted.
///
/// At any time it holds no more spans than a file of that size can have.
#[derive(Debug)]
pub struct Unfolding {
    size: u64,
    most: usize,
    depth: u32,
    spans: Vec<Span>,
    read: usize,
    next: Vec<Span>,
}

impl Unfolding {
    /// Begins with what the entry holds.
    ///
    /// # Errors
    /// [`ContentError`], when the content is malformed.
    pub fn new(content: &Content) -> Result<Self, ContentError> {
        if content.depth > PAGE_DEPTH {
            return Err(ContentError::TooDeep);
        }
        if content.size > limits::FILE_BYTES {
            return Err(ContentError::TooLong);
        }
        // All chunks but the last have the least size. Small files are spans of shared chunks.
        let most = usize::try_from(content.size).unwrap_or(usize::MAX).div_ceil(LEAST_BYTES);
        let mut unfolding = Self { size: content.size, most, depth: content.depth, spans: Vec::new(), read: 0, next: Vec::new() };
        unfolding.take(content.spans.iter().copied())?;
        unfolding.descend()?;
        Ok(unfolding)
    }

    /// The pages that have to be fetched, opened and given next, in order. Empty: all spans are known.
    pub fn wanted(&self) -> &[Span] {
        if self.depth == 0 { &[] } else { &self.spans[self.read..] }
    }

    /// Takes the next wanted page: the plain bytes that its span covers.
    ///
    /// # Errors
    /// [`ContentError`]; the content is of no use after one.
    pub fn page(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        if self.wanted().is_empty() {
            return Err(ContentError::OutOfStep);
        }
        let page = SpanPage::decode(bytes).map_err(|_| ContentError::BadPage)?;
        if page.spans.is_empty() || page.chunks.len() > limits::SPANS {
            return Err(ContentError::BadPage);
        }
        let spans = sids(&page.chunks).and_then(|sids| spans_from_schema(&page.spans, &sids)).map_err(|_| ContentError::BadPage)?;
        self.take(spans.into_iter())?;
        self.read += 1;
        if self.read == self.spans.len() {
            self.depth -= 1;
            self.descend()?;
        }
        Ok(())
    }

    /// The spans of the file's bytes, in order.
    ///
    /// # Errors
    /// [`ContentError::OutOfStep`] while pages are wanted.
    pub fn finish(self) -> Result<Vec<Span>, ContentError> {
        if self.depth == 0 { Ok(self.spans) } else { Err(ContentError::OutOfStep) }
    }

    fn take(&mut self, spans: impl Iterator<Item = Span>) -> Result<(), ContentError> {
        for span in spans {
            let end = u64::from(span.offset) + u64::from(span.length);
            if span.length == 0 || end > limits::CHUNK_BYTES as u64 {
                return Err(ContentError::BadSpan);
            }
            if self.next.len() >= self.most {
                return Err(ContentError::TooLong);
            }
            self.next.push(span);
        }
        Ok(())
    }

    /// The next level is complete.
    fn descend(&mut self) -> Result<(), ContentError> {
        self.spans = std::mem::take(&mut self.next);
        self.read = 0;
        if self.depth > 0 {
            // A list of nothing needs no pages.
            return if self.spans.is_empty() { Err(ContentError::BadPage) } else { Ok(()) };
        }
        let got = self.spans.iter().map(|span| u64::from(span.length)).sum();
        if got == self.size { Ok(()) } else { Err(ContentError::WrongSize { got, size: self.size }) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use proptest::prelude::*;

    const SEED: [u8; 8] = *b"a seed!!";

    fn noise(seed: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn whole(seed: [u8; 8], mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let cutter = Cutter::new(seed);
        let mut chunks = Vec::new();
        while let Some(length) = cutter.cut(bytes, true) {
            chunks.push(bytes[..length].to_vec());
            bytes = &bytes[length..];
        }
        chunks
    }

    /// As a file is read: in pieces of any size.
    fn streamed(mut bytes: &[u8], pieces: &[usize]) -> Vec<Vec<u8>> {
        let mut cuts = Cuts::new(Cutter::new(SEED));
        let (mut chunks, mut pieces) = (Vec::new(), pieces.iter().cycle());
        loop {
            while let Some(chunk) = cuts.next_chunk() {
                chunks.push(chunk.to_vec());
            }
            if bytes.is_empty() && cuts.last {
                return chunks;
            }
            let space = cuts.space();
            assert!(!space.is_empty());
            let read = (*pieces.next().unwrap()).min(space.len()).min(bytes.len());
            space[..read].copy_from_slice(&bytes[..read]);
            cuts.filled(read);
            bytes = &bytes[read..];
            if bytes.is_empty() {
                cuts.end();
            }
        }
    }

    /// Noise with runs of zeros: cuts of all sizes.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        (any::<u64>(), 0usize..1_500_000, 0usize..600_000, any::<prop::sample::Index>()).prop_map(|(seed, length, zeros, at)| {
            let mut bytes = noise(seed, length);
            let at = at.index(length + 1);
            bytes.splice(at..at, std::iter::repeat_n(0, zeros));
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn chunks_are_within_bounds_and_make_up_the_whole_however_it_is_read(bytes in bytes(), pieces in proptest::collection::vec(1usize..400_000, 1..8)) {
            let chunks = whole(SEED, &bytes);
            prop_assert_eq!(chunks.concat(), &bytes[..]);
            prop_assert!(chunks.iter().all(|chunk| chunk.len() <= MOST_BYTES));
            prop_assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.len() >= LEAST_BYTES));
            prop_assert_eq!(streamed(&bytes, &pieces), chunks);
        }

        #[test]
        fn an_insertion_changes_a_few_chunks(seed in any::<u64>(), at in any::<prop::sample::Index>(), inserted in 1usize..100) {
            let before = noise(seed, 3 << 19);
            let mut after = before.clone();
            let at = at.index(before.len());
            after.splice(at..at, noise(!seed, inserted));
            let known: HashSet<_> = whole(SEED, &before).into_iter().collect();
            let new = whole(SEED, &after).into_iter().filter(|chunk| !known.contains(chunk)).count();
            prop_assert!(new <= 8, "{new} chunks of about 24 are new");
        }

        #[test]
        fn any_bytes_are_answered_as_a_page(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let content = Content { size: 1 << 30, hash: [0; 32], depth: 1, spans: vec![span(1, 100)].into() };
            let mut unfolding = Unfolding::new(&content).unwrap();
            let _ = unfolding.page(&bytes);
        }
    }

    #[test]
    fn sessions_are_cut_differently() {
        let bytes = noise(7, 4 << 20);
        assert_ne!(whole(SEED, &bytes).len(), 0);
        let ours: HashSet<_> = whole(SEED, &bytes).into_iter().collect();
        let same = whole([3; 8], &bytes).into_iter().filter(|chunk| ours.contains(chunk)).count();
        assert!(same < ours.len() / 8, "{same} of {} chunks are the same", ours.len());
    }

    #[test]
    fn the_format_stays_what_it_is() {
        // What was cut once has to be found again.
        let sizes: Vec<_> = whole(SEED, &noise(1, 400_000)).iter().map(Vec::len).collect();
        assert_eq!(sizes, [76_992, 91_376, 80_653, 66_729, 29_078, 55_172]);
    }

    fn span(n: u64, length: u32) -> Span {
        Span { sid: Sid(*blake3::hash(&n.to_le_bytes()).as_bytes()), offset: 0, length }
    }

    #[derive(Default)]
    struct Held(HashMap<Sid, Vec<u8>>);

    impl Held {
        fn content(&mut self, spans: &[Span]) -> Content {
            let size = spans.iter().map(|span| u64::from(span.length)).sum();
            content(size, [1; 32], spans.to_vec(), |page| {
                let sid = Sid(*blake3::hash(page).as_bytes());
                self.0.insert(sid, page.to_vec());
                Ok::<_, ContentError>(sid)
            })
            .unwrap()
        }

        fn unfold(&self, content: &Content) -> Result<Vec<Span>, ContentError> {
            let mut unfolding = Unfolding::new(content)?;
            while let [wanted, ..] = unfolding.wanted() {
                let page = &self.0[&wanted.sid];
                assert_eq!((wanted.offset, wanted.length as usize), (0, page.len()));
                unfolding.page(page)?;
            }
            unfolding.finish()
        }
    }

    fn spans(count: u64) -> Vec<Span> {
        (0..count).map(|n| span(n, 65_536)).collect()
    }

    #[test]
    fn a_list_of_any_length_reads_back_as_it_was() {
        for count in [0, 1, 256, 257, 5_000, 70_000] {
            let mut held = Held::default();
            let list = spans(count);
            let content = held.content(&list);
            assert!(content.spans.len() <= ENTRY_SPANS);
            assert!(held.0.values().all(|page| page.len() <= limits::CHUNK_BYTES));
            assert_eq!(held.unfold(&content).unwrap(), list);
            assert_eq!(
                content.depth,
                match count {
                    0..=256 => 0,
                    257..=5_000 => 1,
                    _ => 2,
                }
            );
        }
    }

    #[test]
    fn a_chunk_in_front_changes_a_few_pages() {
        let (mut before, mut after) = (Held::default(), Held::default());
        let list = spans(16_384);
        before.content(&list);
        after.content(&[&[span(1 << 40, 20_000), span(2 << 40, 50_000)], &list[1..]].concat());
        let new: usize = after.0.iter().filter(|(sid, _)| !before.0.contains_key(*sid)).map(|(_, page)| page.len()).sum();
        assert!(new < 100_000, "{new} bytes of pages are new");
        assert!(before.0.len() > 50);
    }

    #[test]
    fn equal_chunks_throughout_are_cut_all_the_same() {
        let mut held = Held::default();
        let list = vec![span(1, 262_144); 65_536];
        let content = held.content(&list);
        assert_eq!(held.unfold(&content).unwrap(), list);
    }

    fn page(spans: &[Span]) -> Vec<u8> {
        encode(spans)
    }

    fn nested(depth: u32, size: u64, spans: &[Span]) -> Result<Unfolding, ContentError> {
        Unfolding::new(&Content { size, hash: [0; 32], depth, spans: spans.into() })
    }

    #[test]
    fn hostile_contents_are_refused() {
        let ok = span(1, 100);
        let refused = |result: Result<Unfolding, ContentError>| result.map(|_| ()).unwrap_err();
        assert_eq!(refused(nested(0, 99, &[ok])), ContentError::WrongSize { got: 100, size: 99 });
        assert_eq!(refused(nested(5, 100, &[ok])), ContentError::TooDeep);
        assert_eq!(refused(nested(1, 100, &[])), ContentError::BadPage);
        assert_eq!(refused(nested(0, limits::FILE_BYTES + 1, &[ok])), ContentError::TooLong);
        assert_eq!(refused(nested(0, 0, &[ok])), ContentError::TooLong);
        assert_eq!(refused(nested(0, 5, &[span(1, 0)])), ContentError::BadSpan);
        assert_eq!(refused(nested(0, 5, &[Span { offset: u32::MAX, ..ok }])), ContentError::BadSpan);
        // A million spans of one byte.
        let bytes = vec![span(1, 1); 512];
        assert_eq!(refused(nested(0, 512, &bytes)), ContentError::TooLong);
        let mut pages = nested(1, 1 << 20, &[ok, ok]).unwrap();
        assert_eq!(pages.page(&page(&bytes)), Err(ContentError::TooLong));
        assert_eq!(nested(1, 1 << 20, &[ok]).unwrap().page(&[]), Err(ContentError::BadPage));
        assert_eq!(nested(1, 1 << 20, &[ok]).unwrap().page(b"nonsense"), Err(ContentError::BadPage));
        assert_eq!(nested(1, 1 << 40, &[ok]).map(|_| ()), Err(ContentError::TooLong));
        assert_eq!(nested(1, 100, &[ok]).unwrap().finish(), Err(ContentError::OutOfStep));
        let mut short = nested(1, 100, &[ok]).unwrap();
        assert_eq!(short.page(&page(&[span(2, 7)])), Err(ContentError::WrongSize { got: 7, size: 100 }));
    }
}
