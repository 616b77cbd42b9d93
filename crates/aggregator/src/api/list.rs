//! The seed's list as it is sent: made once per change in each form, however many ask for it.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::report::Record;
use procscan_core::snapshot::{Coverage, Snapshot};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::budget::Budget;
use super::negotiation::Encoding;

/// 10,000 records, 3.5 MB, become 0.8 MB in 75 ms. Level 9 needs half as long again for the same; level 4 half as long, and is
/// larger by a fortieth.
const GZIP_LEVEL: u32 = 6;
/// The same list becomes a little smaller still, in 6 ms.
const ZSTD_LEVEL: i32 = 3;

/// The list that is current, and what goes with it.
#[derive(Debug)]
pub(super) struct Lists {
    current: Mutex<Option<Current>>,
    compressor: Arc<Compressor>,
}

/// A list, and how much of the cluster it rests on.
#[derive(Clone, Debug)]
pub(super) struct Current {
    at: Moment,
    pub(super) list: Arc<List>,
    coverage: Coverage,
    /// The coverage as headers.
    pub(super) headers: [(HeaderName, HeaderValue); 4],
}

impl Lists {
    /// Nothing yet. Bodies count in `budget`.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        let compressor = Compressor {
            turn: Semaphore::new(1),
            budget,
            #[cfg(test)]
            started: std::sync::atomic::AtomicUsize::new(0),
        };
        Self { current: Mutex::default(), compressor: Arc::new(compressor) }
    }

    /// The list of a snapshot, or of a later one that somebody else has asked with: whoever was overtaken must not bring an old one
    /// back.
    pub(super) fn current(&self, snapshot: &Snapshot) -> Current {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let known = current.as_mut().filter(|known| {
            let is_overtaken = known.at.uptime() > snapshot.at.uptime();
            is_overtaken || (known.list.is_of(snapshot) && known.coverage == snapshot.coverage)
        });
        if let Some(known) = known {
            if known.at.uptime() < snapshot.at.uptime() {
                known.at = snapshot.at;
            }
            return known.clone();
        }
        let same = current.as_ref().map(|known| &known.list).filter(|list| list.is_of(snapshot)).cloned();
        let fresh = Current {
            at: snapshot.at,
            list: same.unwrap_or_else(|| Arc::new(List::of(snapshot, self.compressor.clone()))),
            coverage: snapshot.coverage,
            headers: headers(snapshot.coverage),
        };
        *current = Some(fresh.clone());
        fresh
    }

    /// How many bytes the current list takes, in all the forms in which it was made.
    pub(super) fn size(&self) -> usize {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or(0, |current| current.list.size())
    }

    /// How many bodies were begun to be compressed.
    #[cfg(test)]
    pub(super) fn compressions(&self) -> usize {
        self.compressor.started.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Keeps everything from being compressed until it is dropped.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> impl Drop {
        self.compressor.turn.acquire().await.unwrap()
    }
}

/// Coverage belongs to every answer; this one's shape has no room for it but in the headers.
fn headers(coverage: Coverage) -> [(HeaderName, HeaderValue); 4] {
    let of = |name, n: usize| (HeaderName::from_static(name), HeaderValue::from(n));
    [
        of("x-procscan-targets-expected", coverage.expected()),
        of("x-procscan-targets-fresh", coverage.fresh),
        of("x-procscan-targets-stale", coverage.stale),
        of("x-procscan-targets-never-seen", coverage.never_seen),
    ]
}

/// Being made, or made, for all who want it; nothing if it can't be.
type Making = Shared<BoxFuture<'static, Option<Bytes>>>;

/// One list in each of its forms, as far as they have been asked for.
#[derive(Debug)]
pub(super) struct List {
    records: Arc<[Arc<Record>]>,
    changed: Timestamp,
    compressor: Arc<Compressor>,
    plain: Form,
    gzip: Form,
    zstd: Form,
}

#[derive(Debug)]
struct Form {
    etag: HeaderValue,
    body: OnceLock<Making>,
}

impl Form {
    /// The body, if it has been made: nearly every request comes later, and has nothing to wait for.
    fn made(&self) -> Option<Bytes> {
        self.body.get()?.peek().cloned().flatten()
    }
}

#[derive(Serialize)]
struct Shape<'a> {
    violations: &'a [Arc<Record>],
    update_time: Timestamp,
    total_count: usize,
}

impl List {
    fn of(snapshot: &Snapshot, compressor: Arc<Compressor>) -> Self {
        let (records, changed) = (snapshot.list.clone(), snapshot.list_changed_at);
        let form = |suffix| {
            let tag = format!("\"{:x}-{:x}{suffix}\"", changed.as_nanosecond(), records.len());
            let etag = HeaderValue::from_str(&tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
            Form { etag, body: OnceLock::new() }
        };
        let (plain, gzip, zstd) = (form(""), form("-gzip"), form("-zstd"));
        Self { records, changed, compressor, plain, gzip, zstd }
    }

    fn is_of(&self, snapshot: &Snapshot) -> bool {
        Arc::ptr_eq(&self.records, &snapshot.list) && self.changed == snapshot.list_changed_at
    }

    /// The tag of one form. It is known before the form is made.
    pub(super) fn etag(&self, encoding: Encoding) -> &HeaderValue {
        &self.form(encoding).etag
    }

    /// The body in one form, if it has been made.
    pub(super) fn made(&self, encoding: Encoding) -> Option<Bytes> {
        self.form(encoding).made()
    }

    /// The bytes of all the forms that have been made.
    fn size(&self) -> usize {
        Encoding::ALL.into_iter().filter_map(|form| self.made(form)).map(|body| body.len()).sum()
    }

    /// The body as it is.
    pub(super) async fn plain(&self) -> Option<Bytes> {
        if let Some(made) = self.plain.made() {
            return Some(made);
        }
        let serialise = || {
            let (records, changed) = (self.records.clone(), self.changed);
            let budget = self.compressor.budget.clone();
            let body =
                spawn_blocking(move || serialise(&records, changed).ok().map(|body| budget.count(body)));
            body.map(|made| made.ok().flatten()).boxed().shared()
        };
        self.plain.body.get_or_init(serialise).clone().await
    }

    /// The body in one form. It goes on being made when whoever asked first goes away, so that the others need not begin anew.
    pub(super) async fn body(self: &Arc<Self>, encoding: Encoding) -> Option<Bytes> {
        if encoding == Encoding::Identity {
            return self.plain().await;
        }
        if let Some(made) = self.form(encoding).made() {
            return Some(made);
        }
        let compress = || {
            // Weak, because who waits for its turn must not keep a list that nobody wants any more.
            let (list, compressor) = (Arc::downgrade(self), self.compressor.clone());
            let body = tokio::spawn(async move {
                let _turn = compressor.turn.acquire().await.ok()?;
                let list = list.upgrade()?;
                let plain = list.plain().await?;
                drop(list);
                #[cfg(test)]
                compressor.started.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let budget = compressor.budget.clone();
                let compressed =
                    spawn_blocking(move || compress(&plain, encoding).ok().map(|body| budget.count(body)));
                compressed.await.ok().flatten()
            });
            body.map(|made| made.ok().flatten()).boxed().shared()
        };
        self.form(encoding).body.get_or_init(compress).clone().await
    }

    fn form(&self, encoding: Encoding) -> &Form {
        match encoding {
            Encoding::Zstd => &self.zstd,
            Encoding::Gzip => &self.gzip,
            Encoding::Identity => &self.plain,
        }
    }
}

/// One at a time: lists may change faster than a small machine compresses them, and the collector needs it too.
#[derive(Debug)]
struct Compressor {
    turn: Semaphore,
    budget: Arc<Budget>,
    #[cfg(test)]
    started: std::sync::atomic::AtomicUsize,
}

fn serialise(records: &[Arc<Record>], changed: Timestamp) -> serde_json::Result<Vec<u8>> {
    let shape = Shape {
        violations: records,
        // Whole seconds, as in the program before.
        update_time: Timestamp::from_second(changed.as_second()).unwrap_or(changed),
        total_count: records.len(),
    };
    serde_json::to_vec(&shape)
}

fn compress(plain: &[u8], encoding: Encoding) -> std::io::Result<Vec<u8>> {
    match encoding {
        Encoding::Identity => Ok(plain.to_vec()),
        Encoding::Zstd => zstd::bulk::compress(plain, ZSTD_LEVEL),
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL));
            encoder.write_all(plain)?;
            encoder.finish()
        }
    }
}
