//! Start and stop of a program.
//!
//! The first SIGINT, SIGTERM or SIGHUP asks to drain ([`Lifecycle::draining`]); after the grace period, or at a second signal, everything is told to stop
//! ([`Lifecycle::stopping`]). A task that ends unasked with an error stops the program with that error.

use std::{future::Future, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Exit codes, the same for the three programs.
pub mod exit {
    /// All is well.
    pub const OK: u8 = 0;
    /// Something failed while running.
    pub const FAILURE: u8 = 1;
    /// The command line or the configuration cannot be used (as clap exits).
    pub const USAGE: u8 = 2;
    /// The hub refuses this node, and `max_retries` is used up.
    pub const REFUSED: u8 = 3;
    /// The hub or relay could not be reached, and `max_retries` is used up.
    pub const UNREACHABLE: u8 = 4;
}

/// Two tokens, soft and hard. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    drain: CancellationToken,
    stop: CancellationToken,
}

impl Lifecycle {
    /// Both tokens fresh.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves when the program should finish what it does and take nothing new.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Whether [`Self::draining`] has resolved.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Resolves when everything must end now.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Whether [`Self::stopping`] has resolved.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Asks to drain.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends everything.
    pub fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }

    /// Follows the process's signals from this call on: the first drains, and stops after `grace` or at the second.
    pub fn follow_signals(self, grace: Duration) -> impl Future<Output = ()> + Send {
        self.follow(Signals::take(true), grace)
    }

    /// And leaves SIGHUP to whoever follows [`hangups`].
    pub fn follow_signals_but_hangups(self, grace: Duration) -> impl Future<Output = ()> + Send {
        self.follow(Signals::take(false), grace)
    }

    /// The signals were taken before, not when the future is first polled: a program that has said it is ready does not die of a signal any more.
    async fn follow(self, mut signals: Signals, grace: Duration) {
        let signal = signals.next().await;
        tracing::info!(signal, "draining; a second signal stops at once");
        self.drain();
        tokio::select! {
            signal = signals.next() => tracing::info!(signal, "stopping at once"),
            () = tokio::time::sleep(grace) => {}
            () = self.stopping() => {}
        }
        self.stop();
    }
}

/// The signals that ask a program to stop.
#[cfg(unix)]
struct Signals(Vec<(&'static str, tokio::signal::unix::Signal)>);

#[cfg(unix)]
impl Signals {
    fn take(hangups: bool) -> Self {
        use tokio::signal::unix::SignalKind;
        // SIGHUP: the terminal is gone.
        let hangup = hangups.then(|| ("SIGHUP", SignalKind::hangup()));
        Self::of([("SIGINT", SignalKind::interrupt()), ("SIGTERM", SignalKind::terminate())].into_iter().chain(hangup))
    }

    fn of(wanted: impl IntoIterator<Item = (&'static str, tokio::signal::unix::SignalKind)>) -> Self {
        Self(wanted.into_iter().filter_map(|(name, kind)| Some((name, tokio::signal::unix::signal(kind).ok()?))).collect())
    }

    async fn next(&mut self) -> &'static str {
        std::future::poll_fn(|cx| {
            let came = self.0.iter_mut().find_map(|(name, signal)| signal.poll_recv(cx).is_ready().then_some(*name));
            came.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }
}

/// What asks a program to stop.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn take(_: bool) -> Self {
        Self
    }

    async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "ctrl-c",
            Err(_) => std::future::pending().await,
        }
    }
}

/// Times that the program is asked to read its settings again (SIGHUP), from this call on. Elsewhere than on Unix nobody can ask.
pub fn hangups() -> Hangups {
    #[cfg(unix)]
    return Hangups(Signals::of([("SIGHUP", tokio::signal::unix::SignalKind::hangup())]));
    #[cfg(not(unix))]
    Hangups
}

/// See [`hangups`].
#[cfg(unix)]
pub struct Hangups(Signals);

/// See [`hangups`].
#[cfg(not(unix))]
pub struct Hangups;

impl Hangups {
    /// Waits for the next one.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        self.0.next().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    }
}

/// The tasks a program consists of. When one fails, or the lifecycle stops, the others are told and awaited.
#[derive(Debug, Default)]
pub struct Parts {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Parts {
    /// No parts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a part.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.set.spawn(async move { (name, part.await) });
    }

    /// Waits until every part has ended; the first failure stops the others and is returned. After `stopping`, parts get `grace`
    /// to end by themselves.
    ///
    /// # Errors
    /// The first part's failure, or its panic.
    pub async fn join(mut self, lifecycle: &Lifecycle, grace: Duration) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        let deadline = async {
            lifecycle.stopping().await;
            tokio::time::sleep(grace).await;
        };
        tokio::pin!(deadline);
        loop {
            let ended = tokio::select! {
                ended = self.set.join_next() => ended,
                () = &mut deadline => {
                    self.set.abort_all();
                    tracing::warn!("parts that did not stop in time were ended");
                    break;
                }
            };
            let error = match ended {
                None => break,
                Some(Ok((_, Ok(())))) => continue,
                Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
                Some(Err(error)) => anyhow::Error::new(error),
            };
            lifecycle.stop();
            if outcome.is_ok() {
                outcome = Err(error);
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_fails_stops_the_others() {
        let lifecycle = Lifecycle::new();
        let mut parts = Parts::new();
        let other = lifecycle.clone();
        parts.spawn("other", async move {
            other.stopping().await;
            Ok(())
        });
        parts.spawn("broken", async { anyhow::bail!("no luck") });
        let error = parts.join(&lifecycle, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "broken failed: no luck");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_stop_is_ended() {
        let lifecycle = Lifecycle::new();
        let mut parts = Parts::new();
        parts.spawn("deaf", std::future::pending());
        lifecycle.stop();
        assert!(parts.join(&lifecycle, Duration::from_secs(1)).await.is_ok());
    }
}
