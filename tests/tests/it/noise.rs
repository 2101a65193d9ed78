//! Nonsense on every port, beside a peer that works: it is refused or dropped, and harms nobody.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use cortex_runtime::clock;
use cortex_tests::{
    api::{Shell, problem},
    hub::Hub,
    peer::PeerOptions,
    rogue::Rogue,
    wait,
};
use cortex_wire::{
    invite::{self, RelayEndpoint},
    limits,
    schema::{LinkHello, link_hello::Credential},
};
use quinn::Connection;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

use crate::{SOON, Stage};

/// Random bytes that look like QUIC as far as their first byte goes.
fn noise(len: usize, first: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len.div_ceil(32)).flat_map(|_| clock::random::<32>()).take(len).collect();
    if let Some(byte) = bytes.first_mut() {
        *byte = first;
    }
    bytes
}

/// Datagrams of all lengths and kinds.
async fn shower(target: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    for len in [0, 1, 2, 7, 8, 20, 21, 40, 1199, 1200, 1201, 1472, 9000, 65_507] {
        for first in [0x00, 0x01, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xc3, 0xe0, 0xff] {
            // A full send buffer is not what is tested here.
            let _ = socket.send_to(&noise(len, first), target).await;
        }
    }
    // The beginning of a real handshake, cut off everywhere.
    let mut initial = vec![0xc0, 0, 0, 0, 1, 16];
    initial.extend(noise(1_194, 0));
    for len in (1..initial.len()).step_by(37) {
        let _ = socket.send_to(&initial[..len], target).await;
    }
    Ok(())
}

/// A task that prints all the while, and the noise beside it.
async fn prints_through(hub: &Hub, session: &str, noise: impl Future<Output = Result<()>>) -> Result<()> {
    let task = hub.dispatch(session, &Shell::script("for i in $(seq 1 30); do echo $i; sleep 0.05; done")).await?;
    noise.await?;
    let ran = hub.finish(&task.id, SOON).await?;
    let expected: String = (1..=30).map(|i| format!("{i}\n")).collect();
    assert_eq!((ran.task.state.as_str(), ran.stdout), ("succeeded", expected));
    Ok(())
}

#[tokio::test]
async fn nonsense_on_the_hub_s_udp_port_harms_nobody() -> Result<()> {
    let stage = Stage::set().await?;
    prints_through(&stage.hub, &stage.session, shower(stage.hub.relay_address())).await?;
    let newcomer = stage.hub.enrol("newcomer").await?;
    drop(newcomer);
    stage.still_works().await
}

#[tokio::test]
async fn nonsense_on_a_relay_s_udp_port_harms_nobody() -> Result<()> {
    let (hub, relay) = Hub::start_with_relay().await?;
    let peer = hub.enrol("machine").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    prints_through(&hub, &session, shower(relay.address().parse()?)).await?;
    let newcomer = hub.enrol("newcomer").await?;
    drop(newcomer);
    assert!(relay.process.resident_memory()? < 64 << 20);
    Ok(())
}

/// A stray byte, random bytes, beginnings of HTTP and TLS that are cut off, each on a connection of its own.
async fn callers(target: SocketAddr) -> Result<()> {
    let mut tls = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    tls.extend(noise(505, 7));
    let mut said: Vec<Vec<u8>> =
        vec![vec![], vec![0], noise(1_000, 0x16), noise(100_000, 0), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()];
    said.extend((1..tls.len()).step_by(50).map(|len| tls[..len].to_vec()));
    for bytes in said {
        let mut caller = TcpStream::connect(target).await?;
        let _ = caller.write_all(&bytes).await;
    }
    Ok(())
}

#[tokio::test]
async fn nonsense_on_a_relay_s_tcp_port_harms_nobody() -> Result<()> {
    let (hub, relay) = Hub::start_with_relay().await?;
    let peer = hub.enrol("machine").await?;
    let session = hub.session(&[&peer.node]).await?.id;
    prints_through(&hub, &session, callers(relay.address().parse()?)).await?;
    let settings = "network:\n  transport: tcp\n".to_owned();
    let newcomer = hub.enrol_with(PeerOptions { name: "newcomer".into(), settings, ..PeerOptions::default() }).await?;
    drop(newcomer);
    assert!(relay.process.resident_memory()? < 64 << 20);
    Ok(())
}

/// Waits until the other side closes the connection, and returns why.
async fn closed(connection: &Connection) -> Result<String> {
    let patience = Duration::from_millis(limits::BEFORE_AUTHENTICATION_MS) + Duration::from_secs(5);
    let reason = tokio::time::timeout(patience, connection.closed()).await.context("the connection was kept")?;
    Ok(reason.to_string())
}

#[tokio::test]
async fn nonsense_inside_a_link_ends_that_link_only() -> Result<()> {
    let stage = Stage::set().await?;
    let (_, terms) = invite::read(&stage.hub.invite_for("genuine").await?.text, clock::now_ms())?;
    let relay: &RelayEndpoint = &terms.relays[0];
    let hello = cortex_runtime::link::hello("noise", &terms.hub, None);
    let good = cortex_wire::frame::encode::<LinkHello>(&hello);
    let frames: [(&str, Vec<u8>); 5] = [
        ("a length of 4 GiB", vec![0xff; 64]),
        ("one byte too long", [&u32::try_from(limits::CONTROL_FRAME_BYTES + 1)?.to_be_bytes()[..], &[0; 100]].concat()),
        ("not protobuf", [&100u32.to_be_bytes()[..], &noise(100, 0xff)].concat()),
        ("cut off", good[..good.len() / 2].to_vec()),
        ("nothing", Vec::new()),
    ];
    for (what, bytes) in frames {
        let rogue = Rogue::new()?;
        let connection = rogue.connect(relay).await?;
        let (mut send, _recv) = connection.open_bi().await?;
        send.write_all(&bytes).await?;
        let _ = send.finish();
        closed(&connection).await.context(what)?;
    }
    // Whoever says nothing at all is not kept either; the peer is none the worse for it.
    let rogue = Rogue::new()?;
    let silent = rogue.connect(relay).await?;
    stage.still_works().await?;
    closed(&silent).await.map(drop)
}

#[tokio::test]
async fn nonsense_to_the_hub_itself_ends_that_connection_only() -> Result<()> {
    let stage = Stage::set().await?;
    let (genuine, terms) = invite::read(&stage.hub.invite_for("genuine").await?.text, clock::now_ms())?;
    let rogue = Rogue::new()?;
    let _link = rogue.link(&terms.relays[0], &terms.hub, Some(Credential::Invite(invite::proof(&genuine)))).await?;
    let too_long = [&u32::try_from(limits::CONTROL_FRAME_BYTES + 1)?.to_be_bytes()[..], &[0; 100]].concat();
    for (what, bytes) in
        [("too long", too_long), ("not protobuf", [&50u32.to_be_bytes()[..], &noise(50, 0xff)].concat()), ("cut off", vec![0, 0, 1])]
    {
        let mut talk = rogue.talk(&terms.relays[0], &terms.hub).await?;
        talk.writer.send_encoded(Bytes::from(bytes)).await?;
        let _ = talk.writer.inner_mut().finish();
        closed(&talk.connection).await.context(what)?;
    }
    stage.still_works().await
}

/// What a server answers to these bytes before it closes, or within a moment.
async fn answer(address: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // It may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn nonsense_on_the_http_port_harms_nobody() -> Result<()> {
    let stage = Stage::set().await?;
    let http = stage.hub.http_address();
    let endless_header = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many_headers = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    let two_lengths = "POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!";
    let noises: [&[u8]; 7] = [
        &noise(1, 0x16),
        &noise(100, 0),
        &noise(100_000, 0xff),
        b"GET\r\n\r\n",
        endless_header.as_bytes(),
        many_headers.as_bytes(),
        two_lengths.as_bytes(),
    ];
    for bytes in noises {
        let said = answer(http, bytes).await?;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    let misdirected = answer(http, b"GET /api/me HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await?;
    assert!(misdirected.starts_with("HTTP/1.1 421"), "{misdirected}");
    // Half a request each, and never more.
    let mut half = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(http).await?;
        stream.write_all(b"POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le").await?;
        half.push(stream);
    }
    stage.still_works().await
}

#[tokio::test]
async fn who_sends_everything_before_reading_hears_why_it_was_refused() -> Result<()> {
    let stage = Stage::set().await?;
    let http = stage.hub.http_address();
    let mut stream = TcpStream::connect(http).await?;
    let head = format!("PUT /api/sessions/{}/files/large HTTP/1.1\r\nHost: {http}\r\nContent-Length: {}\r\n\r\n", stage.session, 48 << 20);
    stream.write_all(head.as_bytes()).await?;
    for _ in 0..48 {
        stream.write_all(&[0; 1 << 20]).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut said = [0; 12];
    stream.read_exact(&mut said).await?;
    assert_eq!(&said, b"HTTP/1.1 401");
    stage.still_works().await
}

#[tokio::test]
async fn json_that_is_too_large_or_too_strange_is_refused_with_a_problem() -> Result<()> {
    let stage = Stage::set().await?;
    let hub = &stage.hub;
    let dispatch = format!("/api/sessions/{}/dispatch", stage.session);
    let code = async |body: Value| Ok::<_, anyhow::Error>(problem(hub.post::<Value>(&dispatch, body).await)?.code);
    assert_eq!(code(json!({"script": "x".repeat(3 << 20)})).await?, "body_too_large");
    assert_eq!(code(json!({"script": "x".repeat(limits::COMMAND_BYTES + 1)})).await?, "malformed_task");
    assert_eq!(code(json!({"argv": vec!["x"; limits::ARGUMENTS + 1]})).await?, "malformed_task");
    assert_eq!(code(json!({"argv": ["a\0b"]})).await?, "malformed_task");
    assert_eq!(code(json!({"argv": ["true"], "script": "true"})).await?, "malformed_task");
    assert_eq!(code(json!({})).await?, "malformed_task");
    for body in [json!({"argv": "true"}), json!("argv"), json!({"arvg": ["true"]}), json!({"node": "nonsense", "argv": ["true"]})] {
        assert_eq!(code(body).await?, "malformed_request");
    }
    let raw = async |text: String| {
        let request = hub.request(reqwest::Method::POST, &dispatch).header("content-type", "application/json").body(text);
        Ok::<_, anyhow::Error>(request.send().await?.status().as_u16())
    };
    assert_eq!(raw("[".repeat(100_000)).await?, 400);
    assert_eq!(raw("{\"argv\": [\"tr".to_owned()).await?, 400);
    assert_eq!(raw("\u{0}".to_owned()).await?, 400);
    for path in ["/api/nodes/nonsense", "/api/tasks/nonsense", "/api/sessions/00000000-0000-0000-0000-000000000000", "/api/nothing"] {
        assert_eq!(problem(hub.get::<Value>(path).await)?.status, 404, "{path}");
    }
    stage.still_works().await
}

#[tokio::test]
async fn a_task_goes_to_a_node_that_is_there_and_one_s_own_or_nowhere() -> Result<()> {
    let Stage { hub, session, mut peer } = Stage::set().await?;
    let command = Shell::argv(["true"]);
    // Foreign: another user of the same hub sees neither node nor session.
    let eve = hub.member("eve").await?;
    assert_eq!(problem(eve.dispatch(&session, &command).await)?.status, 404);
    assert_eq!(problem(eve.node(&peer.node).await)?.status, 404);
    let hers = eve.session(&[]).await?.id;
    assert_eq!(problem(eve.attach(&hers, &peer.node).await)?.status, 404);
    assert_eq!(problem(eve.dispatch(&hers, &command.clone().on(&peer.node)).await)?.code, "node_not_attached");
    // Missing: no node at all, or one that nobody has.
    let nobody = Rogue::new()?.key.public().to_string();
    assert_eq!(problem(hub.dispatch(&session, &command.clone().on(&nobody)).await)?.code, "node_not_attached");
    assert_eq!(problem(hub.dispatch(&hers, &command).await)?.status, 404);
    let second = hub.enrol("second").await?;
    hub.attach(&session, &second.node).await?;
    assert_eq!(problem(hub.dispatch(&session, &command).await)?.code, "ambiguous_node");
    // Offline.
    peer.process.terminate(SOON).await?;
    hub.node_is(&peer.node, "offline", SOON).await?;
    let refused = problem(hub.dispatch(&session, &command.clone().on(&peer.node)).await)?;
    assert_eq!((refused.status, refused.code.as_str()), (503, "node_offline"));
    assert!(refused.fix.contains("cortex-peer"), "it says what to do: {}", refused.fix);
    let ran = hub.run(&session, &command.on(&second.node)).await?;
    assert_eq!(ran.task.state, "succeeded");
    let seen = async || eve.nodes().await.ok().filter(Vec::is_empty);
    wait::until("eve sees nothing of it", SOON, seen).await.map(drop)
}
