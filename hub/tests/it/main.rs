//! The program `cortex-hub` as a person runs it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

fn cortex_hub(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cortex-hub"));
    // Whoever runs the tests may have a hub of their own.
    command.env_clear().env("HOME", data).env("CORTEX_HUB_DATA_DIR", data.join("data"));
    command
}

fn run(data: &Path, arguments: &[&str]) -> Output {
    cortex_hub(data).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A hub that serves; killed when dropped.
struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
    url: String,
}

impl Serving {
    fn start(data: &Path) -> Self {
        let mut command = cortex_hub(data);
        command.args(["serve", "--listen", "127.0.0.1:0", "--relay-listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut serving = Self { child, stdout, url: String::new() };
        serving.url = serving.line_with("ready at ").split_once("ready at ").unwrap().1.to_owned();
        serving
    }

    fn line_with(&mut self, wanted: &str) -> String {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the hub ended without a line with {wanted:?}");
        }
        line.trim().to_owned()
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    async fn call(&self, path: &str, token: Option<&str>, body: Option<Value>) -> (u16, Value) {
        let client = reqwest::Client::new();
        let url = format!("{}{path}", self.url);
        let mut request = body.map_or_else(|| client.get(&url), |body| client.post(&url).json(&body));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_help_teaches() {
    let home = tempfile::tempdir().unwrap();
    let help = run(home.path(), &["--help"]);
    assert!(help.status.success());
    for part in ["cortex-hub serve", "Exit codes", "/var/lib/cortex-hub", "CORTEX_HUB_", "admin create-user"] {
        assert!(text(&help.stdout).contains(part), "{part} is missing in\n{}", text(&help.stdout));
    }
    assert!(text(&run(home.path(), &["--version"]).stdout).starts_with("cortex-hub 0."));
    assert!(text(&run(home.path(), &["config"]).stdout).contains("#public_url:"));
    let document: Value = serde_json::from_slice(&run(home.path(), &["openapi"]).stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn settings_that_cannot_be_used_are_refused_with_exit_code_2() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("hub.yaml");
    std::fs::write(&file, "listen: 127.0.0.1:1\nrelay:\n  lisen: 0.0.0.0:1\n").unwrap();
    let refused = run(home.path(), &["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("unknown key `lisen` in hub.yaml line 3; did you mean `listen`?"), "{}", text(&refused.stderr));
    assert_eq!(run(home.path(), &["serve", "--public-url", "not an address"]).status.code(), Some(2));
    assert_eq!(run(home.path(), &["serve", "--config", "/nowhere.yaml"]).status.code(), Some(2));
    let environment = cortex_hub(home.path()).env("CORTEX_HUB_LISTEN", "nonsense").arg("serve").output().unwrap();
    assert_eq!(environment.status.code(), Some(2));
    assert!(text(&environment.stderr).contains("CORTEX_HUB_LISTEN"), "{}", text(&environment.stderr));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let home = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = run(home.path(), &["serve", "--listen", &address, "--relay-listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains(&format!("cannot listen on {address}")), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn an_operator_makes_accounts_while_the_hub_is_stopped_and_it_serves_them() {
    let home = tempfile::tempdir().unwrap();
    let mut create = cortex_hub(home.path());
    create.args(["admin", "create-user", "ada", "--role", "admin", "--password-stdin"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = create.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a long and silly password\n").unwrap();
    assert!(child.wait().unwrap().success());
    let made = run(home.path(), &["admin", "create-user", "bob"]);
    assert!(text(&made.stdout).contains("password: "), "{}", text(&made.stdout));
    let token = text(&run(home.path(), &["admin", "create-token", "ada", "--scope", "read", "--scope", "manage"]).stdout).trim().to_owned();
    assert!(token.starts_with("cxt_"), "{token}");
    assert_eq!(run(home.path(), &["admin", "reset-password", "nobody"]).status.code(), Some(1));

    let serving = Serving::start(home.path());
    let (status, me) = serving.call("/api/me", Some(&token), None).await;
    assert_eq!((status, &me["name"], &me["scopes"]), (200, &json!("ada"), &json!(["read", "manage"])));
    let login = json!({"name": "ada", "password": "a long and silly password"});
    assert_eq!(serving.call("/api/login", None, Some(login)).await.0, 200);
    let refused = run(home.path(), &["admin", "create-user", "eve"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("stop it"), "{}", text(&refused.stderr));
}

#[tokio::test]
async fn a_hub_is_ready_soon_says_how_to_begin_and_stops_when_told() {
    let home = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let mut serving = Serving::start(home.path());
    let link = serving.line_with("/#setup=");
    assert_eq!(serving.call("/readyz", None, None).await.0, 200);
    // The target is 2 s on a quiet machine.
    assert!(began.elapsed() < Duration::from_secs(10), "ready after {:?}", began.elapsed());
    let token = link.split_once("#setup=").unwrap().1;
    let setup = json!({"token": token, "name": "ada", "password": "a long and silly password"});
    assert_eq!(serving.call("/api/setup", None, Some(setup)).await.0, 200);

    // An open stream does not hold the end up.
    let mut stream = std::net::TcpStream::connect(serving.url.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    let told = Instant::now();
    serving.signal("-TERM");
    let status = serving.child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    // The grace period for requests under way is 5 s; there were none.
    assert!(told.elapsed() < Duration::from_millis(4500), "it took {:?}", told.elapsed());

    // What was acknowledged is there after a kill, too.
    let serving = Serving::start(home.path());
    let login = json!({"name": "ada", "password": "a long and silly password"});
    assert_eq!(serving.call("/api/login", None, Some(login.clone())).await.0, 200);
    serving.signal("-KILL");
    drop(serving);
    let serving = Serving::start(home.path());
    assert_eq!(serving.call("/api/login", None, Some(login)).await.0, 200);
}
