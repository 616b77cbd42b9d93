use std::fs;

use tempfile::TempDir;

use super::*;

/// Writes a certificate and its key, which expire in `days`.
fn write(directory: &Path, days: i64) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    let certificate = parameters.self_signed(&key).unwrap();
    fs::write(directory.join("tls.crt"), certificate.pem()).unwrap();
    fs::write(directory.join("tls.key"), key.serialize_pem()).unwrap();
}

fn files(directory: &Path) -> TlsFiles {
    TlsFiles { certificate: directory.join("tls.crt"), key: directory.join("tls.key"), client_ca: None }
}

struct Watched {
    directory: TempDir,
    watch: TlsWatch,
    config: watch::Receiver<Arc<ServerConfig>>,
    status: watch::Receiver<TlsStatus>,
    counters: Counters,
}

impl Watched {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), 30);
        let files = files(directory.path());
        let (status_tx, status) = watch::channel(TlsStatus::default());
        let counters = Counters::default();
        let (watch, config) =
            TlsWatch::new(files.clone(), &files.load().unwrap(), status_tx, counters.clone());
        Self { directory, watch, config, status, counters }
    }

    /// Two looks, as a change needs.
    fn look(&mut self) {
        for _ in 0..2 {
            let read = self.watch.files.read();
            self.watch.look(read, Timestamp::now());
        }
    }

    fn reloads(&self, result: &'static str) -> u64 {
        self.counters.tls_reloads.get_or_create(&[("result", result)]).get()
    }
}

#[test]
fn a_new_certificate_is_used_once_it_has_been_seen_twice() {
    let mut watched = Watched::new();
    let first = watched.config.borrow().clone();
    let expires = watched.status.borrow().expires.unwrap();
    watched.look();
    assert!(Arc::ptr_eq(&first, &watched.config.borrow()), "nothing has changed");
    write(watched.directory.path(), 60);
    let read = watched.watch.files.read();
    watched.watch.look(read, Timestamp::now());
    assert!(Arc::ptr_eq(&first, &watched.config.borrow()), "seen once");
    watched.look();
    assert!(!Arc::ptr_eq(&first, &watched.config.borrow()));
    assert!(watched.status.borrow().expires.unwrap() > expires);
    assert_eq!((watched.reloads("applied"), watched.reloads("refused")), (1, 0));
}

type Break = Box<dyn Fn()>;

#[test]
fn while_the_new_files_have_a_mistake_the_certificate_in_use_stays_and_the_mistake_is_said_once() {
    let mut watched = Watched::new();
    let first = watched.config.borrow().clone();
    let path = watched.directory.path().to_owned();
    let (certificate, key) = (path.join("tls.crt"), path.join("tls.key"));
    let other = tempfile::tempdir().unwrap();
    write(other.path(), 30);
    let expired = tempfile::tempdir().unwrap();
    write(expired.path(), -1);
    let copy =
        |from: PathBuf, to: PathBuf| -> Break { Box::new(move || assert!(fs::copy(&from, &to).is_ok())) };
    let (of_certificate, of_key) = (certificate.clone(), key.clone());
    let breaks: Vec<(Break, &str)> = vec![
        (Box::new(move || fs::write(&of_certificate, "no PEM").unwrap()), "at least one certificate"),
        (copy(other.path().join("tls.crt"), certificate.clone()), "do not belong together"),
        (Box::new(move || fs::write(&of_key, "").unwrap()), "one private key"),
        (
            Box::new({
                let certificate = certificate.clone();
                move || fs::remove_file(&certificate).unwrap()
            }),
            "can't be read",
        ),
        (
            Box::new({
                let (from, to) = (expired.path().to_owned(), path.clone());
                move || {
                    for file in ["tls.crt", "tls.key"] {
                        fs::copy(from.join(file), to.join(file)).unwrap();
                    }
                }
            }),
            "expired at",
        ),
    ];
    for (n, (break_it, says)) in breaks.iter().enumerate() {
        break_it();
        watched.look();
        watched.look();
        let error = watched.status.borrow().error.clone().unwrap();
        assert!(error.contains(says), "{says}: {error}");
        assert_eq!(watched.reloads("refused"), n as u64 + 1);
        assert!(Arc::ptr_eq(&first, &watched.config.borrow()));
    }
    write(&path, 30);
    watched.look();
    assert_eq!(watched.status.borrow().error, None);
    assert!(!Arc::ptr_eq(&first, &watched.config.borrow()));
}

#[test]
fn a_secret_that_is_replaced_by_moving_its_link_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (name, days) in [("..1", 30), ("..2", 60)] {
        fs::create_dir(at(name)).unwrap();
        write(&at(name), days);
    }
    std::os::unix::fs::symlink("..1", at("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), at(file)).unwrap();
    }
    let files = files(directory.path());
    let before = files.load().unwrap();
    std::os::unix::fs::symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    let after = files.load().unwrap();
    assert!(after.expires > before.expires && after.fingerprint != before.fingerprint);
}
