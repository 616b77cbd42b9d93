use std::fs;

use super::*;
use crate::telemetry::logged::Logged;

const CONFIG: &str = "discovery: {mode: static, targets: [a]}\noutput: {mode: directory}\n";

struct Stage {
    reload: Reload,
    directory: tempfile::TempDir,
    policy: watch::Receiver<Arc<Policy>>,
    settings: watch::Receiver<Arc<Settings>>,
    status: watch::Receiver<ConfigStatus>,
    counters: Counters,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        fs::write(&path, CONFIG).unwrap();
        let variables = vec![("PROCSCAN_BRAKE__MAX_NEW_TENANTS".to_owned(), "7".into())];
        let config = Config::load(&path, variables.clone()).unwrap();
        let (policy_tx, policy) = watch::channel(Arc::new(config.policy()));
        let (settings_tx, settings) = watch::channel(Arc::new(config.settings()));
        let (status_tx, status) = watch::channel(ConfigStatus::of(&config));
        let receivers = Receivers { policy: policy_tx, settings: settings_tx, status: status_tx };
        let file = ConfigFile { path, variables, asked: Arc::default() };
        let counters = Counters::default();
        let reload = Reload::new(file, config, Some("own".to_owned()), receivers, counters.clone());
        Self { reload, directory, policy, settings, status, counters }
    }

    fn write(&self, more: &str) {
        fs::write(self.directory.path().join("config.yaml"), format!("{CONFIG}{more}")).unwrap();
    }

    fn look(&mut self, is_asked: bool) {
        let read = plain_file::read_text(&self.reload.file.path, plain_file::MAX_TEXT);
        self.reload.look(read.map_err(|e| e.to_string()), is_asked);
    }

    fn look_twice(&mut self) {
        self.look(false);
        self.look(false);
    }

    fn count(&self, result: &'static str) -> u64 {
        self.counters.config_reloads.get_or_create(&[("result", result)]).get()
    }
}

#[test]
fn a_changed_file_is_in_force_once_it_has_been_seen_twice_and_variables_still_count_over_it() {
    let (logged, _guard) = Logged::start();
    let mut stage = Stage::new();
    let before = stage.status.borrow().hash.clone();
    stage.look_twice();
    assert!(!stage.policy.has_changed().unwrap(), "nothing has changed");
    stage.write("enforcement: {mode: paused}\nbrake: {max_new_tenants: 3, max_releases: 4}\nnotification: {contact: ops}\n");
    stage.look(false);
    assert!(!stage.policy.has_changed().unwrap(), "seen once");
    stage.look(false);
    let policy = stage.policy.borrow_and_update().clone();
    assert_eq!(policy.mode, procscan_core::decision::Mode::Paused);
    assert_eq!((policy.brake.max_new_tenants, policy.brake.max_releases), (7, 4));
    assert!(policy.protected.contains(&"own".to_owned()), "its own namespace stays protected");
    assert!(stage.settings.borrow().notification.contact.contains("ops"));
    let status = stage.status.borrow().clone();
    assert!(status.hash != before && status.trouble().is_none(), "{status:?}");
    assert_eq!(stage.count("applied"), 1);
    let lines = logged.lines();
    let applied = lines.iter().find(|line| line.contains("the new configuration is in force")).unwrap();
    assert!(applied.contains("brake.max_releases, enforcement.mode, notification.contact"), "{applied}");
    stage.look_twice();
    assert!(!stage.policy.has_changed().unwrap());
}

#[test]
fn a_file_with_a_mistake_changes_nothing_and_each_mistake_is_named() {
    let (logged, _guard) = Logged::start();
    let mut stage = Stage::new();
    let before = stage.status.borrow().clone();
    for (more, says) in [
        ("brake: {max_releases: 4\n", "line "),
        ("brake: {max_releases: -1}\n", "brake.max_releases"),
        ("brakes: {max_releases: 1}\n", "brakes"),
        (
            "enforcement: {mode: dry-run, namespaces: \"(\"}\nbrake: {max_releases: 9}\n",
            "enforcement.namespaces",
        ),
    ] {
        stage.write(more);
        stage.look_twice();
        stage.look_twice();
        assert!(!stage.policy.has_changed().unwrap(), "{more}");
        let status = stage.status.borrow().clone();
        assert_eq!((&status.hash, status.loaded), (&before.hash, before.loaded));
        assert!(status.error.unwrap().contains(says), "{more}");
        let lines = logged.lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("alert=\"config\"") && lines[0].contains(says), "{lines:?}");
    }
    fs::remove_file(&stage.reload.file.path).unwrap();
    stage.look_twice();
    assert!(stage.status.borrow().error.as_ref().unwrap().contains("can't be read"));
    assert_eq!(stage.count("refused"), 5);
    stage.write("");
    stage.look_twice();
    assert_eq!(stage.status.borrow().trouble(), None);
}

#[test]
fn what_needs_a_restart_is_named_until_the_file_is_as_before_and_the_rest_is_applied() {
    let mut stage = Stage::new();
    stage.write("aggregator: {port: 1, scan_interval: 5s}\ngateway: {namespace: gw, priority: 7}\nbrake: {max_releases: 4}\n");
    stage.look_twice();
    let status = stage.status.borrow().clone();
    assert_eq!(status.needs_restart, ["aggregator.port", "aggregator.scan_interval", "gateway.namespace"]);
    assert!(status.trouble().unwrap().contains("need a restart: aggregator.port"));
    assert_eq!(stage.policy.borrow_and_update().brake.max_releases, 4);
    let settings = stage.settings.borrow_and_update().clone();
    assert_eq!((settings.gateway.priority, &*settings.gateway.namespace), (7, "higress-system"));
    assert_eq!(stage.count("needs_restart"), 1);
    stage.write("aggregator:\ngateway: {}\nbrake: {max_releases: 4}\n");
    stage.look_twice();
    assert_eq!(stage.status.borrow().needs_restart, Vec::<String>::new());
    assert_eq!(stage.settings.borrow().gateway.priority, 320);
}

#[test]
fn a_request_reads_the_file_at_once_and_says_so_also_if_nothing_has_changed() {
    let (logged, _guard) = Logged::start();
    let mut stage = Stage::new();
    stage.look(true);
    assert_eq!((stage.count("unchanged"), logged.count("has not changed")), (1, 1));
    assert!(!stage.policy.has_changed().unwrap());
    stage.write("brake: {max_releases: 4}\n");
    stage.look(true);
    assert_eq!(stage.policy.borrow().brake.max_releases, 4);
}

#[test]
fn a_file_that_lacks_a_section_may_be_cut_off_and_is_refused() {
    let mut stage = Stage::new();
    stage.write("enforcement: {mode: paused}\n");
    stage.look_twice();
    stage.policy.borrow_and_update();
    let path = stage.reload.file.path.clone();
    for (text, gone) in
        [("", "discovery, enforcement, output"), (CONFIG, "enforcement"), ("{}", "enforcement")]
    {
        fs::write(&path, text).unwrap();
        for is_asked in [false, false, true] {
            stage.look(is_asked);
        }
        assert!(!stage.policy.has_changed().unwrap(), "{text:?}");
        let error = stage.status.borrow().error.clone().unwrap();
        assert!(error.contains(gone) && error.contains("cut off"), "{error}");
    }
    // An empty section is there.
    stage.write("enforcement:\n");
    stage.look_twice();
    assert_eq!(stage.policy.borrow().mode, procscan_core::decision::Mode::Enforce);
    assert_eq!(stage.status.borrow().trouble(), None);
}

#[test]
fn a_change_between_the_start_and_the_first_look_is_applied() {
    let mut stage = Stage::new();
    stage.write("enforcement: {mode: paused}\n");
    stage.look_twice();
    assert_eq!(stage.policy.borrow().mode, procscan_core::decision::Mode::Paused);
}

#[test]
fn keys_by_which_two_parts_must_agree_need_a_restart() {
    let mut stage = Stage::new();
    let before = stage.settings.borrow_and_update().clone();
    stage.write("gateway: {max_service_entries: 5}\nnotification: {summary_namespace: other}\n");
    stage.look_twice();
    let settings = stage.settings.borrow().clone();
    assert_eq!(settings.gateway.max_service_entries, before.gateway.max_service_entries);
    let keys = stage.status.borrow().needs_restart.clone();
    assert_eq!(keys, ["gateway.max_service_entries", "notification.summary_namespace"]);
}
