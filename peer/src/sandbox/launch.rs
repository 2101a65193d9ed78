//! The peer's side of one sandbox: what the helper is given, and what is heard of it.

use std::{
    ffi::{CStr, CString, OsString},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::{io::Interest, net::UnixStream, task::JoinSet};

use super::{
    helper::WORD,
    network,
    protect::{Keeper, Kept},
    report::{self, Report},
    spec::Spec,
};
use crate::{
    cgroup::Group,
    process::{Child, Exit, Mark, Processes, Program},
};

/// A helper that takes longer than this has hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a helper is started with.
#[derive(Debug)]
pub struct Launch {
    path: CString,
    argv: Vec<CString>,
    descriptors: [OwnedFd; 3],
    sandboxed: Sandboxed,
    group: Option<Group>,
}

/// What a program has from its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Stdio<'a> {
    /// Standard input, output and error.
    pub streams: [BorrowedFd<'a>; 3],
    /// All three are this terminal instead.
    pub terminal: Option<&'a CStr>,
    /// Descriptor 3, when the program was confined as one that keeps.
    pub report: Option<BorrowedFd<'a>>,
}

/// A sandbox from outside, as long as its task lasts.
#[derive(Debug)]
pub struct Sandboxed {
    /// Keeps datagrams apart, whatever its type says.
    reports: UnixStream,
    hosts: Arc<[String]>,
    /// The proxy, which ends with the value.
    proxy: JoinSet<()>,
    _names: Option<Kept>,
}

/// Why a program does not run in its sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A wall could not be built.
    #[error("{0}")]
    Wall(String),
    /// The walls stand, and the program could not be executed.
    #[error("{0}")]
    Program(io::Error),
}

impl Launch {
    /// `workspace`: the session's folder, `folder`: where the helper is started; both are named in the spec, too.
    pub(super) fn new(helper: &Path, mut spec: Spec, workspace: BorrowedFd<'_>, keeper: Option<&Arc<Keeper>>) -> io::Result<Self> {
        spec.parent = rustix::process::getpid().as_raw_nonzero().get();
        let names = keeper.map(|keeper| Keeper::keep(keeper, workspace)).transpose()?;
        if let Some(names) = &names {
            spec.protected = names.names().to_vec();
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // Theirs blocks: a flag of the socket, not of the descriptor.
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let reports = UnixStream::from_std(ours.into())?;
        let path = CString::new(helper.as_os_str().as_bytes())?;
        Ok(Self {
            argv: vec![path.clone(), CString::new(WORD)?],
            path,
            descriptors: [spec.to_file()?, theirs, workspace.try_clone_to_owned()?],
            sandboxed: Sandboxed { reports, hosts: Arc::default(), proxy: JoinSet::new(), _names: names },
            group: None,
        })
    }

    /// Starts the helper, in the folder where the program begins.
    ///
    /// # Errors
    /// What the operating system says; nothing was started then.
    pub fn start(&self, processes: &Processes, mark: Mark, folder: BorrowedFd<'_>, stdio: Stdio<'_>) -> io::Result<Child> {
        let Stdio { streams: stdio, terminal, report } = stdio;
        let more: Vec<_> = self.descriptors.iter().map(OwnedFd::as_fd).chain(report).collect();
        // Variables may change what the loader does: the program's are for the program only.
        let program = Program { path: &self.path, argv: &self.argv, environment: &[], folder, stdio, terminal, more: &more };
        processes.start(&program, mark)
    }

    /// Hosts that may be reached from inside.
    pub(super) fn grant(&mut self, hosts: &[String]) {
        self.sandboxed.hosts = hosts.into();
    }

    /// The group that the spec names.
    pub(super) fn enters(&mut self, group: Option<Group>) {
        self.group = group;
    }

    /// The task's group, for whoever ends it.
    pub fn take_group(&mut self) -> Option<Group> {
        self.group.take()
    }

    /// The helper was started, and has what it needs.
    pub fn started(self) -> Sandboxed {
        self.sandboxed
    }
}

impl Sandboxed {
    /// Waits until the program runs behind its walls, and serves the hosts that it may reach.
    ///
    /// # Errors
    /// [`Failure`]; nothing runs then.
    pub async fn up(&mut self) -> Result<(), Failure> {
        let said = tokio::time::timeout(PATIENCE, self.next()).await;
        match said.map_err(|_| Failure::Wall("the helper said nothing for 20 s".into()))?? {
            Some((Report::Started, None)) => Ok(()),
            Some((Report::Started, Some(listener))) => {
                let proxy = network::serve(listener, self.hosts.clone());
                self.proxy.spawn(async move {
                    if let Err(error) = proxy.await {
                        tracing::warn!(%error, "a task's proxy has ended");
                    }
                });
                Ok(())
            }
            Some((Report::NotExecuted(error), _)) => Err(Failure::Program(io::Error::from_raw_os_error(error))),
            Some((Report::Failed(text), _)) => Err(Failure::Wall(text)),
            Some((Report::Ended(_), _)) | None => Err(Failure::Wall("the helper ended without a word".into())),
        }
    }

    /// How the program ended; `None` when that was not seen, because all of it was killed.
    pub async fn ended(&mut self) -> Option<Exit> {
        match self.next().await {
            Ok(Some((Report::Ended(exit), _))) => Some(exit),
            _ => None,
        }
    }

    async fn next(&self) -> Result<Option<(Report, Option<OwnedFd>)>, Failure> {
        let told = self.reports.async_io(Interest::READABLE, || report::receive(&self.reports)).await;
        told.map_err(|error| Failure::Wall(format!("the helper cannot be heard: {error}")))
    }
}

/// The environment of a sandboxed program: what names places that are not there is left out or put right.
pub(super) fn environment(outside: &[(OsString, OsString)], readable: &[std::path::PathBuf]) -> Vec<(OsString, OsString)> {
    const VISIBLE: [&str; 5] = ["/usr", "/bin", "/sbin", "/nix/store", "/lib"];
    let is_visible = |place: &Path| VISIBLE.iter().any(|at| place.starts_with(at)) || readable.iter().any(|at| place.starts_with(at));
    let path = outside.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone()).unwrap_or_default();
    let path = std::env::join_paths(std::env::split_paths(&path).filter(|place| is_visible(place))).unwrap_or_default();
    let path = if path.is_empty() { OsString::from("/usr/local/bin:/usr/bin:/bin") } else { path };
    // Wherever this git would look for it.
    let own = [
        ("GIT_CONFIG_SYSTEM", "/etc/gitconfig"),
        ("HOME", super::root::HOME),
        ("USER", super::root::USER),
        ("LOGNAME", super::root::USER),
        ("SHELL", "/bin/sh"),
    ];
    let replaced = |name: &OsString| name == "PATH" || name == "TMPDIR" || own.iter().any(|(own, _)| name == own);
    let kept = outside.iter().filter(|(name, _)| !replaced(name)).cloned();
    kept.chain(own.map(|(name, value)| (name.into(), value.into()))).chain([("PATH".into(), path)]).collect()
}
