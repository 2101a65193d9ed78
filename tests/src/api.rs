//! The hub's HTTP API as a client sees it. Only what tests look at is read; everything else a hub answers is ignored.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use reqwest::{
    Method, StatusCode,
    cookie::{CookieStore as _, Jar},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{events::Events, wait};

/// For one request and its whole answer. Streams have none.
const PATIENCE: Duration = Duration::from_secs(20);

/// Somebody who talks to a hub.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    cookies: Arc<Jar>,
    base: String,
    token: Option<String>,
}

/// A problem document (RFC 9457): what a hub answers instead of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{status} {code}: {detail}")]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// What to do next.
    pub fix: String,
    /// Where output goes on.
    pub next_offset: Option<u64>,
    /// What a change of a file expected.
    pub parent_hash: Option<String>,
    /// What is there.
    pub current_hash: Option<String>,
}

/// A fresh invite.
#[derive(Debug, Clone, Deserialize)]
pub struct Invite {
    /// The id.
    pub id: String,
    /// The text with the secret.
    #[serde(rename = "invite")]
    pub text: String,
    /// The line that installs and starts a peer.
    pub one_liner: String,
    /// The peer's configuration.
    pub yaml: String,
}

/// What became of an invite.
#[derive(Debug, Clone, Deserialize)]
pub struct InviteStatus {
    /// "open", "used", "revoked", "expired".
    pub state: String,
    /// The node that redeemed it.
    pub node_id: Option<String>,
    /// Refused tries.
    pub refusals: u64,
    /// The last of them.
    pub last_refusal: Option<Refusal>,
}

/// Why somebody was turned away.
#[derive(Debug, Clone, Deserialize)]
pub struct Refusal {
    /// The stable code.
    pub code: String,
    /// For people.
    pub reason: String,
    /// Of the key that tried; on invites.
    pub fingerprint: Option<String>,
}

/// A node.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    /// The id.
    pub id: String,
    /// What people compare.
    pub fingerprint: String,
    /// What it is called.
    pub name: String,
    /// "active", "pending", "revoked".
    pub standing: String,
    /// How it is there.
    pub presence: Presence,
    /// Why it was last turned away.
    pub refusal: Option<Refusal>,
    /// What it is and has.
    pub capabilities: Value,
}

/// How a node is there.
#[derive(Debug, Clone, Deserialize)]
pub struct Presence {
    /// "online", "offline", …
    pub state: String,
    /// The relay it is behind.
    pub relay: Option<String>,
    /// The relay that it holds ready.
    pub standby: Option<String>,
    /// End to end.
    pub rtt_us: Option<u64>,
    /// The same through the standby.
    pub standby_rtt_us: Option<u64>,
    /// What carries its packets: "relay", "tcp", "direct".
    pub path: Option<String>,
    /// Why it does.
    pub path_reason: Option<String>,
    /// Its last heartbeat.
    pub health: Option<Value>,
    /// How its last connection ended.
    pub last_disconnect: Option<Disconnect>,
}

/// The end of a connection.
#[derive(Debug, Clone, Deserialize)]
pub struct Disconnect {
    /// For people.
    pub reason: String,
}

/// A session.
#[derive(Debug, Clone, Deserialize)]
pub struct Session {
    /// The id.
    pub id: String,
    /// Attached nodes.
    pub node_ids: Vec<String>,
}

/// A task.
#[derive(Debug, Clone, Deserialize)]
pub struct Task {
    /// The id.
    pub id: String,
    /// Behind which walls it runs.
    pub sandbox_level: Option<String>,
    /// Where it runs.
    pub node_id: String,
    /// How it came there, when it is one of the pool.
    pub pool: Option<Pool>,
    /// Grows with each lease.
    pub fence: u64,
    /// Where it is in its life.
    pub state: String,
    /// How it ended; or
    pub exit_code: Option<i32>,
    /// the signal that ended it.
    pub signal: Option<i32>,
    /// The stable code of why it did not run to its end.
    pub code: Option<String>,
    /// The same for people.
    pub reason: Option<String>,
    /// Grows with each retry.
    pub attempt: u32,
    /// All it printed.
    pub stdout_bytes: u64,
    /// All it complained.
    pub stderr_bytes: u64,
    /// Some output was not kept.
    pub truncated: bool,
    /// Processes were left behind that held its output open.
    pub descendants_held_pipe: bool,
    /// It began before its folder held what was committed.
    pub workspace_behind: bool,
    /// What it used.
    pub usage: Option<Value>,
}

/// How a task of the pool came to its node.
#[derive(Debug, Clone, Deserialize)]
pub struct Pool {
    /// Why nobody could take it at first.
    pub waits: Option<String>,
    /// Who was asked, in order.
    pub ranking: Vec<String>,
    /// Who claimed, in order.
    pub claims: Vec<Claim>,
}

/// A node's claim.
#[derive(Debug, Clone, Deserialize)]
pub struct Claim {
    /// Who.
    pub node_id: String,
    /// It was not granted.
    pub refused: bool,
}

impl Task {
    /// Whether it has ended, one way or another.
    pub fn is_final(&self) -> bool {
        !["queued", "awaiting_approval", "offered", "leased", "running"].contains(&self.state.as_str())
    }
}

/// A command to be run, with everything that may be said about it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Shell {
    /// Where; none: the session's only node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Which machines fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Any of them will do.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pool: bool,
    /// Program and arguments, or
    pub argv: Vec<String>,
    /// a script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// For the script; none: the node's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Inside the workspace.
    pub cwd: String,
    /// Changes to the environment.
    pub env: BTreeMap<String, String>,
    /// Standard input will be sent.
    pub stdin: bool,
    /// "permissive" or "strict".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// From start to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_timeout_ms: Option<u64>,
    /// Without output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Until somebody has approved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval_timeout_ms: Option<u64>,
    /// Until it has started.
    pub queue_timeout_ms: u64,
}

impl Shell {
    /// A program with its arguments.
    pub fn argv<const N: usize>(argv: [&str; N]) -> Self {
        Self { argv: argv.map(str::to_owned).into(), ..Self::default() }
    }

    /// A script for the node's shell.
    pub fn script(text: impl Into<String>) -> Self {
        Self { script: Some(text.into()), ..Self::default() }
    }

    /// On any node that fits.
    #[must_use]
    pub fn pooled(self) -> Self {
        Self { pool: true, ..self }
    }

    /// On a node that fits this.
    #[must_use]
    pub fn selecting(self, selector: &str) -> Self {
        Self { selector: Some(selector.to_owned()), ..self }
    }

    /// On this node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// With this variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A task that has ended, with what it printed.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The task.
    pub task: Task,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

#[derive(Deserialize)]
struct Page<T> {
    items: Vec<T>,
}

/// The problem that a request should have met.
///
/// # Errors
/// When it was answered, or failed in another way.
pub fn problem<T: std::fmt::Debug>(answer: Result<T>) -> Result<Problem> {
    match answer {
        Ok(answer) => bail!("this should have been refused, and was answered with {answer:?}"),
        Err(error) => error.downcast::<Problem>(),
    }
}

impl Client {
    /// Talks to the hub at `base`, as nobody.
    ///
    /// # Errors
    /// When there can be no client.
    pub fn new(base: impl Into<String>) -> Result<Self> {
        // The tests may run where a proxy is configured for the outside.
        let cookies = Arc::new(Jar::default());
        let http =
            reqwest::Client::builder().no_proxy().cookie_provider(cookies.clone()).connect_timeout(Duration::from_secs(5)).build()?;
        Ok(Self { http, cookies, base: base.into(), token: None })
    }

    /// The same, with an API token.
    #[must_use]
    pub fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    /// The same account, logged in with its cookie instead of a token: some things only people do.
    #[must_use]
    pub fn person(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// The address of the hub.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The token, for those who talk to the hub in their own way.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The cookies of a login, for the same.
    pub fn cookies(&self) -> Option<String> {
        let cookies = self.cookies.cookies(&self.base.parse().ok()?)?;
        Some(cookies.to_str().ok()?.to_owned())
    }

    /// A request to a path of the hub.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        // Cookies of a login change things only from the hub's own pages.
        let request = self.http.request(method, format!("{}{path}", self.base)).header("origin", &self.base);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// A request and its answer as JSON. A refusal is an error that can be looked into with [`problem`].
    ///
    /// # Errors
    /// [`Problem`], or what broke.
    pub async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Value>) -> Result<T> {
        let mut request = self.request(method.clone(), path).timeout(PATIENCE);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| format!("{method} {path}"))?;
        let status = response.status();
        let bytes = response.bytes().await?;
        if !status.is_success() {
            let problem = serde_json::from_slice::<Problem>(&bytes);
            let problem = problem.with_context(|| format!("{method} {path}: {status} without a problem document"))?;
            return Err(problem.into());
        }
        // What has no content reads as null.
        let text = if bytes.is_empty() { b"null" } else { &bytes[..] };
        serde_json::from_slice(text).with_context(|| format!("{method} {path}: {}", String::from_utf8_lossy(text)))
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, None).await
    }

    /// POST.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: Value) -> Result<T> {
        self.call(Method::POST, path, Some(&body)).await
    }

    /// Makes the first administrator with the token that the hub printed; from then on this client and its clones have their cookie.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn set_up(&self, token: &str) -> Result<()> {
        let body = json!({"token": token, "name": "ada", "password": "correct horse battery"});
        self.post::<Value>("/api/setup", body).await.map(drop)
    }

    /// A token with all scopes, made with the cookie of a login.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn make_token(&self) -> Result<String> {
        let body = json!({"name": "test", "scopes": ["read", "dispatch", "manage", "admin"]});
        let fresh: Value = self.post("/api/tokens", body).await?;
        Ok(fresh["text"].as_str().context("the token's text")?.to_owned())
    }

    /// A member of this hub, and their client.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn member(&self, name: &str) -> Result<Self> {
        let password = "another long password";
        self.post::<Value>("/api/users", json!({"name": name, "password": password, "role": "member"})).await?;
        let member = Self::new(self.base.clone())?;
        member.post::<Value>("/api/login", json!({"name": name, "password": password})).await?;
        let body = json!({"name": "test", "scopes": ["read", "dispatch", "manage"]});
        let fresh: Value = member.post("/api/tokens", body).await?;
        Ok(member.with_token(fresh["text"].as_str().context("the token's text")?))
    }

    /// Makes an invite.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn invite(&self, wishes: Value) -> Result<Invite> {
        self.post("/api/nodes/invite", wishes).await
    }

    /// What became of an invite.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn invite_status(&self, id: &str) -> Result<InviteStatus> {
        self.get(&format!("/api/nodes/invites/{id}")).await
    }

    /// A node.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn node(&self, id: &str) -> Result<Node> {
        self.get(&format!("/api/nodes/{id}")).await
    }

    /// All nodes that can be seen.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        Ok(self.get::<Page<Node>>("/api/nodes").await?.items)
    }

    /// Waits until a node is in this state.
    ///
    /// # Errors
    /// When it is not within `patience`.
    pub async fn node_is(&self, id: &str, state: &str, patience: Duration) -> Result<Node> {
        let what = format!("node {id} is {state}");
        wait::until(&what, patience, async || self.node(id).await.ok().filter(|node| node.presence.state == state)).await
    }

    /// Waits until an invite was redeemed, and returns the node that did it.
    ///
    /// # Errors
    /// When it was not within `patience`.
    pub async fn redeemed(&self, invite: &str, patience: Duration) -> Result<String> {
        wait::until("the invite is redeemed", patience, async || self.invite_status(invite).await.ok()?.node_id).await
    }

    /// A session with these nodes.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn session(&self, nodes: &[&str]) -> Result<Session> {
        self.post("/api/sessions", json!({"title": "test", "node_ids": nodes})).await
    }

    /// Attaches a node to a session.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn attach(&self, session: &str, node: &str) -> Result<Session> {
        self.call(Method::POST, &format!("/api/sessions/{session}/nodes/{node}"), None).await
    }

    /// Runs a command in a session.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn dispatch(&self, session: &str, shell: &Shell) -> Result<Task> {
        self.post(&format!("/api/sessions/{session}/dispatch"), serde_json::to_value(shell)?).await
    }

    /// Runs a command under an idempotency key; also returns whether it is a new task.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn dispatch_once(&self, session: &str, shell: &Shell, key: &str) -> Result<(Task, bool)> {
        let request = self.request(Method::POST, &format!("/api/sessions/{session}/dispatch")).header("idempotency-key", key);
        let response = request.json(shell).timeout(PATIENCE).send().await?;
        let status = response.status();
        if !status.is_success() {
            return Err(response.json::<Problem>().await?.into());
        }
        Ok((response.json().await?, status == StatusCode::CREATED))
    }

    /// A task.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn task(&self, id: &str) -> Result<Task> {
        self.get(&format!("/api/tasks/{id}")).await
    }

    /// A session's tasks, newest first.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn tasks(&self, session: &str) -> Result<Vec<Task>> {
        Ok(self.get::<Page<Task>>(&format!("/api/sessions/{session}/tasks")).await?.items)
    }

    /// Asks to end a task.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn cancel(&self, task: &str) -> Result<Task> {
        self.call(Method::POST, &format!("/api/tasks/{task}/cancel"), None).await
    }

    /// Waits until a task is in this state.
    ///
    /// # Errors
    /// When it is not within `patience`, with the state that it is in.
    pub async fn task_is(&self, id: &str, state: &str, patience: Duration) -> Result<Task> {
        let what = format!("task {id} is {state}");
        let seen =
            wait::until(&what, patience, async || self.task(id).await.ok().filter(|task| task.state == state || task.is_final())).await?;
        if seen.state != state { Err(anyhow::anyhow!("task {id} should be {state}: {seen:?}")) } else { Ok(seen) }
    }

    /// Waits until a task has ended.
    ///
    /// # Errors
    /// When it has not within `patience`, with the state that it is in.
    pub async fn ended(&self, id: &str, patience: Duration) -> Result<Task> {
        let what = format!("task {id} ends");
        match wait::until(&what, patience, async || self.task(id).await.ok().filter(Task::is_final)).await {
            Ok(ended) => Ok(ended),
            Err(error) => Err(error.context(format!("{:?}", self.task(id).await))),
        }
    }

    /// What a task has printed so far, "stdout" or "stderr".
    ///
    /// # Errors
    /// [`Problem`], or what broke.
    pub async fn output(&self, id: &str, stream: &str) -> Result<Vec<u8>> {
        let path = format!("/api/tasks/{id}/output?stream={stream}");
        let response = self.request(Method::GET, &path).timeout(PATIENCE).send().await?;
        if !response.status().is_success() {
            return Err(response.json::<Problem>().await?.into());
        }
        Ok(response.bytes().await?.into())
    }

    /// Waits for the end of a task, and collects what it printed.
    ///
    /// # Errors
    /// When it has not ended within `patience`.
    pub async fn finish(&self, id: &str, patience: Duration) -> Result<Ran> {
        let task = self.ended(id, patience).await?;
        let text = async |stream| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&self.output(id, stream).await?).into_owned());
        Ok(Ran { task, stdout: text("stdout").await?, stderr: text("stderr").await? })
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it is refused, or has not ended within 20 seconds.
    pub async fn run(&self, session: &str, shell: &Shell) -> Result<Ran> {
        let task = self.dispatch(session, shell).await?;
        self.finish(&task.id, PATIENCE).await
    }

    /// Follows an event stream.
    pub fn follow(&self, path: &str) -> Events {
        Events::new(self.clone(), path)
    }
}
