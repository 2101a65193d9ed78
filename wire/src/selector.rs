//! Which machines a task may run on: `os=linux,gpu,tool.python>=3.11`.
//!
//! A selector is a list of terms that must all hold. A term names a fact of a machine ([`Facts`]), and may compare it. Names that no machine
//! could have are an error that lists those that there are, so that a typing mistake is not a selector that never matches.
//!
//! ```text
//! selector = term *("," term)
//! term     = ["!"] name | name op value          op = "=" "!=" "~" ">=" "<=" ">" "<"
//! ```
//! `=` compares whole values and `~` parts of them, neither looks at case. The others compare versions and sizes: number by number, `3.11` above
//! `3.9`, `8G` as 8 × 2³⁰. A fact may have several values (two GPUs); one that fits is enough, and `!=` wants that none is equal.

use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

/// A selector's text.
pub const SELECTOR_BYTES: usize = 512;
/// Terms of one selector.
pub const SELECTOR_TERMS: usize = 16;

/// Names of facts that stand alone.
pub const NAMES: [&str; 12] = ["os", "arch", "host", "name", "cpus", "memory", "gpu", "browser", "sandbox", "skill", "vm", "container"];
/// Beginnings of names that go on with a name of the owner's or of a program's.
pub const PREFIXES: [&str; 3] = ["tool.", "shell.", "label."];

/// What is known of a machine, by name. A name without values is as if it were not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<String, Vec<String>>);

impl Facts {
    /// Adds a value; an empty one is none.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.entry(name.into()).or_default().push(value);
        }
    }

    fn of(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Too long, or too many terms.
    #[error("a selector has at most {SELECTOR_BYTES} bytes and {SELECTOR_TERMS} terms")]
    TooLong,
    /// Nothing between two commas, or nothing at all.
    #[error("a selector is one or more terms with commas between them, such as `os=linux,gpu`")]
    Empty,
    /// No machine has a fact of this name.
    #[error("{0:?} is nothing that is known of machines; there are {names}, tool.NAME, shell.NAME and label.NAME", names = NAMES.join(", "))]
    Unknown(String),
    /// A comparison without a value, or a negation with one.
    #[error("{0:?} is not a term; write a name, `!name`, or a name, one of = != ~ >= <= > < and a value")]
    Malformed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Compare {
    Equal,
    Unequal,
    Contains,
    AtLeast,
    AtMost,
    Above,
    Below,
}

impl Compare {
    /// Those with two characters first: they begin like others.
    const ALL: [(&'static str, Self); 7] = [
        ("!=", Self::Unequal),
        (">=", Self::AtLeast),
        ("<=", Self::AtMost),
        ("=", Self::Equal),
        ("~", Self::Contains),
        (">", Self::Above),
        ("<", Self::Below),
    ];

    fn holds(self, value: &str, wanted: &str) -> bool {
        let ordered = |fits: fn(Ordering) -> bool| fits(compare_versions(value, wanted));
        match self {
            Self::Equal => value.eq_ignore_ascii_case(wanted),
            Self::Unequal => !value.eq_ignore_ascii_case(wanted),
            Self::Contains => value.to_ascii_lowercase().contains(&wanted.to_ascii_lowercase()),
            Self::AtLeast => ordered(Ordering::is_ge),
            Self::AtMost => ordered(Ordering::is_le),
            Self::Above => ordered(Ordering::is_gt),
            Self::Below => ordered(Ordering::is_lt),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Test {
    Present,
    Absent,
    Compares(Compare, String),
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    name: String,
    test: Test,
}

impl Term {
    fn holds(&self, facts: &Facts) -> bool {
        let values = facts.of(&self.name);
        match &self.test {
            Test::Present => !values.is_empty(),
            Test::Absent => values.is_empty(),
            Test::Compares(Compare::Unequal, wanted) => values.iter().all(|value| Compare::Unequal.holds(value, wanted)),
            Test::Compares(compare, wanted) => values.iter().any(|value| compare.holds(value, wanted)),
        }
    }
}

impl FromStr for Term {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let malformed = || SelectorError::Malformed(text.to_owned());
        if let Some(name) = text.strip_prefix('!').map(str::trim) {
            return Ok(Self { name: check_name(name, malformed)?, test: Test::Absent });
        }
        // The operator that comes first, and of those that begin there the longest.
        let found = Compare::ALL.iter().filter_map(|(sign, compare)| Some((text.find(sign)?, *sign, *compare)));
        let Some((at, sign, compare)) = found.min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len()))) else {
            return Ok(Self { name: check_name(text, malformed)?, test: Test::Present });
        };
        let name = check_name(text.get(..at).unwrap_or_default().trim_end(), malformed)?;
        let value = text.get(at + sign.len()..).unwrap_or_default().trim_start();
        if value.is_empty() || value.starts_with(['=', '<', '>', '!', '~']) || value.contains(char::is_control) {
            return Err(malformed());
        }
        Ok(Self { name, test: Test::Compares(compare, value.to_owned()) })
    }
}

fn check_name(name: &str, malformed: impl Fn() -> SelectorError) -> Result<String, SelectorError> {
    let sound = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '/');
    if name.is_empty() || !name.chars().all(sound) {
        return Err(malformed());
    }
    // What follows a prefix is somebody's own name, which may have capitals.
    let known = PREFIXES.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty()));
    let plain = name.to_ascii_lowercase();
    match (known, NAMES.contains(&plain.as_str())) {
        (true, _) => Ok(name.to_owned()),
        (false, true) => Ok(plain),
        (false, false) => Err(SelectorError::Unknown(name.to_owned())),
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.test {
            Test::Present => f.write_str(&self.name),
            Test::Absent => write!(f, "!{}", self.name),
            Test::Compares(compare, value) => {
                let sign = Compare::ALL.iter().find(|(_, known)| known == compare).map_or("=", |(sign, _)| sign);
                write!(f, "{}{sign}{value}", self.name)
            }
        }
    }
}

/// Conditions that must all hold. Two with the same text after parsing are the same, whatever the order of their terms was.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Vec<Term>);

impl Selector {
    /// Whether a machine fits.
    pub fn matches(&self, facts: &Facts) -> bool {
        self.0.iter().all(|term| term.holds(facts))
    }

    /// The first condition that does not hold, for whoever wonders.
    pub fn misses(&self, facts: &Facts) -> Option<&Term> {
        self.0.iter().find(|term| !term.holds(facts))
    }

    /// Whether it has no condition: every machine fits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES || text.split(',').count() > SELECTOR_TERMS {
            return Err(SelectorError::TooLong);
        }
        let mut terms = Vec::new();
        for term in text.split(',').map(str::trim) {
            if term.is_empty() {
                return Err(SelectorError::Empty);
            }
            terms.push(term.parse()?);
        }
        terms.sort();
        terms.dedup();
        Ok(Self(terms))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, term) in self.0.iter().enumerate() {
            write!(f, "{}{term}", if number > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Compares versions and sizes part by part: numbers as numbers, however long, words as words, and a word below any number (`3.11rc1` below
/// `3.11.0`). Parts that are missing count as 0, so `3.11` is `3.11.0`.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (a, b) = (parts(a), parts(b));
    let zero = Part::number("");
    for at in 0..a.len().max(b.len()) {
        match a.get(at).unwrap_or(&zero).cmp(b.get(at).unwrap_or(&zero)) {
            Ordering::Equal => {}
            other => return other,
        }
    }
    Ordering::Equal
}

/// Words are below numbers, and numbers in order of their length, then of their digits.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Word(String),
    /// Digits without leading zeros, and how many there are.
    Number(usize, String),
}

impl Part {
    fn number(digits: &str) -> Self {
        let digits = digits.trim_start_matches('0');
        Self::Number(digits.len(), digits.to_owned())
    }
}

fn parts(text: &str) -> Vec<Part> {
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    if let Some(size) = size(text) {
        return vec![Part::number(&size.to_string())];
    }
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(|c: char| !c.is_alphanumeric());
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let same = |c: char| c.is_alphanumeric() && c.is_ascii_digit() == digits;
        let (part, after) = rest.split_at(rest.find(|c| !same(c)).unwrap_or(rest.len()));
        parts.push(if digits { Part::number(part) } else { Part::Word(part.to_ascii_lowercase()) });
        rest = after.trim_start_matches(|c: char| !c.is_alphanumeric());
    }
    parts
}

/// `8G`, `512M`: bytes, in powers of 1024.
fn size(text: &str) -> Option<u128> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let power = match unit {
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    let number: u64 = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))?;
    Some(u128::from(number) << power)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn machine() -> Facts {
        let mut facts = Facts::default();
        for (name, value) in [
            ("os", "linux"),
            ("arch", "x86_64"),
            ("tool.python", "3.11.7"),
            ("tool.gcc", "12.2.0-14+deb12u1"),
            ("gpu", "NVIDIA GeForce RTX 4090"),
            ("gpu", "Tesla T4"),
            ("cpus", "16"),
            ("memory", "17179869184"),
            ("label.team", "Red"),
            ("sandbox", "strict"),
        ] {
            facts.add(name, value);
        }
        facts
    }

    fn fits(selector: &str) -> bool {
        selector.parse::<Selector>().unwrap_or_else(|error| panic!("{selector}: {error}")).matches(&machine())
    }

    #[test]
    fn a_machine_fits_when_every_term_holds() {
        for good in [
            "os=linux,gpu,tool.python>=3.11",
            " os = Linux , !container ",
            "tool.python<3.12,tool.python>3.9",
            "tool.gcc>=12.2",
            "gpu~4090,gpu~t4",
            "gpu=tesla t4",
            "cpus>=16,cpus<=16",
            "memory>=16G,memory<17G",
            "label.team=red,label.team!=blue",
            "os!=windows,container!=docker",
            "!browser,sandbox=strict",
        ] {
            assert!(fits(good), "{good}");
        }
        for bad in [
            "os=windows",
            "tool.python>=3.12",
            "tool.node",
            "!gpu",
            "gpu!=tesla t4",
            "gpu=4090",
            "memory>16G",
            "browser~chrom",
            "label.team=re",
        ] {
            assert!(!fits(bad), "{bad}");
        }
        assert!(fits("os=linux") && Selector::default().matches(&Facts::default()));
        let missed = "os=linux,gpu~a100".parse::<Selector>().unwrap();
        assert_eq!(missed.misses(&machine()).unwrap().to_string(), "gpu~a100");
    }

    #[test]
    fn what_is_no_selector_says_why() {
        let why = |text: &str| text.parse::<Selector>().unwrap_err();
        assert_eq!(why(""), SelectorError::Empty);
        assert_eq!(why("os=linux,,gpu"), SelectorError::Empty);
        assert_eq!(why("oss=linux"), SelectorError::Unknown("oss".into()));
        assert!(why("label.").to_string().contains("label.NAME"));
        for malformed in ["os=", "=linux", "os==linux", "!os=linux", "os=>3", "os=a\u{7}", "g pu", "!"] {
            assert!(matches!(why(malformed), SelectorError::Malformed(_)), "{malformed}");
        }
        assert_eq!(why(&"gpu,".repeat(20)), SelectorError::TooLong);
        assert_eq!(why(&"g".repeat(SELECTOR_BYTES + 1)), SelectorError::TooLong);
    }

    #[test]
    fn versions_are_compared_number_by_number() {
        let rising = ["1", "1.0.1", "1.2", "1.10", "2rc1", "2.0", "2.0.0.1", "3.9", "3.11", "20240101", "99999999999999999999999"];
        for pair in rising.windows(2) {
            assert_eq!(compare_versions(pair[0], pair[1]), Ordering::Less, "{pair:?}");
        }
        for (a, b) in [("3.11", "3.11.0"), ("v1.2", "1.2"), ("1-2", "1.2"), ("007", "7"), ("1K", "1024"), ("", "0")] {
            assert_eq!(compare_versions(a, b), Ordering::Equal, "{a} {b}");
        }
    }

    fn term() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            proptest::sample::select(NAMES.as_slice()).prop_map(str::to_owned),
            (proptest::sample::select(PREFIXES.as_slice()), "[a-zA-Z0-9_-]{1,8}").prop_map(|(prefix, rest)| format!("{prefix}{rest}")),
        ];
        let test = prop_oneof![
            Just(String::new()),
            (proptest::sample::select(Compare::ALL.as_slice()), "[a-zA-Z0-9.]{1,8}")
                .prop_map(|((sign, _), value)| format!("{sign}{value}")),
        ];
        (any::<bool>(), name, test).prop_map(|(negated, name, test)| if negated { format!("!{name}") } else { format!("{name}{test}") })
    }

    fn facts() -> impl Strategy<Value = Facts> {
        let name = proptest::sample::select(NAMES.as_slice());
        proptest::collection::vec((name, "[a-z0-9.]{1,4}"), 0..12).prop_map(|pairs| {
            let mut facts = Facts::default();
            pairs.into_iter().for_each(|(name, value)| facts.add(name, value));
            facts
        })
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}", facts in facts()) {
            if let Ok(selector) = text.parse::<Selector>() {
                let _ = selector.matches(&facts);
                prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
            }
        }

        #[test]
        fn a_selector_reads_back_as_itself_whatever_the_order(mut terms in proptest::collection::vec(term(), 1..8), facts in facts()) {
            let selector: Selector = terms.join(",").parse().unwrap();
            prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector.clone());
            terms.reverse();
            prop_assert_eq!(terms.join(" , ").parse::<Selector>().unwrap(), selector.clone());
            // All terms together hold when each of them does.
            let each = terms.iter().all(|term| term.parse::<Selector>().unwrap().matches(&facts));
            prop_assert_eq!(selector.matches(&facts), each);
            prop_assert_eq!(selector.misses(&facts).is_none(), each);
        }

        #[test]
        fn comparing_versions_is_an_order(a in "[0-9a-z.]{0,8}", b in "[0-9a-z.]{0,8}", c in "[0-9a-z.]{0,8}") {
            prop_assert_eq!(compare_versions(&a, &b), compare_versions(&b, &a).reverse());
            if compare_versions(&a, &b).is_le() && compare_versions(&b, &c).is_le() {
                prop_assert!(compare_versions(&a, &c).is_le());
            }
        }
    }
}
