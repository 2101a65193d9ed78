//! Measuring side by side: contenders take turns, so that whatever else the machine does falls on all of them alike.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::interrupt;

/// Figures of one contender.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Half of the figures are below.
    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    /// This many percent of the figures are below; between two figures, what lies between them.
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let at = percent / 100.0 * last as f64;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        Self(figures.into_iter().collect())
    }
}

type Run<'a> = Box<dyn FnMut() -> anyhow::Result<f64> + 'a>;

/// Contenders that take turns.
#[derive(Default)]
pub struct Contest<'a>(Vec<(&'static str, Run<'a>)>);

/// Rounds of a contest.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Not counted.
    pub warm: usize,
    /// Counted, at most.
    pub counted: usize,
    /// After this time no round begins, once there are [`Self::LEAST`].
    pub within: Duration,
}

impl Rounds {
    const LEAST: usize = 3;
}

impl<'a> Contest<'a> {
    /// One that is measured; `run` answers one figure.
    pub fn enter(&mut self, name: &'static str, run: impl FnMut() -> anyhow::Result<f64> + 'a) {
        self.0.push((name, Box::new(run)));
    }

    /// Lets all of them run in every round. Who begins changes from round to round.
    pub fn hold(mut self, rounds: Rounds) -> anyhow::Result<BTreeMap<&'static str, Samples>> {
        let mut outcome: BTreeMap<&'static str, Samples> = BTreeMap::new();
        let count = self.0.len();
        let mut began = Instant::now();
        for round in 0..rounds.warm + rounds.counted {
            if round == rounds.warm {
                began = Instant::now();
            }
            if round >= rounds.warm + Rounds::LEAST && began.elapsed() > rounds.within {
                break;
            }
            for turn in 0..count {
                interrupt::check()?;
                let (name, run) = &mut self.0[(round + turn) % count];
                let figure = run().with_context(|| format!("{name} could not be measured"))?;
                if round >= rounds.warm {
                    outcome.entry(name).or_default().0.push(figure);
                }
            }
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_figures() {
        let samples: Samples = [4.0, 1.0, 3.0, 2.0].into_iter().collect();
        assert_eq!(samples.median(), 2.5);
        assert_eq!(samples.percentile(0.0), 1.0);
        assert_eq!(samples.percentile(100.0), 4.0);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn contenders_take_turns_and_each_begins_once() {
        let turns = std::cell::RefCell::new(String::new());
        let run = |name: &'static str| {
            let turns = &turns;
            move || {
                turns.borrow_mut().push_str(name);
                Ok(1.0)
            }
        };
        let mut contest = Contest::default();
        contest.enter("a", run("a"));
        contest.enter("b", run("b"));
        let outcome = contest.hold(Rounds { warm: 1, counted: 3, within: Duration::from_secs(60) }).unwrap();
        assert_eq!(*turns.borrow(), "abbaabba");
        assert_eq!(outcome["a"].count(), 3);
    }
}
