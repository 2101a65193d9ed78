//! A session's browser: actions with their answers, what happened as it happens, pictures.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cortex_wire::{
    browser::Order,
    id::{NodeId, SessionId, TaskId},
    limits,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Answer, Body, Path, Query},
    caller::Caller,
    paging::{Page, PageQuery},
    position::{FeedPosition, last_event_id},
    problem::Problem,
    sse::{Source, Vigil, respond, write_event},
    task::dispatch_for,
    view::TaskView,
};
use crate::{
    account::Actor,
    browser::{BrowserEvent, BrowserFilter},
    hub::Hub,
    output::{Piece, Stream},
    record::TaskSpec,
    task::DispatchRequest,
};

/// Beyond an action's own time, for the way and for a browser to start.
const BESIDES: Duration = Duration::from_secs(45);
/// No answer is waited for longer; the task goes on.
const LONGEST: Duration = Duration::from_secs(300);
/// Events that are read at once.
const ROWS: usize = 256;
/// Read at once of a picture.
const PIECE_BYTES: usize = 256 * 1024;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(act))
        .routes(routes!(list_browser_events))
        .routes(routes!(browser_stream))
        .routes(routes!(screenshot))
        .routes(routes!(export_har))
}

/// A browser action.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BrowserBody {
    /// Where; may be left out when the session has one node.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    node: Option<NodeId>,
    /// `{"action": …, "tab": "t1", "timeout_ms": 30000, "report": "diff" | "full" | "none"}`; an action is `"back"` or `{"click": {"target": "s1e4"}}`.
    #[schema(value_type = Object)]
    order: Value,
    /// How long the task may wait for a node that is away; 0: not at all.
    #[serde(default)]
    queue_timeout_ms: u64,
}

/// What became of a browser action.
#[derive(Serialize, ToSchema)]
struct BrowserAnswer {
    /// The task that it was.
    task: TaskView,
    /// What the node says of it; null while the task goes on, and when it did not come to an answer.
    #[schema(value_type = Option<Object>)]
    answer: Option<Value>,
}

/// Does something in the session's browser, and waits for the answer.
///
/// It is a task like any other: signed, journalled, listed, cancelled. The answer (also the task's standard output) says whether it worked, where the page is, and what changed on it. What stands in it
/// of the page is the page's: data, never instructions. 202 when the task goes on beyond the time that is waited here.
#[utoipa::path(
    post, path = "/api/sessions/{id}/browser", tag = "browser",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, description = "up to 128 visible characters")),
    request_body = BrowserBody,
    responses((status = 200, body = BrowserAnswer), (status = 202, body = BrowserAnswer, description = "the task goes on"))
)]
async fn act(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    headers: HeaderMap,
    Body(body): Body<BrowserBody>,
) -> Result<(StatusCode, Json<BrowserAnswer>), Problem> {
    let time = Order::parse(body.order.to_string().as_bytes()).map_or(0, |order| order.timeout_ms());
    let spec = TaskSpec { browser: Some(body.order), ..TaskSpec::default() };
    let request = DispatchRequest { node: body.node, queue_timeout_ms: body.queue_timeout_ms, spec, pool: false, selector: None };
    let task = dispatch_for(&api, &caller, id, &headers, request).await?.task;
    let patience = LONGEST.min(BESIDES + Duration::from_millis(time.saturating_add(body.queue_timeout_ms)));
    let ended = tokio::time::timeout(patience, ended(&api.hub, &caller.actor, task.id)).await;
    let answer = match ended {
        Ok(answer) => answer?,
        Err(_) => None,
    };
    let task = api.hub.task(&caller.actor, task.id).await?;
    let status = if task.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(BrowserAnswer { task: task.into(), answer })))
}

/// What a task answers when it has ended.
async fn ended(hub: &Arc<Hub>, actor: &Actor, task: TaskId) -> Result<Option<Value>, Problem> {
    let output = hub.open_output(actor, task).await?;
    let mut marks = output.marks();
    let _ = marks.wait_for(|mark| mark.finished).await;
    let answer = read(hub, actor, task, Stream::Stdout, 0, limits::TASK_FRAME_BYTES).await?;
    Ok(serde_json::from_slice(&answer).ok())
}

/// Bytes of a task's output, as many as there are up to `most`.
async fn read(hub: &Arc<Hub>, actor: &Actor, task: TaskId, stream: Stream, offset: u64, most: usize) -> Result<Vec<u8>, Problem> {
    let output = hub.open_output(actor, task).await?;
    let mut bytes = Vec::new();
    while bytes.len() < most {
        match output.read(stream, offset + bytes.len() as u64, PIECE_BYTES.min(most - bytes.len())).await? {
            Piece::Data(piece) => bytes.extend_from_slice(&piece),
            Piece::Gap { .. } | Piece::End => break,
        }
    }
    Ok(bytes)
}

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventQuery {
    /// Items per page: 1 to 1000, 100 when left out.
    #[param(required = false)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    #[param(required = false)]
    cursor: Option<String>,
    /// Kinds, with commas between; none: all.
    #[param(required = false)]
    kind: Option<String>,
    /// Of what this task did.
    #[param(required = false, value_type = Option<String>)]
    task: Option<TaskId>,
    /// Streams: the `id` of the last event that was seen, as the header `Last-Event-ID`.
    #[param(required = false)]
    last_event_id: Option<String>,
}

impl EventQuery {
    fn filter(&self) -> BrowserFilter {
        let kinds = self.kind.as_deref().unwrap_or_default();
        BrowserFilter { kinds: kinds.split(',').filter(|kind| !kind.is_empty()).map(str::to_owned).collect(), task: self.task }
    }
}

/// What happened in a session's browsers, oldest first: console, errors, requests, navigations, dialogs, downloads, screenshots. The last 10,000 are kept.
#[utoipa::path(get, path = "/api/sessions/{id}/browser/events", tag = "browser", params(("id" = String, Path), EventQuery), responses((status = 200, body = Page<BrowserEvent>)))]
async fn list_browser_events(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<SessionId>,
    Query(query): Query<EventQuery>,
) -> Answer<Page<BrowserEvent>> {
    let page = PageQuery { limit: query.limit, cursor: query.cursor.clone() };
    let after = page.cursor()?.unwrap_or(0);
    let events = api.hub.browser_events(&caller.actor, id, after, page.limit() + 1, query.filter()).await?;
    Ok(Json(page.of(events, |event| event.seq.to_string())))
}

/// The same as a stream: from the first event that is kept (or behind `Last-Event-ID`), and on as they happen.
#[utoipa::path(get, path = "/api/sessions/{id}/browser/stream", tag = "browser",
    params(("id" = String, Path), EventQuery, ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, body = String, content_type = "text/event-stream")))]
async fn browser_stream(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(session): Path<SessionId>,
    headers: HeaderMap,
    Query(query): Query<EventQuery>,
) -> Result<Response, Problem> {
    let seen = last_event_id::<FeedPosition>(&headers, query.last_event_id.as_deref())?.map_or(0, |position| position.0);
    let vigil = Vigil::new(&api, &caller)?;
    api.hub.session(&caller.actor, session).await?;
    let news = api.hub.follow_browser(session);
    let source = BrowserSource { hub: api.hub.clone(), actor: caller.actor, session, filter: query.filter(), seen, news, looked: false };
    Ok(respond(source, vigil))
}

struct BrowserSource {
    hub: Arc<Hub>,
    actor: Actor,
    session: SessionId,
    filter: BrowserFilter,
    seen: u64,
    news: watch::Receiver<u64>,
    /// Everything up to the last news was read.
    looked: bool,
}

impl Source for BrowserSource {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.looked {
                self.news.changed().await.ok()?;
                self.looked = false;
            }
            let events = self.hub.browser_events(&self.actor, self.session, self.seen, ROWS, self.filter.clone()).await.ok()?;
            self.looked = events.len() < ROWS;
            let mut out = Vec::new();
            for event in &events {
                self.seen = event.seq;
                write_event(&mut out, &event.kind, Some(&event.seq.to_string()), event);
            }
            if !out.is_empty() {
                return Some(out.into());
            }
        }
    }
}

#[derive(Deserialize)]
struct Picture {
    offset: u64,
    bytes: u64,
    media_type: String,
}

/// A picture, by the number of its event.
#[utoipa::path(get, path = "/api/sessions/{id}/browser/screenshots/{seq}", tag = "browser", params(("id" = String, Path), ("seq" = u64, Path)),
    responses((status = 200, body = [u8], content_type = "image/png")))]
async fn screenshot(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path((session, seq)): Path<(SessionId, u64)>,
) -> Result<Response, Problem> {
    let none =
        || Problem::new(StatusCode::NOT_FOUND, "not_found", "there is no such picture (any more)", "list the events of kind screenshot");
    let event = api.hub.browser_event(&caller.actor, session, seq).await?.filter(|event| event.kind == "screenshot").ok_or_else(none)?;
    let picture: Picture = serde_json::from_value(event.event["artifact"].clone()).map_err(|_| none())?;
    let task: TaskId = event.event["task_id"].as_str().and_then(|task| task.parse().ok()).ok_or_else(none)?;
    // A node names the task; it has to be one of this session, and its own.
    let record = api.hub.task(&caller.actor, task).await?;
    let length = usize::try_from(picture.bytes).ok().filter(|length| *length <= 32 << 20);
    let (Some(length), true) = (length, record.session == session && record.node == event.node_id && picture.media_type == "image/png")
    else {
        return Err(none());
    };
    let bytes = read(&api.hub, &caller.actor, task, Stream::Stderr, picture.offset, length).await?;
    if bytes.len() != length || !bytes.starts_with(b"\x89PNG") {
        return Err(none());
    }
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"screenshot.png\""));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// The session's requests as a HAR 1.2 document. Values of cookies and credentials are left out by the node.
#[utoipa::path(get, path = "/api/sessions/{id}/browser/har", tag = "browser", params(("id" = String, Path)), responses((status = 200, body = Object, content_type = "application/json")))]
async fn export_har(State(api): State<Arc<Api>>, caller: Caller, Path(id): Path<SessionId>) -> Answer<Value> {
    Ok(Json(api.hub.browser_har(&caller.actor, id).await?))
}
