//! Sleep and wake: the machine's clock jumps, and whatever was known of the network is old.

use std::sync::OnceLock;

use tokio::sync::watch;

/// Says when the wall clock has jumped. Elsewhere than on Linux it never does: the next heartbeat finds out.
#[derive(Debug)]
pub(crate) struct ClockWatch(watch::Receiver<u64>);

impl ClockWatch {
    /// Watches from now on.
    pub(crate) fn new() -> Self {
        // One for the process: a thread that sleeps until the kernel has something to say.
        static JUMPS: OnceLock<watch::Sender<u64>> = OnceLock::new();
        let jumps = JUMPS.get_or_init(|| {
            let jumps = watch::Sender::new(0);
            let tell = jumps.clone();
            let follow = move || {
                if let Err(error) = follow(|| tell.send_modify(|count| *count += 1)) {
                    tracing::debug!(%error, "the clock is not watched");
                }
            };
            if let Err(error) = std::thread::Builder::new().name("clock".into()).stack_size(64 << 10).spawn(follow) {
                tracing::debug!(%error, "the clock is not watched");
            }
            jumps
        });
        Self(jumps.subscribe())
    }

    /// Resolves when the clock has been set, or the machine has slept.
    pub(crate) async fn jumped(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// A timer that never fires. The kernel cancels it when the wall clock is not continuous, which it also is not after a sleep.
#[cfg(target_os = "linux")]
fn follow(mut tell: impl FnMut()) -> std::io::Result<()> {
    use rustix::{
        io::Errno,
        time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
    };
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC)?;
    // In the year 2242.
    let never = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: Timespec { tv_sec: 1 << 33, tv_nsec: 0 } };
    loop {
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
        match rustix::io::read(&timer, &mut [0u8; 8]) {
            Err(Errno::INTR) => {}
            Ok(_) | Err(Errno::CANCELED) => tell(),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn follow(_tell: impl FnMut()) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_goes_on_says_nothing() {
        let mut watch = ClockWatch::new();
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), watch.jumped()).await.is_err());
    }
}
