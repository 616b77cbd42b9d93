//! `check-config`: says whether a configuration is valid.

use std::path::Path;

use super::{CommandError, run::text};
use crate::config::Config;

pub(super) fn check_config(path: &Path) -> Result<(), CommandError> {
    Config::load(path, std::env::vars_os().filter_map(text))?;
    println!("{}: valid", path.display());
    Ok(())
}
