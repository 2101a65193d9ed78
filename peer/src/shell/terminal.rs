//! A task's terminal: a pseudo-terminal of which the program has one end, as its controlling terminal, and the peer the other.
//!
//! What the program prints, and what the terminal echoes, is one stream. A terminal whose last program has closed it ends like a pipe.
//! [`Source`] and [`Sink`] are what a task's streams are read from and written to: a pipe, or a terminal.

use std::{ffi::CString, io, os::fd::OwnedFd, sync::Arc};

use cortex_wire::schema;
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};
use tokio::{
    io::{AsyncWriteExt as _, Interest, unix::AsyncFd},
    net::unix::pipe,
};

/// What Control-D types: the end of the input, to a program that reads lines.
const END_OF_INPUT: [u8; 1] = [4];

/// The peer's end.
#[derive(Debug)]
pub struct Terminal {
    master: AsyncFd<OwnedFd>,
    slave: CString,
}

impl Terminal {
    /// A new terminal. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// What the operating system says, for example that there are no more terminals.
    pub fn open(size: &schema::Terminal) -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ptsname(&master, Vec::new())?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        // Erasing takes a whole character. Where that cannot be asked for, it takes a byte.
        if let Ok(mut modes) = tcgetattr(&master) {
            modes.input_modes |= InputModes::IUTF8;
            let _ = tcsetattr(&master, OptionalActions::Now, &modes);
        }
        let this = Self { master: watched(master)?, slave };
        this.resize(size)?;
        Ok(this)
    }

    /// The program's end, to be opened by it.
    pub fn slave(&self) -> &CString {
        &self.slave
    }

    /// Changes the size; the programs in the foreground are told by SIGWINCH.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn resize(&self, size: &schema::Terminal) -> io::Result<()> {
        let cells = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
        let size = Winsize { ws_row: cells(size.rows), ws_col: cells(size.columns), ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.master.get_ref(), size)?)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.master.try_io(Interest::READABLE, |master| match rustix::io::read(master, &mut *buffer) {
            // Linux: nobody has it open any more.
            Err(Errno::IO) => Ok(0),
            result => Ok(result?),
        })
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = self.master.async_io(Interest::WRITABLE, |master| Ok(rustix::io::write(master, data)?)).await?;
            data = &data[written..];
        }
        Ok(())
    }
}

#[expect(deprecated, reason = "sound for a descriptor that is owned; its unsafe successor is for types that may give out another one")]
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

/// Where output comes from.
#[derive(Debug)]
pub enum Source {
    /// A pipe.
    Pipe(pipe::Receiver),
    /// A terminal.
    Terminal(Arc<Terminal>),
}

impl Source {
    /// Waits until there is something to read.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Terminal(terminal) => terminal.master.readable().await.map(drop),
        }
    }

    /// Reads what is there; 0 bytes: nothing will come any more.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, and what the operating system says.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Terminal(terminal) => terminal.try_read(buffer),
        }
    }

    /// Lets a busy pipe hold more, where that can be asked for.
    pub fn widen(&self, bytes: usize) {
        #[cfg(target_os = "linux")]
        if let Self::Pipe(pipe) = self {
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, bytes);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = bytes;
    }
}

/// Where input goes.
#[derive(Debug)]
pub enum Sink {
    /// A pipe.
    Pipe(pipe::Sender),
    /// A terminal.
    Terminal(Arc<Terminal>),
}

impl Sink {
    /// Writes all of it, and waits for the program to take it.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(data).await,
            Self::Terminal(terminal) => terminal.write_all(data).await,
        }
    }

    /// The end of the input.
    pub async fn end(self) {
        if let Self::Terminal(terminal) = self {
            let _ = terminal.write_all(&END_OF_INPUT).await;
        }
    }

    /// Resolves when nobody holds the reading side any more. Of a terminal that is told by its output.
    pub async fn closed(&self) {
        let Self::Pipe(pipe) = self else { return std::future::pending().await };
        if let Ok(ready) = pipe.ready(Interest::ERROR).await
            && !ready.is_error()
            && !ready.is_write_closed()
        {
            std::future::pending::<()>().await;
        }
    }
}
