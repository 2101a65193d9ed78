//! Every connection of a browser goes through here: a SOCKS server on loopback, one per browser.
//!
//! SOCKS, because one connection is one target: pages, redirects, WebSockets and workers are all the same. The browser resolves no names itself; the name is resolved here, the
//! addresses are checked, and the connection is made to an address that was checked.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream, lookup_host},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::address::Allowed;

/// Connections of one browser at a time. Chromium itself opens at most 256 through a proxy.
const CONNECTIONS: usize = 512;
/// For the request, and for the connection.
const PATIENCE: Duration = Duration::from_secs(15);

/// Before another connection is taken when none could be.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers of RFC 1928.
const DONE: u8 = 0;
const NOT_ALLOWED: u8 = 2;
const UNREACHABLE: u8 = 4;
const UNKNOWN_COMMAND: u8 = 7;

/// Told of each refused connection: host, port, and what is wrong with the address.
pub type Refused = Arc<dyn Fn(&str, u16, &str) + Send + Sync>;

/// A server that runs as long as the value lives.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Starts one.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(allowed: Arc<Allowed>, refused: Refused) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(CONNECTIONS));
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok(permit) = room.clone().acquire_owned().await else { return };
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else {
                            // No descriptor is free: one of ours has to end first.
                            tokio::time::sleep(PAUSE).await;
                            continue;
                        };
                        let (allowed, refused) = (allowed.clone(), refused.clone());
                        connections.spawn(async move {
                            let _permit = permit;
                            if let Err(error) = serve(client, &allowed, &refused).await {
                                tracing::trace!(%error, "a connection of a browser broke");
                            }
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, _server: AbortOnDropHandle::new(server) })
    }
}

enum Host {
    Name(String),
    Address(IpAddr),
}

async fn serve(mut client: TcpStream, allowed: &Allowed, refused: &Refused) -> io::Result<()> {
    let (host, port) = timeout(PATIENCE, ask(&mut client)).await??;
    let server = match timeout(PATIENCE, connect(&host, port, allowed, refused)).await {
        Ok(Ok(server)) => server,
        Ok(Err(code)) => return answer(&mut client, code).await,
        Err(_) => return answer(&mut client, UNREACHABLE).await,
    };
    answer(&mut client, DONE).await?;
    let mut server = server;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

/// Greeting and request.
async fn ask(client: &mut TcpStream) -> io::Result<(Host, u16)> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not SOCKS 5");
    let [version, methods] = bytes(client).await?;
    if version != 5 {
        return Err(malformed());
    }
    let mut offered = vec![0; usize::from(methods)];
    client.read_exact(&mut offered).await?;
    client.write_all(&[5, if offered.contains(&0) { 0 } else { 0xff }]).await?;
    let [version, command, _, kind] = bytes(client).await?;
    if version != 5 {
        return Err(malformed());
    }
    let host = match kind {
        1 => Host::Address(Ipv4Addr::from(bytes::<4>(client).await?).into()),
        4 => Host::Address(Ipv6Addr::from(bytes::<16>(client).await?).into()),
        3 => {
            let [len] = bytes(client).await?;
            let mut name = vec![0; usize::from(len)];
            client.read_exact(&mut name).await?;
            let name = String::from_utf8(name).map_err(|_| malformed())?;
            let bare = name.trim_start_matches('[').trim_end_matches(']');
            bare.parse().map_or_else(|_| Host::Name(name.clone()), Host::Address)
        }
        _ => return Err(malformed()),
    };
    let port = u16::from_be_bytes(bytes(client).await?);
    if command != 1 {
        answer(client, UNKNOWN_COMMAND).await?;
        return Err(malformed());
    }
    Ok((host, port))
}

async fn bytes<const N: usize>(client: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut buffer = [0; N];
    client.read_exact(&mut buffer).await?;
    Ok(buffer)
}

async fn answer(client: &mut TcpStream, code: u8) -> io::Result<()> {
    client.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

async fn connect(host: &Host, port: u16, allowed: &Allowed, refused: &Refused) -> Result<TcpStream, u8> {
    match host {
        Host::Address(address) => connect_to(&address.to_string(), &[*address], port, allowed, refused).await,
        Host::Name(name) => {
            let found: Vec<IpAddr> =
                lookup_host((name.as_str(), port)).await.map_err(|_| UNREACHABLE)?.map(|address| address.ip()).collect();
            connect_to(name, &found, port, allowed, refused).await
        }
    }
}

/// Connects to the first address that may be and answers. A name is not looked at again: what was checked is what is connected to.
async fn connect_to(name: &str, addresses: &[IpAddr], port: u16, allowed: &Allowed, refused: &Refused) -> Result<TcpStream, u8> {
    let mut code = UNREACHABLE;
    for address in addresses {
        if let Err(kind) = allowed.check(*address) {
            if code != NOT_ALLOWED {
                refused(name, port, kind);
            }
            code = NOT_ALLOWED;
        } else if let Ok(server) = TcpStream::connect((*address, port)).await {
            return Ok(server);
        }
    }
    Err(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    async fn request(proxy: &Proxy, host: &[u8], port: u16) -> (u8, TcpStream) {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(&[5, 1, 0]).await.unwrap();
        assert_eq!(bytes::<2>(&mut stream).await.unwrap(), [5, 0]);
        let mut message = vec![5, 1, 0];
        message.extend_from_slice(host);
        message.extend_from_slice(&port.to_be_bytes());
        stream.write_all(&message).await.unwrap();
        let [_, code, ..] = bytes::<10>(&mut stream).await.unwrap();
        (code, stream)
    }

    #[tokio::test]
    async fn only_addresses_that_are_allowed_are_connected_to_whatever_they_are_called() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = log.clone();
        let refused: Refused = Arc::new(move |host, port, kind| told.lock().unwrap().push(format!("{host}:{port} {kind}")));
        let open = Proxy::start(Arc::new(Allowed(vec!["127.0.0.1".parse().unwrap()])), refused.clone()).await.unwrap();
        let closed = Proxy::start(Arc::new(Allowed::default()), refused).await.unwrap();
        let localhost = [&[3, 9][..], b"localhost"].concat();
        let literal = [&[3, 9][..], b"127.0.0.1"].concat();
        for host in [&[1, 127, 0, 0, 1][..], &localhost, &literal] {
            let (code, mut stream) = request(&open, host, port).await;
            assert_eq!(code, DONE);
            let (mut accepted, _) = server.accept().await.unwrap();
            stream.write_all(b"x").await.unwrap();
            assert_eq!(bytes(&mut accepted).await.unwrap(), *b"x");
            assert_eq!(request(&closed, host, port).await.0, NOT_ALLOWED);
        }
        assert_eq!(log.lock().unwrap()[0], format!("127.0.0.1:{port} loopback"));
        assert_eq!(request(&closed, &[1, 169, 254, 169, 254], 80).await.0, NOT_ALLOWED);
    }

    #[tokio::test]
    async fn what_is_not_socks_is_hung_up_on() {
        let proxy = Proxy::start(Arc::new(Allowed::default()), Arc::new(|_, _, _| {})).await.unwrap();
        for garbage in [&b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n"[..], &[5, 1, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0], &[4, 1]] {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            let mut rest = Vec::new();
            let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap();
            assert!(rest.len() <= 12);
        }
    }

    #[tokio::test]
    async fn a_name_that_means_another_address_each_time_is_judged_each_time() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let refused: Refused = Arc::new(|_, _, _| {});
        let allowed = Allowed(vec!["127.0.0.1".parse().unwrap()]);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(connect_to("rebound", &[address("127.0.0.1")], port, &allowed, &refused).await.is_ok());
        for later in ["127.0.0.2", "::ffff:127.0.0.2", "169.254.169.254", "0.0.0.0"] {
            assert_eq!(connect_to("rebound", &[address(later)], port, &allowed, &refused).await.err(), Some(NOT_ALLOWED), "{later}");
        }
        // Of several, one that is allowed is taken, and no other.
        assert!(connect_to("both", &[address("127.0.0.2"), address("127.0.0.1")], port, &allowed, &refused).await.is_ok());
    }
}
