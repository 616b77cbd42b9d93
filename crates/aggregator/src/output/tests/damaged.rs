//! Files of ours that were damaged: written anew from what is decided, and kept beside it.

use super::*;
use crate::output::difference::Action;
use crate::telemetry::logged::Logged;

const KEPT: &str = "wasmplugin_higress-system_procscan-violations.yaml.damaged";

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

#[test]
fn a_damaged_file_is_written_anew_from_what_is_decided_and_kept_beside_it() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let path = temp.path().join(PLUGIN);
    let (logged, _guard) = Logged::start();
    let pass = |directory: &Directory, plan: &Plan| {
        directory.refresh().unwrap();
        let existing = directory.existing(&settings().gateway).unwrap();
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
            assert_eq!(fs::read_to_string(temp.path().join(KEPT)).unwrap(), damaged);
            let lines = logged.lines();
            assert!(
                lines.len() == 1 && lines[0].contains("alert=\"output\"") && lines[0].contains(KEPT),
                "{damaged}: {lines:?}"
            );
            assert_eq!(pass(directory, &plan), Written::default());
            assert_eq!(logged.lines(), Vec::<String>::new(), "said once");
        }
    }
    // What an operator has edited is no damage.
    fs::write(&path, whole.replace("request-block", "request-allow")).unwrap();
    fs::remove_file(temp.path().join(KEPT)).unwrap();
    assert_eq!(pass(&directory, &plan).written, 1);
    assert_eq!((listing(temp.path()), logged.lines()), (vec![PLUGIN.to_owned()], Vec::new()));
}

/// The parser's message shows some lines of the file, which are joined.
#[test]
fn what_is_wrong_with_a_damaged_file_is_said_on_one_line() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    let path = temp.path().join(PLUGIN);
    let whole = fs::read_to_string(&path).unwrap();
    let (logged, _guard) = Logged::start();
    for damaged in damages(&whole) {
        fs::write(&path, &damaged).unwrap();
        let new = Directory::open(temp.path()).unwrap();
        let error = new.blocked(&settings().gateway, false).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        new.blocked(&settings().gateway, true).unwrap();
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
    let gateway = settings().gateway;
    for left in ["", &whole[..20]] {
        fs::write(&path, left).unwrap();
        fs::write(temp.path().join(PLUGIN.replace(".yaml", "-1.yaml")), left).unwrap();
        let new = Directory::open(temp.path()).unwrap();
        let error = new.blocked(&gateway, false).unwrap_err().to_string();
        assert!(error.contains(PLUGIN.trim_end_matches(".yaml")) && error.contains("cut short"), "{error}");
        for directory in [&directory, &new] {
            directory.refresh().unwrap();
            assert_eq!(directory.existing(&gateway).unwrap().wasm_plugins, 2);
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
    assert_eq!(directory.blocked(&settings().gateway, false).unwrap(), []);
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
