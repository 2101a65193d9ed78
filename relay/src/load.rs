//! How much of what the relay can carry it carries: the larger of places taken and processor time.
//!
//! The relay forwards on one thread, so a processor's worth of time is all it has.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Processor time is looked at over spans of at least this long.
const SPAN: Duration = Duration::from_secs(1);

/// The measurement.
#[derive(Debug, Default)]
pub struct Load(Mutex<Option<Look>>);

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    used: Duration,
    percent: u32,
}

impl Load {
    /// In percent, from 0 to 100.
    pub fn percent(&self, links: usize, max_links: usize) -> u32 {
        places(links, max_links).max(self.processor(Instant::now(), processor_time()))
    }

    fn processor(&self, now: Instant, used: Duration) -> u32 {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(look) = *last else {
            *last = Some(Look { at: now, used, percent: 0 });
            return 0;
        };
        let span = now.saturating_duration_since(look.at);
        if span < SPAN {
            return look.percent;
        }
        let percent = used.saturating_sub(look.used).as_millis() * 100 / span.as_millis().max(1);
        let percent = u32::try_from(percent).unwrap_or(100).min(100);
        *last = Some(Look { at: now, used, percent });
        percent
    }
}

fn places(links: usize, max_links: usize) -> u32 {
    u32::try_from(links.saturating_mul(100) / max_links.max(1)).unwrap_or(100).min(100)
}

/// What this process has used so far.
#[cfg(unix)]
pub(crate) fn processor_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.try_into().unwrap_or_default(), used.tv_nsec.try_into().unwrap_or_default())
}

/// Not known here.
#[cfg(not(unix))]
pub(crate) fn processor_time() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_the_time_used_of_the_time_passed() {
        let (load, start) = (Load::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let used = Duration::from_millis;
        assert_eq!(load.processor(at(0), used(500)), 0, "nothing is known yet");
        assert_eq!(load.processor(at(2_000), used(1_000)), 25);
        assert_eq!(load.processor(at(2_500), used(1_500)), 25, "not over so short a span");
        assert_eq!(load.processor(at(4_000), used(9_000)), 100);
        assert_eq!(load.processor(at(6_000), used(9_000)), 0);
    }

    #[test]
    fn a_relay_without_free_places_is_full() {
        assert_eq!((places(0, 100), places(25, 100), places(200, 100), places(1, 0)), (0, 25, 100, 100));
    }

    #[test]
    fn the_process_has_used_some_time() {
        assert!(processor_time() > Duration::ZERO);
    }
}
