//! The names of states, kinds of decisions and modes that requests to the API and the command line take.

use procscan_core::decision::Mode;

/// The kinds of decisions, those about single Apps first.
pub(crate) const DECISIONS: [&str; 16] = [
    "inherited",
    "warned",
    "blocked",
    "released",
    "held",
    "release_held",
    "approved",
    "exempted",
    "disputed",
    "closed",
    "refused",
    "paused",
    "resumed",
    "mode_changed",
    "exemption_made",
    "exemption_removed",
];
/// The states of incidents.
pub(crate) const STATES: [&str; 6] = ["watched", "grace", "held", "blocked", "release_held", "ended"];
/// The modes of enforcement, as the configuration and the command line write them. The API writes `dry_run`.
pub(crate) const MODES: [&str; 3] = ["enforce", "dry-run", "paused"];

/// The name of a mode, one of [`MODES`].
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::DryRun => "dry-run",
        Mode::Paused => "paused",
    }
}

/// The mode of one of [`MODES`].
pub(crate) fn mode_of(name: &str) -> Option<Mode> {
    [Mode::Enforce, Mode::DryRun, Mode::Paused].into_iter().find(|mode| mode_name(*mode) == name)
}

/// The name of `names` that `given` means, in upper or lower case, and with or without the underscores: Kubernetes writes
/// `ReleaseHeld`. `None` if there is none.
pub(crate) fn as_written_here(names: &'static [&'static str], given: &str) -> Option<&'static str> {
    let letters = |text: &str| text.replace('_', "").to_ascii_lowercase();
    names.iter().copied().find(|name| letters(name) == letters(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_as_kubernetes_writes_them() {
        for given in ["release_held", "RELEASE_HELD", "ReleaseHeld", "releaseheld"] {
            assert_eq!(as_written_here(&STATES, given), Some("release_held"), "{given}");
        }
        assert_eq!(as_written_here(&STATES, "Held"), Some("held"));
        for given in ["", "_", "release-held", "held "] {
            assert_eq!(as_written_here(&STATES, given), None, "{given:?}");
        }
    }

    #[test]
    fn every_mode_has_its_name() {
        for name in MODES {
            assert_eq!(mode_of(name).map(mode_name), Some(name));
        }
        assert_eq!(mode_of("dry_run"), None);
    }
}
