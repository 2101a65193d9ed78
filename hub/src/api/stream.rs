//! Event streams: what happens on the hub, in a session, and to a task, as it happens.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use cortex_wire::id::{SessionId, TaskId};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Path, Query},
    caller::Caller,
    position::{FeedPosition, SessionPosition, TaskPosition, last_event_id},
    problem::{Chain, Problem},
    sse::{Source, Vigil, respond, write_event},
    view::EventView,
};
use crate::{
    events::{Follower, SessionFollower},
    failure::{Failure, Kind},
    record::Event,
};

mod session;
mod task;

use session::SessionSource;
use task::TaskSource;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(hub_events)).routes(routes!(session_events)).routes(routes!(task_stream))
}

/// Where a stream begins, for those who cannot set the header.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ResumeQuery {
    /// The `id` of the last event that was seen, as the header `Last-Event-ID`.
    #[param(required = false)]
    last_event_id: Option<String>,
}

/// What concerns the caller on the whole hub: nodes, invites, sessions, tasks, approvals, relays.
///
/// Events are named by their kind; data is `{"seq", "at_ms", "kind", "data"}`. Rows with an id are kept for a while, and `Last-Event-ID` goes on
/// behind one; rows without (such as heartbeats) are live only. Without `Last-Event-ID` the stream begins now.
#[utoipa::path(get, path = "/api/events", tag = "streams",
    params(ResumeQuery, ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, body = String, content_type = "text/event-stream")))]
async fn hub_events(
    State(api): State<Arc<Api>>,
    caller: Caller,
    headers: HeaderMap,
    Query(query): Query<ResumeQuery>,
) -> Result<Response, Problem> {
    let after = last_event_id::<FeedPosition>(&headers, query.last_event_id.as_deref())?.map(|position| position.0);
    let vigil = Vigil::new(&api, &caller)?;
    let follower = api.hub.follow(&caller.actor, after).await?;
    Ok(respond(HubSource(follower), vigil))
}

struct HubSource(Follower);

impl Source for HubSource {
    async fn next(&mut self) -> Option<Bytes> {
        let notice = note(self.0.next().await)?;
        let id = (notice.seq > 0).then(|| notice.seq.to_string());
        let mut out = Vec::new();
        let event = EventView::from(notice);
        write_event(&mut out, &event.kind, id.as_deref(), &event);
        Some(out.into())
    }
}

/// How a session's stream begins, and what is in it.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SessionQuery {
    /// The `id` of the last event that was seen, as the header `Last-Event-ID`.
    #[param(required = false)]
    last_event_id: Option<String>,
    /// Begin now, not with the session's first row. Of tasks that run, output begins now too.
    live: bool,
    /// Also what the session's tasks print, as it appears.
    output: bool,
}

/// The session's log, from its beginning and as it grows, and with `output=true` what its tasks print.
///
/// Log events are named by their kind; data is `{"seq", "at_ms", "kind", "data"}`. Output events are `output`, with data `{"task", "stream", "offset", "data"}`
/// (text) or `{…, "base64"}` (anything else), and `output_gap` with `{"task", "stream", "offset", "next_offset"}` where something was not kept. All
/// output of a task comes before the log event of its final state. `Last-Event-ID` goes on exactly behind an event: nothing twice, nothing missing.
#[utoipa::path(get, path = "/api/sessions/{id}/events", tag = "streams",
    params(("id" = String, Path), SessionQuery, ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, body = String, content_type = "text/event-stream")))]
async fn session_events(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(session): Path<SessionId>,
    headers: HeaderMap,
    Query(query): Query<SessionQuery>,
) -> Result<Response, Problem> {
    let resumed = last_event_id::<SessionPosition>(&headers, query.last_event_id.as_deref())?;
    let vigil = Vigil::new(&api, &caller)?;
    api.hub.session(&caller.actor, session).await?;
    let mut source = SessionSource::new(&api.hub, &caller.actor, session, query.output);
    match resumed {
        Some(position) => source.begin_behind(position),
        None if query.live => source.begin_behind(session::position_now(&api.hub, &caller.actor, session).await?),
        None => {}
    }
    Ok(respond(source, vigil))
}

/// What happens to one task: its state, and what it prints; ends when the task is final.
///
/// `task` events carry the whole task whenever its state has changed; `output` and `output_gap` events are those of the session's stream, and all of them come
/// before the final `task` event. `Last-Event-ID` goes on exactly behind an event; when there is nothing behind it, the answer is 204, which
/// tells browsers to stay away.
#[utoipa::path(get, path = "/api/tasks/{id}/stream", tag = "streams",
    params(("id" = String, Path), ResumeQuery, ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, body = String, content_type = "text/event-stream"), (status = 204, description = "everything was seen")))]
async fn task_stream(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<TaskId>,
    headers: HeaderMap,
    Query(query): Query<ResumeQuery>,
) -> Result<Response, Problem> {
    let position: TaskPosition = last_event_id(&headers, query.last_event_id.as_deref())?.unwrap_or_default();
    let vigil = Vigil::new(&api, &caller)?;
    let source = TaskSource::open(&api.hub, &caller.actor, id, position).await?;
    // The final state is the last thing a stream tells.
    if position.state.is_some_and(cortex_wire::task::State::is_final) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(respond(source, vigil))
}

/// The rows of a session's log, brought by a task of their own: whoever waits for them can wait for other things too.
struct Log {
    rows: mpsc::Receiver<Event>,
    _reader: AbortOnDropHandle<()>,
}

impl Log {
    fn of(mut follower: SessionFollower) -> Self {
        let (sender, rows) = mpsc::channel(16);
        let reader = tokio::spawn(async move {
            while let Some(Some(event)) = note(follower.next().await) {
                if sender.send(event).await.is_err() {
                    break;
                }
            }
        });
        Self { rows, _reader: AbortOnDropHandle::new(reader) }
    }
}

/// A stream that fails ends: its reader comes back, and is told then.
fn note<T, E: Failure>(result: Result<T, E>) -> Option<T> {
    result
        .inspect_err(|error| match error.kind() {
            Kind::Internal => tracing::warn!(error = %Chain(error), "an event stream ended early"),
            _ => tracing::debug!(%error, "an event stream ended: its reader may not follow any more"),
        })
        .ok()
}
