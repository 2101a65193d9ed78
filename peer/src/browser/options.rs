//! How browsers are run, and how pages are confined in them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::Allowed;

/// Pages are confined by Chromium's own sandbox.
pub const LEVEL: &str = "chromium";
/// Chromium's own sandbox is off, because the peer is root or the machine cannot.
pub const LEVEL_BARE: &str = "chromium_no_sandbox";

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
    /// Without a window.
    pub headless: bool,
    /// Closed when it was not used for this long.
    pub idle: Duration,
    /// What one browser may download, all files together.
    pub download_bytes: u64,
}
