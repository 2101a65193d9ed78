//! Places at which a test kills the program, as `kill -9` would: between what is durable and what was said, where bugs of recovery live.
//!
//! A program of a debug build whose environment names a file in `CORTEX_FAIL_AT` dies at the place whose name the file holds, and takes the file away first, so that it dies
//! once. In release builds nothing is looked at.

use std::{env, fs, path::PathBuf, sync::LazyLock};

use rustix::process::{Signal, getpid, kill_process};

/// The variable that names the file.
pub const VARIABLE: &str = "CORTEX_FAIL_AT";

static FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os(VARIABLE).map(PathBuf::from));

/// Dies here, if a test wants it.
pub fn at(place: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Some(file) = FILE.as_deref() else { return };
    if fs::read_to_string(file).is_ok_and(|wanted| wanted.trim() == place) && fs::remove_file(file).is_ok() {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}
