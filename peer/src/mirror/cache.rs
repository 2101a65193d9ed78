//! What lay on this node's disk when it was last looked at.
//!
//! With it a look costs a `stat` instead of a read, and an apply can tell whether a file is still what it was taken for. It is a cache and no truth: losing
//! a row costs a hash.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use cortex_wire::mirror::{entry::Hash, path::RelPath, replica::Found};

use super::{
    read::{Contents, is_clean},
    root::Stat,
};

/// A path as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// A file.
    File(KnownFile),
    /// A folder.
    Directory,
    /// A link, with its target.
    Symlink(Arc<str>),
}

/// A file as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownFile {
    /// As it looked before and after it was read.
    pub stat: Stat,
    /// When, in nanoseconds since the epoch.
    pub looked_at_ns: i64,
    /// BLAKE3 of its bytes.
    pub content: [u8; 32],
}

impl KnownFile {
    /// What was read at that time.
    pub fn new(contents: &Contents, looked_at_ns: i64) -> Self {
        Self { stat: contents.stat, looked_at_ns, content: contents.hash }
    }

    /// Whether a file that looks like this still holds the same for certain.
    pub fn vouches_for(&self, stat: &Stat) -> bool {
        self.stat == *stat && is_clean(&self.stat, self.looked_at_ns)
    }
}

impl Known {
    /// The same for the engine.
    pub fn found(&self) -> Found {
        match self {
            Self::File(file) => Found::File { size: file.stat.size, hash: file.content, executable: file.stat.is_executable() },
            Self::Directory => Found::Directory,
            Self::Symlink(target) => Found::Symlink(target.clone()),
        }
    }

    /// The hash of the entry.
    pub fn hash(&self) -> Hash {
        self.found().hash()
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Directory => vec![b'd'],
            Self::Symlink(target) => [b"l", target.as_bytes()].concat(),
            Self::File(KnownFile { stat, looked_at_ns, content }) => {
                let mut row = Vec::with_capacity(89);
                row.push(b'f');
                for number in [stat.dev, stat.ino, stat.size] {
                    row.extend_from_slice(&number.to_le_bytes());
                }
                for time in [stat.mtime_ns, stat.ctime_ns, *looked_at_ns] {
                    row.extend_from_slice(&time.to_le_bytes());
                }
                row.extend_from_slice(&stat.mode.to_le_bytes());
                row.extend_from_slice(&stat.links.to_le_bytes());
                row.extend_from_slice(content);
                row
            }
        }
    }

    fn decode(row: &[u8]) -> Option<Self> {
        let (kind, rest) = row.split_first()?;
        match (kind, rest.len()) {
            (b'd', 0) => Some(Self::Directory),
            (b'l', _) => Some(Self::Symlink(std::str::from_utf8(rest).ok()?.into())),
            (b'f', 88) => {
                let word = |at: usize| rest[at * 8..at * 8 + 8].try_into().map(u64::from_le_bytes).ok();
                let stat = Stat {
                    dev: word(0)?,
                    ino: word(1)?,
                    size: word(2)?,
                    mtime_ns: word(3)?.cast_signed(),
                    ctime_ns: word(4)?.cast_signed(),
                    mode: u32::from_le_bytes(rest[48..52].try_into().ok()?),
                    links: u32::from_le_bytes(rest[52..56].try_into().ok()?),
                };
                let content = rest[56..].try_into().ok()?;
                Some(Self::File(KnownFile { stat, looked_at_ns: word(5)?.cast_signed(), content }))
            }
            _ => None,
        }
    }
}

/// Everything that was seen, by path.
#[derive(Debug, Default)]
pub struct Cache {
    known: BTreeMap<RelPath, Known>,
    changed: BTreeSet<RelPath>,
    /// Of contents that were seen: some of them may be gone. Made anew when most are.
    contents: HashSet<u64>,
}

/// Room for contents that are gone, beside as many as there are paths.
const GONE_CONTENTS: usize = 4_096;

/// The beginning of a hash is as good as all of it, for something that is looked up afterwards.
fn short(content: &[u8; 32]) -> u64 {
    content.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

impl Cache {
    /// Takes over rows of [`Cache::take_changes`]. Those that cannot be read are left out.
    pub fn load(rows: impl IntoIterator<Item = (RelPath, Vec<u8>)>) -> Self {
        let known = rows.into_iter().filter_map(|(path, row)| Some((path, Known::decode(&row)?))).collect();
        let mut cache = Self { known, ..Self::default() };
        cache.note_contents();
        cache
    }

    /// Other names of these files (by device and inode, and as they look now) that were seen when the files looked different. Looks through everything.
    pub fn stale_names(&self, files: &HashMap<(u64, u64), Stat>) -> Vec<RelPath> {
        let stale = |known: &Known| match known {
            Known::File(file) => files.get(&(file.stat.dev, file.stat.ino)).is_some_and(|stat| file.stat != *stat),
            _ => false,
        };
        self.known.iter().filter(|(_, known)| stale(known)).map(|(path, _)| path.clone()).collect()
    }

    fn note_contents(&mut self) {
        let files = self.known.values().filter_map(|known| if let Known::File(file) = known { Some(short(&file.content)) } else { None });
        self.contents = files.collect();
    }

    /// Whether some file may have these contents. When not, none has.
    pub fn may_hold(&self, content: &[u8; 32]) -> bool {
        self.contents.contains(&short(content))
    }

    /// What was seen there.
    pub fn get(&self, path: &RelPath) -> Option<&Known> {
        self.known.get(path)
    }

    /// The file that was seen there.
    pub fn file(&self, path: &RelPath) -> Option<&KnownFile> {
        match self.known.get(path) {
            Some(Known::File(file)) => Some(file),
            _ => None,
        }
    }

    /// Notes what was seen there.
    pub fn set(&mut self, path: &RelPath, known: Option<Known>) {
        if let Some(Known::File(file)) = &known
            && self.contents.insert(short(&file.content))
            && self.contents.len() > 2 * self.known.len() + GONE_CONTENTS
        {
            self.note_contents();
            self.contents.insert(short(&file.content));
        }
        let same = match known {
            None => self.known.remove(path).is_none(),
            Some(known) => match self.known.get_mut(path) {
                Some(before) if *before == known => true,
                Some(before) => {
                    *before = known;
                    false
                }
                None => {
                    self.known.insert(path.clone(), known);
                    false
                }
            },
        };
        if !same {
            self.changed.insert(path.clone());
        }
    }

    /// What was seen there may be something else by now, whatever its times say.
    pub fn distrust(&mut self, path: &RelPath) {
        if let Some(Known::File(file)) = self.known.get_mut(path)
            && file.looked_at_ns != 0
        {
            file.looked_at_ns = 0;
            self.changed.insert(path.clone());
        }
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&RelPath, &Known)> {
        self.known.iter()
    }

    /// Everything below a folder, in order, without the folder.
    pub fn below<'a>(&'a self, folder: &'a RelPath) -> impl Iterator<Item = (&'a RelPath, &'a Known)> {
        let from = Bound::Excluded(folder.clone());
        self.known.range((from, Bound::Unbounded)).take_while(move |(path, _)| path.starts_with(folder))
    }

    /// How many paths were seen.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Rows to keep: what changed since the last call.
    pub fn take_changes(&mut self) -> Vec<(RelPath, Option<Vec<u8>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .into_iter()
            .map(|path| {
                let row = self.known.get(&path).map(Known::encode);
                (path, row)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> RelPath {
        text.parse().unwrap()
    }

    #[test]
    fn contents_are_found_and_those_that_are_gone_do_not_pile_up() {
        let stat = Stat { dev: 1, ino: 1, size: 1, mtime_ns: 5, ctime_ns: 5, mode: 0o100_644, links: 1 };
        let content = |number: u32| *blake3::hash(&number.to_le_bytes()).as_bytes();
        let file = |number| Some(Known::File(KnownFile { stat, looked_at_ns: 9, content: content(number) }));
        let mut cache = Cache::default();
        cache.set(&path("first"), file(0));
        (1..20_000).for_each(|number| cache.set(&path("a"), file(number)));
        assert!(cache.may_hold(&content(0)) && cache.may_hold(&content(19_999)));
        assert!(cache.contents.len() <= GONE_CONTENTS + 5, "{}", cache.contents.len());
        assert!(!cache.may_hold(&content(1)) && !cache.may_hold(&content(20_000)));
    }

    #[test]
    fn other_names_of_a_file_are_found_until_they_look_the_same() {
        let mut cache = Cache::default();
        let stat = |ino, ctime_ns, links| Stat { dev: 1, ino, size: 1, mtime_ns: 5, ctime_ns, mode: 0o100_644, links };
        let file = |stat| Some(Known::File(KnownFile { stat, looked_at_ns: 9, content: [0; 32] }));
        cache.set(&path("a"), file(stat(7, 1, 1)));
        cache.set(&path("b"), file(stat(7, 2, 2)));
        cache.set(&path("c"), file(stat(8, 1, 1)));
        let now = HashMap::from([((1, 7), stat(7, 2, 2))]);
        assert_eq!(cache.stale_names(&now), [path("a")]);
        cache.set(&path("a"), file(stat(7, 2, 2)));
        assert!(cache.stale_names(&now).is_empty());
    }

    fn known() -> impl Strategy<Value = Known> {
        let file = (any::<[u64; 3]>(), any::<[i64; 3]>(), any::<[u32; 2]>(), any::<[u8; 32]>()).prop_map(
            |(numbers, times, [mode, links], content)| {
                let [dev, ino, size] = numbers;
                let stat = Stat { dev, ino, size, mtime_ns: times[0], ctime_ns: times[1], mode, links };
                Known::File(KnownFile { stat, looked_at_ns: times[2], content })
            },
        );
        prop_oneof![file, Just(Known::Directory), ".{0,40}".prop_map(|target| Known::Symlink(target.into()))]
    }

    proptest! {
        #[test]
        fn rows_are_read_as_they_were_written(known in known()) {
            prop_assert_eq!(Known::decode(&known.encode()), Some(known));
        }

        #[test]
        fn any_bytes_are_a_row_or_none(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = Known::decode(&bytes);
        }
    }

    #[test]
    fn what_is_below_a_folder_is_found_and_nothing_beside_it() {
        let mut cache = Cache::default();
        for text in ["a", "a/b", "a/b/c", "a-b", "a.txt", "b"] {
            cache.set(&path(text), Some(Known::Directory));
        }
        let below = |folder: &RelPath| cache.below(folder).map(|(path, _)| path.to_string()).collect::<Vec<_>>();
        assert_eq!(below(&path("a")), ["a/b", "a/b/c"]);
        assert!(below(&path("b")).is_empty());
        assert_eq!(below(&RelPath::root()).len(), 6);
    }

    #[test]
    fn only_what_changed_is_kept_again() {
        let mut cache = Cache::default();
        cache.set(&path("a"), Some(Known::Directory));
        assert_eq!(cache.take_changes().len(), 1);
        cache.set(&path("a"), Some(Known::Directory));
        cache.set(&path("gone"), None);
        assert!(cache.take_changes().is_empty());
        cache.set(&path("a"), None);
        assert_eq!(cache.take_changes(), [(path("a"), None)]);
    }
}
