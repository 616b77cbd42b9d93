//! What is kept, whatever it is kept in.

use jiff::Timestamp;

/// A kind of document that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One App's incident.
    Incident,
    /// Accusations that are not enforced.
    Exemption,
    /// Whether decisions take effect, over what the configuration says.
    Enforcement,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Incident, Self::Exemption, Self::Enforcement];

    /// The kind as it is kept.
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
    /// What it is.
    pub kind: Kind,
    /// Its name, one of its kind.
    pub name: String,
    /// What it says, as JSON: its text takes a tenth of what it takes apart.
    pub body: String,
}

/// One entry of the log of decisions, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedDecision {
    /// When, by our own wall clock.
    pub at: Timestamp,
    /// The tenant's namespace.
    pub namespace: String,
    /// The entry itself, as JSON.
    pub body: String,
}

/// What is written together: all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Documents that are new or have changed.
    pub put: Vec<Document>,
    /// Documents that go, by their keys; it is no error if one is not there. What is put as well stays.
    pub remove: Vec<(Kind, String)>,
    /// Entries that are added to the log. One that is there already, word for word, is not added again.
    pub decisions: Vec<LoggedDecision>,
}

/// Which entries of the log are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionFilter {
    /// Of this tenant only.
    pub namespace: Option<String>,
    /// Not older than this.
    pub since: Option<Timestamp>,
    /// Older than this.
    pub before: Option<Timestamp>,
    /// How many of the newest that match are left out. Many entries share a time, so pages are counted, from a fixed `before`.
    pub skip: usize,
    /// How many at most.
    pub limit: usize,
}
