//! Barriers, and checks for drift.

use super::*;

impl Workspace {
    pub(super) fn asked(&mut self, ask: Ask) {
        if matches!(ask, Ask::Forget) {
            self.exit = Some(Exit::Detached);
            return;
        }
        match ask {
            Ask::Follow(revision, tell) => self.followers.push((revision, tell)),
            Ask::Flush(tell) if !self.stands_still() && self.stream.is_some() => self.begin_barrier(Answer::Task(tell)),
            Ask::Flush(_) | Ask::Forget => {}
        }
    }

    /// Nothing goes up or down, perhaps for long.
    fn stands_still(&self) -> bool {
        self.root_gone || self.replica.status().paused
    }

    /// Lets those go on who wait for the hub's files.
    pub(super) fn answer_followers(&mut self) {
        self.followers.retain(|(_, tell)| !tell.is_closed());
        if self.followers.is_empty() {
            return;
        }
        let status = self.replica.status();
        let applied = status.down_files <= status.down_failed && !self.root_gone;
        let holds = |revision| applied && if revision == 0 { status.caught_up } else { status.revision >= revision };
        let (there, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.followers).into_iter().partition(|(revision, _)| holds(*revision));
        for (_, tell) in there {
            let _ = tell.send(());
        }
        // A stream that is not there may be on its way when somebody knows a revision.
        let (stands_still, connected) = (self.stands_still(), self.stream.is_some());
        self.followers.extend(waiting.into_iter().filter(|(revision, _)| !stands_still && (connected || *revision > 0)));
    }

    pub(super) fn begin_barrier(&mut self, answer: Answer) {
        let name = format!("{:016x}", u64::from_le_bytes(clock::random()));
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
        self.barriers.push(Barrier { answer, state: BarrierState::Cookie { name, until } });
    }

    pub(super) fn go_on_with_barriers(&mut self) {
        let now = Instant::now();
        let mut answered = Vec::new();
        for mut barrier in std::mem::take(&mut self.barriers) {
            if matches!(&barrier.answer, Answer::Task(tell) if tell.is_closed()) {
                if let BarrierState::Cookie { name, .. } = &barrier.state {
                    self.watch.forget_cookie(name);
                }
                continue;
            }
            if let BarrierState::Cookie { name, until } = &barrier.state {
                let came = self.watch.cookie_came(name);
                if !came && *until > now {
                    self.barriers.push(barrier);
                    continue;
                }
                self.watch.forget_cookie(name);
                if !came {
                    self.dirty.add(Dirty::everything());
                }
                let touched = self.watch.take();
                self.dirty.add(touched);
                // Who waits for what was written waits for what is there now.
                self.dirty.read_unclosed();
                self.look_at_unclosed(|_| true);
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
            match barrier.answer {
                Answer::Hub(number) if barrier.state == BarrierState::Accepted && self.is_flushed() => answered.push(number),
                Answer::Task(tell) if barrier.state == BarrierState::Accepted && self.is_flushed() => {
                    let _ = tell.send(());
                }
                _ => self.barriers.push(barrier),
            }
        }
        for number in answered {
            self.send(from_workspace::Frame::Barrier(number));
        }
        if self.barriers.iter().any(|barrier| matches!(barrier.state, BarrierState::Look { .. })) {
            self.use_disk();
        }
        self.answer_checks();
    }

    /// Everything that was found here is at the hub, or kept back for a reason that the status tells.
    pub(super) fn is_flushed(&self) -> bool {
        let status = self.replica.status();
        status.up_files <= status.up_failed && !self.reads_large_files()
    }

    /// What tasks wrote before they ended is no longer to be waited for.
    pub(super) fn note_rest(&self) {
        let session = &self.options.session;
        if self.options.writers.wait_for_rest(session) && self.is_at_rest() && self.watch.settles_at().is_none() {
            self.options.writers.settled(session);
        }
    }

    pub(super) fn begin_check(&mut self, rescan: &schema::Rescan) {
        let paths: Vec<RelPath> = rescan.paths.iter().take(limits::RESCAN_PATHS).filter_map(|path| path.parse().ok()).collect();
        for path in &paths {
            self.dirty.mark(path.clone(), Mark { deep: true, ..LOOK });
        }
        if paths.is_empty() {
            self.dirty.add(Dirty::everything());
        }
        self.checks.push(Check { request: rescan.request, rehash: rescan.rehash, repair: rescan.repair, paths, looked: false });
    }

    pub(super) fn answer_checks(&mut self) {
        let settled = self.replica.is_settled();
        let checks = std::mem::take(&mut self.checks);
        for check in checks {
            let settled = settled || (!check.paths.is_empty() && check.paths.iter().all(|path| self.replica.is_settled_at(path)));
            if !check.looked || self.reads_large_files() || (check.repair && !settled) {
                self.checks.push(check);
                continue;
            }
            let covers = |path: &RelPath| check.covers(path);
            let mut report = drift::report(check.request, self.replica.hello().0, &self.cache(), self.replica.hub(), &covers);
            report.repaired = check.repair && drift::is_none(&report);
            self.send(from_workspace::Frame::Drift(report));
        }
    }
}
