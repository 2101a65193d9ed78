//! Two relays: a task's output goes on when the one that carries it dies, stops or comes back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cortex_tests::{
    api::{Shell, problem},
    events::{Event, Events},
    hub::{Hub, HubOptions, fresh_root},
    peer::Peer,
    relay::Relay,
    wait,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::SOON;

/// A peer with a link to each of two relays, and a hub behind both.
struct Two {
    hub: Hub,
    peer: Peer,
    session: String,
    relays: [Relay; 2],
}

impl Two {
    async fn set() -> Result<Self> {
        let root = fresh_root();
        let key = root.public().to_string();
        let relays = [Relay::start(&[&key]).await?, Relay::start(&[&key]).await?];
        let endpoints = relays.iter().map(|relay| relay.endpoint.clone()).collect();
        let hub = Hub::start_with(HubOptions { relays: endpoints, ..HubOptions::behind(&relays[0], &root) }).await?;
        let peer = hub.enrol("with-two-links").await?;
        let session = hub.session(&[&peer.node]).await?.id;
        let two = Self { hub, peer, session, relays };
        two.both_links().await?;
        Ok(two)
    }

    /// Waits until the node has a home and a standby; answers which of the relays is home.
    async fn both_links(&self) -> Result<usize> {
        let look = async || {
            let presence = self.hub.node(&self.peer.node).await.ok()?.presence;
            let (home, standby) = (self.place(presence.relay.as_deref()?)?, self.place(presence.standby.as_deref()?)?);
            (home != standby).then_some(home)
        };
        wait::until("the node has links to both relays", Duration::from_secs(20), look).await
    }

    fn place(&self, id: &str) -> Option<usize> {
        self.relays.iter().position(|relay| relay.endpoint.split('#').nth(1) == Some(id))
    }

    /// A task that prints a line every 20 ms until it is told to stop, and its reader.
    async fn chatter(&self) -> Result<Chatter> {
        let script = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo \"line $i\"; sleep 0.02; done; rm stop";
        let task = self.hub.dispatch(&self.session, &Shell::script(script)).await?.id;
        let events = self.hub.follow(&format!("/api/tasks/{task}/stream"));
        let chatter = Chatter { task, reader: tokio::spawn(read(events)) };
        wait::until("its first output", SOON, async || self.hub.output(&chatter.task, "stdout").await.ok().filter(|out| !out.is_empty()))
            .await?;
        Ok(chatter)
    }

    /// Ends the task, checks that its output is whole, and answers when each piece of it arrived.
    async fn silence(&self, chatter: Chatter) -> Result<Vec<Instant>> {
        std::fs::write(self.peer.workspace(&self.session).join("stop"), "")?;
        let ran = self.hub.finish(&chatter.task, SOON).await?;
        let (output, times) = chatter.reader.await??;
        assert_eq!((ran.task.state.as_str(), ran.task.attempt), ("succeeded", 1), "{:?}", ran.task);
        let lines = ran.stdout.lines().count();
        let expected: String = (1..=lines).map(|i| format!("line {i}\n")).collect();
        assert_eq!(ran.stdout, expected, "no byte is lost or doubled");
        assert_eq!(output, expected, "neither for those who follow");
        Ok(times)
    }
}

struct Chatter {
    task: String,
    reader: JoinHandle<Result<(String, Vec<Instant>)>>,
}

async fn read(mut events: Events) -> Result<(String, Vec<Instant>)> {
    let (mut output, mut times) = (String::new(), Vec::new());
    while let Some(event) = events.next(Duration::from_secs(30)).await? {
        if event.name == "output" {
            let (_, offset, data) = event.output()?;
            ensure!(offset == output.len() as u64, "output at {offset} came after {} bytes", output.len());
            output.push_str(&String::from_utf8(data)?);
            times.push(event.at);
        }
    }
    Ok((output, times))
}

/// The longest time without output that began or ended between the two.
fn gap(times: &[Instant], from: Instant, to: Instant) -> Duration {
    let touched = times.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
    touched.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn percentile(gaps: &[Duration], percent: usize) -> Duration {
    let mut sorted = gaps.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

#[tokio::test]
async fn output_goes_on_within_half_a_second_when_the_relay_that_carries_it_is_killed() -> Result<()> {
    const ROUNDS: u32 = 20;
    let mut two = Two::set().await?;
    let chatter = two.chatter().await?;
    let mut kills = Vec::new();
    for round in 0..ROUNDS {
        let home = two.both_links().await?;
        // At another moment between two heartbeats each time.
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 37 % 250)).await;
        let at = Instant::now();
        two.relays[home].process.kill9().await?;
        let moved = async || {
            let relay = two.hub.node(&two.peer.node).await.ok()?.presence.relay?;
            (two.place(&relay) == Some(1 - home)).then_some(())
        };
        wait::until("the node is behind the other relay", SOON, moved).await?;
        kills.push((at, Instant::now() + Duration::from_millis(500)));
        two.relays[home].restart().await?;
    }
    two.both_links().await?;
    let times = two.silence(chatter).await?;
    let gaps: Vec<Duration> = kills.iter().map(|(from, to)| gap(&times, *from, *to)).collect();
    eprintln!("gaps: p50 {:?}, p99 {:?}, all {gaps:?}", percentile(&gaps, 50), percentile(&gaps, 99));
    assert!(percentile(&gaps, 50) < Duration::from_millis(500), "{gaps:?}");
    assert!(percentile(&gaps, 99) < Duration::from_secs(2), "{gaps:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_does_nothing_hears_that_its_relay_is_dead_before_its_next_heartbeat() -> Result<()> {
    // Heartbeats are 5 s apart: by itself it would notice that early in one of two rounds.
    const AT_MOST: Duration = Duration::from_millis(2_500);
    let mut two = Two::set().await?;
    for round in 0..4 {
        let home = two.both_links().await?;
        tokio::time::sleep(Duration::from_millis(300 * round)).await;
        let killed = Instant::now();
        two.relays[home].process.kill9().await?;
        let elsewhere = async || {
            let relay = two.hub.node(&two.peer.node).await.ok()?.presence.relay?;
            (two.place(&relay)? != home).then_some(())
        };
        wait::until("the node is behind the other relay", SOON, elsewhere).await?;
        let took = killed.elapsed();
        ensure!(took < AT_MOST, "round {round}: it took {took:?}");
        two.relays[home].restart().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_stopped_is_left_without_a_gap_and_comes_back_as_the_standby() -> Result<()> {
    let mut two = Two::set().await?;
    let chatter = two.chatter().await?;
    let mut stops = Vec::new();
    for _ in 0..4 {
        let home = two.both_links().await?;
        let from = Instant::now();
        two.relays[home].process.terminate(SOON).await?;
        stops.push((from, Instant::now()));
        two.relays[home].restart().await?;
        assert_eq!(two.both_links().await?, 1 - home, "the one that came back is the standby");
    }
    // The standby is stopped: nothing moves.
    let home = two.both_links().await?;
    let from = Instant::now();
    two.relays[1 - home].process.terminate(SOON).await?;
    stops.push((from, Instant::now()));
    two.relays[1 - home].restart().await?;
    assert_eq!(two.both_links().await?, home);
    let times = two.silence(chatter).await?;
    let gaps: Vec<Duration> = stops.iter().map(|(from, to)| gap(&times, *from, *to)).collect();
    assert!(gaps.iter().all(|gap| *gap < Duration::from_secs(2)), "{gaps:?}");
    assert!(!two.peer.process.log().contains("does not answer"), "it moved in time, and not because of silence");
    Ok(())
}

#[tokio::test]
async fn both_relays_may_die_and_the_task_reports_when_they_are_back() -> Result<()> {
    let mut two = Two::set().await?;
    let chatter = two.chatter().await?;
    let home = two.both_links().await?;
    // The standby alone costs nothing.
    let from = Instant::now();
    two.relays[1 - home].process.kill9().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let to = Instant::now();
    two.relays[home].process.kill9().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for relay in &mut two.relays {
        relay.restart().await?;
    }
    two.both_links().await?;
    let times = two.silence(chatter).await?;
    assert!(gap(&times, from, to - Duration::from_millis(100)) < Duration::from_secs(2));
    Ok(())
}

#[tokio::test]
async fn a_hub_that_is_killed_behind_two_relays_finds_its_node_and_its_task_again() -> Result<()> {
    let mut two = Two::set().await?;
    let chatter = two.chatter().await?;
    two.hub.process.kill9().await?;
    two.hub.restart().await?;
    two.hub.node_is(&two.peer.node, "online", SOON).await?;
    // And at once again, with one relay less.
    let home = two.both_links().await?;
    two.hub.process.kill9().await?;
    two.relays[home].process.kill9().await?;
    two.hub.restart().await?;
    two.hub.node_is(&two.peer.node, "online", Duration::from_secs(20)).await?;
    two.relays[home].restart().await?;
    two.both_links().await?;
    two.silence(chatter).await.map(drop)
}

#[tokio::test]
async fn a_node_that_registers_while_its_relay_dies_does_so_through_the_other() -> Result<()> {
    let mut two = Two::set().await?;
    let home = two.both_links().await?;
    // A new start of the peer begins with the relay that is first in its list.
    two.peer.process.kill9().await?;
    two.relays[0].process.kill9().await?;
    let since = Instant::now();
    two.peer.restart()?;
    two.peer.process.line("that it is online", Duration::from_secs(5), |line| line.contains("online").then_some(())).await?;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?} home was {home}", since.elapsed());
    two.relays[0].restart().await?;
    two.both_links().await.map(drop)
}

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[tokio::test]
async fn files_on_their_way_arrive_although_the_relay_that_carries_them_is_killed() -> Result<()> {
    let mut two = Two::set().await?;
    let folder = two.peer.workspace(&two.session);
    wait::until("the workspace's folder", SOON, async || folder.join(".cortex").is_dir().then_some(())).await?;
    let contents = noise(24 << 20);
    two.hub.put_file(&two.session, "down", &[], contents.clone()).await?;
    let home = two.both_links().await?;
    two.relays[home].process.kill9().await?;
    let patience = Duration::from_secs(30);
    wait::until("the file is on the node", patience, async || (std::fs::read(folder.join("down")).ok()? == contents).then_some(())).await?;
    two.relays[home].restart().await?;
    let home = two.both_links().await?;
    std::fs::write(folder.join("up"), &contents[1..])?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    two.relays[home].process.kill9().await?;
    let there = async || (two.hub.file(&two.session, "up").await.ok()? == contents[1..]).then_some(());
    wait::until("the file is at the hub", patience, there).await?;
    two.relays[home].restart().await
}

#[tokio::test]
async fn relays_come_and_go_while_everything_runs() -> Result<()> {
    let root = fresh_root();
    let key = root.public().to_string();
    let first = Relay::start(&[&key]).await?;
    let hub = Hub::start_with(HubOptions::behind(&first, &root)).await?;
    let peer = hub.enrol("with-one-relay").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    assert_eq!(hub.node(&peer.node).await?.presence.standby, None);
    let second = Relay::start(&[&key]).await?;
    let mut two = Two { hub, peer, session, relays: [first, second] };
    let mut events = two.hub.follow("/api/events");
    events.connect().await?;

    let added: Value = two.hub.post("/api/relays", json!({"endpoint": two.relays[1].endpoint, "region": "second"})).await?;
    assert_eq!(
        (&added["address"], &added["region"], &added["configured"]),
        (&two.relays[1].address().into(), &"second".into(), &false.into())
    );
    let home = two.both_links().await?;
    assert_eq!(home, 0, "it stays where it was");
    let presence = two.hub.node(&two.peer.node).await?.presence;
    assert!(presence.rtt_us.is_some() && presence.standby_rtt_us.is_some(), "{presence:?}");

    let chatter = two.chatter().await?;
    two.relays[0].process.kill9().await?;
    let moved = |event: &Event| (event.name == "node" && event.data["data"]["change"] == "path").then(|| event.data["data"].clone());
    let event = events.find("the event of the new path", SOON, moved).await?;
    assert_eq!(event["relay"].as_str().and_then(|relay| two.place(relay)), Some(1), "{event}");
    two.relays[0].restart().await?;
    assert_eq!(two.both_links().await?, 1);

    // Removed, it is left at once, with its link still there: nothing is lost.
    let id = added["id"].as_str().context("an id")?.to_owned();
    let from = Instant::now();
    two.hub.call::<Value>(Method::DELETE, &format!("/api/relays/{id}"), None).await?;
    let alone = async || {
        let presence = two.hub.node(&two.peer.node).await.ok()?.presence;
        (two.place(presence.relay.as_deref()?) == Some(0) && presence.standby.is_none()).then_some(())
    };
    wait::until("the node has left the removed relay", SOON, alone).await?;
    let to = Instant::now();
    // What the configuration file names stays.
    let configured = two.relays[0].endpoint.split('#').nth(1).context("a key")?;
    let refused = problem(two.hub.call::<Value>(Method::DELETE, &format!("/api/relays/{configured}"), None).await)?;
    assert_eq!((refused.status, refused.code.as_str()), (409, "relay_is_configured"));
    let times = two.silence(chatter).await?;
    assert!(gap(&times, from, to) < Duration::from_secs(2));
    Ok(())
}
