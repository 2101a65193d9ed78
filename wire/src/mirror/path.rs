//! Names inside a workspace: relative, checked once, never normalised.
//!
//! A [`RelPath`] is UTF-8 with `/` between components. What a platform cannot hold, and what differs only by case or by Unicode
//! form, is that platform's to report ([`RelPath::fold_key`]).

use std::{cmp::Ordering, fmt, str::FromStr, sync::Arc};

use unicode_normalization::UnicodeNormalization;

use crate::limits;

/// The folder at a workspace's root that is ours: staged files, conflict copies. Never synced.
pub const OWN_FOLDER: &str = ".cortex";

/// Why a text is not a path of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The empty path names the workspace itself.
    #[error("the path is empty")]
    Empty,
    /// Absolute, doubled or trailing slashes.
    #[error("the path has an empty component")]
    EmptyComponent,
    /// `.` or `..`.
    #[error("the path has a `.` or `..` component")]
    Dots,
    /// A NUL byte.
    #[error("the path contains a NUL byte")]
    Nul,
    /// A component, the whole path, or the number of components is above its limit.
    #[error("the path is too long or too deep")]
    TooLong,
    /// Below `.cortex`.
    #[error("`.cortex` is reserved")]
    Reserved,
}

/// A path inside a workspace. Ordered by components, so that what lies below a directory follows it without a gap.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Arc<str>);

impl RelPath {
    /// The workspace's own folder: the one path without components. It names no entry; it is the prefix of all.
    pub fn root() -> Self {
        Self(Arc::from(""))
    }

    /// Checks a path that may be [`RelPath::root`].
    ///
    /// # Errors
    /// As for [`RelPath::from_str`], except for the empty path.
    pub fn prefix(text: &str) -> Result<Self, PathError> {
        if text.is_empty() { Ok(Self::root()) } else { text.parse() }
    }

    /// Whether this is [`RelPath::root`].
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        self.parent_str().map(|parent| Self(Arc::from(parent)))
    }

    fn parent_str(&self) -> Option<&str> {
        match self.0.rfind('/') {
            Some(at) => Some(&self.0[..at]),
            None if self.is_root() => None,
            None => Some(""),
        }
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The components, outermost first; none for the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|component| !component.is_empty())
    }

    /// How many components there are.
    pub fn depth(&self) -> usize {
        self.components().count()
    }

    /// The path of `name` (one or more components) below this directory.
    ///
    /// # Errors
    /// [`PathError`] when the result is not a path of a workspace.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        if self.is_root() { name.parse() } else { format!("{}/{name}", self.0).parse() }
    }

    /// As [`RelPath::join`], for names that a tree holds and has checked.
    pub(super) fn child(&self, name: &str) -> Self {
        if self.is_root() { Self(Arc::from(name)) } else { Self(format!("{}/{name}", self.0).into()) }
    }

    /// Whether this is `prefix`, or lies below it.
    pub fn starts_with(&self, prefix: &Self) -> bool {
        prefix.is_root() || self.0.strip_prefix(&*prefix.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// What remains below `prefix`, without a leading slash; `None` when it does not lie below, or is it.
    pub fn below(&self, prefix: &Self) -> Option<&str> {
        if prefix.is_root() {
            return (!self.is_root()).then_some(&self.0);
        }
        self.0.strip_prefix(&*prefix.0)?.strip_prefix('/')
    }

    /// The directories above it, nearest first, without the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent).take_while(|path| !path.is_root())
    }

    /// Two paths with equal keys are one file on systems that ignore case or Unicode form.
    pub fn fold_key(&self) -> String {
        self.0.nfc().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfc().collect()
    }
}

impl FromStr for RelPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > limits::PATH_BYTES {
            return Err(PathError::TooLong);
        }
        for (depth, component) in text.split('/').enumerate() {
            check(component)?;
            if depth == 0 && component.eq_ignore_ascii_case(OWN_FOLDER) {
                return Err(PathError::Reserved);
            }
            if depth >= limits::PATH_DEPTH {
                return Err(PathError::TooLong);
            }
        }
        Ok(Self(Arc::from(text)))
    }
}

fn check(component: &str) -> Result<(), PathError> {
    match component {
        "" => Err(PathError::EmptyComponent),
        "." | ".." => Err(PathError::Dots),
        _ if component.len() > limits::PATH_COMPONENT_BYTES => Err(PathError::TooLong),
        _ if component.contains('\0') => Err(PathError::Nul),
        _ => Ok(()),
    }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        let at = common_prefix(a, b);
        // A slash is below every other byte.
        let key = |bytes: &[u8]| bytes.get(at).map(|byte| if *byte == b'/' { 0 } else { *byte });
        key(a).cmp(&key(b))
    }
}

/// How many bytes are equal. By eights: maps of paths are searched for each event, and their paths have long beginnings in common.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let word = |bytes: &[u8], at: usize| bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map(u64::from_le_bytes);
    let mut at = 0;
    while let (Some(x), Some(y)) = (word(a, at), word(b, at)) {
        if x != y {
            return at + ((x ^ y).trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl AsRef<str> for RelPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> RelPath {
        text.parse().unwrap()
    }

    #[test]
    fn what_could_leave_the_workspace_or_touch_our_folder_is_refused() {
        use PathError::*;
        for (text, why) in [
            ("", Empty),
            ("/etc/passwd", EmptyComponent),
            ("a//b", EmptyComponent),
            ("a/", EmptyComponent),
            ("..", Dots),
            ("a/../b", Dots),
            ("./a", Dots),
            ("a\0b", Nul),
            (".cortex", Reserved),
            (".Cortex/stage", Reserved),
        ] {
            assert_eq!(text.parse::<RelPath>(), Err(why), "{text:?}");
        }
        assert_eq!("x".repeat(256).parse::<RelPath>(), Err(TooLong));
        assert_eq!(vec!["x"; 129].join("/").parse::<RelPath>(), Err(TooLong));
        assert_eq!(vec!["x".repeat(200); 21].join("/").parse::<RelPath>(), Err(TooLong));
        for text in ["a/.cortex", ".git", "a b", "a\nb", "...", "a\\b", "e\u{301}", "-", &vec!["x"; 128].join("/")] {
            assert_eq!(path(text).as_str(), text);
        }
    }

    #[test]
    fn a_path_comes_apart_and_together() {
        let file = path("a/b/c");
        assert_eq!((file.name(), file.parent(), file.depth()), ("c", Some(path("a/b")), 3));
        assert_eq!(file.ancestors().collect::<Vec<_>>(), [path("a/b"), path("a")]);
        assert_eq!(path("a").parent(), Some(RelPath::root()));
        assert_eq!((RelPath::root().parent(), RelPath::root().name(), RelPath::root().depth()), (None, "", 0));
        assert_eq!(RelPath::root().join("a/b").unwrap().join("c"), Ok(file.clone()));
        assert_eq!((file.below(&path("a")), file.below(&file), file.below(&RelPath::root())), (Some("b/c"), None, Some("a/b/c")));
        assert!(file.starts_with(&path("a/b")) && file.starts_with(&file) && !path("ab").starts_with(&path("a")));
    }

    #[test]
    fn names_that_some_systems_take_for_one_have_one_key() {
        assert_eq!(path("A/STRASSE").fold_key(), path("a/straße").fold_key());
        assert_eq!(path("\u{e9}").fold_key(), path("E\u{301}").fold_key());
        assert_ne!(path("a").fold_key(), path("b").fold_key());
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_components(a in "[a /!]{1,14}", b in "[a /!]{1,14}", common in "[a/]{0,20}") {
            let (a, b) = (format!("{common}{a}"), format!("{common}{b}"));
            if let (Ok(a), Ok(b)) = (a.parse::<RelPath>(), b.parse::<RelPath>()) {
                prop_assert_eq!(a.cmp(&b), a.components().cmp(b.components()));
            }
        }

        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}") {
            if let Ok(path) = text.parse::<RelPath>() {
                prop_assert_eq!(path.as_str(), &text);
                prop_assert_eq!(path.parent().map(|p| p.child(path.name())), Some(path));
            }
        }
    }
}
