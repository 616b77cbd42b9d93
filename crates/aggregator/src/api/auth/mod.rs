//! Who asks, and whether they may: by bearer token, and by the word of the cluster or of a token file.
//!
//! Whatever changes something asks here first, and without a clear «yes» nothing is changed: where nobody can say who asks,
//! nobody may.

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

/// Says who asks, and whether they may. Clones share what they remember.
#[derive(Clone, Debug)]
pub struct Authenticator(Arc<Authority>);

/// Whose word counts.
#[derive(Debug)]
enum Authority {
    Cluster(Box<Reviews>),
    File(Tokens),
    /// Everybody may read, nobody may change anything.
    Nobody,
}

/// Somebody who has proven who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name, as decisions are logged with it.
    pub name: String,
    /// The account's UID, where the cluster has one for it.
    pub uid: Option<String>,
    /// The groups that RBAC may grant rights to.
    pub groups: Vec<String>,
    /// What else the cluster's authenticators say of the account.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What somebody wants to do, in the words of an RBAC rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// `get` and `list`, or a verb that changes something.
    pub verb: &'static str,
    /// The plural of a resource in `procscan.sealos.io`.
    pub resource: &'static str,
    /// Where; `None` is everywhere.
    pub namespace: Option<String>,
    /// Which one; `None` is all of them.
    pub name: Option<String>,
}

/// Why requests can't be authenticated from the start.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
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
    pub fn new(config: &Config, cluster: Option<&Cluster>) -> Result<Self, AuthError> {
        let authority = match config.auth() {
            Auth::Kubernetes => {
                let cluster = cluster.ok_or(AuthError::NoCluster)?.clone();
                Authority::Cluster(Box::new(Reviews::new(cluster, Fingerprints::new()?)))
            }
            Auth::Tokens => {
                let path = config.api.token_file.clone().unwrap_or_default();
                Authority::File(Tokens::open(path, Fingerprints::new()?)?)
            }
            Auth::None => Authority::Nobody,
        };
        Ok(Self(Arc::new(authority)))
    }

    /// Who asks. The problem is 401 for somebody unknown, 400 for what is no token, 503 where the cluster can't say.
    ///
    /// With [`Auth::None`] everybody is `anonymous`.
    pub async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
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
            Authority::Nobody => Ok(Caller::named("anonymous")),
        }
    }

    /// Why known tokens may not be accepted, if so.
    pub(super) async fn trouble(&self) -> Option<String> {
        match &*self.0 {
            Authority::File(tokens) => tokens.trouble().await,
            Authority::Cluster(_) | Authority::Nobody => None,
        }
    }

    /// Whether `caller` may. The problem is 403 if not, and says what is missing; 503 where the cluster can't say.
    pub async fn authorize(&self, caller: &Caller, right: Right) -> Result<(), Problem> {
        match &*self.0 {
            Authority::Cluster(reviews) => reviews.authorize(caller, right).await,
            Authority::File(_) => Ok(()),
            Authority::Nobody if right.is_to_read() => Ok(()),
            Authority::Nobody => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "nobody may change anything while `api.auth` is `none`: set it to `kubernetes`, or to `tokens` with an \
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

/// The token of the one `Authorization` header (RFC 6750); `needed` says what would do.
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
