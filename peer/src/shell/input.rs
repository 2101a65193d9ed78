//! What a task reads: pieces from the hub, each with its offset, into the program's pipe.
//!
//! A piece that came before is dropped, one that leaves a gap is not taken (the hub sends again from what was acknowledged), and no more than
//! [`limits::INPUT_WINDOW_BYTES`] wait for a program that does not read.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf as _, Bytes};
use cortex_wire::{limits, schema::TaskInput};
use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant},
};

use super::terminal::Sink;

/// Standard input of one task.
#[derive(Debug)]
pub struct Input {
    state: Mutex<State>,
    more: Notify,
    news: watch::Sender<()>,
    began: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// When the program was last given something.
    active: Option<Instant>,
    waiting: VecDeque<Bytes>,
    accepted: u64,
    written: u64,
    ended: bool,
    /// Nobody will read any more: everything that comes counts as read.
    gone: bool,
}

impl Input {
    /// Nothing came yet.
    pub fn new(news: watch::Sender<()>) -> Self {
        Self { state: Mutex::default(), more: Notify::new(), news, began: Instant::now() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is new in a piece.
    pub fn offer(&self, piece: TaskInput) {
        let TaskInput { offset, mut data, end } = piece;
        let mut state = self.state();
        if offset > state.accepted || state.ended {
            return;
        }
        let known = usize::try_from(state.accepted - offset).unwrap_or(usize::MAX).min(data.len());
        data.advance(known);
        let room = limits::INPUT_WINDOW_BYTES.saturating_sub(usize::try_from(state.accepted - state.written).unwrap_or(usize::MAX));
        let fits = data.len() <= room || state.gone;
        if !fits {
            data.truncate(room);
        }
        // An old piece does not end anything that came after it.
        state.ended |= end && fits && offset + (known + data.len()) as u64 >= state.accepted;
        state.accepted += data.len() as u64;
        if state.gone {
            state.written = state.accepted;
            drop(state);
            self.news.send_replace(());
            return;
        }
        if !data.is_empty() {
            state.waiting.push_back(data);
        }
        drop(state);
        self.more.notify_one();
    }

    /// Up to where the program was given its input.
    pub fn written(&self) -> u64 {
        self.state().written
    }

    /// For how long nothing was given to the program.
    pub fn idle(&self) -> Duration {
        self.state().active.unwrap_or(self.began).elapsed()
    }

    /// Writes until the end of the input, or until the program closes its side.
    pub async fn pump(&self, mut sink: Sink) {
        loop {
            let (piece, ended) = {
                let mut state = self.state();
                (state.waiting.pop_front(), state.ended)
            };
            match piece {
                Some(piece) => {
                    if sink.write_all(&piece).await.is_err() {
                        break;
                    }
                    let mut state = self.state();
                    state.written += piece.len() as u64;
                    state.active = Some(Instant::now());
                    drop(state);
                    self.news.send_replace(());
                }
                None if ended => {
                    sink.end().await;
                    break;
                }
                None => tokio::select! {
                    () = self.more.notified() => {}
                    () = sink.closed() => break,
                },
            }
        }
        self.discard();
    }

    /// Whatever comes now was read by nobody, and nobody waits for it.
    pub fn discard(&self) {
        let mut state = self.state();
        state.gone = true;
        state.waiting.clear();
        state.written = state.accepted;
        drop(state);
        self.news.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::unix::pipe;

    fn piece(offset: u64, data: &[u8], end: bool) -> TaskInput {
        TaskInput { offset, data: Bytes::copy_from_slice(data), end }
    }

    async fn read_all(input: &Input) -> Vec<u8> {
        let (sender, mut receiver) = pipe::pipe().unwrap();
        let mut out = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut receiver, &mut out);
        let (_, read) = tokio::join!(input.pump(Sink::Pipe(sender)), read);
        read.unwrap();
        out
    }

    #[tokio::test]
    async fn pieces_are_joined_by_their_offsets() {
        let input = Input::new(watch::Sender::default());
        input.offer(piece(0, b"abc", false));
        input.offer(piece(0, b"abc", false));
        input.offer(piece(9, b"gap", true));
        input.offer(piece(1, b"bcde", false));
        input.offer(piece(5, b"", true));
        input.offer(piece(5, b"late", false));
        assert_eq!(read_all(&input).await, b"abcde");
        assert_eq!(input.written(), 5);
    }

    #[tokio::test]
    async fn a_program_that_reads_nothing_does_not_fill_the_memory() {
        let input = Input::new(watch::Sender::default());
        input.offer(piece(0, &vec![0; limits::INPUT_WINDOW_BYTES], false));
        input.offer(piece(limits::INPUT_WINDOW_BYTES as u64, b"x", true));
        let state = input.state();
        assert_eq!(state.accepted, limits::INPUT_WINDOW_BYTES as u64);
        assert!(!state.ended);
    }

    #[tokio::test]
    async fn a_program_that_closed_its_input_does_not_stop_the_sender() {
        let input = Input::new(watch::Sender::default());
        let (sender, receiver) = pipe::pipe().unwrap();
        drop(receiver);
        tokio::time::timeout(std::time::Duration::from_secs(5), input.pump(Sink::Pipe(sender))).await.unwrap();
        input.offer(piece(0, b"abc", true));
        assert_eq!(input.written(), 3);
    }
}
