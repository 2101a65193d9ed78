//! Takes secrets out of what a task prints, before it is kept anywhere.
//!
//! A secret is found as it is, percent-encoded (any of it, in either case, `+` for a space), and inside base64 of either alphabet, at each of the three
//! places where it can lie there, also across line ends. What could be the beginning of one is held back until it is clear: at most three times the longest secret.
//! Whatever pieces the output comes in, the result is the same.

use std::fmt;

use data_encoding::{BASE64, BASE64URL};

/// What stands where a secret was.
pub const REDACTED: &[u8] = b"***";

/// Takes the secrets of a task out of one stream.
pub struct Redactor {
    patterns: Vec<Pattern>,
    /// The bytes with which a pattern can begin.
    first: [bool; 256],
    held: Vec<u8>,
    /// So many bytes of `held` belong to a secret that was found.
    covered: usize,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} patterns)", self.patterns.len())
    }
}

#[derive(Clone)]
struct Pattern {
    form: Form,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Percent,
    Base64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    No,
    /// The text ends before it is clear.
    Maybe,
    /// So many bytes of it.
    Yes(usize),
}

impl Redactor {
    /// For these secrets. A line end behind a secret does not count: shells cut it off.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let patterns: Vec<Pattern> = secrets.into_iter().map(trimmed).filter(|secret| !secret.is_empty()).flat_map(patterns_of).collect();
        let mut first = [false; 256];
        for pattern in &patterns {
            let begins = pattern.bytes[0];
            first[usize::from(begins)] = true;
            first[usize::from(b'%')] |= pattern.form == Form::Percent;
            first[usize::from(b'+')] |= pattern.form == Form::Percent && begins == b' ';
            first[usize::from(b'\r')] |= begins == b'\n';
        }
        Self { patterns, first, held: Vec::new(), covered: 0 }
    }

    /// Adds what can be shown after these bytes to `out`.
    pub fn push(&mut self, data: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(data);
        self.advance(false, out);
    }

    /// Adds the rest: nothing more will come.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.advance(true, out);
    }

    fn advance(&mut self, ended: bool, out: &mut Vec<u8>) {
        let text = std::mem::take(&mut self.held);
        let mut at = 0;
        while at < text.len() {
            let found = if self.first[usize::from(text[at])] { self.look(&text[at..], ended) } else { Match::No };
            match found {
                Match::Maybe => break,
                Match::Yes(len) => {
                    if self.covered == 0 {
                        out.extend_from_slice(REDACTED);
                    }
                    self.covered = self.covered.max(len);
                }
                Match::No => {}
            }
            if self.covered > 0 {
                self.covered -= 1;
            } else {
                out.push(text[at]);
            }
            at += 1;
        }
        self.held = text;
        self.held.drain(..at);
    }

    /// The longest secret that begins the text; not before it is clear that no longer one does.
    fn look(&self, text: &[u8], ended: bool) -> Match {
        let mut longest = Match::No;
        for pattern in &self.patterns {
            match (pattern.look(text), longest) {
                (Match::Maybe, _) if !ended => return Match::Maybe,
                (Match::Yes(len), Match::Yes(known)) if len <= known => {}
                (Match::Yes(len), _) => longest = Match::Yes(len),
                _ => {}
            }
        }
        longest
    }
}

/// A line end behind a secret is not part of it.
fn trimmed(secret: &[u8]) -> &[u8] {
    let end = secret.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
    &secret[..end]
}

/// A secret's value without the line end behind it: what is looked for, and what has to be long enough.
pub fn significant(secret: &[u8]) -> usize {
    trimmed(secret).len()
}

fn patterns_of(secret: &[u8]) -> Vec<Pattern> {
    let mut patterns = vec![Pattern { form: Form::Plain, bytes: secret.to_vec() }, Pattern { form: Form::Percent, bytes: secret.to_vec() }];
    for before in 0..3 {
        let padded = [&[0; 3][..before], secret].concat();
        // Characters that hold nothing but bits of the secret.
        let (from, to) = ([0, 2, 3][before], padded.len() * 8 / 6);
        for encoding in [&BASE64, &BASE64URL] {
            let text = encoding.encode(&padded).into_bytes();
            patterns.push(Pattern { form: Form::Base64, bytes: text[from..to].to_vec() });
        }
    }
    patterns.retain(|pattern| !pattern.bytes.is_empty());
    patterns.dedup_by(|a, b| a.form == b.form && a.bytes == b.bytes);
    patterns
}

impl Pattern {
    fn look(&self, text: &[u8]) -> Match {
        let mut at = 0;
        for (index, byte) in self.bytes.iter().enumerate() {
            let taken = match self.form {
                Form::Plain => plain(*byte, &text[at..]),
                Form::Percent => percent(*byte, &text[at..]),
                Form::Base64 => base64(*byte, &text[at..], index > 0),
            };
            match taken {
                Match::Yes(len) => at += len,
                other => return other,
            }
        }
        Match::Yes(at)
    }
}

/// A byte as it is; a terminal puts a return before a new line.
fn plain(byte: u8, text: &[u8]) -> Match {
    match text {
        [] => Match::Maybe,
        [b'\r'] if byte == b'\n' => Match::Maybe,
        [b'\r', b'\n', ..] if byte == b'\n' => Match::Yes(2),
        [found, ..] if *found == byte => Match::Yes(1),
        _ => Match::No,
    }
}

fn percent(byte: u8, text: &[u8]) -> Match {
    let digit = |found: u8, value: u8| char::from(found).to_digit(16) == Some(u32::from(value));
    match text {
        [] => Match::Maybe,
        [b'%'] => Match::Maybe,
        [b'%', high] if digit(*high, byte >> 4) => Match::Maybe,
        [b'%', high, low, ..] if digit(*high, byte >> 4) && digit(*low, byte & 15) => Match::Yes(3),
        [b'+', ..] if byte == b' ' => Match::Yes(1),
        [found, ..] if *found == byte => Match::Yes(1),
        _ => Match::No,
    }
}

/// A character, which a line end may stand before.
fn base64(byte: u8, text: &[u8], inside: bool) -> Match {
    let ends = match text {
        [b'\r', b'\n', ..] if inside => 2,
        [b'\r'] if inside => return Match::Maybe,
        [b'\n', ..] if inside => 1,
        _ => 0,
    };
    match text.get(ends) {
        None => Match::Maybe,
        Some(found) if *found == byte => Match::Yes(ends + 1),
        Some(_) => Match::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redact<'a>(secrets: &[&[u8]], pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut redactor = Redactor::new(secrets.iter().copied());
        let longest = secrets.iter().map(|secret| secret.len()).max().unwrap_or(0);
        let mut out = Vec::new();
        for piece in pieces {
            redactor.push(piece, &mut out);
            assert!(redactor.held.len() <= 4 * longest + 4, "{} bytes are held back", redactor.held.len());
        }
        redactor.finish(&mut out);
        assert!(redactor.held.is_empty());
        out
    }

    fn text(secret: &str, text: &str) -> String {
        let whole = redact(&[secret.as_bytes()], [text.as_bytes()]);
        assert_eq!(redact(&[secret.as_bytes()], text.as_bytes().chunks(1)), whole, "byte by byte");
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn a_secret_is_taken_out_and_the_rest_stays() {
        assert_eq!(text("hunter2hunter2", "a hunter2hunter2 b hunter2hunter"), "a *** b hunter2hunter");
        assert_eq!(text("hunter2hunter2", "hunter2hunter2hunter2hunter2"), "***", "they overlap");
        assert_eq!(text("hunter2!", "hunter2!hunter2!"), "******");
        assert_eq!(text("hunter22", "hunter2hunter22"), "hunter2***");
        assert_eq!(text("with line\nends", "with line\r\nends|with line\nends"), "***|***");
        assert_eq!(text("trailing1\n", "trailing1"), "***");
    }

    #[test]
    fn url_forms_are_taken_out() {
        let secret = "p@ss word/%25é";
        for form in
            ["p@ss word/%25é", "p%40ss%20word%2F%2525%C3%A9", "p%40ss+word%2f%2525%c3%a9", "%70%40%73%73%20%77%6f%72%64%2f%25%32%35%c3%a9"]
        {
            assert_eq!(text(secret, &format!("<{form}>")), "<***>", "{form}");
        }
    }

    #[test]
    fn base64_is_taken_out_wherever_the_secret_lies_in_it() {
        let secret = "correct-horse-battery-staple?>~~";
        for before in 0..7 {
            let plain = format!("{}{secret}{}", "x".repeat(before), "y".repeat(before));
            for encoding in [BASE64, BASE64URL] {
                let encoded = encoding.encode(plain.as_bytes());
                let wrapped: String = encoded.as_bytes().chunks(13).map(|line| format!("{}\n", str::from_utf8(line).unwrap())).collect();
                for form in [encoded, wrapped.clone(), wrapped.replace('\n', "\r\n")] {
                    let shown = text(secret, &form);
                    assert!(shown.contains("***") && shown.len() <= 4 * before + 16, "{form} became {shown}");
                }
            }
        }
    }

    #[test]
    fn what_is_inside_something_longer_goes_with_it() {
        let secrets: [&[u8]; 3] = [b"password1", b"password12345", b"2345secret"];
        let shown = redact(&secrets, [&b"x password12345secret y password1 z"[..]]);
        assert_eq!(shown, b"x *** y *** z");
    }

    #[test]
    fn one_that_repeats_itself_holds_nothing_up() {
        let shown = redact(&[b"aaaaaaaa"], std::iter::repeat_n(&b"aaaaaaa"[..], 1_000));
        assert!(shown.len() < 16, "{}", shown.len());
    }

    proptest! {
        #[test]
        fn the_pieces_make_no_difference(
            noise in proptest::collection::vec("[abAB%+0-9=\n]{0,12}|secretab1|c2VjcmV0YWIx|secret%61b1", 0..12),
            cuts in proptest::collection::vec(1usize..9, 1..20),
        ) {
            let whole = noise.concat().into_bytes();
            let secrets: [&[u8]; 2] = [b"secretab1", b"ab1ab1ab1"];
            let mut pieces = Vec::new();
            let mut rest = &whole[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            let shown = redact(&secrets, [&whole[..]]);
            prop_assert_eq!(redact(&secrets, pieces), shown.clone());
            prop_assert!(!shown.windows(9).any(|part| part == b"secretab1"));
        }

        #[test]
        fn without_a_secret_nothing_changes(data: Vec<u8>) {
            prop_assert_eq!(redact(&[], [&data[..]]), data);
        }
    }
}
