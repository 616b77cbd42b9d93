//! Converts the persisted state to objects and back. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;
use kube::core::{DynamicObject, GroupVersionKind, ObjectMeta};
use kube::discovery::ApiResource;
use procscan_core::names::App;
use procscan_core::state::incident::AppRef;
use procscan_core::state::{
    Declaration, EnforcementSpec, ExemptionSpec, GROUP, Incident, IncidentStatus, VERSION,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Objects;
use crate::state::crd::Resource;
use crate::state::persisted_state::{IncidentEntry, ObjectVersion, UnreadExemption};

pub(super) fn api_resource(resource: Resource) -> ApiResource {
    let kind = GroupVersionKind::gvk(GROUP, VERSION, resource.kind());
    ApiResource::from_gvk_with_plural(&kind, resource.plural())
}

/// The plural with its group, as refusals name it.
pub(super) fn plural(resource: Resource) -> String {
    format!("{}.{GROUP}", resource.plural())
}

/// An incident as an object, with our `writer`'s mark in its status if it has one.
pub(super) fn body(
    namespace: &str,
    incident: &Incident,
    version: Option<String>,
    writer: Option<String>,
) -> DynamicObject {
    let metadata = ObjectMeta {
        name: Some(incident.name.clone()),
        namespace: Some(namespace.to_owned()),
        resource_version: version,
        ..ObjectMeta::default()
    };
    let data = match writer {
        Some(writer) => {
            let status = IncidentStatus { writer: Some(writer), ..incident.status.clone() };
            json!({"spec": incident.spec, "status": status})
        }
        None => json!({"spec": incident.spec}),
    };
    let mut object = DynamicObject::new(&incident.name, &api_resource(Resource::Incident)).data(data);
    object.metadata = metadata;
    object
}

impl Objects {
    /// A new object with this spec.
    pub(in crate::state) fn object(
        &self,
        resource: Resource,
        name: &str,
        spec: &impl Serialize,
    ) -> DynamicObject {
        let mut object = DynamicObject::new(name, &api_resource(resource)).data(json!({ "spec": spec }));
        object.metadata.namespace = Some(self.namespace.clone());
        object
    }
}

/// The incident in an object.
pub(super) fn read_incident(live: &DynamicObject) -> Result<IncidentEntry, String> {
    let status: Option<IncidentStatus> = match live.data.get("status") {
        None | Some(Value::Null) => None,
        Some(status) if status.as_object().is_some_and(serde_json::Map::is_empty) => None,
        Some(_) => Some(part(live, "status")?),
    };
    let generation = live.metadata.generation.unwrap_or(0);
    let incident = IncidentEntry::new(part(live, "spec")?, status.as_ref(), generation, manager(live))?;
    Ok(incident.with_version(version(live)))
}

/// The version of the object that was read.
pub(super) fn version(live: &DynamicObject) -> ObjectVersion {
    let mut uid = DefaultHasher::new();
    live.metadata.uid.hash(&mut uid);
    let mut status = Hashing(DefaultHasher::new());
    // Serializing can't fail: the value came from the API server as JSON.
    let _ = serde_json::to_writer(&mut status, live.data.get("status").unwrap_or(&Value::Null));
    let version = live.metadata.resource_version.as_deref().and_then(|version| version.parse().ok());
    ObjectVersion { uid: uid.finish(), version: version.unwrap_or(0), status: status.0.finish() }
}

/// Whether `version` is that of the object with this metadata.
pub(super) fn is_version_of(version: ObjectVersion, live: &ObjectMeta) -> bool {
    let mut uid = DefaultHasher::new();
    live.uid.hash(&mut uid);
    let number = live.resource_version.as_deref().and_then(|number| number.parse().ok());
    version.uid == uid.finish() && number.is_some_and(|number: u64| number != 0 && number == version.version)
}

/// Hashes the bytes that are written to it.
struct Hashing(DefaultHasher);

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether its status was ever written, by the API server's own record.
pub(super) fn was_written(live: &DynamicObject) -> bool {
    live.managed_fields().iter().any(|entry| entry.subresource.as_deref() == Some("status"))
}

/// The App of an incident, if it can be read.
pub(super) fn app_of(live: &DynamicObject) -> Option<App> {
    let app = AppRef::deserialize(live.data.pointer("/spec/app")?).ok()?;
    Some(App::from(&app))
}

/// The exemption if it is valid, or the error.
pub(super) fn exemption(live: &DynamicObject) -> Result<ExemptionSpec, UnreadExemption> {
    let spec = part(live, "spec").and_then(|spec: ExemptionSpec| {
        // By the API server's clock, because ours may be wrong.
        let declared = live.metadata.creation_timestamp.as_ref().map(|declared| declared.0);
        let rule = spec.rule().and_then(|_| declared.map_or(Ok(()), |declared| spec.check_until(declared)));
        rule.map_err(|error| format!("spec.{error}")).map(|()| spec)
    });
    let as_it_is = || live.data.get("spec").cloned().unwrap_or_default();
    spec.map_err(|error| UnreadExemption { error, spec: as_it_is() })
}

/// Reads `spec` or `status` of an object. The error names the place.
pub(in crate::state) fn part<T: DeserializeOwned>(live: &DynamicObject, name: &str) -> Result<T, String> {
    let value = live.data.get(name).unwrap_or(&Value::Null);
    serde_path_to_error::deserialize(value).map_err(|e| format!("{name}.{}: {}", e.path(), e.inner()))
}

/// The annotation of the Enforcement with the log of declarations for more than one App.
pub(in crate::state) const LOG: &str = "procscan-aggregator/declarations";

/// The entries of that log. An entry that only another version can read is left out.
pub(in crate::state) fn logged(live: &DynamicObject) -> Vec<Declaration> {
    let text = live.annotations().get(LOG).map_or("[]", String::as_str);
    let entries: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    entries.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect()
}

/// The mode in the Enforcement, with its time by the API server's record. `None` if there is none.
pub(super) fn declared_mode(live: &DynamicObject, spec: &EnforcementSpec) -> Option<Declaration> {
    let names_mode = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:spec"));
        fields.is_some_and(|fields| fields.get("f:mode").is_some())
    };
    let written = live.managed_fields().iter().filter(names_mode).filter_map(|entry| entry.time.as_ref());
    let at = written.max().map_or_else(|| created(live), |at| at.0);
    spec.mode.map(|_| Declaration::of_mode(spec, at))
}

/// When the object was made, by the API server's clock.
pub(super) fn created(live: &DynamicObject) -> Timestamp {
    live.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |created| created.0)
}

/// The program that last wrote a command.
fn manager(live: &DynamicObject) -> Option<String> {
    let has_command = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:spec"));
        let names_command =
            |fields: &Value| fields.get("f:approve").is_some() || fields.get("f:release").is_some();
        entry.subresource.as_deref().unwrap_or_default().is_empty() && fields.is_some_and(names_command)
    };
    let last = live.managed_fields().iter().filter(has_command).max_by_key(|entry| entry.time.clone());
    last.and_then(|entry| entry.manager.clone())
}
