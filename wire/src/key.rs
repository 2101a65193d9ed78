//! Ed25519 keys, and bytes signed under a domain.
//!
//! A signature always covers `PAE(domain, part, …)` (the pre-authentication encoding of PASETO: the number of parts,
//! then each part behind its length), so that bytes signed for one purpose never verify for another. Only the raw bytes that
//! arrived are verified; nothing is decoded before and nothing is encoded again to verify it.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use prost::Message;
use zeroize::Zeroize;

use crate::{
    id::HubId,
    schema::{KeyPurpose, KeyStatement, Signed},
};

/// What a signature is for. The string goes into what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// A [`KeyStatement`], by the hub's root key.
    Key,
    /// An invite's body, by the invite key.
    Invite,
    /// The proof with which a node redeems an invite, by the node's key.
    Enrol,
    /// A ticket, by the ticket key.
    Ticket,
    /// A task request, by the task key.
    Task,
    /// A task's result, by the node's key.
    Result,
    /// A sandbox policy, by the task key.
    Policy,
    /// An audit checkpoint, by the audit key.
    Audit,
}

impl Domain {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Key => b"cortex-mesh/v1/key",
            Self::Invite => b"cortex-mesh/v1/invite",
            Self::Enrol => b"cortex-mesh/v1/enrol",
            Self::Ticket => b"cortex-mesh/v1/ticket",
            Self::Task => b"cortex-mesh/v1/task",
            Self::Result => b"cortex-mesh/v1/result",
            Self::Policy => b"cortex-mesh/v1/policy",
            Self::Audit => b"cortex-mesh/v1/audit",
        }
    }
}

/// Why a key or a signature is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes, not a point, or a point of small order.
    #[error("not a sound Ed25519 public key")]
    Malformed,
    /// The signature does not fit key, domain and bytes.
    #[error("the signature is wrong")]
    BadSignature,
    /// The signed bytes do not decode, or hold fields this version does not know.
    #[error("the signed bytes are malformed or hold an unknown field")]
    BadBody,
    /// The statement speaks for another hub or another purpose.
    #[error("the key statement is for another hub or purpose")]
    WrongPurpose,
    /// Outside the statement's time.
    #[error("the key statement has expired or is not yet valid")]
    OutOfTime,
}

const BASE32: &str = "abcdefghijklmnopqrstuvwxyz234567";

fn base32() -> Encoding {
    let mut spec = Specification::new();
    spec.symbols.push_str(BASE32);
    // The specification is constant and sound; the fallback differs in case only.
    spec.encoding().unwrap_or(BASE32_NOPAD)
}

/// A public key that is known to be a sound point (canonical, not of small order).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::Malformed`].
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        let raw: [u8; 32] = bytes.try_into().map_err(|_| KeyError::Malformed)?;
        let key = VerifyingKey::from_bytes(&raw).map_err(|_| KeyError::Malformed)?;
        if key.is_weak() { Err(KeyError::Malformed) } else { Ok(Self(raw)) }
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 32 bytes, for a message.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// Verifies a signature over raw message bytes, as TLS needs it.
    ///
    /// # Errors
    /// [`KeyError::BadSignature`].
    pub fn verify_raw(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        let signature = Signature::from_slice(signature).map_err(|_| KeyError::BadSignature)?;
        VerifyingKey::from_bytes(&self.0).and_then(|key| key.verify_strict(message, &signature)).map_err(|_| KeyError::BadSignature)
    }

    /// Verifies a signature over `PAE(domain, parts…)`.
    ///
    /// # Errors
    /// [`KeyError::BadSignature`].
    pub fn verify(&self, domain: Domain, parts: &[&[u8]], signature: &[u8]) -> Result<(), KeyError> {
        self.verify_raw(&pae(domain, parts), signature)
    }

    /// Verifies the raw bytes, then decodes them strictly.
    ///
    /// # Errors
    /// [`KeyError::BadSignature`], [`KeyError::BadBody`].
    pub fn open<M: Message + Default>(&self, domain: Domain, signed: &Signed) -> Result<M, KeyError> {
        self.verify(domain, &[&signed.body], &signed.signature)?;
        decode_strict(&signed.body)
    }

    /// Sixteen characters in groups of four, to be compared by two people.
    pub fn fingerprint(&self) -> String {
        let hash = blake3::derive_key("cortex-mesh v1 fingerprint", &self.0);
        let text = base32().encode(&hash[..10]);
        let groups: Vec<&str> = (0..4).map(|i| &text[i * 4..i * 4 + 4]).collect();
        groups.join("-")
    }

    /// The first characters of the text form, for logs.
    pub fn short(&self) -> String {
        self.to_string().chars().take(10).collect()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32().encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let raw = base32().decode(text.as_bytes()).map_err(|_| KeyError::Malformed)?;
        Self::from_slice(&raw)
    }
}

/// A private key. Its memory is wiped when it is dropped; `Debug` shows the public half only.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of these 32 random bytes.
    pub fn from_seed(mut seed: [u8; 32]) -> Self {
        let key = Self(SigningKey::from_bytes(&seed));
        seed.zeroize();
        key
    }

    /// The 32 bytes to keep in a file that only its owner reads.
    pub fn to_seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs raw bytes, as TLS needs it.
    pub fn sign_raw(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// Signs `PAE(domain, parts…)`.
    pub fn sign(&self, domain: Domain, parts: &[&[u8]]) -> Bytes {
        Bytes::copy_from_slice(&self.sign_raw(&pae(domain, parts)))
    }

    /// Encodes a message and signs its bytes.
    pub fn seal<M: Message>(&self, domain: Domain, message: &M) -> Signed {
        let body = Bytes::from(message.encode_to_vec());
        let signature = self.sign(domain, &[&body]);
        Signed { body, signature }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {:?})", self.public())
    }
}

/// `PAE(domain, parts…)`: the count, then each part behind its length, both as little-endian 64-bit numbers.
pub fn pae(domain: Domain, parts: &[&[u8]]) -> Vec<u8> {
    let size = 16 + domain.label().len() + parts.iter().map(|part| 8 + part.len()).sum::<usize>();
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(&(1 + parts.len() as u64).to_le_bytes());
    for part in std::iter::once(domain.label()).chain(parts.iter().copied()) {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Decodes, and refuses whatever this version would not have written: unknown fields, odd encodings, repeated scalars.
///
/// # Errors
/// [`KeyError::BadBody`].
pub fn decode_strict<M: Message + Default>(bytes: &Bytes) -> Result<M, KeyError> {
    let message = M::decode(bytes.clone()).map_err(|_| KeyError::BadBody)?;
    if message.encoded_len() == bytes.len() && message.encode_to_vec() == bytes[..] { Ok(message) } else { Err(KeyError::BadBody) }
}

/// Says that `key` speaks for the hub for one purpose.
pub fn state_key(root: &SecretKey, purpose: KeyPurpose, key: &PublicKey, sequence: u64, not_before_ms: i64, not_after_ms: i64) -> Signed {
    let statement = KeyStatement {
        hub_root: root.public().to_bytes(),
        purpose: purpose.into(),
        key: key.to_bytes(),
        sequence,
        not_before_ms,
        not_after_ms,
    };
    root.seal(Domain::Key, &statement)
}

/// A verified [`KeyStatement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatedKey {
    /// The key that speaks for the hub.
    pub key: PublicKey,
    /// Higher sequences replace lower ones.
    pub sequence: u64,
}

/// Verifies one statement of a hub for a purpose.
///
/// # Errors
/// Any [`KeyError`].
pub fn check_statement(signed: &Signed, hub: &HubId, purpose: KeyPurpose, now_ms: i64) -> Result<StatedKey, KeyError> {
    let statement: KeyStatement = hub.key().open(Domain::Key, signed)?;
    if statement.hub_root != hub.key().as_bytes()[..] || statement.purpose() != purpose {
        return Err(KeyError::WrongPurpose);
    }
    if now_ms < statement.not_before_ms || (statement.not_after_ms != 0 && now_ms > statement.not_after_ms) {
        return Err(KeyError::OutOfTime);
    }
    Ok(StatedKey { key: PublicKey::from_slice(&statement.key)?, sequence: statement.sequence })
}

/// The statement with the highest sequence for a purpose among several; those for other purposes are skipped.
///
/// # Errors
/// [`KeyError::WrongPurpose`] when there is none; any other error of a statement for this purpose.
pub fn find_statement(statements: &[Signed], hub: &HubId, purpose: KeyPurpose, now_ms: i64) -> Result<StatedKey, KeyError> {
    let mut best: Option<StatedKey> = None;
    for signed in statements {
        match check_statement(signed, hub, purpose, now_ms) {
            Ok(found) if best.is_none_or(|b| b.sequence < found.sequence) => best = Some(found),
            Ok(_) | Err(KeyError::WrongPurpose) => {}
            Err(error) => return Err(error),
        }
    }
    best.ok_or(KeyError::WrongPurpose)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed([seed; 32])
    }

    #[test]
    fn a_signature_holds_for_its_domain_only() {
        let signature = key(1).sign(Domain::Task, &[b"a", b"b"]);
        let public = key(1).public();
        assert_eq!(public.verify(Domain::Task, &[b"a", b"b"], &signature), Ok(()));
        assert_eq!(public.verify(Domain::Result, &[b"a", b"b"], &signature), Err(KeyError::BadSignature));
        assert_eq!(public.verify(Domain::Task, &[b"ab"], &signature), Err(KeyError::BadSignature));
        assert_eq!(key(2).public().verify(Domain::Task, &[b"a", b"b"], &signature), Err(KeyError::BadSignature));
    }

    #[test]
    fn a_key_of_small_order_is_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(PublicKey::from_slice(&identity), Err(KeyError::Malformed));
        assert_eq!(PublicKey::from_slice(&[0; 31]), Err(KeyError::Malformed));
    }

    #[test]
    fn a_key_reads_back_from_text() {
        let public = key(3).public();
        assert_eq!(public.to_string().len(), 52);
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(public.fingerprint().len(), 19);
    }

    #[test]
    fn an_unknown_field_refuses_the_whole_message() {
        let hub = HubId::from(key(1).public());
        let good = state_key(&key(1), KeyPurpose::Task, &key(2).public(), 1, 0, 0);
        assert_eq!(check_statement(&good, &hub, KeyPurpose::Task, 5).map(|s| s.key), Ok(key(2).public()));
        let mut body = good.body.to_vec();
        body.extend_from_slice(&[0x78, 0x01]); // field 15, varint 1
        let signature = key(1).sign(Domain::Key, &[&body]);
        let extended = Signed { body: body.into(), signature };
        assert_eq!(check_statement(&extended, &hub, KeyPurpose::Task, 5), Err(KeyError::BadBody));
    }

    #[test]
    fn a_statement_holds_for_its_hub_purpose_and_time() {
        let hub = HubId::from(key(1).public());
        let signed = state_key(&key(1), KeyPurpose::Ticket, &key(2).public(), 7, 100, 200);
        assert_eq!(check_statement(&signed, &hub, KeyPurpose::Task, 150), Err(KeyError::WrongPurpose));
        assert_eq!(check_statement(&signed, &hub, KeyPurpose::Ticket, 201), Err(KeyError::OutOfTime));
        assert_eq!(check_statement(&signed, &hub, KeyPurpose::Ticket, 99), Err(KeyError::OutOfTime));
        let other = HubId::from(key(9).public());
        assert_eq!(check_statement(&signed, &other, KeyPurpose::Ticket, 150), Err(KeyError::BadSignature));
        let newer = state_key(&key(1), KeyPurpose::Ticket, &key(3).public(), 8, 0, 0);
        let found = find_statement(&[newer, signed], &hub, KeyPurpose::Ticket, 150);
        assert_eq!(found.map(|s| s.sequence), Ok(8));
    }
}
