//! Reads the kubeconfig within a limit of size and time, because the library has neither.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::Kubeconfig;

use crate::plain_file::MAX_TEXT;

/// The variable that names the files of the kubeconfig, which are merged.
const VARIABLE: &str = "KUBECONFIG";

/// Reads the file at `path`. Without a path, reads the files that `KUBECONFIG` names, or `~/.kube/config`. The error
/// names the file. A pipe is allowed, and has to be written within `limit`.
pub(super) async fn read(path: Option<&Path>, limit: Duration) -> Result<Kubeconfig, String> {
    for file in path.map_or_else(default_files, |path| vec![path.to_owned()]) {
        check(&file)?;
    }
    let path = path.map(Path::to_owned);
    let read = move || path.map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    // In a thread of its own, because the library waits for a pipe.
    let read = tokio::time::timeout(limit, tokio::task::spawn_blocking(read)).await;
    let read = read.map_err(|_| format!("not read within {}", humantime::format_duration(limit)))?;
    let kubeconfig = read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    for file in named(&kubeconfig) {
        check(Path::new(file))?;
    }
    Ok(kubeconfig)
}

/// The files of the kubeconfig if no path is configured.
fn default_files() -> Vec<PathBuf> {
    let value = std::env::var_os(VARIABLE).unwrap_or_default();
    let files: Vec<PathBuf> =
        std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect();
    if !files.is_empty() {
        return files;
    }
    std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect()
}

/// The files that a kubeconfig names.
fn named(kubeconfig: &Kubeconfig) -> impl Iterator<Item = &String> {
    let clusters = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref());
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    let of_user = users.flat_map(|user| [&user.client_certificate, &user.client_key, &user.token_file]);
    clusters.map(|cluster| &cluster.certificate_authority).chain(of_user).flatten()
}

/// Refuses directories, devices and files that are too large. The library reports a file that does not exist.
fn check(path: &Path) -> Result<(), String> {
    let Ok(found) = fs::metadata(path) else { return Ok(()) };
    let kind = found.file_type();
    let problem = match () {
        () if kind.is_dir() => "it is a directory, not a regular file".to_owned(),
        () if kind.is_char_device() || kind.is_block_device() => {
            "it is a device, not a regular file".to_owned()
        }
        () if found.len() > MAX_TEXT => format!("it is larger than {} MiB", MAX_TEXT >> 20),
        () => return Ok(()),
    };
    Err(format!("{}: {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);

    async fn refused(path: &Path) -> String {
        read(Some(path), LIMIT).await.unwrap_err()
    }

    #[tokio::test]
    async fn devices_directories_and_large_files_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let (large, config) = (directory.path().join("large"), directory.path().join("config"));
        fs::File::create(&large).unwrap().set_len(MAX_TEXT + 1).unwrap();
        for (path, problem) in [
            (Path::new("/dev/zero"), "it is a device, not a regular file"),
            (directory.path(), "it is a directory, not a regular file"),
            (&large, "it is larger than 16 MiB"),
        ] {
            let expected = format!("{}: {problem}", path.display());
            assert_eq!(refused(path).await, expected);
            // The same file, named by a kubeconfig.
            let path = path.display();
            for text in [
                format!("clusters: [{{name: a, cluster: {{certificate-authority: {path}}}}}]"),
                format!("users: [{{name: a, user: {{client-certificate: {path}}}}}]"),
                format!("users: [{{name: a, user: {{client-key: {path}}}}}]"),
                format!("users: [{{name: a, user: {{tokenFile: {path}}}}}]"),
            ] {
                fs::write(&config, text).unwrap();
                assert_eq!(refused(&config).await, expected);
            }
        }
    }

    #[test]
    fn a_pipe_that_no_program_writes_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Not paused: paused time stands still while a thread waits.
        let error = runtime.block_on(read(Some(&pipe), Duration::from_millis(20))).unwrap_err();
        // The thread still waits.
        runtime.shutdown_background();
        assert_eq!(error, "not read within 20ms");
    }
}
