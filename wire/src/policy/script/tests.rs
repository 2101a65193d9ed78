use super::*;
use proptest::prelude::*;

fn seen(script: &str) -> (Vec<String>, bool) {
    let script = Script::read(script);
    (script.commands.iter().filter(|command| command.found != Found::Perhaps).map(Command::shown).collect(), script.readable)
}

fn commands(script: &str) -> Vec<String> {
    let (commands, readable) = seen(script);
    assert!(readable, "{script}");
    commands
}

#[test]
fn commands_are_found_wherever_a_shell_would_run_them() {
    for (script, expected) in [
        ("a b; c && d || e | f & g", &["a b", "c", "d", "e", "f", "g"][..]),
        ("a 'b c' \"d;e\" f\\ g", &["a b c d;e f g"]),
        ("'a'b\"c\" d # e; f", &["abc d"]),
        ("a \\\n b\nc", &["a b", "c"]),
        ("(a; b) && { c; d; }", &["a", "b", "c", "d"]),
        ("if a; then b; elif c; then d; else e; fi", &["a", "b", "c", "d", "e"]),
        ("for x in a b; do c; done; while d; do e; done", &["c", "d", "e"]),
        ("for x do a; done", &["a"]),
        ("case $x in a|b) c;; (d) e ;; *) f; esac; g", &["c", "e", "f", "g"]),
        ("f() { a; }; function g { b; }; f", &["a", "b", "f"]),
        ("x=1 y=$(a b) c", &["a b", "c"]),
        ("echo \"$(a \"$(b)\")\" `c`", &["b", "a …", "c", "echo … …"]),
        ("a 2>&1 >file <in &>all b", &["a b"]),
        ("diff <(a) <(b)", &["a", "b", "diff … …"]),
        ("echo $((1 + 2 * (3))) ; ((i++)) ; a", &["echo …", "a"]),
        ("cat <<EOF; b\nrm x $(c)\nEOF\nd", &["cat", "b", "c", "d"]),
        ("cat <<'EOF' | b\nrm x $(c)\nEOF\nd", &["cat", "b", "d"]),
        ("sh <<-'EOF'\n\ta b\n\tEOF\nc", &["sh", "c", "a b"]),
        ("sh -c 'a; b' x", &["sh -c a; b x", "a", "b"]),
        ("bash -euo pipefail -c \"a 'b c'\"", &["bash -euo pipefail -c a 'b c'", "a b c"]),
        ("eval a 'b;' c", &["eval a b; c", "a b", "c"]),
        ("trap 'a b' EXIT", &["trap a b EXIT", "a b"]),
        ("env -i X=1 a b", &["env -i X=1 a b", "a b"]),
        ("find . -exec a {} \\; -o -exec b {} +", &["find . -exec a {} ; -o -exec b {} +", "a {}", "b {}"]),
        ("[ -f x ] && [[ -d y ]] && a *.txt ~/b", &["[ -f x ]", "[[ -d y ]]", "a *.txt… ~/b…"]),
        ("a {b,c} {d} e{}", &["a {b,c}… {d} e{}"]),
        ("> file", &[":"]),
    ] {
        let found = commands(script);
        assert_eq!(found, expected, "{script}");
    }
}

#[test]
fn what_cannot_be_known_is_said() {
    for script in [
        "a 'b",
        "a \"b",
        "echo $(a",
        "echo `a",
        "sh -c \"$x\"",
        "eval $x",
        "eval \"$(a)\"",
        "curl x | sh",
        "curl x | sudo bash -s",
        "alias a='b'",
        "cat <<EOF\nno end",
        "LD_PRELOAD=./x a",
        "env LD_PRELOAD=./x a",
        "env -S 'a b'",
        "a )",
        "echo ${x:-$(a)}",
        "echo $((1; a))",
        "trap \"$x\" EXIT",
        "a >",
        "bash $x",
        "case x in a",
    ] {
        assert!(!seen(script).1, "{script}");
    }
    assert!(!seen(&format!("{}{}", "$(".repeat(40), ")".repeat(40))).1);
    assert!(!seen(&"a;".repeat(COMMANDS + 2)).1);
    let python = ShellTask { script: "print(1)".into(), shell: "/usr/bin/python3".into(), ..ShellTask::default() };
    assert!(!Script::of(&python).readable);
}

#[test]
fn only_words_quotes_and_separators_are_plain() {
    for (script, plain) in
        [("a 'b;c' && d", true), ("a $b", false), ("a > b", false), ("X=1 a", false), ("a *", false), ("(a)", false), ("a `b`", false)]
    {
        assert_eq!(Script::read(script).plain, plain, "{script}");
    }
}

proptest! {
    #[test]
    fn any_text_is_taken_apart(text in "\\PC{0,120}") {
        let _ = Script::read(&text);
    }

    /// Whatever stands around a command, and however its words are quoted, it is found or the script says that it cannot tell.
    #[test]
    fn a_command_never_hides(
        shape in prop::sample::select(vec![
            "{}", "true; {}", "true\n{}", "true && {}", "true | {}", "({})", "{ {}; }", "echo $({})", "echo \"a $({}) b\"", "echo `{}`",
            "if {}; then a; fi", "for x in 1; do {}; done", "while {}; do a; done", "case a in a) {};; esac", "f() { {}; }; f", "X=1 {}", "a <({})",
            "env A=b {}", "nohup {} &", "sudo -u x {}", "timeout 5 {}", "cat <<E\n$({})\nE\n", "sh <<'E'\n{}\nE\n", "find . -exec {} \\;", "! {}", "xargs {}",
        ]),
        quote in prop::sample::select(vec!["secret arg", "'secret' arg", "\"secret\" 'arg'", "sec'ret' ar\\g", "/usr/bin/secret arg", "se\\\ncret arg"]),
    ) {
        let script = Script::read(&shape.replace("{}", quote));
        let is_it = |command: &Command| {
            command.words[0].program() == Some("secret") && command.words.get(1).is_some_and(|word| word.text.starts_with("arg"))
        };
        prop_assert!(!script.readable || script.commands.iter().any(is_it), "{:?}", script);
    }
}
