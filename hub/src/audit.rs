//! The hash chain of what was done by whom.

use crate::{account::Actor, failure::Refused, hub::Hub, record::AuditRow};

/// How a walk along the chain went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditVerdict {
    /// Rows that were checked and hold.
    pub rows: u64,
    /// Signed checkpoints among them.
    pub checkpoints: u64,
    /// The first row that does not hold, and why.
    pub broken: Option<(u64, String)>,
}

impl Hub {
    /// Rows from `after` on, oldest first, at most `limit`. For administrators.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn audit_rows(&self, actor: &Actor, after: u64, limit: usize) -> Result<Vec<AuditRow>, Refused> {
        let _ = (actor, after, limit);
        todo!()
    }

    /// Walks the whole chain. For administrators.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn verify_audit(&self, actor: &Actor) -> Result<AuditVerdict, Refused> {
        let _ = actor;
        todo!()
    }
}
