//! Values that match nothing or have no effect: refused, or reported as warnings.

use super::{parse, refused, with_files};

#[test]
fn a_part_of_an_exemption_is_refused_as_the_api_refuses_it() {
    let with = |part: &str| format!("enforcement: {{exemptions: [{{{part}, reason: x}}]}}\n");
    for written in ["'/^ns-t/'", "'^ns-t'", "NS_a", "ns-a/b"] {
        refused(
            &with(&format!("namespace: {written}")),
            &format!(
                "enforcement.exemptions[0].namespace: invalid value \"{}\": expected",
                written.trim_matches('\'')
            ),
            "is it a regular expression? It is written as `{regex: …}`",
        );
    }
    for part in ["namespace", "app", "process", "rule"] {
        let place = format!("enforcement.exemptions[0].{part}: ");
        refused(&with(&format!("{part}: ''")), &format!("{place}invalid value \"\": expected"), "not empty");
        refused(
            &with(&format!("{part}: {{regex: ''}}")),
            &format!("{place}invalid value \"\": expected"),
            "not empty",
        );
        let long = "\u{e9}".repeat(1025);
        for written in [format!("{part}: {long}"), format!("{part}: {{regex: {long}}}")] {
            refused(
                &with(&written),
                &format!("{place}invalid value of 1025 characters: expected"),
                "up to 1024 characters",
            );
        }
        if part != "namespace" {
            assert!(parse(&with(&format!("{part}: {}", "\u{e9}".repeat(1024)))).is_ok());
        }
    }
    assert!(parse(&with("namespace: {regex: ^ns-t}")).unwrap().warnings.is_empty());
}

#[test]
fn a_list_in_the_place_of_a_section_is_refused() {
    refused(
        "aggregator: [\"30s\", \"127.0.0.1\", 8099]\n",
        "aggregator: invalid value [\"30s\"",
        "a section with its keys",
    );
    refused("notification: {grace: [a]}\n", "notification.grace", "a section with its keys");
    refused(
        "enforcement: {exemptions: [[ns-a, null, null, null, x, \"2027-01-01T00:00:00Z\", null]]}\n",
        "enforcement.exemptions[0]",
        "a section with its keys",
    );
    refused(
        "enforcement: {exemptions: [{namespace: [^ns], reason: x}]}\n",
        "enforcement.exemptions[0].namespace",
        "a text, or `{regex: …}`",
    );
    assert!(parse("discovery: {mode: static, targets: [a]}\n").is_ok());
}

#[test]
fn a_value_that_has_no_effect_gives_a_warning_with_its_path() {
    const ALONE: &str = "discovery: {mode: static, targets: [a]}\noutput: {mode: directory}\n";
    let warned = |text: &str, path: &str, why: &str| {
        let warnings = parse(text).expect(text).warnings;
        let [warning] = &warnings[..] else { panic!("{text}: {warnings:?}") };
        assert!(warning.starts_with(&format!("config.yaml: {path}: ")), "{warning}");
        assert!(warning.contains(why), "{warning}");
    };
    let exempt = |part: &str| format!("enforcement: {{exemptions: [{{{part}, reason: x}}]}}\n");
    let place = "enforcement.exemptions[0]";
    warned(
        &exempt("namespace: kube-system"),
        &format!("{place}.namespace"),
        "never touched: the namespace is protected",
    );
    warned(&exempt("namespace: team-a"), &format!("{place}.namespace"), "not a tenant's");
    warned(&exempt("process: /^xm/"), &format!("{place}.process"), "`{regex: …}`");
    for everything in ["'*'", "n*", "ns-*"] {
        let text = format!("enforcement: {{protected_namespaces: [ns-a, {everything}]}}\n");
        warned(&text, "enforcement.protected_namespaces[1]", "every namespace");
    }
    warned(
        "aggregator: {scan_interval: 5s}\ncollector: {timeout: 10s}\n",
        "collector.timeout",
        "scan_interval, 5s",
    );
    warned("collector: {max_read: 1MiB}\n", "collector.max_read", "4MiB (collector.max_body)");
    warned(&format!("{ALONE}kubernetes: {{context: a}}\n"), "kubernetes.context", "needs a cluster");
    warned(&format!("{ALONE}daemonset: {{service_name: a}}\n"), "daemonset.service_name", "no Service");
    warned(
        "daemonset: {api_port: 9090, api_port_name: a}\n",
        "daemonset.api_port_name",
        "api_port counts instead",
    );
    warned("discovery: {cluster_domain: a.b}\n", "discovery.cluster_domain", "dns only");
    warned("notification: {grace: {title: a}}\n", "notification.grace", "enforcement.grace is 0s");
    let twice = "discovery: {mode: static, targets: [a, b, '', 'a:9090']}\noutput: {mode: directory}\n";
    warned(twice, "discovery.targets[3]", "discovery.targets[0] is the same target");

    for effective in [
        "aggregator: {scan_interval: 5s}\n",
        "aggregator: {scan_interval: 5s}\ncollector: {timeout: 5s}\n",
        "kubernetes: {context: a}\ndaemonset: {service_name: a, api_port_name: b}\n",
        "enforcement: {grace: 1s}\nnotification: {grace: {title: a}}\n",
        "enforcement: {protected_namespaces: ['ns-a*', 'ms-*'], exemptions: [{namespace: ns-b, reason: x}]}\n",
        "enforcement: {namespaces: '^(a|ns)-', protected_namespaces: ['ns-*', 'a*']}\n",
        "discovery: {mode: dns, cluster_domain: a.b}\ndaemonset: {service_name: a}\n",
        include_str!("../../../../../config.yaml"),
    ] {
        assert_eq!(parse(effective).unwrap().warnings, [""; 0], "{effective}");
    }
}

#[test]
fn a_file_of_targets_that_names_none_gives_a_warning_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("targets");
    let warnings = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let text =
            format!("discovery: {{mode: file, file: {}}}\noutput: {{mode: directory}}\n", path.display());
        with_files(&text).unwrap().warnings
    };
    assert_eq!(warnings("a:1\n"), Vec::<String>::new());
    for empty in ["", "# none yet\n"] {
        assert_eq!(
            warnings(empty),
            [format!("config.yaml: discovery.file: {}: it names no target", path.display())]
        );
    }
}
