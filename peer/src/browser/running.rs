//! One browser that runs: its process, its folder, its connection, and what is known of it.

use std::{
    collections::VecDeque,
    ffi::{CString, OsString},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cortex_runtime::{clock, keyfile::make_private_dir};
use cortex_wire::id::SessionId;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    sync::{Mutex as Turns, watch},
};

use super::{
    BrowserOptions, Fault, WORLD, download,
    outbox::Outbox,
    proxy::Proxy,
    state::{Next, State},
    transport::{Cdp, CdpError, OnEvent},
};
use crate::process::{Mark, Processes, Program};

/// From the start of the program to its first answer.
const START: Duration = Duration::from_secs(30);
/// For the browser to end by itself.
const GRACE: Duration = Duration::from_secs(2);
/// What the browser says before it ends, for the reason.
const SAID_BYTES: usize = 4096;
/// Less shared memory than this is not enough for pages.
const SHARED_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// The longest name of a folder for temporary files in which there is room for a socket's name.
const TEMPORARY_BYTES: usize = 56;

/// Most often it is the screen that is not there.
const WINDOW_ADVICE: &str = " (It was to have a window; without a screen that the peer may use, set browser.headless: true in peer.yaml.)";

/// Events that a browser may tell at once, and then in each second.
const EVENTS_AT_ONCE: f64 = 1_000.0;
const EVENTS_PER_SECOND: f64 = 50.0;

/// What is watched: everything that shows pages or runs scripts.
const TARGETS: [&str; 5] = ["page", "iframe", "worker", "service_worker", "shared_worker"];

/// Settings that have to do with being driven, with keeping to itself, and with every connection going through our proxy.
const FLAGS: [&str; 27] = [
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-service-autorun",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-breakpad",
    "--disable-client-side-phishing-detection",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-hang-monitor",
    "--disable-popup-blocking",
    "--disable-prompt-on-repost",
    "--disable-sync",
    "--disable-gpu",
    "--disable-quic",
    "--force-color-profile=srgb",
    "--metrics-recording-only",
    "--mute-audio",
    "--password-store=basic",
    "--use-mock-keychain",
    "--site-per-process",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
];
/// A page that comes back from the cache has old documents in new places; the others talk to Google.
const FEATURES_OFF: &str = "--disable-features=BackForwardCache,Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider,AutofillServerCommunication,\
    CertificateTransparencyComponentUpdater,InterestFeedContentSuggestions,PaintHolding,HttpsUpgrades,HttpsFirstBalancedMode";

/// A browser that runs. It is ended by [`Browser::close`].
#[derive(Debug)]
pub struct Browser {
    /// This start of it.
    pub id: String,
    /// Whose it is.
    pub session: SessionId,
    /// Its own sandbox is off.
    pub is_bare: bool,
    /// Private to it: profile, downloads, uploads.
    pub folder: PathBuf,
    /// One action at a time.
    pub turn: Turns<()>,
    /// When it was used last.
    pub used: Mutex<Instant>,
    cdp: OnceLock<Cdp>,
    state: Mutex<State>,
    news: watch::Sender<u64>,
    outbox: Arc<Outbox>,
    numbers: AtomicU64,
    allowance: Mutex<Allowance>,
    workspace_dir: PathBuf,
    download_bytes: u64,
    processes: Processes,
    pid: OnceLock<Pid>,
    mark: Mark,
    proxy: OnceLock<ProxyHandle>,
    ended: watch::Sender<bool>,
    closing: std::sync::atomic::AtomicBool,
}

/// How much a page may tell the hub, whatever it does.
#[derive(Debug)]
struct Allowance {
    left: f64,
    since: Instant,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        self.left = (self.left + now.duration_since(self.since).as_secs_f64() * EVENTS_PER_SECOND).min(EVENTS_AT_ONCE);
        self.since = now;
        let is_free = self.left >= 1.0;
        self.left -= f64::from(u8::from(is_free));
        is_free
    }
}

struct ProxyHandle(#[expect(dead_code, reason = "serves until it is dropped")] Proxy);

impl std::fmt::Debug for ProxyHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proxy")
    }
}

/// Ends what a peer that died left of its browsers: processes and folders.
pub fn end_leftovers(scratch_dir: &Path) {
    for folder in fs::read_dir(scratch_dir).into_iter().flatten().flatten() {
        if let Some(number) = folder.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok()) {
            let ended = crate::process::end_leftovers(Mark::of_browser(number));
            tracing::info!(processes = ended, "a browser that an earlier peer left behind is removed");
            remove_folder(&folder.path());
        }
    }
}

/// What was just killed may still be writing.
fn remove_folder(folder: &Path) {
    for _ in 0..50 {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(20)),
            _ => return,
        }
    }
    tracing::warn!(folder = %folder.display(), "a browser's folder could not be removed; the next start tries again");
}

impl Browser {
    /// Starts one and waits until it can be used.
    ///
    /// # Errors
    /// [`Fault`] that says what to do.
    pub async fn start(
        options: &BrowserOptions,
        program: &Path,
        processes: &Processes,
        outbox: &Arc<Outbox>,
        session: SessionId,
        is_bare: bool,
    ) -> Result<Arc<Self>, Fault> {
        let number = u64::from_be_bytes(clock::random()) & 0xffff_ffff_ffff;
        let folder = options.scratch_dir.join(format!("{number:012x}"));
        let this = Arc::new(Self {
            id: format!("{number:012x}"),
            session,
            is_bare,
            folder: folder.clone(),
            turn: Turns::default(),
            used: Mutex::new(Instant::now()),
            cdp: OnceLock::new(),
            state: Mutex::default(),
            news: watch::Sender::new(0),
            outbox: outbox.clone(),
            numbers: AtomicU64::new(0),
            allowance: Mutex::new(Allowance { left: EVENTS_AT_ONCE, since: Instant::now() }),
            workspace_dir: options.workspace_dir.clone(),
            download_bytes: options.download_bytes,
            processes: processes.clone(),
            pid: OnceLock::new(),
            mark: Mark::of_browser(number),
            proxy: OnceLock::new(),
            ended: watch::Sender::new(false),
            closing: std::sync::atomic::AtomicBool::new(false),
        });
        let cannot = |error: io::Error| Fault::new("no_browser", format!("the browser cannot be started: {error}"));
        for part in ["profile", "downloads", "uploads", "tmp"] {
            make_private_dir(&folder.join(part)).map_err(cannot)?;
        }
        match this.launch(options, program).await {
            Ok(()) => Ok(this),
            Err(fault) => {
                this.close().await;
                Err(fault)
            }
        }
    }

    async fn launch(self: &Arc<Self>, options: &BrowserOptions, program: &Path) -> Result<(), Fault> {
        let cannot = |error: io::Error| Fault::new("no_browser", format!("the browser cannot be started: {error}"));
        let weak = Arc::downgrade(self);
        let refused = Arc::new(move |host: &str, port: u16, kind: &str| {
            if let Some(this) = weak.upgrade() {
                this.refused(host, port, kind);
            }
        });
        let proxy = Proxy::start(options.allowed.clone(), refused).await.map_err(cannot)?;
        let arguments = self.arguments(options, program, &proxy);
        let _ = self.proxy.set(ProxyHandle(proxy));
        let (their_in, our_out) = io::pipe().map_err(cannot)?;
        let (our_in, their_out) = io::pipe().map_err(cannot)?;
        let (our_err, their_err) = io::pipe().map_err(cannot)?;
        let null: OwnedFd = File::options().read(true).write(true).open("/dev/null").map_err(cannot)?.into();
        let folder: OwnedFd = File::open(&self.folder).map_err(cannot)?.into();
        let path = CString::new(program.as_os_str().to_owned().into_vec()).map_err(|error| cannot(error.into()))?;
        let environment = self.environment(options);
        let child = self
            .processes
            .start(
                &Program {
                    path: &path,
                    argv: &arguments,
                    environment: &environment,
                    folder: folder.as_fd(),
                    stdio: [null.as_fd(), null.as_fd(), their_err.as_fd()],
                    terminal: None,
                    more: &[their_in.as_fd(), their_out.as_fd()],
                },
                self.mark,
            )
            .map_err(cannot)?;
        drop((their_in, their_out, their_err));
        let _ = self.pid.set(child.pid);
        let said: Arc<Mutex<VecDeque<u8>>> = Arc::default();
        tokio::spawn(listen(our_err.into(), said.clone()));
        let weak = Arc::downgrade(self);
        let on_event: OnEvent = Box::new(move |session, method, params| {
            if let Some(this) = weak.upgrade() {
                this.hear(session, method, &params);
            }
        });
        let cdp = Cdp::start(our_out.into(), our_in.into(), on_event).map_err(cannot)?;
        let _ = self.cdp.set(cdp.clone());
        let this = self.clone();
        tokio::spawn(async move {
            let exit = child.exit.await;
            this.has_ended(&format!("{:?}", exit.map(|exit| exit.status)));
        });
        let ready = tokio::time::timeout(START, self.prepare(&cdp)).await;
        match ready {
            Ok(Ok(version)) => {
                self.tell(json!({ "kind": "started", "version": version, "sandbox": self.level() }));
                Ok(())
            }
            Ok(Err(_)) | Err(_) => {
                // What it said comes through another pipe than that it ended.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let bytes: Vec<u8> = said.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
                let said = cortex_wire::text::clean(&String::from_utf8_lossy(&bytes), 400);
                let advice = if options.screen.is_some() { WINDOW_ADVICE } else { "" };
                Err(Fault::new("no_browser", format!("the browser `{}` did not start: {said}{advice}", program.display())))
            }
        }
    }

    async fn prepare(&self, cdp: &Cdp) -> Result<Value, CdpError> {
        let version = cdp.send("", "Browser.getVersion", json!({})).await?;
        let behaviour = json!({ "behavior": "allowAndName", "downloadPath": self.folder.join("downloads"), "eventsEnabled": true });
        cdp.send("", "Browser.setDownloadBehavior", behaviour).await?;
        cdp.send("", "Target.setAutoAttach", auto_attach()).await?;
        self.wait(|state| state.tabs.values().any(|tab| tab.ready).then_some(())).await.map_err(|_| CdpError::Gone)?;
        let mut state = self.state();
        state.opened.clear();
        state.happened = 0;
        Ok(version["product"].clone())
    }

    fn arguments(&self, options: &BrowserOptions, program: &Path, proxy: &Proxy) -> Vec<CString> {
        let mut arguments = vec![program.to_string_lossy().into_owned()];
        arguments.extend(FLAGS.map(str::to_owned));
        arguments.push(FEATURES_OFF.to_owned());
        if options.screen.is_none() {
            arguments.extend(["--headless=new", "--hide-scrollbars", "--window-size=1280,800"].map(str::to_owned));
        }
        if self.is_bare {
            arguments.push("--no-sandbox".into());
        }
        let shared = rustix::fs::statvfs("/dev/shm").map_or(0, |shm| shm.f_blocks * shm.f_frsize);
        if shared < SHARED_MEMORY_BYTES {
            arguments.push("--disable-dev-shm-usage".into());
        }
        arguments.push(format!("--proxy-server=socks5://{}", proxy.address));
        // Not even loopback goes around it, and no name is resolved before it.
        arguments.push("--proxy-bypass-list=<-loopback>".into());
        arguments.push("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1".into());
        arguments.push(format!("--user-data-dir={}", self.folder.join("profile").display()));
        arguments.push("about:blank".into());
        arguments.into_iter().filter_map(|argument| CString::new(argument).ok()).collect()
    }

    /// Where it makes a socket, among others, whose path has room for 107 bytes. Its working folder is ours, so a long name has a short one.
    fn temporary(&self) -> PathBuf {
        let folder = self.folder.join("tmp");
        let is_long = cfg!(target_os = "linux") && folder.as_os_str().len() > TEMPORARY_BYTES;
        if is_long { "/proc/self/cwd/tmp".into() } else { folder }
    }

    fn environment(&self, options: &BrowserOptions) -> Vec<CString> {
        let mut variables = vec![
            ("HOME".to_owned(), self.folder.clone().into_os_string()),
            ("XDG_CONFIG_HOME".into(), self.folder.join("tmp").into()),
            ("XDG_CACHE_HOME".into(), self.folder.join("tmp").into()),
            ("TMPDIR".into(), self.temporary().into()),
            ("LANG".into(), std::env::var_os("LANG").unwrap_or_else(|| "C.UTF-8".into())),
            ("PATH".into(), std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into())),
        ];
        variables.extend(options.screen.iter().flat_map(super::Screen::variables));
        let assignment =
            |(name, value): (String, OsString)| CString::new([name.into_bytes(), b"=".to_vec(), value.into_vec()].concat()).ok();
        variables.into_iter().filter_map(assignment).collect()
    }

    /// What confines the pages, in a word.
    pub fn level(&self) -> &'static str {
        if self.is_bare { super::LEVEL_BARE } else { super::LEVEL }
    }

    /// What is known. Never held across a wait.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection.
    ///
    /// # Errors
    /// [`CdpError::Gone`] before it is there.
    pub fn cdp(&self) -> Result<&Cdp, CdpError> {
        self.cdp.get().ok_or(CdpError::Gone)
    }

    /// Asks the browser.
    ///
    /// # Errors
    /// [`CdpError`].
    pub async fn ask(&self, session: &str, method: &str, params: Value) -> Result<Value, CdpError> {
        self.cdp()?.send(session, method, params).await
    }

    /// Tells the browser, and waits for nothing.
    pub fn order(&self, session: &str, method: &str, params: Value) {
        if let Some(cdp) = self.cdp.get() {
            cdp.tell(session, method, params);
        }
    }

    /// Waits until something is so.
    ///
    /// # Errors
    /// [`CdpError::Gone`] when the browser ends meanwhile.
    pub async fn wait<T>(&self, mut so: impl FnMut(&mut State) -> Option<T>) -> Result<T, CdpError> {
        let mut news = self.news.subscribe();
        loop {
            news.borrow_and_update();
            if let Some(found) = so(&mut self.state()) {
                return Ok(found);
            }
            let cdp = self.cdp()?;
            tokio::select! {
                () = cdp.gone() => return Err(CdpError::Gone),
                changed = news.changed() => changed.map_err(|_| CdpError::Gone)?,
            }
        }
    }

    /// One folder per session in it.
    pub fn workspace_dir(&self) -> &Path {
        &self.workspace_dir
    }

    /// Whether it can be used.
    pub fn is_alive(&self) -> bool {
        !*self.ended.borrow() && self.cdp.get().is_some_and(|cdp| !cdp.is_gone())
    }

    /// Tells the hub. What goes beyond the allowance is dropped, which the numbers show.
    pub fn tell(&self, mut event: Value) {
        event["at_ms"] = clock::now_ms().into();
        if let Some(task) = self.state().task {
            event["task_id"] = task.to_string().into();
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.allowance.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return;
        }
        self.outbox.put(self.session, &self.id, number, &event);
    }

    fn refused(&self, host: &str, port: u16, kind: &str) {
        let host = cortex_wire::text::clean(host, 255);
        {
            let mut state = self.state();
            state.happened += 1;
            if state.refused.len() < 50 {
                state.refused.push((host.clone(), port, kind.into()));
            }
        }
        self.tell(json!({ "kind": "refused", "host": host, "port": port, "address": kind }));
        self.news.send_modify(|count| *count += 1);
    }

    /// Something happened in the browser. Nothing is waited for here: answers come behind events.
    fn hear(self: &Arc<Self>, session: &str, method: &str, params: &Value) {
        match method {
            "Target.attachedToTarget" => self.attached(session, params),
            "Target.detachedFromTarget" => {
                let closed = self.state().detached(params["sessionId"].as_str().unwrap_or_default());
                if let Some(tab) = closed {
                    self.tell(json!({ "kind": "tab", "tab": tab, "closed": true }));
                }
            }
            _ => {
                let told = self.state().apply(session, method, params);
                if let Some(event) = told {
                    self.tell(event);
                }
                match method {
                    "Page.javascriptDialogOpening" if matches!(params["type"].as_str(), Some("alert" | "beforeunload")) => {
                        self.order(session, "Page.handleJavaScriptDialog", json!({ "accept": true }));
                    }
                    "Browser.downloadWillBegin" | "Browser.downloadProgress" => self.progress(params),
                    _ => {}
                }
            }
        }
        self.news.send_modify(|count| *count += 1);
    }

    fn attached(self: &Arc<Self>, parent: &str, params: &Value) {
        let text = |pointer: &str| params.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (session, kind, target) = (text("/sessionId"), text("/targetInfo/type"), text("/targetInfo/targetId"));
        let Some(tab) = self.state().attached(parent, &session, &kind, &target) else {
            self.order(&session, "Runtime.runIfWaitingForDebugger", json!({}));
            if kind == "page" {
                self.tell(json!({ "kind": "tab", "refused": "too many tabs are open" }));
                self.order("", "Target.closeTarget", json!({ "targetId": target }));
            }
            return;
        };
        if kind == "page" {
            self.tell(json!({ "kind": "tab", "tab": tab, "opened": true }));
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = this.enable(&session, &kind, tab).await {
                tracing::debug!(%error, kind, "a part of a browser cannot be watched");
            }
        });
    }

    /// Begins to watch a page, a frame or a worker before it has run anything.
    async fn enable(&self, session: &str, kind: &str, tab: u32) -> Result<(), CdpError> {
        let cdp = self.cdp()?;
        cdp.tell(session, "Runtime.enable", json!({}));
        cdp.tell(session, "Network.enable", json!({ "maxTotalBufferSize": 32 << 20, "maxResourceBufferSize": 8 << 20 }));
        cdp.tell(session, "Target.setAutoAttach", auto_attach());
        if !matches!(kind, "page" | "iframe") {
            cdp.tell(session, "Runtime.runIfWaitingForDebugger", json!({}));
            return Ok(());
        }
        cdp.tell(session, "Page.enable", json!({}));
        cdp.tell(session, "Log.enable", json!({}));
        cdp.tell(session, "Page.setLifecycleEventsEnabled", json!({ "enabled": true }));
        cdp.tell(session, "Page.setInterceptFileChooserDialog", json!({ "enabled": true }));
        let script = json!({ "source": super::SCRIPT, "worldName": WORLD, "runImmediately": true });
        let script = cdp.send(session, "Page.addScriptToEvaluateOnNewDocument", script);
        let tree = cdp.send(session, "Page.getFrameTree", json!({}));
        let run = cdp.send(session, "Runtime.runIfWaitingForDebugger", json!({}));
        script.await?;
        let tree = tree.await?;
        self.state().tree(session, &tree["frameTree"], None);
        run.await?;
        if kind == "page"
            && let Some(tab) = self.state().tabs.get_mut(&tab)
        {
            tab.ready = true;
        }
        self.news.send_modify(|count| *count += 1);
        Ok(())
    }

    fn progress(self: &Arc<Self>, params: &Value) {
        let guid = params["guid"].as_str().unwrap_or_default().to_owned();
        // Names in the folder are given by the browser; anything else is none.
        if guid.is_empty() || !guid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return;
        }
        let next = self.state().next_of(&guid, self.download_bytes);
        match next {
            Next::Nothing => {}
            Next::Cancel(reason) => {
                self.order("", "Browser.cancelDownload", json!({ "guid": guid }));
                self.downloaded(&guid, Err(("too_large", reason.into())));
                let _ = fs::remove_file(self.folder.join("downloads").join(&guid));
            }
            Next::Save(name) => {
                let this = self.clone();
                tokio::task::spawn_blocking(move || {
                    let from = this.folder.join("downloads").join(&guid);
                    let saved = download::save(&this.workspace_dir, &this.session, &from, &name);
                    this.downloaded(&guid, saved.map_err(|error| ("failed", error.to_string())));
                });
            }
        }
    }

    fn downloaded(&self, guid: &str, saved: Result<download::Saved, (&'static str, String)>) {
        let told = {
            let mut state = self.state();
            let Some(download) = state.downloads.get_mut(guid) else { return };
            match saved {
                Ok(saved) => {
                    download.state = "saved";
                    download.bytes = saved.bytes;
                    download.path = Some(saved.path);
                    download.hash = Some(saved.hash);
                }
                Err((what, reason)) => {
                    download.state = what;
                    download.reason = Some(cortex_wire::text::clean(&reason, 400));
                }
            }
            download.told = false;
            let mut told = json!({ "kind": "download", "download": download.to_json() });
            if let Some(task) = download.task {
                told["task_id"] = task.to_string().into();
            }
            told
        };
        self.tell(told);
        self.news.send_modify(|count| *count += 1);
    }

    fn has_ended(&self, how: &str) {
        self.ended.send_replace(true);
        if let Some(cdp) = self.cdp.get() {
            cdp.end();
        }
        let expected = self.closing.load(Ordering::Relaxed);
        if !expected {
            tracing::warn!(session = %self.session, how, "a browser ended by itself");
        }
        self.tell(json!({ "kind": if expected { "closed" } else { "crash" }, "how": how }));
        self.news.send_modify(|count| *count += 1);
    }

    /// Kills all its processes at once.
    pub fn kill(&self) {
        if let Some(pid) = self.pid.get() {
            for member in self.processes.members(*pid, self.mark) {
                let _ = member.send(Signal::KILL);
            }
        }
    }

    /// Ends it, in good order if it can, and forgets its profile.
    pub async fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        if let (Some(_), Some(cdp)) = (self.pid.get(), self.cdp.get()) {
            cdp.tell("", "Browser.close", json!({}));
            let mut ended = self.ended.subscribe();
            let _ = tokio::time::timeout(GRACE, ended.wait_for(|ended| *ended)).await;
        }
        if let Some(pid) = self.pid.get() {
            let mut changes = self.processes.ended();
            let nothing_left = async {
                loop {
                    changes.borrow_and_update();
                    if self.processes.members(*pid, self.mark).is_empty() {
                        return;
                    }
                    self.kill();
                    let _ = tokio::time::timeout(Duration::from_millis(100), changes.changed()).await;
                }
            };
            if tokio::time::timeout(START, nothing_left).await.is_err() {
                tracing::warn!(session = %self.session, "processes of a browser could not be ended");
            }
        }
        let folder = self.folder.clone();
        let _ = tokio::task::spawn_blocking(move || remove_folder(&folder)).await;
    }
}

fn auto_attach() -> Value {
    let filter: Vec<_> = TARGETS.iter().map(|kind| json!({ "type": kind })).collect();
    json!({ "autoAttach": true, "waitForDebuggerOnStart": true, "flatten": true, "filter": filter })
}

/// Keeps the end of what the browser says.
async fn listen(from: OwnedFd, said: Arc<Mutex<VecDeque<u8>>>) {
    let Ok(mut pipe) = pipe::Receiver::from_owned_fd(from) else { return };
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend(&buffer[..n]);
        let excess = said.len().saturating_sub(SAID_BYTES);
        said.drain(..excess);
    }
}
