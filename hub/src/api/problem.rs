//! Errors as clients see them: problem documents (RFC 9457) with a stable `code` and the next step in `fix`.
//!
//! This is the one place that turns errors into HTTP. What a person cannot see answers exactly like what does not exist.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// Media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error. `code` is what programs compare; texts may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
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
    /// Where the output goes on, when the wanted part is not kept any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<u64>,
    #[serde(skip)]
    retry_after_s: Option<u64>,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem: `fix` is what the reader should do next.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:cortex:problem:{code}"),
            title: readable(code),
            status,
            detail: detail.into(),
            code,
            fix: fix.into(),
            next_offset: None,
            retry_after_s: None,
        }
    }

    /// 404, for what is missing and for what belongs to somebody else.
    pub fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there is no such {what}, or it is not yours"),
            "check the id; lists show what you may see",
        )
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
            "log in at /, or send the header `Authorization: Bearer cxt_…`",
        )
    }

    /// 403, for what a principal may see and may not do.
    pub fn forbidden(detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail, fix)
    }

    /// 409.
    pub fn conflict(code: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail, fix)
    }

    /// 429, with the seconds to wait.
    pub fn too_many(detail: impl Into<String>, retry_after_s: u64) -> Self {
        let fix = format!("wait {retry_after_s} s and try again");
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail, fix);
        problem.retry_after_s = Some(retry_after_s);
        problem
    }

    /// 500. The cause goes to the log, not to the client.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %Chain(error), "a request failed inside the hub");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the hub could not do this",
            "try again; if it stays, the hub's log has the cause",
        )
    }

    /// The same problem with the offset at which output goes on.
    #[must_use]
    pub fn with_next_offset(mut self, offset: u64) -> Self {
        self.next_offset = Some(offset);
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
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
        let mut response = (self.status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
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
