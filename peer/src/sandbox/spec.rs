//! What a sandbox is to be: said by the peer, read by the helper from a sealed memory file.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::OwnedFd,
};

use prost::Message;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// The descriptors of a helper, after its three standard streams.
pub(super) mod descriptor {
    /// The [`super::Spec`].
    pub const SPEC: i32 = 3;
    /// A socket on which it reports.
    pub const REPORT: i32 = 4;
    /// The session's folder.
    pub const WORKSPACE: i32 = 5;
    /// On which a command of a shell session says what it leaves: the program's descriptor [`KEPT_INSIDE`].
    pub const KEPT: i32 = 6;
    /// Where the program finds it.
    pub const KEPT_INSIDE: i32 = 3;
}

/// A task's sandbox. Paths are absolute and the same inside and outside.
#[derive(Clone, PartialEq, Message)]
pub struct Spec {
    /// What is executed; relative to `folder` unless it is absolute.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Its arguments.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub environment: Vec<Vec<u8>>,
    /// Where the session's folder is.
    #[prost(bytes = "vec", tag = "4")]
    pub workspace: Vec<u8>,
    /// Where the program begins: `workspace` or below it.
    #[prost(bytes = "vec", tag = "5")]
    pub folder: Vec<u8>,
    /// What can be read besides the system.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub readable: Vec<Vec<u8>>,
    /// Names below `workspace` that stay as they are.
    #[prost(string, repeated, tag = "7")]
    pub protected: Vec<String>,
    /// The peer: when it is gone, so is the sandbox.
    #[prost(int32, tag = "8")]
    pub parent: i32,
    /// Instead of a program, the attempts of the self-test.
    #[prost(message, optional, tag = "9")]
    pub probe: Option<Probe>,
    /// A listener inside, for the peer's proxy.
    #[prost(bool, tag = "10")]
    pub network: bool,
    /// The program has a fourth descriptor.
    #[prost(bool, tag = "11")]
    pub keeps: bool,
    /// Where a process enters the task's cgroup; empty: it has none.
    #[prost(bytes = "vec", tag = "12")]
    pub group: Vec<u8>,
}

/// What the self-test tries to reach from inside.
#[derive(Clone, PartialEq, Message)]
pub struct Probe {
    /// A file of the peer's, outside.
    #[prost(string, tag = "1")]
    pub secret_file: String,
    /// A listener on the machine's loopback.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// A listener with a name in the abstract namespace.
    #[prost(string, tag = "3")]
    pub abstract_name: String,
}

impl Spec {
    /// In a memory file that nobody can change any more.
    pub(super) fn to_file(&self) -> io::Result<OwnedFd> {
        let fd = memfd_create("sandbox", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(fd);
        file.write_all(&self.encode_to_vec())?;
        file.rewind()?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(file.into())
    }

    /// What [`Self::to_file`] wrote.
    pub(super) fn from_file(file: OwnedFd) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes)?;
        Self::decode(bytes.as_slice()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
