//! Shell scripts, taken apart without running them.
//!
//! [`Script::of`] lists the simple commands of a task, as far as they can be seen: through quotes, pipes, groups, substitutions, here-documents, `sh -c`, `eval`,
//! and programs that run others (`env`, `sudo`, `xargs`, `find -exec`, …). What only the shell will know (`$x`, `*`) is in the words as such. A script that
//! cannot be taken apart with certainty says so ([`Script::readable`]); nobody may conclude from what is missing then.
//!
//! This is for rules that decide when to ask. What a program does that may run (`python -c`, `make`, `git -c alias.x=!…`) is not seen.

use crate::{schema::ShellTask, text};

/// Substitutions in substitutions. A person's script has two or three.
const DEPTH: usize = 16;
/// Commands of one script. Above it nobody could say what was looked at.
const COMMANDS: usize = 4096;
/// Words of `sudo`, `env` and the like after which the program they run must have begun.
const WRAPPED: usize = 24;
/// Shells whose language this is.
const SHELLS: [&str; 8] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "rbash"];
/// Programs that run the program which their arguments name.
const WRAPPERS: [&str; 27] = [
    "env", "nice", "nohup", "timeout", "stdbuf", "setsid", "ionice", "chrt", "taskset", "time", "command", "builtin", "exec", "sudo",
    "doas", "su", "pkexec", "xargs", "busybox", "toybox", "chroot", "unshare", "nsenter", "flock", "watch", "parallel", "coproc",
];
/// Words of the language at whose place a command may begin.
const KEYWORDS: [&str; 13] = ["if", "then", "else", "elif", "fi", "while", "until", "do", "done", "!", "{", "}", "esac"];
/// Variables that make a shell or a program run something else first.
const LOADERS: [&str; 6] = ["LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "BASH_ENV", "ENV", "PROMPT_COMMAND"];

/// What is known of a word before the shell runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// Its text.
    Plain,
    /// A pattern for names of files; its text is the pattern.
    Pattern,
    /// It is one word.
    Unknown,
    /// Nothing: it may become none, one or several.
    Several,
}

/// One word of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The text; without its parts that are not known.
    pub text: String,
    /// How far the text is to be believed.
    pub sort: Sort,
}

impl Word {
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), sort: Sort::Plain }
    }

    /// The text, if it is all there is.
    pub fn known(&self) -> Option<&str> {
        (self.sort == Sort::Plain).then_some(self.text.as_str())
    }

    /// The same without the folders before it.
    pub fn program(&self) -> Option<&str> {
        self.known().map(file_name)
    }
}

/// How a command was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It stands there.
    Written,
    /// The first words after `sudo`, `env` and the like that can be a program.
    Wrapped,
    /// Later words after one of these: a program, if those before it belong to an option.
    Perhaps,
}

/// A simple command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments; at least one word.
    pub words: Vec<Word>,
    /// It reads what another command prints.
    pub piped: bool,
    /// The here-document that it reads.
    pub stdin: Option<String>,
    /// Files that its output goes to.
    pub writes: Vec<Word>,
    /// How it was found.
    pub found: Found,
}

impl Command {
    pub(super) fn new(words: Vec<Word>, found: Found) -> Self {
        Self { words, piped: false, stdin: None, writes: Vec::new(), found }
    }

    /// As it reads, for messages.
    pub fn shown(&self) -> String {
        let word = |word: &Word| if word.known().is_some() { word.text.clone() } else { format!("{}…", word.text) };
        text::clean(&self.words.iter().map(word).collect::<Vec<_>>().join(" "), crate::limits::NAME_BYTES)
    }

    /// Whether it is a shell that takes its commands from its input.
    pub fn is_fed_shell(&self) -> bool {
        let is_shell = self.words[0].program().is_some_and(|name| SHELLS.contains(&name));
        is_shell && self.words[1..].iter().all(|word| word.text.starts_with('-') && word.text != "-c")
    }
}

/// What a script or an argv is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The commands that were found, in no certain order.
    pub commands: Vec<Command>,
    /// Nothing but words, quotes and separators: no expansion, redirection, assignment or keyword.
    pub plain: bool,
    /// Every command that may run was found. Words of it may still be unknown.
    pub readable: bool,
}

impl Script {
    /// Of a task.
    pub fn of(shell: &ShellTask) -> Self {
        let mut this = if shell.script.is_empty() && shell.argv.is_empty() {
            // A shell in a terminal: whoever has it can type anything.
            let name = if shell.shell.is_empty() { "sh" } else { shell.shell.as_str() };
            Self { commands: vec![Command::new(vec![Word::plain(name)], Found::Written)], plain: true, readable: true }
        } else if shell.script.is_empty() {
            let words = shell.argv.iter().map(Word::plain).collect::<Vec<_>>();
            Self { commands: vec![Command::new(words, Found::Written)], plain: true, readable: true }
        } else if shell.shell.is_empty() || SHELLS.contains(&file_name(&shell.shell)) {
            Self::parse(&shell.script, 0)
        } else {
            // Another language: only its interpreter is known.
            Self { commands: vec![Command::new(vec![Word::plain(&shell.shell)], Found::Written)], plain: false, readable: false }
        };
        let mut names =
            shell.environment.iter().map(|variable| &variable.name).chain(shell.secrets.iter().map(|secret| &secret.environment_name));
        if names.any(|name| LOADERS.contains(&name.as_str())) {
            this.plain = false;
            this.readable = false;
        }
        this.look_inside();
        this
    }

    /// Of a text for `sh`.
    pub fn read(script: &str) -> Self {
        let mut this = Self::parse(script, 0);
        this.look_inside();
        this
    }

    fn parse(script: &str, depth: usize) -> Self {
        let chars: Vec<char> = script.chars().collect();
        let mut reader = Reader::new(&chars, depth);
        reader.run(false);
        reader.out
    }

    fn unreadable(&mut self) {
        self.plain = false;
        self.readable = false;
    }

    fn add(&mut self, other: Self) {
        self.plain &= other.plain;
        self.readable &= other.readable;
        self.commands.extend(other.commands);
    }

    /// Finds the commands that commands run. Each step looks at a command once; what it finds is looked at, too.
    fn look_inside(&mut self) {
        let (mut at, mut depth_left) = (0, DEPTH * 8);
        while at < self.commands.len() {
            if self.commands.len() > COMMANDS {
                self.commands.truncate(COMMANDS);
                return self.unreadable();
            }
            let command = self.commands[at].clone();
            at += 1;
            let Some(program) = command.words[0].program() else { continue };
            let inner = match program {
                name if SHELLS.contains(&name) => self.of_shell(&command),
                "eval" => self.joined(&command.words[1..]),
                "trap" => self.of_trap(&command.words[1..]),
                "alias" if command.words.iter().skip(1).any(|word| word.known().is_none_or(|text| text.contains('='))) => {
                    self.unreadable();
                    None
                }
                "find" => {
                    self.unwrap_find(&command);
                    None
                }
                name if WRAPPERS.contains(&name) && command.found == Found::Written => {
                    self.unwrap(&command, name);
                    None
                }
                _ => None,
            };
            if let Some(text) = inner {
                if depth_left == 0 {
                    return self.unreadable();
                }
                depth_left -= 1;
                self.add(Self::parse(&text, 0));
            }
        }
    }

    /// The script that a shell is given.
    fn of_shell(&mut self, command: &Command) -> Option<String> {
        let mut words = command.words[1..].iter().peekable();
        while let Some(word) = words.next() {
            let Some(text) = word.known() else {
                self.unreadable();
                return None;
            };
            match text {
                "--rcfile" | "--init-file" => drop(words.next()),
                text if !text.starts_with("--") && text.starts_with(['-', '+']) && text.contains(['o', 'O']) => {
                    // Which word is the option's and which the script's is not worth knowing.
                    if text.contains('c') {
                        self.unreadable();
                    }
                    words.next();
                }
                text if text.starts_with('-') && !text.starts_with("--") && text.contains('c') => {
                    let script = words.find(|word| !word.text.starts_with(['-', '+']) || word.known().is_none())?;
                    if script.known().is_none() {
                        self.unreadable();
                    }
                    return script.known().map(str::to_owned);
                }
                "-s" | "-" => break,
                text if text.starts_with(['-', '+']) => {}
                // The name of a file.
                _ => return None,
            }
        }
        match &command.stdin {
            Some(text) => Some(text.clone()),
            None => {
                if command.piped {
                    self.unreadable();
                }
                None
            }
        }
    }

    fn joined(&mut self, words: &[Word]) -> Option<String> {
        let known: Option<Vec<&str>> = words.iter().map(Word::known).collect();
        if known.is_none() {
            self.unreadable();
        }
        known.map(|words| words.join(" "))
    }

    fn of_trap(&mut self, words: &[Word]) -> Option<String> {
        let action = words.iter().find(|word| word.text != "--")?;
        match action.known() {
            Some("" | "-" | "-l" | "-p") => None,
            Some(text) => Some(text.to_owned()),
            None => {
                self.unreadable();
                None
            }
        }
    }

    fn unwrap_find(&mut self, command: &Command) {
        for (at, word) in command.words.iter().enumerate() {
            if matches!(word.text.as_str(), "-exec" | "-execdir" | "-ok" | "-okdir") && at + 1 < command.words.len() {
                let words: Vec<_> =
                    command.words[at + 1..].iter().take_while(|word| !matches!(word.text.as_str(), ";" | "+")).cloned().collect();
                if !words.is_empty() {
                    self.commands.push(Command::new(words, Found::Wrapped));
                }
            }
        }
    }

    /// Whatever may be the program among the words after `sudo`, `env` and the like: which of them belong to options only these know.
    fn unwrap(&mut self, command: &Command, wrapper: &str) {
        let mut found = Found::Wrapped;
        for (at, word) in command.words.iter().enumerate().skip(1) {
            if at > WRAPPED || (wrapper == "env" && (word.text.starts_with("-S") || word.text.starts_with("--split"))) {
                return self.unreadable();
            }
            if let Some(variable) = assigned(word) {
                if LOADERS.contains(&variable) {
                    self.unreadable();
                }
                continue;
            }
            if word.known().is_some_and(|text| text.starts_with('-')) {
                continue;
            }
            let mut words = command.words[at..].to_vec();
            if wrapper == "xargs" {
                words.push(Word { text: String::new(), sort: Sort::Several });
            }
            self.commands.push(Command {
                piped: command.piped && wrapper != "xargs",
                stdin: command.stdin.clone(),
                ..Command::new(words, found)
            });
            found = Found::Perhaps;
        }
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The variable that a word at the beginning of a command sets.
fn assigned(word: &Word) -> Option<&str> {
    let name = word.text.split_once('=')?.0.trim_end_matches('+');
    let name = name.split('[').next().unwrap_or(name);
    let sound =
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    sound.then_some(name)
}

/// A here-document whose text has not come yet.
#[derive(Debug, Clone)]
struct Here {
    delimiter: String,
    strip_tabs: bool,
    expands: bool,
    command: usize,
}

/// Where in the language the reader is, besides inside a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Command,
    /// The words of `for`, up to `do` or a separator.
    For,
    /// The word of `case`, up to `in`.
    Case,
    /// A pattern of `case`, up to `)`.
    Pattern,
    /// The name after `function`.
    Name,
}

struct Reader<'a> {
    chars: &'a [char],
    at: usize,
    depth: usize,
    out: Script,
    words: Vec<Word>,
    writes: Vec<Word>,
    word: Option<Word>,
    /// The next word is the file of a redirection; whether that is written.
    target: Option<bool>,
    piped: bool,
    part: Part,
    cases: usize,
    here: Vec<Here>,
}

impl<'a> Reader<'a> {
    fn new(chars: &'a [char], depth: usize) -> Self {
        let out = Script { commands: Vec::new(), plain: true, readable: true };
        Self {
            chars,
            at: 0,
            depth,
            out,
            words: Vec::new(),
            writes: Vec::new(),
            word: None,
            target: None,
            piped: false,
            part: Part::Command,
            cases: 0,
            here: Vec::new(),
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    fn word(&mut self) -> &mut Word {
        self.word.get_or_insert_with(|| Word::plain(String::new()))
    }

    fn push(&mut self, c: char) {
        self.word().text.push(c);
    }

    /// A part of the word is known to the shell only.
    fn mark(&mut self, sort: Sort) {
        self.out.plain = false;
        let word = self.word();
        word.sort = word.sort.max(sort);
    }

    /// Reads to the end, or to the `)` that ends a substitution or group.
    fn run(&mut self, until_paren: bool) {
        let mut closed = false;
        while let Some(c) = self.next() {
            if self.out.commands.len() > COMMANDS {
                self.at = self.chars.len();
                self.out.unreadable();
                return;
            }
            match c {
                '\\' => match self.next() {
                    Some('\n') | None => {}
                    Some(next) => self.push(next),
                },
                '\'' => self.single(),
                '"' => self.double(),
                '`' => self.backticks(Sort::Several),
                '$' => self.dollar(false),
                ' ' | '\t' => self.end_word(),
                '\n' => {
                    self.end_command();
                    self.here_documents();
                }
                ';' => self.semicolon(),
                '|' => self.pipe(),
                '&' if self.peek() == Some('>') => {
                    self.at += 1;
                    self.redirect('>');
                }
                '&' => {
                    self.take('&');
                    self.end_command();
                }
                '<' | '>' => self.redirect(c),
                '(' => self.open(),
                ')' if self.part == Part::Pattern => {
                    self.word = None;
                    self.words.clear();
                    self.part = Part::Command;
                }
                ')' => {
                    self.end_command();
                    if until_paren {
                        closed = true;
                        break;
                    }
                    self.out.unreadable();
                }
                '#' if self.word.is_none() => while self.peek().is_some_and(|c| c != '\n') && self.next().is_some() {},
                '*' | '?' | '[' => {
                    self.push(c);
                    self.glob(c);
                }
                '~' if self.word.is_none() => {
                    self.push(c);
                    self.mark(Sort::Pattern);
                }
                '{' => self.brace(),
                '}' if self.word.is_none() && self.words.is_empty() => {
                    self.out.plain = false;
                    self.end_command();
                }
                c => self.push(c),
            }
        }
        self.end_command();
        self.here_documents();
        if (until_paren && !closed) || !self.here.is_empty() || self.part != Part::Command || self.cases > 0 {
            self.out.unreadable();
        }
    }

    /// `[` alone is a program, and without `]` a character.
    fn glob(&mut self, c: char) {
        let ends = |c: &char| c.is_whitespace() || ";|&<>()".contains(*c);
        let is_set = || self.chars[self.at..].iter().take_while(|c| !ends(c)).any(|c| *c == ']');
        if c != '[' || is_set() {
            self.mark(Sort::Pattern);
        }
    }

    fn single(&mut self) {
        self.word();
        loop {
            match self.next() {
                Some('\'') => return,
                Some(c) => self.push(c),
                None => return self.out.unreadable(),
            }
        }
    }

    fn double(&mut self) {
        self.word();
        loop {
            match self.next() {
                Some('"') => return,
                Some('\\') => self.quoted_escape(),
                Some('$') => self.dollar(true),
                Some('`') => self.backticks(Sort::Unknown),
                Some(c) => self.push(c),
                None => return self.out.unreadable(),
            }
        }
    }

    fn quoted_escape(&mut self) {
        match self.next() {
            Some('\n') | None => {}
            Some(c @ ('$' | '`' | '"' | '\\')) => self.push(c),
            Some(c) => {
                self.push('\\');
                self.push(c);
            }
        }
    }

    fn dollar(&mut self, quoted: bool) {
        let sort = if quoted { Sort::Unknown } else { Sort::Several };
        match self.peek() {
            Some('(') => {
                self.at += 1;
                if self.peek() == Some('(') {
                    self.at += 1;
                    self.arithmetic();
                } else {
                    self.substitution();
                }
                self.mark(sort);
            }
            Some('{') => {
                self.at += 1;
                self.parameter();
                self.mark(Sort::Several.min(sort));
            }
            Some('\'') if !quoted => {
                self.at += 1;
                self.ansi_c();
                self.mark(Sort::Unknown);
            }
            Some('"') if !quoted => {
                self.at += 1;
                self.double();
            }
            Some(c) if c.is_ascii_alphanumeric() || c == '_' => {
                self.at += 1;
                if !c.is_ascii_digit() {
                    while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                        self.at += 1;
                    }
                }
                self.mark(sort);
            }
            Some(c @ ('@' | '*' | '#' | '?' | '-' | '$' | '!')) => {
                self.at += 1;
                self.mark(if c == '@' { Sort::Several } else { sort });
            }
            _ => self.push('$'),
        }
    }

    /// `$'…'`, up to the quote that ends it.
    fn ansi_c(&mut self) {
        loop {
            match self.next() {
                Some('\\') => drop(self.next()),
                Some('\'') => return,
                Some(_) => {}
                None => return self.out.unreadable(),
            }
        }
    }

    /// `${…}`. What it substitutes in turn is too far to look.
    fn parameter(&mut self) {
        let mut open = 1;
        while let Some(c) = self.next() {
            match c {
                '\\' => drop(self.next()),
                '{' => open += 1,
                '}' => open -= 1,
                '`' => self.out.unreadable(),
                '$' if self.peek() == Some('(') => self.out.unreadable(),
                '\'' | '"' => self.out.plain = false,
                _ => {}
            }
            if open == 0 {
                return;
            }
        }
        self.out.unreadable();
    }

    /// `((…))`, behind its beginning. What is not arithmetic for sure might be a group in a group.
    fn arithmetic(&mut self) {
        self.out.plain = false;
        let mut open = 2;
        while let Some(c) = self.next() {
            match c {
                '(' => open += 1,
                ')' => open -= 1,
                '`' | ';' | '\n' | '"' | '\'' => self.out.unreadable(),
                '$' if self.peek() == Some('(') => self.out.unreadable(),
                _ => {}
            }
            if open == 1 {
                if !self.take(')') {
                    self.out.unreadable();
                }
                return;
            }
        }
        self.out.unreadable();
    }

    /// Reads what stands in parentheses, behind their beginning.
    fn substitution(&mut self) {
        self.out.plain = false;
        if self.depth >= DEPTH {
            self.at = self.chars.len();
            return self.out.unreadable();
        }
        let mut inner = Reader { at: self.at, ..Reader::new(self.chars, self.depth + 1) };
        inner.run(true);
        self.at = inner.at;
        self.out.add(inner.out);
    }

    fn backticks(&mut self, sort: Sort) {
        let mut inner = Vec::new();
        loop {
            match self.next() {
                Some('`') => break,
                Some('\\') => match self.next() {
                    Some(c @ ('`' | '\\' | '$')) => inner.push(c),
                    Some(c) => inner.extend(['\\', c]),
                    None => {}
                },
                Some(c) => inner.push(c),
                None => {
                    self.out.unreadable();
                    break;
                }
            }
        }
        if self.depth >= DEPTH {
            self.out.unreadable();
        } else {
            let mut reader = Reader::new(&inner, self.depth + 1);
            reader.run(false);
            self.out.add(reader.out);
        }
        self.mark(sort);
    }

    fn semicolon(&mut self) {
        self.end_command();
        if self.cases > 0 && matches!(self.peek(), Some(';' | '&')) {
            while matches!(self.peek(), Some(';' | '&')) {
                self.at += 1;
            }
            self.part = Part::Pattern;
        }
    }

    fn pipe(&mut self) {
        if self.part == Part::Pattern {
            self.word = None;
            return self.words.clear();
        }
        let or = self.take('|');
        self.take('&');
        self.end_command();
        self.piped = !or;
    }

    fn open(&mut self) {
        self.out.plain = false;
        if self.part == Part::Pattern {
            return;
        }
        let blank = self.chars[self.at..].iter().take_while(|c| matches!(c, ' ' | '\t')).count();
        let is_function = (self.word.is_some() || !self.words.is_empty()) && self.chars.get(self.at + blank) == Some(&')');
        if is_function {
            self.at += blank + 1;
            self.word = None;
            self.words.clear();
            self.part = Part::Command;
        } else if self.word.is_none() && self.words.is_empty() && self.take('(') {
            self.arithmetic();
        } else {
            self.end_command();
            self.substitution();
        }
    }

    fn brace(&mut self) {
        let blank = self.peek().is_none_or(char::is_whitespace);
        if self.word.is_none() && self.words.is_empty() && blank {
            self.out.plain = false;
            return self.end_command();
        }
        let inside: String = self.chars[self.at..].iter().take_while(|c| !c.is_whitespace() && !";|&<>()".contains(**c)).collect();
        self.push('{');
        if inside.contains('}') && (inside.contains(',') || inside.contains("..")) {
            self.mark(Sort::Several);
        }
    }

    fn redirect(&mut self, c: char) {
        self.out.plain = false;
        let is_number = self.word.as_ref().is_some_and(|word| !word.text.is_empty() && word.text.bytes().all(|b| b.is_ascii_digit()));
        if is_number {
            self.word = None;
        }
        if self.peek() == Some('(') {
            self.end_word();
            self.at += 1;
            self.substitution();
            self.mark(Sort::Unknown);
            return;
        }
        self.end_word();
        if c == '<' && self.take('<') {
            if self.take('<') {
                self.target = Some(false);
            } else {
                self.here_document();
            }
            return;
        }
        let mut writes = c == '>';
        while let Some(next @ ('>' | '|' | '&')) = self.peek() {
            writes |= next == '>';
            self.at += 1;
        }
        self.target = Some(writes);
    }

    /// The delimiter of a here-document.
    fn here_document(&mut self) {
        let strip_tabs = self.take('-');
        while matches!(self.peek(), Some(' ' | '\t')) {
            self.at += 1;
        }
        let (mut delimiter, mut expands) = (String::new(), true);
        while let Some(c) = self.peek() {
            match c {
                c if c.is_whitespace() || ";|&<>()".contains(c) => break,
                '\'' | '"' => {
                    expands = false;
                    self.at += 1;
                    while self.peek().is_some_and(|next| next != c) {
                        delimiter.extend(self.next());
                    }
                    self.at += 1;
                }
                '\\' => {
                    expands = false;
                    self.at += 1;
                    delimiter.extend(self.next());
                }
                c => {
                    delimiter.push(c);
                    self.at += 1;
                }
            }
        }
        if delimiter.is_empty() || delimiter.contains(['$', '`', '\n']) {
            self.out.unreadable();
        }
        self.here.push(Here { delimiter, strip_tabs, expands, command: usize::MAX });
    }

    /// The texts that stand behind the line.
    fn here_documents(&mut self) {
        for here in std::mem::take(&mut self.here) {
            let mut body = String::new();
            let ended = loop {
                if self.at >= self.chars.len() {
                    break false;
                }
                let line: String = self.chars[self.at..].iter().take_while(|c| **c != '\n').collect();
                self.at = (self.at + line.chars().count() + 1).min(self.chars.len());
                let line = if here.strip_tabs { line.trim_start_matches('\t') } else { &line };
                if line == here.delimiter {
                    break true;
                }
                body.push_str(line);
                body.push('\n');
            };
            if !ended {
                self.out.unreadable();
            }
            if here.expands {
                self.expand(&body);
            }
            if let Some(command) = self.out.commands.get_mut(here.command) {
                command.stdin = Some(body);
            }
        }
    }

    /// Substitutions in the text of a here-document.
    fn expand(&mut self, body: &str) {
        if self.depth >= DEPTH {
            return self.out.unreadable();
        }
        let chars: Vec<char> = body.chars().collect();
        let mut reader = Reader::new(&chars, self.depth + 1);
        while let Some(c) = reader.next() {
            match c {
                '\\' => drop(reader.next()),
                '$' => reader.dollar(true),
                '`' => reader.backticks(Sort::Unknown),
                _ => {}
            }
        }
        self.out.add(reader.out);
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        if let Some(writes) = self.target.take() {
            if writes {
                self.writes.push(word);
            }
            return;
        }
        let first = self.words.is_empty();
        match (self.part, word.known()) {
            (Part::For, Some("do")) => {
                self.words.clear();
                self.part = Part::Command;
            }
            (Part::Case, Some("in")) => {
                self.words.clear();
                self.part = Part::Pattern;
            }
            (Part::Pattern, Some("esac")) if first => {
                self.part = Part::Command;
                self.cases = self.cases.saturating_sub(1);
            }
            (Part::Name, _) => self.part = Part::Command,
            (Part::Command, Some(text)) if first && self.is_keyword(text) => self.out.plain = false,
            (Part::Command, _) if first && assigned(&word).is_some() => {
                self.out.plain = false;
                if assigned(&word).is_some_and(|name| LOADERS.contains(&name)) {
                    self.out.unreadable();
                }
            }
            _ => self.words.push(word),
        }
    }

    fn is_keyword(&mut self, text: &str) -> bool {
        match text {
            "for" | "select" => self.part = Part::For,
            "case" => {
                self.part = Part::Case;
                self.cases += 1;
            }
            "function" => self.part = Part::Name,
            "esac" => self.cases = self.cases.saturating_sub(1),
            text => return KEYWORDS.contains(&text),
        }
        true
    }

    fn end_command(&mut self) {
        self.end_word();
        // A redirection without a word to it is no shell's language.
        if self.target.take().is_some() {
            self.out.unreadable();
        }
        let words = std::mem::take(&mut self.words);
        let writes = std::mem::take(&mut self.writes);
        let piped = std::mem::take(&mut self.piped);
        match self.part {
            Part::For => self.part = Part::Command,
            Part::Command if !words.is_empty() => {
                let at = self.out.commands.len();
                self.here.iter_mut().filter(|here| here.command == usize::MAX).for_each(|here| here.command = at);
                self.out.commands.push(Command { piped, writes, ..Command::new(words, Found::Written) });
            }
            Part::Command if !writes.is_empty() => {
                // `> file` alone, which empties the file.
                self.out.commands.push(Command { writes, ..Command::new(vec![Word::plain(":")], Found::Written) });
            }
            Part::Command | Part::Case | Part::Pattern | Part::Name => {}
        }
    }
}

#[cfg(test)]
mod tests;
