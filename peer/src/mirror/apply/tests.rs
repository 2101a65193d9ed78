use super::*;
use cortex_wire::id::SessionId;
use std::{cell::Cell, os::unix::fs::symlink, path::PathBuf};

struct Bench {
    dir: tempfile::TempDir,
    hands: Hands,
}

fn path(text: &str) -> RelPath {
    text.parse().unwrap()
}

fn content(text: &str) -> [u8; 32] {
    *blake3::hash(text.as_bytes()).as_bytes()
}

fn hash(text: &str) -> Hash {
    Found::File { size: text.len() as u64, hash: content(text), executable: false }.hash()
}

fn go_on(_: Step) -> bool {
    true
}

impl Bench {
    fn new() -> Self {
        Self::within(tempfile::tempdir().unwrap())
    }

    fn within(dir: tempfile::TempDir) -> Self {
        let root = Arc::new(Root::open(&dir.path().join("work"), &SessionId::new(1, [1; 10])).unwrap());
        let (stage, _) = Stage::open(&root, 0, |_| false).unwrap();
        let hands = Hands { root, cache: Arc::default(), ignored: Arc::default(), stage: Arc::new(stage), rules: Vec::new() };
        Self { dir, hands }
    }

    /// After a crash: nothing is known but what lies on the disk and what the cache held before.
    fn restart(self, known: &[&str]) -> (Self, Vec<String>) {
        let Self { dir, hands } = self;
        let root = Arc::new(Root::open(&dir.path().join("work"), &SessionId::new(1, [1; 10])).unwrap());
        let known: Vec<_> = known.iter().map(|text| hash(text)).collect();
        let (stage, copies) = Stage::open(&root, 0, |hash| known.contains(hash)).unwrap();
        (Self { dir, hands: Hands { root, stage: Arc::new(stage), ..hands } }, copies)
    }

    fn full(&self, name: &str) -> PathBuf {
        self.hands.root.path().join(name)
    }

    /// Writes a file as a person does, and looks at it.
    fn seen(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.full(name).parent().unwrap()).unwrap();
        std::fs::write(self.full(name), text).unwrap();
        self.look(name);
    }

    fn look(&self, name: &str) {
        for folder in path(name).ancestors() {
            self.hands.cache.lock().unwrap().set(&folder, Some(Known::Directory));
        }
        let (folder, last) = self.hands.root.place(&path(name)).map(|(folder, last)| (folder, last.to_owned())).unwrap();
        let known = KnownFile::new(&read::hash(&folder, &last, &mut vec![0; BUFFER_BYTES]).unwrap(), now_ns());
        self.hands.cache.lock().unwrap().set(&path(name), Some(Known::File(known)));
    }

    fn staged(&self, text: &str) -> Put {
        let mut part = self.hands.stage.begin(&content(text), false).unwrap();
        io::Write::write_all(&mut part.file, text.as_bytes()).unwrap();
        Put::File { staged: self.hands.stage.complete(part), content: content(text), executable: false }
    }

    /// A small one, that has no name in the stage.
    fn unnamed(&self, text: &str) -> Put {
        let mut part = self.hands.stage.begin_small(&content(text), false).unwrap();
        assert!(part.name.starts_with("open-"), "{}: this file system knows no files without a name", part.name);
        io::Write::write_all(&mut part.file, text.as_bytes()).unwrap();
        Put::File { staged: self.hands.stage.complete(part), content: content(text), executable: false }
    }

    fn task(&self, name: &str, expect: Option<&str>, put: Put) -> Task {
        Task { path: path(name), expect: expect.map(hash), put, keep_copy: false }
    }

    fn apply(&self, tasks: &[Task]) -> Vec<Done> {
        apply(&self.hands, tasks, 1_700_000_000_000, &go_on).unwrap()
    }

    fn one(&self, task: Task) -> Result<(), Failed> {
        self.apply(&[task]).remove(0).result
    }

    fn text(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.full(name)).ok()
    }

    fn in_stage(&self) -> usize {
        self.hands.stage.names().unwrap().len()
    }
}

fn found(text: &str) -> Result<(), Failed> {
    Err(Failed::Found(Some(Found::File { size: text.len() as u64, hash: content(text), executable: false })))
}

fn code(result: &Result<(), Failed>) -> &'static str {
    match result {
        Err(Failed::Code { code, .. }) => code,
        _ => panic!("{result:?}"),
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_small_file_needs_no_name_until_it_is_in_its_place() {
    let bench = Bench::new();
    bench.seen("old", "one");
    bench.seen("other", "somebody's");
    std::fs::create_dir(bench.full("folder")).unwrap();
    let tasks = [
        bench.task("new", None, bench.unnamed("new")),
        bench.task("old", Some("one"), bench.unnamed("two")),
        bench.task("other", None, bench.unnamed("ours")),
        bench.task("nowhere/new", None, bench.unnamed("lost")),
        bench.task("folder", None, bench.unnamed("instead")),
    ];
    assert_eq!(bench.in_stage(), 0);
    let names: Vec<String> =
        tasks.iter().filter_map(|task| if let Put::File { staged, .. } = &task.put { Some(staged.clone()) } else { None }).collect();
    assert!(names.iter().all(|name| bench.hands.stage.stat(name).unwrap().is_some()));
    bench.hands.stage.sync(&names).unwrap();
    let done: Vec<_> = bench.apply(&tasks).into_iter().map(|done| done.result).collect();
    assert_eq!(done[..3], [Ok(()), Ok(()), found("somebody's")]);
    assert_eq!((code(&done[3]), &done[4]), ("io_error", &Ok(())));
    for (name, text) in [("new", "new"), ("old", "two"), ("other", "somebody's"), ("folder", "instead")] {
        assert_eq!(bench.text(name).as_deref(), Some(text), "{name}");
    }
    let cached = |name: &str| bench.hands.cache.lock().unwrap().file(&path(name)).copied();
    for name in ["new", "old", "folder"] {
        let (folder, last) = bench.hands.root.place(&path(name)).map(|(folder, last)| (folder, last.to_owned())).unwrap();
        assert_eq!(cached(name).map(|file| file.stat), folder.stat(&last).unwrap(), "{name}");
    }
    assert_eq!(bench.in_stage(), 0, "what was not put is gone");
    assert!(names.iter().all(|name| !matches!(bench.hands.stage.stat(name), Ok(Some(_)))));
}

#[test]
fn files_folders_and_links_are_made_replaced_and_removed() {
    let bench = Bench::new();
    let tasks = [
        bench.task("d", None, Put::Directory),
        bench.task("d/f", None, bench.staged("one")),
        bench.task("d/l", None, Put::Symlink("f".into())),
    ];
    assert!(bench.apply(&tasks).iter().all(|done| done.result.is_ok()));
    assert_eq!((bench.text("d/f").as_deref(), bench.text("d/l").as_deref()), (Some("one"), Some("one")));
    assert_eq!(bench.one(bench.task("d/f", Some("one"), bench.staged("two"))), Ok(()));
    assert_eq!(bench.text("d/f").as_deref(), Some("two"));
    let link = Found::Symlink("f".into()).hash();
    assert_eq!(bench.one(Task { expect: Some(link), ..bench.task("d/l", None, bench.staged("was a link")) }), Ok(()));
    assert!(!std::fs::symlink_metadata(bench.full("d/l")).unwrap().is_symlink());
    let directory = Some(Hash::directory());
    let tasks = [
        bench.task("d/l", Some("was a link"), Put::Nothing),
        bench.task("d/f", Some("two"), Put::Nothing),
        Task { expect: directory, ..bench.task("d", None, Put::Nothing) },
    ];
    assert!(bench.apply(&tasks).iter().all(|done| done.result.is_ok()));
    assert!(!bench.full("d").exists());
    assert!(bench.hands.cache.lock().unwrap().is_empty());
    assert_eq!(bench.in_stage(), 0, "nothing is left behind");
}

#[test]
fn an_edit_that_came_first_stays_and_is_told() {
    let bench = Bench::new();
    bench.seen("f", "old");
    std::fs::write(bench.full("f"), "an edit").unwrap();
    assert_eq!(bench.one(bench.task("f", Some("old"), bench.staged("new"))), found("an edit"));
    assert_eq!(bench.one(bench.task("f", Some("old"), Put::Nothing)), found("an edit"));
    assert_eq!(bench.one(bench.task("f", None, bench.staged("new"))), found("an edit"));
    assert_eq!(bench.text("f").as_deref(), Some("an edit"));
    assert_eq!(bench.in_stage(), 0);
    std::fs::remove_file(bench.full("f")).unwrap();
    assert_eq!(bench.one(bench.task("f", Some("an edit"), bench.staged("new"))), Err(Failed::Found(None)));
}

#[test]
fn an_edit_in_the_last_moment_goes_back_to_its_place() {
    // The edit comes between the look and the exchange, and between the exchange and the look at what was displaced.
    let bench = Bench::new();
    bench.seen("f", "old");
    std::thread::sleep(std::time::Duration::from_millis(30));
    bench.look("f");
    let editor = std::fs::OpenOptions::new().write(true).open(bench.full("f")).unwrap();
    let edit = |step| {
        if step == Step::Displaced {
            io::Write::write_all(&mut &editor, b"edit").unwrap();
        }
        true
    };
    let task = bench.task("f", Some("old"), bench.staged("new"));
    let done = apply(&bench.hands, std::slice::from_ref(&task), 0, &edit).unwrap();
    assert_eq!(done[0].result, found("edit"));
    assert_eq!(bench.text("f").as_deref(), Some("edit"));
    assert_eq!(bench.in_stage(), 0);

    let task = bench.task("f", Some("edit"), Put::Nothing);
    let done = apply(&bench.hands, &[task], 0, &edit).unwrap();
    assert_eq!(done[0].result, found("editedit"));
    assert_eq!(bench.text("f").as_deref(), Some("editedit"), "what was to be removed was edited, and is back");
}

#[test]
fn what_lost_a_conflict_is_kept_as_a_copy() {
    let bench = Bench::new();
    bench.seen("d/f", "mine");
    let done = bench.apply(&[Task { keep_copy: true, ..bench.task("d/f", Some("mine"), bench.staged("theirs")) }]);
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(bench.text("d/f").as_deref(), Some("theirs"));
    assert_eq!(bench.text(done[0].copy.as_ref().unwrap()).as_deref(), Some("mine"));
    assert_eq!(done[0].copy.as_deref(), Some(".cortex/conflicts/d/f.20231114T221320Z"));
}

#[test]
fn a_touched_file_that_holds_the_same_is_replaced() {
    let bench = Bench::new();
    bench.seen("f", "old");
    std::fs::write(bench.full("f"), "old").unwrap();
    assert_eq!(bench.one(bench.task("f", Some("old"), bench.staged("new"))), Ok(()));
    assert_eq!(bench.text("f").as_deref(), Some("new"));
}

#[test]
fn permissions_of_the_old_file_hold_for_the_new_one() {
    let bench = Bench::new();
    bench.seen("f", "old");
    std::fs::set_permissions(bench.full("f"), std::fs::Permissions::from_mode(0o600)).unwrap();
    bench.look("f");
    let mode = || std::fs::metadata(bench.full("f")).unwrap().permissions().mode() & 0o777;
    assert_eq!(bench.one(bench.task("f", Some("old"), bench.staged("new"))), Ok(()));
    assert_eq!(mode(), 0o600);
    assert_eq!(bench.one(bench.task("f", Some("new"), Put::Mode { executable: true })), Ok(()));
    assert_eq!(mode(), 0o700);
    let executable = Found::File { size: 3, hash: content("new"), executable: true }.hash();
    assert_eq!(bench.hands.cache.lock().unwrap().get(&path("f")).unwrap().hash(), executable);
    assert_eq!(bench.text("f").as_deref(), Some("new"));
}

#[test]
fn a_folder_stays_for_what_is_in_it() {
    let bench = Bench::new();
    bench.seen("d/f", "x");
    std::fs::write(bench.full("d/ignored.o"), "y").unwrap();
    assert_eq!(bench.one(bench.task("d/f", Some("x"), Put::Nothing)), Ok(()));
    let removed = bench.one(Task { expect: Some(Hash::directory()), ..bench.task("d", None, Put::Nothing) });
    assert_eq!(code(&removed), "not_empty");
    assert_eq!(bench.text("d/ignored.o").as_deref(), Some("y"));
}

#[test]
fn a_clean_subtree_moves_as_one_and_one_with_an_edit_does_not() {
    let bench = Bench::new();
    bench.seen("a/b/f", "x");
    bench.seen("a/g", "y");
    assert_eq!(bench.one(bench.task("a", None, Put::Move(path("z")))), Ok(()));
    assert_eq!((bench.text("z/b/f").as_deref(), bench.text("z/g").as_deref()), (Some("x"), Some("y")));
    let known = |cache: &Cache| cache.iter().map(|(path, _)| path.to_string()).collect::<Vec<_>>();
    assert_eq!(known(&bench.hands.cache.lock().unwrap()), ["z", "z/b", "z/b/f", "z/g"]);
    std::fs::write(bench.full("z/b/new"), "n").unwrap();
    assert_eq!(code(&bench.one(bench.task("z", None, Put::Move(path("q"))))), "changed");
    std::fs::remove_file(bench.full("z/b/new")).unwrap();
    std::fs::write(bench.full("z/b/f"), "edited").unwrap();
    assert_eq!(code(&bench.one(bench.task("z", None, Put::Move(path("q"))))), "changed");
    bench.look("z/b/f");
    std::fs::remove_file(bench.full("z/g")).unwrap();
    assert_eq!(code(&bench.one(bench.task("z", None, Put::Move(path("q"))))), "changed");
    bench.hands.cache.lock().unwrap().set(&path("z/g"), None);
    std::fs::create_dir(bench.full("q")).unwrap();
    assert_eq!(bench.one(bench.task("z", None, Put::Move(path("q")))), Err(Failed::Found(Some(Found::Directory))));
    assert!(bench.full("z/b/f").exists());
}

#[test]
fn a_link_swapped_in_at_any_component_leads_nowhere() {
    for swapped in ["a", "a/b", "a/b/c"] {
        let bench = Bench::new();
        let outside = bench.dir.path().join("outside");
        std::fs::create_dir_all(outside.join("b/c")).unwrap();
        for place in ["f", "b/f", "b/c/f", "c/f"] {
            let _ = std::fs::create_dir_all(outside.join(place).parent().unwrap());
            std::fs::write(outside.join(place), "outside").unwrap();
        }
        bench.seen("a/b/c/f", "old");
        std::fs::rename(bench.full(swapped), bench.dir.path().join("away")).unwrap();
        symlink(&outside, bench.full(swapped)).unwrap();
        let new = bench.one(bench.task("a/b/c/f", Some("old"), bench.staged("new")));
        assert_eq!(code(&new), "in_the_way", "{swapped}");
        assert_eq!(code(&bench.one(bench.task("a/b/c/g", None, bench.staged("new")))), "in_the_way");
        assert_eq!(code(&bench.one(bench.task("a/b/c/d", None, Put::Directory))), "in_the_way");
        assert_eq!(code(&bench.one(bench.task("a/b/c/l", None, Put::Symlink("x".into())))), "in_the_way");
        assert_eq!(bench.one(bench.task("a/b/c/f", Some("old"), Put::Nothing)), Ok(()), "it is not there any more");
        bench.look_away("a/b/c/f");
        assert_eq!(
            code(&bench.one(bench.task("a/b/c", None, Put::Move(path("m"))))),
            if swapped == "a/b/c" { "changed" } else { "in_the_way" }
        );
        for place in ["f", "b/f", "b/c/f", "c/f"] {
            assert_eq!(std::fs::read_to_string(outside.join(place)).unwrap(), "outside", "{swapped}, {place}");
        }
        assert_eq!(std::fs::read_dir(outside.join("b/c")).unwrap().count(), 1);
    }
}

#[test]
fn a_link_swapped_in_between_two_files_of_a_folder_leads_nowhere() {
    let bench = Bench::new();
    let (outside, away) = (bench.dir.path().join("outside"), bench.dir.path().join("away"));
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(bench.full("d")).unwrap();
    let tasks: Vec<Task> = (0..2 * HELD).map(|at| bench.task(&format!("d/{at:02}"), None, bench.staged(&at.to_string()))).collect();
    let placed = Cell::new(0);
    let swap = |step| {
        if step == Step::Placed && placed.replace(placed.get() + 1) == 0 {
            std::fs::rename(bench.full("d"), &away).unwrap();
            symlink(&outside, bench.full("d")).unwrap();
        }
        true
    };
    let done = apply(&bench.hands, &tasks, 0, &swap).unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(&away).unwrap().count(), HELD, "what was held goes along with it, and no more");
    assert!(done[..HELD].iter().all(|done| done.result.is_ok()));
    assert!(done[HELD..].iter().all(|done| code(&done.result) == "in_the_way"));
    assert_eq!(bench.in_stage(), 0);
}

#[test]
fn a_folder_that_goes_and_comes_back_in_a_batch_takes_what_is_put_into_it() {
    let bench = Bench::new();
    bench.seen("d/old", "old");
    let remove = |name: &str, expect| Task { path: path(name), expect, put: Put::Nothing, keep_copy: false };
    let tasks = [
        remove("d/old", Some(hash("old"))),
        remove("d", Some(Hash::directory())),
        bench.task("d", None, Put::Directory),
        bench.task("d/new", None, bench.staged("new")),
    ];
    assert!(bench.apply(&tasks).iter().all(|done| done.result.is_ok()));
    assert_eq!((bench.text("d/old"), bench.text("d/new").as_deref()), (None, Some("new")));
    // In one folder: removed by somebody while it is held, it is opened anew for the next file.
    let gone = |step| {
        if step == Step::Placed && !bench.full("d/again").exists() {
            std::fs::remove_dir_all(bench.full("d")).unwrap();
            std::fs::create_dir(bench.full("d")).unwrap();
        }
        true
    };
    let tasks = ["one", "two", "again"].map(|name| bench.task(&format!("d/{name}"), None, bench.staged(name)));
    let done = apply(&bench.hands, &tasks, 0, &gone).unwrap();
    assert_eq!(code(&done[1].result), "io_error", "tried again by itself");
    assert_eq!((done[2].result.clone(), bench.text("d/again").as_deref()), (Ok(()), Some("again")));
}

#[test]
fn what_is_new_gives_way_to_what_is_there_already() {
    let bench = Bench::new();
    bench.seen("file", "mine");
    std::fs::create_dir_all(bench.full("full/of")).unwrap();
    std::fs::create_dir(bench.full("empty")).unwrap();
    symlink("file", bench.full("link")).unwrap();
    assert_eq!(bench.one(bench.task("file", None, bench.staged("theirs"))), found("mine"));
    assert_eq!(code(&bench.one(bench.task("full", None, bench.staged("theirs")))), "in_the_way");
    let link = Err(Failed::Found(Some(Found::Symlink("file".into()))));
    assert_eq!(bench.one(bench.task("link", None, bench.staged("theirs"))), link);
    assert_eq!(bench.one(bench.task("empty", None, bench.staged("theirs"))), Ok(()));
    assert_eq!((bench.text("file").as_deref(), bench.text("empty").as_deref()), (Some("mine"), Some("theirs")));
    assert_eq!(bench.in_stage(), 0);
}

impl Bench {
    fn look_away(&self, name: &str) {
        self.hands.cache.lock().unwrap().set(&path(name), None);
    }
}

#[test]
fn a_link_in_the_files_own_place_is_an_edit_and_is_not_followed() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("secret");
    std::fs::write(&outside, "secret").unwrap();
    bench.seen("f", "old");
    std::fs::remove_file(bench.full("f")).unwrap();
    symlink(&outside, bench.full("f")).unwrap();
    let target: Arc<str> = outside.to_str().unwrap().into();
    let edit = Err(Failed::Found(Some(Found::Symlink(target))));
    assert_eq!(bench.one(bench.task("f", Some("old"), bench.staged("new"))), edit);
    assert_eq!(bench.one(bench.task("f", Some("old"), Put::Mode { executable: true })), edit);
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "secret");
    assert_eq!(std::fs::metadata(&outside).unwrap().permissions().mode() & 0o111, 0);
}

#[test]
fn a_hard_link_to_something_outside_is_cut_and_not_written_through() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    std::fs::write(&outside, "shared").unwrap();
    std::fs::hard_link(&outside, bench.full("f")).unwrap();
    bench.look("f");
    assert_eq!(bench.one(bench.task("f", Some("shared"), bench.staged("new"))), Ok(()));
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "shared");
}

#[test]
fn a_device_or_fifo_in_the_way_is_left_alone() {
    let bench = Bench::new();
    rustix::fs::mknodat(bench.hands.root.top(), "f", rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert_eq!(code(&bench.one(bench.task("f", None, bench.staged("new")))), "in_the_way");
    assert_eq!(code(&bench.one(bench.task("f", Some("old"), Put::Nothing))), "in_the_way");
    assert!(bench.full("f").exists());
}

#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new_and_no_edit_is_lost() {
    for crash_at in 0.. {
        let bench = Bench::new();
        bench.seen("replaced", "old");
        bench.seen("removed", "going");
        bench.seen("link", "was a file");
        let tasks = [
            bench.task("created", None, bench.staged("created")),
            bench.task("replaced", Some("old"), bench.staged("new")),
            bench.task("link", Some("was a file"), Put::Symlink("created".into())),
            bench.task("d", None, Put::Directory),
            bench.task("removed", Some("going"), Put::Nothing),
        ];
        let steps = Cell::new(0);
        let crash = |_| steps.replace(steps.get() + 1) != crash_at;
        let whole = apply(&bench.hands, &tasks, 0, &crash).is_ok();
        let (bench, copies) = bench.restart(&["old", "going", "was a file"]);
        assert_eq!(copies, Vec::<String>::new(), "all that was displaced is known");
        assert!(matches!(bench.text("replaced").as_deref(), Some("old" | "new")), "step {crash_at}");
        assert!(matches!(bench.text("created").as_deref(), None | Some("created")));
        assert!(matches!(bench.text("removed").as_deref(), None | Some("going")));
        let link = std::fs::symlink_metadata(bench.full("link")).unwrap();
        assert!(link.is_symlink() || bench.text("link").as_deref() == Some("was a file"));
        bench.hands.stage.discard_left();
        assert_eq!(bench.in_stage(), 0, "step {crash_at}");
        if whole {
            assert!(crash_at > 8, "every step was tried");
            return;
        }
    }
}

#[test]
fn an_edit_that_a_crash_left_displaced_becomes_a_conflict_copy() {
    for put in ["new", ""] {
        let bench = Bench::new();
        bench.seen("f", "old");
        std::thread::sleep(std::time::Duration::from_millis(30));
        bench.look("f");
        let editor = std::fs::OpenOptions::new().write(true).open(bench.full("f")).unwrap();
        let put = if put.is_empty() { Put::Nothing } else { bench.staged(put) };
        let task = bench.task("f", Some("old"), put);
        let crash = |step| {
            if step == Step::Displaced {
                io::Write::write_all(&mut &editor, b"edit").unwrap();
            }
            step != Step::Displaced
        };
        assert_eq!(apply(&bench.hands, &[task], 0, &crash), Err(Crash));
        let (bench, copies) = bench.restart(&["old"]);
        assert_eq!(bench.text(&copies[0]).as_deref(), Some("edit"));
    }
}

#[test]
fn a_reader_never_misses_a_file_and_never_sees_half_of_one() {
    let bench = Bench::new();
    let text = |i: usize| format!("{i:04}").repeat(4096);
    bench.seen("f", &text(0));
    let full = bench.full("f");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::metadata(&full).unwrap();
                let read = std::fs::read_to_string(&full).unwrap();
                assert!(read.len() == 4 * 4096 && read == read[..4].repeat(4096), "torn");
                reads += 1;
            }
            reads
        });
        for i in 1..=1_000 {
            assert_eq!(bench.one(bench.task("f", Some(&text(i - 1)), bench.staged(&text(i)))), Ok(()));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn what_the_system_refuses_is_said_and_nothing_is_changed() {
    let bench = Bench::new();
    let long = "x".repeat(250);
    assert_eq!(bench.one(bench.task(&long, None, bench.staged("x"))), Ok(()));
    for (errno, code) in [(Errno::NOSPC, "no_space"), (Errno::ROFS, "read_only"), (Errno::ACCESS, "not_permitted"), (Errno::IO, "io_error")]
    {
        assert!(matches!(Failed::from(errno), Failed::Code { code: told, .. } if told == code));
    }
}

#[test]
fn where_two_names_are_one_file_the_second_is_refused_and_the_first_stays() {
    let mut bench = Bench::new();
    let root = Root::open(&bench.dir.path().join("work"), &SessionId::new(1, [1; 10])).unwrap().folding(true);
    bench.hands.root = Arc::new(root);
    let refused = |task: Task| matches!(bench.one(task), Err(Failed::Code { code: "case_collision", .. }));
    assert_eq!(bench.one(bench.task("readme", None, bench.staged("one"))), Ok(()));
    assert_eq!(bench.one(bench.task("d\u{e9}", None, Put::Directory)), Ok(()));
    assert!(refused(bench.task("README", None, bench.staged("two"))));
    assert!(refused(bench.task("de\u{301}", None, Put::Directory)));
    assert!(refused(bench.task("DE\u{301}/f", None, bench.staged("three"))), "not into the other folder");
    assert!(refused(bench.task("Readme", None, Put::Symlink("x".into()))));
    assert_eq!(bench.one(bench.task("README", None, Put::Nothing)), Ok(()), "what is not there needs no removal");
    assert_eq!((bench.text("readme").as_deref(), bench.in_stage()), (Some("one"), 0));
    assert_eq!(bench.one(bench.task("readme", Some("one"), bench.staged("new"))), Ok(()));
    assert_eq!(bench.one(bench.task("readme", Some("new"), Put::Nothing)), Ok(()));
    assert_eq!(bench.one(bench.task("README", None, bench.staged("two"))), Ok(()), "its twin is gone");
}

#[test]
fn where_two_names_are_one_file_a_new_case_is_no_collision_and_a_crash_loses_nothing() {
    for crash_at in 0.. {
        let mut bench = Bench::new();
        let root = Root::open(&bench.dir.path().join("work"), &SessionId::new(1, [1; 10])).unwrap().folding(true);
        bench.hands.root = Arc::new(root);
        bench.seen("src/f", "in a folder");
        bench.seen("read.me", "a file");
        let tasks = [bench.task("read.me", None, Put::Move(path("READ.me"))), bench.task("src", None, Put::Move(path("Src")))];
        let steps = Cell::new(0);
        let crash = |_| steps.replace(steps.get() + 1) != crash_at;
        let done = apply(&bench.hands, &tasks, 0, &crash);
        let (bench, copies) = bench.restart(&["a file", "in a folder"]);
        let in_copy = copies.first().and_then(|copy| bench.text(&format!("{copy}/f")));
        let found = [bench.text("src/f"), bench.text("Src/f"), in_copy];
        assert_eq!(found.iter().flatten().collect::<Vec<_>>(), ["in a folder"], "step {crash_at}: {copies:?}");
        assert_eq!(bench.in_stage(), 0);
        if let Ok(done) = done {
            assert!(done.iter().all(|done| done.result == Ok(())), "{done:?}");
            assert_eq!((bench.text("READ.me").as_deref(), bench.text("read.me")), (Some("a file"), None));
            assert!(bench.full("Src/f").exists() && crash_at > 5, "every step was tried");
            return;
        }
    }
}

#[test]
fn what_is_ignored_is_not_removed_and_what_may_be_waits_for_the_rules() {
    let mut bench = Bench::new();
    bench.seen("a.log", "log");
    bench.seen("f", "f");
    let rules = "*.log\n";
    bench.hands.rules = vec![(path(".gitignore"), hash(rules))];
    let early = bench.one(bench.task("a.log", Some("log"), Put::Nothing));
    assert!(matches!(early, Err(Failed::Code { code: "rules_first", .. })), "{early:?}");
    let put = bench.staged(rules);
    let tasks =
        [bench.task(".gitignore", None, put), bench.task("f", Some("f"), Put::Nothing), bench.task("a.log", Some("log"), Put::Nothing)];
    assert!(bench.apply(&tasks).iter().all(|done| done.result == Ok(())));
    assert_eq!((bench.text("a.log").as_deref(), bench.text("f")), (Some("log"), None));
    assert_eq!(bench.hands.cache.lock().unwrap().get(&path("a.log")), None);
    assert!(bench.hands.ignored.lock().unwrap().take_put(), "what else they cover is looked for");
}

#[test]
fn what_is_ignored_does_not_move_with_what_has_its_bytes() {
    let mut bench = Bench::new();
    bench.seen("old/a.log", "log");
    bench.seen("d/f", "f");
    bench.seen("free/f", "g");
    let rules = "*.log\n/d\n";
    bench.hands.rules = vec![(path(".gitignore"), hash(rules))];
    let early = bench.one(bench.task("free", None, Put::Move(path("other"))));
    assert_eq!(code(&early), "rules_first");
    let put = bench.staged(rules);
    assert_eq!(bench.one(bench.task(".gitignore", None, put)), Ok(()));
    for (from, to) in [("old/a.log", "copy"), ("old", "new"), ("d", "e"), ("d/f", "g")] {
        assert_eq!(code(&bench.one(bench.task(from, None, Put::Move(path(to))))), "ignored", "{from}");
    }
    assert_eq!((bench.text("old/a.log").as_deref(), bench.text("d/f").as_deref()), (Some("log"), Some("f")));
    assert_eq!(bench.one(bench.task("free", None, Put::Move(path("other")))), Ok(()));
}
