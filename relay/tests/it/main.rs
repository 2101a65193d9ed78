//! A relay in this process, with real QUIC on loopback: hubs and nodes link to it and talk through it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chunk;
mod lab;
mod operator;
mod tunnel;

use std::time::Duration;

use cortex_runtime::link::LinkError;
use cortex_wire::{close::CloseCode, key::SecretKey, schema::link_hello::Credential, ticket};
use lab::{Lab, Member, key};

fn code(error: &LinkError) -> &str {
    match error {
        LinkError::Refused(refused) => &refused.code,
        other => panic!("not a refusal: {other}"),
    }
}

#[tokio::test]
async fn a_node_and_its_hub_talk_end_to_end_through_the_relay() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let node = lab.node(1, 11).await.unwrap();
    assert_eq!(lab.echo(&node, &hub, b"hello").await, b"hello");
    assert!(lab.relay.counters().packets.load(std::sync::atomic::Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn nodes_of_two_hubs_do_not_see_one_another() {
    let lab = Lab::start(&[1, 2]);
    let (hub, other) = (lab.hub(1).await, lab.hub(2).await);
    let node = lab.node(1, 11).await.unwrap();
    assert_eq!(lab.echo(&node, &hub, b"mine").await, b"mine");
    assert!(!lab.reaches(&node, &other).await, "a node reached a foreign hub");
    let neighbour = lab.node(1, 12).await.unwrap();
    assert!(!lab.reaches(&node, &neighbour).await, "a node reached a node");
}

#[tokio::test]
async fn strangers_are_refused_with_a_code() {
    let lab = Lab::start(&[1]);
    let node = key(11);
    assert_eq!(code(&lab.link(&node, 1, None).await.unwrap_err()), "hub_offline");
    let _hub = lab.hub(1).await;
    assert_eq!(code(&lab.link(&key(12), 1, None).await.unwrap_err()), "node_unknown");
    assert_eq!(code(&lab.link(&node, 9, None).await.unwrap_err()), "unknown_hub");
    let grant = ticket::Grant::new(key(12).public().into(), i64::MAX);
    let foreign = ticket::issue(&SecretKey::from_seed([99; 32]), &key(1).public().into(), &lab.relay.id(), &grant);
    assert_eq!(code(&lab.link(&key(12), 1, Some(Credential::Ticket(foreign))).await.unwrap_err()), "ticket_forged");
    let pretender = lab.link_as_hub(&key(13), 1, &key(13)).await.unwrap_err();
    assert_eq!(code(&pretender), "not_the_hub");
}

#[tokio::test]
async fn a_ticket_admits_without_asking_the_hub() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let ticket = lab.ticket(1, &key(12), 60_000);
    // Node 12 is not among those the hub would admit.
    let link = lab.link(&key(12), 1, Some(Credential::Ticket(ticket))).await.unwrap();
    drop(link);
    drop(hub);
}

#[tokio::test]
async fn a_node_that_comes_a_little_before_its_hub_is_let_in_when_that_is_there() {
    let lab = Lab::start(&[1]);
    let (node, ticket) = (key(12), lab.ticket(1, &key(12), 60_000));
    let (link, _hub) = tokio::join!(lab.link(&node, 1, Some(Credential::Ticket(ticket))), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        lab.hub(1).await
    });
    link.unwrap();
}

#[tokio::test]
async fn a_ticket_that_does_not_hold_is_refused_with_its_own_code() {
    let lab = Lab::start(&[1, 2]);
    let hubs = (lab.hub(1).await, lab.hub(2).await);
    let refused =
        async |node: u8, hub: u8, ticket| code(&lab.link(&key(node), hub, Some(Credential::Ticket(ticket))).await.unwrap_err()).to_owned();
    let (good, expired) = (lab.ticket(1, &key(12), 60_000), lab.ticket(1, &key(12), -1));
    assert_eq!(refused(12, 1, expired.clone()).await, "ticket_expired");
    assert_eq!(refused(13, 1, good.clone()).await, "ticket_stolen", "the ticket of 12 in the hands of 13");
    assert_eq!(refused(12, 2, good.clone()).await, "ticket_forged", "at another hub, whose key has not signed it");
    let elsewhere = lab.ticket_at(1, &key(12), &key(201).public().into());
    assert_eq!(refused(12, 1, elsewhere).await, "ticket_for_another");
    let mut altered = good.clone();
    altered.body = altered.body.iter().map(|byte| byte ^ 1).collect();
    assert_eq!(refused(12, 1, altered).await, "ticket_forged");
    // Nobody is admitted any more on the word of a hub that cannot be asked; a ticket that holds still does.
    hubs.0.connection().close(0u32.into(), b"");
    let gone = async {
        while lab.relay.hubs().iter().filter(|(_, online)| *online).count() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    assert_eq!(refused(12, 1, expired).await, "ticket_expired");
    assert_eq!(refused(13, 1, good.clone()).await, "ticket_stolen");
    assert!(lab.link(&key(12), 1, Some(Credential::Ticket(good))).await.is_ok());
}

#[tokio::test]
async fn a_node_that_was_revoked_while_its_hub_is_away_is_out_when_its_ticket_ends() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let node = lab.link(&key(12), 1, Some(Credential::Ticket(lab.ticket(1, &key(12), 1_000)))).await.unwrap();
    hub.connection().close(0u32.into(), b"");
    assert_eq!(lab.close_code(&node.link).await, Some(CloseCode::TicketExpired));
    let again = lab.link(&key(12), 1, Some(Credential::Ticket(lab.ticket(1, &key(12), -1)))).await.unwrap_err();
    assert_eq!(code(&again), "ticket_expired");
}

#[tokio::test]
async fn a_link_is_cut_when_its_ticket_runs_out() {
    let lab = Lab::start(&[1]);
    let _hub = lab.hub(1).await;
    let ticket = lab.ticket(1, &key(12), 300);
    let link = lab.link(&key(12), 1, Some(Credential::Ticket(ticket))).await.unwrap();
    assert_eq!(lab.close_code(&link.link).await, Some(CloseCode::TicketExpired));
}

#[tokio::test]
async fn a_revoked_node_is_cut_at_once() {
    let lab = Lab::start(&[1]);
    let mut hub = lab.hub(1).await;
    let node = lab.node(1, 11).await.unwrap();
    hub.revoke(&key(11)).await;
    assert_eq!(lab.close_code(&node.link).await, Some(CloseCode::Revoked));
}

#[tokio::test]
async fn the_newest_link_of_a_key_stays() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let old = lab.node(1, 11).await.unwrap();
    let new = lab.node(1, 11).await.unwrap();
    assert_eq!(lab.close_code(&old.link).await, Some(CloseCode::Superseded));
    assert_eq!(lab.echo(&new, &hub, b"still here").await, b"still here");
}

#[tokio::test]
async fn noise_on_the_port_harms_nobody() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let node = lab.node(1, 11).await.unwrap();
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut noise = 1u64;
    for len in [0, 1, 2, 8, 20, 21, 40, 1200, 1400, 9000] {
        for first in [0u8, 0x40, 0x80, 0xc0, 0xff] {
            let bytes: Vec<u8> = (0..len)
                .map(|i| {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    if i == 0 { first } else { (noise >> 56) as u8 }
                })
                .collect();
            udp.send_to(&bytes, lab.address).await.unwrap();
        }
    }
    assert_eq!(lab.echo(&node, &hub, b"unharmed").await, b"unharmed");
}

#[tokio::test]
async fn a_node_that_moves_keeps_its_connection() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let (switch, behind) = lab.behind_nat().await;
    let node = lab.node_at(1, 11, behind).await.unwrap();
    assert_eq!(lab.echo(&node, &hub, b"before").await, b"before");
    switch.rebind().await;
    // The link speaks first, as a peer's probe does; then the relay knows the new address.
    let talk = async {
        loop {
            node.ping().await;
            if tokio::time::timeout(Duration::from_millis(500), lab.echo(&node, &hub, b"after")).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), talk).await.expect("the connection survives a new address");
}

#[tokio::test]
async fn whoever_says_nothing_is_not_kept() {
    let lab = Lab::start(&[1]);
    let silent: Member = lab.connect_only(&key(11)).await;
    let closed = tokio::time::timeout(Duration::from_secs(15), silent.connection().closed()).await;
    assert!(closed.is_ok(), "a silent caller was kept");
}
