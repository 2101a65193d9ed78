//! `cortex-relay`: the program.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use cortex_relay::{
    CacheDisk, Options, Relay, TcpOptions,
    config::{EXAMPLE, PREFIX, RelayConfig},
    http,
    named::{self, HubName},
    reload,
};
use cortex_runtime::{
    config, keyfile,
    lifecycle::{Lifecycle, Parts, exit},
    telemetry::{self, LogFormat},
};
use cortex_wire::invite::RelayEndpoint;

/// Cortex Mesh relay: a meeting point for peers behind firewalls and their hubs.
///
/// It forwards sealed traffic and can read none of it. It serves the hubs you name and is closed to everybody else.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  cortex-relay serve --hub https://hub.example.org  a region for one hub
  cortex-relay serve --hub KEY                     the same by its key, which `cortex-hub serve` prints
  cortex-relay serve --listen 0.0.0.0:443 --hub KEY --region fra
  cortex-relay config > relay.yaml                 a file with every setting, documented

The relay prints a line `host:port#key` when it starts: give it to the hub with `cortex-hub serve --relay`.

Exit codes: 0 stopped in good order, 1 failed while running, 2 settings cannot be used."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay until it is stopped (SIGINT or SIGTERM: links are told to move, then it ends).
    ///
    /// With a configuration file, hubs and limits change while it runs: when the file does, or at SIGHUP.
    Serve(Box<Serve>),
    /// Print a configuration file with every setting, documented.
    Config,
}

#[derive(clap::Args)]
struct Serve {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "CORTEX_RELAY_CONFIG")]
    config: Option<PathBuf>,
    /// Address to listen on, UDP and TCP [default: 0.0.0.0:4433].
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Where a web server that has the TCP port passes WebSocket on to, without TLS.
    #[arg(long, value_name = "IP:PORT")]
    behind_proxy: Option<SocketAddr>,
    /// host:port that others dial, when it is not the listening address.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// A hub to serve, by its key or its https:// address, which is asked for the key once; may be given several times.
    #[arg(long = "hub", value_name = "KEY|URL")]
    hubs: Vec<HubName>,
    /// A label for people.
    #[arg(long)]
    region: Option<String>,
    /// Where the relay's key is kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// A folder for sealed chunks that several nodes may want; it outlives the process [default: memory only].
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// What that folder may take [default: 10 GiB].
    #[arg(long, value_name = "BYTES")]
    cache_disk_bytes: Option<u64>,
    /// Where /healthz, /readyz and /metrics answer.
    #[arg(long, value_name = "IP:PORT")]
    http: Option<SocketAddr>,
    /// Log level or directives [default: info].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How log lines look: auto (text on a terminal, JSON otherwise), text or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl Serve {
    fn settings(&self) -> anyhow::Result<RelayConfig> {
        let mut settings: RelayConfig = config::load(self.config.as_deref(), PREFIX)?;
        settings.listen = self.listen.unwrap_or(settings.listen);
        settings.address = self.address.clone().or(settings.address);
        settings.region = self.region.clone().unwrap_or(settings.region);
        settings.state_dir = self.state_dir.clone().unwrap_or(settings.state_dir);
        settings.cache_dir = self.cache_dir.clone().or(settings.cache_dir);
        settings.cache_disk_bytes = self.cache_disk_bytes.unwrap_or(settings.cache_disk_bytes);
        settings.http = self.http.or(settings.http);
        settings.behind_proxy = self.behind_proxy.or(settings.behind_proxy);
        settings.log.filter = self.log.clone().unwrap_or(settings.log.filter);
        settings.log.format = self.log_format.unwrap_or(settings.log.format);
        if !self.hubs.is_empty() {
            settings.hubs.clone_from(&self.hubs);
        }
        settings.certificate_files()?;
        Ok(settings)
    }
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Config => {
            print!("{EXAMPLE}");
            ExitCode::from(exit::OK)
        }
        Command::Serve(serve) => {
            let settings = match serve.settings() {
                Ok(settings) => settings,
                Err(error) => return fail(&error, exit::USAGE),
            };
            if let Err(error) = telemetry::start(settings.log.format, &settings.log.filter) {
                return fail(&error, exit::USAGE);
            }
            // One thread was the fastest forwarder on two cores, and halved the round trip.
            let run = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start")
                .and_then(|rt| rt.block_on(run(settings, *serve)));
            match run {
                Ok(()) => ExitCode::from(exit::OK),
                Err(error) => fail(&error, exit::FAILURE),
            }
        }
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("cortex-relay: {error:#}");
    ExitCode::from(code)
}

async fn run(settings: RelayConfig, serve: Serve) -> anyhow::Result<()> {
    let key = keyfile::load_or_create(&settings.state_dir.join("relay.key"))?;
    let name =
        settings.address.as_deref().and_then(|address| address.rsplit_once(':')).map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
    let certificate = settings.certificate_files()?;
    let current = settings.clone();
    let hubs = named::find(&settings.hubs, &settings.state_dir).await?;
    let relay = Relay::bind(Options {
        listen: settings.listen,
        key,
        region: settings.region,
        hubs,
        max_links: settings.max_links,
        bytes_per_second: settings.bytes_per_second,
        cache_bytes: settings.cache_bytes,
        cache_disk: settings.cache_dir.map(|folder| CacheDisk { folder, bytes: settings.cache_disk_bytes }),
        drain_ms: settings.drain_ms,
        tcp: TcpOptions { behind_proxy: settings.behind_proxy, certificate, names: name.into_iter().collect() },
    })?;
    let lifecycle = Lifecycle::new();
    let grace = Duration::from_millis(settings.drain_ms);
    match serve.config.clone() {
        None => _ = tokio::spawn(lifecycle.clone().follow_signals(grace)),
        Some(file) => {
            tokio::spawn(lifecycle.clone().follow_signals_but_hangups(grace));
            let relay = relay.clone();
            tokio::spawn(async move { reload::follow(relay, current, &file, || serve.settings()).await });
        }
    }
    let address = settings.address.unwrap_or(relay.local_addr()?.to_string());
    println!("{}", RelayEndpoint { address: address.clone(), id: relay.id(), region: String::new() });
    tracing::info!(listen = %relay.local_addr()?, address, hubs = settings.hubs.len(), "the relay is ready");
    if settings.hubs.is_empty() {
        tracing::warn!("no hub is configured, so nobody can connect; start with --hub KEY or --hub https://…");
    }
    let mut parts = Parts::new();
    let (forwarder, forwarder_life) = (relay.clone(), lifecycle.clone());
    parts.spawn("forwarder", async move {
        forwarder.run(forwarder_life).await;
        Ok(())
    });
    if let Some(listen) = settings.http {
        parts.spawn("health and metrics", http::serve(listen, relay.clone(), lifecycle.clone()));
    }
    tokio::spawn(stop_when_empty(relay.clone(), lifecycle.clone()));
    parts.join(&lifecycle, Duration::from_secs(2)).await
}

/// A relay that drains need not wait once nobody is left.
async fn stop_when_empty(relay: Arc<Relay>, lifecycle: Lifecycle) {
    lifecycle.draining().await;
    while relay.nodes() > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lifecycle.stop();
}
