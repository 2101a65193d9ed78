//! Ordered tables with durable transactions.
//!
//! A [`Store`] keeps byte keys and byte values in numbered tables; that is all an adapter has to know. [`Table`] puts types on it (values
//! under keys that sort), [`Db`] runs closures in transactions, and the domain is written once over both.
//!
//! **Invariants**, which the tests in `contract` check for every adapter: a write is one atomic transaction; its closure's failure undoes it and
//! nothing else; `done` is called after the commit is durable, in the order of commits; a read sees one committed state.
//!
//! To add an adapter: implement the three traits, and call `every_rule!` from a test of it.

use std::{
    ops::{Bound, ControlFlow},
    sync::{Arc, Mutex},
};

#[cfg(test)]
mod contract;
pub mod migrate;
pub mod redb;
mod table;

pub use table::{Codec, IdKey, Index, Json, Key, Proto, Span, Table};

/// Why the store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The adapter could not read or write.
    #[error("the store cannot {operation}: {reason}")]
    Adapter {
        /// What it was about to do.
        operation: &'static str,
        /// What it says.
        reason: Arc<str>,
    },
    /// A row does not decode.
    #[error("a row of table {table} cannot be read: {reason}")]
    Row {
        /// The table's name.
        table: &'static str,
        /// Why.
        reason: Arc<str>,
    },
    /// The closure panicked; nothing of it was written.
    #[error("a transaction panicked")]
    Panicked,
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
    /// Too many transactions wait.
    #[error("the store is overloaded; try again in a moment")]
    Busy,
    /// Written by a newer program.
    #[error(
        "the store has schema {found}, this program knows up to {known}; run the newer cortex-hub, or restore the backup made before the upgrade"
    )]
    Newer {
        /// In the file.
        found: u64,
        /// By this program.
        known: u64,
    },
}

impl StoreError {
    /// An adapter's failure.
    pub fn adapter(operation: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Adapter { operation, reason: reason.to_string().into() }
    }
}

/// A table, as adapters know it. Numbers are never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// Its number in the store.
    pub number: u8,
    /// For people.
    pub name: &'static str,
}

/// Which way a scan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the lowest key.
    Ascending,
    /// From the highest key.
    Descending,
}

/// Bounds of a scan.
pub type KeyRange<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// Called with each key and value of a scan, until it breaks.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError>;

/// A consistent view of the store.
pub trait ReadTx {
    /// The value at a key.
    ///
    /// # Errors
    /// [`StoreError`].
    fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits keys and values in order.
    ///
    /// # Errors
    /// [`StoreError`], also what `visit` returns.
    fn scan(&self, table: TableId, range: KeyRange<'_>, order: Order, visit: Visit<'_>) -> Result<(), StoreError>;
}

/// A transaction that writes, and reads its own writes.
pub trait WriteTx: ReadTx {
    /// Sets the value at a key.
    ///
    /// # Errors
    /// [`StoreError`].
    fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), StoreError>;

    /// Removes a key; one that is not there is fine.
    ///
    /// # Errors
    /// [`StoreError`].
    fn delete(&mut self, table: TableId, key: &[u8]) -> Result<(), StoreError>;
}

/// Runs inside a transaction; `false` undoes it.
pub type Work = Box<dyn FnOnce(&mut dyn WriteTx) -> bool + Send>;

/// Told once how a transaction went: after the commit is durable (or after the undoing), in commit order, on the adapter's thread. Must be
/// quick.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A transaction waiting to be run by an adapter. Boxed closures, because adapters run it elsewhere.
pub struct WriteJob {
    /// What it does.
    pub run: Work,
    /// What follows.
    pub done: Done,
}

/// A read waiting to be run by an adapter. It gives back what is to be called once the adapter has let go of everything that the read
/// held: whoever has the answer does not keep the store open.
pub type ReadJob = Box<dyn FnOnce(Result<&dyn ReadTx, StoreError>) -> Box<dyn FnOnce() + Send> + Send>;

/// Where the hub keeps what it knows.
pub trait Store: Send + Sync + 'static {
    /// Queues a transaction. Never blocks.
    fn write(&self, job: WriteJob);

    /// Runs a read, on a thread that may block.
    fn read(&self, job: ReadJob);

    /// Commits since the start; several transactions may share one.
    fn commits(&self) -> u64;
}

/// Transactions with typed outcomes over a [`Store`]. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    store: Arc<dyn Store>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Db")
    }
}

impl Db {
    /// Over this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Commits since the start; several transactions may share one.
    pub fn commits(&self) -> u64 {
        self.store.commits()
    }

    /// Runs `work` in one durable transaction; its error undoes everything it wrote.
    ///
    /// # Errors
    /// What `work` returns, or the store's failure.
    pub async fn write<T, E>(&self, work: impl FnOnce(&mut dyn WriteTx) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.write_then(work, |outcome| outcome).await
    }

    /// Like [`Self::write`]; `then` is run after the commit (in commit order, even when nobody waits any more) and must be quick.
    ///
    /// # Errors
    /// What `work` returns, or the store's failure.
    pub async fn write_then<T, U, E>(
        &self,
        work: impl FnOnce(&mut dyn WriteTx) -> Result<T, E> + Send + 'static,
        then: impl FnOnce(T) -> U + Send + 'static,
    ) -> Result<U, E>
    where
        T: Send + 'static,
        U: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (tell, told) = tokio::sync::oneshot::channel();
        let outcome = Arc::new(Mutex::new(None));
        let slot = outcome.clone();
        let run = Box::new(move |tx: &mut dyn WriteTx| {
            let result = work(tx);
            let keep = result.is_ok();
            *crate::hub::lock(&slot) = Some(result);
            keep
        });
        let done = Box::new(move |committed: Result<(), StoreError>| {
            let result = match (crate::hub::lock(&outcome).take(), committed) {
                (Some(Err(error)), _) => Err(error),
                (_, Err(error)) => Err(error.into()),
                (Some(Ok(value)), Ok(())) => Ok(then(value)),
                (None, Ok(())) => Err(StoreError::Panicked.into()),
            };
            let _ = tell.send(result);
        });
        self.store.write(WriteJob { run, done });
        told.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// Runs `work` on one committed state.
    ///
    /// # Errors
    /// What `work` returns, or the store's failure.
    pub async fn read<T, E>(&self, work: impl FnOnce(&dyn ReadTx) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.store.read(Box::new(move |tx| {
            let outcome = tx.map_err(E::from).and_then(work);
            Box::new(move || drop(tell.send(outcome)))
        }));
        told.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }
}
