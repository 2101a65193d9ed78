//! Which processes belong to a task, read from `/proc`.
//!
//! A process can end, and its id be given to another, between being found and being signalled. So a signal goes through a
//! pidfd, which names one process for ever, and only after the process behind it has been looked at again.

#[cfg(target_os = "linux")]
use linux::send;
#[cfg(target_os = "linux")]
pub(super) use linux::{Marked, adopt_orphans, ended_orphans, find, search};
#[cfg(not(target_os = "linux"))]
use other::send;
#[cfg(not(target_os = "linux"))]
pub(super) use other::{Marked, adopt_orphans, ended_orphans, find, search};

/// A living process of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub pid: rustix::process::Pid,
    /// Since when it is there, which tells it from a later one with the same id.
    started: u64,
    /// Its parent has ended, and the peer has taken its place.
    pub orphan: bool,
    /// Somebody has stopped it, and it has not gone on.
    pub stopped: bool,
    /// The name of its program, as far as the kernel keeps it.
    pub name: [u8; 16],
}

impl Member {
    /// Sends it a signal. That it is gone already is no error.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn send(&self, signal: rustix::process::Signal) -> std::io::Result<()> {
        send(self, signal)
    }

    /// Whether it is the same process.
    pub fn is(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{fs, io};

    use rustix::{
        io::Errno,
        process::{
            Pid, PidfdFlags, Resource, Rlimit, Signal, getpid, getrlimit, kill_process, pidfd_open, pidfd_send_signal, set_child_subreaper,
            setrlimit,
        },
    };

    use super::{super::Mark, Member};

    /// Makes the peer the parent of every process of a task that loses its own.
    pub(in super::super) fn adopt_orphans() {
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            tracing::warn!(%error, "cannot adopt orphans: a process that leaves its task may outlive it");
        }
    }

    /// This process bears a mark, for its children to inherit, until the value is dropped.
    pub(in super::super) struct Marked(Rlimit);

    impl Marked {
        pub(in super::super) fn with(mark: Mark) -> Self {
            let before = getrlimit(Resource::Locks);
            // Refused when somebody has set a hard limit; then session and parent tell whose a process is.
            let _ = setrlimit(Resource::Locks, Rlimit { current: Some(mark.0), maximum: before.maximum });
            Self(before)
        }
    }

    impl Drop for Marked {
        fn drop(&mut self) {
            let _ = setrlimit(Resource::Locks, Rlimit { current: self.0.current, maximum: self.0.maximum });
        }
    }

    /// What `/proc/<pid>/stat` says.
    struct Stat {
        name: [u8; 16],
        state: u8,
        session: i32,
        started: u64,
    }

    impl Stat {
        fn of(pid: i32) -> Option<Self> {
            let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
            // pid (name) state ppid pgrp session … (field 22) starttime …, and the name may hold anything, parentheses too.
            let end_of_name = text.iter().rposition(|byte| *byte == b')')?;
            let start_of_name = text.iter().position(|byte| *byte == b'(')? + 1;
            let mut name = [0; 16];
            name.iter_mut().zip(text.get(start_of_name..end_of_name)?).for_each(|(to, from)| *to = *from);
            let rest = std::str::from_utf8(text.get(end_of_name + 2..)?).ok()?;
            let mut fields = rest.split(' ');
            let state = *fields.next()?.as_bytes().first()?;
            Some(Self { name, state, session: fields.nth(2)?.parse().ok()?, started: fields.nth(15)?.parse().ok()? })
        }

        fn has_ended(&self) -> bool {
            matches!(self.state, b'Z' | b'X')
        }
    }

    fn mark_of(pid: i32) -> Option<Mark> {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max file locks"))?;
        Mark::from_limit(line.split_whitespace().next()?.parse().ok()?)
    }

    fn living(pid: i32, orphan: bool) -> Option<Member> {
        let stat = Stat::of(pid).filter(|stat| !stat.has_ended())?;
        Some(Member { pid: Pid::from_raw(pid)?, started: stat.started, orphan, stopped: stat.state == b'T', name: stat.name })
    }

    /// Children of all threads of a process; `None` when the kernel keeps no such list.
    fn children_of(pid: i32) -> Option<Vec<i32>> {
        let mut children = Vec::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            // A thread that has just ended has no list any more.
            match fs::read_to_string(thread.path().join("children")) {
                Ok(list) => children.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
                Err(error) if error.kind() == io::ErrorKind::NotFound && thread.path().exists() => return None,
                Err(_) => {}
            }
        }
        Some(children)
    }

    fn own_children() -> Option<Vec<i32>> {
        children_of(getpid().as_raw_nonzero().get())
    }

    /// The living processes of a task. `known` are the first processes of all running tasks.
    pub(in super::super) fn find(root: Pid, mark: Mark, known: &[i32]) -> Vec<Member> {
        let root = root.as_raw_nonzero().get();
        let Some(children) = own_children() else { return search(mark) };
        let is_stray = |pid: i32| match mark_of(pid) {
            Some(found) => found == mark,
            None => Stat::of(pid).is_some_and(|stat| stat.session == root),
        };
        let mut found: Vec<(i32, bool)> = Vec::new();
        for pid in children {
            match known.contains(&pid) {
                true if pid == root => found.push((pid, false)),
                false if is_stray(pid) => found.push((pid, true)),
                _ => {}
            }
        }
        let mut next = 0;
        while let Some((pid, _)) = found.get(next).copied() {
            next += 1;
            let children = children_of(pid).unwrap_or_default();
            let new: Vec<_> = children.into_iter().filter(|child| !found.iter().any(|(pid, _)| pid == child)).collect();
            found.extend(new.into_iter().map(|pid| (pid, false)));
        }
        found.into_iter().filter_map(|(pid, orphan)| living(pid, orphan)).collect()
    }

    /// The living processes with a mark, whoever their parent is.
    pub(in super::super) fn search(mark: Mark) -> Vec<Member> {
        let own = getpid();
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| *pid != own.as_raw_nonzero().get() && mark_of(*pid) == Some(mark))
            .filter_map(|pid| living(pid, true))
            .collect()
    }

    /// Ended children that came to us as orphans of a task: marked, and of another session than ours, as nobody is whom another thread of this program started
    /// while it bore the mark.
    pub(in super::super) fn ended_orphans(is_known: impl Fn(i32) -> bool) -> Vec<i32> {
        let strays = own_children().unwrap_or_default().into_iter().filter(|pid| !is_known(*pid));
        let own_session = Stat::of(getpid().as_raw_nonzero().get()).map(|stat| stat.session);
        let has_ended = |pid: i32| Stat::of(pid).is_some_and(|stat| stat.has_ended() && Some(stat.session) != own_session);
        strays.filter(|pid| has_ended(*pid) && mark_of(*pid).is_some()).collect()
    }

    pub(super) fn send(member: &Member, signal: Signal) -> io::Result<()> {
        match pidfd_open(member.pid, PidfdFlags::empty()) {
            Ok(_) if !living(member.pid.as_raw_nonzero().get(), false).is_some_and(|now| now.is(member)) => Ok(()),
            Ok(process) => pidfd_send_signal(process, signal).or_else(gone_is_fine),
            Err(Errno::NOSYS | Errno::PERM) => kill_process(member.pid, signal).or_else(gone_is_fine),
            Err(error) => gone_is_fine(error),
        }
    }

    fn gone_is_fine(error: Errno) -> io::Result<()> {
        if error == Errno::SRCH { Ok(()) } else { Err(error.into()) }
    }
}

/// Without `/proc` a task is its process group; who leaves it is not found.
#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;

    use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

    use super::{super::Mark, Member};

    pub(in super::super) struct Marked;

    impl Marked {
        pub(in super::super) fn with(_: Mark) -> Self {
            Self
        }
    }

    pub(in super::super) fn adopt_orphans() {}

    pub(in super::super) fn find(root: Pid, _: Mark, _: &[i32]) -> Vec<Member> {
        test_kill_process_group(root)
            .map(|()| vec![Member { pid: root, started: 0, orphan: false, stopped: false, name: [0; 16] }])
            .unwrap_or_default()
    }

    pub(in super::super) fn search(_: Mark) -> Vec<Member> {
        Vec::new()
    }

    pub(in super::super) fn ended_orphans(_: impl Fn(i32) -> bool) -> Vec<i32> {
        Vec::new()
    }

    pub(super) fn send(group: &Member, signal: Signal) -> io::Result<()> {
        kill_process_group(group.pid, signal).map_err(io::Error::from)
    }
}
