//! A model of the real node agent. Its list is the one that the real agent would have with the same processes.
//!
//! * It scans at each tick, the first time one interval after its start.
//! * It looks at processes in the string order of their PIDs; those with a long command line take longer and come
//!   last.
//! * Its list is emptied before each result is entered, so the last result of a scan is the only one that is left.
//! * A scan that finds nothing leaves the list as it is.
//! * Times are whole seconds in its own zone; its answers carry its own clock.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::Offset;
use procscan_core::report::{Limits, Outcome, decode};

use super::START;

/// An offending process of a tenant.
#[derive(Clone, Debug)]
pub struct Process {
    pub namespace: String,
    pub pod: String,
    pub name: String,
    /// It has a long command line, which takes time to read.
    pub is_slow: bool,
}

impl Process {
    pub fn of(namespace: &str) -> Self {
        Self { namespace: namespace.into(), pod: "web".into(), name: "xmrig".into(), is_slow: false }
    }

    pub fn named(namespace: &str, name: &str) -> Self {
        Self { name: name.into(), ..Self::of(namespace) }
    }
}

/// A result of a scan: the time in seconds since the start, by a right clock, and the process.
type Found = (u64, Process);

#[derive(Clone, Debug)]
pub struct RealAgent {
    pub interval: u64,
    next_scan: u64,
    /// Seconds between two results of a scan.
    pub pace: u64,
    /// How many seconds longer each slow one takes.
    pub lag: u64,
    /// How many seconds its clock is ahead.
    pub skew: i64,
    /// Its zone, in hours.
    pub zone: i8,
    /// The processes that run on its node, by PID.
    pub processes: BTreeMap<u32, Process>,
    /// Results of the last scan that are still to come, the next one last.
    coming: Vec<Found>,
    listed: Option<Found>,
}

impl RealAgent {
    pub fn new(interval: u64, now: u64) -> Self {
        Self {
            interval,
            next_scan: now + interval,
            pace: 0,
            lag: 0,
            skew: 0,
            zone: 8,
            processes: BTreeMap::new(),
            coming: Vec::new(),
            listed: None,
        }
    }

    /// Restarts the agent. Its list is in memory only.
    pub fn restart(&mut self, now: u64) {
        (self.listed, self.next_scan) = (None, now + self.interval);
        self.coming.clear();
    }

    pub fn run(&mut self, pid: u32, process: Process) {
        self.processes.insert(pid, process);
    }

    pub fn end(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// Whether it scans by `now`, or has results still to come.
    pub fn is_due(&self, now: u64) -> bool {
        self.next_scan <= now || !self.coming.is_empty()
    }

    /// Advances to `now`: runs its ticks with the processes that run now.
    pub fn advance(&mut self, now: u64) {
        while self.next_scan <= now {
            self.enter(self.next_scan);
            self.scan(self.next_scan);
            self.next_scan += self.interval;
        }
        self.enter(now);
    }

    fn scan(&mut self, at: u64) {
        // A tick that comes too early waits for the scan before.
        let at = self.coming.first().map_or(at, |(last, _)| at.max(last + 1));
        self.enter(at);
        let mut order: Vec<(bool, String, &Process)> =
            self.processes.iter().map(|(pid, process)| (process.is_slow, pid.to_string(), process)).collect();
        order.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut slow = 0;
        let found = (0..).zip(order).map(|(n, (is_slow, _, process))| {
            slow += u64::from(is_slow);
            (at + n * self.pace + slow * self.lag, process.clone())
        });
        self.coming = found.collect();
        self.coming.reverse();
    }

    /// Enters the results that have come by `now`, each in place of the result before.
    fn enter(&mut self, now: u64) {
        while let Some(found) = self.coming.pop_if(|(at, _)| *at <= now) {
            self.listed = Some(found);
        }
    }

    /// When it scans next.
    pub fn next_scan(&self) -> u64 {
        self.next_scan
    }

    /// The process in its list.
    pub fn lists(&self) -> Option<&Process> {
        self.listed.as_ref().map(|(_, process)| process)
    }

    /// The result in its list: the time in seconds since the start, by a right clock, and the process.
    pub fn found(&self) -> Option<(u64, &Process)> {
        self.listed.as_ref().map(|(at, process)| (*at, process))
    }

    /// Its list as it goes over the wire.
    pub fn body(&self) -> Vec<u8> {
        let Some((at, Process { namespace, pod, name, .. })) = &self.listed else { return b"[]\n".to_vec() };
        let timestamp = Timestamp::from_second(START + i64::try_from(*at).unwrap() + self.skew).unwrap();
        let offset = Offset::constant(self.zone);
        let record = serde_json::json!([{
            "pod": pod, "namespace": namespace, "process": name, "cmdline": format!("./{name} -o pool.example.com"),
            "regex": format!("^{name}$"), "status": "active", "type": "app", "name": pod,
            "timestamp": timestamp.display_with_offset(offset).to_string(),
        }]);
        format!("{record}\n").into_bytes()
    }

    /// Its answer at `now`.
    pub fn outcome(&mut self, now: u64) -> Outcome {
        self.advance(now);
        let (mut answer, whole) = decode(&self.body(), &Limits::default());
        whole.unwrap();
        let date = START + i64::try_from(now).unwrap() + self.skew;
        answer.date = Some(Timestamp::from_second(date).unwrap());
        Outcome::Complete(answer)
    }
}
