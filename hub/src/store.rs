//! Ordered tables with durable transactions.
//!
//! A [`Store`] keeps byte keys and byte values in numbered tables; that is all an adapter has to know. [`Table`] puts types on it (JSON values
//! under keys that sort), [`Db`] runs closures in transactions, and the domain is written once over both.
//!
//! **Invariants**, which `contract` (below) checks for every adapter: a write is one atomic transaction; its closure's failure undoes it and
//! nothing else; `done` is called after the commit is durable, in the order of commits; a read sees one committed state.
//!
//! To add an adapter: implement the three traits, call every function of `contract` from a test of it.

use std::{
    borrow::Cow,
    marker::PhantomData,
    ops::{Bound, ControlFlow},
    sync::{Arc, Mutex},
};

use cortex_wire::id::{InviteId, NodeId, SessionId, TaskId, UserId};
use serde::{Serialize, de::DeserializeOwned};

use crate::record::Digest;

#[cfg(test)]
mod contract;
pub mod migrate;
pub mod redb;

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

/// A read waiting to be run by an adapter.
pub type ReadJob = Box<dyn FnOnce(Result<&dyn ReadTx, StoreError>) + Send>;

/// Where the hub keeps what it knows.
pub trait Store: Send + Sync + 'static {
    /// Queues a transaction. Never blocks.
    fn write(&self, job: WriteJob);

    /// Runs a read, on a thread that may block.
    fn read(&self, job: ReadJob);
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
            let _ = tell.send(tx.map_err(E::from).and_then(work));
        }));
        told.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }
}

/// A key whose bytes sort as it does.
pub trait Key {
    /// The bytes.
    fn key(&self) -> Cow<'_, [u8]>;
}

impl<K: Key + ?Sized> Key for &K {
    fn key(&self) -> Cow<'_, [u8]> {
        (**self).key()
    }
}

impl Key for u64 {
    fn key(&self) -> Cow<'_, [u8]> {
        self.to_be_bytes().to_vec().into()
    }
}

impl Key for str {
    fn key(&self) -> Cow<'_, [u8]> {
        self.as_bytes().into()
    }
}

impl Key for String {
    fn key(&self) -> Cow<'_, [u8]> {
        self.as_bytes().into()
    }
}

impl Key for Digest {
    fn key(&self) -> Cow<'_, [u8]> {
        self.0.as_slice().into()
    }
}

impl Key for NodeId {
    fn key(&self) -> Cow<'_, [u8]> {
        NodeId::key(self).as_bytes().as_slice().into()
    }
}

macro_rules! uuid_key {
    ($($id:ty),*) => {$(
        impl Key for $id {
            fn key(&self) -> Cow<'_, [u8]> {
                self.as_bytes().as_slice().into()
            }
        }
    )*};
}

uuid_key!(TaskId, SessionId, InviteId, UserId);

/// Both keys one behind the other. The first must be of fixed length for the pair to sort.
impl<A: Key, B: Key> Key for (A, B) {
    fn key(&self) -> Cow<'_, [u8]> {
        let mut bytes = self.0.key().into_owned();
        bytes.extend_from_slice(&self.1.key());
        bytes.into()
    }
}

/// Neighbouring keys of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    low: Bound<Vec<u8>>,
    high: Bound<Vec<u8>>,
}

impl Span {
    /// The whole table.
    pub fn all() -> Self {
        Self { low: Bound::Unbounded, high: Bound::Unbounded }
    }

    /// The keys that begin with this one.
    pub fn under(prefix: impl Key) -> Self {
        let low = prefix.key().into_owned();
        let mut high = low.clone();
        while high.pop_if(|last| *last == u8::MAX).is_some() {}
        let high = match high.last_mut() {
            Some(last) => {
                *last += 1;
                Bound::Excluded(high)
            }
            None => Bound::Unbounded,
        };
        Self { low: Bound::Included(low), high }
    }

    /// Of these, the keys behind this one.
    #[must_use]
    pub fn after(self, key: impl Key) -> Self {
        Self { low: Bound::Excluded(key.key().into_owned()), ..self }
    }

    /// Of these, the keys before this one.
    #[must_use]
    pub fn before(self, key: impl Key) -> Self {
        Self { high: Bound::Excluded(key.key().into_owned()), ..self }
    }

    fn bounds(&self) -> KeyRange<'_> {
        (self.low.as_ref().map(Vec::as_slice), self.high.as_ref().map(Vec::as_slice))
    }
}

/// A table with JSON values of one type, under keys of one type.
#[derive(Debug)]
pub struct Table<K: ?Sized, V> {
    id: TableId,
    types: PhantomData<fn(&K) -> V>,
}

impl<K: Key + ?Sized, V: Serialize + DeserializeOwned> Table<K, V> {
    /// The table of this number.
    pub const fn new(number: u8, name: &'static str) -> Self {
        Self { id: TableId { number, name }, types: PhantomData }
    }

    fn row_error(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Row { table: self.id.name, reason: reason.to_string().into() }
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, StoreError> {
        serde_json::from_slice(bytes).map_err(|error| self.row_error(error))
    }

    /// The value at a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, tx: &dyn ReadTx, key: &K) -> Result<Option<V>, StoreError> {
        tx.get(self.id, &key.key())?.map(|bytes| self.decode(&bytes)).transpose()
    }

    /// Sets the value at a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put(&self, tx: &mut dyn WriteTx, key: &K, value: &V) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(value).map_err(|error| self.row_error(error))?;
        tx.put(self.id, &key.key(), &bytes)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn delete(&self, tx: &mut dyn WriteTx, key: &K) -> Result<(), StoreError> {
        tx.delete(self.id, &key.key())
    }

    /// Visits keys (as bytes) and values until `visit` breaks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn visit(
        &self,
        tx: &dyn ReadTx,
        span: &Span,
        order: Order,
        mut visit: impl FnMut(&[u8], V) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        tx.scan(self.id, span.bounds(), order, &mut |key, value| visit(key, self.decode(value)?))
    }

    /// The first `limit` values.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn list(&self, tx: &dyn ReadTx, span: &Span, order: Order, limit: usize) -> Result<Vec<V>, StoreError> {
        let mut values = Vec::new();
        if limit == 0 {
            return Ok(values);
        }
        self.visit(tx, span, order, |_, value| {
            values.push(value);
            Ok(if values.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(values)
    }

    /// The value at the highest key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last(&self, tx: &dyn ReadTx, span: &Span) -> Result<Option<V>, StoreError> {
        Ok(self.list(tx, span, Order::Descending, 1)?.pop())
    }

    /// Removes every key of a span; answers how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clear(&self, tx: &mut dyn WriteTx, span: &Span) -> Result<usize, StoreError> {
        let mut keys = Vec::new();
        tx.scan(self.id, span.bounds(), Order::Ascending, &mut |key, _| {
            keys.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        for key in &keys {
            tx.delete(self.id, key)?;
        }
        Ok(keys.len())
    }
}

/// Pairs of ids: which second ones belong to a first one. Both of fixed length, so that a pair's key can be taken apart.
#[derive(Debug)]
pub struct Index<A, B> {
    id: TableId,
    types: PhantomData<fn(&A) -> B>,
}

/// A key that can be read back.
pub trait IdKey: Key + Sized {
    /// How long it is.
    const KEY_BYTES: usize;

    /// From its bytes.
    fn from_key(bytes: &[u8]) -> Option<Self>;
}

impl IdKey for NodeId {
    const KEY_BYTES: usize = 32;

    fn from_key(bytes: &[u8]) -> Option<Self> {
        Self::from_slice(bytes).ok()
    }
}

macro_rules! uuid_id_key {
    ($($id:ty),*) => {$(
        impl IdKey for $id {
            const KEY_BYTES: usize = 16;

            fn from_key(bytes: &[u8]) -> Option<Self> {
                Self::from_slice(bytes).ok()
            }
        }
    )*};
}

uuid_id_key!(TaskId, SessionId, InviteId, UserId);

impl<A: Key, B: IdKey> Index<A, B> {
    /// The index of this number.
    pub const fn new(number: u8, name: &'static str) -> Self {
        Self { id: TableId { number, name }, types: PhantomData }
    }

    /// Notes that `b` belongs to `a`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn insert(&self, tx: &mut dyn WriteTx, a: &A, b: &B) -> Result<(), StoreError> {
        tx.put(self.id, &(a, b).key(), &[])
    }

    /// Forgets it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, tx: &mut dyn WriteTx, a: &A, b: &B) -> Result<(), StoreError> {
        tx.delete(self.id, &(a, b).key())
    }

    /// Whether `b` belongs to `a`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn contains(&self, tx: &dyn ReadTx, a: &A, b: &B) -> Result<bool, StoreError> {
        Ok(tx.get(self.id, &(a, b).key())?.is_some())
    }

    /// The first `limit` of those that belong to `a`, within `span` (made with [`Span::under`] `a`).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn of(&self, tx: &dyn ReadTx, a: &A, span: &Span, order: Order, limit: usize) -> Result<Vec<B>, StoreError> {
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        let skip = a.key().len();
        tx.scan(self.id, span.bounds(), order, &mut |key, _| {
            found.push(self.second(key, skip)?);
            Ok(if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(found)
    }

    fn second(&self, key: &[u8], first_len: usize) -> Result<B, StoreError> {
        let id = key.get(first_len..).and_then(B::from_key);
        id.ok_or_else(|| StoreError::Row { table: self.id.name, reason: "not an id".into() })
    }

    /// All that belong to anything.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn all(&self, tx: &dyn ReadTx) -> Result<Vec<B>, StoreError> {
        let mut found = Vec::new();
        tx.scan(self.id, Span::all().bounds(), Order::Ascending, &mut |key, _| {
            // All first keys of an index have one length.
            found.push(self.second(key, key.len().saturating_sub(B::KEY_BYTES))?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Removes all that belong to `a`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn clear(&self, tx: &mut dyn WriteTx, a: &A) -> Result<(), StoreError> {
        self.all_of(tx, a)?.iter().try_for_each(|b| self.remove(tx, a, b))
    }

    /// All that belong to `a`, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn all_of(&self, tx: &dyn ReadTx, a: &A) -> Result<Vec<B>, StoreError> {
        self.of(tx, a, &Span::under(a), Order::Ascending, usize::MAX)
    }
}
