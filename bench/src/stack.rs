//! Hub, relay and peer as processes: the release programs that lie beside this one, on loopback.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use cortex_runtime::keyfile;
use cortex_wire::{id::HubId, invite::RelayEndpoint};
use serde_json::{Value, json};

use crate::{
    http::{Client, Events},
    process::Process,
};

/// For a program to come up, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(20);

/// A relay of its own process.
#[derive(Debug)]
pub struct Relay {
    /// Its process.
    pub process: Process,
    /// Where it is.
    pub endpoint: RelayEndpoint,
    metrics: SocketAddr,
}

/// A hub with an administrator.
#[derive(Debug)]
pub struct Hub {
    /// Its process.
    pub process: Process,
    /// From the start of the process to its first good answer to `/readyz`.
    pub ready_after: Duration,
    /// Where it listens.
    pub address: SocketAddr,
    /// Those of its administrator.
    pub headers: Vec<String>,
}

/// A peer that has joined.
#[derive(Debug)]
pub struct Peer {
    /// Its process.
    pub process: Process,
    /// From the start of the process to the hub's event that says that it is online.
    pub online_after: Duration,
    /// Its node.
    pub node: String,
}

/// All three, and a session with the node. They end peer first.
#[derive(Debug)]
pub struct Stack {
    /// The peer.
    pub peer: Peer,
    /// The hub.
    pub hub: Hub,
    /// The relay, a process of its own.
    pub relay: Relay,
    /// The session.
    pub session: String,
}

impl Stack {
    /// Starts all three in `folder`. The relay serves `guests`, too.
    pub fn start(folder: &Path, guests: &[HubId]) -> anyhow::Result<Self> {
        Self::start_with(folder, guests, "")
    }

    /// The same, with further settings of the peer.
    pub fn start_with(folder: &Path, guests: &[HubId], settings: &str) -> anyhow::Result<Self> {
        let data = folder.join("hub");
        let relay = Relay::start(folder, &[&[hub_id(&data)?], guests].concat())?;
        let hub = Hub::start(folder, &data, &["--no-relay", "--relay", &relay.endpoint.to_string()])?;
        let peer = Peer::join_with(&hub, &folder.join("peer"), settings)?;
        let session = hub.session(&peer.node)?;
        Ok(Self { peer, hub, relay, session })
    }

    /// Where this session's tasks are dispatched.
    pub fn dispatch_path(&self) -> String {
        format!("/api/sessions/{}/dispatch", self.session)
    }

    /// The session's events from now on, with output.
    pub fn events(&self) -> anyhow::Result<Events> {
        self.hub.connect()?.events(&format!("/api/sessions/{}/events?live=true&output=true", self.session))
    }
}

/// The id of the hub that keeps its data there: its key is made now if there is none.
pub fn hub_id(data: &Path) -> anyhow::Result<HubId> {
    Ok(keyfile::load_or_create(&data.join("keys/root.key"))?.public().into())
}

fn program(name: &str) -> anyhow::Result<Command> {
    let path: PathBuf = std::env::current_exe()?.with_file_name(name);
    ensure!(path.is_file(), "there is no {name} beside cortex-bench; build it: cargo build --release --workspace --bins");
    Ok(Command::new(path))
}

/// A port that nobody has for UDP and TCP.
pub fn free_port() -> anyhow::Result<u16> {
    loop {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
}

impl Relay {
    /// For these hubs.
    pub fn start(folder: &Path, hubs: &[HubId]) -> anyhow::Result<Self> {
        Self::start_on(0, folder, hubs)
    }

    /// On a port of its own, so that it can be started again.
    pub fn start_on(port: u16, folder: &Path, hubs: &[HubId]) -> anyhow::Result<Self> {
        let mut command = program("cortex-relay")?;
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--state-dir"]).arg(folder.join("relay"));
        command.args(["--http", &metrics.to_string()]);
        command.args(hubs.iter().flat_map(|hub| ["--hub".to_owned(), hub.to_string()]));
        let mut process = Process::start("cortex-relay", &mut command, folder)?;
        let endpoint = process.wait_for("its address", PATIENCE, |process| process.printed().lines().next()?.parse().ok())?;
        Ok(Self { process, endpoint, metrics })
    }
}

impl Relay {
    /// Links of nodes and hubs that it has right now.
    pub fn links(&self) -> anyhow::Result<usize> {
        let mut client = Client::connect(self.metrics, &[])?;
        client.send("GET", "/metrics", None)?;
        let (_, page) = client.receive()?;
        let page = String::from_utf8_lossy(&page);
        let counts = page
            .lines()
            .filter(|line| line.starts_with("cortex_relay_links{"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
        counts.reduce(|sum, count| sum + count).context("the relay tells how many links it has")
    }
}

impl Hub {
    /// Starts a hub whose data is in `data`, and makes its administrator if there is none.
    pub fn start(folder: &Path, data: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let config = folder.join("hub.yaml");
        fs::write(&config, "{}")?; // not the one of this machine
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = program("cortex-hub")?;
        // What is measured is the way through the relay.
        command.env("CORTEX_HUB_NETWORK_DIRECT", "false");
        command.arg("serve").arg("--config").arg(&config).arg("--data").arg(data).args(["--listen", &address.to_string()]).args(arguments);
        let since = Instant::now();
        let mut process = Process::start("cortex-hub", &mut command, folder)?;
        process.wait_for("readiness", PATIENCE, |_| is_ready(address))?;
        let ready_after = since.elapsed();
        let setup = process.wait_for("its greeting", PATIENCE, |process| {
            let printed = process.printed();
            let token = printed.split_once("#setup=").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default().to_owned());
            printed.contains("is ready").then_some(token)
        })?;
        let key = folder.join("token");
        if let Some(setup) = setup {
            fs::write(&key, make_administrator(address, &setup)?)?;
        }
        let token = fs::read_to_string(&key).context("the hub was set up by somebody else")?;
        Ok(Self { process, ready_after, address, headers: vec![format!("Authorization: Bearer {token}")] })
    }

    /// A persistent connection of its own.
    pub fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.address, &self.headers)?)
    }

    /// Everything that happens on the hub from now on.
    pub fn events(&self) -> anyhow::Result<Events> {
        self.connect()?.events("/api/events")
    }

    /// A fresh invite.
    pub fn invite(&self, client: &mut Client, name: &str) -> anyhow::Result<String> {
        let fresh = client.call("POST", "/api/nodes/invite", Some(&json!({"name": name})))?;
        text(&fresh, "invite")
    }

    /// A fresh session with this node.
    pub fn session(&self, node: &str) -> anyhow::Result<String> {
        let session = self.connect()?.call("POST", "/api/sessions", Some(&json!({"title": "benchmark", "node_ids": [node]})))?;
        text(&session, "id")
    }
}

fn is_ready(address: SocketAddr) -> Option<()> {
    let mut client = Client::connect(address, &[]).ok()?;
    client.send("GET", "/readyz", None).ok()?;
    client.receive().ok().filter(|(head, _)| head.status == 200).map(drop)
}

/// The administrator's login name.
pub const BENCH_NAME: &str = "bench";
/// Their password.
pub const BENCH_PASSWORD: &str = "only for this benchmark";

/// Makes the administrator, and answers a token of theirs.
fn make_administrator(address: SocketAddr, setup: &str) -> anyhow::Result<String> {
    let mut visitor = Client::connect(address, &[])?;
    let body = json!({"token": setup, "name": BENCH_NAME, "password": BENCH_PASSWORD});
    visitor.send("POST", "/api/setup", Some(&body.to_string()))?;
    let (head, answer) = visitor.receive()?;
    ensure!(head.status == 200, "the set-up was refused: {}", String::from_utf8_lossy(&answer));
    let headers = [format!("Cookie: {}", head.cookies.join("; ")), format!("Origin: http://{address}")];
    let mut administrator = Client::connect(address, &headers)?;
    let body = json!({"name": "bench", "scopes": ["read", "dispatch", "manage", "admin"]});
    text(&administrator.call("POST", "/api/tokens", Some(&body))?, "text")
}

impl Peer {
    /// Starts a peer in `folder` with a fresh invite.
    pub fn join(hub: &Hub, folder: &Path) -> anyhow::Result<Self> {
        Self::join_with(hub, folder, "")
    }

    /// The same, with further settings.
    pub fn join_with(hub: &Hub, folder: &Path, settings: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let invite = hub.invite(&mut hub.connect()?, "bench")?;
        let at = folder.display();
        fs::write(folder.join("peer.yaml"), format!("invite: {invite}\nstate_dir: {at}/state\nworkspace_dir: {at}/work\n{settings}"))?;
        Self::start(hub, folder)
    }

    /// Starts the peer that has joined from `folder`.
    pub fn start(hub: &Hub, folder: &Path) -> anyhow::Result<Self> {
        let mut events = hub.events()?;
        let mut command = program("cortex-peer")?;
        command.args(["run", "--allow-root", "--config"]).arg(folder.join("peer.yaml"));
        let since = Instant::now();
        let mut process = Process::start("cortex-peer", &mut command, folder)?;
        // Other peers may come online meanwhile: which one this is, it says itself.
        let node = process.wait_for("its registration", PATIENCE, |process| {
            let lines = process.logged();
            let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["message"] == "online").and_then(|line| text(&line, "node").ok())
        })?;
        let event = events.find(|event| {
            let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
            event.name == "node" && data["data"]["state"] == "online" && data["data"]["node_id"] == node.as_str()
        });
        let online_after = event.context("the peer did not come online")?.at - since;
        Ok(Self { process, online_after, node })
    }
}

fn text(value: &Value, name: &str) -> anyhow::Result<String> {
    Ok(value[name].as_str().with_context(|| format!("no {name} in {value}"))?.to_owned())
}
