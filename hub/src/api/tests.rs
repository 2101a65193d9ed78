//! Tests of the web surface through its real router, over a real store; the network side is a stand-in that takes tasks and leaves them
//! to the test.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use cortex_runtime::lifecycle::Lifecycle;
use cortex_wire::{
    id::{NodeId, RelayId, SessionId, TaskId},
    invite::RelayEndpoint,
    key::{Domain, SecretKey},
    schema::{TaskResponse, task_response::Exit},
};
use futures_util::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{Api, ApiOptions, router};
use crate::{
    account::{Actor, NewToken, NewUser},
    hub::{Hub, HubOptions, Mesh, RelayStatus, Reservation, StdinError},
    invite::{NewInvite, Redeem},
    operator::ALL_SCOPES,
    output::Stream,
    presence::Connection,
    record::{Capabilities, Role, Scope, Task},
    testing::started,
};

mod access;
mod documents;
mod downloads;
mod files;
mod outputs;
mod people;
mod stories;
mod streams;

const PASSWORD: &str = "a long and silly password";
const HOST: &str = "127.0.0.1:8080";

/// Takes every task for a node that is online, and does nothing with it.
#[derive(Default)]
struct Quiet {
    online: Mutex<HashSet<NodeId>>,
    stdin: Mutex<Vec<u8>>,
}

impl Mesh for Quiet {
    fn reserve(&self, node: NodeId) -> Reservation {
        if self.online.lock().unwrap().contains(&node) { Reservation::Slot } else { Reservation::Offline }
    }
    fn room(&self, node: NodeId) -> Option<u32> {
        self.online.lock().unwrap().contains(&node).then_some(1)
    }
    fn offer(&self, _task: Task) {}
    fn release(&self, _node: NodeId) {}
    fn deliver(&self, _task: Task, _leased: bool) {}
    fn cancel(&self, _task: TaskId, _node: NodeId, _reason: String) {}
    fn stdin(&self, _task: TaskId, _node: NodeId, offset: u64, data: Bytes, _end: bool) -> BoxFuture<'static, Result<u64, StdinError>> {
        let mut stdin = self.stdin.lock().unwrap();
        let expected = stdin.len() as u64;
        let answer = if offset == expected {
            stdin.extend_from_slice(&data);
            Ok(stdin.len() as u64)
        } else {
            Err(StdinError::WrongOffset { expected })
        };
        Box::pin(async move { answer })
    }
    fn node_changed(&self, _node: NodeId) {}
    fn sessions_changed(&self, _node: NodeId) {}
    fn session_unused(&self, _session: SessionId, _deleted: bool) {}
    fn add_relay(&self, _: RelayEndpoint) {}

    fn remove_relay(&self, _: RelayId) {}

    fn relays(&self) -> Vec<RelayStatus> {
        let id = SecretKey::from_seed([250; 32]).public().into();
        let endpoint = RelayEndpoint { address: "127.0.0.1:4433".into(), id, region: String::new() };
        vec![RelayStatus {
            endpoint,
            embedded: true,
            configured: true,
            online: true,
            nodes: 0,
            rtt_us: None,
            draining: false,
            version: "test".into(),
            load: Some(0),
            carrier: Some("memory"),
        }]
    }
}

/// A hub with one administrator, "ada".
struct Lab {
    dir: tempfile::TempDir,
    hub: Arc<Hub>,
    mesh: Arc<Quiet>,
    api: Arc<Api>,
    router: Router,
    /// Her token.
    ada: String,
}

/// A node whose peer is played by the test.
struct PlayedNode {
    id: NodeId,
    key: SecretKey,
}

impl Lab {
    async fn new() -> Self {
        Self::with(ApiOptions::default()).await
    }

    async fn with(options: ApiOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::open(dir.path(), HubOptions::default()).await.unwrap();
        let token = hub.setup_token().await.unwrap().unwrap();
        let login = hub.setup(&token, "ada", PASSWORD, "test").await.unwrap();
        let actor = hub.authenticate_session(&login.secret).await.unwrap();
        let ada = api_token(&hub, &actor).await;
        let mesh = Arc::new(Quiet::default());
        hub.set_mesh(mesh.clone());
        let api = Api::new(hub.clone(), options, Lifecycle::new());
        Self { dir, router: router(api.clone()), hub, mesh, api, ada }
    }

    /// The same hub after a restart.
    async fn restarted(self) -> Self {
        let Self { dir, hub, mesh, api, router: old, ada } = self;
        drop((old, api));
        let gone = Arc::downgrade(&hub);
        drop(hub);
        eventually(|| gone.strong_count() == 0).await;
        let hub = open_again(&dir).await;
        hub.set_mesh(mesh.clone());
        let api = Api::new(hub.clone(), ApiOptions::default(), Lifecycle::new());
        Self { dir, router: router(api.clone()), hub, mesh, api, ada }
    }

    /// A new account; its token.
    async fn user(&self, name: &str, role: Role) -> String {
        let ada = self.actor(&self.ada).await;
        self.hub.create_user(&ada, NewUser { name: name.into(), password: PASSWORD.into(), role }).await.unwrap();
        let login = self.hub.login(name, PASSWORD, "test").await.unwrap();
        let actor = self.hub.authenticate_session(&login.secret).await.unwrap();
        if role == Role::Viewer { login.secret } else { api_token(&self.hub, &actor).await }
    }

    async fn actor(&self, token: &str) -> Actor {
        self.hub.authenticate_token(token).await.unwrap()
    }

    /// A node of this account, online.
    async fn node(&self, token: &str, seed: u8) -> PlayedNode {
        let actor = self.actor(token).await;
        let issued = self.hub.create_invite(&actor, NewInvite::default()).await.unwrap();
        let key = SecretKey::from_seed([seed; 32]);
        let id = NodeId::from(key.public());
        let redeem = Redeem {
            invite_id: issued.invite.id,
            secret_hash: issued.invite.secret_hash.0,
            node: id,
            name: format!("machine-{seed}"),
            agent: "test".into(),
            capabilities: Capabilities { task_slots: 4, ..Capabilities::default() },
            observed_address: None,
        };
        self.hub.redeem(redeem).await.unwrap();
        self.hub.node_online(id, Connection { id: 1, relay: None, path: None }).await.unwrap();
        self.mesh.online.lock().unwrap().insert(id);
        PlayedNode { id, key }
    }

    /// A session with this node.
    async fn session(&self, token: &str, node: &PlayedNode) -> String {
        let reply = self.post(token, "/api/sessions", json!({"title": "t", "node_ids": [node.id]})).await;
        reply.expect(StatusCode::CREATED)["id"].as_str().unwrap().to_owned()
    }

    /// A task that has started.
    async fn task(&self, token: &str, session: &str, node: &PlayedNode) -> TaskId {
        let reply = self.post(token, &format!("/api/sessions/{session}/dispatch"), json!({"argv": ["true"]})).await;
        let id = reply.expect(StatusCode::CREATED)["id"].as_str().unwrap().parse().unwrap();
        self.hub.started(id, node.id, &started(self.hub.now_ms())).await.unwrap();
        id
    }

    async fn print(&self, task: TaskId, stream: Stream, offset: u64, data: &[u8]) {
        self.hub.outputs.append(task, stream, offset, Bytes::copy_from_slice(data)).await.unwrap();
    }

    async fn finish(&self, task: TaskId, node: &PlayedNode, exit_code: i32) {
        let record = self.hub.find_task(task).await.unwrap().unwrap();
        let mark = self.hub.outputs.lengths(task).await.unwrap();
        let response = TaskResponse {
            task_id: Bytes::copy_from_slice(task.as_bytes()),
            fence: record.fence,
            node_key: node.id.key().to_bytes(),
            state: if exit_code == 0 { "succeeded" } else { "failed" }.into(),
            started_at_ms: self.hub.now_ms(),
            finished_at_ms: self.hub.now_ms(),
            stdout_bytes: mark.stdout,
            stderr_bytes: mark.stderr,
            sandbox_level: "permissive".into(),
            exit: Some(Exit::ExitCode(exit_code)),
            ..TaskResponse::default()
        };
        let signed = node.key.seal(Domain::Result, &response);
        self.hub.finish(task, node.id, &response, &signed).await.unwrap();
    }

    async fn get(&self, token: &str, path: &str) -> Reply {
        self.send("GET", path, &[("authorization", &format!("Bearer {token}"))], None).await
    }

    async fn post(&self, token: &str, path: &str, body: Value) -> Reply {
        self.send("POST", path, &[("authorization", &format!("Bearer {token}"))], Some(body)).await
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Reply {
        let response = self.respond(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(Duration::from_secs(10), to_bytes(body, usize::MAX)).await.unwrap().unwrap();
        Reply { what: format!("{method} {path}"), status: parts.status, headers: parts.headers, body }
    }

    async fn respond(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> axum::response::Response {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", HOST);
        }
        if body.is_some() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map_or_else(Body::empty, |json| Body::from(json.to_string()));
        self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap()
    }

    /// The events of a stream.
    async fn events(&self, token: &str, path: &str, last: Option<&str>) -> Events {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(last.map(|id| ("last-event-id", id)));
        let response = self.respond("GET", path, &headers, None).await;
        assert_eq!(response.status(), StatusCode::OK, "GET {path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.into_body().into_data_stream().map(|bytes| bytes.unwrap()).boxed();
        Events { bytes, text: String::new() }
    }
}

async fn open_again(dir: &tempfile::TempDir) -> Arc<Hub> {
    let mut last = None;
    for _ in 0..100 {
        match Hub::open(dir.path(), HubOptions::default()).await {
            Ok(hub) => return hub,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the data directory is not free: {last:?}");
}

async fn api_token(hub: &Hub, actor: &Actor) -> String {
    let scopes = ALL_SCOPES.into_iter().filter(|scope| actor.may(*scope)).collect::<Vec<Scope>>();
    hub.create_token(actor, NewToken { name: "test".into(), scopes, expires_in_ms: None }).await.unwrap().1
}

/// Waits for what must come, for at most 5 s.
async fn eventually(mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come within 5 s");
}

struct Reply {
    what: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error} in {:?}", self.what, self.body))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    fn expect(&self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}: {:?}", self.what, self.body);
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    /// The code of a problem document of this status.
    #[track_caller]
    fn problem(&self, status: StatusCode) -> String {
        let json = self.expect(status);
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.what);
        for key in ["type", "title", "detail", "code", "fix"] {
            assert!(json[key].as_str().is_some_and(|text| !text.is_empty()), "{}: {key} is missing in {json}", self.what);
        }
        assert_eq!(json["status"], status.as_u16());
        json["code"].as_str().unwrap().to_owned()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

struct Events {
    bytes: BoxStream<'static, Bytes>,
    text: String,
}

impl Events {
    /// The next event; `None` at the end of the stream. Fails when nothing comes for 5 s.
    async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(Duration::from_secs(5), self.read()).await.expect("no event within 5 s")
    }

    /// Nothing comes for a while.
    async fn expect_silence(&mut self) {
        let early = tokio::time::timeout(Duration::from_millis(150), self.read()).await;
        assert!(early.is_err(), "unexpected: {early:?}");
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let event = parse_event(block);
                self.text = rest.to_owned();
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let bytes = self.bytes.next().await?;
            self.text.push_str(std::str::from_utf8(&bytes).expect("whole events"));
        }
    }
}

fn parse_event(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
    let name = field("event: ");
    (!name.is_empty()).then(|| Event { id: field("id: "), name, data: serde_json::from_str(&field("data: ")).unwrap() })
}
