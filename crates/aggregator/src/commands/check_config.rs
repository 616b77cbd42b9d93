//! `check-config`: says whether a configuration is valid.

use std::path::Path;

use super::{CommandError, printed, run::text};
use crate::config::Config;

pub(super) fn check_config(path: &Path) -> Result<(), CommandError> {
    let config = Config::load(path, std::env::vars_os().filter_map(text))?;
    warn(&config);
    Ok(printed::print(&format!("{}: valid\n", path.display()))?)
}

/// Prints what is allowed but is probably a mistake.
pub(super) fn warn(config: &Config) {
    for warning in &config.warnings {
        printed::note(format_args!("warning: {warning}"));
    }
}
