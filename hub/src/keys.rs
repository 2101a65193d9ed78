//! The hub's own keys: a root key that can be kept elsewhere, and purpose keys that it vouches for.

use std::path::Path;

use cortex_wire::{id::HubId, key::SecretKey, schema::Signed};

/// Why the hub's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key file.
    #[error(transparent)]
    File(#[from] cortex_runtime::keyfile::KeyFileError),
    /// The statements' file.
    #[error("cannot use {path}")]
    Statements {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The statements do not cover the keys that are there.
    #[error("the statements in {path} do not fit the keys beside them: {reason}; put root.key back for one start, and they are signed anew")]
    Unstated {
        /// The file.
        path: std::path::PathBuf,
        /// Which.
        reason: String,
    },
}

/// The hub's keys.
#[derive(Debug)]
pub struct HubKeys {
    id: HubId,
    /// Speaks TLS.
    pub transport: SecretKey,
    /// Signs tasks and policies.
    pub task: SecretKey,
    /// Signs tickets.
    pub ticket: SecretKey,
    /// Signs invites.
    pub invite: SecretKey,
    /// Signs audit checkpoints.
    pub audit: SecretKey,
    statements: Vec<Signed>,
    invite_statement: Signed,
}

impl HubKeys {
    /// Reads the keys in `dir`, makes those that are missing.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn open(dir: &Path, now_ms: i64) -> Result<Self, KeysError> {
        let _ = (dir, now_ms);
        todo!()
    }

    /// The hub: its root's public half.
    pub fn id(&self) -> HubId {
        self.id
    }

    /// The root's word for each purpose key.
    pub fn statements(&self) -> &[Signed] {
        &self.statements
    }

    /// The root's word for the invite key, which travels in invites.
    pub fn invite_statement(&self) -> Signed {
        self.invite_statement.clone()
    }
}
