//! A start that finds Apps blocked, with a state file in which nothing was decided. The file before may be lost, so
//! the service pauses.

use jiff::Timestamp;
use procscan_core::state::{Declaration, EnforcementSpec};
use serde_json::json;

use super::rows::{declared, enforced};
use super::{FileStore, PersistedState};
use crate::state::{Batch, StateError};

/// The reason of the pause.
const NEW_FILE: &str = "Apps were blocked, and the state file was new: if there was one before, what operators declared and what \
    brakes held is lost with it; before `resume`, look at `incidents --state watched`: each App that it lists and that is still \
    accused may be blocked then; release or exempt those that must not be blocked";

impl FileStore {
    /// For a start that finds Apps blocked: if nothing was decided with this file yet, the file goes on as after
    /// damage.
    ///
    /// That holds too if an earlier start made the file and was killed before it could persist the pause. It also
    /// holds if operators have declared exemptions since. A mode that they have declared takes precedence.
    pub(crate) async fn begin_after_loss(&self) -> Result<(), StateError> {
        let is_new = self.0.inner.lock().await.is_new;
        let Some(spec) = self.0.after_loss.clone().filter(|_| is_new) else { return Ok(()) };
        let spec = EnforcementSpec { reason: Some(NEW_FILE.to_owned()), ..spec };
        let mut is_changed = false;
        let change = |state: &mut PersistedState| {
            if state.enforcement != EnforcementSpec::default() {
                return Ok(Batch::default());
            }
            is_changed = true;
            state.enforcement = spec.clone();
            let entry = declared(&Declaration::of_mode(&spec, Timestamp::now()))?;
            Ok(Batch { put: vec![enforced(&spec)?], decisions: vec![entry], ..Batch::default() })
        };
        self.change::<StateError>(change).await?;
        if is_changed {
            tracing::error!(
                alert = "state",
                mode = json!(spec.mode).as_str(),
                directory = %self.0.directory.display(),
                "Apps are blocked, and the state file is new. If there was one before, operators' releases, exemptions \
                 and mode are lost with it, what brakes held, and what counts in their window. Before `resume`, look at \
                 `incidents --state watched`: each App that it lists and that is still accused may be blocked then. \
                 Release or exempt those that must not be blocked"
            );
        }
        Ok(())
    }
}
