use super::*;
use crate::{invite::NewInvite, record::Node, testing::Site};
use cortex_wire::task::State;

fn connection(id: u64) -> Connection {
    Connection { id, relay: Some("fra-1".into()), path: None }
}

fn report(free: u64) -> HealthReport {
    HealthReport { disk_free_bytes: free, disk_total_bytes: 1 << 40, rtt_us: 250, path: "direct".into(), ..HealthReport::default() }
}

async fn row(site: &Site, node: NodeId) -> Node {
    site.hub.find_node(node).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_node_comes_goes_and_says_why() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    let reach = async |site: &Site| site.hub.presence.of(&row(site, node).await).state;
    assert_eq!(reach(&site).await, Reach::Offline);
    let mut feed = site.hub.follow(&ann, None).await.unwrap();
    site.hub.node_online(node, connection(1)).await.unwrap();
    assert_eq!(reach(&site).await, Reach::Online);
    let notice = feed.next().await.unwrap();
    assert_eq!((notice.kind.as_str(), &notice.data["state"], &notice.data["relay"]), ("node", &json!("online"), &json!("fra-1")));
    site.pass(5);
    site.hub.node_offline(node, 1, "killed").await.unwrap();
    let notice = feed.next().await.unwrap();
    assert_eq!((&notice.data["state"], &notice.data["last_disconnect"]["reason"]), (&json!("offline"), &json!("killed")));
    let stored = row(&site, node).await;
    assert_eq!(stored.last_disconnect.as_ref().unwrap().reason, "killed");
    assert_eq!(site.hub.presence.of(&stored).since_ms, Some(site.hub.now_ms()));
    // After a restart the hub knows it from the row.
    drop(feed);
    let site = site.restart().await;
    let presence = site.hub.presence.of(&row(&site, node).await);
    assert_eq!((presence.state, presence.since_ms, presence.last_seen_at_ms), (Reach::Offline, None, Some(site.hub.now_ms())));
    assert_eq!(presence.last_disconnect.unwrap().reason, "killed");
}

#[tokio::test]
async fn the_end_of_an_old_connection_does_not_end_the_new_one() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    site.hub.node_online(node, connection(1)).await.unwrap();
    site.hub.node_online(node, connection(2)).await.unwrap();
    site.hub.node_offline(node, 1, "replaced").await.unwrap();
    assert!(site.hub.presence.is_connected(node));
    site.hub.node_health(node, 1, &report(1));
    assert_eq!(site.hub.presence.of(&row(&site, node).await).health, None);
    site.hub.node_offline(node, 2, "gone").await.unwrap();
    site.hub.node_offline(node, 2, "gone twice").await.unwrap();
    assert_eq!(row(&site, node).await.last_disconnect.unwrap().reason, "gone");
    assert_eq!(site.hub.presence.connected(), 0);
}

#[tokio::test]
async fn heartbeats_are_shown_live_and_stored_when_the_state_changes() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    site.hub.node_online(node, connection(1)).await.unwrap();
    let mut feed = site.hub.follow(&ann, None).await.unwrap();
    // Somebody who may not see the node does not see its heartbeat.
    let mut other = site.hub.follow(&site.member("bob").await, None).await.unwrap();
    site.hub.node_health(node, 1, &report(1 << 39));
    let notice = feed.next().await.unwrap();
    assert_eq!((notice.seq, notice.kind.as_str(), &notice.data["rtt_us"]), (0, "node_health", &json!(250)));
    assert_eq!(notice.data["path"], "direct");
    site.hub.node_health(node, 1, &report(0));
    let stored = loop {
        let notice = feed.next().await.unwrap();
        if notice.seq > 0 {
            break notice;
        }
    };
    assert_eq!((stored.kind.as_str(), &stored.data["state"]), ("node", &json!("degraded")));
    site.hub.node_health(node, 1, &report(1 << 39));
    while feed.next().await.unwrap().data["state"] != "online" {}
    assert!(futures_util::poll!(Box::pin(other.next())).is_pending());
}

#[tokio::test]
async fn a_node_that_moves_to_another_relay_is_an_event_and_its_standby_is_shown() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    site.hub.node_online(node, connection(1)).await.unwrap();
    let mut feed = site.hub.follow(&ann, None).await.unwrap();
    let behind = |relay: &str, standby: &str| HealthReport {
        relay_id: relay.into(),
        standby_id: standby.into(),
        standby_rtt_us: 300,
        ..report(1 << 39)
    };
    for (relay, standby, moved) in [("fra-1", "ams-1", false), ("ams-1", "", true), ("ams-1", "fra-1", false), ("fra-1", "ams-1", true)] {
        site.hub.node_health(node, 1, &behind(relay, standby));
        let presence = site.hub.presence.of(&row(&site, node).await);
        assert_eq!((presence.relay.as_deref(), presence.standby.as_deref().unwrap_or_default()), (Some(relay), standby));
        assert_eq!(presence.standby_rtt_us, (!standby.is_empty()).then_some(300));
        let mut stored = None;
        // The live notice comes each time, the event with it or not at all.
        for _ in 0..=usize::from(moved) {
            let notice = feed.next().await.unwrap();
            if notice.kind == "node" {
                stored = Some(notice.data);
            }
        }
        let told = stored.map(|data| (data["change"].clone(), data["relay"].clone()));
        assert_eq!(told, moved.then(|| (json!("path"), json!(relay))));
    }
    while row(&site, node).await.relay.as_deref() != Some("fra-1") {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_hub_that_was_killed_knows_roughly_when_it_last_heard_of_a_node() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let node = site.node(&ann, 1).await;
    site.hub.node_online(node, connection(1)).await.unwrap();
    let came = site.hub.now_ms();
    site.pass(LAST_SEEN_MS - 1);
    site.hub.node_health(node, 1, &report(1 << 39));
    site.hub.check_store().await.unwrap();
    assert_eq!(row(&site, node).await.last_seen_at_ms, Some(came));
    site.pass(1);
    site.hub.node_health(node, 1, &report(1 << 39));
    while row(&site, node).await.last_seen_at_ms != Some(came + LAST_SEEN_MS) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_ephemeral_node_is_removed_when_it_leaves() {
    let site = Site::new().await;
    let ann = site.member("ann").await;
    let session = site.session(&ann, &[]).await;
    let issued = site.invite(&ann, NewInvite { ephemeral: true, session: Some(session), ..NewInvite::default() }).await;
    let node = site.redeem(&issued, 1).await.unwrap().id;
    lock(&site.mesh.slots).insert(node, 1);
    site.hub.node_online(node, connection(1)).await.unwrap();
    let task = site.running(&ann, session).await;
    site.hub.node_offline(node, 1, "stopped").await.unwrap();
    assert_eq!(site.hub.find_node(node).await.unwrap(), None);
    assert!(site.hub.session(&ann, session).await.unwrap().nodes.is_empty());
    assert_eq!(site.hub.task(&ann, task.id).await.unwrap().state, State::Lost);
}
