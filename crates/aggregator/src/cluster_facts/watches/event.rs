//! The events of a watch, one per line.

use serde::Deserialize;

use super::{End, Watch};
use crate::cluster_facts::changes::{Kind, MAX_SILENCE};
use crate::cluster_facts::resource_version::reaches;
use crate::kubernetes::{Refusal, RefusalKind, Trim};

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Object,
}

/// An object, or the API server's refusal.
#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    namespace: String,
    name: String,
    resource_version: String,
}

impl Watch {
    /// Takes one event.
    pub(super) fn take_in(&self, line: Trim, version: &mut String) -> Result<Option<End>, Refusal> {
        if line.held() == 0 {
            return Ok(None);
        }
        let (ask, print) = (self.ask("watch"), line.print());
        let read: Result<Event, _> = serde_json::from_slice(&line.into_wanted());
        let Event { r#type, object } = read.map_err(|e| Refusal::new(&ask, &kube::Error::SerdeError(e)))?;
        if r#type == "ERROR" {
            if object.code == 410 {
                return Ok(Some(End::Gone));
            }
            let status = kube::core::Status::failure(&object.message, "").with_code(object.code);
            return Err(Refusal::new(&ask, &kube::Error::Api(Box::new(status))));
        }
        let Metadata { namespace, name, resource_version } = object.metadata;
        let is_bookmark = r#type == "BOOKMARK";
        // A bookmark of an earlier version than the last one proves nothing.
        let is_progress = is_bookmark && reaches(&resource_version, version);
        if is_progress || !is_bookmark && !resource_version.is_empty() {
            *version = resource_version;
        }
        let namespace = if self.kind == Kind::Namespaces { &name } else { &namespace };
        let (mut is_changed, mut needs_list) = (false, false);
        let behind = {
            let mut changes = self.states.changes();
            if !is_bookmark {
                let print = (r#type != "DELETED").then_some(print);
                is_changed = changes.note(self.kind, namespace, &name, print);
            }
            if is_progress {
                needs_list = changes.reach(self.kind, version);
            }
            changes.behind(self.kind, self.clock.now()).map(str::to_owned)
        };
        self.states.set_refusal(self.kind, behind.map(|goal| self.is_behind(version, &goal)));
        if is_changed {
            self.states.changed.notify_one();
        }
        if needs_list {
            self.reached.notify_one();
        }
        Ok(None)
    }

    fn is_behind(&self, version: &str, goal: &str) -> Refusal {
        let ask = self.ask("watch");
        Refusal {
            kind: RefusalKind::Unavailable,
            subject: ask.subject(),
            text: format!(
                "{ask}: the watch has reported everything up to version {version}, but the cluster had version {goal} more than {} ago: \
                 the API server's cache gets no updates from etcd, or too seldom (the interval of etcd's progress notifications \
                 has to be less than a minute)",
                humantime::format_duration(MAX_SILENCE)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use procscan_core::Moment;
    use serde_json::{Value, json};

    use super::super::WatchStates;
    use super::*;
    use crate::clock::Clock;
    use crate::cluster_facts::tests::fake::Server;
    use crate::kubernetes::Cluster;

    fn watch(kind: Kind) -> (Watch, WatchStates, Clock) {
        let (clock, states) = (Clock::start(), WatchStates::default());
        let watch = Watch::of(kind, Cluster::paced(Server::new().client(), 20), clock, states.clone());
        (watch, states, clock)
    }

    fn trimmed(watch: &Watch, line: &Value) -> Trim {
        let mut trim = Trim::printing(watch.keep, &watch.secret);
        trim.take_in(line.to_string().as_bytes());
        trim
    }

    #[tokio::test]
    async fn fingerprints_differ_with_the_object_and_with_the_secret() {
        let (one, ..) = watch(Kind::Pods);
        let print = |version: &str, uid: &str, watch: &Watch| {
            let object = json!({"metadata": {"resourceVersion": version, "uid": uid}});
            trimmed(watch, &json!({"type": "MODIFIED", "object": object})).print()
        };
        assert_eq!(print("1", "a", &one), print("2", "a", &one));
        assert_ne!(print("1", "a", &one), print("1", "b", &one));
        assert_ne!(print("1", "a", &one), print("1", "a", &watch(Kind::Pods).0));
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_bookmark_that_has_reached_the_version_of_a_list_proves_that_everything_was_reported() {
        let (watch, states, clock) = watch(Kind::Pods);
        for kind in Kind::ALL {
            states.changes().is_absent(kind);
        }
        states.changes().begin(Kind::Pods, clock.now());
        let mut version = "9".to_owned();
        let mut lines = vec![("MODIFIED", "30", false), ("BOOKMARK", "30", false), ("BOOKMARK", "x", false)];
        lines.extend([("MODIFIED", "50", false), ("BOOKMARK", "40", false), ("BOOKMARK", "50", true)]);
        lines.extend([("BOOKMARK", "59", false), ("BOOKMARK", "60", true)]);
        let mut goals = vec!["60", "45"];
        for (r#type, newest, is_progress) in lines {
            tokio::time::advance(Duration::from_secs(10)).await;
            if !states.changes().has_goal(Kind::Pods) {
                let goal = goals.pop().unwrap();
                assert!(states.changes().expect(Kind::Pods, goal.to_owned(), clock.now()));
            }
            let before = states.changes().reported_until(clock.now());
            let line = json!({"type": r#type, "object": {"metadata": {"resourceVersion": newest}}});
            assert!(watch.take_in(trimmed(&watch, &line), &mut version).unwrap().is_none());
            let after = states.changes().reported_until(clock.now());
            assert_eq!(after.map(Moment::uptime) > before.map(Moment::uptime), is_progress, "{line}");
        }
        assert_eq!(version, "60");
        assert!(!states.changes().expect(Kind::Pods, "59".to_owned(), clock.now()), "it has gone back");
    }
}
