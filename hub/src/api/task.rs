//! Tasks: dispatched, listed, described, cancelled, fed.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use cortex_wire::{
    evidence::Evidence,
    id::{NodeId, SessionId, TaskId},
    limits,
};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    problem::{Candidate, Problem},
    view::{Names, TaskView},
};
use crate::{
    record::{Mode, TaskSpec, TerminalSize},
    task::{DispatchRequest, Dispatched, TaskError},
};

/// Input at a time: small pieces let others through between them.
const STDIN_BYTES: usize = limits::TASK_FRAME_BYTES / 2;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(dispatch))
        .routes(routes!(list_tasks))
        .routes(routes!(show_task))
        .routes(routes!(cancel_task))
        .routes(routes!(show_evidence))
        .routes(routes!(write_stdin))
}

/// A task to be run: a program with its arguments, a script, or a browser action.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct DispatchBody {
    /// Where; may be left out when the session has one node, or with `selector` or `pool`.
    #[schema(value_type = Option<String>)]
    node: Option<NodeId>,
    /// Which machines may run it: conditions with commas between them, such as `os=linux,gpu,tool.python>=3.11`.
    selector: Option<String>,
    /// Any node of the session that fits will do, and whoever has room takes it. With `queue_timeout_ms` it also waits for one to come.
    pool: bool,
    /// Program and arguments, or
    argv: Vec<String>,
    /// an order for the session's browser (see `POST /api/sessions/{id}/browser`), or
    #[schema(value_type = Option<Object>)]
    browser: Option<serde_json::Value>,
    /// a script for `shell`.
    script: Option<String>,
    /// For `script`; none: the node's default.
    shell: Option<String>,
    /// A relative path inside the workspace.
    cwd: String,
    /// Changes to the clean environment.
    env: BTreeMap<String, String>,
    /// Standard input will be sent; otherwise it is empty.
    stdin: bool,
    /// How it is confined; none: as the node's policy says.
    mode: Option<Mode>,
    /// From start to end; none: no bound.
    run_timeout_ms: Option<u64>,
    /// Without any output; none: no bound.
    idle_timeout_ms: Option<u64>,
    /// How long a person is waited for, where one has to say yes; none: ten minutes. No answer means no.
    approval_timeout_ms: Option<u64>,
    /// How long the task may wait for a node that is away; 0: not at all.
    queue_timeout_ms: u64,
    /// Runs in a terminal of this size, to be looked at with `GET /api/sessions/{id}/terminal?task=`; without a command: the shell.
    terminal: Option<TerminalSize>,
    /// A name: the command goes on with the folder and the exported variables that the last one of this name left on the node, and leaves its own.
    shell_session: Option<String>,
    /// Both are forgotten first.
    shell_reset: bool,
    /// Variables, and the names of the secrets that are their values: `{"TOKEN": "github"}`.
    secrets: BTreeMap<String, String>,
    /// What it prints is forgotten a minute after its end.
    forget_output: bool,
    /// Doing it twice does no harm: it may be done again.
    idempotent: bool,
    /// How often it is done again when it is lost, at most 10; each time it is a new task (`retried_as`). Only with `idempotent`.
    retries: u32,
}

/// Runs a command on a node of the session.
///
/// With an `Idempotency-Key` header the request can be sent again: the same request answers the same task, for 24 hours. 201 for a new
/// task, 200 for one that was there.
#[utoipa::path(
    post, path = "/api/sessions/{id}/dispatch", tag = "tasks",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, description = "up to 128 visible characters")),
    request_body = DispatchBody,
    responses((status = 201, body = TaskView), (status = 200, body = TaskView, description = "the task of the same request before"))
)]
async fn dispatch(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    headers: HeaderMap,
    Body(body): Body<DispatchBody>,
) -> Result<(StatusCode, Json<TaskView>), Problem> {
    let request = DispatchRequest {
        node: body.node,
        selector: body.selector,
        pool: body.pool,
        queue_timeout_ms: body.queue_timeout_ms,
        spec: TaskSpec {
            argv: body.argv,
            browser: body.browser,
            script: body.script,
            shell: body.shell,
            cwd: body.cwd,
            env: body.env,
            stdin: body.stdin,
            mode: body.mode,
            run_timeout_ms: body.run_timeout_ms,
            idle_timeout_ms: body.idle_timeout_ms,
            approval_timeout_ms: body.approval_timeout_ms,
            terminal: body.terminal,
            shell_session: body.shell_session,
            shell_reset: body.shell_reset,
            secrets: body.secrets,
            forget_output: body.forget_output,
            idempotent: body.idempotent,
            retries: body.retries,
        },
    };
    let dispatched = dispatch_for(&api, &caller, id, &headers, request).await?;
    let status = if dispatched.repeated { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(dispatched.task.into())))
}

/// Dispatches for a caller, no more often than they may.
pub(super) async fn dispatch_for(
    api: &Api,
    caller: &Caller,
    session: SessionId,
    headers: &HeaderMap,
    request: DispatchRequest,
) -> Result<Dispatched, Problem> {
    let began = Instant::now();
    let principal = caller.actor.token.clone().unwrap_or_else(|| caller.actor.user.to_string());
    api.limits.dispatches.take(principal, api.hub.now_ms())?;
    let key = idempotency_key(headers)?;
    let dispatched = api.hub.dispatch(&caller.actor, session, request, key).await.map_err(explain)?;
    api.metrics.dispatch_took(began.elapsed());
    Ok(dispatched)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= limits::NAME_BYTES => Ok(Some(key)),
        _ => Err(Problem::malformed("an Idempotency-Key has 1 to 128 visible ASCII characters")),
    }
}

pub(super) fn explain(mut error: TaskError) -> Problem {
    let candidates = match &mut error {
        TaskError::AmbiguousNode { candidates } => std::mem::take(candidates),
        _ => Vec::new(),
    };
    Problem::from(error).with_candidates(candidates.into_iter().map(|(id, name)| Candidate { id, name }).collect())
}

/// A session's tasks, newest first.
#[utoipa::path(get, path = "/api/sessions/{id}/tasks", tag = "tasks", params(("id" = String, Path), PageQuery), responses((status = 200, body = Page<TaskView>)))]
async fn list_tasks(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Query(page): Query<PageQuery>,
) -> Answer<Page<TaskView>> {
    let tasks = api.hub.tasks(&caller.actor, id, page.cursor()?, page.limit() + 1).await?;
    Ok(Json(Names::new(&api.hub).tasks(page.of(tasks, |task| task.id.to_string())).await?))
}

/// One task.
#[utoipa::path(get, path = "/api/tasks/{id}", tag = "tasks", params(("id" = String, Path)), responses((status = 200, body = TaskView)))]
async fn show_task(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<TaskId>) -> Answer<TaskView> {
    Ok(Json(Names::new(&api.hub).task(api.hub.task(&caller.actor, id).await?).await?))
}

/// The node's signed word about how a task ended, with all that is needed to check it without this hub: `cortex-peer verify FILE`.
#[utoipa::path(get, path = "/api/tasks/{id}/evidence", tag = "tasks", params(("id" = String, Path)), responses((status = 200, body = Object, description = "a file of evidence, as `cortex-peer verify` takes it")))]
async fn show_evidence(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<TaskId>) -> Answer<Evidence> {
    Ok(Json(api.hub.evidence(&caller.actor, id).await?))
}

/// Asks to end a task. One that runs is final when its node says that nothing of it is left; asking twice is fine.
#[utoipa::path(post, path = "/api/tasks/{id}/cancel", tag = "tasks", params(("id" = String, Path)), responses((status = 200, body = TaskView)))]
async fn cancel_task(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<TaskId>) -> Answer<TaskView> {
    Ok(Json(api.hub.cancel(&caller.actor, id).await?.into()))
}

/// Input for a task: text, or base64 for bytes that are none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StdinBody {
    /// Where these bytes belong: 0 for the first, then `next_offset` of the answer before.
    offset: u64,
    /// Text, or
    #[serde(default)]
    data: String,
    /// bytes.
    #[serde(default)]
    base64: String,
    /// Nothing more will come.
    #[serde(default)]
    end: bool,
}

/// How far a task's input has come.
#[derive(Serialize, ToSchema)]
struct StdinAnswer {
    /// Where the next byte belongs.
    next_offset: u64,
}

/// Writes to a task's standard input, if it was dispatched with `stdin`. The offset makes it safe to send the same bytes again.
#[utoipa::path(post, path = "/api/tasks/{id}/stdin", tag = "tasks", params(("id" = String, Path)), request_body = StdinBody, responses((status = 200, body = StdinAnswer)))]
async fn write_stdin(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<TaskId>,
    Body(body): Body<StdinBody>,
) -> Answer<StdinAnswer> {
    let bytes = match (body.data.as_str(), body.base64.as_str()) {
        (data, "") => Bytes::copy_from_slice(data.as_bytes()),
        ("", base64) => BASE64.decode(base64.as_bytes()).map_err(|_| Problem::malformed("`base64` is not base64"))?.into(),
        _ => return Err(Problem::malformed("give `data` or `base64`, not both")),
    };
    if bytes.len() > STDIN_BYTES {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("{} bytes of input at once, where at most {STDIN_BYTES} are taken", bytes.len()),
            "send it in pieces, each at the offset that the answer before named",
        ));
    }
    let next_offset = api.hub.write_stdin(&caller.actor, id, body.offset, bytes, body.end).await?;
    Ok(Json(StdinAnswer { next_offset }))
}
