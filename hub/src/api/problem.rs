//! Errors as clients see them: problem documents (RFC 9457) with a stable `code` and the next step in `fix`.
//!
//! This is the one place that turns errors into HTTP. What a person cannot see answers exactly like what does not exist.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cortex_wire::id::NodeId;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    failure::{Failure, Kind, Refused},
    store::StoreError,
};

/// Media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error on its way to a client. Boxed: results carry it everywhere, and errors are rare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problem(Box<Document>);

/// An error. `code` is what programs compare; texts may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document {
    /// `urn:cortex:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The code, readable.
    title: String,
    /// The HTTP status.
    #[schema(value_type = u16, example = 404)]
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    /// What happened this time.
    detail: String,
    /// Stable name of the kind of error.
    #[schema(value_type = String, example = "not_found")]
    code: &'static str,
    /// What to do next.
    #[schema(value_type = String)]
    fix: String,
    /// The part of the request's body that is wrong, as a JSON pointer such as `/ask/0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    /// Where the output goes on, when the wanted part is not kept any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<u64>,
    /// The nodes to choose from, when it is not clear which one is meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<Candidate>,
    /// What the request expected to find, when something else is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_hash: Option<String>,
    /// What is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_hash: Option<String>,
    #[serde(skip)]
    retry_after_s: Option<u64>,
}

/// A node to choose from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Candidate {
    /// Its id.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// What it is called.
    pub name: String,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem: `fix` is what the reader should do next.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self(Box::new(Document {
            kind: format!("urn:cortex:problem:{code}"),
            title: readable(code),
            status,
            detail: detail.into(),
            code,
            fix: fix.into(),
            pointer: None,
            next_offset: None,
            candidates: Vec::new(),
            parent_hash: None,
            current_hash: None,
            retry_after_s: None,
        }))
    }

    /// 404, for what is missing and for what belongs to somebody else.
    pub fn not_found(what: &'static str) -> Self {
        Refused::NotFound(what).into()
    }

    /// 400, for a request that cannot be understood.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_request", detail, "correct the request; /api/docs describes every field")
    }

    /// 401.
    pub fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "this needs a session cookie or an API token, and the request has none that is valid",
            next_step("unauthenticated", Kind::Unauthenticated),
        )
    }

    /// 429, with the seconds to wait.
    pub fn too_many(detail: impl Into<String>, retry_after_s: u64) -> Self {
        let fix = format!("wait {retry_after_s} s and try again");
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail, fix);
        problem.0.retry_after_s = Some(retry_after_s);
        problem
    }

    /// 500. The cause goes to the log, not to the client.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %Chain(error), "a request failed inside the hub");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the hub could not do this", next_step("internal", Kind::Internal))
    }

    /// The same problem with the offset at which output goes on.
    #[must_use]
    pub fn with_next_offset(mut self, offset: u64) -> Self {
        self.0.next_offset = Some(offset);
        self
    }

    /// The same problem with the nodes to choose from.
    #[must_use]
    pub fn with_candidates(mut self, candidates: Vec<Candidate>) -> Self {
        self.0.candidates = candidates;
        self
    }

    /// The same problem with what was expected and what is there.
    #[must_use]
    pub fn with_hashes(mut self, parent: Option<String>, current: Option<String>) -> Self {
        self.0.parent_hash = parent;
        self.0.current_hash = current;
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }
}

impl<E: Failure> From<E> for Problem {
    fn from(error: E) -> Self {
        let kind = error.kind();
        let status = match kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => return Self::internal(&error),
        };
        let mut problem = Self::new(status, error.code(), error.to_string(), next_step(error.code(), kind));
        problem.0.retry_after_s = (kind == Kind::TooMany).then_some(1);
        problem.0.pointer = error.pointer().map(str::to_owned);
        problem
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::internal(&error)
    }
}

/// What to do about an error of the domain.
fn next_step(code: &str, kind: Kind) -> &'static str {
    match code {
        "ambiguous_node" => "name one of the candidates in `node`, narrow `selector`, or dispatch with `pool: true`",
        "bad_login" => "check both; after several wrong tries an account waits for some minutes",
        "bad_setup_token" => "the hub prints the setup link when it starts; a restart prints a new one",
        "idempotency_conflict" => "use a new Idempotency-Key for a new request",
        "node_not_attached" => "attach it: POST /api/sessions/{id}/nodes/{node}",
        "no_node" => "attach a node: POST /api/sessions/{id}/nodes/{node}; the page /download makes a machine a node",
        "node_offline" => {
            "start cortex-peer on that machine (cortex-peer doctor finds what is wrong), or dispatch with queue_timeout_ms to wait for it"
        }
        "node_drained" => "undrain it: POST /api/nodes/{id}/undrain; or dispatch with queue_timeout_ms to wait for that",
        "no_candidate" => {
            "attach or start a node that fits, change `selector`, or dispatch with `pool: true` and queue_timeout_ms to wait for one"
        }
        "no_direct_way" => {
            "PATCH the node with path_policy auto, let its and the hub's firewall pass UDP to each other, or dispatch with queue_timeout_ms to wait"
        }
        "policy_changed" => "read the policy again (its ETag is its version), decide, and write with the new ETag in If-Match",
        "approval_unfit" => "approve with another reach, or words that begin every command that is asked about",
        "not_waiting" => "look at the task: somebody answered, or its time was over",
        "no_stdin" => "dispatch with `stdin: true`",
        "unknown_secret" => "give it: PUT /api/secrets/{name}, or PUT /api/sessions/{id}/secrets/{name}",
        "too_many_terminals" => "end one of them: POST /api/tasks/{id}/cancel",
        "too_many_tasks" => "wait until some have ended, or cancel them",
        "no_terminal" => "dispatch with `terminal`, or open a new one without `task`",
        "stale_parent" => "read what is there now (current_hash), decide, and write again with its hash in If-Match",
        "already_exists" => "choose another path, or replace it with If-Match and its hash (current_hash)",
        "no_file" => "list the folder: GET /api/sessions/{id}/files?path=",
        "locked" => "wait until the lock ends, or ask its owner; GET /api/sessions/{id}/workspace shows all locks",
        "no_space" => "the hub's operator has to make room; nothing was changed",
        "lock_lost" => "take a new lock: POST /api/sessions/{id}/workspace/lock",
        "broken_upload" => "send it again; nothing of it was kept",
        "session_archived" => "take it up again: PATCH /api/sessions/{id} with status \"active\"",
        _ => match kind {
            Kind::Invalid => "correct the request; /api/docs describes every field",
            Kind::Unauthenticated => "log in at /, or send the header `Authorization: Bearer cxt_…`",
            Kind::Forbidden => "ask an administrator or the owner for the right to do it, or use a token with a wider scope",
            Kind::NotFound => "check the id: it may not exist or may belong to somebody else; lists show what you may see",
            Kind::Conflict => "look at its present state, then decide",
            Kind::TooMany => "wait a moment and try again",
            Kind::Unavailable => "try again when it is back",
            Kind::Internal => "try again; if it stays, the hub's log has the cause",
        },
    }
}

/// `too_many_requests` → `Too many requests`: one title per code, always.
fn readable(code: &str) -> String {
    let mut title = code.replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

/// An error with its causes, on one line.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (self.0.status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.0.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"cortex\""));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_code_and_the_next_step() {
        let problem = Problem::too_many("slow down", 3);
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(json["type"], "urn:cortex:problem:too_many_requests");
        assert_eq!(json["title"], "Too many requests");
        assert_eq!(json["status"], 429);
        assert_eq!(json["fix"], "wait 3 s and try again");
        assert!(json.get("next_offset").is_none());
        let response = problem.into_response();
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
    }
}
