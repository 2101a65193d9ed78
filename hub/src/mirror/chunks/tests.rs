use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    time::Duration,
};

use cortex_wire::mirror::seal::OVERHEAD_BYTES;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const LATER: Duration = Duration::from_secs(3_600);
const NOW: Duration = Duration::ZERO;

fn chunk(n: u64, length: usize) -> Sealed {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Sealed::check(Sid(*blake3::hash(&bytes).as_bytes()), bytes.into()).unwrap()
}

fn chunks(numbers: std::ops::Range<u64>) -> Vec<Sealed> {
    numbers.map(|n| chunk(n, 200)).collect()
}

fn sids(chunks: &[Sealed]) -> Vec<Sid> {
    chunks.iter().map(Sealed::sid).collect()
}

fn live(chunks: &[Sealed]) -> HashSet<Sid> {
    chunks.iter().map(Sealed::sid).collect()
}

fn some(chunks: &[Sealed]) -> Vec<Option<Sealed>> {
    chunks.iter().cloned().map(Some).collect()
}

fn open(dir: &Path) -> Packs {
    Packs::open(dir.to_owned(), 1_500).unwrap()
}

fn put(packs: &Packs, chunks: &[Sealed]) {
    packs.append(chunks).and_then(|mark| packs.sync(mark)).unwrap();
}

fn files(dir: &Path, extension: &str) -> usize {
    fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|found| found == extension)).count()
}

fn ids() -> (UserId, SessionId) {
    (UserId(Uuid::from_u128(1)), SessionId(Uuid::from_u128(2)))
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (user, session) = ids();
    let all = chunks(0..100);
    let store = ChunkStore { pack_bytes: 4_000, ..ChunkStore::new(dir.path().join("mirrors")) };
    let space = store.session(user, session).await.unwrap();
    let (send, receive) = mpsc::channel(4);
    let feed = async {
        for chunk in all.iter().chain(&all) {
            send.send(chunk.clone()).await.unwrap();
        }
        drop(send);
    };
    assert_eq!(space.missing(sids(&all)).await.unwrap(), sids(&all));
    let counters = Counters::default();
    let (stored, ()) = tokio::join!(space.store(receive, &counters), feed);
    assert_eq!(stored.unwrap(), 200);
    let (count, bytes) = space.size();
    assert_eq!((count, bytes), (100, 100 * 236), "each is written once");
    drop((store, space));
    let store = ChunkStore::new(dir.path().join("mirrors"));
    let space = store.session(user, session).await.unwrap();
    assert_eq!(space.missing(sids(&all)).await.unwrap(), vec![]);
    assert_eq!(space.read(sids(&all)).await.unwrap(), some(&all));
    assert_eq!(space.read(vec![chunk(500, 200).sid()]).await.unwrap(), vec![None]);
    assert!(dir.path().join(format!("mirrors/{user}/{session}")).is_dir());
    let other = store.session(user, SessionId(Uuid::from_u128(3))).await.unwrap();
    assert_eq!(other.missing(sids(&all)).await.unwrap().len(), 100, "sessions do not share");
    store.remove(user, session).await.unwrap();
    assert!(matches!(space.put(chunks(0..1)).await, Err(ChunkStoreError::Closed)));
    assert!(!dir.path().join(format!("mirrors/{user}/{session}")).exists());
    assert_eq!(store.session(user, session).await.unwrap().missing(sids(&all)).await.unwrap().len(), 100);
}

#[tokio::test]
async fn many_uploads_at_a_time_are_all_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (user, session) = ids();
    let store = Arc::new(ChunkStore { pack_bytes: 4_000, ..ChunkStore::new(dir.path().to_owned()) });
    let uploads: Vec<_> = (0..20)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.session(user, session).await.unwrap().put(chunks(n * 7..n * 7 + 30)).await.unwrap() })
        })
        .collect();
    for upload in uploads {
        upload.await.unwrap();
    }
    let all = chunks(0..163);
    let space = store.session(user, session).await.unwrap();
    assert_eq!((space.missing(sids(&all)).await.unwrap(), space.size().0), (vec![], 163));
    assert_eq!(space.read(sids(&all)).await.unwrap(), some(&all));
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let all = chunks(0..3);
    let packs = open(dir.path());
    put(&packs, &all);
    drop(packs);
    let path = pack::path(dir.path(), 0);
    let whole = fs::read(&path).unwrap();
    let record = whole.len() / 3;
    for length in (whole.len() - record)..whole.len() {
        for tail in [&[][..], &[0; 500][..]] {
            fs::write(&path, [&whole[..length], tail].concat()).unwrap();
            let packs = open(dir.path());
            assert_eq!(packs.missing(&sids(&all)).unwrap(), vec![all[2].sid()], "torn at {length}");
            assert_eq!(packs.read(&sids(&all[..2])).unwrap(), some(&all[..2]));
            assert_eq!(fs::metadata(&path).unwrap().len() as usize, 2 * record);
            put(&packs, &all[2..]);
            drop(packs);
            assert_eq!(open(dir.path()).read(&sids(&all)).unwrap(), some(&all));
        }
    }
}

#[test]
fn an_index_that_is_lost_or_damaged_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let all = chunks(0..40);
    let packs = open(dir.path());
    all.chunks(5).for_each(|group| put(&packs, group));
    drop(packs);
    let indexes = files(dir.path(), "index");
    assert!(indexes >= 3, "full packs have an index");
    fs::remove_file(pack::index_path(dir.path(), 0)).unwrap();
    for damaged in [1, 2] {
        let path = pack::index_path(dir.path(), damaged);
        let mut bytes = fs::read(&path).unwrap();
        bytes[50] ^= damaged as u8;
        bytes.truncate(bytes.len() - 3 * (damaged as usize - 1));
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(open(dir.path()).read(&sids(&all)).unwrap(), some(&all));
    assert!(files(dir.path(), "index") >= indexes);
}

#[test]
fn a_chunk_that_the_disk_has_changed_is_missing_and_can_be_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let all = chunks(0..3);
    let packs = open(dir.path());
    put(&packs, &all);
    let file = OpenOptions::new().write(true).open(pack::path(dir.path(), 0)).unwrap();
    file.write_all_at(b"!", 236 + 100).unwrap();
    assert_eq!(packs.read(&sids(&all)).unwrap(), [Some(all[0].clone()), None, Some(all[2].clone())]);
    assert_eq!(packs.missing(&sids(&all)).unwrap(), vec![all[1].sid()]);
    put(&packs, &all);
    assert_eq!(packs.read(&sids(&all)).unwrap(), some(&all));
    drop(packs);
    assert_eq!(open(dir.path()).read(&sids(&all)).unwrap(), some(&all));
}

#[test]
fn nothing_is_held_before_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let all = chunks(0..20);
    let packs = open(dir.path());
    let first = packs.append(&all[..10]).unwrap();
    assert_eq!(packs.missing(&sids(&all)).unwrap().len(), 20);
    // Another upload of the same has to wait for the same disk.
    assert_eq!(packs.append(&all[..3]).unwrap(), first);
    packs.sync_full();
    assert_eq!(packs.missing(&sids(&all)).unwrap().len(), 20);
    packs.sync(first).unwrap();
    assert_eq!(packs.missing(&sids(&all)).unwrap(), sids(&all[10..]));
}

#[test]
fn what_nobody_names_is_collected_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let all = chunks(0..60);
    let packs = open(dir.path());
    all.chunks(5).for_each(|group| put(&packs, group));
    let (kept, dead) = (live(&all[..3]), &all[3..]);
    let before = packs.size();
    let collected = packs.collect(&kept, NOW).unwrap();
    assert_eq!(collected.chunks, dead.len() as u64);
    assert_eq!(before.1 - packs.size().1, collected.bytes);
    assert_eq!(packs.size(), (3, 3 * 236));
    for packs in [packs, open(dir.path())] {
        assert_eq!(packs.read(&sids(&all[..3])).unwrap(), some(&all[..3]));
        assert_eq!(packs.missing(&sids(dead)).unwrap(), sids(dead));
    }
    let packs = open(dir.path());
    put(&packs, dead);
    assert_eq!(packs.read(&sids(&all)).unwrap(), some(&all));
}

#[test]
fn the_young_the_wanted_and_those_of_a_running_transfer_are_spared() {
    let dir = tempfile::tempdir().unwrap();
    let all = chunks(0..40);
    let packs = open(dir.path());
    put(&packs, &all[..20]);
    assert_eq!(packs.collect(&HashSet::new(), LATER).unwrap(), Collected::default(), "all are young");
    drop(packs);
    // As if it had been written two hours ago.
    let old = std::time::SystemTime::now() - 2 * LATER;
    for number in pack::list(dir.path()).unwrap() {
        OpenOptions::new().write(true).open(pack::path(dir.path(), number)).unwrap().set_modified(old).unwrap();
    }
    let packs = open(dir.path());
    // Somebody hears that these are there, and is about to name them.
    assert_eq!(packs.missing(&sids(&all[..5])).unwrap(), vec![]);
    let hold = packs.hold();
    put(&packs, &all[20..]);
    packs.append(&all[5..8]).unwrap();
    packs.collect(&HashSet::new(), LATER).unwrap();
    assert_eq!(packs.missing(&sids(&all[..8])).unwrap(), vec![]);
    assert_eq!(packs.missing(&sids(&all[20..])).unwrap(), vec![]);
    let gone = packs.missing(&sids(&all[8..20])).unwrap();
    assert_eq!(gone.len(), 12, "the others were old, and nobody asked for them");
    // The transfer is older than any grace.
    packs.collect(&HashSet::new(), NOW).unwrap();
    assert_eq!(packs.missing(&sids(&all[20..])).unwrap(), vec![]);
    packs.release(hold);
    packs.collect(&HashSet::new(), NOW).unwrap();
    assert_eq!(packs.size(), (0, 0));
}

#[test]
fn a_hub_that_was_killed_while_it_collected_has_lost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let all = chunks(0..12);
    let packs = open(dir.path());
    put(&packs, &all);
    drop(packs);
    // The copy is complete, the original not yet removed; and a draft that is not complete.
    fs::copy(pack::path(dir.path(), 0), pack::path(dir.path(), 7)).unwrap();
    fs::write(pack::draft_path(dir.path(), 8), b"half").unwrap();
    let packs = open(dir.path());
    assert_eq!(files(dir.path(), "draft"), 0);
    assert_eq!(packs.read(&sids(&all)).unwrap(), some(&all));
    packs.collect(&live(&all), NOW).unwrap();
    packs.collect(&live(&all), NOW).unwrap();
    assert_eq!(packs.size(), (12, 12 * 236), "the double is collected");
    assert_eq!(packs.read(&sids(&all)).unwrap(), some(&all));
    put(&packs, &chunks(12..14));
    drop(packs);
    assert_eq!(open(dir.path()).read(&sids(&chunks(0..14))).unwrap(), some(&chunks(0..14)));
}

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<u64>),
    Restart,
    /// Forget these, then collect.
    Collect(Vec<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = || proptest::collection::vec(0u64..40, 0..12);
    prop_oneof![4 => numbers().prop_map(Step::Put), 1 => Just(Step::Restart), 2 => numbers().prop_map(Step::Collect)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_happens_what_is_named_can_be_read(steps in proptest::collection::vec(step(), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let mut packs = open(dir.path());
        let sized = |n: &u64| chunk(*n, OVERHEAD_BYTES + 7 * *n as usize);
        let mut named = BTreeSet::new();
        for step in steps {
            let collected = matches!(step, Step::Collect(_));
            match step {
                Step::Put(numbers) => {
                    put(&packs, &numbers.iter().map(sized).collect::<Vec<_>>());
                    named.extend(numbers);
                }
                Step::Restart => {
                    drop(packs);
                    packs = open(dir.path());
                }
                Step::Collect(numbers) => {
                    named.retain(|n| !numbers.contains(n));
                    packs.collect(&named.iter().map(|n| sized(n).sid()).collect(), NOW).unwrap();
                }
            }
            let all: Vec<_> = named.iter().map(sized).collect();
            prop_assert_eq!(packs.read(&sids(&all)).unwrap(), some(&all));
            prop_assert_eq!(packs.missing(&sids(&all)).unwrap(), vec![]);
            let wanted: u64 = all.iter().map(|chunk| chunk.bytes().len() as u64 + 36).sum();
            let taken = packs.size().1;
            prop_assert!(taken >= wanted && (!collected || taken <= 2 * wanted), "{taken} bytes for {wanted}");
        }
    }
}

/// Set in the copy of this test that runs inside a small file system of its own.
const INSIDE: &str = "CORTEX_TEST_SMALL_DISK";

#[test]
fn on_a_full_disk_nothing_is_half_stored_and_what_was_stored_stays() {
    if let Some(disk) = std::env::var_os(INSIDE) {
        return on_small_disk(Path::new(&disk));
    }
    let dir = tempfile::tempdir().unwrap();
    let inside = r#"mount -t tmpfs -o size=2m none "$0" && exec "$@""#;
    let name = "mirror::chunks::tests::on_a_full_disk_nothing_is_half_stored_and_what_was_stored_stays";
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", inside])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, dir.path())
        .output()
        .expect("unshare is needed: apt-get install util-linux");
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

fn on_small_disk(disk: &Path) {
    let dir = disk.join("packs");
    let packs = Packs::open(dir.clone(), 64 << 20).unwrap();
    let all: Vec<_> = (0..20).map(|n| chunk(n, 200_000)).collect();
    put(&packs, &all[..3]);
    let error = packs.append(&all).map(|_| ()).unwrap_err();
    assert!(matches!(&error, ChunkStoreError::NoSpace(_)), "{error}");
    assert!(error.to_string().contains("make room"), "{error}");
    assert_eq!(packs.missing(&sids(&all)).unwrap(), sids(&all[3..]), "nothing of it counts");
    assert_eq!(packs.read(&sids(&all[..3])).unwrap(), some(&all[..3]));
    // What fits still goes in, also after a restart.
    put(&packs, &all[3..5]);
    drop(packs);
    let packs = Packs::open(dir, 64 << 20).unwrap();
    assert_eq!(packs.read(&sids(&all[..5])).unwrap(), some(&all[..5]));
    assert_eq!(packs.missing(&sids(&all[5..])).unwrap(), sids(&all[5..]));
}

#[tokio::test]
async fn a_session_that_is_gone_is_never_opened_again_however_many_come_while_it_is_removed() {
    let site = crate::testing::Site::new().await;
    let ada = site.member("ada").await;
    let store = &site.hub.mirrors.chunks;
    for round in 0..20 {
        let session = site.session(&ada, &[]).await;
        let owner = site.hub.session(&ada, session).await.unwrap().user_id;
        let uploads: Vec<_> = (0..8)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    for part in 0..20 {
                        if n % 2 == 0 {
                            tokio::task::yield_now().await;
                        }
                        let Ok(space) = store.session(owner, session).await else { return };
                        let _ = space.put(chunks(part * 3..part * 3 + 3)).await;
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(200 * round)).await;
        site.hub.delete_session(&ada, session).await.unwrap();
        store.remove(owner, session).await.unwrap();
        for upload in uploads {
            upload.await.unwrap();
        }
        assert!(matches!(store.session(owner, session).await, Err(ChunkStoreError::Closed)));
        let folder = store.root().join(owner.to_string()).join(session.to_string());
        assert!(!folder.exists(), "round {round}");
    }
}
