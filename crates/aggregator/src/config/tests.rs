mod effect;
mod files;
mod refusals;

use std::time::Duration;

use procscan_core::decision::Mode;
use procscan_core::plan::SharedServices;

use super::*;

const NAME: &str = "config.yaml";
/// 2026-01-01.
const NOW: Timestamp = Timestamp::constant(1_767_225_600, 0);

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, NAME, [], NOW)
}

/// With the files that it names.
fn with_files(text: &str) -> Result<Config, ConfigError> {
    Config::check_with_files(text, NAME, [], NOW)
}

fn with_env(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
    Config::parse(text, NAME, variables, NOW)
}

/// One line that names the place, and says what is expected.
fn refused(text: &str, place: &str, expected: &str) {
    is_line(&parse(text).expect_err(text), place, expected);
}

fn refused_with_files(text: &str, place: &str, expected: &str) {
    is_line(&with_files(text).expect_err(text), place, expected);
}

fn is_line(error: &ConfigError, place: &str, expected: &str) {
    let error = error.to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with(&format!("config.yaml: {place}")), "{error}");
    assert!(error.contains(expected), "{error}");
}

#[test]
fn nothing_at_all_is_the_seeds_defaults() {
    for text in ["", "---\n", "# nothing\n", "aggregator: {}\n", "aggregator:\nlogger:\n  level:\n"] {
        let config = parse(text).unwrap();
        assert_eq!(config.aggregator.scan_interval, Duration::from_mins(1));
        assert_eq!(config.aggregator.port, 8090);
        assert_eq!(config.daemonset.namespace, "kube-system");
        assert_eq!(config.daemonset.service_name, "procscan");
        assert_eq!(config.daemonset.api_port(), 9090);
        assert_eq!(config.daemonset.api_path, "/api/violations");
        assert_eq!((config.logger.level, config.logger.format), (Level::Info, Format::Json));
        // Made of constants that must be valid.
        config.policy();
        config.settings();
    }
}

#[test]
fn every_key_of_the_seed_is_read() {
    let text = r#"
aggregator:
  scan_interval: "30s"
  port: 8091
daemonset:
  namespace: "block-system"
  service_name: "block-procscan"
  api_port: 9191
  api_path: "/v2/violations"
logger:
  level: "debug"
  format: "text"
"#;
    let config = parse(text).unwrap();
    assert_eq!(config.aggregator.scan_interval, Duration::from_secs(30));
    assert_eq!(config.aggregator.port, 8091);
    assert_eq!(config.daemonset.service_name, "block-procscan");
    assert_eq!(config.daemonset.api_path, "/v2/violations");
    assert_eq!((config.logger.level, config.logger.format), (Level::Debug, Format::Text));
}

#[test]
fn the_example_is_valid_and_shows_the_defaults() {
    let text = include_str!("../../../../config.yaml");
    let mut config = parse(text).unwrap();
    let defaults = Config::default();
    // Written down it wins over a name, so without it there is none; the port is the same.
    assert_eq!(config.daemonset.api_port.take(), Some(defaults.daemonset.api_port()));
    assert_eq!(format!("{config:?}"), format!("{defaults:?}"));
    // With every commented-out line put in force it is still valid as far as its keys go.
    let all: String = text
        .lines()
        .map(|line| line.strip_prefix("#~").map_or(line.to_owned(), str::to_owned) + "\n")
        .collect();
    assert_ne!(all, text);
    parse(&all).unwrap();
}

#[test]
fn the_environment_overrides_the_file() {
    let config = with_env(
        "aggregator: {scan_interval: 10s}\n",
        &[
            ("PROCSCAN_AGGREGATOR__SCAN_INTERVAL", "30s"),
            ("PROCSCAN_LOGGER__LEVEL", "debug"),
            ("PROCSCAN_AGGREGATOR__PORT", "9000"),
            ("PROCSCAN_DISCOVERY__MODE", "static"),
            ("PROCSCAN_DISCOVERY__TARGETS", "[127.0.0.1:9090, '127.0.0.2 node=b']"),
            ("PROCSCAN_NOTIFICATION__BLOCKED__TITLE", "'{app} is closed'"),
            ("PROCSCAN_NOTIFICATION__CONTACT", "ticket #5: ask"),
            ("PROCSCAN_NOTIFICATION__APPEAL", "'4711'"),
            ("PROCSCAN_GATEWAY__SHA256", &"0".repeat(64)),
            // Without any limit, as the file can set it.
            ("PROCSCAN_BRAKE__MAX_RELEASES", &usize::MAX.to_string()),
            // What Kubernetes sets for a Service called `procscan` is not ours.
            ("PROCSCAN_PORT", "tcp://10.0.0.1:9090"),
            ("PROCSCAN_SERVICE_HOST", "10.0.0.1"),
            ("PROCSCAN_PORT_9090_TCP", "tcp://10.0.0.1:9090"),
            ("OTHER__THING", "x"),
        ],
    )
    .unwrap();
    assert_eq!(config.aggregator.scan_interval, Duration::from_secs(30));
    assert_eq!((config.aggregator.port, config.logger.level), (9000, Level::Debug));
    assert_eq!(config.discovery.static_targets(1).unwrap().len(), 2);
    assert_eq!(config.brake.max_releases, usize::MAX);
    assert_eq!(
        (config.notification.contact.as_str(), config.notification.appeal.as_str()),
        ("ticket #5: ask", "4711")
    );
}

#[test]
fn exemptions_are_read_as_texts_or_expressions() {
    let text = r#"
enforcement:
  mode: dry-run
  shared_services: skip
  exemptions:
    - {namespace: ns-a, process: {regex: "^xm"}, reason: a contract, until: "2027-01-01T00:00:00Z"}
"#;
    let config = parse(text).unwrap();
    let policy = config.policy();
    assert_eq!((policy.mode, policy.shared_services), (Mode::DryRun, SharedServices::Skip));
    assert_eq!(policy.exemptions.len(), 1);
    assert!(policy.exemptions[0].until.is_some());
    refused(
        "enforcement: {exemptions: [{app: {regex: \"(\"}, reason: x}]}\n",
        "enforcement.exemptions[0].app",
        "regular expression",
    );
}

#[test]
fn whatever_writes_to_the_cluster_needs_the_lease() {
    let needs = |output, state| {
        let mut config = Config::default();
        (config.output.mode, config.state.mode) = (output, state);
        config.needs_lease()
    };
    assert!(needs(OutputMode::Cluster, None));
    assert!(needs(OutputMode::Cluster, Some(StateMode::File)));
    assert!(needs(OutputMode::Directory, Some(StateMode::Cluster)));
    assert!(!needs(OutputMode::Directory, Some(StateMode::File)));
}

#[test]
fn notices_per_round_are_at_most_half_of_its_requests_unless_max_per_round_is_set() {
    let limit = |text: &str| parse(text).unwrap().policy().max_notices_per_round;
    assert_eq!(limit(""), 600, "20 a second for a minute, halved: 2,000 tenants are notified in 4 rounds");
    assert_eq!(limit("kubernetes: {requests_per_second: 5}\naggregator: {scan_interval: 10s}\n"), 25);
    assert_eq!(limit("kubernetes: {requests_per_second: 1}\naggregator: {scan_interval: 10s}\n"), 5);
    assert_eq!(limit("notification: {max_per_round: 7}\n"), 7);
    refused("notification: {max_per_round: 0}\n", "notification.max_per_round", "1 or more");
}

#[test]
fn exemptions_confirm_how_many_tenants_they_may_open() {
    let text =
        "enforcement: {exemptions: [{app: x, reason: y}, {namespace: {regex: a}, reason: z, confirm: 30}]}\n";
    let exemptions = parse(text).unwrap().policy().exemptions;
    let confirmed: Vec<_> = exemptions.iter().map(|it| (it.place.as_str(), it.confirm)).collect();
    assert_eq!(confirmed, [("enforcement.exemptions[0]", None), ("enforcement.exemptions[1]", Some(30))]);
    refused(
        "enforcement: {exemptions: [{app: x, reason: y, confirm: all}]}\n",
        "enforcement.exemptions[0].confirm: invalid value \"all\"",
        "whole number",
    );
}

#[test]
fn a_date_that_is_far_ahead_by_this_machines_clock_gives_a_warning_and_stops_no_start() {
    // A date within ten years looks so to a service whose machine's clock is ten years behind.
    let config =
        parse("enforcement: {exemptions: [{app: x, reason: y, until: \"2045-01-01T00:00:00Z\"}]}\n").unwrap();
    assert_eq!(config.policy().exemptions.len(), 1);
    let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    assert!(
        warning.contains("enforcement.exemptions[0].until: 2045-01-01T00:00:00Z is more than ten years"),
        "{warning}"
    );
    let until = NOW + jiff::SignedDuration::from_hours(24 * 3650);
    let text = format!("enforcement: {{exemptions: [{{app: x, reason: y, until: \"{until}\"}}]}}\n");
    assert!(parse(&text).unwrap().warnings.is_empty());
}
