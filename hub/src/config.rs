//! The settings of `cortex-hub`: one YAML file, `CORTEX_HUB_*` in the environment over it, flags over both. Nothing has to be set.
//!
//! [`EXAMPLE`] documents every key; a test keeps it true.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use cortex_runtime::{
    config::{self, ConfigError},
    reach::NetworkConfig,
    telemetry::LogConfig,
};
use cortex_wire::invite::RelayEndpoint;
use serde::{Deserialize, Serialize};

use crate::api::{ApiOptions, site::PublicUrl};

/// Every key with its default and what it is for.
pub const EXAMPLE: &str = include_str!("../assets/hub.yaml");

/// What variables in the environment begin with.
pub const PREFIX: &str = "CORTEX_HUB";

/// The settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What people and nodes are shown.
    pub name: String,
    /// Where everything is kept; none: [`default_data_dir`].
    pub data_dir: Option<PathBuf>,
    /// Where the contents of workspaces are kept; none: `mirrors` in the data directory.
    pub mirror_dir: Option<PathBuf>,
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// The address that people type.
    pub public_url: Option<PublicUrl>,
    /// Further host names that requests may be for.
    pub allowed_hosts: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpAddr>,
    /// Programs for platforms other than the hub's own.
    pub dist_dir: Option<PathBuf>,
    /// `/metrics` without a token.
    pub open_metrics: bool,
    /// The relay inside the hub.
    pub relay: RelayConfig,
    /// Further relays.
    #[serde(with = "endpoints")]
    pub relays: Vec<RelayEndpoint>,
    /// How they are reached.
    pub network: NetworkConfig,
    /// Nodes that come directly.
    pub direct: DirectConfig,
    /// How often, and how many at once.
    pub limits: LimitsConfig,
    /// Logs.
    pub log: LogConfig,
}

/// The relay inside the hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// Run it.
    pub enabled: bool,
    /// Its UDP address.
    pub listen: SocketAddr,
    /// What peers dial: a host, or `host:port`; none: the host of `public_url`, else 127.0.0.1.
    pub address: Option<String>,
    /// A label.
    pub region: String,
}

/// Nodes that come directly.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DirectConfig {
    /// The UDP address of the hub's own packets.
    pub listen: SocketAddr,
    /// What nodes are told beside what the hub finds out by itself.
    pub address: Option<SocketAddr>,
}

/// How often, and how many at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Of one token or account.
    pub dispatches_per_second: u32,
    /// Open event and output streams of one account.
    pub streams_per_user: usize,
    /// Failed logins to one account from one network in 15 minutes.
    pub logins_per_account: u32,
    /// Logins from one network in a minute.
    pub logins_per_network: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "Cortex hub".into(),
            data_dir: None,
            mirror_dir: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            public_url: None,
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            dist_dir: None,
            open_metrics: false,
            relay: RelayConfig::default(),
            relays: Vec::new(),
            network: NetworkConfig::default(),
            direct: DirectConfig::default(),
            limits: LimitsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4433)), address: None, region: String::new() }
    }
}

impl Default for DirectConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), address: None }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let api = ApiOptions::default();
        Self {
            dispatches_per_second: api.dispatches_per_second,
            streams_per_user: api.streams_per_user,
            logins_per_account: api.logins_per_account,
            logins_per_network: api.logins_per_network,
        }
    }
}

impl Config {
    /// The settings of `path`, or of [`default_file`] where there is one, under the environment.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let found = default_file().filter(|file| file.is_file());
        config::load(path.or(found.as_deref()), PREFIX)
    }

    /// Where everything is kept.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(default_data_dir)
    }

    /// What peers dial to reach the relay inside the hub. Port 0 stands for the port that it gets.
    pub fn relay_address(&self) -> String {
        let host = self.relay.address.as_deref().or(self.public_url.as_ref().map(PublicUrl::host)).unwrap_or("127.0.0.1");
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok() && !port.ends_with(']'));
        if has_port && (!host.starts_with('[') || host.contains("]:")) {
            host.to_owned()
        } else {
            format!("{host}:{}", self.relay.listen.port())
        }
    }

    /// How the web surface behaves.
    pub fn api_options(&self) -> ApiOptions {
        // Whoever listens on one address is asked by that address.
        let own_address = Some(self.listen.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| match ip {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        });
        ApiOptions {
            public_url: self.public_url.clone(),
            allowed_hosts: self.allowed_hosts.iter().cloned().chain(own_address).collect(),
            trusted_proxies: self.trusted_proxies.iter().map(IpAddr::to_canonical).collect(),
            dist_folder: self.dist_dir.clone(),
            open_metrics: self.open_metrics,
            dispatches_per_second: self.limits.dispatches_per_second,
            streams_per_user: self.limits.streams_per_user,
            logins_per_account: self.limits.logins_per_account,
            logins_per_network: self.limits.logins_per_network,
        }
    }
}

/// `/var/lib/cortex-hub` for root, `$XDG_DATA_HOME/cortex-hub` for everybody else.
pub fn default_data_dir() -> PathBuf {
    if is_root() {
        return "/var/lib/cortex-hub".into();
    }
    folder("XDG_DATA_HOME", ".local/share").map_or_else(|| "cortex-hub-data".into(), |folder| folder.join("cortex-hub"))
}

/// `/etc/cortex-hub/hub.yaml` for root, `$XDG_CONFIG_HOME/cortex-hub/hub.yaml` for everybody else.
pub fn default_file() -> Option<PathBuf> {
    if is_root() {
        return Some("/etc/cortex-hub/hub.yaml".into());
    }
    Some(folder("XDG_CONFIG_HOME", ".config")?.join("cortex-hub/hub.yaml"))
}

fn folder(variable: &str, under_home: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set(variable).or_else(|| set("HOME").map(|home| home.join(under_home)))
}

#[cfg(unix)]
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

/// `host:port#key`, as `cortex-relay serve` prints it.
mod endpoints {
    use cortex_wire::invite::RelayEndpoint;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(relays: &[RelayEndpoint], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(relays.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RelayEndpoint>, D::Error> {
        Vec::<String>::deserialize(deserializer)?.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        config::parse(text, "hub.yaml").unwrap()
    }

    #[test]
    fn the_example_documents_every_key_and_parses() {
        assert_eq!(config::check_example::<Config>(EXAMPLE), Ok(()));
    }

    #[test]
    fn nothing_has_to_be_set() {
        let config = parse("");
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(config.relay_address(), "127.0.0.1:4433");
        assert!(config.relay.enabled);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let error = config::parse::<Config>("public_ur: x\n", "hub.yaml").unwrap_err().to_string();
        assert_eq!(error, "unknown key `public_ur` in hub.yaml line 1; did you mean `public_url`?");
    }

    #[test]
    fn peers_dial_the_host_that_people_type_unless_told_otherwise() {
        assert_eq!(parse("public_url: https://hub.example.org").relay_address(), "hub.example.org:4433");
        assert_eq!(parse("relay: {address: relay.example.org, listen: '0.0.0.0:443'}").relay_address(), "relay.example.org:443");
        assert_eq!(parse("relay: {address: 'relay.example.org:8443'}").relay_address(), "relay.example.org:8443");
        assert_eq!(parse("relay: {address: '[::1]'}").relay_address(), "[::1]:4433");
        assert_eq!(parse("relay: {address: '[::1]:9'}").relay_address(), "[::1]:9");
    }

    #[test]
    fn a_relay_is_read_and_a_wrong_one_refused() {
        let key = cortex_wire::key::SecretKey::from_seed([1; 32]).public();
        assert_eq!(parse(&format!("relays: ['r.example:443#{key}']")).relays[0].address, "r.example:443");
        assert!(config::parse::<Config>("relays: ['r.example:443']", "hub.yaml").is_err());
    }
}
