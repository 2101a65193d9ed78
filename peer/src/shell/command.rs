//! From a shell task to a program that can be started: which file, which arguments, which environment, in which folder.
//!
//! Everything that can be found wrong before a process exists is found here, and said in words that help. The folder is opened, not
//! named: what is checked is what the program starts in, whatever happens to symbolic links meanwhile.

use std::{
    ffi::{CString, OsStr, OsString},
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use cortex_runtime::keyfile::make_private_dir;
use cortex_wire::{
    id::{SessionId, TaskId},
    schema::{self, ShellTask},
};
use rustix::{
    fs::{Access, AtFlags, FileType, Mode, OFlags, accessat, mkdirat, openat, statat},
    io::Errno,
};

use super::kept::{self, Began, Kept};

/// Linux takes no single argument of this size or more, its closing zero included (MAX_ARG_STRLEN).
const ARGUMENT_BYTES: usize = 128 * 1024;

/// Variables a task inherits without being on the allow-list.
const INHERITED: [&str; 10] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TMPDIR", "SSL_CERT_*"];

/// Where PATH is not set at all.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A folder is opened to be entered, not to be read.
#[cfg(target_os = "linux")]
const LOOK_ONLY: OFlags = OFlags::PATH;
#[cfg(not(target_os = "linux"))]
const LOOK_ONLY: OFlags = OFlags::RDONLY;

/// What all tasks of a peer have in common.
#[derive(Debug, Clone)]
pub struct Place {
    /// Absolute; one folder per session in it.
    pub workspace_dir: PathBuf,
    /// Private to the peer; for scripts too long to be an argument.
    pub scratch_dir: PathBuf,
    /// For scripts that name no shell.
    pub shell: String,
    /// See [`inherited_environment`].
    pub environment: Vec<(OsString, OsString)>,
}

/// A program, ready to start.
#[derive(Debug)]
pub struct Command {
    /// The file.
    pub path: CString,
    /// Arguments, the first of them the name.
    pub argv: Vec<CString>,
    /// `NAME=value`.
    pub environment: Vec<CString>,
    /// Where it begins.
    pub folder: OwnedFd,
    /// The session's folder.
    pub root: OwnedFd,
    /// Where that is.
    pub root_path: PathBuf,
    /// Where `folder` is.
    pub folder_path: PathBuf,
    /// Keeps a script in a file for as long as it runs.
    pub script: Option<ScriptFile>,
    /// It runs in a terminal of this size.
    pub terminal: Option<schema::Terminal>,
    /// It says at its end what the next command of its shell session begins with.
    pub began: Option<Began>,
}

/// What a command is given besides what its task says.
#[derive(Debug, Default)]
pub struct Beside<'a> {
    /// What its shell session kept.
    pub kept: Kept,
    /// Variables with their values.
    pub secrets: &'a [(String, Bytes)],
}

/// A script too long for an argument; the file goes with the value.
#[derive(Debug)]
pub struct ScriptFile(PathBuf);

impl ScriptFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScriptFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The variables of `from` that every task sees: the harmless ones and those of the allow-list, in which `*` at the end stands for any ending.
pub fn inherited_environment(allowed: &[String], from: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let fits = |name: &OsStr, pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.as_bytes().starts_with(start.as_bytes()),
        None => name == pattern,
    };
    let patterns = || INHERITED.iter().copied().chain(allowed.iter().map(String::as_str));
    let mut environment: Vec<_> = from.into_iter().filter(|(name, _)| patterns().any(|pattern| fits(name, pattern))).collect();
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", "/"), ("LANG", "C.UTF-8"), ("TERM", "dumb")] {
        if !environment.iter().any(|(known, _)| known == name) {
            environment.push((name.into(), value.into()));
        }
    }
    environment
}

/// Prepares a shell task.
///
/// # Errors
/// Why it cannot start, for the person who asked.
pub fn prepare(task: &ShellTask, session: &SessionId, id: &TaskId, place: &Place, beside: &Beside<'_>) -> Result<Command, String> {
    let root_path = place.workspace_dir.join(session.to_string());
    let (cwd, (root, folder)) = match open_folder(&place.workspace_dir, &session.to_string(), cwd_of(task, &beside.kept)) {
        // What a shell session came to may be gone.
        Err(_) if task.cwd.is_empty() => (String::new(), open_folder(&place.workspace_dir, &session.to_string(), "")?),
        folders => (cwd_of(task, &beside.kept).to_owned(), folders?),
    };
    let pwd = if cwd.is_empty() { root_path.clone() } else { root_path.join(&cwd) };
    let environment = environment_of(task, session, id, place, &pwd, beside);
    let search = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone()).unwrap_or_default();

    let mut script = None;
    let shell = if task.shell.is_empty() { place.shell.as_str() } else { task.shell.as_str() };
    let keeps = task.shell_session.is_some() && !task.script.is_empty();
    let (name, argv) = if let Some(name) = task.argv.first() {
        (name.as_str(), task.argv.clone())
    } else if task.script.is_empty() {
        // In a terminal.
        (shell, vec![shell.to_owned()])
    } else if keeps {
        (shell, kept_argv(shell, &task.script)?)
    } else {
        if task.script.len() < ARGUMENT_BYTES {
            (shell, vec![shell.to_owned(), "-c".to_owned(), task.script.clone()])
        } else {
            let path = place.scratch_dir.join(format!("{id}.script"));
            write_private(&path, task.script.as_bytes()).map_err(|error| format!("the script could not be put into a file: {error}"))?;
            script = Some(ScriptFile(path.clone()));
            (shell, vec![shell.to_owned(), path.to_string_lossy().into_owned()])
        }
    };
    if let Some(long) = argv.iter().position(|argument| argument.len() >= ARGUMENT_BYTES) {
        return Err(format!("argument {long} is larger than 128 KiB, more than Linux passes to a program; send it as a file or on stdin"));
    }
    let path = find_program(name, &search, &folder, &pwd)?;
    let secrets = || beside.secrets.iter().map(|(_, value)| value.clone()).collect();
    let began = keeps.then(|| Began { root: root_path.clone(), folder: cwd, environment: environment.clone(), secrets: secrets() });
    Ok(Command {
        terminal: task.terminal,
        began,
        path: c_string(path)?,
        argv: argv.into_iter().map(c_string).collect::<Result<_, _>>()?,
        environment: environment.into_iter().map(|(name, value)| assignment(name, &value)).collect::<Result<_, _>>()?,
        folder,
        root,
        root_path,
        folder_path: pwd,
        script,
    })
}

/// Where a task begins: where it says, or where its shell session was.
fn cwd_of<'a>(task: &'a ShellTask, kept: &'a Kept) -> &'a str {
    if task.cwd.is_empty() { &kept.folder } else { &task.cwd }
}

/// A script whose shell says at its end what is to be kept.
fn kept_argv(shell: &str, script: &str) -> Result<Vec<String>, String> {
    if !kept::is_posix(shell) {
        return Err(format!(
            "`{shell}` cannot keep a shell session; name sh, bash, dash, ksh or zsh as `shell`, or leave `shell_session` out"
        ));
    }
    if script.len() >= ARGUMENT_BYTES {
        return Err("a script of a shell session has less than 128 KiB; put it into a file of the workspace and run that".into());
    }
    Ok([shell, "-c", kept::WRAPPER, shell, script].map(str::to_owned).into())
}

/// Says why a prepared program did not start after all.
pub fn explain(command: &Command, error: &io::Error) -> String {
    let path = command.path.to_string_lossy();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => format!("`{path}` exists, but the interpreter in its first line (or its loader) does not"),
        Some(Errno::NOEXEC) => {
            format!(
                "`{path}` is neither a program for this machine nor a script with `#!` in its first line; run it through its interpreter"
            )
        }
        Some(Errno::TOOBIG) => "arguments and environment together are larger than this machine passes to a program".to_owned(),
        Some(Errno::AGAIN | Errno::NOMEM) => format!("this machine cannot start another process now: {error}"),
        _ => format!("`{path}` could not be started: {error}"),
    }
}

fn environment_of(
    task: &ShellTask,
    session: &SessionId,
    id: &TaskId,
    place: &Place,
    pwd: &Path,
    beside: &Beside<'_>,
) -> Vec<(OsString, OsString)> {
    let mut environment = place.environment.clone();
    environment.retain(|(known, _)| !beside.kept.unset.contains(known));
    let mut set = |name: &OsStr, value: &OsStr| {
        environment.retain(|(known, _)| known != name);
        environment.push((name.into(), value.into()));
    };
    if task.terminal.is_some() {
        set("TERM".as_ref(), "xterm-256color".as_ref());
    }
    beside.kept.set.iter().for_each(|(name, value)| set(name, value));
    set("PWD".as_ref(), pwd.as_os_str());
    for variable in &task.environment {
        set(variable.name.as_ref(), variable.value.as_ref());
    }
    beside.secrets.iter().for_each(|(name, value)| set(name.as_ref(), OsStr::from_bytes(value)));
    set("CORTEX_SESSION".as_ref(), session.to_string().as_ref());
    set("CORTEX_TASK".as_ref(), id.to_string().as_ref());
    environment
}

/// Opens the session's folder, which is made when it is not there, and `cwd` inside it.
pub(crate) fn open_folder(workspace_dir: &Path, session: &str, cwd: &str) -> Result<(OwnedFd, OwnedFd), String> {
    let flags = LOOK_ONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let at = |what: &str| {
        let what = what.to_owned();
        move |error: Errno| format!("{what}: {}", io::Error::from(error))
    };
    let open_workspace = || rustix::fs::open(workspace_dir, flags, Mode::empty());
    let workspace = match open_workspace() {
        Err(Errno::NOENT) => {
            make_private_dir(workspace_dir).map_err(|error| format!("the workspace folder cannot be made: {error}"))?;
            open_workspace()
        }
        result => result,
    };
    let workspace = workspace.map_err(at("the workspace folder cannot be used"))?;
    let root = match openat(&workspace, session, flags | OFlags::NOFOLLOW, Mode::empty()) {
        Err(Errno::NOENT) => {
            match mkdirat(&workspace, session, Mode::RWXU) {
                // The mirror, or another task, was quicker.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(at("the session's folder cannot be made")(error)),
            }
            openat(&workspace, session, flags | OFlags::NOFOLLOW, Mode::empty())
        }
        result => result,
    };
    let root = root.map_err(at("the session's folder cannot be used"))?;
    let cwd = if cwd.is_empty() { "." } else { cwd };
    match beneath(&root, cwd, flags, &workspace_dir.join(session)) {
        Ok(folder) => Ok((root, folder)),
        Err(Errno::NOENT) => Err(format!("there is no folder `{cwd}` in the session's workspace on this node")),
        Err(Errno::NOTDIR) => Err(format!("`{cwd}` is not a folder")),
        Err(Errno::XDEV | Errno::LOOP) => Err(format!("the folder `{cwd}` leads out of the session's workspace through a symbolic link")),
        Err(error) => Err(at("the folder cannot be used")(error)),
    }
}

/// Opens a path that must not leave `root`, not even through a symbolic link.
pub(crate) fn beneath(root: &OwnedFd, path: &str, flags: OFlags, root_path: &Path) -> Result<OwnedFd, Errno> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{ResolveFlags, openat2};
        // EAGAIN: something was renamed meanwhile, and the kernel cannot be sure.
        for _ in 0..64 {
            match openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
                Err(Errno::AGAIN) => {}
                // Before Linux 5.6, or in a container that forbids what it does not know.
                Err(Errno::NOSYS | Errno::PERM) => break,
                result => return result,
            }
        }
    }
    let real = |path: &Path| fs::canonicalize(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    if !real(&root_path.join(path))?.starts_with(real(root_path)?) {
        return Err(Errno::XDEV);
    }
    openat(root, path, flags, Mode::empty())
}

/// The file that a command's name stands for.
fn find_program(name: &str, search: &OsStr, folder: &OwnedFd, pwd: &Path) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match executable(folder, Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(format!("there is no file `{name}` on this node")),
            Err(Errno::ISDIR) => Err(format!("`{name}` is a folder")),
            Err(Errno::ACCESS) => Err(format!("`{name}` is not executable; run: chmod +x {name}, or run it through its interpreter")),
            Err(error) => Err(format!("`{name}` cannot be run: {}", io::Error::from(error))),
        };
    }
    let mut forbidden = None;
    for place in std::env::split_paths(search) {
        let path = if place.is_absolute() { place.join(name) } else { pwd.join(place).join(name) };
        match executable(folder, &path) {
            Ok(()) => return Ok(path),
            Err(Errno::ACCESS) => forbidden = Some(path),
            Err(_) => {}
        }
    }
    Err(match forbidden {
        Some(path) => format!("`{}` is not executable", path.display()),
        None => format!("there is no program `{name}` on this node; PATH is {}", search.to_string_lossy()),
    })
}

fn executable(folder: &OwnedFd, path: &Path) -> Result<(), Errno> {
    accessat(folder, path, Access::EXEC_OK, AtFlags::empty())?;
    match FileType::from_raw_mode(statat(folder.as_fd(), path, AtFlags::empty())?.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::ACCESS),
    }
}

fn write_private(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, data)
}

fn assignment(mut name: OsString, value: &OsStr) -> Result<CString, String> {
    name.push("=");
    name.push(value);
    c_string(name)
}

fn c_string(text: impl Into<OsString>) -> Result<CString, String> {
    CString::new(text.into().into_vec()).map_err(|_| "a zero byte in the command or its environment".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_wire::schema::EnvironmentVariable;
    use std::os::unix::fs::symlink;

    struct Bench {
        dir: tempfile::TempDir,
        place: Place,
        session: SessionId,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = Place {
                workspace_dir: dir.path().join("work"),
                scratch_dir: dir.path().to_owned(),
                shell: "/bin/sh".into(),
                environment: inherited_environment(&["KEEP_*".into()], [("KEEP_A".into(), "1".into()), ("SECRET".into(), "2".into())]),
            };
            Self { dir, place, session: SessionId::new(1, [1; 10]) }
        }

        fn root(&self) -> PathBuf {
            self.place.workspace_dir.join(self.session.to_string())
        }

        fn prepare(&self, task: &ShellTask) -> Result<Command, String> {
            prepare(task, &self.session, &TaskId::new(1, [2; 10]), &self.place, &Beside::default())
        }
    }

    fn argv(words: &str) -> ShellTask {
        ShellTask { argv: words.split(' ').map(str::to_owned).collect(), ..ShellTask::default() }
    }

    #[test]
    fn a_name_is_looked_up_in_path_and_a_path_is_taken_as_it_is() {
        let bench = Bench::new();
        assert!(bench.prepare(&argv("sh -c true")).unwrap().path.to_str().unwrap().ends_with("/sh"));
        assert_eq!(bench.prepare(&argv("/bin/sh")).unwrap().path.to_str().unwrap(), "/bin/sh");
        let refused = bench.prepare(&argv("no-such-program x")).unwrap_err();
        assert!(refused.starts_with("there is no program `no-such-program` on this node; PATH is /"), "{refused}");
        assert!(bench.prepare(&argv("./missing")).unwrap_err().contains("no file"));
        assert!(bench.prepare(&argv("/bin")).unwrap_err().contains("is a folder"));
        fs::write(bench.root().join("plain"), "x").unwrap();
        assert!(bench.prepare(&argv("./plain")).unwrap_err().contains("chmod +x"));
    }

    #[test]
    fn the_session_has_a_folder_of_its_own_that_only_its_owner_sees() {
        use std::os::unix::fs::PermissionsExt as _;
        let bench = Bench::new();
        bench.prepare(&argv("true")).unwrap();
        assert_eq!(fs::metadata(bench.root()).unwrap().permissions().mode() & 0o777, 0o700);
        fs::create_dir_all(bench.root().join("a/b")).unwrap();
        assert!(bench.prepare(&ShellTask { cwd: "a/b".into(), ..argv("true") }).is_ok());
        assert!(bench.prepare(&ShellTask { cwd: "c".into(), ..argv("true") }).unwrap_err().contains("no folder `c`"));
    }

    #[test]
    fn a_folder_that_leaves_the_workspace_through_a_link_is_refused() {
        let bench = Bench::new();
        bench.prepare(&argv("true")).unwrap();
        fs::create_dir(bench.root().join("in")).unwrap();
        symlink("in", bench.root().join("inside")).unwrap();
        symlink("../../..", bench.root().join("outside")).unwrap();
        symlink("/", bench.root().join("top")).unwrap();
        assert!(bench.prepare(&ShellTask { cwd: "inside".into(), ..argv("true") }).is_ok());
        for cwd in ["outside", "top", "top/etc", "in/../../.."] {
            let refused = bench.prepare(&ShellTask { cwd: cwd.into(), ..argv("true") }).unwrap_err();
            assert!(refused.contains("leads out"), "{cwd}: {refused}");
        }
        let other = SessionId::new(2, [3; 10]);
        symlink(bench.dir.path(), bench.place.workspace_dir.join(other.to_string())).unwrap();
        assert!(prepare(&argv("true"), &other, &TaskId::new(1, [2; 10]), &bench.place, &Beside::default()).is_err());
    }

    #[test]
    fn without_openat2_links_are_resolved_and_compared() {
        let bench = Bench::new();
        bench.prepare(&argv("true")).unwrap();
        symlink("/", bench.root().join("top")).unwrap();
        let real = fs::canonicalize(bench.root().join("top")).unwrap();
        assert!(!real.starts_with(fs::canonicalize(bench.root()).unwrap()));
    }

    #[test]
    fn the_environment_is_clean_and_says_whose_it_is() {
        let bench = Bench::new();
        let variable = |name: &str, value: &str| EnvironmentVariable { name: name.into(), value: value.into() };
        let task = ShellTask { environment: vec![variable("HOME", "/h"), variable("CORTEX_TASK", "forged")], ..argv("true") };
        let environment: Vec<String> =
            bench.prepare(&task).unwrap().environment.iter().map(|text| text.to_str().unwrap().to_owned()).collect();
        for expected in ["KEEP_A=1", "HOME=/h", "TERM=dumb", &format!("CORTEX_SESSION={}", bench.session)] {
            assert!(environment.iter().any(|text| text == expected), "{expected} in {environment:?}");
        }
        assert!(!environment.iter().any(|text| text.contains("SECRET") || text.contains("forged")));
        assert_eq!(environment.iter().filter(|text| text.starts_with("HOME=")).count(), 1);
    }

    #[test]
    fn a_long_script_goes_by_file_and_the_file_goes_with_the_task() {
        let bench = Bench::new();
        let short = bench.prepare(&ShellTask { script: "echo a".into(), ..ShellTask::default() }).unwrap();
        assert_eq!(short.argv[1].to_str().unwrap(), "-c");
        let long = bench.prepare(&ShellTask { script: "#".repeat(ARGUMENT_BYTES), shell: "sh".into(), ..ShellTask::default() }).unwrap();
        let path = PathBuf::from(long.argv[1].to_str().unwrap());
        assert!(path.exists());
        drop(long);
        assert!(!path.exists());
        let refused = bench.prepare(&ShellTask { argv: vec!["true".into(), "x".repeat(ARGUMENT_BYTES)], ..ShellTask::default() });
        assert!(refused.unwrap_err().contains("argument 1 is larger than 128 KiB"));
    }
}
