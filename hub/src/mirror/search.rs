//! Finding files by name and by what they hold, in bounded time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cortex_wire::mirror::{
    entry::{Content, Entry},
    path::RelPath,
};
use globset::{GlobBuilder, GlobMatcher};
use serde::Serialize;
use utoipa::ToSchema;

use super::{MirrorError, content::Reader, workspace::Workspace};
use crate::hub::Hub;

/// Larger files are not looked into.
const FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes that one search reads.
const SEARCH_BYTES: u64 = 128 * 1024 * 1024;
/// How long one search takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a line that is shown.
const LINE_CHARACTERS: usize = 400;
/// Lines of one file that are shown.
const LINES: usize = 20;

/// What to look for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// A pattern for the path, such as `**/*.rs`; without a slash for the name alone.
    pub name: Option<String>,
    /// A text inside files.
    pub text: Option<String>,
    /// Upper and lower case are the same.
    pub ignore_case: bool,
    /// Look here and below.
    pub below: Option<RelPath>,
    /// Go on behind this path.
    pub after: Option<RelPath>,
    /// At most so many files.
    pub limit: usize,
}

/// A file that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Found {
    /// Where.
    pub path: String,
    /// The lines that hold the text; empty when only names were looked for.
    pub lines: Vec<Line>,
}

/// A line that holds the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Line {
    /// From 1.
    pub number: usize,
    /// The line, cut when it is long.
    pub text: String,
}

/// What a search brought.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// In the order of paths.
    pub found: Vec<Found>,
    /// Where to go on: the search stopped at a bound.
    pub next: Option<RelPath>,
    /// Files that were too large to look into.
    pub skipped: u64,
}

fn matcher(pattern: &str, ignore_case: bool) -> Result<GlobMatcher, MirrorError> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).case_insensitive(ignore_case).build();
    glob.map(|glob| glob.compile_matcher()).map_err(|error| MirrorError::Invalid(format!("the name pattern cannot be read: {error}")))
}

/// Whether a path matches: by its name when the pattern has no slash.
fn fits(matcher: Option<&GlobMatcher>, whole: bool, path: &RelPath) -> bool {
    matcher.is_none_or(|matcher| matcher.is_match(if whole { path.as_str() } else { path.name() }))
}

fn lines_with(bytes: &[u8], text: &str, ignore_case: bool) -> Vec<Line> {
    // What has a NUL is no text.
    if bytes.contains(&0) {
        return Vec::new();
    }
    let content = String::from_utf8_lossy(bytes);
    let wanted = if ignore_case { text.to_lowercase() } else { text.to_owned() };
    let holds = |line: &str| if ignore_case { line.to_lowercase().contains(&wanted) } else { line.contains(&wanted) };
    let lines = content.lines().enumerate().filter(|(_, line)| holds(line)).take(LINES);
    lines.map(|(at, line)| Line { number: at + 1, text: line.chars().take(LINE_CHARACTERS).collect() }).collect()
}

impl Workspace {
    /// Looks for files.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn search(&self, hub: &Arc<Hub>, wanted: &Wanted) -> Result<Results, MirrorError> {
        let by_name = wanted.name.as_deref().map(|pattern| matcher(pattern, wanted.ignore_case)).transpose()?;
        let whole = wanted.name.as_deref().is_some_and(|pattern| pattern.contains('/'));
        let head = self.head();
        let (mut results, mut read, begun) = (Results::default(), 0, Instant::now());
        let below = wanted.below.clone().unwrap_or_else(RelPath::root);
        let files = head.tree.below(&below).filter_map(|(path, entry)| match entry {
            Entry::File { content, .. } => Some((path, content)),
            _ => None,
        });
        let files = files.filter(|(path, _)| wanted.after.as_ref().is_none_or(|after| path > after));
        let mut last: Option<RelPath> = None;
        for (path, content) in files.filter(|(path, _)| fits(by_name.as_ref(), whole, path)) {
            if results.found.len() >= wanted.limit || read > SEARCH_BYTES || begun.elapsed() > PATIENCE {
                results.next = last;
                return Ok(results);
            }
            let lines = match &wanted.text {
                None => Some(Vec::new()),
                Some(_) if content.size > FILE_BYTES => {
                    results.skipped += 1;
                    None
                }
                Some(text) => {
                    read += content.size;
                    let lines = lines_with(&self.read_small(hub, content).await?, text, wanted.ignore_case);
                    Some(lines).filter(|lines| !lines.is_empty())
                }
            };
            results.found.extend(lines.map(|lines| Found { path: path.to_string(), lines }));
            last = Some(path);
        }
        Ok(results)
    }

    async fn read_small(&self, hub: &Arc<Hub>, content: &Content) -> Result<Vec<u8>, MirrorError> {
        let reader = Reader::open(hub, self, content, 0..content.size).await?;
        reader.whole(usize::try_from(FILE_BYTES).unwrap_or(usize::MAX)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        fits(Some(&matcher(pattern, false).unwrap()), pattern.contains('/'), &path.parse().unwrap())
    }

    #[test]
    fn a_pattern_without_a_slash_is_for_the_name_and_one_with_a_slash_for_the_path() {
        assert!(matches("*.rs", "a/b/c.rs") && matches("c.*", "a/b/c.rs"));
        assert!(matches("a/**/*.rs", "a/b/c.rs") && !matches("a/*.rs", "a/b/c.rs"));
        assert!(matches("{x,y}?", "d/y1"));
        assert!(matcher("[", false).is_err());
    }

    #[test]
    fn lines_are_numbered_and_cut_and_binary_files_have_none() {
        let text = format!("one\nTwo {}\nthree two\n", "x".repeat(1000));
        let found = lines_with(text.as_bytes(), "two", true);
        assert_eq!(found.iter().map(|line| line.number).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(found[0].text.chars().count(), LINE_CHARACTERS);
        assert_eq!(lines_with(text.as_bytes(), "two", false).len(), 1);
        assert!(lines_with(b"two\0", "two", false).is_empty());
    }
}
