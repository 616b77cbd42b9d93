#![no_main]

#[path = "../laws/targets.rs"]
mod law;

libfuzzer_sys::fuzz_target!(|input: &[u8]| law::targets(input));
