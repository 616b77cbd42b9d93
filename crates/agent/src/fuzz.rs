//! Laws of what an agent reads that others have written: tenants name control groups, operators write rules.
//!
//! Each function takes any bytes at all and panics where a law is broken. `make fuzz` feeds them with made-up bytes; the tests
//! feed them with those in `fuzz/corpus`.

pub use crate::proc::fuzz::cgroup;
pub use crate::rules::fuzz::rules;

#[cfg(test)]
mod replay {
    use std::{fs, panic, path::Path};

    fn replay(target: &str, law: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut inputs: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{} is empty", directory.display());
        for path in inputs {
            let input = fs::read(&path).unwrap();
            // Says which one it was: a panic tells of the law only.
            let done = panic::catch_unwind(|| law(&input));
            assert!(done.is_ok(), "{}", path.display());
        }
    }

    #[test]
    fn control_groups() {
        replay("cgroup", super::cgroup);
    }

    #[test]
    fn rule_files() {
        replay("rules", super::rules);
    }
}
