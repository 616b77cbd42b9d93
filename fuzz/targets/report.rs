#![no_main]

#[path = "../laws/report.rs"]
mod law;

libfuzzer_sys::fuzz_target!(|input: &[u8]| law::report(input));
