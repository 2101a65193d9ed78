//! What the operator sees and changes while a relay runs: readiness, metrics, limits, hubs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use cortex_relay::{
    Limits, TcpOptions,
    health::{FRESH, Probe, Readiness},
    metrics,
};
use cortex_runtime::metrics::check;
use cortex_wire::{close::CloseCode, id::HubId};

use crate::{
    code,
    lab::{Lab, key},
};

fn hub(number: u8) -> HubId {
    key(number).public().into()
}

async fn look(lab: &Lab) -> Readiness {
    Probe::new(lab.relay.clone()).look().await
}

fn values(lab: &Lab) -> BTreeMap<String, f64> {
    check(&metrics::text(&lab.relay)).unwrap()
}

const LIMITS: Limits = Limits { max_links: 100, bytes_per_second: 0, drain_ms: 2_000 };

#[tokio::test]
async fn a_relay_is_ready_when_its_ports_and_every_hub_answer() {
    let lab = Lab::start(&[1]);
    let none = look(&lab).await;
    assert!(!none.ready && none.problems.len() == 1 && none.problems[0].contains("not linked"), "{none:?}");
    let _hub = lab.hub(1).await;
    let all = look(&lab).await;
    assert!(all.ready && all.problems.is_empty() && all.udp.ok && all.tcp.ok && all.certificate.ok && all.hubs[0].echo.ok, "{all:?}");
    let other = all.narrowed(Some(hub(9)));
    assert!(!other.ready && other.problems[0].contains("not served here"), "{other:?}");
}

#[tokio::test]
async fn a_hub_that_is_linked_and_does_not_answer_is_not_ready() {
    let lab = Lab::start(&[1, 2]);
    let _well = lab.hub(1).await;
    let _mute = lab.mute_hub(2).await;
    let began = Instant::now();
    let found = look(&lab).await;
    assert!(began.elapsed() < Duration::from_secs(4), "a probe is bounded in time");
    assert!(!found.ready && found.problems.len() == 1 && found.problems[0].contains("no answer to an echo"), "{found:?}");
    assert!(found.clone().narrowed(Some(hub(1))).ready, "the other one is well");
    assert!(!found.narrowed(Some(hub(2))).ready);
}

#[tokio::test]
async fn a_storm_of_probes_costs_one() {
    let lab = Lab::start(&[1]);
    let _hub = lab.hub(1).await;
    let probe = Probe::new(lab.relay.clone());
    probe.look().await;
    let own = || lab.relay.counters().own.load(std::sync::atomic::Ordering::Relaxed);
    let (before, began) = (own(), Instant::now());
    for _ in 0..1_000 {
        assert!(probe.look().await.ready);
    }
    // As long as the machine was fast enough for the answer to be fresh.
    if began.elapsed() < FRESH / 2 {
        assert!(own() - before < 20, "{} packets for 1,000 probes", own() - before);
    }
}

#[tokio::test]
async fn a_relay_behind_a_web_server_has_no_certificate_to_show() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let lab = Lab::start_with(&[1], TcpOptions { behind_proxy: Some(free), ..TcpOptions::default() });
    let _hub = lab.hub(1).await;
    let found = look(&lab).await;
    assert!(found.ready, "{found:?}");
}

#[tokio::test]
async fn counters_move_with_what_happens() {
    let lab = Lab::start(&[1]);
    let before = values(&lab);
    assert_eq!(before["cortex_relay_links{kind=\"node\",carrier=\"udp\"}"], 0.0);
    assert_eq!(before[&format!("cortex_relay_hub_up{{hub=\"{}\"}}", hub(1))], 0.0);
    assert_eq!(before["cortex_relay_dropped_packets_total{reason=\"stranger\"}"], 0.0);
    let the_hub = lab.hub(1).await;
    let node = lab.node(1, 11).await.unwrap();
    assert_eq!(code(&lab.link(&key(12), 1, None).await.unwrap_err()), "node_unknown");
    assert_eq!(code(&lab.link(&key(12), 9, None).await.unwrap_err()), "unknown_hub");
    assert_eq!(lab.echo(&node, &the_hub, &[7; 1024]).await.len(), 1024);
    let tunnelled = lab.node_over_tcp(1, 13).await;
    assert_eq!(lab.echo(&tunnelled, &the_hub, b"by tcp").await, b"by tcp");
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.send_to(&[&[0x40][..], &[1; 40]].concat(), lab.address).await.unwrap();
    let after = async {
        loop {
            let after = values(&lab);
            if after["cortex_relay_dropped_packets_total{reason=\"stranger\"}"] > 0.0 {
                return after;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let after = tokio::time::timeout(Duration::from_secs(5), after).await.unwrap();
    for (name, least) in [
        ("cortex_relay_links{kind=\"node\",carrier=\"udp\"}", 1.0),
        ("cortex_relay_links{kind=\"node\",carrier=\"tcp\"}", 1.0),
        ("cortex_relay_links{kind=\"hub\",carrier=\"udp\"}", 1.0),
        ("cortex_relay_refused_total{code=\"node_unknown\"}", 1.0),
        ("cortex_relay_refused_total{code=\"unknown_hub\"}", 1.0),
        ("cortex_relay_forwarded_packets_total", 4.0),
        ("cortex_relay_forwarded_bytes_total", 2_048.0),
        ("cortex_relay_queue_seconds_count", 1.0),
        ("cortex_relay_own_packets_total", 1.0),
        ("process_cpu_seconds_total", f64::MIN_POSITIVE),
    ] {
        assert!(after.get(name).is_some_and(|value| *value >= least), "{name} is {:?}", after.get(name));
    }
    assert_eq!(after[&format!("cortex_relay_hub_up{{hub=\"{}\"}}", hub(1))], 1.0);
}

#[tokio::test]
async fn a_limit_that_is_changed_counts_for_links_that_live() {
    let lab = Lab::start(&[1]);
    let the_hub = lab.hub(1).await;
    let node = lab.node(1, 11).await.unwrap();
    assert_eq!(lab.echo(&node, &the_hub, b"free").await, b"free");
    let budget = || values(&lab)["cortex_relay_dropped_packets_total{reason=\"budget\"}"];
    assert_eq!(budget(), 0.0);
    lab.relay.set_limits(Limits { bytes_per_second: 1, ..LIMITS });
    assert!(!lab.reaches(&node, &the_hub).await, "a byte a second is not enough");
    assert!(budget() > 0.0);
    lab.relay.set_limits(LIMITS);
    assert_eq!(lab.echo(&node, &the_hub, b"free again").await, b"free again");
    lab.relay.set_limits(Limits { max_links: 2, ..LIMITS });
    assert!(lab.node(1, 11).await.is_err(), "two are there, and there are no more places");
    assert_eq!(lab.echo(&node, &the_hub, b"those that were there stay").await, b"those that were there stay");
    assert!(values(&lab)["cortex_relay_refused_total{code=\"too_many_links\"}"] >= 1.0);
}

#[tokio::test]
async fn hubs_come_and_go_while_the_relay_runs() {
    let lab = Lab::start(&[1]);
    let (first, node) = (lab.hub(1).await, lab.node(1, 11).await.unwrap());
    assert_eq!(lab.relay.set_hubs(&[hub(1), hub(2)]), (1, 0));
    let second = lab.hub(2).await;
    let theirs = lab.node(2, 11).await.unwrap();
    // The same key links for another hub: the newest link stays. The first node is another one from here on.
    drop(node);
    let ticket = lab.ticket(1, &key(12), 60_000);
    let ours = lab.link(&key(12), 1, Some(cortex_wire::schema::link_hello::Credential::Ticket(ticket))).await.unwrap();
    assert_eq!(lab.echo(&theirs, &second, b"second").await, b"second");
    assert!(!lab.reaches(&ours, &second).await, "a node reached a foreign hub");
    assert_eq!(lab.relay.set_hubs(&[hub(1)]), (0, 1));
    assert_eq!(lab.close_code(&theirs.link).await, Some(CloseCode::Refused));
    assert_eq!(lab.close_code(&second.link).await, Some(CloseCode::Refused));
    assert_eq!(code(&lab.node(2, 11).await.unwrap_err()), "unknown_hub");
    assert_eq!(lab.echo(&ours, &first, b"first is not concerned").await, b"first is not concerned");
    assert_eq!(lab.relay.set_hubs(&[hub(1)]), (0, 0));
}
