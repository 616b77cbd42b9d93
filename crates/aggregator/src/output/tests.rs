mod damaged;
mod files;
mod junk;
mod kinds;
mod leases;
mod locked;
mod said;
mod yaml;

use std::fs;
use std::sync::Arc;

use jiff::Timestamp;
use procscan_core::names::{App, Key};
use procscan_core::plan::{Block, Exposure, Notice, NoticePhase, Plan};
use procscan_core::policy::{InheritedBlock, OnIngresses};
use procscan_core::resources::wasm_plugin::{KIND, existing_shards};
use procscan_core::resources::{Draft, Existing, Object, WritePolicy};

use super::directory::DirectoryError;
use super::*;
use crate::config::Config;

fn settings() -> Settings {
    Config::default().settings()
}

fn plan(names: &[&str]) -> Plan {
    let mut plan = Plan::empty(Mode::Enforce, Timestamp::UNIX_EPOCH);
    plan.blocks = names
        .iter()
        .map(|name| Block {
            app: App::new("ns-a", "app", *name),
            since: Timestamp::UNIX_EPOCH,
            grounds: Box::default(),
            left: Box::default(),
            exposure: Arc::new(Exposure::plain([format!("{name}.ns-a.svc").into()])),
            reason: "".into(),
        })
        .map(Arc::new)
        .collect();
    plan
}

fn objects(names: &[&str], shards: usize) -> Vec<Object> {
    resources::render(&plan(names), &settings(), existing_shards(shards, false, &settings().gateway))
}

/// Repairs the changes of other programs, too.
fn put(directory: &Directory, objects: &[Object]) -> Result<Written, DirectoryError> {
    directory.refresh()?;
    directory.apply(objects.iter().cloned().map(Draft::from))
}

fn listing(path: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The file that a process locks where it writes.
const LOCK: &str = ".procscan.lock";
const PLUGIN: &str = "wasmplugin_higress-system_procscan-violations.yaml";

#[test]
fn files_are_written_on_difference_only_and_strangers_are_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a/b");
    let directory = Directory::open(&path).unwrap();
    fs::write(path.join("mine.yaml"), "kind: Mine\n").unwrap();
    fs::write(path.join("README"), "x").unwrap();

    assert_eq!(put(&directory, &objects(&["web"], 0)).unwrap(), Written { written: 1, removed: 0 });
    assert_eq!(put(&directory, &objects(&["web"], 0)).unwrap(), Written::default());
    assert_eq!(put(&directory, &objects(&["web", "x"], 0)).unwrap(), Written { written: 1, removed: 0 });
    assert_eq!(listing(&path), ["README", "mine.yaml", PLUGIN]);

    // Another program has edited or removed them: they are repaired.
    let edited = path.join(PLUGIN);
    fs::write(&edited, fs::read_to_string(&edited).unwrap() + "extra: 1\n").unwrap();
    assert_eq!(put(&directory, &objects(&["web", "x"], 0)).unwrap().written, 1);
    fs::remove_file(&edited).unwrap();
    assert_eq!(put(&directory, &objects(&["web", "x"], 0)).unwrap().written, 1);

    // Shards that are there stay, released objects go.
    let shards = objects(&[], 3);
    put(&directory, &shards).unwrap();
    assert_eq!(directory.existing(&settings()).unwrap().of(KIND).len(), 3);
    assert_eq!(put(&directory, &shards[..1]).unwrap(), Written { written: 0, removed: 2 });
    assert_eq!(listing(&path), ["README", "mine.yaml", PLUGIN]);
}

#[test]
fn an_object_is_made_again_only_from_something_else() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let made = std::cell::Cell::new(0);
    let object = &objects(&["web"], 0)[0];
    let render = |_: &&str| {
        made.set(made.get() + 1);
        object.clone()
    };
    let apply = |inputs: &'static str| {
        let draft = Draft::new(
            object.kind,
            "higress-system",
            object.metadata.name.clone(),
            WritePolicy::Reconcile,
            inputs,
            render,
        );
        directory.refresh().unwrap();
        directory.apply([draft]).unwrap().written
    };
    assert_eq!((apply("a"), apply("a"), made.get()), (1, 0, 1));
    // From other inputs, and yet the same.
    assert_eq!((apply("b"), apply("b"), made.get()), (0, 0, 2));

    // Edited at once, and of the same size.
    let file = temp.path().join(PLUGIN);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("request-block", "request-allow")).unwrap();
    assert_eq!((apply("b"), made.get()), (1, 3));
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn every_change_of_the_files_is_seen() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("objects");
    let directory = Directory::open(&path).unwrap();
    let put = || put(&directory, &objects(&["web"], 0)).unwrap();
    put();
    // A file that has just been written could still change without a trace.
    let settle = || {
        put();
        wait_until(|| !directory.has_changed().unwrap());
    };
    settle();
    let text = fs::read_to_string(path.join(PLUGIN)).unwrap();
    fs::write(path.join(PLUGIN), text.replace("request-block", "request-allow")).unwrap();
    // Written over in place, which the directory itself does not show.
    assert!((0..5).any(|_| directory.has_changed().unwrap()), "edited");
    settle();
    let (new, text) = (path.join("new"), fs::read_to_string(path.join(PLUGIN)).unwrap());
    fs::write(&new, text.replace("request-block", "request-allow")).unwrap();
    fs::rename(&new, path.join(PLUGIN)).unwrap();
    assert!(directory.has_changed().unwrap(), "replaced");
    settle();
    fs::write(path.join("mine.yaml"), "kind: Mine\n").unwrap();
    assert!(directory.has_changed().unwrap(), "there is another one");
    settle();
    fs::remove_file(path.join(PLUGIN)).unwrap();
    assert!(directory.has_changed().unwrap(), "removed");
    settle();
    fs::remove_dir_all(&path).unwrap();
    assert!(directory.has_changed().unwrap(), "all removed");
    directory.refresh().unwrap();
    assert_eq!(directory.existing(&settings()).unwrap(), Existing::default());
    assert_eq!(put().written, 1);
}

fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "it never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_strangers_file_of_our_name_is_a_clear_error_and_stays() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    fs::write(temp.path().join(PLUGIN), "kind: Mine\n").unwrap();
    let error = put(&directory, &objects(&[], 0)).unwrap_err().to_string();
    assert!(error.contains(PLUGIN) && error.contains("move it away"), "{error}");
    assert_eq!(fs::read_to_string(temp.path().join(PLUGIN)).unwrap(), "kind: Mine\n");
}

#[test]
fn a_strangers_file_that_has_taken_the_place_of_ours_is_neither_written_over_nor_removed() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let (all, none) = (objects(&["web"], 2), objects(&["web"], 1));
    put(&directory, &all).unwrap();
    let file = temp.path().join(PLUGIN.replace(".yaml", "-1.yaml"));
    assert!(file.exists());
    fs::write(&file, "kind: Mine\n").unwrap();
    // Without another look.
    let done = directory.apply(none.into_iter().map(Draft::from)).unwrap();
    assert_eq!(done, Written::default());
    assert_eq!(fs::read_to_string(&file).unwrap(), "kind: Mine\n");
    let error = directory.apply(all.into_iter().map(Draft::from)).unwrap_err().to_string();
    assert!(error.contains("move it away"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "kind: Mine\n");
}

#[test]
fn what_a_crash_has_left_unfinished_is_cleared_away() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join(format!(".procscan-{PLUGIN}")), "half").unwrap();
    let unfinished = listing(temp.path());
    // Another process may be just writing it.
    let directory = Directory::open(temp.path()).unwrap();
    directory.refresh().unwrap();
    assert_eq!(listing(temp.path()), unfinished);
    directory.lock(None).unwrap();
    directory.tidy(resources::KINDS).unwrap();
    assert_eq!(listing(temp.path()), [LOCK]);
}

#[test]
fn a_directory_is_locked_for_one_process_until_it_ends() {
    let temp = tempfile::tempdir().unwrap();
    let first = Directory::open(temp.path()).unwrap();
    first.lock(None).unwrap();
    let writing = first.clone();
    drop(first);
    let second = Directory::open(temp.path()).unwrap();
    let error = second.lock(None).unwrap_err().to_string();
    let path = temp.path().display().to_string();
    assert!(error.contains(&path) && error.contains("another process writes there"), "{error}");
    drop(writing);
    second.lock(None).unwrap();
    assert_eq!(listing(temp.path()), [LOCK], "nothing else is left in it");
}

#[test]
fn a_directory_that_can_not_be_made_is_a_clear_error() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("file"), "").unwrap();
    let error = Directory::open(temp.path().join("file/x")).unwrap_err().to_string();
    assert!(error.contains("file/x") && error.contains("can't be made"), "{error}");
}

#[test]
fn what_is_written_reads_back_as_the_same_object() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let nasty = [
        "yes",
        "on",
        "0x1",
        "1e3",
        "null",
        "~",
        "a: b\n- c",
        "'\"",
        "\u{1b}[2J",
        "# x",
        "%T",
        "\u{202e}x",
        "\u{85}\u{2028}",
        " a ",
        "日本",
        "\r\n",
        "",
        "---",
        "!tag",
        "&a",
        "*a",
        "\\",
        "{a}",
        "\u{0}",
    ];
    let mut all = objects(&["web"], 0);
    all[0].spec["defaultConfig"]["violations"] =
        nasty.iter().map(|text| serde_json::json!({ "process": text, *text: text })).collect();
    put(&directory, &all).unwrap();
    let text = fs::read_to_string(temp.path().join(PLUGIN)).unwrap();
    let back: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(back, serde_json::to_value(&all[0]).unwrap());
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "a terminal shows it harmlessly");
}

#[test]
fn what_is_blocked_is_read_back_even_where_the_list_has_given_way() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    assert_eq!(directory.blocked(&settings(), None).unwrap(), []);
    let sent_at: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    let mut plan = plan(&["web", "other"]);
    Arc::make_mut(&mut plan.blocks[0]).left = [Key::new("ns-a", "web-0", "xmrig")].into();
    plan.notices.push(Arc::new(Notice {
        app: plan.blocks[0].app.clone(),
        sent_at,
        inherited: false,
        phase: NoticePhase::Blocked,
        processes: ["xmrig".into()].into(),
        others: None,
    }));
    directory
        .apply(resources::drafts(&plan, &settings(), existing_shards(2, false, &settings().gateway)))
        .unwrap();
    let inherited = directory.blocked(&settings(), None).unwrap();
    let expected = |name: &str, notified_at, accused: &[Key], services: &[&str]| InheritedBlock {
        app: App::new("ns-a", "app", name),
        notified_at,
        accused: accused.iter().cloned().collect(),
        is_guess: accused.is_empty(),
        services: services.iter().map(|name| format!("{name}.ns-a.svc").into()).collect(),
        on_ingresses: OnIngresses::default(),
    };
    let of_web = &plan.blocks[0].left;
    let services = ["other", "web"];
    let of_other = expected("other", None, &[], &services);
    assert_eq!(inherited, [of_other, expected("web", Some(sent_at), of_web, &services)]);

    // Not knowing what is blocked is no reason to release it, unless it is known from elsewhere.
    let edited = temp.path().join(PLUGIN);
    fs::write(&edited, fs::read_to_string(&edited).unwrap() + "a: [\n").unwrap();
    let error = directory.blocked(&settings(), None).unwrap_err().to_string();
    assert!(error.contains(PLUGIN) && error.contains("repair or remove it"), "{error}");
    let persisted = damaged::persisted(&["other", "web"]);
    let left = directory.blocked(&settings(), persisted.as_ref()).unwrap();
    let left: Vec<App> = left.into_iter().map(|inherited| inherited.app).collect();
    assert_eq!(left, [App::new("ns-a", "app", "other")], "what the other object says");
}

#[test]
fn one_file_that_can_not_be_written_stops_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    fs::write(temp.path().join(PLUGIN), "kind: Mine\n").unwrap();
    let mut plan = plan(&["web"]);
    let app = plan.blocks[0].app.clone();
    let sent_at = Timestamp::UNIX_EPOCH;
    let phase = NoticePhase::Blocked;
    plan.notices.push(Arc::new(Notice {
        app,
        sent_at,
        inherited: false,
        phase,
        processes: [].into(),
        others: None,
    }));
    directory.apply(resources::drafts(&plan, &settings(), Existing::default())).unwrap_err();
    assert_eq!(listing(temp.path()).iter().filter(|name| name.starts_with("notification_ns-a_")).count(), 1);
}

/// Settings that do not change.
fn configured() -> watch::Receiver<Arc<Settings>> {
    watch::channel(Arc::new(settings())).1
}

fn delays() -> BlockDelays {
    BlockDelays::new(Clock::start(), Counters::default())
}

#[tokio::test]
async fn a_replica_that_leads_no_longer_shows_no_errors_of_its_term() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join(PLUGIN), "kind: Mine\n").unwrap();
    let permit = WritePermit::of_term(1, "a");
    let decided = Decided { rounds: 1, permit: Some(permit), ..Decided::nothing(plan(&["web"])) };
    let (decide, decided) = watch::channel(Arc::new(decided));
    let (status, mut shown) = watch::channel(OutputStatus::default());
    let (_asks, take_over) = mpsc::channel(1);
    let channels = Channels {
        take_over,
        decided,
        delivered: watch::channel(Arc::default()).0,
        status,
        settings: configured(),
        delays: delays(),
    };
    let output = Output::Directory(Directory::open(temp.path()).unwrap());
    let task = tokio::spawn(run(output, Duration::from_mins(1), channels));
    let limit = Duration::from_secs(20);
    let failing = shown.wait_for(|status| status.error.is_some());
    tokio::time::timeout(limit, failing).await.unwrap().unwrap();
    decide.send_replace(Arc::new(Decided::nothing(plan(&["web"]))));
    let cleared = shown.wait_for(|status| status.error.is_none());
    tokio::time::timeout(limit, cleared).await.unwrap().unwrap();
    task.abort();
}
