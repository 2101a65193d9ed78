//! Secrets of tasks: named in what the hub signs, carried beside it.
//!
//! The signed task holds the variable's name and a hash over a fresh salt and the value. Whoever keeps the task (a journal, an audit log) learns nothing from it,
//! and a value that was exchanged on the way does not fit.

use bytes::Bytes;
use subtle::ConstantTimeEq as _;

use crate::{
    limits,
    schema::{SecretReference, SecretValue},
};

/// Why the values beside a task are not the ones that it names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// One is missing.
    #[error("the secret for `{0}` did not come with the task")]
    Missing(String),
    /// It is another one, or cannot be a variable's value.
    #[error("the secret for `{0}` is not the one that the task names")]
    Wrong(String),
}

/// A reference to be signed, and the value to be sent beside it.
pub fn seal(environment_name: &str, value: &[u8], salt: [u8; 32]) -> (SecretReference, SecretValue) {
    let hash = Bytes::copy_from_slice(&hash(&salt, value));
    let reference = SecretReference { environment_name: environment_name.into(), hash };
    let (salt, value) = (Bytes::copy_from_slice(&salt), Bytes::copy_from_slice(value));
    (reference, SecretValue { environment_name: environment_name.into(), salt, value })
}

/// The values that the references name, in their order.
///
/// # Errors
/// [`SecretError`].
pub fn open(references: &[SecretReference], values: &[SecretValue]) -> Result<Vec<(String, Bytes)>, SecretError> {
    let find = |reference: &SecretReference| {
        let name = &reference.environment_name;
        let found = values.iter().find(|value| value.environment_name == *name).ok_or_else(|| SecretError::Missing(name.clone()))?;
        let sound = found.salt.len() == 32 && found.value.len() <= limits::SECRET_BYTES && !found.value.contains(&0);
        let same = bool::from(hash(&found.salt, &found.value).ct_eq(&reference.hash));
        if sound && same { Ok((name.clone(), found.value.clone())) } else { Err(SecretError::Wrong(name.clone())) }
    };
    references.iter().map(find).collect()
}

fn hash(salt: &[u8], value: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("cortex-mesh v1 secret");
    hasher.update(salt).update(value);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_value_that_was_sealed_opens() {
        let (reference, value) = seal("TOKEN", b"hunter2hunter2", [7; 32]);
        let opened = open(std::slice::from_ref(&reference), std::slice::from_ref(&value)).unwrap();
        assert_eq!(opened, [("TOKEN".to_owned(), Bytes::from_static(b"hunter2hunter2"))]);
        let other = SecretValue { value: Bytes::from_static(b"hunter3hunter3"), ..value.clone() };
        assert_eq!(open(std::slice::from_ref(&reference), &[other]), Err(SecretError::Wrong("TOKEN".into())));
        assert_eq!(open(std::slice::from_ref(&reference), &[]), Err(SecretError::Missing("TOKEN".into())));
        // The border between salt and value cannot be moved.
        let moved = SecretValue { salt: [&value.salt[..], b"h"].concat().into(), value: value.value.slice(1..), ..value };
        assert_eq!(open(&[reference], &[moved]), Err(SecretError::Wrong("TOKEN".into())));
    }

    #[test]
    fn a_value_that_cannot_be_a_variable_s_is_refused() {
        for value in [&b"with\0zero"[..], &vec![b'x'; limits::SECRET_BYTES + 1]] {
            let (reference, value) = seal("A", value, [0; 32]);
            assert_eq!(open(&[reference], &[value]), Err(SecretError::Wrong("A".into())));
        }
    }
}
