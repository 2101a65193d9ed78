//! What is not part of the workspace: git's rules, and our own over them.
//!
//! `.gitignore` and `.cortexignore` files mean what git means by them: the last matching line of the nearest file decides, and nothing
//! below an ignored directory comes back. Every `.cortexignore` goes before every `.gitignore`. Between the two stands one rule of ours:
//! `.git` is ignored. These files are part of the workspace themselves, so all nodes go by the same rules.

use std::collections::BTreeMap;

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

use super::path::RelPath;

/// Git's own name for a file of rules.
pub const GIT_RULES: &str = ".gitignore";
/// Ours.
pub const OWN_RULES: &str = ".cortexignore";
/// What of a file of rules counts. The longest in use have some thousand lines; each becomes a part of an automaton.
pub const RULE_LINES: usize = 10_000;

/// The rules of a workspace.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// By the directory in which the file lies.
    own: BTreeMap<RelPath, Gitignore>,
    git: BTreeMap<RelPath, Gitignore>,
}

impl Rules {
    /// The rules of these files, given by path and text; other files are passed over. A line that is no pattern is, as in git, none.
    pub fn new<'a>(files: impl IntoIterator<Item = (RelPath, &'a str)>) -> Self {
        let mut rules = Self::default();
        for (path, text) in files {
            rules.set(&path, Some(text));
        }
        rules
    }

    /// Takes over one file's text, `None` when the file is gone. Costs that file.
    pub fn set(&mut self, path: &RelPath, text: Option<&str>) {
        let files = match path.name() {
            GIT_RULES => &mut self.git,
            OWN_RULES => &mut self.own,
            _ => return,
        };
        let Some(directory) = path.parent() else { return };
        match text {
            Some(text) => files.insert(directory, compile(text)),
            None => files.remove(&directory),
        };
    }

    /// Whether a path is a file of rules: when it changes, the rules do.
    pub fn is_rule_file(path: &RelPath) -> bool {
        matches!(path.name(), GIT_RULES | OWN_RULES)
    }

    /// Whether a path is no part of the workspace: it or a directory above it is ignored.
    pub fn matched(&self, path: &RelPath, is_directory: bool) -> bool {
        let mut above: Vec<RelPath> = path.ancestors().collect();
        above.reverse();
        above.iter().any(|above| self.matched_itself(above, true)) || self.matched_itself(path, is_directory)
    }

    /// As [`Rules::matched`], for who came from above and knows that no directory there is ignored.
    pub fn matched_itself(&self, path: &RelPath, is_directory: bool) -> bool {
        decide(&self.own, path, is_directory)
            .or_else(|| (path.name() == ".git").then_some(true))
            .or_else(|| decide(&self.git, path, is_directory))
            .unwrap_or(false)
    }
}

/// What the nearest file says that says anything.
fn decide(files: &BTreeMap<RelPath, Gitignore>, path: &RelPath, is_directory: bool) -> Option<bool> {
    if files.is_empty() {
        return None;
    }
    path.ancestors().chain([RelPath::root()]).find_map(|directory| {
        let below = path.below(&directory)?;
        match files.get(&directory)?.matched(below, is_directory) {
            Match::None => None,
            Match::Ignore(_) => Some(true),
            Match::Whitelist(_) => Some(false),
        }
    })
}

fn compile(text: &str) -> Gitignore {
    let mut builder = GitignoreBuilder::new("");
    builder.allow_unclosed_class(false);
    for line in text.trim_start_matches('\u{feff}').split('\n').take(RULE_LINES) {
        if let Some(line) = as_git_reads(line.strip_suffix('\r').unwrap_or(line)) {
            // What does not compile matches nothing.
            let _ = builder.add_line(None, &line);
        }
    }
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}

/// The line in the library's words, where these differ from git's: braces are letters in git, no class matches a
/// slash, and three stars are two. `None` when
/// it matches nothing, because something escapes nothing or a component is empty.
fn as_git_reads(line: &str) -> Option<String> {
    let body = line.strip_prefix('!').unwrap_or(line);
    if line.starts_with('#') || body.trim_end_matches(' ').trim_matches('/').is_empty() {
        return None;
    }
    let mut out = String::with_capacity(line.len() + 8);
    out.push_str(&line[..line.len() - body.len()]);
    if body.contains('[') && !body.trim_end_matches([' ', '/']).contains('/') {
        // The library would take the slash in the class for one in the path.
        out.push_str("**/");
    }
    let mut chars = body.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend([c, chars.next()?]),
            '{' | '}' => out.extend(['\\', c]),
            '*' if out.ends_with("**") => {}
            '[' => {
                out.push(c);
                let negated = chars.next_if(|c| matches!(c, '!' | '^')).is_some();
                // What is excluded comes first, but for a bracket, which is itself only there.
                out.push_str(if negated { "!" } else { "" });
                out.extend(chars.next_if_eq(&']'));
                out.push_str(if negated { "/" } else { "" });
            }
            _ => out.push(c),
        }
    }
    (!out.contains("//")).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(files: &[(&str, &'static str)]) -> Rules {
        Rules::new(files.iter().map(|(path, text)| (path.parse().unwrap(), *text)))
    }

    fn ignored(rules: &Rules, path: &str) -> bool {
        rules.matched(&path.parse().unwrap(), false)
    }

    #[test]
    fn git_is_ignored_and_only_our_own_rules_bring_it_back() {
        let plain = rules(&[(".gitignore", "!.git\n!.*\n")]);
        assert!(ignored(&plain, ".git/config") && ignored(&plain, "vendor/x/.git") && !ignored(&plain, ".github/x"));
        assert!(!ignored(&rules(&[(".cortexignore", "!.git")]), ".git/config"));
    }

    #[test]
    fn our_rules_go_before_gits_wherever_they_are() {
        let both = rules(&[(".cortexignore", "!keep.log\nsecret\n"), ("a/.gitignore", "*.log\n!secret\n")]);
        assert!(!ignored(&both, "a/keep.log") && ignored(&both, "a/other.log") && ignored(&both, "a/secret"));
    }

    #[test]
    fn the_nearest_file_decides_and_an_ignored_directory_stays_so() {
        let nested = rules(&[(".gitignore", "*.o\nbuild/\n"), ("src/.gitignore", "!x.o\n"), ("build/.gitignore", "!*\n")]);
        assert!(!ignored(&nested, "src/x.o") && ignored(&nested, "src/y.o") && ignored(&nested, "build/x"));
    }

    #[test]
    fn a_file_of_rules_is_told_by_its_name() {
        let is = |path: &str| Rules::is_rule_file(&path.parse().unwrap());
        assert!(is(".gitignore") && is("a/b/.cortexignore") && !is("a/gitignore"));
    }
}
