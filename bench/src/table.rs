//! Figures as a table for people.

use std::fmt::Write as _;

use crate::report::{Met, Metric, Report};

/// One benchmark.
pub fn of(report: &Report) -> String {
    let mut out = format!("## {}\n\n{}\n", report.bench, origin(report));
    if !report.metrics.is_empty() {
        out.push_str("\n| figure | ours | other | ratio | wanted | reached | runs |\n| --- | ---: | ---: | ---: | --- | --- | ---: |\n");
    }
    for (name, metric) in &report.metrics {
        let _ = writeln!(out, "{}", row(name, metric));
    }
    out.push('\n');
    for (name, metric) in &report.metrics {
        let _ = writeln!(out, "- `{name}`: {}", metric.what);
    }
    for missing in &report.missing {
        let _ = writeln!(out, "- Not compared with {}: {}", missing.tool, missing.install);
    }
    out
}

/// All of them: docs/benchmarks.md.
pub fn page(reports: &[Report]) -> String {
    let mut out = String::from(
        "# Benchmarks\n\nMade by `make bench`; do not edit. Medians of runs in which ours and the other tool alternate, on one machine. `cortex-bench list` names the benchmarks, `cortex-bench NAME` runs one.\n",
    );
    for report in reports {
        let _ = write!(out, "\n{}", of(report));
    }
    out
}

fn origin(report: &Report) -> String {
    let quick = if report.quick { ", quick" } else { "" };
    let busy = if report.load_before > 1.0 {
        format!(" **The machine was busy with other things (load {}).**", report.load_before)
    } else {
        String::new()
    };
    format!("{}; files on {}; commit {}{quick}.{busy}", report.machine, report.folder, report.commit)
}

fn row(name: &str, metric: &Metric) -> String {
    let unit = metric.unit;
    let p95 = metric.p95.map_or_else(String::new, |p95| format!(" (p95 {p95})"));
    let other = match (metric.other, &metric.other_name) {
        (Some(other), Some(name)) => format!("{other} {unit}, {name}"),
        _ => "-".into(),
    };
    let ratio = metric.ratio.map_or_else(|| "-".into(), |ratio| ratio.to_string());
    let (wanted, reached) = match &metric.target {
        Some(target) => (target.text(), reached(target.met())),
        None => (String::new(), ""),
    };
    format!("| {name} | {} {unit}{p95} | {other} | {ratio} | {wanted} | {reached} | {} |", metric.ours, metric.runs)
}

fn reached(met: Option<Met>) -> &'static str {
    match met {
        Some(Met::Goal) => "yes",
        Some(Met::Limit) => "limit, not goal",
        Some(Met::No) => "**no**",
        None => "not compared",
    }
}
