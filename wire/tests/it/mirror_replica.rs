//! What a node's engine does in situations that matter by themselves, beside what the simulator finds.

use cortex_wire::{
    id::NodeId,
    key::SecretKey,
    mirror::{
        entry::{Content, Entry, Hash, Sid, Span},
        judge::{Code, Lock, Objection},
        op::{self, Op},
        path::RelPath,
        replica::*,
        tree::Tree,
    },
};

fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

fn node(seed: u8) -> NodeId {
    SecretKey::from_seed([seed; 32]).public().into()
}

fn content(content: u32) -> [u8; 32] {
    *blake3::hash(&content.to_le_bytes()).as_bytes()
}

fn file(number: u32) -> Entry {
    let spans = [Span { sid: Sid(content(number)), offset: 0, length: 4 }];
    Entry::File { content: Content { size: 4, hash: content(number), depth: 0, spans: spans.into() }, executable: false }
}

fn found(number: u32) -> Option<Found> {
    Some(Found::File { size: 4, hash: content(number), executable: false })
}

fn saw(at: &str, found: Option<Found>) -> Input {
    Input::Scanned(vec![(path(at), found)])
}

fn tree(entries: &[(&str, u32)]) -> Tree {
    let mut tree = Tree::default();
    for (at, number) in entries {
        tree.put(&path(at), file(*number)).unwrap();
    }
    tree
}

/// `count` files, a hundred to a directory.
fn wide(count: u32) -> Tree {
    let mut tree = Tree::default();
    for i in 0..count {
        tree.put(&path(&format!("src/{}/module_{i}.rs", i / 100)), file(i)).unwrap();
    }
    tree
}

/// A node that agrees with the hub, and is connected to it.
struct Node {
    replica: Replica,
    now_ms: i64,
}

impl Node {
    fn with(hub: &Tree) -> Self {
        let saved = Saved { hub: hub.clone(), revision: 7, sequence: 3, ..Saved::default() };
        let mut node = Self { replica: Replica::load(node(1), saved), now_ms: 1_000 };
        let outputs = node.tell(Input::Connected { revision: 7, root: hub.root() });
        assert!(outputs.is_empty());
        node
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        self.replica.handle(input, self.now_ms);
        std::iter::from_fn(|| self.replica.poll_output()).collect()
    }

    /// The outputs of a tick when one is wanted.
    fn wait(&mut self) -> Vec<Output> {
        self.now_ms = self.replica.poll_timeout().expect("something waits");
        self.tell(Input::Tick)
    }

    fn commit(&mut self, after: &Tree) -> Vec<Output> {
        let (base, _) = self.replica.hello();
        let ops = op::compact(self.replica.hub(), after);
        self.tell(Input::Commit(CommitIn { base, revision: base + 1, root: Some(after.root()), ops, last: true }))
    }

    fn accept(&mut self, proposal: &Proposal) -> Vec<Output> {
        let (base, _) = self.replica.hello();
        let mut after = self.replica.hub().clone();
        for op in &proposal.ops {
            after.apply(op).unwrap();
        }
        let verdict = VerdictIn { sequence: proposal.sequence, base, revision: base + 1, root: after.root(), objections: Vec::new() };
        self.tell(Input::Verdict(verdict))
    }
}

fn proposal(outputs: &[Output]) -> Proposal {
    match outputs {
        [Output::Propose(proposal)] => proposal.clone(),
        other => panic!("no proposal alone: {other:?}"),
    }
}

fn jobs(outputs: &[Output]) -> Vec<Job> {
    let list = |output: &Output| if let Output::Apply(jobs) = output { jobs.clone() } else { panic!("no job: {output:?}") };
    outputs.iter().flat_map(list).collect()
}

#[test]
fn a_new_file_is_uploaded_proposed_and_then_agreed_on() {
    let mut node = Node::with(&tree(&[("a", 1)]));
    let outputs = node.tell(saw("b", found(2)));
    assert!(matches!(&outputs[..], [Output::Upload { path: at, hash }] if *at == path("b") && *hash == file(2).hash()));
    let sent = proposal(&node.tell(Input::Uploaded { path: path("b"), hash: file(2).hash(), entry: file(2) }));
    assert_eq!((sent.sequence, &sent.ops[..]), (4, &[Op::Put { path: path("b"), parent: None, entry: file(2) }][..]));
    let changes = node.replica.take_changes();
    assert_eq!((changes.sequence, changes.revision), (Some(4), None), "durable before it is sent");
    assert!(node.accept(&sent).is_empty() && node.replica.is_settled());
    let changes = node.replica.take_changes();
    assert_eq!((changes.entries, changes.rows, changes.revision), (vec![(path("b"), Some(file(2)))], vec![], Some(8)));
    assert!(node.tell(saw("b", found(2))).is_empty() && node.replica.take_changes().is_empty());
}

#[test]
fn two_thousand_renamed_files_are_one_move_and_no_upload() {
    let mut node = Node::with(&wide(2_000));
    let mut seen = vec![(path("src"), None)];
    let renamed = |at: &RelPath| path(&at.as_str().replacen("src", "lib", 1));
    for (at, entry) in node.replica.hub().iter() {
        let what = if let Entry::File { content, .. } = entry {
            Found::File { size: 4, hash: content.hash, executable: false }
        } else {
            Found::Directory
        };
        seen.push((renamed(&at), Some(what)));
    }
    let sent = proposal(&node.tell(Input::Scanned(seen)));
    assert!(matches!(&sent.ops[..], [Op::Move { from, to, .. }] if *from == path("src") && *to == path("lib")));
    assert!(node.accept(&sent).is_empty() && node.replica.is_settled());
}

#[test]
fn a_rename_at_the_hub_is_one_rename_on_the_disk_and_durable_only_then() {
    let before = wide(300);
    let mut node = Node::with(&before);
    node.replica.take_changes();
    let mut after = before.clone();
    after.rename(&path("src"), &path("lib")).unwrap();
    let outputs = node.commit(&after);
    assert_eq!(jobs(&outputs), [Job::Move { from: path("src"), to: path("lib"), expect: Hash::directory() }]);
    // Until it is done, what is remembered says where the files are.
    let rows = node.replica.take_changes().rows;
    let at = |name: &str| rows.iter().find(|(at, _)| *at == path(name)).and_then(|(_, row)| *row).map(|row| row.base);
    assert_eq!((at("src/0/module_3.rs"), at("lib/0/module_3.rs")), (Some(Some(file(3).hash())), Some(None)));
    assert!(node.tell(Input::Moved { from: path("src"), done: true }).is_empty() && node.replica.is_settled());
    assert!(node.replica.take_changes().rows.iter().all(|(_, row)| row.is_none()));
}

#[test]
fn a_rename_that_does_not_work_is_made_file_by_file() {
    let before = tree(&[("d/x", 1), ("d/y", 2)]);
    let mut node = Node::with(&before);
    let mut after = before.clone();
    after.rename(&path("d"), &path("e")).unwrap();
    node.commit(&after);
    let outputs = node.tell(Input::Moved { from: path("d"), done: false });
    let Some((Output::Look(looks), rest)) = outputs.split_first() else { panic!("{outputs:?}") };
    assert_eq!(looks.len(), 6);
    let order: Vec<_> = jobs(rest)
        .iter()
        .map(|job| if let Job::Set { path, to, .. } = job { (path.to_string(), to.is_some()) } else { panic!() })
        .collect();
    let row = |at: &str, there: bool| (at.to_owned(), there);
    assert_eq!(order, [row("e", true), row("e/x", true), row("e/y", true), row("d/y", false), row("d/x", false), row("d", false)]);
}

#[test]
fn a_verdict_lost_with_the_connection_is_asked_for_again() {
    let before = tree(&[("a", 1)]);
    let mut node = Node::with(&before);
    node.tell(saw("a", found(2)));
    let sent = proposal(&node.tell(Input::Uploaded { path: path("a"), hash: file(2).hash(), entry: file(2) }));
    node.tell(Input::Disconnected);
    // It went in, and another has changed the file since.
    let after = tree(&[("a", 3)]);
    assert!(node.tell(Input::Connected { revision: 9, root: after.root() }).is_empty());
    let ops = op::compact(&before, &after);
    let outputs = node.tell(Input::Commit(CommitIn { base: 7, revision: 9, root: Some(after.root()), ops, last: true }));
    assert_eq!(proposal(&outputs), sent, "the same, under the same number");
    let verdict = VerdictIn { sequence: sent.sequence, base: 7, revision: 8, root: tree(&[("a", 2)]).root(), objections: vec![] };
    let outputs = node.tell(Input::Verdict(verdict));
    let job = Job::Set { path: path("a"), expect: Some(file(2).hash()), to: Some(file(3)), keep_copy: false };
    assert_eq!(jobs(&outputs), [job], "no conflict: the other's change was made on top of ours");
}

#[test]
fn what_loses_is_kept_aside_when_the_hubs_version_comes() {
    let mut node = Node::with(&tree(&[("a", 1)]));
    node.tell(saw("a", found(2)));
    let sent = proposal(&node.tell(Input::Uploaded { path: path("a"), hash: file(2).hash(), entry: file(2) }));
    let after = tree(&[("a", 3)]);
    assert!(node.commit(&after).is_empty(), "nothing is applied over an edit");
    let objections = vec![Objection { op: 0, code: Code::Conflict, message: String::new() }];
    let verdict = VerdictIn { sequence: sent.sequence, base: 8, revision: 8, root: after.root(), objections };
    let outputs = node.tell(Input::Verdict(verdict));
    assert_eq!(jobs(&outputs), [Job::Set { path: path("a"), expect: Some(file(2).hash()), to: Some(file(3)), keep_copy: true }]);
    // Crashing now forgets neither.
    let rows = node.replica.take_changes().rows;
    assert_eq!(rows, [(path("a"), Some(Row { base: Some(file(2).hash()), keep: true, left: false }))]);
}

#[test]
fn an_edit_while_something_is_applied_is_an_edit() {
    let mut node = Node::with(&tree(&[("a", 1)]));
    node.commit(&tree(&[("a", 2)]));
    assert!(node.tell(saw("a", found(9))).is_empty(), "nobody knows yet whether it was before or after");
    let outputs = node.tell(Input::Applied { path: path("a"), hash: Some(file(2).hash()) });
    assert!(matches!(&outputs[..], [Output::Look(paths)] if *paths == [path("a")]));
    assert!(matches!(&node.tell(saw("a", found(9)))[..], [Output::Upload { .. }]));
    let sent = proposal(&node.tell(Input::Uploaded { path: path("a"), hash: file(9).hash(), entry: file(9) }));
    assert_eq!(sent.ops, [Op::Put { path: path("a"), parent: Some(file(2).hash()), entry: file(9) }]);
}

#[test]
fn an_edit_that_comes_before_the_apply_is_proposed_and_not_overwritten() {
    let mut node = Node::with(&tree(&[("a", 1)]));
    node.commit(&tree(&[("a", 2)]));
    let outputs = node.tell(Input::ApplyFound { path: path("a"), found: found(9) });
    assert!(matches!(&outputs[..], [Output::Upload { .. }]));
    let sent = proposal(&node.tell(Input::Uploaded { path: path("a"), hash: file(9).hash(), entry: file(9) }));
    assert_eq!(sent.ops, [Op::Put { path: path("a"), parent: Some(file(1).hash()), entry: file(9) }], "the hub will see the conflict");
}

#[test]
fn the_deletion_of_nearly_everything_waits_for_a_person() {
    let hub = wide(40);
    let mut node = Node::with(&hub);
    let outputs = node.tell(saw("src", None));
    let [Output::Question { id, text }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(text, "42 of 42 entries were deleted here. Delete them everywhere?");
    assert_eq!(node.replica.status().held, 42);
    // Other changes go on.
    let outputs = node.tell(Input::Scanned(vec![(path("new"), Some(Found::Directory))]));
    assert_eq!(proposal(&outputs).ops.len(), 1);
    node.accept(&proposal(&outputs));
    let mut no = node.tell(Input::Decision { question: *id, yes: false });
    assert_eq!(jobs(&std::mem::take(&mut no)).len(), 42, "no: all of it comes back");
}

#[test]
fn a_small_folder_that_is_emptied_is_asked_about_and_one_that_is_filled_anew_is_not() {
    let small = tree(&[("a", 1), ("b", 2), ("c", 3)]);
    let gone = |names: &[&str]| Input::Scanned(names.iter().map(|name| (path(name), None)).collect());
    let mut node = Node::with(&small);
    let outputs = node.tell(gone(&["a", "b", "c"]));
    assert!(matches!(outputs[..], [Output::Question { .. }]), "{outputs:?}");
    let mut node = Node::with(&small);
    for name in ["a", "b"] {
        let sent = proposal(&node.tell(gone(&[name])));
        node.accept(&sent);
    }
    assert!(matches!(node.tell(gone(&["c"]))[..], [Output::Question { .. }]), "one after the other");
    let mut node = Node::with(&small);
    let new = Input::Scanned(vec![(path("a"), None), (path("b"), None), (path("c"), None), (path("new"), Some(Found::Directory))]);
    assert_eq!(proposal(&node.tell(new)).ops.len(), 4);
    let mut node = Node::with(&tree(&[("a", 1), ("b", 2)]));
    assert_eq!(proposal(&node.tell(gone(&["a", "b"]))).ops.len(), 2, "too little to ask about");
}

#[test]
fn an_approved_deletion_goes_out() {
    let mut node = Node::with(&wide(40));
    let outputs = node.tell(saw("src", None));
    let [Output::Question { id, .. }] = outputs[..] else { panic!("{outputs:?}") };
    assert!(node.tell(Input::Decision { question: id + 1, yes: true }).is_empty());
    let sent = proposal(&node.tell(Input::Decision { question: id, yes: true }));
    assert!(matches!(&sent.ops[..], [Op::Remove { .. }]));
    assert!(node.accept(&sent).is_empty() && node.replica.is_settled());
}

#[test]
fn deleting_little_by_little_does_not_get_past_the_guard() {
    let mut node = Node::with(&wide(100));
    let mut deleted = 0;
    for i in 0..100 {
        let outputs = node.tell(saw(&format!("src/0/module_{i}.rs"), None));
        if matches!(outputs[..], [Output::Question { .. }]) {
            break;
        }
        node.accept(&proposal(&outputs));
        deleted += 1;
        node.now_ms += 10;
    }
    assert_eq!(deleted, 51, "half of 102");
}

#[test]
fn what_is_deleted_while_a_person_is_asked_belongs_to_the_question() {
    let mut node = Node::with(&wide(40));
    let gone = |numbers: std::ops::Range<usize>| Input::Scanned(numbers.map(|i| (path(&format!("src/0/module_{i}.rs")), None)).collect());
    let outputs = node.tell(gone(0..30));
    assert!(matches!(outputs[..], [Output::Question { .. }]), "{outputs:?}");
    let outputs = node.tell(gone(30..32));
    let [Output::Question { id, .. }] = outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(node.replica.status().held, 32);
    assert_eq!(jobs(&node.tell(Input::Decision { question: id, yes: false })).len(), 32);
}

#[test]
fn a_restored_folder_takes_the_question_back() {
    let hub = wide(40);
    let mut node = Node::with(&hub);
    node.tell(saw("src", None));
    let back = hub.iter().map(|(at, entry)| {
        let Entry::File { content, .. } = entry else { return (at, Some(Found::Directory)) };
        (at, Some(Found::File { size: 4, hash: content.hash, executable: false }))
    });
    assert!(node.tell(Input::Scanned(back.collect())).is_empty());
    assert!(node.replica.status().question.is_none() && node.replica.is_settled());
}

#[test]
fn changes_under_anothers_lock_are_held_and_go_out_when_it_ends() {
    let mut node = Node::with(&tree(&[("d/a", 1), ("b", 1)]));
    let lock = Lock { prefix: path("d"), owner: "ann".into(), node: None, fence: 1, expires_at_ms: 60_000 };
    node.tell(Input::State { locks: vec![lock.clone()], paused: false });
    assert!(node.tell(saw("d/a", None)).is_empty());
    assert_eq!((node.replica.status().held, node.replica.status().up_files), (1, 1));
    assert_eq!(proposal(&node.tell(saw("b", None))).ops.len(), 1, "elsewhere work goes on");
    let sent = Proposal { sequence: 4, ops: vec![Op::Remove { path: path("b"), parent: file(1).hash() }] };
    node.accept(&sent);
    let own = Lock { node: Some(self::node(1)), ..lock };
    assert_eq!(proposal(&node.tell(Input::State { locks: vec![own], paused: false })).ops.len(), 1, "our own lock holds nothing back");
}

#[test]
fn a_lock_that_nobody_ends_ends_by_itself() {
    let mut node = Node::with(&tree(&[("d/a", 1)]));
    let lock = Lock { prefix: RelPath::root(), owner: "ann".into(), node: None, fence: 1, expires_at_ms: 60_000 };
    node.tell(Input::State { locks: vec![lock], paused: false });
    assert!(node.tell(saw("d/a", None)).is_empty());
    let outputs = node.wait();
    assert_eq!((node.now_ms, proposal(&outputs).ops.len()), (60_000, 1));
}

#[test]
fn in_a_pause_nothing_comes_out_and_afterwards_all_of_it() {
    let mut node = Node::with(&tree(&[("a", 1), ("b", 1)]));
    node.tell(Input::State { locks: vec![], paused: true });
    assert!(node.commit(&tree(&[("a", 2), ("b", 1)])).is_empty() && node.tell(saw("b", found(2))).is_empty());
    assert_eq!(node.tell(Input::State { locks: vec![], paused: false }).len(), 2);
}

#[test]
fn what_fails_is_tried_again_later_and_later_and_shown() {
    let mut node = Node::with(&Tree::default());
    let trouble = || Trouble { code: "no_space".into(), message: "the disk is full".into() };
    let mut outputs = node.commit(&tree(&[("a", 1)]));
    for wait in [1_000, 2_000, 4_000] {
        assert_eq!(jobs(&outputs).len(), 1);
        node.tell(Input::ApplyFailed { path: path("a"), trouble: trouble() });
        assert_eq!(node.replica.status().problems, [(path("a"), trouble())]);
        let before = node.now_ms;
        outputs = node.wait();
        assert_eq!(node.now_ms - before, wait);
    }
    node.tell(Input::Applied { path: path("a"), hash: Some(file(1).hash()) });
    assert!(node.replica.is_settled() && node.replica.poll_timeout().is_none());
}

#[test]
fn what_a_name_that_is_one_there_kept_out_comes_when_that_name_is_gone() {
    let gone: [fn(&mut Node) -> Vec<Output>; 2] = [
        |node| {
            let removal = jobs(&node.commit(&tree(&[("README", 2), ("docs/f", 3)])));
            assert_eq!(removal.len(), 1);
            node.tell(Input::Applied { path: path("readme"), hash: None })
        },
        |node| node.tell(saw("readme", None)),
    ];
    for gone in gone {
        let mut node = Node::with(&tree(&[("readme", 1), ("docs/f", 3)]));
        node.commit(&tree(&[("readme", 1), ("README", 2), ("docs/f", 3)]));
        let trouble = Trouble { code: CASE_COLLISION.into(), message: "rename one of them".into() };
        node.tell(Input::ApplyFailed { path: path("README"), trouble });
        assert!(node.tell(saw("docs/f", None)).iter().all(|output| !matches!(output, Output::Apply(_))), "another name");
        let outputs = gone(&mut node);
        let tried = outputs.iter().any(|output| matches!(output, Output::Apply(jobs) if *place(&jobs[0]) == path("README")));
        assert!(tried, "at once: {outputs:?}");
    }
}

fn place(job: &Job) -> &RelPath {
    match job {
        Job::Set { path, .. } => path,
        Job::Move { from, .. } => from,
    }
}

#[test]
fn much_to_apply_comes_in_full_lists_parents_first() {
    let mut node = Node::with(&Tree::default());
    let mut waiting = jobs(&node.commit(&wide(6_000)));
    assert_eq!(waiting.len(), 4_096);
    let mut sizes = Vec::new();
    let mut there = std::collections::HashSet::from([RelPath::root()]);
    while !waiting.is_empty() {
        for job in std::mem::take(&mut waiting) {
            let Job::Set { path, to, .. } = job else { panic!("{job:?}") };
            assert!(there.contains(&path.parent().unwrap()));
            there.insert(path.clone());
            for output in node.tell(Input::Applied { path, hash: to.map(|entry| entry.hash()) }) {
                let more = jobs(&[output]);
                sizes.push(more.len());
                waiting.extend(more);
            }
        }
    }
    assert_eq!(sizes, [1_024, 6_061 - 4_096 - 1_024]);
    assert!(node.replica.is_settled());
}

#[test]
fn a_file_that_never_stays_the_same_is_called_hot_and_left_alone_for_a_while() {
    let mut node = Node::with(&Tree::default());
    let mut uploads = 0;
    for i in 0..20 {
        if matches!(node.tell(saw("log", found(i)))[..], [Output::Upload { .. }]) {
            uploads += 1;
            let trouble = Trouble { code: "changed".into(), message: String::new() };
            node.tell(Input::UploadFailed { path: path("log"), trouble });
        }
        node.now_ms += 20;
    }
    assert!(uploads < 6, "{uploads}");
    assert_eq!(node.replica.status().problems[0].1.code, "hot");
}

#[test]
fn a_tree_that_is_not_the_hubs_is_fetched_anew_and_nothing_is_done_twice() {
    let hub = tree(&[("a", 1), ("b", 1), ("d/x", 1)]);
    let mut node = Node::with(&hub);
    let wrong = CommitIn { base: 7, revision: 8, root: Some(Hash([9; 32])), ops: vec![], last: true };
    let outputs = node.tell(Input::Commit(wrong));
    assert!(matches!(outputs[..], [Output::Resync]));
    assert_eq!(node.replica.hello(), (0, Tree::default().root()));
    // Meanwhile one file is deleted here, and one at the hub.
    assert!(node.tell(saw("d/x", None)).is_empty());
    let now = tree(&[("a", 1), ("d/x", 1)]);
    assert!(node.tell(Input::Connected { revision: 9, root: now.root() }).is_empty());
    let ops = op::compact(&Tree::default(), &now);
    let outputs = node.tell(Input::Commit(CommitIn { base: 0, revision: 9, root: Some(now.root()), ops, last: true }));
    let removal = Job::Set { path: path("b"), expect: Some(file(1).hash()), to: None, keep_copy: false };
    let [Output::Apply(jobs), Output::Propose(sent)] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((&jobs[..], &sent.ops[..]), (&[removal][..], &[Op::Remove { path: path("d/x"), parent: file(1).hash() }][..]));
}

#[test]
fn a_folder_of_ones_own_joins_what_the_hub_holds() {
    let mut node = Node { replica: Replica::load(node(1), Saved::default()), now_ms: 0 };
    node.tell(Input::Scanned(vec![(path("same"), found(1)), (path("other"), found(2)), (path("mine"), found(3))]));
    let hub = tree(&[("same", 1), ("other", 9), ("theirs", 4)]);
    node.tell(Input::Connected { revision: 5, root: hub.root() });
    let ops = op::compact(&Tree::default(), &hub);
    let outputs = node.tell(Input::Commit(CommitIn { base: 0, revision: 5, root: Some(hub.root()), ops, last: true }));
    let [Output::Apply(jobs), Output::Upload { path: first, .. }, Output::Upload { path: second, .. }] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert!(matches!(&jobs[..], [Job::Set { path: at, expect: None, .. }] if *at == path("theirs")));
    assert_eq!((first, second), (&path("mine"), &path("other")));
}

#[test]
fn a_file_of_a_hundred_thousand_costs_no_look_at_the_others() {
    let hub = wide(100_000);
    let mut node = Node::with(&hub);
    node.replica.take_changes();
    let start = std::time::Instant::now();
    for i in 0..100 {
        node.tell(saw("src/500/module_50000.rs", found(200_000 + i)));
        node.tell(saw("src/500/module_50001.rs", found(50_001)));
    }
    // Walking the tree takes tenths of a second here, each time.
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
    assert_eq!(node.replica.known(&path("src/500")).len(), 101);
}

#[test]
fn many_files_fit_into_little_memory() {
    const PARTS: u32 = 15;
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse::<usize>().unwrap();
        pages * 4_096
    };
    let before = resident();
    let mut node = Node { replica: Replica::load(node(1), Saved::default()), now_ms: 0 };
    node.tell(Input::Connected { revision: 1, root: Hash([0; 32]) });
    // As they come: in parts, each applied before the next.
    for part in 0..PARTS {
        let put = |i: u32| Op::Put { path: path(&format!("src/{}/module_{i}.rs", i / 100)), parent: None, entry: file(i) };
        let ops: Vec<Op> = (part * 2_000..(part + 1) * 2_000).map(put).collect();
        let ops = op::unpack(&op::pack(&ops), ops.len()).unwrap();
        let mut after = node.replica.hub().clone();
        ops.iter().for_each(|op| after.apply(op).unwrap());
        let last = part + 1 == PARTS;
        let mut outputs = node.tell(Input::Commit(CommitIn { base: 0, revision: 1, root: last.then(|| after.root()), ops, last }));
        while !outputs.is_empty() {
            for job in jobs(&std::mem::take(&mut outputs)) {
                let Job::Set { path, to, .. } = job else { panic!("{job:?}") };
                outputs.extend(node.tell(Input::Applied { path, hash: to.map(|entry| entry.hash()) }));
            }
        }
        node.replica.take_changes();
    }
    assert!(node.replica.is_settled());
    // In proportion: 100,000 files take less than 60 MiB, with all that came and went on the way.
    let grown = resident().saturating_sub(before);
    assert!(grown < (60 << 20) * 3 / 10, "{} MiB", grown >> 20);
}

/// The same node after its program was killed, when it has looked at its disk again and is connected.
fn again(mut before: Node, hub: &Tree, gone: &[&str], answer: Option<(u64, bool)>) -> (Node, Vec<Output>) {
    let (questions, asked) = before.replica.take_changes().asked.unwrap_or_default();
    let saved = Saved { hub: hub.clone(), revision: 7, sequence: 3, questions, asked, ..Saved::default() };
    let mut node = Node { replica: Replica::load(node(1), saved), now_ms: 1_000_000 };
    if let Some((question, yes)) = answer {
        assert!(node.replica.asks(question), "what was asked is asked from the beginning");
        assert!(node.tell(Input::Decision { question, yes }).is_empty());
        assert!(!node.replica.asks(question), "once");
    }
    node.tell(Input::Scanned(gone.iter().map(|at| (path(at), None)).collect()));
    let outputs = node.tell(Input::Connected { revision: 7, root: hub.root() });
    (node, outputs)
}

fn asked(outputs: &[Output]) -> Option<u64> {
    outputs.iter().find_map(|output| if let Output::Question { id, .. } = output { Some(*id) } else { None })
}

#[test]
fn a_question_has_the_same_number_after_a_restart_and_another_one_when_it_is_another() {
    let hub = tree(&[("a", 1), ("b", 2), ("c", 3), ("d", 4)]);
    let gone = ["a", "b", "c", "d"];
    let ask = || {
        let mut node = Node::with(&hub);
        let outputs = node.tell(Input::Scanned(gone.iter().map(|at| (path(at), None)).collect()));
        let id = asked(&outputs).expect("it asks");
        (node, id)
    };
    let (before, id) = ask();
    let (mut node, outputs) = again(before, &hub, &gone, None);
    assert_eq!((asked(&outputs), node.replica.asks(id)), (Some(id), true));
    assert_eq!(proposal(&node.tell(Input::Decision { question: id, yes: true })).ops.len(), 4);
    // The answer was faster than the look.
    let (before, id) = ask();
    let (_, outputs) = again(before, &hub, &gone, Some((id, true)));
    assert_eq!((asked(&outputs), proposal(&outputs).ops.len()), (None, 4));
    let (before, id) = ask();
    let (_, outputs) = again(before, &hub, &gone, Some((id, false)));
    assert_eq!((asked(&outputs), jobs(&outputs).len()), (None, 4));
    // Less was deleted by then: nobody was asked about that.
    let (before, id) = ask();
    let (mut node, outputs) = again(before, &hub, &gone[..2], Some((id, true)));
    let other = asked(&outputs).expect("it asks anew");
    assert!(other > id && node.replica.asks(other));
    assert!(node.tell(Input::Decision { question: id, yes: true }).is_empty());
    // All of it is there again.
    let (before, id) = ask();
    let (mut node, outputs) = again(before, &hub, &[], None);
    assert!(asked(&outputs).is_none() && !node.replica.asks(id));
    assert_eq!(proposal(&node.tell(saw("a", None))).ops.len(), 1, "one deletion is no question");
}
