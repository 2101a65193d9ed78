//! How browsers are run, where their windows are, and how pages are confined in them.

use std::{env, ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use super::Allowed;

/// Pages are confined by Chromium's own sandbox.
pub const LEVEL: &str = "chromium";
/// Chromium's own sandbox is off, because the peer is root or the machine cannot.
pub const LEVEL_BARE: &str = "chromium_no_sandbox";

/// Why a browser here is [`LEVEL_BARE`], and what to do about it.
pub fn why_bare() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "Chromium's own sandbox is off, because the peer runs as root. Fix: run the peer as an ordinary user, or send the action without `strict`"
    } else {
        "Chromium cannot make its own sandbox here. Fix: let ordinary users make user namespaces (`cortex-peer doctor` names the setting), or install Chromium's \
         own helper (Debian: apt install chromium-sandbox); a container has to allow it, too. Then restart the peer, or send the action without `strict`"
    }
}

/// What a program is told to find the screen that its window is to be on.
#[derive(Debug, Clone, Default)]
pub struct Screen(Vec<(&'static str, OsString)>);

impl Screen {
    /// X11's display, by its name: ":0".
    pub fn x11(display: impl Into<OsString>) -> Self {
        Self(vec![("DISPLAY", display.into())])
    }

    /// That of the person who started the peer, if there is one.
    pub fn of_environment() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(|value| (name, value));
        Self(["DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR"].into_iter().filter_map(set).collect())
    }

    /// Whether it names one. Nobody knows yet whether it is there.
    pub fn is_named(&self) -> bool {
        self.0.iter().any(|(name, _)| matches!(*name, "DISPLAY" | "WAYLAND_DISPLAY"))
    }

    /// For the environment of the program.
    pub fn variables(&self) -> impl Iterator<Item = (String, OsString)> {
        self.0.iter().map(|(name, value)| ((*name).to_owned(), value.clone()))
    }
}

/// How browsers are run.
#[derive(Debug, Clone)]
pub struct BrowserOptions {
    /// The program; none: found by the search path.
    pub program: Option<PathBuf>,
    /// Private to the peer.
    pub scratch_dir: PathBuf,
    /// One folder per session in it.
    pub workspace_dir: PathBuf,
    /// Addresses besides the public ones.
    pub allowed: Arc<Allowed>,
    /// Where windows are shown. None: there are none.
    pub screen: Option<Screen>,
    /// Closed when it was not used for this long.
    pub idle: Duration,
    /// What one browser may download, all files together.
    pub download_bytes: u64,
}
