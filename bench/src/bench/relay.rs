//! What a relay costs and carries: plain QUIC through it, packets that nobody waits for, links that do nothing.

use std::time::Duration;

use super::{Bench, Setting};
use crate::{
    contest::Samples,
    interrupt,
    other::{
        iroh::{self, Iroh},
        relay::PlainHub,
    },
    process::Process,
    report::{Metric, Report, Target},
    stack::Relay,
};

pub const BENCH: Bench =
    Bench { name: "relay", what: "throughput, round trip and memory of a relay", against: &[iroh::NAME], journalled: false, run };

const MB: f64 = 1e6;
const CONNECTIONS: usize = 32;

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let iroh = if setting.against(iroh::NAME) { report.found(Iroh::start(setting.folder())?) } else { None };
    let plain = PlainHub::new();
    let relay = Relay::start(setting.folder(), &[plain.id()])?;
    idle(setting, report, &plain, &relay, iroh.as_ref())?;
    let relay = Relay::start(setting.folder(), &[plain.id()])?;
    stream(setting, report, &plain, &relay, iroh.as_ref())?;
    round_trip(setting, report, &plain, &relay, iroh.as_ref())?;
    overload(setting, report, &plain, &relay)
}

/// First, in a relay that has done nothing else: what it allocates for each link is not lost among what it has freed.
fn idle(setting: &Setting, report: &mut Report, plain: &PlainHub, relay: &Relay, iroh: Option<&Iroh>) -> anyhow::Result<()> {
    let links = setting.pick(5_000, 1_000);
    let resident = |process: &Process| process.memory().map(|memory| memory.resident as f64 / 1024.0);
    let settled = |process: &Process| {
        for _ in 0..setting.pick(10, 4) {
            interrupt::check()?;
            std::thread::sleep(Duration::from_secs(1));
        }
        resident(process)
    };
    let before = resident(&relay.process)?;
    let after = plain.idle(&relay.endpoint, links, || settled(&relay.process))?;
    let what = "Growth of the relay's resident memory by 5,000 links of nodes (1,000 when quick) with a ticket each, which then do nothing, for each of them. Without what the kernel holds.";
    let mut metric = Metric::single("KiB", what, (after - before) / links as f64);
    metric.runs = links;
    if let Some(iroh) = iroh {
        let before = resident(&iroh.relay)?;
        let after = iroh.idle(links, || settled(&iroh.relay))?;
        metric = metric.beside_figure(iroh::LABEL_RAW, (after - before) / links as f64);
    }
    report.add("kib_per_idle_link", metric.wanted(Target::at_most(25.0).goal(22.0)));
    Ok(())
}

/// Figures of one side, a round each.
#[derive(Default)]
struct Carried {
    one: Vec<f64>,
    many: Vec<f64>,
    cpu: Vec<f64>,
}

impl Carried {
    /// `transfer`: nodes, and bytes of each of them.
    fn round(&mut self, bytes: u64, relay: &Process, transfer: impl Fn(usize, u64) -> anyhow::Result<Duration>) -> anyhow::Result<()> {
        interrupt::check()?;
        self.one.push(bytes as f64 / MB / transfer(1, bytes)?.as_secs_f64());
        let before = relay.usage()?.cpu;
        let each = bytes / CONNECTIONS as u64;
        self.many.push((each * CONNECTIONS as u64) as f64 / MB / transfer(CONNECTIONS, each)?.as_secs_f64());
        self.cpu.push(relay.usage()?.cpu.saturating_sub(before).as_secs_f64() / (bytes as f64 / 1e9));
        Ok(())
    }

    fn samples(self) -> [Samples; 3] {
        [self.one, self.many, self.cpu].map(|figures| figures.into_iter().collect())
    }
}

fn stream(setting: &Setting, report: &mut Report, plain: &PlainHub, relay: &Relay, iroh: Option<&Iroh>) -> anyhow::Result<()> {
    let bytes: u64 = setting.pick(1 << 30, 1 << 28);
    let (mut ours, mut theirs) = (Carried::default(), Carried::default());
    for _ in 0..setting.pick(5, 3) {
        ours.round(bytes, &relay.process, |nodes, bytes| match nodes {
            1 => plain.transfer(&relay.endpoint, bytes),
            _ => plain.transfer_all(&relay.endpoint, nodes, bytes),
        })?;
        if let Some(iroh) = iroh {
            theirs.round(bytes, &iroh.relay, |nodes, bytes| iroh.transfer(nodes, bytes))?;
        }
    }
    let ([one, many, cpu], theirs) = (ours.samples(), iroh.map(|_| theirs.samples()));
    let mut add = |name, unit, what, ours: &Samples, at: usize, target: Target| {
        let metric = Metric::of(unit, what, ours).beside(iroh::LABEL, theirs.as_ref().map(|theirs| &theirs[at]));
        report.add(name, metric.wanted(target));
    };
    let what = "1 GiB (256 MiB when quick) over one QUIC stream from one endpoint to another through the relay, end to end; all three processes' work on this machine.";
    add("throughput", "MB/s", what, &one, 0, Target::ratio_at_least(2.0).goal(4.0));
    let what = "The same bytes over 32 connections from 32 endpoints to one.";
    add("throughput_32", "MB/s", what, &many, 1, Target::ratio_at_least(2.0).goal(4.0));
    let what = "CPU time of the relay for each 10^9 bytes of those 32 connections, their handshakes included.";
    add("cpu_per_gb", "s", what, &cpu, 2, Target::ratio_at_most(0.3).goal(0.12));
    Ok(())
}

fn round_trip(setting: &Setting, report: &mut Report, plain: &PlainHub, relay: &Relay, iroh: Option<&Iroh>) -> anyhow::Result<()> {
    let count = setting.pick(20_000, 4_000);
    let times: Samples = plain.echo(&relay.endpoint, count)?.into_iter().collect();
    let theirs = iroh.map(|iroh| anyhow::Ok((iroh.raw_echo(count)?, iroh.echo(count)?))).transpose()?;
    let (raw, endpoints) = (theirs.as_ref().map(|(raw, _)| raw), theirs.as_ref().map(|(_, endpoints)| endpoints));
    let what =
        "100 bytes on a stream through the relay to the other endpoint and back, one at a time. The other's are packets without QUIC.";
    report.add("rtt_p50", Metric::of("µs", what, &times).beside(iroh::LABEL_RAW, raw).wanted(Target::ratio_at_most(1.0)));
    let mut add = |name, what, other: &str, theirs: Option<&Samples>| {
        let mut worst = Metric::single("µs", what, times.percentile(99.0));
        worst.runs = times.count();
        if let Some(theirs) = theirs {
            worst = worst.beside_figure(other, theirs.percentile(99.0));
        }
        report.add(name, worst.wanted(Target::ratio_at_most(1.0)));
    };
    add("rtt_p99", "The same: what 99 of 100 stay under.", iroh::LABEL_RAW, raw);
    add("rtt_p99_endpoints", "The same, beside streams of iroh.", iroh::LABEL, endpoints);
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
