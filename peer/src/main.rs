//! `cortex-peer`: the program.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use cortex_peer::{
    browser::{BrowserOptions, Browsers, Screen},
    capabilities, cgroup,
    config::{self, EXAMPLE, PeerConfig, SettingError},
    doctor,
    evidence::{self, Beside},
    health::Health,
    log::{self, read::Walk, show::Style},
    mesh::{
        self, KeySequences, MeshError, MeshOptions, Registered,
        shown::{Shown, ShownLink},
    },
    mirror::Mirror,
    process,
    sandbox::{self, Sandbox, shown::Shown as ShownSandbox},
    state::{self, HubRecord, RelayRecord, Sequences, State},
    task::{Tasks, TasksOptions},
};
use cortex_runtime::{
    clock,
    lifecycle::{Lifecycle, exit},
    reach::{Network, NetworkConfig},
    telemetry,
};
use cortex_wire::{
    id::{HubId, NodeId},
    invite::{self, RelayEndpoint, Terms},
    key::SecretKey,
    limits,
    schema::{Capabilities, Invite},
    text,
};
use serde_json::json;
use tokio::sync::watch;

/// From the first signal until everything is ended: tasks get five seconds, then the steps of a cancellation.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// What running tasks get of it when the hub is not there to hear of it.
const DRAIN: Duration = Duration::from_secs(5);

/// Cortex Mesh peer: makes this machine a node of a hub.
///
/// It connects to the hub through a relay (outgoing UDP, no open port), runs the tasks that the hub sends, under this machine's own policy, and streams
/// what they print. Everything a task may do, the user who runs this program may do.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  cortex-peer run --invite cxi1_…            join a hub and stay connected (the invite is on the hub's page)
  cortex-peer run --config peer.yaml         the same with a file; the invite is erased from it when it is used
  cortex-peer run                            again, after it has joined
  cortex-peer status                         who this node is, and to which hub it belongs
  cortex-peer doctor --config peer.yaml      what is wrong, and how to fix it
  cortex-peer log --follow                   everything that was ever run here, and what comes
  cortex-peer log --verify                   whether anybody has altered that
  cortex-peer verify evidence.json           whether a task's result is what its node has signed
  cortex-peer config example > peer.yaml     a file with every setting, documented

Every setting can also come from the environment: CORTEX_PEER_NAME, CORTEX_PEER_STATE_DIR, CORTEX_PEER_LOG_FILTER, …

Exit codes: 0 stopped in good order · 1 failed while running · 2 command line or settings cannot be used ·
3 the hub refuses this node, and max_retries is used up · 4 the hub cannot be reached, and max_retries is used up"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect to the hub and run its tasks until stopped.
    ///
    /// SIGINT or SIGTERM: nothing new is started, running tasks get five seconds, then they are cancelled. A second signal stops at once.
    Run(Run),
    /// Say who this node is and to which hub it belongs.
    Status {
        #[command(flatten)]
        place: Place,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Check what keeps this machine from its hub, and say how to fix it.
    ///
    /// Exit code 0 when nothing failed, 1 otherwise.
    Doctor {
        #[command(flatten)]
        place: Place,
        /// Check with this invite.
        #[arg(long, value_name = "INVITE")]
        invite: Option<String>,
        /// Running as root is wanted.
        #[arg(long)]
        allow_root: bool,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show everything that was ever run on this machine.
    ///
    /// Also while the peer runs. The log is a chain of hashes: what was altered, removed or moved in it is found by --verify.
    Log {
        #[command(flatten)]
        place: Place,
        /// Check the chain instead. Exit code 0 when it holds, 1 otherwise.
        #[arg(long, conflicts_with_all = ["follow", "json"])]
        verify: bool,
        /// Go on with what is run from now on.
        #[arg(long)]
        follow: bool,
        /// One JSON object in each line: the records themselves.
        #[arg(long)]
        json: bool,
    },
    /// Check a node's signed word about a task, without a hub.
    ///
    /// The file is what `GET /api/tasks/{id}/evidence` answers. Exit code 0 when all of it holds, 1 otherwise.
    Verify {
        /// The file.
        evidence: PathBuf,
        /// Also: this is everything it printed.
        #[arg(long, value_name = "FILE")]
        stdout: Option<PathBuf>,
        /// Also: this is everything it complained.
        #[arg(long, value_name = "FILE")]
        stderr: Option<PathBuf>,
        /// Also: the log in this state folder has its start.
        #[arg(long, value_name = "STATE_DIR")]
        log: Option<PathBuf>,
    },
    /// Help with the configuration file.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a file with every setting, documented.
    Example,
    /// Say whether a file can be used, and what is wrong with it.
    Check {
        /// The file.
        #[arg(long, value_name = "FILE", env = "CORTEX_PEER_CONFIG")]
        config: PathBuf,
    },
}

#[derive(clap::Args)]
struct Place {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "CORTEX_PEER_CONFIG")]
    config: Option<PathBuf>,
    /// Where key, journal and output are kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Run {
    #[command(flatten)]
    place: Place,
    /// The permission to join a hub; needed once.
    #[arg(long, value_name = "INVITE")]
    invite: Option<String>,
    /// What this machine is called on the hub's page [default: the host name].
    #[arg(long)]
    name: Option<String>,
    /// Where tasks start; one folder per session is made in it.
    #[arg(long, value_name = "DIR")]
    workspace_dir: Option<PathBuf>,
    /// A relay to use instead of those that the hub names; may be given several times.
    #[arg(long = "relay", value_name = "HOST:PORT#KEY")]
    relays: Vec<String>,
    /// Give up after this many tries in a row [default: never].
    #[arg(long, value_name = "N")]
    max_retries: Option<u32>,
    /// Run as root although tasks can then do anything to this machine.
    #[arg(long)]
    allow_root: bool,
    /// Log level or directives [default: info].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl Place {
    fn settings(&self) -> anyhow::Result<PeerConfig> {
        let mut settings = PeerConfig::load(self.config.as_deref())?;
        settings.state_dir = self.state_dir.clone().or(settings.state_dir);
        Ok(settings)
    }
}

impl Run {
    fn settings(&self) -> anyhow::Result<PeerConfig> {
        let mut settings = self.place.settings()?;
        settings.invite = self.invite.clone().or(settings.invite);
        settings.name = self.name.clone().or(settings.name);
        settings.workspace_dir = self.workspace_dir.clone().or(settings.workspace_dir);
        settings.max_retries = self.max_retries.or(settings.max_retries);
        settings.allow_root |= self.allow_root;
        if !self.relays.is_empty() {
            settings.relays.clone_from(&self.relays);
        }
        if let Some(filter) = &self.log {
            settings.log.filter.clone_from(filter);
        }
        settings.check()?;
        Ok(settings)
    }
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if std::env::args_os().nth(1).is_some_and(|word| word == sandbox::helper::WORD) {
        return sandbox::helper::run();
    }
    process::keep_inherited_descriptors();
    let outcome = match Cli::parse().command {
        Command::Run(command) => run(&command),
        Command::Status { place, json } => status(&place, json),
        Command::Doctor { place, invite, allow_root, json } => examine(&place, invite, allow_root, json),
        Command::Log { place, verify, follow, json } => show_log(&place, verify, Style { json, follow }),
        Command::Verify { evidence, stdout, stderr, log } => verify(&evidence, stdout.as_deref(), stderr.as_deref(), log),
        Command::Config { command: ConfigCommand::Example } => {
            print!("{EXAMPLE}");
            Ok(exit::OK)
        }
        Command::Config { command: ConfigCommand::Check { config } } => check(&config),
    };
    ExitCode::from(outcome.unwrap_or_else(|failure| {
        eprintln!("cortex-peer: {:#}", failure.error);
        failure.code
    }))
}

/// An error and what the program exits with.
struct Failure {
    code: u8,
    error: anyhow::Error,
}

type Outcome = Result<u8, Failure>;

/// Gives an error the exit code of its kind.
trait OrExit<T> {
    fn or_exit(self, code: u8) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> Result<T, Failure> {
        self.map_err(|error| Failure { code, error: error.into() })
    }
}

/// What still reads or writes a disk when everything else has ended.
const DISKS_END_WITHIN: Duration = Duration::from_secs(2);

/// One thread for everything that waits: the fastest on few cores, and the smallest.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start").or_exit(exit::FAILURE)
}

fn run(command: &Run) -> Outcome {
    let settings = command.settings().or_exit(exit::USAGE)?;
    telemetry::start(settings.log.format, &settings.log.filter).or_exit(exit::USAGE)?;
    if rustix::process::geteuid().is_root() && !settings.allow_root {
        return Err(anyhow::anyhow!(
            "this is root, and every task of the hub could then do anything to this machine. Run cortex-peer as an ordinary user, or pass \
             --allow-root (allow_root: true in the file) if that is what you want, in a container for instance"
        ))
        .or_exit(exit::USAGE);
    }
    let state = State::open(&settings.state_dir()).or_exit(exit::USAGE)?;
    let key = state.key().or_exit(exit::USAGE)?;
    let membership = Membership::find(&settings, &state).or_exit(exit::USAGE)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(connect(settings, command.place.config.clone(), state, key, membership));
    // Whoever waits for a disk that hangs would be waited for.
    runtime.shutdown_timeout(DISKS_END_WITHIN);
    ended
}

/// Which hub, and how to get there.
struct Membership {
    hub: HubId,
    relays: Vec<RelayEndpoint>,
    /// They are the settings' and not the hub's.
    fixed_relays: bool,
    invite: Option<(Invite, Terms)>,
    record: Option<HubRecord>,
}

impl Membership {
    fn find(settings: &PeerConfig, state: &State) -> anyhow::Result<Self> {
        let record = state.record()?;
        let invite = settings.invite.as_deref().map(|text| invite::read(text, clock::now_ms()));
        let (hub, known, invite) = match (&record, invite) {
            (None, None) => anyhow::bail!(
                "this machine has joined no hub yet. Make an invite on the hub's page, then: cortex-peer run --invite cxi1_… (or put it into the \
                 configuration file: invite: cxi1_…)"
            ),
            (None, Some(invite)) => {
                let (invite, terms) = invite?;
                (terms.hub, terms.relays.clone(), Some((invite, terms)))
            }
            (Some(record), Some(Ok((invite, terms)))) if record.hub == terms.hub => {
                let redeemed = record.invite_id == Some(terms.id.to_string());
                (record.hub, endpoints(record), (!redeemed).then_some((invite, terms)))
            }
            (Some(record), Some(Ok(_))) => anyhow::bail!(
                "this machine belongs to the hub `{}` already, and the invite is for another hub. One peer has one hub: start a second one with its own \
                 --state-dir, or remove {} to leave the first",
                record.hub_name,
                state.path().display()
            ),
            (Some(record), Some(Err(error))) => {
                tracing::warn!(%error, "the invite in the settings is of no use, and not needed: this machine has joined already");
                (record.hub, endpoints(record), None)
            }
            (Some(record), None) => (record.hub, endpoints(record), None),
        };
        let chosen = settings.relays()?;
        let fixed_relays = !chosen.is_empty();
        Ok(Self { hub, relays: if fixed_relays { chosen } else { known }, fixed_relays, invite, record })
    }
}

fn endpoints(record: &HubRecord) -> Vec<RelayEndpoint> {
    record.relays.iter().map(RelayEndpoint::from).collect()
}

async fn connect(settings: PeerConfig, config: Option<PathBuf>, state: State, key: SecretKey, membership: Membership) -> Outcome {
    let lifecycle = Lifecycle::new();
    tokio::spawn(lifecycle.clone().follow_signals(STOP_WITHIN));
    let sequences = membership.record.as_ref().map(|record| record.sequences).unwrap_or_default();
    let sandbox = Sandbox::of_this_program(settings.policy.readable.clone());
    let (groups, limits) = cgroup::find();
    if let Some(groups) = groups {
        sandbox.limit(groups);
    }
    let tasks = Tasks::open(TasksOptions {
        state_dir: state.path().to_owned(),
        workspace_dir: settings.workspace_dir(),
        node: key.clone(),
        ceiling: settings.ceiling(),
        shell: settings.shell.clone(),
        environment: settings.environment.clone(),
        bounds: settings.bounds(),
        browser: browser_options(&settings, &state).or_exit(exit::USAGE)?,
        sandbox: sandbox.clone(),
        policy_sequence: sequences.policy,
    })
    .or_exit(exit::FAILURE)?;
    tokio::spawn(drain_alone(lifecycle.clone(), tasks.clone()));
    let mirror = Mirror::new(settings.workspace_dir(), state.path(), NodeId::from(key.public()));
    tasks.set_mirror(mirror.clone());

    let browser = tasks.browsers().and_then(|browsers| browsers.find().ok());
    let mut levels = tasks.browsers().map(Browsers::level);
    let mut described = capabilities::quick(tasks.slots(), &settings.workspace_dir(), browser);
    let level = levels.as_mut().and_then(|level| *level.borrow_and_update());
    described.browser_sandbox = level.unwrap_or_default().into();
    if ["memory", "pids"].iter().all(|name| limits.controllers.iter().any(|held| held == name)) {
        described.skills.push("limits".into());
    }
    let (shown, folder) = (ShownSandbox::new(limits), state.path().to_owned());
    show_sandbox(&shown, &folder);
    let (describe, capabilities) = watch::channel(described.clone());
    tokio::spawn(async move {
        let sandbox = sandbox.level().await.clone();
        show_sandbox(&shown.with(&sandbox), &folder);
        let described = Capabilities { sandbox: Some(sandbox), ..described };
        describe.send_replace(described.clone());
        describe.send_replace(capabilities::with_tools(described).await);
        // Chromium's own walls show when it is started.
        let Some(mut levels) = levels else { return };
        while levels.changed().await.is_ok() {
            let level = levels.borrow_and_update().unwrap_or_default();
            describe.send_modify(|described| described.browser_sandbox = level.into());
        }
    });

    tracing::info!(fingerprint = key.public().fingerprint(), hub = %membership.hub, version = env!("CARGO_PKG_VERSION"), "starting");
    let mut health = Health::new(settings.workspace_dir());
    let options = MeshOptions {
        name: settings.name.clone().unwrap_or_else(|| capabilities.borrow().hostname.clone()),
        key,
        hub: membership.hub,
        relays: membership.relays.clone(),
        fixed_relays: membership.fixed_relays,
        show_links: show_links(state.path().to_owned()),
        invite: membership.invite.clone(),
        sequences: KeySequences { transport: sequences.transport, task: sequences.task },
        ceiling: settings.ceiling(),
        capabilities,
        health: Box::new(move || health.report()),
        tasks: tasks.clone(),
        mirror: mirror.clone(),
        show: {
            let folder = state.path().to_owned();
            state::show_way(&folder, None);
            Box::new(move |way| state::show_way(&folder, way))
        },
        remember: Box::new(remember(state, config, tasks.clone(), membership)),
        network: settings.network().or_exit(exit::USAGE)?,
        max_retries: settings.max_retries,
        lifecycle,
    };
    let outcome = mesh::run(options).await;
    mirror.close().await;
    if let Some(browsers) = tasks.browsers() {
        browsers.close_all().await;
    }
    tasks.end_now();
    match outcome {
        Ok(()) => Ok(exit::OK),
        Err(error) => {
            let code = match &error {
                MeshError::Setup(_) => exit::FAILURE,
                MeshError::Refused { .. } => exit::REFUSED,
                MeshError::Unreachable(_) => exit::UNREACHABLE,
            };
            Err(error).or_exit(code)
        }
    }
}

fn show_sandbox(shown: &ShownSandbox, folder: &Path) {
    if let Err(error) = shown.write(folder) {
        tracing::debug!(%error, "cannot show the sandbox");
    }
}

fn browser_options(settings: &PeerConfig, state: &State) -> Result<Option<BrowserOptions>, SettingError> {
    let allowed = Arc::new(settings.allowed_addresses()?);
    Ok(settings.browser.enabled.then(|| BrowserOptions {
        program: settings.browser.program.clone(),
        scratch_dir: state.path().join("browsers"),
        workspace_dir: settings.workspace_dir(),
        allowed,
        screen: (!settings.browser.headless).then(Screen::of_environment),
        idle: Duration::from_secs(settings.browser.idle_s),
        download_bytes: settings.browser.download_mib * 1024 * 1024,
    }))
}

/// Stops in good order when there is no connection over which to say goodbye.
async fn drain_alone(lifecycle: Lifecycle, tasks: Tasks) {
    lifecycle.draining().await;
    tasks.drain(DRAIN).await;
    // With a connection the network side leaves by itself, once it has said goodbye.
    tokio::time::sleep(Duration::from_secs(1)).await;
    lifecycle.stop();
}

/// Keeps what a registration taught, and erases the invite that it used up.
fn remember(
    state: State,
    config: Option<PathBuf>,
    tasks: Tasks,
    membership: Membership,
) -> impl FnMut(&Registered) -> anyhow::Result<()> + Send + 'static {
    let Membership { invite, record, .. } = membership;
    let invite_id = invite.map(|(_, terms)| terms.id.to_string()).or_else(|| record.and_then(|record| record.invite_id));
    let mut erase_from = config;
    move |registered: &Registered| {
        let Registered { hub, hub_name, node, name, relays, sequences, pending } = registered;
        state.remember(&HubRecord {
            hub: *hub,
            hub_name: hub_name.clone(),
            node: *node,
            name: name.clone(),
            relays: relays.iter().map(RelayRecord::from).collect(),
            sequences: Sequences { transport: sequences.transport, task: sequences.task, policy: tasks.policy_sequence() },
            pending: *pending,
            invite_id: invite_id.clone(),
        })?;
        // After the record: should the program die in between, the invite is still there to be tried again.
        if let Some(path) = erase_from.take()
            && let Err(error) = config::erase_invite(&path)
        {
            tracing::warn!(%error, "joined, but the configuration file keeps its invite");
        }
        Ok(())
    }
}

/// Keeps what `status` shows of the links.
fn show_links(folder: PathBuf) -> mesh::ShowLinks {
    let show = move |shown: &Shown| {
        if let Err(error) = shown.write(&folder) {
            tracing::debug!(%error, "cannot show which links there are");
        }
    };
    show(&Shown::default());
    Arc::new(show)
}

fn status(place: &Place, as_json: bool) -> Outcome {
    let settings = place.settings().or_exit(exit::USAGE)?;
    let folder = settings.state_dir();
    let record = state::record_in(&folder).or_exit(exit::FAILURE)?;
    let key = state::key_in(&folder).or_exit(exit::FAILURE)?.map(|key| key.public());
    let holder = state::holder_of(&folder);
    let way = state::way_in(&folder);
    let links = holder.and_then(|_| Shown::read(&folder)).unwrap_or_default();
    let sandbox = holder.and_then(|_| ShownSandbox::read(&folder));
    if as_json {
        let value = json!({
            "state_dir": folder,
            "running": holder.is_some(),
            "process": holder,
            "node_id": key.map(|key| key.to_string()),
            "fingerprint": key.map(|key| key.fingerprint()),
            "hub": record,
            "way": way,
            "home": links.home,
            "standby": links.standby,
            "sandbox": sandbox,
        });
        println!("{value}");
        return Ok(exit::OK);
    }
    println!("state        {}", folder.display());
    println!("running      {}", holder.map_or("no".to_owned(), |process| format!("yes, process {process}")));
    match key {
        Some(key) => println!("node id      {key}\nfingerprint  {}", key.fingerprint()),
        None => println!("node id      none yet; it is made at the first start"),
    }
    match record {
        Some(record) => {
            let pending = if record.pending { "  (waits for approval)" } else { "" };
            println!("name         {}{pending}\nhub          {}\nhub key      {}", record.name, record.hub_name, record.hub);
            for relay in &record.relays {
                println!("relay        {}", relay.address);
            }
            if let Some(way) = way {
                println!("packets go   {}, {} ms\nbeside it    {}", way.why, millis(way.rtt_us), way.relay);
            }
            if holder.is_some() {
                let line = |link: Option<ShownLink>, none: &str| link.map_or(none.to_owned(), |link| link.line());
                println!("home         {}", line(links.home, "none: not linked; `cortex-peer doctor` checks why"));
                println!("standby      {}", line(links.standby, "none: no other relay is linked"));
            }
        }
        None => println!("hub          none; join one with: cortex-peer run --invite cxi1_…"),
    }
    if let Some(sandbox) = sandbox {
        println!("{}", sandbox.lines());
    }
    Ok(exit::OK)
}

/// With one decimal.
fn millis(micros: u64) -> String {
    format!("{}.{}", micros / 1000, micros % 1000 / 100)
}

fn examine(place: &Place, invite: Option<String>, allow_root: bool, as_json: bool) -> Outcome {
    let settings = place.settings().or_exit(exit::USAGE)?;
    let folder = settings.state_dir();
    let record = state::record_in(&folder).ok().flatten();
    let invite = invite.or(settings.invite.clone()).map(|text| invite::read(&text, clock::now_ms()));
    let chosen = settings.relays().or_exit(exit::USAGE)?;
    let terms = invite.as_ref().and_then(|read| read.as_ref().ok()).map(|(_, terms)| terms);
    let known = record.as_ref().map(endpoints).or_else(|| terms.map(|terms| terms.relays.clone())).unwrap_or_default();
    let hub = record.as_ref().map(|record| record.hub).or_else(|| terms.map(|terms| terms.hub));
    let subject = doctor::Subject {
        relays: if chosen.is_empty() { known } else { chosen },
        workspace_dir: settings.workspace_dir(),
        allow_root: allow_root || settings.allow_root,
        invite_fault: invite.as_ref().and_then(|read| read.as_ref().err()).map(ToString::to_string),
        state_dir: folder.clone(),
        network: settings.network().or_exit(exit::USAGE)?,
        transport: settings.network.transport,
        sandbox: Sandbox::of_this_program(settings.policy.readable.clone()),
    };
    // A stranger's key does for a handshake. The node's own is not made by looking, and a peer that runs would lose its link to it.
    let own = if state::holder_of(&folder).is_some() { None } else { state::key_in(&folder).ok().flatten() };
    let is_own = own.is_some();
    let key = own.unwrap_or_else(|| SecretKey::from_seed(clock::random()));
    let report = runtime()?.block_on(doctor::examine(&subject, async |relay, transport| {
        let hub = hub.unwrap_or_else(|| key.public().into());
        let since = Instant::now();
        let network = Network::new(&NetworkConfig { transport, ..settings.network.clone() }).map_err(|error| error.to_string())?;
        let answer = mesh::probe(relay, &hub, &key, &network).await.map_err(|error| error.to_string())?;
        Ok(doctor::Answer {
            took: since.elapsed(),
            server_time_ms: Some(answer.server_time_ms).filter(|time| *time > 0),
            // What a stranger hears says nothing about this node.
            refused: answer.refused.filter(|_| is_own).map(|refused| text::clean(&refused.reason, limits::TEXT_BYTES)),
        })
    }));
    if as_json {
        println!("{}", json!({ "ok": report.is_sound(), "findings": report.findings }));
    } else {
        print!("{report}");
    }
    Ok(if report.is_sound() { exit::OK } else { exit::FAILURE })
}

fn show_log(place: &Place, verify: bool, style: Style) -> Outcome {
    let folder = place.settings().or_exit(exit::USAGE)?.state_dir().join("log");
    let unreadable = || {
        format!("cannot read the log of this machine in {}; a peer that has run makes it (another one's: --state-dir)", folder.display())
    };
    if !verify {
        log::show::show(&folder, style, &mut std::io::stdout().lock()).with_context(unreadable).or_exit(exit::FAILURE)?;
        return Ok(exit::OK);
    }
    let mut walk = Walk::default();
    walk.go_on(&folder, |_, _, _| Ok(())).with_context(unreadable).or_exit(exit::FAILURE)?;
    let verdict = walk.verdict();
    match &verdict.fault {
        None => {
            println!("{verdict}");
            Ok(exit::OK)
        }
        Some(fault) => {
            println!("{fault}");
            Ok(exit::FAILURE)
        }
    }
}

fn verify(path: &Path, stdout: Option<&Path>, stderr: Option<&Path>, state_dir: Option<PathBuf>) -> Outcome {
    let log = state_dir.map(|folder| folder.join("log"));
    let (found, response) = evidence::verify(path, Beside { stdout, stderr, log: log.as_deref() }).or_exit(exit::FAILURE)?;
    print!("{}", evidence::describe(&found, &response));
    println!("the node's signature holds");
    Ok(exit::OK)
}

fn check(path: &Path) -> Outcome {
    config::read(path).or_exit(exit::USAGE)?.check().or_exit(exit::USAGE)?;
    println!("{} can be used", path.display());
    Ok(exit::OK)
}
