//! `check-config`: checks a configuration.

use std::path::Path;

use super::service::environment;
use super::{CommandError, printed};
use crate::config::Config;

pub(super) fn check_config(path: &Path) -> Result<(), CommandError> {
    let config = Config::load(path, environment())?;
    warn(&config);
    Ok(printed::print(&format!("{}: valid\n", path.display()))?)
}

/// Prints the warnings: values that are valid and probably a mistake.
pub(super) fn warn(config: &Config) {
    for warning in &config.warnings {
        printed::note(format_args!("warning: {warning}"));
    }
}
