//! Sealed chunks on their way to the hub, in flights: what is stored, and made durable there, at once.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use cortex_runtime::chunk::{Asker, ChunkError, ChunkSource};
use cortex_wire::mirror::{entry::Sid, path::RelPath, replica::Trouble, seal::Sealed};
use tokio::{sync::mpsc, task::JoinHandle};

use super::upload::{Made, MadeFile, QUEUE};

/// Of a flight, when it departs.
const FLIGHT_BYTES: usize = 4 * 1024 * 1024;
/// Flights under way.
const FLIGHTS: usize = 3;
/// Below this, asking which chunks the hub has takes longer than sending them.
const WORTH_ASKING: usize = 4;

/// What became of files.
#[derive(Debug)]
pub enum Stored {
    /// All of their chunks are durable at the hub.
    Files(Vec<MadeFile>),
    /// Not, and why.
    Failed {
        /// Which.
        path: RelPath,
        /// Why.
        trouble: Trouble,
    },
}

type Landed = (Result<(), ChunkError>, Vec<MadeFile>);

#[derive(Default)]
struct Flight {
    chunks: Vec<Sealed>,
    perhaps_known: usize,
    bytes: usize,
    files: Vec<MadeFile>,
}

/// Sends what comes, and tells of each file once. Ends when nothing more comes and everything was told.
pub async fn store(chunks: Arc<dyn ChunkSource>, asker: Asker, mut made: mpsc::Receiver<Made>, tell: mpsc::Sender<Stored>) {
    let mut flight = Flight::default();
    let mut under_way: VecDeque<JoinHandle<Landed>> = VecDeque::new();
    let mut failed: Option<ChunkError> = None;
    loop {
        let next = made.recv().await;
        let end = next.is_none();
        match next {
            Some(Made::Chunk { sealed, perhaps_known }) => {
                flight.bytes += sealed.bytes().len();
                flight.perhaps_known += usize::from(perhaps_known);
                flight.chunks.push(sealed);
            }
            Some(Made::Files(mut files)) => flight.files.append(&mut files),
            Some(Made::Failed { path, trouble }) => hand_on(&tell, Stored::Failed { path, trouble }).await,
            None => {}
        }
        if flight.bytes >= FLIGHT_BYTES || end {
            let departing = std::mem::take(&mut flight);
            // After an error the rest would name chunks that are not there.
            let chunks = if failed.is_none() { Some(chunks.clone()) } else { None };
            under_way.push_back(tokio::spawn(async move {
                (fly(chunks, asker, departing.chunks, departing.perhaps_known).await, departing.files)
            }));
        }
        while under_way.len() > if end { 0 } else { FLIGHTS } {
            let Some(landing) = under_way.pop_front() else { break };
            let Ok((outcome, files)) = landing.await else { continue };
            match (outcome, failed) {
                (Ok(()), None) => hand_on(&tell, Stored::Files(files)).await,
                (outcome, earlier) => {
                    let error = earlier.or(outcome.err()).unwrap_or(ChunkError::Lost);
                    failed = Some(error);
                    for file in files {
                        hand_on(&tell, Stored::Failed { path: file.path, trouble: offline(error) }).await;
                    }
                }
            }
        }
        if end {
            return;
        }
    }
}

async fn hand_on(tell: &mpsc::Sender<Stored>, stored: Stored) {
    // A workspace that is gone needs no answer.
    let _ = tell.send(stored).await;
}

/// Why chunks do not travel.
pub fn offline(error: ChunkError) -> Trouble {
    let code = if error == ChunkError::NoSpace { "no_space_at_hub" } else { "offline" };
    Trouble { code: code.into(), message: error.to_string() }
}

async fn fly(source: Option<Arc<dyn ChunkSource>>, asker: Asker, mut chunks: Vec<Sealed>, perhaps_known: usize) -> Result<(), ChunkError> {
    let source = source.ok_or(ChunkError::Lost)?;
    if perhaps_known >= WORTH_ASKING {
        let sids: Vec<Sid> = chunks.iter().map(Sealed::sid).collect();
        let missing: HashSet<Sid> = source.missing(asker, sids).await?.into_iter().collect();
        chunks.retain(|chunk| missing.contains(&chunk.sid()));
    }
    if chunks.is_empty() {
        return Ok(());
    }
    let (send, receive) = mpsc::channel(QUEUE);
    let feed = async move {
        for chunk in chunks {
            if send.send(chunk).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(source.store(asker, receive), feed).0.map(|_| ())
}
