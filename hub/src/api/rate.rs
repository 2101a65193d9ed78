//! Limits per key, in bounded memory: how often (token buckets), and how many at once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

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
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn level(&self, bucket: &Bucket, now_ms: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a span of milliseconds is far below 2^52")]
        let elapsed = now_ms.saturating_sub(bucket.at_ms).max(0) as f64;
        (bucket.tokens + elapsed * self.per_ms).min(self.burst)
    }
}

/// How many of something a key has at once.
#[derive(Debug, Clone)]
pub struct Concurrent<K> {
    most: usize,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

/// One of them; dropped when it is over.
#[derive(Debug)]
pub struct Permit<K: Hash + Eq> {
    key: K,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Hash + Eq + Clone> Concurrent<K> {
    /// At most `most` per key.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), held: Arc::default() }
    }

    /// One more for this key.
    ///
    /// # Errors
    /// 429 when it has all it may have.
    pub fn take(&self, key: K) -> Result<Permit<K>, Problem> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(key.clone()).or_insert(0);
        if *count >= self.most {
            return Err(Problem::too_many(format!("{} streams are open for this account; close one first", self.most), 5));
        }
        *count += 1;
        Ok(Permit { key, held: self.held.clone() })
    }

    /// All of them together.
    pub fn total(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

impl<K: Hash + Eq> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_comes_back_when_it_is_dropped() {
        let streams = Concurrent::new(2);
        let first = streams.take("ada").unwrap();
        let _second = streams.take("ada").unwrap();
        assert_eq!(streams.take("ada").unwrap_err().code(), "too_many_requests");
        assert!(streams.take("bob").is_ok());
        drop(first);
        assert!(streams.take("ada").is_ok());
        assert_eq!(streams.total(), 1);
    }

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
