use std::collections::BTreeMap;

use bytes::Bytes;
use cortex_wire::{
    limits,
    mirror::{
        entry::{Content, Entry, Hash, Sid, Span},
        op::{self, Op},
        path::RelPath,
        seal::{Keys, Opener, Sealer},
    },
    schema::{Proposal, Verdict, WorkspaceStatus},
};
use proptest::prelude::*;

use super::{
    conflict::Take,
    content::{Reader, Writer},
    edit::{Edit, Expect},
    lock::NewLock,
    workspace::Workspace,
    *,
};
use crate::{
    record::{Scope, tables::EVENTS},
    store::Order,
    testing::Site,
};

fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

/// A file of one span of a chunk that is not there: for what is never read.
fn ghost(number: u8, executable: bool) -> Entry {
    let content = Content { size: 4, hash: [number; 32], depth: 0, spans: [Span { sid: Sid([number; 32]), offset: 0, length: 4 }].into() };
    Entry::File { content, executable }
}

fn text(target: &str) -> Entry {
    Entry::Symlink(target.into())
}

fn put(at: &str, entry: Entry) -> Edit {
    Edit::Put { path: path(at), expect: Expect::Any, entry }
}

fn propose(sequence: u64, ops: &[Op]) -> Proposal {
    Proposal { sequence, batch: Some(op::pack(ops)), task_id: Bytes::new() }
}

fn codes(verdict: &Verdict) -> Vec<(u32, &str)> {
    verdict.objections.iter().map(|objection| (objection.op, objection.code.as_str())).collect()
}

struct Desk {
    site: Site,
    ann: Actor,
    session: SessionId,
    node: NodeId,
}

impl Desk {
    async fn new() -> Self {
        let site = Site::new().await;
        let ann = site.member("ann").await;
        let (session, node) = site.workplace(&ann, 1).await;
        Self { site, ann, session, node }
    }

    async fn workspace(&self) -> Arc<Workspace> {
        self.site.hub.workspace_used(&self.ann, self.session).await.unwrap()
    }

    async fn edit(&self, edits: Vec<Edit>) -> Result<Arc<workspace::Head>, MirrorError> {
        self.workspace().await.edit(&self.site.hub, &self.ann, None, "test", edits).await
    }

    async fn propose(&self, sequence: u64, ops: &[Op]) -> Result<Verdict, MirrorError> {
        self.workspace().await.propose(&self.site.hub, self.node, propose(sequence, ops)).await
    }

    async fn restart(self) -> Self {
        let Self { site, ann, session, node } = self;
        Self { site: site.restart().await, ann, session, node }
    }

    async fn events(&self, kind: &str) -> Vec<serde_json::Value> {
        let (session, kind) = (self.session, kind.to_owned());
        let rows =
            self.site.hub.db.read::<_, StoreError>(move |tx| EVENTS.list(tx, &Rows::under(session), Order::Ascending, 1000)).await.unwrap();
        rows.into_iter().filter(|row| row.kind == kind).map(|row| row.data).collect()
    }

    async fn upload(&self, bytes: &[u8]) -> Content {
        let workspace = self.workspace().await;
        let mut writer = Writer::<()>::new(&self.site.hub, &workspace).await.unwrap();
        let mut file = writer.file();
        for piece in bytes.chunks(100_000) {
            file.write(piece).await.unwrap();
        }
        file.end().await.unwrap()
    }

    async fn read(&self, content: &Content, range: std::ops::Range<u64>) -> Vec<u8> {
        let reader = Reader::open(&self.site.hub, &*self.workspace().await, content, range).await.unwrap();
        reader.whole(usize::MAX).await.unwrap()
    }
}

use crate::store::Span as Rows;

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn a_proposal_goes_in_once_however_often_it_is_sent() {
    let desk = Desk::new().await;
    let op = Op::Put { path: path("a/b"), parent: None, entry: text("x") };
    let first = desk.propose(1, std::slice::from_ref(&op)).await.unwrap();
    assert_eq!((first.base, first.revision, first.objections.len()), (0, 1, 0));
    desk.edit(vec![put("c", text("y"))]).await.unwrap();
    assert_eq!(desk.propose(1, std::slice::from_ref(&op)).await.unwrap(), first);
    let desk = desk.restart().await;
    assert_eq!(desk.propose(1, std::slice::from_ref(&op)).await.unwrap(), first);
    assert_eq!(desk.workspace().await.head().revision(), 2);
    // What is there already is no commit.
    let again = desk.propose(2, &[op]).await.unwrap();
    assert_eq!((again.base, again.revision), (2, 2));
    let events = desk.events("files").await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["author"]["node"], desk.node.to_string());
    assert_eq!(events[0]["paths"], json(["a/b"]));
}

fn json<T: serde::Serialize>(value: T) -> serde_json::Value {
    serde_json::to_value(value).unwrap()
}

#[tokio::test]
async fn the_one_who_is_second_loses_the_path_and_nothing_else() {
    let desk = Desk::new().await;
    let base = desk.edit(vec![put("f", text("0")), put("g", text("0"))]).await.unwrap();
    let parent = base.tree.hash(&path("f"));
    desk.edit(vec![put("f", text("first"))]).await.unwrap();
    let ops = [
        Op::Put { path: path("f"), parent, entry: text("second") },
        Op::Put { path: path("g"), parent: base.tree.hash(&path("g")), entry: text("mine") },
    ];
    let verdict = desk.propose(1, &ops).await.unwrap();
    assert_eq!(codes(&verdict), [(0, "conflict")]);
    assert_eq!((verdict.base, verdict.revision), (2, 3));
    let workspace = desk.workspace().await;
    let head = workspace.head();
    assert_eq!((head.tree.get(&path("f")), head.tree.get(&path("g"))), (Some(&text("first")), Some(&text("mine"))));
    let kept = workspace.conflicts(&desk.site.hub, None, true, 9).await.unwrap();
    assert_eq!((kept.len(), kept[0].number, kept[0].path.as_str(), kept[0].entry().unwrap()), (1, 1, "f", Some(text("second"))));
    assert_eq!(desk.events("file_conflict").await.len(), 1);
}

#[tokio::test]
async fn a_conflict_is_resolved_once_in_one_of_three_ways() {
    let desk = Desk::new().await;
    desk.edit(vec![put("d/f.txt", text("0"))]).await.unwrap();
    let lose = |what: &'static str| [Op::Put { path: path("d/f.txt"), parent: Some(Hash([9; 32])), entry: text(what) }];
    for (sequence, what) in [(1, "one"), (2, "two"), (3, "three")] {
        assert_eq!(codes(&desk.propose(sequence, &lose(what)).await.unwrap()), [(0, "conflict")]);
    }
    let (hub, ann, workspace) = (&desk.site.hub, &desk.ann, desk.workspace().await);
    let at = |head: &workspace::Head, at: &str| head.tree.get(&path(at)).cloned();
    let (head, place) = workspace.resolve(hub, ann, None, 1, Take::Mine).await.unwrap();
    assert_eq!((head.revision(), place, at(&head, "d/f.txt")), (1, None, Some(text("0"))));
    let (head, place) = workspace.resolve(hub, ann, None, 2, Take::Both).await.unwrap();
    assert_eq!(place, Some(path("d/f (conflict 2).txt")));
    assert_eq!((at(&head, "d/f.txt"), at(&head, "d/f (conflict 2).txt")), (Some(text("0")), Some(text("two"))));
    let (head, _) = workspace.resolve(hub, ann, None, 3, Take::Theirs).await.unwrap();
    assert_eq!(at(&head, "d/f.txt"), Some(text("three")));
    for number in [1, 2, 3, 4] {
        assert_eq!(workspace.resolve(hub, ann, None, number, Take::Theirs).await.unwrap_err().code(), "no_conflict");
    }
    assert!(workspace.conflicts(hub, None, true, 9).await.unwrap().is_empty());
    assert_eq!(workspace.conflicts(hub, None, false, 9).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_restart_keeps_everything_acknowledged() {
    let desk = Desk::new().await;
    for number in 0..40 {
        desk.edit(vec![put(&format!("d{}/f{}", number % 3, number % 5), text(&number.to_string()))]).await.unwrap();
    }
    let mine = desk.workspace().await.lock(&desk.site.hub, &desk.ann, lock_of("d1", 60_000)).await.unwrap();
    let before = desk.workspace().await.head();
    let keys = desk.site.hub.workspace_keys(desk.session).await.unwrap();
    let desk = desk.restart().await;
    let after = desk.workspace().await.head();
    assert_eq!((after.revision(), &after.tree), (40, &before.tree));
    assert_eq!(after.record.locks, [mine]);
    assert!(after.record.snapshot > 0, "the log is not replayed from its beginning");
    assert_eq!(desk.site.hub.workspace_keys(desk.session).await.unwrap(), keys);
}

#[tokio::test]
async fn an_edit_says_what_it_expects_and_all_of_it_goes_in_or_nothing() {
    let desk = Desk::new().await;
    let head = desk.edit(vec![put("f", text("0"))]).await.unwrap();
    let hash = head.tree.hash(&path("f")).unwrap();
    let stale = Edit::Put { path: path("f"), expect: Expect::Hash(Hash([1; 32])), entry: text("1") };
    let refused = desk.edit(vec![put("other", text("1")), stale]).await.unwrap_err();
    assert!(matches!(refused, MirrorError::Stale { parent: Hash([1, ..]), current: Some(current), .. } if current == hash), "{refused:?}");
    let there = Edit::Put { path: path("f"), expect: Expect::Nothing, entry: text("1") };
    assert_eq!(desk.edit(vec![there]).await.unwrap_err().code(), "already_exists");
    assert_eq!(desk.edit(vec![put("f/below", text("1"))]).await.unwrap_err().code(), "impossible_change");
    let gone = Edit::Remove { path: path("nothing"), expect: Expect::Any };
    assert_eq!(desk.edit(vec![gone]).await.unwrap_err().code(), "no_file");
    assert_eq!(desk.edit(vec![put("g", ghost(1, false))]).await.unwrap_err().code(), "chunks_failed");
    assert_eq!(desk.workspace().await.head().revision(), 1);
    let right = Edit::Put { path: path("f"), expect: Expect::Hash(hash), entry: text("1") };
    assert_eq!(desk.edit(vec![right, Edit::Move { from: path("f"), to: path("h/f"), expect: Expect::Any }]).await.unwrap().revision(), 2);
}

fn lock_of(prefix: &str, lease_ms: i64) -> NewLock {
    NewLock { prefix: RelPath::prefix(prefix).unwrap(), lease_ms, name: String::new(), fence: None }
}

#[tokio::test]
async fn a_lock_keeps_others_out_until_it_ends() {
    let desk = Desk::new().await;
    let (hub, ann, workspace) = (&desk.site.hub, &desk.ann, desk.workspace().await);
    let bob = desk.site.member("bob").await;
    hub.add_member(ann, desk.session, "bob", crate::record::MemberRole::Member).await.unwrap();
    let lock = workspace.lock(hub, ann, lock_of("d", 10_000)).await.unwrap();
    let write = |at: &str| vec![put(at, text(at))];
    let as_bob = async |fence, at: &str| workspace.edit(hub, &bob, fence, "test", write(at)).await.map_err(|error| error.code()).map(drop);
    assert_eq!(as_bob(None, "d/f").await, Err("locked"));
    assert_eq!(as_bob(Some(lock.fence), "d/f").await, Err("lock_lost"), "the fence alone is nobody's right");
    assert_eq!(as_bob(None, "e").await, Ok(()));
    let overlapping = workspace.lock(hub, &bob, lock_of("", 1_000)).await.unwrap_err();
    assert_eq!(overlapping.code(), "locked");
    assert_eq!(workspace.unlock(hub, &bob, lock.fence, false).await.unwrap_err().code(), "locked");
    let op = [Op::Put { path: path("d/n"), parent: None, entry: text("n") }, Op::Put { path: path("m"), parent: None, entry: text("m") }];
    assert_eq!(codes(&desk.propose(1, &op).await.unwrap()), [(0, "locked")]);
    assert!(workspace.edit(hub, ann, Some(lock.fence), "test", write("d/f")).await.is_ok());

    desk.site.pass(10_001);
    assert_eq!(as_bob(None, "d/g").await, Ok(()), "it ends by itself");
    let stale = workspace.edit(hub, ann, Some(lock.fence), "test", write("d/late")).await.unwrap_err();
    assert_eq!(stale.code(), "lock_lost", "whoever slept through the end of a lease is found out");
    let renewed = NewLock { fence: Some(lock.fence), ..lock_of("d", 10_000) };
    assert_eq!(workspace.lock(hub, ann, renewed).await.unwrap_err().code(), "lock_lost");
    let next = workspace.lock(hub, &bob, lock_of("d", 10_000)).await.unwrap();
    assert!(next.fence > lock.fence);
    desk.site.pass(9_000);
    workspace.lock(hub, &bob, NewLock { fence: Some(next.fence), ..lock_of("d", 10_000) }).await.unwrap();
    desk.site.pass(9_000);
    assert_eq!(codes(&desk.propose(2, &[Op::Put { path: path("d/n"), parent: None, entry: text("n") }]).await.unwrap()), [(0, "locked")]);
    workspace.unlock(hub, ann, next.fence, true).await.unwrap();
    assert_eq!(codes(&desk.propose(3, &[Op::Put { path: path("d/n"), parent: None, entry: text("n") }]).await.unwrap()), []);
}

#[tokio::test]
async fn nodes_wait_during_a_pause_and_people_do_not() {
    let desk = Desk::new().await;
    let (hub, workspace) = (&desk.site.hub, desk.workspace().await);
    workspace.pause(hub, &desk.ann, true).await.unwrap();
    let op = [Op::Put { path: path("n"), parent: None, entry: text("n") }];
    assert_eq!(codes(&desk.propose(1, &op).await.unwrap()), [(0, "paused")]);
    assert_eq!(desk.edit(vec![put("f", text("f"))]).await.unwrap().revision(), 1);
    assert!(workspace.head().state().paused);
    workspace.pause(hub, &desk.ann, false).await.unwrap();
    assert_eq!(codes(&desk.propose(2, &op).await.unwrap()), []);
}

#[tokio::test]
async fn a_change_whose_contents_are_not_here_does_not_go_in() {
    let desk = Desk::new().await;
    let content = desk.upload(&noise(300_000)).await;
    assert!(content.spans.len() > 1);
    let ops = [
        Op::Put { path: path("ghost"), parent: None, entry: ghost(3, false) },
        Op::Put { path: path("here"), parent: None, entry: Entry::File { content: content.clone(), executable: true } },
    ];
    let verdict = desk.propose(1, &ops).await.unwrap();
    assert_eq!(codes(&verdict), [(0, "missing_chunks")]);
    let desk = desk.restart().await;
    let head = desk.workspace().await.head();
    assert_eq!(head.tree.iter().map(|(at, _)| at.to_string()).collect::<Vec<_>>(), ["here"]);
    assert_eq!(desk.read(&content, 0..300_000).await, noise(300_000));
    assert_eq!(desk.read(&content, 99_999..200_001).await, noise(300_000)[99_999..200_001]);
    assert!(desk.read(&content, 300_000..400_000).await.is_empty());
}

#[tokio::test]
async fn a_list_of_chunks_in_chunks_is_looked_through() {
    let desk = Desk::new().await;
    let workspace = desk.workspace().await;
    // A list as a node would send it, whose page is here and whose bytes are not.
    let mut keys = Keys::new(desk.session);
    for key in desk.site.hub.workspace_keys(desk.session).await.unwrap() {
        keys.insert(key.epoch, &key.key[..].try_into().unwrap());
    }
    let (mut sealer, mut pages) = (Sealer::new(Arc::new(keys)), Vec::new());
    let spans: Vec<Span> =
        (0..600_u32).map(|n| Span { sid: Sid(*blake3::hash(&n.to_le_bytes()).as_bytes()), offset: 0, length: 20_000 }).collect();
    let content = cortex_wire::mirror::cut::content(600 * 20_000, [7; 32], spans, |page| {
        let sealed = sealer.seal(page)?;
        pages.push(sealed.clone());
        Ok::<_, cortex_wire::mirror::seal::SealError>(sealed.sid())
    });
    let content = content.unwrap();
    assert!(content.depth > 0);
    desk.site.hub.mirrors.chunks.session(workspace.owner(), desk.session).await.unwrap().put(pages).await.unwrap();
    let op = Op::Put { path: path("large"), parent: None, entry: Entry::File { content, executable: false } };
    assert_eq!(codes(&desk.propose(1, &[op]).await.unwrap()), [(0, "missing_chunks")]);
}

/// The changes of a frame, wherever they are.
async fn ops_of(desk: &Desk, frame: &cortex_wire::schema::Commit) -> Vec<Op> {
    let batch = match &frame.batch {
        Some(batch) => batch.clone(),
        None => {
            let (hub, workspace) = (&desk.site.hub, desk.workspace().await);
            let sid = Sid::from_slice(&frame.list).unwrap();
            let found = content::chunks_of(hub, &workspace).await.unwrap().read(vec![sid]).await.unwrap().remove(0).unwrap();
            let plain = Opener::new(content::keys(hub, desk.session).await.unwrap()).open(found).unwrap();
            prost::Message::decode(plain).unwrap()
        }
    };
    op::unpack(&batch, limits::BATCH_OPS).unwrap()
}

#[tokio::test]
async fn a_long_list_of_changes_is_one_chunk_for_all_who_begin_and_a_short_one_is_said() {
    let desk = Desk::new().await;
    desk.edit(vec![put("short", text("t"))]).await.unwrap();
    let workspace = desk.workspace().await;
    let said = workspace.between(&desk.site.hub, 0, 1).await.unwrap();
    assert!(said.iter().all(|frame| frame.list.is_empty() && frame.batch.is_some()));
    let noise = |number: u32| blake3::hash(&number.to_le_bytes()).to_string();
    desk.edit((0..400).map(|number| put(&format!("f{number}"), text(&noise(number)))).collect()).await.unwrap();
    let chunks = content::chunks_of(&desk.site.hub, &workspace).await.unwrap();
    let before = chunks.size().0;
    let (one, two) = tokio::join!(workspace.between(&desk.site.hub, 0, 2), workspace.between(&desk.site.hub, 0, 2));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.len(), one[0].list.len(), &one), (1, 32, &two));
    assert_eq!(chunks.size().0, before + 1);
    let mut tree = Tree::default();
    for op in ops_of(&desk, &one[0]).await {
        tree.apply(&op).unwrap();
    }
    assert_eq!((tree.root().0[..].to_vec(), one[0].last), (one[0].root.to_vec(), true));
    // One receiver beside the author of a commit gets it in the frame, several get the chunk.
    assert!(workspace.between(&desk.site.hub, 1, 2).await.unwrap()[0].list.is_empty());
    let ann = &desk.ann;
    let mut joined = Vec::new();
    for number in 100..103 {
        joined.push(workspace.join(desk.site.node(ann, number).await, 1));
    }
    let frames = workspace.between(&desk.site.hub, 1, 2).await.unwrap();
    assert_eq!((frames.len(), frames[0].list.len(), frames[0].base), (1, 32, 1));
    assert_eq!(ops_of(&desk, &frames[0]).await.len(), 400);
}

#[tokio::test]
async fn a_node_that_left_commits_nothing_and_gets_no_key_of_what_follows() {
    let desk = Desk::new().await;
    desk.edit(vec![put("f", text("f"))]).await.unwrap();
    let before = desk.site.hub.workspace_keys(desk.session).await.unwrap();
    assert_eq!(before.len(), 1);
    desk.site.hub.detach_node(&desk.ann, desk.session, desk.node).await.unwrap();
    let after = desk.site.hub.workspace_keys(desk.session).await.unwrap();
    assert_eq!(after.len(), 2);
    assert!(after[1].epoch > before[0].epoch && after[1].key != before[0].key && after[0] == before[0]);
    let op = [Op::Put { path: path("n"), parent: None, entry: text("n") }];
    assert!(matches!(desk.propose(1, &op).await, Err(MirrorError::Gone)));
    assert_eq!(desk.workspace().await.head().revision(), 1);
    assert!(desk.site.hub.synced_sessions(desk.node).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_session_takes_its_workspace_with_it() {
    let desk = Desk::new().await;
    let content = desk.upload(b"bytes").await;
    desk.edit(vec![put("f", Entry::File { content, executable: false })]).await.unwrap();
    let folder = desk.site.path().join("mirrors").join(desk.ann.user.to_string()).join(desk.session.to_string());
    assert!(folder.is_dir());
    desk.site.hub.delete_session(&desk.ann, desk.session).await.unwrap();
    for _ in 0..500 {
        if !folder.exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!folder.exists());
    assert_eq!(desk.site.hub.workspace_seen(&desk.ann, desk.session).await.unwrap_err().code(), "not_found");
    assert!(desk.site.hub.workspace(desk.session).await.is_err());
    // A folder whose removal did not come to its end goes with the sweep; a living session's stays.
    let other = desk.site.session(&desk.ann, &[]).await;
    let kept = folder.parent().unwrap().join(other.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(&kept).unwrap();
    desk.site.hub.sweep_mirrors().await.unwrap();
    assert!(!folder.exists() && kept.exists());
}

#[tokio::test]
async fn the_sweep_spares_what_any_revision_or_conflict_needs() {
    let desk = Desk::new().await;
    let (old, new, lost) = (desk.upload(&noise(400_000)).await, desk.upload(b"new").await, desk.upload(b"lost").await);
    let unnamed = desk.upload(b"unnamed").await;
    let file = |content: &Content| Entry::File { content: content.clone(), executable: false };
    desk.edit(vec![put("f", file(&old))]).await.unwrap();
    desk.edit(vec![put("f", file(&new))]).await.unwrap();
    desk.propose(1, &[Op::Put { path: path("f"), parent: None, entry: file(&lost) }]).await.unwrap();
    let named = desk.site.hub.named_chunks(&*desk.workspace().await).await.unwrap();
    for content in [&old, &new, &lost] {
        assert!(content.spans.iter().all(|span| named.contains(&span.sid)));
    }
    assert!(unnamed.spans.iter().all(|span| !named.contains(&span.sid)));
}

#[tokio::test]
async fn progress_is_told_at_a_bounded_rate_and_a_change_of_state_at_once() {
    let desk = Desk::new().await;
    let (hub, workspace) = (&desk.site.hub, desk.workspace().await);
    let attachment = workspace.join(desk.node, 1);
    let mut follower = hub.follow_session(&desk.ann, desk.session, None).await.unwrap();
    desk.edit(vec![put("f", text("0"))]).await.unwrap();
    assert_eq!(follower.next().await.unwrap().unwrap().kind, "files");
    let status = |state: &str, left| WorkspaceStatus { state: state.into(), down_bytes: left, ..WorkspaceStatus::default() };
    for (wait_ms, state, left) in [(0, "syncing", 1000), (100, "syncing", 900), (500, "syncing", 500), (10, "in_sync", 0)] {
        desk.site.pass(wait_ms);
        attachment.set_status(hub, &status(state, left));
    }
    desk.edit(vec![put("f", text("f"))]).await.unwrap();
    let mut told = Vec::new();
    loop {
        let event = follower.next().await.unwrap().unwrap();
        if event.kind == "files" {
            break;
        }
        assert_eq!((event.seq, event.kind.as_str()), (0, "workspace"));
        told.push((event.data["sync"]["state"].clone(), event.data["sync"]["down_bytes"].clone()));
    }
    assert_eq!(told, [(json("syncing"), json(1000)), (json("syncing"), json(500)), (json("in_sync"), json(0))]);
    assert_eq!(workspace.nodes.sync_of(desk.node).unwrap().state, "in_sync");
    let newer = workspace.join(desk.node, 2);
    drop(attachment);
    assert!(workspace.nodes.sync_of(desk.node).is_some(), "an older connection does not take the place of a newer one away");
    drop(newer);
    assert!(workspace.nodes.sync_of(desk.node).is_none());
    // Why it cannot take part is known until it can: tries to open it again do not hide it.
    let state = || workspace.nodes.sync_of(desk.node).unwrap().state;
    let refused = workspace.join(desk.node, 3);
    refused.set_status(hub, &status("failed", 0));
    drop(refused);
    assert_eq!(state(), "failed");
    let again = workspace.join(desk.node, 4);
    assert_eq!(state(), "failed");
    again.set_status(hub, &status("in_sync", 0));
    assert_eq!(state(), "in_sync");
}

/// What a random writer does.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Directory(u8),
    Remove(u8),
    Move(u8, u8),
    Restore(u8),
}

const PLACES: [&str; 9] = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "g/h", "g/h/i"];

fn step() -> impl Strategy<Value = Step> {
    let place = || 0..PLACES.len() as u8;
    prop_oneof![
        4 => (place(), 0..5_u8).prop_map(|(at, what)| Step::Put(at, what)),
        1 => place().prop_map(Step::Directory),
        2 => place().prop_map(Step::Remove),
        2 => (place(), place()).prop_map(|(from, to)| Step::Move(from, to)),
        1 => any::<u8>().prop_map(Step::Restore),
    ]
}

fn edit_of(step: &Step) -> Option<Edit> {
    let at = |number: u8| path(PLACES[usize::from(number)]);
    Some(match *step {
        Step::Put(place, what) => Edit::Put { path: at(place), expect: Expect::Any, entry: text(&what.to_string()) },
        Step::Directory(place) => Edit::Put { path: at(place), expect: Expect::Any, entry: Entry::Directory },
        Step::Remove(place) => Edit::Remove { path: at(place), expect: Expect::Any },
        Step::Move(from, to) => Edit::Move { from: at(from), to: at(to), expect: Expect::Any },
        Step::Restore(_) => return None,
    })
}

/// Does the steps; answers the tree of every revision as it was seen then.
async fn play(desk: &Desk, steps: &[Step]) -> Vec<Tree> {
    let workspace = desk.workspace().await;
    let mut seen = vec![Tree::default()];
    for step in steps {
        let head = match (edit_of(step), step) {
            (Some(edit), _) => desk.edit(vec![edit]).await,
            (None, Step::Restore(number)) => {
                let revision = u64::from(*number) % seen.len() as u64;
                let head = workspace.restore(&desk.site.hub, &desk.ann, None, revision, RelPath::root()).await.unwrap();
                assert_eq!(head.tree, seen[usize::try_from(revision).unwrap()], "restoring {revision}");
                Ok(head)
            }
            _ => unreachable!(),
        };
        // What the tree does not allow changes nothing.
        let head = head.unwrap_or_else(|_| workspace.head());
        if head.revision() == seen.len() as u64 {
            seen.push(head.tree.clone());
        }
        assert_eq!(head.revision() + 1, seen.len() as u64);
    }
    seen
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn every_revision_stays_what_it_was_and_can_be_brought_back(steps in prop::collection::vec(step(), 1..60)) {
        run(async {
            let desk = Desk::new().await;
            let seen = play(&desk, &steps).await;
            let desk = desk.restart().await;
            let workspace = desk.workspace().await;
            for (revision, tree) in seen.iter().enumerate() {
                assert_eq!(&workspace.tree_at(&desk.site.hub, revision as u64).await.unwrap(), tree, "revision {revision}");
            }
            assert_eq!(workspace.tree_at(&desk.site.hub, seen.len() as u64).await.unwrap_err().code(), "no_revision");
        });
    }

    #[test]
    fn what_a_stream_is_sent_leads_from_any_revision_to_any_later_one(steps in prop::collection::vec(step(), 1..40)) {
        run(async {
            let desk = Desk::new().await;
            let seen = play(&desk, &steps).await;
            for fresh in [false, true] {
                let workspace = if fresh { Workspace::new(desk.workspace().await.head().record.clone(), seen.last().unwrap().clone()) } else { desk.workspace().await };
                for from in 0..seen.len() {
                    let to = seen.len() - 1;
                    let frames = workspace.between(&desk.site.hub, from as u64, to as u64).await.unwrap();
                    let mut tree = if from == 0 { Tree::default() } else { seen[from].clone() };
                    for frame in &frames {
                        for op in op::unpack(frame.batch.as_ref().unwrap(), limits::BATCH_OPS).unwrap() {
                            tree.apply(&op).unwrap();
                        }
                        if !frame.root.is_empty() {
                            assert_eq!(frame.root, tree.root().0[..]);
                        }
                    }
                    assert_eq!(&tree, &seen[to], "{from} to {to}");
                    assert!(frames.last().is_none_or(|frame| frame.last && frame.revision == to as u64));
                }
            }
        });
    }

    #[test]
    fn small_files_of_one_upload_come_back_as_they_were(sizes in prop::collection::vec(0..150_000_usize, 1..12)) {
        run(async {
            let desk = Desk::new().await;
            let mut writer = Writer::new(&desk.site.hub, &*desk.workspace().await).await.unwrap();
            let whole = noise(150_000);
            for (number, size) in sizes.iter().enumerate() {
                writer.add_small(number, &whole[..*size]).await.unwrap();
            }
            let done: BTreeMap<usize, Content> = writer.take_done(true).await.unwrap().into_iter().collect();
            assert_eq!(done.len(), sizes.len());
            for (number, content) in done {
                assert_eq!(content.size, sizes[number] as u64);
                content.check().unwrap();
                assert_eq!(desk.read(&content, 0..content.size).await, whole[..sizes[number]]);
            }
        });
    }
}

#[tokio::test]
async fn a_viewer_reads_and_does_not_write() {
    let desk = Desk::new().await;
    let hub = &desk.site.hub;
    let (reader, stranger) = (desk.site.member("reader").await, desk.site.member("stranger").await);
    hub.add_member(&desk.ann, desk.session, "reader", crate::record::MemberRole::Viewer).await.unwrap();
    let narrow = Actor { scopes: vec![Scope::Read], ..desk.ann.clone() };
    let workspace = hub.workspace_seen(&reader, desk.session).await.unwrap();
    for (actor, seen, used) in
        [(&reader, None, Some("forbidden")), (&narrow, None, Some("forbidden")), (&stranger, Some("not_found"), Some("not_found"))]
    {
        let code = |outcome: Result<Arc<Workspace>, MirrorError>| outcome.err().map(|error| error.code());
        assert_eq!(code(hub.workspace_seen(actor, desk.session).await), seen);
        assert_eq!(code(hub.workspace_used(actor, desk.session).await), used);
        // Also when the handler would forget to ask.
        let edit = workspace.edit(hub, actor, None, "test", vec![put("f", text("f"))]).await;
        assert_eq!(edit.err().map(|error| error.code()), used);
    }
    let archived = crate::session::SessionUpdate { status: Some(SessionStatus::Archived), ..Default::default() };
    hub.update_session(&desk.ann, desk.session, archived).await.unwrap();
    assert_eq!(desk.edit_code().await, Some("session_archived"));
}

impl Desk {
    async fn edit_code(&self) -> Option<&'static str> {
        let workspace = self.site.hub.workspace(self.session).await.unwrap();
        workspace.edit(&self.site.hub, &self.ann, None, "test", vec![put("f", text("f"))]).await.err().map(|error| error.code())
    }
}
