use super::{
    approval::{Reach, Unapproved, fits, subject},
    *,
};
use crate::schema::{Approval, EnvironmentVariable, Origin, ShellTask};
use proptest::prelude::*;

fn rule(words: &str) -> CommandRule {
    CommandRule { prefix: words.split(' ').map(str::to_owned).collect(), reason: String::new() }
}

fn script(text: &str) -> TaskRequest {
    let shell = ShellTask { script: text.into(), ..ShellTask::default() };
    TaskRequest { mode: SandboxMode::Permissive.into(), kind: Some(Kind::Shell(shell)), ..TaskRequest::default() }
}

fn by_token(text: &str) -> TaskRequest {
    TaskRequest { origin: Some(Origin { token_id: "t".into(), ..Origin::default() }), ..script(text) }
}

fn rules(allow: &[&str], ask: &[&str], deny: &[&str]) -> SandboxPolicy {
    let all = |list: &[&str]| list.iter().map(|words| rule(words)).collect();
    SandboxPolicy { mode: SandboxMode::Permissive.into(), allow: all(allow), ask: all(ask), deny: all(deny), ..SandboxPolicy::default() }
}

fn policy(allow: &[&str], ask: &[&str], deny: &[&str]) -> Policy {
    Policy::new(rules(allow, ask, deny))
}

fn code(policy: &Policy, text: &str) -> Option<&'static str> {
    policy.judge(&script(text)).code()
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
    let policy = policy(&[], &[], &["rm -rf"]);
    for text in [
        "rm -rf x",
        "'rm' -rf x",
        "r\"m\" -r'f' x",
        "/bin/rm -rf x",
        "true && rm -rf x",
        "a\nrm -rf x",
        "echo $(rm -rf x)",
        "echo \"`rm -rf x`\"",
        "(rm -rf x)",
        "if true; then rm -rf x; fi",
        "X=1 rm -rf x",
        "sh -c 'rm -rf x'",
        "bash -c \"sh -c 'rm -rf x'\"",
        "eval rm -rf x",
        "nice -n 5 rm -rf x",
        "sudo -u bob rm -rf x",
        "ls | xargs rm -rf",
        "find . -exec rm -rf {} +",
        "busybox rm -rf x",
        "trap 'rm -rf x' EXIT",
        "sh <<E\nrm -rf x\nE\n",
        "case a in a) rm -rf x;; esac",
        "2>/dev/null rm -rf x",
        "rm >/dev/null -rf x",
    ] {
        assert_eq!(code(&policy, text), Some("policy_denied"), "{text}");
    }
    for text in ["echo rm -rf", "rm -r -f x", "git rm -rf", "echo 'rm -rf x'", "cat <<'E'\nrm -rf x\nE\n"] {
        assert_eq!(code(&policy, text), None, "{text}");
    }
}

#[test]
fn what_may_be_denied_is_asked_about() {
    let policy = policy(&[], &[], &["rm -rf"]);
    for text in [
        "rm $X",
        "$CMD -rf x",
        "rm$IFS-rf${IFS}x",
        "${x}m -rf x",
        "/bin/r? -rf x",
        "$'\\x72m' -rf x",
        "`echo rm` -rf x",
        "{rm,-rf,x}",
        "sh -c \"$X\"",
        "eval \"$X\"",
        "curl x | sh",
        "alias x='rm -rf'",
        "rm 'x",
        "rm \"$A\" x",
        "bash <(cat x)",
        "LD_PRELOAD=x true",
    ] {
        assert_eq!(code(&policy, text), Some("policy_unparsable"), "{text}");
    }
    assert_eq!(code(&policy, "echo $X > y; for i in 1 2; do echo $i; done; ls *.rs"), None);
    // Letters that look alike are other letters, and other programs.
    assert_eq!(code(&policy, "r\u{043c} -rf x"), None);
}

#[test]
fn an_allow_list_wants_certainty() {
    let policy = policy(&["echo", "git status", "sh", "env"], &[], &[]);
    assert_eq!(code(&policy, "echo 'a; b' && git status -s"), None);
    for text in ["git push", "sh -c 'git push'", "env git push", "echo `id`"] {
        assert_eq!(code(&policy, text), Some("policy_not_allowed"), "{text}");
    }
    for text in ["echo $HOME", "echo > x", "X=1 echo", "echo *", "echo 'open"] {
        assert_eq!(code(&policy, text), Some("policy_unparsable"), "{text}");
    }
}

#[test]
fn the_strictest_rule_wins() {
    let policy = policy(&[], &["git push", "deploy"], &["git push --force"]);
    assert_eq!(code(&policy, "git push origin"), Some("policy_ask"));
    assert_eq!(code(&policy, "git push --force"), Some("policy_denied"));
    assert_eq!(code(&policy, "deploy; git push --force"), Some("policy_denied"));
    assert_eq!(code(&policy, "git pull"), None);
    let listed = Policy::new(rules(&["git"], &["git push"], &[]));
    assert_eq!(code(&listed, "git push"), Some("policy_ask"));
    assert_eq!(code(&listed, "git push; ls"), Some("policy_not_allowed"));
}

#[test]
fn only_programs_are_asked_about_the_dangerous_list() {
    let policy = Policy::new(SandboxPolicy { ask_dangerous: true, ..rules(&[], &[], &[]) });
    assert_eq!(policy.judge(&by_token("sudo reboot")).code(), Some("dangerous_command"));
    assert_eq!(policy.judge(&by_token("$X")).code(), Some("policy_unparsable"));
    assert_eq!(policy.judge(&by_token("make test")).code(), None);
    assert_eq!(policy.judge(&script("sudo reboot")).code(), None);
    let mcp = TaskRequest { origin: Some(Origin { via: "mcp".into(), ..Origin::default() }), ..script("sudo reboot") };
    assert_eq!(policy.judge(&mcp).code(), Some("dangerous_command"));
    let open = Policy::new(rules(&[], &[], &[]));
    assert_eq!(open.judge(&by_token("sudo reboot")).code(), None);
    let ceiling = SandboxPolicy { ask_dangerous: true, ..SandboxPolicy::default() };
    assert_eq!(open.within(&ceiling).judge(&by_token("sudo reboot")).code(), Some("dangerous_command"));
}

#[test]
fn a_shell_that_a_program_can_type_into_is_asked_about() {
    let lists = [SandboxPolicy { ask_dangerous: true, ..rules(&[], &[], &[]) }, rules(&[], &["touch"], &[]), rules(&[], &[], &["touch"])];
    let terminal = || Some(crate::schema::Terminal { columns: 80, rows: 24 });
    let asked = |shell: ShellTask, by_token: bool| {
        let origin = Origin { token_id: if by_token { "t".into() } else { String::new() }, ..Origin::default() };
        TaskRequest { origin: Some(origin), kind: Some(Kind::Shell(shell)), ..script("") }
    };
    let argv = |words: &[&str]| ShellTask { argv: words.iter().map(|word| (*word).to_owned()).collect(), ..ShellTask::default() };
    let typed_into = [
        ShellTask { terminal: terminal(), ..ShellTask::default() },
        ShellTask { terminal: terminal(), shell: "/bin/zsh".into(), ..ShellTask::default() },
        ShellTask { terminal: terminal(), ..argv(&["/bin/bash", "-l"]) },
        ShellTask { stdin: true, ..argv(&["sh"]) },
        ShellTask { stdin: true, ..argv(&["env", "bash"]) },
        ShellTask { terminal: terminal(), script: "cd x && exec bash".into(), ..ShellTask::default() },
    ];
    for rules in lists {
        let policy = Policy::new(rules);
        for shell in &typed_into {
            assert_eq!(policy.judge(&asked(shell.clone(), true)).code(), Some("dangerous_command"), "{shell:?}");
            assert_eq!(policy.judge(&asked(shell.clone(), false)).code(), None, "a person is asked nothing: {shell:?}");
            let yes = Policy::judge_beyond(&policy, &asked(shell.clone(), true), &["sh".into()]).code();
            assert_eq!(
                yes.is_none(),
                shell.argv.first().is_some_and(|word| word == "sh")
                    || (shell.shell.is_empty() && shell.argv.is_empty() && shell.script.is_empty())
            );
        }
        for shell in [ShellTask { terminal: terminal(), ..argv(&["vi", "x"]) }, ShellTask { stdin: true, ..argv(&["sh", "x.sh"]) }] {
            assert_eq!(policy.judge(&asked(shell.clone(), true)).code(), None, "{shell:?}");
        }
    }
    let open = policy(&[], &[], &[]);
    assert_eq!(open.judge(&asked(typed_into[0].clone(), true)).code(), None, "where nothing is asked about");
}

#[test]
fn the_ceiling_only_tightens() {
    let hub = policy(&["git"], &[], &["git push"]);
    let ceiling = SandboxPolicy { task_slots: 2, ..rules(&["git status", "ls"], &["git status -a"], &["git status -x"]) };
    let both = hub.clone().within(&ceiling);
    assert_eq!(both.hash(), hub.hash());
    assert_eq!(both.rules().task_slots, 2);
    assert_eq!(code(&both, "git status"), None);
    assert_eq!(code(&both, "git status -a"), Some("policy_ask"));
    for text in ["ls", "git log", "git push", "git status -x"] {
        assert!(matches!(both.judge(&script(text)), Outcome::Deny(_)), "{text}");
    }
    let disjoint = policy(&["git"], &[], &[]).within(&rules(&["ls"], &[], &[]));
    assert!(code(&disjoint, "git").is_some() && code(&disjoint, "ls").is_some());
    let strict = policy(&[], &[], &[]).within(&SandboxPolicy { mode: SandboxMode::Strict.into(), ..SandboxPolicy::default() });
    assert_eq!(strict.judge(&script("true")), Outcome::Deny(Refusal::TooWeak));
}

#[test]
fn a_rule_is_refused_when_its_examples_do_not_hold() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let examples = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let check = |matching: &[&str], not: &[&str]| check_examples(&words("git push"), &examples(matching), &examples(not));
    assert_eq!(check(&["git push -u origin", "cd x && git push"], &["git pull", "echo git push"]), Ok(()));
    let error = check(&["git -C x push"], &[]).unwrap_err().to_string();
    assert!(error.contains("`git push`") && error.contains("`git -C x push`"), "{error}");
    assert!(check(&[], &["git push"]).is_err());
    assert!(check(&[], &["git $x"]).is_err());
    assert!(check(&["git $x"], &[]).is_err());
}

#[test]
fn a_rule_may_be_written_as_one_plain_command() {
    assert_eq!(words_of("rm -rf 'a b'"), Some(vec!["rm".into(), "-rf".into(), "a b".into()]));
    assert_eq!(words_of("sudo rm"), Some(vec!["sudo".into(), "rm".into()]));
    for bad in ["a; b", "a $X", "", "a 'b", "a | b"] {
        assert_eq!(words_of(bad), None, "{bad}");
    }
}

fn approval(reach: Reach, policy: &Policy, request: &TaskRequest) -> Approval {
    Approval {
        scope: reach.name().into(),
        subject: Bytes::copy_from_slice(&subject(request)),
        policy_hash: Bytes::copy_from_slice(&policy.hash()),
        prefix: if reach == Reach::Prefix { vec!["git".into(), "push".into()] } else { vec![] },
        expires_at_ms: 100,
        ..Approval::default()
    }
}

#[test]
fn an_approval_fits_what_it_was_given_for_and_nothing_else() {
    let policy = policy(&[], &["git push", "deploy"], &["git push --force"]);
    let request = TaskRequest { node_key: Bytes::from_static(b"node"), session_id: "s".into(), ..script("git push") };
    let given = approval(Reach::Session, &policy, &request);
    let check = |approval: &Approval, request: &TaskRequest| fits(approval, &policy, request, 50);
    assert_eq!(check(&given, &request), Ok(()));
    let shell = |change: fn(&mut ShellTask)| {
        let mut changed = request.clone();
        if let Some(Kind::Shell(shell)) = &mut changed.kind {
            change(shell);
        }
        changed
    };
    for other in [
        TaskRequest { node_key: Bytes::from_static(b"other"), ..request.clone() },
        TaskRequest { session_id: "t".into(), ..request.clone() },
        shell(|shell| shell.script = "git push origin".into()),
        shell(|shell| shell.cwd = "x".into()),
        shell(|shell| shell.shell = "bash".into()),
        shell(|shell| shell.environment.push(EnvironmentVariable { name: "A".into(), value: String::new() })),
    ] {
        assert!(check(&given, &other).is_err(), "{other:?}");
    }
    assert!(fits(&given, &policy, &request, 101).is_err());
    assert!(check(&Approval { policy_hash: Bytes::new(), ..given.clone() }, &request).is_err());
    assert!(check(&Approval { scope: "always".into(), ..given }, &request).is_err());

    let prefix = approval(Reach::Prefix, &policy, &request);
    let run = |text: &str| check(&prefix, &script(text));
    assert_eq!(run("cd x && git push origin"), Ok(()));
    for other in ["git push --force", "git push; deploy", "deploy", "git push $x; $y"] {
        assert_eq!(run(other), Err(Unapproved::Unfit("it is for other commands")), "{other}");
    }
}

#[test]
fn subjects_of_different_commands_differ() {
    let argv = |words: &[&str]| {
        let shell = ShellTask { argv: words.iter().map(|word| (*word).to_owned()).collect(), ..ShellTask::default() };
        subject(&TaskRequest { kind: Some(Kind::Shell(shell)), ..TaskRequest::default() })
    };
    assert_ne!(argv(&["ab", "c"]), argv(&["a", "bc"]));
    assert_ne!(argv(&["a"]), argv(&["a", ""]));
    assert_ne!(argv(&["a"]), subject(&script("a")));
}

fn any_rules() -> impl Strategy<Value = SandboxPolicy> {
    let word = prop::sample::select(vec!["a", "b", "-x"]);
    let list = || {
        let words = proptest::collection::vec(word.clone(), 1..3);
        proptest::collection::vec(words.prop_map(|words| rule(&words.join(" "))), 0..3)
    };
    (list(), list(), list()).prop_map(|(allow, ask, deny)| SandboxPolicy {
        mode: SandboxMode::Permissive.into(),
        allow,
        ask,
        deny,
        ..SandboxPolicy::default()
    })
}

fn strictness(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Allow => 0,
        Outcome::Ask(_) => 1,
        Outcome::Deny(_) => 2,
    }
}

proptest! {
    /// Whatever the ceiling is, nothing becomes easier than the hub's policy or the ceiling alone say.
    #[test]
    fn a_ceiling_never_loosens(hub in any_rules(), ceiling in any_rules(), text in "(a|b|-x|\\$y|; | |c){1,6}") {
        let request = script(&text);
        let alone = [&hub, &ceiling].map(|rules| strictness(&Policy::new(rules.clone()).judge(&request)));
        let both = strictness(&Policy::new(hub).within(&ceiling).judge(&request));
        prop_assert!(both >= alone[0] && both >= alone[1], "{both} {alone:?}");
    }

    /// Quotes around words change nothing.
    #[test]
    fn quotes_do_not_matter(words in proptest::collection::vec("[a-z/.-]{1,5}", 1..5), rules in any_rules()) {
        let policy = Policy::new(SandboxPolicy { allow: vec![], ..rules });
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let argv = ShellTask { argv: words.clone(), ..ShellTask::default() };
        let argv = TaskRequest { mode: SandboxMode::Permissive.into(), kind: Some(Kind::Shell(argv)), ..TaskRequest::default() };
        let outcome = policy.judge(&argv);
        prop_assert_eq!(policy.judge(&script(&quoted.join(" "))), outcome);
    }

    #[test]
    fn any_script_is_judged(text in "\\PC{0,80}", rules in any_rules()) {
        let _ = Policy::new(rules).judge(&by_token(&text));
    }
}
