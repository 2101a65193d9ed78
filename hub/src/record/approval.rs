//! What a person is asked about a task, and what they said; and what of it is remembered.

use cortex_wire::{
    id::{NodeId, SessionId, TaskId, UserId},
    policy::approval,
    schema,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Digest;

/// How far a yes reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ApprovalReach)]
pub enum Reach {
    /// This task.
    Once,
    /// This command in this session, for half an hour.
    HalfHour,
    /// This command in this session.
    Session,
    /// Every command that begins with these words, in this session.
    Prefix,
}

impl From<Reach> for approval::Reach {
    fn from(reach: Reach) -> Self {
        match reach {
            Reach::Once => Self::Once,
            Reach::HalfHour => Self::HalfHour,
            Reach::Session => Self::Session,
            Reach::Prefix => Self::Prefix,
        }
    }
}

/// A question about a task, and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Stable code of why it is asked: "policy_ask", "dangerous_command", "policy_unparsable".
    pub code: String,
    /// The same for a person.
    pub question: String,
    /// When.
    pub asked_at_ms: i64,
    /// No answer by then means no.
    pub expires_at_ms: i64,
    /// The yes that fits.
    pub grant: Option<Grant>,
    /// Who said no.
    pub denied_by: Option<UserId>,
}

/// Somebody's yes. Remembered ones are stored under node and id; those for one task with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The task that it was given for.
    pub id: TaskId,
    /// Where.
    pub node: NodeId,
    /// In which conversation.
    pub session: SessionId,
    /// Who said it.
    pub by: UserId,
    /// How far it reaches.
    pub reach: Reach,
    /// What it is about: node, session, command, folder, environment.
    pub subject: Digest,
    /// With [`Reach::Prefix`]: the words instead.
    pub prefix: Vec<String>,
    /// Under another policy it says nothing.
    pub policy: Digest,
    /// The command, for people.
    pub command: String,
    /// When.
    pub at_ms: i64,
    /// Not good after this; none: as long as the session lasts.
    pub expires_at_ms: Option<i64>,
}

impl Grant {
    /// As it stands in a task that is signed.
    pub fn to_message(&self) -> schema::Approval {
        schema::Approval {
            approval_id: self.id.to_string(),
            user_id: self.by.to_string(),
            scope: approval::Reach::from(self.reach).name().into(),
            subject: bytes::Bytes::copy_from_slice(&self.subject.0),
            prefix: self.prefix.clone(),
            policy_hash: bytes::Bytes::copy_from_slice(&self.policy.0),
            at_ms: self.at_ms,
            expires_at_ms: self.expires_at_ms.unwrap_or(0),
        }
    }
}
