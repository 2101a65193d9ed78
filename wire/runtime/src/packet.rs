//! Packets on their way between two tasks: batches, a queue of them, and how they lie in the messages of a stream.
//!
//! A message of a stream is a batch of packets, each after its length (16 bits, big endian). Queues are bounded in bytes; what finds no room is
//! dropped, as a socket would, and QUIC sends it again.

use std::{
    collections::VecDeque,
    io::IoSliceMut,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::Instant,
};

use cortex_wire::{limits, route::CID_LEN};
use quinn::udp::{EcnCodepoint, RecvMeta};
use tokio::sync::Notify;

use crate::metrics::Histogram;

/// No packet of ours is shorter: a first byte, and a connection id.
const LEAST: usize = 1 + CID_LEN;

/// Packets of one length, the last of which may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The packets, one behind the other.
    pub data: Vec<u8>,
    /// The length of each.
    pub stride: usize,
    /// What the network said of congestion.
    pub ecn: Option<EcnCodepoint>,
    /// Where they came from.
    pub from: SocketAddr,
}

/// No room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Full;

/// A message of a stream that is not a batch of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no batch of packets")]
pub struct Malformed;

/// Packets that wait for a QUIC endpoint.
#[derive(Debug)]
pub struct Inbox {
    most_bytes: usize,
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    bytes: usize,
    waker: Option<Waker>,
}

impl Inbox {
    /// An empty queue that holds this many bytes.
    pub fn new(most_bytes: usize) -> Self {
        Self { most_bytes, state: Mutex::default() }
    }

    /// Queues a batch, and wakes the endpoint.
    ///
    /// # Errors
    /// [`Full`]: the batch is dropped.
    pub fn push(&self, batch: Batch) -> Result<(), Full> {
        let mut waiting = lock(&self.state);
        if waiting.bytes + batch.data.len() > self.most_bytes {
            return Err(Full);
        }
        waiting.bytes += batch.data.len();
        waiting.batches.push_back(batch);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Fills buffers as a socket does and says how many; 0: nothing is there, and the task is woken when there is.
    pub fn poll(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut waiting = lock(&self.state);
        let mut filled = 0;
        while filled < bufs.len().min(meta.len()) {
            let Some(mut batch) = waiting.batches.pop_front() else { break };
            waiting.bytes -= batch.data.len();
            let buffer = &mut bufs[filled];
            let fits = buffer.len() / batch.stride.max(1) * batch.stride;
            let len = if batch.data.len() <= buffer.len() { batch.data.len() } else { fits };
            buffer[..len].copy_from_slice(&batch.data[..len]);
            meta[filled] = RecvMeta { addr: batch.from, len, stride: batch.stride, ecn: batch.ecn, ..RecvMeta::default() };
            // A packet that no buffer holds is none of ours and goes.
            if len > 0 {
                filled += 1;
                if len < batch.data.len() {
                    batch.data.drain(..len);
                    waiting.bytes += batch.data.len();
                    waiting.batches.push_front(batch);
                }
            }
        }
        if filled == 0 {
            waiting.waker = Some(cx.waker().clone());
        }
        filled
    }
}

/// Messages that wait for a stream to take them.
#[derive(Debug)]
pub struct Outbox {
    most_bytes: usize,
    state: Mutex<Leaving>,
    more: Notify,
    /// How long messages waited.
    waits: Arc<Histogram>,
}

#[derive(Debug, Default)]
struct Leaving {
    /// Each since its first packet came.
    messages: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    closed: bool,
}

impl Outbox {
    /// An empty queue that holds this many bytes.
    pub fn new(most_bytes: usize) -> Self {
        Self::timed(most_bytes, Arc::default())
    }

    /// And that notes how long each message waited.
    pub fn timed(most_bytes: usize, waits: Arc<Histogram>) -> Self {
        Self { most_bytes, state: Mutex::default(), more: Notify::new(), waits }
    }

    /// Queues packets of `stride` bytes each, in as few messages as there can be.
    ///
    /// # Errors
    /// [`Full`]: the packets are dropped.
    pub fn push(&self, packets: &[u8], stride: usize) -> Result<(), Full> {
        let mut leaving = lock(&self.state);
        let bytes = packets.len() + 2 * packets.len().div_ceil(stride.max(1));
        if leaving.closed || leaving.bytes + bytes > self.most_bytes {
            return Err(Full);
        }
        for packet in packets.chunks(stride.max(1)) {
            let len = u16::try_from(packet.len()).map_err(|_| Full)?;
            let fits = leaving.messages.back().is_some_and(|(_, last)| last.len() + 2 + packet.len() <= limits::STREAM_MESSAGE_BYTES);
            if !fits {
                leaving.messages.push_back((Instant::now(), Vec::with_capacity(bytes.min(limits::STREAM_MESSAGE_BYTES))));
            }
            if let Some((_, last)) = leaving.messages.back_mut() {
                last.extend_from_slice(&len.to_be_bytes());
                last.extend_from_slice(packet);
            }
            leaving.bytes += 2 + packet.len();
        }
        drop(leaving);
        self.more.notify_one();
        Ok(())
    }

    /// The next message; `None` when the queue is closed and empty. For one task.
    pub async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut leaving = lock(&self.state);
                if let Some((since, message)) = leaving.messages.pop_front() {
                    leaving.bytes -= message.len();
                    self.waits.note(since.elapsed());
                    return Some(message);
                }
                if leaving.closed {
                    return None;
                }
            }
            self.more.notified().await;
        }
    }

    /// Takes nothing more; what is there still leaves.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.more.notify_one();
    }
}

/// The packets of a message, neighbours of one length as one batch.
///
/// # Errors
/// [`Malformed`]: nothing of the message counts.
pub fn batches(message: &[u8], from: SocketAddr) -> Result<Vec<Batch>, Malformed> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut rest = message;
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len));
        let packet = after.get(..len).filter(|_| (LEAST..=limits::STREAM_PACKET_BYTES).contains(&len)).ok_or(Malformed)?;
        match batches.last_mut() {
            // A shorter one ends a batch.
            Some(last) if len <= last.stride && last.data.len().is_multiple_of(last.stride) => last.data.extend_from_slice(packet),
            _ => batches.push(Batch { data: packet.to_vec(), stride: len, ecn: None, from }),
        }
        rest = &after[len..];
    }
    if rest.is_empty() { Ok(batches) } else { Err(Malformed) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FROM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    fn packets() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let packet = (LEAST..200usize, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]);
        proptest::collection::vec(packet, 0..60)
    }

    fn taken_apart(batches: &[Batch]) -> Vec<Vec<u8>> {
        batches.iter().flat_map(|batch| batch.data.chunks(batch.stride).map(<[u8]>::to_vec)).collect()
    }

    fn poll_all(inbox: &Inbox, buffer_bytes: usize) -> Vec<Vec<u8>> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut out = Vec::new();
        loop {
            let mut buffers = [vec![0; buffer_bytes], vec![0; buffer_bytes]];
            let mut meta = [RecvMeta::default(); 2];
            let [a, b] = &mut buffers;
            let filled = inbox.poll(&mut cx, &mut [IoSliceMut::new(a), IoSliceMut::new(b)], &mut meta);
            if filled == 0 {
                return out;
            }
            for (buffer, meta) in buffers.iter().zip(meta).take(filled) {
                out.extend(buffer[..meta.len].chunks(meta.stride).map(<[u8]>::to_vec));
            }
        }
    }

    proptest! {
        #[test]
        fn what_goes_into_messages_comes_out_of_them(packets in packets()) {
            let outbox = Outbox::new(1 << 20);
            packets.iter().for_each(|packet| outbox.push(packet, packet.len()).unwrap());
            outbox.close();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut arrived = Vec::new();
            while let Some(message) = runtime.block_on(outbox.next()) {
                prop_assert!(message.len() <= limits::STREAM_MESSAGE_BYTES);
                arrived.extend(taken_apart(&batches(&message, FROM).unwrap()));
            }
            prop_assert_eq!(arrived, packets);
        }

        #[test]
        fn what_is_queued_is_received_whole_whatever_the_size_of_buffers(packets in packets(), buffer_bytes in 200..5_000usize) {
            let inbox = Inbox::new(1 << 20);
            let message: Vec<u8> = packets.iter().flat_map(|packet| [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], packet].concat()).collect();
            batches(&message, FROM).unwrap().into_iter().for_each(|batch| inbox.push(batch).unwrap());
            prop_assert_eq!(poll_all(&inbox, buffer_bytes), packets);
        }

        #[test]
        fn any_bytes_are_a_batch_or_refused(message in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(batches) = batches(&message, FROM) {
                let bytes: usize = taken_apart(&batches).iter().map(|packet| packet.len() + 2).sum();
                prop_assert_eq!(bytes, message.len());
            }
        }
    }

    #[test]
    fn a_full_queue_drops_and_forgets_nothing_that_it_took() {
        let (inbox, outbox) = (Inbox::new(100), Outbox::new(100));
        let batch = Batch { data: vec![7; 60], stride: 30, ecn: None, from: FROM };
        assert_eq!((inbox.push(batch.clone()), inbox.push(batch.clone())), (Ok(()), Err(Full)));
        assert_eq!((outbox.push(&batch.data, 30), outbox.push(&batch.data, 30)), (Ok(()), Err(Full)));
        assert_eq!(poll_all(&inbox, 1_000).len(), 2);
        assert_eq!(inbox.push(batch), Ok(()), "there is room again");
    }

    #[test]
    fn a_packet_larger_than_any_buffer_is_dropped() {
        let inbox = Inbox::new(1_000);
        inbox.push(Batch { data: vec![7; 600], stride: 300, ecn: None, from: FROM }).unwrap();
        inbox.push(Batch { data: vec![8; 20], stride: 20, ecn: None, from: FROM }).unwrap();
        assert_eq!(poll_all(&inbox, 100), [vec![8; 20]]);
    }
}
