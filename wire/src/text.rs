//! Strings that strangers supply: names, labels, reasons, descriptions.
//!
//! They are shown to people and to AIs, so control characters and bidirectional overrides go, and length is bounded.
//! They stay text: whoever puts them into markup escapes them there.

/// `text` without control and direction characters, trimmed, cut at a character boundary within `max_bytes`.
pub fn clean(text: &str, max_bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    for c in text.chars().filter(|c| !is_unseen(*c)).skip_while(|c| c.is_whitespace()) {
        if out.len() + c.len_utf8() > max_bytes {
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out
}

fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_goes() {
        assert_eq!(clean("  a\u{1b}[31mb\u{202e}c\n ", 64), "a[31mbc");
        assert_eq!(clean("<b>", 64), "<b>");
        assert_eq!(clean("\u{200b} a \u{200b}", 64), "a");
    }

    #[test]
    fn a_cut_falls_between_characters() {
        assert_eq!(clean("aéé", 4), "aé");
        assert_eq!(clean("", 4), "");
        assert_eq!(clean("abc d", 4), "abc");
    }
}
