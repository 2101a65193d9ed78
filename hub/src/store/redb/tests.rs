use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::Duration,
};

use super::*;
use crate::store::{
    Db, Span, Table,
    contract::every_rule,
    migrate::{CURRENT, Step},
};

fn open(path: &Path) -> Db {
    Db::new(Arc::new(RedbStore::open(path, CURRENT).unwrap()))
}

fn fresh() -> (tempfile::TempDir, Db) {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&dir.path().join("hub.redb"));
    (dir, db)
}

every_rule!(fresh());

const WORDS: Table<u64, String> = Table::new(200, "words");

const MARK: Step = |tx| WORDS.put(tx, &1, &"moved".into());
const FAIL: Step = |_| Err(StoreError::adapter("migrate", "on purpose"));
const NEXT: Schema = Schema { steps: &[MARK] };

#[tokio::test]
async fn a_store_is_closed_when_it_is_dropped() {
    let (dir, db) = fresh();
    db.write(|tx| WORDS.put(tx, &7, &"seven".into())).await.unwrap();
    drop(db);
    let db = open(&dir.path().join("hub.redb"));
    assert_eq!(db.read(|tx| WORDS.get(tx, &7)).await.unwrap().as_deref(), Some("seven"));
}

#[tokio::test]
async fn an_older_store_moves_forward_after_a_backup() {
    let (dir, db) = fresh();
    let path = dir.path().join("hub.redb");
    db.write(|tx| WORDS.put(tx, &7, &"seven".into())).await.unwrap();
    drop(db);
    let db = Db::new(Arc::new(RedbStore::open(&path, NEXT).unwrap()));
    assert_eq!(db.read(|tx| WORDS.get(tx, &1)).await.unwrap().as_deref(), Some("moved"));
    drop(db);
    // A second start has nothing to do, and the program of before finds its own store in the backup.
    drop(RedbStore::open(&path, NEXT).unwrap());
    let old = open(&dir.path().join("hub.redb.schema-1"));
    assert_eq!(old.read(|tx| WORDS.list(tx, &Span::all(), Order::Ascending, 9)).await.unwrap(), ["seven"]);
    let newer = RedbStore::open(&path, CURRENT).map(drop);
    assert!(matches!(newer, Err(StoreError::Newer { found: 2, known: 1 })), "{newer:?}");
}

#[tokio::test]
async fn a_step_that_fails_leaves_the_store_as_it_was() {
    let (dir, db) = fresh();
    drop(db);
    let path = dir.path().join("hub.redb");
    assert!(RedbStore::open(&path, Schema { steps: &[MARK, FAIL] }).is_err());
    let db = open(&path);
    assert_eq!(db.read(|tx| WORDS.get(tx, &1)).await.unwrap(), None);
}

#[tokio::test]
async fn a_file_that_is_no_store_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.redb");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    let error = RedbStore::open(&path, CURRENT).map(drop).unwrap_err();
    assert!(error.to_string().starts_with("the store cannot open its file"), "{error}");
}

const VICTIM: &str = "CORTEX_TEST_STORE_VICTIM";

/// The program that the next test kills. Run by itself it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let db = open(Path::new(&path));
    let first = db.read(|tx| Ok::<_, StoreError>(WORDS.last(tx, &Span::all())?.map_or(0, |text| text.parse().unwrap()))).await.unwrap();
    let mut next: u64 = first + 1;
    loop {
        let batch = (next..next + 20).map(|i| db.write(move |tx| WORDS.put(tx, &i, &i.to_string())));
        futures_util::future::try_join_all(batch).await.unwrap();
        next += 20;
        let mut out = std::io::stdout().lock();
        writeln!(out, "stored {}", next - 1).unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hub.redb");
    let mut acknowledged = 0;
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::redb::tests::victim", "--nocapture", "--test-threads=1"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            lines.map_while(Result::ok).filter_map(|line| line.rsplit_once("stored ")?.1.parse::<u64>().ok()).last().unwrap_or(0)
        });
        // Some rounds die while they open what the round before left.
        std::thread::sleep(Duration::from_millis([400, 60, 700, 150, 500, 333][round as usize]));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = acknowledged.max(reader.join().unwrap());
        let db = open(&path);
        let rows = db.read(|tx| WORDS.list(tx, &Span::all(), Order::Ascending, usize::MAX)).await.unwrap();
        assert!(rows.len() as u64 >= acknowledged, "{} rows of {acknowledged} after round {round}", rows.len());
        assert!(rows.iter().enumerate().all(|(i, text)| *text == (i + 1).to_string()));
    }
    assert!(acknowledged > 0, "the victim never wrote");
}
