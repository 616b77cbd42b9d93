//! A kind with an object for each App, in one namespace and in those of the tenants: nothing but its own file and the list of
//! kinds says how it is handled.

use procscan_core::plan::{Notice, NoticePhase};
use procscan_core::resources::Home;

use super::world::{ApiServer, Asked, MESSAGES, PLUGINS, POLICIES};
use procscan_core::resources::MANAGED_BY;

use super::*;
use crate::output::app_policies::{KINDS, KINDS_IN_TENANTS, NAMESPACE, place};

/// Both homes of the kind.
pub(super) const HOMES: [Option<&str>; 2] = [Some(NAMESPACE), None];

pub(super) fn settings(home: Option<&str>) -> Settings {
    let kinds = if home.is_some() { KINDS } else { KINDS_IN_TENANTS };
    Settings { kinds, ..Config::default().settings() }
}

pub(super) struct Stage {
    pub(super) server: ApiServer,
    pub(super) output: ClusterOutput,
    pub(super) permit: WritePermit,
    pub(super) home: Option<&'static str>,
}

impl Stage {
    /// A leader that has taken over.
    pub(super) async fn begin(home: Option<&'static str>) -> Self {
        let server = ApiServer::default();
        let permit = WritePermit::of_term(1, "a");
        let mut output = server.output_of(&permit);
        output.take_over(&settings(home), &permit, true).await.unwrap();
        Self { server, output, permit, home }
    }

    pub(super) async fn write(&mut self, plan: &Plan) -> Outcome {
        self.output.write(plan, &settings(self.home), &self.permit, || true).await
    }

    pub(super) fn place(&self, app: usize) -> (String, String) {
        place(&App::new("ns-a", "app", format!("web-{app:03}")), self.home)
    }

    pub(super) fn policy(&self, app: usize) -> Option<Value> {
        let (namespace, name) = self.place(app);
        self.server.get(POLICIES, &namespace, &name)
    }

    pub(super) fn edit(&self, app: usize, edit: impl FnOnce(&mut Value)) {
        let (namespace, name) = self.place(app);
        self.server.world().edit(POLICIES, &namespace, &name, edit);
    }

    /// The verbs and the names of the writes of policies.
    pub(super) fn writes(&self) -> Vec<String> {
        let writes = self.server.writes();
        writes.into_iter().filter(|write| write.contains(POLICIES)).collect()
    }

    /// What was written of an App's policy, as [`Self::writes`] returns it.
    pub(super) fn of(&self, verbs: &[&str], app: usize) -> Vec<String> {
        let (namespace, name) = self.place(app);
        verbs.iter().map(|verb| format!("{verb} {POLICIES} {namespace}/{name}")).collect()
    }
}

#[tokio::test]
async fn an_object_of_each_app_is_created_repaired_and_deleted_when_the_app_is_released() {
    for home in HOMES {
        let mut stage = Stage::begin(home).await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let created = seen.clone();
        stage.server.before(move |world, asked| {
            if asked.plural == POLICIES && asked.method == Method::PATCH {
                let live = world.objects.iter().find(|((plural, ..), _)| plural == POLICIES);
                created.lock().unwrap().extend(live.map(|(_, live)| live["data"].clone()));
            }
            None
        });
        assert_eq!(stage.write(&plan(1)).await.problems, Vec::<String>::new());
        assert_eq!(*seen.lock().unwrap(), [json!({"state": "open"})], "created so that it blocks no App");
        stage.server.well();
        assert_eq!(stage.writes(), stage.of(&["POST", "PATCH"], 0));
        let whole = stage.policy(0).unwrap()["data"].clone();
        assert_eq!((&whole["state"], &whole["name"]), (&json!("closed"), &json!("web-000")));

        let outcome = stage.write(&plan(1)).await;
        assert_eq!((outcome.written, outcome.removed, stage.writes().len()), (0, 0, 0));
        stage.edit(0, |policy| policy["data"] = json!({"state": "open", "more": "x"}));
        stage.write(&plan(1)).await;
        assert_eq!(stage.policy(0).unwrap()["data"], whole);
        // A program has removed the label.
        stage.edit(0, |policy| policy["metadata"]["labels"] = json!({}));
        stage.write(&plan(1)).await;
        assert_eq!(stage.policy(0).unwrap()["metadata"]["labels"][MANAGED_BY.0], MANAGED_BY.1);
        let (namespace, name) = stage.place(0);
        stage.server.world().remove(POLICIES, &namespace, &name);
        stage.write(&plan(2)).await;
        assert!(stage.policy(0).is_some() && stage.policy(1).is_some());

        stage.writes();
        let preview = stage.output.preview(&plan(1), &settings(home)).await.unwrap();
        let removed: Vec<_> = preview.iter().filter(|it| it.action == Action::Remove).collect();
        let (namespace, name) = stage.place(1);
        assert_eq!(removed.len(), 1);
        assert_eq!(removed[0].object, format!("ConfigMap {namespace}/{name}"));
        let outcome = stage.write(&plan(1)).await;
        assert_eq!((outcome.removed, outcome.problems), (1, Vec::new()));
        assert_eq!(stage.writes(), stage.of(&["DELETE"], 1));
        // The gateway's object is permanent, and the other App's policy stays.
        assert!(stage.policy(0).is_some());
        assert!(stage.server.get(PLUGINS, "higress-system", "procscan-violations").is_some());
    }
}

/// Whatever stands in the way of a deletion, the object stays, and everything else is written.
#[tokio::test]
async fn only_what_is_ours_and_known_and_not_suspended_is_deleted_and_only_after_a_take_over() {
    for home in HOMES {
        let mut stage = Stage::begin(home).await;
        stage.write(&plan(1)).await;
        stage.writes();
        // Another process, which has not taken over.
        let mut late = stage.server.output_of(&stage.permit);
        let outcome = late.write(&plan(0), &settings(home), &stage.permit, || true).await;
        assert_eq!((outcome.removed, stage.writes().len()), (0, 0));
        // A leader of a later term that has not taken over.
        let later = WritePermit::of_term(2, "a");
        let outcome = stage.output.write(&plan(0), &settings(home), &later, || true).await;
        assert_eq!((outcome.removed, stage.writes().len()), (0, 0));
        // Without the right to write.
        let lost = WritePermit::of_term(1, "a");
        lost.give_up();
        stage.output.write(&plan(0), &settings(home), &lost, || true).await;
        assert_eq!(stage.writes().len(), 0);

        let whole = stage.policy(0).unwrap();
        let edits: [(&str, Value); 3] = [
            ("/metadata/labels", json!({})),
            ("/metadata/annotations", json!({SUSPEND: "true"})),
            ("/data", json!({"state": "closed"})),
        ];
        for (field, value) in edits {
            stage.edit(0, |policy| {
                *policy = whole.clone();
                policy["metadata"]["annotations"] = json!({});
                *policy.pointer_mut(field).unwrap() = value;
            });
            let problems = stage.write(&plan(0)).await.problems;
            assert_eq!(stage.writes().len(), 0, "{field}");
            assert_eq!(problems.len(), usize::from(field == "/data"), "{field}: {problems:?}");
            assert!(problems.iter().all(|problem| problem.contains("the Apps that it blocks are not known")));
        }
        // Of our label, but not of our name; and in another namespace.
        stage.edit(0, |policy| *policy = whole.clone());
        let labels = whole["metadata"]["labels"].clone();
        let (namespace, _) = stage.place(0);
        for (namespace, name) in [(&*namespace, "mine"), ("ns-z", "ns-a.procscan-x")] {
            let other = json!({"metadata": {"labels": labels}, "data": {"state": "open"}});
            stage.server.world().put(POLICIES, namespace, name, other);
        }
        assert_eq!(stage.write(&plan(0)).await.removed, 1);
        assert_eq!(stage.writes(), stage.of(&["DELETE"], 0));
    }
}

#[tokio::test]
async fn an_object_that_changes_at_the_same_time_is_not_deleted_before_it_is_read_again() {
    let mut stage = Stage::begin(Some(NAMESPACE)).await;
    stage.write(&plan(1)).await;
    let place = stage.place(0);
    stage.server.before(move |world, asked| {
        if asked.method == Method::DELETE {
            world.edit(POLICIES, &place.0, &place.1, |policy| policy["data"]["more"] = "x".into());
        }
        None
    });
    let outcome = stage.write(&plan(0)).await;
    assert!(outcome.problems[0].contains("has been modified") && stage.policy(0).is_some());
    stage.server.well();
    assert_eq!(stage.write(&plan(0)).await.removed, 1);
    // Deleted between the look and the request.
    stage.write(&plan(1)).await;
    let place = stage.place(0);
    stage.server.before(move |world, asked| {
        if asked.method == Method::DELETE {
            world.remove(POLICIES, &place.0, &place.1);
        }
        None
    });
    let outcome = stage.write(&plan(0)).await;
    assert_eq!((outcome.removed, outcome.problems), (0, Vec::new()));
}

#[tokio::test]
async fn a_new_leader_inherits_and_marks_the_objects_so_that_late_writes_are_refused() {
    for home in HOMES {
        let mut stage = Stage::begin(home).await;
        stage.write(&plan(2)).await;
        // The gateway's object knows of another App only.
        let other = plan(3).blocks.split_off(2);
        let only_other = Plan { blocks: other, ..plan(0) };
        let gateway = Config::default().settings();
        stage.server.output().write(&only_other, &gateway, &WritePermit::always(), || true).await;
        let old = stage.policy(0).unwrap();
        let permit = WritePermit::of_term(2, "b");
        let mut next = stage.server.output_of(&permit);
        let blocked = next.take_over(&settings(home), &permit, true).await.unwrap();
        let names: Vec<&str> = blocked.iter().map(|inherited| &*inherited.app.name).collect();
        assert_eq!(names, ["web-000", "web-001", "web-002"]);
        for app in [0, 1] {
            assert_eq!(stage.policy(app).unwrap()["metadata"]["annotations"][WRITER], "b in term 2");
        }
        // What the leader before has on its way is for the version that it has read.
        let objects = resources::render(&plan(1), &settings(home), resources::Existing::default());
        let late = objects.iter().find(|object| object.kind == "ConfigMap").unwrap();
        let version = old["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let refusal = stage.output.apply(late, version).await.unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Conflict);

        // A later mark ends a term only where no tenant can write it.
        stage.edit(0, |policy| policy["metadata"]["annotations"][WRITER] = "z in term 9".into());
        next.write(&plan(2), &settings(home), &permit, || true).await;
        assert_eq!(permit.holds(), home.is_none());
    }
}

#[tokio::test]
async fn an_operator_opens_the_objects_and_they_stay_open_until_the_annotation_is_removed() {
    for home in HOMES {
        let mut stage = Stage::begin(home).await;
        stage.write(&plan(1)).await;
        let Opened { objects, refused } = stage.output.unblock_all(&settings(home)).await;
        assert_eq!((objects.len(), refused), (2, Vec::new()));
        let (namespace, name) = stage.place(0);
        assert_eq!((&objects[1].namespace, &objects[1].name), (&namespace, &name));
        let is_open = |stage: &Stage| stage.policy(0).unwrap()["data"]["state"] == "open";
        assert!(is_open(&stage));
        stage.writes();
        // Neither the plan nor its release touches it, and no further object closes anything.
        for apps in [1, 2, 0] {
            let outcome = stage.write(&plan(apps)).await;
            assert_eq!((stage.writes().len(), outcome.problems), (0, Vec::new()), "{apps}");
            assert!(is_open(&stage) && stage.policy(1).is_none());
        }
        stage.edit(0, |policy| policy["metadata"]["annotations"] = json!({}));
        stage.write(&plan(2)).await;
        assert!(!is_open(&stage) && stage.policy(1).is_some());
        // What is refused keeps nothing else from being opened.
        stage.server.before(|_, asked| (asked.plural == PLUGINS).then(|| (403, "not today".to_owned())));
        let Opened { objects, refused } = stage.output.unblock_all(&settings(home)).await;
        assert_eq!((objects.len(), refused.len(), is_open(&stage)), (2, 1, true));
    }
}

/// A tenant that keeps the mark from being written keeps no leader from its work. In a namespace of operators, what is not marked
/// is an error, because late writes of the leader before may still come.
#[tokio::test]
async fn an_object_of_a_tenant_that_can_not_be_marked_stops_no_leader() {
    for home in HOMES {
        let mut stage = Stage::begin(home).await;
        stage.write(&plan(2)).await;
        let take_over = async |term| {
            let permit = WritePermit::of_term(term, "b");
            stage.server.output_of(&permit).take_over(&settings(home), &permit, true).await
        };
        let first = stage.place(0);
        stage.server.before(move |world, asked| {
            if asked.method == Method::PATCH && asked.name.as_ref() == Some(&first.1) {
                world
                    .edit(POLICIES, &first.0, &first.1, |policy| policy["metadata"]["generation"] = 7.into());
            }
            None
        });
        assert_eq!(take_over(2).await.map(|blocked| blocked.len()).ok(), home.is_none().then_some(2));
        stage.server.before(|_, asked| {
            let is_mark = asked.method == Method::PATCH && asked.plural == POLICIES;
            is_mark.then(|| (403, "not today".to_owned()))
        });
        assert_eq!(take_over(3).await.is_ok(), home.is_none());
        // That the API server does not answer says nothing of the object.
        stage.server.before(|_, asked| (asked.method == Method::PATCH).then(|| (500, "not well".to_owned())));
        assert!(take_over(4).await.is_err());
    }
}

#[tokio::test]
async fn in_a_namespace_that_is_gone_there_is_nothing_to_block() {
    let mut stage = Stage::begin(None).await;
    let gone = "namespaces \"ns-a\" not found";
    stage.server.before(move |_, asked| {
        (asked.plural == POLICIES && asked.method == Method::POST).then(|| (404, gone.to_owned()))
    });
    assert_eq!(stage.write(&plan(1)).await.problems, Vec::<String>::new());
}

/// Its objects may be those of a later leader.
#[tokio::test]
async fn nothing_is_deleted_while_another_kind_can_not_be_read() {
    let mut stage = Stage::begin(None).await;
    stage.write(&plan(1)).await;
    stage.server.before(|_, asked| {
        (asked.plural == PLUGINS && asked.method == Method::GET).then(|| (403, "not today".to_owned()))
    });
    assert_eq!(stage.write(&plan(0)).await.removed, 0);
    stage.server.well();
    assert_eq!(stage.write(&plan(0)).await.removed, 1);
}

/// A tenant that may write in its own namespace must not open what is blocked elsewhere.
#[tokio::test]
async fn in_the_namespaces_of_tenants_a_suspension_counts_for_one_namespace() {
    let mut stage = Stage::begin(None).await;
    stage.write(&plan(1)).await;
    stage.edit(0, |policy| policy["metadata"]["annotations"] = json!({SUSPEND: "true"}));
    let mut both = plan(2);
    let app = App::new("ns-b", "app", "shop");
    Arc::make_mut(&mut both.blocks[1]).app = app.clone();
    stage.write(&both).await;
    let (namespace, name) = place(&app, None);
    assert!(stage.server.get(POLICIES, &namespace, &name).is_some());
}

#[tokio::test]
async fn uninstalling_removes_messages_then_policies_and_the_gateways_objects_last() {
    for home in HOMES {
        let mut stage = Stage::begin(home).await;
        let mut with_notice = plan(1);
        with_notice.notices = vec![notice()];
        stage.write(&with_notice).await;
        let foreign = json!({"metadata": {}, "data": {"state": "closed"}});
        let (namespace, name) = stage.place(7);
        stage.server.world().put(POLICIES, &namespace, &name, foreign);
        let dry = stage.output.uninstall(&settings(home), true).await.unwrap();
        let removed = stage.output.uninstall(&settings(home), false).await.unwrap();
        assert_eq!(dry, removed);
        let kinds: Vec<&str> = removed.iter().filter_map(|it| it.split(' ').next()).collect();
        assert_eq!(kinds, ["Notification", "ConfigMap", "WasmPlugin"]);
        assert!(stage.policy(0).is_none() && stage.policy(7).is_some());
        assert_eq!(stage.output.left_behind(&settings(home)).await.unwrap(), []);
    }
}

pub(super) fn notice() -> Arc<Notice> {
    Arc::new(Notice {
        app: App::new("ns-a", "app", "web-000"),
        sent_at: "2026-01-02T03:04:05Z".parse().unwrap(),
        inherited: false,
        phase: NoticePhase::Blocked,
        processes: ["xmrig".into()].into(),
        others: None,
    })
}

#[tokio::test]
async fn a_kind_that_is_not_served_stops_no_other_kind_and_no_message() {
    for (missing, other) in [(POLICIES, PLUGINS), (PLUGINS, POLICIES)] {
        let mut stage = Stage::begin(Some(NAMESPACE)).await;
        stage.server.world().unserved.insert(missing.to_owned());
        let mut with_notice = plan(2);
        with_notice.notices = vec![notice()];
        let permit = stage.permit.clone();
        stage.output.take_over(&settings(stage.home), &permit, true).await.unwrap();
        let outcome = stage.write(&with_notice).await;
        assert_eq!(outcome.problems.len(), 1, "{missing}");
        assert!(outcome.problems[0].contains("is its CRD installed?"));
        let there = |plural: &str| {
            let world = stage.server.world();
            world.objects.keys().filter(|(of, ..)| of == plural).count()
        };
        let expected = if other == PLUGINS { 1 } else { 2 };
        assert_eq!((there(missing), there(other), there(MESSAGES)), (0, expected, 1), "{missing}");
        let opened = stage.output.unblock_all(&settings(stage.home)).await;
        assert_eq!((opened.objects.len(), opened.refused.len()), (expected, 1));
        assert_eq!(stage.output.uninstall(&settings(stage.home), false).await.unwrap().len(), expected + 1);
    }
    // Where nothing is blocked, no tenant is notified of a block.
    let mut stage = Stage::begin(Some(NAMESPACE)).await;
    stage.server.world().unserved.extend([PLUGINS, POLICIES].map(str::to_owned));
    let mut with_notice = plan(1);
    with_notice.notices = vec![notice()];
    assert_eq!(stage.write(&with_notice).await.problems.len(), 2);
    assert!(stage.server.world().objects.keys().all(|(plural, ..)| plural != MESSAGES));
}

/// Every request of a leader is allowed by the rules of its kind.
#[tokio::test]
async fn a_leader_needs_no_rights_but_those_of_the_rules_of_the_kinds() {
    for home in HOMES {
        let mut stage = Stage::begin(home).await;
        let mut with_notice = plan(3);
        with_notice.notices = vec![notice()];
        stage.write(&with_notice).await;
        stage.edit(0, |policy| policy["data"]["more"] = "x".into());
        stage.server.world().edit(PLUGINS, "higress-system", "procscan-violations", |plugin| {
            plugin["spec"]["more"] = "x".into();
        });
        stage.write(&with_notice).await;
        stage.write(&plan(1)).await;
        let permit = WritePermit::of_term(2, "b");
        stage.server.output_of(&permit).take_over(&settings(home), &permit, true).await.unwrap();
        let asked = std::mem::take(&mut stage.server.world().asked);
        let mut verbs = BTreeSet::new();
        for asked in &asked {
            let (kind, verb) = needs(asked, &settings(home));
            verbs.insert((kind.name(), verb));
            let is_allowed = |rule: &resources::Rule| {
                let is_place = rule.namespace.is_none() || rule.namespace == asked.namespace;
                let is_name =
                    rule.names.is_empty() || asked.name.as_ref().is_some_and(|it| rule.names.contains(it));
                is_place && is_name && rule.verbs.contains(&verb)
            };
            assert!(kind.rules(&settings(home)).iter().any(is_allowed), "{asked:?}");
        }
        // And each verb of the rules of the test's kind was needed.
        let kind = settings(home).kinds[2];
        for verb in kind.rules(&settings(home))[0].verbs {
            assert!(
                verbs.contains(&(kind.name(), verb)),
                "{verb} was not needed for {:?}",
                kind.home(&settings(home))
            );
        }
        assert_eq!(matches!(kind.home(&settings(home)), Home::Tenants), home.is_none());
    }
}

/// The kind and the verb of a request.
fn needs(asked: &Asked, settings: &Settings) -> (resources::Kind, &'static str) {
    let kind = settings.kinds.iter().find(|kind| kind.plural() == asked.plural).unwrap();
    let verb = match (asked.method.as_str(), &asked.name) {
        ("GET", Some(_)) => "get",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        other => panic!("{other:?}"),
    };
    (*kind, verb)
}
