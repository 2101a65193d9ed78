//! Random texts that are credentials.

use cortex_runtime::clock::random;

use crate::record::Digest;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Characters of base62 that hold 256 bits.
const SECRET_CHARS: usize = 43;
/// Characters of a token's public part: enough never to meet again.
const ID_CHARS: usize = 12;
/// Characters of base62 that hold 32 bits.
const CHECK_CHARS: usize = 6;

const TOKEN_PREFIX: &str = "cxt_";

/// `n` random characters.
fn characters(n: usize) -> String {
    let mut text = String::with_capacity(n);
    while text.len() < n {
        // Bytes above the last multiple of 62 would make the first characters likelier.
        let fair = random::<64>().into_iter().filter(|byte| *byte < 248);
        text.extend(fair.take(n - text.len()).map(|byte| char::from(BASE62[usize::from(byte % 62)])));
    }
    text
}

/// A fresh secret of 256 bits.
pub(super) fn fresh() -> String {
    characters(SECRET_CHARS)
}

/// What is stored of a secret.
pub(super) fn hash(secret: &str) -> Digest {
    Digest(blake3::hash(secret.as_bytes()).into())
}

/// A fresh API token, `cxt_<id>_<secret><check>`: its public part and its text.
pub(super) fn fresh_token() -> (String, String) {
    let id = characters(ID_CHARS);
    let body = format!("{TOKEN_PREFIX}{id}_{}", fresh());
    let text = format!("{body}{}", check(&body));
    (id, text)
}

/// The public part of an API token, when the text is whole: what is mistyped or cut off never reaches the store, and scanners for leaked
/// secrets can tell a real token from a word.
pub(super) fn token_id(text: &str) -> Option<&str> {
    let (body, sum) = text.split_at_checked(text.len().checked_sub(CHECK_CHARS)?)?;
    let (id, secret) = body.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
    (id.len() == ID_CHARS && secret.len() == SECRET_CHARS && check(body) == sum).then_some(id)
}

pub(super) fn check(text: &str) -> String {
    let mut sum = crc32(text.as_bytes());
    let mut digits = [0; CHECK_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(sum % 62) as usize];
        sum /= 62;
    }
    digits.map(char::from).iter().collect()
}

/// CRC-32 (ISO-HDLC), bit by bit: a token is 60 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_is_the_one_everybody_uses() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_token_names_its_id() {
        let (id, text) = fresh_token();
        assert_eq!(token_id(&text), Some(id.as_str()));
        assert_ne!(fresh_token().1, text);
    }

    proptest! {
        #[test]
        fn a_token_with_one_character_changed_is_no_token(at in 0usize..66, with in "[0-9A-Za-z_]") {
            let (_, text) = fresh_token();
            prop_assume!(text[at..=at] != with);
            let mut changed = text;
            changed.replace_range(at..=at, &with);
            prop_assert_eq!(token_id(&changed), None);
        }

        #[test]
        fn any_text_is_answered(text in "\\PC{0,80}") {
            prop_assert_eq!(token_id(&text), None);
        }
    }
}
