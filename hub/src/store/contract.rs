//! What every adapter must do. An adapter's tests open a fresh store and call [`every_rule!`].

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::{Arc, Mutex},
};

use super::{Db, Order, ReadTx, Span, StoreError, Table, TableId, WriteTx};

/// Makes a test of each rule, on a store that `$open` (an expression) gives: a guard, and a [`Db`].
macro_rules! every_rule {
    ($open:expr) => {
        every_rule!($open;
            what_is_written_is_read_back
            a_failed_transaction_leaves_nothing_and_harms_nobody
            a_panic_leaves_nothing_and_harms_nobody
            a_transaction_reads_its_own_writes
            a_scan_keeps_to_its_table_and_its_bounds
            transactions_do_not_overlap
            a_read_sees_one_state
            what_follows_a_commit_follows_in_commit_order
            a_transaction_outlives_whoever_asked
            any_sequence_of_operations_is_that_of_a_sorted_map
        );
    };
    ($open:expr; $($rule:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $rule() {
            let (_guard, db) = $open;
            crate::store::contract::$rule(&db).await;
        }
    )*};
}
pub(super) use every_rule;

const WORDS: Table<u64, String> = Table::new(200, "words");
const OTHERS: Table<u64, String> = Table::new(201, "others");

async fn words(db: &Db) -> Vec<String> {
    db.read(|tx| WORDS.list(tx, &Span::all(), Order::Ascending, usize::MAX)).await.unwrap()
}

pub async fn what_is_written_is_read_back(db: &Db) {
    db.write(|tx| WORDS.put(tx, &1, &"one".into())).await.unwrap();
    assert_eq!(db.read(|tx| WORDS.get(tx, &1)).await.unwrap().as_deref(), Some("one"));
    assert_eq!(db.read(|tx| WORDS.get(tx, &2)).await.unwrap(), None);
    db.write(|tx| WORDS.put(tx, &1, &"uno".into())).await.unwrap();
    assert_eq!(words(db).await, ["uno"]);
    db.write(|tx| WORDS.delete(tx, &1)).await.unwrap();
    db.write(|tx| WORDS.delete(tx, &1)).await.unwrap();
    assert!(words(db).await.is_empty());
}

pub async fn a_failed_transaction_leaves_nothing_and_harms_nobody(db: &Db) {
    let writes = (0..100u64).map(|i| {
        db.write(move |tx| {
            WORDS.put(tx, &i, &i.to_string())?;
            if i % 3 == 0 { Err(StoreError::adapter("test", i)) } else { Ok(i) }
        })
    });
    for (i, outcome) in futures_util::future::join_all(writes).await.into_iter().enumerate() {
        assert_eq!(outcome.is_err(), i % 3 == 0);
    }
    assert_eq!(words(db).await, (0..100).filter(|i| i % 3 != 0).map(|i| i.to_string()).collect::<Vec<_>>());
}

pub async fn a_panic_leaves_nothing_and_harms_nobody(db: &Db) {
    let panicking = db.write(|tx| -> Result<(), StoreError> {
        WORDS.put(tx, &1, &"one".into())?;
        panic!("on purpose");
    });
    let (panicked, fine) = tokio::join!(panicking, db.write(|tx| WORDS.put(tx, &2, &"two".into())));
    assert!(matches!(panicked, Err(StoreError::Panicked)));
    fine.unwrap();
    assert_eq!(words(db).await, ["two"]);
}

pub async fn a_transaction_reads_its_own_writes(db: &Db) {
    db.write(|tx| (1..=5).try_for_each(|i| WORDS.put(tx, &i, &format!("old {i}")))).await.unwrap();
    db.write(|tx| {
        WORDS.delete(tx, &1)?;
        WORDS.put(tx, &3, &"new 3".into())?;
        WORDS.delete(tx, &5)?;
        WORDS.put(tx, &6, &"new 6".into())?;
        assert_eq!(WORDS.get(tx, &1)?, None);
        assert_eq!(WORDS.get(tx, &3)?.as_deref(), Some("new 3"));
        let expected = ["old 2", "new 3", "old 4", "new 6"];
        assert_eq!(WORDS.list(tx, &Span::all(), Order::Ascending, usize::MAX)?, expected);
        let backwards: Vec<_> = expected.into_iter().rev().collect();
        assert_eq!(WORDS.list(tx, &Span::all(), Order::Descending, usize::MAX)?, backwards);
        assert_eq!(WORDS.last(tx, &Span::all())?.as_deref(), Some("new 6"));
        assert_eq!(WORDS.clear(tx, &Span::all().before(4u64))?, 2);
        assert_eq!(WORDS.list(tx, &Span::all(), Order::Ascending, 1)?, ["old 4"]);
        Ok::<_, StoreError>(())
    })
    .await
    .unwrap();
    assert_eq!(words(db).await, ["old 4", "new 6"]);
}

pub async fn a_scan_keeps_to_its_table_and_its_bounds(db: &Db) {
    db.write(|tx| {
        for i in [0, 1, 2, 255, 256, u64::MAX] {
            WORDS.put(tx, &i, &i.to_string())?;
            OTHERS.put(tx, &i, &"other".into())?;
        }
        Ok::<_, StoreError>(())
    })
    .await
    .unwrap();
    let list = |span: Span, order, limit| db.read(move |tx| WORDS.list(tx, &span, order, limit));
    let top = u64::MAX.to_string();
    assert_eq!(list(Span::all(), Order::Ascending, 9).await.unwrap(), ["0", "1", "2", "255", "256", top.as_str()]);
    assert_eq!(list(Span::all().after(1u64), Order::Ascending, 2).await.unwrap(), ["2", "255"]);
    assert_eq!(list(Span::all().before(255u64), Order::Descending, 2).await.unwrap(), ["2", "1"]);
    assert_eq!(list(Span::all().after(1u64).before(2u64), Order::Ascending, 9).await.unwrap(), Vec::<String>::new());
    assert_eq!(list(Span::all().after(2u64).before(1u64), Order::Ascending, 9).await.unwrap(), Vec::<String>::new());
    assert_eq!(list(Span::under(1u64), Order::Ascending, 9).await.unwrap(), ["1"]);
    assert_eq!(list(Span::under(u64::MAX), Order::Ascending, 9).await.unwrap(), [top.as_str()]);
    assert_eq!(list(Span::all(), Order::Ascending, 0).await.unwrap(), Vec::<String>::new());
}

pub async fn transactions_do_not_overlap(db: &Db) {
    let add_one = || {
        db.write(|tx| {
            let count: u64 = WORDS.get(tx, &0)?.and_then(|text| text.parse().ok()).unwrap_or(0);
            WORDS.put(tx, &0, &(count + 1).to_string())?;
            Ok::<_, StoreError>(count)
        })
    };
    let mut seen: Vec<_> = futures_util::future::join_all((0..200).map(|_| add_one())).await.into_iter().map(Result::unwrap).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
}

pub async fn a_read_sees_one_state(db: &Db) {
    let writer = async {
        for i in 0..50u64 {
            let both = move |tx: &mut dyn WriteTx| {
                WORDS.put(tx, &1, &i.to_string())?;
                OTHERS.put(tx, &1, &i.to_string())
            };
            db.write(both).await.unwrap();
        }
    };
    let reader = async {
        for _ in 0..200 {
            let (a, b) = db.read(|tx| Ok::<_, StoreError>((WORDS.get(tx, &1)?, OTHERS.get(tx, &1)?))).await.unwrap();
            assert_eq!(a, b);
        }
    };
    tokio::join!(writer, reader);
}

pub async fn what_follows_a_commit_follows_in_commit_order(db: &Db) {
    let order = Arc::new(Mutex::new(Vec::new()));
    let next = |tx: &mut dyn WriteTx| -> Result<u64, StoreError> {
        let number = WORDS.list(tx, &Span::all(), Order::Ascending, usize::MAX)?.len() as u64;
        WORDS.put(tx, &number, &String::new())?;
        Ok(number)
    };
    let writes = (0..100).map(|_| {
        let order = order.clone();
        db.write_then(next, move |number| order.lock().unwrap().push(number))
    });
    futures_util::future::join_all(writes).await.into_iter().for_each(|outcome| outcome.unwrap());
    assert_eq!(*order.lock().unwrap(), (0..100).collect::<Vec<_>>());
}

pub async fn a_transaction_outlives_whoever_asked(db: &Db) {
    let (tell, told) = tokio::sync::oneshot::channel();
    let mut write = Box::pin(db.write_then(|tx| WORDS.put(tx, &1, &"one".into()), move |()| tell.send(()).unwrap()));
    assert!(futures_util::poll!(&mut write).is_pending());
    drop(write);
    told.await.unwrap();
    assert_eq!(words(db).await, ["one"]);
}

/// The same operations on the store and on a sorted map, by seed.
pub async fn any_sequence_of_operations_is_that_of_a_sorted_map(db: &Db) {
    const ROWS: TableId = TableId { number: 202, name: "rows" };
    type Map = BTreeMap<Vec<u8>, Vec<u8>>;

    struct Dice(u64);
    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % sides
        }
        fn key(&mut self) -> Vec<u8> {
            (0..self.roll(3)).map(|_| [0, 1, 0x7f, 0xff][self.roll(4) as usize]).collect()
        }
        fn bound(&mut self) -> Bound<Vec<u8>> {
            match self.roll(3) {
                0 => Bound::Unbounded,
                1 => Bound::Included(self.key()),
                _ => Bound::Excluded(self.key()),
            }
        }
    }

    fn inside(key: &[u8], low: &Bound<Vec<u8>>, high: &Bound<Vec<u8>>) -> bool {
        let above = match low {
            Bound::Unbounded => true,
            Bound::Included(low) => key >= &low[..],
            Bound::Excluded(low) => key > &low[..],
        };
        let below = match high {
            Bound::Unbounded => true,
            Bound::Included(high) => key <= &high[..],
            Bound::Excluded(high) => key < &high[..],
        };
        above && below
    }

    fn compare(tx: &dyn ReadTx, map: &Map, dice: &mut Dice) {
        let key = dice.key();
        assert_eq!(tx.get(ROWS, &key).unwrap(), map.get(&key).cloned());
        let (low, high) = (dice.bound(), dice.bound());
        let mut expected: Vec<_> = map.iter().filter(|(key, _)| inside(key, &low, &high)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let order = if dice.roll(2) == 0 { Order::Ascending } else { Order::Descending };
        if order == Order::Descending {
            expected.reverse();
        }
        let limit = dice.roll(6) as usize + 1;
        expected.truncate(limit);
        let mut found = Vec::new();
        let range = (low.as_ref().map(Vec::as_slice), high.as_ref().map(Vec::as_slice));
        tx.scan(ROWS, range, order, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })
        .unwrap();
        assert_eq!(found, expected);
    }

    let mut map = Map::new();
    for seed in 0..60 {
        let before = map.clone();
        let work = move |tx: &mut dyn WriteTx| {
            let (mut dice, mut map) = (Dice(seed), before.clone());
            for _ in 0..20 {
                let key = dice.key();
                if dice.roll(3) == 0 {
                    tx.delete(ROWS, &key)?;
                    map.remove(&key);
                } else {
                    let value = vec![dice.roll(256) as u8];
                    tx.put(ROWS, &key, &value)?;
                    map.insert(key, value);
                }
                compare(tx, &map, &mut dice);
            }
            // One in four is undone.
            if seed % 4 == 0 { Err(StoreError::adapter("test", "undone")) } else { Ok(map) }
        };
        if let Ok(after) = db.write(work).await {
            map = after;
        }
        let expected = map.clone();
        db.read(move |tx| {
            (0..10).for_each(|i| compare(tx, &expected, &mut Dice(1000 * seed + i)));
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    }
}
