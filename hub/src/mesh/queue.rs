//! Who waits for a node's slots: sessions take turns, and within a session it goes by arrival.
//!
//! A session that has queued a thousand tasks does not make another one's first task wait for all of them.

use std::collections::{HashMap, VecDeque};

use cortex_wire::id::{SessionId, TaskId};

use crate::record::Task;

/// Tasks that wait.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Each of them has somebody waiting; the first one's turn is next.
    turns: VecDeque<SessionId>,
    waiting: HashMap<SessionId, VecDeque<Task>>,
}

impl Queue {
    pub(crate) fn push(&mut self, task: Task) {
        let session = task.session;
        let line = self.waiting.entry(session).or_default();
        if line.is_empty() {
            self.turns.push_back(session);
        }
        line.push_back(task);
    }

    pub(crate) fn pop(&mut self) -> Option<Task> {
        let session = self.turns.pop_front()?;
        let line = self.waiting.get_mut(&session)?;
        let next = line.pop_front();
        if line.is_empty() {
            self.waiting.remove(&session);
        } else {
            self.turns.push_back(session);
        }
        next
    }

    pub(crate) fn remove(&mut self, task: TaskId) {
        self.waiting.values_mut().for_each(|line| line.retain(|waiting| waiting.id != task));
        self.waiting.retain(|_, line| !line.is_empty());
        self.turns.retain(|session| self.waiting.contains_key(session));
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Site;

    #[tokio::test]
    async fn sessions_take_turns_and_none_is_forgotten() {
        let site = Site::new().await;
        let ada = site.member("ada").await;
        let (first, _) = site.workplace(&ada, 1).await;
        let (second, _) = site.workplace(&ada, 2).await;
        let mut queue = Queue::default();
        let mut tasks = Vec::new();
        for session in [first, first, first, second, first, second] {
            let task = site.run(&ada, session).await.unwrap();
            tasks.push(task.id);
            queue.push(task);
        }
        queue.remove(tasks[1]);
        let order: Vec<TaskId> = std::iter::from_fn(|| queue.pop()).map(|task| task.id).collect();
        assert_eq!(order, [0, 3, 2, 5, 4].map(|at: usize| tasks[at]));
        assert!(queue.turns.is_empty() && queue.waiting.is_empty());
        let task = site.run(&ada, first).await.unwrap();
        queue.push(task.clone());
        queue.remove(task.id);
        assert!(queue.pop().is_none() && queue.turns.is_empty());
    }
}
