//! The persisted documents, in a file and in a cluster.

use jiff::Timestamp;

/// A kind of persisted document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One App's incident.
    Incident,
    /// Accusations that are not enforced.
    Exemption,
    /// The mode, which counts over the configuration.
    Enforcement,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Incident, Self::Exemption, Self::Enforcement];

    /// The name of the kind as it is persisted.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Incident => "Incident",
            Self::Exemption => "Exemption",
            Self::Enforcement => "Enforcement",
        }
    }

    /// The kind that [`Kind::as_str`] calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One document. Its kind and name are its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The kind.
    pub kind: Kind,
    /// The name, unique within the kind.
    pub name: String,
    /// The content as JSON text, which takes a tenth of the memory of the parsed value.
    pub body: String,
}

/// One persisted entry of the log of decisions.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedDecision {
    /// The time, by our own wall clock.
    pub at: Timestamp,
    /// The tenant's namespace.
    pub namespace: String,
    /// The entry itself, as JSON.
    pub body: String,
}

/// Changes that are written together: all of them or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Documents that are new or have changed.
    pub put: Vec<Document>,
    /// Keys of documents to remove. A missing document is no error. A document that is put as well stays.
    pub remove: Vec<(Kind, String)>,
    /// Entries to add to the log. An entry that is there already, byte for byte, is not added again.
    pub decisions: Vec<LoggedDecision>,
}

/// A selection of entries of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionFilter {
    /// Only entries of this tenant.
    pub namespace: Option<String>,
    /// Only entries that are not older than this.
    pub since: Option<Timestamp>,
    /// Only entries that are older than this.
    pub before: Option<Timestamp>,
    /// How many of the newest that match are left out. Many entries share a time, so pages are counted, from a fixed `before`.
    pub skip: usize,
    /// The maximum number of entries.
    pub limit: usize,
}
