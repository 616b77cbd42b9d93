#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| procscan_agent::fuzz::cgroup(input));
