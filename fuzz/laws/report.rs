//! Laws of agents' answers: of the decoder, and of a ledger that takes them in.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::ledger::{Detection, Ledger};
use procscan_core::names::{NodeName, is_dns_label, is_dns_subdomain};
use procscan_core::report::{
    Answer, DecodeError, Decoder, Failure, FailureReason, Limits, Outcome, Report, Target, decode,
};
use procscan_core::snapshot::{Snapshot, State};

/// Small, so that small inputs reach them.
const LIMITS: Limits = Limits { records: 6, bytes: 1200, process: 12, cmdline: 24, field: 40 };
/// More than any input has.
const WIDE: Limits =
    Limits { records: 1 << 20, bytes: 1 << 30, process: 1 << 20, cmdline: 1 << 20, field: 1 << 20 };
const MAX_KEYS: usize = 4;
const NODES: [&str; 2] = ["n0", "n1"];
/// Everything that agents listed in a few rounds is over after this time.
const FOR_EVER: Duration = Duration::from_hours(24 * 4);

/// Laws of decoding one body, and of a ledger that takes in several bodies. An empty line divides them.
///
/// # Panics
/// Panics if a law is broken.
pub(crate) fn report(input: &[u8]) {
    let bodies = split(input);
    for body in &bodies {
        decoded(body);
    }
    taken_in(&bodies);
}

fn split(input: &[u8]) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    let mut rest = input;
    while let Some(at) = rest.windows(2).position(|two| two == b"\n\n") {
        let (body, more) = rest.split_at(at);
        bodies.push(body);
        rest = more.get(2..).unwrap_or_default();
    }
    bodies.push(rest);
    bodies.truncate(16);
    bodies
}

fn decoded(body: &[u8]) {
    let (answer, result) = decode(body, &LIMITS);
    assert!(answer.records.len() <= LIMITS.records && answer.records.bytes() <= LIMITS.bytes);
    in_pieces(body, &answer, &result);
    for record in answer.records.iter() {
        let key = record.key;
        assert!(is_dns_label(key.namespace) && is_dns_subdomain(key.pod), "{key:?}");
        assert!((1..=LIMITS.process).contains(&key.process.len()) && record.cmdline.len() <= LIMITS.cmdline);
        for text in [record.regex, record.status, record.kind, record.name, record.timestamp] {
            assert!(text.len() <= LIMITS.field, "{text}");
        }
        // The decoder also reads times that jiff refuses, but it reads all others as jiff does.
        if let Ok(instant) = record.timestamp.parse::<Timestamp>() {
            assert_eq!(instant, record.detected_at);
        }
    }
    if let Err(error) = &result {
        let error = error.to_string();
        assert!(error.len() < 100 && !error.contains('\n'), "{error}");
    }

    // The limits only decide how a record is refused, and each record that is not listed is counted.
    let (wide, same) = decode(body, &WIDE);
    assert_eq!(result, same);
    let counted = |answer: &Answer| answer.records.len() as u64 + answer.rejected.total();
    assert_eq!(counted(&answer), counted(&wide));

    // The records that were read are read again, in the form in which the API shows them.
    let text = serde_json::to_vec(&answer.records).unwrap();
    let (again, result) = decode(&text, &LIMITS);
    assert_eq!((again.records, again.rejected.total(), result), (answer.records, 0, Ok(())));

    // A body that breaks off gives the first records of the whole body.
    let cut = body.len() * 2 / 3;
    let (part, _) = decode(body.get(..cut).unwrap_or_default(), &WIDE);
    assert!(part.records.len() <= wide.records.len(), "cut at {cut}");
    assert!(part.records.iter().eq(wide.records.iter().take(part.records.len())), "cut at {cut}");
}

/// The pieces in which a body arrives do not change the result. A decoder holds at most one record more than its limits
/// allow.
fn in_pieces(body: &[u8], answer: &Answer, result: &Result<(), DecodeError>) {
    for size in [1, 2, 3, 7, 64] {
        let mut decoder = Decoder::new(&LIMITS);
        for piece in body.chunks(size) {
            decoder.push(piece);
            assert!(decoder.held() <= LIMITS.bytes * 2, "{}", decoder.held());
        }
        let (same, end) = decoder.finish();
        assert_eq!(
            (&same.records, &same.rejected, &same.left_out, &end),
            (&answer.records, &answer.rejected, &answer.left_out, result),
            "in pieces of {size}"
        );
    }
}

fn moment(after: Duration) -> Moment {
    Moment::new(after, Timestamp::from_second(1_766_399_400).unwrap() + after)
}

fn target(node: &str) -> Target {
    Target { address: format!("{node}:9090").into(), node: NodeName::new(node) }
}

fn outcome((answer, result): (Answer, Result<(), DecodeError>), at: Moment) -> Outcome {
    let answer = Answer { date: Some(at.wall()), ..answer };
    match result {
        Ok(()) => Outcome::Complete(answer),
        Err(error) => {
            Outcome::Partial(answer, Failure { reason: FailureReason::Malformed, detail: error.to_string() })
        }
    }
}

/// Each node answers once a minute with one body after the other. The second node is one body ahead.
fn taken_in(bodies: &[&[u8]]) {
    let rules = Detection { max_keys_per_node: MAX_KEYS, ..Detection::default() };
    let new = || {
        let mut ledger = Ledger::new(rules.clone(), moment(Duration::ZERO));
        ledger.expect(NODES.map(target), 0);
        ledger
    };
    let (mut one, mut other) = (new(), new());
    let mut now = moment(Duration::ZERO);
    for round in 0..bodies.len() {
        now = moment(Duration::from_mins(1 + round as u64));
        let reports: Vec<Report> = NODES
            .iter()
            .enumerate()
            .map(|(n, node)| {
                let body = bodies.get((round + n) % bodies.len()).unwrap();
                Report { target: target(node), at: now, outcome: outcome(decode(body, &LIMITS), now) }
            })
            .collect();
        for report in &reports {
            one.absorb(report);
            let before = one.snapshot(now);
            assert_eq!(one.absorb(report), [], "the same report again");
            same(&before, &one.snapshot(now));
        }
        reports.iter().rev().for_each(|report| drop(other.absorb(report)));
        one.advance(now);
        other.advance(now);
        let snapshot = one.snapshot(now);
        same(&snapshot, &other.snapshot(now));
        bounded(&snapshot);
    }
    // When no agent answers any more, the ledger forgets everything in the end.
    let end = now.uptime() + FOR_EVER;
    while now.uptime() < end {
        now = moment(now.uptime() + Duration::from_hours(1));
        one.advance(now);
    }
    let left = one.snapshot(now);
    assert!(left.violations.is_empty() && left.list.is_empty(), "{:?}", left.violations);
}

/// Two ledgers show the same.
fn same(one: &Snapshot, other: &Snapshot) {
    assert_eq!(format!("{:?}", one.violations), format!("{:?}", other.violations));
    assert_eq!((&one.list, one.coverage), (&other.list, other.coverage));
}

fn bounded(snapshot: &Snapshot) {
    let mut of_node: BTreeMap<&NodeName, usize> = BTreeMap::new();
    for violation in &snapshot.violations {
        for evidence in violation.evidence() {
            *of_node.entry(&evidence.node).or_default() += 1;
        }
        let is_fresh = violation.evidence().any(|evidence| evidence.fresh_at.is_some());
        assert!(is_fresh || violation.state != State::Active, "active, and never fresh: {violation:?}");
    }
    assert!(of_node.values().all(|count| *count <= MAX_KEYS), "{of_node:?}");
    assert!(snapshot.violations.is_sorted_by(|a, b| a.key < b.key));
    let listed = snapshot.violations.iter().filter(|violation| violation.state != State::Cleared).count();
    assert_eq!(snapshot.list.len(), listed);
}
