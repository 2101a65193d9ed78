//! Frames on a byte stream: [`cortex_wire::frame`] over anything that reads and writes.

use std::io;

use bytes::{Bytes, BytesMut};
use cortex_wire::frame::{self, FrameError};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Why a stream of frames ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The other side sent something that is not the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended inside a frame, or where a frame had to come.
    #[error("the stream ended where a frame was expected")]
    Truncated,
    /// The connection is gone.
    #[error("the connection ended: {0}")]
    Io(#[from] io::Error),
}

/// Reads frames of at most `limit` bytes.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames from `inner`.
    pub fn new(inner: R, limit: usize) -> Self {
        Self { inner, buffer: BytesMut::new(), limit }
    }

    /// The same stream with another limit, once it is known what the stream is for.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// The next frame, or `None` at the end of the stream. Safe to cancel: nothing that was read is lost.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, StreamError> {
        loop {
            if let Some(message) = frame::decode(&mut self.buffer, self.limit)? {
                return Ok(Some(message));
            }
            if self.inner.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(StreamError::Truncated) };
            }
        }
    }

    /// Gives back the memory of earlier frames when no part of another has come: for streams that are silent most of the time.
    pub fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// The next frame, which has to come.
    ///
    /// # Errors
    /// [`StreamError`]; [`StreamError::Truncated`] at the end of the stream.
    pub async fn expect<M: Message + Default>(&mut self) -> Result<M, StreamError> {
        self.next().await?.ok_or(StreamError::Truncated)
    }
}

/// Writes frames.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Frames to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Sends one frame. Waits while the other side does not read.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub async fn send<M: Message>(&mut self, message: &M) -> Result<(), StreamError> {
        self.send_encoded(frame::encode(message)).await
    }

    /// Sends a frame that is encoded already.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub async fn send_encoded(&mut self, frame: Bytes) -> Result<(), StreamError> {
        self.inner.write_all(&frame).await?;
        Ok(())
    }

    /// The stream itself.
    pub fn inner_mut(&mut self) -> &mut W {
        &mut self.inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cortex_wire::schema::{ToRelay, to_relay::Frame};

    #[tokio::test]
    async fn frames_cross_a_narrow_pipe() {
        let (a, b) = tokio::io::duplex(3);
        let mut writer = FrameWriter::new(a);
        let mut reader = FrameReader::new(b, 64);
        let sender = tokio::spawn(async move {
            for i in 0..3 {
                writer.send(&ToRelay { frame: Some(Frame::Ping(i)) }).await.unwrap();
            }
        });
        for i in 0..3 {
            let frame: ToRelay = reader.expect().await.unwrap();
            assert_eq!(frame.frame, Some(Frame::Ping(i)));
        }
        sender.await.unwrap();
        assert!(reader.next::<ToRelay>().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_says_so() {
        let mut reader = FrameReader::new(&[0u8, 0, 0, 9, 1][..], 64);
        assert!(matches!(reader.next::<ToRelay>().await, Err(StreamError::Truncated)));
    }
}
