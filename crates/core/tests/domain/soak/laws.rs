//! The laws that must hold after each minute, and in the end.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use procscan_core::Moment;
use procscan_core::decision::{Actor, Decision, DecisionKind};
use procscan_core::names::{App, Text};
use procscan_core::plan::{Block, SharedServices};
use procscan_core::policy::{Evaluation, Phase};
use procscan_core::snapshot::Violation;

use super::nodes::{LEADER, Node};
use super::tenants::{ALL_APPS, Pod, app_of, host, namespace, tenant_in};
use super::{
    BEGIN, CLEAR_AFTER, HOUR, MAX_AGE, MAX_KEYS, MINUTE, MOST_BACK, NODES, Soak, TENANTS, UNREACHABLE, apps,
};

/// The text of a release by which the node's answers prove the absence.
const BY_THE_CLOCK: &str = "the whole clearing time";

impl Soak {
    pub(super) fn judge(&mut self, evaluation: &Evaluation) {
        let blocked = apps(evaluation);
        let late = self.note_late();
        for decision in evaluation.decisions.iter().chain(&late).filter(|it| it.actor == Actor::Policy) {
            match decision.kind {
                DecisionKind::Blocked => {
                    self.blocked_rightly(&decision.app);
                    self.check_not_released(&decision.app);
                    self.check_shared_services(&decision.app, evaluation);
                }
                DecisionKind::Released => self.released_rightly(&decision.app, &decision.reason),
                _ => {}
            }
        }
        self.explained(&blocked, &evaluation.decisions);
        for block in &evaluation.plan.blocks {
            self.closes_no_innocent(block);
        }
        self.note_warned(evaluation);
        for tenant in 0..TENANTS {
            self.blocked_in_time(tenant, evaluation);
        }
        self.closed_rightly(evaluation);
        self.note_persisted();
        self.note_closed(evaluation);
        self.bounded();
        self.blocked = blocked;
        self.note_plan(evaluation.plan.clone());
    }

    /// Every difference between two plans has its decision.
    fn explained(&self, blocked: &BTreeSet<App>, decisions: &[Decision]) {
        for app in self.blocked.symmetric_difference(blocked) {
            let kind = if blocked.contains(app) { DecisionKind::Blocked } else { DecisionKind::Released };
            let mut decisions = decisions.iter().chain(&self.operators.decisions);
            // An approval by an operator blocks an App, too.
            let is_it = |it: &Decision| {
                it.kind == kind || (it.kind == DecisionKind::Approved && blocked.contains(app))
            };
            let is_explained = decisions.any(|decision| decision.app == *app && is_it(decision));
            let is_known = self.leaders.uncertain.contains(app) || self.leaders.reopened.contains(app);
            if !is_explained && !is_known {
                self.fail(&format!("{app} is {kind:?} without a decision"));
            }
        }
    }

    fn blocked_rightly(&mut self, app: &App) {
        self.counts.blocks += 1;
        let tenant = &self.tenants[tenant_in(&app.namespace)];
        let is_dateless = tenant.of(&app.name).any(|pod| pod.is_dateless);
        let is_unjudged = tenant.of(&app.name).any(|pod| pod.is_unjudged);
        // A record without its agent's clock may not have been evidence then. It is evidence after a restart if it
        // comes with the clock. The same holds for evidence that could not be judged before the release of other
        // evidence.
        let is_known = tenant.released_after.get(&*app.name) == Some(&tenant.reported_of(&app.name));
        if is_known && !is_dateless && !is_unjudged {
            let log = self.log_of(app);
            self.fail(&format!("{app} is blocked again, and nothing is new since its release\n{log}"));
        }
        // The law holds however seldom its node scans, and however long the grace is.
        let is_recent = |at: u64| self.now() - at <= MAX_AGE + MINUTE;
        if !is_dateless && !tenant.of(&app.name).any(|pod| pod.last_found.is_some_and(is_recent)) {
            let found: Vec<_> = tenant.of(&app.name).map(|pod| (&pod.uid, pod.last_found)).collect();
            self.fail(&format!(
                "{app} is blocked, and in none of its Pods has anything been found: {found:?}"
            ));
        }
    }

    fn released_rightly(&mut self, app: &App, reason: &str) {
        self.counts.releases += 1;
        let number = tenant_in(&app.namespace);
        let reported = self.tenants[number].reported_of(&app.name);
        self.tenants[number].released_after.insert(app.name.to_string(), reported);
        let (now, tenant) = (self.now(), &self.tenants[number]);
        let is_deaf = now < self.cluster.deaf_until;
        if reason.contains("is being deleted") {
            if !is_deaf && !tenant.is_terminating {
                self.fail(&format!("{app} is released: {reason}"));
            }
            return;
        }
        if reason.contains("no Pod of the App remains") {
            if !is_deaf && tenant.living().any(|pod| *pod.app == *app.name) {
                self.fail(&format!("{app} is released and has a Pod: {reason}"));
            }
            return;
        }
        // A release by an operator covers the reports that had come by then.
        let is_by_operator = reason.starts_with("released by ");
        let released_at = self.operators.released_at.get(app).copied().filter(|_| is_by_operator);
        let mut early = None;
        for pod in tenant.of(&app.name) {
            // Each answer counts for a minute at most.
            let Some(reported) = pod.reported[LEADER] else { continue };
            // The leader before may have accepted the evidence and not persisted it. This leader can't accept it any
            // more, because the Pod and its processes are gone.
            if !pod.is_alive() && reported.at < self.leaders.since {
                continue;
            }
            if released_at.is_some_and(|at| reported.at <= at) {
                continue;
            }
            let node = &self.nodes[pod.node];
            let is_lost = |node: &Node| now - node.last_sign >= UNREACHABLE;
            let accused_at = pod.accused_at.unwrap_or(reported.at);
            let is_found = pod.is_alive() && pod.running.as_ref().is_some_and(|it| it.since <= accused_at);
            let is_honest = !node.has_lied && node.disturbed < accused_at;
            // A process that its node has found and that still runs never clears by the clock, whatever hides it.
            let is_wrong = is_found && is_honest && reason.contains(BY_THE_CLOCK);
            if pod.apps.len() > 1 {
                // A process that is found under another name after a change of labels counts for the other App.
                let is_open = |app: &str| {
                    let incident = self.world.incidents.incident(&app_of(number, app));
                    incident.is_some_and(|incident| !matches!(incident.phase(), Phase::Ended { .. }))
                };
                if is_wrong && !pod.apps.iter().any(|app| is_open(app)) {
                    self.fail(&format!(
                        "{app} is released, {} runs, and none of its Apps is accused: {reason}",
                        pod.uid
                    ));
                }
                continue;
            }
            if is_wrong {
                self.fail(&format!("{app} is released and {} runs in {:?}: {reason}", pod.uid, pod.running));
            }
            let proven = (node.answered - reported.answered) * MINUTE;
            if proven < CLEAR_AFTER && !is_lost(node) {
                early = Some((now - reported.at, pod.uid.clone(), proven));
            }
        }
        if let Some((silent, uid, proven)) = early {
            let (log, known) = (self.log_of(app), self.known_of(number));
            self.fail(&format!(
                "{app} is released {silent} s after fresh evidence of {uid}, {proven} s of them answered: {reason}\n{log}\n{known}"
            ));
        }
    }

    /// Each closed Service exposes an App one of whose Pods has offended, and the block names the other Apps that it
    /// exposes.
    fn closes_no_innocent(&self, block: &Block) {
        let number = tenant_in(&block.app.namespace);
        let tenant = &self.tenants[number];
        let guilty: BTreeSet<&String> =
            tenant.pods.iter().filter(|pod| pod.has_offended()).flat_map(|pod| &pod.apps).collect();
        if !guilty.contains(&block.app.name.to_string()) {
            self.fail(&format!("{} is blocked, and has never offended", block.app));
        }
        let closed = |service: &str| block.exposure.services.contains(&host(number, service));
        let names: Vec<&String> = tenant.exposed.keys().filter(|service| closed(service)).collect();
        if names.len() != block.exposure.services.len() {
            self.fail(&format!("{} closes a Service of another tenant: {:?}", block.app, block.exposure));
        }
        for service in &names {
            let exposed = tenant.exposed[*service].iter().map(|pod| &tenant.pods[*pod]);
            if !exposed.into_iter().any(|pod| pod.apps.iter().any(|app| guilty.contains(app))) {
                self.fail(&format!("{} closes {service}, which exposes innocent Pods only", block.app));
            }
        }
        let is_known = !self.is_hindered(number) && !self.world.facts.apps.is_empty();
        if !is_known || !tenant.living().any(|pod| *pod.app == *block.app.name) {
            return;
        }
        for selected in names.iter().filter_map(|service| tenant.services.get(*service)) {
            let runs = |pod: &&Pod| pod.runs(self.now()) && selected.contains(&pod.app);
            let selected = tenant.living().filter(runs);
            for other in selected.filter(|pod| !pod.apps.contains(&*block.app.name)) {
                let others = block.exposure.others.as_deref();
                if !others.is_some_and(|others| others.named.contains(&app_of(number, &other.app))) {
                    self.fail(&format!("{} closes {} too, and does not name it", block.app, other.app));
                }
            }
        }
    }

    /// A process that offends undisturbed for long enough is blocked, with every Service that exposes it.
    fn blocked_in_time(&mut self, number: usize, evaluation: &Evaluation) {
        let now = self.now();
        // Nothing is blocked in a namespace that is being deleted, because closed Services go with it.
        if self.is_hindered(number) || self.tenants[number].is_terminating {
            self.tenants[number].disturbed = now;
        }
        let of_tenant = |block: &&Arc<Block>| tenant_in(&block.app.namespace) == number;
        let blocks: Vec<_> = evaluation.plan.blocks.iter().filter(of_tenant).collect();
        let grace = self.longest_grace();
        for place in self.tenants[number].alive.clone() {
            let pod = &self.tenants[number].pods[place];
            let Some(running) = &pod.running else { continue };
            let (home, since) = (pod.node, running.since);
            let node = &self.nodes[home];
            let lists = node.listed.first().is_some_and(|it| (it.tenant, it.pod) == (number, place));
            if node.is_real() && !lists {
                // Another process hides it, for as long as that one may run.
                self.tenants[number].pods[place].disturbed = now;
                continue;
            }
            let disturbed = self.tenants[number].disturbed.max(pod.disturbed).max(node.disturbed);
            let undisturbed = now - since.max(disturbed);
            // The grace is given once in an incident.
            let app = app_of(number, &pod.app);
            let warned = self.warned.get(&app).filter(|_| pod.apps.len() == 1);
            let is_given =
                warned.is_some_and(|(at, _)| since.max(disturbed) >= at + self.world.policy.grace.as_secs());
            let grace = if is_given { 0 } else { grace };
            // A clock that jumps back makes a grace last longer. It adds the jump, and the hour of the wait for a
            // tenant that can't be notified.
            let limit = 6 * node.interval + 3 * MINUTE + grace;
            let is_blocked = blocks.iter().any(|block| pod.apps.contains(&*block.app.name));
            if self.waits_for_operator(number, pod, evaluation) {
                self.tenants[number].pods[place].disturbed = now;
                continue;
            }
            if !is_blocked {
                self.counts.late = self.counts.late.max(undisturbed);
            }
            if undisturbed <= limit || node.is_full {
                continue;
            }
            if is_blocked {
                self.closed_in_time(number, pod, &blocks);
            } else if self.accusations(home) >= MAX_KEYS {
                self.nodes[home].disturbed = now;
            } else {
                let incidents = ALL_APPS.map(|app| {
                    self.world
                        .incidents
                        .incident(&app_of(number, app))
                        .map(procscan_core::policy::Incident::phase)
                });
                let uid = &self.tenants[number].pods[place].uid;
                let what =
                    format!("{uid} of {number} offends for {undisturbed} s undisturbed: {incidents:?}");
                let known = self.known_of(number);
                self.fail(&format!("{what}\n{known}"));
            }
        }
    }

    fn closed_in_time(&self, number: usize, pod: &Pod, blocks: &[&Arc<Block>]) {
        if self.world.facts.apps.is_empty() {
            return;
        }
        let is_in = |services: fn(&Block) -> &[Text], host: &Text| {
            blocks.iter().any(|it| services(it).contains(host))
        };
        for (service, _) in
            self.tenants[number].services.iter().filter(|(_, selected)| selected.contains(&pod.app))
        {
            let host = host(number, service);
            let is_left_open = self.world.policy.shared_services != SharedServices::Block
                && is_in(|block| &block.exposure.left_open, &host);
            if !is_left_open && !is_in(|block| &block.exposure.services, &host) {
                self.fail(&format!("{} of {number} is blocked, and {service} is open", pod.uid));
            }
        }
    }

    fn longest_grace(&self) -> u64 {
        let grace = self.world.policy.grace.as_secs();
        if grace > 0 { grace + HOUR + MOST_BACK } else { 0 }
    }

    /// Notes which reports are persisted.
    fn note_persisted(&mut self) {
        let (is_late, is_unwritable) = (&self.world.late, &self.world.unwritable);
        for (number, tenant) in self.tenants.iter_mut().enumerate() {
            let namespace = namespace(number);
            if is_late.contains(&namespace) || is_unwritable.contains(&namespace) {
                continue;
            }
            for place in &tenant.alive {
                tenant.pods[*place].persisted = tenant.pods[*place].reported[LEADER];
            }
        }
    }

    /// How many Pods a node accuses as far as the leader knows. A node that lies for long has used up its places for
    /// true accusations.
    fn accusations(&mut self, node: usize) -> usize {
        let snapshot = self.world.snapshot();
        let name = self.nodes[node].name.as_str();
        let by = |violation: &&Violation| violation.evidence().any(|evidence| *evidence.node.0 == *name);
        snapshot.violations.iter().filter(by).count()
    }

    /// The decisions about an App, for people.
    pub(super) fn log_of(&self, app: &App) -> String {
        let document = self.world.incidents.document(app);
        let log = document.iter().flat_map(|it| &it.status.decisions);
        let lines: Vec<String> =
            log.map(|it| format!("{} {:?}: {}", it.at, it.decision, it.reason)).collect();
        lines.join("\n")
    }

    /// The state of a tenant, as a text for people.
    pub(super) fn known_of(&mut self, number: usize) -> String {
        let mut known = String::new();
        let at = |moment: Moment| i64::try_from(moment.uptime().as_secs()).unwrap() - BEGIN.cast_signed();
        for violation in self.world.snapshot().violations {
            if tenant_in(&violation.key.namespace) != number {
                continue;
            }
            for evidence in violation.evidence() {
                let _ = writeln!(
                    known,
                    "{} {:?}: {:?} {:?} fresh at {:?}, aged {:?}, listed at {}, hidden by {:?}; {:?}",
                    evidence.node,
                    violation.key,
                    evidence.presence,
                    evidence.cleared,
                    evidence.fresh_at.map(at),
                    evidence.age,
                    at(evidence.last_seen),
                    evidence.hidden_by,
                    self.world.facts.pods.get(&violation.key.pod_ref()),
                );
            }
        }
        known
    }

    fn bounded(&mut self) {
        let incidents = self.world.incidents.incidents().count();
        if incidents > TENANTS * ALL_APPS.len() {
            self.fail(&format!("{incidents} incidents"));
        }
        if self.counts.rounds.is_multiple_of(60) {
            let snapshot = self.world.snapshot();
            self.counts.most_violations = self.counts.most_violations.max(snapshot.violations.len());
            if snapshot.violations.len() > NODES * MAX_KEYS || snapshot.nodes.len() > NODES {
                self.fail(&format!(
                    "{} violations of {} nodes",
                    snapshot.violations.len(),
                    snapshot.nodes.len()
                ));
            }
        }
    }

    /// Ends all faults, and checks that no block, incident or violation is left in the end.
    pub(super) fn finish(&mut self) {
        // Six scans that are assumed to be an hour apart, and as long again for the processes that the last process
        // hides.
        let patience = 2 * 6 * 60 + 120;
        let mut minutes = patience;
        self.minute(true);
        while !self.blocked.is_empty() && minutes > 0 {
            self.minute(true);
            minutes -= 1;
        }
        if !self.blocked.is_empty() {
            self.fail(&format!("still blocked after good days: {:?}", self.blocked));
        }
        let now = self.now();
        // Only a restart removes the last record from an agent's list.
        self.nodes.iter_mut().for_each(|node| node.restart(now));
        (0..patience + 8 * 60).for_each(|_| self.minute(true));
        let left = self.world.snapshot().violations.len();
        let open = |phase: &Phase| !matches!(phase, Phase::Ended { .. });
        let incidents = self.world.incidents.incidents().filter(|(_, it)| open(&it.phase())).count();
        if left + incidents > 0 {
            let known: Vec<String> = (0..TENANTS).map(|tenant| self.known_of(tenant)).collect();
            let known = known.concat();
            self.fail(&format!(
                "{left} violations and {incidents} incidents are left after quiet days\n{known}"
            ));
        }
    }
}
