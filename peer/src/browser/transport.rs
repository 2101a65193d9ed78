//! The DevTools protocol over two pipes: commands out, answers and events in.
//!
//! Messages are JSON, ended by a zero byte. They are decoded leniently: what is not known is skipped and what is missing is missing, because each version of Chromium adds and
//! renames fields. Nobody else on the machine can reach a pipe, and a browser whose pipe closes ends.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

/// A message of the browser. The largest that is needed is a page as a picture; a page can make larger ones, which are skipped.
const MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// What the pipe from the browser holds: pictures come in few reads.
const PIPE_BYTES: usize = 1024 * 1024;
/// A buffer above this is given back after a large message.
const KEPT_BYTES: usize = 1024 * 1024;

/// Why a command has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdpError {
    /// The browser is gone.
    #[error("the browser has ended")]
    Gone,
    /// The browser said no.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a browser. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cdp(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<Value, CdpError>>>>,
    out: mpsc::UnboundedSender<Vec<u8>>,
    gone: CancellationToken,
}

/// Something that happened in the browser: on which session (empty: the browser's own), what, and how.
pub type OnEvent = Box<dyn FnMut(&str, &str, Value) + Send>;

#[derive(Deserialize)]
struct Message {
    id: Option<u64>,
    #[serde(default)]
    result: Value,
    error: Option<Fault>,
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(rename = "sessionId", default)]
    session: String,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    message: String,
}

impl Cdp {
    /// Speaks over these pipes until the browser closes its end. Events are handed over in their order, and before answers that came after them.
    ///
    /// # Errors
    /// When the descriptors are no pipes.
    pub fn start(to: OwnedFd, from: OwnedFd, on_event: OnEvent) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        let _ = rustix::pipe::fcntl_setpipe_size(&from, PIPE_BYTES);
        #[cfg(not(target_os = "linux"))]
        let _ = PIPE_BYTES;
        let mut to = pipe::Sender::from_owned_fd(to)?;
        let from = pipe::Receiver::from_owned_fd(from)?;
        let (out, mut commands) = mpsc::unbounded_channel::<Vec<u8>>();
        let this = Self(Arc::new(Inner { next: AtomicU64::new(1), waiting: Mutex::default(), out, gone: CancellationToken::new() }));
        let gone = this.0.gone.clone();
        tokio::spawn(async move {
            while let Some(command) = tokio::select! { command = commands.recv() => command, () = gone.cancelled() => None } {
                if to.write_all(&command).await.is_err() {
                    break;
                }
            }
        });
        let reader = this.clone();
        tokio::spawn(async move {
            if let Err(error) = reader.read(from, on_event).await {
                tracing::warn!(%error, "a browser's pipe cannot be read on");
            }
            reader.end();
        });
        Ok(this)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Value, CdpError>>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, mut from: pipe::Receiver, mut on_event: OnEvent) -> io::Result<()> {
        let mut buffer: Vec<u8> = Vec::with_capacity(64 * 1024);
        let mut searched = 0;
        let mut skipping = false;
        loop {
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            let mut start = 0;
            while let Some(end) = buffer[searched..].iter().position(|byte| *byte == 0).map(|at| searched + at) {
                if !std::mem::take(&mut skipping) {
                    self.take(&buffer[start..end], &mut on_event);
                }
                start = end + 1;
                searched = start;
            }
            buffer.drain(..start);
            if buffer.len() > MESSAGE_BYTES {
                self.refuse(&buffer);
                skipping = true;
            }
            if skipping {
                buffer.clear();
            }
            searched = buffer.len();
            if buffer.is_empty() && buffer.capacity() > KEPT_BYTES {
                buffer.shrink_to(64 * 1024);
            }
        }
    }

    fn take(&self, message: &[u8], on_event: &mut OnEvent) {
        let Ok(message) = serde_json::from_slice::<Message>(message) else {
            return tracing::debug!(bytes = message.len(), "a message of the browser is not understood");
        };
        if let Some(id) = message.id {
            let answer = message.error.map_or(Ok(message.result), |fault| Err(CdpError::Refused(fault.message)));
            if let Some(waiting) = self.waiting().remove(&id) {
                let _ = waiting.send(answer);
            }
        } else if let Some(method) = message.method {
            on_event(&message.session, &method, message.params);
        }
    }

    /// Whoever waits for a message that is too large hears so: an answer begins with its number.
    fn refuse(&self, message: &[u8]) {
        let number = message.strip_prefix(b"{\"id\":").unwrap_or_default();
        let digits: String = number.iter().map_while(|byte| byte.is_ascii_digit().then_some(char::from(*byte))).take(20).collect();
        let waiting = digits.parse().ok().and_then(|id: u64| self.waiting().remove(&id));
        if let Some(waiting) = waiting {
            let _ = waiting.send(Err(CdpError::Refused("the browser's answer is larger than 64 MiB; ask for less".into())));
        }
    }

    /// Nothing more will come.
    pub fn end(&self) {
        self.0.gone.cancel();
        self.waiting().clear();
    }

    /// Resolves when the browser has closed its end.
    pub async fn gone(&self) {
        self.0.gone.cancelled().await;
    }

    /// Whether it has.
    pub fn is_gone(&self) -> bool {
        self.0.gone.is_cancelled()
    }

    /// Sends a command at once; the answer may be waited for, or not. `session` empty: the browser itself.
    pub fn send(&self, session: &str, method: &str, params: Value) -> impl Future<Output = Result<Value, CdpError>> + Send + use<> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        let mut message = json!({ "id": id, "method": method, "params": params });
        if !session.is_empty() {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.waiting().insert(id, tell);
        let sent = !self.is_gone() && self.0.out.send(bytes).is_ok();
        if !sent {
            self.waiting().remove(&id);
        }
        let forget = Forget(self.clone(), id);
        async move {
            let answer = told.await.unwrap_or(Err(CdpError::Gone));
            drop(forget);
            answer
        }
    }

    /// Sends a command whose answer nobody needs.
    pub fn tell(&self, session: &str, method: &str, params: Value) {
        drop(self.send(session, method, params));
    }
}

/// Nobody waits any more.
struct Forget(Cdp, u64);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[tokio::test]
    async fn answers_find_their_commands_and_what_is_not_understood_is_skipped() {
        let (their_in, our_out) = io::pipe().unwrap();
        let (our_in, mut their_out) = io::pipe().unwrap();
        let (tell, mut events) = mpsc::unbounded_channel();
        let on_event: OnEvent = Box::new(move |session, method, params| _ = tell.send(format!("{session} {method} {params}")));
        let cdp = Cdp::start(our_out.into(), our_in.into(), on_event).unwrap();
        let first = cdp.send("", "A.a", json!({}));
        let second = cdp.send("S", "B.b", json!({"x": 1}));
        let asked = tokio::task::spawn_blocking(move || {
            let (mut their_in, mut read, mut byte) = (their_in, Vec::new(), [0]);
            while read.iter().filter(|byte| **byte == 0).count() < 2 {
                their_in.read_exact(&mut byte).unwrap();
                read.push(byte[0]);
            }
            String::from_utf8(read).unwrap()
        });
        let asked = asked.await.unwrap();
        assert!(asked.contains(r#""sessionId":"S""#) && asked.contains(r#""method":"A.a""#), "{asked}");
        their_out
            .write_all(
                b"nonsense\0{\"id\":2,\"error\":{\"message\":\"no\"}}\0{\"id\":9}\0{\"method\":\"E.e\",\"params\":{\"n\":1},\"new\":{}}\0",
            )
            .unwrap();
        their_out.write_all(b"{\"id\":1,\"resu").unwrap();
        assert_eq!(second.await, Err(CdpError::Refused("no".into())));
        assert_eq!(events.recv().await.unwrap(), r#" E.e {"n":1}"#);
        their_out.write_all(b"lt\":{\"ok\":true}}\0").unwrap();
        assert_eq!(first.await, Ok(json!({"ok": true})));
        // Too large for us: whoever waits hears so, and what comes behind it is read.
        let large = cdp.send("", "L.l", json!({}));
        let piece = vec![b'x'; 1024 * 1024];
        let mut their_out = tokio::task::spawn_blocking(move || {
            their_out.write_all(b"{\"id\":3,\"result\":\"").unwrap();
            (0..65).for_each(|_| their_out.write_all(&piece).unwrap());
            their_out.write_all(b"\"}\0{\"method\":\"F.f\"}\0").unwrap();
            their_out
        })
        .await
        .unwrap();
        assert!(matches!(large.await, Err(CdpError::Refused(reason)) if reason.contains("64 MiB")));
        assert_eq!(events.recv().await.unwrap(), " F.f null");
        let third = cdp.send("", "C.c", json!({}));
        their_out.write_all(b"{}\0").unwrap();
        drop(their_out);
        assert_eq!(third.await, Err(CdpError::Gone));
        assert_eq!(cdp.send("", "D.d", json!({})).await, Err(CdpError::Gone));
    }
}
