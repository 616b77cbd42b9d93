//! `/api/v1/stream`: Server-Sent Events of changes.
//!
//! One task finds the changes and adds them to a log of bounded size ([`log`]), and only while there are clients. A client has a
//! place in the log and no queue. One that falls behind what is kept, or that takes nothing for too long, is cut off; it comes
//! back with the identifier of its last event (`Last-Event-ID`), and either goes on there or gets a `gap`: then it takes a
//! new snapshot of the lists that it shows.

mod changes;
mod log;
mod place;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use jiff::Timestamp;
use procscan_core::snapshot::Coverage;
use procscan_core::state::Declaration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use self::changes::{Seen, declared_change};
use self::log::{Event, Found, Log, SharedLog};
use self::place::Places;
use super::Api;
use super::budget::busy;
use super::parameters::{NAMESPACE, Pairs, Parameter, name};
use super::problem::Problem;
use super::reader::{Reader, Reading};
use super::server::Place;
use crate::counters::{Counters, count};
use crate::ledger_task::Published;
use crate::state::{DecisionFilter, OperatorCommands};
use crate::views::Views;

/// How many clients there may be.
pub(crate) const MAX_CLIENTS: usize = 1024;
/// How often something is sent, so that proxies and the client know that the connection is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often the right of a client is checked again.
const RECHECK: Duration = Duration::from_mins(1);
/// The least time between two looks for changes. Changes within it are sent together.
const PERIOD: Duration = Duration::from_millis(250);
/// How long changes are looked for after the last client has gone, so that it can come back without a gap.
const LINGER: Duration = Duration::from_mins(1);
/// About how many bytes one piece of an answer has.
const PIECE: usize = 16 << 10;
/// How many new rows of the log of a state file are read at once.
const MAX_ROWS: usize = 1000;

/// The parameters of the stream.
pub(super) const PARAMETERS: &[Parameter] = &[
    NAMESPACE,
    name("event", &["violation", "app", "node", "decision", "coverage"], "Only events of this kind."),
];

/// The stream, for its clients and for the task that finds the changes.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    log: SharedLog,
    places: Option<Arc<Places>>,
    clients: Arc<Semaphore>,
    counters: Counters,
}

impl Stream {
    pub(crate) fn new(counters: Counters) -> Self {
        let places = Places::new().map(Arc::new);
        Self { log: Arc::new(Log::new()), places, clients: Arc::new(Semaphore::new(MAX_CLIENTS)), counters }
    }

    /// How many clients there are.
    pub(crate) fn clients(&self) -> usize {
        MAX_CLIENTS - self.clients.available_permits()
    }

    /// Finds changes and sends them, until cancelled. Then all streams end.
    pub(crate) async fn run(self, views: Views, commands: OperatorCommands, cancel: CancellationToken) {
        let mut finder = Finder {
            stream: self.clone(),
            seen: Seen::default(),
            published: views.snapshots.published(),
            progress: (0, Coverage::default()),
            views,
            commands,
            logged: Timestamp::now(),
            used: Instant::now(),
        };
        let mut timer = tokio::time::interval(PERIOD);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = timer.tick() => finder.look().await,
            }
        }
        self.log.close();
    }
}

/// Finds the changes.
struct Finder {
    stream: Stream,
    seen: Seen,
    views: Views,
    commands: OperatorCommands,
    published: watch::Receiver<Published>,
    /// The rounds and the coverage at the last look.
    progress: (u64, Coverage),
    /// Rows of the log of a state file from then on are new.
    logged: Timestamp,
    /// When there last were clients.
    used: Instant,
}

impl Finder {
    async fn look(&mut self) {
        if self.stream.clients() > 0 {
            self.used = Instant::now();
        } else if self.used.elapsed() > LINGER || !self.seen.has_begun() {
            if self.seen.has_begun() {
                self.seen = Seen::default();
                self.stream.log.forget();
            }
            return;
        }
        if !self.seen.has_begun() {
            self.published.mark_unchanged();
            let snapshot = self.views.snapshots.fresh().await;
            let persisted = self.views.persisted.borrow_and_update().clone();
            self.seen.begin(&snapshot, &persisted, self.views.journal.count());
            self.logged = Timestamp::now();
            self.stream.log.activate();
            return;
        }
        let mut changes = Vec::new();
        self.ask_for_snapshot();
        if self.published.has_changed().unwrap_or(false) {
            let published = self.published.borrow_and_update().snapshot.clone();
            changes.extend(published.iter().flat_map(|snapshot| self.seen.snapshot(snapshot)));
        }
        if self.views.persisted.has_changed().unwrap_or(false) {
            let persisted = self.views.persisted.borrow_and_update().clone();
            changes.extend(self.seen.persisted(&persisted));
            changes.extend(self.declared_in_file().await.iter().map(declared_change));
        }
        if self.seen.decided() != self.views.journal.count() {
            let (decided, last) = self.views.journal.reported();
            changes.extend(self.seen.journal(decided, &last));
        }
        let added = self.stream.log.add(changes);
        self.stream.counters.stream_events.inc_by(added as u64);
    }

    /// Asks for a snapshot if a round is done, or another number of targets answers: without a change that may change a
    /// decision, the ledger publishes none.
    fn ask_for_snapshot(&mut self) {
        let progress = *self.views.snapshots.progress().borrow();
        let progress = (progress.rounds, progress.coverage);
        if std::mem::replace(&mut self.progress, progress) != progress {
            self.views.snapshots.ask();
        }
    }

    /// What operators have declared since the last look, if a file persists it.
    async fn declared_in_file(&mut self) -> Vec<Declaration> {
        let filter = DecisionFilter {
            namespace: None,
            since: Some(self.logged),
            before: None,
            skip: 0,
            limit: MAX_ROWS,
        };
        let rows = self.commands.logged(filter).await.unwrap_or_default();
        if let Some(newest) = rows.first() {
            self.logged = super::decisions::just_after(newest.at).unwrap_or(newest.at);
        }
        let declaration = |row: &crate::state::LoggedDecision| serde_json::from_str(&row.body).ok();
        rows.iter().rev().filter_map(declaration).collect()
    }
}

pub(super) async fn stream(
    State(api): State<Api>,
    place: Option<Extension<Arc<Place>>>,
    headers: HeaderMap,
    query: Pairs,
) -> Result<Response, Problem> {
    let (reader, given) = api.reader(&headers, Reading::List, query, PARAMETERS).await?;
    let stream = &api.operators.stream;
    let Some(places) = stream.places.clone() else {
        return Err(busy(60, "the system gives no random numbers, which the stream needs"));
    };
    let Ok(permit) = stream.clients.clone().try_acquire_owned() else {
        return Err(busy(
            10,
            format!("there are {MAX_CLIENTS} clients of the stream already; try again later"),
        ));
    };
    // From now on it takes one of the places for streams.
    if let Some(Extension(place)) = place {
        place.become_stream();
    }
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let resumed = last.map(|last| places.read(last, reader.namespace()).map(|number| number + 1));
    stream.counters.stream_clients.inc();
    let client = Client {
        place: resumed.flatten().unwrap_or_default(),
        first: Some(match resumed {
            Some(None) => First::Gap,
            Some(Some(_)) => First::Nothing,
            None => First::Begin,
        }),
        wanted: given.name("event"),
        head: stream.log.subscribe(),
        stream: stream.clone(),
        places,
        heartbeat: Instant::now() + HEARTBEAT,
        recheck: Instant::now() + RECHECK,
        headers,
        reader,
        api: api.clone(),
        is_over: false,
        _permit: permit,
    };
    let body = stream::unfold(client, async |mut client| {
        let piece = client.next().await?;
        Some((Ok::<_, Infallible>(piece), client))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // So that no proxy holds events back.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        (header::CONNECTION, HeaderValue::from_static("close")),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// What a client gets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// The identifier of its place, so that it can come back before the first event.
    Begin,
    /// Events are missing.
    Gap,
    /// It goes on where it was.
    Nothing,
}

/// One client of the stream.
struct Client {
    api: Api,
    stream: Stream,
    places: Arc<Places>,
    reader: Reader,
    /// The headers of its request, by which its right is checked again.
    headers: HeaderMap,
    /// Only events of this kind.
    wanted: Option<&'static str>,
    first: Option<First>,
    /// The number of the next event.
    place: u64,
    head: watch::Receiver<Option<u64>>,
    heartbeat: Instant,
    recheck: Instant,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stream.counters.stream_clients.dec();
    }
}

impl Client {
    /// The next piece of the answer; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        match self.first.take() {
            Some(First::Nothing) | None => {}
            Some(first) => {
                // A list that the client reads after this has no change that it would miss.
                self.stream.log.wait_until_active().await;
                self.place = self.stream.log.end();
                return Some(if first == First::Gap { self.gap() } else { self.begin() });
            }
        }
        loop {
            // Also while there are always events to send.
            if Instant::now() >= self.recheck && !self.still_reads().await {
                return None;
            }
            let is_end = self.head.borrow_and_update().is_none();
            let wants = |event: &Event| wants(&self.reader, self.wanted, event);
            match self.stream.log.read(self.place, PIECE, wants) {
                Found::Events(events, next) => {
                    self.place = next;
                    if !events.is_empty() {
                        self.heartbeat = Instant::now() + HEARTBEAT;
                        return Some(self.written(&events));
                    }
                }
                Found::Gap => {
                    count(&self.stream.counters.stream_cut, "reason", "behind");
                    self.is_over = true;
                    return Some(self.gap());
                }
                Found::Nothing if is_end => return None,
                Found::Nothing => {}
            }
            tokio::select! {
                // An error means the end, too.
                changed = self.head.changed() => if changed.is_err() { return None },
                () = sleep_until(self.heartbeat) => {
                    self.heartbeat = Instant::now() + HEARTBEAT;
                    return Some(Bytes::from_static(b": alive\n\n"));
                }
                () = sleep_until(self.recheck) => {}
            }
        }
    }

    /// Checks the right of the client again.
    async fn still_reads(&mut self) -> bool {
        self.recheck = Instant::now() + RECHECK;
        let may_read = self.may_still_read().await;
        if !may_read {
            count(&self.stream.counters.stream_cut, "reason", "right");
        }
        may_read
    }

    async fn may_still_read(&self) -> bool {
        let pairs = self.reader.namespace().map(|namespace| ("namespace".to_owned(), namespace.to_owned()));
        let query = Pairs(pairs.into_iter().collect());
        self.api.reader(&self.headers, Reading::List, query, PARAMETERS).await.is_ok()
    }

    fn written(&self, events: &[Event]) -> Bytes {
        let mut text = String::with_capacity(2 * PIECE);
        for Event { number, kind, data, .. } in events {
            let id = self.places.write(*number, self.reader.namespace()).unwrap_or_default();
            let data = String::from_utf8_lossy(data);
            let _ = write!(text, "id: {id}\nevent: {}\ndata: {data}\n\n", kind.as_str());
        }
        text.into()
    }

    /// The identifier of the place before the next event.
    fn id(&self) -> String {
        let id =
            self.place.checked_sub(1).and_then(|before| self.places.write(before, self.reader.namespace()));
        id.map(|id| format!("id: {id}\n")).unwrap_or_default()
    }

    fn begin(&self) -> Bytes {
        format!("retry: 3000\n{}event: begin\ndata: {{}}\n\n", self.id()).into()
    }

    fn gap(&mut self) -> Bytes {
        self.place = self.stream.log.end();
        let detail = "changes are missing here: take a new snapshot of the lists";
        format!("{}event: gap\ndata: {{\"detail\":\"{detail}\"}}\n\n", self.id()).into()
    }
}

fn wants(reader: &Reader, wanted: Option<&str>, event: &Event) -> bool {
    let is_visible = match (&event.namespace, reader.namespace()) {
        (_, None) => true,
        (Some(namespace), Some(_)) => reader.sees(namespace),
        (None, Some(_)) => false,
    };
    is_visible && wanted.is_none_or(|wanted| wanted == event.kind.as_str())
}
