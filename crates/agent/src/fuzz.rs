//! Laws of the input that an agent reads: tenants name control groups, operators write rules.
//!
//! Each function takes any bytes and panics if a law is broken. `make fuzz` passes made-up bytes to them; the tests
//! pass the inputs in `fuzz/corpus`. The laws are here because they need private items. `cgroup` needs the names in a
//! control group. `rules` needs the reason why this agent refuses a pattern that Go accepts.

pub use crate::proc::fuzz::cgroup;
pub use crate::rules::fuzz::rules;

#[cfg(test)]
#[path = "../../../fuzz/laws/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn control_groups() {
        replay("cgroup", super::cgroup);
    }

    #[test]
    fn rule_files() {
        replay("rules", super::rules);
    }
}
