//! What is known of one namespace, and what follows from looking at it once more. Pure: the looking is done elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procscan_core::Moment;
use procscan_core::identity::Labels;
use procscan_core::names::{App, NodeName, PodRef, Text};
use procscan_core::plan::Exposure;
use procscan_core::policy::{AppFact, PodFact, PodState};

use super::lookup::{Pod, Seen};

/// What the policy wants to know of one namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// The accused Pods.
    pub(super) pods: BTreeSet<Text>,
    /// The Apps with an open incident, and the Pods that were accused as theirs: by name, and by UID where that is known.
    pub(super) apps: BTreeMap<App, BTreeSet<(Text, Option<Text>)>>,
}

/// One namespace.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// When it was last looked at; from before the first request.
    pub(super) asked: Option<Moment>,
    pub(super) pods: BTreeMap<Text, PodFact>,
    pub(super) apps: BTreeMap<App, AppFact>,
    pub(super) is_terminating: bool,
    /// What has been seen of the accused Pods.
    lives: BTreeMap<Text, Life>,
    /// Since when no Pod of an App has been there.
    empty: BTreeMap<App, Moment>,
}

#[derive(Clone, Debug)]
enum Life {
    /// As which object, by its UID, and when last.
    There(Text, Moment),
    /// Told already.
    Gone,
}

impl Wanted {
    /// Every Pod that has to be known for sure.
    pub(super) fn all_pods(&self) -> BTreeSet<Text> {
        self.pods.iter().chain(self.of_apps()).cloned().collect()
    }
}

impl Wanted {
    /// The names of the Pods that were accused as those of Apps.
    pub(super) fn of_apps(&self) -> impl Iterator<Item = &Text> {
        self.apps.values().flatten().map(|(name, _)| name)
    }
}

impl Room {
    /// Every Pod that has to be known for sure, the most urgent first: those by which an App may be proven gone with this
    /// look, those of which nothing is known, and the others in turn. One look may not get to all of them.
    pub(super) fn urgent(&self, wanted: &Wanted) -> Vec<Text> {
        let proving: BTreeSet<&Text> = self
            .empty
            .keys()
            .filter_map(|app| wanted.apps.get(app))
            .flatten()
            .map(|(name, _)| name)
            .collect();
        let mut all: Vec<Text> = wanted.all_pods().into_iter().collect();
        all.sort_by_key(|name| (!proving.contains(name), self.pods.get(name).map(|fact| fact.asked)));
        all
    }

    /// Takes in what was seen: `None` if the namespace does not exist. Returns the Pods that are proven gone, and until when
    /// their evidence counts for nothing.
    ///
    /// An App counts as gone when none of its Pods was there for `patience`: a Pod that is being replaced leaves a gap.
    pub(super) fn see(
        &mut self,
        namespace: &Text,
        wanted: &Wanted,
        seen: Option<Seen>,
        asked: Moment,
        patience: Duration,
    ) -> Vec<(PodRef, Moment)> {
        let exists = seen.is_some();
        let seen = seen.unwrap_or_default();
        self.asked = Some(asked);
        self.is_terminating = seen.is_terminating;
        let is_absent = |name: &Text| {
            !exists || seen.absent.contains(name) || seen.pods.get(name).is_some_and(|pod| pod.has_ended)
        };
        let there = |name: &Text| seen.pods.get(name).filter(|pod| !pod.has_ended);

        let all = wanted.all_pods();
        let of_apps: BTreeSet<&Text> = wanted.of_apps().collect();
        let mut gone = Vec::new();
        for name in &all {
            let pod_ref = || PodRef { namespace: namespace.clone(), pod: name.clone() };
            match (self.lives.get(name), there(name)) {
                // Another object of the same name: the one that was accused is gone, and what it was accused of with it.
                (Some(Life::There(uid, last)), Some(pod)) if *uid != pod.uid => gone.push((pod_ref(), *last)),
                // Believed while it was there, and gone before it was seen here: after a restart, for example. Of a Pod that
                // nobody was ever believed to be in, nothing is to be cleared.
                (None, None) if is_absent(name) && !of_apps.contains(name) => {}
                (None | Some(Life::There(..)), None) if is_absent(name) => {
                    gone.push((pod_ref(), asked));
                    self.lives.insert(name.clone(), Life::Gone);
                }
                _ => {}
            }
            if let Some(pod) = there(name) {
                self.lives.insert(name.clone(), Life::There(pod.uid.clone(), asked));
            }
        }
        self.lives.retain(|name, _| all.contains(name));

        self.pods.retain(|name, _| all.contains(name));
        for name in &all {
            let state = match there(name) {
                Some(pod) => present(pod),
                None if is_absent(name) => PodState::Gone,
                // Too many to be looked up in one pass: what was known of it is as old as it was.
                None => continue,
            };
            self.pods.insert(name.clone(), PodFact { asked, state });
        }

        // An App that is about to be accused is not asked about yet: its Services are wanted with its first block.
        let mut apps = wanted.apps.clone();
        for name in &wanted.pods {
            if let Some(pod) = there(name) {
                apps.entry(pod.app.clone()).or_default();
            }
        }
        self.apps.clear();
        self.empty.retain(|app, _| apps.contains_key(app));
        for (app, accused) in &apps {
            let own = seen.pods.values().filter(|pod| !pod.has_ended && pod.app == *app);
            // The accused ones under whatever labels, but not others of their names.
            let is_it = |uid: &Option<Text>, pod: &&Pod| uid.as_ref() == Some(&pod.uid);
            let itself = accused.iter().filter_map(|(name, uid)| there(name).filter(|pod| is_it(uid, pod)));
            let labels: Vec<&Labels> = own.chain(itself).map(|pod| &pod.labels).collect();
            // Where it is not known which Pod was accused, one of its name may be it: that opens nothing, and closes nothing.
            let is_over = |(name, uid): &(Text, Option<Text>)| {
                is_absent(name) || uid.is_some() && there(name).is_some_and(|pod| !is_it(uid, &pod))
            };
            let is_empty = labels.is_empty() && accused.iter().all(is_over);
            let gone = if is_empty {
                let since = *self.empty.entry(app.clone()).or_insert(asked);
                since != asked && asked.since(since) >= patience
            } else {
                self.empty.remove(app);
                false
            };
            // Without a Pod there is nothing to match Services with: what is known stays.
            let exposure = (!labels.is_empty()).then(|| exposure(app, &labels, namespace, &seen));
            self.apps.insert(app.clone(), AppFact { gone, exposure });
        }
        gone
    }

    /// The namespace could not be looked at: nothing is known, and nothing follows.
    pub(super) fn fail(&mut self, wanted: &Wanted, why: &str, asked: Moment) {
        self.asked = Some(asked);
        self.empty.clear();
        let unreadable = PodFact { asked, state: PodState::Unreadable(why.to_owned()) };
        self.pods = wanted.all_pods().into_iter().map(|name| (name, unreadable.clone())).collect();
        self.apps = wanted.apps.keys().map(|app| (app.clone(), AppFact::default())).collect();
    }

    /// How many Services are known to be closed.
    pub(super) fn services(&self) -> usize {
        self.apps
            .values()
            .filter_map(|app| app.exposure.as_ref())
            .map(|exposure| exposure.services.len())
            .sum()
    }
}

fn present(pod: &Pod) -> PodState {
    PodState::Present {
        uid: pod.uid.clone(),
        created: pod.created,
        // Nothing runs in a Pod without a node, so no node's word of it is true.
        node: NodeName::new(pod.node.as_deref().unwrap_or("(none yet)")),
        host_ips: pod.host_ips.clone(),
        app: pod.app.clone(),
    }
}

fn exposure(app: &App, pods: &[&Labels], namespace: &Text, seen: &Seen) -> Exposure {
    let names: BTreeSet<&Text> = seen
        .services
        .iter()
        .filter(|service| service.exposes(app, pods.iter().copied()))
        .map(|service| &service.name)
        .collect();
    let host = |name: &&Text| Text::from(format!("{name}.{namespace}.svc"));
    let Some(routes) = &seen.routes else {
        return Exposure::plain(names.iter().map(host));
    };
    let ingresses: BTreeSet<&Text> =
        names.iter().filter_map(|name| routes.ingresses.get(*name)).flatten().collect();
    Exposure {
        services: names.iter().map(host).collect(),
        ingresses: ingresses.iter().map(|name| Text::from(format!("{namespace}/{name}"))).collect(),
        otherwise: names.iter().filter(|name| routes.otherwise.contains(**name)).map(host).collect(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use procscan_core::identity::Service;

    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds), Timestamp::UNIX_EPOCH)
    }

    fn labels(app: &str) -> Labels {
        [("app".to_owned(), app.to_owned())].into()
    }

    fn pod(uid: &str, app: &str, has_ended: bool) -> Pod {
        Pod {
            uid: uid.into(),
            created: Some(at(0)),
            node: Some("n1".into()),
            host_ips: Vec::new(),
            labels: labels(app),
            app: App::new("ns-a", "app", app),
            has_ended,
        }
    }

    fn seen(pods: &[(&str, Pod)], absent: &[&str]) -> Seen {
        Seen {
            pods: pods.iter().map(|(name, pod)| ((*name).into(), pod.clone())).collect(),
            absent: absent.iter().map(|name| (*name).into()).collect(),
            services: vec![Service {
                name: "web-x7k2".into(),
                selector: labels("web"),
                ..Service::default()
            }],
            ..Seen::default()
        }
    }

    fn wanted() -> Wanted {
        accused(None)
    }

    /// Wanted is an App whose Pod of that UID was accused.
    fn accused(uid: Option<&str>) -> Wanted {
        let pod = ("web-0".into(), uid.map(Text::from));
        Wanted { apps: [(app(), [pod].into())].into(), pods: ["web-0".into()].into() }
    }

    fn app() -> App {
        App::new("ns-a", "app", "web")
    }

    fn see(room: &mut Room, seen: impl Into<Option<Seen>>, seconds: u64) -> Vec<Moment> {
        room.see(&"ns-a".into(), &wanted(), seen.into(), at(seconds), PATIENCE)
            .into_iter()
            .map(|(_, until)| until)
            .collect()
    }

    #[test]
    fn an_app_is_gone_only_when_none_of_its_pods_was_there_for_a_while() {
        let mut room = Room::default();
        see(&mut room, seen(&[("web-0", pod("1", "web", false))], &[]), 0);
        let exposure = room.apps[&app()].exposure.clone().unwrap();
        assert_eq!(exposure, Exposure::plain(["web-x7k2.ns-a.svc".into()]));
        assert_eq!(see(&mut room, seen(&[], &["web-0"]), 10), [at(10)]);
        assert_eq!(room.apps[&app()], AppFact { gone: false, exposure: None }, "it may be coming back");
        see(&mut room, seen(&[("web-1", pod("2", "web", false))], &["web-0"]), 40);
        see(&mut room, seen(&[], &["web-0"]), 60);
        see(&mut room, seen(&[], &["web-0"]), 119);
        assert!(!room.apps[&app()].gone, "the wait begins anew");
        see(&mut room, seen(&[], &["web-0"]), 120);
        assert!(room.apps[&app()].gone);
    }

    #[test]
    fn the_services_of_an_app_are_known_with_its_first_accusation() {
        let mut room = Room::default();
        let wanted = Wanted { pods: ["web-0".into()].into(), apps: BTreeMap::new() };
        room.see(
            &"ns-a".into(),
            &wanted,
            Some(seen(&[("web-0", pod("1", "web", false))], &[])),
            at(0),
            PATIENCE,
        );
        assert_eq!(room.apps[&app()].exposure, Some(Exposure::plain(["web-x7k2.ns-a.svc".into()])));
    }

    #[test]
    fn neither_a_failure_nor_a_listing_without_a_direct_look_proves_anything_gone() {
        let mut room = Room::default();
        see(&mut room, seen(&[("web-0", pod("1", "web", false))], &[]), 0);
        for seconds in [60, 120, 180] {
            let before = room.pods["web-0"].clone();
            assert!(see(&mut room, seen(&[], &[]), seconds).is_empty());
            assert_eq!(room.pods["web-0"], before, "as old as it was");
            assert!(!room.apps[&app()].gone);
            room.fail(&wanted(), "503", at(seconds + 30));
            assert!(matches!(room.pods["web-0"].state, PodState::Unreadable(_)));
            assert_eq!(room.apps[&app()], AppFact::default());
        }
    }

    #[test]
    fn more_pods_than_one_look_gets_to_take_turns_and_a_proof_that_has_begun_is_finished_first() {
        let names = ["a", "b", "web-0"].map(Text::from);
        let wanted =
            Wanted { pods: names.clone().into(), apps: [(app(), [(names[2].clone(), None)].into())].into() };
        let mut room = Room::default();
        let urgent = |room: &Room| room.urgent(&wanted).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(urgent(&room), ["a", "b", "web-0"]);
        let look = |room: &mut Room, absent: &[&str], seconds| {
            room.see(&"ns-a".into(), &wanted, Some(seen(&[], absent)), at(seconds), PATIENCE);
        };
        look(&mut room, &["a"], 10);
        assert_eq!(urgent(&room), ["b", "web-0", "a"]);
        look(&mut room, &["b"], 20);
        assert_eq!(urgent(&room), ["web-0", "a", "b"]);
        look(&mut room, &["web-0"], 30);
        assert_eq!(urgent(&room), ["web-0", "a", "b"], "it may be proven gone with the next look");
        look(&mut room, &["web-0"], 90);
        assert!(room.apps[&app()].gone);
    }

    #[test]
    fn a_pod_that_ended_or_is_another_object_now_is_gone() {
        let mut room = Room::default();
        see(&mut room, seen(&[("web-0", pod("1", "web", false))], &[]), 0);
        // What came after the old one was last seen may be of the new one.
        assert_eq!(see(&mut room, seen(&[("web-0", pod("2", "web", false))], &[]), 50), [at(0)]);
        assert_eq!(see(&mut room, seen(&[("web-0", pod("2", "web", false))], &[]), 60), []);
        assert_eq!(see(&mut room, seen(&[("web-0", pod("2", "web", true))], &[]), 70), [at(70)]);
        assert_eq!(room.pods["web-0"].state, PodState::Gone);
        assert_eq!(see(&mut room, None, 80), [], "told once");
        // Believed before the start.
        let mut room = Room::default();
        assert_eq!(see(&mut room, None, 5), [at(5)]);
        assert_eq!(see(&mut room, None, 80), [], "told once");
        // Nobody was ever believed to be in it.
        let wanted = Wanted { pods: ["web-0".into()].into(), apps: BTreeMap::new() };
        assert!(Room::default().see(&"ns-a".into(), &wanted, None, at(5), PATIENCE).is_empty());
    }

    /// What is known of the App after its Pod of that UID was accused, and one of UID 1 and of another App has been there twice.
    fn known(uid: Option<&str>) -> AppFact {
        let mut room = Room::default();
        for seconds in [0, 600] {
            let mut found = seen(&[("web-0", pod("1", "other", false))], &[]);
            let (name, selector) = ("other-a1b2".into(), labels("other"));
            found.services.push(Service { name, selector, ..Service::default() });
            room.see(&"ns-a".into(), &accused(uid), Some(found), at(seconds), PATIENCE);
        }
        room.apps[&app()].clone()
    }

    #[test]
    fn an_accused_pod_under_another_label_still_stands_for_its_app() {
        let exposure = Some(Exposure::plain(["other-a1b2.ns-a.svc".into()]));
        assert_eq!(
            known(Some("1")),
            AppFact { gone: false, exposure },
            "it is still that Pod that is reached"
        );
    }

    #[test]
    fn another_pod_of_the_same_name_is_no_pod_of_the_app() {
        assert_eq!(known(Some("0")), AppFact { gone: true, exposure: None });
    }

    #[test]
    fn where_it_is_not_known_which_pod_was_accused_one_of_its_name_opens_and_closes_nothing() {
        assert_eq!(known(None), AppFact { gone: false, exposure: None });
    }

    #[test]
    fn an_app_with_one_of_several_accused_pods_left_is_not_gone() {
        let two = [("web-0".into(), Some("1".into())), ("web-1".into(), Some("2".into()))];
        let wanted = Wanted { apps: [(app(), two.into())].into(), pods: BTreeSet::new() };
        let mut room = Room::default();
        let mut is_gone = |pods: &[(&str, Pod)], absent: &[&str], seconds| {
            room.see(&"ns-a".into(), &wanted, Some(seen(pods, absent)), at(seconds), PATIENCE);
            room.apps[&app()].gone
        };
        let other = |uid| pod(uid, "other", false);
        for seconds in [0, 600] {
            assert!(!is_gone(&[("web-0", other("9")), ("web-1", other("2"))], &[], seconds));
            assert!(!is_gone(&[("web-0", other("9"))], &[], seconds), "not looked for");
        }
        assert!(!is_gone(&[("web-0", other("9"))], &["web-1"], 700));
        assert!(is_gone(&[("web-0", other("9"))], &["web-1"], 760));
    }

    #[test]
    fn with_routes_ingresses_are_named_and_what_is_reached_otherwise_stays_plain() {
        let mut found = seen(&[("web-0", pod("1", "web", false))], &[]);
        found.services.push(Service { name: "web-2".into(), selector: labels("web"), ..Service::default() });
        found.routes = Some(super::super::lookup::Routes {
            ingresses: [("web-x7k2".into(), ["in".into()].into())].into(),
            otherwise: ["web-2".into(), "stranger".into()].into(),
        });
        let mut room = Room::default();
        see(&mut room, found, 0);
        let exposure = room.apps[&app()].exposure.clone().unwrap();
        let texts = |texts: &[Text]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&exposure.services), ["web-2.ns-a.svc", "web-x7k2.ns-a.svc"]);
        assert_eq!(texts(&exposure.ingresses), ["ns-a/in"]);
        assert_eq!(texts(&exposure.otherwise), ["web-2.ns-a.svc"]);
    }
}
