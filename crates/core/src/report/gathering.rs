//! The records of an answer within their limits, shared fairly among namespaces.
//!
//! A tenant can have any number of processes, and commands of any length. Its records push out only its own: a namespace with few
//! records keeps all of them, and the others share what is left.

use std::collections::BTreeMap;

use super::decode::Limits;
use super::record::{RecordRef, Records};
use super::{Answer, LeftOut, Rejection, Rejections};
use crate::shares::fair_share;

/// The good records of an answer while it is being read.
#[derive(Debug)]
pub(super) struct Gathering {
    limits: Limits,
    records: Records,
    pub(super) rejected: Rejections,
    left_out: LeftOut,
}

/// What one namespace has of the records, and what it may keep of them.
#[derive(Default)]
struct Part {
    records: usize,
    bytes: usize,
    may_keep: usize,
    may_keep_bytes: usize,
    kept: usize,
    kept_bytes: usize,
}

impl Gathering {
    /// With room for records of about so many bytes.
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
        // With a quarter more before it shares out, it looks at each record a few times only, however many come.
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

    /// Leaves out records beyond the limits. Of a namespace's own records those that came first stay.
    fn share_out(&mut self) {
        let records = std::mem::take(&mut self.records);
        let mut parts = self.parts(&records);
        let mut kept = Records::with_capacity(self.limits.bytes.min(records.bytes()));
        for record in records.iter() {
            let namespace = record.key.namespace;
            let Some(part) = parts.get_mut(namespace) else { continue };
            let bytes = part.kept_bytes + Records::bytes_of(&record);
            if part.kept < part.may_keep && bytes <= part.may_keep_bytes {
                part.kept += 1;
                part.kept_bytes = bytes;
                kept.push(record);
            } else {
                self.rejected.count(Rejection::OverLimit);
                self.left_out.note(namespace);
            }
        }
        self.records = kept;
    }

    fn parts<'a>(&self, records: &'a Records) -> BTreeMap<&'a str, Part> {
        let mut parts: BTreeMap<&str, Part> = BTreeMap::new();
        let mut order: Vec<&str> = Vec::new();
        for record in records.iter() {
            let part = parts.entry(record.key.namespace).or_default();
            if part.records == 0 {
                order.push(record.key.namespace);
            }
            part.records += 1;
        }
        let mut wants: Vec<usize> = parts.values().map(|part| part.records).collect();
        let (share, mut left) = fair_share(&mut wants, self.limits.records);
        for namespace in order {
            let Some(part) = parts.get_mut(namespace) else { continue };
            // What can't be divided is for the namespaces that came first.
            let is_one_more = left > 0 && part.records > share;
            left -= usize::from(is_one_more);
            part.may_keep = share.saturating_add(usize::from(is_one_more));
        }
        for record in records.iter() {
            let Some(part) = parts.get_mut(record.key.namespace) else { continue };
            part.kept += 1;
            if part.kept <= part.may_keep {
                part.bytes += Records::bytes_of(&record);
            }
        }
        let mut wants: Vec<usize> = parts.values().map(|part| part.bytes).collect();
        let (share, _) = fair_share(&mut wants, self.limits.bytes);
        for part in parts.values_mut() {
            (part.may_keep_bytes, part.kept) = (share, 0);
        }
        parts
    }
}
