//! `cortex-peer`: the command line. Everything it does is in the library.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use cortex_peer::{
    capabilities,
    config::{self, EXAMPLE, PREFIX, PeerConfig},
    doctor,
    health::Health,
    mesh::{self, MeshError, MeshOptions},
    state::{self, Membership, State},
    task::{Bounds, Tasks, TasksOptions},
};
use cortex_runtime::{
    clock, keyfile,
    lifecycle::{Lifecycle, exit},
    telemetry,
};
use cortex_wire::{
    id::HubId,
    invite::{self, RelayEndpoint, Terms},
    schema::Invite,
};
use tokio::sync::watch;

/// How long the peer may take to stop after the first signal.
const GRACE: Duration = Duration::from_secs(12);

const ABOUT: &str = "\
Makes this machine a node of a Cortex Mesh hub: it connects out through a relay, and runs the tasks that the hub's people send.

Get an invite on the hub's page, then: cortex-peer run --invite cxi1_… (or put the invite into peer.yaml). The machine's key is made
here and stays here. Nothing has to be opened in a firewall: UDP going out to the relay's port is enough.";

const AFTER: &str = "\
Examples:
  cortex-peer run --invite cxi1_…              join and stay connected
  cortex-peer run --config peer.yaml           the same from a file; the invite is erased from it once it is used
  cortex-peer doctor --config peer.yaml        why does it not come online?
  cortex-peer status                           which hub, which node, which fingerprint
  cortex-peer config example > peer.yaml       every setting, documented

Where things are:
  state   /var/lib/cortex-peer as root, else $XDG_STATE_HOME/cortex-peer (~/.local/state/cortex-peer)
  work    `workspaces` in there, one folder per session

Exit codes: 0 stopped in good order, 1 it failed, 2 the command line or the configuration cannot be used, 3 the hub refuses this machine and
max_retries is used up, 4 the hub was not reached and max_retries is used up.";

#[derive(Parser)]
#[command(name = "cortex-peer", version, about = ABOUT, after_help = AFTER, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Join a hub if need be, and stay connected until stopped (SIGINT or SIGTERM)
    Run(Run),
    /// Show which hub this machine belongs to, and as which node
    Status(Place),
    /// Check what keeps this machine from coming online, and say how to fix it
    Doctor(Doctor),
    /// Print or check a configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Args)]
struct Place {
    /// The configuration file
    #[arg(long, short, value_name = "FILE", env = "CORTEX_PEER_CONFIG")]
    config: Option<PathBuf>,
    /// Where key, journal and output are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// The invite from the hub's page; needed once
    #[arg(long, value_name = "cxi1_…")]
    invite: Option<String>,
    /// What the hub should call this machine
    #[arg(long)]
    name: Option<String>,
    /// Where tasks work
    #[arg(long, value_name = "DIR")]
    workspace_dir: Option<PathBuf>,
    /// Tries in a row before giving up; for ever when not given
    #[arg(long, value_name = "N")]
    max_retries: Option<u32>,
    /// Run as root, and every task with it
    #[arg(long)]
    allow_root: bool,
    /// Log level or directives, such as debug or info,quinn=debug
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Args)]
struct Doctor {
    #[command(flatten)]
    place: Place,
    /// Check with this invite instead of the one in the file
    #[arg(long, value_name = "cxi1_…")]
    invite: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a file with every setting, documented
    Example,
    /// Check a file; prints what is wrong with it
    Check {
        /// The file
        file: PathBuf,
    },
}

/// An error with the exit code it asks for.
struct Failed(u8, anyhow::Error);

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self(exit::FAILURE, error)
    }
}

fn usage(error: impl Into<anyhow::Error>) -> Failed {
    Failed(exit::USAGE, error.into())
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(flags) => run(flags),
        Command::Status(place) => status(&place),
        Command::Doctor(flags) => examine(&flags),
        Command::Config(ConfigCommand::Example) => {
            print!("{EXAMPLE}");
            Ok(exit::OK)
        }
        Command::Config(ConfigCommand::Check { file }) => check(&file),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(Failed(code, error)) => {
            eprintln!("cortex-peer: {error:#}");
            ExitCode::from(code)
        }
    }
}

fn settings(place: &Place) -> Result<PeerConfig, Failed> {
    let mut config: PeerConfig = cortex_runtime::config::load(place.config.as_deref(), PREFIX).map_err(usage)?;
    config.state_dir = place.state_dir.clone().or(config.state_dir);
    Ok(config)
}

/// One thread for everything that waits.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    Ok(runtime.block_on(future))
}

fn run(flags: Run) -> Result<u8, Failed> {
    let mut config = settings(&flags.place)?;
    config.name = flags.name.unwrap_or(config.name);
    config.workspace_dir = flags.workspace_dir.or(config.workspace_dir);
    config.max_retries = flags.max_retries.or(config.max_retries);
    config.allow_root |= flags.allow_root;
    config.invite = flags.invite.or(config.invite);
    config.log.filter = flags.log.unwrap_or(config.log.filter);
    telemetry::start(config.log.format, &config.log.filter).map_err(usage)?;
    if config::is_root() && !config.allow_root {
        return Err(usage(anyhow::anyhow!(
            "refusing to run as root, because every task would run as root too.\n\
             Make a user for it:   useradd --create-home cortex && su - cortex -c 'cortex-peer run …'\n\
             Or, knowing this:     cortex-peer run --allow-root …"
        )));
    }
    block_on(stay_connected(config, flags.place.config))?
}

async fn stay_connected(config: PeerConfig, file: Option<PathBuf>) -> Result<u8, Failed> {
    let state = State::open(&config.state_dir()).map_err(usage)?;
    let key = state.key().map_err(usage)?;
    let membership = state.membership().map_err(usage)?;
    let home = home(&config, membership.as_ref()).map_err(usage)?;
    let ceiling = config.ceiling().map_err(|error| usage(anyhow::anyhow!(error)))?;
    let tasks = Tasks::open(TasksOptions {
        state_dir: config.state_dir(),
        workspace_dir: config.workspace_dir(),
        node: key.clone(),
        ceiling: ceiling.clone(),
        shell: config.shell.clone(),
        environment: config.environment.clone(),
        bounds: Bounds::default(),
        policy_sequence: 0,
    })
    .map_err(usage)?;
    let described = capabilities::quick(ceiling.task_slots, &config.workspace_dir());
    let name = if config.name.is_empty() { described.hostname.clone() } else { config.name.clone() };
    let (tell, told) = watch::channel(described.clone());
    tokio::spawn(async move {
        let _ = tell.send(capabilities::with_tools(described).await);
        // Kept: a channel without a sender would look like news for ever.
        tell.closed().await;
    });
    let lifecycle = Lifecycle::new();
    tokio::spawn(lifecycle.clone().follow_signals(GRACE));
    let mut health = Health::new(config.workspace_dir());
    tracing::info!(fingerprint = key.public().fingerprint(), hub = %home.hub, version = env!("CARGO_PKG_VERSION"), "starting");
    let options = MeshOptions {
        key,
        hub: home.hub,
        relays: if config.relays.is_empty() { home.relays } else { config.relays },
        invite: home.invite,
        name,
        sequences: membership.as_ref().map(Membership::sequences).unwrap_or_default(),
        ceiling,
        capabilities: told,
        health: Box::new(move || health.report()),
        tasks,
        remember: Box::new(move |registered| {
            state.remember(&Membership::from(registered))?;
            // Only now: whatever happens before this, the invite can be used again by this very machine.
            file.as_deref().map_or(Ok(()), |file| {
                config::erase_invite(file).with_context(|| format!("cannot erase the invite from {}", file.display()))
            })
        }),
        max_retries: config.max_retries,
        lifecycle,
    };
    match mesh::run(options).await {
        Ok(()) => Ok(exit::OK),
        Err(error @ MeshError::Refused { .. }) => Err(Failed(exit::REFUSED, error.into())),
        Err(error @ MeshError::Unreachable(_)) => Err(Failed(exit::UNREACHABLE, error.into())),
        Err(error) => Err(Failed(exit::FAILURE, error.into())),
    }
}

/// Where this machine belongs.
struct Home {
    hub: HubId,
    relays: Vec<RelayEndpoint>,
    invite: Option<(Invite, Terms)>,
}

/// By what it has joined, or by its invite.
fn home(config: &PeerConfig, membership: Option<&Membership>) -> anyhow::Result<Home> {
    let invite = match &config.invite {
        Some(text) => Some(invite::read(text, clock::now_ms())),
        None => None,
    };
    match (membership, invite) {
        (Some(known), Some(Ok((_, terms)))) if terms.hub != known.hub => anyhow::bail!(
            "this machine belongs to the hub {} already, and the invite is for another one; give the second membership a state directory of its \
             own with --state-dir",
            known.hub_name
        ),
        // Joined: whatever became of the invite, it is not needed any more.
        (Some(known), _) => Ok(Home { hub: known.hub, relays: known.relays(), invite: None }),
        (None, Some(read)) => {
            let (invite, terms) = read?;
            Ok(Home { hub: terms.hub, relays: terms.relays.clone(), invite: Some((invite, terms)) })
        }
        (None, None) => anyhow::bail!(
            "this machine belongs to no hub yet; get an invite on the hub's page, and start with: cortex-peer run --invite cxi1_…"
        ),
    }
}

fn status(place: &Place) -> Result<u8, Failed> {
    let config = settings(place)?;
    let dir = config.state_dir();
    println!("state directory  {}", dir.display());
    match keyfile::load(&state::key_path(&dir)) {
        Ok(key) => println!("node             {}\nfingerprint      {}", key.public(), key.public().fingerprint()),
        Err(_) => println!("node             (no key yet; it is made at the first start)"),
    }
    match state::membership_in(&dir).map_err(usage)? {
        Some(known) => {
            println!("hub              {} ({})", known.hub_name, known.hub);
            println!("known there as   {}{}", known.name, if known.pending { " (waiting for approval)" } else { "" });
            known.relays().iter().for_each(|relay| println!("relay            {}", relay.address));
        }
        None => println!("hub              (none yet; join with: cortex-peer run --invite cxi1_…)"),
    }
    Ok(exit::OK)
}

fn examine(flags: &Doctor) -> Result<u8, Failed> {
    let mut config = settings(&flags.place)?;
    config.invite = flags.invite.clone().or(config.invite);
    let membership = state::membership_in(&config.state_dir()).ok().flatten();
    let home = home(&config, membership.as_ref());
    let report = block_on(doctor::examine(&config, home.map(|home| (home.hub, home.relays))))?;
    println!("{}", if flags.json { report.to_json() } else { report.to_text() });
    Ok(if report.failed() { exit::FAILURE } else { exit::OK })
}

fn check(file: &Path) -> Result<u8, Failed> {
    let config: PeerConfig = cortex_runtime::config::read(file).map_err(usage)?;
    config.ceiling().map_err(|error| usage(anyhow::anyhow!(error)))?;
    if let Some(text) = &config.invite {
        invite::read(text, clock::now_ms()).map_err(usage)?;
    }
    println!("{} is fine", file.display());
    Ok(exit::OK)
}
