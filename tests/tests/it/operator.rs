//! What operators do with relays and hubs that run: settings changed under way, probes, a second hub.

use std::{fs, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use cortex_tests::{
    api::Shell,
    hub::{Hub, HubOptions, fresh_root},
    net::Place,
    program::{self, Process},
    relay::Relay,
    wait,
};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{SOON, tunnel};

/// A relay with a configuration file, and where its `/readyz` is.
struct Region {
    relay: Relay,
    http: String,
    folder: tempfile::TempDir,
}

impl Region {
    async fn start(hubs: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let http = format!("{}:{}", Ipv4Addr::LOCALHOST, program::free_port()?);
        let file = folder.path().join("relay.yaml");
        write(&file, &settings(hubs, 10_000))?;
        let relay = Relay::start_saying(&[], &["--config", &file.display().to_string(), "--http", &http]).await?;
        Ok(Self { relay, http, folder })
    }

    /// Replaces the settings, as editors do.
    fn set(&self, text: &str) -> Result<()> {
        write(&self.folder.path().join("relay.yaml"), text)
    }

    async fn probe(&self, path: &str) -> Result<(u16, Value)> {
        let (status, text) = Relay::ask(&self.http, path).await?;
        Ok((status, serde_json::from_str(&text)?))
    }

    async fn becomes(&self, path: &str, status: u16) -> Result<Value> {
        let look = async || self.probe(path).await.ok().filter(|(found, _)| *found == status);
        Ok(wait::until(&format!("{path} answers {status}"), SOON, look).await?.1)
    }

    async fn values(&self) -> Result<std::collections::BTreeMap<String, f64>> {
        let (_, text) = Relay::ask(&self.http, "/metrics").await?;
        cortex_runtime::metrics::check(&text).map_err(anyhow::Error::msg)
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, file)?)
}

fn settings(hubs: &[&str], max_links: u32) -> String {
    json!({"hubs": hubs, "max_links": max_links}).to_string()
}

async fn sees_relay(hub: &Hub, relay: &Relay, online: bool) -> Result<Value> {
    let look = async || {
        let relays: Value = hub.get("/api/relays").await.ok()?;
        let found = relays["items"].as_array()?.iter().find(|listed| listed["address"] == relay.address())?.clone();
        (found["online"] == online).then_some(found)
    };
    wait::until(if online { "the hub is linked" } else { "the hub is not linked" }, Duration::from_secs(20), look).await
}

#[tokio::test]
async fn a_relay_that_is_told_its_hub_by_address_asks_for_its_key_once() -> Result<()> {
    let mut hub = Hub::start().await?;
    let address = hub.base().to_owned();
    let mut relay = Relay::start(&[&address]).await?;
    hub.post::<Value>("/api/relays", json!({"endpoint": relay.endpoint})).await?;
    sees_relay(&hub, &relay, true).await?;
    // The key is known now: nobody is asked, and nobody has to be there.
    hub.process.terminate(SOON).await?;
    relay.process.terminate(SOON).await?;
    relay.restart().await?;
    hub.restart().await?;
    sees_relay(&hub, &relay, true).await?;
    // One that never knew it does not start.
    hub.process.terminate(SOON).await?;
    ensure!(Relay::start(&[&address]).await.is_err(), "a relay serves a hub that it has never heard of");
    Ok(())
}

#[tokio::test]
async fn a_hub_is_asked_over_https_and_believed_when_this_machine_trusts_its_certificate() -> Result<()> {
    let (hub, home) = (Hub::start().await?, tempfile::tempdir()?);
    let at = |name: &str| home.path().join(name).display().to_string();
    tunnel::certify(home.path(), "localhost").await?;
    let port = program::free_port()?;
    let configuration = format!(
        "daemon off; pid {pid}; error_log stderr; events {{}}\n\
         http {{ access_log off; client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp}; uwsgi_temp_path {tmp}; scgi_temp_path {tmp};\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {chain}; ssl_certificate_key {key}; location / {{ proxy_pass {inside}; }} }} }}\n",
        pid = at("pid"),
        tmp = at("tmp"),
        chain = at("chain.pem"),
        key = at("key.pem"),
        inside = hub.base(),
    );
    fs::write(at("nginx.conf"), configuration)?;
    let _server = tunnel::proxy(&Place::Here, "nginx", &["-p", &at(""), "-c", &at("nginx.conf")], home.path())?;
    let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok();
    wait::until("the web server listens", SOON, listens).await?;
    let start = |certificates: &str, state: &str| {
        let mut command = program::command("cortex-relay", &Place::Here, home.path())?;
        command.args(["serve", "--listen", &format!("127.0.0.1:{}", program::free_port()?), "--hub", &format!("https://localhost:{port}")]);
        command.args(["--state-dir", &at(state)]).env("SSL_CERT_FILE", certificates);
        Process::start("relay", command, home.path())
    };
    let mut relay = start(&at("chain.pem"), "trusting")?;
    let key = relay.line("its hub's key", SOON, |line| line.contains("has said its key").then(|| line.to_owned())).await?;
    let introduction: Value = hub.get("/api/hub").await?;
    ensure!(introduction["key"].as_str().is_some_and(|own| key.contains(own)), "{key}");
    // What everybody else trusts does not vouch for it.
    let mut stranger = start("/etc/ssl/certs/ca-certificates.crt", "strange")?;
    stranger.line("why it does not start", SOON, |line| line.contains("cannot be asked for its key").then_some(())).await?;
    Ok(())
}

#[tokio::test]
async fn a_second_hub_is_served_and_sent_away_without_a_restart() -> Result<()> {
    let (here, there) = (fresh_root(), fresh_root());
    let (ours, theirs) = (here.public().to_string(), there.public().to_string());
    let mut region = Region::start(&[&ours]).await?;
    let start = |root| Hub::start_with(HubOptions::behind(&region.relay, root));
    let first = start(&here).await?;
    let peer = first.enrol("ours").await?;
    let session = first.session(&[&peer.node]).await?.id;
    let long = first.dispatch(&session, &Shell::script("for i in $(seq 1 60); do echo \"line $i\"; sleep 0.1; done")).await?;
    // The second hub has a relay of its own until this one serves it.
    let second =
        Hub::start_with(HubOptions { relays: vec![region.relay.endpoint.clone()], root: Some(there), ..HubOptions::default() }).await?;
    sees_relay(&second, &region.relay, false).await?;
    region.set(&settings(&[&ours, &theirs], 10_000))?;
    region
        .relay
        .process
        .line("that it serves one more", SOON, |line| (line.contains("settings were read again") && line.contains("added=1")).then_some(()))
        .await?;
    let listed = sees_relay(&second, &region.relay, true).await?;
    assert_eq!((&listed["region"], &listed["carrier"]), (&json!("test"), &json!("udp")), "{listed}");
    assert!(
        listed["load"].as_u64().is_some_and(|load| load <= 100)
            && listed["version"].as_str().is_some_and(|version| version.starts_with("cortex-relay"))
    );
    region.becomes("/readyz", 200).await?;

    // A file that cannot be used changes nothing.
    region.set("hubs: []\nmax_lings: 3\n")?;
    region
        .relay
        .process
        .line("why it is refused", SOON, |line| (line.contains("max_lings") && line.contains("did you mean `max_links`?")).then_some(()))
        .await?;
    region.set("hubs: [nonsense]\n")?;
    let refused = async || region.values().await.ok().filter(|values| values["cortex_relay_reloads_total{outcome=\"refused\"}"] >= 2.0);
    wait::until("both files are refused", SOON, refused).await?;
    region.becomes("/readyz", 200).await?;
    let theirs_node = second.enrol("theirs").await?;
    let other = second.session(&[&theirs_node.node]).await?.id;
    assert_eq!(second.run(&other, &Shell::argv(["echo", "second"])).await?.stdout, "second\n");

    // Sent away, the second hub's nodes go on by its own relay; the first one has noticed nothing.
    region.set(&settings(&[&ours], 5))?;
    region.relay.process.signal(Signal::HUP)?;
    sees_relay(&second, &region.relay, false).await?;
    assert_eq!(second.run(&other, &Shell::argv(["echo", "still"])).await?.stdout, "still\n");
    let ran = first.finish(&long.id, Duration::from_secs(30)).await?;
    let expected: String = (1..=60).map(|i| format!("line {i}\n")).collect();
    assert_eq!((ran.task.attempt, ran.stdout), (1, expected));
    let values = region.values().await?;
    assert_eq!(values["cortex_relay_links_limit"], 5.0);
    assert_eq!(values.keys().filter(|name| name.starts_with("cortex_relay_hub_up")).count(), 1);
    ensure!(region.relay.process.is_running(), "SIGHUP does not end it");
    Ok(())
}

#[tokio::test]
async fn a_relay_is_ready_as_long_as_its_hub_answers() -> Result<()> {
    let root = fresh_root();
    let key = root.public().to_string();
    let region = Region::start(&[&key]).await?;
    let alone = region.becomes("/readyz", 503).await?;
    assert_eq!(
        (&alone["ready"], &alone["udp"]["ok"], &alone["tcp"]["ok"], &alone["hubs"][0]["ok"]),
        (&json!(false), &json!(true), &json!(true), &json!(false)),
        "{alone}"
    );
    let mut hub = Hub::start_with(HubOptions::behind(&region.relay, &root)).await?;
    let well = region.becomes("/readyz", 200).await?;
    assert!(well["hubs"][0]["took_ms"].as_f64().is_some_and(|took| took > 0.0), "{well}");
    assert!(region.probe("/healthz").await.is_err(), "health is text");
    // It is linked, and stands still: only an echo finds out.
    hub.process.signal(Signal::STOP)?;
    let deaf = region.becomes("/readyz", 503).await;
    hub.process.signal(Signal::CONT)?;
    let deaf = deaf?;
    let problem = deaf["problems"][0].as_str().context("a problem")?;
    assert!(problem.contains(&key) && (problem.contains("no answer to an echo") || problem.contains("link")), "{problem}");
    region.becomes(&format!("/readyz?hub={key}"), 200).await?;
    assert_eq!(region.probe(&format!("/readyz?hub={}", fresh_root().public())).await?.0, 503);
    Ok(())
}

#[tokio::test]
async fn a_hub_is_ready_as_long_as_a_relay_answers() -> Result<()> {
    let (hub, mut relay) = Hub::start_with_relay().await?;
    let becomes = async |status: u16| {
        let look = async || {
            let answer = hub.request(Method::GET, "/readyz").send().await.ok()?;
            let found = answer.status().as_u16();
            answer.json::<Value>().await.ok().filter(|_| found == status)
        };
        wait::until(&format!("the hub's /readyz answers {status}"), SOON, look).await
    };
    assert_eq!(becomes(200).await?["problems"], json!([]));
    relay.process.signal(Signal::STOP)?;
    let deaf = becomes(503).await;
    relay.process.signal(Signal::CONT)?;
    let deaf = deaf?;
    assert_eq!((&deaf["store"], &deaf["mesh"]), (&json!(true), &json!(false)), "{deaf}");
    assert!(deaf["problems"][0].as_str().is_some_and(|problem| problem.starts_with("relay ")), "{deaf}");
    becomes(200).await?;
    Ok(())
}

#[tokio::test]
async fn the_hub_counts_what_its_workspaces_do() -> Result<()> {
    let hub = Hub::start().await?;
    let peer = hub.enrol("counted").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let values = async || {
        let text = hub.request(Method::GET, "/metrics").send().await?.error_for_status()?.text().await?;
        cortex_runtime::metrics::check(&text).map_err(anyhow::Error::msg)
    };
    let before = values().await?;
    hub.run(&session, &Shell::script("head -c 300000 /dev/urandom > noise; echo text > text")).await?;
    let moved = async || {
        let after = values().await.ok()?;
        let more = |name: &str| after[name] > before[name];
        (more("cortex_workspace_revisions_total") && more("cortex_chunk_bytes_total{direction=\"in\"}")).then_some(after)
    };
    let after = wait::until("the counters move", SOON, moved).await?;
    assert!(after["cortex_chunk_bytes_total{direction=\"in\"}"] >= 300_000.0);
    for name in [
        "cortex_chunks_stored_total",
        "cortex_workspace_conflicts_total",
        "cortex_workspace_nodes_behind",
        "cortex_chunk_bytes_total{direction=\"out\"}",
    ] {
        assert!(after.contains_key(name), "{name} is missing");
    }
    Ok(())
}

#[tokio::test]
async fn a_peer_shows_home_and_standby_and_sleeps_while_nothing_happens() -> Result<()> {
    let root = fresh_root();
    let key = root.public().to_string();
    let (near, far) = (Relay::start(&[&key]).await?, Relay::start(&[&key]).await?);
    let relays = vec![near.endpoint.clone(), far.endpoint.clone()];
    let hub = Hub::start_with(HubOptions { no_relay: true, relays, root: Some(root), ..HubOptions::default() }).await?;
    let peer = hub.enrol("idle").await?;
    let both = async || {
        let status = peer.status().await.ok()?;
        let measured = |which: &str| status[which]["rtt_us"].as_u64().is_some() && status[which]["carrier"] == "udp";
        (measured("home") && measured("standby")).then_some(status)
    };
    let status = wait::until("both links are shown", Duration::from_secs(20), both).await?;
    let shown = [status["home"]["relay"].as_str(), status["standby"]["relay"].as_str()].map(Option::unwrap_or_default);
    assert!(shown.contains(&near.address()) && shown.contains(&far.address()) && shown[0] != shown[1], "{status}");
    // All that wakes it up: heartbeats, pings of two links, and their answers.
    let woken = || wake_ups(peer.process.id());
    let (before, began) = (woken()?, std::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let rate = (woken()? - before) as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.2} wake-ups in a second");
    assert!(rate < 12.0, "{rate:.2} wake-ups in a second");
    Ok(())
}

/// Times that a process has gone to sleep by itself, over its threads.
fn wake_ups(process: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).context("a count")?;
        sum += line.trim().parse::<u64>()?;
    }
    Ok(sum)
}
