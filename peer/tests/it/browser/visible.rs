//! With a window, on a screen that the test makes.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cortex_peer::browser::{BrowserOptions, Screen};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{Bench, options, shown, site::Site};
use crate::hub::Hub;

const SOON: Duration = Duration::from_secs(30);

/// An X server without a monitor. It ends, with its socket and its lock, when it is dropped.
struct Display {
    server: Child,
    name: String,
}

impl Display {
    fn start() -> Self {
        // It takes the first number that is free, and says which when it is ready.
        let arguments = ["-displayfd", "1", "-screen", "0", "1280x1024x24", "-nolisten", "tcp"];
        let command = Command::new("Xvfb").args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut server = command.expect("this test needs an X server: apt-get install -y --no-install-recommends xvfb");
        let mut number = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut number).unwrap();
        assert!(!number.trim().is_empty(), "Xvfb has ended: {:?}", server.wait());
        Self { server, name: format!(":{}", number.trim()) }
    }

    /// What windows are called that are shown.
    fn windows(&self) -> Vec<String> {
        let tree = |which: &[&str]| {
            let said = Command::new("xwininfo").args(["-display", &self.name]).args(which).output();
            let said = said.expect("this test asks for windows: apt-get install -y --no-install-recommends x11-utils");
            String::from_utf8_lossy(&said.stdout).into_owned()
        };
        let named = tree(&["-root", "-tree"]);
        let named = named.lines().filter_map(|line| line.trim().split_once(" \""));
        let is_shown = |id: &str| tree(&["-id", id]).contains("IsViewable");
        named.filter(|(id, _)| id.starts_with("0x") && is_shown(id)).map(|(_, name)| name.to_owned()).collect()
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        // In good order, so that it takes its lock away.
        if let Some(pid) = i32::try_from(self.server.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.server.wait();
    }
}

async fn bench_on(screen: Screen) -> Bench {
    let mut hub = Hub::new();
    hub.browser = Some(BrowserOptions { screen: Some(screen), ..options(hub.path(), &["127.0.0.1"]) });
    let tasks = hub.tasks();
    Bench { hub, tasks, site: Site::start().await }
}

#[tokio::test]
async fn a_browser_that_is_to_be_seen_has_a_window_on_the_screen_until_it_ends() {
    let display = Display::start();
    let bench = bench_on(Screen::x11(&display.name)).await;
    let titled = async |title: &str, wanted: bool| {
        let began = Instant::now();
        while display.windows().iter().any(|name| name.starts_with(title)) != wanted {
            assert!(began.elapsed() < SOON, "{title} {wanted}: {:?}", display.windows());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(shown(&bench.open("form").await).contains("heading \"Form\""));
    titled("form", true).await;
    bench.act(json!({ "click": { "target": "text=Second" } })).await;
    bench.act(json!({ "wait_for": { "text": "Second page" } })).await;
    titled("second", true).await;
    let (_, over) = bench.over(&json!({ "action": { "screenshot": {} } })).await;
    assert!(over.stderr.starts_with(b"\x89PNG"));
    bench.act(json!("close")).await;
    titled("second", false).await;
    bench.end().await;
}

#[tokio::test]
async fn a_window_without_a_screen_is_an_error_that_says_what_to_do() {
    let bench = bench_on(Screen::default()).await;
    let rejected = bench.begin(&json!({ "action": "tabs" })).await.rejected().await;
    assert_eq!(rejected.code, "cannot_start");
    assert!(rejected.message.contains("DISPLAY") && rejected.message.contains("browser.headless: true"), "{rejected:?}");
    bench.end().await;
    // One that is named and is not there.
    let bench = bench_on(Screen::x11(":4711")).await;
    let (code, answer) = bench.fails(json!("tabs")).await;
    assert_eq!(code, "no_browser");
    assert!(answer["message"].as_str().unwrap().contains("browser.headless: true"), "{answer:#}");
    bench.end().await;
}
