//! The hub's own keys: a root key that can be kept elsewhere, and purpose keys that it vouches for.
//!
//! They lie in `<data>/keys/`, one file each. At the first start the root signs a statement about every purpose key; from then on
//! the hub runs on the statements, and `root.key` may be moved to a safe place. It is needed again only when a purpose key changes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use bytes::BytesMut;
use cortex_runtime::keyfile::{self, KeyFileError};
use cortex_wire::{
    frame,
    id::HubId,
    key::{self, KeyError, SecretKey},
    limits,
    schema::{KeyPurpose, KeyStatement, Signed},
};

use crate::secret::Vault;

const ROOT: &str = "root.key";
const STATEMENTS: &str = "statements";

/// Why the hub's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The statements' file.
    #[error("cannot use {path}")]
    Statements {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The statements do not cover the keys that are there.
    #[error(
        "the statements in {path} do not fit the keys beside them: {reason}; put root.key back for one start, and they are signed anew"
    )]
    Unstated {
        /// The file.
        path: PathBuf,
        /// Which.
        reason: String,
    },
    /// The root key is another hub's.
    #[error("root.key is not the one that signed {path}; put the right one back, or move this one away")]
    ForeignRoot {
        /// The file.
        path: PathBuf,
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
    /// What secrets are sealed with. The root has no part in it: it speaks to nobody.
    pub vault: Vault,
    statements: Vec<Signed>,
    invite_statement: Signed,
}

impl HubKeys {
    /// Reads the keys in `dir`, and makes what is missing as long as the root key is there to vouch for it.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn open(dir: &Path, now_ms: i64) -> Result<Self, KeysError> {
        let path = dir.join(STATEMENTS);
        let mut statements = read_statements(&path)?;
        let root = match statements.is_empty() {
            true => Some(keyfile::load_or_create(&dir.join(ROOT))?),
            false => load_if_there(&dir.join(ROOT))?,
        };
        let id = match (&root, statements.first().and_then(stated_hub)) {
            (Some(root), None) => HubId::from(root.public()),
            (Some(root), Some(id)) if root.public() == *id.key() => id,
            (Some(_), Some(_)) => return Err(KeysError::ForeignRoot { path }),
            (None, Some(id)) => id,
            (None, None) => return Err(KeysError::Unstated { path, reason: "they cannot be read".into() }),
        };
        let open = |name: &str| {
            let path = dir.join(name);
            if root.is_some() { keyfile::load_or_create(&path) } else { keyfile::load(&path) }
        };
        let (transport, task) = (open("transport.key")?, open("task.key")?);
        let (ticket, invite, audit) = (open("ticket.key")?, open("invite.key")?, open("audit.key")?);
        let keys = [
            (KeyPurpose::Transport, &transport),
            (KeyPurpose::Task, &task),
            (KeyPurpose::Ticket, &ticket),
            (KeyPurpose::Invite, &invite),
            (KeyPurpose::Audit, &audit),
        ];
        let mut invite_statement = None;
        let mut changed = false;
        for (purpose, key) in keys {
            let index = match (find(&statements, &id, purpose, key, now_ms), &root) {
                (Some(index), _) => index,
                (None, Some(root)) => {
                    let sequence = statements.iter().filter_map(sequence_of).max().unwrap_or(0) + 1;
                    // No bounds in time: a node whose clock is wrong must still find its hub, and sequences retire a key.
                    statements.push(key::state_key(root, purpose, &key.public(), sequence, 0, 0));
                    changed = true;
                    statements.len() - 1
                }
                (None, None) => return Err(KeysError::Unstated { path, reason: format!("{} is not covered", purpose.as_str_name()) }),
            };
            if purpose == KeyPurpose::Invite {
                invite_statement = Some(statements[index].clone());
            }
        }
        if changed {
            write_statements(&path, &statements)?;
        }
        let invite_statement = invite_statement.unwrap_or_default();
        let vault = Vault::open(&dir.join("secrets.key"))?;
        Ok(Self { id, transport, task, ticket, invite, audit, vault, statements, invite_statement })
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

fn load_if_there(path: &Path) -> Result<Option<SecretKey>, KeyFileError> {
    match keyfile::load(path) {
        Ok(key) => Ok(Some(key)),
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn decoded(signed: &Signed) -> Option<KeyStatement> {
    key::decode_strict(&signed.body).ok()
}

fn stated_hub(signed: &Signed) -> Option<HubId> {
    HubId::from_slice(&decoded(signed)?.hub_root).ok()
}

fn sequence_of(signed: &Signed) -> Option<u64> {
    decoded(signed).map(|statement| statement.sequence)
}

/// Where the newest statement for this purpose is, if it is about this key.
fn find(statements: &[Signed], hub: &HubId, purpose: KeyPurpose, key: &SecretKey, now_ms: i64) -> Option<usize> {
    let checked = statements.iter().map(|signed| key::check_statement(signed, hub, purpose, now_ms));
    let newest =
        checked.enumerate().filter_map(|(i, found): (_, Result<_, KeyError>)| Some((i, found.ok()?))).max_by_key(|(_, s)| s.sequence);
    newest.filter(|(_, stated)| stated.key == key.public()).map(|(i, _)| i)
}

fn read_statements(path: &Path) -> Result<Vec<Signed>, KeysError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(KeysError::Statements { path: path.to_owned(), source }),
    };
    let malformed = || KeysError::Unstated { path: path.to_owned(), reason: "the file is damaged".into() };
    let mut buffer = BytesMut::from(bytes.as_slice());
    let mut statements = Vec::new();
    while let Some(signed) = frame::decode(&mut buffer, limits::CONTROL_FRAME_BYTES).map_err(|_| malformed())? {
        statements.push(signed);
    }
    if buffer.is_empty() { Ok(statements) } else { Err(malformed()) }
}

fn write_statements(path: &Path, statements: &[Signed]) -> Result<(), KeysError> {
    let write = || {
        let staged = path.with_extension("new");
        let mut file = File::create(&staged)?;
        for signed in statements {
            file.write_all(&frame::encode(signed))?;
        }
        file.sync_all()?;
        fs::rename(&staged, path)?;
        // The keys beside it were renamed into this folder too.
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|source| KeysError::Statements { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn keys_are_made_once_and_stated_by_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let made = HubKeys::open(dir.path(), NOW).unwrap();
        let again = HubKeys::open(dir.path(), NOW).unwrap();
        assert_eq!(made.id(), again.id());
        assert_eq!(made.statements(), again.statements());
        for (purpose, key) in [
            (KeyPurpose::Transport, &again.transport),
            (KeyPurpose::Task, &again.task),
            (KeyPurpose::Ticket, &again.ticket),
            (KeyPurpose::Invite, &again.invite),
            (KeyPurpose::Audit, &again.audit),
        ] {
            let stated = key::find_statement(again.statements(), &again.id(), purpose, NOW).unwrap();
            assert_eq!(stated.key, key.public());
        }
        let stated = key::check_statement(&again.invite_statement(), &again.id(), KeyPurpose::Invite, NOW).unwrap();
        assert_eq!(stated.key, again.invite.public());
    }

    #[test]
    fn the_hub_runs_while_its_root_is_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let made = HubKeys::open(dir.path(), NOW).unwrap();
        fs::rename(dir.path().join(ROOT), dir.path().join("elsewhere")).unwrap();
        assert_eq!(HubKeys::open(dir.path(), NOW).unwrap().id(), made.id());
        fs::remove_file(dir.path().join("task.key")).unwrap();
        assert!(matches!(HubKeys::open(dir.path(), NOW), Err(KeysError::File(_))));
        assert!(!dir.path().join("task.key").exists());
    }

    #[test]
    fn a_replaced_key_is_stated_anew_with_a_higher_sequence() {
        let dir = tempfile::tempdir().unwrap();
        let made = HubKeys::open(dir.path(), NOW).unwrap();
        fs::remove_file(dir.path().join("task.key")).unwrap();
        let again = HubKeys::open(dir.path(), NOW).unwrap();
        let stated = key::find_statement(again.statements(), &made.id(), KeyPurpose::Task, NOW).unwrap();
        assert_ne!(again.task.public(), made.task.public());
        assert_eq!(stated.key, again.task.public());
        fs::remove_file(dir.path().join(ROOT)).unwrap();
        fs::remove_file(dir.path().join("ticket.key")).unwrap();
        keyfile::load_or_create(&dir.path().join("ticket.key")).unwrap();
        assert!(matches!(HubKeys::open(dir.path(), NOW), Err(KeysError::Unstated { .. })));
    }

    #[test]
    fn the_root_of_another_hub_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        HubKeys::open(dir.path(), NOW).unwrap();
        fs::remove_file(dir.path().join(ROOT)).unwrap();
        keyfile::load_or_create(&dir.path().join(ROOT)).unwrap();
        assert!(matches!(HubKeys::open(dir.path(), NOW), Err(KeysError::ForeignRoot { .. })));
    }

    #[test]
    fn damaged_statements_are_told_from_missing_ones() {
        let dir = tempfile::tempdir().unwrap();
        HubKeys::open(dir.path(), NOW).unwrap();
        let path = dir.path().join(STATEMENTS);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(HubKeys::open(dir.path(), NOW), Err(KeysError::Unstated { .. })));
    }
}
