//! The state that every replica publishes of the objects, also after errors of the watch.

use procscan_core::decision::Mode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;

const ENFORCEMENTS: &str = "enforcements";

struct Watched {
    persisted: watch::Receiver<Arc<PersistedState>>,
    error: watch::Receiver<Option<String>>,
    cancel: CancellationToken,
}

impl Watched {
    fn start(server: &Server) -> Self {
        let (persisted_tx, persisted) = watch::channel(Arc::new(PersistedState::default()));
        let (error_tx, error) = watch::channel(None);
        let cancel = CancellationToken::new();
        tokio::spawn(Watching::new(server.objects()).0.run(persisted_tx, error_tx, cancel.clone()));
        Self { persisted, error, cancel }
    }

    /// The mode that operators have set, once the watch has seen all changes so far.
    async fn mode(&self) -> Option<Mode> {
        sleep(Duration::from_secs(5)).await;
        self.persisted.borrow().enforcement.mode
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn the_mode_that_operators_set_is_read_from_the_object_of_one_name() {
    let server = Server::default();
    let with_mode = |mode: &str| json!({"metadata": {}, "spec": {"mode": mode}});
    let set_mode = |mode: &'static str| move |object: &mut Value| object["spec"]["mode"] = mode.into();
    server.put(ENFORCEMENTS, "other", with_mode("paused"));
    let watched = Watched::start(&server);
    assert_eq!(watched.mode().await, None);
    assert!(watched.persisted.borrow().is_complete);
    server.put(ENFORCEMENTS, "procscan", with_mode("dry-run"));
    assert_eq!(watched.mode().await, Some(Mode::DryRun));
    server.edit(ENFORCEMENTS, "other", set_mode("half"));
    assert_eq!((watched.mode().await, watched.error.borrow().clone()), (Some(Mode::DryRun), None));
    server.remove(ENFORCEMENTS, "other");
    assert_eq!(watched.mode().await, Some(Mode::DryRun));

    // An object that can't be read counts in its last readable version, and is logged once.
    let (logged, _guard) = Logged::start();
    server.edit(ENFORCEMENTS, "procscan", set_mode("half"));
    assert_eq!(watched.mode().await, Some(Mode::DryRun));
    let error = watched.error.borrow().clone().unwrap();
    assert!(error.starts_with("Enforcement procscan can't be read: spec.mode: unknown variant"), "{error}");
    server.edit(ENFORCEMENTS, "procscan", set_mode("paused"));
    assert_eq!((watched.mode().await, watched.error.borrow().clone()), (Some(Mode::Paused), None));
    let lines = logged.lines();
    let [begins, ends] = &lines[..] else { panic!("{lines:?}") };
    assert!(begins.starts_with("ERROR an object can't be read alert=\"state\""), "{begins}");
    assert!(ends.starts_with("INFO an object was mended or deleted"), "{ends}");
    server.remove(ENFORCEMENTS, "procscan");
    assert_eq!(watched.mode().await, None);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_complete_until_the_mode_that_operators_set_was_read_once() {
    let server = Server::default();
    server.put(ENFORCEMENTS, "procscan", json!({"metadata": {}, "spec": {"mode": "half"}}));
    let watched = Watched::start(&server);
    assert_eq!(watched.mode().await, None);
    assert!(!watched.persisted.borrow().is_complete);
    assert!(watched.error.borrow().is_some());
    server.edit(ENFORCEMENTS, "procscan", |object| object["spec"]["mode"] = "paused".into());
    assert_eq!(watched.mode().await, Some(Mode::Paused));
    assert!(watched.persisted.borrow().is_complete);
}

/// A new list after the watch was lost has all changes since, including deletions.
#[tokio::test(start_paused = true)]
async fn after_a_restored_backup_the_watch_shows_the_state_of_the_backup() {
    let server = Server::default();
    let exemption = |namespace: &str| json!({"metadata": {}, "spec": {"namespace": {"exact": namespace}, "reason": "a contract"}});
    server.put("exemptions", "first", exemption("ns-a"));
    server.put(INCIDENTS, "web", object("web", "Held"));
    let backup = server.backup();
    let watched = Watched::start(&server);
    watched.mode().await;
    server.put("exemptions", "second", exemption("ns-b"));
    server.remove("exemptions", "first");
    server.put(INCIDENTS, "shop", object("shop", "Held"));
    server.edit(INCIDENTS, "web", |object| object["status"]["state"] = "Ended".into());
    server.put(ENFORCEMENTS, "procscan", json!({"metadata": {}, "spec": {"mode": "paused"}}));
    assert_eq!(watched.mode().await, Some(Mode::Paused));
    let shown = || {
        let state = watched.persisted.borrow().clone();
        let states =
            state.incidents.iter().map(|(name, it)| format!("{name} {:?}", it.summary().unwrap().state));
        (states.collect::<Vec<_>>(), state.exemptions.keys().cloned().collect::<Vec<_>>())
    };
    let both = vec!["shop Held".to_owned(), "web Ended".to_owned()];
    assert_eq!(shown(), (both, vec!["second".to_owned()]));
    server.restore(backup);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(watched.mode().await, None);
    assert_eq!(shown(), (vec!["web Held".to_owned()], vec!["first".to_owned()]));
}
