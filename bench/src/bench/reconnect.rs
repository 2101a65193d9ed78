//! A relay that is killed and started again, with thousands of nodes behind it.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use cortex_runtime::clock;
use cortex_wire::{id::RelayId, key::SecretKey};
use serde_json::json;

use super::{Bench, Setting};
use crate::{
    fleet::Fleet,
    interrupt,
    report::{Metric, Report, Target},
    stack::{Hub, Relay, free_port, hub_id},
};

pub const BENCH: Bench =
    Bench { name: "reconnect", what: "nodes that come back after a relay was restarted", against: &[], journalled: false, run };

/// How long is waited for what should take less than 30 s.
const PATIENCE: Duration = Duration::from_secs(120);

fn run(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let (folder, data, port) = (setting.folder(), setting.folder().join("hub"), free_port()?);
    let hubs = vec![hub_id(&data)?];
    let mut relay = Relay::start_on(port, folder, &hubs)?;
    let hub = Hub::start(folder, &data, &["--no-relay", "--relay", &relay.endpoint.to_string()])?;
    let mut client = hub.connect()?;
    // A relay that is nowhere: that it is no relay any more is what nodes are told while theirs is away.
    let nowhere = RelayId::from(SecretKey::from_seed(clock::random()).public());
    let address = format!("{}:{}", Ipv4Addr::LOCALHOST, free_port()?);
    client.call("POST", "/api/relays", Some(&json!({"endpoint": format!("{address}#{nowhere}")})))?;
    let nodes = setting.pick(5_000, 500);
    let invites = (0..nodes).map(|number| hub.invite(&mut client, &format!("simulated-{number}"))).collect::<anyhow::Result<_>>()?;
    let mut fleet = Fleet::join(folder, invites);
    fleet.wait_for(nodes, Duration::from_secs(600))?;
    until(|| Ok(fleet.knowing(2) == nodes && relay.links()? > nodes)).context("not all nodes have links and both relays")?;
    // The hub has closed a connection that was idle while they joined.
    client = hub.connect()?;
    relay.process.kill()?;
    client.send("DELETE", &format!("/api/relays/{nowhere}"), None)?;
    ensure!(client.receive()?.0.status == 204, "the relay could not be removed");
    std::thread::sleep(Duration::from_secs(1));
    let since = Instant::now();
    relay = Relay::start_on(port, folder, &hubs)?;
    until(|| Ok(relay.links()? > nodes)).context("not all nodes came back")?;
    let all_back = since.elapsed();
    let _ = until(|| Ok(fleet.knowing(1) == nodes));
    let lost = nodes - fleet.knowing(1);
    let what = "From starting a relay again that was killed a second before, to its last link, of 5,000 nodes with links and connections to their hub (500 when quick), in one process that speaks the peer's own protocol code.";
    let mut metric = Metric::single("s", what, all_back.as_secs_f64());
    metric.runs = nodes;
    report.add("all_back_s", metric.wanted(Target::at_most(30.0)));
    let what =
        "Nodes that have not heard what the hub said to all of them while the relay was away (that a second relay is no relay any more).";
    let mut metric = Metric::single("", what, lost as f64);
    metric.runs = nodes;
    report.add("lost_messages", metric.wanted(Target::at_most(0.0)));
    Ok(())
}

fn until(holds: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let since = Instant::now();
    while !holds()? {
        interrupt::check()?;
        ensure!(since.elapsed() < PATIENCE, "it was not so within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
