//! Laws of the foreign bytes that an agent reads: names of control groups by tenants, and rules by operators.
//!
//! Each function takes any bytes and panics where a law is broken. `make fuzz` passes made-up bytes to them; the tests pass
//! the inputs in `fuzz/corpus`.

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
            // The panic names the law only, so the input is named here.
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
