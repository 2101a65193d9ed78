//! What is known of a browser: tabs, frames, dialogs, downloads, requests. Events in, state and news out; no I/O.

use std::collections::{BTreeMap, HashMap, VecDeque};

use cortex_wire::{id::TaskId, text};
use serde_json::{Map, Value, json};

/// Tabs of one browser. Popups beyond it are closed.
pub const TABS: usize = 20;
/// Requests and console messages that are remembered.
const REMEMBERED: usize = 500;
/// Requests under way that are followed.
const UNDER_WAY: usize = 2_000;
/// Frames that are followed.
const FRAMES: usize = 1_000;
/// Frames and workers that are watched. Others run unseen; the network refuses them what it refuses all.
const SESSIONS: usize = 1_000;
/// Downloads of one browser: a page that saves small files for ever fills no workspace.
const DOWNLOADS: u64 = 1_000;
/// What a page drags, as long as somebody drags it.
const DRAG_BYTES: usize = 1024 * 1024;
/// An address, as it is remembered.
const URL_BYTES: usize = 2_048;
/// A console message, as it is remembered.
const MESSAGE_BYTES: usize = 2_000;
/// Headers of one message, all together.
const HEADERS_BYTES: usize = 4_096;
/// Headers whose values are nobody's business.
const SECRET_HEADERS: [&str; 6] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-csrf-token"];

/// How far a document has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing of it is there.
    #[default]
    Asked,
    /// It has begun.
    Begun,
    /// It is complete.
    Dom,
    /// What belongs to it is there, too.
    Loaded,
}

/// The two worlds of a document that are used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Worlds {
    /// The page's own.
    pub page: String,
    /// Ours.
    pub own: String,
}

/// A frame, which shows one document after the other.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// On which session of the protocol.
    pub session: String,
    /// The frame it is in.
    pub parent: Option<String>,
    /// The tab it is in.
    pub tab: u32,
    /// Which document.
    pub loader: String,
    /// Where the document is from.
    pub url: String,
    /// How far it has come.
    pub stage: Stage,
    /// No request for half a second.
    pub idle: bool,
    /// Its documents are numbered through the browser's life: the number in refs.
    pub generation: u64,
    /// Unique ids of its worlds.
    pub worlds: Worlds,
    /// Order of appearance.
    order: u64,
}

/// A dialog that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialog {
    /// alert, confirm, prompt or beforeunload.
    pub kind: String,
    /// What it says.
    pub message: String,
    /// On which session.
    pub session: String,
}

/// A page.
#[derive(Debug, Clone, Default)]
pub struct Tab {
    /// Its session.
    pub session: String,
    /// Its target, which is also its main frame's id.
    pub target: String,
    /// It can be used.
    pub ready: bool,
    /// Its renderer has died.
    pub crashed: bool,
    /// Waits for an answer.
    pub dialog: Option<Dialog>,
    /// Counts documents and places inside them.
    pub navigations: u64,
    /// A new document has been asked for and has not begun.
    pub navigating: bool,
    /// Asked for a file, by this element.
    pub chooser: Option<(String, i64)>,
    /// What was told of the page last.
    pub told: Option<Told>,
    /// A drag began; its data.
    pub drag: Option<Value>,
}

/// What was told of a page.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Of which document.
    pub generation: u64,
    /// Its count of changes then.
    pub changes: u64,
    /// The lines.
    pub lines: Vec<String>,
}

/// A file on its way.
#[derive(Debug, Clone)]
pub struct Download {
    /// Where it is from.
    pub url: String,
    /// What the server calls it, cleaned.
    pub name: String,
    /// "in_progress", "complete", "saving", "saved", "canceled", "failed", "too_large".
    pub state: &'static str,
    /// So far.
    pub bytes: u64,
    /// In the workspace.
    pub path: Option<String>,
    /// BLAKE3, hexadecimal.
    pub hash: Option<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// Whose action it was.
    pub task: Option<TaskId>,
    /// It was part of an answer in this state.
    pub told: bool,
    order: u64,
}

impl Download {
    /// Whether nothing more will happen to it.
    pub fn is_over(&self) -> bool {
        !matches!(self.state, "in_progress" | "complete" | "saving")
    }

    /// As it is told.
    pub fn to_json(&self) -> Value {
        let mut out = json!({ "name": self.name, "url": self.url, "state": self.state, "bytes": self.bytes });
        for (key, value) in [("path", &self.path), ("blake3", &self.hash), ("reason", &self.reason)] {
            if let Some(value) = value {
                out[key] = value.as_str().into();
            }
        }
        out
    }
}

/// What is to be done about a download.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on, or is over.
    Nothing,
    /// It ends here, for this reason.
    Cancel(&'static str),
    /// It is complete, and goes into the workspace under this name.
    Save(String),
}

/// A request under way.
#[derive(Debug, Clone)]
struct Request {
    id: u64,
    entry: Value,
    began: f64,
}

/// What a session of the protocol is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// "page", "iframe", "worker"
    pub kind: String,
    /// In which tab.
    pub tab: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub struct State {
    /// By number: "t1" is 1.
    pub tabs: BTreeMap<u32, Tab>,
    /// The one that is meant when none is named.
    pub current: u32,
    /// Frames by their ids.
    pub frames: HashMap<String, Frame>,
    /// Sessions of the protocol.
    pub sessions: HashMap<String, Attached>,
    /// By the browser's id for them.
    pub downloads: HashMap<String, Download>,
    /// The last requests that are over.
    pub requests: VecDeque<Value>,
    /// Session and id of each, to ask for what was answered.
    pub bodies: HashMap<u64, (String, String)>,
    /// The last console messages.
    pub console: VecDeque<Value>,
    /// Dialogs since the last answer.
    pub dialogs: Vec<Value>,
    /// Tabs since the last answer.
    pub opened: Vec<u32>,
    /// What happened since the last answer.
    pub happened: u64,
    /// Connections that were refused since the last answer: host, port, kind of address.
    pub refused: Vec<(String, u16, String)>,
    /// Whose action runs.
    pub task: Option<TaskId>,
    /// The numbers of our worlds, by their unique ids: some commands know no others.
    pub contexts: HashMap<String, i64>,
    under_way: HashMap<(String, String), Request>,
    next: u64,
    generations: u64,
    last_tab: u32,
    /// Downloads that have begun, and the bytes of those that are over.
    downloads_begun: u64,
    downloaded_bytes: u64,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn short(value: &str, bytes: usize) -> String {
    text::clean(value, bytes)
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A session of the protocol has begun. Returns the tab it belongs to; `None`: one too many.
    pub fn attached(&mut self, parent: &str, session: &str, kind: &str, target: &str) -> Option<u32> {
        if self.sessions.len() >= SESSIONS {
            return None;
        }
        let tab = if kind == "page" {
            if self.tabs.len() >= TABS {
                return None;
            }
            self.last_tab += 1;
            let tab = Tab { session: session.into(), target: target.into(), ..Tab::default() };
            self.tabs.insert(self.last_tab, tab);
            self.opened.push(self.last_tab);
            if !self.tabs.contains_key(&self.current) {
                self.current = self.last_tab;
            }
            self.last_tab
        } else {
            self.sessions.get(parent).map_or(0, |parent| parent.tab)
        };
        self.sessions.insert(session.into(), Attached { kind: kind.into(), tab });
        if matches!(kind, "page" | "iframe") {
            self.frame(target, session, None);
        }
        Some(tab)
    }

    /// A session of the protocol is over. Returns the tab that went with it.
    pub fn detached(&mut self, session: &str) -> Option<u32> {
        let attached = self.sessions.remove(session)?;
        self.frames.retain(|_, frame| frame.session != session);
        self.under_way.retain(|(of, _), _| of != session);
        if attached.kind != "page" {
            return None;
        }
        self.tabs.remove(&attached.tab);
        self.frames.retain(|_, frame| frame.tab != attached.tab);
        if self.current == attached.tab {
            self.current = self.tabs.keys().next_back().copied().unwrap_or(0);
        }
        Some(attached.tab)
    }

    fn frame(&mut self, id: &str, session: &str, parent: Option<&str>) -> Option<&mut Frame> {
        let tab = self.sessions.get(session).map_or(0, |attached| attached.tab);
        if self.frames.len() >= FRAMES && !self.frames.contains_key(id) {
            return None;
        }
        let order = self.number();
        let frame = self.frames.entry(id.into()).or_insert_with(|| Frame { order, ..Frame::default() });
        if frame.session != session {
            frame.session = session.into();
            frame.worlds = Worlds::default();
        }
        frame.tab = tab;
        if let Some(parent) = parent.filter(|parent| !parent.is_empty()) {
            frame.parent = Some(parent.into());
        }
        Some(frame)
    }

    /// A tab's frames, its main frame first, then in the order in which they came.
    pub fn frames_of(&self, tab: u32) -> Vec<(String, Frame)> {
        let main = self.tabs.get(&tab).map(|tab| tab.target.clone()).unwrap_or_default();
        let mut frames: Vec<_> =
            self.frames.iter().filter(|(_, frame)| frame.tab == tab).map(|(id, frame)| (id.clone(), frame.clone())).collect();
        frames.sort_by_key(|(id, frame)| (*id != main, frame.order));
        frames
    }

    /// The main frame of a tab.
    pub fn main(&self, tab: u32) -> Option<&Frame> {
        self.frames.get(&self.tabs.get(&tab)?.target)
    }

    /// The frame that shows the document of this number.
    pub fn of_generation(&self, generation: u64) -> Option<(String, Frame)> {
        self.frames
            .iter()
            .find(|(_, frame)| frame.generation == generation && !frame.worlds.own.is_empty())
            .map(|(id, frame)| (id.clone(), frame.clone()))
    }

    /// What the browser was found to show when it was attached to.
    pub fn tree(&mut self, session: &str, tree: &Value, parent: Option<&str>) {
        let id = text(tree, "/frame/id").to_owned();
        if id.is_empty() {
            return;
        }
        if let Some(frame) = self.frame(&id, session, parent) {
            frame.loader = text(tree, "/frame/loaderId").into();
            frame.url = short(text(tree, "/frame/url"), URL_BYTES);
            frame.stage = frame.stage.max(Stage::Begun);
        }
        for child in tree["childFrames"].as_array().into_iter().flatten() {
            self.tree(session, child, Some(&id));
        }
    }

    /// Takes in an event. Returns what is worth telling the hub.
    pub fn apply(&mut self, session: &str, method: &str, params: &Value) -> Option<Value> {
        let tab = self.sessions.get(session).map_or(0, |attached| attached.tab);
        let told = match method.split_once('.') {
            Some(("Page", event)) => self.page(session, tab, event, params),
            Some(("Runtime", event)) => self.runtime(session, tab, event, params),
            Some(("Network", event)) => self.network(session, tab, event, params),
            Some(("Log", "entryAdded")) => {
                let entry = &params["entry"];
                Some(self.say("log", text(entry, "/level"), text(entry, "/text"), text(entry, "/url"), entry["lineNumber"].as_u64(), tab))
            }
            Some(("Inspector", "targetCrashed")) => {
                if let Some(tab) = self.tabs.get_mut(&tab) {
                    tab.crashed = true;
                }
                Some(json!({ "kind": "crash", "tab": tab }))
            }
            Some(("Input", "dragIntercepted")) => {
                if let Some(tab) = self.tabs.get_mut(&tab) {
                    tab.drag = Some(params["data"].clone()).filter(|data| data.to_string().len() <= DRAG_BYTES);
                }
                None
            }
            Some(("Browser", event)) => self.browser(event, params),
            _ => None,
        };
        self.happened += u64::from(told.is_some());
        told
    }

    fn page(&mut self, session: &str, tab: u32, event: &str, params: &Value) -> Option<Value> {
        let id = text(params, "/frameId");
        let is_main = self.tabs.get(&tab).is_some_and(|tab| tab.target == id || tab.target == text(params, "/frame/id"));
        match event {
            "frameAttached" => {
                self.frame(id, session, Some(text(params, "/parentFrameId")));
            }
            "frameDetached" => {
                if text(params, "/reason") != "swap" {
                    self.remove_frame(id);
                }
            }
            "frameNavigated" => {
                let frame = &params["frame"];
                let (id, url) = (text(frame, "/id").to_owned(), short(text(frame, "/url"), URL_BYTES));
                let parent = text(frame, "/parentId").to_owned();
                if let Some(known) = self.frame(&id, session, Some(&parent)) {
                    known.url.clone_from(&url);
                    let loader = text(frame, "/loaderId");
                    if known.loader != loader {
                        known.loader = loader.into();
                        known.stage = Stage::Begun;
                        known.idle = false;
                    }
                }
                if is_main {
                    if let Some(tab) = self.tabs.get_mut(&tab) {
                        tab.navigations += 1;
                        tab.navigating = false;
                        tab.crashed = false;
                    }
                    return Some(json!({ "kind": "navigation", "tab": tab, "url": url }));
                }
            }
            "navigatedWithinDocument" => {
                let url = short(text(params, "/url"), URL_BYTES);
                if let Some(frame) = self.frames.get_mut(id) {
                    frame.url.clone_from(&url);
                }
                if is_main {
                    if let Some(tab) = self.tabs.get_mut(&tab) {
                        tab.navigations += 1;
                    }
                    return Some(json!({ "kind": "navigation", "tab": tab, "url": url, "same_document": true }));
                }
            }
            "frameStartedNavigating" if is_main && text(params, "/navigationType") != "sameDocument" => self.set_navigating(tab, true),
            "frameRequestedNavigation" if is_main && text(params, "/disposition") == "currentTab" => self.set_navigating(tab, true),
            "frameStoppedLoading" | "frameClearedScheduledNavigation" if is_main => self.set_navigating(tab, false),
            "lifecycleEvent" => self.lifecycle(id, text(params, "/loaderId"), text(params, "/name")),
            "javascriptDialogOpening" => {
                let dialog = Dialog {
                    kind: short(text(params, "/type"), 32),
                    message: short(text(params, "/message"), MESSAGE_BYTES),
                    session: session.into(),
                };
                let told = json!({ "kind": "dialog", "tab": tab, "type": dialog.kind, "message": dialog.message });
                if self.dialogs.len() < 20 {
                    self.dialogs.push(json!({ "type": dialog.kind, "message": dialog.message }));
                }
                if let Some(tab) = self.tabs.get_mut(&tab) {
                    tab.dialog = Some(dialog);
                }
                return Some(told);
            }
            "javascriptDialogClosed" => {
                if let Some(tab) = self.tabs.get_mut(&tab) {
                    tab.dialog = None;
                }
            }
            "fileChooserOpened" => {
                if let (Some(tab), Some(node)) = (self.tabs.get_mut(&tab), params["backendNodeId"].as_i64()) {
                    tab.chooser = Some((session.into(), node));
                }
            }
            _ => {}
        }
        None
    }

    fn set_navigating(&mut self, tab: u32, navigating: bool) {
        if let Some(tab) = self.tabs.get_mut(&tab) {
            tab.navigating = navigating;
        }
    }

    fn remove_frame(&mut self, id: &str) {
        let mut gone = vec![id.to_owned()];
        while let Some(id) = gone.pop() {
            self.frames.remove(&id);
            gone.extend(self.frames.iter().filter(|(_, frame)| frame.parent.as_ref() == Some(&id)).map(|(id, _)| id.clone()));
        }
    }

    fn lifecycle(&mut self, id: &str, loader: &str, name: &str) {
        let Some(frame) = self.frames.get_mut(id) else { return };
        if name == "init" && frame.loader != loader {
            frame.loader = loader.into();
            frame.stage = Stage::Begun;
            frame.idle = false;
        }
        if frame.loader != loader {
            return;
        }
        match name {
            "DOMContentLoaded" => frame.stage = frame.stage.max(Stage::Dom),
            "load" => frame.stage = Stage::Loaded,
            "networkIdle" => frame.idle = true,
            _ => {}
        }
    }

    fn runtime(&mut self, session: &str, tab: u32, event: &str, params: &Value) -> Option<Value> {
        match event {
            "executionContextCreated" => {
                let context = &params["context"];
                let (id, frame) = (text(context, "/uniqueId").to_owned(), text(context, "/auxData/frameId"));
                let (is_default, is_own) =
                    (context.pointer("/auxData/isDefault") == Some(&Value::Bool(true)), text(context, "/name") == super::WORLD);
                if is_own {
                    self.generations += 1;
                }
                let generation = self.generations;
                let frame = self.frame(frame, session, None).filter(|_| !id.is_empty())?;
                if is_default {
                    frame.worlds.page = id;
                } else if is_own {
                    frame.worlds.own.clone_from(&id);
                    frame.generation = generation;
                    let live: std::collections::HashSet<_> = self.frames.values().map(|frame| &frame.worlds.own).collect();
                    self.contexts.retain(|id, _| live.contains(id));
                    self.contexts.insert(id, context["id"].as_i64().unwrap_or_default());
                }
                None
            }
            "executionContextDestroyed" => {
                let id = text(params, "/executionContextUniqueId");
                for frame in self.frames.values_mut().filter(|frame| frame.session == session) {
                    for world in [&mut frame.worlds.page, &mut frame.worlds.own] {
                        if *world == id {
                            world.clear();
                        }
                    }
                }
                None
            }
            "executionContextsCleared" => {
                self.frames.values_mut().filter(|frame| frame.session == session).for_each(|frame| frame.worlds = Worlds::default());
                None
            }
            "consoleAPICalled" => {
                let said: Vec<String> = params["args"].as_array().into_iter().flatten().take(20).map(shown).collect();
                let at = params.pointer("/stackTrace/callFrames/0").unwrap_or(&Value::Null);
                Some(self.say("console", text(params, "/type"), &said.join(" "), text(at, "/url"), at["lineNumber"].as_u64(), tab))
            }
            "exceptionThrown" => {
                let details = &params["exceptionDetails"];
                let what = Some(text(details, "/exception/description")).filter(|what| !what.is_empty()).unwrap_or(text(details, "/text"));
                Some(self.say("error", "error", what, text(details, "/url"), details["lineNumber"].as_u64(), tab))
            }
            _ => None,
        }
    }

    fn say(&mut self, kind: &str, level: &str, message: &str, url: &str, line: Option<u64>, tab: u32) -> Value {
        let mut entry = json!({ "kind": kind, "level": short(level, 32), "text": short(message, MESSAGE_BYTES), "tab": tab });
        if !url.is_empty() {
            entry["url"] = short(url, URL_BYTES).into();
        }
        if let Some(line) = line {
            entry["line"] = (line + 1).into();
        }
        if self.console.len() >= REMEMBERED {
            self.console.pop_front();
        }
        self.console.push_back(entry.clone());
        entry
    }

    fn network(&mut self, session: &str, tab: u32, event: &str, params: &Value) -> Option<Value> {
        let key = (session.to_owned(), text(params, "/requestId").to_owned());
        let at = params["timestamp"].as_f64().unwrap_or_default();
        match event {
            "requestWillBeSent" => {
                let redirected = params.get("redirectResponse").filter(|response| response.is_object()).and_then(|response| {
                    let request = self.under_way.get_mut(&key)?;
                    answered(&mut request.entry, response);
                    self.over(&key, at, None)
                });
                let request = &params["request"];
                let mut entry = json!({
                    "kind": "request", "tab": tab, "method": short(text(request, "/method"), 16), "url": short(text(request, "/url"), URL_BYTES),
                    "type": short(text(params, "/type"), 32), "started_ms": params["wallTime"].as_f64().map_or(0, |s| (s * 1000.0) as i64),
                });
                entry["request_headers"] = headers(&request["headers"]);
                self.begin(key, entry, at);
                return redirected;
            }
            "webSocketCreated" => {
                let entry = json!({ "kind": "request", "tab": tab, "method": "GET", "url": short(text(params, "/url"), URL_BYTES), "type": "WebSocket", "sent": 0, "received": 0 });
                self.begin(key, entry, at);
            }
            "responseReceived" => {
                if let Some(request) = self.under_way.get_mut(&key) {
                    answered(&mut request.entry, &params["response"]);
                }
            }
            "webSocketHandshakeResponseReceived" => {
                if let Some(request) = self.under_way.get_mut(&key) {
                    request.began = at;
                    answered(&mut request.entry, &params["response"]);
                }
            }
            "webSocketFrameSent" | "webSocketFrameReceived" => {
                if let Some(request) = self.under_way.get_mut(&key) {
                    let side = if event == "webSocketFrameSent" { "sent" } else { "received" };
                    request.entry[side] = (request.entry[side].as_u64().unwrap_or(0) + 1).into();
                }
            }
            "webSocketFrameError" => {
                if let Some(request) = self.under_way.get_mut(&key) {
                    request.entry["error"] = short(text(params, "/errorMessage"), 200).into();
                }
            }
            "webSocketClosed" => return self.over(&key, at, None),
            "loadingFinished" => {
                if let Some(request) = self.under_way.get_mut(&key) {
                    request.entry["bytes"] = (params["encodedDataLength"].as_f64().unwrap_or(0.0) as u64).into();
                }
                return self.over(&key, at, None);
            }
            "loadingFailed" => return self.over(&key, at, Some(text(params, "/errorText"))),
            _ => {}
        }
        None
    }

    fn begin(&mut self, key: (String, String), mut entry: Value, at: f64) {
        let id = self.number();
        entry["id"] = id.to_string().into();
        if self.under_way.len() < UNDER_WAY {
            self.under_way.insert(key, Request { id, entry, began: at });
        }
    }

    fn over(&mut self, key: &(String, String), at: f64, error: Option<&str>) -> Option<Value> {
        let Request { id, mut entry, began } = self.under_way.remove(key)?;
        entry["took_ms"] = (((at - began) * 1000.0).max(0.0) as u64).into();
        if let Some(error) = error {
            entry["error"] = short(error, 200).into();
        }
        if self.requests.len() >= REMEMBERED
            && let Some(oldest) = self.requests.pop_front().and_then(|oldest| oldest["id"].as_str()?.parse().ok())
        {
            self.bodies.remove(&oldest);
        }
        self.bodies.insert(id, key.clone());
        self.requests.push_back(entry.clone());
        Some(entry)
    }

    fn browser(&mut self, event: &str, params: &Value) -> Option<Value> {
        let guid = text(params, "/guid");
        match event {
            "downloadWillBegin" => {
                self.downloads_begun += 1;
                let order = self.number();
                let download = Download {
                    url: short(text(params, "/url"), URL_BYTES),
                    name: super::download::safe_name(text(params, "/suggestedFilename")),
                    state: "in_progress",
                    bytes: 0,
                    path: None,
                    hash: None,
                    reason: None,
                    task: self.task,
                    told: false,
                    order,
                };
                let told = json!({ "kind": "download", "download": download.to_json() });
                if self.downloads.len() >= REMEMBERED
                    && let Some(oldest) = self
                        .downloads
                        .iter()
                        .filter(|(_, download)| download.is_over())
                        .min_by_key(|(_, download)| download.order)
                        .map(|(guid, _)| guid.clone())
                {
                    self.downloads.remove(&oldest);
                }
                self.downloads.insert(guid.into(), download);
                Some(told)
            }
            "downloadProgress" => {
                let download = self.downloads.get_mut(guid).filter(|download| !download.is_over())?;
                download.bytes = params["receivedBytes"].as_f64().unwrap_or(0.0) as u64;
                match text(params, "/state") {
                    "completed" if download.state == "in_progress" => download.state = "complete",
                    "canceled" => download.state = "canceled",
                    _ => return None,
                }
                download.told = false;
                (download.state == "canceled").then(|| json!({ "kind": "download", "download": download.to_json() }))
            }
            _ => None,
        }
    }

    /// What is to be done about a download now; `quota`: the bytes of all of them.
    pub fn next_of(&mut self, guid: &str, quota: u64) -> Next {
        let is_coming = |download: &&Download| matches!(download.state, "in_progress" | "complete");
        let live: u64 = self.downloads.values().filter(is_coming).map(|download| download.bytes).sum();
        let all = self.downloaded_bytes.saturating_add(live);
        let (begun, already) = (self.downloads_begun, self.downloaded_bytes);
        let Some(download) = self.downloads.get_mut(guid).filter(|download| !download.is_over()) else { return Next::Nothing };
        if begun > DOWNLOADS {
            return Next::Cancel(
                "a thousand files were downloaded by this browser, which is all that it may; after the action `close` a new one begins to count anew",
            );
        }
        if all > quota {
            return Next::Cancel("it is larger than what this browser may still download (browser.download_mib in peer.yaml)");
        }
        if download.state != "complete" {
            return Next::Nothing;
        }
        download.state = "saving";
        self.downloaded_bytes = already.saturating_add(download.bytes);
        Next::Save(download.name.clone())
    }

    /// Downloads in the order in which they began.
    pub fn downloads(&self) -> Vec<&Download> {
        let mut downloads: Vec<_> = self.downloads.values().collect();
        downloads.sort_by_key(|download| download.order);
        downloads
    }
}

fn answered(entry: &mut Value, response: &Value) {
    entry["status"] = response["status"].as_f64().map_or(0, |status| status as u64).into();
    entry["mime"] = short(text(response, "/mimeType"), 100).into();
    entry["response_headers"] = headers(&response["headers"]);
    for (key, pointer) in [("protocol", "/protocol"), ("address", "/remoteIPAddress"), ("status_text", "/statusText")] {
        if let Some(value) = response.pointer(pointer).and_then(Value::as_str).filter(|value| !value.is_empty()) {
            entry[key] = short(value, 100).into();
        }
    }
}

fn headers(headers: &Value) -> Value {
    let mut out = Map::new();
    let mut bytes = 0;
    for (name, value) in headers.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        let value =
            if SECRET_HEADERS.iter().any(|secret| name.eq_ignore_ascii_case(secret)) { "(hidden)".to_owned() } else { short(value, 512) };
        bytes += name.len() + value.len();
        if bytes > HEADERS_BYTES {
            break;
        }
        out.insert(short(name, 100), value.into());
    }
    out.into()
}

/// What a script logged, as text.
fn shown(object: &Value) -> String {
    match &object["value"] {
        Value::String(text) => short(text, MESSAGE_BYTES),
        Value::Null => {
            short(Some(text(object, "/description")).filter(|text| !text.is_empty()).unwrap_or(text(object, "/type")), MESSAGE_BYTES)
        }
        value => short(&value.to_string(), MESSAGE_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut state = State::default();
        assert_eq!(state.attached("", "S1", "page", "F1"), Some(1));
        state
    }

    #[test]
    fn frames_of_other_origins_belong_to_their_tab_and_go_with_it() {
        let mut state = state();
        state.apply("S1", "Page.frameAttached", &json!({"frameId": "F2", "parentFrameId": "F1"}));
        state.apply("S1", "Page.frameDetached", &json!({"frameId": "F2", "reason": "swap"}));
        assert_eq!(state.attached("S1", "S2", "iframe", "F2"), Some(1));
        state.apply(
            "S2",
            "Runtime.executionContextCreated",
            &json!({"context": {"uniqueId": "u", "name": crate::browser::WORLD, "auxData": {"frameId": "F2", "isDefault": false}}}),
        );
        let frames = state.frames_of(1);
        assert_eq!(
            frames.iter().map(|(id, frame)| (id.as_str(), frame.session.as_str())).collect::<Vec<_>>(),
            [("F1", "S1"), ("F2", "S2")]
        );
        assert_eq!(frames[1].1.parent.as_deref(), Some("F1"));
        let generation = frames[1].1.generation;
        assert_eq!(state.of_generation(generation).unwrap().0, "F2");
        state.apply("S2", "Runtime.executionContextsCleared", &json!({}));
        assert!(state.of_generation(generation).is_none());
        assert_eq!(state.detached("S1"), Some(1));
        assert!(state.frames.is_empty() && state.tabs.is_empty());
    }

    #[test]
    fn a_request_is_told_once_when_it_is_over_and_its_secrets_never() {
        let mut state = state();
        let sent = json!({"requestId": "7", "timestamp": 1.0, "wallTime": 5.0, "type": "XHR", "request": {"url": "http://a/", "method": "GET", "headers": {"Cookie": "secret", "X": "y"}}});
        assert_eq!(state.apply("S1", "Network.requestWillBeSent", &sent), None);
        assert_eq!(
            state.apply(
                "S1",
                "Network.responseReceived",
                &json!({"requestId": "7", "response": {"status": 200, "headers": {"Set-Cookie": "secret"}}})
            ),
            None
        );
        let told =
            state.apply("S1", "Network.loadingFinished", &json!({"requestId": "7", "timestamp": 1.5, "encodedDataLength": 12})).unwrap();
        assert_eq!((told["status"].as_u64(), told["took_ms"].as_u64(), told["bytes"].as_u64()), (Some(200), Some(500), Some(12)));
        assert!(!told.to_string().contains("secret"));
        assert_eq!(state.apply("S1", "Network.loadingFinished", &json!({"requestId": "7"})), None);
    }

    #[test]
    fn what_a_browser_sends_is_never_trusted_to_be_there() {
        let mut state = state();
        let methods = [
            "Page.frameNavigated",
            "Page.frameAttached",
            "Page.lifecycleEvent",
            "Page.javascriptDialogOpening",
            "Page.fileChooserOpened",
            "Page.frameDetached",
            "Runtime.executionContextCreated",
            "Runtime.executionContextDestroyed",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Network.requestWillBeSent",
            "Network.responseReceived",
            "Network.loadingFailed",
            "Browser.downloadWillBegin",
            "Browser.downloadProgress",
            "Log.entryAdded",
            "Input.dragIntercepted",
            "x",
        ];
        let odd = [
            Value::Null,
            json!({}),
            json!([]),
            json!({"frame": 1, "context": {"auxData": []}, "args": {}, "request": "", "entry": [], "guid": 3, "requestId": {}}),
        ];
        for method in methods {
            for params in &odd {
                state.apply("S1", method, params);
                state.apply("?", method, params);
            }
        }
    }

    #[test]
    fn downloads_count_together_and_each_is_saved_once() {
        let mut state = state();
        let begin = |state: &mut State, guid: &str| {
            state.apply("", "Browser.downloadWillBegin", &json!({"guid": guid, "suggestedFilename": "a"}));
        };
        let progress = |state: &mut State, guid: &str, bytes: u64, how: &str| {
            state.apply("", "Browser.downloadProgress", &json!({"guid": guid, "receivedBytes": bytes, "state": how}));
            state.next_of(guid, 100)
        };
        begin(&mut state, "1");
        assert_eq!(progress(&mut state, "1", 60, "inProgress"), Next::Nothing);
        assert_eq!(progress(&mut state, "1", 60, "completed"), Next::Save("a".into()));
        assert_eq!(progress(&mut state, "1", 60, "completed"), Next::Nothing, "told twice, saved once");
        begin(&mut state, "2");
        assert_eq!(progress(&mut state, "2", 40, "inProgress"), Next::Nothing);
        assert!(matches!(progress(&mut state, "2", 41, "inProgress"), Next::Cancel(_)));
        begin(&mut state, "3");
        assert_eq!(progress(&mut state, "?", 1, "completed"), Next::Nothing);
        for n in 0..DOWNLOADS {
            begin(&mut state, &format!("n{n}"));
        }
        assert!(matches!(state.next_of("n999", 100), Next::Cancel(_)), "small files count, too");
    }

    #[test]
    fn nothing_that_a_page_repeats_for_ever_grows_for_ever() {
        let mut state = state();
        for n in 0..3_000 {
            state.apply("S1", "Runtime.consoleAPICalled", &json!({"type": "log", "args": [{"value": n}]}));
            state.apply("S1", "Page.frameAttached", &json!({"frameId": format!("f{n}"), "parentFrameId": "F1"}));
            state.apply("S1", "Network.requestWillBeSent", &json!({"requestId": n.to_string(), "request": {"url": "u"}}));
            state.apply("S1", "Network.webSocketCreated", &json!({"requestId": format!("w{n}"), "url": "u"}));
            state.apply("", "Browser.downloadWillBegin", &json!({"guid": n.to_string()}));
            state.apply("", "Browser.downloadProgress", &json!({"guid": n.to_string(), "state": "canceled"}));
            state.apply("S1", "Page.javascriptDialogOpening", &json!({"type": "alert"}));
            state.attached("", &format!("P{n}"), "page", &format!("T{n}"));
            state.attached("S1", &format!("W{n}"), "worker", &format!("V{n}"));
        }
        state.apply("S1", "Input.dragIntercepted", &json!({"data": "x".repeat(2 * DRAG_BYTES)}));
        assert!(state.sessions.len() <= SESSIONS && state.tabs[&1].drag.is_none());
        assert!(state.console.len() <= REMEMBERED && state.frames.len() <= FRAMES && state.under_way.len() <= UNDER_WAY);
        assert!(state.downloads.len() <= REMEMBERED && state.tabs.len() <= TABS && state.dialogs.len() <= 20);
    }
}
