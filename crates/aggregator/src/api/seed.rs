//! The two endpoints of the program that this one replaces, in exactly its shapes.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use procscan_core::report::Record;
use procscan_core::snapshot::{Coverage, Snapshot};
use serde::Serialize;

use super::Api;

/// The list as last serialised: once per change, not once per request.
#[derive(Debug, Default)]
pub(super) struct ListCache(Mutex<Option<Serialised>>);

#[derive(Clone, Debug)]
struct Serialised {
    of: Arc<[Arc<Record>]>,
    changed: Timestamp,
    body: Bytes,
    etag: HeaderValue,
}

#[derive(Serialize)]
struct List<'a> {
    violations: &'a [Arc<Record>],
    update_time: Timestamp,
    total_count: usize,
}

impl ListCache {
    fn get(&self, snapshot: &Snapshot) -> Result<Serialised, serde_json::Error> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_current = |cached: &&Serialised| {
            Arc::ptr_eq(&cached.of, &snapshot.list) && cached.changed == snapshot.list_changed_at
        };
        if let Some(current) = cached.as_ref().filter(is_current) {
            return Ok(current.clone());
        }
        let list = List {
            violations: &snapshot.list,
            // Whole seconds, as in the program before.
            update_time: Timestamp::from_second(snapshot.list_changed_at.as_second())
                .unwrap_or(snapshot.list_changed_at),
            total_count: snapshot.list.len(),
        };
        let body = Bytes::from(serde_json::to_vec(&list)?);
        let tag = format!("\"{:x}-{:x}\"", snapshot.list_changed_at.as_nanosecond(), body.len());
        let etag = HeaderValue::from_str(&tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        let fresh = Serialised { of: snapshot.list.clone(), changed: snapshot.list_changed_at, body, etag };
        *cached = Some(fresh.clone());
        Ok(fresh)
    }
}

pub(super) async fn violations(State(api): State<Api>, request: HeaderMap) -> Response {
    let snapshot = api.snapshot().await;
    let Ok(list) = api.list.get(&snapshot) else {
        return super::problem::Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the list can't be serialised",
        )
        .into_response();
    };
    let known = request.get(header::IF_NONE_MATCH).is_some_and(|tags| matches(tags, &list.etag));
    let headers = (
        [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::ETAG, list.etag),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ],
        coverage(snapshot.coverage),
    );
    if known {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else {
        (headers, list.body).into_response()
    }
}

pub(super) async fn health() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}

/// Coverage belongs to every answer; this one's shape has no room for it but in the headers.
fn coverage(coverage: Coverage) -> [(HeaderName, HeaderValue); 4] {
    let of = |name, n: usize| (HeaderName::from_static(name), HeaderValue::from(n));
    [
        of("x-procscan-targets-expected", coverage.expected()),
        of("x-procscan-targets-fresh", coverage.fresh),
        of("x-procscan-targets-stale", coverage.stale),
        of("x-procscan-targets-never-seen", coverage.never_seen),
    ]
}

/// `If-None-Match`: a list of tags, or `*`. Weak comparison, as RFC 9110 asks for.
fn matches(tags: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(tags), Ok(etag)) = (tags.to_str(), etag.to_str()) else {
        return false;
    };
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
