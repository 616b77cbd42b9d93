mod effect;

use std::time::Duration;

use procscan_core::decision::Mode;
use procscan_core::plan::SharedServices;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "config.yaml", [])
}

fn with_env(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::parse(
        text,
        "config.yaml",
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

/// One line that names the place, and says what is allowed.
fn refused(text: &str, place: &str, allowed: &str) {
    let error = parse(text).expect_err(text).to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with(&format!("config.yaml: {place}")), "{error}");
    assert!(error.contains(allowed), "{error}");
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
            // Without any limit, as the file can say it.
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
fn a_mistake_is_one_line_whatever_is_quoted_in_it() {
    for (text, place) in [
        ("brake: {max\n\n new_apps: 1}\n", "brake.max new_apps"),
        ("aggregator: {\"a\\nb\": 1}\n", "aggregator.a b"),
        ("discovery: {mode: file, file: \"not\\n there\"}\n", "discovery.file"),
    ] {
        refused(text, place, "allowed");
    }
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    for (name, value, says) in [
        ("PROCSCAN_AGGREGATOR__PORT", "0", "1 to 65535"),
        ("PROCSCAN_AGGREGATOR__PROT", "80", "scan_interval"),
        ("PROCSCAN_AGGREGATOR__SCAN_INTERVAL", "soon", "60s"),
        ("PROCSCAN_AGGREGATOR__SCAN_INTERVAL", "2h", "1s to 1h"),
        ("PROCSCAN_AGGREGATOR__PORT__X", "1", "no keys of its own"),
        ("PROCSCAN_LOGER__LEVEL", "debug", "`logger`"),
        ("PROCSCAN_DISCOVERY__TARGETS", "[", "YAML"),
    ] {
        let text = "aggregator: {port: 8090}\n";
        let error = with_env(text, &[(name, value)]).expect_err(name).to_string();
        assert!(error.starts_with(name) && error.contains(says), "{error}");
    }
}

#[test]
fn unknown_keys_are_refused_with_those_that_are_known() {
    refused("agregator: {}\n", "", "`aggregator`");
    refused("aggregator: {scan_intervall: 60s}\n", "aggregator", "`scan_interval`");
    refused("notification: {blocked: {titel: x}}\n", "notification.blocked", "`title`");
    // Without a value, too: a section whose keys are all comments is none of them.
    refused("agregator:\n", "agregator", "`aggregator`");
    refused("collector:\n  timout:\n", "collector", "`timeout`");
    assert!(parse("collector:\n  timeout:\ngateway:\n").is_ok());
}

#[test]
fn keys_of_brakes_that_counted_something_else_are_refused_with_their_new_names() {
    for (old, new) in [
        ("max_new_apps", "use `max_new_tenants`"),
        ("max_namespaces_per_rule", "called `max_tenants_per_rule`"),
    ] {
        refused(&format!("brake: {{{old}: 20}}\n"), "brake", new);
        // Without a value, too.
        refused(&format!("brake:\n  {old}:\n"), "brake", new);
        let variable = format!("PROCSCAN_BRAKE__{}", old.to_uppercase());
        let error = with_env("", &[(&variable, "20")]).expect_err(old).to_string();
        assert!(error.starts_with(&variable) && error.contains(new), "{error}");
    }
    let kept =
        parse("brake: {max_apps_per_node: 7, max_tenants_per_node: 3, max_apps_per_tenant: 9}\n").unwrap();
    let rules = kept.policy().brake;
    assert_eq!((rules.max_apps_per_node, rules.max_tenants_per_node, rules.max_apps_per_tenant), (7, 3, 9));
    assert_eq!((rules.max_new_tenants, rules.max_tenants_per_rule, rules.max_releases), (20, 10, 20));
}

#[test]
fn bad_values_are_refused_with_path_value_and_what_is_allowed() {
    refused("aggregator: {scan_interval: 60}\n", "aggregator.scan_interval: 60 ", "60s, 5m or 1h30m");
    refused("aggregator: {scan_interval: fast}\n", "aggregator.scan_interval: \"fast\"", "60s");
    refused("aggregator: {scan_interval: 0s}\n", "aggregator.scan_interval: 0s", "1s to 1h");
    refused("aggregator: {port: 0}\n", "aggregator.port: 0 ", "1 to 65535");
    refused("aggregator: {port: 70000}\n", "aggregator.port: 70000 ", "1 to 65535");
    refused("aggregator: {port: \"80\"}\n", "aggregator.port: \"80\"", "1 to 65535");
    refused("daemonset: {api_path: violations}\n", "daemonset.api_path", "begins with /");
    refused("daemonset: {namespace: Kube_System}\n", "daemonset.namespace", "Kubernetes name");
    refused("logger: {level: trace}\n", "logger.level: `trace`", "`debug`");
    refused("enforcement: {mode: on}\n", "enforcement.mode", "`dry-run`");
    refused(
        "enforcement: {shared_services: open}\n",
        "enforcement.shared_services",
        "`block`, `hold`, `skip`",
    );
    let without_cluster = "discovery: {mode: static, targets: [\"10.0.0.1:9090\"]}\noutput: {mode: directory}\nenforcement: {shared_services: hold}\n";
    refused(without_cluster, "enforcement.shared_services: hold is not allowed", "allowed is block");
    refused("enforcement: {namespaces: \"(\"}\n", "enforcement.namespaces: \"(\"", "regular expression");
    let (longest, longer) = ("a".repeat(63), "a".repeat(64));
    let no_names =
        ["a*b", "^ns-vip-.*", "/^kube-/", "Kube-System", "ns-a ", "a,b", "", "-a", "-a*", "a-", "ns_a"];
    for wrong in no_names.into_iter().chain([&*longer]) {
        let yaml = format!("enforcement: {{protected_namespaces: [\"{wrong}\"]}}\n");
        refused(&yaml, "enforcement.protected_namespaces", "no regular expression");
    }
    for right in ["a", "ns-vip-*", "*", "0-a", "kube*", &*longest] {
        let yaml = format!("enforcement: {{protected_namespaces: [\"{right}\"]}}\n");
        assert!(parse(&yaml).is_ok(), "{right}");
    }
    refused(
        "enforcement: {exemptions: [{reason: x}]}\n",
        "enforcement.exemptions",
        "namespace, app, process, rule",
    );
    refused("enforcement: {exemptions: [{app: x}]}\n", "enforcement.exemptions[0]", "reason");
    for (reason, shown) in
        [(" ".to_owned(), "an empty reason"), ("x".repeat(1025), "a reason of 1025 characters")]
    {
        refused(
            &format!(
                "enforcement: {{exemptions: [{{app: x, reason: y}}, {{app: x, reason: \"{reason}\"}}]}}\n"
            ),
            &format!("enforcement.exemptions[1].reason: {shown} is not allowed"),
            "up to 1024 characters",
        );
    }
    let longest =
        format!("enforcement: {{exemptions: [{{app: x, reason: \"{}\"}}]}}\n", "\u{e9}".repeat(1024));
    assert!(parse(&longest).is_ok());
    refused("collector: {max_body: 4096}\n", "collector.max_body: 4096", "512KiB");
    refused(
        "collector: {byte_budget: 31MiB}\n",
        "collector.byte_budget: 31MiB is",
        "8 times collector.max_body",
    );
    refused(
        "collector: {byte_budget: 7MiB, max_body: 8KiB}\n",
        "collector.byte_budget: 7MiB is",
        "at least 8MiB",
    );
    assert!(parse("collector: {byte_budget: 32MiB}\n").is_ok());
    for written in ["8d", "192h", "169h", "1w 1s"] {
        refused(
            &format!("enforcement: {{grace: {written}}}\n"),
            &format!("enforcement.grace: {written} is not allowed"),
            "allowed is 0s to 7days",
        );
    }
    assert!(parse("enforcement: {grace: 168h}\n").is_ok());
    refused("gateway: {status_code: 200}\n", "gateway.status_code: 200", "400 to 599");
    refused("gateway: {phase: authn}\n", "gateway.phase", "`AUTHN`");
    refused("notification: {blocked: {title: \"{ap}\"}}\n", "notification.blocked.title", "{app}");
    refused("brake: {max_new_tenants: -1}\n", "brake.max_new_tenants: -1 ", "whole number from 0");
    refused("aggregator: {address: nohost}\n", "aggregator.address: \"nohost\" is not allowed", "IP address");
    refused("enforcement: {namespaces: \"\"}\n", "enforcement.namespaces", "every namespace");
    refused(
        "enforcement: {exemptions: [{app: x, reason: y, until: tomorrow}]}\n",
        "enforcement.exemptions[0].until: \"tomorrow\"",
        "2027-01-01T00:00:00Z",
    );
    refused(
        "notification: {blocked: {title: \"{until}\"}}\n",
        "notification.blocked.title: {until}",
        "no end",
    );
    refused("aggregator: 7\n", "aggregator: 7 ", "a section with its keys");
    refused("a: 1\na: 2\n", "not valid YAML", "line 2");
    refused("brake: {window: 0s}\n", "brake.window", "1s to 1day");
}

#[test]
fn impossible_combinations_are_refused() {
    refused("discovery: {mode: static}\n", "discovery.targets: an empty list", "at least one");
    refused(
        "discovery: {mode: static, targets: [\"\", \"# none\"]}\n",
        "discovery.targets: a list without a target",
        "at least one",
    );
    refused("discovery: {targets: [a]}\n", "discovery.targets", "static");
    refused("discovery: {mode: file}\n", "discovery.file", "a file's path");
    refused(
        "discovery: {mode: file, file: /no/such}\n",
        "discovery.file: /no/such",
        "a file that can be read",
    );
    refused(
        "discovery: {mode: static, targets: [\"a:0\"]}\n",
        "discovery.targets: entry 1: \"a:0\"",
        "1 to 65535",
    );
    refused(
        "output: {directory: objects}\n",
        "output.directory: \"objects\"",
        "`output.mode` is `directory`",
    );
    refused("detection: {assumed_scan_interval: 2h}\n", "detection.assumed_scan_interval: 2h", "1s to 1h");
    refused(
        "detection: {unreachable_limit: 1m}\n",
        "detection.unreachable_limit: 1m",
        "detection.clear_after (30m)",
    );
}

#[test]
fn the_cluster_says_who_asks_where_there_is_one_else_the_token_file() {
    const ALONE: &str = "discovery: {mode: static, targets: [a]}\noutput: {mode: directory}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "alice aaaaaaaaaaaaaaaa\n").unwrap();
    let token_file = format!("token_file: {}", file.path().display());
    let auth = |text: String| {
        let config = parse(&text).unwrap();
        (config.auth(), config.needs_cluster())
    };
    assert_eq!(auth(String::new()), (Auth::Kubernetes, true));
    assert_eq!(auth(ALONE.to_owned()), (Auth::None, false));
    assert_eq!(auth(format!("{ALONE}api: {{{token_file}}}\n")), (Auth::Tokens, false));
    assert_eq!(auth(format!("{ALONE}api: {{auth: none}}\n")), (Auth::None, false));
    assert_eq!(auth(format!("{ALONE}api: {{auth: kubernetes}}\n")), (Auth::Kubernetes, true));
    assert_eq!(auth(format!("api: {{auth: tokens, {token_file}}}\n")), (Auth::Tokens, true));
    assert_eq!(auth("api: {auth: none}\n".to_owned()), (Auth::None, true));

    refused("api: {auth: tokens}\n", "api.token_file: nothing", "a file's path");
    refused("api: {token_file: /x}\n", "api.token_file: /x", "`api.auth` is `tokens`");
    refused("api: {auth: none, token_file: /x}\n", "api.token_file: /x", "`api.auth` is `tokens`");
    refused("api: {auth: tokens, token_file: /no/such}\n", "api.token_file: /no/such: can't be read", "");
    refused("api: {auth: off}\n", "api.auth: `off`", "`kubernetes`, `tokens`, `none`");
    for bad in ["1MiB", "8191KiB", "5GiB"] {
        let place = format!("api.max_in_flight: {bad}");
        refused(&format!("api: {{max_in_flight: {bad}}}\n"), &place, "8MiB to 4GiB");
    }
    refused("api: {max_in_flight: 64}\n", "api.max_in_flight: 64", "4MiB");
    assert_eq!(parse("api: {max_in_flight: 8MiB}\n").unwrap().api.max_in_flight, 8 << 20);
    std::fs::write(&file, "alice secret\n").unwrap();
    let error = parse(&format!("api: {{auth: tokens, {token_file}}}\n")).unwrap_err().to_string();
    assert!(error.contains(": line 1 is not allowed") && !error.contains("secret"), "{error}");
}

#[test]
fn several_mistakes_are_told_at_once() {
    let error =
        parse("aggregator: {scan_interval: 2h}\ngateway: {status_code: 99}\n").unwrap_err().to_string();
    assert_eq!(error.lines().count(), 2, "{error}");
}

#[test]
fn what_is_no_yaml_is_one_line_with_its_place() {
    for text in [
        "aggregator: [\n",
        "a: b: c\n",
        "aggregator:\n\tport: 1\n",
        "port: 1\nport: 2\n",
        "- a\n",
        "text\n",
        "aggregator: 7\n",
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.starts_with("config.yaml: "), "{error}");
    }
    let missing = Config::load(Path::new("/no/such/config.yaml"), []).unwrap_err().to_string();
    assert!(missing.starts_with("/no/such/config.yaml: can't be read: "), "{missing}");
}

#[test]
fn only_regular_files_of_a_bounded_size_are_read_and_a_pipe_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let [pipe, large, link] = ["pipe", "large", "link"].map(|name| directory.path().join(name));
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    std::fs::File::create(&large).unwrap().set_len((16 << 20) + 1).unwrap();
    for (path, problem) in [
        (pipe.as_path(), "it is a pipe, a socket or a device, not a regular file"),
        (Path::new("/dev/zero"), "it is a pipe, a socket or a device, not a regular file"),
        (directory.path(), "it is a directory, not a regular file"),
        (large.as_path(), "it is larger than 16 MiB"),
    ] {
        let path = path.display();
        let error = Config::load(Path::new(&path.to_string()), []).unwrap_err().to_string();
        assert_eq!(error, format!("{path}: can't be read: {problem}"));
        refused(
            &format!("discovery: {{mode: file, file: {path}}}\n"),
            &format!("discovery.file: {path}"),
            problem,
        );
        refused(
            &format!("kubernetes: {{kubeconfig: {path}}}\n"),
            &format!("kubernetes.kubeconfig: {path}"),
            problem,
        );
    }
    // The files of a ConfigMap are links.
    std::fs::write(&large, "aggregator: {port: 8090}\n").unwrap();
    std::os::unix::fs::symlink(&large, &link).unwrap();
    Config::load(&link, []).unwrap();
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
fn so_many_tenants_are_told_per_round_as_half_of_its_requests_allow_unless_it_is_said() {
    let told = |text: &str| parse(text).unwrap().policy().max_notices_per_round;
    assert_eq!(told(""), 600, "20 a second for a minute, halved: 2,000 tenants are told in 4 rounds");
    assert_eq!(told("kubernetes: {requests_per_second: 5}\naggregator: {scan_interval: 10s}\n"), 25);
    assert_eq!(told("kubernetes: {requests_per_second: 1}\naggregator: {scan_interval: 10s}\n"), 5);
    assert_eq!(told("notification: {max_per_round: 7}\n"), 7);
    refused("notification: {max_per_round: 0}\n", "notification.max_per_round", "1 or more");
}

#[test]
fn exemptions_say_how_many_tenants_they_may_open() {
    let text =
        "enforcement: {exemptions: [{app: x, reason: y}, {namespace: {regex: a}, reason: z, confirm: 30}]}\n";
    let exemptions = parse(text).unwrap().policy().exemptions;
    let said: Vec<_> = exemptions.iter().map(|it| (it.place.as_str(), it.confirm)).collect();
    assert_eq!(said, [("enforcement.exemptions[0]", None), ("enforcement.exemptions[1]", Some(30))]);
    refused(
        "enforcement: {exemptions: [{app: x, reason: y, confirm: all}]}\n",
        "enforcement.exemptions[0].confirm: \"all\"",
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
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 3650);
    let text = format!("enforcement: {{exemptions: [{{app: x, reason: y, until: \"{until}\"}}]}}\n");
    assert!(parse(&text).unwrap().warnings.is_empty());
}
