//! Types on a store's tables: values (JSON, protobuf or raw bytes) under keys that sort, and indexes.

use std::{
    borrow::Cow,
    marker::PhantomData,
    ops::{Bound, ControlFlow},
};

use cortex_wire::id::{InviteId, NodeId, SessionId, TaskId, UserId};
use serde::{Serialize, de::DeserializeOwned};

use super::{KeyRange, Order, ReadTx, StoreError, TableId, WriteTx};
use crate::record::Digest;

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

/// How values become bytes.
pub trait Codec<V> {
    /// The bytes of a value, or why it has none.
    ///
    /// # Errors
    /// A text.
    fn encode(value: &V) -> Result<Vec<u8>, String>;
    /// The value of the bytes, or why they are none.
    ///
    /// # Errors
    /// A text.
    fn decode(bytes: &[u8]) -> Result<V, String>;
}

/// JSON: for what people may want to look at.
#[derive(Debug)]
pub struct Json;

impl<V: Serialize + DeserializeOwned> Codec<V> for Json {
    fn encode(value: &V) -> Result<Vec<u8>, String> {
        serde_json::to_vec(value).map_err(|error| error.to_string())
    }

    fn decode(bytes: &[u8]) -> Result<V, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

/// Protobuf: for what is large or holds bytes.
#[derive(Debug)]
pub struct Proto;

impl<V: prost::Message + Default> Codec<V> for Proto {
    fn encode(value: &V) -> Result<Vec<u8>, String> {
        Ok(value.encode_to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<V, String> {
        V::decode(bytes).map_err(|error| error.to_string())
    }
}

/// A table with values of one type, under keys of one type.
#[derive(Debug)]
pub struct Table<K: ?Sized, V, C = Json> {
    id: TableId,
    types: PhantomData<fn(&K, C) -> V>,
}

impl<K: Key + ?Sized, V, C: Codec<V>> Table<K, V, C> {
    /// The table of this number.
    pub const fn new(number: u8, name: &'static str) -> Self {
        Self { id: TableId { number, name }, types: PhantomData }
    }

    fn row_error(&self, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Row { table: self.id.name, reason: reason.to_string().into() }
    }

    fn decode(&self, bytes: &[u8]) -> Result<V, StoreError> {
        C::decode(bytes).map_err(|reason| self.row_error(reason))
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
        let bytes = C::encode(value).map_err(|reason| self.row_error(reason))?;
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
