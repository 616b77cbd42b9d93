//! The metrics as they are written. What each of them shows is tested where it is counted, and by the service's own tests.

use std::collections::BTreeSet;

/// The metrics that the agents own: no name of ours may be one of them or begin with one.
const OF_AGENTS: [&str; 4] =
    ["procscan_scan", "procscan_threats_", "procscan_label_actions_", "procscan_notifications_"];

#[test]
fn no_name_collides_with_those_of_the_agents_and_every_name_is_registered_once() {
    let source = include_str!("mod.rs");
    // The names are the first texts of these calls.
    let calls = ["registry.register(", "register_with_unit(", "self.gauge(", "self.gauges(", "gauge("];
    let mut names = Vec::new();
    for call in calls {
        for (place, _) in source.match_indices(call) {
            let rest = source[place + call.len()..].trim_start();
            if let Some(name) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                names.push(format!("procscan_{name}"));
            }
        }
    }
    let distinct: BTreeSet<&String> = names.iter().collect();
    assert!(distinct.len() > 40, "{names:?}");
    for name in distinct {
        assert!(OF_AGENTS.iter().all(|prefix| !name.starts_with(prefix)), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
    }
}
