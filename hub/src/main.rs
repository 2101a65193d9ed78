//! `cortex-hub`: the command line. Everything it does is in the library.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use cortex_hub::{
    account::{NewToken, NewUser},
    api,
    api::site::PublicUrl,
    config::{self, Config},
    demo::{self, DemoOptions},
    hub::{Hub, HubOptions},
    operator,
    record::{Role, Scope, User},
    serve,
};
use cortex_runtime::{
    clock,
    lifecycle::{Lifecycle, Parts, exit},
    telemetry,
};
use cortex_wire::invite::RelayEndpoint;
use data_encoding::BASE64URL_NOPAD;

/// What requests under way get between the first signal and the end.
const GRACE: Duration = Duration::from_secs(5);
/// What parts get to end by themselves after that.
const LAST: Duration = Duration::from_secs(2);

const ABOUT: &str = "\
The hub of Cortex Mesh: people's own machines, reached from a conversation session.

Start it with `cortex-hub serve`. It needs no configuration: it keeps everything in its data directory, serves the pages and the API on
http://127.0.0.1:8080, and runs a relay for peers on UDP port 4433. The first start prints a link with which you make the first
administrator; the page /download then makes machines into nodes.";

const AFTER: &str = "\
Where things are:
  data           /var/lib/cortex-hub as root, else $XDG_DATA_HOME/cortex-hub (~/.local/share/cortex-hub)
  configuration  /etc/cortex-hub/hub.yaml as root, else $XDG_CONFIG_HOME/cortex-hub/hub.yaml, if there is one
  every key      cortex-hub config
  API            /api/docs on the running hub, or: cortex-hub openapi

Settings come from the file, then the environment (CORTEX_HUB_LISTEN, CORTEX_HUB_RELAY_LISTEN, …), then flags.

Examples:
  cortex-hub serve
  cortex-hub serve --data ./hub --listen 127.0.0.1:9000
  cortex-hub serve --public-url https://hub.example.org
  cortex-hub admin create-user ada --role admin
  cortex-hub admin create-token ada --name ci --scope read --scope dispatch

Exit codes: 0 all is well, 1 it failed, 2 the command line or the configuration cannot be used.";

#[derive(Parser)]
#[command(name = "cortex-hub", version, about = ABOUT, after_help = AFTER, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

/// What every command that uses the data directory takes.
#[derive(Args)]
struct Settings {
    /// The configuration file
    #[arg(long, short, global = true, value_name = "FILE", env = "CORTEX_HUB_CONFIG")]
    config: Option<PathBuf>,
    /// The data directory
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What is logged: a level, or directives such as info,cortex_hub=debug
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the hub
    Serve(ServeFlags),
    /// Show the main job: a hub, a peer that joins it, and two commands in a session
    Demo(DemoFlags),
    /// Accounts and tokens, on this machine, while the hub is stopped
    #[command(subcommand)]
    Admin(Admin),
    /// Print the API's description (OpenAPI 3.1)
    Openapi,
    /// Print the documented configuration file
    Config,
}

#[derive(Args)]
struct ServeFlags {
    /// Where HTTP is served
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The address that people type, such as https://hub.example.org
    #[arg(long, value_name = "URL")]
    public_url: Option<PublicUrl>,
    /// The UDP address of the relay inside the hub
    #[arg(long, value_name = "ADDRESS")]
    relay_listen: Option<SocketAddr>,
    /// What peers dial to reach that relay: a host, or host:port
    #[arg(long, value_name = "HOST")]
    relay_address: Option<String>,
    /// A further relay, as `cortex-relay serve` prints it; may be given several times
    #[arg(long = "relay", value_name = "HOST:PORT#KEY")]
    relays: Vec<RelayEndpoint>,
    /// Run no relay inside the hub; then --relay is needed
    #[arg(long)]
    no_relay: bool,
}

#[derive(Args)]
struct DemoFlags {
    /// Stop everything at the end; the exit code is 0 only when all of it happened
    #[arg(long)]
    once: bool,
    /// Print one JSON object: {"node_id", "online_ms", "first_byte_ms", "tasks": [{"id", "state", "exit_code", "output"}]}
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Admin {
    /// Make an account; prints its password unless --password-stdin gives one
    CreateUser {
        /// The login name
        name: String,
        /// What it may do
        #[arg(long, value_enum, default_value = "member")]
        role: RoleName,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Give an account a new password; prints it unless --password-stdin gives one
    ResetPassword {
        /// The login name
        name: String,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Make an API token for an account; prints its text this once
    CreateToken {
        /// The login name
        user: String,
        /// A label
        #[arg(long, default_value = "made on the command line")]
        name: String,
        /// How far it reaches; may be given several times; everything when left out
        #[arg(long, value_enum)]
        scope: Vec<ScopeName>,
        /// Days until it is no good any more; until it is revoked when left out
        #[arg(long)]
        days: Option<u32>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleName {
    Viewer,
    Member,
    Admin,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScopeName {
    Read,
    Dispatch,
    Manage,
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::Member => Self::Member,
            RoleName::Admin => Self::Admin,
        }
    }
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Read => Self::Read,
            ScopeName::Dispatch => Self::Dispatch,
            ScopeName::Manage => Self::Manage,
            ScopeName::Admin => Self::Admin,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match settings(&cli) {
        Ok(config) => config,
        Err(error) => return fail(&error, exit::USAGE),
    };
    let outcome = match cli.command {
        Command::Openapi => api::openapi::to_text(&api::document()).map_err(anyhow::Error::from).and_then(|text| print(&text)),
        Command::Config => print(config::EXAMPLE),
        Command::Serve(_) => run(serve_until_stopped(&config)),
        Command::Demo(flags) => run(show(config, DemoOptions { once: flags.once, json: flags.json })),
        Command::Admin(command) => run(administer(&config, command)),
    };
    match outcome {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => fail(&error, exit::FAILURE),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("cortex-hub: {error:#}");
    ExitCode::from(code)
}

/// The file, the environment, and the flags over both.
fn settings(cli: &Cli) -> anyhow::Result<Config> {
    let mut config = Config::load(cli.settings.config.as_deref())?;
    config.data_dir = cli.settings.data.clone().or(config.data_dir);
    if let Some(filter) = &cli.settings.log {
        config.log.filter.clone_from(filter);
    }
    if let Command::Serve(flags) = &cli.command {
        config.listen = flags.listen.unwrap_or(config.listen);
        config.public_url = flags.public_url.clone().or(config.public_url);
        config.relay.listen = flags.relay_listen.unwrap_or(config.relay.listen);
        config.relay.address = flags.relay_address.clone().or(config.relay.address);
        config.relay.enabled &= !flags.no_relay;
        if !flags.relays.is_empty() {
            config.relays.clone_from(&flags.relays);
        }
    }
    if matches!(&cli.command, Command::Demo(_)) && cli.settings.log.is_none() {
        "warn".clone_into(&mut config.log.filter);
    }
    telemetry::start(config.log.format, &config.log.filter)?;
    Ok(config)
}

fn run(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

async fn serve_until_stopped(config: &Config) -> anyhow::Result<()> {
    let lifecycle = Lifecycle::new();
    let mut parts = Parts::new();
    let running = serve::start(config, &lifecycle, &mut parts).await?;
    tokio::spawn(lifecycle.clone().follow_signals(GRACE));
    tracing::info!(url = running.url, http = %running.http, hub = %running.hub.id(), data = %running.hub.data_dir().display(), "the hub is ready");
    // On standard output, where a person who has just started it looks, and not in the log, where it would stay.
    match running.hub.setup_token().await? {
        Some(token) => print(&format!(
            "\n  Cortex hub is ready at {url}\n  Its key, for relays elsewhere: {key}\n\n  It has no administrator yet. Make one:  {url}/#setup={token}\n  (this link works once; the next start prints another)\n\n",
            url = running.url,
            key = running.hub.id(),
        ))?,
        None => print(&format!("\n  Cortex hub is ready at {}\n  Its key, for relays elsewhere: {}\n\n", running.url, running.hub.id()))?,
    }
    parts.join(&lifecycle, LAST).await
}

async fn show(config: Config, options: DemoOptions) -> anyhow::Result<()> {
    let lifecycle = Lifecycle::new();
    tokio::spawn(lifecycle.clone().follow_signals(GRACE));
    demo::run(config, options, lifecycle).await
}

async fn administer(config: &Config, command: Admin) -> anyhow::Result<()> {
    let hub = Hub::open(&config.data_dir(), HubOptions { name: config.name.clone(), ..HubOptions::default() })
        .await
        .context("these commands work on the data directory itself, while the hub is stopped; a running hub does the same over its API")?;
    match command {
        Admin::CreateUser { name, role, password_stdin } => {
            let (password, made) = password(password_stdin)?;
            let user = operator::create_user(&hub, NewUser { name, password, role: role.into() }).await?;
            println!("made {} ({})", user.name, user.id);
            tell_password(made.as_deref());
        }
        Admin::ResetPassword { name, password_stdin } => {
            let user = find(&hub, &name).await?;
            let (password, made) = password(password_stdin)?;
            operator::reset_password(&hub, &user, password).await?;
            println!("{} has a new password; all its logins have ended", user.name);
            tell_password(made.as_deref());
        }
        Admin::CreateToken { user, name, scope, days } => {
            let user = find(&hub, &user).await?;
            let scopes = if scope.is_empty() { operator::ALL_SCOPES.into() } else { scope.into_iter().map(Scope::from).collect() };
            let expires_in_ms = days.map(|days| i64::from(days) * 24 * 3600 * 1000);
            println!("{}", operator::create_token(&hub, &user, NewToken { name, scopes, expires_in_ms }).await?);
        }
    }
    Ok(())
}

async fn find(hub: &Hub, name: &str) -> anyhow::Result<User> {
    let users = operator::users(hub).await?;
    let known = users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = users.iter().find(|user| user.name == name.to_lowercase()).cloned();
    found.with_context(|| format!("there is no account {name:?}; there are: {known}"))
}

/// The password, and a copy of it if it was made here and has to be shown.
fn password(from_stdin: bool) -> anyhow::Result<(String, Option<String>)> {
    if !from_stdin {
        let made = BASE64URL_NOPAD.encode(&clock::random::<15>());
        return Ok((made.clone(), Some(made)));
    }
    if std::io::stdin().is_terminal() {
        anyhow::bail!("--password-stdin reads a pipe, because a terminal would show the password; leave it out to have one made");
    }
    let mut text = String::new();
    std::io::stdin().take(4096).read_to_string(&mut text).context("cannot read the password from standard input")?;
    Ok((text.trim_end_matches(['\r', '\n']).to_owned(), None))
}

fn tell_password(made: Option<&str>) {
    if let Some(password) = made {
        println!("password: {password}");
    }
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
