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

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use cortex_wire::id::TaskId;
use rustix::process::{Pid, Signal};
use tokio::{net::unix::pipe, sync::watch, time::Instant};

use crate::process::{Child, Exit, Mark, Member, Processes, Program};

pub mod command;
pub mod input;
pub mod output;

use command::Command;
use input::Input;
use output::Output;

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
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    started: Instant,
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

/// A task that is over.
#[derive(Debug)]
pub struct Ended {
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
    /// Starts a prepared command. `stdin`: through a pipe instead of /dev/null.
    ///
    /// # Errors
    /// What the operating system says; nothing was started then.
    pub fn start(processes: &Processes, command: &mut Command, task: &TaskId, stdin: bool) -> io::Result<Self> {
        let (stdin, to_stdin) = if stdin {
            let (read, write) = io::pipe()?;
            (read.into(), Some(pipe::Sender::from_owned_fd(write.into())?))
        } else {
            (OwnedFd::from(File::open("/dev/null")?), None)
        };
        let ((from_stdout, stdout), (from_stderr, stderr)) = (io::pipe()?, io::pipe()?);
        // Before the program is there: nothing may fail after it.
        let from_stdout = pipe::Receiver::from_owned_fd(from_stdout.into())?;
        let from_stderr = pipe::Receiver::from_owned_fd(from_stderr.into())?;
        let mark = Mark::of(task);
        let program = Program {
            path: &command.path,
            argv: &command.argv,
            environment: &command.environment,
            folder: command.folder.as_fd(),
            stdio: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        };
        let child = processes.start(&program, mark)?;
        Ok(Self {
            child,
            mark,
            stdin: to_stdin,
            stdout: from_stdout,
            stderr: from_stderr,
            started: Instant::now(),
            _script: command.script.take(),
        })
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
        let Self { mut child, mark, stdin, stdout, stderr, started, _script } = self;
        let output = async { tokio::join!(streams.stdout.pump(&stdout), streams.stderr.pump(&stderr)) };
        let input = async {
            match (streams.stdin, stdin) {
                (Some(input), Some(pipe)) => input.pump(pipe).await,
                _ => std::future::pending().await,
            }
        };
        tokio::pin!(output, input);
        let mut ended = processes.ended();
        let mut stop = stop;
        let mut end = End::new(processes, child.pid, mark, started, patience);
        let (mut output_open, mut input_open) = (true, true);
        let (exit, exited_at) = loop {
            if let Some(exit) = end.is_over(output_open) {
                break exit;
            }
            let wake = end.next_step(&streams, output_open);
            tokio::select! {
                exit = &mut child.exit, if end.exit.is_none() => end.exited(exit.unwrap_or(Exit::UNKNOWN)),
                _ = &mut output, if output_open => output_open = false,
                () = &mut input, if input_open => input_open = false,
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
        Ended {
            exit,
            wall: exited_at - started,
            stop: end.stop,
            descendants_held_pipe: end.held_pipe || output_open,
            left_behind: end.left_behind,
        }
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
    root: Pid,
    mark: Mark,
    started: Instant,
    patience: Patience,
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
    fn new(processes: &'a Processes, root: Pid, mark: Mark, started: Instant, patience: Patience) -> Self {
        Self {
            processes,
            root,
            mark,
            started,
            patience,
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
        self.exit = Some((exit, Instant::now()));
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
            self.ladder = Some(Ladder { sent: None, look: None, next: Signal::INT, due: Instant::now() });
        }
    }

    /// The program's exit, once nothing is left: neither the program nor its children nor an open pipe.
    fn is_over(&mut self, output_open: bool) -> Option<(Exit, Instant)> {
        let (exit, at) = self.exit?;
        let alive = self.processes.members(self.root, self.mark).len();
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
        let (next, wait) = match signal {
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

/// For how long neither stream was used, though it could have been.
fn quiet(streams: &Streams<'_>) -> Duration {
    streams.stdout.idle().min(streams.stderr.idle())
}
