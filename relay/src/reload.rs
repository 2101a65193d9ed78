//! New settings while the relay runs: at SIGHUP, and when the configuration file changes.
//!
//! Hubs and limits count at once, for links that live as well ([`Relay::set_hubs`], [`Relay::set_limits`]). The rest is named in the log and waits for a restart. What cannot be used
//! is refused whole, and the settings before stay.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use cortex_runtime::{file::Changes, lifecycle};
use cortex_wire::id::HubId;

use crate::{Limits, Relay, config::RelayConfig, named};

/// Keys that count at once.
const LIVE: [&str; 4] = ["hubs", "max_links", "bytes_per_second", "drain_ms"];

/// How often settings were read again.
#[derive(Debug, Default)]
pub struct Reloads {
    /// And could be used.
    pub used: AtomicU64,
    /// And could not.
    pub refused: AtomicU64,
}

/// Follows the file and the signal; `read` reads the settings as they were read at the start. Never ends.
pub async fn follow(relay: Arc<Relay>, mut current: RelayConfig, file: &Path, read: impl Fn() -> anyhow::Result<RelayConfig>) {
    let mut hangups = lifecycle::hangups();
    let mut changes = Changes::of(file)
        .inspect_err(|error| tracing::warn!(%error, file = %file.display(), "the file is not watched; send SIGHUP when it has changed"))
        .ok();
    loop {
        let asked = tokio::select! {
            () = hangups.next() => true,
            () = changed(changes.as_mut()) => false,
        };
        match renew(&relay, &current, read(), asked).await {
            Ok(settings) => current = settings,
            Err(error) => {
                relay.reloads.refused.fetch_add(1, Relaxed);
                tracing::error!(
                    error = format!("{error:#}"),
                    "the changed settings cannot be used; those before stay. Mend the file: it is read again"
                );
            }
        }
    }
}

/// Uses what was read, when it is different or somebody asked for it. Answers what counts from now on.
async fn renew(relay: &Relay, current: &RelayConfig, read: anyhow::Result<RelayConfig>, asked: bool) -> anyhow::Result<RelayConfig> {
    let settings = read?;
    if asked || settings != *current {
        let hubs = named::find(&settings.hubs, &settings.state_dir).await?;
        apply(relay, current, &settings, &hubs);
    }
    Ok(settings)
}

async fn changed(changes: Option<&mut Changes>) {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

fn apply(relay: &Relay, before: &RelayConfig, now: &RelayConfig, hubs: &[HubId]) {
    relay.set_limits(Limits { max_links: now.max_links, bytes_per_second: now.bytes_per_second, drain_ms: now.drain_ms });
    let (added, removed) = relay.set_hubs(hubs);
    relay.reloads.used.fetch_add(1, Relaxed);
    tracing::info!(
        hubs = now.hubs.len(),
        added,
        removed,
        max_links = now.max_links,
        bytes_per_second = now.bytes_per_second,
        "settings were read again"
    );
    let later = needs_restart(before, now);
    if !later.is_empty() {
        tracing::warn!(keys = later.join(", "), "these settings count from the next start on");
    }
}

/// Keys that differ and do not count at once.
fn needs_restart(before: &RelayConfig, now: &RelayConfig) -> Vec<String> {
    let fields = |config| serde_json::to_value(config).ok().and_then(|value| value.as_object().cloned()).unwrap_or_default();
    let before = fields(before);
    fields(now)
        .into_iter()
        .filter(|(key, value)| before.get(key) != Some(value) && !LIVE.contains(&key.as_str()))
        .map(|(key, _)| key)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_restart_is_named() {
        let before = RelayConfig::default();
        let now = RelayConfig { max_links: 7, region: "fra".into(), listen: ([0, 0, 0, 0], 443).into(), ..RelayConfig::default() };
        assert_eq!(needs_restart(&before, &now), ["listen", "region"]);
        assert!(LIVE.iter().all(|key| cortex_runtime::config::keys::<RelayConfig>().iter().any(|known| known == key)));
    }
}
