//! Checks that parts use each other only in the allowed direction, and that the domain has no forbidden dependency.

use std::collections::BTreeSet;
use std::fs;

use crate::modules::Modules;

/// The crates that the domain must not depend on: I/O, tasks, clients, and our other crates.
const FORBIDDEN_IN_CORE: [&str; 11] = [
    "tokio",
    "tokio-util",
    "mio",
    "kube",
    "k8s-openapi",
    "axum",
    "hyper",
    "tower",
    "rusqlite",
    "procscan-agent",
    "procscan-aggregator",
];

/// Calls that read a clock.
const CLOCKS: [&str; 4] = ["Instant::now", "SystemTime::now", "Timestamp::now", "Zoned::now"];

/// Modules of the aggregator, each with the modules that it must not use.
const FORBIDDEN_IN_AGGREGATOR: [(&str, &[&str]); 8] = [
    (
        "config",
        &[
            "api",
            "cluster_facts",
            "collector",
            "commands",
            "discovery",
            "kubernetes",
            "leader",
            "ledger_task",
            "output",
            "policy_task",
            "state",
        ],
    ),
    (
        "kubernetes",
        &[
            "api",
            "cluster_facts",
            "collector",
            "commands",
            "discovery",
            "leader",
            "output",
            "policy_task",
            "state",
        ],
    ),
    (
        "collector",
        &[
            "api",
            "cluster_facts",
            "commands",
            "kubernetes",
            "leader",
            "ledger_task",
            "output",
            "policy_task",
            "state",
        ],
    ),
    (
        "discovery",
        &[
            "api",
            "cluster_facts",
            "collector",
            "commands",
            "leader",
            "ledger_task",
            "output",
            "policy_task",
            "state",
        ],
    ),
    ("ledger_task", &["api", "commands", "kubernetes", "leader", "output", "policy_task", "state"]),
    (
        "cluster_facts",
        &[
            "api",
            "collector",
            "commands",
            "discovery",
            "leader",
            "ledger_task",
            "output",
            "policy_task",
            "state",
        ],
    ),
    (
        "output",
        &[
            "api",
            "cluster_facts",
            "collector",
            "commands",
            "discovery",
            "ledger_task",
            "policy_task",
            "state",
        ],
    ),
    (
        "api",
        &["collector", "commands", "output::cluster", "output::directory", "policy_task::leader_term", "run"],
    ),
];

#[test]
fn the_domain_depends_on_no_task_no_client_and_no_clock() {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let named: BTreeSet<&str> =
        dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).collect();
    assert!(named.contains("serde"), "the dependencies were not found: {dependencies}");
    let forbidden: Vec<_> = FORBIDDEN_IN_CORE.iter().filter(|name| named.contains(*name)).collect();
    assert!(forbidden.is_empty(), "core depends on {forbidden:?}");
    let mut files = vec![crate::sources_of("crates/core").unwrap()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let read = CLOCKS.iter().find(|clock| text.contains(*clock));
        assert!(read.is_none(), "{}: {read:?}: the time is passed in", path.display());
    }
}

#[test]
fn the_parts_of_the_aggregator_use_each_other_in_one_direction() {
    let Some(src) = crate::sources_of("crates/aggregator") else { return };
    let modules = Modules::of(&src);
    let uses = modules.uses();
    let of_root = uses.get(&Vec::new()).unwrap();
    let mut found = Vec::new();
    for ((user, used), examples) in of_root {
        let rules = FORBIDDEN_IN_AGGREGATOR
            .iter()
            .filter(|(name, _)| name == user)
            .flat_map(|(_, forbidden)| *forbidden);
        for rule in rules {
            let (module, below) = rule.split_once("::").unwrap_or((rule, ""));
            let breaks =
                examples.iter().find(|example| below.is_empty() || example.contains(&format!("::{rule}::")));
            if module == used
                && let Some(example) = breaks
            {
                found.push(format!("{user} must not use {rule}: {example}"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
