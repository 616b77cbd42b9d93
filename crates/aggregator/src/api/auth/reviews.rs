//! Authentication and authorization by the cluster: a `TokenReview` gives the account of a token, a `SubjectAccessReview`
//! says whether the account has a right.
//!
//! Clients can send any number of invalid tokens. So answers are remembered for some seconds, and only so many reviews are
//! requested at the same time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{HeaderValue, Request, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::super::problem::Problem;
use super::fingerprint::Fingerprints;
use super::remembered::Remembered;
use super::{Caller, GROUP, Right};
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};

/// How long a valid token is accepted without another review. A revoked token may be accepted for that long.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// How long an invalid token is refused without another review. The token of a new account may be refused for that long.
const UNKNOWN_FOR: Duration = Duration::from_secs(3);
/// How long the answer about a right holds.
const RIGHT_FOR: Duration = Duration::from_secs(3);
/// How many reviews of one kind are requested at the same time.
const MAX_CONCURRENT_REVIEWS: usize = 8;
/// How long a review waits for its place. While the API server answers, a thousand reviews get their places within that time.
const MAX_WAIT_FOR_REVIEW: Duration = Duration::from_secs(1);

/// The cluster, and its last answers.
#[derive(Debug)]
pub(super) struct Reviews {
    cluster: Cluster,
    fingerprints: Fingerprints,
    callers: Remembered<Option<Caller>>,
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
    pub(super) async fn caller(&self, token: &str) -> Result<Option<Caller>, Problem> {
        let fingerprint = self.fingerprints.of(token.as_bytes());
        if let Some(caller) = self.callers.get(&fingerprint) {
            return Ok(caller);
        }
        let _place = place(&self.token_places).await?;
        // Another request may have had the same token reviewed meanwhile.
        if let Some(caller) = self.callers.get(&fingerprint) {
            return Ok(caller);
        }
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status: TokenReviewStatus = self.ask(&TOKEN_REVIEW, &review).await?;
        let is_known = status.authenticated == Some(true);
        let caller = status.user.filter(|_| is_known).and_then(caller);
        if caller.is_none() {
            let error = status.error.unwrap_or_default().replace(token, "…");
            tracing::debug!(error, "a token was refused");
        }
        let lifetime = if caller.is_some() { KNOWN_FOR } else { UNKNOWN_FOR };
        self.callers.put(fingerprint, caller.clone(), lifetime);
        Ok(caller)
    }

    /// Whether `caller` has `right`.
    pub(super) async fn authorize(&self, caller: &Caller, right: Right) -> Result<(), Problem> {
        let attributes = ResourceAttributes {
            group: Some(GROUP.to_owned()),
            resource: Some(right.resource.to_owned()),
            verb: Some(right.verb.to_owned()),
            namespace: right.namespace.clone(),
            name: right.name.clone(),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(caller.name.clone()),
            uid: caller.uid.clone(),
            groups: Some(caller.groups.clone()),
            extra: Some(caller.extra.clone()),
            resource_attributes: Some(attributes),
            non_resource_attributes: None,
        };
        if self.may(spec, &right).await? { Ok(()) } else { Err(denied(caller, &right)) }
    }

    async fn may(&self, spec: SubjectAccessReviewSpec, right: &Right) -> Result<bool, Problem> {
        let fingerprint = self.fingerprints.of(json!(spec).to_string().as_bytes());
        if let Some(may) = self.rights.get(&fingerprint) {
            return Ok(may);
        }
        let _place = place(&self.right_places).await?;
        let caller = spec.user.clone();
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let status: SubjectAccessReviewStatus = self.ask(&ACCESS_REVIEW, &review).await?;
        let may = status.allowed && status.denied != Some(true);
        if !may {
            let Right { verb, resource, namespace, name } = right;
            let why = status.evaluation_error.or(status.reason);
            tracing::info!(caller, verb, resource, namespace, name, why, "denied");
        }
        self.rights.put(fingerprint, may, RIGHT_FOR);
        Ok(may)
    }

    async fn ask<S: DeserializeOwned>(&self, kind: &Kind, review: &impl Serialize) -> Result<S, Problem> {
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
    })
}

async fn place(places: &Semaphore) -> Result<SemaphorePermit<'_>, Problem> {
    match tokio::time::timeout(MAX_WAIT_FOR_REVIEW, places.acquire()).await {
        // The semaphore is never closed, so this is the time limit.
        Ok(Ok(place)) => Ok(place),
        _ => Err(later(1, "too many requests wait for their token or access reviews; try again later")),
    }
}

/// The problem for clients that may not be authenticated: it does not show the address of the API server.
fn unanswered(refusal: &Refusal) -> Problem {
    let subject = &refusal.subject;
    later(
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
    )
}

fn later(seconds: u32, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        .with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
}

fn denied(caller: &Caller, right: &Right) -> Problem {
    let Right { verb, resource, namespace, name } = right;
    let which = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let place = match namespace {
        Some(namespace) => format!("in namespace {namespace}"),
        None => "in all namespaces".to_owned(),
    };
    let mut rule = json!({"apiGroups": [GROUP], "resources": [resource], "verbs": [verb]});
    if let (Some(name), Some(rule)) = (name, rule.as_object_mut()) {
        rule.insert("resourceNames".to_owned(), json!([name]));
    }
    Problem::new(
        StatusCode::FORBIDDEN,
        format!("{} may not {verb} {resource}.{GROUP}{which} {place}: no RBAC rule allows it", caller.name),
    )
    .with(&json!({"user": caller.name, "namespace": namespace, "rule": rule}))
}
