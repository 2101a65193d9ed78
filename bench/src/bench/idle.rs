//! What nodes cost while nothing happens: memory and CPU time of peer, relay and hub.

use std::time::{Duration, Instant};

use super::{Bench, Setting};
use crate::{
    fleet::Fleet,
    interrupt,
    process::{Process, Usage},
    report::{Metric, Report, Target},
    stack::Stack,
};

pub const BENCH: Bench = Bench { name: "idle", what: "memory and CPU time of idle nodes", against: &[], journalled: false, run };

const NODES: usize = 1000;

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let nodes = setting.pick(NODES, 300);
    let stack = Stack::start(setting.folder(), &[])?;
    rest(setting.pick(10, 3))?;
    let resident = |process: &Process| process.memory().map(|memory| memory.resident as f64 / 1024.0);
    let (relay_before, hub_before) = (resident(&stack.relay.process)?, resident(&stack.hub.process)?);
    let mut client = stack.hub.connect()?;
    let invites = (0..nodes).map(|number| stack.hub.invite(&mut client, &format!("simulated-{number}"))).collect::<anyhow::Result<_>>()?;
    let mut fleet = Fleet::join(setting.folder(), invites);
    fleet.wait_for(nodes, Duration::from_secs(120))?;
    rest(setting.pick(15, 6))?;
    let (relay_after, hub_after) = (resident(&stack.relay.process)?, resident(&stack.hub.process)?);
    let what = "Growth of the process's resident memory from one connected node to 1,000 more (300 more when quick), for each: link, connection, registration, heartbeats every 5 s; joined with an invite each, in one process that speaks the peer's own protocol code.";
    report.add("relay_kib_per_node", Metric::single("KiB", what, (relay_after - relay_before) / nodes as f64));
    report.add("hub_kib_per_node", Metric::single("KiB", what, (hub_after - hub_before) / nodes as f64));
    let peer = stack.peer.process.memory()?;
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    let metric = Metric::single("MiB", "Resident memory of a peer that is connected and idle (VmRSS).", mib(peer.resident));
    report.add("peer_rss_mib", metric.wanted(Target::goal_at_most(15.0)));
    report.add(
        "peer_private_mib",
        Metric::single("MiB", "Of that, what no other process shares (Private in smaps_rollup).", mib(peer.private)),
    );
    let spans = watch(&[&stack.peer.process, &stack.relay.process, &stack.hub.process], Duration::from_secs(setting.pick(30, 15)))?;
    let [peer, relay, hub] = spans[..] else { anyhow::bail!("three processes were watched") };
    report.add(
        "peer_wakeups_per_s",
        Metric::single("/s", "How often a thread of the idle peer went to sleep and was woken (voluntary context switches).", peer.wakeups),
    );
    report.add("peer_cpu_percent", Metric::single("%", "CPU time of the idle peer, of one core.", peer.cpu_percent));
    let what = "CPU time of the process with all these nodes connected and idle, of one core.";
    report.add("relay_cpu_percent", Metric::single("%", what, relay.cpu_percent));
    report.add("hub_cpu_percent", Metric::single("%", what, hub.cpu_percent));
    Ok(())
}

/// What a process used in a span of time.
#[derive(Debug, Clone, Copy)]
struct Span {
    cpu_percent: f64,
    wakeups: f64,
}

fn watch(processes: &[&Process], span: Duration) -> anyhow::Result<Vec<Span>> {
    let usage = || processes.iter().map(|process| process.usage()).collect::<anyhow::Result<Vec<Usage>>>();
    let (since, before) = (Instant::now(), usage()?);
    rest(span.as_secs())?;
    let (seconds, after) = (since.elapsed().as_secs_f64(), usage()?);
    let used = |(before, after): (&Usage, &Usage)| Span {
        cpu_percent: after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds * 100.0,
        wakeups: after.wakeups_since(before) as f64 / seconds,
    };
    Ok(before.iter().zip(&after).map(used).collect())
}

/// Does nothing for this many seconds.
fn rest(seconds: u64) -> anyhow::Result<()> {
    for _ in 0..seconds {
        interrupt::check()?;
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
