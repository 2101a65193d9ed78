//! Descriptors by which the kernel says that something has happened: nobody looks in between.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// A descriptor that does not block, and becomes readable when there is news. What the news is does not matter here: it is a reason to look.
#[derive(Debug)]
pub(crate) struct News(AsyncFd<OwnedFd>);

impl News {
    #[expect(deprecated, reason = "sound for a descriptor that is owned; its unsafe successor is for types that may give out another one")]
    pub(crate) fn of(descriptor: OwnedFd) -> io::Result<Self> {
        AsyncFd::new(descriptor).map(Self)
    }

    /// Waits for news since the last call, and throws it away.
    pub(crate) async fn next(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
            ready.clear_ready();
            if self.clear() {
                return;
            }
        }
    }

    /// Whether there was any.
    pub(crate) fn clear(&self) -> bool {
        let (mut some, mut buffer) = (false, [0u8; 4096]);
        loop {
            match rustix::io::read(self.0.get_ref(), &mut buffer) {
                Ok(bytes) if bytes > 0 => some = true,
                Ok(_) | Err(rustix::io::Errno::AGAIN) => return some,
                Err(rustix::io::Errno::INTR) => {}
                // Some of it was lost (a full queue): all the more reason to look.
                Err(rustix::io::Errno::NOBUFS) => some = true,
                Err(_) => return some,
            }
        }
    }
}
