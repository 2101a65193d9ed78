//! How fast the output of a command flows, and what it costs in memory: beside a plain stream through the same relay.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{Bench, Setting, dispatch::Ours};
use crate::{
    contest::{Contest, Rounds, Samples},
    other::{
        relay::{self, PlainHub},
        ssh::{self, Ssh},
    },
    report::{Metric, Report, Target},
    stack::Stack,
};

pub const BENCH: Bench =
    Bench { name: "output", what: "throughput of a command's output", against: &[relay::NAME, ssh::NAME], journalled: false, run };

const MIB: f64 = 1024.0 * 1024.0;

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let ssh = if setting.against(ssh::NAME) { report.found(Ssh::start(setting.folder())?) } else { None };
    let plain = PlainHub::new().with_large_packets();
    let mut stack = Stack::start(setting.folder(), &[plain.id()])?;
    let bytes: u64 = setting.pick(1 << 30, 1 << 28);
    let rate = |took: Duration| bytes as f64 / 1e6 / took.as_secs_f64();
    let mut peaks = [const { Vec::new() }; 3];
    let endpoint = stack.relay.endpoint.clone();
    let mut contest = Contest::default();
    contest.enter("ours", || {
        let processes = [&stack.peer.process, &stack.relay.process, &stack.hub.process];
        processes.iter().try_for_each(|process| process.forget_peak())?;
        let took = follow(&stack, bytes)?;
        for (peaks, process) in peaks.iter_mut().zip(processes) {
            peaks.push(process.memory()?.peak as f64 / MIB);
        }
        // What was stored is removed with the session, so that the folder does not fill up.
        let fresh = stack.hub.session(&stack.peer.node)?;
        let old = std::mem::replace(&mut stack.session, fresh);
        stack.hub.connect()?.call("DELETE", &format!("/api/sessions/{old}"), None)?;
        Ok(rate(took))
    });
    if setting.against(relay::NAME) {
        contest.enter("plain", || plain.transfer(&endpoint, bytes).map(rate));
    }
    if let Some(ssh) = &ssh {
        contest.enter("ssh", || over_ssh(ssh, bytes).map(rate));
    }
    let within = setting.pick(Duration::from_secs(120), Duration::from_secs(25));
    let found = contest.hold(Rounds { warm: 1, counted: setting.pick(5, 3), within })?;
    first_byte_under_load(setting, report, &stack)?;
    let ours = &found["ours"];
    let what = "head -c 1G /dev/zero (256M when quick): from sending the dispatch to the last byte of GET /api/tasks/{id}/output?follow=true, stored by the hub on the way. Beside it the same bytes over one QUIC stream through the same relay process between two endpoints that do nothing else.";
    report.add("throughput", Metric::of("MB/s", what, ours).beside(relay::LABEL, found.get("plain")).wanted(Target::ratio_at_least(0.5)));
    let what = "The same bytes beside `ssh -S HOST head -c 1G /dev/zero` on an open ControlMaster connection, which stores nothing.";
    report.add("throughput_ssh", Metric::of("MB/s", what, ours).beside(ssh::LABEL, found.get("ssh")));
    let names = ["peer_rss_mib", "relay_rss_mib", "hub_rss_mib"];
    for (name, peaks) in names.into_iter().zip(peaks) {
        let peaks: Samples = peaks.into_iter().collect();
        report.add(name, Metric::of("MiB", "The most memory that was resident during a run (VmHWM, reset before it).", &peaks));
    }
    Ok(())
}

/// Prints 100 MB/s: 128 KiB whenever they are due, and what is overdue at once.
const STEADY: &str = "use Time::HiRes qw(time sleep); $b = qq(\\0) x 131072; $t = time; for (;;) { $n += syswrite STDOUT, $b; $w = $t + $n / 1e8 - time; sleep $w if $w > 0 }";

/// What a task that prints 100 MB/s costs another one's first byte.
fn first_byte_under_load(setting: &Setting, report: &mut Report, stack: &Stack) -> anyhow::Result<()> {
    let rounds =
        Rounds { warm: 20, counted: setting.pick(300, 100), within: setting.pick(Duration::from_secs(60), Duration::from_secs(10)) };
    let measure = || {
        let mut ours = Ours::new(stack)?;
        let mut contest = Contest::default();
        contest.enter("ours", || ours.first_byte().map(|took| took.as_secs_f64() * 1e3));
        Ok::<_, anyhow::Error>(contest.hold(rounds)?.remove("ours").unwrap_or_default())
    };
    let idle = measure()?;
    // In a session of its own, whose event stream nobody reads.
    let loud = stack.hub.session(&stack.peer.node)?;
    let mut client = stack.hub.connect()?;
    let task = client.call("POST", &format!("/api/sessions/{loud}/dispatch"), Some(&json!({"argv": ["perl", "-e", STEADY]})))?;
    let id = task["id"].as_str().context("a task has an id")?;
    let since = Instant::now();
    let busy = measure()?;
    let took = since.elapsed().as_secs_f64();
    let mut client = stack.hub.connect()?;
    client.call("POST", &format!("/api/tasks/{id}/cancel"), Some(&json!({})))?;
    let printed = loop {
        let task = client.call("GET", &format!("/api/tasks/{id}"), None)?;
        if task["finished_at_ms"].is_i64() {
            break task["stdout_bytes"].as_f64().unwrap_or_default();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    report.add(
        "load",
        Metric::single("MB/s", "What the other task printed meanwhile, as the hub stored it.", printed / 1e6 / took)
            .wanted(Target::share_at_least(95.0)),
    );
    let what = "First byte of /bin/echo x (as in `dispatch`) while another task of the same node, in another session, prints 128 KiB every 1.3 ms, and what is overdue at once (`load` says what came of it); beside it the same with nothing else to do.";
    report.add("first_byte_under_load", Metric::of("ms", what, &busy).beside("idle", Some(&idle)).wanted(Target::ratio_at_most(2.0)));
    Ok(())
}

/// Dispatches the command, and reads what it prints to its end.
fn follow(stack: &Stack, bytes: u64) -> anyhow::Result<Duration> {
    let (mut client, reader) = (stack.hub.connect()?, stack.hub.connect()?);
    let body = json!({"argv": ["head", "-c", bytes.to_string(), "/dev/zero"]});
    let since = Instant::now();
    let task = client.call("POST", &stack.dispatch_path(), Some(&body))?;
    let id = task["id"].as_str().context("a task has an id")?;
    let mut output = reader.stream(&format!("/api/tasks/{id}/output?follow=true"))?;
    let received = read_all(&mut output)?;
    let took = since.elapsed();
    ensure!(received == bytes, "{received} of {bytes} bytes arrived");
    Ok(took)
}

fn over_ssh(ssh: &Ssh, bytes: u64) -> anyhow::Result<Duration> {
    let since = Instant::now();
    let mut client = ssh.command(&format!("head -c {bytes} /dev/zero")).spawn()?;
    let received = client.stdout.take().map(|mut output| read_all(&mut output)).transpose()?;
    let took = since.elapsed();
    ensure!(client.wait()?.success() && received == Some(bytes), "{received:?} of {bytes} bytes arrived");
    Ok(took)
}

fn read_all(from: &mut impl std::io::Read) -> anyhow::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(received),
            read => received += read as u64,
        }
    }
}
