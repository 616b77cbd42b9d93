//! What operators have declared not to be enforced.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use regex::Regex;

use super::dates::Validity;
use super::decision::Alert;
use super::evaluate::EvaluationContext;
use super::incident::{Incident, Phase};
use super::incidents::Incidents;
use super::{BrakeRules, Policy};
use crate::hash::stable_hash;
use crate::names::{App, Text};
use crate::plan::{Block, Plan};
use crate::report::Record;

/// How far ahead an `until` may be: ten years. A later date can only be a mistake.
const MAX_AHEAD: SignedDuration = SignedDuration::from_hours(24 * 3653);

/// Whether `until` is more than ten years after `now`.
pub fn is_too_far(until: Timestamp, now: Timestamp) -> bool {
    until.duration_since(now) > MAX_AHEAD
}

/// Accusations that are shown but not enforced. All given parts must match.
#[derive(Clone, Debug)]
pub struct Exemption {
    /// Where it is declared, for people: `Exemption NAME`, or its place in the configuration.
    pub place: String,
    /// The tenant's namespace.
    pub namespace: Option<Pattern>,
    /// The App's name.
    pub app: Option<Pattern>,
    /// The process name.
    pub process: Option<Pattern>,
    /// The regular expression that matched. An accusation without one, by a keyword, is covered by `process` only.
    pub rule: Option<Pattern>,
    /// Why, for people.
    pub reason: String,
    /// Until when, by our own wall clock; forever if absent.
    pub until: Option<Timestamp>,
    /// The number of tenants with blocked Apps that an operator allows it to open; needed beyond `brake.max_releases`.
    pub confirm: Option<usize>,
}

impl Exemption {
    fn parts(&self) -> [Option<&Pattern>; 4] {
        [&self.namespace, &self.app, &self.process, &self.rule].map(Option::as_ref)
    }

    /// Whether no part is given, so that it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.parts().iter().all(Option::is_none)
    }

    /// Whether its namespace and App parts match `app`; it does not look at `until`. An exemption without parts may
    /// cover anything.
    pub fn may_cover(&self, app: &App) -> bool {
        let parts = [(&self.namespace, &app.namespace), (&self.app, &app.name)];
        parts.iter().all(|(pattern, text)| pattern.as_ref().is_none_or(|pattern| pattern.matches(text)))
    }

    /// Whether it covers `record` as an accusation of `app`; it does not look at `until`. An exemption without parts
    /// covers nothing.
    ///
    /// A record without a regular expression, by a keyword, is not covered by an exemption with a `rule`: a tenant could give its process
    /// the text of the rule as a name.
    pub fn covers(&self, app: &App, record: &Record) -> bool {
        self.covers_accusation(
            app,
            &record.key.process,
            Some(&*record.regex).filter(|regex| !regex.is_empty()),
        )
    }

    /// Whether it covers all accusations of `app`, whatever their process and rule; it does not look at `until`.
    pub(super) fn covers_app(&self, app: &App) -> bool {
        self.process.is_none() && self.rule.is_none() && self.covers_accusation(app, "", None)
    }

    fn covers_accusation(&self, app: &App, process: &str, rule: Option<&str>) -> bool {
        let texts = [Some(&*app.namespace), Some(&*app.name), Some(process), rule];
        let matches = |part: &Pattern, text: Option<&str>| text.is_some_and(|text| part.matches(text));
        !self.is_empty()
            && self.parts().iter().zip(texts).all(|(part, text)| part.is_none_or(|part| matches(part, text)))
    }

    /// How many tenants have blocks in `plan` that it would open.
    pub fn opens(&self, plan: &Plan) -> usize {
        let is_opened = |block: &&Block| {
            let of_grounds = block.grounds.iter().map(|accepted| {
                (&accepted.key.process, Some(&*accepted.rule).filter(|_| !accepted.by_keyword))
            });
            let left = block.left.iter().map(|key| (&key.process, None));
            of_grounds.chain(left).all(|(process, rule)| self.covers_accusation(&block.app, process, rule))
        };
        let opened = plan.blocks.iter().map(|block| &**block).filter(is_opened);
        opened.map(|block| &block.app.namespace).collect::<BTreeSet<&Text>>().len()
    }

    /// Why the exemption is withheld. `tenants` is how many tenants it would open now.
    fn too_much(&self, tenants: usize, was_withheld: bool, rules: &BrakeRules) -> String {
        let (place, most) = (&self.place, self.may_open(rules));
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

    /// How many tenants it may open at once.
    pub fn may_open(&self, rules: &BrakeRules) -> usize {
        // At least one, as many as a release by an operator opens.
        rules.max_releases.max(1).max(self.confirm.unwrap_or(0))
    }

    /// All that decides its effect: a changed exemption counts as another one.
    fn identity(&self) -> String {
        let Self { place, until, confirm, .. } = self;
        let parts = self.parts().map(|part| part.map(Pattern::text));
        format!("{place} {parts:?} {until:?} {confirm:?}")
    }

    /// Identifies the exemption in incidents that record that it is withheld.
    fn fingerprint(&self) -> Text {
        format!("{:016x}", stable_hash(&[&self.identity()])).into()
    }
}

/// How many incidents of blocked Apps record that an exemption is withheld. One would be enough, but its block may end.
const MAX_RECORDING_INCIDENTS: usize = 8;
/// How many withheld exemptions an incident keeps at most.
const MAX_WITHHELD: usize = 16;

/// Which exemptions may open blocked Apps.
#[derive(Clone, Debug, Default)]
pub(super) struct Admissions {
    /// By [`Exemption::identity`]: `None` if it took effect, otherwise why it is withheld.
    known: BTreeMap<String, Option<Withheld>>,
    /// Why what is blocked in namespaces that may not be blocked stays closed, and for how many tenants.
    refusals: Option<(Withheld, usize)>,
}

/// An exemption that has no effect because it would open too many tenants.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Withheld {
    /// Where it is declared; see [`Exemption::place`].
    pub place: String,
    /// How many tenants it would open, and what an operator can do.
    pub reason: String,
}

impl Incidents {
    /// The place of what [`Book::withheld`] says of namespaces that may not be blocked.
    pub const REFUSALS: &str = "enforcement.namespaces, enforcement.protected_namespaces";

    /// Withholds exemptions that would open more tenants than allowed without an operator's confirmation. A withheld
    /// exemption has no effect until an operator changes it, even if the number of tenants falls meanwhile or another
    /// replica leads.
    pub(super) fn admit(&mut self, context: &mut EvaluationContext<'_>) {
        let mut before = std::mem::take(&mut self.admissions.known);
        if context.dates.is_forgotten {
            // An exemption that was over is counted again before it opens anything.
            before.retain(|_, withheld| withheld.is_some());
        }
        let mut unknown = Vec::new();
        for (index, (exemption, force)) in
            context.policy.exemptions.iter().zip(&mut context.exemptions).enumerate()
        {
            let identity = exemption.identity();
            match before.remove(&identity) {
                Some(withheld) => {
                    if withheld.is_some() {
                        *force = Validity::Over;
                    }
                    self.admissions.known.insert(identity, withheld);
                }
                // An exemption that has ended or is in doubt opens nothing.
                None if *force == Validity::InForce => {
                    *force = Validity::Over;
                    unknown.push((index, identity));
                }
                None => {}
            }
        }
        if unknown.is_empty() {
            return;
        }
        let mut open = self.excused(context, |_| true);
        for (index, identity) in unknown {
            let (Some(exemption), Some(force)) =
                (context.policy.exemptions.get(index), context.exemptions.get_mut(index))
            else {
                continue;
            };
            *force = Validity::InForce;
            let now_open = self.excused(context, |app| !open.contains(app) && exemption.may_cover(app));
            let tenants = now_open.iter().map(|app| &app.namespace).collect::<BTreeSet<&Text>>().len();
            let fingerprint = exemption.fingerprint();
            // An earlier leader withheld it. It may cover fewer tenants now, but no operator has confirmed it.
            let was_withheld = self.by_app.values().any(|it| it.withheld.contains(&fingerprint));
            let mut withheld = None;
            if tenants <= exemption.may_open(&context.policy.brake) && !was_withheld {
                open.extend(now_open);
            } else {
                if let Some(force) = context.exemptions.get_mut(index) {
                    *force = Validity::Over;
                }
                let message = exemption.too_much(tenants, was_withheld, &context.policy.brake);
                withheld = Some(Withheld { place: exemption.place.clone(), reason: message.clone() });
                context.alert(Alert::Exemption { message });
            }
            self.admissions.known.insert(identity, withheld);
        }
    }

    /// Keeps closed what is blocked in namespaces that may not be blocked any more, if that is more tenants than may be
    /// opened at once: `enforcement.namespaces` or `enforcement.protected_namespaces` may be a mistake.
    pub(super) fn admit_refusals(&mut self, context: &mut EvaluationContext<'_>) {
        let blocked = self.by_app.iter().filter(|(_, it)| matches!(it.phase, Phase::Blocked { .. }));
        let refused =
            blocked.filter_map(|(app, _)| context.refusals.of(&app.namespace).map(|why| (app, why)));
        let tenants: BTreeMap<&Text, &str> = refused.map(|(app, why)| (&app.namespace, why)).collect();
        let most = context.policy.brake.max_releases.max(1);
        let before = self.admissions.refusals.take().map(|(_, tenants)| tenants);
        // The count does not fall within a term while operators open some of them: the change may be a mistake all the same.
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
        context.keeps_refused = true;
    }

    /// Records in the incidents of a few blocked Apps which exemptions are withheld, so that the next leader withholds
    /// them too.
    pub(super) fn note_withheld(&mut self, policy: &Policy) {
        let known = &self.admissions.known;
        let is_withheld = |it: &&Exemption| known.get(&it.identity()).is_some_and(Option::is_some);
        let withheld: Vec<&Exemption> = policy.exemptions.iter().filter(is_withheld).collect();
        // While some exemptions can't be read, a missing one may be among them, so no record is removed.
        let is_complete = policy.unread_exemptions.is_empty();
        if is_complete && self.by_app.values().any(|incident| !incident.withheld.is_empty()) {
            // An exemption that an operator changed or deleted is judged anew if it is declared again.
            let declared: BTreeSet<Text> = policy.exemptions.iter().map(Exemption::fingerprint).collect();
            for incident in self.by_app.values_mut() {
                if !incident.withheld.iter().all(|it| declared.contains(it)) {
                    let left = incident.withheld.iter().filter(|it| declared.contains(*it)).cloned();
                    incident.persisted_mut().rare_mut().withheld = left.collect();
                }
            }
        }
        for exemption in withheld {
            let fingerprint = exemption.fingerprint();
            let is_blocked = |incident: &Incident| matches!(incident.phase, Phase::Blocked { .. });
            let carries = |incident: &Incident| incident.withheld.contains(&fingerprint);
            let marked = self.by_app.values().filter(|it| is_blocked(it) && carries(it)).count();
            let others = self.by_app.iter_mut().filter(|(app, incident)| {
                let has_room = incident.withheld.len() < MAX_WITHHELD;
                is_blocked(incident) && !carries(incident) && has_room && exemption.may_cover(app)
            });
            for (_, incident) in others.take(MAX_RECORDING_INCIDENTS.saturating_sub(marked)) {
                let more = incident.withheld.iter().cloned().chain([fingerprint.clone()]);
                incident.persisted_mut().rare_mut().withheld = more.collect();
            }
        }
    }

    /// The exemptions that the last evaluation withheld, and the namespaces whose blocks it kept.
    pub fn withheld(&self) -> Vec<Withheld> {
        let refusals = self.admissions.refusals.iter().map(|(withheld, _)| withheld);
        self.admissions.known.values().flatten().chain(refusals).cloned().collect()
    }

    /// The blocked Apps among `those` whose accusations are all covered by an exemption or a release.
    fn excused(&self, context: &EvaluationContext<'_>, those: impl Fn(&App) -> bool) -> BTreeSet<App> {
        let blocked = self
            .by_app
            .iter()
            .filter(|(app, incident)| matches!(incident.phase, Phase::Blocked { .. }) && those(app));
        let excused = blocked
            .filter(|(app, incident)| incident.excuses(app, context).iter().all(Option::is_some))
            .map(|(app, _)| app.clone());
        excused.collect()
    }
}

/// A text to match: as a whole, or by a regular expression.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// The whole text, byte for byte.
    Exact(String),
    /// A regular expression, unanchored.
    Regex(Regex),
}

impl Pattern {
    /// Whether `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }

    /// Whether it is a regular expression, and its text.
    fn text(&self) -> (bool, &str) {
        match self {
            Self::Exact(exact) => (false, exact),
            Self::Regex(regex) => (true, regex.as_str()),
        }
    }
}
