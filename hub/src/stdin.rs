//! What is typed into tasks: checked here, carried by the mesh, and not stored.

use bytes::Bytes;
use cortex_wire::id::TaskId;

use crate::{
    account::Actor,
    failure::{Failure, Kind, Refused},
    hub::{Hub, StdinError},
    record::Scope,
    session, task,
};

/// Why input did not reach a task.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The task or its node does not take it.
    #[error(transparent)]
    Stdin(#[from] StdinError),
    /// Anything else.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl Failure for InputError {
    fn code(&self) -> &'static str {
        match self {
            Self::Stdin(error) => error.code(),
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Stdin(error) => error.kind(),
            Self::Refused(refused) => refused.kind(),
        }
    }
}

impl From<crate::store::StoreError> for InputError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Hub {
    /// Sends standard input from `offset` to a task, and with `end` closes it; answers where the next byte belongs. The same bytes twice are
    /// fine.
    ///
    /// # Errors
    /// [`InputError`].
    pub async fn write_stdin(&self, actor: &Actor, id: TaskId, offset: u64, data: Bytes, end: bool) -> Result<u64, InputError> {
        let actor = actor.clone();
        let task = self
            .db
            .read(move |tx| {
                let task = task::seen_by(tx, &actor, id)?;
                session::used_by(tx, &actor, Scope::Dispatch, task.session)?;
                Ok::<_, InputError>(task)
            })
            .await?;
        if !task.spec.takes_input() {
            return Err(StdinError::NoStdin.into());
        }
        match self.mesh() {
            Some(mesh) if !task.state.is_final() => Ok(mesh.stdin(id, task.node, offset, data, end).await?),
            _ => Err(StdinError::NotRunning.into()),
        }
    }
}
