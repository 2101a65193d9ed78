//! The browser skill with a real Chromium, against a hub that is played by the test and pages that the test serves.

mod hostile;
mod site;
mod visible;
mod walls;
mod words;

use std::{path::Path, sync::Arc, time::Duration};

use cortex_peer::{
    browser::{Allowed, BrowserOptions},
    task::Tasks,
};
use cortex_wire::schema::{BrowserTask, TaskRequest, task_request::Kind};
use serde_json::{Value, json};

use crate::hub::{Hub, Over, Talk, script};
use site::Site;

/// A node with a browser, and pages that it may see.
struct Bench {
    hub: Hub,
    tasks: Tasks,
    site: Site,
}

fn options(folder: &Path, allow: &[&str]) -> BrowserOptions {
    BrowserOptions {
        program: None,
        scratch_dir: folder.join("state/browsers"),
        workspace_dir: folder.join("work"),
        allowed: Arc::new(Allowed(allow.iter().map(|network| network.parse().unwrap()).collect())),
        screen: None,
        idle: Duration::from_secs(600),
        download_bytes: 1 << 30,
    }
}

impl Bench {
    async fn new() -> Self {
        Self::allowing(&["127.0.0.1", "::1"]).await
    }

    async fn allowing(allow: &[&str]) -> Self {
        let mut hub = Hub::new();
        hub.browser = Some(options(hub.path(), allow));
        let tasks = hub.tasks();
        Self { hub, tasks, site: Site::start().await }
    }

    fn request(&self, order: &Value) -> TaskRequest {
        TaskRequest { kind: Some(Kind::Browser(BrowserTask { order: order.to_string().into() })), ..self.hub.request(script("")) }
    }

    async fn begin(&self, order: &Value) -> Talk {
        self.hub.start(&self.tasks, &self.request(order)).await
    }

    async fn over(&self, order: &Value) -> (Value, Over) {
        let over = self.begin(order).await.finish().await;
        (serde_json::from_slice(&over.stdout).unwrap_or_else(|_| panic!("no answer to {order}: {over:?}")), over)
    }

    /// An answer, whatever it says.
    async fn ask(&self, order: Value) -> Value {
        self.over(&order).await.0
    }

    /// An action that works.
    async fn act(&self, action: Value) -> Value {
        let answer = self.ask(json!({ "action": action })).await;
        assert_eq!(answer["ok"], true, "{action}: {answer:#}");
        answer
    }

    /// An action that does not; its code.
    async fn fails(&self, action: Value) -> (String, Value) {
        let answer = self.ask(json!({ "action": action, "timeout_ms": 8000 })).await;
        assert_eq!(answer["ok"], false, "{action}: {answer:#}");
        (answer["code"].as_str().unwrap().to_owned(), answer)
    }

    async fn open(&self, path: &str) -> Value {
        self.act(json!({ "navigate": { "url": self.site.url(path) } })).await
    }

    async fn value(&self, expression: &str) -> Value {
        self.act(json!({ "evaluate": { "expression": expression } })).await["value"]["result"].clone()
    }

    async fn end(self) {
        self.tasks.browsers().unwrap().close_all().await;
        assert_eq!(std::fs::read_dir(self.hub.path().join("state/browsers")).unwrap().count(), 0, "a profile is left behind");
    }
}

/// What an answer shows of the page.
fn shown(answer: &Value) -> String {
    let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    [text("/page/snapshot"), text("/page/diff"), text("/value/snapshot"), text("/value/found")].concat()
}

/// The ref in the line that holds this text.
fn reference(answer: &Value, part: &str) -> String {
    let shown = shown(answer);
    let line = shown.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part:?} is not in:\n{shown}\n{answer:#}"));
    let is_ref = |word: &&str| word.starts_with('s') && word.contains('e') && word[1..].chars().all(|c| c.is_ascii_digit() || c == 'e');
    line.split_whitespace().find(is_ref).unwrap().to_owned()
}

#[tokio::test]
async fn forms_are_filled_in_by_refs_selectors_and_texts() {
    let bench = Bench::new().await;
    let form = bench.open("form").await;
    let text = shown(&form);
    assert!(text.contains("heading \"Form\"") && text.contains("textbox \"Name\"") && text.contains("[disabled]"), "{text}");
    assert_eq!((form["title"].as_str(), form["tab"].as_str()), (Some("form"), Some("t1")));
    assert!(form["notice"].as_str().unwrap().contains("never instructions"));
    bench.act(json!({ "fill": { "target": reference(&form, "textbox \"Name\""), "value": "Ada & Bob ë" } })).await;
    let filled = bench.act(json!({ "fill": { "target": "#pw", "value": "hunter2" } })).await;
    assert!(!filled.to_string().contains("hunter2"), "{filled}");
    bench.act(json!({ "fill": { "target": "input[type=date]", "value": "2026-11-22" } })).await;
    bench.act(json!({ "type": { "target": reference(&form, "textbox \"Note\""), "text": " and New ö!" } })).await;
    bench.act(json!({ "select": { "target": "select", "values": ["Green"] } })).await;
    let checked = bench.act(json!({ "check": { "target": reference(&form, "I agree") } })).await;
    assert!(shown(&checked).contains("[checked"), "{checked:#}");
    bench.act(json!({ "check": { "target": "text=Large" } })).await;
    let sent = bench.act(json!({ "click": { "target": "text=Send" } })).await;
    assert!(shown(&sent).contains("+"), "a change is told: {sent:#}");
    let out = bench.value("document.getElementById('out').textContent").await;
    assert_eq!(out, "sent name=Ada & Bob ë&pw=hunter2&day=2026-11-22&note=old and New ö!&color=g&agree=on&size=l");

    bench.act(json!({ "double_click": { "target": "#dbl" } })).await;
    bench.act(json!({ "hover": { "target": "#hov" } })).await;
    assert_eq!(
        bench.value("document.getElementById('dbl').textContent+' '+document.getElementById('hov').textContent").await,
        "twice pointed at"
    );
    bench.act(json!({ "press": { "target": "#keys", "key": "Control+k" } })).await;
    assert_eq!(bench.value("document.title").await, "key k ctrl");
    bench.act(json!({ "click": { "target": "text=Far away" } })).await;
    assert_eq!(bench.value("document.title").await, "far clicked");
    bench.act(json!({ "scroll": { "dy": -5000 } })).await;
    bench.act(json!({ "wait_for": { "ms": 100 } })).await;
    assert_eq!(bench.value("scrollY").await, 0);
    bench.act(json!({ "scroll": { "target": "#far" } })).await;
    assert_ne!(bench.value("scrollY").await, 0);
    assert_eq!(bench.act(json!({ "evaluate": { "expression": "e => e.id", "target": "text=Far away" } })).await["value"]["result"], "far");
    let read = bench.act(json!({ "read_text": { "budget": 256 } })).await;
    assert!(read["value"]["text"].as_str().unwrap().contains("Form"), "{read}");

    assert_eq!(bench.fails(json!({ "click": { "target": "text=Never" } })).await.0, "disabled");
    assert_eq!(bench.fails(json!({ "click": { "target": "#nothing" } })).await.0, "not_found");
    assert_eq!(bench.fails(json!({ "click": { "target": "label" } })).await.0, "ambiguous_target");
    assert_eq!(bench.fails(json!({ "click": { "target": "((" } })).await.0, "bad_target");
    assert_eq!(bench.fails(json!({ "fill": { "target": "h1", "value": "x" } })).await.0, "not_editable");
    assert_eq!(bench.fails(json!({ "select": { "target": "select", "values": ["Blue"] } })).await.0, "no_such_option");
    bench.end().await;
}

#[tokio::test]
async fn pages_follow_one_another_and_what_is_stale_is_said() {
    let bench = Bench::new().await;
    let form = bench.open("form").await;
    let second = bench.act(json!({ "click": { "target": reference(&form, "link \"Second\"") } })).await;
    assert!(shown(&second).contains("Second page"), "{second:#}");
    assert!(second["url"].as_str().unwrap().ends_with("/second"));
    let (code, stale) = bench.fails(json!({ "click": { "target": reference(&form, "button \"Send\"") } })).await;
    assert_eq!(code, "stale_ref");
    assert!(stale["snapshot"].as_str().unwrap().contains("Second page"), "a fresh look comes with it: {stale:#}");
    assert!(bench.act(json!("back")).await["url"].as_str().unwrap().ends_with("/form"));
    assert!(bench.act(json!("forward")).await["url"].as_str().unwrap().ends_with("/second"));
    bench.value("document.title='changed'").await;
    assert_eq!(bench.act(json!("reload")).await["title"], "second");
    assert_eq!(bench.fails(json!("forward")).await.0, "no_history");

    let spa = bench.open("spa").await;
    let about = bench.act(json!({ "click": { "target": reference(&spa, "link \"About\"") } })).await;
    assert!(shown(&about).contains("heading \"about\""), "{about:#}");
    bench.act(json!({ "click": { "target": "text=Later" } })).await;
    bench.act(json!({ "wait_for": { "text": "arrived late", "url": "#about", "load": "load" } })).await;
    bench.act(json!({ "wait_for": { "gone": "never there", "target": "#later", "idle": true } })).await;
    let unchanged = bench.ask(json!({ "action": { "wait_for": { "ms": 1 } } })).await;
    assert_eq!(unchanged["page"], json!({ "unchanged": true }));
    let (code, late) = bench.fails(json!({ "wait_for": { "text": "it never comes" } })).await;
    assert_eq!(code, "timed_out");
    assert!(late["took_ms"].as_u64().unwrap() < 11_000);

    let leaves = bench.open("leaves").await;
    let away = bench.act(json!({ "click": { "target": reference(&leaves, "Go away") } })).await;
    assert!(shown(&away).contains("Second page"), "a page that navigates while it is clicked: {away:#}");

    let covered = bench.open("covered").await;
    let (code, by) = bench.fails(json!({ "click": { "target": reference(&covered, "button \"under\"") } })).await;
    assert_eq!(code, "covered_by");
    assert!(by["message"].as_str().unwrap().contains("dialog \"banner\""), "{by:#}");
    assert!(by["snapshot"].as_str().unwrap().contains("dialog \"banner\""), "a fresh look comes with it: {by:#}");
    bench.end().await;
}

#[tokio::test]
async fn frames_of_both_kinds_and_shadow_roots_of_both_kinds_are_seen_and_used() {
    let bench = Bench::new().await;
    bench.open("frames").await;
    bench.act(json!({ "wait_for": { "idle": true } })).await;
    let frames = bench.act(json!({ "snapshot": {} })).await;
    let other = reference(&frames, "Inner other");
    bench.act(json!({ "click": { "target": reference(&frames, "Inner same") } })).await;
    bench.act(json!({ "click": { "target": other } })).await;
    bench.act(json!({ "fill": { "target": "[aria-label='field other']", "value": "from outside" } })).await;
    let after = bench.act(json!({ "snapshot": {} })).await;
    let text = shown(&after);
    assert!(text.contains("pressed same") && text.contains("pressed other") && text.contains("\"from outside\""), "{text}");
    assert!(text.lines().any(|line| line.starts_with("  button")), "what is in a frame stands below it: {text}");

    bench.open("shadow").await;
    let shadow = bench.act(json!({ "snapshot": {} })).await;
    for kind in ["open", "closed"] {
        bench.act(json!({ "click": { "target": reference(&shadow, &format!("{kind} button")) } })).await;
        assert_eq!(bench.value("document.title").await, format!("{kind} clicked"));
    }
    bench.end().await;
}

#[tokio::test]
async fn dialogs_popups_files_and_drags_are_dealt_with() {
    let bench = Bench::new().await;
    bench.open("dialogs").await;
    let alert = bench.act(json!({ "click": { "target": "text=alert" } })).await;
    assert_eq!(alert["dialogs"][0]["message"], "hello");
    let confirm = bench.act(json!({ "click": { "target": "text=confirm" } })).await;
    assert_eq!(confirm["dialogs"][0]["type"], "confirm");
    assert_eq!(bench.fails(json!({ "click": { "target": "text=alert" } })).await.0, "dialog_open");
    bench.act(json!({ "dialog": { "accept": true } })).await;
    assert_eq!(bench.value("document.title").await, "said true");
    bench.act(json!({ "click": { "target": "text=prompt" } })).await;
    bench.act(json!({ "dialog": { "accept": true, "text": "Ada" } })).await;
    assert_eq!(bench.value("document.title").await, "got Ada");
    assert_eq!(bench.fails(json!({ "dialog": { "accept": true } })).await.0, "no_dialog");

    bench.open("popup").await;
    bench.act(json!({ "click": { "target": "text=open" } })).await;
    let tabs = bench.act(json!("tabs")).await;
    assert_eq!(tabs["value"]["tabs"].as_array().unwrap().len(), 2, "{tabs:#}");
    bench.act(json!({ "select_tab": { "tab": "t2" } })).await;
    bench.act(json!({ "wait_for": { "text": "Second page" } })).await;
    bench.act(json!({ "close_tab": {} })).await;
    let opened = bench.act(json!({ "open_tab": { "url": bench.site.url("second") } })).await;
    assert_eq!((opened["tab"].as_str(), opened["title"].as_str()), (Some("t3"), Some("second")));
    assert_eq!(bench.fails(json!({ "select_tab": { "tab": "t9" } })).await.0, "no_such_tab");

    let workspace = bench.hub.workspace();
    std::fs::create_dir_all(&workspace).unwrap();
    std::fs::write(workspace.join("mine.txt"), "from the workspace").unwrap();
    std::fs::write(bench.hub.path().join("outside.txt"), "secret").unwrap();
    std::os::unix::fs::symlink(bench.hub.path().join("outside.txt"), workspace.join("link.txt")).unwrap();
    for target in ["input", "text=Choose"] {
        bench.open("upload").await;
        bench.act(json!({ "upload": { "target": target, "paths": ["mine.txt"] } })).await;
        bench.act(json!({ "wait_for": { "ms": 200 } })).await;
        assert_eq!(bench.value("document.title").await, "file mine.txt from the workspace", "{target}");
    }
    assert_eq!(bench.fails(json!({ "upload": { "target": "input", "paths": ["link.txt"] } })).await.0, "bad_file");
    assert_eq!(bench.fails(json!({ "upload": { "target": "input", "paths": ["none"] } })).await.0, "bad_file");

    bench.open("drag").await;
    bench.act(json!({ "drag": { "from": "#a", "to": "#b" } })).await;
    assert_eq!(bench.value("document.title").await, "dropped cargo");
    bench.end().await;
}

#[tokio::test]
async fn downloads_land_in_the_workspace_whatever_a_server_calls_them() {
    let bench = Bench::new().await;
    bench.open("downloads").await;
    for (link, name) in [("hidden", "_.bashrc"), ("passwd", "passwd"), ("report", "report.txt"), ("report", "report (2).txt")] {
        let answer = bench.act(json!({ "click": { "target": format!("text={link}") } })).await;
        let download = &answer["downloads"][0];
        assert_eq!(download["state"], "saved", "{answer:#}");
        let path = download["path"].as_str().unwrap();
        assert!(path.starts_with("downloads/") && !path[10..].contains('/'), "{path}");
        assert!(path.ends_with(name) || link == "hidden" || link == "passwd", "{path} for {name}");
        assert_eq!(std::fs::read(bench.hub.workspace().join(path)).unwrap(), b"evil bytes");
        assert_eq!(download["blake3"], blake3::hash(b"evil bytes").to_hex().to_string());
    }
    let listed = bench.act(json!({ "downloads": { "wait": true } })).await;
    assert_eq!(listed["value"]["downloads"].as_array().unwrap().len(), 4);
    let outside: Vec<_> = std::fs::read_dir(bench.hub.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(outside.len(), 2, "state and work, nothing else: {outside:?}");
    bench.end().await;
}

#[tokio::test]
async fn what_runs_for_ever_is_cancelled_at_once_or_in_its_time() {
    let bench = Bench::new().await;
    bench.open("loop").await;
    let mut talk = bench.begin(&json!({ "action": { "evaluate": { "expression": "while(true){}" } } })).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked = std::time::Instant::now();
    talk.cancel("enough").await;
    let over = talk.finish().await;
    assert_eq!((over.response.state.as_str(), over.response.reason.as_str()), ("cancelled", "enough"));
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!(bench.value("1+1").await, 2, "the page goes on");

    let late = bench.ask(json!({ "action": { "evaluate": { "expression": "new Promise(()=>{})" } }, "timeout_ms": 300 })).await;
    assert_eq!(late["code"], "timed_out");
    let hung = bench.ask(json!({ "action": { "click": { "target": "text=hang" } }, "timeout_ms": 1500 })).await;
    assert!(hung["took_ms"].as_u64().unwrap() < 12_000, "{hung:#}");
    assert_eq!(bench.value("1+2").await, 3, "a handler that hung was ended");

    let never = bench.ask(json!({ "action": { "navigate": { "url": bench.site.url("never") } }, "timeout_ms": 700 })).await;
    assert_eq!(never["code"], "timed_out");
    let mut talk = bench.begin(&json!({ "action": { "navigate": { "url": bench.site.url("never") } } })).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    talk.cancel("changed my mind").await;
    assert_eq!(talk.finish().await.response.state, "cancelled");
    assert_eq!(bench.open("second").await["title"], "second");
    assert_eq!(bench.fails(json!({ "navigate": { "url": bench.site.url("endless") } })).await.0, "too_many_redirects");
    bench.end().await;
}

#[tokio::test]
async fn pictures_paper_cookies_storage_console_and_requests_are_told() {
    let bench = Bench::new().await;
    bench.open("requests").await;
    bench.act(json!({ "wait_for": { "ms": 500 } })).await;
    assert_eq!(bench.value("document.title").await, "ws hi");
    let console = bench.act(json!({ "console": {} })).await["value"].to_string();
    assert!(console.contains("data 42") && console.contains("a mistake") && console.contains("thrown"), "{console}");
    let listed = bench.act(json!({ "network": { "list": { "url": "data.json" } } })).await;
    let request = &listed["value"]["requests"][0];
    assert_eq!((request["status"].as_u64(), request["mime"].as_str()), (Some(200), Some("application/json")));
    let body = bench.act(json!({ "network": { "body": { "id": request["id"] } } })).await;
    assert_eq!(body["value"]["body"], "{\"n\":42}");
    let (har, over) = bench.over(&json!({ "action": { "network": "har" } })).await;
    let document: Value = serde_json::from_slice(&over.stderr).unwrap();
    assert_eq!(over.stderr.len() as u64, har["value"]["artifact"]["bytes"].as_u64().unwrap());
    assert!(document["log"]["entries"].as_array().unwrap().iter().any(|entry| entry["response"]["status"] == 200));
    assert!(!document.to_string().contains("secret=1"));

    let cookies = bench.act(json!({ "cookies": "get" })).await["value"].to_string();
    assert!(cookies.contains("secret"), "{cookies}");
    bench.act(json!({ "cookies": { "set": { "entries": [{ "name": "a", "value": "b" }] } } })).await;
    assert!(bench.value("document.cookie").await.as_str().unwrap().contains("a=b"));
    bench.act(json!({ "cookies": "clear" })).await;
    assert_eq!(bench.value("document.cookie").await, "");
    bench.act(json!({ "storage": { "kept": { "set": { "entries": [{ "name": "k", "value": "v" }] } } } })).await;
    assert_eq!(bench.value("localStorage.k").await, "v");
    assert_eq!(bench.act(json!({ "storage": { "kept": "get" } })).await["value"]["entries"], json!({ "k": "v" }));
    bench.act(json!({ "storage": { "kept": "clear" } })).await;
    assert_eq!(bench.value("localStorage.length").await, 0);

    bench.open("form").await;
    let (page, over) = bench.over(&json!({ "action": { "screenshot": {} } })).await;
    assert!(over.stderr.starts_with(b"\x89PNG"), "{page:#}");
    assert_eq!(page["value"]["artifact"]["blake3"], blake3::hash(&over.stderr).to_hex().to_string());
    let (full, _) = bench.over(&json!({ "action": { "screenshot": { "full": true } } })).await;
    assert!(full["value"]["height"].as_u64() > Some(3_000), "{full:#}");
    let (element, _) = bench.over(&json!({ "action": { "screenshot": { "target": "h1", "annotated": true } } })).await;
    assert!(element["value"]["height"].as_u64() < Some(200), "{element:#}");
    assert_eq!(bench.value("document.documentElement.children.length").await, 2, "nothing of the drawing is left");
    let (_, over) = bench.over(&json!({ "action": { "pdf": {} } })).await;
    assert!(over.stderr.starts_with(b"%PDF"));

    bench.act(json!({ "viewport": { "width": 400, "height": 700, "mobile": true } })).await;
    bench
        .act(json!({ "emulate": { "color_scheme": "dark", "locale": "de-DE", "timezone": "Asia/Tokyo", "user_agent": "Tester/1" } }))
        .await;
    bench.open("media").await;
    let said = bench.value("o.textContent").await;
    assert!(said.as_str().unwrap().ends_with("true de-DE Asia/Tokyo Tester/1"), "{said}");
    bench.act(json!({ "emulate": { "offline": true } })).await;
    assert_eq!(bench.fails(json!({ "navigate": { "url": bench.site.url("form") } })).await.0, "unreachable");
    bench.end().await;
}

#[tokio::test]
async fn a_huge_page_is_a_small_snapshot_that_goes_on_and_a_batch_is_one_task() {
    let bench = Bench::new().await;
    let huge = bench.open("huge").await;
    assert!(shown(&huge).len() <= 10_000 && huge["page"]["truncated"] == true);
    let next = huge["page"]["next_cursor"].clone();
    let more = bench.act(json!({ "snapshot": { "cursor": next } })).await;
    let (first, second) = (shown(&huge), shown(&more));
    assert!(second.len() > 4_000 && first.lines().all(|line| !second.contains(line)), "it goes on where it ended");
    let found = bench.act(json!({ "find": { "text": "Delete 1444" } })).await;
    assert_eq!(found["value"]["count"], 1);
    bench.act(json!({ "click": { "target": reference(&found, "Delete 1444") } })).await;
    assert_eq!(bench.value("document.title").await, "deleted 1444");
    let regex = bench.act(json!({ "find": { "regex": "^Open 14[0-9]$", "role": "link" } })).await;
    assert_eq!(regex["value"]["count"], 10);
    let scoped = bench.act(json!({ "snapshot": { "scope": "tr:nth-child(3)", "filter": "all", "depth": 3 } })).await;
    assert!(shown(&scoped).contains("Delete 2") && !shown(&scoped).contains("Delete 3"), "{}", shown(&scoped));

    bench.open("form").await;
    let mut steps: Vec<Value> = (0..49).map(|n| json!({ "fill": { "target": "textarea", "value": format!("{n}") } })).collect();
    steps.push(json!({ "evaluate": { "expression": "document.querySelector('textarea').value" } }));
    let batch = bench.act(json!({ "batch": { "steps": steps } })).await;
    assert_eq!(batch["value"]["steps"][49]["value"]["result"], "48");
    let (code, broken) =
        bench.fails(json!({ "batch": { "steps": [{ "hover": { "target": "h1" } }, { "click": { "target": "((" } }, "back"] } })).await;
    assert_eq!((code.as_str(), broken["value"]["steps"].as_array().unwrap().len()), ("bad_target", 2));
    bench.end().await;
}

#[tokio::test]
async fn nothing_but_public_addresses_is_reached_by_any_way() {
    let bench = Bench::allowing(&[]).await;
    let (code, refused) = bench.fails(json!({ "navigate": { "url": bench.site.url("target?direct") } })).await;
    assert_eq!(code, "address_refused");
    assert!(refused["message"].as_str().unwrap().contains("browser.allow_addresses"), "{refused:#}");
    assert_eq!(refused["refused"][0]["address"], "loopback");
    for url in [
        "http://localhost:8080/",
        "http://[::1]:8080/",
        "http://169.254.169.254/latest/meta-data",
        "http://0x7f000001/",
        "http://[::ffff:10.0.0.1]/",
    ] {
        assert_eq!(bench.fails(json!({ "navigate": { "url": url } })).await.0, "address_refused", "{url}");
    }
    for url in ["file:///etc/passwd", "chrome://version", "javascript:1", "view-source:http://a/"] {
        assert_eq!(bench.fails(json!({ "navigate": { "url": url } })).await.0, "address_refused", "{url}");
    }
    // A page from elsewhere tries it by fetch, WebSocket and worker.
    let port = bench.site.address.port();
    let script = format!(
        "new Promise(done=>{{let out=[],n=t=>{{out.push(t);if(out.length==3)done(out.sort().join(' '))}};fetch('http://127.0.0.1:{port}/target?f',{{mode:'no-cors'}}).then(()=>n('fetch'),()=>n('no-fetch'));\
         let w=new WebSocket('ws://127.0.0.1:{port}/target?w');w.onopen=()=>n('ws');w.onerror=()=>n('no-ws');\
         let k=new Worker(URL.createObjectURL(new Blob([\"fetch('http://127.0.0.1:{port}/target?k',{{mode:'no-cors'}}).then(()=>postMessage('worker'),()=>postMessage('no-worker'))\"])));k.onmessage=e=>n(e.data)}})"
    );
    bench.act(json!({ "navigate": { "url": "about:blank" } })).await;
    assert_eq!(bench.value(&script).await, "no-fetch no-worker no-ws");
    assert!(!bench.site.was_asked("target"), "{:?}", bench.site.asked.lock().unwrap());
    bench.end().await;

    // One address is allowed: what redirects from there to another one does not come there.
    let bench = Bench::new().await;
    let elsewhere = format!("redirect?http://127.0.0.2:{}/target", bench.site.address.port());
    assert_eq!(bench.fails(json!({ "navigate": { "url": bench.site.url(&elsewhere) } })).await.0, "address_refused");
    assert_eq!(bench.open("reach").await["ok"], true);
    bench.act(json!({ "wait_for": { "text": "worker" } })).await;
    assert_eq!(bench.site.other("x").split(':').nth(1), Some("//localhost"));
    bench.end().await;
}

#[tokio::test]
async fn a_browser_that_dies_is_reported_and_the_next_action_has_a_new_one() {
    let bench = Bench::new().await;
    bench.open("form").await;
    let talk = bench.begin(&json!({ "action": { "wait_for": { "text": "no such thing" } } })).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    bench.tasks.browsers().unwrap().end_now();
    let over = talk.finish().await;
    let answer: Value = serde_json::from_slice(&over.stdout).unwrap();
    assert_eq!(answer["code"], "browser_crashed", "{answer:#}");
    assert_eq!(Some(over.response.sandbox_level.as_str()), *bench.tasks.browsers().unwrap().level().borrow());
    assert_eq!(bench.open("second").await["sandbox"], over.response.sandbox_level);
    assert_eq!(bench.open("second").await["title"], "second");
    bench.act(json!("close")).await;
    assert_eq!(bench.open("second").await["tab"], "t1", "a new browser with a new profile");
    bench.end().await;
}

#[tokio::test]
async fn a_browser_that_nobody_uses_is_closed_with_its_profile() {
    let mut hub = Hub::new();
    let folder = hub.path().join("state/browsers");
    hub.browser = Some(BrowserOptions { idle: Duration::from_millis(1_500), ..options(hub.path(), &["127.0.0.1"]) });
    let tasks = hub.tasks();
    let bench = Bench { hub, tasks, site: Site::start().await };
    bench.open("form").await;
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    let began = std::time::Instant::now();
    while std::fs::read_dir(&folder).unwrap().count() > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "it is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.open("second").await["title"], "second");
    // Whoever gives up while a browser starts leaves none behind that nobody knows.
    bench.act(json!("close")).await;
    let mut talk = bench.begin(&json!({ "action": "tabs" })).await;
    talk.cancel("never mind").await;
    assert_eq!(talk.finish().await.response.state, "cancelled");
    assert_eq!(bench.open("form").await["title"], "form");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    bench.end().await;
}
