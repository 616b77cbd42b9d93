//! `GET /api/violations` of one namespace.
//!
//! Such a list tells nothing of other namespaces: its `update_time` and its `ETag` change only when it changes itself.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use jiff::Timestamp;
use procscan_core::report::Record;
use procscan_core::snapshot::Snapshot;

use super::Api;
use super::compat::{WORTH_COMPRESSING, answer, headers, not_acceptable, not_modified, not_serialised};
use super::list::{compress, coverage_headers, serialise};
use super::negotiation::{Accepted, Encoding, has};
use super::page::SMALL_PAGE_ENTRIES;
use super::pieces::{Cmdlines, length_of};
use super::problem::Problem;

/// How many namespaces' lists are remembered: the one that was not asked for the longest is forgotten first.
const MAX_REMEMBERED: usize = 1024;

/// When the list of each namespace last changed, as far as it was asked for.
#[derive(Debug, Default)]
pub(super) struct NamespaceLists {
    hasher: RandomState,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    lists: HashMap<String, SeenList>,
    /// Counts the requests.
    requests: u64,
}

#[derive(Clone, Copy, Debug)]
struct SeenList {
    fingerprint: u64,
    changed: Timestamp,
    /// The number of the last request for it.
    request: u64,
}

impl NamespaceLists {
    /// A fingerprint of the list, and when it last changed: `now` if another list, or none, was seen before.
    fn look(&self, namespace: &str, records: &[Arc<Record>], now: Timestamp) -> (u64, Timestamp) {
        let texts = records.iter().map(|record| {
            let claim = &record.claim;
            (
                &record.key,
                &record.timestamp,
                [&claim.cmdline, &claim.regex, &claim.status, &claim.kind, &claim.name],
            )
        });
        let fingerprint = self.hasher.hash_one(texts.collect::<Vec<_>>());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.requests += 1;
        let request = seen.requests;
        let known = seen.lists.get(namespace).filter(|known| known.fingerprint == fingerprint);
        let changed = known.map_or(now, |known| known.changed);
        if seen.lists.len() >= MAX_REMEMBERED && !seen.lists.contains_key(namespace) {
            let oldest = seen.lists.iter().min_by_key(|(_, list)| list.request).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| seen.lists.remove(&oldest));
        }
        seen.lists.insert(namespace.to_owned(), SeenList { fingerprint, changed, request });
        (fingerprint, changed)
    }
}

/// The records of one namespace. The list is ordered by namespace first.
fn records_of<'a>(snapshot: &'a Snapshot, namespace: &str) -> &'a [Arc<Record>] {
    let all = &snapshot.list;
    let begin = all.partition_point(|record| *record.key.namespace < *namespace);
    let end = all.partition_point(|record| *record.key.namespace <= *namespace);
    all.get(begin..end).unwrap_or_default()
}

impl Api {
    /// The list of `namespace` in the form that `request` accepts.
    pub(super) async fn list_of_namespace(
        &self,
        request: &HeaderMap,
        namespace: &str,
        cmdlines: Cmdlines,
    ) -> Result<Response, Problem> {
        self.find_room()?;
        let snapshot = self.snapshot().await;
        let records: Arc<[Arc<Record>]> = records_of(&snapshot, namespace).into();
        let (fingerprint, changed) = self.namespace_lists.look(namespace, &records, snapshot.at.wall());
        let length: usize = records.iter().map(|record| length_of(record)).sum();
        let accepted = Accepted::of(request);
        let encoding = accepted.best(length < WORTH_COMPRESSING).ok_or_else(|| not_acceptable(request))?;
        let mut headers = headers();
        headers.extend(coverage_headers(snapshot.coverage));
        let form = match cmdlines {
            Cmdlines::Whole => "",
            Cmdlines::Redacted => "-redacted",
        };
        let etag = |encoding: Encoding| {
            let tag =
                format!("\"{fingerprint:x}-{:x}{form}-{}\"", changed.as_nanosecond(), encoding.as_str());
            HeaderValue::from_str(&tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
        };
        let known = Encoding::ALL.into_iter().filter(|form| accepted.takes(*form)).map(etag);
        if let Some(known) = known.clone().find(|tag| has(request, tag)) {
            return Ok(not_modified(headers, &known));
        }
        let is_small = records.len() <= SMALL_PAGE_ENTRIES;
        let turn = if is_small { None } else { Some(self.turn().await?) };
        let budget = self.budget.clone();
        let make = move || {
            // The turn lasts until the list is made, even if its client has gone.
            let _turn = turn;
            let plain = serialise(records, changed, cmdlines, length, Some(&budget))?;
            if encoding == Encoding::Identity {
                return Ok(plain.body());
            }
            compress(&plain, encoding).map(|body| budget.count(body).into())
        };
        let body = self.writer.run(make).await.ok().and_then(std::io::Result::ok);
        Ok(answer(headers, &etag(encoding), encoding, body.ok_or_else(not_serialised)?))
    }
}
