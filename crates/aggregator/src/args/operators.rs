//! What operators say to a running service, through the HTTP API of any of its replicas.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use procscan_core::exemption::is_too_far;

use crate::wire_names::{DECISIONS, MODES, STATES, as_spelt_here};

#[derive(Debug, Subcommand)]
pub(crate) enum Operate {
    /// The log of decisions, the latest first: who decided what, when and why.
    #[command(after_help = "Examples:
  procscan-aggregator decisions --since 24h
  procscan-aggregator decisions --namespace ns-user1 --decision blocked
  procscan-aggregator decisions --decision paused
  procscan-aggregator decisions --limit 1000 -o json")]
    Decisions(Decisions),
    /// The incidents, the latest first: one App each, from its first evidence to its clearing.
    #[command(after_help = "Examples:
  procscan-aggregator incidents --state held
  procscan-aggregator incidents --namespace ns-user1 --app web -o yaml")]
    Incidents(Incidents),
    /// Approve what a brake holds: the block of an App, or its release.
    #[command(after_help = "Examples:
  procscan-aggregator approve ns-user1/web --reason 'a miner indeed'
  procscan-aggregator approve ns-user1-web-0123456789abcdef")]
    Approve(Approve),
    /// Release an App, and keep the same accusations from blocking it again.
    #[command(after_help = "Examples:
  procscan-aggregator release ns-user1/web --reason 'a false alarm'
  procscan-aggregator release ns-user1/devbox/lab --until 7d")]
    Release(Release),
    /// Declare what is not to be enforced, list such exemptions, or take one back. All given parts must match.
    #[command(after_help = "Examples:
  procscan-aggregator exempt --namespace ns-user1 --process miner --reason 'a course on mining' --until 30d
  procscan-aggregator exempt --rule '/^nmap/' --namespace '/^ns-red-/' --reason 'penetration tests' --id red-team
  procscan-aggregator exempt --list
  procscan-aggregator exempt --remove red-team

What has / at both ends is a regular expression, unanchored; anything else is the whole text.")]
    Exempt(Box<Exempt>),
    /// Pause: existing blocks stay, and nothing new is blocked or released but by an operator.
    #[command(after_help = "Example:
  procscan-aggregator pause --reason 'the new rule accuses everybody'")]
    Pause(Pause),
    /// Go back to the mode that the configuration says.
    #[command(after_help = "Example:
  procscan-aggregator resume --reason 'the rule is mended'

After a damaged or lost state file the service is paused, and what brakes held is lost: before `resume`, look at
`incidents --state watched`. Each App that it lists and that is still accused may be blocked then; release or exempt those
that must not be blocked.")]
    Resume(Pause),
    /// Show whether decisions take effect, or say so, over what the configuration says.
    #[command(after_help = "Examples:
  procscan-aggregator mode
  procscan-aggregator mode dry-run --reason 'new rules today'

`resume` goes back to what the configuration says.")]
    Mode(SetMode),
}

/// Which service, and who asks.
#[derive(Debug, Args)]
pub(crate) struct Service {
    /// The HTTP API of any replica; if not given, the variable `PROCSCAN_URL`, or `http://127.0.0.1:8090`.
    ///
    /// The token goes there unencrypted: use `kubectl port-forward` from outside of the cluster.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// A file that holds a bearer token and nothing else; if not given, the variable `PROCSCAN_TOKEN` counts.
    ///
    /// `kubectl create token NAME -n kube-system` makes one.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// The API's answer as it is.
    Json,
    /// The same as YAML.
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct Decisions {
    #[command(flatten)]
    pub(crate) service: Service,
    /// Only those of this namespace.
    #[arg(long, short, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// Only those of Apps of this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Only those of this kind.
    #[arg(long, value_name = "KIND", ignore_case = true, value_parser = one_of(&DECISIONS))]
    pub(crate) decision: Option<&'static str>,
    /// Only those of this actor: `policy`, or an operator's name.
    #[arg(long, value_name = "WHO")]
    pub(crate) actor: Option<String>,
    /// Only those since then: so long ago (24h), or a time (2026-01-02T10:30:00Z).
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub(crate) since: Option<TimeArgument>,
    /// How many, at most.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    /// How they are printed.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Incidents {
    #[command(flatten)]
    pub(crate) service: Service,
    /// Only those of this namespace.
    #[arg(long, short, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// Only those of Apps of this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Only those in this state.
    #[arg(long, value_name = "STATE", ignore_case = true, value_parser = one_of(&STATES))]
    pub(crate) state: Option<&'static str>,
    /// How they are printed.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Approve {
    #[command(flatten)]
    pub(crate) service: Service,
    /// The incident's name, or its App as NAMESPACE/APP or NAMESPACE/TYPE/APP.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) incident: String,
    /// Why, for the log: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Release {
    #[command(flatten)]
    pub(crate) service: Service,
    /// The incident's name, or its App as NAMESPACE/APP or NAMESPACE/TYPE/APP.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) incident: String,
    /// How long these accusations don't block the App again: so long (30d, as if not given), or up to a time.
    #[arg(long, value_name = "WHEN", value_parser = until)]
    pub(crate) until: Option<TimeArgument>,
    /// Why, for the log: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Exempt {
    #[command(flatten)]
    pub(crate) service: Service,
    /// Why, for the next person: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["list", "remove"])]
    pub(crate) reason: Option<String>,
    /// The tenant's namespace.
    #[arg(long, short, value_name = "X")]
    pub(crate) namespace: Option<String>,
    /// The App's name.
    #[arg(long, value_name = "X")]
    pub(crate) app: Option<String>,
    /// The process name.
    #[arg(long, value_name = "X")]
    pub(crate) process: Option<String>,
    /// The regular expression that matched. An accusation without one, by a keyword, is covered by a process only.
    #[arg(long, value_name = "X")]
    pub(crate) rule: Option<String>,
    /// How long it counts: so long (30d), or up to a time; for ever if not given.
    #[arg(long, value_name = "WHEN", value_parser = until)]
    pub(crate) until: Option<TimeArgument>,
    /// How many tenants with blocked Apps it may open; needed beyond `brake.max_releases`.
    #[arg(long, value_name = "N")]
    pub(crate) confirm: Option<u32>,
    /// A name for it; made up if not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) id: Option<String>,
    /// List those that were declared at run time, and those of the configuration that are withheld.
    #[arg(long, conflicts_with_all = ["reason", "namespace", "app", "process", "rule", "until", "confirm", "id", "remove"])]
    pub(crate) list: bool,
    /// Take one back.
    #[arg(
        long,
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["reason", "namespace", "app", "process", "rule", "until", "confirm", "id"],
    )]
    pub(crate) remove: Option<String>,
    /// How the list is printed.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    pub(crate) service: Service,
    /// Why, for the next person: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SetMode {
    #[command(flatten)]
    pub(crate) service: Service,
    /// The mode from now on; shown if not given.
    #[arg(value_name = "MODE", value_parser = one_of(&MODES))]
    pub(crate) to: Option<&'static str>,
    /// Why, for the next person: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT", requires = "to")]
    pub(crate) reason: Option<String>,
}

/// One of the words that the API knows, in its own spelling.
fn one_of(words: &'static [&'static str]) -> impl TypedValueParser<Value = &'static str> {
    PossibleValuesParser::new(words).try_map(move |said| as_spelt_here(words, &said).ok_or("no such word"))
}

/// A time as people say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeArgument {
    /// So far from now, in the direction that the option says.
    Away(Duration),
    /// That time.
    At(Timestamp),
}

impl TimeArgument {
    /// The time, if spans go back from `now`.
    pub(crate) fn before(self, now: Timestamp) -> Result<Timestamp, String> {
        self.time(|span| now.checked_sub(span))
    }

    /// The time, with spans counted from `now`. It must be in the future, and at most ten years ahead.
    pub(crate) fn after(self, now: Timestamp) -> Result<Timestamp, String> {
        if self == Self::Away(Duration::ZERO) {
            return Err(
                "0s: the time must lie ahead; allowed is a duration longer than 0, or a time to come"
                    .to_owned(),
            );
        }
        let time = self.time(|span| now.checked_add(span))?;
        if time <= now {
            return Err(format!("{time} is over; allowed is a time to come"));
        }
        if is_too_far(time, now) {
            return Err(format!("{time} is more than ten years ahead; allowed is up to ten years"));
        }
        Ok(time)
    }

    fn time(
        self,
        away: impl FnOnce(Duration) -> Result<Timestamp, jiff::Error>,
    ) -> Result<Timestamp, String> {
        // In whole seconds: it is kept, and read by people.
        let seconds = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        match self {
            Self::At(time) => Ok(time),
            Self::Away(span) => away(span)
                .and_then(|time| time.round(seconds))
                .map_err(|_| format!("{} is too far away", humantime::format_duration(span))),
        }
    }
}

/// What is allowed where a time is expected, for the error.
const ALLOWED_TIME: &str = "allowed is a duration with its unit, such as 24h or 30d, or a time with its zone, such as 2026-01-02T10:30:00Z";

/// A time for `--since`.
fn since(text: &str) -> Result<TimeArgument, String> {
    match until(text)? {
        TimeArgument::Away(Duration::ZERO) => Err(ALLOWED_TIME.to_owned()),
        when => Ok(when),
    }
}

/// A time for `--until`. [`When::after`] checks that it is in the future.
fn until(text: &str) -> Result<TimeArgument, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        return Ok(TimeArgument::Away(span));
    }
    text.parse().map(TimeArgument::At).map_err(|_: jiff::Error| ALLOWED_TIME.to_owned())
}

#[cfg(test)]
mod tests {
    use procscan_core::decision::{DecisionKind, Mode};
    use procscan_core::state::{DeclarationKind, IncidentState};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_words_are_those_of_the_api() {
        fn words<T: schemars::JsonSchema>() -> Vec<String> {
            let schema = json!(schemars::schema_for!(T));
            let documented = schema["oneOf"].as_array().expect("documented words").iter();
            documented.map(|word| word["const"].as_str().expect("a word").to_owned()).collect()
        }
        assert_eq!(DECISIONS.to_vec(), [words::<DecisionKind>(), words::<DeclarationKind>()].concat());
        assert_eq!(STATES.to_vec(), words::<IncidentState>());
        assert_eq!(MODES.to_vec(), words::<Mode>());
        for word in DECISIONS {
            let value = Value::from(word);
            let of_app = serde_json::from_value::<DecisionKind>(value.clone()).map(DecisionKind::as_str);
            let of_all = serde_json::from_value::<DeclarationKind>(value).map(DeclarationKind::as_str);
            assert_eq!(of_app.or(of_all).unwrap(), word);
        }
    }

    #[test]
    fn times_are_spans_or_moments() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-02T10:30:00.25Z");
        let day = until("24h").unwrap();
        assert_eq!(day.before(now), Ok(at("2026-01-01T10:30:01Z")));
        assert_eq!(day.after(now), Ok(at("2026-01-03T10:30:01Z")));
        assert_eq!(until("30d").unwrap().after(now), Ok(at("2026-02-01T10:30:01Z")));
        let moment = until("2026-01-02T12:00:00+08:00").unwrap();
        assert_eq!(moment.before(now), Ok(at("2026-01-02T04:00:00Z")));
        let over = moment.after(now).unwrap_err();
        assert_eq!(over, "2026-01-02T04:00:00Z is over; allowed is a time to come");
        assert_eq!(until("2027-01-01T00:00:00Z").unwrap().after(now), Ok(at("2027-01-01T00:00:00Z")));
        let far = until("1000y").unwrap().after(now).unwrap_err();
        assert!(far.ends_with("is more than ten years ahead; allowed is up to ten years"), "{far}");
        assert!(until("10y").unwrap().after(now).is_ok());
        assert_eq!(until("9000000y").unwrap().after(now).unwrap_err(), "9000000years is too far away");
        for bad in ["", "24", "soon", "-1h", "2026-01-02", "2026-01-02T10:30:00"] {
            for error in [since(bad).expect_err(bad), until(bad).expect_err(bad)] {
                assert!(error.starts_with("allowed is a duration with its unit"), "{error}");
            }
        }
        for zero in ["0", "0s", "0h 0m"] {
            assert!(since(zero).expect_err(zero).starts_with("allowed is a duration with its unit"));
            let error = until(zero).unwrap().after(now).unwrap_err();
            assert_eq!(
                error,
                "0s: the time must lie ahead; allowed is a duration longer than 0, or a time to come"
            );
        }
    }
}
