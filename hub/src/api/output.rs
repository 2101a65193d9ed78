//! A task's output as it is: bytes from any offset, at the speed of the connection, optionally as they appear.

use std::{io, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cortex_wire::id::TaskId;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Path, Query},
    caller::Caller,
    problem::{Document, Problem},
    sse::Vigil,
};
use crate::{
    account::Actor,
    hub::Hub,
    output::{Mark, OutputReader, Piece, Stream},
};

/// Read at once: large enough that the work per piece does not count, small enough for many readers at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(task_output))
}

/// Which output.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OutputQuery {
    /// "stdout" or "stderr".
    #[serde(default = "stdout")]
    #[param(value_type = Option<String>, required = false)]
    stream: Stream,
    /// Where to begin.
    #[serde(default)]
    #[param(required = false)]
    offset: u64,
    /// Go on until the task is final.
    #[serde(default)]
    #[param(required = false)]
    follow: bool,
}

fn stdout() -> Stream {
    Stream::Stdout
}

/// What a task printed, byte for byte.
///
/// Without `follow` the body ends where the output ends now (`Cortex-Next-Offset`); `Cortex-Complete` says whether that is its end for good. With `follow`
/// it ends with the task. Where something was not kept, the body breaks off (its length or its last chunk is missing) rather than go on
/// with other bytes; asking again from there answers 416 `output_truncated` with the `next_offset` at which output goes on.
#[utoipa::path(get, path = "/api/tasks/{id}/output", tag = "tasks",
    params(("id" = String, Path), OutputQuery),
    responses(
        (status = 200, body = [u8], content_type = "application/octet-stream", headers(
            ("Cortex-Offset" = u64, description = "where the body begins"),
            ("Cortex-Next-Offset" = u64, description = "where the next request goes on; without `follow`"),
            ("Cortex-Complete" = bool, description = "nothing more will come behind the body; without `follow`"))),
        (status = 416, body = Document, description = "`output_truncated`: not kept any more; `beyond_output`: behind the end")))]
async fn task_output(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(id): Path<TaskId>,
    Query(query): Query<OutputQuery>,
) -> Result<Response, Problem> {
    let OutputQuery { stream, offset, follow } = query;
    let vigil = Vigil::new(&api, &caller)?;
    let output = api.hub.open_output(&caller.actor, id).await?;
    let mut marks = output.marks();
    let mark = *marks.borrow_and_update();
    let end = end_of(mark, stream);
    let first = match output.read(stream, offset, PIECE_BYTES).await? {
        Piece::Gap { next } => return Err(truncated(offset, next)),
        // Ahead of a task that runs: after a crash of the hub, its node sends again what was not yet durable.
        Piece::End if offset > end && (!follow || mark.finished) => return Err(beyond(offset, end)),
        Piece::End => None,
        Piece::Data(bytes) => Some(bytes),
    };
    let reader =
        Reader { hub: api.hub.clone(), actor: caller.actor, task: id, output, stream, offset, first, marks, end: (!follow).then_some(end) };
    let name = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let mut response = Body::from_stream(body(reader, vigil)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.extend(
        HeaderValue::from_str(&format!("attachment; filename=\"{id}.{name}\"")).ok().map(|value| (header::CONTENT_DISPOSITION, value)),
    );
    headers.insert("cortex-offset", offset.into());
    if !follow {
        headers.insert(header::CONTENT_LENGTH, end.saturating_sub(offset).into());
        headers.insert("cortex-next-offset", end.max(offset).into());
        headers.insert("cortex-complete", HeaderValue::from_static(if mark.finished { "true" } else { "false" }));
    }
    Ok(response)
}

fn end_of(mark: Mark, stream: Stream) -> u64 {
    match stream {
        Stream::Stdout => mark.stdout,
        Stream::Stderr => mark.stderr,
    }
}

fn truncated(offset: u64, next: u64) -> Problem {
    Problem::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "output_truncated",
        format!("the output from {offset} to {next} was not kept: the task printed more than the hub keeps"),
        format!("go on with offset={next}"),
    )
    .with_next_offset(next)
}

fn beyond(offset: u64, end: u64) -> Problem {
    Problem::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "beyond_output",
        format!("offset {offset} is behind the end of the output, which is {end} bytes long"),
        format!("ask from an offset up to {end}, or with follow=true while the task runs"),
    )
    .with_next_offset(end)
}

struct Reader {
    hub: Arc<Hub>,
    actor: Actor,
    task: TaskId,
    output: OutputReader,
    stream: Stream,
    offset: u64,
    first: Option<Bytes>,
    marks: watch::Receiver<Mark>,
    /// Where the body ends; `None`: with the task.
    end: Option<u64>,
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let mark = *self.marks.borrow_and_update();
            let end = self.end.unwrap_or_else(|| end_of(mark, self.stream));
            if self.offset < end {
                let wanted = usize::try_from(end - self.offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                let mut bytes = match self.first.take() {
                    Some(bytes) => bytes,
                    None => self.read(wanted).await?,
                };
                bytes.truncate(wanted);
                self.offset += bytes.len() as u64;
                return Ok(Some(bytes));
            }
            if self.end.is_some() || mark.finished {
                return Ok(None);
            }
            self.marks.changed().await.map_err(|_| io::Error::other("the task's output is no longer followed"))?;
        }
    }

    async fn read(&self, wanted: usize) -> io::Result<Bytes> {
        match self.output.read(self.stream, self.offset, wanted).await.map_err(io::Error::other)? {
            Piece::Data(bytes) => Ok(bytes),
            Piece::Gap { next } => Err(io::Error::other(format!("output from {} to {next} was not kept", self.offset))),
            Piece::End => Err(io::Error::other("output that was there is gone")),
        }
    }
}

/// The body ends with an error, so that nobody takes it for whole, when output is missing or the reader is shut out.
fn body(reader: Reader, vigil: Vigil) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((reader, vigil), |(mut reader, mut vigil)| async move {
        loop {
            tokio::select! {
                biased;
                go_on = vigil.tick() => if !go_on || reader.hub.task(&reader.actor, reader.task).await.is_err() {
                    return Err(io::Error::other("the reader was shut out, or the hub stops"));
                },
                bytes = reader.next() => return Ok(bytes?.map(|bytes| (bytes, (reader, vigil)))),
            }
        }
    })
}
