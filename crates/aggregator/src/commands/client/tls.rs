//! TLS of the commands' client.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ClientError;
use crate::plain_file;

/// Begins TLS with one host, whose certificate must be certified by one of the trusted ones.
pub(super) struct Tls {
    connector: TlsConnector,
    host: ServerName<'static>,
}

impl Tls {
    /// For `host`, as the URL has it. Trusts the certificates in the file `ca`, or without one those of the system.
    pub(super) fn new(host: &str, ca: Option<&Path>) -> Result<Self, ClientError> {
        let roots = match ca {
            Some(path) => of_file(path).map_err(|problem| {
                let place = format!("--ca {}", path.display());
                ClientError::Usage { place, problem }
            })?,
            None => of_system(),
        };
        // The URL has an address of IPv6 in brackets.
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let wrong = |problem| ClientError::Usage { place: "--url".to_owned(), problem };
        let host = ServerName::try_from(bare).map_err(|e| wrong(format!("invalid host: {e}")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| wrong(e.to_string()))?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), host })
    }

    /// Begins TLS. The error is for people.
    pub(super) async fn connect(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let connected = self.connector.connect(self.host.clone(), stream).await;
        connected.map_err(|e| {
            let advice = match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_)) => {
                    "; --ca names the file with the certificate that certifies the service's own"
                }
                Some(rustls::Error::InvalidMessage(_)) => {
                    "; does the service speak TLS there? Without it, the URL begins with http://"
                }
                _ => "",
            };
            format!("TLS is not established: {e}{advice}")
        })
    }
}

fn of_file(path: &Path) -> Result<RootCertStore, String> {
    let text =
        plain_file::read_text(path, plain_file::MAX_TEXT).map_err(|e| format!("it can't be read: {e}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|e| format!("expected certificates in PEM: {e}"))?;
        roots.add(certificate).map_err(|e| e.to_string())?;
    }
    if roots.is_empty() { Err("expected at least one certificate in PEM".to_owned()) } else { Ok(roots) }
}

/// Those that can be read. Without any, every certificate is refused.
fn of_system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
