//! What other programs have put into the directory: it costs itself only, is named, and stays what it is.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, Mode as Rights, mkfifoat};

use super::*;

const SUMMARY: &str = "notification_default_procscan-notification.yaml";

fn notice(name: &str) -> Arc<Notice> {
    Arc::new(Notice {
        app: App::new("ns-a", "app", name),
        sent_at: Timestamp::UNIX_EPOCH,
        inherited: false,
        phase: NoticePhase::Blocked,
        processes: ["xmrig".into()].into(),
        others: None,
    })
}

fn plan_with_notices(names: &[&str]) -> Plan {
    let mut plan = plan(names);
    plan.notices = names.iter().map(|name| notice(name)).collect();
    plan
}

fn message(name: &str) -> String {
    crate::output::directory::files_of(&App::new("ns-a", "app", name), &settings()).next().unwrap()
}

/// A name, what is made under it, and what is wrong with that.
type Junk = (&'static str, fn(&Path), &'static str);

/// What can be called like a file and is none.
fn junk() -> [Junk; 5] {
    let pipe = |path: &Path| mkfifoat(CWD, path, Rights::RUSR).unwrap();
    let in_a_circle = |path: &Path| symlink(path, path).unwrap();
    let to_a_pipe = |path: &Path| {
        let pipe = path.with_extension("pipe");
        mkfifoat(CWD, &pipe, Rights::RUSR).unwrap();
        symlink(pipe, path).unwrap();
    };
    [
        ("a", pipe, "it is a pipe, a socket or a device, not a regular file"),
        ("b", |path| fs::create_dir(path).unwrap(), "it is a directory, not a regular file"),
        ("c", in_a_circle, "it is a symbolic link, not a regular file"),
        ("d", |path| symlink("no-such", path).unwrap(), "it is a symbolic link, not a regular file"),
        ("e", to_a_pipe, "it is a symbolic link, not a regular file"),
    ]
}

#[test]
fn what_is_no_regular_file_is_named_and_left_alone_and_everything_else_is_written() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    let mut expected = Vec::new();
    for (name, make, why) in junk() {
        let path = temp.path().join(format!("{name}.yaml"));
        make(&path);
        expected.push(format!("{}: {why}", path.display()));
    }
    // Texts of other programs, one of them linked, are not named.
    fs::write(temp.path().join("f.yaml"), "\u{0}junk").unwrap();
    symlink("f.yaml", temp.path().join("g.yaml")).unwrap();
    let before = listing(temp.path());
    for _ in 0..2 {
        directory.check().unwrap();
        assert_eq!(directory.blocked(&settings(), None).unwrap().len(), 0);
        let written = put(&directory, &objects(&["web"], 0)).unwrap();
        assert_eq!(written, Written { written: 1, removed: 0 });
        assert_eq!(directory.junk(), Some(expected.join(", ")));
        assert_eq!(directory.existing(&settings()).unwrap().of(KIND).len(), 1);
        fs::remove_file(temp.path().join(PLUGIN)).unwrap();
    }
    assert_eq!(listing(temp.path()), before);
    // It is not read again each time, and still named.
    wait_until(|| !directory.has_changed().unwrap());
    assert_eq!(directory.junk(), Some(expected.join(", ")));
    // A name is shown so that a terminal obeys nothing in it, and of many names the first few.
    fs::create_dir(temp.path().join("\u{1b}[31m.yaml")).unwrap();
    directory.refresh().unwrap();
    let named = directory.junk().unwrap();
    assert!(
        named.contains("/\\u{1b}[31m.yaml: it is a directory") && named.ends_with(" and 1 more"),
        "{named:?}"
    );
    fs::remove_dir(temp.path().join("\u{1b}[31m.yaml")).unwrap();
    fs::remove_dir(temp.path().join("b.yaml")).unwrap();
    expected.remove(1);
    directory.refresh().unwrap();
    assert_eq!(directory.junk(), Some(expected.join(", ")));
}

/// Where one of our files belongs.
#[tokio::test]
async fn junk_in_the_place_of_one_file_is_an_error_that_names_it_and_delays_no_other_tenant() {
    for (_, make, why) in junk() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(message("other"));
        make(&path);
        let decided = Decided {
            rounds: 1,
            permit: Some(WritePermit::of_term(1, "a")),
            ..Decided::nothing(plan_with_notices(&["other", "web"]))
        };
        let (_decide, decided) = watch::channel(Arc::new(decided));
        let (status, mut shown) = watch::channel(OutputStatus::default());
        let (_asks, take_over) = mpsc::channel(1);
        let (delivered, written) = watch::channel(Arc::default());
        let channels =
            Channels { take_over, decided, delivered, status, settings: configured(), delays: delays() };
        let output = Output::Directory(Directory::open(temp.path()).unwrap());
        let task = tokio::spawn(run(output, Duration::from_mins(1), channels));
        let failing = shown.wait_for(|status| status.error.is_some());
        let failing = tokio::time::timeout(Duration::from_secs(20), failing).await.unwrap().unwrap().clone();
        let expected = format!("{}: {why}", path.display());
        assert_eq!(failing.error, Some(format!("{expected}; move it away")));
        assert_eq!(failing.junk, Some(expected));
        assert!(temp.path().join(PLUGIN).exists() && temp.path().join(message("web")).exists());
        let written: Vec<App> = written.borrow().keys().cloned().collect();
        assert_eq!(written, [App::new("ns-a", "app", "web")]);
        task.abort();
    }
}

/// A version before this one may have followed the link, so the gateway may be closed by what it leads to.
#[test]
fn junk_in_the_place_of_a_wasm_plugin_is_not_taken_for_nothing_blocked() {
    let to_a_whole_one = |path: &Path| {
        let target = path.with_extension("moved");
        put(&Directory::open(path.parent().unwrap()).unwrap(), &objects(&["web"], 0)).unwrap();
        fs::rename(path, &target).unwrap();
        symlink(target, path).unwrap();
    };
    let why = "it is a symbolic link, not a regular file";
    for (_, make, why) in junk().into_iter().chain([("f", to_a_whole_one as fn(&Path), why)]) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(PLUGIN);
        make(&path);
        let directory = Directory::open(temp.path()).unwrap();
        let error = directory.blocked(&settings(), None).unwrap_err().to_string();
        let path = path.display();
        let expected =
            format!("{path}: can't be read, so what is blocked is not known; repair or remove it: {why}");
        assert_eq!(error, expected);
        // What is blocked is known from the persisted Incidents.
        let persisted = damaged::persisted(&["web"]);
        assert_eq!(directory.blocked(&settings(), persisted.as_ref()).unwrap(), []);
    }
}

#[test]
fn the_log_names_junk_when_it_comes_and_says_when_it_is_gone() {
    let temp = tempfile::tempdir().unwrap();
    let output = Output::Directory(Directory::open(temp.path()).unwrap());
    let (status, _shown) = watch::channel(OutputStatus::default());
    let (logged, _guard) = crate::telemetry::logged::Logged::start();
    let says = |junk: Option<&str>| {
        report(&output, Outcome { junk: junk.map(str::to_owned), ..Outcome::default() }, &status);
        logged.lines()
    };
    assert_eq!(says(None), Vec::<String>::new());
    let lines = says(Some("a.yaml: it is a directory"));
    assert!(lines.len() == 1 && lines[0].starts_with("WARN") && lines[0].contains("a.yaml"), "{lines:?}");
    assert_eq!(says(Some("a.yaml: it is a directory")), Vec::<String>::new());
    assert_eq!(says(None).len(), 1);
}

#[test]
fn of_a_file_without_end_only_so_much_is_read_and_it_stays_beside_the_new_one() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Directory::open(temp.path()).unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    let path = temp.path().join(PLUGIN);
    let whole = fs::read_to_string(&path).unwrap();
    let surplus = temp.path().join(SUMMARY);
    for path in [&path, &surplus] {
        fs::write(path, &whole).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_len(40 << 20).unwrap();
    }
    let text = crate::output::directory::found::Found::at(&path).unwrap();
    assert!(text.text().unwrap().len() <= (16 << 20) + whole.len());
    let error = directory.blocked(&settings(), None).unwrap_err().to_string();
    assert!(error.contains(PLUGIN), "{error}");
    assert_eq!(put(&directory, &objects(&["web"], 0)).unwrap(), Written { written: 1, removed: 1 });
    assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    assert_eq!(fs::metadata(temp.path().join(format!("{PLUGIN}.damaged"))).unwrap().len(), 40 << 20);
}

#[test]
fn what_is_called_like_a_temporary_file_or_a_damaged_one_and_is_not_ours_stays() {
    let temp = tempfile::tempdir().unwrap();
    let (path, target) = (temp.path().join("objects"), temp.path().join("target"));
    let directory = Directory::open(&path).unwrap();
    fs::write(&target, "another's").unwrap();
    let digits = "0123456789abcdef";
    symlink(&target, path.join(format!(".procscan-{PLUGIN}"))).unwrap();
    symlink(&target, path.join(format!(".procscan-{PLUGIN}-{digits}"))).unwrap();
    symlink(&target, path.join(format!(".procscan-lease-{digits}"))).unwrap();
    fs::create_dir(path.join(format!(".procscan-{SUMMARY}-{digits}"))).unwrap();
    fs::write(path.join(".procscan-notes"), "mine").unwrap();
    fs::write(path.join(format!("{PLUGIN}.damaged")), "mine").unwrap();
    // Made before the directory is locked, and locked then.
    fs::write(path.join(LOCK), "").unwrap();
    let before = listing(&path);
    let crashed = path.join(format!(".procscan-{SUMMARY}-{}", digits.to_uppercase()));
    fs::write(&crashed, "half").unwrap();
    directory.lock(None).unwrap();
    directory.tidy(resources::KINDS).unwrap();
    assert_eq!(listing(&path), before);
    put(&directory, &objects(&["web"], 0)).unwrap();
    let whole = fs::read_to_string(path.join(PLUGIN)).unwrap();
    fs::write(path.join(PLUGIN), whole.clone() + "a: [\n").unwrap();
    put(&directory, &objects(&["web"], 0)).unwrap();
    assert_eq!(fs::read_to_string(path.join(PLUGIN)).unwrap(), whole);
    assert_eq!(fs::read_to_string(path.join(format!("{PLUGIN}.damaged"))).unwrap(), "mine");
    assert_eq!(fs::read_to_string(&target).unwrap(), "another's");
    fs::remove_file(path.join(PLUGIN)).unwrap();
    assert_eq!(listing(&path), before);
}

/// Such as one that was persisted and edited, or read from a file that was.
#[tokio::test]
async fn no_file_is_written_for_an_app_of_a_namespace_that_can_not_exist() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("objects");
    let directory = Directory::open(&path).unwrap();
    // Where such a name leads to.
    fs::create_dir(path.join("notification_..")).unwrap();
    let mut plan = plan_with_notices(&["web"]);
    let app = App::new("../../x", "app", "web");
    plan.notices.push(Arc::new(Notice { app, ..Notice::clone(&plan.notices[0]) }));
    let pass =
        directory.apply_while(resources::drafts(&plan, &settings(), Existing::default()), || true).unwrap();
    let [(_, error)] = &pass.failed[..] else { panic!("{:?}", pass.failed) };
    assert!(error.to_string().contains("../../x/procscan-web-"), "{error}");
    assert_eq!(pass.written.written, 2);
    assert_eq!(listing(temp.path()), ["objects"]);
    assert_eq!(listing(&path), ["notification_..", &message("web"), PLUGIN]);
    let all = Output::Directory(directory).preview(&plan, &settings()).await.unwrap();
    assert_eq!(all, []);
}
