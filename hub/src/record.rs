//! What the hub stores, as plain data.
//!
//! Times are milliseconds since the Unix epoch (`*_at_ms`). Strings that came from nodes have gone through
//! [`cortex_wire::text::clean`] before they are here. New fields get `#[serde(default)]`; a change that old rows do not fit is a
//! step in [`crate::store::migrate`].

mod account;
pub mod approval;
pub mod mirror;
mod node;
mod policy;
mod session;
pub mod tables;
mod task;

pub use self::{account::*, node::*, policy::*, session::*, task::*};

use cortex_wire::{id::UserId, limits, text::clean};
use serde::{Deserialize, Serialize};

/// 32 bytes of a hash, as hexadecimal digits in JSON.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map(Self).map_err(|_| D::Error::custom("not 32 bytes"))
    }
}

/// One row of the hub-wide feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// From 1, without gaps over all users; 0: live only, not stored.
    pub seq: u64,
    /// Who may see it.
    pub audience: Vec<UserId>,
    /// When.
    pub at_ms: i64,
    /// "node", "node_health", "invite", "task", "session", …
    pub kind: String,
    /// Fits the kind.
    pub data: serde_json::Value,
}

/// One link of the audit chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// From 1, without gaps.
    pub seq: u64,
    /// When.
    pub at_ms: i64,
    /// "user:…", "node:…" or "hub".
    pub actor: String,
    /// What was done: "node.approve".
    pub verb: String,
    /// To what: "node:…".
    pub object: String,
    /// BLAKE3 of what the row does not show, such as a command.
    pub digest: Digest,
    /// The link: a hash over the row before and this one.
    pub hash: Digest,
    /// In a checkpoint: the audit key's signature over `hash`, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

fn short(text: &str) -> String {
    clean(text, limits::NAME_BYTES)
}

fn long(text: &str) -> String {
    clean(text, limits::TEXT_BYTES)
}

fn all(list: &[String]) -> Vec<String> {
    list.iter().take(limits::CAPABILITY_ENTRIES).map(|text| long(text)).collect()
}
