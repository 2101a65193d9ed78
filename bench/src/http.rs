//! An HTTP/1.1 client on a blocking socket: it costs next to nothing, so that what is measured is the hub.

use std::{
    io::{self, BufRead, BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// Nothing that is measured may be silent for longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A persistent connection to the hub.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
    /// Header lines that every request carries.
    headers: String,
}

/// An answer's head.
#[derive(Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// The cookies that were set, as a request would carry them.
    pub cookies: Vec<String>,
    length: Option<u64>,
    chunked: bool,
}

impl Client {
    /// Connects. `headers`: lines that every request carries, such as `Authorization: Bearer …`.
    pub fn connect(address: SocketAddr, headers: &[String]) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let headers = headers.iter().map(|line| format!("{line}\r\n")).collect::<String>();
        Ok(Self { stream: BufReader::with_capacity(64 * 1024, stream), headers: format!("Host: {address}\r\n{headers}") })
    }

    /// Sends a request, in one packet when it is small.
    pub fn send(&mut self, method: &str, path: &str, body: Option<&str>) -> io::Result<()> {
        let headers = &self.headers;
        let content = match body {
            Some(body) => format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
            None => "\r\n".to_owned(),
        };
        self.stream.get_mut().write_all(format!("{method} {path} HTTP/1.1\r\n{headers}{content}").as_bytes())
    }

    /// Reads the head of the answer; the body has to be read next.
    pub fn head(&mut self) -> anyhow::Result<Head> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("not an HTTP answer: {status_line:?}"))?;
        let mut head = Head { status, cookies: Vec::new(), length: None, chunked: false };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { return Ok(head) };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = Some(value.parse()?),
                "transfer-encoding" => head.chunked = value.eq_ignore_ascii_case("chunked"),
                "set-cookie" => head.cookies.extend(value.split(';').next().map(str::to_owned)),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the hub closed the connection");
        Ok(line.trim_end().to_owned())
    }

    /// Reads an answer whole.
    pub fn receive(&mut self) -> anyhow::Result<(Head, Vec<u8>)> {
        let head = self.head()?;
        let mut body = Vec::new();
        if head.chunked {
            Chunked::new(&mut self.stream).read_to_end(&mut body)?;
        } else {
            body.resize(usize::try_from(head.length.unwrap_or(0))?, 0);
            self.stream.read_exact(&mut body)?;
        }
        Ok((head, body))
    }

    /// Reads an answer that has to be good.
    pub fn good(&mut self) -> anyhow::Result<Value> {
        let (head, body) = self.receive()?;
        ensure!((200..300).contains(&head.status), "the hub answered {}: {}", head.status, String::from_utf8_lossy(&body));
        if body.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&body)?) }
    }

    /// One request and its answer, which has to be good.
    pub fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.send(method, path, body.map(Value::to_string).as_deref())?;
        self.good().with_context(|| format!("{method} {path}"))
    }

    /// Sends bytes, which have to be taken.
    pub fn put(&mut self, path: &str, body: &[u8]) -> anyhow::Result<()> {
        let head = format!("PUT {path} HTTP/1.1\r\n{}Content-Length: {}\r\n\r\n", self.headers, body.len());
        self.stream.get_mut().write_all(head.as_bytes())?;
        self.stream.get_mut().write_all(body)?;
        self.good().map(drop).with_context(|| format!("PUT {path}"))
    }

    /// Asks for a body that comes piece by piece, and leaves the connection to it.
    pub fn stream(mut self, path: &str) -> anyhow::Result<Chunked<BufReader<TcpStream>>> {
        self.send("GET", path, None)?;
        let head = self.head()?;
        if head.status != 200 || !head.chunked {
            bail!("GET {path} answered {}", head.status);
        }
        Ok(Chunked::new(self.stream))
    }

    /// Follows an event stream.
    pub fn events(self, path: &str) -> anyhow::Result<Events> {
        Ok(Events(BufReader::new(self.stream(path)?)))
    }
}

/// A body in chunks.
#[derive(Debug)]
pub struct Chunked<R> {
    inner: R,
    left: u64,
    /// A chunk was read, whose line break is still to come.
    behind: bool,
    ended: bool,
}

impl<R: BufRead> Chunked<R> {
    fn new(inner: R) -> Self {
        Self { inner, left: 0, behind: false, ended: false }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let mut line = String::new();
        if std::mem::take(&mut self.behind) {
            self.inner.read_line(&mut line)?;
            line.clear();
        }
        if self.inner.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = u64::from_str_radix(line.trim_end(), 16).map_err(|_| io::Error::other(format!("not a chunk: {line:?}")))?;
        self.behind = true;
        if self.left == 0 {
            self.ended = true;
            self.inner.read_line(&mut line)?;
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            self.next_chunk()?;
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Server-Sent Events.
#[derive(Debug)]
pub struct Events(BufReader<Chunked<BufReader<TcpStream>>>);

/// One event.
#[derive(Debug)]
pub struct Event {
    /// Its kind.
    pub name: String,
    /// Its data, mostly JSON.
    pub data: String,
    /// When all of it was here.
    pub at: Instant,
}

impl Events {
    /// Waits for the next event.
    pub fn next(&mut self) -> anyhow::Result<Event> {
        let (mut name, mut data) = (String::new(), String::new());
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.0.read_line(&mut line).context("no event came")? > 0, "the hub ended the event stream");
            let text = line.trim_end_matches('\n');
            if let Some(value) = text.strip_prefix("event: ") {
                value.clone_into(&mut name);
            } else if let Some(value) = text.strip_prefix("data: ") {
                data.push_str(value);
            } else if text.is_empty() && !(name.is_empty() && data.is_empty()) {
                return Ok(Event { name, data, at: Instant::now() });
            }
        }
    }

    /// Waits for an event that fits.
    pub fn find(&mut self, mut fits: impl FnMut(&Event) -> bool) -> anyhow::Result<Event> {
        loop {
            let event = self.next()?;
            if fits(&event) {
                return Ok(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together_and_a_cut_is_noticed() {
        let read = |text: &str| {
            let mut body = String::new();
            Chunked::new(text.as_bytes()).read_to_string(&mut body).map(|_| body)
        };
        assert_eq!(read("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").unwrap(), "abcde");
        assert!(read("3\r\nab").is_err());
        assert!(read("3\r\nabc\r\n").is_err());
    }
}
