//! What the running peer found out about its walls and limits, for `cortex-peer status`: a file in the state folder, of no use without the process that wrote it.

use std::{fs, io, path::Path};

use cortex_wire::schema::SandboxLevel;
use serde::{Deserialize, Serialize};

use crate::cgroup::Limits;

const FILE: &str = "sandbox.json";

/// It as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// "strict" or "permissive"; none: it is being tested.
    pub level: Option<String>,
    /// Why it is not strict, each with what to do about it.
    pub missing: Vec<String>,
    /// Of a task as a whole.
    pub limits: Limits,
}

impl Shown {
    /// What is known before the test has ended.
    pub fn new(limits: Limits) -> Self {
        Self { level: None, missing: Vec::new(), limits }
    }

    /// With what the test found.
    #[must_use]
    pub fn with(self, level: &SandboxLevel) -> Self {
        Self { level: Some(level.level.clone()), missing: level.missing.clone(), ..self }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let (file, staged) = (state_dir.join(FILE), state_dir.join(FILE).with_extension("tmp"));
        fs::write(&staged, serde_json::to_vec(self)?)?;
        fs::rename(staged, file)
    }

    /// What the peer of this state folder wrote.
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(state_dir.join(FILE)).ok()?).ok()
    }

    /// In lines for people.
    pub fn lines(&self) -> String {
        let level = self.level.as_deref().unwrap_or("is being tested");
        let missing: String = self.missing.iter().map(|missing| format!("\n             {missing}")).collect();
        format!("sandbox      {level}{missing}\nlimits       {}", self.limits.line())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_told_with_its_reasons() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Shown::read(folder.path()), None);
        let limits = Limits { controllers: vec!["pids".into()], missing: Some("memory cannot be limited".into()) };
        let shown = Shown::new(limits);
        assert!(shown.lines().starts_with("sandbox      is being tested\n"));
        let shown = shown.with(&SandboxLevel { level: "permissive".into(), missing: vec!["no namespaces".into()] });
        shown.write(folder.path()).unwrap();
        assert_eq!(Shown::read(folder.path()).as_ref(), Some(&shown));
        assert_eq!(shown.lines(), "sandbox      permissive\n             no namespaces\nlimits       pids: memory cannot be limited");
    }
}
