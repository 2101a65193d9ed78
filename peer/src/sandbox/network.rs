//! Granted hosts: all of the network that a sandboxed program can have.
//!
//! Its network namespace has a loopback interface and nothing else. When hosts are granted, process 1 listens there and hands the listener to the peer,
//! which answers on it as an HTTP proxy (CONNECT, and plain requests) from the machine's own network. The peer resolves a granted name, drops addresses
//! of this machine and of private networks, and connects to an address that it has looked at: no second lookup can change it. Whoever is allowed to
//! talk to a host can tell it anything; a grant is a way out for data.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use cortex_wire::policy::{covers, split_port};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream, lookup_host},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

/// Where the proxy is, inside.
pub(super) const PORT: u16 = 3128;
/// Connections at a time; more wait.
const CONNECTIONS: usize = 64;
/// The head of a request.
const HEAD_BYTES: usize = 16 * 1024;
/// For a head, an answer from DNS, a connection.
const PATIENCE: Duration = Duration::from_secs(15);

/// Inside: the listener for the peer.
pub(super) fn listen() -> io::Result<OwnedFd> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?.into())
}

/// The variables by which programs find the proxy.
pub(super) fn variables() -> impl Iterator<Item = String> {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    names
        .into_iter()
        .map(|name| format!("{name}=http://127.0.0.1:{PORT}"))
        .chain(["NO_PROXY=localhost,127.0.0.1".to_owned(), "no_proxy=localhost,127.0.0.1".to_owned()])
}

/// In the peer: answers until it is dropped.
pub(super) async fn serve(listener: OwnedFd, grants: Arc<[String]>) -> io::Result<()> {
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return Ok(()) };
        let (stream, _) = listener.accept().await?;
        let grants = grants.clone();
        connections.spawn(async move {
            let _place = place;
            // Who is there has heard what went wrong, or is gone.
            let _ = handle(stream, &grants).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn handle(mut stream: TcpStream, grants: &[String]) -> io::Result<()> {
    let mut bytes = Vec::new();
    let head = match timeout(PATIENCE, read_head(&mut stream, &mut bytes)).await {
        Ok(Ok(length)) => length,
        _ => return refuse(&mut stream, "400 Bad Request", "no HTTP request came").await,
    };
    let Some(wanted) = Wanted::parse(&bytes[..head]) else {
        return refuse(&mut stream, "400 Bad Request", "this proxy takes CONNECT host:port, and requests for http:// addresses").await;
    };
    let (host, port) = (&wanted.host, wanted.port);
    if !grants.iter().any(|grant| covers(grant, &name_of(host, port))) {
        let text = format!(
            "{host}:{port} is not granted to tasks of this node; the node's policy lists hosts under `network`, on the hub and in its own file"
        );
        return refuse(&mut stream, "403 Forbidden", &text).await;
    }
    let address = match resolve(host, port, grants).await {
        Ok(address) => address,
        Err(text) => return refuse(&mut stream, "403 Forbidden", &text).await,
    };
    let mut upstream = match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(upstream)) => upstream,
        Ok(Err(error)) => return refuse(&mut stream, "502 Bad Gateway", &format!("{host}:{port}: {error}")).await,
        Err(_) => return refuse(&mut stream, "504 Gateway Timeout", &format!("{host}:{port} does not answer")).await,
    };
    match &wanted.request {
        None => stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
        Some(request) => upstream.write_all(request).await?,
    }
    upstream.write_all(&bytes[head..]).await?;
    copy_bidirectional(&mut stream, &mut upstream).await.map(drop)
}

/// Reads until the empty line after the head, and returns where it ends.
async fn read_head(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(at + 4);
        }
        if bytes.len() >= HEAD_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn refuse(stream: &mut TcpStream, status: &str, text: &str) -> io::Result<()> {
    let length = text.len() + 1;
    let answer = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}\n");
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// What a program asks the proxy for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    host: String,
    port: u16,
    /// What goes to the host instead of the head; `None`: CONNECT.
    request: Option<Vec<u8>>,
}

impl Wanted {
    fn parse(head: &[u8]) -> Option<Self> {
        let head = std::str::from_utf8(head).ok()?;
        let (line, fields) = head.split_once("\r\n")?;
        let mut words = line.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || !version.starts_with("HTTP/1.") || !method.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return None;
        }
        if method == "CONNECT" {
            let (host, port) = authority(target)?;
            return Some(Self { host, port: port?, request: None });
        }
        let rest = target.strip_prefix("http://")?;
        let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = authority(place)?;
        // What is between program and proxy stays there, and each connection is for one request: the next one may be for another host.
        let is_kept = |field: &&str| {
            let name = field.split(':').next().unwrap_or_default();
            !["proxy-connection", "proxy-authorization", "connection", "keep-alive"].iter().any(|own| name.eq_ignore_ascii_case(own))
        };
        let fields: Vec<&str> = fields.split("\r\n").filter(|field| !field.is_empty()).filter(is_kept).collect();
        let path = if path.is_empty() { "/" } else { path };
        let request = format!(
            "{method} {path} {version}\r\n{}{}Connection: close\r\n\r\n",
            fields.join("\r\n"),
            if fields.is_empty() { "" } else { "\r\n" }
        );
        Some(Self { host, port: port.unwrap_or(80), request: Some(request.into_bytes()) })
    }
}

/// Host and port, when they are letters, digits, dots and hyphens, or an address: nothing that somebody could read in two ways.
fn authority(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = split_port(text);
    let is_name = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    (port != Some(0) && (is_name || host.parse::<IpAddr>().is_ok())).then(|| (host.trim_end_matches('.').to_ascii_lowercase(), port))
}

fn name_of(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// An address of the host that may be connected to.
async fn resolve(host: &str, port: u16, grants: &[String]) -> Result<SocketAddr, String> {
    let found = timeout(PATIENCE, lookup_host((host, port))).await.map_err(|_| format!("{host}: no answer from DNS"))?;
    let found: Vec<SocketAddr> = found.map_err(|error| format!("{host} cannot be resolved: {error}"))?.collect();
    let may = |address: &&SocketAddr| is_public(address.ip()) || grants.iter().any(|grant| grants_address(grant, address));
    found.iter().find(may).copied().ok_or_else(|| {
        format!("{host} is an address of this machine or of a private network; it has to be granted as an address, by number")
    })
}

fn grants_address(grant: &str, address: &SocketAddr) -> bool {
    let (name, port) = split_port(grant);
    name.parse::<IpAddr>().is_ok_and(|ip| ip == address.ip()) && port.is_none_or(|port| port == address.port())
}

/// Whether an address is one of the internet's, and not of this machine, its networks, a cloud's metadata, or nobody.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => match ip.segments() {
            [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(last_four(ip)),
            [0x2002, high, low, ..] => is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
            [0x2001, 0xdb8, ..] | [0x2001, 0, ..] | [0x100, 0, 0, 0, ..] => false,
            // Everything that is given out is in 2000::/3.
            [first, ..] => first & 0xe000 == 0x2000,
        },
    }
}

fn last_four(ip: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = ip.octets();
    Ipv4Addr::new(a, b, c, d)
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special =
        matches!((a, b, c), (0 | 10 | 127, ..) | (100, 64..=127, _) | (169, 254, _) | (172, 16..=31, _) | (192, 168, _) | (192, 0, 0 | 2))
            || matches!((a, b, c), (192, 88, 99) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) | (224..=255, ..));
    !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for ip in ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn a_request_is_taken_apart_or_refused() {
        let parse = |text: &str| Wanted::parse(format!("{text}\r\n\r\n").as_bytes());
        assert_eq!(parse("CONNECT A.org:443 HTTP/1.1"), Some(Wanted { host: "a.org".into(), port: 443, request: None }));
        assert_eq!(parse("CONNECT [::1]:443 HTTP/1.1").map(|wanted| wanted.host), Some("::1".into()));
        let plain = parse("GET http://a.org:81/x?y HTTP/1.1\r\nHost: a.org:81\r\nProxy-Connection: keep-alive").unwrap();
        assert_eq!((plain.host.as_str(), plain.port), ("a.org", 81));
        assert_eq!(plain.request.unwrap(), b"GET /x?y HTTP/1.1\r\nHost: a.org:81\r\nConnection: close\r\n\r\n");
        assert_eq!(parse("GET http://a.org HTTP/1.1").unwrap().request.unwrap(), b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        for bad in [
            "",
            "CONNECT a.org HTTP/1.1",
            "CONNECT a.org:0 HTTP/1.1",
            "CONNECT a.org\0.b.org:443 HTTP/1.1",
            "CONNECT u@a.org:443 HTTP/1.1",
            "GET / HTTP/1.1",
            "GET https://a.org/ HTTP/1.1",
            "GET http:///x HTTP/1.1",
            "GET http://a.org/ HTTP/2",
            "GET http://a.org/ x HTTP/1.1",
            "CONNECT a%2eorg:443 HTTP/1.1",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_name_of_this_machine_needs_its_address_to_be_granted() {
        let grants = |list: &[&str]| list.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        assert!(resolve("localhost", 80, &grants(&["localhost", "*"])).await.is_err());
        assert!(resolve("127.0.0.1", 80, &grants(&["127.0.0.1:81"])).await.is_err());
        assert_eq!(resolve("127.0.0.1", 80, &grants(&["127.0.0.1:80"])).await.map(|address| address.port()), Ok(80));
    }
}
