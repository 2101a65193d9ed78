//! Rate limits: token buckets per key, in bounded memory.

use std::{collections::HashMap, hash::Hash, sync::Mutex};

use super::problem::Problem;

/// Buckets are forgotten when there are more than this many: full ones first, and all of them if strangers try to fill memory.
const MOST_KEYS: usize = 16 * 1024;

/// One kind of limit.
#[derive(Debug)]
pub struct Limit<K> {
    burst: f64,
    per_ms: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at_ms: i64,
}

impl<K: Hash + Eq> Limit<K> {
    /// `burst` at once, and as many again spread over `window_ms`.
    pub fn new(burst: u32, window_ms: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self { burst, per_ms: burst / f64::from(window_ms.max(1)), buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes one token.
    ///
    /// # Errors
    /// 429 with the time until the next token.
    pub fn take(&self, key: K, now_ms: i64) -> Result<(), Problem> {
        let mut buckets = self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if buckets.len() >= MOST_KEYS && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| self.level(bucket, now_ms) < self.burst);
            if buckets.len() >= MOST_KEYS {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { tokens: self.burst, at_ms: now_ms });
        let tokens = self.level(bucket, now_ms);
        if tokens < 1.0 {
            let wait_s = ((1.0 - tokens) / self.per_ms / 1000.0).ceil().max(1.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive whole number of seconds")]
            return Err(Problem::too_many("there were too many of these requests in a short time", wait_s as u64));
        }
        *bucket = Bucket { tokens: tokens - 1.0, at_ms: now_ms.max(bucket.at_ms) };
        Ok(())
    }

    /// Forgets what a key has used.
    pub fn reset(&self, key: &K) {
        self.buckets.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }

    fn level(&self, bucket: &Bucket, now_ms: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a span of milliseconds is far below 2^52")]
        let elapsed = now_ms.saturating_sub(bucket.at_ms).max(0) as f64;
        (bucket.tokens + elapsed * self.per_ms).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let limit = Limit::new(5, 15 * 60 * 1000);
        for _ in 0..5 {
            assert!(limit.take("ada", 1_000).is_ok());
        }
        let refused = limit.take("ada", 1_000).unwrap_err();
        assert_eq!(refused.code(), "too_many_requests");
        assert!(limit.take("bob", 1_000).is_ok());
        assert!(limit.take("ada", 1_000 + 3 * 60 * 1000).is_ok());
        assert!(limit.take("ada", 1_000 + 3 * 60 * 1000).is_err());
        limit.reset(&"ada");
        assert!(limit.take("ada", 1_000).is_ok());
    }

    #[test]
    fn strangers_cannot_fill_memory() {
        let limit = Limit::new(1, 1_000_000);
        for key in 0..3 * MOST_KEYS {
            let _ = limit.take(key, 0);
        }
        assert!(limit.buckets.lock().unwrap().len() <= MOST_KEYS);
    }
}
