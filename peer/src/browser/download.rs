//! Download-to-Sync: from the browser's scratch folder into the workspace, under a name that is nobody's trick.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use cortex_wire::id::SessionId;
use rustix::{
    fs::{CWD, Mode, OFlags, mkdirat, openat},
    io::Errno,
};

use crate::shell::command::open_folder;

/// Where in the workspace.
pub const FOLDER: &str = "downloads";
/// A name, with room for a number.
const NAME_BYTES: usize = 200;
/// Files of one name.
const NUMBERS: u32 = 1_000;

/// A name for a file, whatever a server says: one component, visible, and of no meaning to any system or to us.
pub fn safe_name(suggested: &str) -> String {
    let last = suggested.rsplit(['/', '\\']).next().unwrap_or_default();
    let cleaned = cortex_wire::text::clean(last, 4 * NAME_BYTES);
    let plain: String = cleaned.chars().map(|c| if "<>:\"|?*\u{7f}".contains(c) || c.is_control() { '_' } else { c }).collect();
    let plain = plain.trim_start().trim_end_matches(|c: char| c == '.' || c.is_whitespace());
    let (stem, ending) = match plain.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() && ending.len() <= 16 => (stem, format!(".{ending}")),
        _ => (plain, String::new()),
    };
    let mut stem = cut(stem.into(), ending.len());
    if stem.is_empty() {
        stem.push_str("download");
    }
    // Hidden files and the names of devices mean something.
    if stem.starts_with(['.', '~', '-']) || is_device(&stem) {
        stem = cut(format!("_{stem}"), ending.len());
    }
    stem + &ending
}

/// As much of a name as has room before its ending; when there is none, without what may not be a name's last.
fn cut(mut stem: String, ending: usize) -> String {
    stem.truncate(stem.floor_char_boundary(NAME_BYTES - ending));
    if ending == 0 {
        stem.truncate(stem.trim_end_matches(|c: char| c == '.' || c.is_whitespace()).len());
    }
    stem
}

fn is_device(stem: &str) -> bool {
    let name = stem.split('.').next().unwrap_or_default().trim().to_ascii_uppercase();
    let is_numbered =
        name.len() == 4 && (name.starts_with("COM") || name.starts_with("LPT")) && name.ends_with(|c: char| c.is_ascii_digit());
    is_numbered || matches!(name.as_str(), "CON" | "PRN" | "AUX" | "NUL")
}

/// Where a file has come to.
#[derive(Debug, PartialEq, Eq)]
pub struct Saved {
    /// In the workspace.
    pub path: String,
    /// How large it is.
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub hash: String,
}

/// Moves a file into the session's workspace. Never over another one, and never through a link.
///
/// # Errors
/// What the operating system says.
pub fn save(workspace_dir: &Path, session: &SessionId, from: &Path, name: &str) -> io::Result<Saved> {
    let (bytes, hash) = digest(from)?;
    let (root, _) = open_folder(workspace_dir, &session.to_string(), "").map_err(io::Error::other)?;
    let folder = downloads(&root)?;
    for number in 1..=NUMBERS {
        let name = numbered(name, number);
        match place(from, &folder, &name) {
            Ok(()) => return Ok(Saved { path: format!("{FOLDER}/{name}"), bytes, hash }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("there are a thousand files of this name"))
}

fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}

fn downloads(root: &OwnedFd) -> io::Result<OwnedFd> {
    match mkdirat(root, FOLDER, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(root, FOLDER, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn numbered(name: &str, number: u32) -> String {
    match (number, name.rsplit_once('.')) {
        (1, _) => name.to_owned(),
        (_, Some((stem, ending))) => format!("{stem} ({number}).{ending}"),
        (_, None) => format!("{name} ({number})"),
    }
}

fn place(from: &Path, folder: &OwnedFd, name: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(from, fs::Permissions::from_mode(0o644))?;
    #[cfg(target_os = "linux")]
    match rustix::fs::renameat_with(CWD, from, folder, name, rustix::fs::RenameFlags::NOREPLACE) {
        // Another file system, or one that cannot do this.
        Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS) => {}
        result => return Ok(result?),
    }
    let _ = CWD;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut to = File::from(openat(folder.as_fd(), name, flags, Mode::from_raw_mode(0o644))?);
    io::copy(&mut File::open(from)?, &mut to)?;
    fs::remove_file(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hostile_name_becomes_a_plain_one() {
        for (given, safe) in [
            ("report.pdf", "report.pdf"),
            ("../../etc/passwd", "passwd"),
            ("..\\..\\evil.txt", "evil.txt"),
            ("/etc/cron.d/x", "x"),
            (".bashrc", "_.bashrc"),
            ("..", "download"),
            ("", "download"),
            ("a:b|c?.txt", "a_b_c_.txt"),
            ("CON.txt", "_CON.txt"),
            ("lpt1", "_lpt1"),
            ("-rf", "_-rf"),
            ("x.txt. . ", "x.txt"),
        ] {
            assert_eq!(safe_name(given), safe, "{given:?}");
        }
        for long in
            ["~".repeat(300), format!("CON{}x", " ".repeat(300)), format!("~{}.pdf", "ä".repeat(300)), "a. ".repeat(100), ". ".repeat(100)]
        {
            let safe = safe_name(&long);
            assert!(safe.len() <= NAME_BYTES && safe_name(&safe) == safe, "{long:?} became {safe:?}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leaves_the_folder(name in "\\PC{0,300}|[./\\\\\\x00-\\x1f a-c]{0,40}") {
            let safe = safe_name(&name);
            prop_assert!(!safe.is_empty() && safe.len() <= NAME_BYTES);
            prop_assert!(!safe.contains(['/', '\\', '\0', '\n']) && !safe.starts_with('.') && safe != "..");
            let path = format!("{FOLDER}/{safe}");
            prop_assert!(cortex_wire::task::is_inside(&path));
            prop_assert_eq!(safe_name(&safe), safe);
        }
    }

    #[test]
    fn a_file_takes_no_others_place_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (work, outside) = (dir.path().join("work"), dir.path().join("outside"));
        let session = SessionId::new(1, [1; 10]);
        let put = |text: &str| {
            let from = dir.path().join("guid");
            fs::write(&from, text).unwrap();
            save(&work, &session, &from, "a.txt")
        };
        assert_eq!(
            put("one").unwrap(),
            Saved { path: "downloads/a.txt".into(), bytes: 3, hash: blake3::hash(b"one").to_hex().to_string() }
        );
        assert_eq!(put("two").unwrap().path, "downloads/a (2).txt");
        let root = work.join(session.to_string());
        fs::write(&outside, "mine").unwrap();
        fs::remove_file(root.join("downloads/a.txt")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("downloads/a.txt")).unwrap();
        assert_eq!(put("three").unwrap().path, "downloads/a (3).txt");
        assert_eq!(fs::read(&outside).unwrap(), b"mine");
        fs::remove_dir_all(root.join("downloads")).unwrap();
        fs::create_dir(dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), root.join("downloads")).unwrap();
        assert!(put("four").is_err());
    }
}
