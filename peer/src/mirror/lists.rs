//! Long lists of changes, which come as sealed chunks: fetched, opened, and put into the frames that named them.
//!
//! So a workspace hears every commit with its changes in it, in the order in which the hub said them; while a list is on its way, those behind it are fetched already.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use cortex_runtime::{
    chunk::{Asker, ChunkError, ChunkSource},
    clock::Backoff,
};
use cortex_wire::{
    id::SessionId,
    mirror::{
        entry::Sid,
        seal::{Keys, OpenError, Opener},
    },
    schema::{Commit, PackedBatch, ToWorkspace, WorkspaceKey, WorkspaceOpen, to_workspace::Frame},
};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// Frames that are completed side by side.
pub(super) const AHEAD: usize = 8;
/// A list that cannot be had for so long ends the stream, and the hub opens another one.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait before it is asked for again: a ticket may not name the session yet, a relay may come back.
const AGAIN: Duration = Duration::from_secs(2);

/// Why a frame cannot be completed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error("a list of changes could not be fetched: {0}")]
    Fetch(#[from] ChunkError),
    #[error("a list of changes is not at the hub any more")]
    Missing,
    #[error("a list of changes cannot be opened: {0}")]
    Open(#[from] OpenError),
    #[error("a list of changes is not the protocol")]
    Malformed,
}

/// What completes the frames of one stream.
pub(super) struct Lists {
    chunks: watch::Receiver<Option<Arc<dyn ChunkSource>>>,
    session: SessionId,
    keys: Mutex<Vec<WorkspaceKey>>,
}

impl Lists {
    /// For the stream that began with `open`.
    pub(super) fn new(session: SessionId, open: &WorkspaceOpen, chunks: watch::Receiver<Option<Arc<dyn ChunkSource>>>) -> Self {
        Self { chunks, session, keys: Mutex::new(open.keys.clone()) }
    }

    fn keys(&self) -> Arc<Keys> {
        let mut keys = Keys::new(self.session);
        for key in self.keys.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Ok(bytes) = key.key[..].try_into() {
                keys.insert(key.epoch, &bytes);
            }
        }
        Arc::new(keys)
    }

    /// Takes note of what a frame says, before anything behind it is completed.
    pub(super) fn hear(&self, frame: &ToWorkspace) {
        if let Some(Frame::Key(key)) = &frame.frame {
            self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key.clone());
        }
    }

    /// The frame with its list in it.
    ///
    /// # Errors
    /// [`ListError`].
    pub(super) async fn complete(&self, mut frame: ToWorkspace) -> Result<ToWorkspace, ListError> {
        if let Some(Frame::Commit(commit)) = &mut frame.frame
            && !commit.list.is_empty()
        {
            let sid = Sid::from_slice(&commit.list).map_err(|_| ListError::Malformed)?;
            *commit = Commit { batch: Some(self.list(sid).await?), list: Bytes::new(), ..std::mem::take(commit) };
        }
        Ok(frame)
    }

    async fn list(&self, sid: Sid) -> Result<PackedBatch, ListError> {
        let (until, mut backoff) = (Instant::now() + PATIENCE, Backoff::new(AGAIN));
        let mut chunks = self.chunks.clone();
        loop {
            let source = chunks.borrow_and_update().clone();
            let error = match source {
                Some(source) => match self.fetch(&*source, sid).await {
                    Err(ListError::Fetch(error)) => error,
                    done => return done,
                },
                None => ChunkError::Lost,
            };
            let wait = backoff.next_wait();
            if Instant::now() + wait > until {
                return Err(error.into());
            }
            // Another way to the chunks is tried at once.
            if let Ok(Err(_)) = tokio::time::timeout(wait, chunks.changed()).await {
                return Err(error.into());
            }
        }
    }

    async fn fetch(&self, chunks: &dyn ChunkSource, sid: Sid) -> Result<PackedBatch, ListError> {
        let (tell, mut told) = mpsc::channel(1);
        let asker = Asker { session: self.session, node: None };
        let (fetched, found) = tokio::join!(chunks.fetch(asker, vec![sid], tell), told.recv());
        fetched?;
        let sealed = found.ok_or(ChunkError::Lost)?.chunk.filter(|sealed| sealed.sid() == sid).ok_or(ListError::Missing)?;
        let plain = Opener::new(self.keys()).open(sealed)?;
        PackedBatch::decode(plain).map_err(|_| ListError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use cortex_runtime::chunk::{BoxFuture, Found};
    use cortex_wire::{
        mirror::{
            entry::Entry,
            op::{self, Op},
            seal::{Sealed, Sealer},
        },
        schema::Verdict,
    };

    use super::*;

    /// Answers with these, one after the other; then it is lost.
    struct Answers(Mutex<VecDeque<Result<Option<Sealed>, ChunkError>>>);

    impl ChunkSource for Answers {
        fn fetch(&self, _: Asker, sids: Vec<Sid>, found: mpsc::Sender<Found>) -> BoxFuture<'_, Result<(), ChunkError>> {
            Box::pin(async move {
                let answer = self.0.lock().unwrap().pop_front().unwrap_or(Err(ChunkError::Lost))?;
                let _ = found.send(Found { sid: sids[0], chunk: answer }).await;
                Ok(())
            })
        }

        fn store(&self, _: Asker, _: mpsc::Receiver<Sealed>) -> BoxFuture<'_, Result<u64, ChunkError>> {
            Box::pin(async { Err(ChunkError::Failed) })
        }

        fn missing(&self, _: Asker, _: Vec<Sid>) -> BoxFuture<'_, Result<Vec<Sid>, ChunkError>> {
            Box::pin(async { Err(ChunkError::Failed) })
        }
    }

    fn key(epoch: u32) -> WorkspaceKey {
        WorkspaceKey { epoch, key: vec![epoch as u8; 32].into() }
    }

    fn sealed(session: SessionId, epoch: u32, batch: &PackedBatch) -> Sealed {
        let mut keys = Keys::new(session);
        keys.insert(epoch, &[epoch as u8; 32]);
        Sealer::new(Arc::new(keys)).seal(&batch.encode_to_vec()).unwrap()
    }

    fn commit(list: Bytes) -> ToWorkspace {
        ToWorkspace { frame: Some(Frame::Commit(Commit { revision: 7, list, ..Commit::default() })) }
    }

    fn lists(session: SessionId, answers: Vec<Result<Option<Sealed>, ChunkError>>) -> (Lists, watch::Sender<Option<Arc<dyn ChunkSource>>>) {
        let source: Arc<dyn ChunkSource> = Arc::new(Answers(Mutex::new(answers.into())));
        let chunks = watch::Sender::new(Some(source));
        let open = WorkspaceOpen { keys: vec![key(1)], ..WorkspaceOpen::default() };
        (Lists::new(session, &open, chunks.subscribe()), chunks)
    }

    fn batch() -> PackedBatch {
        op::pack(&[Op::Put { path: "p".parse().unwrap(), parent: None, entry: Entry::Symlink("t".into()) }])
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_is_asked_for_until_it_comes_and_other_frames_are_left_alone() {
        let session = SessionId::from_slice(&[9; 16]).unwrap();
        let there = sealed(session, 1, &batch());
        let list = there.sid().to_bytes();
        let (lists, _chunks) = lists(session, vec![Err(ChunkError::NotAttached), Err(ChunkError::HubOffline), Ok(Some(there))]);
        let Some(Frame::Commit(done)) = lists.complete(commit(list)).await.unwrap().frame else { panic!("another frame") };
        assert_eq!((done.revision, done.batch, done.list.len()), (7, Some(batch()), 0));
        let verdict = ToWorkspace { frame: Some(Frame::Verdict(Verdict::default())) };
        assert_eq!(lists.complete(verdict.clone()).await.unwrap(), verdict);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_in_a_key_that_came_meanwhile_is_opened_and_what_is_wrong_is_said() {
        let session = SessionId::from_slice(&[9; 16]).unwrap();
        let (first, later) = (sealed(session, 1, &batch()), sealed(session, 2, &batch()));
        let answers = vec![Ok(Some(later.clone())), Ok(Some(later.clone())), Ok(Some(first)), Ok(None)];
        let (lists, _chunks) = lists(session, answers);
        let ask = || lists.complete(commit(later.sid().to_bytes()));
        assert!(matches!(ask().await, Err(ListError::Open(OpenError::UnknownEpoch(2)))));
        lists.hear(&ToWorkspace { frame: Some(Frame::Key(key(2))) });
        assert!(ask().await.is_ok());
        assert!(matches!(ask().await, Err(ListError::Missing)), "another chunk");
        assert!(matches!(ask().await, Err(ListError::Missing)));
        assert!(matches!(lists.complete(commit(Bytes::from_static(b"short"))).await, Err(ListError::Malformed)));
        let begun = Instant::now();
        assert!(matches!(ask().await, Err(ListError::Fetch(ChunkError::Lost))));
        assert!((PATIENCE - AGAIN..=PATIENCE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}
