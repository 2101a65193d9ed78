//! The log as it is read: line by line, with what is wrong where.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{End, Hash, KEPT_FILES, Record, What, file_numbers, file_path, hex, link};

/// Of one line. The longest record is a command of 4 KiB, each byte of it escaped.
const LINE_BYTES: usize = 64 * 1024;

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}, line {line}: {what}", .file.display())]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// For a person.
    pub what: String,
}

/// How a walk along the chain went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records that were read and hold.
    pub records: u64,
    /// Tasks among them that were started.
    pub tasks: u64,
    /// The first record that was read. Above 1: what was before it was rotated away.
    pub first: u64,
    /// The hash of the last one.
    pub head: Hash,
    /// What does not hold.
    pub fault: Option<Fault>,
}

/// One line, taken apart.
pub(super) struct Line<'a> {
    pub(super) hash: Hash,
    pub(super) json: &'a str,
    pub(super) record: Record,
}

impl<'a> Line<'a> {
    fn read(line: &'a [u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok().filter(|line| line.len() <= LINE_BYTES)?;
        let (hash, json) = line.split_at_checked(64)?;
        let json = json.strip_prefix(' ')?;
        let hash = data_encoding::HEXLOWER.decode(hash.as_bytes()).ok()?.try_into().ok()?;
        Some(Self { hash, json, record: serde_json::from_str(json).ok()? })
    }
}

/// The whole lines of a file: each with its end.
fn lines(content: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = content[at..].iter().position(|byte| *byte == b'\n')?;
        let line = &content[at..at + len];
        at += len + 1;
        Some((line, at))
    })
}

/// Where the chain of a file ends, and whether it holds up to there. What a crash has cut stands behind the last line that is one.
pub(super) fn end_of(content: &[u8]) -> (End, bool) {
    let (mut end, mut sound, mut before) = (End::default(), true, None);
    for (line, at) in lines(content) {
        let Some(line) = Line::read(line) else { continue };
        let before = before.replace(line.hash).or_else(|| hash_before(&line.record));
        sound &= before.is_some_and(|before| link(&before, line.json.as_bytes()) == line.hash) && end.n.max(1) <= line.record.n;
        end = End { n: line.record.n, hash: line.hash, len: at as u64 };
    }
    (end, sound)
}

/// What the first record of a file says of the one before it.
fn hash_before(record: &Record) -> Option<Hash> {
    match &record.what {
        What::File { before, .. } => data_encoding::HEXLOWER.decode(before.as_bytes()).ok()?.try_into().ok(),
        What::Start(_) | What::End(_) => None,
    }
}

/// A walk along the chain that can go on where it stopped.
#[derive(Debug, Default)]
pub struct Walk {
    verdict: Verdict,
    expected: Option<u64>,
    before: Option<Hash>,
    /// Where it stopped: file, bytes, lines.
    at: (u64, usize, usize),
}

impl Walk {
    /// How it went so far.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Reads on to the end, and shows each record with its JSON. A line that is not whole yet is left for the next time. What does not hold is noted,
    /// and what is behind it shown all the same.
    ///
    /// # Errors
    /// When the files cannot be read, or nobody looks any more.
    pub fn go_on(&mut self, folder: &Path, mut visit: impl FnMut(&Record, &str, &Hash) -> io::Result<()>) -> io::Result<()> {
        let numbers = file_numbers(folder)?;
        if self.at.0 == 0 {
            self.begin(folder, &numbers);
        }
        let from = self.at.0;
        for number in numbers.iter().copied().filter(|number| *number >= from) {
            if number > self.at.0 {
                if self.at.0 != 0 && number != self.at.0 + 1 {
                    self.fault(folder, self.at.0 + 1, 1, "the file is missing".into());
                    self.before = None;
                    self.expected = None;
                }
                self.at = (number, 0, 0);
            }
            let content = fs::read(file_path(folder, number))?;
            let is_last = numbers.last() == Some(&number);
            self.read_file(folder, number, &content, is_last, &mut visit)?;
        }
        Ok(())
    }

    /// Older files may be gone because there were more than are kept, and for no other reason.
    fn begin(&mut self, folder: &Path, numbers: &[u64]) {
        let Some(first) = numbers.first().copied() else { return };
        if first > 1 && numbers.len() < KEPT_FILES {
            self.fault(folder, first - 1, 1, "the file is missing".into());
        }
        self.at = (first, 0, 0);
    }

    fn read_file(
        &mut self,
        folder: &Path,
        number: u64,
        content: &[u8],
        is_last: bool,
        visit: &mut impl FnMut(&Record, &str, &Hash) -> io::Result<()>,
    ) -> io::Result<()> {
        let (_, start, mut line_number) = self.at;
        let Some(rest) = content.get(start..) else {
            self.fault(folder, number, line_number + 1, "the file is shorter than it was: records were removed".into());
            return Ok(());
        };
        let mut whole = 0;
        for (line, end) in lines(rest) {
            whole = end;
            line_number += 1;
            match Line::read(line) {
                None => self.fault(folder, number, line_number, "this is not a record: it was altered".into()),
                Some(line) => {
                    self.check(folder, number, line_number, &line, rest);
                    visit(&line.record, line.json, &line.hash)?;
                }
            }
            self.at = (number, start + end, line_number);
        }
        if whole < rest.len() && !is_last {
            self.fault(folder, number, line_number + 1, "the end of the file is cut off".into());
        }
        Ok(())
    }

    fn check(&mut self, folder: &Path, number: u64, line_number: usize, line: &Line<'_>, file: &[u8]) {
        let (n, first) = (line.record.n, line_number == 1);
        let stated = if first { hash_before(&line.record) } else { None };
        let expected = self.expected.unwrap_or(n);
        let before = self.before.or(stated);
        let problem = if n > expected {
            let elsewhere = lines(file).any(|(other, _)| Line::read(other).is_some_and(|other| other.record.n == expected));
            Some(if elsewhere {
                format!("record {n} stands where record {expected} should: the records were put in another order")
            } else if n == expected + 1 {
                format!("record {expected} is missing")
            } else {
                format!("records {expected} to {} are missing", n - 1)
            })
        } else if n < expected {
            Some(format!("record {n} stands here again, behind record {}", expected - 1))
        } else if before.is_none_or(|before| link(&before, line.json.as_bytes()) != line.hash) {
            Some(format!("record {n} was altered"))
        } else if first && stated != before {
            Some(format!("record {n} does not name the one before it"))
        } else {
            None
        };
        match problem {
            Some(what) => self.fault(folder, number, line_number, what),
            None => {
                self.verdict.first = if self.verdict.records == 0 { n } else { self.verdict.first };
                self.verdict.records += 1;
                self.verdict.tasks += u64::from(matches!(line.record.what, What::Start(_)));
                self.verdict.head = line.hash;
            }
        }
        self.expected = Some(n.max(expected) + 1);
        self.before = Some(line.hash);
    }

    /// The first one counts: what is behind it follows from it.
    fn fault(&mut self, folder: &Path, number: u64, line: usize, what: String) {
        let file = file_path(folder, number);
        self.verdict.fault.get_or_insert(Fault { file, line, what });
    }
}

/// Whether a record of this hash is in the log, and it is a start.
///
/// # Errors
/// When the files cannot be read.
pub fn holds_start(folder: &Path, hash: &[u8]) -> io::Result<bool> {
    let mut found = false;
    Walk::default().go_on(folder, |record, _, own| {
        found |= own[..] == *hash && matches!(record.what, What::Start(_));
        Ok(())
    })?;
    Ok(found)
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} records of {} tasks hold", self.records, self.tasks)?;
        if self.first > 1 {
            write!(f, "; those before record {} were rotated away", self.first)?;
        }
        write!(f, "; the last one is {}", hex(&self.head))
    }
}
