//! A bare spawn: the least that running a program costs on this machine.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::ensure;

/// Starts a program with a pipe as its output.
pub fn command(argv: &[&str]) -> Command {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// From before the spawn to the first byte of output. The program is waited for afterwards.
pub fn first_byte(command: &mut Command) -> anyhow::Result<Duration> {
    let since = Instant::now();
    let mut child = command.spawn()?;
    let mut first = [0; 1];
    let read = match &mut child.stdout {
        Some(stdout) => stdout.read(&mut first)?,
        None => 0,
    };
    let took = since.elapsed();
    let status = child.wait()?;
    ensure!(read == 1 && status.success(), "{command:?} ended with {status} and printed {read} bytes");
    Ok(took)
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Runs `count` programs to their end, `at_once` of them at a time.
pub fn run_many(make: impl Fn() -> Command + Sync, count: usize, at_once: usize) -> anyhow::Result<Duration> {
    let since = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let worker = || {
        while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < count {
            run(&mut make())?;
        }
        Ok(())
    };
    if at_once == 1 {
        worker()?;
    } else {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked")))
        })?;
    }
    Ok(since.elapsed())
}
