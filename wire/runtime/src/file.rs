//! A file that somebody may change: the kernel says so, nobody looks in between.

use std::{io, path::Path};

/// Editors write in several steps; they are done by then.
#[cfg(target_os = "linux")]
const SETTLE: std::time::Duration = std::time::Duration::from_millis(100);

/// Changes of one file, also when it is replaced by another of its name, or when it lies behind a link that is.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Changes(crate::kernel::News);

#[cfg(target_os = "linux")]
impl Changes {
    /// Of this file, from now on.
    ///
    /// # Errors
    /// When its folder cannot be watched.
    pub fn of(file: &Path) -> io::Result<Self> {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE;
        // The folder: files are replaced more often than they are written to.
        let folder = |file: &Path| file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        add_watch(&inotify, folder(file), what)?;
        if let Ok(real) = file.canonicalize() {
            add_watch(&inotify, folder(&real), what)?;
        }
        crate::kernel::News::of(inotify).map(Self)
    }

    /// Waits for something in its folder to be different. May come back although the file is not.
    pub async fn next(&mut self) {
        self.0.next().await;
        tokio::time::sleep(SETTLE).await;
        self.0.clear();
    }
}

/// Not watched here.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub struct Changes;

#[cfg(not(target_os = "linux"))]
impl Changes {
    /// Nothing is known of changes here.
    ///
    /// # Errors
    /// Always.
    pub fn of(_: &Path) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Never.
    pub async fn next(&mut self) {
        std::future::pending().await
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::{fs, time::Duration};

    async fn noticed(changes: &mut Changes) -> bool {
        tokio::time::timeout(Duration::from_secs(5), changes.next()).await.is_ok()
    }

    #[tokio::test]
    async fn a_file_that_is_written_or_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay.yaml");
        fs::write(&file, "a").unwrap();
        let mut changes = Changes::of(&file).unwrap();
        fs::write(&file, "b").unwrap();
        assert!(noticed(&mut changes).await);
        fs::write(folder.path().join("new"), "c").unwrap();
        fs::rename(folder.path().join("new"), &file).unwrap();
        assert!(noticed(&mut changes).await);
        assert!(tokio::time::timeout(Duration::from_millis(300), changes.next()).await.is_err(), "nothing more has happened");
    }

    #[tokio::test]
    async fn a_link_that_leads_elsewhere_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["1", "2"] {
            fs::create_dir(folder.path().join(version)).unwrap();
            fs::write(folder.path().join(version).join("relay.yaml"), version).unwrap();
        }
        // As a Kubernetes ConfigMap is changed.
        let (data, file) = (folder.path().join("..data"), folder.path().join("relay.yaml"));
        std::os::unix::fs::symlink("1", &data).unwrap();
        std::os::unix::fs::symlink("..data/relay.yaml", &file).unwrap();
        let mut changes = Changes::of(&file).unwrap();
        std::os::unix::fs::symlink("2", folder.path().join("..new")).unwrap();
        fs::rename(folder.path().join("..new"), &data).unwrap();
        assert!(noticed(&mut changes).await);
        assert_eq!(fs::read_to_string(&file).unwrap(), "2");
    }
}
