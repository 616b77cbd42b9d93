//! `api`: which accounts may use the HTTP API, what they see, and how much memory its answers take.

use std::path::{Path, PathBuf};

use procscan_core::size::SizeText;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;

/// Which accounts may use the HTTP API, what they see, and how much memory its answers take.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Api {
    /// The memory that all answers in flight may take together. Beyond it, the API refuses lists other than
    /// `GET /api/violations` with 503.
    #[serde(with = "SizeText")]
    pub(crate) max_in_flight: usize,
    /// The authority that authenticates and authorizes requests. Without it: `kubernetes` if the configuration needs a
    /// cluster, else `tokens` if there is a `token_file`, else `none`.
    pub(crate) auth: Option<Auth>,
    /// With `auth: tokens`: a file with one line `NAME TOKEN SCOPE…` for each account. The aggregator reads it again
    /// when it changes.
    pub(crate) token_file: Option<PathBuf>,
    /// Whether `GET /api/violations` answers requests without a token too, as the first version did.
    pub(crate) anonymous_violations: bool,
    /// Whether passwords, tokens, wallet addresses and the users in URLs are hidden in command lines. An account with
    /// the right to `violations/cmdline` sees whole command lines all the same. Without it: `true`, unless
    /// `aggregator.address` is a loopback address.
    pub(crate) redact: Option<bool>,
    /// The file with the certificate of the HTTP API and its chain, in PEM. With it, the API is served over
    /// TLS only. The aggregator reads it and the key again when they change.
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The file with the private key of `tls_certificate`, in PEM.
    pub(crate) tls_key: Option<PathBuf>,
    /// The file with the CA certificates for client certificates, in PEM. With it, a client needs a certificate for
    /// everything but probes.
    pub(crate) tls_client_ca: Option<PathBuf>,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            max_in_flight: 8 << 20,
            auth: None,
            token_file: None,
            anonymous_violations: false,
            redact: None,
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
        }
    }
}

/// The authority that names the account of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Auth {
    /// The cluster, by its accounts and its RBAC.
    Kubernetes,
    /// The token file, by the scopes in it.
    Tokens,
    /// No authority: every client may read, and no client may change anything.
    None,
}

impl Api {
    /// `auth` is the authority in force, written down or not.
    pub(super) fn check(&self, auth: Auth, checks: &mut Checks) {
        // Below 8 MiB, few pages have room.
        checks.size("api.max_in_flight", self.max_in_flight, 8 << 20..=4 << 30);
        checks.takes("api.token_file", "a file's path");
        match (auth, &self.token_file) {
            (Auth::Tokens, None) => {
                checks.say("api.token_file", "missing value: expected a file's path with `api.auth: tokens`");
            }
            (Auth::Kubernetes | Auth::None, Some(file)) => {
                checks.refuse("api.token_file", file.display(), "none unless `api.auth` is `tokens`");
            }
            (Auth::Tokens, Some(_)) | (_, None) => {}
        }
        self.check_tls(checks);
    }

    fn check_tls(&self, checks: &mut Checks) {
        for path in ["api.tls_certificate", "api.tls_key", "api.tls_client_ca"] {
            checks.takes(path, "a file's path");
        }
        match (&self.tls_certificate, &self.tls_key, &self.tls_client_ca) {
            (Some(_), None, _) => {
                checks.say("api.tls_key", "missing value: expected a file's path with `api.tls_certificate`");
            }
            (None, Some(_), _) => {
                checks.say("api.tls_certificate", "missing value: expected a file's path with `api.tls_key`");
            }
            (None, None, Some(file)) => {
                checks.refuse("api.tls_client_ca", file.display(), "none without `api.tls_certificate`");
            }
            (Some(_), Some(_), _) | (None, None, None) => {}
        }
    }

    /// The files of TLS, if it is configured: certificate, key, and the certificates for clients.
    pub(crate) fn tls(&self) -> Option<(&Path, &Path, Option<&Path>)> {
        let (certificate, key) = (self.tls_certificate.as_deref()?, self.tls_key.as_deref()?);
        Some((certificate, key, self.tls_client_ca.as_deref()))
    }
}
