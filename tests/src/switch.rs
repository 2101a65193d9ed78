//! A switch for UDP that is worse than any real one, and the same in every run: by a seed it delays, reorders, doubles and loses datagrams between whoever sends to it and one address behind it.
//!
//! Each sender has a socket of its own towards that address, so several programs can use one switch.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    net::UdpSocket,
    task::{JoinSet, yield_now},
    time::sleep,
};

/// What happens to datagrams; shares are in a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Habits {
    /// All of them take this long at least…
    pub delay: Duration,
    /// …and up to so much longer.
    pub jitter: Duration,
    /// So many take [`Habits::late`] more, and so come after those behind them.
    pub reordered: u64,
    /// How much later those come.
    pub late: Duration,
    /// So many come twice.
    pub doubled: u64,
    /// So many do not come.
    pub lost: u64,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Seen {
    /// Datagrams that came in.
    pub datagrams: AtomicU64,
    /// Those that left late.
    pub reordered: AtomicU64,
    /// Those that left twice.
    pub doubled: AtomicU64,
    /// Those that did not leave.
    pub lost: AtomicU64,
}

/// A switch in front of an address, until it is dropped.
#[derive(Debug)]
pub struct Switch {
    /// Where to send.
    pub address: SocketAddr,
    /// What happened.
    pub seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

/// A decision for each datagram, by seed (xorshift64).
#[derive(Debug)]
struct Dice(Mutex<u64>);

impl Dice {
    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state >> 11
    }

    fn happens(&self, thousandths: u64) -> bool {
        self.next() % 1000 < thousandths
    }
}

/// What both directions share.
#[derive(Debug)]
struct Fate {
    habits: Habits,
    dice: Dice,
    seen: Arc<Seen>,
}

impl Fate {
    /// When the copies of a datagram leave.
    fn decide(&self) -> Vec<Duration> {
        let Habits { delay, jitter, reordered, late, doubled, lost } = self.habits;
        self.seen.datagrams.fetch_add(1, Relaxed);
        if self.dice.happens(lost) {
            self.seen.lost.fetch_add(1, Relaxed);
            return Vec::new();
        }
        let micros = u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX).max(1);
        let mut at = delay + Duration::from_micros(self.dice.next() % micros);
        if self.dice.happens(reordered) {
            self.seen.reordered.fetch_add(1, Relaxed);
            at += late;
        }
        let twice = self.dice.happens(doubled);
        self.seen.doubled.fetch_add(twice.into(), Relaxed);
        if twice { vec![at, at + late] } else { vec![at] }
    }

    fn pass(self: &Arc<Self>, datagram: &[u8], by: &Arc<UdpSocket>, to: SocketAddr) {
        for at in self.decide() {
            let (by, datagram) = (by.clone(), datagram.to_vec());
            tokio::spawn(async move {
                sleep(at).await;
                // A full buffer is one more way to lose it.
                let _ = by.send_to(&datagram, to).await;
            });
        }
    }
}

impl Switch {
    /// Puts a switch in front of `behind`.
    ///
    /// # Errors
    /// When there is no socket for it.
    pub async fn start(behind: SocketAddr, habits: Habits, seed: u64) -> Result<Self> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let (address, seen) = (front.local_addr()?, Arc::new(Seen::default()));
        let fate = Arc::new(Fate { habits, dice: Dice(Mutex::new(seed | 1)), seen: seen.clone() });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(front, behind, fate));
        Ok(Self { address, seen, _tasks: tasks })
    }
}

async fn serve(front: Arc<UdpSocket>, behind: SocketAddr, fate: Arc<Fate>) {
    let mut senders: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((len, from)) = front.recv_from(&mut buffer).await else {
            yield_now().await;
            continue;
        };
        let own = match senders.entry(from) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                let Ok(own) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.map(Arc::new) else { continue };
                back.spawn(give_back(own.clone(), front.clone(), from, fate.clone()));
                free.insert(own)
            }
        };
        fate.pass(&buffer[..len], own, behind);
    }
}

async fn give_back(own: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr, fate: Arc<Fate>) {
    let mut buffer = vec![0; 65_536];
    loop {
        match own.recv(&mut buffer).await {
            Ok(len) => fate.pass(&buffer[..len], &front, to),
            Err(_) => yield_now().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_decides_the_same() {
        let habits = Habits {
            delay: Duration::from_millis(5),
            jitter: Duration::from_millis(3),
            reordered: 100,
            late: Duration::from_millis(20),
            doubled: 50,
            lost: 10,
        };
        let fates = |seed| {
            let fate = Fate { habits, dice: Dice(Mutex::new(seed)), seen: Arc::default() };
            (0..2000).map(|_| fate.decide()).collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(9));
        let copies = |n| fates(7).iter().filter(|copies| copies.len() == n).count();
        assert!((5..60).contains(&copies(0)) && (50..170).contains(&copies(2)), "{} {}", copies(0), copies(2));
    }
}
