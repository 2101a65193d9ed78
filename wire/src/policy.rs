//! What a node allows.
//!
//! The hub sends a [`SandboxPolicy`], the node's own file is the ceiling, and [`Policy::within`] is the stricter of both.
//! Rules are prefixes of parsed commands with three outcomes: a deny rule refuses, an ask rule wants a person's yes, everything else may run unless there is an
//! allow list that does not name it. The strictest rule that fits wins; a rule that *may* fit (`rm $x`) asks, and so does a script that cannot be taken
//! apart ([`script`]). They are guard rails against accidents, not a boundary: a program that may run can run others. What *can* happen is decided by the sandbox.

use bytes::Bytes;
use prost::Message;

use crate::{
    browser, limits,
    schema::{CommandRule, SandboxMode, SandboxPolicy, ShellTask, TaskRequest, task_request::Kind},
    text,
};
use script::{Command, Found, Script, Sort, Word};

pub mod approval;
pub mod danger;
pub mod script;

/// Why the policy refuses a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A deny rule matches.
    #[error("`{rule}` is denied by this node's policy{reason}")]
    Denied {
        /// The rule's words.
        rule: String,
        /// ": " and the rule's reason, or nothing.
        reason: String,
    },
    /// There is an allow list, and a command is not on it.
    #[error("`{0}` is not on this node's allow list")]
    NotAllowed(String),
    /// A weaker sandbox is asked for than the policy demands.
    #[error("this node runs tasks in STRICT mode only")]
    TooWeak,
}

impl Refusal {
    /// Stable code for APIs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "policy_denied",
            Self::NotAllowed(_) => "policy_not_allowed",
            Self::TooWeak => "policy_sandbox",
        }
    }
}

/// Why a person is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Question {
    /// An ask rule matches.
    #[error("this node's policy asks before `{rule}`{reason}")]
    Rule {
        /// The rule's words.
        rule: String,
        /// ": " and the rule's reason, or nothing.
        reason: String,
    },
    /// A program asks for a command of the list in [`danger`].
    #[error("`{command}` {danger}, and a program asks for it")]
    Dangerous {
        /// The command.
        command: String,
        /// What is dangerous about it.
        danger: &'static str,
    },
    /// A rule may match, or there is more to the script than can be seen.
    #[error("what this runs cannot be said before it runs{at}; plain commands, or argv, are not asked about")]
    Unparsable {
        /// " (at `…`)", or nothing.
        at: String,
    },
}

impl Question {
    /// Stable code for APIs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rule { .. } => "policy_ask",
            Self::Dangerous { .. } => "dangerous_command",
            Self::Unparsable { .. } => "policy_unparsable",
        }
    }

    fn unparsable(command: Option<&Command>) -> Self {
        Self::Unparsable { at: command.map(|command| format!(" (at `{}`)", command.shown())).unwrap_or_default() }
    }
}

/// What the policy says to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It may run.
    Allow,
    /// It may run when a person says so.
    Ask(Question),
    /// It may not.
    Deny(Refusal),
}

impl Outcome {
    /// Stable code for APIs; none: allowed.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Allow => None,
            Self::Ask(question) => Some(question.code()),
            Self::Deny(refusal) => Some(refusal.code()),
        }
    }
}

/// Whether a rule fits a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It does not.
    No,
    /// Only the shell will know.
    Maybe,
    /// It does.
    Yes,
}

/// A rule whose own examples do not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the rule `{rule}` {fault} its example `{example}`; correct the rule or the example")]
pub struct ExampleError {
    /// The rule's words.
    pub rule: String,
    /// "does not match" or "matches".
    pub fault: &'static str,
    /// The example.
    pub example: String,
}

/// A policy in force, with the hash that tasks are bound to.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    rules: SandboxPolicy,
    hub_hash: [u8; 32],
}

impl Policy {
    /// A policy as the hub sent it.
    pub fn new(policy: SandboxPolicy) -> Self {
        let hub_hash = hash(&policy.encode_to_vec());
        Self { rules: policy, hub_hash }
    }

    /// The same policy under a node's own ceiling: both deny lists count and both ask lists, both allow lists must agree, and the stricter mode,
    /// the hosts that both grant, the fewer slots and the shorter time hold. The hash stays the hub's: it names what the hub knew.
    #[must_use]
    pub fn within(mut self, ceiling: &SandboxPolicy) -> Self {
        self.rules.deny.extend(ceiling.deny.iter().cloned());
        self.rules.ask.extend(ceiling.ask.iter().cloned());
        self.rules.ask_dangerous |= ceiling.ask_dangerous;
        if ceiling.mode() == SandboxMode::Strict {
            self.rules.set_mode(SandboxMode::Strict);
        }
        if !ceiling.allow.is_empty() {
            self.rules.allow =
                if self.rules.allow.is_empty() { ceiling.allow.clone() } else { intersect(&self.rules.allow, &ceiling.allow) };
        }
        self.rules.network.retain(|host| ceiling.network.iter().any(|limit| covers(limit, host)));
        self.rules.task_slots = lower(self.rules.task_slots.into(), ceiling.task_slots.into()).try_into().unwrap_or(u32::MAX);
        self.rules.run_timeout_ms = lower(self.rules.run_timeout_ms, ceiling.run_timeout_ms);
        self
    }

    /// BLAKE3 of the hub's policy: every task names the policy it was signed under.
    pub fn hash(&self) -> [u8; 32] {
        self.hub_hash
    }

    /// The rules in force.
    pub fn rules(&self) -> &SandboxPolicy {
        &self.rules
    }

    /// What it says to a task.
    pub fn judge(&self, request: &TaskRequest) -> Outcome {
        self.judge_beyond(request, &[])
    }

    /// The same, where commands that begin with these words are not asked about. Empty: all are.
    pub fn judge_beyond(&self, request: &TaskRequest, approved: &[String]) -> Outcome {
        if self.rules.mode() == SandboxMode::Strict && request.mode() != SandboxMode::Strict {
            return Outcome::Deny(Refusal::TooWeak);
        }
        let shell = match &request.kind {
            Some(Kind::Shell(shell)) => shell,
            Some(Kind::Browser(task)) => return self.judge_browser(&task.order, approved),
            None => return Outcome::Allow,
        };
        let watch = self.rules.ask_dangerous && is_by_program(request);
        let rules = !(self.rules.allow.is_empty() && self.rules.ask.is_empty() && self.rules.deny.is_empty());
        if !watch && !rules {
            return Outcome::Allow;
        }
        let script = Script::of(shell);
        let mut asks = is_open_ended(shell, &script).then(|| self.judge_open_ended(request, &script, approved)).flatten();
        for command in &script.commands {
            match self.judge_command(command, watch, approved) {
                Outcome::Deny(refusal) => return Outcome::Deny(refusal),
                Outcome::Ask(question) => asks = asks.or(Some(question)),
                Outcome::Allow => {}
            }
        }
        let certain = script.readable && (script.plain || self.rules.allow.is_empty());
        let asks = asks.or_else(|| (!certain).then(|| Question::unparsable(None)));
        asks.map_or(Outcome::Allow, Outcome::Ask)
    }

    /// A shell that is fed from outside: a person who sits at one knows what is typed; of a program nobody does, so it asks wherever anything may be asked about or refused.
    fn judge_open_ended(&self, request: &TaskRequest, script: &Script, approved: &[String]) -> Option<Question> {
        let lists = self.rules.ask_dangerous || !(self.rules.ask.is_empty() && self.rules.deny.is_empty());
        let command = script.commands.iter().find(|command| command.is_fed_shell())?;
        let known = fit(approved, &command.words) == Fit::Yes;
        (lists && is_by_program(request) && !known)
            .then(|| Question::Dangerous { command: command.shown(), danger: "runs whatever is typed into it" })
    }

    /// As commands: `browser evaluate` can be on each list, or `browser` altogether. What a batch does counts, step by step.
    fn judge_browser(&self, order: &[u8], approved: &[String]) -> Outcome {
        let Ok(order) = browser::Order::parse(order) else { return Outcome::Ask(Question::unparsable(None)) };
        let steps = if let browser::Action::Batch { steps, .. } = &order.action { steps.as_slice() } else { &[] };
        let mut asks = None;
        for action in std::iter::once(&order.action).chain(steps) {
            let command = Command::new(vec![Word::plain("browser"), Word::plain(action.name())], Found::Written);
            match self.judge_command(&command, false, approved) {
                Outcome::Deny(refusal) => return Outcome::Deny(refusal),
                Outcome::Ask(question) => asks = asks.or(Some(question)),
                Outcome::Allow => {}
            }
        }
        asks.map_or(Outcome::Allow, Outcome::Ask)
    }

    fn judge_command(&self, command: &Command, watch: bool, approved: &[String]) -> Outcome {
        let words = &command.words;
        let denied = strictest(&self.rules.deny, words);
        if let Some((Fit::Yes, rule)) = denied {
            let (rule, reason) = shown(rule);
            return Outcome::Deny(Refusal::Denied { rule, reason });
        }
        if !self.rules.allow.is_empty() && command.found != Found::Perhaps {
            match strictest(&self.rules.allow, words) {
                Some((Fit::Yes, _)) => {}
                Some(_) => return Outcome::Ask(Question::unparsable(Some(command))),
                None => return Outcome::Deny(Refusal::NotAllowed(command.shown())),
            }
        }
        if fit(approved, words) == Fit::Yes {
            return Outcome::Allow;
        }
        match strictest(&self.rules.ask, words) {
            Some((Fit::Yes, rule)) => {
                let (rule, reason) = shown(rule);
                return Outcome::Ask(Question::Rule { rule, reason });
            }
            Some(_) => return Outcome::Ask(Question::unparsable(Some(command))),
            None if denied.is_some() => return Outcome::Ask(Question::unparsable(Some(command))),
            None => {}
        }
        if !watch {
            return Outcome::Allow;
        }
        match danger::of(command) {
            Some(danger) => Outcome::Ask(Question::Dangerous { command: command.shown(), danger }),
            // A program that only the shell will know may be any of the list.
            None if words[0].known().is_none() => Outcome::Ask(Question::unparsable(Some(command))),
            None => Outcome::Allow,
        }
    }
}

/// Whether a task is a shell that takes its commands while it runs, from a terminal or its input.
fn is_open_ended(shell: &ShellTask, script: &Script) -> bool {
    (shell.terminal.is_some() || shell.stdin) && script.commands.iter().any(Command::is_fed_shell)
}

/// Whether a program asked for a task, such as an AI: it came with a token, or through MCP.
pub fn is_by_program(request: &TaskRequest) -> bool {
    request.origin.as_ref().is_some_and(|origin| origin.via == "mcp" || !origin.token_id.is_empty())
}

/// The first rule of those that fit best.
fn strictest<'a>(rules: &'a [CommandRule], words: &[Word]) -> Option<(Fit, &'a CommandRule)> {
    let mut found: Option<(Fit, &CommandRule)> = None;
    for rule in rules {
        let fit = fit(&rule.prefix, words);
        if fit > found.map_or(Fit::No, |(fit, _)| fit) {
            found = Some((fit, rule));
        }
    }
    found
}

fn shown(rule: &CommandRule) -> (String, String) {
    let reason = if rule.reason.is_empty() { String::new() } else { format!(": {}", text::clean(&rule.reason, limits::NAME_BYTES)) };
    (text::clean(&rule.prefix.join(" "), limits::NAME_BYTES), reason)
}

/// The hash that names an encoded policy.
pub fn hash(encoded: &[u8]) -> [u8; 32] {
    blake3::derive_key("cortex-mesh v1 policy", encoded)
}

/// The encoded form, as it is signed.
pub fn encode(policy: &SandboxPolicy) -> Bytes {
    policy.encode_to_vec().into()
}

/// Whether a grant of `limit` holds for everything that `host` grants. Both are `name`, `name:port`, `*.name` or `*`; without a port: all.
pub fn covers(limit: &str, host: &str) -> bool {
    let (limit_name, limit_port) = split_port(limit);
    let (name, port) = split_port(host);
    let names = match limit_name.strip_prefix('*') {
        Some("") => true,
        Some(rest) => name.len() > rest.len() && name.to_ascii_lowercase().ends_with(&rest.to_ascii_lowercase()),
        None => limit_name.eq_ignore_ascii_case(name),
    };
    names && (limit_port.is_none() || limit_port == port)
}

/// A grant's name and port. An address of version 6 with a port is in brackets.
pub fn split_port(host: &str) -> (&str, Option<u16>) {
    let split = host.rsplit_once(':').filter(|(name, _)| !name.contains(':') || name.ends_with(']'));
    let (name, port) = match split.and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?))) {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    (name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name), port)
}

/// Whether a text can be a grant: letters, digits, dots, hyphens, colons; a star at most in front.
pub fn is_grant(host: &str) -> bool {
    let (name, port) = split_port(host);
    let rest = match name.strip_prefix('*') {
        Some("") => return port != Some(0),
        Some(rest) => rest.strip_prefix('.').unwrap_or_default(),
        None => name,
    };
    let is_sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '_');
    !rest.is_empty()
        && rest.len() <= 253
        && port != Some(0)
        && rest.chars().all(is_sound)
        && (!rest.contains(':') || rest.parse::<std::net::Ipv6Addr>().is_ok())
}

fn lower(a: u64, b: u64) -> u64 {
    match (a, b) {
        (0, limit) | (limit, 0) => limit,
        (a, b) => a.min(b),
    }
}

/// The longer of each pair of rules of which one is a prefix of the other. When nothing is left, one rule that matches nothing, because
/// an empty list would allow everything.
fn intersect(a: &[CommandRule], b: &[CommandRule]) -> Vec<CommandRule> {
    let mut out: Vec<CommandRule> = Vec::new();
    for x in a {
        for y in b {
            let (short, long) = if x.prefix.len() <= y.prefix.len() { (x, y) } else { (y, x) };
            if matches(short, &long.prefix) && !out.contains(long) {
                out.push(long.clone());
            }
        }
    }
    if out.is_empty() {
        out.push(CommandRule { prefix: vec!["\0".into()], reason: String::new() });
    }
    out
}

/// Whether the words of a rule begin the command. The first word matches the whole path or the file name.
pub fn matches(rule: &CommandRule, argv: &[String]) -> bool {
    let [first, rest @ ..] = rule.prefix.as_slice() else { return false };
    let Some((program, arguments)) = argv.split_first() else { return false };
    is_program(first, program) && arguments.len() >= rest.len() && arguments.iter().zip(rest).all(|(a, b)| a == b)
}

fn is_program(rule: &str, program: &str) -> bool {
    program == rule || (!rule.contains('/') && program.rsplit('/').next() == Some(rule))
}

/// The same for words of which only the shell may know what they will be.
pub fn fit(prefix: &[String], words: &[Word]) -> Fit {
    let [first, rest @ ..] = prefix else { return Fit::No };
    let Some((program, arguments)) = words.split_first() else { return Fit::No };
    let mut fit = match program.sort {
        Sort::Several => return Fit::Maybe,
        Sort::Unknown | Sort::Pattern => Fit::Maybe,
        Sort::Plain if is_program(first, &program.text) => Fit::Yes,
        Sort::Plain => return Fit::No,
    };
    let mut arguments = arguments.iter();
    for wanted in rest {
        match arguments.next() {
            None => return Fit::No,
            Some(word) => match word.sort {
                Sort::Several => return Fit::Maybe,
                Sort::Unknown | Sort::Pattern => fit = Fit::Maybe,
                Sort::Plain if word.text == *wanted => {}
                Sort::Plain => return Fit::No,
            },
        }
    }
    fit
}

/// Whether a rule does to its own examples what their author thinks: it fits a command of each of `matching`, and certainly none of any of `not_matching`.
///
/// # Errors
/// The first [`ExampleError`].
pub fn check_examples(prefix: &[String], matching: &[String], not_matching: &[String]) -> Result<(), ExampleError> {
    let best = |example: &String| Script::read(example).commands.iter().map(|command| fit(prefix, &command.words)).max().unwrap_or(Fit::No);
    let error = |example: &String, fault| ExampleError { rule: prefix.join(" "), fault, example: text::clean(example, limits::NAME_BYTES) };
    match (matching.iter().find(|example| best(example) != Fit::Yes), not_matching.iter().find(|example| best(example) != Fit::No)) {
        (Some(example), _) => Err(error(example, "does not match")),
        (None, Some(example)) => Err(error(example, "matches, or may match,")),
        (None, None) => Ok(()),
    }
}

/// The words of a text that is one plain command.
pub fn words_of(text: &str) -> Option<Vec<String>> {
    let script = Script::read(text);
    let written: Vec<&Command> = script.commands.iter().filter(|command| command.found == Found::Written).collect();
    match written.as_slice() {
        [command] if script.plain => Some(command.words.iter().map(|word| word.text.clone()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
