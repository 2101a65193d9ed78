//! The ignore files of a workspace, as they are on this disk, and what they say.

use std::collections::BTreeMap;

use cortex_wire::mirror::{
    ignore::{GIT_RULES, OWN_RULES, Rules},
    path::RelPath,
};

/// Files with rules, in every folder.
pub const IGNORE_FILES: [&str; 2] = [GIT_RULES, OWN_RULES];

/// What is not part of the workspace.
#[derive(Debug, Default)]
pub struct Ignored {
    texts: BTreeMap<RelPath, String>,
    rules: Rules,
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

    /// Forgets the files below a folder that is gone.
    pub fn forget_below(&mut self, folder: &RelPath) {
        let gone: Vec<RelPath> = self.texts.keys().filter(|file| file.starts_with(folder)).cloned().collect();
        for file in &gone {
            self.set(file, None);
        }
    }

    /// Whether a path is not part of the workspace, by a rule for it or for a folder that it is in.
    pub fn matches(&self, path: &RelPath, is_folder: bool) -> bool {
        self.rules.matched(path, is_folder)
    }
}
