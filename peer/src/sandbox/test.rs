//! Runs the self-test: a helper as for a task, in a folder of its own.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use cortex_runtime::{clock, keyfile::make_private_dir};
use cortex_wire::id::TaskId;
use tokio::{io::AsyncReadExt as _, net::unix::pipe};

use super::{Stdio, launch::Launch, probe::Bait, protect, spec::Spec};
use crate::process::{Mark, Processes};

/// Much longer than it takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than what it says.
const SAID_BYTES: u64 = 64 * 1024;

/// A folder that goes with the value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns what was said inside.
pub(super) async fn run(helper: &Path) -> Result<String, String> {
    tokio::time::timeout(PATIENCE, attempt(helper)).await.unwrap_or_else(|_| Err("the self-test of the sandbox hung".into()))
}

async fn attempt(helper: &Path) -> Result<String, String> {
    let odd = |error: std::io::Error| format!("the self-test of the sandbox cannot begin: {error}");
    let id = TaskId::new(clock::now_ms(), clock::random());
    let temporary = fs::canonicalize(std::env::temp_dir()).map_err(odd)?;
    let folder = Folder(temporary.join(format!("cortex-probe-{id}")));
    let workspace_path = folder.0.join("workspace");
    make_private_dir(&folder.0).and_then(|()| make_private_dir(&workspace_path)).map_err(odd)?;
    let bait = Bait::lay(&folder.0).map_err(odd)?;
    let workspace: OwnedFd = File::open(&workspace_path).map_err(odd)?.into();
    let at = workspace_path.as_os_str().as_bytes().to_vec();
    let spec = Spec { workspace: at.clone(), folder: at, protected: protect::names(), probe: Some(bait.probe.clone()), ..Spec::default() };
    let launch = Launch::new(helper, spec, workspace.as_fd(), None).map_err(odd)?;
    let (said, write) = std::io::pipe().map_err(odd)?;
    let said = pipe::Receiver::from_owned_fd(said.into()).map_err(odd)?;
    let nothing = File::open("/dev/null").map_err(odd)?;
    let processes = Processes::new().map_err(odd)?;
    let stdio = Stdio { streams: [nothing.as_fd(), write.as_fd(), nothing.as_fd()], terminal: None, report: None };
    let child = launch.start(&processes, Mark::of(&id), workspace.as_fd(), stdio).map_err(odd)?;
    drop(write);
    let mut sandboxed = launch.started();
    let heard = async {
        sandboxed.up().await.map_err(|failure| failure.to_string())?;
        let mut text = String::new();
        said.take(SAID_BYTES).read_to_string(&mut text).await.map_err(odd)?;
        Ok(text)
    };
    let text = heard.await;
    let _ = child.exit.await;
    text
}
