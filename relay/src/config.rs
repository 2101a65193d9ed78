//! The operator's settings: one YAML file, `CORTEX_RELAY_*` over it, flags over both.

use std::{net::SocketAddr, path::PathBuf};

use cortex_runtime::telemetry::LogConfig;
use serde::{Deserialize, Serialize};

use crate::{certificate::CertificateFiles, named::HubName};

/// The documented example, printed by `cortex-relay config`.
pub const EXAMPLE: &str = include_str!("../assets/relay.yaml");

/// Prefix of environment variables.
pub const PREFIX: &str = "CORTEX_RELAY";

/// Everything that can be set. The example file documents each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// Address of links and forwarded traffic: UDP, and TCP on the same port.
    pub listen: SocketAddr,
    /// Where links over TCP come from a web server that ends TLS.
    pub behind_proxy: Option<SocketAddr>,
    /// A certificate for links over TCP, in PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, in PEM.
    pub certificate_key: Option<PathBuf>,
    /// `host:port` that peers and hubs dial, when it differs from `listen`.
    pub address: Option<String>,
    /// Where the relay's key is kept.
    pub state_dir: PathBuf,
    /// A label for people.
    pub region: String,
    /// The hubs that this relay serves.
    pub hubs: Vec<HubName>,
    /// Health and metrics; nothing when not set.
    pub http: Option<SocketAddr>,
    /// Links at once.
    pub max_links: usize,
    /// Bytes per second of one node, each way; 0: no limit.
    pub bytes_per_second: u64,
    /// Memory for sealed chunks that several nodes may want.
    pub cache_bytes: u64,
    /// A folder for more of them, which outlives the process; none: memory only.
    pub cache_dir: Option<PathBuf>,
    /// What that folder may take.
    pub cache_disk_bytes: u64,
    /// How long links may take to move when the relay stops.
    pub drain_ms: u64,
    /// Logs.
    pub log: LogConfig,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            listen: ([0, 0, 0, 0], 4433).into(),
            behind_proxy: None,
            certificate: None,
            certificate_key: None,
            address: None,
            state_dir: default_state_dir(),
            region: String::new(),
            hubs: Vec::new(),
            http: None,
            max_links: 10_000,
            bytes_per_second: 0,
            cache_bytes: 256 << 20,
            cache_dir: None,
            cache_disk_bytes: 10 << 30,
            drain_ms: 4_000,
            log: LogConfig::default(),
        }
    }
}

impl RelayConfig {
    /// The certificate for links over TCP; `None`: the relay makes one.
    ///
    /// # Errors
    /// When one half is missing.
    pub fn certificate_files(&self) -> anyhow::Result<Option<CertificateFiles>> {
        match (&self.certificate, &self.certificate_key) {
            (Some(chain), Some(key)) => Ok(Some(CertificateFiles { chain: chain.clone(), key: key.clone() })),
            (None, None) => Ok(None),
            _ => anyhow::bail!("`certificate` and `certificate_key` in the configuration belong together; set both or none"),
        }
    }
}

fn default_state_dir() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    match std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home) {
        Some(state) => state.join("cortex-relay"),
        None => PathBuf::from("/var/lib/cortex-relay"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_true() {
        assert_eq!(cortex_runtime::config::check_example::<RelayConfig>(EXAMPLE), Ok(()));
    }
}
