//! Laws of trees, changes, batches and judgements.

use bytes::Bytes;
use cortex_wire::{
    id::NodeId,
    key::SecretKey,
    limits,
    mirror::{
        entry::{Content, Entry, Hash, Sid, Span},
        judge::{Author, Code, Lock, judge},
        op::{self, BatchError, Op},
        path::RelPath,
        tree::{Tree, TreeError},
    },
    schema,
};
use proptest::prelude::*;
use prost::Message;

fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

fn file(content: u32) -> Entry {
    let spans = [Span { sid: Sid(*blake3::hash(&[content as u8]).as_bytes()), offset: content, length: 4 }];
    let hash = *blake3::hash(&content.to_le_bytes()).as_bytes();
    Entry::File { content: Content { size: 4, hash, depth: 0, spans: spans.into() }, executable: false }
}

fn node(seed: u8) -> NodeId {
    SecretKey::from_seed([seed; 32]).public().into()
}

fn any_path() -> impl Strategy<Value = RelPath> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "a!"]), 1..5).prop_map(|parts| path(&parts.join("/")))
}

fn any_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![6 => (0u32..6).prop_map(file), 2 => Just(Entry::Directory), 1 => Just(Entry::Symlink("x".into()))]
}

fn any_tree() -> impl Strategy<Value = Tree> {
    prop::collection::vec((any_path(), any_entry()), 0..24).prop_map(|entries| {
        let mut tree = Tree::default();
        for (path, entry) in entries {
            let _ = tree.put(&path, entry);
        }
        tree
    })
}

/// The second tree is the first with parts moved about, gone and come.
fn two_trees() -> impl Strategy<Value = (Tree, Tree)> {
    let edits = prop::collection::vec((0..4, any_path(), any_path(), any_entry()), 0..10);
    (any_tree(), edits).prop_map(|(before, edits)| {
        let mut after = before.clone();
        for (kind, path, other, entry) in edits {
            match kind {
                0 => drop(after.remove(&path)),
                1 => drop(after.put(&path, entry)),
                _ => drop(after.rename(&path, &other)),
            }
        }
        (before, after)
    })
}

fn rebuilt(tree: &Tree) -> Tree {
    let mut out = Tree::default();
    for (path, entry) in tree.iter().collect::<Vec<_>>().into_iter().rev() {
        out.put(&path, entry.clone()).unwrap();
    }
    out
}

proptest! {
    #[test]
    fn the_hash_tells_what_is_in_a_tree_and_not_how_it_came_about((before, after) in two_trees()) {
        prop_assert_eq!(after.root(), rebuilt(&after).root());
        let rows = |tree: &Tree| tree.iter().map(|(path, entry)| (path, entry.hash())).collect::<Vec<_>>();
        prop_assert_eq!(before.root() == after.root(), rows(&before) == rows(&after));
        prop_assert_eq!(after.len(), after.iter().count());
        prop_assert_eq!(after.bytes(), after.iter().map(|(_, entry)| entry.size()).sum::<u64>());
        prop_assert!(rows(&after).is_sorted());
    }

    #[test]
    fn differences_lead_from_one_tree_to_the_other((before, after) in two_trees()) {
        let mut tree = before.clone();
        let diff = before.diff(&after);
        for change in diff.iter().rev().filter(|change| change.after.is_none()) {
            prop_assert_eq!(tree.remove(&change.path).map(|gone| gone.entry().clone()), change.before.clone());
        }
        for change in &diff {
            prop_assert_eq!(before.get(&change.path), change.before.as_ref());
            prop_assert_eq!(after.get(&change.path), change.after.as_ref());
            if let Some(entry) = &change.after {
                tree.put(&change.path, entry.clone()).unwrap();
            }
        }
        prop_assert_eq!(&tree, &after);
        prop_assert!(after.diff(&tree).is_empty());
    }

    #[test]
    fn compact_changes_lead_there_and_a_hub_takes_them_all((before, after) in two_trees()) {
        let ops = op::compact(&before, &after);
        let ops = op::unpack(&op::pack(&ops), ops.len()).unwrap();
        let mut tree = before.clone();
        for op in &ops {
            let parent = match op {
                Op::Put { parent, .. } => *parent,
                Op::Remove { parent, .. } | Op::Move { parent, .. } => Some(*parent),
            };
            prop_assert_eq!(parent, tree.hash(op.path()));
            tree.apply(op).unwrap();
        }
        prop_assert_eq!(&tree, &after);
        let ruled = judge(&before, &ops, &[], &Author::Node(node(1)), 0);
        prop_assert!(ruled.objections.is_empty() && ruled.conflicts.is_empty());
        prop_assert_eq!(&ruled.tree, &after);
        prop_assert_eq!(ruled.accepted.len(), ops.len());
        prop_assert!(ops.len() <= before.diff(&after).len());
    }

    #[test]
    fn a_change_that_fails_changes_nothing(tree in any_tree(), from in any_path(), to in any_path(), entry in any_entry()) {
        let ops = [
            Op::Move { from: from.clone(), to, parent: Hash([0; 32]) },
            Op::Put { path: from, parent: None, entry },
        ];
        for op in ops {
            let mut after = tree.clone();
            if after.apply(&op).is_err() {
                prop_assert_eq!(&after, &tree);
            }
            prop_assert_eq!(after.root(), rebuilt(&after).root());
        }
    }

    #[test]
    fn whatever_is_proposed_what_is_accepted_makes_the_tree((base, proposed) in two_trees(), other in any_tree()) {
        let ops = op::compact(&base, &proposed);
        let ruled = judge(&other, &ops, &[], &Author::Node(node(1)), 0);
        let mut tree = other.clone();
        for op in &ruled.accepted {
            tree.apply(op).unwrap();
        }
        prop_assert_eq!(&tree, &ruled.tree);
        // The same again finds its own work and changes nothing of it.
        let again = judge(&ruled.tree, &ruled.accepted, &[], &Author::Node(node(1)), 0);
        for op in &again.accepted {
            prop_assert!(ruled.accepted.len() > 1, "{:?}", op);
        }
    }

    #[test]
    fn any_batch_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..200), size in 0u32..400) {
        let _ = op::unpack(&schema::PackedBatch { bytes: bytes.clone().into(), size }, 10);
        let packed = zstd::bulk::compress(&bytes, 1).unwrap();
        let _ = op::unpack(&schema::PackedBatch { bytes: packed.into(), size: bytes.len() as u32 }, 10);
    }

    #[test]
    fn a_damaged_batch_is_answered((_, tree) in two_trees(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut plain = op::encode(&op::compact(&Tree::default(), &tree)).encode_to_vec();
        if !plain.is_empty() {
            let at = at.index(plain.len());
            plain[at] = byte;
        }
        if let Ok(ops) = op::unpack(&schema::PackedBatch { bytes: plain.into(), size: 0 }, 100) {
            judge(&tree, &ops, &[], &Author::Hub("x".into()), 0);
        }
    }
}

fn tree_of(count: u32, directory: &str) -> Tree {
    let mut tree = Tree::default();
    for i in 0..count {
        tree.put(&path(&format!("{directory}/{}/{i}", i % 20)), file(i)).unwrap();
    }
    tree
}

#[test]
fn two_thousand_renamed_files_are_one_change() {
    let before = tree_of(2_000, "old");
    let mut after = before.clone();
    after.rename(&path("old"), &path("new")).unwrap();
    let ops = op::compact(&before, &after);
    assert!(matches!(&ops[..], [Op::Move { from, to, .. }] if *from == path("old") && *to == path("new")));
    // One of them changed, too: a move for each of the others' directories, and little more.
    after.put(&path("new/3/3"), file(9_999)).unwrap();
    let ops = op::compact(&before, &after);
    assert_eq!(ops.iter().filter(|op| op.target().is_some()).count(), 19 + 99);
    assert_eq!(ops.len(), 19 + 99 + 4);
}

#[test]
fn two_thousand_deleted_files_are_one_change() {
    let before = tree_of(2_000, "old");
    assert!(matches!(&op::compact(&before, &Tree::default())[..], [Op::Remove { .. }]));
}

#[test]
fn a_difference_is_found_without_looking_at_all() {
    let before = tree_of(100_000, "x");
    let mut after = before.clone();
    before.root();
    let start = std::time::Instant::now();
    after.put(&path("x/7/7"), file(200_000)).unwrap();
    assert_eq!((before.diff(&after).len(), op::compact(&before, &after).len()), (1, 1));
    // All of it takes seconds here.
    assert!(start.elapsed().as_millis() < 500);
}

#[test]
fn a_batch_that_says_more_than_it_may_is_refused_before_it_is_built() {
    let refused =
        |bytes: Vec<u8>, size: usize| op::unpack(&schema::PackedBatch { bytes: bytes.into(), size: size as u32 }, 2_048).unwrap_err();
    let zeros = vec![0; 64 << 20];
    let bomb = zstd::bulk::compress(&zeros, 1).unwrap();
    assert!(bomb.len() < 8_192);
    assert_eq!(refused(bomb.clone(), zeros.len()), BatchError::TooLarge);
    assert_eq!(refused(bomb.clone(), u32::MAX as usize), BatchError::TooLarge);
    assert_eq!(refused(bomb, 1_000), BatchError::Compression);
    assert_eq!(refused(zstd::bulk::compress(&[0; 99], 1).unwrap(), 100), BatchError::Compression);
    assert_eq!(refused(vec![0; limits::BATCH_BYTES + 1], 0), BatchError::TooLarge);
    // A million empty changes are two million bytes, but over a hundred million in memory.
    assert_eq!(refused([0x12, 0].repeat(900_000), 0), BatchError::TooLarge);
    assert_eq!(refused([0x0a, 0].repeat(900_000), 0), BatchError::Malformed);
    assert_eq!(refused([0x12, 0].to_vec(), 0), BatchError::Malformed);
    assert_eq!(refused([0x12, 0xff, 0xff, 0xff, 0x7f].to_vec(), 0), BatchError::Malformed);
}

#[test]
fn paths_and_hashes_of_a_batch_are_checked() {
    let refused = |op: schema::op::Op| {
        let batch = schema::Batch { chunks: Vec::new(), ops: vec![schema::Op { op: Some(op) }] };
        op::unpack(&schema::PackedBatch { bytes: batch.encode_to_vec().into(), size: 0 }, 10).unwrap_err()
    };
    let hash = Bytes::from_static(&[1; 32]);
    let remove = |path: &str, parent: &Bytes| schema::op::Op::Remove(schema::Remove { path: path.into(), parent: parent.clone() });
    for bad in ["", "..", "/etc", "a/../../b", ".cortex/stage/x", "a\0"] {
        assert!(matches!(refused(remove(bad, &hash)), BatchError::Path(_)), "{bad:?}");
        let rename = schema::Move { from: "a".into(), to: bad.into(), parent: hash.clone() };
        assert!(matches!(refused(schema::op::Op::Move(rename)), BatchError::Path(_)), "{bad:?}");
    }
    assert!(matches!(refused(remove("a", &Bytes::new())), BatchError::Entry(_)));
    assert_eq!(refused(schema::op::Op::Put(schema::Put { path: "a".into(), ..schema::Put::default() })), BatchError::Malformed);
}

#[test]
fn a_long_list_is_cut_into_batches_that_arrive() {
    let ops = op::compact(&Tree::default(), &tree_of(5_000, "x"));
    let batches = op::split(&ops);
    assert_eq!(batches.iter().map(|batch| batch.len()).collect::<Vec<_>>(), [2_048, 2_048, ops.len() - 4_096]);
    let spans: Vec<Span> =
        (0..256u32).map(|i| Span { sid: Sid(*blake3::hash(&i.to_le_bytes()).as_bytes()), offset: 0, length: 200_000 }).collect();
    let entry = Entry::File { content: Content { size: 256 * 200_000, hash: [0; 32], depth: 0, spans: spans.into() }, executable: false };
    let wide: Vec<Op> = (0..1_000).map(|i| Op::Put { path: path(&i.to_string()), parent: None, entry: entry.clone() }).collect();
    for batch in op::split(&ops).into_iter().chain(op::split(&wide)) {
        assert!(op::encode(batch).encoded_len() <= limits::BATCH_BYTES);
        assert_eq!(op::unpack(&op::pack(batch), limits::BATCH_OPS).unwrap(), batch);
    }
}

#[test]
fn a_move_that_would_make_paths_too_deep_is_refused() {
    let mut tree = Tree::default();
    let deep = vec!["d"; 100].join("/");
    tree.put(&path(&deep), file(1)).unwrap();
    tree.put(&path(&vec!["e"; 40].join("/")), Entry::Directory).unwrap();
    assert_eq!(tree.rename(&path("d"), &path(&vec!["e"; 41].join("/"))), Err(TreeError::TooLong(path("d"))));
    assert_eq!(tree.rename(&path("d"), &path("d/x")), Err(TreeError::IntoItself(path("d"))));
}

struct Case(Tree);

impl Case {
    fn new() -> Self {
        let mut tree = Tree::default();
        for (at, content) in [("a", 1), ("d/x", 2), ("d/y", 3)] {
            tree.put(&path(at), file(content)).unwrap();
        }
        Self(tree)
    }

    fn judge(&self, op: Op) -> Result<usize, Code> {
        let ruled = judge(&self.0, &[op], &[], &Author::Node(node(1)), 0);
        ruled.objections.first().map_or(Ok(ruled.accepted.len()), |objection| Err(objection.code))
    }
}

fn put(at: &str, parent: Option<Hash>, content: u32) -> Op {
    Op::Put { path: path(at), parent, entry: file(content) }
}

#[test]
fn a_change_goes_in_when_what_it_was_made_from_is_there() {
    let case = Case::new();
    assert_eq!(case.judge(put("a", Some(file(1).hash()), 9)), Ok(1));
    assert_eq!(case.judge(put("a", Some(file(7).hash()), 9)), Err(Code::Conflict));
    assert_eq!(case.judge(put("a", None, 9)), Err(Code::Conflict));
    assert_eq!(case.judge(put("a", Some(file(7).hash()), 1)), Ok(0), "what is there already is no change");
    assert_eq!(case.judge(put("gone/b", Some(file(7).hash()), 9)), Ok(1), "a change beats a deletion");
    assert_eq!(case.judge(put("a/b", None, 9)), Err(Code::Conflict), "a file is where a directory is needed");
    assert_eq!(case.judge(put("d", case.0.hash(&path("d")), 9)), Ok(1), "a directory gives way to who saw all of it");
    assert_eq!(case.judge(put("d", Some(Hash::directory()), 9)), Err(Code::Conflict));
}

#[test]
fn a_directory_goes_or_moves_only_as_it_was_seen() {
    let case = Case::new();
    let all = case.0.hash(&path("d")).unwrap();
    let remove = |at: &str, parent| Op::Remove { path: path(at), parent };
    let rename = |from: &str, to: &str, parent| Op::Move { from: path(from), to: path(to), parent };
    assert_eq!((case.judge(remove("d", all)), case.judge(remove("d", Hash::directory()))), (Ok(1), Err(Code::Conflict)));
    assert_eq!(case.judge(remove("gone", all)), Ok(0));
    assert_eq!((case.judge(rename("d", "e", all)), case.judge(rename("d", "e", Hash::directory()))), (Ok(1), Err(Code::Conflict)));
    assert_eq!(case.judge(rename("d", "a", all)), Err(Code::Conflict));
    assert_eq!(case.judge(rename("d", "a/e", all)), Err(Code::Conflict));
    assert_eq!(case.judge(rename("d", "d/e", all)), Err(Code::Invalid));
    assert_eq!(case.judge(rename("gone", "d", all)), Ok(0), "it is done already");
}

#[test]
fn what_loses_is_kept_with_what_it_was_made_from() {
    let case = Case::new();
    let ops = [put("a", Some(file(7).hash()), 9), put("b", None, 5)];
    let ruled = judge(&case.0, &ops, &[], &Author::Hub("eve".into()), 0);
    assert_eq!((ruled.accepted.len(), ruled.objections.len(), ruled.objections[0].op), (1, 1, 0));
    let conflict = &ruled.conflicts[0];
    assert_eq!((conflict.base, conflict.current.clone(), conflict.proposed.clone()), (Some(file(7).hash()), Some(file(1)), file(9)));
    assert_eq!(ruled.tree.get(&path("a")), Some(&file(1)));
}

#[test]
fn a_lock_keeps_others_out_until_it_ends() {
    let case = Case::new();
    let lock = Lock { prefix: path("d/x"), owner: "ann".into(), node: Some(node(2)), fence: 1, expires_at_ms: 100 };
    let locks = [Lock::from_schema(&lock.to_schema()).unwrap()];
    assert_eq!(locks[0], lock);
    let all = case.0.hash(&path("d")).unwrap();
    let code = |op: Op, author: Author, now| judge(&case.0, &[op], &locks, &author, now).objections.first().map(|objection| objection.code);
    let edit = || put("d/x", Some(file(2).hash()), 8);
    let removal = || Op::Remove { path: path("d"), parent: all };
    assert_eq!(code(edit(), Author::Node(node(1)), 99), Some(Code::Locked));
    assert_eq!(code(removal(), Author::Node(node(1)), 99), Some(Code::Locked), "what goes as a whole takes the locked part along");
    assert_eq!(code(put("d/y", Some(file(3).hash()), 8), Author::Node(node(1)), 99), None);
    assert_eq!(code(edit(), Author::Node(node(2)), 99), None);
    assert_eq!(code(edit(), Author::Hub("ann".into()), 99), Some(Code::Locked), "the node holds it, not a person of that name");
    assert_eq!(code(removal(), Author::Node(node(1)), 100), None);
}

/// Judging a change costs what it changes: with a look at all siblings for each, this would take minutes.
#[test]
fn a_folder_of_very_many_files_is_judged_at_once() {
    let mut tree = Tree::default();
    let since = std::time::Instant::now();
    for batch in 0..20 {
        let put = |number: u32| Op::Put { path: path(&format!("flat/{number}")), parent: None, entry: file(number) };
        let ops: Vec<Op> = (batch * 2_000..(batch + 1) * 2_000).map(put).collect();
        let ruled = judge(&tree, &ops, &[], &Author::Node(node(1)), 0);
        assert_eq!((ruled.accepted.len(), ruled.objections.len()), (2_000, 0));
        tree = ruled.tree;
    }
    assert_eq!(tree.len(), 40_001);
    assert!(since.elapsed() < std::time::Duration::from_secs(30), "{:?}", since.elapsed());
}
