//! The ignore rules against git's own judgement.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use cortex_wire::mirror::{ignore::Rules, path::RelPath};
use proptest::{prelude::*, test_runner::TestRunner};

/// A repository that is removed in the end.
struct Repository(PathBuf);

impl Drop for Repository {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const DIRECTORIES: [&str; 7] = ["a", "b", "a/b", "a/b/a", "b/a b", "x.o", "a/{b}"];
const FILES: [&str; 16] = [
    "ab", "b.o", "a/a.o", "a/b/ab", "a/b/b.o", "a/b/a/b", "b/a b/c", "b/ab", "b/!a", "b/#a", "x.o/a", "a/{b}/ab", "aab", "b/]", "b/c d ",
    "c",
];

impl Repository {
    fn new() -> Self {
        let root = std::env::temp_dir().join(format!("cortex-ignore-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        for directory in DIRECTORIES {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in FILES {
            fs::write(root.join(file), "").unwrap();
        }
        let repository = Self(root);
        let status = repository.git(&["init", "-q"]).status().expect("git is installed: apt-get install git");
        assert!(status.success());
        repository
    }

    fn git(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.0).args(arguments);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", &self.0).env_remove("XDG_CONFIG_HOME");
        command
    }

    /// The paths that git ignores.
    fn ignored(&self, paths: &[&str]) -> BTreeSet<String> {
        let mut child =
            self.git(&["check-ignore", "--no-index", "--stdin", "-z"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all((paths.join("\0") + "\0").as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(matches!(out.status.code(), Some(0 | 1)));
        String::from_utf8(out.stdout).unwrap().split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect()
    }
}

fn pattern() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a", "b", "*", "?", "/", "**", "**/", "/**", ".o", "[ab]", "[!a]", "{", "}", "{b}", "{a,b}", " ", "\\#", "\\!", "c", "a b",
    ]);
    let body = prop::collection::vec(part, 1..5).prop_map(|parts| parts.concat());
    (prop::sample::select(vec!["", "", "", "!", "/", "#"]), body, prop::sample::select(vec!["", "", "/", " ", "\r"]))
        .prop_map(|(head, body, tail)| format!("{head}{body}{tail}"))
        // What an empty component means differs from pattern to pattern in git; nobody writes it on purpose.
        .prop_filter("an empty component", |line| !line.contains("//"))
        // Two stars beside something else are one star in git's manual, but not always in git.
        .prop_filter("stars that are no component", |line| {
            let line = line.trim_start_matches('!').trim_end();
            line.split('/').all(|component| !component.contains("**") || component.chars().all(|c| c == '*'))
        })
}

#[test]
fn what_git_ignores_is_ignored_and_nothing_else() {
    let repository = Repository::new();
    let text = || prop::collection::vec(pattern(), 0..4).prop_map(|lines| lines.join("\n"));
    let config = ProptestConfig {
        cases: std::env::var("CORTEX_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let all: Vec<&str> = DIRECTORIES.iter().chain(&FILES).copied().collect();
    TestRunner::new(config)
        .run(&(text(), text(), text()), |(top, a, b)| {
            let files = [(".gitignore", &top), ("a/.gitignore", &a), ("a/b/.gitignore", &b)];
            for (path, text) in files {
                fs::write(repository.0.join(path), text).unwrap();
            }
            let rules = Rules::new(files.iter().map(|(path, text)| (path.parse().unwrap(), text.as_str())));
            let git = repository.ignored(&all);
            for path in &all {
                let ours = rules.matched(&path.parse::<RelPath>().unwrap(), DIRECTORIES.contains(path));
                prop_assert_eq!(ours, git.contains(*path), "{:?}", path);
            }
            Ok(())
        })
        .unwrap();
}
