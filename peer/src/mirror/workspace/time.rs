//! When time passes.

use super::*;

impl Workspace {
    pub(super) fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let engine = self.replica.poll_timeout().map(|at| {
            let wait = u64::try_from(at.saturating_sub(self.now_ms())).unwrap_or(0);
            now + Duration::from_millis(wait.min(60_000))
        });
        let free = self.lane == Lane::Free && !self.root_gone;
        let cookies = self.barriers.iter().filter_map(|barrier| match barrier.state {
            BarrierState::Cookie { until, .. } => Some(until),
            _ => None,
        });
        let hot = self.hot.values().map(|hot| hot.again_at);
        let unclosed = self.unclosed.values().map(|unclosed| unclosed.read_at);
        let settle = self.watch.settles_at().filter(|_| free);
        let unwatched = (self.watch.unwatched() > 0).then_some(self.unwatched_at);
        let gone = self.root_gone.then(|| now + GONE);
        let status = (self.stale && self.stream.is_some()).then_some(self.status_at);
        let persist = self.persist_at.filter(|_| self.writing.is_none());
        let times =
            cookies.chain(persist).chain(hot).chain(unclosed).chain(engine).chain(settle).chain(unwatched).chain(gone).chain(status);
        times.min().unwrap_or(now + Duration::from_secs(60))
    }

    /// Returns whether anything was due but a status.
    pub(super) fn wake(&mut self) -> bool {
        let now = Instant::now();
        let mut happened = self.root_gone || self.watch.settles_at().is_some() || !self.barriers.is_empty();
        if self.replica.poll_timeout().is_some_and(|at| at <= self.now_ms()) {
            self.handle(Input::Tick);
            happened = true;
        }
        for (path, hot) in &mut self.hot {
            if hot.again_at <= now {
                (hot.again_at, hot.due) = (now + HOT_AT_MOST, true);
                happened = true;
                self.dirty.mark(path.clone(), LOOK);
            }
        }
        happened |= self.look_at_unclosed(|read_at| read_at <= now);
        if self.watch.unwatched() > 0 && self.unwatched_at <= now {
            self.unwatched_at = now + UNWATCHED;
            self.watch.mark_unwatched();
            happened = true;
        }
        if self.root_gone && self.root.is_in_place() {
            tracing::info!(session = %self.options.session, "the workspace's folder is back");
            self.root_gone = false;
            self.dirty = Dirty::everything();
        }
        happened
    }

    pub(super) fn root_is_gone(&mut self) {
        if !self.root_gone {
            tracing::warn!(session = %self.options.session, path = %self.root.path().display(), "the workspace's folder is gone; sync stands still");
        }
        self.root_gone = true;
    }
}
