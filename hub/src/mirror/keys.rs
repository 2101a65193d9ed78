//! The keys that a session's contents are sealed with: random, one for each epoch of the session, in the hub's store.
//!
//! A node that leaves takes with it what it held. Whatever is written afterwards is sealed with a key that it never got.

use bytes::Bytes;
use cortex_runtime::clock::random;
use cortex_wire::{id::SessionId, schema::WorkspaceKey};

use crate::{
    record::{
        Session,
        tables::{WORKSPACE_KEYS, WORKSPACES},
    },
    store::{Order, ReadTx, Span, StoreError, WriteTx},
};

fn make(tx: &mut dyn WriteTx, session: SessionId, epoch: u64) -> Result<(), StoreError> {
    let key = WorkspaceKey { epoch: u32::try_from(epoch).unwrap_or(u32::MAX), key: Bytes::copy_from_slice(&random::<32>()) };
    WORKSPACE_KEYS.put(tx, &(session, epoch), &key)
}

/// The first key of a workspace.
pub(crate) fn found(tx: &mut dyn WriteTx, session: &Session) -> Result<(), StoreError> {
    make(tx, session.id, session.epoch)
}

/// Somebody left: what is written from now on is not for them. A session whose workspace was never used has no key yet.
pub(crate) fn renew(tx: &mut dyn WriteTx, session: &Session) -> Result<(), StoreError> {
    if WORKSPACES.get(tx, &session.id)?.is_some() { make(tx, session.id, session.epoch) } else { Ok(()) }
}

/// All keys of a session, oldest first: every kept revision may need its own.
pub(crate) fn all(tx: &dyn ReadTx, session: SessionId) -> Result<Vec<WorkspaceKey>, StoreError> {
    WORKSPACE_KEYS.list(tx, &Span::under(session), Order::Ascending, usize::MAX)
}
