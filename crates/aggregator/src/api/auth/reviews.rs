//! Authentication and authorization by the cluster: a `TokenReview` gives the account of a token, a `SubjectAccessReview`
//! says whether the account has a right.
//!
//! Clients can send any number of invalid tokens. So answers are remembered for some seconds, and only so many reviews are
//! requested at the same time.
//!
//! While the API server gives no answer, an account may still read what it has just read: that is when operators need the
//! metrics most. It may change nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{HeaderValue, Request, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
    SubjectAccessReviewStatus,
};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::problem::Problem;
use super::fingerprint::{Fingerprint, Fingerprints};
use super::remembered::{Lifetime, Remembered};
use super::{Caller, GROUP, Right};
use crate::config::token_file::Scopes;
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};

/// How long a valid token or a right to read counts while the API server gives no answer.
const KEPT: Duration = Duration::from_mins(10);
/// How long a valid token is accepted without another review. A revoked token may be accepted for that long.
const KNOWN: Lifetime = Lifetime { holds: Duration::from_secs(10), kept: KEPT };
/// How long an invalid token is refused without another review. The token of a new account may be refused for that long.
const UNKNOWN: Lifetime = Lifetime { holds: Duration::from_secs(3), kept: Duration::ZERO };
/// How long the answer about a right to read holds, if the account has it.
const READ: Lifetime = Lifetime { holds: Duration::from_secs(3), kept: KEPT };
/// How long any other answer about a right holds.
const OTHER: Lifetime = Lifetime { holds: Duration::from_secs(3), kept: Duration::ZERO };
/// How many reviews of one kind are requested at the same time.
const MAX_CONCURRENT_REVIEWS: usize = 8;
/// How long a review waits for its place. While the API server answers, a thousand reviews get their places within that time.
const MAX_WAIT_FOR_REVIEW: Duration = Duration::from_secs(1);

/// The cluster, and its last answers.
#[derive(Debug)]
pub(super) struct Reviews {
    cluster: Cluster,
    fingerprints: Fingerprints,
    callers: Remembered<Option<Arc<Caller>>>,
    rights: Remembered<bool>,
    /// Separate from `right_places`, so that clients with invalid tokens never delay authenticated ones.
    token_places: Semaphore,
    right_places: Semaphore,
    is_failing: AtomicBool,
}

/// A kind of review.
struct Kind {
    path: &'static str,
    resource: &'static str,
}

const TOKEN_REVIEW: Kind = Kind {
    path: "/apis/authentication.k8s.io/v1/tokenreviews",
    resource: "tokenreviews.authentication.k8s.io",
};
const ACCESS_REVIEW: Kind = Kind {
    path: "/apis/authorization.k8s.io/v1/subjectaccessreviews",
    resource: "subjectaccessreviews.authorization.k8s.io",
};

/// An answer. Its `spec` repeats the request with its token, and is skipped.
#[derive(Deserialize)]
struct Answer<S> {
    status: S,
}

impl Reviews {
    pub(super) fn new(cluster: Cluster, fingerprints: Fingerprints) -> Self {
        Self {
            cluster,
            fingerprints,
            callers: Remembered::default(),
            rights: Remembered::default(),
            token_places: Semaphore::new(MAX_CONCURRENT_REVIEWS),
            right_places: Semaphore::new(MAX_CONCURRENT_REVIEWS),
            is_failing: AtomicBool::new(false),
        }
    }

    /// The account of a token; `None` if the token is invalid.
    pub(super) async fn caller(&self, token: &str) -> Result<Option<Arc<Caller>>, Problem> {
        let fingerprint = self.fingerprints.of(token.as_bytes());
        if let Some(caller) = self.callers.get(&fingerprint) {
            return Ok(caller);
        }
        let kept = |missing: NoAnswer| missing.or(self.callers.kept(&fingerprint));
        let _place = match place(&self.token_places).await {
            Ok(place) => place,
            Err(missing) => return kept(missing),
        };
        // Another request may have had the same token reviewed meanwhile.
        if let Some(caller) = self.callers.get(&fingerprint) {
            return Ok(caller);
        }
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status: TokenReviewStatus = match self.ask(&TOKEN_REVIEW, &review).await {
            Ok(status) => status,
            Err(missing) => return kept(missing),
        };
        let is_known = status.authenticated == Some(true);
        let caller = status.user.filter(|_| is_known).and_then(caller).map(Arc::new);
        if caller.is_none() {
            let error = status.error.unwrap_or_default().replace(token, "…");
            tracing::debug!(error, "a token was refused");
        }
        let lifetime = if caller.is_some() { KNOWN } else { UNKNOWN };
        self.callers.put(fingerprint, caller.clone(), lifetime);
        Ok(caller)
    }

    /// Whether `caller` has `right`.
    pub(super) async fn may(&self, caller: &Caller, right: &Right) -> Result<bool, Problem> {
        let fingerprint = self.fingerprint(caller, right);
        if let Some(may) = self.rights.get(&fingerprint) {
            return Ok(may);
        }
        let answer = async {
            let _place = place(&self.right_places).await?;
            let review =
                SubjectAccessReview { spec: question(caller, right), ..SubjectAccessReview::default() };
            self.ask::<SubjectAccessReviewStatus>(&ACCESS_REVIEW, &review).await
        };
        let status = match answer.await {
            Ok(status) => status,
            // Only rights to read are kept.
            Err(missing) => return missing.or(self.rights.kept(&fingerprint)),
        };
        let may = status.allowed && status.denied != Some(true);
        if !may {
            let why = status.evaluation_error.or(status.reason);
            tracing::info!(caller = caller.name, ?right, why, "denied");
        }
        self.rights.put(fingerprint, may, if may && right.is_to_read() { READ } else { OTHER });
        Ok(may)
    }

    fn fingerprint(&self, Caller { name, uid, groups, extra, .. }: &Caller, right: &Right) -> Fingerprint {
        let account = format!("{name:?} {uid:?} {groups:?} {extra:?}");
        let right = match right {
            Right::Object { verb, resource, namespace, name } => {
                let [namespace, name] = [namespace, name].map(|text| text.as_deref().unwrap_or_default());
                ["object", verb, resource, namespace, name]
            }
            Right::Path(path) => ["path", path, "", "", ""],
        };
        self.fingerprints.of_all(right.into_iter().chain([account.as_str()]))
    }

    async fn ask<S: DeserializeOwned>(&self, kind: &Kind, review: &impl Serialize) -> Result<S, NoAnswer> {
        let ask = Ask { verb: "create", resource: kind.resource, namespace: None, name: None };
        let request = async {
            let body = serde_json::to_vec(review).map_err(kube::Error::SerdeError)?;
            let request = Request::post(kind.path)
                .header(header::CONTENT_TYPE, "application/json")
                .body(body)
                .map_err(kube::Error::HttpError)?;
            // The answer holds the token. So `request`, which logs an answer that it can't read, is not used, and neither is
            // the error of the decoder, which quotes the answer.
            let answer = self.cluster.client().request_text(request).await?;
            serde_json::from_str::<Answer<S>>(&answer)
                .map_err(|_| kube::Error::SerdeError(serde_json::Error::custom("the answer can't be read")))
        };
        match self.cluster.ask(ask, request).await {
            Ok(answer) => {
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the API server answers token and access reviews again");
                }
                Ok(answer.status)
            }
            Err(refusal) => {
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%refusal, "requests can't be authenticated or authorized");
                }
                Err(unanswered(&refusal))
            }
        }
    }
}

fn caller(user: UserInfo) -> Option<Caller> {
    Some(Caller {
        name: user.username.filter(|name| !name.is_empty())?,
        uid: user.uid,
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
        scopes: Scopes::everything(),
    })
}

/// What the API server is asked about a right.
fn question(caller: &Caller, right: &Right) -> SubjectAccessReviewSpec {
    let (mut resource_attributes, mut non_resource_attributes) = (None, None);
    match right {
        Right::Object { verb, resource, namespace, name } => {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            resource_attributes = Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: Some(subresource.to_owned()).filter(|subresource| !subresource.is_empty()),
                verb: Some((*verb).to_owned()),
                namespace: namespace.clone(),
                name: name.clone(),
                ..ResourceAttributes::default()
            });
        }
        Right::Path(path) => {
            let (path, verb) = (Some((*path).to_owned()), Some("get".to_owned()));
            non_resource_attributes = Some(NonResourceAttributes { path, verb });
        }
    }
    SubjectAccessReviewSpec {
        user: Some(caller.name.clone()),
        uid: caller.uid.clone(),
        groups: Some(caller.groups.clone()),
        extra: Some(caller.extra.clone()),
        resource_attributes,
        non_resource_attributes,
    }
}

/// Why a question has no answer.
struct NoAnswer {
    problem: Problem,
    /// It may have one in a moment, and the last one counts meanwhile. The API server has not refused it.
    is_for_now: bool,
}

impl NoAnswer {
    /// The last answer in the place of the missing one.
    fn or<T>(self, last: Option<T>) -> Result<T, Problem> {
        last.filter(|_| self.is_for_now).ok_or(self.problem)
    }
}

async fn place(places: &Semaphore) -> Result<SemaphorePermit<'_>, NoAnswer> {
    // The semaphore is never closed, so an error is the time limit.
    if let Ok(Ok(place)) = tokio::time::timeout(MAX_WAIT_FOR_REVIEW, places.acquire()).await {
        return Ok(place);
    }
    let problem = later(1, "too many requests wait for their token or access reviews; try again later");
    Err(NoAnswer { problem, is_for_now: true })
}

/// The problem for clients that may not be authenticated: it does not show the address of the API server.
fn unanswered(refusal: &Refusal) -> NoAnswer {
    let subject = &refusal.subject;
    let is_for_now = refusal.kind != RefusalKind::Forbidden;
    let problem = later(
        5,
        match refusal.kind {
            RefusalKind::Forbidden => {
                format!("the API server refuses `{subject}` to this service: an RBAC rule must allow it")
            }
            RefusalKind::Unauthenticated => {
                format!(
                    "the API server does not accept this service's own token for `{subject}` at the moment"
                )
            }
            _ => format!(
                "the API server can't be reached, or is not well: it has not answered `{subject}`; the log says more"
            ),
        },
    );
    NoAnswer { problem, is_for_now }
}

fn later(seconds: u32, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        .with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
}
