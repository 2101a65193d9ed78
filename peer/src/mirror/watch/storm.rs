//! Folders that are made, moved, replaced and removed by people and by the mirror itself while files in them are written: when it is quiet, all of it was reported.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cortex_wire::{id::SessionId, mirror::path::RelPath};

use crate::mirror::{
    apply::{Hands, Put, Step, Task, apply},
    cache::Known,
    root::{OWN, Root},
    stage::Stage,
    walk::{Eyes, How, look},
    watch::{Dirty, Watch},
};

const STORM: Duration = Duration::from_secs(2);
/// Events that have not come within this time do not come.
const QUIET: Duration = Duration::from_millis(300);
const FOLDERS: u64 = 4;
const FILES: u64 = 3;

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    /// A folder at the top, or one in it.
    fn folder(&mut self) -> String {
        let top = format!("d{}", self.roll(FOLDERS));
        if self.roll(2) == 0 { top } else { format!("{top}/e{}", self.roll(2)) }
    }
}

/// Somebody who works there. Whatever another did a moment ago may be in the way.
fn person(root: &Path, dice: &mut Dice, held: &mut Option<fs::File>) -> io::Result<()> {
    let (folder, other) = (root.join(dice.folder()), root.join(dice.folder()));
    match dice.roll(20) {
        0..11 => {
            let name = folder.join(format!("f{}", dice.roll(FILES)));
            // The same length each time: only its times, or its event, tell.
            fs::write(name, format!("{:20}", dice.roll(1 << 60)))
        }
        11..14 => fs::create_dir_all(folder),
        14..17 => fs::rename(folder, other),
        17 => {
            // An inode that lives on although its name is gone.
            *held = Some(fs::File::open(&folder)?);
            fs::remove_dir_all(folder)
        }
        18 => {
            let new = root.join(format!("new {}", dice.roll(u64::MAX)));
            fs::create_dir(&new)?;
            fs::write(new.join("f0"), "put in its place")?;
            fs::rename(&folder, root.join(format!("old {}", dice.roll(u64::MAX))))?;
            fs::rename(new, folder)
        }
        _ => {
            let (from, to) = (folder.join("f0"), other.join("f1"));
            fs::rename(from, to)
        }
    }
}

struct Mirror {
    _dir: tempfile::TempDir,
    eyes: Eyes,
    hands: Hands,
    dirty: Dirty,
}

impl Mirror {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(&dir.path().join("work"), &SessionId::new(1, [1; 10])).unwrap());
        let (stage, _) = Stage::open(&root, 0, |_| false).unwrap();
        let watch = Arc::new(Watch::new(root.path()));
        let eyes = Eyes {
            root: root.clone(),
            cache: Arc::default(),
            ignored: Arc::default(),
            watch,
            read_files: Arc::default(),
            stop: Arc::default(),
        };
        let hands = Hands { root, cache: eyes.cache.clone(), ignored: eyes.ignored.clone(), stage: Arc::new(stage), rules: Vec::new() };
        Self { _dir: dir, eyes, hands, dirty: Dirty::everything() }
    }

    fn root(&self) -> PathBuf {
        self.eyes.root.path().to_owned()
    }

    /// Looks when things have settled. Returns whether there was anything.
    fn turn(&mut self) -> bool {
        if self.eyes.watch.settles_at().is_some_and(|at| at <= Instant::now()) {
            self.dirty.add(self.eyes.watch.take());
        }
        if self.dirty.is_empty() {
            return false;
        }
        let mut again = Dirty::default();
        look(&self.eyes, &std::mem::take(&mut self.dirty), How::default(), None, &mut |portion| {
            // What changes while it is read is looked at again, as the workspace's owner does.
            portion.busy.into_iter().for_each(|path| again.mark(path, super::WRITTEN));
            true
        })
        .unwrap();
        self.dirty.add(again);
        true
    }

    /// Moves a folder that is as it was seen, as the hub may ask for.
    fn relocate(&self, from: &str, to: &str) {
        let path = |text: &str| text.parse::<RelPath>().unwrap();
        let task = Task { path: path(from), expect: None, put: Put::Move(path(to)), keep_copy: false };
        apply(&self.hands, &[task], 0, &|_: Step| true).unwrap();
    }

    fn seen(&self) -> BTreeMap<String, Option<[u8; 32]>> {
        let content = |known: &Known| if let Known::File(file) = known { Some(file.content) } else { None };
        self.eyes.cache.lock().unwrap().iter().map(|(path, known)| (path.to_string(), content(known))).collect()
    }
}

fn there(root: &Path, folder: &Path, found: &mut BTreeMap<String, Option<[u8; 32]>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if name == OWN {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            found.insert(name, None);
            there(root, &entry.path(), found);
        } else {
            found.insert(name, Some(*blake3::hash(&fs::read(entry.path()).unwrap()).as_bytes()));
        }
    }
}

fn storm(seed: u64) {
    let mut mirror = Mirror::new();
    mirror.turn();
    let stop = Arc::new(AtomicBool::new(false));
    let people: Vec<_> = (0..2)
        .map(|number| {
            let (root, stop) = (mirror.root(), stop.clone());
            std::thread::spawn(move || {
                let (mut dice, mut held) = (Dice(seed ^ number << 32), None);
                while !stop.load(Ordering::Relaxed) {
                    let _ = person(&root, &mut dice, &mut held);
                    std::thread::sleep(Duration::from_micros(dice.roll(4_000)));
                }
            })
        })
        .collect();
    let (begun, mut dice) = (Instant::now(), Dice(!seed));
    while begun.elapsed() < STORM {
        // Folders are watched again while they are on their way.
        mirror.dirty.add(Dirty::everything());
        mirror.turn();
        mirror.relocate(&dice.folder(), &dice.folder());
    }
    stop.store(true, Ordering::Relaxed);
    people.into_iter().for_each(|person| person.join().unwrap());
    // Only what is written now that it is quiet shows a watch that was lost before.
    let (root, mut quiet_since) = (mirror.root(), Instant::now());
    let mut files = None;
    loop {
        if mirror.turn() {
            quiet_since = Instant::now();
        } else if quiet_since.elapsed() > QUIET {
            let mut found = BTreeMap::new();
            there(&root, &root, &mut found);
            assert_eq!(mirror.seen(), found, "CORTEX_SEED={seed}{}", if files.is_some() { ", written when it was quiet" } else { "" });
            if files.is_some() {
                return;
            }
            for (name, _) in found.iter().filter(|(_, content)| content.is_some()) {
                fs::write(root.join(name), "the last word").unwrap();
            }
            for (name, _) in found.iter().filter(|(_, content)| content.is_none()) {
                fs::write(root.join(name).join("last"), "the last word").unwrap();
            }
            (files, quiet_since) = (Some(found), Instant::now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn whatever_happens_to_folders_every_edit_in_them_is_reported() {
    match std::env::var("CORTEX_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => storm(seed),
        None => (1..=3).for_each(storm),
    }
}
