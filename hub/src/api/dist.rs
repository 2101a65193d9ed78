//! The peer programs that this hub hands out, with their checksums, and bundles of a program with its configuration.

use std::{
    collections::HashMap,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use data_encoding::HEXLOWER;
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use utoipa::ToSchema;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Platforms that people ask for, in the order of the download page.
const PLATFORMS: [(&str, &str); 5] = [
    ("linux-x86_64", "Linux, Intel or AMD"),
    ("linux-aarch64", "Linux, ARM"),
    ("macos-aarch64", "macOS, Apple silicon"),
    ("macos-x86_64", "macOS, Intel"),
    ("windows-x86_64", "Windows"),
];

/// Where programs are looked for.
#[derive(Debug, Clone, Default)]
pub struct Dist {
    /// `cortex-peer` beside the running hub: of this machine's platform.
    sibling: Option<PathBuf>,
    /// Files named as [`file_name`] names them; they win over the sibling.
    folder: Option<PathBuf>,
    sums: Arc<Mutex<HashMap<PathBuf, Sum>>>,
}

#[derive(Debug, Clone)]
struct Sum {
    modified: SystemTime,
    len: u64,
    sha256: String,
}

/// A program for one platform.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Program {
    /// `linux-x86_64`.
    #[schema(value_type = String)]
    pub platform: &'static str,
    /// For people.
    #[schema(value_type = String)]
    pub title: &'static str,
    /// Whether this hub has it.
    pub available: bool,
    /// Where to fetch it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// SHA-256, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// The file name of the program for a platform.
pub fn file_name(platform: &str) -> String {
    let suffix = if platform.starts_with("windows") { ".exe" } else { "" };
    format!("cortex-peer-{platform}{suffix}")
}

/// The file name of a bundle for a platform: what people there can open.
pub fn bundle_name(platform: &str) -> String {
    format!("cortex-peer-{platform}.{}", if platform.starts_with("windows") { "zip" } else { "tar.gz" })
}

/// The platform that this hub runs on.
pub fn own_platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

impl Dist {
    /// Looks beside `hub_program`, and in `folder`.
    pub fn new(hub_program: Option<&Path>, folder: Option<PathBuf>) -> Self {
        let sibling = hub_program.map(|hub| hub.with_file_name(format!("cortex-peer{}", std::env::consts::EXE_SUFFIX)));
        Self { sibling, folder, sums: Arc::default() }
    }

    /// The file behind a name under `/dist/`. Names that we did not make up ourselves find nothing.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let platform = PLATFORMS.iter().map(|(platform, _)| *platform).find(|platform| file_name(platform) == name)?;
        let sibling = self.sibling.clone().filter(|_| platform == own_platform());
        self.folder.iter().map(|folder| folder.join(name)).chain(sibling).find(|path| path.is_file())
    }

    /// Every platform, with what this hub has for it. Reads files that it has not summed yet: run it where blocking is fine.
    ///
    /// # Errors
    /// When a program cannot be read.
    pub fn programs(&self) -> io::Result<Vec<Program>> {
        let program = |&(platform, title): &(&'static str, &'static str)| {
            let name = file_name(platform);
            let found = self.find(&name).map(|path| self.sum(&path)).transpose()?;
            Ok(Program {
                platform,
                title,
                available: found.is_some(),
                path: found.as_ref().map(|_| format!("/dist/{name}")),
                bytes: found.as_ref().map(|sum| sum.len),
                sha256: found.map(|sum| sum.sha256),
            })
        };
        PLATFORMS.iter().map(program).collect()
    }

    /// `SHA256SUMS`, as `sha256sum -c` reads it.
    ///
    /// # Errors
    /// When a program cannot be read.
    pub fn checksums(&self) -> io::Result<String> {
        let programs = self.programs()?;
        let line = |program: &Program| program.sha256.as_ref().map(|sum| format!("{sum}  {}\n", file_name(program.platform)));
        Ok(programs.iter().filter_map(line).collect())
    }

    /// A hub that is upgraded in place replaces the file: its size and time say whether an old sum still holds.
    fn sum(&self, path: &Path) -> io::Result<Sum> {
        let metadata = path.metadata()?;
        let (modified, len) = (metadata.modified()?, metadata.len());
        let sums = || self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sums().get(path).filter(|sum| sum.modified == modified && sum.len == len) {
            return Ok(known.clone());
        }
        let sum = Sum { modified, len, sha256: sha256(path)? };
        sums().insert(path.to_owned(), sum.clone());
        Ok(sum)
    }
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(HEXLOWER.encode(context.finish().as_ref())),
            read => context.update(&buffer[..read]),
        }
    }
}

/// The peer's configuration file for an invite. JSON strings are YAML strings.
pub fn peer_yaml(name: &str, invite: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let name_line = if name.is_empty() { String::new() } else { format!("name: {}\n", quoted(name)) };
    format!(
        "# Configuration of cortex-peer. Keep it to yourself: until the machine has joined, the invite is a secret.\n\
         # Start with: cortex-peer run --config peer.yaml\n\
         {name_line}invite: {}\n",
        quoted(invite)
    )
}

const README: &str = "\
Cortex Mesh peer
================

This folder turns one machine into a node of the hub that you got it from.

  1. Unpack it where it should stay:   tar xzf cortex-peer-*.tar.gz
  2. See whether it is whole:          cd cortex-peer && sha256sum -c SHA256SUMS
  3. Start it:                         ./cortex-peer run --config peer.yaml

peer.yaml holds an invite. It works once, and the peer erases it from the file when the machine has joined.
Something wrong?  ./cortex-peer doctor --config peer.yaml  says what, and how to fix it.
Ctrl-C stops the peer; the hub shows the machine offline at once.
";

const README_WINDOWS: &str = "\
Cortex Mesh peer
================

This folder turns one machine into a node of the hub that you got it from. In PowerShell:

  1. Unpack it where it should stay:   Expand-Archive cortex-peer-windows-x86_64.zip .
  2. See whether it is whole:          cd cortex-peer; (Get-FileHash cortex-peer.exe).Hash; type SHA256SUMS
  3. Start it:                         .\\cortex-peer.exe run --config peer.yaml

peer.yaml holds an invite. It works once, and the peer erases it from the file when the machine has joined.
Something wrong?  .\\cortex-peer.exe doctor --config peer.yaml  says what, and how to fix it.
Ctrl-C stops the peer; the hub shows the machine offline at once.
";

/// A program, its checksum, its configuration (0600) and a read-me: a zip when it is for Windows, else a tar.gz. Takes a moment: run it where blocking is fine.
///
/// # Errors
/// When the program cannot be read.
pub fn bundle(program: &Path, yaml: &str) -> io::Result<Vec<u8>> {
    let is_windows = program.extension().is_some_and(|extension| extension == "exe");
    let (name, readme) = if is_windows { ("cortex-peer.exe", README_WINDOWS) } else { ("cortex-peer", README) };
    let sum = format!("{}  {name}\n", sha256(program)?);
    let mut file = std::fs::File::open(program)?;
    let len = file.metadata()?.len();
    let files: [(&str, u32, u64, &mut dyn io::Read); 4] = [
        (name, 0o755, len, &mut file),
        ("peer.yaml", 0o600, yaml.len() as u64, &mut yaml.as_bytes()),
        ("SHA256SUMS", 0o644, sum.len() as u64, &mut sum.as_bytes()),
        ("README.txt", 0o644, readme.len() as u64, &mut readme.as_bytes()),
    ];
    if is_windows { zip(files) } else { tar_gz(files) }
}

/// Name, mode, length, content.
type Member<'a> = (&'a str, u32, u64, &'a mut dyn io::Read);

fn tar_gz(files: [Member<'_>; 4]) -> io::Result<Vec<u8>> {
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, mode, len, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(len);
        header.set_mtime(now_s);
        archive.append_data(&mut header, format!("cortex-peer/{name}"), content)?;
    }
    archive.into_inner()?.finish()
}

fn zip(files: [Member<'_>; 4]) -> io::Result<Vec<u8>> {
    let mut archive = ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, mode, _, content) in files {
        let options =
            SimpleFileOptions::default().compression_method(CompressionMethod::Deflated).compression_level(Some(1)).unix_permissions(mode);
        archive.start_file(format!("cortex-peer/{name}"), options).map_err(io::Error::from)?;
        io::copy(content, &mut archive)?;
    }
    Ok(archive.finish().map_err(io::Error::from)?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("cortex-peer");
        std::fs::write(&program, "program").unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let dist = Dist::new(Some(&dir.path().join("cortex-hub")), None);
        assert_eq!(dist.find(&file_name(&own_platform())), Some(program));
        for name in ["../secret", "secret", "cortex-peer", "cortex-peer-plan9-mips", "", "/etc/passwd"] {
            assert_eq!(dist.find(name), None, "{name}");
        }
    }

    #[test]
    fn a_replaced_program_gets_a_new_sum() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("cortex-peer");
        std::fs::write(&program, "abc").unwrap();
        let dist = Dist::new(Some(&dir.path().join("cortex-hub")), None);
        assert!(dist.checksums().unwrap().starts_with("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  "));
        std::fs::write(&program, "abcd").unwrap();
        assert!(dist.checksums().unwrap().starts_with("88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589  "));
    }

    #[test]
    fn a_bundle_holds_program_configuration_and_readme() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("cortex-peer");
        std::fs::write(&program, "program").unwrap();
        let packed = bundle(&program, &peer_yaml("a: \"b\"\n", "cxi1_x")).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let name = entry.path().unwrap().display().to_string();
            if name.ends_with("peer.yaml") {
                assert_eq!(entry.header().mode().unwrap(), 0o600);
                assert!(text.contains("name: \"a: \\\"b\\\"\\n\"\ninvite: \"cxi1_x\"\n"), "{text}");
            }
            names.push(name);
        }
        assert_eq!(names, ["cortex-peer/cortex-peer", "cortex-peer/peer.yaml", "cortex-peer/SHA256SUMS", "cortex-peer/README.txt"]);
    }

    #[test]
    fn a_bundle_for_windows_is_a_zip() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join(file_name("windows-x86_64"));
        std::fs::write(&program, "program ".repeat(100_000)).unwrap();
        let packed = bundle(&program, &peer_yaml("", "cxi1_x")).unwrap();
        assert!(packed.len() < 100_000, "{}", packed.len());
        let mut archive = zip::ZipArchive::new(io::Cursor::new(packed)).unwrap();
        let mut read = |name: &str| {
            let mut text = String::new();
            archive.by_name(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read("cortex-peer/cortex-peer.exe"), "program ".repeat(100_000));
        assert!(read("cortex-peer/peer.yaml").ends_with("invite: \"cxi1_x\"\n"));
        assert_eq!(read("cortex-peer/SHA256SUMS"), format!("{}  cortex-peer.exe\n", sha256(&program).unwrap()));
        assert!(read("cortex-peer/README.txt").contains(r".\cortex-peer.exe run --config peer.yaml"));
        assert_eq!(archive.len(), 4);
        assert_eq!(
            (bundle_name("windows-x86_64").as_str(), bundle_name("linux-aarch64").as_str()),
            ("cortex-peer-windows-x86_64.zip", "cortex-peer-linux-aarch64.tar.gz")
        );
    }
}
