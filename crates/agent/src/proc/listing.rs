//! Shares the list among the tenants of a node, and counts the findings that are left out.
//!
//! A reader takes a limited number of records from one node, and a tenant can have any number of offending processes. So
//! the namespaces take turns, and in each namespace its Pods. A Pod loses a record only after each other Pod of its
//! namespace has as many. In a Pod the oldest processes are preferred, so that new ones do not change the list.

use std::{collections::BTreeMap, fmt};

use super::{Finding, names::Owner};

/// The most records of one node. With the limits of a record, all of them are smaller than what an aggregator reads by default.
pub(crate) const MOST_RECORDS: usize = 500;
/// The most records of one Pod, even if the list has fewer than [`MOST_RECORDS`].
pub(crate) const MOST_OF_POD: usize = 32;
/// Namespaces that are named in the header of an answer.
pub(super) const MOST_NAMED: usize = 64;

/// How much of one namespace a scan or its list leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Omitted {
    /// Offending processes without a record.
    pub(crate) offenders: usize,
    /// Processes that this scan did not read; the next scans do.
    pub(crate) processes: usize,
    /// Command lines that were not read to their end.
    pub(crate) command_lines: usize,
}

impl fmt::Display for Omitted {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offenders, processes, command_lines } = self;
        write!(to, "offenders={offenders}, processes={processes}, command-lines={command_lines}")
    }
}

/// How much a scan or its list leaves out, by namespace. Namespaces without omitted processes are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeftOut(pub(crate) BTreeMap<String, Omitted>);

impl LeftOut {
    /// Whether the list is complete.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The namespaces, as a list for a header: `*` if they are more than 64.
    pub(crate) fn namespaces(&self) -> String {
        if self.0.len() > MOST_NAMED {
            return "*".to_owned();
        }
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        names.join(", ")
    }

    /// The sum over all namespaces.
    pub(crate) fn total(&self) -> Omitted {
        self.0.values().fold(Omitted::default(), |sum, of| Omitted {
            offenders: sum.offenders + of.offenders,
            processes: sum.processes + of.processes,
            command_lines: sum.command_lines + of.command_lines,
        })
    }

    pub(super) fn add(&mut self, namespace: &str, more: Omitted) {
        if more == Omitted::default() {
            return;
        }
        let of = self.0.entry(namespace.to_owned()).or_default();
        of.offenders += more.offenders;
        of.processes += more.processes;
        of.command_lines += more.command_lines;
    }
}

/// When a record has its turn. Each Pod of the node has its first record before any Pod has a second one. Among Pods with the
/// same number of records, the namespaces take turns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    record: usize,
    pod: usize,
    namespace: usize,
}

/// Processes of one Pod with one name.
#[derive(Debug)]
struct Found {
    /// The oldest of them.
    finding: Finding,
    processes: usize,
}

impl Found {
    fn age(&self) -> (u64, u32) {
        (self.finding.started, self.finding.pid)
    }
}

/// The findings of one Pod, by process name.
#[derive(Debug, Default)]
struct OfPod {
    found: BTreeMap<String, Found>,
    /// Processes that are left out.
    omitted: usize,
}

impl OfPod {
    fn add(&mut self, finding: Finding) {
        let found = Found { finding, processes: 1 };
        if let Some(same) = self.found.get_mut(&found.finding.process) {
            same.processes += 1;
            if found.age() < same.age() {
                same.finding = found.finding;
            }
            return;
        }
        self.found.insert(found.finding.process.clone(), found);
        if self.found.len() > MOST_OF_POD
            && let Some(name) = self.expendable()
        {
            self.omitted += self.found.remove(&name).map_or(0, |removed| removed.processes);
        }
    }

    /// The youngest process of the rule that most processes match. One record of each rule stays, because a reader may exempt
    /// some rules.
    fn expendable(&self) -> Option<String> {
        let mut by_rule: BTreeMap<&str, usize> = BTreeMap::new();
        for found in self.found.values() {
            *by_rule.entry(&found.finding.regex).or_default() += 1;
        }
        let most = by_rule.values().max().copied();
        let of_most = |found: &&Found| by_rule.get(&*found.finding.regex).copied() == most;
        let youngest = self.found.values().filter(of_most).max_by_key(|found| found.age());
        youngest.map(|found| found.finding.process.clone())
    }

    /// The oldest finding of each rule, then the second oldest of each rule, and so on.
    fn in_order(self) -> Vec<Found> {
        let mut found: Vec<Found> = self.found.into_values().collect();
        found.sort_unstable_by_key(Found::age);
        let mut by_rule: BTreeMap<String, usize> = BTreeMap::new();
        let mut ranked: Vec<(usize, Found)> = found
            .into_iter()
            .map(|found| {
                let rank = by_rule.entry(found.finding.regex.clone()).or_default();
                *rank += 1;
                (*rank, found)
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, found)| found).collect()
    }
}

/// The findings of a scan, by namespace and Pod.
#[derive(Debug, Default)]
pub(super) struct Listing(BTreeMap<String, BTreeMap<String, OfPod>>);

impl Listing {
    pub(super) fn add(&mut self, finding: Finding) {
        let pods = self.0.entry(finding.namespace.clone()).or_default();
        pods.entry(finding.pod.clone()).or_default().add(finding);
    }

    /// The offending processes, with those that the list leaves out.
    pub(super) fn processes(&self) -> usize {
        let of_pod =
            |pod: &OfPod| pod.omitted + pod.found.values().map(|found| found.processes).sum::<usize>();
        self.0.values().flat_map(BTreeMap::values).map(of_pod).sum()
    }

    /// The findings of one Pod.
    pub(super) fn of(&self, owner: &Owner) -> Vec<Finding> {
        let Owner::Named { namespace, pod } = owner else { return Vec::new() };
        let found = self.0.get(namespace).and_then(|pods| pods.get(pod));
        found.into_iter().flat_map(|pod| pod.found.values().map(|found| found.finding.clone())).collect()
    }

    /// At most `most` findings, ordered by namespace, Pod and process.
    pub(super) fn choose(self, most: usize, left_out: &mut LeftOut) -> Vec<Finding> {
        let mut all: Vec<(Turn, Found)> = Vec::new();
        for (place, (namespace, pods)) in self.0.into_iter().enumerate() {
            let offenders = pods.values().map(|pod| pod.omitted).sum();
            left_out.add(&namespace, Omitted { offenders, ..Omitted::default() });
            let mut pods: Vec<Vec<Found>> = pods.into_values().map(OfPod::in_order).collect();
            pods.sort_by_key(|pod| pod.first().map(Found::age));
            for (pod, found) in pods.into_iter().enumerate() {
                let turns = (0..).map(|record| Turn { record, pod, namespace: place });
                all.extend(turns.zip(found));
            }
        }
        all.sort_by_key(|(turn, _)| *turn);
        let mut all = all.into_iter().map(|(_, found)| found);
        let mut chosen: Vec<Finding> = all.by_ref().take(most).map(|found| found.finding).collect();
        for found in all {
            let omitted = Omitted { offenders: found.processes, ..Omitted::default() };
            left_out.add(&found.finding.namespace, omitted);
        }
        chosen.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(namespace: &str, pod: &str, process: &str, started: u64) -> Finding {
        Finding {
            namespace: namespace.into(),
            pod: pod.into(),
            process: process.into(),
            cmdline: String::new(),
            regex: String::new(),
            pid: 1,
            started,
        }
    }

    fn choose(findings: Vec<Finding>, most: usize) -> (Vec<String>, LeftOut) {
        let mut listing = Listing::default();
        for finding in findings {
            listing.add(finding);
        }
        let mut left_out = LeftOut::default();
        let chosen = listing.choose(most, &mut left_out);
        let names = chosen.iter().map(|f| format!("{}/{}/{}", f.namespace, f.pod, f.process)).collect();
        (names, left_out)
    }

    #[test]
    fn a_namespace_with_any_number_of_pods_and_names_leaves_room_for_each_other_pod() {
        let mut flood = Vec::new();
        for pod in 0..60 {
            flood.extend((0..1000).map(|n| finding("ns-a", &format!("p{pod}"), &format!("x{n:04}"), n)));
        }
        flood.extend([finding("ns-b", "web", "xmrig", 5000), finding("ns-a", "young", "xmrig", 9000)]);
        let (names, left_out) = choose(flood, 100);
        assert_eq!(names.len(), 100);
        assert!(names.contains(&"ns-b/web/xmrig".to_owned()));
        assert!(names.contains(&"ns-a/young/xmrig".to_owned()), "another Pod of the same namespace");
        assert!((0..60).all(|pod| names.contains(&format!("ns-a/p{pod}/x0000"))), "the oldest of each Pod");
        let expected = Omitted { offenders: 60_000 - 98, ..Omitted::default() };
        assert_eq!(left_out, LeftOut([("ns-a".to_owned(), expected)].into()));
    }

    #[test]
    fn each_pod_of_the_node_has_a_record_before_any_has_a_second_one() {
        let pods_of_one = (0..80).map(|pod| finding("ns-b", &format!("p{pod:02}"), "xmrig", pod));
        let others = (0..30)
            .flat_map(|ns| (0..32).map(move |n| finding(&format!("ns-{ns:02}"), "p", &format!("x{n}"), n)));
        let (names, _) = choose(pods_of_one.chain(others).collect(), 500);
        assert_eq!(names.len(), 500);
        assert_eq!(names.iter().filter(|name| name.starts_with("ns-b/")).count(), 80);
    }

    #[test]
    fn of_a_pod_with_any_number_of_names_each_rule_has_a_record() {
        let flood = (0..100).map(|n| finding("ns-a", "web", &format!("exempt{n:02}"), n));
        let miner = Finding { regex: "^xmrig$".into(), ..finding("ns-a", "web", "xmrig", 1000) };
        let findings: Vec<Finding> = flood.chain([miner]).collect();
        for most in [2, 500] {
            let (names, _) = choose(findings.clone(), most);
            assert!(names.contains(&"ns-a/web/xmrig".to_owned()), "{names:?}");
        }
    }

    #[test]
    fn more_namespaces_than_records_leave_out_the_second_of_each() {
        let findings = (0..20)
            .flat_map(|ns| (0..3).map(move |n| finding(&format!("ns-{ns:02}"), &format!("p{n}"), "x", n)));
        let (names, left_out) = choose(findings.collect(), 20);
        let expected: Vec<String> = (0..20).map(|ns| format!("ns-{ns:02}/p0/x")).collect();
        assert_eq!(names, expected);
        assert_eq!((left_out.0.len(), left_out.total().offenders), (20, 40));
    }

    #[test]
    fn the_oldest_processes_stay_listed_despite_new_ones() {
        let old = (0..MOST_OF_POD as u64).map(|n| finding("ns-a", "web", &format!("old{n}"), n));
        let (before, left_out) = choose(old.clone().collect(), MOST_RECORDS);
        assert!(left_out.is_empty());
        let new = (0..500).map(|n| finding("ns-a", "web", &format!("a{n}"), 1000 + n));
        // A younger process of a listed name is no other record.
        let same = finding("ns-a", "web", "old0", 2000);
        let (after, left_out) = choose(new.chain(old).chain([same]).collect(), MOST_RECORDS);
        assert_eq!(after, before);
        assert_eq!(left_out.total().to_string(), "offenders=500, processes=0, command-lines=0");
    }
}
