//! Who is there: what the hub shows of a node when its peer is killed, stopped and started again.

use std::time::{Duration, Instant};

use anyhow::Result;
use cortex_tests::{api::Shell, events::Events, hub::Hub, peer::Peer, wait};
use serde_json::json;

use crate::{SOON, Stage};

/// A peer that was killed is shown offline within this time.
const KILLED: Duration = Duration::from_secs(10);
/// "At once", for people who look at a busy machine: a stopped peer offline, a started one online.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Waits until the stream shows a node in a state, and says how long that took.
async fn shown(events: &mut Events, node: &str, state: &str, patience: Duration) -> Result<Duration> {
    let since = Instant::now();
    let found = events.find(state, patience, |event| {
        let data = &event.data["data"];
        (event.name == "node" && data["node_id"] == node && data["state"] == state).then_some(event.at)
    });
    Ok(found.await?.saturating_duration_since(since))
}

#[tokio::test]
async fn a_killed_peer_is_offline_within_ten_seconds_and_a_returning_one_online_at_once() -> Result<()> {
    let Stage { hub, session: _, mut peer } = Stage::set().await?;
    let mut events = hub.follow("/api/events");
    events.connect().await?;
    peer.process.kill9().await?;
    let took = shown(&mut events, &peer.node, "offline", KILLED).await?;
    let node = hub.node(&peer.node).await?;
    assert_eq!(node.presence.state, "offline");
    let why = node.presence.last_disconnect.map(|end| end.reason).unwrap_or_default();
    assert!(!why.is_empty(), "it says why");
    peer.restart()?;
    let back = shown(&mut events, &peer.node, "online", AT_ONCE).await?;
    eprintln!("offline after {took:?} ({why}), online after {back:?}");
    assert_eq!(hub.nodes().await?.len(), 1, "it is the same node as before");
    Ok(())
}

#[tokio::test]
async fn a_stopped_peer_is_offline_at_once_and_leaves_with_status_0() -> Result<()> {
    let Stage { hub, session: _, mut peer } = Stage::set().await?;
    let mut events = hub.follow("/api/events");
    events.connect().await?;
    let stopping = peer.process.terminate(AT_ONCE).await?;
    shown(&mut events, &peer.node, "offline", AT_ONCE).await?;
    let node = hub.node(&peer.node).await?;
    assert!(node.presence.last_disconnect.is_some_and(|end| end.reason.contains("stopped")), "{stopping:?}");
    peer.restart()?;
    shown(&mut events, &peer.node, "online", AT_ONCE).await?;
    Ok(())
}

#[tokio::test]
async fn of_two_peers_with_one_key_one_is_told_and_the_node_goes_on_working() -> Result<()> {
    let stage = Stage::set().await?;
    let mut twin = stage.peer.twin().await?;
    let told = |line: &str| line.contains("superseded").then_some(());
    let Stage { hub, session: _, mut peer } = stage;
    peer.process.line("that it was superseded", SOON, told).await?;
    assert_eq!(hub.nodes().await?.len(), 1);
    peer.process.kill9().await?;
    twin.process.line("that it is online", SOON, |line| line.contains("online").then_some(())).await?;
    hub.node_is(&peer.node, "online", SOON).await?;
    Ok(())
}

#[tokio::test]
async fn an_ephemeral_node_is_gone_when_its_peer_is() -> Result<()> {
    let hub = Hub::start().await?;
    let invite = hub.invite(json!({"name": "for-a-moment", "ephemeral": true})).await?;
    let mut peer = Peer::start(&invite.text)?;
    let node = hub.redeemed(&invite.id, SOON).await?;
    hub.node_is(&node, "online", SOON).await?;
    let session = hub.session(&[&node]).await?.id;
    let ran = hub.run(&session, &Shell::argv(["echo", "brief"])).await?;
    peer.process.terminate(SOON).await?;
    let gone = async || hub.nodes().await.ok().filter(Vec::is_empty);
    wait::until("the node is gone", SOON, gone).await?;
    // What it did stays.
    assert_eq!(hub.output(&ran.task.id, "stdout").await?, b"brief\n");
    Ok(())
}
