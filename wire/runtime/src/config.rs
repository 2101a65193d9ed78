//! Settings of a program: one YAML file, the environment over it, flags over both.
//!
//! A program describes its settings as one struct that derives `Default`, `Serialize` and `Deserialize` with
//! `#[serde(default, deny_unknown_fields)]`. What is not in the file keeps its default; an unknown key is refused with its line and the
//! nearest known one. A key `log.filter` is also `PREFIX_LOG_FILTER` in the environment, read as YAML. Flags are the program's
//! own business: it assigns them last.
//!
//! Each program also has an example file that documents every key: prose behind `# `, settings at their default behind `#`
//! without a space. [`check_example`] is the test that keeps it true.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Largest file that is read.
const FILE_BYTES: u64 = 1024 * 1024;

/// Why settings cannot be used. Every variant says where to look.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file system said no.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody writes that much by hand.
    #[error("{path} is larger than 1 MiB: this is not a configuration file")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A key that no setting has.
    #[error("unknown key `{key}` in {file} line {line}{hint}")]
    UnknownKey {
        /// As written.
        key: String,
        /// The file's name.
        file: String,
        /// Counted from 1.
        line: u64,
        /// "; did you mean …?" or the list of what is known.
        hint: String,
    },
    /// Not YAML, or a value of the wrong kind.
    #[error("{file} line {line}: {message}")]
    Invalid {
        /// The file's name.
        file: String,
        /// Counted from 1; 0 when it is about the whole file.
        line: u64,
        /// What is wrong.
        message: String,
    },
    /// A value in the environment that its setting cannot take.
    #[error("the environment variable {variable} cannot be used: {message}")]
    Environment {
        /// Its name.
        variable: String,
        /// What is wrong.
        message: String,
    },
}

/// What a program's settings must derive.
pub trait Settings: Serialize + DeserializeOwned + Default {}

impl<T: Serialize + DeserializeOwned + Default> Settings for T {}

/// The settings of `path` (defaults without one) under the process's environment.
///
/// # Errors
/// [`ConfigError`].
pub fn load<T: Settings>(path: Option<&Path>, prefix: &str) -> Result<T, ConfigError> {
    let settings = path.map(read).transpose()?.unwrap_or_default();
    let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    overlay(settings, prefix, environment)
}

/// The settings of one file.
///
/// # Errors
/// [`ConfigError`].
pub fn read<T: Settings>(path: &Path) -> Result<T, ConfigError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES + 1).read_to_string(&mut text))
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > FILE_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    parse(&text, &path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
}

/// The settings in a text; `file` is what messages call it.
///
/// # Errors
/// [`ConfigError::UnknownKey`], [`ConfigError::Invalid`].
pub fn parse<T: Settings>(text: &str, file: &str) -> Result<T, ConfigError> {
    let written: Option<T> = serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|error| explain(&error, file))?;
    Ok(written.unwrap_or_default())
}

/// `settings` with what the environment says. Variables that name no setting are left alone: they may be somebody else's.
///
/// # Errors
/// [`ConfigError::Environment`].
pub fn overlay<T: Settings>(settings: T, prefix: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<T, ConfigError> {
    let keys = keys::<T>();
    let mut settings = settings;
    for (variable, text) in environment {
        let Some(key) = keys.iter().find(|key| variable == variable_of(prefix, key)) else { continue };
        let refuse = |message: String| ConfigError::Environment { variable: variable.clone(), message };
        let before = serde_json::to_value(&settings).map_err(|error| refuse(error.to_string()))?;
        let with = |value: Value| serde_json::from_value::<T>(set(before.clone(), key, value));
        // As YAML first (`3`, `true`, `[a, b]`), then as the plain text it is (a name made of digits).
        let as_yaml = serde_saphyr::from_str_with_options(&text, yaml_options()).ok().map(&with);
        settings = match as_yaml {
            Some(Ok(settings)) => settings,
            failed => with(Value::String(text)).map_err(|plain| match failed {
                Some(Err(error)) => refuse(error.to_string()),
                _ => refuse(plain.to_string()),
            })?,
        };
    }
    Ok(settings)
}

/// Every key of the settings, nested ones with dots.
pub fn keys<T: Settings>() -> Vec<String> {
    fn walk(value: &Value, path: &str, out: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, inner) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(inner, &path, out);
                }
            }
            _ => out.push(path.to_owned()),
        }
    }
    let mut out = Vec::new();
    walk(&serde_json::to_value(T::default()).unwrap_or_default(), "", &mut out);
    out
}

/// The environment variable of a key.
pub fn variable_of(prefix: &str, key: &str) -> String {
    format!("{prefix}_{}", key.replace(['.', '-'], "_").to_uppercase())
}

/// Whether an example file is true: it parses as it stands and with every setting in it switched on, and mentions every key.
///
/// # Errors
/// What is wrong, for the test that calls this.
pub fn check_example<T: Settings>(example: &str) -> Result<(), String> {
    parse::<T>(example, "example").map_err(|error| error.to_string())?;
    let switched_on: String = example.lines().map(|line| format!("{}\n", switch_on(line))).collect();
    parse::<T>(&switched_on, "example, switched on").map_err(|error| error.to_string())?;
    for key in keys::<T>() {
        let last = key.rsplit('.').next().unwrap_or(&key);
        if !switched_on.lines().any(|line| line.trim_start().starts_with(&format!("{last}:"))) {
            return Err(format!("the example does not mention `{key}`"));
        }
    }
    Ok(())
}

fn switch_on(line: &str) -> &str {
    match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) || setting.starts_with("  ") => setting,
        _ => line,
    }
}

fn set(mut settings: Value, key: &str, value: Value) -> Value {
    let mut place = &mut settings;
    for name in key.split('.') {
        place = &mut place[name];
    }
    *place = value;
    settings
}

/// Small enough that no file of 1 MiB becomes a large structure.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_documents: 1,
            max_nodes: 50_000,
            max_aliases: 64,
            max_anchors: 64,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 1_000,
            max_replay_stack_depth: 4,
        },
        strict_booleans: true,
        with_snippet: false,
    }
}

fn explain(error: &serde_saphyr::Error, file: &str) -> ConfigError {
    let error = error.without_snippet();
    let line = error.location().map_or(0, |at| at.line());
    if let serde_saphyr::Error::SerdeUnknownField { field, expected, .. } = error {
        return ConfigError::UnknownKey { key: field.clone(), file: file.to_owned(), line, hint: hint(field, expected) };
    }
    ConfigError::Invalid { file: file.to_owned(), line, message: error.to_string() }
}

/// The nearest known key when one is near, otherwise all of them.
fn hint(key: &str, known: &[&str]) -> String {
    let distance = |name: &&&str| strsim::damerau_levenshtein(key, name);
    match known.iter().min_by_key(distance) {
        Some(nearest) if distance(&nearest) <= 1 + key.len() / 3 => format!("; did you mean `{nearest}`?"),
        _ => format!("; known here: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        invite: Option<String>,
        name: String,
        retries: Option<u32>,
        list: Vec<String>,
        log: Log,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Log {
        filter: String,
    }

    fn refused(text: &str) -> String {
        parse::<Sample>(text, "peer.yaml").unwrap_err().to_string()
    }

    fn under(environment: &[(&str, &str)]) -> Result<Sample, ConfigError> {
        overlay(Sample::default(), "APP", environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn what_is_not_written_keeps_its_default() {
        assert_eq!(parse::<Sample>("", "f").unwrap(), Sample::default());
        assert_eq!(parse::<Sample>("# nothing\n", "f").unwrap(), Sample::default());
        let sample: Sample = parse("name: n\nlog:\n  filter: debug\n", "f").unwrap();
        assert_eq!((sample.name.as_str(), sample.log.filter.as_str()), ("n", "debug"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        assert_eq!(refused("name: n\n\ninvit: x\n"), "unknown key `invit` in peer.yaml line 3; did you mean `invite`?");
        assert_eq!(refused("log:\n  fliter: x\n"), "unknown key `fliter` in peer.yaml line 2; did you mean `filter`?");
        assert!(refused("zzzzzzzz: 1\n").contains("known here: invite, name"));
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_line() {
        assert!(refused("name: n\nretries: often\n").starts_with("peer.yaml line 2: "));
        assert!(refused("- a\n").starts_with("peer.yaml line 1: "));
        assert!(refused("name: [a\n").contains("line"));
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        assert!(refused("name: a\nname: b\n").contains("duplicate"));
    }

    #[test]
    fn aliases_do_not_multiply() {
        let bomb = "list: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
            + &(b'b'..=b'i')
                .map(|c| {
                    let (this, before) = (c as char, (c - 1) as char);
                    format!("{this}: &{this} [*{before},*{before},*{before},*{before},*{before},*{before},*{before},*{before}]\n")
                })
                .collect::<String>();
        assert!(parse::<Sample>(&bomb, "f").is_err());
        assert!(parse::<Value>(&bomb, "f").is_err());
    }

    #[test]
    fn a_file_of_more_than_a_mebibyte_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peer.yaml");
        std::fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(matches!(read::<Sample>(&path), Err(ConfigError::TooLarge { .. })));
        assert!(matches!(read::<Sample>(&dir.path().join("none")), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let sample = under(&[
            ("APP_NAME", "123"),
            ("APP_RETRIES", "7"),
            ("APP_LIST", "[a, b]"),
            ("APP_LOG_FILTER", "debug"),
            ("APP_INVITE", "x: y"),
            ("APP_OTHER", "left alone"),
        ])
        .unwrap();
        assert_eq!((sample.name.as_str(), sample.retries, sample.log.filter.as_str()), ("123", Some(7), "debug"));
        assert_eq!(sample.list, ["a", "b"]);
        assert_eq!(sample.invite.as_deref(), Some("x: y"));
        let refused = under(&[("APP_RETRIES", "often")]).unwrap_err().to_string();
        assert!(refused.starts_with("the environment variable APP_RETRIES cannot be used: "), "{refused}");
    }

    #[test]
    fn an_example_must_parse_and_mention_every_key() {
        let good = "# A program.\n#invite: x\nname: y\n#retries: 3\n#list: []\n#log:\n#  filter: info\n";
        assert_eq!(check_example::<Sample>(good), Ok(()));
        assert!(check_example::<Sample>(&good.replace("#list: []\n", "")).unwrap_err().contains("`list`"));
        assert!(check_example::<Sample>(&good.replace("#retries: 3", "#retries: many")).is_err());
        assert!(check_example::<Sample>(&good.replace("#list", "#liste")).is_err());
    }
}
