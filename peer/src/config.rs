//! The settings of `cortex-peer`: one YAML file, `CORTEX_PEER_*` in the environment over it, flags over both.
//!
//! [`EXAMPLE`] documents every key; a test keeps it true.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use cortex_runtime::{
    config::{self, ConfigError},
    reach::{Network, NetworkConfig},
    telemetry::LogConfig,
};
use cortex_wire::{
    invite::RelayEndpoint,
    limits, policy,
    schema::{CommandRule, SandboxMode, SandboxPolicy},
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{browser::Allowed, task::Bounds};

/// Every key with its default and what it is for, printed by `cortex-peer config example`.
pub const EXAMPLE: &str = include_str!("../assets/peer.yaml");

/// What variables in the environment begin with.
pub const PREFIX: &str = "CORTEX_PEER";

/// The settings. The example file documents each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerConfig {
    /// To be redeemed, once.
    pub invite: Option<String>,
    /// A wish for the node's name.
    pub name: Option<String>,
    /// Key, journal, output. None: [`default_state_dir`].
    pub state_dir: Option<PathBuf>,
    /// None: `workspace` in the state folder.
    pub workspace_dir: Option<PathBuf>,
    /// Instead of those that the hub names; `host:port#key` each.
    pub relays: Vec<String>,
    /// How relays are reached.
    pub network: NetworkConfig,
    /// None: for ever.
    pub max_retries: Option<u32>,
    /// Run although the user is root.
    pub allow_root: bool,
    /// What this node allows, whatever the hub says.
    pub policy: PolicyConfig,
    /// For scripts that name no shell.
    pub shell: String,
    /// Variables that tasks see, besides the harmless ones.
    pub environment: Vec<String>,
    /// How much output is kept.
    pub output: OutputConfig,
    /// What pages are shown with.
    pub browser: BrowserConfig,
    /// Logs.
    pub log: LogConfig,
}

/// How browsers are run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrowserConfig {
    /// Browser actions are taken.
    pub enabled: bool,
    /// None: found by the search path.
    pub program: Option<PathBuf>,
    /// Without a window.
    pub headless: bool,
    /// Closed when it was not used for this long.
    pub idle_s: u64,
    /// What one browser may download, all files together, in MiB.
    pub download_mib: u64,
    /// Networks that pages may reach besides the public one.
    pub allow_addresses: Vec<String>,
}

impl Default for BrowserConfig {
    fn default() -> Self {
        Self { enabled: true, program: None, headless: true, idle_s: 900, download_mib: 4096, allow_addresses: Vec::new() }
    }
}

/// The node's own policy: the ceiling of what the hub can allow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// The weakest sandbox that is accepted.
    pub mode: Mode,
    /// Empty: everything that is not denied.
    pub allow: Vec<Rule>,
    /// A person must say yes first; wins over `allow`.
    pub ask: Vec<Rule>,
    /// Wins over both.
    pub deny: Vec<Rule>,
    /// The same as `ask` for a short list of dangerous commands, where a program asks for a task.
    pub ask_dangerous: bool,
    /// Hosts that sandboxed tasks may reach when the hub grants them, too.
    pub network: Vec<String>,
    /// What sandboxed tasks may read besides the system.
    pub readable: Vec<PathBuf>,
    /// Tasks at the same time.
    pub task_slots: u32,
    /// 0: none.
    pub run_timeout_s: u64,
}

/// How much of each stream of a task is kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// Of its beginning.
    pub head_mib: u32,
    /// Of its end.
    pub tail_mib: u32,
}

/// The weakest sandbox that a node accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Tasks run as the peer's user.
    #[default]
    Permissive,
    /// Sandboxed, or not at all.
    Strict,
}

/// The beginning of a command: text, taken apart as a shell would, or words; or these as `prefix`, with a reason and examples that are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Rule {
    prefix: Vec<String>,
    reason: String,
    matching: Vec<String>,
    not_matching: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Bare(Prefix),
    Full(Explained),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Prefix {
    Text(String),
    Words(Vec<String>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Explained {
    prefix: Prefix,
    #[serde(default)]
    reason: String,
    #[serde(default, rename = "match")]
    matching: Vec<String>,
    #[serde(default, rename = "not_match")]
    not_matching: Vec<String>,
}

impl Prefix {
    fn words(self) -> Result<Vec<String>, String> {
        let words = match self {
            Self::Words(words) => words,
            Self::Text(text) => policy::words_of(&text)
                .ok_or_else(|| format!("the rule {text:?} is not one plain command; write it as a list of words: [rm, -rf, /]"))?,
        };
        if words.is_empty() || words[0].is_empty() { Err("a rule needs at least the name of a program".into()) } else { Ok(words) }
    }
}

impl TryFrom<Written> for Rule {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Explained { prefix, reason, matching, not_matching } = match written {
            Written::Full(full) => full,
            Written::Bare(prefix) => Explained { prefix, reason: String::new(), matching: Vec::new(), not_matching: Vec::new() },
        };
        let prefix = prefix.words()?;
        policy::check_examples(&prefix, &matching, &not_matching).map_err(|error| error.to_string())?;
        Ok(Self { prefix, reason, matching, not_matching })
    }
}

impl From<Rule> for Written {
    fn from(Rule { prefix, reason, matching, not_matching }: Rule) -> Self {
        Self::Full(Explained { prefix: Prefix::Words(prefix), reason, matching, not_matching })
    }
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            invite: None,
            name: None,
            state_dir: None,
            workspace_dir: None,
            relays: Vec::new(),
            network: NetworkConfig::default(),
            max_retries: None,
            allow_root: false,
            policy: PolicyConfig::default(),
            shell: "/bin/sh".into(),
            environment: Vec::new(),
            output: OutputConfig::default(),
            browser: BrowserConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            allow: Vec::new(),
            ask: Vec::new(),
            deny: Vec::new(),
            ask_dangerous: false,
            network: Vec::new(),
            readable: Vec::new(),
            task_slots: 64,
            run_timeout_s: 0,
        }
    }
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { head_mib: 32, tail_mib: 32 }
    }
}

/// Settings that can be read and make no sense.
#[derive(Debug, thiserror::Error)]
#[error("`{key}` in the configuration: {reason}")]
pub struct SettingError {
    key: &'static str,
    reason: String,
}

impl PeerConfig {
    /// The file (defaults without one) under the environment, checked.
    ///
    /// # Errors
    /// [`ConfigError`], [`SettingError`].
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let settings: Self = config::load(path, PREFIX)?;
        settings.check()?;
        Ok(settings)
    }

    /// What no single value shows.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn check(&self) -> Result<(), SettingError> {
        let fault = |key, reason: &str| Err(SettingError { key, reason: reason.into() });
        let slots = usize::try_from(self.policy.task_slots).unwrap_or(usize::MAX);
        if slots == 0 || slots > limits::INVENTORY_ENTRIES / 2 {
            return fault("policy.task_slots", "from 1 to 256");
        }
        if [&self.policy.allow, &self.policy.ask, &self.policy.deny].iter().any(|list| list.len() > limits::POLICY_RULES) {
            return fault("policy", "at most 256 rules in a list");
        }
        if self.ceiling().encoded_len() > limits::POLICY_BYTES {
            return fault("policy", "more than 24 KiB of rules; use fewer or shorter ones");
        }
        if self.policy.network.len() > limits::POLICY_RULES || !self.policy.network.iter().all(|host| policy::is_grant(host)) {
            return fault("policy.network", "at most 256 of `name`, `name:port`, `*.name` or `*`");
        }
        let state = self.state_dir();
        if self.policy.readable.iter().any(|path| !path.is_absolute() || state.starts_with(path) || path.starts_with(&state)) {
            return fault("policy.readable", "absolute paths, none of which shows the peer's own state");
        }
        if self.output.head_mib.min(self.output.tail_mib) < 1 || self.output.head_mib.max(self.output.tail_mib) > 1024 {
            return fault("output", "from 1 to 1024 MiB");
        }
        if self.relays.len() > limits::RELAYS {
            return fault("relays", "at most 3");
        }
        if !(10..=7 * 24 * 3600).contains(&self.browser.idle_s) {
            return fault("browser.idle_s", "from 10 seconds to a week");
        }
        if self.browser.download_mib > 1024 * 1024 {
            return fault("browser.download_mib", "at most 1048576 (1 TiB)");
        }
        self.allowed_addresses()?;
        self.network()?;
        self.relays().map(|_| ())
    }

    /// What pages may reach besides the public network.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn allowed_addresses(&self) -> Result<Allowed, SettingError> {
        let parse = |text: &String| text.parse().map_err(|reason| SettingError { key: "browser.allow_addresses", reason });
        self.browser.allow_addresses.iter().map(parse).collect::<Result<_, _>>().map(Allowed)
    }

    /// How relays are reached: these settings, and the environment's proxies.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn network(&self) -> Result<Arc<Network>, SettingError> {
        Network::new(&self.network).map_err(|error| SettingError { key: "network.proxy", reason: error.to_string() })
    }

    /// The relays to use instead of the hub's.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn relays(&self) -> Result<Vec<RelayEndpoint>, SettingError> {
        let parse = |text: &String| text.parse().map_err(|reason| SettingError { key: "relays", reason });
        self.relays.iter().map(parse).collect()
    }

    /// Where key, journal and output are kept.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(default_state_dir)
    }

    /// Where tasks start.
    pub fn workspace_dir(&self) -> PathBuf {
        self.workspace_dir.clone().unwrap_or_else(|| self.state_dir().join("workspace"))
    }

    /// The node's own policy, as the hub sees it.
    pub fn ceiling(&self) -> SandboxPolicy {
        let rule = |rule: &Rule| {
            let reason = if rule.reason.is_empty() { "this node's own setting" } else { &rule.reason };
            CommandRule { prefix: rule.prefix.clone(), reason: reason.into() }
        };
        let mode = match self.policy.mode {
            Mode::Permissive => SandboxMode::Permissive,
            Mode::Strict => SandboxMode::Strict,
        };
        SandboxPolicy {
            mode: mode.into(),
            allow: self.policy.allow.iter().map(rule).collect(),
            ask: self.policy.ask.iter().map(rule).collect(),
            deny: self.policy.deny.iter().map(rule).collect(),
            ask_dangerous: self.policy.ask_dangerous,
            task_slots: self.policy.task_slots,
            run_timeout_ms: self.policy.run_timeout_s.saturating_mul(1000),
            sequence: 0,
            network: self.policy.network.clone(),
        }
    }

    /// How much output is kept.
    pub fn bounds(&self) -> Bounds {
        let bytes = |mib: u32| u64::from(mib) << 20;
        Bounds { head_bytes: bytes(self.output.head_mib), tail_bytes: bytes(self.output.tail_mib), ..Bounds::default() }
    }
}

/// Where state is kept when nothing is said.
pub fn default_state_dir() -> PathBuf {
    let system = PathBuf::from("/var/lib/cortex-peer");
    if rustix::process::geteuid().is_root() {
        return system;
    }
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")));
    state.map_or(system, |state| state.join("cortex-peer"))
}

/// Why an invite could not be erased from a file.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The file system said no.
    #[error("the used invite could not be erased from {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is written in a way that only a person should change.
    #[error("the invite in {0} works no more; please remove it by hand")]
    Unusual(PathBuf),
}

/// Takes a used invite out of a configuration file and leaves everything else as it is: comments, order, owner and mode.
///
/// # Errors
/// [`EraseError`]; the file is as it was then.
pub fn erase_invite(path: &Path) -> Result<(), EraseError> {
    let io_error = |source| EraseError::Io { path: path.to_owned(), source };
    // What a link points to is rewritten, not the link.
    let file = fs::canonicalize(path).map_err(io_error)?;
    let text = fs::read_to_string(&file).map_err(io_error)?;
    let Ok(before) = config::parse::<PeerConfig>(&text, "") else { return Err(EraseError::Unusual(path.to_owned())) };
    if before.invite.is_none() {
        return Ok(());
    }
    let erased = without_key(&text, "invite");
    // The proof that nothing else was touched, however the file is written.
    if config::parse::<PeerConfig>(&erased, "").ok() != Some(PeerConfig { invite: None, ..before }) {
        return Err(EraseError::Unusual(path.to_owned()));
    }
    replace(&file, erased.as_bytes()).map_err(io_error)
}

/// The text without a key at its left edge and without the indented lines that belong to it.
fn without_key(text: &str, key: &str) -> String {
    let mut inside = false;
    let is_key = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'));
    text.split_inclusive('\n')
        .filter(|line| {
            inside = is_key(line) || (inside && line.starts_with([' ', '\t']) && !line.trim_start().starts_with('#'));
            !inside
        })
        .collect()
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let staged = path.with_file_name(name);
    let _ = fs::remove_file(&staged);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
    let written = io::Write::write_all(&mut file, content)
        // Only root may give a file away; everybody else owns it already.
        .and_then(|()| std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid())).or(Ok(())))
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&staged, path));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&staged);
    })
}

/// Reads a file for `config check`.
///
/// # Errors
/// [`ConfigError`].
pub fn read(path: &Path) -> Result<PeerConfig, ConfigError> {
    config::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PeerConfig, String> {
        config::parse(text, "peer.yaml").map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_parses_and_mentions_every_key() {
        assert_eq!(config::check_example::<PeerConfig>(EXAMPLE), Ok(()));
        assert_eq!(parse(EXAMPLE), Ok(PeerConfig::default()));
    }

    #[test]
    fn a_rule_is_text_or_words() {
        let settings = parse("policy:\n  deny: [\"rm -rf 'a b'\", [git, push, '*']]\n").unwrap();
        let prefixes: Vec<_> = settings.ceiling().deny.into_iter().map(|rule| rule.prefix).collect();
        assert_eq!(prefixes, [vec!["rm", "-rf", "a b"], vec!["git", "push", "*"]]);
        for bad in ["a; b", "a $X", "", "a 'b"] {
            let refused = parse(&format!("policy:\n  deny: [{}]\n", serde_json::Value::from(bad))).unwrap_err();
            assert!(refused.contains("list of words"), "{refused}");
        }
    }

    #[test]
    fn a_rule_may_explain_itself_and_its_examples_must_hold() {
        let text = "policy:\n  ask:\n    - prefix: git push\n      reason: others see it\n      match: [git push origin]\n      not_match: [git pull]\n";
        let ask = parse(text).unwrap().ceiling().ask;
        assert_eq!((ask[0].prefix.join(" ").as_str(), ask[0].reason.as_str()), ("git push", "others see it"));
        let refused = parse(&text.replace("git push origin", "git -C x push")).unwrap_err();
        assert!(refused.contains("`git push`") && refused.contains("git -C x push"), "{refused}");
        assert!(parse(&text.replace("reason", "raison")).is_err());
    }

    #[test]
    fn the_environment_reaches_nested_keys() {
        let environment = [("CORTEX_PEER_POLICY_TASK_SLOTS", "2"), ("CORTEX_PEER_NAME", "7"), ("CORTEX_PEER_LOG_FORMAT", "json")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings: PeerConfig = config::overlay(parse("policy:\n  deny: [reboot]\n").unwrap(), PREFIX, environment).unwrap();
        assert_eq!((settings.policy.task_slots, settings.name.as_deref(), settings.policy.deny.len()), (2, Some("7"), 1));
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        for (text, key) in [
            ("policy:\n  task_slots: 0\n", "policy.task_slots"),
            ("output:\n  head_mib: 0\n", "output"),
            ("relays: [nonsense]\n", "relays"),
            ("network:\n  proxy: ftp://here\n", "network.proxy"),
            ("policy:\n  network: ['a b']\n", "policy.network"),
            ("policy:\n  readable: [/]\n", "policy.readable"),
        ] {
            let error = parse(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        assert!(PeerConfig::default().check().is_ok());
    }

    #[test]
    fn an_erased_invite_leaves_everything_else_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peer.yaml");
        let cases = [
            ("# mine\ninvite: cxi1_abc # once\nname: n   # mine, too\n", "# mine\nname: n   # mine, too\n"),
            ("name: n\ninvite: >-\n  cxi1_\n  abc\n# end\n", "name: n\n# end\n"),
            ("invite: \"cxi1_abc\"", ""),
            ("name: n\r\ninvite: x\r\nmax_retries: 3\r\n", "name: n\r\nmax_retries: 3\r\n"),
            ("invite :\n    'x'\npolicy:\n  task_slots: 3\n", "policy:\n  task_slots: 3\n"),
        ];
        for (before, after) in cases {
            fs::write(&path, before).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            erase_invite(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        erase_invite(&path).unwrap();
    }

    #[test]
    fn an_invite_written_in_an_unusual_way_is_left_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peer.yaml");
        for text in ["{invite: x, name: n}\n", "invite: |\n  a\n\n  b\nname: n\n"] {
            fs::write(&path, text).unwrap();
            if matches!(erase_invite(&path), Err(EraseError::Unusual(_))) {
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
            } else {
                assert!(read(&path).unwrap().invite.is_none());
            }
        }
    }
}
