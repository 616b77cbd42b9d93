//! The words for states, kinds of decisions and modes: the API and the command line take the same ones.

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
pub(crate) const STATES: [&str; 6] = ["Watched", "Grace", "Held", "Blocked", "ReleaseHeld", "Ended"];
/// The modes of enforcement.
pub(crate) const MODES: [&str; 3] = ["enforce", "dry-run", "paused"];

/// The word for a mode, one of [`MODES`].
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::DryRun => "dry-run",
        Mode::Paused => "paused",
    }
}

/// The word of `words` that equals `said` but for upper and lower case; `None` if there is none.
pub(crate) fn as_spelt_here(words: &'static [&'static str], said: &str) -> Option<&'static str> {
    words.iter().copied().find(|word| word.eq_ignore_ascii_case(said))
}
