//! Ring 5 of the tests, the part that runs everywhere: the fuzzer's corpus through every decoder, as it is and damaged in many ways.

use std::{fs, path::Path};

use cortex_tests::decoders;

/// Damaged copies of each file.
const DAMAGED: u64 = 400;

#[test]
fn every_decoder_answers_its_corpus_and_damaged_copies_of_it() {
    for (name, decoder) in decoders::ALL {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut files: Vec<_> = fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            let bytes = fs::read(&file).expect("a file of the corpus");
            decoder(&bytes);
            for seed in 0..DAMAGED {
                decoder(&damage(&bytes, seed));
            }
        }
    }
}

/// A copy with a few bytes changed, cut out, put in or doubled, by seed (xorshift64).
fn damage(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).expect("31 bits fit")
    };
    let mut out = bytes.to_vec();
    for _ in 0..1 + next() % 4 {
        if out.is_empty() {
            out.push(0);
        }
        let at = next() % out.len();
        match next() % 5 {
            0 => out[at] ^= 1 << (next() % 8),
            1 => out[at] = u8::try_from(next() % 256).expect("a byte"),
            2 => out.truncate(at),
            3 => out.insert(at, u8::try_from(next() % 256).expect("a byte")),
            _ => out.extend_from_within(at..),
        }
        out.truncate(64 * 1024);
    }
    out
}
