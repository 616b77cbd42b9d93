//! Takes the commands of operators, in any replica. A command is persisted first, and the leader carries it out.

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, ResourceExt};
use procscan_core::state::incident::{Approval, Release};
use procscan_core::state::{Declaration, EnforcementSpec, ExemptionSpec, enforcement};
use serde_json::{Value, json};

use super::cluster::objects::{LOG, logged, part};
use super::cluster::{FIELD_MANAGER, Objects};
use super::command::{IncidentRequest, OperatorCommandError};
use super::crd::Resource;
use super::file::FileStore;
use super::{DecisionFilter, LoggedDecision, StateError};
use crate::kubernetes::{Refusal, RefusalKind};

/// How many times a write is tried again because another program wrote at the same time.
const MAX_RETRIES: usize = 5;
/// How many times, and after which pause, it is checked whether the leader has removed a command that it has carried out.
const MAX_CHECKS: usize = 20;
const CHECK_PAUSE: Duration = Duration::from_millis(150);

/// The field manager of the log. The API server renews the time of a manager with each of its writes. The mode counts
/// from the time of the manager that has written it.
const LOG_MANAGER: &str = "procscan-aggregator-log";
/// How long the answer to a declaration waits for the entry in the log.
const LOG_TIMEOUT: Duration = Duration::from_secs(2);
/// How many entries the log of declarations has in a cluster, and how many bytes: all annotations of an object together may have
/// 256 KiB.
const MAX_LOG_ENTRIES: usize = 50;
const MAX_LOG_BYTES: usize = 96 << 10;

/// Where the commands of operators are persisted.
#[derive(Clone, Debug)]
pub enum OperatorCommands {
    /// Into objects in the cluster.
    Cluster(Objects),
    /// Into the file.
    File(FileStore),
    /// Nowhere: the process takes no commands of operators.
    Unavailable,
}

impl OperatorCommands {
    /// The decisions that are logged beside the incidents, the latest first: in a file, there are more than the incidents have.
    pub(crate) async fn logged(&self, filter: DecisionFilter) -> Result<Vec<LoggedDecision>, StateError> {
        match self {
            Self::File(store) => store.decisions(filter).await,
            Self::Cluster(_) | Self::Unavailable => Ok(Vec::new()),
        }
    }

    /// The wall time by which dates are judged: the API server's if it is known, otherwise this replica's.
    pub(crate) fn wall_time(&self) -> Timestamp {
        let server = match self {
            Self::Cluster(objects) => objects.cluster.server_time(),
            Self::File(_) | Self::Unavailable => None,
        };
        server.unwrap_or_else(Timestamp::now)
    }

    /// Approves a decision that a brake holds. Returns the number of the command: it is carried out once the incident has observed
    /// this number.
    pub(crate) async fn approve(
        &self,
        incident: &str,
        approval: Approval,
    ) -> Result<i64, OperatorCommandError> {
        self.submit(incident, IncidentRequest::Approve(approval)).await
    }

    /// Releases an App. Returns the number of the command.
    pub(crate) async fn release(
        &self,
        incident: &str,
        release: Release,
    ) -> Result<i64, OperatorCommandError> {
        self.submit(incident, IncidentRequest::Release(release)).await
    }

    async fn submit(&self, incident: &str, request: IncidentRequest) -> Result<i64, OperatorCommandError> {
        let (operator_commands, incident) = (self.clone(), incident.to_owned());
        to_completion(async move {
            match operator_commands {
                Self::Cluster(objects) => objects.submit(&incident, &request).await,
                Self::File(store) => store.submit(&incident, &request).await,
                Self::Unavailable => Err(unavailable()),
            }
        })
        .await
    }

    /// Declares an exemption.
    pub(crate) async fn add_exemption(
        &self,
        name: &str,
        exemption: &ExemptionSpec,
    ) -> Result<(), OperatorCommandError> {
        let checked = exemption.rule().and_then(|_| exemption.check_until(self.wall_time()));
        checked.map_err(|error| OperatorCommandError::Invalid(error.to_string()))?;
        let (operator_commands, name, exemption) = (self.clone(), name.to_owned(), exemption.clone());
        to_completion(async move {
            match operator_commands {
                Self::Cluster(objects) => objects.add_exemption(&name, &exemption).await,
                Self::File(store) => store.add_exemption(&name, &exemption).await,
                Self::Unavailable => Err(unavailable()),
            }
        })
        .await
    }

    /// Removes an exemption for the operator `by`. `seen` is the exemption as the caller has read it, for the log.
    pub(crate) async fn remove_exemption(
        &self,
        name: &str,
        by: &str,
        seen: Option<&ExemptionSpec>,
    ) -> Result<(), OperatorCommandError> {
        let (operator_commands, name, by, seen) =
            (self.clone(), name.to_owned(), by.to_owned(), seen.cloned());
        to_completion(async move {
            match operator_commands {
                Self::Cluster(objects) => objects.remove_exemption(&name, &by, seen).await,
                Self::File(store) => store.remove_exemption(&name, &by).await,
                Self::Unavailable => Err(unavailable()),
            }
        })
        .await
    }

    /// Sets the mode.
    pub async fn set_enforcement(&self, enforcement: &EnforcementSpec) -> Result<(), OperatorCommandError> {
        let (operator_commands, enforcement) = (self.clone(), enforcement.clone());
        to_completion(async move {
            match operator_commands {
                Self::Cluster(objects) => objects.set_enforcement(&enforcement).await,
                Self::File(store) => store.set_enforcement(&enforcement).await,
                Self::Unavailable => Err(unavailable()),
            }
        })
        .await
    }
}

/// Carries out a command in a task of its own. A request is dropped when its client disconnects, and a command that stops halfway
/// would count and be in no log.
async fn to_completion<T: Send + 'static>(
    command: impl Future<Output = Result<T, OperatorCommandError>> + Send + 'static,
) -> Result<T, OperatorCommandError> {
    let ended_early = |_| {
        Err(OperatorCommandError::NotPersisted(
            "it is not known whether the command was carried out; check before you try again".to_owned(),
        ))
    };
    tokio::spawn(command).await.unwrap_or_else(ended_early)
}

impl Objects {
    async fn submit(&self, name: &str, request: &IncidentRequest) -> Result<i64, OperatorCommandError> {
        let api = self.api(Resource::Incident);
        let (field, value) = match request {
            IncidentRequest::Approve(approval) => ("approve", json!(approval)),
            IncidentRequest::Release(release) => ("release", json!(release)),
        };
        let (mut tries, mut checks) = (MAX_RETRIES, MAX_CHECKS);
        loop {
            let live = match self.get(Resource::Incident, name).await {
                Err(refusal) if refusal.kind == RefusalKind::NotFound => {
                    return Err(OperatorCommandError::Unknown("incident", name.to_owned()));
                }
                live => live?,
            };
            let is_requested = |field: &str| live.data.pointer(&format!("/spec/{field}")).is_some();
            let observed = live.data.pointer("/status/observed").and_then(Value::as_i64).unwrap_or(0);
            if is_requested("approve") || is_requested("release") {
                let generation = live.metadata.generation.unwrap_or(0);
                // A greater number belongs to another object of that name, or to the time after a backup that was restored.
                if generation == observed {
                    // The command seems to be carried out, but only the leader knows for certain, and removes it then. Until
                    // then it must not be lost, and must not be carried out again together with the next command.
                    if checks == 0 {
                        return Err(OperatorCommandError::Busy(name.to_owned()));
                    }
                    checks -= 1;
                    tokio::time::sleep(CHECK_PAUSE).await;
                    continue;
                }
                if is_requested(field) {
                    return Err(OperatorCommandError::Busy(name.to_owned()));
                }
            }
            let patch = json!({
                "metadata": {"resourceVersion": live.resource_version()},
                "spec": {field: value},
            });
            let ask = self.ask("patch", "incidents.procscan.sealos.io").of(name);
            match self.cluster.ask(ask, api.patch(name, &by_us(), &Patch::Merge(&patch))).await {
                Ok(live) => return Ok(live.metadata.generation.unwrap_or(0)),
                Err(refusal) if refusal.kind == RefusalKind::Conflict && tries > 0 => tries -= 1,
                Err(refusal) if refusal.kind == RefusalKind::Conflict => {
                    return Err(OperatorCommandError::Busy(name.to_owned()));
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    async fn add_exemption(&self, name: &str, exemption: &ExemptionSpec) -> Result<(), OperatorCommandError> {
        let object = self.object(Resource::Exemption, name, exemption);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let ask = self.ask("create", "exemptions.procscan.sealos.io");
        match self.cluster.ask(ask, self.api(Resource::Exemption).create(&params, &object)).await {
            Ok(_) => {
                self.log_declaration(Declaration::of_exemption(name, exemption, self.wall_time())).await;
                Ok(())
            }
            Err(refusal) if refusal.kind == RefusalKind::Conflict => {
                Err(OperatorCommandError::Exists("exemption", name.to_owned()))
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn remove_exemption(
        &self,
        name: &str,
        by: &str,
        seen: Option<ExemptionSpec>,
    ) -> Result<(), OperatorCommandError> {
        let ask = self.ask("delete", "exemptions.procscan.sealos.io").of(name);
        match self
            .cluster
            .ask(ask, self.api(Resource::Exemption).delete(name, &DeleteParams::default()))
            .await
        {
            Ok(gone) => {
                // The API server answers with the object or, most often, with a status only.
                let spec = gone.left().and_then(|gone| part::<ExemptionSpec>(&gone, "spec").ok()).or(seen);
                let at = self.wall_time();
                self.log_declaration(Declaration::of_withdrawal(name, spec.as_ref(), by, at)).await;
                Ok(())
            }
            Err(refusal) if refusal.kind == RefusalKind::NotFound => {
                Err(OperatorCommandError::Unknown("exemption", name.to_owned()))
            }
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn set_enforcement(&self, spec: &EnforcementSpec) -> Result<(), OperatorCommandError> {
        let api: Api<DynamicObject> = self.api(Resource::Enforcement);
        // Absent fields are null in the patch, so that their old values are removed.
        let EnforcementSpec { mode, reason, by } = spec;
        let patch = json!({"spec": {"mode": mode, "reason": reason, "by": by}});
        let ask = self.ask("patch", "enforcements.procscan.sealos.io").of(enforcement::NAME);
        match self.cluster.ask(ask, api.patch(enforcement::NAME, &by_us(), &Patch::Merge(&patch))).await {
            Err(refusal) if refusal.kind == RefusalKind::NotFound => {
                self.create_enforcement(spec).await.map(drop)
            }
            patched => patched.map(drop),
        }?;
        self.log_declaration(Declaration::of_mode(spec, self.wall_time())).await;
        Ok(())
    }

    async fn create_enforcement(&self, spec: &EnforcementSpec) -> Result<DynamicObject, Refusal> {
        let object = self.object(Resource::Enforcement, enforcement::NAME, spec);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let ask = self.ask("create", "enforcements.procscan.sealos.io");
        self.cluster.ask(ask, self.api(Resource::Enforcement).create(&params, &object)).await
    }

    fn wall_time(&self) -> Timestamp {
        self.cluster.server_time().unwrap_or_else(Timestamp::now)
    }

    /// Enters a declaration into the log: an annotation of the Enforcement, which every replica sees and which outlasts restarts. If
    /// that fails, the declaration counts all the same, and only this replica's own log has it.
    ///
    /// The declaration counts already, so its answer waits for the entry for a short time only. The entry is made after that.
    async fn log_declaration(&self, declaration: Declaration) {
        let objects = self.clone();
        let entry = tokio::spawn(async move {
            if let Err(refusal) = objects.append_to_log(&declaration).await {
                let Declaration { decision, actor, reason, .. } = &declaration;
                let (decision, error) = (decision.as_str(), refusal.text);
                tracing::warn!(decision, %actor, %reason, error, "an operator's declaration counts, but is not in the log of decisions");
            }
        });
        let _ = tokio::time::timeout(LOG_TIMEOUT, entry).await;
    }

    async fn append_to_log(&self, declaration: &Declaration) -> Result<(), Refusal> {
        let api: Api<DynamicObject> = self.api(Resource::Enforcement);
        let patch = async |patch: &Value| {
            let ask = self.ask("patch", "enforcements.procscan.sealos.io").of(enforcement::NAME);
            let by_the_log =
                PatchParams { field_manager: Some(LOG_MANAGER.into()), ..PatchParams::default() };
            self.cluster.ask(ask, api.patch(enforcement::NAME, &by_the_log, &Patch::Merge(patch))).await
        };
        let mut tries = MAX_RETRIES;
        loop {
            // An empty patch is answered with the object, so that no right to read a single one is needed.
            let live = match patch(&json!({})).await {
                Err(refusal) if refusal.kind == RefusalKind::NotFound => {
                    self.create_enforcement(&EnforcementSpec::default()).await
                }
                live => live,
            };
            let entered = match live {
                Ok(live) => {
                    let log = with_entry(logged(&live), declaration);
                    let version = live.resource_version();
                    patch(&json!({"metadata": {"resourceVersion": version, "annotations": {LOG: log}}})).await
                }
                Err(refusal) => Err(refusal),
            };
            match entered {
                Ok(_) => return Ok(()),
                Err(refusal) if refusal.kind == RefusalKind::Conflict && tries > 0 => tries -= 1,
                Err(refusal) => return Err(refusal),
            }
        }
    }
}

/// The text of the log with one more entry. The oldest entries are removed, but never the last one about the mode: it has the time
/// and the operator of the present mode.
fn with_entry(mut log: Vec<Declaration>, declaration: &Declaration) -> String {
    log.push(declaration.clone());
    // The entry of an earlier command may come later, because no command waits for its entry.
    log.sort_by_key(|entry| entry.at);
    loop {
        // Serializing our types can't fail.
        let text = serde_json::to_string(&log).unwrap_or_default();
        let mode = log.iter().rposition(|entry| entry.exemption.is_none());
        let oldest = usize::from(mode == Some(0));
        // At least one other entry stays.
        if (log.len() <= MAX_LOG_ENTRIES && text.len() <= MAX_LOG_BYTES) || oldest + 1 >= log.len() {
            return text;
        }
        log.remove(oldest);
    }
}

fn unavailable() -> OperatorCommandError {
    OperatorCommandError::NotPersisted("this process takes no requests of operators".to_owned())
}

fn by_us() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}
