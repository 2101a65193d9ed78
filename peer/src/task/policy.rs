//! The last good policy of the hub, kept for the next start: bytes exactly as they were signed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use cortex_wire::{
    key::{Domain, PublicKey},
    limits,
    schema::{SandboxPolicy, Signed},
};
use prost::Message as _;

/// The file. Who may write it could write anything here; it counts because of its signature all the same.
#[derive(Debug)]
pub(super) struct KeptPolicy(PathBuf);

impl KeptPolicy {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("policy"))
    }

    /// What was kept, if the hub's task key has signed it.
    pub(super) fn read(&self, task_key: &PublicKey) -> Option<SandboxPolicy> {
        let length = fs::metadata(&self.0).ok()?.len();
        if length > 2 * limits::POLICY_BYTES as u64 {
            return None;
        }
        let signed = Signed::decode(&fs::read(&self.0).ok()?[..]).ok()?;
        task_key.open(Domain::Policy, &signed).ok()
    }

    /// Keeps a policy. One that cannot be kept is in force all the same, until the peer stops.
    pub(super) fn keep(&self, signed: &Signed) {
        let bytes = signed.encode_to_vec();
        if fs::read(&self.0).is_ok_and(|kept| kept == bytes) {
            return;
        }
        if let Err(error) = self.replace(&bytes) {
            tracing::warn!(path = %self.0.display(), %error, "the hub's policy could not be kept for the next start");
        }
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let staged = self.0.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(bytes).and_then(|()| file.sync_all())?;
        fs::rename(&staged, &self.0)?;
        match self.0.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}
