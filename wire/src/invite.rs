//! An invite: a one-time, expiring permission to enrol one node for one owner.
//!
//! Its text is `cxi1_` and the base64url form of a [`schema::Invite`](crate::schema::Invite): a body signed by the hub's invite key, the root's
//! statement about that key, and a secret. The body holds the secret's hash only, so a relay can be shown body and
//! statement ([`proof`]) and admit the newcomer, and still cannot enrol a node of its own.

use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use prost::Message;
use subtle::ConstantTimeEq;

use crate::{
    id::{HubId, InviteId, RelayId},
    key::{Domain, KeyError, PublicKey, SecretKey, check_statement, decode_strict},
    limits,
    schema::{Enrolment, Invite, InviteBody, InviteProof, KeyPurpose, RelayAddress, Signed},
};

/// What every invite's text begins with.
pub const PREFIX: &str = "cxi1_";

/// Why a text is not an invite that this peer can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// Not the text form of an invite, or cut off.
    #[error("this is not a whole Cortex invite; copy it again from the hub's page (it begins with cxi1_)")]
    Malformed,
    /// Signed by nobody the hub's root vouches for, or altered.
    #[error("this invite was altered or not issued by the hub it names; ask for a new one")]
    Forged(#[source] KeyError),
    /// Its time is over.
    #[error("this invite has expired; ask for a new one on the hub's page")]
    Expired,
}

impl From<KeyError> for InviteError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::OutOfTime => Self::Expired,
            other => Self::Forged(other),
        }
    }
}

/// What a verified invite says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The invite's id.
    pub id: InviteId,
    /// The hub it belongs to: the node pins this key.
    pub hub: HubId,
    /// BLAKE3 of the secret.
    pub secret_hash: [u8; 32],
    /// Where the hub can be reached, most wanted first; 1 to 3.
    pub relays: Vec<RelayEndpoint>,
    /// Milliseconds since the epoch.
    pub expires_at_ms: i64,
    /// Somebody has to confirm the node's fingerprint.
    pub approval: bool,
    /// The node is removed when it disconnects.
    pub ephemeral: bool,
}

/// A relay to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RelayEndpoint {
    /// `host:port`.
    pub address: String,
    /// Its pinned key.
    pub id: RelayId,
    /// A label; may be empty.
    pub region: String,
}

impl RelayEndpoint {
    /// For a message.
    pub fn to_message(&self) -> RelayAddress {
        RelayAddress { address: self.address.clone(), key: self.id.key().to_bytes(), region: self.region.clone() }
    }

    /// From a message; `None` when the address or the key cannot be used.
    pub fn from_message(message: &RelayAddress) -> Option<Self> {
        let (host, port) = message.address.rsplit_once(':')?;
        if host.is_empty() || message.address.len() > 260 || port.parse::<u16>().ok()? == 0 {
            return None;
        }
        let id = RelayId::from_slice(&message.key).ok()?;
        Some(Self { address: message.address.clone(), id, region: crate::text::clean(&message.region, limits::NAME_BYTES) })
    }
}

impl std::fmt::Display for RelayEndpoint {
    /// `host:port#key`, as configuration files and flags write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.address, self.id)
    }
}

impl std::str::FromStr for RelayEndpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?} is not a relay: write host:port#key, as `cortex-relay serve` prints it");
        let (address, key) = text.split_once('#').ok_or_else(usage)?;
        let id: RelayId = key.parse().map_err(|_| usage())?;
        let message = RelayAddress { address: address.to_owned(), key: id.key().to_bytes(), region: String::new() };
        Self::from_message(&message).ok_or_else(usage)
    }
}

/// Issues an invite. `statement` is the root's word for `invite_key`.
pub fn issue(terms: &Terms, secret: [u8; 32], invite_key: &SecretKey, statement: Signed) -> String {
    let body = InviteBody {
        invite_id: Bytes::copy_from_slice(terms.id.as_bytes()),
        hub_root: terms.hub.key().to_bytes(),
        secret_hash: Bytes::copy_from_slice(&terms.secret_hash),
        relays: terms.relays.iter().map(RelayEndpoint::to_message).collect(),
        expires_at_ms: terms.expires_at_ms,
        approval: terms.approval,
        ephemeral: terms.ephemeral,
    };
    let invite =
        Invite { body: Some(invite_key.seal(Domain::Invite, &body)), invite_key: Some(statement), secret: Bytes::copy_from_slice(&secret) };
    format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&invite.encode_to_vec()))
}

/// Reads the text form and verifies everything that can be verified without the hub.
///
/// # Errors
/// [`InviteError`].
pub fn read(text: &str, now_ms: i64) -> Result<(Invite, Terms), InviteError> {
    let encoded = text.trim().strip_prefix(PREFIX).ok_or(InviteError::Malformed)?;
    if encoded.len() > limits::INVITE_TEXT_BYTES {
        return Err(InviteError::Malformed);
    }
    let raw = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| InviteError::Malformed)?;
    let invite: Invite = decode_strict(&raw.into()).map_err(|_| InviteError::Malformed)?;
    let terms = check(&proof(&invite), now_ms)?;
    if !secret_fits(&invite.secret, &terms.secret_hash) {
        return Err(InviteError::Malformed);
    }
    Ok((invite, terms))
}

/// The part of an invite that a relay may see.
pub fn proof(invite: &Invite) -> InviteProof {
    InviteProof { body: invite.body.clone(), invite_key: invite.invite_key.clone() }
}

/// Verifies what is shown of an invite, and that it has not expired.
///
/// # Errors
/// [`InviteError`].
pub fn check(proof: &InviteProof, now_ms: i64) -> Result<Terms, InviteError> {
    let terms = open(proof, now_ms)?;
    if now_ms > terms.expires_at_ms { Err(InviteError::Expired) } else { Ok(terms) }
}

/// Verifies who issued what a relay or hub is shown of an invite, and nothing else: whether it still holds is the hub's to say, so that its owner
/// learns of every attempt.
///
/// # Errors
/// [`InviteError`].
pub fn open(proof: &InviteProof, now_ms: i64) -> Result<Terms, InviteError> {
    let (Some(signed), Some(statement)) = (&proof.body, &proof.invite_key) else { return Err(InviteError::Malformed) };
    // The hub's key is inside the body it vouches for: read it first, believe it after the chain has held.
    let body: InviteBody = decode_strict(&signed.body).map_err(|_| InviteError::Malformed)?;
    let hub = HubId::from_slice(&body.hub_root).map_err(|_| InviteError::Malformed)?;
    let key = check_statement(statement, &hub, KeyPurpose::Invite, now_ms)?.key;
    key.verify(Domain::Invite, &[&signed.body], &signed.signature)?;
    let relays: Vec<_> = body.relays.iter().filter_map(RelayEndpoint::from_message).collect();
    if relays.is_empty() || body.relays.len() > limits::RELAYS {
        return Err(InviteError::Malformed);
    }
    Ok(Terms {
        id: InviteId::from_slice(&body.invite_id).map_err(|_| InviteError::Malformed)?,
        hub,
        secret_hash: body.secret_hash[..].try_into().map_err(|_| InviteError::Malformed)?,
        relays,
        expires_at_ms: body.expires_at_ms,
        approval: body.approval,
        ephemeral: body.ephemeral,
    })
}

/// BLAKE3 of a secret: what the hub keeps of it.
pub fn hash_secret(secret: &[u8]) -> [u8; 32] {
    blake3::hash(secret).into()
}

/// Whether a secret is the one with this hash, in constant time.
pub fn secret_fits(secret: &[u8], hash: &[u8; 32]) -> bool {
    secret.len() == 32 && bool::from(hash_secret(secret).ct_eq(hash))
}

/// What a node sends to redeem its invite; `exporter` is the TLS exporter of this very connection.
pub fn enrol(node: &SecretKey, invite: &Invite, terms: &Terms, exporter: &[u8; 32]) -> Enrolment {
    let signature = node.sign(Domain::Enrol, &[exporter, terms.id.as_bytes(), &terms.secret_hash, terms.hub.key().as_bytes()]);
    Enrolment { invite_id: Bytes::copy_from_slice(terms.id.as_bytes()), secret: invite.secret.clone(), signature }
}

/// Verifies that the node behind this connection (`node`, `exporter`) asks to redeem this invite.
///
/// # Errors
/// [`KeyError::BadSignature`]; [`KeyError::BadBody`] when a field has the wrong size.
pub fn check_enrolment(
    enrolment: &Enrolment,
    node: &PublicKey,
    hub: &HubId,
    exporter: &[u8; 32],
) -> Result<(InviteId, [u8; 32]), KeyError> {
    let id = InviteId::from_slice(&enrolment.invite_id).map_err(|_| KeyError::BadBody)?;
    if enrolment.secret.len() != 32 {
        return Err(KeyError::BadBody);
    }
    let hash = hash_secret(&enrolment.secret);
    node.verify(Domain::Enrol, &[exporter, id.as_bytes(), &hash, hub.key().as_bytes()], &enrolment.signature)?;
    Ok((id, hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::state_key;
    use proptest::prelude::*;

    const NOW: i64 = 1_000_000;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed([seed; 32])
    }

    fn terms() -> Terms {
        Terms {
            id: InviteId::new(NOW, [3; 10]),
            hub: HubId::from(key(1).public()),
            secret_hash: hash_secret(&[5; 32]),
            relays: vec![RelayEndpoint { address: "hub.example:443".into(), id: key(4).public().into(), region: "eu".into() }],
            expires_at_ms: NOW + 1_000,
            approval: true,
            ephemeral: false,
        }
    }

    fn text() -> String {
        issue(&terms(), [5; 32], &key(2), state_key(&key(1), KeyPurpose::Invite, &key(2).public(), 1, 0, 0))
    }

    #[test]
    fn an_invite_reads_back() {
        let (invite, read_terms) = read(&text(), NOW).expect("a good invite");
        assert_eq!(read_terms, terms());
        assert_eq!(invite.secret[..], [5; 32]);
        assert!(text().len() < 800, "{} characters", text().len());
    }

    #[test]
    fn an_expired_invite_says_so() {
        assert_eq!(read(&text(), NOW + 1_001), Err(InviteError::Expired));
    }

    #[test]
    fn an_invite_of_a_key_the_root_never_named_is_forged() {
        let forged = issue(&terms(), [5; 32], &key(7), state_key(&key(1), KeyPurpose::Invite, &key(2).public(), 1, 0, 0));
        assert!(matches!(read(&forged, NOW), Err(InviteError::Forged(_))));
        let wrong_purpose = issue(&terms(), [5; 32], &key(2), state_key(&key(1), KeyPurpose::Task, &key(2).public(), 1, 0, 0));
        assert!(matches!(read(&wrong_purpose, NOW), Err(InviteError::Forged(_))));
    }

    #[test]
    fn a_proof_holds_no_secret() {
        let (invite, _) = read(&text(), NOW).expect("a good invite");
        let shown = proof(&invite).encode_to_vec();
        assert!(!shown.windows(32).any(|w| w == [5; 32]));
        assert!(check(&proof(&invite), NOW).is_ok());
    }

    #[test]
    fn an_enrolment_holds_for_one_connection_and_one_node() {
        let (invite, terms) = read(&text(), NOW).expect("a good invite");
        let node = key(8);
        let enrolment = enrol(&node, &invite, &terms, &[1; 32]);
        let hub = terms.hub;
        assert_eq!(check_enrolment(&enrolment, &node.public(), &hub, &[1; 32]), Ok((terms.id, terms.secret_hash)));
        assert!(check_enrolment(&enrolment, &node.public(), &hub, &[2; 32]).is_err());
        assert!(check_enrolment(&enrolment, &key(9).public(), &hub, &[1; 32]).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(noise in "\\PC{0,200}") {
            let text = format!("{PREFIX}{noise}");
            prop_assert!(read(&text, NOW).is_err());
        }

        #[test]
        fn one_changed_character_is_noticed(at in 5usize..500, with in "[A-Za-z0-9_-]") {
            let mut changed = text();
            let at = at.min(changed.len() - 1);
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != text());
            prop_assert!(read(&changed, NOW).is_err());
        }
    }
}
