//! `crds`: the definitions of our own kinds of objects.

use super::{CommandError, printed};
use crate::state::crd;

pub(super) fn crds() -> Result<(), CommandError> {
    Ok(printed::print(&yaml().map_err(anyhow::Error::msg)?)?)
}

/// The definitions as YAML documents.
pub(crate) fn yaml() -> Result<String, String> {
    let mut text = String::new();
    for definition in crd::definitions() {
        text.push_str("---\n");
        serde_saphyr::to_fmt_writer(&mut text, &definition).map_err(|error| error.to_string())?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}
