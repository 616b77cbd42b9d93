//! Which App a Pod belongs to, and which Services expose it: by what the Pod itself says, never by what an agent says.
//!
//! Shaped by how Sealos (`labring/sealos`) marks what it makes: Pods of its apps carry `app`, Pods of its devboxes
//! `app.kubernetes.io/part-of: devbox` (older ones `devbox.sealos.io/name`); Services carry the name of what they were made for.

use std::collections::BTreeMap;

use crate::names::{App, Text};

/// Labels, by name.
pub type Labels = BTreeMap<String, String>;

/// Who made a Pod: its controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Its kind, such as `ReplicaSet`.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// The App that a Pod belongs to.
///
/// Never empty: a Pod without any mark is an App of its own.
pub fn app_of(namespace: &str, pod: &str, labels: &Labels, owner: Option<Owner<'_>>) -> App {
    let label = |name: &str| labels.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let old_devbox = label("devbox.sealos.io/name");
    let named = label("app.kubernetes.io/name");
    if label("app.kubernetes.io/part-of") == Some("devbox") || old_devbox.is_some() {
        return App::new(namespace, "devbox", named.or(old_devbox).unwrap_or(pod));
    }
    let name = label("app").or(named).or_else(|| owner.map(made_for)).unwrap_or(pod);
    App::new(namespace, "app", name)
}

/// The workload behind a controller: a Deployment's ReplicaSets and a CronJob's Jobs come and go under it.
fn made_for(owner: Owner<'_>) -> &str {
    let without = |is_suffix: fn(&str) -> bool| match owner.name.rsplit_once('-') {
        Some((name, suffix)) if !name.is_empty() && is_suffix(suffix) => name,
        _ => owner.name,
    };
    match owner.kind {
        // The hash of the template: the ReplicaSet of a Deployment, never one that somebody named by hand `web-2`.
        "ReplicaSet" => without(|hash| {
            (8..=10).contains(&hash.len())
                && hash.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        }),
        // The scheduled time in minutes.
        "Job" => without(|time| time.len() >= 8 && time.bytes().all(|b| b.is_ascii_digit())),
        _ => owner.name,
    }
}

/// A Service, as far as it says whom it exposes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Text,
    /// Its selector.
    pub selector: Labels,
    /// Its labels.
    pub labels: Labels,
}

impl Service {
    /// Whether it sends traffic to `app`, whose Pods have these `labels`.
    ///
    /// Headless ones count too: an Ingress can name one as its backend, and then it is a way in.
    pub fn exposes<'a>(&self, app: &App, pods: impl IntoIterator<Item = &'a Labels>) -> bool {
        let manager = match &*app.kind {
            "devbox" => "cloud.sealos.io/devbox-manager",
            _ => "cloud.sealos.io/app-deploy-manager",
        };
        let is_made_for = self.labels.get(manager).is_some_and(|name| **name == *app.name);
        // An empty selector selects nothing: its endpoints are somebody's by hand.
        let selects = |pod: &Labels| {
            !self.selector.is_empty()
                && self.selector.iter().all(|(name, value)| pod.get(name) == Some(value))
        };
        is_made_for || pods.into_iter().any(selects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn app(pairs: &[(&str, &str)], owner: Option<(&str, &str)>) -> (String, String) {
        let owner = owner.map(|(kind, name)| Owner { kind, name });
        let app = app_of("ns-a", "pod-1", &labels(pairs), owner);
        (app.kind.to_string(), app.name.to_string())
    }

    fn is(kind: &str, name: &str) -> (String, String) {
        (kind.to_owned(), name.to_owned())
    }

    #[test]
    fn an_app_is_named_by_the_first_mark_that_there_is() {
        let devbox = ("app.kubernetes.io/part-of", "devbox");
        let named = ("app.kubernetes.io/name", "dev");
        assert_eq!(app(&[devbox, named, ("app", "x")], None), is("devbox", "dev"));
        assert_eq!(app(&[("devbox.sealos.io/name", "old")], None), is("devbox", "old"));
        assert_eq!(app(&[("app", "web"), named], Some(("ReplicaSet", "y-1"))), is("app", "web"));
        assert_eq!(app(&[named], None), is("app", "dev"));
        assert_eq!(app(&[("app", "")], None), is("app", "pod-1"));
    }

    #[test]
    fn an_unmarked_pod_belongs_to_the_workload_behind_its_controller() {
        assert_eq!(app(&[], Some(("ReplicaSet", "web-7d4b9c6f5d"))), is("app", "web"));
        assert_eq!(app(&[], Some(("ReplicaSet", "web-2"))), is("app", "web-2"));
        assert_eq!(app(&[], Some(("StatefulSet", "db-12345678"))), is("app", "db-12345678"));
        assert_eq!(app(&[], Some(("Job", "backup-29384756"))), is("app", "backup"));
        assert_eq!(app(&[], Some(("Job", "-29384756"))), is("app", "-29384756"));
    }

    #[test]
    fn a_service_exposes_whom_it_selects_or_was_made_for() {
        let web = App::new("ns-a", "app", "web");
        let pod = labels(&[("app", "web"), ("hash", "1")]);
        let service = |selector: &[(&str, &str)], marks: &[(&str, &str)]| Service {
            name: "web-x7k2".into(),
            selector: labels(selector),
            labels: labels(marks),
        };
        assert!(service(&[("app", "web")], &[]).exposes(&web, [&pod]));
        assert!(!service(&[("app", "web"), ("tier", "x")], &[]).exposes(&web, [&pod]));
        assert!(!service(&[], &[]).exposes(&web, [&pod]), "an empty selector selects nothing");
        assert!(service(&[], &[("cloud.sealos.io/app-deploy-manager", "web")]).exposes(&web, []));
        assert!(!service(&[], &[("cloud.sealos.io/devbox-manager", "web")]).exposes(&web, []));
        assert!(
            service(&[], &[("cloud.sealos.io/devbox-manager", "web")])
                .exposes(&App::new("ns-a", "devbox", "web"), [])
        );
    }
}
