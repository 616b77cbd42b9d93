//! What the log says of the output: each state once, when it begins and when it ends.

use super::*;
use crate::telemetry::logged::Logged;

#[test]
fn each_state_of_the_output_is_logged_once_when_it_begins_and_once_when_it_ends() {
    let temp = tempfile::tempdir().unwrap();
    let output = Output::Directory(Directory::open(temp.path()).unwrap());
    let place = format!("place=\"{}\"", temp.path().display());
    let (status, shown) = watch::channel(OutputStatus::default());
    let (logged, _guard) = Logged::start();
    let says = |outcome: Outcome| {
        report(&output, outcome, &status);
        logged.lines()
    };
    let one = |lines: Vec<String>, level: &str, text: &str| {
        let [line] = &lines[..] else { panic!("{text}: {lines:?}") };
        assert!(line.starts_with(level) && line.contains(text), "{line}");
        line.clone()
    };
    let none = Vec::<String>::new();
    let well = Outcome::default;
    assert_eq!(says(well()), none);
    for (written, removed) in [(1, 0), (0, 1)] {
        let line = one(says(Outcome { written, removed, ..well() }), "INFO", "objects written");
        assert!(
            line.contains(&format!("written={written} removed={removed}")) && line.contains(&place),
            "{line}"
        );
    }

    let refused = |why: &str| Outcome { problems: vec![why.to_owned()], ..well() };
    let line = one(says(refused("no room")), "ERROR", "objects can't be written; trying again");
    assert!(line.contains("no room") && line.contains(&place), "{line}");
    assert_eq!(says(refused("no room")), none);
    one(says(refused("no right")), "ERROR", "no right");
    one(says(well()), "INFO", "objects can be written again");
    assert_eq!(says(well()), none);

    let aside =
        |count| Outcome { deferred: DeferredSummary { count, ..DeferredSummary::default() }, ..well() };
    one(says(aside(1)), "WARN", "messages can't be written; everything else goes on");
    // However many there are: tenants choose their number.
    assert_eq!(says(aside(2)), none);
    one(says(well()), "INFO", "all messages are written again");
    assert_eq!(says(well()), none);

    let left_open = |services| {
        let text = format!("{services} Services stay open: ns-a/app/web (3)");
        let left_open = (services > 0).then_some(text).into_iter().collect();
        Outcome { left_open: Some(left_open), ..well() }
    };
    let line = one(says(left_open(3)), "ERROR", "blocked Apps are not closed on every route");
    assert!(line.contains("alert=\"gateway\"") && line.contains("ns-a/app/web (3)"), "{line}");
    assert_eq!(says(left_open(4)), none);
    // A pass that did not find out changes nothing.
    assert_eq!(says(well()), none);
    assert!(shown.borrow().left_open.is_some());
    one(says(left_open(0)), "INFO", "blocked Apps are closed on every route again");
    assert_eq!(says(left_open(0)), none);

    let suspended = || Outcome { suspended: vec!["WasmPlugin gw/x".to_owned()], ..well() };
    let line = one(says(suspended()), "WARN", "suspended: left as they are");
    assert!(line.contains("WasmPlugin gw/x"), "{line}");
    assert_eq!(says(suspended()), none);
    one(says(well()), "INFO", "objects are no longer suspended");
    assert_eq!(says(well()), none);
}
