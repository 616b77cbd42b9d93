//! Which parts of a configuration a running service takes.

use serde_json::Value;

use super::{Config, ConfigError};

impl Config {
    /// This configuration with all of `new` that a running service takes: the level of the log, what may be blocked and how
    /// much of it at once, what the objects look like, and the texts to tenants. Fails if that does not hold together.
    pub(crate) fn with_reloaded(&self, new: &Self) -> Result<Self, ConfigError> {
        let mut reloaded = self.clone();
        reloaded.logger.level = new.logger.level;
        reloaded.enforcement = new.enforcement.clone();
        // Whether Pods are looked at decides which tasks run.
        reloaded.enforcement.verify_pods = self.enforcement.verify_pods;
        reloaded.brake = new.brake.clone();
        reloaded.notification = new.notification.clone();
        reloaded.gateway = new.gateway.clone();
        // Objects in another namespace, and other shards, are taken over at the start of a term only.
        reloaded.gateway.namespace.clone_from(&self.gateway.namespace);
        reloaded.gateway.max_object_size = self.gateway.max_object_size;
        // The look-ups ask for routes by this number. With another one in the output, blocked Services would have no room.
        reloaded.gateway.max_service_entries = self.gateway.max_service_entries;
        // The summary in the old namespace would stay as it is.
        reloaded.notification.summary_namespace.clone_from(&self.notification.summary_namespace);
        let problems = reloaded.check().problems;
        if problems.is_empty() {
            return Ok(reloaded);
        }
        let line = |problem: &super::checks::Problem| {
            format!("{}: only after a restart, together with other keys: {}", problem.path, problem.text)
        };
        Err(ConfigError::of(problems.iter().map(line).collect()))
    }

    /// The keys whose values differ in `other`.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let value = |config: &Self| serde_json::to_value(config).unwrap_or_default();
        let mut found = Vec::new();
        compare("", &value(self), &value(other), &mut found);
        found
    }
}

/// Sections have keys; the value of a key is compared as a whole.
fn compare(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) if path.is_empty() || !path.contains('.') => {
            for (key, value) in a {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, value, b.get(key).unwrap_or(&Value::Null), found);
            }
        }
        _ if a != b => found.push(path.to_owned()),
        _ => {}
    }
}
