//! Secrets: values that tasks use and nobody reads again.
//!
//! A secret belongs to a user or to a session. It lies in the store encrypted (AES-256-GCM under a key of its own in the hub's key folder, bound to its owner and name), is listed
//! by name only, and leaves the hub beside the tasks that name it, inside the end-to-end connection. A session's secret hides the user's of the same name.

use std::path::Path;

use cortex_runtime::{
    clock::random,
    keyfile::{self, KeyFileError},
};
use cortex_wire::{
    id::{SessionId, UserId},
    key::SecretKey,
    limits, schema,
};
use data_encoding::BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    account::Actor,
    failure::Refused,
    hub::Hub,
    record::{
        Scope, Task,
        tables::{SECRETS_OF_SESSION, SECRETS_OF_USER},
    },
    session,
    store::{Order, ReadTx, Span},
};

/// Secrets of one owner.
const SECRETS: usize = 256;

/// Whose secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Everything this user dispatches may use them.
    User(UserId),
    /// Everything that is dispatched in this session may.
    Session(SessionId),
}

/// A secret as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    /// What tasks call it.
    pub name: String,
    /// Nonce, ciphertext and tag, base64.
    pub sealed: String,
    /// Who gave it.
    pub created_by: UserId,
    /// When it was given, for the last time.
    pub created_at_ms: i64,
}

/// Why a task's secrets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It was removed, or never there.
    #[error("there is no secret `{0}` here or of yours")]
    Unknown(String),
    /// The key in the hub's folder is another one.
    #[error("the secret `{0}` cannot be opened: the hub's secrets.key is not the one it was sealed with; give it again")]
    Unreadable(String),
    /// The store failed.
    #[error("the hub's store failed")]
    Store(#[from] crate::store::StoreError),
}

/// What secrets are sealed with.
pub struct Vault(LessSafeKey);

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

impl Vault {
    /// With the key at `path`, which is made when it is not there.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        keyfile::load_or_create(path).map(|key| Self::of(&key))
    }

    #[expect(clippy::expect_used, reason = "the key has the length of the algorithm's")]
    fn of(key: &SecretKey) -> Self {
        let bytes = Zeroizing::new(blake3::derive_key("cortex-mesh v1 secrets at rest", &key.to_seed()));
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes[..]).expect("32 bytes")))
    }

    fn seal(&self, owner: Owner, name: &str, value: &[u8]) -> Option<String> {
        // Random, of 96 bits: far fewer secrets are ever sealed than would make two alike.
        let nonce: [u8; NONCE_LEN] = random();
        let mut sealed = value.to_vec();
        self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound_to(owner, name), &mut sealed).ok()?;
        Some(BASE64.encode(&[&nonce[..], &sealed].concat()))
    }

    fn unseal(&self, owner: Owner, name: &str, sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = BASE64.decode(sealed.as_bytes()).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let mut value = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let len = self.0.open_in_place(nonce, bound_to(owner, name), &mut value).ok()?.len();
        value.truncate(len);
        Some(value)
    }
}

fn bound_to(owner: Owner, name: &str) -> Aad<String> {
    Aad::from(match owner {
        Owner::User(user) => format!("user:{user}:{name}"),
        Owner::Session(session) => format!("session:{session}:{name}"),
    })
}

fn object(owner: Owner, name: &str) -> String {
    match owner {
        Owner::User(_) => format!("secret:{name}"),
        Owner::Session(session) => format!("session:{session}/secret:{name}"),
    }
}

/// Letters, digits and a few signs, as in the names of variables and files.
fn check_name(name: &str) -> Result<(), Refused> {
    if cortex_wire::task::is_shell_name(name) {
        return Ok(());
    }
    Err(Refused::Invalid("a secret's name has 1 to 64 letters, digits, - _ .".into()))
}

fn check_value(value: &str) -> Result<(), Refused> {
    let significant = value.trim_end_matches(['\r', '\n']).len();
    if significant < limits::SECRET_LEAST_BYTES {
        return Err(Refused::Invalid(format!(
            "a secret has at least {} bytes: a shorter one cannot be told from ordinary output, so it could not be kept out of it",
            limits::SECRET_LEAST_BYTES
        )));
    }
    if value.len() > limits::SECRET_BYTES || value.contains('\0') {
        return Err(Refused::Invalid(format!("a secret has at most {} bytes, and no zero byte", limits::SECRET_BYTES)));
    }
    Ok(())
}

fn list(tx: &dyn ReadTx, owner: Owner) -> Result<Vec<SecretRecord>, crate::store::StoreError> {
    match owner {
        Owner::User(user) => SECRETS_OF_USER.list(tx, &Span::under(user), Order::Ascending, usize::MAX),
        Owner::Session(session) => SECRETS_OF_SESSION.list(tx, &Span::under(session), Order::Ascending, usize::MAX),
    }
}

fn get(tx: &dyn ReadTx, owner: Owner, name: &str) -> Result<Option<SecretRecord>, crate::store::StoreError> {
    match owner {
        Owner::User(user) => SECRETS_OF_USER.get(tx, &(user, name.to_owned())),
        Owner::Session(session) => SECRETS_OF_SESSION.get(tx, &(session, name.to_owned())),
    }
}

/// Whether the actor may give and take secrets of this owner.
fn may_manage(tx: &dyn ReadTx, actor: &Actor, owner: Owner) -> Result<(), Refused> {
    match owner {
        Owner::User(user) if user == actor.user => actor.must(Scope::Manage),
        Owner::User(_) => Err(Refused::NotFound("secret")),
        Owner::Session(session) => session::used_by(tx, actor, Scope::Manage, session).map(drop),
    }
}

/// The secret that a task of this session and user means by a name.
fn meant(tx: &dyn ReadTx, session: SessionId, user: UserId, name: &str) -> Result<Option<(Owner, SecretRecord)>, crate::store::StoreError> {
    for owner in [Owner::Session(session), Owner::User(user)] {
        if let Some(record) = get(tx, owner, name)? {
            return Ok(Some((owner, record)));
        }
    }
    Ok(None)
}

/// The first secret of these names that a task could not have.
pub(crate) fn missing<'a>(
    tx: &dyn ReadTx,
    session: SessionId,
    user: UserId,
    names: impl IntoIterator<Item = &'a String>,
) -> Result<Option<String>, crate::store::StoreError> {
    for name in names {
        if meant(tx, session, user, name)?.is_none() {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

impl Hub {
    /// Stores a secret, in the place of one of the same name.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn put_secret(&self, actor: &Actor, owner: Owner, name: &str, value: Zeroizing<String>) -> Result<SecretRecord, Refused> {
        check_name(name)?;
        check_value(&value)?;
        let sealed =
            self.keys.vault.seal(owner, name, value.as_bytes()).ok_or_else(|| Refused::Invalid("the secret cannot be sealed".into()))?;
        let (actor, name) = (actor.clone(), name.to_owned());
        self.change(actor.subject(), move |change| {
            may_manage(change.tx, &actor, owner)?;
            let known = list(change.tx, owner)?;
            if known.len() >= SECRETS && known.iter().all(|secret| secret.name != name) {
                return Err(Refused::Invalid(format!("there are {SECRETS} secrets already; remove one first")));
            }
            let record = SecretRecord { name: name.clone(), sealed, created_by: actor.user, created_at_ms: change.now_ms };
            match owner {
                Owner::User(user) => SECRETS_OF_USER.put(change.tx, &(user, name.clone()), &record)?,
                Owner::Session(session) => SECRETS_OF_SESSION.put(change.tx, &(session, name.clone()), &record)?,
            }
            change.audit("secret.put", &object(owner, &name), json!({ "name": name }).to_string().as_bytes())?;
            Ok(record)
        })
        .await
    }

    /// Names of secrets.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn secrets(&self, actor: &Actor, owner: Owner) -> Result<Vec<SecretRecord>, Refused> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                match owner {
                    Owner::Session(session) => session::seen_by(tx, &actor, session).map(drop)?,
                    Owner::User(user) if user == actor.user => actor.must(Scope::Read)?,
                    Owner::User(_) => return Err(Refused::NotFound("secret")),
                }
                Ok(list(tx, owner)?)
            })
            .await
    }

    /// Removes a secret. Tasks that have it keep it until they end.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn delete_secret(&self, actor: &Actor, owner: Owner, name: &str) -> Result<(), Refused> {
        let (actor, name) = (actor.clone(), name.to_owned());
        self.change(actor.subject(), move |change| {
            may_manage(change.tx, &actor, owner)?;
            get(change.tx, owner, &name)?.ok_or(Refused::NotFound("secret"))?;
            match owner {
                Owner::User(user) => SECRETS_OF_USER.delete(change.tx, &(user, name.clone()))?,
                Owner::Session(session) => SECRETS_OF_SESSION.delete(change.tx, &(session, name.clone()))?,
            }
            change.audit("secret.delete", &object(owner, &name), b"")?;
            Ok(())
        })
        .await
    }

    /// The secrets that a task names: references to be signed, and values to be sent beside them. For the mesh.
    ///
    /// # Errors
    /// [`SecretError`].
    pub(crate) async fn secrets_for(&self, task: &Task) -> Result<(Vec<schema::SecretReference>, Vec<schema::SecretValue>), SecretError> {
        if task.spec.secrets.is_empty() {
            return Ok(Default::default());
        }
        let (session, user, wanted) = (task.session, task.origin.user, task.spec.secrets.clone());
        let vault = self.keys.clone();
        self.db
            .read(move |tx| {
                let mut both = (Vec::new(), Vec::new());
                for (environment_name, name) in wanted {
                    let (owner, record) = meant(tx, session, user, &name)?.ok_or_else(|| SecretError::Unknown(name.clone()))?;
                    let value = vault.vault.unseal(owner, &name, &record.sealed).ok_or(SecretError::Unreadable(name))?;
                    let (reference, value) = cortex_wire::secret::seal(&environment_name, &value, random());
                    both.0.push(reference);
                    both.1.push(value);
                }
                Ok(both)
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_under_its_own_name_only() {
        let vault = Vault::of(&SecretKey::from_seed([1; 32]));
        let (ada, bob) = (UserId::new(1, [1; 10]), UserId::new(1, [2; 10]));
        let sealed = vault.seal(Owner::User(ada), "token", b"hunter2hunter2").unwrap();
        assert_ne!(vault.seal(Owner::User(ada), "token", b"hunter2hunter2").unwrap(), sealed, "a fresh nonce each time");
        let open = |owner, name, sealed: &str| vault.unseal(owner, name, sealed).map(|value| value.to_vec());
        assert_eq!(open(Owner::User(ada), "token", &sealed).as_deref(), Some(&b"hunter2hunter2"[..]));
        assert_eq!(open(Owner::User(bob), "token", &sealed), None);
        assert_eq!(open(Owner::User(ada), "other", &sealed), None);
        assert_eq!(open(Owner::User(ada), "token", "AAAA"), None);
        let other = Vault::of(&SecretKey::from_seed([2; 32]));
        assert!(other.unseal(Owner::User(ada), "token", &sealed).is_none());
    }

    #[test]
    fn short_values_and_odd_names_are_refused_with_a_reason() {
        assert!(check_value("1234567\n").unwrap_err().to_string().contains("at least 8 bytes"));
        assert!(check_value("12345678").is_ok());
        assert!(check_value("12345678\0").is_err() && check_value(&"x".repeat(limits::SECRET_BYTES + 1)).is_err());
        assert!(check_name("GITHUB_TOKEN").is_ok());
        assert!(["", "a b", "a/b", "é"].iter().all(|name| check_name(name).is_err()));
    }
}
