//! Requests about one object.

use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use procscan_core::resources::Object;
use serde_json::Value;

use super::live::{Live, named, resource};
use super::{ClusterOutput, FIELD_MANAGER};
use crate::counters::WriteResult;
use crate::kubernetes::{Ask, Refusal, RefusalKind};

fn ask_for<'a>(verb: &'static str, plural: &'a str, object: &'a Object) -> Ask<'a> {
    Ask { verb, resource: plural, namespace: Some(&object.metadata.namespace), name: None }
}

impl ClusterOutput {
    pub(super) async fn read(&self, object: &Object) -> Result<Option<Live>, Refusal> {
        let resource = resource(object.kind);
        let plural = object.kind.resource();
        let ask = ask_for("get", &plural, object).of(&object.metadata.name);
        match self.cluster.ask_in_turn(ask, self.api(object, &resource).get(&object.metadata.name)).await {
            Ok(live) => Ok(Some(live)),
            Err(refusal) if refusal.kind == RefusalKind::NotFound => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Creates an object that was not there. If another writer has created it by now, this is an error, and the next pass
    /// looks again.
    pub(super) async fn create(&self, object: &Object) -> Result<Live, Refusal> {
        let resource = resource(object.kind);
        let plural = object.kind.resource();
        let ask = ask_for("create", &plural, object);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let body: Live = serde_json::to_value(object).and_then(serde_json::from_value).map_err(|error| {
            Refusal { kind: RefusalKind::Invalid, subject: named(object), text: error.to_string() }
        })?;
        let answer =
            self.cluster.write(&self.permit, ask, self.api(object, &resource).create(&params, &body)).await;
        self.counted(object, answer)
    }

    pub(super) async fn apply(&self, object: &Object, version: Option<String>) -> Result<Live, Refusal> {
        let mut body = serde_json::to_value(object).unwrap_or_default();
        if let (Some(version), Some(metadata)) =
            (version, body.pointer_mut("/metadata").and_then(Value::as_object_mut))
        {
            metadata.insert("resourceVersion".to_owned(), version.into());
        }
        let params = PatchParams::apply(FIELD_MANAGER).force().validation_strict();
        self.patch(object, &params, &Patch::Apply(&body)).await
    }

    pub(super) async fn patch(
        &self,
        object: &Object,
        params: &PatchParams,
        patch: &Patch<&Value>,
    ) -> Result<Live, Refusal> {
        let resource = resource(object.kind);
        let plural = object.kind.resource();
        let ask = ask_for("patch", &plural, object).of(&object.metadata.name);
        let api = self.api(object, &resource);
        let answer =
            self.cluster.write(&self.permit, ask, api.patch(&object.metadata.name, params, patch)).await;
        self.counted(object, answer)
    }

    /// Counts a write, and names the object in its refusal.
    fn counted(&self, object: &Object, answer: Result<Live, Refusal>) -> Result<Live, Refusal> {
        let result = if answer.is_ok() { WriteResult::Written } else { WriteResult::Failed };
        self.cluster.counters().output_write(object.kind.name(), result);
        answer.map_err(|refusal| Refusal { text: format!("{}: {}", named(object), refusal.text), ..refusal })
    }

    fn api(&self, object: &Object, resource: &ApiResource) -> Api<Live> {
        Api::namespaced_with(self.cluster.client(), &object.metadata.namespace, resource)
    }
}
