//! `crds`: the definitions of our own kinds of objects.

use super::CommandError;
use crate::state::crd;

pub(super) fn crds() -> Result<(), CommandError> {
    print!("{}", yaml().map_err(anyhow::Error::msg)?);
    Ok(())
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
