//! Lists in pieces: for a list that is long, and for any list while the budget is used up.
//!
//! While the list is current, its pieces are stored compressed, because a piece is decompressed in a fraction of the time that it
//! takes to write it. When the list is replaced, its pieces are dropped. For a client that still reads it, the remaining pieces
//! are written from the records. A replaced list takes little memory, because later lists share most of its records. Slow clients
//! can hold many such lists, so these have a limit together. Beyond it, the readers of the oldest one are cut off.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use jiff::Timestamp;
use procscan_core::report::{Claim, Record, RecordRef};
use serde::Serialize;
use serde::ser::Serializer;
use zstd::bulk::{Compressor, Decompressor};

use super::redact::redacted;

/// The least length of a piece but the last, in bytes: a piece ends with the record that reaches it. A connection holds about two
/// pieces.
const PIECE_BYTES: usize = 8 << 10;
/// After so many pieces a body yields, so that other tasks of its thread go on, probes among them.
const PIECES_PER_YIELD: usize = 8;
/// How many bytes replaced lists may hold in memory in addition to the current list, as [`ReplacedLists`] counts them.
pub(super) const MAX_REPLACED: usize = 4 << 20;
/// The fastest of the levels from 1 on: a piece is a few similar records, and a higher level gains little.
const ZSTD_LEVEL: i32 = 1;
/// Why a body ends early.
const CUT_OFF: &str =
    "the client was too slow: replaced lists took more memory than they may, and this one was the oldest";
/// What a record takes beside its texts, in bytes: in JSON the names of its members and the quotes, in memory its pointers and
/// lengths.
const RECORD_OVERHEAD: usize = 120;

/// About how many bytes a record takes, in JSON as in memory.
pub(super) fn length_of(record: &Record) -> usize {
    let RecordRef { key, cmdline, regex, status, kind, name, timestamp, .. } = record.view();
    let texts = [key.namespace, key.pod, key.process, cmdline, regex, status, kind, name, timestamp];
    RECORD_OVERHEAD + texts.map(str::len).iter().sum::<usize>()
}

/// About how many bytes a record takes in memory that shares its [`Claim`] with another one.
fn length_without_claim(record: &Record) -> usize {
    let RecordRef { key, timestamp, .. } = record.view();
    let texts = [key.namespace, key.pod, key.process, timestamp];
    RECORD_OVERHEAD + texts.map(str::len).iter().sum::<usize>()
}

/// How command lines are shown in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cmdlines {
    /// As the agents gave them.
    Whole,
    /// Without secrets: see [`redacted`].
    Redacted,
}

/// A record as a list shows it.
struct Shown<'a>(&'a Record, Cmdlines);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(record, cmdlines) = self;
        match cmdlines {
            Cmdlines::Whole => record.serialize(serializer),
            Cmdlines::Redacted => {
                let cmdline = redacted(&record.cmdline);
                RecordRef { cmdline: &cmdline, ..record.view() }.serialize(serializer)
            }
        }
    }
}

/// A list in pieces of about [`PIECE_BYTES`] bytes.
#[derive(Debug)]
pub(super) struct Pieces {
    /// The length of the whole list, in bytes.
    length: usize,
    /// The first record of each piece.
    starts: Vec<usize>,
    changed: Timestamp,
    cmdlines: Cmdlines,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    /// `None` once its readers are cut off.
    records: Option<Arc<[Arc<Record>]>>,
    /// All pieces while the list is current, and none afterwards.
    compressed: Vec<CompressedPiece>,
}

#[derive(Clone, Debug)]
struct CompressedPiece {
    bytes: Arc<[u8]>,
    /// How many bytes it decompresses to.
    length: usize,
}

/// The members behind the records.
#[derive(Serialize)]
struct ClosingMembers {
    update_time: Timestamp,
    total_count: usize,
}

impl Pieces {
    /// Writes all pieces of the list and compresses them.
    pub(super) fn of(
        records: Arc<[Arc<Record>]>,
        changed: Timestamp,
        cmdlines: Cmdlines,
    ) -> io::Result<Self> {
        let mut compressor = Compressor::new(ZSTD_LEVEL)?;
        let (mut starts, mut compressed, mut length, mut next) = (Vec::new(), Vec::new(), 0, 0);
        let mut piece = Vec::new();
        while starts.is_empty() || next < records.len() {
            starts.push(next);
            piece.clear();
            write(&records, changed, cmdlines, &mut next, &mut piece)?;
            length += piece.len();
            let bytes = compressor.compress(&piece)?.into();
            compressed.push(CompressedPiece { bytes, length: piece.len() });
        }
        let content = Mutex::new(Content { records: Some(records), compressed });
        Ok(Self { length, starts, changed, cmdlines, content })
    }

    /// The length of the whole list, in bytes.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// All pieces in order, uncompressed.
    pub(super) fn iter(&self) -> impl Iterator<Item = io::Result<Bytes>> {
        (0..self.starts.len()).map(|number| self.piece(number))
    }

    /// A response body for one client.
    pub(super) fn body(self: &Arc<Self>) -> PiecesBody {
        PiecesBody { pieces: self.clone(), next: 0, sent_since_yield: 0, bytes_left: self.length as u64 }
    }

    fn piece(&self, number: usize) -> io::Result<Bytes> {
        let (compressed, records) = {
            let content = self.content();
            (content.compressed.get(number).cloned(), content.records.clone())
        };
        if let Some(CompressedPiece { bytes, length }) = compressed {
            return Ok(decompress(&bytes, length)?.into());
        }
        let records = records.ok_or_else(|| io::Error::other(CUT_OFF))?;
        let mut next = self.starts.get(number).copied().unwrap_or(records.len());
        // The record that ends a piece is nearly always shorter than a piece.
        let mut piece = Vec::with_capacity(2 * PIECE_BYTES);
        write(&records, self.changed, self.cmdlines, &mut next, &mut piece)?;
        // A slow client holds it for long.
        piece.shrink_to_fit();
        Ok(piece.into())
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decompress(bytes: &[u8], length: usize) -> io::Result<Vec<u8>> {
    thread_local! {
        // To make a decompressor takes longer than to decompress a piece.
        static DECOMPRESSOR: RefCell<io::Result<Decompressor<'static>>> = RefCell::new(Decompressor::new());
    }
    DECOMPRESSOR.with_borrow_mut(|decompressor| match decompressor {
        Ok(decompressor) => decompressor.decompress(bytes, length),
        Err(_) => zstd::bulk::decompress(bytes, length),
    })
}

/// Writes a whole list of about `length` bytes. `None` if it has more than `most`: escapes of control characters may make it
/// several times as long as expected.
pub(super) fn write_whole(
    records: &[Arc<Record>],
    changed: Timestamp,
    cmdlines: Cmdlines,
    length: usize,
    most: usize,
) -> serde_json::Result<Option<Vec<u8>>> {
    let (mut body, mut next) = (Vec::with_capacity(length), 0);
    while body.is_empty() || next < records.len() {
        write(records, changed, cmdlines, &mut next, &mut body)?;
        if body.len() > most {
            return Ok(None);
        }
    }
    Ok(Some(body))
}

/// Appends to `piece` the piece that begins with the record at `next`, and sets `next` to the first record behind it.
fn write(
    records: &[Arc<Record>],
    changed: Timestamp,
    cmdlines: Cmdlines,
    next: &mut usize,
    piece: &mut Vec<u8>,
) -> serde_json::Result<()> {
    let end = piece.len() + PIECE_BYTES;
    if *next == 0 {
        piece.extend_from_slice(b"{\"violations\":[");
    }
    while let Some(record) = records.get(*next).filter(|_| piece.len() < end) {
        if *next > 0 {
            piece.push(b',');
        }
        serde_json::to_writer(&mut *piece, &Shown(record, cmdlines))?;
        *next += 1;
    }
    if *next == records.len() {
        let members = ClosingMembers {
            // Whole seconds, as in the first README.
            update_time: Timestamp::from_second(changed.as_second()).unwrap_or(changed),
            total_count: records.len(),
        };
        let members = serde_json::to_vec(&members)?;
        piece.extend_from_slice(b"],");
        piece.extend_from_slice(members.strip_prefix(b"{").unwrap_or(&members));
    }
    Ok(())
}

/// The response body that sends a list in pieces to one client.
pub(super) struct PiecesBody {
    pieces: Arc<Pieces>,
    /// The number of the next piece.
    next: usize,
    /// How many pieces were sent since the body last yielded.
    sent_since_yield: usize,
    /// How many bytes are not sent yet.
    bytes_left: u64,
}

impl Body for PiecesBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        if self.sent_since_yield == PIECES_PER_YIELD {
            self.sent_since_yield = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = self.pieces.piece(self.next);
        self.next += 1;
        self.sent_since_yield += 1;
        if let Ok(piece) = &piece {
            self.bytes_left = self.bytes_left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(Some(piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.next >= self.pieces.starts.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left)
    }
}

/// The lists that have been replaced since the oldest one that still has readers, and an upper bound of the memory that they hold.
///
/// Readers hold the array of their list, and its records. A record that the current list does not have left at one of the lists
/// here: a list has it whose successor does not. So each list counts the records that its successor does not have. That holds for
/// a list without readers too, because older lists may have these records.
#[derive(Debug)]
pub(super) struct ReplacedLists {
    /// In bytes.
    limit: usize,
    /// The oldest first.
    lists: VecDeque<ReplacedList>,
}

#[derive(Debug)]
struct ReplacedList {
    pieces: Weak<Pieces>,
    /// How many bytes the records take that its successor does not have.
    records: usize,
    /// How many bytes its arrays take, as long as it has readers.
    arrays: usize,
}

impl ReplacedList {
    /// Whether a client reads its pieces or is about to.
    fn has_readers(&self) -> bool {
        self.pieces.strong_count() > 0
    }

    /// How many bytes it counts.
    fn bytes(&self) -> usize {
        self.records + if self.has_readers() { self.arrays } else { 0 }
    }
}

impl ReplacedLists {
    /// No list yet. `limit` is in bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, lists: VecDeque::new() }
    }

    /// Adds a list with the records `replaced`, whose successor has the records `newer`. `pieces` are those of the list, if it
    /// has any, and only its readers may still own them. Drops the compressed pieces. Cuts off the readers of the oldest lists
    /// until the others are within the limit.
    pub(super) fn add(&mut self, pieces: Weak<Pieces>, replaced: &[Arc<Record>], newer: &[Arc<Record>]) {
        while self.lists.front().is_some_and(|oldest| !oldest.has_readers()) {
            self.lists.pop_front();
        }
        let mut arrays = 0;
        if let Some(pieces) = pieces.upgrade() {
            pieces.content().compressed = Vec::new();
            arrays = size_of_val(replaced) + size_of_val(&pieces.starts[..]);
        } else if self.lists.is_empty() {
            return;
        }
        let claims: HashSet<*const Claim> = newer.iter().map(|record| Arc::as_ptr(&record.claim)).collect();
        let newer: HashSet<*const Record> = newer.iter().map(Arc::as_ptr).collect();
        let gone = replaced.iter().filter(|record| !newer.contains(&Arc::as_ptr(record)));
        // A record with a new timestamp has the same claim as the one before, and so most of its texts.
        let bytes = |record: &Arc<Record>| {
            let has_claim = claims.contains(&Arc::as_ptr(&record.claim));
            if has_claim { length_without_claim(record) } else { length_of(record) }
        };
        let records = gone.map(bytes).sum();
        self.lists.push_back(ReplacedList { pieces, records, arrays });
        while self.lists.iter().map(ReplacedList::bytes).sum::<usize>() > self.limit {
            let Some(oldest) = self.lists.pop_front() else { return };
            if let Some(pieces) = oldest.pieces.upgrade() {
                pieces.content().records = None;
            }
        }
    }
}
