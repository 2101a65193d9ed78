//! A peer and tasks that its hub did not give it: somebody has taken the hub's place at the relay, with some of its keys, and orders what a hub
//! never would. The peer refuses each order with its own code, and goes on.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cortex_hub::{keys::HubKeys, record};
use cortex_runtime::{
    clock,
    link::{self, Link},
    quic::{self, Prefix, Purpose},
    socket::{NodeSocket, Role},
    stream::{FrameReader, FrameWriter},
};
use cortex_tests::{hub::Hub, peer::Peer, relay::Relay};
use cortex_wire::{
    PROTOCOL_VERSION,
    id::{NodeId, SessionId, TaskId},
    invite::RelayEndpoint,
    key::{Domain, SecretKey, state_key},
    limits,
    policy::Policy,
    route::{RelayTag, Route},
    schema::{
        FromTask, HubCredential, HubHello, KeyPurpose, NodeFrame, NodeStanding, RegistrationRequest, SandboxMode, SandboxPolicy, ShellTask,
        Signed, StreamOpen, SyncConfiguration, TaskRequest, TaskResponse, ToTask, from_task, link_hello::Credential, stream_open::Open,
        task_request::Kind, to_task,
    },
};
use prost::Message as _;
use quinn::{Connection, Endpoint};

/// A code, and what is done to a good order to meet it.
type Fault = (&'static str, fn(&mut TaskRequest));

/// For everything that is waited for. A peer notices within a heartbeat that its hub is another one.
const PATIENCE: Duration = Duration::from_secs(20);

/// A real peer, and whoever has taken the place of its hub.
struct Scene {
    peer: Peer,
    keys: HubKeys,
    endpoint: Endpoint,
    _link: Link,
    _relay: Relay,
    _home: Hub,
}

/// The peer's connection, registered.
struct Registered {
    connection: Connection,
    request: RegistrationRequest,
    policy_hash: [u8; 32],
    sequence: u64,
}

impl Scene {
    async fn set() -> Result<Self> {
        let (mut hub, relay) = Hub::start_with_relay().await?;
        let peer = hub.enrol("machine").await?;
        hub.process.kill9().await?;
        let keys = HubKeys::open(&hub.data_dir().join("keys"), clock::now_ms())?;
        let socket = NodeSocket::bind(Role::Hub)?;
        let config = quic::endpoint_config(Prefix::Route(Route::of(keys.id().key())), &clock::random());
        let server = quic::server_config(&keys.transport, Purpose::Mesh)?;
        let endpoint = Endpoint::new_with_abstract_socket(config, Some(server), socket.clone(), Arc::new(quinn::TokioRuntime))?;
        let at: RelayEndpoint = relay.endpoint.parse().map_err(anyhow::Error::msg)?;
        let address = socket.relay_path(RelayTag::of(at.id.key()), at.address.parse()?);
        let credential = Credential::Hub(HubCredential { statements: keys.statements().to_vec(), instance: 77 });
        let hello = link::hello("false hub 0", &keys.id(), Some(credential));
        let link = link::dial(&endpoint, address, &at, &keys.transport, hello).await?;
        Ok(Self { peer, keys, endpoint, _link: link, _relay: relay, _home: hub })
    }

    /// Waits for the peer, and says hello with these statements.
    async fn greet(&self, statements: Vec<Signed>) -> Result<(Connection, FrameReader<quinn::RecvStream>, FrameWriter<quinn::SendStream>)> {
        let greet = async {
            let connection = self.endpoint.accept().await.context("the endpoint is closed")?.await?;
            let (send, recv) = connection.open_bi().await?;
            let mut writer = FrameWriter::new(send);
            let hello = HubHello {
                version: PROTOCOL_VERSION,
                agent: "false hub 0".into(),
                hub_name: "false".into(),
                statements,
                time_ms: clock::now_ms(),
                instance: 77,
            };
            writer.send(&hello).await?;
            Ok((connection, FrameReader::new(recv, limits::CONTROL_FRAME_BYTES), writer))
        };
        tokio::time::timeout(PATIENCE, greet).await.context("the peer does not come")?
    }

    /// Takes the peer in, as its hub would.
    async fn register(&self) -> Result<Registered> {
        let (connection, mut reader, mut writer) = self.greet(self.keys.statements().to_vec()).await?;
        let request: RegistrationRequest = tokio::time::timeout(PATIENCE, reader.expect()).await??;
        let policy = SandboxPolicy::from(&record::SandboxPolicy::default());
        let configuration = SyncConfiguration {
            standing: NodeStanding::Active.into(),
            node_id: self.peer.node.clone(),
            name: "machine".into(),
            policy: Some(self.keys.task.seal(Domain::Policy, &policy)),
            heartbeat_ms: 60_000,
            ..SyncConfiguration::default()
        };
        writer.send(&configuration).await?;
        // Kept open for as long as the connection lives.
        tokio::spawn(async move {
            let _writer = writer;
            while let Ok(Some(_)) = reader.next::<NodeFrame>().await {}
        });
        Ok(Registered { connection, request, policy_hash: Policy::new(policy).hash(), sequence: 0 })
    }
}

impl Registered {
    /// A task as the hub would order it.
    fn order(&mut self, scene: &Scene) -> Result<TaskRequest> {
        self.sequence += 1;
        Ok(TaskRequest {
            hub_root: scene.keys.id().key().to_bytes(),
            node_key: scene.peer.node.parse::<NodeId>()?.key().to_bytes(),
            session_id: SessionId::new(clock::now_ms(), clock::random()).to_string(),
            boot_nonce: self.request.boot_nonce.clone(),
            sequence: self.sequence,
            task_id: Bytes::copy_from_slice(TaskId::new(clock::now_ms(), clock::random()).as_bytes()),
            attempt: 1,
            fence: 1,
            issued_at_ms: clock::now_ms(),
            start_deadline_ms: clock::now_ms() + limits::START_DEADLINE_MS,
            policy_hash: Bytes::copy_from_slice(&self.policy_hash),
            mode: SandboxMode::Permissive.into(),
            kind: Some(Kind::Shell(ShellTask { argv: vec!["touch".into(), "proof".into()], ..ShellTask::default() })),
            ..TaskRequest::default()
        })
    }

    /// Sends an order, and returns the code of its refusal, or the state in which it ended.
    async fn send(&self, scene: &Scene, signed: Signed) -> Result<String> {
        let (send, recv) = self.connection.open_bi().await?;
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(recv, limits::TASK_FRAME_BYTES));
        writer.send(&StreamOpen { open: Some(Open::Start(signed)), ..StreamOpen::default() }).await?;
        let told = async {
            loop {
                match reader.expect::<FromTask>().await?.frame {
                    Some(from_task::Frame::Rejected(rejected)) => return Ok(rejected.code),
                    Some(from_task::Frame::Result(result)) => {
                        writer.send(&ToTask { frame: Some(to_task::Frame::ResultStored(true)) }).await?;
                        let node: NodeId = scene.peer.node.parse()?;
                        return Ok(node.key().open::<TaskResponse>(Domain::Result, &result)?.state);
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, told).await.context("the peer does not answer")?
    }
}

#[tokio::test]
async fn a_task_that_is_not_exactly_what_the_hub_signed_for_this_moment_is_refused() -> Result<()> {
    let scene = Scene::set().await?;
    let mut hub = scene.register().await?;
    let task_key = &scene.keys.task;
    let good = task_key.seal(Domain::Task, &hub.order(&scene)?);
    assert_eq!(hub.send(&scene, good.clone()).await?, "succeeded", "the scene is right");
    assert_eq!(hub.send(&scene, good).await?, "replayed");

    let elsewhere = SecretKey::from_seed(clock::random());
    let faults: [Fault; 7] = [
        ("late", |order| order.start_deadline_ms = clock::now_ms() - 1_000),
        ("wrong_node", |order| order.node_key = SecretKey::from_seed([7; 32]).public().to_bytes()),
        ("wrong_node", |order| order.hub_root = SecretKey::from_seed([7; 32]).public().to_bytes()),
        ("wrong_boot", |order| order.boot_nonce = vec![7; 32].into()),
        ("stale_policy", |order| order.policy_hash = vec![7; 32].into()),
        ("malformed", |order| order.kind = None),
        ("malformed", |order| order.session_id = "../..".into()),
    ];
    for (code, fault) in faults {
        let mut order = hub.order(&scene)?;
        fault(&mut order);
        assert_eq!(hub.send(&scene, task_key.seal(Domain::Task, &order)).await?, code);
    }
    let order = hub.order(&scene)?;
    assert_eq!(hub.send(&scene, elsewhere.seal(Domain::Task, &order)).await?, "bad_signature", "another key");
    assert_eq!(hub.send(&scene, scene.keys.ticket.seal(Domain::Task, &order)).await?, "bad_signature", "a key for something else");
    assert_eq!(hub.send(&scene, task_key.seal(Domain::Policy, &order)).await?, "bad_signature", "signed as something else");
    let mut body = order.encode_to_vec();
    body.extend_from_slice(&[0xf8, 0x07, 0x01]); // field 127, varint 1
    let extended = Signed { signature: task_key.sign(Domain::Task, &[&body]), body: body.into() };
    assert_eq!(hub.send(&scene, extended).await?, "bad_signature", "an unknown field");
    let altered = Signed { body: Bytes::from(hub.order(&scene)?.encode_to_vec()), ..task_key.seal(Domain::Task, &order) };
    assert_eq!(hub.send(&scene, altered).await?, "bad_signature", "an altered order");
    assert_eq!(hub.send(&scene, Signed::default()).await?, "bad_signature", "nothing");

    let good = task_key.seal(Domain::Task, &hub.order(&scene)?);
    assert_eq!(hub.send(&scene, good).await?, "succeeded", "the next good order is not the worse for it");
    let proofs = std::fs::read_dir(scene.peer.home().join("work"))?.flatten().filter(|session| session.path().join("proof").exists());
    assert_eq!(proofs.count(), 2, "what was refused did not run");
    Ok(())
}

#[tokio::test]
async fn nonsense_on_a_task_s_stream_ends_that_stream_only() -> Result<()> {
    let scene = Scene::set().await?;
    let mut hub = scene.register().await?;
    let oversized = u32::try_from(limits::TASK_FRAME_BYTES + 1)?.to_be_bytes().to_vec();
    for nonsense in [oversized, vec![0xff; 64], vec![0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff], vec![0, 0], Vec::new()] {
        let (mut send, mut recv) = hub.connection.open_bi().await?;
        send.write_all(&nonsense).await?;
        let _ = send.finish();
        // It is reset, or ends; what counts is that it does not stay.
        let _ = tokio::time::timeout(PATIENCE, recv.read_to_end(1024)).await.context("the stream was kept")?;
    }
    let good = scene.keys.task.seal(Domain::Task, &hub.order(&scene)?);
    assert_eq!(hub.send(&scene, good).await?, "succeeded");
    ensure!(hub.connection.close_reason().is_none(), "the connection outlives it");
    Ok(())
}

#[tokio::test]
async fn a_peer_tells_nothing_to_whoever_cannot_prove_to_be_its_hub() -> Result<()> {
    let mut scene = Scene::set().await?;
    let root = SecretKey::from_seed(clock::random());
    let mine = state_key(&root, KeyPurpose::Transport, &scene.keys.transport.public(), 1, 0, 0);
    for statements in [Vec::new(), vec![mine]] {
        let (connection, mut reader, _writer) = scene.greet(statements).await?;
        let told = tokio::time::timeout(PATIENCE, reader.next::<RegistrationRequest>()).await.context("the peer stays")?;
        assert!(!matches!(told, Ok(Some(_))), "it has told something: {told:?}");
        connection.close(0u32.into(), b"");
    }
    scene.peer.process.line("that this is not its hub", PATIENCE, |line| line.contains("not the hub").then_some(())).await
}
