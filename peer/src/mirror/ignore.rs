//! The ignore files of a workspace, as they are on this disk, and what they say.

use std::collections::BTreeMap;

use super::{read::Reading, root::Folder};

use cortex_wire::mirror::{
    ignore::{GIT_RULES, OWN_RULES, Rules},
    path::RelPath,
};

/// Files with rules, in every folder.
pub const IGNORE_FILES: [&str; 2] = [GIT_RULES, OWN_RULES];

/// An ignore file larger than this is not read.
const IGNORE_FILE_BYTES: u64 = 256 * 1024;

/// The text of an ignore file; `None`: there is none that counts.
pub fn text(folder: &Folder, name: &str, buffer: &mut [u8]) -> Option<String> {
    let mut reading = Reading::open(folder, name).ok()?;
    if reading.before().size > IGNORE_FILE_BYTES {
        return None;
    }
    let mut text = Vec::new();
    let append = |piece: &[u8]| {
        text.extend_from_slice(piece);
        Ok(())
    };
    reading.each(buffer, append).and_then(|()| reading.finish()).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// What is not part of the workspace. An ignore file is part of it unless a folder that it is in is not: all nodes go by the same rules.
#[derive(Debug, Default)]
pub struct Ignored {
    texts: BTreeMap<RelPath, String>,
    rules: Rules,
    /// Rules were put here by the hub, and nobody has looked since at what they cover.
    put: bool,
}

impl Ignored {
    /// Takes over the text of an ignore file (`None`: there is none). Returns whether that changed anything.
    pub fn set(&mut self, file: &RelPath, text: Option<&str>) -> bool {
        if self.texts.get(file).map(String::as_str) == text {
            return false;
        }
        match text {
            Some(text) => self.texts.insert(file.clone(), text.to_owned()),
            None => self.texts.remove(file),
        };
        self.rules.set(file, text);
        true
    }

    /// As [`Ignored::set`], for a file that was put into its place: the next look is at everything then.
    pub fn put(&mut self, file: &RelPath, text: Option<&str>) {
        self.put |= self.set(file, text);
    }

    /// Whether rules were put since the last call.
    pub fn take_put(&mut self) -> bool {
        std::mem::take(&mut self.put)
    }

    /// The ignore files.
    pub fn files(&self) -> impl Iterator<Item = &RelPath> {
        self.texts.keys()
    }

    /// Forgets the files below a folder that is gone. A file of rules has nothing below it, itself neither.
    pub fn forget_below(&mut self, folder: &RelPath) {
        let gone: Vec<RelPath> = self.texts.keys().filter(|file| *file != folder && file.starts_with(folder)).cloned().collect();
        for file in &gone {
            self.set(file, None);
        }
    }

    /// Whether a path is not part of the workspace, by a rule for it or for a folder that it is in.
    pub fn matches(&self, path: &RelPath, is_folder: bool) -> bool {
        match path.parent().filter(|_| Rules::is_rule_file(path)) {
            Some(folder) => !folder.is_root() && self.rules.matched(&folder, true),
            None => self.rules.matched(path, is_folder),
        }
    }

    /// The same for who knows that no folder above it is ignored.
    pub fn matches_itself(&self, path: &RelPath, is_folder: bool) -> bool {
        !Rules::is_rule_file(path) && self.rules.matched_itself(path, is_folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hold_until_their_folder_is_gone() {
        let path = |text: &str| text.parse::<RelPath>().unwrap();
        let mut ignored = Ignored::default();
        ignored.set(&path("d/.gitignore"), Some("*.log"));
        // What lies at the file's own path is no folder.
        ignored.forget_below(&path("d/.gitignore"));
        assert!(ignored.matches(&path("d/x.log"), false));
        ignored.forget_below(&path("d"));
        assert!(!ignored.matches(&path("d/x.log"), false));
    }
}
