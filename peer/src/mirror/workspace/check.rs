//! Barriers, and checks for drift.

use super::*;

impl Workspace {
    pub(super) fn begin_barrier(&mut self, number: u64) {
        let name = format!("{number}-{}", u64::from_le_bytes(clock::random()));
        self.watch.folder(&format!("{}/{COOKIES}", crate::mirror::root::OWN));
        self.watch.expect_cookie(&name);
        let made = self.root.own(COOKIES).and_then(|folder| folder.create(&name, 0o600).map(|_| folder));
        let until = match made {
            Ok(folder) => {
                let _ = rustix::fs::unlinkat(&folder, &name, rustix::fs::AtFlags::empty());
                Instant::now() + COOKIE
            }
            // Then a look at everything has to do.
            Err(_) => Instant::now(),
        };
        self.barriers.push(Barrier { number, state: BarrierState::Cookie { name, until } });
    }

    pub(super) fn go_on_with_barriers(&mut self) {
        let now = Instant::now();
        let mut answered = Vec::new();
        let mut barriers = std::mem::take(&mut self.barriers);
        for barrier in &mut barriers {
            if let BarrierState::Cookie { name, until } = &barrier.state {
                let came = self.watch.cookie_came(name);
                if !came && *until > now {
                    continue;
                }
                self.watch.forget_cookie(name);
                if !came {
                    self.dirty.add(Dirty::everything());
                }
                let touched = self.watch.take();
                self.dirty.add(touched);
                // A look that goes on now may have passed what is dirty.
                let under_way = u64::from(matches!(self.lane, Lane::Looking(_)));
                let needed = if self.dirty.is_empty() { under_way } else { under_way + 1 };
                barrier.state = BarrierState::Look { looks: self.looks + needed };
            }
            if let BarrierState::Look { looks } = barrier.state
                && (self.looks >= looks)
            {
                barrier.state = BarrierState::Accepted;
            }
            if barrier.state == BarrierState::Accepted && self.is_flushed() {
                answered.push(barrier.number);
            }
        }
        barriers.retain(|barrier| !answered.contains(&barrier.number));
        self.barriers.append(&mut barriers);
        for number in answered {
            self.send(from_workspace::Frame::Barrier(number));
        }
        if self.barriers.iter().any(|barrier| matches!(barrier.state, BarrierState::Look { .. })) {
            self.use_disk();
        }
        self.answer_checks();
    }

    /// Everything that was found here is at the hub, or held back for a reason that the status tells.
    pub(super) fn is_flushed(&self) -> bool {
        let status = self.replica.status();
        status.up_files <= status.held
    }

    pub(super) fn answer_checks(&mut self) {
        let settled = self.replica.is_settled();
        let checks = std::mem::take(&mut self.checks);
        for check in checks {
            if !check.looked || (check.repair && !settled) {
                self.checks.push(check);
                continue;
            }
            let mut report = drift::report(check.request, self.replica.hello().0, &self.cache(), self.replica.hub());
            report.repaired = check.repair && drift::is_none(&report);
            self.send(from_workspace::Frame::Drift(report));
        }
    }
}
