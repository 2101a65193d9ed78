//! A reader of Server-Sent Events, as browsers have it: when the connection ends it comes back with `Last-Event-ID`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use data_encoding::BASE64;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use crate::api::{Client, Problem};

/// Before it comes back.
const PAUSE: Duration = Duration::from_millis(100);

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its place in the stream.
    pub id: Option<String>,
    /// What it is called.
    pub name: String,
    /// What it says.
    pub data: Value,
    /// When it arrived.
    pub at: Instant,
}

impl Event {
    /// The output that it brings: which stream, from which offset, what.
    ///
    /// # Errors
    /// When it brings none.
    pub fn output(&self) -> Result<(&str, u64, Vec<u8>)> {
        let data = match (self.data["data"].as_str(), self.data["base64"].as_str()) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(text)) => BASE64.decode(text.as_bytes())?,
            (None, None) => bail!("no output: {self:?}"),
        };
        let stream = self.data["stream"].as_str().context("a stream")?;
        Ok((stream, self.data["offset"].as_u64().context("an offset")?, data))
    }
}

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    client: Client,
    path: String,
    last_id: Option<String>,
    live: Option<Response>,
    buffer: Vec<u8>,
    connections: u32,
}

impl Events {
    pub(crate) fn new(client: Client, path: &str) -> Self {
        Self { client, path: path.to_owned(), last_id: None, live: None, buffer: Vec::new(), connections: 0 }
    }

    /// The same stream from behind an event.
    #[must_use]
    pub fn behind(mut self, id: &str) -> Self {
        self.last_id = Some(id.to_owned());
        self
    }

    /// How often it has connected so far.
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// Connects, if it is not connected.
    ///
    /// # Errors
    /// [`Problem`] when the hub refuses; what broke when it does not answer.
    pub async fn connect(&mut self) -> Result<()> {
        if self.live.is_none() {
            let mut request = self.client.request(Method::GET, &self.path);
            if let Some(id) = &self.last_id {
                request = request.header("last-event-id", id);
            }
            let response = request.send().await?;
            if !response.status().is_success() {
                return Err(response.json::<Problem>().await?.into());
            }
            self.connections += 1;
            self.live = Some(response);
        }
        Ok(())
    }

    /// Lets go of the connection; the next event comes over another.
    pub fn disconnect(&mut self) {
        self.live = None;
        self.buffer.clear();
    }

    /// The next event, over as many connections as it takes; `None` when the hub says that there will be none.
    ///
    /// # Errors
    /// When there is none within `patience`, or the hub refuses.
    pub async fn next(&mut self, patience: Duration) -> Result<Option<Event>> {
        let next = tokio::time::timeout(patience, self.next_at_last()).await;
        next.with_context(|| format!("no event of {} within {patience:?}", self.path))?
    }

    async fn next_at_last(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.take()? {
                return Ok(Some(event));
            }
            match self.connect().await {
                Ok(()) => {}
                Err(error) if error.is::<Problem>() => return Err(error),
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            let Some(live) = &mut self.live else { continue };
            if live.status() == StatusCode::NO_CONTENT {
                return Ok(None);
            }
            match live.chunk().await {
                Ok(Some(bytes)) => self.buffer.extend_from_slice(&bytes),
                Ok(None) | Err(_) => {
                    self.disconnect();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The next event in the buffer.
    fn take(&mut self) -> Result<Option<Event>> {
        while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let block = String::from_utf8(block).context("events are UTF-8")?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            // Comments keep a connection alive, and say nothing.
            let Some(data) = field("data") else { continue };
            let id = field("id").map(str::to_owned);
            self.last_id = id.clone().or(self.last_id.take());
            let name = field("event").unwrap_or("message").to_owned();
            let data = serde_json::from_str(data).with_context(|| format!("an event's data: {data}"))?;
            return Ok(Some(Event { id, name, data, at: Instant::now() }));
        }
        Ok(None)
    }

    /// The first event that `find` finds something in.
    ///
    /// # Errors
    /// When it does not come within `patience`, or the stream ends before.
    pub async fn find<T>(&mut self, what: &str, patience: Duration, mut find: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let event = self.next(left).await.with_context(|| format!("waiting for {what}"))?;
            let event = event.with_context(|| format!("the stream ended before {what}"))?;
            if let Some(found) = find(&event) {
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_whole_however_they_are_cut() {
        let text = "retry: 1000\n\n: keep-alive\n\nid: 5.0.\nevent: output\ndata: {\"stream\":\"stdout\",\"offset\":0,\"base64\":\"/w==\"}\n\nevent: task\ndata: {}\n\n";
        let mut events = Events::new(Client::new("http://127.0.0.1:1").unwrap(), "/");
        let mut seen = Vec::new();
        for byte in text.bytes() {
            events.buffer.push(byte);
            seen.extend(events.take().unwrap());
        }
        assert_eq!(seen.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["output", "task"]);
        assert_eq!(seen[0].output().unwrap(), ("stdout", 0, vec![0xff]));
        assert_eq!(events.last_id.as_deref(), Some("5.0."));
    }
}
