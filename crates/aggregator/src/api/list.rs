//! The seed's list as it is sent: made once per change in each form, however many ask for it.
//!
//! The plain form of a long list is kept in pieces, and only until there is a newer list: see [`super::pieces`].

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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
use tokio::task::spawn_blocking;

use super::budget::Budget;
use super::negotiation::Encoding;
use super::pieces::{Pieces, Superseded, length_of, write_whole};

/// 10,000 records, 3.5 MB, become 0.8 MB in 75 ms. Level 9 needs half as long again for the same; level 4 half as long, and is
/// larger by a fortieth.
const GZIP_LEVEL: u32 = 6;
/// The same list becomes a little smaller still, in 6 ms.
const ZSTD_LEVEL: i32 = 3;
/// The longest list whose plain form is one body, in bytes.
const MAX_WHOLE: usize = 4 << 20;
/// How often a list of more than [`MAX_WHOLE`] is made anew at most. It changes all the time, because it has so many records.
const LONG_LIST_PERIOD: Duration = Duration::from_secs(1);

/// The list that is current, and what goes with it.
#[derive(Debug)]
pub(super) struct Lists {
    current: Mutex<Option<Current>>,
    superseded: Mutex<Superseded>,
    compressor: Arc<Compressor>,
}

/// A list, and how much of the cluster it rests on.
#[derive(Clone, Debug)]
pub(super) struct Current {
    at: Moment,
    /// When the list was made.
    made: Duration,
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
        Self { current: Mutex::default(), superseded: Mutex::default(), compressor: Arc::new(compressor) }
    }

    /// The list of a snapshot, or of a later one that somebody else has asked with: whoever was overtaken must not bring an old one
    /// back.
    pub(super) fn current(&self, snapshot: &Snapshot) -> Current {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let known = current.as_mut().filter(|known| {
            let is_overtaken = known.at.uptime() > snapshot.at.uptime();
            let is_young = snapshot.at.uptime() < known.made + LONG_LIST_PERIOD;
            is_overtaken
                || (known.list.is_long() && (is_young || known.list.is_being_made()))
                || (known.list.is_of(snapshot) && known.coverage == snapshot.coverage)
        });
        if let Some(known) = known {
            if known.at.uptime() < snapshot.at.uptime() {
                known.at = snapshot.at;
            }
            return known.clone();
        }
        let same = current.as_ref().map(|known| &known.list).filter(|list| list.is_of(snapshot)).cloned();
        let old = current.take().filter(|_| same.is_none());
        if let Some(pieces) = old.and_then(|old| old.list.pieces()) {
            let mut superseded = self.superseded.lock().unwrap_or_else(PoisonError::into_inner);
            superseded.add(&pieces, &snapshot.list);
        }
        let fresh = Current {
            at: snapshot.at,
            made: snapshot.at.uptime(),
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

/// Being made, or made, for all requests that need it; nothing if it can't be.
type Making<T> = Shared<BoxFuture<'static, Option<T>>>;

/// The plain form.
#[derive(Clone, Debug)]
pub(super) enum Plain {
    Whole(Bytes),
    Pieces(Arc<Pieces>),
}

impl Plain {
    /// In bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Whole(body) => body.len(),
            Self::Pieces(pieces) => pieces.len(),
        }
    }

    /// A body for one reader.
    pub(super) fn body(&self) -> Body {
        match self {
            Self::Whole(body) => body.clone().into(),
            Self::Pieces(pieces) => Body::new(pieces.read()),
        }
    }
}

/// One list in each of its forms, as far as they have been asked for.
#[derive(Debug)]
pub(super) struct List {
    records: Arc<[Arc<Record>]>,
    changed: Timestamp,
    /// About how many bytes its plain form takes.
    length: usize,
    compressor: Arc<Compressor>,
    plain: Form<Plain>,
    gzip: Form<Bytes>,
    zstd: Form<Bytes>,
}

#[derive(Debug)]
struct Form<T: Clone> {
    etag: HeaderValue,
    body: OnceLock<Making<T>>,
}

impl<T: Clone> Form<T> {
    /// Not made yet.
    fn tagged(tag: &str) -> Self {
        let etag = HeaderValue::from_str(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        Self { etag, body: OnceLock::new() }
    }

    /// The body, if it has been made: nearly every request comes later, and has nothing to wait for.
    fn made(&self) -> Option<T> {
        self.body.get()?.peek().cloned().flatten()
    }
}

impl List {
    fn of(snapshot: &Snapshot, compressor: Arc<Compressor>) -> Self {
        let (records, changed) = (snapshot.list.clone(), snapshot.list_changed_at);
        let tag = |suffix| format!("\"{:x}-{:x}{suffix}\"", changed.as_nanosecond(), records.len());
        let plain = Form::tagged(&tag(""));
        let (gzip, zstd) = (Form::tagged(&tag("-gzip")), Form::tagged(&tag("-zstd")));
        let length = records.iter().map(|record| length_of(record)).sum();
        Self { records, changed, length, compressor, plain, gzip, zstd }
    }

    /// Its plain form is begun and not made. It is not replaced until then: [`Superseded`] must know its pieces.
    fn is_being_made(&self) -> bool {
        self.plain.body.get().is_some_and(|making| making.peek().is_none())
    }

    fn is_long(&self) -> bool {
        self.length > MAX_WHOLE
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

    /// The bytes in the budget of all the forms that have been made.
    fn size(&self) -> usize {
        let plain = match self.plain.made() {
            Some(Plain::Whole(body)) => body.len(),
            Some(Plain::Pieces(_)) | None => 0,
        };
        let compressed = [&self.gzip, &self.zstd].into_iter().filter_map(Form::made);
        plain + compressed.map(|body| body.len()).sum::<usize>()
    }

    /// The pieces of its plain form, if it was made so.
    fn pieces(&self) -> Option<Arc<Pieces>> {
        match self.plain.made()? {
            Plain::Pieces(pieces) => Some(pieces),
            Plain::Whole(_) => None,
        }
    }

    /// The body as it is.
    pub(super) async fn plain(&self) -> Option<Plain> {
        if let Some(made) = self.plain.made() {
            return Some(made);
        }
        let serialise = || {
            let (records, changed, length) = (self.records.clone(), self.changed, self.length);
            // Readers of earlier lists may hold all the room that there is.
            let budget = Some(self.compressor.budget.clone())
                .filter(|budget| !self.is_long() && budget.find_room(0).is_ok());
            let body = spawn_blocking(move || {
                Some(match budget {
                    Some(budget) => Plain::Whole(budget.count(write_whole(&records, changed, length).ok()?)),
                    None => Plain::Pieces(Arc::new(Pieces::of(records, changed).ok()?)),
                })
            });
            body.map(|made| made.ok().flatten()).boxed().shared()
        };
        self.plain.body.get_or_init(serialise).clone().await
    }

    /// The body in a compressed form; nothing if `encoding` is none. It goes on being made when the request that needed it first
    /// has ended, so that the others need not begin anew.
    pub(super) async fn body(self: &Arc<Self>, encoding: Encoding) -> Option<Bytes> {
        let form = self.compressed(encoding)?;
        if let Some(made) = form.made() {
            return Some(made);
        }
        let compress = || {
            // Weak, because what waits for its turn must not keep a list that no request needs any more.
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
        form.body.get_or_init(compress).clone().await
    }

    fn compressed(&self, encoding: Encoding) -> Option<&Form<Bytes>> {
        match encoding {
            Encoding::Zstd => Some(&self.zstd),
            Encoding::Gzip => Some(&self.gzip),
            Encoding::Identity => None,
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

fn compress(plain: &Plain, encoding: Encoding) -> io::Result<Vec<u8>> {
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

fn write_all(to: &mut impl Write, plain: &Plain) -> io::Result<()> {
    match plain {
        Plain::Whole(body) => to.write_all(body),
        Plain::Pieces(pieces) => pieces.iter().try_for_each(|piece| to.write_all(&piece?)),
    }
}
