//! What is kept in a bounded room, and who yields when it is full: the pure rules of both tiers of the cache.
//!
//! Things belong to sessions, sessions to hubs. What was used least lately goes first: of a session that has more than its part, of that session; of a room that is full, of the hub that
//! holds the most. So a hub that holds no more than an equal part loses nothing to another one, and a session never fills the room alone.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use cortex_wire::id::SessionId;

/// A hub's number and a session of it.
pub type Namespace = (usize, SessionId);

/// The part of the room that one session may have.
const SESSION_PART: u64 = 2;

/// The room.
#[derive(Debug)]
pub struct Shelf<K, V> {
    limit: u64,
    bytes: u64,
    /// Grows with every use; a thing's stamp is when it was used last.
    clock: u64,
    items: HashMap<(Namespace, K), Item<V>>,
    sessions: HashMap<Namespace, Held<K>>,
    hubs: HashMap<usize, Held<(Namespace, K)>>,
}

#[derive(Debug)]
struct Item<V> {
    value: V,
    weight: u64,
    stamp: u64,
}

/// What one owner holds, least lately used first.
#[derive(Debug)]
struct Held<K> {
    bytes: u64,
    order: BTreeMap<u64, K>,
}

impl<K> Default for Held<K> {
    fn default() -> Self {
        Self { bytes: 0, order: BTreeMap::new() }
    }
}

/// Something that had to yield.
pub type Evicted<K, V> = (Namespace, K, V);

impl<K: Clone + Eq + Hash, V> Shelf<K, V> {
    /// An empty room for so many bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, bytes: 0, clock: 0, items: HashMap::new(), sessions: HashMap::new(), hubs: HashMap::new() }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that a hub holds.
    pub fn bytes_of(&self, hub: usize) -> u64 {
        self.hubs.get(&hub).map_or(0, |held| held.bytes)
    }

    /// Sessions of a hub of which something is held.
    pub fn sessions_of(&self, hub: usize) -> impl Iterator<Item = SessionId> {
        self.sessions.keys().filter(move |(of, _)| *of == hub).map(|(_, session)| *session)
    }

    /// Puts something in, used now; what has to yield for it comes back. What is there already is replaced.
    pub fn insert(&mut self, namespace: Namespace, key: K, value: V, weight: u64) -> Vec<Evicted<K, V>> {
        self.remove(namespace, &key);
        self.clock += 1;
        let stamp = self.clock;
        self.items.insert((namespace, key.clone()), Item { value, weight, stamp });
        self.sessions.entry(namespace).or_default().order.insert(stamp, key.clone());
        self.hubs.entry(namespace.0).or_default().order.insert(stamp, (namespace, key));
        self.weigh(namespace, weight)
    }

    /// Something there has become larger, and was used now.
    pub fn grow(&mut self, namespace: Namespace, key: &K, by: u64) -> Vec<Evicted<K, V>> {
        if self.get(namespace, key).is_none() {
            return Vec::new();
        }
        if let Some(item) = self.items.get_mut(&(namespace, key.clone())) {
            item.weight += by;
        }
        self.weigh(namespace, by)
    }

    fn weigh(&mut self, namespace: Namespace, by: u64) -> Vec<Evicted<K, V>> {
        self.bytes += by;
        self.sessions.entry(namespace).or_default().bytes += by;
        self.hubs.entry(namespace.0).or_default().bytes += by;
        let mut evicted = Vec::new();
        while self.sessions.get(&namespace).is_some_and(|held| held.bytes > self.limit / SESSION_PART) {
            let oldest = self.sessions.get(&namespace).and_then(|held| held.order.values().next().cloned());
            let Some(key) = oldest else { break };
            evicted.extend(self.remove(namespace, &key).map(|value| (namespace, key, value)));
        }
        while self.bytes > self.limit {
            let largest = self.hubs.values().max_by_key(|held| held.bytes);
            let Some((namespace, key)) = largest.and_then(|held| held.order.values().next().cloned()) else { break };
            evicted.extend(self.remove(namespace, &key).map(|value| (namespace, key, value)));
        }
        evicted
    }

    /// Something there, used now.
    pub fn get(&mut self, namespace: Namespace, key: &K) -> Option<&mut V> {
        let item = self.items.get_mut(&(namespace, key.clone()))?;
        self.clock += 1;
        let before = std::mem::replace(&mut item.stamp, self.clock);
        if let Some(held) = self.sessions.get_mut(&namespace) {
            held.order.remove(&before);
            held.order.insert(self.clock, key.clone());
        }
        if let Some(held) = self.hubs.get_mut(&namespace.0) {
            held.order.remove(&before);
            held.order.insert(self.clock, (namespace, key.clone()));
        }
        Some(&mut item.value)
    }

    /// Takes something out.
    pub fn remove(&mut self, namespace: Namespace, key: &K) -> Option<V> {
        let Item { value, weight, stamp } = self.items.remove(&(namespace, key.clone()))?;
        self.bytes -= weight;
        if let Some(held) = self.sessions.get_mut(&namespace) {
            held.order.remove(&stamp);
            held.bytes -= weight;
            if held.order.is_empty() {
                self.sessions.remove(&namespace);
            }
        }
        if let Some(held) = self.hubs.get_mut(&namespace.0) {
            held.order.remove(&stamp);
            held.bytes -= weight;
            if held.order.is_empty() {
                self.hubs.remove(&namespace.0);
            }
        }
        Some(value)
    }

    /// Takes everything of a session out.
    pub fn purge(&mut self, namespace: Namespace) -> Vec<(K, V)> {
        let keys: Vec<K> = self.sessions.get(&namespace).map(|held| held.order.values().cloned().collect()).unwrap_or_default();
        keys.into_iter().filter_map(|key| self.remove(namespace, &key).map(|value| (key, value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(hub: usize, n: u128) -> Namespace {
        (hub, SessionId(uuid::Uuid::from_u128(n)))
    }

    /// Numbers that look random, the same in every run.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % sides
        }
    }

    #[test]
    fn what_was_used_least_lately_yields_first() {
        let mut shelf = Shelf::new(8);
        let one = session(0, 1);
        assert!((0..4).all(|n| shelf.insert(one, n, "", 1).is_empty()));
        shelf.get(one, &0);
        let gone: Vec<_> = shelf.insert(one, 9, "", 1).into_iter().map(|(_, key, _)| key).collect();
        assert_eq!(gone, [1], "half of the room for one session");
        assert_eq!(shelf.insert(one, 100, "larger than a session's part", 5).last().map(|(_, key, _)| *key), Some(100));
        assert_eq!(shelf.bytes(), 0);
    }

    #[test]
    fn a_session_is_purged_whole_and_alone() {
        let mut shelf = Shelf::new(100);
        for n in 0..10 {
            shelf.insert(session(0, 1), n, n, 1);
            shelf.insert(session(0, 2), n, n, 1);
        }
        assert_eq!(shelf.purge(session(0, 1)).len(), 10);
        assert_eq!((shelf.bytes(), shelf.sessions_of(0).collect::<Vec<_>>()), (10, vec![session(0, 2).1]));
        assert!(shelf.get(session(0, 1), &3).is_none() && shelf.get(session(0, 2), &3).is_some());
        assert!(shelf.purge(session(0, 1)).is_empty());
    }

    #[test]
    fn the_laws_of_the_room_hold_whatever_happens() {
        for seed in 0..40 {
            let (mut dice, mut shelf) = (Dice(seed), Shelf::new(1_000));
            for _ in 0..2_000 {
                let hub = usize::try_from(dice.roll(3)).unwrap();
                let (at, key, weight) = (session(hub, u128::from(dice.roll(4))), dice.roll(60), 1 + dice.roll(90));
                let before: Vec<u64> = (0..3).map(|hub| shelf.bytes_of(hub)).collect();
                let evicted = match dice.roll(8) {
                    0 => shelf.remove(at, &key).map(|()| vec![]).unwrap_or_default(),
                    1 => shelf.grow(at, &key, weight),
                    2 => shelf.get(at, &key).map(|()| vec![]).unwrap_or_default(),
                    3 if dice.roll(50) == 0 => shelf.purge(at).into_iter().map(|_| None).collect::<Option<Vec<_>>>().unwrap_or_default(),
                    _ => shelf.insert(at, key, (), weight),
                };
                assert!(shelf.bytes() <= 1_000, "seed {seed}");
                assert!(shelf.sessions.values().all(|held| held.bytes <= 500 && !held.order.is_empty()), "seed {seed}");
                for ((other, _), ..) in evicted {
                    assert!(other == hub || before[other] > 1_000 / 3, "seed {seed}: a hub lost something below an equal part");
                }
                let sums =
                    (shelf.items.values().map(|item| item.weight).sum::<u64>(), shelf.hubs.values().map(|held| held.bytes).sum::<u64>());
                assert_eq!(sums, (shelf.bytes(), shelf.bytes()), "seed {seed}");
            }
        }
    }
}
