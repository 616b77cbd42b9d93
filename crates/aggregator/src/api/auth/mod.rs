//! Authentication by bearer token and authorization of a request, by the cluster or by a token file.
//!
//! Each request but probes is checked here first. Where no authority can check a request, nothing is changed.

mod denial;
mod fingerprint;
mod remembered;
mod reviews;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use self::fingerprint::Fingerprints;
use self::reviews::Reviews;
use self::tokens::Tokens;
use super::problem::Problem;
use crate::config::token_file::{Scopes, TokenFileError, is_token};
use crate::config::{Auth, Config};
use crate::kubernetes::Cluster;

/// The API group that rights are granted in.
pub(super) const GROUP: &str = "procscan.sealos.io";
/// The subresource for whole command lines.
const CMDLINES: &str = "violations/cmdline";

/// Authenticates callers and authorizes what they request. Clones share the answers that they remember.
#[derive(Clone, Debug)]
pub(crate) struct Authenticator(Arc<Authority>);

/// The authority that is asked.
#[derive(Debug)]
enum Authority {
    Cluster(Box<Reviews>),
    File(Tokens),
    /// None: every request may read, and none may change anything.
    None,
}

/// An authenticated account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The name, which is the actor in the log of decisions.
    pub(crate) name: String,
    /// The UID of the account; `None` if the cluster has none for it.
    pub(crate) uid: Option<String>,
    /// The groups that RBAC may grant rights to.
    pub(crate) groups: Vec<String>,
    /// The extra attributes that the cluster's authenticators give the account.
    pub(crate) extra: BTreeMap<String, Vec<String>>,
    /// What the token file lets the account do. The cluster decides by its RBAC rules, so its accounts have all scopes.
    pub(crate) scopes: Scopes,
}

/// A right that a request needs, in the terms of an RBAC rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// A right to objects of `procscan.sealos.io`.
    Object {
        /// `get` and `list`, or a verb that changes something.
        verb: &'static str,
        /// The plural of a resource, or `PLURAL/SUBRESOURCE`.
        resource: &'static str,
        /// The namespace; `None` stands for all.
        namespace: Option<String>,
        /// The name of the object; `None` stands for all.
        name: Option<String>,
    },
    /// The right to get a path that stands for no object (`nonResourceURLs`).
    Path(&'static str),
}

/// Why requests can't be authenticated at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// There is no cluster to ask.
    #[error("api.auth: kubernetes needs a cluster")]
    NoCluster,
    /// The tokens can't be read.
    #[error("api.token_file: {0}")]
    TokenFile(#[from] TokenFileError),
    /// The system does not give random numbers.
    #[error("the system gives no random numbers")]
    NoRandomNumbers,
}

impl Authenticator {
    /// As `config` says; `cluster` is needed with [`Auth::Kubernetes`]. Reads the token file, if there is one.
    pub(crate) fn new(config: &Config, cluster: Option<&Cluster>) -> Result<Self, AuthError> {
        let authority = match config.auth() {
            Auth::Kubernetes => {
                let cluster = cluster.ok_or(AuthError::NoCluster)?.clone();
                Authority::Cluster(Box::new(Reviews::new(cluster, Fingerprints::new()?)))
            }
            Auth::Tokens => {
                let path = config.api.token_file.clone().unwrap_or_default();
                Authority::File(Tokens::open(path, Fingerprints::new()?)?)
            }
            Auth::None => Authority::None,
        };
        Ok(Self(Arc::new(authority)))
    }

    /// The account of a request. The problem is 401 without a valid token, 400 if the header is malformed, 503 if the cluster
    /// gives no answer.
    ///
    /// With [`Auth::None`] every account is [`Caller::anonymous`].
    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        match &*self.0 {
            Authority::Cluster(reviews) => {
                let needed = "a bearer token of the cluster is needed, such as `kubectl create token NAME -n NAMESPACE` makes";
                let caller = reviews.caller(bearer(headers, needed)?).await?;
                caller.ok_or_else(|| {
                    unknown(
                        "the API server does not accept this token: it is none of its own, or has expired; \
                         `kubectl create token NAME -n NAMESPACE` makes one",
                    )
                })
            }
            Authority::File(tokens) => {
                let needed = "a bearer token is needed, one of those in `api.token_file`";
                let caller = tokens.caller(bearer(headers, needed)?).await;
                caller.map(Arc::new).ok_or_else(|| unknown("this token is not in `api.token_file`"))
            }
            Authority::None => Ok(Arc::new(Caller::anonymous())),
        }
    }

    /// Whether a request needs a token.
    pub(super) fn needs_token(&self) -> bool {
        !matches!(*self.0, Authority::None)
    }

    /// Why known tokens may not be accepted; `None` if they are.
    pub(super) async fn trouble(&self) -> Option<String> {
        match &*self.0 {
            Authority::File(tokens) => tokens.trouble().await,
            Authority::Cluster(_) | Authority::None => None,
        }
    }

    /// Whether `caller` has `right`. The problem is 403 without it, and names the missing rule or scope; 503 if the cluster gives
    /// no answer.
    pub(crate) async fn authorize(&self, caller: &Caller, right: &Right) -> Result<(), Problem> {
        if self.may(caller, right).await? { Ok(()) } else { Err(self.denial(caller, right)) }
    }

    /// Whether `caller` has `right`. The problem is 503 if the cluster gives no answer.
    pub(super) async fn may(&self, caller: &Caller, right: &Right) -> Result<bool, Problem> {
        match &*self.0 {
            Authority::Cluster(reviews) => reviews.may(caller, right).await,
            Authority::File(_) => Ok(right.is_within(&caller.scopes)),
            // Without an authority, no request has the right to whole command lines.
            Authority::None => Ok(right.is_to_read() && !right.is_to_cmdlines()),
        }
    }

    /// The problem of a caller without `right`. It names what the caller has, and nothing of other accounts.
    fn denial(&self, caller: &Caller, right: &Right) -> Problem {
        match &*self.0 {
            Authority::Cluster(_) => denial::by_rules(caller, right),
            Authority::File(_) => denial::by_scopes(caller, right),
            Authority::None => denial::without_authority(),
        }
    }
}

impl Caller {
    /// An account of which only the name and the scopes are known.
    fn named(name: &str, scopes: Scopes) -> Self {
        Self { name: name.to_owned(), uid: None, groups: Vec::new(), extra: BTreeMap::new(), scopes }
    }

    /// The account of requests that no authority has checked.
    pub(super) fn anonymous() -> Self {
        Self::named("anonymous", Scopes::everything())
    }
}

impl Right {
    /// The right to read violations, and what has come of them, in `namespace` or everywhere.
    pub(super) fn to_read(verb: &'static str, namespace: Option<&str>) -> Self {
        Self::Object { verb, resource: "violations", namespace: namespace.map(str::to_owned), name: None }
    }

    /// The right to read whole command lines, in `namespace` or everywhere.
    pub(super) fn to_cmdlines(namespace: Option<&str>) -> Self {
        Self::Object { verb: "get", resource: CMDLINES, namespace: namespace.map(str::to_owned), name: None }
    }

    fn is_to_read(&self) -> bool {
        match self {
            Self::Object { verb, .. } => matches!(*verb, "get" | "list" | "watch"),
            Self::Path(_) => true,
        }
    }

    fn is_to_cmdlines(&self) -> bool {
        matches!(self, Self::Object { resource, .. } if *resource == CMDLINES)
    }

    /// Whether the scopes of a line of the token file include this right. An operator command is also checked against the
    /// namespaces of the scopes, once its App is known.
    fn is_within(&self, scopes: &Scopes) -> bool {
        match self {
            Self::Object { namespace, .. } if self.is_to_cmdlines() => {
                scopes.cmdline && scopes.reach(namespace.as_deref())
            }
            Self::Object { namespace, .. } if self.is_to_read() => {
                scopes.read && scopes.reach(namespace.as_deref())
            }
            Self::Object { .. } => scopes.operate,
            Self::Path(_) => scopes.metrics || (scopes.read && scopes.reach(None)),
        }
    }
}

/// The token of the one `Authorization` header (RFC 6750). `needed` describes the token that is needed.
fn bearer<'a>(headers: &'a HeaderMap, needed: &str) -> Result<&'a str, Problem> {
    let missing = || challenge(StatusCode::UNAUTHORIZED, needed, "Bearer");
    let malformed = |what| challenge(StatusCode::BAD_REQUEST, what, "Bearer error=\"invalid_request\"");
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (all.next(), all.next()) {
        (None, _) => return Err(missing()),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err(malformed("there is more than one header `Authorization`")),
    };
    let shape = "the header `Authorization` must be `Bearer TOKEN`";
    let value = value.to_str().map_err(|_| malformed(shape))?;
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    let token = token.trim_matches(' ');
    if is_token(token) { Ok(token) } else { Err(malformed(shape)) }
}

fn unknown(detail: &str) -> Problem {
    challenge(StatusCode::UNAUTHORIZED, detail, "Bearer error=\"invalid_token\"")
}

fn challenge(status: StatusCode, detail: &str, challenge: &'static str) -> Problem {
    Problem::new(status, detail).with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}
