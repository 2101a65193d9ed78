use std::fs;

use super::*;

fn path(text: &str) -> RelPath {
    text.parse::<RelPath>().unwrap()
}

fn note(shared: &Shared, folder: &str, name: &[u8], mark: Mark) {
    shared.hear(Heard::Name { folder, name, mark });
}

/// Only Linux says so.
const CLOSED: Option<bool> = if cfg!(target_os = "linux") { Some(false) } else { None };

/// A folder that is watched.
struct Bench {
    dir: tempfile::TempDir,
    watch: Watch,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::new(dir.path());
        watch.folder("");
        Self { dir, watch }
    }

    fn folder(&self, name: &str) {
        fs::create_dir_all(self.dir.path().join(name)).unwrap();
        self.watch.folder(name);
    }

    fn write(&self, name: &str) {
        fs::write(self.dir.path().join(name), "x").unwrap();
    }

    /// What is heard until it is right.
    fn hears(&self, what: &str, right: impl Fn(&Dirty) -> bool) -> Dirty {
        let (begun, mut heard) = (Instant::now(), Dirty::default());
        while !right(&heard) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {heard:?}");
            std::thread::sleep(Duration::from_millis(2));
            heard.add(self.watch.take());
        }
        heard
    }

    /// Everything that happened until now, and nothing that comes later.
    fn all(&self) -> Dirty {
        self.write("the last of all");
        self.hears("the last event", |heard| heard.paths.contains_key(&path("the last of all")))
    }

    fn is_heard(&self, name: &str) {
        self.write(name);
        self.hears(name, |heard| heard.paths.get(&path(name)).is_some_and(|mark| mark.written));
    }
}

#[test]
fn our_own_folder_is_not_dirty_and_its_cookies_are_counted() {
    let shared = Shared::default();
    shared.state().cookies.insert("7".into(), false);
    for (folder, name) in
        [(".cortex/stage", "x"), ("", ".cortex"), (".cortex", "cookies"), (".cortex/cookies", "7"), (".cortex/cookies", "8")]
    {
        note(&shared, folder, name.as_bytes(), WRITTEN);
    }
    assert!(shared.state().dirty.is_empty());
    assert_eq!(shared.state().cookies, [("7".to_owned(), true)].into(), "what nobody waits for is not kept");
    note(&shared, "a/.cortex", b"x", WRITTEN);
    assert!(shared.state().dirty.paths.contains_key(&path("a/.cortex/x")), "only the one at the top is ours");
}

#[test]
fn a_name_that_is_no_text_makes_its_folder_dirty() {
    let shared = Shared::default();
    note(&shared, "d", b"\xff", WRITTEN);
    assert!(shared.state().dirty.paths[&path("d")].deep);
    note(&shared, "", b"\xff", WRITTEN);
    assert!(shared.state().dirty.everything);
}

#[test]
fn more_paths_than_are_worth_a_list_make_everything_dirty() {
    let mut dirty = Dirty::default();
    for i in 0..=DIRTY_PATHS {
        dirty.mark(path(&format!("f{i}")), Mark::default());
    }
    assert!(dirty.everything && dirty.paths.len() <= 1);
}

#[test]
fn more_unwatched_folders_than_are_worth_a_list_are_all_of_them() {
    let shared = Shared::default();
    (0..=UNWATCHED + 1).for_each(|i| shared.state().leave_out(&format!("d{i}")));
    let watch = Watch { shared: Arc::new(shared), backend: None };
    assert_eq!(watch.unwatched(), 1);
    watch.mark_unwatched();
    assert!(watch.take().everything);
}

#[tokio::test]
async fn a_write_in_a_watched_folder_is_heard_and_settles_soon() {
    let Bench { dir, watch } = Bench::new();
    fs::write(dir.path().join("f"), "x").unwrap();
    tokio::time::timeout(Duration::from_secs(10), watch.news()).await.unwrap();
    let at = watch.settles_at().unwrap();
    assert!(at <= Instant::now() + SETTLE_AT_MOST);
    tokio::time::sleep_until(at.into()).await;
    assert!(watch.take().paths[&path("f")].written);
    assert!(watch.take().is_empty());
    assert_eq!(watch.settles_at(), None);
}

#[test]
fn writing_marks_and_reading_does_not() {
    let bench = Bench::new();
    bench.folder("a");
    bench.write("a/f");
    assert_eq!(bench.all().paths[&path("a/f")], Mark { unclosed: CLOSED, ..WRITTEN });
    fs::read(bench.dir.path().join("a/f")).unwrap();
    fs::read_dir(bench.dir.path().join("a")).unwrap().for_each(drop);
    assert_eq!(bench.all().paths.keys().collect::<Vec<_>>(), [&path("the last of all")]);
    fs::remove_file(bench.dir.path().join("a/f")).unwrap();
    assert_eq!(bench.all().paths[&path("a/f")], Mark::default());
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_written_is_unclosed_until_it_is_closed_or_another_takes_its_place() {
    use std::io::Write as _;
    let bench = Bench::new();
    let mut file = fs::File::create(bench.dir.path().join("f")).unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(bench.all().paths[&path("f")].unclosed, Some(true));
    fs::rename(bench.dir.path().join("f"), bench.dir.path().join("g")).unwrap();
    let heard = bench.all();
    assert_eq!([heard.paths[&path("f")].unclosed, heard.paths[&path("g")].unclosed], [Some(false); 2]);
    file.write_all(b"x").unwrap();
    assert_eq!(bench.all().paths[&path("g")].unclosed, Some(true));
    drop(file);
    assert_eq!(bench.all().paths[&path("g")].unclosed, Some(false));
}

#[test]
fn a_folder_that_was_moved_is_heard_of_under_its_new_name() {
    let bench = Bench::new();
    bench.folder("a/inner");
    bench.watch.folder("a");
    bench.watch.folder("a/inner");
    fs::rename(bench.dir.path().join("a"), bench.dir.path().join("b")).unwrap();
    // Before or after its events are read: both must do.
    for folder in ["b", "b/inner"] {
        bench.watch.folder(folder);
    }
    let heard = bench.all();
    assert_eq!([heard.paths[&path("a")], heard.paths[&path("b")]], [ARRIVED; 2], "what is there may have been written meanwhile");
    for folder in ["b", "b/inner"] {
        bench.watch.folder(folder);
    }
    bench.is_heard("b/f");
    bench.is_heard("b/inner/f");
}

#[test]
fn the_late_end_of_a_folder_that_somebody_holds_open_does_not_end_the_watch_of_its_successor() {
    let bench = Bench::new();
    bench.folder("d");
    let held = fs::File::open(bench.dir.path().join("d")).unwrap();
    fs::remove_dir(bench.dir.path().join("d")).unwrap();
    bench.folder("d");
    bench.all();
    drop(held);
    bench.all();
    bench.is_heard("d/f");
}

#[test]
fn a_folder_that_takes_the_place_of_a_moved_one_is_heard_of() {
    let bench = Bench::new();
    bench.folder("d/inner");
    bench.watch.folder("d");
    let at = |name: &str| bench.dir.path().join(name);
    for round in 0..20 {
        fs::rename(at("d"), at(&format!("away {round}"))).unwrap();
        fs::create_dir_all(at("d/inner")).unwrap();
        // It may be seen before the move of the other one is heard of.
        let look = || ["d", "d/inner"].map(|folder| bench.watch.folder(folder));
        look();
        let heard = bench.all();
        assert_eq!(heard.paths[&path("d")], ARRIVED, "so it is looked at, and watched again");
        look();
        bench.is_heard("d/f");
        bench.is_heard("d/inner/f");
    }
}

/// Runs the test of this name anew, alone in a namespace of users where so many folders can be watched. Answers whether this is that run.
#[cfg(target_os = "linux")]
fn is_within_limit(test: &str, watches: usize) -> bool {
    if std::env::var_os("CORTEX_WITHIN_LIMIT").is_some() {
        return true;
    }
    let script = format!("echo {watches} > /proc/sys/user/max_inotify_watches && exec \"$0\" --exact --nocapture \"$1\"");
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", &script]).arg(std::env::current_exe().unwrap()).arg(test);
    let ended = command.env("CORTEX_WITHIN_LIMIT", "yes").output().expect("`unshare` is needed: apt-get install util-linux");
    assert!(ended.status.success(), "{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    false
}

#[cfg(target_os = "linux")]
#[test]
fn folders_beyond_the_limit_of_the_system_are_marked_at_a_slow_pace_until_they_can_be_watched() {
    if !is_within_limit(
        "mirror::watch::tests::folders_beyond_the_limit_of_the_system_are_marked_at_a_slow_pace_until_they_can_be_watched",
        4,
    ) {
        return;
    }
    let bench = Bench::new();
    for name in ["a", "b", "c", "d", "e"] {
        bench.folder(name);
    }
    assert_eq!(bench.watch.unwatched(), 2, "the top and three folders are watched");
    bench.is_heard("c/f");
    bench.write("d/f");
    assert!(!bench.all().paths.contains_key(&path("d/f")));
    bench.watch.mark_unwatched();
    let heard = bench.watch.take();
    assert_eq!([heard.paths[&path("d")], heard.paths[&path("e")]], [ARRIVED; 2]);
    for name in ["d", "e"] {
        bench.watch.folder(name);
    }
    assert_eq!(bench.watch.unwatched(), 2, "as long as there is no room");
    for name in ["a", "b"] {
        fs::remove_dir(bench.dir.path().join(name)).unwrap();
    }
    bench.all();
    for name in ["d", "e"] {
        bench.watch.folder(name);
    }
    assert_eq!(bench.watch.unwatched(), 0);
    bench.is_heard("d/f");
}

#[cfg(target_os = "linux")]
#[test]
fn a_queue_that_ran_over_makes_everything_dirty_and_what_comes_later_is_heard() {
    let bench = Bench::new();
    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    // Each file is two events at least, and equal ones in a row are one.
    bench.watch.backend.as_ref().unwrap().while_nobody_listens(|| (0..most * 2 / 3).for_each(|i| bench.write(&format!("f{i}"))));
    bench.hears("that events were lost", |heard| heard.everything);
    bench.is_heard("later");
}
