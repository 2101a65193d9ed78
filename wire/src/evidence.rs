//! A node's signed word about a task, with all that anybody needs to check it without a hub.
//!
//! The signature is the node's, over the encoded [`TaskResponse`]: which task, how it ended, what it used, how it was confined, under which policy, with whose approval, and
//! what it printed, as a digest. The command is in it as a hash ([`approval::subject`]), which the one that is shown must have.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use crate::{
    id::{NodeId, SessionId, TaskId},
    key::Domain,
    policy::{self, approval},
    schema::{
        BrowserTask, EnvironmentVariable, SandboxMode, SecretReference, ShellSession, ShellTask, Signed, TaskRequest, TaskResponse,
        Terminal, task_request::Kind,
    },
};

/// What [`Evidence::format`] says of this version.
pub const FORMAT: &str = "cortex-evidence/1";

/// A file of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// [`FORMAT`].
    pub format: String,
    /// The node: its public key.
    pub node_id: String,
    /// The conversation.
    pub session_id: String,
    /// The task.
    pub task_id: String,
    /// What was to be run.
    pub command: Command,
    /// The node's signed word.
    pub result: SignedText,
    /// The hub's policy that the result names, as it was hashed, base64; none: it has changed since.
    #[serde(default)]
    pub policy: Option<String>,
}

/// What was to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Command {
    /// Program and arguments, or
    pub argv: Vec<String>,
    /// a script.
    pub script: String,
    /// For the script.
    pub shell: String,
    /// Inside the workspace.
    pub cwd: String,
    /// Changes to the environment.
    pub env: BTreeMap<String, String>,
    /// Variables whose values are secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// In a terminal.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
    /// The shell session that it went on with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell_session: Option<String>,
    /// A browser action instead, as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub browser: Option<String>,
}

/// Signed bytes as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedText {
    /// An encoded [`TaskResponse`], base64.
    pub body: String,
    /// Ed25519 over PAE of "cortex-mesh/v1/result" and the body, base64.
    pub signature: String,
}

/// Why evidence does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// It is of a later version, or of something else.
    #[error("this is not evidence of the format {FORMAT}")]
    Format,
    /// A field cannot be read.
    #[error("`{0}` cannot be read")]
    Malformed(&'static str),
    /// Another key has signed it, or it was altered.
    #[error("the signature is not that of the node {0}: the result was altered, or another machine made it")]
    Signature(String),
    /// The signed result is of something else.
    #[error("the signed result is not about this {0}")]
    Other(&'static str),
}

impl Evidence {
    /// Checks everything that can be checked without a hub, and returns what the node has signed.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn check(&self) -> Result<TaskResponse, EvidenceError> {
        if self.format != FORMAT {
            return Err(EvidenceError::Format);
        }
        let node: NodeId = self.node_id.parse().map_err(|_| EvidenceError::Malformed("node_id"))?;
        let session: SessionId = self.session_id.parse().map_err(|_| EvidenceError::Malformed("session_id"))?;
        let task: TaskId = self.task_id.parse().map_err(|_| EvidenceError::Malformed("task_id"))?;
        let bytes = |text: &String, name| BASE64.decode(text.as_bytes()).map(Bytes::from).map_err(|_| EvidenceError::Malformed(name));
        let signed =
            Signed { body: bytes(&self.result.body, "result.body")?, signature: bytes(&self.result.signature, "result.signature")? };
        let response: TaskResponse =
            node.key().open(Domain::Result, &signed).map_err(|_| EvidenceError::Signature(self.node_id.clone()))?;
        if response.node_key != node.key().as_bytes()[..] {
            return Err(EvidenceError::Other("node"));
        }
        if response.task_id != task.as_bytes()[..] {
            return Err(EvidenceError::Other("task"));
        }
        // The policy decided the mode, when the task did not.
        let request = self.command.to_request(&node, &session);
        let is_in = |mode: SandboxMode| response.subject == approval::subject(&TaskRequest { mode: mode.into(), ..request.clone() })[..];
        if ![SandboxMode::Strict, SandboxMode::Permissive, SandboxMode::Unspecified].into_iter().any(is_in) {
            return Err(EvidenceError::Other("command"));
        }
        if let Some(policy) = &self.policy
            && response.policy_hash != policy::hash(&bytes(policy, "policy")?)[..]
        {
            return Err(EvidenceError::Other("policy"));
        }
        Ok(response)
    }
}

impl Command {
    fn to_request(&self, node: &NodeId, session: &SessionId) -> TaskRequest {
        let variable = |(name, value): (&String, &String)| EnvironmentVariable { name: name.clone(), value: value.clone() };
        let secret = |name: &String| SecretReference { environment_name: name.clone(), ..SecretReference::default() };
        let shell = || ShellTask {
            argv: self.argv.clone(),
            script: self.script.clone(),
            shell: self.shell.clone(),
            cwd: self.cwd.clone(),
            environment: self.env.iter().map(variable).collect(),
            stdin: false,
            terminal: self.terminal.then(Terminal::default),
            shell_session: self.shell_session.clone().map(|name| ShellSession { name, reset: false }),
            secrets: self.secrets.iter().map(secret).collect(),
        };
        let kind = match &self.browser {
            Some(order) => Kind::Browser(BrowserTask { order: order.clone().into() }),
            None => Kind::Shell(shell()),
        };
        TaskRequest { node_key: node.key().to_bytes(), session_id: session.to_string(), kind: Some(kind), ..TaskRequest::default() }
    }
}

/// Whether bytes are what a digest in a result says.
pub fn is_output(digest: &[u8], bytes: &[u8]) -> bool {
    *digest == blake3::hash(bytes).as_bytes()[..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SecretKey;
    use prost::Message as _;

    fn evidence() -> Evidence {
        let key = SecretKey::from_seed([2; 32]);
        let (node, session, task) = (NodeId::from(key.public()), SessionId::new(1, [0; 10]), TaskId::new(2, [0; 10]));
        let command = Command { argv: vec!["echo".into(), "hi".into()], ..Command::default() };
        let policy = crate::schema::SandboxPolicy { task_slots: 7, ..Default::default() }.encode_to_vec();
        let response = TaskResponse {
            task_id: Bytes::copy_from_slice(task.as_bytes()),
            node_key: node.key().to_bytes(),
            subject: Bytes::copy_from_slice(&approval::subject(&command.to_request(&node, &session))),
            policy_hash: Bytes::copy_from_slice(&policy::hash(&policy)),
            ..TaskResponse::default()
        };
        let signed = key.seal(Domain::Result, &response);
        Evidence {
            format: FORMAT.into(),
            node_id: node.to_string(),
            session_id: session.to_string(),
            task_id: task.to_string(),
            command,
            result: SignedText { body: BASE64.encode(&signed.body), signature: BASE64.encode(&signed.signature) },
            policy: Some(BASE64.encode(&policy)),
        }
    }

    #[test]
    fn evidence_holds_and_nothing_of_it_can_be_changed() {
        assert!(evidence().check().is_ok());
        assert!(Evidence { policy: None, ..evidence() }.check().is_ok());
        let changed = |change: fn(&mut Evidence)| {
            let mut evidence = evidence();
            change(&mut evidence);
            evidence.check().expect_err("a change is noticed")
        };
        assert_eq!(changed(|e| e.format = "x".into()), EvidenceError::Format);
        assert_eq!(changed(|e| e.task_id = TaskId::new(3, [0; 10]).to_string()), EvidenceError::Other("task"));
        assert_eq!(changed(|e| e.session_id = SessionId::new(3, [0; 10]).to_string()), EvidenceError::Other("command"));
        assert_eq!(changed(|e| e.command.argv.push("there".into())), EvidenceError::Other("command"));
        assert_eq!(changed(|e| drop(e.command.env.insert("A".into(), "b".into()))), EvidenceError::Other("command"));
        assert_eq!(changed(|e| e.policy = Some(String::new())), EvidenceError::Other("policy"));
        let other = SecretKey::from_seed([3; 32]).public();
        assert!(matches!(
            changed(|e| e.node_id = NodeId::from(SecretKey::from_seed([3; 32]).public()).to_string()),
            EvidenceError::Signature(node) if node == NodeId::from(other).to_string()
        ));
        assert!(matches!(changed(|e| e.result.body = BASE64.encode(b"x")), EvidenceError::Signature(_)));
        assert_eq!(changed(|e| e.result.signature = "!".into()), EvidenceError::Malformed("result.signature"));
    }
}
