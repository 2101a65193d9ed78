//! Schema versions: a store moves forward on start, one step at a time and all steps in one transaction, after a backup. It never moves back:
//! a store of a newer program is refused.

use super::{ReadTx, StoreError, TableId, WriteTx};

/// Moves the rows from one version to the next.
pub type Step = fn(&mut dyn WriteTx) -> Result<(), StoreError>;

/// The steps that lead to what this program stores. `steps[0]` leads from version 1 to 2.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// In order.
    pub steps: &'static [Step],
}

/// What this program stores: version 1 is the first.
pub const CURRENT: Schema = Schema { steps: &[] };

const META: TableId = TableId { number: 0, name: "meta" };
const VERSION: &[u8] = b"schema";

impl Schema {
    /// The version that this program writes.
    pub fn version(&self) -> u64 {
        self.steps.len() as u64 + 1
    }

    /// The version a store has; `None` for a fresh one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn found(tx: &dyn ReadTx) -> Result<Option<u64>, StoreError> {
        let Some(bytes) = tx.get(META, VERSION)? else { return Ok(None) };
        let bytes: [u8; 8] = bytes.try_into().map_err(|_| StoreError::Row { table: META.name, reason: "schema version".into() })?;
        Ok(Some(u64::from_be_bytes(bytes)))
    }

    /// Whether a store of this version has to move, and therefore to be backed up first.
    ///
    /// # Errors
    /// [`StoreError::Newer`].
    pub fn is_behind(&self, found: Option<u64>) -> Result<bool, StoreError> {
        let known = self.version();
        match found {
            Some(found) if found > known => Err(StoreError::Newer { found, known }),
            Some(found) => Ok(found < known),
            None => Ok(false),
        }
    }

    /// Brings a store to this program's version.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply(&self, tx: &mut dyn WriteTx) -> Result<(), StoreError> {
        let found = Self::found(tx)?;
        self.is_behind(found)?;
        let done = found.unwrap_or_else(|| self.version()).saturating_sub(1);
        for step in self.steps.iter().skip(usize::try_from(done).unwrap_or(usize::MAX)) {
            step(tx)?;
        }
        if found == Some(self.version()) { Ok(()) } else { tx.put(META, VERSION, &self.version().to_be_bytes()) }
    }
}
