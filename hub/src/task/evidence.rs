//! What a node has signed about a task, as a file that anybody can check.

use cortex_wire::{
    evidence::{Command, Evidence, FORMAT, SignedText},
    id::TaskId,
    policy,
};
use data_encoding::BASE64;

use super::{TaskError, seen_by};
use crate::{account::Actor, hub::Hub, policy::hash_of, record::tables::NODES};

impl Hub {
    /// The evidence of a task, for the actor.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn evidence(&self, actor: &Actor, id: TaskId) -> Result<Evidence, TaskError> {
        let actor = actor.clone();
        self.db
            .read(move |tx| {
                let task = seen_by(tx, &actor, id)?;
                let node = NODES.get(tx, &task.node)?;
                let signed = task.evidence.ok_or(TaskError::NoEvidence(task.state))?;
                let policy = node.filter(|node| task.policy_hash == Some(hash_of(node)));
                Ok(Evidence {
                    format: FORMAT.into(),
                    node_id: task.node.to_string(),
                    session_id: task.session.to_string(),
                    task_id: id.to_string(),
                    command: Command {
                        argv: task.spec.argv,
                        script: task.spec.script.unwrap_or_default(),
                        shell: task.spec.shell.unwrap_or_default(),
                        cwd: task.spec.cwd,
                        env: task.spec.env,
                        secrets: task.spec.secrets.into_keys().collect(),
                        terminal: task.spec.terminal.is_some(),
                        shell_session: task.spec.shell_session,
                        browser: task.spec.browser.map(|order| order.to_string()),
                    },
                    result: SignedText { body: signed.body, signature: signed.signature },
                    policy: policy.map(|node| BASE64.encode(&policy::encode(&(&node.policy).into()))),
                })
            })
            .await
    }
}
