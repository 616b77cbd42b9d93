//! Files of ours that were damaged: each is written anew from what is decided, and the damaged one stays beside it.

use procscan_core::names::Text;
use procscan_core::state::incident::MAX_SERVICES;
use procscan_core::state::{Incident, IncidentSpec, IncidentState};
use serde_json::json;

use super::*;
use crate::decided::PersistedBlocks;
use crate::output::difference::Action;
use crate::telemetry::logged::Logged;

const ASIDE: &str = "wasmplugin_higress-system_procscan-violations.yaml.damaged";

/// What a full disk or another program leaves of a file: a conflict of a merge, half of it, a cut after each of some whole lines, no
/// object, the header only.
fn damages(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let first = |n: usize| lines[..n].join("\n") + "\n";
    let half = text[..text.len() / 2].to_owned() + "\"";
    let conflict = text.replace("spec:", "<<<<<<< HEAD\nspec:");
    let cuts = [lines.len() / 3, lines.len() / 2, lines.len() - 1].map(first);
    [conflict, half, format!("{}- a\n", first(1)), first(1)].into_iter().chain(cuts).collect()
}

fn incident(namespace: &str, name: &str, services: &[Text]) -> Incident {
    let status = json!({
        "state": "Blocked", "opened": "2026-01-02T03:04:05Z", "exposure": { "services": services },
    });
    let spec = IncidentSpec::of(&App::new(namespace, "app", name));
    Incident { name: format!("{namespace}.{name}"), spec, status: serde_json::from_value(status).unwrap() }
}

fn of(incidents: &[Incident]) -> Option<PersistedBlocks> {
    PersistedBlocks::of(incidents, Duration::from_hours(1), "2026-01-02T06:00:00Z".parse().unwrap())
}

/// A state with an Incident of each of those Apps of `ns-a`, each with a Service of its own name.
pub(super) fn persisted(names: &[&str]) -> Option<PersistedBlocks> {
    let incident_of = |name: &&str| incident("ns-a", name, &[format!("{name}.ns-a.svc").into()]);
    of(&names.iter().map(incident_of).collect::<Vec<_>>())
}

/// An older state lacks what was blocked last.
#[test]
fn damage_is_an_error_where_an_app_can_be_read_that_no_incident_is_persisted_of() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let path = temp.path().join(PLUGIN);
    put(&directory, &objects(&["shop", "web"], 0)).unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    let mut refused = Vec::new();
    for damaged in damages(&whole) {
        fs::write(&path, &damaged).unwrap();
        assert_eq!(
            directory.blocked(&settings(), persisted(&["shop", "web"]).as_ref()).unwrap(),
            [],
            "{damaged}"
        );
        match directory.blocked(&settings(), persisted(&["web"]).as_ref()) {
            Ok(blocked) => assert_eq!(blocked, []),
            Err(error) => {
                let error = error.to_string();
                let listed =
                    "no Incident is persisted of blocks that our files list: ns-a/app/shop. The state";
                assert!(error.contains(PLUGIN) && error.contains(listed), "{error}");
            }
        }
        refused.push(directory.blocked(&settings(), persisted(&["web"]).as_ref()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }
    // In the ones without an object, with the header only, and with the first third, there is no App to be read.
    assert_eq!(refused, [true, true, false, false, false, true, true]);
    // What a file that is whole lists shows it as well.
    fs::write(&path, &whole[..20]).unwrap();
    assert_eq!(directory.blocked(&settings(), persisted(&["web"]).as_ref()).unwrap(), []);
    fs::write(temp.path().join(PLUGIN.replace(".yaml", "-1.yaml")), &whole).unwrap();
    let error = directory.blocked(&settings(), persisted(&["web"]).as_ref()).unwrap_err().to_string();
    assert!(error.contains("cut short") && error.contains("ns-a/app/shop"), "{error}");
    // A file that lacks the list of Apps, and still has that of Services.
    let start = whole.find("    - name").unwrap();
    let services =
        whole[..start].to_owned() + &whole[whole.find("  defaultConfigDisable").unwrap()..] + "a: [\n";
    fs::write(&path, services).unwrap();
    fs::remove_file(temp.path().join(PLUGIN.replace(".yaml", "-1.yaml"))).unwrap();
    let error = directory.blocked(&settings(), persisted(&["web"]).as_ref()).unwrap_err().to_string();
    assert!(error.contains("that our files list: Service shop.ns-a.svc. The state"), "{error}");
    assert_eq!(directory.blocked(&settings(), persisted(&["shop", "web"]).as_ref()).unwrap(), []);
}

/// The App's block is later, and nothing is persisted of it.
#[test]
fn an_incident_that_ended_long_ago_does_not_count_unless_its_app_was_released() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    let path = temp.path().join(PLUGIN);
    let text = fs::read_to_string(&path).unwrap() + "a: [\n";
    fs::write(&path, text).unwrap();
    let mut it = incident("ns-a", "web", &["web.ns-a.svc".into()]);
    let mut is_refused = |state, since: &str, is_released: bool| {
        (it.status.state, it.status.since) = (state, Some(since.parse().unwrap()));
        let release = json!({ "until": "2026-02-01T00:00:00Z", "by": "ops" });
        it.status.releases =
            is_released.then(|| serde_json::from_value(release).unwrap()).into_iter().collect();
        directory.blocked(&settings(), of(&[it.clone()]).as_ref()).is_err()
    };
    assert!(is_refused(IncidentState::Ended, "2026-01-02T04:59:59Z", false));
    assert!(!is_refused(IncidentState::Ended, "2026-01-02T04:59:59Z", true));
    assert!(!is_refused(IncidentState::Ended, "2026-01-02T05:00:00Z", false));
    assert!(!is_refused(IncidentState::Blocked, "2026-01-02T03:00:00Z", false));
}

/// The registry of the plugin may be a Service, and a tenant chooses the names of its Pods, processes and Ingresses.
#[test]
fn of_damage_only_apps_and_closed_services_are_read() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let mut settings = settings();
    settings.gateway.url = "oci://registry.infra.svc.cluster.local/request-block:2.0.0".to_owned();
    settings.gateway.message = "see help.ops.svc.cluster.local".to_owned();
    settings.gateway.max_service_entries = 0;
    let mut plan = plan(&["it's \"on\"\n- 'x.ns-x.svc.y'"]);
    let block = Arc::make_mut(&mut plan.blocks[0]);
    let processes = [
        "x.ns-x.svc.cluster.local",
        "- x.ns-x.svc.cluster.local",
        "a\n- 'x.ns-x.svc.cluster.local'",
        "type: x",
    ];
    block.left = processes.map(|process| Key::new("ns-a", "x.ns-x.svc.cluster.local", process)).into();
    block.exposure = Arc::new(Exposure {
        services: vec!["web.ns-a.svc".into()],
        ingresses: vec!["ns-a/x.ns-x.svc.cluster.local".into()],
        ..Exposure::default()
    });
    let app = block.app.clone();
    directory.apply(resources::drafts(&plan, &settings, Existing::default())).unwrap();
    let path = temp.path().join(PLUGIN);
    let damaged = fs::read_to_string(&path).unwrap() + "a: [\n";
    assert!(damaged.contains("ns-a/x.ns-x.svc") && damaged.contains("help.ops.svc"), "{damaged}");
    fs::write(&path, damaged).unwrap();
    let blocked = |incidents: &[Incident]| {
        let blocked = directory.blocked(&settings, of(incidents).as_ref());
        blocked.map_err(|error| error.to_string())
    };
    assert_eq!(blocked(&[incident("ns-a", &app.name, &["web.ns-a.svc".into()])]), Ok(Vec::new()));
    let error = blocked(&[incident("ns-b", "web", &[])]).unwrap_err();
    assert!(error.contains(&format!("that our files list: {app}. The state")), "{error}");
    // An Incident names so many Services only.
    let many: Vec<Text> = (0..MAX_SERVICES).map(|n| format!("a-{n:04}.ns-a.svc").into()).collect();
    assert_eq!(blocked(&[incident("ns-a", &app.name, &many)]), Ok(Vec::new()));
    let error = blocked(&[incident("ns-a", &app.name, &many[1..])]).unwrap_err();
    assert!(error.contains("that our files list: Service web.ns-a.svc. The state"), "{error}");
}

/// A tenant chooses the name, and texts are quoted only where YAML needs it.
#[test]
fn a_name_that_ends_with_a_blank_of_another_script_is_read_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    put(&directory, &objects(&["web\u{3000}"], 0)).unwrap();
    let path = temp.path().join(PLUGIN);
    let text = fs::read_to_string(&path).unwrap() + "a: [\n";
    fs::write(&path, text).unwrap();
    assert_eq!(directory.blocked(&settings(), persisted(&["web\u{3000}"]).as_ref()).unwrap(), []);
    assert!(directory.blocked(&settings(), persisted(&["web"]).as_ref()).is_err());
}

#[test]
fn a_damaged_file_is_written_anew_from_what_is_decided_and_stays_beside_the_new_one() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let path = temp.path().join(PLUGIN);
    let (logged, _guard) = Logged::start();
    let pass = |directory: &Directory, plan: &Plan| {
        directory.refresh().unwrap();
        let existing = directory.existing(&settings()).unwrap();
        directory.apply(resources::drafts(plan, &settings(), existing)).unwrap()
    };
    let plan = plan(&["web"]);
    pass(&directory, &plan);
    let whole = fs::read_to_string(&path).unwrap();
    assert_eq!(logged.lines(), Vec::<String>::new());
    for damaged in damages(&whole) {
        // By the process that wrote it, and by one that has just started.
        for directory in [&directory, &Directory::open(temp.path()).unwrap()] {
            fs::write(&path, &damaged).unwrap();
            assert_eq!(pass(directory, &plan), Written { written: 1, removed: 0 }, "{damaged}");
            assert_eq!(fs::read_to_string(&path).unwrap(), whole);
            assert_eq!(fs::read_to_string(temp.path().join(ASIDE)).unwrap(), damaged);
            let lines = logged.lines();
            assert!(
                lines.len() == 1 && lines[0].contains("alert=\"output\"") && lines[0].contains(ASIDE),
                "{damaged}: {lines:?}"
            );
            assert_eq!(pass(directory, &plan), Written::default());
            assert_eq!(logged.lines(), Vec::<String>::new(), "logged once");
        }
    }
    // What an operator has edited is no damage.
    fs::write(&path, whole.replace("request-block", "request-allow")).unwrap();
    fs::remove_file(temp.path().join(ASIDE)).unwrap();
    assert_eq!(pass(&directory, &plan).written, 1);
    assert_eq!((listing(temp.path()), logged.lines()), (vec![PLUGIN.to_owned()], Vec::new()));
}

/// The parser's message shows some lines of the file, which are joined.
#[test]
fn the_error_of_a_damaged_file_is_reported_on_one_line() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    let path = temp.path().join(PLUGIN);
    let whole = fs::read_to_string(&path).unwrap();
    let (logged, _guard) = Logged::start();
    for damaged in damages(&whole) {
        fs::write(&path, &damaged).unwrap();
        let new = Directory::open(temp.path()).unwrap();
        let error = new.blocked(&settings(), None).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        new.blocked(&settings(), persisted(&["web"]).as_ref()).unwrap();
        let lines = logged.lines();
        assert!(lines.len() == 1 && lines[0].contains("a file of ours is damaged"), "{damaged}: {lines:?}");
    }
}

#[test]
fn an_emptied_file_of_our_name_is_written_anew_and_other_empty_files_stay() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let all = objects(&["web"], 2);
    put(&directory, &all).unwrap();
    let (path, other) = (temp.path().join(PLUGIN), temp.path().join("other.yaml"));
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&other, "").unwrap();
    for left in ["", &whole[..20]] {
        fs::write(&path, left).unwrap();
        fs::write(temp.path().join(PLUGIN.replace(".yaml", "-1.yaml")), left).unwrap();
        let new = Directory::open(temp.path()).unwrap();
        let error = new.blocked(&settings(), None).unwrap_err().to_string();
        assert!(error.contains(PLUGIN.trim_end_matches(".yaml")) && error.contains("cut short"), "{error}");
        for directory in [&directory, &new] {
            directory.refresh().unwrap();
            assert_eq!(directory.existing(&settings()).unwrap().of(KIND).len(), 2);
        }
        assert_eq!(put(&directory, &all).unwrap(), Written { written: 2, removed: 0 });
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    }
    assert_eq!(fs::read_to_string(&other).unwrap(), "");
}

#[test]
fn a_pipe_of_our_name_is_not_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, temp.path().join(PLUGIN), rustix::fs::Mode::RUSR).unwrap();
    assert!(directory.blocked(&settings(), None).unwrap_err().to_string().contains("it is a pipe"));
    let error = put(&directory, &objects(&["web"], 0)).unwrap_err().to_string();
    assert!(error.contains(PLUGIN) && error.contains("move it away"), "{error}");
}

#[tokio::test]
async fn a_preview_says_that_a_damaged_file_would_be_changed() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    let path = temp.path().join(PLUGIN);
    let whole = fs::read_to_string(&path).unwrap();
    for damaged in damages(&whole) {
        fs::write(&path, &damaged).unwrap();
        let all = Output::Directory(directory.clone()).preview(&plan(&["web"]), &settings()).await.unwrap();
        let all: Vec<_> = all.into_iter().map(|it| (it.action, it.object)).collect();
        assert_eq!(all, [(Action::Change, PLUGIN.to_owned())]);
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }
}
