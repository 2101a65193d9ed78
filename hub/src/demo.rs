//! `cortex-hub demo`: the main job from beginning to end, for people who want to see it and for programs that want to know whether it works.
//!
//! A hub with an embedded relay in this process, and a real `cortex-peer` beside it that joins by an invite. From there on the demo is an ordinary
//! client: everything goes over HTTP, as anybody else would do it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use cortex_runtime::{
    clock,
    lifecycle::{Lifecycle, Parts},
};
use data_encoding::BASE64URL_NOPAD;
use futures_util::StreamExt as _;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::{config::Config, serve};

/// The account that the demo makes.
const ACCOUNT: &str = "demo";
/// All of it should take a few seconds; something is wrong when it does not.
const PATIENCE: Duration = Duration::from_secs(60);
/// A command that prints for five seconds.
const COUNT: &str = "for i in 1 2 3 4 5; do echo \"line $i of 5\"; sleep 1; done";

/// How the demo runs.
#[derive(Debug, Clone, Copy)]
pub struct DemoOptions {
    /// Stop everything afterwards.
    pub once: bool,
    /// Print one JSON object instead of prose.
    pub json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    node_id: String,
    /// From the invite to online.
    online_ms: u64,
    /// From the dispatch to the first byte of output.
    first_byte_ms: u64,
    tasks: Vec<TaskReport>,
}

#[derive(Debug, Serialize)]
struct TaskReport {
    id: String,
    state: String,
    exit_code: Option<i64>,
    output: String,
}

/// Runs the demo. Without `data_dir` in the settings everything is in a folder that is removed at the end.
///
/// # Errors
/// Whatever did not happen.
pub async fn run(mut config: Config, options: DemoOptions, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    if config.data_dir.is_none() {
        config.data_dir = Some(scratch.0.join("hub"));
    }
    if options.once || tokio::net::TcpListener::bind(config.listen).await.is_err() {
        config.listen.set_port(0);
    }
    // Only this machine is meant to join a demo.
    config.relay.listen = ([127, 0, 0, 1], 0).into();
    config.relay.address = None;
    let mut parts = Parts::new();
    let running = serve::start(&config, &lifecycle, &mut parts).await?;
    let password = BASE64URL_NOPAD.encode(&clock::random::<12>());
    let say = |text: &str| {
        if !options.json {
            println!("{text}");
        }
    };
    say(&format!("A hub is running at {}", running.url));
    let token = set_up(&running, &password).await?;
    let client = Client::new(&running.url, &token)?;
    let mut peer = None;
    let played = tokio::select! {
        played = tokio::time::timeout(PATIENCE, play(&client, &scratch.0, &mut peer, &say)) => {
            played.unwrap_or_else(|_| Err(anyhow::anyhow!("the demo did not come to its end within {} s", PATIENCE.as_secs())))
        }
        () = lifecycle.draining() => Err(anyhow::anyhow!("stopped before the end")),
    };
    let outcome = match played {
        Ok(report) => {
            if options.json {
                println!("{}", serde_json::to_string(&report)?);
            }
            if !options.once {
                say(&format!(
                    "\nThe hub stays at {}\n  log in as    {ACCOUNT}\n  password     {password}\n  API token    {token}\n  the API      {}/api/docs\n  add a machine  {}/download\nCtrl-C stops it and removes what the demo made.",
                    running.url, running.url, running.url
                ));
                lifecycle.draining().await;
            }
            Ok(())
        }
        Err(error) => Err(error.context(format!("the peer's log is: {}", tail(&scratch.0.join("peer.log"))))),
    };
    if let Some(peer) = &mut peer {
        end(peer).await;
    }
    lifecycle.stop();
    parts.join(&lifecycle, Duration::from_secs(2)).await?;
    outcome
}

/// A first administrator, and an API token of theirs.
async fn set_up(running: &serve::Running, password: &str) -> anyhow::Result<String> {
    let Some(setup) = running.hub.setup_token().await? else {
        bail!("this data directory belongs to a hub that is set up already; leave --data out, and the demo makes its own");
    };
    let browser = reqwest::Client::builder().cookie_store(true).build()?;
    let post = |path: &str, body: Value| browser.post(format!("{}{path}", running.url)).header("Origin", &running.url).json(&body).send();
    let answer = post("/api/setup", json!({ "token": setup, "name": ACCOUNT, "password": password })).await?;
    read(answer).await.context("the set-up failed")?;
    let answer = post("/api/tokens", json!({ "name": "demo", "scopes": ["read", "dispatch", "manage", "admin"] })).await?;
    let fresh = read(answer).await.context("no API token was made")?;
    Ok(fresh["text"].as_str().unwrap_or_default().to_owned())
}

/// The main job.
async fn play(client: &Client, scratch: &Path, peer: &mut Option<Child>, say: &impl Fn(&str)) -> anyhow::Result<Report> {
    let mut events = client.follow("/api/events").await?;
    let invited = Instant::now();
    let invite = client.post("/api/nodes/invite", json!({ "name": "demo-machine" })).await?;
    *peer = Some(start_peer(scratch, invite["yaml"].as_str().unwrap_or_default())?);
    let node_id = loop {
        let event = events.next().await?;
        if event.name == "node" && event.data["data"]["state"] == "online" {
            break text(&event.data["data"]["node_id"]);
        }
    };
    let online_ms = millis(invited);
    say(&format!("A peer joined by an invite and came online after {online_ms} ms: node {node_id}"));
    let session = text(&client.post("/api/sessions", json!({ "title": "Demo" })).await?["id"]);
    client.post(&format!("/api/sessions/{session}/nodes/{node_id}"), Value::Null).await?;
    say("It is attached to a new session.\n");
    let mut first_byte_ms = None;
    let mut tasks = Vec::new();
    for (shown, body) in [("uname -a", json!({ "argv": ["uname", "-a"] })), (COUNT, json!({ "script": COUNT }))] {
        say(&format!("$ {shown}"));
        let (task, first) = run_task(client, &session, body, say).await?;
        first_byte_ms.get_or_insert(first);
        say(&format!(
            "  [{}, exit code {}, first output after {first} ms]\n",
            task.state,
            task.exit_code.map_or("none".into(), |code| code.to_string())
        ));
        if task.state != "succeeded" {
            bail!("task {} is {}", task.id, task.state);
        }
        tasks.push(task);
    }
    Ok(Report { node_id, online_ms, first_byte_ms: first_byte_ms.unwrap_or_default(), tasks })
}

/// Dispatches a task and follows it to its end, printing what it prints as it appears.
async fn run_task(client: &Client, session: &str, body: Value, say: &impl Fn(&str)) -> anyhow::Result<(TaskReport, u64)> {
    let dispatched = Instant::now();
    let task = client.post(&format!("/api/sessions/{session}/dispatch"), body).await?;
    let id = text(&task["id"]);
    let mut stream = client.follow(&format!("/api/tasks/{id}/stream")).await?;
    let (mut output, mut first) = (String::new(), None);
    loop {
        let event = stream.next().await?;
        if event.name == "output" {
            first.get_or_insert_with(|| millis(dispatched));
            let piece = event.data["data"].as_str().unwrap_or_default();
            piece.lines().for_each(|line| say(&format!("  {line}")));
            output.push_str(piece);
        }
        // The stream tells the final state behind all output; the API, asked meanwhile, may tell it before.
        let task = &event.data;
        if event.name == "task" && !task["finished_at_ms"].is_null() {
            let first = first.context("the task printed nothing")?;
            return Ok((TaskReport { id, state: text(&task["state"]), exit_code: task["exit_code"].as_i64(), output }, first));
        }
    }
}

fn start_peer(scratch: &Path, yaml: &str) -> anyhow::Result<Child> {
    let program = sibling("cortex-peer")?;
    let config = scratch.join("peer.yaml");
    let mut text = yaml.to_owned();
    for (key, folder) in [("state_dir", "peer-state"), ("workspace_dir", "workspaces")] {
        writeln!(text, "{key}: {}", Value::from(scratch.join(folder).to_string_lossy().into_owned()))?;
    }
    write_private(&config, &text)?;
    let log = std::fs::File::create(scratch.join("peer.log")).context("cannot write the peer's log")?;
    let mut command = Command::new(&program);
    command.arg("run").arg("--config").arg(&config);
    #[cfg(unix)]
    if rustix::process::geteuid().is_root() {
        command.arg("--allow-root");
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let path = own.with_file_name(name);
    if !path.is_file() {
        bail!("there is no {name} beside {}; build it with: cargo build --workspace --bins", own.display());
    }
    Ok(path)
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let mut file = options.open(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

/// SIGTERM, and patience; then SIGKILL.
async fn end(peer: &mut Child) {
    #[cfg(unix)]
    if let Some(pid) = peer.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(Duration::from_secs(8), peer.wait()).await.is_err() {
        let _ = peer.kill().await;
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_else(|_| "(none)".into());
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

async fn read(answer: reqwest::Response) -> anyhow::Result<Value> {
    let status = answer.status();
    let body = answer.bytes().await?;
    if !status.is_success() {
        bail!("{status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? })
}

/// The API, with a token.
struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn new(url: &str, token: &str) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {token}").parse()?);
        Ok(Self { http: reqwest::Client::builder().default_headers(headers).build()?, url: url.to_owned() })
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        let mut request = self.http.post(format!("{}{path}", self.url));
        if !body.is_null() {
            request = request.json(&body);
        }
        read(request.send().await?).await.with_context(|| format!("POST {path} failed"))
    }

    async fn follow(&self, path: &str) -> anyhow::Result<EventStream> {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await?.error_for_status()?;
        Ok(EventStream { body: Box::pin(answer.bytes_stream()), buffer: Vec::new() })
    }
}

/// One server-sent event.
struct ServerEvent {
    name: String,
    data: Value,
}

type Body = std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>;

struct EventStream {
    body: Body,
    buffer: Vec<u8>,
}

impl EventStream {
    async fn next(&mut self) -> anyhow::Result<ServerEvent> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = parse_event(&String::from_utf8_lossy(&block)) {
                    return Ok(event);
                }
                continue;
            }
            let piece = self.body.next().await.context("the hub ended the event stream")??;
            self.buffer.extend_from_slice(&piece);
        }
    }
}

/// `None` for comments, which keep the connection alive.
fn parse_event(block: &str) -> Option<ServerEvent> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let data = serde_json::from_str(field("data: ")?).ok()?;
    Some(ServerEvent { name: field("event: ").unwrap_or("message").to_owned(), data })
}

/// A folder of one's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let name = format!("cortex-demo-{}", BASE64URL_NOPAD.encode(&clock::random::<6>()));
        let path = std::env::temp_dir().join(name);
        cortex_runtime::keyfile::make_private_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_and_comments_skipped() {
        let event = parse_event("id: 1\nevent: node\ndata: {\"a\":1}\n\n").unwrap();
        assert_eq!((event.name.as_str(), &event.data["a"]), ("node", &json!(1)));
        assert!(parse_event(": still here\n\n").is_none());
    }
}
