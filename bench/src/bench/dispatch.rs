//! How soon a command's first byte is here, and how many commands a second: beside ssh and a bare spawn.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::json;

use super::{Bench, Setting};
use crate::{
    contest::{Contest, Rounds},
    http::{Client, Event, Events},
    other::{
        mux::Mux,
        spawn,
        ssh::{self, Ssh},
    },
    report::{Metric, Report, Target},
    stack::Stack,
};

pub const BENCH: Bench = Bench {
    name: "dispatch",
    what: "first byte of a command, and short commands per second",
    against: &[ssh::NAME, SPAWN],
    journalled: false,
    run,
};

const SPAWN: &str = "spawn";
const AT_ONCE: usize = 64;

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let ssh = if setting.against(ssh::NAME) { report.found(Ssh::start(setting.folder())?) } else { None };
    let stack = Stack::start(setting.folder(), &[])?;
    let mut ours = Ours::new(&stack)?;
    first_byte(setting, report, &mut ours, ssh.as_ref())?;
    let serial = Batches { at_once: 1, tasks: setting.pick(1000, 250), rounds: setting.pick(4, 2) };
    rate(setting, report, "serial", serial, &mut ours, ssh.as_ref())?;
    let parallel = Batches { at_once: AT_ONCE, tasks: setting.pick(1280, 320), rounds: setting.pick(4, 3) };
    rate(setting, report, "parallel_64", parallel, &mut ours, ssh.as_ref())
}

fn first_byte(setting: &Setting, report: &mut Report, ours: &mut Ours<'_>, ssh: Option<&Ssh>) -> anyhow::Result<()> {
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    let mut mux = ssh.map(Ssh::mux).transpose()?;
    let mut contest = Contest::default();
    contest.enter("ours", || ours.first_byte().map(ms));
    if let Some(ssh) = ssh {
        contest.enter("ssh", || spawn::first_byte(&mut ssh.command("/bin/echo x")).map(ms));
    }
    if let Some(mux) = &mut mux {
        contest.enter("mux", || Mux::first_byte(mux, "/bin/echo x").map(ms));
    }
    if setting.against(SPAWN) {
        contest.enter(SPAWN, || spawn::first_byte(&mut spawn::command(&["/bin/echo", "x"])).map(ms));
    }
    let rounds =
        Rounds { warm: 50, counted: setting.pick(300, 150), within: setting.pick(Duration::from_secs(60), Duration::from_secs(8)) };
    let found = contest.hold(rounds)?;
    let (ours, ssh, spawn) = (&found["ours"], found.get("ssh"), found.get(SPAWN));
    let metric = Metric::of(
        "ms",
        "/bin/echo x, warm: from sending POST dispatch on an open connection to the event with the first byte of output on an event stream that was open before, through a relay that is a process of its own. ssh: from starting `ssh -S` (a new client process on an open ControlMaster connection) to the first byte on its standard output.",
        ours,
    );
    report.add("first_byte", metric.beside(ssh::LABEL, ssh).wanted(Target::ratio_at_most(0.5).goal(0.25)));
    let metric = Metric::of(
        "ms",
        "The same, beside ssh without a client process: the session is asked for on the ControlMaster's socket (PROTOCOL.mux) by the benchmark itself, which is already running and connected, as our client is.",
        ours,
    );
    report.add("first_byte_without_client", metric.beside("ssh's control socket, dash", found.get("mux")));
    if let Some(spawn) = spawn {
        let metric = Metric::of(
            "ms",
            "A bare spawn of /bin/echo x with a pipe, to its first byte: what no way of running a program can beat.",
            ours,
        );
        report.add("first_byte_spawn", metric.beside("bare spawn", Some(spawn)));
        let over = ours.median() - spawn.median();
        let mut metric =
            Metric::single("ms", "Median of the first byte less the median of the bare spawn; beside it ssh's, with its client.", over);
        metric.runs = ours.count();
        let metric = match ssh {
            Some(ssh) => metric.beside_figure(ssh::LABEL, ssh.median() - spawn.median()),
            None => metric,
        };
        report.add("over_spawn_ms", metric.wanted(Target::at_most(5.0).goal(2.0)));
    }
    Ok(())
}

/// How many commands, and how many of them at a time.
#[derive(Debug, Clone, Copy)]
struct Batches {
    at_once: usize,
    tasks: usize,
    rounds: usize,
}

fn rate(
    setting: &Setting,
    report: &mut Report,
    name: &'static str,
    batches: Batches,
    ours: &mut Ours<'_>,
    ssh: Option<&Ssh>,
) -> anyhow::Result<()> {
    let Batches { at_once, tasks, rounds } = batches;
    let per_second = |took: Duration| tasks as f64 / took.as_secs_f64();
    let others = |make: &(dyn Fn() -> Command + Sync)| spawn::run_many(make, tasks, at_once).map(per_second);
    ours.batch(at_once, at_once * 2)?; // warm
    let mut contest = Contest::default();
    contest.enter("ours", || ours.batch(tasks, at_once).map(per_second));
    if let Some(ssh) = ssh {
        contest.enter("ssh", || others(&|| ssh.command("/bin/true")));
    }
    if setting.against(SPAWN) {
        contest.enter(SPAWN, || others(&|| spawn::command(&["/bin/true"])));
    }
    let within = setting.pick(Duration::from_secs(120), Duration::from_secs(12));
    let found = contest.hold(Rounds { warm: 0, counted: rounds, within })?;
    let (what, what_spawn, spawn_name) = if at_once == 1 {
        (
            "/bin/true, one after the other: dispatched on one connection, each when the event stream has told the end of the one before. ssh: one `ssh -S` process after the other.",
            "The same beside programs that are spawned one after the other.",
            "serial_spawn",
        )
    } else {
        (
            "/bin/true, 64 at a time: a new one is dispatched whenever the event stream tells the end of one. ssh: 64 threads, each with one `ssh -S` process after the other.",
            "The same beside 64 threads that spawn one program after the other.",
            "parallel_64_spawn",
        )
    };
    report.add(name, Metric::of("tasks/s", what, &found["ours"]).beside(ssh::LABEL, found.get("ssh")));
    report.add(spawn_name, Metric::of("tasks/s", what_spawn, &found["ours"]).beside("bare spawn loop", found.get(SPAWN)));
    Ok(())
}

/// A client of the hub that dispatches, and listens to what comes of it.
pub(super) struct Ours<'a> {
    stack: &'a Stack,
    path: String,
    connections: Vec<Client>,
    events: Events,
}

impl<'a> Ours<'a> {
    pub(super) fn new(stack: &'a Stack) -> anyhow::Result<Self> {
        let mut ours = Self { stack, path: stack.dispatch_path(), connections: Vec::new(), events: stack.events()? };
        ours.connect(1)?;
        Ok(ours)
    }

    /// Fresh connections, because the hub ends those on which nothing happened while another tool had its turn.
    fn connect(&mut self, count: usize) -> anyhow::Result<()> {
        self.connections = (0..count).map(|_| self.stack.hub.connect()).collect::<anyhow::Result<_>>()?;
        Ok(())
    }

    pub(super) fn first_byte(&mut self) -> anyhow::Result<Duration> {
        let body = json!({"argv": ["/bin/echo", "x"]}).to_string();
        let since = Instant::now();
        self.connections[0].send("POST", &self.path, Some(&body))?;
        let took = self.events.find(|event| event.name == "output")?.at - since;
        self.connections[0].good()?;
        self.finished()?;
        Ok(took)
    }

    /// Waits until a task has ended, which must have succeeded.
    fn finished(&mut self) -> anyhow::Result<()> {
        let last = self.events.find(is_final)?;
        ensure!(last.data.contains("\"state\":\"succeeded\""), "a task did not succeed: {}", last.data);
        Ok(())
    }

    /// Runs this many tasks to their end, so many at a time.
    fn batch(&mut self, tasks: usize, at_once: usize) -> anyhow::Result<Duration> {
        let body = json!({"argv": ["/bin/true"]}).to_string();
        self.connect(at_once)?;
        let since = Instant::now();
        let mut dispatched = 0;
        for ended in 0..tasks {
            while dispatched < tasks.min(ended + at_once) {
                let connection = &mut self.connections[dispatched % at_once];
                if dispatched >= at_once {
                    connection.good()?; // the answer to its task before, which has long been there
                }
                connection.send("POST", &self.path, Some(&body))?;
                dispatched += 1;
            }
            self.finished()?;
        }
        let took = since.elapsed();
        self.connections[..tasks.min(at_once)].iter_mut().try_for_each(|connection| connection.good().map(drop))?;
        Ok(took)
    }
}

/// Whether an event tells the end of a task.
pub fn is_final(event: &Event) -> bool {
    const STATES: [&str; 7] = ["succeeded", "failed", "cancelled", "timed_out", "rejected", "expired", "lost"];
    event.name == "task" && STATES.iter().any(|state| event.data.contains(&format!("\"state\":\"{state}\"")))
}
