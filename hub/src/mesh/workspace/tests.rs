use cortex_wire::{
    mirror::{
        entry::Entry,
        op::{self, Op},
        path::RelPath,
        tree::Tree,
    },
    schema::{Answered, Commit, DriftReport, Rescan, TreeRequest, WorkspaceStatus},
};
use tokio::{
    io::{DuplexStream, ReadHalf, WriteHalf, duplex, split},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::{
    account::Actor,
    mirror::{
        edit::{Edit, Expect},
        lock::NewLock,
    },
    testing::Site,
};

const SOON: Duration = Duration::from_secs(10);

fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

fn text(target: &str) -> Entry {
    Entry::Symlink(target.into())
}

struct Desk {
    site: Site,
    ann: Actor,
    session: SessionId,
    nodes: Vec<NodeId>,
}

impl Desk {
    async fn new(nodes: u16) -> Self {
        let site = Site::new().await;
        let ann = site.member("ann").await;
        let mut ids = Vec::new();
        for number in 0..nodes {
            ids.push(site.node(&ann, number).await);
        }
        let session = site.session(&ann, &ids).await;
        Self { site, ann, session, nodes: ids }
    }

    async fn workspace(&self) -> Arc<Workspace> {
        self.site.hub.workspace(self.session).await.unwrap()
    }

    async fn write(&self, at: &str, what: &str) {
        let edit = Edit::Put { path: path(at), expect: Expect::Any, entry: text(what) };
        self.workspace().await.edit(&self.site.hub, &self.ann, None, "test", vec![edit]).await.unwrap();
    }

    async fn tree(&self) -> Tree {
        self.workspace().await.head().tree.clone()
    }

    /// The hub's end of a stream to a node, and the node.
    fn connect(&self, node: usize, room: usize) -> Played {
        let (ours, theirs) = duplex(room);
        let (hub, node, session) = (self.site.hub.clone(), self.nodes[node], self.session);
        let (detach, nudge) = (CancellationToken::new(), Arc::new(Notify::new()));
        let (cancelled, nudged) = (detach.clone(), nudge.clone());
        let line = tokio::spawn(async move {
            let mut line = Line::open(&hub, (node, 1), session, &nudged, split(ours)).await?;
            line.run(&cancelled).await
        });
        let (recv, send) = split(theirs);
        let (reader, writer) = (FrameReader::new(recv, limits::WORKSPACE_FRAME_BYTES), FrameWriter::new(send));
        Played { line, detach, nudge, reader, writer, tree: Tree::default(), revision: 0 }
    }

    /// One that holds nothing yet, and is brought up to date.
    async fn fresh(&self, node: usize) -> Played {
        let mut played = self.connect(node, 1 << 20);
        played.hello(0, Bytes::new()).await;
        while played.revision < self.workspace().await.head().revision() {
            played.follow().await;
        }
        played
    }
}

struct Played {
    line: JoinHandle<Result<(), LineError>>,
    detach: CancellationToken,
    nudge: Arc<Notify>,
    reader: FrameReader<ReadHalf<DuplexStream>>,
    writer: FrameWriter<WriteHalf<DuplexStream>>,
    tree: Tree,
    revision: u64,
}

impl Played {
    async fn hello(&mut self, revision: u64, root: Bytes) -> WorkspaceOpen {
        let open: StreamOpen = timeout(SOON, self.reader.expect()).await.unwrap().unwrap();
        let Some(stream_open::Open::Workspace(open)) = open.open else { panic!("{open:?}") };
        self.say(from_workspace::Frame::Hello(WorkspaceHello { revision, root })).await;
        open
    }

    async fn say(&mut self, frame: from_workspace::Frame) {
        self.writer.send(&FromWorkspace { frame: Some(frame) }).await.unwrap();
    }

    async fn next(&mut self) -> to_workspace::Frame {
        let frame: ToWorkspace = timeout(SOON, self.reader.expect()).await.expect("nothing came").unwrap();
        frame.frame.unwrap()
    }

    async fn silence(&mut self) {
        let early = timeout(Duration::from_millis(100), self.reader.next::<ToWorkspace>()).await;
        assert!(early.is_err(), "unexpected: {early:?}");
    }

    /// Takes a commit over.
    async fn follow(&mut self) -> Commit {
        match self.next().await {
            to_workspace::Frame::Commit(commit) => {
                self.apply(&commit);
                commit
            }
            other => panic!("{other:?}"),
        }
    }

    fn apply(&mut self, commit: &Commit) {
        if commit.base == 0 {
            self.tree = Tree::default();
        }
        assert!(commit.base == 0 || commit.base == self.revision, "{} follows {}", commit.base, self.revision);
        for op in op::unpack(commit.batch.as_ref().unwrap(), limits::BATCH_OPS).unwrap() {
            self.tree.apply(&op).unwrap();
        }
        assert_eq!(self.tree.root().0[..], commit.root);
        self.revision = commit.revision;
    }

    async fn propose(&mut self, sequence: u64, ops: &[Op]) {
        self.say(from_workspace::Frame::Proposal(Proposal { sequence, batch: Some(op::pack(ops)), task_id: Bytes::new() })).await;
    }
}

#[tokio::test]
async fn a_fresh_node_gets_everything_and_then_what_changes() {
    let desk = Desk::new(1).await;
    desk.write("a/b", "1").await;
    desk.write("c", "2").await;
    let mut node = desk.connect(0, 1 << 20);
    let open = node.hello(0, Bytes::new()).await;
    assert_eq!(
        (open.session_id[..].to_vec(), open.revision, open.keys.len(), open.chunk_seed.len()),
        (desk.session.as_bytes().to_vec(), 2, 1, 8)
    );
    assert!(node.follow().await.last);
    assert_eq!(node.tree, desk.tree().await);
    for number in 0..20 {
        desk.write("c", &number.to_string()).await;
        let commit = node.follow().await;
        assert_eq!((commit.base + 1, commit.last), (commit.revision, true));
    }
    assert_eq!(node.tree, desk.tree().await);
    node.silence().await;
}

#[tokio::test]
async fn a_node_that_was_away_gets_what_it_missed_and_one_that_missed_nothing_gets_nothing() {
    let desk = Desk::new(1).await;
    desk.write("a", "1").await;
    let node = desk.fresh(0).await;
    let (root, tree) = (Bytes::copy_from_slice(&node.tree.root().0), node.tree.clone());
    drop(node);
    let mut same = desk.connect(0, 1 << 20);
    same.hello(1, root.clone()).await;
    same.silence().await;
    drop(same);
    for number in 0..3 {
        desk.write("b", &number.to_string()).await;
    }
    let mut back = desk.connect(0, 1 << 20);
    back.hello(1, root.clone()).await;
    (back.tree, back.revision) = (tree, 1);
    while back.revision < 4 {
        assert!(back.follow().await.base > 0, "only what it missed");
    }
    assert_eq!(back.tree, desk.tree().await);
    drop(back);
    for (revision, root) in [(4, root.clone()), (99, root)] {
        let mut stranger = desk.connect(0, 1 << 20);
        stranger.hello(revision, root).await;
        let commit = stranger.follow().await;
        assert_eq!((commit.base, commit.revision), (0, 4), "a state that the log does not know begins anew");
        assert_eq!(stranger.tree, desk.tree().await);
    }
}

#[tokio::test]
async fn an_edit_on_one_node_comes_to_the_other_and_its_verdict_stands_at_its_place() {
    let desk = Desk::new(2).await;
    let (mut one, mut two) = (desk.fresh(0).await, desk.fresh(1).await);
    let ops = [Op::Put { path: path("n"), parent: None, entry: text("from one") }];
    desk.write("h", "first").await;
    one.propose(1, &ops).await;
    // The hub's own change is before it, whenever it is read.
    one.follow().await;
    let to_workspace::Frame::Verdict(verdict) = one.next().await else { panic!("a verdict") };
    assert_eq!((verdict.sequence, verdict.base, verdict.revision, verdict.objections.len()), (1, 1, 2, 0));
    one.tree.apply(&ops[0]).unwrap();
    assert_eq!(one.tree.root().0[..], verdict.root);
    two.follow().await;
    let commit = two.follow().await;
    assert_eq!(commit.author, desk.nodes[0].key().as_bytes()[..]);
    assert_eq!(two.tree, one.tree);
    one.silence().await;
    one.propose(1, &ops).await;
    let to_workspace::Frame::Verdict(again) = one.next().await else { panic!("a verdict") };
    assert_eq!(again, verdict);
}

#[tokio::test]
async fn a_node_that_counts_from_the_beginning_again_is_not_told_what_it_was_told_before() {
    let desk = Desk::new(1).await;
    let mut node = desk.fresh(0).await;
    let op = |entry| Op::Put { path: path("n"), parent: None, entry };
    node.propose(1, &[op(text("first"))]).await;
    let to_workspace::Frame::Verdict(_) = node.next().await else { panic!("a verdict") };
    // Something else under the same number is something else.
    node.propose(1, &[op(text("second"))]).await;
    let to_workspace::Frame::Verdict(verdict) = node.next().await else { panic!("a verdict") };
    assert_eq!((verdict.base, verdict.objections.len()), (1, 1), "it is judged by what the workspace holds now");
    // And so is the same one, by a node that knows nothing any more.
    drop(node);
    desk.write("n", "third").await;
    let mut node = desk.connect(0, 1 << 20);
    node.hello(0, Bytes::new()).await;
    node.follow().await;
    node.propose(1, &[op(text("first"))]).await;
    let to_workspace::Frame::Verdict(verdict) = node.next().await else { panic!("a verdict") };
    assert_eq!((verdict.base, verdict.objections.len()), (2, 1));
}

#[tokio::test]
async fn a_node_that_does_not_read_holds_nobody_up() {
    let desk = Desk::new(2).await;
    let mut slow = desk.connect(0, 512);
    slow.hello(0, Bytes::new()).await;
    let mut quick = desk.fresh(1).await;
    for number in 0..30 {
        desk.write(&format!("f{}", number % 4), &number.to_string()).await;
        timeout(SOON, quick.follow()).await.unwrap();
    }
    while slow.revision < 30 {
        slow.follow().await;
    }
    assert_eq!(slow.tree, quick.tree);
}

#[tokio::test]
async fn a_node_that_is_detached_is_told_and_the_others_get_a_new_key() {
    let desk = Desk::new(2).await;
    desk.write("a", "1").await;
    let (mut one, mut two) = (desk.fresh(0).await, desk.fresh(1).await);
    desk.site.hub.detach_node(&desk.ann, desk.session, desk.nodes[0]).await.unwrap();
    one.detach.cancel();
    two.nudge.notify_one();
    assert_eq!(one.next().await, to_workspace::Frame::Detach(true));
    let to_workspace::Frame::Key(key) = two.next().await else { panic!("a key") };
    assert_eq!(Some(&key), desk.site.hub.workspace_keys(desk.session).await.unwrap().last());
    drop((one.reader, one.writer));
    timeout(SOON, one.line).await.unwrap().unwrap().unwrap();
    desk.write("b", "2").await;
    two.follow().await;
    two.nudge.notify_one();
    two.silence().await;
}

#[tokio::test]
async fn a_node_that_left_and_proposes_all_the_same_is_cut_off() {
    let desk = Desk::new(1).await;
    let mut node = desk.fresh(0).await;
    desk.site.hub.detach_node(&desk.ann, desk.session, desk.nodes[0]).await.unwrap();
    node.propose(1, &[Op::Put { path: path("n"), parent: None, entry: text("n") }]).await;
    let ended = timeout(SOON, node.line).await.unwrap().unwrap();
    assert!(matches!(ended, Err(LineError::Mirror(MirrorError::Gone))), "{ended:?}");
    assert_eq!(desk.workspace().await.head().revision(), 0);
}

#[tokio::test]
async fn locks_and_pauses_are_told_when_they_begin_and_when_they_end() {
    let desk = Desk::new(1).await;
    let mut node = desk.fresh(0).await;
    let (hub, workspace) = (&desk.site.hub, desk.workspace().await);
    let new = NewLock { prefix: path("d"), lease_ms: 1_000, name: String::new(), fence: None };
    let lock = workspace.lock(hub, &desk.ann, new.clone()).await.unwrap();
    let to_workspace::Frame::State(state) = node.next().await else { panic!("a state") };
    assert_eq!((state.locks.len(), &*state.locks[0].prefix, state.locks[0].fence), (1, "d", lock.fence));
    workspace.unlock(hub, &desk.ann, lock.fence, false).await.unwrap();
    assert_eq!(node.next().await, to_workspace::Frame::State(WorkspaceState::default()));
    workspace.pause(hub, &desk.ann, true).await.unwrap();
    assert_eq!(node.next().await, to_workspace::Frame::State(WorkspaceState { locks: vec![], paused: true }));
    workspace.pause(hub, &desk.ann, false).await.unwrap();
    node.next().await;
    // One whose owner is gone ends by itself.
    workspace.lock(hub, &desk.ann, new).await.unwrap();
    node.next().await;
    desk.site.pass(1_000);
    assert_eq!(node.next().await, to_workspace::Frame::State(WorkspaceState::default()));
}

#[tokio::test]
async fn a_node_is_asked_for_its_drift_and_asks_for_folders() {
    let desk = Desk::new(1).await;
    desk.write("d/a", "1").await;
    let mut node = desk.fresh(0).await;
    let workspace = desk.workspace().await;
    let id = desk.nodes[0];
    let asked = tokio::spawn(async move { workspace.nodes.rescan(id, Rescan { rehash: true, ..Rescan::default() }, SOON).await });
    let to_workspace::Frame::Rescan(rescan) = node.next().await else { panic!("a question") };
    assert!(rescan.rehash && !rescan.repair);
    node.say(from_workspace::Frame::Tree(TreeRequest { request: 7, directories: vec![String::new(), "d".into(), "nothing".into()] })).await;
    let to_workspace::Frame::Tree(answer) = node.next().await else { panic!("a tree") };
    let children = op::unpack(&answer.children.unwrap(), limits::BATCH_OPS).unwrap();
    let tree = desk.tree().await;
    let found: Vec<_> =
        children.iter().map(|op| if let Op::Put { path, parent, .. } = op { (path.to_string(), *parent) } else { panic!() }).collect();
    assert_eq!(found, [("d".to_owned(), tree.hash(&path("d"))), ("d/a".to_owned(), tree.hash(&path("d/a")))]);
    assert_eq!((answer.request, answer.revision), (7, 1));
    let report = DriftReport { request: rescan.request, missing: vec!["d/a".into()], ..DriftReport::default() };
    node.say(from_workspace::Frame::Drift(report)).await;
    let drift = asked.await.unwrap().unwrap();
    assert_eq!(drift.missing, ["d/a"]);
    assert_eq!(desk.workspace().await.nodes.drift_of(id).unwrap().1, drift);
}

#[tokio::test]
async fn only_what_a_node_asks_is_answered() {
    let desk = Desk::new(1).await;
    let mut node = desk.fresh(0).await;
    let (hub, workspace) = (&desk.site.hub, desk.workspace().await);
    let status = WorkspaceStatus { state: "held".into(), question: 3, question_text: "delete them?".into(), ..WorkspaceStatus::default() };
    node.say(from_workspace::Frame::Status(status)).await;
    for _ in 0..500 {
        if workspace.nodes.sync_of(desk.nodes[0]).is_some_and(|sync| sync.question.is_some()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = async |question| workspace.answer(hub, &desk.ann, desk.nodes[0], question, true).await;
    assert!(matches!(answer(2).await, Err(MirrorError::NotAsked)));
    let say = |taken| from_workspace::Frame::Answered(Answered { question: 3, taken });
    let heard = async |node: &mut Played, taken| {
        let to_workspace::Frame::Decision(decision) = node.next().await else { panic!("a decision") };
        assert_eq!((decision.question, decision.yes), (3, true));
        node.say(say(taken)).await;
    };
    let (answered, ()) = tokio::join!(answer(3), heard(&mut node, true));
    answered.unwrap();
    let (answered, ()) = tokio::join!(answer(3), heard(&mut node, false));
    assert!(matches!(answered, Err(MirrorError::NotAsked)), "it asks something else by now");
    // A node that goes with the answer.
    let ((), answered) = tokio::join!(
        async {
            node.next().await;
            drop(node);
        },
        answer(3)
    );
    assert!(matches!(answered, Err(MirrorError::NotTaken)), "{answered:?}");
}

#[tokio::test]
async fn nonsense_ends_the_stream_and_nothing_else() {
    let desk = Desk::new(2).await;
    let (mut bad, mut good) = (desk.fresh(0).await, desk.fresh(1).await);
    let garbage = cortex_wire::schema::PackedBatch { bytes: Bytes::from_static(b"\xff\xff\xff"), size: 0 };
    bad.say(from_workspace::Frame::Proposal(Proposal { sequence: 1, batch: Some(garbage), task_id: Bytes::new() })).await;
    assert!(matches!(timeout(SOON, bad.line).await.unwrap().unwrap(), Err(LineError::Mirror(MirrorError::Protocol(_)))));
    desk.write("a", "1").await;
    good.follow().await;
}
