//! Trees of files that are synchronised: always the same on one machine, made from what a Rust machine has anyway.
//!
//! | corpus | what |
//! | --- | --- |
//! | small | text files of 200 bytes to 20 KiB, in folders of up to 100, below ten folders of 2,000 each |
//! | large | one file of random bytes |
//! | mixed | text of any size, libraries and archives, and random bytes |

use std::{
    collections::HashSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

const TEXT: [&str; 18] =
    ["rs", "h", "c", "cc", "cpp", "hpp", "py", "toml", "md", "json", "js", "html", "css", "txt", "sh", "yml", "yaml", "inc"];

/// Of a large text, as a small file.
const PART_BYTES: usize = 5_000;

/// Files that corpora are made from.
#[derive(Debug)]
pub struct Sources {
    small: Vec<PathBuf>,
    big: Vec<PathBuf>,
    binary: Vec<PathBuf>,
}

/// Numbers that are the same in every run (SplitMix64).
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

impl Sources {
    /// Looks for them in the Rust registry and in the folders of headers and libraries.
    pub fn find() -> anyhow::Result<Self> {
        let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let cargo = cargo.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"))).context("no home folder")?;
        let mut found = Self { small: Vec::new(), big: Vec::new(), binary: Vec::new() };
        for root in [cargo.join("registry/src"), "/usr/include".into(), "/usr/lib/python3".into(), "/usr/lib/python3.11".into()] {
            walk(&root, &mut |path, size| {
                let text = path.extension().and_then(|end| end.to_str()).is_some_and(|end| TEXT.contains(&end));
                match size {
                    200..=20_480 if text => found.small.push(path),
                    20_481..=4_194_304 if text => found.big.push(path),
                    _ => {}
                }
            });
        }
        walk(Path::new("/usr/lib/x86_64-linux-gnu"), &mut |path, size| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if (100_000..20_000_000).contains(&size) && (name.contains(".so") || name.ends_with(".a")) {
                found.binary.push(path);
            }
        });
        let mut numbers = Numbers(20_261_122);
        for list in [&mut found.small, &mut found.big, &mut found.binary] {
            list.sort();
            numbers.shuffle(list);
        }
        Ok(found)
    }

    /// `count` small text files, no two alike. Where there are too few, parts of larger ones.
    pub fn small(&self, folder: &Path, count: usize) -> anyhow::Result<u64> {
        let (mut made, mut bytes, mut seen) = (0, 0, HashSet::new());
        let whole = self.small.iter().map(|source| (source, 0..usize::MAX));
        let parts = self.big.iter().flat_map(|source| (0..4).map(move |part| (source, part * PART_BYTES..(part + 1) * PART_BYTES)));
        for (source, part) in whole.chain(parts) {
            if made == count {
                break;
            }
            let text = fs::read(source)?;
            let text = &text[part.start.min(text.len())..part.end.min(text.len())];
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            if text.is_empty() || std::str::from_utf8(text).is_err() || !seen.insert(hasher.finish()) {
                continue;
            }
            let (package, at) = (made / 2000, made % 2000);
            let inner = if at % 3 == 0 { format!("inner_{}/", at % 4) } else { String::new() };
            put(&folder.join(format!("pkg_{package:02}/src/mod_{:02}/{inner}{at:04}_{}", at / 100, name(source))), text)?;
            (made, bytes) = (made + 1, bytes + text.len() as u64);
        }
        ensure!(made == count, "only {made} small files were found on this machine; build the workspace first: cargo fetch");
        Ok(bytes)
    }

    /// About 300 MB of everything, or less.
    pub fn mixed(&self, folder: &Path, scale: f64) -> anyhow::Result<u64> {
        let bound = |mib: f64| (mib * scale * 1_048_576.0) as u64;
        let mut all = 0;
        let parts: [(&str, &[PathBuf], f64); 3] = [("src", &self.big, 120.0), ("lib", &self.small, 70.0), ("target", &self.binary, 80.0)];
        for (part, sources, mib) in parts {
            let mut bytes = 0;
            for (at, source) in sources.iter().enumerate() {
                if bytes > bound(mib) {
                    break;
                }
                let content = fs::read(source)?;
                put(&folder.join(format!("{part}/d{:02}/{at:05}_{}", at % 37, name(source))), &content)?;
                bytes += content.len() as u64;
            }
            all += bytes;
        }
        let mut numbers = Numbers(7);
        for at in 0..15 {
            let content = numbers.bytes(usize::try_from(bound(2.0))?);
            put(&folder.join(format!("assets/a{at:02}.bin")), &content)?;
            all += content.len() as u64;
        }
        Ok(all)
    }
}

/// One file of `size` random bytes, `big.bin`.
pub fn large(folder: &Path, size: u64) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = fs::File::create(folder.join("big.bin"))?;
    let mut numbers = Numbers(11);
    let mut left = size;
    while left > 0 {
        let piece = numbers.bytes(usize::try_from(left.min(4 << 20))?);
        file.write_all(&piece)?;
        left -= piece.len() as u64;
    }
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn put(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(path, content)?)
}

/// Every regular file below, and its size.
pub fn walk(folder: &Path, found: &mut impl FnMut(PathBuf, u64)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(data) if data.is_dir() => walk(&entry.path(), found),
            Ok(data) if data.is_file() => found(entry.path(), data.len()),
            _ => {}
        }
    }
}
