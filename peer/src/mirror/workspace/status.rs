//! What people see of a workspace.

use super::*;

impl Workspace {
    pub(super) fn report(&mut self) {
        let now = Instant::now();
        // That things have come to rest is said at once: somebody may be waiting for it.
        let rests = || self.last_status.as_ref().is_some_and(|last| last.state != "in_sync") && self.is_at_rest();
        if self.stream.is_none() || !self.stale || (self.status_at > now && !rests()) {
            return;
        }
        let status = self.status();
        // It costs what is not agreed on: a twentieth of the time at most goes into it.
        (self.stale, self.status_at) = (false, now + STATUS.max(now.elapsed() * 20));
        if self.last_status.as_ref() != Some(&status) {
            self.last_status = Some(status.clone());
            self.send(from_workspace::Frame::Status(status));
        }
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.replica.is_settled()
            && self.dirty.is_empty()
            && self.untracked.is_empty()
            && !self.reads_large_files()
            && self.unclosed.is_empty()
            && self.lane == Lane::Free
    }

    pub(super) fn status(&self) -> schema::WorkspaceStatus {
        let engine = self.replica.status();
        let (question, question_text) = match engine.question {
            _ if self.root_gone => (
                ROOT_QUESTION,
                "The folder of this workspace was moved, removed or unmounted on this node. Make it again and fill it from the hub? Nothing is deleted elsewhere."
                    .to_owned(),
            ),
            Some((id, text)) => (id, text),
            None => (0, String::new()),
        };
        let settled = self.is_at_rest();
        let state = if question != 0 {
            "held"
        } else if engine.paused {
            "paused"
        } else if !self.looked_once {
            "scanning"
        } else if settled {
            "in_sync"
        } else if engine.held > 0 && engine.up_files == engine.held && engine.down_files == 0 && self.dirty.is_empty() {
            // All that is left waits for another's lock.
            "held"
        } else {
            "syncing"
        };
        let mut problems: Vec<_> = Vec::new();
        let mut more = engine.more_problems;
        let problem = |path: &str, code: &str, message: &str| schema::WorkspaceProblem {
            path: path.into(),
            code: code.into(),
            message: message.into(),
        };
        if self.watch.unwatched() > 0 {
            let message = format!(
                "{} folders are looked at every 10 s instead of being watched; raise fs.inotify.max_user_watches on this node",
                self.watch.unwatched()
            );
            problems.push(problem("", "not_watched", &message));
        }
        let ours = self.troubles.values().map(|trouble| problem(&trouble.path, trouble.code, &trouble.message));
        let engines = engine.problems.iter().map(|(path, trouble)| problem(path.as_str(), &trouble.code, &trouble.message));
        for problem in ours.chain(engines) {
            if problems.len() < PROBLEMS { problems.push(problem) } else { more += 1 }
        }
        schema::WorkspaceStatus {
            revision: engine.revision,
            state: state.into(),
            down_files: engine.down_files,
            down_bytes: engine.down_bytes,
            up_files: engine.up_files,
            up_bytes: self.up_bytes.values().sum(),
            held: engine.held,
            problems,
            more_problems: more,
            question,
            question_text,
        }
    }
}
