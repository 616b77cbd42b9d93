//! Authentication by bearer token and authorization of a request, by the cluster or by a token file.
//!
//! Each request that changes something is checked here first. Where no authority can check a request, nothing is changed.

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
use crate::config::token_file::{TokenFileError, is_token};
use crate::config::{Auth, Config};
use crate::kubernetes::Cluster;

/// The API group that rights are granted in.
pub(super) const GROUP: &str = "procscan.sealos.io";

/// Authenticates callers and authorizes what they request. Clones share the answers that they remember.
#[derive(Clone, Debug)]
pub(crate) struct Authenticator(Arc<Authority>);

/// The authority that is asked.
#[derive(Debug)]
enum Authority {
    Cluster(Box<Reviews>),
    File(Tokens),
    /// None: requests may read, and change nothing.
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
}

/// A right that a request needs, in the terms of an RBAC rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    /// `get` and `list`, or a verb that changes something.
    pub(crate) verb: &'static str,
    /// The plural of a resource in `procscan.sealos.io`.
    pub(crate) resource: &'static str,
    /// The namespace; `None` stands for all.
    pub(crate) namespace: Option<String>,
    /// The name of the object; `None` stands for all.
    pub(crate) name: Option<String>,
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
    /// With [`Auth::None`] every account is `anonymous`.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
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
                let name = tokens.name_of(bearer(headers, needed)?).await;
                name.map(|name| Caller::named(&name))
                    .ok_or_else(|| unknown("this token is not in `api.token_file`"))
            }
            Authority::None => Ok(Caller::named("anonymous")),
        }
    }

    /// Why known tokens may not be accepted; `None` if they are.
    pub(super) async fn trouble(&self) -> Option<String> {
        match &*self.0 {
            Authority::File(tokens) => tokens.trouble().await,
            Authority::Cluster(_) | Authority::None => None,
        }
    }

    /// Whether `caller` has `right`. The problem is 403 without it, and names the missing rule; 503 if the cluster gives no answer.
    pub(crate) async fn authorize(&self, caller: &Caller, right: Right) -> Result<(), Problem> {
        match &*self.0 {
            Authority::Cluster(reviews) => reviews.authorize(caller, right).await,
            Authority::File(_) => Ok(()),
            Authority::None if right.is_to_read() => Ok(()),
            Authority::None => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "no request may change anything while `api.auth` is `none`: set it to `kubernetes`, or to `tokens` with an \
                 `api.token_file`",
            )),
        }
    }
}

impl Caller {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), uid: None, groups: Vec::new(), extra: BTreeMap::new() }
    }
}

impl Right {
    fn is_to_read(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch")
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
