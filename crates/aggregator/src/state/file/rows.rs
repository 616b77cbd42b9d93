//! The rows of the state file: converts documents to a [`PersistedState`] and back.

use std::sync::Arc;

use procscan_core::names::App;
use procscan_core::state::incident::{AppRef, IncidentDecision};
use procscan_core::state::{
    Declaration, EnforcementSpec, ExemptionSpec, IncidentSpec, IncidentStatus, enforcement,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::state::{
    Batch, Document, IncidentEntry, Kind, LoggedDecision, PersistedState, StateError, UnreadExemption,
    Unreadable,
};

/// An incident's row, for reading.
#[derive(Deserialize)]
struct Body {
    spec: IncidentSpec,
    status: Option<IncidentStatus>,
    generation: i64,
}

/// An incident's row, for writing.
#[derive(Serialize)]
struct BodyRef<'a> {
    spec: &'a IncidentSpec,
    status: Option<&'a IncidentStatus>,
    generation: i64,
}

/// An entry of the log.
#[derive(Serialize)]
struct DecisionRow<'a> {
    incident: &'a str,
    app: &'a AppRef,
    decision: &'a IncidentDecision,
}

pub(super) fn document(name: &str, incident: &IncidentEntry) -> Result<Document, StateError> {
    // A status that can't be decompressed must not be written as if nothing had been decided.
    let status =
        incident.status().map_err(|error| StateError::Unwritable(place(Kind::Incident, name), error))?;
    written(name, &incident.spec(), status.as_ref(), incident.generation)
}

pub(super) fn incident(
    name: &str,
    spec: IncidentSpec,
    status: Option<&IncidentStatus>,
    generation: i64,
) -> Result<IncidentEntry, StateError> {
    IncidentEntry::new(spec, status, generation, None)
        .map_err(|error| StateError::Unwritable(place(Kind::Incident, name), error))
}

pub(super) fn written(
    name: &str,
    spec: &IncidentSpec,
    status: Option<&IncidentStatus>,
    generation: i64,
) -> Result<Document, StateError> {
    let body = BodyRef { spec, status, generation };
    Ok(Document { kind: Kind::Incident, name: name.to_owned(), body: json(Kind::Incident, name, &body)? })
}

pub(super) fn exempted(name: &str, spec: &ExemptionSpec) -> Result<Document, StateError> {
    Ok(Document { kind: Kind::Exemption, name: name.to_owned(), body: json(Kind::Exemption, name, spec)? })
}

pub(super) fn enforced(spec: &EnforcementSpec) -> Result<Document, StateError> {
    let (kind, name) = (Kind::Enforcement, enforcement::NAME);
    Ok(Document { kind, name: name.to_owned(), body: json(kind, name, spec)? })
}

fn json(kind: Kind, name: &str, of: &impl Serialize) -> Result<String, StateError> {
    // Serializing our types can't fail. An error is still returned, so that nothing is lost silently.
    serde_json::to_string(of).map_err(|e| StateError::Unwritable(place(kind, name), e.to_string()))
}

fn place(kind: Kind, name: &str) -> String {
    format!("{} {name}", kind.as_str())
}

pub(super) fn logged(
    name: &str,
    spec: &IncidentSpec,
    status: &IncidentStatus,
) -> Result<Vec<LoggedDecision>, StateError> {
    let entry = |decision: &IncidentDecision| {
        let entry = DecisionRow { incident: name, app: &spec.app, decision };
        Ok(LoggedDecision {
            at: decision.at,
            namespace: spec.app.namespace.to_string(),
            body: json(Kind::Incident, name, &entry)?,
        })
    };
    status.decisions.iter().map(entry).collect()
}

/// An entry of the log that belongs to no App, and so to no tenant.
pub(super) fn declared(declaration: &Declaration) -> Result<LoggedDecision, StateError> {
    let body = json(Kind::Enforcement, enforcement::NAME, declaration)?;
    Ok(LoggedDecision { at: declaration.at, namespace: String::new(), body })
}

/// The whole state, to be written into an empty file, with the unreadable rows unchanged.
pub(super) fn everything(state: &PersistedState, unreadable: &[Document]) -> Result<Batch, StateError> {
    let mut batch = Batch { put: unreadable.to_vec(), ..Batch::default() };
    for (name, incident) in &state.incidents {
        batch.put.push(document(name, incident)?);
        if let Ok(Some(status)) = incident.status() {
            batch.decisions.extend(logged(name, &incident.spec(), &status)?);
        }
    }
    for (name, spec) in &state.exemptions {
        batch.put.push(exempted(name, spec)?);
    }
    if state.is_complete {
        batch.put.push(enforced(&state.enforcement)?);
    }
    Ok(batch)
}

/// The content of the rows of a file.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// The rows that can be read. Complete unless the Enforcement can't be read.
    pub(super) persisted: PersistedState,
    /// The rows that can't be read, unchanged.
    pub(super) unreadable: Vec<Document>,
    /// Why the Enforcement can't be read.
    pub(super) enforcement: Option<StateError>,
}

impl Rows {
    pub(super) fn of(documents: &[Document]) -> Self {
        let mut rows = Self {
            persisted: PersistedState { is_complete: true, ..PersistedState::default() },
            ..Self::default()
        };
        for document in documents {
            if !rows.take(document) {
                rows.unreadable.push(document.clone());
            }
        }
        rows
    }

    /// Takes a row. Returns whether it could be read.
    fn take(&mut self, Document { kind, name, body }: &Document) -> bool {
        let unread = &mut self.persisted.unread;
        match kind {
            Kind::Incident => match read_incident(name, body) {
                Ok(incident) => {
                    self.persisted.incidents.insert(name.as_str().into(), Arc::new(incident));
                }
                Err(error) => {
                    unread.incidents.insert(name.as_str().into(), error);
                    return false;
                }
            },
            Kind::Exemption => match read(body) {
                Ok(spec) => drop(self.persisted.exemptions.insert(name.clone(), spec)),
                Err(error) => {
                    let spec = serde_json::from_str(body).unwrap_or_default();
                    unread.exemptions.insert(name.clone(), UnreadExemption { error, spec });
                    return false;
                }
            },
            Kind::Enforcement => match read(body) {
                Ok(spec) => self.persisted.enforcement = spec,
                Err(error) => {
                    self.persisted.is_complete = false;
                    self.enforcement = Some(StateError::Unreadable(place(*kind, name), error));
                    return false;
                }
            },
        }
        true
    }
}

/// Whether a row is still one of those that can't be read, by `state`.
pub(super) fn is_unreadable(state: &PersistedState, Document { kind, name, .. }: &Document) -> bool {
    match kind {
        Kind::Incident => state.unread.incidents.contains_key(&**name),
        Kind::Exemption => state.unread.exemptions.contains_key(name),
        Kind::Enforcement => !state.is_complete,
    }
}

/// The parts of an incident that can be read although the whole can't.
pub(super) fn unreadable(document: &Document, error: &str) -> Unreadable {
    let body: Value = serde_json::from_str(&document.body).unwrap_or_default();
    let app = body.pointer("/spec/app").and_then(|app| AppRef::deserialize(app).ok());
    Unreadable { app: app.as_ref().map(App::from), error: error.to_owned() }
}

fn read_incident(name: &str, body: &str) -> Result<IncidentEntry, String> {
    let Body { spec, status, generation } = read(body)?;
    incident(name, spec, status.as_ref(), generation).map_err(|error| error.to_string())
}

/// The content of a row, or an error with its place.
fn read<T: DeserializeOwned>(body: &str) -> Result<T, String> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(body))
        .map_err(|error| format!("{}: {}", error.path(), error.inner()))
}
