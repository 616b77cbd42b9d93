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
    Arc::new(Pieces::of(records.clone(), Timestamp::UNIX_EPOCH, Cmdlines::Whole).unwrap())
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
        let whole =
            json!({"violations": &records[..], "update_time": "1970-01-01T00:00:00Z", "total_count": count});
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

/// How many bytes the lists whose readers are not cut off hold in memory and `current` does not have.
fn held(lists: &[Arc<Pieces>], current: &[Arc<Record>]) -> usize {
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
        assert!(held(&read, &current) <= MAX_REPLACED);
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
    assert!(held(&read, &records) <= 50_000);
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
            prop_assert!(held(&read, &list) <= LIMIT);
        }
    }
}
