#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cortex_tests::decoders::run("evidence", bytes));
