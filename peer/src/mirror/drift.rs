//! The difference between this node's disk and the hub's tree, as a report.

use cortex_wire::{
    mirror::{path::RelPath, tree::Tree},
    schema::DriftReport,
};

use super::cache::Cache;

/// Paths in each list of a report.
const LIST: usize = 1_000;

/// Compares what was seen with what the hub has, where `covers` says so.
pub fn report(request: u64, revision: u64, cache: &Cache, hub: &Tree, covers: &dyn Fn(&RelPath) -> bool) -> DriftReport {
    let mut report = DriftReport { request, revision, ..DriftReport::default() };
    let mut more = 0;
    let mut note = |list: &mut Vec<String>, path: &RelPath| {
        if list.len() < LIST { list.push(path.to_string()) } else { more += 1 }
    };
    for (path, entry) in hub.iter().filter(|(path, _)| covers(path)) {
        match cache.get(&path) {
            None => note(&mut report.missing, &path),
            Some(known) if known.hash() != entry.hash() => note(&mut report.changed, &path),
            Some(_) => {}
        }
    }
    for (path, _) in cache.iter().filter(|(path, _)| covers(path)) {
        // A folder that holds nothing for the hub may stay for what is ignored in it.
        if hub.get(path).is_none() && !matches!(cache.get(path), Some(super::cache::Known::Directory)) {
            note(&mut report.extra, path);
        }
    }
    report.more = more;
    report
}

/// Whether a report has nothing to say.
pub fn is_none(report: &DriftReport) -> bool {
    report.missing.is_empty() && report.extra.is_empty() && report.changed.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::cache::Known;
    use cortex_wire::mirror::entry::Entry;

    #[test]
    fn what_differs_is_named() {
        let path = |text: &str| text.parse::<RelPath>().unwrap();
        let (mut cache, mut hub) = (Cache::default(), Tree::default());
        for name in ["same", "missing", "changed"] {
            hub.put(&path(name), Entry::Symlink("a".into())).unwrap();
        }
        cache.set(&path("same"), Some(Known::Symlink("a".into())));
        cache.set(&path("changed"), Some(Known::Symlink("b".into())));
        cache.set(&path("extra"), Some(Known::Symlink("c".into())));
        cache.set(&path("other"), Some(Known::Symlink("c".into())));
        let report = report(7, 3, &cache, &hub, &|at| *at != path("other"));
        assert_eq!((report.request, report.revision), (7, 3));
        assert_eq!((report.missing, report.extra, report.changed), (vec!["missing".into()], vec!["extra".into()], vec!["changed".into()]));
    }
}
