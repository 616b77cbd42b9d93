//! What the cluster itself says of the accusations: asks for the accused Pods and the Services of their Apps.
//!
//! Only namespaces that are accused are looked at, each at most once a second, and again each round; all requests together
//! keep to a pace, so that a bad rule or a lying node costs the API server no more than that. Those who accuse many wait in
//! a line of their own.

mod lookup;
mod room;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::names::{NodeName, PodRef, Text};
use procscan_core::policy::{Facts, Questions};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::room::{Room, Wanted};
use crate::clock::Clock;
use crate::kubernetes::{Cluster, Refusal};

/// How many namespaces are looked at together.
const BATCH: usize = 8;
/// The least time between two looks at one namespace.
const GAP: Duration = Duration::from_secs(1);

/// A Pod that is proven gone: what was seen of it until then is cleared.
#[derive(Clone, Debug)]
pub struct PodGone {
    /// The Pod.
    pub pod: PodRef,
    /// Until when.
    pub until: Moment,
}

/// Answers the policy's questions.
#[derive(Debug)]
pub struct Evidence {
    /// The connection.
    pub cluster: Cluster,
    /// How often everything is looked at again.
    pub interval: Duration,
    /// From how many closed Services on their Ingresses matter (see `gateway.max_service_entries`).
    pub max_service_entries: usize,
    /// What time it is.
    pub clock: Clock,
}

/// A namespace that should be looked at, and why.
#[derive(Debug, Default)]
struct Inquiry {
    wanted: Wanted,
    /// The oldest accusation that has not been judged yet, and who made it.
    oldest: Option<(Moment, NodeName)>,
}

#[derive(Default)]
struct State {
    rooms: BTreeMap<Text, Room>,
    inquiries: BTreeMap<Text, Inquiry>,
    error: Option<Refusal>,
}

impl Evidence {
    /// Runs until cancelled, or until nobody asks any more.
    ///
    /// `error` says why the cluster can't be asked, if so.
    pub async fn run(
        self,
        mut questions: watch::Receiver<Arc<Questions>>,
        facts: watch::Sender<Arc<Facts>>,
        gone: mpsc::Sender<PodGone>,
        error: watch::Sender<Option<String>>,
        cancel: CancellationToken,
    ) {
        let mut state = State::default();
        loop {
            let now = self.clock.now();
            state.ask(&questions.borrow_and_update());
            let (due, next) = state.due(now, self.interval);
            if due.is_empty() {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    changed = questions.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(next) => {}
                }
                continue;
            }
            // The list becomes long soon after this many, and its Ingresses should be known by then.
            let with_routes = state.services() * 5 > self.max_service_entries * 3;
            let looks = due.iter().map(|namespace| {
                let pods = state.urgent(namespace);
                let cluster = &self.cluster;
                async move { lookup::look(cluster, namespace, &pods, with_routes).await }
            });
            let seen = tokio::select! {
                () = cancel.cancelled() => return,
                seen = futures_util::future::join_all(looks) => seen,
            };
            let mut cleared = Vec::new();
            let mut failure = None;
            for (namespace, seen) in due.iter().zip(seen) {
                let Some(inquiry) = state.inquiries.get(namespace) else { continue };
                let room = state.rooms.entry(namespace.clone()).or_default();
                match seen {
                    Ok(seen) => {
                        cleared.extend(room.see(namespace, &inquiry.wanted, seen, now, self.interval));
                    }
                    Err(refusal) => {
                        room.fail(&inquiry.wanted, &refusal.text, now);
                        failure = Some(refusal);
                    }
                }
            }
            state.tell(failure, &error);
            facts.send_replace(Arc::new(state.facts()));
            for (pod, until) in cleared {
                // Nobody listens any more only at the end.
                let _ = gone.send(PodGone { pod, until }).await;
            }
        }
    }
}

impl State {
    /// Takes over what is asked now. What nobody asks about any more is forgotten.
    fn ask(&mut self, questions: &Questions) {
        let mut inquiries: BTreeMap<Text, Inquiry> = BTreeMap::new();
        for (pod, accusers) in &questions.pods {
            let inquiry = inquiries.entry(pod.namespace.clone()).or_default();
            inquiry.wanted.pods.insert(pod.pod.clone());
            let fact = self.rooms.get(&pod.namespace).and_then(|room| room.pods.get(&pod.pod));
            let is_judged = fact.is_some_and(|fact| fact.asked.uptime() >= accusers.since.uptime());
            if !is_judged && inquiry.oldest.as_ref().is_none_or(|(oldest, _)| accusers.since < *oldest) {
                inquiry.oldest = Some((accusers.since, accusers.node.clone()));
            }
        }
        for (app, pods) in &questions.apps {
            let inquiry = inquiries.entry(app.namespace.clone()).or_default();
            let pods = pods.iter().filter(|pod| pod.namespace == app.namespace).map(|pod| pod.pod.clone());
            inquiry.wanted.apps.insert(app.clone(), pods.collect());
        }
        self.rooms.retain(|namespace, _| inquiries.contains_key(namespace));
        self.inquiries = inquiries;
    }

    /// The namespaces to look at now, at most [`BATCH`], and when the next one is due if there are none.
    fn due(&self, now: Moment, interval: Duration) -> (Vec<Text>, Duration) {
        // One line per accusing node, and one for those that nobody waits for.
        let mut lines: BTreeMap<Option<&NodeName>, Vec<(Moment, &Text)>> = BTreeMap::new();
        let mut next = interval;
        for (namespace, inquiry) in &self.inquiries {
            let room = self.rooms.get(namespace);
            let asked = room.and_then(|room| room.asked);
            let has_new_app =
                || inquiry.wanted.apps.keys().any(|app| room.is_none_or(|room| !room.apps.contains_key(app)));
            let is_waited_for = inquiry.oldest.is_some() || has_new_app();
            let pause = if is_waited_for { GAP.min(interval) } else { interval };
            let left = asked.map_or(Duration::ZERO, |asked| pause.saturating_sub(now.since(asked)));
            if left > Duration::ZERO {
                next = next.min(left);
                continue;
            }
            let since = inquiry.oldest.as_ref().map(|(since, _)| *since).or(asked).unwrap_or(now);
            let line = inquiry.oldest.as_ref().map(|(_, node)| node);
            lines.entry(line).or_default().push((since, namespace));
        }
        for line in lines.values_mut() {
            // The one that waits longest comes last, where it is taken from.
            line.sort_unstable_by(|a, b| b.cmp(a));
        }
        let mut due = Vec::new();
        while due.len() < BATCH && !lines.is_empty() {
            let mut heads: Vec<(Moment, Option<&NodeName>)> =
                lines.iter().filter_map(|(line, all)| Some((all.last()?.0, *line))).collect();
            heads.sort_unstable();
            for (_, line) in heads.into_iter().take(BATCH - due.len()) {
                due.extend(lines.get_mut(&line).and_then(Vec::pop).map(|(_, namespace)| namespace.clone()));
            }
            lines.retain(|_, all| !all.is_empty());
        }
        (due, next)
    }

    fn urgent(&self, namespace: &Text) -> Vec<Text> {
        let Some(inquiry) = self.inquiries.get(namespace) else { return Vec::new() };
        self.rooms.get(namespace).unwrap_or(&Room::default()).urgent(&inquiry.wanted)
    }

    fn services(&self) -> usize {
        self.rooms.values().map(Room::services).sum()
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        for (namespace, room) in &self.rooms {
            let pod_ref = |pod: &Text| PodRef { namespace: namespace.clone(), pod: pod.clone() };
            facts.pods.extend(room.pods.iter().map(|(pod, fact)| (pod_ref(pod), fact.clone())));
            facts.apps.extend(room.apps.iter().map(|(app, fact)| (app.clone(), fact.clone())));
            if room.is_terminating {
                facts.terminating.insert(namespace.clone());
            }
        }
        facts
    }

    /// Says once what is wrong, and once that it is no longer.
    fn tell(&mut self, failure: Option<Refusal>, error: &watch::Sender<Option<String>>) {
        // The same in another namespace is no news.
        let subject = |refusal: &Refusal| (refusal.kind, refusal.subject.clone());
        match (&self.error, &failure) {
            (before, Some(now)) if before.as_ref().map(subject) != Some(subject(now)) => {
                tracing::error!(
                    error = now.text,
                    "accusations can't be verified; nobody is blocked on them meanwhile"
                );
            }
            (Some(_), None) => tracing::info!("accusations can be verified again"),
            _ => {}
        }
        error.send_if_modified(|shown| {
            let now = failure.as_ref().map(|refusal| refusal.text.clone());
            let is_news = *shown != now;
            *shown = now;
            is_news
        });
        self.error = failure;
    }
}

#[cfg(test)]
mod tests {

    use jiff::Timestamp;
    use procscan_core::names::App;
    use procscan_core::policy::{Accusers, PodFact, PodState};

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds), Timestamp::UNIX_EPOCH)
    }

    fn accusation(namespace: &str, node: &str, since: u64) -> (PodRef, Accusers) {
        let pod = PodRef { namespace: namespace.into(), pod: "web".into() };
        (pod, Accusers { since: at(since), node: NodeName::new(node) })
    }

    fn state(accusations: &[(&str, &str, u64)]) -> State {
        let mut state = State::default();
        let pods = accusations.iter().map(|(namespace, node, since)| accusation(namespace, node, *since));
        state.ask(&Questions { pods: pods.collect(), ..Questions::default() });
        state
    }

    const ROUND: Duration = Duration::from_mins(1);

    fn due(state: &State, now: u64) -> Vec<String> {
        state.due(at(now), ROUND).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn who_accuses_many_waits_in_a_line_of_its_own() {
        let lies: Vec<String> = (0..100).map(|n| format!("ns-lie-{n:03}")).collect();
        let mut accusations: Vec<(&str, &str, u64)> = lies.iter().map(|lie| (&**lie, "liar", 1)).collect();
        accusations.extend([("ns-a", "n1", 5), ("ns-b", "n2", 6), ("ns-c", "n2", 7)]);
        let due = due(&state(&accusations), 10);
        assert_eq!(due.len(), BATCH);
        assert_eq!(due[..3], ["ns-lie-000", "ns-a", "ns-b"]);
        assert!(due.contains(&"ns-c".to_owned()));
    }

    #[test]
    fn a_namespace_is_looked_at_for_news_once_a_second_and_otherwise_once_a_round() {
        let questions =
            |since| Questions { pods: [accusation("ns-a", "n1", since)].into(), ..Questions::default() };
        let mut state = state(&[("ns-a", "n1", 5)]);
        let room = state.rooms.entry("ns-a".into()).or_default();
        room.asked = Some(at(10));
        room.pods.insert("web".into(), PodFact { asked: at(10), state: PodState::Gone });
        state.ask(&questions(5));
        assert_eq!((due(&state, 11), due(&state, 70).len()), (vec![], 1));
        assert_eq!(state.due(at(40), ROUND).1, Duration::from_secs(30));
        state.ask(&questions(10));
        assert!(due(&state, 11).is_empty(), "judged by what was asked after it came");
        state.ask(&questions(11));
        assert_eq!(due(&state, 11), ["ns-a"]);
        assert_eq!(state.due(at(10), ROUND).1, GAP);
        // An App that nothing is known of yet does not wait for the next round either.
        let app = App::new("ns-a", "app", "web");
        state.ask(&Questions { apps: [(app, Vec::new())].into(), ..questions(5) });
        assert_eq!(due(&state, 11), ["ns-a"]);
    }

    #[test]
    fn what_nobody_asks_about_is_forgotten() {
        let mut state = state(&[("ns-a", "n1", 5)]);
        state.rooms.entry("ns-a".into()).or_default().is_terminating = true;
        assert!(state.facts().terminating.contains("ns-a"));
        state.ask(&Questions::default());
        assert!(state.facts().terminating.is_empty() && due(&state, 100).is_empty());
    }
}
