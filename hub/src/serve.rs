//! `cortex-hub serve`: the parts of a running hub, put together.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use cortex_runtime::{
    keyfile,
    lifecycle::{Lifecycle, Parts},
    reach,
};
use tokio::net::TcpListener;

use crate::{
    api::{self, Api, listener},
    config::Config,
    hub::{Hub, HubOptions},
    mesh::{EmbeddedRelay, Network, NetworkOptions},
};

/// A hub that serves.
#[derive(Debug)]
pub struct Running {
    /// Its domain.
    pub hub: Arc<Hub>,
    /// Where HTTP is served: the port that was got when the settings said 0.
    pub http: SocketAddr,
    /// The address for people.
    pub url: String,
    /// Its network side.
    pub network: Arc<Network>,
}

/// Opens the data directory and the ports, and starts every part. The parts end when `lifecycle` stops; join them.
///
/// # Errors
/// When a directory, a key or a port cannot be had.
pub async fn start(config: &Config, lifecycle: &Lifecycle, parts: &mut Parts) -> anyhow::Result<Running> {
    let socket = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --listen", config.listen))?;
    let http = socket.local_addr()?;
    let url = config.public_url.as_ref().map_or_else(|| format!("http://{http}"), ToString::to_string);
    let data_dir = config.data_dir();
    let options =
        HubOptions { name: config.name.clone(), public_url: url.clone(), mirror_dir: config.mirror_dir.clone(), ..HubOptions::default() };
    let hub = Hub::open(&data_dir, options).await?;
    let network = Network::start(hub.clone(), network_options(config, &data_dir)?, lifecycle.clone(), parts).await?;
    let api = Api::new(hub.clone(), config.api_options(), lifecycle.clone());
    let stopper = lifecycle.clone();
    parts.spawn("HTTP", async move {
        listener::serve(socket, api::router(api), stopper.clone()).await;
        // The last request is answered: nothing else is worth waiting for. Tasks go on at their nodes and report to the next start.
        stopper.stop();
        Ok(())
    });
    Ok(Running { hub, http, url, network })
}

fn network_options(config: &Config, data_dir: &std::path::Path) -> anyhow::Result<NetworkOptions> {
    let embedded = if config.relay.enabled {
        let path: PathBuf = data_dir.join("keys/relay.key");
        let key = keyfile::load_or_create(&path)?;
        Some(EmbeddedRelay { listen: config.relay.listen, address: config.relay_address(), key, region: config.relay.region.clone() })
    } else {
        None
    };
    let reach = reach::Network::new(&config.network).context("`network.proxy` in the configuration")?;
    let (direct_listen, direct_address) = (config.direct.listen, config.direct.address);
    Ok(NetworkOptions { embedded, relays: config.relays.clone(), reach, direct_listen, direct_address })
}
