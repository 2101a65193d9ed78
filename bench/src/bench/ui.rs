//! The web page with many machines: how much it loads, how soon it can be used, how soon a change is seen, and whether it stands still.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Bench, Setting};
use crate::{
    fleet::Fleet,
    machine::GivingWay,
    report::{Metric, Report, Target},
    stack::{BENCH_NAME, BENCH_PASSWORD, Hub, free_port},
};

pub const BENCH: Bench =
    Bench { name: "ui", what: "the web page with 500 machines in real Chromium", against: &[], journalled: false, run };

const MACHINES: usize = 500;

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let relay = format!("127.0.0.1:{}", free_port()?);
    let hub = Hub::start(setting.folder(), &setting.folder().join("hub"), &["--relay-listen", &relay])?;
    let mut client = hub.connect()?;
    let invites = (0..MACHINES).map(|number| hub.invite(&mut client, &format!("machine-{number:03}"))).collect::<anyhow::Result<_>>()?;
    let mut fleet = Fleet::join(setting.folder(), invites);
    fleet.wait_for(MACHINES, Duration::from_secs(300))?;
    // Whoever looks at the page sits in front of a machine of their own, where hub and nodes take no processor from the browser.
    let giving_way = GivingWay::begin();
    let found = measure(&hub, setting.pick(10_000, 3_000))?;
    drop(giving_way);
    let figure = |name: &str| found[name].as_f64().with_context(|| format!("the page's measurement says nothing of {name}"));
    let what = "What the browser receives, as it is packed, until the list of machines stands there: page, scripts and styles.";
    report.add("first_load_kb", Metric::single("kB", what, figure("first_load_kb")?).wanted(Target::at_most(250.0)));
    let what =
        "From the start of the navigation, with an empty cache, to the list of 500 machines, drawn and ready for a click; the median of 5.";
    report.add("interactive_ms", Metric::single("ms", what, figure("interactive_ms")?).wanted(Target::at_most(1000.0)));
    let what = "From the hub's time of a change of a machine to the row that says so; the longest of 20.";
    report.add("status_change_ms", Metric::single("ms", what, figure("status_change_ms")?).wanted(Target::at_most(300.0)));
    let what = "The longest time between two frames, by the clock, while changes of 500 machines come in (10,000, or 3,000 when quick, 250 in a second) and somebody scrolls along their list; in five \
                storms, the median of them. Hub, machines and browser share the processors; the browser goes first, as on a machine of its own.";
    report.add(
        "worst_frame_ms_500_machines",
        Metric::single("ms", what, figure("worst_frame_ms_500_machines")?).wanted(Target::at_most(100.0)),
    );
    let what = "The longest that the page itself computed without a pause in all of these storms, in processor time of its main thread, out of a trace of Chromium: what no other program makes longer.";
    report.add(
        "busiest_task_ms_500_machines",
        Metric::single("ms", what, figure("busiest_task_ms_500_machines")?).wanted(Target::at_most(50.0)),
    );
    Ok(())
}

fn measure(hub: &Hub, events: usize) -> anyhow::Result<Value> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hub/ui");
    ensure!(page.join("node_modules").is_dir(), "the page's tools are missing; run: make ui");
    let token = hub.headers.iter().find_map(|header| header.strip_prefix("Authorization: Bearer ")).context("the hub has no token")?;
    let output = Command::new("node")
        .arg("bench/ui.mjs")
        .current_dir(&page)
        .env("CORTEX_URL", format!("http://{}", hub.address))
        .env("CORTEX_TOKEN", token)
        .env("CORTEX_NAME", BENCH_NAME)
        .env("CORTEX_PASSWORD", BENCH_PASSWORD)
        .env("CORTEX_EVENTS", events.to_string())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run node; install nodejs and chromium: scripts/setup-test.sh")?;
    ensure!(output.status.success(), "the page's measurement ended with {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}
