//! Hub and peer behind routers of their own, which meet at a relay and nowhere else, while their networks change under them.

use std::time::Duration;

use anyhow::Result;
use cortex_tests::{
    api::Shell,
    hub::{Hub, HubOptions, fresh_root},
    net::{Lab, RELAY},
    peer::{Peer, PeerOptions},
    relay::Relay,
    wait,
};

use crate::SOON;

/// The laboratory goes last: what runs in it has ended then.
pub(crate) struct Away {
    pub(crate) hub: Hub,
    pub(crate) peer: Peer,
    pub(crate) session: String,
    pub(crate) relay: Relay,
    pub(crate) lab: Lab,
}

impl Away {
    async fn set() -> Result<Self> {
        Self::set_with("", |_| Ok(())).await
    }

    /// With these settings of the peer, in a network that was changed before the peer comes.
    pub(crate) async fn set_with(settings: &str, change: impl FnOnce(&Lab) -> Result<()>) -> Result<Self> {
        let lab = Lab::build().await?;
        let root = fresh_root();
        let relay = Relay::start_at(lab.relay(), RELAY, &[&root.public().to_string()]).await?;
        let hub = Hub::start_with(HubOptions { place: lab.hub(), ..HubOptions::behind(&relay, &root) }).await?;
        change(&lab)?;
        let peer = hub
            .enrol_with(PeerOptions { place: lab.peer(), name: "behind-nat".into(), settings: settings.into(), ..Default::default() })
            .await?;
        let session = hub.session(&[&peer.node]).await?.id;
        Ok(Self { hub, peer, session, relay, lab })
    }

    /// Runs a task that prints for eight seconds, does something to the network when it has begun, and checks that its output is whole.
    pub(crate) async fn prints_on(&self, change: impl AsyncFnOnce(&Lab) -> Result<()>) -> Result<()> {
        prints_through(&self.hub, &self.session, async || change(&self.lab).await).await
    }
}

/// Runs a task that prints a line every 50 ms for eight seconds, does something when it has begun, and checks that its output is whole.
pub(crate) async fn prints_through(hub: &Hub, session: &str, change: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let task = hub.dispatch(session, &Shell::script("for i in $(seq 1 160); do echo \"line $i\"; sleep 0.05; done")).await?;
    let begun = async || hub.output(&task.id, "stdout").await.ok().filter(|output| output.len() > 50);
    wait::until("some output", SOON, begun).await?;
    change().await?;
    let ran = hub.finish(&task.id, Duration::from_secs(40)).await?;
    let expected: String = (1..=160).map(|i| format!("line {i}\n")).collect();
    assert_eq!((ran.task.state.as_str(), ran.task.attempt, ran.stdout), ("succeeded", 1, expected));
    Ok(())
}

#[tokio::test]
async fn the_main_job_runs_between_two_private_networks() -> Result<()> {
    let away = Away::set().await?;
    let ran = away.hub.run(&away.session, &Shell::argv(["hostname", "-I"])).await?;
    assert_eq!(ran.stdout.trim(), "10.2.0.2", "the command ran in the peer's network: {ran:?}");
    let ran = away.hub.run(&away.session, &Shell::script("head -c 3000000 /dev/zero | tr '\\0' x")).await?;
    assert_eq!(ran.stdout.len(), 3_000_000);
    Ok(())
}

#[tokio::test]
async fn a_nat_that_forgets_its_connections_costs_no_output() -> Result<()> {
    let mut away = Away::set().await?;
    away.prints_on(async |lab| lab.rebind_ports()).await?;
    away.prints_on(async |lab| lab.rebind_address()).await?;
    assert!(away.peer.process.is_running());
    Ok(())
}

#[tokio::test]
async fn five_seconds_without_udp_cost_no_output() -> Result<()> {
    let away = Away::set().await?;
    let cut = async |lab: &Lab| {
        lab.cut_udp()?;
        // The fault itself lasts this long; nothing is waited for.
        tokio::time::sleep(Duration::from_secs(5)).await;
        lab.heal_udp()
    };
    away.prints_on(cut).await?;
    away.hub.node_is(&away.peer.node, "online", SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_peer_that_is_cut_off_is_shown_offline_and_comes_back_by_itself() -> Result<()> {
    let away = Away::set().await?;
    assert_eq!(away.hub.run(&away.session, &Shell::argv(["echo", "there"])).await?.stdout, "there\n");
    away.lab.cut_all()?;
    away.hub.node_is(&away.peer.node, "offline", Duration::from_secs(10)).await?;
    away.lab.heal_udp()?;
    away.hub.node_is(&away.peer.node, "online", Duration::from_secs(20)).await?;
    let ran = away.hub.run(&away.session, &Shell::argv(["echo", "back"])).await?;
    assert_eq!(ran.stdout, "back\n");
    Ok(())
}
