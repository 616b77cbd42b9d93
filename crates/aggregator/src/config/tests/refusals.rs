//! Refusals: each with its path, the value and what is expected.

use super::{Config, NAME, NOW, parse, refused, refused_with_files, with_env, with_files};

#[test]
fn a_mistake_is_one_line_whatever_is_quoted_in_it() {
    for (text, place) in [
        ("brake: {max\n\n new_apps: 1}\n", "brake.max new_apps"),
        ("aggregator: {\"a\\nb\": 1}\n", "aggregator.a b"),
        ("discovery: {mode: file, file: \"not\\n there\"}\n", "discovery.file"),
    ] {
        refused_with_files(text, place, "expected");
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

/// If the variable were ignored, the file's value would stay in force, although the operator meant to switch
/// enforcement off.
#[cfg(unix)]
#[test]
fn a_value_of_the_environment_that_is_not_text_is_refused() {
    let value = std::os::unix::ffi::OsStringExt::from_vec(b"dry\xff-run".to_vec());
    let variable = ("PROCSCAN_ENFORCEMENT__MODE".to_owned(), value);
    let error = Config::parse("", NAME, [variable], NOW).unwrap_err().to_string();
    assert!(error.starts_with("PROCSCAN_ENFORCEMENT__MODE: invalid value \"dry"), "{error}");
    assert!(error.ends_with("expected a text in UTF-8"), "{error}");
    // A variable of another program is ignored, even if its value is not UTF-8.
    let other = ("LS_COLORS".to_owned(), std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]));
    assert!(Config::parse("", NAME, [other], NOW).is_ok());
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
    let config =
        parse("brake: {max_apps_per_node: 7, max_tenants_per_node: 3, max_apps_per_tenant: 9}\n").unwrap();
    let rules = config.policy().brake;
    assert_eq!((rules.max_apps_per_node, rules.max_tenants_per_node, rules.max_apps_per_tenant), (7, 3, 9));
    assert_eq!((rules.max_new_tenants, rules.max_tenants_per_rule, rules.max_releases), (20, 10, 20));
}

#[test]
fn bad_values_are_refused_with_path_value_and_what_is_expected() {
    refused(
        "aggregator: {scan_interval: 60}\n",
        "aggregator.scan_interval: invalid value 60: ",
        "expected a duration with its unit, such as 60s, 5m or 1h30m",
    );
    refused("aggregator: {scan_interval: fast}\n", "aggregator.scan_interval: invalid value \"fast\"", "60s");
    refused("aggregator: {scan_interval: 0s}\n", "aggregator.scan_interval: invalid value 0s", "1s to 1h");
    refused("aggregator: {port: 0}\n", "aggregator.port: invalid value 0: expected", "1 to 65535");
    refused("aggregator: {port: 70000}\n", "aggregator.port: invalid value 70000: expected", "1 to 65535");
    refused("aggregator: {port: \"80\"}\n", "aggregator.port: invalid value \"80\"", "1 to 65535");
    refused("daemonset: {api_path: violations}\n", "daemonset.api_path", "begins with /");
    refused("daemonset: {namespace: Kube_System}\n", "daemonset.namespace", "Kubernetes name");
    refused("logger: {level: trace}\n", "logger.level: invalid value `trace`", "`debug`");
    refused("enforcement: {mode: on}\n", "enforcement.mode", "`dry-run`");
    refused(
        "enforcement: {shared_services: open}\n",
        "enforcement.shared_services",
        "`block`, `hold`, `skip`",
    );
    let without_cluster = "discovery: {mode: static, targets: [\"10.0.0.1:9090\"]}\noutput: {mode: directory}\nenforcement: {shared_services: hold}\n";
    refused(without_cluster, "enforcement.shared_services: invalid value hold: ", "expected block");
    refused(
        "enforcement: {namespaces: \"(\"}\n",
        "enforcement.namespaces: invalid value \"(\"",
        "regular expression",
    );
    refused("collector: {max_body: 4096}\n", "collector.max_body: invalid value 4096", "512KiB");
    for written in ["8d", "192h", "169h", "1w 1s"] {
        refused(
            &format!("enforcement: {{grace: {written}}}\n"),
            &format!("enforcement.grace: invalid value {written}: "),
            "expected 0s to 7days",
        );
    }
    assert!(parse("enforcement: {grace: 168h}\n").is_ok());
    refused("gateway: {status_code: 200}\n", "gateway.status_code: invalid value 200", "400 to 599");
    refused("gateway: {phase: authn}\n", "gateway.phase", "`AUTHN`");
    refused("notification: {blocked: {title: \"{ap}\"}}\n", "notification.blocked.title", "{app}");
    refused(
        "brake: {max_new_tenants: -1}\n",
        "brake.max_new_tenants: invalid value -1: expected",
        "whole number from 0",
    );
    refused(
        "aggregator: {address: nohost}\n",
        "aggregator.address: invalid value \"nohost\": ",
        "IP address",
    );
    refused("enforcement: {namespaces: \"\"}\n", "enforcement.namespaces", "every namespace");
    refused(
        "notification: {blocked: {title: \"{until}\"}}\n",
        "notification.blocked.title: invalid value {until}",
        "no end",
    );
    refused("aggregator: 7\n", "aggregator: invalid value 7: expected", "a section with its keys");
    refused("a: 1\na: 2\n", "not valid YAML", "line 2");
    refused("brake: {window: 0s}\n", "brake.window", "1s to 24h");
}

#[test]
fn protected_namespaces_are_names_or_the_beginning_of_names() {
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
}

#[test]
fn an_exemption_has_a_reason_and_at_least_one_part() {
    refused(
        "enforcement: {exemptions: [{reason: x}]}\n",
        "enforcement.exemptions",
        "namespace, app, process, rule",
    );
    refused("enforcement: {exemptions: [{app: x}]}\n", "enforcement.exemptions[0]", "reason");
    // A part without a value would make the exemption cover more than its operator sees.
    for part in ["namespace", "app", "process", "rule"] {
        for given in ["", " null", " {regex: }", " {regex: x, exact: y}"] {
            let other = if part == "app" { "rule" } else { "app" };
            refused(
                &format!("enforcement:\n  exemptions:\n  - {other}: x\n    {part}:{given}\n    reason: y\n"),
                &format!("enforcement.exemptions[0].{part}"),
                "expected a text, or `{regex: …}`",
            );
        }
    }
    for (reason, shown) in [(" ".to_owned(), "\" \""), ("x".repeat(1025), "of 1025 characters")] {
        refused(
            &format!(
                "enforcement: {{exemptions: [{{app: x, reason: y}}, {{app: x, reason: \"{reason}\"}}]}}\n"
            ),
            &format!("enforcement.exemptions[1].reason: invalid value {shown}: "),
            "up to 1024 characters",
        );
    }
    let longest =
        format!("enforcement: {{exemptions: [{{app: x, reason: \"{}\"}}]}}\n", "\u{e9}".repeat(1024));
    assert!(parse(&longest).is_ok());
    refused(
        "enforcement: {exemptions: [{app: x, reason: y, until: tomorrow}]}\n",
        "enforcement.exemptions[0].until: invalid value \"tomorrow\"",
        "2027-01-01T00:00:00Z",
    );
}

#[test]
fn the_byte_budget_holds_eight_of_the_longest_answers_and_the_refusal_names_their_sum() {
    refused(
        "collector: {byte_budget: 31MiB}\n",
        "collector.byte_budget: invalid value 31MiB: expected 32MiB to 16GiB ",
        "8 times collector.max_body, which is 4MiB",
    );
    refused(
        "collector: {byte_budget: 7MiB, max_body: 8KiB}\n",
        "collector.byte_budget: invalid value 7MiB: expected 8MiB to 16GiB",
        "",
    );
    refused(
        "collector: {byte_budget: 7MiB}\n",
        "collector.byte_budget: invalid value 7MiB: expected 32MiB",
        "",
    );
    refused(
        "collector: {max_body: 512MiB}\n",
        "collector.max_body: invalid value 512MiB: ",
        "4KiB to 256MiB",
    );
    assert!(parse("collector: {byte_budget: 32MiB}\n").is_ok());
}

#[test]
fn impossible_combinations_are_refused() {
    refused("discovery: {mode: static}\n", "discovery.targets: invalid value []: ", "at least one");
    refused(
        "discovery: {mode: static, targets: [\"\", \"# none\"]}\n",
        "discovery.targets: invalid value [\"\",\"# none\"]: ",
        "at least one",
    );
    refused("discovery: {targets: [a]}\n", "discovery.targets", "static");
    refused("discovery: {mode: file}\n", "discovery.file: missing value: ", "a file's path");
    refused_with_files(
        "discovery: {mode: file, file: /no/such}\n",
        "discovery.file: invalid value /no/such",
        "a file that can be read",
    );
    refused(
        "discovery: {mode: static, targets: [\"a:0\"]}\n",
        "discovery.targets: entry 1: invalid value \"a:0\": expected ",
        "1 to 65535",
    );
    refused(
        "output: {directory: objects}\n",
        "output.directory: invalid value \"objects\"",
        "`output.mode` is `directory`",
    );
    refused(
        "detection: {assumed_scan_interval: 2h}\n",
        "detection.assumed_scan_interval: invalid value 2h",
        "1s to 1h",
    );
    refused(
        "detection: {unreachable_limit: 1m}\n",
        "detection.unreachable_limit: invalid value 1m",
        "detection.clear_after (30m)",
    );
}

#[test]
fn several_mistakes_are_reported_at_once() {
    let error =
        parse("aggregator: {scan_interval: 2h}\ngateway: {status_code: 99}\n").unwrap_err().to_string();
    assert_eq!(error.lines().count(), 2, "{error}");
    // Those in the files, too.
    let error = with_files(
        "aggregator: {scan_interval: 2h}\ndiscovery: {mode: file, file: /no/such}\nkubernetes: {kubeconfig: /no/such}\n",
    );
    let error = error.unwrap_err().to_string();
    assert_eq!(error.lines().count(), 3, "{error}");
}
