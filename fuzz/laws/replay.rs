//! Passes the inputs of `fuzz/corpus` to a law. The tests of several crates include this file.

use std::{fs, panic, path::Path};

/// Passes each input of the corpus `target` to `law`.
///
/// # Panics
/// Panics if an input breaks the law.
pub(crate) fn replay(target: &str, law: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    for path in inputs {
        let input = fs::read(&path).unwrap();
        // The panic names the law only, so the input is named here.
        let done = panic::catch_unwind(|| law(&input));
        assert!(done.is_ok(), "{}", path.display());
    }
}
