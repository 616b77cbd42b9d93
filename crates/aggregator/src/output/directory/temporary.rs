//! Temporary files. Their names can't be guessed, so that no other program takes one first. Files that a crash has left are
//! recognised by their names.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use procscan_core::resources::Kind;

/// The beginning of the names: a dot, so that `kubectl apply` does not read the files.
const PREFIX: &str = ".procscan-";
/// The name under which the lease file is written, because its own begins with a dot.
pub(super) const LEASE: &str = "lease";
/// How many hexadecimal digits end the names.
const DIGITS: usize = 16;

/// Makes an empty file in `directory` that is to become the file `name`. An existing file or link of the same name is
/// neither followed nor overwritten.
pub(super) fn make(directory: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    // The keys of a hasher are random.
    let path = directory.join(format!("{PREFIX}{name}-{:016x}", RandomState::new().hash_one(0)));
    let file = File::create_new(&path)?;
    Ok((path, file))
}

/// Whether it is a file that [`make`] has made. Earlier versions made files of objects without digits at the end.
pub(super) fn is_ours(path: &Path, kinds: &[Kind]) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
    let Some(name) = name else { return false };
    let is_number = |text: &str| text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (stem, has_number) = match name.rsplit_once('-') {
        Some((stem, number)) if is_number(number) => (stem, true),
        _ => (name, false),
    };
    let is_object =
        super::is_like_ours(stem) && kinds.iter().any(|kind| stem.starts_with(&kind.file_prefix()));
    let is_named = is_object || has_number && stem == LEASE;
    is_named && fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

#[cfg(test)]
mod tests {
    use procscan_core::resources::KINDS;

    use super::*;

    fn is_ours(path: &Path) -> bool {
        super::is_ours(path, KINDS)
    }

    #[test]
    fn each_file_has_a_name_of_its_own_and_is_known_again() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["wasmplugin_gw_procscan-violations.yaml", "notification_ns-a_x.yaml", "lease"] {
            let (first, _) = make(directory.path(), name).unwrap();
            let (second, _) = make(directory.path(), name).unwrap();
            assert_ne!(first, second);
            assert!(is_ours(&first) && is_ours(&second), "{first:?}");
        }
    }

    #[test]
    fn files_of_similar_names_are_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let of = |name: &str| directory.path().join(name);
        let ours = of(".procscan-wasmplugin_gw_x.yaml");
        fs::write(&ours, "").unwrap();
        assert!(is_ours(&ours));
        for name in [
            ".procscan-notes",
            ".procscan-mine.yaml",
            ".procscan-mine.yaml-0123456789abcdef",
            ".procscan-lease",
            ".procscan-lease-0",
            "wasmplugin_gw_x.yaml-0123456789abcdef",
        ] {
            fs::write(of(name), "").unwrap();
            assert!(!is_ours(&of(name)), "{name}");
        }
        let name =
            |digit: char| of(&format!(".procscan-wasmplugin_gw_x.yaml-{}", digit.to_string().repeat(16)));
        std::os::unix::fs::symlink(&ours, name('a')).unwrap();
        fs::create_dir(name('b')).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, name('c'), rustix::fs::Mode::RUSR).unwrap();
        for digit in ['a', 'b', 'c', 'd'] {
            assert!(!is_ours(&name(digit)), "{digit}");
        }
    }
}
