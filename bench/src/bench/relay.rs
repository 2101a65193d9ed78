//! What a relay costs and carries: plain QUIC through it, packets that nobody waits for, links that do nothing.

use std::time::{Duration, Instant};

use super::{Bench, Setting};
use crate::{
    contest::Samples,
    interrupt,
    other::relay::PlainHub,
    report::{Metric, Report, Target},
    stack::Relay,
};

pub const BENCH: Bench =
    Bench { name: "relay", what: "throughput, round trip and memory of a relay", against: &[], journalled: false, run };

const MB: f64 = 1e6;
const CONNECTIONS: usize = 32;

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let plain = PlainHub::new();
    let relay = Relay::start(setting.folder(), &[plain.id()])?;
    idle(setting, report, &plain, &relay)?;
    let relay = Relay::start(setting.folder(), &[plain.id()])?;
    stream(setting, report, &plain, &relay)?;
    round_trip(setting, report, &plain, &relay)?;
    overload(setting, report, &plain, &relay)
}

/// First, in a relay that has done nothing else: what it allocates for each link is not lost among what it has freed.
fn idle(setting: &Setting, report: &mut Report, plain: &PlainHub, relay: &Relay) -> anyhow::Result<()> {
    let links = setting.pick(5_000, 1_000);
    let resident = || relay.process.memory().map(|memory| memory.resident as f64 / 1024.0);
    let before = resident()?;
    let after = plain.idle(&relay.endpoint, links, || {
        for _ in 0..setting.pick(10, 4) {
            interrupt::check()?;
            std::thread::sleep(Duration::from_secs(1));
        }
        resident()
    })?;
    let what = "Growth of the relay's resident memory by 5,000 links of nodes (1,000 when quick) with a ticket each, which then do nothing, for each of them. Without what the kernel holds.";
    let mut metric = Metric::single("KiB", what, (after - before) / links as f64);
    metric.runs = links;
    report.add("kib_per_idle_link", metric.wanted(Target::at_most(25.0).goal(22.0)));
    Ok(())
}

fn stream(setting: &Setting, report: &mut Report, plain: &PlainHub, relay: &Relay) -> anyhow::Result<()> {
    let bytes: u64 = setting.pick(1 << 30, 1 << 28);
    let (mut one, mut many, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.pick(5, 3) {
        interrupt::check()?;
        one.push(bytes as f64 / MB / plain.transfer(&relay.endpoint, bytes)?.as_secs_f64());
        let before = (relay.process.usage()?.cpu, Instant::now());
        let each = bytes / CONNECTIONS as u64;
        many.push((each * CONNECTIONS as u64) as f64 / MB / plain.transfer_all(&relay.endpoint, CONNECTIONS, each)?.as_secs_f64());
        let spent = relay.process.usage()?.cpu.saturating_sub(before.0);
        cpu.push(spent.as_secs_f64() / (bytes as f64 / 1e9));
    }
    let [one, many, cpu] = [one, many, cpu].map(|figures| figures.into_iter().collect::<Samples>());
    let what = "1 GiB (256 MiB when quick) over one QUIC stream from one endpoint to another through the relay, end to end; all three processes' work on this machine.";
    report.add("throughput", Metric::of("MB/s", what, &one));
    report.add("throughput_32", Metric::of("MB/s", "The same bytes over 32 connections from 32 endpoints to one.", &many));
    report.add(
        "cpu_per_gb",
        Metric::of("s", "CPU time of the relay for each 10^9 bytes of those 32 connections, their handshakes included.", &cpu),
    );
    Ok(())
}

fn round_trip(setting: &Setting, report: &mut Report, plain: &PlainHub, relay: &Relay) -> anyhow::Result<()> {
    let times: Samples = plain.echo(&relay.endpoint, setting.pick(20_000, 4_000))?.into_iter().collect();
    let what = "100 bytes on a stream through the relay to the other endpoint and back, one at a time.";
    report.add("rtt_p50", Metric::of("µs", what, &times));
    let mut worst = Metric::single("µs", "The same: what 99 of 100 stay under.", times.percentile(99.0));
    worst.runs = times.count();
    report.add("rtt_p99", worst);
    Ok(())
}

fn overload(setting: &Setting, report: &mut Report, plain: &PlainHub, relay: &Relay) -> anyhow::Result<()> {
    let lasts = Duration::from_millis(setting.pick(3_000, 1_000));
    let rates: Vec<f64> = [50.0, 100.0, 200.0, 400.0, 800.0, 1_600.0, 3_200.0].map(|rate| rate * MB).into();
    let arrived = plain.flood(&relay.endpoint, &rates, lasts)?;
    let peak = arrived.iter().copied().fold(0.0, f64::max);
    let beyond = plain.flood(&relay.endpoint, &[peak * 3.0; 3], lasts)?.into_iter().collect::<Samples>();
    let what = "Packets that nobody waits for, from one link to another: what arrives when three times as much is offered as ever arrived at 50 to 3,200 MB/s, through the most that arrived. Sender and receiver want the same cores.";
    let mut metric = Metric::single("", what, beyond.median() / peak).wanted(Target::share_at_least(0.9));
    metric.runs = beyond.count();
    report.add("overload_goodput", metric);
    report.add("peak_goodput", Metric::single("MB/s", "The most of such packets that arrived.", peak / MB));
    Ok(())
}
