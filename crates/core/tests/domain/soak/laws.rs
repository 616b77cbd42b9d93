//! What must hold after each minute, and in the end.

use super::*;

impl Soak {
    pub(super) fn judge(&mut self, evaluation: &Evaluation) {
        let now = self.now();
        for decision in evaluation.decisions.iter().filter(|decision| decision.actor == Actor::Policy) {
            match decision.kind {
                DecisionKind::Blocked => self.blocked_rightly(tenant_of(&decision.app)),
                DecisionKind::Released => self.released_rightly(tenant_of(&decision.app), &decision.reason),
                _ => {}
            }
        }
        let blocked = apps(evaluation);
        for tenant in 0..TENANTS {
            let is_hindered = now < self.mute_until || self.world.unwritable.contains(&namespace(tenant));
            let it = &mut self.tenants[tenant];
            if is_hindered {
                it.disturbed = now;
            }
            let it = &self.tenants[tenant];
            let Some(since) = it.running_since else { continue };
            let node = &self.nodes[it.node];
            let lists = node.real.as_ref().and_then(RealAgent::lists);
            if node.real.is_some() && lists.is_none_or(|other| *other.namespace != *namespace(tenant)) {
                // Another one hides it, for as long as that may run.
                self.tenants[tenant].disturbed = now;
                continue;
            }
            let undisturbed = now - since.max(it.disturbed).max(node.disturbed);
            // A clock that jumps back makes a grace last longer, by what it has jumped and by the hour for which a tenant that can't be
            // told is waited for.
            let limit = 6 * node.interval + 3 * MINUTE + self.longest_grace();
            let is_late = undisturbed > limit && !node.is_full && !blocked.contains(&app(&namespace(tenant)));
            let home = it.node;
            if is_late && self.accusations(home) >= MAX_KEYS {
                self.nodes[home].disturbed = now;
            } else if is_late {
                let standing =
                    self.world.book.incident(&app(&namespace(tenant))).map(|incident| &incident.standing);
                self.fail(&format!("tenant {tenant} offends for {undisturbed} s in peace: {standing:?}"));
            }
            self.told.late =
                self.told.late.max(if blocked.contains(&app(&namespace(tenant))) { 0 } else { undisturbed });
        }
        let snapshot = self.world.snapshot();
        self.told.most_violations = self.told.most_violations.max(snapshot.violations.len());
        if snapshot.violations.len() > NODES * MAX_KEYS || snapshot.nodes.len() > NODES {
            self.fail(&format!("{} violations of {} nodes", snapshot.violations.len(), snapshot.nodes.len()));
        }
        let incidents = self.world.book.incidents().count();
        if incidents > TENANTS {
            self.fail(&format!("{incidents} incidents"));
        }
        self.blocked = blocked;
    }

    /// How many Pods a node accuses as far as the leader knows. Who lies long enough has no place for the truth.
    fn accusations(&mut self, node: usize) -> usize {
        let snapshot = self.world.snapshot();
        let name = self.nodes[node].name.as_str();
        let by = |violation: &&Violation| violation.evidence().any(|evidence| *evidence.node.0 == *name);
        snapshot.violations.iter().filter(by).count()
    }

    fn longest_grace(&self) -> u64 {
        let grace = self.world.policy.grace.as_secs();
        if grace > 0 { grace + HOUR + MOST_BACK } else { 0 }
    }

    fn blocked_rightly(&mut self, tenant: usize) {
        self.told.blocks += 1;
        let it = &self.tenants[tenant];
        // However seldom its node scans, and however long it is told before.
        let believed = u64::try_from(MAX_AGE).unwrap() + MINUTE;
        let is_recent = |(at, _): (u64, usize)| self.now() - at <= believed;
        // What came without its agent's clock may have been no evidence then, and is some after a restart that hears it with the clock.
        let is_known = it.released_after == it.last_heard && !it.is_dateless;
        if it.released_after.is_some() && is_known {
            self.fail(&format!("tenant {tenant} is blocked again, and nothing is new since its release"));
        }
        if it.running_since.is_none() && !it.is_dateless && !it.ended.is_some_and(is_recent) {
            self.fail(&format!("tenant {tenant} is blocked, and has run nothing since {:?}", it.ended));
        }
    }

    fn released_rightly(&mut self, tenant: usize, reason: &str) {
        self.told.releases += 1;
        self.tenants[tenant].released_after = self.tenants[tenant].last_heard;
        let (now, it) = (self.now(), &self.tenants[tenant]);
        let is_lost = |node: &Node| now - node.last_sign >= UNREACHABLE;
        if it.is_gone {
            return;
        }
        // Each answer vouches for a minute at most.
        let Some(Heard { at, node, answered, .. }) = it.heard[LEADER] else { return };
        // What its node has found, and still runs, is never gone by the clock, whatever hides it.
        let is_found = it.running_since.is_some_and(|since| since <= at) && it.node == node;
        let is_honest = !self.nodes[node].has_lied && self.nodes[node].disturbed < at;
        if is_found && is_honest && reason.contains("the whole clearing time") {
            self.fail(&format!(
                "tenant {tenant} is released and runs since {:?}: {reason}",
                it.running_since
            ));
        }
        let proven = (self.nodes[node].answered - answered) * MINUTE;
        if proven < CLEAR_AFTER && !is_lost(&self.nodes[node]) {
            let silent = now - at;
            self.fail(&format!(
                "tenant {tenant} is released {silent} s after fresh evidence, {proven} s of them answered: {reason}"
            ));
        }
    }

    /// Everything ends well: whatever was wrong is over, and in the end nothing is left of it.
    pub(super) fn finish(&mut self) {
        for node in &mut self.nodes {
            node.ends = 0;
        }
        (self.mute_until, self.unwritable_until) = (0, 0);
        // Six scans that are taken to be an hour apart, and as long again for what the last one hides.
        let patience = 2 * 6 * 60 + 120;
        let mut minutes = patience;
        while !self.blocked.is_empty() && minutes > 0 {
            self.minute(true);
            minutes -= 1;
        }
        if !self.blocked.is_empty() {
            self.fail(&format!("still blocked after good days: {:?}", self.blocked));
        }
        let now = self.now();
        for node in &mut self.nodes {
            node.listed.clear();
            // Only a restart takes the last one off its list.
            if let Some(real) = &mut node.real {
                real.restart(now);
            }
        }
        (0..patience + 26 * 60).for_each(|_| self.minute(true));
        let left = self.world.snapshot().violations.len();
        let open = |standing: &Standing| !matches!(standing, Standing::Ended { .. });
        let incidents = self.world.book.incidents().filter(|(_, it)| open(&it.standing)).count();
        if left + incidents > 0 {
            self.fail(&format!("{left} violations and {incidents} incidents are left after quiet days"));
        }
    }
}
