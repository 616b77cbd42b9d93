//! One budget of bytes for answers that are in memory as a whole. Lists in pieces ([`super::pieces`]) do not count: a limit
//! of their own bounds them.
//!
//! An answer counts once, however many readers share it, until the last of them has it or is gone. The current list of
//! `GET /api/violations` does not count: it is in memory with or without readers. One that has been replaced counts as long as a client still reads
//! it, unless it is in pieces. An answer is made if there is room left when it is begun. So what is being made at that time may
//! exceed the budget; [`super::Api::turn`] bounds that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};

use super::problem::Problem;

/// How soon a client that was refused may try again, in seconds: most readers have their answers by then.
const RETRY_AFTER: u16 = 5;

#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicUsize::new(0) })
    }

    /// Whether one more answer may be made, where `current` bytes of those in memory do not count.
    pub(super) fn find_room(&self, current: usize) -> Result<(), Problem> {
        if self.used().saturating_sub(current) < self.most {
            return Ok(());
        }
        let most = bytesize::ByteSize(self.most as u64).display().iec();
        Err(busy(
            RETRY_AFTER,
            format!("the answers in flight take {most} (api.max_in_flight); try again later"),
        ))
    }

    /// Counts a body until its last reader lets go of it.
    pub(super) fn count(self: &Arc<Self>, mut body: Vec<u8>) -> Bytes {
        // The room that was left to grow may be several times the body.
        body.shrink_to_fit();
        self.used.fetch_add(body.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted { body, budget: self.clone() })
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// The refusal of a request that may be repeated after so many `seconds`.
pub(super) fn busy(seconds: u16, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        .with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
}

struct Counted {
    body: Vec<u8>,
    budget: Arc<Budget>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.body.len(), Ordering::Relaxed);
    }
}
