//! Limits the records of an answer, and shares the limits fairly among namespaces.
//!
//! A tenant can have any number of processes, and commands of any length. Its records take no room of other tenants: a
//! namespace with few records has room for all of them, and the others share the rest. In a namespace the Pods take
//! turns.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;

use super::record::{RecordRef, Records};
use super::{Answer, LeftOut, Rejection, Rejections};
use crate::shares::fair_share;

/// The limits of one answer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records per answer, shared fairly among namespaces. The rest is read and counted, and its namespaces are noted (see
    /// [`LeftOut`]).
    pub records: usize,
    /// Bytes that all records of an answer take, shared in the same way. While the answer is being read, up to a quarter more.
    pub bytes: usize,
    /// Bytes of a process name. It is part of the key, so cutting it may merge two violations of one Pod, which is harmless.
    pub process: usize,
    /// Bytes of a command line.
    pub cmdline: usize,
    /// Bytes of any other field.
    pub field: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { records: 1000, bytes: 4 << 20, process: 256, cmdline: 4096, field: 512 }
    }
}

/// The valid records of an answer while it is being read.
#[derive(Debug)]
pub(super) struct Gathering {
    limits: Limits,
    records: Records,
    pub(super) rejected: Rejections,
    left_out: LeftOut,
}

/// The records of one namespace, and how many of them stay.
#[derive(Default)]
struct Part {
    /// The places of its records, in the order in which they are preferred.
    places: Vec<usize>,
    may_keep: usize,
    bytes: usize,
}

/// When a record was found, the last first, and its place.
type Found = (Reverse<Timestamp>, usize);

/// The part of a record that stays.
#[derive(Clone, Copy)]
enum Stay {
    LeftOut,
    Whole,
    /// The command line is dropped, because with it the record is larger than its namespace's share. No other record of
    /// the namespace stays so far.
    WithoutCmdline,
}

impl Gathering {
    /// An empty gathering with room for records of about `likely` bytes.
    pub(super) fn new(limits: &Limits, likely: usize) -> Self {
        Self {
            limits: *limits,
            records: Records::with_capacity(likely),
            rejected: Rejections::default(),
            left_out: LeftOut::default(),
        }
    }

    /// The bytes that its records take.
    pub(super) fn held(&self) -> usize {
        self.records.bytes()
    }

    pub(super) fn push(&mut self, record: RecordRef<'_>) {
        self.records.push(record);
        // A quarter more may come before the limits are shared out. So each record is looked at a few times only,
        // however many come.
        let Limits { records, bytes, .. } = self.limits;
        if self.records.len() > records.saturating_add(records / 4 + 16)
            || self.records.bytes() > bytes.saturating_add(bytes / 4)
        {
            self.share_out();
        }
    }

    pub(super) fn finish(mut self) -> Answer {
        if self.records.len() > self.limits.records || self.records.bytes() > self.limits.bytes {
            self.share_out();
        }
        let Self { records, rejected, left_out, .. } = self;
        Answer { records, rejected, left_out, date: None }
    }

    /// Leaves out records beyond the limits. Of a namespace the preferred records stay (see [`preferred`]).
    fn share_out(&mut self) {
        let records = std::mem::take(&mut self.records);
        let bytes_of = |place: usize| records.get(place).map_or(0, |record| Records::bytes_of(&record));
        let mut parts = preferred(&records);
        self.limit_records(&mut parts);
        for part in parts.values_mut() {
            part.places.truncate(part.may_keep);
            part.bytes = part.places.iter().map(|place| bytes_of(*place)).sum();
        }
        let mut wants: Vec<usize> = parts.values().map(|part| part.bytes).collect();
        let (share, _) = fair_share(&mut wants, self.limits.bytes);
        let cmdline_of = |place: usize| records.get(place).map_or(0, |record| record.cmdline.len());
        let mut stays = vec![Stay::LeftOut; records.len()];
        for part in parts.values() {
            let mut bytes = 0;
            for place in &part.places {
                let whole = bytes + bytes_of(*place);
                let without = whole - cmdline_of(*place);
                let (more, stay) = if whole <= share {
                    (whole, Stay::Whole)
                } else if bytes == 0 && without <= share {
                    (without, Stay::WithoutCmdline)
                } else {
                    continue;
                };
                if let Some(stays) = stays.get_mut(*place) {
                    (bytes, *stays) = (more, stay);
                }
            }
        }
        let mut staying = Records::with_capacity(self.limits.bytes.min(records.bytes()));
        for (record, stay) in records.iter().zip(stays) {
            match stay {
                Stay::Whole => staying.push(record),
                Stay::WithoutCmdline => staying.push(RecordRef { cmdline: "", ..record }),
                Stay::LeftOut => {
                    self.rejected.count(Rejection::OverLimit);
                    self.left_out.note(record.key.namespace);
                }
            }
        }
        self.records = staying;
    }

    /// Sets how many records of each namespace may stay.
    fn limit_records(&self, parts: &mut BTreeMap<&str, Part>) {
        let mut wants: Vec<usize> = parts.values().map(|part| part.places.len()).collect();
        let (share, mut left) = fair_share(&mut wants, self.limits.records);
        // The remainder that can't be divided is for the namespaces that came first.
        let mut in_order: Vec<&mut Part> = parts.values_mut().collect();
        in_order.sort_unstable_by_key(|part| part.places.iter().min().copied());
        for part in in_order {
            let is_one_more = left > 0 && part.places.len() > share;
            left -= usize::from(is_one_more);
            part.may_keep = share.saturating_add(usize::from(is_one_more));
        }
    }
}

/// The records of each namespace in the order in which they are preferred. Its Pods take turns. Of a Pod, the record that was found
/// last comes first, because its process is most likely to run.
fn preferred(records: &Records) -> BTreeMap<&str, Part> {
    let mut by_pod: BTreeMap<(&str, &str), Vec<Found>> = BTreeMap::new();
    for (place, record) in records.iter().enumerate() {
        let found = (Reverse(record.detected_at), place);
        by_pod.entry((record.key.namespace, record.key.pod)).or_default().push(found);
    }
    let mut ranked: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for ((namespace, _), mut found) in by_pod {
        found.sort_unstable();
        let places = found.into_iter().enumerate().map(|(rank, (_, place))| (rank, place));
        ranked.entry(namespace).or_default().extend(places);
    }
    let part = |mut ranked: Vec<(usize, usize)>| {
        ranked.sort_unstable();
        Part { places: ranked.into_iter().map(|(_, place)| place).collect(), ..Part::default() }
    };
    ranked.into_iter().map(|(namespace, ranked)| (namespace, part(ranked))).collect()
}
