//! See `podway_dataplane::testing::harness::icmp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| podway_dataplane::testing::harness::icmp(input));
