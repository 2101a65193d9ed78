//! Figures, as they are printed as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{contest::Samples, machine};

/// What one benchmark found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its name.
    pub bench: &'static str,
    /// What was measured.
    pub commit: String,
    /// On what.
    pub machine: String,
    /// Where the programs kept their files.
    pub folder: String,
    /// How many programs wanted a core in the last minute before it (load average): much more than none, and others were measured, too.
    pub load_before: f64,
    /// Fewer runs.
    pub quick: bool,
    /// The figures, by name.
    pub metrics: BTreeMap<&'static str, Metric>,
    /// Tools that were not there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// A tool that could not be compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Which.
    pub tool: &'static str,
    /// How to get it, or what else stands in the way.
    pub install: String,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Metric {
    /// Our median.
    pub ours: f64,
    /// The other's median.
    pub other: Option<f64>,
    /// Of both.
    pub unit: &'static str,
    /// Who the other is.
    pub other_name: Option<String>,
    /// Ours through the other's.
    pub ratio: Option<f64>,
    /// How often each was measured.
    pub runs: usize,
    /// What 95 of 100 of our runs stay under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<f64>,
    /// What exactly was measured.
    pub what: &'static str,
    /// What is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Target {
    of: Of,
    want: Want,
    limit: Option<f64>,
    goal: Option<f64>,
    met: Option<Met>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Of {
    Ours,
    Ratio,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Want {
    AtMost,
    AtLeast,
}

/// How far a target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Met {
    /// The goal, or the limit where there is no goal.
    Goal,
    /// The limit, and not the goal.
    Limit,
    /// Not the limit.
    No,
}

impl Target {
    /// Our figure may be at most this.
    pub fn at_most(limit: f64) -> Self {
        Self { of: Of::Ours, want: Want::AtMost, limit: Some(limit), goal: None, met: None }
    }

    /// The ratio may be at most this.
    pub fn ratio_at_most(limit: f64) -> Self {
        Self { of: Of::Ratio, ..Self::at_most(limit) }
    }

    /// The ratio should be at least this.
    pub fn ratio_at_least(limit: f64) -> Self {
        Self { of: Of::Ratio, want: Want::AtLeast, ..Self::at_most(limit) }
    }

    /// Our figure should be at least this.
    pub fn share_at_least(limit: f64) -> Self {
        Self { want: Want::AtLeast, ..Self::at_most(limit) }
    }

    /// Where we want to be.
    pub fn goal(self, goal: f64) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// No limit: the figure is a goal only.
    pub fn goal_at_most(goal: f64) -> Self {
        Self { limit: None, goal: Some(goal), ..Self::at_most(goal) }
    }

    fn judge(self, ours: f64, ratio: Option<f64>) -> Self {
        let figure = match self.of {
            Of::Ours => Some(ours),
            Of::Ratio => ratio,
        };
        let met = figure.map(|figure| {
            let reaches = |bound: f64| match self.want {
                Want::AtMost => figure <= bound,
                Want::AtLeast => figure >= bound,
            };
            match (self.limit.map(reaches), self.goal.map(reaches)) {
                (Some(false), _) | (None, Some(false)) => Met::No,
                (_, Some(false)) => Met::Limit,
                _ => Met::Goal,
            }
        });
        Self { met, ..self }
    }

    /// Whether it is reached; `None` when there was nothing to compare with.
    pub fn met(&self) -> Option<Met> {
        self.met
    }

    /// "ratio ≤ 0.5, goal 0.25".
    pub fn text(&self) -> String {
        let of = if self.of == Of::Ratio { "ratio " } else { "" };
        let sign = if self.want == Want::AtMost { '≤' } else { '≥' };
        match (self.limit, self.goal) {
            (Some(limit), Some(goal)) => format!("{of}{sign} {limit}, goal {goal}"),
            (Some(limit), None) => format!("{of}{sign} {limit}"),
            (None, Some(goal)) => format!("goal {of}{sign} {goal}"),
            (None, None) => String::new(),
        }
    }
}

impl Metric {
    /// The median of our runs.
    pub fn of(unit: &'static str, what: &'static str, ours: &Samples) -> Self {
        let p95 = (ours.count() >= 20).then(|| round(ours.percentile(95.0)));
        Self { p95, runs: ours.count(), ..Self::single(unit, what, ours.median()) }
    }

    /// A figure that is measured once.
    pub fn single(unit: &'static str, what: &'static str, ours: f64) -> Self {
        Self { ours: round(ours), other: None, unit, other_name: None, ratio: None, runs: 1, p95: None, what, target: None }
    }

    /// Beside the other tool, if it was there.
    pub fn beside(self, name: &str, other: Option<&Samples>) -> Self {
        match other {
            Some(other) => self.beside_figure(name, other.median()),
            None => self,
        }
    }

    /// Beside another figure.
    pub fn beside_figure(self, name: &str, other: f64) -> Self {
        Self { other: Some(round(other)), other_name: Some(name.to_owned()), ratio: Some(round(self.ours / other)), ..self }
    }

    /// With what is wanted. After [`Self::beside`].
    pub fn wanted(self, target: Target) -> Self {
        Self { target: Some(target.judge(self.ours, self.ratio)), ..self }
    }
}

impl Report {
    /// Nothing measured yet. `load_before`: before anything was.
    pub fn new(bench: &'static str, quick: bool, folder: &str, load_before: f64) -> Self {
        let (commit, machine) = (machine::commit(), machine::describe());
        Self { bench, commit, machine, folder: folder.to_owned(), load_before, quick, metrics: BTreeMap::new(), missing: Vec::new() }
    }

    /// Adds a figure.
    pub fn add(&mut self, name: &'static str, metric: Metric) {
        self.metrics.insert(name, metric);
    }

    /// The tool, or a note that it is missing.
    pub fn found<T>(&mut self, tool: Result<T, Missing>) -> Option<T> {
        tool.map_err(|missing| self.missing.push(missing)).ok()
    }
}

/// Four significant digits: more would claim too much.
fn round(figure: f64) -> f64 {
    if figure == 0.0 || !figure.is_finite() {
        return figure;
    }
    let digits = 10f64.powf(3.0 - figure.abs().log10().floor());
    (figure * digits).round() / digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(ours: f64, other: f64, target: Target) -> Option<Met> {
        Metric::single("ms", "", ours).beside_figure("other", other).wanted(target).target.and_then(|target| target.met())
    }

    #[test]
    fn targets_are_judged() {
        let ratio = Target::ratio_at_most(0.5).goal(0.25);
        assert_eq!(met(1.0, 10.0, ratio), Some(Met::Goal));
        assert_eq!(met(4.0, 10.0, ratio), Some(Met::Limit));
        assert_eq!(met(6.0, 10.0, ratio), Some(Met::No));
        assert_eq!(met(6.0, 10.0, Target::ratio_at_least(0.5)), Some(Met::Goal));
        assert_eq!(met(16.0, 1.0, Target::goal_at_most(15.0)), Some(Met::No));
        let alone = Metric::single("ms", "", 1.0).wanted(ratio);
        assert_eq!(alone.target.and_then(|target| target.met()), None, "nothing to compare with is not a success");
    }

    #[test]
    fn figures_keep_four_digits() {
        assert_eq!(round(1234.56), 1235.0);
        assert_eq!(round(0.001_234_56), 0.001_235);
        assert_eq!(round(0.0), 0.0);
    }
}
