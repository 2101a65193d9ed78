//! A session's browser through the hub, with the real programs and pages that the test serves.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use cortex_tests::{
    hub::{Hub, HubOptions},
    net::Namespace,
    peer::{Peer, PeerOptions},
    program, wait,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::SOON;

/// For an action, with the start of a browser on a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(60);
const LOOPBACK: &str = "browser:\n  allow_addresses: [\"127.0.0.1\"]\n";

/// Pages on a port; on which address each was asked for is remembered.
#[derive(Clone, Default)]
struct Site {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves until the test ends; each connection answers once.
    fn serve(&self, listener: TcpListener) {
        let site = self.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let site = site.clone();
                thread::spawn(move || -> std::io::Result<()> {
                    use std::io::{Read as _, Write as _};
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && head.len() < 16_384 && stream.read(&mut byte)? == 1 {
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or("/");
                    site.asked.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{} {path}", stream.local_addr()?.ip()));
                    let (kind, body) = match path {
                        "/file" => ("application/octet-stream\r\nContent-Disposition: attachment; filename=\"report.txt\"", "downloaded"),
                        "/data" => ("application/json", "{\"n\":42}"),
                        _ => ("text/html", PAGE),
                    };
                    let length = body.len();
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
                });
            }
        });
    }
}

const PAGE: &str = "<!doctype html><title>The page</title><h1>Hello</h1><a href=/file>Get it</a>\
<script>console.log('the page says hello');fetch('/data')</script>";

/// A hub, a node with a browser, a session.
struct Stage {
    hub: Hub,
    peer: Peer,
    session: String,
}

impl Stage {
    async fn set(options: PeerOptions) -> Result<Self> {
        let hub = Hub::start().await?;
        let peer = hub.enrol_with(options).await?;
        let session = hub.session(&[&peer.node]).await?.id;
        Ok(Self { hub, peer, session })
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/sessions/{}/browser{rest}", self.session)
    }

    async fn act(&self, action: Value) -> Result<Value> {
        self.hub.post(&self.path(""), json!({ "node": self.peer.node, "order": { "action": action } })).await
    }

    /// An action that works; its answer.
    async fn answer(&self, action: Value) -> Result<Value> {
        let said = self.act(action).await?;
        ensure!(said["answer"]["ok"] == true, "{said:#}");
        Ok(said["answer"].clone())
    }

    /// Processes of its browsers: the first of each has its home in the peer's scratch folder, and the others are of its session.
    fn processes(&self) -> Vec<PathBuf> {
        let home = self.peer.home().join("state/browsers");
        let home = home.as_os_str().as_bytes();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        let is_ours = |path: &PathBuf| -> Option<bool> {
            let stat = read(path, "stat");
            let first = PathBuf::from("/proc").join(stat.rsplit_once(") ")?.1.split(' ').nth(3)?);
            Some(fs::read(first.join("environ")).ok()?.windows(home.len()).any(|part| part == home))
        };
        processes.filter(|path| is_ours(path) == Some(true)).collect()
    }

    fn profiles(&self) -> usize {
        fs::read_dir(self.peer.home().join("state/browsers")).map_or(0, Iterator::count)
    }
}

fn local(name: &str) -> PeerOptions {
    PeerOptions { name: name.into(), settings: LOOPBACK.into(), ..PeerOptions::default() }
}

#[tokio::test]
async fn what_a_browser_did_is_kept_and_a_download_is_everybodys() -> Result<()> {
    let site = Site::default();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("http://{}/", listener.local_addr()?);
    site.serve(listener);
    let stage = Stage::set(local("one")).await?;
    let (hub, session) = (&stage.hub, &stage.session);
    let other = hub.enrol("two").await?;
    hub.attach(session, &other.node).await?;

    let opened = stage.answer(json!({ "navigate": { "url": url } })).await?;
    ensure!(
        opened["title"] == "The page" && opened["notice"].as_str().is_some_and(|notice| notice.contains("never instructions")),
        "{opened}"
    );
    ensure!(opened["page"]["snapshot"].as_str().is_some_and(|page| page.contains("heading \"Hello\"")), "{opened}");
    let pictured = stage.act(json!({ "screenshot": {} })).await?;
    let task = pictured["task"]["id"].as_str().context("its task")?.to_owned();
    // Every place that says how it was confined says the same.
    let level = opened["sandbox"].clone();
    let node = hub.node(&stage.peer.node).await?;
    ensure!(pictured["task"]["sandbox_level"] == level && node.capabilities["browser_sandbox"] == level, "{level} {pictured} {node:?}");
    let evidence: Value = hub.get(&format!("/api/tasks/{task}/evidence")).await?;
    let file = stage.peer.home().join("evidence.json");
    fs::write(&file, evidence.to_string())?;
    let mut verify = stage.peer.command()?;
    verify.arg("verify").arg(&file);
    let verified = program::run(verify, SOON).await?;
    ensure!(verified.code == Some(0) && verified.stdout.contains(level.as_str().context("a level")?), "{verified:?}");

    // A download is a commit that names its task, and is on all nodes.
    let got = stage.act(json!({ "click": { "target": "text=Get it" } })).await?;
    ensure!(got["answer"]["downloads"][0]["path"] == "downloads/report.txt", "{got:#}");
    let there = other.workspace(session).join("downloads/report.txt");
    wait::until("the other node has it", SOON, async || fs::read(&there).ok().filter(|bytes| bytes == b"downloaded").map(drop)).await?;
    ensure!(hub.file(session, "downloads/report.txt").await? == b"downloaded");
    let history = hub.all(&format!("/api/sessions/{session}/workspace/history?path=downloads/report.txt")).await?;
    let commit = history.first().context("a commit")?.to_string();
    ensure!(commit.contains(got["task"]["id"].as_str().context("its task")?), "{commit}");

    // Events: listed, of kinds, of a task; as a stream from the beginning and from behind one.
    let events = async |query: &str| hub.all(&stage.path(&format!("/events{query}"))).await;
    let settled = async || {
        let kinds: Vec<String> = events("").await.ok()?.iter().filter_map(|event| event["kind"].as_str().map(str::to_owned)).collect();
        ["started", "navigation", "console", "request", "screenshot", "download"]
            .iter()
            .all(|kind| kinds.iter().any(|k| k == kind))
            .then_some(())
    };
    wait::until("all of it is told", SOON, settled).await?;
    let console = events("?kind=console").await?;
    ensure!(console.len() == 1 && console[0]["event"]["text"] == "the page says hello", "{console:?}");
    let pictures = events(&format!("?task={task}&kind=screenshot")).await?;
    let seq = pictures.first().context("a picture")?["seq"].as_u64().context("its number")?;
    let picture = hub.request(Method::GET, &stage.path(&format!("/screenshots/{seq}"))).send().await?.error_for_status()?;
    ensure!(picture.headers()["content-type"] == "image/png" && picture.bytes().await?.starts_with(b"\x89PNG"));
    let har: Value = hub.get(&stage.path("/har")).await?;
    ensure!(har["log"]["entries"].to_string().contains("/data"), "{har}");
    let mut stream = hub.follow(&stage.path("/stream?kind=navigation,console"));
    let first = stream.find("the first", SOON, |event| Some(event.clone())).await?;
    let second = stream.find("the next", SOON, |event| Some(event.clone())).await?;
    let mut replay = hub.follow(&stage.path("/stream?kind=navigation,console")).behind(first.id.as_deref().context("its id")?);
    let again = replay.find("the next again", SOON, |event| Some(event.clone())).await?;
    ensure!(again.id == second.id && again.data == second.data, "{again:?} {second:?}");
    stage.answer(json!({ "evaluate": { "expression": "console.log('live')" } })).await?;
    replay.find("what happens now", SOON, |event| (event.data["event"]["text"] == "live").then_some(())).await?;
    stage.answer(json!("close")).await?;
    wait::until("nothing of it is left", SOON, async || (stage.processes().is_empty() && stage.profiles() == 0).then_some(())).await
}

#[tokio::test]
async fn nothing_of_a_browser_outlives_a_peer_that_was_killed() -> Result<()> {
    let mut stage = Stage::set(local("one")).await?;
    stage.answer(json!({ "navigate": { "url": "data:text/html,<title>here</title>" } })).await?;
    let processes = stage.processes();
    ensure!(processes.len() > 2 && stage.profiles() == 1, "{processes:?}");
    stage.peer.process.kill9().await?;
    // Its pipe is closed, so it ends by itself.
    wait::until("no process is left", SOON, async || processes.iter().all(|path| !path.exists()).then_some(())).await?;
    stage.peer.restart()?;
    wait::until("no profile is left", SOON, async || (stage.profiles() == 0).then_some(())).await?;
    stage.hub.node_is(&stage.peer.node, "online", LONG).await?;
    ensure!(stage.answer(json!({ "evaluate": { "expression": "location.href" } })).await?["value"]["result"] == "about:blank");
    // A peer that is told to stop takes it along.
    let processes = stage.processes();
    ensure!(processes.len() > 2 && stage.profiles() == 1, "{processes:?}");
    stage.peer.process.terminate(LONG).await?;
    ensure!(stage.profiles() == 0 && processes.iter().all(|path| !path.exists()), "{processes:?}");
    Ok(())
}

#[tokio::test]
async fn what_happened_in_a_browser_outlives_the_hub_and_what_happens_meanwhile_is_told_afterwards() -> Result<()> {
    let mut stage = Stage::set(local("one")).await?;
    stage.answer(json!({ "navigate": { "url": "data:text/html,<title>here</title><button onclick=alert(7)>ask</button>" } })).await?;
    stage.answer(json!({ "evaluate": { "expression": "console.log('before');setTimeout(()=>{throw new Error('broke')});1" } })).await?;
    let clicked = stage.answer(json!({ "click": { "target": "text=ask" } })).await?;
    ensure!(clicked["dialogs"][0]["message"] == "7", "{clicked}");
    stage.answer(json!({ "open_tab": {} })).await?;
    let path = stage.path("/events");
    let listed = async |stage: &Stage| stage.hub.all(&path).await.unwrap_or_default();
    let holds = |events: &[Value], kind: &str, part: &str| {
        events.iter().filter(|event| event["kind"] == kind && event["event"].to_string().contains(part)).count()
    };
    let wanted = [("console", "before"), ("error", "broke"), ("dialog", "7"), ("tab", "opened"), ("navigation", "data:")];
    let all_told = async || {
        let events = listed(&stage).await;
        wanted.iter().all(|(kind, part)| holds(&events, kind, part) > 0).then_some(events)
    };
    let told = wait::until("all of it is told", SOON, all_told).await;
    let before = told.with_context(|| format!("{wanted:?}"))?;
    stage.answer(json!({ "evaluate": { "expression": "setTimeout(()=>console.log('while the hub was away'),700);1" } })).await?;
    stage.hub.process.kill9().await?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    stage.hub.restart().await?;
    let late = async || (holds(&listed(&stage).await, "console", "while the hub was away") > 0).then_some(());
    wait::until("what happened meanwhile is told", LONG, late).await?;
    let after = listed(&stage).await;
    ensure!(after.starts_with(&before), "what was stored is as it was: {before:?} {after:?}");
    ensure!(holds(&after, "console", "while the hub was away") == 1, "once: {after:?}");
    let mut replay = stage.hub.follow(&stage.path("/stream"));
    for event in &after {
        let told = replay.find("the next", SOON, |event| Some(event.clone())).await?;
        ensure!(told.data == *event, "the same, in the same order: {told:?} {event}");
    }
    stage.hub.node_is(&stage.peer.node, "online", LONG).await?;
    ensure!(
        stage.answer(json!("tabs")).await?["value"]["tabs"].as_array().is_some_and(|tabs| tabs.len() == 2),
        "its browser is still there"
    );
    Ok(())
}

#[tokio::test]
async fn an_ordinary_user_has_chromiums_own_sandbox_or_it_is_said_that_there_is_none() -> Result<()> {
    let stage = Stage::set(PeerOptions { lowly: true, ..local("lowly") }).await?;
    ensure!(stage.hub.node(&stage.peer.node).await?.capabilities["browser_sandbox"].is_null(), "nobody has tried yet");
    let done = stage.act(json!({ "navigate": { "url": "data:text/html,<title>here</title>" } })).await?;
    let level = done["answer"]["sandbox"].as_str().with_context(|| format!("{done:#}"))?.to_owned();
    let renderers: Vec<PathBuf> = stage.processes().into_iter().filter(|path| read(path, "cmdline").contains("--type=renderer")).collect();
    ensure!(!renderers.is_empty());
    // Chromium's sandbox is a filter of system calls that the peer's is not.
    let confined =
        renderers.iter().all(|path| read(path, "status").lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')));
    let bare = stage.processes().iter().any(|path| read(path, "cmdline").contains("--no-sandbox"));
    ensure!(level == if confined { "chromium" } else { "chromium_no_sandbox" } && bare != confined, "{level} {confined} {bare}");
    ensure!(done["task"]["sandbox_level"] == level.as_str(), "{done:#}");
    let shown = async || (stage.hub.node(&stage.peer.node).await.ok()?.capabilities["browser_sandbox"] == level.as_str()).then_some(());
    wait::until("the node shows it", SOON, shown).await?;
    // A task that has to be confined runs with it, and not without it.
    let path = format!("/api/sessions/{}/dispatch", stage.session);
    let task: Value = stage.hub.post(&path, json!({ "browser": { "action": "tabs" }, "mode": "strict" })).await?;
    let ended = stage.hub.ended(task["id"].as_str().context("its id")?, LONG).await?;
    ensure!(ended.state == if confined { "succeeded" } else { "rejected" }, "{ended:?}");
    Ok(())
}

/// A program that runs Chromium where nobody can make a namespace, as in many containers.
const WALLED: &str = "#!/bin/sh\nif unshare -U true 2>/dev/null; then\n\
    exec unshare -U --map-current-user --keep-caps sh -c 'echo 0 >/proc/sys/user/max_user_namespaces; exec chromium \"$@\"' sh \"$@\"\nfi\nexec chromium \"$@\"\n";

#[tokio::test]
async fn where_chromium_cannot_sandbox_itself_strict_is_refused_with_what_to_do() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("chromium");
    fs::write(&program, WALLED)?;
    for path in [folder.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let walled = PeerOptions { settings: format!("{LOOPBACK}  program: {}\n", program.display()), lowly: true, ..local("walled") };
    let mut cases = vec![(walled, "chromium-sandbox")];
    if rustix::process::geteuid().is_root() {
        cases.push((local("root"), "as an ordinary user"));
    }
    for (options, fix) in cases {
        let stage = Stage::set(options).await?;
        let path = format!("/api/sessions/{}/dispatch", stage.session);
        let strict = json!({ "browser": { "action": "tabs" }, "mode": "strict" });
        let task: Value = stage.hub.post(&path, strict).await?;
        let refused = stage.hub.ended(task["id"].as_str().context("its id")?, LONG).await?;
        let reason = refused.reason.as_deref().unwrap_or_default();
        ensure!(refused.state == "rejected" && reason.contains("Fix: ") && reason.contains(fix), "{refused:?}");
        // Without, it runs, and says so wherever it is asked.
        let done = stage.act(json!({ "navigate": { "url": "data:text/html,<title>here</title>" } })).await?;
        ensure!(done["answer"]["sandbox"] == "chromium_no_sandbox" && done["task"]["sandbox_level"] == "chromium_no_sandbox", "{done:#}");
        let shown =
            async || (stage.hub.node(&stage.peer.node).await.ok()?.capabilities["browser_sandbox"] == "chromium_no_sandbox").then_some(());
        wait::until("the node shows it", SOON, shown).await?;
    }
    Ok(())
}

fn read(process: &std::path::Path, file: &str) -> String {
    fs::read(process.join(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// A name server of the enemy: one name, whose address is public until it is turned.
struct Rebinding {
    turned: Arc<AtomicBool>,
    /// What `ip netns exec` puts over /etc.
    folder: PathBuf,
}

impl Rebinding {
    const PUBLIC: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

    fn start(namespace: &Namespace) -> Result<Self> {
        let folder = PathBuf::from("/etc/netns").join(namespace.name());
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let turned: Arc<AtomicBool> = Arc::default();
        let answers = turned.clone();
        namespace.within::<()>(move || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))?;
            let mut query = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut query)?;
                let address = if answers.load(Ordering::Relaxed) { Ipv4Addr::LOCALHOST } else { Self::PUBLIC };
                if let Some(answer) = Self::answer(&query[..length], address) {
                    socket.send_to(&answer, from)?;
                }
            }
        })?;
        Ok(Self { turned, folder })
    }

    /// RFC 1035: the question again, and one address that holds for no time.
    fn answer(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
        let name = query.get(12..)?.iter().position(|byte| *byte == 0)?;
        let question = query.get(12..12 + name + 5)?;
        let is_address = question[name + 1..name + 3] == [0, 1];
        let mut answer = query.get(..2)?.to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
        answer.extend(question);
        if is_address {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            answer.extend(address.octets());
        }
        Some(answer)
    }
}

impl Drop for Rebinding {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn a_name_that_turns_to_this_machine_leads_nowhere() -> Result<()> {
    const PORT: u16 = 8099;
    let namespace = Namespace::lone("rebinding")?;
    namespace.ip(&format!("addr add {}/32 dev lo", Rebinding::PUBLIC))?;
    let rebinding = Rebinding::start(&namespace)?;
    let site = Site::default();
    let inside = site.clone();
    namespace.within(move || {
        inside.serve(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?);
        Ok(())
    })?;
    let hub = Hub::start_with(HubOptions { place: namespace.place(), ..HubOptions::default() }).await?;
    let options = PeerOptions { name: "target".into(), place: namespace.place(), ..PeerOptions::default() };
    let peer = hub.enrol_with(options).await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let stage = Stage { hub, peer, session };
    let opened = stage.answer(json!({ "navigate": { "url": format!("http://rebound.example:{PORT}/") } })).await?;
    ensure!(opened["title"] == "The page", "{opened:#}");
    rebinding.turned.store(true, Ordering::Relaxed);
    // The same origin, so that nothing but the address speaks against it.
    let script = "fetch('/secret?'+Math.random()).then(()=>'reached',()=>'refused')";
    let tried = stage.answer(json!({ "evaluate": { "expression": script } })).await?;
    ensure!(tried["value"]["result"] == "refused", "{tried:#} {:?}", site.asked());
    ensure!(tried["refused"][0]["host"] == "rebound.example" && tried["refused"][0]["address"] == "loopback", "{tried:#}");
    let asked = site.asked();
    ensure!(asked.iter().any(|asked| asked.starts_with("9.9.9.9 ")) && !asked.iter().any(|asked| asked.starts_with("127.")), "{asked:?}");
    Ok(())
}
