//! Links over TCP: what crosses a tunnel, what takes over when UDP goes and comes, and who knocks at the port.

use std::{
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use cortex_relay::{TcpOptions, route::Drop};
use cortex_runtime::{
    reach::{NetworkConfig, Transport},
    tunnel::PATH,
};
use cortex_wire::{close::CloseCode, limits};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::lab::{Lab, key};

#[tokio::test]
async fn a_node_over_tcp_talks_to_its_hub_end_to_end() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let node = lab.node_over_tcp(1, 12).await;
    assert_eq!(lab.echo(&node, &hub, b"through a tunnel").await, b"through a tunnel");
    assert_eq!(lab.relay.tunnels(), 1);
    assert!(lab.relay.counters().packets.load(Relaxed) > 0, "its packets are counted as all are");
    assert_eq!(lab.relay.counters().dropped(Drop::Full), 0);
}

#[tokio::test]
async fn a_tunnel_obeys_the_same_table_as_the_port() {
    let lab = Lab::start(&[1, 2]);
    let (_hub, other) = (lab.hub(1).await, lab.hub(2).await);
    let node = lab.node_over_tcp(1, 12).await;
    assert!(!lab.reaches(&node, &other).await, "a node reached a foreign hub");
    let mut hub = lab.hub(1).await;
    hub.revoke(&key(12)).await;
    assert_eq!(lab.close_code(&node.link).await, Some(CloseCode::Revoked));
}

#[tokio::test]
async fn the_tunnel_wins_where_udp_leads_nowhere() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    // Nobody answers UDP at this port; TCP there leads to the relay.
    let door = lab.tcp_only().await;
    let (node, socket) = lab.node_by(1, 12, door, NetworkConfig { proxy: Some("none".into()), ..NetworkConfig::default() }).await.unwrap();
    assert_eq!(lab.carrier(&socket), "tcp");
    assert_eq!(lab.echo(&node, &hub, b"raced").await, b"raced");
}

/// A relay that answers over UDP at once, and says something that is of use only after `pause`. Over TCP nobody speaks there; tells when somebody comes.
async fn slow_door(relay: SocketAddr, pause: Duration) -> (SocketAddr, oneshot::Receiver<()>) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    let (inside, outside) = (UdpSocket::bind(at).await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    outside.connect(relay).await.unwrap();
    let (tell, came) = oneshot::channel();
    tokio::spawn(async move {
        let _stream = tcp.accept().await.unwrap();
        let _ = tell.send(());
        std::future::pending::<()>().await;
    });
    tokio::spawn(async move {
        let (mut node, mut up, mut down) = (None, [0; 9_000], [0; 9_000]);
        loop {
            tokio::select! {
                Ok((len, from)) = inside.recv_from(&mut up) => match node {
                    None => {
                        inside.send_to(&[0x40; 64], from).await.unwrap();
                        node = Some((from, Instant::now() + pause));
                    }
                    Some((_, open_at)) => if Instant::now() >= open_at {
                        outside.send(&up[..len]).await.unwrap();
                    },
                },
                Ok(len) = outside.recv(&mut down) => if let Some((node, _)) = node {
                    inside.send_to(&down[..len], node).await.unwrap();
                },
            }
        }
    });
    (at, came)
}

#[tokio::test]
async fn a_relay_that_answers_slowly_is_waited_for_and_not_asked_over_tcp_too() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let pause = Duration::from_secs(2);
    let (door, mut came) = slow_door(lab.address, pause).await;
    let since = Instant::now();
    let (node, socket) = lab.node_by(1, 12, door, NetworkConfig { proxy: Some("none".into()), ..NetworkConfig::default() }).await.unwrap();
    assert!(since.elapsed() >= pause);
    assert_eq!(lab.carrier(&socket), "udp");
    assert!(came.try_recv().is_err());
    assert_eq!(lab.echo(&node, &hub, b"in the end").await, b"in the end");
}

#[tokio::test]
async fn one_relay_serves_ipv4_and_ipv6_over_udp_and_tcp() {
    let lab = Lab::start_at(&[1], ([0, 0, 0, 0], 0).into(), TcpOptions::default());
    let hub = lab.hub(1).await;
    let over_ipv6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, lab.address.port()));
    let mut seed = 20;
    for at in [lab.address, over_ipv6] {
        for (transport, label) in [(Transport::Udp, "udp"), (Transport::Tcp, "tcp")] {
            seed += 1;
            let network = NetworkConfig { transport, proxy: Some("none".into()), ..NetworkConfig::default() };
            let (node, socket) = lab.node_by(1, seed, at, network).await.unwrap();
            assert_eq!(lab.carrier(&socket), label);
            assert_eq!(lab.echo(&node, &hub, b"either").await, b"either", "{at} {label}");
        }
    }
}

async fn said(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await.expect("it ends");
    answer
}

#[tokio::test]
async fn noise_at_the_tcp_port_harms_nobody() {
    let lab = Lab::start(&[1]);
    let hub = lab.hub(1).await;
    let node = lab.node_over_tcp(1, 12).await;
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 100]].concat();
    let noise: [&[u8]; 6] = [b"", b"x", &[0xff; 70_000], b"GET / HTTP/1.1\r\n\r\n", &hello[..9], &hello];
    for bytes in noise {
        said(lab.address, bytes).await;
    }
    assert_eq!(lab.echo(&node, &hub, b"unharmed").await, b"unharmed");
    assert_eq!(lab.relay.tunnels(), 1);
}

/// A relay behind a web server, and the address where that would pass tunnels on.
async fn behind_proxy() -> (Lab, SocketAddr) {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    (Lab::start_with(&[1], TcpOptions { behind_proxy: Some(free), ..TcpOptions::default() }), free)
}

async fn bare_tunnel(at: SocketAddr) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(at).await.unwrap();
    client_async(format!("ws://{at}{PATH}"), stream).await.unwrap().0
}

/// Waits until the relay has closed a tunnel.
async fn is_closed(tunnel: &mut WebSocketStream<TcpStream>) -> bool {
    let end = async { while let Some(Ok(_)) = tunnel.next().await {} };
    tokio::time::timeout(Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS + 5_000), end).await.is_ok()
}

#[tokio::test]
async fn what_is_no_batch_of_packets_ends_its_tunnel_only() {
    let (lab, inside) = behind_proxy().await;
    let hub = lab.hub(1).await;
    let node = lab.node(1, 11).await.unwrap();
    let strange = [
        Message::Text("hello".into()),
        Message::Binary(vec![0, 30, 1].into()),
        Message::Binary(vec![0, 2, 1, 1].into()),
        Message::Binary(vec![0xff; 60_000].into()),
        Message::Binary(vec![0; limits::STREAM_MESSAGE_BYTES + 1].into()),
    ];
    for message in strange {
        let mut tunnel = bare_tunnel(inside).await;
        let _ = tunnel.send(message.clone()).await;
        assert!(is_closed(&mut tunnel).await, "{:?} was borne with", &message.into_data()[..4]);
    }
    assert_eq!(lab.relay.tunnels(), 0);
    assert_eq!(lab.echo(&node, &hub, b"unharmed").await, b"unharmed");
}

#[tokio::test]
async fn a_tunnel_without_an_admitted_link_is_soon_closed() {
    let (lab, inside) = behind_proxy().await;
    let mut silent = bare_tunnel(inside).await;
    // Packets for the relay that lead to no link: only so many of them.
    let mut loud = bare_tunnel(inside).await;
    let tag = cortex_wire::route::RelayTag::of(lab.relay.id().key());
    let mut packet = vec![0xc0, 0, 0, 0, 1, 16];
    packet.extend(tag.connection_id([7; 16]));
    packet.resize(1_200, 7);
    let message = [&1_200u16.to_be_bytes()[..], &packet].concat().repeat(50);
    let mut taken = 0;
    while taken < 10 && loud.send(Message::Binary(message.clone().into())).await.is_ok() {
        taken += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!((1..5).contains(&taken), "{taken} messages were taken");
    assert!(is_closed(&mut silent).await, "a silent tunnel was kept");
}

#[tokio::test]
async fn what_a_stranger_sends_through_a_tunnel_is_dropped_and_counted() {
    let (lab, inside) = behind_proxy().await;
    let _hub = lab.hub(1).await;
    let mut tunnel = bare_tunnel(inside).await;
    let mut packet = vec![0x40];
    packet.extend(cortex_wire::route::Route::of(&key(1).public()).connection_id([7; 14]));
    packet.resize(100, 7);
    tunnel.send(Message::Binary([&100u16.to_be_bytes()[..], &packet].concat().repeat(3).into())).await.unwrap();
    let counted = async {
        while lab.relay.counters().dropped(Drop::Stranger) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), counted).await.expect("three packets of a stranger");
}
