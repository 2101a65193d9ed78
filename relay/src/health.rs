//! Whether the relay can do its work, found out by doing it: a packet to its own UDP port, a handshake at its TCP port, and an echo through the link of each hub.
//!
//! A probe takes at most [`PATIENCE`], and its answer counts for [`FRESH`]: who probes more often gets the same one, so a storm of probes costs no more than one of them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use cortex_runtime::{clock, tunnel};
use cortex_wire::{
    id::HubId,
    route::{INITIAL_CID_LEN, RelayTag},
};
use rustls::{
    CertificateError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::Serialize;
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::Mutex,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{Relay, tenant::Tenant};

/// How long a probe waits for what does not answer.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer counts.
pub const FRESH: Duration = Duration::from_secs(1);

/// The answer to a probe.
#[derive(Debug, Clone, Serialize)]
pub struct Readiness {
    /// Nothing below is wrong.
    pub ready: bool,
    /// What is wrong, and what to do about it.
    pub problems: Vec<String>,
    /// The relay is being stopped.
    pub draining: bool,
    /// The UDP port: QUIC answered a packet there.
    pub udp: Check,
    /// The TCP port: a connection came in, and TLS unless a web server ends it.
    pub tcp: Check,
    /// The certificate that the TCP port shows is valid now. Peers do not look at it, firewalls may.
    pub certificate: Check,
    /// Every hub answered an echo over its link.
    pub hubs: Vec<HubCheck>,
}

/// One thing that was tried.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// It works.
    pub ok: bool,
    /// How long it took.
    pub took_ms: f64,
    /// What is wrong.
    pub problem: Option<String>,
}

/// One hub.
#[derive(Debug, Clone, Serialize)]
pub struct HubCheck {
    /// Which.
    pub hub: HubId,
    /// Whether it answers.
    #[serde(flatten)]
    pub echo: Check,
}

impl Check {
    fn new(began: Instant, outcome: Result<(), String>) -> Self {
        Self { ok: outcome.is_ok(), took_ms: began.elapsed().as_secs_f64() * 1e3, problem: outcome.err() }
    }
}

impl Readiness {
    /// Only this hub counts.
    #[must_use]
    pub fn narrowed(mut self, hub: Option<HubId>) -> Self {
        if let Some(hub) = hub {
            self.hubs.retain(|check| check.hub == hub);
        }
        self.judged(hub)
    }

    fn judged(mut self, hub: Option<HubId>) -> Self {
        let ports = [("UDP", &self.udp), ("TCP", &self.tcp), ("certificate", &self.certificate)];
        let ports = ports.into_iter().filter_map(|(what, check)| Some(format!("{what}: {}", check.problem.as_ref()?)));
        let hubs = self.hubs.iter().filter_map(|check| Some(format!("hub {}: {}", check.hub, check.echo.problem.as_ref()?)));
        let draining = self.draining.then(|| "the relay is being stopped".to_owned());
        let none = self.hubs.is_empty().then(|| match hub {
            Some(hub) => format!("hub {hub} is not served here; add it to `hubs`"),
            None => "no hub is configured, so nobody can connect; add its key to `hubs`, or start with --hub KEY".to_owned(),
        });
        self.problems = ports.chain(hubs).chain(none).chain(draining).collect();
        self.ready = self.problems.is_empty();
        self
    }
}

/// Answers probes.
#[derive(Debug)]
pub struct Probe {
    relay: Arc<Relay>,
    /// Held while one looks: others wait for what it finds.
    last: Mutex<Option<(Instant, Readiness)>>,
}

impl Probe {
    /// Of this relay.
    pub fn new(relay: Arc<Relay>) -> Self {
        Self { relay, last: Mutex::default() }
    }

    /// What is found now, or was found a moment ago.
    pub async fn look(&self) -> Readiness {
        let mut last = self.last.lock().await;
        let found = match last.take().filter(|(at, _)| at.elapsed() < FRESH) {
            Some(fresh) => fresh,
            None => (Instant::now(), look(&self.relay).await),
        };
        let found = last.insert(found).1.clone();
        Readiness { draining: self.relay.is_draining(), ..found }.judged(None)
    }
}

async fn look(relay: &Relay) -> Readiness {
    let mut echoes: JoinSet<HubCheck> = relay.tenants.all().into_iter().map(echo).collect();
    let (udp, (tcp, certificate)) = tokio::join!(udp(relay), tcp(relay));
    let mut hubs = Vec::new();
    while let Some(check) = echoes.join_next().await {
        hubs.extend(check);
    }
    hubs.sort_by_key(|check| check.hub.to_string());
    Readiness { ready: false, problems: Vec::new(), draining: false, udp, tcp, certificate, hubs }
}

async fn echo(tenant: Arc<Tenant>) -> HubCheck {
    let began = Instant::now();
    let outcome = match tenant.authority() {
        None => Err("not linked; it dials this relay by itself once `POST /api/relays` or its `relays` setting names it".to_owned()),
        Some(authority) => match timeout(PATIENCE, authority.echo()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err("its link has ended, or takes nothing more".to_owned()),
            Err(_) => Err(format!("no answer to an echo over its link within {} s", PATIENCE.as_secs())),
        },
    };
    HubCheck { hub: tenant.hub(), echo: Check::new(began, outcome) }
}

/// Where a port is reached from this machine.
fn nearby(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    address
}

async fn within<T>(work: impl Future<Output = std::io::Result<T>>) -> Result<T, String> {
    match timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// A packet of a version that nobody speaks goes all the way through the socket to QUIC, which answers with those it does (RFC 9000, section 6).
async fn udp(relay: &Relay) -> Check {
    const SMALLEST: usize = 1_200;
    let began = Instant::now();
    let answered = async {
        let port = nearby(relay.local_addr()?);
        let socket = UdpSocket::bind((nearby(SocketAddr::new(port.ip(), 0)).ip(), 0)).await?;
        socket.connect(port).await?;
        let id = RelayTag::of(relay.id.key()).connection_id(clock::random::<INITIAL_CID_LEN>());
        let mut packet = vec![0xc0, 0x0a, 0x0a, 0x0a, 0x0a, id.len() as u8];
        packet.extend_from_slice(&id);
        packet.push(0);
        packet.resize(SMALLEST, 0);
        socket.send(&packet).await?;
        socket.recv(&mut [0; 64]).await.map(drop)
    };
    Check::new(began, within(answered).await.map_err(|error| format!("port {}: {error}", port_of(relay.local_addr()))))
}

fn port_of(address: std::io::Result<SocketAddr>) -> String {
    address.map_or_else(|error| error.to_string(), |address| address.port().to_string())
}

async fn tcp(relay: &Relay) -> (Check, Check) {
    let (address, is_tls) = relay.tcp;
    let began = Instant::now();
    let shown = within(async {
        let stream = TcpStream::connect(nearby(address)).await?;
        if !is_tls {
            return Ok(None);
        }
        let config = Arc::new(tunnel::client_tls().map_err(std::io::Error::other)?);
        let name = ServerName::IpAddress(nearby(address).ip().into());
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Ok(stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|first| first.clone().into_owned()))
    })
    .await;
    let certificate = shown.as_ref().ok().and_then(Option::as_ref).map_or(Ok(()), |shown| is_valid(shown, UnixTime::now()));
    (Check::new(began, shown.map(drop).map_err(|error| format!("port {}: {error}", address.port()))), Check::new(began, certificate))
}

/// Whether a certificate is within its dates. Who issued it, and for what name, is the operator's business.
fn is_valid(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), String> {
    let cannot = |error: &dyn std::fmt::Display| format!("cannot be read: {error}");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone().into_owned()).map_err(|error| cannot(&error))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        .build()
        .map_err(|error| cannot(&error))?;
    let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
    match verifier.verify_server_cert(certificate, &[], &name, &[], now) {
        Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            Err("expired; renew it (the files are read again within a minute)".to_owned())
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })) => {
            Err("not valid yet; compare this machine's clock".to_owned())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(from: i32, to: i32) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().into()
    }

    #[test]
    fn certificates_count_within_their_dates_whoever_issued_them() {
        let in_2026 = UnixTime::since_unix_epoch(Duration::from_secs(1_780_000_000));
        assert_eq!(is_valid(&made(2020, 2030), in_2026), Ok(()));
        assert!(is_valid(&made(2020, 2024), in_2026).unwrap_err().starts_with("expired"));
        assert!(is_valid(&made(2028, 2030), in_2026).unwrap_err().starts_with("not valid yet"));
    }

    #[test]
    fn what_listens_everywhere_is_tried_on_loopback() {
        for (listens, tried) in [("0.0.0.0:443", "127.0.0.1:443"), ("[::]:443", "[::1]:443"), ("192.0.2.7:443", "192.0.2.7:443")] {
            assert_eq!(nearby(listens.parse().unwrap()), tried.parse().unwrap());
        }
    }
}
