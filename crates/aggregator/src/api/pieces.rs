//! Lists in pieces: for a list that is long, and for any list while the budget is used up.
//!
//! While the list is current, its pieces are kept compressed, because a piece is decompressed in a fraction of the time that it
//! takes to write it. When the list is replaced, its pieces are dropped. For a client that still reads it, the remaining pieces
//! are written from the records. A replaced list takes little memory, because later lists share most of its records. Slow clients
//! can keep many such lists, so these have a limit together. Beyond it, the readers of the oldest one are cut off.

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
use zstd::bulk::{Compressor, Decompressor};

/// The least length of a piece but the last, in bytes: a piece ends with the record that reaches it. A connection holds about two
/// pieces.
const PIECE_BYTES: usize = 8 << 10;
/// After so many pieces a body yields, so that other tasks of its thread go on, probes among them.
const PIECES_PER_YIELD: usize = 8;
/// How many bytes replaced lists may keep in memory in addition to the current list, as [`ReplacedLists`] counts them.
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

/// A list in pieces of about [`PIECE`] bytes.
#[derive(Debug)]
pub(super) struct Pieces {
    /// The length of the whole list, in bytes.
    length: usize,
    /// The first record of each piece.
    starts: Vec<usize>,
    changed: Timestamp,
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
    pub(super) fn of(records: Arc<[Arc<Record>]>, changed: Timestamp) -> io::Result<Self> {
        let mut compressor = Compressor::new(ZSTD_LEVEL)?;
        let (mut starts, mut compressed, mut length, mut next) = (Vec::new(), Vec::new(), 0, 0);
        let mut piece = Vec::new();
        while starts.is_empty() || next < records.len() {
            starts.push(next);
            piece.clear();
            write(&records, changed, &mut next, &mut piece)?;
            length += piece.len();
            let bytes = compressor.compress(&piece)?.into();
            compressed.push(CompressedPiece { bytes, length: piece.len() });
        }
        let content = Mutex::new(Content { records: Some(records), compressed });
        Ok(Self { length, starts, changed, content })
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
        write(&records, self.changed, &mut next, &mut piece)?;
        // A slow client keeps it for long.
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
    length: usize,
    most: usize,
) -> serde_json::Result<Option<Vec<u8>>> {
    let (mut body, mut next) = (Vec::with_capacity(length), 0);
    while body.is_empty() || next < records.len() {
        write(records, changed, &mut next, &mut body)?;
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
        serde_json::to_writer(&mut *piece, record)?;
        *next += 1;
    }
    if *next == records.len() {
        let members = ClosingMembers {
            // Whole seconds, as the seed has them.
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

/// The lists that have been replaced since the oldest one that still has readers, and an upper bound of what they keep in memory.
///
/// Readers keep the array of their list, and its records. A record that the current list does not have left at one of the lists
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

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use procscan_core::report::{Limits, decode};
    use proptest::collection::vec;
    use proptest::{option, prelude::*};
    use serde_json::{Value, json};

    use super::*;

    fn records(count: usize, cmdline: &str) -> Arc<[Arc<Record>]> {
        let record = |number: usize| {
            json!({
                "pod": format!("p-{number}"), "namespace": "ns-a", "process": "x", "cmdline": cmdline,
                "timestamp": "2025-12-22T18:30:00+08:00",
            })
        };
        let list: Vec<Value> = (0..count).map(record).collect();
        let limits = Limits { records: count, bytes: usize::MAX, ..Limits::default() };
        let (answer, result) = decode(json!(list).to_string().as_bytes(), &limits);
        result.unwrap();
        answer.records.iter().map(|record| Arc::new(record.into())).collect()
    }

    fn pieces(records: &Arc<[Arc<Record>]>) -> Arc<Pieces> {
        Arc::new(Pieces::of(records.clone(), Timestamp::UNIX_EPOCH).unwrap())
    }

    fn text(pieces: &Pieces) -> String {
        let all: io::Result<Vec<Bytes>> = pieces.iter().collect();
        String::from_utf8(all.unwrap().concat()).unwrap()
    }

    #[test]
    fn pieces_make_up_the_list_whether_decompressed_or_written_anew() {
        for count in [0, 1, 100, 1000] {
            let records = records(count, &"<".repeat(100));
            let list = pieces(&records);
            let whole = json!({"violations": &records[..], "update_time": "1970-01-01T00:00:00Z", "total_count": count});
            let decompressed = text(&list);
            assert_eq!(serde_json::from_str::<Value>(&decompressed).unwrap(), whole);
            assert_eq!((list.len(), list.starts.len() > 10), (decompressed.len(), count == 1000));
            replace(&mut ReplacedLists::new(MAX_REPLACED), &list, &[]);
            assert!(list.content().compressed.is_empty());
            assert_eq!(text(&list), decompressed);
        }
    }

    fn replace(lists: &mut ReplacedLists, pieces: &Arc<Pieces>, newer: &[Arc<Record>]) {
        let records = pieces.content().records.clone().unwrap();
        lists.add(Arc::downgrade(pieces), &records, newer);
    }

    /// Whether the readers of each list are cut off.
    fn cut_off(lists: &[Arc<Pieces>]) -> Vec<bool> {
        lists.iter().map(|list| list.iter().any(|piece| piece.is_err())).collect()
    }

    #[test]
    fn readers_of_the_oldest_list_are_cut_off_when_replaced_lists_take_too_much() {
        let mut replaced = ReplacedLists::new(MAX_REPLACED);
        // Each takes a little less than a quarter of the limit.
        let all: Vec<_> = (0..6).map(|_| records(250, &"x".repeat(4000 - RECORD_OVERHEAD))).collect();
        let lists: Vec<_> = all.iter().map(pieces).collect();
        for list in lists.iter().take(4) {
            replace(&mut replaced, list, &[]);
        }
        assert_eq!(cut_off(&lists), [false; 6]);
        replace(&mut replaced, &lists[4], &[]);
        assert_eq!(cut_off(&lists), [true, false, false, false, false, false]);
        // Records that the newer list has do not count.
        replace(&mut replaced, &lists[5], &all[5]);
        assert_eq!(cut_off(&lists), [true, false, false, false, false, false]);
    }

    #[tokio::test]
    async fn replaced_lists_without_readers_do_not_count_and_a_reader_that_is_cut_off_gets_an_error() {
        let mut replaced = ReplacedLists::new(MAX_REPLACED);
        let records = records(250, &"x".repeat(4000));
        for _ in 0..10 {
            replace(&mut replaced, &pieces(&records), &[]);
        }
        let old = pieces(&records);
        let mut reader = old.body();
        assert_eq!(reader.size_hint().exact(), Some(old.len() as u64));
        reader.frame().await.unwrap().unwrap();
        replace(&mut replaced, &old, &[]);
        assert!(old.content().records.is_some());
        let lists: Vec<_> = (0..4).map(|_| pieces(&records)).collect();
        for list in &lists {
            replace(&mut replaced, list, &[]);
        }
        assert!(reader.collect().await.is_err());
        drop((old, lists));
        replaced.add(Weak::new(), &records, &[]);
        assert!(replaced.lists.is_empty());
    }

    #[test]
    fn records_with_another_timestamp_do_not_count_the_texts_that_they_share() {
        let old = records(250, &"x".repeat(20_000));
        let newer: Vec<_> = old.iter().map(|record| Arc::new(Record::clone(record))).collect();
        let mut replaced = ReplacedLists::new(500_000);
        let list = pieces(&old);
        replace(&mut replaced, &list, &newer);
        assert_eq!(cut_off(std::slice::from_ref(&list)), [false]);
        let bytes = replaced.lists[0].records;
        assert!((250 * RECORD_OVERHEAD..100_000).contains(&bytes), "{bytes}");
        // The texts leave with the last record that has them.
        replaced.add(Weak::new(), &newer, &[]);
        assert_eq!(cut_off(&[list]), [true]);
    }

    /// How many bytes the lists whose readers are not cut off keep in memory and `current` does not have.
    fn kept(lists: &[Arc<Pieces>], current: &[Arc<Record>]) -> usize {
        let mut claims: HashSet<_> = current.iter().map(|record| Arc::as_ptr(&record.claim)).collect();
        let mut records: HashSet<_> = current.iter().map(Arc::as_ptr).collect();
        let mut bytes = 0;
        for list in lists {
            let Some(its) = list.content().records.clone() else { continue };
            bytes += 8 * (its.len() + list.starts.len());
            for record in its.iter() {
                let own = length_without_claim(record);
                bytes += if records.insert(Arc::as_ptr(record)) { own } else { 0 };
                bytes += if claims.insert(Arc::as_ptr(&record.claim)) { length_of(record) - own } else { 0 };
            }
        }
        bytes
    }

    #[test]
    fn records_that_leave_with_a_list_without_readers_count_as_long_as_an_older_list_has_readers() {
        let mut replaced = ReplacedLists::new(MAX_REPLACED);
        let new = || records(250, &"x".repeat(4000)).to_vec();
        let (mut read, mut current) = (Vec::new(), new());
        for _ in 0..10 {
            // A list with readers; a second one without any, in which one record is another; a third one that has none of
            // these records.
            let first: Arc<[Arc<Record>]> = current.clone().into();
            let mut second = current;
            second[0] = records(1, "y")[0].clone();
            current = new();
            read.push(pieces(&first));
            replace(&mut replaced, read.last().unwrap(), &second);
            replaced.add(Weak::new(), &second, &current);
            assert!(kept(&read, &current) <= MAX_REPLACED);
        }
        let cut_off = cut_off(&read);
        assert_eq!(cut_off.iter().filter(|is_cut_off| !**is_cut_off).count(), 4, "{cut_off:?}");
    }

    #[test]
    fn lists_that_differ_little_are_cut_off_for_the_arrays_of_those_that_have_readers() {
        let records = records(1000, "");
        // Six such lists are within the limit.
        let mut replaced = ReplacedLists::new(50_000);
        let mut read = Vec::new();
        for _ in 0..6 {
            read.push(pieces(&records));
            replace(&mut replaced, read.last().unwrap(), &records);
        }
        read.truncate(2);
        for _ in 0..4 {
            read.push(pieces(&records));
            replace(&mut replaced, read.last().unwrap(), &records);
        }
        assert_eq!(cut_off(&read), [false; 6]);
        read.push(pieces(&records));
        replace(&mut replaced, &read[6], &records);
        assert_eq!(cut_off(&read), [true, false, false, false, false, false, false]);
        assert!(kept(&read, &records) <= 50_000);
    }

    /// One list, and what happens before it is replaced.
    #[derive(Clone, Debug)]
    struct Step {
        /// Which records are replaced by others of how many bytes, or removed.
        changes: Vec<(usize, Option<usize>)>,
        has_reader: bool,
        /// Which of the readers ends, counted from the oldest; none if there are not so many.
        end: usize,
    }

    fn step() -> impl Strategy<Value = Step> {
        let change = (0..8_usize, option::of(0..3000_usize));
        (vec(change, 0..8), any::<bool>(), 0..12_usize).prop_map(|(changes, has_reader, end)| Step {
            changes,
            has_reader,
            end,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn replaced_lists_never_keep_more_than_the_limit(steps in vec(step(), 1..40)) {
            const LIMIT: usize = 20_000;
            let mut replaced = ReplacedLists::new(LIMIT);
            let mut slots: [Option<Arc<Record>>; 8] = Default::default();
            let mut read: Vec<Arc<Pieces>> = Vec::new();
            let mut list: Arc<[Arc<Record>]> = Arc::default();
            for Step { changes, has_reader, end } in steps {
                if end < read.len() {
                    read.remove(end);
                }
                for (slot, length) in changes {
                    let again = slots[slot].as_ref().map(|record| Arc::new(Record::clone(record)));
                    slots[slot] = match length {
                        // The same claim with another timestamp.
                        Some(length) if length % 2 == 1 && again.is_some() => again,
                        length => length.map(|length| records(1, &"x".repeat(length))[0].clone()),
                    };
                }
                let newer: Arc<[Arc<Record>]> = slots.iter().flatten().cloned().collect();
                let pieces = has_reader.then(|| pieces(&list));
                replaced.add(pieces.as_ref().map(Arc::downgrade).unwrap_or_default(), &list, &newer);
                read.extend(pieces);
                list = newer;
                prop_assert!(kept(&read, &list) <= LIMIT);
            }
        }
    }
}
