use super::{
    read::{Verdict, Walk},
    *,
};
use proptest::prelude::*;

fn starting(task: u64) -> Starting {
    Starting { task: task.to_string(), argv: vec!["echo".into(), task.to_string()], ..Starting::default() }
}

fn ending(task: u64) -> Ending {
    Ending { task: task.to_string(), state: "succeeded".into(), ..Ending::default() }
}

fn run(log: &Log, tasks: std::ops::Range<u64>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for task in tasks {
        runtime.block_on(log.start(1, starting(task))).unwrap();
        log.end(2, ending(task));
    }
}

fn verify(folder: &Path) -> (Verdict, Vec<Record>) {
    let (mut walk, mut records) = (Walk::default(), Vec::new());
    walk.go_on(folder, |record, _, _| {
        records.push(record.clone());
        Ok(())
    })
    .unwrap();
    (walk.verdict().clone(), records)
}

fn fault(folder: &Path) -> String {
    verify(folder).0.fault.map(|fault| fault.to_string()).unwrap_or_default()
}

/// A log of three tasks: seven lines in one file.
fn sample() -> (tempfile::TempDir, PathBuf, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    run(&Log::open(dir.path()).unwrap(), 0..3);
    let path = file_path(dir.path(), 1);
    let lines = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    (dir, path, lines)
}

fn write(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

#[test]
fn everything_is_there_in_order_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    run(&Log::open(dir.path()).unwrap(), 0..2);
    run(&Log::open(dir.path()).unwrap(), 2..3);
    let (verdict, records) = verify(dir.path());
    assert_eq!((verdict.records, verdict.tasks, verdict.first, verdict.fault), (7, 3, 1, None));
    assert_eq!(records.iter().map(|record| record.n).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
    assert_eq!(records[5].what, What::Start(Box::new(starting(2))));
    assert_eq!(records[6].what, What::End(Box::new(ending(2))));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(file_path(dir.path(), 1)).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_altered_record_is_named() {
    let (dir, path, mut lines) = sample();
    lines[3] = lines[3].replace("\"1\"", "\"9\"");
    write(&path, &lines);
    assert!(fault(dir.path()).ends_with("line 4: record 4 was altered"), "{}", fault(dir.path()));
    // The peer goes on behind it, and the fault stays where it is.
    run(&Log::open(dir.path()).unwrap(), 3..4);
    let (verdict, records) = verify(dir.path());
    assert!(verdict.fault.unwrap().what.contains("record 4"));
    assert_eq!(records.len(), 9);
    lines[3] = "nonsense".into();
    write(&path, &lines);
    assert!(fault(dir.path()).contains("line 4: this is not a record"), "{}", fault(dir.path()));
}

#[test]
fn a_missing_record_is_named() {
    let (dir, path, mut lines) = sample();
    lines.remove(3);
    write(&path, &lines);
    assert!(fault(dir.path()).ends_with("line 4: record 4 is missing"), "{}", fault(dir.path()));
    lines.remove(3);
    write(&path, &lines);
    assert!(fault(dir.path()).ends_with("line 4: records 4 to 5 are missing"), "{}", fault(dir.path()));
}

#[test]
fn records_in_another_order_are_named() {
    let (dir, path, mut lines) = sample();
    lines.swap(3, 4);
    write(&path, &lines);
    assert!(fault(dir.path()).contains("record 5 stands where record 4 should"), "{}", fault(dir.path()));
    let (dir, path, mut lines) = sample();
    lines.push(lines[2].clone());
    write(&path, &lines);
    assert!(fault(dir.path()).contains("record 3 stands here again"), "{}", fault(dir.path()));
}

#[test]
fn a_last_line_that_a_crash_has_cut_is_taken_off() {
    let (dir, path, lines) = sample();
    let whole = fs::read(&path).unwrap();
    for cut in [1, 10, lines[6].len()] {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        assert_eq!(fault(dir.path()), "", "it may be on its way");
        let log = Log::open(dir.path()).unwrap();
        run(&log, 3..4);
        drop(log);
        let (verdict, records) = verify(dir.path());
        assert_eq!((verdict.fault, records.len()), (None, 8));
    }
    // Zeroes in the place of what did not reach the disk.
    fs::write(&path, [&whole[..], &[0; 100]].concat()).unwrap();
    run(&Log::open(dir.path()).unwrap(), 3..4);
    assert_eq!(verify(dir.path()).0.records, 9);
}

#[test]
fn the_chain_goes_on_over_files_of_which_the_newest_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    run(&Log::open_with(dir.path(), 2_000, 100).unwrap(), 0..20);
    let numbers = file_numbers(dir.path()).unwrap();
    assert!(numbers.len() > 3, "{numbers:?}");
    let (verdict, records) = verify(dir.path());
    assert_eq!((verdict.fault, verdict.tasks), (None, 20));
    assert_eq!(records.last().unwrap().n, verdict.records);
    // A crash right behind the beginning of a file.
    fs::write(file_path(dir.path(), numbers.len() as u64 + 1), "abc").unwrap();
    run(&Log::open_with(dir.path(), 2_000, 100).unwrap(), 20..21);
    assert_eq!(verify(dir.path()).0.fault, None);
    fs::remove_file(file_path(dir.path(), 2)).unwrap();
    assert!(fault(dir.path()).contains("0000000002.log, line 1: the file is missing"), "{}", fault(dir.path()));

    let dir = tempfile::tempdir().unwrap();
    run(&Log::open_with(dir.path(), 100, KEPT_FILES).unwrap(), 0..60);
    assert_eq!(file_numbers(dir.path()).unwrap().len(), KEPT_FILES);
    let verdict = verify(dir.path()).0;
    assert!(verdict.fault.is_none() && verdict.first > 1, "{verdict:?}");
    fs::remove_file(file_path(dir.path(), file_numbers(dir.path()).unwrap()[0])).unwrap();
    assert!(fault(dir.path()).contains("the file is missing"));
}

#[test]
fn a_start_is_found_by_its_hash() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let hash = runtime.block_on(log.start(1, starting(1))).unwrap();
    assert!(read::holds_start(dir.path(), &hash).unwrap());
    assert!(!read::holds_start(dir.path(), &[0; 32]).unwrap());
}

#[test]
fn values_of_variables_are_not_written_and_long_commands_are_clipped() {
    use cortex_wire::{
        id::TaskId,
        schema::{EnvironmentVariable, ShellTask, TaskRequest, task_request::Kind},
    };
    let shell = ShellTask {
        argv: vec!["x".into(), "é".repeat(4000), "y".into()],
        environment: vec![EnvironmentVariable { name: "TOKEN".into(), value: "hunter2".into() }],
        ..ShellTask::default()
    };
    let request = TaskRequest { kind: Some(Kind::Shell(shell)), ..TaskRequest::default() };
    let starting = Starting::new(&TaskId::new(1, [0; 10]), &request, "permissive");
    let json = serde_json::to_string(&starting).unwrap();
    assert!(json.contains("TOKEN") && !json.contains("hunter2"));
    assert!(starting.clipped && json.len() < 6_000, "{}", json.len());
    assert_eq!(starting.argv.len(), 2);
}

#[test]
fn what_a_person_sees_holds_no_control_characters() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let script = "printf '\u{1b}[2J'\necho two".to_owned();
    runtime.block_on(log.start(0, Starting { script, task: "t".into(), ..Starting::default() })).unwrap();
    drop(log);
    let mut out = Vec::new();
    show::show(dir.path(), show::Style::default(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("1970-01-01 00:00:00Z  t  start") && text.contains("printf '[2J'; echo two"), "{text:?}");
    let mut out = Vec::new();
    show::show(dir.path(), show::Style { json: true, follow: false }, &mut out).unwrap();
    for line in String::from_utf8(out).unwrap().lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["hash"].as_str().unwrap().len(), 64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No single byte can be changed without being noticed, except in a last line that loses its end.
    #[test]
    fn every_changed_byte_is_noticed(at in 0..1_000_000_usize, to: u8) {
        let (dir, path, _) = sample();
        let mut content = fs::read(&path).unwrap();
        let at = at % (content.len() - 1);
        prop_assume!(content[at] != to);
        content[at] = to;
        fs::write(&path, &content).unwrap();
        prop_assert_ne!(fault(dir.path()), "");
    }

    #[test]
    fn any_bytes_are_read(content in proptest::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(file_path(dir.path(), 1), &content).unwrap();
        let _ = verify(dir.path());
        let _ = Log::open(dir.path()).unwrap();
    }
}
