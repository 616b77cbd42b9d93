//! Pages. Only `GET /api/violations` answers with a whole list, because lists grow with what tenants do.
//!
//! A page ends after `limit` entries, or with the entry that makes it [`MAX_PAGE`] long. If there is more, it has a `next`, the
//! cursor of the page after it. Entries are written one by one, so that a page takes little more memory than its bytes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, BytesMut};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::busy;
use super::problem::Problem;
use super::sort::{Paging, Place};
use super::{Api, cursor};

/// The length at which a page ends, in bytes. The entry that reaches it is its last one.
const MAX_PAGE: usize = 512 << 10;
/// What a page takes in memory at first, in bytes. Most pages fit into it.
const SMALL_PAGE_BUFFER_BYTES: usize = 16 << 10;
/// What a larger page takes in memory while it is written, in bytes: most last entries fit into it. It does not grow step by step,
/// because the allocator holds memory for each size.
const PAGE_BUFFER_BYTES: usize = MAX_PAGE + (32 << 10);
/// How many entries are written in well under a millisecond. A longer page would delay other requests, probes included, so it
/// is made on another thread.
pub(super) const SMALL_PAGE_ENTRIES: usize = 200;
/// How long a request waits until its answer can be made.
pub(super) const MAX_WAIT_FOR_PAGE: Duration = Duration::from_secs(5);

/// An entry of a page with its place.
#[derive(Serialize)]
#[serde(transparent)]
struct Placed<T> {
    #[serde(skip)]
    place: Place,
    shown: T,
}

/// A page that is being written: a JSON object with one list or several.
pub(super) struct Page {
    /// It is written in many small pieces, which a `Vec` takes more slowly in a program that is built for its size.
    body: BytesMut,
    left: usize,
    /// The cursor of the last entry.
    last: Option<String>,
    has_more: bool,
}

impl Page {
    /// For up to `limit` entries.
    pub(super) fn new(limit: usize) -> Self {
        let mut body = BytesMut::with_capacity(SMALL_PAGE_BUFFER_BYTES);
        body.put_u8(b'{');
        Self { body, left: limit, last: None, has_more: false }
    }

    /// Writes a member that every page has.
    pub(super) fn member(&mut self, name: &str, value: &impl Serialize) -> serde_json::Result<()> {
        self.name(name)?;
        serde_json::to_writer((&mut self.body).writer(), value)
    }

    /// Writes as many `entries` as there is room for, and returns their number. `place` gives the place of an entry, for the
    /// cursor.
    pub(super) fn list<T: Serialize, C: Serialize>(
        &mut self,
        name: &str,
        entries: impl IntoIterator<Item = T>,
        place: impl Fn(&T) -> C,
    ) -> serde_json::Result<usize> {
        self.name(name)?;
        self.body.put_u8(b'[');
        let before = self.left;
        let mut entries = entries.into_iter();
        let mut last: Option<T> = None;
        loop {
            if self.left == 0 || self.body.len() >= MAX_PAGE {
                self.has_more |= entries.next().is_some();
                break;
            }
            let Some(entry) = entries.next() else { break };
            if last.is_some() {
                self.body.put_u8(b',');
            }
            if self.body.len() > SMALL_PAGE_BUFFER_BYTES / 2 && self.body.capacity() < PAGE_BUFFER_BYTES {
                self.body.reserve(PAGE_BUFFER_BYTES - self.body.len());
            }
            serde_json::to_writer((&mut self.body).writer(), &entry)?;
            self.left -= 1;
            last = Some(entry);
        }
        self.body.put_u8(b']');
        if let Some(last) = last {
            self.last = Some(cursor::write(&place(&last))?);
        }
        Ok(before - self.left)
    }

    /// Writes entries with their places.
    pub(super) fn placed<T: Serialize>(
        &mut self,
        name: &str,
        paging: &Paging,
        entries: impl IntoIterator<Item = (Place, T)>,
    ) -> serde_json::Result<usize> {
        let entries = entries.into_iter().map(|(place, shown)| Placed { place, shown });
        self.list(name, entries, |entry| paging.cursor(entry.place.clone()))
    }

    /// Notes that more entries follow than the lists were given.
    pub(super) fn more(&mut self, is_more: bool) {
        self.has_more |= is_more;
    }

    /// The bytes of the whole page.
    pub(super) fn end(mut self) -> serde_json::Result<Vec<u8>> {
        if let Some(next) = self.last.take().filter(|_| self.has_more) {
            self.member("next", &next)?;
        }
        self.body.put_u8(b'}');
        Ok(self.body.into())
    }

    fn name(&mut self, name: &str) -> serde_json::Result<()> {
        if self.body.len() > 1 {
            self.body.put_u8(b',');
        }
        serde_json::to_writer((&mut self.body).writer(), name)?;
        self.body.put_u8(b':');
        Ok(())
    }
}

impl Api {
    /// Waits until this request may make its answer. The data of the answer is read after that, so that waiting requests have
    /// none of it in memory.
    pub(super) async fn turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.wait_for(&self.pages).await
    }

    /// Waits until this request may read the log of decisions. It takes its [`turn`](Self::turn) with what it has read.
    pub(super) async fn reading_turn(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.wait_for(&self.reading).await
    }

    async fn wait_for(&self, turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Problem> {
        self.find_room()?;
        let turn = tokio::time::timeout(MAX_WAIT_FOR_PAGE, turns.clone().acquire_owned()).await;
        // The semaphore is never closed, so this is the time limit.
        let Ok(Ok(turn)) = turn else {
            return Err(busy(1, "many requests for lists are waiting already; try again later"));
        };
        self.find_room()?;
        Ok(turn)
    }

    /// Does on a blocking thread the work that comes before the answer is made. Returns the turn with the result.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        turn: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(OwnedSemaphorePermit, T), Problem> {
        // The turn lasts until the work is done, even if the client has gone.
        tokio::task::spawn_blocking(move || (turn, work())).await.map_err(|_| not_made())
    }

    /// Makes an answer on [`Api::writer`].
    pub(super) async fn make(
        &self,
        turn: OwnedSemaphorePermit,
        work: impl FnOnce() -> serde_json::Result<Vec<u8>> + Send + 'static,
    ) -> Response {
        let budget = self.budget.clone();
        let made = self.writer.run(move || {
            // The turn lasts until the answer is made, even if its client has gone.
            let _turn = turn;
            work().map(|body| budget.count(body))
        });
        let made = made.await.ok().and_then(Result::ok);
        made.map_or_else(|| not_made().into_response(), json)
    }

    /// Makes an answer that takes little time, on this thread.
    pub(super) fn make_small(&self, made: serde_json::Result<Vec<u8>>) -> Response {
        made.map_or_else(|_| not_made().into_response(), |body| json(self.budget.count(body)))
    }

    /// Whether one more answer may be made.
    pub(super) fn find_room(&self) -> Result<(), Problem> {
        self.budget.find_room(self.lists.size())
    }
}

fn json(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

fn not_made() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer can't be made")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_page_ends_when_it_is_long_enough_whatever_its_limit_and_has_one_entry_at_least() {
        for (size, count) in [(MAX_PAGE / 4, 4), (MAX_PAGE, 1), (3 * MAX_PAGE, 1)] {
            let texts: Vec<String> = (0..10).map(|n| n.to_string().repeat(size)).collect();
            let mut page = Page::new(1000);
            page.list("a", &texts, |text| text.len()).unwrap();
            page.list("b", ["x"], |text| text.len()).unwrap();
            page.member("c", &1).unwrap();
            let body = page.end().unwrap();
            assert!(body.len() <= MAX_PAGE + size + 1024, "{}", body.len());
            let page: Value = serde_json::from_slice(&body).unwrap();
            let entries = page["a"].as_array().unwrap();
            assert_eq!((entries.len(), page["b"].as_array().unwrap().len()), (count, 0), "{size}");
            assert_eq!(page["c"], 1);
            assert_eq!(cursor::read::<usize>(page["next"].as_str().unwrap()), Some(size));
        }
    }
}
