//! The hubs of the settings: by their key, or by their address.
//!
//! A hub at an address is asked for its key once (`GET /api/hub`), and the answer is kept beside the relay's own key: from then on the address counts for
//! nothing, and who takes it over cannot make the relay serve another hub. So what answers has to prove that it is there: https with a certificate that this machine trusts, or this machine itself.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use cortex_wire::id::HubId;
use http::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// Where the keys of hubs at addresses are kept, in the state folder.
const FILE: &str = "hubs.json";
/// For a hub to say its key.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 4_096;

/// A hub as an operator names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HubName {
    /// By its key.
    Key(HubId),
    /// By its address: scheme, host and perhaps a port.
    At(Uri),
}

/// Why a hub's name cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Neither a key nor an address.
    #[error("`{0}` is no hub; name it by the key that `cortex-hub serve` prints, or by its address (https://hub.example.org)")]
    Neither(String),
    /// Anybody on the way could answer.
    #[error("over http anybody on the way could say that they are the hub at {0}; write https://, or the hub's key")]
    Plain(Uri),
    /// Nobody answers.
    #[error(
        "the hub at {url} cannot be asked for its key: {reason}; it is asked once only, and the relay can also be given the key itself"
    )]
    Silent {
        /// Its address.
        url: Uri,
        /// Why.
        reason: String,
    },
    /// Somebody answers who is not a hub.
    #[error("{url} does not say a hub's key ({reason}); is it the address that people open in a browser?")]
    NoHub {
        /// The address.
        url: Uri,
        /// What it says.
        reason: String,
    },
    /// The keys that are known.
    #[error("cannot use {path}, where the keys of hubs are kept: {source}")]
    Kept {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FromStr for HubName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Ok(key) = text.parse() {
            return Ok(Self::Key(key));
        }
        let neither = || NameError::Neither(text.chars().take(100).collect());
        let url: Uri = text.trim_end_matches('/').parse().map_err(|_| neither())?;
        let plain = match url.scheme_str() {
            Some("https") => false,
            Some("http") => true,
            _ => return Err(neither()),
        };
        // An address and nothing else: no path, no name or password of somebody.
        if url.path() != "/" || url.query().is_some() || url.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(neither());
        }
        if plain && !is_here(url.host().unwrap_or_default()) { Err(NameError::Plain(url)) } else { Ok(Self::At(url)) }
    }
}

impl TryFrom<String> for HubName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<HubName> for String {
    fn from(name: HubName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => key.fmt(f),
            Self::At(url) => f.write_str(url.to_string().trim_end_matches('/')),
        }
    }
}

/// Whether that is this machine.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The keys of these hubs, in their order. Those at addresses that were never asked are asked now, and what they say is kept in `state_dir`.
///
/// # Errors
/// [`NameError`]: then none of them can be used.
pub async fn find(names: &[HubName], state_dir: &Path) -> Result<Vec<HubId>, NameError> {
    let kept = Kept::read(&state_dir.join(FILE))?;
    let (mut known, mut hubs) = (kept.keys.clone(), Vec::with_capacity(names.len()));
    for name in names {
        hubs.push(match name {
            HubName::Key(key) => *key,
            HubName::At(url) => match known.get(&name.to_string()) {
                Some(key) => *key,
                None => {
                    let key = ask(url).await?;
                    tracing::info!(%url, hub = %key, file = %kept.path.display(), "a hub has said its key, which is kept");
                    known.insert(name.to_string(), key);
                    key
                }
            },
        });
    }
    kept.write(&known)?;
    Ok(hubs)
}

/// The keys of hubs that were asked.
struct Kept {
    path: PathBuf,
    keys: BTreeMap<String, HubId>,
}

impl Kept {
    fn read(path: &Path) -> Result<Self, NameError> {
        let failed = |source| NameError::Kept { path: path.to_owned(), source };
        let keys: BTreeMap<String, String> = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(error)),
        };
        let broken = || failed(io::Error::new(io::ErrorKind::InvalidData, "it names what is no key; mend or remove it"));
        let keys = keys.into_iter().map(|(url, key)| Ok((url, key.parse().map_err(|_| broken())?))).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), keys })
    }

    fn write(&self, keys: &BTreeMap<String, HubId>) -> Result<(), NameError> {
        if *keys == self.keys {
            return Ok(());
        }
        let text: BTreeMap<&str, String> = keys.iter().map(|(url, key)| (url.as_str(), key.to_string())).collect();
        let write = || {
            let new = self.path.with_extension("new");
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&new, serde_json::to_vec_pretty(&text)?)?;
            std::fs::File::open(&new)?.sync_all()?;
            std::fs::rename(&new, &self.path)
        };
        write().map_err(|source| NameError::Kept { path: self.path.clone(), source })
    }
}

/// What a hub says of itself.
#[derive(Deserialize)]
struct Introduction {
    key: String,
}

async fn ask(url: &Uri) -> Result<HubId, NameError> {
    let silent = |reason: String| NameError::Silent { url: url.clone(), reason };
    let asked =
        tokio::time::timeout(PATIENCE, fetch(url)).await.map_err(|_| silent(format!("no answer within {} s", PATIENCE.as_secs())))?;
    let (status, body) = asked.map_err(|error| silent(error.to_string()))?;
    let no_hub = |reason: String| NameError::NoHub { url: url.clone(), reason };
    if status != StatusCode::OK {
        return Err(no_hub(format!("it answers {status}")));
    }
    let said: Introduction = serde_json::from_slice(&body).map_err(|_| no_hub("its answer is something else".into()))?;
    said.key.parse().map_err(|_| no_hub("what it says is no key".into()))
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// `GET /api/hub`.
async fn fetch(url: &Uri) -> Result<(StatusCode, Vec<u8>), AnyError> {
    let (host, tls) = (url.host().ok_or("it has no host")?.trim_matches(['[', ']']), url.scheme_str() == Some("https"));
    let stream = TcpStream::connect((host, url.port_u16().unwrap_or(if tls { 443 } else { 80 }))).await?;
    if !tls {
        return get(url, stream).await;
    }
    let stream = connector()?.connect(ServerName::try_from(host.to_owned())?, stream).await?;
    get(url, stream).await
}

/// TLS as this machine trusts it.
fn connector() -> Result<TlsConnector, AnyError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(found.certs).0 == 0 {
        return Err("this machine trusts no certificates (install ca-certificates)".into());
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn get(url: &Uri, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(StatusCode, Vec<u8>), AnyError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let talk = async {
        let host = url.authority().ok_or("it has no host")?.as_str();
        let request = Request::get("/api/hub").header(header::HOST, host).header(header::USER_AGENT, crate::AGENT).body(Body::empty())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        Ok((status, axum::body::to_bytes(Body::new(answer.into_body()), ANSWER_BYTES).await?.to_vec()))
    };
    // The connection does what the talk needs, and ends with it.
    tokio::select! {
        answer = talk => answer,
        Err(error) = connection => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn hub(seed: u8) -> HubId {
        cortex_wire::key::SecretKey::from_seed([seed; 32]).public().into()
    }

    #[test]
    fn a_hub_is_named_by_its_key_or_its_address() {
        let key = hub(1).to_string();
        assert_eq!(key.parse::<HubName>().unwrap(), HubName::Key(hub(1)));
        for url in
            ["https://hub.example.org", "https://hub.example.org:8443", "http://127.0.0.1:8080", "http://localhost", "http://[::1]:8080"]
        {
            assert_eq!(url.parse::<HubName>().unwrap().to_string(), url);
            assert_eq!(format!("{url}/").parse::<HubName>().unwrap().to_string(), url);
        }
        for wrong in
            ["", "hub.example.org", "ftp://hub", "https://", "https://me:word@hub", "https://hub/path", "https://hub?x=1", &key[1..]]
        {
            assert!(matches!(wrong.parse::<HubName>(), Err(NameError::Neither(_))), "{wrong}");
        }
        for plain in ["http://hub.example.org", "http://10.0.0.7", "http://127.0.0.1.example.org"] {
            assert!(matches!(plain.parse::<HubName>(), Err(NameError::Plain(_))), "{plain}");
        }
    }

    /// Answers so many requests with this, and then nobody is there.
    async fn somebody(answers: Vec<String>) -> HubName {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /api/hub HTTP/1.1\r\n"));
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        name
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_hub_at_an_address_is_asked_once_and_never_again() {
        let folder = tempfile::tempdir().unwrap();
        let introduction = |seed| answer("200 OK", &format!("{{\"key\": \"{}\", \"more\": 1}}", hub(seed)));
        let name = somebody(vec![introduction(1), introduction(2)]).await;
        let names = [HubName::Key(hub(7)), name];
        for _ in 0..2 {
            assert_eq!(find(&names, folder.path()).await.unwrap(), [hub(7), hub(1)]);
        }
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        assert_eq!(find(&names, folder.path()).await.unwrap(), [hub(7), hub(2)], "forgotten, and asked again");
    }

    #[tokio::test]
    async fn what_is_no_hub_is_not_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let wrong = [
            answer("404 Not Found", ""),
            answer("302 Found", ""),
            answer("200 OK", "<html>"),
            answer("200 OK", "{\"key\": \"x\"}"),
            format!("HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n{}", "x".repeat(99_999)),
            "\x16\x03\x01".to_owned(),
            String::new(),
        ];
        for answer in wrong {
            let refused = find(&[somebody(vec![answer.clone()]).await], folder.path()).await;
            assert!(matches!(refused, Err(NameError::NoHub { .. } | NameError::Silent { .. })), "{answer:.40}: {refused:?}");
        }
        let nobody = somebody(Vec::new()).await;
        assert!(matches!(find(&[nobody], folder.path()).await, Err(NameError::Silent { .. })));
        assert!(!folder.path().join(FILE).exists());
    }

    #[tokio::test]
    async fn keys_that_were_spoiled_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for spoiled in ["{", "{\"https://hub\": \"x\"}"] {
            std::fs::write(folder.path().join(FILE), spoiled).unwrap();
            assert!(matches!(find(&[HubName::Key(hub(1))], folder.path()).await, Err(NameError::Kept { .. })));
        }
    }
}
