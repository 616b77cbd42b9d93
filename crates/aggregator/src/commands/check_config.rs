//! `check-config`: says whether a configuration is valid.

use std::path::Path;

use super::{CommandError, run::text};
use crate::config::Config;

pub(super) fn check_config(path: &Path) -> Result<(), CommandError> {
    let config = Config::load(path, std::env::vars_os().filter_map(text))?;
    warn(&config);
    println!("{}: valid", path.display());
    Ok(())
}

/// Prints what is allowed but is probably a mistake.
pub(super) fn warn(config: &Config) {
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
}
