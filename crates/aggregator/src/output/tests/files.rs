//! Objects as files: what a preview says, and which files stay because their texts are the same.

use procscan_core::plan::Summary;

use super::*;
use crate::output::difference::Action;

fn plan_with_notice(names: &[&str], sent_at: &str) -> Plan {
    let mut plan = plan(names);
    plan.notices.push(Arc::new(Notice {
        app: App::new("ns-a", "app", "web"),
        sent_at: sent_at.parse().unwrap(),
        inherited: false,
        phase: NoticePhase::Blocked,
        processes: ["xmrig".into()].into(),
        others: None,
    }));
    plan.summary = Summary { blocked: 1, in_grace: 0, held: 0, changed: sent_at.parse().unwrap() };
    plan
}

const SENT: &str = "2026-01-02T03:04:05Z";
const LATER: &str = "2026-01-03T00:00:00Z";
const SUMMARY: &str = "notification_default_procscan-notification.yaml";

fn apply(directory: &Directory, plan: &Plan) -> Written {
    directory.refresh().unwrap();
    let existing = directory.existing(&settings()).unwrap();
    directory.apply(resources::drafts(plan, &settings(), existing)).unwrap()
}

#[tokio::test]
async fn a_preview_of_files_names_each_that_would_be_written_or_removed_and_changes_none() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    fs::write(temp.path().join("mine.yaml"), "kind: Mine\n").unwrap();
    let output = Output::Directory(directory.clone());
    let preview = async |plan: &Plan| {
        let all = output.preview(plan, &settings()).await.unwrap();
        all.into_iter().map(|it| (it.action, it.object)).collect::<Vec<_>>()
    };
    let first = plan_with_notice(&["web"], SENT);
    let created = preview(&first).await;
    assert!(created.iter().all(|(action, _)| *action == Action::Create) && created.len() == 3, "{created:?}");
    assert_eq!(listing(temp.path()), ["mine.yaml"]);
    assert_eq!(apply(&directory, &first).written, 3);
    assert_eq!(preview(&first).await, []);
    // The administrators' summary says the same at another time.
    let mut again = first.clone();
    again.summary.changed = LATER.parse().unwrap();
    assert_eq!(preview(&again).await, []);
    let changed = preview(&plan_with_notice(&["web", "x"], LATER)).await;
    let (plugin, message) = (PLUGIN.to_owned(), listing(temp.path())[2].clone());
    assert_eq!(changed, [(Action::Change, plugin.clone()), (Action::Change, message.clone())]);
    let mut over = plan(&[]);
    over.notices =
        vec![Arc::new(Notice { phase: NoticePhase::Recovered, ..Notice::clone(&first.notices[0]) })];
    let mut left = preview(&over).await;
    left.sort_by_key(|(_, object)| object.clone());
    let removed = [SUMMARY.to_owned(), message].map(|object| (Action::Remove, object));
    assert_eq!(left, [&removed[..], &[(Action::Change, plugin)]].concat());
    assert_eq!(output.blocked(&settings(), None).await.unwrap().len(), 1);
}

#[test]
fn the_summary_is_written_again_only_with_another_text() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let first = plan_with_notice(&["web"], SENT);
    apply(&directory, &first);
    let text = fs::read_to_string(temp.path().join(SUMMARY)).unwrap();
    assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "one document of whole lines");
    let mut again = first.clone();
    again.summary.changed = LATER.parse().unwrap();
    // A process that has just started knows nothing of the files.
    for directory in [directory, Directory::open(temp.path()).unwrap()] {
        assert_eq!(apply(&directory, &again), Written::default());
        assert_eq!(fs::read_to_string(temp.path().join(SUMMARY)).unwrap(), text);
    }
    let directory = Directory::open(temp.path()).unwrap();
    again.summary.blocked = 2;
    assert_eq!(apply(&directory, &again), Written { written: 1, removed: 0 });
    // A new notice is written, whatever its text.
    assert_eq!(apply(&directory, &plan_with_notice(&["web"], LATER)).written, 2);
}

#[test]
fn only_yaml_files_of_ours_that_are_not_hidden_are_looked_at() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    let text = fs::read_to_string(temp.path().join(PLUGIN)).unwrap();
    // Copies by an editor, and by an operator who has put our header into his own file.
    for name in [".hidden.yaml", "copy.yml", "copy.yaml~"] {
        fs::write(temp.path().join(name), &text).unwrap();
    }
    let surplus = temp.path().join("wasmplugin_other_procscan-violations.yaml");
    fs::write(&surplus, &text).unwrap();
    assert_eq!(put(&directory, &objects(&["web"], 0)).unwrap(), Written { written: 0, removed: 1 });
    assert_eq!(listing(temp.path()), [".hidden.yaml", "copy.yaml~", "copy.yml", PLUGIN]);
}

#[test]
fn a_link_in_the_place_of_our_file_is_left_alone_whatever_it_leads_to() {
    let temp = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (temp.path().join("objects"), temp.path().join("plugin.yaml"));
    let directory = Directory::open(&path).unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    fs::rename(path.join(PLUGIN), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, path.join(PLUGIN)).unwrap();
    let text = fs::read_to_string(&elsewhere).unwrap();
    let error = put(&directory, &objects(&["web", "x"], 0)).unwrap_err().to_string();
    assert!(error.contains(PLUGIN) && error.contains("it is a symbolic link"), "{error}");
    assert!(error.contains("move it away"), "{error}");
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), text);
    assert_eq!(fs::read_link(path.join(PLUGIN)).unwrap(), elsewhere);
    let error = directory.blocked(&settings(), None).unwrap_err().to_string();
    assert!(error.contains("what is blocked is not known"), "{error}");
    fs::remove_file(path.join(PLUGIN)).unwrap();
    assert_eq!(put(&directory, &objects(&["web", "x"], 0)).unwrap().written, 1);
}

#[test]
fn a_directory_that_can_not_be_read_is_an_error_with_its_path() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("objects");
    let directory = Directory::open(&path).unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    fs::remove_dir_all(&path).unwrap();
    fs::write(&path, "a file").unwrap();
    for error in [
        directory.refresh().unwrap_err(),
        directory.blocked(&settings(), None).unwrap_err(),
        directory.apply(objects(&["x"], 0).into_iter().map(Draft::from)).unwrap_err(),
    ] {
        assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_pass_that_is_broken_off_writes_what_closes_the_gateway_and_the_next_one_does_the_rest() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let first = plan_with_notice(&["web"], SENT);
    assert_eq!(apply(&directory, &first).written, 3);
    let surplus = temp.path().join("notification_ns-a_old.yaml");
    fs::copy(temp.path().join(SUMMARY), &surplus).unwrap();
    directory.refresh().unwrap();
    let changed = plan_with_notice(&["web", "x"], LATER);
    let existing = directory.existing(&settings()).unwrap();
    let pass = |go_on: bool| {
        let settings = settings();
        let drafts = resources::drafts(&changed, &settings, existing.clone());
        let Pass { written, is_finished, .. } = directory.apply_while(drafts, || go_on).unwrap();
        (written, is_finished)
    };
    assert_eq!(pass(false), (Written { written: 1, removed: 0 }, false));
    assert!(fs::read_to_string(temp.path().join(PLUGIN)).unwrap().contains("x.ns-a.svc"));
    assert!(surplus.exists(), "nothing is removed by a pass that has not seen what is wanted");
    assert_eq!(pass(true), (Written { written: 1, removed: 1 }, true));
    assert_eq!(pass(false), (Written::default(), false), "a message is not looked at");
}
