//! Tasks of all sessions of somebody, for their overview.

use cortex_wire::id::TaskId;

use super::rows;
use crate::{
    account::Actor,
    failure::Refused,
    hub::Hub,
    record::{
        Scope, Task,
        tables::{SESSIONS_OF_USER, TASKS_OF_SESSION},
    },
    store::{Order, Span},
};

impl Hub {
    /// The tasks of the actor's sessions, newest first, at most `limit`, those before `before`.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn recent_tasks(&self, actor: &Actor, before: Option<TaskId>, limit: usize) -> Result<Vec<Task>, Refused> {
        actor.must(Scope::Read)?;
        let user = actor.user;
        self.db
            .read(move |tx| {
                // Ids begin with the time of their making: their order is that of the list.
                let mut newest = Vec::new();
                for session in SESSIONS_OF_USER.all_of(tx, &user)? {
                    let span = Span::under(session);
                    let span = match before {
                        Some(before) => span.before((session, before)),
                        None => span,
                    };
                    newest.extend(TASKS_OF_SESSION.of(tx, &session, &span, Order::Descending, limit)?);
                    newest.sort_unstable_by(|a, b| b.cmp(a));
                    newest.truncate(limit);
                }
                Ok(rows(tx, &newest)?)
            })
            .await
    }
}
