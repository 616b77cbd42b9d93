//! TLS for the HTTP API: the certificate and its key, read again when their files change.
//!
//! The files are compared by their contents every [`PERIOD`], because a Secret's files are replaced by moving a link, and not
//! every file system reports that. A change counts once two looks have found the same contents: a certificate and its key in
//! separate files may be replaced one after the other. While the new files have a mistake, the last good ones stay.

mod certificate;
#[cfg(test)]
mod tests;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::counters::{Counters, count};
use crate::plain_file;

/// How often the files are compared.
const PERIOD: Duration = Duration::from_secs(2);
/// The protocol that is spoken over TLS.
const ALPN: &[u8] = b"http/1.1";

/// Where the certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate and its chain, in PEM.
    pub(crate) certificate: PathBuf,
    /// The private key, in PEM.
    pub(crate) key: PathBuf,
    /// The CA certificates for client certificates, in PEM; `None` if clients need no certificate.
    pub(crate) client_ca: Option<PathBuf>,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file can't be read, or has not what it should have.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The key is not that of the certificate.
    #[error("{certificate} and {key} do not belong together: {problem}")]
    Pair {
        /// The file of the certificate.
        certificate: String,
        /// The file of the key.
        key: String,
        /// Why.
        problem: String,
    },
    /// The certificate's time is over.
    #[error("{path}: the certificate expired at {expired}")]
    Expired {
        /// The file.
        path: String,
        /// When it expired.
        expired: Timestamp,
    },
}

/// The certificate in use, as operators see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsStatus {
    /// When the certificate in use expires; `None` without TLS.
    pub(crate) expires: Option<Timestamp>,
    /// What is wrong with the files that are there now; `None` if they are in use.
    pub(crate) error: Option<String>,
}

/// What is read of the files.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// A configuration of TLS, and when its certificate expires.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) expires: Timestamp,
    fingerprint: u64,
}

impl TlsFiles {
    /// Reads the files. An expired certificate is no mistake here: a service that starts late must serve all the same.
    pub(crate) fn load(&self) -> Result<Loaded, TlsError> {
        let contents = self.read()?;
        let (config, expires) = self.parse(&contents)?;
        Ok(Loaded { config: Arc::new(config), expires, fingerprint: contents.fingerprint() })
    }

    fn read(&self) -> Result<Contents, TlsError> {
        let read = |path: &Path| {
            let bytes = plain_file::read_text(path, plain_file::MAX_TEXT).map(String::into_bytes);
            bytes.map_err(|e| mistake(path, format!("can't be read: {e}")))
        };
        let client_ca = self.client_ca.as_deref().map(read).transpose()?;
        Ok(Contents { certificate: read(&self.certificate)?, key: read(&self.key)?, client_ca })
    }

    fn parse(&self, contents: &Contents) -> Result<(ServerConfig, Timestamp), TlsError> {
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let expires = chain.first().and_then(|leaf| certificate::expiry(leaf));
        let expires = expires
            .ok_or_else(|| mistake(&self.certificate, "its end of validity can't be read".to_owned()))?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|e| mistake(&self.key, format!("expected one private key in PEM: {e}")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| mistake(&self.certificate, e.to_string()))?;
        let builder = match (&self.client_ca, &contents.client_ca) {
            (Some(path), Some(bytes)) => builder.with_client_cert_verifier(verifier(path, bytes, provider)?),
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|e| TlsError::Pair {
            certificate: self.certificate.display().to_string(),
            key: self.key.display().to_string(),
            problem: e.to_string(),
        })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok((config, expires))
    }
}

impl Contents {
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.certificate, &self.key, &self.client_ca).hash(&mut hasher);
        hasher.finish()
    }
}

fn mistake(path: &Path, problem: String) -> TlsError {
    TlsError::File { path: path.display().to_string(), problem }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| mistake(path, format!("expected certificates in PEM: {e}")))?;
    if all.is_empty() {
        return Err(mistake(path, "expected at least one certificate in PEM".to_owned()));
    }
    Ok(all)
}

/// Verifies the certificates of clients. A client without one may ask for probes: kubelets have none.
fn verifier(
    path: &Path,
    pem: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|e| mistake(path, e.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|e| mistake(path, e.to_string()))
}

/// Reads the files again when they change.
#[derive(Debug)]
pub(crate) struct TlsWatch {
    files: TlsFiles,
    config: watch::Sender<Arc<ServerConfig>>,
    status: watch::Sender<TlsStatus>,
    counters: Counters,
    /// The contents that were tried last.
    tried: u64,
    /// The contents that the last look found, if they have not been tried.
    seen: Option<u64>,
}

impl TlsWatch {
    /// Begins with the files as they were `loaded`. The receiver has the configuration for new connections.
    pub(crate) fn new(
        files: TlsFiles,
        loaded: &Loaded,
        status: watch::Sender<TlsStatus>,
        counters: Counters,
    ) -> (Self, watch::Receiver<Arc<ServerConfig>>) {
        let (config, receiver) = watch::channel(loaded.config.clone());
        if loaded.expires <= Timestamp::now() {
            tracing::error!(alert = "certificate", expires = %loaded.expires, "the certificate of the HTTP API has expired");
        } else {
            tracing::info!(expires = %loaded.expires, "the HTTP API is served over TLS");
        }
        status.send_replace(TlsStatus { expires: Some(loaded.expires), error: None });
        (Self { files, config, status, counters, tried: loaded.fingerprint, seen: None }, receiver)
    }

    /// Runs until cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut timer = tokio::time::interval(PERIOD);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = timer.tick() => {}
            }
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else { continue };
            self.look(read, Timestamp::now());
        }
    }

    fn look(&mut self, read: Result<Contents, TlsError>, now: Timestamp) {
        let fingerprint = match &read {
            Ok(contents) => contents.fingerprint(),
            Err(error) => hash_of(&error.to_string()),
        };
        if fingerprint == self.tried {
            self.seen = None;
            return;
        }
        if self.seen.replace(fingerprint) != Some(fingerprint) {
            return;
        }
        (self.tried, self.seen) = (fingerprint, None);
        let parsed = read.and_then(|contents| self.files.parse(&contents)).and_then(|(config, expires)| {
            let path = self.files.certificate.display().to_string();
            if expires <= now {
                Err(TlsError::Expired { path, expired: expires })
            } else {
                Ok((config, expires))
            }
        });
        match parsed {
            Ok((config, expires)) => {
                count(&self.counters.tls_reloads, "result", "applied");
                tracing::info!(%expires, "the certificate of the HTTP API is replaced");
                self.config.send_replace(Arc::new(config));
                self.status.send_replace(TlsStatus { expires: Some(expires), error: None });
            }
            Err(error) => {
                count(&self.counters.tls_reloads, "result", "refused");
                tracing::error!(
                    alert = "certificate", %error,
                    "the new certificate of the HTTP API is refused; the one in use stays"
                );
                self.status.send_modify(|status| status.error = Some(error.to_string()));
            }
        }
    }
}

fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
