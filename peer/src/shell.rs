//! One shell task: a program, its pipes, and how it comes to an end.
//!
//! ```text
//! Command ──start──▶ Running ──follow──▶ Ended
//!   prepared          stdin ◀ Input        exit status, usage, why it ended
//!                     stdout ▶ Output
//!                     stderr ▶ Output
//! ```
//! A task has ended when its program has, both pipes are closed and **no process of it is left**. Who asks it to end goes up a ladder:
//! INT, five seconds, TERM, five seconds, KILL until nothing lives. Whatever the program leaves running behind it gets two seconds, then KILL.
//! In a terminal the ladder begins with HUP, as when somebody closes a window, and what a shell leaves behind hears that as well.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cortex_wire::id::TaskId;
use rustix::process::{Pid, Signal};
use tokio::{net::unix::pipe, sync::watch, time::Instant};

use crate::{
    cgroup::Group,
    process::{Child, Exit, Mark, Member, Processes, Program},
    sandbox::{Failure, Launch, Sandboxed, Stdio},
};

pub mod command;
pub mod input;
pub mod kept;
pub mod output;
pub mod redact;
pub mod terminal;

use command::Command;
use input::Input;
use kept::Began;
use output::Output;
use terminal::{Sink, Source, Terminal};

/// Between the steps of the ladder.
const STEP: Duration = Duration::from_secs(5);
/// For what a program leaves behind: to end by itself, and to close the pipes.
const GRACE: Duration = Duration::from_secs(2);
/// After a signal, until those are looked for who missed it.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at what KILL has left, mostly processes that wait for a disk.
const AGAIN: Duration = Duration::from_millis(50);
/// Searches in a row for what was forked while the others were killed.
const PASSES: usize = 20;

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    mark: Mark,
    stdin: Option<Sink>,
    stdout: Source,
    /// In a terminal there is one stream for both.
    stderr: Option<Source>,
    terminal: Option<Arc<Terminal>>,
    report: Option<pipe::Receiver>,
    began: Option<Began>,
    started: Instant,
    sandboxed: Option<Sandboxed>,
    group: Option<Group>,
    /// Kept for as long as the program may read it.
    _script: Option<command::ScriptFile>,
}

/// How long a task may take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// From start to end.
    pub run: Option<Duration>,
    /// Without a byte of output.
    pub idle: Option<Duration>,
}

/// Why a task is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Somebody asked; with the reason.
    Asked(String),
    /// It ran for longer than it may.
    RunTimeout(Duration),
    /// It printed nothing for longer than it may.
    IdleTimeout(Duration),
}

/// What a command of a shell session left.
#[derive(Debug)]
pub struct Report {
    /// What it was given.
    pub began: Began,
    /// What it said, if it came to that.
    pub said: Vec<u8>,
}

/// A task that is over.
#[derive(Debug)]
pub struct Ended {
    /// Of a command of a shell session that was not ended.
    pub report: Option<Report>,
    /// What the program itself said and used.
    pub exit: Exit,
    /// From start to the end of the program.
    pub wall: Duration,
    /// Why it was ended, when it did not end by itself.
    pub stop: Option<Stop>,
    /// Its program had ended, and others went on holding its output.
    pub descendants_held_pipe: bool,
    /// Processes of another user that could not be ended.
    pub left_behind: usize,
}

/// The three streams of a task.
#[derive(Debug, Clone, Copy)]
pub struct Streams<'a> {
    /// `None`: the program reads /dev/null.
    pub stdin: Option<&'a Input>,
    /// Standard output.
    pub stdout: &'a Output,
    /// Standard error.
    pub stderr: &'a Output,
}

impl Running {
    /// Starts a prepared command, in a sandbox when there is one to launch; then [`Self::up`] comes next. `stdin`: through a pipe instead of /dev/null.
    ///
    /// # Errors
    /// What the operating system says; nothing was started then.
    pub fn start(processes: &Processes, command: &mut Command, task: &TaskId, stdin: bool, mut launch: Option<Launch>) -> io::Result<Self> {
        // Before the program is there: nothing may fail after it.
        let Ends { theirs: [stdin, stdout, stderr], stdin: to_stdin, stdout: from_stdout, stderr: from_stderr, terminal } =
            match &command.terminal {
                Some(size) => Ends::terminal(Terminal::open(size)?)?,
                None => Ends::pipes(stdin)?,
            };
        let (from_report, report) = match command.began {
            Some(_) => reading_pipe().map(|(reader, writer)| (Some(reader), Some(writer)))?,
            None => (None, None),
        };
        let mark = Mark::of(task);
        let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let folder = command.folder.as_fd();
        let slave = terminal.as_ref().map(|terminal| terminal.slave().as_c_str());
        let report = report.as_ref().map(|report| report.as_fd());
        let child = match &launch {
            Some(launch) => launch.start(processes, mark, folder, Stdio { streams: stdio, terminal: slave, report })?,
            None => {
                let Command { path, argv, environment, .. } = &*command;
                processes.start(&Program { path, argv, environment, folder, stdio, terminal: slave, more: report.as_slice() }, mark)?
            }
        };
        Ok(Self {
            child,
            mark,
            stdin: to_stdin,
            stdout: from_stdout,
            stderr: from_stderr,
            terminal,
            report: from_report,
            began: command.began.take(),
            started: Instant::now(),
            group: launch.as_mut().and_then(Launch::take_group),
            sandboxed: launch.map(Launch::started),
            _script: command.script.take(),
        })
    }

    /// A program without walls enters its group when it has been started; what it starts before that is found by its mark. The kernel may take 20 ms for it, for which neither the
    /// program nor the peer waits. One that cannot enter is ended.
    pub fn enter(&mut self, processes: &Processes, group: Group) {
        let (door, pid, mark, processes) = (group.door(), self.child.pid, self.mark, processes.clone());
        self.group = Some(group);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = Group::take(&door, pid) {
                tracing::warn!(%error, "a task cannot be limited, and is ended");
                processes.members(pid, mark).iter().for_each(|member| _ = member.send(Signal::KILL));
            }
        });
    }

    /// The terminal it runs in.
    pub fn terminal(&self) -> Option<&Arc<Terminal>> {
        self.terminal.as_ref()
    }

    /// Waits until the program runs behind its walls, if it is to have any.
    ///
    /// # Errors
    /// Why it does not; what was started is ended then.
    pub async fn up(&mut self, processes: &Processes) -> Result<(), Failure> {
        let Some(sandboxed) = &mut self.sandboxed else { return Ok(()) };
        let up = sandboxed.up().await;
        if up.is_err() {
            processes.members(self.child.pid, self.mark).iter().for_each(|member| _ = member.send(Signal::KILL));
        }
        up
    }

    /// The program's process.
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Follows the task to its end.
    pub async fn follow(
        self,
        processes: &Processes,
        streams: Streams<'_>,
        patience: Patience,
        stop: watch::Receiver<Option<Stop>>,
    ) -> Ended {
        let Self { child, mark, stdin, stdout, stderr, terminal, report, began, started, mut sandboxed, group, _script } = self;
        let Child { pid, exit } = child;
        let exit = async {
            let seen = match &mut sandboxed {
                Some(sandboxed) => sandboxed.ended().await,
                None => None,
            };
            match seen {
                Some(exit) => exit,
                None => exit.await.unwrap_or(Exit::UNKNOWN),
            }
        };
        let errors = async {
            match &stderr {
                Some(stderr) => streams.stderr.pump(stderr).await,
                None => streams.stderr.close(),
            }
        };
        let output = async { tokio::join!(streams.stdout.pump(&stdout), errors) };
        let input = async {
            match (streams.stdin, stdin) {
                (Some(input), Some(sink)) => input.pump(sink).await,
                _ => std::future::pending().await,
            }
        };
        let said = Mutex::new(Vec::new());
        let reported = async {
            match &report {
                Some(report) => read_report(report, &said).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(output, input, reported, exit);
        let mut report_open = true;
        let mut ended = processes.ended();
        let mut stop = stop;
        let mut end = End { group: group.as_ref(), ..End::new(processes, pid, mark, started, patience, terminal.is_some()) };
        let (mut output_open, mut input_open) = (true, true);
        let (exit, exited_at) = loop {
            if let Some(exit) = end.is_over(output_open) {
                break exit;
            }
            let wake = end.next_step(&streams, output_open);
            tokio::select! {
                exit = &mut exit, if end.exit.is_none() => end.exited(exit),
                _ = &mut output, if output_open => output_open = false,
                () = &mut input, if input_open => input_open = false,
                () = &mut reported, if report_open => report_open = false,
                Ok(()) = ended.changed(), if end.exit.is_some() || end.ladder.is_some() => end.catch_up(),
                Ok(why) = stop.wait_for(Option::is_some), if !end.asked => end.asked_to_stop(why.clone()),
                () = sleep_until(wake) => end.step(&streams, output_open),
            }
        };
        // Somebody outside the task may still hold the pipes: what they write is not the task's any more.
        streams.stdout.close();
        streams.stderr.close();
        if let Some(input) = streams.stdin {
            input.discard();
        }
        let report = report.as_ref().zip(began).filter(|_| end.stop.is_none()).map(|(report, began)| {
            // What it said last may still be in the pipe, and somebody else may hold that open.
            let _ = take_report(report, &said);
            Report { began, said: std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner)) }
        });
        Ended {
            report,
            exit,
            wall: exited_at - started,
            stop: end.stop,
            descendants_held_pipe: end.held_pipe || output_open,
            left_behind: end.left_behind,
        }
    }
}

/// The two sides of a program's streams.
struct Ends {
    theirs: [OwnedFd; 3],
    stdin: Option<Sink>,
    stdout: Source,
    stderr: Option<Source>,
    terminal: Option<Arc<Terminal>>,
}

impl Ends {
    fn pipes(stdin: bool) -> io::Result<Self> {
        let (stdin, to_stdin) = if stdin {
            let (read, write) = io::pipe()?;
            (read.into(), Some(Sink::Pipe(pipe::Sender::from_owned_fd(write.into())?)))
        } else {
            (OwnedFd::from(File::open("/dev/null")?), None)
        };
        let ((from_stdout, stdout), (from_stderr, stderr)) = (reading_pipe()?, reading_pipe()?);
        let (from_stdout, from_stderr) = (Source::Pipe(from_stdout), Some(Source::Pipe(from_stderr)));
        Ok(Self { theirs: [stdin, stdout, stderr], stdin: to_stdin, stdout: from_stdout, stderr: from_stderr, terminal: None })
    }

    fn terminal(terminal: Terminal) -> io::Result<Self> {
        let terminal = Arc::new(terminal);
        // The program opens the terminal itself, in their place.
        let nothing = OwnedFd::from(File::open("/dev/null")?);
        let theirs = [nothing.try_clone()?, nothing.try_clone()?, nothing];
        let (stdin, stdout) = (Some(Sink::Terminal(terminal.clone())), Source::Terminal(terminal.clone()));
        Ok(Self { theirs, stdin, stdout, stderr: None, terminal: Some(terminal) })
    }
}

fn reading_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(read.into())?, write.into()))
}

/// Until nobody can say anything any more.
async fn read_report(report: &pipe::Receiver, said: &Mutex<Vec<u8>>) {
    while report.readable().await.is_ok() {
        match take_report(report, said) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// Reads what is there, also beyond what is kept, so that nobody waits for it.
fn take_report(report: &pipe::Receiver, said: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let read = report.try_read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = kept::REPORT_BYTES.saturating_sub(said.len());
        said.extend_from_slice(&buffer[..read.min(room)]);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Where a task is on its way to the end.
struct End<'a> {
    processes: &'a Processes,
    group: Option<&'a Group>,
    root: Pid,
    mark: Mark,
    started: Instant,
    patience: Patience,
    in_terminal: bool,
    exit: Option<(Exit, Instant)>,
    /// Somebody wants it to end, heard or not.
    asked: bool,
    stop: Option<Stop>,
    ladder: Option<Ladder>,
    /// Whom the last step has reached.
    signalled: Vec<Member>,
    held_pipe: bool,
    left_behind: usize,
}

/// The last signal, the next one, and when that is due.
#[derive(Debug, Clone, Copy)]
struct Ladder {
    sent: Option<Signal>,
    /// When to look for those who missed it.
    look: Option<Instant>,
    next: Signal,
    due: Instant,
}

impl<'a> End<'a> {
    fn new(processes: &'a Processes, root: Pid, mark: Mark, started: Instant, patience: Patience, in_terminal: bool) -> Self {
        Self {
            processes,
            group: None,
            root,
            mark,
            started,
            patience,
            in_terminal,
            exit: None,
            asked: false,
            stop: None,
            ladder: None,
            signalled: Vec::new(),
            held_pipe: false,
            left_behind: 0,
        }
    }

    fn exited(&mut self, exit: Exit) {
        let now = Instant::now();
        self.exit = Some((exit, now));
        if self.in_terminal && self.ladder.is_none() {
            // The window is closed: whoever is left hears it, and has a moment.
            self.signal_all(Signal::HUP);
            self.ladder = Some(Ladder { sent: Some(Signal::HUP), look: Some(now + LOOK), next: Signal::KILL, due: now + GRACE });
        }
    }

    fn asked_to_stop(&mut self, why: Option<Stop>) {
        self.asked = true;
        if self.exit.is_none() {
            // A time limit may have been first.
            self.stop = self.stop.take().or(why);
            self.begin();
        } else {
            // The program has ended by itself, and that stands; who is left gets no grace.
            self.ladder = Some(Ladder { sent: None, look: None, next: Signal::KILL, due: Instant::now() });
        }
    }

    fn begin(&mut self) {
        if self.ladder.is_none() {
            let next = if self.in_terminal { Signal::HUP } else { Signal::INT };
            self.ladder = Some(Ladder { sent: None, look: None, next, due: Instant::now() });
        }
    }

    /// The program's exit, once nothing is left: neither the program nor its children nor an open pipe.
    fn is_over(&mut self, output_open: bool) -> Option<(Exit, Instant)> {
        let (exit, at) = self.exit?;
        let alive = self.processes.members(self.root, self.mark).len();
        if alive == 0 && self.group.is_some_and(Group::is_populated) {
            return None;
        }
        // The pipes of a task without processes are held by somebody it handed them to.
        (alive <= self.left_behind && (!output_open || at.elapsed() >= GRACE)).then_some((exit, at))
    }

    /// When to look again, whatever happens.
    fn next_step(&self, streams: &Streams<'_>, output_open: bool) -> Option<Instant> {
        match (self.ladder, self.exit) {
            (Some(ladder), exit) => {
                let grace = exit.map(|(_, at)| at + GRACE).filter(|_| output_open).filter(|at| *at > Instant::now());
                grace.into_iter().chain(ladder.look).chain([ladder.due]).min()
            }
            (None, Some((_, at))) => Some(at + GRACE),
            (None, None) => {
                let run = self.patience.run.map(|run| self.started + run);
                let idle = self.patience.idle.map(|idle| Instant::now() + idle.saturating_sub(quiet(streams)));
                run.into_iter().chain(idle).min()
            }
        }
    }

    /// Does what is due.
    fn step(&mut self, streams: &Streams<'_>, output_open: bool) {
        let now = Instant::now();
        if let Some(ladder) = self.ladder {
            if now >= ladder.due {
                self.held_pipe |= self.exit.is_some() && output_open && self.stop.is_none();
                self.climb(ladder.next);
            } else if ladder.look.is_some_and(|look| now >= look) {
                self.ladder = Some(Ladder { look: None, ..ladder });
                self.catch_up();
            }
        } else if let Some((_, at)) = self.exit {
            if now >= at + GRACE {
                self.held_pipe = output_open;
                self.climb(Signal::KILL);
            }
        } else if let Some(run) = self.patience.run.filter(|run| self.started + *run <= now) {
            self.stop = Some(Stop::RunTimeout(run));
            self.begin();
        } else if let Some(idle) = self.patience.idle.filter(|idle| quiet(streams) >= *idle) {
            self.stop = Some(Stop::IdleTimeout(idle));
            self.begin();
        }
    }

    fn climb(&mut self, signal: Signal) {
        let mut refused = self.signal_all(signal);
        if let Some(group) = self.group.filter(|_| signal == Signal::KILL) {
            group.kill();
        }
        let (next, wait) = match signal {
            Signal::HUP => (Signal::INT, STEP),
            Signal::INT => (Signal::TERM, STEP),
            Signal::TERM => (Signal::KILL, STEP),
            _ => (Signal::KILL, AGAIN),
        };
        if signal == Signal::KILL {
            // A program that forks without end is outrun: what is dead forks no more.
            for _ in 0..PASSES {
                if self.signalled.len() == refused {
                    self.left_behind = refused;
                    break;
                }
                refused = self.signal_all(signal);
            }
        }
        let now = Instant::now();
        self.ladder = Some(Ladder { sent: Some(signal), look: Some(now + LOOK), next, due: now + wait });
    }

    /// Returns how many may not be signalled.
    fn signal_all(&mut self, signal: Signal) -> usize {
        self.signalled = self.processes.members(self.root, self.mark);
        let refused = self.signalled.iter().filter(|member| member.send(signal).is_err()).count();
        // Who is stopped hears nothing but KILL until it goes on.
        self.signalled.iter().filter(|member| member.stopped).for_each(|member| _ = member.send(Signal::CONT));
        refused
    }

    /// The signal for those who missed it: orphans whose parent forked them while it was sent and then obeyed it, and those who were just becoming another program.
    /// New children of the living are left alone: they may be what a handler starts to clean up.
    fn catch_up(&mut self) {
        let Some(signal) = self.ladder.and_then(|ladder| ladder.sent) else { return };
        for member in self.processes.members(self.root, self.mark) {
            let heard = self.signalled.iter().position(|known| known.is(&member));
            if heard.map_or(member.orphan, |at| self.signalled[at].name != member.name) {
                let _ = member.send(signal);
                heard.map(|at| self.signalled.swap_remove(at));
                self.signalled.push(member);
            }
        }
    }
}

/// For how long no stream was used, though it could have been. Somebody who types is there, too.
fn quiet(streams: &Streams<'_>) -> Duration {
    let typed = streams.stdin.map_or(Duration::MAX, Input::idle);
    streams.stdout.idle().min(streams.stderr.idle()).min(typed)
}
