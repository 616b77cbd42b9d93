//! The answer of one agent in one round, or the reason why there is none.
//!
//! Decoding is tolerant, because agents of other versions answer other shapes and tenants choose some of the bytes. A
//! bad record does not affect the other records. Records per answer and bytes per field are limited, because a node may
//! be hostile.
//!
//! The wire format is that of the upstream agent (labring/CompliK, `procscan/`): a JSON array of objects of nine strings.

mod decode;
mod gathering;
mod instant;
mod json;
mod record;
mod stream;
mod wire_record;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};

pub use self::decode::decode;
pub use self::gathering::Limits;
pub(crate) use self::record::age_by_own_clock;
pub use self::record::{Claim, Record, RecordRef, Records};
pub use self::stream::{DecodeError, Decoder};
pub(crate) use self::wire_record::clip;

use crate::Moment;
use crate::names::{NodeName, Text};

/// One agent to ask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// `host:port`, an IPv6 host in brackets. Identifies the target.
    pub address: Text,
    /// The node that the agent runs on and reports for.
    pub node: NodeName,
}

/// One target's answer in a round, or the reason why there is none.
#[derive(Clone, Debug)]
pub struct Report {
    /// The target that was asked.
    pub target: Target,
    /// When the answer had arrived, or the request had failed.
    pub at: Moment,
    /// The outcome of the request.
    pub outcome: Outcome,
}

/// The outcome of the request to one target.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The whole list, read to its end. Only this and `Unchanged` count as answered time for clearing.
    Complete(Answer),
    /// A part of the list. A listed record is evidence of presence, and a missing record is evidence of nothing.
    Partial(Answer, Failure),
    /// The same list as in the last complete answer (HTTP 304).
    Unchanged,
    /// No list.
    Failed(Failure),
}

impl Outcome {
    /// The reason why there is no complete answer; `None` if there is one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Complete(_) | Self::Unchanged => None,
            Self::Partial(_, failure) | Self::Failed(failure) => Some(failure),
        }
    }
}

/// A decoded list.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The valid records, in the agent's order (which is random).
    pub records: Records,
    /// How many records were refused, by reason.
    pub rejected: Rejections,
    /// The namespaces of records that were left out because there were more than the limit.
    pub left_out: LeftOut,
    /// The agent's own clock when it answered: the HTTP `Date` header.
    pub date: Option<Timestamp>,
}

/// The reason why there is no answer, or not a whole one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure, for counting.
    pub reason: FailureReason,
    /// The failure as a text for people. The code that makes it limits its length.
    pub detail: String,
}

/// The kinds of failure of a request to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// The host's name has no address.
    Resolve,
    /// The connection was refused: nothing listens there.
    Refused,
    /// No connection for another reason (no route, for example).
    Connect,
    /// No connection within the connect timeout.
    ConnectTimeout,
    /// No answer began within the total timeout.
    Timeout,
    /// The connection broke off before an answer began.
    Disconnected,
    /// An answer began, but was not complete within the total timeout.
    Stalled,
    /// An answer began, but the connection broke off before it was complete.
    CutOff,
    /// The answer is not HTTP.
    Protocol,
    /// An HTTP status other than 200 and 304.
    Status,
    /// A `Content-Encoding` that was not asked for, or one that does not decode.
    Encoding,
    /// The body is larger than the limit. The larger of its length as received and its length decompressed counts.
    TooLarge,
    /// At most a first part of the body was read. Large bodies take turns, or there was no memory or no time left to
    /// decode it. The agent did not fail.
    Deferred,
    /// The body is not a list of records.
    Malformed,
}

impl FailureReason {
    /// The reason as a label, `snake_case`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Refused => "refused",
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Stalled => "stalled",
            Self::CutOff => "cut_off",
            Self::Protocol => "protocol",
            Self::Status => "status",
            Self::Encoding => "encoding",
            Self::TooLarge => "too_large",
            Self::Deferred => "deferred",
            Self::Malformed => "malformed",
        }
    }

    /// Whether no byte of an answer came. After any other failure the node is known to run, but its answer was not
    /// whole or can't be used.
    pub(crate) fn is_silence(self) -> bool {
        match self {
            Self::Resolve
            | Self::Refused
            | Self::Connect
            | Self::ConnectTimeout
            | Self::Timeout
            | Self::Disconnected => true,
            Self::Stalled
            | Self::CutOff
            | Self::Protocol
            | Self::Status
            | Self::Encoding
            | Self::TooLarge
            | Self::Deferred
            | Self::Malformed => false,
        }
    }
}

/// The namespaces in which records of an answer were left out because there were more than the limit. In these the
/// answer proves no absence. At most [`LeftOut::MAX_NAMESPACES`] are remembered; beyond that every namespace counts as
/// one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    namespaces: BTreeSet<Text>,
    is_full: bool,
}

impl LeftOut {
    /// How many namespaces are remembered one by one.
    pub const MAX_NAMESPACES: usize = 256;

    /// Notes that a record of `namespace` was left out.
    pub fn note(&mut self, namespace: &str) {
        if self.concerns(namespace) {
            return;
        }
        if self.namespaces.len() < Self::MAX_NAMESPACES {
            self.namespaces.insert(namespace.into());
        } else {
            self.note_all();
        }
    }

    /// Notes that records of any namespace may have been left out.
    pub fn note_all(&mut self) {
        (self.namespaces, self.is_full) = (BTreeSet::new(), true);
    }

    /// Adds the namespaces of `other`.
    pub fn add(&mut self, other: &LeftOut) {
        if other.is_full {
            self.note_all();
        }
        other.namespaces.iter().for_each(|namespace| self.note(namespace));
    }

    /// The namespaces that are remembered one by one, in order.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Text> {
        self.namespaces.iter()
    }

    /// Whether records of `namespace` may have been left out.
    pub fn concerns(&self, namespace: &str) -> bool {
        self.is_full || self.namespaces.contains(namespace)
    }

    /// Whether no record was left out.
    pub fn is_empty(&self) -> bool {
        !self.is_full && self.namespaces.is_empty()
    }
}

/// The reason why a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// Not a JSON object, or one that does not parse.
    NotARecord,
    /// Namespace, pod, process or timestamp is missing or empty.
    MissingField,
    /// A field is not a string.
    WrongType,
    /// The namespace is not a name that Kubernetes allows, so nothing can run there.
    InvalidNamespace,
    /// The pod's name is not one that Kubernetes allows, so there is no such Pod.
    InvalidPod,
    /// The timestamp is not RFC 3339, so it can't be evidence.
    InvalidTimestamp,
    /// The record is beyond the record limit of one answer.
    OverLimit,
    /// The node already has as many violations in the ledger as one node may.
    NodeQuota,
}

impl Rejection {
    /// The reason as a label, `snake_case`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotARecord => "not_a_record",
            Self::MissingField => "missing_field",
            Self::WrongType => "wrong_type",
            Self::InvalidNamespace => "invalid_namespace",
            Self::InvalidPod => "invalid_pod",
            Self::InvalidTimestamp => "invalid_timestamp",
            Self::OverLimit => "over_limit",
            Self::NodeQuota => "node_quota",
        }
    }
}

/// How many records were refused, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejections(
    #[expect(
        clippy::box_collection,
        reason = "few nodes have refused records, and the others should take no memory for them"
    )]
    Option<Box<BTreeMap<Rejection, u64>>>,
);

impl Rejections {
    /// The reasons for which records were refused, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Rejection, u64)> {
        self.0.iter().flat_map(|counts| counts.iter()).map(|(reason, count)| (*reason, *count))
    }

    /// Counts one more refused record.
    pub fn count(&mut self, reason: Rejection) {
        *self.counts().entry(reason).or_default() += 1;
    }

    fn counts(&mut self) -> &mut BTreeMap<Rejection, u64> {
        self.0.get_or_insert_default()
    }

    /// Adds the counts of `other`.
    pub(crate) fn add(&mut self, other: &Rejections) {
        for (reason, n) in other.0.iter().flat_map(|counts| counts.iter()) {
            *self.counts().entry(*reason).or_default() += n;
        }
    }

    /// The number of refused records, whatever the reason.
    pub fn total(&self) -> u64 {
        self.0.iter().flat_map(|counts| counts.values()).sum()
    }

    /// The number of records that were refused for one reason.
    pub fn of(&self, reason: Rejection) -> u64 {
        self.0.as_ref().and_then(|counts| counts.get(&reason)).copied().unwrap_or(0)
    }
}

/// A map from reasons to counts.
impl JsonSchema for Rejections {
    fn schema_name() -> Cow<'static, str> {
        "Rejections".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        BTreeMap::<String, u64>::json_schema(generator)
    }
}

impl Serialize for Rejections {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().flat_map(|counts| counts.iter()))
    }
}

#[cfg(test)]
mod tests;
