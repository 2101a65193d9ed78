//! What the walls around a task cost: the same command with and without them, and beside a bare spawn.

use std::{
    io::Read as _,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use cortex_peer::{
    process::{Mark, Processes, Program},
    shell::command::{Beside, Command, Place, inherited_environment, prepare},
};
use cortex_runtime::clock;
use cortex_wire::{
    id::{SessionId, TaskId},
    schema::ShellTask,
};
use serde_json::json;

use super::{Bench, Setting, dispatch::is_final};
use crate::{
    contest::{Contest, Rounds},
    http::{Client, Events},
    other::spawn,
    report::{Metric, Report, Target},
    stack::Stack,
};

pub const BENCH: Bench =
    Bench { name: "sandbox", what: "what STRICT and PERMISSIVE add to a command", against: &[SPAWN], journalled: false, run };

const SPAWN: &str = "spawn";

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let stack = Stack::start(setting.folder(), &[])?;
    let mut ours = Ours { client: stack.hub.connect()?, events: stack.events()?, path: stack.dispatch_path() };
    // The first one waits for the self-test.
    ours.first_byte("strict")?;
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    let ours = std::cell::RefCell::new(ours);
    let mut contest = Contest::default();
    contest.enter("strict", || ours.borrow_mut().first_byte("strict").map(ms));
    contest.enter("permissive", || ours.borrow_mut().first_byte("permissive").map(ms));
    contest.enter(SPAWN, || spawn::first_byte(&mut spawn::command(&["/bin/echo", "x"])).map(ms));
    let rounds =
        Rounds { warm: 20, counted: setting.pick(300, 100), within: setting.pick(Duration::from_secs(60), Duration::from_secs(15)) };
    let found = contest.hold(rounds)?;
    let (strict, permissive, spawn) = (&found["strict"], &found["permissive"], &found[SPAWN]);
    let single = |what, ours| Metric { runs: strict.count(), ..Metric::single("ms", what, ours) };
    report.add(
        "strict_first_byte",
        Metric::of(
            "ms",
            "/bin/echo x in STRICT: from sending the dispatch to the event with the first byte of output, through hub and relay.",
            strict,
        ),
    );
    report.add("permissive_first_byte", Metric::of("ms", "The same in PERMISSIVE.", permissive).beside("bare spawn", Some(spawn)));
    let what = "Median of the first byte in STRICT less that in PERMISSIVE, taken in turns: namespaces, mounts, Landlock, filter, and two more processes.";
    report.add("strict_overhead_ms", single(what, strict.median() - permissive.median()).wanted(Target::at_most(15.0).goal(5.0)));
    drop(ours);
    let node = OnNode::new(setting.folder())?;
    let mut contest = Contest::default();
    contest.enter("permissive", || node.first_byte().map(ms));
    contest.enter(SPAWN, || spawn::first_byte(&mut spawn::command(&["/bin/echo", "x"])).map(ms));
    let found = contest.hold(rounds)?;
    let what = "What the node itself does for a task in PERMISSIVE (opening the workspace, looking the program up, marking and starting it), to the first byte of /bin/echo x, less a bare spawn; without the way to the node.";
    report.add("permissive_overhead_ms", single(what, found["permissive"].median() - found[SPAWN].median()).wanted(Target::at_most(2.0)));
    Ok(())
}

/// The part of the peer that starts programs, in this process.
struct OnNode {
    runtime: tokio::runtime::Runtime,
    processes: Processes,
    place: Place,
}

impl OnNode {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let processes = runtime.block_on(async { Processes::new() })?;
        let environment = inherited_environment(&[], std::env::vars_os());
        let place = Place { workspace_dir: folder.join("node"), scratch_dir: folder.to_owned(), shell: "/bin/sh".into(), environment };
        Ok(Self { runtime, processes, place })
    }

    fn first_byte(&self) -> anyhow::Result<Duration> {
        let task = ShellTask { argv: vec!["/bin/echo".into(), "x".into()], ..ShellTask::default() };
        let (session, id) = (SessionId::new(1, [1; 10]), TaskId::new(clock::now_ms(), clock::random()));
        let since = Instant::now();
        let Command { path, argv, environment, folder, .. } =
            prepare(&task, &session, &id, &self.place, &Beside::default()).map_err(anyhow::Error::msg)?;
        let (mut read, write) = std::io::pipe()?;
        let nothing = std::fs::File::open("/dev/null")?;
        let stdio = [nothing.as_fd(), write.as_fd(), nothing.as_fd()];
        let program =
            Program { path: &path, argv: &argv, environment: &environment, folder: folder.as_fd(), stdio, terminal: None, more: &[] };
        let child = self.processes.start(&program, Mark::of(&id))?;
        drop(write);
        read.read_exact(&mut [0])?;
        let took = since.elapsed();
        self.runtime.block_on(child.exit)?;
        Ok(took)
    }
}

/// A client of the hub that dispatches in one mode or the other.
struct Ours {
    client: Client,
    events: Events,
    path: String,
}

impl Ours {
    fn first_byte(&mut self, mode: &str) -> anyhow::Result<Duration> {
        let body = json!({"argv": ["/bin/echo", "x"], "mode": mode}).to_string();
        let since = Instant::now();
        self.client.send("POST", &self.path, Some(&body))?;
        let first = self.events.find(|event| event.name == "output" || is_final(event))?;
        ensure!(first.name == "output", "a task in {mode} printed nothing: {}", first.data);
        self.client.good()?;
        let last = self.events.find(is_final)?;
        ensure!(last.data.contains("\"state\":\"succeeded\""), "a task in {mode} did not succeed: {}", last.data);
        Ok(first.at - since)
    }
}
