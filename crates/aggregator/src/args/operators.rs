//! The commands of operators, which go to a running service through the HTTP API of any replica.

use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use procscan_core::decision::Mode;

use crate::time_argument::{TimeArgument, since, until};
use crate::wire_names::{DECISIONS, MODES, STATES, as_written_here, mode_of};

#[derive(Debug, Subcommand)]
pub(crate) enum Operate {
    /// Print the log of decisions, the latest first, with the actor and the reason of each decision.
    #[command(after_help = "Examples:
  procscan-aggregator decisions --since 24h
  procscan-aggregator decisions --namespace ns-user1 --decision blocked
  procscan-aggregator decisions --decision paused
  procscan-aggregator decisions --limit 1000 -o json")]
    Decisions(Decisions),
    /// Print the incidents, the latest first.
    ///
    /// An incident is all that is persisted of one App from its first evidence to its end.
    #[command(after_help = "Examples:
  procscan-aggregator incidents --state held
  procscan-aggregator incidents --namespace ns-user1 --app web -o yaml")]
    Incidents(Incidents),
    /// Print whether each part of the service works, and which configuration is in force.
    #[command(after_help = "Examples:
  procscan-aggregator status
  procscan-aggregator status -o json

The exit code is 1 if a part does not work.")]
    Status(Status),
    /// Approve the block or the release of an App that a brake holds.
    #[command(after_help = "Examples:
  procscan-aggregator approve ns-user1/web --reason 'a real miner'
  procscan-aggregator approve ns-user1-web-0123456789abcdef")]
    Approve(Approve),
    /// Release an App.
    ///
    /// The same accusations do not block it again until a date.
    #[command(after_help = "Examples:
  procscan-aggregator release ns-user1/web --reason 'a false alarm'
  procscan-aggregator release ns-user1/devbox/lab --until 7d")]
    Release(Release),
    /// Declare an exemption, list the exemptions, or remove one.
    ///
    /// An exemption covers the accusations that match all of its parts.
    #[command(after_help = "Examples:
  procscan-aggregator exempt --namespace ns-user1 --process miner --reason 'a course on mining' --until 30d
  procscan-aggregator exempt --rule '^nmap$' --namespace '/^ns-red-/' --reason 'penetration tests' --id red-team
  procscan-aggregator exempt --list
  procscan-aggregator exempt --remove red-team

A part with / at both ends is an unanchored regular expression. Any other part matches the whole text.")]
    Exempt(Box<Exempt>),
    /// Pause the enforcement.
    ///
    /// Existing blocks stay, and no App is blocked or released but by an operator.
    #[command(after_help = "Example:
  procscan-aggregator pause --reason 'the new rule matches harmless processes'")]
    Pause(Pause),
    /// Go back to the mode of the configuration.
    #[command(after_help = "Example:
  procscan-aggregator resume --reason 'the rule is corrected'

The service is paused after its state file was damaged or lost, and it no longer knows which blocks the brakes held.
Before `resume`, look at `incidents --state watched`: each App in that list that is still accused may be blocked then.
Release or exempt the Apps that must not be blocked.")]
    Resume(Pause),
    /// Print the mode of enforcement, or set it.
    ///
    /// A mode that is set counts over the mode of the configuration.
    #[command(after_help = "Examples:
  procscan-aggregator mode
  procscan-aggregator mode dry-run --reason 'new rules today'

`resume` goes back to the mode of the configuration.")]
    Mode(SetMode),
}

/// The service, and the token of the operator.
#[derive(Debug, Args)]
pub(crate) struct Service {
    /// The HTTP API of any replica; the default is the variable `PROCSCAN_URL`, else `http://127.0.0.1:8090`.
    ///
    /// With http:// the token is sent unencrypted, so use https://, or `kubectl port-forward` from outside of the cluster.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// A PEM file with the CA certificates to trust for an https:// URL; the default is those of the system.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// A file that holds a bearer token and nothing else; the default is the token in the variable `PROCSCAN_TOKEN`.
    ///
    /// `kubectl create token NAME -n kube-system` makes a token.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table.
    Table,
    /// The answer of the API.
    Json,
    /// The answer of the API as YAML.
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) service: Service,
    /// The format of the output.
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Decisions {
    #[command(flatten)]
    pub(crate) service: Service,
    /// Only entries of this namespace.
    #[arg(long, short, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// Only entries of Apps with this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Only decisions of this kind.
    #[arg(long, value_name = "KIND", ignore_case = true, value_parser = one_of(&DECISIONS))]
    pub(crate) decision: Option<&'static str>,
    /// Only decisions of this actor: `policy`, or the name of an operator.
    #[arg(long, value_name = "NAME")]
    pub(crate) actor: Option<String>,
    /// Only decisions since then: a duration back from now (24h), or a time (2026-01-02T10:30:00Z).
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub(crate) since: Option<TimeArgument>,
    /// The largest number of decisions.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
    /// The format of the output.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Incidents {
    #[command(flatten)]
    pub(crate) service: Service,
    /// Only entries of this namespace.
    #[arg(long, short, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// Only entries of Apps with this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Only incidents in this state.
    #[arg(long, value_name = "STATE", ignore_case = true, value_parser = one_of(&STATES))]
    pub(crate) state: Option<&'static str>,
    /// The format of the output.
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
    /// The reason, for the log: up to 1,024 characters, not blank.
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
    /// How long these accusations do not block the App again: a duration (30d, which is the default), or a time.
    #[arg(long, value_name = "WHEN", value_parser = until)]
    pub(crate) until: Option<TimeArgument>,
    /// The reason, for the log: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Exempt {
    #[command(flatten)]
    pub(crate) service: Service,
    /// The reason, for other operators: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["list", "remove"])]
    pub(crate) reason: Option<String>,
    /// The namespace of the tenant.
    #[arg(long, short, value_name = "X")]
    pub(crate) namespace: Option<String>,
    /// The name of the App.
    #[arg(long, value_name = "X")]
    pub(crate) app: Option<String>,
    /// The name of the process.
    #[arg(long, value_name = "X")]
    pub(crate) process: Option<String>,
    /// The regular expression of the rule. An accusation by a keyword has none, so an exemption with `--rule` does not cover it.
    #[arg(long, value_name = "X")]
    pub(crate) rule: Option<String>,
    /// How long the exemption counts: a duration (30d), or a time. The default is for ever.
    #[arg(long, value_name = "WHEN", value_parser = until)]
    pub(crate) until: Option<TimeArgument>,
    /// How many tenants with blocked Apps the exemption may open. It is needed beyond `brake.max_releases`.
    #[arg(long, value_name = "N")]
    pub(crate) confirm: Option<u32>,
    /// The name of the exemption. The default is made from the time.
    #[arg(long, value_name = "NAME")]
    pub(crate) id: Option<String>,
    /// List the exemptions that were declared at run time, and the withheld ones of the configuration.
    #[arg(long, conflicts_with_all = ["reason", "namespace", "app", "process", "rule", "until", "confirm", "id", "remove"])]
    pub(crate) list: bool,
    /// Remove an exemption.
    #[arg(
        long,
        value_name = "NAME",
        value_parser = NonEmptyStringValueParser::new(),
        conflicts_with_all = ["reason", "namespace", "app", "process", "rule", "until", "confirm", "id"],
    )]
    pub(crate) remove: Option<String>,
    /// The format of the list.
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    pub(crate) service: Service,
    /// The reason, for other operators: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SetMode {
    #[command(flatten)]
    pub(crate) service: Service,
    /// The mode from now on. Without it, the command prints the mode in force.
    #[arg(value_name = "MODE", value_parser = PossibleValuesParser::new(MODES).try_map(|name| mode_of(&name).ok_or("no such mode")))]
    pub(crate) to: Option<Mode>,
    /// The reason, for other operators: up to 1,024 characters, not blank.
    #[arg(long, value_name = "TEXT", requires = "to")]
    pub(crate) reason: Option<String>,
}

/// One of `names`, which are those of the API. `ReleaseHeld` is taken as Kubernetes writes it, too.
fn one_of(names: &'static [&'static str]) -> impl TypedValueParser<Value = &'static str> {
    let value = |name: &&'static str| match *name {
        "release_held" => PossibleValue::new("release_held").alias("ReleaseHeld"),
        name => PossibleValue::new(name),
    };
    PossibleValuesParser::new(names.iter().map(value))
        .try_map(move |given| as_written_here(names, &given).ok_or("no such name"))
}

#[cfg(test)]
mod tests {
    use procscan_core::decision::DecisionKind;
    use procscan_core::state::{self, DeclarationKind};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::types::IncidentState;

    #[test]
    fn the_names_are_those_of_the_api() {
        fn names<T: schemars::JsonSchema>() -> Vec<String> {
            let schema = json!(schemars::schema_for!(T));
            let documented = schema["oneOf"].as_array().expect("documented names").iter();
            documented.map(|name| name["const"].as_str().expect("a name").to_owned()).collect()
        }
        assert_eq!(DECISIONS.to_vec(), [names::<DecisionKind>(), names::<DeclarationKind>()].concat());
        let states = names::<state::IncidentState>().into_iter().map(|name| {
            let state: state::IncidentState = serde_json::from_value(name.into()).unwrap();
            let state = IncidentState::from(state);
            assert_eq!(json!(state), state.name());
            state.name()
        });
        assert_eq!(STATES.to_vec(), states.collect::<Vec<_>>());
        assert_eq!(MODES.to_vec(), names::<Mode>());
        for name in DECISIONS {
            let value = Value::from(name);
            let of_app = serde_json::from_value::<DecisionKind>(value.clone()).map(DecisionKind::as_str);
            let of_all = serde_json::from_value::<DeclarationKind>(value).map(DeclarationKind::as_str);
            assert_eq!(of_app.or(of_all).unwrap(), name);
        }
    }
}
