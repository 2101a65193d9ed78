//! Sessions on an ssh connection without an ssh client: the protocol of its control socket (OpenSSH's PROTOCOL.mux).
//!
//! This leaves the cost of starting a client process out, as our own client leaves it out, and is the strictest comparison with ssh that there is.

use std::{
    fs::File,
    io::{IoSlice, PipeReader, Read as _, Write as _, pipe},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

const HELLO: u32 = 0x0000_0001;
const VERSION: u32 = 4;
const NEW_SESSION: u32 = 0x1000_0002;
const EXIT_MESSAGE: u32 = 0x8000_0004;
const SESSION_OPENED: u32 = 0x8000_0006;

/// The control socket. Each session needs a connection of its own to it, which is made ahead of time.
#[derive(Debug)]
pub struct Mux {
    path: std::path::PathBuf,
    ready: UnixStream,
}

impl Mux {
    /// Connects, and says hello.
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { path: path.to_owned(), ready: greet(path)? })
    }

    /// From before the request for a session to the first byte that its command prints.
    pub fn first_byte(&mut self, command: &str) -> anyhow::Result<Duration> {
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        let (mut output, write) = pipe()?;
        let since = Instant::now();
        let mut request = Vec::new();
        [NEW_SESSION, 1].into_iter().for_each(|number| put(&mut request, number));
        put_text(&mut request, ""); // reserved
        // No terminal, X11, agent or subsystem; no escape character.
        [0, 0, 0, 0, u32::MAX].into_iter().for_each(|number| put(&mut request, number));
        put_text(&mut request, ""); // the terminal's name
        put_text(&mut request, command);
        send(&mut self.ready, &request)?;
        for fd in [nothing.as_fd(), write.as_fd(), nothing.as_fd()] {
            pass(&self.ready, fd)?;
        }
        drop(write);
        let took = first(&mut output, since)?;
        self.end()?;
        self.ready = greet(&self.path)?;
        Ok(took)
    }

    fn end(&mut self) -> anyhow::Result<()> {
        loop {
            let message = receive(&mut self.ready)?;
            match message.split_first_chunk().map(|(kind, rest)| (u32::from_be_bytes(*kind), rest)) {
                Some((SESSION_OPENED, _)) => {}
                Some((EXIT_MESSAGE, rest)) => {
                    ensure!(rest.ends_with(&[0; 4]), "the command failed");
                    return Ok(());
                }
                other => bail!("ssh answered {other:?}"),
            }
        }
    }
}

fn first(output: &mut PipeReader, since: Instant) -> anyhow::Result<Duration> {
    let mut byte = [0; 1];
    output.read_exact(&mut byte).context("the command printed nothing")?;
    let took = since.elapsed();
    output.read_to_end(&mut Vec::new())?;
    Ok(took)
}

fn greet(path: &Path) -> anyhow::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    send(&mut stream, &[HELLO.to_be_bytes(), VERSION.to_be_bytes()].concat())?;
    let hello = receive(&mut stream)?;
    ensure!(
        hello.starts_with(&[HELLO.to_be_bytes(), VERSION.to_be_bytes()].concat()),
        "another version of ssh's control protocol: {hello:?}"
    );
    Ok(stream)
}

fn put(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(text.as_bytes());
}

fn send(stream: &mut UnixStream, message: &[u8]) -> anyhow::Result<()> {
    let mut packet = Vec::with_capacity(4 + message.len());
    put(&mut packet, u32::try_from(message.len())?);
    packet.extend_from_slice(message);
    Ok(stream.write_all(&packet)?)
}

fn receive(stream: &mut UnixStream) -> anyhow::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    ensure!(length <= 64 * 1024, "not ssh's control protocol");
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Hands a file over, beside one byte.
fn pass(stream: &UnixStream, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
    let files = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&files)), "no room for a file");
    sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}
