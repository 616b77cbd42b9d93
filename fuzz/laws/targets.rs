//! Laws of the lists of targets that operators write.

use procscan_aggregator::config::targets::parse;
use procscan_core::report::Target;

const PORT: u16 = 9090;

/// Laws of a list, one target per line.
///
/// # Panics
/// Panics if a law is broken.
pub(crate) fn targets(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let lines: Vec<&str> = text.lines().collect();
    match parse(lines.iter().copied(), PORT) {
        Ok(targets) => understood(&lines, &targets),
        Err(error) => refused(&lines, &error.to_string()),
    }
}

fn understood(lines: &[&str], targets: &[Target]) {
    assert!(targets.len() <= lines.len());
    assert!(targets.is_sorted_by(|a, b| a.address < b.address), "each address once, in order: {targets:?}");
    for Target { address, node } in targets {
        let (host, port) = address.rsplit_once(':').unwrap();
        assert!(!host.is_empty() && port.parse::<u16>().unwrap() != 0, "{address}");
        assert!(
            address.bytes().all(|byte| byte.is_ascii_graphic()),
            "an address becomes a part of a request: {address}"
        );
        let is_printable = node.0.bytes().all(|byte| byte.is_ascii_graphic());
        assert!(!node.0.is_empty() && is_printable, "{node:?}");
    }
    // The targets are parsed again as they are written, in any order, and with any comment.
    let written =
        targets.iter().rev().map(|target| format!("{} node={} # {}", target.address, target.node, "x y"));
    let written: Vec<String> = written.chain(["# a comment".to_owned(), String::new()]).collect();
    assert_eq!(parse(written.iter().map(String::as_str), 1).as_deref(), Ok(targets));
    assert_eq!(parse(lines.iter().rev().copied(), PORT).as_deref(), Ok(targets));
}

/// The error names the first line that is wrong.
fn refused(lines: &[&str], error: &str) {
    assert!(!error.contains(char::is_control) && error.len() < 4096, "{error}");
    let number: usize = error.strip_prefix("entry ").unwrap().split(':').next().unwrap().parse().unwrap();
    let upto = |number: usize| parse(lines.iter().take(number).copied(), PORT);
    assert!(upto(number - 1).is_ok(), "{error}");
    assert_eq!(upto(number).unwrap_err().to_string(), error);
}
