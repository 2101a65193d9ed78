//! `cortex-peer log`: the log for people, and for programs as JSON lines.

use std::{
    io::{self, Write},
    path::Path,
};

use cortex_wire::text;

use super::{Ending, Record, Starting, What, hex, read::Walk};

/// Of a line on a terminal.
const SHOWN: usize = 400;

/// How it is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// The records themselves.
    pub json: bool,
    /// And what is written from now on.
    pub follow: bool,
}

/// Shows the log in a folder. Whoever has seen enough (`| head`) ends it.
///
/// # Errors
/// When the files cannot be read.
pub fn show(folder: &Path, style: Style, out: &mut impl Write) -> io::Result<()> {
    let mut walk = Walk::default();
    let watch = style.follow.then(|| watch::Watch::new(folder)).transpose()?;
    let mut shown = || -> io::Result<()> {
        loop {
            walk.go_on(folder, |record, json, hash| {
                if style.json {
                    writeln!(out, "{{\"hash\":\"{}\",{}", hex(hash), json.trim_start_matches('{'))
                } else {
                    line(record).map_or(Ok(()), |line| writeln!(out, "{line}"))
                }
            })?;
            out.flush()?;
            match &watch {
                Some(watch) => watch.wait()?,
                None => return Ok(()),
            }
        }
    };
    match shown() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A record for a person.
fn line(record: &Record) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(record.at_ms).unwrap_or_default().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    let what = match &record.what {
        What::File { .. } => return None,
        What::Start(start) => start_line(start),
        What::End(end) => end_line(end),
    };
    Some(format!("{time}  {}", text::clean(&what, SHOWN)))
}

fn start_line(start: &Starting) -> String {
    let Starting { task, user, via, cwd, argv, script, clipped, approval, .. } = start;
    let command = if script.is_empty() { argv.join(" ") } else { script.lines().collect::<Vec<_>>().join("; ") };
    let more = if *clipped { " …" } else { "" };
    let by = if start.token.is_empty() { String::new() } else { format!(" with token {}", start.token) };
    let approved = approval.as_ref().map(|note| format!(", approved by {} ({})", note.user, note.scope)).unwrap_or_default();
    let place = if cwd.is_empty() { String::new() } else { format!("{cwd} ") };
    format!("{task}  start  {} {place}$ {command}{more}   [{user} via {via}{by}{approved}]", start.sandbox)
}

fn end_line(end: &Ending) -> String {
    let Ending { task, state, reason, wall_ms, .. } = end;
    let how = match (end.exit_code, end.signal) {
        (Some(code), _) => format!(", exit {code}"),
        (None, Some(signal)) => format!(", signal {signal}"),
        (None, None) => String::new(),
    };
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("{task}  end    {state}{how}, {wall_ms} ms{why}")
}

#[cfg(target_os = "linux")]
mod watch {
    use std::{io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

    use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};

    /// Something is written into a folder.
    pub(super) struct Watch(OwnedFd);

    impl Watch {
        pub(super) fn new(folder: &Path) -> io::Result<Self> {
            let inotify = init(CreateFlags::CLOEXEC)?;
            add_watch(&inotify, folder, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::DELETE)?;
            Ok(Self(inotify))
        }

        /// Since the last time.
        pub(super) fn wait(&self) -> io::Result<()> {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            Reader::new(&self.0, &mut buffer).next().map(drop).map_err(Into::into)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod watch {
    use std::{io, path::Path, time::Duration};

    /// Looks again: there is no event that all these systems have.
    pub(super) struct Watch;

    impl Watch {
        pub(super) fn new(_: &Path) -> io::Result<Self> {
            Ok(Self)
        }

        #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as where there are events")]
        pub(super) fn wait(&self) -> io::Result<()> {
            std::thread::sleep(Duration::from_millis(250));
            Ok(())
        }
    }
}
