//! The bytes of every message that is signed or that opens a conversation, frozen: a peer in the field must understand a newer hub, and signatures cover these bytes.
//!
//! A change here is a change of the protocol (see the top of `proto/cortex.proto`). To accept one: `CORTEX_UPDATE_GOLDEN=1 cargo nextest run -p cortex-wire`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bytes::Bytes;
use cortex_wire::{
    frame,
    key::{Domain, SecretKey, pae, state_key},
    route::{CID_LEN, RelayTag, Route},
    schema::*,
};
use prost::Message;

mod ignore_git;
mod mirror_replica;
mod mirror_sim;
mod mirror_tree;
mod random;
mod task_sim;

const GOLDEN: &str = include_str!("golden.txt");

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

fn bytes(byte: u8, len: usize) -> Bytes {
    vec![byte; len].into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn relay() -> RelayAddress {
    RelayAddress { address: "relay.example:443".into(), key: key(4).public().to_bytes(), region: "eu".into() }
}

fn policy() -> SandboxPolicy {
    SandboxPolicy {
        mode: SandboxMode::Permissive.into(),
        allow: vec![CommandRule { prefix: vec!["git".into(), "status".into()], reason: "look".into() }],
        deny: vec![CommandRule { prefix: vec!["reboot".into()], reason: String::new() }],
        task_slots: 64,
        run_timeout_ms: 60_000,
        sequence: 3,
        ..SandboxPolicy::default()
    }
}

fn task() -> TaskRequest {
    TaskRequest {
        hub_root: key(1).public().to_bytes(),
        node_key: key(2).public().to_bytes(),
        session_id: "01890a5d-ac96-774b-bcce-b302099a8057".into(),
        session_epoch: 1,
        boot_nonce: bytes(7, 32),
        sequence: 5,
        task_id: bytes(8, 16),
        attempt: 1,
        fence: 2,
        issued_at_ms: 1_700_000_000_000,
        start_deadline_ms: 1_700_000_600_000,
        limits: Some(TaskLimits { run_timeout_ms: 1000, idle_timeout_ms: 500 }),
        policy_hash: bytes(9, 32),
        mode: SandboxMode::Permissive.into(),
        origin: Some(Origin { user_id: "u".into(), via: "api".into(), token_id: "t".into() }),
        idempotency_key: "k".into(),
        traceparent: "tp".into(),
        kind: Some(task_request::Kind::Shell(ShellTask {
            argv: vec!["echo".into(), "hi".into()],
            script: String::new(),
            shell: String::new(),
            cwd: "sub".into(),
            environment: vec![EnvironmentVariable { name: "A".into(), value: "b".into() }],
            stdin: true,
            ..ShellTask::default()
        })),
        approval: None,
    }
}

fn response() -> TaskResponse {
    TaskResponse {
        task_id: bytes(8, 16),
        fence: 2,
        node_key: key(2).public().to_bytes(),
        state: "failed".into(),
        exit: Some(task_response::Exit::ExitCode(3)),
        reason: "r".into(),
        started_at_ms: 1,
        finished_at_ms: 2,
        usage: Some(TaskUsage { wall_ms: 1, cpu_user_ms: 2, cpu_system_ms: 3, peak_memory_bytes: 4 }),
        stdout_bytes: 5,
        stderr_bytes: 6,
        truncated: true,
        descendants_held_pipe: true,
        sandbox_level: "permissive".into(),
        policy_hash: bytes(9, 32),
        ..TaskResponse::default()
    }
}

fn golden() -> String {
    let statement = state_key(&key(1), KeyPurpose::Task, &key(3).public(), 1, 10, 20);
    let invite = InviteBody {
        invite_id: bytes(1, 16),
        hub_root: key(1).public().to_bytes(),
        secret_hash: bytes(2, 32),
        relays: vec![relay()],
        expires_at_ms: 99,
        approval: true,
        ephemeral: true,
    };
    let ticket = Ticket {
        hub_root: key(1).public().to_bytes(),
        relay_key: key(4).public().to_bytes(),
        node_key: key(2).public().to_bytes(),
        route: Bytes::copy_from_slice(Route::of(&key(2).public()).as_bytes()),
        expires_at_ms: 99,
        bytes_per_second: 1000,
        enrolling: true,
        sessions: vec![],
    };
    let hello = LinkHello {
        version: 1,
        agent: "cortex-peer 0.1.0".into(),
        hub_root: key(1).public().to_bytes(),
        credential: Some(link_hello::Credential::Ticket(statement.clone())),
    };
    let hub_hello = HubHello {
        version: 1,
        agent: "cortex-hub 0.1.0".into(),
        hub_name: "hub".into(),
        statements: vec![statement.clone()],
        time_ms: 7,
        instance: 8,
    };
    let registration = RegistrationRequest {
        version: 1,
        agent: "cortex-peer 0.1.0".into(),
        name: "n".into(),
        boot_nonce: bytes(7, 32),
        capabilities: Some(Capabilities { os: "linux".into(), cpu_count: 2, ..Capabilities::default() }),
        enrolment: Some(Enrolment { invite_id: bytes(1, 16), secret: bytes(2, 32), signature: bytes(3, 64) }),
        inventory: vec![TaskInventory { task_id: bytes(8, 16), fence: 2, finished: true, lost: false }],
        ceiling: Some(policy()),
        relay_id: "r".into(),
        workspaces: vec![],
    };
    let output = FromTask {
        frame: Some(from_task::Frame::Output(TaskOutput { stream: OutputStream::Stderr.into(), offset: 300, data: bytes(b'x', 3) })),
    };
    let cid = Route::of(&key(2).public()).connection_id([0xaa; CID_LEN]);
    let link_cid = RelayTag::of(&key(4).public()).connection_id([0xaa; CID_LEN]);
    let rows: [(&str, Vec<u8>); 14] = [
        ("KeyStatement", statement.body.to_vec()),
        ("KeyStatement.signature", statement.signature.to_vec()),
        ("InviteBody", invite.encode_to_vec()),
        ("Ticket", ticket.encode_to_vec()),
        ("SandboxPolicy", policy().encode_to_vec()),
        ("SandboxPolicy.hash", cortex_wire::policy::hash(&policy().encode_to_vec()).to_vec()),
        ("TaskRequest", task().encode_to_vec()),
        ("TaskResponse", response().encode_to_vec()),
        ("LinkHello.frame", frame::encode(&hello).to_vec()),
        ("HubHello.frame", frame::encode(&hub_hello).to_vec()),
        ("RegistrationRequest.frame", frame::encode(&registration).to_vec()),
        ("TaskOutput.frame", frame::encode(&output).to_vec()),
        ("connection ids", [&cid[..], &link_cid[..]].concat()),
        ("PAE", pae(Domain::Task, &[b"a", b""])),
    ];
    rows.into_iter().chain(workspace()).map(|(name, bytes)| format!("{name}: {}\n", hex(&bytes))).collect()
}

/// Workspaces: stored for years at the hub and on nodes, so hashes and packed batches count as well as messages.
fn workspace() -> Vec<(&'static str, Vec<u8>)> {
    use cortex_wire::mirror::{
        entry::{Content, Entry, Hash, Sid, Span},
        op::{self, Op},
        tree::Tree,
    };
    let path = |text: &str| text.parse().unwrap();
    let spans = [Span { sid: Sid([1; 32]), offset: 7, length: 300 }, Span { sid: Sid([2; 32]), offset: 0, length: 700 }];
    let file = Entry::File { content: Content { size: 1_000, hash: [3; 32], depth: 0, spans: spans.into() }, executable: true };
    let large = Entry::File { content: Content { size: 1 << 30, hash: [4; 32], depth: 2, spans: spans[..1].into() }, executable: false };
    let ops = [
        Op::Put { path: path("src/main.rs"), parent: None, entry: file.clone() },
        Op::Put { path: path("big"), parent: Some(Hash([5; 32])), entry: large.clone() },
        Op::Put { path: path("link"), parent: None, entry: Entry::Symlink("../x".into()) },
        Op::Put { path: path("empty"), parent: None, entry: Entry::Directory },
        Op::Remove { path: path("old"), parent: Hash([6; 32]) },
        Op::Move { from: path("a"), to: path("b/c"), parent: Hash([7; 32]) },
    ];
    let mut tree = Tree::default();
    ops[..4].iter().for_each(|op| tree.apply(op).unwrap());
    let batch = op::encode(&ops);
    // What zstd makes of it may change with its version; what is inside may not.
    let packed = PackedBatch { bytes: batch.encode_to_vec().into(), size: 0 };
    assert_eq!(op::unpack(&packed, ops.len()).unwrap(), ops);
    let lock =
        WorkspaceLock { prefix: "src".into(), owner: "ann".into(), owner_node: key(2).public().to_bytes(), fence: 3, expires_at_ms: 99 };
    let open = WorkspaceOpen {
        session_id: bytes(8, 16),
        keys: vec![WorkspaceKey { epoch: 1, key: bytes(9, 32) }],
        chunk_seed: bytes(10, 8),
        revision: 12,
        root: bytes(11, 32),
        locks: vec![lock],
        paused: true,
    };
    let commit = Commit {
        base: 11,
        revision: 12,
        root: bytes(11, 32),
        batch: Some(packed.clone()),
        author: key(2).public().to_bytes(),
        last: true,
        list: bytes(12, 32),
    };
    let proposal = Proposal { sequence: 4, batch: Some(packed), task_id: bytes(8, 16) };
    let objection = Objection { op: 2, code: "conflict".into(), message: "m".into() };
    let verdict = Verdict { sequence: 4, base: 11, revision: 12, root: bytes(11, 32), objections: vec![objection] };
    let page = SpanPage { chunks: batch.chunks.clone(), spans: vec![ChunkSpan { chunk: 1, offset: 2, length: 3 }] };
    let fetch = ChunkOpen {
        session_id: bytes(8, 16),
        node_key: key(2).public().to_bytes(),
        what: Some(chunk_open::What::Fetch(SidList { sids: bytes(1, 64) })),
    };
    vec![
        (
            "StreamOpen.workspace.frame",
            frame::encode(&StreamOpen { open: Some(stream_open::Open::Workspace(open)), ..StreamOpen::default() }).to_vec(),
        ),
        (
            "WorkspaceHello",
            FromWorkspace { frame: Some(from_workspace::Frame::Hello(WorkspaceHello { revision: 12, root: bytes(11, 32) })) }
                .encode_to_vec(),
        ),
        ("Commit", ToWorkspace { frame: Some(to_workspace::Frame::Commit(commit)) }.encode_to_vec()),
        ("Proposal", FromWorkspace { frame: Some(from_workspace::Frame::Proposal(proposal)) }.encode_to_vec()),
        ("Verdict", ToWorkspace { frame: Some(to_workspace::Frame::Verdict(verdict)) }.encode_to_vec()),
        ("Entry", file.to_bytes()),
        ("SpanPage", page.encode_to_vec()),
        ("ChunkOpen.frame", frame::encode(&fetch).to_vec()),
        (
            "entry hashes",
            [&file, &large, &Entry::Directory, &Entry::Symlink("../x".into())].iter().flat_map(|entry| entry.hash().0).collect(),
        ),
        ("tree hash", tree.root().0.to_vec()),
    ]
}

#[test]
fn no_message_changes_its_bytes() {
    let now = golden();
    if std::env::var_os("CORTEX_UPDATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/golden.txt"), &now).expect("the golden file is written");
        return;
    }
    for (now, then) in now.lines().zip(GOLDEN.lines()) {
        assert_eq!(now, then, "the protocol's bytes changed");
    }
    assert_eq!(now.lines().count(), GOLDEN.lines().count());
}
