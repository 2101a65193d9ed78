//! What a helper tells its peer: that the program runs, or why not, and how it ended. One datagram each, on a socket that the program never has.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::process::{Exit, Status};

/// Longer than any of them.
const BYTES: usize = 2048;

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    /// The program runs, behind every wall.
    Started,
    /// A wall could not be built: nothing runs.
    Failed(String),
    /// The sandbox stands, and the program could not be executed, with this error number.
    NotExecuted(i32),
    /// The program has ended.
    Ended(Exit),
}

impl Report {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Started => "started".to_owned(),
            Self::Failed(text) => format!("failed {}", cortex_wire::text::clean(text, BYTES / 2)),
            Self::NotExecuted(error) => format!("not-executed {error}"),
            Self::Ended(exit) => {
                let (kind, number) = match exit.status {
                    Status::Code(code) => ("code", code),
                    Status::Signal(signal) => ("signal", signal),
                    Status::Unknown => ("unknown", 0),
                };
                let (user, system) = (exit.user.as_micros(), exit.system.as_micros());
                format!("ended {kind} {number} {user} {system} {}", exit.peak_memory_bytes)
            }
        }
        .into_bytes()
    }

    /// What cannot be read is a failure, too.
    pub(super) fn decode(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let known = match word {
            "started" => Some(Self::Started),
            "failed" => Some(Self::Failed(rest.to_owned())),
            "not-executed" => rest.parse().ok().map(Self::NotExecuted),
            "ended" => exit_of(rest).map(Self::Ended),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Failed("the helper said something that cannot be read".into()))
    }
}

fn exit_of(text: &str) -> Option<Exit> {
    let mut words = text.split(' ');
    let (kind, number) = (words.next()?, words.next()?.parse().ok()?);
    let status = match kind {
        "code" => Status::Code(number),
        "signal" => Status::Signal(number),
        _ => Status::Unknown,
    };
    let mut count = || words.next()?.parse::<u64>().ok();
    let (user, system) = (Duration::from_micros(count()?), Duration::from_micros(count()?));
    Some(Exit { status, user, system, peak_memory_bytes: count()? })
}

/// Sends one, with a descriptor if there is one. A peer that is gone does not hear it.
pub(super) fn send(socket: &OwnedFd, report: &Report, fd: Option<BorrowedFd<'_>>) {
    let bytes = report.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let _ = sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// Takes one, if there is one now; `None` when there will be no more.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    let mut bytes = [0; BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let count = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?.bytes;
    if count == 0 {
        return Ok(None);
    }
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok(Some((Report::decode(&bytes[..count]), fds.flatten().next())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let exit =
            |status| Exit { status, user: Duration::from_micros(7), system: Duration::from_micros(1_000_001), peak_memory_bytes: 1 << 40 };
        let reports = [
            Report::Started,
            Report::Failed("cannot do this: no".into()),
            Report::NotExecuted(2),
            Report::Ended(exit(Status::Code(3))),
            Report::Ended(exit(Status::Signal(9))),
        ];
        for report in reports {
            assert_eq!(Report::decode(&report.encode()), report);
        }
        for bytes in [b"".as_slice(), b"ended", b"ended code", b"ended code 1 2", b"not-executed x", b"\xff\x00"] {
            assert!(matches!(Report::decode(bytes), Report::Failed(_)));
        }
    }
}
