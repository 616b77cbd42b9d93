//! The persisted documents, in a file and in a cluster.

use jiff::Timestamp;

/// A kind of persisted document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// One App's incident.
    Incident,
    /// Accusations that are not enforced.
    Exemption,
    /// The mode, which counts over the configuration.
    Enforcement,
}

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 3] = [Self::Incident, Self::Exemption, Self::Enforcement];

    /// The name of the kind as it is persisted.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Incident => "Incident",
            Self::Exemption => "Exemption",
            Self::Enforcement => "Enforcement",
        }
    }

    /// The kind that [`Kind::as_str`] calls so.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One document. Its kind and name are its key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// The kind.
    pub(crate) kind: Kind,
    /// The name, unique within the kind.
    pub(crate) name: String,
    /// The content as JSON text, which takes a tenth of the memory of the parsed value.
    pub(crate) body: String,
}

/// One persisted entry of the log of decisions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LoggedDecision {
    /// The time, by our own wall clock.
    pub(crate) at: Timestamp,
    /// The tenant's namespace.
    pub(crate) namespace: String,
    /// The entry itself, as JSON.
    pub(crate) body: String,
}

/// Changes that are written together: all of them or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Batch {
    /// Documents that are new or have changed.
    pub(crate) put: Vec<Document>,
    /// Keys of documents to remove. A missing document is no error. A document that is put as well stays.
    pub(crate) remove: Vec<(Kind, String)>,
    /// Entries to add to the log. An entry that is there already, byte for byte, is not added again.
    pub(crate) decisions: Vec<LoggedDecision>,
}

/// A selection of entries of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DecisionFilter {
    /// Only entries of this tenant.
    pub(crate) namespace: Option<String>,
    /// Only entries that are not older than this.
    pub(crate) since: Option<Timestamp>,
    /// Only entries that are older than this.
    pub(crate) before: Option<Timestamp>,
    /// How many of the newest that match are left out. Many entries share a time, so pages are counted, from a fixed `before`.
    pub(crate) skip: usize,
    /// The maximum number of entries.
    pub(crate) limit: usize,
}
