//! Ids as types, so that one cannot stand where another belongs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::key::PublicKey;

/// A text is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0} id")]
pub struct IdError(pub &'static str);

macro_rules! key_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(PublicKey);

        impl $name {
            /// The key behind the id.
            pub fn key(&self) -> &PublicKey {
                &self.0
            }

            /// The 32 bytes of the key, from the wire.
            ///
            /// # Errors
            /// When they are not a sound Ed25519 key.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                PublicKey::from_slice(bytes).map(Self).map_err(|_| IdError($what))
            }
        }

        impl From<PublicKey> for $name {
            fn from(key: PublicKey) -> Self {
                Self(key)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", $what, self.0.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                text.parse().map(Self).map_err(|_| IdError($what))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

key_id!(
    /// A node: the public key that its peer program made. 52 characters of base32 in text.
    NodeId, "node"
);
key_id!(
    /// A hub: its root public key.
    HubId, "hub"
);
key_id!(
    /// A relay: its public key.
    RelayId, "relay"
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A UUIDv7 of this time and these random bits: ids sort by creation.
            pub fn new(now_ms: i64, random: [u8; 10]) -> Self {
                let millis = u64::try_from(now_ms).unwrap_or(0);
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
            }

            /// The 16 bytes of the id, from the wire.
            ///
            /// # Errors
            /// When there are not 16.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| IdError($what))
            }

            /// The 16 bytes of the id.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", $what, self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError($what))
            }
        }
    };
}

uuid_id!(
    /// One unit of work.
    TaskId, "task"
);
uuid_id!(
    /// A conversation session.
    SessionId, "session"
);
uuid_id!(
    /// An invite.
    InviteId, "invite"
);
uuid_id!(
    /// A person with an account.
    UserId, "user"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_read_back() {
        let early = TaskId::new(1_000, [9; 10]);
        let late = TaskId::new(2_000, [0; 10]);
        assert!(early < late);
        assert_eq!(late.to_string().parse(), Ok(late));
        assert_eq!(TaskId::from_slice(&[1; 15]), Err(IdError("task")));
    }
}
