//! What goes on beside the owner: the disk lane, staging, uploads, the state's transactions.

use super::*;

impl Workspace {
    /// Starts what can be started.
    pub(super) fn advance(&mut self) {
        if self.watch.take_root_touched() && !self.root.is_in_place() {
            self.root_is_gone();
        }
        self.untrack();
        self.drain();
        self.persist();
        self.use_disk();
        self.start_reading();
        self.start_staging();
        self.start_syncing();
        self.start_uploads();
        self.go_on_with_barriers();
        self.answer_followers();
        self.note_rest();
        self.report();
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.replica.poll_output() {
            match output {
                Output::Look(paths) => paths.into_iter().for_each(|path| self.dirty.mark(path, LOOK)),
                Output::Upload { path, hash } => self.upload(path, hash),
                Output::Propose(proposal) => {
                    let task = self.options.writers.author(&self.options.session);
                    self.proposals.push(hub::propose(&proposal, task));
                }
                Output::Apply(jobs) => self.lists.push_back(jobs),
                // The status says it.
                Output::Question { id, text } => {
                    tracing::info!(session = %self.options.session, id, text, "a question to the workspace's owner")
                }
                Output::Resync => self.give_stream_up("the tree is not the hub's"),
            }
        }
    }

    /// Makes durable what was learned, one transaction at a time: at once when a proposal waits for it, otherwise after a while. What a crash takes is learned again.
    pub(super) fn persist(&mut self) {
        let due = !self.proposals.is_empty() || self.persist_at.is_some_and(|at| at <= Instant::now());
        if self.writing.is_some() || !due {
            return;
        }
        self.persist_at = None;
        let changes = self.replica.take_changes();
        self.rows.engine(&changes);
        let seen = self.cache().take_changes();
        self.rows.seen(seen);
        if self.rows.is_empty() {
            self.send_all_proposals();
        } else {
            self.in_write.append(&mut self.proposals);
            self.writing = Some(self.store.write(std::mem::take(&mut self.rows)));
        }
    }

    pub(super) fn send_all_proposals(&mut self) {
        for proposal in std::mem::take(&mut self.proposals) {
            if let Some(frame) = proposal.frame {
                self.send(frame);
            }
        }
    }

    pub(super) fn durable(&mut self, outcome: Result<(), String>) {
        self.writing = None;
        match outcome {
            Ok(()) => {
                for proposal in std::mem::take(&mut self.in_write) {
                    if let Some(frame) = proposal.frame {
                        self.send(frame);
                    }
                }
            }
            Err(error) => {
                // What is not durable must not be proposed. Nothing on the disk is lost by going on later from what is.
                tracing::error!(session = %self.options.session, error, "the state of the workspace cannot be kept; sync stands still");
                self.exit = Some(Exit::Broken(error));
            }
        }
    }

    pub(super) fn use_disk(&mut self) {
        if self.lane != Lane::Free || self.root_gone {
            return;
        }
        let now = Instant::now();
        let hurry = self.barriers.iter().any(|barrier| matches!(barrier.state, BarrierState::Look { .. }));
        let settled = self.watch.settles_at().is_some_and(|at| at <= now || hurry);
        if settled {
            let touched = self.watch.take();
            self.dirty.add(touched);
        }
        // Looks are short, and what they find may make an apply needless. But most of what an apply leaves to look at is its own doing: while more is staged, one look does for several.
        let waits = !self.staged.is_empty() && !hurry && now < self.looked_at + LOOK_AGAIN;
        if !self.dirty.is_empty() && !waits {
            self.look();
        } else if !self.staged.is_empty() {
            self.apply();
        }
    }

    pub(super) fn look(&mut self) {
        let rehash = self.checks.iter().any(|check| check.rehash && !check.looked);
        let how = How { all: !self.looked_once, rehash };
        let dirty = std::mem::take(&mut self.dirty);
        let eyes = Eyes {
            root: self.root.clone(),
            cache: self.cache.clone(),
            ignored: self.ignored.clone(),
            watch: self.watch.clone(),
            read_files: self.read_files.clone(),
            stop: self.stop.clone(),
        };
        self.lane = Lane::Looking(how);
        let all_is_new = self.all_is_new(how);
        let mut gather = if all_is_new { self.start_gathering(SMALL) } else { None };
        let tell = self.tell.clone();
        tokio::task::spawn_blocking(move || {
            let mut findings = Findings::default();
            let ended = walk::look(&eyes, &dirty, how, gather.as_mut(), &mut |mut portion| {
                if all_is_new {
                    // Nothing can be half of a rename: the hub may have it before the rest is found.
                    let (found, gathered) = (std::mem::take(&mut portion.found), std::mem::take(&mut portion.gathered));
                    let _ = tell.blocking_send(Event::Found { found, gathered });
                }
                findings.add(portion);
                true
            });
            let _ = tell.blocking_send(Event::Looked { findings, ended });
            if let Some(gather) = gather {
                gather.finish();
            }
        });
    }

    /// Applies all that is staged: what has come together shares the flushes of the file system.
    pub(super) fn apply(&mut self) {
        if !self.root.is_in_place() {
            return self.root_is_gone();
        }
        self.lane = Lane::Applying;
        let Ready { jobs, tasks } = std::mem::take(&mut self.staged);
        let hands = Hands {
            root: self.root.clone(),
            cache: self.cache.clone(),
            ignored: self.ignored.clone(),
            stage: self.stage.clone(),
            rules: self.rules_above(&jobs),
        };
        let tell = self.tell.clone();
        tokio::task::spawn_blocking(move || {
            let (tasks, maps): (Vec<_>, Vec<_>) = tasks.into_iter().unzip();
            let contents = tasks.iter().map(|task| if let Put::File { content, .. } = task.put { Some(content) } else { None });
            let maps = contents.zip(maps).filter_map(|(content, map)| Some((content?, map?))).collect();
            let done = apply::apply(&hands, &tasks, clock::now_ms(), &|_: Step| true).unwrap_or_default();
            let _ = tell.blocking_send(Event::Applied { jobs, done, maps });
        });
    }

    /// Brings the contents of the next jobs to the stage.
    pub(super) fn start_staging(&mut self) {
        while self.staging.len() < STAGING && self.written.jobs.len() + self.staged.jobs.len() < STAGED && self.stage_next() {}
    }

    fn stage_next(&mut self) -> bool {
        let chunks = self.options.chunks.borrow().clone();
        let needs_chunks = |job: &Job| matches!(job, Job::Set { to: Some(Entry::File { .. }), .. });
        let Some(jobs) = self.lists.pop_front_if(|jobs| chunks.is_some() || !jobs.iter().any(needs_chunks)) else { return false };
        self.lists_begun += 1;
        let number = self.lists_begun;
        self.staging.push_back((number, None));
        let kitchen = Kitchen {
            root: self.root.clone(),
            cache: self.cache.clone(),
            store: self.store.clone(),
            stage: self.stage.clone(),
            keys: self.sealing.clone(),
            afresh: self.afresh.clone(),
        };
        let asker = Asker { session: self.options.session, node: None };
        let (tell, cooks) = (self.tell.clone(), self.cooks.clone());
        tokio::spawn(async move {
            let _one_of_few = cooks.acquire().await;
            let (tasks, failed) = stage(&kitchen, chunks, asker, &jobs).await;
            let _ = tell.send(Event::Written { number, list: List { jobs, tasks, failed } }).await;
        });
        true
    }

    fn written(&mut self, number: u64, list: List) {
        if let Some((_, slot)) = self.staging.iter_mut().find(|(staging, _)| *staging == number) {
            *slot = Some(list);
        }
        while let Some((_, Some(List { jobs, tasks, failed }))) = self.staging.pop_front_if(|(_, list)| list.is_some()) {
            self.not_staged(failed);
            self.written.add(jobs, tasks);
        }
    }

    /// Brings what is written to the disk, while the contents of the next list come.
    pub(super) fn start_syncing(&mut self) {
        if self.syncing || self.written.is_empty() {
            return;
        }
        self.syncing = true;
        let Ready { jobs, tasks } = std::mem::take(&mut self.written);
        let (stage, tell) = (self.stage.clone(), self.tell.clone());
        tokio::task::spawn_blocking(move || {
            let (tasks, failed) = bring_to_disk(&stage, tasks);
            let _ = tell.blocking_send(Event::Staged { jobs, tasks, failed });
        });
    }

    pub(super) fn take_in(&mut self, event: Event) {
        match event {
            Event::Found { found, gathered } => self.found(found, gathered),
            Event::Looked { findings, ended } => self.looked(findings, ended),
            Event::Written { number, list } => self.written(number, list),
            Event::Staged { jobs, tasks, failed } => {
                self.syncing = false;
                self.not_staged(failed);
                self.staged.add(jobs, tasks);
            }
            Event::Read { path, file, gathered } => self.was_read(path, file, gathered),
            Event::Applied { jobs, done, maps } => self.applied(&jobs, done, maps),
            Event::Stored(stored) => self.stored(stored),
            Event::Uploaded { lane } => self.uploading[lane] = false,
            Event::Gathered { lane } => self.gathered(lane),
        }
    }

    fn not_staged(&mut self, failed: Vec<(RelPath, Trouble)>) {
        for (path, trouble) in failed {
            self.handle(Input::ApplyFailed { path, trouble });
        }
    }

    pub(super) fn looked(&mut self, findings: Findings, ended: Result<(), Ended>) {
        let Lane::Looking(how) = std::mem::replace(&mut self.lane, Lane::Free) else { return };
        let Findings { mut found, untracked, looked_at, troubles, large, unclosed, busy, gathered } = findings;
        match ended {
            Ok(()) => {}
            Err(Ended::Stopped) => return,
            Err(Ended::RootGone) => {
                // What was seen is not the workspace.
                self.dirty = Dirty::everything();
                self.looked_once = false;
                return self.root_is_gone();
            }
        }
        self.looks += 1;
        self.looked_at = Instant::now();
        self.untracked.extend(untracked);
        let dirty = &self.dirty;
        self.read_files.retain(|path| dirty.everything || dirty.paths.contains_key(path));
        self.note_troubles(&looked_at, troubles);
        large.iter().for_each(|(path, written)| self.is_large(path, *written));
        if !(self.hot.is_empty() && self.unclosed.is_empty()) {
            let looked_at: BTreeSet<&str> = looked_at.iter().map(String::as_str).collect();
            let open: BTreeSet<&RelPath> = unclosed.iter().collect();
            let changing: BTreeSet<&RelPath> = large.iter().map(|(path, _)| path).chain(&busy).collect();
            self.unclosed.retain(|path, _| open.contains(path) || !looked_at.contains(path.as_str()));
            self.hot.retain(|path, _| changing.contains(path) || open.contains(path) || !looked_at.contains(path.as_str()));
        }
        busy.into_iter().for_each(|path| self.is_hot(path));
        unclosed.into_iter().for_each(|path| self.is_unclosed(path));
        if how.all {
            let gone = self.not_there_any_more();
            found.extend(self.keep_ignored(gone));
            self.looked_once = true;
        }
        self.checks.iter_mut().for_each(|check| check.looked = true);
        if how.all && found.is_empty() {
            // That nothing has changed is news to an engine that has just begun.
            self.handle(Input::Scanned(Vec::new()));
        }
        self.found(found, gathered);
    }

    fn found(&mut self, found: Vec<(RelPath, Option<Found>)>, gathered: Vec<(RelPath, Hash)>) {
        self.gathering[SMALL].extend(gathered);
        self.forget_stale(&found);
        if !found.is_empty() {
            self.handle(Input::Scanned(found));
        }
    }

    /// What the engine takes to be there, and is not.
    pub(super) fn not_there_any_more(&self) -> Vec<(RelPath, Option<Found>)> {
        let cache = self.cache();
        self.replica
            .hub()
            .iter()
            .map(|(path, _)| path)
            .filter(|path| cache.get(path).is_none() && !self.is_hidden(path))
            .map(|path| (path, None))
            .collect()
    }

    /// Nobody knows what lies there.
    fn is_hidden(&self, path: &RelPath) -> bool {
        let is_below = |trouble: &walk::Trouble| {
            trouble.path.is_empty()
                || path.as_str().strip_prefix(&trouble.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let is_read_later = self.is_to_be_read(path) || self.hot.contains_key(path) || self.unclosed.contains_key(path);
        is_read_later || self.troubles.values().any(is_below)
    }

    pub(super) fn note_troubles(&mut self, looked_at: &[String], troubles: Vec<walk::Trouble>) {
        if !self.troubles.is_empty() {
            let looked: std::collections::BTreeSet<&str> = looked_at.iter().map(String::as_str).collect();
            self.troubles.retain(|path, _| {
                let (parent, _) = crate::mirror::root::split(path);
                !looked.contains(path.as_str()) && !looked.contains(parent)
            });
        }
        for trouble in troubles {
            if self.troubles.len() < TROUBLES {
                self.troubles.insert(trouble.path.clone(), trouble);
            }
        }
    }

    /// It is being written: what it holds may be half of something.
    fn is_unclosed(&mut self, path: RelPath) {
        let now = Instant::now();
        let unclosed = self.unclosed.entry(path).or_insert(Unclosed { since: now, read_at: now });
        unclosed.read_at = (now + UNCLOSED).min(unclosed.since + UNCLOSED_AT_MOST);
    }

    /// Reads what is being written as it is.
    pub(super) fn look_at_unclosed(&mut self, is_due: impl Fn(Instant) -> bool) -> bool {
        let due: Vec<_> = self.unclosed.extract_if(.., |_, unclosed| is_due(unclosed.read_at)).collect();
        due.iter().for_each(|(path, _)| self.dirty.mark(path.clone(), LOOK));
        !due.is_empty()
    }

    /// It changes faster than it can be read: it alone is looked at more and more seldom.
    pub(super) fn is_hot(&mut self, path: RelPath) {
        let hot = self.hot.entry(path.clone()).or_insert(Hot { tries: 0, again_at: Instant::now(), due: false });
        hot.again_at = Instant::now() + HOT.saturating_mul(1 << hot.tries.min(12)).min(HOT_AT_MOST);
        hot.tries += 1;
        self.say_hot(&path);
    }

    pub(super) fn say_hot(&mut self, path: &RelPath) {
        if self.hot.get(path).is_some_and(|hot| hot.tries >= HOT_TRIES) {
            let message = "it changes faster than it can be read; it is synced when it comes to rest".into();
            self.troubles.insert(path.to_string(), walk::Trouble { path: path.to_string(), code: "hot", message });
        }
    }

    pub(super) fn applied(&mut self, jobs: &[Job], done: Vec<Done>, maps: Vec<([u8; 32], ChunkMap)>) {
        self.lane = Lane::Free;
        for (content, map) in maps {
            self.rows.map(&content, Some(&map));
            // The next version of the file is put together from this one: it may come at once.
            self.persist_at = Some(Instant::now());
        }
        let jobs: BTreeMap<&RelPath, &Job> = jobs.iter().map(|job| (place(job), job)).collect();
        for Done { path, copy, result } in done {
            if let Some(copy) = copy {
                tracing::info!(session = %self.options.session, %path, copy, "the version of this node lost a conflict and is kept here");
            }
            let input = match (jobs.get(&path), result) {
                (Some(Job::Set { to, .. }), Ok(())) => Input::Applied { path, hash: to.as_ref().map(Entry::hash) },
                (Some(Job::Set { .. }), Err(Failed::Found(found))) => Input::ApplyFound { path, found },
                (Some(Job::Set { .. }), Err(Failed::Code { code, message })) => {
                    Input::ApplyFailed { path, trouble: Trouble { code: code.into(), message } }
                }
                (Some(Job::Move { to, .. }), result) => {
                    self.handle(Input::Moved { from: path.clone(), done: result.is_ok() });
                    self.tell_anew(&path);
                    self.tell_anew(to);
                    continue;
                }
                (None, _) => continue,
            };
            self.handle(input);
        }
    }

    /// Tells the engine where what it takes to lie at and below a path is not what was seen there. A look may have told of something in a folder while the folder was about to be moved: it
    /// went along, and is no news to any later look.
    fn tell_anew(&mut self, top: &RelPath) {
        let mut known = self.replica.known(top);
        let mut found = Vec::new();
        {
            let cache = self.cache();
            for (path, seen) in cache.get(top).map(|seen| (top, seen)).into_iter().chain(cache.below(top)) {
                if known.remove(path) != Some(seen.hash()) {
                    found.push((path.clone(), Some(seen.found())));
                }
            }
        }
        found.extend(known.into_keys().filter(|path| !self.is_hidden(path)).map(|path| (path, None)));
        if !found.is_empty() {
            self.handle(Input::Scanned(found));
        }
    }
}

type Outcome = (Staging, Vec<(RelPath, Trouble)>);

fn place(job: &Job) -> &RelPath {
    match job {
        Job::Set { path, .. } => path,
        Job::Move { from, .. } => from,
    }
}

/// Makes tasks of jobs: what they put is in the stage then.
async fn stage(kitchen: &Kitchen, chunks: Option<Arc<dyn ChunkSource>>, asker: Asker, jobs: &[Job]) -> Outcome {
    let wanted: Vec<Wanted> = jobs.iter().filter_map(|job| wanted(kitchen, job)).collect();
    let paths: Vec<RelPath> = wanted.iter().map(|wanted| wanted.path.clone()).collect();
    let outcomes = match chunks {
        Some(chunks) if !wanted.is_empty() => download::fetch(kitchen, chunks, asker, wanted).await,
        _ => Vec::new(),
    };
    let mut staged: BTreeMap<RelPath, Result<Staged, Trouble>> = paths.into_iter().zip(outcomes).collect();
    let mut ready: Outcome = Default::default();
    for job in jobs {
        let (path, expect, keep_copy) = match job {
            Job::Move { from, to, expect } => {
                ready.0.push((Task { path: from.clone(), expect: Some(*expect), put: Put::Move(to.clone()), keep_copy: false }, None));
                continue;
            }
            Job::Set { path, expect, keep_copy, .. } => (path, *expect, *keep_copy),
        };
        let mut map = None;
        let put = match (job, staged.remove(path)) {
            (_, Some(Err(trouble))) => {
                ready.1.push((path.clone(), trouble));
                continue;
            }
            (Job::Set { to: Some(Entry::File { content, executable }), .. }, Some(Ok(file))) => {
                map = file.map;
                Put::File { staged: file.name, content: content.hash, executable: *executable }
            }
            (Job::Set { to: Some(Entry::File { executable, .. }), .. }, None) => Put::Mode { executable: *executable },
            (Job::Set { to: Some(Entry::Directory), .. }, _) => Put::Directory,
            (Job::Set { to: Some(Entry::Symlink(target)), .. }, _) => Put::Symlink(target.clone()),
            _ => Put::Nothing,
        };
        ready.0.push((Task { path: path.clone(), expect, put, keep_copy }, map));
    }
    ready
}

/// Before anything takes its place, what is staged is on the disk. Blocks.
fn bring_to_disk(stage: &Stage, tasks: Staging) -> Outcome {
    let staged = |task: &Task| if let Put::File { staged, .. } = &task.put { Some(staged.clone()) } else { None };
    let names: Vec<String> = tasks.iter().filter_map(|(task, _)| staged(task)).collect();
    let Err(error) = stage.sync(&names) else { return (tasks, Vec::new()) };
    names.iter().for_each(|name| stage.discard(name));
    let (lost, kept): (Staging, Staging) = tasks.into_iter().partition(|(task, _)| staged(task).is_some());
    (kept, lost.into_iter().map(|(task, _)| (task.path, download::io_trouble(&error))).collect())
}

/// The contents that a job needs, unless they are there and only the permission differs.
fn wanted(kitchen: &Kitchen, job: &Job) -> Option<Wanted> {
    let Job::Set { path, to: Some(Entry::File { content, executable }), keep_copy, .. } = job else { return None };
    let cache = kitchen.cache.lock().unwrap_or_else(PoisonError::into_inner);
    let same = cache.file(path).is_some_and(|file| file.content == content.hash && file.stat.size == content.size);
    (!same || *keep_copy).then(|| Wanted { path: path.clone(), content: content.clone(), executable: *executable })
}
