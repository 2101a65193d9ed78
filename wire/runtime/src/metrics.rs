//! Figures for operators, in the text format that Prometheus reads.

use std::{
    fmt::{Display, Write as _},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of a histogram's buckets, in microseconds.
const BUCKETS_US: [u64; 11] = [100, 500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000];

/// How long something took, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Each is in one bucket; the last is for what is above all bounds.
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// It took this long.
    pub fn note(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < took_us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(took_us, Relaxed);
    }

    /// Writes it as a metric, in seconds.
    #[expect(clippy::cast_precision_loss, reason = "microseconds shown as seconds")]
    pub fn write(&self, out: &mut Exposition, name: &str, help: &str) {
        out.head(name, "histogram", help);
        let mut count = 0;
        for (bound, bucket) in BUCKETS_US.iter().zip(&self.buckets) {
            count += bucket.load(Relaxed);
            out.line(&format!("{name}_bucket{{le=\"{}\"}}", *bound as f64 / 1e6), count);
        }
        count += self.buckets[BUCKETS_US.len()].load(Relaxed);
        out.line(&format!("{name}_bucket{{le=\"+Inf\"}}"), count);
        out.line(&format!("{name}_sum"), self.sum_us.load(Relaxed) as f64 / 1e6);
        out.line(&format!("{name}_count"), count);
    }
}

/// Text in Prometheus' exposition format.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// The content type it is served with.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4";

    /// Begins a metric.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of it, under a name with labels.
    pub fn line(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(name, value);
    }

    /// A counter without labels. Its name ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.line(name, value);
    }

    /// A metric with one value for each value of a label, which needs no quoting.
    pub fn labelled<L: Display, V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (L, V)>,
    ) {
        self.head(name, kind, help);
        for (of, value) in values {
            self.line(&format!("{name}{{{label}=\"{of}\"}}"), value);
        }
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.0
    }
}

/// Reads a text as strictly as `promtool check metrics` does, for tests: every value belongs to a metric that was announced once, names and labels are well formed, counters end in
/// `_total`, histograms count upwards to `+Inf`. Returns the values by name with labels.
///
/// # Errors
/// The first line that is wrong, and why.
pub fn check(text: &str) -> Result<std::collections::BTreeMap<String, f64>, String> {
    let is_name = |name: &str| {
        let mut letters = name.chars();
        letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    let (mut kinds, mut values) = (std::collections::BTreeMap::new(), std::collections::BTreeMap::new());
    let (mut current, mut last_bucket) = (String::new(), 0.0);
    for line in text.lines() {
        let wrong = |why: &str| Err(format!("{why}: {line}"));
        if let Some(help) = line.strip_prefix("# HELP ") {
            if !help.split_once(' ').is_some_and(|(name, help)| is_name(name) && !help.is_empty()) {
                return wrong("a help without a name or a text");
            }
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = kind.split_once(' ') else { return wrong("a type without a name") };
            if !matches!(kind, "gauge" | "counter" | "histogram") || (kind == "counter") != name.ends_with("_total") {
                return wrong("not the name of that kind");
            }
            if kinds.insert(name.to_owned(), kind.to_owned()).is_some() {
                return wrong("announced twice");
            }
            (current, last_bucket) = (name.to_owned(), 0.0);
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ') else { return wrong("neither a value nor a comment") };
        let Ok(value) = value.parse::<f64>() else { return wrong("not a number") };
        let (name, labels) = series.split_once('{').map_or((series, ""), |(name, labels)| (name, labels));
        let is_histogram = kinds.get(&current).is_some_and(|kind| kind == "histogram");
        let expected =
            if is_histogram { ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{current}{end}")) } else { name == current };
        if !is_name(name) || !expected {
            return wrong("not announced");
        }
        if !labels.is_empty() {
            let Some(labels) = labels.strip_suffix('}') else { return wrong("labels without an end") };
            for label in labels.split(',') {
                let quoted = label
                    .split_once('=')
                    .filter(|(name, value)| is_name(name) && value.len() >= 2 && value.starts_with('"') && value.ends_with('"'));
                if quoted.is_none_or(|(_, value)| value[1..value.len() - 1].contains(['"', '\\'])) {
                    return wrong("not a label");
                }
            }
        }
        if name.ends_with("_bucket") && is_histogram {
            if value < last_bucket {
                return wrong("a bucket below the one before");
            }
            last_bucket = value;
        }
        if name.ends_with("_count") && is_histogram && (value - last_bucket).abs() > 0.0 {
            return wrong("the count is not the last bucket");
        }
        if values.insert(series.to_owned(), value).is_some() {
            return wrong("a value given twice");
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_its_bucket_and_all_above() {
        let histogram = Histogram::default();
        histogram.note(Duration::from_micros(1_500));
        histogram.note(Duration::from_secs(60));
        let mut out = Exposition::default();
        histogram.write(&mut out, "wait_seconds", "A wait.");
        let values = check(&out.into_text()).unwrap();
        let bucket = |bound: &str| values[&format!("wait_seconds_bucket{{le=\"{bound}\"}}")];
        assert_eq!((bucket("0.001"), bucket("0.002"), bucket("2.5"), bucket("+Inf")), (0.0, 1.0, 1.0, 2.0));
        assert_eq!((values["wait_seconds_sum"], values["wait_seconds_count"]), (60.0015, 2.0));
    }

    #[test]
    fn what_prometheus_would_refuse_is_found() {
        for (text, why) in [
            ("a 1\n", "not announced"),
            ("# TYPE a gauge\na one\n", "not a number"),
            ("# TYPE a counter\na 1\n", "not the name of that kind"),
            ("# TYPE a gauge\n# TYPE a gauge\n", "announced twice"),
            ("# TYPE a gauge\na{b=c} 1\n", "not a label"),
            ("# TYPE a gauge\na 1\na 1\n", "given twice"),
            ("# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\n", "below"),
        ] {
            assert!(check(text).unwrap_err().contains(why), "{text}");
        }
        assert!(check("# HELP a Help.\n# TYPE a gauge\na{b=\"c\",d=\"e f\"} 1\n").is_ok());
    }
}
