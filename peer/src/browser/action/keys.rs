//! What keys are called, and what a browser is told of them.

use serde_json::{Value, json};

/// One key as the protocol wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// "Enter", "a"
    pub key: String,
    /// "Enter", "KeyA"
    pub code: String,
    /// Windows' number for it.
    pub number: u32,
    /// What it writes.
    pub text: String,
}

/// Held keys, as the protocol counts them.
pub fn modifiers(names: &[&str]) -> Option<u32> {
    names.iter().try_fold(0, |held, name| {
        let bit = match *name {
            "Alt" => 1,
            "Control" | "Ctrl" => 2,
            "Meta" => 4,
            "Shift" => 8,
            _ => return None,
        };
        Some(held | bit)
    })
}

/// Reads `Control+Shift+a`: what is held, and the key.
pub fn parse(written: &str) -> Option<(u32, Key)> {
    // "+" itself is a key, too.
    let (held, last) = match written.rsplit_once('+') {
        Some((held, "")) => (held.strip_suffix('+').unwrap_or(held), "+"),
        Some((held, last)) => (held, last),
        None => ("", written),
    };
    let names: Vec<&str> = held.split('+').filter(|name| !name.is_empty()).collect();
    Some((modifiers(&names)?, key(last)?))
}

/// The key of this name.
pub fn key(name: &str) -> Option<Key> {
    let named = |key: &str, code: &str, number, text: &str| Some(Key { key: key.into(), code: code.into(), number, text: text.into() });
    match name {
        "Enter" | "Return" => return named("Enter", "Enter", 13, "\r"),
        "Tab" => return named("Tab", "Tab", 9, ""),
        "Escape" | "Esc" => return named("Escape", "Escape", 27, ""),
        "Backspace" => return named("Backspace", "Backspace", 8, ""),
        "Delete" => return named("Delete", "Delete", 46, ""),
        "Insert" => return named("Insert", "Insert", 45, ""),
        "Space" | " " => return named(" ", "Space", 32, " "),
        "Home" => return named("Home", "Home", 36, ""),
        "End" => return named("End", "End", 35, ""),
        "PageUp" => return named("PageUp", "PageUp", 33, ""),
        "PageDown" => return named("PageDown", "PageDown", 34, ""),
        "ArrowLeft" => return named("ArrowLeft", "ArrowLeft", 37, ""),
        "ArrowUp" => return named("ArrowUp", "ArrowUp", 38, ""),
        "ArrowRight" => return named("ArrowRight", "ArrowRight", 39, ""),
        "ArrowDown" => return named("ArrowDown", "ArrowDown", 40, ""),
        "Shift" => return named("Shift", "ShiftLeft", 16, ""),
        "Control" => return named("Control", "ControlLeft", 17, ""),
        "Alt" => return named("Alt", "AltLeft", 18, ""),
        "Meta" => return named("Meta", "MetaLeft", 91, ""),
        _ => {}
    }
    if let Some(number) = name.strip_prefix('F').and_then(|number| number.parse::<u32>().ok()).filter(|number| (1..=12).contains(number)) {
        return named(name, name, 111 + number, "");
    }
    let mut characters = name.chars();
    let (Some(character), None) = (characters.next(), characters.next()) else { return None };
    let upper = character.to_ascii_uppercase();
    let (code, number) = match upper {
        'A'..='Z' => (format!("Key{upper}"), u32::from(upper)),
        '0'..='9' => (format!("Digit{upper}"), u32::from(upper)),
        _ => (String::new(), 0),
    };
    named(name, &code, number, name)
}

impl Key {
    /// Down and up again, with `held` keys held.
    pub fn events(&self, held: u32) -> [Value; 2] {
        // With Control, Alt or Meta a key writes nothing.
        let writes = !self.text.is_empty() && held & 7 == 0;
        let mut down = json!({
            "type": if writes { "keyDown" } else { "rawKeyDown" }, "modifiers": held, "key": self.key, "code": self.code,
            "windowsVirtualKeyCode": self.number, "nativeVirtualKeyCode": self.number,
        });
        let mut up = down.clone();
        up["type"] = "keyUp".into();
        if writes {
            down["text"] = self.text.as_str().into();
        }
        if held & 2 != 0 && self.code == "KeyA" {
            // Without an editor's command nothing is selected on Linux.
            down["commands"] = json!(["selectAll"]);
        }
        [down, up]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_with_what_is_held() {
        assert_eq!(parse("Enter").unwrap().1.number, 13);
        let (held, key) = parse("Control+Shift+a").unwrap();
        assert_eq!((held, key.code.as_str()), (10, "KeyA"));
        assert_eq!(parse("+").unwrap().1.key, "+");
        assert_eq!(parse("Control++").map(|(held, key)| (held, key.key)), Some((2, "+".into())));
        assert_eq!(parse("F5").unwrap().1.number, 116);
        assert_eq!(parse("é").unwrap().1.text, "é");
        for wrong in ["", "Entr", "Ctl+a", "F13", "ab"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
