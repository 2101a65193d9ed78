//! A private key in a file that only its owner reads: 64 hexadecimal digits, mode 0600, made once.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use cortex_wire::key::SecretKey;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file system said no.
    #[error("cannot use the key file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error("the key file {path} may be read by others than its owner; run: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{path} does not hold a key (64 hexadecimal digits); restore it from a backup, or remove it and enrol again")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the key at `path`, or makes one there. Parent folders are made with mode 0700.
///
/// # Errors
/// [`KeyFileError`].
pub fn load_or_create(path: &Path) -> Result<SecretKey, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => create(path),
        result => result,
    }
}

/// Reads the key at `path`.
///
/// # Errors
/// [`KeyFileError`].
pub fn load(path: &Path) -> Result<SecretKey, KeyFileError> {
    let io_error = |source| KeyFileError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if file.metadata().map_err(io_error)?.permissions().mode() & 0o077 != 0 {
            return Err(KeyFileError::Exposed { path: path.to_owned() });
        }
    }
    let mut text = String::new();
    file.take(256).read_to_string(&mut text).map_err(io_error)?;
    parse(text.trim()).ok_or_else(|| KeyFileError::Malformed { path: path.to_owned() })
}

fn parse(text: &str) -> Option<SecretKey> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut seed = [0; 32];
    for (i, byte) in seed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(SecretKey::from_seed(seed))
}

fn create(path: &Path) -> Result<SecretKey, KeyFileError> {
    let io_error = |source| KeyFileError::Io { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        make_private_dir(parent).map_err(io_error)?;
    }
    let key = SecretKey::from_seed(crate::clock::random());
    let mut text: String = key.to_seed().iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    // Whole or not at all: a key file that a crash cut short would lock its owner out.
    let staged = path.with_extension("new");
    let _ = fs::remove_file(&staged);
    write_private(&staged, text.as_bytes()).map_err(io_error)?;
    fs::rename(&staged, path).map_err(io_error)?;
    Ok(key)
}

/// Makes a file that only its owner reads, durably. It must not be there yet.
///
/// # Errors
/// What the file system says.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a folder and its parents, for its owner only.
///
/// # Errors
/// What the file system says.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/node.key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap().public(), made.public());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load(&path), Err(KeyFileError::Exposed { .. })));
    }

    #[test]
    fn anything_else_is_not_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        load_or_create(&path).unwrap();
        for text in ["", "zz", "é".repeat(32).as_str(), &"g".repeat(64)] {
            fs::write(&path, text).unwrap();
            assert!(matches!(load(&path), Err(KeyFileError::Malformed { .. })), "{text:?}");
        }
    }
}
