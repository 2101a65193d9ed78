//! A running `cortex-hub`.

use std::{fs, net::SocketAddr, ops::Deref, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use cortex_runtime::{clock, keyfile};
use cortex_wire::key::SecretKey;
use data_encoding::HEXLOWER;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    api::{Client, Invite},
    net::{Door, Place},
    peer::{Peer, PeerOptions},
    program::{self, Process},
    relay::Relay,
    wait,
};

/// From start to ready, on a machine that is busy with other tests.
const READY: Duration = Duration::from_secs(20);

/// How a hub runs.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// Where.
    pub place: Place,
    /// Without a relay of its own.
    pub no_relay: bool,
    /// Relays elsewhere, `host:port#key`.
    pub relays: Vec<String>,
    /// The root key that it will have, so that relays can be told of it before it starts; none: it makes its own.
    pub root: Option<SecretKey>,
    /// Where it keeps contents of workspaces; none: in its data directory.
    pub mirror_dir: Option<PathBuf>,
    /// Further settings: an object, or null.
    pub settings: Value,
}

impl HubOptions {
    /// A hub without a relay of its own, which uses this one, and nothing but this one.
    pub fn behind(relay: &Relay, root: &SecretKey) -> Self {
        Self { settings: json!({"network": {"direct": false}}), ..Self::beside(relay, root) }
    }

    /// A hub without a relay of its own, which uses this one until a direct way is found.
    pub fn beside(relay: &Relay, root: &SecretKey) -> Self {
        Self { no_relay: true, relays: vec![relay.endpoint.clone()], root: Some(root.clone()), ..Self::default() }
    }
}

/// A hub with an administrator. It is the client of that administrator, too.
#[derive(Debug)]
pub struct Hub {
    /// Its process.
    pub process: Process,
    client: Client,
    options: HubOptions,
    home: TempDir,
    http_port: u16,
    relay_port: u16,
    _door: Option<Door>,
}

impl Deref for Hub {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A key for a hub.
pub fn fresh_root() -> SecretKey {
    SecretKey::from_seed(clock::random())
}

impl Hub {
    /// Starts a hub and a relay that were made for each other, on loopback.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn start_with_relay() -> Result<(Self, Relay)> {
        let root = fresh_root();
        let relay = Relay::start(&[&root.public().to_string()]).await?;
        Ok((Self::start_with(HubOptions::behind(&relay, &root)).await?, relay))
    }

    /// Starts a hub with a relay of its own, on loopback.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with(HubOptions::default()).await
    }

    /// Starts a hub, and makes its first administrator.     ///
    /// # Errors
    /// When it does not start.
    pub async fn start_with(options: HubOptions) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let (http_port, relay_port) = (program::free_port()?, program::free_port()?);
        configure(&options, &home, http_port, relay_port)?;
        if let Some(root) = &options.root {
            let keys = home.path().join("data/keys");
            keyfile::make_private_dir(&keys)?;
            keyfile::write_private(&keys.join("root.key"), HEXLOWER.encode(&root.to_seed()).as_bytes())?;
        }
        let mut process = spawn(&options, &home)?;
        let setup = process.line("its setup link", READY, |line| Some(line.split_once("#setup=")?.1.trim().to_owned())).await?;
        let (address, door) = options.place.door(http_port)?;
        let visitor = Client::new(format!("http://{address}"))?;
        visitor.set_up(&setup).await?;
        let client = visitor.with_token(visitor.make_token().await?);
        let mut hub = Self { process, client, options, home, http_port, relay_port, _door: door };
        hub.ready().await?;
        Ok(hub)
    }

    /// Changes the relays elsewhere; they count from the next start on.
    pub fn set_relays(&mut self, relays: &[&str]) {
        self.options.relays = relays.iter().map(|relay| (*relay).to_owned()).collect();
    }

    /// Its key, as relays are told of it.
    ///
    /// # Errors
    /// When it did not say it.
    pub fn key(&self) -> Result<String> {
        let log = self.process.log();
        let said = log.lines().find(|line| line.contains("the hub is ready")).context("the hub says that it is ready")?;
        let key = said.split_whitespace().find_map(|word| word.strip_prefix("hub="));
        Ok(key.context("its key")?.to_owned())
    }

    /// Where its own relay listens.
    pub fn relay_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.relay_port).into()
    }

    /// Where it serves HTTP, in its own network.
    pub fn http_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.http_port).into()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("hub.yaml")
    }

    /// Waits until it says that it is ready.
    async fn ready(&mut self) -> Result<()> {
        let look = async || {
            let ended = !self.process.is_running();
            let answer = self.client.request(Method::GET, "/readyz").timeout(Duration::from_secs(5)).send().await;
            let ready = answer.is_ok_and(|response| response.status().is_success());
            (ready || ended).then_some(ready)
        };
        ensure!(wait::until("the hub is ready", READY, look).await?, "the hub has ended before it was ready");
        Ok(())
    }

    /// Starts it again after its end, with the same data and ports.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.options, &self.home)?;
        self.ready().await
    }

    /// An invite for a machine that will be called `name`.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn invite_for(&self, name: &str) -> Result<Invite> {
        self.client.invite(json!({"name": name})).await
    }

    /// A peer that has joined and is online.
    ///
    /// # Errors
    /// When it does not join.
    pub async fn enrol(&self, name: &str) -> Result<Peer> {
        self.enrol_with(PeerOptions { name: name.to_owned(), ..PeerOptions::default() }).await
    }

    /// A peer that has joined and is online.
    ///
    /// # Errors
    /// When it does not join.
    pub async fn enrol_with(&self, options: PeerOptions) -> Result<Peer> {
        let invite = self.invite_for(&options.name).await?;
        let mut peer = Peer::start_with(&invite.text, options)?;
        peer.node = self.client.redeemed(&invite.id, READY).await?;
        self.client.node_is(&peer.node, "online", READY).await?;
        Ok(peer)
    }

    /// Walks the audit chain, and returns how many rows it has.
    ///
    /// # Errors
    /// When the chain does not hold.
    pub async fn verify_audit(&self) -> Result<u64> {
        let report: Value = self.client.get("/api/audit/verify").await?;
        ensure!(report["sound"] == true, "the audit chain is broken: {report}");
        report["rows"].as_u64().context("rows")
    }
}

fn configure(options: &HubOptions, home: &TempDir, http_port: u16, relay_port: u16) -> Result<()> {
    let mut settings = json!({
        "data_dir": home.path().join("data"),
        "mirror_dir": options.mirror_dir,
        "listen": format!("127.0.0.1:{http_port}"),
        "relay": {"listen": format!("127.0.0.1:{relay_port}")},
    });
    if let (Some(settings), Some(further)) = (settings.as_object_mut(), options.settings.as_object()) {
        settings.extend(further.clone());
    }
    // JSON is YAML.
    Ok(fs::write(home.path().join("hub.yaml"), settings.to_string())?)
}

fn spawn(options: &HubOptions, home: &TempDir) -> Result<Process> {
    let mut command = program::command("cortex-hub", &options.place, home.path())?;
    command.arg("serve").arg("--config").arg(home.path().join("hub.yaml"));
    if options.no_relay {
        command.arg("--no-relay");
    }
    options.relays.iter().for_each(|relay| _ = command.args(["--relay", relay]));
    Process::start("hub", command, home.path())
}
