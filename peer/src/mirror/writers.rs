//! Which task a change comes from, as far as anybody can know.
//!
//! The file system does not say who wrote. So a proposal names a task only when there is no doubt about which one it could be: exactly one of the session is
//! running, or has ended since the workspace last came to rest.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cortex_wire::id::{SessionId, TaskId};

/// With so many nobody can tell any more.
const ENDED: usize = 2;

/// The tasks that may be writing, by session.
#[derive(Debug, Default)]
pub struct Writers(Mutex<HashMap<SessionId, Tasks>>);

#[derive(Debug, Default)]
struct Tasks {
    running: BTreeSet<TaskId>,
    /// What they wrote may not have been proposed.
    ended: BTreeSet<TaskId>,
}

impl Writers {
    fn tasks(&self) -> MutexGuard<'_, HashMap<SessionId, Tasks>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task is about to run.
    pub fn began(&self, session: SessionId, task: TaskId) {
        self.tasks().entry(session).or_default().running.insert(task);
    }

    /// A task has ended. `flushed`: all that it wrote is at the hub.
    pub fn ended(&self, session: &SessionId, task: &TaskId, flushed: bool) {
        let mut sessions = self.tasks();
        let Some(tasks) = sessions.get_mut(session) else { return };
        tasks.running.remove(task);
        if !flushed && tasks.ended.len() < ENDED {
            tasks.ended.insert(*task);
        }
        if tasks.running.is_empty() && tasks.ended.is_empty() {
            sessions.remove(session);
        }
    }

    /// All that was written is at the hub.
    pub fn settled(&self, session: &SessionId) {
        let mut sessions = self.tasks();
        let Some(tasks) = sessions.get_mut(session) else { return };
        tasks.ended.clear();
        if tasks.running.is_empty() {
            sessions.remove(session);
        }
    }

    /// Whether a task has ended since the workspace last came to rest.
    pub fn wait_for_rest(&self, session: &SessionId) -> bool {
        self.tasks().get(session).is_some_and(|tasks| !tasks.ended.is_empty())
    }

    /// The one task that may have written what is proposed now.
    pub fn author(&self, session: &SessionId) -> Option<TaskId> {
        let sessions = self.tasks();
        let tasks = sessions.get(session)?;
        let mut all = tasks.running.union(&tasks.ended);
        all.next().copied().filter(|_| all.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_tasks_when_it_can_be_no_other_ones() {
        let (session, [one, two]) = (SessionId::new(1, [1; 10]), [1, 2].map(|byte| TaskId::new(1, [byte; 10])));
        let writers = Writers::default();
        assert_eq!(writers.author(&session), None);
        writers.began(session, one);
        assert_eq!(writers.author(&session), Some(one));
        assert_eq!(writers.author(&SessionId::new(1, [2; 10])), None, "another session's is no concern of it");
        writers.began(session, two);
        assert_eq!(writers.author(&session), None);
        writers.ended(&session, &one, true);
        assert_eq!(writers.author(&session), Some(two));
        writers.ended(&session, &two, false);
        assert!(writers.wait_for_rest(&session));
        assert_eq!(writers.author(&session), Some(two), "what it wrote may be proposed only now");
        writers.settled(&session);
        assert_eq!(writers.author(&session), None);
        assert!(writers.tasks().is_empty(), "nothing is kept of what is over");
    }
}
