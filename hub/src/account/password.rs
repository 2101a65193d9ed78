//! Passwords: Argon2id, a few at a time.

use std::{sync::Arc, time::Duration};

use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version};
use tokio::sync::Semaphore;

use super::AccountError;
use crate::failure::Refused;

/// OWASP's second choice: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
/// Hashes at a time: each holds 19 MiB and a core.
const AT_A_TIME: usize = 4;
/// Whoever waits longer is told to come again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The queue in front of the hash.
#[derive(Debug, Clone)]
pub(super) struct Passwords {
    gate: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { gate: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl Passwords {
    /// The hash to store, in PHC form.
    pub(super) async fn hash(&self, password: &str) -> Result<String, AccountError> {
        if !(8..=1024).contains(&password.len()) {
            return Err(Refused::Invalid("a password has 8 to 1024 bytes".into()).into());
        }
        let password = password.to_owned();
        self.work(move || Some(hasher()?.hash_password(password.as_bytes()).ok()?.to_string())).await
    }

    /// Whether the password is the one of this hash; `None`, of nobody: the same work, and never.
    pub(super) async fn verify(&self, password: &str, hash: Option<String>) -> Result<bool, AccountError> {
        if password.len() > 1024 {
            return Ok(false);
        }
        let password = password.to_owned();
        self.work(move || match hash {
            Some(hash) => Some(hasher()?.verify_password(password.as_bytes(), hash.as_str()).is_ok()),
            None => hasher()?.hash_password(password.as_bytes()).ok().map(|_| false),
        })
        .await
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> Option<T> + Send + 'static) -> Result<T, AccountError> {
        let waiting = tokio::time::timeout(PATIENCE, self.gate.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = waiting else { return Err(AccountError::Busy) };
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        // Only an out-of-memory condition fails the hash.
        done.await.ok().flatten().ok_or(AccountError::Busy)
    }
}

fn hasher() -> Option<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).ok()?;
    Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_own_hash_only() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.verify("correct horse", Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct horsf", Some(hash)).await.unwrap());
        assert!(!passwords.verify("correct horse", None).await.unwrap());
    }

    #[tokio::test]
    async fn a_password_is_neither_short_nor_endless() {
        let passwords = Passwords::default();
        assert!(passwords.hash("1234567").await.is_err());
        assert!(passwords.hash(&"x".repeat(1025)).await.is_err());
        assert!(!passwords.verify(&"x".repeat(1025), None).await.unwrap());
    }
}
