//! What a workspace must still know after a restart: one redb file per session.
//!
//! The rows of the engine, of the cache and of the chunk maps stand under a prefix each. A thread of its own writes: what is queued becomes one transaction,
//! and whoever asked learns when it is durable.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use cortex_wire::mirror::{
    entry::{Entry, Hash},
    path::RelPath,
    replica::{Asked, Changes, Row, Saved},
    tree::Tree,
};
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::oneshot;

use super::chunks::ChunkMap;

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
/// Pages kept in memory; the file is read once, at start.
const CACHE_BYTES: usize = 4 * 1024 * 1024;
/// Orders that may wait for the disk.
const QUEUE: usize = 64;

const ENTRY: u8 = b'e';
const ROW: u8 = b'r';
const SEEN: u8 = b'c';
const MAP: u8 = b'm';
const NUMBER: u8 = b'n';
const REVISION: &[u8] = b"nrevision";
const SEQUENCE: &[u8] = b"nsequence";
const QUESTIONS: &[u8] = b"nquestions";
const ASKED: &[u8] = b"nasked";
const FOLDER: &[u8] = b"nfolder";
const FORMAT: &[u8] = b"nformat";
/// Raised when rows change their meaning; an older file is then begun anew, which costs a look at everything.
const VERSION: u64 = 1;

/// Why the state of a workspace cannot be kept.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot keep the state of the workspace in {path}: {reason}")]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Rows to be written, `None` to be removed.
#[derive(Debug, Default)]
pub struct Rows(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Rows {
    /// Adds what the engine changed.
    pub fn engine(&mut self, changes: &Changes) {
        self.0.extend(changes.entries.iter().map(|(path, entry)| (key(ENTRY, path), entry.as_ref().map(Entry::to_bytes))));
        self.0.extend(changes.rows.iter().map(|(path, row)| (key(ROW, path), row.as_ref().map(encode_row))));
        self.0.extend(changes.revision.map(|revision| (REVISION.to_vec(), Some(revision.to_le_bytes().to_vec()))));
        self.0.extend(changes.sequence.map(|sequence| (SEQUENCE.to_vec(), Some(sequence.to_le_bytes().to_vec()))));
        if let Some((questions, asked)) = &changes.asked {
            self.0.push((QUESTIONS.to_vec(), Some(questions.to_le_bytes().to_vec())));
            self.0.push((ASKED.to_vec(), asked.as_ref().map(encode_asked)));
        }
    }

    /// Adds what was seen on the disk.
    pub fn seen(&mut self, changes: Vec<(RelPath, Option<Vec<u8>>)>) {
        self.0.extend(changes.into_iter().map(|(path, row)| (key(SEEN, &path), row)));
    }

    /// Adds how a large file is cut.
    pub fn map(&mut self, content: &[u8; 32], map: Option<&ChunkMap>) {
        self.0.push(([&[MAP], &content[..]].concat(), map.map(ChunkMap::encode)));
    }

    /// Adds which folder it is about.
    pub fn folder(&mut self, identity: &[u8]) {
        self.0.push((FOLDER.to_vec(), Some(identity.to_vec())));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn key(kind: u8, path: &RelPath) -> Vec<u8> {
    [&[kind], path.as_str().as_bytes()].concat()
}

fn encode_row(row: &Row) -> Vec<u8> {
    let mut bytes = vec![u8::from(row.keep) | u8::from(row.left) << 1];
    bytes.extend(row.base.iter().flat_map(|hash| hash.0));
    bytes
}

fn encode_asked(asked: &Asked) -> Vec<u8> {
    [&asked.id.to_le_bytes()[..], &asked.paths, asked.text.as_bytes()].concat()
}

fn decode_asked(bytes: &[u8]) -> Option<Asked> {
    let (id, rest) = bytes.split_first_chunk()?;
    let (paths, text) = rest.split_first_chunk()?;
    Some(Asked { id: u64::from_le_bytes(*id), text: String::from_utf8(text.to_vec()).ok()?, paths: *paths })
}

fn decode_row(bytes: &[u8]) -> Option<Row> {
    let (flags, base) = bytes.split_first()?;
    let base = if base.is_empty() { None } else { Some(Hash::from_slice(base).ok()?) };
    Some(Row { base, keep: flags & 1 != 0, left: flags & 2 != 0 })
}

/// Everything that was kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// For the engine.
    pub saved: Saved,
    /// For the cache.
    pub seen: Vec<(RelPath, Vec<u8>)>,
    /// Which folder it is about.
    pub folder: Option<Vec<u8>>,
}

struct Order {
    rows: Rows,
    durable: oneshot::Sender<Result<(), StoreError>>,
}

/// The file. Dropping it waits until what is queued is written.
#[derive(Debug)]
pub struct Store {
    database: Arc<Database>,
    path: PathBuf,
    orders: Option<mpsc::SyncSender<Order>>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Store {
    /// Opens the file, or makes it. One that cannot be read is put aside and begun anew: the workspace is then compared with the hub's from the beginning, and
    /// nothing in it is lost. Blocks.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<(Self, Kept), StoreError> {
        let failed = |reason: redb::Error| StoreError { path: path.to_owned(), reason: reason.to_string() };
        let (database, kept) = match open_file(path) {
            Ok(opened) => opened,
            Err(error) if is_passing(&error) => return Err(failed(error)),
            Err(error) => {
                tracing::warn!(%error, "the kept state is put aside; the workspace is compared with the hub's from the beginning");
                let _ = std::fs::rename(path, path.with_extension("broken"));
                open_file(path).map_err(failed)?
            }
        };
        let database = Arc::new(database);
        let (orders, waiting) = mpsc::sync_channel::<Order>(QUEUE);
        let (owned, own_path) = (database.clone(), path.to_owned());
        let writer = std::thread::Builder::new()
            .name("mirror-store".into())
            .spawn(move || write_until_closed(&owned, &own_path, &waiting))
            .map_err(|error| StoreError { path: path.to_owned(), reason: error.to_string() })?;
        Ok((Self { database, path: path.to_owned(), orders: Some(orders), writer: Some(writer) }, kept))
    }

    /// Writes rows, after all that were given before. The answer comes when they are durable. Waits for room in the queue.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write(&self, rows: Rows) -> oneshot::Receiver<Result<(), StoreError>> {
        let (durable, answer) = oneshot::channel();
        if rows.is_empty() {
            let _ = durable.send(Ok(()));
        } else if let Some(orders) = &self.orders {
            // When the writer is gone, the answer's sender is dropped with the order.
            let _ = orders.send(Order { rows, durable });
        }
        answer
    }

    /// How a large file with these bytes is cut, if that is known. Blocks.
    pub fn map(&self, content: &[u8; 32]) -> Option<ChunkMap> {
        let rows = self.database.begin_read().ok()?.open_table(ROWS).ok()?;
        let row = rows.get([&[MAP], &content[..]].concat().as_slice()).ok()??;
        ChunkMap::decode(row.value())
    }

    /// How all large files are cut of which that is known, whether they are still there or not. Blocks.
    pub fn each_map(&self, mut each: impl FnMut(&[u8; 32], ChunkMap)) {
        let Some(rows) = self.database.begin_read().ok().and_then(|transaction| transaction.open_table(ROWS).ok()) else { return };
        for row in rows.range([MAP].as_slice()..[MAP + 1].as_slice()).into_iter().flatten().flatten() {
            let content = row.0.value().get(1..).and_then(|content| content.try_into().ok());
            if let (Some(content), Some(map)) = (content, ChunkMap::decode(row.1.value())) {
                each(content, map);
            }
        }
    }

    /// The file, to be removed when the workspace is detached.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open_file(path: &Path) -> Result<(Database, Kept), redb::Error> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    if let Some(kept) = read(&database)? {
        return Ok((database, kept));
    }
    // Nothing yet, or what another version kept.
    let transaction = database.begin_write()?;
    transaction.delete_table(ROWS)?;
    transaction.open_table(ROWS)?.insert(FORMAT, VERSION.to_le_bytes().as_slice())?;
    transaction.commit()?;
    Ok((database, Kept::default()))
}

/// Whether it may well open later as it is.
fn is_passing(error: &redb::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        redb::Error::DatabaseAlreadyOpen => true,
        redb::Error::Io(error) => !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
        _ => false,
    }
}

fn write_until_closed(database: &Database, path: &Path, waiting: &mpsc::Receiver<Order>) {
    while let Ok(first) = waiting.recv() {
        let orders: Vec<Order> = std::iter::once(first).chain(waiting.try_iter().take(QUEUE)).collect();
        let outcome = write(database, orders.iter().map(|order| &order.rows))
            .map_err(|reason| StoreError { path: path.to_owned(), reason: reason.to_string() });
        for order in orders {
            let _ = order.durable.send(outcome.clone());
        }
    }
}

fn write<'a>(database: &Database, all: impl Iterator<Item = &'a Rows>) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut table = transaction.open_table(ROWS)?;
        for (key, value) in all.flat_map(|rows| &rows.0) {
            match value {
                Some(value) => drop(table.insert(key.as_slice(), value.as_slice())?),
                None => drop(table.remove(key.as_slice())?),
            }
        }
    }
    Ok(transaction.commit()?)
}

/// `None`: nothing was kept yet, or by another version.
fn read(database: &Database) -> Result<Option<Kept>, redb::Error> {
    let rows = match database.begin_read()?.open_table(ROWS) {
        Ok(rows) => rows,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let number = |key: &[u8]| -> Result<u64, redb::Error> {
        Ok(rows.get(key)?.and_then(|row| row.value().try_into().ok().map(u64::from_le_bytes)).unwrap_or(0))
    };
    if number(FORMAT)? != VERSION {
        return Ok(None);
    }
    let mut kept = Kept::default();
    let mut hub = Tree::default();
    for row in rows.iter()? {
        let (key, value) = row?;
        let Some((kind, path)) = key.value().split_first() else { continue };
        if matches!(*kind, NUMBER | MAP) {
            continue;
        }
        let Some(path) = std::str::from_utf8(path).ok().and_then(|path| path.parse::<RelPath>().ok()) else { continue };
        match *kind {
            ENTRY => {
                if let Ok(entry) = Entry::from_bytes(value.value()) {
                    // A tree that is not whole is found out by its root, and asked for again.
                    let _ = hub.put(&path, entry);
                }
            }
            ROW => kept.saved.rows.extend(decode_row(value.value()).map(|row| (path, row))),
            SEEN => kept.seen.push((path, value.value().to_vec())),
            _ => {}
        }
    }
    kept.folder = rows.get(FOLDER)?.map(|row| row.value().to_vec());
    kept.saved.hub = hub;
    (kept.saved.revision, kept.saved.sequence, kept.saved.questions) = (number(REVISION)?, number(SEQUENCE)?, number(QUESTIONS)?);
    kept.saved.asked = rows.get(ASKED)?.and_then(|row| decode_asked(row.value()));
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn what_was_durable_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.redb");
        let row = Row { base: Some(Hash([7; 32])), keep: true, left: false };
        let asked = Asked { id: 4, text: "really?".into(), paths: [9; 32] };
        {
            let (store, kept) = Store::open(&file).unwrap();
            assert_eq!(kept.saved.revision, 0);
            let mut rows = Rows::default();
            rows.engine(&Changes {
                entries: vec![(path("d"), Some(Entry::Directory)), (path("d/l"), Some(Entry::Symlink("x".into())))],
                rows: vec![(path("d/l"), Some(row)), (path("gone"), None)],
                revision: Some(5),
                sequence: Some(9),
                asked: Some((4, Some(asked.clone()))),
            });
            rows.seen(vec![(path("d"), Some(b"d".to_vec()))]);
            store.write(rows).await.unwrap().unwrap();
            let mut rows = Rows::default();
            rows.engine(&Changes { entries: vec![(path("d/l"), None)], ..Changes::default() });
            store.write(rows).await.unwrap().unwrap();
        }
        let (_store, kept) = Store::open(&file).unwrap();
        assert_eq!((kept.saved.revision, kept.saved.sequence), (5, 9));
        assert_eq!((kept.saved.questions, kept.saved.asked), (4, Some(asked)));
        assert_eq!(kept.saved.rows, [(path("d/l"), row)]);
        assert_eq!(kept.saved.hub.len(), 1);
        assert_eq!(kept.seen, [(path("d"), b"d".to_vec())]);
    }

    #[test]
    fn a_file_that_is_no_store_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.redb");
        std::fs::write(&file, "something else entirely").unwrap();
        let (_store, kept) = Store::open(&file).unwrap();
        assert_eq!(kept.saved.revision, 0);
        assert!(dir.path().join("s.broken").exists());
    }
}
