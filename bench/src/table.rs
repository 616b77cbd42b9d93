//! The figures, a row for each fleet.
#![expect(clippy::cast_precision_loss, reason = "people read three digits of them")]

use std::fmt;
use std::time::Duration;

/// The costs of one fleet. Times in seconds, memory in KiB.
pub(crate) struct Row {
    pub(crate) nodes: usize,
    /// How many of them misbehaved.
    pub(crate) faulty: usize,
    pub(crate) records: usize,
    pub(crate) cpu: f64,
    pub(crate) cpu_changes: f64,
    pub(crate) bare: f64,
    pub(crate) bare_wall: f64,
    pub(crate) first_round: f64,
    pub(crate) bytes: u64,
    /// Memory when all nodes were known, before any change.
    pub(crate) idle: u64,
    pub(crate) peak: u64,
    pub(crate) rss: u64,
    pub(crate) changes: usize,
    pub(crate) missing: usize,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) slowest: Duration,
}

/// The text of a figure.
type Cell<'a> = &'a dyn Fn(&Row) -> String;

/// All figures, with their names.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.0.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |seconds: f64, nodes: usize| format!("{:.1}", seconds * 1e6 / nodes as f64);
        let megabytes = |kib: u64| format!("{:.1}", kib as f64 * 1024.0 / 1e6);
        let columns: [(&str, Cell<'_>); 19] = [
            ("nodes, one connection each", &|row| row.nodes.to_string()),
            ("of them faulty", &|row| row.faulty.to_string()),
            ("records", &|row| row.records.to_string()),
            ("bytes per round, MB", &|row| format!("{:.1}", row.bytes as f64 / 1e6)),
            ("first round, wall s", &|row| format!("{:.2}", row.first_round)),
            ("bare loop, wall s", &|row| format!("{:.2}", row.bare_wall)),
            ("CPU s per round", &|row| format!("{:.3}", row.cpu)),
            ("bare loop, CPU s", &|row| format!("{:.3}", row.bare)),
            ("times the bare loop", &|row| format!("{:.2}", row.cpu / row.bare)),
            ("CPU µs per node", &|row| micros(row.cpu, row.nodes)),
            ("bare loop, µs per node", &|row| micros(row.bare, row.nodes)),
            ("CPU s, round with changes", &|row| format!("{:.3} ({})", row.cpu_changes, row.changes)),
            ("idle RSS, MB", &|row| megabytes(row.idle)),
            ("peak RSS, MB", &|row| megabytes(row.peak)),
            ("RSS after it, MB", &|row| megabytes(row.rss)),
            ("times idle", &|row| format!("{:.2}", row.rss as f64 / row.idle as f64)),
            ("answer to output, p50 ms", &|row| row.p50.as_millis().to_string()),
            ("answer to output, p99 ms", &|row| row.p99.as_millis().to_string()),
            ("answer to output, slowest ms", &|row| {
                let missing =
                    if row.missing == 0 { String::new() } else { format!(" ({} missing)", row.missing) };
                format!("{}{missing}", row.slowest.as_millis())
            }),
        ];
        writeln!(f)?;
        for (name, value) in columns {
            write!(f, "| {name:<28} |")?;
            for row in &self.0 {
                write!(f, " {:>14} |", value(row))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
