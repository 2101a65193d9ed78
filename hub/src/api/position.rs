//! Where a reader of a stream stands, as the `id` of each event says it and `Last-Event-ID` brings it back.
//!
//! A task's stream: `stdout.stderr.state`. A session's stream: the sequence number of the last row, and behind it `,task.stdout.stderr` for
//! each task whose output has begun and whose end is not among those rows; the task's id is 22 characters of base64url.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use cortex_wire::{id::TaskId, task::State};
use data_encoding::BASE64URL_NOPAD;

use super::{problem::Problem, tail::Offsets};

/// In a task's stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskPosition {
    /// How far in the output.
    pub offsets: Offsets,
    /// The last state that was told.
    pub state: Option<State>,
}

impl std::fmt::Display for TaskPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.offsets.stdout, self.offsets.stderr, self.state.map_or("", State::name))
    }
}

impl std::str::FromStr for TaskPosition {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let (offsets, state) = text.rsplit_once('.').ok_or_else(made_up)?;
        let state = if state.is_empty() { None } else { Some(State::from_name(state).ok_or_else(made_up)?) };
        Ok(Self { offsets: read_offsets(offsets)?, state })
    }
}

/// In a session's stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionPosition {
    /// The last row that was told.
    pub seq: u64,
    /// How far in the output of tasks.
    pub tasks: BTreeMap<TaskId, Offsets>,
}

impl std::fmt::Display for SessionPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.seq)?;
        for (task, offsets) in self.tasks.iter().filter(|(_, offsets)| **offsets != Offsets::default()) {
            write!(f, ",{}.{}.{}", BASE64URL_NOPAD.encode(task.as_bytes()), offsets.stdout, offsets.stderr)?;
        }
        Ok(())
    }
}

impl std::str::FromStr for SessionPosition {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let mut parts = text.split(',');
        let seq = parts.next().and_then(|seq| seq.parse().ok()).ok_or_else(made_up)?;
        let task = |part: &str| {
            let (task, offsets) = part.split_once('.').ok_or_else(made_up)?;
            let bytes = BASE64URL_NOPAD.decode(task.as_bytes()).map_err(|_| made_up())?;
            Ok((TaskId::from_slice(&bytes).map_err(|_| made_up())?, read_offsets(offsets)?))
        };
        Ok(Self { seq, tasks: parts.map(task).collect::<Result<_, Problem>>()? })
    }
}

fn read_offsets(text: &str) -> Result<Offsets, Problem> {
    let (stdout, stderr) = text.split_once('.').ok_or_else(made_up)?;
    let number = |text: &str| text.parse().map_err(|_| made_up());
    Ok(Offsets { stdout: number(stdout)?, stderr: number(stderr)? })
}

fn made_up() -> Problem {
    Problem::malformed("Last-Event-ID is not an id of this stream; leave it out to begin anew")
}

/// What a reader brought back: the header that browsers send, or the query for those who cannot set one.
pub fn last_event_id<P: std::str::FromStr<Err = Problem>>(headers: &HeaderMap, query: Option<&str>) -> Result<Option<P>, Problem> {
    let header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?"));
    header.or(query).filter(|id| !id.is_empty()).map(str::parse).transpose()
}

/// In a feed of numbered rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedPosition(pub u64);

impl std::str::FromStr for FeedPosition {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        text.parse().map(Self).map_err(|_| made_up())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_back() {
        let offsets = Offsets { stdout: 5, stderr: u64::MAX };
        for state in [None, Some(State::Running), Some(State::TimedOut)] {
            let position = TaskPosition { offsets, state };
            assert_eq!(position.to_string().parse::<TaskPosition>().unwrap(), position);
        }
        let task = |seed| TaskId::new(1, [seed; 10]);
        let position = SessionPosition { seq: 7, tasks: [(task(1), offsets), (task(2), Offsets { stdout: 1, stderr: 0 })].into() };
        assert_eq!(position.to_string().parse::<SessionPosition>().unwrap(), position);
        let idle = SessionPosition { seq: 7, tasks: [(task(1), Offsets::default())].into() };
        assert_eq!(idle.to_string(), "7");
    }

    #[test]
    fn what_was_made_up_is_refused() {
        for text in ["", "x", "1", "1.2", "1.2.nonsense", "-1.2.", "1.2.3.4"] {
            assert!(text.parse::<TaskPosition>().is_err(), "{text}");
        }
        for text in ["", "x", "1,", "1,abc.1.2", "1,AAAAAAAAAAAAAAAAAAAAAA", "1,AAAAAAAAAAAAAAAAAAAAAA.1", "1.2"] {
            assert!(text.parse::<SessionPosition>().is_err(), "{text}");
        }
    }
}
