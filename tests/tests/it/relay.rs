//! Relays in processes of their own: the main job through them, their death under a task, several hubs on one, strangers.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cortex_tests::{
    api::Shell,
    hub::{Hub, HubOptions, fresh_root},
    relay::Relay,
    wait,
};
use serde_json::Value;

use crate::SOON;

#[tokio::test]
async fn the_main_job_runs_through_a_relay_in_a_process_of_its_own() -> Result<()> {
    let (hub, relay) = Hub::start_with_relay().await?;
    let peer = hub.enrol("behind-a-relay").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let ran = hub.run(&session, &Shell::script("echo through; seq 1 20000 | tail -n 1")).await?;
    assert_eq!(ran.stdout, "through\n20000\n");
    let relays: Value = hub.get("/api/relays").await?;
    assert_eq!((&relays["items"][0]["address"], &relays["items"][0]["online"]), (&relay.address().into(), &true.into()));
    assert_eq!(relays["items"][0]["nodes"], 1);
    let presence = hub.node(&peer.node).await?.presence;
    assert_eq!(presence.relay.as_deref(), relay.endpoint.split('#').nth(1), "the node says which relay it is behind");
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_killed_under_a_running_task_loses_none_of_its_output() -> Result<()> {
    let (hub, mut relay) = Hub::start_with_relay().await?;
    let peer = hub.enrol("behind-a-relay").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    let task = hub.dispatch(&session, &Shell::script("for i in $(seq 1 100); do echo \"line $i\"; sleep 0.05; done")).await?;
    let first = async || hub.output(&task.id, "stdout").await.ok().filter(|output| output.len() > 100);
    wait::until("some output", SOON, first).await?;
    relay.process.kill9().await?;
    relay.restart().await?;
    let ran = hub.finish(&task.id, Duration::from_secs(30)).await?;
    let expected: String = (1..=100).map(|i| format!("line {i}\n")).collect();
    assert_eq!((ran.task.state.as_str(), ran.task.attempt, ran.stdout), ("succeeded", 1, expected));
    // Stopped in good order it loses nothing either.
    relay.process.terminate(SOON).await?;
    relay.restart().await?;
    hub.node_is(&peer.node, "online", Duration::from_secs(20)).await?;
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "again"])).await?.stdout, "again\n");
    Ok(())
}

#[tokio::test]
async fn a_hub_takes_a_relay_elsewhere_beside_its_own() -> Result<()> {
    let mut hub = Hub::start().await?;
    let mut relay = Relay::start(&[&hub.key()?]).await?;
    hub.set_relays(&[&relay.endpoint]);
    hub.process.terminate(SOON).await?;
    hub.restart().await?;
    let online = async || {
        let relays: Value = hub.get("/api/relays").await.ok()?;
        let relays = relays["items"].as_array()?.clone();
        (relays.len() == 2 && relays.iter().all(|relay| relay["online"] == true)).then_some(())
    };
    wait::until("both relays are online", SOON, online).await?;
    let peer = hub.enrol("with-a-choice").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "one"])).await?.stdout, "one\n");
    relay.process.kill9().await?;
    assert_eq!(hub.run(&session, &Shell::argv(["echo", "two"])).await?.stdout, "two\n");
    Ok(())
}

#[tokio::test]
async fn two_hubs_and_their_nodes_share_a_relay_without_seeing_one_another() -> Result<()> {
    let (here, there) = (fresh_root(), fresh_root());
    let relay = Relay::start(&[&here.public().to_string(), &there.public().to_string()]).await?;
    let start = |root| Hub::start_with(HubOptions::behind(&relay, root));
    let (first, second) = tokio::try_join!(start(&here), start(&there))?;
    let (a, b, c) = tokio::try_join!(first.enrol("a"), first.enrol("b"), second.enrol("c"))?;
    let names = async |hub: &Hub| {
        let mut names: Vec<String> = hub.nodes().await?.into_iter().map(|node| node.name).collect();
        names.sort();
        Ok::<_, anyhow::Error>(names)
    };
    assert_eq!((names(&first).await?, names(&second).await?), (vec!["a".to_owned(), "b".into()], vec!["c".to_owned()]));
    for (hub, peer) in [(&first, &a), (&first, &b), (&second, &c)] {
        let session = hub.session(&[&peer.node]).await?.id;
        let ran = hub.run(&session, &Shell::argv(["pwd"])).await?;
        assert_eq!(ran.stdout.trim_end(), peer.workspace(&session).display().to_string(), "it ran where it should");
    }
    // A node of one hub is nothing to the other, dead or alive.
    let session = second.session(&[]).await?.id;
    let refused = cortex_tests::api::problem(second.attach(&session, &a.node).await)?;
    assert_eq!((refused.status, refused.code.as_str()), (404, "not_found"));
    Ok(())
}

#[tokio::test]
async fn a_relay_is_closed_to_hubs_that_it_was_not_told_of() -> Result<()> {
    let hub = Hub::start().await?;
    let relay = Relay::start(&[&hub.key()?]).await?;
    let mut stranger = Hub::start_with(HubOptions { relays: vec![relay.endpoint.clone()], ..HubOptions::default() }).await?;
    stranger.process.line("that it was refused", SOON, |line| line.contains("unknown_hub").then_some(())).await?;
    let relays: Value = stranger.get("/api/relays").await?;
    let refused = relays["items"].as_array().context("relays")?.iter().find(|listed| listed["address"] == relay.address());
    assert_eq!(refused.context("the relay is listed")?["online"], false);
    // A peer of the stranger's that knows this relay only gets nowhere either.
    let invite = stranger.invite_for("lost").await?;
    let settings = format!("relays: ['{}']\n", relay.endpoint);
    let options = cortex_tests::peer::PeerOptions { name: "lost".into(), settings, ..Default::default() };
    let mut peer = cortex_tests::peer::Peer::start_with(&invite.text, options)?;
    peer.process.line("that it was refused", SOON, |line| line.contains("unknown_hub").then_some(())).await?;
    assert_eq!(stranger.invite_status(&invite.id).await?.state, "open");
    Ok(())
}
