//! Entries of the log of decisions that belong to no App: the mode of enforcement and exemptions, as operators
//! declare them.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EnforcementSpec, ExemptionSpec};
use crate::decision::Mode;
use crate::names::Text;

/// The actor in the log if the object names none.
pub const UNNAMED_ACTOR: &str = "unknown";

/// An entry of the log of decisions that belongs to no App.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Declaration {
    /// When, by the clock of the API server if there is one.
    pub at: Timestamp,
    /// The kind of the declaration.
    pub decision: DeclarationKind,
    /// The mode from then on; `None` if the configuration counts, and where it is about an exemption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Text>,
    /// The name of the exemption, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exemption: Option<Text>,
    /// The operator's name.
    pub actor: Text,
    /// The consequence of the declaration, and the operator's reason.
    pub reason: Text,
}

/// The kinds of declarations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeclarationKind {
    /// The mode is paused: only operators block or release anything.
    Paused,
    /// The mode of the configuration counts again.
    Resumed,
    /// Another mode counts.
    ModeChanged,
    /// An exemption was made.
    ExemptionMade,
    /// An exemption was removed.
    ExemptionRemoved,
}

impl DeclarationKind {
    /// The kind as a label, `snake_case`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::ModeChanged => "mode_changed",
            Self::ExemptionMade => "exemption_made",
            Self::ExemptionRemoved => "exemption_removed",
        }
    }
}

impl Declaration {
    /// The entry for a mode: `spec` counts from `at` on.
    pub fn of_mode(spec: &EnforcementSpec, at: Timestamp) -> Self {
        let (decision, mode, what) = match spec.mode {
            Some(Mode::Paused) => {
                (DeclarationKind::Paused, "paused", "existing blocks stay, nothing new is blocked")
            }
            Some(Mode::DryRun) => {
                (DeclarationKind::ModeChanged, "dry-run", "everything is decided, nothing is touched")
            }
            Some(Mode::Enforce) => (DeclarationKind::ModeChanged, "enforce", "decisions take effect"),
            None => (DeclarationKind::Resumed, "", "the mode of the configuration counts"),
        };
        Self {
            at,
            decision,
            mode: (!mode.is_empty()).then(|| mode.into()),
            exemption: None,
            actor: actor(spec.by.as_deref()),
            reason: with_reason(what.to_owned(), spec.reason.as_deref()),
        }
    }

    /// The entry for an exemption that was made: `name`, at `at`.
    pub fn of_exemption(name: &str, spec: &ExemptionSpec, at: Timestamp) -> Self {
        let what = format!("Exemption {name}: {}", covered(spec));
        Self {
            at,
            decision: DeclarationKind::ExemptionMade,
            mode: None,
            exemption: Some(name.into()),
            actor: actor(spec.by.as_deref()),
            reason: with_reason(what, Some(&spec.reason)),
        }
    }

    /// The entry for an exemption that was removed: `name`, by the operator `by`, at `at`. `spec` is its last content,
    /// if known.
    pub fn of_withdrawal(name: &str, spec: Option<&ExemptionSpec>, by: &str, at: Timestamp) -> Self {
        let was = spec.map(|spec| format!("; it was {}", covered(spec))).unwrap_or_default();
        Self {
            at,
            decision: DeclarationKind::ExemptionRemoved,
            mode: None,
            exemption: Some(name.into()),
            actor: actor(Some(by)),
            reason: format!("Exemption {name} is removed{was}").into(),
        }
    }

    /// Whether the two are about the same declaration, whatever their times.
    pub fn is_like(&self, other: &Self) -> bool {
        let Self { at: _, decision, mode, exemption, actor, reason } = self;
        let other = (other.decision, &other.mode, &other.exemption, &other.actor, &other.reason);
        (*decision, mode, exemption, actor, reason) == other
    }
}

fn actor(by: Option<&str>) -> Text {
    by.map(str::trim).filter(|by| !by.is_empty()).unwrap_or(UNNAMED_ACTOR).into()
}

fn with_reason(what: String, reason: Option<&str>) -> Text {
    match reason.map(str::trim).filter(|reason| !reason.is_empty()) {
        Some(reason) => format!("{what} («{}»)", reason.escape_debug()).into(),
        None => what.into(),
    }
}

/// A text with the accusations that an exemption covers, and until when.
fn covered(spec: &ExemptionSpec) -> String {
    let parts = [
        ("namespace", &spec.namespace),
        ("app", &spec.app),
        ("process", &spec.process),
        ("rule", &spec.rule),
    ];
    let mut all: Vec<String> = Vec::new();
    for (name, part) in parts {
        let Some(part) = part else { continue };
        all.push(match (&part.exact, &part.regex) {
            (_, Some(regex)) => format!("{name}=/{}/", regex.escape_debug()),
            (exact, None) => format!("{name}={}", exact.as_deref().unwrap_or_default().escape_debug()),
        });
    }
    let until = spec.until.map_or("for ever".to_owned(), |until| format!("until {until}"));
    format!("{}, {until}", all.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Match;

    const AT: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_mode_is_logged_with_its_actor_and_the_operators_reason() {
        let spec =
            |mode| EnforcementSpec { mode, reason: Some("a bad\nrule".into()), by: Some("alice".into()) };
        for (mode, kind, name) in [
            (Some(Mode::Paused), "paused", Some("paused")),
            (Some(Mode::DryRun), "mode_changed", Some("dry-run")),
            (Some(Mode::Enforce), "mode_changed", Some("enforce")),
            (None, "resumed", None),
        ] {
            let entry = Declaration::of_mode(&spec(mode), AT);
            assert_eq!(
                (entry.decision.as_str(), entry.mode.as_deref(), &*entry.actor),
                (kind, name, "alice")
            );
            assert!(entry.reason.ends_with(" («a bad\\nrule»)"), "{entry:?}");
        }
        let unnamed =
            Declaration::of_mode(&EnforcementSpec { by: Some(" ".into()), ..EnforcementSpec::default() }, AT);
        assert_eq!((&*unnamed.actor, &*unnamed.reason), ("unknown", "the mode of the configuration counts"));
    }

    #[test]
    fn an_exemption_is_logged_with_the_accusations_that_it_covers() {
        let spec = ExemptionSpec {
            namespace: Some(Match::exact("ns-a")),
            process: Some(Match { exact: None, regex: Some("^xm".into()) }),
            reason: "a course".into(),
            by: Some("bob".into()),
            ..ExemptionSpec::default()
        };
        let made = Declaration::of_exemption("course", &spec, AT);
        assert_eq!((&*made.actor, made.exemption.as_deref()), ("bob", Some("course")));
        assert_eq!(&*made.reason, "Exemption course: namespace=ns-a process=/^xm/, for ever («a course»)");
        let until = ExemptionSpec { until: Some(AT), ..spec };
        let gone = Declaration::of_withdrawal("course", Some(&until), "alice", AT);
        let was = "it was namespace=ns-a process=/^xm/, until 1970-01-01T00:00:00Z";
        assert_eq!(&*gone.reason, format!("Exemption course is removed; {was}"));
        assert!(gone.is_like(&gone.clone()) && !gone.is_like(&made));
    }
}
