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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_come_true_is_named() {
        let mut looks = 0;
        assert_eq!(
            until("the third look", Duration::from_secs(5), async || {
                looks += 1;
                (looks == 3).then_some(looks)
            })
            .await
            .unwrap(),
            3
        );
        let error = until("rain", Duration::from_millis(30), async || None::<()>).await.unwrap_err();
        assert!(error.to_string().contains("rain"), "{error}");
    }
}
