//! Waiting for something to become true.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks.
const AGAIN: Duration = Duration::from_millis(10);

/// Looks until there is something to see. The first look is at once.
///
/// # Errors
/// When there was nothing within `patience`, with what was waited for.
pub async fn until<T>(what: &str, patience: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let since = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return Ok(seen);
        }
        if since.elapsed() > patience {
            bail!("waited {patience:?} in vain: {what}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}
