//! Sealed chunks over streams of a link.
//!
//! Whoever answers requests for chunks is a [`ChunkSource`]: a hub's store, a hub at the other end of a link ([`ChunkClient`]), a relay with its cache. A request is one stream: a
//! [`ChunkOpen`] frame, then chunks as frames of their own (4 bytes length, 32 bytes sid, the sealed bytes) one way or the other. [`serve`] answers a stream from a source.
//!
//! Chunks come in the order that they were asked for, and are checked against their sids before anybody sees them ([`Sealed`]). Whoever does not read is held back by QUIC, alone; one
//! that does not read for [`STALLED`] is cut off. A request that cannot be answered is reset with a [`ChunkError`]'s number.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use cortex_wire::{
    frame,
    id::{NodeId, SessionId},
    limits,
    mirror::seal::{Sealed, Sid},
    schema::{ChunkOpen, ChunksStored, SidList, chunk_open::What},
};
use prost::Message;
use quinn::{Connection, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
use tokio::{io::AsyncReadExt as _, sync::mpsc, time::timeout};

use crate::quic;

/// A boxed future, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A reader or writer that makes no progress for so long is given up. Whoever is gone is noticed by QUIC, sooner.
pub const STALLED: Duration = Duration::from_secs(120);
/// How long it may take until a finished upload has crossed a slow line and is durable.
const ANSWER: Duration = Duration::from_secs(600);
/// Chunks between a stream and its source. They are at most 257 KiB each, 64 KiB on average.
const QUEUE: usize = 8;
const SID_BYTES: usize = 32;

/// Why chunks were not fetched or stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The node is not attached to the session, or its ticket does not say so (yet).
    #[error("the node is not attached to this session")]
    NotAttached,
    /// The relay has no link to the hub.
    #[error("the hub is not connected to the relay right now; it is tried again")]
    HubOffline,
    /// The hub's disk is full.
    #[error("no space is left on the hub's disk; its operator has to make room")]
    NoSpace,
    /// The hub or relay could not read or write.
    #[error("the hub cannot read or write its chunks; its log says why")]
    Failed,
    /// Bytes that are not the chunk that they were sent as.
    #[error("a chunk whose bytes are not what its name says")]
    BadChunk,
    /// A request that is not the protocol.
    #[error("a request for chunks that is not the protocol")]
    Protocol,
    /// The other side made no progress.
    #[error("no progress for too long")]
    TooSlow,
    /// The connection is gone, or the other side dropped the stream.
    #[error("the connection ended before all chunks had passed")]
    Lost,
}

impl ChunkError {
    const ALL: [Self; 8] =
        [Self::NotAttached, Self::HubOffline, Self::NoSpace, Self::Failed, Self::BadChunk, Self::Protocol, Self::TooSlow, Self::Lost];

    /// Stable text for logs and the API.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotAttached => "not_attached",
            Self::HubOffline => "hub_offline",
            Self::NoSpace => "no_space",
            Self::Failed => "failed",
            Self::BadChunk => "bad_chunk",
            Self::Protocol => "protocol_error",
            Self::TooSlow => "too_slow",
            Self::Lost => "lost",
        }
    }

    /// The code that a stream is reset with.
    fn number(self) -> VarInt {
        VarInt::from_u32(self as u32 + 1)
    }

    fn from_number(number: VarInt) -> Self {
        Self::ALL.into_iter().find(|error| error.number() == number).unwrap_or(Self::Lost)
    }

    fn from_code(code: &str) -> Self {
        Self::ALL.into_iter().find(|error| error.code() == code).unwrap_or(Self::Failed)
    }
}

impl From<ReadError> for ChunkError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(number) => Self::from_number(number),
            _ => Self::Lost,
        }
    }
}

impl From<ReadExactError> for ChunkError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Protocol,
            ReadExactError::ReadError(error) => error.into(),
        }
    }
}

impl From<WriteError> for ChunkError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(number) => Self::from_number(number),
            _ => Self::Lost,
        }
    }
}

/// Whose chunks, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The session.
    pub session: SessionId,
    /// The node; `None` where the link says it.
    pub node: Option<NodeId>,
}

/// An answer to one sid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What was asked for.
    pub sid: Sid,
    /// `None`: the hub does not hold it.
    pub chunk: Option<Sealed>,
}

/// Whoever answers requests for chunks. Dropping a future gives the request up.
pub trait ChunkSource: Send + Sync + 'static {
    /// Sends the chunks in the order of `sids`. Returns early when nobody receives.
    fn fetch(&self, asker: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>>;
    /// Stores what comes until the channel closes, and says how many chunks came. All of them are durable then; after an error, nothing is promised.
    fn store(&self, asker: Asker, chunks: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>>;
    /// Those of `sids` that the hub does not hold, in their order.
    fn missing(&self, asker: Asker, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>>;
}

/// Asks the other end of a link. Cheap to clone; of no use when the link has ended (every request is then [`ChunkError::Lost`]).
#[derive(Debug, Clone)]
pub struct ChunkClient {
    connection: Connection,
}

impl ChunkClient {
    /// Over this link.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Fetches any number of chunks, in their order. After an error nothing more comes. Dropping the receiver ends the transfer.
    pub fn fetch_all(&self, session: SessionId, sids: Vec<Sid>) -> mpsc::Receiver<Result<Found, ChunkError>> {
        let (tell, told) = mpsc::channel(QUEUE);
        let client = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                outcome = client.fetch_each(Asker { session, node: None }, &sids, &tell) => {
                    if let Err(error) = outcome {
                        let _ = tell.send(Err(error)).await;
                    }
                }
                // At once, also while nothing arrives.
                () = tell.closed() => {}
            }
        });
        told
    }

    async fn fetch_each(&self, asker: Asker, sids: &[Sid], tell: &mpsc::Sender<Result<Found, ChunkError>>) -> Result<(), ChunkError> {
        for request in sids.chunks(limits::CHUNK_REQUEST) {
            let mut recv = self.ask(asker, What::Fetch(list(request))).await?;
            for sid in request {
                let found = read_answer(&mut recv, *sid).await?;
                if tell.send(Ok(found)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Stores chunks, and returns how many once the hub has made all of them durable. Dropping the sender is the end of the upload; several uploads may run side by side.
    ///
    /// # Errors
    /// [`ChunkError`]. Some of the chunks may be stored nevertheless: [`ChunkClient::missing`] says which are not.
    pub async fn store(&self, session: SessionId, chunks: mpsc::Receiver<Sealed>) -> Result<u64, ChunkError> {
        ChunkSource::store(self, Asker { session, node: None }, chunks).await
    }

    /// Stores these chunks.
    ///
    /// # Errors
    /// As [`ChunkClient::store`].
    pub async fn store_all(&self, session: SessionId, chunks: Vec<Sealed>) -> Result<u64, ChunkError> {
        let (send, receive) = mpsc::channel(QUEUE);
        let feed = async move {
            for chunk in chunks {
                if send.send(chunk).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(self.store(session, receive), feed).0
    }

    /// Those of any number of `sids` that the hub does not hold, in their order.
    ///
    /// # Errors
    /// [`ChunkError`].
    pub async fn missing(&self, session: SessionId, sids: &[Sid]) -> Result<Vec<Sid>, ChunkError> {
        let mut missing = Vec::new();
        for request in sids.chunks(limits::CHUNK_REQUEST) {
            missing.extend(ChunkSource::missing(self, Asker { session, node: None }, request.to_vec()).await?);
        }
        Ok(missing)
    }

    async fn open(&self, asker: Asker, what: What) -> Result<(SendStream, RecvStream), ChunkError> {
        let (mut send, recv) = self.connection.open_bi().await.map_err(|_| ChunkError::Lost)?;
        // Pings and tickets go first.
        let _ = send.set_priority(-1);
        let open = ChunkOpen {
            session_id: Bytes::copy_from_slice(asker.session.as_bytes()),
            node_key: asker.node.map(|node| node.key().to_bytes()).unwrap_or_default(),
            what: Some(what),
        };
        send.write_chunk(frame::encode(&open)).await?;
        Ok((send, recv))
    }

    /// Opens a request that is all said in its first frame.
    async fn ask(&self, asker: Asker, what: What) -> Result<RecvStream, ChunkError> {
        let (mut send, recv) = self.open(asker, what).await?;
        let _ = send.finish();
        Ok(recv)
    }
}

impl ChunkSource for ChunkClient {
    fn fetch(&self, asker: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>> {
        Box::pin(async move {
            let mut recv = self.ask(asker, What::Fetch(list(&sids))).await?;
            for sid in sids {
                let answer = read_answer(&mut recv, sid).await?;
                if found.send(answer).await.is_err() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn store(&self, asker: Asker, mut chunks: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>> {
        Box::pin(async move {
            let (mut send, mut recv) = self.open(asker, What::Store(true)).await?;
            let upload = async {
                while let Some(chunk) = chunks.recv().await {
                    match write_chunk(&mut send, chunk.sid(), Some(&chunk)).await {
                        Ok(()) => {}
                        // The answer says why nobody reads on.
                        Err(WriteError::Stopped(_)) => return Ok(()),
                        Err(error) => return Err(error.into()),
                    }
                }
                let _ = send.finish();
                Ok::<_, ChunkError>(())
            };
            let answer = read_message::<ChunksStored>(&mut recv);
            tokio::pin!(answer);
            let stored = tokio::select! {
                // Before the upload is done it can only be a refusal.
                stored = &mut answer => stored?,
                uploaded = upload => {
                    uploaded?;
                    timeout(ANSWER, answer).await.map_err(|_| ChunkError::TooSlow)??
                }
            };
            if stored.code.is_empty() { Ok(stored.chunks) } else { Err(ChunkError::from_code(&stored.code)) }
        })
    }

    fn missing(&self, asker: Asker, sids: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>> {
        Box::pin(async move {
            let mut recv = self.ask(asker, What::Missing(list(&sids))).await?;
            let answer = timeout(ANSWER, read_message::<SidList>(&mut recv)).await.map_err(|_| ChunkError::TooSlow)??;
            unlist(&answer)
        })
    }
}

/// Answers every stream that the other side opens on `connection`, until it ends. What a node does not take costs little: a chunk or two for each stream, and what its line carries. As many at a time as QUIC was told to allow ([`crate::quic::widen`]). `node` is who asks; `None`: the
/// other side is a relay and says for whom it asks.
pub async fn serve_all(connection: Connection, source: Arc<dyn ChunkSource>, node: Option<NodeId>) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        serve_stream(&connection, &source, node, send, recv);
    }
}

/// Answers one of these streams, in a task of its own.
pub fn serve_stream(connection: &Connection, source: &Arc<dyn ChunkSource>, node: Option<NodeId>, send: SendStream, recv: RecvStream) {
    let (source, connection) = (source.clone(), connection.clone());
    tokio::spawn(async move {
        let link = node.map(|node| (node, &connection));
        if let Err(error) = serve(source.as_ref(), link, send, recv).await {
            tracing::debug!(code = error.code(), "a request for chunks was not answered");
        }
    });
}

/// Answers one stream. `link`: the node at the other end, and its link.
///
/// # Errors
/// What the other side was told, or why it could not be told.
async fn serve(
    source: &dyn ChunkSource,
    link: Option<(NodeId, &Connection)>,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), ChunkError> {
    let _ = send.set_priority(-1);
    let outcome = answer(source, link, &mut send, &mut recv).await;
    match outcome {
        Ok(()) => {
            let _ = send.finish();
        }
        Err(error) => {
            let _ = send.reset(error.number());
            let _ = recv.stop(error.number());
        }
    }
    outcome
}

async fn answer(
    source: &dyn ChunkSource,
    link: Option<(NodeId, &Connection)>,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), ChunkError> {
    let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS);
    let open: ChunkOpen = timeout(patience, read_message(recv)).await.map_err(|_| ChunkError::TooSlow)??;
    let session = SessionId::from_slice(&open.session_id).map_err(|_| ChunkError::Protocol)?;
    let node = match link {
        Some((node, _)) => node,
        None => NodeId::from_slice(&open.node_key).map_err(|_| ChunkError::Protocol)?,
    };
    let asker = Asker { session, node: Some(node) };
    match open.what.ok_or(ChunkError::Protocol)? {
        What::Fetch(sids) => answer_fetch(source, asker, unlist(&sids)?, send, link.map(|(_, connection)| connection)).await,
        What::Store(_) => answer_store(source, asker, send, recv).await,
        What::Missing(sids) => {
            let missing = source.missing(asker, unlist(&sids)?).await?;
            Ok(send.write_chunk(frame::encode(&list(&missing))).await?)
        }
    }
}

async fn answer_fetch(
    source: &dyn ChunkSource,
    asker: Asker,
    sids: Vec<Sid>,
    send: &mut SendStream,
    client: Option<&Connection>,
) -> Result<(), ChunkError> {
    let (tell, mut told) = mpsc::channel::<Found>(if client.is_some() { 1 } else { QUEUE });
    let write = async {
        while let Some(found) = told.recv().await {
            client.map(quic::follow_line);
            timeout(STALLED, write_chunk(send, found.sid, found.chunk.as_ref())).await.map_err(|_| ChunkError::TooSlow)??;
        }
        Ok(())
    };
    tokio::try_join!(source.fetch(asker, sids, tell), write).map(|_| ())
}

/// A refusal is an answer too: it must not be overtaken by a reset.
async fn answer_store(source: &dyn ChunkSource, asker: Asker, send: &mut SendStream, recv: &mut RecvStream) -> Result<(), ChunkError> {
    let (tell, told) = mpsc::channel(QUEUE);
    let read = async {
        let tell = tell;
        while let Some((sid, bytes)) = timeout(STALLED, read_chunk(recv)).await.map_err(|_| ChunkError::TooSlow)?? {
            let sealed = Sealed::check(sid, bytes).ok_or(ChunkError::BadChunk)?;
            if tell.send(sealed).await.is_err() {
                // The source has given up, and says why.
                break;
            }
        }
        Ok(())
    };
    let stored = match tokio::try_join!(source.store(asker, told), read) {
        Ok((chunks, ())) => ChunksStored { chunks, ..ChunksStored::default() },
        Err(error) => {
            tracing::debug!(code = error.code(), session = %asker.session, "an upload of chunks was refused");
            let _ = recv.stop(error.number());
            ChunksStored { chunks: 0, code: error.code().into(), message: error.to_string() }
        }
    };
    Ok(send.write_chunk(frame::encode(&stored)).await?)
}

fn list(sids: &[Sid]) -> SidList {
    SidList { sids: sids.iter().flat_map(|sid| sid.0).collect::<Vec<u8>>().into() }
}

fn unlist(list: &SidList) -> Result<Vec<Sid>, ChunkError> {
    let (sids, rest) = list.sids.as_chunks::<SID_BYTES>();
    if rest.is_empty() && sids.len() <= limits::CHUNK_REQUEST {
        Ok(sids.iter().map(|sid| Sid(*sid)).collect())
    } else {
        Err(ChunkError::Protocol)
    }
}

/// Writes a chunk without copying it; one that is not held has length 0.
async fn write_chunk(send: &mut SendStream, sid: Sid, chunk: Option<&Sealed>) -> Result<(), WriteError> {
    let bytes = chunk.map(|chunk| chunk.bytes().clone()).unwrap_or_default();
    let mut header = BytesMut::with_capacity(frame::HEADER_BYTES + SID_BYTES);
    header.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    header.extend_from_slice(&sid.0);
    send.write_all_chunks(&mut [header.freeze(), bytes]).await
}

/// The next chunk as it is on the stream, unchecked; `None` at the end.
async fn read_chunk(recv: &mut RecvStream) -> Result<Option<(Sid, Bytes)>, ChunkError> {
    let mut header = [0; frame::HEADER_BYTES + SID_BYTES];
    match recv.read_exact(&mut header).await {
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        outcome => outcome?,
    }
    let (length, sid) = header.split_first_chunk().ok_or(ChunkError::Protocol)?;
    let sid = Sid(sid.try_into().map_err(|_| ChunkError::Protocol)?);
    Ok(Some((sid, read_bytes(recv, u32::from_be_bytes(*length) as usize, limits::SEALED_CHUNK_BYTES).await?)))
}

/// The answer to `sid`, which has to come next.
async fn read_answer(recv: &mut RecvStream, sid: Sid) -> Result<Found, ChunkError> {
    let (named, bytes) = timeout(STALLED, read_chunk(recv)).await.map_err(|_| ChunkError::TooSlow)??.ok_or(ChunkError::Protocol)?;
    if named != sid {
        return Err(ChunkError::Protocol);
    }
    let chunk = if bytes.is_empty() { None } else { Some(Sealed::check(sid, bytes).ok_or(ChunkError::BadChunk)?) };
    Ok(Found { sid, chunk })
}

/// One message, and not a byte of what follows it.
async fn read_message<M: Message + Default>(recv: &mut RecvStream) -> Result<M, ChunkError> {
    let mut length = [0; frame::HEADER_BYTES];
    recv.read_exact(&mut length).await?;
    let bytes = read_bytes(recv, u32::from_be_bytes(length) as usize, limits::CHUNK_OPEN_BYTES).await?;
    M::decode(bytes).map_err(|_| ChunkError::Protocol)
}

async fn read_bytes(recv: &mut RecvStream, length: usize, most: usize) -> Result<Bytes, ChunkError> {
    if length > most {
        return Err(ChunkError::Protocol);
    }
    let mut bytes = BytesMut::with_capacity(length);
    let mut rest = recv.take(length as u64);
    while bytes.len() < length {
        match rest.read_buf(&mut bytes).await {
            Ok(0) => return Err(ChunkError::Protocol),
            Ok(_) => {}
            Err(error) => return Err(error.downcast::<ReadError>().map_or(ChunkError::Lost, ChunkError::from)),
        }
    }
    Ok(bytes.freeze())
}
