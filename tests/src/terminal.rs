//! Somebody at a terminal, as a browser or another client is.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _, http::HeaderValue},
};

use crate::api::{Client, Problem};

/// One connection to a terminal.
#[derive(Debug)]
pub struct Terminal {
    socket: WebSocketStream<TcpStream>,
    /// The task.
    pub task: String,
    /// What the hub said first.
    pub opened: Value,
    /// Everything that was shown.
    pub shown: Vec<u8>,
    /// Where the next byte belongs.
    pub offset: u64,
    /// Text frames other than the first.
    pub told: Vec<Value>,
    looked_at: usize,
}

impl Terminal {
    /// Opens a terminal, or comes back to one; `query`: as in the address.
    ///
    /// # Errors
    /// [`Problem`], or what broke.
    pub async fn open(client: &Client, session: &str, query: &str) -> Result<Self> {
        let headers = match (client.token(), client.cookies()) {
            (Some(token), _) => vec![("authorization", format!("Bearer {token}"))],
            (None, Some(cookies)) => vec![("cookie", cookies), ("origin", client.base().to_owned())],
            (None, None) => vec![],
        };
        Self::open_with(client, session, query, headers).await
    }

    /// The same with these headers.
    ///
    /// # Errors
    /// [`Problem`], or what broke.
    pub async fn open_with(
        client: &Client,
        session: &str,
        query: &str,
        headers: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Result<Self> {
        let address = client.base().strip_prefix("http://").context("plain http")?;
        let mut request = format!("ws://{address}/api/sessions/{session}/terminal?{query}").into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(name, HeaderValue::from_str(&value)?);
        }
        let stream = TcpStream::connect(address).await?;
        let (socket, _) = match client_async(request, stream).await {
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                let problem: Problem = serde_json::from_slice(body).with_context(|| format!("{response:?}"))?;
                return Err(problem.into());
            }
            connected => connected?,
        };
        let mut this =
            Self { socket, task: String::new(), opened: Value::Null, shown: Vec::new(), offset: 0, told: Vec::new(), looked_at: 0 };
        this.step().await?;
        this.opened = this.told.pop().context("the first frame says what was opened")?;
        ensure!(this.opened["type"] == "opened" && this.shown.is_empty(), "{this:?}");
        this.task = this.opened["task_id"].as_str().context("which task")?.to_owned();
        this.offset = this.opened["offset"].as_u64().context("from where on")?;
        Ok(this)
    }

    /// The next frame; `false`: there is none any more.
    async fn step(&mut self) -> Result<bool> {
        let patience = Duration::from_secs(15);
        let message = match timeout(patience, self.socket.next()).await {
            Ok(message) => message,
            Err(_) => bail!("nothing came for {patience:?}; shown so far: {:?}, told: {:?}", self.text(), self.told),
        };
        match message {
            Some(Ok(Message::Binary(bytes))) => {
                self.offset += bytes.len() as u64;
                self.shown.extend_from_slice(&bytes);
            }
            Some(Ok(Message::Text(text))) => self.told.push(serde_json::from_str(&text)?),
            Some(Ok(Message::Close(frame))) => {
                self.told.push(json!({"type": "closed", "code": frame.map(|frame| u16::from(frame.code))}));
                return Ok(false);
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Ok(false),
        }
        Ok(true)
    }

    /// What was shown, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Types.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn type_in(&mut self, text: &str) -> Result<()> {
        Ok(self.socket.send(Message::Binary(Bytes::copy_from_slice(text.as_bytes()))).await?)
    }

    /// Sends a text frame.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn tell(&mut self, text: Value) -> Result<()> {
        Ok(self.socket.send(Message::text(text.to_string())).await?)
    }

    /// Asks for another size.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn resize(&mut self, columns: u32, rows: u32) -> Result<()> {
        self.tell(json!({"type": "resize", "columns": columns, "rows": rows})).await
    }

    /// Reads on until this is shown, behind what was waited for before.
    ///
    /// # Errors
    /// When it is not.
    pub async fn until(&mut self, text: &str) -> Result<()> {
        loop {
            let fresh = &self.shown[self.looked_at..];
            if let Some(at) = fresh.windows(text.len()).position(|part| part == text.as_bytes()) {
                self.looked_at += at + text.len();
                return Ok(());
            }
            ensure!(self.step().await?, "the end came before {text:?}: {:?} {:?}", self.text(), self.told);
        }
    }

    /// Types a command, and reads on until this is shown.
    ///
    /// # Errors
    /// When it is not.
    pub async fn ask(&mut self, command: &str, answer: &str) -> Result<()> {
        self.type_in(&format!("{command}\n")).await?;
        self.until(answer).await
    }

    /// Leaves, as a page does: what was typed has been read when the hub closes, too.
    ///
    /// # Errors
    /// When the connection is gone, or the hub does not close it.
    pub async fn leave(mut self) -> Result<()> {
        self.socket.close(None).await?;
        while self.step().await? {}
        Ok(())
    }

    /// Reads on until a text frame of this type comes.
    ///
    /// # Errors
    /// When it does not.
    pub async fn heard(&mut self, kind: &str) -> Result<Value> {
        loop {
            if let Some(at) = self.told.iter().position(|told| told["type"] == kind) {
                return Ok(self.told.remove(at));
            }
            let more = self.step().await?;
            ensure!(
                more || self.told.iter().any(|told| told["type"] == kind),
                "the end came before {kind:?}: {:?} {:?}",
                self.text(),
                self.told
            );
        }
    }
}
