//! Ctrl-C and SIGTERM end a run in good order: programs are stopped, the test user and the folder are removed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Takes over the signals.
pub fn watch() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        });
        INTERRUPTED.store(true, Relaxed);
    });
    Ok(())
}

/// Fails once somebody wants the run to end. Asked between measurements.
pub fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!INTERRUPTED.load(Relaxed), "interrupted");
    Ok(())
}
