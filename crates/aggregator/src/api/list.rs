//! The list of `GET /api/violations` as it is sent. Each form is made once per list, however many requests ask for it. A
//! short list is replaced with each change, a long one once per second at most.
//!
//! The form without a Content-Encoding is stored in pieces if the list is long or the budget is used up: see [`super::pieces`].

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::report::Record;
use procscan_core::snapshot::{Coverage, Snapshot};
use tokio::sync::Semaphore;

use super::budget::Budget;
use super::negotiation::Encoding;
use super::pieces::{Cmdlines, MAX_REPLACED, Pieces, ReplacedLists, length_of, write_whole};
use crate::worker::Worker;

/// 10,000 records, 3.5 MB, become 0.8 MB in 75 ms. Level 9 needs half as long again for the same; level 4 half as long, and is
/// larger by a fortieth.
const GZIP_LEVEL: u32 = 6;
/// The same list becomes a little smaller still, in 6 ms.
const ZSTD_LEVEL: i32 = 3;
/// The longest list that is stored as one body, in bytes.
const MAX_WHOLE: usize = 4 << 20;
/// The shortest time between two lists of more than [`MAX_WHOLE`]. With so many records, nearly every snapshot has a change.
const LONG_LIST_PERIOD: Duration = Duration::from_secs(1);

/// The list that is current, with command lines in one form, and what goes with it.
#[derive(Debug)]
pub(super) struct Lists {
    cmdlines: Cmdlines,
    current: Mutex<Option<Current>>,
    replaced: Mutex<ReplacedLists>,
    compressor: Arc<Compressor>,
}

/// A list, and how much of the cluster it rests on.
#[derive(Clone, Debug)]
pub(super) struct Current {
    /// When the latest snapshot was taken with which a request asked for a list.
    at: Moment,
    /// The uptime of the first snapshot with this list and coverage.
    since: Duration,
    pub(super) list: Arc<List>,
    coverage: Coverage,
    /// The coverage as headers.
    pub(super) headers: [(HeaderName, HeaderValue); 4],
}

impl Lists {
    /// Nothing yet.
    pub(super) fn new(cmdlines: Cmdlines, compressor: Arc<Compressor>) -> Self {
        let replaced = Mutex::new(ReplacedLists::new(MAX_REPLACED));
        Self { cmdlines, current: Mutex::default(), replaced, compressor }
    }

    /// The list of `snapshot`. If another request has brought a later snapshot, the list of that one: a list never goes back in
    /// time. A long list may be of an earlier snapshot, because it is replaced at most once per [`LONG_LIST_PERIOD`]. So may any
    /// list while its plain form is being made, which takes milliseconds, and as long as the page before it.
    pub(super) fn current(&self, snapshot: &Snapshot) -> Current {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let known = current.as_mut().filter(|known| {
            let is_overtaken = known.at.uptime() > snapshot.at.uptime();
            let is_young = snapshot.at.uptime() < known.since + LONG_LIST_PERIOD;
            is_overtaken
                || known.list.is_being_made()
                || (known.list.is_long() && is_young)
                || (known.list.is_of(snapshot) && known.coverage == snapshot.coverage)
        });
        if let Some(known) = known {
            if known.at.uptime() < snapshot.at.uptime() {
                known.at = snapshot.at;
            }
            return known.clone();
        }
        let same = current.as_ref().map(|known| &known.list).filter(|list| list.is_of(snapshot)).cloned();
        if let Some(old) = current.take().filter(|_| same.is_none()) {
            let records = old.list.records.clone();
            let pieces = old.list.pieces().as_ref().map(Arc::downgrade).unwrap_or_default();
            // From now on only readers own its pieces.
            drop(old);
            let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
            replaced.add(pieces, &records, &snapshot.list);
        }
        let fresh = Current {
            at: snapshot.at,
            since: snapshot.at.uptime(),
            list: same
                .unwrap_or_else(|| Arc::new(List::of(snapshot, self.cmdlines, self.compressor.clone()))),
            coverage: snapshot.coverage,
            headers: coverage_headers(snapshot.coverage),
        };
        // The plain form is begun here and not by a request. Otherwise the list could be replaced before it has pieces, and
        // [`ReplacedLists`] would never count those.
        fresh.list.begin_plain();
        *current = Some(fresh.clone());
        fresh
    }

    /// How many bytes of the budget the current list takes, in all forms that have been made. Pieces count 0.
    pub(super) fn size(&self) -> usize {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or(0, |current| current.list.size())
    }

    /// How many bodies were begun to be compressed.
    #[cfg(test)]
    pub(super) fn compressions(&self) -> usize {
        self.compressor.started.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Holds up all compression until it is dropped.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> impl Drop {
        self.compressor.turn.acquire().await.unwrap()
    }
}

/// Coverage belongs to every answer; this one's shape has no room for it but in the headers.
pub(super) fn coverage_headers(coverage: Coverage) -> [(HeaderName, HeaderValue); 4] {
    let of = |name, n: usize| (HeaderName::from_static(name), HeaderValue::from(n));
    [
        of("x-procscan-targets-expected", coverage.expected()),
        of("x-procscan-targets-fresh", coverage.fresh),
        of("x-procscan-targets-stale", coverage.stale),
        of("x-procscan-targets-never-seen", coverage.never_seen),
    ]
}

/// Ends when the work that makes a body has ended. Any number of requests wait for it.
type Making = Shared<BoxFuture<'static, ()>>;

/// The plain form: the list without a Content-Encoding.
#[derive(Clone, Debug)]
pub(super) enum PlainBody {
    /// One body in memory, counted in the budget.
    Whole(Bytes),
    /// Pieces, which are compressed while the list is current and are sent uncompressed.
    Pieces(Arc<Pieces>),
}

impl PlainBody {
    /// Its length, in bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Whole(body) => body.len(),
            Self::Pieces(pieces) => pieces.len(),
        }
    }

    /// A response body for one client.
    pub(super) fn body(&self) -> Body {
        match self {
            Self::Whole(body) => body.clone().into(),
            Self::Pieces(pieces) => Body::new(pieces.body()),
        }
    }
}

/// One list in each of its forms, as far as they have been asked for.
#[derive(Debug)]
pub(super) struct List {
    records: Arc<[Arc<Record>]>,
    changed: Timestamp,
    cmdlines: Cmdlines,
    /// About how many bytes its plain form has, if it has few characters that are escaped.
    length: usize,
    compressor: Arc<Compressor>,
    plain: Form<PlainBody>,
    gzip: Form<Bytes>,
    zstd: Form<Bytes>,
}

#[derive(Debug)]
struct Form<T> {
    etag: HeaderValue,
    /// The work that makes the body; unset until the body is needed.
    making: OnceLock<Making>,
    /// The body, or `None` if it can't be made; unset until the work has ended. The work sets it by itself: whether it has ended
    /// does not depend on a request that waits for it.
    result: Arc<OnceLock<Option<T>>>,
}

impl<T: Clone> Form<T> {
    /// A form with this `ETag` whose body is not made yet.
    fn tagged(tag: &str) -> Self {
        let etag = HeaderValue::from_str(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        Self { etag, making: OnceLock::new(), result: Arc::default() }
    }

    /// The body, if it has been made: nearly every request comes later, and has nothing to wait for.
    fn made(&self) -> Option<T> {
        self.result.get().cloned().flatten()
    }

    fn is_being_made(&self) -> bool {
        self.making.get().is_some() && self.result.get().is_none()
    }

    /// Begins the work with `start` if it has not begun.
    fn begin(&self, start: impl FnOnce(BodySetter<T>) -> BoxFuture<'static, ()>) -> &Making {
        self.making.get_or_init(|| start(BodySetter(self.result.clone())).shared())
    }

    /// The body, once it is made; `None` if it can't be made. If the request that began the work ends, the work goes on for the
    /// others.
    async fn body(&self, start: impl FnOnce(BodySetter<T>) -> BoxFuture<'static, ()>) -> Option<T> {
        let made = self.made();
        if made.is_some() {
            return made;
        }
        self.begin(start).clone().await;
        self.made()
    }
}

/// The right to set the body of a [`Form`], owned by the work that makes it. Dropped without a body, as after a panic, it sets
/// `None`, so that the form no longer counts as being made.
struct BodySetter<T>(Arc<OnceLock<Option<T>>>);

impl<T> BodySetter<T> {
    /// Ends the work; `None` if the body can't be made.
    fn set(self, body: Option<T>) {
        self.0.get_or_init(|| body);
    }
}

impl<T> Drop for BodySetter<T> {
    fn drop(&mut self) {
        self.0.get_or_init(|| None);
    }
}

impl List {
    fn of(snapshot: &Snapshot, cmdlines: Cmdlines, compressor: Arc<Compressor>) -> Self {
        let (records, changed) = (snapshot.list.clone(), snapshot.list_changed_at);
        let form = match cmdlines {
            Cmdlines::Whole => "",
            Cmdlines::Redacted => "-redacted",
        };
        let tag = |suffix| format!("\"{:x}-{:x}{form}{suffix}\"", changed.as_nanosecond(), records.len());
        let plain = Form::tagged(&tag(""));
        let (gzip, zstd) = (Form::tagged(&tag("-gzip")), Form::tagged(&tag("-zstd")));
        let length = records.iter().map(|record| length_of(record)).sum();
        Self { records, changed, cmdlines, length, compressor, plain, gzip, zstd }
    }

    /// Whether its plain form is being made. Such a list is not replaced: it has no pieces yet that [`ReplacedLists`] could
    /// count.
    fn is_being_made(&self) -> bool {
        self.plain.is_being_made()
    }

    /// Whether its plain form has more than [`MAX_WHOLE`], by the estimate until it is made.
    fn is_long(&self) -> bool {
        self.plain.made().map_or(self.length, |plain| plain.len()) > MAX_WHOLE
    }

    fn is_of(&self, snapshot: &Snapshot) -> bool {
        Arc::ptr_eq(&self.records, &snapshot.list) && self.changed == snapshot.list_changed_at
    }

    /// The tag of one form. It is known before the form is made.
    pub(super) fn etag(&self, encoding: Encoding) -> &HeaderValue {
        match encoding {
            Encoding::Zstd => &self.zstd.etag,
            Encoding::Gzip => &self.gzip.etag,
            Encoding::Identity => &self.plain.etag,
        }
    }

    /// The compressed body, if it has been made.
    pub(super) fn made(&self, encoding: Encoding) -> Option<Bytes> {
        self.compressed(encoding)?.made()
    }

    /// How many bytes of the budget its forms take that have been made. Pieces count 0.
    fn size(&self) -> usize {
        let plain = match self.plain.made() {
            Some(PlainBody::Whole(body)) => body.len(),
            Some(PlainBody::Pieces(_)) | None => 0,
        };
        let compressed = [&self.gzip, &self.zstd].into_iter().filter_map(Form::made);
        plain + compressed.map(|body| body.len()).sum::<usize>()
    }

    /// The pieces of its plain form, if it is stored in pieces.
    fn pieces(&self) -> Option<Arc<Pieces>> {
        match self.plain.made()? {
            PlainBody::Pieces(pieces) => Some(pieces),
            PlainBody::Whole(_) => None,
        }
    }

    fn begin_plain(&self) {
        self.plain.begin(|outcome| self.serialise(outcome));
    }

    /// The list without a Content-Encoding. `None` if it can't be made.
    pub(super) async fn plain(&self) -> Option<PlainBody> {
        self.plain.body(|outcome| self.serialise(outcome)).await
    }

    fn serialise(&self, outcome: BodySetter<PlainBody>) -> BoxFuture<'static, ()> {
        let (records, changed, cmdlines, length) =
            (self.records.clone(), self.changed, self.cmdlines, self.length);
        // If readers of earlier lists have used up the budget, this list is stored in pieces, which do not count.
        let budget = Some(self.compressor.budget.clone())
            .filter(|budget| !self.is_long() && budget.find_room(0).is_ok());
        let work = move || outcome.set(serialise(records, changed, cmdlines, length, budget.as_ref()).ok());
        self.compressor.writer.run(work).map(drop).boxed()
    }

    /// The compressed body. `None` if `encoding` is [`Encoding::Identity`] or the body can't be made.
    pub(super) async fn body(self: &Arc<Self>, encoding: Encoding) -> Option<Bytes> {
        let form = self.compressed(encoding)?;
        form.body(|outcome| {
            // A weak reference: a task that waits for its turn must not hold a list in memory that no request needs.
            let (list, compressor) = (Arc::downgrade(self), self.compressor.clone());
            let work = async move { outcome.set(compress_in_turn(list, &compressor, encoding).await) };
            tokio::spawn(work).map(drop).boxed()
        })
        .await
    }

    fn compressed(&self, encoding: Encoding) -> Option<&Form<Bytes>> {
        match encoding {
            Encoding::Zstd => Some(&self.zstd),
            Encoding::Gzip => Some(&self.gzip),
            Encoding::Identity => None,
        }
    }
}

/// What all lists share to make their forms. One list is compressed at a time: lists may change faster than a small machine
/// compresses them, and the collector needs its cores too.
#[derive(Debug)]
pub(super) struct Compressor {
    turn: Semaphore,
    budget: Arc<Budget>,
    /// The thread that writes plain forms, and the API's pages.
    writer: Arc<Worker>,
    /// The thread that compresses them. Pages do not wait for it: it takes many times as long as writing.
    worker: Worker,
    #[cfg(test)]
    started: std::sync::atomic::AtomicUsize,
}

impl Compressor {
    /// Bodies count in `budget`, and plain forms are written by `writer`.
    pub(super) fn new(budget: Arc<Budget>, writer: Arc<Worker>) -> Self {
        Self {
            turn: Semaphore::new(1),
            budget,
            writer,
            worker: Worker::new("compression"),
            #[cfg(test)]
            started: std::sync::atomic::AtomicUsize::new(0),
        }
    }
}

/// Writes a list as a whole if it is not too long for that and there is a `budget` in which it counts, and in pieces otherwise.
/// `length` is about the length of its plain form.
pub(super) fn serialise(
    records: Arc<[Arc<Record>]>,
    changed: Timestamp,
    cmdlines: Cmdlines,
    length: usize,
    budget: Option<&Arc<Budget>>,
) -> io::Result<PlainBody> {
    if let Some(budget) = budget
        && let Some(body) = write_whole(&records, changed, cmdlines, length, MAX_WHOLE)?
    {
        return Ok(PlainBody::Whole(budget.count(body)));
    }
    Ok(PlainBody::Pieces(Arc::new(Pieces::of(records, changed, cmdlines)?)))
}

async fn compress_in_turn(list: Weak<List>, compressor: &Compressor, encoding: Encoding) -> Option<Bytes> {
    let _turn = compressor.turn.acquire().await.ok()?;
    let list = list.upgrade()?;
    let plain = list.plain().await?;
    drop(list);
    #[cfg(test)]
    compressor.started.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let budget = compressor.budget.clone();
    let work = move || compress(&plain, encoding).ok().map(|body| budget.count(body));
    compressor.worker.run(work).await.ok().flatten()
}

pub(super) fn compress(plain: &PlainBody, encoding: Encoding) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    match encoding {
        Encoding::Identity => write_all(&mut body, plain)?,
        Encoding::Zstd => {
            let mut encoder = zstd::Encoder::new(&mut body, ZSTD_LEVEL)?;
            encoder.set_pledged_src_size(Some(plain.len() as u64))?;
            write_all(&mut encoder, plain)?;
            encoder.finish()?;
        }
        Encoding::Gzip => {
            let mut encoder = GzEncoder::new(&mut body, Compression::new(GZIP_LEVEL));
            write_all(&mut encoder, plain)?;
            encoder.finish()?;
        }
    }
    Ok(body)
}

fn write_all(to: &mut impl Write, plain: &PlainBody) -> io::Result<()> {
    match plain {
        PlainBody::Whole(body) => to.write_all(body),
        PlainBody::Pieces(pieces) => pieces.iter().try_for_each(|piece| to.write_all(&piece?)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::panic::resume_unwind;

    use super::*;

    #[tokio::test]
    async fn a_body_whose_work_panics_or_is_dropped_is_not_being_made_for_ever() {
        let panicked = Form::<Bytes>::tagged("");
        let work = |outcome: BodySetter<Bytes>| {
            let work = tokio::task::spawn_blocking(|| {
                let _outcome = outcome;
                resume_unwind(Box::new("the work fails"));
            });
            work.map(drop).boxed()
        };
        assert_eq!((panicked.body(work).await, panicked.is_being_made()), (None, false));

        let dropped = Form::<Bytes>::tagged("");
        let work = |outcome: BodySetter<Bytes>| {
            let task = tokio::spawn(async {
                let _outcome = outcome;
                pending::<()>().await;
            });
            task.abort();
            task.map(drop).boxed()
        };
        assert_eq!((dropped.body(work).await, dropped.is_being_made()), (None, false));
    }
}
