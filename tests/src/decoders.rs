//! Every decoder that reads what strangers send, as functions of bytes: for the fuzzer (`tests/fuzz`) and for the test that replays its corpus.
//!
//! A function here returns nothing: it must come to an end on any input, without a panic. What it accepts is used, so that the code behind the decoder is
//! reached as well.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use cortex_runtime::packet;
use cortex_wire::{
    direct::{self, Heard, HubEnd, NodeEnd, Secret},
    evidence::{self, Evidence, SignedText},
    frame,
    id::{HubId, NodeId, SessionId, TaskId},
    invite::{self, RelayEndpoint},
    key::{self, Domain, SecretKey, check_statement},
    limits,
    mirror::{
        cut::Unfolding,
        entry::{Content, Entry, Sid, Span},
        ignore::Rules,
        judge::{Author, judge},
        op,
        path::RelPath,
        seal::{Keys, Opener, Sealed},
        tree::Tree,
    },
    policy::{self, Policy},
    pool::{Claimant, Command, Pool},
    route,
    schema::{
        ChunkOpen, ChunksStored, DirectOffer, DirectSearch, Enrolment, FromRelay, FromTask, FromWorkspace, HubFrame, HubHello, InviteProof,
        KeyPurpose, LinkAnswer, LinkHello, NodeFrame, PackedBatch, PoolClaims, PoolUpdate, RegistrationRequest, RelayAddress,
        SandboxPolicy, SecretReference, SecretValue, ShellTask, SidList, Signed, StreamOpen, SyncConfiguration, TaskRequest, TaskResponse,
        ToRelay, ToTask, ToWorkspace, task_request,
    },
    secret,
    selector::{Facts, Selector},
    task::{self, Gate, SequenceWindow},
    text, ticket,
};
use data_encoding::BASE64;
use prost::Message;

/// A decoder by name.
pub type Decoder = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Decoder; 14] = [
    ("frames", frames),
    ("invites", invites),
    ("tickets", tickets),
    ("statements", statements),
    ("tasks", tasks),
    ("policies", policies),
    ("evidence", evidence),
    ("packets", packets),
    ("batches", batches),
    ("probes", probes),
    ("texts", texts),
    ("workspaces", workspaces),
    ("chunks", chunks),
    ("pools", pools),
];

/// Runs the decoder of this name.
pub fn run(name: &str, bytes: &[u8]) {
    if let Some((_, decoder)) = ALL.iter().find(|(known, _)| *known == name) {
        decoder(bytes);
    }
}

fn key() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn read_all<M: Message + Default>(bytes: &[u8], limit: usize) {
    let mut buffer = BytesMut::from(bytes);
    while let Ok(Some(message)) = frame::decode::<M>(&mut buffer, limit) {
        let _ = frame::encode(&message);
    }
}

fn frames(bytes: &[u8]) {
    read_all::<LinkHello>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<LinkAnswer>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<ToRelay>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<FromRelay>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<HubHello>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<RegistrationRequest>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<SyncConfiguration>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<HubFrame>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<NodeFrame>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<StreamOpen>(bytes, limits::TASK_FRAME_BYTES);
    read_all::<ToTask>(bytes, limits::TASK_FRAME_BYTES);
    read_all::<FromTask>(bytes, limits::TASK_FRAME_BYTES);
}

fn invites(bytes: &[u8]) {
    let _ = invite::read(&String::from_utf8_lossy(bytes), 1_000);
    if let Ok(proof) = InviteProof::decode(bytes) {
        let _ = invite::open(&proof, 1_000);
    }
    if let Ok(enrolment) = Enrolment::decode(bytes) {
        let _ = invite::check_enrolment(&enrolment, &key().public(), &HubId::from(key().public()), &[0; 32]);
    }
    if let Ok(address) = RelayAddress::decode(bytes) {
        let _ = RelayEndpoint::from_message(&address).map(|endpoint| endpoint.to_string().parse::<RelayEndpoint>());
    }
    let _ = String::from_utf8_lossy(bytes).parse::<RelayEndpoint>();
}

/// The bytes as somebody's signed message: signed for real, so that what lies behind the signature is reached.
fn signed(bytes: &[u8], domain: Domain) -> Signed {
    let body = Bytes::copy_from_slice(bytes);
    let signature = key().sign(domain, &[&body]);
    Signed { body, signature }
}

fn tickets(bytes: &[u8]) {
    let public = key().public();
    let _ = ticket::check(&signed(bytes, Domain::Ticket), &public, &public.into(), &public.into(), &public.into(), 1_000);
}

fn statements(bytes: &[u8]) {
    let hub = HubId::from(key().public());
    let _ = check_statement(&signed(bytes, Domain::Key), &hub, KeyPurpose::Task, 1_000);
    if let Ok(message) = Signed::decode(bytes) {
        let _ = check_statement(&message, &hub, KeyPurpose::Task, 1_000);
    }
}

fn tasks(bytes: &[u8]) {
    let policy = Policy::new(SandboxPolicy::default());
    let node = NodeId::from(key().public());
    let mut gate = Gate { hub: key().public().into(), node, boot_nonce: [7; 32], window: SequenceWindow::default() };
    let _ = gate.check(&signed(bytes, Domain::Task), &key().public(), &policy, 1_000);
    if let Ok(request) = TaskRequest::decode(bytes) {
        let _ = task::check_shape(&request);
        let _ = policy.judge(&request);
    }
    if let Ok(open) = StreamOpen::decode(bytes) {
        let named = |value: &SecretValue| SecretReference { environment_name: value.environment_name.clone(), hash: value.salt.clone() };
        let references: Vec<SecretReference> = open.secrets.iter().map(named).collect();
        assert!(secret::open(&references, &open.secrets).is_ok_and(|found| found.is_empty()) || !references.is_empty());
    }
    let _ = key::decode_strict::<TaskResponse>(&Bytes::copy_from_slice(bytes));
}

fn policies(bytes: &[u8]) {
    let script = String::from_utf8_lossy(bytes);
    let _ = policy::words_of(&script);
    if let Ok(rules) = SandboxPolicy::decode(bytes) {
        let argv: Vec<String> = script.split(' ').map(str::to_owned).collect();
        let _ = rules.deny.iter().any(|rule| policy::matches(rule, &argv));
        let shell = ShellTask { script: script.into_owned(), ..ShellTask::default() };
        let request = TaskRequest { kind: Some(task_request::Kind::Shell(shell)), ..TaskRequest::default() };
        let _ = Policy::new(rules.clone()).within(&rules).judge(&request);
    }
}

/// A file of evidence, and the bytes as what a node has signed in one.
fn evidence(bytes: &[u8]) {
    if let Ok(evidence) = serde_json::from_slice::<Evidence>(bytes) {
        let _ = evidence.check();
    }
    let signed = signed(bytes, Domain::Result);
    let evidence = Evidence {
        format: evidence::FORMAT.into(),
        node_id: NodeId::from(key().public()).to_string(),
        session_id: SessionId::new(1, [0; 10]).to_string(),
        task_id: TaskId::new(1, [0; 10]).to_string(),
        command: evidence::Command::default(),
        result: SignedText { body: BASE64.encode(&signed.body), signature: BASE64.encode(&signed.signature) },
        policy: None,
    };
    let _ = evidence.check();
}

fn workspaces(bytes: &[u8]) {
    read_all::<ToWorkspace>(bytes, limits::WORKSPACE_FRAME_BYTES);
    read_all::<FromWorkspace>(bytes, limits::WORKSPACE_FRAME_BYTES);
    let whole = Bytes::copy_from_slice(bytes);
    let packings = [
        PackedBatch { bytes: whole.clone(), size: 0 },
        PackedBatch { bytes: whole.clone(), size: 4_096 },
        PackedBatch::decode(whole).unwrap_or_default(),
    ];
    for packed in packings {
        let Ok(ops) = op::unpack(&packed, limits::BATCH_OPS) else { continue };
        let judgement = judge(&Tree::default(), &ops, &[], &Author::Hub("somebody".into()), 1_000);
        for op in judgement.accepted {
            let _ = op::pack(&[op]);
        }
    }
    if let Ok(entry) = Entry::from_bytes(bytes) {
        assert_eq!(Entry::from_bytes(&entry.to_bytes()).map(|again| again.hash()), Ok(entry.hash()));
    }
    let text = String::from_utf8_lossy(bytes);
    if let (Ok(path), Ok(rules)) = (text.parse::<RelPath>(), RelPath::root().join(".cortexignore")) {
        let _ = (path.parent(), path.fold_key());
        let _ = Rules::new([(rules, text.as_ref())]).matched(&path, false);
    }
}

fn chunks(bytes: &[u8]) {
    read_all::<ChunkOpen>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<SidList>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<ChunksStored>(bytes, limits::CONTROL_FRAME_BYTES);
    let mut keys = Keys::new(SessionId::new(1, [0; 10]));
    keys.insert(1, &[3; 32]);
    let sid = Sid(*blake3::hash(bytes).as_bytes());
    if let Some(sealed) = Sealed::check(sid, Bytes::copy_from_slice(bytes)) {
        let _ = Opener::new(std::sync::Arc::new(keys)).open(sealed);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let spans = vec![Span { sid, offset: 0, length }].into();
    for depth in [1, 2] {
        let content = Content { size: 1 << 20, hash: [0; 32], depth, spans: std::sync::Arc::clone(&spans) };
        if let Ok(mut unfolding) = Unfolding::new(&content) {
            let _ = unfolding.page(bytes);
        }
    }
}

fn packets(bytes: &[u8]) {
    let _ = route::destination(bytes);
}

/// Messages of a tunnel: what was taken is what was sent, and every packet leads somewhere or nowhere.
fn batches(bytes: &[u8]) {
    let Ok(batches) = packet::batches(bytes, ([127, 0, 0, 1], 1).into()) else { return };
    let packets: Vec<&[u8]> = batches.iter().flat_map(|batch| batch.data.chunks(batch.stride)).collect();
    assert_eq!(packets.iter().map(|packet| packet.len() + 2).sum::<usize>(), bytes.len());
    packets.into_iter().for_each(|packet| _ = route::destination(packet));
}

/// Probes of a direct way: nothing that was not made with the secret counts, and no answer is longer than what it answers.
fn probes(bytes: &[u8]) {
    let (secret, from, now) = (Secret::new(&[1; 32]), ([127, 0, 0, 1], 4000).into(), Instant::now());
    let (mut hub, mut node) = (HubEnd::new(secret.clone()), NodeEnd::new(secret));
    node.ping(from, bytes.len() == direct::LONG, now);
    if let Heard::Answer(pong) = hub.hear(bytes, now) {
        assert_eq!(pong.len(), bytes.len());
        assert_eq!(hub.hear(bytes, now), Heard::Nothing);
    }
    if node.hear(from, bytes, now) != Heard::Nothing {
        assert_eq!(node.hear(from, bytes, now), Heard::Nothing);
    }
    read_all::<DirectOffer>(bytes, limits::CONTROL_FRAME_BYTES);
    read_all::<DirectSearch>(bytes, limits::CONTROL_FRAME_BYTES);
    let named = DirectSearch::decode(bytes).unwrap_or_default().addresses;
    let named = named.iter().filter_map(|named| named.address.parse().ok());
    assert!(direct::worth_probing(named, &[], true).len() <= limits::DIRECT_ADDRESSES);
}

/// Offers and claims of the pool, and selectors: what is taken is bounded, and nobody gets a task that was not offered to them.
fn pools(bytes: &[u8]) {
    read_all::<PoolUpdate>(bytes, limits::CONTROL_FRAME_BYTES);
    let mut claimant = Claimant::default();
    if let Ok(update) = PoolUpdate::decode(bytes) {
        claimant.hear(&update, 1_000);
        let due_ms = claimant.due_ms(1).unwrap_or(0);
        assert!(claimant.claims(2, due_ms).len() <= 2);
        assert!(claimant.claims(u32::MAX, i64::MAX).len() <= limits::POOL_BATCH);
    }
    if let Ok(claims) = PoolClaims::decode(bytes) {
        let mut pool = Pool::default();
        for claim in claims.claims.iter().filter_map(|claim| Some((TaskId::from_slice(&claim.task_id).ok()?, claim.fence))) {
            pool.claim(key().public().into(), claim.0, claim.1);
        }
        assert!(pool.commands().iter().all(|command| matches!(command, Command::Tell(_, _, None))));
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(selector) = text.parse::<Selector>() {
        let mut facts = Facts::default();
        facts.add("os", text.as_ref());
        assert_eq!(selector.misses(&facts).is_none(), selector.matches(&facts));
        assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
    }
}

fn texts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for most in [0, 1, 7, limits::NAME_BYTES] {
        assert!(text::clean(&text, most).len() <= most);
    }
    let _ = task::is_inside(&text);
}
