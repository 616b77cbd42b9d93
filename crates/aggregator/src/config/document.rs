//! Reads a configuration from YAML and from the environment, and says where each value was written.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use serde_json::Value;

use super::checks::{ConfigError, Problem, one_line};
use super::{Config, environment, tree, values};

/// Where the values of a configuration were written.
#[derive(Debug)]
pub(super) struct Origin {
    /// The name of the file in errors.
    name: String,
    /// What the file has.
    file: Value,
    /// What the file and the environment have together.
    tree: Value,
    /// The variable that has set each path.
    variables: BTreeMap<String, String>,
}

/// Reads `text`, with the values of the environment's `variables` in place of the file's; `name` is the file's name in
/// errors. The values are well-formed, and not validated.
pub(super) fn read(
    text: &str,
    name: &str,
    variables: impl IntoIterator<Item = (String, OsString)>,
) -> Result<(Config, Origin), ConfigError> {
    let mut tree = tree::parse_yaml(text).map_err(|problem| ConfigError::new(name, problem))?;
    if tree.is_null() {
        tree = Value::Object(serde_json::Map::new());
    }
    if !tree.is_object() {
        return Err(ConfigError::new(name, "expected sections such as `aggregator:`, each with its keys"));
    }
    let file = tree.clone();
    let variables = environment::apply(&mut tree, variables)?;
    let empty = tree::nulls(&tree);
    tree::drop_nulls(&mut tree);
    let origin = Origin { name: name.to_owned(), file, tree, variables };
    for key in empty {
        // A key without a value is no mistake, but there has to be such a key.
        if let Err(e) = serde_path_to_error::deserialize::<_, Config>(&key)
            && e.inner().to_string().starts_with("unknown field")
        {
            return Err(origin.refused(e));
        }
    }
    if let Some((path, problem)) = tree::misplaced_list(&origin.tree) {
        return Err(ConfigError::new(origin.place(&path), problem));
    }
    let config = serde_path_to_error::deserialize(&origin.tree).map_err(|e| origin.refused(e))?;
    Ok((config, origin))
}

impl Config {
    /// The sections that a file has, with or without keys in them. None if it is no configuration.
    pub(crate) fn sections_of(text: &str) -> BTreeSet<String> {
        let tree = tree::parse_yaml(text).unwrap_or_default();
        tree.as_object().into_iter().flat_map(|sections| sections.keys().cloned()).collect()
    }
}

impl Origin {
    /// The place of `path` in errors: the variable that has set it, or the file and the path.
    fn place(&self, path: &str) -> String {
        // A section that only the environment names is its mistake as a whole.
        let below = || self.variables.iter().find(|(set, _)| set.starts_with(&format!("{path}.")));
        let is_in_file = values::at(&self.file, path).is_some();
        let by_variable = self.variables.get(path);
        match by_variable.or_else(|| below().filter(|_| !is_in_file).map(|(_, variable)| variable)) {
            Some(variable) => variable.clone(),
            None => format!("{}: {path}", self.name),
        }
    }

    /// Whether the file or the environment has `path`.
    pub(super) fn is_written(&self, path: &str) -> bool {
        values::at(&self.tree, path).is_some()
    }

    /// `problems` for operators, each on one line after its place. A duration or a size is shown as it was written.
    pub(super) fn lines(&self, problems: &[Problem]) -> Vec<String> {
        let line = |Problem { path, value, text }: &Problem| {
            let value = value.as_ref().map(|value| {
                let written = values::at(&self.tree, path).and_then(Value::as_str);
                let written = written.filter(|written| values::is_quantity(written, value));
                format!("invalid value {}: ", written.unwrap_or(value))
            });
            one_line(&format!("{}: {}{text}", self.place(path), value.unwrap_or_default()))
        };
        problems.iter().map(line).collect()
    }

    fn refused(&self, e: serde_path_to_error::Error<serde_json::Error>) -> ConfigError {
        let path = e.path().to_string();
        let problem = tree::explain(&e.into_inner().to_string(), values::at(&self.tree, &path));
        ConfigError::new(if path == "." { self.name.clone() } else { self.place(&path) }, problem)
    }
}
