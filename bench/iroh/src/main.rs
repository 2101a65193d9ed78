//! What `cortex-bench relay` compares with: two iroh endpoints that reach each other through iroh-relay only, and two raw clients of iroh-relay.
//!
//! ```text
//! cortex-bench-iroh relay                          a relay with a certificate of its own; prints its URL
//! cortex-bench-iroh transfer URL NODES BYTES       each of so many endpoints sends so many bytes to one: the seconds from the first byte to the last
//! cortex-bench-iroh echo URL COUNT                 100 bytes on a stream to the other endpoint and back: microseconds, one line each
//! cortex-bench-iroh raw-echo URL COUNT             the same between two raw clients, as single packets
//! cortex-bench-iroh idle URL LINKS                 raw clients that do nothing; prints `ready`, ends with its input
//! ```

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _, stream::FuturesUnordered};
use iroh::{
    Endpoint, EndpointAddr, RelayMode, RelayUrl, SecretKey,
    dns::DnsResolver,
    endpoint::{Connection, QuicTransportConfig, VarInt, presets},
    test_utils,
};
use iroh_relay::{
    client::{Client, ClientBuilder},
    protos::relay::{ClientToRelayMsg, RelayToClientMsg},
    tls::CaTlsConfig,
};
use tokio::io::AsyncReadExt as _;

const ALPN: &[u8] = b"cortex-bench";
/// Written at once.
const PIECE: usize = 128 * 1024;
/// Before the clock starts: windows and congestion control find their size.
const WARM_BYTES: u64 = 16 << 20;
const WARM_ECHOES: usize = 200;
const BYTES: usize = 100;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["relay"] => relay().await,
        ["transfer", url, nodes, bytes] => transfer(&url.parse()?, nodes.parse()?, bytes.parse()?).await,
        ["echo", url, count] => echo(&url.parse()?, count.parse()?).await,
        ["raw-echo", url, count] => raw_echo(&url.parse()?, count.parse()?).await,
        ["idle", url, links] => idle(&url.parse()?, links.parse()?).await,
        _ => bail!("relay | transfer URL NODES BYTES | echo URL COUNT | raw-echo URL COUNT | idle URL LINKS"),
    }
}

async fn relay() -> anyhow::Result<()> {
    let (_, url, _server) = test_utils::run_relay_server_with(false).await?;
    println!("{url}");
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// An endpoint that has nothing but the relay. Its windows are those of our side of the comparison.
async fn endpoint(url: &RelayUrl) -> anyhow::Result<Endpoint> {
    let transport = QuicTransportConfig::builder()
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(16 << 20))
        .send_window(16 << 20)
        .build();
    let endpoint = Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::custom([url.clone()]))
        .ca_tls_config(CaTlsConfig::insecure_skip_verify())
        .transport_config(transport)
        .clear_ip_transports()
        .alpns(vec![ALPN.to_vec()])
        .bind()
        .await?;
    tokio::time::timeout(Duration::from_secs(20), endpoint.online()).await.context("the relay does not answer")?;
    Ok(endpoint)
}

async fn dial(from: &Endpoint, to: &Endpoint, url: &RelayUrl) -> anyhow::Result<Connection> {
    Ok(from.connect(EndpointAddr::new(to.id()).with_relay_url(url.clone()), ALPN).await?)
}

async fn transfer(url: &RelayUrl, nodes: usize, bytes: u64) -> anyhow::Result<()> {
    let hub = endpoint(url).await?;
    let mut senders = Vec::new();
    for _ in 0..nodes {
        senders.push(endpoint(url).await?);
    }
    let warm = WARM_BYTES / nodes as u64;
    let receiving = tokio::spawn({
        let hub = hub.clone();
        async move {
            let mut streams = FuturesUnordered::new();
            for _ in 0..nodes {
                let connection = hub.accept().await.context("nobody came")?.await?;
                streams.push(async move {
                    let (mut order, mut stream) = connection.open_bi().await?;
                    order.write_all(b"!").await?;
                    let (mut came, mut since) = (0, None);
                    while let Some(chunk) = stream.read_chunk(PIECE).await? {
                        came += chunk.len() as u64;
                        if came > warm {
                            since.get_or_insert_with(Instant::now);
                        }
                    }
                    ensure!(came == warm + bytes, "{came} bytes came");
                    order.write_all(b"!").await?;
                    order.finish()?;
                    // Whoever closes first may take the last byte along.
                    connection.closed().await;
                    since.context("nothing came").map(|since| (since, Instant::now()))
                });
            }
            let mut spans: Vec<(Instant, Instant)> = Vec::new();
            while let Some(span) = streams.next().await {
                spans.push(span?);
            }
            let first = spans.iter().map(|(first, _)| *first).min().context("nobody sent")?;
            let last = spans.iter().map(|(_, last)| *last).max().context("nobody sent")?;
            anyhow::Ok(last - first)
        }
    });
    let mut sending = FuturesUnordered::new();
    for sender in &senders {
        let connection = dial(sender, &hub, url).await?;
        sending.push(async move {
            let (mut stream, mut order) = connection.accept_bi().await?;
            order.read_exact(&mut [0]).await?;
            let piece = bytes::Bytes::from(vec![7_u8; PIECE]);
            let mut left = warm + bytes;
            while left > 0 {
                let now = piece.slice(..usize::try_from(left).unwrap_or(PIECE).min(PIECE));
                left -= now.len() as u64;
                stream.write_chunk(now).await?;
            }
            stream.finish()?;
            order.read_exact(&mut [0]).await?;
            connection.close(VarInt::from_u32(0), b"");
            anyhow::Ok(())
        });
    }
    while let Some(sent) = sending.next().await {
        sent?;
    }
    println!("{}", receiving.await??.as_secs_f64());
    Ok(())
}

async fn echo(url: &RelayUrl, count: usize) -> anyhow::Result<()> {
    let (hub, node) = (endpoint(url).await?, endpoint(url).await?);
    let answering = tokio::spawn({
        let hub = hub.clone();
        async move {
            let connection = hub.accept().await.context("nobody came")?.await?;
            let (mut send, mut recv) = connection.accept_bi().await?;
            let mut bytes = [0; BYTES];
            while recv.read_exact(&mut bytes).await.is_ok() {
                send.write_all(&bytes).await?;
            }
            anyhow::Ok(())
        }
    });
    let connection = dial(&node, &hub, url).await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    let mut bytes = [7; BYTES];
    for turn in 0..WARM_ECHOES + count {
        let since = Instant::now();
        send.write_all(&bytes).await?;
        recv.read_exact(&mut bytes).await?;
        tell(turn, since);
    }
    send.finish()?;
    connection.close(VarInt::from_u32(0), b"");
    answering.await?.or(Ok(()))
}

fn tell(turn: usize, since: Instant) {
    if turn >= WARM_ECHOES {
        println!("{}", since.elapsed().as_secs_f64() * 1e6);
    }
}

async fn client(url: &RelayUrl) -> anyhow::Result<(Client, iroh::EndpointId)> {
    let key = SecretKey::generate();
    let id = key.public();
    let tls = CaTlsConfig::insecure_skip_verify().client_config(Arc::new(rustls::crypto::ring::default_provider()))?;
    let client = ClientBuilder::new(url.clone(), key, DnsResolver::new()).tls_client_config(tls).connect().await?;
    Ok((client, id))
}

async fn raw_echo(url: &RelayUrl, count: usize) -> anyhow::Result<()> {
    let ((mut one, _), (mut other, to)) = (client(url).await?, client(url).await?);
    tokio::spawn(async move {
        while let Some(Ok(message)) = other.next().await {
            if let RelayToClientMsg::Datagrams { remote_endpoint_id, datagrams } = message {
                let answer = ClientToRelayMsg::Datagrams { dst_endpoint_id: remote_endpoint_id, datagrams };
                if other.send(answer).await.is_err() {
                    return;
                }
            }
        }
    });
    for turn in 0..WARM_ECHOES + count {
        let since = Instant::now();
        one.send(ClientToRelayMsg::Datagrams { dst_endpoint_id: to, datagrams: [7_u8; BYTES].into() }).await?;
        loop {
            match one.next().await.context("the relay has ended")?? {
                RelayToClientMsg::Datagrams { .. } => break,
                _ => continue,
            }
        }
        tell(turn, since);
    }
    Ok(())
}

async fn idle(url: &RelayUrl, links: usize) -> anyhow::Result<()> {
    ensure!(url.host_str() == Some(&Ipv4Addr::LOCALHOST.to_string()), "only on this machine");
    let mut clients = Vec::new();
    for _ in 0..links {
        clients.push(client(url).await?);
    }
    println!("ready");
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    drop(clients);
    Ok(())
}
