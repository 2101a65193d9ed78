use super::*;
use cortex_wire::id::SessionId;
use std::{os::unix::fs::symlink, path::PathBuf};

struct Bench {
    dir: tempfile::TempDir,
    eyes: Eyes,
}

fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(&dir.path().join("work"), &SessionId::new(1, [1; 10])).unwrap());
        let watch = Arc::new(Watch::new(root.path()));
        let eyes = Eyes { root, cache: Arc::default(), ignored: Arc::default(), watch, read_files: Arc::default(), stop: Arc::default() };
        Self { dir, eyes }
    }

    fn full(&self, name: &str) -> PathBuf {
        self.eyes.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.full(name).parent().unwrap()).unwrap();
        std::fs::write(self.full(name), text).unwrap();
    }

    fn look(&self, dirty: &Dirty, how: How) -> Findings {
        let mut all = Findings::default();
        look(&self.eyes, dirty, how, None, &mut |portion| {
            all.add(portion);
            true
        })
        .unwrap();
        all
    }

    fn everything(&self) -> Vec<String> {
        said(self.look(&Dirty::everything(), How::default()))
    }

    fn at(&self, name: &str, mark: Mark) -> Vec<String> {
        let mut dirty = Dirty::default();
        dirty.mark(path(name), mark);
        said(self.look(&dirty, How::default()))
    }
}

fn said(findings: Findings) -> Vec<String> {
    let mut said: Vec<_> =
        findings.found.into_iter().map(|(path, found)| if found.is_some() { format!("+{path}") } else { format!("-{path}") }).collect();
    said.extend(findings.untracked.iter().map(|path| format!("~{path}")));
    said.sort();
    said
}

const DEEP: Mark = Mark { deep: true, written: false, tell: false, unclosed: None };
const WRITTEN: Mark = Mark { deep: false, written: true, tell: false, unclosed: None };

#[test]
fn only_what_changed_is_found_again() {
    let bench = Bench::new();
    bench.write("a/f", "1");
    bench.write("g", "2");
    symlink("g", bench.full("l")).unwrap();
    assert_eq!(bench.everything(), ["+a", "+a/f", "+g", "+l"]);
    assert!(bench.everything().is_empty());
    bench.write("g", "3");
    assert_eq!(bench.at("g", WRITTEN), ["+g"]);
    bench.write("g", "3");
    assert!(bench.at("g", WRITTEN).is_empty(), "touched, and the same");
    std::fs::remove_dir_all(bench.full("a")).unwrap();
    assert_eq!(bench.at("a", Mark::default()), ["-a", "-a/f"]);
    std::fs::remove_file(bench.full("g")).unwrap();
    std::fs::create_dir(bench.full("g")).unwrap();
    bench.write("g/h", "4");
    assert_eq!(bench.at("g", DEEP), ["+g", "+g/h"]);
    std::fs::remove_dir_all(bench.full("g")).unwrap();
    bench.write("g", "a file again");
    assert_eq!(bench.at("g", DEEP), ["+g", "-g/h"]);
    assert_eq!(said(bench.look(&Dirty::everything(), How { all: true, rehash: false })), ["+g", "+l"]);
}

#[test]
fn who_asks_is_answered_although_nothing_changed() {
    let bench = Bench::new();
    bench.write("d/f", "1");
    bench.everything();
    let ask = Mark { tell: true, ..WRITTEN };
    assert_eq!(bench.at("d/f", ask), ["+d/f"]);
    assert_eq!(bench.at("d", ask), ["+d"]);
    assert_eq!(bench.at("nothing", ask), ["-nothing"]);
    assert!(bench.at("nothing", WRITTEN).is_empty());
}

#[test]
fn what_is_being_written_is_not_read_unless_it_is_short_or_somebody_asks() {
    let bench = Bench::new();
    let writing = Mark { unclosed: Some(true), ..WRITTEN };
    bench.write("log", "a line");
    bench.write("long", &"x".repeat(UNCLOSED_BYTES as usize + 1));
    assert_eq!(bench.at("log", writing), ["+log"]);
    assert!(bench.at("long", writing).is_empty());
    assert_eq!(bench.at("long", Mark { tell: true, ..writing }), ["+long"]);
    bench.write("long", &"y".repeat(UNCLOSED_BYTES as usize + 1));
    assert!(bench.at("long", writing).is_empty());
    assert_eq!(bench.at("long", Mark { unclosed: Some(false), ..WRITTEN }), ["+long"]);
}

#[test]
fn two_writes_within_one_tick_of_the_clock_are_both_found() {
    let bench = Bench::new();
    for text in ["1", "2", "3", "4", "5"] {
        bench.write("f", text);
        assert_eq!(bench.at("f", WRITTEN), ["+f"], "{text}");
    }
    for text in ["6", "7", "8"] {
        bench.write("f", text);
        assert_eq!(bench.everything(), ["+f"], "without an event");
    }
}

#[test]
fn an_old_time_on_a_new_file_deceives_nobody() {
    let bench = Bench::new();
    bench.write("f", "old");
    bench.everything();
    let old = std::fs::metadata(bench.full("f")).unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    bench.everything();
    bench.write("f", "new");
    std::fs::File::options().write(true).open(bench.full("f")).unwrap().set_modified(old).unwrap();
    assert_eq!(bench.everything(), ["+f"]);
}

#[test]
fn what_is_ignored_does_not_count_and_stays() {
    let bench = Bench::new();
    bench.write("kept.o", "in before the rule");
    bench.everything();
    bench.write(".gitignore", "*.o\ntarget/\n");
    bench.write("new.o", "x");
    bench.write("target/deep/f", "x");
    bench.write(".git/config", "x");
    bench.write("f", "x");
    assert_eq!(bench.everything(), ["+.gitignore", "+f", "~kept.o"], "it is there, and in no more");
    bench.write("kept.o", "and still out");
    assert!(bench.at("kept.o", WRITTEN).is_empty());
    assert!(bench.at("target/deep/f", WRITTEN).is_empty());
    bench.write(".gitignore", "target/\n");
    assert_eq!(bench.at(".gitignore", WRITTEN), ["+.gitignore", "+kept.o", "+new.o"], "a rule that goes brings back what it hid");
    bench.write(".cortexignore", "!target/\n");
    assert_eq!(bench.at(".cortexignore", WRITTEN), ["+.cortexignore", "+target", "+target/deep", "+target/deep/f"]);
    bench.write(".gitignore", "*\n");
    let untracked = ["+.gitignore", "~f", "~kept.o", "~new.o", "~target/deep", "~target/deep/f"];
    assert_eq!(bench.at(".gitignore", WRITTEN), untracked, "files of rules are in, and ours go before git's");
}

#[test]
fn a_folder_that_is_not_readable_keeps_the_state_it_had() {
    let bench = Bench::new();
    bench.write("a/f", "1");
    bench.everything();
    // A mount point stands for everything that cannot be listed: the test may run as root.
    std::fs::rename(bench.full("a"), bench.full("b")).unwrap();
    symlink(bench.dir.path(), bench.full("a")).unwrap();
    assert_eq!(bench.everything(), ["+a", "+b", "+b/f", "-a/f"], "a link is a link, and nothing behind it counts");
}

#[test]
fn odd_things_are_reported_by_name() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let bench = Bench::new();
    std::fs::write(bench.full("").join(OsStr::from_bytes(b"x\xffy")), "").unwrap();
    rustix::fs::mknodat(bench.eyes.root.top(), "pipe", rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    std::os::unix::net::UnixListener::bind(bench.full("socket")).unwrap();
    std::fs::create_dir(bench.full(".Cortex")).unwrap();
    bench.write("ok", "");
    let findings = bench.look(&Dirty::everything(), How::default());
    let mut codes: Vec<_> = findings.troubles.iter().map(|trouble| (trouble.path.as_str(), trouble.code)).collect();
    codes.sort_unstable();
    assert_eq!(codes, [(".Cortex", "bad_name"), ("pipe", "special_file"), ("socket", "special_file"), ("x\u{fffd}y", "not_utf8")]);
    assert_eq!(said(findings), ["+ok"]);
}

#[test]
fn a_folder_that_vanished_is_no_deletion() {
    let bench = Bench::new();
    bench.write("f", "1");
    bench.everything();
    std::fs::rename(bench.eyes.root.path(), bench.dir.path().join("elsewhere")).unwrap();
    let ended = look(&bench.eyes, &Dirty::everything(), How::default(), None, &mut |_| panic!("nothing is to be told"));
    assert_eq!(ended, Err(Ended::RootGone));
}

#[test]
fn what_is_put_while_a_folder_is_listed_is_not_taken_for_gone() {
    let bench = Bench::new();
    bench.write("a/f", "1");
    bench.everything();
    // As an apply does it: on the disk and in the cache, after the look has passed.
    let known = bench.eyes.cache.lock().unwrap().get(&path("a/f")).unwrap().clone();
    for i in 0..2_000 {
        bench.write(&format!("b/f{i}"), "x");
    }
    let mut put = false;
    look(&bench.eyes, &Dirty::everything(), How::default(), None, &mut |portion| {
        if !put {
            put = true;
            bench.write("b/late", "1");
            bench.eyes.cache.lock().unwrap().set(&path("b/late"), Some(known.clone()));
        }
        assert!(!said(portion).iter().any(|said| said.starts_with('-')));
        true
    })
    .unwrap();
    assert!(put);
}

#[test]
fn a_large_file_is_named_and_not_read_until_somebody_has() {
    let bench = Bench::new();
    bench.write("small", "1");
    let large = std::fs::File::create(bench.full("large")).unwrap();
    large.set_len(LARGE_BYTES + 1).unwrap();
    let findings = bench.look(&Dirty::everything(), How::default());
    assert_eq!(findings.large, [(path("large"), true)]);
    assert_eq!(said(findings), ["+small"]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    let read = || crate::mirror::large::read(&bench.eyes.root, &path("large"), &AtomicBool::new(false), None).unwrap().1;
    bench.eyes.read_files.put(path("large"), read());
    assert_eq!(bench.at("large", WRITTEN), ["+large"]);
    assert!(bench.eyes.read_files.is_empty());
    assert!(bench.everything().is_empty(), "its times vouch for it");
    bench.eyes.read_files.put(path("large"), read());
    large.set_len(LARGE_BYTES + 2).unwrap();
    let findings = bench.look(&Dirty::everything(), How::default());
    assert_eq!(findings.large, [(path("large"), true)], "what was read is of an older one");
    let stopped = crate::mirror::large::read(&bench.eyes.root, &path("large"), &AtomicBool::new(true), None);
    assert!(matches!(stopped, Err(ReadError::Changed)));
}

#[test]
fn a_large_file_that_is_renamed_is_not_read_again_unless_it_may_have_been_written() {
    const RENAMED: Mark = Mark { unclosed: Some(false), deep: false, written: false, tell: false };
    let bench = Bench::new();
    let large = std::fs::File::create(bench.full("m")).unwrap();
    large.set_len(LARGE_BYTES + 1).unwrap();
    let read = |name: &str| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let (now, file) = crate::mirror::large::read(&bench.eyes.root, &path(name), &AtomicBool::new(false), None).unwrap();
        bench.eyes.read_files.put(now, file);
        bench.at(name, WRITTEN)
    };
    assert_eq!(read("m"), ["+m"]);
    let mut is_at = "m";
    let mut rename = |to: &'static str, old: Mark| {
        std::fs::rename(bench.full(is_at), bench.full(to)).unwrap();
        let mut dirty = Dirty::default();
        dirty.mark(path(is_at), old);
        dirty.mark(path(to), RENAMED);
        is_at = to;
        let findings = bench.look(&dirty, How::default());
        let is_large = !findings.large.is_empty();
        (said(findings), is_large)
    };
    // The new name is looked at before the old one, and after it.
    assert_eq!(rename("a", RENAMED), (vec!["+a".into(), "-m".into()], false));
    assert_eq!(rename("z", RENAMED), (vec!["+z".into(), "-a".into()], false));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(bench.at("z", RENAMED).is_empty());
    assert!(bench.everything().is_empty(), "its times vouch for it");
    let modified = std::fs::metadata(bench.full("z")).unwrap().modified().unwrap();
    let write_secretly = || {
        std::os::unix::fs::FileExt::write_all_at(&large, b"other", 0).unwrap();
        large.set_modified(modified).unwrap();
    };
    write_secretly();
    assert_eq!(rename("b", WRITTEN), (vec!["-z".into()], true), "an event spoke of the old name");
    assert_eq!(read("b"), ["+b"]);
    write_secretly();
    assert!(bench.at("b", WRITTEN).is_empty(), "it is to be read");
    assert_eq!(rename("c", RENAMED), (vec!["-b".into()], true), "an earlier event spoke of it");
    assert_eq!(read("c"), ["+c"]);
    std::fs::hard_link(bench.full("c"), bench.dir.path().join("elsewhere")).unwrap();
    assert_eq!(rename("d", RENAMED), (vec!["-c".into()], true), "it may be written under a name that nobody watches");
    // It was read, and no look has taken that yet.
    std::fs::remove_file(bench.dir.path().join("elsewhere")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let (now, file) = crate::mirror::large::read(&bench.eyes.root, &path("d"), &AtomicBool::new(false), None).unwrap();
    bench.eyes.read_files.put(now, file);
    assert_eq!(rename("e", RENAMED), (vec!["+e".into()], false));
}

#[test]
fn where_events_may_have_been_missed_only_times_that_leave_no_doubt_are_trusted() {
    let bench = Bench::new();
    bench.write("d/inner/f", "what was written since");
    bench.everything();
    let file = path("d/inner/f");
    let stat = bench.eyes.root.stat(&file).unwrap().unwrap();
    // As after a write within the tick in which it was looked at: the same times, other contents.
    let other = KnownFile { stat, looked_at_ns: stat.ctime_ns, content: [7; 32] };
    bench.eyes.cache.lock().unwrap().set(&file, Some(Known::File(other)));
    assert_eq!(bench.at("d", Mark { deep: true, ..WRITTEN }), ["+d/inner/f"], "the folder came from elsewhere");
    let sure = KnownFile { looked_at_ns: stat.ctime_ns + 1_000_000_000, ..other };
    bench.eyes.cache.lock().unwrap().set(&file, Some(Known::File(sure)));
    assert_eq!(bench.at("d", Mark { deep: true, ..WRITTEN }), Vec::<String>::new(), "these times vouch for what is known");
}
