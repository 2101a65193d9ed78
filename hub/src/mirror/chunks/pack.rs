//! The files that chunks rest in.
//!
//! A pack is a row of records, each `length u32 be ‖ sid ‖ sealed bytes`, only ever appended to. It says all there is to know, so a killed hub loses at most a record that nobody was told of:
//! [`scan`] stops at the first place where no whole record can be. A full pack gets an index beside it, so that opening a session does not read gigabytes; an index that is missing or
//! damaged is made again from the pack.

use std::{
    fs::{self, File},
    io::{self, BufReader, IoSlice, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use cortex_wire::{
    limits,
    mirror::seal::{Sealed, Sid},
};

pub(super) const SID_BYTES: usize = 32;
/// Length and name, in front of the bytes.
pub(super) const HEADER_BYTES: usize = 4 + SID_BYTES;
/// An index entry: sid, offset, length.
const ENTRY_BYTES: usize = SID_BYTES + 4 + 4;
const HASH_BYTES: usize = 32;

/// Where a chunk's bytes are in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sid: Sid,
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl Record {
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}

pub(super) fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.pack"))
}

pub(super) fn index_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.index"))
}

/// What a pack is called until it is complete, when it is made from another one.
pub(super) fn draft_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.draft"))
}

/// The numbers of the packs in a folder, in order. Drafts of a hub that was killed are removed.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("pack") => numbers.extend(path.file_stem().and_then(|stem| stem.to_str()?.parse::<u32>().ok())),
            Some("draft") => fs::remove_file(&path)?,
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Appends chunks at `end` in as few calls as it takes, and says where they are. After an error the file is as long as it was, as far as the disk allows.
pub(super) fn append(mut file: &File, end: u64, chunks: &[Sealed]) -> io::Result<Vec<Record>> {
    let too_long = || io::Error::new(io::ErrorKind::FileTooLarge, "a pack above 4 GiB");
    let (mut records, mut headers, mut at) = (Vec::with_capacity(chunks.len()), Vec::with_capacity(chunks.len()), end);
    for chunk in chunks {
        let length = u32::try_from(chunk.bytes().len()).map_err(|_| too_long())?;
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&length.to_be_bytes());
        header[4..].copy_from_slice(&chunk.sid().0);
        headers.push(header);
        let offset = u32::try_from(at + HEADER_BYTES as u64).map_err(|_| too_long())?;
        let record = Record { sid: chunk.sid(), offset, length };
        at = record.end();
        records.push(record);
    }
    let mut slices: Vec<IoSlice<'_>> =
        headers.iter().zip(chunks).flat_map(|(header, chunk)| [IoSlice::new(header), IoSlice::new(chunk.bytes())]).collect();
    let mut rest = &mut slices[..];
    let written = file.seek(SeekFrom::Start(end)).and_then(|_| {
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    });
    if let Err(error) = written {
        let _ = file.set_len(end);
        return Err(error);
    }
    Ok(records)
}

/// A chunk's bytes, checked. `None`: the disk has not kept them.
pub(super) fn read(file: &File, record: &Record) -> io::Result<Option<Sealed>> {
    let mut bytes = vec![0; record.length as usize];
    match file.read_exact_at(&mut bytes, record.offset.into()) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        outcome => outcome.map(|()| Sealed::check(record.sid, Bytes::from(bytes))),
    }
}

/// Reads a pack through: every sound record, and where the last of them ends. Records whose bytes are not what their name says are left out.
pub(super) fn scan(file: &File) -> io::Result<(Vec<Record>, u64)> {
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    reader.seek(SeekFrom::Start(0))?;
    let (mut records, mut end, mut at) = (Vec::new(), 0, 0u64);
    let mut header = [0; HEADER_BYTES];
    while at + HEADER_BYTES as u64 <= length {
        reader.read_exact(&mut header)?;
        let (size, sid) = header.split_at(4);
        let size = u32::from_be_bytes(size.try_into().map_err(io::Error::other)?);
        let sid = Sid(sid.try_into().map_err(io::Error::other)?);
        let Ok(offset) = u32::try_from(at + HEADER_BYTES as u64) else { break };
        let record = Record { sid, offset, length: size };
        if size as usize > limits::SEALED_CHUNK_BYTES || size == 0 || record.end() > length {
            break;
        }
        let mut bytes = vec![0; size as usize];
        reader.read_exact(&mut bytes)?;
        at = record.end();
        if Sealed::check(sid, bytes.into()).is_some() {
            records.push(record);
            end = at;
        }
    }
    Ok((records, end))
}

/// Writes the index of a full pack of `pack_length` bytes.
pub(super) fn write_index(dir: &Path, number: u32, records: &[Record], pack_length: u64) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(8 + records.len() * ENTRY_BYTES + HASH_BYTES);
    bytes.extend_from_slice(&pack_length.to_be_bytes());
    for record in records {
        bytes.extend_from_slice(&record.sid.0);
        bytes.extend_from_slice(&record.offset.to_be_bytes());
        bytes.extend_from_slice(&record.length.to_be_bytes());
    }
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    fs::write(index_path(dir, number), bytes)
}

/// The index of a pack of `pack_length` bytes; `None` when there is none that fits.
pub(super) fn read_index(dir: &Path, number: u32, pack_length: u64) -> Option<Vec<Record>> {
    let bytes = fs::read(index_path(dir, number)).ok()?;
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
    let (length, entries) = body.split_first_chunk()?;
    let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
    let sound = blake3::hash(body).as_bytes()[..] == *hash && u64::from_be_bytes(*length) == pack_length && rest.is_empty();
    let record = |entry: &[u8; ENTRY_BYTES]| {
        let (sid, place) = entry.split_first_chunk()?;
        let (offset, length) = place.split_first_chunk()?;
        Some(Record { sid: Sid(*sid), offset: u32::from_be_bytes(*offset), length: u32::from_be_bytes(length.try_into().ok()?) })
    };
    if sound { entries.iter().map(record).collect() } else { None }
}
