//! Which App a Pod belongs to, and which Services expose it: by the Pod's own labels and owners, never by an agent's
//! report.
//!
//! The rules follow the marks of Sealos (`labring/sealos`). Pods of its apps carry `app`, and Pods of its devboxes
//! `app.kubernetes.io/part-of: devbox` (older ones `devbox.sealos.io/name`). Services carry the name of the App that
//! they were made for.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::names::{App, Text};

/// Labels, by name.
pub type Labels = BTreeMap<String, String>;

/// The controller that made a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Its kind, such as `ReplicaSet`.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// The marks by which a Pod names its App.
#[derive(Clone, Copy, Debug)]
pub struct Marks<'a> {
    /// Its labels.
    pub labels: &'a Labels,
    /// Its controller, if it has one.
    pub owner: Option<Owner<'a>>,
    /// Its `creationTimestamp`, by the API server's clock.
    pub created: Option<Timestamp>,
}

/// The App that a Pod belongs to.
///
/// A Pod without any mark is an App of its own. Pods with different marks are never joined by a guess. Splitting an
/// App only delays a block, but joining two Apps blocks an innocent one.
pub fn app_of(namespace: &str, pod: &str, marks: Marks<'_>) -> App {
    let label = |name: &str| marks.label(name);
    let old_devbox = label("devbox.sealos.io/name");
    let named = label("app.kubernetes.io/name");
    if label("app.kubernetes.io/part-of") == Some("devbox") || old_devbox.is_some() {
        return App::new(namespace, "devbox", named.or(old_devbox).unwrap_or(pod));
    }
    // Two releases of one chart have the same `app.kubernetes.io/name`.
    let labelled = label("app").or_else(|| label("app.kubernetes.io/instance")).or(named);
    let name = labelled.or_else(|| marks.workload()).unwrap_or(pod);
    App::new(namespace, "app", name)
}

/// The App that earlier versions of this program assigned the Pod to, if it is another one. In those versions
/// `app.kubernetes.io/name` came before the instance, and they guessed a controller's suffix.
pub fn earlier_app_of(namespace: &str, pod: &str, marks: Marks<'_>) -> Option<App> {
    let now = app_of(namespace, pod, marks);
    let labelled = marks.label("app").or_else(|| marks.label("app.kubernetes.io/name"));
    let name = labelled.or_else(|| marks.owner.map(guessed_workload)).unwrap_or(pod);
    (&*now.kind == "app" && &*now.name != name).then(|| App::new(namespace, "app", name))
}

fn guessed_workload(owner: Owner<'_>) -> &str {
    let is_suffix = |suffix: &str| match owner.kind {
        "ReplicaSet" => {
            (8..=10).contains(&suffix.len())
                && suffix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        }
        "Job" => suffix.len() >= 8 && suffix.bytes().all(|b| b.is_ascii_digit()),
        _ => false,
    };
    let cut = owner.name.rsplit_once('-').filter(|(name, suffix)| !name.is_empty() && is_suffix(suffix));
    cut.map_or(owner.name, |(name, _)| name)
}

/// The controller that made the Pod, as `Kind/name`. Later Pods of this controller have the same origin, whatever their
/// labels. A Pod without a controller is its own origin.
pub fn origin_of(pod: &str, marks: Marks<'_>) -> Text {
    match (marks.owner, marks.workload()) {
        (Some(owner), Some(workload)) => format!("{}/{workload}", owner.kind).into(),
        _ => format!("Pod/{pod}").into(),
    }
}

/// The longest time between the minute when a CronJob's Job was due and the creation of a Pod of it. A Job may wait,
/// and its Pods may be retried.
const LATE_JOB: SignedDuration = SignedDuration::from_hours(24);
/// How far the CronJob controller's clock may be ahead of the API server's.
const EARLY_JOB: SignedDuration = SignedDuration::from_mins(5);

impl<'a> Marks<'a> {
    fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The workload behind the controller, because a Deployment's ReplicaSets and a CronJob's Jobs come and go. The
    /// suffix is cut off only if the Pod proves that Kubernetes made it, because tenants choose names such as
    /// `shop-payments` and `import-20260101`.
    fn workload(&self) -> Option<&'a str> {
        let owner = self.owner?;
        let without_suffix = owner.name.rsplit_once('-').filter(|(name, suffix)| {
            !name.is_empty()
                && match owner.kind {
                    "ReplicaSet" => self.label("pod-template-hash") == Some(*suffix),
                    "Job" => self.is_time_of_job(suffix),
                    _ => false,
                }
        });
        Some(without_suffix.map_or(owner.name, |(name, _)| name))
    }

    /// Whether a CronJob gives `suffix` to a Job that was due about when the Pod was created: the minutes since 1970.
    fn is_time_of_job(&self, suffix: &str) -> bool {
        // Kubernetes writes digits only, but `parse` accepts a sign too.
        let minutes = suffix.parse::<u32>().ok().filter(|_| suffix.bytes().all(|b| b.is_ascii_digit()));
        let due = minutes.and_then(|minutes| Timestamp::from_second(i64::from(minutes) * 60).ok());
        due.zip(self.created).is_some_and(|(due, created)| {
            let waited = created.duration_since(due);
            -EARLY_JOB <= waited && waited <= LATE_JOB
        })
    }
}

/// A Service, with the fields that decide which Apps it exposes.
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
    /// Whether the Service sends traffic to `app`, whose Pods have these labels. Headless Services count too, because
    /// an Ingress can name one as its backend. If a Service has a selector, only the selector decides, because a
    /// tenant can put any label on any Service of its own.
    pub fn exposes<'a>(&self, app: &App, pods: impl IntoIterator<Item = &'a Labels>) -> bool {
        if self.selector.is_empty() {
            return self.is_made_for(app);
        }
        pods.into_iter().any(|pod| self.selects(pod))
    }

    /// Whether its selector matches a Pod with these labels. An empty selector matches nothing, because the tenant
    /// makes the endpoints by hand.
    pub fn selects(&self, pod: &Labels) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(name, value)| pod.get(name) == Some(value))
    }

    /// Whether the Service was made for `app` by Sealos's label.
    fn is_made_for(&self, app: &App) -> bool {
        let manager = match &*app.kind {
            "devbox" => "cloud.sealos.io/devbox-manager",
            _ => "cloud.sealos.io/app-deploy-manager",
        };
        self.labels.get(manager).is_some_and(|name| **name == *app.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// The App of a Pod that was created at midnight, 2026-11-28.
    fn app(pairs: &[(&str, &str)], owner: Option<(&str, &str)>) -> (String, String) {
        created("2026-11-28T00:00:00Z".parse().ok(), pairs, owner)
    }

    fn created(
        created: Option<Timestamp>,
        pairs: &[(&str, &str)],
        owner: Option<(&str, &str)>,
    ) -> (String, String) {
        let owner = owner.map(|(kind, name)| Owner { kind, name });
        let app = app_of("ns-a", "pod-1", Marks { labels: &labels(pairs), owner, created });
        assert_eq!(&*app.namespace, "ns-a");
        (app.kind.to_string(), app.name.to_string())
    }

    fn is(kind: &str, name: &str) -> (String, String) {
        (kind.to_owned(), name.to_owned())
    }

    const INSTANCE: &str = "app.kubernetes.io/instance";
    const NAME: &str = "app.kubernetes.io/name";

    #[test]
    fn an_app_is_named_by_the_first_mark_of_its_pods() {
        let devbox = ("app.kubernetes.io/part-of", "devbox");
        let named = (NAME, "dev");
        let owner = Some(("StatefulSet", "y"));
        assert_eq!(app(&[devbox, named, ("app", "x"), (INSTANCE, "i")], owner), is("devbox", "dev"));
        assert_eq!(app(&[devbox], None), is("devbox", "pod-1"));
        assert_eq!(app(&[("app.kubernetes.io/part-of", "suite"), ("app", "x")], None), is("app", "x"));
        assert_eq!(app(&[("devbox.sealos.io/name", "old")], None), is("devbox", "old"));
        assert_eq!(app(&[("devbox.sealos.io/name", "old"), named], None), is("devbox", "dev"));
        assert_eq!(app(&[("app", "web"), named, (INSTANCE, "i")], owner), is("app", "web"));
        assert_eq!(app(&[named, (INSTANCE, "i")], owner), is("app", "i"));
        assert_eq!(app(&[named, (INSTANCE, "")], owner), is("app", "dev"));
        assert_eq!(app(&[named], owner), is("app", "dev"));
        assert_eq!(app(&[("app", "")], owner), is("app", "y"));
        assert_eq!(app(&[("app", "")], None), is("app", "pod-1"));
    }

    #[test]
    fn earlier_versions_recognised_a_cron_jobs_job_by_a_long_number_only() {
        let earlier = |name| {
            let owner = Some(Owner { kind: "Job", name });
            let marks = Marks { labels: &labels(&[]), owner, created: None };
            earlier_app_of("ns-a", "pod-1", marks).map(|app| app.name.to_string())
        };
        assert_eq!(earlier("report-29012345").as_deref(), Some("report"));
        assert_eq!(
            [earlier("report-2901234"), earlier("report-quarterly"), earlier("report-q")],
            [None, None, None]
        );
    }

    #[test]
    fn two_releases_of_one_chart_are_two_apps() {
        let release = |name| app(&[(NAME, "nginx"), (INSTANCE, name)], None);
        assert_eq!((release("shop"), release("blog")), (is("app", "shop"), is("app", "blog")));
    }

    #[test]
    fn a_replica_set_is_its_deployments_only_with_the_hash_that_its_pods_carry() {
        let of = |name, hash: &[(&str, &str)]| app(hash, Some(("ReplicaSet", name)));
        let hash = [("pod-template-hash", "7d4b9c6f5d")];
        assert_eq!(of("web-7d4b9c6f5d", &hash), is("app", "web"));
        assert_eq!(of("my-web-7d4b9c6f5d", &hash), is("app", "my-web"));
        // Made by hand, or of another hash.
        for name in ["shop-frontend", "shop-payments", "web-2", "web-7d4b9c6f5d"] {
            assert_eq!(of(name, &[]), is("app", name));
        }
        assert_eq!(of("web-1111111111", &hash), is("app", "web-1111111111"));
        assert_eq!(of("-7d4b9c6f5d", &hash), is("app", "-7d4b9c6f5d"));
        assert_eq!(of("7d4b9c6f5d", &hash), is("app", "7d4b9c6f5d"));
        assert_eq!(app(&hash, Some(("StatefulSet", "db-7d4b9c6f5d"))), is("app", "db-7d4b9c6f5d"));
    }

    #[test]
    fn a_job_is_a_cron_jobs_only_if_its_name_ends_in_the_minute_when_it_was_due() {
        let of = |name: &str| app(&[], Some(("Job", name)));
        let midnight = 29_930_400; // in minutes since 1970
        for (minutes, is_cron) in [(0, true), (1440, true), (1441, false), (-5, true), (-6, false)] {
            let name = format!("backup-{}", midnight - minutes);
            assert_eq!(of(&name), is("app", if is_cron { "backup" } else { &name }), "{minutes}");
        }
        // Named by hand: a date, a counter, the seconds since 1970; and texts that are no numbers.
        for name in [
            "import-20260101",
            "import-20261128",
            "ci-10293",
            "x-1795824000",
            "x-+29930400",
            "x-",
            "-29930400",
        ] {
            assert_eq!(of(name), is("app", name));
        }
        assert_eq!(app(&[], Some(("StatefulSet", "db-29930400"))), is("app", "db-29930400"));
        let unknown = created(None, &[], Some(("Job", "backup-29930400")));
        assert_eq!(unknown, is("app", "backup-29930400"), "of a Pod whose age is not known");
    }

    #[test]
    fn the_origin_of_a_pod_stays_the_same_when_its_labels_change() {
        let created = "2026-11-28T00:00:00Z".parse().ok();
        let of = |pairs: &[(&str, &str)], owner: Option<(&str, &str)>| {
            let owner = owner.map(|(kind, name)| Owner { kind, name });
            origin_of("pod-1", Marks { labels: &labels(pairs), owner, created }).to_string()
        };
        for app in ["web", "shop"] {
            let hash = |hash| [("app", app), ("pod-template-hash", hash)];
            assert_eq!(of(&hash("7d4b9c6f5d"), Some(("ReplicaSet", "web-7d4b9c6f5d"))), "ReplicaSet/web");
            assert_eq!(of(&hash("6c5d4b9f7a"), Some(("ReplicaSet", "web-6c5d4b9f7a"))), "ReplicaSet/web");
            assert_eq!(of(&[("app", app)], Some(("StatefulSet", "db"))), "StatefulSet/db");
            assert_eq!(of(&[("app", app)], Some(("Job", "backup-29930400"))), "Job/backup");
            assert_eq!(of(&[("app", app)], None), "Pod/pod-1");
        }
    }

    #[test]
    fn the_app_that_earlier_versions_assigned_is_known_if_it_is_another_one() {
        let of = |pairs: &[(&str, &str)], owner: Option<(&str, &str)>| {
            let owner = owner.map(|(kind, name)| Owner { kind, name });
            let marks = Marks { labels: &labels(pairs), owner, created: None };
            earlier_app_of("ns-a", "pod-1", marks).map(|app| (app.kind.to_string(), app.name.to_string()))
        };
        assert_eq!(of(&[(NAME, "nginx"), (INSTANCE, "shop")], None), Some(is("app", "nginx")));
        assert_eq!(of(&[], Some(("ReplicaSet", "web-2"))), None);
        assert_eq!(of(&[], Some(("ReplicaSet", "shop-payments"))), Some(is("app", "shop")));
        assert_eq!(of(&[], Some(("Job", "import-20260101"))), Some(is("app", "import")));
        assert_eq!(of(&[("pod-template-hash", "7d4b9c6f5d")], Some(("ReplicaSet", "web-7d4b9c6f5d"))), None);
        assert_eq!(of(&[(NAME, "nginx"), (INSTANCE, "shop"), ("app", "web")], None), None);
        assert_eq!(of(&[("app.kubernetes.io/part-of", "devbox"), (NAME, "dev")], None), None);
        assert_eq!(of(&[], None), None);
    }

    #[test]
    fn a_service_exposes_the_app_that_it_selects_and_without_a_selector_the_one_it_was_made_for() {
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
        assert!(!service(&[], &[("cloud.sealos.io/app-deploy-manager", "shop")]).exposes(&web, [&pod]));
        assert!(
            service(&[], &[("cloud.sealos.io/devbox-manager", "web")])
                .exposes(&App::new("ns-a", "devbox", "web"), [])
        );
    }

    #[test]
    fn the_label_of_a_service_that_selects_other_pods_is_ignored() {
        let web = App::new("ns-a", "app", "web");
        let (pod, innocent) = (labels(&[("app", "web")]), labels(&[("app", "shop")]));
        let mislabelled = Service {
            name: "shop-a1b2".into(),
            selector: innocent.clone(),
            labels: labels(&[("cloud.sealos.io/app-deploy-manager", "web")]),
        };
        assert!(!mislabelled.exposes(&web, [&pod]));
        assert!(mislabelled.exposes(&App::new("ns-a", "app", "shop"), [&innocent]));
    }
}
