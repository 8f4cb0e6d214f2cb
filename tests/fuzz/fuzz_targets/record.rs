#![no_main]

#[allow(dead_code, reason = "each target uses one invariant")]
#[path = "../../properties/invariants.rs"]
mod invariants;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| invariants::record(bytes));
