//! Limits for a task as a whole, and an end that nobody in it escapes: a cgroup (version 2) for each, where the peer may make some.
//!
//! ```text
//! <the group of the peer>/cortex-peer.<pid>         the peer itself, when it had to make room: a group with limits for its children has no members of its own
//! <the group of the peer>/cortex-tasks.<pid>/<n>    a task
//! ```
//! A peer that is root may make them, and so may one whose service has `Delegate=yes`. Limits need controllers, and those are switched on only by whoever is alone in its group: the groups
//! of others are theirs. Without controllers a group still ends its task as a whole. What is left of a peer that died is ended and removed at the next start.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What limits are made of.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Of the machine's memory, for one task: the rest is for the peer, and for whoever else is there.
const MEMORY_PERCENT: u64 = 80;
/// Processes and threads of one task.
const PROCESSES: u64 = 4096;
/// Against 100 of everybody else, when processors are scarce.
const CPU_WEIGHT: u64 = 50;
const TASKS: &str = "cortex-tasks.";
const OWN: &str = "cortex-peer.";

/// What this machine lets a peer limit, for its owner to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of `memory`, `pids` and `cpu`, those that hold for each task as a whole.
    pub controllers: Vec<String>,
    /// Why it is not all of them, with what to do about it.
    pub missing: Option<String>,
}

impl Limits {
    fn none(why: String) -> Self {
        Self { controllers: Vec::new(), missing: Some(why) }
    }

    /// In a line.
    pub fn line(&self) -> String {
        let held = if self.controllers.is_empty() { "none of a task as a whole".to_owned() } else { self.controllers.join(", ") };
        self.missing.as_ref().map_or(held.clone(), |missing| format!("{held}: {missing}"))
    }
}

/// Where tasks get their groups. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Groups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    controllers: Vec<String>,
    memory_bytes: u64,
    next: AtomicU64,
    /// Could not be removed yet.
    left: Mutex<Vec<PathBuf>>,
}

/// The group of one task. With the value it goes.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    groups: Groups,
}

/// Finds out what can be limited here, and prepares it. To be called once, before any task is started.
pub fn find() -> (Option<Groups>, Limits) {
    match own_group().and_then(|own| Groups::below(&own)) {
        Ok(groups) => {
            let controllers = groups.0.controllers.clone();
            let missing = CONTROLLERS.into_iter().filter(|name| !controllers.iter().any(|held| held == name)).collect::<Vec<_>>();
            let why = || format!("{} cannot be limited in the peer's cgroup; run it as a service with Delegate=yes", missing.join(", "));
            let missing = (!missing.is_empty()).then(why);
            (Some(groups), Limits { controllers, missing })
        }
        Err(why) => (None, Limits::none(why)),
    }
}

/// The folder of the group in which this process is.
fn own_group() -> Result<PathBuf, String> {
    let none = || "there is no cgroup of version 2 here".to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|_| none())?;
    let groups = fs::read_to_string("/proc/self/cgroup").map_err(|_| none())?;
    group_in(&mounts, &groups).ok_or_else(none)
}

/// The same, from what the kernel says.
fn group_in(mounts: &str, groups: &str) -> Option<PathBuf> {
    let (root, at) = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup2 ").then_some(())?;
        let mut words = left.split(' ').skip(3);
        Some((words.next()?, words.next()?))
    })?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Of a mount that shows a part of the tree, only what is in it can be seen.
    let inside = if root == "/" { path } else { path.strip_prefix(root)? };
    Some(Path::new(at).join(inside.trim_start_matches('/')))
}

fn words(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn switch_on(group: &Path) {
    for name in words(&group.join("cgroup.controllers")).iter().filter(|name| CONTROLLERS.contains(&name.as_str())) {
        // What stays off is missing in what was found.
        let _ = fs::write(group.join("cgroup.subtree_control"), format!("+{name}"));
    }
}

impl Groups {
    fn below(own: &Path) -> Result<Self, String> {
        sweep(own);
        let me = process::id().to_string();
        let folder = own.join(format!("{TASKS}{me}"));
        fs::create_dir(&folder).map_err(|error| {
            format!("no cgroup can be made in {} ({error}); run the peer as a service with Delegate=yes, or as root", own.display())
        })?;
        if words(&own.join("cgroup.procs")) == [me.clone()] {
            let leaf = own.join(format!("{OWN}{me}"));
            if fs::create_dir(&leaf).and_then(|()| fs::write(leaf.join("cgroup.procs"), "0")).is_ok() {
                switch_on(own);
            }
        }
        switch_on(&folder);
        let mut controllers = words(&folder.join("cgroup.subtree_control"));
        controllers.retain(|name| CONTROLLERS.contains(&name.as_str()));
        let memory_bytes = memory_bytes() / 100 * MEMORY_PERCENT;
        Ok(Self(Arc::new(Inner { folder, controllers, memory_bytes, next: AtomicU64::new(1), left: Mutex::default() })))
    }

    /// A group for one task, with its limits.
    ///
    /// # Errors
    /// What the kernel says: the task must not start without them.
    pub fn make(&self) -> io::Result<Group> {
        self.remove_left();
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let group = Group { folder: self.0.folder.join(number.to_string()), groups: self.clone() };
        fs::create_dir(&group.folder)?;
        for (controller, file, value) in [
            ("memory", "memory.max", self.0.memory_bytes),
            // All of it or nothing: what is left of a task that lost a process is of no use to anybody.
            ("memory", "memory.oom.group", 1),
            ("pids", "pids.max", PROCESSES),
            ("cpu", "cpu.weight", CPU_WEIGHT),
        ] {
            if self.0.controllers.iter().any(|held| held == controller) {
                fs::write(group.folder.join(file), value.to_string())?;
            }
        }
        Ok(group)
    }

    fn remove_left(&self) {
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner).retain(|folder| fs::remove_dir(folder).is_err() && folder.exists());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        end_all(&self.folder);
    }
}

impl Group {
    /// The file to which a process writes `0` to be in the group, with all that it starts from then on.
    pub fn door(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Takes a process in; a call that may take 20 ms. One that has ended by now, with its whole task perhaps, needs no limits.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(door: &Path, pid: rustix::process::Pid) -> io::Result<()> {
        match fs::write(door, pid.as_raw_nonzero().to_string()) {
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::SRCH | Errno::NOENT | Errno::NODEV)) => Ok(()),
            entered => entered,
        }
    }

    /// Kills every process in it, also those that are being forked.
    pub fn kill(&self) {
        let _ = fs::write(self.folder.join("cgroup.kill"), "1");
    }

    /// Whether somebody in it lives.
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.folder.join("cgroup.events")).is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if fs::remove_dir(&self.folder).is_err() {
            self.kill();
            self.groups.0.left.lock().unwrap_or_else(PoisonError::into_inner).push(self.folder.clone());
            self.groups.remove_left();
        }
    }
}

/// Ends and removes what peers that are gone have left.
fn sweep(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix(TASKS).or(name.strip_prefix(OWN))).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            end_all(&entry.path());
        }
    }
}

/// Ends who is in a group or below it, and removes it.
fn end_all(group: &Path) {
    let _ = fs::write(group.join("cgroup.kill"), "1");
    for _ in 0..20 {
        let below = fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        below.for_each(|entry| _ = fs::remove_dir(entry.path()));
        if fs::remove_dir(group).is_ok() || !group.exists() {
            return;
        }
        // The dead are not gone at once.
        thread::sleep(Duration::from_millis(5));
    }
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_below_the_mount() {
        let mount =
            |root: &str| format!("22 1 0:2 / / rw - ext4 /dev/a rw\n31 22 0:26 {root} /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n");
        let found = |root: &str, group: &str| group_in(&mount(root), group);
        assert_eq!(found("/", "0::/system.slice/a.service\n"), Some("/sys/fs/cgroup/system.slice/a.service".into()));
        assert_eq!(found("/", "9:name=systemd:/\n0::/\n"), Some("/sys/fs/cgroup/".into()));
        assert_eq!(found("/docker/x", "0::/docker/x/a\n"), Some("/sys/fs/cgroup/a".into()));
        assert_eq!(found("/docker/x", "0::/elsewhere\n"), None);
        assert_eq!(found("/", "4:memory:/\n"), None);
        assert_eq!(group_in("22 1 0:2 / / rw - cgroup cgroup rw\n", "0::/\n"), None);
    }

    /// Says so where there is nothing to be tried.
    #[test]
    fn a_task_s_group_ends_all_of_it_and_limits_what_can_be_limited() {
        let (groups, limits) = find();
        let Some(groups) = groups else {
            assert!(limits.controllers.is_empty() && limits.missing.is_some());
            return eprintln!("no cgroup can be made here: {}", limits.line());
        };
        let group = groups.make().unwrap();
        let read = |file: &str| fs::read_to_string(group.folder.join(file)).unwrap().trim().to_owned();
        for (controller, file, value) in [("memory", "memory.oom.group", "1"), ("pids", "pids.max", "4096"), ("cpu", "cpu.weight", "50")] {
            if limits.controllers.iter().any(|held| held == controller) {
                assert_eq!(read(file), value);
            } else {
                eprintln!("`{controller}` is not limited here: {}", limits.line());
            }
        }
        let script = "echo 0 > \"$1\" && { setsid sleep 300 & (sleep 300 &) ; sleep 300; }";
        let mut child = process::Command::new("sh").args(["-c", script, "sh"]).arg(group.door()).spawn().unwrap();
        let waits = |done: &dyn Fn() -> bool| {
            (0..1000).any(|_| {
                done() || {
                    thread::sleep(Duration::from_millis(10));
                    false
                }
            })
        };
        assert!(waits(&|| words(&group.door()).len() >= 4), "they are all in it: {:?}", words(&group.door()));
        assert!(group.is_populated());
        group.kill();
        assert!(waits(&|| !group.is_populated()), "all of them are gone: {:?}", words(&group.door()));
        child.wait().unwrap();
        let folder = group.folder.clone();
        drop(group);
        assert!(
            !folder.exists() || {
                groups.remove_left();
                !folder.exists()
            }
        );
        let parent = groups.0.folder.clone();
        drop(groups);
        assert!(!parent.exists());
    }
}
