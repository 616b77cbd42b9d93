//! Decides which exemptions take effect. An exemption that would open too many tenants at once is withheld.

use std::collections::{BTreeMap, BTreeSet};

use super::context::EvaluationContext;
use crate::exemption::Exemption;
use crate::names::{App, Text};
use crate::policy::Policy;
use crate::policy::alert::Alert;
use crate::policy::dates::Validity;
use crate::policy::incident::{Incident, Phase};
use crate::policy::incidents::Incidents;
use crate::policy::incidents::admissions::Withheld;

/// How many incidents of blocked Apps record that an exemption is withheld. More than one, because the block of one
/// may end.
const MAX_RECORDING_INCIDENTS: usize = 8;
/// How many withheld exemptions an incident records at most.
const MAX_WITHHELD: usize = 16;

impl Incidents {
    /// The place in [`Incidents::withheld`] for namespaces that may not be blocked.
    pub const REFUSALS: &str = "enforcement.namespaces, enforcement.protected_namespaces";

    /// Withholds exemptions that would open more tenants than allowed without an operator's confirmation. A withheld
    /// exemption has no effect until an operator changes it. That holds even if the number of tenants falls or
    /// another replica leads.
    pub(in crate::policy) fn admit(&mut self, context: &mut EvaluationContext<'_>) {
        let mut before = std::mem::take(&mut self.admissions.known);
        if context.dates.forgot_latest_over {
            // An exemption that was over counts as new, so that it is judged before it opens any block.
            before.retain(|_, withheld| withheld.is_some());
        }
        let mut unknown = Vec::new();
        for (index, (exemption, validity)) in
            context.policy.exemptions.iter().zip(&mut context.exemptions).enumerate()
        {
            let identity = exemption.identity();
            match before.remove(&identity) {
                Some(withheld) => {
                    if withheld.is_some() {
                        *validity = Validity::Over;
                    }
                    self.admissions.known.insert(identity, withheld);
                }
                // An exemption that has ended or is in doubt opens nothing.
                None if *validity == Validity::InForce => {
                    *validity = Validity::Over;
                    unknown.push((index, identity));
                }
                None => {}
            }
        }
        if unknown.is_empty() {
            return;
        }
        let mut open = self.covered_apps(context, |_| true);
        for (index, identity) in unknown {
            let (Some(exemption), Some(validity)) =
                (context.policy.exemptions.get(index), context.exemptions.get_mut(index))
            else {
                continue;
            };
            *validity = Validity::InForce;
            let now_open = self.covered_apps(context, |app| !open.contains(app) && exemption.may_cover(app));
            let tenants = now_open.iter().map(|app| &app.namespace).collect::<BTreeSet<&Text>>().len();
            let fingerprint = exemption.fingerprint();
            // An earlier leader withheld it. It may cover fewer tenants now, but no operator has confirmed it.
            let was_withheld =
                self.by_app.values().any(|it| it.persisted.rare().withheld.contains(&fingerprint));
            let mut withheld = None;
            if tenants <= exemption.may_open(context.policy.brake.max_releases) && !was_withheld {
                open.extend(now_open);
            } else {
                if let Some(validity) = context.exemptions.get_mut(index) {
                    *validity = Validity::Over;
                }
                let message = too_much(exemption, tenants, was_withheld, context.policy.brake.max_releases);
                withheld = Some(Withheld { place: exemption.place.clone(), reason: message.clone() });
                context.alert(Alert::Exemption { message });
            }
            self.admissions.known.insert(identity, withheld);
        }
    }

    /// Keeps blocked Apps closed in namespaces that may not be blocked any more, if their tenants are more than may
    /// be opened at once. The reason is that `enforcement.namespaces` or `enforcement.protected_namespaces` may be a
    /// mistake.
    pub(in crate::policy) fn admit_refusals(&mut self, context: &mut EvaluationContext<'_>) {
        let blocked = self.by_app.iter().filter(|(_, it)| matches!(it.phase(), Phase::Blocked { .. }));
        let refused =
            blocked.filter_map(|(app, _)| context.refusals.of(&app.namespace).map(|why| (app, why)));
        let tenants: BTreeMap<&Text, &str> = refused.map(|(app, why)| (&app.namespace, why)).collect();
        let most = context.policy.brake.max_releases.max(1);
        let before = self.admissions.refusals.take().map(|(_, tenants)| tenants);
        // The count does not fall within a term while operators open some of the Apps, because the change may be a
        // mistake all the same.
        let count = tenants.len().max(before.unwrap_or(0));
        let Some((namespace, why)) = tenants.first_key_value().filter(|_| count > most) else { return };
        let reason = format!(
            "Apps of {} tenants are blocked in namespaces that may not be blocked, {namespace} among them: {why}. A change that opens more than \
             {most} tenants at once may be a mistake (brake.max_releases), so they stay closed until operators release them or their Pods are gone. If \
             the change is meant, raise brake.max_releases",
            tenants.len()
        );
        if before.is_none() {
            context.alert(Alert::Exemption { message: reason.clone() });
        }
        self.admissions.refusals = Some((Withheld { place: Self::REFUSALS.into(), reason }, count));
        context.refused_stay_closed = true;
    }

    /// Records in the incidents of a few blocked Apps which exemptions are withheld, so that the next leader
    /// withholds them too.
    pub(in crate::policy) fn note_withheld(&mut self, policy: &Policy) {
        let known = &self.admissions.known;
        let is_withheld = |it: &&Exemption| known.get(&it.identity()).is_some_and(Option::is_some);
        let withheld: Vec<&Exemption> = policy.exemptions.iter().filter(is_withheld).collect();
        // While some exemptions can't be read, a missing exemption may be one of them, so no record is removed.
        let is_complete = policy.unread_exemptions.is_empty();
        if is_complete && self.by_app.values().any(|incident| !incident.persisted.rare().withheld.is_empty())
        {
            // An exemption that an operator changed or deleted is judged anew if it is declared again.
            let declared: BTreeSet<Text> = policy.exemptions.iter().map(Exemption::fingerprint).collect();
            for incident in self.by_app.values_mut() {
                if !incident.persisted.rare().withheld.iter().all(|it| declared.contains(it)) {
                    let left = incident
                        .persisted
                        .rare()
                        .withheld
                        .iter()
                        .filter(|it| declared.contains(*it))
                        .cloned();
                    incident.persisted_mut().rare_mut().withheld = left.collect();
                }
            }
        }
        for exemption in withheld {
            let fingerprint = exemption.fingerprint();
            let is_blocked = |incident: &Incident| matches!(incident.phase(), Phase::Blocked { .. });
            let carries = |incident: &Incident| incident.persisted.rare().withheld.contains(&fingerprint);
            let marked = self.by_app.values().filter(|it| is_blocked(it) && carries(it)).count();
            let others = self.by_app.iter_mut().filter(|(app, incident)| {
                let has_room = incident.persisted.rare().withheld.len() < MAX_WITHHELD;
                is_blocked(incident) && !carries(incident) && has_room && exemption.may_cover(app)
            });
            for (_, incident) in others.take(MAX_RECORDING_INCIDENTS.saturating_sub(marked)) {
                let more = incident.persisted.rare().withheld.iter().cloned().chain([fingerprint.clone()]);
                incident.persisted_mut().rare_mut().withheld = more.collect();
            }
        }
    }

    /// The exemptions that the last evaluation withheld, and the namespaces whose blocks it did not open.
    pub fn withheld(&self) -> Vec<Withheld> {
        let refusals = self.admissions.refusals.iter().map(|(withheld, _)| withheld);
        self.admissions.known.values().flatten().chain(refusals).cloned().collect()
    }

    /// The blocked Apps among `those` whose accusations are all covered by an exemption or a release.
    fn covered_apps(&self, context: &EvaluationContext<'_>, those: impl Fn(&App) -> bool) -> BTreeSet<App> {
        let blocked = self
            .by_app
            .iter()
            .filter(|(app, incident)| matches!(incident.phase(), Phase::Blocked { .. }) && those(app));
        let covered = blocked
            .filter(|(app, incident)| incident.covers(app, context).iter().all(Option::is_some))
            .map(|(app, _)| app.clone());
        covered.collect()
    }
}

/// Why `exemption` is withheld. `tenants` is how many tenants it would open now.
fn too_much(exemption: &Exemption, tenants: usize, was_withheld: bool, max_releases: usize) -> String {
    let (place, most) = (&exemption.place, exemption.may_open(max_releases));
    if was_withheld && tenants <= most {
        return format!(
            "{place} has no effect, because when it was first judged it would have opened the gateway to more than {most} tenants \
                 at once (brake.max_releases). Now it would open {tenants}: write `confirm: {tenants}` into it if that is meant, or \
                 narrow it down"
        );
    }
    format!(
        "{place} would open the gateway to {tenants} tenants at once, more than {most} (brake.max_releases): it has no effect. Write \
             `confirm: {tenants}` into it if that is meant, or narrow it down"
    )
}
