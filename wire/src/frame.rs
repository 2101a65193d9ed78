//! Messages on a stream: a big-endian 32-bit length, then that many bytes of protobuf.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Bytes of the length in front of each frame.
pub const HEADER_BYTES: usize = 4;

/// Why a stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length in front is above the stream's limit.
    #[error("a frame of {got} bytes, where at most {limit} are allowed")]
    TooLarge {
        /// What was announced.
        got: usize,
        /// What the stream allows.
        limit: usize,
    },
    /// The bytes are not the message they should be.
    #[error("a frame that does not decode")]
    Malformed,
}

/// One frame, ready to send.
pub fn encode<M: Message>(message: &M) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEADER_BYTES + len);
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // A BytesMut grows: encoding cannot run out of room.
    let _ = message.encode(&mut out);
    out.freeze()
}

/// Takes the next whole frame from `buffer`; `None` until it is all there.
///
/// # Errors
/// [`FrameError`]. The stream is of no use after one.
pub fn decode<M: Message + Default>(buffer: &mut BytesMut, limit: usize) -> Result<Option<M>, FrameError> {
    let Some(header) = buffer.get(..HEADER_BYTES) else { return Ok(None) };
    let len = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
    if len > limit {
        return Err(FrameError::TooLarge { got: len, limit });
    }
    if buffer.len() < HEADER_BYTES + len {
        buffer.reserve(HEADER_BYTES + len - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    let body = buffer.split_to(len).freeze();
    M::decode(body).map(Some).map_err(|_| FrameError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{ToRelay, to_relay::Frame};
    use proptest::prelude::*;

    #[test]
    fn a_frame_arrives_whole_however_it_is_cut() {
        let frame = ToRelay { frame: Some(Frame::Ping(77)) };
        let bytes = encode(&frame);
        let mut buffer = BytesMut::new();
        for (i, byte) in bytes.iter().enumerate() {
            buffer.put_u8(*byte);
            let read = decode::<ToRelay>(&mut buffer, 64);
            assert_eq!(read, Ok((i + 1 == bytes.len()).then(|| frame.clone())));
        }
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_before_it_is_held() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 1][..]);
        assert_eq!(decode::<ToRelay>(&mut buffer, 64), Err(FrameError::TooLarge { got: 0xffff_ffff, limit: 64 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode::<crate::schema::FromTask>(&mut buffer, 128) {}
        }
    }
}
