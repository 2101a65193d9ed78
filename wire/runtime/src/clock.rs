//! Time and random bytes: what the pure rules in `cortex-wire` are given from outside.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, by this machine's clock.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|t| i64::try_from(t.as_millis()).ok()).unwrap_or(0)
}

/// Random bytes from the operating system, for keys, secrets and ids.
///
/// # Panics
/// When the operating system has no randomness to give: nothing that needs it may go on.
pub fn random<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    #[expect(clippy::expect_used, reason = "a key or an id without randomness must never exist")]
    getrandom::fill(&mut out).expect("the operating system gives random bytes");
    out
}

/// A random share of a wait, from 0 to 1, for full jitter: what many do at the same time is spread over the whole of it.
pub fn jitter() -> f64 {
    rand::random()
}

/// Waits between tries: 50 ms to 30 s, doubled each time, with full jitter (a random point between zero and the bound), so that
/// many nodes that lost the same relay do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    bound: Duration,
    most: Duration,
}

impl Backoff {
    const LEAST: Duration = Duration::from_millis(50);
    /// Default upper bound.
    pub const MOST: Duration = Duration::from_secs(30);

    /// Starts at 50 ms, and grows to `most`.
    pub fn new(most: Duration) -> Self {
        Self { bound: Self::LEAST, most }
    }

    /// How long to wait before the next try.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.bound;
        self.bound = (bound * 2).min(self.most);
        bound.mul_f64(jitter())
    }

    /// Back to the shortest wait, after a time of health.
    pub fn reset(&mut self) {
        self.bound = Self::LEAST;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Self::MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        for _ in 0..20 {
            assert!(backoff.next_wait() <= Duration::from_secs(1));
        }
        assert_eq!(backoff.bound, Duration::from_secs(1));
        backoff.reset();
        assert!(backoff.next_wait() <= Backoff::LEAST);
    }
}
