//! Networks that let no UDP through: links over TCP, through proxies and behind web servers, and the return to UDP.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::Shell,
    hub::{Hub, HubOptions, fresh_root},
    net::{ELSEWHERE, Lab, Place},
    peer::PeerOptions,
    program::{self, Process},
    relay::Relay,
    wait,
};
use serde_json::Value;

use crate::{SOON, nat::Away};

/// UDP is tried again soon.
const SOON_UDP: &str = "network:\n  udp_retry_s: 1\n";

impl Away {
    async fn path_is(&self, path: &str) -> Result<()> {
        let look = async || self.hub.node(&self.peer.node).await.ok().filter(|node| node.presence.path.as_deref() == Some(path)).map(drop);
        wait::until(&format!("the hub is told of the path {path}"), Duration::from_secs(30), look).await
    }

    async fn moves_megabytes(&self) -> Result<()> {
        let ran = self.hub.run(&self.session, &Shell::script("head -c 3000000 /dev/zero | tr '\\0' x")).await?;
        assert_eq!(ran.stdout.len(), 3_000_000);
        Ok(())
    }

    async fn doctor(&self, settings: &[&str]) -> Result<Value> {
        let mut command = self.peer.command()?;
        command.args(["doctor", "--json", "--allow-root", "--config"]).arg(self.peer.config()).args(settings);
        let said = program::run(command, Duration::from_secs(60)).await?;
        serde_json::from_str(&said.stdout).with_context(|| format!("no report: {said:?}"))
    }
}

fn verdict<'a>(report: &'a Value, check: &str) -> &'a str {
    let findings = report["findings"].as_array();
    findings.and_then(|all| all.iter().find(|one| one["check"] == check)?["verdict"].as_str()).unwrap_or("none")
}

#[tokio::test]
async fn a_machine_without_udp_joins_and_works_over_tcp() -> Result<()> {
    let away = Away::set_with("", |lab| lab.cut_udp()).await?;
    away.path_is("tcp").await?;
    away.moves_megabytes().await?;
    let report = away.doctor(&[]).await?;
    assert_eq!((verdict(&report, "udp"), verdict(&report, "tcp"), &report["ok"]), ("warn", "ok", &true.into()), "{report}");
    Ok(())
}

#[tokio::test]
async fn udp_that_goes_and_comes_under_a_task_costs_no_output() -> Result<()> {
    let mut away = Away::set_with(SOON_UDP, |_| Ok(())).await?;
    away.path_is("relay").await?;
    away.prints_on(async |lab| lab.cut_udp()).await?;
    away.path_is("tcp").await?;
    away.prints_on(async |lab| lab.heal_udp()).await?;
    away.path_is("relay").await?;
    let log = away.peer.process.log();
    let connections = log.lines().filter(|line| line.contains("online")).count();
    assert_eq!(connections, 1, "the connection to the hub went on through it all");
    assert!(away.peer.process.is_running());
    Ok(())
}

#[tokio::test]
async fn a_relay_that_starts_again_finds_its_nodes_over_tcp() -> Result<()> {
    let mut away = Away::set_with("", |lab| lab.cut_udp()).await?;
    away.path_is("tcp").await?;
    away.relay.process.kill9().await?;
    away.relay.restart().await?;
    away.hub.node_is(&away.peer.node, "online", Duration::from_secs(20)).await?;
    assert_eq!(away.hub.run(&away.session, &Shell::argv(["echo", "again"])).await?.stdout, "again\n");
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_where_packets_may_have_1280_bytes() -> Result<()> {
    let away = Away::set_with("", |lab| lab.narrow(1_280)).await?;
    away.path_is("relay").await?;
    away.moves_megabytes().await?;
    // Where it was wider when the connection was made, and where it was much wider.
    for wider in [|_: &Lab| Ok(()), Lab::widen] {
        let away = Away::set_with("", wider).await?;
        away.moves_megabytes().await?;
        away.prints_on(async |lab| lab.narrow(1_280)).await?;
        away.moves_megabytes().await?;
    }
    Ok(())
}

/// A proxy on the internet.
pub(crate) fn proxy(place: &Place, program: &str, words: &[&str], home: &Path) -> Result<Process> {
    let file = ["/usr/bin", "/usr/sbin"].map(|folder| Path::new(folder).join(program)).into_iter().find(|file| file.exists());
    let mut command = place.command(&file.with_context(|| format!("there is no {program} here; run scripts/setup-test.sh"))?);
    program::clean(&mut command, home);
    command.args(words);
    Process::start(program, command, home)
}

/// Makes `chain.pem` and `key.pem` in a folder: a certificate for this name that vouches for itself.
pub(crate) async fn certify(folder: &Path, name: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]);
    command.args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName=DNS:{name}")]);
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    command.arg("-keyout").arg(folder.join("key.pem")).arg("-out").arg(folder.join("chain.pem"));
    assert_eq!(program::run(command, SOON).await?.code, Some(0));
    Ok(())
}

/// A peer from whose network nothing but this proxy is reached.
async fn through(program: &str, words: &[&str], url: &str, port: u16) -> Result<()> {
    let home = tempfile::tempdir()?;
    let mut running = None;
    let settings = format!("network:\n  proxy: {url}\n");
    let away = Away::set_with(&settings, |lab| {
        running = Some(proxy(&lab.elsewhere(), program, words, home.path())?);
        lab.only_proxy(port)
    });
    let away = away.await?;
    away.path_is("tcp").await?;
    away.moves_megabytes().await?;
    let report = away.doctor(&[]).await?;
    assert_eq!((verdict(&report, "udp"), verdict(&report, "proxy")), ("warn", "ok"), "{report}");
    assert!(!report.to_string().contains("secret"), "{report}");
    Ok(())
}

#[tokio::test]
async fn a_network_with_nothing_but_an_http_proxy_is_enough() -> Result<()> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("tinyproxy.conf");
    fs::write(&file, format!("Port 3128\nListen {ELSEWHERE}\nBasicAuth user secret\nMaxClients 20\n"))?;
    let file = file.to_str().context("a path")?;
    through("tinyproxy", &["-d", "-c", file], &format!("http://user:secret@{ELSEWHERE}:3128"), 3128).await
}

#[tokio::test]
async fn a_network_with_nothing_but_a_socks_proxy_is_enough() -> Result<()> {
    let address = ELSEWHERE.to_string();
    let words = ["-i", &address, "-p", "1080", "-u", "user", "-P", "secret"];
    through("microsocks", &words, &format!("socks5://user:secret@{ELSEWHERE}:1080"), 1080).await
}

#[tokio::test]
async fn a_relay_works_behind_a_web_server() -> Result<()> {
    let home = tempfile::tempdir()?;
    let at = |name: &str| home.path().join(name).display().to_string();
    let (inside, root) = (program::free_port()?, fresh_root());
    let relay = Relay::start_saying(&[&root.public().to_string()], &["--behind-proxy", &format!("127.0.0.1:{inside}")]).await?;
    certify(home.path(), "relay.example").await?;
    // What docs/network.md says.
    let configuration = format!(
        "daemon off; pid {pid}; error_log stderr; events {{}}\n\
         http {{ access_log off; client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp}; uwsgi_temp_path {tmp}; scgi_temp_path {tmp};\n\
         server {{ listen {address} ssl; ssl_certificate {chain}; ssl_certificate_key {key};\n\
         location /cortex-link/ {{ proxy_pass http://127.0.0.1:{inside}; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;\n\
         proxy_set_header Connection upgrade; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_read_timeout 60s; }} }} }}\n",
        pid = at("pid"),
        tmp = at("tmp"),
        address = relay.address(),
        chain = at("chain.pem"),
        key = at("key.pem"),
    );
    fs::write(at("nginx.conf"), configuration)?;
    let _server = proxy(&Place::Here, "nginx", &["-p", &at(""), "-c", &at("nginx.conf")], home.path())?;
    let hub = Hub::start_with(HubOptions::behind(&relay, &root)).await?;
    let settings = "network:\n  transport: tcp\n";
    let peer = hub.enrol_with(PeerOptions { name: "inside".into(), settings: settings.into(), ..PeerOptions::default() }).await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let ran = hub.run(&session, &Shell::script("head -c 3000000 /dev/zero | tr '\\0' x")).await?;
    assert_eq!(ran.stdout.len(), 3_000_000);
    let node = hub.node(&peer.node).await?;
    assert_eq!(node.presence.path.as_deref(), Some("tcp"));
    Ok(())
}

#[tokio::test]
async fn a_hub_without_udp_reaches_its_relay_over_tcp() -> Result<()> {
    let root = fresh_root();
    let relay = Relay::start(&[&root.public().to_string()]).await?;
    let hub =
        Hub::start_with(HubOptions { settings: serde_json::json!({"network": {"transport": "tcp"}}), ..HubOptions::behind(&relay, &root) })
            .await?;
    let peer = hub.enrol("machine").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    assert_eq!(hub.run(&session, &Shell::script("head -c 3000000 /dev/zero | tr '\\0' x")).await?.stdout.len(), 3_000_000);
    Ok(())
}

#[tokio::test]
async fn a_browser_is_told_what_a_relay_is() -> Result<()> {
    let (_hub, relay) = Hub::start_with_relay().await?;
    let mut command = Command::new("curl");
    command.args(["-sk", "-w", "%{http_code}", &format!("https://{}/", relay.address())]);
    let said = program::run(command, SOON).await?;
    assert!(said.stdout.starts_with("This is a relay of Cortex Mesh") && said.stdout.ends_with("200"), "{said:?}");
    Ok(())
}
