//! What a peer keeps between two starts, in a folder that only its owner reads and only one peer uses.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `node.key` | the node's identity; whoever has it is this node |
//! | `hub.json` | which hub it belongs to, where that is, and the highest sequences seen, so that nothing rolls back |
//! | `journal` | [`crate::journal`] |
//! | `log/` | [`crate::log`]: everything that was ever run here |
//! | `policy` | the last good policy of the hub, as it was signed |
//! | `tasks/` | output of tasks that the hub has not collected |
//! | `way.json` | by which way the running peer's packets go, for `cortex-peer status` |
//! | `links.json` | [`crate::mesh::shown`] |
//! | `lock` | held by the running peer, with its process id |

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cortex_runtime::keyfile::{self, KeyFileError};
use cortex_wire::{
    id::{HubId, NodeId, RelayId},
    invite::RelayEndpoint,
    key::SecretKey,
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("cannot use {path}: {source}{}", hint(.source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another peer runs there.
    #[error("another cortex-peer{holder} uses {path}; stop it, or give this one its own --state-dir")]
    InUse {
        /// The folder.
        path: PathBuf,
        /// " (process 123)", when it is known.
        holder: String,
    },
    /// `hub.json` does not hold what it should.
    #[error("{path} cannot be read ({reason}); restore it from a backup, or remove it and enrol again with a new invite")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// See [`KeyFileError`].
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; choose a folder of yours with --state-dir",
        io::ErrorKind::StorageFull => "; the disk is full",
        _ => "",
    }
}

/// The hub that this node belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubRecord {
    /// The pinned root key.
    pub hub: HubId,
    /// What people call it.
    pub hub_name: String,
    /// This node.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Where the hub can be reached.
    pub relays: Vec<RelayRecord>,
    /// The highest sequences seen.
    pub sequences: Sequences,
    /// Its owner has not approved it yet.
    pub pending: bool,
    /// The invite that was redeemed.
    pub invite_id: Option<String>,
}

/// A relay, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayRecord {
    /// `host:port`.
    pub address: String,
    /// Its pinned key.
    pub key: RelayId,
    /// A label.
    pub region: String,
}

/// The highest sequence of each thing that the hub signs and replaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sequences {
    /// Of the transport key.
    pub transport: u64,
    /// Of the task key.
    pub task: u64,
    /// Of the policy.
    pub policy: u64,
}

impl From<&RelayEndpoint> for RelayRecord {
    fn from(relay: &RelayEndpoint) -> Self {
        Self { address: relay.address.clone(), key: relay.id, region: relay.region.clone() }
    }
}

impl From<&RelayRecord> for RelayEndpoint {
    fn from(relay: &RelayRecord) -> Self {
        Self { address: relay.address.clone(), id: relay.key, region: relay.region.clone() }
    }
}

/// By which way the packets of a running peer go to its hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// "relay", "tcp", "direct".
    pub path: String,
    /// The relay that carries, or is held ready.
    pub relay: String,
    /// Why it is that way.
    pub why: String,
    /// To the hub and back, when that was written.
    pub rtt_us: u64,
}

/// Shows by which way packets go, or that there is none. It is of no use after a crash, so it may be lost.
pub fn show_way(folder: &Path, way: Option<&Way>) {
    let (path, staged) = (way_path(folder), way_path(folder).with_extension("tmp"));
    let shown = match way.map(serde_json::to_vec) {
        Some(Ok(text)) => fs::write(&staged, text).and_then(|()| fs::rename(&staged, &path)),
        Some(Err(error)) => Err(error.into()),
        None if path.exists() => fs::remove_file(&path),
        None => Ok(()),
    };
    if let Err(error) = shown {
        tracing::debug!(%error, "cannot show which way packets go");
    }
}

/// By which way the packets of the peer that holds `folder` go, if it runs and is connected.
pub fn way_in(folder: &Path) -> Option<Way> {
    holder_of(folder)?;
    serde_json::from_slice(&fs::read(way_path(folder)).ok()?).ok()
}

fn way_path(folder: &Path) -> PathBuf {
    folder.join("way.json")
}

/// The state folder, held by this process.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    _lock: File,
}

/// A peer that was just killed may have been starting a program: until that has begun to run, it holds the lock as well.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

fn lock_within(file: &File, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    while flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

impl State {
    /// Makes the folder if need be and takes it for this process.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        keyfile::make_private_dir(path).map_err(|source| StateError::Io { path: path.to_owned(), source })?;
        let lock_path = path.join("lock");
        let io_error = |source| StateError::Io { path: lock_path.clone(), source };
        let mut options = OpenOptions::new();
        let mut lock = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(io_error)?;
        if !lock_within(&lock, LOCK_PATIENCE) {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            let holder = holder.trim().parse::<u32>().map(|pid| format!(" (process {pid})")).unwrap_or_default();
            return Err(StateError::InUse { path: path.to_owned(), holder });
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(io_error)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's key, made at the first start.
    ///
    /// # Errors
    /// [`StateError::Key`].
    pub fn key(&self) -> Result<SecretKey, StateError> {
        Ok(keyfile::load_or_create(&key_path(&self.path))?)
    }

    /// Keeps what the hub said.
    ///
    /// # Errors
    /// [`StateError::Io`]; what was kept before is still there then.
    pub fn remember(&self, record: &HubRecord) -> Result<(), StateError> {
        let path = record_path(&self.path);
        let io_error = |source| StateError::Io { path: path.clone(), source };
        let text = serde_json::to_string_pretty(record).map_err(|error| io_error(error.into()))?;
        let staged = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&staged).map_err(io_error)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error)?;
        fs::rename(&staged, &path).and_then(|()| File::open(&self.path)?.sync_all()).map_err(io_error)
    }

    /// What was kept, if this node has joined a hub.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn record(&self) -> Result<Option<HubRecord>, StateError> {
        record_in(&self.path)
    }
}

/// The hub of the peer whose state is in `folder`, without taking the folder.
///
/// # Errors
/// [`StateError`].
pub fn record_in(folder: &Path) -> Result<Option<HubRecord>, StateError> {
    let path = record_path(folder);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Io { path, source }),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| StateError::Malformed { path, reason: error.to_string() })
}

/// The key of the peer whose state is in `folder`, if there is one.
///
/// # Errors
/// [`StateError::Key`].
pub fn key_in(folder: &Path) -> Result<Option<SecretKey>, StateError> {
    let path = key_path(folder);
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(keyfile::load(&path)?))
}

/// The process that holds `folder`, if one does.
pub fn holder_of(folder: &Path) -> Option<u32> {
    let mut lock = File::open(folder.join("lock")).ok()?;
    if flock(&lock, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut holder = String::new();
    lock.read_to_string(&mut holder).ok()?;
    holder.trim().parse().ok()
}

fn key_path(folder: &Path) -> PathBuf {
    folder.join("node.key")
}

fn record_path(folder: &Path) -> PathBuf {
    folder.join("hub.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn record() -> HubRecord {
        let key = |seed| SecretKey::from_seed([seed; 32]).public();
        HubRecord {
            hub: key(1).into(),
            hub_name: "home".into(),
            node: key(2).into(),
            name: "laptop".into(),
            relays: vec![RelayRecord { address: "hub.example:443".into(), key: key(3).into(), region: "eu".into() }],
            sequences: Sequences { transport: 1, task: 2, policy: 3 },
            pending: false,
            invite_id: None,
        }
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = State::open(&path).unwrap();
        assert_eq!(state.record().unwrap(), None);
        let key = state.key().unwrap();
        state.remember(&record()).unwrap();
        drop(state);
        let state = State::open(&path).unwrap();
        assert_eq!(state.record().unwrap(), Some(record()));
        assert_eq!(state.key().unwrap().public(), key.public());
        for (file, mode) in [("", 0o700), ("node.key", 0o600), ("hub.json", 0o600), ("lock", 0o600)] {
            assert_eq!(fs::metadata(path.join(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
        }
    }

    #[test]
    fn the_way_is_shown_while_the_peer_runs() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let way = Way { path: "direct".into(), relay: "hub.example:443".into(), why: "because".into(), rtt_us: 7 };
        show_way(dir.path(), Some(&way));
        assert_eq!(way_in(dir.path()), Some(way.clone()));
        show_way(dir.path(), None);
        assert_eq!(way_in(dir.path()), None);
        show_way(dir.path(), Some(&way));
        drop(state);
        assert_eq!(way_in(dir.path()), None);
    }

    #[test]
    fn two_peers_never_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = State::open(dir.path()).unwrap();
        let refused = State::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("(process {})", std::process::id())), "{refused}");
        assert_eq!(holder_of(dir.path()), Some(std::process::id()));
        drop(first);
        assert_eq!(holder_of(dir.path()), None);
        assert!(State::open(dir.path()).is_ok());
    }

    #[test]
    fn a_damaged_record_is_not_taken_for_a_new_node() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        fs::write(dir.path().join("hub.json"), "{").unwrap();
        assert!(matches!(state.record(), Err(StateError::Malformed { .. })));
    }
}
