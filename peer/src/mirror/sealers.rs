//! Chunks are sealed side by side: whoever reads goes on reading meanwhile.
//!
//! [`Sealers::seal`] hands a chunk over and returns at once; [`Sealing::wait`] gives it sealed. A single small chunk is sealed by whoever asks ([`Sealers::seal_here`]): that takes less time
//! than waking a thread. Threads are started when there is work for them, and end with their `Sealers`.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread,
};

use cortex_wire::mirror::seal::{Draft, Keys, SealError, Sealed, Sealer};

/// Threads at most. More are of no use while one thread cuts for all of them.
const THREADS: usize = 4;

type Outcome = Result<Sealed, SealError>;

struct Work {
    draft: Draft,
    answer: SyncSender<Outcome>,
}

/// A chunk that is being sealed.
pub enum Sealing {
    /// It is done.
    Done(Outcome),
    /// It comes.
    Coming(Receiver<Outcome>),
}

impl Sealing {
    /// Blocks until it is sealed.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn wait(self) -> Outcome {
        match self {
            Self::Done(outcome) => outcome,
            // A thread that is gone has given no answer.
            Self::Coming(answer) => answer.recv().unwrap_or(Err(SealError::NoKey)),
        }
    }
}

/// Seals chunks of one session, in its latest epoch.
pub struct Sealers {
    keys: Arc<Keys>,
    own: Sealer,
    work: Sender<Work>,
    waiting: Arc<Mutex<Receiver<Work>>>,
    threads: usize,
    most: usize,
}

impl Sealers {
    /// With these keys.
    pub fn new(keys: Arc<Keys>) -> Self {
        let (work, waiting) = mpsc::channel();
        let most = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        Self { own: Sealer::new(keys.clone()), keys, work, waiting: Arc::new(Mutex::new(waiting)), threads: 0, most }
    }

    /// Seals a chunk now.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal_here(&mut self, plain: &[u8]) -> Outcome {
        self.own.seal(plain)
    }

    /// Seals a chunk beside others. Whoever calls it bounds how many are under way.
    pub fn seal(&mut self, draft: Draft) -> Sealing {
        if self.threads < self.most {
            self.threads += usize::from(self.start());
        }
        if self.threads == 0 {
            return Sealing::Done(self.own.seal_draft(draft));
        }
        let (answer, sealed) = mpsc::sync_channel(1);
        match self.work.send(Work { draft, answer }) {
            Ok(()) => Sealing::Coming(sealed),
            Err(mpsc::SendError(work)) => Sealing::Done(self.own.seal_draft(work.draft)),
        }
    }

    fn start(&self) -> bool {
        let (waiting, mut sealer) = (self.waiting.clone(), Sealer::new(self.keys.clone()));
        let next = move || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let run = move || {
            while let Ok(Work { draft, answer }) = next() {
                // Whoever gave up needs no answer.
                let _ = answer.send(sealer.seal_draft(draft));
            }
        };
        thread::Builder::new().name("seal".into()).spawn(run).is_ok()
    }
}
