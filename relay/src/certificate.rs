//! The certificate of the TLS around tunnels.
//!
//! It gets packets through firewalls and load balancers and proves nothing, so the relay makes one itself at every start. An operator whose firewall looks at
//! certificates gives a real one; when its files change, the next connection sees the new one.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;

/// How often files are looked at, at most.
const LOOK: Duration = Duration::from_secs(60);

/// Files of a certificate in PEM: the chain, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those that it hangs on.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read as PEM.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not go together, or are of an unknown kind.
    #[error("cannot use the certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// None can be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Ends TLS with the certificate in these files, or with one that is made here for these names.
///
/// # Errors
/// [`CertificateError`].
pub fn acceptor(files: Option<CertificateFiles>, names: Vec<String>) -> Result<TlsAcceptor, CertificateError> {
    let resolver: Arc<dyn ResolvesServerCert> = match files {
        Some(files) => Arc::new(Renewed::read(files)?),
        None => Arc::new(Made(make(names)?)),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Tunnels are long, and a session that could be resumed is memory.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn make(names: Vec<String>) -> Result<Arc<CertifiedKey>, CertificateError> {
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(|error| rustls::Error::General(error.to_owned()))?;
    Ok(Arc::new(CertifiedKey::from_der(vec![made.cert.der().clone()], key, &ring::default_provider())?))
}

#[derive(Debug)]
struct Made(Arc<CertifiedKey>);

impl ResolvesServerCert for Made {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A certificate in files that somebody renews.
#[derive(Debug)]
struct Renewed {
    files: CertificateFiles,
    read: Mutex<Read>,
}

#[derive(Debug)]
struct Read {
    certificate: Arc<CertifiedKey>,
    changed: Option<SystemTime>,
    looked: Instant,
}

impl Renewed {
    fn read(files: CertificateFiles) -> Result<Self, CertificateError> {
        let read = Read { certificate: load(&files)?, changed: changed(&files.chain), looked: Instant::now() };
        Ok(Self { files, read: Mutex::new(read) })
    }

    fn current(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(read.looked) >= LOOK {
            read.looked = now;
            let changed = changed(&self.files.chain);
            if changed != read.changed {
                match load(&self.files) {
                    Ok(certificate) => {
                        (read.certificate, read.changed) = (certificate, changed);
                        tracing::info!(chain = %self.files.chain.display(), "the certificate was renewed");
                    }
                    Err(error) => tracing::warn!(%error, "the renewed certificate cannot be used; the old one stays"),
                }
            }
        }
        read.certificate.clone()
    }
}

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(Instant::now()))
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn load(files: &CertificateFiles) -> Result<Arc<CertifiedKey>, CertificateError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        |source| CertificateError::File { path, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.chain).and_then(Iterator::collect);
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(at(&files.key))?;
    Ok(Arc::new(CertifiedKey::from_der(chain.map_err(at(&files.chain))?, key, &ring::default_provider())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(tag: &str, der: &[u8]) -> String {
        format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", data_encoding::BASE64.encode(der))
    }

    fn write(folder: &Path, name: &str) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let files = CertificateFiles { chain: folder.join("chain.pem"), key: folder.join("key.pem") };
        fs::write(&files.chain, pem("CERTIFICATE", made.cert.der())).unwrap();
        fs::write(&files.key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
        files
    }

    #[test]
    fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let renewed = Renewed::read(write(folder.path(), "first.example")).unwrap();
        let first = renewed.current(Instant::now());
        let set_time = |files: &CertificateFiles, seconds| {
            fs::File::options()
                .write(true)
                .open(&files.chain)
                .unwrap()
                .set_modified(SystemTime::now() + Duration::from_secs(seconds))
                .unwrap();
        };
        set_time(&write(folder.path(), "second.example"), 10);
        assert_eq!(renewed.current(Instant::now()).cert, first.cert, "it is not looked at for every connection");
        let second = renewed.current(Instant::now() + LOOK);
        assert_ne!(second.cert, first.cert);
        fs::write(folder.path().join("chain.pem"), "nonsense").unwrap();
        set_time(&renewed.files.clone(), 20);
        assert_eq!(renewed.current(Instant::now() + LOOK * 3).cert, second.cert);
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = CertificateFiles { chain: folder.path().join("none.pem"), key: folder.path().join("none.key") };
        let error = acceptor(Some(files), Vec::new()).map(drop).unwrap_err().to_string();
        assert!(error.contains("none."), "{error}");
        assert!(acceptor(None, vec!["relay.example".into()]).is_ok());
    }
}
