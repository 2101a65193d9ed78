//! The store in one file of this machine.
//!
//! One thread owns all writing. It takes what is queued, runs each closure over an overlay of its own, applies the overlays of those that
//! succeeded, and commits them together: one durable commit serves everybody who waited (group commit). All tables live in one
//! B-tree, under their number in front of the key, so that a transaction over many tables touches few pages.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use redb::{Database, Durability, ReadableDatabase as _, ReadableTable, TableDefinition};
use tokio::runtime::Handle;

use super::{Done, KeyRange, Order, ReadJob, ReadTx, Store, StoreError, TableId, Visit, WriteJob, WriteTx, migrate::Schema};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");

/// Transactions that may wait. Beyond it a write is refused at once: whoever waits behind so many has given up by then.
const QUEUE: usize = 16 * 1024;
/// Transactions in one commit. Enough to share its cost, few enough to answer the first of them soon.
const BATCH: usize = 512;
/// Pages kept in memory. The hub's hot rows are few; its file may be large.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// A store in a file.
#[derive(Debug)]
pub struct RedbStore {
    database: Option<Arc<Database>>,
    queue: Option<SyncSender<WriteJob>>,
    writer: Option<JoinHandle<()>>,
    runtime: Handle,
    commits: Arc<AtomicU64>,
}

impl RedbStore {
    /// Opens the file, or makes it, and brings it to the program's schema; before that an older file is copied to
    /// `<path>.schema-<version>`. Blocks. Must be called inside a tokio runtime, where reads will run.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path, schema: Schema) -> Result<Self, StoreError> {
        let database = migrated(path, schema)?;
        let database = Arc::new(database);
        let (queue, waiting) = sync_channel(QUEUE);
        let runtime = Handle::current();
        let commits = Arc::new(AtomicU64::new(0));
        let (owned, context, counter) = (database.clone(), runtime.clone(), commits.clone());
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || {
                // What follows a commit may start tasks.
                let _context = context.enter();
                write_until_closed(&owned, &waiting, &counter);
            })
            .map_err(|error| StoreError::adapter("start its writer", error))?;
        Ok(Self { database: Some(database), queue: Some(queue), writer: Some(writer), runtime, commits })
    }
}

impl Drop for RedbStore {
    /// Waits until what is queued is written: when the store is gone, its file is closed.
    fn drop(&mut self) {
        self.queue = None;
        self.database = None;
        if let Some(writer) = self.writer.take().filter(|writer| writer.thread().id() != std::thread::current().id()) {
            let _ = writer.join();
        }
    }
}

impl Store for RedbStore {
    fn write(&self, job: WriteJob) {
        let refused = match self.queue.as_ref().map(|queue| queue.try_send(job)) {
            Some(Ok(())) | None => return,
            Some(Err(refused)) => refused,
        };
        match refused {
            TrySendError::Full(job) => (job.done)(Err(StoreError::Busy)),
            TrySendError::Disconnected(job) => (job.done)(Err(StoreError::Closed)),
        }
    }

    fn read(&self, job: ReadJob) {
        let Some(database) = self.database.clone() else { return job(Err(StoreError::Closed))() };
        self.runtime.spawn_blocking(move || {
            let answer = match snapshot(&database) {
                Ok(rows) => job(Ok(&Snapshot { rows })),
                Err(error) => job(Err(error)),
            };
            drop(database);
            answer();
        });
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

fn migrated(path: &Path, schema: Schema) -> Result<Database, StoreError> {
    let database = open_file(path)?;
    let found = Schema::found(&Snapshot { rows: snapshot(&database)? })?;
    let database = if schema.is_behind(found)? {
        drop(database);
        back_up(path, found.unwrap_or_default())?;
        open_file(path)?
    } else {
        database
    };
    commit(&database, |rows| {
        let mut tx = Overlay { base: &*rows, own: BTreeMap::new() };
        schema.apply(&mut tx)?;
        let changes = tx.own;
        apply(rows, changes)
    })?;
    Ok(database)
}

fn open_file(path: &Path) -> Result<Database, StoreError> {
    let database =
        Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| StoreError::adapter("open its file", error))?;
    // Readers expect the table.
    commit(&database, |_| Ok(true))?;
    Ok(database)
}

fn back_up(path: &Path, version: u64) -> Result<(), StoreError> {
    let mut copy = path.as_os_str().to_owned();
    copy.push(format!(".schema-{version}"));
    let copy = PathBuf::from(copy);
    std::fs::copy(path, &copy)
        .and_then(|_| std::fs::File::open(&copy)?.sync_all())
        .map_err(|error| StoreError::adapter("back up its file before the upgrade", error))
}

type Rows<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;

/// Commits what `work` wrote, durably, unless it fails or answers that nothing changed.
fn commit(database: &Database, work: impl FnOnce(&mut Rows<'_>) -> Result<bool, StoreError>) -> Result<(), StoreError> {
    let failed = |error: redb::Error| StoreError::adapter("commit", error);
    let mut transaction = database.begin_write().map_err(|error| failed(error.into()))?;
    transaction.set_durability(Durability::Immediate).map_err(|error| failed(error.into()))?;
    transaction.set_two_phase_commit(true);
    let changed = work(&mut transaction.open_table(ROWS).map_err(|error| failed(error.into()))?)?;
    if changed { transaction.commit().map_err(|error| failed(error.into())) } else { Ok(()) }
}

fn snapshot(database: &Database) -> Result<redb::ReadOnlyTable<&'static [u8], &'static [u8]>, StoreError> {
    let failed = |error: redb::Error| StoreError::adapter("begin to read", error);
    let transaction = database.begin_read().map_err(|error| failed(error.into()))?;
    transaction.open_table(ROWS).map_err(|error| failed(error.into()))
}

/// Whether there was anything to write.
fn apply(rows: &mut Rows<'_>, changes: Changes) -> Result<bool, StoreError> {
    let any = !changes.is_empty();
    for (key, value) in changes {
        let done = match value {
            Some(value) => rows.insert(&*key, &*value).map(drop),
            None => rows.remove(&*key).map(drop),
        };
        done.map_err(|error| StoreError::adapter("write", error))?;
    }
    Ok(any)
}

fn write_until_closed(database: &Database, waiting: &Receiver<WriteJob>, commits: &AtomicU64) {
    while let Ok(first) = waiting.recv() {
        let jobs = std::iter::once(first).chain(waiting.try_iter()).take(BATCH);
        write_batch(database, jobs, commits);
    }
}

fn write_batch(database: &Database, jobs: impl Iterator<Item = WriteJob>, commits: &AtomicU64) {
    let mut answers: Vec<(Done, bool)> = Vec::new();
    let mut changed = false;
    let outcome = commit(database, |rows| {
        for WriteJob { run, done } in jobs {
            let mut tx = Overlay { base: &*rows, own: BTreeMap::new() };
            let ran = catch_unwind(AssertUnwindSafe(|| run(&mut tx)));
            let changes = tx.own;
            answers.push((done, ran.is_ok()));
            if ran.unwrap_or(false) {
                changed |= apply(rows, changes)?;
            }
        }
        Ok(changed)
    });
    // A failed closure may have failed because of what another one in its batch wrote: it is answered after the commit, too.
    commits.fetch_add(u64::from(changed && outcome.is_ok()), Ordering::Relaxed);
    for (done, ran) in answers {
        let outcome = if ran { outcome.clone() } else { Err(StoreError::Panicked) };
        // A panic in what follows a commit must not stop the writer.
        let _ = catch_unwind(AssertUnwindSafe(|| done(outcome)));
    }
}

type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

fn full_key(table: TableId, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table.number);
    full.extend_from_slice(key);
    full
}

fn full_range(table: TableId, range: KeyRange<'_>) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let (low, high) = range;
    let low = match low {
        Bound::Unbounded => Bound::Included(vec![table.number]),
        bound => bound.map(|key| full_key(table, key)),
    };
    let high = match high {
        Bound::Unbounded => Bound::Excluded(vec![table.number + 1]),
        bound => bound.map(|key| full_key(table, key)),
    };
    (low, high)
}

fn is_empty(range: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> bool {
    match range {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Excluded(high) | Bound::Included(high)) => low >= high,
        _ => false,
    }
}

fn as_slices(range: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (range.0.as_ref().map(Vec::as_slice), range.1.as_ref().map(Vec::as_slice))
}

fn read_failed(error: redb::StorageError) -> StoreError {
    StoreError::adapter("read", error)
}

fn get(rows: &impl ReadableTable<&'static [u8], &'static [u8]>, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(rows.get(key).map_err(read_failed)?.map(|guard| guard.value().to_vec()))
}

struct Snapshot {
    rows: redb::ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl ReadTx for Snapshot {
    fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get(&self.rows, &full_key(table, key))
    }

    fn scan(&self, table: TableId, range: KeyRange<'_>, order: Order, visit: Visit<'_>) -> Result<(), StoreError> {
        merge(&self.rows, &BTreeMap::new(), full_range(table, range), order, visit)
    }
}

/// What a closure has changed, over what is there.
struct Overlay<'a, 'txn> {
    base: &'a Rows<'txn>,
    own: Changes,
}

impl ReadTx for Overlay<'_, '_> {
    fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let key = full_key(table, key);
        match self.own.get(&key) {
            Some(value) => Ok(value.clone()),
            None => get(self.base, &key),
        }
    }

    fn scan(&self, table: TableId, range: KeyRange<'_>, order: Order, visit: Visit<'_>) -> Result<(), StoreError> {
        merge(self.base, &self.own, full_range(table, range), order, visit)
    }
}

impl WriteTx for Overlay<'_, '_> {
    fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.own.insert(full_key(table, key), Some(value.to_vec()));
        Ok(())
    }

    fn delete(&mut self, table: TableId, key: &[u8]) -> Result<(), StoreError> {
        self.own.insert(full_key(table, key), None);
        Ok(())
    }
}

fn step<I: DoubleEndedIterator>(rows: &mut I, order: Order) -> Option<I::Item> {
    match order {
        Order::Ascending => rows.next(),
        Order::Descending => rows.next_back(),
    }
}

/// Visits what is there under the changes, in key order.
fn merge(
    base: &impl ReadableTable<&'static [u8], &'static [u8]>,
    own: &Changes,
    range: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    order: Order,
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    if is_empty(&range) {
        return Ok(());
    }
    let mut base = base.range::<&[u8]>(as_slices(&range)).map_err(read_failed)?;
    let mut own = own.range::<Vec<u8>, _>((range.0.as_ref(), range.1.as_ref()));
    let mut below = step(&mut base, order).transpose().map_err(read_failed)?;
    let mut above = step(&mut own, order);
    loop {
        let ordering = match (&below, &above) {
            (None, None) => return Ok(()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((key, _)), Some((changed, _))) => match order {
                Order::Ascending => key.value().cmp(changed.as_slice()),
                Order::Descending => changed.as_slice().cmp(key.value()),
            },
        };
        let flow = if ordering.is_lt() {
            let flow = below.as_ref().map(|(key, value)| visit(&key.value()[1..], value.value()));
            below = step(&mut base, order).transpose().map_err(read_failed)?;
            flow
        } else {
            if ordering.is_eq() {
                below = step(&mut base, order).transpose().map_err(read_failed)?;
            }
            let flow = above.as_ref().and_then(|(key, value)| value.as_ref().map(|value| visit(&key[1..], value)));
            above = step(&mut own, order);
            flow
        };
        if let Some(ControlFlow::Break(())) = flow.transpose()? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
