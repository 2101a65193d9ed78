//! What a session's commands leave to the next one: their folder, and the variables that they exported.
//!
//! No shell lives on between commands. A script of a shell session is run by its shell with a few lines around it ([`WRAPPER`]) that report, at its end and on a
//! descriptor of their own, the folder it came to and the environment it exports. [`Shells::keep`] compares that with what the command was given and folds the
//! difference into a small file, from which the next command starts, also after a restart of the peer.
//!
//! - Two commands at once both start from what is kept then. Each changes what it changed itself; of two that changed the same, the one that ends last counts.
//! - A command that is ended by a signal, by a time limit or by request leaves everything as it was, and so does one that replaces its shell (`exec`), or that
//!   sets an EXIT trap of its own and then leaves by `exit`.
//! - A folder outside the workspace is not kept; the next command starts in the last one inside.
//! - A secret is not kept, under whatever name.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use cortex_runtime::keyfile::{make_private_dir, write_private};
use cortex_wire::{id::SessionId, limits};

/// Run by a POSIX shell with the script as its first argument.
pub const WRAPPER: &str = r#"__cortex_report() { { command printf 'cortex-shell-1\0%s\0' "$(command pwd -P)"; command -p env -0; command printf '\0done\0'; } 2>/dev/null >&3; }
trap __cortex_report EXIT
__cortex_script=$1
shift
eval "$__cortex_script"
__cortex_status=$?
__cortex_report
exit "$__cortex_status"
"#;

/// The shells that [`WRAPPER`] is written for.
const POSIX_SHELLS: [&str; 6] = ["sh", "bash", "dash", "ksh", "zsh", "ash"];

/// What is read of reports: several of the largest that are kept.
pub const REPORT_BYTES: usize = 4 * limits::SHELL_STATE_BYTES;

const BEGIN: &[u8] = b"cortex-shell-1";
const DONE: &[u8] = b"done";

/// Variables that each shell makes for itself, or that say whose a command is.
const OWN: [&str; 6] = ["PWD", "OLDPWD", "SHLVL", "_", "CORTEX_SESSION", "CORTEX_TASK"];

/// Shell sessions of all sessions. Those that were used longest ago are forgotten.
const SHELLS: usize = 512;

/// Whether scripts of this shell can be kept.
pub fn is_posix(shell: &str) -> bool {
    shell.rsplit('/').next().is_some_and(|name| POSIX_SHELLS.contains(&name))
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Below the workspace's root; empty: the root.
    pub folder: String,
    /// Variables that differ from a fresh command's.
    pub set: BTreeMap<OsString, OsString>,
    /// Variables of a fresh command that were taken away.
    pub unset: BTreeSet<OsString>,
}

/// How a command began.
#[derive(Debug)]
pub struct Began {
    /// The workspace's root, absolute.
    pub root: PathBuf,
    /// Below it.
    pub folder: String,
    /// What it was given.
    pub environment: Vec<(OsString, OsString)>,
    /// What is never kept.
    pub secrets: Vec<bytes::Bytes>,
}

/// The kept state of this node's shell sessions.
#[derive(Debug)]
pub struct Shells {
    dir: PathBuf,
    /// Held while a file is changed.
    changing: Mutex<()>,
}

impl Shells {
    /// Below a folder of the peer's own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        make_private_dir(&dir)?;
        Ok(Self { dir, changing: Mutex::new(()) })
    }

    fn path(&self, session: &SessionId, name: &str) -> PathBuf {
        self.dir.join(format!("{session}.{name}"))
    }

    /// What is kept of this one; nothing when it is new or cannot be read.
    pub fn load(&self, session: &SessionId, name: &str) -> Kept {
        fs::read(self.path(session, name)).map(|bytes| Kept::from_bytes(&bytes)).unwrap_or_default()
    }

    /// Forgets it.
    pub fn reset(&self, session: &SessionId, name: &str) {
        let _ = fs::remove_file(self.path(session, name));
    }

    /// Forgets everything of a session.
    pub fn forget(&self, session: &SessionId) {
        let prefix = format!("{session}.");
        for file in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if file.file_name().as_bytes().starts_with(prefix.as_bytes()) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    /// Keeps what a command has changed. Returns what its author should know.
    ///
    /// # Errors
    /// Why nothing is kept.
    pub fn keep(&self, session: &SessionId, name: &str, began: &Began, report: &[u8]) -> Result<Option<String>, String> {
        let Some(Report { folder, environment }) = Report::last(report) else { return Ok(None) };
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = self.load(session, name);
        let mut notice = None;
        match inside(&began.root, &folder) {
            Some(folder) if folder != began.folder => kept.folder = folder,
            Some(_) => {}
            None => notice = Some("the command ended outside of the workspace; the next one starts where the last one inside ended".into()),
        }
        kept.fold(began, environment);
        let bytes = kept.to_bytes();
        if bytes.len() > limits::SHELL_STATE_BYTES {
            return Err(format!("the exported environment has {} bytes, and at most {} are kept", bytes.len(), limits::SHELL_STATE_BYTES));
        }
        self.write(&self.path(session, name), &bytes).map_err(|error| error.to_string())?;
        Ok(notice)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if !path.exists() {
            self.make_room();
        }
        let staged = self.dir.join(".new");
        let _ = fs::remove_file(&staged);
        write_private(&staged, bytes)?;
        fs::rename(&staged, path)
    }

    fn make_room(&self) {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut files: Vec<_> = files.filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path()))).collect();
        files.sort();
        for (_, path) in files.iter().take((files.len() + 1).saturating_sub(SHELLS)) {
            let _ = fs::remove_file(path);
        }
    }
}

impl Kept {
    fn fold(&mut self, began: &Began, after: BTreeMap<OsString, OsString>) {
        let before: BTreeMap<&OsStr, &OsStr> =
            began.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str())).collect();
        let own = |name: &OsStr| OWN.iter().any(|own| name == *own) || name.as_bytes().starts_with(b"__cortex_");
        for name in before.keys().filter(|name| !own(name) && !after.contains_key(**name)) {
            self.set.remove(*name);
            self.unset.insert((*name).to_owned());
        }
        for (name, value) in after {
            let same = before.get(name.as_os_str()).is_some_and(|old| *old == value);
            let secret = || began.secrets.iter().any(|secret| contains(value.as_bytes(), secret));
            if !same && !own(&name) && !secret() {
                self.unset.remove(&name);
                self.set.insert(name, value);
            }
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.folder.as_bytes().to_vec();
        out.push(0);
        for (name, value) in &self.set {
            out.extend([b"+", name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
        }
        for name in &self.unset {
            out.extend([b"-", name.as_bytes(), b"\0"].concat());
        }
        out
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let mut parts = bytes.split(|byte| *byte == 0);
        let folder = parts.next().and_then(|folder| std::str::from_utf8(folder).ok()).unwrap_or_default().to_owned();
        let mut kept = Self { folder, ..Self::default() };
        for part in parts {
            match part.split_first() {
                Some((b'+', variable)) => kept.set.extend(assignment(variable)),
                Some((b'-', name)) => _ = kept.unset.insert(OsString::from_vec(name.to_vec())),
                _ => {}
            }
        }
        kept
    }
}

/// What a command said at its end.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    folder: PathBuf,
    environment: BTreeMap<OsString, OsString>,
}

impl Report {
    /// The last one that is whole: a script may come to its end twice, and be killed while it reports.
    fn last(bytes: &[u8]) -> Option<Self> {
        let parts: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        // The environment ends with an empty part, as no variable is empty.
        let done = (2..parts.len()).rev().find(|at| parts[*at] == DONE && parts[*at - 1].is_empty())?;
        let begin = (0..done).rev().find(|at| parts[*at] == BEGIN)?;
        let (folder, variables) = parts.get(begin + 1..done - 1)?.split_first()?;
        let environment = variables.iter().filter_map(|variable| assignment(variable)).collect();
        Some(Self { folder: PathBuf::from(OsStr::from_bytes(folder)), environment })
    }
}

fn assignment(text: &[u8]) -> Option<(OsString, OsString)> {
    let at = text.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    Some((OsString::from_vec(text[..at].to_vec()), OsString::from_vec(text[at + 1..].to_vec())))
}

/// Where a folder is below the root, if it is there and has a name that can be asked for.
fn inside(root: &Path, folder: &Path) -> Option<String> {
    let folder = folder.strip_prefix(root).ok()?.to_str()?.to_owned();
    cortex_wire::task::is_inside(&folder).then_some(folder)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn began(root: &Path, environment: &[(&str, &str)]) -> Began {
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Began { root: root.to_owned(), folder: String::new(), environment, secrets: vec![bytes::Bytes::from_static(b"hunter2hunter2")] }
    }

    fn report(folder: &str, variables: &[&str]) -> Vec<u8> {
        let environment: String = variables.iter().map(|variable| format!("{variable}\0")).collect();
        format!("cortex-shell-1\0{folder}\0{environment}\0done\0").into_bytes()
    }

    fn shells() -> (tempfile::TempDir, Shells, SessionId) {
        let dir = tempfile::tempdir().unwrap();
        let shells = Shells::open(dir.path().join("shells")).unwrap();
        (dir, shells, SessionId::new(1, [1; 10]))
    }

    #[test]
    fn what_a_command_changed_is_kept_and_nothing_else() {
        let (_dir, shells, session) = shells();
        let began = began(Path::new("/w"), &[("A", "1"), ("B", "2"), ("PWD", "/w"), ("TOKEN", "hunter2hunter2")]);
        let said = report("/w/sub", &["A=1", "C=3\nline", "PWD=/w/sub", "SHLVL=1", "COPY=xhunter2hunter2x", "TOKEN=hunter2hunter2"]);
        assert_eq!(shells.keep(&session, "main", &began, &said), Ok(None));
        let kept = shells.load(&session, "main");
        assert_eq!(kept.folder, "sub");
        assert_eq!(kept.set, BTreeMap::from([("C".into(), "3\nline".into())]));
        assert_eq!(kept.unset, BTreeSet::from(["B".into()]));
        assert_eq!(shells.load(&session, "other"), Kept::default());
        shells.reset(&session, "main");
        assert_eq!(shells.load(&session, "main"), Kept::default());
    }

    #[test]
    fn two_at_once_change_what_each_of_them_changed() {
        let (_dir, shells, session) = shells();
        let began = began(Path::new("/w"), &[("A", "1")]);
        shells.keep(&session, "main", &began, &report("/w/one", &["A=1", "ONE=1", "BOTH=one"])).unwrap();
        shells.keep(&session, "main", &began, &report("/w", &["A=1", "TWO=2", "BOTH=two"])).unwrap();
        let kept = shells.load(&session, "main");
        assert_eq!(kept.folder, "one", "the second one did not move");
        assert_eq!(kept.set, BTreeMap::from([("ONE".into(), "1".into()), ("TWO".into(), "2".into()), ("BOTH".into(), "two".into())]));
    }

    #[test]
    fn a_report_that_is_not_whole_changes_nothing() {
        let (_dir, shells, session) = shells();
        let began = began(Path::new("/w"), &[]);
        let whole = report("/w/sub", &["A=1"]);
        for end in 0..whole.len() - 1 {
            assert_eq!(shells.keep(&session, "main", &began, &whole[..end]), Ok(None));
            assert_eq!(shells.load(&session, "main"), Kept::default(), "{end}");
        }
        let twice = [&whole[..], &report("/w/later", &["A=2"])[..], &whole[..20]].concat();
        shells.keep(&session, "main", &began, &twice).unwrap();
        assert_eq!(shells.load(&session, "main").folder, "later");
    }

    #[test]
    fn what_is_outside_or_too_large_is_not_kept_and_said() {
        let (_dir, shells, session) = shells();
        let began = began(Path::new("/w"), &[]);
        for outside in ["/etc", "/", "/w2", "/w/../etc"] {
            let said = shells.keep(&session, "main", &began, &report(outside, &["A=1"])).unwrap();
            assert!(said.is_some_and(|said| said.contains("outside")), "{outside}");
        }
        let kept = shells.load(&session, "main");
        assert_eq!((kept.folder.as_str(), kept.set.len()), ("", 1));
        let large = format!("A={}", "x".repeat(limits::SHELL_STATE_BYTES));
        assert!(shells.keep(&session, "main", &began, &report("/w/sub", &[&large])).unwrap_err().contains("bytes"));
        assert_eq!(shells.load(&session, "main"), kept);
    }

    #[test]
    fn a_session_that_is_left_is_forgotten_and_the_oldest_make_room() {
        let (_dir, shells, session) = shells();
        let other = SessionId::new(2, [2; 10]);
        let began = began(Path::new("/w"), &[]);
        for name in ["a", "b"] {
            shells.keep(&session, name, &began, &report("/w", &["A=1"])).unwrap();
        }
        for number in 0..SHELLS {
            shells.keep(&other, &number.to_string(), &began, &report("/w", &["A=1"])).unwrap();
        }
        assert!(fs::read_dir(&shells.dir).unwrap().count() <= SHELLS);
        shells.forget(&other);
        assert!(fs::read_dir(&shells.dir).unwrap().count() <= 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_report_or_one(bytes: Vec<u8>) {
            let _ = Report::last(&bytes);
            let kept = Kept::from_bytes(&bytes);
            prop_assert_eq!(Kept::from_bytes(&kept.to_bytes()), kept);
        }
    }
}
