//! What our files block, as a start finds them.

use jiff::Timestamp;
use procscan_core::policy::InheritedBlock;
use procscan_core::resources::notification;
use procscan_core::resources::wasm_plugin::{self, Gateway};
use serde_json::Value;

use super::found::{Found, parse};
use super::{Directory, DirectoryError, file_of, first_of, has_kubernetes_names, shard};
use crate::output::persisted_blocks::{ListedBlocks, PersistedBlocks};

impl Directory {
    /// The Apps that our `WasmPlugin`s block now: what a start inherits. A damaged file is an error, unless the persisted
    /// Incidents say what it blocked: then the answer leaves it out.
    ///
    /// They say it if they name each App and each Service that can still be read in our files. If they lack one, the state
    /// is older than the files, and may also lack Apps that can't be read any more. Where nothing can be read, the
    /// Incidents count as well, because each block is persisted before it is written.
    ///
    /// When their tenants were told is in the Notifications.
    pub fn blocked(
        &self,
        gateway: &Gateway,
        persisted: Option<&PersistedBlocks>,
    ) -> Result<Vec<InheritedBlock>, DirectoryError> {
        let (mut plugins, mut damaged) = (Vec::new(), Vec::new());
        let shards = self.shards(gateway)?;
        for (name, found) in &shards {
            match found.plugin() {
                Ok(plugin) => plugins.extend(plugin),
                Err(problem) => damaged.push((name, found, problem)),
            }
        }
        if let Some((name, _, problem)) = damaged.first() {
            let error =
                |problem| DirectoryError { path: self.path.join(name).display().to_string(), problem };
            let Some(persisted) = persisted else {
                let next = "can't be read, so what is blocked is not known; repair or remove it";
                return Err(error(format!("{next}: {problem}")));
            };
            let mut listed = ListedBlocks::default();
            shards.iter().filter_map(|(_, found)| found.text()).for_each(|text| listed.read(text));
            if let Some(unknown) = first_of(persisted.lacks(&listed).into_iter()) {
                return Err(error(format!(
                    "can't be read ({problem}), and no Incident is persisted of blocks that our files list: {unknown}. The state is \
                     probably older than the file, so what is blocked is not known. Restore the latest state, or repair the \
                     file, or remove it if what it closed may be opened"
                )));
            }
        }
        for (name, found, problem) in damaged {
            let mut listed = ListedBlocks::default();
            found.text().into_iter().for_each(|text| listed.read(text));
            tracing::warn!(
                file = %self.path.join(name).display(),
                problem,
                legible = !listed.is_empty(),
                "a file of ours is damaged: the persisted Incidents say what stays closed"
            );
        }
        let mut blocked = wasm_plugin::blocked(&plugins, gateway);
        for inherited in &mut blocked {
            let app = &inherited.app;
            // The file may have been edited, so the namespace may be no Kubernetes name.
            if !has_kubernetes_names(&app.namespace, &notification::name(app)) {
                continue;
            }
            let Some(object) = self.read(&file_of(app)).and_then(|text| parse(&text).ok()) else { continue };
            let told =
                object.pointer("/metadata/annotations").and_then(|all| all.get(notification::INCIDENT));
            inherited.told = told.and_then(Value::as_str).and_then(|told| told.parse::<Timestamp>().ok());
        }
        Ok(blocked)
    }

    /// Whether the directory can be read, whatever the files in it are.
    pub fn check(&self) -> Result<(), DirectoryError> {
        self.names().map(drop)
    }

    /// The files of our `WasmPlugin`s, ordered by name.
    fn shards(&self, gateway: &Gateway) -> Result<Vec<(String, Found)>, DirectoryError> {
        let mut names = self.names()?;
        names.sort();
        let ours = names.into_iter().filter(|name| shard(name, gateway).is_some());
        Ok(ours.filter_map(|name| self.find(&name).map(|found| (name, found))).collect())
    }
}
