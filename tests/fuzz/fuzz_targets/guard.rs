#![no_main]

#[allow(dead_code, reason = "each target has its own")]
#[path = "../../properties/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::guard(bytes));
