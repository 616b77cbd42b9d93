//! Scenarios: timed changes of nodes.

use std::{fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Fleet,
    behaviour::{Behaviour, Mode},
};

/// Why a script was refused.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Not YAML, or not of the expected shape; the source names the place.
    #[error("cannot read the script: {0}")]
    Shape(#[from] serde_saphyr::Error),
    /// A step is invalid.
    #[error("step {step}: {problem}")]
    Step {
        /// Which step, counted from 1 in the order of the file.
        step: usize,
        /// What is wrong, and what is expected.
        problem: String,
    },
}

/// The action of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The nodes answer differently from now on.
    Behave(Behaviour),
    /// The nodes scan differently from now on.
    Scan(Mode),
    /// The nodes' agents restart.
    Restart,
    /// This many made-up offenders run from now on.
    Offenders(usize),
}

/// The nodes of a step: `all`, or numbers and ranges such as `0-3,7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    /// Every node.
    All,
    /// The nodes in these ranges.
    Ranges(Vec<RangeInclusive<usize>>),
}

impl Selection {
    /// The selected ones of `nodes` nodes, in the order written.
    pub(crate) fn within(&self, nodes: usize) -> Vec<usize> {
        match self {
            Self::All => (0..nodes).collect(),
            Self::Ranges(ranges) => {
                ranges.iter().cloned().flatten().take_while(|node| *node < nodes).collect()
            }
        }
    }

    /// The highest number written.
    fn highest(&self) -> Option<usize> {
        match self {
            Self::All => None,
            Self::Ranges(ranges) => ranges.iter().map(|range| *range.end()).max(),
        }
    }
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "all" {
            return Ok(Self::All);
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some(first..=last)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self::Ranges).ok_or_else(|| {
            format!("`nodes: {text}` selects nothing; write `all`, or numbers such as `0-3,7`")
        })
    }
}

/// One step of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The time since the start of the script.
    pub(crate) at: Duration,
    /// The nodes that it changes.
    pub(crate) nodes: Selection,
    /// The change.
    pub(crate) action: Action,
    /// Its place in the file, counted from 1.
    number: usize,
}

/// A scenario, its steps in the order of their times.
///
/// ```yaml
/// steps:
///   - {at: 10s, nodes: "0-3,7", behaviour: hang}
///   - {at: 30s, nodes: all, behaviour: healthy}
///   - {at: 40s, nodes: "5", restart: true}
///   - {at: 45s, nodes: "5", mode: upstream}
///   - {at: 50s, nodes: "5", offenders: 0}
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    steps: Vec<Step>,
}

impl Script {
    /// Reads a script. Steps may be written in any order; steps of the same time happen in the order of the file.
    pub fn from_yaml(text: &str) -> Result<Self, ScriptError> {
        let File { steps } = serde_saphyr::from_str(text)?;
        let read = |(step, raw): (usize, RawStep)| {
            raw.read(step + 1).map_err(|problem| ScriptError::Step { step: step + 1, problem })
        };
        let mut steps = steps.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        steps.sort_by_key(|step| step.at);
        Ok(Self { steps })
    }

    /// Refuses a script that names nodes a fleet of this size does not have.
    pub fn check(&self, nodes: usize) -> Result<(), ScriptError> {
        let missing = |step: &&Step| step.nodes.highest().is_some_and(|highest| highest >= nodes);
        self.steps.iter().find(missing).map_or(Ok(()), |Step { number, .. }| {
            let problem =
                format!("the fleet has {nodes} nodes, numbered from 0 to {}", nodes.saturating_sub(1));
            Err(ScriptError::Step { step: *number, problem })
        })
    }
}

impl Fleet {
    /// Plays a script to its end, or until `cancel`.
    ///
    /// # Errors
    /// At once, when the script names nodes that the fleet does not have.
    pub async fn play(&self, script: Script, cancel: CancellationToken) -> Result<(), ScriptError> {
        let nodes = self.shared.nodes.len();
        script.check(nodes)?;
        let start = Instant::now();
        for Step { at, nodes: selection, action, number } in script.steps {
            if cancel.run_until_cancelled(sleep_until(start + at)).await.is_none() {
                return Ok(());
            }
            tracing::info!(step = number, %action, "script");
            for node in selection.within(nodes) {
                match action {
                    Action::Behave(behaviour) => self.set_behaviour(node, behaviour),
                    Action::Scan(mode) => self.set_mode(node, mode),
                    Action::Restart => self.restart(node),
                    Action::Offenders(count) => self.set_offender_count(node, count),
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behave(behaviour) => write!(to, "behaviour: {behaviour}"),
            Self::Scan(mode) => write!(to, "mode: {mode}"),
            Self::Restart => to.write_str("restart: true"),
            Self::Offenders(count) => write!(to, "offenders: {count}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    steps: Vec<RawStep>,
}

/// A step as written. Texts are read by hand, so that an error can name the step.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    at: String,
    nodes: String,
    behaviour: Option<String>,
    mode: Option<String>,
    restart: Option<bool>,
    offenders: Option<usize>,
}

impl RawStep {
    fn read(self, number: usize) -> Result<Step, String> {
        let at = humantime::parse_duration(&self.at)
            .map_err(|error| format!("`at: {}`: {error}; write a duration such as `10s`", self.at))?;
        let action = match (self.behaviour, self.mode, self.restart, self.offenders) {
            (Some(behaviour), None, None, None) => Action::Behave(behaviour.parse().map_err(text)?),
            (None, Some(mode), None, None) => Action::Scan(mode.parse().map_err(text)?),
            (None, None, Some(true), None) => Action::Restart,
            (None, None, None, Some(count)) => Action::Offenders(count),
            _ => {
                return Err(
                    "wants exactly one of `behaviour`, `mode`, `restart: true`, `offenders`".to_owned()
                );
            }
        };
        Ok(Step { at, nodes: self.nodes.parse()?, action, number })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "shaped for map_err")]
fn text(error: impl ToString) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"
steps:
  - {at: 30s, nodes: all, behaviour: healthy}
  - {at: 10s, nodes: "0-1, 3", behaviour: skewed=-1h}
  - {at: 40s, nodes: 2, restart: true}
  - at: 1m
    nodes: "2"
    mode: upstream
  - {at: 1m, nodes: "2", offenders: 0}
"#;

    #[test]
    fn steps_are_put_in_order() {
        let script = Script::from_yaml(SCRIPT).unwrap();
        let steps: Vec<_> = script
            .steps
            .iter()
            .map(|step| (step.at.as_secs(), step.nodes.within(5), step.action.to_string()))
            .collect();
        let expected = [
            (10, vec![0, 1, 3], "behaviour: skewed=-1h"),
            (30, vec![0, 1, 2, 3, 4], "behaviour: healthy"),
            (40, vec![2], "restart: true"),
            (60, vec![2], "mode: upstream"),
            (60, vec![2], "offenders: 0"),
        ];
        assert_eq!(steps, expected.map(|(at, nodes, action)| (at, nodes, action.to_owned())));
    }

    #[test]
    fn errors_name_the_step_and_what_is_allowed() {
        let error = |step: &str| {
            let first = "{at: 1s, nodes: all, restart: true}";
            Script::from_yaml(&format!("steps:\n- {first}\n- {step}")).unwrap_err().to_string()
        };
        for (step, expected) in [
            ("{at: soon, nodes: all, restart: true}", "step 2: `at: soon`: "),
            ("{at: 1s, nodes: 3-1, restart: true}", "step 2: `nodes: 3-1` selects nothing; write `all`"),
            ("{at: 1s, nodes: '', restart: true}", "step 2: `nodes: ` selects nothing"),
            ("{at: 1s, nodes: all}", "step 2: wants exactly one of `behaviour`"),
            ("{at: 1s, nodes: all, restart: false}", "step 2: wants exactly one of"),
            (
                "{at: 1s, nodes: all, behaviour: hung}",
                "step 2: invalid behaviour `hung`: expected one of healthy, ",
            ),
            ("{at: 1s, nodes: all, mode: best}", "step 2: invalid mode `best`: expected one of correct"),
            ("{at: 1s, nodes: all, restrat: true}", "cannot read the script: "),
        ] {
            let message = error(step);
            assert!(message.starts_with(expected), "{message}");
        }
        assert!(error("{at: 1s, nodes: all, restrat: true}").contains("restrat"));
        let missing = Script::from_yaml(SCRIPT).unwrap().check(3).unwrap_err().to_string();
        assert_eq!(missing, "step 2: the fleet has 3 nodes, numbered from 0 to 2");
    }
}
