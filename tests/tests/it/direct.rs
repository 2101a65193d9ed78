//! Packets that go past the relays: when, why not, and that nothing is lost when they have to come back.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::Result;
use cortex_tests::{
    api::{Presence, Shell, problem},
    hub::{Hub, HubOptions, fresh_root},
    net::{ELSEWHERE, Lab, Nat, RELAY},
    peer::{Peer, PeerOptions},
    relay::Relay,
    switch::{Habits, Switch},
    wait,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{SOON, nat::prints_through};

/// Waits until the node's packets go this way, and answers why they do.
async fn goes(hub: &Hub, peer: &Peer, path: &str) -> Result<Presence> {
    let look = async || Some(hub.node(&peer.node).await.ok()?.presence).filter(|now| now.path.as_deref() == Some(path));
    wait::until(&format!("packets go by {path}"), Duration::from_secs(15), look).await
}

/// Waits until the node says this of its way.
async fn says(hub: &Hub, peer: &Peer, reason: &str) -> Result<Presence> {
    let look = async || Some(hub.node(&peer.node).await.ok()?.presence).filter(|now| now.path_reason.as_deref() == Some(reason));
    wait::until(&format!("the node says {reason:?}"), Duration::from_secs(15), look).await
}

async fn set_policy(hub: &Hub, peer: &Peer, policy: &str) -> Result<Value> {
    hub.call(Method::PATCH, &format!("/api/nodes/{}", peer.node), Some(&json!({"path_policy": policy}))).await
}

async fn same_machine() -> Result<(Hub, Relay)> {
    let root = fresh_root();
    let relay = Relay::start(&[&root.public().to_string()]).await?;
    Ok((Hub::start_with(HubOptions::beside(&relay, &root)).await?, relay))
}

#[tokio::test]
async fn on_one_machine_packets_go_past_the_relay_and_the_node_works_on_when_that_dies() -> Result<()> {
    let (hub, mut relay) = same_machine().await?;
    let peer = hub.enrol("near").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let presence = goes(&hub, &peer, "direct").await?;
    assert_eq!(presence.path_reason.as_deref(), Some("direct: the hub is on the same machine"));
    assert!(presence.relay.is_some(), "the relay stays linked: {presence:?}");
    relay.process.kill9().await?;
    let ran = hub.run(&session, &Shell::script("head -c 3000000 /dev/zero | tr '\\0' x")).await?;
    assert_eq!(ran.stdout.len(), 3_000_000);
    Ok(())
}

#[tokio::test]
async fn files_go_past_the_relay_as_well() -> Result<()> {
    let (hub, mut relay) = same_machine().await?;
    let peer = hub.enrol("near").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    goes(&hub, &peer, "direct").await?;
    relay.process.kill9().await?;
    let contents: Vec<u8> = (0u32..1 << 20).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    hub.put_file(&session, "down", &[], contents.clone()).await?;
    let folder = peer.workspace(&session);
    let there = async || (std::fs::read(folder.join("down")).ok()? == contents).then_some(());
    wait::until("the file is on the node", Duration::from_secs(30), there).await?;
    std::fs::write(folder.join("up"), &contents[1..])?;
    let back = async || (hub.file(&session, "up").await.ok()? == contents[1..]).then_some(());
    wait::until("the file is at the hub", Duration::from_secs(30), back).await
}

#[tokio::test]
async fn the_hubs_own_relay_is_direct_enough_and_the_peer_says_which_way_it_goes() -> Result<()> {
    let hub = Hub::start().await?;
    let peer = hub.enrol("near").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let why = "relay: it is the hub's own, so nothing is between hub and node";
    says(&hub, &peer, why).await?;
    set_policy(&hub, &peer, "direct_only").await?;
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "there"])).await?.stdout, "there\n");
    let status = peer.status().await?;
    assert_eq!((&status["way"]["path"], &status["way"]["why"]), (&json!("relay"), &json!(why)), "{status}");
    let audit: Value = hub.get("/api/audit?limit=200").await?;
    let rows = audit["items"].as_array().cloned().unwrap_or_default();
    assert!(rows.iter().any(|row| row["verb"] == "node.update"), "{audit}");
    Ok(())
}

#[tokio::test]
async fn datagrams_that_come_late_twice_or_not_at_all_cost_no_output() -> Result<()> {
    let root = fresh_root();
    let relay = Relay::start(&[&root.public().to_string()]).await?;
    let hub = Hub::start_with(HubOptions::behind(&relay, &root)).await?;
    let (address, key) = relay.endpoint.split_once('#').unwrap_or_default();
    let habits = Habits {
        delay: Duration::from_millis(4),
        jitter: Duration::from_millis(4),
        reordered: 50,
        late: Duration::from_millis(30),
        doubled: 30,
        lost: 20,
    };
    for seed in [1, 7, 1234] {
        let switch = Switch::start(address.parse()?, habits, seed).await?;
        let settings = format!("relays: ['{}#{key}']\nnetwork: {{transport: udp}}\n", switch.address);
        let peer = hub.enrol_with(PeerOptions { name: format!("behind-a-switch-{seed}"), settings, ..PeerOptions::default() }).await?;
        let session = hub.session(&[&peer.node]).await?.id;
        let ran = hub.run(&session, &Shell::script("seq 1 100000")).await?;
        let expected: String = (1..=100_000).map(|i| format!("{i}\n")).collect();
        assert_eq!(ran.stdout, expected, "seed {seed}");
        let seen = [&switch.seen.reordered, &switch.seen.doubled, &switch.seen.lost].map(|count| count.load(Relaxed));
        assert!(seen.iter().all(|count| *count > 0), "seed {seed}: {:?}", switch.seen);
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_decides_which_way_packets_may_go_and_the_api_says_why() -> Result<()> {
    let (hub, _relay) = same_machine().await?;
    let peer = hub.enrol("near").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    goes(&hub, &peer, "direct").await?;
    let changed = set_policy(&hub, &peer, "relay_only").await?;
    assert_eq!(changed["path_policy"], "relay_only");
    says(&hub, &peer, "relay: the node's policy on the hub is relay only").await?;
    assert_eq!(goes(&hub, &peer, "relay").await?.state, "online");
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "by relay"])).await?.stdout, "by relay\n");
    set_policy(&hub, &peer, "direct_only").await?;
    goes(&hub, &peer, "direct").await?;
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "directly"])).await?.stdout, "directly\n");
    let refused = problem(set_policy(&hub, &peer, "sideways").await)?;
    assert_eq!(refused.status, 400, "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_may_only_go_directly_and_cannot_takes_no_tasks_and_says_so() -> Result<()> {
    let (hub, _relay) = same_machine().await?;
    let settings = "network: {direct: false}\n".to_owned();
    let peer = hub.enrol_with(PeerOptions { name: "stubborn".into(), settings, ..PeerOptions::default() }).await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let reason = "relay: the peer's own settings allow no direct way (network.direct)";
    says(&hub, &peer, reason).await?;
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "by relay"])).await?.stdout, "by relay\n");
    set_policy(&hub, &peer, "direct_only").await?;
    let refusal = async || problem(hub.dispatch(&session, &Shell::argv(["true"])).await).ok();
    let refused = wait::until("a refusal", SOON, refusal).await?;
    assert_eq!((refused.status, refused.code.as_str()), (503, "no_direct_way"));
    assert!(refused.detail.contains(reason) && refused.fix.contains("path_policy"), "{refused:?}");
    // What waits goes when it may.
    let waits = hub.dispatch(&session, &Shell { queue_timeout_ms: 60_000, ..Shell::argv(["echo", "late"]) }).await?;
    set_policy(&hub, &peer, "auto").await?;
    assert_eq!(hub.finish(&waits.id, SOON).await?.stdout, "late\n");
    Ok(())
}

/// Hub, relay and peer on different machines. The laboratory goes last: what runs in it has ended then.
struct Far {
    hub: Hub,
    peer: Peer,
    session: String,
    _relay: Relay,
    lab: Lab,
}

impl Far {
    /// The hub is on the internet, the peer behind a router.
    async fn from_public_hub(change: impl FnOnce(&Lab) -> Result<()>) -> Result<Self> {
        Self::set(true, change).await
    }

    /// Both are behind routers.
    async fn from_private_hub(change: impl FnOnce(&Lab) -> Result<()>) -> Result<Self> {
        Self::set(false, change).await
    }

    async fn set(public: bool, change: impl FnOnce(&Lab) -> Result<()>) -> Result<Self> {
        let lab = Lab::build().await?;
        change(&lab)?;
        let root = fresh_root();
        let relay = Relay::start_at(lab.relay(), RELAY, &[&root.public().to_string()]).await?;
        let place = if public { lab.elsewhere() } else { lab.hub() };
        let hub = Hub::start_with(HubOptions { place, ..HubOptions::beside(&relay, &root) }).await?;
        let peer = hub.enrol_with(PeerOptions { place: lab.peer(), name: "behind-nat".into(), ..PeerOptions::default() }).await?;
        let session = hub.session(&[&peer.node]).await?.id;
        Ok(Self { hub, peer, session, _relay: relay, lab })
    }

    async fn goes(&self, path: &str) -> Result<Presence> {
        goes(&self.hub, &self.peer, path).await
    }

    /// A new start of the peer in a network that was changed.
    async fn again(&mut self, change: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
        self.peer.process.kill9().await?;
        self.hub.node_is(&self.peer.node, "offline", Duration::from_secs(20)).await?;
        change(&self.lab)?;
        self.peer.restart()?;
        self.hub.node_is(&self.peer.node, "online", Duration::from_secs(20)).await.map(drop)
    }

    async fn prints_on(&self, change: impl AsyncFnOnce(&Lab) -> Result<()>) -> Result<()> {
        prints_through(&self.hub, &self.session, async || change(&self.lab).await).await
    }
}

#[tokio::test]
async fn a_peer_behind_any_router_reaches_a_public_hub_directly() -> Result<()> {
    let mut far = Far::from_public_hub(|lab| lab.peer_nat(Nat::FullCone)).await?;
    assert_eq!(far.goes("direct").await?.path_reason.as_deref(), Some("direct: the hub has a public address"));
    for nat in [Nat::AddressRestricted, Nat::PortRestricted, Nat::Symmetric] {
        far.again(|lab| lab.peer_nat(nat)).await?;
        far.goes("direct").await?;
    }
    let ran = far.hub.run(&far.session, &Shell::script("head -c 3000000 /dev/zero | tr '\\0' x")).await?;
    assert_eq!(ran.stdout.len(), 3_000_000);
    Ok(())
}

#[tokio::test]
async fn two_firewalls_are_opened_from_both_sides_when_that_is_possible() -> Result<()> {
    let mut far = Far::from_private_hub(|lab| lab.peer_nat(Nat::PortRestricted)).await?;
    let punched = "direct: the firewalls on both sides let each other's packets in";
    assert_eq!(far.goes("direct").await?.path_reason.as_deref(), Some(punched));
    far.again(|lab| lab.peer_nat(Nat::FullCone)).await?;
    far.goes("direct").await?;
    // One side shows every address another port: the other must not look at ports.
    far.again(|lab| lab.peer_nat(Nat::Symmetric)).await?;
    says(&far.hub, &far.peer, "relay: no direct address answered").await?;
    far.again(|lab| lab.hub_nat(Nat::AddressRestricted)).await?;
    far.goes("direct").await?;
    Ok(())
}

#[tokio::test]
async fn two_symmetric_routers_leave_the_relay() -> Result<()> {
    let symmetric = |lab: &Lab| lab.peer_nat(Nat::Symmetric).and_then(|()| lab.hub_nat(Nat::Symmetric));
    let far = Far::from_private_hub(symmetric).await?;
    let presence = says(&far.hub, &far.peer, "relay: no direct address answered").await?;
    assert_eq!(presence.path.as_deref(), Some("relay"));
    assert_eq!(far.hub.run(&far.session, &Shell::argv(["echo", "by relay"])).await?.stdout, "by relay\n");
    Ok(())
}

#[tokio::test]
async fn a_carrier_that_translates_once_more_is_passed_as_well() -> Result<()> {
    let far = Far::from_private_hub(Lab::put_carrier).await?;
    far.goes("direct").await?;
    far.prints_on(async |lab| lab.flush_connections()).await
}

#[tokio::test]
async fn no_packet_goes_directly_when_the_policy_is_relay_only() -> Result<()> {
    let mut far = Far::from_public_hub(|_| Ok(())).await?;
    far.goes("direct").await?;
    set_policy(&far.hub, &far.peer, "relay_only").await?;
    far.goes("relay").await?;
    far.again(|lab| lab.count_between_peer_and(ELSEWHERE)).await?;
    far.prints_on(async |_| Ok(())).await?;
    assert_eq!(far.lab.counted()?, 0);
    // The counter counts.
    set_policy(&far.hub, &far.peer, "auto").await?;
    far.goes("direct").await?;
    assert!(far.lab.counted()? > 0);
    Ok(())
}

#[tokio::test]
async fn a_direct_way_that_is_cut_costs_no_output_and_comes_back_by_itself() -> Result<()> {
    let far = Far::from_public_hub(|_| Ok(())).await?;
    far.goes("direct").await?;
    far.prints_on(async |lab| lab.cut_between_peer_and(ELSEWHERE)).await?;
    let presence = far.goes("relay").await?;
    assert_ne!(presence.rtt_us, None);
    assert_eq!(presence.path_reason.as_deref(), Some("relay: the direct way fell silent"));
    far.lab.heal_udp()?;
    let back = async || (far.hub.node(&far.peer.node).await.ok()?.presence.path? == "direct").then_some(());
    wait::until("the direct way is back", Duration::from_secs(75), back).await?;
    far.prints_on(async |_| Ok(())).await
}

#[tokio::test]
async fn a_machine_that_is_carried_to_another_network_loses_no_output_and_goes_directly_again() -> Result<()> {
    let far = Far::from_public_hub(|_| Ok(())).await?;
    far.goes("direct").await?;
    far.prints_on(async |lab| lab.switch_uplink()).await?;
    far.goes("direct").await.map(drop)
}

#[tokio::test]
async fn lost_packets_cost_no_output() -> Result<()> {
    let far = Far::from_public_hub(|_| Ok(())).await?;
    far.goes("direct").await?;
    for percent in [1, 5, 20] {
        far.lab.lose(percent)?;
        let ran = far.hub.run(&far.session, &Shell::script("seq 1 20000")).await?;
        let expected: String = (1..=20_000).map(|i| format!("{i}\n")).collect();
        assert_eq!(ran.stdout, expected, "{percent} %");
        far.lab.heal_udp()?;
    }
    Ok(())
}
