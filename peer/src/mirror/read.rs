//! Reading a file's contents while others may be writing it.
//!
//! A file is looked at before and after it is read; when the two differ, what was read is worth nothing and the caller tries again later.
//!
//! Two writes within one tick of the kernel's clock leave the same times behind. So a look counts as *clean* only when the file had not been touched for a
//! while when it was taken (git calls the others "racily clean"): see [`is_clean`].

use std::{
    fs::File,
    io::{self, Read as _},
};

use cortex_wire::mirror::{
    entry::{self, Hash},
    path::RelPath,
};
use rustix::io::Errno;

use super::root::{Folder, Root, Stat};

/// Read at once. Large enough for BLAKE3 to work on many blocks side by side.
pub const BUFFER_BYTES: usize = 512 * 1024;

/// The kernel's coarse clock ticks every 10 ms at the slowest; twice that is on the safe side.
pub const TICK_NS: i64 = 20_000_000;

/// BLAKE3 of what comes in pieces of any size, as fast as of one that is large. The hasher works on 16 KiB side by side, where they begin at a multiple of it; pieces that do not are brought there.
#[derive(Debug, Default)]
pub struct PieceHasher {
    hasher: blake3::Hasher,
    rest: Vec<u8>,
}

impl PieceHasher {
    const ALIGNED: usize = 16 * 1024;

    /// The next piece.
    pub fn update(&mut self, mut piece: &[u8]) {
        if !self.rest.is_empty() {
            let (more, behind) = piece.split_at(piece.len().min(Self::ALIGNED - self.rest.len()));
            self.rest.extend_from_slice(more);
            piece = behind;
            if self.rest.len() < Self::ALIGNED {
                return;
            }
            self.hasher.update(&self.rest);
            self.rest.clear();
        }
        let (aligned, rest) = piece.split_at(piece.len() - piece.len() % Self::ALIGNED);
        self.hasher.update(aligned);
        self.rest.extend_from_slice(rest);
    }

    /// Of all of them.
    pub fn finalize(mut self) -> blake3::Hash {
        self.hasher.update(&self.rest);
        self.hasher.finalize()
    }
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Written while it was read.
    #[error("it changed while it was read")]
    Changed,
    /// Not a file any more, or gone.
    #[error("it is no file any more")]
    Gone,
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A file, open for reading, and how it looked before.
#[derive(Debug)]
pub struct Reading {
    file: File,
    before: Stat,
    size: u64,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// How the file looked before and after.
    pub stat: Stat,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
}

impl Contents {
    /// The file's hash in the tree.
    pub fn file_hash(&self) -> Hash {
        entry::file_hash(self.size, &self.hash, self.stat.is_executable())
    }
}

impl Reading {
    /// Opens a regular file.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(folder: &Folder, name: &str) -> Result<Self, ReadError> {
        let file = match folder.read(name) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NOTDIR) => return Err(ReadError::Gone),
            Err(error) => return Err(ReadError::Io(error.into())),
        };
        let before = Stat::of_open(&file).map_err(io::Error::from)?;
        if before.file_type().is_file() { Ok(Self { file, before, size: 0 }) } else { Err(ReadError::Gone) }
    }

    /// How it looked when it was opened.
    pub fn before(&self) -> Stat {
        self.before
    }

    /// Reads on; 0 at the end.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        loop {
            match self.file.read(buffer) {
                Ok(read) => {
                    self.size += read as u64;
                    // Somebody who writes without end must not keep us here.
                    return if self.size > self.before.size { Err(ReadError::Changed) } else { Ok(read) };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads as many bytes as there is space.
    ///
    /// # Errors
    /// [`ReadError`]: [`ReadError::Changed`] when there are fewer.
    pub fn fill(&mut self, space: &mut [u8]) -> Result<(), ReadError> {
        let mut at = 0;
        while at < space.len() {
            match self.read(&mut space[at..])? {
                0 => return Err(ReadError::Changed),
                read => at += read,
            }
        }
        Ok(())
    }

    /// Checks, at the end, that nobody wrote meanwhile. Returns how it looks.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn finish(self) -> Result<Stat, ReadError> {
        let after = Stat::of_open(&self.file).map_err(io::Error::from)?;
        if self.size == self.before.size && after == self.before { Ok(after) } else { Err(ReadError::Changed) }
    }

    /// As [`Reading::finish`], of a file of the workspace that may have been renamed meanwhile. Returns where it lies now, too.
    ///
    /// Nothing but a rename is told from a write by whoever sets the times back: an event speaks of that, and it is read again.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn finish_at(self, root: &Root, path: &RelPath) -> Result<(Stat, RelPath), ReadError> {
        let after = Stat::of_open(&self.file).map_err(io::Error::from)?;
        if self.size != self.before.size || !after.is_same_but_for_ctime(&self.before) {
            return Err(ReadError::Changed);
        }
        if after == self.before {
            return Ok((after, path.clone()));
        }
        let now = root.path_of(&self.file).ok_or(ReadError::Changed)?;
        if matches!(root.stat(&now), Ok(Some(stat)) if stat == after) { Ok((after, now)) } else { Err(ReadError::Changed) }
    }

    /// Reads and hashes a file that fits in `buffer`, and gives its bytes, too.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn whole(mut self, buffer: &mut [u8]) -> Result<(Contents, &[u8]), ReadError> {
        let size = usize::try_from(self.before.size).unwrap_or(usize::MAX);
        let bytes = buffer.get_mut(..size).ok_or(ReadError::Changed)?;
        self.fill(bytes)?;
        let stat = self.finish()?;
        Ok((Contents { stat, size: stat.size, hash: *blake3::hash(bytes).as_bytes() }, bytes))
    }

    /// Passes the bytes on, piece by piece. Whether somebody wrote meanwhile is for [`Reading::finish`] to say.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn each(&mut self, buffer: &mut [u8], mut piece: impl FnMut(&[u8]) -> Result<(), ReadError>) -> Result<(), ReadError> {
        loop {
            match self.read(buffer)? {
                0 => return Ok(()),
                read => piece(&buffer[..read])?,
            }
        }
    }
}

/// Reads and hashes a file.
///
/// # Errors
/// [`ReadError`].
pub fn hash(folder: &Folder, name: &str, buffer: &mut [u8]) -> Result<Contents, ReadError> {
    let mut reading = Reading::open(folder, name)?;
    if reading.before().size <= buffer.len() as u64 {
        return Ok(reading.whole(buffer)?.0);
    }
    let mut hasher = blake3::Hasher::new();
    reading.each(buffer, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    let stat = reading.finish()?;
    Ok(Contents { stat, size: stat.size, hash: *hasher.finalize().as_bytes() })
}

/// Whether a look at `looked_at_ns` was late enough after the last change that a later change cannot have left the same times.
pub fn is_clean(stat: &Stat, looked_at_ns: i64) -> bool {
    // A time in the future (a clock that was set back) says nothing.
    stat.ctime_ns.max(stat.mtime_ns) + TICK_NS < looked_at_ns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::root::Root;
    use cortex_wire::id::SessionId;
    use std::io::Write as _;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), &SessionId::new(1, [1; 10])).unwrap();
        (dir, root)
    }

    #[test]
    fn pieces_of_any_size_have_the_hash_of_the_whole() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
        for sizes in [&[1_usize, 16_383, 16_384, 16_385][..], &[0, 40_000, 7], &[300_000], &[100, 1_000]] {
            let (mut hasher, mut rest) = (PieceHasher::default(), &bytes[..]);
            for size in sizes.iter().cycle() {
                let (piece, behind) = rest.split_at(rest.len().min(*size));
                hasher.update(piece);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            assert_eq!(hasher.finalize(), blake3::hash(&bytes), "{sizes:?}");
        }
        assert_eq!(PieceHasher::default().finalize(), blake3::hash(b""));
    }

    #[test]
    fn a_file_is_hashed_whole() {
        let (_dir, root) = root();
        let bytes: Vec<u8> = (0..1_300_000_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        std::fs::write(root.path().join("f"), &bytes).unwrap();
        let contents = hash(root.top(), "f", &mut vec![0; BUFFER_BYTES]).unwrap();
        assert_eq!((contents.size, contents.hash), (bytes.len() as u64, *blake3::hash(&bytes).as_bytes()));
    }

    #[test]
    fn a_file_that_grows_while_it_is_read_is_not_taken() {
        let (_dir, root) = root();
        let path = root.path().join("f");
        std::fs::write(&path, [0; 100]).unwrap();
        let mut writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let mut reading = Reading::open(root.top(), "f").unwrap();
        let result = reading.each(&mut [0; 10], |_| Ok(writer.write_all(b"more")?));
        assert!(matches!(result, Err(ReadError::Changed)), "{result:?}");
    }

    #[test]
    fn a_file_that_is_written_over_while_it_is_read_is_not_taken() {
        let (_dir, root) = root();
        let path = root.path().join("f");
        std::fs::write(&path, [0; 100]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(25));
        let mut reading = Reading::open(root.top(), "f").unwrap();
        let writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        reading.each(&mut [0; 50], |_| Ok(std::os::unix::fs::FileExt::write_all_at(&writer, b"x", 0)?)).unwrap();
        let result = reading.finish_at(&root, &"f".parse().unwrap());
        assert!(matches!(result, Err(ReadError::Changed)), "{result:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_file_that_is_renamed_while_it_is_read_is_taken_where_it_lies_then() {
        let (dir, root) = root();
        let (path, now) = (root.path().join("f"), root.path().join("d/now (deleted)"));
        std::fs::create_dir(root.path().join("d")).unwrap();
        let read = |work: &dyn Fn()| {
            std::fs::write(&path, [7; 100]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(25));
            let mut reading = Reading::open(root.top(), "f").unwrap();
            work();
            reading.each(&mut [0; 50], |_| Ok(())).unwrap();
            reading.finish_at(&root, &"f".parse().unwrap())
        };
        let (stat, found) = read(&|| std::fs::rename(&path, &now).unwrap()).unwrap();
        assert_eq!((found.as_str(), Some(stat)), ("d/now (deleted)", root.stat(&found).unwrap()));
        let (_, found) = read(&|| ()).unwrap();
        assert_eq!(found.as_str(), "f");
        type Work<'a> = &'a dyn Fn();
        let works: [(&str, Work<'_>); 4] = [
            ("written", &|| std::fs::write(&path, [8; 100]).unwrap()),
            ("deleted", &|| std::fs::remove_file(&path).unwrap()),
            ("moved away", &|| std::fs::rename(&path, dir.path().join("elsewhere")).unwrap()),
            ("renamed and written", &|| {
                std::fs::rename(&path, &now).unwrap();
                std::fs::write(&now, [8; 100]).unwrap();
            }),
        ];
        for (what, work) in works {
            let result = read(work);
            assert!(matches!(result, Err(ReadError::Changed)), "{what}: {result:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let (_dir, root) = root();
        std::fs::create_dir(root.path().join("d")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("l")).unwrap();
        for name in ["d", "l", "nothing"] {
            assert!(matches!(Reading::open(root.top(), name), Err(ReadError::Gone)), "{name}");
        }
    }

    #[test]
    fn a_look_right_after_a_change_is_not_clean() {
        let stat = Stat { dev: 1, ino: 1, size: 1, mtime_ns: 5, ctime_ns: 1_000_000_000, mode: 0o100_644, links: 1 };
        assert!(!is_clean(&stat, 1_000_000_000));
        assert!(!is_clean(&stat, 1_000_000_000 + TICK_NS));
        assert!(is_clean(&stat, 1_000_000_001 + TICK_NS));
        assert!(!is_clean(&Stat { mtime_ns: i64::MAX / 2, ..stat }, 2_000_000_000), "a time in the future says nothing");
    }
}
