//! A terminal in the browser: a WebSocket at a task that runs in one.
//!
//! | frame | to the client | from the client |
//! | --- | --- | --- |
//! | binary | output, from where the last one ended | what is typed |
//! | text | `opened` (first, with the offset of the first byte), `size` (whenever somebody gave it another), `gap`, `exit`, `error` | `resize` |
//!
//! Each connection reads the stored output at its own pace, so nobody waits for anybody. One that takes nothing for a while is closed; the terminal runs on, and who comes
//! back with the next offset misses nothing and sees nothing twice. The size is the one that was asked for last.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequestParts, State},
    http::{Request, StatusCode, header, request::Parts},
    response::Response,
};
use cortex_wire::{
    id::{NodeId, SessionId, TaskId},
    schema,
    task::is_terminal_size,
};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, handshake::server::create_response_with_body, protocol::CloseFrame, protocol::Role, protocol::WebSocketConfig,
        protocol::frame::coding::CloseCode,
    },
};
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api,
    body::{Path, Query},
    caller::{Caller, Credential},
    problem::{Document, Problem},
    sse::Vigil,
};
use crate::{
    account::Actor,
    hub::Hub,
    output::{Mark, OutputError, OutputReader, Piece, Stream},
    record::{Task, TaskSpec, TerminalSize},
    task::DispatchRequest,
    terminal::Seat,
};

/// Output in one frame.
const FRAME_BYTES: usize = 64 * 1024;
/// The largest frame that is taken: a paste goes in several.
const INPUT_BYTES: usize = 64 * 1024;
/// Of what was printed before, when nobody says from where.
const SCROLLBACK_BYTES: u64 = 256 * 1024;
/// A connection that takes nothing for so long is closed.
const SLOW: Duration = Duration::from_secs(20);
/// One from which nothing is heard for so long is dead: it is asked every 15 seconds.
const SILENT: Duration = Duration::from_secs(50);
/// Without a byte in either direction.
const IDLE_MS: u64 = 12 * 60 * 60 * 1000;
/// Of this protocol, in the range for applications.
const SHUT_OUT: u16 = 4401;
const TOO_SLOW: u16 = 4408;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(terminal))
}

/// Which terminal, and how large.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TerminalQuery {
    /// The terminal to come back to; none: a new one is opened.
    #[param(value_type = Option<String>)]
    task: Option<TaskId>,
    /// Where a new one is opened; may be left out when the session has one node.
    #[param(value_type = Option<String>)]
    node: Option<NodeId>,
    /// Columns, 1 to 1000.
    cols: Option<u32>,
    /// Rows, 1 to 1000.
    rows: Option<u32>,
    /// The shell of a new one; none: the node's default.
    shell: Option<String>,
    /// Where it begins, inside the workspace.
    cwd: Option<String>,
    /// From which byte of the output on; none: the last 256 KiB.
    offset: Option<u64>,
    /// A new one ends when nothing is printed or typed for so long; none: twelve hours.
    idle_timeout_ms: Option<u64>,
    /// `false`: what a new one shows is forgotten a minute after its end.
    keep: Option<bool>,
}

impl TerminalQuery {
    fn size(&self) -> Result<Option<schema::Terminal>, Problem> {
        let size = match (self.cols, self.rows) {
            (None, None) => return Ok(None),
            (Some(columns), Some(rows)) => schema::Terminal { columns, rows },
            _ => return Err(Problem::malformed("give `cols` and `rows`, or neither")),
        };
        if is_terminal_size(&size) { Ok(Some(size)) } else { Err(Problem::malformed("`cols` and `rows` are 1 to 1000")) }
    }

    fn dispatch(&self, size: Option<schema::Terminal>) -> DispatchRequest {
        let size = size.unwrap_or(schema::Terminal { columns: 80, rows: 24 });
        let spec = TaskSpec {
            shell: self.shell.clone(),
            cwd: self.cwd.clone().unwrap_or_default(),
            terminal: Some(TerminalSize { columns: size.columns, rows: size.rows }),
            stdin: true,
            idle_timeout_ms: Some(self.idle_timeout_ms.unwrap_or(IDLE_MS)),
            forget_output: !self.keep.unwrap_or(true),
            ..TaskSpec::default()
        };
        DispatchRequest { node: self.node, spec, queue_timeout_ms: 0, pool: false, selector: None }
    }
}

/// Opens a terminal on a node of the session, or comes back to one.
///
/// A WebSocket. The first text frame is `{"type":"opened","task_id":…,"state":…,"offset":…,"written":…,…}`; binary frames are output from that offset on (what comes before `written` was printed
/// before), and what is typed in the other direction. `{"type":"resize","columns":…,"rows":…}` changes the size, and everybody at the terminal hears `{"type":"size","columns":…,"rows":…}`. The last text frame is `{"type":"exit",…}` with how the task ended. Leaving does not end the terminal: come back
/// with `task` and `offset`, or end it with `POST /api/tasks/{id}/cancel`. With a session cookie the request must come from a page of this hub.
#[utoipa::path(get, path = "/api/sessions/{id}/terminal", tag = "tasks",
    params(("id" = String, Path), TerminalQuery),
    responses(
        (status = 101, description = "the WebSocket"),
        (status = 409, body = Document, description = "`no_terminal`: the task has none; `too_many_terminals`"),
        (status = 426, body = Document, description = "`websocket_expected`")))]
async fn terminal(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(session): Path<SessionId>,
    Query(query): Query<TerminalQuery>,
    door: Result<Door, Problem>,
) -> Result<Response, Problem> {
    // Who may not see the session hears nothing else.
    api.hub.session(&caller.actor, session).await?;
    let door = door?;
    if matches!(caller.credential, Credential::Cookie(_)) && !door.has_origin {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "cross_site",
            "this request does not say which page it comes from",
            "use the hub's own pages, or an API token in the Authorization header",
        ));
    }
    let size = query.size()?;
    let vigil = Vigil::new(&api, &caller)?;
    let id = match query.task {
        Some(id) => {
            let task = api.hub.task(&caller.actor, id).await?;
            if task.session != session {
                return Err(Problem::not_found("task"));
            }
            id
        }
        None => {
            let principal = caller.actor.token.clone().unwrap_or_else(|| caller.actor.user.to_string());
            api.limits.dispatches.take(principal, api.hub.now_ms())?;
            api.hub.dispatch(&caller.actor, session, query.dispatch(size), None).await.map_err(super::task::explain)?.task.id
        }
    };
    let (task, seat) = api.hub.sit(&caller.actor, id).await?;
    let screen = Screen::open(&api.hub, &caller.actor, id, query.offset).await?;
    let may_type = api.hub.may_type(&caller.actor, &task).await;
    if let Some(size) = size.filter(|_| may_type && query.task.is_some()) {
        seat.resize(size);
    }
    let Door { upgrade, answer, .. } = door;
    let guest = Guest { hub: api.hub.clone(), actor: caller.actor, task, may_type, seat, vigil, heard: Instant::now() };
    tokio::spawn(async move {
        let Ok(Ok(stream)) = timeout(SLOW, upgrade).await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, Some(config())).await;
        guest.converse(socket, screen).await;
    });
    Ok(answer)
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * FRAME_BYTES)
        .max_message_size(Some(INPUT_BYTES))
        .max_frame_size(Some(INPUT_BYTES))
}

/// A request that wants to become a WebSocket, and the answer to it.
struct Door {
    upgrade: OnUpgrade,
    answer: Response,
    has_origin: bool,
}

impl FromRequestParts<Arc<Api>> for Door {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Problem> {
        let mut request = Request::new(());
        (*request.method_mut(), *request.version_mut()) = (parts.method.clone(), parts.version);
        request.headers_mut().clone_from(&parts.headers);
        let answer = create_response_with_body(&request, Body::empty).ok();
        let (Some(answer), Some(upgrade)) = (answer, parts.extensions.remove::<OnUpgrade>()) else {
            return Err(Problem::new(
                StatusCode::UPGRADE_REQUIRED,
                "websocket_expected",
                "a terminal is a WebSocket, and this request is not one",
                "open it with a WebSocket client, version 13",
            ));
        };
        Ok(Self { upgrade, answer, has_origin: parts.headers.contains_key(header::ORIGIN) })
    }
}

/// What is shown next.
enum Shown {
    Bytes(Bytes),
    Gap(u64),
    Ended,
}

/// The output, from one place on.
struct Screen {
    reader: OutputReader,
    marks: watch::Receiver<Mark>,
    at: u64,
}

impl Screen {
    async fn open(hub: &Hub, actor: &Actor, task: TaskId, offset: Option<u64>) -> Result<Self, OutputError> {
        let reader = hub.open_output(actor, task).await?;
        let marks = reader.marks();
        let end = marks.borrow().stdout;
        Ok(Self { reader, marks, at: offset.unwrap_or(end.saturating_sub(SCROLLBACK_BYTES)) })
    }

    /// Safe to cancel.
    async fn next(&mut self) -> Result<Shown, OutputError> {
        loop {
            let mark = *self.marks.borrow_and_update();
            if self.at < mark.stdout {
                match self.reader.read(Stream::Stdout, self.at, FRAME_BYTES).await? {
                    Piece::Data(bytes) => {
                        self.at += bytes.len() as u64;
                        return Ok(Shown::Bytes(bytes));
                    }
                    Piece::Gap { next } => {
                        self.at = next;
                        return Ok(Shown::Gap(next));
                    }
                    Piece::End => {}
                }
            }
            if mark.finished || self.marks.changed().await.is_err() {
                return Ok(Shown::Ended);
            }
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Told<'a> {
    /// `written`: where the output ended at that moment; what comes up to there was printed before.
    Opened {
        task_id: TaskId,
        node_id: NodeId,
        state: &'a str,
        offset: u64,
        written: u64,
        columns: u32,
        rows: u32,
        may_type: bool,
    },
    /// Somebody gave it another size.
    Size {
        columns: u32,
        rows: u32,
    },
    Gap {
        next_offset: u64,
    },
    Exit {
        state: &'a str,
        exit_code: Option<i32>,
        signal: Option<i32>,
        code: Option<&'a str>,
        reason: Option<&'a str>,
        offset: u64,
    },
    Error {
        code: &'a str,
        detail: &'a str,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Asked {
    Resize { columns: u32, rows: u32 },
}

/// Why a connection ends.
enum Over {
    /// The other side left, or cannot be reached.
    Gone,
    /// It is told why.
    Close(u16, &'static str),
}

/// Somebody at a terminal.
struct Guest {
    hub: Arc<Hub>,
    actor: Actor,
    task: Task,
    may_type: bool,
    seat: Seat,
    vigil: Vigil,
    heard: Instant,
}

type Out = SplitSink<Socket, Message>;

impl Guest {
    async fn converse(mut self, socket: Socket, screen: Screen) {
        let (mut out, incoming) = socket.split();
        let Err(over) = self.talk(&mut out, incoming, screen).await;
        // Somebody else may sit down meanwhile.
        drop(self.seat);
        if let Over::Close(code, reason) = over {
            let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
            // Who is slow has to take what is under way first, to hear why.
            let patience = if code == TOO_SLOW { SLOW } else { Duration::from_secs(1) };
            let _ = timeout(patience, out.send(Message::Close(Some(frame)))).await;
        }
        let _ = timeout(Duration::from_secs(1), out.close()).await;
    }

    async fn talk(
        &mut self,
        out: &mut Out,
        mut incoming: SplitStream<Socket>,
        mut screen: Screen,
    ) -> Result<std::convert::Infallible, Over> {
        let mut sizes = self.seat.sizes();
        let size = sizes.borrow_and_update().unwrap_or_else(|| self.task.spec.terminal.unwrap_or_default().into());
        let written = screen.marks.borrow().stdout;
        let opened = Told::Opened {
            task_id: self.task.id,
            node_id: self.task.node,
            state: self.task.state.name(),
            offset: screen.at,
            written,
            columns: size.columns,
            rows: size.rows,
            may_type: self.may_type,
        };
        tell(out, &opened).await?;
        let mut typed: Option<Bytes> = None;
        loop {
            if typed.take_if(|typed| self.seat.type_in(typed)).is_some() {
                continue;
            }
            tokio::select! {
                biased;
                go_on = self.vigil.tick() => self.look_around(out, go_on).await?,
                message = incoming.next(), if typed.is_none() => {
                    let message = message.ok_or(Over::Gone)?.map_err(|_| Over::Close(1009, "a frame is too large, or not one"))?;
                    self.heard = Instant::now();
                    typed = self.hear(out, message).await?;
                }
                () = self.seat.room(), if typed.is_some() => {}
                Ok(()) = sizes.changed() => {
                    let size = *sizes.borrow_and_update();
                    if let Some(schema::Terminal { columns, rows }) = size {
                        tell(out, &Told::Size { columns, rows }).await?;
                    }
                }
                shown = screen.next() => match shown.map_err(|_| Over::Close(1011, "the output cannot be read"))? {
                    Shown::Bytes(bytes) => send(out, Message::Binary(bytes)).await?,
                    Shown::Gap(next_offset) => tell(out, &Told::Gap { next_offset }).await?,
                    Shown::Ended => return self.end(out, screen.at).await,
                },
            }
        }
    }

    /// Whether it may go on, asked now and then.
    async fn look_around(&mut self, out: &mut Out, go_on: bool) -> Result<(), Over> {
        if !go_on {
            return Err(if self.vigil.is_shut_out() {
                Over::Close(SHUT_OUT, "you are no longer let in")
            } else {
                Over::Close(1001, "the hub stops; come back")
            });
        }
        if self.hub.task(&self.actor, self.task.id).await.is_err() {
            return Err(Over::Close(SHUT_OUT, "the session is no longer yours to see"));
        }
        if self.heard.elapsed() > SILENT {
            return Err(Over::Gone);
        }
        self.may_type = self.hub.may_type(&self.actor, &self.task).await;
        send(out, Message::Ping(Bytes::new())).await
    }

    /// What is typed; everything else is done.
    async fn hear(&mut self, out: &mut Out, message: Message) -> Result<Option<Bytes>, Over> {
        let (code, detail) = match message {
            Message::Binary(bytes) if self.may_type => return Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(Asked::Resize { columns, rows }) if self.may_type && is_terminal_size(&schema::Terminal { columns, rows }) => {
                    self.seat.resize(schema::Terminal { columns, rows });
                    return Ok(None);
                }
                Ok(_) if self.may_type => ("malformed_request", "a terminal has 1 to 1000 columns and rows"),
                Ok(_) => ("read_only", "you may look at this terminal, and not use it"),
                Err(_) => ("malformed_request", "a text frame is {\"type\":\"resize\",\"columns\":…,\"rows\":…}"),
            },
            Message::Binary(_) => ("read_only", "you may look at this terminal, and not use it"),
            Message::Close(_) => return Err(Over::Gone),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(None),
        };
        tell(out, &Told::Error { code, detail }).await?;
        Ok(None)
    }

    async fn end(&self, out: &mut Out, offset: u64) -> Result<std::convert::Infallible, Over> {
        let task = self.hub.task(&self.actor, self.task.id).await.map_err(|_| Over::Gone)?;
        let exit = Told::Exit {
            state: task.state.name(),
            exit_code: task.exit_code,
            signal: task.signal,
            code: task.code.as_deref(),
            reason: task.reason.as_deref(),
            offset,
        };
        tell(out, &exit).await?;
        Err(Over::Close(1000, "the terminal has ended"))
    }
}

async fn tell(out: &mut Out, told: &Told<'_>) -> Result<(), Over> {
    send(out, Message::text(serde_json::to_string(told).unwrap_or_default())).await
}

async fn send(out: &mut Out, message: Message) -> Result<(), Over> {
    match timeout(SLOW, pin!(out.send(message))).await {
        Ok(sent) => sent.map_err(|_| Over::Gone),
        Err(_) => Err(Over::Close(TOO_SLOW, "too slow; come back at your offset")),
    }
}
