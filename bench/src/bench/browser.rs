//! What an action in a browser takes by way of hub, relay and peer, and how large a page is that was read: beside Playwright on this machine.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Bench, Setting};
use crate::{
    contest::{Contest, Rounds, Samples},
    http::Client,
    other::playwright::{self, Playwright},
    report::{Metric, Report, Target},
    stack::Stack,
};

pub const BENCH: Bench =
    Bench { name: "browser", what: "actions in a browser, and a large page as text", against: &[playwright::NAME], journalled: false, run };

/// What the way through hub and relay may add to a single action, in milliseconds.
const WAY_MS: f64 = 5.0;
/// Rows of the large page, each with a link, a button and a box.
const ROWS: usize = 1_500;
/// A click and a fill each: 50 actions.
const PAIRS: usize = 25;

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let site = Site::start()?;
    let stack = Stack::start_with(setting.folder(), &[], "browser:\n  allow_addresses: [\"127.0.0.1\"]\n")?;
    let mut ours = Ours { client: stack.hub.connect()?, path: format!("/api/sessions/{}/browser", stack.session), turn: 0 };
    let node = ours.client.call("GET", &format!("/api/nodes/{}", stack.peer.node), None)?;
    let chromium =
        node["capabilities"]["browser"].as_str().context("this machine has no Chromium: apt-get install -y chromium")?.to_owned();
    let mut other = match setting.against(playwright::NAME) {
        true => report.found(Playwright::start(Path::new(&chromium), setting.folder())?),
        false => None,
    };
    let rounds = |counted| Rounds { warm: 10, counted, within: setting.pick(Duration::from_secs(30), Duration::from_secs(6)) };

    open(&mut ours, other.as_mut(), &site.url("small"))?;
    for (name, what) in [
        (
            "click",
            "A click on a button, warm: from sending POST browser on an open connection to its answer, which says what changed on the page; through hub and a relay that is a process of its own. Beside it page.click, by Playwright's own clock on this machine; wanted is at most 5 ms more.",
        ),
        ("fill", "A field filled in, likewise, beside page.fill."),
        ("evaluate", "`1 + 1` in the page, likewise, beside page.evaluate."),
    ] {
        let found =
            contest(rounds(setting.pick(200, 60)), &mut ours, other.as_mut(), |ours| ours.act(name), |other| Ok(other.act(name)?.ms))?;
        let metric = Metric::of("ms", what, &found.0).beside(playwright::LABEL, found.1.as_ref());
        report.add(
            name,
            match found.1 {
                Some(other) => metric.wanted(Target::at_most(((other.median() + WAY_MS) * 10.0).round() / 10.0)),
                None => metric,
            },
        );
    }
    let found = contest(Rounds { warm: 2, ..rounds(setting.pick(20, 6)) }, &mut ours, other.as_mut(), Ours::batch, |other| {
        Ok(other.run_loop(PAIRS)?.ms)
    })?;
    let what = "25 clicks and 25 fills in one batch, to its answer. Playwright: the same in a loop.";
    report.add("batch_50", Metric::of("ms", what, &found.0).beside(playwright::LABEL, found.1.as_ref()).wanted(Target::ratio_at_most(1.0)));

    open(&mut ours, other.as_mut(), &site.url("large"))?;
    let mut bytes = (0, None);
    let found = contest(
        Rounds { warm: 3, ..rounds(setting.pick(60, 20)) },
        &mut ours,
        other.as_mut(),
        |ours| {
            let since = Instant::now();
            let answer = ours.ask(&json!({ "snapshot": {} }))?;
            bytes.0 = answer["value"]["snapshot"].as_str().context("a snapshot")?.len();
            Ok(ms(since.elapsed()))
        },
        |other| {
            let did = other.act("snapshot")?;
            bytes.1 = Some(did.bytes);
            Ok(did.ms)
        },
    )?;
    let what = "The snapshot of a page with 1,500 rows, each with a link, a button and a box, as an AI gets it. Playwright: locator('body').ariaSnapshot(), by its own clock.";
    report.add("snapshot", Metric::of("ms", what, &found.0).beside(playwright::LABEL, found.1.as_ref()).wanted(Target::ratio_at_most(1.5)));
    let what = "How large that snapshot is; it goes on where it ended when it is asked to. Playwright's is whole.";
    let metric = Metric::single("bytes", what, bytes.0 as f64);
    let metric = match bytes.1 {
        Some(other) => metric.beside_figure(playwright::LABEL, other as f64),
        None => metric,
    };
    report.add("snapshot_bytes", metric.wanted(Target::at_most(10_000.0)));
    Ok(())
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn open(ours: &mut Ours, other: Option<&mut Playwright>, url: &str) -> anyhow::Result<()> {
    ours.ask(&json!({ "navigate": { "url": url } }))?;
    other.map_or(Ok(()), |other| other.open(url).map(drop))
}

/// Both in turns, in milliseconds.
fn contest(
    rounds: Rounds,
    ours: &mut Ours,
    other: Option<&mut Playwright>,
    mut run: impl FnMut(&mut Ours) -> anyhow::Result<f64>,
    mut run_other: impl FnMut(&mut Playwright) -> anyhow::Result<f64>,
) -> anyhow::Result<(Samples, Option<Samples>)> {
    let mut contest = Contest::default();
    contest.enter("ours", || run(ours));
    if let Some(other) = other {
        contest.enter(playwright::NAME, move || run_other(other));
    }
    let mut found = contest.hold(rounds)?;
    Ok((found.remove("ours").unwrap_or_default(), found.remove(playwright::NAME)))
}

/// A client of the hub with a browser.
struct Ours {
    client: Client,
    path: String,
    turn: usize,
}

impl Ours {
    fn ask(&mut self, action: &Value) -> anyhow::Result<Value> {
        let body = json!({ "order": { "action": action } });
        let mut said = self.client.call("POST", &self.path, Some(&body))?;
        ensure!(said["answer"]["ok"] == true, "{action} did not work: {said}");
        Ok(said["answer"].take())
    }

    fn click_or_fill(&mut self, name: &str) -> Value {
        self.turn += 1;
        match name {
            "click" => json!({ "click": { "target": "#button" } }),
            _ => json!({ "fill": { "target": "#field", "value": format!("value {}", self.turn) } }),
        }
    }

    fn act(&mut self, name: &str) -> anyhow::Result<f64> {
        let action = match name {
            "evaluate" => json!({ "evaluate": { "expression": "1 + 1" } }),
            name => self.click_or_fill(name),
        };
        let since = Instant::now();
        self.ask(&action)?;
        Ok(ms(since.elapsed()))
    }

    fn batch(&mut self) -> anyhow::Result<f64> {
        let steps: Vec<Value> = (0..PAIRS).flat_map(|_| [self.click_or_fill("click"), self.click_or_fill("fill")]).collect();
        let since = Instant::now();
        self.ask(&json!({ "batch": { "steps": steps } }))?;
        Ok(ms(since.elapsed()))
    }
}

/// Two pages on loopback.
struct Site(SocketAddr);

impl Site {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let site = Self(listener.local_addr()?);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve(stream));
            }
        });
        Ok(site)
    }

    fn url(&self, page: &str) -> String {
        format!("http://{}/{page}", self.0)
    }
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.by_ref().take(8192).read_line(&mut first)?;
    let mut line = String::new();
    while reader.by_ref().take(8192).read_line(&mut line)? > 2 {
        line.clear();
    }
    let page = if first.contains("/large") { large() } else { SMALL.to_owned() };
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len());
    reader.get_mut().write_all((head + &page).as_bytes())
}

const SMALL: &str = "<!doctype html><title>small</title><h1>A small page</h1><label>Name <input id=field></label>\
<button id=button onclick=\"count.textContent=+count.textContent+1\">Count</button><output id=count>0</output>";

fn large() -> String {
    let row = |n: usize| {
        format!(
            "<tr><td>Item {n}</td><td><a href='#{n}'>Open {n}</a></td><td><button>Delete {n}</button></td><td><input type=checkbox aria-label='Pick {n}'></td></tr>"
        )
    };
    format!("<!doctype html><title>large</title><h1>Many</h1><table>{}</table>", (0..ROWS).map(row).collect::<String>())
}
