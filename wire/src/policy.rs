//! What a node allows.
//!
//! The hub sends a [`SandboxPolicy`], the node's own file is the ceiling, and [`Policy::within`] is the stricter of both.
//! Rules are prefixes of parsed commands. They decide when to refuse; they are guard rails against accidents, not a
//! boundary: a program that may run can run others. What *can* happen is decided by the sandbox.

use bytes::Bytes;
use prost::Message;

use crate::{
    limits,
    schema::{CommandRule, SandboxMode, SandboxPolicy, TaskRequest, task_request::Kind},
};

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
    /// There is an allow list, and the script cannot be taken apart with certainty.
    #[error("this node allows listed commands only, and this script cannot be taken apart with certainty; send it as argv")]
    Unparsable,
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
            Self::Unparsable => "policy_unparsable",
            Self::TooWeak => "policy_sandbox",
        }
    }
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

    /// The same policy under a node's own ceiling: both deny lists count, both allow lists must agree, and the stricter mode,
    /// the fewer slots and the shorter time hold. The hash stays the hub's: it names what the hub knew.
    #[must_use]
    pub fn within(mut self, ceiling: &SandboxPolicy) -> Self {
        self.rules.deny.extend(ceiling.deny.iter().cloned());
        if ceiling.mode() == SandboxMode::Strict {
            self.rules.set_mode(SandboxMode::Strict);
        }
        if !ceiling.allow.is_empty() {
            self.rules.allow =
                if self.rules.allow.is_empty() { ceiling.allow.clone() } else { intersect(&self.rules.allow, &ceiling.allow) };
        }
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

    /// Whether a task may run.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn permits(&self, request: &TaskRequest) -> Result<(), Refusal> {
        if self.rules.mode() == SandboxMode::Strict && request.mode() != SandboxMode::Strict {
            return Err(Refusal::TooWeak);
        }
        let Some(Kind::Shell(shell)) = &request.kind else { return Ok(()) };
        if shell.script.is_empty() {
            return self.permits_all(std::slice::from_ref(&shell.argv));
        }
        let (commands, certain) = commands_of(&shell.script);
        if !self.rules.allow.is_empty() && !certain {
            return Err(Refusal::Unparsable);
        }
        self.permits_all(&commands)
    }

    fn permits_all(&self, commands: &[Vec<String>]) -> Result<(), Refusal> {
        for argv in commands {
            if let Some(rule) = self.rules.deny.iter().find(|rule| matches(rule, argv)) {
                let reason = if rule.reason.is_empty() { String::new() } else { format!(": {}", rule.reason) };
                return Err(Refusal::Denied { rule: rule.prefix.join(" "), reason });
            }
            if !self.rules.allow.is_empty() && !self.rules.allow.iter().any(|rule| matches(rule, argv)) {
                return Err(Refusal::NotAllowed(crate::text::clean(&argv.join(" "), limits::NAME_BYTES)));
            }
        }
        Ok(())
    }
}

/// The hash that names an encoded policy.
pub fn hash(encoded: &[u8]) -> [u8; 32] {
    blake3::derive_key("cortex-mesh v1 policy", encoded)
}

/// The encoded form, as it is signed.
pub fn encode(policy: &SandboxPolicy) -> Bytes {
    policy.encode_to_vec().into()
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
            if matches(short, &long.prefix) {
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
    let same_program = program == first || (!first.contains('/') && program.rsplit('/').next() == Some(first));
    same_program && arguments.len() >= rest.len() && arguments.iter().zip(rest).all(|(a, b)| a == b)
}

/// The simple commands of a shell script, as far as they can be seen without running it, and whether that is certain: no
/// expansion, substitution, redirection, assignment or keyword was met.
pub fn commands_of(script: &str) -> (Vec<Vec<String>>, bool) {
    let mut parser = Splitter::default();
    let mut chars = script.chars().peekable();
    while let Some(c) = chars.next() {
        match (parser.quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => parser.quote = None,
            (Some('\''), _) => parser.push(c),
            (_, '\\') => match chars.next() {
                Some('\n') | None => {}
                Some(next) => parser.push(next),
            },
            (_, '$') if chars.peek() == Some(&'(') => parser.uncertain_break(),
            (_, '`') => parser.uncertain_break(),
            (_, '$') => {
                parser.certain = false;
                parser.push(c);
            }
            (Some(_), _) => parser.push(c),
            (None, '\'' | '"') => {
                parser.quote = Some(c);
                parser.in_word = true;
            }
            (None, ' ' | '\t') => parser.end_word(),
            (None, ';' | '\n' | '|' | '&') => parser.end_command(),
            (None, '(' | ')' | '{' | '}' | '<' | '>') => parser.uncertain_break(),
            (None, '#') if !parser.in_word => while chars.next_if(|c| *c != '\n').is_some() {},
            (None, '*' | '?' | '[' | '~' | '=' | '!') => {
                parser.certain = false;
                parser.push(c);
            }
            (None, _) => parser.push(c),
        }
    }
    parser.certain &= parser.quote.is_none();
    parser.end_command();
    (parser.commands, parser.certain)
}

#[derive(Debug)]
struct Splitter {
    commands: Vec<Vec<String>>,
    words: Vec<String>,
    word: String,
    in_word: bool,
    quote: Option<char>,
    certain: bool,
}

impl Default for Splitter {
    fn default() -> Self {
        Self { commands: vec![], words: vec![], word: String::new(), in_word: false, quote: None, certain: true }
    }
}

impl Splitter {
    const KEYWORDS: [&'static str; 14] =
        ["if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "function", "exec"];

    fn push(&mut self, c: char) {
        self.word.push(c);
        self.in_word = true;
    }

    fn end_word(&mut self) {
        if !std::mem::take(&mut self.in_word) {
            return;
        }
        let word = std::mem::take(&mut self.word);
        if self.words.is_empty() && Self::KEYWORDS.contains(&word.as_str()) {
            self.certain = false;
        } else if self.words.is_empty() && word.contains('=') {
            self.certain = false; // an assignment in front of the command
        } else {
            self.words.push(word);
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        if !self.words.is_empty() {
            self.commands.push(std::mem::take(&mut self.words));
        }
    }

    fn uncertain_break(&mut self) {
        self.certain = false;
        self.end_command();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::ShellTask;
    use proptest::prelude::*;

    fn rule(words: &str) -> CommandRule {
        CommandRule { prefix: words.split(' ').map(str::to_owned).collect(), reason: String::new() }
    }

    fn script(text: &str) -> TaskRequest {
        let shell = ShellTask { script: text.into(), ..ShellTask::default() };
        TaskRequest { mode: SandboxMode::Permissive.into(), kind: Some(Kind::Shell(shell)), ..TaskRequest::default() }
    }

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        Policy::new(SandboxPolicy {
            mode: SandboxMode::Permissive.into(),
            allow: allow.iter().map(|r| rule(r)).collect(),
            deny: deny.iter().map(|r| rule(r)).collect(),
            ..SandboxPolicy::default()
        })
    }

    #[test]
    fn a_rule_is_a_prefix_of_words() {
        let argv = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(matches(&rule("git push"), &argv("/usr/bin/git push origin")));
        assert!(!matches(&rule("git push"), &argv("git pull")));
        assert!(!matches(&rule("git push"), &argv("git")));
        assert!(!matches(&rule("/bin/rm"), &argv("rm -r")));
        assert!(!matches(&CommandRule::default(), &argv("rm")));
    }

    #[test]
    fn deny_rules_see_through_quotes_paths_and_chains() {
        let policy = policy(&[], &["rm -rf"]);
        for text in [
            "rm -rf x",
            "'rm' -rf x",
            "/bin/rm -rf x",
            "true && rm -rf x",
            "a\nrm -rf x",
            "echo $(rm -rf x)",
            "(rm -rf x)",
            "if true; then rm -rf x; fi",
            "X=1 rm -rf x",
        ] {
            assert_eq!(policy.permits(&script(text)).map_err(|r| r.code()), Err("policy_denied"), "{text}");
        }
        assert_eq!(policy.permits(&script("echo rm -rf")), Ok(()));
    }

    #[test]
    fn an_allow_list_wants_certainty() {
        let policy = policy(&["echo", "git status"], &[]);
        assert_eq!(policy.permits(&script("echo 'a; b' && git status -s")), Ok(()));
        assert_eq!(policy.permits(&script("git push")).map_err(|r| r.code()), Err("policy_not_allowed"));
        for text in ["echo $HOME", "echo `id`", "echo > x", "X=1 echo", "echo *", "echo 'open"] {
            assert_eq!(policy.permits(&script(text)).map_err(|r| r.code()), Err("policy_unparsable"), "{text}");
        }
    }

    #[test]
    fn the_ceiling_only_tightens() {
        let hub = policy(&["git"], &["git push"]);
        let ceiling = SandboxPolicy {
            allow: vec![rule("git status"), rule("ls")],
            deny: vec![rule("git status -x")],
            task_slots: 2,
            ..SandboxPolicy::default()
        };
        let both = hub.clone().within(&ceiling);
        assert_eq!(both.hash(), hub.hash());
        assert_eq!(both.rules().task_slots, 2);
        assert_eq!(both.permits(&script("git status")), Ok(()));
        for text in ["ls", "git log", "git push", "git status -x"] {
            assert!(both.permits(&script(text)).is_err(), "{text}");
        }
        let disjoint = policy(&["git"], &[]).within(&SandboxPolicy { allow: vec![rule("ls")], ..SandboxPolicy::default() });
        assert!(disjoint.permits(&script("git")).is_err() && disjoint.permits(&script("ls")).is_err());
        let strict = policy(&[], &[]).within(&SandboxPolicy { mode: SandboxMode::Strict.into(), ..SandboxPolicy::default() });
        assert_eq!(strict.permits(&script("true")), Err(Refusal::TooWeak));
    }

    proptest! {
        #[test]
        fn any_script_is_taken_apart(text in "\\PC{0,80}") {
            let _ = commands_of(&text);
        }
    }
}
