//! What every error of the domain says about itself: a stable code for programs, and what kind of failure it is. The API maps kinds to HTTP
//! statuses in one place; the message is the error's own text.

use crate::store::StoreError;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request cannot be right.
    Invalid,
    /// Nobody knows who asks.
    Unauthenticated,
    /// Whoever asks may not do that (and may know that it exists).
    Forbidden,
    /// It does not exist, or belongs to somebody else.
    NotFound,
    /// It contradicts what is there.
    Conflict,
    /// Too much at once; later it may work.
    TooMany,
    /// Something that is needed is not there now.
    Unavailable,
    /// The hub itself failed.
    Internal,
}

/// An error that can be shown to a caller.
pub trait Failure: std::error::Error {
    /// Stable, in `snake_case`.
    fn code(&self) -> &'static str;
    /// For the status.
    fn kind(&self) -> Kind;
    /// The part of the request's body that is wrong, as a JSON pointer such as `/ask/0`.
    fn pointer(&self) -> Option<&str> {
        None
    }
}

/// What any operation on behalf of somebody can meet.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It does not exist, or is not the actor's to see.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The actor's role or token does not reach that far.
    #[error("{0}")]
    Forbidden(&'static str),
    /// A value is malformed or out of bounds.
    #[error("{0}")]
    Invalid(String),
    /// The store failed.
    #[error("the hub's store failed")]
    Store(#[from] StoreError),
}

impl Failure for Refused {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Forbidden(_) => "forbidden",
            Self::Invalid(_) => "invalid",
            Self::Store(_) => "store_failed",
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NotFound(_) => Kind::NotFound,
            Self::Forbidden(_) => Kind::Forbidden,
            Self::Invalid(_) => Kind::Invalid,
            Self::Store(_) => Kind::Internal,
        }
    }
}
