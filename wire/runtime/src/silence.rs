//! Whether what is sent is answered: the first sign that a path has died, long before QUIC gives it up.
//!
//! The socket under a peer notes each send end to end, and each receipt by the path that is active; and so for the links, on each path. Nothing is timed here and nothing wakes anybody while packets come back: whoever
//! watches is woken by the first send after a receipt, and looks again when the answer should have come.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// QUIC acknowledges within 25 ms.
const TURN_US: u64 = 50_000;

/// Since when sends are unanswered.
#[derive(Debug)]
pub struct Silence {
    base: Instant,
    /// Microseconds after `base`; 0: nothing is unanswered.
    since: AtomicU64,
    /// Microseconds after `base`, of the last receipt.
    heard: AtomicU64,
    begun: Notify,
}

impl Default for Silence {
    fn default() -> Self {
        Self { base: Instant::now(), since: AtomicU64::new(0), heard: AtomicU64::new(0), begun: Notify::new() }
    }
}

impl Silence {
    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// A packet has left.
    pub fn sent(&self) {
        if self.since.load(Relaxed) == 0 {
            self.since.store(self.now(), Relaxed);
            self.begun.notify_one();
        }
    }

    /// A packet has left that may only acknowledge what has just come: nobody answers that. What is sent again for want of an answer comes later, and counts.
    pub fn sent_in_turn(&self) {
        if self.since.load(Relaxed) == 0 && self.now() > self.heard.load(Relaxed) + TURN_US {
            self.sent();
        }
    }

    /// A packet has come, on a path where [`Silence::sent_in_turn`] tells acknowledgements apart.
    pub fn heard_in_turn(&self) {
        self.heard.store(self.now(), Relaxed);
        self.heard();
    }

    /// A packet has come.
    pub fn heard(&self) {
        if self.since.load(Relaxed) != 0 {
            self.since.store(0, Relaxed);
        }
    }

    /// When the first of the packets left that nothing has answered.
    pub fn since(&self) -> Option<Instant> {
        match self.since.load(Relaxed) {
            0 => None,
            micros => Some(self.base + Duration::from_micros(micros)),
        }
    }

    /// Whether anything at all has come, on a path where [`Silence::heard_in_turn`] notes it.
    pub fn has_heard(&self) -> bool {
        self.heard.load(Relaxed) != 0
    }

    /// Waits for the next packet that leaves unanswered. Its answer may have come before this returns.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_send_after_a_receipt_wakes_whoever_watches() {
        let silence = Silence::default();
        assert_eq!(silence.since(), None);
        silence.sent();
        silence.begun().await;
        let since = silence.since().unwrap();
        silence.sent();
        assert_eq!(silence.since(), Some(since), "the first one counts");
        assert!(futures_pending(silence.begun()), "the second one wakes nobody");
        silence.heard();
        assert_eq!(silence.since(), None);
        silence.sent();
        silence.begun().await;
    }

    #[tokio::test]
    async fn what_follows_a_receipt_at_once_asks_for_no_answer() {
        let silence = Silence::default();
        assert!(!silence.has_heard());
        silence.heard_in_turn();
        silence.sent_in_turn();
        assert!(silence.has_heard());
        assert_eq!(silence.since(), None, "an acknowledgement");
        tokio::time::sleep(Duration::from_micros(TURN_US + 10_000)).await;
        silence.sent_in_turn();
        assert!(silence.since().is_some(), "somebody asks");
        silence.begun().await;
        silence.heard_in_turn();
        assert_eq!(silence.since(), None);
    }

    fn futures_pending(future: impl Future<Output = ()>) -> bool {
        let mut future = std::pin::pin!(future);
        future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending()
    }
}
